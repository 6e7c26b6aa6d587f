//! The command line as it is typed.

use super::*;
use crate::http::{Limits, Listen};
use crate::storage::{CacheDriver, MemoryLimit, RamDriver};
use std::time::Duration;

fn parsed(args: &[&str]) -> Result<Command, Error> {
    parse(["rapiddiskd"].iter().chain(args).map(OsString::from))
}

fn config(args: &[&str]) -> Config {
    match parsed(args) {
        Ok(Command::Run(config)) => *config,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn tcp(address: &str) -> Listen {
    Listen::Tcp(address.parse().unwrap())
}

#[test]
fn without_arguments_it_listens_everywhere_on_9118() {
    let config = config(&[]);
    assert_eq!(config.listen, [tcp("[::]:9118")]);
    assert_eq!(config.memory_limit, MemoryLimit::Percent(80));
    assert_eq!(config.verbosity, 0);
    assert!(!config.access.open && config.access.token_file.is_none());
}

#[test]
fn options_are_read_in_each_form() {
    assert_eq!(config(&["-p", "80"]).listen, [tcp("[::]:80")]);
    assert_eq!(config(&["-p80"]).listen, [tcp("[::]:80")]);
    assert_eq!(config(&["--port=80"]).listen, [tcp("[::]:80")]);
    assert_eq!(config(&["-VV", "--verbose", "-d"]).verbosity, 3);
    assert_eq!(config(&["--memory-limit", "2G"]).memory_limit, MemoryLimit::Bytes(2 << 30));
    assert_eq!(config(&["--memory-limit", "512"]).memory_limit, MemoryLimit::Bytes(512 << 20));
    assert_eq!(config(&["--memory-limit", "50%"]).memory_limit, MemoryLimit::Percent(50));
    assert_eq!(config(&[]).ram_driver, None);
    for (name, driver) in
        [("auto", None), ("rapiddisk", RamDriver::parse("rapiddisk")), ("loop", RamDriver::parse("loop"))]
    {
        assert_eq!(config(&["--ram-driver", name]).ram_driver, driver);
    }
    assert_eq!(config(&[]).cache_driver, None);
    assert_eq!(config(&["--cache-driver", "auto"]).cache_driver, None);
    assert_eq!(config(&["--cache-driver", "dm-cache"]).cache_driver, CacheDriver::parse("dm-cache"));
    assert_eq!(
        config(&["--cache-driver=rapiddisk-cache"]).cache_driver,
        CacheDriver::parse("rapiddisk-cache")
    );
    assert!(matches!(parsed(&["-v"]), Ok(Command::Version)));
    assert!(matches!(parsed(&["--help"]), Ok(Command::Help)));
    assert!(matches!(parsed(&["--quiesce", "--open"]), Ok(Command::Quiesce)));
    assert!(parsed(&["--quiesce", "--nonsense"]).is_err());
    for args in [&["--check", "-p", "80"][..], &["--quiesce", "-p", "80", "--check"]] {
        let Ok(Command::Check(config)) = parsed(args) else { panic!("{args:?}") };
        assert_eq!(config.listen, [tcp("[::]:80")]);
    }
}

#[test]
fn it_listens_where_it_is_told_and_the_port_fills_in() {
    let args =
        ["-l", "127.0.0.1", "-l", "::1", "-l", "[::1]", "-l", "127.0.0.2:80", "-l", "[::1]:81", "-p", "82"];
    let expected = ["127.0.0.1:82", "[::1]:82", "[::1]:82", "127.0.0.2:80", "[::1]:81"].map(tcp);
    assert_eq!(config(&args).listen, expected);
    let unix = config(&["--listen", "unix:/run/rapiddiskd.sock"]);
    assert_eq!(unix.listen, [Listen::Unix("/run/rapiddiskd.sock".into())]);
}

#[test]
fn access_is_as_told() {
    let args =
        ["--token-file", "/etc/t", "--open", "--allow-host", "a", "--allow-host", "b", "--allow-origin", "c"];
    let access = config(&args).access;
    assert_eq!(access.token_file, Some("/etc/t".into()));
    assert!(access.open);
    assert_eq!(access.allow_hosts, ["a", "b"]);
    assert_eq!(access.allow_origins, ["c"]);
}

#[test]
fn bounds_keep_their_proportions() {
    let limits = config(&["--connections", "64", "--workers", "3", "--request-time", "7"]).limits;
    assert_eq!((limits.connections, limits.per_address), (64, 32));
    assert_eq!((limits.workers, limits.changes), (3, 2));
    assert_eq!(limits.request_time, Duration::from_secs(7));
    // A read always finds a worker.
    for workers in 2..=256 {
        let limits = config(&["--workers", &workers.to_string()]).limits;
        assert!((1..limits.workers).contains(&limits.changes), "{workers}: {}", limits.changes);
    }
    let default = Limits::default();
    let stated = config(&["--connections", "256", "--workers", "16", "--body-limit", "1024"]).limits;
    assert_eq!((default.per_address, default.changes), (stated.per_address, stated.changes));
    assert_eq!((default.connections, default.workers), (stated.connections, stated.workers));
    assert_eq!(stated.body_bytes, 1024);
    assert_eq!(default.request_time.as_secs(), 5);
    assert_eq!((default.idle_time.as_secs(), default.write_time.as_secs()), (75, 10));
}

#[test]
fn a_wrong_argument_is_named_in_one_line() {
    for (args, named) in [
        (&["-p", "0"][..], "\"0\""),
        (&["-p", "65536"], "\"65536\""),
        (&["-p"], "-p"),
        (&["-l", "nowhere"], "\"nowhere\""),
        (&["-l", "127.0.0.1:0"], "\"127.0.0.1:0\""),
        (&["-l", "unix:relative"], "\"unix:relative\""),
        (&["--ram-driver", "tmpfs"], "\"tmpfs\""),
        (&["--memory-limit", "0%"], "\"0%\""),
        (&["--memory-limit", "101%"], "\"101%\""),
        (&["--memory-limit", "12abc"], "\"12abc\""),
        (&["--memory-limit", "+50%"], "\"+50%\""),
        (&["--memory-limit", "9999999999T"], "\"9999999999T\""),
        (&["--cache-driver", "dm-writecache"], "\"dm-writecache\""),
        (&["-p", "+80"], "\"+80\""),
        (&["--workers", "1"], "\"1\""),
        (&["--connections", "7"], "\"7\""),
        (&["--idle-time", "0"], "\"0\""),
        (&["--body-limit", "1023"], "\"1023\""),
        (&["--body-limit", "65537"], "\"65537\""),
        (&["--open=yes"], "yes"),
        (&["--nonsense"], "--nonsense"),
        (&["-x"], "-x"),
        (&["word\nword"], "word"),
    ] {
        let message = parsed(args).unwrap_err().to_string();
        assert!(message.contains(named), "{args:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn every_option_of_the_help_is_known() {
    for option in help().split_whitespace().filter(|word| word.starts_with("--")) {
        let message = parsed(&[option]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(!message.contains("invalid option"), "{option}: {message}");
    }
}

#[test]
fn every_flag_is_there_once_and_has_its_texts() {
    let flags: Vec<_> = table::GROUPS.iter().flat_map(|group| group.flags).collect();
    for (i, flag) in flags.iter().enumerate() {
        let names = (flag.short, flag.long);
        assert!(names != (None, None) && !flag.help.is_empty() && !flag.manual.0.is_empty(), "{names:?}");
        for other in &flags[..i] {
            assert!(flag.short.is_none() || flag.short != other.short, "{names:?}");
            assert!(flag.long.is_none() || flag.long != other.long, "{names:?}");
        }
    }
}

#[test]
fn a_default_that_the_help_names_is_the_default() {
    let mut named = 0;
    for flag in table::GROUPS.iter().flat_map(|group| group.flags) {
        let Some((_, rest)) = flag.help.split_once("(default ") else { continue };
        let (default, _) = rest.split_once(')').unwrap();
        let long = flag.long.unwrap();
        let mut given = config(&[&format!("--{long}={default}")]);
        if long == "body-limit" {
            // Without a limit, a body of up to 1024 bytes is read and dropped: to a client the same.
            given.limits.body_bytes = Limits::default().body_bytes;
        }
        assert_eq!(format!("{given:?}"), format!("{:?}", config(&[])), "--{long}");
        assert!(flag.manual.0.contains("default") && flag.manual.0.contains(default), "--{long}");
        named += 1;
    }
    assert_eq!(named, 10);
}

#[test]
fn no_line_of_the_help_is_longer_than_80_characters() {
    assert!(help().lines().all(|line| line.chars().count() <= 80), "{}", help());
}
