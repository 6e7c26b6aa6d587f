//! How long requests take, and what RAM disks of each driver do, in this guest. `tests/bench` prints it;
//! nothing is asserted.

mod modules;
mod newer;

use std::time::Instant;

use serde_json::Value;

use crate::support::{Guest, sh};

/// How often each figure is measured. In each round all have their turn.
const ROUNDS: usize = 3;

/// What fio writes: half of each page can be compressed to nothing.
const DATA: &str =
    "--ioengine=libaio --buffer_compress_percentage=50 --buffer_compress_chunk=4096 --refill_buffers";

/// zram with room for what does not compress as well.
const ZRAM: &str = "zram&limit=64";

/// A file on a tmpfs.
const FILE: &str = "/tmp/test/file";

/// Makes a RAM disk of each driver, rd0 and on.
fn make(guest: &Guest, drivers: &[&str]) {
    for (number, driver) in drivers.iter().enumerate() {
        let made = guest.change(&format!("createRapidDisk/64?driver={driver}"));
        assert_eq!(made["device"], format!("rd{number}"));
    }
}

/// What fio does on a file or a device of 64 MiB.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    is_write: bool,
    /// In bytes; what is larger than a page is done in order, the rest at random.
    block: u32,
    depth: u32,
    jobs: u32,
}

const fn load(name: &'static str, is_write: bool, block: u32, depth: u32, jobs: u32) -> Load {
    Load { name, is_write, block, depth, jobs }
}

const LOADS: [Load; 10] = [
    load("4 KiB read, depth 1", false, 4096, 1, 1),
    load("4 KiB read, depth 16", false, 4096, 16, 1),
    load("4 KiB read, depth 1, 2 jobs", false, 4096, 1, 2),
    load("4 KiB read, depth 16, 2 jobs", false, 4096, 16, 2),
    load("4 KiB write, depth 1", true, 4096, 1, 1),
    load("4 KiB write, depth 16", true, 4096, 16, 1),
    load("4 KiB write, depth 1, 2 jobs", true, 4096, 1, 2),
    load("4 KiB write, depth 16, 2 jobs", true, 4096, 16, 2),
    load("1 MiB read", false, 1 << 20, 1, 1),
    load("1 MiB write", true, 1 << 20, 1, 1),
];

/// Operations a second.
fn operations(path: &str, load: Load) -> f64 {
    let Load { is_write, block, depth, jobs, .. } = load;
    // A tmpfs of older kernels has no direct I/O, since it is the page cache itself.
    let direct = u32::from(path.starts_with("/dev/"));
    let kind = if is_write { "write" } else { "read" };
    let order = if block > 4096 { "" } else { "rand" };
    let out = sh(&format!(
        "fio --name=a --filename={path} --rw={order}{kind} --bs={block} --size=64M --iodepth={depth} \
         --numjobs={jobs} --group_reporting --direct={direct} --norandommap --time_based --runtime=1 {DATA} \
         --output-format=json"
    ));
    let report: Value = serde_json::from_str(&out[out.find('{').expect("a report")..]).expect("JSON");
    report["jobs"][0][kind]["iops"].as_f64().expect("a number")
}

/// What must at least come of one place beside another, where something must.
struct Target<'a> {
    place: &'a str,
    beside: &'a str,
    least: &'a dyn Fn(&Load) -> Option<f64>,
}

/// Prints a row for each load: operations a second in each place, and the ratios of the targets.
fn compare(places: &[(&str, &str)], targets: &[Target<'_>]) {
    for (_, path) in places {
        sh(&format!("fio --name=fill --filename={path} --rw=write --bs=1M --size=64M --end_fsync=1 {DATA}"));
    }
    let titles: String = places.iter().map(|(name, _)| format!("{name:>12}")).collect();
    let ratios: String =
        targets.iter().map(|it| format!("{:>18}", format!("{}:{}", it.place, it.beside))).collect();
    println!("{:30}{titles}{ratios}", "operations/s");
    for load in LOADS {
        let mut rounds = vec![Vec::new(); places.len()];
        for _ in 0..ROUNDS {
            for ((_, path), figures) in places.iter().zip(&mut rounds) {
                figures.push(operations(path, load));
            }
        }
        let figures: Vec<f64> = rounds.iter_mut().map(|figures| median(figures)).collect();
        let of = |name: &str| figures[places.iter().position(|place| place.0 == name).expect("a place")];
        let mut row: String = figures.iter().map(|figure| format!("{figure:>12.0}")).collect();
        let mut below = String::new();
        for Target { place, beside, least } in targets {
            let ratio = of(place) / of(beside);
            row += &format!("{ratio:>17.2}x");
            if let Some(least) = least(&load).filter(|&least| ratio < least) {
                below += &format!("  BELOW: {place}:{beside} {ratio:.2} < {least:.2}");
            }
        }
        println!("{:30}{row}{below}", load.name);
    }
}

/// The middle one.
fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// How long something takes, in ms.
fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1000.0
}
