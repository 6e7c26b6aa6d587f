//! The program itself: its command line, its signals, and a stderr that takes nothing.

use crate::access::{until, write_tokens};
use crate::daemon::{Client, Reply, Scratch};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::fs::OpenOptions;
use std::io::{ErrorKind, PipeReader, Read, Write, pipe};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How soon the program must have ended once it is told to.
const END: Duration = Duration::from_secs(30);

/// A change that does nothing, there being no such disk, wherever it is allowed.
const CHANGE: &str = "POST /v1/removeRapidDisk/rd9999";
const GAP: &str = "lines are missing here: the log was full";
const READ: &str = "GET /v1/checkServiceStatus";

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_rapiddiskd");

pub struct Program {
    pub process: Child,
    pub port: u16,
}

impl Program {
    /// Started with these arguments, and answering.
    pub fn start(ip: Ipv4Addr, args: &[&str], stderr: Stdio) -> Program {
        Program::start_by(Command::new(PROGRAM), ip, args, stderr)
    }

    /// The same by a command that needs its arguments.
    pub fn start_by(mut command: Command, ip: Ipv4Addr, args: &[&str], stderr: Stdio) -> Program {
        let port = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port();
        let process = command
            .args(["-l", &ip.to_string(), "-p", &port.to_string()])
            .args(args)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let program = Program { process, port };
        until(|| TcpStream::connect((ip, port)).is_ok());
        // The port is open before the threads are there.
        ask_at((ip, port).into(), READ, &format!("Host: {ip}\r\n"));
        program
    }

    fn here(args: &[&str]) -> Program {
        Program::start(Ipv4Addr::LOCALHOST, args, Stdio::null())
    }

    fn ask(&self, request: &str, fields: &str) -> Reply {
        let host = if fields.contains("Host: ") { "" } else { "Host: localhost\r\n" };
        ask_at((Ipv4Addr::LOCALHOST, self.port).into(), request, &format!("{host}{fields}"))
    }

    fn status(&self, request: &str, fields: &str) -> u16 {
        self.ask(request, fields).status
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.exit_status()
    }

