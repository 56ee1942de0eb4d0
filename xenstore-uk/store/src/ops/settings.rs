//! Features and quotas of domains.

use wire::{Errno, text};

use crate::effects::Effects;
use crate::quota::{Quota, Strength};
use crate::request::Reply;
use crate::state::{Call, State};

impl State {
    /// Features that a domain is offered.
    pub fn features_of(&self, domid: u16) -> u32 {
        self.domains.get(&domid).map_or(self.config.features, |domain| domain.features)
    }

    /// GET_FEATURE: the caller's own features, or for a privileged one those of any domain.
    pub(crate) fn op_get_feature(&mut self, call: &Call<'_>, out: &mut Reply) -> Result<(), Errno> {
        let features = match call.payload {
            [] => self.features_of(call.domid),
            _ if !call.privileged => return Err(Errno::Access),
            payload => {
                let domid = text::only(payload).and_then(text::domid).ok_or(Errno::Invalid)?;
                self.features_of(domid)
            }
        };
        out.decimal(u64::from(features));
        out.nul();
        Ok(())
    }

    /// SET_FEATURE: before the domain is introduced.
    pub(crate) fn op_set_feature(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let [domid, features] = text::exactly(call.payload).ok_or(Errno::Invalid)?;
        let domid = text::domid(domid).ok_or(Errno::Invalid)?;
        let features = text::decimal(features).ok_or(Errno::Invalid)?;
        if self.introduced(domid).is_some() {
            return Err(Errno::Busy);
        }
        if features & !self.config.features != 0 {
            return Err(Errno::Invalid);
        }
        self.domain_entry(domid).features = features;
        self.put_domain(domid, fx);
        out.acknowledge();
        Ok(())
    }

    /// GET_QUOTA: the names of all quotas, a global one, or one of a domain.
    pub(crate) fn op_get_quota(&mut self, call: &Call<'_>, out: &mut Reply) -> Result<(), Errno> {
        let mut strings = text::strings(call.payload);
        let (domid, name) = match (strings.next(), strings.next(), strings.next()) {
            (None, ..) => {
                self.list_quotas(out);
                return Ok(());
            }
            (Some(name), None, _) => (None, name),
            (Some(domid), Some(name), None) => {
                (Some(text::domid(domid).ok_or(Errno::Invalid)?), name)
            }
            _ => return Err(Errno::Invalid),
        };
        let (quota, strength) = Quota::from_name(name).ok_or(Errno::Invalid)?;
        let limits = match domid {
            None => &self.limits,
            Some(domid) => self.domains.get(&domid).map_or(&self.limits, |found| &found.limits),
        };
        out.decimal(u64::from(limits.get(quota, strength).ok_or(Errno::Invalid)?));
        out.nul();
        Ok(())
    }

    fn list_quotas(&self, out: &mut Reply) {
        for quota in Quota::ALL {
            for (strength, prefix) in [(Strength::Hard, ""), (Strength::Soft, "soft-")] {
                if self.limits.get(quota, strength).is_some() {
                    if out.payload_len() > 0 {
                        out.push(b" ");
                    }
                    out.push(prefix.as_bytes());
                    out.push(quota.name().as_bytes());
                }
            }
        }
        out.nul();
    }

    /// SET_QUOTA: a global one, which new domains get, or one of a domain.
    pub(crate) fn op_set_quota(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let (domid, name, limit) = match text::exactly(call.payload) {
            Some([domid, name, limit]) => {
                (Some(text::domid(domid).ok_or(Errno::Invalid)?), name, limit)
            }
            None => {
                let [name, limit] = text::exactly(call.payload).ok_or(Errno::Invalid)?;
                (None, name, limit)
            }
        };
        let (quota, strength) = Quota::from_name(name).ok_or(Errno::Invalid)?;
        let limit = text::decimal(limit).ok_or(Errno::Invalid)?;
        let limits = match domid {
            None => &mut self.limits,
            Some(domid) => &mut self.domain_entry(domid).limits,
        };
        if !limits.set(quota, strength, limit) {
            return Err(Errno::Invalid);
        }
        match domid {
            None => self.put_settings(fx),
            Some(domid) => self.put_domain(domid, fx),
        }
        out.acknowledge();
        Ok(())
    }
}
