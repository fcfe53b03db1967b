//! From a wish to a QEMU that runs: images, disk, taps, command line, guard.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::{DesiredPresent, DiskOrigin};
use plimsoll_api::migration::PrepareArrival;
use plimsoll_model::{Bytes, ImageFileKind, MilliCores, VmId};
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::record::LaunchedMachine;
use crate::limits::LimitsError;
use crate::vm::argv::{self, CommandLine, DirectBoot, Incoming, Machine, Nic};
use crate::vm::files::{self, FileError};
use crate::vm::guard::EXIT_HELD;
use crate::vm::guard::record::{Launch, VmDirectory, name};
use crate::vm::host::{DiskFiles, HostError};
use crate::vm::lease::BootTime;
use crate::vm::registry::Environment;

/// A guard answers when QEMU's program has begun: milliseconds, seconds on a host under load.
const GUARD_LIMIT: Duration = Duration::from_secs(60);
/// How much of a guard's complaint is kept.
const COMPLAINT_BYTES: u64 = 2048;
/// Below this, places for more memory cost an image with its own boot loader too much (see
/// `swiotlb` in [`argv`]).
const LARGE_MEMORY: Bytes = Bytes(2 << 30);

/// Why a VM could not be started. The source says why; the next attempt may succeed.
#[derive(Debug, Error)]
pub(super) enum LaunchError {
    #[error("cannot get the image's {kind}")]
    Image {
        kind: &'static str,
        #[source]
        source: HostError,
    },
    #[error("the image has no disk")]
    NoDisk,
    #[error("cannot prepare the disk")]
    Disk(#[source] HostError),
    #[error("cannot connect interface {index}")]
    Interface {
        index: usize,
        #[source]
        source: HostError,
    },
    #[error("cannot limit the network")]
    NetworkLimit(#[source] HostError),
    #[error("cannot write the launch file")]
    Write(#[source] FileError),
    #[error("no command to run guards with is configured")]
    NoCommand,
    #[error("cannot run the VM's guard")]
    Guard(#[source] std::io::Error),
    #[error("the VM's guard gave no answer within {limit:?}")]
    GuardTimeout { limit: Duration },
    #[error("the VM's guard refused: {complaint}")]
    Refused { complaint: String },
}

/// vCPUs for an amount of CPU: as many as can use it up.
pub(super) fn vcpus_for(cpu: MilliCores) -> u32 {
    u32::try_from(cpu.get().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

/// How much a machine can grow while it runs: to four times what it boots with. A Linux guest takes
/// memory in blocks of 128 MiB of address space, of which a part may be there.
fn elastic_room(memory: Bytes) -> u64 {
    const BLOCK: u64 = 128 << 20;
    memory.get().saturating_mul(3).checked_next_multiple_of(BLOCK).unwrap_or(0)
}

/// What of a machine is fixed when it is launched.
struct Shape {
    vcpus: u32,
    max_vcpus: u32,
    memory: Bytes,
    max_memory: Option<Bytes>,
    incoming: Option<Incoming>,
}

impl Shape {
    /// Of a machine that boots here.
    fn to_boot(environment: &Environment, present: &DesiredPresent, direct: bool) -> Self {
        let memory = argv::boot_memory(present.resources.memory);
        let max_memory = (direct || memory >= LARGE_MEMORY)
            .then(|| Bytes(memory.get().saturating_add(elastic_room(memory))));
        let most = environment.max_vcpus.max(1);
        let vcpus = vcpus_for(present.resources.cpu).min(most);
        let max_vcpus = vcpus.saturating_mul(2).max(4).min(most);
        Self { vcpus, max_vcpus, memory, max_memory, incoming: None }
    }

    /// Of one that comes from another host: as it was launched there.
    fn to_arrive(arriving: &PrepareArrival) -> Self {
        Self {
            vcpus: arriving.vcpus,
            max_vcpus: arriving.max_vcpus,
            memory: arriving.memory,
            max_memory: Some(arriving.max_memory).filter(|most| *most > arriving.memory),
            incoming: Some(Incoming { machine_type: arriving.machine_type.clone() }),
        }
    }
}

/// The VM's disk: made, found, or, where it comes with the VM, made empty.
async fn disk(
    environment: &Environment,
    vm: VmId,
    present: &DesiredPresent,
    arriving: Option<&PrepareArrival>,
    image: PathBuf,
) -> Result<DiskFiles, LaunchError> {
    let disks = &environment.disks;
    let Some(arriving) = arriving else {
        return disks.prepare(vm, present, Some(image)).await.map_err(LaunchError::Disk);
    };
    let mut present = present.clone();
    present.resources.disk = arriving.disk_size;
    present.disk = if arriving.copy_disk { DiskOrigin::Image } else { DiskOrigin::Existing };
    if arriving.copy_disk {
        // Only what the guest wrote is copied: anything that an earlier attempt left here would stay.
        disks.delete(vm).await.map_err(LaunchError::Disk)?;
    }
    disks.prepare(vm, &present, Some(image)).await.map_err(LaunchError::Disk)
}

/// Everything up to the command line; repeatable, and nothing runs yet. `arriving`: the machine that
/// comes from another host, which is built as it was there.
pub(super) async fn prepare(
    environment: &Environment,
    vm: VmId,
    present: &DesiredPresent,
    arriving: Option<&PrepareArrival>,
) -> Result<(Machine, LaunchedMachine), LaunchError> {
    let file = async |kind: ImageFileKind| {
        let Some(file) = present.image.files.iter().find(|file| file.kind == kind) else {
            return Ok(None);
        };
        let path = environment.images.file(file).await;
        path.map(Some).map_err(|source| LaunchError::Image { kind: kind.as_str(), source })
    };
    let disk_image = file(ImageFileKind::Disk).await?.ok_or(LaunchError::NoDisk)?;
    let kernel = file(ImageFileKind::Kernel).await?;
    let initrd = file(ImageFileKind::Initrd).await?;
    let disk = disk(environment, vm, present, arriving, disk_image).await?;
    let mut nics = Vec::new();
    for (index, interface) in present.interfaces.iter().enumerate() {
        let tap = environment.networks.attach(vm, index, interface).await;
        let tap = tap.map_err(|source| LaunchError::Interface { index, source })?;
        nics.push(Nic { tap: tap.name, mac: interface.mac, mtu: tap.mtu });
    }
    if !nics.is_empty() {
        let rate = present.resources.network;
        let limited = environment.networks.limit(vm, nics.len(), rate).await;
        limited.map_err(LaunchError::NetworkLimit)?;
    }
    let shape = match arriving {
        Some(arriving) => Shape::to_arrive(arriving),
        None => Shape::to_boot(environment, present, kernel.is_some()),
    };
    let Shape { vcpus, max_vcpus, memory, max_memory, incoming } = shape;
    let machine = Machine {
        vm,
        name: present.name.clone(),
        accelerator: environment.accelerator,
        vcpus,
        max_vcpus,
        memory,
        max_memory,
        // Decided when it is launched.
        mergeable: false,
        disk,
        disk_bandwidth: present.resources.disk_bandwidth,
        disk_iops: present.resources.disk_iops,
        nics,
        boot: kernel.map(|kernel| DirectBoot {
            kernel,
            initrd,
            append: present.image.append.clone().unwrap_or_default(),
        }),
        incoming,
    };
    let launched = LaunchedMachine {
        max_vcpus: machine.max_vcpus,
        memory,
        max_memory: max_memory.unwrap_or(memory),
        interfaces: machine.nics.len(),
        project: Some(present.project),
        merging: None,
    };
    Ok((machine, launched))
}

/// How a guard answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// QEMU runs.
    Started,
    /// A guard or QEMU of the VM lives already.
    Held,
}

/// Writes the permission to start, and starts. The caller must have seen the VM dead. Whatever
/// comes back, what lives afterwards is for [`crate::vm::adopt`] to say.
pub(super) async fn launch(
    environment: &Environment,
    directory: &VmDirectory,
    number: u64,
    machine: &Machine,
    asked_at: BootTime,
) -> Result<Answer, LaunchError> {
    let CommandLine { arguments, descriptors } = argv::command_line(machine);
    let group = environment.memory_groups.as_ref().map(|groups| groups.create(machine.vm));
    let groups = group.into_iter().filter_map(|group| {
        let warn = |error: &LimitsError| {
            tracing::warn!(vm = %machine.vm, error = %ErrorChain(error), "no memory cgroup for it");
        };
        group.inspect_err(warn).ok()
    });
    let launch = Launch {
        vm: machine.vm,
        number,
        uuid: machine.vm.0,
        program: environment.qemu.clone(),
        arguments,
        user: environment.user.of(machine.vm),
        descriptors,
        groups: groups.collect(),
        lease_file: environment.lease_file.clone(),
        asked_at,
    };
    files::write_json(&directory.file(name::LAUNCH), &launch).map_err(LaunchError::Write)?;
    run_guard(environment, directory).await
}

async fn run_guard(
    environment: &Environment,
    directory: &VmDirectory,
) -> Result<Answer, LaunchError> {
    let (program, arguments) =
        environment.guard_command.split_first().ok_or(LaunchError::NoCommand)?;
    let mut child = Command::new(program)
        .args(arguments)
        .arg("--directory")
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(LaunchError::Guard)?;
    let complaint = child.stderr.take();
    let answer = async {
        let mut text = Vec::new();
        if let Some(complaint) = complaint {
            complaint.take(COMPLAINT_BYTES).read_to_end(&mut text).await?;
        }
        Ok((child.wait().await?, text))
    };
    let (status, text) = match tokio::time::timeout(GUARD_LIMIT, answer).await {
        Err(_) => return Err(LaunchError::GuardTimeout { limit: GUARD_LIMIT }),
        Ok(answer) => answer.map_err(LaunchError::Guard)?,
    };
    match status.code() {
        Some(0) => Ok(Answer::Started),
        Some(code) if code == i32::from(EXIT_HELD) => Ok(Answer::Held),
        _ => {
            let text = String::from_utf8_lossy(&text);
            let complaint = text.trim().replace('\n', "; ");
            let complaint = if complaint.is_empty() { status.to_string() } else { complaint };
            Err(LaunchError::Refused { complaint })
        }
    }
}
