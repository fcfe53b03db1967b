//! The command line, read into what each load needs. All bounds are checked here.

use std::path::PathBuf;
use std::time::Duration;

use crate::page::PAGE;
use crate::{files, hold, probe, spin, store};

pub(crate) const HELP: &str = "\
Usage: plimsoll-workload LOAD [OPTION VALUE]...

A load for a virtual machine that checks its own data. Prints lines of JSON: one when it
is ready, one each second with operations, bytes and the times of operations, one at the
end. Ends with 1 if data is not what was written.

Loads:
  files   serves files from the data disk, through the page cache
            --size 256M        all files together
            --file 1M          one file
            --directory /data  where they are written, once for each seed and size
            --threads 4        how many serve at the same time
  store   a key-value store in memory: nine reads to one update
            --size 256M        all values
            --value 1K         one value, 64 to 4K
  spin    computes
            --threads 1
  hold    fills memory and keeps it: pages distinct within, and equal for equal seeds
            --size 64M
            --churn 0          bytes rewritten each second, the oldest first
            --touch 0          bytes read and checked each second
  probe   tells whether another VM of the host holds a set of pages, if pages are merged
          with it: `hold` with the same seed and size has them. Writes to them after the
          given seconds, and says for each set how long a write took
            --sets 1           sets, whose seeds follow each other
            --size 128K        one set
            --ballast 32M      pages that nobody else has, for comparison

All of them:
  --seconds 10   time to run once it is ready; 0: until it is killed
  --seed 1       decides contents and order
files and store:
  --skew 0.99    exponent of Zipf's law for what is asked for; 0: all alike

--version and --help print those. Sizes are in bytes, or with K, M, G (1024-fold each).
";

/// Most bytes of one load.
const MAX_SIZE: u64 = 1 << 40;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    Run(Load),
    Print(String),
}

/// A load and its options.
#[derive(Debug)]
pub(crate) enum Load {
    Files(files::Options),
    Store(store::Options),
    Spin(spin::Options),
    Hold(hold::Options),
    Probe(probe::Options),
}

/// What all loads have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Common {
    /// Time to run once it is ready; `None`: until it is killed.
    pub(crate) limit: Option<Duration>,
    pub(crate) seed: u64,
}

