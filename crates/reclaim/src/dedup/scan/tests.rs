//! The course against a naive scanner: pages with contents, in order, each merged at its second
//! unchanged look.

use std::collections::BTreeMap;

use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any, prop_assert, proptest},
};

use super::*;

/// A machine of so many pages of memory.
#[derive(Clone, Debug)]
struct Machine {
    /// Each page's content, what was seen of it at the last look, and whether it is merged.
    pages: Vec<(u64, Option<u64>, bool)>,
    cursor: usize,
    cost_ns: u64,
    sample: Sample,
}

impl Machine {
    fn new(contents: impl IntoIterator<Item = u64>, cost_ns: u64) -> Self {
        let pages: Vec<_> = contents.into_iter().map(|content| (content, None, false)).collect();
        let mut machine = Self { pages, cursor: 0, cost_ns, sample: Sample::default() };
        // It has run before: nothing of this may count.
        machine.sample = Sample {
            cpu_ns: 77_000_000_000,
            scanned: 9_999_999,
            passes: 412,
            vms: 1,
            ..machine.sample
        };
        machine.settle();
        machine
    }

    fn settle(&mut self) {
        let merged = self.pages.iter().filter(|(_, _, merged)| *merged).count();
        self.sample.merged = merged as u64;
        self.sample.resident = Bytes(self.pages.len() as u64 * 4096);
    }

    /// Looks at the next page. Returns what that took: to merge takes five times as much as to look,
    /// and what is merged already a fifth.
    fn look(&mut self, counts: &mut BTreeMap<u64, u64>) -> u64 {
        let (content, seen, merged) = self.pages[self.cursor];
        let mut cost = if merged { self.cost_ns / 5 } else { self.cost_ns };
        if !merged && seen == Some(content) {
            // Others of this content that were looked at twice are merged with it.
            let equal = counts.entry(content).or_default();
            *equal += 1;
            if *equal > 1 {
                self.pages[self.cursor].2 = true;
                cost *= 5;
            }
        } else if !merged {
            self.sample.volatile += u64::from(seen.is_some());
            self.pages[self.cursor].1 = Some(content);
        }
        self.cursor += 1;
        if self.cursor == self.pages.len() {
            self.cursor = 0;
            self.sample.passes += 1;
            counts.clear();
        }
        cost
    }

    /// Lets it go on for a while. Returns the share of a core that it took, in thousandths.
    fn run(&mut self, pace: Pace, ms: u64, counts: &mut BTreeMap<u64, u64>) -> u64 {
        let (mut past, mut spent) = (0, 0);
        while pace.pages_to_scan > 0 && past < ms * 1_000_000 {
            let mut batch = 0;
            for _ in 0..pace.pages_to_scan {
                batch += self.look(counts);
            }
            self.sample.scanned += u64::from(pace.pages_to_scan);
            spent += batch;
            past += batch + u64::from(pace.sleep_ms) * 1_000_000;
        }
        self.sample.cpu_ns += spent;
        self.sample.at_ms += ms.max(past / 1_000_000);
        self.settle();
        (spent * 1000).checked_div(past).unwrap_or(0)
    }
}

/// Between two looks, in milliseconds, and the time over which a share of a core is a mean.
const TICK: u64 = 250;
const WINDOW: usize = 20;

/// Runs a machine under its course until it is idle. Returns the seconds, and the largest share of a
/// core over a window of five seconds.
fn converge(machine: &mut Machine, scan: &mut Scan, limit: u64) -> (u64, u64) {
    let (mut counts, mut looks) = (BTreeMap::new(), Vec::new());
    let began = machine.sample.at_ms;
    loop {
        *scan = scan.next(&machine.sample);
        looks.push((machine.sample.at_ms, machine.sample.cpu_ns));
        let seconds = (machine.sample.at_ms - began) / 1000;
        if scan.phase() == Phase::Idle || seconds >= limit {
            let shares = looks
                .iter()
                .zip(looks.iter().skip(WINDOW))
                .map(|(from, to)| (to.1 - from.1) / 1000 / (to.0 - from.0));
            return (seconds, shares.max().unwrap_or(0));
        }
        machine.run(scan.pace(), TICK, &mut counts);
    }
}

/// Lets it go on for so many seconds. Returns the mean share of a core, in thousandths.
fn rest(machine: &mut Machine, scan: &mut Scan, seconds: u64) -> u64 {
    let (before, mut counts) = (machine.sample, BTreeMap::new());
    for _ in 0..seconds {
        *scan = scan.next(&machine.sample);
        machine.run(scan.pace(), 1000, &mut counts);
    }
    (machine.sample.cpu_ns - before.cpu_ns) / 1000 / (machine.sample.at_ms - before.at_ms)
}

#[test]
fn three_vms_of_equal_data_converge_within_ten_seconds_and_then_it_rests() {
    // 3 VMs of 280 MiB, of which 200 are equal between them.
    let contents = (0..3 * 71_680_u64)
        .map(|page| if page % 71_680 < 51_200 { page % 71_680 } else { 1_000_000 + page });
    let mut machine = Machine::new(contents, 1_500);
    let mut scan = Scan::default();
    let (seconds, most) = converge(&mut machine, &mut scan, 60);
    assert!(seconds <= 10, "{seconds} s");
    assert!(most < 250, "{most}");
    // The first of each content is not counted as merged here.
    assert_eq!(machine.sample.merged, 2 * 51_200);
    let share = rest(&mut machine, &mut scan, 240);
    assert!(share < 10, "{share}");
    assert_eq!(scan.phase(), Phase::Idle);
}

