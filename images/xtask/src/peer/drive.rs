//! Driving the classic host: boots it in QEMU and runs commands in dom0's shell over the serial
//! console.
//!
//! On the virtual clock a run is the same each time only when nothing is typed: give such a run a
//! program `root/autorun` among the [`Setup::files`] instead.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest::cpio::Cpio;
use crate::paths;
use crate::peer::host::{self, Host};
use crate::qemu::machine::{CPU, VIRTUAL_ARGS};
use crate::qemu::{Clock, Line, Vm};

/// dom0's memory: Linux, its file system twice while it is unpacked, xl and its guests' images.
const DOM0_MIB: u32 = 1024;

/// The whole machine's memory: dom0 and a few guests.
const MEMORY_MIB: u32 = 2048;

/// From power-on to dom0's shell: 10-20 s where the emulator has a CPU for itself.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// Words that every Linux dom0 on a serial console needs.
const XEN_ARGS: &str = "console=com1 dom0_max_vcpus=1 loglvl=warning guest_loglvl=warning";

/// Which XenStore the host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    /// Xen's, written in C: Debian's default.
    C,
    /// Xen's, written in OCaml.
    Ocaml,
}

/// A file given to dom0 beside its own.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path from the root, without a leading slash.
    pub path: String,
    /// Whether it is a program.
    pub executable: bool,
    /// What it holds.
    pub contents: Vec<u8>,
}

/// How the host is booted.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A name for its log (`target/logs/peer-NAME.log`) and its files.
    pub name: String,
    /// The clock.
    pub clock: Clock,
    /// Which XenStore runs.
    pub store: Store,
    /// The whole machine's memory in MiB.
    pub memory_mib: u32,
    /// More words for Xen's command line.
    pub xen_args: Vec<String>,
    /// More words for QEMU's command line.
    pub qemu_args: Vec<String>,
    /// Files for dom0, laid over its own: the host need not be made anew for them.
    pub files: Vec<File>,
}

impl Setup {
    /// Debian's defaults, with C xenstored and no files.
    pub fn new(name: &str, clock: Clock) -> Setup {
        Setup {
            name: name.to_owned(),
            clock,
            store: Store::C,
            memory_mib: MEMORY_MIB,
            xen_args: Vec::new(),
            qemu_args: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Adds a file.
    #[must_use]
    pub fn with(mut self, path: &str, contents: impl Into<Vec<u8>>) -> Setup {
        self.files.push(File { path: path.into(), executable: false, contents: contents.into() });
        self
    }

    /// Adds a program.
    #[must_use]
    pub fn with_program(mut self, path: &str, contents: impl Into<Vec<u8>>) -> Setup {
        self.files.push(File { path: path.into(), executable: true, contents: contents.into() });
        self
    }

    /// QEMU's arguments.
    fn arguments(&self, host: &Host, ramdisk: &Path) -> Vec<OsString> {
        let mut out: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| out.extend(words.iter().map(OsString::from));
        add(&["-accel", "tcg", "-cpu", CPU, "-display", "none", "-no-reboot", "-nodefaults"]);
        add(&["-nic", "none", "-monitor", "none", "-serial", "stdio"]);
        add(&["-m", &self.memory_mib.to_string()]);
        if self.clock == Clock::Virtual {
            add(&VIRTUAL_ARGS);
        }
        let dom0 = format!("dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M");
        let words = [&[XEN_ARGS.to_owned(), dom0], &self.xen_args[..]].concat();
        add(&["-append", &words.join(" ")]);
        let store = match self.store {
            Store::C => "c",
            Store::Ocaml => "o",
        };
        // QEMU writes a comma inside a name as two.
        let escape = |path: &Path| path.to_string_lossy().replace(',', ",,");
        let modules = format!(
            "{} console=hvc0 rdinit=/init quiet store={store},{}",
            escape(&host.kernel),
            escape(ramdisk)
        );
        add(&["-initrd", &modules]);
        out.extend(["-kernel".into(), host.xen.clone().into()]);
        out.extend(self.qemu_args.iter().map(OsString::from));
        out
    }

    /// Writes dom0's file system with the files of this set-up behind it: Linux unpacks archives
    /// one after the other, later files over earlier ones.
    fn ramdisk(&self, host: &Host) -> Result<PathBuf> {
        let mut cpio = Cpio::new();
        for file in &self.files {
            let permissions = if file.executable { 0o755 } else { 0o644 };
            cpio.file(&file.path, permissions, &file.contents);
        }
        let path = host::folder().join(format!("run-{}.cpio", self.name));
        let base = fs::read(&host.base).context("the host's file system")?;
        let mut out =
            fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        out.write_all(&base)?;
        out.write_all(&cpio.finish())?;
        Ok(path)
    }
}

/// What a command in dom0's shell gave.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its exit code.
    pub code: i32,
    /// What it wrote, in lines.
    pub lines: Vec<String>,
    /// Host time it took.
    pub took: Duration,
}

/// A running classic host, its shell ready. Dropping it ends it.
pub struct Peer {
    vm: Vm,
    commands: u32,
    ready: Line,
}

impl Peer {
    /// Boots the host until its shell is ready; whatever happens, it ends after `limit`.
    pub fn boot(host: &Host, setup: &Setup, limit: Duration) -> Result<Peer> {
        let ramdisk = setup.ramdisk(host)?;
        let log = paths::logs().join(format!("peer-{}.log", setup.name));
        let mut vm = Vm::launch(setup.arguments(host, &ramdisk), &log, limit)?;
        let ready = vm.expect("PEER_READY up=", BOOT_LIMIT)?;
        Ok(Peer { vm, commands: 0, ready })
    }

