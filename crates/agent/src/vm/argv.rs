//! From the description of a machine to QEMU's command line: a pure function.
//!
//! Everything that must be there from the start to be changed later is there from the start: a
//! throttle group under the disk (its limits change by `qom-set`), free places for vCPUs, memory
//! that comes and goes, spare PCIe ports, the balloon. QEMU gets no device, file or default that is
//! not named here, and opens no path: it finds its files as inherited descriptors ([`Descriptor`]).
//!
//! No secret may be in here: every user of the host can read a process's arguments.

use std::path::{Path, PathBuf};

use plimsoll_model::{Bytes, BytesPerSecond, IoPerSecond, MacAddress, Name, VmId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::guard::record::{Access, Descriptor, Source, name};
use super::host::DiskFiles;

/// The throttle group of the root disk, in QEMU's object tree.
pub(crate) const THROTTLE_PATH: &str = "/objects/throttle-root";
/// The balloon, in QEMU's object tree.
pub(crate) const BALLOON_PATH: &str = "/machine/peripheral/balloon0";
/// The block node of the root disk: what the guest sees, over the throttle.
pub(crate) const ROOT_NODE: &str = "root";
/// Its image, under the throttle.
pub(crate) const IMAGE_NODE: &str = "root-image";
/// The root disk as a device.
pub(crate) const DISK_ID: &str = "disk-root";
/// The root disk's name where it is exported for a move.
pub(crate) const EXPORT_NAME: &str = "root";
/// Places for devices that are plugged in later.
const SPARE_PORTS: u32 = 4;
/// The memory that comes and goes, by its id and in QEMU's object tree.
pub(crate) const ELASTIC_ID: &str = "elastic0";
pub(crate) const ELASTIC_PATH: &str = "/machine/peripheral/elastic0";
/// It comes and goes in pieces of this size: QEMU's default, a transparent huge page.
pub(crate) const ELASTIC_BLOCK: u64 = 2 << 20;
/// The first descriptor given to QEMU: far above those that it opens by itself at its start.
const FIRST_DESCRIPTOR: i32 = 100;
/// How often the balloon asks its guest for statistics, in seconds.
pub(crate) const GUEST_STATS_SECONDS: u32 = 5;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// The processor's own virtualisation.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// A kernel that QEMU loads itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectBoot {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub append: String,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The tap device.
    pub tap: String,
    pub mac: MacAddress,
    /// What the guest is told, in bytes.
    pub mtu: u16,
}

/// A machine, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub vm: VmId,
    pub name: Name,
    pub accelerator: Accelerator,
    /// vCPUs at the start.
    pub vcpus: u32,
    /// vCPUs that it can have, at least `vcpus`.
    pub max_vcpus: u32,
    /// Memory at the start; rounded up to whole MiB.
    pub memory: Bytes,
    /// Memory that it can have while it runs, `memory` and whole elastic blocks; `None`: no more
    /// than `memory`.
    pub max_memory: Option<Bytes>,
    /// Whether the kernel may merge its pages with equal ones.
    pub mergeable: bool,
    pub disk: DiskFiles,
    /// Reads and writes together; zero: no limit.
    pub disk_bandwidth: BytesPerSecond,
    /// Reads and writes together; zero: no limit.
    pub disk_iops: IoPerSecond,
    pub nics: Vec<Nic>,
    pub boot: Option<DirectBoot>,
    /// A machine that comes from another host: `None` for one that boots here.
    pub incoming: Option<Incoming>,
}

/// A machine whose state comes from another host. It is started paused and waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// QEMU's name of the machine there, with its version: the state fits no other.
    pub machine_type: String,
}

/// A command line and the descriptors that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    pub arguments: Vec<String>,
    pub descriptors: Vec<Descriptor>,
}

impl CommandLine {
    fn option(&mut self, option: &str, value: impl Into<String>) {
        self.arguments.push(option.to_owned());
        self.arguments.push(value.into());
    }

    #[expect(clippy::needless_pass_by_value, reason = "every caller builds the value in place")]
    fn json(&mut self, option: &str, value: Value) {
        self.option(option, value.to_string());
    }

    /// The number under which QEMU finds `source`.
    fn descriptor(&mut self, source: Source) -> i32 {
        let count = i32::try_from(self.descriptors.len()).unwrap_or(i32::MAX);
        let number = FIRST_DESCRIPTOR.saturating_add(count);
        self.descriptors.push(Descriptor { number, source });
        number
    }

    /// A name by which QEMU's own file functions open `source`.
    fn file_set(&mut self, source: Source) -> String {
        let number = self.descriptor(source);
        // A set with the descriptor's own number: one name less to keep apart.
        self.option("-add-fd", format!("fd={number},set={number}"));
        format!("/dev/fdset/{number}")
    }

