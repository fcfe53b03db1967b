//! The agents' side: joining, certificates, removal.

use std::time::Duration;

use plimsoll_api::{
    ClusterClient, ErrorCode, JoinToken, tls::Identity, v1::CreateJoinTokenRequest,
};
use plimsoll_model::{HostId, HostPhase, VmPhase};
use plimsoll_testkit::{FakeAgent, FakeHost, Mode, wait_for};

use crate::cluster::{Cluster, LIMIT, name, refusal, resources, vms};

fn host(text: &str) -> FakeHost {
    FakeHost::new(name(text), resources(4, 16))
}

async fn join_token(cluster: &Cluster) -> String {
    let request = CreateJoinTokenRequest::default();
    cluster.admin.create_join_token(&request).await.unwrap().token
}

#[tokio::test]
async fn a_join_token_joins_one_host() {
    let cluster = Cluster::start().await;
    let token = join_token(&cluster).await;
    let first = FakeAgent::join(&token, host("first")).await.unwrap();
    assert_eq!(first.id(), HostId(1));
    let error = FakeAgent::join(&token, host("second")).await.unwrap_err();
    assert!(format!("{error:#}").contains("unknown, expired or revoked"), "{error:#}");
    wait_for(LIMIT, "the host to be up", async || {
        let hosts = cluster.admin.hosts().await.ok()?;
        (hosts.len() == 1 && hosts[0].state == HostPhase::Up).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_token_for_another_ca_is_noticed_before_anything_is_sent() {
    let cluster = Cluster::start().await;
    let mut token: JoinToken = join_token(&cluster).await.parse().unwrap();
    token.ca_sha256[0] ^= 1;
    let error = FakeAgent::join(&token.to_string(), host("lost")).await.unwrap_err();
    assert!(format!("{error:#}").contains("cannot reach"), "{error:#}");
    token.ca_sha256[0] ^= 1;
    FakeAgent::join(&token.to_string(), host("found")).await.unwrap();
}

#[tokio::test]
async fn a_name_that_is_taken_does_not_use_up_the_token() {
    let cluster = Cluster::start().await;
    let _first = FakeAgent::join(&join_token(&cluster).await, host("twin")).await.unwrap();
    let token = join_token(&cluster).await;
    let error = FakeAgent::join(&token, host("twin")).await.unwrap_err();
    assert!(format!("{error:#}").contains("already"), "{error:#}");
    FakeAgent::join(&token, host("other")).await.unwrap();
}

#[tokio::test]
async fn nobody_without_a_certificate_of_the_cluster_reaches_the_agents_port() {
    let cluster = Cluster::start().await;
    let agent = FakeAgent::join(&join_token(&cluster).await, host("real")).await.unwrap();
    let address = agent.client().address().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let other = plimsoll_manager::ca::CertificateAuthority::open(
        folder.path(),
        plimsoll_model::Timestamp::now(),
    )
    .unwrap();
    let identity: Identity = other.manager_identity(&[], plimsoll_model::Timestamp::now()).unwrap();
    let stranger = ClusterClient::new(&address, &cluster.ca_pem(), &identity).unwrap();
    let error = stranger.desired(0, Duration::ZERO).await.unwrap_err();
    assert!(error.api().is_none() && !error.is_refused(), "{error:?}");
}

#[tokio::test]
async fn a_removed_hosts_certificate_is_worth_nothing() {
    let (cluster, agents) = Cluster::furnished(1).await;
    let agent = &agents[0];
    wait_for(LIMIT, "a first report", async || {
        cluster.admin.hosts().await.ok()?[0].last_report_at.map(drop)
    })
    .await
    .unwrap();
    agent.client().desired(0, Duration::ZERO).await.unwrap();
    cluster.admin.remove_host(agent.name()).await.unwrap();
    let error = refusal(agent.client().desired(0, Duration::ZERO).await);
    assert!(matches!(error.code, ErrorCode::NotFound | ErrorCode::Unauthenticated), "{error:?}");
}

#[tokio::test]
async fn files_of_images_go_only_to_hosts_that_need_them() {
    let (cluster, agents) = Cluster::furnished(2).await;
    let tiny = cluster.admin.image(None, &name("tiny")).await.unwrap();
    let sha256 = &tiny.files[0].sha256;
    let limit = tiny.files[0].size;
    for agent in &agents {
        let mut file = Vec::new();
        let error = refusal(agent.client().image(sha256, &mut file, limit).await);
        assert_eq!(error.code, ErrorCode::NotFound);
    }
    cluster.admin.create_vms(&name("shop"), &vms("web", 1)).await.unwrap();
    cluster.wait_phase("web-1", VmPhase::Running).await;
    let mut got = 0;
    for agent in &agents {
        let mut file = Vec::new();
        let carried = agent.client().image(sha256, &mut file, limit).await;
        assert_eq!(carried.is_ok(), !agent.vms().is_empty());
        if carried.is_ok() {
            assert_eq!(file, vec![7; 4096]);
            got += 1;
        }
    }
    assert_eq!(got, 1);
}

#[tokio::test]
async fn a_silent_host_is_unreachable_then_dead_and_comes_back() {
    let (cluster, agents) = Cluster::furnished(1).await;
    let phase = async |wanted: HostPhase| {
        wait_for(LIMIT, &format!("the host to be {wanted}"), async || {
            let host = cluster.admin.host(agents[0].name()).await.ok()?;
            (host.state == wanted).then_some(())
        })
        .await
        .unwrap();
    };
    phase(HostPhase::Up).await;
    agents[0].set_mode(Mode::Silent);
    wait_for(LIMIT, "the silence to be noticed", async || {
        let host = cluster.admin.host(agents[0].name()).await.ok()?;
        (host.state != HostPhase::Up).then_some(())
    })
    .await
    .unwrap();
    agents[0].set_mode(Mode::Live);
    phase(HostPhase::Up).await;
}
