//! Every flag, once. The parser, the help and the man page are made from this table.

use std::path::PathBuf;

use super::config::Command;
use super::flag::{Effect, Flag, Group, manual};
use super::values::{cache_driver, listen, memory_limit, number, port, ram_driver, seconds, some, value};

/// All flags, in the order of the help.
pub(super) static GROUPS: [Group; 3] = [
    Group { title: "Options", flags: GENERAL },
    Group {
        title: "Who may do what (by default, everybody may read and this machine may change)",
        flags: ACCESS,
    },
    Group { title: "Bounds", flags: BOUNDS },
];

const GENERAL: &[Flag] = &[
    Flag {
        short: Some('p'),
        long: Some("port"),
        help: "TCP port for addresses without one (default 9118)",
        manual: manual("The TCP port for each address of `--listen` that has none. The default is 9118."),
        effect: Effect::Value("PORT", |settings, text| {
            value(text, "a port", port).map(|port| settings.port = port)
        }),
    },
    Flag {
        short: Some('l'),
        long: Some("listen"),
        help: "address to listen at: ADDR, ADDR:PORT or unix:/PATH; repeatable (default: every \
               address, IPv6 and IPv4)",
        manual: manual(
            "Listen at this address: an IPv4 or IPv6 address, an address with a port \
             (`192.0.2.1:9118`, `[::1]:9118`), or a Unix socket (`unix:/run/rapiddiskd.sock`), which \
             belongs to root alone. The option can be given several times. Without it the daemon \
             listens at every address of the machine, IPv6 and IPv4.",
        ),
        effect: Effect::Value("ADDRESS", |settings, text| {
            value(text, "an address to listen at", listen).map(|address| settings.config.listen.push(address))
        }),
    },
    Flag {
        short: None,
        long: Some("memory-limit"),
        help: "memory that all RAM disks may take together: MiB, a number with M, G or T, or a part \
               of the machine's memory in percent (default 80%)",
        manual: manual(
            "The memory that all RAM disks may take together. A plain number is in MiB. A number with \
             `M`, `MiB`, `G`, `GiB`, `T` or `TiB` is in that unit; all units are powers of 1024. A \
             number with `%`, from 1 to 100, is a part of the machine's memory, but never leaves less \
             than 64 MiB to everything else. What counts is the size of a RAM disk, not what is written \
             to it. The default is 80%.",
        ),
        effect: Effect::Value("SIZE|PERCENT%", |settings, text| {
            value(text, "a memory limit", memory_limit).map(|limit| settings.config.memory_limit = limit)
        }),
    },
    Flag {
        short: None,
        long: Some("ram-driver"),
        help: "how new RAM disks are made: rapiddisk (RapidDisk's module), brd (the kernel's own RAM disks), loop \
               (loop devices over a tmpfs), auto, which takes the first of these that the kernel has, or zram, which \
               compresses (default auto)",
        manual: manual(
            "How new RAM disks are made. `rapiddisk` uses RapidDisk's kernel module of that name. \
             `brd` uses the kernel's own RAM disks behind device-mapper, where they can discard (Linux 6.12 can) and \
             were loaded with `modprobe brd rd_nr=0 rd_size=17179869184`. `loop` uses loop devices over files on a \
             tmpfs, which a stock kernel can do (Linux 5.8 or newer). `auto`, the default, takes the first of them \
             that the kernel has. `zram`, which is never taken by itself, uses the kernel's compressed RAM disks, with \
             blocks of 4096 bytes (`modprobe zram num_devices=0`). RAM disks of all kinds can be there at the same \
             time.",
        ),
        effect: Effect::Value("DRIVER", |settings, text| {
            value(text, "a driver for RAM disks", ram_driver)
                .map(|driver| settings.config.ram_driver = driver)
        }),
    },
    Flag {
        short: None,
        long: Some("cache-driver"),
        help: "how new write-through caches are made: rapiddisk-cache, dm-cache, or auto, which takes \
               the first of them that the kernel has (default auto)",
        manual: manual(
            "How new write-through caches are made. `rapiddisk-cache` uses RapidDisk's kernel module \
             of that name. `dm-cache` uses the stock kernel's target of that name. `auto`, the \
             default, takes `rapiddisk-cache` where the kernel has it, and `dm-cache` elsewhere. \
             Write-around caches need `rapiddisk-cache` and are refused with `dm-cache`. Writeback \
             caches are always made by the kernel's dm-writecache.",
        ),
        effect: Effect::Value("DRIVER", |settings, text| {
            value(text, "a cache driver", cache_driver).map(|driver| settings.config.cache_driver = driver)
        }),
    },
    Flag {
        short: None,
        long: Some("check"),
        help: "do not serve, but say what is wrong with the other options and the token file, and print \
               the addresses to listen at",
        manual: manual(
            "Do not serve. Read the other options and the token file as the daemon would. Print each \
             address that it would listen at, and report each fault on the standard error. No address is \
             opened and nothing is changed. There is a message, but no fault, where nobody could change \
             anything: the token file has no admin, and there is no Unix socket to listen at.",
        ),
        effect: Effect::Switch(|settings| settings.check = true),
    },
    Flag {
        short: None,
        long: Some("quiesce"),
        help: "do not serve, but prepare for the machine to be switched off: end the exports and remove \
               the writeback caches; give up after 30 s without progress",
        manual: manual(
            "Do not serve. End the NVMe exports that the daemon has made, write the data of the \
             writeback caches to their disks, and remove these caches. Call this before the machine is \
             switched off, after the daemon is stopped and the file systems are unmounted. A cache \
             that is still in use stays, and its data is written. A slow disk gets the time that it \
             takes. After 30 s without any progress, the rest is left as it is. Every step is \
             reported on the standard error. Other options are checked and have no effect.",
        ),
        effect: Effect::Switch(|settings| settings.quiesce = true),
    },
    Flag {
        short: Some('V'),
        long: Some("verbose"),
        help: "log more; give it twice for everything",
        manual: manual("Log more. Given twice, log everything."),
        effect: Effect::Switch(|settings| {
            settings.config.verbosity = settings.config.verbosity.saturating_add(1);
        }),
    },
    Flag {
        short: Some('d'),
        long: None,
        help: "accepted for the init scripts of the original daemon; this one always stays in the \
               foreground",
        manual: manual(
            "No effect. The original daemon goes to the background with this option, and its init \
             scripts use it. This daemon always stays in the foreground.",
        ),
        effect: Effect::Switch(|_| {}),
    },
    Flag {
        short: Some('v'),
        long: Some("version"),
        help: "print the version and exit",
        manual: manual("Print the version and exit."),
        effect: Effect::Instead(|| Command::Version),
    },
    Flag {
        short: Some('h'),
        long: Some("help"),
        help: "print this help and exit",
        manual: manual("Print a short help and exit."),
        effect: Effect::Instead(|| Command::Help),
    },
];

