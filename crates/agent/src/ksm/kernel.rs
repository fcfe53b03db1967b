//! KSM as the kernel shows it: `/sys/kernel/mm/ksm`, its thread, and each process's part.
//!
//! Of Linux 6.18. Older kernels have less: without `ksm_stat` (6.1) nothing is known of single
//! processes, without `advisor_mode` and `smart_scan` (6.7, 6.8) there is nothing to switch off.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use plimsoll_model::{Bytes, VmId};
use plimsoll_reclaim::dedup::Pace;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The size of a page, which is what is merged.
pub(super) const PAGE: u64 = 4096;
/// The kernel counts CPU time in hundredths of a second towards user space.
const NS_PER_TICK: u64 = 10_000_000;

/// Where the kernel's files are, and where is remembered what was set before; tests have their own.
#[derive(Clone, Debug)]
pub struct Place {
    /// `/sys/kernel/mm/ksm`.
    pub sysfs: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// A directory that does not outlive a boot, the same for all agents of the machine.
    pub memory: PathBuf,
}

impl Place {
    /// This machine's.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self {
            sysfs: "/sys/kernel/mm/ksm".into(),
            proc: "/proc".into(),
            memory: "/run/plimsoll".into(),
        }
    }
}

/// Why KSM cannot be used.
#[derive(Debug, Error)]
pub enum KsmError {
    /// The kernel has none.
    #[error("the kernel has no KSM")]
    Missing,
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot set {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file says something unexpected.
    #[error("{} says `{text}`", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// Another agent sets the scanner.
    #[error("another agent of this machine sets the scanner")]
    Held,
    /// What was set before cannot be remembered.
    #[error("cannot remember the scanner's settings in {}", path.display())]
    Memory {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What is set, as far as it is changed here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub run: u64,
    pub pages_to_scan: u64,
    pub sleep_millisecs: u64,
    /// `None`: the kernel has no such setting.
    pub smart_scan: Option<u64>,
    pub advisor_mode: Option<String>,
}

/// The scanner's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub scanned: u64,
    pub passes: u64,
    /// Pages that stand for several, and those for which they stand without themselves.
    pub shared: u64,
    pub sharing: u64,
    pub volatile: u64,
}

/// One process's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessPart {
    /// Whether any of its memory may be merged.
    pub mergeable: bool,
    /// Pages of it that are merged, zero pages included.
    pub merged: u64,
    pub zero: u64,
    /// What the kernel's records on its pages take.
    pub overhead: Bytes,
}

/// The kernel's files.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    place: Place,
}

impl Kernel {
    pub(super) fn new(place: Place) -> Self {
        Self { place }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.place.sysfs.join(file)
    }

    fn number(&self, file: &str) -> Result<u64, KsmError> {
        let path = self.path(file);
        let text = read(&path)?;
        text.trim().parse().map_err(|_| KsmError::Content { path, text: text.trim().to_owned() })
    }

    fn set(&self, file: &str, value: &impl ToString) -> Result<(), KsmError> {
        let path = self.path(file);
        fs::write(&path, value.to_string()).map_err(|source| KsmError::Write { path, source })
    }

    /// What is set now.
    pub(super) fn settings(&self) -> Result<Settings, KsmError> {
        if !self.path("run").exists() {
            return Err(KsmError::Missing);
        }
        let optional = |file: &str| self.path(file).exists();
        let advisor_mode = if optional("advisor_mode") {
            let path = self.path("advisor_mode");
            let text = read(&path)?;
            // All are listed, the chosen one in brackets; one that is alone is chosen.
            let bracketed = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
            let chosen = bracketed.map_or(text.trim(), |(chosen, _)| chosen);
            if chosen.is_empty() || chosen.contains(char::is_whitespace) {
                return Err(KsmError::Content { path, text: text.trim().to_owned() });
            }
            Some(chosen.to_owned())
        } else {
            None
        };
        Ok(Settings {
            run: self.number("run")?,
            pages_to_scan: self.number("pages_to_scan")?,
            sleep_millisecs: self.number("sleep_millisecs")?,
            smart_scan: optional("smart_scan").then(|| self.number("smart_scan")).transpose()?,
            advisor_mode,
        })
    }

    /// Whether this process may change anything.
    pub(super) fn require_rights(&self) -> Result<(), KsmError> {
        let path = self.path("run");
        let opened = fs::OpenOptions::new().write(true).open(&path);
        opened.map(|_| ()).map_err(|source| KsmError::Write { path, source })
    }

    /// Sets everything to what it was.
    pub(super) fn restore(&self, settings: &Settings) -> Result<(), KsmError> {
        // While the advisor is on it sets the pages itself and refuses others: first the numbers.
        if let Some(smart_scan) = settings.smart_scan {
            self.set("smart_scan", &smart_scan)?;
        }
        self.set("sleep_millisecs", &settings.sleep_millisecs)?;
        self.set("pages_to_scan", &settings.pages_to_scan)?;
        if let Some(mode) = &settings.advisor_mode {
            self.set("advisor_mode", mode)?;
        }
        self.set("run", &settings.run)
    }

    /// Sets the scanner's pace. The kernel's own control is switched off: two would fight. So is
    /// its habit of passing over pages that it did not merge some passes ago (`smart_scan`): what a
    /// guest writes there now would be found eight passes later.
    pub(super) fn set_pace(&self, pace: Pace) -> Result<(), KsmError> {
        if pace.pages_to_scan == 0 {
            return self.set("run", &0);
        }
        if self.path("advisor_mode").exists() {
            self.set("advisor_mode", &"none")?;
        }
        if self.path("smart_scan").exists() {
            self.set("smart_scan", &0)?;
        }
        self.set("pages_to_scan", &pace.pages_to_scan)?;
        self.set("sleep_millisecs", &pace.sleep_ms)?;
        self.set("run", &1)
    }

