//! A booted machine: its console line by line, typing, and its end.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::console::{self, Line, Pattern, Record};
use super::exit::Outcome;
use super::machine::Machine;
use crate::process::{is_on_path, wait_bounded};

/// The emulated serial port loses what comes faster than this.
const TYPE_BYTES: usize = 24;
const TYPE_PAUSE: Duration = Duration::from_millis(30);

/// Lines shown when something awaited did not come.
const CONTEXT_LINES: usize = 30;

/// Records kept; an experiment of 10,000 faults fits, a flood of them does not fill the memory.
const RECORDS_MAX: usize = 100_000;

/// The longest console line; a longer one is cut.
const LINE_MAX: usize = 4096;

/// How long an ending QEMU is waited for.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A running machine. Dropping it ends it.
pub struct Vm {
    child: Option<Child>,
    typist: Option<Sender<Vec<u8>>>,
    lines: Receiver<Line>,
    recent: VecDeque<Line>,
    records: Vec<Record>,
    begin: Instant,
    end: Instant,
    log: PathBuf,
}

impl Vm {
    /// Boots `machine`; whatever happens, it ends after `limit` of host time.
    pub fn start(machine: &Machine, limit: Duration) -> Result<Vm> {
        for file in [Some(&machine.xen), machine.orchestrator.as_ref(), machine.archive.as_ref()] {
            if let Some(path) = file.filter(|path| !path.exists()) {
                bail!("{} is missing: run cargo xtask build", path.display());
            }
        }
        Vm::launch(machine.arguments(), &machine.log, limit)
    }

    /// Starts QEMU with these arguments, whatever they boot; its serial port must be on `stdio`.
    pub fn launch(arguments: Vec<OsString>, log_path: &Path, limit: Duration) -> Result<Vm> {
        if let Some(dir) = log_path.parent() {
            fs::create_dir_all(dir)?;
        }
        let log =
            File::create(log_path).with_context(|| format!("create {}", log_path.display()))?;
        let mut child = command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot start qemu-system-x86_64: run cargo xtask setup")?;
        let begin = Instant::now();
        let output = child.stdout.take().context("QEMU without an output")?;
        let input = child.stdin.take().context("QEMU without an input")?;
        let (line_sender, lines) = channel();
        thread::spawn(move || read_console(output, log, begin, &line_sender));
        let (typist, typed) = channel();
        thread::spawn(move || type_paced(input, &typed));
        Ok(Vm {
            child: Some(child),
            typist: Some(typist),
            lines,
            recent: VecDeque::new(),
            records: Vec::new(),
            begin,
            end: begin + limit,
            log: log_path.to_path_buf(),
        })
    }

    /// QEMU's process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Host time since the boot began.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// The next line, or `None` when `wait` passed without one. An error when the machine's time is
    /// over; [`Vm::is_ended`] tells whether the console has closed.
    pub fn next_line(&mut self, wait: Duration) -> Result<Option<Line>> {
        let now = Instant::now();
        if now >= self.end {
            let limit = self.end - self.begin;
            bail!("the time limit of {} s passed; {}", limit.as_secs(), self.evidence());
        }
        match self.lines.recv_timeout(wait.min(self.end - now)) {
            Ok(line) => {
                self.remember(&line);
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                self.typist = None;
                Ok(None)
            }
        }
    }

    /// Whether the console has closed and all its lines have been taken.
    pub fn is_ended(&self) -> bool {
        self.typist.is_none()
    }

    /// Waits for a line with `pattern`.
    pub fn expect(&mut self, pattern: &str, wait: Duration) -> Result<Line> {
        self.expect_any(&[pattern], wait).map(|(_, line)| line)
    }

    /// Waits for a line with any of `patterns`; gives the index of the one found.
    pub fn expect_any(&mut self, patterns: &[&str], wait: Duration) -> Result<(usize, Line)> {
        let parsed: Vec<Pattern> = patterns.iter().map(|text| Pattern::new(text)).collect();
        self.wait_for(&format!("{patterns:?}"), wait, |line, _| {
            parsed.iter().position(|pattern| pattern.matches(&line.text))
        })
    }

