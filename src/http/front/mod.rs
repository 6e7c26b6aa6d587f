//! What serves: one loop that owns every socket.
//!
//! * [`event_loop`]: its turns;
//! * [`lead`]: which thread runs it;
//! * [`door`]: accepting connections, and which one gives way to a new one;
//! * [`connections`]: what each connection does next;
//! * [`dispatch`]: what becomes of a request;
//! * [`budget`]: what all of them together may take.

mod budget;
mod connections;
mod dispatch;
mod door;
mod event_loop;
mod lead;

use super::access::Access;
use super::limits::Limits;
use super::listen::{Listen, Listener};
use super::service::Service;
pub use event_loop::Wake;
use event_loop::{EventLoop, News, Program};
use lead::Lead;
use rustix::fd::BorrowedFd;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// The stack of a thread that runs the loop. It runs handlers as well.
const STACK: usize = 512 << 10;

/// A server that listens and has not begun to serve.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    limits: Limits,
    access: Access,
}

impl Server {
    /// Opens all of the given places.
    ///
    /// # Errors
    /// What the kernel said to the first that could not be opened, with its name.
    pub fn bind(listen: &[Listen], limits: Limits, access: Access) -> io::Result<Server> {
        let open = |place| Listener::open(place, listen);
        let listeners = listen.iter().map(open).collect::<io::Result<Vec<_>>>()?;
        Ok(Server { listeners, limits, access })
    }

    /// The places it listens on, with the ports the kernel chose.
    pub fn places(&self) -> Vec<Listen> {
        self.listeners.iter().filter_map(Listener::place).collect()
    }

    /// The TCP addresses among them.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(Listener::address).collect()
    }

    /// Serves until `wake` is readable and `on_wake`, which must make it unreadable again, says stop. Then
    /// there are no new connections, running requests finish, and their answers go out, all within
    /// `Limits::grace`. `on_wake` runs on the calling thread, which does nothing else.
    ///
    /// # Errors
    /// The threads or the event loop could not be set up, or the loop failed beyond repair.
    pub fn run<S: Service>(
        self,
        service: Arc<S>,
        wake: BorrowedFd<'_>,
        on_wake: &mut dyn FnMut() -> Wake,
    ) -> io::Result<()> {
        let Server { listeners, limits, access } = self;
        let (sender, news) = channel();
        let (reply, replies) = channel();
        // Before the workers, of which there may be fewer if the system has no room for all.
        let starts = [start_thread::<S>(0, &sender), start_thread(1, &sender)];
        let program = Program { wake: wake.try_clone_to_owned()?, news: sender, replies };
        let [first, second] = starts;
        let first = first.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start the thread that serves: {error}"))
        })?;
        let second =
            second.inspect_err(|error| log::warn!("serving with one thread, which is slower: {error}"));
        let lead = Arc::new(Lead::new(EventLoop::new(listeners, limits, access, service, program)?)?);
        for start in [Some(first), second.ok()].into_iter().flatten() {
            let _ = start.send(Arc::clone(&lead));
        }
        drop(lead);
        loop {
            match news.recv() {
                // It waits for the reply, and ends without one.
                Ok(News::Woken) => drop(reply.send(on_wake())),
                Ok(News::End(Ok(result))) => return result,
                Ok(News::End(Err(panic))) => resume_unwind(panic),
                Err(_) => return Ok(()),
            }
        }
    }
}

/// Starts a thread that runs the loop in turn with the other one, as soon as it is given the loop.
fn start_thread<S: Service>(number: usize, news: &Sender<News>) -> io::Result<Sender<Arc<Lead<S>>>> {
    let (start, lead) = channel::<Arc<Lead<S>>>();
    let news = news.clone();
    let take_turns = move || {
        let Ok(lead) = lead.recv() else { return };
        // There is nobody to serve without the loop: its end is that of the server.
        let end = catch_unwind(AssertUnwindSafe(|| lead.take_turns()));
        if end.is_err() {
            lead.drop_poisoned();
        }
        if let Some(end) = end.transpose() {
            let _ = news.send(News::End(end));
        }
    };
    thread::Builder::new().name(format!("io-{number}")).stack_size(STACK).spawn(take_turns)?;
    Ok(start)
}
