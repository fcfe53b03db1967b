use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::*;

fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

/// A process that burns one CPU until it is dropped.
struct Busy(Child);

impl Busy {
    fn start() -> Self {
        let child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .stdin(Stdio::null())
            .spawn()
            .expect("sh runs");
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// CPU time used so far, from the scheduler itself.
    fn used(&self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid())).unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The share of one core that each process got over a while.
fn shares_of(processes: &[&Busy]) -> Vec<f64> {
    let before: Vec<Duration> = processes.iter().map(|process| process.used()).collect();
    let start = Instant::now();
    // The length of the measurement, not a wait for something.
    std::thread::sleep(Duration::from_millis(1500));
    let wall = start.elapsed().as_secs_f64();
    let used = |(process, before): (&&Busy, &Duration)| (process.used() - *before).as_secs_f64();
    processes.iter().zip(&before).map(used).map(|seconds| seconds / wall).collect()
}

fn live(parent: &str) -> Option<CpuGroups> {
    let groups = CpuGroups::detect(&format!("{parent}-{}", std::process::id())).ok()?;
    if nix::unistd::geteuid().is_root() {
        return Some(groups);
    }
    eprintln!("SKIPPED: needs root and a cpu controller");
    None
}

#[test]
fn mounts_of_both_versions_are_read() {
    let mounts = CgroupMounts::parse(
        "proc /proc proc rw 0 0\n\
         cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,relatime,cpu,cpuacct 0 0\n\
         cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n\
         cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n\
         short line\n",
    );
    assert_eq!(mounts.v1_with("cpu"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
    assert_eq!(mounts.v1_with("memory"), None);
    assert_eq!(mounts.v1[1].controllers, Vec::<String>::new());
    assert_eq!(mounts.v2, Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
    assert_eq!(mounts.v2_with("cpu"), None);
}

#[test]
fn a_parent_that_could_leave_the_hierarchy_is_refused() {
    let mounts = CgroupMounts::parse("cgroup /x cgroup rw,cpu 0 0\n");
    for name in ["", ".", "..", "a/b", "a b", &"x".repeat(65)] {
        let error = CpuGroups::from_mounts(&mounts, name).unwrap_err();
        assert!(matches!(error, LimitsError::ParentName { .. }), "{name}: {error}");
    }
    assert!(matches!(
        CpuGroups::from_mounts(&CgroupMounts::default(), "plimsoll"),
        Err(LimitsError::NoCpuController)
    ));
}

#[test]
fn quota_keeps_its_ratio_down_to_a_thousandth_of_a_core() {
    for millicores in [1, 7, 50, 99, 100, 250, 333, 1000, 2500, 64_000] {
        let (quota, period) = quota_and_period(MilliCores(millicores));
        assert!(quota >= SHORTEST_QUOTA_US && period <= LONGEST_PERIOD_US, "{millicores}");
        let is = quota * 100_000 / period;
        assert!(is.abs_diff(millicores * 100) <= millicores, "{millicores}: {is}");
    }
    assert_eq!(quota_and_period(MilliCores(250)), (2_500, 10_000));
    assert_eq!(quota_and_period(MilliCores(0)), quota_and_period(MilliCores(1)));
}

#[test]
fn weights_follow_what_was_promised() {
    assert_eq!(CpuWeight::for_cpu(MilliCores(1000)), CpuWeight::DEFAULT);
    assert_eq!(CpuWeight::for_cpu(MilliCores(2500)).get(), 250);
    assert_eq!(CpuWeight::for_cpu(MilliCores(1)).get(), 1);
    assert_eq!(CpuWeight::for_cpu(MilliCores(u64::MAX)).get(), 10_000);
    assert!(CpuWeight::new(0).is_none());
}

#[test]
fn limits_are_felt_changed_read_back_and_removed() {
    let Some(groups) = live("plimsoll-test-quota") else { return };
    let busy = Busy::start();
    let limits = |millicores| CpuLimits {
        quota: Some(MilliCores(millicores)),
        weight: CpuWeight::new(250).unwrap(),
    };
    let in_force = groups.apply(vm(1), busy.pid(), &[busy.pid()], limits(500)).unwrap();
    assert_eq!(in_force.quota(), Some(MilliCores(500)));
    assert_eq!((in_force.weight, in_force.threads), (250, vec![busy.pid()]));
    let half = shares_of(&[&busy])[0];
    groups.change(vm(1), limits(250)).unwrap();
    let quarter = shares_of(&[&busy])[0];
    assert!((0.48..=0.51).contains(&half), "{half}");
    assert!((0.24..=0.255).contains(&quarter), "{quarter}");
    assert!(groups.throttling(vm(1)).unwrap().throttled_periods > 50);

    let free = groups.change(vm(1), CpuLimits::default()).unwrap();
    assert_eq!(free.quota_us, None);
    groups.change(vm(1), limits(20)).unwrap();
    assert_eq!(groups.in_force(vm(1)).unwrap().quota(), Some(MilliCores(20)));

    assert_eq!(groups.vms().unwrap(), vec![vm(1)]);
    groups.remove(vm(1)).unwrap();
    groups.remove(vm(1)).unwrap();
    assert!(groups.in_force(vm(1)).unwrap_err().is_not_found());
    assert_eq!(groups.vms().unwrap(), Vec::new());
    groups.remove_parent().unwrap();
    // Removal sets the thread free, it does not end it.
    assert!(shares_of(&[&busy])[0] > 0.3);
}

#[test]
fn weights_divide_a_cpu_that_two_vms_want() {
    let Some(groups) = live("plimsoll-test-weight") else { return };
    let (light, heavy) = (Busy::start(), Busy::start());
    for busy in [&light, &heavy] {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(busy.pid()).unwrap());
        let mut one = nix::sched::CpuSet::new();
        one.set(0).unwrap();
        nix::sched::sched_setaffinity(pid, &one).unwrap();
    }
    let weight = |weight| CpuLimits { quota: None, weight: CpuWeight::new(weight).unwrap() };
    groups.apply(vm(1), light.pid(), &[light.pid()], weight(100)).unwrap();
    groups.apply(vm(2), heavy.pid(), &[heavy.pid()], weight(300)).unwrap();
    let shares = shares_of(&[&light, &heavy]);
    let ratio = shares[1] / shares[0];
    for number in [1, 2] {
        groups.remove(vm(number)).unwrap();
    }
    groups.remove_parent().unwrap();
    assert!((2.7..=3.3).contains(&ratio), "{ratio}");
}

#[test]
fn a_thread_of_another_process_is_refused() {
    let Some(groups) = live("plimsoll-test-foreign") else { return };
    let busy = Busy::start();
    let error = groups.apply(vm(1), busy.pid(), &[1], CpuLimits::default()).unwrap_err();
    assert!(matches!(error, LimitsError::ForeignThread { thread: 1, .. }));
    assert_eq!(groups.vms().unwrap(), Vec::new());
}

/// Makes the control files that the kernel would, as plain files.
fn fake_group(path: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(path).unwrap();
    for (name, value) in files {
        fs::write(path.join(name), value).unwrap();
    }
}

/// What kernels of both versions write, and what is not there or not a number counts as nothing.
#[test]
fn throttling_is_read_from_either_version() {
    let root = tempfile::tempdir().unwrap();
    let first = root.path().join("v1/plimsoll").join(vm(1).to_string());
    fake_group(
        &first,
        &[("cpu.stat", "nr_periods 302\nnr_throttled 300\nthrottled_time 1814147835\n")],
    );
    let line = format!("cgroup {} cgroup rw,cpu 0 0\n", root.path().join("v1").display());
    let groups = CpuGroups::from_mounts(&CgroupMounts::parse(&line), "plimsoll").unwrap();
    let wanted = Throttling { periods: 302, throttled_periods: 300, throttled_us: 1_814_147 };
    assert_eq!(groups.throttling(vm(1)).unwrap(), wanted);
    assert!(groups.throttling(vm(2)).unwrap_err().is_not_found());

    let second = root.path().join("v2/plimsoll").join(vm(1).to_string()).join("vcpus");
    fake_group(
        &second,
        &[(
            "cpu.stat",
            "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 302\nnr_throttled 300\n\
             throttled_usec 1814147\nnr_bursts 0\nburst_usec 0\n",
        )],
    );
    let mounts = CgroupMounts {
        v1: Vec::new(),
        v2: Some(root.path().join("v2")),
        v2_controllers: vec!["cpu".to_owned()],
    };
    let groups = CpuGroups::from_mounts(&mounts, "plimsoll").unwrap();
    assert_eq!(groups.throttling(vm(1)).unwrap(), wanted);
    fs::write(second.join("cpu.stat"), "nr_periods x\nthrottled_usec\n").unwrap();
    assert_eq!(groups.throttling(vm(1)).unwrap(), Throttling::default());
}

#[test]
fn version_2_writes_quota_to_the_leaf_and_weight_to_the_vm() {
    let root = tempfile::tempdir().unwrap();
    let parent = root.path().join("plimsoll");
    let group = parent.join(vm(1).to_string());
    let leaf = group.join("vcpus");
    let control = [("cgroup.subtree_control", ""), ("cpu.weight", "100"), ("cgroup.procs", "")];
    fake_group(root.path(), &control);
    fake_group(&parent, &control);
    fake_group(&group, &control);
    fake_group(
        &leaf,
        &[("cgroup.type", "domain"), ("cgroup.threads", ""), ("cpu.max", "max 100000")],
    );
    let mounts = CgroupMounts {
        v1: Vec::new(),
        v2: Some(root.path().to_owned()),
        v2_controllers: vec!["cpu".to_owned()],
    };
    let groups = CpuGroups::from_mounts(&mounts, "plimsoll").unwrap();
    assert_eq!(groups.version(), CgroupVersion::V2);
    let limits = CpuLimits { quota: Some(MilliCores(1500)), weight: CpuWeight::new(150).unwrap() };
    let me = std::process::id();
    let in_force = groups.apply(vm(1), me, &[me], limits).unwrap();
    assert_eq!(
        in_force,
        CpuInForce { quota_us: Some(15_000), period_us: 10_000, weight: 150, threads: vec![me] }
    );
    let text = |path: PathBuf| fs::read_to_string(path).unwrap();
    assert_eq!(text(leaf.join("cpu.max")), "15000 10000");
    assert_eq!(text(leaf.join("cgroup.type")), "threaded");
    assert_eq!(text(group.join("cpu.weight")), "150");
    assert_eq!(text(group.join("cgroup.procs")), format!("{me}\n"));
    for path in [root.path(), &parent, &group] {
        assert_eq!(text(path.join("cgroup.subtree_control")), "+cpu", "{}", path.display());
    }
    let free = groups.change(vm(1), CpuLimits::default()).unwrap();
    assert_eq!((free.quota_us, free.weight), (None, 100));

    fs::write(leaf.join("cpu.max"), "plenty").unwrap();
    assert!(matches!(groups.in_force(vm(1)), Err(LimitsError::Unreadable { .. })));
    fs::remove_file(leaf.join("cpu.max")).unwrap();
    assert!(groups.change(vm(1), limits).unwrap_err().is_not_found());
    assert!(!leaf.join("cpu.max").exists(), "a missing control file must not be created");
}

/// The structure of version 2 on the real kernel: needs no controller, only a mount.
#[test]
fn version_2_moves_one_thread_into_the_leaf_on_a_real_mount() {
    let mounts = CgroupMounts::of_this_process().unwrap();
    let (Some(root), true) = (mounts.v2, nix::unistd::geteuid().is_root()) else {
        eprintln!("SKIPPED: needs root and a cgroup2 mount");
        return;
    };
    let parent = root.join(format!("plimsoll-test-v2-{}", std::process::id()));
    let groups = v2::Hierarchy::new(root, parent.clone());
    let busy = Busy::start();
    create_group(&parent).unwrap();
    for _ in 0..2 {
        groups.enter_threaded(vm(1), busy.pid(), &[busy.pid()]).unwrap();
    }
    let group = parent.join(vm(1).to_string());
    assert_eq!(read_text(&group.join("cgroup.type")).unwrap(), "domain threaded");
    assert_eq!(read_ids(&group.join("vcpus/cgroup.threads")).unwrap(), vec![busy.pid()]);
    groups.remove(vm(1)).unwrap();
    assert!(!group.exists());
    remove_group(&parent).unwrap();
}
