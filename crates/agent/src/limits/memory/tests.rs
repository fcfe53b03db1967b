//! Groups with real processes in them, where this process may make any; version 2 on plain files.

use std::io::{BufRead as _, Write as _};
use std::process::{Child, Command, Stdio};

use uuid::Uuid;

use super::*;

const MIB: u64 = 1 << 20;
/// In pieces of this size a [`Taker`] takes memory.
const PIECE: u64 = 8 * MIB;

fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

/// Groups of one test, removed with it.
struct Live(MemoryGroups);

impl Live {
    fn new(name: &str) -> Option<Self> {
        let groups = MemoryGroups::detect(&format!("{name}-{}", std::process::id())).ok();
        if let Some(groups) = groups.filter(|_| nix::unistd::geteuid().is_root()) {
            return Some(Self(groups));
        }
        eprintln!("SKIPPED: needs root and a memory controller");
        None
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        for vm in self.0.vms().unwrap_or_default() {
            let _ = self.0.remove(vm);
        }
        let _ = self.0.remove_parent();
    }
}

/// A process that joins a group, then takes memory: as QEMU does behind its guard.
struct Taker(Child);

impl Taker {
    /// Takes memory in pieces of [`PIECE`], and only by touching it: where a write to a pipe finds
    /// none it fails, and does not wait.
    fn start(procs: &Path, mebibytes: u64) -> Self {
        let script = format!(
            "grow() {{ s=xxxxxxxxxxxxxxxx; while [ ${{#s}} -lt {PIECE} ]; do s=$s$s; done; \
             i=0; while [ $i -lt $2 ]; do eval \"$1=\\$$1\\$s\"; i=$((i + 1)); done; }}; \
             echo $$ > {} && grow x {} && echo ready && read more && grow y $more && read wait",
            procs.display(),
            mebibytes * MIB / PIECE
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufReader::new(out).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// Takes more, if it can.
    fn want_more(&mut self, mebibytes: u64) {
        let stdin = self.0.stdin.as_mut().unwrap();
        writeln!(stdin, "{}", mebibytes * MIB / PIECE).unwrap();
    }

    fn assert_lives(&mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "it was killed");
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_vms_memory_is_counted_and_a_limit_read_back_and_lifted() {
    let Some(live) = Live::new("plimsoll-test-memory") else { return };
    let groups = &live.0;
    let procs = groups.create(vm(1)).unwrap();
    let taker = Taker::start(&procs, 32);
    assert!(groups.holds(vm(1), taker.0.id()) && !groups.holds(vm(1), 1));
    let before = groups.in_force(vm(1)).unwrap();
    assert_eq!(before.limit, None);
    assert!(before.usage >= Bytes(32 * MIB), "{before:?}");
    // Above what it has: nothing needs to be written out, so it works without swap space too.
    let limit = Bytes(before.usage.get() + 64 * MIB + 17);
    let held = groups.limit(vm(1), Some(limit)).unwrap();
    assert_eq!(held.limit, Some(Bytes(limit.get() / PAGE * PAGE)));
    assert_eq!(groups.limit(vm(1), Some(limit)).unwrap().limit, held.limit);
    assert_eq!(groups.limit(vm(1), None).unwrap().limit, None);
    assert_eq!(groups.vms().unwrap(), [vm(1)]);
    assert!(groups.in_force(vm(2)).unwrap_err().is_not_found());
    assert!(groups.limit(vm(2), None).unwrap_err().is_not_found());
    groups.remove(vm(1)).unwrap();
    groups.remove(vm(1)).unwrap();
    assert!(groups.vms().unwrap().is_empty());
}

#[test]
fn what_a_limit_writes_out_stays_out() {
    let Some(live) = Live::new("plimsoll-test-hold") else { return };
    let directory = tempfile::tempdir().unwrap();
    let swap = crate::config::SwapConfig::File { size: Bytes(128 * MIB), directory: None };
    crate::swap::set_up(&swap, directory.path()).unwrap();
    let tried = std::panic::catch_unwind(|| {
        let groups = &live.0;
        let _taker = Taker::start(&groups.create(vm(1)).unwrap(), 48);
        let before = groups.in_force(vm(1)).unwrap();
        let held = groups.limit(vm(1), Some(Bytes(20 * MIB))).unwrap();
        assert!(held.usage <= Bytes(20 * MIB), "{held:?}");
        let out = before.usage.get() - held.usage.get();
        assert!(held.swapped.get() >= out - 4 * MIB, "{before:?} {held:?}");
    });
    drop(live);
    crate::swap::remove(directory.path()).unwrap();
    tried.unwrap();
}

#[test]
fn a_vm_that_stands_still_at_its_limit_is_not_killed_and_goes_on_when_it_rises() {
    let Some(live) = Live::new("plimsoll-test-relief") else { return };
    let groups = &live.0;
    if groups.version() == CgroupVersion::V2 {
        return;
    }
    let procs = groups.create(vm(1)).unwrap();
    // Nothing of it may be written out.
    std::fs::write(groups.group(vm(1)).join("memory.swappiness"), "0").unwrap();
    let mut taker = Taker::start(&procs, 8);
    let usage = groups.in_force(vm(1)).unwrap().usage;
    groups.limit(vm(1), Some(Bytes(usage.get() + MIB))).unwrap();
    assert_eq!(groups.relieve(vm(1)).unwrap(), None, "it wants nothing yet");
    taker.want_more(24);
    let mut raised = 0;
    let mut relieved = || groups.relieve(vm(1)).unwrap().inspect(|_| raised += 1);
    let wanted = usage.saturating_add(Bytes(24 * MIB));
    while groups.in_force(vm(1)).unwrap().usage < wanted {
        taker.assert_lives();
        relieved();
        std::thread::sleep(PAUSE);
    }
    taker.assert_lives();
    assert!(raised > 0, "it stood still");
    assert!(groups.in_force(vm(1)).unwrap().limit.unwrap() > usage);
}

/// A tree of plain files that looks like version 2.
fn tree(root: &Path, group: &Path) {
    for directory in [root, &root.join("plimsoll"), group] {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("cgroup.subtree_control"), "cpu\n").unwrap();
    }
    for (file, text) in [
        ("memory.high", "max\n"),
        ("memory.current", "4096000\n"),
        ("memory.stat", "anon 5\nfile 6\npgmajfault 7\n"),
        ("cgroup.procs", "42\n"),
    ] {
        std::fs::write(group.join(file), text).unwrap();
    }
}

#[test]
fn version_2_files_are_written_and_read() {
    let root = tempfile::tempdir().unwrap();
    let group = root.path().join("plimsoll").join(vm(1).to_string());
    tree(root.path(), &group);
    let mounts = CgroupMounts {
        v2: Some(root.path().to_owned()),
        v2_controllers: vec!["cpu".into(), "memory".into()],
        ..CgroupMounts::default()
    };
    let groups = MemoryGroups::from_mounts(&mounts, "plimsoll").unwrap();
    assert_eq!(groups.version(), CgroupVersion::V2);
    assert_eq!(groups.create(vm(1)).unwrap(), group.join("cgroup.procs"));
    for directory in [root.path().to_owned(), root.path().join("plimsoll")] {
        let text = std::fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap();
        assert_eq!(text, "+memory");
    }
    assert!(groups.holds(vm(1), 42));
    let held = groups.limit(vm(1), Some(Bytes(64 * MIB))).unwrap();
    assert_eq!((held.limit, held.major_faults), (Some(Bytes(64 * MIB)), 7));
    assert_eq!((held.usage, held.swapped), (Bytes(4_096_000), Bytes::ZERO));
    std::fs::write(group.join("memory.swap.current"), "8192\n").unwrap();
    assert_eq!(groups.in_force(vm(1)).unwrap().swapped, Bytes(8192));
    assert_eq!(groups.limit(vm(1), None).unwrap().limit, None);
    assert_eq!(std::fs::read_to_string(group.join("memory.high")).unwrap(), "max");
    std::fs::write(group.join("memory.current"), "lots\n").unwrap();
    assert!(matches!(groups.in_force(vm(1)), Err(LimitsError::Unreadable { .. })));
}

#[test]
fn a_limit_leaves_swap_space_for_all_that_may_come() {
    let mib = Bytes::mib;
    assert_eq!(least_limit(mib(512), mib(0), mib(200)), mib(312));
    assert_eq!(least_limit(mib(512), mib(100), mib(200)), mib(212));
    assert_eq!(least_limit(mib(512), mib(100), mib(1000)), mib(0));
    assert_eq!(least_limit(mib(512), mib(0), mib(0)), mib(512));
}
