//! `plimsoll bench manager`: how many VMs a manager creates durably in a second.
//!
//! The manager is a process of its own (this binary, `server`) with its store on disk and TLS on the
//! loopback. In this process a fake agent for each host talks to it over mutual TLS and pretends to
//! run VMs at once; clients create VMs in batches through the REST API, over the manager's socket. What
//! is timed is the request: it is answered when the VMs are on disk.
//!
//! With `--kill` the manager gets SIGKILL when half of the VMs are there and is started again;
//! afterwards every VM whose creation was acknowledged must be known. A batch whose answer never came
//! counts as neither created nor lost.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use plimsoll_api::{
    Client, ClientError,
    client::ClientConfig,
    v1::{CreateImageRequest, CreateProjectRequest, CreateVmsRequest, VmRequest},
};
use plimsoll_model::{
    Bytes, Constraint, ImageFile, ImageFileKind, MilliCores, Name, Quota, Resources, Rule, VmId,
    VmSpec,
};
use plimsoll_simulator::churn::Rules;
use plimsoll_testkit::{FakeAgent, FakeHost, join_many, wait_for};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::{
    process::{Child, Command},
    sync::{Mutex, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    cli::cluster::{BenchManagerArgs, BenchRules},
    failure::{Failure, Outcome},
    output::{Output, progress::Progress},
};

pub(super) mod balance;
pub(super) mod cascade;
mod guest;
pub(super) mod migrate;
pub(super) mod placement;
pub(super) mod reclaim;

const START_LIMIT: Duration = Duration::from_secs(120);
const DISK: [u8; 4096] = [0; 4096];
/// What a VM costs its host beside its own: the default of the cluster's settings.
const OVERHEAD: Bytes = Bytes::mib(96);

const HOSTS_OF_A_RACK: u32 = 40;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    hosts: u32,
    vms: u32,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    batch: u32,
    parallel: u32,
    constraints: BenchRules,
    /// How long it took until the agents had reported all of them running, from the first request.
    running_after_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledged: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u32>,
}

/// Measures, and prints the report.
pub(crate) async fn manager(args: &BenchManagerArgs, output: Output) -> Outcome {
    let report = measure(args).await.map_err(|error| {
        let mut texts: Vec<String> = error.chain().map(ToString::to_string).collect();
        let innermost = texts.pop().unwrap_or_default();
        texts.into_iter().rev().fold(Failure::new(innermost), Failure::context)
    })?;
    output.show(&report, people)?;
    match report.lost {
        Some(lost) if lost > 0 => Err(Failure::new(format!("{lost} acknowledged VMs are lost"))),
        _ => Ok(()),
    }
}

fn people(output: &Output, report: &Report) -> String {
    let (batch, rules) = (report.batch, report.constraints.describe());
    let mut facts = vec![
        ("hosts", report.hosts.to_string()),
        ("VMs", format!("{} in batches of {batch}, {rules}", report.vms)),
        ("created", format!("{:.0} a second", report.per_second)),
        ("a batch", format!("p50 {:.1} ms, p99 {:.1} ms", report.p50_ms, report.p99_ms)),
    ];
    if let Some(seconds) = report.running_after_s {
        facts.push(("all running", format!("after {seconds:.1} s")));
    }
    if let (Some(acknowledged), Some(lost)) = (report.acknowledged, report.lost) {
        facts.push(("after SIGKILL", format!("{lost} lost of {acknowledged} acknowledged")));
    }
    output.facts(&facts)
}

