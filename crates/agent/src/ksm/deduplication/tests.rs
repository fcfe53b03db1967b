use std::path::Path;

use plimsoll_api::cluster::{DesiredImage, DiskOrigin};
use plimsoll_model::{ImageFile, Resources, RestartPolicy};
use uuid::Uuid;

use super::*;

/// A machine of files: its kernel does nothing by itself.
struct Machine(tempfile::TempDir);

const BEFORE: [(&str, &str); 8] = [
    ("run", "0\n"),
    ("pages_to_scan", "100\n"),
    ("sleep_millisecs", "20\n"),
    ("smart_scan", "1\n"),
    ("advisor_mode", "[none] scan-time\n"),
    ("full_scans", "7\n"),
    ("pages_scanned", "4000\n"),
    ("pages_volatile", "0\n"),
];

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for directory in ["ksm", "proc/7", "memory"] {
            std::fs::create_dir_all(machine.0.path().join(directory)).unwrap();
        }
        for (file, text) in
            BEFORE.into_iter().chain([("pages_shared", "0"), ("pages_sharing", "0")])
        {
            machine.set(file, text);
        }
        machine.process(7, "ksmd", "", "");
        machine.write("proc/7/schedstat", "1000000 0 0\n");
        machine
    }

    fn place(&self) -> Place {
        let at = |name: &str| self.0.path().join(name);
        Place { sysfs: at("ksm"), proc: at("proc"), memory: at("memory") }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn set(&self, file: &str, text: &str) {
        self.write(&format!("ksm/{file}"), text);
    }

    fn get(&self, file: &str) -> String {
        let text = std::fs::read_to_string(self.0.path().join("ksm").join(file)).unwrap();
        text.trim().to_owned()
    }

    fn process(&self, pid: u32, name: &str, command_line: &str, ksm_stat: &str) {
        for (file, text) in [
            ("comm", name),
            ("cmdline", command_line),
            ("ksm_stat", ksm_stat),
            ("statm", "100000 20000 0 0 0 0 0\n"),
        ] {
            self.write(&format!("proc/{pid}/{file}"), text);
        }
    }

    /// A QEMU whose pages are mergeable, and of which so many are merged.
    fn qemu(&self, pid: u32, vm: VmId, merged: u64) {
        let line = format!("qemu-system-x86_64\0-uuid\0{}\0-rtc\0base=utc\0", vm.0.hyphenated());
        let profit = i64::try_from(merged * PAGE).unwrap() - 64 * 10_000;
        let stat = format!(
            "ksm_rmap_items 10000\nksm_zero_pages 0\nksm_merging_pages {merged}\n\
             ksm_process_profit {profit}\nksm_merge_any: no\nksm_mergeable: yes\n"
        );
        self.process(pid, "qemu", &line, &stat);
    }

    fn open(&self) -> Deduplication {
        Deduplication::open(DeduplicationMode::Project, self.place())
    }

    fn is_as_before(&self) -> bool {
        ["run", "pages_to_scan", "sleep_millisecs", "smart_scan"].iter().all(|file| {
            BEFORE.iter().any(|(name, text)| name == file && text.trim() == self.get(file))
        })
    }
}

fn vm(id: u128) -> VmId {
    VmId(Uuid::from_u128(id))
}

fn project(id: u128) -> ProjectId {
    ProjectId(Uuid::from_u128(id))
}

fn present(owner: u128) -> DesiredPresent {
    let disk = ImageFile { kind: ImageFileKind::Disk, sha256: "aa".into(), size: Bytes(1) };
    DesiredPresent {
        generation: 1,
        power: Power::Running,
        shutdown_grace_ms: 0,
        name: "vm".parse().unwrap(),
        project: project(owner),
        project_name: format!("p{owner}").parse().unwrap(),
        resources: Resources { memory: Bytes::mib(256), ..Resources::default() },
        image: DesiredImage {
            files: vec![disk],
            disk_format: "qcow2".into(),
            append: None,
            guest_agent: false,
        },
        disk: DiskOrigin::Image,
        interfaces: Vec::new(),
        user_data: None,
        ssh_keys: Vec::new(),
        restart: RestartPolicy::Never,
        fenced_by_lease: false,
        reboots: 0,
        deflation: None,
        elasticity: plimsoll_model::Elasticity::Guaranteed,
        end_at: None,
        warn_at: None,
        migration: None,
    }
}

