//! How long requests take in this guest, compared with the reference daemon in the same run.
//! `tests/bench` prints it; nothing is asserted.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::data::noise;
use crate::support::kernel::{Process, eventually, put};
use crate::support::{Client, MIB, clean, guest_after, guest_with, sh, write};

const DISKS: u32 = 1000;
const ROUNDS: usize = 15;
const REFERENCE: Client = Client { port: 9119 };

#[test]
fn listing_a_thousand_disks() {
    let mut reference = None;
    // The reference is started first: it ends if it sees another process called rapiddiskd.
    let guest = guest_after(&[], || {
        clean::load();
        let program =
            std::env::var("RAPIDDISKD_REFERENCE").expect("the reference daemon: run with --mode reference");
        let port = REFERENCE.port;
        reference = Some(Process::start(&format!("exec {program} -d -p {port} >/dev/null 2>&1")));
        eventually("the reference answers", || {
            REFERENCE.try_request("GET", "/v1/checkServiceStatus").is_ok()
        });
    });
    for number in 0..DISKS {
        put("/sys/kernel/rapiddisk/mgmt", &format!("rapiddisk attach {number} {MIB}"));
    }
    let list = |client: &Client| {
        let start = Instant::now();
        let reply = client.get("listRapidDiskVolumes");
        let time = start.elapsed();
        // Not through `disks()`: the reference's answers have no content type.
        let body: Value = serde_json::from_str(&reply.text).expect("JSON");
        (body["volumes"][0]["rapiddisk"].as_array().expect("disks").len(), time)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (client, times) in [(&*guest, &mut ours), (&REFERENCE, &mut theirs)] {
            let (listed, time) = list(client);
            assert_eq!(listed, DISKS as usize, "port {}", client.port);
            times.push(time);
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1000.0
    };
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!(
        "listRapidDiskVolumes with {DISKS} RAM disks: ours {ours:.1} ms, reference {theirs:.1} ms, ratio {:.2}",
        ours / theirs
    );
}

/// What fio does in a second on a file or a device.
fn operations(path: &str, write: bool, depth: u32) -> f64 {
    // A tmpfs of this kernel has no direct I/O, since it is the page cache itself.
    let direct = u32::from(path.starts_with("/dev/"));
    let kind = if write { "write" } else { "read" };
    let out = sh(&format!(
        "fio --name=a --filename={path} --rw=rand{kind} --bs=4k --size=64M --iodepth={depth} --ioengine=libaio \
         --direct={direct} --norandommap --time_based --runtime=2 --output-format=json"
    ));
    let report: Value = serde_json::from_str(&out[out.find('{').expect("a report")..]).expect("JSON");
    report["jobs"][0][kind]["iops"].as_f64().expect("a number")
}

#[test]
fn both_kinds_of_disks_beside_a_file_on_a_tmpfs() {
    let guest = guest_with(&["--ram-driver", "loop"]);
    sh("modprobe loop; truncate -s 64M /tmp/test/file");
    assert_eq!(guest.disk(64), "rd0");
    put("/sys/kernel/rapiddisk/mgmt", &format!("rapiddisk attach 1 {}", 64 * MIB));
    let places = [("rapiddisk", "/dev/rd1"), ("loop", "/dev/rd0"), ("tmpfs file", "/tmp/test/file")];
    for (name, path) in places {
        match name {
            "tmpfs file" => std::fs::write(path, noise(1, 64 << 20)).expect("a file"),
            _ => write(path, 0, &noise(1, 64 << 20)),
        }
    }
    println!("4 KiB random, operations/s   rapiddisk       loop tmpfs file  loop:rapiddisk  loop:tmpfs");
    for (is_write, depth) in [(false, 1), (false, 16), (true, 1), (true, 16)] {
        let [module, own, file] = places.map(|(_, path)| {
            let mut rounds: Vec<_> = (0..3).map(|_| operations(path, is_write, depth)).collect();
            rounds.sort_by(f64::total_cmp);
            rounds[1]
        });
        println!(
            "{:>5}, queue depth {depth:>2}        {module:>10.0} {own:>10.0} {file:>10.0} {:>14.2}x {:>10.2}x",
            if is_write { "write" } else { "read" },
            own / module,
            own / file
        );
    }
}
