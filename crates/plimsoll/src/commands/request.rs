//! From options to a request for VMs.

use std::path::Path;

use fs_err as fs;
use plimsoll_api::v1::{Split, VmRequest};
use plimsoll_model::{
    Accelerators, Bytes, Elasticity, MilliCores, Name, Resources, VmSpec,
    elasticity::{DEFAULT_SHARES, LEAST_CPU, LEAST_MEMORY},
};

use crate::{
    cli::values::milliseconds,
    cli::vm::{Class, ElasticityArgs, RequestArgs},
    config::Connection,
    failure::{Failure, OrFail as _, Outcome},
};

/// The request that the options describe.
pub(crate) async fn build(
    args: &RequestArgs,
    connection: &Connection,
    project: &Name,
) -> Outcome<VmRequest> {
    if args.total && args.split_min > args.split_max {
        return Err(Failure::usage(format!(
            "--split-min {} is more than --split-max {}",
            args.split_min, args.split_max
        ))
        .hint("give --split-max too"));
    }
    let mut accelerators = Accelerators::default();
    for item in &args.accelerator {
        if accelerators.0.insert(item.model.clone(), item.amount.0).is_some() {
            return Err(Failure::usage(format!("--accelerator names {} twice", item.model)));
        }
    }
    if !args.total {
        accelerators.check_request().or_usage(|| "no VM can have these accelerators".to_owned())?;
    }
    let now = jiff::Timestamp::now();
    let at = |instant: Option<crate::cli::values::Instant>| {
        instant.map(|instant| instant.resolve(now)).transpose().map_err(Failure::usage)
    };
    let (start_after, deadline, end_at) =
        (at(args.start_after)?, at(args.deadline)?, at(args.end_at)?);
    if let Some(end) = end_at
        && end <= start_after.unwrap_or(now)
    {
        return Err(Failure::usage("the VM would end before it starts")
            .hint("--end-at must be later than --start-after, and than now"));
    }
    let user_data = args.user_data.as_deref().map(|path| read(path, "user data")).transpose()?;
    let ssh_keys = ssh_keys(args)?;
    let disk = match args.disk {
        Some(disk) => disk,
        None => image_disk(connection, project, &args.image).await?,
    };
    Ok(VmRequest {
        name: args.name.clone(),
        count: args.count,
        split: args.total.then_some(Split { min_vms: args.split_min, max_vms: args.split_max }),
        spec: VmSpec {
            resources: Resources {
                cpu: args.cpu,
                memory: args.memory,
                disk,
                disk_bandwidth: args.disk_bandwidth,
                disk_iops: args.disk_iops,
                network: args.network_bandwidth,
                accelerators,
            },
            image: args.image.clone(),
            networks: args.network.clone(),
            application: args.application.clone(),
            groups: args.group.iter().cloned().collect(),
            constraints: args.constraints.constraints(),
            user_data,
            ssh_keys,
            start_after,
            duration_ms: args.duration.map(milliseconds),
            deadline,
            end_at,
            restart: args.restart,
            on_host_failure: args.on_host_failure,
            elasticity: elasticity(args)?,
        },
    })
}

/// The class that the options of a new VM name.
fn elasticity(args: &RequestArgs) -> Outcome<Elasticity> {
    let given = &args.elasticity;
    let minimums = given.min_memory.is_some() && given.min_cpu.is_some();
    if args.total && !minimums && !matches!(given.class, None | Some(Class::Guaranteed)) {
        return Err(Failure::usage("how a total is split is not known beforehand")
            .hint("give --min-memory and --min-cpu: what each VM of it always has"));
    }
    changed(&Elasticity::Guaranteed, given, args.memory, args.cpu)
}

/// The elasticity `is` with what the options change of it; `memory` and `cpu` are promised.
pub(crate) fn changed(
    is: &Elasticity,
    given: &ElasticityArgs,
    memory: Bytes,
    cpu: MilliCores,
) -> Outcome<Elasticity> {
    let class = given.class.unwrap_or(match is {
        Elasticity::Guaranteed => Class::Guaranteed,
        Elasticity::Burstable { .. } => Class::Burstable,
        Elasticity::Deflatable { .. } => Class::Deflatable,
    });
    let (memory_is, cpu_is, shares_is, curves) = match is.clone() {
        Elasticity::Guaranteed => {
            (Bytes(memory.0 / 2), MilliCores(cpu.0 / 2), DEFAULT_SHARES, None)
        }
        Elasticity::Burstable { memory_min, cpu_min, shares } => {
            (memory_min, cpu_min, shares, None)
        }
        Elasticity::Deflatable { memory_min, cpu_min, shares, utility } => {
            (memory_min, cpu_min, shares, utility)
        }
    };
    let memory_min = given.min_memory.unwrap_or_else(|| memory_is.max(LEAST_MEMORY).min(memory));
    let cpu_min = given.min_cpu.unwrap_or_else(|| cpu_is.max(LEAST_CPU).min(cpu));
    let shares = given.shares.unwrap_or(shares_is);
    match class {
        Class::Guaranteed
            if given.min_memory.is_some() || given.min_cpu.is_some() || given.shares.is_some() =>
        {
            Err(Failure::usage("a guaranteed VM has all that it is promised: it has no minimum")
                .hint("add --class burstable or --class deflatable"))
        }
        Class::Guaranteed => Ok(Elasticity::Guaranteed),
        Class::Burstable => Ok(Elasticity::Burstable { memory_min, cpu_min, shares }),
        Class::Deflatable => {
            Ok(Elasticity::Deflatable { memory_min, cpu_min, shares, utility: curves })
        }
    }
}

fn read(path: &Path, what: &str) -> Outcome<String> {
    fs::read_to_string(path).or_usage(|| format!("cannot read the {what}"))
}

fn ssh_keys(args: &RequestArgs) -> Outcome<Vec<String>> {
    let mut keys = Vec::new();
    for path in &args.ssh_key {
        let text = read(path, "SSH keys")?;
        if text.contains("PRIVATE KEY") {
            return Err(Failure::usage(format!("{} is a private key", path.display()))
                .hint("give the public one, which ends in .pub"));
        }
        let lines = text.lines().map(str::trim);
        keys.extend(lines.filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
    }
    Ok(keys)
}

/// The size of an image's disk: what a VM needs at least.
async fn image_disk(
    connection: &Connection,
    project: &Name,
    image: &Name,
) -> Outcome<plimsoll_model::Bytes> {
    let client = &connection.client;
    let mut images = client.images(Some(project)).await?;
    images.extend(client.images(None).await?);
    images.iter().find(|known| known.name == *image).map(|known| known.disk_size).ok_or_else(|| {
        Failure::new(format!("there is no image `{image}`")).hint(
            "`plimsoll image list` shows those that there are; `plimsoll image import` adds one",
        )
    })
}
