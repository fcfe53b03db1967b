//! What another host gets here, and what not.

use plimsoll_api::{
    client::PeerClient,
    cluster::{DesiredImage, DesiredPresent, DesiredVm, DiskOrigin, Wanted},
    migration::{Arrival, ArrivalVerdict, DesiredMigration, MigrationStage, PrepareArrival},
};
use plimsoll_model::{
    Bytes, BytesPerSecond, Elasticity, Power, ProjectId, Resources, RestartPolicy,
};
use uuid::Uuid;

use super::*;
use crate::{testing::wait_for, vm::BootTime};

const MOVE: Uuid = Uuid::from_u128(1);

impl Served {
    fn peer(&self, name: &str) -> PeerClient {
        let identity = self.authority.identity(name);
        PeerClient::new(HostId(1), &self.address, &self.authority.pem, &identity).unwrap()
    }

    /// The manager announces that the VM comes from `host-2`.
    fn announce(&self, incarnation: u64) {
        let arrival = Arrival { id: MOVE, from: HostId(2) };
        let present = DesiredPresent {
            generation: 1,
            power: Power::Running,
            shutdown_grace_ms: 1000,
            name: "web".parse().unwrap(),
            project: ProjectId(Uuid::from_u128(2)),
            project_name: "shop".parse().unwrap(),
            resources: Resources::default(),
            image: DesiredImage {
                files: Vec::new(),
                disk_format: "raw".to_owned(),
                append: None,
                guest_agent: false,
            },
            disk: DiskOrigin::Image,
            interfaces: Vec::new(),
            user_data: None,
            ssh_keys: Vec::new(),
            restart: RestartPolicy::Always,
            fenced_by_lease: false,
            reboots: 0,
            deflation: None,
            elasticity: Elasticity::Guaranteed,
            end_at: None,
            warn_at: None,
            migration: Some(DesiredMigration::Arrival(arrival)),
        };
        let wanted = Wanted::Present(Box::new(present));
        self.vms.want(&[DesiredVm { vm: self.vm, incarnation, wanted }], BootTime::now());
    }
}

fn machine() -> PrepareArrival {
    PrepareArrival {
        machine_type: "pc-q35-10.0".to_owned(),
        qemu_version: "10.0.2".to_owned(),
        accelerator: "tcg".to_owned(),
        cpu_features: Vec::new(),
        vcpus: 1,
        max_vcpus: 1,
        memory: Bytes(64 << 20),
        max_memory: Bytes(64 << 20),
        interfaces: 0,
        disk_size: Bytes(1 << 30),
        copy_disk: false,
        post_copy: false,
        bandwidth: BytesPerSecond(0),
    }
}

#[tokio::test]
async fn a_host_gets_what_concerns_its_moves_and_nothing_else() {
    let served = Served::start().await;
    // The manager's endpoints are not a host's, and a host's not the manager's.
    let host = served.client("host-2");
    for error in [
        host.doctor().await.unwrap_err(),
        host.exec(served.vm, &command(&["true"])).await.unwrap_err(),
        host.console(served.vm).await.unwrap_err(),
    ] {
        assert_eq!(code(&error), Some(ErrorCode::Forbidden), "{error:?}");
    }
    let error = served.peer("manager").go(served.vm, MOVE).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::NotFound), "{error:?}");
    // A name that is no host's, and a host of another cluster.
    let error = served.peer("guest-1").go(served.vm, MOVE).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::Forbidden), "{error:?}");
    let other = Authority::new().identity("host-2");
    let pem = &served.authority.pem;
    let stranger = PeerClient::new(HostId(1), &served.address, pem, &other).unwrap();
    assert_eq!(code(&stranger.go(served.vm, MOVE).await.unwrap_err()), None);
    // This host is not the one that was meant.
    let identity = served.authority.identity("host-2");
    let mistaken = PeerClient::new(HostId(9), &served.address, pem, &identity).unwrap();
    assert_eq!(code(&mistaken.go(served.vm, MOVE).await.unwrap_err()), None);
}

