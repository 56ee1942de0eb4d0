//! Child processes: each has a time limit and leaves its output in a log.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;

/// How often a running child is looked at: short beside any child's run, long beside a look's cost.
const POLL: Duration = Duration::from_millis(10);

/// Lines of a failed child's log that are shown: enough for a compiler's last error.
const TAIL_LINES: usize = 25;

/// One child process to be run to its end.
pub struct Tool {
    command: Command,
    name: String,
    limit: Duration,
    shown: bool,
}

impl Tool {
    /// A child running `program`; it may take a minute unless [`Tool::limit`] says otherwise.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let name = Path::new(program.as_ref())
            .file_name()
            .map_or_else(|| "child".into(), |n| n.to_string_lossy().into_owned());
        let mut command = Command::new(program);
        command.current_dir(paths::root()).stdin(Stdio::null());
        Tool { command, name, limit: Duration::from_secs(60), shown: false }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable of the child.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Runs the child in this folder instead of the workspace's root.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives the child this file as standard input.
    #[must_use]
    pub fn input(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    /// Names the child's log (`target/logs/NAME.log`).
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.replace(['/', ' '], "-");
        self
    }

    /// Ends the child when it has taken this long.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Lets the child write to the terminal instead of a log.
    #[must_use]
    pub fn shown(mut self) -> Self {
        self.shown = true;
        self
    }

    /// Runs the child; an error names it, its exit code and its last lines.
    pub fn run(mut self) -> Result<()> {
        let log = self.log_path()?;
        if !self.shown {
            let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
            self.command.stdout(file.try_clone()?).stderr(file);
        }
        let status = self.wait()?;
        self.judge(status, &log)
    }

    /// Runs the child and gives its standard output; the rest goes to its log.
    pub fn output(mut self) -> Result<Vec<u8>> {
        let log = self.log_path()?;
        let out = log.with_extension(format!("{}.out", std::process::id()));
        self.command.stdout(File::create(&out)?).stderr(File::create(&log)?);
        let status = self.wait()?;
        let bytes = fs::read(&out).with_context(|| format!("read {}", out.display()))?;
        fs::remove_file(&out)?;
        self.judge(status, &log)?;
        Ok(bytes)
    }

    /// Runs the child with its standard output going to `file`.
    pub fn output_to(mut self, file: &Path) -> Result<()> {
        let log = self.log_path()?;
        let out = File::create(file).with_context(|| format!("create {}", file.display()))?;
        self.command.stdout(out).stderr(File::create(&log)?);
        let status = self.wait()?;
        self.judge(status, &log)
    }

    fn log_path(&self) -> Result<PathBuf> {
        let dir = paths::logs();
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(dir.join(format!("{}.log", self.name)))
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let child = self.command.spawn().with_context(|| {
            format!("cannot start {:?}: is it installed?", self.command.get_program())
        })?;
        wait_bounded(child, self.limit)?.with_context(|| {
            format!("{} took longer than {} s and was ended", self.name, self.limit.as_secs())
        })
    }

    fn judge(&self, status: ExitStatus, log: &Path) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        if self.shown {
            bail!("{} failed ({status})", self.name);
        }
        let text = fs::read(log).unwrap_or_default();
        bail!(
            "{} failed ({status}); its log is {}, ending with:\n{}",
            self.name,
            log.display(),
            tail(&String::from_utf8_lossy(&text), TAIL_LINES)
        )
    }
}

/// Waits for `child` until `limit` has passed, then kills it and gives `None`.
pub fn wait_bounded(mut child: Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        sleep(POLL);
    }
}

/// The last `lines` lines of `text`.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Whether a program of this name lies on the search path.
pub fn is_on_path(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_returned_and_failure_names_the_log() {
        let out = Tool::new("sh").args(["-c", "printf hello"]).named("t-out").output().unwrap();
        assert_eq!(out, b"hello");
        let error = Tool::new("sh")
            .args(["-c", "echo broken >&2; exit 3"])
            .named("t-fail")
            .run()
            .unwrap_err()
            .to_string();
        assert!(error.contains("broken") && error.contains("t-fail.log"), "{error}");
    }

    #[test]
    fn a_child_over_its_limit_is_ended() {
        let begin = Instant::now();
        let error = Tool::new("sleep")
            .arg("30")
            .limit(Duration::from_millis(100))
            .named("t-slow")
            .run()
            .unwrap_err()
            .to_string();
        assert!(error.contains("longer than"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