    /// Its exit status, which must not be long in coming.
    pub fn exit_status(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < END, "it did not end within {END:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap().count()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ask_at(address: SocketAddr, request: &str, fields: &str) -> Reply {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(END)).unwrap();
    let mut client = Client::new(stream);
    client.send(&format!("{request} HTTP/1.1\r\n{fields}\r\n"));
    client.reply()
}

/// Refused changes are logged, as many as the log takes in a second and then some more seconds'.
fn goes_on_without_its_log(stderr: Stdio) {
    let mut program = Program::start(Ipv4Addr::LOCALHOST, &[], stderr);
    // The port is open before there are workers.
    assert_eq!(program.status(READ, ""), 200);
    let threads = program.threads();
    let long = format!("{CHANGE}?{}", "&".repeat(1900));
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(4) {
        for _ in 0..30 {
            assert_eq!(program.status(&long, "Origin: http://evil.example\r\n"), 403);
        }
        assert_eq!(program.status(READ, ""), 200);
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(program.status(READ, ""), 200);
    assert_eq!(program.threads(), threads);
    assert_eq!(program.end(Signal::TERM).code(), Some(0));
}

#[test]
fn a_full_file_system_below_its_log_does_no_harm() {
    goes_on_without_its_log(OpenOptions::new().write(true).open("/dev/full").unwrap().into());
}

#[test]
fn a_log_whose_reader_is_gone_does_no_harm() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    goes_on_without_its_log(writer.into());
}

#[test]
fn a_log_that_nobody_reads_does_no_harm() {
    let (reader, writer) = pipe().unwrap();
    goes_on_without_its_log(writer.into());
    // It was full indeed, and what there is are whole lines.
    let text = rest(reader);
    assert!(text.len() >= 60 << 10, "only {} bytes were written", text.len());
    assert!(text.contains("listening on 127.0.0.1:"), "{text}");
}

pub fn rest(mut reader: PipeReader) -> String {
    let mut text = Vec::new();
    reader.read_to_end(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn a_reader_that_is_late_gets_the_lines_and_how_many_are_missing() {
    let (mut reader, writer) = pipe().unwrap();
    let mut program = Program::start(Ipv4Addr::LOCALHOST, &["--workers", "4"], writer.into());
    // Done or not, a change has its line: more bytes than a pipe holds, more lines than the queue.
    let mut client = Client::new(TcpStream::connect((Ipv4Addr::LOCALHOST, program.port)).unwrap());
    let long = format!("{CHANGE}?{}", "&".repeat(1900));
    for _ in 0..700 {
        client.send(&format!("{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_ne!(client.reply().status, 200);
    }
    let text = Arc::new(Mutex::new(Vec::new()));
    let read = Arc::clone(&text);
    let late = thread::spawn(move || {
        let mut part = [0; 4096];
        while let length @ 1.. = reader.read(&mut part).unwrap() {
            read.lock().unwrap().extend_from_slice(&part[..length]);
        }
    });
    // The gap is told with the first line for which there is room again.
    until(|| {
        assert_eq!(program.status(CHANGE, "Origin: http://evil.example\r\n"), 403);
        String::from_utf8_lossy(&text.lock().unwrap()).contains(GAP)
    });
    assert_eq!(program.end(Signal::TERM).code(), Some(0));
    late.join().unwrap();
    let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
    assert!(text.contains(GAP), "{}", text.len());
    assert!(text.ends_with("stopped\n"), "{}", &text[text.len() - 200..]);
}

#[test]
fn a_start_that_fails_says_so_in_one_line_and_cannot_be_held() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = Command::new(PROGRAM);
    command.args(["-l", "127.0.0.1", "-p", &port]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let start = format!("rapiddiskd: cannot listen on 127.0.0.1:{port}: ");
    assert!(text.starts_with(&start) && text.lines().count() == 1, "{text}");

    let (_reader, mut writer) = pipe().unwrap();
    fill(&mut writer);
    let begin = Instant::now();
    assert_eq!(command.stderr(writer).status().unwrap().code(), Some(1));
    assert!(begin.elapsed() < END);
}

pub fn fill(writer: &mut std::io::PipeWriter) {
    // What a new pipe holds.
    writer.write_all(&[b'x'; 64 << 10]).unwrap();
}

#[test]
fn sigterm_and_sigint_end_it_well_and_sigpipe_does_not() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut program = Program::here(&[]);
        program.signal(Signal::PIPE);
        let idle = TcpStream::connect((Ipv4Addr::LOCALHOST, program.port)).unwrap();
        assert_eq!(program.status(READ, ""), 200);
        assert_eq!(program.end(signal).code(), Some(0), "{signal:?}");
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, program.port));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        drop(idle);
    }
}

#[test]
fn tokens_are_read_again_at_sighup_and_their_holders_named_in_the_log() {
    assert!(geteuid().is_root(), "token files belong to root: this test has to run as root");
    let scratch = Scratch::new("sighup");
    let path = scratch.0.join("tokens");
    write_tokens(&path, "admin ops 0123456789abcdef\n");
    let (reader, writer) = pipe().unwrap();
    let args = ["--token-file", path.to_str().unwrap()];
    let mut program = Program::start(Ipv4Addr::LOCALHOST, &args, writer.into());
    let old = "Authorization: Bearer 0123456789abcdef\r\n";
    let new = "Authorization: Bearer fedcba9876543210\r\n";
    assert_eq!((program.status(READ, old), program.status(READ, new)), (200, 401));
    assert_ne!(program.status(CHANGE, old), 403);
    assert_eq!(program.status("POST /v1/\x1b[2J%1b%0a", old), 400);
    assert_eq!(program.status("POST /v1/%1b%0a", old), 404);
    write_tokens(&path, "viewer eye fedcba9876543210\n");
    program.signal(Signal::HUP);
    until(|| program.status(READ, old) == 401);
    assert_eq!(program.status(READ, new), 200);
    assert_eq!(program.status(CHANGE, new), 403);
    assert_eq!(program.end(Signal::TERM).code(), Some(0));
    let text = rest(reader);
    for caller in ["ops", "eye"] {
        assert!(text.contains(&format!(" caller={caller} action=\"{CHANGE}\" status=")), "{text}");
    }
    assert!(text.lines().all(|line| !line.contains(char::is_control)), "{text:?}");
    assert!(!text.contains("0123456789abcdef") && !text.contains("fedcba9876543210"), "{text}");
}

/// The exit status of the program with these arguments, and what it prints on stdout and stderr.
fn outcome(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(PROGRAM).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn check_judges_as_the_start_does_and_starts_nothing() {
    assert!(geteuid().is_root(), "token files belong to root: this test has to run as root");
    let scratch = Scratch::new("check");
    let tokens = scratch.0.join("tokens");
    let socket = format!("unix:{}", scratch.0.join("socket").display());
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let place = taken.local_addr().unwrap().to_string();
    let base = ["-p", "80", "-l", &place, "-l", "::1", "--token-file", tokens.to_str().unwrap()];
    let check = |more: &[&str]| outcome(&[&["--check"], &base[..], more].concat());
    let places = format!("{place}\n[::1]:80\n");
    write_tokens(&tokens, "\tadmin\tops  0123456789abcdef\r\nviewer eye fedcba9876543210");
    assert_eq!(check(&[]), (0, places.clone(), String::new()));
    assert_eq!(check(&["-l", &socket]), (0, format!("{places}{socket}\n"), String::new()));
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 1, "it opened the socket");

    write_tokens(&tokens, "admin ops 0123456789abcdef\nviewer eye\n");
    let long = format!("unix:/{}", "l".repeat(200));
    let wrong = ["--open", "--allow-origin", "a", "--allow-host", "b:1", "-l", "::1", "-l", &long];
    let (status, _, said) = check(&wrong);
    let words = ["[::1]:80 twice", "lll", "exclude", "\"a\"", "\"b:1\"", "line 2"];
    assert_eq!(said.lines().count(), words.len(), "{said}");
    for (line, word) in said.lines().zip(words) {
        assert!(line.starts_with("rapiddiskd: ") && line.contains(word), "{word}: {said}");
    }
    assert!(status == 1 && !said.contains("0123456789abcdef"), "{said}");
    // One fault at a time, the start says the same.
    for more in [&["--open"][..], &["--allow-origin", "a"], &["--allow-host", "b:1"], &[]] {
        let (checked, started) = (check(more), outcome(&[&base[..], more].concat()));
        assert_eq!((checked.0, started.0), (1, 1));
        assert_eq!(checked.2.trim_end().replace("\nrapiddiskd: ", "; "), started.2.trim_end());
    }
    assert_eq!(check(&["-p", "0"]).0, 2);

    write_tokens(&tokens, "viewer eye fedcba9876543210\n");
    let (status, _, said) = check(&[]);
    assert!(status == 0 && said.contains("no admin"), "{said}");
    assert_eq!(check(&["-l", &socket]), (0, format!("{places}{socket}\n"), String::new()));
}

#[test]
fn it_listens_on_a_unix_socket_and_removes_it() {
    let scratch = Scratch::new("program");
    let path = scratch.0.join("socket");
    let place = format!("unix:{}", path.display());
    let mut program = Program::here(&["-l", &place]);
    let mut client = Client::new(UnixStream::connect(&path).unwrap());
    client.send(&format!("{READ} HTTP/1.1\r\nHost: any.example\r\n\r\n"));
    assert_eq!(client.reply().status, 200);
    client.send(&format!("{CHANGE} HTTP/1.1\r\nHost: any.example\r\n\r\n"));
    assert_ne!(client.reply().status, 403);
    assert_eq!(program.end(Signal::TERM).code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn hosts_and_origins_are_as_the_command_line_says() {
    let args = ["--allow-host", "storage.example.", "--allow-origin", "https://console.example"];
    let program = Program::here(&args);
    for (fields, status) in [
        ("Host: evil.example\r\n", 403),
        ("Host: storage.example:9118\r\n", 200),
        ("Host: 127.0.0.1\r\n", 200),
    ] {
        assert_eq!(program.status(READ, fields), status, "{fields}");
    }
    assert_eq!(program.status(CHANGE, "Origin: https://evil.example\r\n"), 403);
    let reply = program.ask(CHANGE, "Origin: https://console.example\r\n");
    assert_ne!(reply.status, 403);
    assert!(reply.head.contains("\r\nAccess-Control-Allow-Origin: https://console.example\r\n"));
}

/// An address of this machine that is not loopback: the one it would send from. No packet is sent.
fn own_address() -> Ipv4Addr {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let way = socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr());
    match way.map(|address| address.ip()) {
        Ok(IpAddr::V4(ip)) if !ip.is_loopback() => ip,
        other => panic!("this test needs a machine with an IPv4 address besides loopback: {other:?}"),
    }
}

#[test]
fn changes_from_elsewhere_are_refused_unless_it_is_open() {
    let ip = own_address();
    let host = format!("Host: {ip}\r\n");
    let ask = |program: &Program, request| ask_at((ip, program.port).into(), request, &host);
    let closed = Program::start(ip, &[], Stdio::null());
    assert_eq!(ask(&closed, READ).status, 200);
    let refused = ask(&closed, CHANGE);
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("--open"), "{}", refused.body);
    let (reader, writer) = pipe().unwrap();
    let mut open = Program::start(ip, &["--open"], writer.into());
    assert_ne!(ask(&open, CHANGE).status, 403);
    assert_eq!(open.end(Signal::TERM).code(), Some(0));
    let text = rest(reader);
    assert!(text.contains("--open: everybody who reaches this daemon may change"), "{text}");
}
