//! Advance reservations: the first interval in which a request fits.
//!
//! Bookings and running VMs share one profile of each host's capacity over time, and a booking goes
//! into the first hole that is long enough for all of it: the availability profile of conservative
//! backfilling (A. W. Mu'alem, D. G. Feitelson, *Utilization, Predictability, Workloads, and User
//! Runtime Estimates in Scheduling the IBM SP2 with Backfilling*, IEEE TPDS 12(6), 2001), with one
//! profile per host, element and device in place of a count of free nodes.
//!
//! **Which starts need to be tried.** Only the earliest that is wanted, and the ends of what is
//! committed after it. Let *s* be the first start that fits on a host, with some devices, and later
//! than wanted. A start just before *s* does not fit with the same devices. It asks for all that
//! the one at *s* asks for, and for the moment before *s* besides, so what is lacking is lacking at
//! that moment and not at *s*: something committed ends at *s*. A host on which nothing has a begin
//! or an end is the same at all times, so that it can hold the request at the earliest start that
//! is wanted, or never.
//!
//! Rules between VMs look at who is on a host, rack or zone at whatever time, for a booking counts
//! as soon as it is made: that may refuse what would do, and never allows what would not.

use std::time::Duration;

use plimsoll_model::{Policy, Timestamp, VmId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    cluster::Cluster,
    explanation::{Choice, Refusals},
    filter::Asked,
    interval::{Interval, Span},
    request::Request,
    row::Row,
};

/// When a booking is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earliest {
    /// It begins then or later.
    pub after: Timestamp,
    /// For how long; none for ever.
    pub duration: Option<Duration>,
    /// By when it must have ended; without a duration, by when it must have begun.
    pub deadline: Option<Timestamp>,
}

/// A host for an interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Booking {
    /// When.
    pub interval: Interval,
    /// Where.
    pub choice: Choice,
}

/// There is no interval for a request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BookRefusal {
    /// Even if it began as early as it may, it would end after its deadline.
    #[error("it takes longer than there is until its deadline {deadline:.0}")]
    Deadline {
        /// The VM.
        vm: VmId,
        /// The deadline.
        deadline: Timestamp,
    },
    /// The first interval in which it fits is too late.
    #[error("the first time it would fit is {interval}, and its deadline is {deadline:.0}")]
    TooLate {
        /// The VM.
        vm: VmId,
        /// That interval.
        interval: Interval,
        /// The deadline.
        deadline: Timestamp,
        /// Why it does not fit as early as it may begin.
        #[source]
        refusals: Box<Refusals>,
    },
    /// No host can hold it, not even when all that has an end has ended.
    #[error("there is no time at which it would fit")]
    Never {
        /// Why every host is refused then.
        #[source]
        refusals: Refusals,
    },
}

impl Earliest {
    /// The last instant at which it may begin; an error when it is before the first.
    fn latest(&self) -> Result<Option<Timestamp>, Timestamp> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        let latest = match self.duration {
            Some(duration) => deadline.checked_sub(duration).map_err(|_| deadline)?,
            None => deadline,
        };
        if latest < self.after { Err(deadline) } else { Ok(Some(latest)) }
    }

    fn interval(&self, from: Timestamp) -> Interval {
        Interval::starting(from, self.duration)
    }
}

impl Cluster {
    /// Finds the first interval in which the request fits on some host throughout, and the best
    /// host for it; the request's own interval does not matter. A VM that is placed or booked
    /// already is decided about as if it had left its place. The caller states the booking as a
    /// fact with [`Self::occupy_devices`] and the interval in the request.
    ///
    /// Policies judge a host by what is free of it throughout the interval. It costs a search of
    /// the index, and a look at each host on which VMs have a begin or an end.
    ///
    /// # Errors
    /// There is none before the deadline, or none at all: why, with numbers.
    pub fn book(
        &self,
        request: &Request,
        when: &Earliest,
        policy: Policy,
    ) -> Result<Booking, BookRefusal> {
        let vm = request.vm;
        let latest = when.latest().map_err(|deadline| BookRefusal::Deadline { vm, deadline })?;
        let mut request = request.clone();
        match self.book_by(&mut request, when, None, policy) {
            Some(booking) => match latest.zip(booking.interval.from) {
                Some((latest, from)) if from > latest => {
                    request.interval = when.interval(when.after);
                    Err(BookRefusal::TooLate {
                        vm,
                        interval: booking.interval,
                        deadline: when.deadline.unwrap_or(latest),
                        refusals: Box::new(self.refusals(&request)),
                    })
                }
                _ => Ok(booking),
            },
            None => {
                let ends = self.timed().filter_map(Row::last_end);
                let over = ends.max().map_or(when.after, |end| end.max(when.after));
                request.interval = when.interval(over);
                Err(BookRefusal::Never { refusals: self.refusals(&request) })
            }
        }
    }

    /// [`Self::book`] without the reasons when there is no interval, which costs less then: starts
    /// that are too late for the deadline are not tried.
    #[must_use]
    pub fn find_booking(
        &self,
        request: &Request,
        when: &Earliest,
        policy: Policy,
    ) -> Option<Booking> {
        let latest = when.latest().ok()?;
        self.book_by(&mut request.clone(), when, latest, policy)
    }

    /// The first booking that begins at `latest` or before; the request has its interval then.
    fn book_by(
        &self,
        request: &mut Request,
        when: &Earliest,
        latest: Option<Timestamp>,
        policy: Policy,
    ) -> Option<Booking> {
        request.interval = when.interval(when.after);
        if let Some(choice) = self.find(request, policy) {
            return Some(Booking { interval: request.interval, choice });
        }
        let from = self.first_start(&Asked::new(self, request), when, latest)?;
        request.interval = when.interval(from);
        let choice = self.find(request, policy)?;
        Some(Booking { interval: request.interval, choice })
    }

    /// The first start after the earliest that is wanted at which some host has room; see the
    /// module's documentation.
    fn first_start(
        &self,
        asked: &Asked<'_>,
        when: &Earliest,
        latest: Option<Timestamp>,
    ) -> Option<Timestamp> {
        let mut first = None;
        for row in self.timed().map(|row| asked.left(row)) {
            let mut may_do = false;
            for start in row.ends_after(when.after) {
                if first.is_some_and(|first| start >= first)
                    || latest.is_some_and(|latest| start > latest)
                {
                    break;
                }
                // Asked once, and only where a start is worth a look.
                may_do = may_do || asked.admits(&row.without_timed());
                if !may_do {
                    break;
                }
                let interval = when.interval(start);
                let span = Span { interval, keeps_disk: asked.request.keeps_disk };
                if asked.admits(&row.during(&span)) {
                    first = Some(start);
                    break;
                }
            }
        }
        first
    }
}
