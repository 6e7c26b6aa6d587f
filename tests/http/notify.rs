//! What a service manager is told, with a socket that stands in for its own.

use crate::access::write_tokens;
use crate::daemon::Scratch;
use crate::failure::where_lists_never_end;
use crate::program::*;
use rustix::process::Signal;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The manager's end.
struct Manager(UnixDatagram);

impl Manager {
    fn new(scratch: &Scratch) -> Manager {
        let socket = UnixDatagram::bind(scratch.0.join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Manager(socket)
    }

    /// The program under this manager, which wants a sign of life every 300 ms.
    fn starts(&self, mut command: Command, scratch: &Scratch, args: &[&str]) -> Program {
        command.env("NOTIFY_SOCKET", scratch.0.join("notify")).env("WATCHDOG_USEC", "300000");
        Program::start_by(command, Ipv4Addr::LOCALHOST, args, Stdio::null())
    }

    fn hears(&self) -> String {
        let mut text = [0; 64];
        let length = self.0.recv(&mut text).expect("a message");
        String::from_utf8_lossy(&text[..length]).into_owned()
    }
}

#[test]
fn the_manager_hears_when_it_is_ready_that_it_lives_and_that_it_ends() {
    let scratch = Scratch::new("notify");
    let manager = Manager::new(&scratch);
    let tokens = scratch.0.join("tokens");
    write_tokens(&tokens, "admin ops 0123456789abcdef");
    for args in [&[][..], &["--token-file", tokens.to_str().unwrap()]] {
        let mut program = manager.starts(Command::new(PROGRAM), &scratch, args);
        assert_eq!(manager.hears(), "READY=1");
        for _ in 0..3 {
            assert_eq!(manager.hears(), "WATCHDOG=1");
        }
        assert!(program.end(Signal::TERM).success());
        let last = std::iter::repeat_with(|| manager.hears()).find(|text| text != "WATCHDOG=1");
        assert_eq!(last.as_deref(), Some("STOPPING=1"));
        manager.0.set_nonblocking(true).unwrap();
        while manager.0.recv(&mut [0; 64]).is_ok() {}
        manager.0.set_nonblocking(false).unwrap();
    }
}

#[test]
fn a_daemon_whose_lists_never_end_gives_no_sign_of_life() {
    let scratch = Scratch::new("notify-held");
    let manager = Manager::new(&scratch);
    let _program = manager.starts(where_lists_never_end(), &scratch, &[]);
    assert_eq!(manager.hears(), "READY=1");
    // Ten times as long as it has.
    manager.0.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert!(manager.0.recv(&mut [0; 64]).is_err());
}

#[test]
fn a_watchdog_of_another_process_is_not_fed() {
    let scratch = Scratch::new("notify-other");
    let manager = Manager::new(&scratch);
    let mut command = Command::new(PROGRAM);
    command.env("WATCHDOG_PID", "1");
    let mut program = manager.starts(command, &scratch, &[]);
    assert_eq!(manager.hears(), "READY=1");
    assert!(program.end(Signal::TERM).success());
    assert_eq!(manager.hears(), "STOPPING=1");
}
