//! What the host does each second, and what it can do.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use plimsoll_api::cluster::{HostRates, MemoryStall};
use plimsoll_model::{BitsPerSecond, BytesPerSecond};

use super::SHORTEST_WINDOW;
use crate::config::DeclaredCapacity;
use crate::net::device_bytes;

/// The kernel counts what it swaps in pages.
const PAGE: u64 = 4096;

/// So much in a second, if so much came in this window.
pub(crate) fn per_second(count: u64, window: Duration) -> u64 {
    let nanos = window.as_nanos().max(1);
    u64::try_from(u128::from(count) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// Takes samples of the host's rates, each over the time since the one before.
#[derive(Debug)]
pub(super) struct HostMeter {
    /// The device that has the underlay's address.
    underlay: Option<String>,
    /// What the host can do, and the figures of the last window.
    rates: HostRates,
    last: Option<(Instant, Counted)>,
}

/// Bytes and pages since the machine booted.
#[derive(Clone, Copy, Debug)]
struct Counted {
    swapped: Option<[u64; 2]>,
    carried: Option<[u64; 2]>,
}

impl HostMeter {
    /// For a host with this address on the underlay. What disks can do is known only where it is
    /// declared; of the network it may be known from the device.
    pub(super) fn new(underlay: IpAddr, declared: &DeclaredCapacity) -> Self {
        let device = device_of(underlay);
        let speed = || device.as_deref().and_then(link_speed);
        let rates = HostRates {
            network_capacity: declared.network.or_else(speed),
            disk_capacity: declared.disk_bandwidth,
            ..HostRates::default()
        };
        Self { underlay: device, rates, last: None }
    }

    pub(super) fn sample(&mut self) -> HostRates {
        self.rates.memory_stall = memory_stall();
        let now = Instant::now();
        let is = Counted {
            swapped: text("/proc/vmstat").as_deref().and_then(swapped_pages),
            carried: self.underlay.as_deref().and_then(device_bytes),
        };
        let Some((then, was)) = self.last else {
            self.last = Some((now, is));
            return self.rates;
        };
        let window = now.duration_since(then);
        if window >= SHORTEST_WINDOW {
            self.last = Some((now, is));
            let [swapped_in, swapped_out] = grown(is.swapped, was.swapped, window);
            let [received, sent] = grown(is.carried, was.carried, window);
            let bytes = |pages: u64| BytesPerSecond(pages.saturating_mul(PAGE));
            let bits = |bytes: u64| BitsPerSecond(bytes.saturating_mul(8));
            self.rates = HostRates {
                swapped_in: swapped_in.map(bytes),
                swapped_out: swapped_out.map(bytes),
                received: received.map(bits),
                sent: sent.map(bits),
                ..self.rates
            };
        }
        self.rates
    }
}

/// Each second's growth. A counter that went back was begun anew, and tells nothing.
fn grown(is: Option<[u64; 2]>, was: Option<[u64; 2]>, window: Duration) -> [Option<u64>; 2] {
    [0, 1].map(|at| Some(per_second(is?[at].checked_sub(was?[at])?, window)))
}

/// Pages swapped in and out, in `/proc/vmstat`.
fn swapped_pages(vmstat: &str) -> Option<[u64; 2]> {
    let field = |name: &str| {
        let mut lines = vmstat.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
    };
    Some([field("pswpin")?, field("pswpout")?])
}

/// How much work stands still for want of memory; none where the kernel does not tell.
pub(crate) fn memory_stall() -> Option<MemoryStall> {
    parse_stall(&text("/proc/pressure/memory")?)
}

fn parse_stall(text: &str) -> Option<MemoryStall> {
    let share = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let average = line.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?;
        let (whole, tenths) = average.split_once('.')?;
        let tenths = char::from(*tenths.as_bytes().first()?).to_digit(10)?;
        let permille = whole.parse::<u16>().ok()?.checked_mul(10)?;
        Some(permille.checked_add(u16::try_from(tenths).ok()?)?.min(1000))
    };
    Some(MemoryStall { some_permille: share("some ")?, full_permille: share("full ")? })
}

/// The device that has an address.
fn device_of(address: IpAddr) -> Option<String> {
    let has = |socket: nix::sys::socket::SockaddrStorage| {
        let v4 = socket.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()).ip());
        v4.or_else(|| socket.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()).ip()))
    };
    let mut addresses = getifaddrs().ok()?;
    let found = addresses.find(|found| found.address.and_then(has) == Some(address))?;
    Some(found.interface_name)
}

