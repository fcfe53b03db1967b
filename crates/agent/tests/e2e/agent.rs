//! A whole agent with real guests, against a manager that does as the test says. Each test has a
//! network namespace of its own.

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes as Chunk;
use futures_util::StreamExt as _;
use plimsoll_agent::{
    AgentConfig, AgentError, Start,
    limits::CpuGroups,
    run,
    vm::{BootTime, guard::record::GuardRecord},
};
use plimsoll_api::{
    AgentClient,
    agent::{ExecRequest, LogQuery},
    cluster::{
        AgentReport, DesiredHost, DesiredNetwork, DesiredPresent, DesiredVm, ObservedPhase,
        ObservedVm, VmRates, Wanted,
    },
};
use plimsoll_model::{HostId, ImageFile, Interface, MacAddress, NetworkId, VmId};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use self::manager::{Behaviour, FakeManager};
use crate::{
    authority::Authority,
    support::{LIMIT, can_run, image_directory, new_vm, present},
};

#[path = "../../src/testing/manager.rs"]
#[expect(dead_code, reason = "shared with the unit tests, which use the rest")]
mod manager;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Runs a test in a network namespace of its own, with its loopback up.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !can_run() {
        return;
    }
    // A namespace belongs to a thread: everything, children included, begins on this one.
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A manager and a host whose agent can come and go.
struct Place {
    manager: FakeManager,
    directory: tempfile::TempDir,
    cgroup: String,
    agent: Option<(CancellationToken, JoinHandle<Result<(), AgentError>>)>,
    wanted: DesiredHost,
}

impl Place {
    async fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("plimsoll-agent-").tempdir().unwrap();
        let cgroup = directory.path().file_name().unwrap().to_str().unwrap().replace('.', "");
        let manager = FakeManager::start().await;
        manager.book(|book| {
            book.interval_ms = 500;
            book.token = Some(SECRET.to_owned());
        });
        Self { manager, directory, cgroup, agent: None, wanted: DesiredHost::default() }
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn config(&self) -> AgentConfig {
        AgentConfig {
            name: Some("host-a".parse().unwrap()),
            data_dir: self.data_dir(),
            listen: "127.0.0.1:0".parse().unwrap(),
            cgroup: self.cgroup.clone(),
            ..AgentConfig::default()
        }
    }

    fn spawn(
        &self,
        join: Option<String>,
    ) -> (CancellationToken, JoinHandle<Result<(), AgentError>>) {
        let program = std::env::current_exe().unwrap();
        let guard = program.parent().unwrap().parent().unwrap().join("examples/vm_guard");
        let start = Start { join, guard_command: vec![guard], tunnel_command: Vec::new() };
        let shutdown = CancellationToken::new();
        (shutdown.clone(), tokio::spawn(run(self.config(), start, shutdown)))
    }

    /// Starts the agent and waits for its first report.
    async fn start_agent(&mut self, join: bool) -> AgentReport {
        self.manager.book(|book| book.reports.clear());
        let token = join.then(|| self.manager.token(SECRET).to_string());
        self.agent = Some(self.spawn(token));
        self.until("the first report", |report| Some(report.clone())).await
    }

    async fn stop_agent(&mut self) {
        let (shutdown, task) = self.agent.take().unwrap();
        shutdown.cancel();
        tokio::time::timeout(LIMIT, task).await.unwrap().unwrap().unwrap();
    }

    fn want(&mut self, vms: Vec<DesiredVm>, networks: Vec<DesiredNetwork>) {
        let generation = self.wanted.generation + 1;
        self.wanted = DesiredHost { generation, vms, networks };
        self.manager.want(self.wanted.clone());
    }

