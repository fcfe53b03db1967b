//! Hosts, projects, networks, images, tokens, events and the cluster as people read them.

use std::fmt::Write as _;

use jiff::Timestamp;
use plimsoll_api::cluster::HostMemory;
use plimsoll_api::deduplication::HostDeduplication;
use plimsoll_api::v1::{ClusterStatus, HostView, ProjectView, Settings, TokenView, WhoAmI};
use plimsoll_model::{
    Amount, Bytes, Element, Event, Fencing, Fraction, HostPhase, Image, ImagePhase, Name, Network,
    Quota, Severity, StoragePool, Subject,
};

use super::{
    Output, Tone, age, instant, or_dash, rates, tame,
    vm::{resources, rounded},
};

const fn host_tone(phase: HostPhase) -> Tone {
    match phase {
        HostPhase::Up => Tone::Good,
        HostPhase::Unreachable => Tone::Attention,
        HostPhase::Dead | HostPhase::Fenced => Tone::Bad,
    }
}

/// `committed/capacity` of one element.
fn share(host: &HostView, element: &Element) -> String {
    let print = |amount: u64| match element {
        _ if amount == 0 => "0".to_owned(),
        Element::Cpu => plimsoll_model::MilliCores(amount).to_string(),
        other => other.print(amount),
    };
    format!("{}/{}", print(host.committed.get(element)), print(host.spec.capacity.get(element)))
}

/// Many hosts.
pub(crate) fn hosts(output: &Output, hosts: &[HostView], now: Timestamp) -> String {
    let mut table = output.table(&[
        "NAME",
        "STATE",
        "RACK",
        "ZONE",
        "VMS",
        "CPU",
        "MEMORY",
        "DISK",
        "ACCELERATOR",
        "REPORT",
    ]);
    for host in hosts {
        let state = if host.schedulable {
            host.state.to_string()
        } else {
            format!("{}, drained", host.state)
        };
        table.add_row([
            output.cell(&host.name, Tone::Plain),
            output.cell(state, host_tone(host.state)),
            output.cell(or_dash(host.spec.rack.as_ref()), Tone::Plain),
            output.cell(or_dash(host.spec.zone.as_ref()), Tone::Plain),
            output.cell(host.vms, Tone::Plain),
            output.cell(share(host, &Element::Cpu), Tone::Plain),
            output.cell(share(host, &Element::Memory), Tone::Plain),
            output.cell(share(host, &Element::Disk), Tone::Plain),
            output.cell(&host.spec.accelerator, Tone::Plain),
            output.cell(
                host.last_report_at
                    .map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(at, now))),
                Tone::Plain,
            ),
        ]);
    }
    output.finish(table)
}

/// What merging equal pages does for a host, in a few words.
fn deduplication(merged: &HostDeduplication) -> String {
    let whose = match &merged.project {
        _ if merged.across_projects => format!("{} VMs of any project (forced)", merged.vms),
        Some(project) => format!("{} VMs of project {project}", merged.vms),
        None => "no VM".to_owned(),
    };
    let text = format!(
        "{whose}, {} saved; the scanner is {} and takes {} of a core",
        rounded(merged.saved),
        merged.phase,
        merged.scanner_cpu
    );
    match &merged.note {
        Some(note) => format!("{text}; {}", tame(note)),
        None => text,
    }
}

