//! Requests for VMs of Microsoft Azure, in the text form of `trace_generation_rnn`: who asks when
//! for which flavour, and how long each VM ran.
//!
//! Requests and lifetimes are two files that go in step: a line for each 300 s with the time in
//! seconds, a space, and for each VM a flavour's letter in the one and `U7` or `C7` in the other;
//! commas between VMs, `|` between the batches of tenants. The number is the bin of the lifetime:
//! `U` of one that ended, `C` of one that was still running when the trace was cut.

use std::{
    collections::BTreeMap,
    fs,
    io::BufRead,
    path::{Path, PathBuf},
};

use plimsoll_model::{Bytes, MilliCores};

use super::{
    Limits, Lines, ReadError,
    lines::{Cell, Line},
    source::{self, Source},
};

/// The most flavours and the most bins.
const KINDS: usize = 10_000;

/// The latest second, some 10^5 years.
const LATEST: u64 = 1 << 42;

/// What a VM asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flavor {
    /// Cores.
    pub cpu: MilliCores,
    /// Memory: the trace's GB are GiB.
    pub memory: Bytes,
}

/// The flavours by their letters.
pub type Flavors = BTreeMap<char, Flavor>;

/// How long a VM lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It left after so many seconds.
    Seconds(u64),
    /// It was still running when the trace was cut.
    Running,
}

/// A VM that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What it asks for.
    pub flavor: Flavor,
    /// How long it lives.
    pub lifetime: Lifetime,
}

/// What is asked for in one interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// When the interval begins.
    pub at_seconds: u64,
    /// The batches of tenants, each of one VM or more.
    pub batches: Vec<Vec<Asked>>,
}

/// The bins of lifetimes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// The first and the last second of each bin.
    bins: Vec<(u64, u64)>,
    /// From one second that is listed to the next.
    step: u64,
}

impl Intervals {
    /// How long a VM of a bin lives, in seconds: the middle of the bin, and half a step where that
    /// is zero, since the times of the trace are cut down to whole steps.
    #[must_use]
    pub fn seconds(&self, bin: usize) -> Option<u64> {
        let (first, last) = self.bins.get(bin)?;
        Some((first + (last - first) / 2).max(self.step / 2))
    }
}

/// Reads a map of flavours: `2,3.5 g` is 2 cores and 3.5 GB.
///
/// # Errors
/// The first thing that is wrong.
pub fn flavors(path: &Path, limits: &Limits) -> Result<Flavors, ReadError> {
    flavors_from(source::lines(path, limits)?)
}

/// [`flavors`] of a text.
///
/// # Errors
/// The first thing that is wrong.
pub fn flavors_from<R: BufRead>(mut lines: Lines<R>) -> Result<Flavors, ReadError> {
    let mut flavors = Flavors::new();
    while let Some(line) = lines.next_filled_line()? {
        let mut words = line.words();
        let size = words.next().ok_or_else(|| line.too_short("a flavour such as `2,3.5 g`"))?;
        let letter = words.next().ok_or_else(|| line.too_short("the flavour's letter"))?;
        if let Some(more) = words.next() {
            return Err(more.unexpected("the end of the line"));
        }
        let Some((cpu, memory)) = size.text.split_once(',') else {
            return Err(size.unexpected("cores and GB such as `2,3.5`"));
        };
        let flavor = Flavor {
            cpu: MilliCores(amount(&line.cell(size.start, cpu), "cores")?),
            memory: Bytes(gibibytes(&line.cell(size.start + cpu.len() + 1, memory))?),
        };
        let mut letters = letter.text.chars();
        let (Some(name), None) = (letters.next(), letters.next()) else {
            return Err(letter.unexpected("one letter"));
        };
        if name == '|' || name == ',' {
            return Err(letter.unexpected("one letter"));
        }
        if flavors.len() >= KINDS {
            return Err(letter.too_much("flavours", KINDS));
        }
        if flavors.insert(name, flavor).is_some() {
            return Err(letter.unexpected("a letter that no other flavour has"));
        }
    }
    if flavors.is_empty() {
        lines.expect_line("a flavour such as `2,3.5 g`")?;
    }
    Ok(flavors)
}

