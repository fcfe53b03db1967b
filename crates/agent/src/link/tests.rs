use std::path::Path;

use futures_util::FutureExt as _;
use plimsoll_api::cluster::{ObservedPhase, Wanted};
use plimsoll_model::VmId;
use tokio::task::JoinHandle;

use super::*;
use crate::{
    config::DeclaredCapacity,
    ksm::Deduplication,
    telemetry::Divided,
    testing::{Behaviour, FakeManager, host_spec, wait_for},
    vm::lease::Lease,
};

/// VMs that only take note of what they are told.
#[derive(Default)]
struct FakeVms {
    heard: Mutex<Vec<(Vec<DesiredVm>, BootTime)>>,
    observed: Mutex<Vec<ObservedVm>>,
    changes: watch::Sender<u64>,
}

impl FakeVms {
    fn observe(&self, vms: Vec<ObservedVm>) {
        *self.observed.lock() = vms;
        self.changes.send_modify(|count| *count += 1);
    }
}

impl VmSet for FakeVms {
    fn want(&self, wishes: &[DesiredVm], asked_at: BootTime) {
        self.heard.lock().push((wishes.to_vec(), asked_at));
    }

    fn observed(&self) -> Vec<ObservedVm> {
        self.observed.lock().clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Networks that fail, or take for ever.
#[derive(Default)]
struct FakeNetworks {
    known: Mutex<Vec<Vec<DesiredNetwork>>>,
    settled: Mutex<u32>,
    hang: bool,
}

impl NetworkSet for FakeNetworks {
    fn know(&self, networks: &[DesiredNetwork]) -> Result<(), HostError> {
        self.known.lock().push(networks.to_vec());
        Ok(())
    }

    fn settle(&self) -> BoxFuture<'_, Vec<(u32, HostError)>> {
        *self.settled.lock() += 1;
        let hang = self.hang;
        async move {
            if hang {
                std::future::pending::<()>().await;
            }
            vec![(7, "no bridge today".into())]
        }
        .boxed()
    }
}

struct Host {
    vms: Arc<FakeVms>,
    networks: Arc<FakeNetworks>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), LinkError>>,
    lease: PathBuf,
}