fn runs(deduplication: &Deduplication, id: u128, owner: u128, merging: Merging) {
    let pid = u32::try_from(100 + id).unwrap();
    deduplication.runs(vm(id), pid, Some(project(owner)), Some(merging));
}

#[test]
fn one_project_is_merged_until_its_last_vm_is_gone() {
    let machine = Machine::new();
    let host = machine.open();
    assert_eq!(host.decide(vm(1), &present(1)), Merging::WithinProject);
    // Not looked at yet, and counted all the same.
    assert_eq!(host.decide(vm(2), &present(2)), Merging::OtherProject);
    assert_eq!(host.decide(vm(3), &present(1)), Merging::WithinProject);
    runs(&host, 1, 1, Merging::WithinProject);
    runs(&host, 2, 2, Merging::OtherProject);
    assert_eq!(host.of(vm(1)).unwrap().merging, Merging::WithinProject);
    assert_eq!(host.of(vm(2)).unwrap().merging, Merging::OtherProject);
    assert_eq!(host.of(vm(3)), None, "it does not run yet");
    host.gone(vm(1));
    assert_eq!(host.decide(vm(4), &present(2)), Merging::OtherProject);
    host.gone(vm(3));
    assert_eq!(host.decide(vm(5), &present(2)), Merging::Outweighed, "they are to start again");
    host.gone(vm(5));
    host.want(&[]);
    assert_eq!(host.decide(vm(5), &present(2)), Merging::WithinProject);
    // What runs apart stays apart.
    assert_eq!(host.of(vm(2)).unwrap().merging, Merging::OtherProject);
}

#[test]
fn another_agent_knows_what_the_vms_were_started_with() {
    let machine = Machine::new();
    let host = machine.open();
    host.presume(vm(1), project(1), Merging::WithinProject);
    assert_eq!(host.decide(vm(2), &present(2)), Merging::OtherProject);
    runs(&host, 1, 1, Merging::WithinProject);
    assert_eq!(host.decide(vm(3), &present(2)), Merging::OtherProject);
    // Of before there was any merging.
    host.runs(vm(9), 109, None, None);
    assert!(!host.of(vm(9)).unwrap().merging.is_allowed());
}

#[test]
fn the_scanner_is_set_while_vms_are_mergeable_and_set_back_at_the_end() {
    let machine = Machine::new();
    let host = machine.open();
    host.turn();
    assert!(machine.is_as_before(), "nothing is touched before it must be");
    machine.set("advisor_mode", "none [scan-time]\n");
    host.decide(vm(1), &present(1));
    machine.qemu(101, vm(1), 3000);
    runs(&host, 1, 1, Merging::WithinProject);
    machine.set("pages_shared", "1000\n");
    machine.set("pages_sharing", "2000\n");
    assert_eq!(host.turn(), FAST);
    let set = ["run", "smart_scan", "advisor_mode"].map(|file| machine.get(file));
    assert_eq!(set, ["1", "0", "none"]);
    assert!(machine.get("pages_to_scan").parse::<u64>().unwrap() > 1000);

    let of = host.of(vm(1)).unwrap();
    assert_eq!((of.merged, of.saved), (Bytes(3000 * PAGE), Bytes(2000 * PAGE)));
    assert_eq!(of.overhead, Bytes(640_000));
    let whole = host.host();
    assert_eq!(whole.project.unwrap().as_str(), "p1");
    assert_eq!((whole.vms, whole.saved, whole.note), (1, of.saved, None));
    assert_eq!(whole.phase, ScannerPhase::Converging);

    host.gone(vm(1));
    host.turn();
    assert_eq!(machine.get("run"), "0");
    assert_eq!(host.host().vms, 0);
    host.give_back();
    assert!(machine.is_as_before());
    assert_eq!(host.decide(vm(2), &present(1)), Merging::Unsupported, "it is no longer ours");
}

