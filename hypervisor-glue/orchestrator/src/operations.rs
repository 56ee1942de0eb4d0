//! Executing what tool-uk asks for: one request at a time, each checked, each idempotent, the long
//! ones in steps.

use abi::{Control, CreateDomain, DomId, DomainInfo, Frame, HvmEntry, HvmParam, XenError};
use api::{
    Failure, GuestId, GuestState, GuestStatus, MAX_BYTES, MAX_MESSAGE, MAX_STATUSES, Operation,
    Outcome, Reply, Request, Statuses,
};
use fabric::archive::Archive;
use fabric::domains::DomainState;
use fabric::message::{MESSAGE_MAX, MessageId, MessageReader, MessageWriter};
use fabric::{Part, SharedMemory};
use service::ids;

use crate::guest_memory::{self, Copied};
use crate::host::Host;
use crate::slots::{CONSOLE_PORT, STORE_PORT};

/// Map-track frames of a guest: Linux as an ordinary guest maps nobody's grants.
const GUEST_MAPTRACK_FRAMES: u32 = 1;

/// The orchestrator's end of the rings of operations.
#[derive(Debug)]
pub struct Operations<'a, F: SharedMemory + Copy> {
    archive: Archive<'a>,
    limits: api::Limits,
    requests: MessageReader<Part<F>, Part<F>>,
    replies: MessageWriter<Part<F>, Part<F>>,
    request: [u8; MESSAGE_MAX],
    len: usize,
    /// Bytes or pages of the present request that are done.
    done: u32,
}

impl<'a, F: SharedMemory + Copy> Operations<'a, F> {
    /// Operations between `requests`, which tool-uk writes, and `replies`, which we write.
    pub fn new(archive: Archive<'a>, requests: Part<F>, replies: Part<F>) -> Self {
        Self {
            archive,
            limits: limits(),
            requests: MessageReader::new(replies, requests),
            replies: MessageWriter::new(replies, requests),
            request: [0; MESSAGE_MAX],
            len: 0,
            done: 0,
        }
    }

    /// Forgets the request under way: tool-uk begins a new life and will ask again.
    pub fn restart(&mut self) {
        self.len = 0;
        self.done = 0;
        self.requests.clear();
        self.replies.clear();
    }

    /// Does a bounded piece of the request under way, or takes the next one. False: nothing to do.
    pub fn step<C: Control>(&mut self, host: &mut Host<'_, C, F>) -> bool {
        if self.len == 0 {
            match self.requests.peek(&mut self.request) {
                Ok(Some(message)) => self.len = message.length,
                Ok(None) => return false,
                // Only a broken tool-uk writes this; what it asked for is lost, it asks again.
                Err(_) => return true,
            }
            self.done = 0;
        }
        // The request stays in its buffer until it is answered; it is small, and copying it out of
        // `self` keeps the borrow of the step short.
        let (request, len) = (self.request, self.len);
        let Ok(request) = Request::decode(&request[..len]) else {
            // Only a broken tool-uk writes this. There is nobody to answer.
            self.finish();
            return true;
        };
        let mut bytes = [0; MAX_BYTES];
        let outcome = match api::validate(&request.operation, &self.limits) {
            Err(refusal) => Some(Outcome::Refused(refusal)),
            Ok(()) => match self.execute(host, &request.operation, &mut bytes) {
                Ok(outcome) => outcome,
                Err(failure) => Some(Outcome::Failed(failure)),
            },
        };
        if let Some(outcome) = outcome {
            self.answer(&Reply { epoch: request.epoch, sequence: request.sequence, outcome });
            host.hand(host.tool, ids::OPERATIONS);
        }
        true
    }

    fn answer(&mut self, reply: &Reply<'_>) {
        let mut encoded = [0; MAX_MESSAGE];
        let len = reply.encode(&mut encoded).expect("replies are bounded by the message size");
        let id = MessageId { epoch: reply.epoch, sequence: reply.sequence };
        // A full ring means that tool-uk does not read its answers: it asks again when it does.
        let _ = self.replies.send(id, &encoded[..len]);
        self.finish();
    }

