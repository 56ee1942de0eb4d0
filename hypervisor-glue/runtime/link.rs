// Linker arguments of a unikernel, for its build script:
//
//     include!("../runtime/link.rs");
//     fn main() { link_unikernel("NAME-OF-THE-BINARY", "../runtime"); }
//
// (the second argument is the path of the runtime package, from the unikernel's). On any target
// but x86_64-unknown-none nothing is passed: there the package is only checked, never started.

/// Passes the linker script and arguments for the binary `name`.
fn link_unikernel(name: &str, runtime: &str) {
    let script = std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join(runtime)
        .join("link.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    if std::env::var("TARGET").expect("set by cargo") != "x86_64-unknown-none" {
        return;
    }
    for argument in [
        "-static",
        "--no-pie",
        "--build-id=none",
        "-zmax-page-size=4096",
        "-znoexecstack",
        "-znorelro",
        "--no-eh-frame-hdr",
        "--gc-sections",
    ] {
        println!("cargo:rustc-link-arg-bin={name}={argument}");
    }
    println!("cargo:rustc-link-arg-bin={name}=-T{}", script.display());
}
