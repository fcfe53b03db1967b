//! What has to be done so that the cluster is as the file says. Pure: no clock, no I/O.

use std::collections::BTreeSet;

use plimsoll_api::v1::{
    CreateNetworkRequest, CreateProjectRequest, CreateVmsRequest, ProjectView, SetProjectRequest,
    SetVmRequest, VmRequest, VmView,
};
use plimsoll_model::{Image, Name, Network, Resources, VmPhase, VmSpec};
use serde::Serialize;

use super::file::{File, Members, VmEntry};
use crate::cli::values::milliseconds;

/// What the manager says there is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    /// The project, if it exists.
    pub(crate) project: Option<ProjectView>,
    /// Its networks.
    pub(crate) networks: Vec<Network>,
    /// Its VMs.
    pub(crate) vms: Vec<VmView>,
    /// Images that it can use.
    pub(crate) images: Vec<Image>,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Plan {
    /// The steps.
    pub(crate) steps: Vec<Step>,
    /// What cannot be done; then nothing is.
    pub(crate) refusals: Vec<Refusal>,
    /// What is left as it is although one might expect otherwise.
    pub(crate) notes: Vec<String>,
}

/// A field, and how it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    /// The field.
    pub(crate) field: &'static str,
    /// What it is.
    pub(crate) old: String,
    /// What it will be.
    pub(crate) new: String,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub(crate) enum Step {
    /// Creates the project.
    CreateProject { request: CreateProjectRequest },
    /// Changes its quota.
    SetProject { name: Name, changes: Vec<Change>, request: SetProjectRequest },
    /// Creates a network.
    CreateNetwork { request: CreateNetworkRequest },
    /// Changes a VM while it runs.
    SetVm { name: Name, changes: Vec<Change>, request: Box<SetVmRequest> },
    /// Deletes a VM.
    DeleteVm { name: Name, reason: String },
    /// Creates VMs, all or none of them.
    CreateVms { request: CreateVmsRequest },
    /// Deletes a network.
    DeleteNetwork { name: Name },
    /// Deletes the project.
    DeleteProject { name: Name },
}

/// Something that the file asks for and that cannot be had as things are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Refusal {
    /// Of what.
    pub(crate) subject: String,
    /// What is asked, and why it cannot be.
    pub(crate) reason: String,
    /// Whether `--replace` would do it.
    pub(crate) replaceable: bool,
}

/// How to plan.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Delete and create anew what cannot be changed.
    pub(crate) replace: bool,
}

impl Plan {
    /// Whether there is nothing to do.
    pub(crate) const fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.refusals.is_empty()
    }

    /// How many VMs it deletes.
    pub(crate) fn deletions(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::DeleteVm { .. })).count()
    }

    fn refuse(&mut self, subject: String, reason: String, replaceable: bool) {
        self.refusals.push(Refusal { subject, reason, replaceable });
    }
}

/// What has to be done so that the cluster is as the file says.
pub(crate) fn plan(file: &File, observed: &Observed, options: Options) -> Plan {
    let mut plan = Plan::default();
    plan_project(file, observed, &mut plan);
    plan_networks(file, observed, &mut plan);
    let mut work = VmWork::default();
    for entry in &file.vms {
        check_references(file, entry, observed, &mut plan);
        match entry.members() {
            Members::One => work.one(entry, &entry.name, observed, options, &mut plan),
            Members::Count(count) => work.count(entry, count, observed, options, &mut plan),
            Members::Split(_) => work.split(entry, observed, options, &mut plan),
        }
    }
    plan.steps.append(&mut work.deletions);
    plan.steps.append(&mut work.changes);
    if !work.creations.is_empty() {
        plan.steps.push(Step::CreateVms {
            request: CreateVmsRequest {
                requests: work.creations,
                all_or_nothing: true,
                policy: file.policy,
            },
        });
    }
    plan
}

