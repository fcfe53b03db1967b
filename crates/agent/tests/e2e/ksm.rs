//! Equal pages of several guests, merged by this machine's kernel.
//!
//! What is counted is not what the kernel says of a process as a whole: the pages that the guests
//! wrote are found in QEMU's memory by their content, and each is looked up in the kernel's table of
//! page flags.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use plimsoll_agent::config::DeduplicationMode;
use plimsoll_api::cluster::DesiredPresent;
use plimsoll_api::deduplication::Merging;
use plimsoll_model::{Bytes, ProjectId, VmId};

use crate::support::{Host, LIMIT, MIB, desired, new_vm, present};

const PAGE: u64 = 4096;
/// What each guest holds.
const HELD: u64 = 200 * MIB;
const SEED: u64 = 7;
/// `KPF_KSM` of the kernel's page flags.
const KSM_FLAG: u64 = 1 << 21;

fn vm_of(project: u128) -> DesiredPresent {
    let mut present = present();
    present.resources.memory = Bytes(320 * MIB);
    present.project = ProjectId(uuid::Uuid::from_u128(project));
    present.project_name = format!("project-{project}").parse().unwrap();
    present
}

/// The first words of the pages that `plimsoll-workload hold` writes.
fn first_words() -> BTreeSet<u64> {
    let mix = |word: u64| {
        let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    let step = 0x9e37_79b9_7f4a_7c15_u64;
    (0..HELD / PAGE)
        .map(|number| mix(mix(mix(SEED.wrapping_add(step)) ^ number).wrapping_add(step)))
        .collect()
}

/// Of the held pages, how many lie in a QEMU's memory, and how many of those are merged.
fn held_and_merged(host: &Host, vm: VmId, words: &BTreeSet<u64>) -> (usize, usize) {
    let pid = host.processes(vm).qemu.pid;
    let open = |path: &str| File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (memory, pagemap) =
        (open(&format!("/proc/{pid}/mem")), open(&format!("/proc/{pid}/pagemap")));
    let flags = open("/proc/kpageflags");
    let word_at = |file: &File, offset: u64| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, offset).ok().map(|()| u64::from_le_bytes(word))
    };
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = BTreeMap::new();
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let range = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [range.0, range.1].map(|text| u64::from_str_radix(text, 16).unwrap());
        if end - start < HELD {
            continue;
        }
        let mut entries = vec![0; usize::try_from((end - start) / PAGE * 8).unwrap()];
        pagemap.read_exact_at(&mut entries, start / PAGE * 8).unwrap();
        for (entry, address) in entries.chunks_exact(8).zip((start..end).step_by(4096)) {
            let entry = u64::from_le_bytes(entry.try_into().unwrap());
            if entry >> 63 == 0 {
                continue;
            }
            let frame = entry & ((1 << 55) - 1);
            if let Some(word) = word_at(&memory, address).filter(|word| words.contains(word)) {
                let merged = word_at(&flags, frame * 8).unwrap() & KSM_FLAG != 0;
                found.insert(word, merged);
            }
        }
    }
    (found.len(), found.values().filter(|merged| **merged).count())
}

/// Pages of a QEMU that are merged, as the kernel counts: the data, and whatever else is equal.
fn counted(host: &Host, vm: VmId) -> usize {
    let path = format!("/proc/{}/ksm_stat", host.processes(vm).qemu.pid);
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("ksm_merging_pages "));
    line.unwrap().parse().unwrap()
}

