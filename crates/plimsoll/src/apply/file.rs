//! The file: TOML, with every key checked.
//!
//! ```toml
//! project = { name = "shop", quota = { vms = 20, cpu = 16 } }   # or: project = "shop"
//! policy = "most-free"                                         # optional
//!
//! [[network]]
//! name = "shop"
//! cidr = "10.20.0.0/24"        # optional
//!
//! [[vm]]
//! name = "web"
//! count = 3                    # web-1, web-2, web-3; or split = { min_vms = 2 }, or neither
//! image = "tiny"
//! resources = { cpu = "500m", memory = "128MiB", disk = "1GiB" }
//! networks = ["shop"]
//! groups = ["web"]
//! constraints = [{ anti_affinity = { group = "web", scope = "host" } }]
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use plimsoll_api::v1::Split;
use plimsoll_model::{
    Accelerators, BitsPerSecond, Bytes, BytesPerSecond, Cidr, Constraint, Elasticity, IoPerSecond,
    MilliCores, Name, OnHostFailure, Policy, Quota, RestartPolicy, Timestamp,
};
use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

/// The most VMs that one file may name: as many as one request may ask for.
const MOST_VMS: u64 = 1000;
/// The longest file, in bytes.
pub(crate) const LONGEST: usize = 4 << 20;

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum FileError {
    /// It is not of the form that it should be.
    #[error("it is not a description of a project")]
    Parse(#[source] Box<toml::de::Error>),
    /// Both forms of many VMs at once.
    #[error("vm `{0}` has both `count` and `split`")]
    CountAndSplit(Name),
    /// No VM at all, or too many.
    #[error("vm `{name}`: `count` must be from 1 to {MOST_VMS}, not {count}")]
    Count { name: Name, count: u32 },
    /// A split that no number of VMs meets.
    #[error("vm `{name}`: `split` must be from 1 to 128 VMs, not from {min} to {max}")]
    Split { name: Name, min: u32, max: u32 },
    /// A total without disk space.
    #[error("vm `{0}`: a total must say how much `disk` there is to split")]
    SplitDisk(Name),
    /// A VM without anything to run with.
    #[error("vm `{name}`: `resources.{element}` must be more than zero")]
    Zero { name: Name, element: &'static str },
    /// Accelerators that no VM can have.
    #[error("vm `{name}` asks for accelerators that no VM can have")]
    Accelerators {
        name: Name,
        #[source]
        source: plimsoll_model::InvalidAccelerator,
    },
    /// One name, two things.
    #[error("the {kind} `{name}` is described twice")]
    Twice { kind: &'static str, name: String },
    /// A member's name would be too long.
    #[error("vm `{0}`: with its numbers the name is too long")]
    LongName(Name),
    /// Too many VMs.
    #[error("the file describes {0} VMs; at most {MOST_VMS} can be asked for at once")]
    TooMany(u64),
    /// An image that cannot be.
    #[error("vm `{0}` ends before it starts")]
    EndsFirst(Name),
}

/// A file, checked.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// The project.
    pub(crate) project: ProjectEntry,
    /// The policy with which VMs are created.
    pub(crate) policy: Option<Policy>,
    /// Networks.
    pub(crate) networks: Vec<NetworkEntry>,
    /// VMs.
    pub(crate) vms: Vec<VmEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(deserialize_with = "project")]
    project: ProjectEntry,
    #[serde(default)]
    policy: Option<Policy>,
    #[serde(default, rename = "network")]
    networks: Vec<NetworkEntry>,
    #[serde(default, rename = "vm")]
    vms: Vec<VmEntry>,
}

/// The project: a name, or a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProjectEntry {
    /// Its name.
    pub(crate) name: Name,
    /// The most that it may hold; without, its quota is left as it is.
    #[serde(default)]
    pub(crate) quota: Option<Quota>,
}

