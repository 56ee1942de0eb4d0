//! What two servers said to the same stream, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Result, ensure};

/// Differences of one reason that are shown.
const SHOWN: usize = 5;

/// Round, turn, and number in the turn.
type Place = (u64, u64, u64);

/// What one party printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Party {
    /// By place in the stream: the request and its answer.
    pub answers: BTreeMap<Place, (String, String)>,
    /// Path and token of each event, in order.
    pub events: Vec<String>,
    /// Rounds in which transactions meet.
    wild: BTreeSet<u64>,
}

impl Party {
    /// Reads `R PLACE REQUEST -> ANSWER`, `E NUMBER PATH TOKEN`, `W ROUND` for a wild round, and
    /// `STREAM …` at the end.
    pub fn read(text: &str) -> Result<Party> {
        let mut party = Party::default();
        let mut is_whole = false;
        for line in text.lines() {
            is_whole |= line.starts_with("STREAM ");
            if let Some((place, (request, answer))) = answer(line) {
                party.answers.insert(place, (request, answer));
            } else if let Some(event) = line.strip_prefix("E ") {
                let event = event.split_once(' ').map_or(event, |(_, event)| event);
                party.events.push(event.to_owned());
            } else if let Some(round) = line.strip_prefix("W ") {
                party.wild.insert(round.parse()?);
            }
        }
        ensure!(is_whole, "a party did not come to its end; its last words:\n{}", tail(text));
        Ok(party)
    }
}

fn tail(text: &str) -> String {
    crate::process::tail(text, SHOWN)
}

fn answer(line: &str) -> Option<(Place, (String, String))> {
    let (place, rest) = line.strip_prefix("R ")?.split_once(' ')?;
    let mut numbers = place.split('.').map(|number| number.parse().ok());
    let place = (numbers.next()??, numbers.next()??, numbers.next()??);
    let (request, answer) = rest.rsplit_once(" -> ")?;
    Some((place, (request.to_owned(), answer.to_owned())))
}

/// The round of an event's path: `/stream7/…`, or `stream7/…` as a relative one.
fn round(event: &str) -> Option<u64> {
    let rest = event.trim_start_matches('/').strip_prefix("stream")?;
    rest.split(['/', ' ']).next()?.parse().ok()
}

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    party: usize,
    place: Place,
    request: String,
    ours: String,
    theirs: String,
}

/// All differences, by their reasons.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    answers: usize,
    events: usize,
    explained: BTreeMap<&'static str, Vec<Difference>>,
    unexplained: Vec<Difference>,
}

impl Comparison {
    /// Compares what the parties of both streams said.
    pub fn of(ours: &[Party], theirs: &[Party]) -> Result<Comparison> {
        let mut out = Comparison::default();
        let mut differences = Vec::new();
        for (party, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            out.answers += ours.answers.len();
            out.events += ours.events.len();
            for (place, (request, answer)) in &ours.answers {
                let (asked, other) = theirs.answers.get(place).cloned().unwrap_or_default();
                let is_same = asked == *request;
                ensure!(
                    is_same,
                    "party {party} asked {request:?} here, {asked:?} there: {place:?}"
                );
                let (request, ours, theirs) = (request.clone(), answer.clone(), other);
                differences.push(Difference { party, place: *place, request, ours, theirs });
            }
            differences.extend(events(party, &ours.events, &theirs.events));
        }
        differences.retain(|difference| difference.ours != difference.theirs);
        differences.sort_by_key(|difference| difference.place);
        let wild: BTreeSet<u64> = ours.iter().flat_map(|party| party.wild.clone()).collect();
        let mut split = BTreeSet::new();
        for difference in differences {
            let round = difference.place.0;
            let reason = reason(&difference);
            let is_wild = wild.contains(&round);
            if reason == Some("node size") {
                split.insert(round);
            }
            let reason = reason
                .or_else(|| is_wild.then(|| wild_reason(&difference, &mut split)).flatten())
                .or_else(|| split.contains(&round).then_some("after another outcome"));
            match reason {
                Some(reason) => out.explained.entry(reason).or_default().push(difference),
                None => out.unexplained.push(difference),
            }
        }
        Ok(out)
    }

    /// The reasons of the differences that have one.
    pub fn reasons(&self) -> impl Iterator<Item = &'static str> {
        self.explained.keys().copied()
    }

    /// How many differences have none.
    pub fn unexplained(&self) -> usize {
        self.unexplained.len()
    }
}

/// Events have no place in their round: a guest's kernel hands them over in its own time. So how
/// often each was told is compared.
fn events(party: usize, ours: &[String], theirs: &[String]) -> Vec<Difference> {
    let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    ours.iter().for_each(|event| counts.entry(event).or_default().0 += 1);
    theirs.iter().for_each(|event| counts.entry(event).or_default().1 += 1);
    let difference = |(event, (here, there)): (&str, (u64, u64))| Difference {
        party,
        // Behind all requests of the round.
        place: (round(event).unwrap_or(u64::MAX), u64::MAX, 0),
        request: format!("event {event}"),
        ours: format!("{here} times"),
        theirs: format!("{there} times"),
    };
    counts.into_iter().map(difference).collect()
}

