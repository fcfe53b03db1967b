//! Names, addresses and directories of a lab, and what is remembered of it.

use std::{
    collections::BTreeMap,
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use fs_err as fs;
use nix::fcntl::{Flock, FlockArg};
use plimsoll_agent::config::{DeduplicationMode, SwapConfig};
use plimsoll_model::{
    BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores, Name, Resources,
};
use serde::{Deserialize, Serialize};

use super::process::Recorded;
use crate::{
    cli::lab::LabNameArgs,
    config::write_private,
    failure::{Failure, OrFail as _, Outcome},
};

/// The manager's name among the processes.
pub(crate) const MANAGER: &str = "manager";
/// The longest path of a unix socket that the kernel takes, in bytes.
const LONGEST_SOCKET: usize = 107;
/// The port of the users' API within the lab.
pub(crate) const API_PORT: u16 = 8006;
/// The port at which the manager listens for agents.
pub(crate) const CLUSTER_PORT: u16 = 8007;
/// The port at which each agent listens.
pub(crate) const AGENT_PORT: u16 = 7703;

/// What a lab is to be. Decided by the first `up`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LabSpec {
    /// How many hosts.
    pub(crate) hosts: u8,
    /// What each is said to have.
    pub(crate) capacity: Resources,
    /// Whether disks lie in a pool that all hosts share.
    pub(crate) shared_pool: bool,
    /// Whose equal pages are merged.
    #[serde(default)]
    pub(crate) deduplication: DeduplicationMode,
    /// What swap space each host's agent sets up.
    #[serde(default)]
    pub(crate) swap: SwapConfig,
}

impl Default for LabSpec {
    fn default() -> Self {
        Self {
            hosts: 3,
            capacity: Resources {
                cpu: MilliCores::cores(4),
                memory: Bytes::gib(4),
                disk: Bytes::gib(20),
                disk_bandwidth: BytesPerSecond(400 << 20),
                disk_iops: IoPerSecond(20_000),
                network: BitsPerSecond(1_000_000_000),
                ..Resources::default()
            },
            shared_pool: true,
            deduplication: DeduplicationMode::default(),
            swap: SwapConfig::default(),
        }
    }
}

/// What is remembered of a lab: `lab.json` in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LabState {
    /// What it is to be.
    pub(crate) spec: LabSpec,
    /// The processes that were started, by part: `manager`, `host-1`, ...
    #[serde(default)]
    pub(crate) processes: BTreeMap<String, Recorded>,
    /// Hosts whose link was taken down.
    #[serde(default)]
    pub(crate) cut: Vec<String>,
}

/// A lab, held by one command at a time.
#[derive(Debug)]
pub(crate) struct Lab {
    /// Its name.
    pub(crate) name: Name,
    /// Where its data lies.
    pub(crate) directory: PathBuf,
    _lock: Option<Flock<File>>,
}

impl Lab {
    /// The lab that the command line means. Nothing is made.
    pub(crate) fn find(args: &LabNameArgs) -> Outcome<Self> {
        let directory = match &args.directory {
            Some(directory) => std::path::absolute(directory)?,
            None => Path::new("/var/lib/plimsoll/labs").join(args.name.as_str()),
        };
        let lab = Self { name: args.name.clone(), directory, _lock: None };
        let length = lab.socket().as_os_str().len();
        if length > LONGEST_SOCKET {
            return Err(Failure::usage(format!(
                "the lab's directory is too long: the manager's socket in it would have a path of \
                 {length} bytes, and at most {LONGEST_SOCKET} are possible"
            ))
            .hint("give another one with --directory, or a shorter --name"));
        }
        Ok(lab)
    }

    /// The same, made if need be, and held against other commands.
    pub(crate) fn hold(args: &LabNameArgs, make: bool) -> Outcome<Self> {
        let mut lab = Self::find(args)?;
        if make {
            fs::create_dir_all(&lab.directory).or_fail(|| "cannot make the lab".to_owned())?;
        } else if !lab.state_path().exists() {
            return Err(lab.not_there());
        }
        let path = lab.directory.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lab._lock = Some(lock),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(Failure::new(format!("another command works on lab `{}`", lab.name))
                    .hint("wait until it has ended"));
            }
            Err((_, errno)) => return Err(errno.into()),
        }
        Ok(lab)
    }

    /// There is no such lab.
    pub(crate) fn not_there(&self) -> Failure {
        Failure::new(format!("there is no lab `{}` in {}", self.name, self.directory.display()))
            .hint("`plimsoll lab up` makes one")
    }

    fn state_path(&self) -> PathBuf {
        self.directory.join("lab.json")
    }

    /// What is remembered of it; none before the first `up`.
    pub(crate) fn load(&self) -> Outcome<Option<LabState>> {
        let path = self.state_path();
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(
                serde_json::from_str(&text)
                    .or_fail(|| format!("cannot understand {}", path.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Remembers it.
    pub(crate) fn save(&self, state: &LabState) -> Outcome {
        write_private(&self.state_path(), &serde_json::to_string_pretty(state)?, true)
    }

    /// The namespace of a part: `sw`, `manager`, or a host.
    pub(crate) fn namespace(&self, part: &str) -> String {
        format!("plimsoll-{}-{part}", self.name)
    }

    /// The file of a namespace.
    pub(crate) fn namespace_path(&self, part: &str) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(part))
    }

    /// Where the manager keeps its state.
    pub(crate) fn manager_directory(&self) -> PathBuf {
        self.directory.join(MANAGER)
    }

    /// The manager's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.manager_directory().join("api.sock")
    }

    /// The first admin's token.
    pub(crate) fn admin_token(&self) -> PathBuf {
        self.manager_directory().join("admin.token")
    }

    /// The log of a part.
    pub(crate) fn log(&self, part: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{part}.log"))
    }

    /// The configuration of a part.
    pub(crate) fn config(&self, part: &str) -> PathBuf {
        self.directory.join("config").join(format!("{part}.toml"))
    }

    /// Where a host keeps its state.
    pub(crate) fn host_directory(&self, host: &str) -> PathBuf {
        self.directory.join("hosts").join(host)
    }

    /// Where the pool that all hosts share lies.
    pub(crate) fn pool(&self) -> PathBuf {
        self.directory.join("pool")
    }

    /// The cgroup below which a host's VMs have theirs.
    pub(crate) fn cgroup(&self, host: &str) -> String {
        format!("plimsoll-{}-{host}", self.name)
    }
}

/// The name of a host by its number from 1.
pub(crate) fn host_name(number: u8) -> String {
    format!("host-{number}")
}

/// The hosts of so many.
pub(crate) fn host_names(count: u8) -> impl Iterator<Item = (u8, String)> {
    (1..=count).map(|number| (number, host_name(number)))
}

/// The manager's address.
pub(crate) const fn manager_address() -> Ipv4Addr {
    Ipv4Addr::new(10, 254, 0, 1)
}

/// A host's address by its number.
pub(crate) const fn host_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 254, 0, 10 + number)
}

/// The port of the switch to which a part is connected: the manager is 0, hosts have their numbers.
pub(crate) fn switch_port(number: u8) -> String {
    format!("p{number}")
}
