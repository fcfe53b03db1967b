//! The commands: one module for each noun. Each asks the manager, waits if need be, and hands what it
//! learnt to [`crate::output`].

use plimsoll_model::Name;

use crate::{
    cli::{Cli, Command, vm as vm_cli},
    config::Connection,
    failure::{Failure, Outcome},
    output::Output,
};

mod apply;
mod bench;
mod context;
mod events;
mod exec;
mod explain;
mod host;
mod image;
mod lab;
mod migrate;
mod network;
mod profile;
mod project;
mod request;
mod run;
mod settings;
mod simulate;
mod token;
mod vm;
pub(crate) mod wait;

/// Runs what was typed. Returns the exit code where a command has one of its own.
pub(crate) async fn run(cli: Cli) -> Outcome<u8> {
    let Cli { global, command } = cli;
    let output = Output::new(global.json);
    match command {
        Command::Server(args) => run::server(args).await?,
        Command::Agent(args) => run::agent(*args).await?,
        Command::Doctor(args) => return run::doctor(&args, output).await,
        Command::Lab(command) => return lab::run(command, output).await,
        Command::Context(command) => context::run(command, &global, output)?,
        Command::Completion(args) => run::completion(&args, output)?,
        Command::Bench(command) => run::bench(command, output).await?,
        Command::Simulate(command) => simulate::run(command, output)?,
        Command::VmGuard(_) | Command::LabProcess(_) => {
            return Err(Failure::usage("this command is started by other commands only"));
        }
        command => {
            let connection = Connection::open(&global)?;
            return with_manager(command, &connection, &global, output).await;
        }
    }
    Ok(crate::failure::DONE)
}

/// Runs what needs the manager.
async fn with_manager(
    command: Command,
    connection: &Connection,
    global: &crate::cli::GlobalArgs,
    output: Output,
) -> Outcome<u8> {
    match command {
        Command::Project(command) => project::run(command, connection, output).await?,
        Command::Host(command) => host::run(command, connection, output).await?,
        Command::Image(command) => image::run(command, connection, output).await?,
        Command::Network(command) => network::run(command, connection, output).await?,
        Command::Vm(command) => return vm::run(command, connection, output).await,
        Command::Reservation(vm_cli::ReservationCommand::List) => {
            vm::reservations(connection, output).await?;
        }
        Command::Apply(args) => apply::run(&args, connection, output).await?,
        Command::Explain(args) => explain::tried(&args, connection, output).await?,
        Command::Events(args) => events::run(&args, global, connection, output).await?,
        Command::Token(command) => token::run(command, connection, output).await?,
        Command::JoinToken(command) => token::join(command, connection, output).await?,
        Command::Settings(command) => settings::run(command, connection, output).await?,
        Command::Status(args) => settings::status(&args, connection, output).await?,
        Command::Whoami(_) => settings::whoami(connection, output).await?,
        _ => return Err(Failure::new("this command needs no manager")),
    }
    Ok(crate::failure::DONE)
}

/// The result of something that leaves nothing to show, for programs.
#[derive(Debug, serde::Serialize)]
struct Done<'a> {
    /// What was done.
    done: &'a str,
    /// To what.
    name: &'a str,
}

/// Says what was done: to people on standard error, to programs as an object.
fn done(output: Output, what: &str, name: &str) -> Outcome {
    if output.is_json() {
        output.json(&Done { done: what, name })
    } else {
        crate::output::talk(&format!("{what}: {name}"));
        Ok(())
    }
}

/// Names in a sentence.
fn join(names: &[Name]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