/// A manager as another process.
struct Manager {
    child: Child,
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Manager {
    async fn start(folder: &Path) -> anyhow::Result<Self> {
        let (api, cluster) = (free_port()?, free_port()?);
        let config = folder.join("server.toml");
        let data = folder.join("data");
        fs::write(
            &config,
            format!(
                "data_dir = {:?}\napi_listen = \"127.0.0.1:{api}\"\n\
                 cluster_listen = \"127.0.0.1:{cluster}\"\n\n\
                 [settings]\nunreachable_after_ms = 60000\ndead_after_ms = 600000\nlease_ms = 0\n",
                data.to_string_lossy()
            ),
        )?;
        let log = folder.join("server.log");
        let child = spawn(&config, &log)?;
        let mut manager = Self { child, config, socket: data.join("api.sock"), log };
        manager.ready().await?;
        Ok(manager)
    }

    /// Waits until it answers.
    async fn ready(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("the manager ended with {status}: {}", log.lines().last().unwrap_or("-"));
            }
            if let Ok(client) = self.client()
                && client.whoami().await.is_ok()
            {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the manager does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn client(&self) -> anyhow::Result<Client> {
        let folder = self.socket.parent().context("the socket has no folder")?;
        let token = fs::read_to_string(folder.join("admin.token"))?;
        Ok(Client::new(&ClientConfig {
            address: format!("unix:{}", self.socket.display()),
            ca_pem: None,
            token: Some(token.trim().to_owned()),
        })?)
    }

    /// SIGKILL, and a new process on the same folder.
    async fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("kill the manager")?;
        self.child = spawn(&self.config, &self.log)?;
        self.ready().await
    }
}

fn spawn(config: &Path, log: &Path) -> anyhow::Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    Command::new(std::env::current_exe()?)
        .args(["server", "--config"])
        .arg(config)
        .env("PLIMSOLL_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.into_parts().0)
        .kill_on_drop(true)
        .spawn()
        .context("start the manager")
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn measure(args: &BenchManagerArgs) -> anyhow::Result<Report> {
    raise_file_limit();
    let folder = match &args.directory {
        Some(folder) => {
            fs::create_dir_all(folder)?;
            tempfile::tempdir_in(folder)?
        }
        None => tempfile::tempdir()?,
    };
    let progress = Progress::new("starting a manager");
    let mut manager = Manager::start(folder.path()).await?;
    let client = manager.client()?;
    furnish(&client).await?;
    progress.set(format!("{} hosts join", args.hosts));
    let hosts = (1..=args.hosts).map(|i| host(i, args)).collect::<anyhow::Result<_>>()?;
    let agents = join_many(&client, hosts, 16).await.context("let fake agents join")?;

    progress.set(format!("creating {} VMs", args.vms));
    let work = Arc::new(Work::new(args, &client));
    let started = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..args.parallel {
        workers.spawn(Arc::clone(&work).run());
    }
    if args.kill {
        let mut created = work.created.subscribe();
        let half = args.vms / 2;
        created.wait_for(|count| *count >= half).await.context("the workers ended")?;
        progress.set("SIGKILL");
        manager.kill_and_restart().await.context("start the manager again")?;
        work.resume();
    }
    while let Some(ended) = workers.join_next().await {
        ended.context("a worker panicked")??;
    }
    let elapsed = started.elapsed();
    let running_after_s = if args.kill {
        None
    } else {
        progress.set("waiting until all run");
        wait_running(&client, &agents, args.vms).await?;
        Some(started.elapsed().as_secs_f64())
    };
    report(args, &work, &client, elapsed, running_after_s).await
}

async fn report(
    args: &BenchManagerArgs,
    work: &Work,
    client: &Client,
    elapsed: Duration,
    running_after_s: Option<f64>,
) -> anyhow::Result<Report> {
    let mut times = work.times.lock().await.clone();
    times.sort_unstable();
    let acknowledged = work.acknowledged.lock().await;
    let there: BTreeSet<VmId> =
        client.vms(&project()?).await?.into_iter().map(|vm| vm.id).collect();
    let lost = u32::try_from(acknowledged.difference(&there).count())?;
    let vms = u32::try_from(acknowledged.len())?;
    Ok(Report {
        hosts: args.hosts,
        vms,
        per_second: round(f64::from(vms) / elapsed.as_secs_f64()),
        p50_ms: milliseconds(quantile(&times, 50)),
        p99_ms: milliseconds(quantile(&times, 99)),
        batch: args.batch,
        parallel: args.parallel,
        constraints: args.constraints,
        running_after_s: running_after_s.map(round),
        acknowledged: args.kill.then_some(vms),
        // Without a kill nothing may be lost either.
        lost: (args.kill || lost > 0).then_some(lost),
    })
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn milliseconds(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1000.0)
}

/// The smallest time that so many percent of the sample did not exceed; zero of nothing.
fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or_default()
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn project() -> anyhow::Result<Name> {
    Ok("bench".parse()?)
}

/// A project and an image.
async fn furnish(client: &Client) -> anyhow::Result<()> {
    let request = CreateProjectRequest { name: project()?, quota: Quota::default(), credits: None };
    client.create_project(&request).await?;
    let sha256 = Sha256::digest(DISK).iter().map(|byte| format!("{byte:02x}")).collect();
    let size = Bytes(DISK.len() as u64);
    let image: Name = "empty".parse()?;
    let request = CreateImageRequest {
        name: image.clone(),
        description: "A disk without content".to_owned(),
        files: vec![ImageFile { kind: ImageFileKind::Disk, sha256, size }],
        append: None,
        min_memory: Bytes(0),
        guest_agent: false,
    };
    client.create_image(None, &request).await?;
    client
        .put_image_file(None, &image, ImageFileKind::Disk, &DISK[..], size.0)
        .await
        .context("send the image")?;
    Ok(())
}

fn vm_resources() -> Resources {
    Resources {
        cpu: MilliCores(100),
        memory: Bytes::mib(128),
        disk: Bytes::gib(1),
        ..Resources::default()
    }
}

/// A host with room for twice its share of the VMs.
fn host(number: u32, args: &BenchManagerArgs) -> anyhow::Result<FakeHost> {
    let room = u64::from(args.vms.div_ceil(args.hosts)) * 2 + 2;
    let mut each = vm_resources();
    each.memory = Bytes(each.memory.0 + OVERHEAD.0);
    let mut host = FakeHost::new(format!("h{number}").parse()?, each.times(room));
    host.rack = Some(format!("r{}", number / HOSTS_OF_A_RACK).parse()?);
    Ok(host)
}

/// The batches that are still to be asked for, and what came of the others.
struct Work {
    client: Client,
    batch: u32,
    vms: u32,
    constraints: BenchRules,
    next: AtomicU32,
    created: watch::Sender<u32>,
    /// Which process of the manager answers: 0, and after the kill and the restart 1.
    process: watch::Sender<u32>,
    kill: bool,
    times: Mutex<Vec<Duration>>,
    acknowledged: Mutex<BTreeSet<VmId>>,
}

impl Work {
    fn new(args: &BenchManagerArgs, client: &Client) -> Self {
        Self {
            client: client.clone(),
            batch: args.batch,
            vms: args.vms,
            constraints: args.constraints,
            next: AtomicU32::new(0),
            created: watch::Sender::new(0),
            process: watch::Sender::new(0),
            kill: args.kill,
            times: Mutex::default(),
            acknowledged: Mutex::default(),
        }
    }

    /// The manager is there again.
    fn resume(&self) {
        self.process.send_replace(1);
    }

    /// Creates batches until none is left.
    async fn run(self: Arc<Self>) -> anyhow::Result<()> {
        let project = project()?;
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let before = index.saturating_mul(self.batch);
            if before >= self.vms {
                return Ok(());
            }
            let request = batch(index, self.batch.min(self.vms - before), self.constraints)?;
            let process = *self.process.borrow();
            let begun = Instant::now();
            match self.client.create_vms(&project, &request).await {
                Ok(answer) => {
                    let count = u32::try_from(answer.vms.len())?;
                    self.times.lock().await.push(begun.elapsed());
                    self.acknowledged.lock().await.extend(answer.vms.iter().map(|vm| vm.id));
                    self.created.send_modify(|created| *created += count);
                }
                // Killed in the middle: nobody knows what became of this batch.
                Err(ClientError::Unreachable { .. }) if self.kill && process == 0 => {
                    let mut process = self.process.subscribe();
                    tokio::time::timeout(START_LIMIT, process.wait_for(|process| *process > 0))
                        .await
                        .context("the manager has not come back")??;
                }
                Err(error) => return Err(error).context("create VMs"),
            }
        }
    }
}

fn batch(index: u32, count: u32, rules: BenchRules) -> anyhow::Result<CreateVmsRequest> {
    let mut spec = VmSpec::new(vm_resources(), "empty".parse()?);
    if let Some((strength, scope)) = Rules::from(rules).apart() {
        let group: Name = format!("g{index}").parse()?;
        spec.groups.insert(group.clone());
        spec.constraints.push(Constraint { strength, rule: Rule::AntiAffinity { group, scope } });
    }
    let name = format!("b{index}").parse()?;
    let request = VmRequest { name, count: Some(count), split: None, spec };
    Ok(CreateVmsRequest { requests: vec![request], all_or_nothing: true, policy: None })
}

async fn wait_running(client: &Client, agents: &[FakeAgent], vms: u32) -> anyhow::Result<()> {
    let what = format!("{vms} VMs to be reported running");
    let running = wait_for(START_LIMIT, &what, async || {
        let status = client.status().await.ok()?;
        (status.vms.get(&plimsoll_model::VmPhase::Running) == Some(&vms)).then_some(())
    });
    running.await.with_context(|| {
        let told: usize = agents.iter().map(|agent| agent.vms().len()).sum();
        let error = agents.iter().find_map(FakeAgent::last_error);
        format!("{told} of {vms} VMs reached the agents; their last failure: {error:?}")
    })
}

/// A thousand agents keep as many connections.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sample() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert!((milliseconds(quantile(&times, 50)) - 100.0).abs() < 0.01);
        assert!((milliseconds(quantile(&times, 99)) - 198.0).abs() < 0.01);
        assert!(milliseconds(quantile(&[], 99)).abs() < 0.01);
    }
}