/// What has to be done so that nothing is left of what the file describes.
pub(crate) fn plan_deletion(file: &File, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let Some(project) = &observed.project else { return plan };
    let described = |vm: &VmView| {
        file.vms.iter().any(|entry| match entry.members() {
            Members::One => entry.name == vm.name,
            _ => entry.member_number(&vm.name).is_some(),
        })
    };
    let (ours, others): (Vec<_>, Vec<_>) = observed.vms.iter().partition(|vm| described(vm));
    for vm in ours {
        plan.steps.push(Step::DeleteVm { name: vm.name.clone(), reason: String::new() });
    }
    let mut kept = BTreeSet::new();
    for network in &observed.networks {
        if !file.networks.iter().any(|entry| entry.name == network.name) {
            kept.insert(format!("network {}", network.name));
        } else if let Some(user) = others.iter().find(|vm| vm.spec.networks.contains(&network.name))
        {
            plan.notes.push(format!("network {} stays: vm {} uses it", network.name, user.name));
            kept.insert(format!("network {}", network.name));
        } else {
            plan.steps.push(Step::DeleteNetwork { name: network.name.clone() });
        }
    }
    kept.extend(others.iter().map(|vm| format!("vm {}", vm.name)));
    kept.extend(
        observed
            .images
            .iter()
            .filter(|image| image.project == Some(project.id))
            .map(|image| format!("image {}", image.name)),
    );
    if kept.is_empty() {
        plan.steps.push(Step::DeleteProject { name: file.project.name.clone() });
    } else {
        let kept: Vec<_> = kept.into_iter().collect();
        plan.notes.push(format!(
            "project {} stays: the file does not describe its {}",
            file.project.name,
            kept.join(", ")
        ));
    }
    plan
}

fn plan_project(file: &File, observed: &Observed, plan: &mut Plan) {
    let entry = &file.project;
    let Some(project) = &observed.project else {
        plan.steps.push(Step::CreateProject {
            request: CreateProjectRequest {
                name: entry.name.clone(),
                quota: entry.quota.clone().unwrap_or_default(),
                credits: None,
            },
        });
        return;
    };
    if let Some(quota) = &entry.quota
        && *quota != project.quota
    {
        let print = crate::output::cluster::quota;
        plan.steps.push(Step::SetProject {
            name: entry.name.clone(),
            changes: vec![Change { field: "quota", old: print(&project.quota), new: print(quota) }],
            request: SetProjectRequest { quota: Some(quota.clone()), ..Default::default() },
        });
    }
}

fn plan_networks(file: &File, observed: &Observed, plan: &mut Plan) {
    for entry in &file.networks {
        let Some(network) = observed.networks.iter().find(|n| n.name == entry.name) else {
            plan.steps.push(Step::CreateNetwork {
                request: CreateNetworkRequest {
                    name: entry.name.clone(),
                    cidr: entry.cidr,
                    outside: entry.outside,
                },
            });
            continue;
        };
        let subject = || format!("network {}", entry.name);
        if let Some(cidr) = entry.cidr
            && cidr != network.cidr
        {
            let reason = format!(
                "its addresses cannot be changed from {} to {cidr}: VMs have them; delete it first",
                network.cidr
            );
            plan.refuse(subject(), reason, false);
        }
        if entry.outside != network.outside {
            let reason = format!(
                "`outside` cannot be changed from {} to {}; delete it first",
                network.outside, entry.outside
            );
            plan.refuse(subject(), reason, false);
        }
    }
}

/// Images and networks that an entry speaks of must be there, or in the file.
fn check_references(file: &File, entry: &VmEntry, observed: &Observed, plan: &mut Plan) {
    let subject = || format!("vm {}", entry.name);
    match image_of(entry, observed) {
        None => {
            let reason = format!(
                "there is no image {}: import it with `plimsoll image import`",
                entry.image
            );
            plan.refuse(subject(), reason, false);
        }
        Some(image) => {
            if let Some(disk) = entry.resources.disk
                && disk < image.disk_size
                && entry.split.is_none()
            {
                let reason = format!(
                    "image {} needs {} of disk, more than {disk}",
                    image.name, image.disk_size
                );
                plan.refuse(subject(), reason, false);
            }
        }
    }
    for network in &entry.networks {
        let known = file.networks.iter().any(|n| n.name == *network)
            || observed.networks.iter().any(|n| n.name == *network);
        if !known {
            let reason =
                format!("there is no network {network} in the project, and none in the file");
            plan.refuse(subject(), reason, false);
        }
    }
}