    pub(super) fn counters(&self) -> Result<Counters, KsmError> {
        let pages = |file| self.number(file);
        let (shared, sharing) = (pages("pages_shared")?, pages("pages_sharing")?);
        Ok(Counters {
            // Since 6.6.
            scanned: if self.path("pages_scanned").exists() { pages("pages_scanned")? } else { 0 },
            passes: pages("full_scans")?,
            shared,
            sharing,
            volatile: pages("pages_volatile")?,
        })
    }

    /// The scanner's thread.
    pub(super) fn scanner(&self) -> Option<u32> {
        self.processes().find(|pid| {
            let name = std::fs::read_to_string(self.process_file(*pid, "comm"));
            name.is_ok_and(|name| name.trim() == "ksmd")
                // A kernel thread has no command line; a process may call itself anything.
                && std::fs::read(self.process_file(*pid, "cmdline")).is_ok_and(|line| line.is_empty())
        })
    }

    /// CPU time that the thread has had, in nanoseconds.
    pub(super) fn cpu_ns(&self, thread: u32) -> Option<u64> {
        let file = |name| std::fs::read_to_string(self.process_file(thread, name)).ok();
        let exact = file("schedstat")
            .and_then(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok());
        exact.or_else(|| {
            let stat = file("stat")?;
            let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
            let mut ticks = || fields.next()?.parse::<u64>().ok();
            Some(ticks()?.saturating_add(ticks()?).saturating_mul(NS_PER_TICK))
        })
    }

    /// One process's part; `None`: it is gone, or the kernel does not tell.
    pub(super) fn part(&self, process: u32) -> Option<ProcessPart> {
        let text = std::fs::read_to_string(self.process_file(process, "ksm_stat")).ok()?;
        Some(part(&text))
    }

    /// What a process holds of the host's memory.
    pub(super) fn resident(&self, process: u32) -> Option<Bytes> {
        let text = std::fs::read_to_string(self.process_file(process, "statm")).ok()?;
        let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(Bytes(pages.saturating_mul(PAGE)))
    }

    /// A process of which memory may be merged and that is no QEMU of these VMs, with its name.
    pub(super) fn stranger(&self, ours: impl Fn(VmId) -> bool) -> Option<String> {
        let stranger = self.processes().find(|pid| {
            self.part(*pid).is_some_and(|part| part.mergeable)
                && !self.vm_of(*pid).is_some_and(&ours)
        })?;
        let name = std::fs::read_to_string(self.process_file(stranger, "comm")).unwrap_or_default();
        let name: String = name.chars().filter(|c| !c.is_control()).collect();
        Some(format!("{stranger} ({name})"))
    }

    /// Whose QEMU a process is: it says so with `-uuid`.
    fn vm_of(&self, process: u32) -> Option<VmId> {
        let line = std::fs::read(self.process_file(process, "cmdline")).ok()?;
        let mut arguments = line.split(|byte| *byte == 0);
        arguments.find(|argument| *argument == b"-uuid")?;
        let uuid = std::str::from_utf8(arguments.next()?).ok()?;
        uuid.parse().ok().map(VmId)
    }

    fn processes(&self) -> impl Iterator<Item = u32> + use<> {
        let entries = std::fs::read_dir(&self.place.proc).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
    }

    fn process_file(&self, process: u32, file: &str) -> PathBuf {
        self.place.proc.join(process.to_string()).join(file)
    }
}

fn read(path: &Path) -> Result<String, KsmError> {
    fs::read_to_string(path).map_err(|source| KsmError::Read { path: path.to_owned(), source })
}

/// A process's part, from its `ksm_stat`.
fn part(text: &str) -> ProcessPart {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches(':').trim())
    };
    let number = |name: &str| field(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let zero = number("ksm_zero_pages");
    let merged = number("ksm_merging_pages").saturating_add(zero);
    let profit = field("ksm_process_profit").and_then(|text| text.parse::<i128>().ok());
    let overhead = profit.map_or(0, |profit| i128::from(merged) * i128::from(PAGE) - profit);
    ProcessPart {
        // Since 6.16 it is said; before, whoever was scanned is.
        mergeable: field("ksm_mergeable") == Some("yes")
            || field("ksm_merge_any") == Some("yes")
            || number("ksm_rmap_items") > 0,
        merged,
        zero,
        overhead: Bytes(u64::try_from(overhead).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_process_is_understood() {
        let text = "ksm_rmap_items 76800\nksm_zero_pages 0\nksm_merging_pages 51200\n\
                    ksm_process_profit 204800000\nksm_merge_any: no\nksm_mergeable: yes\n";
        let seen = part(text);
        assert!(seen.mergeable);
        assert_eq!(seen.merged, 51_200);
        assert_eq!(seen.overhead, Bytes(76_800 * 64));
        let nothing = "ksm_rmap_items 0\nksm_zero_pages 0\nksm_merging_pages 0\n\
                       ksm_process_profit 0\nksm_merge_any: no\nksm_mergeable: no\n";
        assert_eq!(part(nothing), ProcessPart::default());
        // Linux 6.1.
        assert!(part("ksm_rmap_items 3\n").mergeable);
        for odd in ["", "ksm_merging_pages", "ksm_merging_pages x\nksm_process_profit -9\n"] {
            assert_eq!(part(odd).merged, 0, "{odd}");
        }
    }
}
