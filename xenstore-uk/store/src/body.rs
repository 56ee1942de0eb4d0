//! The content of a node: in the node itself if it is short, else shared on the heap.

use alloc::rc::Rc;
use core::ops::Deref;

/// Longest content that lies in the node itself. With it a node takes about as much as with a
/// pointer and a separate allocation, and most nodes (a few permission entries, a short name, a
/// number or an address) need no second one.
const INLINE_MAX: usize = 54;

/// Bytes that do not change.
#[derive(Clone)]
pub(crate) enum Body {
    Inline { len: u8, bytes: [u8; INLINE_MAX] },
    Shared(Rc<[u8]>),
}

impl Default for Body {
    fn default() -> Self {
        Self::Inline { len: 0, bytes: [0; INLINE_MAX] }
    }
}

impl Body {
    /// A copy of the joined parts.
    #[inline]
    pub fn join(parts: &[&[u8]]) -> Self {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut bytes = [0; INLINE_MAX];
        if len > INLINE_MAX {
            return Self::Shared(match parts {
                [whole] => Rc::from(*whole),
                _ => parts.concat().into(),
            });
        }
        let mut at = 0;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Self::Inline { len: len as u8, bytes }
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => &bytes[..usize::from(*len).min(INLINE_MAX)],
            Self::Shared(bytes) => bytes,
        }
    }
}

impl core::fmt::Debug for Body {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length() {
        let bytes: alloc::vec::Vec<u8> = (0..200).collect();
        for len in 0..bytes.len() {
            let (head, tail) = bytes[..len].split_at(len / 3);
            assert_eq!(*Body::join(&[head, tail]), bytes[..len]);
        }
        assert_eq!(core::mem::size_of::<Body>(), 56);
    }
}
