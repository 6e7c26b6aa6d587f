//! The binary under attack over the loopback. `RAPIDDISKD` names another binary than cargo's.
//!
//! During each attack honest clients ask for the daemon's status, each over a new connection: 98
//! of 100 must get it within two seconds, and all of them afterwards. The daemon's memory, the
//! kernel's memory for its connections, and the number of its threads are checked throughout. If
//! nothing else is said, half of the attackers come from the address of the honest clients and the
//! others from other addresses. An attacker whose connection is closed connects again at once.
//! Each attack goes on until it has made a number of connections, so that it is one.

mod daemon;

use daemon::*;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// One test at a time: an attack on one daemon would slow down the others.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether the daemon is known to have closed this connection. Does not wait.
fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [0];
    match recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, length)) => length == 0,
        Err(error) => error != Errno::AGAIN,
    }
}

/// Allows this process as many files as it may have: the attackers need thousands.
fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn goes_on(over: &AtomicBool) -> bool {
    !over.load(Ordering::Relaxed)
}

/// Sends to every connection what `text` gives for it, over and over; those that are broken or were
/// closed are replaced.
fn hold(daemon: &Daemon, first: u32, count: u32, over: &AtomicBool, text: impl Fn(u32) -> Vec<u8>) {
    let mut held: Vec<Option<TcpStream>> = (0..count).map(|number| daemon.attacker(first + number)).collect();
    let mut round = 0;
    while goes_on(over) {
        for (number, stream) in (first..).zip(&mut held) {
            let bytes = text(round);
            let fine = stream.as_mut().is_some_and(|stream| {
                !is_closed(stream) && (bytes.is_empty() || stream.write_all(&bytes).is_ok())
            });
            if !fine {
                *stream = daemon.attacker(number);
            }
            if !goes_on(over) {
                return;
            }
        }
        round += 1;
        // The pace of the attack: slow clients send a little every now and then.
        thread::sleep(Duration::from_millis(20));
    }
}

/// Keeps `count` connections from these addresses full of requests, and reads the answers. At any
/// time as many of them wait for an answer as the daemon permits.
fn pipeline(daemon: &Daemon, count: u32, from: impl Fn(u32) -> u32, over: &AtomicBool) {
    let requests = LIST.repeat(100).into_bytes();
    let connect = |number| {
        let stream = daemon.attacker_from(from(number))?;
        stream.set_nonblocking(true).unwrap();
        Some((stream, 0))
    };
    let mut held: Vec<Option<(TcpStream, usize)>> = (0..count).map(connect).collect();
    let mut answers = vec![0; 64 << 10];
    while goes_on(over) {
        for (number, client) in (0..).zip(&mut held) {
            let goes_on = client.as_mut().is_some_and(|(stream, at)| {
                let read = stream.read(&mut answers);
                let written = stream.write(&requests[*at..]);
                *at = (*at + written.as_ref().unwrap_or(&0)) % requests.len();
                let waits = |error: std::io::Error| error.kind() == ErrorKind::WouldBlock;
                read.map_or_else(waits, |length| length > 0) && written.map_or_else(waits, |_| true)
            });
            if !goes_on {
                *client = connect(number);
            }
        }
        // The pace of the attack: the sockets do not block.
        thread::sleep(Duration::from_millis(1));
    }
}

/// Pipelines from these addresses.
fn under_pipelines(daemon: &Daemon, clients: u32, from: impl Fn(u32) -> u32 + Sync) {
    daemon.under(ATTACK, clients.into(), |_, over| pipeline(daemon, clients / ATTACKERS, &from, over));
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn pipelining_clients_lock_nobody_out() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    raise_own_limit();
    let own = |_| 1;
    let others = |number| 2 + number % 8;
    let mut daemon = Daemon::start("-c 0");
    println!("clients that pipeline from eight other addresses");
    under_pipelines(&daemon, 256, others);
    println!("clients that pipeline from the address of the honest ones");
    daemon.lists = false;
    under_pipelines(&daemon, 128, own);
    println!("the same with few connections, and with few descriptors");
    let mut daemon = Daemon::start_with("-c 0", &["--connections", "32"]);
    daemon.lists = false;
    under_pipelines(&daemon, 64, own);
    let mut daemon = Daemon::start("-n 64");
    daemon.lists = false;
    under_pipelines(&daemon, 60, others);
}

