//! The HTTP front over real loopback sockets, with a service that stands in for the API.

mod access;
mod audit;
mod bounds;
mod daemon;
mod failure;
mod life;
mod notify;
mod program;
mod requests;
mod responses;
mod stub;
