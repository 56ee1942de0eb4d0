//! Domains come, are served, and go.

use alloc::vec::Vec;
use wire::{DOMID_FIRST_RESERVED, DOMID_SELF, Errno, text};

use crate::domain::{Introduction, Origin, Sweep};
use crate::effects::{Action, Effects, Kind};
use crate::path::{self, INTRODUCE_DOMAIN, RELEASE_DOMAIN};
use crate::request::Reply;
use crate::state::{Call, State};
use crate::watch::Match;

impl State {
    /// INTRODUCE: the store serves a domain from now on. Of a known domain it resets the
    /// connection and rebinds the event channel.
    pub(crate) fn op_introduce(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let mut strings = text::strings(call.payload);
        let (Some(domid), Some(gfn), Some(port)) = (strings.next(), strings.next(), strings.next())
        else {
            return Err(Errno::Invalid);
        };
        let domid = text::domid(domid).ok_or(Errno::Invalid)?;
        let gfn = text::frame(gfn).ok_or(Errno::Invalid)?;
        let port = text::decimal(port).filter(|port| *port > 0).ok_or(Errno::Invalid)?;
        if domid >= DOMID_FIRST_RESERVED {
            return Err(Errno::Invalid);
        }
        let known = self.domain_entry(domid).introduced;
        if let Some(known) = known {
            self.restart_client(known.client, fx);
            self.domain_entry(domid).introduced = Some(Introduction { gfn, port, ..known });
            self.domain_entry(domid).shut_down = false;
            self.put_domain(domid, fx);
            fx.act(Action::Rebind { client: known.client, domid, port });
        } else {
            // The former life's nodes must be gone before a new one may be taken for it.
            self.finish_sweep(domid, fx)?;
            let client = self.new_client(domid, Origin::Introduced, fx).ok_or(Errno::NoSpace)?;
            let since = self.committed + 1;
            let domain = self.domain_entry(domid);
            domain.introduced = Some(Introduction { gfn, port, client });
            domain.shut_down = false;
            domain.since = since;
            self.put_domain(domid, fx);
            self.put_client(client, fx);
            fx.act(Action::Connect { client, domid, gfn, port });
            self.fire_special(INTRODUCE_DOMAIN, domid, fx);
        }
        out.acknowledge();
        Ok(())
    }

    /// RELEASE: the store forgets a domain.
    pub(crate) fn op_release(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let domid = self.introduced_domid(call)?;
        self.domain_gone(domid, fx);
        out.acknowledge();
        Ok(())
    }

    /// RESUME: @releaseDomain will fire again when the domain shuts down again.
    pub(crate) fn op_resume(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let domid = self.introduced_domid(call)?;
        self.domain_entry(domid).shut_down = false;
        self.put_domain(domid, fx);
        out.acknowledge();
        Ok(())
    }

    /// SET_TARGET: one domain gets the rights of another that it serves.
    pub(crate) fn op_set_target(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let mut strings = text::strings(call.payload);
        let (Some(domid), Some(target)) = (strings.next(), strings.next()) else {
            return Err(Errno::Invalid);
        };
        let domid = text::domid(domid).ok_or(Errno::Invalid)?;
        let target = text::domid(target).ok_or(Errno::Invalid)?;
        let client = self.introduced(domid).ok_or(Errno::NotFound)?.client;
        self.introduced(target).ok_or(Errno::NotFound)?;
        self.domain_entry(domid).target = Some(target);
        if let Some(client) = self.client_mut(client) {
            client.target = Some(target);
        }
        self.put_domain(domid, fx);
        out.acknowledge();
        Ok(())
    }

    /// GET_DOMAIN_PATH.
    pub(crate) fn op_get_domain_path(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
    ) -> Result<(), Errno> {
        let domid = text::only(call.payload).and_then(text::domid).ok_or(Errno::Invalid)?;
        let mut path = Vec::new();
        path::domain_path(domid, &mut path);
        out.push(&path);
        out.nul();
        Ok(())
    }

