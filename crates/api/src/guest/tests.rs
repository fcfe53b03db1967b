//! The decoder against hostile lines, and messages there and back again.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn request(call: Call) -> HostMessage {
    HostMessage::Request(Request { id: 7, call })
}

fn exec(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        stdin: Vec::new(),
        timeout_ms: 1000,
        max_output_bytes: 1024,
    }
}

fn facts() -> Facts {
    Facts {
        kernel_release: "6.1.0-56-cloud-amd64".into(),
        hostname: "web-1".into(),
        os_name: "tiny".into(),
        boot_id: "7bd8f1b6-3a51-4dcb-9f2f-5a2f6e3d2b11".into(),
        agent_version: "0.1.0".into(),
        uptime_ms: 1900,
        interfaces: vec![InterfaceFacts {
            name: "eth0".into(),
            mac: Some("52:54:00:12:34:56".into()),
            addresses: vec![InterfaceAddress {
                address: IpAddr::from([10, 0, 0, 5]),
                prefix_length: 24,
            }],
        }],
        memory: MemoryFacts { total_bytes: 128 << 20, ..MemoryFacts::default() },
        cpus: CpuCounts { present: 4, online: 1 },
        cpu_time: CpuTime::default(),
        load: [Hundredths(12), Hundredths(5), Hundredths(1)],
        pressure: None,
        latency: None,
    }
}

fn done(answer: Answer) -> GuestMessage {
    GuestMessage::Reply(Reply { id: 7, outcome: Outcome::Done(answer) })
}

#[test]
fn the_wire_form_is_what_the_documents_say() {
    let line = encode_line(&request(Call::Exec(exec(&["uname", "-r"])))).unwrap();
    assert_eq!(
        String::from_utf8(line).unwrap(),
        concat!(
            r#"{"request":{"id":7,"call":{"kind":"exec","argv":["uname","-r"],"env":[],"#,
            r#""stdin":"","timeout_ms":1000,"max_output_bytes":1024}}}"#,
            "\n"
        )
    );
    let line = encode_line(&GuestMessage::Event(Event::Heartbeat { sequence: 1, uptime_ms: 2 }));
    assert_eq!(
        String::from_utf8(line.unwrap()).unwrap(),
        "{\"event\":{\"kind\":\"heartbeat\",\"sequence\":1,\"uptime_ms\":2}}\n"
    );
}

#[test]
fn newer_calls_events_and_fields_are_tolerated() {
    let line = br#"{"request":{"id":1,"call":{"kind":"identity","seed":"x"},"trace":"y"}}"#;
    let HostMessage::Request(request) = decode_line(line).unwrap();
    assert_eq!(request, Request { id: 1, call: Call::Unknown });
    let line = br#"{"event":{"kind":"application","rate":5}}"#;
    let message: GuestMessage = decode_line(line).unwrap();
    assert_eq!(message, GuestMessage::Event(Event::Unknown));
}

