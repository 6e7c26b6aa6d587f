//! What a request asks for, typed. A request is parsed once, and the action is what travels.

use super::caches::CacheAction;
use super::disks::DiskAction;
use super::machine::MachineAction;
use super::nvme::NvmeAction;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Whether the service runs, and which drivers it has.
    Status,
    /// What calls there are.
    Specification,
    /// Something about the machine as a whole.
    Machine(MachineAction),
    /// Something about RAM disks.
    Disks(DiskAction),
    /// Something about caches.
    Caches(CacheAction),
    /// Something about NVMe targets and ports.
    Nvme(NvmeAction),
    /// Nothing: the answer is a refusal that says why.
    Refuse(NoAction),
}

/// Why a request is none of the actions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAction {
    /// A parameter or the encoding of the path is wrong.
    Invalid(String),
    /// There is no such path.
    NoPath(String),
    /// The path takes these methods, as in the field `Allow`.
    NoMethod(&'static str),
}

impl From<MachineAction> for Action {
    fn from(action: MachineAction) -> Action {
        Action::Machine(action)
    }
}

impl From<DiskAction> for Action {
    fn from(action: DiskAction) -> Action {
        Action::Disks(action)
    }
}

impl From<CacheAction> for Action {
    fn from(action: CacheAction) -> Action {
        Action::Caches(action)
    }
}

impl From<NvmeAction> for Action {
    fn from(action: NvmeAction) -> Action {
        Action::Nvme(action)
    }
}