/// `project = "shop"` and `project = { name = "shop", ... }` both say which project it is.
fn project<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ProjectEntry, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(name) => {
            Ok(ProjectEntry { name: name.parse().map_err(de::Error::custom)?, quota: None })
        }
        table @ toml::Value::Table(_) => table.try_into().map_err(de::Error::custom),
        _ => Err(de::Error::custom("expected a name, or a table with `name` and `quota`")),
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkEntry {
    /// Its name.
    pub(crate) name: Name,
    /// Its addresses; without, any will do.
    #[serde(default)]
    pub(crate) cidr: Option<Cidr>,
    /// Whether guests reach the outside.
    #[serde(default)]
    pub(crate) outside: bool,
}

/// What a VM is promised. Like [`plimsoll_model::Resources`], but that the disk may be left to the image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResourcesEntry {
    /// Cores.
    pub(crate) cpu: MilliCores,
    /// Memory.
    pub(crate) memory: Bytes,
    /// Disk space; without, as much as the image's disk has, and any later size will do.
    #[serde(default)]
    pub(crate) disk: Option<Bytes>,
    /// Disk bandwidth.
    #[serde(default)]
    pub(crate) disk_bandwidth: BytesPerSecond,
    /// Disk operations per second.
    #[serde(default)]
    pub(crate) disk_iops: IoPerSecond,
    /// Network bandwidth.
    #[serde(default)]
    pub(crate) network: BitsPerSecond,
    /// Accelerators.
    #[serde(default)]
    pub(crate) accelerators: Accelerators,
}

/// VMs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmEntry {
    /// The VM's name, or the first part of its members' names.
    pub(crate) name: Name,
    /// So many equal ones.
    #[serde(default)]
    pub(crate) count: Option<u32>,
    /// The resources are a total, to be split into VMs.
    #[serde(default)]
    pub(crate) split: Option<Split>,
    /// The image.
    pub(crate) image: Name,
    /// What each is promised, or with `split` all together.
    pub(crate) resources: ResourcesEntry,
    /// Networks, one interface each.
    #[serde(default)]
    pub(crate) networks: Vec<Name>,
    /// The application.
    #[serde(default)]
    pub(crate) application: Option<Name>,
    /// Placement groups.
    #[serde(default)]
    pub(crate) groups: BTreeSet<Name>,
    /// Constraints.
    #[serde(default, deserialize_with = "constraints")]
    pub(crate) constraints: Vec<Constraint>,
    /// cloud-init user data.
    #[serde(default)]
    pub(crate) user_data: Option<String>,
    /// SSH public keys.
    #[serde(default)]
    pub(crate) ssh_keys: Vec<String>,
    /// Before when not to start; only said at creation.
    #[serde(default, alias = "start_at")]
    pub(crate) start_after: Option<Timestamp>,
    /// For how long to run, such as `2h`; only said at creation.
    #[serde(default, deserialize_with = "duration")]
    pub(crate) duration: Option<Duration>,
    /// By when all of the duration must be over; only said at creation.
    #[serde(default)]
    pub(crate) deadline: Option<Timestamp>,
    /// When to stop; without, what it has is left as it is.
    #[serde(default)]
    pub(crate) end_at: Option<Timestamp>,
    /// What to do when QEMU ends unexpectedly.
    #[serde(default)]
    pub(crate) restart: RestartPolicy,
    /// What to do when its host is fenced.
    #[serde(default)]
    pub(crate) on_host_failure: OnHostFailure,
    /// How far it gives back what it was promised.
    #[serde(default)]
    pub(crate) elasticity: Elasticity,
}

/// A duration as on the command line.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    crate::cli::values::duration(&text).map(Some).map_err(de::Error::custom)
}

/// Constraints with every key checked: serde ignores unknown keys beside a flattened enum.
fn constraints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Constraint>, D::Error> {
    const RULES: [&str; 4] = ["affinity", "anti_affinity", "exclusive", "host_label"];
    let tables = Vec::<BTreeMap<String, toml::Value>>::deserialize(deserializer)?;
    tables
        .into_iter()
        .map(|table| {
            let rules = table.keys().filter(|key| RULES.contains(&key.as_str())).count();
            if rules != 1 {
                return Err(de::Error::custom(format!(
                    "a constraint has exactly one of {}",
                    RULES.join(", ")
                )));
            }
            if let Some(key) =
                table.keys().find(|key| *key != "strength" && !RULES.contains(&key.as_str()))
            {
                return Err(de::Error::custom(format!(
                    "unknown key `{key}` in a constraint: expected strength or one of {}",
                    RULES.join(", ")
                )));
            }
            toml::Value::Table(table.into_iter().collect()).try_into().map_err(de::Error::custom)
        })
        .collect()
}

