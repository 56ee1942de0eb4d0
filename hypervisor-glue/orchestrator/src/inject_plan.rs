//! Which faults to inject: the plan on the command line.

use abi::DomId;

use crate::inject_records::Record;
use crate::inject_rows::Rows;

/// Kinds that one plan may name.
const MAX_KINDS: usize = 16;

/// One way of breaking a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The instruction pointer points at memory that is not there.
    WildJump,
    /// The next instruction is an undefined one of the unit's own text.
    Undefined,
    /// The stack pointer points at memory that is not there.
    WildStack,
    /// Every general register but the stack pointer holds a wild address.
    WildRegisters,
    /// The next instruction is an endless loop of the unit's own text.
    EndlessLoop,
    /// The domain is shut down as crashed, asleep or not.
    Shutdown,
    /// The vCPU is paused behind the watcher's back.
    Paused,
    /// One bit of one of the unit's pages, chosen uniformly, is flipped.
    FlipPage,
    /// One bit of a record is flipped.
    Record(Record),
}

impl Kind {
    /// All kinds, in the order of their names in plans.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::WildJump, "crash-wild-jump"),
        (Self::Undefined, "crash-undefined"),
        (Self::WildStack, "crash-wild-stack"),
        (Self::WildRegisters, "crash-wild-registers"),
        (Self::Shutdown, "crash-shutdown"),
        (Self::EndlessLoop, "hang-loop"),
        (Self::Paused, "hang-paused"),
        (Self::FlipPage, "flip-page"),
        (Self::Record(Record::Node), "corrupt-record-node"),
        (Self::Record(Record::Slot), "corrupt-record-slot"),
        (Self::Record(Record::Header), "corrupt-record-header"),
        (Self::Record(Record::Area), "corrupt-record-area"),
        (Self::Record(Record::Control), "corrupt-record-control"),
        (Self::Record(Record::Health), "corrupt-record-health"),
    ];

    /// The name used in plans and results (`evaluation.md`: a prefix, then detail).
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("unknown", |(_, name)| name)
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// What the orchestrator is in the middle of when a fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Creating a guest: from its domain's creation to its first instruction.
    Create,
    /// Rebuilding another unit: from the end of its old domain until its new one runs.
    Rebuild,
}

impl Span {
    /// The word used in plans and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Rebuild => "rebuild",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Create, Self::Rebuild].into_iter().find(|span| span.name() == name)
    }
}

