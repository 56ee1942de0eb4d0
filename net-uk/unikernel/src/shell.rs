//! The engines' hands and ears.

use alloc::format;
use alloc::vec::Vec;
use core::cell::RefCell;

use abi::{DomId, Port};
use drivers::Config;
use drivers::trusted::Layout;
use fabric::control::Rung;
use fabric::domains::{DomainState, DomainsReader, SLOTS};
use fabric::health::RecoveryReport;
use fabric::log::{Level, LogWriter};
use fabric::view::{Party, RegionKind};
use fabric::{Epoch, Part};
use forward::{NIC, Notify, Plane, VifSetup};
use hotplug::{Action, Hotplug, VifId};
use netback::vif::Connection;
use runtime::{CopyDirection, DmaMemory, FabricMemory, GrantCopy, Hypervisor, Mapping};
use service::view::View;
use service::{Outbox, Step, Work, ids};
use shadow_driver::{Advice, Cause, Phase, Shadow};
use store_client::{self as store, Said};

use crate::nic::Nic;
use crate::places::{Fabric, Places, SHADOW_FRAMES};
use crate::registers::Description;
use crate::vifs::Vifs;

/// Pages to receive into (1 MiB: more than a descriptor ring holds is never posted) and to send
/// from (2 MiB: a full ring of frames in one piece from each of two guests).
const LAYOUT: Layout = Layout { rx_pages: 256, tx_pages: 512 };
/// The longest payload of a frame on the wire.
const MTU: u16 = 1500;
/// Messages of XenStore, and things to do for it, per step.
const STORE_ITEMS: usize = 8;
/// No VLAN, no limit.
const SETUP: VifSetup = VifSetup { vlan: 0, rate: None };

type Frames = Plane<Mapping, Part<Fabric>, Part<Fabric>, DmaMemory>;

/// The network.
pub struct Shell {
    xen: Hypervisor,
    plane: Frames,
    arena: DmaMemory,
    nic: Option<Nic>,
    vifs: Vifs,
    hotplug: Hotplug,
    store: store::Connection<Fabric>,
    store_slot: u16,
    table: DomainsReader<Fabric>,
    is_table_due: bool,
    log: RefCell<LogWriter<Fabric>>,
}

impl Shell {
    /// The network at the start of a life: everything that a former life left is taken up again.
    pub fn start(
        xen: Hypervisor,
        view: &View<FabricMemory>,
        nic: Option<&str>,
        epoch: Epoch,
        rung: Rung,
        report: &mut RecoveryReport,
    ) -> Self {
        let places = Places::new(view);
        let arena = xen.dma_memory(LAYOUT.pages() as usize);
        let what = nic.map(|text| Description::parse(text).expect("the orchestrator's own word"));
        let nic = what.map(|what| Nic::open(xen, &what, arena, LAYOUT));
        let now_ns = abi::Xen::now_ns(&xen);
        let mut plane = Plane::new(now_ns, shadow(&places, epoch, rung), arena, LAYOUT, MTU);
        match nic {
            Some(_) => plane.shadow().restart(now_ns),
            None => plane.detach(NIC),
        }
        let mut vifs = Vifs::new(xen, places, epoch);
        let mut connected = Vec::new();
        for (place, connection) in vifs.recorded() {
            let id = VifId { guest: connection.guest, handle: connection.handle };
            if rung == Rung::First || !resume(&mut plane, &mut vifs, now_ns, place, &connection) {
                vifs.strike(place);
                report.dropped += 1;
                continue;
            }
            connected.push(id);
            report.resumed += 1;
        }
        // What a former life mapped and nobody asked for again belongs to guests that are gone.
        xen.drop_orphans();
        vifs.notify_all();
        report.kept = plane.counters().redone as u32;
        let unit = &system::SYSTEM.units[view.unit()];
        let client = view.own(RegionKind::StoreClient);
        Self {
            xen,
            plane,
            arena,
            nic,
            vifs,
            hotplug: Hotplug::new(unit.domid, &connected),
            store: store::Connection::new(client, view.store_pages().collect(), epoch),
            store_slot: unit.store_slot.expect("the network is a client of the XenStore"),
            table: DomainsReader::new(view.of(RegionKind::Domains, Party::ORCHESTRATOR)),
            is_table_due: true,
            log: RefCell::new(LogWriter::new(view.own(RegionKind::Log))),
        }
    }