    /// The line by which dom0 said that it is up (`PEER_READY up=SECONDS kernel=… store=…`).
    pub fn ready(&self) -> &Line {
        &self.ready
    }

    /// Waits for the end of the program `root/autorun`; gives its exit code.
    pub fn autorun(&mut self, wait: Duration, each: impl FnMut(&Line)) -> Result<i32> {
        self.until("PEER_AUTORUN exit=", wait, each)
    }

    /// Runs a command (one line) in dom0's shell; an error when it does not end within `wait`.
    pub fn shell(&mut self, command: &str, wait: Duration) -> Result<Reply> {
        self.commands += 1;
        let begin = self.vm.elapsed();
        let mark = format!("@@{} exit=", self.commands);
        // The mark is typed in two parts, so that an echo of the line is no answer.
        let (first, rest) = mark.split_at(2);
        let typed = format!("{{ {command}\n}} </dev/null\necho \"{first}\"\"{rest}$?\"\n");
        self.vm.type_text(typed.as_bytes())?;
        let mut lines = Vec::new();
        let code = self
            .until(&mark, wait, |line| lines.push(line.text.clone()))
            .with_context(|| format!("dom0's command {command:?}"))?;
        Ok(Reply { code, lines, took: self.vm.elapsed() - begin })
    }

    /// Host time since the boot began.
    pub fn elapsed(&self) -> Duration {
        self.vm.elapsed()
    }

    /// Ends the machine.
    pub fn stop(mut self) -> Result<()> {
        self.vm.kill()
    }

    /// Waits for `mark` followed by an exit code; `each` sees the lines before it.
    fn until(&mut self, mark: &str, wait: Duration, mut each: impl FnMut(&Line)) -> Result<i32> {
        let (code, _) = self.vm.wait_for(mark, wait, |line, _| {
            let code = exit_code(&line.text, mark);
            if code.is_none() {
                each(line);
            }
            code
        })?;
        Ok(code)
    }
}

/// The number behind `mark`; what a command wrote without a line's end may stand before it.
fn exit_code(text: &str, mark: &str) -> Option<i32> {
    let at = text.find(mark)?;
    text[at + mark.len()..].trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_read_behind_its_mark_only() {
        assert_eq!(exit_code("@@7 exit=0", "@@7 exit="), Some(0));
        assert_eq!(exit_code("no newline@@7 exit=127 ", "@@7 exit="), Some(127));
        assert_eq!(exit_code("echo \"@@\"\"7 exit=$?\"", "@@7 exit="), None);
        assert_eq!(exit_code("@@17 exit=0", "@@7 exit="), None);
    }

    #[test]
    fn the_command_line_names_kernel_store_and_clock() {
        let host = Host { xen: "/x".into(), kernel: "/k".into(), base: "/b".into() };
        let mut setup = Setup::new("t", Clock::Virtual);
        setup.store = Store::Ocaml;
        setup.xen_args.push("sched_ratelimit_us=0".into());
        let words: Vec<String> = setup
            .arguments(&host, Path::new("/r,1"))
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let text = words.join(" ");
        assert!(
            text.contains("-initrd /k console=hvc0 rdinit=/init quiet store=o,/r,,1"),
            "{text}"
        );
        assert!(text.contains("shift=0") && text.contains("max:1024M sched_ratelimit_us=0"));
    }
}
