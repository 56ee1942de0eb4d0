//! What the operator is told. Events are noted as small values at once and put into words when
//! the loop has nothing better to do: a serial line is slow, and recovery does not wait for it.

use core::fmt::{self, Write};

use abi::{Control, DomId, XenError};
use fabric::Epoch;
use fabric::control::Rung;
use fabric::epitaph::Reason;

use crate::inject_own::Broken;
use crate::injector::Injected;
use crate::nic::Nic;
use crate::relay::Turn;

/// Notes kept until they are printed: what a climb of the whole ladder makes, twice. They live on
/// the stack, which is bounded; more are counted as lost.
const MAX_NOTES: usize = 40;
/// Bytes of one printed line: the longest line of a log, with its writer's name.
const LINE_BYTES: usize = 512;

/// The one-word name of a reason, for lines that a machine reads.
pub fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Panic => "panic",
        Reason::Exit(_) => "exit",
        Reason::Gone => "gone",
        Reason::Hang => "hang",
        Reason::Asleep => "asleep",
        Reason::Paused => "paused",
        Reason::Start => "start",
        Reason::Corrupt => "corrupt",
        Reason::Diverged => "diverged",
        Reason::Recovery => "recovery",
        Reason::Global => "global",
        Reason::Operator => "operator",
    }
}

/// One recovery, from its detection to the first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Why.
    pub reason: Reason,
    /// The rung that was climbed.
    pub rung: Rung,
    /// Recoveries up to the last one, which held.
    pub tries: u32,
    /// When the watcher had decided.
    pub detected_ns: u64,
    /// CPU time that its domain had received then, if there was one.
    pub cpu_time_ns: Option<u64>,
    /// When the new life began to run.
    pub entered_ns: u64,
    /// When it said that it serves.
    pub ready_ns: u64,
    /// When its first answer passed the relay.
    pub repaired_ns: u64,
}

/// Something worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// What the host takes beside the orchestrator's image.
    Memory {
        /// Bytes of the orchestrator's page tables.
        tables: usize,
        /// Bytes of the archive.
        archive: usize,
        /// Bytes of the fabric.
        fabric: usize,
    },
    /// A step of the start was reached.
    Milestone(&'static str),
    /// A unit serves for the first time.
    Ready {
        /// Its name.
        unit: &'static str,
        /// Its domain.
        domid: DomId,
    },
    /// A unit drives a NIC.
    Nic {
        /// Its name.
        unit: &'static str,
        /// The NIC.
        nic: Nic,
    },
    /// A unit was recovered.
    Recovered {
        /// Its name.
        unit: &'static str,
        /// The new life.
        life: Epoch,
        /// What happened when.
        incident: Incident,
    },
    /// Another replica of the store serves in the place of one that failed.
    FailedOver(Turn),
    /// A unit has work and no CPU: it is not to blame.
    Starved {
        /// Its name.
        unit: &'static str,
        /// Elapsed time without progress.
        for_ns: u64,
        /// CPU time it received meanwhile.
        received_ns: u64,
    },
    /// A unit failed again too soon; its recovery waits.
    Delayed {
        /// Its name.
        unit: &'static str,
        /// Why it failed this time.
        reason: Reason,
        /// What will be done.
        rung: Rung,
        /// When it goes on.
        until_ns: u64,
    },
    /// A unit cannot be restarted now, as it is being recovered already.
    Busy {
        /// Its name.
        unit: &'static str,
    },
    /// A fault was injected.
    Injected {
        /// The unit's domain.
        domid: DomId,
        /// What and when.
        fault: Injected,
    },
    /// A record that was damaged has been written anew or dropped.
    Overwritten {
        /// The unit's domain.
        domid: DomId,
        /// The fault, and when that was seen.
        fault: Injected,
    },
    /// The orchestrator was made to fail.
    InjectedOwn(Broken),
    /// A guest came, changed its state, or went.
    Guest {
        /// The guest.
        domid: DomId,
        /// What happened.
        what: &'static str,
    },
    /// Xen refused something that should have worked.
    Refused {
        /// What was tried.
        what: &'static str,
        /// On which domain.
        domid: DomId,
        /// Xen's answer.
        error: XenError,
    },
    /// The orchestrator recovered itself.
    SelfRecovered {
        /// How often since the host booted.
        times: u32,
        /// When its recovery entry was reached.
        entered_ns: u64,
        /// When it watched again.
        ready_ns: u64,
    },
    /// The first answer to a guest was passed on after the orchestrator recovered itself.
    RelaysAgain {
        /// How often it had recovered itself then.
        times: u32,
    },
}

