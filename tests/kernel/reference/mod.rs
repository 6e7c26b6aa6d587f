//! The reference daemon and ours get the same requests, each in the same state of the kernel. If
//! the answers or the kernel's state afterwards differ, `tests/DEVIATIONS.md` must have a row for
//! the difference. A row for a difference that is not there is a failure, too.

mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use self::steps::{PREPARATIONS, STEPS, Step};
use crate::support::kernel::{PAUSE, mappings, ram_disks, settle, sh, size};
use crate::support::{Client, Daemon, begin, clean};

const DEVIATIONS: &str = include_str!("../../DEVIATIONS.md");
const PORT: u16 = 9119;

/// What a step resulted in: a text for each aspect, such as the answer.
type Seen = BTreeMap<String, String>;

/// One row of the document: step and aspect, the reference's result, ours.
type Row = (String, String, String);

enum Which {
    Reference(Option<Child>),
    Ours(Option<Daemon>),
}

impl Which {
    fn client(&mut self) -> Client {
        match self {
            Which::Ours(daemon) => daemon.get_or_insert_with(|| Daemon::start(&[])).client(),
            Which::Reference(child) => {
                let ended = |child: &mut Child| child.try_wait().expect("its state").is_some();
                if child.as_mut().is_none_or(ended) {
                    *child = Some(start_reference());
                }
                Client { port: PORT }
            }
        }
    }

    fn is_alive(&mut self) -> bool {
        // Proves that nothing happens: the reference may answer a request and crash afterwards.
        std::thread::sleep(Duration::from_millis(200));
        match self {
            Which::Ours(daemon) => daemon.as_ref().is_some_and(|daemon| answers(daemon.client())),
            Which::Reference(_) => answers(Client { port: PORT }),
        }
    }
}

