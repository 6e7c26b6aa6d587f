//! Exports that fail in each of their steps, that were left incomplete, or that somebody else
//! made: nothing is left behind, no host is let in, and nothing of others is changed.

use crate::export::{
    HOST, STRANGER, TREE, attribute, connect, connected_disk, disconnect, export, guest_with_port, tree,
};
use crate::support::kernel::{State, mounted_out_of_sight, names, put};
use crate::support::{Guest, MIB, sh, sys};

/// Makes a directory of the tree read-only, so that the step that writes there fails.
struct ReadOnly(String);

impl ReadOnly {
    fn new(below: &str) -> ReadOnly {
        let path = format!("{TREE}/{below}");
        sh(&format!("mount --bind {path} {path} && mount -o remount,ro,bind {path}"));
        ReadOnly(path)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        sh(&format!("umount {}", self.0));
    }
}

/// A request that fails in the step that writes to `below`, and is undone.
fn fails_at(guest: &Guest, below: &str, path: &str) {
    let before = State::now();
    let read_only = ReadOnly::new(below);
    guest.post(path).failure(500, &["Read-only"]);
    drop(read_only);
    before.assert_unchanged(&format!("{path} with a read-only {below}"));
}

#[test]
fn each_step_of_an_export_that_fails_is_undone() {
    let guest = guest_with_port();
    guest.disk(8);
    let nqn = export(&guest, "rd0/1");
    guest.change("removeNVMeTarget/rd0");
    let to_host = format!("createNVMeTarget/rd0/1/{HOST}");
    for below in ["hosts", "subsystems", "ports/1/subsystems"] {
        fails_at(&guest, below, &to_host);
    }
    // The directory of each step must exist, as a killed daemon may have left it.
    let subsystem = format!("subsystems/{nqn}");
    sh(&format!("mkdir {TREE}/{subsystem}; echo 1 >{TREE}/{subsystem}/attr_allow_any_host"));
    for step in ["attr_serial", "attr_model", "attr_allow_any_host", "allowed_hosts", "namespaces"] {
        fails_at(&guest, &format!("{subsystem}/{step}"), &to_host);
    }
    sh(&format!("mkdir {TREE}/{subsystem}/namespaces/1"));
    fails_at(&guest, &format!("{subsystem}/namespaces/1/device_path"), &to_host);
    sh(&format!("echo -n /dev/rd0 >{TREE}/{subsystem}/namespaces/1/device_path"));
    fails_at(&guest, &format!("{subsystem}/namespaces/1/enable"), &to_host);
    fails_at(&guest, "ports/1/subsystems", &to_host);
    // After all this the same export works.
    assert_eq!(export(&guest, &format!("rd0/1/{HOST}")), nqn);
    assert!(connect("tcp", "127.0.0.1", &nqn, HOST) && connected_disk(8 * MIB).starts_with("nvme"));
    disconnect();
}

#[test]
fn each_step_of_a_removal_that_fails_is_undone() {
    let guest = guest_with_port();
    guest.change("createNVMePort/2/127.0.0.1/tcp/4421");
    guest.disk(8);
    let nqn = export(&guest, &format!("rd0/all/{HOST}"));
    let subsystem = format!("subsystems/{nqn}");
    let steps = [
        "ports/1/subsystems".to_owned(),
        "ports/2/subsystems".to_owned(),
        format!("{subsystem}/namespaces/1/enable"),
        format!("{subsystem}/namespaces"),
        format!("{subsystem}/allowed_hosts"),
        "hosts".to_owned(),
        "subsystems".to_owned(),
    ];
    for step in steps {
        fails_at(&guest, &step, "removeNVMeTarget/rd0");
    }
    for step in ["hosts".to_owned(), format!("{subsystem}/allowed_hosts")] {
        fails_at(&guest, &step, &format!("denyNVMeHost/rd0/{HOST}"));
        fails_at(&guest, &step, &format!("allowNVMeHost/rd0/{STRANGER}"));
    }
    assert!(connect("tcp", "127.0.0.1", &nqn, HOST) && connected_disk(8 * MIB).starts_with("nvme"));
    disconnect();
    fails_at(&guest, "ports", "createNVMePort/3/127.0.0.1/tcp/4422");
    guest.change("removeNVMeTarget/rd0");
    fails_at(&guest, "ports", "removeNVMePort/1");
}

#[test]
fn what_a_killed_daemon_left_lets_nobody_in_who_is_not_meant() {
    let guest = guest_with_port();
    guest.disk(8);
    let nqn = export(&guest, "rd0/1");
    let serial = attribute(&format!("subsystems/{nqn}/attr_serial"));
    guest.change("removeNVMeTarget/rd0");
    sh(&format!(
        "cd {TREE}; mkdir subsystems/{nqn} hosts/{STRANGER}; ln -s {TREE}/hosts/{STRANGER} subsystems/{nqn}/allowed_hosts/{STRANGER}"
    ));
    export(&guest, &format!("rd0/1/{HOST}"));
    assert_eq!(names(&format!("{TREE}/subsystems/{nqn}/allowed_hosts")), [HOST]);
    assert_eq!(attribute(&format!("subsystems/{nqn}/attr_serial")), serial);
}

#[test]
fn a_target_of_our_name_that_others_made_is_never_taken_apart() {
    let guest = guest_with_port();
    guest.disk(8);
    let nqn = export(&guest, "rd0/1").replace("-rd0", "-rd5");
    guest.change("removeNVMeTarget/rd0");
    // rd5 does not exist; a target with its name exports real disks.
    sh(&format!(
        "cd {TREE}/subsystems; mkdir {nqn}; cd {nqn}/namespaces; for n in 1 2; do mkdir $n; done
         echo -n /dev/sda >1/device_path; echo -n /dev/sdb >2/device_path; echo 1 >1/enable; echo 1 >2/enable"
    ));
    let changes = [
        "removeNVMeTarget/rd5".to_owned(),
        format!("allowNVMeHost/rd5/{HOST}"),
        format!("denyNVMeHost/rd5/{HOST}"),
    ];
    guest.refuses_each(&changes, 409, &[&nqn]);
}

#[test]
fn an_export_survives_a_new_name_of_the_machine_and_can_be_ended() {
    let guest = guest_with_port();
    let before = sys("/proc/sys/kernel/hostname").expect("the name");
    guest.disk(8);
    let nqn = export(&guest, "rd0/1");
    put("/proc/sys/kernel/hostname", "renamed");
    guest.refuses("createNVMeTarget/rd0/1", 409, &["rd0", &nqn]);
    guest.change(&format!("allowNVMeHost/rd0/{HOST}"));
    guest.change("removeNVMeTarget/rd0");
    assert_eq!(tree(), ["1"]);
    assert!(export(&guest, "rd0/1").contains(":renamed-rd0"));
    guest.change("removeNVMeTarget/rd0");
    put("/proc/sys/kernel/hostname", &before);
}

#[test]
fn what_is_mounted_out_of_sight_is_not_exported() {
    let guest = guest_with_port();
    guest.disk(16);
    let _hidden = mounted_out_of_sight("rd0", "");
    guest.post("createNVMeTarget/rd0/1").failure(409, &["rd0", "mount namespace of sleep"]);
    assert_eq!(tree(), ["1"]);
}
