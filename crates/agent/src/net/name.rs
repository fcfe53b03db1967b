//! Names of devices: at most 15 bytes, from numbers and ids alone.

use plimsoll_model::VmId;

/// The bridge of a network.
#[must_use]
pub fn bridge_name(vni: u32) -> String {
    format!("plb{vni}")
}

/// The VXLAN device of a network.
#[must_use]
pub fn vxlan_name(vni: u32) -> String {
    format!("plx{vni}")
}

/// The tap of a VM's interface: the last 40 bits of the VM's id, which are random in all kinds of
/// uuid, and the interface's number. The whole id is in the device's alias, which is checked.
#[must_use]
pub fn tap_name(vm: VmId, index: u8) -> String {
    format!("plt{}", suffix(vm, index))
}

/// The device through which a tap's incoming traffic is slowed down.
#[must_use]
pub fn ifb_name(vm: VmId, index: u8) -> String {
    format!("pli{}", suffix(vm, index))
}

fn suffix(vm: VmId, index: u8) -> String {
    format!("{:010x}{index:02x}", vm.0.as_u128() & 0xff_ffff_ffff)
}

pub(super) fn is_tap(device: &str) -> bool {
    device.strip_prefix("plt").is_some_and(|rest| {
        rest.len() == 12 && rest.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
    })
}

/// The ifb that belongs to a tap.
pub(super) fn ifb_of(tap: &str) -> String {
    format!("pli{}", tap.strip_prefix("plt").unwrap_or(tap))
}

pub(super) fn vni_of_bridge(device: &str) -> Option<u32> {
    let vni = device.strip_prefix("plb")?.parse().ok()?;
    (bridge_name(vni) == device).then_some(vni)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn names_fit_and_are_told_apart() {
        let vm = VmId(Uuid::from_u128(u128::MAX));
        for name in [tap_name(vm, 255), ifb_name(vm, 0), bridge_name(0xff_ffff)] {
            assert!(name.len() <= 15, "{name}");
        }
        assert!(is_tap(&tap_name(vm, 3)));
        assert_eq!(ifb_of(&tap_name(vm, 3)), ifb_name(vm, 3));
        assert_eq!(vni_of_bridge("plb12"), Some(12));
        for other in ["plb", "plb012", "plb1x", "plx1", "br0"] {
            assert_eq!(vni_of_bridge(other), None, "{other}");
        }
        assert!(!is_tap("plt123") && !is_tap("plt; reboot  x"));
    }
}