    /// The request is answered: only now does it leave the ring, so that a crash of ours in
    /// between executes it again rather than never.
    fn finish(&mut self) {
        self.requests.consume();
        self.len = 0;
    }

    /// Executes a piece of the operation; `None`: there is more to do.
    fn execute<'b, C: Control>(
        &mut self,
        host: &mut Host<'_, C, F>,
        operation: &Operation<'_>,
        bytes: &'b mut [u8; MAX_BYTES],
    ) -> Result<Option<Outcome<'b>>, Failure> {
        let xen = host.xen;
        let done = Ok(Some(Outcome::Done));
        match operation {
            Operation::Create { guest, limits } => create(host, *guest, limits),
            Operation::Populate { guest, before, first_gfn, pages } => {
                let have = known(host, *guest)?.pages;
                populate(host, *guest, have, *before, *first_gfn, *pages)
            }
            Operation::Load { guest, entry, offset, address, len } => {
                let content = self.archive.entry(entry).map_err(|_| Failure::NoEntry)?.bytes();
                let end = *offset as usize + *len as usize;
                let part = content
                    .get(*offset as usize..end)
                    .ok_or(Failure::EntryEnds { len: content.len() as u32 })?;
                let source = guest_memory::Source::Bytes(part);
                self.copy(host, *guest, *address, &source)
            }
            Operation::Zero { guest, address, len } => {
                self.copy(host, *guest, *address, &guest_memory::Source::Zeros(*len))
            }
            Operation::Write { guest, address, bytes } => {
                self.copy(host, *guest, *address, &guest_memory::Source::Bytes(bytes))
            }
            Operation::ReadArchive { entry, offset, len } => {
                read_archive(&self.archive, entry, *offset, *len, bytes)
            }
            Operation::SetParam { guest, param, value } => {
                xen.set_hvm_param(guest_id(*guest), HvmParam::from(*param), u64::from(*value))?;
                done
            }
            Operation::ConnectStore { guest } => connect(host, *guest, STORE_PORT),
            Operation::ConnectConsole { guest } => connect(host, *guest, CONSOLE_PORT),
            Operation::SeedGrants { guest, grants } => {
                let table = xen.map_grant_table(guest_id(*guest))?;
                grants.iter().for_each(|grant| guest_memory::seed_grant(&table, grant));
                done
            }
            Operation::SetEntry { guest, rip, start_info } => {
                let entry = HvmEntry { rip: *rip, start_info: *start_info };
                xen.enter_hvm(guest_id(*guest), &entry)?;
                done
            }
            Operation::Pause { guest } => set_paused(host, *guest, Pausing::Pause),
            Operation::Unpause { guest } => set_paused(host, *guest, Pausing::Unpause),
            Operation::Destroy { guest } => destroy(host, *guest),
            Operation::Query { guest } => {
                Ok(Some(Outcome::Guest(status(*guest, &known(host, *guest)?))))
            }
            Operation::List { from } => list(host, *from),
            Operation::Host { power } => {
                host.power = Some(*power);
                done
            }
        }
    }

    /// Copies the next piece of `source` into the guest.
    fn copy<C: Control>(
        &mut self,
        host: &mut Host<'_, C, F>,
        guest: GuestId,
        address: u32,
        source: &guest_memory::Source<'_>,
    ) -> Result<Option<Outcome<'static>>, Failure> {
        let (xen, id, done) = (host.xen, guest_id(guest), self.done);
        let mut during = || host.poll();
        match guest_memory::copy_step(xen, id, address, source, done, &mut during)? {
            Copied::All => Ok(Some(Outcome::Done)),
            Copied::UpTo(done) => {
                self.done = done;
                Ok(None)
            }
        }
    }
}

