//! The merging of this host's VMs: who may be merged, and the scanner's course.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::{DesiredPresent, DesiredVm, Wanted};
use plimsoll_api::deduplication::{HostDeduplication, Merging, ScannerPhase, VmDeduplication};
use plimsoll_model::{Bytes, ImageFileKind, MilliCores, Name, Power, ProjectId, VmId};
use plimsoll_reclaim::dedup::{Candidate, Pace, Phase, Sample, Scan, Standing, Verdict, elect};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::hold::Hold;
use super::kernel::{Counters, Kernel, KsmError, PAGE, Place};
use crate::config::DeduplicationMode;

/// Between two looks at the counters while the scanner goes fast, and while it rests.
const FAST: Duration = Duration::from_millis(250);
const SLOW: Duration = Duration::from_secs(1);
/// Between two looks when there is nothing to do, or nothing can be done.
const REST: Duration = Duration::from_secs(30);
/// How often is looked for other processes whose memory is mergeable.
const STRANGERS: Duration = Duration::from_secs(30);

/// The merging of this host's VMs. Clones are the same.
#[derive(Clone, Debug)]
pub struct Deduplication {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    mode: DeduplicationMode,
    place: Place,
    kernel: Kernel,
    state: Mutex<State>,
    /// Something has changed that the next look should not wait for.
    nudge: Notify,
}

#[derive(Debug)]
struct State {
    hold: Result<Hold, KsmError>,
    began: Instant,
    vms: BTreeMap<VmId, Known>,
    /// Starts of mergeable VMs.
    starts: u64,
    scan: Scan,
    pace: Option<Pace>,
    /// The scanner's thread, once it was found.
    scanner: Option<u32>,
    /// When the scanner's CPU time was last read, and what it was.
    cpu: Option<(Instant, u64)>,
    /// A process of somebody else that is mergeable, and when that was last looked at.
    stranger: Option<String>,
    strangers_at: Option<Instant>,
    host: HostDeduplication,
}

/// What is known of a VM.
#[derive(Clone, Debug)]
struct Known {
    project: ProjectId,
    project_name: Option<Name>,
    image: String,
    memory: Bytes,
    /// It is to run.
    wanted: bool,
    run: Option<Run>,
}

/// A VM that runs, or may.
#[derive(Clone, Copy, Debug)]
struct Run {
    merging: Merging,
    /// Its QEMU, once it was looked at.
    process: Option<u32>,
    merged: Bytes,
    saved: Bytes,
    overhead: Bytes,
}

impl Run {
    const fn new(merging: Merging) -> Self {
        let zero = Bytes::ZERO;
        Self { merging, process: None, merged: zero, saved: zero, overhead: zero }
    }
}

