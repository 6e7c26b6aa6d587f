//! The `rapiddiskd` program: parse the command line, run the daemon, say in one
//! line what went wrong.

use std::process::ExitCode;

use rapiddiskd::args::{self, Command};
use rapiddiskd::daemon;

fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(Command::Run(config)) => match daemon::run(&config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("rapiddiskd: {error}");
                ExitCode::from(1)
            }
        },
        Ok(Command::Help) => {
            print!("{}", args::HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::Version) => {
            println!("rapiddiskd {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("rapiddiskd: {error}");
            ExitCode::from(2)
        }
    }
}
