//! Which cgroup hierarchies are mounted, where, and with which controllers.

use std::path::{Path, PathBuf};

use std::fs;

use super::LimitsError;

/// A hierarchy of version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// The controllers it carries, such as `cpu` and `cpuacct`.
    pub controllers: Vec<String>,
}

/// The mounted hierarchies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupMounts {
    /// Those of version 1, in the order of mounting.
    pub v1: Vec<V1Mount>,
    /// That of version 2.
    pub v2: Option<PathBuf>,
    /// The controllers that version 2 offers at its root.
    pub v2_controllers: Vec<String>,
}

impl CgroupMounts {
    /// Those that this process sees.
    ///
    /// # Errors
    /// [`LimitsError::Mounts`]. A version 2 mount whose controllers cannot be read counts as one
    /// without controllers.
    pub fn of_this_process() -> Result<Self, LimitsError> {
        let path = PathBuf::from("/proc/self/mounts");
        let text =
            fs::read_to_string(&path).map_err(|source| LimitsError::Mounts { path, source })?;
        let mut mounts = Self::parse(&text);
        if let Some(root) = &mounts.v2 {
            mounts.v2_controllers = fs::read_to_string(root.join("cgroup.controllers"))
                .map(|text| text.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default();
        }
        Ok(mounts)
    }

    /// Reads the form of `/proc/mounts`. The controllers of version 2 are not in there.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        // Options of version 1 that are no controllers.
        const FLAGS: [&str; 9] = [
            "rw",
            "ro",
            "nosuid",
            "nodev",
            "noexec",
            "relatime",
            "noatime",
            "clone_children",
            "xattr",
        ];
        let mut mounts = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, path, kind, options, ..] = fields[..] else { continue };
            let path = PathBuf::from(unescape(path));
            match kind {
                "cgroup" => mounts.v1.push(V1Mount {
                    path,
                    controllers: options
                        .split(',')
                        .filter(|option| !FLAGS.contains(option) && !option.contains('='))
                        .map(str::to_owned)
                        .collect(),
                }),
                "cgroup2" if mounts.v2.is_none() => mounts.v2 = Some(path),
                _ => {}
            }
        }
        mounts
    }

    /// The version 1 hierarchy with a controller.
    #[must_use]
    pub fn v1_with(&self, controller: &str) -> Option<&Path> {
        let has = |mount: &&V1Mount| mount.controllers.iter().any(|name| name == controller);
        self.v1.iter().find(has).map(|mount| mount.path.as_path())
    }

    /// The version 2 hierarchy, if it has a controller.
    #[must_use]
    pub fn v2_with(&self, controller: &str) -> Option<&Path> {
        let has = self.v2_controllers.iter().any(|name| name == controller);
        if has { self.v2.as_deref() } else { None }
    }
}

/// The kernel writes blanks in paths as `\040` and the like.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}
