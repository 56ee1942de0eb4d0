//! Paths of nodes and names of special events.
//!
//! `xenstore.txt`: letters, digits and `-/_@`; no empty component, no slash at the end but for the
//! root; a path that does not begin with a slash is relative to `/local/domain/<domid>`; a name
//! that begins with `@` is a special event.

use alloc::vec::Vec;
use wire::text::{self, DECIMAL_MAX};
use wire::{ABSOLUTE_PATH_MAX, Errno};

/// Fired when a domain is introduced.
pub const INTRODUCE_DOMAIN: &[u8] = b"@introduceDomain";
/// Fired when a domain shuts down, crashes or goes.
pub const RELEASE_DOMAIN: &[u8] = b"@releaseDomain";

/// Where the domains have their nodes.
const DOMAINS: &[u8] = b"/local/domain/";

/// What a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The absolute path, or the special name with its `@`.
    pub path: &'a [u8],
    /// Length of the prefix that a relative name did not spell out, with its slash; else 0.
    pub implicit: usize,
}

impl Name<'_> {
    /// Whether it is a special name.
    pub fn is_special(&self) -> bool {
        self.path.first() == Some(&b'@')
    }
}

/// Whether the byte may stand in a path.
const fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@')
}

/// Classes of bytes: 0 for those of names, [`SLASH`], [`REFUSED`].
const CLASSES: [u8; 256] = {
    let mut table = [REFUSED; 256];
    let mut byte = 0;
    while byte < 256 {
        if is_allowed(byte as u8) {
            table[byte] = if byte as u8 == b'/' { SLASH } else { 0 };
        }
        byte += 1;
    }
    table
};

const SLASH: u8 = 1;
const REFUSED: u8 = 2;

/// Levels that a path may have. Front ends use a dozen. What makes or changes each node on a way
/// follows that way to each of them, so its cost grows with the square of the levels: a thousand
/// of them, which the length of a path allows, would keep everybody waiting for 100 ms.
const LEVELS_MAX: usize = 128;

/// Where a relative name is made absolute: on the stack, so that looking something up changes
/// nothing that a crash could leave half-changed.
pub type Buffer = heapless::Vec<u8, { ABSOLUTE_PATH_MAX + 1 }>;

/// Whether names of special events may stand here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// WATCH, UNWATCH, GET_PERMS, SET_PERMS.
    Allowed,
    /// Every other operation.
    Refused,
}

/// Makes the absolute form of what a client of domain `domid` sent. A relative name is put
/// together in `scratch`. `relative_max` bounds the part below the domain's own directory.
pub fn resolve<'a>(
    sent: &'a [u8],
    domid: u16,
    special: Special,
    relative_max: usize,
    scratch: &'a mut Buffer,
) -> Result<Name<'a>, Errno> {
    let name = match sent.first() {
        Some(b'/') => Name { path: sent, implicit: 0 },
        Some(b'@') if special == Special::Allowed => Name { path: sent, implicit: 0 },
        Some(b'@') | None => return Err(Errno::Invalid),
        Some(_) => {
            let mut digits = [0; DECIMAL_MAX];
            let digits = text::format_decimal(u64::from(domid), &mut digits);
            scratch.clear();
            let mut implicit = 0;
            for part in [DOMAINS, digits, b"/", sent] {
                implicit = scratch.len();
                // What does not fit is longer than any path may be.
                scratch.extend_from_slice(part).map_err(|_| Errno::Invalid)?;
            }
            Name { path: scratch, implicit }
        }
    };
    check(name.path, relative_max).map(|()| name)
}

fn check(path: &[u8], relative_max: usize) -> Result<(), Errno> {
    let (mut seen, mut previous) = (0, 0);
    for byte in path {
        let class = CLASSES[usize::from(*byte)];
        // Two slashes in a row have the bit of a slash in common.
        seen |= (class & REFUSED) | (class & previous);
        previous = class;
    }
    let ends_in_slash = previous == SLASH && path.len() > 1;
    // A level has a slash and a letter.
    let too_deep = path.len() > 2 * LEVELS_MAX && components(path).nth(LEVELS_MAX).is_some();
    let too_long = path.len() > ABSOLUTE_PATH_MAX
        || (path.len() > relative_max && path.len() - own_prefix(path) > relative_max);
    if seen != 0 || ends_in_slash || too_deep || too_long { Err(Errno::Invalid) } else { Ok(()) }
}

/// Length of `/local/domain/<domid>/` at the start of a path: it does not count as length.
fn own_prefix(path: &[u8]) -> usize {
    let Some(rest) = path.strip_prefix(DOMAINS) else { return 0 };
    match rest.iter().position(|byte| *byte == b'/') {
        Some(digits) if text::domid(&rest[..digits]).is_some() => DOMAINS.len() + digits + 1,
        _ => 0,
    }
}

/// Appends the base path of a domain, without a slash at its end.
pub fn domain_path(domid: u16, into: &mut Vec<u8>) {
    into.extend_from_slice(DOMAINS);
    let mut digits = [0; DECIMAL_MAX];
    into.extend_from_slice(text::format_decimal(u64::from(domid), &mut digits));
}