/// What this host allows, from the system description.
fn limits() -> api::Limits {
    api::Limits { first_guest: system::SYSTEM.limits.first_guest_domid, ..api::Limits::default() }
}

fn read_archive<'b>(
    archive: &Archive<'_>,
    entry: &str,
    offset: u32,
    len: u32,
    bytes: &'b mut [u8; MAX_BYTES],
) -> Result<Option<Outcome<'b>>, Failure> {
    let content = archive.entry(entry).map_err(|_| Failure::NoEntry)?.bytes();
    let start = (offset as usize).min(content.len());
    let end = (start + len as usize).min(content.len());
    let read = &mut bytes[..end - start];
    read.copy_from_slice(&content[start..end]);
    Ok(Some(Outcome::Bytes { entry_len: content.len() as u32, bytes: read }))
}

fn guest_id(guest: GuestId) -> DomId {
    DomId::from(guest)
}

/// What Xen knows of a guest that has a slot.
fn known<C: Control, F: SharedMemory + Copy>(
    host: &Host<'_, C, F>,
    guest: GuestId,
) -> Result<DomainInfo, Failure> {
    host.slots.find(guest_id(guest)).ok_or(Failure::NoGuest)?;
    host.xen.domain_info(guest_id(guest))?.ok_or(Failure::NoGuest)
}

fn create<C: Control, F: SharedMemory + Copy>(
    host: &mut Host<'_, C, F>,
    guest: GuestId,
    limits: &api::GuestLimits,
) -> Result<Option<Outcome<'static>>, Failure> {
    let id = guest_id(guest);
    let slot = host.slots.find(id);
    if let Some(info) = host.xen.domain_info(id)? {
        // Ours, and nothing was done with it yet: the request was executed before.
        let is_new = slot.is_some() && info.pages == 0;
        return if is_new { Ok(Some(Outcome::Done)) } else { Err(Failure::Exists) };
    }
    let slot = slot.or_else(|| host.slots.take(id)).ok_or(Failure::NoSlot)?;
    let what = CreateDomain {
        pvh: true,
        vcpus: u32::from(limits.vcpus),
        max_memory_kib: u64::from(limits.pages) * (abi::PAGE_SIZE as u64 / 1024),
        max_port: limits.max_port,
        grant_frames: limits.grant_frames,
        maptrack_frames: GUEST_MAPTRACK_FRAMES,
    };
    if let Err(error) = host.xen.create_domain(id, &what) {
        host.slots.free(slot);
        return Err(error.into());
    }
    host.domains_changed();
    Ok(Some(Outcome::Done))
}

/// Pages per extent where the range allows it: Xen looks at events between two extents.
const EXTENT_ORDER: u32 = 4;
/// Extents per hypercall. Events are served inside, but the recovery of a unit that needs more than
/// a microreset begins only behind it.
const MAX_EXTENTS: usize = 4;

/// Gives the guest the rest of `first_gfn..first_gfn + pages`: what it has beyond `before` is done.
fn populate<C: Control, F: SharedMemory + Copy>(
    host: &mut Host<'_, C, F>,
    guest: GuestId,
    have: u64,
    before: u32,
    first_gfn: u32,
    pages: u32,
) -> Result<Option<Outcome<'static>>, Failure> {
    let done = have.checked_sub(u64::from(before)).ok_or(Failure::WrongState)?;
    if done > u64::from(pages) {
        return Err(Failure::WrongState);
    }
    let missing = pages - done as u32;
    if missing == 0 {
        return Ok(Some(Outcome::Done));
    }
    let next = first_gfn + done as u32;
    let size = 1 << EXTENT_ORDER;
    let large = next.is_multiple_of(size) && missing >= size;
    let (order, step) = if large { (EXTENT_ORDER, size) } else { (0, 1) };
    let count = ((missing / step) as usize).min(MAX_EXTENTS);
    let mut extents = [Frame(0); MAX_EXTENTS];
    for (extent, gfn) in extents[..count].iter_mut().zip((next..).step_by(step as usize)) {
        *extent = Frame(u64::from(gfn));
    }
    let xen = host.xen;
    xen.populate(guest_id(guest), order, &mut extents[..count], &mut || host.poll())?;
    Ok(None)
}