impl Drop for Which {
    fn drop(&mut self) {
        if let Which::Reference(Some(child)) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn answers(client: Client) -> bool {
    client.try_request("GET", "/v1/checkServiceStatus").is_ok()
}

/// Whether a daemon answers on this port before it ends, and in time.
fn serves(child: &mut Child, port: u16, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while child.try_wait().expect("its state").is_none() && Instant::now() < deadline {
        if answers(Client { port }) {
            return true;
        }
        std::thread::sleep(PAUSE);
    }
    false
}

/// The port stays in use for a while after an earlier daemon has ended, so this tries again.
fn start_reference() -> Child {
    let program = std::env::var("RAPIDDISKD_REFERENCE").expect("these tests run in the mode reference");
    for _ in 0..100 {
        let mut child = Command::new(&program)
            .args(["-d", "-p", &PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        if serves(&mut child, PORT, Duration::from_secs(1)) {
            return child;
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    panic!("{program} does not start");
}

/// The step as the document names it.
fn name(step: &Step) -> String {
    let before = step.before;
    let with = if before.is_empty() { String::new() } else { format!(" ({before})") };
    let path = if step.path.len() > 100 { format!("{}…", &step.path[..40]) } else { step.path.to_owned() };
    format!("`{} {path}`{with}", step.method)
}

fn run(which: &mut Which) -> Vec<Seen> {
    STEPS.iter().map(|step| run_step(which, step)).collect()
}

fn run_step(which: &mut Which, step: &Step) -> Seen {
    clean::clean();
    clean::load();
    let client = which.client();
    let script =
        |name| PREPARATIONS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}")).1;
    for name in step.before.split(", ").filter(|name| !name.is_empty()) {
        let functions =
            "set -e; rd() { echo \"rapiddisk attach $1 $(($2 << 20))\" >/sys/kernel/rapiddisk/mgmt; }\n";
        sh(&format!("{functions}{}", script(name)));
        settle();
    }
    let mut seen = Seen::new();
    let reply = client.try_request(step.method, step.path);
    settle();
    let answer = match &reply {
        Err(_) => "none".to_owned(),
        Ok(reply) => {
            let body: Option<Value> = serde_json::from_str(&reply.text).ok();
            if let Some(body) = &body {
                shape("", body, &mut seen);
                values(body, "", step.values, &mut seen);
            }
            if step.method == "GET" && step.path == "/v1/checkServiceStatus" {
                seen.insert("Content-Type".into(), reply.field("content-type").unwrap_or("absent").into());
            }
            let word = body.as_ref().and_then(|body| body["status"].as_str()).unwrap_or_default();
            format!("{} {word}", reply.status).trim().to_owned()
        }
    };
    seen.insert("answer".into(), answer);
    seen.insert("the kernel then has".into(), kernel());
    seen.insert("the daemon then".into(), if which.is_alive() { "serves" } else { "is dead" }.into());
    seen
}

/// Disks and mappings in one line.
fn kernel() -> String {
    let disk = |name: String| format!("{name} of {} MiB", size(&name).unwrap_or_default() >> 20);
    let all: Vec<_> = ram_disks().into_iter().map(disk).chain(mappings()).collect();
    if all.is_empty() { "nothing".into() } else { all.join(", ") }
}

/// Each field's type, under its path.
fn shape(path: &str, value: &Value, seen: &mut Seen) {
    let kind = match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                shape(&format!("{path}.{name}"), value, seen);
            }
            return;
        }
        Value::Array(items) => {
            items.iter().for_each(|item| shape(&format!("{path}[]"), item, seen));
            "array"
        }
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
    };
    seen.insert(format!("field {}", path.trim_start_matches('.')), kind.into());
}

/// The values of these fields, under what they are values of; and the order of
/// the disks.
fn values(value: &Value, of: &str, wanted: &[&str], seen: &mut Seen) {
    match value {
        Value::Object(fields) => {
            let of = identity(value).unwrap_or(of.to_owned());
            for (name, value) in fields {
                if value.is_array() || value.is_object() {
                    values(value, &of, wanted, seen);
                } else if wanted.contains(&name.as_str()) {
                    seen.insert(format!("{name} of {of}"), value.to_string());
                }
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| values(item, of, wanted, seen));
            let number = |item: &Value| item["device"].as_str()?.strip_prefix("rd")?.parse::<u32>().ok();
            let numbers: Vec<_> = items.iter().filter_map(number).collect();
            if wanted.contains(&"order") && numbers.len() > 2 {
                let order = if numbers.is_sorted() { "by number" } else { "in no order" };
                seen.insert("order".into(), order.into());
            }
        }
        _ => {}
    }
}

/// What an entry of a list is about.
fn identity(entry: &Value) -> Option<String> {
    if let (Some(nqn), Some(namespace)) = (entry["nqn"].as_str(), entry["namespace"].as_u64()) {
        return Some(format!("namespace {namespace} of {nqn}"));
    }
    let port = entry["port"].as_u64().map(|port| format!("port {port}"));
    port.or_else(|| Some(entry["device"].as_str()?.to_owned()))
}

/// Fields that only we have are one difference, not many.
fn fold_our_own_fields(theirs: &Seen, ours: &mut Seen) {
    let is_own = |aspect: &&String| aspect.starts_with("field ") && !theirs.contains_key(*aspect);
    let own: Vec<_> = ours.keys().filter(is_own).cloned().collect();
    own.iter().for_each(|aspect| drop(ours.remove(aspect)));
    if !own.is_empty() {
        let last = |aspect: &String| format!("`{}`", aspect.rsplit(['.', ' ']).next().unwrap_or_default());
        let names: BTreeSet<_> = own.iter().map(last).collect();
        ours.insert("further fields".into(), names.into_iter().collect::<Vec<_>>().join(", "));
    }
}

/// Whether a daemon stays when no module is loaded.
fn start_without_modules(which: &str) -> String {
    clean::unload();
    let program = std::env::var(which).expect(which);
    let mut child = Command::new(&program)
        .args(["-d", "-p", &(PORT + 1).to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let serves = serves(&mut child, PORT + 1, Duration::from_secs(10));
    let _ = child.kill();
    let _ = child.wait();
    if serves { "serves" } else { "ends" }.into()
}

fn rows(document: &str) -> BTreeSet<Row> {
    let lines = document.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "not four cells: {line}");
        (cells[0].clone(), cells[1].clone(), cells[2].clone())
    };
    lines.map(row).collect()
}

#[test]
fn each_difference_from_the_reference_is_written_down_and_none_besides() {
    let _alone = begin();
    let mut found = BTreeSet::new();
    let starts = ["RAPIDDISKD_REFERENCE", "RAPIDDISKD"].map(start_without_modules);
    if starts[0] != starts[1] {
        found.insert(("`start`: with no module loaded it".to_owned(), starts[0].clone(), starts[1].clone()));
    }
    let theirs = run(&mut Which::Reference(None));
    let mut ours = run(&mut Which::Ours(None));
    clean::clean();
    for ((step, theirs), ours) in STEPS.iter().zip(&theirs).zip(&mut ours) {
        fold_our_own_fields(theirs, ours);
        let aspects: BTreeSet<_> = theirs.keys().chain(ours.keys()).collect();
        for aspect in aspects {
            let of = |seen: &Seen| seen.get(aspect).cloned().unwrap_or_else(|| "absent".into());
            if of(theirs) != of(ours) {
                found.insert((format!("{}: {aspect}", name(step)), of(theirs), of(ours)));
            }
        }
    }
    let listed = rows(DEVIATIONS);
    let as_rows = |rows: Vec<&Row>| -> String {
        rows.iter().map(|(step, theirs, ours)| format!("| {step} | {theirs} | {ours} | |\n")).collect()
    };
    let unlisted = as_rows(found.difference(&listed).collect());
    let gone = as_rows(listed.difference(&found).collect());
    assert!(
        unlisted.is_empty() && gone.is_empty(),
        "not in DEVIATIONS.md:\n{unlisted}\nno longer so:\n{gone}"
    );
}
