//! The loop: one epoll that tells of every socket, of the workers' results and of the program's wishes.

use super::budget::Budget;
use super::connections::Connections;
use super::dispatch::Dispatcher;
use super::door::{self, Door, LISTENERS};
use crate::http::access::Access;
use crate::http::audit::RefusalLog;
use crate::http::limits::Limits;
use crate::http::listen::Listener;
use crate::http::service::Service;
use crate::http::workers::{Pool, Task};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
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

/// What the threads of the loop tell the one that called `run`.
pub(super) enum News {
    /// The program's descriptor is readable, and one of them waits for what follows.
    Woken,
    /// The loop has ended.
    End(thread::Result<io::Result<()>>),
}

/// The program that called `run`.
pub(super) struct Program {
    pub wake: OwnedFd,
    pub news: Sender<News>,
    pub replies: Receiver<Wake>,
}

impl Program {
    /// What follows from its descriptor's being readable.
    fn ask(&self) -> Wake {
        // Where it panicked, it is gone.
        self.news.send(News::Woken).ok().and_then(|()| self.replies.recv().ok()).unwrap_or(Wake::Stop)
    }
}

/// The running server.
pub(super) struct EventLoop<S: Service> {
    pub epoll: Arc<OwnedFd>,
    program: Program,
    door: Door,
    connections: Connections<S>,
    /// Set once it stops: until then running requests may finish.
    end: Option<Instant>,
}

pub(super) fn wait_failed(error: Errno) -> io::Error {
    io::Error::new(error.kind(), format!("epoll_wait: {error}"))
}

impl<S: Service> EventLoop<S> {
    pub fn new(
        listeners: Vec<Listener>,
        mut limits: Limits,
        access: Access,
        service: Arc<S>,
        program: Program,
    ) -> io::Result<EventLoop<S>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        epoll::add(&epoll, &program.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        // Edge-triggered: each ring is one event, and nobody has to read the counter.
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        door::fit_to_files(&mut limits, listeners.len());
        let door = Door::new(&epoll, listeners)?;
        let pool = Pool::start(Arc::clone(&service), bell, limits.workers, limits.changes, limits.queue)?;
        let (refusals, budget) = (RefusalLog::default(), Budget::default());
        let dispatcher = Dispatcher { service, pool, access, refusals, budget, limits };
        let connections = Connections::new(Arc::clone(&epoll), dispatcher);
        Ok(EventLoop { epoll, program, door, connections, end: None })
    }

    /// One turn of the loop: sleeps until something happens or is due, and sees to it. False once it has
    /// ended. `events` is room for what happened.
    pub fn step(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<bool> {
        self.wait(events)?;
        if self.turn(events) {
            match self.program.ask() {
                Wake::Continue => {}
                Wake::Reload => self.connections.reload(),
                Wake::Stop => self.stop()?,
            }
        }
        let goes_on = self.end.is_none_or(|end| !self.connections.is_empty() && self.connections.now < end);
        if !goes_on {
            self.connections.tell_refusals();
        }
        Ok(goes_on)
    }

    /// From now on running requests finish and their answers go out, and that is all.
    fn stop(&mut self) -> io::Result<()> {
        epoll::delete(&self.epoll, &self.program.wake)?;
        self.end = Some(self.connections.now + self.connections.limits().grace);
        self.door.close();
        self.connections.stop();
        Ok(())
    }

    /// A read to be carried out by the calling thread, if there is nothing else to do at the moment.
    pub fn take_read(&mut self) -> Option<Task<S>> {
        let is_quiet = self.end.is_none() && self.door.again().is_none();
        if is_quiet { self.connections.take_read() } else { None }
    }

    /// Takes the results that are there now, and goes on with what follows from them.
    pub fn take_results(&mut self) {
        self.connections.now = Instant::now();
        self.connections.settle();
    }

    /// Sleeps until something happens or is due.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        self.connections.wake_workers();
        events.clear();
        let timeout = self.timeout();
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(wait_failed(error)),
        }
        self.connections.now = Instant::now();
        Ok(())
    }

    fn timeout(&self) -> Option<Timespec> {
        let now = self.connections.now;
        let left = |at: Instant| at.saturating_duration_since(now);
        let nap = if self.end.is_some() { NAP / 20 } else { NAP };
        let times = [
            self.connections.next_due().map(left),
            self.door.again().map(left),
            self.end.map(left),
            self.connections.is_busy().then_some(nap),
            self.connections.has_ready().then_some(Duration::ZERO),
        ];
        let shortest = times.into_iter().flatten().min()?;
        // Rounded up to a hundredth of a second, so that many deadlines close to each other cost one
        // look at the table. An accepted connection that waits for room is not kept as long.
        let step = if self.door.is_full() { 1 } else { 10 };
        let milliseconds = shortest.as_nanos().div_ceil(step * 1_000_000) as i64 * step as i64;
        Some(Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 })
    }

    /// Handles what happened and what is due. True if the program's descriptor is readable.
    fn turn(&mut self, events: &[epoll::Event]) -> bool {
        let EventLoop { epoll, door, connections, .. } = self;
        let mut woken = false;
        let mut accepting = false;
        if connections.is_busy() {
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
        accepting |= door.is_due(connections.now);
        // Last, so that nothing gives way to a new connection that has just brought a request.
        if accepting {
            connections.wake_workers();
            door.accept_all(epoll, connections);
        }
        woken
    }
}
