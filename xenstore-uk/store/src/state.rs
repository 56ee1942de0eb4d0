//! The state of the store, and how a request changes it.
//!
//! What is here is a deterministic function of the state and the request: no clock, no
//! randomness, no memory shared with anybody. Reading rings, keeping records and delivering
//! events are the caller's business ([`Effects`]).

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use wire::{Access, Errno, Operation, Permission};

use crate::domain::{Client, Domain, Origin, Session, Sweep};
use crate::effects::{Action, Effects, Kind};
use crate::node::Node;
use crate::path::{INTRODUCE_DOMAIN, RELEASE_DOMAIN};
use crate::quota::{Limits, Quota, Strength};
use crate::request::{Reply, Request};
use crate::transaction::Transaction;
use crate::tree::Tree;
use crate::watch::{Watch, WatchIndex};
use crate::{Config, Fault};

/// Most connections at once: what a u16 slot of the domain table can name, bounded by the memory
/// that areas take.
pub const CLIENTS_MAX: usize = 2048;

/// Most open transactions of a privileged connection, which no quota limits: their numbers must
/// fit its durable record.
pub const PRIVILEGED_TRANSACTIONS_MAX: usize = 64;

/// Commits whose makers are remembered.
const WRITERS: usize = 256;

/// Records that exist in every store: the root's node and the settings.
pub(crate) const SETTINGS_RECORD: u32 = 2;
pub(crate) const FIRST_FREE_RECORD: u32 = 3;

/// Numbers of durable records.
#[derive(Debug)]
pub(crate) struct Records {
    pub(crate) next: u32,
    pub(crate) free: Vec<u32>,
    /// Dropped by the request at hand: free after its commit, so that no commit holds two
    /// contents of one record.
    pub(crate) dropped: Vec<u32>,
}

impl Records {
    pub(crate) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    pub(crate) fn give(&mut self, record: u32) {
        self.dropped.push(record);
    }

    fn settle(&mut self) {
        self.free.append(&mut self.dropped);
    }
}

/// The state.
#[derive(Debug)]
pub struct State {
    pub(crate) config: Config,
    pub(crate) tree: Tree,
    /// Permissions of @introduceDomain and @releaseDomain.
    pub(crate) special: [Vec<Permission>; 2],
    pub(crate) watches: WatchIndex,
    pub(crate) domains: BTreeMap<u16, Domain>,
    pub(crate) clients: Vec<Option<Box<Client>>>,
    pub(crate) sweeps: VecDeque<Sweep>,
    pub(crate) limits: Limits,
    pub(crate) peak: [u32; crate::quota::QUOTAS],
    /// Number of the last commit; also the generation of what it changed.
    pub(crate) committed: u64,
    pub(crate) records: Records,
    pub(crate) fault: Option<Fault>,
    pub(crate) conflicts: u64,
    /// Who made the last commits: conflicts with oneself are one's own fault.
    pub(crate) writers: [u16; WRITERS],
    pub(crate) open_transactions: u32,
    /// A buffer that requests use one after the other.
    pub(crate) found_watches: Vec<Rc<Watch>>,
}

/// Who asks, and what, as the operations see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub client: u16,
    pub domid: u16,
    pub target: Option<u16>,
    pub privileged: bool,
    pub transaction: u32,
    pub payload: &'a [u8],
}

impl<'a> Call<'a> {
    /// A request of a connection.
    pub fn new(request: &Request<'a>, client: &Client) -> Self {
        Self {
            client: request.client,
            domid: client.domid,
            target: client.target,
            privileged: client.privileged,
            transaction: request.header.transaction,
            payload: request.payload,
        }
    }
}

impl Call<'_> {
    fn is(&self, domid: u16) -> bool {
        domid == self.domid || self.target == Some(domid) || domid == wire::DOMID_ANY
    }

    /// What the caller may do with a node of these permissions.
    pub fn access(&self, mut permissions: impl Iterator<Item = Permission>) -> Access {
        let Some(owner) = permissions.next() else { return Access::NONE };
        if self.privileged || self.is(owner.domid) {
            return Access::BOTH;
        }
        permissions.find(|entry| self.is(entry.domid)).map_or(owner.access, |entry| entry.access)
    }

    /// Whether the caller may change the permissions of a node.
    pub fn owns(&self, mut permissions: impl Iterator<Item = Permission>) -> bool {
        self.privileged || permissions.next().is_some_and(|owner| self.is(owner.domid))
    }
}

