//! Namespaces and guests for the tests of networks.

use std::{
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

type Task = Box<dyn FnOnce() + Send>;

/// A network namespace, kept by a thread that lives in it. It ends with this value.
pub(super) struct Namespace {
    tasks: Option<mpsc::Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    path: String,
}

impl Namespace {
    /// `None` (said loudly) where this user may not make namespaces.
    pub(super) fn new() -> Option<Self> {
        let (tasks, queue) = mpsc::channel::<Task>();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let entered = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            let thread = nix::unistd::gettid();
            ready.send(entered.map(|()| thread)).unwrap();
            while let Ok(task) = queue.recv() {
                task();
            }
        });
        let Ok(id) = is_ready.recv().unwrap() else {
            eprintln!("SKIPPED: needs the right to make network namespaces");
            return None;
        };
        let path = format!("/proc/{}/task/{id}/ns/net", std::process::id());
        let namespace = Self { tasks: Some(tasks), thread: Some(thread), path };
        namespace.ip(&["link set dev lo up"]);
        Some(namespace)
    }

    /// Runs something in the namespace; sockets and devices opened there stay in it.
    pub(super) fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, is_answered) = mpsc::channel();
        let task = move || drop(answer.send(task()));
        self.tasks.as_ref().unwrap().send(Box::new(task)).unwrap();
        is_answered.recv().expect("the task in the namespace panicked")
    }

    pub(super) fn run_async<T: Send + 'static, F: Future<Output = T>>(
        &self,
        task: impl FnOnce() -> F + Send + 'static,
    ) -> T {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(task())
        })
    }

    pub(super) fn ip(&self, commands: &[&str]) {
        let mut input = commands.join("\n");
        input.push('\n');
        let status = self.run(move || {
            let mut child =
                Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait().unwrap()
        });
        assert!(status.success(), "{commands:?}");
    }

    /// A cable between two namespaces, with an address at each end.
    pub(super) fn connect(&self, other: &Self, own: &str, others: &str) {
        let Self { path, .. } = other;
        self.ip(&[
            &format!("link add name wire type veth peer name wire netns {path}"),
            &format!("address add {own} dev wire"),
            "link set dev wire up",
        ]);
        other.ip(&[&format!("address add {others} dev wire"), "link set dev wire up"]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.tasks.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A guest: a namespace whose `eth0` is connected to a tap of a host.
pub(super) struct Guest {
    namespace: Namespace,
    number: u8,
    stop: Arc<AtomicBool>,
    cables: Vec<JoinHandle<()>>,
}

impl Guest {
    pub(super) fn start(host: &Namespace, wanted: NicWanted) -> Self {
        let NicWanted { mac, address, .. } = wanted;
        let [a, b, c, number] = address.octets();
        let tap = host.run_async(async move || {
            let fabric = Fabric::prepare(None).await;
            open_tap(&fabric.ensure_nic(&wanted).await.unwrap().tap).unwrap()
        });
        let namespace = Namespace::new().expect("one could be made before");
        namespace.ip(&[
            "tuntap add dev eth0 mode tap vnet_hdr",
            &format!("link set dev eth0 address {mac} mtu {DEFAULT_MTU}"),
            &format!("address add {address}/24 dev eth0"),
        ]);
        let eth0 = namespace.run(|| open_tap("eth0")).unwrap();
        namespace.ip(&["link set dev eth0 up", &format!("route add default via {a}.{b}.{c}.1")]);
        let stop = Arc::new(AtomicBool::new(false));
        let ends = |end: &OwnedFd| std::fs::File::from(end.try_clone().unwrap());
        let cables = vec![
            cable(ends(&tap), ends(&eth0), Arc::clone(&stop)),
            cable(ends(&eth0), ends(&tap), Arc::clone(&stop)),
        ];
        Self { namespace, number, stop, cables }
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Changes the guest's own settings; `{n}` is the last part of its address.
    pub(super) fn set(&self, commands: &[&str]) {
        let commands: Vec<String> =
            commands.iter().map(|text| text.replace("{n}", &self.number.to_string())).collect();
        self.namespace.ip(&commands.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for cable in self.cables.drain(..) {
            let _ = cable.join();
        }
    }
}

/// Copies frames, each with the header that both taps put before it.
fn cable(mut from: std::fs::File, mut to: std::fs::File, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut frame = vec![0; 70_000];
        while !stop.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut ready, PollTimeout::from(50u16)), Ok(1..)) {
                continue;
            }
            // A device that is down loses what it is given, as a real one does.
            if let Ok(count) = from.read(&mut frame) {
                let _ = to.write(&frame[..count]);
            }
        }
    })
}
