//! Transactions of the script: ended well, given up, or spoilt on purpose by a write from outside.

use std::io;
use std::time::Instant;

use crate::model::Model;
use crate::script::Script;
use crate::wire::{Op, strings};

/// How a transaction is meant to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// Committed, with nothing in its way.
    Commit,
    /// Given up.
    Abort,
    /// A node it has read changes before it ends: EAGAIN.
    Spoilt,
}

impl Script {
    /// One whole transaction.
    pub(crate) fn transaction(&mut self) -> io::Result<()> {
        let plan = match self.random.below(10) {
            0..=5 => Plan::Commit,
            6..=7 => Plan::Abort,
            _ => Plan::Spoilt,
        };
        let Some(id) = self.begin()? else { return Ok(()) };
        self.suspects = Some(Vec::new());
        let mut view = self.model.clone();
        let mut targets = Vec::new();
        for _ in 0..1 + self.random.below(6) {
            self.transaction_step(id, &mut view, &mut targets)?;
        }
        if plan == Plan::Spoilt {
            self.spoil(id, &view)?;
        }
        let word: &[u8] = if plan == Plan::Abort { b"F\0" } else { b"T\0" };
        let answer = self.raw(Op::TransactionEnd, id, word)?;
        let suspects = self.suspects.take().unwrap_or_default();
        if plan == Plan::Abort || answer.as_ref().is_err_and(|name| name == "EAGAIN") {
            self.tally.doomed += suspects.len() as u64;
        } else {
            self.accuse(&suspects);
        }
        match answer.as_ref().err().map(String::as_str) {
            Some("ENOENT") => {
                self.tally.repeated += 1;
                self.tally.complain("transaction-end: it had ended before");
                if plan == Plan::Commit {
                    self.committed(view, &targets);
                }
            }
            Some("EAGAIN") if plan == Plan::Spoilt => self.tally.conflicts += 1,
            // A server may report a conflict that was none: nothing has happened then.
            Some("EAGAIN") if plan == Plan::Commit => self.tally.needless_conflicts += 1,
            // What it read was true when it began, and it changed nothing: oxenstored lets it end
            // well, xenstored does not.
            None if plan == Plan::Spoilt && targets.is_empty() => {
                self.check_done(&answer, "transaction-end, spoilt, of reads only");
            }
            _ if plan == Plan::Spoilt => {
                self.check(&answer, &Err("EAGAIN"), "transaction-end, spoilt");
            }
            _ => {
                let done = self.check_done(&answer, "transaction-end");
                if done && plan == Plan::Commit {
                    self.committed(view, &targets);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> io::Result<Option<u32>> {
        let answer = self.raw(Op::TransactionStart, 0, b"\0")?;
        let id = answer.as_ref().ok().and_then(|text| strings(text).first()?.parse().ok());
        self.check(&answer.map(|_| id.is_some()), &Ok(true), "transaction-start");
        Ok(id)
    }

    /// One request inside the transaction, checked against what the transaction sees.
    fn transaction_step(
        &mut self,
        id: u32,
        view: &mut Model,
        targets: &mut Vec<String>,
    ) -> io::Result<()> {
        match self.random.below(10) {
            0..=3 => {
                let (path, value) = (self.write_path(), self.some_value());
                let answer = self.call(Op::Write, id, &path, &value)?;
                if self.check_done(&answer, &format!("write {path} in a transaction")) {
                    view.write(&path, &value);
                    targets.push(path);
                }
            }
            4..=6 => {
                let path = self.some_path();
                self.read_path(id, Some(view), &path)?;
            }
            7 => {
                let path = self.some_path();
                self.directory_path(id, Some(view), &path)?;
            }
            8 => {
                let path = self.write_path();
                let answer = self.call(Op::Mkdir, id, &path, b"")?;
                if self.check_done(&answer, &format!("mkdir {path} in a transaction"))
                    && view.mkdir(&path)
                {
                    targets.push(path);
                }
            }
            _ => {
                let path = self.existing_path();
                let same_outside = view.children(&path) == self.model.children(&path);
                if self.is_leaf(&path) && view.holds(&path) && same_outside {
                    let answer = self.call(Op::Rm, id, &path, b"")?;
                    if self.check_done(&answer, &format!("rm {path} in a transaction")) {
                        view.remove(&path);
                        targets.push(path);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a node inside the transaction, then changes it outside.
    fn spoil(&mut self, id: u32, view: &Model) -> io::Result<()> {
        let path = self.existing_path();
        self.read_path(id, Some(view), &path)?;
        let mut value = self.some_value();
        if self.model.value(&path) == Some(&value) {
            value.push(b'!');
        }
        let answer = self.call(Op::Write, 0, &path, &value)?;
        if self.check_done(&answer, &format!("write {path} beside a transaction")) {
            self.model.write(&path, &value);
            self.watches.changed(&path, Instant::now());
        }
        Ok(())
    }

    /// The transaction's changes are everybody's now, and those that remain changes are told.
    fn committed(&mut self, view: Model, targets: &[String]) {
        let now = Instant::now();
        let before = std::mem::replace(&mut self.model, view);
        let mut told: Vec<&String> = Vec::new();
        for path in targets {
            let differs = before.value(path) != self.model.value(path);
            if !differs || told.contains(&path) {
                continue;
            }
            told.push(path);
            self.watches.changed(path, now);
        }
    }
}
