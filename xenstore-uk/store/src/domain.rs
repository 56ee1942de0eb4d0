//! What the state knows of domains and of connections.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::codec::{Reader, Writer};
use crate::quota::{Limits, QUOTAS, Quota};
use crate::transaction::Transaction;
use crate::watch::Watch;

/// How a domain is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Frame of its ring page.
    pub gfn: u64,
    /// Its event channel port.
    pub port: u32,
    /// Its connection.
    pub client: u16,
}

/// A domain that was introduced, configured, or owns nodes.
#[derive(Clone, Debug)]
pub struct Domain {
    /// How it is connected, once it is introduced.
    pub introduced: Option<Introduction>,
    /// Features offered to it.
    pub features: u32,
    /// Its limits.
    pub limits: Limits,
    /// Whether it has been reported as shut down.
    pub shut_down: bool,
    /// The domain it serves.
    pub target: Option<u16>,
    /// Commit that introduced it.
    pub since: u64,
    /// Durable record; 0 as long as there is nothing to keep.
    pub record: u32,
    /// What it uses of each quota now.
    pub usage: [u32; QUOTAS],
    /// The most it has used.
    pub peak: [u32; QUOTAS],
    /// Limits that were reported as reached, a bit each, soft ones above the hard ones.
    pub reported: u32,
}

impl Domain {
    /// A domain with the global limits.
    pub fn new(limits: Limits, features: u32) -> Self {
        Self {
            introduced: None,
            features,
            limits,
            shut_down: false,
            target: None,
            since: 0,
            record: 0,
            usage: [0; QUOTAS],
            peak: [0; QUOTAS],
            reported: 0,
        }
    }

    /// Adds to what it uses of a quota.
    pub fn charge(&mut self, quota: Quota, change: i64) {
        let usage = i64::from(self.usage[quota as usize]).saturating_add(change);
        let usage = usage.clamp(0, i64::from(u32::MAX)) as u32;
        self.usage[quota as usize] = usage;
        self.observe(quota, usage);
    }

    /// Notes a value that is not a sum, such as the length of a path.
    pub fn observe(&mut self, quota: Quota, value: u32) {
        let peak = &mut self.peak[quota as usize];
        *peak = (*peak).max(value);
    }

    /// What it uses of a quota.
    pub fn used(&self, quota: Quota) -> u32 {
        self.usage[quota as usize]
    }

    /// The durable record.
    pub fn encode(&self, domid: u16) -> Vec<u8> {
        let connection = self.introduced.unwrap_or(Introduction { gfn: 0, port: 0, client: 0 });
        let mut writer = Writer::new()
            .u16(domid)
            .u8(u8::from(self.introduced.is_some()))
            .u8(u8::from(self.shut_down))
            .u64(connection.gfn)
            .u32(connection.port)
            .u16(connection.client)
            .u32(self.features)
            .u64(self.since)
            .u32(self.target.map_or(u32::MAX, u32::from));
        for limit in self.limits.raw() {
            writer = writer.u32(limit);
        }
        writer.finish()
    }

    /// Reads a durable record.
    pub fn decode(bytes: &[u8], record: u32) -> Option<(u16, Self)> {
        let mut reader = Reader::new(bytes);
        let domid = reader.u16()?;
        let is_introduced = reader.u8()? != 0;
        let shut_down = reader.u8()? != 0;
        let connection =
            Introduction { gfn: reader.u64()?, port: reader.u32()?, client: reader.u16()? };
        let features = reader.u32()?;
        let since = reader.u64()?;
        let target = u16::try_from(reader.u32()?).ok();
        let limits = Limits::from_raw(&mut core::iter::from_fn(|| reader.u32()))?;
        let introduced = is_introduced.then_some(connection);
        let domain =
            Self { introduced, shut_down, target, since, record, ..Self::new(limits, features) };
        Some((domid, domain))
    }
}

/// How a connection came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By INTRODUCE of a domain.
    Introduced,
    /// By the shell: a service's ring, a socket.
    Shell,
}

/// The last request of a connection that changed the state, with its reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Where the request begins in the connection's stream; `None` before the first.
    pub position: Option<u32>,
    /// Length of the request in bytes.
    pub consumed: u32,
    /// The whole reply.
    pub reply: Vec<u8>,
}

/// A connection as the state sees it.
#[derive(Debug)]
pub struct Client {
    /// The domain at the other end.
    pub domid: u16,
    /// How it came about.
    pub origin: Origin,
    /// Which life of this connection number this is: the commit that began it, or that reset it.
    pub life: u64,
    /// Whether it may do everything.
    pub privileged: bool,
    /// The domain whose rights it has beside its own.
    pub target: Option<u16>,
    /// Its last change.
    pub session: Session,
    /// Its watches in the order of registration.
    pub watches: BTreeMap<u64, Rc<Watch>>,
    /// Its open transactions.
    pub transactions: Vec<Box<Transaction>>,
    /// Transactions in a row that ended in a conflict with others.
    pub conflicts: u32,
    /// Number for its next transaction.
    pub next_transaction: u32,
    /// Durable record.
    pub record: u32,
}

impl Client {
    /// The durable record.
    pub fn encode(&self, client: u16) -> Vec<u8> {
        let mut writer = Writer::new()
            .u16(client)
            .u16(self.domid)
            .u8(u8::from(self.origin == Origin::Introduced))
            .u8(u8::from(self.session.position.is_some()))
            .u64(self.life)
            .u32(self.session.position.unwrap_or(0))
            .u32(self.session.consumed)
            .bytes(&self.session.reply)
            .u32(self.next_transaction)
            .u16(self.transactions.len() as u16);
        for transaction in &self.transactions {
            writer = writer.u32(transaction.id);
        }
        writer.finish()
    }

    /// Reads a durable record: connection number, connection without watches and transactions,
    /// numbers of the transactions that were open.
    pub fn decode(bytes: &[u8], record: u32) -> Option<(u16, Self, Vec<u32>)> {
        let mut reader = Reader::new(bytes);
        let number = reader.u16()?;
        let domid = reader.u16()?;
        let origin = if reader.u8()? != 0 { Origin::Introduced } else { Origin::Shell };
        let has_session = reader.u8()? != 0;
        let life = reader.u64()?;
        let position = reader.u32()?;
        let consumed = reader.u32()?;
        let reply = reader.bytes()?.to_vec();
        let next_transaction = reader.u32()?;
        let open = reader.u16()?;
        let transactions = (0..open).map(|_| reader.u32()).collect::<Option<Vec<u32>>>()?;
        let session = Session { position: has_session.then_some(position), consumed, reply };
        let client = Self {
            domid,
            origin,
            life,
            privileged: false,
            target: None,
            session,
            watches: BTreeMap::new(),
            transactions: Vec::new(),
            conflicts: 0,
            next_transaction,
            record,
        };
        Some((number, client, transactions))
    }
}

/// The nodes of a domain that is gone, on their way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// The domain.
    pub domid: u16,
    /// How far the walk over the tree has come.
    pub cursor: Vec<u8>,
    /// Durable record, so that the sweep begins again after a crash.
    pub record: u32,
}
