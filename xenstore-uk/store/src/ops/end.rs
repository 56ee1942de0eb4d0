//! TRANSACTION_END in a replicated store. What a transaction read and changed is known to the
//! leader alone; so the leader decides, while nothing else is under way, and its decision, with
//! all changes, is what the replicas execute.
//!
//! ```text
//! u16 length, the message of TRANSACTION_END
//! u8  0 = committed, else 1 + place of the error in `Errno::ALL`
//! u32 number of changes, then for each, in the order of the paths:
//!     u16 length, path; u32 order; u8 events: 0 none, 1 subtree, 2 exact
//!     u8  1 = there was a node, then its permissions
//!     u8  1 = there is a node, then its permissions; u16 length, its value
//! permissions: u16 number, then u16 domid, u8 letter each
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;
use wire::{Access, Errno, HEADER_LEN, Header, Permission, text};

use crate::codec::{Reader, Writer};
use crate::effects::Effects;
use crate::ops::transactions::{Decided, Outcome, decided};
use crate::quota::Quota;
use crate::request::{Reply, Request};
use crate::state::{Call, State};
use crate::watch::Match;

/// Most bytes of the changes of one transaction: several entries of the log, and a small part of
/// it. More is refused with ENOSPC.
pub(crate) const DECISION_MAX: usize = 48 * 1024;

/// A decision as an entry holds it.
struct Decision<'a> {
    request: Request<'a>,
    verdict: Result<Vec<Decided>, Errno>,
}

impl State {
    /// Decides about the transaction that `request` wants committed, and takes its changes out of
    /// it. `None`: the request asks for no commit of an open transaction, and is executed as any
    /// other.
    ///
    /// The state must be the one that the decision will be executed on.
    pub(crate) fn prepare_end(
        &mut self,
        request: &Request<'_>,
        message: &[u8],
        fx: &mut dyn Effects,
    ) -> Option<Vec<u8>> {
        let client = self.client(request.client)?;
        let call = Call::new(request, client);
        if text::only(call.payload) != Some(b"T") {
            return None;
        }
        let open = self.take_transaction(&call).ok()??;
        let id = open.id;
        let verdict = self.judge(&call, &open, fx).map(|()| decided(*open, fx));
        let bytes = encode(message, &verdict);
        // A place for it remains until the decision is executed.
        let (tree, generation) = (self.tree.clone(), self.committed + 1);
        let rest = crate::transaction::Transaction::new(id, &tree, generation, true);
        self.put_back(&call, Some(Box::new(rest)));
        Some(if bytes.len() > DECISION_MAX { encode(message, &Err(Errno::NoSpace)) } else { bytes })
    }