/// CPU time that the kernel's scanner has had.
fn scanner_cpu() -> Duration {
    let pid = std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let path = entry.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        (name.trim() == "ksmd").then_some(path)
    });
    let text = std::fs::read_to_string(pid.unwrap().join("schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// All processes of this machine of which memory may be merged.
fn mergeable() -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    entries
        .map(|entry| entry.path())
        .filter(|path| read(path.join("ksm_stat")).contains(": yes"))
        .map(|path| format!("{}: {}", path.display(), read(path.join("comm")).trim()))
        .collect()
}

fn settings() -> Vec<String> {
    ["run", "pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode"]
        .iter()
        .map(|file| {
            std::fs::read_to_string(format!("/sys/kernel/mm/ksm/{file}")).unwrap_or_default()
        })
        .collect()
}

/// Waits until all guests hold their data.
async fn fill(host: &Host, vms: &[VmId]) {
    let command = format!(
        "plimsoll-workload hold --size {HELD} --seed {SEED} --seconds 0 > /tmp/hold 2>&1 & echo begun"
    );
    for vm in vms {
        assert_eq!(host.exec(*vm, &["sh", "-c", &command]).await, "begun");
    }
    for vm in vms {
        host.until_exec(*vm, "grep -c ready /tmp/hold || true", "1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_pages_of_one_project_are_merged_and_of_no_other() {
    if !std::path::Path::new("/sys/kernel/mm/ksm/run").exists() {
        eprintln!("SKIPPED: the kernel has no KSM");
        return;
    }
    let before = settings();
    let Some(mut host) = Host::start_merging(DeduplicationMode::Project) else { return };
    let own: Vec<VmId> = (0..3).map(|_| new_vm()).collect();
    for vm in &own {
        host.want(desired(*vm, vm_of(1)));
    }
    for vm in &own {
        let merging = host.until_booted(*vm).await.deduplication.unwrap().merging;
        assert_eq!(merging, Merging::WithinProject, "others are mergeable: {:?}", mergeable());
    }
    let stranger = new_vm();
    host.want(desired(stranger, vm_of(2)));
    let observed = host.until_booted(stranger).await;
    assert_eq!(observed.deduplication.unwrap().merging, Merging::OtherProject);
    fill(&host, &[stranger]).await;

    fill(&host, &own).await;
    let (written, cpu) = (Instant::now(), scanner_cpu());
    let words = first_words();
    let pages = words.len();
    let enough = |merged: usize| merged * 10 >= pages * 9;
    let took = loop {
        let (past, spent) = (written.elapsed(), scanner_cpu() - cpu);
        // Looking at every page takes a core for a while: first what the kernel counts.
        let counted: Vec<usize> = own.iter().map(|vm| counted(&host, *vm)).collect();
        eprintln!("{past:.1?} after the data was written, {spent:.2?} of CPU: {counted:?} pages");
        assert!(past < LIMIT, "the data is not merged");
        if counted.iter().copied().all(enough) {
            let merged: Vec<_> = own.iter().map(|vm| held_and_merged(&host, *vm, &words)).collect();
            eprintln!("of the data, (there, merged): {merged:?} of {pages}");
            assert!(merged.iter().all(|(held, _)| *held == pages), "all of the data is in memory");
            if merged.iter().all(|(_, merged)| enough(*merged)) {
                break past;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    // Ten seconds at a quarter of a core, as CPU time: a busy machine may take longer.
    let (spent, past) = (scanner_cpu() - cpu, written.elapsed());
    let share = spent.as_secs_f64() / past.as_secs_f64();
    eprintln!(
        "90 % merged after {took:.1?}; the scanner took {spent:.2?}, {:.1} % of a core",
        share * 100.0
    );
    assert!(spent < Duration::from_millis(2500), "{spent:?}");
    assert!(share < 0.25, "{share}");

    // Until the scanner rests. Its course is asked for nothing but its pace.
    let began = Instant::now();
    let pace = || settings()[2].trim().parse::<u64>().unwrap();
    while pace() < 100 {
        assert!(began.elapsed() < LIMIT, "the scanner does not rest");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (rested, cpu) = (Instant::now(), scanner_cpu());
    tokio::time::sleep(Duration::from_secs(15)).await;
    let share = (scanner_cpu() - cpu).as_secs_f64() / rested.elapsed().as_secs_f64();
    eprintln!("at rest {:.1?} later, it takes {:.2} % of a core", rested - began, share * 100.0);
    assert!(share < 0.01, "{share}");

    let (held, merged) = held_and_merged(&host, stranger, &words);
    assert_eq!((held, merged), (pages, 0), "of another project's VM nothing is merged");
    let saved = |host: &Host| -> u64 {
        let saved = own.iter().map(|vm| host.observed(*vm).unwrap().deduplication.unwrap().saved);
        saved.map(Bytes::get).sum()
    };
    eprintln!("{} MiB are saved of {} MiB", saved(&host) / MIB, 3 * HELD / MIB);
    assert!(saved(&host) * 10 >= 2 * HELD * 9);
    let none = host.observed(stranger).unwrap().deduplication.unwrap();
    assert_eq!((none.merged, none.saved), (Bytes::ZERO, Bytes::ZERO));

    // Another agent knows what they were started with, and goes on.
    host.restart_agent().await;
    host.want_again();
    let of = |host: &Host, vm| host.observed(vm).unwrap().deduplication.unwrap().merging;
    assert!(own.iter().all(|vm| of(&host, *vm) == Merging::WithinProject));
    assert_eq!(of(&host, stranger), Merging::OtherProject);
    host.kill_agent();
    let began = Instant::now();
    while settings() != before {
        assert!(began.elapsed() < LIMIT, "the scanner is not as it was: {:?}", settings());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (_, merged) = held_and_merged(&host, own[0], &words);
    assert!(enough(merged), "what is merged stays merged");
}
