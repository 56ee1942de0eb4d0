//! The history of reads and writes, and whether it has a linear order.

use std::collections::BTreeMap;

use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

use super::Violation;
use crate::kv::Op;

type Tester = LinearizabilityTester<u32, Register<u64>>;

/// One read or write that is over, for the quick check.
#[derive(Clone, Copy, Debug)]
struct Done {
    write: bool,
    value: u64,
    asked: u64,
    answered: u64,
}

/// What clients asked and were answered.
#[derive(Debug, Default)]
pub struct History {
    testers: BTreeMap<u16, Tester>,
    done: BTreeMap<u16, Vec<Done>>,
    open: BTreeMap<u32, (Op, u64)>,
    ops: BTreeMap<(u32, u64), Op>,
    sequences: BTreeMap<u32, u64>,
    clock: u64,
    registers: u64,
}

impl History {
    /// Reads and writes asked so far.
    pub fn len(&self) -> u64 {
        self.registers
    }

    /// A client asks.
    pub fn asked(&mut self, connection: u32, op: Op) {
        self.clock += 1;
        let sequence = self.sequences.entry(connection).or_default();
        *sequence += 1;
        self.ops.insert((connection, *sequence), op);
        self.open.insert(connection, (op, self.clock));
        let (key, op) = match op {
            Op::Read(key) => (key, RegisterOp::Read),
            Op::Write(key, value) => (key, RegisterOp::Write(value)),
            Op::Add(_) => return,
        };
        self.registers += 1;
        let tester =
            self.testers.entry(key).or_insert_with(|| LinearizabilityTester::new(Register(0)));
        tester.on_invoke(connection, op).expect("one request per connection");
    }

    /// The request that a connection made with this sequence.
    pub fn op(&self, connection: u32, sequence: u64) -> Option<Op> {
        self.ops.get(&(connection, sequence)).copied()
    }

    /// A client is answered.
    ///
    /// # Errors
    /// When the answer contradicts one that was complete before the request began.
    pub fn answered(&mut self, connection: u32, value: u64) -> Result<(), Violation> {
        self.clock += 1;
        let (op, asked) = self.open.remove(&connection).expect("an answer to a request");
        let (key, done, ret) = match op {
            Op::Read(key) => (key, (false, value), RegisterRet::ReadOk(value)),
            Op::Write(key, written) => (key, (true, written), RegisterRet::WriteOk),
            Op::Add(_) => return Ok(()),
        };
        let tester = self.testers.get_mut(&key).expect("it was asked");
        tester.on_return(connection, ret).expect("an answer to a request");
        let done = Done { write: done.0, value: done.1, asked, answered: self.clock };
        let key_done = self.done.entry(key).or_default();
        key_done.push(done);
        if !done.write { stale(key, key_done, done) } else { Ok(()) }
    }

    /// Searches a linear order for every register.
    ///
    /// # Errors
    /// Names the register that has none.
    pub fn judge(&self) -> Result<(), Violation> {
        for (key, tester) in &self.testers {
            if !tester.is_consistent() {
                let text = format!("register {key} has no linear order: {:?}", self.done.get(key));
                return Err(Violation::new("linearizable", text));
            }
        }
        Ok(())
    }
}

/// Whether a read missed a write that was complete before it began, and that itself began after
/// the write it saw was complete. Quick, and enough for most stale reads.
fn stale(key: u16, history: &[Done], read: Done) -> Result<(), Violation> {
    let source = history.iter().find(|done| done.write && done.value == read.value);
    // A value not in the history is from a write that is still open, or the initial one.
    let seen = match source {
        Some(source) => source.answered,
        None if read.value == 0 => 0,
        None => return Ok(()),
    };
    let newer = history.iter().find(|done| {
        done.write && done.value != read.value && done.asked > seen && done.answered < read.asked
    });
    match newer {
        None => Ok(()),
        Some(newer) => {
            let text = format!("register {key}: {read:?} misses {newer:?}");
            Err(Violation::new("linearizable", text))
        }
    }
}
