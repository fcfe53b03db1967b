use std::time::Duration;

use plimsoll_qmp::fake::{Action, FakeServer, Step};
use plimsoll_qmp::{ConnectOptions, EventKind, Qmp, QmpError, RunState};
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
