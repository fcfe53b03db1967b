use super::*;
use plimsoll_api::guest::{CpuCounts, Reply};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixListener;

const LIMIT: Duration = Duration::from_secs(5);

fn greeting() -> Greeting {
    Greeting { protocol: 1, agent_version: "1".into(), boot_id: "b".into() }
}

/// A guest's end of the port.
struct FakeGuest {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl FakeGuest {
    async fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::new(reader), writer }
    }

    async fn request(&mut self) -> Request {
        loop {
            let mut line = String::new();
            let count = timeout(LIMIT, self.reader.read_line(&mut line)).await.unwrap().unwrap();
            assert!(count > 0, "the host hung up");
            if line.trim().is_empty() {
                continue;
            }
            let HostMessage::Request(request) = decode_line(line.trim_end().as_bytes()).unwrap();
            return request;
        }
    }

    async fn send(&mut self, message: GuestMessage) {
        self.writer.write_all(&encode_line(&message).unwrap()).await.unwrap();
    }

    async fn answer(&mut self, id: u64, answer: Answer) {
        let outcome = Outcome::Done(answer);
        self.send(GuestMessage::Reply(Reply { id, outcome })).await;
    }

    async fn greet(&mut self) {
        let hello = self.request().await;
        assert_eq!(hello.call, Call::Hello { protocol: PROTOCOL });
        self.answer(hello.id, Answer::Hello(greeting())).await;
    }
}

fn fixture() -> (tempfile::TempDir, UnixListener, GuestChannel) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join(name::GUEST_SOCKET)).unwrap();
    let channel = GuestChannel::open(VmDirectory::new(directory.path().to_owned()));
    (directory, listener, channel)
}

async fn until_speaking(channel: &GuestChannel) {
    let mut status = channel.status();
    let speaking = status.wait_for(|status| *status != GuestStatus::Silent);
    timeout(LIMIT, speaking).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_guest_that_is_about_to_speak_is_waited_for() {
    let (_directory, listener, channel) = fixture();
    let greet = async {
        sleep(Duration::from_millis(100)).await;
        let mut guest = FakeGuest::accept(&listener).await;
        guest.greet().await;
        guest
    };
    let (_guest, ()) = tokio::join!(greet, channel.first_word(LIMIT));
    assert!(channel.is_speaking());
}

#[tokio::test]
async fn a_guest_that_was_silent_for_long_is_not_waited_for() {
    let (_directory, _listener, channel) = fixture();
    let within = Duration::from_millis(200);
    let began = Instant::now();
    channel.first_word(within).await;
    assert!(began.elapsed() >= within - Duration::from_millis(50));
    // Its time is over: this returns at once, or the test ends here.
    timeout(Duration::ZERO, channel.first_word(within)).await.unwrap();
    assert!(!channel.is_speaking());
}

#[tokio::test]
async fn calls_are_answered_out_of_order_and_after_a_reconnect() {
    let (_directory, listener, channel) = fixture();
    assert!(matches!(channel.call(Call::Facts, LIMIT).await, Err(GuestCallError::Silent)));
    let mut guest = FakeGuest::accept(&listener).await;
    guest.greet().await;
    until_speaking(&channel).await;
    let answers = async {
        let (first, second) = (guest.request().await, guest.request().await);
        for request in [second, first] {
            let Call::SetOnlineCpus { count } = request.call else { panic!("asked for CPUs") };
            let answer = Answer::Cpus(CpuCounts { present: 4, online: count });
            guest.answer(request.id, answer).await;
        }
    };
    let (a, b, ()) = tokio::join!(
        channel.call(Call::SetOnlineCpus { count: 2 }, LIMIT),
        channel.call(Call::SetOnlineCpus { count: 3 }, LIMIT),
        answers
    );
    assert_eq!(a.unwrap(), Answer::Cpus(CpuCounts { present: 4, online: 2 }));
    assert_eq!(b.unwrap(), Answer::Cpus(CpuCounts { present: 4, online: 3 }));

    drop(guest);
    let mut guest = FakeGuest::accept(&listener).await;
    guest.greet().await;
    until_speaking(&channel).await;
}

#[tokio::test]
async fn a_hanging_call_times_out_and_a_restarted_guest_breaks_it() {
    let (_directory, listener, channel) = fixture();
    let mut guest = FakeGuest::accept(&listener).await;
    guest.greet().await;
    until_speaking(&channel).await;
    let limit = Duration::from_millis(50);
    let late = channel.call(Call::Facts, limit).await;
    assert!(matches!(late, Err(GuestCallError::Timeout { .. })));
    guest.request().await;
    let restart = async {
        guest.request().await;
        guest.send(GuestMessage::Event(Event::Ready(greeting()))).await;
        guest.greet().await;
    };
    let (broken, ()) = tokio::join!(channel.call(Call::Facts, LIMIT), restart);
    assert!(matches!(broken, Err(GuestCallError::Broken)), "{broken:?}");
}

#[tokio::test]
async fn nonsense_ends_the_connection_but_a_little_of_it_does_not() {
    let (_directory, listener, channel) = fixture();
    let mut guest = FakeGuest::accept(&listener).await;
    guest.writer.write_all(b"half a line\n\xff\xfe\n{}\n").await.unwrap();
    guest.greet().await;
    until_speaking(&channel).await;
    drop(guest.writer.write_all(&b"nonsense\n".repeat(1000)).await);
    let mut status = channel.status();
    let silent = status.wait_for(|status| *status == GuestStatus::Silent);
    timeout(LIMIT, silent).await.unwrap().unwrap();
}