#[test]
fn an_agent_that_was_killed_leaves_what_was_set_before() {
    let machine = Machine::new();
    let kernel = Kernel::new(machine.place());
    let hold = Hold::take(&kernel, &machine.place().memory).unwrap();
    kernel.set_pace(Pace { pages_to_scan: 4321, sleep_ms: 20 }).unwrap();
    // As the kernel lets go of the lock of a process that is gone.
    drop(hold);
    let next = machine.open();
    assert_eq!(machine.get("pages_to_scan"), "4321");
    next.give_back();
    assert!(machine.is_as_before());

    drop(Hold::take(&kernel, &machine.place().memory).unwrap());
    kernel.set_pace(Pace { pages_to_scan: 4321, sleep_ms: 20 }).unwrap();
    drop(Deduplication::open(DeduplicationMode::Off, machine.place()));
    assert!(machine.is_as_before(), "one that merges nothing sets it back");
    drop(machine.open());
    assert!(machine.is_as_before());
}

#[test]
fn of_several_agents_one_sets_the_scanner_and_the_next_when_it_has_ended() {
    let machine = Machine::new();
    let (first, second) = (machine.open(), machine.open());
    assert_eq!(second.decide(vm(1), &present(1)), Merging::OtherAgent);
    assert_eq!(first.decide(vm(2), &present(2)), Merging::WithinProject);
    second.turn();
    assert!(second.host().note.unwrap().contains("another agent"));
    drop(first);
    // It left a mergeable VM behind.
    machine.qemu(102, vm(2), 0);
    assert_eq!(second.decide(vm(3), &present(3)), Merging::Strangers);
}

#[test]
fn nobody_is_merged_with_strangers() {
    let machine = Machine::new();
    let host = machine.open();
    assert_eq!(host.decide(vm(1), &present(1)), Merging::WithinProject);
    machine.qemu(101, vm(1), 0);
    runs(&host, 1, 1, Merging::WithinProject);
    host.turn();
    assert_eq!(machine.get("run"), "1");
    machine.qemu(55, vm(77), 0);
    host.shared.state.lock().strangers_at = None;
    host.turn();
    assert_eq!(machine.get("run"), "0");
    assert!(host.host().note.unwrap().contains("process 55"));
    assert_eq!(host.decide(vm(2), &present(1)), Merging::Strangers);
    std::fs::remove_dir_all(machine.place().proc.join("55")).unwrap();
    host.shared.state.lock().strangers_at = None;
    host.turn();
    assert_eq!((machine.get("run").as_str(), host.host().note), ("1", None));
}

#[test]
fn vms_of_several_projects_from_an_agent_that_forced_it_are_not_scanned() {
    let machine = Machine::new();
    let forced = Deduplication::open(DeduplicationMode::ForcedAcrossProjects, machine.place());
    for id in [1, 2] {
        assert_eq!(forced.decide(vm(id), &present(id)), Merging::AcrossProjects);
        machine.qemu(100 + u32::try_from(id).unwrap(), vm(id), 0);
        runs(&forced, id, id, Merging::AcrossProjects);
    }
    forced.turn();
    assert_eq!((machine.get("run").as_str(), forced.host().across_projects), ("1", true));
    drop(forced);
    let host = machine.open();
    for id in [1, 2] {
        runs(&host, id, id, Merging::AcrossProjects);
    }
    host.turn();
    assert_eq!(machine.get("run"), "0");
    assert!(host.host().note.unwrap().contains("2 projects"));
    assert_eq!(host.decide(vm(3), &present(1)), Merging::OtherProject);
}

#[test]
fn a_kernel_without_ksm_is_no_failure() {
    let machine = Machine::new();
    std::fs::remove_dir_all(machine.place().sysfs).unwrap();
    let host = machine.open();
    assert_eq!(host.decide(vm(1), &present(1)), Merging::Unsupported);
    host.turn();
    assert_eq!(host.host().note.unwrap(), "the kernel has no KSM");
    assert_eq!(Deduplication::off().decide(vm(1), &present(1)), Merging::SwitchedOff);
}

#[test]
fn odd_files_are_errors_that_are_said() {
    let machine = Machine::new();
    let host = machine.open();
    machine.qemu(101, vm(1), 0);
    host.decide(vm(1), &present(1));
    runs(&host, 1, 1, Merging::WithinProject);
    machine.set("full_scans", "many\n");
    assert_eq!(host.turn(), REST);
    assert!(host.host().note.unwrap().contains("full_scans says `many`"));
    drop(host);
    machine.set("advisor_mode", "what ever\n");
    assert_eq!(machine.open().decide(vm(1), &present(1)), Merging::Unsupported);
}
