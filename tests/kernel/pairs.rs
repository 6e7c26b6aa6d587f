//! Eight clients at once ask for changes that name one object in two ways: a source by two names, caches whose names
//! differ in the policy alone, a disk and what stands on it. Each answer must be one that the API's page knows, and
//! true at a moment while it was asked for. How often a client asks is given, and not for how long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::export::load_nvmet;
use crate::life::abbreviated;
use crate::source::make_partition;
use crate::support::data::Random;
use crate::support::kernel::{State, device, dm_of, map, mappings, policies, settle};
use crate::support::{Client, Guest, guest, guest_with, sh};

const CLIENTS: usize = 8;
const ROUNDS: usize = 40;

/// Something that only one can have, and who has it: a disk and the cache on it, for example.
type Hold = (String, String);

/// Has what does not exist, so that nobody else can.
const GONE: &str = "is gone";
const REMOVED: &str = "all that was made and removed";

fn hold(what: &str, by: &str) -> Hold {
    (what.to_owned(), by.to_owned())
}

/// A change: what it takes and gives up if it is done, and the codes that it may be answered with.
#[derive(Clone, Debug)]
struct Call {
    path: String,
    takes: Vec<Hold>,
    gives: Vec<Hold>,
    may: &'static [u16],
}

fn call(path: String, takes: &[Hold], gives: &[Hold], may: &'static [u16]) -> Call {
    Call { path, takes: takes.to_vec(), gives: gives.to_vec(), may }
}

/// A change, and the one that takes it back.
fn pair(make: String, remove: String, takes: &[Hold], gives: &[Hold]) -> [Call; 2] {
    [call(make, takes, gives, &[200, 404, 409]), call(remove, gives, takes, &[200, 404, 409])]
}

/// A cache of a source, which is known by `source` in a call, and by `device` whatever it is called.
fn cache(disk: &str, source: &str, device: &str, policy: &str) -> [Call; 2] {
    let last = source.rsplit("%2F").next().expect("a name");
    let name = format!("rc-{}_{last}", abbreviated(policy));
    pair(
        format!("createRapidDiskCache/{disk}/{source}/{policy}"),
        format!("removeRapidDiskCache/{name}"),
        &[hold(disk, &name), hold(device, &name)],
        &[hold(&name, GONE)],
    )
}

/// A volume's export at port 1.
fn export(volume: &str) -> [Call; 2] {
    let make = format!("createNVMeTarget/{volume}/1");
    pair(make, format!("removeNVMeTarget/{volume}"), &[hold(volume, "an export")], &[])
}

/// What the answers say.
#[derive(Default)]
struct Ledger {
    /// How often each hold is there at the moment, at least and at most.
    holds: Mutex<BTreeMap<Hold, (i64, i64)>>,
    /// How many changes took something.
    taken: AtomicUsize,
}

impl Ledger {
    /// All that is not there at the beginning.
    fn new(calls: &[Call]) -> Ledger {
        let holds = calls.iter().flat_map(|call| call.takes.iter().chain(&call.gives));
        let holds = holds.filter(|(_, by)| by == GONE);
        let gone: BTreeSet<_> = holds.cloned().collect();
        let ledger = Ledger::default();
        ledger.note(&Vec::from_iter(gone), 1, 1);
        ledger
    }

    fn note(&self, holds: &[Hold], least: i64, most: i64) {
        let mut all = self.holds.lock().expect("no other client has failed");
        for hold in holds {
            let counts = all.entry(hold.clone()).or_default();
            *counts = (counts.0 + least, counts.1 + most);
            assert!(counts.1 >= 0, "{hold:?} was given up, and never taken");
            let same: Vec<_> =
                all.iter().filter(|((what, _), (least, _))| *what == hold.0 && *least > 0).collect();
            assert!(same.iter().map(|(_, (least, _))| least).sum::<i64>() <= 1, "two have it: {same:?}");
        }
    }

    /// Asks for a change. Returns whether it was done.
    fn ask(&self, client: Client, call: &Call) -> bool {
        self.note(&call.gives, -1, 0);
        self.note(&call.takes, 0, 1);
        let reply = client.change_when_free(&call.path);
        assert!(call.may.contains(&reply.status), "{reply:?}");
        let is_done = reply.status == 200;
        if is_done {
            assert!(!reply.text.contains("left over"), "{reply:?}");
        }
        let made = &reply.json()["device"];
        let is_given = |(what, _): &&Hold| is_done && (made.is_null() || made == what);
        let (given, kept): (Vec<_>, Vec<_>) = call.gives.iter().partition(is_given);
        self.note(&Vec::from_iter(given.into_iter().cloned()), 0, -1);
        self.note(&Vec::from_iter(kept.into_iter().cloned()), 1, 0);
        let (least, most) = if is_done { (1, 0) } else { (0, -1) };
        self.note(&call.takes, least, most);
        self.taken.fetch_add(usize::from(is_done && !call.takes.is_empty()), Ordering::Relaxed);
        is_done
    }
}