    /// Waits until the newest report is as said.
    async fn until<T>(&self, what: &str, f: impl Fn(&AgentReport) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            let last = self.manager.book(|book| book.reports.last().map(|(_, r)| r.clone()));
            if let Some(found) = last.as_ref().and_then(&f) {
                return found;
            }
            if let Some((_, task)) = &self.agent {
                assert!(!task.is_finished(), "the agent has ended while waiting for {what}");
            }
            assert!(Instant::now() < deadline, "waited too long for {what}: {last:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_vm(
        &self,
        vm: VmId,
        what: &str,
        condition: impl Fn(&ObservedVm) -> bool,
    ) -> ObservedVm {
        self.until(what, |report| {
            let seen = report.vms.iter().find(|seen| seen.vm == vm)?;
            condition(seen).then(|| seen.clone())
        })
        .await
    }

    async fn until_booted(&self, vm: VmId) {
        self.until_vm(vm, "a guest that has booted", |seen| {
            seen.phase == ObservedPhase::Running && seen.guest.is_some()
        })
        .await;
    }

    fn processes(&self, vm: VmId) -> GuardRecord {
        let path = self.data_dir().join("vms").join(vm.to_string()).join("guard.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// The manager, as it asks the agent that has sent this report.
    fn agent(&self, report: &AgentReport) -> AgentClient {
        let authority = &self.manager.authority;
        let identity = authority.identity("manager");
        AgentClient::new(HostId(1), &report.spec.agent_address, &authority.pem, &identity).unwrap()
    }

    /// The tiny image's files, with their real checksums, handed out by the manager.
    fn image(&self) -> Vec<ImageFile> {
        let mut files = present().image.files;
        for file in &mut files {
            let name = match file.kind.as_str() {
                "disk" => "disk.qcow2",
                "kernel" => "vmlinuz",
                _ => "initrd.img",
            };
            let bytes = std::fs::read(image_directory().join(name)).unwrap();
            file.size = plimsoll_model::Bytes(bytes.len() as u64);
            file.sha256 = sha256(&bytes);
            self.manager.book(|book| book.images.insert(file.sha256.clone(), bytes));
        }
        files
    }

    fn vm(&self) -> DesiredPresent {
        let mut wanted = present();
        wanted.image.files = self.image();
        wanted
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // VMs outlive agents; not this test.
        let Ok(entries) = std::fs::read_dir(self.data_dir().join("vms")) else { return };
        for entry in entries.filter_map(Result::ok) {
            let Ok(text) = std::fs::read(entry.path().join("guard.json")) else { continue };
            let Ok(record) = serde_json::from_slice::<GuardRecord>(&text) else { continue };
            if record.guard.exists() {
                let pid = nix::unistd::Pid::from_raw(record.guard.pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            while record.qemu.exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if let Ok(groups) = CpuGroups::detect(&self.cgroup) {
            for vm in groups.vms().unwrap_or_default() {
                let _ = groups.remove(vm);
            }
            let _ = groups.remove_parent();
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn desired(vm: VmId, incarnation: u64, present: DesiredPresent) -> DesiredVm {
    DesiredVm { vm, incarnation, wanted: Wanted::Present(Box::new(present)) }
}

fn absent(vm: VmId, incarnation: u64) -> DesiredVm {
    DesiredVm { vm, incarnation, wanted: Wanted::Absent { delete_disk: true } }
}

fn network() -> DesiredNetwork {
    DesiredNetwork {
        network: NetworkId(uuid::Uuid::from_u128(9)),
        vni: 77,
        cidr: "10.77.0.0/24".parse().unwrap(),
        mtu: 1450,
        outside: false,
        peers: Vec::new(),
    }
}

fn interface() -> Interface {
    Interface {
        network: network().network,
        network_name: "net-1".parse().unwrap(),
        mac: MacAddress([0x52, 0x54, 0, 0, 0, 2]),
        address: [10, 77, 0, 2].into(),
    }
}

fn links() -> String {
    // Of this thread's namespace, wherever `/sys` was mounted.
    std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()
}

#[test]
fn an_agent_joins_runs_vms_and_finds_them_again() {
    in_namespace(|| async {
        let mut place = Place::new().await;
        let first = place.start_agent(true).await;
        assert_eq!(first.spec.accelerator, "tcg");
        assert!(first.vms.is_empty());
        let second = place.spawn(None).1.await.unwrap();
        assert!(matches!(second, Err(AgentError::Locked { .. })), "{second:?}");

        let (vm, broken) = (new_vm(), new_vm());
        let mut wanted = place.vm();
        wanted.interfaces = vec![interface()];
        let mut other = place.vm();
        let disk = &mut other.image.files[0];
        disk.sha256 = "ab".repeat(32);
        let bytes = vec![0; usize::try_from(disk.size.get()).unwrap()];
        place.manager.book(|book| book.images.insert("ab".repeat(32), bytes));
        place
            .want(vec![desired(vm, 2, wanted.clone()), desired(broken, 1, other)], vec![network()]);
        place.until_booted(vm).await;
        // A VM whose image is not what it says does not run, and keeps nobody from running.
        let refused = place
            .until_vm(broken, "the refusal of an image", |seen| {
                seen.message.as_ref().is_some_and(|message| message.contains("SHA-256"))
            })
            .await;
        assert_ne!(refused.phase, ObservedPhase::Running);
        asks_the_guest(&place, &first, vm).await;
        let before = place.processes(vm);

        // The agent ends, its VM goes on, the next agent finds it.
        place.stop_agent().await;
        assert!(before.qemu.exists() && before.guard.exists());
        let report = place.start_agent(false).await;
        assert_ne!(report.session, first.session);
        let found = report.vms.iter().find(|seen| seen.vm == vm).expect("in the first report");
        assert_eq!((found.phase, found.restarts), (ObservedPhase::Running, 0), "{found:?}");
        assert_eq!(place.processes(vm).qemu, before.qemu);

        // What comes late for an older incarnation does nothing, the same again neither.
        place.want(vec![absent(vm, 1), absent(broken, 1)], vec![network()]);
        let generation = place.wanted.generation;
        place
            .until("the stale wish to be heard", |report| {
                let gone = report
                    .vms
                    .iter()
                    .all(|seen| seen.vm == vm || seen.phase == ObservedPhase::Absent);
                (report.desired_generation == generation && gone).then_some(())
            })
            .await;
        place.want(vec![desired(vm, 2, wanted)], vec![network()]);
        let generation = place.wanted.generation;
        place
            .until("the VM that was told again", |report| {
                (report.desired_generation == generation && report.vms.len() == 1).then_some(())
            })
            .await;
        assert!(before.qemu.exists(), "nothing has touched it");

        // Told to go, it goes, and is reported until it is no longer listed; so does its network.
        assert!(links().contains("plb77"));
        place.want(vec![absent(vm, 2)], vec![]);
        place.until_vm(vm, "its end", |seen| seen.phase == ObservedPhase::Absent).await;
        assert!(!before.qemu.exists());
        assert!(!place.data_dir().join("disks").join(vm.to_string()).exists());
        place.want(vec![], vec![]);
        place.until("an empty host", |report| report.vms.is_empty().then_some(())).await;
        let deadline = Instant::now() + LIMIT;
        while links().contains("pl") {
            assert!(Instant::now() < deadline, "left over: {}", links());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        place.stop_agent().await;
    });
}

/// Through the agent's own port: a command, the log, the console, the doctor.
async fn asks_the_guest(place: &Place, report: &AgentReport, vm: VmId) {
    let agent = place.agent(report);
    let request = ExecRequest {
        argv: vec!["sh".into(), "-c".into(), "cat; uname -s >&2; exit 3".into()],
        stdin: STANDARD.encode("to and fro"),
        timeout_ms: 30_000,
    };
    let result = agent.exec(vm, &request).await.unwrap();
    assert_eq!(result.exit_code, Some(3));
    assert_eq!(STANDARD.decode(result.stdout).unwrap(), b"to and fro");
    assert_eq!(STANDARD.decode(result.stderr).unwrap(), b"Linux\n");

    let mut console = agent.console(vm).await.unwrap();
    console.send(Chunk::from_static(b"\necho $((6*7))-is-it\n")).await.unwrap();
    let answer = async {
        let mut text = Vec::new();
        while let Ok(Some(bytes)) = console.receive().await {
            text.extend_from_slice(&bytes);
            if String::from_utf8_lossy(&text).contains("42-is-it") {
                return;
            }
        }
        panic!("the console ended: {}", String::from_utf8_lossy(&text));
    };
    tokio::time::timeout(LIMIT, answer).await.expect("the console answers");

    let mut log = agent.logs(vm, &LogQuery::default()).await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = log.next().await {
        text.extend_from_slice(&piece.unwrap());
    }
    assert!(String::from_utf8_lossy(&text).contains("42-is-it"));
    assert_eq!(agent.doctor().await.unwrap()["usable"], true);
}

#[test]
fn a_host_that_is_cut_off_ends_its_vms_and_starts_them_only_when_told_anew() {
    in_namespace(|| async {
        let mut place = Place::new().await;
        place.manager.book(|book| book.lease_ms = Some(4_000));
        place.start_agent(true).await;
        let (fenced, kept) = (new_vm(), new_vm());
        let mut may_move = place.vm();
        may_move.fenced_by_lease = true;
        let stays = place.vm();
        place.want(vec![desired(fenced, 1, may_move.clone()), desired(kept, 1, stays)], vec![]);
        place.until_booted(fenced).await;
        place.until_booted(kept).await;
        let (first, other) = (place.processes(fenced), place.processes(kept));

        // A manager that is down is no reason.
        place.manager.stop().await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(first.qemu.exists() && other.qemu.exists());
        place.manager.start_again().await;

        // One that is silent is.
        place.manager.book(|book| book.behaviour = Behaviour::Hang);
        let silent_since = BootTime::now();
        let deadline = Instant::now() + LIMIT;
        while first.qemu.exists() {
            assert!(Instant::now() < deadline, "the guard has not ended it");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(BootTime::now() <= silent_since.plus(4_000 + 1_500), "not within its lease");
        assert!(other.qemu.exists(), "a VM that cannot run elsewhere goes on");

        // It stays down while nobody tells, across a restart of the agent.
        place.stop_agent().await;
        place.agent = Some(place.spawn(None));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!place.processes(fenced).qemu.exists());

        // In touch again, but the VM was given to another host meanwhile.
        place.want(vec![absent(fenced, 1)], vec![]);
        place.manager.book(|book| {
            book.reports.clear();
            book.behaviour = Behaviour::Answer;
        });
        place.until_vm(fenced, "its end", |seen| seen.phase == ObservedPhase::Absent).await;

        // And back: a new incarnation.
        place.want(vec![desired(fenced, 3, may_move)], vec![]);
        place.until_booted(fenced).await;
        assert_eq!(place.processes(kept).qemu, other.qemu, "not listed, so left alone");
        place.stop_agent().await;
    });
}

/// Ten pings a second of 8,000 bytes to a neighbour who is not there, and 2 MiB of noise to the disk
/// again and again.
const TRAFFIC: &str = "arp -s 10.77.0.9 52:54:00:00:00:09
    head -c 2097152 /dev/urandom > /run/noise
    for _ in 0 1 2 3 4 5 6 7 8 9; do ping -q -s 8000 10.77.0.9 > /dev/null 2>&1 & done
    (while :; do dd if=/run/noise of=/data/noise bs=64k conv=fsync; sleep 1; done) \
        > /dev/null 2>&1 &";

/// Bytes that the guest itself has sent and written since it booted.
const COUNTED: &str = "awk '!/lo:/ && NR > 2 { sub(/.*:/, \"\"); sent += $9 } END { print sent }' \
        /proc/net/dev
    awk '$3 ~ /^vd/ { written += $10 * 512 } END { printf \"%d\\n\", written }' /proc/diskstats";

async fn sh(agent: &AgentClient, vm: VmId, script: &str) -> String {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecRequest { argv, stdin: String::new(), timeout_ms: 30_000 };
    let result = agent.exec(vm, &request).await.unwrap();
    assert_eq!(result.exit_code, Some(0), "{script}: {result:?}");
    String::from_utf8(STANDARD.decode(result.stdout).unwrap()).unwrap()
}

#[test]
fn what_a_guest_writes_and_sends_is_reported_at_the_rate_that_it_counts_itself() {
    in_namespace(|| async {
        let mut place = Place::new().await;
        let first = place.start_agent(true).await;
        let vm = new_vm();
        let mut wanted = place.vm();
        wanted.interfaces = vec![interface()];
        place.want(vec![desired(vm, 1, wanted)], vec![network()]);
        place.until_booted(vm).await;
        let agent = place.agent(&first);
        sh(&agent, vm, TRAFFIC).await;
        // Its rates are those of the last two seconds: they must be past the beginning.
        tokio::time::sleep(Duration::from_secs(4)).await;

        let counted = async || {
            let text = sh(&agent, vm, COUNTED).await;
            let mut lines = text.lines().map(|line| line.parse::<f64>().unwrap());
            (lines.next().unwrap(), lines.next().unwrap())
        };
        let (before, began) = (counted().await, Instant::now());
        place.manager.book(|book| book.reports.clear());
        tokio::time::sleep(Duration::from_secs(15)).await;
        let (after, seconds) = (counted().await, began.elapsed().as_secs_f64());
        let rates: Vec<_> = place.manager.book(|book| {
            let usages = book.reports.iter().flat_map(|(_, report)| report.vm_usage.clone());
            usages.filter(|usage| usage.vm == vm).map(|usage| usage.rates).collect()
        });
        let mean = |of: &dyn Fn(&VmRates) -> u64| {
            rates.iter().map(|rates| of(rates) as f64).sum::<f64>() / rates.len() as f64
        };
        let sent = mean(&|rates| rates.sent.unwrap().0) / 8.0;
        let written = mean(&|rates| rates.disk_written.unwrap().0);
        let (really_sent, really_written) =
            ((after.0 - before.0) / seconds, (after.1 - before.1) / seconds);
        eprintln!(
            "{} reports: sent {sent:.0} bytes/s (the guest counts {really_sent:.0}), written \
             {written:.0} ({really_written:.0})",
            rates.len()
        );
        assert!(really_sent > 20_000.0 && really_written > 100_000.0, "the guest works");
        for (seen, really) in [(sent, really_sent), (written, really_written)] {
            assert!(seen > really * 0.6 && seen < really * 1.6, "{seen} is not about {really}");
        }
        let last = rates.last().unwrap();
        assert!(last.cpu_wait.is_some() && last.cpu_throttled.is_some(), "{last:?}");
        assert!(last.swapped_in.is_some() && last.disk_read.is_some(), "{last:?}");
        place.stop_agent().await;
    });
}
