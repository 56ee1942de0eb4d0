//! The payloads: strings, each ended by a NUL, and decimal numbers.

/// The strings of a payload: each is followed by a NUL; what stands after the last NUL is not a
/// string and is not shown.
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    rest: &'a [u8],
}

/// The strings of `payload`, without their NULs.
pub fn strings(payload: &[u8]) -> Strings<'_> {
    Strings { rest: payload }
}

impl<'a> Strings<'a> {
    /// What has not been taken yet, NULs included.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (string, rest) = split(self.rest)?;
        self.rest = rest;
        Some(string)
    }
}

/// The first string (without its NUL) and what follows its NUL; `None` without any NUL.
pub fn split(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let nul = payload.iter().position(|byte| *byte == 0)?;
    Some((&payload[..nul], &payload[nul + 1..]))
}

/// How many strings there are.
pub fn count(payload: &[u8]) -> usize {
    payload.iter().filter(|byte| **byte == 0).count()
}

/// The only string of a payload that is one string and nothing else.
pub fn only(payload: &[u8]) -> Option<&[u8]> {
    let (nul, string) = payload.split_last()?;
    (*nul == 0 && !string.contains(&0)).then_some(string)
}

/// Exactly `N` strings, with nothing after them.
pub fn exactly<const N: usize>(payload: &[u8]) -> Option<[&[u8]; N]> {
    let mut all = strings(payload);
    let mut found: [&[u8]; N] = [&[]; N];
    for string in &mut found {
        *string = all.next()?;
    }
    all.rest.is_empty().then_some(found)
}

/// A decimal number of digits alone.
pub fn decimal(string: &[u8]) -> Option<u32> {
    if string.is_empty() {
        return None;
    }
    string.iter().try_fold(0u32, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        value.checked_mul(10)?.checked_add(u32::from(digit))
    })
}

/// A domain id: a decimal number up to 65535.
pub fn domid(string: &[u8]) -> Option<u16> {
    decimal(string).and_then(|number| u16::try_from(number).ok())
}

/// A frame number: decimal, and signed where a tool prints it so (`xenstore.txt`, INTRODUCE).
pub fn frame(string: &[u8]) -> Option<u64> {
    let (negative, digits) = match string.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, string),
    };
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })?;
    Some(if negative { value.wrapping_neg() } else { value })
}

/// Room for the longest decimal number.
pub const DECIMAL_MAX: usize = 20;

/// Writes `value` in decimal into `buffer` and answers the digits.
pub fn format_decimal(value: u64, buffer: &mut [u8; DECIMAL_MAX]) -> &[u8] {
    let mut at = buffer.len();
    let mut rest = value;
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &buffer[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"4294967295"), Some(u32::MAX));
        assert_eq!(decimal(b"4294967296"), None);
        for bad in [&b""[..], b"-1", b"+1", b" 1", b"1 ", b"0x1", b"1:"] {
            assert_eq!(decimal(bad), None, "{bad:?}");
        }
        assert_eq!(domid(b"65535"), Some(65535));
        assert_eq!(domid(b"65536"), None);
        assert_eq!(frame(b"-1"), Some(u64::MAX));
        assert_eq!(frame(b"1048575"), Some(0xfffff));
        assert_eq!(frame(b"-"), None);
        let mut buffer = [0; DECIMAL_MAX];
        assert_eq!(format_decimal(0, &mut buffer), b"0");
        assert_eq!(format_decimal(u64::MAX, &mut buffer), b"18446744073709551615");
    }

    #[test]
    fn payloads() {
        assert_eq!(only(b"a\0"), Some(&b"a"[..]));
        assert_eq!(only(b"\0"), Some(&b""[..]));
        for bad in [&b""[..], b"a", b"a\0b", b"a\0b\0"] {
            assert_eq!(only(bad), None, "{bad:?}");
        }
        assert_eq!(exactly::<2>(b"a\0b\0"), Some([&b"a"[..], b"b"]));
        assert_eq!(exactly::<2>(b"a\0b\0c"), None);
        assert_eq!(exactly::<2>(b"a\0"), None);
        assert_eq!(count(b"a\0b\0c"), 2);
        let mut all = strings(b"a\0\0rest");
        assert_eq!(all.next(), Some(&b"a"[..]));
        assert_eq!(all.next(), Some(&b""[..]));
        assert_eq!(all.next(), None);
        assert_eq!(all.rest(), b"rest");
    }
}
