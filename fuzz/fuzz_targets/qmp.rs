//! What QEMU might send: decoding never panics, whatever the bytes and wherever they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = plimsoll_qmp::decode(data);
    let half = data.len() / 2;
    let _ = plimsoll_qmp::decode(&data[..half]);
});