/// Thousandths of a decimal number above zero, below a million.
fn amount(cell: &Cell<'_>, what: &str) -> Result<u64, ReadError> {
    cell.thousandths()
        .filter(|amount| (1..=1_000_000_000).contains(amount))
        .ok_or_else(|| cell.unexpected(format!("{what}, a number above 0, such as 2 or 0.5")))
}

fn gibibytes(cell: &Cell<'_>) -> Result<u64, ReadError> {
    // At most 10^9 thousandths: the product is below 2^61.
    Ok(amount(cell, "GB of memory")? * (1 << 30) / 1000)
}

/// Reads a map of intervals: `3900 13` is a lifetime of 3,900 s, which is in bin 13.
///
/// # Errors
/// The first thing that is wrong.
pub fn intervals(path: &Path, limits: &Limits) -> Result<Intervals, ReadError> {
    intervals_from(source::lines(path, limits)?)
}

/// [`intervals`] of a text.
///
/// # Errors
/// The first thing that is wrong.
pub fn intervals_from<R: BufRead>(mut lines: Lines<R>) -> Result<Intervals, ReadError> {
    let mut bins: Vec<(u64, u64)> = Vec::new();
    let mut step = None;
    while let Some(line) = lines.next_filled_line()? {
        let mut words = line.words();
        let seconds = words.next().ok_or_else(|| line.too_short("seconds and a bin"))?;
        let bin = words.next().ok_or_else(|| line.too_short("the bin of these seconds"))?;
        if let Some(more) = words.next() {
            return Err(more.unexpected("the end of the line"));
        }
        let least = bins.last().map_or(0, |(_, last)| last + 1);
        let at = seconds.number("seconds in rising order", least, LATEST)?;
        if let Some((_, last)) = bins.last() {
            step.get_or_insert(at - last);
        }
        // A bin is the one of the line before, or the next.
        let known = bins.len() as u64;
        let number = bin.number("a bin", known.saturating_sub(1), known)?;
        if number == known {
            if bins.len() >= KINDS {
                return Err(bin.too_much("bins", KINDS));
            }
            bins.push((at, at));
        } else if let Some((_, last)) = bins.last_mut() {
            *last = at;
        }
    }
    if bins.is_empty() {
        lines.expect_line("seconds and a bin")?;
    }
    Ok(Intervals { bins, step: step.unwrap_or(0) })
}

/// The requests and the lifetimes, when one of the two is named and the other lies beside it under
/// the name that the publishers gave it: `v1.txt` and `v1.c2100000.txt`, with or without `.xz`.
/// None when there is no such file, or more than one.
#[must_use]
pub fn pair(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let name = path.file_name()?.to_str()?;
    let (stem, cut) = stem_and_cut(name)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut others = fs::read_dir(directory).ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let other = stem_and_cut(&name)?;
        (other.0 == stem && other.1 != cut).then(|| path.with_file_name(&name))
    });
    let (other, None) = (others.next()?, others.next()) else { return None };
    Some(if cut { (other, path.to_owned()) } else { (path.to_owned(), other) })
}

/// The name without its ends, and whether it says where the trace was cut.
fn stem_and_cut(name: &str) -> Option<(&str, bool)> {
    let stem = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".txt")?;
    let cut = stem.rsplit_once(".c").filter(|(_, second)| {
        !second.is_empty() && second.bytes().all(|byte| byte.is_ascii_digit())
    });
    Some(cut.map_or((stem, false), |(stem, _)| (stem, true)))
}

/// Requests with their lifetimes, line by line.
#[derive(Debug)]
pub struct Requests<R> {
    requests: Lines<R>,
    lifetimes: Lines<R>,
    flavors: Flavors,
    intervals: Intervals,
    /// The first second that the next line may be of.
    earliest: u64,
    left: usize,
    limit: usize,
    failed: bool,
}

/// Opens requests and their lifetimes.
///
/// # Errors
/// A file could not be opened.
pub fn requests(
    requests: &Path,
    lifetimes: &Path,
    flavors: Flavors,
    intervals: Intervals,
    limits: &Limits,
) -> Result<Requests<impl BufRead + use<>>, ReadError> {
    let open = |path| source::lines(path, limits);
    Ok(Requests::<Source>::new(open(requests)?, open(lifetimes)?, flavors, intervals, limits))
}

