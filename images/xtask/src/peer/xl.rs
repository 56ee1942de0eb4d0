//! Our unikernels as ordinary guests of the classic host: stock `xl create` starts each as a PV
//! domain, where it runs its self-test and speaks on its PV console. Power-off means passed, a
//! crash means failed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::build::UNIKERNELS;
use crate::elf::{Elf, Segment};
use crate::paths;
use crate::peer::drive::{Peer, Setup};
use crate::peer::host::Host;
use crate::progress::Steps;
use crate::qemu::Clock;

/// Memory of each guest in MiB: a service runs in at most 16, its self-test in no more.
const GUEST_MIB: u32 = 16;

/// How long a self-test may take inside dom0, in seconds.
const TEST_S: u32 = 60;

/// How long one that must hang is waited for.
const CONTROL_S: u32 = 5;

/// How long its whole command may take: xl itself needs 5 s to create a guest on this emulation.
const TRY_LIMIT: Duration = Duration::from_secs(180);

/// The boot, and what else the run needs.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// What became of one unikernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It switched itself off.
    Passed,
    /// It crashed.
    Crashed,
    /// It asked for a reboot or ended in another way (Xen's shutdown code).
    Ended(u32),
    /// It still ran when its time was over.
    Hung,
    /// xl would not start it.
    Refused,
}

/// One domain's try.
pub struct Try {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// What it wrote on its PV console.
    pub console: Vec<String>,
    /// All that dom0 said about it.
    pub lines: Vec<String>,
    /// Host time from xl's start to the verdict.
    pub took: Duration,
}

impl Try {
    /// Whether it wrote anything on its PV console.
    pub fn spoke(&self) -> bool {
        !self.console.is_empty()
    }
}

/// One domain to be tried, and what must become of it.
struct Case {
    name: String,
    elf: Vec<u8>,
    wanted: Verdict,
    seconds: u32,
}

/// The unikernels that the last build left.
pub fn built() -> Vec<PathBuf> {
    UNIKERNELS.iter().map(|unit| paths::unikernel(unit.name)).filter(|path| path.exists()).collect()
}

/// Boots the host once and tries each ELF, then three broken copies of the first that must be seen
/// to fail, each in its way; gives how many tries went well and how many did not.
pub fn run(host: &Host, elfs: &[PathBuf], clock: Clock, verbose: bool) -> Result<(usize, usize)> {
    let cases = cases(elfs)?;
    let steps = Steps::new("peer");
    let mut setup = Setup::new("xl", clock);
    for case in &cases {
        setup = setup
            .with(&format!("root/{}.cfg", case.name), configuration(&case.name))
            .with(&format!("elf/{}", case.name), &*case.elf);
    }
    let tries = TRY_LIMIT.saturating_mul(u32::try_from(cases.len())?);
    let mut peer = steps.step("boot the classic host", || {
        let peer = Peer::boot(host, &setup, BOOT_LIMIT + tries)?;
        Ok(Booted(peer))
    })?;
    let mut failed = 0;
    for case in &cases {
        let done = one(&mut peer.0, &case.name, case.seconds)?;
        let is_good =
            done.verdict == case.wanted && (case.wanted != Verdict::Passed || done.spoke());
        let last = done.console.last().map_or("nothing said", String::as_str);
        steps.note(format!(
            "{}: {}{:?}, {last} ({:.1} s)",
            case.name,
            if is_good { "" } else { "FAILED: " },
            done.verdict,
            done.took.as_secs_f64(),
        ));
        if verbose || !is_good {
            done.lines.iter().for_each(|line| println!("  {}| {line}", case.name));
        }
        failed += usize::from(!is_good);
    }
    peer.0.stop()?;
    Ok((cases.len() - failed, failed))
}

/// Every ELF must pass. A check that cannot fail shows nothing: an invalid instruction at the
/// first one's entry must be seen as a crash, a jump to itself as a hang, garbage as no kernel.
fn cases(elfs: &[PathBuf]) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for elf in elfs {
        let bytes = fs::read(elf).with_context(|| format!("read {}", elf.display()))?;
        let (name, wanted) = (name(elf)?, Verdict::Passed);
        cases.push(Case { name, elf: bytes, wanted, seconds: TEST_S });
    }
    let first = cases.first().context("no unikernels in target/image: run cargo xtask build")?;
    let ud2 = entering(&first.elf, &[0x0f, 0x0b])?;
    let jump_to_itself = entering(&first.elf, &[0xeb, 0xfe])?;
    let control =
        |name: &str, elf, wanted| Case { name: name.to_owned(), elf, wanted, seconds: CONTROL_S };
    cases.push(control("control-crash", ud2, Verdict::Crashed));
    cases.push(control("control-hang", jump_to_itself, Verdict::Hung));
    cases.push(control("control-garbage", b"no kernel".repeat(1000), Verdict::Refused));
    Ok(cases)
}

