//! Requests to XenStore (docs/misc/xenstore.txt).

use alloc::vec::Vec;

use wire::{HEADER_LEN, Header, Operation};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is asked.
    pub operation: Operation,
    /// In which transaction; 0: none.
    pub transaction: u32,
    /// The arguments.
    pub payload: Vec<u8>,
}

/// Strings, each ended by a NUL.
fn strings(parts: &[&str]) -> Vec<u8> {
    let mut payload = Vec::new();
    for part in parts {
        payload.extend_from_slice(part.as_bytes());
        payload.push(0);
    }
    payload
}

impl Call {
    fn new(operation: Operation, payload: Vec<u8>) -> Self {
        Self { operation, transaction: 0, payload }
    }

    /// The value of a node.
    pub fn read(path: &str) -> Self {
        Self::new(Operation::Read, strings(&[path]))
    }

    /// The names of a node's children.
    pub fn directory(path: &str) -> Self {
        Self::new(Operation::Directory, strings(&[path]))
    }

    /// Watches a node and all below it; events bear `token`.
    pub fn watch(path: &str, token: &str) -> Self {
        Self::new(Operation::Watch, strings(&[path, token]))
    }

    /// Ends a watch.
    pub fn unwatch(path: &str, token: &str) -> Self {
        Self::new(Operation::Unwatch, strings(&[path, token]))
    }

    /// Sets the value of a node.
    pub fn write(path: &str, value: &str) -> Self {
        let mut payload = strings(&[path]);
        payload.extend_from_slice(value.as_bytes());
        Self::new(Operation::Write, payload)
    }

    /// Makes sure that a node exists.
    pub fn make_directory(path: &str) -> Self {
        Self::new(Operation::MakeDirectory, strings(&[path]))
    }

    /// Removes a node and all below it.
    pub fn remove(path: &str) -> Self {
        Self::new(Operation::Remove, strings(&[path]))
    }

    /// Sets the permissions of a node: the owner first.
    pub fn set_permissions(path: &str, permissions: &[&str]) -> Self {
        let mut payload = strings(&[path]);
        payload.extend_from_slice(&strings(permissions));
        Self::new(Operation::SetPermissions, payload)
    }

    /// Opens a transaction.
    pub fn start_transaction() -> Self {
        Self::new(Operation::TransactionStart, strings(&[""]))
    }

    /// Ends a transaction.
    pub fn end_transaction(verdict: Verdict) -> Self {
        let letter = match verdict {
            Verdict::Commit => "T",
            Verdict::Drop => "F",
        };
        Self::new(Operation::TransactionEnd, strings(&[letter]))
    }

    /// Tells XenStore of a guest, the frame of its ring and its event channel port.
    pub fn introduce(domid: u16, gfn: u32, port: u32) -> Self {
        let (domid, gfn, port) =
            (alloc::format!("{domid}"), alloc::format!("{gfn}"), alloc::format!("{port}"));
        Self::new(Operation::Introduce, strings(&[&domid, &gfn, &port]))
    }

    /// Sets how many nodes a guest may own.
    pub fn limit_nodes(domid: u16, nodes: u32) -> Self {
        let (domid, nodes) = (alloc::format!("{domid}"), alloc::format!("{nodes}"));
        Self::new(Operation::SetQuota, strings(&[&domid, "nodes", &nodes]))
    }

    /// Lets XenStore forget a guest: it unmaps its ring.
    pub fn release(domid: u16) -> Self {
        Self::new(Operation::Release, strings(&[&alloc::format!("{domid}")]))
    }

    /// The same request in a transaction.
    #[must_use]
    pub fn within(mut self, transaction: u32) -> Self {
        self.transaction = transaction;
        self
    }

    /// The whole message; `request` names it in the answer.
    pub fn encode(&self, request: u32) -> Vec<u8> {
        let header = Header {
            operation: self.operation,
            request,
            transaction: self.transaction,
            len: self.payload.len() as u32,
        };
        let mut message = Vec::with_capacity(HEADER_LEN + self.payload.len());
        message.extend_from_slice(&header.emit());
        message.extend_from_slice(&self.payload);
        message
    }
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its changes come true.
    Commit,
    /// Its changes are forgotten.
    Drop,
}
