//! Fills memory with pages and keeps them; rewrites or reads some each second when asked to.
//!
//! The page with number `n` is the same in every VM for one seed, and lies at a page's address: it
//! is what the host can merge. A rewritten page gets a number that was not there before. All are
//! checked at the end.

use std::thread;
use std::time::Instant;

use crate::arguments::Common;
use crate::failure::Failure;
use crate::page::{PAGE, Page};
use crate::report::Report;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) common: Common,
    /// Bytes to hold.
    pub(crate) size: u64,
    /// Bytes rewritten each second.
    pub(crate) churn: u64,
    /// Bytes read and checked each second.
    pub(crate) touch: u64,
}

#[derive(Debug)]
struct Held {
    seed: u64,
    pages: Vec<Page>,
    /// How many pages were ever written: the one in place `n % pages` has the last number below this
    /// that is `n` modulo the number of pages.
    written: u64,
    /// The place that is read next.
    next_read: usize,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut report = Report::new("hold", options.common);
    let mut held = Held::filled(options);
    report.ready()?;
    let (churn, touch) = (options.churn / PAGE as u64, options.touch / PAGE as u64);
    while report.goes_on() {
        for _ in 0..churn {
            let began = Instant::now();
            held.rewrite()?;
            report.operation(began, PAGE as u64)?;
        }
        for _ in 0..touch {
            let began = Instant::now();
            held.read()?;
            report.operation(began, PAGE as u64)?;
        }
        thread::sleep(report.until_next_line());
        report.tick(Instant::now())?;
    }
    held.check_all()?;
    report.done()
}

impl Held {
    fn filled(options: &Options) -> Self {
        let count = (options.size / PAGE as u64).max(1);
        let mut pages = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        pages.extend((0..count).map(|number| Page::new(options.common.seed, number)));
        Self { seed: options.common.seed, pages, written: count, next_read: 0 }
    }

    /// The number of the page in a place.
    fn number(&self, place: usize) -> u64 {
        let (place, count) = (place as u64, self.pages.len() as u64);
        let last = self.written - 1;
        last - (last - place) % count
    }

    fn check(&self, place: usize) -> Result<(), Failure> {
        let number = self.number(place);
        let whole = self.pages.get(place).is_some_and(|page| page.is_whole(self.seed, number));
        if whole { Ok(()) } else { Err(Failure::Corrupted { what: "page".to_owned(), number }) }
    }

    /// Writes a new page in place of the oldest, which is checked first.
    fn rewrite(&mut self) -> Result<(), Failure> {
        let count = self.pages.len() as u64;
        let place = usize::try_from(self.written % count).unwrap_or(0);
        self.check(place)?;
        if let Some(page) = self.pages.get_mut(place) {
            *page = Page::new(self.seed, self.written);
        }
        self.written += 1;
        Ok(())
    }

    fn read(&mut self) -> Result<(), Failure> {
        self.check(self.next_read)?;
        self.next_read = (self.next_read + 1) % self.pages.len();
        Ok(())
    }

    fn check_all(&self) -> Result<(), Failure> {
        (0..self.pages.len()).try_for_each(|place| self.check(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_rewritten_oldest_first_and_stay_whole() {
        let common = Common { limit: None, seed: 4 };
        let mut held = Held::filled(&Options { common, size: 40 << 10, churn: 0, touch: 0 });
        assert_eq!(held.pages.len(), 10);
        for round in 0..35 {
            held.check_all().unwrap_or_else(|error| panic!("round {round}: {error}"));
            held.rewrite().expect("whole before");
            held.read().expect("whole");
        }
        assert_eq!((held.number(4), held.number(5)), (44, 35));
        held.pages[3] = Page::new(4, 33);
        assert!(matches!(held.check_all(), Err(Failure::Corrupted { number: 43, .. })));
        assert_eq!(held.rewrite().is_ok(), held.number(5) == 45);
    }
}
