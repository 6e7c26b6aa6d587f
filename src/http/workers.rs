//! The fixed pool of threads that run the handlers.
//!
//! A worker writes its answer to the socket itself, because the socket nearly always takes it at
//! once. Then it adds the result to a list that the I/O thread reads. It rings the I/O thread's
//! bell (an eventfd) only where that thread must act: see [`Line`].
//!
//! A single read can also be taken by the I/O thread itself, as a [`Task`]. It then counts as one that
//! a worker has: never do more handlers run at once than there are workers.
//!
//! Equal reads that wait at the same time get one answer. It is made when all of these requests
//! are complete, so it is as current for each of them as an answer of its own.

use super::audit;
use super::message::{Request, Response};
use super::render::{Bytes, Rendered, Rest, Shape, render};
use super::service::{Class, Service};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendFlags, send};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// The stack of a worker. Memory is taken only for the part that a handler uses.
const STACK: usize = 512 << 10;

/// A worker has the connection's request, and nobody waits for the end of it.
const RUNNING: u8 = 0;
/// A worker has the connection's request, and the I/O thread wants its bell rung at the end.
const AWAITED: u8 = 1;
/// No worker has anything of this connection.
const DONE: u8 = 2;

/// How many different requests wait until workers are woken for them, at the latest. Requests that
/// come together are often equal, and then need one worker only.
const FEW: usize = 4;

/// A connection's socket, held by the I/O thread and, while a request of it is being answered, by
/// who answers it: a worker, or an I/O thread that has given up the loop.
///
/// The two agree through `state` on whether the bell must be rung. Usually it need not: the client
/// takes its answer and sends the next request, and that wakes the I/O thread.
#[derive(Debug)]
pub(super) struct Line {
    pub socket: OwnedFd,
    state: AtomicU8,
}

impl Line {
    pub fn new(socket: OwnedFd) -> Line {
        Line { socket, state: AtomicU8::new(DONE) }
    }

    /// Notes that a worker is about to get a request. `awaited`: the bell must be rung at its end.
    fn start(&self, awaited: bool) {
        self.state.store(if awaited { AWAITED } else { RUNNING }, Ordering::Release);
    }

    /// Asks the worker to ring the bell at the end. False if the worker has finished already: then
    /// its result is in the list, and the bell may not ring.
    pub fn wait_for_end(&self) -> bool {
        let swap = self.state.compare_exchange(RUNNING, AWAITED, Ordering::AcqRel, Ordering::Acquire);
        swap != Err(DONE)
    }

    /// Notes that the result is in the list. True if the bell must be rung.
    fn end(&self) -> bool {
        self.state.swap(DONE, Ordering::AcqRel) == AWAITED
    }

    /// Writes what the socket takes now.
    ///
    /// # Errors
    /// The connection is broken. A full socket counts as nothing written.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match retry_on_intr(|| send(&self.socket, bytes, flags)) {
            Ok(length) => Ok(length),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a worker has to do: a complete request that may go on.
pub(super) struct Work<A> {
    pub request: Request,
    pub action: A,
    pub class: Class,
    pub body: Vec<u8>,
    pub shape: Shape,
    /// When the request was complete.
    pub since: Instant,
}

impl<A: PartialEq> Work<A> {
    pub fn is_change(&self) -> bool {
        self.class == Class::Change
    }

    /// Whether the two can have one answer, the same to the byte.
    fn is_like(&self, other: &Work<A>) -> bool {
        let is_plain = |work: &Work<A>| !work.is_change() && work.body.is_empty();
        is_plain(self) && is_plain(other) && self.action == other.action && self.shape == other.shape
    }
}

/// Work for the request of one connection.
pub(super) struct Job<A> {
    pub token: u64,
    pub line: Arc<Line>,
    pub work: Work<A>,
}

/// A job in the queue.
struct Queued<A> {
    job: Job<A>,
    /// None of those before it has the same answer.
    leads: bool,
}

/// What became of a job.
pub(super) struct Done {
    pub token: u64,
    pub at: Instant,
    /// `None` if the connection broke, or no answer could be made.
    pub answer: Option<Unsent>,
}

/// What is still to be sent of an answer.
#[derive(Debug)]
pub(super) struct Unsent {
    pub bytes: Bytes,
    /// How many of these bytes are sent.
    pub written: usize,
    pub rest: Option<Rest>,
}

impl Unsent {
    fn is_nothing(&self) -> bool {
        self.written == self.bytes.len() && self.rest.is_none()
    }
}

impl From<Rendered> for Unsent {
    fn from(Rendered { bytes, rest, .. }: Rendered) -> Unsent {
        Unsent { bytes, written: 0, rest }
    }
}

/// Makes an answer, whatever the handler does. If the handler panics, the answer is a 500; if there is no
/// memory for its answer, a 503. `None` only if that fails as well.
pub(super) fn respond<S: Service>(
    service: &S,
    shape: &Shape,
    answer: impl FnOnce() -> Response,
) -> Option<Rendered> {
    let (status, message) = match guard(|| render(answer(), shape)) {
        Some(Ok(rendered)) => return Some(rendered),
        Some(Err(_)) => (503, NO_MEMORY),
        None => (500, PANICKED),
    };
    guard(|| render(service.refusal(status, message), shape).ok()).flatten()
}

fn guard<T>(make: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(make)).ok()
}

