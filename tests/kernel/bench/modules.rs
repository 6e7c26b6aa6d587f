//! On Debian 12's kernel, with RapidDisk's module and the reference daemon.

use std::time::Instant;

use serde_json::Value;

use super::{FILE, ZRAM, compare, make, median};
use crate::support::kernel::{Process, eventually, put};
use crate::support::{Client, MIB, clean, guest_after, sh};
use crate::zram;

const DISKS: u32 = 1000;
const LISTS: usize = 15;
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
        let time = start.elapsed().as_secs_f64() * 1000.0;
        // Not through `disks()`: the reference's answers have no content type.
        let body: Value = serde_json::from_str(&reply.text).expect("JSON");
        (body["volumes"][0]["rapiddisk"].as_array().expect("disks").len(), time)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..LISTS {
        for (client, times) in [(&*guest, &mut ours), (&REFERENCE, &mut theirs)] {
            let (listed, time) = list(client);
            assert_eq!(listed, DISKS as usize, "port {}", client.port);
            times.push(time);
        }
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!(
        "listRapidDiskVolumes with {DISKS} RAM disks: ours {ours:.1} ms, reference {theirs:.1} ms, ratio {:.2}",
        ours / theirs
    );
}

#[test]
fn disks_of_the_module_beside_the_others() {
    let guest = guest_after(&[], zram::load);
    sh("modprobe loop");
    make(&guest, &["rapiddisk", "loop", ZRAM]);
    let places =
        [("rapiddisk", "/dev/rd0"), ("loop", "/dev/rd1"), ("zram", "/dev/rd2"), ("tmpfs file", FILE)];
    compare(&places, &[]);
}
