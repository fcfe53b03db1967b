//! Gathers what the guest tells about itself.
//!
//! Best effort: what this kernel does not tell is 0, empty or absent, never an error, so that one
//! odd file does not hide all the rest. Texts are cleaned and lists cut, so that the protocol's
//! bounds always hold.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use plimsoll_api::guest::{
    ApplicationLatency, CpuTime, Facts, Hundredths, InterfaceAddress, InterfaceFacts,
    MAX_ADDRESSES, MAX_INTERFACES, MAX_TEXT_BYTES, MemoryFacts, Pressure, PressureFacts,
    to_printable,
};

use crate::system::{System, hundredths};
use crate::{VERSION, cpus};

/// Balloons count in pages of this size.
const PAGE_BYTES: u64 = 4096;
/// The kernel's clock tick towards user space, in milliseconds: 100 Hz on every x86 kernel.
const TICK_MS: u64 = 10;
/// Where an application says how it answers: microseconds that it takes, and may take.
const LATENCY_FILE: &str = "run/plimsoll/latency";
/// For so long what it said is believed.
const LATENCY_GOOD_FOR: Duration = Duration::from_secs(30);

/// Gathers all facts.
#[must_use]
pub fn gather(system: &System) -> Facts {
    let read = |path: &str| system.read(path).unwrap_or_default();
    let text = |path: &str| to_printable(&read(path), MAX_TEXT_BYTES);
    Facts {
        kernel_release: text("proc/sys/kernel/osrelease"),
        hostname: text("proc/sys/kernel/hostname"),
        os_name: os_name(system),
        boot_id: text("proc/sys/kernel/random/boot_id"),
        agent_version: VERSION.to_owned(),
        uptime_ms: system.uptime_ms(),
        interfaces: interfaces(system, &addresses()),
        memory: memory(system),
        cpus: cpus::count(system).unwrap_or_default(),
        cpu_time: cpu_time(&read("proc/stat")),
        load: load(&read("proc/loadavg")),
        pressure: pressure(system),
        latency: latency(system),
    }
}

/// What an application says of its latency; nothing if it has not said it lately.
fn latency(system: &System) -> Option<ApplicationLatency> {
    let written = std::fs::metadata(system.path(LATENCY_FILE)).ok()?.modified().ok()?;
    // A clock that was set back makes it look new: it is.
    let age = written.elapsed().unwrap_or_default();
    if age > LATENCY_GOOD_FOR {
        return None;
    }
    parse_latency(&system.read(LATENCY_FILE).ok()?)
}

fn parse_latency(text: &str) -> Option<ApplicationLatency> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(seen_us)), Some(Ok(objective_us @ 1..)), None) => {
            Some(ApplicationLatency { seen_us, objective_us })
        }
        _ => None,
    }
}

fn os_name(system: &System) -> String {
    let release = system.read("etc/os-release").or_else(|_| system.read("usr/lib/os-release"));
    let release = release.unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.map(|name| name.trim().trim_matches(['"', '\''])).unwrap_or("Linux");
    to_printable(name, MAX_TEXT_BYTES)
}

/// Every address of every interface, by the interface's name.
fn addresses() -> BTreeMap<String, Vec<InterfaceAddress>> {
    let mut found: BTreeMap<String, Vec<InterfaceAddress>> = BTreeMap::new();
    let Ok(entries) = nix::ifaddrs::getifaddrs() else { return found };
    for entry in entries {
        let address = entry.address.and_then(ip).zip(entry.netmask.and_then(ip));
        if let Some((address, netmask)) = address {
            let list = found.entry(entry.interface_name).or_default();
            list.push(InterfaceAddress { address, prefix_length: prefix_length(netmask) });
        }
    }
    found
}

