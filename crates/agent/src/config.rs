//! What an agent is told about its host: `agent.toml`, with the command line over it.
//!
//! Everything has a default but what only the operator can know. Unknown keys are refused, so that
//! a misspelt limit is an error and not a host without one.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use fs_err as fs;
use plimsoll_model::{
    Accelerators, BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, Label, MilliCores, Name,
    Resources,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The port at which an agent listens for the manager where none is said.
pub const DEFAULT_PORT: u16 = 8008;

/// Where the file is looked for when none is named.
pub const DEFAULT_CONFIG_PATH: &str = "/etc/plimsoll/agent.toml";

/// Why the configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("cannot understand {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it deviates.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A path is relative.
    #[error("`{key}` must be an absolute path, not {}", path.display())]
    RelativePath {
        /// The key.
        key: &'static str,
        /// What it says.
        path: PathBuf,
    },
    /// The host's own name is not one that it can have here.
    #[error("the machine's name cannot be the host's; set `name`")]
    HostName {
        /// Why not.
        #[source]
        source: plimsoll_model::name::InvalidName,
    },
    /// The machine's name is not readable.
    #[error("cannot read the machine's name; set `name`")]
    ReadHostName {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// How VMs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The kernel's virtual machines.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accelerator {
    /// The name that QEMU uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Where VMs' disks are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum StorageConfig {
    /// On the host itself.
    #[default]
    #[serde(skip)]
    Default,
    /// On the host itself, below a directory.
    Local {
        /// The directory.
        path: PathBuf,
    },
    /// On a file system that every host which names this pool has mounted.
    Shared {
        /// The pool's name.
        pool: Name,
        /// Where it is mounted here.
        path: PathBuf,
    },
}

/// Whose equal pages are merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeduplicationMode {
    /// Those of VMs of one project at a time.
    #[default]
    Project,
    /// Nobody's.
    Off,
    /// Those of all VMs. Every guest can find out what others hold in memory: for demonstrations.
    ForcedAcrossProjects,
}

/// How equal pages are merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeduplicationConfig {
    /// Whose.
    pub mode: DeduplicationMode,
}

/// Swap space that the agent sets up, and removes when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum SwapConfig {
    /// None: what the host has, if anything, is its operator's.
    None {},
    /// Compressed memory.
    Zram {
        /// How much goes into it, as it is before it is compressed.
        size: Bytes,
    },
    /// A file on a disk.
    File {
        /// Its size.
        size: Bytes,
        /// Where it lies; by default in `data_dir`.
        directory: Option<PathBuf>,
    },
}

impl Default for SwapConfig {
    fn default() -> Self {
        Self::None {}
    }
}

/// What to say the host has, element by element; what is not said is measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeclaredCapacity {
    /// Cores.
    pub cpu: Option<MilliCores>,
    /// Memory.
    pub memory: Option<Bytes>,
    /// Disk space.
    pub disk: Option<Bytes>,
    /// Disk bandwidth.
    pub disk_bandwidth: Option<BytesPerSecond>,
    /// Disk operations per second.
    pub disk_iops: Option<IoPerSecond>,
    /// Network bandwidth.
    pub network: Option<BitsPerSecond>,
}

impl DeclaredCapacity {
    /// `measured`, with what is declared in its place.
    #[must_use]
    pub fn over(&self, measured: &Resources) -> Resources {
        Resources {
            cpu: self.cpu.unwrap_or(measured.cpu),
            memory: self.memory.unwrap_or(measured.memory),
            disk: self.disk.unwrap_or(measured.disk),
            disk_bandwidth: self.disk_bandwidth.unwrap_or(measured.disk_bandwidth),
            disk_iops: self.disk_iops.unwrap_or(measured.disk_iops),
            network: self.network.unwrap_or(measured.network),
            accelerators: measured.accelerators.clone(),
        }
    }
}

