//! Every tidy rule can fail, and the workspace passes them all.

use xtask::tidy::{self, check_file, parse_exceptions, ratchet};

/// The rules that complain about this file.
fn rules(path: &str, text: &str) -> Vec<&'static str> {
    let mut names: Vec<_> = check_file(path, text.as_bytes()).iter().map(|f| f.rule).collect();
    names.dedup();
    names
}

#[test]
fn the_workspace_is_tidy() {
    if let Err(error) = tidy::run() {
        panic!("{error:#}");
    }
}

#[test]
fn unsafe_stays_in_its_two_homes() {
    let text = "fn f() {\n    // SAFETY: checked\n    unsafe { g() }\n}\n";
    assert_eq!(rules("raft/src/x.rs", text), ["unsafe-home"]);
    assert!(rules("hypervisor-glue/abi/src/x.rs", text).is_empty());
    assert!(rules("raft/src/x.rs", "// unsafe\nconst A: &str = \"unsafe\";\n").is_empty());
}

#[test]
fn unsafe_needs_a_reason() {
    let home = "hypervisor-glue/runtime/src/x.rs";
    assert_eq!(rules(home, "fn f() {\n    unsafe { g() }\n}\n"), ["safety-reason"]);
    assert_eq!(rules(home, "/// Does.\npub unsafe fn f() {}\n"), ["safety-reason"]);
    let documented = "/// Does.\n///\n/// # Safety\n/// Never.\npub unsafe fn f() {}\n";
    assert!(rules(home, documented).is_empty());
    let method = "// SAFETY: as asked.\nunsafe impl A for B {\n    unsafe fn f() {}\n}\n";
    assert!(rules(home, method).is_empty());
    let own = "impl B {\n    unsafe fn f() {}\n}\n";
    assert_eq!(rules(home, own), ["safety-reason"]);
    assert!(rules(home, "#[unsafe(no_mangle)]\nfn f() {}\n").is_empty());
}

#[test]
fn functions_files_and_lines_are_short() {
    let long = format!("fn f() {{\n{}}}\n", "    a();\n".repeat(69));
    assert_eq!(rules("raft/src/x.rs", &long), ["function-length"]);
    let fits = format!("fn f() {{\n{}}}\n", "    a();\n".repeat(68));
    assert!(rules("raft/src/x.rs", &fits).is_empty());
    assert_eq!(rules("raft/src/x.rs", &"// x\n".repeat(601)), ["file-length"]);
    assert_eq!(rules("raft/src/x.rs", &format!("// {}\n", "x".repeat(98))), ["line-length"]);
}

#[test]
fn no_promises_and_no_unwrap() {
    let promise = format!("// {}: later\n", concat!("TO", "DO"));
    assert_eq!(rules("raft/src/x.rs", &promise), ["no-promises"]);
    assert_eq!(rules("raft/src/x.rs", "fn f() { g().unwrap(); }\n"), ["no-unwrap"]);
    let in_tests = "#[cfg(test)]\nmod tests {\n    fn f() { g().unwrap(); }\n}\n";
    assert!(rules("raft/src/x.rs", in_tests).is_empty());
    assert!(rules("raft/tests/x.rs", "fn f() { g().unwrap(); }\n").is_empty());
    assert_eq!(rules("tests/sim/src/x.rs", "fn f() { g().unwrap(); }\n"), ["no-unwrap"]);
}

#[test]
fn crates_say_what_they_are_and_forbid_unsafe() {
    assert_eq!(rules("raft/src/lib.rs", "fn f() {}\n"), ["crate-docs", "forbids-unsafe"]);
    assert!(rules("raft/src/lib.rs", "//! Raft.\n#![forbid(unsafe_code)]\n").is_empty());
}

#[test]
fn pages_have_one_title() {
    assert_eq!(rules("docs/x.md", "# A\n\n# B\n"), ["one-title"]);
    assert_eq!(rules("docs/x.md", "text\n"), ["one-title"]);
    assert!(rules("docs/x.md", "# A\n```\n# comment\n```\n").is_empty());
}

#[test]
fn recovery_does_not_know_the_injector() {
    let text = "fn f() { injector::arm(); }\n";
    assert_eq!(rules("hypervisor-glue/recovery/src/ladder.rs", text), ["injector"]);
    assert_eq!(rules("hypervisor-glue/orchestrator/src/watch.rs", text), ["injector"]);
    assert!(rules("hypervisor-glue/orchestrator/src/injector.rs", text).is_empty());
    assert!(rules("hypervisor-glue/orchestrator/src/inject/bits.rs", text).is_empty());
}

#[test]
fn exceptions_only_shrink() {
    let file = "raft/src/x.rs";
    let findings = |lines: usize| check_file(file, "// x\n".repeat(lines).as_bytes());
    let record = parse_exceptions("# why\nfile-length raft/src/x.rs lines 650\n").unwrap();
    assert!(ratchet(findings(650), &record).is_empty());
    assert_eq!(ratchet(findings(651), &record).len(), 1);
    assert!(ratchet(findings(640), &record)[0].contains("shrink"));
    assert!(ratchet(findings(10), &record)[0].contains("remove"));
    assert!(parse_exceptions("file-length x 3").is_err());
}
