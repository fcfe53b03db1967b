//! Where there is room: new VMs, VMs that start again, and VMs that wait.

use std::{collections::BTreeMap, sync::Arc};

use plimsoll_api::v1::VmRequest;
use plimsoll_model::{
    DiskLocation, EventKind, HostId, ImageId, MilliCores, Name, Placement, Policy, Power, Project,
    ProjectId, Resources, Severity, StoragePool, Timestamp, Vm, VmEvent, VmId, VmPhase, VmSpec,
};
use plimsoll_placement::{Choice, Request, SplitLimits};

use crate::{
    admission::{address, book, quota, validate},
    app::{AppError, Noun},
    core::{
        State, desired,
        record::{Claim, SHUTDOWN_GRACE, VmRecord},
        txn::Txn,
    },
};

/// How long a guest may take to shut down when nobody says otherwise, in milliseconds.
pub(crate) fn default_grace_ms() -> u64 {
    u64::try_from(SHUTDOWN_GRACE.as_millis()).unwrap_or(u64::MAX)
}

/// A total is split into more VMs at most so often, when room for their overhead is lacking.
const MAX_SPLIT_TRIES: u32 = 8;

/// A VM that is to be created.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: Name,
    pub(crate) spec: VmSpec,
    pub(crate) image: ImageId,
}

/// The VMs of one entry of a request.
///
/// # Errors
/// A value is not allowed, or the total cannot be split.
pub(crate) fn expand(
    txn: &mut Txn<'_>,
    project: ProjectId,
    entry: &VmRequest,
    field: &str,
    policy: Policy,
) -> Result<Vec<Wanted>, AppError> {
    let count = validate::entry_count(entry, field)?;
    let spec_field = format!("{field}.spec");
    validate::spec(&entry.spec, &spec_field, txn.now)?;
    let record = txn
        .state
        .image_for_vm(project, &entry.spec.image)
        .cloned()
        .ok_or_else(|| AppError::not_found(Noun::Image, &entry.spec.image))?;
    for network in &entry.spec.networks {
        if txn.state.network_by_name(project, network).is_none() {
            return Err(AppError::not_found(Noun::Network, network));
        }
    }
    let image = &record.image;
    let resources_field = format!("{spec_field}.resources");
    let wanted = |name: Name, resources: Resources| {
        let spec = VmSpec { resources, ..entry.spec.clone() };
        validate::elasticity(&spec, &format!("{spec_field}.elasticity"))?;
        Ok(Wanted { name, spec, image: image.id })
    };
    let mut vms = Vec::new();
    match (entry.count, &entry.split) {
        (_, Some(_)) => {
            // An image that is not ready is the better reason than a split that fails.
            let mut any = Resources { memory: image.min_memory, ..Resources::default() };
            validate::against_image(&mut any, image, &resources_field)?;
            for (i, part) in split(txn, project, entry, image, policy)?.into_iter().enumerate() {
                let number = u32::try_from(i + 1).unwrap_or(u32::MAX);
                let mut resources = part;
                validate::against_image(&mut resources, image, &resources_field)?;
                vms.push(wanted(validate::numbered(&entry.name, number, field)?, resources)?);
            }
        }
        (count_given, None) => {
            let mut resources = entry.spec.resources.clone();
            validate::against_image(&mut resources, image, &resources_field)?;
            if count_given.is_none() {
                vms.push(wanted(entry.name.clone(), resources)?);
            } else {
                for number in 1..=count {
                    let name = validate::numbered(&entry.name, number, field)?;
                    vms.push(wanted(name, resources.clone())?);
                }
            }
        }
    }
    Ok(vms)
}

