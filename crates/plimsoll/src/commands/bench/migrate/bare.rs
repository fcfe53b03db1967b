//! The same machine under QEMU alone, moved by its monitor.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fs_err as fs;
use plimsoll_agent::vm::{guard::record::VmDirectory, guest_channel::GuestChannel};
use plimsoll_api::{
    guest::{Answer, Call, ExecRequest, MAX_OUTPUT_BYTES, PORT_NAME},
    migration::MigrationLimits,
};
use plimsoll_model::Bytes;
use plimsoll_qmp::{ConnectOptions, Event, EventKind, EventReceiver, MigrationStatus, Qmp};
use serde_json::json;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{DISK, LIMIT, Move, load};
use crate::{
    cli::cluster::BenchMigrateArgs,
    failure::{Failure, OrFail as _, Outcome},
};

const QEMU: &str = "qemu-system-x86_64";
/// In place of the disk that tells a guest of Plimsoll who it is.
const SEED: &str = "seed.img";
const SEED_BYTES: usize = 1 << 20;
/// Places for devices that are added later, as Plimsoll's machines have them.
const SPARE_PORTS: usize = 4;
/// The guest's kernel as the tiny image begins it.
const APPEND: &str = "console=ttyS0 quiet panic=1 memhp_default_state=online_movable swiotlb=512 \
                      init_on_alloc=0 cryptomgr.notests";
const LOOK: Duration = Duration::from_millis(1);
/// A guest boots within this, and answers within that.
const BOOT: Duration = Duration::from_secs(120);
const ANSWER: Duration = Duration::from_secs(60);

/// One QEMU.
struct Machine {
    directory: PathBuf,
    qmp: Qmp,
    events: EventReceiver,
    /// Killed when it is dropped.
    _child: Child,
}

/// A machine that moves from QEMU to QEMU.
pub(super) struct Bare {
    image: PathBuf,
    memory: Bytes,
    directory: tempfile::TempDir,
    now: Machine,
    guest: GuestChannel,
    count: u32,
}

impl Bare {
    pub(super) async fn start(args: &BenchMigrateArgs) -> Outcome<Self> {
        let directory = tempfile::Builder::new().prefix("plimsoll-bench-").tempdir()?;
        let image = fs::canonicalize(&args.image)?;
        let now = Machine::start(&image, args.memory, directory.path(), 0, false).await?;
        let guest = now.guest();
        until_speaking(&guest).await?;
        let bare = Self { image, memory: args.memory, directory, now, guest, count: 0 };
        bare.shell(&load(args)).await?;
        Ok(bare)
    }

    async fn shell(&self, script: &str) -> Outcome<String> {
        let request = ExecRequest {
            argv: ["sh", "-c", script].map(str::to_owned).into(),
            env: Vec::new(),
            stdin: Vec::new(),
            timeout_ms: 60_000,
            max_output_bytes: MAX_OUTPUT_BYTES,
        };
        match self.guest.call(Call::Exec(request), ANSWER).await? {
            Answer::Exec(result) => Ok(String::from_utf8_lossy(&result.stdout).into_owned()),
            _ => Err(Failure::new("the guest answered another question")),
        }
    }

    /// Lets the load stand still.
    pub(super) async fn pause(&self) -> Outcome {
        self.shell("kill -STOP $(pidof plimsoll-workload)").await.map(drop)
    }

    /// Lets the load go on.
    pub(super) async fn resume(&self) -> Outcome {
        self.shell("kill -CONT $(pidof plimsoll-workload)").await.map(drop)
    }

    /// Fails if the load has ended.
    pub(super) async fn check(&self) -> Outcome {
        let script = "pidof plimsoll-workload > /dev/null && echo on";
        let on = self.shell(script).await?.trim() == "on";
        if on { Ok(()) } else { Err(Failure::new("the load under bare QEMU has ended")) }
    }