impl Deduplication {
    /// Takes the machine's scanner, if that can be had, and changes nothing yet. Never fails: VMs run
    /// without, and it is said why.
    #[must_use]
    pub fn open(mode: DeduplicationMode, place: Place) -> Self {
        let kernel = Kernel::new(place.clone());
        let hold = if mode == DeduplicationMode::Off {
            if let Err(error) = Hold::clean_up(&kernel, &place.memory) {
                tracing::warn!(error = %ErrorChain(&error), "KSM stays as an agent left it");
            }
            Err(KsmError::Missing)
        } else {
            Hold::take(&kernel, &place.memory)
        };
        match (&hold, mode) {
            (_, DeduplicationMode::Off) => {}
            (Err(error), _) => {
                tracing::warn!(error = %ErrorChain(error), "equal pages of VMs are not merged");
            }
            (Ok(_), DeduplicationMode::ForcedAcrossProjects) => tracing::warn!(
                "pages are merged between projects, as configured: every guest can find out what \
                 others hold in memory"
            ),
            (Ok(_), DeduplicationMode::Project) => {}
        }
        let state = State {
            hold,
            began: Instant::now(),
            vms: BTreeMap::new(),
            starts: 0,
            scan: Scan::default(),
            pace: None,
            scanner: kernel.scanner(),
            cpu: None,
            stranger: None,
            strangers_at: None,
            host: HostDeduplication {
                across_projects: mode == DeduplicationMode::ForcedAcrossProjects,
                ..HostDeduplication::default()
            },
        };
        let state = Mutex::new(state);
        let shared = Shared { mode, place, kernel, state, nudge: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// One that merges nothing.
    #[must_use]
    pub fn off() -> Self {
        let nowhere = std::path::PathBuf::from("/nonexistent");
        let place = Place { sysfs: nowhere.clone(), proc: nowhere.clone(), memory: nowhere };
        Self::open(DeduplicationMode::Off, place)
    }

    /// Takes note of a VM that was found: what it was started with counts until it was looked at.
    pub(crate) fn presume(&self, vm: VmId, project: ProjectId, merging: Merging) {
        let known = Known {
            project,
            project_name: None,
            image: String::new(),
            memory: Bytes::ZERO,
            wanted: false,
            run: Some(Run::new(merging)),
        };
        self.shared.state.lock().vms.insert(vm, known);
    }

    /// Takes note of all that is wanted.
    pub(crate) fn want(&self, wanted: &[DesiredVm]) {
        let mut state = self.shared.state.lock();
        for known in state.vms.values_mut() {
            known.wanted = false;
        }
        for desired in wanted {
            if let Wanted::Present(present) = &desired.wanted {
                state.know(desired.vm, present);
            }
        }
        state.forget();
    }

    /// Decides whether a VM that starts now is merged, and holds its place until [`Self::gone`].
    pub(crate) fn decide(&self, vm: VmId, present: &DesiredPresent) -> Merging {
        let mut state = self.shared.state.lock();
        state.know(vm, present);
        let merging = self.verdict(&mut state, vm);
        if let Some(known) = state.vms.get_mut(&vm) {
            known.run = Some(Run::new(merging));
        }
        merging
    }

    fn verdict(&self, state: &mut State, vm: VmId) -> Merging {
        if self.shared.mode == DeduplicationMode::Off {
            return Merging::SwitchedOff;
        }
        match self.hold(state) {
            Ok(()) => {}
            Err(KsmError::Held) => return Merging::OtherAgent,
            Err(_) => return Merging::Unsupported,
        }
        if self.shared.mode == DeduplicationMode::ForcedAcrossProjects {
            return Merging::AcrossProjects;
        }
        self.look_for_strangers(state);
        if state.stranger.is_some() {
            return Merging::Strangers;
        }
        match elect(vm, &state.candidates()) {
            Verdict::Merge => Merging::WithinProject,
            Verdict::OtherProject => Merging::OtherProject,
            Verdict::Outweighed => Merging::Outweighed,
        }
    }

    /// Tells that a VM runs, with what it was started with.
    pub(crate) fn runs(
        &self,
        vm: VmId,
        process: u32,
        project: Option<ProjectId>,
        merging: Option<Merging>,
    ) {
        // Launched by an agent that knew nothing of merging: it is not merged.
        let merging = merging.unwrap_or(Merging::SwitchedOff);
        let project = project.unwrap_or(ProjectId(uuid::Uuid::nil()));
        let mut state = self.shared.state.lock();
        let known = state.vms.entry(vm).or_insert_with(|| Known {
            project,
            project_name: None,
            image: String::new(),
            memory: Bytes::ZERO,
            wanted: false,
            run: None,
        });
        let run = known.run.get_or_insert_with(|| Run::new(merging));
        run.merging = merging;
        if run.process.replace(process) != Some(process) && merging.is_allowed() {
            state.starts += 1;
            self.shared.nudge.notify_one();
        }
    }

    /// Tells that nothing of a VM runs.
    pub(crate) fn gone(&self, vm: VmId) {
        let mut state = self.shared.state.lock();
        let ended = state.vms.get_mut(&vm).and_then(|known| known.run.take());
        state.forget();
        if ended.is_some_and(|run| run.merging.is_allowed()) {
            self.shared.nudge.notify_one();
        }
    }

    /// What merging does for a VM that runs.
    #[must_use]
    pub fn of(&self, vm: VmId) -> Option<VmDeduplication> {
        let state = self.shared.state.lock();
        let run = state.vms.get(&vm)?.run.as_ref()?;
        run.process?;
        let Run { merging, merged, saved, overhead, .. } = *run;
        Some(VmDeduplication { merging, merged, saved, overhead })
    }

    /// What merging does for the host, as of the last look.
    #[must_use]
    pub fn host(&self) -> HostDeduplication {
        self.shared.state.lock().host.clone()
    }

    /// Looks after the scanner until it is dropped.
    pub async fn drive(&self) {
        loop {
            let own = self.clone();
            let pause = tokio::task::spawn_blocking(move || own.turn()).await.unwrap_or(REST);
            // A VM that has just started has nothing yet: what comes together is looked at together.
            let nudged = async {
                self.shared.nudge.notified().await;
                sleep(FAST.min(pause)).await;
            };
            let _ = timeout(pause, nudged).await;
        }
    }

    /// Sets the scanner as it was before this agent.
    pub fn give_back(&self) {
        let hold = std::mem::replace(&mut self.shared.state.lock().hold, Err(KsmError::Missing));
        if let Ok(hold) = hold
            && let Err(error) = hold.give_back()
        {
            tracing::warn!(error = %ErrorChain(&error), "KSM is not set as it was before");
        }
    }

    /// Makes sure that the scanner is ours.
    fn hold<'a>(&self, state: &'a mut State) -> Result<(), &'a KsmError> {
        if matches!(state.hold, Err(KsmError::Held)) {
            // The other agent may have ended.
            state.hold = Hold::take(&self.shared.kernel, &self.shared.place.memory);
        }
        state.hold.as_ref().map(|_| ())
    }

