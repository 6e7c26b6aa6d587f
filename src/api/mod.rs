//! The /v1 contract: requests become typed actions, actions are carried out by
//! the storage layer, and what it says becomes JSON and a status.

mod answer;
mod route;

pub use answer::status;
pub use route::{Action, NoAction};

use std::sync::Arc;

use serde_json::Value;

use crate::http::{Answer, Method, Request, Service};
use crate::storage::{Result, Storage};

/// The API over the storage of this machine.
pub struct Api {
    storage: Arc<Storage>,
}

impl Api {
    /// An API over `storage`.
    pub fn new(storage: Arc<Storage>) -> Api {
        Api { storage }
    }

    fn execute(&self, action: &Action) -> Result<Value> {
        let storage = &self.storage;
        Ok(match action {
            Action::Status => answer::service(&storage.watch.health()),
            Action::Resources => answer::resources(&storage.resources()?),
            Action::Volumes => answer::volumes(&storage.disks.list()?, &storage.caches.list()?),
            Action::CacheStats(cache) => answer::cache_stats(&storage.caches.stats(cache)?),
            Action::Targets => {
                let (targets, ports) = storage.exports.list()?;
                answer::targets(&targets, &ports)
            }
            Action::Ports => answer::ports(&storage.exports.ports()?),
            Action::CreateDisk(size) => {
                let disk = storage.disks.create(*size)?;
                answer::made("device", &disk, format!("{disk} has {} MiB", size.bytes() >> 20))
            }
            Action::ResizeDisk(disk, size) => {
                let left = storage.disks.resize(*disk, *size)?;
                answer::done(with(format!("{disk} has {} MiB now", size.bytes() >> 20), left))
            }
            Action::FlushDisk(disk) => {
                storage.disks.flush(*disk)?;
                answer::done(format!("{disk} is empty"))
            }
            Action::RemoveDisk(disk) => {
                let left = storage.disks.remove(*disk)?;
                answer::done(with(format!("{disk} is removed"), left))
            }
            Action::LockDisk(disk) => {
                storage.disks.set_locked(*disk, true)?;
                answer::done(format!("{disk} is read-only"))
            }
            Action::UnlockDisk(disk) => {
                storage.disks.set_locked(*disk, false)?;
                answer::done(format!("{disk} is read-write"))
            }
            Action::CreateCache(disk, source, policy) => {
                let made = storage.caches.create(*disk, source, *policy)?;
                let (name, driver, block) = (&made.name, made.driver, made.block >> 10);
                let message = format!(
                    "{disk} caches {source} ({driver}, blocks of {block} KiB); use it as /dev/mapper/{name}"
                );
                answer::made("device", name, message)
            }
            Action::RemoveCache(cache) => {
                let left = storage.caches.remove(cache)?;
                answer::done(with(format!("{cache} is removed"), left))
            }
            Action::CreatePort(id, place, protocol, service) => {
                answer::made_port(&storage.exports.create_port(*id, place, *protocol, *service)?)
            }
            Action::RemovePort(id) => {
                storage.exports.remove_port(*id)?;
                answer::done(format!("port {id} is removed"))
            }
            Action::CreateTarget(volume, ports, host) => {
                let nqn = storage.exports.create(volume, *ports, host.as_ref())?;
                answer::made("nqn", &nqn, format!("{volume} is exported as {nqn}"))
            }
            Action::RemoveTarget(volume, None) => {
                storage.exports.remove(volume, None)?;
                answer::done(format!("{volume} is not exported any more"))
            }
            Action::RemoveTarget(volume, Some(port)) => {
                storage.exports.remove(volume, Some(*port))?;
                answer::done(format!("{volume} is not exported at port {port} any more"))
            }
            Action::AllowHost(volume, host) => {
                let nqn = storage.exports.allow_host(volume, host)?;
                answer::made("nqn", &nqn, format!("{host} may connect to {volume}"))
            }
            Action::DenyHost(volume, host) => {
                let nqn = storage.exports.deny_host(volume, host)?;
                answer::made("nqn", &nqn, format!("{host} may not connect to {volume} any more"))
            }
        })
    }
}

impl Service for Api {
    fn is_change(&self, method: &Method, target: &str) -> bool {
        Action::parse(method, target).is_ok_and(|action| action.is_change())
    }

    fn is_instant(&self, method: &Method, target: &str) -> bool {
        // Neither calls into the kernel.
        matches!(Action::parse(method, target), Ok(Action::Status) | Err(_))
    }

    fn answer(&self, request: &Request) -> Answer {
        match Action::parse(&request.method, &request.target) {
            Ok(action) => match self.execute(&action) {
                Ok(body) => answer::json(200, &body),
                Err(error) => answer::failed(status(&error), &error.to_string()),
            },
            Err(no_action) => answer::no_action(&no_action),
        }
    }

    fn refusal(&self, status: u16, message: &str) -> Answer {
        answer::failed(status, message)
    }
}

/// The message of a change that is done, with what it left over.
fn with(done: String, left: Option<String>) -> String {
    match left {
        Some(left) => format!("{done}, but {left}"),
        None => done,
    }
}