    /// Moves it to a new QEMU.
    pub(super) async fn move_once(&mut self, limits: MigrationLimits) -> Outcome<Move> {
        self.count += 1;
        let began = now_ms()?;
        let directory = self.directory.path();
        let mut target =
            Machine::start(&self.image, self.memory, directory, self.count, true).await?;
        let source = &mut self.now;
        let disk_sent = copy_disk(source, &target, limits).await?;
        let port = free_port()?;
        let address = format!("tcp:127.0.0.1:{port}");
        target.qmp.migrate_incoming(&address).await?;
        // As soon as all is there.
        target.qmp.cont().await?;
        let capabilities = [("events", true), ("pause-before-switchover", true)];
        source.qmp.migrate_set_capabilities(&capabilities).await?;
        let parameters = json!({"max-bandwidth": limits.bandwidth.get(),
            "downtime-limit": limits.max_downtime_ms});
        source.qmp.migrate_set_parameters(parameters).await?;
        source.qmp.migrate(&address).await?;
        let deadline = Instant::now() + LIMIT;
        let (mut stopped, mut continued) = (None, false);
        loop {
            if let Ok(Ok(event)) = timeout(LOOK * 50, source.events.recv()).await {
                note(&event, &EventKind::Stop, &mut stopped);
            }
            let info = source.qmp.query_migrate().await?;
            match info.status {
                MigrationStatus::PreSwitchover if !continued => {
                    continued = true;
                    source.qmp.block_job_cancel(JOB, false).await?;
                    until_no_job(&source.qmp).await?;
                    target.qmp.nbd_server_stop().await?;
                    source.qmp.migrate_continue().await?;
                }
                MigrationStatus::Completed => break,
                MigrationStatus::Failed | MigrationStatus::Cancelled => {
                    let why = info.error.unwrap_or_default();
                    return Err(Failure::new(why).context("bare QEMU gave the migration up"));
                }
                _ => {}
            }
            if Instant::now() >= deadline {
                return Err(Failure::new("bare QEMU's migration does not end"));
            }
        }
        while let Ok(event) = source.events.try_recv() {
            note(&event, &EventKind::Stop, &mut stopped);
        }
        let mut resumed = None;
        while resumed.is_none() {
            let event = timeout(LIMIT, target.events.recv()).await?;
            note(&event?, &EventKind::Resume, &mut resumed);
        }
        let memory_sent = Bytes(source.qmp.query_migrate().await?.ram.transferred);
        let (Some(stopped), Some(resumed)) = (stopped, resumed) else {
            return Err(Failure::new("QEMU did not say when the machine stood still"));
        };
        self.now = target;
        self.guest = self.now.guest();
        until_speaking(&self.guest).await?;
        Ok(Move {
            downtime_ms: resumed - stopped,
            total_ms: resumed - began,
            memory_sent,
            disk_sent,
        })
    }
}

const JOB: &str = "copy";

async fn copy_disk(source: &Machine, target: &Machine, limits: MigrationLimits) -> Outcome<Bytes> {
    let port = free_port()?.to_string();
    let address = json!({"type": "inet", "data": {"host": "127.0.0.1", "port": port}});
    target.qmp.execute("nbd-server-start", json!({"addr": address})).await?;
    target.qmp.nbd_export("root-image", "root").await?;
    let node = json!({"driver": "nbd", "node-name": "far", "export": "root", "discard": "unmap",
        "server": {"type": "inet", "host": "127.0.0.1", "port": port}});
    source.qmp.blockdev_add(node).await?;
    source.qmp.blockdev_mirror(JOB, "root-image", "far", limits.bandwidth.get()).await?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let jobs = source.qmp.query_block_jobs().await?;
        let Some(job) = jobs.iter().find(|job| job.device == JOB) else {
            return Err(Failure::new("the copy of the disk broke off"));
        };
        if job.ready {
            return Ok(Bytes(job.offset));
        }
        if Instant::now() >= deadline {
            return Err(Failure::new("the copy of the disk does not end"));
        }
        sleep(LOOK).await;
    }
}

