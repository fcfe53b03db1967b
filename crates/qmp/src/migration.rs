//! Moving a machine: QEMU's migration, mirrors of disks, and exports over NBD, as of QEMU 10.0.

use std::os::fd::OwnedFd;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::connection::Qmp;
use crate::error::QmpError;

/// How a migration stands. Statuses that QEMU learns later are [`Self::Other`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MigrationStatus {
    /// There was none.
    None,
    Setup,
    Cancelling,
    Cancelled,
    Active,
    PostcopyActive,
    PostcopyPaused,
    PostcopyRecover,
    Completed,
    Failed,
    /// The machine stands still, and waits for `migrate-continue`.
    PreSwitchover,
    /// The state of the devices is sent.
    Device,
    Other(String),
}

impl MigrationStatus {
    fn of(text: &str) -> Self {
        match text {
            "" | "none" => Self::None,
            "setup" | "wait-unplug" => Self::Setup,
            "cancelling" => Self::Cancelling,
            "cancelled" => Self::Cancelled,
            "active" => Self::Active,
            "postcopy-active" => Self::PostcopyActive,
            "postcopy-paused" => Self::PostcopyPaused,
            "postcopy-recover" | "postcopy-recover-setup" => Self::PostcopyRecover,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            "pre-switchover" => Self::PreSwitchover,
            "device" => Self::Device,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// How the copy of memory stands. What QEMU left out is zero.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct MigrationRam {
    /// Bytes in all.
    pub total: u64,
    /// Bytes left in this pass.
    pub remaining: u64,
    /// Bytes that were sent.
    pub transferred: u64,
    /// Megabits a second that are sent.
    pub mbps: f64,
    /// Pages a second that the guest writes to.
    pub dirty_pages_rate: u64,
    /// Passes that were begun.
    pub dirty_sync_count: u64,
    /// Bytes of a page.
    pub page_size: u64,
}

impl MigrationRam {
    /// Bytes a second that the guest writes to for the first time.
    #[must_use]
    pub const fn dirty_bytes_rate(&self) -> u64 {
        self.dirty_pages_rate.saturating_mul(self.page_size)
    }
}

/// The answer to `query-migrate`.
#[derive(Debug, Clone, PartialEq)]
pub struct MigrationInfo {
    pub status: MigrationStatus,
    pub ram: MigrationRam,
    /// Why it failed.
    pub error: Option<String>,
}

/// A block job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BlockJob {
    /// Its id.
    pub device: String,
    /// What there is to do, in bytes.
    pub len: u64,
    /// What is done.
    pub offset: u64,
    /// A mirror: both sides are equal, and stay so.
    pub ready: bool,
    /// Why it failed.
    pub error: Option<String>,
}

/// All fallible methods here fail as [`Qmp::execute`] does, and when the answer has a shape that
/// they cannot read.
#[expect(clippy::missing_errors_doc, reason = "the same for each; said once above")]
impl Qmp {
    /// Gives QEMU a descriptor, which it then finds as `fd:NAME`. One of that name that it had is
    /// closed.
    pub async fn send_descriptor(&self, name: &str, descriptor: OwnedFd) -> Result<(), QmpError> {
        self.execute_with("getfd", json!({"fdname": name}), descriptor).await.map(drop)
    }

    /// The machine's type with its version, such as `pc-q35-10.0`.
    pub async fn query_machine_type(&self) -> Result<String, QmpError> {
        let kind = self.qom_get("/machine", "type").await?;
        let kind = kind.as_str().unwrap_or_default();
        Ok(kind.strip_suffix("-machine").unwrap_or(kind).to_owned())
    }

    pub async fn migrate_set_capabilities(
        &self,
        capabilities: &[(&str, bool)],
    ) -> Result<(), QmpError> {
        let capabilities: Vec<Value> = capabilities
            .iter()
            .map(|(name, state)| json!({"capability": name, "state": state}))
            .collect();
        let arguments = json!({"capabilities": capabilities});
        self.execute("migrate-set-capabilities", arguments).await.map(drop)
    }

    pub async fn migrate_set_parameters(&self, parameters: Value) -> Result<(), QmpError> {
        self.execute("migrate-set-parameters", parameters).await.map(drop)
    }

