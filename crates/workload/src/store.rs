//! A key-value store in memory: nine reads to one update, each value checked.
//!
//! Values lie side by side in pages, found by an index over their keys, as a real store has one. An
//! update writes a new version of a value, which then is what a read must find.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::time::Instant;

use crate::arguments::Common;
use crate::failure::Failure;
use crate::page::{self, PAGE, Page, WORDS};
use crate::random::Draws;
use crate::report::Report;

/// One operation in this many is an update.
const UPDATES: u32 = 10;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) common: Common,
    /// Bytes of all values.
    pub(crate) size: u64,
    /// Bytes of one value: whole words, at most a page.
    pub(crate) value: u64,
    /// Exponent of Zipf's law, 0 if all are alike.
    pub(crate) skew: f64,
}

/// Where a value is, and which version of it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    page: u32,
    slot: u32,
    version: u32,
}

#[derive(Debug)]
struct Store {
    seed: u64,
    /// Words of a value.
    words: usize,
    pages: Vec<Page>,
    index: HashMap<u64, Entry, BuildHasherDefault<DefaultHasher>>,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut report = Report::new("store", options.common);
    let mut store = Store::filled(options);
    report.ready()?;
    let mut draws = Draws::new(options.common.seed, store.index.len() as u64, options.skew, 0);
    while report.goes_on() {
        let key = draws.next();
        let update = draws.one_in(UPDATES);
        let began = Instant::now();
        store.read(key)?;
        if update {
            store.update(key)?;
        }
        report.operation(began, options.value)?;
    }
    report.done()
}

impl Store {
    fn filled(options: &Options) -> Self {
        let words = usize::try_from(options.value / 8).unwrap_or(WORDS).clamp(8, WORDS);
        let slots = WORDS / words;
        let pages = usize::try_from(options.size / PAGE as u64).unwrap_or(0).max(1);
        let mut store = Self {
            seed: options.common.seed,
            words,
            pages: Vec::with_capacity(pages),
            index: HashMap::with_capacity_and_hasher(pages * slots, BuildHasherDefault::default()),
        };
        let mut key = 0;
        for number in 0..u32::try_from(pages).unwrap_or(u32::MAX) {
            let mut page = Page([0; WORDS]);
            for (slot, value) in (0..).zip(page.0.chunks_exact_mut(words)) {
                page::fill(value, store.seed, key);
                store.index.insert(key, Entry { page: number, slot, version: 0 });
                key += 1;
            }
            store.pages.push(page);
        }
        store
    }

    fn read(&self, key: u64) -> Result<(), Failure> {
        let entry = *self.index.get(&key).ok_or_else(|| corrupted(key))?;
        let page = self.pages.get(entry.page as usize);
        let value = page.and_then(|page| page.0.chunks_exact(self.words).nth(entry.slot as usize));
        let whole =
            value.is_some_and(|value| page::is_whole(value, self.version(entry.version), key));
        if whole { Ok(()) } else { Err(corrupted(key)) }
    }

    fn update(&mut self, key: u64) -> Result<(), Failure> {
        let entry = self.index.get_mut(&key).ok_or_else(|| corrupted(key))?;
        entry.version = entry.version.wrapping_add(1);
        let entry = *entry;
        let seed = self.version(entry.version);
        let page = self.pages.get_mut(entry.page as usize);
        let value =
            page.and_then(|page| page.0.chunks_exact_mut(self.words).nth(entry.slot as usize));
        page::fill(value.ok_or_else(|| corrupted(key))?, seed, key);
        Ok(())
    }

    /// The seed of a version of values.
    fn version(&self, version: u32) -> u64 {
        self.seed ^ (u64::from(version) << 32)
    }
}

fn corrupted(key: u64) -> Failure {
    Failure::Corrupted { what: "value".to_owned(), number: key }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(value: u64) -> Store {
        let common = Common { limit: None, seed: 1 };
        Store::filled(&Options { common, size: 64 << 10, value, skew: 0.0 })
    }

    #[test]
    fn values_are_found_in_their_last_version() {
        for value in [64, 1 << 10, 4 << 10, 1000] {
            let mut store = store(value);
            let keys = store.index.len() as u64;
            assert_eq!(keys, 16 * (4096 / value));
            for key in 0..keys {
                store.read(key).expect("as filled");
                store.update(key).expect("updated");
                store.update(key).expect("updated twice");
                store.read(key).expect("as updated");
            }
            assert!(store.read(keys).is_err());
        }
    }

    #[test]
    fn a_stale_or_changed_value_is_found() {
        let mut store = store(1 << 10);
        let before = store.pages[2];
        store.update(9).expect("updated");
        store.pages[2] = before;
        assert!(matches!(store.read(9), Err(Failure::Corrupted { number: 9, .. })));
        store.read(8).expect("its neighbour is whole");
        store.pages.swap(4, 5);
        assert!(store.read(16).is_err());
    }
}
