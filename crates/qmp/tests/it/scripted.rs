use std::time::Duration;

use plimsoll_qmp::fake::{Action, FakeServer, Step};
use plimsoll_qmp::{ConnectOptions, EventKind, MigrationStatus, Qmp, QmpError, RunState};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(5);

struct Fixture {
    _directory: tempfile::TempDir,
    server: FakeServer,
    path: std::path::PathBuf,
}

fn fixture(script: Vec<Step>) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let server = FakeServer::start(&path, script).unwrap();
    Fixture { _directory: directory, server, path }
}

#[tokio::test]
async fn typed_commands_and_refusals() {
    let f = fixture(vec![
        Step::returns("query-status", json!({"running": true, "status": "running", "new": 1})),
        Step::returns("query-status", json!({"running": false, "status": "word-of-12.0"})),
        Step::new(
            "device_add",
            vec![Action::Refuse { class: "GenericError", description: "Bus not found" }],
        )
        .with_arguments(json!({"driver": "x", "id": "y"})),
        Step::returns("query-cpus-fast", json!("nonsense")),
    ]);
    let (qmp, _) = Qmp::connect(&f.path, ConnectOptions::default()).await.unwrap();
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Running);
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Unknown);
    let refused = qmp.device_add(json!({"driver": "x", "id": "y"})).await.unwrap_err();
    assert_eq!(refused.class(), Some("GenericError"));
    assert_eq!(refused.to_string(), "QEMU refused `device_add`: Bus not found (GenericError)");
    assert!(matches!(qmp.query_cpus_fast().await, Err(QmpError::ReplyShape { .. })));
    drop(qmp);
    f.server.finish(LIMIT).await.unwrap();
}

