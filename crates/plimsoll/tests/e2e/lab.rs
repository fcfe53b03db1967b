//! A lab for one test: brought up by the built program in a temporary directory, under a name of its
//! own, and taken down with all that it holds when it is dropped.
//!
//! ```ignore
//! let Some(lab) = Lab::start(3) else { return };          // skipped, loudly
//! lab.apply("project = \"shop\" ...");                    // plimsoll apply --yes
//! let vm = lab.vm("shop", "web-1");                       // as JSON
//! let text = lab.exec("shop", "web-1", &["uname", "-r"]); // what it wrote
//! lab.kill("host-2"); lab.cut("host-3"); lab.heal();      // chaos; `lab up` again
//! lab.wait("web-1 runs elsewhere", Duration::from_secs(90), || ...);
//! ```

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Between two looks of [`Lab::wait`].
const POLL: Duration = Duration::from_millis(300);

/// A lab of one test.
#[derive(Debug)]
pub(crate) struct Lab {
    name: String,
    directory: tempfile::TempDir,
}

/// What became of a command.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its standard output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}:\n{}\n{}", self.stdout, self.stderr))
    }

    /// The same, if it succeeded.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

/// The directory of the image `tiny`: `PLIMSOLL_TEST_IMAGE`, or where `images/build` puts it.
pub(crate) fn tiny_image() -> PathBuf {
    std::env::var_os("PLIMSOLL_TEST_IMAGE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.build/images/tiny"),
        PathBuf::from,
    )
}

/// What is missing for real VMs, if anything.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root".to_owned());
    }
    if !tiny_image().join("image.toml").exists() {
        return Some("the image tiny (`images/build tiny`)".to_owned());
    }
    ["qemu-system-x86_64", "qemu-img", "ip"].into_iter().find_map(|program| {
        let there = std::env::split_paths(&std::env::var_os("PATH")?)
            .any(|directory| directory.join(program).exists());
        (!there).then(|| program.to_owned())
    })
}

impl Lab {
    /// Brings up a lab of so many hosts of 4 cores and 4 GiB, with the image `tiny`. None, with a
    /// loud word, where something is missing for that.
    pub(crate) fn start(hosts: u8) -> Option<Self> {
        Self::start_with(hosts, &[])
    }

    /// The same with more options of `lab up`.
    pub(crate) fn start_with(hosts: u8, options: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if let Some(what) = missing() {
            // A proof that proved nothing must not look like one.
            assert!(std::env::var_os("CI").is_none(), "no real VMs without {what}");
            eprintln!("SKIPPED: no real VMs without {what}");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            name: format!("t{}-{number}", std::process::id()),
            directory: tempfile::Builder::new().prefix("plimsoll-").tempdir().unwrap(),
        };
        lab.up_with(hosts, options).succeeded();
        Some(lab)
    }

    fn up_with(&self, hosts: u8, options: &[&str]) -> Ran {
        let (hosts, image) = (hosts.to_string(), tiny_image());
        let mut arguments = vec![OsStr::new("lab"), OsStr::new("up"), OsStr::new("--hosts")];
        arguments.extend([OsStr::new(&hosts), OsStr::new("--image"), image.as_os_str()]);
        arguments.extend(options.iter().map(OsStr::new));
        self.lab_command(&arguments)
    }

