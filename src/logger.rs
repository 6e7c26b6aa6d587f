//! The log: lines go into a bounded queue, and a thread of its own writes them to stderr.
//!
//! The reader of stderr may be slow, stuck or gone. That must neither hold up nor end the threads
//! that serve. A line that finds the queue full is lost; the log says how many lines are missing.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use simple_logger::SimpleLogger;

/// The number of lines that may wait to be written. The longest ones, which have a request's
/// target, take about 4 KiB.
const QUEUE: usize = 512;

/// How long the process waits at its end for the lines that are not written yet.
const LAST_MOMENT: Duration = Duration::from_millis(300);

/// Bytes of stack of the writing thread, more than it needs.
const STACK: usize = 256 << 10;

/// The longest write in bytes that a pipe takes as a whole (`PIPE_BUF`).
const PIECE: usize = 4096;

thread_local! {
    /// Whether this thread is the one that writes the lines.
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// The number of lines that are in the queue or being written.
static WAITING: AtomicUsize = AtomicUsize::new(0);

struct Line {
    level: Level,
    target: String,
    text: String,
    /// How many lines before this one were lost.
    lost: u64,
}

/// The near end of the queue, which the `log` macros call.
struct Queue {
    lines: SyncSender<Line>,
    lost: AtomicU64,
}

impl Log for Queue {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let line = Line {
            level: record.level(),
            target: record.target().to_owned(),
            text: record.args().to_string(),
            lost: self.lost.swap(0, Ordering::Relaxed),
        };
        let lost = line.lost + 1;
        WAITING.fetch_add(1, Ordering::AcqRel);
        if self.lines.try_send(line).is_err() {
            WAITING.fetch_sub(1, Ordering::AcqRel);
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// The log of this process. When it is dropped, it waits a moment for the last lines.
#[derive(Debug)]
pub struct Logger {
    level: LevelFilter,
    /// The far end of the queue, until the writing thread takes it.
    lines: Mutex<Option<Receiver<Line>>>,
}

impl Logger {
    /// Makes the `log` macros and panics write to the queue. Call it once in a process.
    ///
    /// # Errors
    /// There is a logger already.
    pub fn install(level: LevelFilter) -> Result<Logger, log::SetLoggerError> {
        let (sender, lines) = sync_channel(QUEUE);
        log::set_boxed_logger(Box::new(Queue { lines: sender, lost: AtomicU64::new(0) }))?;
        log::set_max_level(level);
        // A panic becomes one line. A backtrace would take memory that is never given back, and
        // would name no function in a stripped binary. A panic of the writing thread cannot be
        // written.
        std::panic::set_hook(Box::new(|panic| {
            if !WRITES.get() {
                log::error!("{}", panic.to_string().escape_debug());
            }
        }));
        Ok(Logger { level, lines: Mutex::new(Some(lines)) })
    }

    /// Starts the writing thread. It inherits the rights of the calling thread, so call this after
    /// that one has dropped the rights that it does not need.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn start(&self) -> io::Result<()> {
        let Some(lines) = self.lines.lock().ok().and_then(|mut lines| lines.take()) else { return Ok(()) };
        let sink = SimpleLogger::new().with_level(self.level);
        thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK)
            .spawn(move || write(&lines, &sink))?;
        Ok(())
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // When the daemon failed early, the thread is not running yet, but there may be lines.
        if self.start().is_err() {
            return;
        }
        let end = Instant::now() + LAST_MOMENT;
        while WAITING.load(Ordering::Acquire) > 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn write(lines: &Receiver<Line>, sink: &SimpleLogger) {
    WRITES.set(true);
    for Line { level, target, text, lost } in lines {
        if lost > 0 {
            write_one(
                sink,
                Level::Warn,
                module_path!(),
                &format!("{lost} lines are missing here: the log was full"),
            );
        }
        write_one(sink, level, &target, &text);
        WAITING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Writes one line. `SimpleLogger` panics when stderr is full or closed; the line is then lost.
fn write_one(sink: &SimpleLogger, level: Level, target: &str, text: &str) {
    let write =
        || sink.log(&Record::builder().level(level).target(target).args(format_args!("{text}")).build());
    // There is no other place to report that.
    let _ = catch_unwind(AssertUnwindSafe(write));
}

/// Writes a line to stderr without the log, if stderr takes it within a moment.
pub fn say(text: &str) {
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    let time = Timespec { tv_sec: 0, tv_nsec: LAST_MOMENT.subsec_nanos().into() };
    if poll(&mut ready, Some(&time)).is_ok_and(|count| count > 0) {
        let line = format!("rapiddiskd: {text}\n");
        // Not through std, because the writing thread may hold its lock. There is no other place
        // to report a failure.
        let _ = rustix::io::write(stderr.as_fd(), &line.as_bytes()[..line.len().min(PIECE)]);
    }
}