/// All that an agent is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// The host's name in the cluster; by default the machine's, up to its first dot.
    pub name: Option<Name>,
    /// Where everything that must survive a reboot is kept. One agent at a time uses it.
    pub data_dir: PathBuf,
    /// Where the agent listens for the manager.
    pub listen: SocketAddr,
    /// The address by which the manager reaches the agent; by default the one that the agent listens
    /// at, or, where that is any, the one from which this machine reaches the manager.
    pub advertise: Option<IpAddr>,
    /// The address to which other hosts send VXLAN packets; by default the advertised one.
    pub underlay: Option<IpAddr>,
    /// The rack.
    pub rack: Option<Label>,
    /// The zone.
    pub zone: Option<Label>,
    /// Labels for constraints.
    pub labels: BTreeMap<Label, Label>,
    /// What the host is said to have, in place of what is measured.
    pub capacity: DeclaredCapacity,
    /// What is kept back for the host itself; by default, by the machine's size.
    pub reserve: DeclaredCapacity,
    /// Accelerators by model, beside those that are found.
    pub accelerators: Accelerators,
    /// Where VMs' disks are kept; by default below `data_dir`.
    pub storage: StorageConfig,
    /// The user that QEMU runs as, by name. By default each VM's runs as a user of its own, by a
    /// number that nobody else has; where the agent is not root, as the agent's.
    pub qemu_user: Option<String>,
    /// QEMU's program; by default the one in the search path.
    pub qemu: PathBuf,
    /// How VMs run; by default KVM where it works.
    pub accelerator: Option<Accelerator>,
    /// The cgroup below which VMs have theirs. Agents that share a machine need different ones.
    pub cgroup: String,
    /// An image that no VM has used for so long is deleted from the cache, in seconds.
    pub image_unused_s: u64,
    /// How equal pages of VMs are merged.
    pub deduplication: DeduplicationConfig,
    /// Swap space that the agent adds to the host's; by default none.
    pub swap: SwapConfig,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            name: None,
            data_dir: "/var/lib/plimsoll/agent".into(),
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)),
            advertise: None,
            underlay: None,
            rack: None,
            zone: None,
            labels: BTreeMap::new(),
            capacity: DeclaredCapacity::default(),
            reserve: DeclaredCapacity::default(),
            accelerators: Accelerators::default(),
            storage: StorageConfig::Default,
            qemu_user: None,
            qemu: "qemu-system-x86_64".into(),
            accelerator: None,
            cgroup: "plimsoll".into(),
            image_unused_s: 24 * 3600,
            deduplication: DeduplicationConfig::default(),
            swap: SwapConfig::default(),
        }
    }
}

/// What the command line says over the file.
#[derive(Clone, Debug, Default)]
pub struct AgentOverrides {
    /// See [`AgentConfig::name`].
    pub name: Option<Name>,
    /// See [`AgentConfig::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// See [`AgentConfig::listen`].
    pub listen: Option<SocketAddr>,
    /// See [`AgentConfig::advertise`].
    pub advertise: Option<IpAddr>,
    /// See [`AgentConfig::underlay`].
    pub underlay: Option<IpAddr>,
    /// See [`AgentConfig::rack`].
    pub rack: Option<Label>,
    /// See [`AgentConfig::zone`].
    pub zone: Option<Label>,
    /// Added to [`AgentConfig::labels`].
    pub labels: BTreeMap<Label, Label>,
    /// Over [`AgentConfig::capacity`], element by element.
    pub capacity: DeclaredCapacity,
    /// See [`AgentConfig::storage`].
    pub storage: Option<StorageConfig>,
    /// See [`AgentConfig::accelerator`].
    pub accelerator: Option<Accelerator>,
    /// See [`AgentConfig::cgroup`].
    pub cgroup: Option<String>,
}