#[tokio::test]
async fn answers_out_of_order_reach_their_callers() {
    let f = fixture(vec![
        Step::new("slow", vec![Action::Hold]),
        Step::new("fast", vec![Action::Return(json!(2)), Action::AnswerHeld(json!(1))]),
    ]);
    let (qmp, _) = Qmp::connect(&f.path, ConnectOptions::default()).await.unwrap();
    let (slow, fast) =
        tokio::join!(qmp.execute("slow", Value::Null), qmp.execute("fast", Value::Null));
    assert_eq!((slow.unwrap(), fast.unwrap()), (json!(1), json!(2)));
    drop(qmp);
    f.server.finish(LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_late_answer_is_dropped_and_the_connection_lives() {
    let f = fixture(vec![
        Step::new("never", vec![Action::Hold]),
        Step::new("next", vec![Action::AnswerHeld(json!("late")), Action::Return(json!("mine"))]),
    ]);
    let (qmp, _) = Qmp::connect(&f.path, ConnectOptions::default()).await.unwrap();
    let late = qmp.execute_within("never", Value::Null, Duration::from_millis(50)).await;
    assert!(matches!(late, Err(QmpError::Timeout { .. })));
    assert_eq!(qmp.execute("next", Value::Null).await.unwrap(), json!("mine"));
    drop(qmp);
    f.server.finish(LIMIT).await.unwrap();
}

#[tokio::test]
async fn events_known_and_unknown_and_the_end() {
    let f = fixture(vec![Step::new(
        "quit",
        vec![
            Action::Event { name: "SOMETHING_NEW", data: json!({"a": [1]}) },
            Action::Event {
                name: "SHUTDOWN",
                data: json!({"guest": false, "reason": "host-qmp-quit"}),
            },
            Action::Close,
        ],
    )]);
    let (qmp, mut events) = Qmp::connect(&f.path, ConnectOptions::default()).await.unwrap();
    qmp.quit().await.unwrap();
    tokio::time::timeout(LIMIT, qmp.closed()).await.unwrap();
    let new = events.recv().await.unwrap();
    assert_eq!((new.name.as_str(), new.kind()), ("SOMETHING_NEW", EventKind::Other));
    let EventKind::Shutdown { guest: false, reason } = events.recv().await.unwrap().kind() else {
        panic!("a shutdown");
    };
    assert_eq!(reason, "host-qmp-quit");
    assert!(matches!(qmp.query_status().await, Err(QmpError::Closed { .. })));
    f.server.finish(LIMIT).await.unwrap();
}

#[tokio::test]
async fn hanging_up_fails_what_waits() {
    let f = fixture(vec![Step::new("a", vec![Action::Hold]), Step::new("b", vec![Action::Close])]);
    let (qmp, _) = Qmp::connect(&f.path, ConnectOptions::default()).await.unwrap();
    let (a, b) = tokio::join!(qmp.execute("a", Value::Null), qmp.execute("b", Value::Null));
    assert!(a.unwrap_err().is_disconnected() && b.unwrap_err().is_disconnected());
    f.server.finish(LIMIT).await.unwrap();
}

#[tokio::test]
async fn garbage_ends_the_connection_not_the_process() {
    let f = fixture(vec![Step::new("a", vec![Action::Raw(b"\x00\xffgarbage\n".to_vec())])]);
    let (qmp, _) = Qmp::connect(&f.path, ConnectOptions::default()).await.unwrap();
    assert!(qmp.execute("a", Value::Null).await.unwrap_err().is_disconnected());
    tokio::time::timeout(LIMIT, qmp.closed()).await.unwrap();
}

#[tokio::test]
async fn bad_greetings_are_typed_errors() {
    type Expected = fn(&QmpError) -> bool;
    let cases: [(&[u8], Expected); 4] = [
        (b"", |e| matches!(e, QmpError::HandshakeEnded)),
        (b"{\"return\": {}}\n", |e| matches!(e, QmpError::NoGreeting)),
        (b"SSH-2.0-OpenSSH\n", |e| matches!(e, QmpError::Handshake(_))),
        (b"{\"QMP\": 3}\n", |e| matches!(e, QmpError::Handshake(_))),
    ];
    for (bytes, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let _server = FakeServer::start_raw(&path, bytes.to_vec()).unwrap();
        let error = Qmp::connect(&path, ConnectOptions::default()).await.unwrap_err();
        assert!(expected(&error), "{error:?}");
    }
    let nowhere = std::path::Path::new("/nonexistent/qmp");
    let error = Qmp::connect(nowhere, ConnectOptions::default()).await.unwrap_err();
    assert!(matches!(error, QmpError::Connect { .. }));
}

#[tokio::test]
async fn a_silent_listener_does_not_hold_us() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    let options = ConnectOptions {
        handshake_timeout: Duration::from_millis(50),
        ..ConnectOptions::default()
    };
    let error = Qmp::connect(&path, options).await.unwrap_err();
    assert!(matches!(error, QmpError::HandshakeTimeout { .. }));
}

#[tokio::test]
async fn a_descriptor_goes_along_with_its_own_line() {
    use std::io::Read;

    const COUNT: usize = 8;
    let steps = (0..COUNT).flat_map(|_| {
        let answer = vec![Action::WriteToDescriptor(b"here".to_vec()), Action::Return(json!({}))];
        [Step::new("getfd", answer), Step::returns("query-name", json!({}))]
    });
    let f = fixture(steps.collect());
    let (qmp, _) = Qmp::connect(&f.path, ConnectOptions::default()).await.unwrap();
    // All at once: lines without a descriptor lie in front of those with one in the same buffer.
    let exchanges = (0..COUNT).map(|number| {
        let qmp = qmp.clone();
        async move {
            let (mut mine, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            let name = format!("d{number}");
            let (sent, named) =
                tokio::join!(qmp.send_descriptor(&name, theirs.into()), qmp.query_name());
            sent.unwrap();
            named.unwrap();
            let mut bytes = Vec::new();
            // It ends: both our copy and the fake's are closed.
            mine.read_to_end(&mut bytes).unwrap();
            bytes
        }
    });
    for bytes in futures_util::future::join_all(exchanges).await {
        assert_eq!(bytes, b"here");
    }
    drop(qmp);
    f.server.finish(LIMIT).await.unwrap();
}

#[tokio::test]
async fn what_moves_a_machine_is_asked_for_in_these_words() {
    let f = fixture(vec![
        Step::returns("migrate-set-capabilities", json!({})).with_arguments(json!({
            "capabilities": [
                {"capability": "events", "state": true},
                {"capability": "postcopy-ram", "state": false}
            ]
        })),
        Step::returns("migrate", json!({})).with_arguments(json!({"uri": "fd:memory"})),
        Step::returns("query-migrate", json!({})),
        Step::returns(
            "query-migrate",
            json!({
                "status": "active", "total-time": 12,
                "ram": {"total": 100, "remaining": 40, "transferred": 61, "mbps": 8.5,
                    "dirty-pages-rate": 5, "page-size": 4096, "dirty-sync-count": 2,
                    "new-in-12": 1}
            }),
        ),
        Step::returns("query-migrate", json!({"status": "new-in-12", "error-desc": "no"})),
        Step::returns("migrate-continue", json!({}))
            .with_arguments(json!({"state": "pre-switchover"})),
        Step::returns("nbd-server-start", json!({})).with_arguments(json!({
            "addr": {"type": "fd", "data": {"str": "disk"}}, "max-connections": 1
        })),
        Step::returns(
            "query-block-jobs",
            json!([{"device": "move", "type": "mirror", "len": 7,
            "offset": 3, "busy": true, "ready": false, "status": "running", "speed": 0}]),
        ),
        Step::returns("qom-get", json!("pc-q35-10.0-machine")),
    ]);
    let (qmp, _) = Qmp::connect(&f.path, ConnectOptions::default()).await.unwrap();
    qmp.migrate_set_capabilities(&[("events", true), ("postcopy-ram", false)]).await.unwrap();
    qmp.migrate("fd:memory").await.unwrap();
    let info = qmp.query_migrate().await.unwrap();
    assert_eq!((info.status, info.ram.total, info.error), (MigrationStatus::None, 0, None));
    let info = qmp.query_migrate().await.unwrap();
    assert_eq!(info.status, MigrationStatus::Active);
    assert_eq!((info.ram.remaining, info.ram.dirty_sync_count), (40, 2));
    let info = qmp.query_migrate().await.unwrap();
    assert_eq!(info.status, MigrationStatus::Other("new-in-12".to_owned()));
    assert_eq!(info.error.as_deref(), Some("no"));
    qmp.migrate_continue().await.unwrap();
    qmp.nbd_server_start("disk").await.unwrap();
    let jobs = qmp.query_block_jobs().await.unwrap();
    assert_eq!((jobs[0].device.as_str(), jobs[0].len, jobs[0].offset), ("move", 7, 3));
    assert_eq!(qmp.query_machine_type().await.unwrap(), "pc-q35-10.0");
    drop(qmp);
    f.server.finish(LIMIT).await.unwrap();
}
