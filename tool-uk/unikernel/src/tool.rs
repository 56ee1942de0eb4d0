//! The engine's hands and ears.

use alloc::format;
use alloc::vec;
use core::cell::RefCell;

use api::Reply;
use fabric::domains::{DomainState, DomainsError, DomainsReader, SLOTS};
use fabric::keys::KeyReader;
use fabric::log::{Level, LogWriter};
use fabric::message::{MESSAGE_MAX, MessageId, MessageReader, MessageWriter};
use fabric::record::Record;
use fabric::view::{Party, RegionKind};
use fabric::{Epoch, Part};
use runtime::{FabricMemory, Hypervisor};
use service::view::View;
use service::{Outbox, Step, Work, ids};
use store_client::{Connection, Said};
use tool_engine::{Action, Engine, JOURNAL_KIND, MAX_JOURNAL, Options, Spec};

use crate::consoles::Consoles;

type Memory = Part<FabricMemory>;

/// Actions and answers served before the loop looks at new events: a step stays well below the
/// deadline by which a hang is judged.
const STEP_ITEMS: u32 = 4;
/// Last number of a guest: the one below Xen's reserved ones.
const LAST_GUEST: u16 = abi::DomId::FIRST_RESERVED.0 - 1;

/// The toolstack.
pub struct Tool {
    xen: Hypervisor,
    epoch: Epoch,
    engine: Engine<'static>,
    requests: MessageWriter<Memory, Memory>,
    replies: MessageReader<Memory, Memory>,
    store: Connection<Memory>,
    journal: Record<Memory>,
    table: DomainsReader<Memory>,
    is_table_due: bool,
    consoles: Consoles<Hypervisor, Memory>,
    /// The guests of a former life have their consoles again.
    has_adopted: bool,
    log: RefCell<LogWriter<Memory>>,
}

