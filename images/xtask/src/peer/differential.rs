//! The same seeded stream of requests, by three domains, to C xenstored on the classic host and to
//! our store behind Unix sockets: every answer and every watch event is compared.
//!
//! A difference must have its reason in docs/DIFFERENCES.md; one without fails.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::hosted;
use crate::paths;
use crate::peer::drive::{Peer, Setup};
use crate::peer::guest::{self, Guest, Kind};
use crate::peer::host::Host;
use crate::progress::Steps;

mod compare;

use compare::{Comparison, Party};

/// The page of reasons, from the workspace's root.
const PAGE: &str = "docs/DIFFERENCES.md";

/// dom0 and two guests: a third does not fit into this dom0's memory while xl unpacks its kernel.
const PARTIES: usize = 3;

/// Where C xenstored listens in dom0.
const SOCKET: &str = "/run/xenstored/socket";

/// One stream against our store: some 3,000 requests a second.
const OURS_LIMIT: Duration = Duration::from_secs(600);

/// One stream on the classic host, its boot and its guests' included.
const THEIRS_LIMIT: Duration = Duration::from_secs(1800);

/// Without this the emulator mixes up the vector registers of domains that take turns: strings of
/// a guest's program, and xl's decompression of a kernel, come out wrong.
const NO_XSAVE: &str = "xsave=0";

/// What stands before each line of a party when dom0 prints it.
const MARK: &str = "stream ";

/// Runs the stream on both, prints what differs, and fails for a difference without a reason.
pub fn run(steps: &Steps, host: &Host, setup: Setup, seed: u64, requests: u64) -> Result<()> {
    crate::guest::build(steps)?;
    let ours = steps.step("our store", || ours(seed, requests))?.0;
    let theirs = steps.step("C xenstored", || theirs(host, setup, seed, requests))?.0;
    let comparison = Comparison::of(&ours, &theirs)?;
    let page = fs::read_to_string(paths::root().join(PAGE)).context(PAGE)?;
    println!("{comparison}");
    let unwritten: Vec<&str> =
        comparison.reasons().filter(|reason| !page.contains(&format!("| {reason} |"))).collect();
    ensure!(unwritten.is_empty(), "{PAGE} does not know the reasons {unwritten:?}");
    ensure!(comparison.unexplained() == 0, "differences without a reason");
    Ok(())
}

/// What each party printed; shown by its number of lines.
struct Streams(Vec<Party>);

impl std::fmt::Display for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let requests: usize = self.0.iter().map(|party| party.answers.len()).sum();
        let events: usize = self.0.iter().map(|party| party.events.len()).sum();
        write!(f, "{requests} answers, {events} events")
    }
}

/// The words of one party's command line.
fn words(party: usize, seed: u64, requests: u64) -> Vec<String> {
    let words = format!(
        "stream --party {party} --parties {PARTIES} --requests {requests} --seed {seed} \
         --reply-limit-s 300"
    );
    words.split_whitespace().map(str::to_owned).collect()
}

fn ours(seed: u64, requests: u64) -> Result<Streams> {
    hosted::build()?;
    let folder = std::env::temp_dir().join(format!("ppvmm-stream-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let socket = |party: usize| folder.join(party.to_string());
    let mut arguments = Vec::new();
    for party in 1..PARTIES {
        arguments.extend(["--domain".into(), format!("{party}={}", socket(party).display())]);
    }
    let server = hosted::start(&socket(0), &arguments)?;
    let mut running = Vec::new();
    for party in 0..PARTIES {
        let log = paths::logs().join(format!("stream-ours-{party}.log"));
        let out = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new(hosted::client());
        command.args(words(party, seed, requests)).arg("--socket").arg(socket(party));
        let child = command.stdin(Stdio::null()).stdout(out).spawn().context("start xsload")?;
        running.push((party, child, log));
    }
    let end = Instant::now() + OURS_LIMIT;
    let mut parties = Vec::new();
    for (party, child, log) in running {
        finish(child, end).with_context(|| format!("party {party}, see {}", log.display()))?;
        parties.push(Party::read(&fs::read_to_string(&log)?)?);
    }
    drop(server);
    fs::remove_dir_all(&folder)?;
    Ok(Streams(parties))
}

fn finish(child: Child, end: Instant) -> Result<()> {
    let left = end.saturating_duration_since(Instant::now());
    match crate::process::wait_bounded(child, left)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("xsload ended with {status}"),
        None => bail!("xsload took longer than {} s", OURS_LIMIT.as_secs()),
    }
}

/// dom0 is party 0 at xenstored's socket; the guests are the others, each through its kernel.
fn theirs(host: &Host, mut setup: Setup, seed: u64, requests: u64) -> Result<Streams> {
    setup.xen_args.push(NO_XSAVE.into());
    let guests: Vec<Guest> = (1..PARTIES)
        .map(|party| {
            let work = format!("run:xsload,{}", words(party, seed, requests).join(","));
            Guest::new(&format!("p{party}"), Kind::Pvh, &work)
        })
        .collect();
    let program = fs::read(paths::image().join("xsload")).context("the workload")?;
    let setup = guest::configure(setup, &guests)?
        .with_program("bin/xsload", program)
        .with_program("root/autorun", autorun(&guests, &words(0, seed, requests)));
    let mut peer = Peer::boot(host, &setup, THEIRS_LIMIT)?;
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    let mut others = Vec::new();
    let code = peer.autorun(THEIRS_LIMIT, |line| {
        let said = line.text.strip_prefix(MARK).and_then(|line| line.split_once(": "));
        let Some((party, line)) = said else { return others.push(line.text.clone()) };
        let text = texts.entry(party.to_owned()).or_default();
        text.push_str(line.trim_end());
        text.push('\n');
    })?;
    peer.stop()?;
    ensure!(code == 0, "dom0's part of the stream ended with {code}:\n{}", others.join("\n"));
    ensure!(texts.len() == PARTIES, "only {:?} spoke", texts.keys());
    Ok(Streams(texts.values().map(|text| Party::read(text)).collect::<Result<_>>()?))
}

/// Creates the guests, one after the other so that they are domains 1 and 2; takes part; waits for
/// their ends and prints what everybody said.
fn autorun(guests: &[Guest], words: &[String]) -> String {
    let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    let (names, words) = (names.join(" "), words.join(" "));
    format!(
        "#!/bin/bash\n\
         for name in {names}; do xl create /root/$name.cfg >/dev/null || exit 1; done\n\
         if ! xsload {words} --socket {SOCKET} >/root/p0.log; then\n\
         tail -n 5 /root/p0.log; dmesg | tail -n 5; exit 1\n\
         fi\n\
         for name in {names}; do while xl domid $name >/dev/null 2>&1; do sleep 0.2; done; done\n\
         sleep 1\n\
         sed 's/^/{MARK}p0: /' /root/p0.log\n\
         for name in {names}; do\n\
         tr -d '\\r' </var/log/xen/console/guest-$name.log | sed \"s/^/{MARK}$name: /\"\n\
         done\n"
    )
}
