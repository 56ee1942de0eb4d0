//! Rules for single files, each a pure function of a path and a text.

use super::Finding;
use super::source::{SourceLine, item_end, words};

/// The longest line in columns.
pub const LINE_MAX: usize = 100;
/// The longest function in lines.
pub const FUNCTION_MAX: usize = 70;
/// The longest file in lines.
pub const FILE_MAX: usize = 600;

/// Packages that may hold `unsafe`.
pub const UNSAFE_HOMES: [&str; 2] = ["hypervisor-glue/abi/", "hypervisor-glue/runtime/"];

/// Code that recovers and must not know who injects faults.
const RECOVERY_HOMES: [&str; 2] =
    ["hypervisor-glue/recovery/", "hypervisor-glue/orchestrator/src/"];

/// Files that put the host together: list of modules, start, loop, words for the console.
const WIRING: [&str; 5] = [
    "hypervisor-glue/orchestrator/src/lib.rs",
    "hypervisor-glue/orchestrator/src/main.rs",
    "hypervisor-glue/orchestrator/src/start.rs",
    "hypervisor-glue/orchestrator/src/turn.rs",
    "hypervisor-glue/orchestrator/src/report.rs",
];

/// Comment lines searched above an unsafe block: statement, attributes and the reason itself.
const SAFETY_ABOVE: usize = 12;

/// Lines searched above an unsafe function: its docs and attributes.
const DOCS_ABOVE: usize = 40;

/// Words that promise work instead of doing it; spelt in parts, so that this file may name them.
const PROMISES: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];

/// A rule for one Rust file.
pub type RustRule = fn(&str, &[SourceLine]) -> Vec<Finding>;

/// All rules for Rust files.
pub const RUST_RULES: [RustRule; 7] =
    [unsafe_home, safety_reason, function_length, no_unwrap, crate_docs, forbids_unsafe, injector];

/// Whether this is a file of tests only.
pub fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let in_test_folder = path.split('/').skip(1).any(|part| part == "tests" || part == "benches");
    in_test_folder || name == "tests.rs" || name.ends_with("_tests.rs")
}

/// `unsafe` is written in its two packages only.
pub fn unsafe_home(path: &str, lines: &[SourceLine]) -> Vec<Finding> {
    if UNSAFE_HOMES.iter().any(|home| path.starts_with(home)) {
        return Vec::new();
    }
    let has = |line: &SourceLine| words(&line.code).any(|word| word == "unsafe");
    each(path, "unsafe-home", lines, has, "unsafe outside hypervisor-glue/abi and runtime")
}

/// Each unsafe block or implementation has its reason, each unsafe function its conditions.
pub fn safety_reason(path: &str, lines: &[SourceLine]) -> Vec<Finding> {
    let mut out = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let all: Vec<&str> = words(&line.code).collect();
        let Some(at) = all.iter().position(|word| *word == "unsafe") else { continue };
        let next = all.get(at + 1).copied().unwrap_or_default();
        let is_attribute = line.code.contains("#[unsafe(") || line.code.contains("#![unsafe(");
        let is_type =
            next == "fn" && (line.code.contains(": unsafe") || line.code.contains("= unsafe"));
        if is_attribute || is_type {
            continue;
        }
        let (wanted, above) =
            if next == "fn" { ("# Safety", DOCS_ABOVE) } else { ("SAFETY:", SAFETY_ABOVE) };
        let from = index.saturating_sub(above);
        let has = lines[from..=index].iter().any(|line| line.comment.contains(wanted));
        // A foreign block states nothing itself, and a trait has stated its methods' conditions.
        let is_stated = next == "extern" || (next == "fn" && is_trait_method(lines, index));
        if !has && !is_stated {
            let text = format!("unsafe without a comment {wanted:?} above it");
            out.push(Finding::at("safety-reason", path, index, text));
        }
    }
    out
}

/// Whether the line lies in an implementation of a trait.
fn is_trait_method(lines: &[SourceLine], index: usize) -> bool {
    let item = lines[..index].iter().rev().find(|line| {
        let first = line.code.chars().next().unwrap_or(' ');
        !first.is_whitespace() && first != '#'
    });
    item.is_some_and(|line| {
        let mut all = words(&line.code);
        all.any(|word| word == "impl") && all.any(|word| word == "for")
    })
}

