//! What belongs to a VM dies on its own: its QEMU, its guard, its guest by its own will, its agent.

use std::time::Duration;

use super::{
    chaos,
    lab::Lab,
    observer::{self, Observer, Run},
};

const PROJECT: &str = "shop";
const PATIENCE: Duration = Duration::from_secs(120);

fn create(lab: &Lab, name: &str, more: &[&str]) -> String {
    let mut arguments = vec!["-p", PROJECT, "vm", "create", name, "--image", "tiny"];
    arguments.extend(["--memory", "128MiB", "--cpu", "500m"]);
    arguments.extend(more);
    lab.json(&arguments)["vms"][0]["id"].as_str().unwrap().to_owned()
}

fn boot_id(lab: &Lab, vm: &str) -> String {
    lab.exec(PROJECT, vm, &["cat", "/proc/sys/kernel/random/boot_id"])
}

/// The process of a VM's guard, which is its QEMU's parent.
fn guard_of(run: &Run) -> (i32, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", run.pid)).unwrap();
    let parent = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(1).unwrap();
    let parent: i32 = parent.parse().unwrap();
    let line = std::fs::read_to_string(format!("/proc/{parent}/cmdline")).unwrap();
    assert!(line.contains("vm-guard") && line.contains(&run.vm), "{line:?}");
    (parent, observer::started(parent).unwrap())
}

fn wait_answers(lab: &Lab, vm: &str) {
    lab.wait("the guest answers", PATIENCE, || {
        lab.try_exec(PROJECT, vm, &["true"]).code == Some(0)
    });
}

#[test]
fn a_vm_whose_processes_are_killed_is_restarted_as_its_policy_says() {
    let Some(lab) = Lab::start(1) else { return };
    let observer = Observer::start(&lab, 4096);
    lab.ok(&["project", "create", PROJECT]);
    let (again, never) =
        (create(&lab, "again", &[]), create(&lab, "never", &["--restart", "never"]));
    wait_answers(&lab, "again");
    lab.exec(PROJECT, "again", &["sh", "-c", "echo kept >/data/kept && sync"]);
    let boot = boot_id(&lab, "again");

    // QEMU dies: its guard writes down how, and the agent starts it again.
    let first = observer.qemu(&again).unwrap();
    let (guard, _) = guard_of(&first);
    assert!(observer::kill(first.pid, observer::started(first.pid).unwrap()));
    lab.wait("it runs again", PATIENCE, || {
        observer.qemu(&again).is_some_and(|run| run.pid != first.pid)
            && lab.vm(PROJECT, "again")["state"] == "running"
    });
    assert_eq!(observer::started(guard), None, "a guard ends with its VM");
    wait_answers(&lab, "again");
    assert_ne!(boot_id(&lab, "again"), boot);
    assert_eq!(lab.exec(PROJECT, "again", &["cat", "/data/kept"]), "kept");
    assert_eq!(lab.vm(PROJECT, "again")["restarts"], 1);

    // The guard dies: QEMU goes with it at once, and nobody has written down how it ended.
    let second = observer.qemu(&again).unwrap();
    let (guard, since) = guard_of(&second);
    assert!(observer::kill(guard, since));
    lab.wait("its QEMU is gone", Duration::from_secs(5), || {
        observer::started(second.pid).is_none()
    });
    lab.wait("it runs again", PATIENCE, || {
        observer.qemu(&again).is_some_and(|run| run.pid != second.pid)
            && lab.vm(PROJECT, "again")["state"] == "running"
    });
    wait_answers(&lab, "again");
    assert_eq!(lab.exec(PROJECT, "again", &["cat", "/data/kept"]), "kept");
    assert_eq!(lab.vm(PROJECT, "again")["restarts"], 2);

    // One that is not to be restarted stays where it fell, and a start is a new wish.
    let run = observer.qemu(&never).unwrap();
    assert!(observer::kill(run.pid, observer::started(run.pid).unwrap()));
    lab.wait("it has failed", PATIENCE, || lab.vm(PROJECT, "never")["state"] == "failed");
    assert!(observer.qemu(&never).is_none());
    let message = lab.vm(PROJECT, "never")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("signal 9"), "{message}");
    lab.ok(&["-p", PROJECT, "vm", "start", "never"]);
    assert_eq!(observer.runs(&never).len(), 2);
    assert_eq!(observer.runs(&again).len(), 3);
    observer.assert_clean();
}

