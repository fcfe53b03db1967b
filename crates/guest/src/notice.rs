//! Brings a notice of the host to the guest's users and applications.
//!
//! It is written to the console, given to `wall` where there is one, and to every hook in
//! `/etc/plimsoll/notice.d` (see [`hooks`]). A hook is called as `HOOK ending_soon SECONDS`, with `PLIMSOLL_NOTICE` and
//! `PLIMSOLL_SECONDS_LEFT` set.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use plimsoll_api::guest::{EnvironmentVariable, Notice, NoticeResult};
use rustix::fs::OFlags;

use crate::system::System;
use crate::{exec, hooks};

const HOOKS: &str = "etc/plimsoll/notice.d";
const HOOK_LIMIT_MS: u64 = 30_000;
const WALL_LIMIT_MS: u64 = 5_000;

/// Delivers a notice; `None` if this agent does not know it.
#[must_use]
pub fn deliver(system: &System, notice: &Notice) -> Option<NoticeResult> {
    let (kind, seconds) = match notice {
        Notice::EndingSoon { seconds } => ("ending_soon", *seconds),
        Notice::Unknown => return None,
    };
    let text = format!("This virtual machine will be stopped in {seconds} seconds.");
    let console = write_console(system, &text);
    // Not every guest has one, and nobody may be logged in.
    let wall = hooks::command(vec!["wall".to_owned(), text], WALL_LIMIT_MS);
    let _ = exec::run(&wall);
    let mut result = NoticeResult { console, hooks_succeeded: 0, hooks_failed: 0 };
    for hook in hooks::in_directory(&system.path(HOOKS)) {
        let argv = vec![hook.to_string_lossy().into_owned(), kind.to_owned(), seconds.to_string()];
        let mut request = hooks::command(argv, HOOK_LIMIT_MS);
        for (name, value) in
            [("PLIMSOLL_NOTICE", kind.to_owned()), ("PLIMSOLL_SECONDS_LEFT", seconds.to_string())]
        {
            request.env.push(EnvironmentVariable { name: name.to_owned(), value });
        }
        match exec::run(&request) {
            Ok(ended) if ended.exit_code == Some(0) => result.hooks_succeeded += 1,
            Ok(_) | Err(_) => result.hooks_failed += 1,
        }
    }
    Some(result)
}

/// Writes without waiting: a console that nobody drains must not hold the notice.
fn write_console(system: &System, text: &str) -> bool {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let console = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(system.path("dev/console"));
    console.and_then(|mut console| console.write_all(format!("\r\n{text}\r\n").as_bytes())).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn hooks_get_the_notice() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(HOOKS);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::create_dir_all(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/console"), "").unwrap();
        let seen = root.path().join("seen");
        let script = format!("#!/bin/sh\necho $1 $PLIMSOLL_SECONDS_LEFT >{}\n", seen.display());
        for (name, text, mode) in [
            ("10-seen", script.as_str(), 0o755),
            ("20-bad", "#!/bin/sh\nexit 1\n", 0o755),
            ("30", "", 0o644),
        ] {
            std::fs::write(directory.join(name), text).unwrap();
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(directory.join(name), permissions).unwrap();
        }
        let system = System::at(root.path());
        let result = deliver(&system, &Notice::EndingSoon { seconds: 60 }).unwrap();
        assert!(result.console);
        let console = std::fs::read_to_string(root.path().join("dev/console")).unwrap();
        assert!(console.contains("stopped in 60 seconds"), "{console}");
        if rustix::process::geteuid().is_root() {
            assert_eq!((result.hooks_succeeded, result.hooks_failed), (1, 1));
            assert_eq!(std::fs::read_to_string(seen).unwrap(), "ending_soon 60\n");
        }
        assert_eq!(deliver(&system, &Notice::Unknown), None);
    }
}
