//! The protocol between host and guest agent, hostile in both directions: neither lines nor streams of
//! them panic, and an accepted message is written again within the same bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_api::guest::{
    GuestMessage, HostMessage, LineBuffer, ProtocolError, decode_line, encode_line,
};

fn check<M: plimsoll_api::guest::Message>(line: &[u8]) {
    if let Ok(message) = decode_line::<M>(line) {
        match encode_line(&message) {
            // Escapes may make the written line longer than the one that was read.
            Ok(_) | Err(ProtocolError::LineTooLong) => {}
            Err(error) => panic!("accepted, but not written again: {error}"),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    check::<HostMessage>(data);
    check::<GuestMessage>(data);
    let mut buffer = LineBuffer::new();
    for chunk in data.chunks(7) {
        buffer.push(chunk);
        while let Some(line) = buffer.next_line() {
            if let Ok(line) = line {
                check::<GuestMessage>(&line);
            }
        }
    }
});
