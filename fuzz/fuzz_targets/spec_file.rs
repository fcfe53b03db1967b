//! Descriptions that `plimsoll apply -f` reads: whatever the bytes, an error or a description that keeps
//! the rules which the rest relies on; never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The module itself: the crate that it is a part of is a program, not a library.
#[path = "../../crates/plimsoll/src/apply/file.rs"]
#[allow(dead_code)]
mod file;

use file::{File, Members};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(file) = File::parse(text) else { return };
    for vm in &file.vms {
        assert!(vm.resources.cpu.0 > 0 && vm.resources.memory.0 > 0);
        if let Members::Count(count) = vm.members() {
            for number in [1, count] {
                let name = vm.member_name(number).expect("checked when it was read");
                assert_eq!(vm.member_number(&name), Some(number));
            }
        }
    }
});
