//! WATCH, UNWATCH, RESET_WATCHES.

use alloc::rc::Rc;
use alloc::vec::Vec;
use wire::ring::FEATURE_WATCH_DEPTH;
use wire::{Errno, text};

use crate::codec::{Reader, Writer};
use crate::effects::{Effects, Kind};
use crate::path::Special;
use crate::quota::Quota;
use crate::request::Reply;
use crate::state::{Call, State};
use crate::watch::{self, Sketch, Watch};

impl State {
    /// WATCH: the watch fires once at once.
    pub(crate) fn op_watch(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let mut strings = text::strings(call.payload);
        let sent = strings.next().ok_or(Errno::Invalid)?;
        let token = strings.next().ok_or(Errno::Invalid)?;
        let depth = match strings.next() {
            None => None,
            Some(depth) if self.features_of(call.domid) & FEATURE_WATCH_DEPTH != 0 => {
                Some(text::decimal(depth).ok_or(Errno::Invalid)?)
            }
            Some(_) => return Err(Errno::Invalid),
        };
        if strings.next().is_some() {
            return Err(Errno::Invalid);
        }
        self.with_name(call, sent, Special::Allowed, |state, name| {
            if state.watches.find(call.client, name.path, token).is_some() {
                return Err(Errno::Exists);
            }
            let used = state.domain_entry(call.domid).used(Quota::Watches);
            state.check_quota(call.domid, Quota::Watches, u64::from(used) + 1, fx)?;
            let memory = watch::memory(name.path, token);
            let used = state.domain_entry(call.domid).used(Quota::Memory);
            state.check_quota(call.domid, Quota::Memory, u64::from(used) + memory as u64, fx)?;
            if !fx.has_room(2, name.path.len() + token.len() + wire::MESSAGE_MAX) {
                return Err(Errno::NoSpace);
            }
            let watch = Watch {
                serial: state.committed + 1,
                client: call.client,
                path: name.path.into(),
                implicit: name.implicit as u16,
                token: token.into(),
                depth,
                record: state.records.take(),
            };
            fx.put(watch.record, Kind::Watch, &encode(&watch), &[]);
            fx.event_after_reply(call.client, watch.shown(&watch.path), token);
            state.add_watch(Rc::new(watch));
            Ok(())
        })?;
        out.acknowledge();
        Ok(())
    }

    /// UNWATCH.
    pub(crate) fn op_unwatch(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let mut strings = text::strings(call.payload);
        let (Some(sent), Some(token), None) = (strings.next(), strings.next(), strings.next())
        else {
            return Err(Errno::Invalid);
        };
        let watch = self.with_name(call, sent, Special::Allowed, |state, name| {
            state.watches.find(call.client, name.path, token).cloned().ok_or(Errno::NotFound)
        })?;
        self.remove_watch(&watch, fx);
        out.acknowledge();
        Ok(())
    }

    /// RESET_WATCHES: drops the caller's watches and transactions.
    pub(crate) fn op_reset_watches(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        self.drop_watches(call.client, fx);
        self.drop_transactions(call.client);
        out.acknowledge();
        Ok(())
    }

    /// Registers a watch in both indices and accounts it.
    pub(crate) fn add_watch(&mut self, watch: Rc<Watch>) {
        self.account_watches(watch.client, 1, watch.memory() as i64);
        self.register_watch(watch);
    }

    /// Accounts watches of a connection.
    pub(crate) fn account_watches(&mut self, client: u16, count: i64, memory: i64) {
        let Some(client) = self.client(client) else { return };
        let domid = client.domid;
        self.charge(domid, Quota::Watches, count);
        self.charge(domid, Quota::Memory, memory);
    }

    /// Registers a watch, accounted already, in both indices.
    pub(crate) fn register_watch(&mut self, watch: Rc<Watch>) {
        let Some(client) = self.client_mut(watch.client) else { return };
        client.watches.insert(watch.serial, watch.clone());
        self.watches.add(watch);
    }

    fn remove_watch(&mut self, watch: &Watch, fx: &mut dyn Effects) {
        fx.delete(watch.record);
        self.records.give(watch.record);
        self.watches.remove(watch);
        let Some(client) = self.client_mut(watch.client) else { return };
        client.watches.remove(&watch.serial);
        let domid = client.domid;
        self.charge(domid, Quota::Watches, -1);
        self.charge(domid, Quota::Memory, -(watch.memory() as i64));
    }

    /// Keeps a watch again whose durable form was damaged.
    pub(crate) fn put_watch_record(&mut self, record: u32, fx: &mut dyn Effects) {
        let mut watches = self.clients().flat_map(|(_, client)| client.watches.values());
        if let Some(watch) = watches.find(|watch| watch.record == record) {
            fx.put(record, Kind::Watch, &encode(watch), &[]);
        }
    }

    /// Gives the records of all watches to `fx`.
    pub(crate) fn put_watches(&self, fx: &mut dyn Effects) {
        for (_, client) in self.clients() {
            for watch in client.watches.values() {
                fx.put(watch.record, Kind::Watch, &encode(watch), &[]);
            }
        }
    }

    /// Removes all watches of a connection.
    pub(crate) fn drop_watches(&mut self, client: u16, fx: &mut dyn Effects) {
        let Some(found) = self.client(client) else { return };
        let watches: Vec<_> = found.watches.values().cloned().collect();
        watches.iter().for_each(|watch| self.remove_watch(watch, fx));
    }

    /// Drops all transactions of a connection.
    pub(crate) fn drop_transactions(&mut self, client: u16) {
        let Some(client) = self.client_mut(client) else { return };
        let domid = client.domid;
        let dropped = core::mem::take(&mut client.transactions).len();
        self.open_transactions -= dropped as u32;
        self.charge(domid, Quota::Transactions, -(dropped as i64));
    }
}

/// The durable record of a watch.
fn encode(watch: &Watch) -> Vec<u8> {
    Writer::new()
        .u64(watch.serial)
        .u16(watch.client)
        .u16(watch.implicit)
        .u8(u8::from(watch.depth.is_some()))
        .u32(watch.depth.unwrap_or(0))
        .bytes(&watch.path)
        .bytes(&watch.token)
        .finish()
}

/// What the index keeps of the durable record of a watch.
pub(crate) fn sketch(bytes: &[u8]) -> Option<Sketch> {
    let Fields { client, path, token, .. } = fields(bytes)?;
    Some(Sketch::new(client, path, token))
}

/// Reads the durable record of a watch.
pub(crate) fn decode(bytes: &[u8], record: u32) -> Option<Watch> {
    let Fields { serial, client, implicit, depth, path, token } = fields(bytes)?;
    let (path, token) = (path.into(), token.into());
    Some(Watch { serial, client, path, implicit, token, depth, record })
}

/// A watch as its durable record holds it.
struct Fields<'a> {
    serial: u64,
    client: u16,
    implicit: u16,
    depth: Option<u32>,
    path: &'a [u8],
    token: &'a [u8],
}

fn fields(bytes: &[u8]) -> Option<Fields<'_>> {
    let mut reader = Reader::new(bytes);
    let (serial, client, implicit) = (reader.u64()?, reader.u16()?, reader.u16()?);
    let has_depth = reader.u8()? != 0;
    let depth = Some(reader.u32()?).filter(|_| has_depth);
    let (path, token) = (reader.bytes()?, reader.bytes()?);
    Some(Fields { serial, client, implicit, depth, path, token })
}
