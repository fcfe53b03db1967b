//! The users' client: one method for each endpoint of [`crate::v1`].

use std::time::Duration;

use plimsoll_model::{Event, Image, ImageFileKind, Name, Network, TokenId};
use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::AsyncRead;

use super::{
    console::Console,
    error::ClientError,
    transport::{ByteStream, CALL_TIMEOUT, Setup, Transport, query},
};
use crate::{
    agent::{ExecRequest, ExecResponse, LogQuery},
    tls,
    v1::{
        BalanceView, ClusterStatus, CreateImageRequest, CreateJoinTokenRequest,
        CreateJoinTokenResponse, CreateNetworkRequest, CreateProjectRequest, CreateTokenRequest,
        CreateTokenResponse, CreateVmsRequest, CreateVmsResponse, DeflateVmRequest, DrainRequest,
        DrainResponse, EventQuery, ExplainRequest, Explanation, HostView, MigrateRequest,
        MigrateResponse, ProjectView, Reservation, SetProjectRequest, SetSettingsRequest,
        SetVmRequest, Settings, StopVmRequest, TokenView, VmView, WhoAmI,
    },
};

/// The longest upload of a file.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// Where the manager is and who asks.
#[derive(Clone, Default)]
pub struct ClientConfig {
    /// `https://HOST:PORT` or `unix:PATH`.
    pub address: String,
    /// The cluster's CA (PEM): the server must be the manager of that cluster, by whatever name it is
    /// reached. Without, its certificate must be good for HOST and of a CA that this machine trusts.
    pub ca_pem: Option<String>,
    /// The bearer token.
    pub token: Option<String>,
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A user's connection to the manager. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
}

/// Whose images.
fn images_path(project: Option<&Name>) -> String {
    project
        .map_or_else(|| "/v1/images".to_owned(), |project| format!("/v1/projects/{project}/images"))
}

impl Client {
    /// A client. Nothing is connected yet.
    ///
    /// # Errors
    /// The address, the CA or the token cannot be read.
    pub fn new(config: &ClientConfig) -> Result<Self, ClientError> {
        let unix = config.address.starts_with("unix:");
        let (tls, server_name) = match &config.ca_pem {
            Some(ca) if !unix => (tls::client_config(ca, None), Some(tls::MANAGER)),
            None if !unix => (tls::platform_client_config(), None),
            _ => (tls::no_tls_config(), None),
        };
        let transport = Transport::new(Setup {
            address: &config.address,
            server_name,
            tls,
            token: config.token.as_deref(),
        })?;
        Ok(Self { transport })
    }

    /// The server's address as it was given.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.transport.address
    }

    /// GET of any path.
    ///
    /// # Errors
    /// No answer, a refusal, or an answer of another form. So for every method here.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.transport.json(self.transport.request(Method::GET, path), CALL_TIMEOUT).await
    }

    /// POST to any path.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync + ?Sized),
    ) -> Result<T, ClientError> {
        let request = self.transport.request(Method::POST, path).json(body);
        self.transport.json(request, CALL_TIMEOUT).await
    }

    /// PATCH of any path.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync + ?Sized),
    ) -> Result<T, ClientError> {
        let request = self.transport.request(Method::PATCH, path).json(body);
        self.transport.json(request, CALL_TIMEOUT).await
    }

    /// DELETE of any path; what the server answers on success is not read.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        let request = self.transport.request(Method::DELETE, path);
        self.transport.send(request, CALL_TIMEOUT).await.map(drop)
    }

    /// PUT of `size` bytes read from `from`.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn put_stream<T: DeserializeOwned>(
        &self,
        path: &str,
        from: impl AsyncRead + Send + 'static,
        size: u64,
    ) -> Result<T, ClientError> {
        let chunks = futures_util::stream::try_unfold(Box::pin(from), |mut from| async move {
            let mut chunk = bytes::BytesMut::with_capacity(256 * 1024);
            let count = tokio::io::AsyncReadExt::read_buf(&mut from, &mut chunk).await?;
            Ok::<_, std::io::Error>((count > 0).then(|| (chunk.freeze(), from)))
        });
        let request = self
            .transport
            .request(Method::PUT, path)
            .header(reqwest::header::CONTENT_LENGTH, size)
            .header(reqwest::header::CONTENT_TYPE, "application/octet-stream")
            .body(reqwest::Body::wrap_stream(chunks));
        self.transport.json(request, UPLOAD_TIMEOUT).await
    }

    /// GET of any path, as bytes. `idle` bounds the silence between two pieces.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn get_stream(
        &self,
        path: &str,
        idle: Option<Duration>,
    ) -> Result<ByteStream, ClientError> {
        let request = self.transport.request(Method::GET, path);
        let answer = self.transport.send(request, CALL_TIMEOUT).await?;
        Ok(self.transport.clone().stream(answer, idle))
    }
}

