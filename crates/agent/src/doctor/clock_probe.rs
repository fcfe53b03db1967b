//! Asks the kernel whether something keeps its clock right.
#![expect(unsafe_code, reason = "adjtimex is in no safe crate in use")]

use std::{io, mem::MaybeUninit};

/// What the kernel knows about its clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// Whether something such as chrony disciplines it.
    pub(super) synchronised: bool,
    /// The largest error it may have, in microseconds.
    pub(super) error_us: i64,
}

pub(super) fn clock() -> io::Result<Clock> {
    let mut state = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: zeroed, its `modes` ask to change nothing, and all-zero is a valid `timex`; the kernel
    // fills it in.
    let result = unsafe { libc::adjtimex(state.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: initialised above, by zeroing and then by the kernel.
    let state = unsafe { state.assume_init() };
    let synchronised = result != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0;
    Ok(Clock { synchronised, error_us: state.maxerror })
}