/// Splits a total, counting what each VM costs its host beside its own.
fn split(
    txn: &mut Txn<'_>,
    project: ProjectId,
    entry: &VmRequest,
    image: &plimsoll_model::Image,
    policy: Policy,
) -> Result<Vec<Resources>, AppError> {
    let Some(bounds) = entry.split else { return Ok(Vec::new()) };
    let total = &entry.spec.resources;
    let overhead = txn.state.settings().vm_memory_overhead;
    let template = Request {
        application: entry.spec.application.clone(),
        groups: entry.spec.groups.clone(),
        constraints: entry.spec.constraints.clone(),
        ..Request::new(VmId(txn.uuid()), project, Resources::default())
    };
    let min_per_vm = Resources {
        cpu: MilliCores(1),
        memory: image.min_memory,
        disk: image.disk_size,
        ..Resources::default()
    };
    let mut limits = SplitLimits {
        min_vms: bounds.min_vms,
        max_vms: bounds.max_vms,
        min_per_vm,
        max_per_vm: Resources::default(),
    };
    let no_split = |refusal| AppError::NoSplit { name: entry.name.clone(), refusal };
    let mut tries = 0;
    loop {
        let parts = txn
            .cluster_to_try()
            .split_total(total, &limits, &template, policy)
            .map_err(no_split)?;
        let requests: Vec<Request> = parts
            .iter()
            .map(|part| {
                let mut demand = part.clone();
                demand.memory = demand.memory.saturating_add(overhead);
                if demand.disk.0 == 0 {
                    demand.disk = image.disk_size;
                }
                Request { vm: VmId(txn.uuid()), demand, ..template.clone() }
            })
            .collect();
        let more = u32::try_from(parts.len()).unwrap_or(u32::MAX).saturating_add(1);
        tries += 1;
        match txn.cluster_to_try().decide_group(&requests, policy) {
            Ok(_) => return Ok(parts),
            Err(last) if more > bounds.max_vms || tries >= MAX_SPLIT_TRIES => {
                let refusal = plimsoll_placement::SplitRefusal::NoPlace {
                    from: bounds.min_vms,
                    to: more - 1,
                    last,
                };
                return Err(no_split(refusal));
            }
            Err(_) => limits.min_vms = more,
        }
    }
}

/// Creates VMs and places those whose time has come: all of them, or it fails.
///
/// # Errors
/// A name is taken, or quota, credits, addresses or hosts do not allow it.
pub(crate) fn create(
    txn: &mut Txn<'_>,
    project: &Project,
    wanted: &[Wanted],
    policy: Option<Policy>,
) -> Result<Vec<VmId>, AppError> {
    quota::check_credits(project)?;
    let sum = wanted.iter().fold(Resources::default(), |sum, vm| sum.plus(&vm.spec.resources));
    let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
    quota::check_quota(&txn.state, project, &Resources::default(), &sum, count)?;
    let mut ids = Vec::with_capacity(wanted.len());
    for vm in wanted {
        ids.push(register(txn, project, vm, policy)?);
    }
    place_all(txn, &ids, policy)?;
    Ok(ids)
}

/// Makes a VM's record, without a host.
fn register(
    txn: &mut Txn<'_>,
    project: &Project,
    wanted: &Wanted,
    policy: Option<Policy>,
) -> Result<VmId, AppError> {
    let Wanted { name, spec, image } = wanted;
    if txn.state.vm_by_name(project.id, name).is_some() {
        return Err(AppError::AlreadyExists { what: Noun::Vm, name: name.to_string() });
    }
    let mut interfaces = Vec::with_capacity(spec.networks.len());
    for name in &spec.networks {
        let network = txn
            .state
            .network_by_name(project.id, name)
            .ok_or_else(|| AppError::not_found(Noun::Network, name))?;
        interfaces.push(address::interface(&txn.state, network)?);
    }
    let id = VmId(txn.uuid());
    let record = VmRecord {
        vm: Vm {
            id,
            project: project.id,
            name: name.clone(),
            spec: spec.clone(),
            power: Power::Running,
            generation: 1,
            incarnation: 0,
            reboots: 0,
            deflation: None,
            placement: None,
            disk: None,
            policy,
            phase: VmPhase::Pending,
            phase_since: txn.now,
            message: None,
            interfaces,
            observed_generation: 0,
            created_at: txn.now,
        },
        image: *image,
        claim: Claim::Full,
        overhead: plimsoll_model::Bytes::ZERO,
        devices: plimsoll_placement::Devices::default(),
        power_generation: 1,
        wanted_since: txn.revision,
        booted_memory: plimsoll_model::Bytes::ZERO,
        shutdown_grace_ms: default_grace_ms(),
        fenced_by_lease: false,
        lease_generation: 0,
        end_announced: false,
        booking: None,
        balanced_deflation: false,
        cleanups: BTreeMap::new(),
        migration: None,
        last_migration: None,
    };
    txn.vm_event(Severity::Info, EventKind::VmCreated, &record, "created");
    txn.put_vm(record);
    Ok(id)
}

