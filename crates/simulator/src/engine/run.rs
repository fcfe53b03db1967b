//! One run: arrivals are placed, departures give back.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use plimsoll_model::{Policy, VmId};
use plimsoll_placement::{Choice, Cluster, OccupyError, Placed, Request};
use thiserror::Error;

use super::{EventQueue, SimTime};

/// A VM that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// What it asks for. Its id must be one that no running VM has.
    pub request: Request,
    /// How long it runs, in milliseconds; none when it outlives the run.
    pub lifetime_ms: Option<u64>,
}

/// VMs that arrive together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When; never before the arrival that came before.
    pub at: SimTime,
    /// The VMs, in the order in which they are placed (the `ffd` policies sort them by size).
    pub vms: Vec<Newcomer>,
    /// Whether they are placed all or not at all.
    pub all_or_nothing: bool,
}

/// Watches a run. Every method may end it, at once and without an error, by `Break`.
pub trait Observer {
    /// Time moves on to `to`; the cluster is what it has been since the last call. Called before
    /// anything happens at `to`.
    fn advanced(&mut self, to: SimTime, cluster: &Cluster) -> ControlFlow<()> {
        let (_, _) = (to, cluster);
        ControlFlow::Continue(())
    }

    /// A VM was placed: the choice is a fact now.
    fn placed(&mut self, at: SimTime, request: &Request, choice: &Choice) -> ControlFlow<()> {
        let (_, _, _) = (at, request, choice);
        ControlFlow::Continue(())
    }

    /// A VM found no place and is dropped. Of VMs that are placed all or not at all, each is told
    /// of; the cluster is as it was before them.
    fn rejected(&mut self, at: SimTime, request: &Request, cluster: &Cluster) -> ControlFlow<()> {
        let (_, _, _) = (at, request, cluster);
        ControlFlow::Continue(())
    }

    /// A VM left its place.
    fn departed(&mut self, at: SimTime, placed: &Placed) -> ControlFlow<()> {
        let (_, _) = (at, placed);
        ControlFlow::Continue(())
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// VMs that were placed.
    pub placed: u64,
    /// VMs that were not.
    pub rejected: u64,
    /// VMs that left again.
    pub departed: u64,
    /// When the last event happened.
    pub end: SimTime,
    /// Time spent in deciding, and in stating who came and who left; nothing of reading the
    /// workload or of watching the run. It does not influence the run.
    pub deciding: Duration,
}

/// A workload that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RunError {
    /// An arrival lies before the one that came before.
    #[error("the arrival at {at_ms} ms comes after one at {before_ms} ms")]
    OutOfOrder {
        /// Of the arrival.
        at_ms: u64,
        /// Of the one before.
        before_ms: u64,
    },
    /// Two VMs with the same id run at the same time.
    #[error("{vm} arrives while it runs")]
    Twice {
        /// Its id.
        vm: VmId,
        /// What placement said.
        #[source]
        source: OccupyError,
    },
}

/// Runs a workload to its end: until all have arrived and everyone who leaves has left, or until
/// the observer has seen enough. `horizon` cuts it short: nothing happens later.
///
/// # Errors
/// The workload cannot be.
pub fn run(
    cluster: &mut Cluster,
    policy: Policy,
    workload: impl IntoIterator<Item = Arrival>,
    horizon: Option<SimTime>,
    observer: &mut impl Observer,
) -> Result<Totals, RunError> {
    let mut run =
        Run { cluster, policy, leaving: EventQueue::new(), totals: Totals::default(), observer };
    let end = horizon.unwrap_or(SimTime(u64::MAX));
    let mut before = SimTime::default();
    for arrival in workload {
        if arrival.at < before {
            return Err(RunError::OutOfOrder { at_ms: arrival.at.0, before_ms: before.0 });
        }
        before = arrival.at;
        if arrival.at > end {
            break;
        }
        if run.depart_until(arrival.at).is_break()
            || run.advance(arrival.at).is_break()
            || run.arrive(&arrival)?.is_break()
        {
            return Ok(run.totals);
        }
    }
    if run.depart_until(end).is_continue()
        && let Some(end) = horizon
    {
        let _ = run.advance(end);
    }
    Ok(run.totals)
}

struct Run<'a, O> {
    cluster: &'a mut Cluster,
    policy: Policy,
    leaving: EventQueue<VmId>,
    totals: Totals,
    observer: &'a mut O,
}

impl<O: Observer> Run<'_, O> {
    fn advance(&mut self, to: SimTime) -> ControlFlow<()> {
        self.totals.end = to;
        self.observer.advanced(to, self.cluster)
    }

    fn depart_until(&mut self, limit: SimTime) -> ControlFlow<()> {
        while let Some((at, vm)) = self.leaving.pop_until(limit) {
            self.advance(at)?;
            let start = Instant::now();
            let placed = self.cluster.release(vm);
            self.totals.deciding += start.elapsed();
            if let Some(placed) = placed {
                self.totals.departed += 1;
                self.observer.departed(at, &placed)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn arrive(&mut self, arrival: &Arrival) -> Result<ControlFlow<()>, RunError> {
        if arrival.all_or_nothing {
            return self.arrive_together(arrival);
        }
        let requests: Vec<_> = arrival.vms.iter().map(|newcomer| &newcomer.request).collect();
        for at in self.cluster.order(&requests, self.policy) {
            let newcomer = &arrival.vms[at];
            let start = Instant::now();
            let choice = self.cluster.find(&newcomer.request, self.policy);
            let flow = self.settle(arrival.at, newcomer, choice.as_ref(), start)?;
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn arrive_together(&mut self, arrival: &Arrival) -> Result<ControlFlow<()>, RunError> {
        let requests: Vec<_> = arrival.vms.iter().map(|vm| vm.request.clone()).collect();
        let start = Instant::now();
        let choices = self.cluster.decide_group(&requests, self.policy).unwrap_or_default();
        self.totals.deciding += start.elapsed();
        for (at, newcomer) in arrival.vms.iter().enumerate() {
            let flow = self.settle(arrival.at, newcomer, choices.get(at), Instant::now())?;
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Makes a choice a fact, or lets the VM go.
    fn settle(
        &mut self,
        at: SimTime,
        newcomer: &Newcomer,
        choice: Option<&Choice>,
        start: Instant,
    ) -> Result<ControlFlow<()>, RunError> {
        let request = &newcomer.request;
        let Some(choice) = choice else {
            self.totals.deciding += start.elapsed();
            self.totals.rejected += 1;
            return Ok(self.observer.rejected(at, request, self.cluster));
        };
        let _ = self
            .cluster
            .occupy_devices(choice.host, request, &choice.devices)
            .map_err(|source| RunError::Twice { vm: request.vm, source })?;
        self.totals.deciding += start.elapsed();
        self.totals.placed += 1;
        if let Some(lifetime) = newcomer.lifetime_ms {
            self.leaving.push(at.after(lifetime), request.vm);
        }
        Ok(self.observer.placed(at, request, choice))
    }
}