impl<R: BufRead> Requests<R> {
    /// Requests and lifetimes of two texts.
    pub fn new(
        requests: Lines<R>,
        lifetimes: Lines<R>,
        flavors: Flavors,
        intervals: Intervals,
        limits: &Limits,
    ) -> Self {
        let limit = limits.records;
        Self {
            requests,
            lifetimes,
            flavors,
            intervals,
            earliest: 0,
            left: limit,
            limit,
            failed: false,
        }
    }

    fn moment(&mut self) -> Result<Option<Moment>, ReadError> {
        let Some(requests) = self.requests.next_filled_line()? else {
            return match self.lifetimes.next_filled_line()? {
                Some(line) => Err(line
                    .cell(0, line.text)
                    .unexpected("no more lines than there are of requests")),
                None => Ok(None),
            };
        };
        let lifetimes = match self.lifetimes.next_filled_line()? {
            Some(line) => line,
            None => self.lifetimes.expect_line("the lifetimes of the VMs of the requests' line")?,
        };
        let (at, asked) = halves(requests, self.earliest, LATEST)?;
        let (_, lived) = halves(lifetimes, at, at)?;
        self.earliest = at + 1;
        let mut moment = Moment { at_seconds: at, batches: Vec::new() };
        let mut batch = Vec::new();
        let mut lived = parts(lived);
        for letter in parts(asked) {
            let Some(lifetime) = lived.next() else {
                return Err(lifetimes.too_short("as many VMs as the requests' line has"));
            };
            if letter.text == "|" || lifetime.text == "|" {
                if letter.text != lifetime.text {
                    return Err(lifetime
                        .unexpected("a `|` where the requests' line has one, and only there"));
                }
                if batch.is_empty() {
                    return Err(letter.unexpected("a VM between two `|`"));
                }
                moment.batches.push(std::mem::take(&mut batch));
                continue;
            }
            if self.left == 0 {
                return Err(letter.too_much("VMs", self.limit));
            }
            self.left -= 1;
            let mut letters = letter.text.chars();
            let flavor = match (letters.next(), letters.next()) {
                (Some(name), None) => self.flavors.get(&name).copied(),
                _ => None,
            };
            batch.push(Asked {
                flavor: flavor
                    .ok_or_else(|| letter.unexpected("the letter of a flavour or `|`"))?,
                lifetime: lifetime_of(&lifetime, &self.intervals)?,
            });
        }
        if let Some(more) = lived.next() {
            return Err(more.unexpected("no more VMs than the requests' line has"));
        }
        if !batch.is_empty() {
            moment.batches.push(batch);
        }
        Ok(Some(moment))
    }
}

impl<R: BufRead> Iterator for Requests<R> {
    type Item = Result<Moment, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.moment();
        self.failed = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

/// The time of a line, and where its list begins.
fn halves(line: Line<'_>, least: u64, most: u64) -> Result<(u64, Cell<'_>), ReadError> {
    let mut words = line.words();
    let Some(time) = words.next() else { return Err(line.too_short("a time in seconds")) };
    let what = if least == most {
        "the time of the requests' line in seconds"
    } else {
        "a time in seconds, later than that of the line before"
    };
    let at = time.number(what, least, most)?;
    let list = words.next().unwrap_or_else(|| line.cell(line.text.len(), ""));
    match words.next() {
        Some(more) => Err(more.unexpected("the end of the line")),
        None => Ok((at, list)),
    }
}

/// The parts of a list between commas; none of an empty one.
fn parts(list: Cell<'_>) -> impl Iterator<Item = Cell<'_>> {
    let mut start = list.start;
    list.text.split(',').filter(move |_| !list.text.is_empty()).map(move |text| {
        let part = list.line.cell(start, text);
        start += text.len() + 1;
        part
    })
}

fn lifetime_of(cell: &Cell<'_>, intervals: &Intervals) -> Result<Lifetime, ReadError> {
    let wanted = || cell.unexpected("a lifetime such as `U7` or `C7`, of a known bin, or `|`");
    let bin = cell.text.get(1..).and_then(|bin| bin.parse().ok()).ok_or_else(wanted)?;
    let seconds = intervals.seconds(bin).ok_or_else(wanted)?;
    match cell.text.as_bytes().first() {
        Some(b'U') => Ok(Lifetime::Seconds(seconds)),
        Some(b'C') => Ok(Lifetime::Running),
        _ => Err(wanted()),
    }
}
