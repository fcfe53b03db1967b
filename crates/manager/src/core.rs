//! The manager's heart: the state, the one way to change it, and what is known beside it.
//!
//! ```text
//!   app functions ---- commands ----> committer (one thread) ----> store (durable)
//!        ^                                |
//!        |  snapshot (immutable)          v
//!        +------------------------- published state ----> waiting agents, users, reconcilers
//! ```
//!
//! Nothing is published before it is durable: on disk before it is acted on.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use plimsoll_model::{HostId, Timestamp, TokenId, VmId};
use plimsoll_store::{Store, StoreError};
use rand::{SeedableRng, rngs::StdRng};
use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::{
    app::AppError,
    metrics::MoveMetrics,
    reconcile::{FencingCommand, balance::Balance, draining::HeldUp, reservations::Review},
};

pub mod clock;
pub(crate) mod committer;
pub mod desired;
pub(crate) mod load;
pub mod migration;
pub(crate) mod observe;
pub(crate) mod pace;
pub mod record;
#[cfg(test)]
pub(crate) mod rig;
pub mod state;
pub(crate) mod telemetry;
pub(crate) mod txn;

pub use clock::{Clock, ManualClock, SystemClock};
pub use state::{State, Usage};

use committer::{Committer, Executed, Message};
use pace::Pace;
use telemetry::Telemetry;
use txn::Txn;

/// How long a command of our own waits for a place in the queue.
const MAX_QUEUEING: Duration = Duration::from_secs(10);
/// So many hosts are told what changed in a second, for each core of this machine: one costs about
/// half a millisecond in all, so this is a quarter of the machine.
const TOLD_PER_CORE: u32 = 500;
/// So many are told at once after a rest: no pace is felt but in a burst.
const TOLD_AT_ONCE: u32 = 250;
/// No host waits longer for its turn.
const MAX_UNTOLD: Duration = Duration::from_secs(5);

/// How a manager is set up, beside what the store's settings say.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// What fences a dead host; without, only operators and leases do.
    pub fencing: Option<FencingCommand>,
    /// How much longer than the lease the manager waits before it counts a host as fenced: covers
    /// the time that a guard needs to act.
    pub lease_margin: Duration,
    /// How often the reconcilers look, when nothing nudges them.
    pub reconcile_every: Duration,
    /// How many changes may wait.
    pub queue: usize,
    /// How many events are kept.
    pub keep_events: usize,
    /// For tests: the seed of all ids. Without, the operating system's.
    pub seed: Option<u64>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where moves are counted.
    pub moves: MoveMetrics,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            fencing: None,
            lease_margin: Duration::from_secs(5),
            reconcile_every: Duration::from_secs(1),
            queue: 4096,
            keep_events: 100_000,
            seed: None,
            clock: Arc::new(SystemClock::default()),
            moves: MoveMetrics::default(),
        }
    }
}