/// One host in full.
pub(crate) fn host(output: &Output, host: &HostView, now: Timestamp) -> String {
    let fencing = host.fencing.map(|fencing| match fencing {
        Fencing::Operator => "an operator said so",
        Fencing::Command => "the fencing command succeeded",
        Fencing::Lease => "its lease ran out",
        Fencing::Reboot => "it was rebooted",
    });
    let mut facts = vec![
        ("name", host.name.to_string()),
        ("id", host.id.to_string()),
        (
            "state",
            format!(
                "{} for {}",
                output.paint(&host.state.to_string(), host_tone(host.state)),
                age(host.state_since, now)
            ),
        ),
        ("takes new vms", if host.schedulable { "yes" } else { "no: drained" }.to_owned()),
    ];
    if let Some(drain) = &host.draining {
        let parallel = drain.parallel;
        let since = age(drain.since, now);
        facts.push(("is emptied", format!("for {since}, {parallel} VMs at once")));
        for vm in &drain.waiting {
            let why = vm.why.as_deref().map(tame).unwrap_or_default();
            facts.push(("held up", format!("{}/{}: {why}", vm.project, vm.vm)));
        }
    }
    if let Some(fencing) = fencing {
        facts.push(("fenced", fencing.to_owned()));
    }
    facts.extend([
        ("rack", or_dash(host.spec.rack.as_ref())),
        ("zone", or_dash(host.spec.zone.as_ref())),
    ]);
    for (key, value) in &host.spec.labels {
        facts.push(("label", format!("{key}={value}")));
    }
    facts.extend([
        ("capacity", resources(&host.spec.capacity)),
        ("committed", resources(&host.committed)),
        ("free", resources(&host.free)),
        ("vms", host.vms.to_string()),
    ]);
    if host.loan != Amount::default() {
        let Amount { memory, cpu } = host.loan;
        facts.push(("lent", format!("{cpu} cores and {memory} that its elastic VMs will not use")));
    }
    if let Some(usage) = &host.usage {
        facts.push((
            "in use",
            format!(
                "{} cores, {} memory, {} disk free, {} VMs running",
                usage.cpu, usage.memory, usage.disk_free, usage.running_vms
            ),
        ));
        if let Some(division) = usage.division {
            let HostMemory { state, free, reclaimed, shortfall } = division;
            let mut text = format!("{state}: {free} free, {reclaimed} taken from VMs for now");
            if shortfall > Bytes::ZERO {
                let _ = write!(text, ", {shortfall} lacking");
            }
            facts.push(("memory", text));
        }
        if let Some(merged) = &usage.deduplication {
            facts.push(("merged", deduplication(merged)));
        }
        let swap = format!("{}, {} free", usage.swap, usage.swap_free);
        facts.push(("swap", if usage.swap.get() == 0 { "none".to_owned() } else { swap }));
        facts.extend(rates::of_host(&usage.rates).map(|text| ("each second", text)));
    }
    facts.extend([
        (
            "storage",
            match &host.spec.storage {
                StoragePool::Local => "local".to_owned(),
                StoragePool::Shared { pool } => format!("shared pool {pool}"),
            },
        ),
        ("qemu", format!("{} with {}", host.spec.qemu_version, host.spec.accelerator)),
        ("agent", format!("{} at {}", host.spec.agent_version, host.spec.agent_address)),
        ("underlay", host.spec.underlay_address.to_string()),
        ("last report", or_dash(host.last_report_at.map(|at| format!("{} ago", age(at, now))))),
    ]);
    output.facts(&facts)
}

/// Many projects.
pub(crate) fn projects(output: &Output, projects: &[ProjectView]) -> String {
    let mut table = output.table(&["NAME", "VMS", "CPU", "MEMORY", "DISK", "CREDITS"]);
    let of = |used: String, limit: Option<String>| match limit {
        Some(limit) => format!("{used}/{limit}"),
        None => used,
    };
    for project in projects {
        let (used, quota) = (&project.used, &project.quota);
        table.add_row([
            output.cell(&project.name, Tone::Plain),
            output.cell(of(project.vms.to_string(), quota.vms.map(|x| x.to_string())), Tone::Plain),
            output.cell(of(used.cpu.to_string(), quota.cpu.map(|x| x.to_string())), Tone::Plain),
            output.cell(
                of(used.memory.to_string(), quota.memory.map(|x| x.to_string())),
                Tone::Plain,
            ),
            output.cell(of(used.disk.to_string(), quota.disk.map(|x| x.to_string())), Tone::Plain),
            output.cell(or_dash(project.credits), Tone::Plain),
        ]);
    }
    output.finish(table)
}

/// A quota in one line.
pub(crate) fn quota(quota: &Quota) -> String {
    let parts = [
        ("vms", quota.vms.map(|x| x.to_string())),
        ("cpu", quota.cpu.map(|x| x.to_string())),
        ("memory", quota.memory.map(|x| x.to_string())),
        ("disk", quota.disk.map(|x| x.to_string())),
        ("disk bandwidth", quota.disk_bandwidth.map(|x| x.to_string())),
        ("disk operations", quota.disk_iops.map(|x| x.to_string())),
        ("network", quota.network.map(|x| x.to_string())),
        ("accelerators", quota.accelerators.map(|x| x.to_string())),
    ];
    let said: Vec<_> =
        parts.into_iter().filter_map(|(what, x)| x.map(|x| format!("{what} {x}"))).collect();
    if said.is_empty() { "not limited".to_owned() } else { said.join(", ") }
}