    /// One look at the scanner. Tells when to look again.
    fn turn(&self) -> Duration {
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        if self.shared.mode == DeduplicationMode::Off {
            state.host.note = Some("switched off in the agent's configuration".to_owned());
            return REST;
        }
        if let Err(error) = self.hold(state) {
            state.host.note = Some(ErrorChain(error).to_string());
            return REST;
        }
        match self.steer(state) {
            Ok(pause) => pause,
            Err(error) => {
                let error = ErrorChain(&error).to_string();
                if state.host.note.as_ref() != Some(&error) {
                    tracing::warn!(%error, "cannot set KSM");
                }
                state.host.note = Some(error);
                REST
            }
        }
    }

    fn steer(&self, state: &mut State) -> Result<Duration, KsmError> {
        let kernel = &self.shared.kernel;
        let counters = kernel.counters()?;
        let cpu_ns = state.cpu_ns(kernel);
        state.take_stock(kernel, &counters);
        let note = self.obstacle(state);
        let mergeable = state.mergeable();
        let resident = mergeable.iter().filter_map(|process| kernel.resident(*process));
        let sample = Sample {
            at_ms: u64::try_from(state.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            cpu_ns,
            scanned: counters.scanned,
            passes: counters.passes,
            merged: counters.shared.saturating_add(counters.sharing),
            volatile: counters.volatile,
            vms: if note.is_some() {
                0
            } else {
                u32::try_from(mergeable.len()).unwrap_or(u32::MAX)
            },
            starts: state.starts,
            resident: resident.fold(Bytes::ZERO, Bytes::saturating_add),
        };
        state.scan = state.scan.next(&sample);
        let pace = state.scan.pace();
        let phase = state.scan.phase();
        // Never touched while there is nothing to merge: the scanner is somebody else's then.
        if state.pace != Some(pace) && (state.pace.is_some() || phase != Phase::Off) {
            kernel.set_pace(pace)?;
            state.pace = Some(pace);
        }
        state.host.note = note;
        state.host.phase = match phase {
            Phase::Off => ScannerPhase::Off,
            Phase::Converging => ScannerPhase::Converging,
            Phase::Idle => ScannerPhase::Idle,
        };
        Ok(match phase {
            Phase::Converging => FAST,
            Phase::Idle => SLOW,
            Phase::Off => REST,
        })
    }

    /// Why the scanner must stand still although VMs are mergeable.
    fn obstacle(&self, state: &mut State) -> Option<String> {
        if self.shared.mode == DeduplicationMode::ForcedAcrossProjects {
            return None;
        }
        let runs = state.vms.values().filter(|known| known.may_merge());
        let projects: BTreeSet<ProjectId> = runs.map(|known| known.project).collect();
        if projects.len() > 1 {
            // They were started by an agent that merged across projects.
            return Some(format!(
                "VMs of {} projects that run are mergeable: nothing is merged until those of all \
                 but one were restarted",
                projects.len()
            ));
        }
        if projects.is_empty() {
            return None;
        }
        self.look_for_strangers(state);
        state.stranger.as_ref().map(|process| {
            format!(
                "process {process}, which is no VM of this agent, is mergeable: nothing is merged"
            )
        })
    }

    fn look_for_strangers(&self, state: &mut State) {
        if state.strangers_at.is_some_and(|at| at.elapsed() < STRANGERS) {
            return;
        }
        let ours = |vm: VmId| state.vms.get(&vm).is_some_and(Known::may_merge);
        let stranger = self.shared.kernel.stranger(ours);
        if stranger.is_some() && state.stranger.is_none() {
            tracing::warn!(process = ?stranger, "a process of somebody else is mergeable");
        }
        state.stranger = stranger;
        state.strangers_at = Some(Instant::now());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let hold = std::mem::replace(&mut self.state.get_mut().hold, Err(KsmError::Missing));
        if let Ok(hold) = hold {
            let _ = hold.give_back();
        }
    }
}

impl Known {
    fn may_merge(&self) -> bool {
        self.run.is_some_and(|run| run.merging.is_allowed())
    }
}

impl State {
    fn know(&mut self, vm: VmId, present: &DesiredPresent) {
        let disk = present.image.files.iter().find(|file| file.kind == ImageFileKind::Disk);
        let run = self.vms.get(&vm).and_then(|known| known.run);
        let known = Known {
            project: present.project,
            project_name: Some(present.project_name.clone()),
            image: disk.map(|file| file.sha256.clone()).unwrap_or_default(),
            memory: present.resources.memory,
            wanted: present.power == Power::Running,
            run,
        };
        self.vms.insert(vm, known);
    }