/// Which VMs an entry means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Members {
    /// The one of its name.
    One,
    /// `NAME-1` to `NAME-n`.
    Count(u32),
    /// `NAME-1` and so on, as many as the split makes.
    Split(Split),
}

impl VmEntry {
    /// Which VMs it means.
    pub(crate) const fn members(&self) -> Members {
        match (self.count, self.split) {
            (_, Some(split)) => Members::Split(split),
            (Some(count), None) => Members::Count(count),
            (None, None) => Members::One,
        }
    }

    /// The number of a VM of this name among its members, if it is one.
    pub(crate) fn member_number(&self, name: &Name) -> Option<u32> {
        let rest = name.as_str().strip_prefix(self.name.as_str())?.strip_prefix('-')?;
        let number: u32 = rest.parse().ok()?;
        // `web-01` is a VM of its own, not the first member.
        (number > 0 && rest == number.to_string()).then_some(number)
    }

    /// The name of a member.
    pub(crate) fn member_name(&self, number: u32) -> Option<Name> {
        format!("{}-{number}", self.name).parse().ok()
    }

    fn check(&self) -> Result<(), FileError> {
        let name = || self.name.clone();
        if self.count.is_some() && self.split.is_some() {
            return Err(FileError::CountAndSplit(name()));
        }
        if let Some(count) = self.count
            && !(1..=MOST_VMS).contains(&u64::from(count))
        {
            return Err(FileError::Count { name: name(), count });
        }
        if let Some(Split { min_vms, max_vms }) = self.split {
            if min_vms == 0 || min_vms > max_vms || max_vms > 128 {
                return Err(FileError::Split { name: name(), min: min_vms, max: max_vms });
            }
            if self.resources.disk.is_none() {
                return Err(FileError::SplitDisk(name()));
            }
        }
        let many = self.count.is_some() || self.split.is_some();
        if many && self.member_name(1000).is_none() {
            return Err(FileError::LongName(name()));
        }
        if self.resources.cpu.0 == 0 {
            return Err(FileError::Zero { name: name(), element: "cpu" });
        }
        if self.resources.memory.0 == 0 {
            return Err(FileError::Zero { name: name(), element: "memory" });
        }
        if self.split.is_none() {
            self.resources
                .accelerators
                .check_request()
                .map_err(|source| FileError::Accelerators { name: name(), source })?;
        }
        if let (Some(start), Some(end)) = (self.start_after, self.end_at)
            && end <= start
        {
            return Err(FileError::EndsFirst(name()));
        }
        Ok(())
    }
}

impl File {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It is not of the form that it should be, or says something impossible.
    pub(crate) fn parse(text: &str) -> Result<Self, FileError> {
        let RawFile { project, policy, networks, vms } =
            toml::from_str(text).map_err(|error| FileError::Parse(Box::new(error)))?;
        let file = Self { project, policy, networks, vms };
        let mut seen = BTreeSet::new();
        for network in &file.networks {
            if !seen.insert(network.name.clone()) {
                return Err(FileError::Twice { kind: "network", name: network.name.to_string() });
            }
        }
        let mut total = 0_u64;
        for vm in &file.vms {
            vm.check()?;
            total += match vm.members() {
                Members::One => 1,
                Members::Count(count) => u64::from(count),
                Members::Split(split) => u64::from(split.min_vms),
            };
        }
        if total > MOST_VMS {
            return Err(FileError::TooMany(total));
        }
        file.check_names()?;
        Ok(file)
    }