async fn until_no_job(qmp: &Qmp) -> Outcome {
    let deadline = Instant::now() + LIMIT;
    while !qmp.query_block_jobs().await?.is_empty() {
        if Instant::now() >= deadline {
            return Err(Failure::new("the copy of the disk does not end"));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

async fn until_speaking(guest: &GuestChannel) -> Outcome {
    let mut status = guest.status();
    let speaks =
        status.wait_for(|status| *status != plimsoll_agent::vm::guest_channel::GuestStatus::Silent);
    timeout(BOOT, speaks).await??;
    Ok(())
}

/// Notes when the event was, in milliseconds.
fn note(event: &Event, wanted: &EventKind, when: &mut Option<f64>) {
    if event.kind() == *wanted {
        let at = event.timestamp;
        *when = Some(at.seconds as f64 * 1e3 + at.microseconds as f64 / 1e3);
    }
}

fn now_ms() -> Outcome<f64> {
    let now = plimsoll_model::Timestamp::now();
    Ok(now.as_microsecond() as f64 / 1e3)
}

/// A port that nobody listens at.
fn free_port() -> Outcome<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Machine {
    async fn start(
        image: &Path,
        memory: Bytes,
        parent: &Path,
        number: u32,
        incoming: bool,
    ) -> Outcome<Self> {
        let directory = parent.join(number.to_string());
        fs::create_dir(&directory)?;
        let overlay = directory.join("disk.qcow2");
        fs::write(directory.join(SEED), vec![0; SEED_BYTES])?;
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(image.join("disk.qcow2"))
            .arg(&overlay)
            .arg(DISK.get().to_string())
            .status()
            .await?;
        if !made.success() {
            return Err(Failure::new("qemu-img makes no disk"));
        }
        let log = fs::File::create(directory.join("qemu.log"))?.into_file();
        let child = Command::new(QEMU)
            .args(arguments(image, memory, &directory, &overlay))
            .args(if incoming { &["-S", "-incoming", "defer"][..] } else { &[] })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .or_fail(|| format!("cannot run {QEMU}"))?;
        let socket = directory.join("qmp.sock");
        let deadline = Instant::now() + BOOT;
        // The socket is there a moment before QEMU listens at it.
        let (qmp, events) = loop {
            match Qmp::connect(&socket, ConnectOptions::default()).await {
                Ok(connected) => break connected,
                Err(error) if Instant::now() >= deadline => {
                    return Err(Failure::from(error).context("bare QEMU does not start"));
                }
                Err(_) => sleep(LOOK).await,
            }
        };
        Ok(Self { directory, qmp, events, _child: child })
    }

    fn guest(&self) -> GuestChannel {
        GuestChannel::open(VmDirectory::new(self.directory.clone()))
    }
}

fn arguments(image: &Path, memory: Bytes, directory: &Path, overlay: &Path) -> Vec<String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let (base, overlay) = (path(&image.join("disk.qcow2")), path(overlay));
    let at = |name: &str| path(&directory.join(name));
    let size = memory.get();
    let options = [
        ("-machine", "q35,usb=off,memory-backend=ram".to_owned()),
        ("-accel", "tcg,thread=multi".to_owned()),
        ("-cpu", "max".to_owned()),
        ("-display", "none".to_owned()),
        ("-smp", "cpus=1,maxcpus=4,sockets=1,cores=4,threads=1".to_owned()),
        ("-m", format!("size={}k,maxmem={}k", size / 1024, size / 256)),
        (
            "-object",
            json!({"qom-type": "memory-backend-ram", "id": "ram", "size": size}).to_string(),
        ),
        (
            "-object",
            json!({"qom-type": "memory-backend-ram", "id": "elastic", "size": size * 3,
                "reserve": false})
            .to_string(),
        ),
        (
            "-device",
            json!({"driver": "virtio-balloon-pci", "free-page-reporting": true,
                "deflate-on-oom": true})
            .to_string(),
        ),
        (
            "-device",
            json!({"driver": "virtio-mem-pci", "memdev": "elastic", "block-size": 2 << 20,
                "requested-size": 0})
            .to_string(),
        ),
        (
            "-blockdev",
            json!({"driver": "qcow2", "node-name": "base", "read-only": true, "backing": null,
                "file": {"driver": "file", "filename": base, "read-only": true}})
            .to_string(),
        ),
        (
            "-blockdev",
            json!({"driver": "qcow2", "node-name": "root-image", "backing": "base",
                "discard": "unmap", "detect-zeroes": "unmap",
                "file": {"driver": "file", "filename": overlay, "discard": "unmap"}})
            .to_string(),
        ),
        (
            "-device",
            json!({"driver": "virtio-blk-pci", "drive": "root-image", "serial": "root"})
                .to_string(),
        ),
        ("-device", json!({"driver": "virtio-rng-pci", "romfile": ""}).to_string()),
        ("-device", json!({"driver": "virtio-serial-pci", "id": "channels0"}).to_string()),
        ("-chardev", format!("socket,id=guest,path={},server=on,wait=off", at("guest.sock"))),
        (
            "-device",
            json!({"driver": "virtserialport", "bus": "channels0.0", "chardev": "guest",
                "name": PORT_NAME})
            .to_string(),
        ),
        ("-kernel", path(&image.join("vmlinuz"))),
        ("-initrd", path(&image.join("initrd.img"))),
        ("-append", APPEND.to_owned()),
        ("-serial", format!("file:{}", at("console.log"))),
        ("-chardev", format!("socket,id=monitor,path={},server=on,wait=off", at("qmp.sock"))),
        ("-mon", "chardev=monitor,mode=control".to_owned()),
    ];
    // Each device takes its time at the switch: the machine has those that Plimsoll's has.
    let seed = [
        (
            "-blockdev",
            json!({"driver": "raw", "node-name": "seed", "read-only": true,
                "file": {"driver": "file", "filename": at(SEED), "read-only": true}})
            .to_string(),
        ),
        (
            "-device",
            json!({"driver": "virtio-blk-pci", "drive": "seed", "serial": "seed"}).to_string(),
        ),
    ];
    let ports = (0..SPARE_PORTS).map(|index| {
        let port = json!({"driver": "pcie-root-port", "id": format!("spare{index}"),
            "chassis": index + 1, "port": index + 1});
        ("-device", port.to_string())
    });
    let options = options.into_iter().chain(seed).chain(ports);
    let flags = ["-nodefaults", "-no-user-config"].map(str::to_owned);
    let options = options.flat_map(|(option, value)| [option.to_owned(), value]);
    flags.into_iter().chain(options).collect()
}
