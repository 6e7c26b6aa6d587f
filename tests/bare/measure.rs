//! Measures for `tests/bench` what a shell cannot: the start of a daemon, and RAM disks that are made and
//! removed over the API and by the kernel calls alone.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rapiddiskd::client::Client;
use rapiddiskd::http::Listen;
use rapiddiskd::kernel::block::{self, Mode};
use rapiddiskd::kernel::{Root, links, loops};

/// Disks that are there while others are changed, and how many are changed in a round.
const MANY: u32 = 1000;
const CHANGES: u32 = 20;

/// Disks of each measurement, and the size of each in bytes.
const DISKS: u32 = 200;
const SIZE: u64 = 8 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments[at].parse().expect("a number");
    match arguments[0].as_str() {
        "start" => start(number(1), number(2) as u16, &arguments[3], &arguments[4..]),
        "disks" => disks(number(1), number(2) as u16),
        "many" => many(number(1), number(2) as u16, &arguments[3]),
        other => panic!("no such measurement: {other}"),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// From the start of a program to its first answer on this port.
fn start(rounds: u32, port: u16, program: &str, arguments: &[String]) {
    let once = |_| {
        let begin = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        while !answers(port) {
            assert!(begin.elapsed() < Duration::from_secs(10), "{program} does not answer");
            std::thread::yield_now();
        }
        let time = begin.elapsed();
        end(&mut child);
        time
    };
    println!("{:9.2}  {program}", median((0..rounds).map(once).collect()).as_secs_f64() * 1000.0);
}

/// By hand: a client that waits would wait for a program that has not opened its port yet.
fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.write_all(b"GET /v1/checkServiceStatus HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        stream.read(&mut [0; 12])
    };
    ask().is_ok_and(|length| length == 12)
}

/// Changes of one RAM disk beside many others, and a start with them.
fn many(rounds: u32, port: u16, program: &str) {
    let client =
        Client::new(&Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))), Duration::from_secs(20));
    let change = |path: &str| {
        let begin = Instant::now();
        let reply = client.call("POST", &format!("/v1/{path}")).expect("an answer");
        let time = begin.elapsed();
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        time
    };
    let socket_path = std::env::temp_dir().join(format!("measure-{}", std::process::id()));
    let socket = UnixDatagram::bind(&socket_path).expect("a socket");
    let start = || {
        let begin = Instant::now();
        let child = Command::new(program)
            .args([
                "-l",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "--ram-driver",
                "loop",
                "--memory-limit",
                "1T",
            ])
            .env("NOTIFY_SOCKET", &socket_path)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut message = [0; 64];
        while !socket.recv(&mut message).is_ok_and(|length| message[..length].starts_with(b"READY=1")) {}
        client.call("GET", "/v1/checkServiceStatus").expect("an answer");
        (child, begin.elapsed())
    };
    let (mut daemon, _) = start();
    for _ in 0..MANY {
        change("createRapidDisk/1");
    }
    let disk = format!("rd{MANY}");
    let changes = [
        ("create", "createRapidDisk/2".to_owned()),
        ("resize", format!("resizeRapidDisk/{disk}/4")),
        ("lock", format!("lockRapidDisk/{disk}")),
        ("unlock", format!("unlockRapidDisk/{disk}")),
        ("flush", format!("flushRapidDisk/{disk}")),
        ("remove", format!("removeRapidDisk/{disk}")),
    ];
    let mut times = vec![Vec::new(); changes.len()];
    let mut starts = Vec::new();
    for _ in 0..rounds {
        for _ in 0..CHANGES {
            changes.iter().zip(&mut times).for_each(|((_, path), times)| times.push(change(path)));
        }
        end(&mut daemon);
        let (again, time) = start();
        daemon = again;
        starts.push(time);
    }
    println!("One RAM disk (loop) beside {MANY} others, median of {rounds}, in ms:");
    let row = |name: &str, times: Vec<Duration>, target: f64| {
        let time = median(times).as_secs_f64() * 1000.0;
        let below = if time > target { format!("  BELOW: {time:.2} > {target}") } else { String::new() };
        println!("{time:9.2}  {name}{below}");
    };
    for ((name, _), times) in changes.iter().zip(times) {
        row(name, times, 3.0);
    }
    row("start of the daemon, until it is ready and answers", starts, 1000.0);
    for number in 0..MANY {
        change(&format!("removeRapidDisk/rd{number}"));
    }
    end(&mut daemon);
    // At once, rather than in the daemon's own time.
    assert_eq!(loops::remove_free(&Root::new("/")), Ok(true), "loop devices that stay");
    fs::remove_file(socket_path).expect("the socket");
}

fn end(daemon: &mut Child) {
    daemon.kill().expect("the program ends");
    daemon.wait().expect("the program ends");
}

/// RAM disks behind loop devices, in turn over the API and by hand.
fn disks(rounds: u32, port: u16) {
    let client =
        Client::new(&Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))), Duration::from_secs(20));
    let call = |path: &str| {
        let reply = client.call("POST", &format!("/v1/{path}")).expect("an answer");
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    };
    let status = || drop(client.call("GET", "/v1/checkServiceStatus").expect("an answer"));
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..rounds {
        times[0].push(each(|| {
            call(&format!("createRapidDisk/{}", SIZE >> 20));
            call("removeRapidDisk/rd0");
        }));
        times[1].push(each(by_hand));
        times[2].push(each(|| {
            status();
            status();
        }));
    }
    let [api, kernel, asked] = times.map(|times| median(times).as_secs_f64() * 1e6);
    println!("A RAM disk (loop) made and removed, median of {rounds}, in microseconds:");
    println!("{api:9.0}  over the API, in two requests with a connection each");
    println!("{kernel:9.0}  by the kernel calls alone");
    println!("{asked:9.0}  two requests for the status, with a connection each");
    println!("{:9.2}x (the API less the two requests) : (the kernel calls)", (api - asked) / kernel);
}

fn each(work: impl Fn()) -> Duration {
    let begin = Instant::now();
    (0..DISKS).for_each(|_| work());
    begin.elapsed() / DISKS
}

/// What the driver asks of the kernel for one disk, without looking at anything.
fn by_hand() {
    let (root, dir) = (Root::new("/"), Path::new("/run"));
    let (part, disk, link) = (dir.join("rd9.part"), dir.join("rd9"), Path::new("/dev/rd9"));
    let file = File::options().read(true).write(true).create_new(true).open(&part).expect("a file");
    file.set_len(SIZE).expect("its length");
    let (device, claim) = loops::attach(&root, &file, 9, 1024).expect("a loop device");
    links::make(link, &device).expect("a link");
    fs::rename(&part, &disk).expect("its name");
    drop(claim);

    let claim = block::open(&root, &device, Mode::Claim).expect("a claim");
    fs::rename(&disk, &part).expect("its name");
    loops::detach(&claim).expect("it detaches");
    drop(claim);
    while loops::backing(&root, &device).expect("its state").is_some() {
        std::thread::yield_now();
    }
    links::remove(link).expect("the link goes");
    fs::remove_file(&part).expect("the file goes");
}
