//! What agents ask: reports of what they observe, and what they should do.

use std::time::Duration;

use plimsoll_api::cluster::{AgentReport, DesiredHost, ReportReply};
use plimsoll_model::HostId;

use crate::{app::AppError, core::Core};

/// Takes a host's report and renews its lease. The answer counts for the lease, so it is to be
/// sent at once.
///
/// # Errors
/// The host is unknown, the report is older than one already taken, or the host is just being
/// fenced; the lease is not renewed then.
pub async fn agent_report(
    core: &Core,
    host: HostId,
    report: AgentReport,
) -> Result<ReportReply, AppError> {
    let _ = (core, host, report);
    todo!()
}

/// What the host should do: as soon as it is newer than `after`, or when `wait` is over.
///
/// # Errors
/// The host is unknown.
pub async fn agent_desired(
    core: &Core,
    host: HostId,
    after: u64,
    wait: Duration,
) -> Result<DesiredHost, AppError> {
    let _ = (core, host, after, wait);
    todo!()
}