    /// The lab's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The directory with the lab's data: `manager/`, `hosts/HOST/`, `pool/`, `logs/`.
    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.path().join("lab")
    }

    /// `plimsoll`, as a user of this lab runs it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        // A home of its own: the context that `lab up` writes is this lab's, and nobody else's.
        command
            .env("HOME", self.directory.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("PLIMSOLL_PROJECT")
            .env_remove("PLIMSOLL_SERVER")
            .env_remove("PLIMSOLL_TOKEN_FILE")
            .env_remove("PLIMSOLL_CONTEXT")
            .stdin(Stdio::null());
        command
    }

    fn lab_command(&self, arguments: &[impl AsRef<OsStr>]) -> Ran {
        let output = self
            .command()
            .args(arguments)
            .arg("--name")
            .arg(&self.name)
            .arg("--directory")
            .arg(self.directory())
            .output()
            .unwrap();
        ran(output)
    }

    /// `plimsoll ARGUMENTS`, whatever comes of it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.command().args(arguments).output().unwrap())
    }

    /// `plimsoll ARGUMENTS` in the background; the caller ends and awaits it.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> std::process::Child {
        self.command()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// `plimsoll ARGUMENTS`, which must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> Ran {
        self.run(arguments).succeeded()
    }

    /// `plimsoll ARGUMENTS --json`, which must succeed.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<_> = ["--json"].iter().chain(arguments).copied().collect();
        self.ok(&arguments).json()
    }

    /// Applies a description, with more options such as `--delete`; whatever comes of it.
    pub(crate) fn apply_with(&self, description: &str, options: &[&str]) -> Ran {
        let path = self.directory.path().join("apply.toml");
        std::fs::write(&path, description).unwrap();
        let path = path.to_str().unwrap();
        let arguments: Vec<_> =
            ["apply", "--yes", "-f", path].iter().chain(options).copied().collect();
        self.run(&arguments)
    }

    /// Applies a description, which must succeed.
    #[track_caller]
    pub(crate) fn apply(&self, description: &str) -> Ran {
        self.apply_with(description, &[]).succeeded()
    }

    /// A VM as JSON.
    #[track_caller]
    pub(crate) fn vm(&self, project: &str, name: &str) -> Value {
        self.json(&["-p", project, "vm", "show", name])
    }

    /// The VMs of a project as JSON.
    #[track_caller]
    pub(crate) fn vms(&self, project: &str) -> Vec<Value> {
        self.json(&["-p", project, "vm", "list"]).as_array().unwrap().clone()
    }

    /// A VM's first address.
    #[track_caller]
    pub(crate) fn address(&self, project: &str, name: &str) -> String {
        self.vm(project, name)["addresses"][0].as_str().unwrap().to_owned()
    }

    /// Runs a program in a VM, which must succeed; what it wrote, without the blanks around it.
    #[track_caller]
    pub(crate) fn exec(&self, project: &str, vm: &str, argv: &[&str]) -> String {
        self.try_exec(project, vm, argv).succeeded().stdout.trim().to_owned()
    }

    /// Runs a program in a VM, whatever comes of it.
    pub(crate) fn try_exec(&self, project: &str, vm: &str, argv: &[&str]) -> Ran {
        let arguments: Vec<_> =
            ["-p", project, "vm", "exec", vm, "--"].iter().chain(argv).copied().collect();
        self.run(&arguments)
    }

    /// SIGKILL to `manager` or a host's agent.
    #[track_caller]
    pub(crate) fn kill(&self, target: &str) {
        self.lab_command(&["lab", "kill", target]).succeeded();
    }

    /// Cuts a host off.
    #[track_caller]
    pub(crate) fn cut(&self, host: &str) {
        self.lab_command(&["lab", "cut", host]).succeeded();
    }

    /// Mends the link of a host.
    #[track_caller]
    pub(crate) fn mend(&self, host: &str) {
        self.lab_command(&["lab", "heal", host]).succeeded();
    }

    /// `lab up` again: starts what is dead, mends every link.
    #[track_caller]
    pub(crate) fn heal(&self) -> Ran {
        self.lab_command(&["lab", "up"]).succeeded()
    }

    /// `lab up` again, with more options.
    #[track_caller]
    pub(crate) fn change(&self, options: &[&str]) {
        let arguments: Vec<_> = ["lab", "up"].iter().chain(options).copied().collect();
        self.lab_command(&arguments).succeeded();
    }

    /// `lab down`: every process ends, the data stays.
    #[track_caller]
    pub(crate) fn down(&self) {
        self.lab_command(&["lab", "down"]).succeeded();
    }

    /// How many QEMUs the lab has, by what the kernel says.
    #[track_caller]
    pub(crate) fn vms_running(&self) -> u64 {
        let status = self.status();
        status["parts"].as_array().unwrap().iter().map(|part| part["vms"].as_u64().unwrap()).sum()
    }

    /// The lab's own status as JSON.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.lab_command(&["lab", "status", "--json"]).succeeded().json()
    }

    /// The log of a part, such as `manager` or `host-1`.
    pub(crate) fn log(&self, part: &str) -> String {
        std::fs::read_to_string(self.directory().join("logs").join(format!("{part}.log")))
            .unwrap_or_default()
    }

    /// Looks until `done` says yes; fails after `limit`.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + limit;
        while !done() {
            assert!(Instant::now() < deadline, "not within {limit:?}: {what}\n{}", self.picture());
            std::thread::sleep(POLL);
        }
    }

    /// Everything that helps to see why a test failed.
    pub(crate) fn picture(&self) -> String {
        let mut text = String::new();
        for arguments in [&["host", "list"][..], &["vm", "list", "--all-projects"], &["events"]] {
            let ran = self.run(arguments);
            text.push_str(&format!(
                "$ plimsoll {}\n{}{}\n",
                arguments.join(" "),
                ran.stdout,
                ran.stderr
            ));
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.picture());
            for part in ["manager", "host-1", "host-2", "host-3"] {
                let log = self.log(part);
                let lines: Vec<_> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(20)..];
                eprintln!("== end of the log of {part}\n{}", last.join("\n"));
            }
        }
        let ran = self.lab_command(&["lab", "down", "--purge", "--yes"]);
        if ran.code != Some(0) {
            eprintln!("cannot take lab {} down:\n{}", self.name, ran.stderr);
        }
    }
}

fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
