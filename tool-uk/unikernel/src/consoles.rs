//! The consoles of guests: which are mapped, and what they print.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use abi::{Access, DomId, GrantRef, Xen, XenError};
use builder::pvh::CONSOLE_GRANT;
use fabric::SharedMemory;
use fabric::keys::KeyReader;
use fabric::log::{Level, LogWriter};
use tool_engine::console::Console;

/// A guest's console.
struct Served<P> {
    domid: u16,
    console: Console<P>,
}

/// All consoles, by slot.
pub struct Consoles<X: Xen, M: SharedMemory> {
    xen: X,
    served: BTreeMap<u16, Served<X::Mapping>>,
    due: BTreeSet<u16>,
    out: LogWriter<M>,
    keys: KeyReader<M, M>,
}

impl<X: Xen, M: SharedMemory> Consoles<X, M> {
    /// No consoles; what guests print goes to `out`, and `keys` come to them.
    pub fn new(xen: X, out: LogWriter<M>, keys: KeyReader<M, M>) -> Self {
        Self { xen, served: BTreeMap::new(), due: BTreeSet::new(), out, keys }
    }

    /// Maps a guest's console page by the grant that it was born with.
    ///
    /// # Errors
    /// What Xen says: a guest may have taken the grant back.
    pub fn attach(&mut self, domid: u16, slot: u16, now_ns: u64) -> Result<(), XenError> {
        // The former guest of the slot is gone, and so is its page.
        self.served.remove(&slot);
        let grant = [GrantRef(CONSOLE_GRANT)];
        let page = self.xen.map_grants(DomId(domid), &grant, Access::ReadWrite)?;
        self.served.insert(slot, Served { domid, console: Console::new(page, now_ns) });
        self.due.insert(slot);
        Ok(())
    }

    /// Unmaps a guest's console page, after its last words.
    pub fn detach(&mut self, domid: u16, now_ns: u64) {
        let Some(slot) =
            self.served.iter().find_map(|(slot, served)| (served.domid == domid).then_some(*slot))
        else {
            return;
        };
        self.pump(slot, now_ns);
        if let Some(mut served) = self.served.remove(&slot) {
            served.console.flush(|line| print(&mut self.out, now_ns, domid, line));
        }
    }

    /// The guest on `slot` has printed, or read, something. False: it has no console here.
    pub fn mark(&mut self, slot: u16) -> bool {
        let is_served = self.served.contains_key(&slot);
        if is_served {
            self.due.insert(slot);
        }
        is_served
    }

    /// Every guest may have.
    pub fn mark_all(&mut self) {
        self.due.extend(self.served.keys());
    }

    /// Takes what the next due guest printed. Returns its slot if it may wait for room; `None`:
    /// no guest is due.
    pub fn pump_next(&mut self, now_ns: u64) -> Option<Option<u16>> {
        let slot = self.due.pop_first()?;
        Some(self.pump(slot, now_ns).then_some(slot))
    }

    /// Types the operator's next key into its guest's console. Returns the slot to notify, if the
    /// guest still has a console; `None`: there is no key.
    pub fn type_next(&mut self) -> Option<Option<u16>> {
        let key = self.keys.peek()?;
        let served = self.served.iter_mut().find(|(_, served)| served.domid == key.domid);
        let Some((slot, served)) = served else {
            self.keys.consume();
            return Some(None);
        };
        // A guest that does not read its console loses what is typed.
        served.console.type_first(key.byte, &mut self.keys);
        Some(Some(*slot))
    }

    fn pump(&mut self, slot: u16, now_ns: u64) -> bool {
        let Some(served) = self.served.get_mut(&slot) else { return false };
        let (domid, out) = (served.domid, &mut self.out);
        served.console.pump(now_ns, |line| print(out, now_ns, domid, line)).has_room
    }
}

fn print<M: SharedMemory>(out: &mut LogWriter<M>, now_ns: u64, domid: u16, line: &[u8]) {
    let text = String::from_utf8_lossy(line);
    out.line(now_ns, Level::Information, format_args!("(g{domid}) {text}"));
}