/// One after the other, so that they do not disturb each other.
#[test]
fn honest_clients_are_served_under_every_attack() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    raise_own_limit();
    let daemon = Daemon::start("-c 0");

    println!("1,600 idle connections");
    daemon.under(ATTACK, 1600, |number, over| hold(&daemon, number * 400, 400, over, |_| Vec::new()));

    println!("connections that come and go");
    daemon.under(ATTACK, 1000, |number, over| {
        for round in number.. {
            daemon.attacker(round);
            if !goes_on(over) {
                return;
            }
        }
    });

    println!("thousands of slow heads");
    let head = b"GET /v1/checkServiceStatus HTTP/1.1\r\nHost: localhost\r\nX: xxxxxxxxxxxxxxxxxxxx";
    daemon.under(ATTACK, 2400, |number, over| {
        hold(&daemon, number * 600, 600, over, |round| vec![head[round as usize % head.len()]]);
    });

    println!("bodies that never come");
    daemon.under(ATTACK, 400, |number, over| {
        let length = ["1000", "2000", "9223372036854775807"][number as usize % 3];
        let request = format!("POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        hold(&daemon, number * 100, 100, over, |round| match round % 50 {
            0 => request.clone().into_bytes(),
            _ => Vec::new(),
        });
    });

    println!("requests followed by a reset");
    daemon.under(ATTACK, 1000, |number, over| {
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
    daemon.under(ATTACK, 160, |number, over| {
        let some = LIST.repeat(200);
        let requests = STATUS.repeat(800) + &some;
        hold(&daemon, number * 40, 40, over, |_| requests.clone().into_bytes());
    });

    println!("endless header fields");
    daemon.under(ATTACK, 200, |number, over| {
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
    daemon.under(ATTACK, 200, |number, over| {
        hold(&daemon, number * 50, 50, over, |round| {
            nasty[round as usize % nasty.len()].clone().into_bytes()
        });
    });

    println!("valid requests with random changes, for a minute");
    daemon.under(Duration::from_secs(60), 5000, |number, over| mutate(&daemon, number, over));
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
    // None of them changes anything, in case it is still valid after the random changes.
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
    daemon.under(ATTACK, 64, |number, over| {
        let client = |_| {
            let stream = daemon.attacker(number).unwrap();
            stream.set_read_timeout(Some(IN_TIME)).unwrap();
            BufReader::new(stream)
        };
        let mut clients: Vec<_> = (0..64 / ATTACKERS).map(client).collect();
        while goes_on(over) {
            for client in &mut clients {
                client.get_mut().write_all(STATUS.as_bytes()).unwrap();
            }
            for client in &mut clients {
                assert_eq!(read_answer(client).unwrap(), 200);
            }
        }
    });
}

#[test]
fn few_descriptors_are_enough() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    raise_own_limit();
    let mut daemon = Daemon::start("-n 64");
    assert!(daemon.logs("open files are limited to 64"), "{}", daemon.log());
    daemon.under(ATTACK, 400, |number, over| hold(&daemon, number * 100, 100, over, |_| Vec::new()));
    daemon.lists = false;
    daemon.under(ATTACK, 80, |number, over| hold(&daemon, number * 20, 20, over, |_| LIST.into()));
}

/// With each limit the address space is used up at another point of the start. The daemon must
/// then say so and end, or serve with the workers that it could start. It must never hang.
#[test]
fn failing_thread_creation_is_survived_or_reported() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Six threads are no workers: the first one, the log's, the watching and the tidying one, and two for the
    // loop.
    let all = Daemon::start("-c 0").proc_status("Threads");
    let (mut ended, mut fewer) = (0, 0);
    // With less the system cannot even load the program.
    let loads = |kib: &u32| {
        let shell = format!("ulimit -v {kib} && exec \"$0\" --version");
        let shell = Command::new("sh").args(["-c", &shell]).arg(program()).output();
        shell.is_ok_and(|output| output.status.success())
    };
    let least = (3 << 10..).step_by(256).find(loads).unwrap();
    for kib in (least..).step_by(256) {
        assert!(kib < 200 << 10, "never started with all workers");
        let mut daemon = match Daemon::try_start(&format!("-v {kib}"), &[]) {
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
            assert!(daemon.logs(&format!("of {} workers", all - 6)), "{}", daemon.log());
            fewer += 1;
        } else {
            // The memory was used up only after the start.
            let begin = Instant::now();
            while daemon.process.try_wait().unwrap().is_none() {
                assert!(begin.elapsed() < START, "{kib} KiB: it hangs: {}", daemon.log());
                thread::sleep(PAUSE);
            }
            ended += 1;
        }
    }
    println!("{ended} starts ended early, {fewer} went on with fewer workers");
    assert!(ended > 0 && fewer > 0);
}
