//! What a guest wrote, and typing into it: logs and the serial console.

use std::{
    fs::File,
    io::{Read, Write as _},
    process::Child,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    pty::{OpenptyResult, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};

use super::lab::Lab;

const LIMIT: Duration = Duration::from_secs(30);

/// All that comes out of something, as it comes.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Seen {
    fn of(mut source: impl Read + Send + 'static) -> Self {
        let seen = Self::default();
        let into = seen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // A terminal whose other side is gone answers with an error, which is its end too.
            while let Ok(count @ 1..) = source.read(&mut bytes) {
                into.0.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        seen
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// `vm console` on a terminal of its own.
struct Terminal {
    ours: File,
    /// Its other side, kept open to look at its settings.
    theirs: File,
    seen: Seen,
    console: Child,
}

impl Terminal {
    fn attach(lab: &Lab, project: &str, vm: &str) -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let ours = File::from(master);
        let theirs = File::from(slave);
        let side = || theirs.try_clone().unwrap();
        let console = lab
            .command()
            .args(["-p", project, "vm", "console", vm])
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let seen = Seen::of(ours.try_clone().unwrap());
        Self { ours, theirs, seen, console }
    }

    fn type_in(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    #[track_caller]
    fn wait(&self, lab: &Lab, text: &str) {
        lab.wait(&format!("the console shows {text:?}: {}", self.seen.text()), LIMIT, || {
            self.seen.text().contains(text)
        });
    }

    /// Whether a key is sent on at once, unseen and unchanged.
    fn is_raw(&self) -> bool {
        let flags = tcgetattr(&self.theirs).unwrap().local_flags;
        !flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    fn leave(&mut self, lab: &Lab) {
        self.type_in("\u{1d}");
        lab.wait("the console is left", LIMIT, || self.console.try_wait().unwrap().is_some());
        assert_eq!(self.console.wait().unwrap().code(), Some(0), "{}", self.seen.text());
        assert!(!self.is_raw(), "the terminal is left as it was");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.console.kill();
        let _ = self.console.wait();
    }
}

#[test]
fn logs_and_the_console_of_a_vm() {
    let Some(lab) = Lab::start(1) else { return };
    lab.ok(&["project", "create", "shop"]);
    lab.ok(&["-p", "shop", "vm", "create", "web", "--image", "tiny", "--memory", "128MiB"]);
    the_console(&lab);
    the_log(&lab);
}

fn the_console(lab: &Lab) {
    let mut first = Terminal::attach(lab, "shop", "web");
    first.wait(lab, "Ctrl-] leaves");
    lab.wait("the terminal is raw", LIMIT, || first.is_raw());
    first.type_in("\r");
    first.wait(lab, "/ # ");
    // Not what was typed, which comes back too, but what the guest made of it.
    first.type_in("echo answer-$((6*7))\r");
    first.wait(lab, "answer-42");
    // Ctrl-C is the guest's.
    first.type_in("sleep 1000\r");
    lab.wait("the guest sleeps", LIMIT, || {
        lab.try_exec("shop", "web", &["pidof", "sleep"]).code == Some(0)
    });
    first.type_in("\u{3}");
    first.type_in("echo awake-$((6*8))\r");
    first.wait(lab, "awake-48");

    // A second one sees the same, but only one types.
    let mut second = Terminal::attach(lab, "shop", "web");
    second.wait(lab, "Ctrl-] leaves");
    second.type_in("x");
    second.wait(lab, "you can only watch");
    first.type_in("echo shared-$((6*9))\r");
    second.wait(lab, "shared-54");
    first.leave(lab);
    // The one that typed is gone: the next may.
    second.type_in("echo mine-$((7*7))\r");
    second.wait(lab, "mine-49");
    second.leave(lab);
}

fn the_log(lab: &Lab) {
    let log = || lab.ok(&["-p", "shop", "vm", "logs", "web"]).stdout;
    assert!(log().contains("tiny: web is up"), "{}", log());
    assert!(log().contains("answer-42"), "what the console showed is in the log:\n{}", log());
    let tail = lab.ok(&["-p", "shop", "vm", "logs", "web", "--tail", "16B"]).stdout;
    assert!(!tail.is_empty() && tail.len() <= 16, "{tail:?}");
    let json = lab.json(&["-p", "shop", "vm", "logs", "web"]);
    assert!(json["log"].as_str().unwrap().contains("answer-42"));

    let mut follower = lab.spawn(&["-p", "shop", "vm", "logs", "web", "--follow", "--tail", "0B"]);
    let seen = Seen::of(follower.stdout.take().unwrap());
    // The kernel itself, which the image has told to be silent.
    let speak = "echo 7 >/proc/sys/kernel/printk; echo '<1>the kernel speaks' >/dev/kmsg";
    lab.wait("the log is followed", LIMIT, || {
        lab.exec("shop", "web", &["sh", "-c", speak]);
        seen.text().contains("] the kernel speaks")
    });
    assert!(log().contains("] the kernel speaks"));

    // It goes on over a reboot, after which the log still has what was before.
    lab.ok(&["-p", "shop", "vm", "reboot", "web"]);
    lab.wait("the follower sees the guest boot again", Duration::from_secs(60), || {
        seen.text().contains("tiny: web is up")
    });
    assert_eq!(log().matches("tiny: web is up").count(), 2, "{}", log());
    follower.kill().unwrap();
    follower.wait().unwrap();

    // A VM that is stopped has a log, and no console.
    lab.ok(&["-p", "shop", "vm", "stop", "web", "--grace", "0s"]);
    assert!(log().contains("answer-42"));
    for argv in [&["vm", "console", "web"][..], &["vm", "exec", "web", "--", "true"]] {
        let ran = lab.run(&[&["-p", "shop"], argv].concat());
        assert_eq!(ran.code, Some(1), "{argv:?}: {}", ran.stdout);
        assert!(ran.stderr.contains("hint: "), "{argv:?}: {}", ran.stderr);
    }
}
