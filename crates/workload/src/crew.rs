//! Several threads that do the same, with one report.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

use crate::failure::Failure;
use crate::report::Report;

/// Has each of `workers` do one operation after the other, in a thread of its own, for as long as the
/// report has time; then prints its end. An operation gives the bytes that it went through. The
/// first that fails ends all.
pub(crate) fn run<W>(report: Report, workers: Vec<W>) -> Result<(), Failure>
where
    W: FnMut() -> Result<u64, Failure> + Send,
{
    let shared = Mutex::new(report);
    let stop = AtomicBool::new(false);
    let (ended, ends) = mpsc::channel();
    thread::scope(|scope| {
        for mut worker in workers {
            let ended = ended.clone();
            let (shared, stop) = (&shared, &stop);
            scope.spawn(move || {
                // The receiver is there until all have ended.
                let _ = ended.send(work(&mut worker, shared, stop));
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
fn work(
    worker: &mut impl FnMut() -> Result<u64, Failure>,
    report: &Mutex<Report>,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let bytes = worker()?;
        let mut report = lock(report)?;
        report.operation(began, bytes)?;
        if !report.goes_on() {
            break;
        }
    }
    Ok(())
}

fn lock(report: &Mutex<Report>) -> Result<MutexGuard<'_, Report>, Failure> {
    report.lock().map_err(|_| Failure::Thread)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::arguments::Common;

    #[test]
    fn the_first_failure_ends_all() {
        let report = Report::new("crew", Common { limit: None, seed: 1 });
        let workers = (0..3)
            .map(|number| {
                let mut left = 5;
                move || {
                    thread::sleep(Duration::from_millis(1));
                    left -= 1;
                    let what = || "result".to_owned();
                    if number == 1 && left == 0 {
                        return Err(Failure::Corrupted { what: what(), number });
                    }
                    Ok(1)
                }
            })
            .collect();
        assert!(matches!(run(report, workers), Err(Failure::Corrupted { number: 1, .. })));
    }
}
