//! The gate into Xen: `syscall` with up to five arguments (a PV kernel's way, xen-x86_64.h).

use core::arch::asm;

use crate::XenError;

/// Numbers of the hypercalls that PpVMM uses (`__HYPERVISOR_*`, xen.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
#[allow(missing_docs, reason = "each is named as in xen.h")]
pub enum Call {
    SetTrapTable = 0,
    MmuUpdate = 1,
    StackSwitch = 3,
    SetCallbacks = 4,
    MemoryOp = 12,
    UpdateVaMapping = 14,
    SetTimerOp = 15,
    XenVersion = 17,
    ConsoleIo = 18,
    GrantTableOp = 20,
    VmAssist = 21,
    Iret = 23,
    VcpuOp = 24,
    MmuextOp = 26,
    SchedOp = 29,
    CallbackOp = 30,
    EventChannelOp = 32,
    PhysdevOp = 33,
    HvmOp = 34,
    Sysctl = 35,
    Domctl = 36,
}

/// Calls Xen and returns what it left in `rax`: a count, or a negative errno.
///
/// # Safety
/// The arguments must be what the call documents: above all, every address among them must be
/// valid for what Xen reads and writes there, and a call that changes page tables must not take
/// memory away from, or alias it with, anything that Rust holds.
#[inline]
pub unsafe fn hypercall(call: Call, arguments: [u64; 5]) -> i64 {
    let result: i64;
    // SAFETY: Xen preserves every register but rax, rcx and r11; a preempted call is continued
    // with changed argument registers, so all of them count as overwritten. The rest is the
    // caller's duty.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") call as u64 => result,
            inlateout("rdi") arguments[0] => _,
            inlateout("rsi") arguments[1] => _,
            inlateout("rdx") arguments[2] => _,
            inlateout("r10") arguments[3] => _,
            inlateout("r8") arguments[4] => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Turns what a hypercall returned into a count or an error.
///
/// # Errors
/// The error that the negative errno stands for.
#[inline]
pub fn outcome(result: i64) -> Result<u64, XenError> {
    u64::try_from(result).map_err(|_| {
        let errno = i32::try_from(result.unsigned_abs()).unwrap_or(i32::MAX);
        XenError::from_errno(errno)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_results_are_errors() {
        assert_eq!(outcome(0), Ok(0));
        assert_eq!(outcome(512), Ok(512));
        assert_eq!(outcome(-17), Err(XenError::Exists));
        assert_eq!(outcome(-7), Err(XenError::Other(7)));
    }
}
