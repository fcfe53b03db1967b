//! The one binary: manager, agent, lab and the users' verbs.
//!
//! ```text
//!   cli (what can be typed) -> commands (ask, wait) -> output (tables, JSON)
//!                                  |          |
//!                                apply       lab, image, config
//! ```
//!
//! Only this file ends the process; everything else returns a [`failure::Failure`] that knows its
//! exit code.

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    cli::{Cli, Command},
    failure::{DONE, Failure, Outcome, USAGE},
};

mod apply;
mod cli;
mod commands;
mod config;
mod failure;
mod image;
mod lab;
mod output;
mod server_config;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        // Before any thread is made: these become other processes.
        Command::VmGuard(args) => return guard(&args),
        Command::VmTunnel(args) => return tunnel(&args),
        Command::LabProcess(args) => lab::process::become_process(&args),
        command => in_runtime(Cli { command, ..cli }),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if let Some(text) = failure.render() {
                output::talk(text.trim_end_matches('\n'));
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Runs a command that waits for things.
fn in_runtime(cli: Cli) -> Outcome<u8> {
    // rustls needs one provider for the whole process; whoever was first is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match cli.command {
        Command::Server(_) | Command::Agent(_) | Command::Bench(_) => {
            tokio::runtime::Builder::new_multi_thread().enable_all().build()
        }
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    let runtime = runtime.map_err(Failure::from)?;
    let result = runtime.block_on(commands::run(cli));
    // A thread that still reads standard input must not keep us.
    runtime.shutdown_background();
    result
}

/// What clap says, in our form: `error:`, and a hint after a blank line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help and version were asked for: they are data.
        let text = error.render().to_string();
        let printed = output::Output::new(false).data(&text);
        return ExitCode::from(printed.map_or_else(|failure| failure.exit_code(), |()| DONE));
    }
    let text = error
        .render()
        .to_string()
        .replace("\n  tip: ", "\n  caused by: ")
        .replace("For more information, try '--help'.", "hint: `--help` shows what can be typed");
    output::talk(text.trim_end());
    ExitCode::from(USAGE)
}

/// Guards a VM.
fn guard(args: &cli::cluster::GuardArgs) -> ExitCode {
    plimsoll_agent::vm::guard_main(&args.directory).unwrap_or_else(|error| failed(&error.into()))
}

/// Carries a VM that moves.
fn tunnel(args: &cli::cluster::TunnelArgs) -> ExitCode {
    let ended = plimsoll_agent::vm::tunnel_main(&args.directory);
    ended.map_or_else(|error| failed(&error.into()), |()| ExitCode::SUCCESS)
}

fn failed(failure: &Failure) -> ExitCode {
    if let Some(text) = failure.render() {
        output::talk(text.trim_end_matches('\n'));
    }
    ExitCode::from(failure::FAILED)
}