/// The image that a VM of the project boots from: the project's own goes before a public one.
fn image_of<'a>(entry: &VmEntry, observed: &'a Observed) -> Option<&'a Image> {
    let named = || observed.images.iter().filter(|image| image.name == entry.image);
    named().find(|image| image.project.is_some()).or_else(|| named().next())
}

/// What is to be done to VMs, collected so that it can be put in order: what frees resources goes
/// first.
#[derive(Default)]
struct VmWork {
    deletions: Vec<Step>,
    changes: Vec<Step>,
    creations: Vec<VmRequest>,
}

/// How an existing VM differs from what is wanted.
struct Difference {
    changes: Vec<Change>,
    request: SetVmRequest,
    /// What cannot be changed while it exists.
    fixed: Vec<(Change, &'static str)>,
}

impl VmWork {
    fn one(
        &mut self,
        entry: &VmEntry,
        name: &Name,
        observed: &Observed,
        options: Options,
        plan: &mut Plan,
    ) {
        let spec = spec(entry, observed);
        let create = |spec| VmRequest { name: name.clone(), count: None, split: None, spec };
        let Some(vm) = observed.vms.iter().find(|vm| vm.name == *name) else {
            self.creations.push(create(spec));
            return;
        };
        if vm.state == VmPhase::Deleting {
            self.delete(name, "it is being deleted already, and made anew");
            self.creations.push(create(spec));
            return;
        }
        let difference = difference(vm, &spec, entry, true);
        if difference.fixed.is_empty() {
            if !difference.changes.is_empty() {
                self.changes.push(Step::SetVm {
                    name: name.clone(),
                    changes: difference.changes,
                    request: Box::new(difference.request),
                });
            }
        } else if options.replace {
            self.delete(name, &format!("replaced, because of its {}", fields(&difference.fixed)));
            self.creations.push(create(spec));
        } else {
            refuse_fixed(&difference.fixed, name, plan);
        }
    }

    fn count(
        &mut self,
        entry: &VmEntry,
        count: u32,
        observed: &Observed,
        options: Options,
        plan: &mut Plan,
    ) {
        for number in 1..=count {
            if let Some(name) = entry.member_name(number) {
                self.one(entry, &name, observed, options, plan);
            }
        }
        let mut beyond: Vec<_> = members(entry, observed).filter(|(n, _)| *n > count).collect();
        beyond.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        for (_, vm) in beyond {
            self.delete(&vm.name, &format!("beyond the count of {count}"));
        }
    }

