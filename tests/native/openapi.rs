//! The specification, and schemathesis, which asks the daemon for all that it allows and for much that it does
//! not. `tests/run openapi` installs both tools, names their directory, and hides the drivers other than `loop`.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::Native;

const SPECIFICATION: &str = "/v1/openapi.json";

/// Runs a program that was installed for this, and fails if it finds something.
fn run(program: &str, args: &[&OsStr]) {
    let tools = env::var_os("OPENAPI_TOOLS").expect("OPENAPI_TOOLS: run this with tests/run openapi");
    let mut command = Command::new("timeout");
    command.arg("300").arg(Path::new(&tools).join(program)).args(args);
    // What it leaves behind goes with this.
    let status = command.current_dir("/run").status().unwrap();
    assert!(status.success(), "{program}: {status}");
}

#[test]
fn no_answer_is_outside_the_specification() {
    // What may not be touched on this machine.
    for hidden in ["/dev/mapper/control", "/sys/kernel/config/nvmet", "/sys/kernel/rapiddisk/mgmt"] {
        assert!(!Path::new(hidden).exists(), "{hidden} is there: run this with tests/run openapi");
    }
    // Nothing is written to the disks, so they take no memory.
    let native = Native::start("4096");
    for _ in 0..10 {
        native.change("createRapidDisk/1");
    }

    let reply = native.client().call("GET", SPECIFICATION).unwrap();
    assert_eq!((reply.status, reply.field("content-type")), (200, Some("application/json")));
    fs::write("/run/openapi.json", reply.body).unwrap();
    run("openapi-spec-validator", &["/run/openapi.json".as_ref()]);

    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/native/schemathesis.toml");
    let url = format!("http://127.0.0.1:{}{SPECIFICATION}", native.port);
    run("schemathesis", &["--config-file", config, "run", &url].map(OsStr::new));

    // It saw successes too.
    let log = fs::read_to_string("/run/log").unwrap();
    for change in ["create", "resize", "flush", "remove", "lock", "unlock"] {
        let call = format!("POST /v1/{change}RapidDisk/");
        let is_done = |line: &str| line.contains(&call) && line.contains("status=200");
        assert!(log.lines().filter(|line| is_done(line)).count() > 0, "{call} never succeeded");
    }
}