    fn say(&self, now_ns: u64, level: Level, line: &str) {
        self.log.borrow_mut().line(now_ns, level, format_args!("{line}"));
    }

    /// Hears XenStore and does what follows. Answers how much that was.
    fn tend_vifs(&mut self, now_ns: u64) -> usize {
        let mut done = 0;
        while done < STORE_ITEMS {
            match self.store.next_said() {
                Said::Message(message) => self.hotplug.store_said(&message),
                Said::Restarted => {
                    self.say(now_ns, Level::Warning, "the connection to XenStore begins anew");
                    self.hotplug.store_restarted();
                }
                Said::Nothing => break,
            }
            done += 1;
        }
        while done < 2 * STORE_ITEMS {
            match self.hotplug.poll() {
                Some(Action::Store(message)) => self.store.send(&message),
                Some(Action::Connect(id, connection)) => self.connect(now_ns, id, &connection),
                Some(Action::Disconnect(id)) => self.disconnect(now_ns, id),
                None => break,
            }
            done += 1;
        }
        done
    }

    fn connect(&mut self, now_ns: u64, id: VifId, connection: &Connection) {
        let result = self.try_connect(now_ns, connection);
        let line = match result {
            Ok(()) => format!("{id} is connected"),
            Err(reason) => format!("{id} cannot be connected: {reason}"),
        };
        self.say(now_ns, Level::Information, &line);
        self.hotplug.connected(id, result);
    }

    fn try_connect(&mut self, now_ns: u64, connection: &Connection) -> Result<(), &'static str> {
        let place = self.vifs.free_place().ok_or("no room for another interface")?;
        let wiring = self
            .vifs
            .open(place, connection)
            .map_err(|_| "a ring cannot be mapped, or a port not be bound")?;
        let port = Vifs::port(place);
        let attached = self.plane.attach(now_ns, port, connection.clone(), SETUP, wiring);
        if attached.is_err() {
            let id = VifId { guest: connection.guest, handle: connection.handle };
            self.vifs.close(id);
            return Err("the switch does not take it");
        }
        // Its journals are written by now: from here on the next life takes it up.
        self.vifs.record(place, connection);
        Ok(())
    }

    fn disconnect(&mut self, now_ns: u64, id: VifId) {
        if let Some(place) = self.vifs.close(id) {
            self.plane.detach(Vifs::port(place));
            self.say(now_ns, Level::Information, &format!("{id} is disconnected"));
        }
    }

    /// Guests that are going lose their rings at once: our mappings would keep them as zombies.
    fn look_at_table(&mut self) {
        self.is_table_due = false;
        let mut living = Vec::new();
        for slot in 0..SLOTS {
            match self.table.get(slot) {
                Ok(Some(domain)) => {
                    if !matches!(domain.state, DomainState::Dying | DomainState::Gone) {
                        living.push(DomId(domain.domid));
                    }
                }
                Ok(None) => {}
                // An entry that cannot be read is looked at again.
                Err(_) => {
                    self.is_table_due = true;
                    return;
                }
            }
        }
        let gone: Vec<DomId> =
            self.hotplug.guests().filter(|guest| !living.contains(guest)).collect();
        gone.into_iter().for_each(|guest| self.hotplug.guest_gone(guest));
    }

    /// Moves frames between guests' rings and the arena. Answers how many packets.
    fn move_frames(&mut self, now_ns: u64) -> usize {
        let (mut copies, mut jobs) = (Vec::new(), Vec::new());
        self.plane.collect(now_ns, &mut copies, &mut jobs);
        if jobs.is_empty() {
            return 0;
        }
        let owners = jobs.iter().flat_map(|job| core::iter::repeat_n(job.port, job.copies));
        let copies: Vec<GrantCopy> = copies
            .iter()
            .zip(owners)
            .map(|(copy, port)| GrantCopy {
                direction: match copy.direction {
                    netback::Direction::FromGuest => CopyDirection::FromGuest,
                    netback::Direction::ToGuest => CopyDirection::ToGuest,
                },
                guest: self.plane.guest(port).unwrap_or(DomId::SELF),
                grant: copy.grant,
                guest_offset: copy.guest_offset,
                offset: copy.arena_offset,
                length: copy.length,
            })
            .collect();
        let mut worked = Vec::new();
        self.xen.copy_grants(&self.arena, &copies, &mut worked);
        let count = jobs.len();
        self.plane.copied(now_ns, jobs, &worked);
        self.publish();
        count
    }

    fn publish(&mut self) {
        let mut notify: Vec<Notify> = Vec::new();
        self.plane.publish(&mut notify);
        notify.into_iter().for_each(|notify| self.vifs.notify(notify));
    }

    /// Gives the driver what there is for it, and takes what it has. Answers how many events.
    fn drive(&mut self, now_ns: u64) -> usize {
        let Some(nic) = &mut self.nic else { return 0 };
        let mut is_due = false;
        let is_raised = nic.is_raised;
        if is_raised {
            match self.plane.shadow().interrupt(now_ns) {
                Advice::Enter => is_due = true,
                Advice::Mask => nic.mask(),
            }
        }
        if nic.is_masked() && self.plane.shadow().unmask(now_ns) {
            nic.unmask();
        }
        let mut commands = Vec::new();
        let mut events = Vec::new();
        let mut failed = None;
        if self.plane.enter(now_ns, &mut commands) || is_due {
            failed = match nic.run(&commands, &mut events) {
                Ok(()) => self.plane.report(now_ns, &events),
                Err(cause) => {
                    self.plane.shadow().failed(now_ns, cause);
                    Some(cause)
                }
            };
        }
        if is_raised && !nic.is_masked() {
            nic.end_interrupt();
        }
        if self.plane.shadow().phase() == Phase::Down {
            let found = nic.renew();
            self.plane.salvaged(now_ns, &found);
            self.plane.shadow().restart(now_ns);
        }
        if let Some(cause) = failed {
            self.driver_failed(now_ns, cause);
        }
        self.publish();
        events.len()
    }

    fn driver_failed(&self, now_ns: u64, cause: Cause) {
        self.say(now_ns, Level::Warning, &format!("the NIC's driver was restarted: {cause:?}"));
    }
}