/// What is wrong with the command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Bad {
    #[error("which load?")]
    NoLoad,
    #[error("unknown load `{0}`")]
    Load(String),
    #[error("unknown option `{0}`")]
    Option(String),
    #[error("{0} needs a value")]
    NoValue(String),
    #[error("`{value}` is no value for {option}")]
    Value { option: &'static str, value: String },
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, Bad> {
    let load = arguments.next().ok_or(Bad::NoLoad)?;
    let version = || format!("plimsoll-workload {}\n", env!("CARGO_PKG_VERSION"));
    match load.as_str() {
        "--help" => return Ok(Command::Print(HELP.to_owned())),
        "--version" => return Ok(Command::Print(version())),
        _ => {}
    }
    let mut given = Given::read(arguments)?;
    let common = given.common()?;
    let load = match load.as_str() {
        "files" => Load::Files(given.files(common)?),
        "store" => Load::Store(given.store(common)?),
        "spin" => Load::Spin(spin::Options { common, threads: given.threads(1)? }),
        "hold" => Load::Hold(given.hold(common)?),
        "probe" => Load::Probe(given.probe(common)?),
        _ => return Err(Bad::Load(load)),
    };
    given.nothing_left()?;
    Ok(Command::Run(load))
}

/// Options as they were typed; each is taken out by who knows it.
#[derive(Debug)]
struct Given(Vec<(String, String)>);

impl Given {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, Bad> {
        let mut given = Vec::new();
        while let Some(option) = arguments.next() {
            if !option.starts_with("--") {
                return Err(Bad::Option(option));
            }
            let value = arguments.next().ok_or_else(|| Bad::NoValue(option.clone()))?;
            given.push((option, value));
        }
        Ok(Self(given))
    }

    fn common(&mut self) -> Result<Common, Bad> {
        let seconds = self.number("--seconds", 10, 0..=1_000_000)?;
        let limit = (seconds > 0).then(|| Duration::from_secs(seconds));
        Ok(Common { limit, seed: self.number("--seed", 1, 0..=u64::MAX)? })
    }

    fn files(&mut self, common: Common) -> Result<files::Options, Bad> {
        let page = PAGE as u64;
        Ok(files::Options {
            common,
            size: self.size("--size", 256 << 20, page)?,
            file: self.size("--file", 1 << 20, page)?,
            directory: self.take("--directory").map_or_else(|| "/data".into(), PathBuf::from),
            skew: self.skew()?,
            threads: self.threads(4)?,
        })
    }

    fn store(&mut self, common: Common) -> Result<store::Options, Bad> {
        let value = self.size("--value", 1 << 10, 64)?;
        if value > PAGE as u64 || value % 8 != 0 {
            return Err(Bad::Value { option: "--value", value: value.to_string() });
        }
        Ok(store::Options {
            common,
            size: self.size("--size", 256 << 20, PAGE as u64)?,
            value,
            skew: self.skew()?,
        })
    }

    fn hold(&mut self, common: Common) -> Result<hold::Options, Bad> {
        Ok(hold::Options {
            common,
            size: self.size("--size", 64 << 20, PAGE as u64)?,
            churn: self.size("--churn", 0, 0)?,
            touch: self.size("--touch", 0, 0)?,
        })
    }

    fn probe(&mut self, common: Common) -> Result<probe::Options, Bad> {
        Ok(probe::Options {
            common,
            sets: self.number("--sets", 1, 1..=10_000)?,
            size: self.size("--size", 128 << 10, PAGE as u64)?,
            ballast: self.size("--ballast", 32 << 20, 1 << 20)?,
        })
    }

    fn skew(&mut self) -> Result<f64, Bad> {
        let option = "--skew";
        let Some(value) = self.take(option) else { return Ok(0.99) };
        let skew = value.parse().ok().filter(|skew| (0.0..=5.0).contains(skew));
        skew.ok_or(Bad::Value { option, value })
    }

    fn threads(&mut self, default: u64) -> Result<u64, Bad> {
        self.number("--threads", default, 1..=256)
    }

    fn number(
        &mut self,
        option: &'static str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, Bad> {
        let Some(value) = self.take(option) else { return Ok(default) };
        let number = value.parse().ok().filter(|number| range.contains(number));
        number.ok_or(Bad::Value { option, value })
    }

    /// A size of at least `least` bytes.
    fn size(&mut self, option: &'static str, default: u64, least: u64) -> Result<u64, Bad> {
        let Some(value) = self.take(option) else { return Ok(default) };
        let size = size(&value).filter(|size| (least..=MAX_SIZE).contains(size));
        size.ok_or(Bad::Value { option, value })
    }

    /// The last value given for an option.
    fn take(&mut self, option: &str) -> Option<String> {
        let mut value = None;
        self.0.retain_mut(|given| {
            let found = given.0 == option;
            if found {
                value = Some(std::mem::take(&mut given.1));
            }
            !found
        });
        value
    }

    fn nothing_left(mut self) -> Result<(), Bad> {
        if self.0.is_empty() { Ok(()) } else { Err(Bad::Option(self.0.swap_remove(0).0)) }
    }
}

/// Reads `64M` as bytes.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (text.strip_suffix('K')?, 10),
        b'M' => (text.strip_suffix('M')?, 20),
        b'G' => (text.strip_suffix('G')?, 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Command, Bad> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read_and_have_defaults() {
        let Ok(Command::Run(Load::Files(options))) =
            parse_text("files --size 64M --seconds 0 --file 8K --skew 0 --seed 9 --directory /tmp")
        else {
            panic!("no files");
        };
        assert_eq!((options.size, options.file, options.common.seed), (64 << 20, 8 << 10, 9));
        assert_eq!((options.common.limit, options.directory), (None, "/tmp".into()));
        let Ok(Command::Run(Load::Store(options))) = parse_text("store") else {
            panic!("no store")
        };
        assert_eq!((options.size, options.value), (256 << 20, 1 << 10));
        assert_eq!(options.common.limit, Some(Duration::from_secs(10)));
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        assert_eq!(parse_text("").unwrap_err(), Bad::NoLoad);
        assert_eq!(parse_text("dance").unwrap_err(), Bad::Load("dance".to_owned()));
        assert_eq!(parse_text("spin --size 1M").unwrap_err(), Bad::Option("--size".to_owned()));
        assert_eq!(parse_text("hold 5").unwrap_err(), Bad::Option("5".to_owned()));
        assert_eq!(parse_text("hold --size").unwrap_err(), Bad::NoValue("--size".to_owned()));
        for bad in [
            "files --size 99999999999999999999",
            "files --size 17179869184G",
            "files --file 100",
            "store --value 8K",
            "store --value 100",
            "store --skew -1",
            "store --skew NaN",
            "spin --threads 0",
            "hold --seconds x",
            "hold --size M",
            "probe --sets 0",
        ] {
            assert!(matches!(parse_text(bad), Err(Bad::Value { .. })), "{bad}");
        }
    }
}