/// One project in full.
pub(crate) fn project(output: &Output, project: &ProjectView, now: Timestamp) -> String {
    output.facts(&[
        ("name", project.name.to_string()),
        ("id", project.id.to_string()),
        ("vms", project.vms.to_string()),
        ("used", resources(&project.used)),
        ("quota", quota(&project.quota)),
        (
            "credits",
            project.credits.map_or_else(|| "not charged".to_owned(), |credits| credits.to_string()),
        ),
        (
            "created",
            format!("{} ({} ago)", instant(project.created_at), age(project.created_at, now)),
        ),
        (
            "merged",
            format!(
                "{} saved on {} VMs",
                rounded(project.deduplication.saved),
                project.deduplication.vms
            ),
        ),
    ])
}

/// Many networks.
pub(crate) fn networks(output: &Output, networks: &[Network]) -> String {
    let mut table = output.table(&["NAME", "ADDRESSES", "OUTSIDE", "VNI"]);
    for network in networks {
        table.add_row([
            output.cell(&network.name, Tone::Plain),
            output.cell(network.cidr, Tone::Plain),
            output.cell(if network.outside { "yes" } else { "no" }, Tone::Plain),
            output.cell(network.vni, Tone::Plain),
        ]);
    }
    output.finish(table)
}

/// One network in full.
pub(crate) fn network(output: &Output, network: &Network) -> String {
    output.facts(&[
        ("name", network.name.to_string()),
        ("id", network.id.to_string()),
        ("addresses", network.cidr.to_string()),
        ("gateway", network.cidr.gateway().to_string()),
        ("outside", if network.outside { "yes" } else { "no" }.to_owned()),
        ("vni", network.vni.to_string()),
        ("created", instant(network.created_at)),
    ])
}

const fn image_state(image: &Image) -> (&'static str, Tone) {
    match image.phase {
        ImagePhase::Uploading => ("uploading", Tone::Attention),
        ImagePhase::Ready => ("ready", Tone::Good),
    }
}

/// Many images.
pub(crate) fn images(output: &Output, images: &[Image]) -> String {
    let mut table =
        output.table(&["NAME", "STATE", "OWNER", "DISK", "MIN MEMORY", "AGENT", "DESCRIPTION"]);
    for image in images {
        let (state, tone) = image_state(image);
        table.add_row([
            output.cell(&image.name, Tone::Plain),
            output.cell(state, tone),
            output.cell(if image.project.is_some() { "project" } else { "public" }, Tone::Plain),
            output.cell(image.disk_size, Tone::Plain),
            output.cell(image.min_memory, Tone::Plain),
            output.cell(if image.guest_agent { "yes" } else { "no" }, Tone::Plain),
            output.cell(&image.description, Tone::Plain),
        ]);
    }
    output.finish(table)
}

/// One image in full.
pub(crate) fn image(output: &Output, image: &Image) -> String {
    let (state, tone) = image_state(image);
    let mut facts = vec![
        ("name", image.name.to_string()),
        ("id", image.id.to_string()),
        ("state", output.paint(state, tone)),
        ("owner", or_dash(image.project.map(|id| id.to_string()).or(Some("public".to_owned())))),
        ("description", image.description.clone()),
        ("disk", format!("{} ({})", image.disk_size, image.disk_format)),
        ("min memory", image.min_memory.to_string()),
        ("guest agent", if image.guest_agent { "yes" } else { "no" }.to_owned()),
    ];
    if let Some(append) = &image.append {
        facts.push(("append", append.clone()));
    }
    for file in &image.files {
        facts.push((file.kind.as_str(), format!("{} sha256 {}", file.size, file.sha256)));
    }
    facts.push(("created", instant(image.created_at)));
    output.facts(&facts)
}

