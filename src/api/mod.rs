//! The /v1 contract: requests become typed actions, actions are carried out by
//! the storage layer, and what it says becomes JSON and a status.

mod answer;
mod route;

pub use answer::status;
pub use route::{Action, NoAction};

use std::sync::Arc;

use serde_json::Value;

use crate::http::{Call, Class, Method, Response, Service};
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
            Action::Status => answer::service(&storage.health()),
            Action::Resources => answer::resources(&storage.resources()?),
            Action::Volumes => answer::volumes(&storage.volumes()?),
            Action::CacheStats(cache) => answer::cache_stats(&storage.cache_stats(cache)?),
            Action::Targets => {
                let (targets, ports) = storage.targets()?;
                answer::targets(&targets, &ports)
            }
            Action::Ports => answer::ports(&storage.ports()?),
            Action::CreateDisk(size) => {
                let disk = storage.create_disk(*size)?;
                answer::made("device", &disk, format!("{disk} has {} MiB", size.bytes() >> 20))
            }
            Action::ResizeDisk(disk, size) => {
                storage.resize_disk(*disk, *size)?;
                answer::done(format!("{disk} has {} MiB now", size.bytes() >> 20))
            }
            Action::FlushDisk(disk) => {
                storage.flush_disk(*disk)?;
                answer::done(format!("{disk} is empty"))
            }
            Action::RemoveDisk(disk) => {
                storage.remove_disk(*disk)?;
                answer::done(format!("{disk} is removed"))
            }
            Action::LockDisk(disk) => {
                storage.lock_disk(*disk, true)?;
                answer::done(format!("{disk} is read-only"))
            }
            Action::UnlockDisk(disk) => {
                storage.lock_disk(*disk, false)?;
                answer::done(format!("{disk} is read-write"))
            }
            Action::CreateCache(disk, source, policy) => {
                let made = storage.create_cache(*disk, source, *policy)?;
                let (name, driver, block) = (&made.name, made.driver.as_str(), made.block >> 10);
                let message = format!(
                    "{disk} caches {source} ({driver}, blocks of {block} KiB); use it as /dev/mapper/{name}"
                );
                answer::made("device", name, message)
            }
            Action::RemoveCache(cache) => {
                storage.remove_cache(cache)?;
                answer::done(format!("{cache} is removed"))
            }
            Action::CreatePort(id, place, protocol, service) => {
                answer::made_port(&storage.create_port(*id, place, *protocol, *service)?)
            }
            Action::RemovePort(id) => {
                storage.remove_port(*id)?;
                answer::done(format!("port {id} is removed"))
            }
            Action::CreateTarget(volume, ports, host) => {
                let nqn = storage.create_target(volume, *ports, host.as_ref())?;
                answer::made("nqn", &nqn, format!("{volume} is exported as {nqn}"))
            }
            Action::RemoveTarget(volume, None) => {
                storage.remove_target(volume, None)?;
                answer::done(format!("{volume} is not exported any more"))
            }
            Action::RemoveTarget(volume, Some(port)) => {
                storage.remove_target(volume, Some(*port))?;
                answer::done(format!("{volume} is not exported at port {port} any more"))
            }
            Action::AllowHost(volume, host) => {
                let nqn = storage.allow_host(volume, host)?;
                answer::made("nqn", &nqn, format!("{host} may connect to {volume}"))
            }
            Action::DenyHost(volume, host) => {
                let nqn = storage.deny_host(volume, host)?;
                answer::made("nqn", &nqn, format!("{host} may not connect to {volume} any more"))
            }
        })
    }
}

impl Service for Api {
    type Action = std::result::Result<Action, NoAction>;

    fn route(&self, method: &Method, target: &str) -> Call<Self::Action> {
        let action = Action::parse(method, target);
        let class = match &action {
            // Neither calls into the kernel.
            Ok(Action::Status) | Err(_) => Class::Instant,
            Ok(action) if action.is_change() => Class::Change,
            Ok(_) => Class::Read,
        };
        Call { action, class, body: 0 }
    }

    fn answer(&self, action: &Self::Action, _body: &[u8]) -> Response {
        match action {
            Ok(action) => match self.execute(action) {
                Ok(body) => answer::json(200, &body),
                Err(error) => answer::failed(status(&error), &error.to_string()),
            },
            Err(no_action) => answer::no_action(no_action),
        }
    }

    fn refusal(&self, status: u16, message: &str) -> Response {
        answer::failed(status, message)
    }
}