const ACCESS: &[Flag] = &[
    Flag {
        short: None,
        long: Some("token-file"),
        help: "lines of ROLE NAME TOKEN, where ROLE is admin or viewer; only holders of these tokens \
               are let in; SIGHUP reads the file again",
        manual: manual(
            "Only clients with a token from this file may use the API. Each line is `ROLE NAME TOKEN`. The role \
             `admin` may do everything, `viewer` may only read. The name appears in the log. A line \
             that begins with # is a comment. The file must belong to root and have the mode 0600. \
             SIGHUP makes the daemon read it again. Not together with `--open`.",
        ),
        effect: Effect::Value("PATH", |settings, text| {
            settings.config.access.token_file = Some(PathBuf::from(text));
            Ok(())
        }),
    },
    Flag {
        short: None,
        long: Some("open"),
        help: "everybody may change everything",
        manual: manual(
            "Let everybody who reaches the daemon change everything. The daemon warns of that at each \
             start.",
        ),
        effect: Effect::Switch(|settings| settings.config.access.open = true),
    },
    Flag {
        short: None,
        long: Some("allow-host"),
        help: "another name that clients may reach this machine by; repeatable",
        manual: manual(
            "Accept this name in the Host field of a request, besides addresses, localhost and the \
             machine's own name. Give it without a port. With a token file every name is accepted. The \
             option can be given several times.",
        ),
        effect: Effect::Value("NAME", |settings, text| {
            value(text, "a name", some).map(|name| settings.config.access.allow_hosts.push(name))
        }),
    },
    Flag {
        short: None,
        long: Some("allow-origin"),
        help: "web pages of this origin may use the API; repeatable",
        manual: manual(
            "Let web pages of this origin use the API, `https://console.example` for instance. The \
             option can be given several times.",
        ),
        effect: Effect::Value("URL", |settings, text| {
            value(text, "an origin", some).map(|origin| settings.config.access.allow_origins.push(origin))
        }),
    },
];

