//! The server dies after every single store: nothing is lost, nothing happens twice.
#![allow(missing_docs)]

mod common;

use common::{Guest, Host, Message, TOOL};
use store::Config;
use wire::Operation as O;

/// A guest's script: requests sent without waiting for replies. Each guest changes its own
/// subtree, so its replies do not depend on what the others do meanwhile.
type Script = Vec<(O, Vec<u8>)>;

fn step(operation: O, strings: &[&str]) -> (O, Vec<u8>) {
    let payload: String = strings.iter().map(|string| format!("{string}\0")).collect();
    (operation, payload.into_bytes())
}

fn value(path: &str, value: &str) -> (O, Vec<u8>) {
    (O::Write, format!("{path}\0{value}").into_bytes())
}

/// Requests whose second execution would be answered differently, long ones, refused ones.
fn script(domid: u16) -> Script {
    let other = if domid == 16 { 17 } else { 16 };
    let watched = format!("/local/domain/{other}/data");
    let long = "v".repeat(1800);
    vec![
        step(O::Watch, &[&watched, "w"]),
        value("data/a", "1"),
        step(O::TransactionStart, &[""]),
        step(O::Read, &["data/a"]),
        value("data/b/c/d", "2"),
        step(O::Watch, &["data", "own"]),
        value("data/long", &long),
        step(O::Read, &["data/long"]),
        step(O::Directory, &["data"]),
        step(O::Unwatch, &["data", "own"]),
        step(O::SetPermissions, &["data/a", &format!("r{domid}")]),
        step(O::GetPermissions, &["data/a"]),
        value("data/a", "3"),
        step(O::Remove, &["data/b"]),
        step(O::Read, &["data/b/c"]),
        step(O::TransactionStart, &[""]),
        step(O::Watch, &["data", "own"]),
        step(O::ResetWatches, &[""]),
        step(O::Watch, &[&watched, "again"]),
        value("data/last", "4"),
        step(O::Read, &["data/last"]),
    ]
}

struct Run {
    host: Host,
    replies: Vec<Vec<Message>>,
    /// Events with the step at which they were received.
    events: Vec<Vec<(usize, String)>>,
    sent: Vec<Vec<usize>>,
    steps: usize,
}

const DOMIDS: [u16; 2] = [16, 17];

impl Run {
    fn new() -> Self {
        let mut host = Host::with_slots(Config::new(9, &[0, TOOL], 4), 256 + 128 * 1024);
        for domid in DOMIDS {
            host.introduce(domid);
            let base = format!("/local/domain/{domid}");
            host.call(TOOL, O::MakeDirectory, &[&base]);
            host.call(TOOL, O::SetPermissions, &[&base, &format!("r{domid}")]);
        }
        host.settle();
        // The index is complete: that is what the next lives begin by.
        host.idle();
        Self {
            host,
            replies: vec![Vec::new(); 2],
            events: vec![Vec::new(); 2],
            sent: vec![Vec::new(); 2],
            steps: 0,
        }
    }

    /// Runs both scripts to their ends, crashing when the budget is used up. Guests read `pull`
    /// bytes at a time.
    fn go(&mut self, pull: usize, second: u64) {
        let scripts = DOMIDS.map(script);
        let mut next = [0; 2];
        let mut second = Some(second);
        let mut quiet = 0;
        while quiet < 3 {
            self.steps += 1;
            assert!(self.steps < 20_000, "no end: {next:?}");
            for (index, domid) in DOMIDS.into_iter().enumerate() {
                let guest = self.host.guests.get_mut(&domid).expect("a guest");
                // Up to two requests wait in the guest.
                let is_due = guest.is_idle() || self.steps.is_multiple_of(3);
                if let Some((operation, payload)) =
                    scripts[index].get(next[index]).filter(|_| is_due)
                {
                    guest.send(*operation, 0, payload);
                    self.sent[index].push(self.steps);
                    next[index] += 1;
                }
                guest.push();
                guest.pull(pull);
                self.replies[index].extend(guest.replies.drain(..));
                let steps = self.steps;
                let events = guest.events.drain(..).map(|event| (steps, event.text()));
                self.events[index].extend(events);
            }
            let before = self.host.notified;
            self.host.kick_all();
            self.host.run(8);
            if self.host.budget.is_exhausted() {
                // The guests see what was published before the server died.
                self.host.guests.values_mut().for_each(|guest| guest.pull(pull));
                self.crash(second.take());
                quiet = 0;
            }
            let done = self.replies.iter().zip(&scripts).all(|(r, s)| r.len() == s.len());
            let is_quiet = done
                && before == self.host.notified
                && DOMIDS.iter().all(|domid| self.host.guests[domid].is_idle());
            quiet = if is_quiet { quiet + 1 } else { 0 };
        }
    }