/// Places those of the VMs whose time has come, and books the others. If not all can be placed now,
/// those that have a duration are booked too.
fn place_all(txn: &mut Txn<'_>, ids: &[VmId], policy: Option<Policy>) -> Result<(), AppError> {
    let is_due =
        |record: &VmRecord| record.vm.spec.start_after.is_none_or(|start| start <= txn.now);
    let records: Vec<_> = ids.iter().filter_map(|id| txn.state.vm(*id).cloned()).collect();
    let (due, later): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| is_due(record));
    if let Err(error) = place_group(txn, &due, policy) {
        let (for_some_time, forever): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|record| record.duration().is_some());
        if for_some_time.is_empty() {
            return Err(error);
        }
        place_group(txn, &forever, policy)?;
        for record in for_some_time {
            book::start_or_book(txn, &record)?;
        }
    }
    later.iter().try_for_each(|record| book::start_or_book(txn, record))
}

/// Places all of the VMs now, or none.
fn place_group(
    txn: &mut Txn<'_>,
    due: &[Arc<VmRecord>],
    policy: Option<Policy>,
) -> Result<(), AppError> {
    let overhead = txn.state.settings().vm_memory_overhead;
    let due: Vec<VmRecord> = due.iter().map(|record| begun(record, txn.now)).collect();
    let requests: Vec<Request> =
        due.iter().map(|record| record.request(record.demand(overhead))).collect();
    let policy = policy.unwrap_or(txn.state.settings().policy);
    let choices =
        match requests.as_slice() {
            [one] => vec![txn.cluster().decide(one, policy).map_err(|refusals| {
                AppError::NoCapacity { vm: due[0].vm.name.clone(), refusals }
            })?],
            many => txn.cluster_to_try().decide_group(many, policy).map_err(|refusal| {
                let vm = due
                    .get(refusal.index)
                    .map_or_else(|| due[0].vm.name.clone(), |record| record.vm.name.clone());
                AppError::NoCapacityForGroup { vm, refusal }
            })?,
        };
    for (record, choice) in due.into_iter().zip(&choices) {
        place(txn, record, choice);
    }
    Ok(())
}

/// Gives a VM its host: from now on the host should run it.
pub(crate) fn place(txn: &mut Txn<'_>, mut record: VmRecord, choice: &Choice) {
    let moved = record.host() != Some(choice.host);
    if moved {
        leave(&mut record, &txn.state);
        record.vm.incarnation += 1;
        record.vm.observed_generation = 0;
        record.cleanups.remove(&choice.host);
        record.vm.placement = Some(Placement {
            host: choice.host,
            policy: choice.policy,
            reason: choice.reason(),
            since: txn.now,
        });
    }
    record.claim = Claim::Full;
    record.overhead = txn.state.settings().vm_memory_overhead;
    record.devices = choice.devices.clone();
    record.power_generation = record.vm.generation;
    record.wanted_since = txn.revision;
    record.booted_memory = record.vm.spec.resources.memory;
    record.vm.message = None;
    mark_fencing(&txn.state, &mut record, moved);
    match record.vm.phase.next(VmEvent::Placed) {
        Ok(phase) => record.vm.phase = phase,
        Err(error) => tracing::error!(vm = %record.vm.id, %error, "placed in a wrong phase"),
    }
    let host = txn.state.host(choice.host).map(|host| host.host.name.to_string());
    let message = format!("on {}: {}", host.unwrap_or_default(), choice.reason());
    txn.vm_event(Severity::Info, EventKind::VmPlaced, &record, message);
    txn.put_vm(record);
}

