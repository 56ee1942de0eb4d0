//! What a frontend writes into XenStore (netif.h).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use abi::{DomId, GrantRef, Port};

use super::{Side, address};
use crate::vif::{Abilities, Connection, QUEUES_MAX, QueueRefs};

/// Values of keys, as they were read.
pub trait Keys {
    /// The value of a key; `None` if there is no such key.
    fn get(&self, side: Side, key: &str) -> Option<&str>;
}

/// Why a vif cannot be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// A key is missing.
    Missing(String),
    /// A key's value makes no sense.
    Wrong(String, String),
}

impl core::fmt::Display for KeyError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Missing(key) => write!(f, "the frontend has not written {key}"),
            Self::Wrong(key, value) => write!(f, "{key} is {value:?}"),
        }
    }
}

const RINGS: [&str; 5] =
    ["tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "event-channel-rx"];
const PLAIN: [&str; 9] = [
    "state",
    "request-rx-copy",
    "feature-rx-notify",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-no-csum-offload",
    "feature-ipv6-csum-offload",
    "multi-queue-num-queues",
];

pub(super) fn wanted() -> Vec<(Side, String)> {
    let ours = ["state", "online", "mac"].map(|key| (Side::Backend, key.to_string()));
    let theirs = PLAIN.iter().chain(&RINGS).map(|key| (Side::Frontend, key.to_string()));
    let queues = (0..QUEUES_MAX).flat_map(|queue| {
        RINGS.iter().map(move |key| (Side::Frontend, format!("queue-{queue}/{key}")))
    });
    ours.into_iter().chain(theirs).chain(queues).collect()
}

struct Reader<'a, K>(&'a K);

impl<K: Keys> Reader<'_, K> {
    fn number(&self, key: &str) -> Result<Option<u32>, KeyError> {
        let Some(text) = self.0.get(Side::Frontend, key) else { return Ok(None) };
        let wrong = || KeyError::Wrong(key.to_string(), text.to_string());
        text.trim().parse().map(Some).map_err(|_| wrong())
    }

    fn needed(&self, key: &str) -> Result<u32, KeyError> {
        self.number(key)?.ok_or_else(|| KeyError::Missing(key.to_string()))
    }

    fn is_set(&self, key: &str) -> Result<bool, KeyError> {
        Ok(self.number(key)?.is_some_and(|number| number != 0))
    }

    fn queue(&self, prefix: &str) -> Result<QueueRefs, KeyError> {
        let key = |name: &str| format!("{prefix}{name}");
        let (tx_port, rx_port) = match self.number(&key("event-channel-tx"))? {
            Some(tx) => (tx, self.needed(&key("event-channel-rx"))?),
            None => {
                let both = self.needed(&key("event-channel"))?;
                (both, both)
            }
        };
        Ok(QueueRefs {
            tx_ring: GrantRef(self.needed(&key("tx-ring-ref"))?),
            rx_ring: GrantRef(self.needed(&key("rx-ring-ref"))?),
            tx_port: Port(tx_port),
            rx_port: Port(rx_port),
        })
    }
}

/// Reads what the frontend wrote.
pub(super) fn connection(
    guest: DomId,
    handle: u16,
    keys: &impl Keys,
) -> Result<Connection, KeyError> {
    let reader = Reader(keys);
    let wrong = |key: &str| {
        let value = keys.get(Side::Frontend, key).unwrap_or_default();
        KeyError::Wrong(key.to_string(), value.to_string())
    };
    let address = address(keys).ok_or_else(|| KeyError::Missing("mac".to_string()))?;
    // Page flipping is gone, and without notification nobody would send once its ring is empty.
    for key in ["request-rx-copy", "feature-rx-notify"] {
        if !reader.is_set(key)? {
            return Err(wrong(key));
        }
    }
    let count = reader.number("multi-queue-num-queues")?.unwrap_or(1);
    if count == 0 || count as usize > QUEUES_MAX {
        return Err(wrong("multi-queue-num-queues"));
    }
    let mut queues = heapless::Vec::new();
    for number in 0..count {
        let prefix = if count == 1 { String::new() } else { format!("queue-{number}/") };
        let pushed = queues.push(reader.queue(&prefix)?);
        debug_assert!(pushed.is_ok(), "the count was checked");
    }
    let abilities = Abilities {
        has_sg: reader.is_set("feature-sg")?,
        has_gso_v4: reader.is_set("feature-gso-tcpv4")?,
        has_gso_v6: reader.is_set("feature-gso-tcpv6")?,
        has_checksum_v4: !reader.is_set("feature-no-csum-offload")?,
        has_checksum_v6: reader.is_set("feature-ipv6-csum-offload")?,
    };
    Ok(Connection { guest, handle, address, abilities, queues })
}
