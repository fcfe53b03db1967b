//! A VM with a load in it, as its user reaches it.

use std::time::Duration;

use base64::Engine as _;
use plimsoll_api::{
    Client,
    agent::ExecRequest,
    cluster::DeflationOutcome,
    v1::{DeflateVmRequest, VmView},
};
use plimsoll_model::{Bytes, Level, Name, VmPhase};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::failure::{Failure, Outcome};

/// A guest boots in seconds, writes its files in a minute or two, and answers.
const LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(200);
/// What the load prints, in the guest's memory.
const REPORT: &str = "/run/load.jsonl";
/// A guest that swaps may keep its host waiting: its agent is asked so many times. What is asked may
/// be asked twice.
const PATIENCE: u32 = 3;
/// A guest that swaps may print no line for a while.
const SLOWEST: Duration = Duration::from_secs(60);

/// A line of a load's report.
#[derive(Debug, Deserialize)]
struct Line {
    event: String,
    seconds: f64,
    #[serde(default)]
    operations: u64,
}

/// A VM with a load.
pub(super) struct Guest {
    client: Client,
    project: Name,
    name: Name,
}

impl Guest {
    pub(super) fn new(client: Client, project: Name, name: Name) -> Self {
        Self { client, project, name }
    }

    pub(super) async fn view(&self) -> Outcome<VmView> {
        Ok(self.client.vm(&self.project, &self.name).await?)
    }

    /// Waits until something is so of the VM.
    async fn until(&self, what: &str, is_so: impl Fn(&VmView) -> bool) -> Outcome<VmView> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let view = self.view().await?;
            if is_so(&view) {
                return Ok(view);
            }
            if Instant::now() >= deadline {
                let message = view.message.unwrap_or_default();
                return Err(Failure::new(message).context(format!("vm {}: {what}", self.name)));
            }
            sleep(POLL).await;
        }
    }

    /// Waits until the guest answers.
    pub(super) async fn until_booted(&self) -> Outcome {
        let booted = |view: &VmView| view.state == VmPhase::Running && view.guest.is_some();
        self.until("does not boot", booted).await.map(drop)
    }

    /// What a script in the guest prints.
    pub(super) async fn shell(&self, script: &str) -> Outcome<String> {
        let request = ExecRequest {
            argv: ["sh", "-c", script].map(str::to_owned).into(),
            stdin: String::new(),
            timeout_ms: 60_000,
        };
        let mut response = self.client.exec(&self.project, &self.name, &request).await;
        for _ in 1..PATIENCE {
            if response.is_ok() {
                break;
            }
            response = self.client.exec(&self.project, &self.name, &request).await;
        }
        let response = response?;
        let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text);
        if response.exit_code != Some(0) {
            let error = String::from_utf8_lossy(&decode(&response.stderr)?).into_owned();
            return Err(
                Failure::new(error).context(format!("`{script}` failed in vm {}", self.name))
            );
        }
        Ok(String::from_utf8_lossy(&decode(&response.stdout)?).into_owned())
    }

    /// Waits for the guest, starts a load in it that goes on, and waits until that is ready.
    pub(super) async fn begin(&self, load: &str, arguments: &[String]) -> Outcome {
        self.until_booted().await?;
        let arguments = arguments.join(" ");
        self.shell(&format!(
            "plimsoll-workload {load} {arguments} --seconds 0 > {REPORT} 2>&1 < /dev/null &"
        ))
        .await?;
        let deadline = Instant::now() + LIMIT;
        while !self.shell(&format!("cat {REPORT}")).await?.contains("\"ready\"") {
            if Instant::now() >= deadline {
                return Err(Failure::new(format!("the load {load} does not get ready")));
            }
            self.check().await?;
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Fails if the load has ended.
    pub(super) async fn check(&self) -> Outcome {
        let script = format!("pidof plimsoll-workload > /dev/null || tail -n 1 {REPORT}");
        let last = self.shell(&script).await?;
        if last.is_empty() {
            return Ok(());
        }
        Err(Failure::new(last.trim()).context(format!("the load in vm {} has ended", self.name)))
    }

    /// Lets the load stand still.
    pub(super) async fn pause(&self) -> Outcome {
        self.shell("kill -STOP $(pidof plimsoll-workload)").await.map(drop)
    }

    /// Lets the load go on.
    pub(super) async fn resume(&self) -> Outcome {
        self.shell("kill -CONT $(pidof plimsoll-workload)").await.map(drop)
    }

    /// Lets caches and swap find their balance.
    pub(super) async fn settle(&self, time: Duration) {
        sleep(time).await;
    }

    /// Operations a second in the window that begins now.
    pub(super) async fn throughput(&self, window: Duration) -> Outcome<f64> {
        let lines: u64 = self.shell(&format!("wc -l < {REPORT}")).await?.trim().parse()?;
        sleep(window).await;
        let deadline = Instant::now() + SLOWEST;
        loop {
            // The line after the last began before the window did.
            let text = self.shell(&format!("tail -n +{} {REPORT}", lines + 2)).await?;
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
            let (operations, seconds) = lines
                .filter(|line| line.event == "second")
                .fold((0, 0.0), |sum, line| (sum.0 + line.operations, sum.1 + line.seconds));
            if seconds > 0.0 {
                self.check().await?;
                return Ok(operations as f64 / seconds);
            }
            self.check().await?;
            if Instant::now() >= deadline {
                return Err(Failure::new(format!("the load in vm {} stands still", self.name)));
            }
            sleep(POLL).await;
        }
    }

    /// Takes a part of its memory, asking from a level on.
    pub(super) async fn deflate(
        &self,
        memory_percent: u8,
        from: Level,
    ) -> Outcome<DeflationOutcome> {
        let request = DeflateVmRequest { memory_percent, from, ..DeflateVmRequest::default() };
        let asked = self.client.deflate_vm(&self.project, &self.name, &request).await?.generation;
        let settled = |view: &VmView| {
            let outcome = view.deflation_outcome.as_ref();
            outcome.is_some_and(|outcome| outcome.generation == asked)
        };
        let view = self.until("is not deflated", settled).await?;
        view.deflation_outcome.ok_or_else(|| Failure::new("the deflation has no outcome"))
    }

    pub(super) async fn inflate(&self) -> Outcome {
        let asked = self.client.inflate_vm(&self.project, &self.name).await?.generation;
        let inflated = |view: &VmView| view.observed_generation >= asked;
        self.until("is not inflated", inflated).await.map(drop)
    }

    /// What of the VM lies in the host's swap space, as was last reported.
    pub(super) async fn swapped(&self) -> Outcome<Bytes> {
        let limits = self.view().await?.limits;
        Ok(limits.and_then(|limits| limits.memory_swapped).unwrap_or(Bytes::ZERO))
    }
}