/// A copy of `elf` with other code at its entry point (ELF64: `e_entry` at byte 24).
fn entering(elf: &[u8], code: &[u8]) -> Result<Vec<u8>> {
    let field = elf.get(24..32).context("a cut-off ELF")?;
    let entry = u64::from_le_bytes(field.try_into()?);
    let parsed = Elf::parse(elf)?;
    let is_around = |s: &&Segment| s.kind == 1 && entry >= s.vaddr && entry - s.vaddr < s.file_size;
    let segment = parsed.segments.iter().find(is_around).context("an ELF without its entry")?;
    let at = usize::try_from(segment.offset + entry - segment.vaddr)?;
    let mut out = elf.to_vec();
    out.get_mut(at..at + code.len()).context("an entry at the file's end")?.copy_from_slice(code);
    Ok(out)
}

/// What the boot step gives.
struct Booted(Peer);

impl std::fmt::Display for Booted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.ready().text)
    }
}

/// Starts one unikernel and waits for its end, at most `seconds` of dom0's time.
pub fn one(peer: &mut Peer, name: &str, seconds: u32) -> Result<Try> {
    let reply = peer.shell(&format!("try {name} {seconds}"), TRY_LIMIT)?;
    let verdict = reply.lines.iter().rev().find_map(|line| verdict(line, name));
    let console = reply
        .lines
        .iter()
        .filter_map(|line| line.strip_prefix("console: "))
        .map(str::to_owned)
        .collect();
    let lines = reply.lines;
    let verdict = verdict
        .with_context(|| format!("dom0 said nothing about {name}:\n{}", lines.join("\n")))?;
    Ok(Try { name: name.to_owned(), verdict, console, lines, took: reply.took })
}

/// A domain's name from its file's.
fn name(elf: &Path) -> Result<String> {
    let name = elf.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ensure!(
        !name.is_empty() && name.chars().all(is_plain),
        "{} gives no domain name: use letters, digits, - and _",
        elf.display()
    );
    Ok(name.to_owned())
}

/// xl's configuration: any end but power-off leaves the domain to be looked at.
fn configuration(name: &str) -> String {
    format!(
        "name = \"{name}\"\n\
         type = \"pv\"\n\
         kernel = \"/elf/{name}\"\n\
         memory = {GUEST_MIB}\n\
         vcpus = 1\n\
         on_poweroff = \"destroy\"\n\
         on_reboot = \"preserve\"\n\
         on_watchdog = \"preserve\"\n\
         on_crash = \"preserve\"\n"
    )
}

/// Reads `PEER_TRY name=NAME code=CODE`; Xen's shutdown codes are in `public/sched.h`.
fn verdict(line: &str, name: &str) -> Option<Verdict> {
    let code = line.strip_prefix(&format!("PEER_TRY name={name} code="))?;
    Some(match code.trim() {
        "0" => Verdict::Passed,
        "3" => Verdict::Crashed,
        "none" => Verdict::Hung,
        "refused" => Verdict::Refused,
        other => Verdict::Ended(other.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_power_off_is_a_pass() {
        let of = |code: &str| verdict(&format!("PEER_TRY name=x-uk code={code}"), "x-uk");
        assert_eq!(of("0"), Some(Verdict::Passed));
        assert_eq!(of("1"), Some(Verdict::Ended(1)));
        assert_eq!(of("3"), Some(Verdict::Crashed));
        assert_eq!(of("none"), Some(Verdict::Hung));
        assert_eq!(of("refused"), Some(Verdict::Refused));
        assert_eq!(of("what"), None);
        assert_eq!(verdict("console: PEER_TRY name=x-uk code=0", "x-uk"), None);
    }

    #[test]
    fn other_code_stands_at_the_entry() {
        let elf = fs::read("/proc/self/exe").unwrap();
        let changed = entering(&elf, &[0x0f, 0x0b]).unwrap();
        let entry = u64::from_le_bytes(elf[24..32].try_into().unwrap());
        let parsed = Elf::parse(&changed).unwrap();
        let code = parsed.segments.iter().find(|s| s.kind == 1 && s.flags & 1 == 1).unwrap();
        let at = usize::try_from(entry - code.vaddr).unwrap();
        assert_eq!(parsed.contents(code)[at..at + 2], [0x0f, 0x0b]);
        assert_eq!(elf.len(), changed.len());
        assert!(entering(b"short", &[0]).is_err());
    }

    #[test]
    fn names_are_what_xl_takes() {
        assert_eq!(name(Path::new("/a/xenstore-uk.elf")).unwrap(), "xenstore-uk");
        assert!(name(Path::new("/a/b c.elf")).is_err());
    }
}
