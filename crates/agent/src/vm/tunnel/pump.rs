//! The process: it connects what it was given, and carries bytes until all channels have ended.
//!
//! ```text
//!   source                                  target
//!     | -- TLS, both show certificates -----> |  only `peer` is let in
//!     | -- the channel's byte --------------> |  each channel once; the disk's NBD server is
//!     | <----------------------------- taken  |  connected to before that is said
//! ```

mod carry;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use plimsoll_api::ErrorChain;
use plimsoll_api::tls::{self, ClientAuth, Identity};
use plimsoll_model::HostId;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use self::carry::{BUFFER, carry};
use super::{DISK_SOCKET, MEET_LIMIT, OUTCOME, Outcome, Plan, Role, TunnelError, read_plan};
use crate::vm::files;
use crate::vm::socket::SocketPath;

/// From a connection to its channel's byte.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Strangers may hold up so many handshakes at a time, and the one that is waited for none.
const HANDSHAKES: usize = 32;
/// After a failure to accept, as when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Nothing is copied for longer than this.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The target's word that the channel is the source's.
const TAKEN: u8 = b'+';

/// rustls reads 4 KiB at a time: from here, not each from the kernel.
type Connection = TlsStream<BufReader<TcpStream>>;
/// A channel whose ends have met: what is between the hosts, and what is QEMU's.
type Met = (Connection, UnixStream);

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Memory,
    Disk,
}

impl Channel {
    /// How it is named to the other end.
    const fn byte(self) -> u8 {
        match self {
            Self::Memory => b'm',
            Self::Disk => b'd',
        }
    }

    const fn of(byte: u8) -> Option<Self> {
        match byte {
            b'm' => Some(Self::Memory),
            b'd' => Some(Self::Disk),
            _ => None,
        }
    }
}