impl Tool {
    /// The toolstack at the start of a life.
    pub fn new(
        xen: Hypervisor,
        view: &View<FabricMemory>,
        epoch: Epoch,
        nonce: u64,
        specs: &[Spec<'static>],
    ) -> Self {
        let (requests, replies) = (view.own(RegionKind::Requests), view.own(RegionKind::Replies));
        let journal = Record::new(view.own(RegionKind::Journal), JOURNAL_KIND, MAX_JOURNAL);
        let mut bytes = [0; MAX_JOURNAL];
        let kept = journal.read(&mut bytes).ok().map(|found| &bytes[..found.length]);
        let options = Options {
            epoch,
            nonce,
            first_guest: system::SYSTEM.limits.first_guest_domid,
            last_guest: LAST_GUEST,
            net: system::SYSTEM
                .with_role(system::Role::Net)
                .map(|net| system::SYSTEM.units[net].domid),
        };
        let table = view.of(RegionKind::Domains, Party::ORCHESTRATOR);
        let client = view.own(RegionKind::StoreClient);
        let out = LogWriter::new(view.own(RegionKind::ConsoleOut));
        let keys =
            KeyReader::new(view.own(RegionKind::ConsoleTaken), view.own(RegionKind::ConsoleIn));
        Self {
            xen,
            epoch,
            engine: Engine::new(specs, options, kept),
            requests: MessageWriter::new(requests, replies),
            replies: MessageReader::new(requests, replies),
            store: Connection::new(client, view.store_pages().collect(), epoch),
            journal,
            table: DomainsReader::new(table),
            is_table_due: true,
            consoles: Consoles::new(xen, out, keys),
            has_adopted: false,
            log: RefCell::new(LogWriter::new(view.own(RegionKind::Log))),
        }
    }

    /// Passes one of the operator's keys on; false: there is none. Keys wait until the guests have
    /// their consoles.
    fn type_key(&mut self, out: &mut Outbox<Memory>) -> bool {
        let typed = if self.has_adopted { self.consoles.type_next() } else { None };
        if let Some(Some(slot)) = typed {
            out.kick(ids::console(slot));
        }
        typed.is_some()
    }

    /// A guest whose console could not be mapped prints: perhaps it grants the page again.
    fn attach_again(&mut self, slot: u16, now_ns: u64) {
        let domain = self.table.get(usize::from(slot)).ok().flatten();
        let guest = domain.filter(|domain| self.has_adopted && domain.state == DomainState::Alive);
        if let Some(guest) = guest {
            // If not, it harms itself alone.
            let _ = self.consoles.attach(guest.domid, slot, now_ns);
        }
    }

    fn say(&self, now_ns: u64, level: Level, line: &str) {
        self.log.borrow_mut().line(now_ns, level, format_args!("{line}"));
    }

    /// Shows the engine the domain table. A slot that cannot be read keeps its old content.
    fn look_at_table(&mut self, now_ns: u64) {
        self.is_table_due = false;
        for slot in 0..SLOTS {
            match self.table.get(slot) {
                Ok(domain) => self.engine.domain(slot as u16, domain),
                Err(DomainsError::Changing) => self.is_table_due = true,
                Err(error @ DomainsError::Corrupt) => {
                    let line = format!("slot {slot}: {error}");
                    self.say(now_ns, Level::Error, &line);
                }
            }
        }
    }

    /// Takes one answer of the orchestrator; false: there is none.
    fn hear_orchestrator(&mut self, now_ns: u64) -> bool {
        let mut bytes = [0; MESSAGE_MAX];
        match self.replies.peek(&mut bytes) {
            Ok(Some(message)) => {
                match Reply::decode(&bytes[..message.length]) {
                    Ok(reply) => self.engine.replied(&reply, now_ns),
                    Err(error) => {
                        let line = format!("a reply cannot be read: {error}");
                        self.say(now_ns, Level::Error, &line);
                    }
                }
                self.replies.consume();
                true
            }
            Ok(None) => false,
            Err(error) => {
                // The engine asks again after a while.
                let line = format!("replies were lost: {error}");
                self.say(now_ns, Level::Error, &line);
                true
            }
        }
    }

    /// Takes one message of XenStore; false: there is none.
    fn hear_store(&mut self, now_ns: u64) -> bool {
        match self.store.next_said() {
            Said::Message(message) => self.engine.store_said(&message, now_ns),
            Said::Restarted => {
                self.say(now_ns, Level::Warning, "the connection to XenStore begins anew");
                self.engine.store_restarted();
            }
            Said::Nothing => return false,
        }
        true
    }

    /// Does one thing that the engine wants; false: it wants nothing.
    fn act(&mut self, now_ns: u64, out: &mut Outbox<Memory>) -> bool {
        let Some(action) = self.engine.poll(now_ns) else { return false };
        match action {
            Action::Operate { sequence, message } => {
                let id = MessageId { epoch: self.epoch, sequence };
                if let Err(error) = self.requests.send(id, &message) {
                    // The engine asks again after a while.
                    let line = format!("a request was not sent: {error}");
                    self.say(now_ns, Level::Error, &line);
                }
                out.kick(ids::OPERATIONS);
            }
            Action::Store(message) => self.store.send(&message),
            Action::Journal(journal) => {
                let mut scratch = vec![0; MAX_JOURNAL];
                self.journal.write(self.epoch, &journal, &mut scratch);
            }
            Action::Attach { domid, slot } => {
                if let Err(error) = self.consoles.attach(domid, slot, now_ns) {
                    let line = format!("the console of d{domid} cannot be mapped: {error}");
                    self.say(now_ns, Level::Warning, &line);
                }
            }
            Action::Detach { domid } => self.consoles.detach(domid, now_ns),
            Action::Adopted => {
                self.xen.drop_orphans();
                self.has_adopted = true;
            }
            Action::Log(level, line) => self.say(now_ns, level, &line),
        }
        true
    }
}

impl Work<Memory> for Tool {
    fn kick(&mut self, id: Option<u16>, now_ns: u64, _: &mut Outbox<Memory>) {
        match id {
            Some(ids::DOMAINS) => self.is_table_due = true,
            Some(id) if ids::CONSOLES.contains(&id) => {
                let slot = id - ids::CONSOLES.start;
                if !self.consoles.mark(slot) {
                    self.attach_again(slot, now_ns);
                }
            }
            // Answers and keys are looked for in every step.
            Some(_) => {}
            None => {
                self.is_table_due = true;
                self.consoles.mark_all();
            }
        }
    }

    fn step(&mut self, now_ns: u64, out: &mut Outbox<Memory>) -> Step {
        if self.is_table_due {
            self.look_at_table(now_ns);
        }
        let mut completed = 0;
        let mut more = self.is_table_due;
        for _ in 0..STEP_ITEMS {
            let heard = self.hear_orchestrator(now_ns) | self.hear_store(now_ns);
            let acted = self.act(now_ns, out);
            let pumped = self.consoles.pump_next(now_ns);
            if let Some(guest) = pumped {
                out.kick(ids::OUTPUT);
                if let Some(slot) = guest {
                    out.kick(ids::console(slot));
                }
            }
            let typed = self.type_key(out);
            more = heard || acted || typed || pumped.is_some() || self.is_table_due;
            if !more {
                break;
            }
            completed += 1;
        }
        if self.store.take_kick() {
            out.kick(ids::TOOL_SLOT);
        }
        Step { completed, more, wake_at_ns: self.engine.wake_at() }
    }

    fn dump(&self, now_ns: u64) {
        for line in self.engine.describe() {
            self.say(now_ns, Level::Information, &line);
        }
    }
}
