//! Computes: each operation is a fixed number of rounds over registers, whose result is known.

use std::hint::black_box;

use crate::arguments::Common;
use crate::crew;
use crate::failure::Failure;
use crate::page::mix;
use crate::report::Report;

/// Rounds of one operation: about 0.1 ms natively, a millisecond or two in an emulated guest.
const ROUNDS: u32 = 100_000;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) common: Common,
    pub(crate) threads: u64,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut report = Report::new("spin", options.common);
    let seed = options.common.seed;
    let expected = operation(seed);
    report.ready()?;
    let worker = |_| {
        move || {
            if operation(black_box(seed)) == expected {
                return Ok(0);
            }
            Err(Failure::Corrupted { what: "result for seed".to_owned(), number: seed })
        }
    };
    crew::run(report, (0..options.threads).map(worker).collect())
}

fn operation(seed: u64) -> u64 {
    (0..ROUNDS).fold(seed, |word, round| mix(word ^ u64::from(round)))
}
