//! Looks at a lab from outside, all the time: which QEMU runs where, by the kernel's word alone.
//!
//! A thread reads `/proc` some twenty times a second. A QEMU is known by the VM's uuid in its
//! arguments, and its host by the network namespace in which it runs; neither the manager nor an
//! agent is asked. It notes when each was seen first and last, when each host's copy of a guest's
//! console grew, and every instant at which two QEMUs of one VM lived, two VMs of a group shared a
//! host, or a host held more memory than it has.

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::lab::Lab;

const PERIOD: Duration = Duration::from_millis(40);
/// What a VM costs its host beside its own memory, as the lab's settings have it.
const OVERHEAD_MIB: u64 = 96;

/// A QEMU as the kernel had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// As the manager writes it: `vm-` and the uuid.
    pub(crate) vm: String,
    pub(crate) host: String,
    pub(crate) pid: i32,
    started: u64,
    memory_mib: u64,
    pub(crate) first: Instant,
    /// Then it was still there.
    pub(crate) last: Instant,
}

/// A guest's console grew on a host.
#[derive(Clone, Debug)]
pub(crate) struct Wrote {
    pub(crate) host: String,
    pub(crate) at: Instant,
}

#[derive(Default)]
struct Seen {
    runs: Vec<Run>,
    /// Those of the last look.
    alive: Vec<Run>,
    looks: u64,
    violations: Vec<String>,
    /// VMs move: a second QEMU waits for what the first one sends.
    moves: bool,
    /// Which VMs must not share a host.
    groups: BTreeMap<String, String>,
    consoles: BTreeMap<(String, String), u64>,
    wrote: BTreeMap<String, Vec<Wrote>>,
}

/// The thread that looks. It ends when this is dropped.
pub(crate) struct Observer {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Begins to look at a lab whose hosts hold so much memory each.
    pub(crate) fn start(lab: &Lab, memory_mib: u64) -> Self {
        let status = lab.status();
        let name = status["name"].as_str().unwrap();
        let hosts: Vec<String> = status["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|part| part["name"].as_str().unwrap().to_owned())
            .filter(|part| part != "manager")
            .collect();
        let namespaces = hosts
            .iter()
            .map(|host| {
                let path = format!("/run/netns/plimsoll-{name}-{host}");
                let file = std::fs::metadata(path).unwrap();
                ((file.dev(), file.ino()), host.clone())
            })
            .collect();
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let mut look = Look {
            namespaces,
            directory: lab.directory(),
            hosts,
            others: HashMap::new(),
            memory_mib,
        };
        let (inner, ended) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let began = Instant::now();
                let alive = look.qemus();
                look.note(&mut inner.lock().unwrap(), alive);
                std::thread::sleep(PERIOD.saturating_sub(began.elapsed()));
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// From now on a VM may have a QEMU on its source and one on its target.
    pub(crate) fn expect_moves(&self) {
        self.seen.lock().unwrap().moves = true;
    }

    /// From now on the members of a group must not share a host.
    pub(crate) fn keep_apart(&self, vm: &str, group: &str) {
        self.seen.lock().unwrap().groups.insert(vm.to_owned(), group.to_owned());
    }

    /// The QEMUs that live, after a look that began after this call.
    pub(crate) fn alive(&self) -> Vec<Run> {
        let before = self.seen.lock().unwrap().looks;
        loop {
            let seen = self.seen.lock().unwrap();
            if seen.looks >= before + 2 {
                return seen.alive.clone();
            }
            drop(seen);
            std::thread::sleep(PERIOD / 4);
        }
    }

    /// The one QEMU of a VM.
    #[track_caller]
    pub(crate) fn qemu(&self, vm: &str) -> Option<Run> {
        let mut found: Vec<_> = self.alive().into_iter().filter(|run| run.vm == vm).collect();
        assert!(found.len() <= 1, "twice: {found:?}");
        found.pop()
    }

    /// Every QEMU that a VM has had, in the order in which they were seen.
    pub(crate) fn runs(&self, vm: &str) -> Vec<Run> {
        let seen = self.seen.lock().unwrap();
        seen.runs.iter().filter(|run| run.vm == vm).cloned().collect()
    }

    /// Every QEMU that was ever seen.
    pub(crate) fn all_runs(&self) -> Vec<Run> {
        self.seen.lock().unwrap().runs.clone()
    }

    /// When a VM's guest wrote to its console, and on which host that was.
    pub(crate) fn wrote(&self, vm: &str) -> Vec<Wrote> {
        self.seen.lock().unwrap().wrote.get(vm).cloned().unwrap_or_default()
    }

    /// How often it has looked.
    pub(crate) fn looks(&self) -> u64 {
        self.seen.lock().unwrap().looks
    }

    /// Fails if anything was ever seen that must never be.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let seen = self.seen.lock().unwrap();
        assert!(seen.violations.is_empty(), "{}", seen.violations.join("\n"));
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the observer has died");
        }
    }
}

