//! What a load prints: a line of JSON for each second, and one at the end.
//!
//! ```json
//! {"load":"store","event":"ready","seconds":1.9}
//! {"load":"store","event":"second","seconds":1.0,"operations":81234,"bytes":83183616,
//!  "per_second":81234.0,"p50_us":9.5,"p99_us":24.0}
//! {"load":"store","event":"done","seconds":10.0,"operations":811002,...}
//! ```
//!
//! (each on one line). `ready` comes when everything is filled, with the time that took. `second`
//! holds what ended since the line before, `done` all of it; `seconds` is the time they cover: more
//! than one where the whole VM stood still. Times of operations are kept in buckets of at most 1/16
//! of their value, so a percentile is up to 6 % too high.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::arguments::Common;
use crate::failure::Failure;

/// Time that a line covers.
const PERIOD: Duration = Duration::from_secs(1);

/// Times of operations, in nanoseconds: 16 buckets to each power of two.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    buckets: Vec<u64>,
    count: u64,
}

impl Times {
    const BUCKETS: usize = 61 * 16;

    fn new() -> Self {
        Self { buckets: vec![0; Self::BUCKETS], count: 0 }
    }

    fn add(&mut self, nanoseconds: u64) {
        if let Some(bucket) = self.buckets.get_mut(bucket_of(nanoseconds)) {
            *bucket += 1;
        }
        self.count += 1;
    }

    fn add_all(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        self.count += other.count;
    }

    fn clear(&mut self) {
        self.buckets.fill(0);
        self.count = 0;
    }

    /// The time that `percent` of all operations did not exceed, in nanoseconds; 0 without any.
    fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.count * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(0, end_of)
    }
}

/// The bucket of a value: itself below 16, then the power of two and the four bits after the first.
fn bucket_of(value: u64) -> usize {
    let value = value.max(1);
    let power = value.ilog2();
    if power < 4 {
        return usize::try_from(value).unwrap_or(0);
    }
    let below = (value >> (power - 4)) & 0xf;
    usize::try_from((u64::from(power) - 3) * 16 + below).unwrap_or(usize::MAX)
}

/// The largest value of a bucket.
fn end_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 16 {
        return bucket;
    }
    let (power, below) = (bucket / 16 + 3, bucket % 16);
    ((16 + below + 1) << (power - 4)).wrapping_sub(1)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    Ready,
    Second,
    Done,
}

#[derive(Debug, Serialize)]
struct Line {
    load: &'static str,
    event: Event,
    seconds: f64,
    #[serde(flatten)]
    amounts: Option<Amounts>,
}

#[derive(Debug, Serialize)]
struct Amounts {
    operations: u64,
    bytes: u64,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

/// The report of a run: counts operations, and prints what it counted.
#[derive(Debug)]
pub(crate) struct Report {
    load: &'static str,
    limit: Option<Duration>,
    began: Instant,
    line_began: Instant,
    line: Times,
    line_bytes: u64,
    all: Times,
    all_bytes: u64,
}

impl Report {
    /// Of a load that now begins to prepare.
    pub(crate) fn new(load: &'static str, common: Common) -> Self {
        let now = Instant::now();
        Self {
            load,
            limit: common.limit,
            began: now,
            line_began: now,
            line: Times::new(),
            line_bytes: 0,
            all: Times::new(),
            all_bytes: 0,
        }
    }

    /// All is prepared: the time to run begins.
    pub(crate) fn ready(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let seconds = seconds(now - self.began);
        (self.began, self.line_began) = (now, now);
        print(&Line { load: self.load, event: Event::Ready, seconds, amounts: None })
    }

    /// An operation over `bytes` that began at `began` has ended.
    pub(crate) fn operation(&mut self, began: Instant, bytes: u64) -> Result<(), Failure> {
        let now = Instant::now();
        self.line.add(u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX));
        self.line_bytes += bytes;
        self.tick(now)
    }

    /// Prints a line when it is due.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<(), Failure> {
        if now - self.line_began >= PERIOD { self.end_line(now) } else { Ok(()) }
    }

    /// Whether there is time left.
    pub(crate) fn goes_on(&self) -> bool {
        self.limit.is_none_or(|limit| self.began.elapsed() < limit)
    }

    /// Time until the next line is due.
    pub(crate) fn until_next_line(&self) -> Duration {
        PERIOD.saturating_sub(self.line_began.elapsed())
    }

    /// The last line, of all that was done.
    pub(crate) fn done(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        self.all.add_all(&self.line);
        self.all_bytes += self.line_bytes;
        print(&line(self.load, Event::Done, now - self.began, &self.all, self.all_bytes))
    }

    fn end_line(&mut self, now: Instant) -> Result<(), Failure> {
        let time = now - self.line_began;
        print(&line(self.load, Event::Second, time, &self.line, self.line_bytes))?;
        self.all.add_all(&self.line);
        self.all_bytes += self.line_bytes;
        self.line.clear();
        self.line_bytes = 0;
        self.line_began = now;
        Ok(())
    }
}

fn line(load: &'static str, event: Event, time: Duration, times: &Times, bytes: u64) -> Line {
    #[expect(clippy::cast_precision_loss, reason = "for people; counts are far below 2^52")]
    let amounts = Amounts {
        operations: times.count,
        bytes,
        per_second: rounded(times.count as f64 / time.as_secs_f64().max(1e-9)),
        p50_us: rounded(times.percentile(50) as f64 / 1e3),
        p99_us: rounded(times.percentile(99) as f64 / 1e3),
    };
    Line { load, event, seconds: seconds(time), amounts: Some(amounts) }
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
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

    #[test]
    fn a_value_lies_in_its_bucket_which_is_narrow() {
        let mut last = 0;
        for value in (1..5000).chain([1 << 20, (1 << 40) + 12345, u64::MAX / 3, u64::MAX]) {
            let bucket = bucket_of(value);
            assert!(bucket < Times::BUCKETS, "{value}");
            assert!(bucket >= last, "{value}");
            last = bucket;
            let end = end_of(bucket);
            assert!(end >= value && end - value <= value / 16, "{value}: {bucket} ends at {end}");
        }
    }

    #[test]
    fn percentiles_are_of_what_was_added() {
        let mut times = Times::new();
        assert_eq!(times.percentile(50), 0);
        for value in 1..=1000 {
            times.add(value);
        }
        assert!((500..=531).contains(&times.percentile(50)));
        assert!((990..=1052).contains(&times.percentile(99)));
        let mut sum = Times::new();
        sum.add_all(&times);
        sum.add_all(&times);
        assert_eq!(sum.percentile(50), times.percentile(50));
        assert_eq!(sum.count, 2000);
    }
}
