//! Entries of a node's permission list.

use crate::text::{self, DECIMAL_MAX};

/// What an entry allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Access {
    /// Reading the value, the children and the permissions.
    pub read: bool,
    /// Writing the value, creating and removing children, removing the node.
    pub write: bool,
}

impl Access {
    /// No access.
    pub const NONE: Self = Self { read: false, write: false };
    /// Reading alone.
    pub const READ: Self = Self { read: true, write: false };
    /// Writing alone.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Both.
    pub const BOTH: Self = Self { read: true, write: true };

    /// The access that a letter stands for.
    pub fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'n' => Some(Self::NONE),
            b'r' => Some(Self::READ),
            b'w' => Some(Self::WRITE),
            b'b' => Some(Self::BOTH),
            _ => None,
        }
    }

    /// The letter for this access.
    pub fn letter(self) -> u8 {
        match (self.read, self.write) {
            (false, false) => b'n',
            (true, false) => b'r',
            (false, true) => b'w',
            (true, true) => b'b',
        }
    }

    /// Whether everything in `wanted` is allowed.
    pub fn allows(self, wanted: Self) -> bool {
        (self.read || !wanted.read) && (self.write || !wanted.write)
    }
}

/// One entry: what a domain may do. The first entry of a list names the owner, who may do
/// everything, and its access is that of every domain without an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    /// The domain.
    pub domid: u16,
    /// What it may do.
    pub access: Access,
}

impl Permission {
    /// Longest entry in bytes, without its NUL: a letter and five digits.
    pub const TEXT_MAX: usize = 6;

    /// An entry.
    pub fn new(domid: u16, access: Access) -> Self {
        Self { domid, access }
    }

    /// Reads an entry such as `r12`.
    pub fn parse(string: &[u8]) -> Option<Self> {
        let (letter, digits) = string.split_first()?;
        Some(Self { access: Access::from_letter(*letter)?, domid: text::domid(digits)? })
    }

    /// Writes the entry without NUL, hands it to `take`.
    pub fn emit<R>(self, take: impl FnOnce(&[u8]) -> R) -> R {
        let mut digits = [0; DECIMAL_MAX];
        let digits = text::format_decimal(u64::from(self.domid), &mut digits);
        let mut entry = [0; Self::TEXT_MAX];
        entry[0] = self.access.letter();
        entry[1..=digits.len()].copy_from_slice(digits);
        take(&entry[..=digits.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every letter with every domain id, and every other first byte.
    #[test]
    fn every_entry_round_trips() {
        for letter in 0..=255u8 {
            for domid in [0, 1, 9, 10, 0x7ff5, 65535] {
                let string = [&[letter], format!("{domid}").as_bytes()].concat();
                match Permission::parse(&string) {
                    Some(entry) => {
                        assert!(b"nrwb".contains(&letter));
                        assert_eq!(entry.domid, domid);
                        entry.emit(|text| assert_eq!(text, string));
                    }
                    None => assert!(!b"nrwb".contains(&letter)),
                }
            }
        }
        for domid in 0..=u16::MAX {
            let entry = Permission::new(domid, Access::READ);
            entry.emit(|text| assert_eq!(Permission::parse(text), Some(entry)));
        }
    }

    #[test]
    fn malformed_entries() {
        for bad in [&b""[..], b"r", b"r-1", b"r65536", b"r1 ", b"rr1", b"1", b"R1"] {
            assert_eq!(Permission::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_allows_what() {
        let all = [Access::NONE, Access::READ, Access::WRITE, Access::BOTH];
        for have in all {
            for want in all {
                let expected = (!want.read || have.read) && (!want.write || have.write);
                assert_eq!(have.allows(want), expected);
            }
        }
    }
}