/// Writes one method for one endpoint.
macro_rules! endpoints {
    ($( $(#[$doc:meta])* $verb:ident $name:ident($($arg:ident: $type:ty),*; $path:literal $(, $body:ident: $body_type:ty)?) -> $result:ty; )*) => {
        impl Client { $(
            $(#[$doc])*
            ///
            /// # Errors
            /// See [`Client::get`].
            pub async fn $name(&self, $($arg: $type,)* $($body: &$body_type)?) -> Result<$result, ClientError> {
                self.$verb(&format!($path) $(, $body)?).await
            }
        )* }
    };
}

endpoints! {
    /// The cluster in numbers.
    get status(; "/v1/status") -> ClusterStatus;
    /// Who asks.
    get whoami(; "/v1/whoami") -> WhoAmI;
    /// The settings.
    get settings(; "/v1/settings") -> Settings;
    /// Changes settings.
    patch set_settings(; "/v1/settings", body: SetSettingsRequest) -> Settings;
    /// Creates a project.
    post create_project(; "/v1/projects", body: CreateProjectRequest) -> ProjectView;
    /// The projects that the token may see.
    get projects(; "/v1/projects") -> Vec<ProjectView>;
    /// One project.
    get project(project: &Name; "/v1/projects/{project}") -> ProjectView;
    /// Changes a project.
    patch set_project(project: &Name; "/v1/projects/{project}", body: SetProjectRequest) -> ProjectView;
    /// Deletes an empty project.
    delete delete_project(project: &Name; "/v1/projects/{project}") -> ();
    /// Creates VMs.
    post create_vms(project: &Name; "/v1/projects/{project}/vms", body: CreateVmsRequest) -> CreateVmsResponse;
    /// The VMs of a project.
    get vms(project: &Name; "/v1/projects/{project}/vms") -> Vec<VmView>;
    /// One VM.
    get vm(project: &Name, vm: &Name; "/v1/projects/{project}/vms/{vm}") -> VmView;
    /// What is booked, or held until an end, in a project.
    get reservations(project: &Name; "/v1/projects/{project}/reservations") -> Vec<Reservation>;
    /// Changes a VM.
    patch set_vm(project: &Name, vm: &Name; "/v1/projects/{project}/vms/{vm}", body: SetVmRequest) -> VmView;
    /// Has a VM deleted: it is gone when it is no longer found.
    delete delete_vm(project: &Name, vm: &Name; "/v1/projects/{project}/vms/{vm}") -> ();
    /// Explains where a VM is and how the others scored.
    get explain_vm(project: &Name, vm: &Name; "/v1/projects/{project}/vms/{vm}/explain") -> Explanation;
    /// Explains where a VM would be placed; nothing is created.
    post explain(project: &Name; "/v1/projects/{project}/explain", body: ExplainRequest) -> Explanation;
    /// Creates a network.
    post create_network(project: &Name; "/v1/projects/{project}/networks", body: CreateNetworkRequest) -> Network;
    /// The networks of a project.
    get networks(project: &Name; "/v1/projects/{project}/networks") -> Vec<Network>;
    /// One network.
    get network(project: &Name, network: &Name; "/v1/projects/{project}/networks/{network}") -> Network;
    /// Deletes a network that no VM uses.
    delete delete_network(project: &Name, network: &Name; "/v1/projects/{project}/networks/{network}") -> ();
    /// The hosts.
    get hosts(; "/v1/hosts") -> Vec<HostView>;
    /// One host.
    get host(host: &Name; "/v1/hosts/{host}") -> HostView;
    /// Removes a host that holds no VM: its certificate is no longer accepted.
    delete remove_host(host: &Name; "/v1/hosts/{host}") -> ();
    /// The tokens that the token may see.
    get tokens(; "/v1/tokens") -> Vec<TokenView>;
    /// Makes a token.
    post create_token(; "/v1/tokens", body: CreateTokenRequest) -> CreateTokenResponse;
    /// Revokes a token.
    delete revoke_token(token: TokenId; "/v1/tokens/{token}") -> ();
    /// Makes a token with which one host joins.
    post create_join_token(; "/v1/join-tokens", body: CreateJoinTokenRequest) -> CreateJoinTokenResponse;
}

impl Client {
    async fn post_nothing<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = self.transport.request(Method::POST, path);
        self.transport.json(request, CALL_TIMEOUT).await
    }

    /// Has a VM started.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn start_vm(&self, project: &Name, vm: &Name) -> Result<VmView, ClientError> {
        self.post_nothing(&format!("/v1/projects/{project}/vms/{vm}/start")).await
    }

    /// Has a VM stopped.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn stop_vm(
        &self,
        project: &Name,
        vm: &Name,
        request: &StopVmRequest,
    ) -> Result<VmView, ClientError> {
        self.post(&format!("/v1/projects/{project}/vms/{vm}/stop"), request).await
    }

    /// Takes a part of what a running VM has.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn deflate_vm(
        &self,
        project: &Name,
        vm: &Name,
        request: &DeflateVmRequest,
    ) -> Result<VmView, ClientError> {
        self.post(&format!("/v1/projects/{project}/vms/{vm}/deflate"), request).await
    }

    /// Gives a VM back what was taken.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn inflate_vm(&self, project: &Name, vm: &Name) -> Result<VmView, ClientError> {
        self.post_nothing(&format!("/v1/projects/{project}/vms/{vm}/inflate")).await
    }

    /// Moves a running VM to another host.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn migrate_vm(
        &self,
        project: &Name,
        vm: &Name,
        request: &MigrateRequest,
    ) -> Result<MigrateResponse, ClientError> {
        self.post(&format!("/v1/projects/{project}/vms/{vm}/migrate"), request).await
    }

    /// Gives up a VM's move, as long as that is possible.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn cancel_migration(&self, project: &Name, vm: &Name) -> Result<VmView, ClientError> {
        self.post_nothing(&format!("/v1/projects/{project}/vms/{vm}/migrate/cancel")).await
    }

    /// How balanced the cluster is, with the last plan.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn balance(&self) -> Result<BalanceView, ClientError> {
        self.get("/v1/balance").await
    }

    /// Makes a plan on what is known now, and carries nothing out.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn plan_balance(&self) -> Result<BalanceView, ClientError> {
        self.post_nothing("/v1/balance/plan").await
    }

    /// Makes a plan, and begins its steps.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn apply_balance(&self) -> Result<BalanceView, ClientError> {
        self.post_nothing("/v1/balance/apply").await
    }

    /// Has a VM rebooted.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn reboot_vm(&self, project: &Name, vm: &Name) -> Result<VmView, ClientError> {
        self.post_nothing(&format!("/v1/projects/{project}/vms/{vm}/reboot")).await
    }

    /// Runs a program in a VM.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn exec(
        &self,
        project: &Name,
        vm: &Name,
        request: &ExecRequest,
    ) -> Result<ExecResponse, ClientError> {
        let limit = Duration::from_millis(request.timeout_ms.min(600_000)) + 2 * CALL_TIMEOUT;
        let path = format!("/v1/projects/{project}/vms/{vm}/exec");
        let builder = self.transport.request(Method::POST, &path).json(request);
        self.transport.json(builder, limit).await
    }

    /// A VM's log, as it comes.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn logs(
        &self,
        project: &Name,
        vm: &Name,
        which: &LogQuery,
    ) -> Result<ByteStream, ClientError> {
        let path = format!("/v1/projects/{project}/vms/{vm}/logs");
        let request = query(self.transport.request(Method::GET, &path), which);
        let answer = self.transport.send(request, CALL_TIMEOUT).await?;
        Ok(self.transport.clone().stream(answer, (!which.follow).then_some(CALL_TIMEOUT)))
    }

    /// A VM's serial console.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn console(&self, project: &Name, vm: &Name) -> Result<Console, ClientError> {
        self.transport.console(&format!("/v1/projects/{project}/vms/{vm}/console")).await
    }

    /// Announces an image: of a project, or (without one) public.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn create_image(
        &self,
        project: Option<&Name>,
        request: &CreateImageRequest,
    ) -> Result<Image, ClientError> {
        self.post(&images_path(project), request).await
    }

    /// The images of a project (or, without one, the public ones).
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn images(&self, project: Option<&Name>) -> Result<Vec<Image>, ClientError> {
        self.get(&images_path(project)).await
    }

    /// One image.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn image(&self, project: Option<&Name>, image: &Name) -> Result<Image, ClientError> {
        self.get(&format!("{}/{image}", images_path(project))).await
    }

    /// Deletes an image that no VM uses.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn delete_image(
        &self,
        project: Option<&Name>,
        image: &Name,
    ) -> Result<(), ClientError> {
        self.delete(&format!("{}/{image}", images_path(project))).await
    }

    /// Sends a file of an image: `size` bytes, as announced. The image as it is then is the answer.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn put_image_file(
        &self,
        project: Option<&Name>,
        image: &Name,
        kind: ImageFileKind,
        from: impl AsyncRead + Send + 'static,
        size: u64,
    ) -> Result<Image, ClientError> {
        let path = format!("{}/{image}/files/{}", images_path(project), kind.as_str());
        self.put_stream(&path, from, size).await
    }

    /// Empties a host, or only takes it out of placement.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn drain_host(
        &self,
        host: &Name,
        request: &DrainRequest,
    ) -> Result<DrainResponse, ClientError> {
        self.post(&format!("/v1/hosts/{host}/drain"), request).await
    }

    /// Takes a host back into placement.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn undrain_host(&self, host: &Name) -> Result<HostView, ClientError> {
        self.post_nothing(&format!("/v1/hosts/{host}/undrain")).await
    }

    /// Says that a silent host is known to run nothing.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn fence_host(&self, host: &Name) -> Result<HostView, ClientError> {
        self.post_nothing(&format!("/v1/hosts/{host}/fence")).await
    }

    /// Events, oldest first.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn events(&self, which: &EventQuery) -> Result<Vec<Event>, ClientError> {
        let request = query(self.transport.request(Method::GET, "/v1/events"), which);
        let wait = Duration::from_millis(which.wait_ms.unwrap_or(0).min(30_000));
        self.transport.json(request, CALL_TIMEOUT + wait).await
    }
}
