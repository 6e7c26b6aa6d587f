//! The `rapiddiskd` program: reads the command line, does what it says, and reports a failure in
//! one line.

use std::io::Write;
use std::process::ExitCode;

use rapiddiskd::cli::{self, Command};
use rapiddiskd::{daemon, logger};

/// Keeps freed memory for the next request. musl's own allocator gives each group of blocks back to the
/// kernel as soon as it is empty and maps it anew: two system calls for every few requests.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let outcome = match cli::parse(std::env::args_os()) {
        Ok(Command::Run(config)) => daemon::run(&config),
        Ok(Command::Check(config)) => daemon::check(&config),
        Ok(Command::Quiesce) => daemon::quiesce(),
        Ok(Command::Help) => return print(&cli::help()),
        Ok(Command::Version) => return print(concat!("rapiddiskd ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => return fail(2, &error.to_string()),
    };
    outcome.map_or_else(|error| fail(error.status, &error.to_string()), |()| ExitCode::SUCCESS)
}

fn fail(status: u8, message: &str) -> ExitCode {
    logger::say(message);
    ExitCode::from(status)
}

/// Prints on stdout. A text that did not get out as a whole is a failure.
fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    printed.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