struct Look {
    namespaces: BTreeMap<(u64, u64), String>,
    directory: PathBuf,
    hosts: Vec<String>,
    /// Processes that are none of ours, and when to look at them again: a number is given anew
    /// some day.
    others: HashMap<i32, Instant>,
    memory_mib: u64,
}

impl Look {
    fn qemus(&mut self) -> Vec<Run> {
        let now = Instant::now();
        self.others.retain(|_, until| *until > now);
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if self.others.contains_key(&pid) {
                continue;
            }
            let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let program = String::from_utf8_lossy(arguments.first().copied().unwrap_or_default());
            if program.contains("qemu-system-") {
                found.extend(self.qemu(pid, &arguments, now));
            } else if !program.contains("plimsoll") && !program.is_empty() {
                // Only a guard becomes a QEMU. Kernel threads, and processes that begin or end,
                // have no arguments.
                self.others.insert(pid, now + Duration::from_secs(1));
            }
        }
        found
    }

    fn qemu(&self, pid: i32, arguments: &[&[u8]], now: Instant) -> Option<Run> {
        let after = |name: &[u8]| {
            let place = arguments.iter().position(|argument| *argument == name)?;
            std::str::from_utf8(arguments.get(place + 1)?).ok()
        };
        let uuid = after(b"-uuid")?;
        let memory = after(b"-m")?.strip_prefix("size=")?.split('k').next()?;
        let namespace = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
        let host = self.namespaces.get(&(namespace.dev(), namespace.ino()))?;
        Some(Run {
            vm: format!("vm-{}", uuid.replace('-', "")),
            host: host.clone(),
            pid,
            started: started(pid)?,
            memory_mib: memory.parse::<u64>().ok()? / 1024,
            first: now,
            last: now,
        })
    }

    fn note(&self, seen: &mut Seen, alive: Vec<Run>) {
        for run in &alive {
            let known = seen
                .runs
                .iter_mut()
                .rev()
                .find(|old| (old.pid, old.started) == (run.pid, run.started));
            match known {
                Some(old) => old.last = run.last,
                None => seen.runs.push(run.clone()),
            }
        }
        for (index, one) in alive.iter().enumerate() {
            for other in &alive[index + 1..] {
                let group = seen.groups.get(&one.vm);
                let what = if one.vm == other.vm {
                    if seen.moves && one.host != other.host {
                        continue;
                    }
                    "two QEMUs of one VM"
                } else if group.is_some()
                    && group == seen.groups.get(&other.vm)
                    && one.host == other.host
                {
                    "two VMs that are to be apart on one host"
                } else {
                    continue;
                };
                // They were read one after the other: what lives still has lived together.
                if lives(one) && lives(other) {
                    seen.violations.push(format!("{what}: {one:?} and {other:?}"));
                }
            }
        }
        for host in &self.hosts {
            let here: Vec<&Run> = alive.iter().filter(|run| run.host == *host).collect();
            let sum: u64 = here.iter().map(|run| run.memory_mib + OVERHEAD_MIB).sum();
            if sum > self.memory_mib && here.iter().all(|run| lives(run)) {
                seen.violations.push(format!("{host} holds {sum} MiB: {here:?}"));
            }
            self.note_consoles(seen, host);
        }
        seen.alive = alive;
        seen.looks += 1;
    }

    fn note_consoles(&self, seen: &mut Seen, host: &str) {
        let path = self.directory.join("hosts").join(host).join("vms");
        let Ok(entries) = std::fs::read_dir(path) else { return };
        for entry in entries.filter_map(Result::ok) {
            let vm = entry.file_name().to_string_lossy().into_owned();
            let Ok(log) = std::fs::metadata(entry.path().join("console.log")) else { continue };
            let before = seen.consoles.insert((host.to_owned(), vm.clone()), log.len());
            if log.len() > before.unwrap_or(0) {
                let wrote = Wrote { host: host.to_owned(), at: Instant::now() };
                seen.wrote.entry(vm).or_default().push(wrote);
            }
        }
    }
}

fn lives(run: &Run) -> bool {
    started(run.pid) == Some(run.started)
}

/// When a process began, in ticks since the boot; none if there is none, or a zombie.
pub(crate) fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// SIGKILL to a process that is still the one that was meant.
pub(crate) fn kill(pid: i32, since: u64) -> bool {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(id) = Pid::from_raw(pid) else { return false };
    let Ok(handle) = pidfd_open(id, PidfdFlags::empty()) else { return false };
    started(pid) == Some(since) && pidfd_send_signal(&handle, Signal::KILL).is_ok()
}