impl State {
    /// An empty store: the root, `/tool/xenstored`, and the special names.
    pub fn new(config: &Config) -> Self {
        let owner = Permission::new(config.owner, Access::NONE);
        let public = Permission::new(wire::DOMID_ANY, Access::READ);
        let mut state = Self {
            config: config.clone(),
            tree: Tree::new(&[owner], config.key),
            special: [Vec::from([owner]), Vec::from([owner, public])],
            watches: WatchIndex::default(),
            domains: BTreeMap::new(),
            clients: Vec::new(),
            sweeps: VecDeque::new(),
            limits: Limits::default(),
            peak: [0; crate::quota::QUOTAS],
            committed: 0,
            records: Records { next: FIRST_FREE_RECORD, free: Vec::new(), dropped: Vec::new() },
            fault: None,
            conflicts: 0,
            writers: [u16::MAX; WRITERS],
            open_transactions: 0,
            found_watches: Vec::new(),
        };
        state.charge(config.owner, Quota::Nodes, 1);
        state
    }

    /// Writes the records of an empty store.
    pub(crate) fn found(&mut self, fx: &mut dyn Effects) {
        fx.put(crate::tree::ROOT_RECORD, Kind::Node, &node_head(self.tree.root()), {
            self.tree.root().body().0
        });
        self.put_settings(fx);
        let owner = [Permission::new(self.config.owner, Access::NONE)];
        for (parent, name) in [(&b"/"[..], &b"tool"[..]), (b"/tool", b"xenstored")] {
            let generation = self.committed + 1;
            self.add_node(parent, name, &owner, b"", generation, fx);
        }
    }

    /// Whether the request is answered without a change that has to be kept.
    pub fn is_read_only(request: &Request<'_>) -> bool {
        use Operation as O;
        match request.header.operation {
            O::Read
            | O::Directory
            | O::DirectoryPart
            | O::GetPermissions
            | O::GetDomainPath
            | O::IsDomainIntroduced
            | O::GetFeature
            | O::GetQuota
            | O::WatchEvent
            | O::Error
            | O::Unknown(_) => true,
            // Inside a transaction they change its snapshot alone.
            O::Write | O::MakeDirectory | O::Remove | O::SetPermissions => {
                request.header.transaction != 0
            }
            _ => false,
        }
    }

    /// Whether the request is answered without changing anything in memory, not even for a
    /// moment: a crash in its middle leaves the state whole.
    pub fn is_harmless(request: &Request<'_>) -> bool {
        use Operation as O;
        request.header.transaction == 0
            && matches!(
                request.header.operation,
                O::Read | O::GetPermissions | O::IsDomainIntroduced | O::GetFeature
            )
    }

    /// Number of the last commit.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Makes the changes of the last request those of the past. The caller has kept them.
    pub fn commit(&mut self) {
        self.committed += 1;
        self.records.settle();
    }

    /// Equal for equal trees at an equal commit.
    pub fn digest(&self) -> u64 {
        self.tree.digest()
    }

    /// The live tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Number of watches.
    pub fn watch_count(&self) -> usize {
        self.watches.count()
    }

    /// Damage found while answering the last request, if any: then its answer must not be sent.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// A connection.
    pub fn client(&self, client: u16) -> Option<&Client> {
        self.clients.get(usize::from(client))?.as_deref()
    }

    pub(crate) fn client_mut(&mut self, client: u16) -> Option<&mut Client> {
        self.clients.get_mut(usize::from(client))?.as_deref_mut()
    }

    /// All connections with their numbers.
    pub fn clients(&self) -> impl Iterator<Item = (u16, &Client)> {
        self.clients
            .iter()
            .enumerate()
            .filter_map(|(number, client)| client.as_deref().map(|client| (number as u16, client)))
    }

    /// A domain.
    pub fn domain(&self, domid: u16) -> Option<&Domain> {
        self.domains.get(&domid)
    }

