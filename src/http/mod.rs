//! The HTTP front: connections, bounds, parsing and workers. It knows no storage.
//!
//! One loop owns every socket, and nothing that can block holds it up; a fixed pool of workers runs the
//! handlers. A slow or hostile client costs a bounded buffer for a bounded time, never a thread.
//! Methods and status codes are `tiny_http`'s types; requests, responses and connections are ours.

mod access;
mod audit;
mod conn;
mod count;
mod date;
mod front;
mod limits;
mod listen;
mod message;
mod parse;
mod peer;
mod render;
mod service;
mod slots;
mod tokens;
mod workers;

pub use access::{Access, AccessRules};
pub use front::{Server, Wake};
pub use limits::Limits;
pub use listen::Listen;
pub use message::{Body, Method, Pieces, Response};
#[doc(hidden)]
pub use parse::examine;
pub use peer::Peer;
pub use service::{Call, Class, Service};
