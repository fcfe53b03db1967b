//! Runs a few instructions of 64-bit kernel-mode code under KVM and measures how fast they go.
//!
//! `/dev/kvm` may be there and still be useless: where the machine is itself a guest without
//! nested virtualisation, some kernels run a guest's user mode natively, but *emulate* its kernel
//! mode at less than a million instructions a second. Only running such code tells.
//!
//! The guest is one page of code in 2 MiB of memory: a counted loop, then `hlt`. It runs in slices
//! that grow while they are short, in a thread of its own; a watchdog interrupts it, so that a
//! kernel that never comes back costs [`LIMIT`] and no more.
#![expect(unsafe_code, reason = "guest memory is mapped and handed to KVM by address")]

use std::{
    io,
    num::NonZero,
    os::unix::thread::JoinHandleExt as _,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use nix::sys::{
    mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
    pthread::pthread_kill,
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};
use thiserror::Error;

/// How long the whole probe may take.
pub(super) const LIMIT: Duration = Duration::from_millis(800);
/// A slice that took this long is exact enough.
const LONG_ENOUGH: Duration = Duration::from_millis(30);
/// 1.3 ms at the rate of an emulated kernel mode.
const FIRST_SLICE: u64 = 500;
/// Half a second at 10^10 instructions a second.
const LONGEST_SLICE: u64 = 1 << 31;

const MEMORY: usize = 2 << 20;
const GDT: u64 = 0x500;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x8000;
/// `dec rcx; jnz -5; hlt`: two instructions each time round.
const PROGRAM: [u8; 6] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4];

/// Why no rate could be measured.
#[derive(Debug, Error)]
pub(super) enum ProbeError {
    /// The device does not open.
    #[error("cannot open /dev/kvm")]
    Open {
        #[source]
        source: io::Error,
    },
    /// KVM refused one of the steps.
    #[error("KVM refuses to {step}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// The guest stopped elsewhere than at its end.
    #[error("the guest code stopped unexpectedly: {exit}")]
    Exit { exit: String },
    /// It did not come back in time.
    #[error("the guest code did not finish in {} ms", LIMIT.as_millis())]
    TimedOut,
}

/// Instructions per second of 64-bit kernel-mode code. Blocks for at most about [`LIMIT`].
pub(super) fn instructions_per_second() -> Result<u64, ProbeError> {
    ignore_interruptions().map_err(|source| ProbeError::Step { step: "be interrupted", source })?;
    let expired = Arc::new(AtomicBool::new(false));
    let (answer, is_answered) = mpsc::channel();
    let thread = {
        let expired = Arc::clone(&expired);
        std::thread::spawn(move || {
            // The receiver may have given up.
            let _ = answer.send(measure(&expired));
        })
    };
    let result = match is_answered.recv_timeout(LIMIT) {
        Ok(result) => result,
        Err(_) => {
            expired.store(true, Ordering::SeqCst);
            // A signal that arrives just before the guest is entered is lost, hence again and again.
            for _ in 0..50 {
                if thread.is_finished() {
                    break;
                }
                let _ = pthread_kill(thread.as_pthread_t(), Signal::SIGURG);
                std::thread::park_timeout(Duration::from_millis(5));
            }
            // What was measured until then counts, if there is anything.
            is_answered.try_recv().unwrap_or(Err(ProbeError::TimedOut))
        }
    };
    if thread.is_finished() {
        let _ = thread.join();
    }
    result
}

extern "C" fn nothing(_: libc::c_int) {}

/// Gives SIGURG a handler that does nothing, so that it interrupts a system call. Its default is to
/// be ignored, so nobody who relies on that notices; a handler that is there already is kept.
fn ignore_interruptions() -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler touches nothing, so it is safe at any moment.
    let before = unsafe { sigaction(Signal::SIGURG, &action) }?;
    if !matches!(before.handler(), SigHandler::SigDfl | SigHandler::SigIgn) {
        // SAFETY: it was installed before by whoever answers for it.
        unsafe { sigaction(Signal::SIGURG, &before) }?;
    }
    Ok(())
}

/// Zeroed memory for the guest, unmapped in the end.
struct Memory(NonNull<libc::c_void>);

impl Memory {
    fn new() -> io::Result<Self> {
        let length = NonZero::new(MEMORY).expect("it is 2 MiB");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping at an address that the kernel chooses replaces nothing.
        let address = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Self(address))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).expect("guest addresses are below 2 MiB");
        assert!(at + bytes.len() <= MEMORY, "inside the guest's memory");
        // SAFETY: the target lies in the mapping (just checked), which only this value knows, and
        // no guest runs while it is written.
        unsafe {
            let target = self.0.as_ptr().cast::<u8>().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length; the VM that used it is gone (see `measure`).
        let _ = unsafe { munmap(self.0, MEMORY) };
    }
}