/// What is wrong with a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError<'a> {
    /// A field that plans do not have.
    UnknownField(&'a str),
    /// A number that cannot be read.
    NotANumber(&'a str),
    /// A kind that does not exist, or more kinds than a plan may name.
    UnknownKind(&'a str),
    /// A span that does not exist.
    UnknownSpan(&'a str),
    /// Rebuilds are to be struck, and no other unit is named that is to be rebuilt.
    NobodyToRebuild,
    /// No kind or no unit is named.
    Incomplete,
}

/// What to inject, into whom, how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Domain of the unit to break.
    pub unit: DomId,
    /// It is the replica of the store that serves when the fault is due (`unit:store`).
    pub is_leader: bool,
    /// Kinds to choose from, in turn.
    pub kinds: heapless::Vec<Kind, MAX_KINDS>,
    /// Number of faults.
    pub count: u32,
    /// Seed of the instants.
    pub seed: u64,
    /// Mean time between faults in microseconds.
    pub gap_us: u64,
    /// Pieces of work the unit is handed before the first fault.
    pub after: u64,
    /// Which faults come in a row.
    pub rows: Rows,
    /// Another unit, which is shut down as crashed when a row begins.
    pub with: Option<DomId>,
    /// Faults come only in the middle of this.
    pub during: Option<Span>,
}

impl Plan {
    /// Reads a plan; the part after `inject=`.
    ///
    /// # Errors
    /// [`PlanError`] names the field.
    pub fn parse(text: &str) -> Result<Self, PlanError<'_>> {
        let mut plan = Self {
            unit: DomId(0),
            is_leader: false,
            kinds: heapless::Vec::new(),
            count: 1,
            seed: 1,
            gap_us: 20_000,
            after: 0,
            rows: Rows::single(),
            with: None,
            during: None,
        };
        for field in text.split(';') {
            let (name, value) = field.split_once(':').ok_or(PlanError::UnknownField(field))?;
            let wrong = PlanError::NotANumber(field);
            let number = || value.parse::<u64>().map_err(|_| wrong);
            let domid = || value.parse::<u16>().map(DomId).map_err(|_| wrong);
            match name {
                "unit" if value == "store" => {
                    let first = system::SYSTEM.with_role(system::Role::XenStore);
                    plan.unit = DomId(first.map_or(0, |unit| system::SYSTEM.units[unit].domid));
                    plan.is_leader = true;
                }
                "unit" => plan.unit = domid()?,
                "with" => plan.with = Some(domid()?),
                "during" => {
                    plan.during = Some(Span::named(value).ok_or(PlanError::UnknownSpan(value))?);
                }
                "row" => plan.rows = Rows::parse(value).ok_or(wrong)?,
                "count" => plan.count = value.parse().map_err(|_| wrong)?,
                "seed" => plan.seed = number()?,
                "gap_us" => plan.gap_us = number()?,
                "after" => plan.after = number()?,
                "kinds" => {
                    for name in value.split('+') {
                        let kind = Kind::named(name).ok_or(PlanError::UnknownKind(name))?;
                        plan.kinds.push(kind).map_err(|_| PlanError::UnknownKind(name))?;
                    }
                }
                other => return Err(PlanError::UnknownField(other)),
            }
        }
        if plan.kinds.is_empty() || plan.unit == DomId::ORCHESTRATOR {
            return Err(PlanError::Incomplete);
        }
        let other = plan.with.filter(|other| *other != plan.unit);
        if plan.during == Some(Span::Rebuild) && other.is_none() {
            return Err(PlanError::NobodyToRebuild);
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read() {
        let plan = Plan::parse("unit:1;kinds:crash-undefined+hang-loop;count:60;seed:7;after:5");
        let plan = plan.expect("a correct plan");
        assert_eq!(plan.unit, DomId(1));
        assert_eq!(plan.kinds.as_slice(), [Kind::Undefined, Kind::EndlessLoop]);
        assert_eq!((plan.count, plan.seed, plan.after, plan.gap_us), (60, 7, 5, 20_000));
        assert!(!plan.is_leader);
        let plan = Plan::parse("unit:store;kinds:hang-loop").expect("a correct plan");
        assert_eq!((plan.unit, plan.is_leader), (DomId(1), true));
    }

    #[test]
    fn a_plan_names_the_span_of_its_faults() {
        let during = |text| Plan::parse(text).map(|plan| plan.during);
        assert_eq!(during("unit:1;kinds:hang-loop"), Ok(None));
        assert_eq!(during("unit:1;kinds:hang-loop;during:create"), Ok(Some(Span::Create)));
        let rebuild = during("unit:1;with:5;kinds:hang-loop;during:rebuild");
        assert_eq!(rebuild, Ok(Some(Span::Rebuild)));
    }

    #[test]
    fn a_wrong_plan_names_its_field() {
        let cases = [
            ("unit:1;kinds:crash-now", PlanError::UnknownKind("crash-now")),
            ("unit:x", PlanError::NotANumber("unit:x")),
            ("speed:3", PlanError::UnknownField("speed")),
            ("unit", PlanError::UnknownField("unit")),
            ("unit:1", PlanError::Incomplete),
            ("kinds:hang-loop", PlanError::Incomplete),
            ("row:1+0", PlanError::NotANumber("row:1+0")),
            ("during:boot", PlanError::UnknownSpan("boot")),
            ("unit:1;kinds:hang-loop;during:rebuild", PlanError::NobodyToRebuild),
            ("unit:1;with:1;kinds:hang-loop;during:rebuild", PlanError::NobodyToRebuild),
        ];
        for (text, error) in cases {
            assert_eq!(Plan::parse(text), Err(error), "{text}");
        }
    }
}
