//! Numbers for Prometheus. Requests are counted as they happen; what is true of the cluster is read
//! from its state when somebody looks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use plimsoll_api::v1::{ClusterStatus, MigrationOutcome};
use plimsoll_model::{Element, HostPhase, Resources, VmPhase};
use plimsoll_store::{Batch, CommitError, Contents, Store, StoreError};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Moves of VMs, counted as they end. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct MoveMetrics {
    outcomes: Family<OutcomeLabels, Counter>,
    downtimes: Histogram,
}

impl Default for MoveMetrics {
    fn default() -> Self {
        // 1 ms to 16 s.
        let downtimes = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self { outcomes: Family::default(), downtimes }
    }
}

impl MoveMetrics {
    /// Counts a move that is over.
    pub(crate) fn over(&self, outcome: MigrationOutcome) {
        let outcome = match outcome {
            MigrationOutcome::Moved => "moved",
            MigrationOutcome::Failed => "failed",
            MigrationOutcome::Cancelled => "cancelled",
        };
        self.outcomes.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Notes how long a VM stood still.
    pub(crate) fn stood_still(&self, time: Duration) {
        self.downtimes.observe(time.as_secs_f64());
    }
}

type Latencies = Family<RouteLabels, Histogram, fn() -> Histogram>;

/// A store whose commits are timed.
pub(crate) struct TimedStore<S> {
    store: S,
    commits: Histogram,
}

impl<S: Store> Store for TimedStore<S> {
    fn load(&mut self) -> Result<Contents, StoreError> {
        self.store.load()
    }

    fn commit(&mut self, batch: &Batch) -> Result<u64, CommitError> {
        let started = Instant::now();
        let revision = self.store.commit(batch);
        self.commits.observe(started.elapsed().as_secs_f64());
        revision
    }
}

/// All metrics of a manager. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latencies: Latencies,
    commits: Histogram,
    hosts: Family<PhaseLabels, Gauge>,
    vms: Family<PhaseLabels, Gauge>,
    capacity: Family<ResourceLabels, Gauge>,
    committed: Family<ResourceLabels, Gauge>,
    moves: MoveMetrics,
}

fn latency() -> Histogram {
    // 0.5 ms to 16 s.
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("plimsoll");
        let requests = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let latencies = Latencies::new_with_constructor(latency);
        registry.register_with_unit(
            "http_request_duration",
            "Time until the answer began",
            Unit::Seconds,
            latencies.clone(),
        );
        let commits = latency();
        registry.register_with_unit(
            "commit_duration",
            "Time until a transaction of the store was durable",
            Unit::Seconds,
            commits.clone(),
        );
        let (hosts, vms) = (Family::default(), Family::default());
        registry.register("hosts", "Hosts by phase", hosts.clone());
        registry.register("vms", "VMs by phase", vms.clone());
        let (capacity, committed) = (Family::default(), Family::default());
        registry.register("capacity", "What all hosts have, in base units", capacity.clone());
        registry.register("committed", "What VMs were promised of it", committed.clone());
        let moves = MoveMetrics::default();
        registry.register("migrations", "Moves of VMs that are over", moves.outcomes.clone());
        registry.register_with_unit(
            "migration_downtime",
            "How long VMs stood still that were moved",
            Unit::Seconds,
            moves.downtimes.clone(),
        );
        Self(Arc::new(Inner {
            moves,
            registry,
            requests,
            latencies,
            commits,
            hosts,
            vms,
            capacity,
            committed,
        }))
    }

    /// Counts a request.
    pub(crate) fn request(&self, method: &str, route: &str, status: u16, elapsed: Duration) {
        // Methods are the client's free choice; labels must not be.
        let method = match method {
            "GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD" => method,
            _ => "other",
        };
        let labels = RequestLabels { method: method.into(), route: route.into(), status };
        self.0.requests.get_or_create(&labels).inc();
        let labels = RouteLabels { route: route.into() };
        self.0.latencies.get_or_create(&labels).observe(elapsed.as_secs_f64());
    }

    /// Where moves are counted.
    pub(crate) fn moves(&self) -> MoveMetrics {
        self.0.moves.clone()
    }

    /// The same store, with its commits timed.
    pub(crate) fn timed<S: Store>(&self, store: S) -> TimedStore<S> {
        TimedStore { store, commits: self.0.commits.clone() }
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// The text cannot be written.
    pub(crate) fn render(&self, cluster: &ClusterStatus) -> Result<String, std::fmt::Error> {
        const HOST_PHASES: [HostPhase; 4] =
            [HostPhase::Up, HostPhase::Unreachable, HostPhase::Dead, HostPhase::Fenced];
        const VM_PHASES: [VmPhase; 8] = [
            VmPhase::Pending,
            VmPhase::Starting,
            VmPhase::Running,
            VmPhase::Stopping,
            VmPhase::Stopped,
            VmPhase::Failed,
            VmPhase::Unknown,
            VmPhase::Deleting,
        ];
        // All phases, so that one that is empty now does not keep its last value.
        for phase in HOST_PHASES {
            let count = cluster.hosts.get(&phase).copied().unwrap_or(0);
            let labels = PhaseLabels { phase: phase.to_string() };
            self.0.hosts.get_or_create(&labels).set(i64::from(count));
        }
        for phase in VM_PHASES {
            let count = cluster.vms.get(&phase).copied().unwrap_or(0);
            let labels = PhaseLabels { phase: phase.to_string() };
            self.0.vms.get_or_create(&labels).set(i64::from(count));
        }
        set_all(&self.0.capacity, &cluster.capacity);
        set_all(&self.0.committed, &cluster.committed);
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}

fn set_all(gauges: &Family<ResourceLabels, Gauge>, resources: &Resources) {
    gauges.clear();
    let scalars = Element::SCALARS.into_iter().zip(resources.scalars());
    let devices = resources
        .accelerators
        .0
        .iter()
        .map(|(model, amount)| (Element::Accelerator(model.clone()), *amount));
    for (element, amount) in scalars.chain(devices) {
        let labels = ResourceLabels { resource: element.to_string().replace(' ', "_") };
        gauges.get_or_create(&labels).set(i64::try_from(amount).unwrap_or(i64::MAX));
    }
}
