//! Scenarios: a cluster and its workloads in a file of TOML, invented by distributions with a seed.
//!
//! ```text
//!   text --file--> entries --check--> Scenario --draw--> arrivals --engine, once a policy--> Report
//! ```
//!
//! Every key is checked when the file is read; what is wrong is named with its line and column. The
//! same file and seed give the same arrivals to every policy, and every workload draws from random
//! streams of its own: adding one does not change what the others do. All keys are described in
//! `docs/simulator.md`.

mod check;
mod draw;
mod file;
mod gauge;
mod simulate;
#[cfg(test)]
mod tests;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use plimsoll_model::{Accelerators, Constraint, HostId, Label, Name, Policy, ProjectId, Resources};
use plimsoll_placement::HostState;
use thiserror::Error;

pub use check::{MOST_HOSTS, MOST_VMS, Problem};
pub use draw::Workloads;
pub use file::GroupPer;
pub use simulate::{Progress, SimulateError, simulate};
pub use values::{Amount, InvalidValue, Period, Rate, Spread};

/// The longest file, in bytes.
pub const LONGEST: u64 = 4 << 20;

/// Why a file is not a scenario.
#[derive(Debug, Error)]
pub enum ScenarioError {
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too long.
    #[error("`{}` has more than {LONGEST} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is not UTF-8.
    #[error("{place}: not UTF-8")]
    NotText {
        /// Where.
        place: Place,
    },
    /// It is not of the form that it should be.
    #[error("{place}: {message}")]
    Form {
        /// Where.
        place: Place,
        /// What the reader of TOML says, on one line.
        message: String,
    },
    /// It says something impossible.
    #[error("{place}: not a scenario")]
    Content {
        /// Where.
        place: Place,
        /// What.
        #[source]
        problem: Box<Problem>,
    },
}

/// A place in a file, as editors count: both numbers from 1, the column in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl Place {
    /// Where the byte at this offset is.
    fn of(path: &Path, text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            path: path.to_owned(),
            line: 1 + before.matches('\n').count(),
            column: 1 + before[line_start..].chars().count(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path.display(), self.line, self.column)
    }
}

/// A cluster, its workloads, and how they are tried; every number is within its bounds.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is called; on one line.
    pub name: String,
    /// What it is about.
    pub description: Option<String>,
    /// What the random numbers begin with.
    pub seed: u64,
    /// How long it lasts.
    pub duration: Period,
    /// How much of the beginning totals leave out: the cluster is still filling.
    pub warm_up: Period,
    /// The distance of the points of the charts.
    pub sample_every: Period,
    /// Policies to compare, in this order.
    pub policies: Vec<Policy>,
    /// Hosts, numbered in this order.
    pub shapes: Vec<HostShape>,
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// The text from which it was read.
    pub source: String,
}

/// Equal hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostShape {
    /// What they are called, before their number.
    pub name: Name,
    /// How many there are.
    pub count: u64,
    /// What each has.
    pub capacity: Resources,
    /// The racks of each zone among which they are dealt out; none: each is a rack of its own.
    pub racks: Vec<Label>,
    /// The zones among which they are dealt out; none: all are in one.
    pub zones: Vec<Label>,
    /// Labels of each.
    pub labels: BTreeMap<Label, Label>,
}

/// VMs of one kind.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What it is called.
    pub name: Name,
    /// Whose they are.
    pub project: ProjectId,
    /// Of what application they are a part.
    pub application: Name,
    /// When batches arrive.
    pub arrivals: Arrivals,
    /// Batches arrive from here on.
    pub start: Period,
    /// Batches arrive before this.
    pub end: Period,
    /// How many equal VMs come in a batch.
    pub batch: Amount<u64>,
    /// Whether a batch is placed as a whole or not at all.
    pub all_or_nothing: bool,
    /// How long VMs run.
    pub lifetime: Lifetime,
    /// What they ask for.
    pub flavors: Vec<Flavor>,
    /// Placement groups to which they belong.
    pub groups: BTreeSet<Name>,
    /// Of whom the groups consist.
    pub group_per: GroupPer,
    /// What they ask of their place.
    pub constraints: Vec<Constraint>,
}

/// When batches arrive.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Independent of each other: exponentially distributed distances.
    Poisson(Rate),
    /// At equal distances.
    Constant(Rate),
    /// Bursts come independent of each other; each brings many batches.
    Bursts {
        /// How often bursts come.
        rate: Rate,
        /// How many batches each brings.
        size: Amount<u64>,
        /// The batches of a burst are spread evenly over this much time.
        over: Period,
    },
    /// Independent of each other, with a rate that goes up and down like a cosine.
    Diurnal {
        /// The mean rate.
        rate: Rate,
        /// How far the rate swings about its mean: 0 not at all, 1 from nothing to twice the mean.
        swing: f64,
        /// When in the period the rate is highest.
        peak: Period,
        /// After how long it repeats.
        period: Period,
    },
    /// So many at the start of the workload.
    Once(u64),
}