    fn file(&mut self, path: &Path, access: Access) -> String {
        self.file_set(Source::File { path: path.to_owned(), access })
    }
}

/// The limits of a throttle group, complete: what is not named in a `qom-set` becomes zero.
#[must_use]
pub(crate) fn throttle_limits(bandwidth: BytesPerSecond, iops: IoPerSecond) -> Value {
    json!({"bps-total": bandwidth.get(), "iops-total": iops.get()})
}

/// The machine's memory at the start as QEMU has it: whole MiB.
#[must_use]
pub(crate) fn boot_memory(memory: Bytes) -> Bytes {
    const MIB: u64 = 1024 * 1024;
    Bytes(memory.get().div_ceil(MIB).max(1).saturating_mul(MIB))
}

/// QEMU's command line for a machine.
#[must_use]
pub fn command_line(machine: &Machine) -> CommandLine {
    let mut line = CommandLine { arguments: Vec::new(), descriptors: Vec::new() };
    base(&mut line, machine);
    processor_and_memory(&mut line, machine);
    channels(&mut line);
    disks(&mut line, &machine.disk, machine);
    for (index, nic) in machine.nics.iter().enumerate() {
        network(&mut line, index, nic);
    }
    for port in 0..SPARE_PORTS {
        let chassis = port + 1;
        let device = json!({"driver": "pcie-root-port", "id": format!("spare{port}"),
            "chassis": chassis, "port": chassis});
        line.json("-device", device);
    }
    if let Some(boot) = &machine.boot {
        direct_boot(&mut line, boot, machine.max_memory.is_some());
    }
    line
}

fn base(line: &mut CommandLine, machine: &Machine) {
    for flag in ["-nodefaults", "-no-user-config"] {
        line.arguments.push(flag.to_owned());
    }
    line.option("-display", "none");
    line.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    line.option("-msg", "timestamp=on");
    line.option("-name", format!("guest={},debug-threads=on", machine.name));
    line.option("-uuid", machine.vm.0.hyphenated().to_string());
    line.option("-rtc", "base=utc");
    line.option("-boot", "menu=off,strict=on");
    if machine.incoming.is_some() {
        line.arguments.push("-S".to_owned());
        line.option("-incoming", "defer");
    }
}

fn processor_and_memory(line: &mut CommandLine, machine: &Machine) {
    // mem-merge=off: merged pages are a side channel. Memory that may be merged says so itself; it
    // is private memory, as the kernel merges no other.
    let kind = machine.incoming.as_ref().map_or("q35", |incoming| &incoming.machine_type);
    line.option(
        "-machine",
        format!("{kind},usb=off,vmport=off,dump-guest-core=off,mem-merge=off,memory-backend=ram"),
    );
    match machine.accelerator {
        Accelerator::Kvm => {
            let device = line.file(Path::new("/dev/kvm"), Access::Write);
            line.option("-accel", format!("kvm,device={device}"));
            line.option("-cpu", "host");
        }
        Accelerator::Tcg => {
            line.option("-accel", "tcg,thread=multi");
            line.option("-cpu", "max");
        }
    }
    let (vcpus, most) = (machine.vcpus.max(1), machine.max_vcpus.max(machine.vcpus).max(1));
    line.option("-smp", format!("cpus={vcpus},maxcpus={most},sockets=1,cores={most},threads=1"));
    let memory = boot_memory(machine.memory).get();
    let elastic = machine.max_memory.map_or(0, |most| most.get().saturating_sub(memory));
    let elastic = elastic / ELASTIC_BLOCK * ELASTIC_BLOCK;
    let mut size = format!("size={}k", memory / 1024);
    if elastic > 0 {
        size.push_str(&format!(",maxmem={}k", (memory + elastic) / 1024));
    }
    line.option("-m", size);
    line.json(
        "-object",
        json!({"qom-type": "memory-backend-ram", "id": "ram", "size": memory,
            "merge": machine.mergeable}),
    );
    line.json(
        "-device",
        json!({"driver": "virtio-balloon-pci", "id": "balloon0", "free-page-reporting": true,
            "deflate-on-oom": true}),
    );
    if elastic > 0 {
        // Not reserved: most of it is never there.
        line.json(
            "-object",
            json!({"qom-type": "memory-backend-ram", "id": "elastic", "size": elastic,
                "merge": machine.mergeable, "reserve": false}),
        );
        line.json(
            "-device",
            json!({"driver": "virtio-mem-pci", "id": ELASTIC_ID, "memdev": "elastic",
                "block-size": ELASTIC_BLOCK, "requested-size": 0}),
        );
    }
    line.json("-device", json!({"driver": "virtio-rng-pci", "id": "rng0", "romfile": ""}));
}

