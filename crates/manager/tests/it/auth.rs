//! Who may do what.

use plimsoll_api::{
    ClientError, ErrorCode,
    v1::{CreateProjectRequest, CreateTokenRequest},
};
use plimsoll_model::{Quota, Role};
use plimsoll_testkit::wait_for;
use std::os::unix::fs::MetadataExt as _;

use crate::cluster::{Cluster, LIMIT, name, refusal, vms};

#[tokio::test]
async fn secrets_are_private_files_and_the_socket_too() {
    let cluster = Cluster::start().await;
    let data = cluster.folder.path().join("data");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("admin.token")), 0o600);
    assert_eq!(mode(&data.join("ca.key")), 0o600);
    assert_eq!(mode(&cluster.socket), 0o600);
    // The store knows only a hash.
    for file in ["state.db", "state.db-wal"] {
        let content = std::fs::read(data.join(file)).unwrap_or_default();
        let secret = cluster.admin_token.as_bytes();
        assert!(!content.windows(secret.len()).any(|window| window == secret), "{file}");
    }
}

#[tokio::test]
async fn bad_tokens_are_all_refused_alike() {
    let cluster = Cluster::start().await;
    let almost = format!("{}x", cluster.admin_token);
    let mut messages = Vec::new();
    for token in [None, Some("x"), Some("plt_"), Some(almost.as_str()), Some("plt_a_b")] {
        let error = refusal(cluster.client(token).whoami().await);
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        assert!(error.hint.is_some() && error.request_id.is_some());
        messages.push(error.message);
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "nothing tells one from the other: {messages:?}");
    assert!(cluster.client(Some(&cluster.admin_token)).whoami().await.is_ok());
}

#[tokio::test]
async fn expired_and_revoked_tokens_are_refused() {
    let cluster = Cluster::start().await;
    let mut request = CreateTokenRequest {
        role: Role::Viewer,
        project: None,
        note: String::new(),
        lifetime_s: Some(1),
    };
    let short = cluster.admin.create_token(&request).await.unwrap();
    let client = cluster.client(Some(&short.secret));
    wait_for(LIMIT, "the token to expire", async || client.whoami().await.err().map(drop))
        .await
        .unwrap();
    assert_eq!(refusal(client.whoami().await).code, ErrorCode::Unauthenticated);

    request.lifetime_s = None;
    let long = cluster.admin.create_token(&request).await.unwrap();
    let client = cluster.client(Some(&long.secret));
    assert_eq!(client.whoami().await.unwrap().role, Role::Viewer);
    cluster.admin.revoke_token(long.token.id).await.unwrap();
    assert_eq!(refusal(client.whoami().await).code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn a_project_cannot_see_name_or_guess_anothers() {
    let (cluster, _agents) = Cluster::furnished(1).await;
    cluster.project("rival").await;
    cluster.admin.create_vms(&name("shop"), &vms("web", 1)).await.unwrap();
    let rival = cluster.role(Role::Admin, Some("rival")).await;
    let theirs = refusal(rival.vm(&name("shop"), &name("web-1")).await);
    let nobodys = refusal(rival.vm(&name("nobody"), &name("web-1")).await);
    assert_eq!((theirs.code, nobodys.code), (ErrorCode::NotFound, ErrorCode::NotFound));
    assert_eq!(theirs.message.replace("shop", "nobody"), nobodys.message, "word for word");
    assert_eq!(theirs.hint, nobodys.hint);
    let seen = rival.projects().await.unwrap();
    assert_eq!(seen.len(), 1);
    let events = rival.events(&plimsoll_api::v1::EventQuery::default()).await.unwrap();
    assert!(!format!("{events:?}").contains("web-1"));
    assert_eq!(refusal(rival.hosts().await).code, ErrorCode::Forbidden);
    assert!(rival.status().await.unwrap().vms.values().all(|count| *count == 0));
}

#[tokio::test]
async fn roles_bound_what_is_done() {
    let (cluster, _agents) = Cluster::furnished(1).await;
    let shop = name("shop");
    let viewer = cluster.role(Role::Viewer, Some("shop")).await;
    assert!(viewer.vms(&shop).await.unwrap().is_empty());
    let create = refusal(viewer.create_vms(&shop, &vms("web", 1)).await);
    assert_eq!(create.code, ErrorCode::Forbidden);
    let operator = cluster.role(Role::Operator, Some("shop")).await;
    operator.create_vms(&shop, &vms("web", 1)).await.unwrap();
    let request =
        CreateProjectRequest { name: name("mine"), quota: Quota::default(), credits: None };
    assert_eq!(refusal(operator.create_project(&request).await).code, ErrorCode::Forbidden);
    let request = CreateTokenRequest {
        role: Role::Admin,
        project: None,
        note: String::new(),
        lifetime_s: None,
    };
    assert_eq!(refusal(operator.create_token(&request).await).code, ErrorCode::Forbidden);
}

#[tokio::test]
async fn failures_are_slowed_down_and_good_tokens_are_not() {
    let cluster = Cluster::start().await;
    let bad = cluster.client(Some("plt_wrong"));
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(refusal(bad.whoami().await).code);
    }
    assert_eq!(codes[0], ErrorCode::Unauthenticated);
    assert!(codes.contains(&ErrorCode::TooManyRequests), "{codes:?}");
    assert!(cluster.client(Some(&cluster.admin_token)).whoami().await.is_ok());
}

#[tokio::test]
async fn a_server_of_another_cluster_is_not_trusted() {
    let (one, two) = (Cluster::start().await, Cluster::start().await);
    let client = plimsoll_api::Client::new(&plimsoll_api::client::ClientConfig {
        address: format!("https://{}", one.api),
        ca_pem: Some(two.ca_pem()),
        token: Some(one.admin_token.clone()),
    })
    .unwrap();
    let error = client.whoami().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { refused: false, .. }), "{error:?}");
}
