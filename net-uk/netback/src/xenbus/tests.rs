use super::*;
use crate::vif::QueueRefs;
use abi::{GrantRef, Port};
use std::collections::BTreeMap;

/// A XenStore with one vif, and both ends of it.
#[derive(Default)]
struct Store(BTreeMap<(Side, String), String>);

impl Keys for Store {
    fn get(&self, side: Side, key: &str) -> Option<&str> {
        self.0.get(&(side, key.to_string())).map(String::as_str)
    }
}

impl Store {
    fn set(&mut self, side: Side, key: &str, value: &str) {
        self.0.insert((side, key.to_string()), value.to_string());
    }

    /// What the toolstack writes, and a frontend that has everything but a state.
    fn new() -> Self {
        let mut store = Self::default();
        store.set(Side::Backend, "online", "1");
        store.set(Side::Backend, "state", "1");
        store.set(Side::Backend, "mac", "00:16:3e:00:00:01");
        for (key, value) in [
            ("tx-ring-ref", "8"),
            ("rx-ring-ref", "9"),
            ("event-channel", "5"),
            ("request-rx-copy", "1"),
            ("feature-rx-notify", "1"),
            ("feature-sg", "1"),
            ("feature-gso-tcpv4", "1"),
        ] {
            store.set(Side::Frontend, key, value);
        }
        store
    }

    /// The frontend changes its state; the shell does what the backend says.
    fn frontend(&mut self, backend: &mut Backend, state: State) -> Vec<Action> {
        self.set(Side::Frontend, "state", &(state as u8).to_string());
        self.step(backend)
    }

    fn step(&mut self, backend: &mut Backend) -> Vec<Action> {
        let mut done = Vec::new();
        let mut actions = backend.step(self);
        while !actions.is_empty() {
            let action = actions.remove(0);
            match &action {
                Action::Write(key, value) => self.set(Side::Backend, key, value),
                Action::Connect(_) => actions.extend(backend.connected(Ok(()))),
                Action::Disconnect | Action::Remove => {}
            }
            done.push(action);
        }
        done
    }
}

fn backend() -> Backend {
    Backend::new(DomId(17), 0)
}

