//! Acceptance of reservations: through thousands of histories no capacity and no device is exceeded
//! at any instant, `book` finds the first start there is, and what moves up never moves later. Times
//! are whole seconds, so that a look at every second is a look at every instant.

use std::time::Duration;

use plimsoll_model::{Bytes, Constraint, Element, HostId, Policy, Resources, Strength, Timestamp};
use plimsoll_placement::{
    BookRefusal, Cluster, Devices, Earliest, HostState, Interval, Refusal, Request, Verdict,
};
use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any},
    test_runner::TestRunner,
};

use crate::{
    naive::{World, has_devices},
    scenario::{Tape, vm},
};

/// How many histories are run in all, and in how many tests.
const CASES: u32 = 20_000;
const SHARDS: u32 = 2;
/// No history goes on for longer, in seconds.
const END: i64 = 60;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// What a history did, so that it cannot pass by never getting anywhere.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    booked_at_once: u32,
    booked_later: u32,
    too_late: u32,
    never: u32,
    started: u32,
    waited: u32,
    moved: u32,
}

#[test]
fn reservations_never_exceed_capacity_at_any_instant_1() {
    histories();
}

#[test]
fn reservations_never_exceed_capacity_at_any_instant_2() {
    histories();
}

fn histories() {
    let seen = std::cell::Cell::new(Seen::default());
    let config = ProptestConfig { cases: CASES / SHARDS, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&vec(any::<u8>(), 0..900), |tape| {
        let mut history = History::new(&tape);
        history.seen = seen.get();
        while !history.tape.is_at_end() && history.next_vm < 40 {
            history.step();
            history.check();
        }
        seen.set(history.seen);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let seen = seen.get();
    eprintln!("{seen:?}");
    let all = [
        seen.booked_at_once,
        seen.booked_later,
        seen.too_late,
        seen.never,
        seen.started,
        seen.waited,
        seen.moved,
    ];
    assert!(all.iter().all(|times| *times > 100), "not all is tested");
}

/// A VM with what it was asked with and what it got.
#[derive(Clone, Debug)]
struct Held {
    host: HostId,
    request: Request,
    devices: Devices,
    /// How it was booked; none for what was never booked.
    wanted: Option<Earliest>,
}

struct History<'a> {
    tape: Tape<'a>,
    cluster: Cluster,
    hosts: Vec<HostState>,
    held: Vec<Held>,
    next_vm: usize,
    now: i64,
    seen: Seen,
}

/// An instant, or the time before all of them.
type When = Option<Timestamp>;

fn covers(interval: &Interval, when: When) -> bool {
    match when {
        Some(instant) => interval.contains(instant),
        None => interval.from.is_none(),
    }
}

/// What a VM holds then: all, its disk, or nothing.
fn holding(request: &Request, when: When) -> Option<Resources> {
    if covers(&request.interval, when) {
        return Some(request.demand.clone());
    }
    let disk = Interval { until: None, ..request.interval };
    let only = || Resources { disk: request.demand.disk, ..Resources::default() };
    (request.keeps_disk && covers(&disk, when)).then(only)
}

impl<'a> History<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let mut tape = Tape::new(bytes);
        let mut hosts = tape.hosts(true);
        hosts.truncate(3);
        for host in &mut hosts {
            host.unschedulable = None;
            host.capacity.cpu.0 = host.capacity.cpu.0.max(3000);
            host.capacity.disk = Bytes::gib(6);
        }
        let mut cluster = Cluster::new();
        for host in &hosts {
            cluster.upsert_host(host.clone());
        }
        let (held, seen) = (Vec::new(), Seen::default());
        Self { tape, cluster, hosts, held, next_vm: 0, now: 0, seen }
    }

    fn request(&mut self) -> Request {
        self.next_vm += 1;
        let mut request = self.tape.request(vm(self.next_vm), true);
        request.demand.cpu.0 = request.demand.cpu.0 * 3 / 2 + 500;
        if self.tape.below(3) > 0 {
            request.demand.accelerators.0.clear();
            request.accelerator = None;
            request.pinned_host = None;
        }
        request.constraints.truncate(1);
        if self.tape.below(3) > 0 {
            request.constraints.clear();
        }
        request.pool = None;
        request.keeps_disk = self.tape.once_in(2);
        request
    }

    fn wanted(&mut self) -> Earliest {
        let second = |n: usize| i64::try_from(n).unwrap();
        let after = self.now + second([0, 0, 1, 5, 9][self.tape.below(5)]);
        let duration = [None, Some(1), Some(3), Some(4), Some(5), Some(7), Some(8), Some(15)]
            [self.tape.below(8)];
        let deadline = self.tape.once_in(2).then(|| at(after + second(self.tape.below(30))));
        Earliest { after: at(after), duration: duration.map(Duration::from_secs), deadline }
    }

    fn step(&mut self) {
        let policy = self.tape.policy();
        match self.tape.below(14) {
            0..=5 => self.book(policy),
            6 => self.occupy(policy),
            7 => self.release(),
            8..=10 => self.start(policy),
            11 => self.resize(policy),
            12 => {
                self.release();
                self.move_up(policy);
            }
            _ => self.now += 1 + i64::try_from(self.tape.below(4)).unwrap(),
        }
    }

    fn hold(
        &mut self,
        host: HostId,
        request: &Request,
        devices: &Devices,
        wanted: Option<Earliest>,
    ) {
        let occupied = self.cluster.occupy_devices(host, request, devices).unwrap();
        assert!(occupied.over.is_empty(), "{occupied:?} of {request:?}");
        let placed = self.cluster.placed(request.vm).unwrap();
        let (request, devices) = (placed.request.clone(), placed.devices.clone());
        self.held.push(Held { host, request, devices, wanted });
    }

    fn book(&mut self, policy: Policy) {
        let (request, wanted) = (self.request(), self.wanted());
        let before = self.cluster.clone();
        let first = self.first_start(&request, &wanted);
        let found = self.cluster.find_booking(&request, &wanted, policy);
        match self.cluster.book(&request, &wanted, policy) {
            Ok(booking) => {
                assert_eq!(booking.interval.from, first, "the first start of {wanted:?}");
                assert_eq!(booking.interval, Interval::starting(first.unwrap(), wanted.duration));
                assert_eq!(found.as_ref(), Some(&booking));
                let late = first != Some(wanted.after);
                *(if late {
                    &mut self.seen.booked_later
                } else {
                    &mut self.seen.booked_at_once
                }) += 1;
                let choice = booking.choice;
                let request = Request { interval: booking.interval, ..request };
                self.compare(&request, policy, Some(choice.host));
                self.hold(choice.host, &request, &choice.devices, Some(wanted));
                if self.tape.once_in(4) {
                    self.cluster.release(request.vm).unwrap();
                    self.held.pop();
                    assert_eq!(self.cluster, before, "release is the inverse");
                }
            }
            Err(refusal) => {
                assert_eq!(found, None);
                match refusal {
                    BookRefusal::TooLate { interval, deadline, .. } => {
                        assert_eq!(interval.from, first);
                        let last = interval.until.or(interval.from).unwrap();
                        assert!(last > deadline && Some(deadline) == wanted.deadline);
                        self.seen.too_late += 1;
                    }
                    BookRefusal::Never { refusals } => {
                        assert_eq!((first, refusals.hosts as usize), (None, self.hosts.len()));
                        self.seen.never += 1;
                    }
                    BookRefusal::Deadline { .. } => {
                        let least = wanted.duration.unwrap_or_default();
                        assert!(
                            wanted.after.checked_add(least).unwrap() > wanted.deadline.unwrap()
                        );
                    }
                }
            }
        }
    }

    /// A VM for now, for some time or for ever.
    fn occupy(&mut self, policy: Policy) {
        let mut request = self.request();
        let seconds = [None, Some(2), Some(6), Some(20)][self.tape.below(4)];
        request.interval = Interval { from: None, until: seconds.map(|s| at(self.now + s)) };
        self.compare(&request, policy, None);
        if let Some(choice) = self.cluster.find(&request, policy) {
            self.hold(choice.host, &request, &choice.devices, None);
        }
    }

    fn release(&mut self) {
        if !self.held.is_empty() {
            let held = self.held.swap_remove(self.tape.below(self.held.len()));
            let placed = self.cluster.release(held.request.vm).unwrap();
            assert_eq!((placed.host, placed.request), (held.host, held.request));
        }
    }

    /// What is booked for now is there from now on, where it is booked: unless others are still
    /// there.
    fn start(&mut self, policy: Policy) {
        let due = |held: &Held| held.request.interval.from.is_some_and(|from| from <= at(self.now));
        let Some(index) = self.held.iter().position(due) else { return };
        let held = self.held[index].clone();
        let mut request = held.request;
        request.interval.from = None;
        request.pinned_host = Some(held.host);
        self.compare(&request, policy, None);
        match self.cluster.find(&request, policy) {
            Some(choice) => {
                self.seen.started += 1;
                self.held.swap_remove(index);
                self.cluster.release(request.vm).unwrap();
                self.hold(choice.host, &request, &choice.devices, None);
            }
            None => self.seen.waited += 1,
        }
    }

    /// Another demand over the same time, on the same host or another.
    fn resize(&mut self, policy: Policy) {
        if self.held.is_empty() {
            return;
        }
        let index = self.tape.below(self.held.len());
        let mut request = self.held[index].request.clone();
        request.demand = self.request().demand;
        self.compare(&request, policy, None);
        if let Some(choice) = self.cluster.find(&request, policy) {
            let held = self.held.swap_remove(index);
            self.cluster.release(request.vm).unwrap();
            self.hold(choice.host, &request, &choice.devices, held.wanted);
        }
    }

    /// Every booking, in the order of the starts, goes to the earliest start that is earlier.
    fn move_up(&mut self, policy: Policy) {
        let mut booked: Vec<_> = self
            .held
            .iter()
            .filter_map(|held| Some((held.request.interval.from?, held.request.vm, held.wanted?)))
            .filter(|(from, ..)| *from > at(self.now))
            .collect();
        booked.sort_by_key(|(from, vm, _)| (*from, *vm));
        for (from, vm, wanted) in booked {
            let index = self.held.iter().position(|held| held.request.vm == vm).unwrap();
            let request = self.held[index].request.clone();
            let when = Earliest { after: wanted.after.max(at(self.now)), ..wanted };
            let first = self.first_start(&request, &when);
            let found = self.cluster.book(&request, &when, policy).expect("its own place will do");
            assert_eq!(found.interval.from, first);
            assert!(found.interval.from <= Some(from), "it never moves later");
            if found.interval.from < Some(from) {
                self.seen.moved += 1;
                self.held.swap_remove(index);
                self.cluster.release(vm).unwrap();
                let request = Request { interval: found.interval, ..request };
                self.hold(found.choice.host, &request, &found.choice.devices, Some(wanted));
            }
        }
    }

    /// The first second at which some host has room and rules allow it, by a look at each.
    fn first_start(&self, request: &Request, wanted: &Earliest) -> Option<Timestamp> {
        let starts = wanted.after.as_second()..=END + 40;
        starts.map(at).find(|start| {
            let interval = Interval::starting(*start, wanted.duration);
            let request = Request { interval, ..request.clone() };
            self.hosts.iter().any(|host| self.fits(host, &request))
        })
    }

    /// The VMs but this one on a host, with what they hold then.
    fn others<'h>(
        &'h self,
        host: HostId,
        when: When,
        but: &'h Request,
    ) -> impl Iterator<Item = (&'h Held, Resources)> {
        let here = self.held.iter().filter(move |held| held.host == host);
        let others = here.filter(|held| held.request.vm != but.vm);
        others.filter_map(move |held| Some((held, holding(&held.request, when)?)))
    }

    /// The instants of an interval at which something begins or ends, its first, and the time
    /// before all of them: between them nothing changes.
    fn instants(&self, interval: &Interval) -> Vec<When> {
        let ends = self.held.iter().map(|held| held.request.interval);
        let ends = ends.flat_map(|interval| [interval.from, interval.until]).flatten();
        let all = [None, interval.from].into_iter().chain(ends.map(Some));
        let mut instants: Vec<_> = all.filter(|when| covers(interval, *when)).collect();
        instants.sort_unstable();
        instants.dedup();
        instants
    }

    /// Of each element the least that is free of a host over the time of the request.
    fn free(&self, host: &HostState, element: &Element, request: &Request) -> u64 {
        let mut interval = request.interval;
        if *element == Element::Disk && request.keeps_disk {
            interval.until = None;
        }
        if let Element::Accelerator(_) = element {
            return self.free_devices(host, element, request).iter().sum();
        }
        let promised = |when| -> u64 {
            self.others(host.id, when, request).map(|(_, demand)| demand.get(element)).sum()
        };
        let most = self.instants(&interval).into_iter().map(promised).max().unwrap();
        host.capacity.get(element).saturating_sub(most)
    }

    fn free_devices(&self, host: &HostState, element: &Element, request: &Request) -> Vec<u64> {
        let Element::Accelerator(model) = element else { return Vec::new() };
        let mut left = host.capacity.accelerators.get(model);
        let mut all = Vec::new();
        while left > 0 {
            all.push(left.min(1000));
            left -= left.min(1000);
        }
        let mut least = all.clone();
        for when in self.instants(&request.interval) {
            let mut free = all.clone();
            for (held, demand) in self.others(host.id, when, request) {
                let devices =
                    held.devices.0.get(model).filter(|_| demand.accelerators.get(model) > 0);
                for share in devices.into_iter().flatten() {
                    free[share.device as usize] -= share.thousandths;
                }
            }
            least = least.into_iter().zip(free).map(|(a, b)| a.min(b)).collect();
        }
        least
    }

    fn fits(&self, host: &HostState, request: &Request) -> bool {
        // Rules look at all VMs, at whatever time they are there.
        let everybody = self.held.iter().map(|held| {
            let request = Request { demand: Resources::default(), ..held.request.clone() };
            (held.host, request, Devices::default())
        });
        let hosts = self.hosts.iter().map(|host| (host.id, host.clone())).collect();
        let world = World { hosts, placed: everybody.collect(), workload: None };
        let mut nothing = Request { demand: Resources::default(), ..request.clone() };
        nothing.accelerator = None;
        if !world.reasons(host, &nothing).is_empty() {
            return false;
        }
        let scalars = Element::SCALARS.iter().all(|element| {
            let need = request.demand.get(element);
            let unaccounted = host.capacity.get(element) == 0
                && matches!(element, Element::DiskBandwidth | Element::DiskIops | Element::Network);
            need == 0 || unaccounted || need <= self.free(host, element, request)
        });
        let fits = |model: &plimsoll_model::Label, need| {
            let element = Element::Accelerator(model.clone());
            has_devices(self.free_devices(host, &element, request), need)
        };
        let own = &request.demand.accelerators;
        scalars
            && own.0.iter().all(|(model, need)| fits(model, *need))
            && request.accelerator.as_ref().is_none_or(|any| {
                let mut models = host.capacity.accelerators.0.keys();
                models.any(|model| {
                    any.accepts(model) && fits(model, own.get(model) + any.thousandths)
                })
            })
    }

    /// All ways to ask agree with each other and with a look at every instant of every host.
    fn compare(&self, request: &Request, policy: Policy, chosen: Option<HostId>) {
        let found = self.cluster.find(request, policy);
        assert_eq!(found, self.cluster.find_by_scan(request, policy), "{policy} of {request:?}");
        assert_eq!(found, self.cluster.decide(request, policy).ok());
        assert!(chosen.is_none() || chosen == found.as_ref().map(|choice| choice.host));
        let explanation = self.cluster.explain(request, policy);
        assert_eq!(explanation.choice, found);
        for (host, verdict) in self.hosts.iter().zip(&explanation.hosts) {
            assert_eq!(host.id, verdict.host);
            let possible = self.fits(host, request);
            assert_eq!(
                possible,
                matches!(verdict.verdict, Verdict::Possible { .. }),
                "{verdict:?}"
            );
            match &verdict.verdict {
                Verdict::Possible { score, broken, .. } => {
                    assert!(
                        broken
                            .iter()
                            .all(|rule: &Constraint| { rule.strength == Strength::Preferred })
                    );
                    if policy == Policy::MostFree {
                        assert!((score - self.mean_free(host, request)).abs() < 1e-10);
                    }
                }
                Verdict::Refused { reasons } => {
                    for reason in reasons {
                        if let Refusal::Insufficient { element, free, .. } = reason
                            && request.accelerator.is_none()
                        {
                            assert_eq!(*free, self.free(host, element, request), "{element}");
                        }
                    }
                }
            }
        }
        if policy == Policy::FirstFit && request.constraints.is_empty() {
            let first = self.hosts.iter().find(|host| self.fits(host, request));
            assert_eq!(found.map(|choice| choice.host), first.map(|host| host.id));
        }
    }

    fn mean_free(&self, host: &HostState, request: &Request) -> f64 {
        let elements: Vec<_> =
            host.capacity.elements().filter(|(_, capacity)| *capacity > 0).collect();
        let share = |(element, capacity): &(Element, u64)| {
            self.free(host, element, request) as f64 / *capacity as f64
        };
        elements.iter().map(share).sum::<f64>() / elements.len() as f64
    }

    /// At every instant no host and no device is over, and the books are those of their facts.
    fn check(&self) {
        let hosts: std::collections::BTreeMap<_, _> =
            self.hosts.iter().map(|host| (host.id, host.clone())).collect();
        for when in self.instants(&Interval::ALWAYS) {
            let placed = self.held.iter().filter_map(|held| {
                let demand = holding(&held.request, when)?;
                let devices = held.devices.clone();
                let devices =
                    if demand.accelerators.0.is_empty() { Devices::default() } else { devices };
                Some((held.host, Request { demand, ..held.request.clone() }, devices))
            });
            World { hosts: hosts.clone(), placed: placed.collect(), workload: None }.check();
        }
        let mut anew = Cluster::new();
        for host in &self.hosts {
            anew.upsert_host(host.clone());
        }
        let mut held: Vec<_> = self.held.iter().collect();
        held.sort_by_key(|held| held.request.vm);
        for held in held {
            let _ = anew.occupy_devices(held.host, &held.request, &held.devices).unwrap();
        }
        assert_eq!(self.cluster, anew, "another order of the facts");
    }
}
