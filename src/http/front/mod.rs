//! The I/O thread: one epoll loop that owns every socket.
//!
//! * [`door`]: accepting connections, and which one gives way to a new one;
//! * [`connections`]: what each connection does next;
//! * [`dispatch`]: what becomes of a request;
//! * [`budget`]: what all of them together may take.

mod budget;
mod connections;
mod dispatch;
mod door;

use super::access::Access;
use super::audit::Refusals;
use super::limits::Limits;
use super::listen::{Listen, Listener};
use super::service::Service;
use super::workers::Pool;
use budget::Budget;
use connections::Connections;
use dispatch::Dispatcher;
use door::{Door, LISTENERS};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of what is neither a listener nor a connection.
const WAKE: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;

/// The longest sleep while requests are being answered: a worker that need not ring the bell adds
/// its result to the list without waking us, and a deadline may count from that time.
const NAP: Duration = Duration::from_secs(1);

/// What the server does after its `wake` descriptor became readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Nothing.
    Continue,
    /// Read the files it depends on again.
    Reload,
    /// Finish what runs, then return.
    Stop,
}

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

    /// Serves on the calling thread until `wake` is readable and `on_wake`, which must make it
    /// unreadable again, says stop. Then there are no new connections, running requests finish,
    /// and their answers go out, all within `Limits::grace`.
    ///
    /// # Errors
    /// The threads or the event loop could not be set up, or the loop failed beyond repair.
    pub fn run<S: Service>(
        self,
        service: Arc<S>,
        wake: BorrowedFd<'_>,
        on_wake: &mut dyn FnMut() -> Wake,
    ) -> io::Result<()> {
        let mut front = Front::new(self, service, wake)?;
        front.serve(on_wake)?;
        epoll::delete(&front.epoll, wake)?;
        front.finish()
    }
}

/// The running server.
struct Front<S: Service> {
    epoll: Arc<OwnedFd>,
    door: Door,
    connections: Connections<S>,
    events: Vec<epoll::Event>,
}

impl<S: Service> Front<S> {
    fn new(server: Server, service: Arc<S>, wake: BorrowedFd<'_>) -> io::Result<Front<S>> {
        let Server { listeners, mut limits, access } = server;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        epoll::add(&epoll, wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        // Edge-triggered: each ring is one event, and nobody has to read the counter.
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        door::fit_to_files(&mut limits, listeners.len());
        let door = Door::new(&epoll, listeners)?;
        let pool = Pool::start(Arc::clone(&service), bell, limits.workers, limits.changes, limits.queue)?;
        let (refusals, budget) = (Refusals::default(), Budget::default());
        let dispatcher = Dispatcher { service, pool, access, refusals, budget, limits };
        let connections = Connections::new(Arc::clone(&epoll), dispatcher);
        Ok(Front { epoll, door, connections, events: Vec::with_capacity(256) })
    }

    fn serve(&mut self, on_wake: &mut dyn FnMut() -> Wake) -> io::Result<()> {
        loop {
            self.wait(None)?;
            if self.turn() {
                match on_wake() {
                    Wake::Continue => {}
                    Wake::Reload => self.connections.dispatcher.access.reload(),
                    Wake::Stop => return Ok(()),
                }
            }
        }
    }

    /// Lets running requests finish and their answers go out.
    fn finish(mut self) -> io::Result<()> {
        let end = self.connections.now + self.connections.dispatcher.limits.grace;
        self.door.close();
        self.connections.stop();
        while self.connections.slots.len() > 0 && self.connections.now < end {
            self.wait(Some(end))?;
            self.turn();
        }
        self.connections.dispatcher.refusals.say_left_out();
        Ok(())
    }

    /// Sleeps until something happens or is due.
    fn wait(&mut self, end: Option<Instant>) -> io::Result<()> {
        self.events.clear();
        let timeout = self.timeout(end);
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("epoll_wait: {error}"))),
        }
        self.connections.now = Instant::now();
        Ok(())
    }

    fn timeout(&self, end: Option<Instant>) -> Option<Timespec> {
        let Connections { dispatcher, now, .. } = &self.connections;
        let left = |at: Instant| at.saturating_duration_since(*now);
        let nap = if self.connections.stopping { NAP / 20 } else { NAP };
        let times = [
            self.connections.next_deadline().map(left),
            self.door.again().map(left),
            dispatcher.refusals.due().map(left),
            end.map(left),
            (dispatcher.budget.busy() > 0).then_some(nap),
            self.connections.slots.has_ready().then_some(Duration::ZERO),
        ];
        let shortest = times.into_iter().flatten().min()?;
        // Rounded up to a hundredth of a second, so that many deadlines close to each other cost one
        // look at the table. An accepted connection that waits for room is not kept as long.
        let step = if self.door.is_full() { 1 } else { 10 };
        let milliseconds = shortest.as_nanos().div_ceil(step * 1_000_000) as i64 * step as i64;
        Some(Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 })
    }

    /// Handles what happened and what is due. True if the caller's descriptor is readable.
    fn turn(&mut self) -> bool {
        let Front { epoll, door, connections, events } = self;
        let mut woken = false;
        let mut accepting = false;
        if connections.dispatcher.budget.busy() > 0 {
            connections.take_done();
        }
        for event in events {
            match event.data.u64() {
                WAKE => woken = true,
                // It only has to wake us: the results are taken in every turn.
                BELL => {}
                token if token >= LISTENERS => accepting = true,
                token => connections.on_event(token, event.flags),
            }
        }
        connections.advance_ready();
        connections.expire();
        let now = connections.now;
        if connections.dispatcher.refusals.due().is_some_and(|at| at <= now) {
            connections.dispatcher.refusals.say_left_out();
        }
        accepting |= door.is_due(now);
        // Last, so that nothing gives way to a new connection that has just brought a request.
        if accepting {
            connections.dispatcher.pool.wake();
            door.accept_all(epoll, connections);
        }
        connections.dispatcher.pool.wake();
        woken
    }
}
