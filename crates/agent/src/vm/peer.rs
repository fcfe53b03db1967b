//! What another host's agent asks of a VM's task here: see [`plimsoll_api::migration`].

use plimsoll_api::migration::{ArrivalPrepared, ArrivalVerdict, PrepareArrival};
use plimsoll_model::HostId;
use thiserror::Error;
use tokio::sync::oneshot;
use uuid::Uuid;

/// A question of a VM's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerRequest {
    /// Make QEMU ready to take this machine.
    Prepare(Box<PrepareArrival>),
    /// The disk is here: its export is closed.
    CloseDisk,
    /// The source stands still with all sent: let the VM run.
    Go,
    /// Do not, ever, unless it does already.
    Abandon,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAnswer {
    /// QEMU waits for memory.
    Prepared(ArrivalPrepared),
    /// It is so.
    Done,
    /// What became of the move.
    Verdict(ArrivalVerdict),
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum PeerError {
    /// No such move is expected here, from that host.
    #[error("no such move is expected here: the manager has not announced it, or takes it back")]
    NotExpected,
    /// It may be answered in a moment.
    #[error("the VM's place here is not ready to answer yet")]
    NotNow,
    /// It was tried, and failed for good.
    #[error("{message}")]
    Failed { message: String },
}

/// A question on its way to a VM's task.
#[derive(Debug)]
pub(super) struct PeerCall {
    pub from: HostId,
    pub id: Uuid,
    pub request: PeerRequest,
    pub reply: oneshot::Sender<Result<PeerAnswer, PeerError>>,
}