    /// A new life; it dies, too, while it reads everything back, and a third one lives.
    fn crash(&mut self, second: Option<u64>) {
        if let Some(stores) = second {
            self.host.budget.limit(stores);
            self.host.restart_within_budget();
        }
        let report = self.host.restart();
        assert_eq!((report.load.missing_slots, report.load.damaged_slots), (0, 0));
        assert_eq!(report.damaged_areas, 0);
        assert!(report.is_indexed, "the index is whole after every store");
        self.host.actions();
    }

    fn check(&self, expected: &[Vec<Message>]) {
        assert_eq!(self.replies, expected);
        for (index, domid) in DOMIDS.into_iter().enumerate() {
            let other = 1 - index;
            // The watch was set by request 0 and renewed by request 18.
            for (request, (operation, payload)) in script(DOMIDS[other]).iter().enumerate() {
                let sent = self.sent[other][request];
                let is_watched = sent > self.sent[index][20];
                if *operation != O::Write || !is_watched {
                    continue;
                }
                let end = payload.iter().position(|byte| *byte == 0).expect("a path");
                let path = String::from_utf8_lossy(&payload[..end]);
                let seen = format!("/local/domain/{}/{path}|again|", DOMIDS[other]);
                assert!(
                    self.events[index].iter().any(|(step, text)| *step >= sent && *text == seen),
                    "{domid} never saw {seen}"
                );
            }
        }
    }
}

#[test]
fn every_store_may_be_the_last() {
    let mut undisturbed = Run::new();
    undisturbed.host.budget.refill();
    undisturbed.go(usize::MAX, 0);
    let expected = undisturbed.replies.clone();
    let total = undisturbed.host.budget.used();
    let digest = undisturbed.host.server.state().tree().nodes();
    assert!(total > 500, "{total}");
    for last in 1..total {
        let mut run = Run::new();
        run.host.budget.limit(last);
        run.go(if last.is_multiple_of(3) { 7 } else { usize::MAX }, last % 29);
        run.check(&expected);
        assert_eq!(run.host.server.state().tree().nodes(), digest);
        let slots = run.host.server.slots().used_slots();
        assert_eq!(slots, undisturbed.host.server.slots().used_slots(), "leak at {last}");
    }
}

/// A writer goes on while the server dies at every store; a watcher hears of each last value.
#[test]
fn no_event_is_lost() {
    for last in (1..1500).step_by(3) {
        let mut host = Host::with_slots(Config::new(9, &[0, TOOL], 4), 256 + 128 * 1024);
        host.introduce(16);
        assert_eq!(host.call(TOOL, O::Watch, &["/w", "t"]), "OK|");
        host.events(TOOL);
        host.budget.limit(last);
        let mut crashed = false;
        for round in 0..12 {
            let path = format!("/w/{}", round % 4);
            // The watcher is the privileged writer itself: its own writes fire its own watch.
            let guest = host.guests.get_mut(&TOOL).expect("a guest");
            guest.send(O::Write, 0, format!("{path}\0{round}").as_bytes());
            let mut seen = false;
            let mut replied = false;
            for _ in 0..200 {
                let guest = host.guests.get_mut(&TOOL).expect("a guest");
                guest.push();
                guest.pull(usize::MAX);
                seen |= guest.events.drain(..).any(|event| event.text() == format!("{path}|t|"));
                replied |= guest.replies.drain(..).next().is_some();
                if seen && replied {
                    break;
                }
                host.kick_all();
                host.run(4);
                if host.budget.is_exhausted() && !crashed {
                    crashed = true;
                    host.restart();
                }
            }
            assert!(seen && replied, "store {last}, round {round}: {seen} {replied}");
        }
    }
}

