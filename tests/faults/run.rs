//! One request after the other, each with another call that fails; what was answered is compared with
//! what the kernel has.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitStatus;

use serde_json::Value;

use super::{ERRORS, Faults};

/// What the kernel has, in words.
pub type Snapshot = BTreeMap<String, String>;

/// Where requests are carried out.
pub trait Setting {
    /// Calls the API; `None` if the daemon did not answer.
    fn call(&self, method: &str, path: &str) -> Option<(u16, Value)>;
    /// What the kernel has now.
    fn state(&self) -> Snapshot;
    /// Puts data where requests may destroy some. A second time it changes nothing.
    fn fill(&self);
    /// What makes calls fail.
    fn faults(&self) -> &Faults;
    /// Kills the daemon. A second time it does nothing.
    fn kill(&mut self);
    /// Starts the daemon, until it answers or ends; then with this exit status.
    fn start(&mut self) -> Option<ExitStatus>;
}

/// What became of a request with a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded, and the kernel has what it has without the fault.
    Done,
    /// It failed, and the kernel has what it had.
    AsBefore,
    /// The answer says what is left over, or what could not be undone, and the kernel has it.
    Told,
    /// The answer says so, and it cannot be seen: what could not be looked at was as it should be, for example.
    Unseen,
}

/// What was found.
#[derive(Default)]
pub struct Report {
    outcomes: Vec<Outcome>,
    broken: Vec<String>,
}

impl Report {
    /// Notes one injection.
    pub fn note(&mut self, what: &str, outcome: Result<Outcome, String>) {
        match outcome {
            Ok(outcome) => self.outcomes.push(outcome),
            Err(why) => self.broken.push(format!("{what}: {why}")),
        }
    }

    /// Prints the numbers. Fails if a promise was broken, or if there were fewer injections than `least`.
    pub fn assert_unbroken(&self, least: usize) {
        let all = self.outcomes.len() + self.broken.len();
        let count = |of| self.outcomes.iter().filter(|&&outcome| outcome == of).count();
        // Not println!, which the test program keeps to itself when all is well.
        let mut out = std::io::stdout();
        let printed = writeln!(
            out,
            "injections: {all}, broken: {} (done: {}, as before: {}, told: {}, told and not seen: {})",
            self.broken.len(),
            count(Outcome::Done),
            count(Outcome::AsBefore),
            count(Outcome::Told),
            count(Outcome::Unseen)
        );
        printed.expect("standard output");
        assert!(self.broken.is_empty(), "{} broken:\n{}", self.broken.len(), self.broken.join("\n"));
        assert!(all >= least, "only {all} injections");
    }
}

/// How the names of the calls begin that change something.
const CHANGES: [&str; 12] = [
    "clone",
    "ioctl",
    "write",
    "pwrite",
    "mkdir",
    "rmdir",
    "unlink",
    "symlink",
    "rename",
    "mount",
    "ftruncate",
    "fallocate",
];

/// How many of a request's calls fail, and in how many ways.
#[derive(Clone, Copy)]
pub struct Effort {
    /// How many of the errors are tried at each call; at the next one it is the turn of others.
    pub errors: usize,
    /// How many calls fail of those that are alike. Those that change something all do.
    pub alike: usize,
}

/// Lets each system call of a request fail in turn. `back` takes the request back. A call that changes
/// something fails once more together with all later ones of its kind.
pub fn try_each_call(
    setting: &mut impl Setting,
    request: (&str, &str),
    back: &[&str],
    effort: Effort,
    report: &mut Report,
) {
    let (method, path) = request;
    setting.fill();
    let mut before = setting.state();
    let (mut varying, mut after, mut calls) = (BTreeSet::new(), Snapshot::new(), Vec::new());
    for round in 0..2 {
        let (reply, made) = setting.faults().calls_of(|| setting.call(method, path));
        let (status, body) = reply.expect("an answer");
        assert_eq!(status, 200, "{path}: {body}");
        calls = made;
        let mut now = setting.state();
        if method == "GET" {
            flatten("answer", &body, &mut now);
        }
        if round > 0 {
            varying.extend(differing(&after, &now));
        }
        after = now;
        take_back(setting, back);
        let now = setting.state();
        varying.extend(differing(&before, &now));
        before = now;
    }
    for Attempt { at, errno, error, for_good } in attempts(&calls, effort) {
        setting.faults().plan(at, errno, for_good);
        let reply = setting.call(method, path);
        let failed = setting.faults().end();
        // What waits for something makes more calls at one time than at another.
        let call = failed.as_deref().unwrap_or("no call");
        let what = format!("{path}: {error} at {at} {}{call}", if for_good { "and all later " } else { "" });
        let mut now = setting.state();
        if method == "GET"
            && let Some((200, body)) = &reply
        {
            flatten("answer", body, &mut now);
        }
        let outcome = judge(reply, errno, &now, &before, &after, &varying);
        if !matches!(outcome, Ok(Outcome::AsBefore)) || method == "GET" {
            let restored = restore(setting, request, back, &outcome, &before, &varying);
            if let Err(why) = restored {
                // Whatever came next would be compared with what is wrong already.
                report.note(&format!("{what}: {outcome:?}, afterwards"), Err(why));
                return;
            }
            before = setting.state();
        }
        if failed.is_some() || outcome.is_err() {
            report.note(&what, outcome);
        }
    }
}

