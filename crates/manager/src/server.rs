//! A manager as a process: takes its data folder, binds its sockets, loads the state, serves until it
//! is told to stop.
//!
//! ```text
//!   DATA/            mode 0700
//!     lock           held while a manager runs here
//!     state.db       the store
//!     ca.key ca.pem  the cluster's CA
//!     admin.token    made at the first start
//!     blobs/         files of images
//!     api.sock       the users' API for this machine, mode 0600
//! ```
//!
//! Killing the process at any instant loses nothing that was acknowledged: the store is durable
//! before an answer goes out, files are written whole or not at all, and what a crash leaves (a
//! socket, a half upload) is cleared away by the next start.

use std::{
    fs::TryLockError,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use plimsoll_api::{
    tls::{self, ClientAuth, TlsError},
    v1::SetSettingsRequest,
};
use plimsoll_model::Timestamp;
use plimsoll_store::{SqliteStore, StoreError};
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    admin_token::{self, AdminTokenError},
    auth::Limiter,
    ca::{CaError, CertificateAuthority},
    core::{Core, CoreConfig, OpenError},
    http::{
        Inner, Services, agents,
        listener::{self, Source},
        users,
    },
    images::{BlobError, BlobStore},
    metrics::Metrics,
    proxy::AgentProxy,
    reconcile::{self, FencingCommand},
};

/// Connections of users at once, by TLS and by the socket each.
const MOST_USERS: usize = 2048;
/// Connections of agents at once: two of each host, with room for new ones beside dying ones.
const MOST_AGENTS: usize = 200_000;

/// How a manager is set up: what its configuration file says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where the users' API listens, and where hosts join. Without, only the socket is there, and no
    /// new host can join.
    pub api_listen: Option<SocketAddr>,
    /// Where agents are listened to.
    pub cluster_listen: SocketAddr,
    /// The address or host name by which hosts reach this machine. Without: the address listened on,
    /// or the one from which this machine would reach others.
    pub advertise: Option<String>,
    /// The unix socket of the users' API. Without, `api.sock` in the data folder.
    pub socket: Option<PathBuf>,
    /// What fences a dead host, such as a call of `ipmitool`. Without, only operators and leases do.
    pub fencing: Option<FencingConfig>,
    /// Settings of a new cluster. Later they are changed with `plimsoll settings set`.
    pub settings: SetSettingsRequest,
}

/// The program that fences a host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FencingConfig {
    /// The program and its arguments; `{host}` stands for the host's name and `{id}` for its id.
    pub command: Vec<String>,
    /// How long it may take, in seconds.
    #[serde(default = "sixty")]
    pub timeout_s: u64,
}

const fn sixty() -> u64 {
    60
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/plimsoll/manager".into(),
            api_listen: Some(SocketAddr::from(([0, 0, 0, 0], 7700))),
            cluster_listen: SocketAddr::from(([0, 0, 0, 0], 7701)),
            advertise: None,
            socket: None,
            fencing: None,
            settings: SetSettingsRequest::default(),
        }
    }
}