#[test]
fn a_request_that_kills_the_server_is_given_up() {
    let mut host = Host::new();
    host.write(TOOL, "/x", "old");
    let guest: &mut Guest = host.guests.get_mut(&TOOL).expect("a guest");
    guest.send(O::Write, 0, b"/x\0new");
    for life in 0..3 {
        // It dies right after it noted the attempt.
        host.budget.limit(1);
        host.kick_all();
        host.run(1);
        assert!(host.budget.is_exhausted(), "life {life}");
        host.restart();
    }
    host.settle();
    let guest = host.guests.get_mut(&TOOL).expect("a guest");
    assert_eq!(guest.replies.pop_front().map(|reply| reply.text()), Some("EIO|".to_string()));
    assert_eq!(host.server.stats().given_up, 1);
    assert_eq!(host.read(TOOL, "/x"), "old");
    assert_eq!(host.write(TOOL, "/x", "new"), "OK|");
}

/// A connection's number is used again; what the former domain was told stays in the area, and
/// must not be told to the next one, wherever the server dies.
#[test]
fn events_of_a_former_connection_stay_its_own() {
    let mut host = Host::new();
    host.introduce(16);
    let former = host.server.connection_of(16);
    let node = "/local/domain/16/data";
    assert_eq!(host.write(TOOL, node, "x"), "OK|");
    assert_eq!(host.call(TOOL, O::SetPermissions, &[node, "n16"]), "OK|");
    assert_eq!(host.call(16, O::Watch, &["data", "secret"]), "OK|");
    assert_eq!(host.write(16, "data", "y"), "OK|");
    assert_eq!(host.events(16).len(), 2, "the watch's own event and the change");
    assert_eq!(host.call(TOOL, O::Release, &["16"]), "OK|");
    host.introduce(17);
    assert_eq!(host.server.connection_of(17), former, "the number is used again");
    host.restart();
    host.settle();
    assert_eq!(host.events(17), Vec::<String>::new());
    // Its own events do not end where an old one happens to begin.
    assert_eq!(host.call(17, O::Watch, &["data", "secret"]), "OK|");
    host.restart();
    host.settle();
    assert_eq!(host.events(17), ["data|secret|"]);
}

/// A kernel looks at its ring only when its event channel is notified. Wherever the server dies,
/// the next life must ring for whatever a former one has put there in silence.
#[test]
fn a_client_that_sleeps_is_woken_after_a_recovery() {
    let mut last = 0;
    let mut crashed = true;
    while crashed {
        last += 1;
        let mut host = Host::with_slots(Config::new(9, &[0, TOOL], 4), 256 + 128 * 1024);
        host.introduce(16);
        assert_eq!(host.call(TOOL, O::Watch, &["/w", "t"]), "OK|");
        host.events(TOOL);
        host.awake.clear();
        host.guests.get_mut(&TOOL).expect("a guest").send(O::Write, 0, b"/w\0x");
        host.server.kick(host.server.connection_of(TOOL).expect("it is connected"));
        host.budget.limit(last);
        host.run(100);
        crashed = host.budget.is_exhausted();
        if crashed {
            host.restart();
            host.run(100);
        }
        assert!(host.awake.remove(&TOOL), "store {last}: nobody rings");
        let guest = host.guests.get_mut(&TOOL).expect("a guest");
        guest.pull(usize::MAX);
        assert_eq!(guest.replies.pop_front().map(|reply| reply.text()), Some("OK|".into()));
        assert_eq!(host.events(TOOL).last().map(String::as_str), Some("/w|t|"), "store {last}");
    }
    assert!(last > 10, "the request has only {last} stores");
}
