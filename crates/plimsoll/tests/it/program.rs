//! Runs the built program in a world of its own: an empty home, no variables of ours.

use std::process::{Command, Output, Stdio};

/// What became of a run.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program with an empty home.
pub(crate) fn command(home: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("COLUMNS", "100")
        .current_dir(home)
        .stdin(Stdio::null());
    command
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// Runs it with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Ran {
    let home = tempfile::tempdir().expect("a temporary directory");
    run_in(home.path(), arguments)
}

/// Runs it with these arguments in this home.
pub(crate) fn run_in(home: &std::path::Path, arguments: &[&str]) -> Ran {
    command(home).args(arguments).output().expect("the program runs").into()
}