    /// Whether a domain may do everything.
    pub fn is_privileged(&self, domid: u16) -> bool {
        self.config.privileged.contains(&domid)
    }

    /// Opens a connection for the shell: a service's ring or a socket. A second call for the same
    /// domain opens a second one. `None` if all connections are taken.
    pub fn open(&mut self, domid: u16, fx: &mut dyn Effects) -> Option<u16> {
        let client = self.new_client(domid, Origin::Shell, fx)?;
        self.put_client(client, fx);
        Some(client)
    }

    /// Closes a connection that the shell opened: watches and transactions go, nodes stay.
    pub fn close(&mut self, client: u16, fx: &mut dyn Effects) {
        self.reset_client(client, fx);
        if let Some(gone) = self.clients.get_mut(usize::from(client)).and_then(Option::take) {
            fx.delete(gone.record);
            fx.disconnect(client);
            self.records.give(gone.record);
        }
    }

    pub(crate) fn new_client(
        &mut self,
        domid: u16,
        origin: Origin,
        fx: &mut dyn Effects,
    ) -> Option<u16> {
        let free = self.clients.iter().position(Option::is_none);
        let number = match free {
            Some(number) => number,
            None if self.clients.len() < self.config.clients.min(CLIENTS_MAX) => {
                self.clients.push(None);
                self.clients.len() - 1
            }
            None => return None,
        };
        let client = Client {
            domid,
            origin,
            life: self.committed + 1,
            privileged: self.is_privileged(domid),
            target: None,
            session: Session::default(),
            watches: BTreeMap::new(),
            transactions: Vec::new(),
            conflicts: 0,
            next_transaction: 1,
            record: self.records.take(),
        };
        fx.connect(number as u16, client.life);
        self.clients[number] = Some(Box::new(client));
        Some(number as u16)
    }

    /// Drops watches, transactions and the last reply of a connection.
    pub(crate) fn reset_client(&mut self, client: u16, fx: &mut dyn Effects) {
        self.drop_watches(client, fx);
        self.drop_transactions(client);
        if let Some(client) = self.client_mut(client) {
            client.session = Session::default();
        }
    }

    /// Forgets the last request of a connection. Answers whether there was one.
    pub(crate) fn forget_session(&mut self, client: u16, fx: &mut dyn Effects) -> bool {
        let had = self
            .client_mut(client)
            .is_some_and(|client| core::mem::take(&mut client.session) != Session::default());
        if had {
            self.put_client(client, fx);
        }
        had
    }

    /// Starts a new life of a connection after its ring was reset.
    pub fn restart_client(&mut self, client: u16, fx: &mut dyn Effects) {
        self.reset_client(client, fx);
        let life = self.committed + 1;
        if let Some(found) = self.client_mut(client) {
            found.life = life;
            fx.connect(client, life);
        }
        self.put_client(client, fx);
    }

    pub(crate) fn put_client(&mut self, number: u16, fx: &mut dyn Effects) {
        if let Some(client) = self.client(number) {
            fx.put(client.record, Kind::Client, &client.encode(number), &[]);
        }
    }

    /// Remembers that a request was executed, with its reply.
    pub(crate) fn note_executed(&mut self, request: &Request<'_>, reply: &Reply) {
        self.writers[(self.committed + 1) as usize % WRITERS] = request.client;
        if let Some(client) = self.client_mut(request.client) {
            client.session.position = Some(request.position);
            client.session.consumed = request.message_len() as u32;
            client.session.reply.clear();
            client.session.reply.extend_from_slice(reply.message());
        }
    }

    pub(crate) fn put_settings(&mut self, fx: &mut dyn Effects) {
        let mut writer = crate::codec::Writer::new();
        for limit in self.limits.raw() {
            writer = writer.u32(limit);
        }
        for permissions in &self.special {
            writer = writer.u16(permissions.len() as u16);
            for entry in permissions {
                writer = writer.u16(entry.domid).u8(entry.access.letter());
            }
        }
        fx.put(SETTINGS_RECORD, Kind::Settings, &writer.finish(), &[]);
    }

