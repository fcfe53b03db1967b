//! Disks for VMs: overlays on images, and seeds that say who the guest is.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc};

use fs_err as fs;
use futures_util::{FutureExt as _, future::BoxFuture};
use plimsoll_api::cluster::{DesiredPresent, DiskOrigin};
use plimsoll_model::VmId;
use thiserror::Error;

use super::HostNetworks;
use crate::{
    disk::{self, Base, DiskError, ImageFormat, Seed, SeedNic},
    vm::{DiskFiles, Disks, HostError},
};

/// A VM has one disk.
const ROOT: u8 = 0;

/// Why a VM's disk cannot be prepared, beside what can go wrong with the disk itself.
#[derive(Debug, Error)]
enum PrepareError {
    /// The disk of a VM that has run is not here.
    #[error(
        "the disk of {vm} should be at {}, but is not: no new one is made in its place",
        path.display()
    )]
    Lost { vm: VmId, path: PathBuf },
    /// An image in a format that we do not know.
    #[error("an image in the format `{format}` cannot be used: only qcow2 and raw")]
    Format { format: String },
}

/// The disks of one host's VMs.
#[derive(Debug)]
pub struct HostDisks {
    disks: disk::Disks,
    networks: Arc<HostNetworks>,
    /// Whether QEMU writes past this host's page cache.
    direct: bool,
    /// The name servers that guests with a way outside are told.
    dns: Vec<Ipv4Addr>,
}

impl HostDisks {
    /// `networks` tells what stands in a guest's network configuration. Guests with a way outside
    /// get this host's name servers. `direct`: see [`DiskFiles::direct`].
    #[must_use]
    pub fn new(disks: disk::Disks, networks: Arc<HostNetworks>, direct: bool) -> Self {
        let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Self { disks, networks, direct, dns: name_servers(&resolv_conf) }
    }

    async fn prepare_disk(
        &self,
        vm: VmId,
        wanted: &DesiredPresent,
        disk_image: Option<PathBuf>,
    ) -> Result<DiskFiles, HostError> {
        let base = disk_image.map(|path| base(path, &wanted.image.disk_format)).transpose()?;
        let path = self.disks.disk_path(vm, ROOT);
        let facts = if path.exists() {
            let facts = self.disks.facts(vm, ROOT)?;
            // The same image may lie elsewhere on another host of a shared pool; its file's name is
            // its checksum everywhere.
            let name = |path: &PathBuf| path.file_name().map(std::ffi::OsStr::to_owned);
            if facts.base.as_ref().and_then(name) != base.as_ref().and_then(|base| name(&base.path))
            {
                return Err(DiskError::OtherDisk { path }.into());
            }
            if facts.virtual_size < wanted.resources.disk {
                self.disks.grow(vm, ROOT, wanted.resources.disk).await?
            } else {
                facts
            }
        } else if wanted.disk == DiskOrigin::Existing {
            return Err(PrepareError::Lost { vm, path }.into());
        } else {
            self.disks.create(vm, ROOT, base.as_ref(), wanted.resources.disk).await?
        };
        let seed = self.disks.write_seed(vm, &self.seed(vm, wanted)?)?;
        Ok(DiskFiles {
            overlay: facts.path,
            base: base.map(|base| (base.path, base.format.as_str().to_owned())),
            seed: Some(seed),
            size: facts.virtual_size,
            direct: self.direct,
        })
    }

    fn seed(&self, vm: VmId, wanted: &DesiredPresent) -> Result<Seed, HostError> {
        let nics = wanted
            .interfaces
            .iter()
            .map(|interface| {
                let network = self.networks.wanted(interface.network)?;
                let gateway = network.outside.then(|| network.cidr.gateway());
                Ok(SeedNic {
                    mac: interface.mac,
                    address: interface.address,
                    prefix: network.cidr.prefix(),
                    gateway,
                    dns: if network.outside { self.dns.clone() } else { Vec::new() },
                    mtu: network.mtu,
                })
            })
            .collect::<Result<Vec<_>, HostError>>()?;
        Ok(Seed {
            hostname: wanted.name.to_string(),
            instance_id: vm.to_string(),
            nics,
            user_data: wanted.user_data.clone(),
            ssh_keys: wanted.ssh_keys.clone(),
        })
    }
}

fn base(path: PathBuf, format: &str) -> Result<Base, PrepareError> {
    let format = ImageFormat::from_name(format)
        .ok_or_else(|| PrepareError::Format { format: format.chars().take(40).collect() })?;
    Ok(Base { path, format })
}

/// Those that guests can reach too: not the host's own loopback.
fn name_servers(resolv_conf: &str) -> Vec<Ipv4Addr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok())
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .take(3)
        .collect()
}

impl Disks for HostDisks {
    fn prepare<'a>(
        &'a self,
        vm: VmId,
        wanted: &'a DesiredPresent,
        disk_image: Option<PathBuf>,
    ) -> BoxFuture<'a, Result<DiskFiles, HostError>> {
        self.prepare_disk(vm, wanted, disk_image).boxed()
    }

    fn exists(&self, vm: VmId) -> bool {
        self.disks.disk_path(vm, ROOT).exists()
    }

    fn delete(&self, vm: VmId) -> BoxFuture<'_, Result<(), HostError>> {
        async move { Ok(self.disks.delete_all(vm)?) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_name_servers_that_guests_can_reach_are_told() {
        let text = "search x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n nameserver ::1\n\
                    nameserver 192.0.2.2 # second\nnameserver\n";
        assert_eq!(name_servers(text), [Ipv4Addr::new(192, 0, 2, 1)]);
    }
}
