//! Runs the program as a guest does, and reads its report.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll-workload")).args(arguments).output().expect("runs")
}

/// The lines of a run that succeeded.
fn report(arguments: &[&str]) -> Vec<serde_json::Value> {
    let output = run(arguments);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn every_load_reports_each_second_and_at_the_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path().to_str().expect("text");
    let loads: [&[&str]; 4] = [
        &["files", "--size", "2M", "--file", "64K", "--directory", directory],
        &["store", "--size", "2M"],
        &["spin", "--threads", "2"],
        &["hold", "--size", "2M", "--churn", "64K", "--touch", "64K"],
    ];
    for arguments in loads {
        let lines = report(&[arguments, &["--seconds", "2"]].concat());
        let events: Vec<_> =
            lines.iter().map(|line| line["event"].as_str().expect("event")).collect();
        assert_eq!(events.first(), Some(&"ready"), "{arguments:?}");
        assert_eq!(events.last(), Some(&"done"), "{arguments:?}");
        assert!(events.contains(&"second"), "{events:?}");
        let operations = |line: &serde_json::Value| line["operations"].as_u64().unwrap_or(0);
        let done = lines.last().expect("a line");
        assert_eq!(done["load"], arguments[0]);
        assert!(operations(done) > 0, "{done}");
        let seconds = lines.iter().filter(|line| line["event"] == "second");
        assert!(seconds.map(operations).sum::<u64>() <= operations(done));
        assert!(done["p99_us"].as_f64() >= done["p50_us"].as_f64(), "{done}");
    }
}

#[test]
fn a_probe_says_of_each_set_how_long_a_write_took() {
    let arguments = "probe --sets 3 --seed 40 --size 16K --ballast 2M --seconds 1";
    let lines = report(&arguments.split(' ').collect::<Vec<_>>());
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().expect("event")).collect();
    assert_eq!(events, ["ready", "set", "set", "set", "done"]);
    assert_eq!(lines[2]["seed"], 41);
    // On this machine nobody merges the pages of a process that did not ask for it.
    assert!(lines[1..4].iter().all(|line| line["held"] == false), "{lines:?}");
    assert!(lines[4]["own_ns"].as_u64().expect("time") > 0);
}

#[test]
fn a_corrupted_file_ends_the_run_with_1() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().to_str().expect("text");
    let arguments =
        ["files", "--size", "64K", "--file", "64K", "--directory", root, "--seconds", "1"];
    report(&arguments);
    let file = directory.path().join("workload-1-16/0");
    let mut bytes = std::fs::read(&file).expect("the file");
    bytes[40_000] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("corrupted: file 0: page 9"), "{text}");
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for arguments in [&["store", "--value", "5"][..], &["nothing"], &[]] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}
