//! One QEMU with the tiny image, and the host's side of its port.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and explains itself on its output"
)]

use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use plimsoll_api::guest::{
    Answer, Call, Event, ExecRequest, ExecResult, Greeting, GuestMessage, HostMessage, Outcome,
    PORT_NAME, Request, decode_line, encode_line,
};

/// The address that the seed gives the guest.
pub(crate) const ADDRESS: &str = "10.0.2.15/24";
/// What the seed's user data writes to, on the data disk.
pub(crate) const USER_DATA_LOG: &str = "/data/user-data-ran";
/// Longest wait for anything: TCG on a busy machine boots in a multiple of its two seconds.
const LIMIT: Duration = Duration::from_secs(90);
const MAC: &str = "52:54:00:12:34:56";

/// Whether the tests can run; says it loudly if not.
pub(crate) fn qemu_is_there() -> bool {
    let found = ["qemu-system-x86_64", "qemu-img"].into_iter().all(|program| {
        Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
    });
    if !found {
        // A proof that proved nothing must not look like one.
        assert!(std::env::var_os("CI").is_none(), "no real VMs without QEMU");
        println!("SKIPPED: qemu-system-x86_64 or qemu-img is missing");
    }
    found
}

/// The tiny image with this source's agent; built once for each test process.
fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        // Its own directory: the tests of others may run from the usual one.
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny");
        let status = Command::new(repository.join("images/build"))
            .args(["tiny", "--out"])
            .arg(&out)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "images/build tiny failed");
        out
    })
}

/// An overlay on the image's disk and a seed, in a directory that lives as long as this.
pub(crate) struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let status = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(image().join("disk.qcow2"))
            .arg(directory.path().join("disk.qcow2"))
            .arg("256M")
            .status()
            .unwrap();
        assert!(status.success());
        let seed = directory.path().join("seed.img");
        write_seed(&seed);
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn write_seed(path: &Path) {
    let mut file = std::fs::File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(true)
        .open(path)
        .unwrap();
    file.set_len(2 << 20).unwrap();
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     ");
    fatfs::format_volume(&mut file, options).unwrap();
    file.rewind().unwrap();
    let file_system = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap();
    let environment = format!(
        "HOSTNAME=tiny-e2e\nINSTANCE_ID=vm-1\nNIC0_MAC={MAC}\nNIC0_ADDRESS={ADDRESS}\n\
         NIC0_GATEWAY=10.0.2.2\nNIC0_DNS=\nNIC0_MTU=1400\nBAD=$(poweroff)\n../BAD=1\n"
    );
    let user_data = format!("#!/bin/sh\necho done >>{USER_DATA_LOG}\n");
    for (name, text) in [("plimsoll.env", environment), ("user-data", user_data)] {
        file_system.root_dir().create_file(name).unwrap().write_all(text.as_bytes()).unwrap();
    }
}

pub(crate) fn exec_call(argv: &[&str], timeout: Duration) -> Call {
    Call::Exec(ExecRequest {
        argv: argv.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        stdin: Vec::new(),
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap(),
        max_output_bytes: 64 << 10,
    })
}