/// One call that is made to fail.
struct Attempt {
    at: usize,
    errno: i32,
    error: &'static str,
    for_good: bool,
}

/// Which of these calls fail, and how.
fn attempts(calls: &[String], effort: Effort) -> Vec<Attempt> {
    let mut errors = ERRORS.iter().cycle();
    let mut alike = BTreeMap::new();
    let mut attempts = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        let is_change = CHANGES.iter().any(|change| call.starts_with(change));
        let count = alike.entry(kind_of(call)).or_insert(0);
        *count += 1;
        if *count > effort.alike && !is_change {
            continue;
        }
        let attempt = |&(errno, error), for_good| Attempt { at, errno, error, for_good };
        attempts.extend(errors.by_ref().take(effort.errors).map(|error| attempt(error, false)));
        if is_change {
            // A change that fails for good cannot be undone by its like.
            attempts.push(attempt(&ERRORS[0], true));
        }
    }
    attempts
}

/// Lets each system call of a program fail in turn that runs and ends. `prepare` makes what it works on, or puts
/// it right; `run` runs it and says what became of it.
#[allow(dead_code, reason = "only the kernel tests run programs that end")]
pub fn try_each_run<S: Setting>(
    setting: &mut S,
    prepare: impl Fn(&mut S),
    run: impl Fn(&S) -> Result<Outcome, String>,
    effort: Effort,
    report: &mut Report,
) {
    prepare(setting);
    let (outcome, calls) = setting.faults().calls_of(|| run(setting));
    assert_eq!(outcome, Ok(Outcome::Done));
    for Attempt { at, errno, error, for_good } in attempts(&calls, effort) {
        prepare(setting);
        setting.faults().plan(at, errno, for_good);
        let outcome = run(setting);
        if let Some(call) = setting.faults().end() {
            report.note(&format!("{error} at {at} {call}, for good: {for_good}"), outcome);
        }
    }
}

/// Calls are alike that have one name and are about files of one name, numbers aside.
fn kind_of(call: &str) -> String {
    let (name, about) = call.split_once(' ').unwrap_or((call, ""));
    let file = about.rsplit('/').next().unwrap_or_default();
    format!("{name} {}", file.split(|c: char| c.is_ascii_digit()).collect::<String>())
}

/// What a list says is a part of what must be so.
fn flatten(at: &str, value: &Value, into: &mut Snapshot) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| flatten(&format!("{at} {name}"), value, into));
        }
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(i, value)| flatten(&format!("{at} {i}"), value, into));
        }
        // The first changes all the time, and a list shows others' devices without what they do not tell.
        _ if ["mem_free", "vendor", "model", "uuid", "nguid"].iter().any(|name| at.ends_with(name)) => {}
        _ if at.starts_with("answer targets") && at.ends_with("size") => {}
        value => {
            into.insert(at.to_owned(), value.to_string());
        }
    }
}

fn take_back(setting: &impl Setting, back: &[&str]) {
    for path in back {
        let (status, body) = setting.call("POST", path).expect("an answer");
        assert_eq!(status, 200, "{path}: {body}");
    }
    setting.fill();
}