    /// Waits until `judge` finds something in a line.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        wait: Duration,
        mut judge: impl FnMut(&Line, Option<&Record>) -> Option<T>,
    ) -> Result<(T, Line)> {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if let Some(line) = self.next_line(left)? {
                if let Some(found) = judge(&line, line.record().as_ref()) {
                    return Ok((found, line));
                }
            } else if self.is_ended() {
                bail!("{what} never came and the machine has ended; {}", self.evidence());
            } else if left.is_zero() {
                bail!("{what} did not come within {} s; {}", wait.as_secs(), self.evidence());
            }
        }
    }

    /// Types text on the serial console, at the pace it can take.
    pub fn type_text(&self, text: &[u8]) -> Result<()> {
        let typist = self.typist.as_ref().context("the machine has ended")?;
        typist.send(text.to_vec()).ok().context("the machine has ended")
    }

    /// Every machine-readable line so far.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Reads the console to its end and says how the machine ended.
    pub fn finish(mut self, mut each: impl FnMut(&Line)) -> Result<(Outcome, Vec<Record>)> {
        while !self.is_ended() {
            if let Some(line) = self.next_line(Duration::from_secs(1))? {
                each(&line);
            }
        }
        let child = self.child.take().context("the machine has been ended before")?;
        let status = wait_bounded(child, END_LIMIT)?;
        let outcome = status.map_or(Outcome::Ended, Outcome::of);
        Ok((outcome, std::mem::take(&mut self.records)))
    }

    /// Ends the machine now.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn remember(&mut self, line: &Line) {
        if self.recent.len() == CONTEXT_LINES {
            self.recent.pop_front();
        }
        self.recent.push_back(line.clone());
        if self.records.len() < RECORDS_MAX {
            self.records.extend(line.record());
        }
    }

    fn evidence(&self) -> String {
        let lines: Vec<&str> = self.recent.iter().map(|line| line.text.as_str()).collect();
        format!("the console is in {}, its last lines:\n{}", self.log.display(), lines.join("\n"))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // A failure here means that it has ended already.
        let _ = self.kill();
    }
}

/// QEMU as a child that the kernel ends when the thread that started it dies, however it dies.
fn command(arguments: Vec<OsString>) -> Command {
    const QEMU: &str = "qemu-system-x86_64";
    let mut command = if is_on_path("setpriv") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", QEMU]);
        command
    } else {
        Command::new(QEMU)
    };
    command.args(arguments);
    command
}

/// Copies the console to its log and cuts it into lines, until it closes.
fn read_console(mut output: ChildStdout, log: File, begin: Instant, lines: &Sender<Line>) {
    let mut log = BufWriter::new(log);
    let mut chunk = [0; 4096];
    let mut pending: Vec<u8> = Vec::new();
    while let Ok(count @ 1..) = output.read(&mut chunk) {
        let at = begin.elapsed();
        for byte in &chunk[..count] {
            if *byte != b'\n' && pending.len() < LINE_MAX {
                pending.push(*byte);
                continue;
            }
            let text = console::clean(&pending);
            pending.clear();
            if *byte != b'\n' {
                pending.push(*byte);
            }
            // A failure means that nobody reads any more; the log still gets everything.
            let _ = writeln!(log, "[{:9.3}] {text}", at.as_secs_f64());
            let _ = lines.send(Line { at, text });
        }
        let _ = log.flush();
    }
    let text = console::clean(&pending);
    if !text.is_empty() {
        let _ = writeln!(log, "{text}");
        let _ = lines.send(Line { at: begin.elapsed(), text });
    }
}

/// Passes text on in small pieces with pauses.
fn type_paced(mut input: impl Write, texts: &Receiver<Vec<u8>>) {
    while let Ok(text) = texts.recv() {
        for piece in text.chunks(TYPE_BYTES) {
            if input.write_all(piece).and_then(|()| input.flush()).is_err() {
                return;
            }
            thread::sleep(TYPE_PAUSE);
        }
    }
}
