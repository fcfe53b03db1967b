//! Why something is, or would be, where it is.

use plimsoll_api::v1::{ExplainRequest, Explanation, HostVerdict, Refusal};
use plimsoll_model::{Name, Policy, VmId, VmPhase};
use plimsoll_placement::{self as placement, Request, Verdict};

use crate::{
    admission::{book, place},
    app::{AppError, Caller, vm},
    core::{Core, record::Booking, txn::Txn},
};

/// How every host would do for a VM that exists, decided anew as if it had left its place.
///
/// # Errors
/// There is no such VM for the caller.
pub async fn vm_explain(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<Explanation, AppError> {
    let (caller_, project, name) = (caller.clone(), project.clone(), vm.clone());
    let inner = core.clone();
    core.submit(Some(caller.token), move |txn| {
        let record = vm::find(&txn.state, &caller_, &project, &name)?.clone();
        let settings = txn.state.settings();
        let policy = record.vm.policy.unwrap_or(settings.policy);
        let overhead = settings.vm_memory_overhead;
        let tries = place::requests(&record, overhead);
        // A VM whose disk is on one host has no other choice; any other is asked about freely.
        let mut request = tries
            .into_iter()
            .next_back()
            .unwrap_or_else(|| record.request(record.demand(overhead)));
        if record.may_be_booked(txn.now) {
            let soonest = || book::soonest(&record.vm.spec, txn.now);
            let interval = record.booking.as_ref().map_or_else(soonest, Booking::interval);
            request = record.request_for(request.demand, interval);
        }
        let host = record.host().filter(|_| record.vm.phase == VmPhase::Running);
        let seen = host.and_then(|host| inner.telemetry().seen(host, record.vm.id));
        let share = seen.and_then(|seen| seen.observed.share);
        Ok(Explanation { share, ..explain(txn, &request, policy) })
    })
    .await
}

/// How every host would do for a request; nothing is created.
///
/// # Errors
/// The request is not valid, or there is no such project for the caller.
pub async fn request_explain(
    core: &Core,
    caller: &Caller,
    project: &Name,
    request: ExplainRequest,
) -> Result<Explanation, AppError> {
    let (caller_, project) = (caller.clone(), project.clone());
    core.submit(Some(caller.token), move |txn| {
        let project = caller_.project(&txn.state, &project)?.clone();
        let ExplainRequest { mut request, policy } = request;
        let policy = policy.unwrap_or(txn.state.settings().policy);
        // One of equal VMs stands for all.
        request.count = request.count.map(|count| count.min(1));
        let wanted = place::expand(txn, project.id, &request, "request", policy)?;
        let one = wanted.into_iter().next().ok_or(AppError::Busy)?;
        let mut demand = one.spec.resources.clone();
        let overhead = txn.state.settings().vm_memory_overhead;
        demand.memory = demand.memory.saturating_add(overhead);
        let interval = book::soonest(&one.spec, txn.now);
        let request = Request {
            interval,
            keeps_disk: interval.until.is_some(),
            application: one.spec.application,
            groups: one.spec.groups,
            constraints: one.spec.constraints,
            ..Request::new(VmId(txn.uuid()), project.id, demand)
        };
        Ok(explain(txn, &request, policy))
    })
    .await
}

fn explain(txn: &Txn<'_>, request: &Request, policy: Policy) -> Explanation {
    let explanation = txn.cluster().explain(request, policy);
    let name = |host| txn.state.host(host).map(|record| record.host.name.clone());
    Explanation {
        policy,
        demand: request.demand.clone(),
        chosen: explanation.choice.as_ref().and_then(|choice| name(choice.host)),
        reason: explanation.reason(),
        share: None,
        hosts: explanation.hosts.into_iter().map(verdict).collect(),
    }
}

fn verdict(host: placement::HostVerdict) -> HostVerdict {
    let (score, broken, refusals) = match host.verdict {
        Verdict::Possible { score, broken, .. } => (Some(score), broken.len(), Vec::new()),
        Verdict::Refused { reasons } => (None, 0, reasons.iter().map(refusal).collect()),
    };
    HostVerdict {
        id: host.host,
        host: host.name,
        score,
        broken_preferences: u32::try_from(broken).unwrap_or(u32::MAX),
        refusals,
    }
}

fn refusal(refusal: &placement::Refusal) -> Refusal {
    use placement::Refusal as R;
    let code = match refusal {
        R::Unschedulable { .. } => "unschedulable",
        R::Pinned { .. } => "pinned",
        R::Excluded => "excluded",
        R::Pool { .. } => "pool",
        R::Insufficient { .. } => "insufficient",
        R::Fragmented { .. } => "fragmented",
        R::HostLabel { .. } => "host_label",
        R::Affinity { .. } => "affinity",
        R::AffinityOfPlaced { .. } => "affinity_of_placed",
        R::AntiAffinity { .. } => "anti_affinity",
        R::AntiAffinityOfPlaced { .. } => "anti_affinity_of_placed",
        R::Exclusive { .. } => "exclusive",
        R::ExclusiveOfPlaced { .. } => "exclusive_of_placed",
    };
    let (element, need, free) = match refusal {
        R::Insufficient { element, need, free, .. } => {
            (Some(element.clone()), Some(*need), Some(*free))
        }
        R::Fragmented { model, need, free, .. } => {
            (Some(plimsoll_model::Element::Accelerator(model.clone())), Some(*need), Some(*free))
        }
        _ => (None, None, None),
    };
    Refusal { code: code.to_owned(), message: refusal.to_string(), element, need, free }
}
