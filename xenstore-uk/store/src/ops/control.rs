//! CONTROL: commands to the store itself.

use wire::{Errno, text};

use crate::dir::Children;
use crate::effects::Effects;
use crate::node::Node;
use crate::quota::{Quota, Strength};
use crate::request::Reply;
use crate::state::{Call, State};
use crate::tree::Descend;

/// The commands with their parameters, for `help`.
const COMMANDS: [(&str, &str); 8] = [
    ("check", ""),
    ("log", "[on|off|+<switch>|-<switch>]"),
    ("logfile", "<file>"),
    ("memreport", "[<file>]"),
    ("print", "<string>"),
    ("quota", "[set <name> <val>|<domid>|max [-r]]"),
    ("quota-soft", "[set <name> <val>]"),
    ("help", ""),
];

impl State {
    /// CONTROL.
    pub(crate) fn op_control(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let mut strings = text::strings(call.payload);
        let command = strings.next().ok_or(Errno::Invalid)?;
        let parameters = strings.rest();
        match command {
            b"check" if parameters.is_empty() => {
                self.check();
                out.acknowledge();
                Ok(())
            }
            b"print" => {
                fx.print(text::only(parameters).ok_or(Errno::Invalid)?);
                out.acknowledge();
                Ok(())
            }
            b"quota" => self.control_quota(parameters, Strength::Hard, out, fx),
            b"quota-soft" => self.control_quota(parameters, Strength::Soft, out, fx),
            b"memreport" if parameters.is_empty() => {
                self.report_memory(out);
                Ok(())
            }
            b"help" if parameters.is_empty() => {
                for (command, parameters) in COMMANDS {
                    out.text(command, 15);
                    out.push(b" ");
                    out.push(parameters.as_bytes());
                    out.push(b"\n");
                }
                out.nul();
                Ok(())
            }
            // There are no files and no trace switches here: nothing to switch, nothing to name.
            b"log" if matches!(parameters, b"" | b"off\0") => {
                out.acknowledge();
                Ok(())
            }
            b"log" | b"logfile" | b"live-update" | b"memreport" => Err(Errno::NotSupported),
            _ => Err(Errno::Invalid),
        }
    }

    /// Checks every node and the digest of the tree; damage becomes the request's fault.
    fn check(&mut self) {
        let mut digest = 0u64;
        let mut damaged = false;
        self.tree.walk(&mut alloc::vec::Vec::new(), usize::MAX, &mut |_, node, hash| {
            damaged |= !node.is_intact(hash);
            digest = digest.wrapping_add(crate::checksum::spread(node.sum));
            Descend::Yes
        });
        if damaged || digest != self.tree.digest() {
            self.fault = Some(crate::Fault::Node);
        }
    }

    fn report_memory(&self, out: &mut Reply) {
        let mut bytes = 0usize;
        let mut waiting = alloc::vec::Vec::from([self.tree.root()]);
        while let Some(node) = waiting.pop() {
            bytes += node.memory() + core::mem::size_of::<Node>();
            waiting.extend(Children::new(&node.children));
        }
        for (name, value) in [
            ("nodes", u64::from(self.tree.nodes())),
            ("node bytes", bytes as u64),
            ("watches", self.watches.count() as u64),
            ("connections", self.clients().count() as u64),
            ("transactions", u64::from(self.open_transactions)),
            ("conflicts", self.conflicts),
        ] {
            line(out, name, value, "");
        }
        out.nul();
    }

    fn control_quota(
        &mut self,
        parameters: &[u8],
        strength: Strength,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let mut strings = text::strings(parameters);
        match (strings.next(), strings.next(), strings.next(), strings.next()) {
            (None, ..) => {
                out.push(b"Quota settings:\n");
                for quota in Quota::ALL {
                    if let Some(limit) = self.limits.get(quota, strength) {
                        line(out, quota.name(), u64::from(limit), quota.description());
                    }
                }
                out.nul();
                Ok(())
            }
            (Some(b"set"), Some(name), Some(limit), None) => {
                let (quota, named) = Quota::from_name(name).ok_or(Errno::Invalid)?;
                let limit = text::decimal(limit).filter(|l| *l > 0).ok_or(Errno::Invalid)?;
                if named == Strength::Soft || !self.limits.set(quota, strength, limit) {
                    return Err(Errno::Invalid);
                }
                self.put_settings(fx);
                out.acknowledge();
                Ok(())
            }
            _ if strength == Strength::Soft => Err(Errno::Invalid),
            (Some(b"max"), reset, None, _) => {
                match reset {
                    None => {}
                    Some(b"-r") => self.reset_peaks(),
                    Some(_) => return Err(Errno::Invalid),
                }
                out.push(b"Max. seen accounting values:\n");
                for quota in Quota::ALL {
                    line(out, quota.name(), u64::from(self.peak[quota as usize]), "");
                }
                out.nul();
                Ok(())
            }
            (Some(domid), None, ..) => {
                let domid = text::domid(domid).ok_or(Errno::Invalid)?;
                self.report_domain(domid, out)
            }
            _ => Err(Errno::Invalid),
        }
    }

    fn reset_peaks(&mut self) {
        self.peak = [0; crate::quota::QUOTAS];
        for domain in self.domains.values_mut() {
            domain.peak = domain.usage;
        }
    }

    fn report_domain(&self, domid: u16, out: &mut Reply) -> Result<(), Errno> {
        let domain = self.domains.get(&domid).ok_or(Errno::NotFound)?;
        out.push(b"Domain ");
        out.decimal(u64::from(domid));
        out.push(b":\n");
        for quota in Quota::ALL {
            out.text(quota.name(), 17);
            out.push(b": ");
            out.padded(u64::from(domain.usage[quota as usize]), 8);
            out.push(b" (max ");
            out.padded(u64::from(domain.peak[quota as usize]), 8);
            out.push(b")\n");
        }
        out.nul();
        Ok(())
    }
}

fn line(out: &mut Reply, name: &str, value: u64, description: &str) {
    out.text(name, 17);
    out.push(b": ");
    out.padded(value, 8);
    if !description.is_empty() {
        out.push(b" ");
        out.push(description.as_bytes());
    }
    out.push(b"\n");
}