/// Many tokens.
pub(crate) fn tokens(output: &Output, tokens: &[TokenView]) -> String {
    let mut table = output.table(&["ID", "ROLE", "PROJECT", "EXPIRES", "NOTE"]);
    for token in tokens {
        table.add_row([
            output.cell(token.id, Tone::Plain),
            output.cell(token.role, Tone::Plain),
            output.cell(
                token.project.as_ref().map_or_else(|| "(cluster)".to_owned(), Name::to_string),
                Tone::Plain,
            ),
            output.cell(token.expires_at.map_or_else(|| "never".to_owned(), instant), Tone::Plain),
            output.cell(&token.note, Tone::Plain),
        ]);
    }
    output.finish(table)
}

/// Whom an event is about, such as `vm web-1`.
fn subject(subject: &Subject) -> String {
    match subject {
        Subject::Vm { name, .. } => format!("vm {name}"),
        Subject::Host { name, .. } => format!("host {name}"),
        Subject::Project { name, .. } => format!("project {name}"),
        Subject::Network { name, .. } => format!("network {name}"),
        Subject::Image { name, .. } => format!("image {name}"),
        Subject::Token { id } => id.to_string(),
        Subject::Cluster => "cluster".to_owned(),
    }
}

/// One event, as a line: events are followed, so their columns have fixed widths.
pub(crate) fn event(output: &Output, event: &Event) -> String {
    let tone = match event.severity {
        Severity::Info => Tone::Plain,
        Severity::Warning => Tone::Attention,
        Severity::Error => Tone::Bad,
    };
    let at = instant(event.at);
    let severity = output.paint(&format!("{:<7}", event.severity), tone);
    let line = format!(
        "{:<6} {at} {severity} {:<19} {:<20} {}",
        event.sequence.0,
        event.kind.to_string(),
        subject(&event.subject),
        tame(&event.message)
    );
    format!("{}\n", line.trim_end())
}

/// Who asks.
pub(crate) fn whoami(output: &Output, who: &WhoAmI) -> String {
    output.facts(&[
        ("token", who.token.to_string()),
        ("role", who.role.to_string()),
        (
            "project",
            who.project.as_ref().map_or_else(|| "(the whole cluster)".to_owned(), Name::to_string),
        ),
    ])
}

/// Seconds where they are whole, milliseconds otherwise.
fn milliseconds(value: u64) -> String {
    if value.is_multiple_of(1000) { format!("{}s", value / 1000) } else { format!("{value}ms") }
}

fn overcommitment(settings: &Settings) -> String {
    let percent = |risk: Fraction| format!("{} %", risk.as_f64() * 100.0);
    match (settings.risk_cpu, settings.risk_memory) {
        (Fraction::ZERO, Fraction::ZERO) => "none: no host is promised more than it has".to_owned(),
        (cpu, memory) => format!(
            "short of CPU in at most {} and of memory in at most {} of slots of {}s",
            percent(cpu),
            percent(memory),
            settings.slot_s
        ),
    }
}

/// The settings.
pub(crate) fn settings(output: &Output, settings: &Settings) -> String {
    let price =
        |millionths: u64| plimsoll_model::Credits(i64::try_from(millionths).unwrap_or(i64::MAX));
    output.facts(&[
        ("policy", settings.policy.to_string()),
        ("unreachable after", milliseconds(settings.unreachable_after_ms)),
        ("dead after", milliseconds(settings.dead_after_ms)),
        (
            "lease",
            if settings.lease_ms == 0 {
                "none: a silent host's VMs wait until it is fenced otherwise".to_owned()
            } else {
                milliseconds(settings.lease_ms)
            },
        ),
        ("vm memory overhead", settings.vm_memory_overhead.to_string()),
        ("end warning", format!("{}s", settings.end_warning_s)),
        ("overcommitment", overcommitment(settings)),
        ("balancing", balancing(&settings.balance)),
        ("price of a core hour", price(settings.prices.core_hour).to_string()),
        ("price of a memory GiB hour", price(settings.prices.memory_gib_hour).to_string()),
        ("price of a disk GiB hour", price(settings.prices.disk_gib_hour).to_string()),
        ("price of a network Gbit/s hour", price(settings.prices.network_gbit_hour).to_string()),
        ("price of an accelerator hour", price(settings.prices.accelerator_hour).to_string()),
    ])
}