fn states(actions: &[Action]) -> String {
    let words = actions.iter().filter_map(|action| match action {
        Action::Write(key, value) if key == "state" => Some(value.clone()),
        Action::Write(key, _) if key == "error" => Some("error".to_string()),
        Action::Write(..) => None,
        Action::Connect(_) => Some("connect".to_string()),
        Action::Disconnect => Some("disconnect".to_string()),
        Action::Remove => Some("remove".to_string()),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Runs a scenario: `frontend state -> what the backend does`, one per line.
fn scenario(store: &mut Store, backend: &mut Backend, text: &str) {
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (state, expected) = line.split_once("->").unwrap();
        let actions = match state.trim() {
            "offline" => {
                store.set(Side::Backend, "online", "0");
                store.step(backend)
            }
            "gone" => {
                store.0.remove(&(Side::Frontend, "state".to_string()));
                store.step(backend)
            }
            state => store.frontend(backend, State::parse(state)),
        };
        assert_eq!(states(&actions), expected.trim(), "at {line:?}");
    }
}

#[test]
fn linux_comes_and_goes_and_comes_again() {
    let (mut store, mut backend) = (Store::new(), backend());
    scenario(
        &mut store,
        &mut backend,
        "1 -> 2
         4 -> connect 4
         4 ->
         5 -> disconnect 5
         6 -> 6
         1 -> 2
         4 -> connect 4
         7 -> 8
         4 -> 4
         5 -> disconnect 5
         offline ->
         6 -> 6 remove",
    );
    assert_eq!(store.get(Side::Backend, "feature-rx-copy"), Some("1"));
    assert_eq!(store.get(Side::Backend, "hotplug-status"), Some("connected"));
}

#[test]
fn frontends_that_jump() {
    scenario(
        &mut Store::new(),
        &mut backend(),
        "4 -> 2 connect 4
         6 -> disconnect 6
         1 -> 2
         3 -> connect 4
         1 -> disconnect 2
         4 -> connect 4
         gone -> disconnect 6
         offline -> 6 remove"
            .replace("offline -> 6 remove", "offline -> remove")
            .as_str(),
    );
}

#[test]
fn a_vif_waits_for_a_guest_that_has_yet_to_start() {
    scenario(&mut Store::new(), &mut backend(), "gone ->\n 1 -> 2\n 2 ->\n 4 -> connect 4");
}

#[test]
fn a_restart_writes_nothing() {
    let (mut store, mut first) = (Store::new(), backend());
    scenario(&mut store, &mut first, "1 -> 2\n 4 -> connect 4");
    let mut second = Backend::resume(DomId(17), 0, first.state(), true);
    assert_eq!(store.step(&mut second), []);
    scenario(&mut store, &mut second, "6 -> disconnect 6");
}

#[test]
fn queues_and_split_channels() {
    let (mut store, mut backend) = (Store::new(), backend());
    store.set(Side::Frontend, "multi-queue-num-queues", "2");
    for (queue, base) in [("queue-0", 10), ("queue-1", 20)] {
        for (number, key) in ["tx-ring-ref", "rx-ring-ref", "event-channel-tx", "event-channel-rx"]
            .iter()
            .enumerate()
        {
            let value = (base + number).to_string();
            store.set(Side::Frontend, &format!("{queue}/{key}"), &value);
        }
    }
    store.set(Side::Frontend, "feature-ipv6-csum-offload", "1");
    store.set(Side::Frontend, "feature-no-csum-offload", "1");
    let actions = store.frontend(&mut backend, State::Connected);
    let connection = actions.iter().find_map(|action| match action {
        Action::Connect(connection) => Some(connection.clone()),
        _ => None,
    });
    let connection = connection.unwrap();
    assert_eq!(
        connection.queues[1],
        QueueRefs {
            tx_ring: GrantRef(20),
            rx_ring: GrantRef(21),
            tx_port: Port(22),
            rx_port: Port(23)
        }
    );
    assert!(connection.abilities.has_checksum_v6 && !connection.abilities.has_checksum_v4);
    assert!(connection.abilities.has_sg && !connection.abilities.has_gso_v6);
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    for (key, value, error) in [
        ("tx-ring-ref", "x", "tx-ring-ref is \"x\""),
        ("request-rx-copy", "0", "request-rx-copy is \"0\""),
        ("multi-queue-num-queues", "0", "multi-queue-num-queues is \"0\""),
        ("multi-queue-num-queues", "99", "multi-queue-num-queues is \"99\""),
        ("multi-queue-num-queues", "2", "the frontend has not written queue-0/event-channel"),
    ] {
        let (mut store, mut backend) = (Store::new(), backend());
        store.set(Side::Frontend, key, value);
        let actions = store.frontend(&mut backend, State::Connected);
        assert_eq!(states(&actions), "2 error 5", "{key}");
        assert_eq!(store.get(Side::Backend, "error"), Some(error));
        scenario(&mut store, &mut backend, "4 ->\n 5 ->\n 6 -> 6\n 1 -> 2");
    }
}

/// Every pair of states, online or not: the backend settles, says nothing twice, and is connected
/// exactly when the frontend works.
#[test]
fn every_pair_settles() {
    for ours in State::ALL {
        for was_connected in [false, true] {
            for frontend in State::ALL {
                for online in ["0", "1"] {
                    let mut store = Store::new();
                    store.set(Side::Backend, "online", online);
                    let mut backend = Backend::resume(DomId(17), 0, ours, was_connected);
                    let first = store.frontend(&mut backend, frontend);
                    let again = store.step(&mut backend);
                    let quiet = again.iter().all(|action| *action == Action::Remove);
                    assert!(quiet, "{ours:?} {frontend:?}: {again:?}");
                    let disconnects =
                        first.iter().filter(|action| **action == Action::Disconnect).count();
                    assert!(disconnects <= 1 && (was_connected || disconnects == 0));
                    let is_over = matches!(
                        frontend,
                        State::Unknown | State::Initialising | State::Closing | State::Closed
                    );
                    assert!(!is_over || !backend.is_connected());
                    if frontend == State::Connected && ours != State::Closing {
                        assert!(backend.is_connected());
                        assert_eq!(backend.state(), State::Connected);
                    }
                }
            }
        }
    }
}
