//! Progress of long work: a spinner on a terminal, plain lines elsewhere.

use std::fmt::Display;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// A sequence of named steps of one verb.
pub struct Steps {
    verb: &'static str,
    terminal: bool,
}

impl Steps {
    /// Steps of the verb `verb`.
    pub fn new(verb: &'static str) -> Self {
        Steps { verb, terminal: stderr().is_terminal() }
    }

    /// Does `work`, showing that it is under way, how long it took and what it says at its end.
    pub fn step<T: Display>(&self, label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let bar = self.terminal.then(|| self.spinner(label));
        let result = work();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let seconds = begin.elapsed().as_secs_f64();
        match &result {
            Ok(said) => eprintln!("{}: {label}: {said} ({seconds:.1} s)", self.verb),
            Err(_) => eprintln!("{}: {label}: FAILED ({seconds:.1} s)", self.verb),
        }
        result
    }

    /// Says something that took no work.
    pub fn note(&self, text: impl Display) {
        eprintln!("{}: {text}", self.verb);
    }

    fn spinner(&self, label: &str) -> ProgressBar {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(format!("{}: {label}", self.verb));
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}
