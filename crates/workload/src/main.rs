//! `plimsoll-workload`: loads for guests, with which elastic VMs are measured and tested.
//!
//! One static binary in the tiny image, one module for each load:
//!
//! | load | is | when memory is taken from its VM |
//! |---|---|---|
//! | [`files`] | serves files: most of its memory is the kernel's page cache | the guest gives cache back |
//! | [`store`] | a key-value store in memory: all that it has is in use | nothing can go but to swap |
//! | [`spin`] | computes | nothing happens |
//! | [`hold`] | fills memory and keeps it, equal for equal seeds | it is idle, and can be merged |
//!
//! [`probe`] is none: it finds out what other VMs of the host hold, where the host merges pages with
//! theirs.
//!
//! Invariants: a seed decides all that is written and the order of what is asked for; whatever is
//! read is checked, and one wrong byte ends the run with status 1, so that a host that loses or mixes
//! up pages cannot look fast. Each load prints lines of JSON: see [`report`].

mod arguments;
mod crew;
mod failure;
mod files;
mod hold;
mod page;
mod probe;
mod random;
mod report;
mod spin;
mod store;
mod ticks;

use std::io::Write as _;
use std::process::ExitCode;

use arguments::{Command, Load};
use failure::Failure;
use plimsoll_api::ErrorChain;

fn main() -> ExitCode {
    let load = match arguments::parse(std::env::args().skip(1)) {
        Ok(Command::Run(load)) => load,
        Ok(Command::Print(text)) => {
            // A reader that went away does not need the text.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(bad) => {
            log(&format!("{bad}\n\n{}", arguments::HELP));
            return ExitCode::from(2);
        }
    };
    match run(&load) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log(&ErrorChain(&failure).to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(load: &Load) -> Result<(), Failure> {
    match load {
        Load::Files(options) => files::run(options),
        Load::Store(options) => store::run(options),
        Load::Spin(options) => spin::run(options),
        Load::Hold(options) => hold::run(options),
        Load::Probe(options) => probe::run(options),
    }
}

fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "plimsoll-workload: {text}");
}