#[test]
fn every_bound_is_checked() {
    let bad_execs = [
        exec(&[]),
        exec(&[""]),
        exec(&["a\0b"]),
        exec(&vec!["x"; MAX_ARGUMENTS + 1]),
        exec(&[&"x".repeat(MAX_ARGUMENT_BYTES + 1)]),
        ExecRequest { timeout_ms: 0, ..exec(&["true"]) },
        ExecRequest { timeout_ms: MAX_EXEC_TIMEOUT_MS + 1, ..exec(&["true"]) },
        ExecRequest { max_output_bytes: MAX_OUTPUT_BYTES + 1, ..exec(&["true"]) },
        ExecRequest { stdin: vec![0; MAX_STDIN_BYTES + 1], ..exec(&["true"]) },
        ExecRequest {
            env: vec![EnvironmentVariable { name: "A=B".into(), value: String::new() }],
            ..exec(&["true"])
        },
    ];
    for bad in bad_execs {
        let line = serde_json::to_vec(&request(Call::Exec(bad.clone()))).unwrap();
        assert!(decode_line::<HostMessage>(&line).is_err(), "{bad:?}");
        assert!(encode_line(&request(Call::Exec(bad))).is_err());
    }
    assert!(encode_line(&request(Call::SetOnlineCpus { count: 0 })).is_err());
    assert!(encode_line(&request(Call::SetOnlineCpus { count: MAX_CPUS + 1 })).is_err());

    let deflate = |within_ms| {
        let request = DeflateRequest { memory_bytes: 1, cpu_millicores: 0, within_ms };
        encode_line(&self::request(Call::Deflate(request)))
    };
    assert!(deflate(0).is_err() && deflate(MAX_DEFLATE_MS + 1).is_err());
    assert!(deflate(MAX_DEFLATE_MS).is_ok());
    let hook = |name: &str, failure: &str| HookResult {
        name: name.to_owned(),
        freed_bytes: 1,
        freed_millicores: 0,
        failure: Some(failure.to_owned()),
    };
    let deflated = |hooks| {
        let result = DeflateResult { hooks, memory: MemoryFacts::default() };
        encode_line(&done(Answer::Deflated(result)))
    };
    assert!(deflated(vec![hook("10-cache", "ended with status 1"); MAX_HOOKS]).is_ok());
    for bad in [
        vec![hook("10-cache", ""); MAX_HOOKS + 1],
        vec![hook("a\u{1b}[2J", "")],
        vec![hook("a", "\n")],
        vec![hook("a", &"x".repeat(MAX_MESSAGE_BYTES + 1))],
    ] {
        assert!(deflated(bad).is_err());
    }

    let interface = facts().interfaces.remove(0);
    let many_addresses = vec![interface.addresses[0]; MAX_ADDRESSES + 1];
    let bad_prefix = vec![InterfaceAddress { prefix_length: 33, ..interface.addresses[0] }];
    let bad_facts = [
        Facts { hostname: "a\u{1b}[2J".into(), ..facts() },
        Facts { os_name: "x".repeat(MAX_TEXT_BYTES + 1), ..facts() },
        Facts { interfaces: vec![interface.clone(); MAX_INTERFACES + 1], ..facts() },
        Facts {
            interfaces: vec![InterfaceFacts { mac: Some("oops".into()), ..interface.clone() }],
            ..facts()
        },
        Facts {
            interfaces: vec![InterfaceFacts { addresses: many_addresses, ..interface.clone() }],
            ..facts()
        },
        Facts {
            interfaces: vec![InterfaceFacts { addresses: bad_prefix, ..interface }],
            ..facts()
        },
        Facts { cpus: CpuCounts { present: MAX_CPUS + 1, online: 1 }, ..facts() },
    ];
    for bad in bad_facts {
        let line = serde_json::to_vec(&done(Answer::Facts(Box::new(bad.clone())))).unwrap();
        assert!(decode_line::<GuestMessage>(&line).is_err(), "{bad:?}");
    }
}

#[test]
fn the_largest_legal_messages_fit_a_line() {
    // Control characters are the worst case of JSON escaping: six bytes each.
    let argument = "\u{1}".repeat(MAX_ARGUMENT_BYTES - 1);
    let largest = ExecRequest {
        stdin: vec![0xff; MAX_STDIN_BYTES],
        max_output_bytes: MAX_OUTPUT_BYTES,
        ..exec(&["x", &argument])
    };
    encode_line(&request(Call::Exec(largest))).unwrap();
    let output = vec![0xff; usize::try_from(MAX_OUTPUT_BYTES).unwrap()];
    let largest = ExecResult {
        exit_code: Some(0),
        signal: None,
        timed_out: false,
        stdout: output.clone(),
        stderr: output,
        stdout_truncated: true,
        stderr_truncated: true,
        duration_ms: u64::MAX,
    };
    encode_line(&done(Answer::Exec(largest))).unwrap();
}

#[test]
fn a_line_too_long_is_reported_once_and_the_next_one_is_read() {
    let mut buffer = LineBuffer::new();
    let mut errors = 0;
    for _ in 0..40 {
        buffer.push(&[b'x'; 64 << 10]);
        while let Some(line) = buffer.next_line() {
            assert!(line.is_err());
            errors += 1;
        }
        assert!(buffer.bytes.len() <= MAX_LINE_BYTES + (64 << 10));
    }
    buffer.push(b"tail\n\n{}\n");
    assert_eq!(buffer.next_line().unwrap().unwrap(), b"{}");
    assert!(buffer.next_line().is_none());
    assert_eq!(errors, 1);
}

#[test]
fn deep_nesting_is_an_error() {
    let line = b"[".repeat(100_000);
    assert!(decode_line::<HostMessage>(&line).is_err());
    let line = format!("{{\"request\":{}", "{\"request\":".repeat(50_000));
    assert!(decode_line::<GuestMessage>(line.as_bytes()).is_err());
}

