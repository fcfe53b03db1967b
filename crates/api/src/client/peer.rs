//! What the agent of a VM's source asks of its target's: see [`crate::migration`].

use std::time::Duration;

use plimsoll_model::{HostId, VmId};
use reqwest::Method;
use uuid::Uuid;

use super::{
    error::ClientError,
    transport::{Setup, Transport},
};
use crate::{
    migration::{ArrivalPrepared, ArrivalVerdict, PrepareArrival},
    tls::{self, Identity},
};

/// Fetching an image can take minutes.
const PREPARE_LIMIT: Duration = Duration::from_secs(600);
/// Everything else is quick, on a host that is not overloaded.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// A connection to another host's agent, by mutual TLS.
#[derive(Clone, Debug)]
pub struct PeerClient {
    transport: Transport,
}

impl PeerClient {
    /// A client for the agent of `host` at `address:port`: a server that cannot prove to be that
    /// host's is refused. Nothing is connected yet.
    ///
    /// # Errors
    /// The address or the certificates cannot be read.
    pub fn new(
        host: HostId,
        address: &str,
        ca_pem: &str,
        identity: &Identity,
    ) -> Result<Self, ClientError> {
        let transport = Transport::new(Setup {
            address,
            server_name: Some(&host.to_string()),
            tls: tls::client_config(ca_pem, Some(identity)),
            token: None,
        })?;
        Ok(Self { transport })
    }

    /// Has QEMU made ready for a machine. May be repeated.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn prepare(
        &self,
        vm: VmId,
        id: Uuid,
        machine: &PrepareArrival,
    ) -> Result<ArrivalPrepared, ClientError> {
        let builder = self.transport.request(Method::POST, &path(vm, id, "prepare")).json(machine);
        self.transport.json(builder, PREPARE_LIMIT).await
    }

    /// Has the disk's export closed: both disks are equal.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn close_disk(&self, vm: VmId, id: Uuid) -> Result<(), ClientError> {
        let builder = self.transport.request(Method::POST, &path(vm, id, "close-disk"));
        self.transport.json(builder, ASK_LIMIT).await
    }

    /// Lets the VM run there. May be repeated; the answer is for good.
    ///
    /// # Errors
    /// No answer: then the VM may run there.
    pub async fn go(&self, vm: VmId, id: Uuid) -> Result<ArrivalVerdict, ClientError> {
        let builder = self.transport.request(Method::POST, &path(vm, id, "go"));
        self.transport.json(builder, ASK_LIMIT).await
    }

    /// Gives the move up there, unless the VM runs there already. May be repeated.
    ///
    /// # Errors
    /// No answer.
    pub async fn abandon(&self, vm: VmId, id: Uuid) -> Result<ArrivalVerdict, ClientError> {
        let builder = self.transport.request(Method::POST, &path(vm, id, "abandon"));
        self.transport.json(builder, ASK_LIMIT).await
    }
}

fn path(vm: VmId, id: Uuid, verb: &str) -> String {
    format!("/peer/v1/vms/{vm}/migrations/{id}/{verb}")
}
