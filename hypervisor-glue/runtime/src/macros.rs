//! The entry macros.

/// Makes the binary a service: `service!(start)` with `fn start(boot: runtime::Boot) -> !`, or
/// `service!(start, aside_pages = N)` with so many pages aside ([`crate::Boot::aside`]), or
/// `service!(start, tests = [("name", function), …])` with tests of its own for the self-test, each
/// `fn() -> Result<(), &'static str>`; `service!(start, user_mode)` if it opens a
/// [`user::FaultDomain`](crate::user::FaultDomain).
#[macro_export]
macro_rules! service {
    ($start:path, user_mode) => {
        $crate::unikernel!($crate::Unikernel::service($start).with_user_mode());
    };
    ($start:path $(, aside_pages = $aside:expr)? $(, tests = $tests:expr)?) => {
        $crate::unikernel!(
            $crate::Unikernel::service($start) $(.with_aside($aside))? $(.with_tests(&$tests))?
        );
    };
}

/// Makes the binary the orchestrator: `orchestrator!(start, fabric_pages = N)` with
/// `fn start(boot: runtime::Boot) -> !` and the number of pages that it shares with its units;
/// `tests = […]` as for [`service!`].
#[macro_export]
macro_rules! orchestrator {
    ($start:path, fabric_pages = $pages:expr $(, tests = $tests:expr)?) => {
        static PPVMM_FABRIC: $crate::FabricPages<{ $pages }> = $crate::FabricPages::new();
        $crate::unikernel!(
            $crate::Unikernel::orchestrator($start, PPVMM_FABRIC.range())
                $(.with_tests(&$tests))?
        );
    };
}

/// Makes the binary an ordinary PVH guest: `guest!(start)` with
/// `fn start(guest: runtime::guest::Guest) -> !`.
#[macro_export]
macro_rules! guest {
    ($start:path) => {
        $crate::unikernel!($crate::Unikernel::guest($start));
    };
}

/// What the runtime looks for in the binary; use [`service!`], [`orchestrator!`] or [`guest!`].
#[doc(hidden)]
#[macro_export]
macro_rules! unikernel {
    ($unikernel:expr) => {
        #[unsafe(export_name = "ppvmm_unikernel")]
        static PPVMM_UNIKERNEL: $crate::Unikernel = $unikernel;

        /// A unikernel is no process: it is built for other targets only to be checked.
        #[cfg(not(target_os = "none"))]
        #[unsafe(export_name = "main")]
        extern "C" fn ppvmm_not_a_process() -> i32 {
            2
        }
    };
}