impl AgentConfig {
    /// Reads the file: `path`, which must be there, or the default one, which need not.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_CONFIG_PATH));
        match fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, file),
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: file.to_owned(), source }),
        }
    }

    fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: file.to_owned(),
            source: Box::new(source),
        })
    }

    /// This, with what the command line says over it.
    #[must_use]
    pub fn with(mut self, over: AgentOverrides) -> Self {
        let capacity = &over.capacity;
        self.name = over.name.or(self.name);
        self.data_dir = over.data_dir.unwrap_or(self.data_dir);
        self.listen = over.listen.unwrap_or(self.listen);
        self.advertise = over.advertise.or(self.advertise);
        self.underlay = over.underlay.or(self.underlay);
        self.rack = over.rack.or(self.rack);
        self.zone = over.zone.or(self.zone);
        self.labels.extend(over.labels);
        self.capacity.cpu = capacity.cpu.or(self.capacity.cpu);
        self.capacity.memory = capacity.memory.or(self.capacity.memory);
        self.capacity.disk = capacity.disk.or(self.capacity.disk);
        self.capacity.disk_bandwidth = capacity.disk_bandwidth.or(self.capacity.disk_bandwidth);
        self.capacity.disk_iops = capacity.disk_iops.or(self.capacity.disk_iops);
        self.capacity.network = capacity.network.or(self.capacity.network);
        self.storage = over.storage.unwrap_or(self.storage);
        self.accelerator = over.accelerator.or(self.accelerator);
        self.cgroup = over.cgroup.unwrap_or(self.cgroup);
        self
    }

    /// Checks what can be checked without touching the host.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut paths = vec![("data_dir", &self.data_dir)];
        match &self.storage {
            StorageConfig::Local { path } | StorageConfig::Shared { path, .. } => {
                paths.push(("storage.path", path));
            }
            StorageConfig::Default => {}
        }
        if let SwapConfig::File { directory: Some(path), .. } = &self.swap {
            paths.push(("swap.directory", path));
        }
        for (key, path) in paths {
            if !path.is_absolute() {
                return Err(ConfigError::RelativePath { key, path: path.clone() });
            }
        }
        Ok(())
    }

    /// The host's name: the configured one, or the machine's up to its first dot.
    ///
    /// # Errors
    /// The machine's name cannot be read or is not a [`Name`].
    pub fn host_name(&self) -> Result<Name, ConfigError> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let text = fs::read_to_string("/proc/sys/kernel/hostname")
            .map_err(|source| ConfigError::ReadHostName { source })?;
        let first = text.trim().split('.').next().unwrap_or_default();
        first.to_ascii_lowercase().parse().map_err(|source| ConfigError::HostName { source })
    }

    /// The directory with the VMs' disks.
    #[must_use]
    pub fn storage_path(&self) -> PathBuf {
        match &self.storage {
            StorageConfig::Default => self.data_dir.join("disks"),
            StorageConfig::Local { path } | StorageConfig::Shared { path, .. } => path.clone(),
        }
    }

    /// The pool as other hosts know it.
    #[must_use]
    pub fn storage_pool(&self) -> plimsoll_model::StoragePool {
        match &self.storage {
            StorageConfig::Shared { pool, .. } => {
                plimsoll_model::StoragePool::Shared { pool: pool.clone() }
            }
            _ => plimsoll_model::StoragePool::Local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AgentConfig, ConfigError> {
        AgentConfig::parse(text, Path::new("agent.toml"))
    }

    #[test]
    fn a_whole_file_is_understood_and_the_command_line_wins() {
        let config = parse(
            r#"
            name = "host-a"
            data_dir = "/srv/plimsoll"
            listen = "10.0.0.1:8008"
            rack = "r1"
            labels = { disk = "ssd" }
            capacity = { cpu = 8, memory = "32GiB" }
            reserve = { memory = "1GiB" }
            storage = { kind = "shared", pool = "nas", path = "/mnt/nas" }
            accelerator = "tcg"
            accelerators = { a100 = 2 }
            deduplication = { mode = "forced-across-projects" }
            swap = { kind = "file", size = "2GiB" }
            "#,
        )
        .unwrap();
        config.check().unwrap();
        assert_eq!(config.swap, SwapConfig::File { size: Bytes::gib(2), directory: None });
        assert_eq!(config.storage_path(), Path::new("/mnt/nas"));
        assert_eq!(config.deduplication.mode, DeduplicationMode::ForcedAcrossProjects);
        let config = config.with(AgentOverrides {
            capacity: DeclaredCapacity { cpu: Some(MilliCores::cores(4)), ..Default::default() },
            ..Default::default()
        });
        let measured = Resources { disk: Bytes::gib(100), ..Resources::default() };
        let capacity = config.capacity.over(&measured);
        assert_eq!(capacity.cpu, MilliCores::cores(4));
        assert_eq!(capacity.memory, Bytes::gib(32));
        assert_eq!(capacity.disk, Bytes::gib(100));
    }

    #[test]
    fn what_is_not_known_or_not_possible_is_refused() {
        for text in [
            "nmae = \"x\"",
            "name = \"Not A Name\"",
            "capacity = { cpus = 8 }",
            "capacity = { memory = \"lots\" }",
            "accelerator = \"xen\"",
            "storage = { kind = \"shared\", path = \"/x\" }",
            "storage = { kind = \"local\", path = \"/x\", pool = \"nas\" }",
            "listen = \"here\"",
            "deduplication = { mode = \"all\" }",
            "swap = { kind = \"none\", size = \"1GiB\" }",
            "swap = { kind = \"zram\" }",
            "swap = { kind = \"file\", path = \"/x\", size = \"1GiB\" }",
        ] {
            assert!(matches!(parse(text), Err(ConfigError::Parse { .. })), "{text}");
        }
        let relative = parse("data_dir = \"here\"").unwrap();
        assert!(matches!(relative.check(), Err(ConfigError::RelativePath { .. })));
        let swap = "swap = { kind = \"file\", size = \"1GiB\", directory = \"here\" }";
        let relative = parse(swap).unwrap().check();
        assert!(matches!(relative, Err(ConfigError::RelativePath { key: "swap.directory", .. })));
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let missing = Path::new("/nonexistent/agent.toml");
        assert!(matches!(AgentConfig::load(Some(missing)), Err(ConfigError::Read { .. })));
    }
}