fn ip(storage: nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

fn prefix_length(netmask: IpAddr) -> u8 {
    let ones = match netmask {
        IpAddr::V4(mask) => u32::from(mask).leading_ones(),
        IpAddr::V6(mask) => u128::from(mask).leading_ones(),
    };
    u8::try_from(ones).unwrap_or(u8::MAX)
}

fn interfaces(
    system: &System,
    addresses: &BTreeMap<String, Vec<InterfaceAddress>>,
) -> Vec<InterfaceFacts> {
    let Ok(entries) = std::fs::read_dir(system.path("sys/class/net")) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name != "lo" && system.path("sys/class/net").join(name).is_dir());
    names.sort_unstable();
    names.truncate(MAX_INTERFACES);
    let describe = |name: String| {
        let mac = system.read(format!("sys/class/net/{name}/address")).unwrap_or_default();
        let mut addresses = addresses.get(&name).cloned().unwrap_or_default();
        addresses.truncate(MAX_ADDRESSES);
        InterfaceFacts {
            name: to_printable(&name, MAX_TEXT_BYTES),
            // Tunnels and InfiniBand have hardware addresses of other lengths.
            mac: Some(mac.trim().to_owned()).filter(|mac| mac.len() == 17),
            addresses,
        }
    };
    names.into_iter().map(describe).collect()
}

/// The guest's memory as its kernel tells it; zeros where it does not.
#[must_use]
pub fn memory(system: &System) -> MemoryFacts {
    let read = |path| system.read(path).unwrap_or_default();
    parse_memory(&read("proc/meminfo"), &read("proc/vmstat"))
}

fn parse_memory(meminfo: &str, vmstat: &str) -> MemoryFacts {
    let mut bytes = BTreeMap::new();
    for line in meminfo.lines() {
        if let Some((name, rest)) = line.split_once(':') {
            let kib = rest.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
            bytes.insert(name, kib.unwrap_or(0).saturating_mul(1024));
        }
    }
    let get = |name: &str| bytes.get(name).copied().unwrap_or(0);
    let cached = get("Cached").saturating_add(get("Buffers")).saturating_add(get("SReclaimable"));
    MemoryFacts {
        total_bytes: get("MemTotal"),
        available_bytes: get("MemAvailable"),
        free_bytes: get("MemFree"),
        // Shared memory is counted as cache and cannot be dropped.
        cached_bytes: cached.saturating_sub(get("Shmem")),
        swap_total_bytes: get("SwapTotal"),
        swap_free_bytes: get("SwapFree"),
        active_file_bytes: get("Active(file)"),
        // Both count pages, since boot.
        balloon_bytes: counter(vmstat, "balloon_inflate")
            .saturating_sub(counter(vmstat, "balloon_deflate"))
            .saturating_mul(PAGE_BYTES),
        oom_kills: counter(vmstat, "oom_kill"),
    }
}

/// A line of `/proc/vmstat`.
fn counter(vmstat: &str, name: &str) -> u64 {
    let mut lines = vmstat.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(counter, _)| *counter == name);
    found.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

fn cpu_time(stat: &str) -> CpuTime {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_whitespace().map(|number| number.parse().unwrap_or(0)).collect();
    // user nice system idle iowait irq softirq steal; "guest" is part of "user".
    let ms = |places: &[usize]| {
        let sum = places.iter().map(|place| ticks.get(*place).copied().unwrap_or(0));
        sum.fold(0, u64::saturating_add).saturating_mul(TICK_MS)
    };
    CpuTime {
        user_ms: ms(&[0, 1]),
        system_ms: ms(&[2, 5, 6]),
        iowait_ms: ms(&[4]),
        steal_ms: ms(&[7]),
        idle_ms: ms(&[3]),
    }
}

fn to_hundredths(text: &str) -> Hundredths {
    Hundredths(hundredths(text).and_then(|number| u32::try_from(number).ok()).unwrap_or(0))
}

fn load(loadavg: &str) -> [Hundredths; 3] {
    let mut fields = loadavg.split_whitespace().map(to_hundredths);
    std::array::from_fn(|_| fields.next().unwrap_or_default())
}

/// None unless the kernel has all three files and lets them be read (`psi=0` makes reading fail).
fn pressure(system: &System) -> Option<PressureFacts> {
    let read = |name: &str| system.read(format!("proc/pressure/{name}")).ok().map(|t| stalls(&t));
    Some(PressureFacts { cpu: read("cpu")?, memory: read("memory")?, io: read("io")? })
}