    /// Executes a decision. `None`: no leader of this version wrote it.
    pub(crate) fn apply_end(
        &mut self,
        client: u16,
        position: u32,
        bytes: &[u8],
        reply: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Option<bool> {
        let Decision { request, verdict } = decode(client, position, bytes)?;
        reply.clear();
        self.fault = None;
        let result = self.end(&request, verdict, reply, fx);
        let changed = result.is_ok();
        self.finish(&request, result, changed, reply, fx);
        Some(changed)
    }

    fn end(
        &mut self,
        request: &Request<'_>,
        verdict: Result<Vec<Decided>, Errno>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let client = self.client(request.client).ok_or(Errno::Invalid)?;
        let call = Call::new(request, client);
        self.take_transaction(&call)?.ok_or(Errno::NotFound)?;
        self.open_transactions -= 1;
        self.charge(call.domid, Quota::Transactions, -1);
        match verdict {
            Ok(decided) => {
                self.replay(decided, fx);
                out.acknowledge();
            }
            Err(error) => out.refuse(error),
        }
        Ok(())
    }

    /// What was done inside open transactions is not replicated: another leader does not know it.
    pub(crate) fn lose_transactions(&mut self) {
        for client in self.clients.iter_mut().flatten() {
            client.transactions.iter_mut().for_each(|open| open.lost = true);
        }
    }
}

/// The message of TRANSACTION_END that a decision begins with.
pub(crate) fn message_of(bytes: &[u8]) -> Option<&[u8]> {
    Reader::new(bytes).bytes()
}

fn encode(message: &[u8], verdict: &Result<Vec<Decided>, Errno>) -> Vec<u8> {
    let writer = Writer::new().bytes(message);
    let changes = match verdict {
        Ok(changes) => changes,
        Err(error) => {
            let place = Errno::ALL.iter().position(|other| other == error).unwrap_or(0);
            return writer.u8(1 + place as u8).finish();
        }
    };
    let mut writer = writer.u8(0).u32(changes.len() as u32);
    for change in changes {
        let events = match change.fires {
            None => 0,
            Some(Match::Subtree) => 1,
            Some(_) => 2,
        };
        writer = writer.bytes(&change.path).u32(change.order).u8(events);
        writer = match &change.before {
            Some(before) => write_permissions(writer.u8(1), before),
            None => writer.u8(0),
        };
        writer = match &change.outcome {
            Some(Outcome { permissions, value }) => {
                write_permissions(writer.u8(1), permissions).bytes(value)
            }
            None => writer.u8(0),
        };
    }
    writer.finish()
}

fn write_permissions(writer: Writer, permissions: &[Permission]) -> Writer {
    permissions.iter().fold(writer.u16(permissions.len() as u16), |writer, entry| {
        writer.u16(entry.domid).u8(entry.access.letter())
    })
}

fn decode(client: u16, position: u32, bytes: &[u8]) -> Option<Decision<'_>> {
    let mut reader = Reader::new(bytes);
    let (header, payload) = reader.bytes()?.split_first_chunk::<HEADER_LEN>()?;
    let request = Request { client, position, header: Header::parse(header), payload };
    let verdict = match reader.u8()? {
        0 => {
            let count = reader.u32()?;
            Ok((0..count).map(|_| read_change(&mut reader)).collect::<Option<Vec<_>>>()?)
        }
        place => Err(*Errno::ALL.get(usize::from(place) - 1)?),
    };
    Some(Decision { request, verdict })
}

fn read_change(reader: &mut Reader<'_>) -> Option<Decided> {
    let path = reader.bytes()?.into();
    let order = reader.u32()?;
    let fires = match reader.u8()? {
        0 => None,
        1 => Some(Match::Subtree),
        _ => Some(Match::Exact),
    };
    let before = if reader.u8()? == 1 { Some(read_permissions(reader)?) } else { None };
    let outcome = if reader.u8()? == 1 {
        let permissions = read_permissions(reader)?;
        Some(Outcome { permissions, value: reader.bytes()?.into() })
    } else {
        None
    };
    Some(Decided { path, order, fires, before, outcome })
}

fn read_permissions(reader: &mut Reader<'_>) -> Option<Box<[Permission]>> {
    let count = reader.u16()?;
    let mut entry = || {
        let domid = reader.u16()?;
        Some(Permission::new(domid, Access::from_letter(reader.u8()?)?))
    };
    (0..count).map(|_| entry()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn message() -> Vec<u8> {
        let operation = wire::Operation::TransactionEnd;
        let header = Header { operation, request: 3, transaction: 7, len: 2 };
        [&header.emit()[..], b"T\0"].concat()
    }

    #[test]
    fn decisions_come_back() {
        let permissions = vec![Permission::new(5, Access::NONE), Permission::new(6, Access::BOTH)];
        let change = Decided {
            path: (*b"/a").into(),
            order: 9,
            fires: Some(Match::Exact),
            before: Some(permissions.clone().into()),
            outcome: None,
        };
        let outcome = Outcome { permissions: permissions.into(), value: (*b"value").into() };
        let other = Decided { outcome: Some(outcome), before: None, fires: None, ..change.clone() };
        for verdict in [Ok(vec![change, other]), Ok(vec![]), Err(Errno::Again)] {
            let bytes = encode(&message(), &verdict);
            let back = decode(2, 40, &bytes).expect("what was encoded");
            assert_eq!(back.verdict, verdict);
            assert_eq!((back.request.client, back.request.position), (2, 40));
            assert_eq!(back.request.header.transaction, 7);
            assert_eq!(message_of(&bytes), Some(&message()[..]));
            assert!(decode(2, 40, &bytes[..bytes.len() - 1]).is_none());
        }
    }
}
