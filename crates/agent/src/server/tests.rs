mod peers;

use axum::http::StatusCode;
use futures_util::{FutureExt as _, StreamExt as _};
use plimsoll_api::{
    AgentClient, ClientError, ErrorCode,
    agent::{ExecRequest, LogQuery, LogSource},
};
use plimsoll_model::{HostId, VmId};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, sync::watch, task::JoinHandle};

use super::*;
use crate::{
    testing::{Authority, environment, host_spec},
    vm::Vms,
};

struct Served {
    authority: Authority,
    address: String,
    vm: VmId,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServerError>>,
    directory: tempfile::TempDir,
    vms: Vms,
}

impl Served {
    /// A port in front of one VM that has a directory and nothing else.
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vm = VmId(uuid::Uuid::from_u128(7));
        std::fs::create_dir_all(directory.path().join("vms").join(vm.to_string())).unwrap();
        let vms = Vms::open(environment(directory.path())).unwrap();
        let (_, spec) = watch::channel(host_spec());
        let state = ServerState {
            host: HostId(1),
            vms: vms.clone(),
            spec,
            doctor: Arc::new(|| async { json!({"usable": true}) }.boxed()),
        };
        let authority = Authority::new();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.address().to_string();
        let shutdown = CancellationToken::new();
        let (identity, pem, stop) =
            (authority.identity("host-1"), authority.pem.clone(), shutdown.clone());
        let task = tokio::spawn(async move { listener.serve(&identity, &pem, state, stop).await });
        Self { authority, address, vm, shutdown, task, directory, vms }
    }

    fn client(&self, name: &str) -> AgentClient {
        let identity = self.authority.identity(name);
        AgentClient::new(HostId(1), &self.address, &self.authority.pem, &identity).unwrap()
    }

    fn log(&self, text: &str) {
        let log = self.directory.path().join("vms").join(self.vm.to_string()).join("console.log");
        use std::io::Write as _;
        let mut file = std::fs::File::options().append(true).create(true).open(log).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

fn code(error: &ClientError) -> Option<ErrorCode> {
    error.code()
}

fn command(argv: &[&str]) -> ExecRequest {
    let argv = argv.iter().map(ToString::to_string).collect();
    ExecRequest { argv, stdin: String::new(), timeout_ms: 1000 }
}

#[tokio::test]
async fn only_the_manager_of_this_cluster_gets_answers() {
    let served = Served::start().await;
    let findings = served.client("manager").doctor().await.unwrap();
    assert_eq!(findings, json!({"usable": true}));
    let error = served.client("host-2").doctor().await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::Forbidden), "{error:?}");
    // Another cluster's manager gets no answer at all, nor does one without a certificate.
    let other = Authority::new().identity("manager");
    let pem = &served.authority.pem;
    let other = AgentClient::new(HostId(1), &served.address, pem, &other).unwrap();
    assert_eq!(code(&other.doctor().await.unwrap_err()), None);
    let mut plain = TcpStream::connect(&served.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(5), plain.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(!answer.starts_with(b"HTTP"));
}

#[tokio::test]
async fn what_cannot_be_done_is_said_as_an_error_body() {
    let served = Served::start().await;
    let manager = served.client("manager");
    let elsewhere = VmId(uuid::Uuid::from_u128(8));
    let error = manager.exec(elsewhere, &command(&["true"])).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::NotFound), "{error:?}");
    let error = manager.exec(served.vm, &command(&["true"])).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::WrongState), "{error:?}");
    let error = manager.console(served.vm).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::WrongState), "{error:?}");
    let invalid = [
        command(&[]),
        command(&[""]),
        command(&["a\0b"]),
        command(&["x"; 2000]),
        ExecRequest { timeout_ms: 0, ..command(&["true"]) },
        ExecRequest { timeout_ms: 600_001, ..command(&["true"]) },
        ExecRequest { stdin: "not base64!".into(), ..command(&["true"]) },
    ];
    for request in invalid {
        let error = manager.exec(served.vm, &request).await.unwrap_err();
        assert_eq!(code(&error), Some(ErrorCode::InvalidValue), "{request:?}: {error:?}");
    }
    for size in [300 << 10, 2 << 20] {
        let stdin =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, vec![0_u8; size]);
        let request = ExecRequest { stdin, ..command(&["cat"]) };
        let error = manager.exec(served.vm, &request).await.unwrap_err();
        assert_eq!(code(&error), Some(ErrorCode::TooLarge), "{error:?}");
    }
    let too_much = LogQuery { tail_bytes: Some(5 << 20), ..LogQuery::default() };
    let Err(error) = manager.logs(served.vm, &too_much).await else { panic!("no error") };
    assert_eq!(code(&error), Some(ErrorCode::InvalidValue), "{error:?}");
}

#[tokio::test]
async fn requests_that_no_client_of_ours_makes_get_error_bodies_too() {
    let served = Served::start().await;
    let identity = served.authority.identity("manager");
    let tls = tls::client_config(&served.authority.pem, Some(&identity)).unwrap();
    let target: SocketAddr = served.address.parse().unwrap();
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .resolve("host-1", target)
        .no_proxy()
        .build()
        .unwrap();
    let vm = served.vm;
    let table = [
        ("GET", "/".to_owned(), "", 404),
        ("GET", "/agent/v1/vms/nonsense/logs".to_owned(), "", 400),
        ("GET", format!("/agent/v1/vms/{vm}/logs?source=secret"), "", 400),
        ("GET", format!("/agent/v1/vms/{vm}/console"), "", 400),
        ("DELETE", format!("/agent/v1/vms/{vm}/exec"), "", 405),
        ("POST", format!("/agent/v1/vms/{vm}/exec"), "{", 400),
        ("POST", format!("/agent/v1/vms/{vm}/exec"), r#"{"argv": ["x"], "shell": true}"#, 400),
    ];
    for (method, path, body, status) in table {
        let url = format!("https://host-1:{}{path}", target.port());
        let request = http
            .request(method.parse().unwrap(), url)
            .header("content-type", "application/json")
            .body(body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::from_u16(status).unwrap(), "{method} {path}");
        let text = answer.bytes().await.unwrap();
        let problem: plimsoll_api::ErrorBody = serde_json::from_slice(&text).unwrap();
        assert!(!problem.message.is_empty());
    }
}

#[tokio::test]
async fn logs_are_read_from_their_end_and_followed_until_the_agent_ends() {
    let served = Served::start().await;
    served.log("a long boot\n");
    let manager = served.client("manager");
    let tail = LogQuery { source: LogSource::Console, tail_bytes: Some(5), follow: false };
    let mut log = manager.logs(served.vm, &tail).await.unwrap();
    assert_eq!(&log.next().await.unwrap().unwrap()[..], b"boot\n");
    assert!(log.next().await.is_none());
    let follow = LogQuery { follow: true, ..tail };
    let mut log = manager.logs(served.vm, &follow).await.unwrap();
    assert_eq!(&log.next().await.unwrap().unwrap()[..], b"boot\n");
    served.log("login: ");
    let limit = Duration::from_secs(5);
    assert_eq!(&timeout(limit, log.next()).await.unwrap().unwrap().unwrap()[..], b"login: ");
    served.shutdown.cancel();
    assert!(timeout(limit, log.next()).await.unwrap().is_none());
    timeout(limit, served.task).await.unwrap().unwrap().unwrap();
}