#[test]
fn it_stands_still_without_vms_and_begins_with_the_next() {
    let mut machine = Machine::new(0..10_000, 2_000);
    let mut scan = Scan::default();
    converge(&mut machine, &mut scan, 30);
    assert_eq!(scan.phase(), Phase::Idle);
    let mut new = Sample { starts: 1, ..machine.sample };
    scan = scan.next(&new);
    assert_eq!(scan.phase(), Phase::Converging, "another VM");
    new.vms = 0;
    scan = scan.next(&new);
    assert_eq!((scan.phase(), scan.pace().pages_to_scan), (Phase::Off, 0));
    new.vms = 1;
    assert_eq!(scan.next(&new).phase(), Phase::Converging);
}

#[test]
fn growth_change_and_finds_wake_it() {
    let mut machine = Machine::new((0..50_000).map(|page| page / 2), 2_000);
    let mut scan = Scan::default();
    let (seconds, _) = converge(&mut machine, &mut scan, 30);
    assert!(seconds < 30 && machine.sample.merged > 0);
    let idle = machine.sample;
    let wakes = |sample: Sample| scan.next(&sample).phase() == Phase::Converging;
    assert!(!wakes(idle));
    assert!(!wakes(Sample { resident: idle.resident.saturating_add(Bytes::mib(1)), ..idle }));
    assert!(wakes(Sample { resident: idle.resident.saturating_add(Bytes::mib(16)), ..idle }));
    assert!(!wakes(Sample { volatile: idle.volatile + 100, scanned: idle.scanned + 150, ..idle }));
    assert!(wakes(Sample { volatile: idle.volatile + 6_000, ..idle }));
    assert!(wakes(Sample { volatile: idle.volatile + 300, scanned: idle.scanned + 1000, ..idle }));
    assert!(!wakes(Sample { volatile: idle.volatile + 300, scanned: idle.scanned + 2000, ..idle }));
    assert!(wakes(Sample { merged: idle.merged + 300, scanned: idle.scanned + 400, ..idle }));
    assert!(!wakes(Sample { merged: idle.merged + 300, scanned: idle.scanned + 9_000, ..idle }));
}

#[test]
fn what_shrank_and_grows_again_is_growth() {
    let mut machine = Machine::new((0..50_000).map(|page| page / 2), 2_000);
    let mut scan = Scan::default();
    converge(&mut machine, &mut scan, 30);
    let idle = machine.sample;
    let less = Sample { resident: Bytes::mib(100), ..idle };
    scan = scan.next(&less);
    assert_eq!(scan.phase(), Phase::Idle);
    assert_eq!(scan.next(&idle).phase(), Phase::Converging);
}

#[test]
fn a_host_that_grows_and_has_nothing_equal_is_searched_ever_less() {
    let mut machine = Machine::new(0..4_000, 10_000);
    let mut scan = Scan::default();
    let mut counts = BTreeMap::new();
    let mut shares = Vec::new();
    for _ in 0..3 {
        let before = machine.sample;
        for _ in 0..3600 {
            // A balloon that swings.
            let swing = (machine.sample.at_ms / 4000).is_multiple_of(2);
            machine.sample.resident = Bytes::mib(if swing { 78 } else { 200 });
            scan = scan.next(&machine.sample);
            machine.run(scan.pace(), 1000, &mut counts);
        }
        let (spent, past) =
            (machine.sample.cpu_ns - before.cpu_ns, machine.sample.at_ms - before.at_ms);
        shares.push(spent / past / 1000);
    }
    // In thousandths of a core, the trickle's five among them.
    assert!(shares[0] > 10 && shares[1] < 17 && shares[2] < 17, "{shares:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// Whatever a page costs, once that was measured the budget is kept; and all that is equal and
    /// does not change is found.
    #[test]
    fn the_budget_is_kept_and_what_is_equal_is_found(
        contents in vec(0u64..4_000, 1..6_000),
        cost_ns in 300u64..20_000,
    ) {
        let mut machine = Machine::new(contents.iter().copied(), cost_ns);
        let mut scan = Scan::default();
        let (seconds, most) = converge(&mut machine, &mut scan, 600);
        prop_assert!(seconds < 600);
        prop_assert!(most <= 250, "{}", most);
        let mut distinct = contents.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let equal = (contents.len() - distinct.len()) as u64;
        prop_assert!(machine.sample.merged >= equal - equal / 20, "{} of {}", machine.sample.merged, equal);
        let share = rest(&mut machine, &mut scan, 60);
        prop_assert!(share < 10 || scan.phase() == Phase::Converging, "{}", share);
    }

    /// Counters may say anything.
    #[test]
    fn no_counters_break_it(samples in vec((any::<[u64; 8]>(), 0u32..3), 0..40), small in any::<bool>()) {
        let mut scan = Scan::default();
        for ([at, cpu, scanned, passes, merged, volatile, resident, starts], vms) in samples {
            let cut = |x: u64| if small { x % 5_000 } else { x };
            scan = scan.next(&Sample {
                at_ms: cut(at), cpu_ns: cut(cpu), scanned: cut(scanned), passes: cut(passes),
                merged: cut(merged), volatile: cut(volatile), resident: Bytes(cut(resident)), starts, vms,
            });
            let pace = scan.pace();
            prop_assert!((pace.pages_to_scan == 0) == (vms == 0));
            prop_assert!(u64::from(pace.pages_to_scan) <= LARGEST_BATCH && pace.sleep_ms >= CONVERGING_SLEEP);
        }
    }
}
