//! Devices, and the place where disks will be.

use std::{io, os::fd::AsRawFd as _, path::Path};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::User,
};
use plimsoll_api::{
    ErrorChain,
    doctor::{CheckStatus, DoctorCheck},
};
use plimsoll_model::Bytes;
use std::fs;

use super::{finding, good, kernel};
use crate::{disk::space_at, inventory::gpus, vm::QemuUser};

pub(super) fn checks() -> Vec<DoctorCheck> {
    vec![fuse(), kernel::clock(), gpu()]
}

/// Mounts a FUSE file system that nobody serves, in a mount namespace that ends with the thread.
fn fuse() -> DoctorCheck {
    // Any directory that is there will do: it is covered for this thread alone.
    const TARGET: &str = "/proc";
    let remedy = "load the module `fuse` and run as root; without it forks cannot fetch memory \
                  from their parent";
    let tried = std::thread::spawn(|| -> Result<(), (&'static str, io::Error)> {
        let device = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|error| ("cannot open /dev/fuse", error))?;
        let failed = |what| move |errno: nix::errno::Errno| (what, io::Error::from(errno));
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed("cannot make a mount namespace"))?;
        // Nothing mounted here may reach the host.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .map_err(failed("cannot make the mount namespace private"))?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("plimsoll-doctor"), TARGET, Some("fuse"), flags, Some(options.as_str()))
            .map_err(failed("cannot mount"))?;
        umount2(TARGET, MntFlags::MNT_DETACH).map_err(failed("cannot unmount"))
    })
    .join();
    match tried {
        Ok(Ok(())) => good("fuse", "a file system was mounted in a namespace of its own"),
        Ok(Err((what, error))) => {
            let status = if error.kind() == io::ErrorKind::NotFound {
                CheckStatus::Missing
            } else {
                CheckStatus::Unusable
            };
            finding("fuse", status, format!("{what}: {error}"), Some(remedy))
        }
        Err(_) => finding("fuse", CheckStatus::Unusable, "the check itself broke", None),
    }
}

fn gpu() -> DoctorCheck {
    let cards = nvidia_cards();
    match gpus::found() {
        Ok(found) if found.is_empty() => good("gpus", "NVML works and finds none"),
        Ok(found) => {
            let names: Vec<String> =
                found.iter().map(|gpu| format!("{} ({})", gpu.name, gpu.memory)).collect();
            good("gpus", names.join(", "))
        }
        Err(error) if cards == 0 => {
            // The library's own errors repeat their causes; the first line says it all.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let evidence = format!(
                "none: no NVIDIA device on the PCI bus; {error}: {}",
                cause.unwrap_or_default()
            );
            finding("gpus", CheckStatus::Missing, evidence, None)
        }
        Err(error) => finding(
            "gpus",
            CheckStatus::Unusable,
            format!("{cards} NVIDIA devices on the PCI bus, but {}", ErrorChain(&error)),
            Some("install NVIDIA's driver, or declare the accelerators in the configuration"),
        ),
    }
}

/// How many display or 3D controllers of NVIDIA the PCI bus has.
fn nvidia_cards() -> usize {
    let Ok(devices) = fs::read_dir("/sys/bus/pci/devices") else { return 0 };
    let reads = |path: &Path, file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
    devices
        .filter_map(Result::ok)
        .map(|device| device.path())
        .filter(|path| reads(path, "vendor").trim() == "0x10de")
        .filter(|path| reads(path, "class").starts_with("0x03"))
        .count()
}

pub(super) fn place(data_dir: &Path, user: Option<&str>) -> Vec<DoctorCheck> {
    vec![disk_space(data_dir), qemu_user(user)]
}

fn disk_space(data_dir: &Path) -> DoctorCheck {
    const LEAST: Bytes = Bytes(10 << 30);
    let space = match space_at(data_dir) {
        Ok(space) => space,
        Err(error) => {
            return finding(
                "disk_space",
                CheckStatus::Unusable,
                ErrorChain(&error).to_string(),
                None,
            );
        }
    };
    let whole = |bytes: Bytes| Bytes(bytes.get() >> 30 << 30);
    let evidence =
        format!("{} of {} free at {}", whole(space.free), whole(space.total), data_dir.display());
    if space.free < LEAST {
        let remedy = "make room or set `data_dir` to a larger file system: images and disks of VMs \
                      lie there";
        return finding("disk_space", CheckStatus::Warning, evidence, Some(remedy));
    }
    good("disk_space", evidence)
}

fn qemu_user(name: Option<&str>) -> DoctorCheck {
    const CHECK: &str = "unprivileged_user";
    let warning = |evidence: String, remedy: &str| {
        finding(CHECK, CheckStatus::Warning, evidence, Some(remedy))
    };
    let Some(name) = name else {
        return match QemuUser::detect() {
            QemuUser::Range { first, .. } => good(
                CHECK,
                format!("each VM's QEMU runs as a user of its own, from uid {first} on"),
            ),
            _ if nix::unistd::geteuid().is_root() => warning(
                "QEMU would run as root: this user namespace has no numbers to give".to_owned(),
                "name a user in `qemu_user`",
            ),
            _ => good(
                CHECK,
                format!("QEMU runs as the agent's own user (uid {})", nix::unistd::geteuid()),
            ),
        };
    };
    match User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => {
            warning(format!("{name} is root"), "name another user in `qemu_user`")
        }
        Ok(Some(user)) => good(CHECK, format!("QEMU runs as {name} (uid {})", user.uid)),
        Ok(None) => {
            let remedy = format!(
                "`useradd --system --no-create-home --shell /usr/sbin/nologin {name}`, or leave \
                 `qemu_user` out"
            );
            finding(CHECK, CheckStatus::Unusable, format!("there is no user {name}"), Some(&remedy))
        }
        Err(errno) => finding(CHECK, CheckStatus::Unusable, errno.to_string(), None),
    }
}