/// Functions are short.
pub fn function_length(path: &str, lines: &[SourceLine]) -> Vec<Finding> {
    let mut out = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let mut all = words(&line.code).skip_while(|word| *word != "fn");
        let (Some(_), Some(name)) = (all.next(), all.next()) else { continue };
        // `fn(` is a type, not a function.
        if line.code.contains("fn(") && !line.code.contains(&format!("fn {name}")) {
            continue;
        }
        let length = item_end(lines, index) - index + 1;
        if length > FUNCTION_MAX {
            let text = format!("fn {name} has {length} lines, at most {FUNCTION_MAX}");
            let finding = Finding::at("function-length", path, index, text);
            out.push(finding.measured(name, length));
        }
    }
    out
}

/// No `unwrap()` in what ships: `expect` says why it cannot fail.
pub fn no_unwrap(path: &str, lines: &[SourceLine]) -> Vec<Finding> {
    if is_test_file(path) {
        return Vec::new();
    }
    let has = |line: &SourceLine| !line.in_test && line.code.contains(".unwrap()");
    each(path, "no-unwrap", lines, has, "unwrap() outside tests: say why it cannot fail")
}

fn is_crate_root(path: &str) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/main.rs")
}

/// Each crate begins by saying what it is.
pub fn crate_docs(path: &str, lines: &[SourceLine]) -> Vec<Finding> {
    let documented = lines.first().is_some_and(|line| line.comment.starts_with('!'));
    if documented || !is_crate_root(path) {
        return Vec::new();
    }
    vec![Finding::at("crate-docs", path, 0, "a crate begins with //! docs".into())]
}

/// Each crate but the two forbids unsafe code.
pub fn forbids_unsafe(path: &str, lines: &[SourceLine]) -> Vec<Finding> {
    let is_home = UNSAFE_HOMES.iter().any(|home| path.starts_with(home));
    let forbids = lines.iter().any(|line| line.code.contains("#![forbid(unsafe_code)]"));
    if is_home || forbids || !is_crate_root(path) {
        return Vec::new();
    }
    vec![Finding::at("forbids-unsafe", path, 0, "#![forbid(unsafe_code)] is missing".into())]
}

/// Recovery code does not name the fault injector: what watches and decides cannot know of it.
/// The injector's own files may, and those that put the host together.
pub fn injector(path: &str, lines: &[SourceLine]) -> Vec<Finding> {
    let is_recovery = RECOVERY_HOMES.iter().any(|home| path.starts_with(home));
    let is_injector = path.split('/').any(|part| part.starts_with("inject"));
    if !is_recovery || is_injector || WIRING.contains(&path) {
        return Vec::new();
    }
    let has = |line: &SourceLine| line.code.to_lowercase().contains("inject");
    each(path, "injector", lines, has, "recovery code names the fault injector")
}

/// Lines fit side by side.
pub fn line_length(path: &str, text: &str) -> Vec<Finding> {
    let long = |(index, line): (usize, &str)| {
        let columns = line.chars().count();
        let text = format!("line of {columns} columns, at most {LINE_MAX}");
        (columns > LINE_MAX).then(|| Finding::at("line-length", path, index, text))
    };
    text.lines().enumerate().filter_map(long).collect()
}

/// Files are short.
pub fn file_length(path: &str, text: &str) -> Vec<Finding> {
    let length = text.lines().count();
    if length <= FILE_MAX {
        return Vec::new();
    }
    let said = format!("file of {length} lines, at most {FILE_MAX}");
    vec![Finding::at("file-length", path, 0, said).measured("lines", length)]
}

/// Nothing is promised for later.
pub fn no_promises(path: &str, text: &str) -> Vec<Finding> {
    let has = |line: &str| words(line).any(|word| PROMISES.contains(&word));
    let found = text.lines().enumerate().filter(|(_, line)| has(line));
    found
        .map(|(index, _)| {
            Finding::at(
                "no-promises",
                path,
                index,
                "a promise of later work: do it or drop it".into(),
            )
        })
        .collect()
}

/// A page has one title.
pub fn one_title(path: &str, text: &str) -> Vec<Finding> {
    let mut fenced = false;
    let mut titles = 0;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        titles += usize::from(!fenced && line.starts_with("# "));
    }
    if titles == 1 {
        return Vec::new();
    }
    vec![Finding::at("one-title", path, 0, format!("{titles} titles, a page has one"))]
}

fn each(
    path: &str,
    rule: &'static str,
    lines: &[SourceLine],
    has: impl Fn(&SourceLine) -> bool,
    text: &str,
) -> Vec<Finding> {
    let found = lines.iter().enumerate().filter(|(_, line)| has(line));
    found.map(|(index, _)| Finding::at(rule, path, index, text.to_owned())).collect()
}