/// All clients ask for any of `calls`, each in an order of its own. What some of them have in `own`, nobody else asks
/// for: they make it and remove it again. In the end the kernel must have what the answers say, and all of it can be
/// removed.
fn stress(guest: &Guest, calls: &[Call], own: &[[Call; 2]]) {
    let (client, ledger) = (**guest, &Ledger::new(calls));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn(move || {
                let mut random = Random::new(number as u64 + 1);
                for _ in 0..ROUNDS {
                    ledger.ask(client, &calls[random.below(calls.len() as u64) as usize]);
                    if let Some([make, remove]) = own.get(number)
                        && ledger.ask(client, make)
                    {
                        assert!(ledger.ask(client, remove), "{} is not there", make.path);
                    }
                }
            });
        }
    });
    assert!(ledger.taken.load(Ordering::Relaxed) > CLIENTS, "hardly anything could be done");
    settle();
    let device = |listed: serde_json::Value| listed["device"].as_str().expect("a name").to_owned();
    let mut caches: Vec<_> = guest.caches().into_iter().map(device).collect();
    let disks: Vec<_> = guest.disks().into_iter().map(device).collect();
    assert_eq!(caches, Vec::from_iter(mappings().into_iter().filter(|name| name.starts_with("rc-"))));
    for ((what, by), counts) in ledger.holds.lock().expect("the ledger").iter() {
        let is_there = |name| caches.contains(name) || disks.contains(name);
        let wanted = i64::from(if by == GONE { !is_there(what) } else { is_there(by) });
        assert_eq!(*counts, (wanted, wanted), "{what}: {by}");
    }
    // Those on others first.
    caches.sort_by_key(|name| std::cmp::Reverse(name.len()));
    caches.iter().for_each(|name| drop(guest.change(&format!("removeRapidDiskCache/{name}"))));
    disks.iter().for_each(|name| drop(guest.change(&format!("removeRapidDisk/{name}"))));
}

/// Caches of each policy for a device that has two names.
fn caches_of(guest: &Guest, device_name: &str, sources: [&str; 2]) {
    let before = State::now();
    let disks = [guest.disk(4), guest.disk(4)];
    // What a RAM disk stands on, or it itself, is no source.
    let own = format!("createRapidDiskCache/rd1/{}/write-through", device("rd0"));
    let mut calls = vec![call(own, &[], &[], &[400])];
    for (number, policy) in ["write-through", "writeback", "write-around"].iter().enumerate() {
        for source in sources {
            let [make, remove] = cache(&disks[number % 2], source, device_name, policy);
            // Those that this guest cannot have were never there.
            let makes = 2 * usize::from(policies().contains(policy));
            calls.extend(std::iter::repeat_n(make, makes).chain([remove]));
        }
    }
    stress(guest, &calls, &[]);
    before.assert_unchanged(REMOVED);
}

#[test]
fn a_disk_and_a_link_to_it_are_one_source() {
    let guest = guest();
    sh("mkdir -p /dev/disk/by-id && ln -sf ../../sda /dev/disk/by-id/same");
    caches_of(&guest, "sda", ["sda", "disk%2Fby-id%2Fsame"]);
    sh("rm /dev/disk/by-id/same");
}

#[test]
fn a_mapping_and_its_device_are_one_source() {
    let guest = guest();
    map("both", "0 65536 linear /dev/sda 0");
    caches_of(&guest, "both", ["mapper%2Fboth", &dm_of("both")]);
}

#[test]
fn a_disk_and_its_partition_are_one_source() {
    let guest = guest();
    make_partition("sdb", 2048, 65536);
    caches_of(&guest, "sdb", ["sdb", "sdb1"]);
}

#[test]
fn a_disk_is_used_or_removed() {
    // Two disks fit.
    let guest = guest_with(&["--memory-limit", "10"]);
    load_nvmet();
    let before = State::now();
    guest.change("createNVMePort/1/127.0.0.1/tcp");
    let names: Vec<_> = (0..CLIENTS).map(|number| format!("rd{number}")).collect();
    let gone: Vec<_> = names.iter().map(|name| hold(name, GONE)).collect();
    // Of the lowest number that nobody has at the moment.
    let make = call("createRapidDisk/4".into(), &[], &gone, &[200, 409, 507]);
    let mut calls = vec![make; 8];
    for (name, gone) in names.iter().zip(gone) {
        calls.push(call(format!("removeRapidDisk/{name}"), &[gone], &[], &[200, 404, 409]));
    }
    for size in [3, 5] {
        calls.push(call(format!("resizeRapidDisk/rd0/{size}"), &[], &[], &[200, 404, 409, 507]));
    }
    calls.push(call("flushRapidDisk/rd0".into(), &[], &[], &[200, 404, 409]));
    for (disk, source, policy) in [("rd0", "sda", "write-through"), ("rd1", "sdb", "writeback")] {
        calls.extend([cache(disk, source, source, policy), cache(disk, source, source, policy)].concat());
    }
    stress(&guest, &calls, &[export("rd0"), export("rd1")]);
    guest.change("removeNVMePort/1");
    before.assert_unchanged(REMOVED);
}

#[test]
fn a_cache_is_used_or_removed() {
    let guest = guest();
    load_nvmet();
    let before = State::now();
    guest.change("createNVMePort/1/127.0.0.1/tcp");
    let disks = [guest.disk(4), guest.disk(4)];
    let [make, remove] = cache(&disks[0], "sda", "sda", "write-through");
    let above = cache(&disks[1], "mapper%2Frc-wt_sda", "rc-wt_sda", "writeback");
    let calls = [vec![make; 3], vec![remove], above.to_vec()].concat();
    stress(&guest, &calls, &[export("rc-wt_sda")]);
    guest.change("removeNVMePort/1");
    before.assert_unchanged(REMOVED);
}

#[test]
fn one_address_is_that_of_one_port() {
    let guest = guest();
    load_nvmet();
    let before = State::now();
    let port = |number| {
        let address = ["127.0.0.1", "lo"][number % 2];
        let (make, remove) = (
            format!("createNVMePort/{}/{address}/tcp", number + 1),
            format!("removeNVMePort/{}", number + 1),
        );
        pair(make, remove, &[hold("127.0.0.1", &format!("port {number}"))], &[])
    };
    let none = call("removeNVMePort/9".into(), &[], &[], &[404]);
    stress(&guest, &[none], &Vec::from_iter((0..CLIENTS).map(port)));
    before.assert_unchanged(REMOVED);
}
