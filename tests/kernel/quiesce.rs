//! Before the machine is switched off: writeback caches write their data to their sources,
//! exports end, and a device that does not answer delays nothing else.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::export::{export, guest_with_port, tree};
use crate::support::data::{MIB, assert_same_data, noise, read, write};
use crate::support::kernel::{Process, eventually, map, mappings, settle};
use crate::support::{Guest, guest, sh};

/// Kills the daemon and quiesces, as when the machine is switched off. Returns how long it took.
pub fn quiesce(guest: &mut Guest) -> (Output, Duration) {
    guest.daemon().kill();
    let begin = Instant::now();
    let program = std::env::var("RAPIDDISKD").expect("RAPIDDISKD");
    let output = Command::new(program).arg("--quiesce").stdin(Stdio::null()).output().expect("the program");
    (output, begin.elapsed())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn all_data_is_on_the_sources_and_nothing_is_exported() {
    let mut guest = guest_with_port();
    let data = noise(7, 3 * MIB as usize);
    for (disk, source) in [("rd0", "sda"), ("rd1", "sdb")] {
        guest.disk(16);
        guest.cache(disk, source, "writeback");
        write(&format!("/dev/mapper/rc-wb_{source}"), MIB, &data);
    }
    guest.disk(8);
    settle();
    export(&guest, "rc-wb_sda/1");
    export(&guest, "rd2/1");
    let (output, _) = quiesce(&mut guest);
    assert!(output.status.success(), "{output:?}");
    for done in
        ["rc-wb_sda is not exported", "rd2 is not exported", "rc-wb_sda is removed", "rc-wb_sdb is removed"]
    {
        assert!(text(&output).contains(done), "{}", text(&output));
    }
    assert_eq!(mappings(), [""; 0]);
    assert!(!tree().iter().any(|path| path.contains("nqn.2021-06")), "{:?}", tree());
    for source in ["sda", "sdb"] {
        assert_same_data(source, &read(&format!("/dev/{source}"), MIB, data.len()), &data);
    }
    // A second time there is nothing to do, which is no failure.
    let (output, _) = quiesce(&mut guest);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_cache_in_use_stays_with_its_data_written() {
    let mut guest = guest();
    guest.disk(16);
    guest.cache("rd0", "sda", "writeback");
    let data = noise(8, 2 * MIB as usize);
    write("/dev/mapper/rc-wb_sda", MIB, &data);
    let _user = Process::asleep("</dev/mapper/rc-wb_sda");
    settle();
    let (output, _) = quiesce(&mut guest);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not done: rc-wb_sda is open in sleep"), "{}", text(&output));
    assert_eq!(mappings(), ["rc-wb_sda"]);
    assert_same_data("the source", &read("/dev/sda", MIB, data.len()), &data);
}

#[test]
fn a_source_that_hangs_holds_up_nothing_but_itself() {
    let mut guest = guest();
    map("slow", "0 131072 linear /dev/sda 0");
    let data = noise(9, 2 * MIB as usize);
    for (disk, source, name) in [("rd0", "mapper%2Fslow", "slow"), ("rd1", "sdb", "sdb")] {
        guest.disk(16);
        guest.cache(disk, source, "writeback");
        write(&format!("/dev/mapper/rc-wb_{name}"), MIB, &data);
    }
    settle();
    sh("dmsetup suspend --noflush --nolockfs slow");
    let (output, time) = quiesce(&mut guest);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output).contains("in time"), "{}", text(&output));
    // 30 s, and some more on a slow machine.
    assert!((Duration::from_secs(30)..Duration::from_secs(60)).contains(&time), "{time:?}");
    assert_same_data("the other source", &read("/dev/sdb", MIB, data.len()), &data);
    assert_eq!(mappings(), ["rc-wb_slow", "slow"]);
    // The removal that was not waited for finishes once the device answers again.
    sh("dmsetup resume slow");
    eventually("the cache is gone", || mappings() == ["slow"]);
    assert_same_data("the slow source", &read("/dev/sda", MIB, data.len()), &data);
}