fn channels(line: &mut CommandLine) {
    let listen = |line: &mut CommandLine, id: &str, socket: &str, more: &str| {
        let number = line.descriptor(Source::Listen { name: socket.to_owned() });
        line.option("-chardev", format!("socket,id={id},fd={number},server=on,wait=off{more}"));
    };
    listen(line, "monitor", name::QMP_SOCKET, "");
    line.option("-mon", "chardev=monitor,mode=control");
    let log = line.file_set(Source::Log { name: name::CONSOLE_LOG.to_owned() });
    listen(line, "console", name::CONSOLE_SOCKET, &format!(",logfile={log},logappend=on"));
    line.json("-device", json!({"driver": "isa-serial", "id": "serial0", "chardev": "console"}));
    listen(line, "guest", name::GUEST_SOCKET, "");
    line.json("-device", json!({"driver": "virtio-serial-pci", "id": "channels0"}));
    line.json(
        "-device",
        json!({"driver": "virtserialport", "id": "guest-port", "bus": "channels0.0",
            "chardev": "guest", "name": plimsoll_api::guest::PORT_NAME}),
    );
}

fn disks(line: &mut CommandLine, disk: &DiskFiles, machine: &Machine) {
    let limits = throttle_limits(machine.disk_bandwidth, machine.disk_iops);
    line.json(
        "-object",
        json!({"qom-type": "throttle-group", "id": "throttle-root", "limits": limits}),
    );
    let mut image = json!({"driver": "qcow2", "node-name": IMAGE_NODE, "file": "root-file",
        "backing": null, "discard": "unmap", "detect-zeroes": "unmap"});
    if let Some((path, format)) = &disk.base {
        let file = line.file(path, Access::Read);
        line.json(
            "-blockdev",
            json!({"driver": "file", "node-name": "base-file", "filename": file,
                "read-only": true}),
        );
        let mut base = json!({"driver": format, "node-name": "base", "file": "base-file",
            "read-only": true});
        if format == "qcow2" {
            // What the image's header names is not opened.
            base["backing"] = Value::Null;
        }
        line.json("-blockdev", base);
        image["backing"] = json!("base");
    }
    let access = if disk.direct { Access::WriteDirect } else { Access::Write };
    let file = line.file(&disk.overlay, access);
    let mut root =
        json!({"driver": "file", "node-name": "root-file", "filename": file, "discard": "unmap"});
    if disk.direct {
        root["cache"] = json!({"direct": true});
    }
    line.json("-blockdev", root);
    line.json("-blockdev", image);
    line.json(
        "-blockdev",
        json!({"driver": "throttle", "node-name": ROOT_NODE, "file": IMAGE_NODE,
            "throttle-group": "throttle-root", "discard": "unmap"}),
    );
    line.json(
        "-device",
        json!({"driver": "virtio-blk-pci", "id": DISK_ID, "drive": ROOT_NODE, "serial": "root",
            "bootindex": 1, "discard": true}),
    );
    if let Some(seed) = &disk.seed {
        let file = line.file(seed, Access::Read);
        line.json(
            "-blockdev",
            json!({"driver": "file", "node-name": "seed-file", "filename": file,
                "read-only": true}),
        );
        line.json(
            "-blockdev",
            json!({"driver": "raw", "node-name": "seed", "file": "seed-file", "read-only": true}),
        );
        line.json(
            "-device",
            json!({"driver": "virtio-blk-pci", "id": "disk-seed", "drive": "seed",
                "serial": "seed"}),
        );
    }
}

fn network(line: &mut CommandLine, index: usize, nic: &Nic) {
    let number = line.descriptor(Source::Tap { name: nic.tap.clone() });
    line.option("-netdev", format!("tap,id=net{index},fd={number}"));
    line.json(
        "-device",
        // No option ROM: nothing here boots from the network.
        json!({"driver": "virtio-net-pci", "id": format!("nic{index}"),
            "netdev": format!("net{index}"), "mac": nic.mac.to_string(), "host_mtu": nic.mtu,
            "romfile": ""}),
    );
}

fn direct_boot(line: &mut CommandLine, boot: &DirectBoot, has_elastic_memory: bool) {
    // QEMU opens these two by path: the inherited descriptor's name in /proc needs rights on the
    // file only, not on the directories above it.
    let mut open = |path: &Path| {
        let source = Source::File { path: path.to_owned(), access: Access::Read };
        format!("/proc/self/fd/{}", line.descriptor(source))
    };
    let (kernel, initrd) = (open(&boot.kernel), boot.initrd.as_deref().map(open));
    line.option("-kernel", kernel);
    if let Some(initrd) = initrd {
        line.option("-initrd", initrd);
    }
    let mut append = boot.append.clone();
    if has_elastic_memory && !append.contains("swiotlb=") {
        // Room for memory above 4 GiB makes Linux reserve 64 MiB of bounce buffers, which no
        // virtio device needs.
        append.push_str(" swiotlb=noforce");
    }
    line.option("-append", append.trim());
}

#[cfg(test)]
mod tests;