    /// No two entries may mean the same VM.
    fn check_names(&self) -> Result<(), FileError> {
        let twice = |name: String| Err(FileError::Twice { kind: "vm", name });
        let mut single = BTreeSet::new();
        let mut prefixes = BTreeSet::new();
        for vm in &self.vms {
            let fresh = match vm.members() {
                Members::One => single.insert(&vm.name),
                _ => prefixes.insert(&vm.name),
            };
            if !fresh {
                return twice(vm.name.to_string());
            }
        }
        for vm in self.vms.iter().filter(|vm| vm.members() != Members::One) {
            if let Some(name) = single.iter().find(|name| vm.member_number(name).is_some()) {
                return twice(name.to_string());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        use std::error::Error as _;
        let error = File::parse(text).expect_err(text);
        match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }

    fn vm(keys: &str) -> String {
        format!(
            "project = \"shop\"\n[[vm]]\nname = \"web\"\nimage = \"tiny\"\n\
             resources = {{ cpu = 1, memory = \"128MiB\" }}\n{keys}\n"
        )
    }

    #[test]
    fn the_example_is_understood() {
        let file = File::parse(include_str!("../../../../examples/webshop.toml")).unwrap();
        assert_eq!(file.project.name.as_str(), "webshop");
        assert!(file.vms.iter().any(|vm| matches!(vm.members(), Members::Split(_))));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("", "missing field `project`"),
            ("project = 5", "expected a name, or a table"),
            ("project = \"Shop\"", "is not a name"),
            ("project = \"shop\"\npolicy = \"best\"", "unknown variant `best`"),
            ("project = \"shop\"\n[[vms]]\nname = \"web\"", "unknown field `vms`"),
            ("project = { name = \"shop\", quota = { cpus = 1 } }", "unknown field `cpus`"),
            (&vm("count = 0"), "`count` must be from 1 to 1000, not 0"),
            (&vm("count = 2\nsplit = {}"), "both `count` and `split`"),
            (&vm("split = {}"), "must say how much `disk`"),
            (&vm("contraints = []"), "unknown field `contraints`"),
            (
                &vm("constraints = [{ anti_afinity = { group = \"web\" } }]"),
                "exactly one of affinity",
            ),
            (
                &vm(
                    "constraints = [{ anti_affinity = { group = \"web\" }, strenght = \"required\" }]",
                ),
                "unknown key `strenght`",
            ),
            (&vm("constraints = [{ exclusive = { against = \"everybody\" } }]"), "unknown variant"),
            (&vm("restart = \"sometimes\""), "unknown variant"),
            (
                &vm(
                    "[[vm]]\nname = \"web\"\nimage = \"tiny\"\nresources = { cpu = 1, memory = 1 }",
                ),
                "described twice",
            ),
            (
                "project = \"s\"\n[[vm]]\nname = \"w\"\nimage = \"t\"\nresources = { cpu = 0, memory = 1 }",
                "`resources.cpu` must be more than zero",
            ),
            (
                "project = \"s\"\n[[network]]\nname = \"n\"\n[[network]]\nname = \"n\"",
                "described twice",
            ),
            (
                "project = \"s\"\n[[network]]\nname = \"n\"\ncidr = \"10.0.0.1/24\"",
                "range of IPv4 addresses",
            ),
        ] {
            let refusal = refusal(text);
            assert!(refusal.contains(expected), "{text}\n-> {refusal}");
        }
    }

    #[test]
    fn a_single_vm_and_a_member_may_not_share_a_name() {
        let text = format!(
            "{}\n[[vm]]\nname = \"web-2\"\nimage = \"tiny\"\nresources = {{ cpu = 1, memory = 1 }}",
            vm("count = 1")
        );
        assert!(refusal(&text).contains("`web-2` is described twice"));
    }

    #[test]
    fn members_are_numbered_from_one_without_zeros() {
        let file = File::parse(&vm("count = 3")).unwrap();
        let number = |name: &str| file.vms[0].member_number(&name.parse().unwrap());
        assert_eq!(number("web-3"), Some(3));
        for name in ["web", "web-0", "web-01", "web-x", "webb-1", "web-1-1"] {
            assert_eq!(number(name), None, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,200}") {
            let _ = File::parse(&text);
        }
    }
}
