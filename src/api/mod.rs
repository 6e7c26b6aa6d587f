//! The /v1 contract: requests become typed actions, actions are carried out by
//! the storage layer, and what it says becomes JSON and a status.

pub mod action;
mod answer;
pub mod caches;
pub mod disks;
pub mod errors;
pub mod machine;
pub mod nvme;
#[cfg(test)]
mod page;
pub mod parameters;
pub mod routes;
pub mod seam;

use std::sync::Arc;

use crate::http::{Answer, Method, Request, Service};
use crate::storage::Storage;
use action::Action;
use seam::{Class, Response};

/// The API over the storage of this machine.
pub struct Api {
    storage: Arc<Storage>,
}

impl Api {
    /// An API over `storage`.
    pub fn new(storage: Arc<Storage>) -> Api {
        Api { storage }
    }

    /// Carries an action out.
    fn carry_out(&self, action: &Action, _body: &[u8]) -> Response {
        let storage = &*self.storage;
        let result = match action {
            Action::Machine(action) => machine::execute(storage, action),
            Action::Disks(action) => disks::execute(storage, action),
            Action::Caches(action) => caches::execute(storage, action),
            Action::Nvme(action) => nvme::execute(storage, action),
            Action::None(why) => return errors::no_action(why),
        };
        match result {
            Ok(body) => answer::json(200, &body),
            Err(error) => errors::refused(&error),
        }
    }
}

impl Service for Api {
    fn is_change(&self, method: &Method, target: &str) -> bool {
        routes::route(method, target).class == Class::Change
    }

    fn is_instant(&self, method: &Method, target: &str) -> bool {
        routes::route(method, target).class == Class::Instant
    }

    fn answer(&self, request: &Request) -> Answer {
        let call = routes::route(&request.method, &request.target);
        self.carry_out(&call.action, &request.body).into_answer()
    }

    fn refusal(&self, status: u16, message: &str) -> Answer {
        errors::failed(status, message).into_answer()
    }
}
