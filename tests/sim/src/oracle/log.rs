//! Logs and leaders: Raft's properties (Ongaro and Ousterhout, USENIX ATC 2014, figure 3).

use std::collections::BTreeMap;

use fabric::SharedMemory;
use raft::{Ident, Node, Position};

use super::Violation;

/// What is known of an entry: the term before it, and its content.
type Seen = (Option<u64>, u32);

/// A committed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Committed {
    /// Its term.
    term: u64,
    content: u32,
    /// The term in which it was committed: a leader of an earlier one need not have it, even when
    /// its last vote arrives later.
    in_term: u64,
}

/// Judges logs.
#[derive(Debug, Default)]
pub struct Logs {
    leaders: BTreeMap<u64, Ident>,
    entries: BTreeMap<(u64, u64), Seen>,
    committed: BTreeMap<u64, Committed>,
    replicas: BTreeMap<u8, Judged>,
}

/// How far a replica was judged.
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    life: u32,
    last: Position,
    commit: u64,
    led: u64,
}

impl Logs {
    /// Judges a replica's log and role.
    ///
    /// # Errors
    /// The first objection.
    pub fn judge<M: SharedMemory>(
        &mut self,
        number: u8,
        life: u32,
        node: &Node<M>,
        suspect: bool,
    ) -> Result<(), Violation> {
        let status = node.status();
        let mut judged = self.replicas.get(&number).copied().unwrap_or_default();
        if judged.life != life {
            judged = Judged { life, ..Judged::default() };
        }
        if status.damage.is_some() {
            return Ok(());
        }
        if judged.last != status.last {
            let from = judged.last.index.min(status.last.index);
            self.judge_entries(number, node, from, suspect)?;
            judged.last = status.last;
        }
        if status.commit < judged.commit {
            let text = format!("{number} commits {} after {}", status.commit, judged.commit);
            return Err(Violation::new("committed never lost", text));
        }
        if status.commit > judged.commit {
            self.judge_commit(number, node, judged.commit + 1, status.commit)?;
            judged.commit = status.commit;
        }
        if status.leading && judged.led != status.term {
            self.judge_leader(node)?;
            judged.led = status.term;
        }
        self.replicas.insert(number, judged);
        Ok(())
    }

    fn judge_entries<M: SharedMemory>(
        &mut self,
        number: u8,
        node: &Node<M>,
        from: u64,
        suspect: bool,
    ) -> Result<(), Violation> {
        let mut bytes = Vec::new();
        for index in from.saturating_sub(1)..=node.status().last.index {
            let record = match node.read_entry(index, &mut bytes) {
                Some(Ok(record)) => record,
                Some(Err(damage)) if !suspect => {
                    let text = format!("{number} cannot read its entry {index}: {damage:?}");
                    return Err(Violation::new("log matching", text));
                }
                _ => continue,
            };
            let term = record.term;
            let before = node.entry(index - 1).map(|(position, _)| position.term);
            let content = crc32fast::hash(&bytes);
            let seen = self.entries.entry((index, term)).or_insert((before, content));
            let same_before = before.is_none() || seen.0.is_none() || seen.0 == before;
            seen.0 = seen.0.or(before);
            if seen.1 != content || !same_before {
                let text = format!("{number} has another entry {term}/{index} than was seen");
                return Err(Violation::new("log matching", text));
            }
        }
        Ok(())
    }

    fn judge_commit<M: SharedMemory>(
        &mut self,
        number: u8,
        node: &Node<M>,
        from: u64,
        to: u64,
    ) -> Result<(), Violation> {
        let mut bytes = Vec::new();
        for index in from..=to {
            let Some(Ok(record)) = node.read_entry(index, &mut bytes) else { continue };
            let (term, content) = (record.term, crc32fast::hash(&bytes));
            let this = Committed { term, content, in_term: node.status().term };
            let first = *self.committed.entry(index).or_insert(this);
            if (first.term, first.content) != (term, content) {
                let text = format!("{number} commits {term}/{index}, committed was {}", first.term);
                return Err(Violation::new("committed never lost", text));
            }
        }
        Ok(())
    }

    fn judge_leader<M: SharedMemory>(&mut self, node: &Node<M>) -> Result<(), Violation> {
        let status = node.status();
        let first = *self.leaders.entry(status.term).or_insert(status.ident);
        if first != status.ident {
            let text = format!("{first:?} and {:?} lead term {}", status.ident, status.term);
            return Err(Violation::new("election safety", text));
        }
        let lacks = |index: u64, term: u64| {
            let differs = |(position, _): (Position, _)| position.term != term;
            index > status.last.index || node.entry(index).is_some_and(differs)
        };
        let mut before = self.committed.iter().filter(|(_, entry)| entry.in_term < status.term);
        let missing = before.find(|(index, entry)| lacks(**index, entry.term));
        if let Some((index, entry)) = missing {
            let text = format!(
                "{:?} leads term {}, but lacks entry {}/{index}, committed in term {}",
                status.ident, status.term, entry.term, entry.in_term
            );
            return Err(Violation::new("leader completeness", text));
        }
        Ok(())
    }
}
