//! How balanced the cluster is, and what would be done about it.

use plimsoll_api::v1::{
    BalanceAction, BalancePlan, BalanceStep, BalanceView, HostForecast, HostLoad,
};
use plimsoll_balance::{
    Action, NoBeneficialMove, Permille, Plan, Reason, Subject, Symptom, Tried, Utilisation,
};
use plimsoll_model::{HostId, Name, Role, Timestamp, VmId};

use crate::{
    app::{AppError, Caller},
    core::{Core, State},
    reconcile::balance::{Shown, load_of, signals},
};

/// How balanced the cluster is, with the last plan.
///
/// # Errors
/// The caller's token is bound to a project.
pub fn balance_show(core: &Core, caller: &Caller) -> Result<BalanceView, AppError> {
    caller.in_cluster(Role::Viewer)?;
    Ok(view(core))
}

/// Makes a plan on what is known now, and carries nothing out.
///
/// # Errors
/// The caller may not, or it cannot be made.
pub async fn balance_plan(core: &Core, caller: &Caller) -> Result<BalanceView, AppError> {
    caller.in_cluster(Role::Viewer)?;
    core.balance().plan_now(core).await?;
    Ok(view(core))
}

/// Makes a plan and begins its steps, whatever the mode. Steps that wait for others are not begun.
///
/// # Errors
/// The caller may not, or no plan can be made.
pub async fn balance_apply(core: &Core, caller: &Caller) -> Result<BalanceView, AppError> {
    caller.in_cluster(Role::Operator)?;
    let (_, plan) = core.balance().plan_now(core).await?;
    core.balance().carry_out(core, &plan).await?;
    Ok(view(core))
}

fn view(core: &Core) -> BalanceView {
    let state = core.snapshot();
    let Shown { plan, begun } = core.balance().shown();
    let hot = |host: HostId| {
        let plan = plan.as_ref().map(|(_, plan)| plan);
        plan.is_some_and(|plan| plan.hotspots.iter().any(|hotspot| hotspot.host == host))
    };
    let hosts = state.hosts.values().map(|record| {
        let (cpu, memory) = load_of(core, record);
        let rates = signals::shares_of(core, &state, record);
        HostLoad {
            host: record.host.name.clone(),
            cpu_percent: percent_of(cpu),
            memory_percent: percent_of(memory),
            cpu_wait_percent: rates.cpu_wait.map(percent_of),
            disk_percent: rates.disk.map(percent_of),
            network_percent: rates.network.map(percent_of),
            hot: hot(record.host.id),
        }
    });
    BalanceView {
        settings: state.settings().balance,
        hosts: hosts.collect(),
        moves_running: u32::try_from(state.migrating.len()).unwrap_or(u32::MAX),
        moves_begun: begun,
        plan: plan.map(|(at, plan)| {
            let mut view = plan_view(&state, at, &plan);
            view.left.extend(own_limits(core, &state));
            view
        }),
    }
}

/// VMs that would use more CPU than they are left: nobody is moved for that.
fn own_limits(core: &Core, state: &State) -> Vec<String> {
    let held = signals::held_back(core, state);
    let said = held.into_iter().map(|(vm, cpu)| {
        format!(
            "{}: its own limit holds back {cpu} cores: that is no reason to move it",
            vm_name(state, vm)
        )
    });
    said.collect()
}

fn percent_of(share: f64) -> f64 {
    (share * 1000.0).round() / 10.0
}

fn percent(share: Permille) -> f64 {
    f64::from(share.0) / 10.0
}

fn host_name(state: &State, id: HostId) -> String {
    state.host(id).map_or_else(|| id.to_string(), |record| record.host.name.to_string())
}

fn host(state: &State, id: HostId) -> Option<Name> {
    state.host(id).map(|record| record.host.name.clone())
}

fn vm_name(state: &State, id: VmId) -> String {
    let Some(record) = state.vm(id) else { return id.to_string() };
    let project = state.project(record.vm.project).map(|project| project.name.as_str());
    format!("{}/{}", project.unwrap_or("?"), record.vm.name)
}