/// The shadow driver's state, new in a host that has just booted.
fn shadow(places: &Places, epoch: Epoch, rung: Rung) -> Shadow<Part<Fabric>> {
    let (state, config) = (places.shadow(), Config::default());
    if rung == Rung::First {
        return Shadow::create(state, epoch, config, SHADOW_FRAMES);
    }
    // Every frame's bytes are still in its sender's pages: it is sent from there again.
    Shadow::recover(state, epoch, config, SHADOW_FRAMES, |_| false).0
}

/// Takes a connection of a former life up again.
fn resume(
    plane: &mut Frames,
    vifs: &mut Vifs,
    now_ns: u64,
    place: usize,
    connection: &Connection,
) -> bool {
    let Ok(wiring) = vifs.open(place, connection) else { return false };
    let port = Vifs::port(place);
    let is_resumed = plane.recover(now_ns, port, connection.clone(), SETUP, wiring).is_ok();
    if !is_resumed {
        vifs.close(VifId { guest: connection.guest, handle: connection.handle });
    }
    is_resumed
}

impl Work<Fabric> for Shell {
    fn event(&mut self, port: Port) {
        if let Some(nic) = self.nic.as_mut().filter(|nic| nic.owns(port)) {
            nic.is_raised = true;
        }
    }

    fn kick(&mut self, id: Option<u16>, _: u64, _: &mut Outbox<Fabric>) {
        if matches!(id, None | Some(ids::DOMAINS)) {
            self.is_table_due = true;
        }
    }

    fn step(&mut self, now_ns: u64, out: &mut Outbox<Fabric>) -> Step {
        if self.is_table_due {
            self.look_at_table();
        }
        let moved = self.move_frames(now_ns) + self.drive(now_ns);
        let tended = self.tend_vifs(now_ns);
        if self.store.take_kick() {
            out.kick(self.store_slot);
        }
        let wake_at_ns = self.plane.deadline_ns();
        let is_due = wake_at_ns.is_some_and(|at_ns| at_ns <= now_ns);
        let more = moved + tended > 0 || is_due || self.is_table_due || self.plane.rest();
        Step { completed: (moved + tended) as u64, more, wake_at_ns }
    }

    fn dump(&self, now_ns: u64) {
        self.say(now_ns, Level::Information, &format!("{:?}", self.plane.counters()));
        for line in self.hotplug.describe() {
            self.say(now_ns, Level::Information, &line);
        }
    }
}
