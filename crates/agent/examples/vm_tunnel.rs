//! One end of a tunnel as a program of its own, for tests: `vm_tunnel --directory DIR`, like the
//! hidden verb of the same name in the `plimsoll` binary.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments =
        std::env::args_os().skip_while(|argument| argument != "--directory").skip(1);
    let Some(directory) = arguments.next().map(PathBuf::from) else { return ExitCode::from(2) };
    match plimsoll_agent::vm::tunnel_main(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            let chain = plimsoll_api::ErrorChain(&error);
            let _ = writeln!(std::io::stderr(), "error: {chain}");
            ExitCode::FAILURE
        }
    }
}