/// What a device's driver says of its link. None of one that is no hardware: those make up a
/// speed, or have none.
fn link_speed(device: &str) -> Option<BitsPerSecond> {
    let directory = Path::new("/sys/class/net").join(device);
    let read = |name: &str| text(directory.join(name));
    // `/sys` may show another network namespace than the agent's.
    let own = nix::net::if_::if_nametoindex(device).ok()?;
    let same = read("ifindex")?.trim().parse() == Ok(own);
    (same && directory.join("device").exists()).then(|| parse_speed(&read("speed")?))?
}

/// Megabits a second; -1 where it is not known.
fn parse_speed(text: &str) -> Option<BitsPerSecond> {
    let megabits: u64 = text.trim().parse().ok()?;
    (megabits > 0 && megabits < u64::from(u32::MAX)).then(|| BitsPerSecond(megabits * 1_000_000))
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs_err::read_to_string(path.as_ref()).ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_kernels_figures_are_understood_and_nonsense_is_not() {
        let vmstat = "nr_free_pages 1\npswpin 30\npswpout 40\npswpinx 9\n";
        assert_eq!(swapped_pages(vmstat), Some([30, 40]));
        let stall = "some avg10=12.34 avg60=1.00 avg300=0.00 total=5\n\
                     full avg10=0.09 avg60=0.00 avg300=0.00 total=1\n";
        let wanted = MemoryStall { some_permille: 123, full_permille: 0 };
        assert_eq!(parse_stall(stall), Some(wanted));
        assert_eq!(parse_speed("10000\n"), Some(BitsPerSecond(10_000_000_000)));
        for text in ["", "-1", "0", "4294967295", "x", "some avg10=1", "pswpin 3", "some avg10=1.x"]
        {
            assert_eq!(swapped_pages(text), None, "{text}");
            assert_eq!(parse_stall(text), None, "{text}");
            assert_eq!(parse_speed(text), None, "{text}");
        }
    }

    #[test]
    fn loopback_has_a_device_and_no_speed_and_what_is_declared_is_known() {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut meter = HostMeter::new(local, &DeclaredCapacity::default());
        assert_eq!(meter.underlay.as_deref(), Some("lo"));
        let first = meter.sample();
        assert_eq!((first.network_capacity, first.disk_capacity), (None, None));
        assert_eq!((first.sent, first.swapped_in), (None, None), "one look tells no rate");

        // As if a second had passed, and packets of a million bytes.
        let (then, counted) = meter.last.unwrap();
        let back = |count: [u64; 2]| count.map(|count| count.saturating_sub(1_000_000));
        let counted = Counted { carried: counted.carried.map(back), ..counted };
        let earlier = then.checked_sub(Duration::from_secs(1)).unwrap();
        meter.last = Some((earlier, counted));
        let next = meter.sample();
        if counted.carried.is_some_and(|[received, _]| received > 0) {
            assert!(next.received.unwrap() >= BitsPerSecond(7_000_000), "{next:?}");
        }
        assert!(next.swapped_in.is_some() && next.swapped_out.is_some(), "{next:?}");

        let declared = DeclaredCapacity {
            network: Some(BitsPerSecond(5)),
            disk_bandwidth: Some(BytesPerSecond(6)),
            ..DeclaredCapacity::default()
        };
        let known = HostMeter::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)), &declared).sample();
        assert_eq!(known.network_capacity, Some(BitsPerSecond(5)));
        assert_eq!(known.disk_capacity, Some(BytesPerSecond(6)));
        assert_eq!(known.received, None, "no device has that address");
    }

    #[test]
    fn a_rate_is_a_count_by_its_time_whatever_they_are() {
        assert_eq!(per_second(300, Duration::from_secs(2)), 150);
        assert_eq!(per_second(5, Duration::ZERO), 5_000_000_000);
        assert_eq!(per_second(u64::MAX, Duration::ZERO), u64::MAX);
        assert_eq!(per_second(1 << 40, Duration::MAX), 0);
    }
}
