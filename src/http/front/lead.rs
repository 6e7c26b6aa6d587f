//! Which thread runs the loop. Elsewhere that one is called the I/O thread.
//!
//! Two threads take turns. The one that has the lock on the loop leads. Where a single read waits and
//! nothing else, the leader carries it out itself: that spares waking a worker, which for one client
//! takes longer than most reads. A read may also hang in the kernel. So for that time the leader gives
//! the loop up, and the other thread stands by: the next event wakes it, and it leads from then on. If
//! nothing happened meanwhile, the first thread goes on leading, and no thread was woken at all.
//!
//! While no thread stands by, because one hangs, all reads go to the workers.

use super::event_loop::{EventLoop, wait_failed};
use crate::http::service::Service;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// How often the one that stands by looks without being woken: deadlines are no events, and in this rare
/// case may be kept so much later.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How many events are taken at once.
const EVENTS: usize = 256;

/// The loop, and what the threads need to take turns.
pub(super) struct Lead<S: Service> {
    /// `None` once it has ended.
    event_loop: Mutex<Option<EventLoop<S>>>,
    standby: Standby,
}

/// What wakes the thread that stands by: an epoll that watches the loop's own, and only while that one
/// is given up.
struct Standby {
    outer: OwnedFd,
    inner: Arc<OwnedFd>,
    is_there: AtomicBool,
}

impl Standby {
    fn new(inner: Arc<OwnedFd>) -> io::Result<Standby> {
        let outer = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&outer, &inner, EventData::new_u64(0), EventFlags::empty())?;
        Ok(Standby { outer, inner, is_there: AtomicBool::new(false) })
    }

    /// Turns the watch on or off. What happened before it was turned on counts.
    fn watch(&self, on: bool) {
        let flags = if on { EventFlags::IN } else { EventFlags::empty() };
        // With a registered descriptor only lack of memory can make this fail. Then the one that stands by
        // comes with its next look.
        let _ = epoll::modify(&self.outer, &self.inner, EventData::new_u64(0), flags);
    }

    /// Waits until the loop may have to be taken over.
    fn wait(&self) -> io::Result<()> {
        let mut events = Vec::with_capacity(1);
        self.is_there.store(true, Ordering::SeqCst);
        let waited = epoll::wait(&self.outer, rustix::buffer::spare_capacity(&mut events), Some(&LOOK));
        self.is_there.store(false, Ordering::SeqCst);
        match waited {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(wait_failed(error)),
        }
    }
}

impl<S: Service> Lead<S> {
    pub fn new(event_loop: EventLoop<S>) -> io::Result<Lead<S>> {
        let standby = Standby::new(Arc::clone(&event_loop.epoll))?;
        Ok(Lead { event_loop: Mutex::new(Some(event_loop)), standby })
    }

    /// Leads and stands by, until the loop has ended; `None` if the other thread ended it.
    ///
    /// # Errors
    /// The loop failed beyond repair.
    pub fn take_turns(&self) -> Option<io::Result<()>> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let end = match self.event_loop.try_lock() {
                Ok(lock) if lock.is_none() => return None,
                Ok(lock) => self.lead(lock, &mut events),
                Err(TryLockError::WouldBlock) => self.standby.wait().err().map(Err),
                Err(TryLockError::Poisoned(_)) => return None,
            };
            if end.is_some() {
                return end;
            }
        }
    }

    /// Drops the loop after the panic of the thread that had it, and with it every socket.
    pub fn drop_poisoned(&self) {
        if let Err(TryLockError::Poisoned(error)) = self.event_loop.try_lock() {
            *error.into_inner() = None;
        }
    }

    /// Leads until the other thread does, which gives `None`, or the loop has ended.
    fn lead<'a>(
        &'a self,
        mut lock: MutexGuard<'a, Option<EventLoop<S>>>,
        events: &mut Vec<epoll::Event>,
    ) -> Option<io::Result<()>> {
        while let Some(event_loop) = &mut *lock {
            match event_loop.step(events) {
                Ok(true) => {}
                end => {
                    *lock = None;
                    return Some(end.map(drop));
                }
            }
            let has_deputy = self.standby.is_there.load(Ordering::SeqCst);
            let Some(read) = has_deputy.then(|| event_loop.take_read()).flatten() else { continue };
            // In this order: the other one is woken once, and must then find the lock free.
            drop(lock);
            self.standby.watch(true);
            let rendered = read.answer();
            self.standby.watch(false);
            let Ok(again) = self.event_loop.try_lock() else {
                if read.deliver(rendered.as_ref()) {
                    read.ring();
                }
                return None;
            };
            lock = again;
            read.deliver(rendered.as_ref());
            if let Some(event_loop) = &mut *lock {
                event_loop.take_results();
            }
        }
        None
    }
}
