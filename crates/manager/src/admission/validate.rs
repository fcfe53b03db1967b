//! Are a request's values allowed? Every list and text has a bound, every refusal a field, a reason
//! and a hint.

use std::{collections::BTreeSet, time::Duration};

use plimsoll_api::v1::{CreateVmsRequest, Split, VmRequest};
use plimsoll_model::{
    Bytes, Constraint, HostSpec, Image, ImagePhase, Name, Resources, Rule, Timestamp, VmSpec,
};
use plimsoll_placement::MAX_SPLIT;

use crate::app::AppError;

/// The most VMs, and entries, of one request.
pub(crate) const MAX_VMS: u32 = 1000;
const MAX_NETWORKS: usize = 8;
const MAX_GROUPS: usize = 16;
const MAX_CONSTRAINTS: usize = 32;
const MAX_LABEL_VALUES: usize = 32;
const MAX_MODELS: usize = 16;
const MAX_SSH_KEYS: usize = 32;
const MAX_SSH_KEY_BYTES: usize = 8192;
const MAX_USER_DATA_BYTES: usize = 64 << 10;
/// Bounds that no host of today reaches, so that sums never come near the end of the integers.
const MAX_CPU: u64 = 1_000_000;
const MAX_MEMORY: u64 = 64 << 40;
const MAX_DISK: u64 = 1 << 50;
const MAX_RATE: u64 = 1 << 50;
const MAX_DEVICES: u64 = 1_000_000;
/// Below this a single packet takes seconds: no host can hold a guest to less.
const MIN_NETWORK: u64 = 8_000;

/// Checks how many VMs are asked for, before anything is made of them.
pub(crate) fn counts(request: &CreateVmsRequest) -> Result<(), AppError> {
    let entries = request.requests.len();
    if !(1..=MAX_VMS as usize).contains(&entries) {
        return Err(AppError::invalid(
            "requests",
            format!("{entries} entries"),
            "ask for 1 to 1000 entries at once",
        ));
    }
    let mut total = 0u64;
    for (i, entry) in request.requests.iter().enumerate() {
        total += u64::from(entry_count(entry, &format!("requests[{i}]"))?);
    }
    if total > u64::from(MAX_VMS) {
        return Err(AppError::invalid(
            "requests",
            format!("{total} VMs in all"),
            "ask for at most 1000 VMs at once",
        ));
    }
    Ok(())
}

/// How many VMs an entry can become.
pub(crate) fn entry_count(entry: &VmRequest, field: &str) -> Result<u32, AppError> {
    match (entry.count, &entry.split) {
        (Some(_), Some(_)) => Err(AppError::invalid(
            format!("{field}.split"),
            "count and split together",
            "use `count` for equal VMs, or `split` for a total",
        )),
        (Some(count), None) if !(1..=MAX_VMS).contains(&count) => Err(AppError::invalid(
            format!("{field}.count"),
            format!("{count} VMs"),
            "ask for 1 to 1000",
        )),
        (Some(count), None) => Ok(count),
        (None, Some(Split { min_vms, max_vms })) => {
            if *min_vms == 0 || min_vms > max_vms || *max_vms > MAX_SPLIT {
                return Err(AppError::invalid(
                    format!("{field}.split"),
                    format!("from {min_vms} to {max_vms} VMs"),
                    format!("use 1 <= min_vms <= max_vms <= {MAX_SPLIT}"),
                ));
            }
            Ok(*max_vms)
        }
        (None, None) => Ok(1),
    }
}

/// The name of the `number`th VM of an entry.
pub(crate) fn numbered(name: &Name, number: u32, field: &str) -> Result<Name, AppError> {
    format!("{name}-{number}").parse().map_err(|_| {
        AppError::invalid(
            format!("{field}.name"),
            format!("`{name}-{number}` is longer than {} characters", Name::MAX),
            "use a shorter name",
        )
    })
}

