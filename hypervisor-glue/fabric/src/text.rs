//! Bounded text: what one domain says and another prints.
//!
//! Text that crosses a domain border is cut to a fixed size and holds printable ASCII only
//! (everything else becomes `?`), so that no unit can send control sequences to an operator's
//! terminal.

use core::fmt;

/// At most `N` printable bytes. Writing more cuts the text off and remembers that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: u16,
    is_cut: bool,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub const fn new() -> Self {
        assert!(N <= u16::MAX as usize);
        Self { bytes: [0; N], len: 0, is_cut: false }
    }

    /// `bytes` with every byte that is not printable ASCII replaced, cut at `N`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut text = Self::new();
        text.push_bytes(bytes);
        text
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        let room = N - usize::from(self.len);
        self.is_cut |= bytes.len() > room;
        for byte in &bytes[..bytes.len().min(room)] {
            self.bytes[usize::from(self.len)] = printable(*byte);
            self.len += 1;
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or("?")
    }

    /// The text's bytes, all printable.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether more was written than fits.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.push_bytes(part.as_bytes());
        Ok(())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        if self.is_cut { f.write_str("...") } else { Ok(()) }
    }
}

/// `byte` if it is printable ASCII, else `?`.
pub const fn printable(byte: u8) -> u8 {
    if byte >= 0x20 && byte < 0x7f { byte } else { b'?' }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn text_is_cut_and_printable() {
        let mut text = Text::<8>::new();
        write!(text, "a\x1b[{}", 7).unwrap();
        assert_eq!((text.as_str(), text.is_cut()), ("a?[7", false));
        write!(text, "é and more").unwrap();
        assert_eq!((text.as_str(), text.is_cut()), ("a?[7?? a", true));
        assert_eq!(text.to_string(), "a?[7?? a...");
    }
}
