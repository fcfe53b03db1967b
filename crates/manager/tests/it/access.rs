//! Into VMs: exec, logs and console, from the user through the manager to the host's agent.

use bytes::Bytes;
use futures_util::StreamExt as _;
use plimsoll_api::{
    ErrorCode,
    agent::{ExecRequest, LogQuery},
    v1::EventQuery,
};
use plimsoll_model::{EventKind, Role, VmPhase};

use crate::cluster::{Cluster, name, refusal, vms};

fn exec(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(|text| (*text).to_owned()).collect(),
        stdin: String::new(),
        timeout_ms: 5_000,
    }
}

#[tokio::test]
async fn users_reach_into_their_vms_and_it_is_on_record() {
    let (cluster, _agents) = Cluster::furnished(1).await;
    cluster.project("rival").await;
    let (shop, web) = (name("shop"), name("web-1"));
    cluster.admin.create_vms(&shop, &vms("web", 1)).await.unwrap();
    cluster.wait_phase("web-1", VmPhase::Running).await;
    let operator = cluster.role(Role::Operator, Some("shop")).await;

    let done = operator.exec(&shop, &web, &exec(&["uname", "-r"])).await.unwrap();
    assert_eq!((done.exit_code, done.stdout.as_str()), (Some(0), "dW5hbWUgLXI="));

    let mut logs = operator.logs(&shop, &web, &LogQuery::default()).await.unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = logs.next().await {
        text.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(text, b"a fake guest has booted\n");

    // By TLS, and by the socket.
    for client in [&operator, &cluster.admin] {
        let mut console = client.console(&shop, &web).await.unwrap();
        console.send(Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(console.receive().await.unwrap(), Some(Bytes::from_static(b"hello")));
    }

    let query = EventQuery { limit: Some(1000), ..EventQuery::default() };
    let events = cluster.admin.events(&query).await.unwrap();
    let accesses = events.iter().filter(|event| event.kind == EventKind::VmAccessed).count();
    assert_eq!(accesses, 3, "one exec and two consoles; logs are only read");

    let viewer = cluster.role(Role::Viewer, Some("shop")).await;
    assert_eq!(refusal(viewer.exec(&shop, &web, &exec(&["id"])).await).code, ErrorCode::Forbidden);
    assert_eq!(refusal(viewer.console(&shop, &web).await).code, ErrorCode::Forbidden);
    let rival = cluster.role(Role::Admin, Some("rival")).await;
    assert_eq!(refusal(rival.exec(&shop, &web, &exec(&["id"])).await).code, ErrorCode::NotFound);
    assert_eq!(refusal(rival.console(&shop, &web).await).code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_said_to_be_so() {
    let (cluster, agents) = Cluster::furnished(1).await;
    let (shop, web) = (name("shop"), name("web-1"));
    cluster.admin.create_vms(&shop, &vms("web", 1)).await.unwrap();
    cluster.wait_phase("web-1", VmPhase::Running).await;
    drop(agents);
    let error = refusal(cluster.admin.exec(&shop, &web, &exec(&["id"])).await);
    assert_eq!(error.code, ErrorCode::Unreachable);
    assert!(error.hint.is_some());
}