/// Brings the kernel to where it was before. What a daemon told that is left over or was not undone is put
/// right when it starts again; all else goes over the API.
fn restore(
    setting: &mut impl Setting,
    (method, path): (&str, &str),
    back: &[&str],
    outcome: &Result<Outcome, String>,
    before: &Snapshot,
    varying: &BTreeSet<String>,
) -> Result<(), String> {
    if !matches!(outcome, Ok(Outcome::Done | Outcome::AsBefore)) {
        restart(setting);
    }
    setting.fill();
    let mut said = Vec::new();
    for again in [false, true] {
        if differences(before, &setting.state(), varying).is_empty() {
            return Ok(());
        }
        let request = again.then_some((method, path));
        for (method, path) in request.into_iter().chain(back.iter().map(|path| ("POST", *path))) {
            said.push(format!("{path}: {:?}", setting.call(method, path)));
        }
        setting.fill();
    }
    match &differences(before, &setting.state(), varying)[..] {
        [] => Ok(()),
        others => Err(format!("cannot be put right: {others:#?}; {said:#?}")),
    }
}

fn restart(setting: &mut impl Setting) {
    setting.kill();
    assert_eq!(setting.start(), None, "the daemon ended");
}

/// Lets each system call of the daemon's start fail in turn. Before each start `spoil` makes what a daemon may
/// leave that was killed. The daemon serves or ends with an error, and the next start puts all right.
pub fn try_each_start(setting: &mut impl Setting, spoil: impl Fn(), errors_each: usize, report: &mut Report) {
    let whole = setting.state();
    let mut next = 0;
    for at in 0.. {
        for (errno, error) in (0..errors_each).map(|i| ERRORS[(next + i) % ERRORS.len()]) {
            setting.kill();
            spoil();
            setting.faults().plan(at, errno, false);
            let ended = setting.start();
            let call = setting.faults().end();
            restart(setting);
            let what = format!("the start: {error} at {at} {call:?}");
            let others = differences(&whole, &setting.state(), &BTreeSet::new());
            let outcome = match ended {
                Some(status) if status.code().is_none() => Err(format!("{status}")),
                _ if !others.is_empty() => Err(format!("cannot be put right: {others:#?}")),
                Some(_) => Ok(Outcome::AsBefore),
                None => Ok(Outcome::Done),
            };
            if call.is_none() && outcome.is_ok() {
                return;
            }
            let is_broken = outcome.is_err();
            report.note(&what, outcome);
            if is_broken {
                return;
            }
        }
        next += errors_each;
    }
}

fn judge(
    reply: Option<(u16, Value)>,
    errno: i32,
    now: &Snapshot,
    before: &Snapshot,
    after: &Snapshot,
    varying: &BTreeSet<String>,
) -> Result<Outcome, String> {
    let (status, body) = reply.ok_or("no answer")?;
    let message = body["message"].as_str().unwrap_or_default();
    let (expected, told, good) = match status {
        200 => (after, message.contains("left over"), Outcome::Done),
        _ => (before, message.contains("could not be undone"), Outcome::AsBefore),
    };
    // What is told is what failed here, and nothing else.
    let cause = std::io::Error::from_raw_os_error(errno).to_string();
    if told && !message.contains(cause.split(" (").next().unwrap_or(&cause)) {
        return Err(format!("{status} {body} tells of something else"));
    }
    match status {
        200 | 500 | 503 | 507 => {}
        409 if errno == libc::EBUSY => {}
        _ => return Err(format!("{status} {body} says what is not so")),
    }
    match &differences(expected, now, varying)[..] {
        // It may not be seen on a RAM disk whose contents are not compared, for example.
        [] if told => Ok(Outcome::Unseen),
        _ if told => Ok(Outcome::Told),
        [] => Ok(good),
        others => Err(format!("{status} {body} but {others:#?}")),
    }
}

fn differing(one: &Snapshot, other: &Snapshot) -> BTreeSet<String> {
    let keys = one.keys().chain(other.keys());
    keys.filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
}

fn differences(expected: &Snapshot, now: &Snapshot, varying: &BTreeSet<String>) -> Vec<String> {
    let keys = differing(expected, now).into_iter();
    // What is there with another value each time is there all the same.
    let matters =
        |key: &String| !varying.contains(key) || expected.contains_key(key) != now.contains_key(key);
    keys.filter(matters)
        .map(|key| format!("{key}: expected {:?}, is {:?}", expected.get(&key), now.get(&key)))
        .collect()
}
