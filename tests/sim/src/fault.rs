//! Faults, and their end.

use fabric::SharedMemory;
use raft::Node;

use crate::client::Client;
use crate::oracle::Violation;
use crate::world::{REPLICAS, Replica, Step, World};

impl World {
    /// One fault now, another later.
    pub fn fault(&mut self) -> Result<(), Violation> {
        if self.healed {
            return Ok(());
        }
        let number = self.random.range(1, u64::from(REPLICAS) + 1) as u8;
        match self.random.range(0, 100) {
            0..15 => self.crash(number)?,
            15..40 => {
                let bytes = self.random.range(0, 1500);
                self.replica(number).fuse.light(bytes);
            }
            40..55 => self.pause(number),
            55..70 => {
                self.net.cut(&mut self.random);
                let longest = 5_000_000 + self.profile.delay_ns * 40;
                self.after(longest, Step::Join);
            }
            70..74 => self.call_campaign(),
            74..80 => {
                if let Some((leader, _)) = self.orchestrator.target {
                    self.crash(leader)?;
                }
            }
            80..84 => {
                self.crash(number)?;
                self.crash(number % REPLICAS + 1)?;
            }
            84..86 => (1..=REPLICAS).try_for_each(|number| self.crash(number))?,
            86..95 => self.flip_storage(number),
            _ => self.flip_state(number)?,
        }
        self.after(self.profile.fault_ns * 2, Step::Fault);
        Ok(())
    }

    fn pause(&mut self, number: u8) {
        let longest = 3_000_000 + self.profile.delay_ns * 20;
        let replica = self.replica(number);
        if replica.node.is_some() && !replica.paused {
            replica.paused = true;
            let life = replica.life;
            self.trace.note(self.now, format_args!("{number} is paused"));
            self.after(longest, Step::Resume { replica: number, life });
        }
    }

    /// Three replicas bear the loss of one storage or state, not of two at once.
    fn may_damage(&mut self, number: u8) -> bool {
        let free = self.profile.corruption && self.suspect.is_none();
        if free {
            self.suspect = Some(number);
            self.after(20_000_000, Step::Scrub { replica: number });
        }
        free
    }

    fn flip_storage(&mut self, number: u8) {
        if !self.may_damage(number) {
            return;
        }
        // Mostly where something lies: headers, bases, the first records.
        let bytes = if self.random.chance(700) { 6000 } else { self.replica(number).disk.len() };
        let flips = self.random.range(1, 4);
        let near = self.random.range(0, bytes as u64 * 8);
        for flip in 0..flips {
            let bit = (near + flip * 1024) % (bytes as u64 * 8);
            self.replica(number).disk.flip(bit);
        }
        self.trace
            .note(self.now, format_args!("{flips} bits of {number}'s storage flip at {near}"));
    }

    fn flip_state(&mut self, number: u8) -> Result<(), Violation> {
        if !self.may_damage(number) {
            return Ok(());
        }
        let choice = self.random.next();
        if self.replica(number).kv.flip(choice) {
            self.trace.note(self.now, format_args!("a bit of {number}'s state flips"));
        }
        Ok(())
    }

    /// A replica checks everything it has stored.
    pub fn scrub(&mut self, number: u8) -> Result<(), Violation> {
        let now = self.now;
        let replica = self.replica(number);
        if replica.paused {
            self.after(5_000_000, Step::Scrub { replica: number });
            return Ok(());
        }
        if let Replica { node: Some(node), kv, .. } = replica {
            // What it finds it reports as an event.
            let _ = node.verify_storage();
            if !kv.scrub() {
                node.abandon_machine(now);
            }
            self.pump(number)?;
        }
        if self.suspect == Some(number) {
            self.after(5_000_000, Step::Scrub { replica: number });
        }
        Ok(())
    }

    /// Damage may happen again once every replica is whole and knows the same.
    pub fn clear_suspicion(&mut self) -> Result<(), Violation> {
        let Some(suspect) = self.suspect else { return Ok(()) };
        let whole = |replica: &Replica| {
            let status = replica.node.as_ref().map(Node::status)?;
            let whole = status.voter && !status.restoring && status.damage.is_none();
            (whole && status.commit == status.last.index).then_some(status.last)
        };
        let lasts: Vec<_> = self.replicas.iter().filter_map(whole).collect();
        if lasts.len() < usize::from(REPLICAS) || lasts.iter().any(|last| *last != lasts[0]) {
            return Ok(());
        }
        let replica = self.replica(suspect);
        let intact = replica.node.as_mut().is_some_and(|node| node.verify_storage().is_ok())
            && replica.kv.scrub()
            // The other copies must be whole as well: one damaged header is survived silently.
            && replica.disk.image_is_whole();
        if intact {
            self.suspect = None;
        } else {
            self.scrub(suspect)?;
        }
        Ok(())
    }

    /// Faults end: from here on everything must come right.
    pub fn heal(&mut self) -> Result<(), Violation> {
        self.trace.note(self.now, format_args!("faults end"));
        self.healed = true;
        self.net.heal();
        self.profile.lost = 0;
        self.profile.doubled = 0;
        self.profile.flipped = 0;
        self.profile.delay_ns = 20_000;
        self.profile.late_ns = 20_000;
        for number in 1..=REPLICAS {
            let life = self.replica(number).life;
            self.replica(number).fuse.renew();
            self.resume(number, life);
            self.scrub(number)?;
        }
        self.clients.iter_mut().for_each(Client::heal);
        for client in 0..self.clients.len() {
            self.after(1_000_000, Step::Ask { client });
        }
        Ok(())
    }
}
