//! The loop with the manager: what is wanted comes in, what is observed goes out.
//!
//! ```text
//!   manager --GET desired (long poll)--> fetcher --watch (latest wins)--> applier --want--> VMs
//!      ^                                    ^ refetch from 0                 | ensure --> networks
//!      |                                    |                                v
//!      +------------POST report-------- reporter <------ observed, changes --+
//!                                           |
//!                                           +--> lease file --> guards
//! ```
//!
//! - **Level-triggered.** The whole of what is wanted is applied, again and again; a document that
//!   comes late, twice or not at all does no harm.
//! - **One apply at a time**, which only hands wishes to the VMs' own tasks: a VM or network that
//!   fails is tried again and keeps nobody waiting.
//! - **Without a manager** everything goes on. The last document is on disk, so that an agent that
//!   restarts alone knows its networks and what it was told to remove.
//! - **After a gap in the lease** everything heard before is stale: the document is fetched anew, and
//!   only wishes asked for after the gap start VMs (see [`crate::vm::lease`]).
//! - **Bounded**: one report and one fetch at a time, each with a limit, pauses that grow up to
//!   [`backoff::LONGEST`], at most one report each [`report::SHORTEST_PERIOD`].

mod apply;
mod backoff;
mod fetch;
mod report;
mod state;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use plimsoll_api::{
    ClusterClient,
    cluster::{DesiredHost, DesiredNetwork, DesiredVm, ObservedVm},
};
use plimsoll_model::HostSpec;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    lease::LeaseRenewer,
    telemetry::UsageSampler,
    vm::{
        BootTime, HostError, LeaseError, LeaseKeeper,
        files::{self, FileError},
    },
};

use self::{apply::Applier, fetch::Fetcher, report::Reporter, state::LinkState};

/// Why the link could not be set up.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The kernel's boot id is not readable.
    #[error("cannot read the kernel's boot id")]
    BootId(#[source] std::io::Error),
    /// The lease could not be opened.
    #[error("cannot open the host's lease")]
    Lease(#[source] LeaseError),
    /// What is remembered of the manager could not be read.
    #[error("cannot read what is remembered of the manager")]
    State(#[source] FileError),
}

/// What the link needs of the VMs.
pub trait VmSet: Send + Sync + 'static {
    /// Hands on all that is wanted, as it was when asked for at `asked_at`. Returns at once: each
    /// VM's own task makes it so, and ignores what is older than what it knows.
    fn want(&self, wishes: &[DesiredVm], asked_at: BootTime);

    /// All VMs of this host, and those that are to be absent and are.
    fn observed(&self) -> Vec<ObservedVm>;

    /// Changes whenever what is observed does.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// What the link needs of the networks.
pub trait NetworkSet: Send + Sync + 'static {
    /// Takes note of the networks that are wanted, before any VM on them is. Returns at once.
    ///
    /// # Errors
    /// They could not be remembered for the next agent.
    fn know(&self, networks: &[DesiredNetwork]) -> Result<(), HostError>;

    /// Makes the wanted networks that VMs here use so, and removes those that are no longer wanted
    /// and that no VM uses. Tells what failed, by network.
    fn settle(&self) -> BoxFuture<'_, Vec<(u32, HostError)>>;
}

/// A document of what is wanted, with the moment at which it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) desired: Arc<DesiredHost>,
    pub(crate) asked_at: BootTime,
}

/// What the parts of the link tell each other.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The newest document. `None`: there has never been one.
    pub(crate) wish: watch::Sender<Option<Wish>>,
    /// Counts the reasons for fetching from generation 0.
    pub(crate) refetch: watch::Sender<u64>,
    /// The generation of the document that was handed on last; 0 before the first.
    pub(crate) applied: watch::Sender<u64>,
}

/// Everything that the link works with.
pub struct Link {
    /// To the manager.
    pub client: ClusterClient,
    /// The VMs.
    pub vms: Arc<dyn VmSet>,
    /// The networks.
    pub networks: Arc<dyn NetworkSet>,
    /// What the host is, as it changes.
    pub spec: watch::Receiver<HostSpec>,
    /// Measures how busy the host is.
    pub usage: UsageSampler,
    /// The lease's file, which the guards watch.
    pub lease_path: PathBuf,
    /// Where what is remembered of the manager is kept.
    pub state_path: PathBuf,
}

impl VmSet for crate::vm::Vms {
    fn want(&self, wishes: &[DesiredVm], asked_at: BootTime) {
        Self::want(self, wishes, asked_at);
    }

    fn observed(&self) -> Vec<ObservedVm> {
        Self::observed(self)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        Self::changes(self)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Link {
    /// Goes on until `shutdown`. VMs and networks stay as they are then.
    ///
    /// # Errors
    /// [`LinkError`]; once it runs, it goes on whatever fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), LinkError> {
        let boot_id = files::boot_id().map_err(LinkError::BootId)?;
        let keeper = LeaseKeeper::open(self.lease_path).map_err(LinkError::Lease)?;
        let state = LinkState::load(self.state_path).map_err(LinkError::State)?;
        let first = state.wish(&boot_id);
        let shared = Arc::new(Shared {
            wish: watch::Sender::new(first),
            refetch: watch::Sender::new(0),
            applied: watch::Sender::new(0),
        });
        let lease = LeaseRenewer::new(keeper, state.granted());
        let state = Arc::new(Mutex::new(state));
        let applier = Applier::new(Arc::clone(&shared), Arc::clone(&self.vms), self.networks);
        let fetcher = Fetcher::new(
            self.client.clone(),
            Arc::clone(&shared),
            Arc::clone(&state),
            boot_id.clone(),
        );
        let reporter = Reporter {
            client: self.client,
            vms: self.vms,
            spec: self.spec,
            usage: self.usage,
            shared,
            state,
            lease,
            boot_id,
            went_back: None,
            behind_since: None,
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = applier.run() => {}
            () = fetcher.run() => {}
            () = reporter.run() => {}
        }
        Ok(())
    }
}

/// How long the manager may hold back its answer to the question for what is wanted.
const LONG_POLL: Duration = Duration::from_secs(30);