/// Checks a VM's spec, but for what depends on its image and its project.
pub(crate) fn spec(spec: &VmSpec, field: &str, now: Timestamp) -> Result<(), AppError> {
    let at = |name: &str| format!("{field}.{name}");
    resources(&spec.resources, &at("resources"))?;
    at_most(spec.networks.len(), MAX_NETWORKS, &at("networks"))?;
    if spec.networks.iter().collect::<BTreeSet<_>>().len() < spec.networks.len() {
        return Err(AppError::invalid(
            at("networks"),
            "a network is named twice",
            "name each network once",
        ));
    }
    at_most(spec.groups.len(), MAX_GROUPS, &at("groups"))?;
    constraints(&spec.constraints, &at("constraints"))?;
    if let Some(data) = &spec.user_data
        && data.len() > MAX_USER_DATA_BYTES
    {
        return Err(AppError::invalid(
            at("user_data"),
            format!("{} bytes", data.len()),
            "use at most 64 KiB; let the guest fetch the rest",
        ));
    }
    at_most(spec.ssh_keys.len(), MAX_SSH_KEYS, &at("ssh_keys"))?;
    for (i, key) in spec.ssh_keys.iter().enumerate() {
        let words = key.split(' ').filter(|word| !word.is_empty()).count();
        if key.len() > MAX_SSH_KEY_BYTES || key.chars().any(char::is_control) || words < 2 {
            return Err(AppError::invalid(
                at(&format!("ssh_keys[{i}]")),
                "not an SSH public key",
                "use one line such as `ssh-ed25519 AAAA... comment`",
            ));
        }
    }
    ends(spec.start_after, spec.end_at, field, now)?;
    times(spec, field, now)
}

/// Checks that the times of a new VM make sense together.
///
/// # Errors
/// The first that does not.
fn times(spec: &VmSpec, field: &str, now: Timestamp) -> Result<(), AppError> {
    /// Ten years.
    const LONGEST_MS: u64 = 10 * 366 * 24 * 3_600_000;
    let invalid = |part: &str, reason: String, hint: &str| {
        Err(AppError::invalid(format!("{field}.{part}"), reason, hint))
    };
    let Some(duration) = spec.duration_ms else {
        return match spec.deadline {
            Some(_) => invalid(
                "deadline",
                "a deadline is for all of a duration, and there is none".to_owned(),
                "give a duration too, or an end in place of the deadline",
            ),
            None => Ok(()),
        };
    };
    if spec.end_at.is_some() {
        return invalid(
            "duration_ms",
            "a VM has a duration or an end, not both".to_owned(),
            "leave out one of them",
        );
    }
    if !(1000..=LONGEST_MS).contains(&duration) {
        return invalid(
            "duration_ms",
            format!("{duration} ms is not between a second and ten years"),
            "leave it out for a VM without an end",
        );
    }
    let after = spec.start_after.map_or(now, |start| start.max(now));
    let end = after.checked_add(Duration::from_millis(duration)).unwrap_or(Timestamp::MAX);
    match spec.deadline {
        Some(deadline) if deadline < end => invalid(
            "deadline",
            format!("if it starts at {after:.0} it ends at {end:.0}, which is after {deadline:.0}"),
            "give it a later deadline, a shorter duration or an earlier start",
        ),
        _ => Ok(()),
    }
}

/// Checks that a VM's end lies ahead and after its start.
pub(crate) fn ends(
    start_after: Option<Timestamp>,
    end_at: Option<Timestamp>,
    field: &str,
    now: Timestamp,
) -> Result<(), AppError> {
    let Some(end) = end_at else { return Ok(()) };
    let earliest = start_after.map_or(now, |start| start.max(now));
    if end <= earliest {
        return Err(AppError::invalid(
            format!("{field}.end_at"),
            format!("{end} is not after {earliest}"),
            "name an end that lies ahead, and after the start",
        ));
    }
    Ok(())
}

/// Checks the constraints of a VM.
pub(crate) fn constraints(constraints: &[Constraint], field: &str) -> Result<(), AppError> {
    at_most(constraints.len(), MAX_CONSTRAINTS, field)?;
    for (i, constraint) in constraints.iter().enumerate() {
        if let Rule::HostLabel { values, .. } = &constraint.rule {
            let field = format!("{field}[{i}].values");
            at_most(values.len(), MAX_LABEL_VALUES, &field)?;
            if values.is_empty() {
                return Err(AppError::invalid(field, "no value", "name at least one value"));
            }
        }
    }
    Ok(())
}

/// Checks that a VM can be of its class with what it is promised.
pub(crate) fn elasticity(spec: &VmSpec, field: &str) -> Result<(), AppError> {
    let class = spec.elasticity.class();
    spec.elasticity.check(&spec.resources).map_err(|error| {
        AppError::invalid(
            field,
            format!("{class}: {error}"),
            "choose minimums within what it is promised",
        )
    })
}

fn at_most(count: usize, most: usize, field: &str) -> Result<(), AppError> {
    if count <= most {
        Ok(())
    } else {
        Err(AppError::invalid(field, format!("{count} entries"), format!("use at most {most}")))
    }
}

