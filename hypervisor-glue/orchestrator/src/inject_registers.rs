//! What a fault makes of a unit's registers.

use abi::Registers;

use crate::inject_plan::Kind;

/// Where in the unit's text certain instructions are, found in its pristine image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gadgets {
    /// Address of a `ud2` (0f 0b).
    pub undefined: u64,
    /// Address of a jump to itself (eb fe).
    pub endless_loop: u64,
}

impl Gadgets {
    /// Looks for the instructions in the executable segments of an ELF image.
    pub fn of_image(image: &[u8]) -> Option<Self> {
        let parsed = builder::elf::Image::parse(image).ok()?;
        let mut texts = parsed.header.loads().iter().filter(|load| load.executable);
        texts.find_map(|load| {
            let text = image.get(load.offset as usize..)?.get(..load.file_len as usize)?;
            Self::find(text, load.virt)
        })
    }

    /// Looks for the instructions in `text`, whose first byte lies at `address`.
    pub fn find(text: &[u8], address: u64) -> Option<Self> {
        let at = |bytes: [u8; 2]| {
            text.windows(2).position(|pair| pair == bytes).map(|offset| address + offset as u64)
        };
        Some(Self { undefined: at([0x0f, 0x0b])?, endless_loop: at([0xeb, 0xfe])? })
    }
}

/// The registers after a fault of this kind; `wild` is an address where nothing is.
pub fn changed(before: &Registers, kind: Kind, wild: u64, gadgets: Gadgets) -> Registers {
    match kind {
        Kind::WildJump => Registers { rip: wild, ..*before },
        Kind::Undefined => Registers { rip: gadgets.undefined, ..*before },
        Kind::EndlessLoop => Registers { rip: gadgets.endless_loop, ..*before },
        Kind::WildStack => Registers { rsp: wild & !7, ..*before },
        Kind::WildRegisters => Registers {
            rax: wild,
            rbx: wild + 8,
            rcx: wild + 16,
            rdx: wild + 24,
            rsi: wild + 32,
            rdi: wild + 40,
            rbp: wild + 48,
            r8: wild + 56,
            r9: wild + 64,
            r10: wild + 72,
            r11: wild + 80,
            r12: wild + 88,
            r13: wild + 96,
            r14: wild + 104,
            r15: wild + 112,
            rsp: before.rsp,
            rip: before.rip,
            rflags: before.rflags,
        },
        Kind::Shutdown | Kind::Paused | Kind::FlipPage | Kind::Record(_) => *before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gadgets_are_found_in_text() {
        let text = [0x90, 0x0f, 0x0b, 0x90, 0xeb, 0xfe];
        let found = Gadgets::find(&text, 0x1000).expect("both are there");
        assert_eq!(found, Gadgets { undefined: 0x1001, endless_loop: 0x1004 });
        assert_eq!(Gadgets::find(&text[..4], 0x1000), None);
    }

    #[test]
    fn a_fault_changes_what_its_name_says() {
        let before = Registers { rip: 1, rsp: 2, rdi: 3, ..Registers::default() };
        let gadgets = Gadgets { undefined: 10, endless_loop: 20 };
        for (kind, name) in Kind::ALL {
            let after = changed(&before, kind, 0x5bad_0000_0008, gadgets);
            assert_eq!(
                after.rip != before.rip,
                name.contains("jump") || kind.moves_rip(),
                "{name}"
            );
            assert_eq!(after.rsp != before.rsp, kind == Kind::WildStack, "{name}");
            assert_eq!(after.rdi != before.rdi, kind == Kind::WildRegisters, "{name}");
        }
    }

    impl Kind {
        fn moves_rip(self) -> bool {
            matches!(self, Self::Undefined | Self::EndlessLoop)
        }
    }
}
