//! Scenario files: commands, each followed by the trace it must leave.
//!
//! `UPDATE_SCENARIOS=1 cargo test -p raft --test scenarios` writes the traces anew; review the
//! difference. A line that starts with `>` is a command, `#` a remark, the rest is trace.
//!
//! | command | what happens |
//! |---|---|
//! | `campaign N` | the orchestrator tells N to campaign |
//! | `publish N E` | it publishes N under relay epoch E |
//! | `serve N E` | may N reply under E? |
//! | `propose N C#S TEXT` | N takes a request |
//! | `step K`, `deliver` | K messages arrive, or all |
//! | `pass MS` | time passes |
//! | `cut A B`, `join` | messages from A to B are lost; no more |
//! | `crash N`, `open N` | N dies; starts again from its storage |
//! | `damage N`, `rebuild N` | both headers of N's storage are damaged; N comes back as newcomer |
//! | `abandon N` | N's state is found wrong |
//! | `status` | what each replica shows |

mod cluster;

use std::fs;
use std::path::Path;

use cluster::{Cluster, Ledger};
use fabric::SharedMemory;

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("'{word}' is no number"))
}

fn run(cluster: &mut Cluster, command: &str) -> Vec<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let replica = |at: usize| number(words[at]) as u8;
    let mut said = Vec::new();
    match words[0] {
        "campaign" => {
            let now = cluster.now;
            let outcome = cluster.node(replica(1)).campaign(now, 0);
            said.extend(outcome.err().map(|why| format!("refused: {why:?}")));
            cluster.work();
        }
        "publish" => {
            let leads = cluster.node(replica(1)).publish(number(words[2]));
            said.push(if leads { "published" } else { "not a leader" }.into());
        }
        "serve" => said.push(cluster.node(replica(1)).may_reply(number(words[2])).to_string()),
        "propose" => {
            let (connection, sequence) = words[2].split_once('#').expect("connection#sequence");
            let payload = words[3..].join(" ");
            let outcome = cluster.node(replica(1)).propose(
                0,
                number(connection) as u32,
                number(sequence),
                payload.as_bytes(),
            );
            said.push(match outcome {
                Ok(position) => format!("at {}/{}", position.term, position.index),
                Err(why) => format!("refused: {why:?}"),
            });
        }
        "step" => {
            for _ in 0..number(words[1]) {
                cluster.step();
            }
        }
        "deliver" => cluster.settle(),
        "pass" => cluster.pass(number(words[1]) * 1_000_000),
        "cut" => cluster.cut.push((replica(1), replica(2))),
        "join" => cluster.cut.clear(),
        "crash" => cluster.crash(replica(1)),
        "open" => {
            said.extend(cluster.open(replica(1)).err().map(|why| format!("fails: {why:?}")));
        }
        "damage" => cluster.replica(replica(1)).memory.fill(0, 256, 0xee),
        "rebuild" => cluster.rebuild(replica(1)),
        "abandon" => {
            cluster.replica(replica(1)).machine = Ledger::default();
            let now = cluster.now;
            cluster.node(replica(1)).abandon_machine(now);
        }
        "status" => said.extend((1..=3).map(|replica| status(cluster, replica))),
        other => panic!("unknown command '{other}'"),
    }
    let mut trace = std::mem::take(&mut cluster.trace);
    trace.append(&mut said);
    trace
}

fn status(cluster: &mut Cluster, number: u8) -> String {
    let executed = cluster.replica(number).machine.executed.len();
    let Some(node) = &cluster.replica(number).node else { return format!("{number} is dead") };
    let status = node.status();
    let role = match (status.leading, status.restoring, status.voter) {
        (true, ..) => "leads",
        (_, true, _) => "is being restored",
        (_, _, true) => "votes",
        _ => "has no vote",
    };
    let (term, last) = (status.term, status.last);
    format!(
        "{number} {role} in term {term}, last {}/{}, commit {}, applied {}, executed {executed}",
        last.term, last.index, status.commit, status.applied
    )
}

fn play(text: &str) -> String {
    let mut cluster = Cluster::new();
    cluster.settle();
    cluster.trace.clear();
    let mut out = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            out += &format!("> {command}\n");
            for said in run(&mut cluster, command) {
                out += &format!("{said}\n");
            }
        } else if line.starts_with('#') || line.is_empty() {
            out += &format!("{line}\n");
        }
    }
    out
}

#[test]
fn scenarios_leave_their_traces() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let trace = play(&text);
        count += 1;
        if std::env::var_os("UPDATE_SCENARIOS").is_some() {
            fs::write(&path, trace).unwrap();
        } else {
            assert_eq!(trace, text, "{}", path.display());
        }
    }
    assert!(count >= 6, "{count} scenarios");
}