fn stalls(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let some = match fields.next() {
            Some("some") => true,
            Some("full") => false,
            _ => continue,
        };
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            match (some, name) {
                (true, "avg10") => pressure.some_avg10 = to_hundredths(value),
                (true, "avg60") => pressure.some_avg60 = to_hundredths(value),
                (false, "avg10") => pressure.full_avg10 = to_hundredths(value),
                (false, "avg60") => pressure.full_avg60 = to_hundredths(value),
                _ => {}
            }
        }
    }
    pressure
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use plimsoll_api::guest::{Answer, GuestMessage, Outcome, Reply, encode_line};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_application_says_two_numbers_or_nothing() {
        let said = |seen_us, objective_us| Some(ApplicationLatency { seen_us, objective_us });
        assert_eq!(parse_latency("1500 20000\n"), said(1500, 20_000));
        for bad in ["", "1500", "1500 0", "a b", "1 2 3", "-1 5", "99999999999999999999999 5"] {
            assert_eq!(parse_latency(bad), None, "{bad}");
        }
    }

    #[test]
    fn kernel_files_are_read() {
        let facts = parse_memory(
            "MemTotal:  1000 kB\nMemAvailable: 500 kB\nCached: 90 kB\nShmem: 40 kB\n",
            "oom_kill 3\nballoon_inflate 7\nballoon_deflate 5\n",
        );
        assert_eq!((facts.total_bytes, facts.available_bytes), (1_024_000, 512_000));
        assert_eq!((facts.cached_bytes, facts.oom_kills), (50 * 1024, 3));
        assert_eq!((facts.balloon_bytes, facts.used_bytes()), (8192, 512_000 - 8192));

        let time = cpu_time("cpu  10 1 20 300 4 5 6 7 8 9\ncpu0 1 2 3\n");
        let expected =
            CpuTime { user_ms: 110, system_ms: 310, iowait_ms: 40, steal_ms: 70, idle_ms: 3000 };
        assert_eq!(time, expected);

        assert_eq!(
            load("0.52 1.5 10.00 1/200 99"),
            [Hundredths(52), Hundredths(150), Hundredths(1000)]
        );
        let pressure =
            stalls("some avg10=1.25 avg60=0.30 avg300=0.00 total=1\nfull avg10=0.05 avg60=0.00");
        assert_eq!((pressure.some_avg10, pressure.full_avg10), (Hundredths(125), Hundredths(5)));
        assert_eq!(prefix_length(IpAddr::V4(Ipv4Addr::new(255, 255, 240, 0))), 20);
    }

    #[test]
    fn this_machine_has_facts_that_fit_the_protocol() {
        let facts = gather(&System::default());
        assert!(facts.memory.total_bytes > 0 && facts.cpu_time.idle_ms > 0);
        assert!(!facts.kernel_release.is_empty() && facts.cpus.online > 0);
        let answer = Outcome::Done(Answer::Facts(Box::new(facts)));
        encode_line(&GuestMessage::Reply(Reply { id: 1, outcome: answer })).unwrap();
    }

    #[test]
    fn an_empty_system_has_empty_facts() {
        let root = tempfile::tempdir().unwrap();
        let facts = gather(&System::at(root.path()));
        assert_eq!(facts.memory, MemoryFacts::default());
        assert_eq!((facts.pressure, facts.os_name.as_str()), (None, "Linux"));
    }

    #[test]
    fn a_hostile_name_is_cleaned() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/os-release"), "PRETTY_NAME=\"a\u{1b}[31mb\"\n")
            .unwrap();
        assert_eq!(os_name(&System::at(root.path())), "a [31mb");
    }

    proptest! {
        #[test]
        fn odd_kernel_files_never_panic(text in ".{0,300}") {
            parse_memory(&text, &text);
            cpu_time(&format!("cpu {text}"));
            load(&text);
            stalls(&text);
        }
    }
}