pub(super) const PANICKED: &str = "The daemon failed while it answered this request; its log says more.";

const NO_MEMORY: &str = "There is no memory for this answer at the moment. A change may have been \
                         made: look before you try again.";

struct Queue<A> {
    jobs: VecDeque<Queued<A>>,
    /// How many of them lead.
    leading: usize,
    /// How many more handlers may run.
    places: usize,
    /// Workers that wait to be woken.
    idle: usize,
    closed: bool,
}

impl<A: PartialEq> Queue<A> {
    /// Takes the oldest job and all that can have its answer, if a handler more may run.
    fn take(&mut self) -> Option<Vec<Job<A>>> {
        if self.places == 0 {
            return None;
        }
        let Queued { job, leads } = self.jobs.pop_front()?;
        let mut jobs = vec![job];
        let mut at = 0;
        while at < self.jobs.len() {
            if self.jobs[at].job.work.is_like(&jobs[0].work) {
                jobs.extend(self.jobs.remove(at).map(|queued| queued.job));
            } else {
                at += 1;
            }
        }
        self.leading -= usize::from(leads);
        self.places -= 1;
        Some(jobs)
    }
}

struct Shared<S: Service> {
    service: Arc<S>,
    queue: Mutex<Queue<S::Action>>,
    work: Condvar,
    done: Mutex<Vec<Done>>,
    bell: OwnedFd,
    changes: AtomicUsize,
}

/// No handler runs under these locks, so the data of a poisoned one is sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pool, as the I/O thread sees it.
pub(super) struct Pool<S: Service> {
    shared: Arc<Shared<S>>,
    most_changes: usize,
    most_queued: usize,
    /// How many workers are to be woken.
    wakes: usize,
}

impl<S: Service> Pool<S> {
    /// Starts the workers, or as many of them as the system allows. `bell` is an eventfd that is
    /// written when the I/O thread must look at [`Pool::take_done`].
    ///
    /// # Errors
    /// Fewer than two threads could be started: one for reads and one for changes.
    pub fn start(
        service: Arc<S>,
        bell: OwnedFd,
        workers: usize,
        changes: usize,
        queue: usize,
    ) -> io::Result<Pool<S>> {
        let shared = Arc::new(Shared {
            service,
            queue: Mutex::new(Queue { jobs: VecDeque::new(), leading: 0, places: 0, idle: 0, closed: false }),
            work: Condvar::new(),
            done: Mutex::new(Vec::new()),
            bell,
            changes: AtomicUsize::new(0),
        });
        let mut pool = Pool { shared, most_changes: 0, most_queued: queue, wakes: 0 };
        let wanted = workers.max(2);
        let mut started = 0;
        while started < wanted {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new().name(format!("worker-{started}")).stack_size(STACK);
            match thread.spawn(move || work(&shared)) {
                Ok(_) => started += 1,
                Err(error) if started < 2 => {
                    let message = format!("cannot start the two threads it takes at least: {error}");
                    return Err(io::Error::new(error.kind(), message));
                }
                Err(error) => {
                    log::warn!("running with {started} of {wanted} workers: {error}");
                    break;
                }
            }
        }
        pool.most_changes = changes.clamp(1, started - 1);
        lock(&pool.shared.queue).places = started;
        Ok(pool)
    }

    /// Whether one more request can be taken.
    ///
    /// # Errors
    /// Too much is waiting or changing already: the reason, as a sentence for the client.
    pub fn room(&self, is_change: bool) -> Result<(), &'static str> {
        if is_change && self.shared.changes.load(Ordering::Acquire) >= self.most_changes {
            return Err("As many changes as the daemon allows are under way; try again.");
        }
        // Those that get the same answer as another cost no worker's time.
        if lock(&self.shared.queue).leading >= self.most_queued {
            return Err("Too many requests are waiting; try again.");
        }
        Ok(())
    }

    /// Hands a request to a worker, after `room` found that there is room: only one thread does
    /// both, so there still is. `awaited`: the bell is rung at its end in any case. An idle worker
    /// sees it after [`Pool::wake`].
    pub fn submit(&mut self, job: Job<S::Action>, awaited: bool) {
        if job.work.is_change() {
            self.shared.changes.fetch_add(1, Ordering::AcqRel);
        }
        job.line.start(awaited);
        let mut queue = lock(&self.shared.queue);
        // The worker that takes the one takes the other as well.
        let leads = !queue.jobs.iter().any(|other| other.job.work.is_like(&job.work));
        queue.leading += usize::from(leads);
        self.wakes += usize::from(leads && queue.idle > 0);
        queue.jobs.push_back(Queued { job, leads });
        drop(queue);
        if self.wakes >= FEW {
            self.wake();
        }
    }

    /// Takes what was submitted since the last waking, if that is a single read for which an idle worker
    /// would be woken.
    pub fn take_read(&mut self) -> Option<Task<S>> {
        if self.wakes != 1 {
            return None;
        }
        let mut queue = lock(&self.shared.queue);
        if queue.leading != 1 || queue.jobs.front().is_none_or(|first| first.job.work.is_change()) {
            return None;
        }
        let jobs = queue.take()?;
        self.wakes = 0;
        drop(queue);
        Some(Task { shared: Arc::clone(&self.shared), jobs })
    }

    /// Wakes workers for what was submitted.
    pub fn wake(&mut self) {
        for _ in 0..std::mem::take(&mut self.wakes) {
            self.shared.work.notify_one();
        }
    }

    /// Takes a request back that no worker has begun with.
    pub fn cancel(&self, token: u64) -> Option<Work<S::Action>> {
        let mut queue = lock(&self.shared.queue);
        let at = queue.jobs.iter().position(|queued| queued.job.token == token)?;
        let Queued { job: Job { line, work, .. }, leads } = queue.jobs.remove(at)?;
        if leads {
            match queue.jobs.iter_mut().find(|other| other.job.work.is_like(&work)) {
                Some(next) => next.leads = true,
                None => queue.leading -= 1,
            }
        }
        line.end();
        if work.is_change() {
            self.shared.changes.fetch_sub(1, Ordering::AcqRel);
        }
        Some(work)
    }

    /// Moves what the workers finished since the last call into `list`, which is empty.
    pub fn take_done(&self, list: &mut Vec<Done>) {
        std::mem::swap(&mut *lock(&self.shared.done), list);
    }
}

