//! What the manager asks of one host's agent.

use std::time::Duration;

use plimsoll_model::{HostId, VmId};
use reqwest::Method;

use super::{
    console::Console,
    error::ClientError,
    transport::{ByteStream, CALL_TIMEOUT, Setup, Transport, query},
};
use crate::{
    agent::{ExecRequest, ExecResponse, LogQuery},
    tls::{self, Identity},
};

/// A connection to the agent of one host, by mutual TLS.
#[derive(Clone, Debug)]
pub struct AgentClient {
    transport: Transport,
}

impl AgentClient {
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

    /// Runs a program in the guest.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn exec(&self, vm: VmId, request: &ExecRequest) -> Result<ExecResponse, ClientError> {
        let limit = Duration::from_millis(request.timeout_ms.min(600_000)) + CALL_TIMEOUT;
        let path = format!("/agent/v1/vms/{vm}/exec");
        let builder = self.transport.request(Method::POST, &path).json(request);
        self.transport.json(builder, limit).await
    }

    /// A VM's log, as it comes.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn logs(&self, vm: VmId, which: &LogQuery) -> Result<ByteStream, ClientError> {
        let path = format!("/agent/v1/vms/{vm}/logs");
        let request = query(self.transport.request(Method::GET, &path), which);
        let answer = self.transport.send(request, CALL_TIMEOUT).await?;
        Ok(self.transport.clone().stream(answer, (!which.follow).then_some(CALL_TIMEOUT)))
    }

    /// A VM's console.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn console(&self, vm: VmId) -> Result<Console, ClientError> {
        self.transport.console(&format!("/agent/v1/vms/{vm}/console")).await
    }

    /// What the host can do.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn doctor(&self) -> Result<serde_json::Value, ClientError> {
        let request = self.transport.request(Method::GET, "/agent/v1/doctor");
        self.transport.json(request, CALL_TIMEOUT).await
    }
}