    fn split(&mut self, entry: &VmEntry, observed: &Observed, options: Options, plan: &mut Plan) {
        let mut members: Vec<_> = members(entry, observed).collect();
        members.sort_by_key(|(number, _)| *number);
        let wanted = spec(entry, observed);
        let create =
            |spec| VmRequest { name: entry.name.clone(), count: None, split: entry.split, spec };
        if members.is_empty() {
            self.creations.push(create(wanted));
            return;
        }
        let mut fixed: Vec<(Change, &'static str)> = Vec::new();
        let sum =
            members.iter().fold(Resources::default(), |sum, (_, vm)| sum.plus(&vm.spec.resources));
        if sum != wanted.resources {
            let print = crate::output::vm::resources;
            fixed.push((
                Change { field: "total", old: print(&sum), new: print(&wanted.resources) },
                "a total is split when its VMs are created",
            ));
        }
        if members.iter().any(|(_, vm)| vm.state == VmPhase::Deleting) {
            fixed.push((
                Change {
                    field: "members",
                    old: "some are being deleted".to_owned(),
                    new: "all".to_owned(),
                },
                "a total is split when its VMs are created",
            ));
        }
        let mut changes = Vec::new();
        for (_, vm) in &members {
            let difference = difference(vm, &wanted, entry, false);
            for item in difference.fixed {
                if !fixed.contains(&item) {
                    fixed.push(item);
                }
            }
            if !difference.changes.is_empty() {
                changes.push(Step::SetVm {
                    name: vm.name.clone(),
                    changes: difference.changes,
                    request: Box::new(difference.request),
                });
            }
        }
        if fixed.is_empty() {
            self.changes.append(&mut changes);
        } else if options.replace {
            let reason = format!("replaced, because of its {}", fields(&fixed));
            for (_, vm) in &members {
                self.delete(&vm.name, &reason);
            }
            self.creations.push(create(wanted));
        } else {
            refuse_fixed(&fixed, &entry.name, plan);
        }
    }

    fn delete(&mut self, name: &Name, reason: &str) {
        self.deletions.push(Step::DeleteVm { name: name.clone(), reason: reason.to_owned() });
    }
}

fn fields(fixed: &[(Change, &'static str)]) -> String {
    fixed.iter().map(|(change, _)| change.field).collect::<Vec<_>>().join(", ")
}

fn refuse_fixed(fixed: &[(Change, &'static str)], name: &Name, plan: &mut Plan) {
    for (change, why) in fixed {
        let reason = format!(
            "{} cannot be changed from {} to {}: {why}",
            change.field, change.old, change.new
        );
        plan.refuse(format!("vm {name}"), reason, true);
    }
}

fn members<'a>(
    entry: &'a VmEntry,
    observed: &'a Observed,
) -> impl Iterator<Item = (u32, &'a VmView)> {
    observed.vms.iter().filter_map(|vm| Some((entry.member_number(&vm.name)?, vm)))
}

/// What a VM of this entry is to be.
fn spec(entry: &VmEntry, observed: &Observed) -> VmSpec {
    let wanted = &entry.resources;
    let image_disk = || image_of(entry, observed).map(|image| image.disk_size).unwrap_or_default();
    VmSpec {
        resources: Resources {
            cpu: wanted.cpu,
            memory: wanted.memory,
            disk: wanted.disk.unwrap_or_else(image_disk),
            disk_bandwidth: wanted.disk_bandwidth,
            disk_iops: wanted.disk_iops,
            network: wanted.network,
            accelerators: wanted.accelerators.clone(),
        },
        image: entry.image.clone(),
        networks: entry.networks.clone(),
        application: entry.application.clone(),
        groups: entry.groups.clone(),
        constraints: entry.constraints.clone(),
        user_data: entry.user_data.clone(),
        ssh_keys: entry.ssh_keys.clone(),
        start_after: entry.start_after,
        duration_ms: entry.duration.map(milliseconds),
        deadline: entry.deadline,
        end_at: entry.end_at,
        restart: entry.restart,
        on_host_failure: entry.on_host_failure,
        elasticity: entry.elasticity.clone(),
    }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn option<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "none".to_owned(), ToString::to_string)
}

/// The name that serde writes, which is also what files say.
fn wire<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// How a VM differs from what is wanted; `resources` says whether those are compared.
fn difference(vm: &VmView, wanted: &VmSpec, entry: &VmEntry, resources: bool) -> Difference {
    let is = &vm.spec;
    let mut difference =
        Difference { changes: Vec::new(), request: SetVmRequest::default(), fixed: Vec::new() };
    if resources {
        compare_resources(is, wanted, entry, &mut difference);
    }
    let Difference { changes, request, fixed } = &mut difference;
    if is.restart != wanted.restart {
        changes.push(change("restart", wire(&is.restart), wire(&wanted.restart)));
        request.restart = Some(wanted.restart);
    }
    if is.on_host_failure != wanted.on_host_failure {
        let (old, new) = (wire(&is.on_host_failure), wire(&wanted.on_host_failure));
        changes.push(change("on_host_failure", old, new));
        request.on_host_failure = Some(wanted.on_host_failure);
    }
    if is.elasticity != wanted.elasticity {
        let (old, new) = (is.elasticity.to_string(), wanted.elasticity.to_string());
        changes.push(change("elasticity", old, new));
        request.elasticity = Some(wanted.elasticity.clone());
    }
    if is.constraints != wanted.constraints {
        changes.push(change("constraints", list(&is.constraints), list(&wanted.constraints)));
        request.constraints = Some(wanted.constraints.clone());
    }
    if wanted.end_at.is_some() && is.end_at != wanted.end_at {
        let (old, new) = (option(is.end_at.as_ref()), option(wanted.end_at.as_ref()));
        changes.push(change("end_at", old, new));
        request.end_at = wanted.end_at;
    }
    let mut fix = |different: bool, field, old: String, new: String, why| {
        if different {
            fixed.push((change(field, old, new), why));
        }
    };
    fix(
        is.image != wanted.image,
        "image",
        is.image.to_string(),
        wanted.image.to_string(),
        "its disk was made from the image",
    );
    fix(
        is.networks != wanted.networks,
        "networks",
        list(&is.networks),
        list(&wanted.networks),
        "its interfaces are made when it is created",
    );
    fix(
        is.application != wanted.application,
        "application",
        option(is.application.as_ref()),
        option(wanted.application.as_ref()),
        "others were placed by it",
    );
    fix(
        is.groups != wanted.groups,
        "groups",
        list(&is.groups),
        list(&wanted.groups),
        "others were placed by them",
    );
    fix(
        is.user_data != wanted.user_data,
        "user_data",
        "what it booted with".to_owned(),
        "what the file says".to_owned(),
        "the guest reads it at its first boot",
    );
    fix(
        is.ssh_keys != wanted.ssh_keys,
        "ssh_keys",
        format!("{} keys", is.ssh_keys.len()),
        format!("{} keys", wanted.ssh_keys.len()),
        "the guest reads them at its first boot",
    );
    let created = "it is said when the VM is created";
    fix(
        wanted.start_after.is_some() && is.start_after != wanted.start_after,
        "start_after",
        option(is.start_after.as_ref()),
        option(wanted.start_after.as_ref()),
        created,
    );
    let seconds = |ms: Option<u64>| ms.map(|ms| format!("{}s", ms / 1000));
    fix(
        wanted.duration_ms.is_some() && is.duration_ms != wanted.duration_ms,
        "duration",
        option(seconds(is.duration_ms).as_ref()),
        option(seconds(wanted.duration_ms).as_ref()),
        created,
    );
    fix(
        wanted.deadline.is_some() && is.deadline != wanted.deadline,
        "deadline",
        option(is.deadline.as_ref()),
        option(wanted.deadline.as_ref()),
        created,
    );
    difference
}

const fn change(field: &'static str, old: String, new: String) -> Change {
    Change { field, old, new }
}

fn compare_resources(is: &VmSpec, wanted: &VmSpec, entry: &VmEntry, difference: &mut Difference) {
    let (old, new) = (&is.resources, &wanted.resources);
    let Difference { changes, request, fixed } = difference;
    macro_rules! element {
        ($field:ident) => {
            if old.$field != new.$field {
                changes.push(change(
                    stringify!($field),
                    old.$field.to_string(),
                    new.$field.to_string(),
                ));
                request.$field = Some(new.$field);
            }
        };
    }
    element!(cpu);
    element!(memory);
    // A disk that the file leaves to the image may have grown since.
    if entry.resources.disk.is_some() {
        if new.disk < old.disk {
            fixed.push((
                change("disk", old.disk.to_string(), new.disk.to_string()),
                "a disk can only grow",
            ));
        } else {
            element!(disk);
        }
    }
    element!(disk_bandwidth);
    element!(disk_iops);
    element!(network);
    if old.accelerators != new.accelerators {
        let print =
            |resources: &Resources| {
                list(resources.accelerators.0.iter().map(|(model, amount)| {
                    format!("{} {model}", plimsoll_model::MilliCores(*amount))
                }))
            };
        fixed.push((
            change("accelerators", print(old), print(new)),
            "devices are given when it is created",
        ));
    }
}

#[cfg(test)]
mod tests;