fn connect<C: Control, F: SharedMemory + Copy>(
    host: &mut Host<'_, C, F>,
    guest: GuestId,
    port: abi::Port,
) -> Result<Option<Outcome<'static>>, Failure> {
    let slot = host.slots.find(guest_id(guest)).ok_or(Failure::NoGuest)?;
    let port = host.slots.connect(host.xen, &mut host.routes, slot, port)?;
    Ok(Some(Outcome::Port(port.0)))
}

/// Which way a guest's pause goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pausing {
    Pause,
    Unpause,
}

fn set_paused<C: Control, F: SharedMemory + Copy>(
    host: &mut Host<'_, C, F>,
    guest: GuestId,
    pausing: Pausing,
) -> Result<Option<Outcome<'static>>, Failure> {
    let info = known(host, guest)?;
    match pausing {
        Pausing::Pause if !info.paused => host.xen.pause(info.id)?,
        Pausing::Unpause if info.paused => host.xen.unpause(info.id)?,
        _ => {}
    }
    let slot = host.slots.find(info.id).ok_or(Failure::NoGuest)?;
    let is_new = host.slots.get(slot).is_some_and(|s| s.domain.state == DomainState::Building);
    if is_new && pausing == Pausing::Unpause {
        host.slots.set_state(slot, DomainState::Alive, 0);
        host.domains_changed();
    }
    Ok(Some(Outcome::Done))
}

fn destroy<C: Control, F: SharedMemory + Copy>(
    host: &mut Host<'_, C, F>,
    guest: GuestId,
) -> Result<Option<Outcome<'static>>, Failure> {
    let id = guest_id(guest);
    let Some(slot) = host.slots.find(id) else { return Ok(Some(Outcome::Done)) };
    if host.slots.set_state(slot, DomainState::Dying, 0) {
        host.domains_changed();
    }
    let xen = host.xen;
    host.slots.disconnect(xen, &mut host.routes, slot);
    match xen.destroy_domain(id, &mut || host.poll()) {
        Ok(()) | Err(XenError::NotFound) => {}
        Err(error) => return Err(error.into()),
    }
    if xen.domain_info(id)?.is_some() {
        return Err(Failure::StillMapped);
    }
    host.slots.free(slot);
    host.domains_changed();
    Ok(Some(Outcome::Done))
}

fn status(guest: GuestId, info: &DomainInfo) -> GuestStatus {
    let state = match info.state {
        abi::DomainState::Alive if info.paused => GuestState::Paused,
        abi::DomainState::Alive => GuestState::Running,
        abi::DomainState::Shutdown(reason) => GuestState::Shutdown(reason.code()),
        abi::DomainState::Dying => GuestState::Dying,
    };
    GuestStatus { guest, state, pages: info.pages as u32, cpu_time_ns: info.cpu_time_ns }
}

/// Guests from a number on, by rising number.
fn list<C: Control, F: SharedMemory + Copy>(
    host: &Host<'_, C, F>,
    from: GuestId,
) -> Result<Option<Outcome<'static>>, Failure> {
    let mut guests = Statuses::new();
    let mut from = from.0;
    loop {
        let next =
            host.slots.used().map(|(_, slot)| slot.domain.domid).filter(|id| *id >= from).min();
        let Some(domid) = next else { return Ok(Some(Outcome::Guests { guests, more: false })) };
        if guests.len() == MAX_STATUSES {
            return Ok(Some(Outcome::Guests { guests, more: true }));
        }
        if let Some(info) = host.xen.domain_info(DomId(domid))? {
            // There is room: checked above.
            let _ = guests.push(status(GuestId(domid), &info));
        }
        from = domid + 1;
    }
}
