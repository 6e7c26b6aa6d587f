//! What the daemon cannot go on without: where the I/O thread fails, the process ends, and whoever
//! supervises it can start it again.

use crate::access::until;
use crate::daemon::Client;
use crate::program::*;
use std::fs::{read_dir, read_to_string};
use std::io::pipe;
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command};

/// strace, by which the I/O thread of a program cannot wait for events any more.
struct Fault(Child);

impl Fault {
    fn inject(program: &Program) -> Fault {
        let calls = "inject=?epoll_wait,epoll_pwait,?epoll_pwait2:error=EBADF";
        let thread = program.process.id().to_string();
        let strace =
            Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", calls, "-p", &thread]).spawn();
        Fault(strace.expect("strace"))
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_io_thread_that_fails_ends_the_process_with_its_reason() {
    let (reader, writer) = pipe().unwrap();
    let mut program = Program::start(Ipv4Addr::LOCALHOST, &[], writer.into());
    let _fault = Fault::inject(&program);
    assert_eq!(program.exit_status().code(), Some(1));
    let text = rest(reader);
    let reason = "rapiddiskd: the server failed: epoll_wait: Bad file descriptor (os error 9)\n";
    assert!(text.ends_with(reason) && text.matches("rapiddiskd: ").count() == 1, "{text}");
}

/// Where the threads of the program wait in the kernel.
fn places(program: &Program) -> Vec<String> {
    let threads = read_dir(format!("/proc/{}/task", program.process.id())).unwrap();
    threads.filter_map(|thread| read_to_string(thread.unwrap().path().join("wchan")).ok()).collect()
}

/// The program, with a disk whose attribute takes for ever to open, where nobody else
/// sees it.
pub fn where_lists_never_end() -> Command {
    let disk =
        "mount -t tmpfs none /sys/block && mkdir -p /sys/block/sdz/device && mkfifo /sys/block/sdz/size";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{disk} && exec \"$0\" \"$@\""), PROGRAM]);
    command
}

#[test]
fn neither_held_workers_nor_a_full_log_hold_up_that_end() {
    let (_reader, mut writer) = pipe().unwrap();
    fill(&mut writer);
    let command = where_lists_never_end();
    let mut program = Program::start_by(command, Ipv4Addr::LOCALHOST, &["--workers", "3"], writer.into());
    let held = || places(&program).iter().filter(|place| *place == "wait_for_partner").count();
    let ask = |number| {
        let mut client = Client::new(TcpStream::connect((Ipv4Addr::LOCALHOST, program.port)).unwrap());
        client.send("GET /v1/listAllResources HTTP/1.1\r\nHost: localhost\r\n\r\n");
        // Equal ones that wait together share a worker.
        until(|| held() == number);
        client
    };
    let _clients: Vec<_> = (1..=3).map(ask).collect();
    let _fault = Fault::inject(&program);
    assert_eq!(program.exit_status().code(), Some(1));
}