    /// IS_DOMAIN_INTRODUCED.
    pub(crate) fn op_is_introduced(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
    ) -> Result<(), Errno> {
        let domid = text::only(call.payload).and_then(text::domid).ok_or(Errno::Invalid)?;
        let known = domid == DOMID_SELF
            || self.introduced(domid).is_some()
            || self.clients().any(|(_, client)| client.domid == domid);
        out.push(if known { b"T\0" } else { b"F\0" });
        Ok(())
    }

    /// How a domain is connected, once it is introduced.
    pub fn introduced(&self, domid: u16) -> Option<Introduction> {
        self.domains.get(&domid)?.introduced
    }

    fn introduced_domid(&self, call: &Call<'_>) -> Result<u16, Errno> {
        let domid = text::only(call.payload).and_then(text::domid).ok_or(Errno::Invalid)?;
        if self.is_privileged(domid) {
            return Err(Errno::Invalid);
        }
        self.introduced(domid).map(|_| domid).ok_or(Errno::NotFound)
    }

    /// A domain shut down, suspended or crashed: @releaseDomain fires once until RESUME. Answers
    /// whether anything changed.
    pub fn domain_shut_down(&mut self, domid: u16, fx: &mut dyn Effects) -> bool {
        match self.domains.get_mut(&domid) {
            Some(domain) if domain.introduced.is_some() && !domain.shut_down => {
                domain.shut_down = true;
                self.put_domain(domid, fx);
                self.fire_special(RELEASE_DOMAIN, domid, fx);
                true
            }
            _ => false,
        }
    }

    /// A domain is gone or released: its connection ends, @releaseDomain fires, and its nodes and
    /// permissions are swept out step by step. Answers whether anything changed.
    pub fn domain_gone(&mut self, domid: u16, fx: &mut dyn Effects) -> bool {
        let Some(domain) = self.domains.get_mut(&domid) else { return false };
        let introduced = domain.introduced.take();
        let had_record = core::mem::take(&mut domain.record);
        if had_record != 0 {
            fx.delete(had_record);
            self.records.give(had_record);
        }
        if let Some(connection) = introduced {
            self.close(connection.client, fx);
            fx.act(Action::Disconnect { client: connection.client, domid });
        }
        self.untarget(domid);
        self.start_sweep(domid, fx);
        if introduced.is_some() {
            self.fire_special(RELEASE_DOMAIN, domid, fx);
        }
        true
    }

    /// An introduced domain could not be connected: it counts as not introduced.
    pub(crate) fn forget_introduction(&mut self, domid: u16, fx: &mut dyn Effects) -> bool {
        let Some(domain) = self.domains.get_mut(&domid) else { return false };
        let Some(connection) = domain.introduced.take() else { return false };
        self.close(connection.client, fx);
        self.put_domain(domid, fx);
        true
    }

    /// Nobody serves a domain that is gone.
    fn untarget(&mut self, gone: u16) {
        for domain in self.domains.values_mut() {
            if domain.target == Some(gone) {
                domain.target = None;
            }
        }
        for client in self.clients.iter_mut().flatten() {
            if client.target == Some(gone) {
                client.target = None;
            }
        }
    }

    fn start_sweep(&mut self, domid: u16, fx: &mut dyn Effects) {
        if self.sweeps.iter().any(|sweep| sweep.domid == domid) {
            return;
        }
        let record = self.records.take();
        fx.put(record, Kind::Sweep, &domid.to_le_bytes(), &[]);
        self.sweeps.push_back(Sweep { domid, cursor: Vec::new(), record });
    }

    /// Fires the watches on a special name.
    pub(crate) fn fire_special(&mut self, name: &[u8], domid: u16, fx: &mut dyn Effects) {
        let Some(index) = Self::special_index(name) else { return };
        let mut digits = [0; text::DECIMAL_MAX];
        let digits = text::format_decimal(u64::from(domid), &mut digits);
        let numbered = [name, b"/", digits].concat();
        for (path, kind) in [(name, Match::Plain), (&numbered[..], Match::Numbered)] {
            let mut found = Vec::new();
            self.watches.matching(path, kind, &mut found);
            for watch in &found {
                let Some(call) = self.call_of(watch.client) else { continue };
                if call.access(self.special[index].iter().copied()).read {
                    fx.event(watch.client, path, &watch.token);
                }
            }
        }
    }
}