/// Runs one end of a tunnel until its channels have ended: the body of the hidden verb
/// `plimsoll vm-tunnel --directory DIR`. Call it before any thread is made.
///
/// # Errors
/// [`TunnelError`]; QEMU sees its channels end.
pub fn tunnel_main(directory: &Path) -> Result<(), TunnelError> {
    // Whatever is said to the agent's group of processes is not said to us.
    let _ = nix::unistd::setsid();
    // A core dump would hold the guest's memory and the host's key.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .and_then(|()| nix::sys::prctl::set_no_new_privs())
        .map_err(|errno| TunnelError::Run(errno.into()))?;
    let plan = read_plan(directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(TunnelError::Run)?;
    runtime.block_on(async {
        let ran = timeout(LIFETIME, run(directory, &plan)).await;
        ran.unwrap_or(Err(TunnelError::Late))
    })
}

async fn run(directory: &Path, plan: &Plan) -> Result<(), TunnelError> {
    let met = timeout(MEET_LIMIT, meet(directory, plan)).await;
    let met = met.unwrap_or(Err(TunnelError::Late));
    if matches!(plan.role, Role::Source { .. }) {
        let outcome = match &met {
            Ok(_) => Outcome::Met,
            Err(error) => Outcome::Failed { message: ErrorChain(error).to_string() },
        };
        files::write_json(&directory.join(OUTCOME), &outcome).map_err(TunnelError::Plan)?;
    }
    let mut channels = JoinSet::new();
    for (far, near) in met? {
        channels.spawn(async move {
            if let Err(error) = carry(far, near).await {
                log(&format!("a channel broke: {}", ErrorChain(&error)));
            }
        });
    }
    while channels.join_next().await.is_some() {}
    Ok(())
}

/// A descriptor that the process was started with, taken from its place: QEMU sees the end of a
/// channel only once nobody has it any more.
fn inherited(
    what: &'static str,
    from: impl Fn() -> io::Result<OwnedFd>,
) -> Result<OwnedFd, TunnelError> {
    from().map_err(|source| TunnelError::Inherit { what, source })
}

fn take_stdin() -> io::Result<OwnedFd> {
    let taken = io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(taken)
}

fn take_stdout() -> io::Result<OwnedFd> {
    let taken = io::stdout().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdout(std::fs::File::open("/dev/null")?)?;
    Ok(taken)
}

fn unix(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn listening(descriptor: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(descriptor);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Meets the other end on every channel.
async fn meet(directory: &Path, plan: &Plan) -> Result<Vec<Met>, TunnelError> {
    let inherit = |what| move |source| TunnelError::Inherit { what, source };
    let identity =
        Identity { certificate_pem: plan.certificate_pem.clone(), key_pem: plan.key_pem.clone() };
    let memory = inherited("memory's channel", take_stdin)?;
    let memory = unix(memory).map_err(inherit("memory's channel"))?;
    let second = inherited("second channel", take_stdout)?;
    match &plan.role {
        Role::Source { address, port } => {
            let config = tls::client_config(&plan.ca_pem, Some(&identity));
            let connector = TlsConnector::from(Arc::new(config.map_err(TunnelError::Tls)?));
            let far = FarEnd { connector, address, port: *port, peer: plan.peer };
            let mut met = vec![(far.connect(Channel::Memory).await?, memory)];
            if plan.disk {
                let near = unix(second).map_err(inherit("disk's channel"))?;
                met.push((far.connect(Channel::Disk).await?, near));
            }
            Ok(met)
        }
        Role::Target => {
            let listener = listening(second).map_err(inherit("listening socket"))?;
            accept(directory, plan, &identity, &listener, memory).await
        }
    }
}

struct FarEnd<'a> {
    connector: TlsConnector,
    address: &'a str,
    port: u16,
    peer: HostId,
}

impl FarEnd<'_> {
    async fn connect(&self, channel: Channel) -> Result<Connection, TunnelError> {
        let connect = async {
            let stream = TcpStream::connect((self.address, self.port)).await?;
            prepare(&stream);
            // The certificate must be that host's, wherever it listens.
            let name = ServerName::try_from(self.peer.to_string()).map_err(io::Error::other)?;
            let stream = BufReader::with_capacity(BUFFER, stream);
            Ok(TlsStream::from(self.connector.connect(name, stream).await?))
        };
        let mut stream = connect.await.map_err(TunnelError::Connect)?;
        let ask = async {
            stream.write_all(&[channel.byte()]).await?;
            stream.flush().await?;
            match stream.read_u8().await? {
                TAKEN => Ok::<(), io::Error>(()),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        };
        // That our certificate is not the one it wants is said here too.
        match ask.await {
            Ok(()) => Ok(stream),
            // In place of what rustls says at length.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(TunnelError::Refused(io::Error::other("it hung up")))
            }
            Err(error) => Err(TunnelError::Refused(error)),
        }
    }
}

/// Lets the other end in, once for each channel.
async fn accept(
    directory: &Path,
    plan: &Plan,
    identity: &Identity,
    listener: &TcpListener,
    memory: UnixStream,
) -> Result<Vec<Met>, TunnelError> {
    let config = tls::server_config(identity, ClientAuth::Certificate(&plan.ca_pem));
    let acceptor = TlsAcceptor::from(Arc::new(config.map_err(TunnelError::Tls)?));
    let mut memory = Some(memory);
    let mut disk = plan.disk.then_some(());
    let mut met = Vec::new();
    let mut greetings = JoinSet::new();
    while memory.is_some() || disk.is_some() {
        let greeted = tokio::select! {
            accepted = listener.accept(), if greetings.len() < HANDSHAKES => {
                match accepted {
                    Ok((stream, from)) => {
                        greetings.spawn(greet(acceptor.clone(), stream, from, plan.peer));
                    }
                    Err(error) => {
                        log(&format!("cannot accept a connection: {error}"));
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
                continue;
            }
            Some(greeted) = greetings.join_next() => greeted,
        };
        let Ok(Some((mut stream, channel, from))) = greeted else { continue };
        let near = match channel {
            Channel::Memory => memory.take(),
            Channel::Disk => match disk.take() {
                Some(()) => Some(connect_disk(directory).await.map_err(TunnelError::Disk)?),
                None => None,
            },
        };
        let Some(near) = near else {
            refused(from, "it has the channel already, or there is none");
            continue;
        };
        let answer = async {
            stream.write_all(&[TAKEN]).await?;
            stream.flush().await
        };
        answer.await.map_err(TunnelError::Connect)?;
        met.push((stream, near));
    }
    Ok(met)
}

async fn connect_disk(directory: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(&SocketPath::new(directory, DISK_SOCKET)?).await
}

/// From a connection to the channel that the right host asks for. `None`: it was refused.
async fn greet(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
    peer: HostId,
) -> Option<(Connection, Channel, SocketAddr)> {
    prepare(&stream);
    let greet = async {
        let stream = acceptor.accept(BufReader::with_capacity(BUFFER, stream)).await?;
        let name = tls::peer_common_name(stream.get_ref().1.peer_certificates());
        if name.as_deref() != Some(peer.to_string().as_str()) {
            return Err(io::Error::other(format!("it is not {peer}")));
        }
        let mut stream = TlsStream::from(stream);
        let byte = stream.read_u8().await?;
        let channel = Channel::of(byte).ok_or_else(|| io::Error::other("it names no channel"))?;
        Ok((stream, channel))
    };
    match timeout(HANDSHAKE_LIMIT, greet).await {
        Ok(Ok((stream, channel))) => Some((stream, channel, from)),
        Ok(Err(error)) => {
            refused(from, &error.to_string());
            None
        }
        Err(_) => {
            refused(from, "it took too long");
            None
        }
    }
}

fn prepare(stream: &TcpStream) {
    let set = stream
        .set_nodelay(true)
        .and_then(|()| Ok(setsockopt(stream, sockopt::KeepAlive, &true)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepIdle, &10)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepInterval, &5)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepCount, &3)?))
        // A host that vanishes while something is on its way to it.
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpUserTimeout, &60_000)?));
    if let Err(error) = set {
        log(&format!("cannot set up the connection: {error}"));
    }
}

fn refused(from: SocketAddr, why: &str) {
    log(&format!("{from} was refused: {why}"));
}

/// Standard error is the VM's log.
fn log(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(io::stderr(), "vm-tunnel: {text}");
}

#[cfg(test)]
mod tests;