/// Why a manager cannot run.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The data folder cannot be made or read.
    #[error("cannot {doing} {}", path.display())]
    Data {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another manager has the data folder.
    #[error("another manager runs on {}", path.display())]
    InUse {
        /// The data folder.
        path: PathBuf,
    },
    /// A socket cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not known where others reach this machine.
    #[error("cannot tell by which address hosts reach this machine: set `advertise`")]
    Advertise(#[source] io::Error),
    /// The CA cannot be used.
    #[error("cannot use the cluster's CA")]
    Ca(#[source] CaError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] TlsError),
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[source] StoreError),
    /// The state cannot be loaded.
    #[error("cannot load the cluster's state")]
    Core(#[source] OpenError),
    /// The folder of images cannot be used.
    #[error("cannot use the folder of images")]
    Blobs(#[source] BlobError),
    /// The first admin's token cannot be made.
    #[error("cannot make the first admin's token")]
    AdminToken(#[source] AdminTokenError),
}

/// A manager with its sockets bound and its state loaded, that does not serve yet.
pub struct Server {
    services: Services,
    core: Core,
    sources: Vec<(Source, bool)>,
    stop: watch::Sender<bool>,
    api: Option<SocketAddr>,
    cluster: SocketAddr,
    socket: PathBuf,
    _lock: std::fs::File,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("api", &self.api)
            .field("cluster", &self.cluster)
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// Runs a manager until `shutdown` is ready.
///
/// # Errors
/// See [`ServerError`]; it cannot start. Once it serves, nothing but `shutdown` ends it.
pub async fn serve(
    config: ServerConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    Server::bind(config).await?.run(shutdown).await;
    Ok(())
}

impl Server {
    /// Takes the data folder, binds the sockets, and loads the state.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        let lock = take(&config.data_dir)?;
        raise_file_limit();
        let api = match config.api_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let cluster = bind(config.cluster_listen).await?;
        let socket = config.socket.clone().unwrap_or_else(|| config.data_dir.join("api.sock"));
        let listener = bind_socket(&socket)?;

        let now = Timestamp::now();
        let ca = CertificateAuthority::open(&config.data_dir, now).map_err(ServerError::Ca)?;
        let advertise = advertised(&config)?;
        let identity =
            ca.manager_identity(std::slice::from_ref(&advertise), now).map_err(ServerError::Ca)?;
        let acceptor = |clients| {
            tls::server_config(&identity, clients)
                .map(|config| TlsAcceptor::from(Arc::new(config)))
                .map_err(ServerError::Tls)
        };
        let for_users = acceptor(ClientAuth::Token)?;
        let for_agents = acceptor(ClientAuth::Certificate(ca.certificate_pem()))?;

        let metrics = Metrics::new();
        let core = open_core(&config, &metrics).await?;
        let blobs = BlobStore::open(&config.data_dir).map_err(ServerError::Blobs)?;
        blobs.keep_only(&crate::app::image_files(&core)).map_err(ServerError::Blobs)?;

        let (stop, stopping) = watch::channel(false);
        let api_address = api.as_ref().map(|listener| listener.1);
        let at = |address: SocketAddr| join_address(&advertise, address.port());
        let services = Services::new(Inner {
            agents: AgentProxy::new(ca.certificate_pem().to_owned(), identity),
            core: core.clone(),
            ca,
            blobs,
            blobs_in_use: tokio::sync::Mutex::new(()),
            metrics,
            limiter: Limiter::new(),
            api_address: api_address.map(at),
            cluster_address: at(cluster.1),
            stopping,
        });
        let mut sources =
            vec![(Source::Socket(listener), false), (Source::Agents(cluster.0, for_agents), true)];
        if let Some((listener, _)) = api {
            sources.push((Source::Users(listener, for_users), false));
        }
        let cluster = cluster.1;
        Ok(Self { services, core, sources, stop, api: api_address, cluster, socket, _lock: lock })
    }

    /// Where the users' API listens.
    #[must_use]
    pub const fn api_address(&self) -> Option<SocketAddr> {
        self.api
    }

    /// Where agents are listened to.
    #[must_use]
    pub const fn cluster_address(&self) -> SocketAddr {
        self.cluster
    }

    /// The unix socket of the users' API.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Serves until `shutdown` is ready, then ends what runs and closes the store.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let reconcilers = reconcile::spawn(&self.core);
        let (users, agents) =
            (users::router(self.services.clone()), agents::router(self.services.clone()));
        let mut listeners = tokio::task::JoinSet::new();
        for (source, is_cluster) in self.sources {
            let (router, most) = if is_cluster {
                (agents.clone(), MOST_AGENTS)
            } else {
                (users.clone(), MOST_USERS)
            };
            listeners.spawn(listener::serve(source, router, most, self.stop.subscribe()));
        }
        tracing::info!(
            api = ?self.api, cluster = %self.cluster, socket = %self.socket.display(),
            "the manager serves"
        );
        shutdown.await;
        tracing::info!("the manager shuts down");
        let _ = self.stop.send(true);
        drop(reconcilers);
        while listeners.join_next().await.is_some() {}
        self.core.close().await;
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn open_core(config: &ServerConfig, metrics: &Metrics) -> Result<Core, ServerError> {
    let path = config.data_dir.join("state.db");
    let store = tokio::task::spawn_blocking(move || SqliteStore::open(&path));
    let store = store.await.map_err(|error| ServerError::Data {
        doing: "open the store in",
        path: config.data_dir.clone(),
        source: io::Error::other(error),
    })?;
    let store = store.map_err(ServerError::Store)?;
    let fencing = config.fencing.as_ref().map(|fencing| FencingCommand {
        argv: fencing.command.clone(),
        timeout: Duration::from_secs(fencing.timeout_s),
    });
    let core_config = CoreConfig { fencing, moves: metrics.moves(), ..CoreConfig::default() };
    let core =
        Core::open(core_config, Box::new(metrics.timed(store))).map_err(ServerError::Core)?;
    admin_token::ensure(&core, &config.data_dir, &config.settings)
        .await
        .map_err(ServerError::AdminToken)?;
    Ok(core)
}

/// Makes the data folder if need be, and takes it for this process.
fn take(folder: &Path) -> Result<std::fs::File, ServerError> {
    let failed = |doing, source| ServerError::Data { doing, path: folder.to_owned(), source };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| failed("make the folder", source))?;
    // One that was there before may be open to others, and the store has what users told their VMs.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
        .map_err(|source| failed("close to others", source))?;
    let lock = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))
        .map_err(|source| failed("open the lock in", source))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ServerError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("lock", source)),
    }
}

/// Every host keeps connections open: the usual soft limit of 1,024 files is soon reached.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) =
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServerError> {
    let failed = |source| ServerError::Bind { address: address.to_string(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Binds a unix socket that only its owner can open, in place of one that a crash has left: bound in
/// a private folder beside it and moved, so that nobody can open it before its mode is set.
fn bind_socket(path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |source| ServerError::Bind { address: format!("unix:{}", path.display()), source };
    let bind = || {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let private = parent.unwrap_or(Path::new(".")).join(format!(".s{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&private);
        std::fs::DirBuilder::new().mode(0o700).create(&private)?;
        let temporary = private.join("s");
        let bound = UnixListener::bind(&temporary).and_then(|listener| {
            std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&temporary, path)?;
            Ok(listener)
        });
        let _ = std::fs::remove_dir_all(&private);
        bound
    };
    bind().map_err(failed)
}

/// The host by which others reach this machine, without a port.
fn advertised(config: &ServerConfig) -> Result<String, ServerError> {
    if let Some(host) = &config.advertise {
        return Ok(host.trim_start_matches('[').trim_end_matches(']').to_owned());
    }
    let listened = config.cluster_listen.ip();
    if !listened.is_unspecified() {
        return Ok(listened.to_string());
    }
    // Connecting a UDP socket sends nothing; it makes the kernel choose the source address.
    let source = || -> io::Result<IpAddr> {
        let probe = UdpSocket::bind("0.0.0.0:0")?;
        probe.connect("192.0.2.1:9")?;
        Ok(probe.local_addr()?.ip())
    };
    source().map(|address| address.to_string()).map_err(ServerError::Advertise)
}

fn join_address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
