//! The copying itself: the disk by a mirror over NBD, memory by QEMU's migration, both through the
//! tunnel.
//!
//! The order at the switch is QEMU's demand (10.0): the mirror ends while the VM stands still at
//! `pre-switchover`, then the target's export goes, and only then the migration goes on, or the
//! target's block devices refuse to be activated.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use plimsoll_api::client::PeerClient;
use plimsoll_api::migration::{
    ArrivalPrepared, MigrationFigures, MigrationProgress, MigrationStage, PrepareArrival,
};
use plimsoll_model::{Bytes, BytesPerSecond};
use plimsoll_qmp::{
    Event, EventKind, EventReceiver, MigrationInfo, MigrationStatus, Qmp, QmpError,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::said;
use super::task::{Stop, Task, millis, next_news};
use crate::vm::argv::{DISK_ID, EXPORT_NAME, ROOT_NODE, THROTTLE_PATH, throttle_limits};
use crate::vm::forecast::{self, Copying, Step};
use crate::vm::tunnel;

/// The mirror, by the names of its job and of its far end.
const JOB: &str = "migration-disk";
const FAR_NODE: &str = "migration-far";
/// Names under which QEMU finds its ends of the tunnel.
const MEMORY: &str = "migration-memory";
const DISK: &str = "migration-disk";
/// Between two looks: while the VM runs, and while it stands still.
const LOOK: Duration = Duration::from_millis(50);
const QUICK_LOOK: Duration = Duration::from_millis(2);
/// A mirror ends within this once it is told to.
const MIRROR_END_LIMIT: Duration = Duration::from_secs(20);
/// The source's QEMU may wait for its target so long after the switch.
const REST_LIMIT: Duration = Duration::from_secs(3600);

/// A copy that is under way.
pub(super) struct Copy {
    qmp: Qmp,
    post_copy: PostCopy,
    copies_disk: bool,
    /// QEMU was told to go on at the switch; it says a moment longer that it waits.
    goes_on: bool,
    /// Our end of the memory's channel, until QEMU has it.
    memory: Option<OwnedFd>,
    disk: Option<OwnedFd>,
    figures: MigrationFigures,
    stopped_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PostCopy {
    Forbidden,
    Allowed,
    Asked,
    Begun,
}

impl Copy {
    /// Opens the tunnel.
    pub(super) async fn begin(
        task: &Task,
        qmp: &Qmp,
        arrival: &PrepareArrival,
        prepared: &ArrivalPrepared,
    ) -> Result<Self, Stop> {
        let pair = || {
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|error| Stop::Why(said("cannot make a channel", &error)))
        };
        let (memory, far_memory) = pair()?;
        let (disk, far_disk) = if arrival.copy_disk {
            let (near, far) = pair()?;
            (Some(near), Some(far))
        } else {
            (None, None)
        };
        let departure = &task.record.departure;
        let opened = tunnel::open_to(
            &task.environment,
            &task.directory,
            tunnel::Far {
                host: departure.to,
                agent: &departure.address,
                port: prepared.tunnel_port,
            },
            far_memory,
            far_disk,
        );
        let opened = tokio::select! {
            opened = opened => opened,
            () = task.cancel.cancelled() => return Err(Stop::Why("cancelled".to_owned())),
        };
        opened.map_err(|error| Stop::Why(said("cannot open the tunnel to the target", &error)))?;
        let may_post_copy = arrival.post_copy && prepared.post_copy;
        Ok(Self {
            qmp: qmp.clone(),
            post_copy: if may_post_copy { PostCopy::Allowed } else { PostCopy::Forbidden },
            copies_disk: arrival.copy_disk,
            goes_on: false,
            memory: Some(memory),
            disk,
            figures: MigrationFigures::default(),
            stopped_at: None,
        })
    }

    fn refused(&self, what: &'static str) -> impl Fn(QmpError) -> Stop + use<> {
        let qmp = self.qmp.clone();
        move |error| Stop::qemu(&qmp, what, &error)
    }

    /// Copies the disk while the VM runs; what is written from then on goes to both.
    pub(super) async fn disk(&mut self, task: &Task) -> Result<(), Stop> {
        task.stage(MigrationStage::CopyingDisk, None);
        let failed = self.refused("cannot copy the disk");
        if let Some(disk) = self.disk.take() {
            self.qmp.send_descriptor(DISK, disk).await.map_err(&failed)?;
        }
        let node = json!({"driver": "nbd", "node-name": FAR_NODE, "export": EXPORT_NAME,
            "server": {"type": "fd", "str": DISK}, "discard": "unmap"});
        self.qmp.blockdev_add(node).await.map_err(&failed)?;
        // The mirror reads under the throttle: that would cost the guest its rate, and the move its
        // time. The guest stays held, at its device.
        let resources = &task.present.resources;
        let held = json!({"id": format!("/machine/peripheral/{DISK_ID}/virtio-backend"),
            "bps": resources.disk_bandwidth.get(), "bps_rd": 0, "bps_wr": 0,
            "iops": resources.disk_iops.get(), "iops_rd": 0, "iops_wr": 0});
        self.qmp.execute("block_set_io_throttle", held).await.map_err(&failed)?;
        let free = throttle_limits(BytesPerSecond(0), plimsoll_model::IoPerSecond(0));
        self.qmp.qom_set(THROTTLE_PATH, "limits", &free).await.map_err(&failed)?;
        let speed = task.record.departure.limits.bandwidth.get();
        self.qmp.blockdev_mirror(JOB, ROOT_NODE, FAR_NODE, speed).await.map_err(&failed)?;
        let mut pause = QUICK_LOOK;
        loop {
            self.may_go_on(task)?;
            let jobs = self.qmp.query_block_jobs().await.map_err(&failed)?;
            let Some(job) = jobs.iter().find(|job| job.device == JOB) else {
                return Err(Stop::Why("the copy of the disk broke off".to_owned()));
            };
            self.figures.disk_sent = Bytes(job.offset);
            task.say.send_modify(|said| {
                said.progress.disk_total = Bytes(job.len);
                said.progress.disk_left = Bytes(job.len.saturating_sub(job.offset));
                said.progress.elapsed_ms = millis(task.began.elapsed());
            });
            if job.ready {
                return Ok(());
            }
            // Small disks are done in no time, large ones are not asked after all the time.
            sleep(pause).await;
            pause = (pause * 2).min(LOOK);
        }
    }

    /// Whether a user or the time has ended it.
    fn may_go_on(&self, task: &Task) -> Result<(), Stop> {
        if task.cancel.is_cancelled() {
            return Err(Stop::Why("cancelled".to_owned()));
        }
        let deadline = task.record.departure.limits.deadline_ms;
        if millis(task.began.elapsed()) >= deadline && self.post_copy == PostCopy::Forbidden {
            let why = format!("it was not done within {} s", deadline / 1000);
            return Err(Stop::Why(why));
        }
        Ok(())
    }

    pub(super) async fn begin_memory(&mut self, task: &Task) -> Result<(), Stop> {
        task.stage(MigrationStage::CopyingMemory, None);
        let failed = self.refused("cannot begin to copy memory");
        let limits = &task.record.departure.limits;
        let post_copy = self.post_copy == PostCopy::Allowed;
        self.qmp
            .migrate_set_capabilities(&[
                ("events", true),
                ("pause-before-switchover", self.copies_disk),
                ("postcopy-ram", post_copy),
            ])
            .await
            .map_err(&failed)?;
        let bandwidth = match limits.bandwidth.get() {
            0 => i64::MAX as u64,
            limit => limit,
        };
        // QEMU reckons with the pages that are left, and stops the VM as soon as they fit. Device
        // state, the disk's end and the word to go come on top, and the guest goes on writing.
        let downtime = (limits.max_downtime_ms / 2).max(1);
        let parameters = json!({"max-bandwidth": bandwidth, "downtime-limit": downtime});
        self.qmp.migrate_set_parameters(parameters).await.map_err(&failed)?;
        if let Some(memory) = self.memory.take() {
            self.qmp.send_descriptor(MEMORY, memory).await.map_err(&failed)?;
        }
        self.qmp.migrate(&format!("fd:{MEMORY}")).await.map_err(&failed)
    }

    /// Copies memory until all of it is there, or the VM may run before.
    pub(super) async fn memory(
        &mut self,
        task: &Task,
        peer: &PeerClient,
        events: &mut EventReceiver,
    ) -> Result<(), Stop> {
        let failed = self.refused("cannot ask how far the migration is");
        let mut look = LOOK;
        loop {
            if let Some(event) = next_news(events, look).await {
                self.hear(&event);
            }
            let info = self.qmp.query_migrate().await.map_err(&failed)?;
            while let Ok(event) = events.try_recv() {
                self.hear(&event);
            }
            if self.stopped_at.is_some() {
                look = QUICK_LOOK;
            }
            self.note(task, &info);
            match &info.status {
                MigrationStatus::Completed => return Ok(()),
                MigrationStatus::PostcopyActive => {
                    self.post_copy = PostCopy::Begun;
                    return Ok(());
                }
                MigrationStatus::Failed | MigrationStatus::Cancelled | MigrationStatus::None => {
                    let why = info.error.unwrap_or_else(|| "no reason is given".to_owned());
                    return Err(Stop::Why(format!("QEMU gave the migration up: {why}")));
                }
                MigrationStatus::PreSwitchover if !self.goes_on => {
                    look = QUICK_LOOK;
                    task.stage(MigrationStage::Switching, None);
                    self.let_disk_go(task, peer).await?;
                }
                MigrationStatus::Active => self.steer(task, &info).await?,
                _ => {}
            }
        }
    }

    /// Notes since when the VM stands still, by QEMU's own clock.
    fn hear(&mut self, event: &Event) {
        if event.kind() == EventKind::Stop {
            let plimsoll_qmp::Timestamp { seconds, microseconds } = event.timestamp;
            let since = Duration::new(
                u64::try_from(seconds).unwrap_or(0),
                u32::try_from(microseconds).unwrap_or(0).saturating_mul(1000),
            );
            self.stopped_at = Some(since);
        }
    }

    /// Decides what is to be done about a copy that takes long.
    async fn steer(&mut self, task: &Task, info: &MigrationInfo) -> Result<(), Stop> {
        if self.post_copy == PostCopy::Asked {
            return Ok(());
        }
        if task.cancel.is_cancelled() {
            return Err(Stop::Why("cancelled".to_owned()));
        }
        let copying = copying(info, task.began.elapsed());
        let limits = &task.record.departure.limits;
        match forecast::step(&copying, limits, self.post_copy == PostCopy::Allowed) {
            Step::GoOn => Ok(()),
            Step::PostCopy => {
                let begun = self.qmp.migrate_start_postcopy().await;
                begun.map_err(self.refused("cannot let memory follow"))?;
                self.post_copy = PostCopy::Asked;
                Ok(())
            }
            Step::GiveUp => {
                let mib = |rate: f64| format!("{:.0} MiB/s", rate / 1_048_576.0);
                Err(Stop::Why(format!(
                    "not done within {} s: its guest writes {} to memory and {} can be sent; allow \
                     post-copy, a longer downtime or deadline, or more bandwidth",
                    limits.deadline_ms / 1000,
                    mib(copying.dirty_rate),
                    mib(copying.bandwidth),
                )))
            }
        }
    }

    fn note(&mut self, task: &Task, info: &MigrationInfo) {
        let elapsed = task.began.elapsed();
        let copying = copying(info, elapsed);
        let limits = &task.record.departure.limits;
        let ahead = forecast::forecast(&copying, Duration::from_millis(limits.max_downtime_ms));
        self.figures.memory_sent = Bytes(info.ram.transferred);
        self.figures.passes = info.ram.dirty_sync_count;
        let progress = MigrationProgress {
            memory_total: Bytes(info.ram.total),
            memory_left: Bytes(info.ram.remaining),
            dirty_rate: BytesPerSecond(info.ram.dirty_bytes_rate()),
            passes: info.ram.dirty_sync_count,
            elapsed_ms: millis(elapsed),
            predicted_total_ms: ahead.left.map_or(0, |left| millis(elapsed.saturating_add(left))),
            predicted_downtime_ms: millis(ahead.downtime),
            ..MigrationProgress::default()
        };
        task.say.send_modify(|said| {
            let (disk_total, disk_left) = (said.progress.disk_total, said.progress.disk_left);
            said.progress = MigrationProgress { disk_total, disk_left, ..progress };
        });
    }

    /// Both disks are equal, and stay so while the VM stands still: the mirror ends.
    async fn let_disk_go(&mut self, task: &Task, peer: &PeerClient) -> Result<(), Stop> {
        if self.copies_disk {
            let failed = self.refused("cannot end the copy of the disk");
            self.qmp.block_job_cancel(JOB, false).await.map_err(&failed)?;
            until_job_is_gone(&self.qmp).await?;
            peer.close_disk(task.vm, task.record.departure.id)
                .await
                .map_err(|error| Stop::Why(said("the target keeps its disk's export", &error)))?;
            self.copies_disk = false;
        }
        let goes_on = self.qmp.migrate_continue().await;
        goes_on.map_err(self.refused("the migration does not go on"))?;
        self.goes_on = true;
        Ok(())
    }

    pub(super) const fn is_post_copy(&self) -> bool {
        matches!(self.post_copy, PostCopy::Begun)
    }

    /// When the VM stood still, since the beginning of 1970.
    pub(super) const fn stopped_at(&self) -> Option<Duration> {
        self.stopped_at
    }

    pub(super) const fn figures(&self) -> MigrationFigures {
        self.figures
    }

    /// The VM runs on the target: waits until it has the rest of its memory.
    pub(super) async fn rest(&self, task: &Task, figures: &mut MigrationFigures) {
        follow_post_copy(task, &self.qmp, figures).await;
    }
}

/// Waits for the end of a post-copy, if there is one. Nothing can be taken back any more: should QEMU
/// end here, the VM over there is lost, and its host will say so.
pub(super) async fn follow_post_copy(task: &Task, qmp: &Qmp, figures: &mut MigrationFigures) {
    let deadline = Instant::now() + REST_LIMIT;
    while let Ok(info) = qmp.query_migrate().await {
        match info.status {
            MigrationStatus::PostcopyActive
            | MigrationStatus::PostcopyPaused
            | MigrationStatus::PostcopyRecover
            | MigrationStatus::Device => {}
            _ => return,
        }
        figures.post_copied = true;
        figures.memory_sent = Bytes(info.ram.transferred);
        task.say.send_modify(|said| {
            said.stage = MigrationStage::PostCopy;
            said.progress.memory_left = Bytes(info.ram.remaining);
            said.progress.elapsed_ms = millis(task.began.elapsed());
        });
        if Instant::now() >= deadline {
            tracing::warn!(vm = %task.vm, "its memory does not reach the target; it is let go");
            return;
        }
        sleep(LOOK).await;
    }
}

/// Ends whatever of the disk's copy there is, and gives the disk its limits back.
pub(super) async fn end_disk_copy(task: &Task, qmp: &Qmp) -> Result<(), Stop> {
    let ask = |error: QmpError| Stop::qemu(qmp, "cannot end the copy of the disk", &error);
    if !task.record.departure.copy_disk {
        return Ok(());
    }
    let jobs = qmp.query_block_jobs().await.map_err(ask)?;
    if jobs.iter().any(|job| job.device == JOB) {
        drop(qmp.block_job_cancel(JOB, true).await);
        until_job_is_gone(qmp).await?;
    }
    // It is not there if the copy never began.
    drop(qmp.blockdev_del(FAR_NODE).await);
    let resources = &task.present.resources;
    let limits = throttle_limits(resources.disk_bandwidth, resources.disk_iops);
    qmp.qom_set(THROTTLE_PATH, "limits", &limits).await.map_err(ask)?;
    let none = json!({"id": format!("/machine/peripheral/{DISK_ID}/virtio-backend"),
        "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0});
    let freed: Result<Value, QmpError> = qmp.execute("block_set_io_throttle", none).await;
    freed.map(drop).map_err(ask)
}

async fn until_job_is_gone(qmp: &Qmp) -> Result<(), Stop> {
    let ask = |error: QmpError| Stop::qemu(qmp, "cannot end the copy of the disk", &error);
    let deadline = Instant::now() + MIRROR_END_LIMIT;
    loop {
        let jobs = qmp.query_block_jobs().await.map_err(ask)?;
        if jobs.iter().all(|job| job.device != JOB) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Stop::Why("the copy of the disk does not end".to_owned()));
        }
        sleep(QUICK_LOOK).await;
    }
}

fn copying(info: &MigrationInfo, elapsed: Duration) -> Copying {
    Copying {
        left: info.ram.remaining,
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        dirty_rate: info.ram.dirty_bytes_rate() as f64,
        // Megabits, by QEMU.
        bandwidth: info.ram.mbps * 125_000.0,
        passes: info.ram.dirty_sync_count,
        elapsed,
    }
}
