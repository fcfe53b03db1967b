//! A manager in this process, on ports that the system chooses, in a folder of its own.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use plimsoll_api::{
    Client, ErrorBody,
    client::ClientConfig,
    v1::{
        CreateImageRequest, CreateProjectRequest, CreateTokenRequest, CreateVmsRequest,
        SetSettingsRequest, VmRequest,
    },
};
use plimsoll_manager::{Server, ServerConfig};
use plimsoll_model::{
    Bytes, Image, ImageFile, ImageFileKind, MilliCores, Name, Quota, Resources, Role, VmPhase,
    VmSpec,
};
use plimsoll_testkit::{FakeAgent, FakeHost, join_many, wait_for};
use sha2::{Digest as _, Sha256};
use tokio::{sync::oneshot, task::JoinHandle};

/// How long anything may take here. The machine may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn resources(cores: u64, gib: u64) -> Resources {
    Resources {
        cpu: MilliCores::cores(cores),
        memory: Bytes::gib(gib),
        disk: Bytes::gib(gib),
        ..Resources::default()
    }
}

/// A VM of half a core.
pub(crate) fn vm_spec() -> VmSpec {
    let resources = Resources {
        cpu: MilliCores(500),
        memory: Bytes::mib(256),
        disk: Bytes::gib(1),
        ..Resources::default()
    };
    VmSpec::new(resources, name("tiny"))
}

pub(crate) fn vms(base: &str, count: u32) -> CreateVmsRequest {
    CreateVmsRequest {
        requests: vec![VmRequest {
            name: name(base),
            count: Some(count),
            split: None,
            spec: vm_spec(),
        }],
        all_or_nothing: true,
        policy: None,
    }
}

/// A manager with its folder. Ends with the test.
pub(crate) struct Cluster {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) api: SocketAddr,
    pub(crate) socket: PathBuf,
    pub(crate) admin_token: String,
    /// The admin, by the socket.
    pub(crate) admin: Client,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

pub(crate) fn config(folder: &std::path::Path) -> ServerConfig {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    ServerConfig {
        data_dir: folder.join("data"),
        api_listen: Some(any),
        cluster_listen: any,
        settings: SetSettingsRequest {
            // Reports every few hundred milliseconds: tests are in a hurry.
            unreachable_after_ms: Some(3_000),
            dead_after_ms: Some(6_000),
            lease_ms: Some(4_000),
            ..SetSettingsRequest::default()
        },
        ..ServerConfig::default()
    }
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub(crate) async fn start_in(folder: tempfile::TempDir) -> Self {
        let server = Server::bind(config(folder.path())).await.unwrap();
        let (api, socket) = (server.api_address().unwrap(), server.socket().to_owned());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.run(async move {
            let _ = stopped.await;
        }));
        let token = std::fs::read_to_string(folder.path().join("data/admin.token")).unwrap();
        let admin_token = token.trim().to_owned();
        let admin = Client::new(&ClientConfig {
            address: format!("unix:{}", socket.display()),
            ca_pem: None,
            token: Some(admin_token.clone()),
        })
        .unwrap();
        Self { folder, api, socket, admin_token, admin, stop: Some(stop), serving: Some(serving) }
    }

    /// Ends the manager in good order and starts another on the same folder.
    pub(crate) async fn restart(mut self) -> Self {
        drop(self.stop.take());
        self.serving.take().unwrap().await.unwrap();
        Self::start_in(self.folder).await
    }

    pub(crate) fn ca_pem(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("data/ca.pem")).unwrap()
    }

    /// A client by TLS with this token.
    pub(crate) fn client(&self, token: Option<&str>) -> Client {
        Client::new(&ClientConfig {
            address: format!("https://{}", self.api),
            ca_pem: Some(self.ca_pem()),
            token: token.map(str::to_owned),
        })
        .unwrap()
    }

    /// A client with a new token of this role.
    pub(crate) async fn role(&self, role: Role, project: Option<&str>) -> Client {
        let request = CreateTokenRequest {
            role,
            project: project.map(name),
            note: "a test".to_owned(),
            lifetime_s: None,
        };
        let created = self.admin.create_token(&request).await.unwrap();
        self.client(Some(&created.secret))
    }

    pub(crate) async fn project(&self, project: &str) {
        let request =
            CreateProjectRequest { name: name(project), quota: Quota::default(), credits: None };
        self.admin.create_project(&request).await.unwrap();
    }

    /// Hosts `h-1`, `h-2`, ... of four cores and 16 GiB.
    pub(crate) async fn hosts(&self, count: usize) -> Vec<FakeAgent> {
        let hosts = (1..=count)
            .map(|i| FakeHost {
                serves: true,
                ..FakeHost::new(name(&format!("h-{i}")), resources(4, 16))
            })
            .collect();
        // One after the other, so that names and numbers agree.
        join_many(&self.admin, hosts, 1).await.unwrap()
    }

    /// A public image `tiny` that is ready.
    pub(crate) async fn image(&self) -> Image {
        let disk = vec![7_u8; 4096];
        let request = image_request("tiny", &disk);
        self.admin.create_image(None, &request).await.unwrap();
        self.admin
            .put_image_file(
                None,
                &name("tiny"),
                ImageFileKind::Disk,
                std::io::Cursor::new(disk),
                4096,
            )
            .await
            .unwrap()
    }

    /// A project `shop`, the image `tiny`, and so many hosts.
    pub(crate) async fn furnished(hosts: usize) -> (Self, Vec<FakeAgent>) {
        let cluster = Self::start().await;
        cluster.project("shop").await;
        cluster.image().await;
        let agents = cluster.hosts(hosts).await;
        (cluster, agents)
    }

    pub(crate) async fn wait_phase(&self, vm: &str, phase: VmPhase) {
        let what = format!("VM {vm} to be {phase}");
        wait_for(LIMIT, &what, async || {
            let seen = self.admin.vm(&name("shop"), &name(vm)).await.ok()?;
            (seen.state == phase).then_some(())
        })
        .await
        .unwrap();
    }

    pub(crate) async fn wait_gone(&self, vm: &str) {
        wait_for(LIMIT, &format!("VM {vm} to be gone"), async || {
            let error = self.admin.vm(&name("shop"), &name(vm)).await.err()?;
            (error.code() == Some(plimsoll_api::ErrorCode::NotFound)).then_some(())
        })
        .await
        .unwrap();
    }
}

pub(crate) fn image_request(image: &str, disk: &[u8]) -> CreateImageRequest {
    CreateImageRequest {
        name: name(image),
        description: String::new(),
        files: vec![ImageFile {
            kind: ImageFileKind::Disk,
            sha256: Sha256::digest(disk).iter().map(|b| format!("{b:02x}")).collect(),
            size: Bytes(disk.len() as u64),
        }],
        append: None,
        min_memory: Bytes(0),
        guest_agent: false,
    }
}

/// The error of a call that must fail by a refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(
    result: Result<T, plimsoll_api::ClientError>,
) -> ErrorBody {
    let error = result.unwrap_err();
    error.api().unwrap_or_else(|| panic!("not a refusal: {error:?}")).clone()
}
