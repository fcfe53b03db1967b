//! A host is cut off: what may move runs elsewhere, and at no instant does anything run twice.
//!
//! The guests themselves tell: each writes a line to its console and to its disk several times a
//! second. The console's copies are files of the hosts, whose growth is timed by one clock; the disk
//! lies where all hosts see it, so that what both copies wrote stands in one file, in order.

use std::time::{Duration, Instant};

use super::{
    chaos,
    lab::Lab,
    observer::{self, Observer, Run},
};

const PROJECT: &str = "shop";
const HOST_MEMORY_MIB: u64 = 2048;
/// As the settings below have it.
const DEAD_AFTER: Duration = Duration::from_secs(12);
/// What acceptance allows beyond that.
const GRACE: Duration = Duration::from_secs(30);
/// Long enough for anything to settle on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Writes who, when and for how long, for as long as the guest lives. Boot ids tell the copies
/// apart.
const HEARTBEAT: &str = "#!/bin/sh
read -r boot </proc/sys/kernel/random/boot_id
read -r name </proc/sys/kernel/hostname
began=$(date +%s)
n=0
while :; do
    n=$((n + 1))
    read -r up _ </proc/uptime
    line=\"beat $name $boot $n $began $up\"
    echo \"$line\" >/dev/console
    echo \"$line\" >>/data/heartbeat
    [ $((n % 4)) = 0 ] && sync
    sleep 0.15
done
";

fn start() -> Option<(Lab, Observer)> {
    let memory = format!("{HOST_MEMORY_MIB}MiB");
    let lab = Lab::start_with(3, &["--memory", &memory])?;
    let dead_after = format!("{}s", DEAD_AFTER.as_secs());
    lab.ok(&[
        "settings",
        "set",
        "--unreachable-after",
        "4s",
        "--dead-after",
        &dead_after,
        "--lease",
        "8s",
    ]);
    lab.ok(&["project", "create", PROJECT]);
    let observer = Observer::start(&lab, HOST_MEMORY_MIB);
    Some((lab, observer))
}

/// A VM whose heart beats, on the host of this label.
fn create(lab: &Lab, name: &str, host: &str, more: &[&str]) -> String {
    let script = lab.directory().join("heartbeat.sh");
    std::fs::write(&script, HEARTBEAT).unwrap();
    // All that bind a VM to a host for its first start: nothing that keeps it there.
    let others: Vec<String> =
        (1..=3).map(|n| format!("host-{n}")).filter(|other| other != host).collect();
    for other in &others {
        lab.ok(&["host", "drain", other, "--cordon-only"]);
    }
    let mut arguments = vec!["-p", PROJECT, "vm", "create", name, "--image", "tiny"];
    arguments.extend(["--memory", "128MiB", "--cpu", "500m"]);
    arguments.extend(["--user-data", script.to_str().unwrap()]);
    arguments.extend(more);
    let created = lab.json(&arguments);
    for other in &others {
        lab.ok(&["host", "undrain", other]);
    }
    assert_eq!(created["vms"][0]["host"], host);
    created["vms"][0]["id"].as_str().unwrap().to_owned()
}

fn boot_id(lab: &Lab, vm: &str) -> String {
    lab.exec(PROJECT, vm, &["cat", "/proc/sys/kernel/random/boot_id"])
}

fn beats(lab: &Lab, vm: &str) -> Vec<(String, f64)> {
    let text = lab.exec(PROJECT, vm, &["cat", "/data/heartbeat"]);
    let beat = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        // The line that was being written when the host lost it may be cut off.
        let [_, _, boot, _, began, up] = fields.as_slice() else { return None };
        let (began, up): (f64, f64) = (began.parse().ok()?, up.parse().ok()?);
        Some(((*boot).to_owned(), began + up))
    };
    text.lines().filter_map(beat).collect()
}

fn host_of(lab: &Lab, vm: &str) -> String {
    lab.vm(PROJECT, vm)["host"].as_str().unwrap_or_default().to_owned()
}

fn is_up(lab: &Lab, host: &str) -> bool {
    lab.json(&["host", "show", host])["state"] == "up"
}

