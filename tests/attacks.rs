//! The real binary under attack, over loopback.
//!
//! During each attack fresh clients ask for the daemon's status: 98 of 100 must get it within two
//! seconds, and all of them afterwards. The daemon's memory and threads are watched throughout.
//! Half of the attackers come from the address of those clients, the others from elsewhere.

use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// An attack on one daemon is one on the tests beside it as well.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const STATUS: &str = "GET /v1/checkServiceStatus HTTP/1.1\r\nHost: localhost\r\n\r\n";
const PROBES: usize = 100;
const IN_TIME: Duration = Duration::from_secs(2);
const ATTACKERS: u32 = 4;

/// At least this long, so that deadlines of the daemon pass within an attack.
const ATTACK: Duration = Duration::from_secs(6);

const START: Duration = Duration::from_secs(3);

/// The daemon's resident memory at its highest, in KiB.
const MOST_MEMORY: u64 = 64 << 10;

struct Daemon {
    process: Child,
    port: u16,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    /// Under `ulimit` with these options, such as `-n 64`.
    fn start(ulimit: &str) -> Daemon {
        Daemon::try_start(ulimit).unwrap_or_else(|log| panic!("the daemon did not start: {log}"))
    }

    fn try_start(ulimit: &str) -> Result<Daemon, String> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let shell = format!("ulimit {ulimit} && exec \"$0\" \"$@\"");
        let mut process = Command::new("sh")
            .args(["-c", &shell, env!("CARGO_BIN_EXE_rapiddiskd"), "--port", &port.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let sink = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *sink.lock().unwrap() += &(line + "\n");
            }
        });
        let mut daemon = Daemon { process, port, log };
        let begin = Instant::now();
        while begin.elapsed() < START {
            if daemon.probe() {
                return Ok(daemon);
            }
            if daemon.process.try_wait().unwrap().is_some() {
                thread::sleep(Duration::from_millis(100));
                return Err(daemon.log.lock().unwrap().clone());
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{ulimit}: neither an answer nor an end within {START:?}: {}", daemon.log());
    }

    fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port)
    }

    /// Whether a fresh client is served in time.
    fn probe(&self) -> bool {
        let begin = Instant::now();
        let ask = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect_timeout(&self.address().into(), IN_TIME)?;
            stream.set_read_timeout(Some(IN_TIME))?;
            stream.write_all(STATUS.as_bytes())?;
            let mut stream = BufReader::new(stream);
            Ok(read_answer(&mut stream)? == 200)
        };
        ask().unwrap_or(false) && begin.elapsed() < IN_TIME
    }

    /// A number of `/proc/PID/status`.
    fn proc_status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// An attacker's connection; `number` says from where.
    fn attacker(&self, number: u32) -> Option<TcpStream> {
        let from = if number.is_multiple_of(2) { 1 } else { 2 + number / 2 % 7 } as u8;
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).ok()?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, from), 0)).ok()?;
        connect(&socket, &self.address()).ok()?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        Some(stream)
    }

    /// Lets `attack` run in several threads, each until the flag is set, and watches the daemon.
    fn under(&self, time: Duration, attack: impl Fn(u32, &AtomicBool) + Sync) {
        let threads = self.proc_status("Threads");
        let over = AtomicBool::new(false);
        let begin = Instant::now();
        let (mut served, mut tried) = (0, 0);
        thread::scope(|scope| {
            for number in 0..ATTACKERS {
                let (attack, over) = (&attack, &over);
                scope.spawn(move || attack(number, over));
            }
            while tried < PROBES || begin.elapsed() < time {
                tried += 1;
                served += usize::from(self.probe());
                assert_eq!(self.proc_status("Threads"), threads);
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
        println!("{served} of {tried} served in {:?}, at most {memory} KiB", begin.elapsed());
    }

    /// Whether the log has this, or comes to have it within a moment.
    fn logs(&self, text: &str) -> bool {
        let begin = Instant::now();
        while !self.log().contains(text) && begin.elapsed() < IN_TIME {
            thread::sleep(Duration::from_millis(20));
        }
        self.log().contains(text)
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads one answer to its end; its status.
fn read_answer(stream: &mut BufReader<TcpStream>) -> std::io::Result<u16> {
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

/// Room for thousands of connections of the attackers.
fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn goes_on(over: &AtomicBool) -> bool {
    !over.load(Ordering::Relaxed)
}

/// Sends to every connection what `text` gives for it, over and over; broken ones are replaced.
fn hold(daemon: &Daemon, first: u32, count: u32, over: &AtomicBool, text: impl Fn(u32) -> Vec<u8>) {
    let mut held: Vec<Option<TcpStream>> = (0..count).map(|number| daemon.attacker(first + number)).collect();
    let mut round = 0;
    while goes_on(over) {
        for (number, stream) in (first..).zip(&mut held) {
            let bytes = text(round);
            let fine =
                stream.as_mut().is_some_and(|stream| bytes.is_empty() || stream.write_all(&bytes).is_ok());
            if !fine {
                *stream = daemon.attacker(number);
            }
            if !goes_on(over) {
                return;
            }
        }
        round += 1;
        thread::sleep(Duration::from_millis(20));
    }
}

/// One after the other: they would be each other's attack.
#[test]
fn honest_clients_are_served_under_every_attack() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    raise_own_limit();
    let daemon = Daemon::start("-c 0");

    println!("1,600 idle connections");
    daemon.under(ATTACK, |number, over| hold(&daemon, number * 400, 400, over, |_| Vec::new()));

    println!("connections that come and go");
    daemon.under(ATTACK, |number, over| {
        for round in number.. {
            daemon.attacker(round);
            if !goes_on(over) {
                return;
            }
        }
    });

    println!("thousands of slow heads");
    let head = b"GET /v1/checkServiceStatus HTTP/1.1\r\nHost: localhost\r\nX: xxxxxxxxxxxxxxxxxxxx";
    daemon.under(ATTACK, |number, over| {
        hold(&daemon, number * 600, 600, over, |round| vec![head[round as usize % head.len()]]);
    });

    println!("bodies that never come");
    daemon.under(ATTACK, |number, over| {
        let length = ["1000", "2000", "9223372036854775807"][number as usize % 3];
        let request = format!("POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        hold(&daemon, number * 100, 100, over, |round| match round % 50 {
            0 => request.clone().into_bytes(),
            _ => Vec::new(),
        });
    });

    println!("requests followed by a reset");
    daemon.under(ATTACK, |number, over| {
        for round in number.. {
            if let Some(mut stream) = daemon.attacker(round) {
                let target = ["checkServiceStatus", "listAllResources"][round as usize % 2];
                let request = format!("GET /v1/{target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                let _ = stream.write_all(request.as_bytes());
                sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            }
            if !goes_on(over) {
                return;
            }
        }
    });

    println!("clients that pipeline and never read");
    daemon.under(ATTACK, |number, over| {
        let some = "GET /v1/listAllResources HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
        let requests = STATUS.repeat(800) + &some;
        hold(&daemon, number * 40, 40, over, |_| requests.clone().into_bytes());
    });

    println!("endless header fields");
    daemon.under(ATTACK, |number, over| {
        let lines = "X: y\r\n".repeat(1000);
        let line = "x".repeat(6000);
        hold(&daemon, number * 50, 50, over, |round| match (round, number % 2) {
            (0, _) => b"GET / HTTP/1.1\r\nX: ".to_vec(),
            (_, 0) => lines.clone().into_bytes(),
            _ => line.clone().into_bytes(),
        });
    });

    println!("what brought tiny_http down");
    let fields: String = (0..21).map(|n| format!("e{n};q=nan,")).collect();
    let nasty = [
        "GET / HTTP/2.0\r\n\r\n".to_owned(),
        "POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\n".to_owned(),
        "POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nTE: {fields}\r\n\r\n"),
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
            .to_owned(),
    ];
    daemon.under(ATTACK, |number, over| {
        hold(&daemon, number * 50, 50, over, |round| {
            nasty[round as usize % nasty.len()].clone().into_bytes()
        });
    });

    println!("valid requests with random changes, for a minute");
    daemon.under(Duration::from_secs(60), |number, over| mutate(&daemon, number, over));
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

/// A small generator of pseudo-random numbers (xorshift): the same bytes in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

fn mutate(daemon: &Daemon, number: u32, over: &AtomicBool) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + u64::from(number));
    // Nothing that changes anything if it survives the changes.
    let valid = [
        STATUS,
        "GET /v1/listAllResources HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "HEAD /v1/listRapidDiskVolumes HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "GET /v1/showRapidDiskCacheStats/rc-wt_sdz HTTP/1.1\r\nHost: [::1]:9118\r\nUser-Agent: x\r\n\r\n",
        "OPTIONS /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nOrigin: http://a\r\n\r\nabc",
    ];
    for round in number.. {
        let mut bytes = valid[random.below(valid.len())].repeat(1 + random.below(2)).into_bytes();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes.insert(at, b"\r\n\0 :/%"[random.below(7)]),
                2 => bytes.truncate(at + 1),
                _ => {
                    let length = random.below(bytes.len() - at);
                    bytes.extend_from_within(at..at + length);
                }
            }
        }
        if let Some(mut stream) = daemon.attacker(round) {
            let cut = random.below(bytes.len() + 1);
            let sent = stream.write_all(&bytes[..cut]).and_then(|()| stream.write_all(&bytes[cut..]));
            if sent.is_ok() && random.below(2) == 0 {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read(&mut [0; 4096]);
            }
        }
        if !goes_on(over) {
            return;
        }
    }
}

