//! Changes that hang in the kernel: each takes one worker until its device answers
//! again. Nothing else is affected, not even the end of the daemon.

use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;

use crate::life::promptly;
use crate::support::data::{MIB, PAGE, assert_same_data, noise, read, write};
use crate::support::kernel::{PATIENCE, eventually, held, map, mappings, ram_disks, settle};
use crate::support::{Guest, Reply, guest, guest_with, sh, sys};

/// This many suspended sources, each with a writeback cache that holds data for it: the
/// removal of such a cache hangs until its source is resumed.
struct Weak(u64);

impl Weak {
    fn below_caches(guest: &Guest, count: u64) -> Weak {
        for n in 0..count {
            map(&format!("weak{n}"), &format!("0 8192 linear /dev/sda {}", n * 8192));
        }
        for n in 0..count {
            let disk = guest.disk(4);
            let cache = guest.cache(&disk, &format!("mapper%2Fweak{n}"), "writeback");
            write(&format!("/dev/mapper/{cache}"), 0, &noise(n, 8 * PAGE));
        }
        settle();
        let weak = Weak(count);
        weak.each("suspend --noflush");
        weak
    }

    fn each(&self, command: &str) {
        for n in 0..self.0 {
            sh(&format!("dmsetup {command} weak{n}"));
        }
    }

    /// Asks for the removal of all caches, each of which then hangs.
    fn removals<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        guest: &mut Guest,
    ) -> Vec<ScopedJoinHandle<'scope, std::io::Result<Reply>>> {
        let (client, pid) = (**guest, guest.daemon().pid());
        let ask = move |n| client.try_request("POST", &format!("/v1/removeRapidDiskCache/rc-wb_weak{n}"));
        let asked = (0..self.0).map(|n| scope.spawn(move || ask(n))).collect();
        eventually("all removals hang", || held(pid) == self.0);
        asked
    }

    fn assert_written(&self) {
        for n in 0..self.0 {
            assert_same_data("the source", &read("/dev/sda", n * 4 * MIB, 8 * PAGE), &noise(n, 8 * PAGE));
        }
    }
}

impl Drop for Weak {
    /// Also if a test fails: a hung daemon could not be waited for.
    fn drop(&mut self) {
        self.each("resume");
    }
}

#[test]
fn as_many_changes_as_may_hang_and_reads_go_on() {
    let mut guest = guest_with(&["--workers", "4"]);
    let weak = Weak::below_caches(&guest, 3);
    std::thread::scope(|scope| {
        let removals = weak.removals(scope, &mut guest);
        for _ in 0..5 {
            let reply = promptly("one change more", || guest.post("createRapidDisk/4"));
            reply.failure(503, &["changes"]);
            assert_eq!(reply.field("retry-after"), Some("1"), "{reply:?}");
            promptly("checkServiceStatus", || guest.read("checkServiceStatus"));
            promptly("listAllResources", || guest.read("listAllResources"));
            assert_eq!(promptly("listRapidDiskVolumes", || guest.caches()).len(), 3);
            promptly("showRapidDiskCacheStats", || guest.stats("rc-wb_weak1"));
        }
        assert_eq!(held(guest.daemon().pid()), 3);
        assert!(removals.iter().all(|removal| !removal.is_finished()));
        weak.each("resume");
        for removal in removals {
            removal.join().expect("a removal").expect("its answer").success();
        }
    });
    assert_eq!(mappings(), ["weak0", "weak1", "weak2"]);
    weak.assert_written();
    guest.disk(4);
    assert_eq!(ram_disks().len(), 4);
}

/// Tells the daemon to end; returns once it takes no more connections.
fn terminate(guest: &mut Guest) -> Instant {
    let begin = Instant::now();
    sh(&format!("kill {}", guest.daemon().pid()));
    eventually("it takes no connections", || !guest.takes_connections());
    begin
}

#[test]
fn a_change_under_way_is_finished_and_answered_before_the_end() {
    let mut guest = guest();
    let weak = Weak::below_caches(&guest, 1);
    std::thread::scope(|scope| {
        let removals = weak.removals(scope, &mut guest);
        let begin = terminate(&mut guest);
        assert_eq!(held(guest.daemon().pid()), 1, "it was not waited for");
        weak.each("resume");
        for removal in removals {
            removal.join().expect("a removal").expect("its answer").success();
        }
        assert_eq!(guest.daemon().wait().code(), Some(0));
        assert!(begin.elapsed() < PATIENCE, "it took {:?}", begin.elapsed());
    });
    assert_eq!(mappings(), ["weak0"]);
    weak.assert_written();
}

/// A process with a hung system call cannot end. But it has finished its work by then, and
/// another daemon can take its place.
#[test]
fn a_change_that_stays_hung_does_not_keep_the_daemon() {
    let mut guest = guest();
    let weak = Weak::below_caches(&guest, 1);
    std::thread::scope(|scope| {
        let removals = weak.removals(scope, &mut guest);
        let begin = terminate(&mut guest);
        let pid = guest.daemon().pid();
        eventually("it has ended but for the hung thread", || {
            sys(&format!("/proc/{pid}/status")).is_some_and(|status| status.contains("State:\tZ"))
        });
        assert!(begin.elapsed() < PATIENCE, "it took {:?}", begin.elapsed());
        for removal in removals {
            removal.join().expect("a removal").expect_err("an answer");
        }
        assert!(begin.elapsed() < PATIENCE, "the client was let go after {:?}", begin.elapsed());
        assert_eq!(held(pid), 1);

        let mut old = guest.start_another();
        let weak = weak;
        promptly("listRapidDiskVolumes", || assert_eq!(guest.caches().len(), 1));
        promptly("createRapidDisk", || guest.disk(4));
        weak.each("resume");
        assert_eq!(old.wait().code(), Some(0));
        assert_eq!(mappings(), ["rc-wb_weak0", "weak0"]);
        guest.change("removeRapidDiskCache/rc-wb_weak0");
        weak.assert_written();
    });
}
