//! What `entry.s` and the linker script define, and stand-ins where the crate is only checked.

#[cfg(target_os = "none")]
mod real {
    core::arch::global_asm!(include_str!("entry.s"), include_str!("user/entry.s"));

    use crate::traps::Frame;

    unsafe extern "C" {
        pub(crate) static mut ppvmm_shared_info: [u8; 4096];
        pub(crate) static mut ppvmm_beginning: u64;
        pub(crate) static mut ppvmm_guest_pages: [u8; 8192];
        pub(crate) static ppvmm_stack_guard: [u8; 4096];
        pub(crate) static ppvmm_pv_traps: [u64; 32];
        pub(crate) static ppvmm_bare_traps: [u64; 32];
        pub(crate) static __image_start: u8;
        pub(crate) static __data_start: u8;
        pub(crate) static __image_end: u8;
        pub(crate) static ppvmm_exit_stack_top: u8;
        pub(crate) fn ppvmm_enter_user(registers: *const Frame) -> *const Frame;
        pub(crate) fn ppvmm_user_call();
        pub(crate) fn _start_pv();
        pub(crate) fn ppvmm_block();
        pub(crate) fn ppvmm_upcall();
        pub(crate) fn ppvmm_failsafe();
        pub(crate) fn ppvmm_fresh_stack(entry: extern "C" fn(u64) -> !, argument: u64) -> !;
        pub(crate) fn ppvmm_begin_again(rung: u64) -> !;
    }

    unsafe extern "Rust" {
        /// Defined by [`crate::service!`] or [`crate::orchestrator!`].
        #[link_name = "ppvmm_unikernel"]
        pub(crate) safe static UNIKERNEL: crate::Unikernel;
    }
}

#[cfg(not(target_os = "none"))]
#[allow(non_upper_case_globals, reason = "named as in entry.s")]
mod real {
    use crate::traps::Frame;

    pub(crate) static mut ppvmm_shared_info: [u8; 4096] = [0; 4096];
    pub(crate) static mut ppvmm_beginning: u64 = 0;
    pub(crate) static mut ppvmm_guest_pages: [u8; 8192] = [0; 8192];
    pub(crate) static ppvmm_stack_guard: [u8; 4096] = [0; 4096];
    pub(crate) static ppvmm_pv_traps: [u64; 32] = [0; 32];
    pub(crate) static ppvmm_bare_traps: [u64; 32] = [0; 32];
    pub(crate) static __image_start: u8 = 0;
    pub(crate) static __data_start: u8 = 0;
    pub(crate) static __image_end: u8 = 0;
    pub(crate) static ppvmm_exit_stack_top: u8 = 0;
    pub(crate) unsafe extern "C" fn ppvmm_enter_user(registers: *const Frame) -> *const Frame {
        registers
    }
    pub(crate) unsafe extern "C" fn ppvmm_user_call() {}
    pub(crate) unsafe extern "C" fn _start_pv() {}
    pub(crate) unsafe extern "C" fn ppvmm_block() {}
    pub(crate) unsafe extern "C" fn ppvmm_upcall() {}
    pub(crate) unsafe extern "C" fn ppvmm_failsafe() {}
    pub(crate) unsafe extern "C" fn ppvmm_fresh_stack(
        entry: extern "C" fn(u64) -> !,
        argument: u64,
    ) -> ! {
        entry(argument)
    }
    pub(crate) unsafe extern "C" fn ppvmm_begin_again(_: u64) -> ! {
        panic!("only Xen resumes a unikernel")
    }

    fn nothing(_: crate::Boot) -> ! {
        panic!("a unikernel runs on Xen, not as a process")
    }
    pub(crate) static UNIKERNEL: crate::Unikernel = crate::Unikernel::service(nothing);
}

pub(crate) use real::*;