    /// Who made a commit, as far as that is remembered.
    pub(crate) fn writer(&self, commit: u64) -> Option<u16> {
        let is_recent = commit <= self.committed && commit + WRITERS as u64 > self.committed;
        is_recent.then(|| self.writers[commit as usize % WRITERS])
    }

    /// The entry of a domain, made on demand.
    pub(crate) fn domain_entry(&mut self, domid: u16) -> &mut Domain {
        let (limits, features) = (self.limits, self.config.features);
        self.domains.entry(domid).or_insert_with(|| Domain::new(limits, features))
    }

    pub(crate) fn put_domain(&mut self, domid: u16, fx: &mut dyn Effects) {
        let record = match self.domain_entry(domid).record {
            0 => self.records.take(),
            record => record,
        };
        let domain = self.domain_entry(domid);
        domain.record = record;
        fx.put(record, Kind::Domain, &domain.encode(domid), &[]);
    }

    /// Accounts a change of what a domain uses.
    pub(crate) fn charge(&mut self, domid: u16, quota: Quota, change: i64) {
        let privileged = self.is_privileged(domid);
        let domain = self.domain_entry(domid);
        domain.charge(quota, change);
        let used = domain.used(quota);
        if !privileged {
            let peak = &mut self.peak[quota as usize];
            *peak = (*peak).max(used);
        }
    }

    /// Checks what a domain would use of a quota against its limits.
    pub(crate) fn check_quota(
        &mut self,
        domid: u16,
        quota: Quota,
        value: u64,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        if self.is_privileged(domid) {
            return Ok(());
        }
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        let domain = self.domain_entry(domid);
        let mut exceeded = false;
        for (strength, shift) in [(Strength::Hard, 0), (Strength::Soft, 16)] {
            let bit = 1u32 << (quota as u32 + shift);
            let over = domain.limits.exceeded(quota, strength, value);
            if over && domain.reported & bit == 0 {
                domain.reported |= bit;
                fx.act(Action::LimitReached { domid, quota, strength });
            } else if !over {
                domain.reported &= !bit;
            }
            exceeded |= over && strength == Strength::Hard;
        }
        match (exceeded, quota) {
            (false, _) => Ok(()),
            (true, Quota::Memory) => Err(Errno::NoMemory),
            (true, _) => Err(Errno::NoSpace),
        }
    }

    /// Index of a special name in [`State::special`].
    pub(crate) fn special_index(name: &[u8]) -> Option<usize> {
        match name {
            INTRODUCE_DOMAIN => Some(0),
            RELEASE_DOMAIN => Some(1),
            _ => None,
        }
    }

    pub(crate) fn take_transaction(
        &mut self,
        call: &Call<'_>,
    ) -> Result<Option<Box<Transaction>>, Errno> {
        if call.transaction == 0 {
            return Ok(None);
        }
        let client = self.client_mut(call.client).ok_or(Errno::NotFound)?;
        let at = client.transactions.iter().position(|open| open.id == call.transaction);
        at.map(|at| Some(client.transactions.swap_remove(at))).ok_or(Errno::NotFound)
    }

    pub(crate) fn put_back(&mut self, call: &Call<'_>, transaction: Option<Box<Transaction>>) {
        if let (Some(client), Some(transaction)) = (self.client_mut(call.client), transaction) {
            client.transactions.push(transaction);
        }
    }
}

/// The fixed part of a node's durable record.
pub(crate) fn node_head(node: &Node) -> [u8; NODE_HEAD_LEN] {
    let (_, name_len, permissions) = node.body();
    let mut head = [0; NODE_HEAD_LEN];
    head[0..8].copy_from_slice(&node.sum.to_le_bytes());
    head[8..16].copy_from_slice(&node.generation.to_le_bytes());
    head[16..20].copy_from_slice(&node.parent.to_le_bytes());
    head[20..22].copy_from_slice(&name_len.to_le_bytes());
    head[22..24].copy_from_slice(&permissions.to_le_bytes());
    head[24..28].copy_from_slice(&node.priority.to_le_bytes());
    head
}

/// Length of the fixed part of a node's durable record.
pub(crate) const NODE_HEAD_LEN: usize = 28;