/// Waits until a VM that was on `lost` runs elsewhere; returns its two QEMUs.
fn wait_moved(lab: &Lab, observer: &Observer, id: &str, lost: &str, limit: Duration) -> (Run, Run) {
    lab.wait("it runs elsewhere", limit, || observer.runs(id).iter().any(|run| run.host != lost));
    let runs = observer.runs(id);
    let [old, new] = runs.as_slice() else { panic!("as many QEMUs as two: {runs:?}") };
    assert_eq!(old.host, lost);
    (old.clone(), new.clone())
}

/// The new copy's first sign of life is later than the old one's last, by three witnesses: the
/// kernel, the consoles, and the disk that both wrote to.
fn assert_one_after_the_other(lab: &Lab, observer: &Observer, vm: &str, id: &str, lost: &str) {
    let runs = observer.runs(id);
    assert!(runs[0].last < runs[1].first, "QEMUs overlap: {runs:?}");
    let wrote = observer.wrote(id);
    let last = wrote.iter().filter(|wrote| wrote.host == lost).map(|wrote| wrote.at).max();
    let first = wrote.iter().filter(|wrote| wrote.host != lost).map(|wrote| wrote.at).min();
    let (last, first) = (last.expect("the old copy wrote"), first.expect("the new copy writes"));
    assert!(last < first, "both consoles grew within {:?}", last - first);
    let beats = beats(lab, vm);
    let second = beats.last().expect("the new copy's heart beats").0.clone();
    let turn = beats.iter().position(|(boot, _)| *boot == second).unwrap();
    assert!(turn > 5, "the old copy's beats are gone: the first are {:?}", &beats[..turn]);
    assert!(beats[turn..].iter().all(|(boot, _)| *boot == second), "the copies wrote in turns");
    assert!(beats[..turn].iter().all(|(boot, _)| *boot == beats[0].0));
    println!(
        "{vm}: old QEMU gone {:.1} s before the new one; silence of the consoles {:.1} s; {turn} \
         beats of the old copy on the disk, {} of the new",
        (runs[1].first - runs[0].last).as_secs_f64(),
        (first - last).as_secs_f64(),
        beats.len() - turn,
    );
}

fn wait_beats(lab: &Lab, vm: &str) {
    lab.wait("its heart beats", PATIENCE, || {
        lab.try_exec(PROJECT, vm, &["sh", "-c", "test $(wc -l </data/heartbeat) -gt 10"]).code
            == Some(0)
    });
}

#[test]
fn a_host_that_is_cut_off_loses_its_vms_to_others_and_none_runs_twice() {
    let Some((lab, observer)) = start() else { return };
    let (moves, waits) = (
        create(&lab, "moves", "host-2", &[]),
        create(&lab, "waits", "host-2", &["--on-host-failure", "wait"]),
    );
    let stays = create(&lab, "stays", "host-1", &[]);
    for vm in ["moves", "waits", "stays"] {
        wait_beats(&lab, vm);
    }
    lab.exec(PROJECT, "moves", &["sh", "-c", "echo before >/data/before && sync"]);
    let (boot_moves, boot_waits) = (boot_id(&lab, "moves"), boot_id(&lab, "waits"));
    let refused = lab.run(&["host", "fence", "host-2", "--yes"]);
    assert_ne!(refused.code, Some(0), "a host that is up cannot be fenced");
    assert_eq!(host_of(&lab, "moves"), "host-2");

    lab.cut("host-2");
    let cut = Instant::now();
    let (old, new) = wait_moved(&lab, &observer, &moves, "host-2", DEAD_AFTER + GRACE);
    println!(
        "cut; its QEMU died {:.1} s later, the new one began after {:.1} s",
        (old.last - cut).as_secs_f64(),
        (new.first - cut).as_secs_f64()
    );
    lab.wait("it is told so", GRACE, || lab.vm(PROJECT, "moves")["state"] == "running");
    wait_beats(&lab, "moves");
    assert_one_after_the_other(&lab, &observer, "moves", &moves, "host-2");
    assert_eq!(lab.exec(PROJECT, "moves", &["cat", "/data/before"]), "before");
    assert_ne!(boot_id(&lab, "moves"), boot_moves);
    // What asked to wait still runs there, under its guard, unseen.
    let waiting = observer.qemu(&waits).expect("what waits is not ended");
    assert_eq!((waiting.host.as_str(), observer.runs(&waits).len()), ("host-2", 1));
    assert_eq!(host_of(&lab, "waits"), "host-2");
    assert!(matches!(lab.vm(PROJECT, "waits")["state"].as_str(), Some("unknown")));
    let grew = observer.wrote(&waits).len();
    lab.wait("its console grows", PATIENCE, || observer.wrote(&waits).len() > grew);

    lab.mend("host-2");
    lab.wait("the host is back, without what was moved", PATIENCE, || {
        is_up(&lab, "host-2")
            && lab.vm(PROJECT, "waits")["state"] == "running"
            && !lab.directory().join("hosts/host-2/vms").join(&moves).exists()
    });
    assert_eq!(boot_id(&lab, "waits"), boot_waits, "it ran on all the time");
    assert_eq!(observer.qemu(&waits).unwrap().pid, waiting.pid);
    // The disk that both hosts see is not gone with what the old host had to remove.
    assert_eq!(lab.exec(PROJECT, "moves", &["cat", "/data/before"]), "before");
    assert_eq!(observer.qemu(&moves).unwrap().pid, new.pid);
    assert_eq!(observer.runs(&stays).len(), 1);
    // And it takes VMs again.
    create(&lab, "next", "host-2", &[]);
    observer.assert_clean();
}