#[test]
fn sixty_four_clients_that_stay_are_all_served() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Daemon::start("-c 0");
    let threads = daemon.proc_status("Threads");
    let mut clients: Vec<_> =
        (0..64).map(|_| TcpStream::connect(daemon.address()).unwrap()).map(BufReader::new).collect();
    for _ in 0..50 {
        for client in &mut clients {
            client.get_mut().write_all(STATUS.as_bytes()).unwrap();
        }
        for client in &mut clients {
            client.get_mut().set_read_timeout(Some(IN_TIME)).unwrap();
            assert_eq!(read_answer(client).unwrap(), 200);
        }
    }
    assert!(daemon.probe());
    assert_eq!(daemon.proc_status("Threads"), threads);
}

#[test]
fn few_descriptors_are_enough() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    raise_own_limit();
    let daemon = Daemon::start("-n 64");
    assert!(daemon.logs("open files are limited to 64"), "{}", daemon.log());
    daemon.under(ATTACK, |number, over| hold(&daemon, number * 100, 100, over, |_| Vec::new()));
    let target = b"GET /v1/listAllResources HTTP/1.1\r\nHost: localhost\r\n\r\n";
    daemon.under(ATTACK, |number, over| hold(&daemon, number * 20, 20, over, |_| target.to_vec()));
}

