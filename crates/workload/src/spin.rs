//! Computes: each operation is a fixed number of rounds over registers, whose result is known.

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use crate::arguments::Common;
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
    let expected = operation(options.common.seed);
    report.ready()?;
    let shared = Mutex::new(report);
    let stop = AtomicBool::new(false);
    let (ended, ends) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..options.threads {
            let ended = ended.clone();
            let (shared, stop) = (&shared, &stop);
            scope.spawn(move || {
                // The receiver is there until all have ended.
                let _ = ended.send(spin(options.common.seed, expected, shared, stop));
            });
        }
        drop(ended);
        let mut result = Ok(());
        loop {
            let pause = {
                let mut report = lock(&shared)?;
                result = result.and(report.tick(Instant::now()));
                if result.is_err() || !report.goes_on() {
                    stop.store(true, Ordering::Relaxed);
                }
                report.until_next_line()
            };
            match ends.recv_timeout(pause) {
                Ok(end) => result = result.and(end),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return result,
            }
        }
    })?;
    lock(&shared)?.done()
}

/// Works until told to stop.
fn spin(
    seed: u64,
    expected: u64,
    report: &Mutex<Report>,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        if operation(black_box(seed)) != expected {
            return Err(Failure::Corrupted { what: "result".to_owned(), number });
        }
        number += 1;
        let mut report = lock(report)?;
        report.operation(began, 0)?;
        if !report.goes_on() {
            break;
        }
    }
    Ok(())
}

fn lock(report: &Mutex<Report>) -> Result<std::sync::MutexGuard<'_, Report>, Failure> {
    report.lock().map_err(|_| Failure::Thread)
}

fn operation(seed: u64) -> u64 {
    (0..ROUNDS).fold(seed, |word, round| mix(word ^ u64::from(round)))
}