#[tokio::test]
async fn a_move_that_the_manager_has_not_announced_is_not_expected() {
    let served = Served::start().await;
    served.vms.adopted().await;
    let elsewhere = VmId(Uuid::from_u128(8));
    let peer = served.peer("host-2");
    let refused = |error: ClientError| {
        assert_eq!(code(&error), Some(ErrorCode::NotFound), "{error:?}");
    };
    refused(peer.prepare(elsewhere, MOVE, &machine()).await.unwrap_err());
    refused(peer.prepare(served.vm, MOVE, &machine()).await.unwrap_err());
    refused(peer.close_disk(served.vm, MOVE).await.unwrap_err());
    refused(peer.go(served.vm, MOVE).await.unwrap_err());
    refused(peer.abandon(served.vm, MOVE).await.unwrap_err());

    served.announce(2);
    // Another host's, or of another attempt.
    refused(served.peer("host-3").prepare(served.vm, MOVE, &machine()).await.unwrap_err());
    refused(peer.go(served.vm, Uuid::from_u128(5)).await.unwrap_err());
    // It never runs here once it was given up, and may be told so again.
    assert_eq!(peer.abandon(served.vm, MOVE).await.unwrap(), ArrivalVerdict::Never);
    assert_eq!(peer.go(served.vm, MOVE).await.unwrap(), ArrivalVerdict::Never);
    assert_eq!(peer.abandon(served.vm, MOVE).await.unwrap(), ArrivalVerdict::Never);
    let error = peer.prepare(served.vm, MOVE, &machine()).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::Unsupported), "{error:?}");
    let observed = wait_for("its failure to be seen", || {
        let observed = served.vms.observed();
        observed.into_iter().find_map(|vm| vm.migration).filter(|seen| seen.message.is_some())
    });
    assert_eq!(observed.await.id, MOVE);
}

#[tokio::test]
async fn machines_that_cannot_be_are_refused_before_anything_is_made() {
    let served = Served::start().await;
    served.vms.adopted().await;
    served.announce(2);
    let peer = served.peer("host-2");
    let of_type = |kind: &str| PrepareArrival { machine_type: kind.to_owned(), ..machine() };
    let refused = [
        of_type(""),
        of_type("q35"),
        of_type("pc-q35-10.0,kernel=/etc/shadow"),
        of_type("pc-i440fx-10.0"),
        PrepareArrival { accelerator: "kvm".to_owned(), ..machine() },
        PrepareArrival { accelerator: String::new(), ..machine() },
        PrepareArrival { vcpus: 0, ..machine() },
        PrepareArrival { vcpus: 2, ..machine() },
        PrepareArrival { vcpus: 256, max_vcpus: 256, ..machine() },
        PrepareArrival { vcpus: u32::MAX, max_vcpus: u32::MAX, ..machine() },
        PrepareArrival { memory: Bytes(0), ..machine() },
        PrepareArrival { memory: Bytes(65 << 20), ..machine() },
        PrepareArrival { memory: Bytes(u64::MAX), max_memory: Bytes(u64::MAX), ..machine() },
        PrepareArrival { interfaces: 33, ..machine() },
        PrepareArrival { disk_size: Bytes(u64::MAX), copy_disk: true, ..machine() },
    ];
    for machine in refused {
        let error = peer.prepare(served.vm, MOVE, &machine).await.unwrap_err();
        assert_eq!(code(&error), Some(ErrorCode::Unsupported), "{machine:?}: {error:?}");
        let is_given_up = served.vms.observed().iter().any(|vm| {
            vm.migration.as_ref().is_some_and(|seen| seen.stage == MigrationStage::Failed)
        });
        assert!(!is_given_up, "{machine:?} was tried: {error:?}");
    }
}

#[tokio::test]
async fn odd_requests_of_hosts_get_error_bodies() {
    let served = Served::start().await;
    let identity = served.authority.identity("host-2");
    let tls = tls::client_config(&served.authority.pem, Some(&identity)).unwrap();
    let target: SocketAddr = served.address.parse().unwrap();
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .resolve("host-1", target)
        .no_proxy()
        .build()
        .unwrap();
    let base = format!("/peer/v1/vms/{}/migrations/{MOVE}", served.vm);
    let large = format!(r#"{{"machine_type": "{}"}}"#, "x".repeat(70_000));
    let table = [
        ("GET", "/".to_owned(), "", 403),
        ("GET", format!("{base}/go"), "", 405),
        ("POST", format!("/peer/v1/vms/nonsense/migrations/{MOVE}/go"), "", 400),
        ("POST", format!("/peer/v1/vms/{}/migrations/1/go", served.vm), "", 400),
        ("POST", format!("{base}/prepare"), "{", 400),
        ("POST", format!("{base}/prepare"), r#"{"machine_type": 7}"#, 400),
        ("POST", format!("{base}/prepare"), &large, 413),
    ];
    for (method, path, body, status) in table {
        let url = format!("https://host-1:{}{path}", target.port());
        let request = http
            .request(method.parse().unwrap(), url)
            .header("content-type", "application/json")
            .body(body.to_owned());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::from_u16(status).unwrap(), "{method} {path}");
        let text = answer.bytes().await.unwrap();
        let problem: plimsoll_api::ErrorBody = serde_json::from_slice(&text).unwrap();
        assert!(!problem.message.is_empty());
    }
}