/// The workers end once the queue is empty; one that runs a handler ends after that.
impl<S: Service> Drop for Pool<S> {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.work.notify_all();
    }
}

fn work<S: Service>(shared: &Shared<S>) {
    let mut queue = lock(&shared.queue);
    loop {
        if let Some(jobs) = queue.take() {
            drop(queue);
            let rendered = shared.answer(&jobs);
            if shared.deliver(&jobs, rendered.as_ref()) {
                ring(&shared.bell);
            }
            queue = lock(&shared.queue);
            queue.places += 1;
        } else if queue.closed && queue.jobs.is_empty() {
            return;
        } else {
            queue.idle += 1;
            queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

impl<S: Service> Shared<S> {
    /// Makes the one answer to some requests.
    fn answer(&self, jobs: &[Job<S::Action>]) -> Option<Rendered> {
        let work = &jobs[0].work;
        let rendered = respond(&*self.service, &work.shape, || self.service.answer(&work.action, &work.body));
        if work.is_change() {
            self.changes.fetch_sub(1, Ordering::AcqRel);
            let status = rendered.as_ref().map_or(500, |rendered| rendered.status);
            audit::done(&work.request, status, work.since.elapsed());
        }
        rendered
    }

    /// Sends the answer and adds the results to the list. True if the bell must be rung.
    fn deliver(&self, jobs: &[Job<S::Action>], rendered: Option<&Rendered>) -> bool {
        let mut awaited = false;
        for job in jobs {
            let answer = rendered.and_then(|rendered| send_now(&job.line, rendered));
            let is_unsent = answer.as_ref().is_none_or(|answer| !answer.is_nothing());
            // For each connection at once: its client may have sent the next request already, and
            // the connection counts as busy until this is taken. Both under the lock: as soon as
            // the result is taken, the line may serve the next request.
            let mut done = lock(&self.done);
            done.push(Done { token: job.token, at: Instant::now(), answer });
            awaited |= job.line.end() | is_unsent;
        }
        awaited
    }
}

/// A read that an I/O thread carries out itself, in the place of a worker.
pub(super) struct Task<S: Service> {
    shared: Arc<Shared<S>>,
    jobs: Vec<Job<S::Action>>,
}

impl<S: Service> Task<S> {
    /// Runs the handler, which may take as long as it likes.
    pub fn answer(&self) -> Option<Rendered> {
        self.shared.answer(&self.jobs)
    }

    /// Sends the answer and adds the results to the list. True if the thread that runs the loop must be
    /// told, see [`Task::ring`].
    pub fn deliver(&self, rendered: Option<&Rendered>) -> bool {
        self.shared.deliver(&self.jobs, rendered)
    }

    /// Rings the bell.
    pub fn ring(&self) {
        ring(&self.shared.bell);
    }
}

impl<S: Service> Drop for Task<S> {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.places += 1;
        // Its worker may have been wanted meanwhile.
        if !queue.jobs.is_empty() {
            self.shared.work.notify_one();
        }
    }
}

/// Sends what the socket takes at once. `None` if the connection is broken.
fn send_now(line: &Line, Rendered { bytes, rest, .. }: &Rendered) -> Option<Unsent> {
    let written = line.write(bytes).ok()?;
    // What is written need not be kept.
    let (bytes, written) =
        if written < bytes.len() { (bytes.clone(), written) } else { (Bytes::Static(b""), 0) };
    Some(Unsent { bytes, written, rest: rest.clone() })
}

/// An eventfd's counter is only full after 2^64 - 2 rings, so a failure cannot come from that, and
/// there is nothing to be done about any other.
fn ring(bell: &OwnedFd) {
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}
