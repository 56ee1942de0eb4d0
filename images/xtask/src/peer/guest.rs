//! Linux guests of the classic host: the same kernel, file system and workload as on ours, so that
//! a difference in figures is one of the hosts.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::paths;
use crate::peer::drive::{Peer, Setup};
use crate::peer::host::Host;
use crate::qemu::Line;

/// Where dom0 keeps the guests' file system.
const RAMDISK: &str = "root/guest.img";

/// What stands before each line of a guest's console when dom0 prints it.
const MARK: &str = "guest ";

/// How xl makes a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Hardware-assisted, as on our host.
    Pvh,
    /// Paravirtualized.
    Pv,
}

/// A guest that does one work and switches itself off.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// How xl makes it.
    pub kind: Kind,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// The work that its first program does (see `images/guest/init`).
    pub work: String,
    /// More lines for xl's configuration, such as a network interface.
    pub lines: Vec<String>,
}

impl Guest {
    /// A guest of 128 MiB without devices.
    pub fn new(name: &str, kind: Kind, work: &str) -> Guest {
        let (name, work) = (name.to_owned(), work.to_owned());
        Guest { name, kind, memory_mib: 128, work, lines: Vec::new() }
    }

    /// xl's configuration.
    fn configuration(&self) -> Result<String> {
        ensure!(
            !self.work.contains(['"', '\\', ' ', '\n']),
            "the work {:?} of guest {} does not fit on a kernel's command line",
            self.work,
            self.name
        );
        let kind = match self.kind {
            Kind::Pvh => "pvh",
            Kind::Pv => "pv",
        };
        Ok(format!(
            "name = \"{}\"\n\
             type = \"{kind}\"\n\
             kernel = \"/root/vmlinuz\"\n\
             ramdisk = \"/{RAMDISK}\"\n\
             extra = \"console=hvc0 quiet ppvmm.work={} ppvmm.then=poweroff\"\n\
             memory = {}\n\
             vcpus = 1\n\
             on_reboot = \"destroy\"\n\
             on_crash = \"destroy\"\n\
             {}\n",
            self.name,
            self.work,
            self.memory_mib,
            self.lines.join("\n")
        ))
    }

    /// The line for dom0's shell that starts this guest, waits for its end without looking at it
    /// meanwhile (each look would cost the one CPU's time), and prints its console.
    pub fn command(&self) -> String {
        let name = &self.name;
        format!(
            "xl create -F /root/{name}.cfg >/var/log/xen/create-{name}.log 2>&1; code=$?; \
             sleep 0.5; \
             tr -d '\\r' </var/log/xen/console/guest-{name}.log | sed 's/^/{MARK}{name}: /'; \
             [ $code = 0 ] || cat /var/log/xen/create-{name}.log; (exit $code)"
        )
    }

    /// What this guest wrote, if `line` is a line of it that [`Guest::command`] printed.
    pub fn said<'a>(&self, line: &'a str) -> Option<&'a str> {
        line.strip_prefix(MARK)?.strip_prefix(&self.name)?.strip_prefix(": ")
    }
}

/// Gives `setup` these guests and their file system: `xl create /root/NAME.cfg` starts one.
pub fn configure(setup: Setup, guests: &[Guest]) -> Result<Setup> {
    let ramdisk = fs::read(paths::guest_initramfs())
        .context("the guests' file system is missing: run cargo xtask build")?;
    let mut setup = setup.with(RAMDISK, ramdisk);
    for guest in guests {
        setup = setup.with(&format!("root/{}.cfg", guest.name), guest.configuration()?);
    }
    Ok(setup)
}

/// As [`configure`], with a program that runs one guest after the other as soon as dom0 is up:
/// nothing is typed, so on the virtual clock every run is the same.
pub fn install(setup: Setup, guests: &[Guest]) -> Result<Setup> {
    let mut program = String::from("#!/bin/sh\n");
    for guest in guests {
        program.push_str(&guest.command());
        program.push_str(" || exit 1\n");
    }
    Ok(configure(setup, guests)?.with_program("root/autorun", program))
}

/// Boots the host, runs the guests one after the other and gives all that they wrote.
pub fn run(
    host: &Host,
    setup: Setup,
    guests: &[Guest],
    limit: Duration,
    mut each: impl FnMut(&str),
) -> Result<Vec<String>> {
    let mut peer = Peer::boot(host, &install(setup, guests)?, limit)?;
    each(&peer.ready().text);
    let mut lines = Vec::new();
    let code = peer.autorun(limit, |line: &Line| {
        each(&line.text);
        lines.push(line.text.clone());
    })?;
    peer.stop()?;
    ensure!(code == 0, "xl could not run a guest of the classic host:\n{}", lines.join("\n"));
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xl_gets_kind_kernel_and_work() {
        let mut guest = Guest::new("g1", Kind::Pvh, "run:xsload,bench");
        guest.lines.push("vif = [\"bridge=br0\"]".into());
        let text = guest.configuration().unwrap();
        assert!(text.contains("type = \"pvh\"\n") && text.contains("vif = [\"bridge=br0\"]\n"));
        assert!(text.contains("ppvmm.work=run:xsload,bench ppvmm.then=poweroff\""));
        guest.work = "a b".into();
        assert!(guest.configuration().is_err());
    }

    #[test]
    fn only_its_own_lines_are_a_guests() {
        let guest = Guest::new("g1", Kind::Pv, "idle");
        assert_eq!(guest.said("guest g1: @{}"), Some("@{}"));
        assert_eq!(guest.said("guest g12: x"), None);
        assert_eq!(guest.said("g1: x"), None);
    }
}
