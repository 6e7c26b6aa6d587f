//! The daemon under attack, what is measured of it, and the honest clients.

use rapiddiskd::client::Client;
use rapiddiskd::http::Listen;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub const STATUS: &str = "GET /v1/checkServiceStatus HTTP/1.1\r\nHost: localhost\r\n\r\n";
pub const LIST: &str = "GET /v1/listAllResources HTTP/1.1\r\nHost: localhost\r\n\r\n";
static PROBE: AtomicU64 = AtomicU64::new(0);
const PROBES: usize = 100;
pub const IN_TIME: Duration = Duration::from_secs(2);
pub const ATTACKERS: u32 = 4;

/// How long an attack lasts at least: longer than the deadlines of the daemon.
pub const ATTACK: Duration = Duration::from_secs(6);

/// How long an attack lasts at most: a slow machine takes longer to make its connections.
const LONGEST: Duration = Duration::from_secs(180);

/// Between two looks at what is waited for.
pub const PAUSE: Duration = Duration::from_millis(10);

/// The daemon answers or ends within this time, also on a busy machine.
pub const START: Duration = Duration::from_secs(30);

/// The daemon's resident memory at its highest, in KiB.
const MOST_MEMORY: u64 = 64 << 10;

/// What the kernel may hold for TCP connections, in KiB: enough for 256 with full buffers. The
/// attackers' ends have small buffers.
const MOST_KERNEL_MEMORY: u64 = 96 << 10;

/// Bytes of an attacker's buffers, before the kernel doubles them.
const SMALL: usize = 4 << 10;

pub fn program() -> OsString {
    env::var_os("RAPIDDISKD").unwrap_or_else(|| env!("CARGO_BIN_EXE_rapiddiskd").into())
}

pub struct Daemon {
    pub process: Child,
    port: u16,
    log: Arc<Mutex<String>>,
    /// Connections that attackers made.
    attackers: AtomicU64,
    /// Whether the honest clients ask for a list every other time. Where the attackers use up the
    /// limit of requests, in all or of their address, a list may be refused with 503.
    pub lists: bool,
}

/// A port that nobody listens on. It is below those that the kernel gives to clients: otherwise an
/// attacker's connection could have the port of the next daemon.
fn free_port() -> u16 {
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (first..32_000).find(is_free).expect("a free port")
}

impl Daemon {
    /// Under `ulimit` with these options, such as `-n 64`.
    pub fn start(ulimit: &str) -> Daemon {
        Daemon::start_with(ulimit, &[])
    }

    pub fn start_with(ulimit: &str, args: &[&str]) -> Daemon {
        Daemon::try_start(ulimit, args).unwrap_or_else(|log| panic!("the daemon did not start: {log}"))
    }

