//! Guests on paper, executed against a small memory: what the guest finds when it starts.

use std::collections::BTreeMap;

use api::{Failure, GuestId, Operation, Outcome, Param};
use proptest::prelude::*;

use super::*;
use crate::elf::{ElfError, Image};
use crate::testing::{TestSegment, elf, xen_note};

const MIB: u32 = 1 << 20;

/// A kernel as Linux is: text at 16 MiB, a segment with bss behind it, notes.
fn kernel(text_len: usize, bss_len: u64) -> Vec<u8> {
    let part = |address, byte: u8, len: usize, memory_len| TestSegment {
        kind: 1,
        flags: 7,
        address,
        bytes: vec![byte; len],
        memory_len,
    };
    let notes = xen_note(18, &(16 * MIB + 0x40).to_le_bytes());
    elf(
        0,
        &[
            part(32 << 20, 0x22, 100, bss_len),
            part(16 << 20, 0x11, text_len, text_len as u64),
            TestSegment { kind: 4, flags: 4, address: 0, memory_len: 0, bytes: notes },
        ],
    )
}

fn config<'a>(file: &[u8], ramdisk: Option<Ramdisk<'a>>) -> Config<'a> {
    let image = Image::parse(file).unwrap();
    Config {
        guest: GuestId(17),
        memory_kib: 64 << 10,
        vcpus: 1,
        kernel: "vmlinux",
        header: image.header,
        notes: image.notes,
        ramdisk,
        command_line: "console=hvc0",
    }
}

/// A guest that executes operations: pages by frame, 0xee where nobody wrote.
#[derive(Default)]
struct Machine {
    pages: BTreeMap<u32, Vec<u8>>,
    limit: u32,
    archive: BTreeMap<&'static str, Vec<u8>>,
    params: Vec<(Param, u32)>,
    log: Vec<&'static str>,
}

