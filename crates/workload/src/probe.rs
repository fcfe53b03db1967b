//! Finds out whether somebody else on the host has certain pages in memory, by the time that a write
//! to them takes.
//!
//! A host that merges equal pages of several VMs keeps one copy, and the first write to it must make
//! another: microseconds, where a write to a page of one's own takes nanoseconds. So the attacker
//! loads the pages that it is curious about, waits for the host's scanner, and times one write to each
//! (Suzaki et al., Memory deduplication as a threat to the guest OS, EuroSec 2011). Nothing but its
//! own memory is touched, and no privilege is needed.
//!
//! What is asked about is a set of pages, the same for one seed in every VM ([`crate::hold`] has them
//! when it is given the seed). The verdict is the median of a set's times against the median of
//! pages that nobody else can have: the ballast, which also makes the VM grow, so that a scanner that
//! rests begins to look. Sets and ballast are timed in one drawn order, so that whatever disturbs
//! falls on all alike.

use std::hint::black_box;
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::arguments::Common;
use crate::failure::Failure;
use crate::page::{PAGE, Page, WORDS};
use crate::ticks;

/// A set whose writes take so many times as long as others is merged: there is a factor of ten and
/// more between the two.
const FACTOR: u64 = 4;
/// How many pages of the ballast are timed.
const CONTROLS: usize = 2048;
/// Between loading and timing, unless it is said.
const WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Options {
    /// Its limit is the time between loading and timing; its seed that of the first set.
    pub(crate) common: Common,
    /// How many sets are asked about; each has the seed after the one before.
    pub(crate) sets: u64,
    /// Bytes of a set.
    pub(crate) size: u64,
    /// Bytes of the ballast.
    pub(crate) ballast: u64,
}

/// A set, or the ballast.
#[derive(Debug)]
struct Group {
    pages: Vec<Page>,
    ticks: Vec<u64>,
}

impl Group {
    fn new(seed: u64, size: u64) -> Self {
        let count = (size / PAGE as u64).max(1);
        let mut pages = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        pages.extend((0..count).map(|number| Page::new(seed, number)));
        Self { pages, ticks: Vec::new() }
    }

    /// Times one write to a page.
    fn write(&mut self, place: usize) {
        let Some(page) = self.pages.get_mut(place) else { return };
        let page = black_box(page);
        // A read, so that what a first access takes besides is not in the time.
        let word = black_box(page.0[WORDS - 1]);
        let before = ticks::now();
        page.0[WORDS - 1] = black_box(!word);
        let after = ticks::now();
        self.ticks.push(after.saturating_sub(before));
    }

    fn median(&self) -> u64 {
        let mut sorted = self.ticks.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    held: bool,
    ticks: u64,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Ready { load: &'static str, seconds: f64 },
    Set { load: &'static str, seed: u64, held: bool, median_ns: u64 },
    Done { load: &'static str, seconds: f64, own_ns: u64, pages: u64 },
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let load = "probe";
    let began = Instant::now();
    let first = options.common.seed;
    let seeds: Vec<u64> = (0..options.sets).map(|set| first.wrapping_add(set)).collect();
    let mut sets: Vec<Group> = seeds.iter().map(|seed| Group::new(*seed, options.size)).collect();
    // Drawn anew each time: nobody else has these.
    let mut own = Group::new(rand::rng().random(), options.ballast);
    print(&Line::Ready { load, seconds: seconds(began) })?;

    let (began_to_wait, ticks_before) = (Instant::now(), ticks::now());
    thread::sleep(options.common.limit.unwrap_or(WAIT));
    let ticks_per_us = per_us(ticks::now().saturating_sub(ticks_before), began_to_wait.elapsed());

    time_all(&mut sets, &mut own, first);
    let to_ns = |ticks: u64| ticks.saturating_mul(1000) / ticks_per_us;
    for (seed, verdict) in seeds.iter().zip(judge(&sets, &own)) {
        let (held, median_ns) = (verdict.held, to_ns(verdict.ticks));
        print(&Line::Set { load, seed: *seed, held, median_ns })?;
    }
    let pages = options.size / PAGE as u64;
    print(&Line::Done { load, seconds: seconds(began), own_ns: to_ns(own.median()), pages })
}

/// Times a write to every page of the sets and to some of the ballast, in an order that `seed` draws.
fn time_all(sets: &mut [Group], own: &mut Group, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<(Option<usize>, usize)> = Vec::new();
    for (index, set) in sets.iter().enumerate() {
        order.extend((0..set.pages.len()).map(|place| (Some(index), place)));
    }
    let mut controls: Vec<usize> = (0..own.pages.len()).collect();
    controls.shuffle(&mut random);
    order.extend(controls.into_iter().take(CONTROLS).map(|place| (None, place)));
    order.shuffle(&mut random);
    for (set, place) in order {
        match set.map(|index| sets.get_mut(index)) {
            None => own.write(place),
            Some(set) => {
                if let Some(set) = set {
                    set.write(place);
                }
            }
        }
    }
}

/// Which sets somebody else has.
fn judge(sets: &[Group], own: &Group) -> Vec<Verdict> {
    let threshold = own.median().max(1).saturating_mul(FACTOR);
    sets.iter().map(Group::median).map(|ticks| Verdict { held: ticks > threshold, ticks }).collect()
}

fn per_us(ticks: u64, time: Duration) -> u64 {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    (ticks / us).max(1)
}

fn seconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1e3).round() / 1e3
}

fn print(line: &Line) -> Result<(), Failure> {
    let mut text = serde_json::to_vec(line).map_err(|error| Failure::Report(error.into()))?;
    text.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&text).and_then(|()| out.flush()).map_err(Failure::Report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(ticks: &[u64]) -> Group {
        Group { pages: Vec::new(), ticks: ticks.to_vec() }
    }

    #[test]
    fn what_takes_much_longer_than_own_pages_is_held() {
        let own = timed(&[100, 110, 90, 5_000, 105]);
        let sets = [
            timed(&[3_000, 2_800, 100, 3_100, 90_000]),
            timed(&[100, 120, 3_000, 90, 100]),
            timed(&[]),
        ];
        let held: Vec<bool> = judge(&sets, &own).iter().map(|verdict| verdict.held).collect();
        assert_eq!(held, [true, false, false]);
        assert_eq!(judge(&sets, &own)[0].ticks, 3_000);
    }

    #[test]
    fn every_page_of_a_set_is_written_once() {
        let mut sets: Vec<Group> = (0..3).map(|seed| Group::new(seed, 5 * 4096)).collect();
        let mut own = Group::new(99, 3000 * 4096);
        time_all(&mut sets, &mut own, 1);
        for (seed, set) in (0..).zip(&sets) {
            assert_eq!(set.ticks.len(), 5);
            for (number, page) in (0..).zip(&set.pages) {
                let fresh = Page::new(seed, number);
                assert_eq!(page.0[WORDS - 1], !fresh.0[WORDS - 1]);
                assert_eq!(page.0[..WORDS - 1], fresh.0[..WORDS - 1]);
            }
        }
        assert_eq!(own.ticks.len(), CONTROLS);
        assert!(own.median() > 0);
    }

    #[test]
    fn ticks_become_time() {
        assert_eq!(per_us(3_000_000, Duration::from_millis(1)), 3000);
        assert_eq!(per_us(0, Duration::ZERO), 1);
    }
}