/// Notes that wait to be printed.
#[derive(Debug, Default)]
pub struct Notes {
    waiting: heapless::Deque<(u64, Note), MAX_NOTES>,
    lost: u32,
}

impl Notes {
    /// No notes.
    pub const fn new() -> Self {
        Self { waiting: heapless::Deque::new(), lost: 0 }
    }

    /// Notes something that happened at `now_ns`.
    pub fn add(&mut self, now_ns: u64, note: Note) {
        if self.waiting.push_back((now_ns, note)).is_err() {
            self.lost += 1;
        }
    }

    /// Whether something waits to be printed.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.lost == 0
    }

    /// Prints the oldest note.
    pub fn print_one<C: Control>(&mut self, xen: &C) {
        let mut line = Line::new();
        if let Some((at_ns, note)) = self.waiting.pop_front() {
            describe(&mut line, at_ns, &note);
        } else if self.lost > 0 {
            let lost = core::mem::take(&mut self.lost);
            line.say(format_args!("{lost} notes were lost: the console is too slow"));
        }
        line.print(xen);
    }
}

/// A line of text for the console, cut where it is too long.
#[derive(Debug, Default)]
pub struct Line {
    text: heapless::String<LINE_BYTES>,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self { text: heapless::String::new() }
    }

    /// Appends.
    pub fn say(&mut self, arguments: fmt::Arguments<'_>) {
        // A line that is too long is cut; what it says stands at its start.
        let _ = self.text.write_fmt(arguments);
    }

    /// Prints it with a line end, if it holds anything. False: it did not.
    pub fn print<C: Control>(&mut self, xen: &C) -> bool {
        let says_something = !self.text.is_empty();
        if says_something {
            while self.text.len() + 2 > LINE_BYTES {
                self.text.pop();
            }
            let _ = self.text.push_str("\r\n");
            xen.console_write(self.text.as_bytes());
            self.text.clear();
        }
        says_something
    }
}

fn describe(line: &mut Line, at_ns: u64, note: &Note) {
    let (ms, us) = (at_ns / 1_000_000, at_ns / 1_000 % 1_000);
    line.say(format_args!("[{ms:6}.{us:03}] "));
    match note {
        Note::Memory { tables, archive, fabric } => {
            describe_memory(line, *tables, *archive, *fabric);
        }
        Note::Milestone(what) => line.say(format_args!("{what}")),
        Note::Ready { unit, domid } => line.say(format_args!("{unit} ({domid}) serves")),
        Note::Nic { unit, nic } => line.say(format_args!(
            "{unit} drives {nic}; DMA protection: none (no IOMMU: it reaches all memory)"
        )),
        Note::Recovered { unit, life, incident } => {
            line.text.clear();
            describe_recovery(line, unit, *life, incident);
        }
        Note::FailedOver(turn) => {
            line.text.clear();
            describe_turn(line, turn);
        }
        Note::Starved { unit, for_ns, received_ns } => line.say(format_args!(
            "{unit} has work and no CPU ({} us in {} ms); it is left alone",
            received_ns / 1_000,
            for_ns / 1_000_000,
        )),
        Note::Delayed { unit, reason, rung, until_ns } => {
            let delay_us = until_ns.saturating_sub(at_ns) / 1_000;
            let (reason, what) = (word(*reason), rung.name());
            line.say(format_args!(
                "{unit} failed again ({reason}): rung {}, {what}, in {delay_us} us",
                *rung as u8,
            ));
        }
        Note::Busy { unit } => {
            line.say(format_args!("{unit} is being recovered; ask again when it serves"));
        }
        Note::Injected { domid, fault } => describe_fault(line, "injected", *domid, fault),
        Note::Overwritten { domid, fault } => describe_fault(line, "overwritten", *domid, fault),
        Note::InjectedOwn(Broken { number, kind, point, at_ns }) => {
            line.text.clear();
            line.say(format_args!(
                "@{{\"event\":\"injected\",\"number\":{number},\"kind\":\"{}\",\"domid\":0,\
                 \"point\":\"{}\",\"at\":{at_ns}}}",
                kind.name(),
                point.name(),
            ));
        }
        Note::Guest { domid, what } => line.say(format_args!("guest {domid}: {what}")),
        Note::Refused { what, domid, error } => {
            line.say(format_args!("cannot {what} {domid}: {error}"));
        }
        Note::SelfRecovered { times, entered_ns, ready_ns } => {
            line.text.clear();
            line.say(format_args!(
                "@{{\"event\":\"self-recovered\",\"times\":{times},\"entered\":{entered_ns},\
                 \"ready\":{ready_ns}}}"
            ));
        }
        Note::RelaysAgain { times } => describe_relay(line, at_ns, *times),
    }
}