#[test]
fn guards_alone_fence_a_host_whose_agent_has_died() {
    let Some((lab, observer)) = start() else { return };
    let [id, early, late] = ["moves", "early", "late"].map(|vm| create(&lab, vm, "host-3", &[]));
    wait_beats(&lab, "moves");
    assert!(chaos::kill(&lab, "host-3"));
    lab.cut("host-3");
    // Deleted before its host is known to be dead: only that host can say that it is gone.
    lab.ok(&["-p", PROJECT, "vm", "delete", "early", "--yes", "--no-wait"]);
    let (_, new) = wait_moved(&lab, &observer, &id, "host-3", DEAD_AFTER + GRACE);
    wait_beats(&lab, "moves");
    assert_one_after_the_other(&lab, &observer, "moves", &id, "host-3");
    // Deleted after it was moved: two hosts have to say so.
    wait_moved(&lab, &observer, &late, "host-3", GRACE);
    lab.ok(&["-p", PROJECT, "vm", "delete", "late", "--yes", "--no-wait"]);
    lab.wait("its QEMU is gone", PATIENCE, || observer.qemu(&late).is_none());
    assert_eq!(lab.vm(PROJECT, "early")["state"], "deleting");
    // Its agent starts while it is still alone, with all that it remembers; then it is let in.
    lab.heal();
    lab.wait("the host is back, and empty", PATIENCE, || {
        is_up(&lab, "host-3") && chaos::names(&lab.directory().join("hosts/host-3/vms")).is_empty()
    });
    lab.wait("what was deleted is gone", PATIENCE, || lab.vms(PROJECT).len() == 1);
    assert_eq!(chaos::names(&lab.directory().join("pool")), std::slice::from_ref(&id));
    assert_eq!(observer.qemu(&id).unwrap().pid, new.pid);
    assert_eq!(observer.runs(&early).len(), 1, "nobody started what was deleted");
    assert!(beats(&lab, "moves").len() > 10, "its disk is as it was");
    observer.assert_clean();
}

#[test]
fn nothing_stops_while_no_manager_runs() {
    let Some((lab, observer)) = start() else { return };
    let id = create(&lab, "stays", "host-1", &[]);
    wait_beats(&lab, "stays");
    let before = observer.qemu(&id).unwrap();
    let pid = observer.runs(&id)[0].pid;
    assert!(chaos::kill(&lab, "manager"));
    // Longer than the lease, its margin, and the time after which a host is dead.
    let until = Instant::now() + DEAD_AFTER + Duration::from_secs(8 + 5);
    while Instant::now() < until {
        assert_eq!(observer.qemu(&id).map(|run| run.pid), Some(pid), "it was ended");
        std::thread::sleep(Duration::from_millis(200));
    }
    lab.heal();
    lab.wait("all is as it was", PATIENCE, || {
        is_up(&lab, "host-1") && lab.vm(PROJECT, "stays")["state"] == "running"
    });
    assert_eq!(observer.qemu(&id).unwrap().pid, before.pid);
    assert_eq!(observer.runs(&id).len(), 1);
    assert!(observer::started(pid).is_some());
    let events = lab.json(&["events", "--limit", "500"]).to_string();
    assert!(!events.contains("vm_lost"), "{events}");
    observer.assert_clean();
}
