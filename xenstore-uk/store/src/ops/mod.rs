//! The operations, grouped by what they touch.

mod control;
mod domains;
pub(crate) mod end;
mod read;
mod settings;
mod sweep;
mod transactions;
mod watches;
mod write;

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use wire::{Access, Errno, Operation, Permission};

pub(crate) use watches::{decode as decode_watch, sketch as sketch_of_watch};

use crate::effects::Effects;
use crate::path::{self, Name, Special};
use crate::quota::{Quota, Strength};
use crate::request::{Reply, Request};
use crate::state::{Call, State};
use crate::transaction::Transaction;
use crate::tree::{Found, Tree};
use crate::watch::{Match, Watch};

impl State {
    /// Executes a request and writes its reply. Answers whether the state has changed in a way
    /// that must be kept: then the caller keeps the records that `fx` was given and commits.
    pub fn apply(
        &mut self,
        request: &Request<'_>,
        reply: &mut Reply,
        fx: &mut dyn Effects,
    ) -> bool {
        reply.clear();
        self.fault = None;
        let result = match self.client(request.client) {
            None => Err(Errno::Invalid),
            Some(client) => {
                let call = Call::new(request, client);
                self.dispatch(request.header.operation, call, reply, fx)
            }
        };
        let changed = result.is_ok() && !Self::is_read_only(request);
        self.finish(request, result, changed, reply, fx);
        changed
    }

    /// Completes the reply, and remembers it if the request has changed the state.
    pub(crate) fn finish(
        &mut self,
        request: &Request<'_>,
        result: Result<(), Errno>,
        changed: bool,
        reply: &mut Reply,
        fx: &mut dyn Effects,
    ) {
        reply.finish(&request.header, result);
        if changed {
            self.note_executed(request, reply);
            self.put_client(request.client, fx);
        }
    }

    fn dispatch(
        &mut self,
        operation: Operation,
        mut call: Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        use Operation as O;
        let needs_privilege = matches!(
            operation,
            O::Control
                | O::Introduce
                | O::Release
                | O::IsDomainIntroduced
                | O::Resume
                | O::SetTarget
                | O::SetFeature
                | O::GetQuota
                | O::SetQuota
        );
        if needs_privilege && !call.privileged {
            return Err(Errno::Access);
        }
        match operation {
            O::Watch => return self.op_watch(&call, out, fx),
            O::Unwatch => return self.op_unwatch(&call, out, fx),
            O::TransactionStart => return self.op_transaction_start(&call, out, fx),
            O::TransactionEnd => return self.op_transaction_end(&call, out, fx),
            O::WatchEvent | O::Error | O::Unknown(_) => return Err(Errno::NotSupported),
            _ => {}
        }
        let mut transaction = self.take_transaction(&call)?;
        let open = transaction.as_deref_mut();
        let result = match operation {
            O::Read => self.op_read(&call, open, out),
            O::Directory => self.op_directory(&call, open, out),
            O::DirectoryPart => self.op_directory_part(&call, open, out),
            O::GetPermissions => self.op_get_permissions(&call, open, out),
            O::Write => self.op_write(&call, open, out, fx),
            O::MakeDirectory => self.op_make_directory(&call, open, out, fx),
            O::Remove => self.op_remove(&call, open, out, fx),
            O::SetPermissions => self.op_set_permissions(&call, open, out, fx),
            _ => {
                self.put_back(&call, transaction.take());
                call.transaction = 0;
                return self.dispatch_other(operation, &call, out, fx);
            }
        };
        if let Some(open) = transaction.as_deref_mut() {
            self.check_transaction(&call, open, fx);
        }
        self.put_back(&call, transaction);
        result
    }

    fn dispatch_other(
        &mut self,
        operation: Operation,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        use Operation as O;
        match operation {
            O::Control => self.op_control(call, out, fx),
            O::Introduce => self.op_introduce(call, out, fx),
            O::Release => self.op_release(call, out, fx),
            O::GetDomainPath => self.op_get_domain_path(call, out),
            O::IsDomainIntroduced => self.op_is_introduced(call, out),
            O::Resume => self.op_resume(call, out, fx),
            O::SetTarget => self.op_set_target(call, out, fx),
            O::ResetWatches => self.op_reset_watches(call, out, fx),
            O::GetFeature => self.op_get_feature(call, out),
            O::SetFeature => self.op_set_feature(call, out, fx),
            O::GetQuota => self.op_get_quota(call, out),
            O::SetQuota => self.op_set_quota(call, out, fx),
            _ => Err(Errno::NotSupported),
        }
    }