fn any_exec() -> impl Strategy<Value = Call> {
    (vec("[^\0]{1,20}", 1..5), vec(any::<u8>(), 0..100), 1..MAX_EXEC_TIMEOUT_MS).prop_map(
        |(argv, stdin, timeout_ms)| {
            let env = vec![EnvironmentVariable { name: "A".into(), value: "b c".into() }];
            Call::Exec(ExecRequest { argv, env, stdin, timeout_ms, max_output_bytes: 5 })
        },
    )
}

fn any_call() -> impl Strategy<Value = Call> {
    prop_oneof![
        any::<u32>().prop_map(|protocol| Call::Hello { protocol }),
        Just(Call::Facts),
        any_exec(),
        Just(Call::Shutdown { mode: ShutdownMode::Reboot }),
        (1..=MAX_CPUS).prop_map(|count| Call::SetOnlineCpus { count }),
        (any::<u64>(), any::<u64>(), 1..=MAX_DEFLATE_MS).prop_map(
            |(memory_bytes, cpu_millicores, within_ms)| {
                Call::Deflate(DeflateRequest { memory_bytes, cpu_millicores, within_ms })
            }
        ),
        Just(Call::Inflate),
        any::<u64>().prop_map(|seconds| Call::Notice { notice: Notice::EndingSoon { seconds } }),
    ]
}

proptest! {
    #[test]
    fn requests_survive_the_wire(id in any::<u64>(), call in any_call()) {
        let message = HostMessage::Request(Request { id, call });
        let line = encode_line(&message).unwrap();
        prop_assert_eq!(decode_line::<HostMessage>(&line).unwrap(), message);
    }

    #[test]
    fn facts_survive_the_wire(
        hostname in "[^\\p{Cc}]{0,60}",
        uptime_ms in any::<u64>(),
        total_bytes in any::<u64>(),
        load in any::<u32>(),
        address in any::<IpAddr>(),
    ) {
        let mut sent = Facts { hostname, uptime_ms, ..facts() };
        sent.memory.total_bytes = total_bytes;
        sent.load[0] = Hundredths(load);
        sent.interfaces[0].addresses[0].address = address;
        sent.pressure = Some(PressureFacts::default());
        let message = done(Answer::Facts(Box::new(sent)));
        let line = encode_line(&message).unwrap();
        prop_assert_eq!(decode_line::<GuestMessage>(&line).unwrap(), message);
    }

    #[test]
    fn noise_never_panics(line in vec(any::<u8>(), 0..300)) {
        let _ = decode_line::<HostMessage>(&line);
        let _ = decode_line::<GuestMessage>(&line);
    }

    /// Real messages with some bytes changed reach deeper into the decoder than noise does.
    #[test]
    fn damaged_messages_never_panic(
        call in any_call(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut host = encode_line(&request(call)).unwrap();
        let mut guest = encode_line(&done(Answer::Facts(Box::new(facts())))).unwrap();
        for (index, byte) in damage {
            let at = index.index(host.len());
            host[at] = byte;
            let at = index.index(guest.len());
            guest[at] = byte;
        }
        let _ = decode_line::<HostMessage>(&host);
        let _ = decode_line::<GuestMessage>(&guest);
    }

    /// However a stream is cut into reads, the same lines come out.
    #[test]
    fn lines_do_not_depend_on_reads(
        lines in vec("[a-z ]{0,12}", 0..8),
        cuts in vec(1_usize..9, 1..40),
    ) {
        let stream = lines.iter().flat_map(|line| format!("{line}\n").into_bytes());
        let stream: Vec<u8> = stream.collect();
        let expected = lines.iter().filter(|line| !line.trim().is_empty());
        let expected: Vec<Vec<u8>> = expected.map(|line| line.clone().into_bytes()).collect();
        let mut buffer = LineBuffer::new();
        let mut seen = Vec::new();
        let mut rest = stream.as_slice();
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(cut.min(rest.len()));
            buffer.push(now);
            rest = later;
            while let Some(line) = buffer.next_line() {
                seen.push(line.unwrap());
            }
        }
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn cleaned_text_is_always_accepted(text in ".*", limit in 0_usize..100) {
        printable("text", &to_printable(&text, limit), limit).unwrap();
    }
}
