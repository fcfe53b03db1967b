//! What VMs and hosts do each second, in a line.

use plimsoll_api::cluster::{HostRates, VmUsage};

fn line<const N: usize>(parts: [Option<String>; N]) -> Option<String> {
    let said: Vec<String> = parts.into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(", "))
}

/// `VERB AMOUNT`, where it is measured.
fn part<T: ToString>(verb: &str, amount: Option<T>) -> Option<String> {
    amount.map(|amount| format!("{verb} {}", amount.to_string()))
}

/// What a VM uses.
pub(super) fn of_vm(usage: &VmUsage) -> String {
    let rates = &usage.rates;
    let used = format!("{} cores, {} memory", usage.cpu, usage.memory);
    let more = line([
        rates.cpu_wait.map(|wait| format!("{wait} cores wanted and not had")),
        rates.cpu_throttled.map(|held| format!("{held} cores held back by its own limit")),
        part("reads", rates.disk_read),
        part("writes", rates.disk_written),
        part("sends", rates.sent),
        part("receives", rates.received),
        part("swaps in", rates.swapped_in),
    ]);
    more.map_or_else(|| used.clone(), |more| format!("{used}; {more}"))
}

/// What a host does; none where nothing is measured.
pub(super) fn of_host(rates: &HostRates) -> Option<String> {
    let percent = |permille: u16| format!("{}.{} %", permille / 10, permille % 10);
    line([
        rates
            .memory_stall
            .map(|stall| format!("{} stalled for memory", percent(stall.some_permille))),
        part("swaps in", rates.swapped_in),
        part("swaps out", rates.swapped_out),
        part("sends", rates.sent),
        part("receives", rates.received),
        rates.network_capacity.map(|most| format!("{most} network at most")),
        rates.disk_capacity.map(|most| format!("{most} disk at most")),
    ])
}

#[cfg(test)]
mod tests {
    use plimsoll_api::cluster::{MemoryStall, VmRates};
    use plimsoll_model::{BitsPerSecond, Bytes, BytesPerSecond, MilliCores, VmId};

    use super::*;

    #[test]
    fn what_is_measured_is_said_and_nothing_else() {
        let usage = VmUsage {
            vm: VmId(uuid::Uuid::nil()),
            cpu: MilliCores(900),
            memory: Bytes::mib(300),
            resident: Bytes::mib(400),
            rates: VmRates::default(),
        };
        assert_eq!(of_vm(&usage), "900m cores, 300MiB memory");
        let rates = VmRates {
            cpu_wait: Some(MilliCores(250)),
            disk_written: Some(BytesPerSecond(5 << 20)),
            sent: Some(BitsPerSecond(8_000_000)),
            ..VmRates::default()
        };
        assert_eq!(
            of_vm(&VmUsage { rates, ..usage }),
            "900m cores, 300MiB memory; 250m cores wanted and not had, writes 5MiB/s, sends 8Mbit/s"
        );
        assert_eq!(of_host(&HostRates::default()), None);
        let host = HostRates {
            memory_stall: Some(MemoryStall { some_permille: 123, full_permille: 4 }),
            swapped_out: Some(BytesPerSecond(1 << 20)),
            ..HostRates::default()
        };
        let said = of_host(&host);
        assert_eq!(said.as_deref(), Some("12.3 % stalled for memory, swaps out 1MiB/s"));
    }
}
