//! Picking files out of an unpacked Debian tree into an initial file system, with all they need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::elf::Elf;
use crate::guest::cpio::Cpio;

/// Where Debian keeps libraries; the last are Xen's own.
const LIBRARY_DIRS: [&str; 5] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "lib64",
    "usr/lib64",
    "usr/lib/xen-4.17/lib/x86_64-linux-gnu",
];

/// A file system being picked together.
pub struct Picker<'a> {
    root: &'a Path,
    cpio: Cpio,
    placed: BTreeSet<String>,
}

impl<'a> Picker<'a> {
    /// Nothing picked yet from the tree `root`.
    pub fn new(root: &'a Path) -> Self {
        Picker { root, cpio: Cpio::new(), placed: BTreeSet::new() }
    }

    /// Places a file, a link with what it points to, or a folder with all it holds, at its own
    /// path; a program brings its libraries.
    pub fn place(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        if !self.placed.insert(path.to_owned()) {
            return Ok(());
        }
        let source = self.root.join(path);
        let meta = fs::symlink_metadata(&source)
            .with_context(|| format!("the Debian tree holds no {path}"))?;
        if meta.is_symlink() {
            let target = fs::read_link(&source)?;
            let target = target.to_str().with_context(|| format!("link {path}"))?;
            self.cpio.symlink(path, target);
            return self.place(&beside(path, target));
        }
        if meta.is_dir() {
            self.cpio.directory(path);
            for name in sorted_names(&source)? {
                self.place(&format!("{path}/{name}"))?;
            }
            return Ok(());
        }
        let bytes = fs::read(&source).with_context(|| format!("read {}", source.display()))?;
        self.cpio.file(path, meta.permissions().mode() & 0o777, &bytes);
        if bytes.starts_with(b"\x7fELF") && !path.ends_with(".ko") {
            self.needs_of(path, &bytes)?;
        }
        Ok(())
    }

    /// Places kernel modules (by the names modprobe uses) with those they depend on; depmod must
    /// have run on the tree.
    pub fn modules(&mut self, release: &str, names: &[&str]) -> Result<()> {
        let folder = format!("lib/modules/{release}");
        let table = fs::read_to_string(self.root.join(&folder).join("modules.dep"))
            .context("modules.dep: has depmod run?")?;
        let depends = dependencies(&table);
        for name in names {
            let Some((path, needs)) = depends.get(&plain(name)) else {
                bail!("Debian's kernel {release} has no module {name}");
            };
            for file in std::iter::once(path).chain(needs) {
                self.place(&format!("{folder}/{file}"))?;
            }
        }
        for name in sorted_names(&self.root.join(&folder))? {
            if name.starts_with("modules.") {
                self.place(&format!("{folder}/{name}"))?;
            }
        }
        Ok(())
    }

    /// Adds a file that is not the tree's.
    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.placed.insert(path.trim_matches('/').to_owned());
        self.cpio.file(path, permissions, contents);
    }

    /// Adds a link, unless something lies there.
    pub fn link(&mut self, path: &str, target: &str) {
        if self.placed.insert(path.trim_matches('/').to_owned()) {
            self.cpio.symlink(path, target);
        }
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, path: &str) {
        self.cpio.directory(path);
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.cpio.device(path, 0o600, major, minor);
    }

    /// Whether a name lies in one of the folders where programs are looked for.
    pub fn has_program(&self, name: &str) -> bool {
        ["bin", "sbin", "usr/bin", "usr/sbin"]
            .iter()
            .any(|dir| self.placed.contains(&format!("{dir}/{name}")))
    }

    /// The file system's bytes.
    pub fn finish(self) -> Vec<u8> {
        self.cpio.finish()
    }

    fn needs_of(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let elf = Elf::parse(bytes).with_context(|| format!("program {path}"))?;
        for name in elf.needed() {
            let dir = LIBRARY_DIRS.iter().find(|dir| self.root.join(dir).join(&name).exists());
            let dir = dir.with_context(|| format!("{path} needs {name}, which is nowhere"))?;
            self.place(&format!("{dir}/{name}"))?;
        }
        elf.interpreter().map_or(Ok(()), |interpreter| self.place(&interpreter))
    }
}

/// The path that a link at `path` to `target` leads to, from the tree's root.
fn beside(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    if !target.starts_with('/') {
        parts.extend(path.split('/'));
        parts.pop();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

fn sorted_names(dir: &Path) -> Result<BTreeSet<String>> {
    let names = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    names
        .map(|entry| {
            let name = PathBuf::from(entry?.file_name());
            Ok(name.to_str().context("a name that is no text")?.to_owned())
        })
        .collect()
}

/// modprobe takes dashes for underscores.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Module name to its file and the files it needs, from the lines `FILE: FILE FILE…` that depmod
/// writes (kmod `modules.dep(5)`).
fn dependencies(table: &str) -> BTreeMap<String, (&str, Vec<&str>)> {
    let entry = |line: &'_ str| -> Option<(String, usize)> {
        let (file, _) = line.split_once(':')?;
        let name = file.rsplit('/').next()?.split('.').next()?;
        Some((plain(name), file.len()))
    };
    table
        .lines()
        .filter_map(|line| {
            let (name, end) = entry(line)?;
            Some((name, (&line[..end], line[end + 1..].split_whitespace().collect())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_where_linux_would_go() {
        assert_eq!(beside("usr/sbin/xl", "../lib/x/xl"), "usr/lib/x/xl");
        assert_eq!(beside("lib64/ld.so", "/lib/x/ld.so"), "lib/x/ld.so");
        assert_eq!(beside("lib/a.so.1", "a.so.1.2"), "lib/a.so.1.2");
    }

    #[test]
    fn dependencies_are_found_by_either_spelling() {
        let table = "kernel/net/llc/llc.ko:\n\
                     kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                     kernel/drivers/net/xen-netback/xen-netback.ko:\n";
        let found = dependencies(table);
        assert_eq!(found["bridge"].1.len(), 2);
        assert_eq!(found[&plain("xen-netback")].0, "kernel/drivers/net/xen-netback/xen-netback.ko");
    }
}
