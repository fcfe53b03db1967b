//! The process: it connects what it was given, and carries bytes until all channels have ended.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use plimsoll_api::ErrorChain;
use plimsoll_api::tls::{self, ClientAuth, Identity};
use plimsoll_model::HostId;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{DISK_SOCKET, Plan, Role, TunnelError, read_plan};
use crate::vm::socket::SocketPath;

/// Both ends meet within this.
const MEET_LIMIT: Duration = Duration::from_secs(60);
/// A stranger may hold up a handshake no longer.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Nothing is copied for longer than this.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// What is read at once.
const BUFFER: usize = 512 << 10;

/// What a connection carries: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Memory = b'm' as isize,
    Disk = b'd' as isize,
}

impl Channel {
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
    let plan = read_plan(directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(TunnelError::Run)?;
    let carried = async {
        let carried = timeout(LIFETIME, carry(directory, &plan)).await;
        carried.unwrap_or(Err(TunnelError::Late))
    };
    runtime.block_on(carried)
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

async fn carry(directory: &Path, plan: &Plan) -> Result<(), TunnelError> {
    let identity =
        Identity { certificate_pem: plan.certificate_pem.clone(), key_pem: plan.key_pem.clone() };
    let memory = inherited("memory's channel", take_stdin)?;
    let memory =
        unix(memory).map_err(|source| TunnelError::Inherit { what: "memory's channel", source })?;
    let second = inherited("second channel", take_stdout)?;
    let mut channels = JoinSet::new();
    match &plan.role {
        Role::Source { address, port } => {
            let config = tls::client_config(&plan.ca_pem, Some(&identity));
            let connector = TlsConnector::from(Arc::new(config.map_err(TunnelError::Tls)?));
            let far = FarEnd { connector, address, port: *port, peer: plan.peer };
            let stream = far.connect(Channel::Memory).await?;
            channels.spawn(pump(stream, memory));
            if plan.disk {
                let near = unix(second)
                    .map_err(|source| TunnelError::Inherit { what: "disk's channel", source })?;
                let stream = far.connect(Channel::Disk).await?;
                channels.spawn(pump(stream, near));
            }
        }
        Role::Target => {
            let listener = std::net::TcpListener::from(second);
            let listener = listener
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(listener))
                .map_err(|source| TunnelError::Inherit { what: "listening socket", source })?;
            accept(directory, plan, &identity, &listener, memory, &mut channels).await?;
        }
    }
    while channels.join_next().await.is_some() {}
    Ok(())
}

struct FarEnd<'a> {
    connector: TlsConnector,
    address: &'a str,
    port: u16,
    peer: HostId,
}

impl FarEnd<'_> {
    async fn connect(
        &self,
        channel: Channel,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, TunnelError> {
        let connect = async {
            let stream = TcpStream::connect((self.address, self.port)).await?;
            prepare(&stream);
            // The certificate must be that host's, wherever it listens.
            let name = ServerName::try_from(self.peer.to_string()).map_err(io::Error::other)?;
            let mut stream = self.connector.connect(name, stream).await?;
            stream.write_all(&[channel.byte()]).await?;
            stream.flush().await?;
            Ok(stream)
        };
        let connected = timeout(MEET_LIMIT, connect).await.map_err(|_| TunnelError::Late)?;
        connected.map_err(TunnelError::Connect)
    }
}

/// Lets the other end in, once for each channel.
async fn accept(
    directory: &Path,
    plan: &Plan,
    identity: &Identity,
    listener: &TcpListener,
    memory: UnixStream,
    channels: &mut JoinSet<()>,
) -> Result<(), TunnelError> {
    let config = tls::server_config(identity, ClientAuth::Certificate(&plan.ca_pem));
    let acceptor = TlsAcceptor::from(Arc::new(config.map_err(TunnelError::Tls)?));
    let mut memory = Some(memory);
    let mut disk = plan.disk.then_some(());
    let deadline = Instant::now() + MEET_LIMIT;
    while memory.is_some() || disk.is_some() {
        let accepted = timeout_at(deadline, listener.accept()).await;
        let Ok((stream, from)) = accepted.map_err(|_| TunnelError::Late)? else { continue };
        let greeted = timeout(HANDSHAKE_LIMIT, greet(&acceptor, stream, plan.peer)).await;
        let (stream, channel) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) => {
                refused(from, &error.to_string());
                continue;
            }
            Err(_) => continue,
        };
        match channel {
            Channel::Memory => match memory.take() {
                Some(near) => drop(channels.spawn(pump(stream, near))),
                None => refused(from, "the memory's channel is taken"),
            },
            Channel::Disk => match disk.take() {
                Some(()) => {
                    let near = SocketPath::new(directory, DISK_SOCKET);
                    let near = near.map_err(TunnelError::Connect)?;
                    let near = UnixStream::connect(&near).await.map_err(TunnelError::Connect)?;
                    drop(channels.spawn(pump(stream, near)));
                }
                None => refused(from, "the disk's channel is taken"),
            },
        }
    }
    Ok(())
}

async fn greet(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    peer: HostId,
) -> io::Result<(tokio_rustls::server::TlsStream<TcpStream>, Channel)> {
    prepare(&stream);
    let mut stream = acceptor.accept(stream).await?;
    let name = tls::peer_common_name(stream.get_ref().1.peer_certificates());
    if name.as_deref() != Some(peer.to_string().as_str()) {
        return Err(io::Error::other(format!("it is not {peer}")));
    }
    let byte = stream.read_u8().await?;
    let channel = Channel::of(byte).ok_or_else(|| io::Error::other("it names no channel"))?;
    Ok((stream, channel))
}

fn prepare(stream: &TcpStream) {
    let set = stream
        .set_nodelay(true)
        .and_then(|()| Ok(setsockopt(stream, sockopt::KeepAlive, &true)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepIdle, &10)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepInterval, &5)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepCount, &3)?));
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

/// Carries bytes both ways until both have ended, or one breaks.
async fn pump(far: impl AsyncRead + AsyncWrite, near: UnixStream) {
    tokio::pin!(far);
    let mut near = near;
    let carried =
        tokio::io::copy_bidirectional_with_sizes(&mut far, &mut near, BUFFER, BUFFER).await;
    if let Err(error) = carried {
        log(&format!("a channel broke: {}", ErrorChain(&error)));
    }
}

#[cfg(test)]
mod tests;