/// The components of an absolute path; none for the root.
#[derive(Clone, Debug)]
pub struct Components<'a> {
    rest: &'a [u8],
}

/// The components of an absolute path.
pub fn components(path: &[u8]) -> Components<'_> {
    Components { rest: path.strip_prefix(b"/").unwrap_or(path) }
}

impl<'a> Components<'a> {
    /// What has not been taken yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Components<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let all = self.rest;
        match all.iter().position(|byte| *byte == b'/') {
            Some(end) => {
                self.rest = &all[end + 1..];
                Some(&all[..end])
            }
            None => {
                self.rest = &[];
                Some(all)
            }
        }
    }
}

/// The path of the parent; the root is its own.
pub fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) | None => b"/",
        Some(end) => &path[..end],
    }
}

/// Appends a child's name to the path of its parent.
pub fn push(path: &mut Vec<u8>, name: &[u8]) {
    if path.len() != 1 {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Shortens a path by its last component.
pub fn pop(path: &mut Vec<u8>) {
    let len = parent(path).len();
    path.truncate(len);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(sent: &[u8], special: Special) -> Option<Vec<u8>> {
        let mut scratch = Buffer::new();
        resolve(sent, 7, special, 2048, &mut scratch).ok().map(|name| name.path.to_vec())
    }

    /// What the specification says, in the words of the specification and slowly.
    fn model(sent: &[u8], special: Special) -> Option<Vec<u8>> {
        let allowed = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@";
        let text = String::from_utf8(sent.to_vec()).ok()?;
        if text.is_empty() || !sent.iter().all(|byte| allowed.contains(byte)) {
            return None;
        }
        if text.starts_with('@') && special == Special::Refused {
            return None;
        }
        let absolute = match text.starts_with(['/', '@']) {
            true => text,
            false => format!("/local/domain/7/{text}"),
        };
        let bad = absolute.contains("//") || (absolute != "/" && absolute.ends_with('/'));
        (!bad).then(|| absolute.into_bytes())
    }

    /// Every name of up to five bytes over an alphabet that has every kind of byte.
    #[test]
    fn every_short_name() {
        let alphabet = *b"a0/@-_.~\0 ";
        let mut names = vec![Vec::new()];
        let mut from = 0;
        for _ in 0..5 {
            let until = names.len();
            for index in from..until {
                for byte in alphabet {
                    let mut longer: Vec<u8> = names[index].clone();
                    longer.push(byte);
                    names.push(longer);
                }
            }
            from = until;
        }
        assert_eq!(names.len(), 111_111);
        for name in &names {
            for special in [Special::Allowed, Special::Refused] {
                assert_eq!(resolved(name, special), model(name, special), "{name:?}");
            }
        }
    }

    #[test]
    fn every_byte() {
        for byte in 0..=255u8 {
            let name = [b'/', byte];
            assert_eq!(
                resolved(&name, Special::Refused).is_some(),
                byte != b'/' && model(&name, Special::Refused).is_some()
            );
        }
    }

    #[test]
    fn lengths() {
        let of = |len: usize| [&b"/"[..], &vec![b'a'; len - 1]].concat();
        assert!(resolved(&of(2048), Special::Refused).is_some());
        assert!(resolved(&of(2049), Special::Refused).is_none());
        let own = |len: usize| [&b"/local/domain/12/"[..], &vec![b'a'; len]].concat();
        assert!(resolved(&own(2048), Special::Refused).is_some());
        assert!(resolved(&own(2049), Special::Refused).is_none());
        assert!(resolved(&vec![b'a'; 2048], Special::Refused).is_some());
        assert!(resolved(&vec![b'a'; 2049], Special::Refused).is_none());
        let mut scratch = Buffer::new();
        assert!(resolve(&of(3072), 0, Special::Refused, usize::MAX, &mut scratch).is_ok());
        assert!(resolve(&of(3073), 0, Special::Refused, usize::MAX, &mut scratch).is_err());
    }

    #[test]
    fn levels() {
        let is_taken = |path: String| resolved(path.as_bytes(), Special::Allowed).is_some();
        assert!(is_taken("/a".repeat(128)));
        assert!(!is_taken("/a".repeat(129)));
        // Long names are none.
        assert!(is_taken("/abcdefghijkl".repeat(128)));
        assert!(!is_taken("/abcdefghijkl".repeat(129)));
        // Relative to /local/domain/7.
        assert!(is_taken(format!("a{}", "/b".repeat(124))));
        assert!(!is_taken(format!("a{}", "/b".repeat(125))));
    }

    #[test]
    fn parts() {
        assert_eq!(components(b"/").count(), 0);
        assert_eq!(components(b"/a/bc").collect::<Vec<_>>(), [&b"a"[..], b"bc"]);
        assert_eq!(parent(b"/"), b"/");
        assert_eq!(parent(b"/a"), b"/");
        assert_eq!(parent(b"/a/b"), b"/a");
        let mut path = b"/".to_vec();
        push(&mut path, b"a");
        push(&mut path, b"b");
        assert_eq!(path, b"/a/b");
        pop(&mut path);
        pop(&mut path);
        assert_eq!(path, b"/");
    }
}
