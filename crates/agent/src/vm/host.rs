//! What the VMs need of the rest of the agent, as traits: disks, networks and images are other
//! rooms, and tests put fakes in their place.

use std::path::PathBuf;

use futures_util::future::BoxFuture;
use plimsoll_api::cluster::DesiredPresent;
use plimsoll_model::{BitsPerSecond, Bytes, ImageFile, Interface, VmId};

/// Why another room of the agent could not do its part. Its Display says what failed, its source
/// chain why.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// A VM's root disk as QEMU is to open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFiles {
    /// The VM's own qcow2 file.
    pub overlay: PathBuf,
    /// The image under it, opened read-only, with its format (`qcow2` or `raw`). `None`: the disk
    /// has no backing file.
    pub base: Option<(PathBuf, String)>,
    /// A small read-only disk with the guest's first configuration (cloud-init's NoCloud).
    pub seed: Option<PathBuf>,
    /// The disk's virtual size.
    pub size: Bytes,
    /// Writes go past this host's page cache: what a killed QEMU wrote must not reach shared storage
    /// later, when another host has the disk.
    pub direct: bool,
}

/// One end of a virtual cable: QEMU opens the tap by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The tap device's name, in the agent's network namespace.
    pub name: String,
    /// The MTU that the guest is told.
    pub mtu: u16,
}

/// Disks of VMs. Every method may be called again at any time and does only what is missing.
pub trait Disks: Send + Sync + 'static {
    /// Makes the VM's disk and seed, or finds them. Never makes a disk anew where the VM's disk is
    /// to exist ([`plimsoll_api::cluster::DiskOrigin::Existing`]). `disk_image` is the image's disk
    /// on this host. Called with QEMU not running.
    fn prepare<'a>(
        &'a self,
        vm: VmId,
        wanted: &'a DesiredPresent,
        disk_image: Option<PathBuf>,
    ) -> BoxFuture<'a, Result<DiskFiles, HostError>>;

    /// Whether the VM's disk is here.
    fn exists(&self, vm: VmId) -> bool;

    /// Deletes all that belongs to the VM. Without anything there it succeeds.
    fn delete(&self, vm: VmId) -> BoxFuture<'_, Result<(), HostError>>;
}

/// Networks of VMs. As with [`Disks`], calls may be repeated.
pub trait Networks: Send + Sync + 'static {
    /// Makes (or finds) the tap of the VM's interface number `index` and connects it to the
    /// interface's network.
    fn attach<'a>(
        &'a self,
        vm: VmId,
        index: usize,
        interface: &'a Interface,
    ) -> BoxFuture<'a, Result<Tap, HostError>>;

    /// Limits every one of the VM's `count` interfaces together with the others to `rate` in each
    /// direction (zero: no limit) and returns what is in force, read back.
    fn limit(
        &self,
        vm: VmId,
        count: usize,
        rate: BitsPerSecond,
    ) -> BoxFuture<'_, Result<BitsPerSecond, HostError>>;

    /// Removes all taps of the VM. Without any it succeeds.
    fn detach(&self, vm: VmId) -> BoxFuture<'_, Result<(), HostError>>;
}

/// Files of images on this host.
pub trait Images: Send + Sync + 'static {
    /// The path of a file with this checksum; fetches it where it is missing, which can take
    /// minutes. The file must be readable by every user of the machine (mode 0644).
    fn file<'a>(&'a self, file: &'a ImageFile) -> BoxFuture<'a, Result<PathBuf, HostError>>;
}