/// Takes a VM from its host, which must confirm that it holds nothing of it.
pub(crate) fn leave(record: &mut VmRecord, state: &State) {
    if let Some(placement) = record.vm.placement.take() {
        if let Some(host) = state.host(placement.host) {
            // A host that has said nothing yet may have made the disk where others see it.
            let pool = match &record.vm.disk {
                Some(disk) => matches!(disk, DiskLocation::Pool { .. }),
                None => matches!(host.host.spec.storage, StoragePool::Shared { .. }),
            };
            let cleanup = crate::core::record::Cleanup {
                incarnation: record.vm.incarnation,
                delete_disk: !pool,
            };
            record.cleanups.insert(placement.host, cleanup);
        }
        record.devices = plimsoll_placement::Devices::default();
        record.fenced_by_lease = false;
        record.lease_generation = 0;
    }
}

/// Decides anew whether the VM's guard ends it when the lease runs out. Where that comes to be true
/// on a host that has the VM already, it is a change that the host must first carry out.
pub(crate) fn mark_fencing(state: &State, record: &mut VmRecord, new_host: bool) {
    let marked = record
        .host()
        .and_then(|id| state.host(id))
        .is_some_and(|host| desired::fenced_by_lease(state.settings().lease_ms, record, host));
    if marked && !record.fenced_by_lease && !new_host {
        record.vm.generation += 1;
        record.lease_generation = record.vm.generation;
    }
    if new_host {
        record.lease_generation = 0;
    }
    record.fenced_by_lease = marked;
}

/// The requests to try, in turn, for a VM that has been placed before: first the host that it has.
pub(crate) fn requests(record: &VmRecord, overhead: plimsoll_model::Bytes) -> Vec<Request> {
    let request = record.request(record.demand(overhead));
    let pinned = |host: HostId| Request { pinned_host: Some(host), ..request.clone() };
    match (&record.vm.disk, record.host()) {
        (Some(DiskLocation::Host { host }), _) => vec![pinned(*host)],
        (Some(DiskLocation::Pool { pool }), host) => {
            let anywhere = Request { pool: Some(pool.clone()), ..request.clone() };
            host.map(pinned).into_iter().chain([anywhere]).collect()
        }
        (None, host) => host.map(pinned).into_iter().chain([request.clone()]).collect(),
    }
}

/// Checks that a VM's project may run it.
///
/// # Errors
/// It has no credits left, or its quota does not allow it.
pub(crate) fn check_project(txn: &Txn<'_>, record: &VmRecord) -> Result<(), AppError> {
    let project = txn
        .state
        .project(record.vm.project)
        .ok_or_else(|| AppError::not_found(Noun::Project, record.vm.project))?;
    // A VM that a host was taken from goes on; it does not start anew.
    if !(record.host().is_none() && record.vm.incarnation > 0) {
        quota::check_credits(project)?;
    }
    quota::check_quota(
        &txn.state,
        project,
        &txn.state.vm(record.vm.id).map(|old| old.used()).unwrap_or_default(),
        &record.vm.spec.resources,
        0,
    )
}

/// The VM as it is when it starts now: its end is known.
fn begun(record: &VmRecord, now: Timestamp) -> VmRecord {
    let mut begun = record.clone();
    if let Some(duration) = record.duration() {
        begun.vm.spec.end_at = now.checked_add(duration).ok();
    }
    begun
}

/// Finds a host for a VM that should run and has none, or does not run on the one it has.
///
/// # Errors
/// Quota, credits or hosts do not allow it.
pub(crate) fn start(txn: &mut Txn<'_>, record: &VmRecord) -> Result<(), AppError> {
    check_project(txn, record)?;
    let record = &begun(record, txn.now);
    let settings = txn.state.settings();
    let (overhead, policy) =
        (settings.vm_memory_overhead, record.vm.policy.unwrap_or(settings.policy));
    let mut tries = requests(record, overhead);
    // Its host has not confirmed that it does not run: nowhere else then.
    if record.host().is_some() && record.claim == Claim::Full {
        tries.truncate(1);
    }
    let mut refused = None;
    for request in &tries {
        match txn.cluster().decide(request, policy) {
            Ok(choice) => {
                place(txn, record.clone(), &choice);
                return Ok(());
            }
            Err(refusals) => refused = Some(refusals),
        }
    }
    match refused {
        Some(refusals) => Err(AppError::NoCapacity { vm: record.vm.name.clone(), refusals }),
        None => Ok(()),
    }
}
