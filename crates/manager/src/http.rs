//! The HTTP face of the manager: unpack a request, find out who asks, call one function of
//! [`crate::app`], pack the answer. Nothing is decided here.
//!
//! ```text
//!   users    TLS, or the unix socket      users.rs     /v1/..., /healthz, /metrics
//!   agents   mutual TLS                   agents.rs    /cluster/v1/...
//!
//!   listener   accepts, shakes hands in a task of its own, bounds connections
//!     frame    request id, panics, time limit, load limit, metrics, one form of errors
//!       auth   bearer token -> Caller, rates           (users)
//!       agents certificate -> HostId                   (agents)
//!         handler
//! ```
//!
//! Every answer that is not a success carries an [`plimsoll_api::ErrorBody`] with the request's id,
//! also for unknown paths, methods, bodies that are no JSON, and panics.

pub(crate) mod agents;
pub(crate) mod error;
pub(crate) mod extract;
pub(crate) mod frame;
pub(crate) mod listener;
pub mod openapi;
pub(crate) mod users;

use std::sync::Arc;

use crate::{
    auth::Limiter, ca::CertificateAuthority, core::Core, images::BlobStore, metrics::Metrics,
    proxy::AgentProxy,
};

/// What handlers need. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Services(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) core: Core,
    pub(crate) ca: CertificateAuthority,
    pub(crate) blobs: BlobStore,
    /// Held while a file of an image becomes needed or is removed because it no longer is.
    pub(crate) blobs_in_use: tokio::sync::Mutex<()>,
    pub(crate) agents: AgentProxy,
    pub(crate) metrics: Metrics,
    pub(crate) limiter: Limiter,
    /// Where users and joining hosts find the manager: `host:port`. `None`: only by the socket.
    pub(crate) api_address: Option<String>,
    /// Where members find it.
    pub(crate) cluster_address: String,
    /// Becomes true when the manager shuts down: streams end then.
    pub(crate) stopping: tokio::sync::watch::Receiver<bool>,
}

impl Services {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }
}

impl std::ops::Deref for Services {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
