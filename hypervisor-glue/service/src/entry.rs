//! The first steps of every service: who are we, where is our view of the fabric, where do last
//! words go.

use abi::PAGE_SIZE;
use fabric::health::{HealthReader, HealthWriter, Panic};
use fabric::view::{Party, RegionKind};
use runtime::{Boot, FabricMemory};

use crate::view::{Identity, View};

/// Maps our view, or finds it mapped, and registers where a panic leaves its text.
///
/// # Panics
/// When the orchestrator did not say who we are, or does not grant us our pages: then there is
/// nothing a service could do.
pub fn map_view(boot: &Boot) -> View<FabricMemory> {
    let argument = |name| boot.argument(name).unwrap_or_default();
    let identity = Identity::parse(argument("unit"), argument("fabric"))
        .expect("the orchestrator's command line says who we are");
    let memory = boot
        .hypervisor()
        .map_fabric(identity.first, identity.pages, |page| identity.access(page))
        .expect("the orchestrator grants us our view");
    let party = Party::unit(identity.unit);
    let health = system::LAYOUT
        .find(party, RegionKind::Health, party)
        .expect("every unit has a health page");
    boot.hypervisor().set_last_words(memory.part(health.offset(), PAGE_SIZE), write_last_words);
    View::new(memory, identity.unit)
}

/// Leaves the text of a panic or trap in the health page. It runs on the failing stack, so it only
/// copies. Which life failed, the page itself says.
fn write_last_words(page: &FabricMemory, text: &str) {
    let epoch = HealthReader::new(*page).read().map_or(0, |health| health.epoch);
    let panic = Panic::new(format_args!("{text}"), "", 0);
    HealthWriter::new(*page).set_panic(epoch, &panic);
}
