//! What an agent says to the manager.

use std::time::Duration;

use plimsoll_model::Bytes;
use reqwest::Method;
use tokio::io::AsyncWrite;

use super::{
    error::ClientError,
    transport::{CALL_TIMEOUT, Setup, Transport},
};
use crate::{
    JoinToken,
    cluster::{AgentReport, DesiredHost, JoinRequest, JoinResponse, ReportReply},
    tls::{self, Identity},
};

/// A member's connection to the manager, by mutual TLS.
#[derive(Clone, Debug)]
pub struct ClusterClient {
    transport: Transport,
}

impl ClusterClient {
    /// A client for the agents' port at `address:port`. Nothing is connected yet.
    ///
    /// # Errors
    /// The address or the certificates cannot be read.
    pub fn new(address: &str, ca_pem: &str, identity: &Identity) -> Result<Self, ClientError> {
        let transport = Transport::new(Setup {
            address,
            server_name: Some(tls::MANAGER),
            tls: tls::client_config(ca_pem, Some(identity)),
            token: None,
        })?;
        Ok(Self { transport })
    }

    /// The manager's address as it was given.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.transport.address
    }

    /// Tells what the host observes. `limit` bounds the whole exchange: keep it well below the lease.
    ///
    /// # Errors
    /// No answer, or a refusal. [`ClientError::is_refused`] tells whether the manager's machine
    /// refused the connection.
    pub async fn report(
        &self,
        report: &AgentReport,
        limit: Duration,
    ) -> Result<ReportReply, ClientError> {
        let request = self.transport.request(Method::POST, "/cluster/v1/report").json(report);
        self.transport.json(request, limit).await
    }

    /// What the host should do, once it is newer than generation `after`; `None`: nothing newer came
    /// within `wait` (at most 60 s).
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn desired(
        &self,
        after: u64,
        wait: Duration,
    ) -> Result<Option<DesiredHost>, ClientError> {
        let wait = wait.min(Duration::from_secs(60));
        let path = format!("/cluster/v1/desired?after={after}&wait_ms={}", wait.as_millis());
        let request = self.transport.request(Method::GET, &path);
        self.transport.json_or_nothing(request, wait + Duration::from_secs(10)).await
    }

    /// Carries a file of an image over to `file`, at most `limit` bytes, and tells how many there
    /// were. The caller verifies size and checksum.
    ///
    /// # Errors
    /// No answer, a refusal, more bytes than allowed, or the file cannot be written.
    pub async fn image(
        &self,
        sha256: &str,
        file: &mut (impl AsyncWrite + Unpin),
        limit: Bytes,
    ) -> Result<u64, ClientError> {
        let path = format!("/cluster/v1/images/{sha256}");
        let request = self.transport.request(Method::GET, &path);
        let answer = self.transport.send(request, CALL_TIMEOUT).await?;
        self.transport.clone().copy(answer, file, limit.0).await
    }
}

/// Joins the cluster: the manager at the token's address must show the token's CA. `request.token`
/// is replaced by the token's secret.
///
/// # Errors
/// No answer, a server with another CA, or a refusal (a token that is used up or too old).
pub async fn join(
    token: &JoinToken,
    mut request: JoinRequest,
) -> Result<JoinResponse, ClientError> {
    let transport = Transport::new(Setup {
        address: &token.address,
        server_name: Some(tls::MANAGER),
        tls: tls::pinned_client_config(token.ca_sha256),
        token: None,
    })?;
    request.token.clone_from(&token.secret);
    let joined: JoinResponse = transport
        .json(transport.request(Method::POST, "/v1/join").json(&request), CALL_TIMEOUT)
        .await?;
    let pinned = tls::certificate_sha256(&joined.ca_pem).is_ok_and(|sum| sum == token.ca_sha256);
    if pinned { Ok(joined) } else { Err(ClientError::OtherCa { address: token.address.clone() }) }
}
