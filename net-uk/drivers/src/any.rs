//! A driver of either kind.

use crate::e1000e::E1000e;
use crate::trusted::Format;
use crate::virtio::Virtio;
use crate::{Config, Driver, Event, Failure, Machine, RxBuffer, Start, TxFrame};

/// The driver that fits a device.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one per NIC, where there is no heap")]
pub enum AnyDriver {
    /// For an Intel 82574L.
    Intel(E1000e),
    /// For virtio-net.
    Virtio(Virtio),
}

impl AnyDriver {
    /// A driver that knows nothing of its device.
    pub fn fresh(format: Format) -> Self {
        match format {
            Format::E1000e => Self::Intel(E1000e::new()),
            Format::Virtio => Self::Virtio(Virtio::new()),
        }
    }
}

impl<M: Machine> Driver<M> for AnyDriver {
    fn start(&mut self, machine: &mut M, config: &Config) -> Result<Start, Failure> {
        match self {
            Self::Intel(driver) => driver.start(machine, config),
            Self::Virtio(driver) => driver.start(machine, config),
        }
    }

    fn configure(&mut self, machine: &mut M, config: &Config) -> Result<(), Failure> {
        match self {
            Self::Intel(driver) => driver.configure(machine, config),
            Self::Virtio(driver) => driver.configure(machine, config),
        }
    }

    fn transmit(&mut self, machine: &mut M, frame: &TxFrame) -> Result<(), Failure> {
        match self {
            Self::Intel(driver) => driver.transmit(machine, frame),
            Self::Virtio(driver) => driver.transmit(machine, frame),
        }
    }

    fn post(&mut self, machine: &mut M, buffer: &RxBuffer) -> Result<(), Failure> {
        match self {
            Self::Intel(driver) => driver.post(machine, buffer),
            Self::Virtio(driver) => driver.post(machine, buffer),
        }
    }

    fn flush(&mut self, machine: &mut M) {
        match self {
            Self::Intel(driver) => driver.flush(machine),
            Self::Virtio(driver) => driver.flush(machine),
        }
    }

    fn poll(&mut self, machine: &mut M, events: &mut impl Extend<Event>) -> Result<(), Failure> {
        match self {
            Self::Intel(driver) => driver.poll(machine, events),
            Self::Virtio(driver) => driver.poll(machine, events),
        }
    }
}
