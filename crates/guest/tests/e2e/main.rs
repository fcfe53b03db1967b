//! The tiny image under a real QEMU (TCG): what a host asks of a guest, asked over the real port.
//!
//! Needs `qemu-system-x86_64` and `qemu-img`; without them the tests say so and do nothing. The
//! image is built first (`images/build tiny`), so that it holds this very agent.

mod guest;

use std::time::Duration;

use plimsoll_api::guest::{Answer, Call, Failure, FailureCode, Notice, Outcome, ShutdownMode};

use guest::{ADDRESS, Disk, Guest, USER_DATA_LOG, qemu_is_there};

#[test]
fn a_guest_tells_runs_and_goes_down() {
    if !qemu_is_there() {
        return;
    }
    let disk = Disk::new();
    let mut guest = Guest::boot(&disk);
    let greeting = guest.ready();
    let Answer::Facts(facts) = guest.ask(Call::Facts) else { panic!("no facts") };
    assert_eq!(facts.boot_id, greeting.boot_id);
    assert_eq!(facts.hostname, "tiny-e2e");
    let address = facts.interfaces[0].addresses[0];
    assert_eq!(format!("{}/{}", address.address, address.prefix_length), ADDRESS);
    assert_eq!((facts.cpus.present, facts.cpus.online), (1, 1));
    // A VM with room to grow must not lose 64 MiB to bounce buffers.
    assert!(facts.memory.total_bytes > 85 << 20, "{:?}", facts.memory);
    assert!(facts.pressure.is_some());

    assert_eq!(guest.shell("uname -r").trim(), facts.kernel_release);
    assert_eq!(guest.shell("wget -qO- http://10.0.2.15/").trim(), "tiny-e2e");
    assert_eq!(guest.shell("cat /sys/class/net/eth0/mtu").trim(), "1400");
    // The file system grew from the image's 64 MiB to the disk's 256 MiB.
    let blocks = guest.shell("df -k /data | awk 'END { print $2 }'");
    assert!(blocks.trim().parse::<u32>().unwrap() > 200_000, "{blocks}");
    assert_eq!(guest.shell("test -e /run/plimsoll/seed/BAD || echo none").trim(), "none");

    let result = guest.exec(&["sleep", "1000"], Duration::from_millis(500));
    assert!(result.timed_out);
    let missing = guest.request(guest::exec_call(&["/no/such/program"], Duration::from_secs(5)));
    let Outcome::Failed(Failure { code, .. }) = missing else { panic!("{missing:?}") };
    assert_eq!(code, FailureCode::NotFound);

    guest.wait_for_shell("grep -c done /data/user-data-ran", "1");
    guest.ask(Call::Shutdown { mode: ShutdownMode::Poweroff });
    guest.wait_for_exit();

    // User data runs once for an instance, and what it wrote has survived the shutdown.
    let mut guest = Guest::boot(&disk);
    assert_ne!(guest.ready().boot_id, greeting.boot_id);
    assert_eq!(guest.shell(&format!("cat {USER_DATA_LOG}")).trim(), "done");
    guest.qmp(r#"{"execute":"system_powerdown"}"#);
    guest.wait_for_exit();
}

#[test]
fn cpus_come_and_go() {
    if !qemu_is_there() {
        return;
    }
    let disk = Disk::new();
    let mut guest = Guest::boot(&disk);
    guest.ready();
    for core in 1..=2 {
        guest.qmp(&format!(
            r#"{{"execute":"device_add","arguments":{{"driver":"max-x86_64-cpu","id":"cpu{core}",
            "socket-id":0,"core-id":{core},"thread-id":0}}}}"#
        ));
        guest.wait_for_shell("cat /sys/devices/system/cpu/present", &format!("0-{core}"));
    }
    for (wanted, reached) in [(3, 3), (1, 1), (2, 2), (64, 3)] {
        let Answer::Cpus(counts) = guest.ask(Call::SetOnlineCpus { count: wanted }) else {
            panic!("no counts")
        };
        assert_eq!((counts.present, counts.online), (3, reached), "{wanted} wanted");
        assert_eq!(guest.shell("nproc").trim(), reached.to_string());
    }
}

#[test]
fn the_agent_comes_back_and_does_not_spin() {
    if !qemu_is_there() {
        return;
    }
    let disk = Disk::new();
    let mut guest = Guest::boot(&disk);
    guest.ready();
    let notice = Notice::EndingSoon { seconds: 77 };
    let Answer::Notice(result) = guest.ask(Call::Notice { notice }) else { panic!("no result") };
    assert!(result.console);
    guest.wait_for_console("will be stopped in 77 seconds");

    // A guest that is killed says nothing; the next one greets.
    let pid = guest.shell("pidof plimsoll-guest");
    guest.send(guest::exec_call(&["kill", pid.trim()], Duration::from_secs(5)));
    guest.ready();
    assert_ne!(guest.shell("pidof plimsoll-guest"), pid);

    // Its CPU time in hundredths of a second, before and after three seconds without a host.
    let time = "awk '{ print $14 + $15 }' /proc/$(pidof plimsoll-guest)/stat";
    let before: u32 = guest.shell(time).trim().parse().unwrap();
    guest.hang_up();
    std::thread::sleep(Duration::from_secs(3));
    guest.connect();
    guest.ready();
    let after: u32 = guest.shell(time).trim().parse().unwrap();
    assert!(after - before < 60, "{before} -> {after}");

    guest.ask(Call::Shutdown { mode: ShutdownMode::Reboot });
    // With -no-reboot, QEMU ends where the machine would have started anew.
    guest.wait_for_exit();
}