fn plan_view(state: &State, made_at: Timestamp, plan: &Plan) -> BalancePlan {
    let mut findings = Vec::new();
    for hotspot in &plan.hotspots {
        for short in &hotspot.short {
            findings.push(format!(
                "{} is asked for {} of its {}, and for {} soon (more than {} is too much); for {} s",
                host_name(state, hotspot.host),
                short.now,
                short.resource,
                short.predicted,
                short.threshold,
                hotspot.lasts_s,
            ));
        }
    }
    for need in &plan.needs {
        let (vm, on) = (vm_name(state, need.vm), host_name(state, need.host));
        findings.push(format!("{vm} on {on} {}", symptom(need.symptom)));
    }
    let steps = plan.steps.iter().filter_map(|step| {
        Some(BalanceStep {
            vm: vm_name(state, step.action.vm()),
            what: match step.action {
                Action::Move { from, to, .. } => {
                    BalanceAction::Move { from: host(state, from)?, to: host(state, to)? }
                }
                Action::Resize { host: on, to, .. } => {
                    BalanceAction::Resize { host: host(state, on)?, cpu: to.cpu, memory: to.memory }
                }
            },
            reason: reason(state, step.reason),
            after: step.after.iter().map(|step| step + 1).collect(),
            hosts: step
                .hosts
                .iter()
                .filter_map(|seen| forecast(state, seen.host, &seen.before, &seen.after))
                .collect(),
            bytes: step.cost.bytes,
            expected_ms: step.cost.expected_ms,
            gain_percent: percent(step.gain),
        })
    });
    BalancePlan {
        made_at: Some(made_at),
        findings,
        steps: steps.collect(),
        left: plan.unmet.iter().map(|unmet| left(state, unmet.subject, &unmet.why)).collect(),
        overload_before_percent: percent(plan.overload_before),
        overload_after_percent: percent(plan.overload_after),
    }
}

fn forecast(
    state: &State,
    id: HostId,
    before: &Utilisation,
    after: &Utilisation,
) -> Option<HostForecast> {
    Some(HostForecast {
        host: host(state, id)?,
        cpu_before_percent: before.cpu.map(percent),
        cpu_after_percent: after.cpu.map(percent),
        memory_before_percent: before.memory.map(percent),
        memory_after_percent: after.memory.map(percent),
        disk_before_percent: before.disk.map(percent),
        disk_after_percent: after.disk.map(percent),
        network_before_percent: before.network.map(percent),
        network_after_percent: after.network.map(percent),
    })
}

fn symptom(symptom: Symptom) -> String {
    match symptom {
        Symptom::Latency { seen_us, objective_us } => {
            let ms = |us: u64| us as f64 / 1000.0;
            format!("answers in {:.1} ms, and should in {:.1} ms", ms(seen_us), ms(objective_us))
        }
        Symptom::MemoryPressure => "stands still for want of memory".to_owned(),
    }
}

fn reason(state: &State, reason: Reason) -> String {
    match reason {
        Reason::Hotspot { host, resource } => {
            format!("takes {resource} from {}, which has too little", host_name(state, host))
        }
        Reason::Swap { with, hotspot } => {
            let (with, hotspot) = (vm_name(state, with), host_name(state, hotspot));
            format!("makes room for {with}, which leaves {hotspot}")
        }
        Reason::ShortOverload { host, resource, for_s } => {
            let host = host_name(state, host);
            format!("{host} is short of {resource} for some {for_s} s: it does with less meanwhile")
        }
        Reason::Restore => "what it had to do without is there again".to_owned(),
        Reason::Need { symptom: what, short } => {
            let short = short.map(|short| format!(", for want of {short}")).unwrap_or_default();
            format!("{}{short}", symptom(what))
        }
    }
}

fn left(state: &State, subject: Subject, why: &NoBeneficialMove) -> String {
    let subject = match subject {
        Subject::Host(host) => host_name(state, host),
        Subject::Vm(vm) => vm_name(state, vm),
    };
    let why = match why {
        NoBeneficialMove::EndsSoon { in_s } => format!("it is expected to be over in {in_s} s"),
        NoBeneficialMove::MovesAtOnce { limit } => {
            format!("no more than {limit} VMs move at the same time")
        }
        NoBeneficialMove::Looks { limit } => format!("no plan was found in {limit} looks"),
        NoBeneficialMove::Tried(tried) => in_vain(state, tried),
    };
    format!("{subject}: {why}")
}

/// What was tried, and how often what stood in the way.
fn in_vain(state: &State, tried: &Tried) -> String {
    let mut parts = vec![format!("no beneficial move: of {} VMs", tried.vms)];
    for (count, what) in [
        (tried.fixed, "cannot move"),
        (tried.cooling, "have moved lately"),
        (tried.no_help, "use too little of what is short"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    for (count, what) in [
        (tried.too_full, "hosts would be too full"),
        (tried.unmeasured, "hosts are not measured"),
        (tried.no_gain, "moves would gain too little"),
        (tried.refused, "hosts are refused"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    if let Some(example) = &tried.example {
        let (vm, to) = (vm_name(state, example.vm), host_name(state, example.to));
        parts.push(format!("{vm} to {to}: {}", example.refusal));
    }
    parts.join(", ")
}
