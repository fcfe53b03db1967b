use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::*;
use crate::testing::Authority;

fn pair() -> (UnixStream, UnixStream) {
    let (near, far): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (unix(near).unwrap(), unix(far).unwrap())
}

/// A target's end that waits for `host-1`.
struct Target {
    authority: Authority,
    port: u16,
    memory: UnixStream,
    disk: UnixListener,
    served: JoinHandle<Result<(), TunnelError>>,
    _directory: tempfile::TempDir,
}

fn target() -> Target {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let disk = UnixListener::bind(directory.path().join(DISK_SOCKET)).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let port = listener.local_addr().unwrap().port();
    let identity = authority.identity("host-2");
    let plan = Plan {
        certificate_pem: identity.certificate_pem.clone(),
        key_pem: identity.key_pem.clone(),
        ca_pem: authority.pem.clone(),
        peer: HostId(1),
        role: Role::Target,
        disk: true,
    };
    let (memory, near) = pair();
    let path = directory.path().to_owned();
    let served = tokio::spawn(async move {
        let mut channels = JoinSet::new();
        accept(&path, &plan, &identity, &listener, near, &mut channels).await?;
        while channels.join_next().await.is_some() {}
        Ok(())
    });
    Target { authority, port, memory, disk, served, _directory: directory }
}

impl Target {
    fn far(&self, identity: &str) -> FarEnd<'static> {
        let identity = self.authority.identity(identity);
        let config = tls::client_config(&self.authority.pem, Some(&identity)).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        FarEnd { connector, address: "127.0.0.1", port: self.port, peer: HostId(2) }
    }
}

#[tokio::test]
async fn bytes_and_ends_are_carried_both_ways() {
    let mut target = target();
    let far = target.far("host-1");
    let (mut memory, near) = pair();
    let carried = tokio::spawn(pump(far.connect(Channel::Memory).await.unwrap(), near));
    let (disk, near) = pair();
    let disk_carried = tokio::spawn(pump(far.connect(Channel::Disk).await.unwrap(), near));
    let (mut export, _) = target.disk.accept().await.unwrap();

    let sent: Vec<u8> =
        (0..20_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = sent.clone();
    let send = tokio::spawn(async move {
        memory.write_all(&sent).await.unwrap();
        // Half of it ends: the other half goes on.
        memory.shutdown().await.unwrap();
        let mut answer = Vec::new();
        memory.read_to_end(&mut answer).await.unwrap();
        answer
    });
    let mut received = Vec::new();
    target.memory.read_to_end(&mut received).await.unwrap();
    assert!(received == expected, "{} bytes came of {}", received.len(), expected.len());
    target.memory.write_all(b"all there").await.unwrap();
    target.memory.shutdown().await.unwrap();
    assert_eq!(send.await.unwrap(), b"all there");
    carried.await.unwrap();

    export.write_all(b"NBD").await.unwrap();
    let mut greeting = [0; 3];
    let mut disk = disk;
    disk.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"NBD");
    // The death of one side is the end of the other.
    drop(disk);
    let mut rest = Vec::new();
    export.read_to_end(&mut rest).await.unwrap();
    drop(export);
    disk_carried.await.unwrap();
    target.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn only_the_right_host_is_let_in_and_each_channel_once() {
    let target = target();
    // Another host of the cluster: the handshake succeeds, and the connection ends.
    let mut stranger = target.far("host-3").connect(Channel::Memory).await.unwrap();
    assert!(!matches!(stranger.read(&mut [0; 1]).await, Ok(1..)));
    // Somebody of another cluster does not get that far.
    let other = Authority::new();
    let config =
        tls::client_config(&target.authority.pem, Some(&other.identity("host-1"))).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let far = FarEnd { connector, address: "127.0.0.1", port: target.port, peer: HostId(2) };
    if let Ok(mut stream) = far.connect(Channel::Memory).await {
        assert!(!matches!(stream.read(&mut [0; 1]).await, Ok(1..)));
    }
    // A target that is not the one that was named.
    let far = FarEnd { peer: HostId(9), ..target.far("host-1") };
    assert!(matches!(far.connect(Channel::Memory).await, Err(TunnelError::Connect(_))));

    let far = target.far("host-1");
    let _first = far.connect(Channel::Memory).await.unwrap();
    let mut second = far.connect(Channel::Memory).await.unwrap();
    assert!(!matches!(second.read(&mut [0; 1]).await, Ok(1..)), "it is taken");
    assert!(!target.served.is_finished(), "the disk's is still waited for");
}
