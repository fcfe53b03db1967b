//! What `--help` says, and that every command says it, with examples.

use super::program::{command, run};

/// Every command that has a help of its own.
const COMMANDS: &[&[&str]] = &[
    &["server"],
    &["agent"],
    &["doctor"],
    &["lab", "up"],
    &["lab", "down"],
    &["lab", "status"],
    &["lab", "kill"],
    &["lab", "cut"],
    &["lab", "heal"],
    &["lab", "attack", "dedup"],
    &["project", "create"],
    &["project", "list"],
    &["project", "show"],
    &["project", "set"],
    &["project", "delete"],
    &["host", "list"],
    &["host", "show"],
    &["host", "drain"],
    &["host", "undrain"],
    &["host", "fence"],
    &["host", "remove"],
    &["image", "list"],
    &["image", "import"],
    &["image", "show"],
    &["image", "delete"],
    &["network", "create"],
    &["network", "list"],
    &["network", "show"],
    &["network", "delete"],
    &["vm", "create"],
    &["vm", "list"],
    &["reservation", "list"],
    &["vm", "show"],
    &["vm", "set"],
    &["vm", "migrate"],
    &["vm", "start"],
    &["vm", "stop"],
    &["vm", "reboot"],
    &["vm", "deflate"],
    &["vm", "inflate"],
    &["vm", "delete"],
    &["vm", "exec"],
    &["vm", "logs"],
    &["vm", "console"],
    &["vm", "explain"],
    &["apply"],
    &["explain"],
    &["events"],
    &["token", "create"],
    &["token", "list"],
    &["token", "revoke"],
    &["join-token", "create"],
    &["settings", "show"],
    &["settings", "set"],
    &["status"],
    &["whoami"],
    &["context", "list"],
    &["context", "set"],
    &["context", "use"],
    &["context", "delete"],
    &["bench", "manager"],
    &["simulate", "run"],
    &["simulate", "pack"],
    &["simulate", "openb"],
    &["simulate", "azure"],
    &["simulate", "overcommit"],
    &["simulate", "consolidate"],
    &["simulate", "rebalance"],
    &["completion"],
];

#[test]
fn every_command_has_help_with_examples() {
    for words in COMMANDS {
        let arguments: Vec<_> = words.iter().copied().chain(["--help"]).collect();
        let ran = run(&arguments);
        assert_eq!(ran.code, Some(0), "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.is_empty(), "{words:?}: help is data");
        assert!(ran.stdout.contains("Examples:\n  "), "{words:?} has no examples");
        let named = format!("plimsoll {}", words.join(" "));
        assert!(ran.stdout.contains(&named) || words == &["lab", "status"], "{words:?}: {named}");
    }
}

#[test]
fn the_overview() {
    insta::assert_snapshot!(run(&["--help"]).stdout);
}

#[test]
fn help_of_a_command_with_everything() {
    insta::assert_snapshot!(run(&["vm", "create", "--help"]).stdout);
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completion", shell]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(ran.stdout.contains("join-token"), "{shell}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let home = tempfile::tempdir().unwrap();
    let mut child = command(home.path())
        .args(["completion", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_version_is_one_line() {
    let ran = run(&["--version"]);
    assert_eq!(ran.code, Some(0));
    assert_eq!(ran.stdout.lines().count(), 1);
    assert!(ran.stdout.starts_with("plimsoll "));
}
