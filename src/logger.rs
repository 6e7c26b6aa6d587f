//! The log: lines go into a bounded queue, and a thread of its own writes them to stderr.
//!
//! Who reads stderr may be slow, stuck or gone, and none of that may hold or end the threads that
//! serve. What finds the queue full is counted, and the log says how much it lacks.

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

/// Lines that wait to be written. The longest of them, with a request's target, has some 4 KiB.
const QUEUE: usize = 512;

/// How long the end of the process waits for the lines that are still there.
const LAST_MOMENT: Duration = Duration::from_millis(300);

/// More than writing a line takes.
const STACK: usize = 256 << 10;

/// Bytes that a pipe takes in one piece once it takes anything (`PIPE_BUF`).
const PIECE: usize = 4096;

thread_local! {
    /// This thread is the one that writes the lines.
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// Lines that are in the queue or being written.
static WAITING: AtomicUsize = AtomicUsize::new(0);

struct Line {
    level: Level,
    target: String,
    text: String,
    /// How many before it found no room.
    lost: u64,
}

/// What the `log` macros call.
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

/// The log of this process. Dropped at its end, it waits a moment for the last lines.
#[derive(Debug)]
pub struct Logger {
    level: LevelFilter,
    /// The queue's other end, until the thread has it.
    lines: Mutex<Option<Receiver<Line>>>,
}

impl Logger {
    /// Makes the `log` macros and panics fill the queue; once in a process.
    ///
    /// # Errors
    /// There is a logger already.
    pub fn install(level: LevelFilter) -> Result<Logger, log::SetLoggerError> {
        let (sender, lines) = sync_channel(QUEUE);
        log::set_boxed_logger(Box::new(Queue { lines: sender, lost: AtomicU64::new(0) }))?;
        log::set_max_level(level);
        // One line for the log. A backtrace would cost memory for good, and names no more in a
        // stripped binary. What fails in the writing thread cannot be written.
        std::panic::set_hook(Box::new(|panic| {
            if !WRITES.get() {
                log::error!("{}", panic.to_string().escape_debug());
            }
        }));
        Ok(Logger { level, lines: Mutex::new(Some(lines)) })
    }

    /// Starts the thread that writes. It has the rights of the calling one, which is to have
    /// dropped those it does not need.
    ///
    /// # Errors
    /// There is no memory for a thread.
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
        // A start that failed early has lines as well. Without a thread for them they are lost.
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

/// Writes a line, or not: it panics where stderr is full or closed.
fn write_one(sink: &SimpleLogger, level: Level, target: &str, text: &str) {
    let write =
        || sink.log(&Record::builder().level(level).target(target).args(format_args!("{text}")).build());
    // There is nobody left to tell.
    let _ = catch_unwind(AssertUnwindSafe(write));
}

/// Writes the program's last words to stderr past the log, if it takes them within a moment.
pub fn say(text: &str) {
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    let time = Timespec { tv_sec: 0, tv_nsec: LAST_MOMENT.subsec_nanos().into() };
    if poll(&mut ready, Some(&time)).is_ok_and(|count| count > 0) {
        let line = format!("rapiddiskd: {text}\n");
        // Not through std, whose lock the writing thread may hold. Where it fails, there is
        // nobody to tell.
        let _ = rustix::io::write(stderr.as_fd(), &line.as_bytes()[..line.len().min(PIECE)]);
    }
}
