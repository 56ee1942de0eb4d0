//! The orchestrator's part: it sees deaths and stalls, fences, calls for campaigns, publishes the
//! winner, and brings replicas back.

use raft::{Birth, Event, Node, StateMachine};

use crate::oracle::Violation;
use crate::profile::Fence;
use crate::world::{REPLICAS, Replica, Step, World};

/// What it remembers.
#[derive(Clone, Debug, Default)]
pub struct Orchestrator {
    /// Grows with each published leader; replicas read it before they reply.
    pub relay_epoch: u64,
    /// The published leader and its life: requests go there.
    pub target: Option<(u8, u32)>,
    published_term: u64,
    campaign_after: u64,
    patience_after: u64,
}

impl World {
    /// Looks at every replica and acts: the work of one turn of its loop.
    pub fn look(&mut self) -> Result<(), Violation> {
        self.clear_suspicion()?;
        self.compare_digests()?;
        let serving = self.orchestrator.target.filter(|(number, life)| {
            let replica = &self.replicas[usize::from(*number) - 1];
            replica.life == *life && self.status(*number).is_some_and(|status| status.leading)
        });
        let patience = 10_000_000 + self.profile.delay_ns * 40;
        let asked = self.clients.iter().filter_map(|client| Some(client.waiting?.since)).min();
        let stalled = asked.is_some_and(|since| self.now > since + patience);
        if let Some((number, _)) = serving
            && stalled
            && self.now > self.orchestrator.patience_after
        {
            self.orchestrator.patience_after = self.now + patience;
            self.trace.note(self.now, format_args!("{number} has stalled: it is reset"));
            return self.crash(number);
        }
        let timers = self.profile.timers && !self.random.chance(100);
        if serving.is_none() && self.now >= self.orchestrator.campaign_after && !timers {
            self.call_campaign();
        }
        if serving.is_some() {
            self.kick(2_000);
        }
        Ok(())
    }

    /// Tells the best living voter to campaign; now and then another one, since safety must not
    /// rest on the choice.
    pub fn call_campaign(&mut self) {
        let able = |number: &u8| {
            self.status(*number).filter(|s| s.voter && !s.restoring && s.damage.is_none())
        };
        let able: Vec<_> =
            (1..=REPLICAS).filter_map(|n| able(&n).map(|status| (status.last, n))).collect();
        let Some((_, best)) = able.iter().max() else { return };
        let any = able[self.random.index(able.len())].1;
        let replica = if self.random.chance(150) { any } else { *best };
        let rival = self.random.chance(self.profile.rivals);
        let terms = (1..=REPLICAS).filter_map(|number| self.status(number));
        let seen_term = terms.map(|status| status.term).max().unwrap_or(0);
        let life = self.replica(replica).life;
        self.trace.note(self.now, format_args!("{replica} shall campaign above {seen_term}"));
        self.after(20_000, Step::Campaign { replica, life, seen_term });
        if rival {
            // Two words at once: the orchestrator forgot that it had told another one.
            let replica = replica % REPLICAS + 1;
            let life = self.replica(replica).life;
            self.after(20_000, Step::Campaign { replica, life, seen_term });
        }
        let wait = 2_000_000 + self.profile.delay_ns * 4;
        self.orchestrator.campaign_after = self.now + wait;
    }

    /// Hears what a replica reports.
    pub fn hear(&mut self, number: u8, event: Event) -> Result<(), Violation> {
        self.trace.note(self.now, format_args!("{number} reports {event:?}"));
        match event {
            Event::Won { term } if term > self.orchestrator.published_term => {
                self.replica(number).proposed.clear();
                let life = self.replica(number).life;
                let former = self.orchestrator.target.filter(|(former, _)| *former != number);
                if let Some((former, _)) = former
                    && self.profile.fence == Fence::Reset
                    && self.replica(former).node.is_some()
                {
                    self.crash(former)?;
                }
                self.orchestrator.published_term = term;
                self.orchestrator.relay_epoch += 1;
                self.orchestrator.target = Some((number, life));
                let relay_epoch = self.orchestrator.relay_epoch;
                if let Some(node) = &mut self.replica(number).node {
                    node.publish(relay_epoch);
                }
                self.kick(5_000);
            }
            Event::Won { .. } | Event::Lost { .. } => self.replica(number).proposed.clear(),
            Event::Restored { .. } => self.losses.1 += 1,
            Event::Damaged(_) => {
                if self.suspect != Some(number) {
                    let text = format!("{number} reports {event:?} although no bit was flipped");
                    return Err(Violation::new("promises are durable", text));
                }
                self.replica(number).lost = true;
                self.crash(number)?;
            }
        }
        Ok(())
    }

