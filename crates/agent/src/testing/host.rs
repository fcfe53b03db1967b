//! A host that can do nothing: for tests in which no VM runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use plimsoll_api::{cluster::DesiredPresent, tls::Identity};
use plimsoll_model::{BitsPerSecond, ImageFile, Interface, VmId};

use crate::ksm::Deduplication;
use crate::vm::{
    DiskFiles, Disks, Environment, HostError, Images, Networks, QemuUser, Tap, argv::Accelerator,
};

struct Nothing;

fn no<'a, T>() -> BoxFuture<'a, Result<T, HostError>>
where
    T: Send + 'a,
{
    async { Err("this host can do nothing".into()) }.boxed()
}

impl Disks for Nothing {
    fn prepare<'a>(
        &'a self,
        _: VmId,
        _: &'a DesiredPresent,
        _: Option<PathBuf>,
    ) -> BoxFuture<'a, Result<DiskFiles, HostError>> {
        no()
    }

    fn exists(&self, _: VmId) -> bool {
        false
    }

    fn delete(&self, _: VmId) -> BoxFuture<'_, Result<(), HostError>> {
        async { Ok(()) }.boxed()
    }
}

impl Networks for Nothing {
    fn attach<'a>(
        &'a self,
        _: VmId,
        _: usize,
        _: &'a Interface,
    ) -> BoxFuture<'a, Result<Tap, HostError>> {
        no()
    }

    fn limit(
        &self,
        _: VmId,
        _: usize,
        _: BitsPerSecond,
    ) -> BoxFuture<'_, Result<BitsPerSecond, HostError>> {
        no()
    }

    fn detach(&self, _: VmId) -> BoxFuture<'_, Result<(), HostError>> {
        async { Ok(()) }.boxed()
    }
}

impl Images for Nothing {
    fn file<'a>(&'a self, _: &'a ImageFile) -> BoxFuture<'a, Result<PathBuf, HostError>> {
        no()
    }
}

pub(crate) fn environment(directory: &Path) -> Environment {
    Environment {
        directory: directory.join("vms"),
        guard_command: vec!["/nonexistent/guard".into()],
        reach: crate::vm::Reach {
            identity: Identity { certificate_pem: String::new(), key_pem: String::new() },
            ca_pem: String::new(),
            listen: std::net::Ipv4Addr::LOCALHOST.into(),
            tunnel_command: Vec::new(),
        },
        qemu: "/nonexistent/qemu".into(),
        accelerator: Accelerator::Tcg,
        user: QemuUser::Own,
        lease_file: directory.join("lease.json"),
        max_vcpus: 1,
        cpu_groups: None,
        memory_groups: None,
        disks: Arc::new(Nothing),
        networks: Arc::new(Nothing),
        images: Arc::new(Nothing),
        deduplication: Deduplication::off(),
    }
}
