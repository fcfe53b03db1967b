//! The processor's own clock: the one that is fine enough for a single write.
//!
//! The kernel's clock may be no better than a microsecond: where QEMU translates the guest's code,
//! Linux does not trust the counter and asks a timer chip.
#![expect(unsafe_code, reason = "the time-stamp counter is read by an intrinsic")]

use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::sync::atomic::{Ordering, compiler_fence};

/// The time-stamp counter, after all that stands before this is done and before what follows begins.
pub(crate) fn now() -> u64 {
    compiler_fence(Ordering::SeqCst);
    // SAFETY: every x86-64 processor has both instructions; they touch no memory.
    let ticks = unsafe {
        _mm_lfence();
        let ticks = _rdtsc();
        _mm_lfence();
        ticks
    };
    compiler_fence(Ordering::SeqCst);
    ticks
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_goes_on() {
        let before = super::now();
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(super::now() > before + 1000);
    }
}