/// Why a difference in a wild round is right. `split` holds the rounds in which one of both servers
/// has done what the other has not: from there on their trees differ.
fn wild_reason(difference: &Difference, split: &mut BTreeSet<u64>) -> Option<&'static str> {
    if difference.request.starts_with("TransactionEnd in") {
        split.insert(difference.place.0);
    }
    difference.request.contains(" in ").then_some("instant of a transaction's view")
}

/// Why this difference is right, as docs/DIFFERENCES.md names it.
fn reason(difference: &Difference) -> Option<&'static str> {
    let op = difference.request.split(' ').next().unwrap_or_default();
    let (ours, theirs) = (difference.ours.as_str(), difference.theirs.as_str());
    let names = |answer: &str| {
        let mut names: Vec<String> =
            answer.strip_prefix("ok:")?.split('|').map(str::to_owned).collect();
        names.sort();
        Some(names)
    };
    match op {
        "Read" if ours == "EINVAL" && !difference.request.ends_with('|') => Some("missing NUL"),
        "Write" | "Mkdir" if ours == "ok:OK|" && theirs == "ENOSPC" => Some("node size"),
        "event" => {
            let times = |text: &str| text.split(' ').next()?.parse::<u64>().ok();
            let is_told = times(ours) >= Some(1) && times(ours) < times(theirs);
            is_told.then_some("repeated event")
        }
        "Directory" if names(ours).is_some() && names(ours) == names(theirs) => {
            Some("order of children")
        }
        _ => None,
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { party, place: (round, turn, number), request, ours, theirs } = self;
        write!(f, "d{party} {round}.{turn}.{number} {request}: ours {ours}, xenstored {theirs}")
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} answers and {} events compared", self.answers, self.events)?;
        for (reason, differences) in &self.explained {
            writeln!(f, "{}: {reason}", differences.len())?;
            for difference in differences.iter().take(SHOWN) {
                writeln!(f, "    {difference}")?;
            }
        }
        writeln!(f, "{} without a reason", self.unexplained.len())?;
        for difference in self.unexplained.iter().take(10 * SHOWN) {
            writeln!(f, "    {difference}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(answers: &[(&str, &str)], events: &[&str]) -> Party {
        let mut text = String::new();
        for (number, (request, answer)) in answers.iter().enumerate() {
            text += &format!("R 0.7.{number} {request} -> {answer}\n");
        }
        for (number, event) in events.iter().enumerate() {
            text += &format!("E {number} {event}\n");
        }
        Party::read(&(text + "STREAM party=0\n")).unwrap()
    }

    #[test]
    fn equal_streams_have_no_difference() {
        let one = party(&[("Read a|", "ok:1"), ("Read b|", "ENOENT")], &["a t", "a t"]);
        let found = Comparison::of(std::slice::from_ref(&one), std::slice::from_ref(&one)).unwrap();
        assert_eq!((found.answers, found.events, found.unexplained()), (2, 2, 0));
        assert_eq!(found.reasons().count(), 0);
    }

    #[test]
    fn differences_are_found_and_explained() {
        let ours = party(&[("Directory /|", "ok:a|b|"), ("Read a|", "ok:1")], &["a t", "b t"]);
        let theirs = party(&[("Directory /|", "ok:b|a|"), ("Read a|", "ok:2")], &["a t", "a t"]);
        let found = Comparison::of(&[ours], &[theirs]).unwrap();
        assert_eq!(found.reasons().collect::<Vec<_>>(), ["order of children", "repeated event"]);
        assert_eq!(found.unexplained(), 2, "a value, and an event that nobody caused");
    }

    #[test]
    fn a_wild_round_explains_what_follows_from_its_transactions() {
        let text = |end: &str, read: &str| {
            format!(
                "W 7\nR 7.450.0 Read /a| -> ok:1\nR 7.451.0 TransactionEnd in 0 T| -> {end}\n\
                 R 7.452.0 Read /a| -> {read}\nR 8.512.0 Read /a| -> {read}\nE 1 /stream7/a t\n\
                 STREAM end\n"
            )
        };
        let ours = Party::read(&text("EAGAIN", "ok:1")).unwrap();
        let theirs = Party::read(&text("ok:OK|", "ok:2")).unwrap();
        let found = Comparison::of(&[ours], &[theirs]).unwrap();
        assert_eq!(found.unexplained(), 1, "the next round has a tree of its own: {found}");
        assert_eq!(found.reasons().count(), 2);
        assert_eq!((round("stream7/a t"), round("/other t")), (Some(7), None));
    }

    #[test]
    fn other_requests_and_cut_streams_are_errors() {
        let (a, b) = (party(&[("Read a|", "x")], &[]), party(&[("Read b|", "x")], &[]));
        assert!(Comparison::of(&[a], &[b]).is_err());
        assert!(Party::read("R 0.1.1 Read a| -> ok:\n").is_err());
    }
}