const BOUNDS: &[Flag] = &[
    Flag {
        short: None,
        long: Some("connections"),
        help: "connections at once, at most half of them from one address (default 256)",
        manual: manual(
            "The number of connections at once, from 8 to 65536. One address, or one /64 network of \
             IPv6, may have at most half of them. The default is 256.",
        ),
        effect: Effect::Value("N", |settings, text| {
            number(text, 8, 65536).map(|connections| {
                let limits = &mut settings.config.limits;
                limits.connections = connections;
                limits.per_address = connections / 2;
            })
        }),
    },
    Flag {
        short: None,
        long: Some("workers"),
        help: "requests carried out at once, at most three quarters of them changes (default 16)",
        manual: manual(
            "The number of requests that are carried out at once, from 2 to 256. At most three \
             quarters of them are changes, so that a read always finds a free thread. The default is 16.",
        ),
        effect: Effect::Value("N", |settings, text| {
            number(text, 2, 256).map(|workers| {
                let limits = &mut settings.config.limits;
                limits.workers = workers;
                limits.changes = workers - workers.div_ceil(4);
            })
        }),
    },
    Flag {
        short: None,
        long: Some("request-time"),
        help: "seconds for a request to arrive (default 5)",
        manual: manual(
            "The time for a request to arrive, from its first byte to its last, 1 to 3600 seconds. The \
             default is 5.",
        ),
        effect: Effect::Value("S", |settings, text| {
            seconds(text).map(|time| settings.config.limits.request_time = time)
        }),
    },
    Flag {
        short: None,
        long: Some("idle-time"),
        help: "seconds that a connection may be idle (default 75)",
        manual: manual(
            "The time that a connection may be idle, 1 to 3600 seconds. After that it is closed. The \
             default is 75, which is longer than proxies usually keep a connection. Where connections \
             are at their bound, an idle one is closed earlier.",
        ),
        effect: Effect::Value("S", |settings, text| {
            seconds(text).map(|time| settings.config.limits.idle_time = time)
        }),
    },
    Flag {
        short: None,
        long: Some("write-time"),
        help: "seconds for a client to take an answer (default 10)",
        manual: manual(
            "The time for a client to take an answer, 1 to 3600 seconds. After that the connection is \
             closed. The default is 10.",
        ),
        effect: Effect::Value("S", |settings, text| {
            seconds(text).map(|time| settings.config.limits.write_time = time)
        }),
    },
    Flag {
        short: None,
        long: Some("body-limit"),
        help: "largest body of a request (default 1024); no call needs one",
        manual: manual(
            "The largest body of a request in bytes, from 1024 to 65536. No call needs a body. The \
             default is 1024.",
        ),
        effect: Effect::Value("BYTES", |settings, text| {
            number(text, 1 << 10, 64 << 10).map(|bytes| settings.config.limits.body_bytes = bytes)
        }),
    },
];