fn describe_fault(line: &mut Line, event: &str, domid: DomId, fault: &Injected) {
    let Injected { number, kind, at_ns, cpu_time_ns, during } = fault;
    line.text.clear();
    line.say(format_args!(
        "@{{\"event\":\"{event}\",\"number\":{number},\"kind\":\"{}\",\"domid\":{},\"at\":{at_ns}",
        kind.name(),
        domid.0,
    ));
    say_cpu_time(line, *cpu_time_ns);
    if let Some(span) = during {
        line.say(format_args!(",\"during\":\"{}\"", span.name()));
    }
    line.say(format_args!("}}"));
}

fn describe_memory(line: &mut Line, tables: usize, archive: usize, fabric: usize) {
    line.text.clear();
    line.say(format_args!(
        "@{{\"event\":\"memory\",\"tables\":{tables},\"archive\":{archive},\
         \"fabric\":{fabric}}}"
    ));
}

fn describe_relay(line: &mut Line, at_ns: u64, times: u32) {
    line.text.clear();
    line.say(format_args!("@{{\"event\":\"relays-again\",\"times\":{times},\"at\":{at_ns}}}"));
}

fn describe_turn(line: &mut Line, turn: &Turn) {
    let Turn { from, to, detected_ns, named_ns, serves_ns, answered_ns } = *turn;
    line.say(format_args!(
        "@{{\"event\":\"failed-over\",\"from\":\"{from}\",\"to\":\"{to}\",\
         \"detected\":{detected_ns},\"named\":{named_ns},\"serves\":{serves_ns},\
         \"answered\":{answered_ns}}}"
    ));
}

fn describe_recovery(line: &mut Line, unit: &str, life: Epoch, incident: &Incident) {
    let Incident { reason, rung, tries, detected_ns, entered_ns, ready_ns, repaired_ns, .. } =
        *incident;
    line.say(format_args!(
        "@{{\"event\":\"recovered\",\"unit\":\"{unit}\",\"life\":{life},\"reason\":\"{}\",\
         \"rung\":{},\"tries\":{tries},\"detected\":{detected_ns},\"entered\":{entered_ns},\
         \"ready\":{ready_ns},\"repaired\":{repaired_ns}",
        word(reason),
        rung as u8,
    ));
    say_cpu_time(line, incident.cpu_time_ns);
    line.say(format_args!("}}"));
}

/// The member of an object that says what CPU time a unit had received.
fn say_cpu_time(line: &mut Line, cpu_time_ns: Option<u64>) {
    if let Some(cpu_time_ns) = cpu_time_ns {
        line.say(format_args!(",\"cpu\":{cpu_time_ns}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(note: Note) -> heapless::String<LINE_BYTES> {
        let mut line = Line::new();
        describe(&mut line, 1_234_567, &note);
        line.text
    }

    #[test]
    fn a_note_says_when_and_what() {
        let note = Note::Refused { what: "pause", domid: DomId(7), error: XenError::Busy };
        assert_eq!(words(note), "[     1.234] cannot pause d7: busy (EBUSY)");
    }

    #[test]
    fn a_recovery_is_one_json_object() {
        let incident = Incident {
            reason: Reason::Hang,
            rung: Rung::Microreset,
            tries: 2,
            detected_ns: 1,
            cpu_time_ns: Some(5),
            entered_ns: 2,
            ready_ns: 3,
            repaired_ns: 4,
        };
        assert_eq!(
            words(Note::Recovered { unit: "xenstore-uk", life: 9, incident }),
            "@{\"event\":\"recovered\",\"unit\":\"xenstore-uk\",\"life\":9,\"reason\":\"hang\",\
             \"rung\":1,\"tries\":2,\"detected\":1,\"entered\":2,\"ready\":3,\
             \"repaired\":4,\"cpu\":5}"
        );
    }

    #[test]
    fn lost_notes_are_counted() {
        let mut notes = Notes::new();
        for _ in 0..MAX_NOTES + 3 {
            notes.add(0, Note::Busy { unit: "x" });
        }
        assert_eq!(notes.lost, 3);
    }
}