impl Machine {
    fn store(&mut self, address: u32, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = address + done as u32;
            let page = self.pages.get_mut(&(at >> 12)).expect("populated before it is written");
            let page = &mut page[at as usize & 4095..];
            let len = page.len().min(bytes.len() - done);
            page[..len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
    }

    fn read(&self, address: u32, len: u32) -> Vec<u8> {
        (address..address + len).map(|at| self.pages[&(at >> 12)][at as usize & 4095]).collect()
    }

    fn word(&self, address: u32) -> u64 {
        u64::from_le_bytes(self.read(address, 8).try_into().unwrap())
    }

    fn execute(&mut self, operation: &Operation<'_>) -> Outcome<'static> {
        assert_eq!(api::validate(operation, &api::Limits::default()), Ok(()), "{operation:?}");
        self.log.push(operation.name());
        match *operation {
            Operation::Create { limits, .. } => self.limit = limits.pages,
            Operation::Populate { before, first_gfn, pages, .. } => {
                assert_eq!(before as usize, self.pages.len());
                for gfn in first_gfn..first_gfn + pages {
                    assert!(self.pages.insert(gfn, vec![0xee; 4096]).is_none());
                }
                assert!(self.pages.len() as u32 <= self.limit);
            }
            Operation::Load { entry, offset, address, len, .. } => {
                let bytes = self.archive[entry][offset as usize..(offset + len) as usize].to_vec();
                self.store(address, &bytes);
            }
            Operation::Zero { address, len, .. } => self.store(address, &vec![0; len as usize]),
            Operation::Write { address, bytes, .. } => self.store(address, bytes),
            Operation::SetParam { param, value, .. } => self.params.push((param, value)),
            Operation::ConnectStore { .. } => return Outcome::Port(3),
            Operation::ConnectConsole { .. } => return Outcome::Port(4),
            Operation::SeedGrants { ref grants, .. } => assert_eq!(grants.len(), 4),
            Operation::SetEntry { rip, start_info, .. } => {
                assert_eq!((rip, start_info), (16 * MIB + 0x40, 0x1000));
            }
            ref other => panic!("{other:?} does not belong to a build"),
        }
        Outcome::Done
    }
}

fn run(plan: &Plan<'_>, machine: &mut Machine) -> usize {
    let mut step = Step::Create;
    let mut steps = 0;
    while let Some(operation) = plan.operation(step) {
        let outcome = machine.execute(&operation);
        step = plan.after(step, &outcome).unwrap();
        steps += 1;
        assert!(steps < 10_000, "the build does not end");
    }
    assert_eq!(step, Step::Ready);
    steps
}

#[test]
fn a_guest_finds_what_the_boot_protocol_promises() {
    let file = kernel(3 * MIB as usize + 5, 5 << 20);
    let ramdisk = vec![0x77; 2 * MIB as usize + 1];
    let listed = Ramdisk { entry: "initrd", len: ramdisk.len() as u32 };
    let plan = Plan::new(config(&file, Some(listed))).unwrap();
    let mut machine = Machine::default();
    machine.archive.insert("vmlinux", file);
    machine.archive.insert("initrd", ramdisk.clone());
    run(&plan, &mut machine);

    assert_eq!(machine.pages.len(), 16 * 1024 + 3);
    assert_eq!(
        machine.read(16 * MIB, 3 * MIB + 6),
        [vec![0x11; 3 * MIB as usize + 5], vec![0xee]].concat()
    );
    assert_eq!(machine.read(32 * MIB, 100), vec![0x22; 100]);
    assert_eq!(machine.read(32 * MIB + 100, 5 * MIB - 100), vec![0; 5 * MIB as usize - 100]);
    let ramdisk_at = 64 * MIB - 2 * MIB - 4096;
    assert_eq!(machine.read(ramdisk_at, ramdisk.len() as u32), ramdisk);
    assert_eq!(machine.read(STORE_GFN << 12, 4096), vec![0; 4096]);
    assert_eq!(machine.read(CONSOLE_GFN << 12, 4096), vec![0; 4096]);
    assert_eq!(
        machine.params,
        [
            (Param::StorePfn, 0xfeffc),
            (Param::StorePort, 3),
            (Param::ConsolePfn, 0xfefff),
            (Param::ConsolePort, 4)
        ]
    );

    assert_eq!(machine.word(0x1000), 0x1_336e_c578, "magic, version 1");
    assert_eq!(machine.word(0x1008), 1 << 32, "no flags, one module");
    let (modules, line, map) = (machine.word(0x1010), machine.word(0x1018), machine.word(0x1028));
    assert_eq!(machine.word(0x1020), u64::from(ACPI_ADDRESS));
    assert_eq!(machine.read(ACPI_ADDRESS, 8), b"RSD PTR ");
    assert_eq!(machine.word(0x1030), 3, "three map entries");
    let words = |at: u64, count: u32| -> Vec<u64> {
        (0..count).map(|index| machine.word(at as u32 + index * 8)).collect()
    };
    assert_eq!(words(map, 3), [0, 64 << 20, 1]);
    assert_eq!(words(map + 24, 3), [0xfeff_8000, 0x1000, 3]);
    assert_eq!(words(map + 48, 3), [0xfeff_9000, 0x7000, 2]);
    assert_eq!(words(modules, 4), [u64::from(ramdisk_at), ramdisk.len() as u64, 0, 0]);
    assert_eq!(machine.read(line as u32, 13), b"console=hvc0\0");
}

#[test]
fn a_256_mib_guest_takes_few_operations() {
    let file = kernel(40 << 20, 5 << 20);
    let mut configured = config(&file, None);
    configured.memory_kib = 256 << 10;
    // The second segment would overlap 40 MiB of text: keep to the first 16 MiB.
    assert!(matches!(Plan::new(configured), Err(PlanError::Elf(ElfError::Overlap { .. }))));
    let file = kernel(16 << 20, 5 << 20);
    let mut configured = config(&file, None);
    configured.memory_kib = 256 << 10;
    let plan = Plan::new(configured).unwrap();
    let mut machine = Machine::default();
    machine.archive.insert("vmlinux", file);
    let steps = run(&plan, &mut machine);
    assert!(steps < 160, "{steps} operations");
    assert!(!machine.log.contains(&"let it run"), "the toolstack decides when it starts");
}

#[test]
fn a_failure_ends_the_build() {
    let file = kernel(5, 200);
    let plan = Plan::new(config(&file, None)).unwrap();
    let failed = Outcome::Failed(Failure::NoMemory);
    assert_eq!(plan.after(Step::Ram(0), &failed), Err(StepError::Failed(Failure::NoMemory)));
    assert_eq!(plan.after(Step::ConnectStore, &Outcome::Done), Err(StepError::Unexpected));
    assert_eq!(plan.after(Step::Create, &Outcome::Port(1)), Err(StepError::Unexpected));
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let file = kernel(5, 200);
    let with = |change: &dyn Fn(&mut Config<'_>)| {
        let mut configured = config(&file, None);
        change(&mut configured);
        Plan::new(configured).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(&|config| config.memory_kib = 3), PlanError::Memory { kib: 3 });
    assert_eq!(with(&|config| config.vcpus = 2), PlanError::Vcpus(2));
    let line = "x".repeat(1025);
    let mut long = config(&file, None);
    long.command_line = &line;
    assert_eq!(Plan::new(long).map(|_| ()), Err(PlanError::CommandLine(1025)));
    assert_eq!(with(&|config| config.notes.phys32_entry = None), PlanError::NoEntry);
    assert_eq!(with(&|config| config.notes.phys32_entry = Some(1)), PlanError::EntryOutside(1));
    assert!(matches!(
        with(&|config| config.memory_kib = 20 << 10),
        PlanError::Elf(ElfError::SegmentOutside { .. })
    ));
    let ramdisk = Ramdisk { entry: "initrd", len: 40 << 20 };
    assert_eq!(
        with(&|config| config.ramdisk = Some(ramdisk)),
        PlanError::RamdiskTooLarge { kib: 65536, needed_kib: 32768 + 4 + 40960 }
    );
    let huge = Ramdisk { entry: "initrd", len: u32::MAX };
    assert!(matches!(
        with(&|config| config.ramdisk = Some(huge)),
        PlanError::RamdiskTooLarge { .. }
    ));
}

fn probe(file: &[u8]) -> Result<(Config<'static>, usize), ProbeError> {
    let mut probe = Probe::new();
    for reads in 0..20 {
        match probe.wanted()? {
            Wanted::Bytes { offset, len } => {
                assert!(len as usize <= api::MAX_BYTES);
                let rest = file.get(offset as usize..).unwrap_or_default();
                probe.feed(&rest[..rest.len().min(len as usize)], file.len() as u32)?;
            }
            Wanted::Nothing => {
                let (header, notes) = probe.found().unwrap();
                let found = Config { header, notes, ..config(&kernel(1, 200), None) };
                return Ok((found, reads));
            }
        }
    }
    panic!("the probe does not end");
}

#[test]
fn a_probe_reads_only_headers_and_notes() {
    let file = kernel(1 << 20, 5 << 20);
    let (found, reads) = probe(&file).unwrap();
    let whole = Image::parse(&file).unwrap();
    assert_eq!((found.header, found.notes), (whole.header, whole.notes));
    assert_eq!(reads, 2);
}

proptest! {
    // Each case moves 64 MiB.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_hostile_kernel_is_refused_or_planned_within_its_ram(
        patches in proptest::collection::vec((24usize..232, any::<u8>()), 1..5),
        cut in 0usize..300,
    ) {
        let mut file = kernel(500, 2000);
        for (at, byte) in patches {
            file[at] = byte;
        }
        file.truncate(file.len() - cut);
        let Ok((found, _)) = probe(&file) else { return Ok(()) };
        let Ok(plan) = Plan::new(found) else { return Ok(()) };
        let mut machine = Machine::default();
        machine.archive.insert("vmlinux", file);
        // The entry may have been patched: only the memory is checked here.
        let mut step = Step::Create;
        while step != Step::Entry {
            let outcome = machine.execute(&plan.operation(step).unwrap());
            step = plan.after(step, &outcome).unwrap();
        }
    }
}