    /// Forgets VMs that neither run nor are to.
    fn forget(&mut self) {
        self.vms.retain(|_, known| known.wanted || known.run.is_some());
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        let candidate = |(vm, known): (&VmId, &'_ Known)| -> (VmId, ProjectId, Bytes, Standing) {
            let standing = match known.run {
                None => Standing::Starting,
                Some(run) if run.merging.is_allowed() => Standing::Merged,
                Some(_) => Standing::Apart,
            };
            (*vm, known.project, known.memory, standing)
        };
        let images = self.vms.values().map(|known| known.image.as_str());
        self.vms
            .iter()
            .map(candidate)
            .zip(images)
            .map(|((vm, project, memory, standing), image)| Candidate {
                vm,
                project,
                image,
                memory,
                standing,
            })
            .collect()
    }

    /// The QEMUs of mergeable VMs.
    fn mergeable(&self) -> Vec<u32> {
        let runs = self.vms.values().filter_map(|known| known.run);
        runs.filter(|run| run.merging.is_allowed()).filter_map(|run| run.process).collect()
    }

    /// The scanner's CPU time, and what of a core it took since the last look.
    fn cpu_ns(&mut self, kernel: &Kernel) -> u64 {
        let Some(cpu_ns) = self.scanner.and_then(|scanner| kernel.cpu_ns(scanner)) else {
            return 0;
        };
        let now = Instant::now();
        if let Some((then, before)) = self.cpu {
            let window = u64::try_from((now - then).as_nanos()).unwrap_or(u64::MAX).max(1);
            let spent = u128::from(cpu_ns.saturating_sub(before)) * 1000 / u128::from(window);
            self.host.scanner_cpu = MilliCores(u64::try_from(spent).unwrap_or(u64::MAX));
        }
        self.cpu = Some((now, cpu_ns));
        cpu_ns
    }

    /// Reads what is merged of each VM, and sums it up.
    fn take_stock(&mut self, kernel: &Kernel, counters: &Counters) {
        let all = u128::from(counters.shared) + u128::from(counters.sharing);
        let (mut saved, mut overhead, mut vms) = (Bytes::ZERO, Bytes::ZERO, 0);
        let mut project = None;
        for known in self.vms.values_mut() {
            let Some(run) = known.run.as_mut().filter(|run| run.merging.is_allowed()) else {
                continue;
            };
            let Some(part) = run.process.and_then(|process| kernel.part(process)) else { continue };
            let of_tree = u128::from(part.merged - part.zero);
            let spared = (of_tree * u128::from(counters.sharing)).checked_div(all).unwrap_or(0);
            let spared = u64::try_from(spared).unwrap_or(0).saturating_add(part.zero);
            run.merged = Bytes(part.merged.saturating_mul(PAGE));
            run.saved = Bytes(spared.saturating_mul(PAGE));
            run.overhead = part.overhead;
            (saved, overhead) =
                (saved.saturating_add(run.saved), overhead.saturating_add(run.overhead));
            vms += 1;
            project = known.project_name.clone().or(project);
        }
        self.host.project = project.filter(|_| !self.host.across_projects);
        (self.host.saved, self.host.overhead, self.host.vms) = (saved, overhead, vms);
    }
}

#[cfg(test)]
mod tests;
