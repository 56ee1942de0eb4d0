//! One-letter commands on the serial console: what an operator has left when every service is
//! dead. Nothing here needs a service.
//!
//! | key | does |
//! |---|---|
//! | `h`, `?` | lists the keys |
//! | `s` | status of units and guests |
//! | `e` | epitaphs: what is known of each failure, the latest last |
//! | `d`, then `1` … `9` | has that unit write its state to its log |
//! | `c`, then a guest's number, then Enter | attaches to that guest's console, until Ctrl-] |
//! | `1` … `9` | restarts that unit (its place in the status list), by a rebuild |
//! | `R`, then `y` | reboots the machine |
//! | `P`, then `y` | powers the machine off |

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// List the keys.
    Help,
    /// Print the state of units and guests.
    Status,
    /// Print the epitaphs.
    Epitaphs,
    /// Restart the unit at this place of the system description.
    Restart(usize),
    /// Have the unit at this place write its state to its log.
    Dump(usize),
    /// Pass what is typed to the console of the guest with this domid.
    Attach(u16),
    /// Say that `y` confirms what was asked.
    Confirm(&'static str),
    /// Reboot the machine.
    Reboot,
    /// Power the machine off.
    PowerOff,
    /// Say that the key means nothing.
    Unknown(u8),
}

/// Turns keys into requests; remembers only one that is not complete.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keyboard {
    unconfirmed: Option<Request>,
    dump: bool,
    /// A guest's number, as far as it is typed.
    guest: Option<u16>,
}

impl Keyboard {
    /// A keyboard with nothing typed.
    pub const fn new() -> Self {
        Self { unconfirmed: None, dump: false, guest: None }
    }

    /// What the key means after the keys before it. Line ends mean nothing and are no mistake.
    pub fn key(&mut self, key: u8, units: usize) -> Option<Request> {
        let guest = self.guest.take();
        if key == b'\r' || key == b'\n' {
            return guest.map(Request::Attach);
        }
        if let Some(number) = guest
            && key.is_ascii_digit()
        {
            // A number beyond every domid is no guest's.
            self.guest = Some(number.saturating_mul(10).saturating_add(u16::from(key - b'0')));
            return None;
        }
        if let Some(request) = self.unconfirmed.take()
            && key == b'y'
        {
            return Some(request);
        }
        let dump = core::mem::take(&mut self.dump);
        Some(match key {
            b'h' | b'?' => Request::Help,
            b's' => Request::Status,
            b'e' => Request::Epitaphs,
            b'1'..=b'9' if usize::from(key - b'1') < units => {
                let unit = usize::from(key - b'1');
                if dump { Request::Dump(unit) } else { Request::Restart(unit) }
            }
            b'd' => {
                self.dump = true;
                return None;
            }
            b'c' => {
                self.guest = Some(0);
                return None;
            }
            b'R' => self.confirm(Request::Reboot, "reboot"),
            b'P' => self.confirm(Request::PowerOff, "power off"),
            other => Request::Unknown(other),
        })
    }

    fn confirm(&mut self, request: Request, name: &'static str) -> Request {
        self.unconfirmed = Some(request);
        Request::Confirm(name)
    }
}

/// The list of keys, a line each.
pub const HELP: [&str; 6] = [
    "keys: h this list, s status, e epitaphs",
    "      1-9 restart that unit of the status list, d 1-9 have it dump its state",
    "      c N Enter attach to the console of guest dN, until Ctrl-]",
    "      R y reboot the machine, P y power it off",
    "what a unit did is in its epitaphs; guests keep running whatever you restart here,",
    "but R and P end them all",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> Vec<Request> {
        let mut keyboard = Keyboard::new();
        keys.iter().filter_map(|key| keyboard.key(*key, 2)).collect()
    }

    #[test]
    fn one_letter_is_one_request() {
        assert_eq!(typed(b"se\r\n1"), [Request::Status, Request::Epitaphs, Request::Restart(0)]);
        assert_eq!(typed(b"3"), [Request::Unknown(b'3')]);
        assert_eq!(typed(b"d\r\n2"), [Request::Dump(1)]);
    }

    #[test]
    fn a_guests_number_ends_with_its_line() {
        assert_eq!(typed(b"c17\r"), [Request::Attach(17)]);
        assert_eq!(typed(b"c99999\n1"), [Request::Attach(u16::MAX), Request::Restart(0)]);
        assert_eq!(typed(b"c1s\r"), [Request::Status]);
    }

    #[test]
    fn what_ends_guests_wants_a_second_key() {
        assert_eq!(typed(b"Ry"), [Request::Confirm("reboot"), Request::Reboot]);
        assert_eq!(
            typed(b"Pny"),
            [Request::Confirm("power off"), Request::Unknown(b'n'), Request::Unknown(b'y'),]
        );
    }
}