/// Address space runs out at a different point of every start. Wherever that is, the daemon says
/// so and ends, or serves with the workers it could start; it never hangs.
#[test]
fn failing_thread_creation_is_survived_or_reported() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let all = Daemon::start("-c 0").proc_status("Threads");
    let (mut ended, mut fewer) = (0, 0);
    for kib in (3 << 10..).step_by(256) {
        assert!(kib < 200 << 10, "never started with all workers");
        let mut daemon = match Daemon::try_start(&format!("-v {kib}")) {
            Ok(daemon) => daemon,
            Err(log) => {
                assert!(!log.is_empty(), "{kib} KiB: ended without a word");
                ended += 1;
                continue;
            }
        };
        if daemon.proc_status("Threads") == all {
            break;
        }
        if (0..50).all(|_| daemon.probe()) {
            assert!(daemon.logs(&format!("of {} workers", all - 1)), "{}", daemon.log());
            fewer += 1;
        } else {
            // The last of the memory went later.
            let begin = Instant::now();
            while daemon.process.try_wait().unwrap().is_none() {
                assert!(begin.elapsed() < START, "{kib} KiB: it hangs: {}", daemon.log());
                thread::sleep(Duration::from_millis(20));
            }
            ended += 1;
        }
    }
    println!("{ended} starts ended early, {fewer} went on with fewer workers");
    assert!(ended > 0 && fewer > 0);
}