impl Host {
    fn start(manager: &FakeManager, directory: &Path, networks: FakeNetworks) -> Self {
        let vms = Arc::new(FakeVms::default());
        let networks = Arc::new(networks);
        let (_, spec) = watch::channel(host_spec());
        let lease = directory.join("lease.json");
        let link = Link {
            client: manager.client(),
            vms: Arc::clone(&vms) as _,
            networks: Arc::clone(&networks) as _,
            spec,
            usage: UsageSampler::new(
                directory.to_owned(),
                std::net::Ipv4Addr::LOCALHOST.into(),
                &DeclaredCapacity::default(),
                watch::channel(Divided::default()).1,
                Deduplication::off(),
            ),
            lease_path: lease.clone(),
            state_path: directory.join("link.json"),
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(link.run(shutdown.clone()));
        Self { vms, networks, shutdown, task, lease }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    fn heard(&self) -> Vec<(Vec<DesiredVm>, BootTime)> {
        self.vms.heard.lock().clone()
    }

    fn lease(&self) -> Option<Lease> {
        Lease::read(&self.lease)
    }

    fn deadline(&self) -> Option<BootTime> {
        self.lease()?.deadline_boottime_ms
    }
}

fn wanted(generation: u64) -> DesiredHost {
    let vm = VmId(uuid::Uuid::from_u128(u128::from(generation)));
    let wanted = Wanted::Absent { delete_disk: true };
    let vms = vec![DesiredVm { vm, incarnation: 1, wanted }];
    DesiredHost { generation, vms, networks: Vec::new() }
}

fn running(vm: u128) -> ObservedVm {
    ObservedVm {
        vm: VmId(uuid::Uuid::from_u128(vm)),
        incarnation: 1,
        generation: 1,
        phase: ObservedPhase::Running,
        message: None,
        restarts: 0,
        disk_exists: true,
        guest: None,
        limits: None,
        deflation: None,
        share: None,
        deduplication: None,
        migration: None,
    }
}

#[tokio::test]
async fn what_is_wanted_comes_in_and_what_is_observed_goes_out() {
    let directory = tempfile::tempdir().unwrap();
    let manager = FakeManager::start().await;
    let host = Host::start(&manager, directory.path(), FakeNetworks::default());
    manager.want(wanted(3));
    wait_for("the wish", || {
        host.heard().iter().any(|(vms, _)| *vms == wanted(3).vms).then_some(())
    })
    .await;
    host.vms.observe(vec![running(5)]);
    let report = wait_for("the report", || {
        manager.book(|book| {
            let last = &book.reports.last()?.1;
            (last.desired_generation == 3 && last.vms.len() == 1).then(|| last.clone())
        })
    })
    .await;
    assert_eq!(report.usage.running_vms, 1);
    assert_eq!(report.spec, host_spec());
    manager.book(|book| {
        let sequences: Vec<_> = book.reports.iter().map(|(_, report)| report.sequence).collect();
        assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
        assert!(book.reports.iter().all(|(_, r)| r.session == report.session));
    });
    // A lease without end.
    assert_eq!(host.lease().unwrap().deadline_boottime_ms, None);
    host.stop().await;
}

#[tokio::test]
async fn a_change_is_told_at_once_and_changes_in_quick_succession_together() {
    let directory = tempfile::tempdir().unwrap();
    let manager = FakeManager::start().await;
    manager.book(|book| book.interval_ms = 60_000);
    let host = Host::start(&manager, directory.path(), FakeNetworks::default());
    wait_for("the first lease", || host.lease()).await;
    for count in 1..200 {
        host.vms.observe(vec![running(count)]);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    wait_for("the last change", || {
        manager.book(|book| (book.reports.last()?.1.vms == vec![running(199)]).then_some(()))
    })
    .await;
    let count = manager.book(|book| book.reports.len());
    // 400 ms or more of changes, at most one report each 200 ms; a slow machine takes longer.
    assert!(count < 100, "{count} reports");
    host.stop().await;
}

#[tokio::test]
async fn a_network_that_hangs_keeps_no_vm_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let manager = FakeManager::start().await;
    let networks = FakeNetworks { hang: true, ..FakeNetworks::default() };
    let host = Host::start(&manager, directory.path(), networks);
    for generation in 1..4 {
        manager.want(wanted(generation));
        wait_for("the wish", || {
            let heard = host.heard();
            (heard.last()?.0 == wanted(generation).vms).then_some(())
        })
        .await;
    }
    // Each wish came after its networks.
    assert!(host.networks.known.lock().len() >= host.heard().len());
    assert!(*host.networks.settled.lock() >= 3);
    host.stop().await;
}

#[tokio::test]
async fn a_lost_reply_neither_renews_nor_repeats_a_sequence_number() {
    let directory = tempfile::tempdir().unwrap();
    let manager = FakeManager::start().await;
    manager.book(|book| {
        book.lease_ms = Some(60_000);
        book.behaviour = Behaviour::LoseReply;
    });
    let host = Host::start(&manager, directory.path(), FakeNetworks::default());
    for behaviour in [Behaviour::LoseReply, Behaviour::Fail] {
        let before = manager.book(|book| {
            book.behaviour = behaviour;
            book.reports.len()
        });
        wait_for("reports", || {
            manager.book(|book| (book.reports.len() > before + 1).then_some(()))
        })
        .await;
        assert_eq!(host.lease(), None, "{behaviour:?}");
    }
    manager.book(|book| book.behaviour = Behaviour::Answer);
    wait_for("a lease", || host.deadline()).await;
    manager.book(|book| {
        let increasing =
            book.reports.windows(2).all(|pair| pair[0].1.sequence < pair[1].1.sequence);
        assert!(increasing);
    });
    host.stop().await;
}

#[tokio::test]
async fn the_deadline_counts_from_the_sending_of_the_report() {
    let directory = tempfile::tempdir().unwrap();
    let manager = FakeManager::start().await;
    manager.book(|book| book.lease_ms = Some(30_000));
    let host = Host::start(&manager, directory.path(), FakeNetworks::default());
    for _ in 0..20 {
        let deadline = wait_for("a lease", || host.deadline()).await;
        // The manager got the last report that was answered after it was sent.
        let received = manager.book(|book| book.reports.last().unwrap().0);
        assert!(deadline <= received.plus(30_000));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    host.stop().await;
}

#[tokio::test]
async fn a_refused_connection_renews_and_a_silent_manager_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut manager = FakeManager::start().await;
    manager.book(|book| book.lease_ms = Some(1_500));
    let host = Host::start(&manager, directory.path(), FakeNetworks::default());
    let first = wait_for("a lease", || host.lease()).await;
    manager.stop().await;
    let later = first.deadline_boottime_ms.unwrap().plus(3_000);
    wait_for("renewals by refusals", || (host.deadline()? > later).then_some(())).await;
    assert_eq!(host.lease().unwrap().since_boottime_ms, first.since_boottime_ms, "without a gap");

    manager.book(|book| book.behaviour = Behaviour::Hang);
    manager.start_again().await;
    let boot_id = &first.boot_id;
    wait_for("the lease's end", || (!host.lease()?.holds(boot_id, BootTime::now())).then_some(()))
        .await;
    let ended = host.lease().unwrap();
    let asked = manager.book(|book| {
        book.behaviour = Behaviour::Answer;
        book.lease_ms = Some(60_000);
        book.asked_after.len()
    });
    manager.want(wanted(9));
    let new = wait_for("a new lease", || {
        host.lease().filter(|lease| lease.holds(boot_id, BootTime::now()))
    })
    .await;
    assert!(new.since_boottime_ms > ended.deadline_boottime_ms.unwrap());
    // Everything is asked anew, and what comes is younger than the gap.
    wait_for("a fresh wish", || {
        let heard = host.heard();
        let (vms, asked_at) = heard.last()?;
        (*asked_at >= new.since_boottime_ms && *vms == wanted(9).vms).then_some(())
    })
    .await;
    assert!(manager.book(|book| book.asked_after[asked..].contains(&0)));
    host.stop().await;
}

#[tokio::test]
async fn an_agent_that_restarts_alone_knows_what_was_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let mut manager = FakeManager::start().await;
    manager.book(|book| book.lease_ms = Some(60_000));
    manager.want(wanted(4));
    let host = Host::start(&manager, directory.path(), FakeNetworks::default());
    let since = wait_for("a lease", || host.lease()).await.since_boottime_ms;
    let asked_at = wait_for("the wish", || {
        let heard = host.heard();
        heard.last().map(|(_, asked_at)| *asked_at).filter(|asked_at| *asked_at >= since)
    })
    .await;
    host.stop().await;
    manager.stop().await;

    let host = Host::start(&manager, directory.path(), FakeNetworks::default());
    let (vms, again) = wait_for("the wish from disk", || host.heard().first().cloned()).await;
    assert_eq!((vms, again), (wanted(4).vms, asked_at));
    let deadline = host.deadline().unwrap();
    wait_for("a renewal by refusal", || (host.deadline()? > deadline).then_some(())).await;

    manager.book(|book| book.reports.clear());
    manager.start_again().await;
    let report = wait_for("the first report", || {
        manager.book(|book| book.reports.first().map(|(_, report)| report.clone()))
    })
    .await;
    assert_eq!(report.desired_generation, 4);
    host.stop().await;
}

#[tokio::test]
async fn a_manager_whose_state_went_back_is_asked_anew() {
    let directory = tempfile::tempdir().unwrap();
    let manager = FakeManager::start().await;
    manager.want(wanted(50));
    let host = Host::start(&manager, directory.path(), FakeNetworks::default());
    let reported = |generation| {
        manager.book(|book| (book.reports.last()?.1.desired_generation == generation).then_some(()))
    };
    wait_for("the first state", || reported(50)).await;
    manager.want(wanted(40));
    wait_for("the older state", || reported(40)).await;
    assert_eq!(host.heard().last().unwrap().0, wanted(40).vms);
    host.stop().await;
}