#[test]
fn a_guest_that_powers_off_stays_off_and_one_whose_agent_dies_runs_on() {
    let Some(lab) = Lab::start(2) else { return };
    let observer = Observer::start(&lab, 4096);
    lab.ok(&["project", "create", PROJECT]);
    lab.ok(&["-p", PROJECT, "network", "create", "net"]);
    let ids = ["one", "two"].map(|name| create(&lab, name, &["--network", "net"]));
    for name in ["one", "two"] {
        wait_answers(&lab, name);
    }
    let boots = ["one", "two"].map(|name| boot_id(&lab, name));
    let runs = ids.each_ref().map(|id| observer.qemu(id).unwrap());

    // The agents and the manager die, in every order; each VM is found again as it is.
    for parts in [&["host-1", "host-2"][..], &["manager"], &["host-2", "manager", "host-1"]] {
        for part in parts {
            assert!(chaos::kill(&lab, part));
        }
        lab.heal();
        for name in ["one", "two"] {
            lab.wait("it is found again", PATIENCE, || lab.vm(PROJECT, name)["state"] == "running");
            wait_answers(&lab, name);
        }
    }
    assert_eq!(["one", "two"].map(|name| boot_id(&lab, name)), boots);
    for (id, run) in ids.iter().zip(&runs) {
        assert_eq!(observer.qemu(id).unwrap().pid, run.pid);
        assert_eq!(observer.runs(id).len(), 1);
    }
    let other = lab.address(PROJECT, "two");
    let page = lab.exec(PROJECT, "one", &["wget", "-qO-", &format!("http://{other}/")]);
    assert_eq!(page, "two", "the network is as it was");

    // A guest's own will counts, also while nobody of ours looks.
    let later = "(sleep 2; poweroff) </dev/null >/dev/null 2>&1 &";
    lab.exec(PROJECT, "one", &["sh", "-c", later]);
    assert!(chaos::kill(&lab, &runs[0].host));
    lab.wait("its QEMU ends", PATIENCE, || observer.qemu(&ids[0]).is_none());
    lab.heal();
    lab.wait("it is stopped", PATIENCE, || lab.vm(PROJECT, "one")["state"] == "stopped");
    assert_eq!(lab.vm(PROJECT, "one")["power"], "stopped");
    assert!(chaos::kill(&lab, &runs[0].host));
    lab.heal();
    lab.wait("its host is back", PATIENCE, || {
        lab.json(&["host", "show", &runs[0].host])["state"] == "up"
    });
    assert_eq!(lab.vm(PROJECT, "one")["state"], "stopped");
    assert_eq!(observer.runs(&ids[0]).len(), 1, "nobody started it again");
    lab.ok(&["-p", PROJECT, "vm", "start", "one"]);
    wait_answers(&lab, "one");
    assert_eq!(observer.runs(&ids[0]).len(), 2);
    observer.assert_clean();
}

#[test]
fn a_qemu_that_hangs_is_never_taken_for_dead() {
    let Some(lab) = Lab::start(2) else { return };
    let observer = Observer::start(&lab, 4096);
    lab.ok(&["project", "create", PROJECT]);
    let id = create(&lab, "hangs", &[]);
    let run = observer.qemu(&id).unwrap();
    let other = if run.host == "host-1" { "host-2" } else { "host-1" };
    let signal = |signal| {
        let pid = nix::unistd::Pid::from_raw(run.pid);
        assert_eq!(observer.qemu(&id).unwrap().pid, run.pid);
        nix::sys::signal::kill(pid, signal).unwrap();
    };

    // As on storage that does not answer; and the agent that knew it dies.
    signal(nix::sys::signal::Signal::SIGSTOP);
    assert!(chaos::kill(&lab, &run.host));
    lab.heal();
    // What would let the manager start it on the other host, did it believe that it is stopped.
    lab.ok(&["host", "drain", &run.host, "--cordon-only"]);
    lab.ok(&["-p", PROJECT, "vm", "stop", "hangs", "--grace", "0s", "--no-wait"]);
    lab.wait("the agent has given up to identify it", PATIENCE, || {
        lab.log(&run.host).contains("unknown process")
    });
    // Reports of that have reached the manager.
    for _ in 0..10 {
        assert_eq!(lab.vm(PROJECT, "hangs")["state"], "stopping");
        lab.ok(&["-p", PROJECT, "vm", "start", "hangs", "--no-wait"]);
        assert_eq!(lab.vm(PROJECT, "hangs")["host"], run.host.as_str(), "not to {other}");
        lab.ok(&["-p", PROJECT, "vm", "stop", "hangs", "--grace", "0s", "--no-wait"]);
    }
    assert_eq!(observer.qemu(&id).unwrap().pid, run.pid);

    signal(nix::sys::signal::Signal::SIGCONT);
    lab.wait("it is stopped", PATIENCE, || lab.vm(PROJECT, "hangs")["state"] == "stopped");
    assert!(observer.qemu(&id).is_none());
    lab.ok(&["-p", PROJECT, "vm", "start", "hangs"]);
    assert_eq!(observer.qemu(&id).unwrap().host, other);
    observer.assert_clean();
}