fn refused(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProbeError {
    move |error| ProbeError::Step { step, source: io::Error::from_raw_os_error(error.errno()) }
}

fn measure(expired: &AtomicBool) -> Result<u64, ProbeError> {
    // Declared first, dropped last: the VM refers to it.
    let mut memory =
        Memory::new().map_err(|source| ProbeError::Step { step: "map guest memory", source })?;
    for (at, entry) in [
        (GDT, 0),
        (GDT + 8, 0x00af_9b00_0000_ffff),
        (GDT + 16, 0x00cf_9300_0000_ffff),
        (PML4, PDPT | 3),
        (PDPT, PAGE_DIRECTORY | 3),
        // One page of 2 MiB, present and writable.
        (PAGE_DIRECTORY, 0x83),
    ] {
        memory.write(at, &u64::to_le_bytes(entry));
    }
    memory.write(CODE, &PROGRAM);

    let kvm = Kvm::new().map_err(|error| ProbeError::Open {
        source: io::Error::from_raw_os_error(error.errno()),
    })?;
    let vm = kvm.create_vm().map_err(refused("create a VM"))?;
    // Needed by older Intel processors; harmless elsewhere, and refused by kernels without them.
    let _ = vm.set_tss_address(0xfffb_d000);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.0.as_ptr().expose_provenance() as u64,
    };
    // SAFETY: the mapping has this length and outlives the VM: it was declared before it.
    unsafe { vm.set_user_memory_region(region) }.map_err(refused("give memory to the VM"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(refused("create a vCPU"))?;
    let cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("describe its vCPU"))?;
    vcpu.set_cpuid2(&cpuid).map_err(refused("set the vCPU's features"))?;
    enter_long_mode(&vcpu)?;

    let mut iterations = FIRST_SLICE;
    let mut best = None;
    while !expired.load(Ordering::SeqCst) {
        let took = match run_slice(&mut vcpu, iterations) {
            Err(ProbeError::TimedOut) => break,
            other => other?,
        };
        let nanoseconds = took.as_nanos().max(1);
        let rate = u128::from(iterations) * 2 * 1_000_000_000 / nanoseconds;
        best = best.max(Some(u64::try_from(rate).unwrap_or(u64::MAX)));
        if took >= LONG_ENOUGH || iterations >= LONGEST_SLICE {
            break;
        }
        iterations *= 4;
    }
    best.ok_or(ProbeError::TimedOut)
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), ProbeError> {
    let mut registers = vcpu.get_sregs().map_err(refused("read the vCPU's state"))?;
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, l: 0, ..code };
    registers.cs = code;
    registers.ds = data;
    registers.es = data;
    registers.fs = data;
    registers.gs = data;
    registers.ss = data;
    registers.gdt.base = GDT;
    registers.gdt.limit = 23;
    registers.cr3 = PML4;
    // Physical address extension; protection and paging; long mode enabled and active.
    registers.cr4 = 1 << 5;
    registers.cr0 = 1 | 1 << 4 | 1 << 31;
    registers.efer = 1 << 8 | 1 << 10;
    vcpu.set_sregs(&registers).map_err(refused("enter 64-bit mode"))
}

/// Runs the loop so many times. Interrupted, it is [`ProbeError::TimedOut`].
fn run_slice(vcpu: &mut VcpuFd, iterations: u64) -> Result<Duration, ProbeError> {
    let mut registers = vcpu.get_regs().map_err(refused("read the vCPU's registers"))?;
    registers.rip = CODE;
    registers.rcx = iterations;
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(refused("set the vCPU's registers"))?;
    let start = Instant::now();
    let exit = vcpu.run();
    let took = start.elapsed();
    match exit {
        Ok(VcpuExit::Hlt) => Ok(took),
        Ok(VcpuExit::Intr) => Err(ProbeError::TimedOut),
        Ok(other) => Err(ProbeError::Exit { exit: format!("{other:?}") }),
        Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
            Err(ProbeError::TimedOut)
        }
        Err(error) => Err(refused("run the guest code")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_answers_in_time_whatever_it_finds() {
        let start = Instant::now();
        let result = instructions_per_second();
        assert!(start.elapsed() < LIMIT + Duration::from_millis(700), "{:?}", start.elapsed());
        match result {
            Ok(rate) => {
                eprintln!("{rate} instructions/s");
                assert!(rate > 10_000, "{rate}");
            }
            Err(error) => eprintln!("no KVM here: {error}"),
        }
    }
}
