//! VMs as people read them.

use std::fmt::Write as _;

use jiff::Timestamp;
use plimsoll_api::cluster::{DeflationOutcome, VmShare};
use plimsoll_api::deduplication::VmDeduplication;
use plimsoll_api::v1::{BookingView, Reservation, ReservationState, VmView};
use plimsoll_model::{Amount, Bytes, Deflation, Element, Level, Power, Resources, VmPhase};

use super::{Output, Tone, age, instant, migration, or_dash, rates, tame};

/// What a phase means at a glance.
const fn tone(phase: VmPhase) -> Tone {
    match phase {
        VmPhase::Running => Tone::Good,
        VmPhase::Pending | VmPhase::Starting | VmPhase::Stopping | VmPhase::Deleting => {
            Tone::Attention
        }
        VmPhase::Stopped => Tone::Plain,
        VmPhase::Failed | VmPhase::Unknown => Tone::Bad,
    }
}

fn addresses(vm: &VmView) -> String {
    match vm.addresses.as_slice() {
        [] => "-".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

/// What there is to say about where a VM is: where it goes, the reason, or what is wrong.
fn why(vm: &VmView) -> String {
    if let Some(migration) = &vm.migration {
        return format!("moves to {}", migration.to);
    }
    match (vm.state, &vm.message, &vm.placement_reason) {
        (VmPhase::Running | VmPhase::Stopped, None, Some(reason)) => reason.clone(),
        (_, Some(message), _) => tame(message),
        (_, None, Some(reason)) => reason.clone(),
        _ => "-".to_owned(),
    }
}

/// Many VMs; with `projects` whose they are.
pub(crate) fn list(output: &Output, vms: &[VmView], projects: bool) -> String {
    let mut titles = vec!["NAME", "STATE", "HOST", "ADDRESSES", "CPU", "MEMORY", "DISK", "WHY"];
    if projects {
        titles.insert(0, "PROJECT");
    }
    let mut table = output.table(&titles);
    for vm in vms {
        let mut row = vec![
            output.cell(&vm.name, Tone::Plain),
            output.cell(vm.state, tone(vm.state)),
            output.cell(or_dash(vm.host.as_ref()), Tone::Plain),
            output.cell(addresses(vm), Tone::Plain),
            output.cell(vm.resources.cpu, Tone::Plain),
            output.cell(vm.resources.memory, Tone::Plain),
            output.cell(vm.resources.disk, Tone::Plain),
            output.cell(why(vm), Tone::Plain),
        ];
        if projects {
            row.insert(0, output.cell(&vm.project, Tone::Plain));
        }
        table.add_row(row);
    }
    output.finish(table)
}

/// A vector in one line.
pub(crate) fn resources(resources: &Resources) -> String {
    let parts: Vec<String> = resources
        .elements()
        .map(|(element, amount)| match element {
            Element::Memory | Element::Disk => format!("{} {element}", element.print(amount)),
            Element::DiskBandwidth | Element::Network => {
                format!("{} {element}", element.print(amount))
            }
            Element::Accelerator(model) => {
                format!("{} {model}", plimsoll_model::MilliCores(amount))
            }
            other => other.print(amount),
        })
        .collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// One VM in full.
pub(crate) fn show(output: &Output, vm: &VmView, now: Timestamp) -> String {
    let power = match vm.power {
        Power::Running => "running",
        Power::Stopped => "stopped",
    };
    let mut facts = vec![
        ("name", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("project", vm.project.to_string()),
        (
            "state",
            format!(
                "{} for {} (wanted: {power})",
                output.paint(&vm.state.to_string(), tone(vm.state)),
                age(vm.state_since, now)
            ),
        ),
    ];
    if let Some(message) = &vm.message {
        facts.push(("message", tame(message)));
    }
    facts.push(("host", or_dash(vm.host.as_ref())));
    if let Some(reason) = &vm.placement_reason {
        facts.push(("why there", reason.clone()));
    }
    if let Some(migration) = &vm.migration {
        facts.push(("moves", migration::under_way(migration)));
    }
    if let Some(last) = &vm.last_migration {
        facts.push(("last move", migration::over(last)));
    }
    facts.push(("image", vm.spec.image.to_string()));
    facts.push(("addresses", addresses(vm)));
    facts.push(("networks", names(&vm.spec.networks)));
    facts.push(("resources", resources(&vm.resources)));
    facts.push(("class", vm.spec.elasticity.to_string()));
    if let Some(application) = &vm.spec.application {
        facts.push(("application", application.to_string()));
    }
    if !vm.spec.groups.is_empty() {
        facts.push(("groups", names(&vm.spec.groups)));
    }
    for constraint in &vm.spec.constraints {
        facts.push(("constraint", constraint.to_string()));
    }
    if let Some(booking) = &vm.booking {
        facts.push(("booked", format!("{}: {}", booked(booking), booking.reason)));
    }
    if let Some(at) = vm.spec.start_after {
        facts.push(("starts after", at.to_string()));
    }
    if let Some(ms) = vm.spec.duration_ms {
        facts.push(("duration", period(ms)));
    }
    if let Some(at) = vm.spec.deadline {
        facts.push(("deadline", at.to_string()));
    }
    if let Some(at) = vm.spec.end_at {
        facts.push(("ends at", at.to_string()));
    }
    facts.push((
        "generation",
        if vm.generation == vm.observed_generation {
            format!("{}, carried out", vm.generation)
        } else {
            format!("{}, of which {} is carried out", vm.generation, vm.observed_generation)
        },
    ));
    facts.push(("restarts", vm.restarts.to_string()));
    facts
        .push(("created", format!("{} ({} ago)", instant(vm.created_at), age(vm.created_at, now))));
    if let Some(usage) = &vm.usage {
        facts.push(("in use", rates::of_vm(usage)));
    }
    let limits = limits(vm);
    if !limits.is_empty() {
        facts.push(("limits now", limits));
    }
    if let Some(share) = &vm.share {
        facts.push(("has for now", share_of(share)));
    }
    if let Some(deflated) = deflated(vm) {
        facts.push(("deflated", deflated));
    }
    if let Some(part) = &vm.deduplication {
        facts.push(("merged", merged(part)));
    }
    if let Some(guest) = &vm.guest {
        facts.push((
            "guest",
            format!(
                "{}, kernel {}, up {}, agent {}",
                tame(&guest.os_name),
                tame(&guest.kernel_release),
                duration(guest.uptime_ms),
                tame(&guest.agent_version)
            ),
        ));
    } else if vm.state == VmPhase::Running {
        facts.push(("guest", "its agent does not answer, or the image has none".to_owned()));
    }
    output.facts(&facts)
}

/// Who gave what.
pub(crate) fn deflation(output: &Output, outcome: &DeflationOutcome) -> String {
    let mut table = output.table(&["LEVEL", "MEMORY", "CPU", "TIME", "NOTE"]);
    for outcome in &outcome.levels {
        let level = match outcome.level {
            Level::Application => "applications",
            Level::Guest => "guest",
            Level::Host => "host",
        };
        let note = outcome.note.as_deref().map_or_else(|| "-".to_owned(), tame);
        table.add_row([
            output.cell(level, Tone::Plain),
            output.cell(outcome.gave.memory, Tone::Plain),
            output.cell(outcome.gave.cpu, Tone::Plain),
            output.cell(period(outcome.took_ms), Tone::Plain),
            output.cell(note, Tone::Plain),
        ]);
    }
    let missing = outcome.missing != Amount::default();
    for (what, amount, tone) in [
        ("wanted", outcome.wanted, Tone::Plain),
        ("missing", outcome.missing, if missing { Tone::Bad } else { Tone::Good }),
    ] {
        table.add_row([
            output.cell(what, tone),
            output.cell(amount.memory, tone),
            output.cell(amount.cpu, tone),
            output.cell(
                if what == "wanted" { period(outcome.took_ms) } else { String::new() },
                Tone::Plain,
            ),
            output.cell("", Tone::Plain),
        ]);
    }
    output.finish(table)
}

/// What merging equal pages does for a VM, in a few words.
fn merged(part: &VmDeduplication) -> String {
    if !part.merging.is_allowed() {
        return part.merging.to_string();
    }
    let VmDeduplication { merging, merged, saved, overhead } = part;
    let (merged, saved, overhead) = (rounded(*merged), rounded(*saved), rounded(*overhead));
    format!("{saved} saved: {merged} merged {merging}; records take {overhead}")
}

/// An amount in whole MiB: more is not worth reading of what changes all the time.
pub(super) fn rounded(amount: Bytes) -> Bytes {
    Bytes::mib(amount.get() >> 20)
}

/// A deflation in a few words.
fn deflated(vm: &VmView) -> Option<String> {
    let Deflation { memory_percent, cpu_percent, .. } = vm.deflation?;
    let asked = format!("{memory_percent}% of memory, {cpu_percent}% of CPU asked for");
    Some(match &vm.deflation_outcome {
        None => format!("{asked}; under way"),
        Some(outcome) if outcome.missing == Amount::default() => format!("{asked}, and taken"),
        Some(outcome) => {
            let Amount { memory, cpu } = outcome.missing;
            format!("{asked}; {memory} and {cpu} could not be taken")
        }
    })
}

/// What a VM has by its host's decision, in a few words.
pub(crate) fn share_of(share: &VmShare) -> String {
    let taken = match share.taken {
        Bytes::ZERO => "nothing is taken from it".to_owned(),
        taken => format!("{taken} less than it is promised"),
    };
    let reasons: Vec<String> = share.reasons.iter().map(|reason| tame(reason)).collect();
    let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
    format!("{} of memory, {taken}{why}", share.memory)
}

/// A booking in a few words.
fn booked(booking: &BookingView) -> String {
    let until = booking.ends_at.map(|at| format!("until {}", instant(at)));
    let until = until.unwrap_or_else(|| "on".to_owned());
    format!("on {} from {} {until}", booking.host, instant(booking.starts_at))
}

/// What is booked or held until an end.
pub(crate) fn reservations(output: &Output, reservations: &[Reservation]) -> String {
    let mut table =
        output.table(&["VM", "STATE", "HOST", "STARTS", "ENDS", "DEADLINE", "RESOURCES", "WHY"]);
    for reservation in reservations {
        let (state, tone) = match reservation.state {
            ReservationState::Booked => ("booked", Tone::Plain),
            ReservationState::Waiting => ("waiting", Tone::Attention),
            ReservationState::Begun => ("begun", Tone::Good),
        };
        let why = reservation.message.as_ref().filter(|_| tone != Tone::Plain);
        table.add_row([
            output.cell(&reservation.vm, Tone::Plain),
            output.cell(state, tone),
            output.cell(or_dash(reservation.host.as_ref()), Tone::Plain),
            output.cell(or_dash(reservation.starts_at.map(instant)), Tone::Plain),
            output.cell(or_dash(reservation.ends_at.map(instant)), Tone::Plain),
            output.cell(or_dash(reservation.deadline.map(instant)), Tone::Plain),
            output.cell(resources(&reservation.resources), Tone::Plain),
            output.cell(why.map_or_else(|| "-".to_owned(), |why| tame(why)), Tone::Plain),
        ]);
    }
    output.finish(table)
}

/// A length of time, exact to the millisecond.
fn period(milliseconds: u64) -> String {
    format!(
        "{:#}",
        jiff::SignedDuration::from_millis(i64::try_from(milliseconds).unwrap_or(i64::MAX))
    )
}

fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m {}s", seconds / 60, seconds % 60)
    }
}

fn names<'a>(names: impl IntoIterator<Item = &'a plimsoll_model::Name>) -> String {
    let names: Vec<_> = names.into_iter().map(ToString::to_string).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

/// The limits that the host has set, as it read them back.
fn limits(vm: &VmView) -> String {
    let Some(actual) = &vm.limits else { return String::new() };
    let mut text = String::new();
    let mut add = |what: &str, value: Option<String>| {
        if let Some(value) = value {
            let separator = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{separator}{what} {value}");
        }
    };
    let rate = |value: Option<(u64, String)>| {
        value.map(|(amount, text)| if amount == 0 { "not limited".to_owned() } else { text })
    };
    add("cpu", actual.cpu.map(|cpu| cpu.to_string()));
    add("vcpus", actual.vcpus.map(|count| count.to_string()));
    add("memory", actual.memory.map(|memory| memory.to_string()));
    add("memory at most", actual.memory_max.map(|memory| memory.to_string()));
    let of_host = actual.memory_resident.map(|resident| {
        let swapped = actual.memory_swapped.filter(|swapped| *swapped > Bytes::ZERO);
        let swapped = swapped.map(|swapped| format!(", {swapped} more in its swap space"));
        let held = actual.memory_held.map(|held| format!(", held to {held}"));
        format!("{resident}{}{}", swapped.unwrap_or_default(), held.unwrap_or_default())
    });
    add("of the host's", of_host);
    add("disk", actual.disk.map(|disk| disk.to_string()));
    add("disk bandwidth", rate(actual.disk_bandwidth.map(|x| (x.0, x.to_string()))));
    add("disk operations", rate(actual.disk_iops.map(|x| (x.0, format!("{x}/s")))));
    add("network", rate(actual.network.map(|x| (x.0, x.to_string()))));
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use plimsoll_api::deduplication::Merging;

    use super::*;

    /// A VM for goldens.
    pub(crate) fn sample(name: &str) -> VmView {
        serde_json::from_value(serde_json::json!({
            "id": "vm-00000000000000000000000000003f2c",
            "name": name,
            "project": "shop",
            "state": "running",
            "state_since": "2030-01-01T00:00:00Z",
            "host": "host-1",
            "placement_reason": "most-free 0.812, best of 3",
            "addresses": ["10.20.0.2"],
            "resources": {"cpu": "500m", "memory": "128MiB", "disk": "1GiB", "network": "20Mbit/s"},
            "spec": {
                "resources": {"cpu": "500m", "memory": "128MiB", "disk": "1GiB", "network": "20Mbit/s"},
                "image": "tiny",
                "networks": ["shop"],
                "application": "web",
                "groups": ["web"],
                "constraints": [{"strength": "required", "anti_affinity": {"group": "web"}}]
            },
            "power": "running",
            "generation": 2,
            "observed_generation": 1,
            "message": null,
            "created_at": "2030-01-01T00:00:00Z",
            "restarts": 0,
            "limits": {"cpu": "500m", "memory": "128MiB", "vcpus": 1, "disk_bandwidth": "0B/s",
                       "disk_iops": "0", "network": "20Mbit/s", "disk": "1GiB"},
            "guest": null
        }))
        .unwrap()
    }

    #[test]
    fn vms_are_a_table_of_where_and_why() {
        let mut waiting = sample("web-2");
        waiting.state = VmPhase::Pending;
        waiting.host = None;
        waiting.addresses.clear();
        waiting.message = Some("no host can hold it: insufficient memory on 3 hosts".to_owned());
        let text = list(&Output::plain(), &[sample("web-1"), waiting], true);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_vm_that_moves_says_where_to() {
        let moving = VmView { migration: Some(migration::tests::sample()), ..sample("web-1") };
        assert_eq!(why(&moving), "moves to host-2");
    }

    #[test]
    fn reservations_are_a_table_of_when_and_where() {
        let reservation = |vm: &str, state: &str, more: serde_json::Value| -> Reservation {
            let mut value = serde_json::json!({
                "id": "vm-00000000000000000000000000003f2c", "vm": vm, "project": "shop",
                "state": state, "resources": {"cpu": "2", "memory": "4GiB", "disk": "10GiB"},
            });
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(value).unwrap()
        };
        let all = [
            reservation(
                "late",
                "waiting",
                serde_json::json!({
                "host": "host-1", "starts_at": "2030-01-01T00:00:00Z",
                "message": "waits: no host can hold VM `late`"}),
            ),
            reservation(
                "night",
                "booked",
                serde_json::json!({
                "host": "host-2", "starts_at": "2030-01-01T02:00:00.123Z",
                "ends_at": "2030-01-01T04:00:00.123Z", "deadline": "2030-01-01T06:00:00Z",
                "message": "booked: on host-2"}),
            ),
            reservation("lost", "waiting", serde_json::json!({"message": "waits: all are full"})),
            reservation(
                "day",
                "begun",
                serde_json::json!({
                "host": "host-1", "starts_at": "2029-12-31T12:00:00Z",
                "ends_at": "2030-01-01T12:00:00Z"}),
            ),
        ];
        insta::assert_snapshot!(reservations(&Output::plain(), &all));
    }

    #[test]
    fn a_booked_vm_shows_when_it_starts() {
        let mut vm = sample("night");
        vm.state = VmPhase::Pending;
        vm.host = None;
        vm.placement_reason = None;
        vm.spec.duration_ms = Some(5_430_000);
        vm.spec.deadline = Some("2030-01-01T06:00:00Z".parse().unwrap());
        vm.booking = Some(BookingView {
            host: "host-2".parse().unwrap(),
            reason: "most-free 0.812".to_owned(),
            starts_at: "2030-01-01T02:00:00.5Z".parse().unwrap(),
            ends_at: Some("2030-01-01T03:30:30.5Z".parse().unwrap()),
            since: "2030-01-01T00:00:00Z".parse().unwrap(),
        });
        let now = "2030-01-01T01:02:03Z".parse().unwrap();
        insta::assert_snapshot!(show(&Output::plain(), &vm, now));
    }

    #[test]
    fn what_is_merged_of_a_vm_or_why_not_is_said() {
        let part = |merging| VmDeduplication {
            merging,
            merged: Bytes::mib(200),
            saved: Bytes(133 << 20 | 77),
            overhead: Bytes(3 << 20),
        };
        assert_eq!(
            merged(&part(Merging::WithinProject)),
            "133MiB saved: 200MiB merged with VMs of its project; records take 3MiB"
        );
        assert_eq!(
            merged(&part(Merging::OtherProject)),
            "no: another project's VMs are merged on this host"
        );
    }

    #[test]
    fn a_vm_is_shown_in_full() {
        let now = "2030-01-01T01:02:03Z".parse().unwrap();
        insta::assert_snapshot!(show(&Output::plain(), &sample("web-1"), now));
    }
}
