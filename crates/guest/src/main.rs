//! `plimsoll-guest`: finds the port to the host, and serves it for as long as the guest runs.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use plimsoll_api::ErrorChain;
use plimsoll_guest::session::{OnHangup, ServeError, Settings, serve};
use plimsoll_guest::system::System;
use plimsoll_guest::{VERSION, grow, memory, port};

const HELP: &str = "\
Usage: plimsoll-guest [--port PATH] [--heartbeat-ms N]
       plimsoll-guest --grow MOUNTPOINT

The agent inside a Plimsoll virtual machine. Serves the host on the virtio-serial
port org.plimsoll.guest.0 until it is killed.

  --port PATH        device file of the port, instead of finding it by its name
  --heartbeat-ms N   time between two heartbeats, 100 to 60000 (default 2000)
  --grow MOUNTPOINT  grow the ext4 file system mounted there to its disk's size,
                     and do nothing else
  --version          print the version
  --help             print this
";

/// The first and the longest pause between two looks for the port.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

struct Arguments {
    port: Option<PathBuf>,
    heartbeat: Duration,
    grow: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(argument) => {
            log(&format!("bad argument: {argument}\n\n{HELP}"));
            return ExitCode::from(2);
        }
    };
    let result = match &arguments.grow {
        Some(path) => {
            grow::grow(&System::default(), path).map_err(|error| ErrorChain(&error).to_string())
        }
        None => run(&arguments).map_err(|error| ErrorChain(&error).to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            log(&message);
            ExitCode::FAILURE
        }
    }
}

/// Looks for the port until it is there, then serves it. Ends only with an error; the init system
/// starts the agent again.
fn run(arguments: &Arguments) -> Result<(), ServeError> {
    let system = System::default();
    if let Err(error) = memory::prepare(&system) {
        log(&format!("cannot have new memory made movable: {}", ErrorChain(&error)));
    }
    let mut pause = PAUSES.0;
    let mut told = false;
    let port = loop {
        let path = arguments.port.clone().map_or_else(|| port::find(&system), Ok);
        match path.and_then(|path| port::open(&path)) {
            Ok(port) => break port,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    log(&format!("{}; looking again from time to time", ErrorChain(&error)));
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    };
    let settings = Settings { heartbeat: arguments.heartbeat, on_hangup: OnHangup::Wait, system };
    serve(port, settings)
}

/// The arguments; `None` if only a text was asked for, which is printed.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let mut parsed = Arguments { port: None, heartbeat: Duration::from_secs(2), grow: None };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--port" => parsed.port = Some(arguments.next().ok_or(argument)?.into()),
            "--grow" => parsed.grow = Some(arguments.next().ok_or(argument)?.into()),
            "--heartbeat-ms" => {
                let number = arguments.next().and_then(|text| text.parse().ok());
                let number = number.filter(|number| (100..=60_000).contains(number));
                parsed.heartbeat = Duration::from_millis(number.ok_or(argument)?);
            }
            "--version" => {
                print(&format!("plimsoll-guest {VERSION}\n"));
                return Ok(None);
            }
            "--help" => {
                print(HELP);
                return Ok(None);
            }
            _ => return Err(argument),
        }
    }
    Ok(Some(parsed))
}

fn print(text: &str) {
    // A reader that went away does not need the text.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Standard error is the journal or the console; when it is gone, there is nowhere else.
fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "plimsoll-guest: {text}");
}
