//! Lines of the serial console: patterns to wait for, and the machine-readable ones.

use std::time::Duration;

use serde_json::Value;

/// What begins a machine-readable line (after the name of the domain that wrote it, if any).
const MARK: &str = "@{";

/// One line of the console.
#[derive(Clone, Debug)]
pub struct Line {
    /// Host time since the boot began.
    pub at: Duration,
    /// The line, without its end and without control characters.
    pub text: String,
}

/// One machine-readable line.
#[derive(Clone, Debug)]
pub struct Record {
    /// Host time since the boot began.
    pub at: Duration,
    /// What stood before the object: empty for the orchestrator's own lines, a domain's name else.
    /// A guest can write any object, so whoever judges looks here first.
    pub source: String,
    /// The object.
    pub value: Value,
}

impl Line {
    /// The object in this line, if it holds one.
    pub fn record(&self) -> Option<Record> {
        let begin = self.text.find(MARK)?;
        let mut values =
            serde_json::Deserializer::from_str(&self.text[begin + 1..]).into_iter::<Value>();
        let value = values.next()?.ok()?;
        let source = self.text[..begin].trim().to_owned();
        Some(Record { at: self.at, source, value })
    }
}

impl Record {
    /// A field as text.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.value.get(field)?.as_str()
    }

    /// A field as a number.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.value.get(field)?.as_u64()
    }

    /// Whether this is an event of that name.
    pub fn is(&self, event: &str) -> bool {
        self.text("event") == Some(event)
    }
}

/// Text to be found in a line; `*` stands for anything between two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl Pattern {
    /// A pattern from its text.
    pub fn new(text: &str) -> Pattern {
        Pattern(text.split('*').filter(|part| !part.is_empty()).map(str::to_owned).collect())
    }

    /// Whether the parts occur in `line` in this order.
    pub fn matches(&self, line: &str) -> bool {
        let mut rest = line;
        self.0.iter().all(|part| match rest.find(part.as_str()) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    }

    /// The pattern's text.
    pub fn text(&self) -> String {
        self.0.join("*")
    }
}

/// Removes line ends, escape sequences and other control characters.
pub fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\u{1b}' => skip_escape(&mut characters),
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Skips a terminal's control sequence (ECMA-48: `ESC [`, parameters, one final character).
fn skip_escape(characters: &mut std::str::Chars<'_>) {
    if characters.next() != Some('[') {
        return;
    }
    for c in characters {
        if ('@'..='~').contains(&c) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line { at: Duration::ZERO, text: text.into() }
    }

    #[test]
    fn objects_are_found_with_their_source() {
        let record = line(r#"@{"event":"fault","at":12,"ok":true}"#).record().unwrap();
        assert!(record.is("fault") && record.source.is_empty());
        assert_eq!(record.number("at"), Some(12));
        let record = line(r#"(g16) @{"event":"script"} trailing"#).record().unwrap();
        assert_eq!(record.source, "(g16)");
        assert!(line(r#"@{"event": cut"#).record().is_none());
        assert!(line("plain").record().is_none());
    }

    #[test]
    fn patterns_match_in_order() {
        assert!(Pattern::new("up=*work=").matches("GUEST_READY up=1.2 work=demo"));
        assert!(!Pattern::new("work=*up=").matches("GUEST_READY up=1.2 work=demo"));
        assert!(Pattern::new("").matches("anything"));
    }

    #[test]
    fn control_characters_are_removed() {
        assert_eq!(clean(b"\x1b[31mred\x1b[0m\tx\r\n"), "red x");
    }
}
