//! The whole agent over a socket pair, with this machine as the guest.

use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use plimsoll_api::guest::{EnvironmentVariable, ExecRequest, ExecResult, MAX_LINE_BYTES};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// The host's side of a served socket.
struct Host {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    agent: JoinHandle<Result<(), ServeError>>,
}

impl Host {
    fn new(heartbeat: Duration, system: System) -> Self {
        let (host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        host.set_read_timeout(Some(LIMIT)).unwrap();
        let settings = Settings { heartbeat, on_hangup: OnHangup::Return, system };
        let port = File::from(OwnedFd::from(guest));
        let agent = std::thread::spawn(move || serve(port, settings));
        let reader = BufReader::new(host.try_clone().unwrap());
        Self { writer: host, reader, agent }
    }

    /// An agent that never beats in a test's time, past its greeting.
    fn quiet() -> Self {
        let mut host = Self::new(Duration::from_secs(3600), System::default());
        assert!(matches!(host.receive(), GuestMessage::Event(Event::Ready(_))));
        host
    }

    fn send(&mut self, id: u64, call: Call) {
        let message = HostMessage::Request(Request { id, call });
        self.writer.write_all(&encode_line(&message).unwrap()).unwrap();
    }

    fn receive(&mut self) -> GuestMessage {
        loop {
            let mut line = Vec::new();
            self.reader.read_until(b'\n', &mut line).unwrap();
            assert!(!line.is_empty(), "the agent hung up");
            if line != b"\n" {
                return decode_line(&line).unwrap();
            }
        }
    }

    fn reply(&mut self) -> (u64, Outcome) {
        match self.receive() {
            GuestMessage::Reply(reply) => (reply.id, reply.outcome),
            GuestMessage::Event(event) => panic!("{event:?}"),
        }
    }

    fn exec(&mut self, id: u64, script: &str) {
        let argv = ["sh", "-c", script].map(ToOwned::to_owned).to_vec();
        let request = ExecRequest {
            argv,
            env: vec![EnvironmentVariable { name: "LC_ALL".into(), value: "C".into() }],
            stdin: Vec::new(),
            timeout_ms: 15_000,
            max_output_bytes: 256 << 10,
        };
        self.send(id, Call::Exec(request));
    }
}

fn exec_result(outcome: Outcome) -> ExecResult {
    match outcome {
        Outcome::Done(Answer::Exec(result)) => result,
        other => panic!("{other:?}"),
    }
}

fn code(outcome: &Outcome) -> FailureCode {
    match outcome {
        Outcome::Failed(failure) => failure.code,
        Outcome::Done(_) => panic!("{outcome:?}"),
    }
}

#[test]
fn hello_and_facts_are_answered() {
    let mut host = Host::quiet();
    host.send(1, Call::Hello { protocol: PROTOCOL });
    let (id, Outcome::Done(Answer::Hello(greeting))) = host.reply() else { panic!("no greeting") };
    assert_eq!((id, greeting.protocol, greeting.boot_id.len()), (1, PROTOCOL, 36));
    host.send(2, Call::Facts);
    let (id, Outcome::Done(Answer::Facts(facts))) = host.reply() else { panic!("no facts") };
    assert_eq!((id, facts.boot_id), (2, greeting.boot_id));
}

#[test]
fn a_long_exec_holds_back_neither_facts_nor_heartbeats() {
    let mut host = Host::new(Duration::from_millis(50), System::default());
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("go");
    host.exec(1, &format!("mkfifo {0} && echo begun >&2 && cat {0}", fifo.display()));
    host.send(2, Call::Facts);
    let (mut beats, mut facts) = (0, false);
    while beats < 3 || !facts {
        match host.receive() {
            GuestMessage::Event(Event::Heartbeat { sequence, uptime_ms }) => {
                assert_eq!((sequence, uptime_ms > 0), (beats, true));
                beats += 1;
            }
            GuestMessage::Reply(reply) => {
                assert_eq!(reply.id, 2, "the exec ended first");
                facts = true;
            }
            GuestMessage::Event(_) => {}
        }
    }
    let limit = Instant::now() + LIMIT;
    while !fifo.exists() {
        assert!(Instant::now() < limit);
        std::thread::yield_now();
    }
    std::fs::write(&fifo, "let go").unwrap();
    loop {
        if let GuestMessage::Reply(reply) = host.receive() {
            assert_eq!(reply.id, 1);
            assert_eq!(exec_result(reply.outcome).stdout, b"let go");
            break;
        }
    }
}

#[test]
fn failures_are_typed() {
    let mut host = Host::quiet();
    host.send(1, Call::Unknown);
    assert_eq!(code(&host.reply().1), FailureCode::Unsupported);
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    std::fs::write(&plain, "no program").unwrap();
    for (program, expected) in [
        ("/nonexistent", FailureCode::NotFound),
        (plain.to_str().unwrap(), FailureCode::NotExecutable),
    ] {
        let request = ExecRequest {
            argv: vec![program.into()],
            env: Vec::new(),
            stdin: Vec::new(),
            timeout_ms: 1000,
            max_output_bytes: 0,
        };
        host.send(2, Call::Exec(request));
        assert_eq!(code(&host.reply().1), expected, "{program}");
    }
    let bad = br#"{"request":{"id":3,"call":{"kind":"set_online_cpus","count":0}}}"#;
    host.writer.write_all(&[bad.as_slice(), b"\n"].concat()).unwrap();
    let (id, outcome) = host.reply();
    assert_eq!((id, code(&outcome)), (3, FailureCode::InvalidRequest));
}

#[test]
fn noise_and_overlong_lines_leave_the_session_usable() {
    let mut host = Host::quiet();
    host.writer.write_all(b"\0\xff{]\n{\"request\":{\"id\":\"x\"}}\n\n").unwrap();
    let long = vec![b'x'; MAX_LINE_BYTES + 100_000];
    host.writer.write_all(&long).unwrap();
    host.writer.write_all(b"\n").unwrap();
    host.send(9, Call::Hello { protocol: 99 });
    assert_eq!(host.reply().0, 9);
}

#[test]
fn more_requests_than_may_run_are_refused_as_busy() {
    let mut host = Host::quiet();
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let count = u64::try_from(MAX_RUNNING).unwrap();
    for id in 0..=count {
        host.exec(id, &format!("until [ -e {} ]; do sleep 0.05; done", go.display()));
    }
    let (id, outcome) = host.reply();
    assert_eq!((id, code(&outcome)), (count, FailureCode::Busy));
    std::fs::write(&go, "").unwrap();
    for _ in 0..count {
        assert_eq!(exec_result(host.reply().1).exit_code, Some(0));
    }
    host.exec(99, "true");
    assert_eq!(host.reply().0, 99);
}

#[test]
fn a_reply_to_an_older_session_is_dropped() {
    let mut host = Host::quiet();
    let directory = tempfile::tempdir().unwrap();
    let ended = directory.path().join("ended");
    let go = directory.path().join("go");
    host.exec(
        1,
        &format!("until [ -e {} ]; do sleep 0.02; done; touch {}", go.display(), ended.display()),
    );
    host.send(1, Call::Hello { protocol: PROTOCOL });
    assert!(matches!(host.reply(), (1, Outcome::Done(Answer::Hello(_)))));
    std::fs::write(&go, "").unwrap();
    let limit = Instant::now() + LIMIT;
    while !ended.exists() {
        assert!(Instant::now() < limit);
        std::thread::yield_now();
    }
    // The old reply is on its way about now; a command's round trip gives it time to show up.
    host.exec(2, "sleep 0.3");
    assert_eq!(host.reply().0, 2);
}

#[test]
fn the_largest_output_fits() {
    let mut host = Host::quiet();
    host.exec(1, "head -c 400000 /dev/zero; head -c 400000 /dev/zero >&2");
    let result = exec_result(host.reply().1);
    assert_eq!((result.stdout.len(), result.stderr.len()), (256 << 10, 256 << 10));
    assert!(result.stdout_truncated && result.stderr_truncated);
}

#[test]
fn serving_ends_when_the_host_is_gone() {
    let host = Host::quiet();
    drop((host.writer, host.reader));
    host.agent.join().unwrap().unwrap();
}
