//! Ethernet addresses.

use core::fmt;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names a group: multicast or broadcast (IEEE 802.3, I/G bit).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it is reserved for talk between neighbours, which no bridge passes on
    /// (01-80-C2-00-00-00 to -0F, IEEE 802.1D table 7-10).
    pub const fn is_link_local(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0, 0, last] if last < 0x10)
    }

    /// Reads the form `00:16:3e:01:02:03` that toolstacks write into XenStore.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.trim().split(':');
        for byte in &mut bytes {
            let part = parts.next()?;
            if part.is_empty() || part.len() > 2 {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let mac = Mac([0, 0x16, 0x3e, 1, 2, 0xff]);
        assert_eq!(mac.to_string(), "00:16:3e:01:02:ff");
        assert_eq!(Mac::parse("0:16:3E:1:2:ff"), Some(mac));
        for wrong in
            ["", "00:16:3e:01:02", "00:16:3e:01:02:03:04", "00:16:3e:01:02:xx", "+1:2:3:4:5:"]
        {
            assert_eq!(Mac::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn groups() {
        assert!(Mac::BROADCAST.is_group());
        assert!(Mac([1, 0, 0x5e, 0, 0, 1]).is_group());
        assert!(!Mac([0, 0x16, 0x3e, 0, 0, 1]).is_group());
        assert!(Mac([1, 0x80, 0xc2, 0, 0, 14]).is_link_local());
        assert!(!Mac([1, 0x80, 0xc2, 0, 0, 16]).is_link_local());
    }
}
