//! A service that stands in for the API.

use rapiddiskd::http::{Body, Call, Class, Method, Pieces, Response, Service};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a body that the route `/document` takes.
pub const DOCUMENT: usize = 4 << 10;

/// The body at `/pieces` has so many pieces of so many bytes.
pub const PIECES: usize = 1000;
pub const PIECE: usize = 8 << 10;

/// What the routing of `/after/N` takes at most, if N handlers are never called.
const ROUTING: Duration = Duration::from_secs(5);

/// Bytes that are part of the program.
pub static PROGRAM: [u8; 8 << 20] = [b's'; 8 << 20];

/// What became of the requests to a server.
#[derive(Default)]
pub struct Seen {
    routed: Mutex<Vec<String>>,
    /// Handlers that came to the gate.
    pub at_gate: AtomicUsize,
    /// Handlers that were called.
    answered: AtomicUsize,
    /// Pieces that were made.
    pub pieces: AtomicUsize,
    /// Reads that an I/O thread carried out itself.
    pub by_io_thread: AtomicUsize,
    /// Orders that the program's part of the I/O thread took.
    pub orders: AtomicUsize,
}

impl Seen {
    /// How often the service was asked for the route of this target.
    pub fn routed(&self, target: &str) -> usize {
        let routed = self.routed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        routed.iter().filter(|routed| *routed == target).count()
    }
}

/// Handlers block on `gate` where their path says so, until the test lets them go.
pub struct Stub {
    gate: Mutex<Receiver<()>>,
    seen: Arc<Seen>,
}

impl Stub {
    pub fn new(gate: Receiver<()>, seen: Arc<Seen>) -> Stub {
        Stub { gate: Mutex::new(gate), seen }
    }

    fn pieces(&self) -> Pieces {
        let seen = Arc::clone(&self.seen);
        Pieces::new(move |number| {
            seen.pieces.fetch_add(1, Ordering::SeqCst);
            if number < PIECES { vec![b'p'; PIECE] } else { Vec::new() }
        })
    }
}

#[derive(PartialEq)]
pub struct Action {
    method: Method,
    target: String,
}

impl Service for Stub {
    type Action = Action;

    fn route(&self, method: &Method, target: &str) -> Call<Action> {
        self.seen.routed.lock().unwrap().push(target.to_owned());
        assert_ne!(target, "/panic-in-routing");
        if let Some(answers) = target.strip_prefix("/after/") {
            let answers = answers.split('/').next().and_then(|number| number.parse().ok()).unwrap();
            let begin = Instant::now();
            while self.seen.answered.load(Ordering::SeqCst) < answers && begin.elapsed() < ROUTING {
                thread::yield_now();
            }
        }
        let class = class(method, target);
        let body = if target.starts_with("/document") { DOCUMENT } else { 0 };
        Call { action: Action { method: method.clone(), target: target.to_owned() }, class, body }
    }

    fn answer(&self, action: &Action, body: &[u8]) -> Response {
        let target = action.target.as_str();
        self.seen.answered.fetch_add(1, Ordering::SeqCst);
        let on_io_thread = thread::current().name().is_some_and(|name| name.starts_with("io-"));
        if on_io_thread && class(&action.method, target) == Class::Read {
            self.seen.by_io_thread.fetch_add(1, Ordering::SeqCst);
        }
        if target.ends_with("/panic") {
            panic!("a handler's fault");
        }
        if target.starts_with("/wait") || target == "/instant/wait" {
            self.seen.at_gate.fetch_add(1, Ordering::SeqCst);
            self.gate.lock().unwrap().recv().unwrap();
        }
        if target.starts_with("/sleep") {
            thread::sleep(Duration::from_millis(300));
        }
        match target {
            "/large" | "/instant/large" => plain(200, vec![b'x'; 8 << 20]),
            "/public/large" => plain(200, &PROGRAM[..]),
            "/body" | "/document" => plain(200, body.to_vec()),
            "/pieces" | "/instant/pieces" => plain(200, self.pieces()),
            "/broken-pieces" => plain(200, Pieces::new(|number| [b"piece"; 1][number].to_vec())),
            "/public/page" => Response::new(200, "text/html", "<p>").cached("max-age=60"),
            _ => plain(200, format!("{} {target}", action.method)),
        }
    }

    fn refusal(&self, status: u16, message: &str) -> Response {
        assert_ne!(message, "");
        plain(status, message.to_owned())
    }
}

fn class(method: &Method, target: &str) -> Class {
    match target.split('/').nth(1) {
        _ if *method == Method::Post => Class::Change,
        Some("instant") => Class::Instant,
        Some("public") => Class::Public,
        _ => Class::Read,
    }
}

fn plain(status: u16, body: impl Into<Body>) -> Response {
    Response::new(status, "text/plain; charset=UTF-8", body)
}
