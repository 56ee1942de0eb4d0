//! Operations that only look at nodes.

use wire::{Access, Errno, PAYLOAD_MAX, Permission, text};

use crate::Fault;
use crate::dir::Children;
use crate::node::child_hash;
use crate::ops::Open;
use crate::path::Special;
use crate::request::Reply;
use crate::state::{Call, State};
use crate::tree::Found;

impl State {
    /// READ.
    pub(crate) fn op_read(
        &mut self,
        call: &Call<'_>,
        open: Open<'_>,
        out: &mut Reply,
    ) -> Result<(), Errno> {
        let sent = text::only(call.payload).ok_or(Errno::Invalid)?;
        self.with_name(call, sent, Special::Refused, |state, name| {
            state.look(call, open, name.path, Depends::OnNode, |found| {
                out.push(found.node.value());
                Ok(())
            })
        })
    }

    /// DIRECTORY.
    pub(crate) fn op_directory(
        &mut self,
        call: &Call<'_>,
        open: Open<'_>,
        out: &mut Reply,
    ) -> Result<(), Errno> {
        let sent = text::only(call.payload).ok_or(Errno::Invalid)?;
        self.with_name(call, sent, Special::Refused, |state, name| {
            let listed = state.look(call, open, name.path, Depends::OnChildren, |found| {
                if found.node.children_listing() > PAYLOAD_MAX {
                    return Err(Errno::TooBig);
                }
                Ok(list(&found, Children::new(&found.node.children), out))
            })?;
            listed.map_err(|fault| state.damaged(fault))
        })
    }

    /// DIRECTORY_PART: generation of the node, then whole names from a byte offset on; an empty
    /// name ends the last part.
    pub(crate) fn op_directory_part(
        &mut self,
        call: &Call<'_>,
        open: Open<'_>,
        out: &mut Reply,
    ) -> Result<(), Errno> {
        let [sent, offset] = text::exactly(call.payload).ok_or(Errno::Invalid)?;
        let offset = text::decimal(offset).ok_or(Errno::Invalid)? as usize;
        self.with_name(call, sent, Special::Refused, |state, name| {
            let listed = state.look(call, open, name.path, Depends::OnChildren, |found| {
                out.decimal(found.node.generation().max(found.node.children_generation()));
                out.nul();
                let total = found.node.children_listing();
                if offset >= total {
                    out.nul();
                    return Ok(Ok(()));
                }
                Ok(list_part(&found, offset, total, out))
            })?;
            listed.map_err(|fault| state.damaged(fault))
        })
    }

    /// GET_PERMS.
    pub(crate) fn op_get_permissions(
        &mut self,
        call: &Call<'_>,
        open: Open<'_>,
        out: &mut Reply,
    ) -> Result<(), Errno> {
        let sent = text::only(call.payload).ok_or(Errno::Invalid)?;
        let mut emit = |entry: Permission| {
            entry.emit(|text| out.push(text));
            out.nul();
        };
        self.with_name(call, sent, Special::Allowed, |state, name| {
            if name.is_special() {
                let index = Self::special_index(name.path).ok_or(Errno::NotFound)?;
                let permissions = state.special[index].iter().copied();
                if !call.access(permissions.clone()).read {
                    return Err(Errno::Access);
                }
                permissions.for_each(emit);
                return Ok(());
            }
            state.look(call, open, name.path, Depends::OnNode, |found| {
                found.node.permissions().for_each(&mut emit);
                Ok(())
            })
        })
    }

    /// Looks at a node that the caller may read, in its transaction if it has one.
    fn look<R>(
        &mut self,
        call: &Call<'_>,
        open: Open<'_>,
        path: &[u8],
        depends: Depends,
        act: impl FnOnce(Found<'_>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        match open {
            None => Self::find(&self.tree, &mut self.fault, call, path, Access::READ).and_then(act),
            Some(open) => {
                match depends {
                    Depends::OnNode => open.depend(path),
                    Depends::OnChildren => open.depend_on_children(path),
                }
                Self::find(&open.tree, &mut self.fault, call, path, Access::READ).and_then(act)
            }
        }
    }

    fn damaged(&mut self, fault: Fault) -> Errno {
        self.fault = Some(fault);
        Errno::Io
    }
}

/// What the outcome of a read depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depends {
    OnNode,
    OnChildren,
}

/// Lists children, each checked, until their end.
fn list(found: &Found<'_>, children: Children<'_>, out: &mut Reply) -> Result<(), Fault> {
    for child in children {
        if !child.is_intact(child_hash(found.hash, child.name())) {
            return Err(Fault::Node);
        }
        out.push(child.name());
        out.nul();
    }
    // A link that was lost would shorten the list without any damaged node.
    match out.payload_len() == found.node.children_listing() {
        true => Ok(()),
        false => Err(Fault::Node),
    }
}

/// Lists whole names from `offset` on, as many as fit, and the end mark after the last.
fn list_part(found: &Found<'_>, offset: usize, total: usize, out: &mut Reply) -> Result<(), Fault> {
    let (children, mut skip) = Children::from_offset(&found.node.children, offset);
    let mut position = offset;
    for child in children {
        let name = child.name();
        if !child.is_intact(child_hash(found.hash, name)) {
            return Err(Fault::Node);
        }
        let shown = &name[skip.min(name.len())..];
        // One byte stays free for the end mark.
        if out.payload_len() + shown.len() + 2 > PAYLOAD_MAX {
            return Ok(());
        }
        skip = 0;
        out.push(shown);
        out.nul();
        position += shown.len() + 1;
    }
    if position >= total {
        out.nul();
    }
    Ok(())
}
