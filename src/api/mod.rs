//! The /v1 contract: requests become typed actions, actions are carried out by
//! the storage layer, and what it says becomes JSON and a status.

pub mod action;
mod answer;
pub mod caches;
pub mod disks;
pub mod errors;
pub mod machine;
pub mod nvme;
mod openapi;
pub mod parameters;
pub mod routes;
pub mod schemas;

use std::sync::Arc;

use crate::http::{Call, Method, Response, Service};
use crate::storage::Storage;
use action::Action;
use machine::LastStatus;

/// The API over the storage of this machine.
pub struct Api {
    storage: Arc<Storage>,
    last_status: LastStatus,
}

impl Api {
    /// An API over `storage`.
    pub fn new(storage: Arc<Storage>) -> Api {
        Api { storage, last_status: LastStatus::default() }
    }
}

impl Service for Api {
    type Action = Action;

    fn route(&self, method: &Method, target: &str) -> Call<Action> {
        routes::route(method, target)
    }

    fn answer(&self, action: &Action, _body: &[u8]) -> Response {
        let storage = &*self.storage;
        let result = match action {
            Action::Status => {
                return answer::json_line(200, self.last_status.text(storage.watch.health()));
            }
            Action::Specification => return answer::made_text(200, openapi::specification()),
            Action::Machine(action) => machine::execute(storage, action),
            Action::Disks(action) => disks::execute(storage, action),
            Action::Caches(action) => caches::execute(storage, action),
            Action::Nvme(action) => nvme::execute(storage, action),
            Action::Refuse(why) => return errors::no_action(why),
        };
        match result {
            Ok(body) => answer::json(200, &body),
            Err(error) => errors::refused(&error),
        }
    }

    fn refusal(&self, status: u16, message: &str) -> Response {
        errors::failed(status, message)
    }
}

#[cfg(test)]
mod page;