    pub fn try_start(ulimit: &str, args: &[&str]) -> Result<Daemon, String> {
        let port = free_port();
        let shell = format!("ulimit {ulimit} && exec \"$0\" \"$@\"");
        let mut process = Command::new("sh")
            .args(["-c", &shell])
            .arg(program())
            .args(["--port", &port.to_string()])
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let sink = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *sink.lock().unwrap() += &(line + "\n");
            }
        });
        let mut daemon = Daemon { process, port, log, attackers: AtomicU64::new(0), lists: true };
        let begin = Instant::now();
        while begin.elapsed() < START {
            if daemon.probe() {
                return Ok(daemon);
            }
            if daemon.process.try_wait().unwrap().is_some() {
                reader.join().unwrap();
                return Err(daemon.log());
            }
            thread::sleep(PAUSE);
        }
        panic!("{ulimit}: neither an answer nor an end within {START:?}: {}", daemon.log());
    }

    pub fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port)
    }

    /// Whether a client with a new connection is served in time.
    pub fn probe(&self) -> bool {
        let begin = Instant::now();
        // The one is answered out of memory, the other by a read.
        let is_list = self.lists && PROBE.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        let target = if is_list { "/v1/listAllResources" } else { "/v1/checkServiceStatus" };
        let reply = Client::new(&Listen::Tcp(self.address().into()), IN_TIME).call("GET", target);
        reply.is_ok_and(|reply| reply.status == 200) && begin.elapsed() < IN_TIME
    }

    /// A number of `/proc/PID/status`.
    pub fn proc_status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// An attacker's connection; its address depends on `number`.
    pub fn attacker(&self, number: u32) -> Option<TcpStream> {
        self.attacker_from(if number.is_multiple_of(2) { 1 } else { 2 + number / 2 % 7 })
    }

    /// An attacker's connection, from 127.0.0.`from`.
    pub fn attacker_from(&self, from: u32) -> Option<TcpStream> {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).ok()?;
        sockopt::set_socket_recv_buffer_size(&socket, SMALL).ok()?;
        sockopt::set_socket_send_buffer_size(&socket, SMALL).ok()?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, from as u8), 0)).ok()?;
        connect(&socket, &self.address()).ok()?;
        self.attackers.fetch_add(1, Ordering::Relaxed);
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        Some(stream)
    }

    /// Runs `attack` in several threads, each until the flag is set, and checks the daemon
    /// meanwhile: for this time, and for as long as it takes until `least` connections were made.
    pub fn under(&self, time: Duration, least: u64, attack: impl Fn(u32, &AtomicBool) + Sync) {
        let attackers = self.attackers.load(Ordering::Relaxed);
        let kernel_memory = tcp_memory();
        let mut most_kernel_memory = 0;
        let threads = self.proc_status("Threads");
        let over = AtomicBool::new(false);
        let made = || self.attackers.load(Ordering::Relaxed) - attackers;
        let begin = Instant::now();
        let (mut served, mut tried) = (0, 0);
        thread::scope(|scope| {
            for number in 0..ATTACKERS {
                let (attack, over) = (&attack, &over);
                scope.spawn(move || attack(number, over));
            }
            while tried < PROBES || begin.elapsed() < time || made() < least {
                if begin.elapsed() > LONGEST {
                    over.store(true, Ordering::Relaxed);
                    panic!("only {} attackers came through", made());
                }
                tried += 1;
                served += usize::from(self.probe());
                assert_eq!(self.proc_status("Threads"), threads);
                most_kernel_memory = most_kernel_memory.max(tcp_memory().saturating_sub(kernel_memory));
                // So that the probes are spread over the attack.
                thread::sleep(time / (2 * PROBES as u32));
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(served * 100 >= tried * 98, "only {served} of {tried} were served during the attack");
        let after = (0..20).filter(|_| self.probe()).count();
        assert_eq!(after, 20, "not all were served after the attack");
        assert_eq!(self.proc_status("Threads"), threads);
        let memory = self.proc_status("VmHWM");
        assert!(memory <= MOST_MEMORY, "{memory} KiB were resident");
        assert!(most_kernel_memory <= MOST_KERNEL_MEMORY, "the kernel held {most_kernel_memory} KiB");
        println!(
            "{served} of {tried} served in {:?} beside {} attackers, {threads} threads, \
             at most {memory} KiB and {most_kernel_memory} KiB of the kernel's",
            begin.elapsed(),
            made()
        );
    }

    /// Whether the log has this text, now or soon.
    pub fn logs(&self, text: &str) -> bool {
        let begin = Instant::now();
        while !self.log().contains(text) && begin.elapsed() < IN_TIME {
            thread::sleep(PAUSE);
        }
        self.log().contains(text)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the kernel holds for all TCP connections, in KiB.
fn tcp_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap();
    let pages = line.rsplit_once(" mem ").unwrap().1.trim();
    pages.parse::<u64>().unwrap() * 4
}

/// Reads one answer to its end; its status.
pub fn read_answer(stream: &mut BufReader<TcpStream>) -> std::io::Result<u16> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.get(9..12).and_then(|status| status.parse().ok());
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
    }
    stream.read_exact(&mut vec![0; length])?;
    status.ok_or(ErrorKind::InvalidData.into())
}