    /// Ends a replica's life. It starts again by itself a little later.
    pub fn crash(&mut self, number: u8) -> Result<(), Violation> {
        let now = self.now;
        self.trace.note(now, format_args!("{number} crashes"));
        let replica = self.replica(number);
        let lived = replica.node.take().is_some();
        replica.paused = false;
        replica.missed.clear();
        replica.proposed.clear();
        replica.kv.forget();
        replica.fuse.renew();
        let life = replica.life;
        if lived {
            let slow = self.random.chance(200);
            self.after(if slow { 30_000_000 } else { 500_000 }, Step::Restart { replica: number });
        }
        if self.profile.domain_table {
            self.tell_others(number, life, false)?;
        }
        Ok(())
    }

    fn tell_others(&mut self, number: u8, life: u32, up: bool) -> Result<(), Violation> {
        let now = self.now;
        for other in (1..=REPLICAS).filter(|other| *other != number) {
            if let Replica { node: Some(node), paused: false, .. } = self.replica(other) {
                node.set_peer(now, number, life, up);
                self.pump(other)?;
            }
        }
        Ok(())
    }

    /// A replica starts again: from its storage, or as a newcomer when that is lost.
    pub fn restart(&mut self, number: u8) -> Result<(), Violation> {
        if self.replica(number).node.is_some() {
            return Ok(());
        }
        self.replica(number).life += 1;
        let life = self.replica(number).life;
        let settings = self.settings(number, life);
        let replica = self.replica(number);
        let opened = Node::open(replica.disk.clone(), settings, replica.kv.applied());
        let node = match opened {
            Ok(node) if !replica.lost => node,
            outcome => {
                let why = outcome.err();
                if self.suspect != Some(number) {
                    let text = format!("{number} finds its storage {why:?}, no bit was flipped");
                    return Err(Violation::new("promises are durable", text));
                }
                self.trace.note(self.now, format_args!("{number} has lost its storage: {why:?}"));
                self.losses.0 += 1;
                let replica = self.replica(number);
                replica.lost = false;
                replica.kv.wipe();
                Node::create(replica.disk.clone(), settings, Birth::Newcomer)
                    .expect("the storage is large enough")
            }
        };
        self.replica(number).node = Some(node);
        self.trace.note(self.now, format_args!("{number} starts life {life}"));
        if self.profile.domain_table {
            let now = self.now;
            let others: Vec<_> = self
                .replicas
                .iter()
                .filter(|other| other.number != number)
                .map(|other| (other.number, other.life, other.node.is_some()))
                .collect();
            for (other, life, up) in others {
                if let Some(node) = &mut self.replica(number).node {
                    node.set_peer(now, other, life, up);
                }
            }
            self.tell_others(number, life, true)?;
        }
        self.pump(number)
    }

    /// A paused replica goes on with what has come meanwhile.
    pub fn resume(&mut self, number: u8, life: u32) {
        let replica = self.replica(number);
        if replica.life != life || !replica.paused {
            return;
        }
        replica.paused = false;
        for step in std::mem::take(&mut replica.missed) {
            self.after(2_000, step);
        }
        self.after(1_000, Step::Wake { replica: number });
        self.trace.note(self.now, format_args!("{number} goes on"));
    }

    /// Replicas that have applied the same index must have the same digest; the odd one out is
    /// restored from the others.
    fn compare_digests(&mut self) -> Result<(), Violation> {
        let digest = |replica: &Replica| {
            let status = replica.node.as_ref()?.status();
            let valid = !status.restoring && !replica.paused;
            valid.then(|| (replica.number, replica.kv.applied(), replica.kv.digest()))
        };
        let all: Vec<_> = self.replicas.iter().filter_map(digest).collect();
        for (number, applied, digest) in &all {
            let same = all.iter().filter(|other| other.1 == *applied);
            let agree = same.clone().filter(|other| other.2 == *digest).count();
            if same.count() == usize::from(REPLICAS) && agree == 1 {
                let text = format!("{number} differs from the others at index {applied}");
                return Err(Violation::new("equal digests", text));
            }
        }
        Ok(())
    }
}
