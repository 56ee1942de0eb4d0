//! Whole builds against a small Xen: layout, page tables, content, steps, failures, restore.

use abi::{DomId, Frame, XenError};
use fabric::SharedMemory;
use proptest::prelude::*;

use super::*;
use crate::elf::ElfError;
use crate::testing::{FakeXen, GARBAGE, SHARED_INFO, service_image};

const LIMITS: Limits = Limits { max_port: 1023, grant_frames: 4, maptrack_frames: 4 };

fn build(xen: &FakeXen, plan: &Plan<'_>, frames: &mut [Frame]) -> Result<Built, BuildError> {
    build_keeping(xen, plan, frames, &mut Pages::new())
}

type FakePages = Pages<<FakeXen as abi::Xen>::Mapping>;

fn build_keeping(
    xen: &FakeXen,
    plan: &Plan<'_>,
    frames: &mut [Frame],
    pages: &mut FakePages,
) -> Result<Built, BuildError> {
    let mut build = Build::new(DomId(7), LIMITS);
    for _ in 0..10_000 {
        if let Progress::Done(built) = build.step(plan, frames, pages, xen, &mut || {})? {
            return Ok(built);
        }
    }
    panic!("the build does not end");
}

fn u64_of(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The contract with the runtime, in numbers.
#[test]
fn golden_layout_of_a_12_mib_service() {
    let file = service_image();
    let plan = Plan::new(&file, 3072, b"unit=3").unwrap();
    assert_eq!(
        *plan.layout(),
        Layout {
            pages: 3072,
            image_start: 0x100,
            stack: 0x107,
            start_info: 0x108,
            p2m: 0x109,
            free: 0x10f,
            tables: 3072 - 18,
        }
    );
    assert_eq!(plan.layout().table_count(), 18);
    assert_eq!((plan.image_pages(), plan.filled_pages()), (0x100..0x107, 0x100..0x10f));
}

#[test]
fn a_built_domain_is_what_the_plan_says() {
    let (xen, file) = (FakeXen::default(), service_image());
    let plan = Plan::new(&file, 1001, b"unit=3").unwrap();
    let mut frames = [Frame(0); 1100];
    let built = build(&xen, &plan, &mut frames).unwrap();
    let (id, created) = xen.created.borrow().unwrap();
    assert_eq!((id, created.pvh, created.max_memory_kib), (DomId(7), false, 4004));
    assert_eq!(xen.memory.borrow().len(), 1001);
    assert_eq!(xen.pinned.borrow().len() as u32, plan.layout().table_count());
    assert!(xen.most_mapped.get() <= 8, "a step maps few pages");
    assert_eq!(xen.entered.get(), Some(built.entry));
    assert_eq!(built.shared_info, SHARED_INFO);
    assert_eq!((built.entry.rip, built.entry.rung), (0x10_0040, 0));
    assert_eq!(built.entry.page_table, frames[plan.layout().tables as usize]);

    let top = built.entry.page_table;
    let read = |at, len| xen.read_virtual(top, at, len).unwrap();
    assert_eq!(read(0x10_0000, 5000), vec![0x11; 5000]);
    assert_eq!(read(0x10_0000 + 5000, 3192), vec![0; 3192]);
    assert_eq!(read(0x10_2000, 0x100), vec![0; 0x100]);
    assert_eq!(read(0x10_2100, 100), vec![0x22; 100]);
    assert_eq!(read(0x10_3000, 4106), vec![0x33; 4106]);
    assert_eq!(read(0x10_3000 + 4106, 3 * 4096 - 10), vec![0; 3 * 4096 - 10]);
    assert_eq!(read(0x10_7000, 4096), vec![0; 4096], "boot stack");

    let info = read(built.entry.start_info, 4096);
    assert!(info.starts_with(b"xen-3.0-x86_64\0"));
    assert_eq!(u64_of(&info, 32), 1001);
    assert_eq!(u64_of(&info, 40), SHARED_INFO.0 << 12);
    assert_eq!(u64_of(&info, 48), 0, "not privileged");
    assert_eq!(u64_of(&info, 88), u64::from(plan.layout().tables) << 12);
    assert_eq!(u64_of(&info, 96), 4 + 2 + 8);
    assert_eq!(u64_of(&info, 104), 0x10_9000);
    assert_eq!(&info[128..135], b"unit=3\0");
    let list = read(0x10_9000, 1001 * 8);
    for (page, frame) in frames[..1001].iter().enumerate() {
        assert_eq!(u64_of(&list, page * 8), frame.0);
    }
}

#[test]
fn page_tables_protect_code_constants_and_themselves() {
    let (xen, file) = (FakeXen::default(), service_image());
    let plan = Plan::new(&file, 1001, b"").unwrap();
    let mut frames = [Frame(0); 1001];
    let top = build(&xen, &plan, &mut frames).unwrap().entry.page_table;
    let flags = |page: u64| xen.walk(top, page << 12).map(|leaf| leaf & (1 << 63 | 0xfff));
    let (data, constant, code) = (1 << 63 | 0x63, 1 << 63 | 0x21, 0x21);
    assert_eq!(flags(0), Some(0), "a null pointer faults");
    assert_eq!(flags(1), Some(data));
    assert_eq!((flags(0x100), flags(0x101)), (Some(code), Some(code)));
    assert_eq!(flags(0x102), Some(constant));
    assert_eq!((flags(0x103), flags(0x106)), (Some(data), Some(data)));
    for page in 0x107..plan.layout().tables {
        assert_eq!(flags(page.into()), Some(data), "page {page}");
    }
    for page in plan.layout().tables..1001 {
        assert_eq!(flags(page.into()), Some(constant), "page {page}");
    }
    assert_eq!(flags(1001), Some(0));
    for page in 1..1001 {
        assert_eq!(xen.walk(top, page << 12).unwrap() >> 12 & 0xff_ffff, frames[page as usize].0);
    }
    let window = WINDOW_START >> 12;
    for page in window..window + u64::from(WINDOW_PAGES) {
        assert_eq!(flags(page), Some(0), "the table is there, the entry is empty");
    }
    assert_eq!(flags(window - 1), None);
    assert_eq!(flags(window + u64::from(WINDOW_PAGES)), None);
}

#[test]
fn every_refusal_ends_the_build_and_names_its_stage() {
    let file = service_image();
    let plan = Plan::new(&file, 600, b"").unwrap();
    let mut frames = [Frame(0); 600];
    let all = FakeXen::default();
    build(&all, &plan, &mut frames).unwrap();
    let mut last = Stage::Create;
    for calls in 0..all.calls.get() {
        let xen = FakeXen::default();
        xen.calls_left.set(Some(calls));
        let error = build(&xen, &plan, &mut frames).unwrap_err();
        assert_eq!(error.error, XenError::NoMemory);
        assert!(error.stage as u8 >= last as u8);
        last = error.stage;
    }
    assert_eq!(last, Stage::Enter);
}

#[test]
fn restore_repairs_image_and_start_info_and_leaves_the_rest() {
    restore_repairs(true);
    restore_repairs(false);
}

/// With the pages still mapped since the build, or mapped again.
fn restore_repairs(is_mapped: bool) {
    let (xen, file) = (FakeXen::default(), service_image());
    let plan = Plan::new(&file, 600, b"unit=3").unwrap();
    let mut frames = [Frame(0); 600];
    let mut pages = Pages::new();
    let built = build_keeping(&xen, &plan, &mut frames, &mut pages).unwrap();
    if !is_mapped {
        pages.clear();
    }
    let content = |page: usize| {
        let mut bytes = [0; 4096];
        xen.memory.borrow()[&frames[page].0].read(0, &mut bytes);
        bytes
    };
    let before: Vec<_> = (0..600).map(content).collect();
    let tables = plan.layout().tables as usize;
    for frame in &frames[..tables] {
        xen.memory.borrow()[&frame.0].fill(0, 4096, GARBAGE + 1);
    }
    let mut restore = Restore::new(DomId(7), built.shared_info);
    while !restore.step(&plan, &frames, &mut pages, &xen, &mut || {}).unwrap() {}
    let filled = plan.filled_pages();
    for (page, old) in before.iter().enumerate() {
        let now = content(page);
        let kept = page >= tables || filled.contains(&(page as u32));
        assert_eq!(now == *old, kept, "page {page}");
    }
}

#[test]
fn plans_that_cannot_work_are_refused() {
    let file = service_image();
    let plan = |pages, line: &[u8]| Plan::new(&file, pages, line).map(|_| ()).unwrap_err();
    assert_eq!(plan(8193, b""), PlanError::TooLarge { pages: 8193 });
    assert_eq!(plan(3072, &[b'x'; 256]), PlanError::CommandLineTooLong(256));
    let needed = 0x107 + 2 + 1 + 13;
    assert_eq!(plan(needed - 1, b""), PlanError::TooSmall { pages: needed - 1, needed });
    assert!(Plan::new(&file, needed, b"").is_ok());
    assert!(matches!(plan(0x106, b""), PlanError::Elf(ElfError::SegmentOutside { .. })));
    let patched = |at: usize, byte: u8| {
        let mut file = file.clone();
        file[at] = byte;
        Plan::new(&file, 3072, b"").map(|_| ()).unwrap_err()
    };
    // The notes are the last bytes of the file; the entry's value is the last of them.
    assert_eq!(patched(file.len() - 6, 0xff), PlanError::EntryOutside(0xff_0040));
    assert_eq!(patched(file.len() - 16, 2), PlanError::NoEntry);
    // The first segment's virtual address becomes 0.
    assert_eq!(patched(64 + 18, 0), PlanError::ImageAtZero);
}

proptest! {
    /// Whatever an image says, a plan that is accepted builds without a panic, and what it
    /// writes stays inside of the image's pages.
    #[test]
    fn a_hostile_image_is_refused_or_built(
        patches in proptest::collection::vec((64usize..288, any::<u8>()), 1..4),
        pages in 270u32..400,
    ) {
        let mut file = service_image();
        for (at, byte) in patches {
            file[at] = byte;
        }
        let Ok(plan) = Plan::new(&file, pages, b"") else { return Ok(()) };
        let layout = *plan.layout();
        prop_assert!(1 <= layout.image_start && layout.image_start < layout.stack);
        prop_assert!(layout.free <= layout.tables && layout.tables < layout.pages);
        let xen = FakeXen::default();
        let mut frames = vec![Frame(0); pages as usize];
        prop_assert!(build(&xen, &plan, &mut frames).is_ok());
        prop_assert_eq!(xen.memory.borrow().len(), pages as usize);
    }
}
