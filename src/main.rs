//! The `rapiddiskd` program: parse the command line, run the daemon, say in one
//! line what went wrong.

use std::io::Write;
use std::process::ExitCode;

use rapiddiskd::args::{self, Command};
use rapiddiskd::{daemon, logger};

fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(Command::Run(config)) => outcome(daemon::run(&config)),
        Ok(Command::Quiesce) => outcome(daemon::quiesce()),
        Ok(Command::Help) => print(args::HELP),
        Ok(Command::Version) => print(concat!("rapiddiskd ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            logger::say(&error.to_string());
            ExitCode::from(2)
        }
    }
}

fn outcome(result: Result<(), daemon::Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logger::say(&error.to_string());
            ExitCode::from(error.status)
        }
    }
}

/// Success only if all of it went out.
fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(1),
    }
}