fn balancing(settings: &plimsoll_api::v1::BalanceSettings) -> String {
    let plimsoll_api::v1::BalanceSettings { mode, threshold_percent, cooldown_s, moves_at_once } =
        settings;
    format!(
        "{mode}: hosts are hot above {threshold_percent} %, {moves_at_once} moves at once, none of \
         the same VM within {cooldown_s}s"
    )
}

/// The cluster in numbers; with `tasks` also each reconciler's last result.
pub(crate) fn status(
    output: &Output,
    status: &ClusterStatus,
    tasks: bool,
    now: Timestamp,
) -> String {
    let count =
        |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let mut facts = vec![
        ("manager", format!("{}, up {}", status.version, age(status.started_at, now))),
        ("hosts", count(status.hosts.iter().map(|(p, n)| format!("{n} {p}")).collect())),
        ("vms", count(status.vms.iter().map(|(p, n)| format!("{n} {p}")).collect())),
        ("capacity", resources(&status.capacity)),
        ("committed", resources(&status.committed)),
    ];
    if tasks {
        for (name, result) in &status.tasks {
            facts.push(("task", format!("{name}: {result}")));
        }
    }
    output.facts(&facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_host() -> HostView {
        serde_json::from_value(serde_json::json!({
            "id": "host-1", "name": "host-1", "state": "up", "state_since": "2030-01-01T00:00:00Z",
            "schedulable": false, "fencing": null,
            "spec": {
                "rack": "rack-1", "zone": "zone-1", "labels": {"disk": "ssd"},
                "capacity": {"cpu": "4", "memory": "4GiB", "disk": "20GiB", "network": "1Gbit/s"},
                "agent_address": "192.0.2.1:7703", "underlay_address": "192.0.2.1",
                "storage": {"kind": "shared", "pool": "lab"}, "accelerator": "tcg",
                "qemu_version": "10.0.2", "agent_version": "0.1.0"
            },
            "committed": {"cpu": "1500m", "memory": "672MiB", "disk": "3GiB"},
            "free": {"cpu": "2500m", "memory": "3424MiB", "disk": "17GiB", "network": "1Gbit/s"},
            "usage": {"cpu": "250m", "memory": "1GiB", "disk_free": "18GiB", "running_vms": 3},
            "vms": 3,
            "last_report_at": "2030-01-01T00:59:58Z"
        }))
        .unwrap()
    }

    #[test]
    fn hosts_are_a_table_and_one_is_shown_in_full() {
        let now = "2030-01-01T01:00:00Z".parse().unwrap();
        let output = Output::plain();
        let text = format!(
            "{}\n{}",
            hosts(&output, &[sample_host()], now),
            host(&output, &sample_host(), now)
        );
        insta::assert_snapshot!(text);
    }

    #[test]
    fn what_is_merged_on_a_host_is_said() {
        let mut merged = HostDeduplication {
            project: Some("shop".parse().unwrap()),
            vms: 3,
            saved: plimsoll_model::Bytes::mib(400),
            scanner_cpu: plimsoll_model::MilliCores(4),
            ..HostDeduplication::default()
        };
        insta::assert_snapshot!(deduplication(&merged), @"3 VMs of project shop, 400MiB saved; the scanner is off and takes 4m of a core");
        merged.note = Some("the kernel has no KSM".to_owned());
        (merged.project, merged.vms) = (None, 0);
        insta::assert_snapshot!(deduplication(&merged), @"no VM, 400MiB saved; the scanner is off and takes 4m of a core; the kernel has no KSM");
    }

    #[test]
    fn events_are_lines() {
        let sample: Event = serde_json::from_value(serde_json::json!({
            "sequence": 17, "at": "2030-01-01T00:00:00Z", "severity": "warning",
            "kind": "host_unreachable",
            "subject": {"kind": "host", "id": "host-3", "name": "host-3"},
            "project": null, "actor": null, "message": "no report for 10 s"
        }))
        .unwrap();
        insta::assert_snapshot!(event(&Output::plain(), &sample), @"17     2030-01-01T00:00:00Z warning host_unreachable    host host-3          no report for 10 s");
    }

    #[test]
    fn settings_are_facts() {
        insta::assert_snapshot!(settings(&Output::plain(), &Settings::default()));
    }
}