    /// Begins to send the machine.
    pub async fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        self.execute("migrate", json!({"uri": uri})).await.map(drop)
    }

    /// Begins to wait for a machine; QEMU was started with `-incoming defer`.
    pub async fn migrate_incoming(&self, uri: &str) -> Result<(), QmpError> {
        self.execute("migrate-incoming", json!({"uri": uri})).await.map(drop)
    }

    pub async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.execute("migrate_cancel", Value::Null).await.map(drop)
    }

    /// Goes on from [`MigrationStatus::PreSwitchover`].
    pub async fn migrate_continue(&self) -> Result<(), QmpError> {
        self.execute("migrate-continue", json!({"state": "pre-switchover"})).await.map(drop)
    }

    /// Lets the machine run on the target before all of its memory is there.
    pub async fn migrate_start_postcopy(&self) -> Result<(), QmpError> {
        self.execute("migrate-start-postcopy", Value::Null).await.map(drop)
    }

    pub async fn query_migrate(&self) -> Result<MigrationInfo, QmpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Answer {
            #[serde(default)]
            status: String,
            #[serde(default)]
            ram: MigrationRam,
            error_desc: Option<String>,
        }
        let answer: Answer = self.query("query-migrate", Value::Null).await?;
        let status = MigrationStatus::of(&answer.status);
        Ok(MigrationInfo { status, ram: answer.ram, error: answer.error_desc })
    }

    /// Has the network told where the machine is now.
    pub async fn announce_self(&self) -> Result<(), QmpError> {
        let rounds = json!({"initial": 50, "max": 550, "rounds": 5, "step": 100});
        self.execute("announce-self", rounds).await.map(drop)
    }

    /// Serves NBD at a listening socket that QEMU was given under this name, to one client.
    pub async fn nbd_server_start(&self, descriptor: &str) -> Result<(), QmpError> {
        let address = json!({"type": "fd", "data": {"str": descriptor}});
        self.execute("nbd-server-start", json!({"addr": address, "max-connections": 1}))
            .await
            .map(drop)
    }

    /// Exports a node for writing.
    pub async fn nbd_export(&self, node: &str, name: &str) -> Result<(), QmpError> {
        let export = json!({"type": "nbd", "id": name, "node-name": node, "name": name,
            "writable": true});
        self.execute("block-export-add", export).await.map(drop)
    }

    /// Ends the NBD server and all of its exports.
    pub async fn nbd_server_stop(&self) -> Result<(), QmpError> {
        self.execute("nbd-server-stop", Value::Null).await.map(drop)
    }

    /// Copies what the top image of `device` has to `target`, and from then on every write to both,
    /// at most `speed` bytes a second (0: no limit).
    pub async fn blockdev_mirror(
        &self,
        job: &str,
        device: &str,
        target: &str,
        speed: u64,
    ) -> Result<(), QmpError> {
        let arguments = json!({"job-id": job, "device": device, "target": target, "sync": "top",
            "copy-mode": "write-blocking", "speed": speed});
        self.execute("blockdev-mirror", arguments).await.map(drop)
    }

    pub async fn query_block_jobs(&self) -> Result<Vec<BlockJob>, QmpError> {
        self.query("query-block-jobs", Value::Null).await
    }

    /// Ends a job: a mirror that is ready without `force` keeps what it has copied, and both sides
    /// are equal at that instant.
    pub async fn block_job_cancel(&self, job: &str, force: bool) -> Result<(), QmpError> {
        self.execute("block-job-cancel", json!({"device": job, "force": force})).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_known_or_kept() {
        assert_eq!(MigrationStatus::of("pre-switchover"), MigrationStatus::PreSwitchover);
        assert_eq!(MigrationStatus::of(""), MigrationStatus::None);
        assert_eq!(MigrationStatus::of("new"), MigrationStatus::Other("new".to_owned()));
    }

    #[test]
    fn a_rate_is_pages_of_a_size() {
        let ram: MigrationRam =
            serde_json::from_str(r#"{"dirty-pages-rate": 10, "page-size": 4096, "mbps": 8.5}"#)
                .unwrap();
        assert_eq!((ram.dirty_bytes_rate(), ram.total), (40_960, 0));
    }
}