    /// Resolves a name with the caller's limits and hands it to `act`, together with the state.
    pub(crate) fn with_name<R>(
        &mut self,
        call: &Call<'_>,
        sent: &[u8],
        special: Special,
        act: impl FnOnce(&mut Self, Name<'_>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let mut buffer = path::Buffer::new();
        let limit = self.path_limit(call);
        path::resolve(sent, call.domid, special, limit, &mut buffer)
            .and_then(|name| act(self, name))
    }

    fn path_limit(&self, call: &Call<'_>) -> usize {
        let limits = self.domains.get(&call.domid).map_or(&self.limits, |domain| &domain.limits);
        match limits.get(Quota::PathLength, Strength::Hard) {
            Some(limit) if limit != 0 && !call.privileged => limit as usize,
            _ => usize::MAX,
        }
    }

    /// The node at `path` in the transaction's tree or the live one, if the caller has `wanted`
    /// access to it. The errors tell nothing about nodes that the caller may not see.
    pub(crate) fn find<'t>(
        tree: &'t Tree,
        fault: &mut Option<crate::Fault>,
        call: &Call<'_>,
        path: &'t [u8],
        wanted: Access,
    ) -> Result<Found<'t>, Errno> {
        let found = tree.seek(path);
        if !found.is_intact() {
            *fault = Some(crate::Fault::Node);
            return Err(Errno::Io);
        }
        let allowed = call.access(found.node.permissions()).allows(wanted);
        match (found.is_whole(), allowed) {
            (true, true) => Ok(found),
            (false, true) => Err(Errno::NotFound),
            (_, false) => Err(Errno::Access),
        }
    }

    /// Fires the watches that a change at `path` concerns. `before` are permissions that the node
    /// had; what it has now, and its parent, are looked up.
    pub(crate) fn fire(
        &mut self,
        path: &[u8],
        kind: Match,
        before: Option<&[Permission]>,
        fx: &mut dyn Effects,
    ) {
        if self.watches.count() == 0 {
            return;
        }
        let mut found = core::mem::take(&mut self.found_watches);
        found.clear();
        self.watches.matching(path, kind, &mut found);
        self.deliver(&found, path, before, fx);
        self.found_watches = found;
    }

    /// Delivers an event to those of `watches` whose client may see the node.
    pub(crate) fn deliver(
        &self,
        watches: &[Rc<Watch>],
        path: &[u8],
        before: Option<&[Permission]>,
        fx: &mut dyn Effects,
    ) {
        if watches.is_empty() {
            return;
        }
        let seen = self.tree.seek(path);
        for watch in watches {
            let Some(call) = self.call_of(watch.client) else { continue };
            let may_see = call.privileged
                || before.is_some_and(|entries| call.access(entries.iter().copied()).read)
                || call.access(seen.node.permissions()).read
                || (seen.is_whole()
                    && seen.parent.is_some_and(|p| call.access(p.permissions()).read));
            if may_see {
                fx.event(watch.client, watch.shown(path), &watch.token);
            }
        }
    }

    /// Delivers one event to one watch again.
    pub(crate) fn deliver_one(
        &self,
        client: u16,
        watch: &Rc<Watch>,
        path: &[u8],
        fx: &mut dyn Effects,
    ) {
        if path.first() == Some(&b'@') {
            let index = Self::special_index(path.split(|byte| *byte == b'/').next().unwrap_or(b""));
            let entries = index.map(|index| self.special[index].iter().copied());
            if let (Some(call), Some(entries)) = (self.call_of(client), entries)
                && call.access(entries).read
            {
                fx.event(client, watch.shown(path), &watch.token);
            }
            return;
        }
        self.deliver(core::slice::from_ref(watch), path, None, fx);
    }

    /// A connection as a caller without a request.
    pub(crate) fn call_of(&self, client: u16) -> Option<Call<'static>> {
        self.client(client).map(|found| Call {
            client,
            domid: found.domid,
            target: found.target,
            privileged: found.privileged,
            transaction: 0,
            payload: &[],
        })
    }

    /// Fails a transaction that has outgrown a quota.
    fn check_transaction(&mut self, call: &Call<'_>, open: &mut Transaction, fx: &mut dyn Effects) {
        let touched = u64::from(open.touched());
        let bytes = self.transaction_bytes(call) + open.bytes() as u64;
        let used = self.domain(call.domid).map_or(0, |domain| domain.used(Quota::Memory));
        if self.check_quota(call.domid, Quota::TransactionNodes, touched, fx).is_err()
            || self.check_quota(call.domid, Quota::Memory, bytes + u64::from(used), fx).is_err()
        {
            open.failed = true;
        }
    }

    /// Bytes that the caller's open transactions take.
    pub(crate) fn transaction_bytes(&self, call: &Call<'_>) -> u64 {
        self.client(call.client)
            .map_or(0, |client| client.transactions.iter().map(|open| open.bytes() as u64).sum())
    }
}

/// An open transaction on its way through an operation.
pub(crate) type Open<'a> = Option<&'a mut Transaction>;

/// A list of permission entries on the heap.
pub(crate) fn entries(node: &crate::node::Node) -> Box<[Permission]> {
    node.permissions().collect::<Vec<_>>().into_boxed_slice()
}