/// A manager that cannot start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The store cannot be read.
    #[error("cannot read the cluster's state")]
    Load(#[source] StoreError),
    /// The first commit failed.
    #[error("cannot write to the store")]
    Commit(#[source] plimsoll_store::CommitError),
    /// A record names what is not there.
    #[error("the stored state contradicts itself: {what}")]
    Inconsistent {
        /// What is wrong.
        what: String,
    },
    /// The committer's thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// The operating system has no randomness.
    #[error("the operating system gives no random bytes: {0}")]
    Random(String),
}

/// The published state.
pub(crate) struct Published {
    state: RwLock<Arc<State>>,
    revision: watch::Sender<u64>,
    hosts: Mutex<HashMap<HostId, Arc<Notify>>>,
}

impl Published {
    fn new(state: &State) -> Self {
        Self {
            state: RwLock::new(Arc::new(state.clone())),
            revision: watch::Sender::new(state.revision()),
            hosts: Mutex::default(),
        }
    }

    pub(crate) fn publish(&self, state: &State) {
        *self.state.write() = Arc::new(state.clone());
        self.revision.send_replace(state.revision());
        if !state.touched.is_empty() {
            let hosts = self.hosts.lock();
            for host in &state.touched {
                if let Some(notify) = hosts.get(host) {
                    notify.notify_waiters();
                }
            }
        }
    }

    /// Wakes those who wait for what the host should do.
    pub(crate) fn host_changed(&self, host: HostId) -> Arc<Notify> {
        Arc::clone(self.hosts.lock().entry(host).or_default())
    }
}

struct Inner {
    config: CoreConfig,
    published: Arc<Published>,
    queue: mpsc::Sender<Message>,
    telemetry: Telemetry,
    tasks: Mutex<BTreeMap<&'static str, String>>,
    /// Why VMs that are pending wait, as of the last try.
    waiting: Mutex<HashMap<VmId, String>>,
    /// VMs that were to leave a host that is emptied, and did not.
    held_up: Mutex<BTreeMap<VmId, HeldUp>>,
    /// How far the look at all bookings is.
    review: Mutex<Review>,
    /// What is remembered for balancing.
    balance: Balance,
    nudge: Notify,
    /// At which hosts are told what they should do.
    pace: Pace,
    started_at: Timestamp,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// The handle to a manager's state. Clones are the same manager.
#[derive(Clone)]
pub struct Core {
    inner: Arc<Inner>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("revision", &self.snapshot().revision())
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Reads the state from the store and starts to take commands. Reconcilers are started apart:
    /// see [`crate::reconcile::spawn`].
    ///
    /// # Errors
    /// The store cannot be read or written, or contradicts itself.
    pub fn open(config: CoreConfig, mut store: Box<dyn Store>) -> Result<Self, OpenError> {
        let contents = store.load().map_err(OpenError::Load)?;
        let mut state = load::state(&contents)?;
        let mut cluster = load::cluster(&state)?;
        let mut random = match config.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).map_err(|error| OpenError::Random(error.to_string()))?;
                StdRng::from_seed(seed)
            }
        };
        let now = config.clock.now();
        let mut txn = Txn::begin(&state, &mut cluster, &mut random, now);
        load::note_start(&mut txn);
        let batch = txn.batch(config.keep_events).map_err(OpenError::Load)?;
        let revision = store.commit(&batch).map_err(OpenError::Commit)?;
        state = txn.into_parts().0;
        state.revision = revision;
        let hosts: Vec<HostId> = state.hosts.keys().copied().collect();
        for host in hosts {
            state.touch(host, revision);
        }
        let telemetry = Telemetry::default();
        for record in state.hosts.values() {
            let lease = Duration::from_millis(record.longest_lease_ms);
            telemetry.begin(record.host.id, config.clock.monotonic(), lease);
        }
        let published = Arc::new(Published::new(&state));
        let (queue, receiver) = mpsc::channel(config.queue.max(1));
        let committer = Committer {
            store,
            cluster,
            state,
            random,
            clock: Arc::clone(&config.clock),
            published: Arc::clone(&published),
            keep_events: config.keep_events,
        };
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || committer.run(receiver))
            .map_err(OpenError::Thread)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cores = u32::try_from(cores).unwrap_or(u32::MAX);
        let inner = Inner {
            config,
            published,
            queue,
            telemetry,
            tasks: Mutex::default(),
            waiting: Mutex::default(),
            held_up: Mutex::default(),
            review: Mutex::default(),
            balance: Balance::default(),
            nudge: Notify::new(),
            pace: Pace::new(TOLD_PER_CORE.saturating_mul(cores), TOLD_AT_ONCE, MAX_UNTOLD),
            started_at: now,
            thread: Mutex::new(Some(thread)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The newest published state. It never changes; take a new one to see more.
    #[must_use]
    pub fn snapshot(&self) -> Arc<State> {
        Arc::clone(&self.inner.published.state.read())
    }

    /// Tells of every new revision.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.inner.published.revision.subscribe()
    }

    /// When this manager started.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        self.inner.started_at
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.config.clock.now()
    }

    /// Takes no more commands, finishes those that wait, and closes the store.
    pub async fn close(&self) {
        let _ = self.inner.queue.send(Message::Close).await;
        let thread = self.inner.thread.lock().take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    /// Each reconciler's last result.
    #[must_use]
    pub fn tasks(&self) -> BTreeMap<String, String> {
        let tasks = self.inner.tasks.lock();
        tasks.iter().map(|(name, result)| ((*name).to_owned(), result.clone())).collect()
    }

    pub(crate) fn note_task(&self, name: &'static str, result: String) {
        self.inner.tasks.lock().insert(name, result);
    }

    /// Why a VM that is pending waits, as of the last try.
    pub(crate) fn waiting(&self, vm: VmId) -> Option<String> {
        self.inner.waiting.lock().get(&vm).cloned()
    }

    /// VMs that were to leave a host that is emptied, and did not.
    pub(crate) fn held_up(&self) -> parking_lot::MutexGuard<'_, BTreeMap<VmId, HeldUp>> {
        self.inner.held_up.lock()
    }

    /// Notes why VMs wait; those that are not named no longer do.
    pub(crate) fn note_waiting(&self, waiting: HashMap<VmId, String>) {
        *self.inner.waiting.lock() = waiting;
    }

    /// How far the look at all bookings is.
    pub(crate) fn review(&self) -> Review {
        *self.inner.review.lock()
    }

    pub(crate) fn note_review(&self, review: Review) {
        *self.inner.review.lock() = review;
    }

    /// What is remembered for balancing.
    pub(crate) fn balance(&self) -> &Balance {
        &self.inner.balance
    }

    pub(crate) fn config(&self) -> &CoreConfig {
        &self.inner.config
    }

    pub(crate) fn monotonic(&self) -> Duration {
        self.inner.config.clock.monotonic()
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.inner.telemetry
    }

    pub(crate) fn published(&self) -> &Published {
        &self.inner.published
    }

    /// At which hosts are told what they should do.
    pub(crate) fn pace(&self) -> &Pace {
        &self.inner.pace
    }

    /// Has the reconcilers look at once.
    pub(crate) fn nudge(&self) {
        self.inner.nudge.notify_waiters();
    }

    pub(crate) fn nudged(&self) -> &Notify {
        &self.inner.nudge
    }

    /// Users are refused while the last quarter of the queue is in use: that is for what hosts
    /// report and for reconcilers, which wait their turn.
    async fn enqueue(&self, message: Message, from_user: bool) -> Result<(), AppError> {
        let queue = &self.inner.queue;
        let place = if from_user {
            if queue.capacity() <= queue.max_capacity() / 4 {
                return Err(AppError::Busy);
            }
            queue.try_reserve().map_err(|error| match error {
                mpsc::error::TrySendError::Full(()) => AppError::Busy,
                mpsc::error::TrySendError::Closed(()) => AppError::ShuttingDown,
            })?
        } else {
            tokio::time::timeout(MAX_QUEUEING, queue.reserve())
                .await
                .map_err(|_| AppError::Busy)?
                .map_err(|_| AppError::ShuttingDown)?
        };
        place.send(message);
        Ok(())
    }

    /// Runs a command and returns once what it changed is durable and published. It runs to its end
    /// even if the caller no longer waits.
    ///
    /// # Errors
    /// The command's own; or the queue is full, the manager is stopping, or the store refused.
    pub(crate) async fn submit<T, F>(
        &self,
        actor: Option<TokenId>,
        command: F,
    ) -> Result<T, AppError>
    where
        F: FnOnce(&mut Txn<'_>) -> Result<T, AppError> + Send + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let run = move |txn: &mut Txn<'_>| {
            txn.actor = actor;
            match command(txn) {
                Ok(value) => Executed {
                    succeeded: true,
                    answer: Box::new(move |written| {
                        let _ = sender.send(written.map(|()| value).map_err(AppError::Store));
                    }),
                },
                Err(error) => Executed {
                    succeeded: false,
                    answer: Box::new(move |_| {
                        let _ = sender.send(Err(error));
                    }),
                },
            }
        };
        self.enqueue(Message::Run(Box::new(run)), actor.is_some()).await?;
        receiver.await.map_err(|_| AppError::ShuttingDown)?
    }
}

#[cfg(test)]
mod tests;