/// How long VMs run.
#[derive(Clone, Debug, PartialEq)]
pub enum Lifetime {
    /// To the end of the scenario.
    Forever,
    /// All equally long.
    Fixed(Period),
    /// Exponentially distributed, with this mean.
    Exponential(Period),
    /// Log-normally distributed: many short ones and a long tail.
    Lognormal {
        /// Half of them run shorter.
        median: Period,
        /// The standard deviation of the logarithm.
        sigma: f64,
    },
    /// Between two ends, each as likely as the other.
    Uniform {
        /// The shortest.
        from: Period,
        /// The longest.
        to: Period,
    },
}

/// A size of VMs.
#[derive(Clone, Debug, PartialEq)]
pub struct Flavor {
    /// What it is called.
    pub name: Label,
    /// How often it comes, relative to the others of its workload.
    pub weight: f64,
    /// The scalar elements, in the order of [`plimsoll_model::Element::SCALARS`].
    pub elements: [Amount<u64>; 6],
    /// Accelerators.
    pub accelerators: Accelerators,
}

impl Flavor {
    /// The vector of which each element is what `pick` makes of its ends.
    fn vector(&self, pick: impl Fn(u64, u64) -> u64) -> Resources {
        let scalars = self.elements.map(|element| {
            let (from, to) = element.ends();
            pick(from, to)
        });
        Resources { accelerators: self.accelerators.clone(), ..Resources::from_scalars(scalars) }
    }

    /// The least that it asks for.
    #[must_use]
    pub fn least(&self) -> Resources {
        self.vector(|from, _| from)
    }

    /// The most that it asks for.
    #[must_use]
    pub fn most(&self) -> Resources {
        self.vector(|_, to| to)
    }

    /// The middle of what it asks for.
    #[must_use]
    pub fn middle(&self) -> Resources {
        self.vector(u64::midpoint)
    }
}

impl HostShape {
    /// Its hosts, the first of which has this number. Hosts are dealt out to the zones in turn, and
    /// within a zone to its racks in turn.
    fn hosts(&self, first: u32) -> impl Iterator<Item = HostState> + '_ {
        let nth = |list: &[Label], at: usize| -> Option<Label> {
            (!list.is_empty()).then(|| list[at % list.len()].clone())
        };
        // Bounded by `MOST_HOSTS`.
        let count = u32::try_from(self.count).unwrap_or(u32::MAX);
        (0..count).map(move |number| {
            let at = number as usize;
            HostState {
                id: HostId(first.saturating_add(number)),
                name: format!("{}-{}", self.name, number + 1)
                    .parse()
                    .expect("a checked name with a number is a name"),
                rack: nth(&self.racks, at / self.zones.len().max(1)),
                zone: nth(&self.zones, at),
                labels: self.labels.clone(),
                capacity: self.capacity.clone(),
                pool: None,
                unschedulable: None,
            }
        })
    }
}

impl Scenario {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It cannot be read, is not of the form that it should be, or says something impossible.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let read = |source| ScenarioError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > LONGEST {
            return Err(ScenarioError::TooLong { path: path.to_owned() });
        }
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(path, &text),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
                Err(ScenarioError::NotText { place: Place::of(path, &text, valid) })
            }
        }
    }

    /// Checks a text; `path` is where errors say that it is from.
    ///
    /// # Errors
    /// It is not of the form that it should be, or says something impossible.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ScenarioError> {
        let entries = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let message = error.message().lines().collect::<Vec<_>>().join(": ");
            let message = message.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
            ScenarioError::Form { place: Place::of(path, text, start), message }
        })?;
        check::check(entries, text).map_err(|wrong| ScenarioError::Content {
            place: Place::of(path, text, wrong.span.start),
            problem: Box::new(wrong.problem),
        })
    }

    /// Its hosts.
    pub fn hosts(&self) -> impl Iterator<Item = HostState> + '_ {
        let mut next = 1_u32;
        self.shapes.iter().flat_map(move |shape| {
            let first = next;
            next = next.saturating_add(u32::try_from(shape.count).unwrap_or(u32::MAX));
            shape.hosts(first)
        })
    }

    /// How many hosts it has.
    #[must_use]
    pub fn host_count(&self) -> u64 {
        self.shapes.iter().map(|shape| shape.count).sum()
    }

    /// The arrivals, always the same ones.
    #[must_use]
    pub fn workload(&self) -> Workloads<'_> {
        Workloads::new(self)
    }
}
