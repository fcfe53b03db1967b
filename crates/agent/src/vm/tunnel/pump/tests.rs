use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
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
    met: JoinHandle<Result<Vec<Met>, TunnelError>>,
    _directory: tempfile::TempDir,
}

fn target(has_disk: bool) -> Target {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let disk = UnixListener::bind(directory.path().join(DISK_SOCKET)).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = listening(listener.into()).unwrap();
    let identity = authority.identity("host-2");
    let plan = Plan {
        certificate_pem: identity.certificate_pem.clone(),
        key_pem: identity.key_pem.clone(),
        ca_pem: authority.pem.clone(),
        peer: HostId(1),
        role: Role::Target,
        disk: has_disk,
    };
    let (memory, near) = pair();
    let path = directory.path().to_owned();
    let met = tokio::spawn(async move { accept(&path, &plan, &identity, &listener, near).await });
    Target { authority, port, memory, disk, met, _directory: directory }
}

impl Target {
    fn far(&self, name: &str) -> FarEnd<'static> {
        self.far_of(&self.authority, name)
    }

    fn far_of(&self, authority: &Authority, name: &str) -> FarEnd<'static> {
        let identity = authority.identity(name);
        let config = tls::client_config(&self.authority.pem, Some(&identity)).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        FarEnd { connector, address: "127.0.0.1", port: self.port, peer: HostId(2) }
    }
}

fn refusal(connected: &Result<Connection, TunnelError>) {
    assert!(matches!(connected, Err(TunnelError::Refused(_))), "{connected:?}");
}

/// Sends much, in pieces of all sizes, then ends; gives what came back.
async fn send(mut stream: UnixStream, bytes: Vec<u8>) -> Vec<u8> {
    let mut rest = bytes.as_slice();
    let mut size = 1;
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(size.min(rest.len()));
        stream.write_all(piece).await.unwrap();
        rest = more;
        size = (size * 3) % 1_000_003;
    }
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut random);
    random
}

#[tokio::test]
async fn bytes_and_ends_are_carried_both_ways() {
    let mut target = target(true);
    let far = target.far("host-1");
    let (memory, near) = pair();
    let carried = tokio::spawn(carry(far.connect(Channel::Memory).await.unwrap(), near));
    let (mut disk, near) = pair();
    let disk_carried = tokio::spawn(carry(far.connect(Channel::Disk).await.unwrap(), near));
    let (mut export, _) = target.disk.accept().await.unwrap();
    let met = target.met.await.unwrap().unwrap();
    let there: Vec<_> = met.into_iter().map(|(far, near)| tokio::spawn(carry(far, near))).collect();

    // Both ways at once, and each way's end is seen while the other goes on.
    let (out, back) = (random(1, 20_000_000), random(2, 15_000_000));
    let sent = tokio::spawn(send(memory, out.clone()));
    let (mut reader, mut writer) = target.memory.split();
    let answer = back.clone();
    let (received, ()) = tokio::join!(
        async {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).await.unwrap();
            received
        },
        async { writer.write_all(&answer).await.unwrap() }
    );
    assert!(received == out, "{} bytes came of {}", received.len(), out.len());
    writer.write_all(b"all there").await.unwrap();
    writer.shutdown().await.unwrap();
    let came_back = sent.await.unwrap();
    assert!(came_back == [&back, &b"all there"[..]].concat());
    carried.await.unwrap().unwrap();

    // A server speaks first.
    export.write_all(b"NBD").await.unwrap();
    let mut greeting = [0; 3];
    disk.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"NBD");
    // The death of one side is the end of the other.
    drop(disk);
    let mut rest = Vec::new();
    export.read_to_end(&mut rest).await.unwrap();
    drop(export);
    disk_carried.await.unwrap().unwrap();
    for end in there {
        end.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn only_the_right_host_is_let_in() {
    let target = target(true);
    // Another host of the cluster, and the manager.
    for name in ["host-3", "manager", "host-11"] {
        refusal(&target.far(name).connect(Channel::Memory).await);
    }
    // Somebody of another cluster, by the right name.
    refusal(&target.far_of(&Authority::new(), "host-1").connect(Channel::Memory).await);
    // A target that is not the one that was named.
    let far = FarEnd { peer: HostId(9), ..target.far("host-1") };
    assert!(matches!(far.connect(Channel::Memory).await, Err(TunnelError::Connect(_))));
    // The right one is let in all the same.
    target.far("host-1").connect(Channel::Memory).await.unwrap();
    assert!(!target.met.is_finished(), "the disk's is still waited for");
}

#[tokio::test]
async fn each_channel_is_given_once() {
    let with_disk = target(true);
    let far = with_disk.far("host-1");
    let _first = far.connect(Channel::Memory).await.unwrap();
    refusal(&far.connect(Channel::Memory).await);
    assert!(!with_disk.met.is_finished());

    // A channel that there is not, and a word that is none.
    let without = target(false);
    let far = without.far("host-1");
    refusal(&far.connect(Channel::Disk).await);
    let stream = TcpStream::connect(("127.0.0.1", without.port)).await.unwrap();
    let stream = BufReader::with_capacity(BUFFER, stream);
    let name = ServerName::try_from("host-2").unwrap();
    let mut stream = far.connector.connect(name, stream).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert!(!matches!(stream.read(&mut [0; 1]).await, Ok(1..)));
    let _memory = far.connect(Channel::Memory).await.unwrap();
    assert_eq!(without.met.await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn who_says_nothing_holds_nobody_up() {
    let target = target(false);
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES - 1 {
        silent.push(TcpStream::connect(("127.0.0.1", target.port)).await.unwrap());
    }
    // Well before the silent ones' time is over.
    let far = target.far("host-1");
    timeout(HANDSHAKE_LIMIT / 2, far.connect(Channel::Memory)).await.unwrap().unwrap();
    assert_eq!(target.met.await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn a_disk_without_its_server_ends_the_tunnel() {
    let mut target = target(true);
    let far = target.far("host-1");
    drop(target.disk);
    refusal(&far.connect(Channel::Disk).await);
    assert!(matches!(target.met.await.unwrap(), Err(TunnelError::Disk(_))));
    // QEMU sees it.
    assert_eq!(target.memory.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_far_end_that_dies_ends_this_one() {
    let mut target = target(false);
    let far = target.far("host-1").connect(Channel::Memory).await.unwrap();
    let (there, near) = target.met.await.unwrap().unwrap().remove(0);
    let carried = tokio::spawn(carry(there, near));
    // Without a word: as when its process is killed.
    drop(far);
    assert_eq!(target.memory.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert!(carried.await.unwrap().is_err());
}