/// Checks the bounds of a VM's vector. Disk may be zero: then the image says how much.
pub(crate) fn resources(resources: &Resources, field: &str) -> Result<(), AppError> {
    let at = |name: &str| format!("{field}.{name}");
    if resources.cpu.0 == 0 {
        return Err(AppError::invalid(at("cpu"), "no cores", "ask for at least 1m"));
    }
    if resources.memory.0 == 0 {
        return Err(AppError::invalid(at("memory"), "no memory", "ask for some, such as 512MiB"));
    }
    let bounds = [
        ("cpu", resources.cpu.0, MAX_CPU),
        ("memory", resources.memory.0, MAX_MEMORY),
        ("disk", resources.disk.0, MAX_DISK),
        ("disk_bandwidth", resources.disk_bandwidth.0, MAX_RATE),
        ("disk_iops", resources.disk_iops.0, MAX_RATE),
        ("network", resources.network.0, MAX_RATE),
    ];
    for (name, amount, most) in bounds {
        if amount > most {
            return Err(AppError::invalid(
                at(name),
                "more than any host has",
                "ask for less, or for a total with `split`",
            ));
        }
    }
    if (1..MIN_NETWORK).contains(&resources.network.0) {
        return Err(AppError::invalid(
            at("network"),
            format!("{} lets no packet pass", resources.network),
            "ask for at least 8kbit/s, or 0 for no limit",
        ));
    }
    at_most(resources.accelerators.0.len(), MAX_MODELS, &at("accelerators"))?;
    if resources.accelerators.0.values().any(|amount| *amount > MAX_DEVICES) {
        return Err(AppError::invalid(at("accelerators"), "too many", "ask for less"));
    }
    resources.accelerators.check_request().map_err(|error| {
        AppError::invalid(
            at("accelerators"),
            error.to_string(),
            "use `0.5` for half of one device, `2` for two",
        )
    })
}

/// Checks a VM's vector against its image, and gives it the image's disk size if it names none.
pub(crate) fn against_image(
    resources: &mut Resources,
    image: &Image,
    field: &str,
) -> Result<(), AppError> {
    let name = &image.name;
    if image.phase != ImagePhase::Ready {
        return Err(AppError::WrongState {
            action: "use",
            what: crate::app::Noun::Image,
            name: name.to_string(),
            state: "uploading".to_owned(),
            hint: "upload its files first: `plimsoll image import`",
        });
    }
    if resources.memory < image.min_memory {
        return Err(AppError::invalid(
            format!("{field}.memory"),
            format!("{} is too little for image `{name}`", resources.memory),
            format!("ask for at least {}", image.min_memory),
        ));
    }
    if resources.disk == Bytes::ZERO {
        resources.disk = image.disk_size;
    }
    if resources.disk < image.disk_size {
        return Err(AppError::invalid(
            format!("{field}.disk"),
            format!("{} is too little for image `{name}`", resources.disk),
            format!("ask for at least {}, or leave it out", image.disk_size),
        ));
    }
    Ok(())
}

/// Checks what a host says of itself.
pub(crate) fn host_spec(spec: &HostSpec) -> Result<(), AppError> {
    let short = |text: &str| text.len() <= 256 && !text.chars().any(char::is_control);
    at_most(spec.labels.len(), 64, "spec.labels")?;
    at_most(spec.capacity.accelerators.0.len(), MAX_MODELS, "spec.capacity.accelerators")?;
    for (field, text) in [
        ("spec.agent_address", &spec.agent_address),
        ("spec.accelerator", &spec.accelerator),
        ("spec.qemu_version", &spec.qemu_version),
        ("spec.agent_version", &spec.agent_version),
    ] {
        if !short(text) {
            return Err(AppError::invalid(field, "not a short line of text", "check the agent"));
        }
    }
    let port = spec.agent_address.rsplit_once(':').map(|(_, port)| port.parse::<u16>().is_ok());
    if port != Some(true) {
        return Err(AppError::invalid(
            "spec.agent_address",
            format!("`{}` is not address:port", spec.agent_address),
            "set where the agent listens, such as 192.0.2.7:7443",
        ));
    }
    let largest = spec.capacity.scalars().into_iter().max().unwrap_or(0);
    if largest > 1 << 56 || spec.capacity.cpu.0 == 0 || spec.capacity.memory.0 == 0 {
        return Err(AppError::invalid(
            "spec.capacity",
            "no cores, no memory, or more than any host has",
            "check the capacity that the agent declares",
        ));
    }
    Ok(())
}

/// Checks a text that people wrote: one line, not too long.
pub(crate) fn line(text: &str, field: &str, most: usize) -> Result<(), AppError> {
    if text.len() > most || text.chars().any(char::is_control) {
        return Err(AppError::invalid(
            field,
            "not one line of text",
            format!("use at most {most} bytes without control characters"),
        ));
    }
    Ok(())
}