/// A running guest; killed when dropped.
pub(crate) struct Guest {
    qemu: Child,
    port: Option<BufReader<UnixStream>>,
    sockets: [PathBuf; 2],
    console: PathBuf,
    next_id: u64,
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = std::fs::read(&self.console).unwrap_or_default();
            println!("--- console\n{}", String::from_utf8_lossy(&console));
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Guest {
    pub(crate) fn boot(disk: &Disk) -> Self {
        let manifest = std::fs::read_to_string(image().join("image.toml")).unwrap();
        let append = manifest.lines().find_map(|line| line.strip_prefix("append = \"")).unwrap();
        let (port, qmp, console) = (disk.path("port"), disk.path("qmp"), disk.path("console"));
        for socket in [&port, &qmp] {
            let _ = std::fs::remove_file(socket);
        }
        let show = |path: &Path| path.display().to_string();
        let log = std::fs::File::create(disk.path("qemu.log")).unwrap();
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-nodefaults"])
            .args(["-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-smp", "1,maxcpus=4", "-m", "128M,slots=4,maxmem=1G"])
            .args(["-kernel", &show(&image().join("vmlinuz"))])
            .args(["-initrd", &show(&image().join("initrd.img"))])
            .args(["-append", append.trim_end_matches('"')])
            .args(["-serial", &format!("file:{}", show(&console))])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", show(&qmp))])
            .args(["-drive", &format!("file={},if=none,id=disk", show(&disk.path("disk.qcow2")))])
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .args([
                "-drive",
                &format!(
                    "file={},if=none,id=seed,format=raw,readonly=on",
                    show(&disk.path("seed.img"))
                ),
            ])
            .args(["-device", "virtio-blk-pci,drive=seed"])
            .args(["-netdev", "user,id=net,restrict=on"])
            .args(["-device", &format!("virtio-net-pci,netdev=net,mac={MAC}")])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=guest,path={},server=on,wait=off", show(&port))])
            .args(["-device", &format!("virtserialport,chardev=guest,name={PORT_NAME}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut guest = Self { qemu, port: None, sockets: [port, qmp], console, next_id: 1 };
        guest.connect();
        guest
    }

    /// Opens the port, as a host that has just started does.
    pub(crate) fn connect(&mut self) {
        let stream = self.open(0);
        self.port = Some(BufReader::new(stream));
    }

    pub(crate) fn hang_up(&mut self) {
        self.port = None;
    }

    fn open(&mut self, socket: usize) -> UnixStream {
        let limit = Instant::now() + LIMIT;
        loop {
            if let Ok(stream) = UnixStream::connect(&self.sockets[socket]) {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                return stream;
            }
            assert!(self.qemu.try_wait().unwrap().is_none(), "QEMU ended");
            assert!(Instant::now() < limit, "no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn receive(&mut self) -> GuestMessage {
        let port = self.port.as_mut().unwrap();
        loop {
            let mut line = Vec::new();
            port.read_until(b'\n', &mut line).unwrap();
            assert!(!line.is_empty(), "QEMU hung up");
            if line != b"\n" {
                return decode_line(&line).unwrap();
            }
        }
    }

    /// Waits for the agent's greeting.
    pub(crate) fn ready(&mut self) -> Greeting {
        loop {
            if let GuestMessage::Event(Event::Ready(greeting)) = self.receive() {
                return greeting;
            }
        }
    }

    pub(crate) fn send(&mut self, call: Call) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let line = encode_line(&HostMessage::Request(Request { id, call })).unwrap();
        self.port.as_mut().unwrap().get_mut().write_all(&line).unwrap();
        id
    }

    pub(crate) fn request(&mut self, call: Call) -> Outcome {
        let id = self.send(call);
        loop {
            if let GuestMessage::Reply(reply) = self.receive()
                && reply.id == id
            {
                return reply.outcome;
            }
        }
    }

    pub(crate) fn ask(&mut self, call: Call) -> Answer {
        match self.request(call) {
            Outcome::Done(answer) => answer,
            Outcome::Failed(failure) => panic!("{failure:?}"),
        }
    }

    pub(crate) fn exec(&mut self, argv: &[&str], timeout: Duration) -> ExecResult {
        match self.ask(exec_call(argv, timeout)) {
            Answer::Exec(result) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Standard output of a shell command.
    pub(crate) fn shell(&mut self, script: &str) -> String {
        let result = self.exec(&["sh", "-c", script], LIMIT);
        String::from_utf8(result.stdout).unwrap()
    }

    /// Repeats a shell command until it prints what is expected.
    pub(crate) fn wait_for_shell(&mut self, script: &str, expected: &str) {
        let limit = Instant::now() + LIMIT;
        loop {
            let output = self.shell(script);
            if output.trim() == expected {
                return;
            }
            assert!(Instant::now() < limit, "{script} prints {output}, not {expected}");
        }
    }

    pub(crate) fn wait_for_console(&self, text: &str) {
        let limit = Instant::now() + LIMIT;
        while !String::from_utf8_lossy(&std::fs::read(&self.console).unwrap()).contains(text) {
            assert!(Instant::now() < limit, "the console does not say {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends one command to QEMU's monitor and waits for its answer.
    pub(crate) fn qmp(&mut self, command: &str) {
        let mut stream = self.open(1);
        for command in [r#"{"execute":"qmp_capabilities"}"#, command] {
            stream.write_all(command.as_bytes()).unwrap();
            let mut answer = String::new();
            while !answer.contains("\"return\"") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                answer.push(char::from(byte[0]));
                assert!(!answer.contains("\"error\""), "{answer}");
            }
        }
    }

    pub(crate) fn wait_for_exit(&mut self) {
        self.port = None;
        let limit = Instant::now() + LIMIT;
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < limit, "the guest does not go down");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
