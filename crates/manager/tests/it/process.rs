//! Starting and ending: one manager to a folder, what a crash has left, ends in good order.

use std::time::{Duration, Instant};

use plimsoll_api::v1::EventQuery;
use plimsoll_manager::{Server, ServerError};

use crate::cluster::{Cluster, config};

#[tokio::test]
async fn a_folder_has_one_manager() {
    let cluster = Cluster::start().await;
    let error = Server::bind(config(cluster.folder.path())).await.unwrap_err();
    assert!(matches!(error, ServerError::InUse { .. }), "{error:?}");
    assert!(cluster.admin.whoami().await.is_ok(), "the first is not disturbed");
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(folder.path());
    config.api_listen = Some(taken.local_addr().unwrap());
    let error = Server::bind(config).await.unwrap_err();
    assert!(matches!(error, ServerError::Bind { .. }), "{error:?}");
    assert!(!folder.path().join("data/ca.key").exists());
}

#[tokio::test]
async fn a_socket_that_a_crash_has_left_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let path = folder.path().join("data/api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let cluster = Cluster::start_in(folder).await;
    assert!(cluster.admin.whoami().await.is_ok());
}

#[tokio::test]
async fn who_waits_does_not_hold_up_the_end() {
    let cluster = Cluster::start().await;
    let last = cluster.admin.events(&EventQuery::default()).await.unwrap();
    let query = EventQuery {
        after: last.last().map(|event| event.sequence),
        wait_ms: Some(30_000),
        ..EventQuery::default()
    };
    let client = cluster.client(Some(&cluster.admin_token));
    let waiting = tokio::spawn(async move { client.events(&query).await });
    let before = Instant::now();
    let cluster = cluster.restart().await;
    assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
    assert!(cluster.admin.whoami().await.is_ok());
    // It ended one way or the other.
    let _ = waiting.await.unwrap();
}
