//! Real commands on this machine.

use plimsoll_api::guest::EnvironmentVariable;
use proptest::prelude::*;

use super::*;

fn request(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        stdin: Vec::new(),
        timeout_ms: 20_000,
        max_output_bytes: 64 << 10,
    }
}

fn shell(script: &str) -> ExecRequest {
    request(&["sh", "-c", script])
}

#[test]
fn output_status_and_environment_come_back() {
    let variable = EnvironmentVariable { name: "COLOUR".into(), value: "dark blue".into() };
    let script = "echo \"$COLOUR\"; echo bad >&2; exit 3";
    let result = run(&ExecRequest { env: vec![variable], ..shell(script) }).unwrap();
    assert_eq!(result.stdout, b"dark blue\n");
    assert_eq!(result.stderr, b"bad\n");
    assert_eq!((result.exit_code, result.signal, result.timed_out), (Some(3), None, false));
}

#[test]
fn a_signal_is_told_apart_from_a_status() {
    let result = run(&shell("kill -9 $$")).unwrap();
    assert_eq!((result.exit_code, result.signal, result.timed_out), (None, Some(9), false));
}

#[test]
fn a_missing_program_is_an_error() {
    let error = run(&request(&["/nonexistent/program"])).unwrap_err();
    let ExecError::Start { program, source } = error else { panic!("{error:?}") };
    assert_eq!(
        (program.as_str(), source.kind()),
        ("/nonexistent/program", io::ErrorKind::NotFound)
    );
}

#[test]
fn output_beyond_the_limit_is_cut_and_the_command_still_ends() {
    let limited =
        ExecRequest { max_output_bytes: 1000, ..shell("yes | head -c 3000000; echo x >&2") };
    let result = run(&limited).unwrap();
    assert_eq!(result.stdout.len(), 1000);
    assert!(result.stdout_truncated && !result.stderr_truncated);
    assert_eq!((result.exit_code, result.stderr.as_slice()), (Some(0), &b"x\n"[..]));
}

#[test]
fn on_timeout_the_whole_process_group_dies() {
    let script = "sleep 1000 & echo $!; sleep 1000";
    let result = run(&ExecRequest { timeout_ms: 300, ..shell(script) }).unwrap();
    assert!(result.timed_out);
    assert_eq!(result.signal, Some(9));
    assert!(result.duration_ms < 4000, "{}", result.duration_ms);
    let background: i32 = String::from_utf8(result.stdout).unwrap().trim().parse().unwrap();
    let status = format!("/proc/{background}/stat");
    // A killed orphan stays a zombie until its new parent collects it.
    let limit = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&status).is_ok_and(|text| !text.contains(") Z ")) {
        assert!(Instant::now() < limit, "the background process lives");
        std::thread::yield_now();
    }
}

#[test]
fn a_background_process_does_not_hold_the_result() {
    let result = run(&shell("sleep 30 & echo $!")).unwrap();
    assert!(result.duration_ms < 10_000, "{}", result.duration_ms);
    assert_eq!(result.exit_code, Some(0));
    let background = String::from_utf8(result.stdout).unwrap();
    let pid = Pid::from_raw(background.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).expect("it is still running");
}

#[test]
fn a_command_that_does_not_read_its_input_ends() {
    let deaf = ExecRequest { stdin: vec![b'x'; 300_000], ..request(&["true"]) };
    assert_eq!(run(&deaf).unwrap().exit_code, Some(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn input_comes_back_through_cat(stdin in proptest::collection::vec(any::<u8>(), 0..200_000)) {
        let limit = 100_000;
        let result = run(&ExecRequest {
            stdin: stdin.clone(),
            max_output_bytes: limit,
            ..request(&["cat"])
        }).unwrap();
        let kept = stdin.len().min(usize::try_from(limit).unwrap());
        prop_assert_eq!(&result.stdout, &stdin[..kept]);
        prop_assert_eq!(result.stdout_truncated, stdin.len() > kept);
    }
}
