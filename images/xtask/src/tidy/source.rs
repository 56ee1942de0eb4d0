//! Rust source seen line by line, code and comments apart.

/// One line of a source file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SourceLine {
    /// Its code; contents of strings, characters and comments are blanks.
    pub code: String,
    /// Its comments.
    pub comment: String,
    /// Whether it lies in a module compiled for tests only.
    pub in_test: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Code,
    LineComment,
    BlockComment(u32),
    Text,
    RawText(usize),
}

/// Cuts `text` into lines.
pub fn lines(text: &str) -> Vec<SourceLine> {
    let characters: Vec<char> = text.chars().collect();
    let mut out = vec![SourceLine::default()];
    let mut state = State::Code;
    let mut at = 0;
    while at < characters.len() {
        let c = characters[at];
        if c == '\n' {
            if state == State::LineComment {
                state = State::Code;
            }
            out.push(SourceLine::default());
            at += 1;
            continue;
        }
        let line = out.last_mut().expect("there is always a line");
        let (next, used) = step(state, &characters[at..], line);
        state = next;
        at += used;
    }
    mark_tests(&mut out);
    out
}

/// Takes one or more characters; gives the state after them and how many they were.
fn step(state: State, rest: &[char], line: &mut SourceLine) -> (State, usize) {
    let c = rest[0];
    let next = rest.get(1).copied().unwrap_or(' ');
    match state {
        State::LineComment => {
            line.comment.push(c);
            (state, 1)
        }
        State::BlockComment(depth) => match (c, next) {
            ('*', '/') if depth == 1 => (State::Code, 2),
            ('*', '/') => (State::BlockComment(depth - 1), 2),
            ('/', '*') => (State::BlockComment(depth + 1), 2),
            _ => {
                line.comment.push(c);
                (state, 1)
            }
        },
        State::Text => match c {
            // An escaped line end is left to the caller, who counts lines.
            '\\' if next != '\n' => (state, 2),
            '"' => {
                line.code.push('"');
                (State::Code, 1)
            }
            _ => (state, 1),
        },
        State::RawText(hashes) => {
            let ends = c == '"' && rest[1..].iter().take_while(|c| **c == '#').count() >= hashes;
            if ends { (State::Code, 1 + hashes) } else { (state, 1) }
        }
        State::Code => code(rest, line),
    }
}

fn code(rest: &[char], line: &mut SourceLine) -> (State, usize) {
    let next = rest.get(1).copied().unwrap_or(' ');
    match (rest[0], next) {
        ('/', '/') => (State::LineComment, 2),
        ('/', '*') => (State::BlockComment(1), 2),
        ('"', _) => {
            line.code.push('"');
            (State::Text, 1)
        }
        ('r', '"' | '#') if !ends_in_name(&line.code) => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) == Some(&'"') {
                return (State::RawText(hashes), 2 + hashes);
            }
            line.code.push('r');
            (State::Code, 1)
        }
        ('\'', _) => {
            let used = character_length(rest);
            if used == 1 {
                line.code.push('\'');
            }
            (State::Code, used)
        }
        (c, _) => {
            line.code.push(c);
            (State::Code, 1)
        }
    }
}

/// Whether the code so far ends in a name that a following `r` belongs to (`br"..."` does not).
fn ends_in_name(code: &str) -> bool {
    let last = code.chars().next_back().unwrap_or(' ');
    let before = code.chars().rev().nth(1).unwrap_or(' ');
    let is_byte_prefix = last == 'b' && !is_name(before);
    is_name(last) && !is_byte_prefix
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Characters of a character literal, or one for the tick of a lifetime.
fn character_length(rest: &[char]) -> usize {
    if rest.get(1) == Some(&'\\') {
        let end = rest.iter().skip(3).position(|c| *c == '\'');
        return end.map_or(1, |end| end + 4);
    }
    if rest.get(2) == Some(&'\'') { 3 } else { 1 }
}

/// Marks modules behind `#[cfg(test)]`.
fn mark_tests(lines: &mut [SourceLine]) {
    let mut at = 0;
    while at < lines.len() {
        if !lines[at].code.contains("#[cfg(test)]") {
            at += 1;
            continue;
        }
        let end = item_end(lines, at);
        lines[at..=end].iter_mut().for_each(|line| line.in_test = true);
        at = end + 1;
    }
}

/// The last line of the item that begins at line `begin`: where its braces close, or its `;`.
pub fn item_end(lines: &[SourceLine], begin: usize) -> usize {
    let mut depth = 0i32;
    let mut brackets = 0i32;
    for (index, line) in lines.iter().enumerate().skip(begin) {
        for c in line.code.chars() {
            match c {
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    if depth <= 0 {
                        return index;
                    }
                }
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets -= 1,
                ';' if depth == 0 && brackets == 0 => return index,
                _ => {}
            }
        }
    }
    lines.len().saturating_sub(1)
}

/// The words of a line of code.
pub fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c| !is_name(c)).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_are_no_code() {
        let text = "let a = \"unsafe // no\"; // unsafe\n\
                    let b = 'u'; /* x /* y */ z */ f::<'a>();\n\
                    let c = r#\"unsafe \" {\"#; let d = b'{'; let e = '\\''; g(br\"}\");";
        let lines = lines(text);
        assert_eq!(lines[0].code, "let a = \"\"; ");
        assert_eq!(lines[0].comment, " unsafe");
        assert_eq!(lines[1].code, "let b = ;  f::<'a>();");
        assert_eq!(lines[2].code, "let c = ; let d = b; let e = ; g(b);");
    }

    #[test]
    fn test_modules_are_marked_to_their_end() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { c() }\n}\nfn d() {}";
        let marks: Vec<bool> = lines(text).iter().map(|line| line.in_test).collect();
        assert_eq!(marks, [false, true, true, true, true, false]);
        let text = "#[cfg(test)]\n#[path = \"x\"]\nmod t;\nfn a() {}";
        let marks: Vec<bool> = lines(text).iter().map(|line| line.in_test).collect();
        assert_eq!(marks, [true, true, true, false]);
    }
}
