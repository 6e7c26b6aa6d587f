//! How the lists show NVMe targets that somebody made in configfs.

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

use crate::export;
use crate::support::kernel::{attribute, eventually, names, size, works};
use crate::support::{Guest, MIB, guest, sh, sys};

const TREE: &str = "/sys/kernel/config/nvmet";

fn guest_with_targets() -> Guest {
    let guest = guest();
    sh("modprobe -a configfs nvmet nvmet-tcp");
    if !works("mountpoint -q /sys/kernel/config") {
        sh("mount -t configfs none /sys/kernel/config");
    }
    guest
}

/// A shell script in the directory of the target.
fn configure(script: &str) {
    sh(&format!("set -e; cd {TREE}; {script}"));
}

/// A script that makes port 1 on the loopback.
const PORT: &str = "mkdir ports/1; cd ports/1; echo tcp >addr_trtype; echo ipv4 >addr_adrfam
    echo 127.0.0.1 >addr_traddr; echo 4420 >addr_trsvcid; cd ../..;";

/// Lets the address space of a process grow by so many bytes, or without end.
fn limit_growth(pid: u32, growth: Option<u64>) {
    let status = sys(&format!("/proc/{pid}/status")).expect("the process");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("its size");
    let size: u64 = size.trim().trim_end_matches(" kB").parse().expect("a number");
    let limit = Rlimit { current: growth.map(|growth| size * 1024 + growth), maximum: None };
    prlimit(Pid::from_raw(pid as i32), Resource::As, limit).expect("the limit");
}

#[test]
fn a_list_for_which_there_is_no_memory_is_refused_and_nothing_else_happens() {
    let mut guest = guest_with_targets();
    let pid = guest.daemon().pid();
    let each = |command: &str| configure(&format!("cd subsystems; seq 2000 | sed {command}"));
    each("'s:.*:nqn.& nqn.&/namespaces/1:' | xargs mkdir");
    limit_growth(pid, Some(1 << 20));
    for _ in 0..3 {
        guest.get("listAllNVMeTargets").failure(503, &["memory"]);
    }
    limit_growth(pid, None);
    let all = guest.read("listAllNVMeTargets");
    assert_eq!(all["targets"][0]["nvmet_targets"].as_array().map(Vec::len), Some(2000));
    each("'s:.*:nqn.&/namespaces/1 nqn.&:' | xargs rmdir");
}

#[test]
fn targets_are_listed_with_hosts_and_ports_in_both_shapes() {
    let guest = guest_with_targets();
    guest.disk(8);
    guest.disk(16);
    configure(&format!(
        "{PORT} mkdir ports/2 ports/10
         mkdir subsystems/nqn.b subsystems/nqn.a subsystems/empty
         for n in 10 2; do mkdir subsystems/nqn.b/namespaces/$n; done
         echo -n /dev/rd1 >subsystems/nqn.b/namespaces/10/device_path
         echo -n /dev/rd0 >subsystems/nqn.b/namespaces/2/device_path; echo 1 >subsystems/nqn.b/namespaces/2/enable
         mkdir subsystems/nqn.a/namespaces/1
         mkdir hosts/nqn.host2 hosts/nqn.host1
         echo 0 >subsystems/nqn.b/attr_allow_any_host; echo 1 >subsystems/nqn.a/attr_allow_any_host
         for host in nqn.host2 nqn.host1; do ln -s {TREE}/hosts/$host subsystems/nqn.b/allowed_hosts/$host; done
         for nqn in nqn.b nqn.a; do ln -s {TREE}/subsystems/$nqn ports/1/subsystems/$nqn; done"
    ));
    let port = json!({"port": 1, "address": "127.0.0.1", "protocol": "tcp", "service_id": "4420"});
    let serial = |nqn: &str| sys(&format!("{TREE}/subsystems/{nqn}/attr_serial"));
    let uuid = |namespace: &str| sys(&format!("{TREE}/subsystems/{namespace}/device_uuid"));
    let none = "00000000-0000-0000-0000-000000000000";
    let hosts = json!([{"host": "nqn.host1"}, {"host": "nqn.host2"}]);
    assert_eq!(
        guest.read("listAllNVMeTargets"),
        json!({"targets": [
            {"nvmet_targets": [
                {"nqn": "nqn.a", "namespace": 1, "device": "", "enabled": "false",
                 "any_host": true, "serial": serial("nqn.a"), "uuid": uuid("nqn.a/namespaces/1"), "nguid": none, "size": 0, "allowed_hosts": [], "assigned_ports": [port]},
                {"nqn": "nqn.b", "namespace": 2, "device": "/dev/rd0", "enabled": "true",
                 "any_host": false, "serial": serial("nqn.b"), "uuid": uuid("nqn.b/namespaces/2"), "nguid": none, "size": 8 * MIB, "allowed_hosts": hosts, "assigned_ports": [port]},
                {"nqn": "nqn.b", "namespace": 10, "device": "/dev/rd1", "enabled": "false",
                 "any_host": false, "serial": serial("nqn.b"), "uuid": uuid("nqn.b/namespaces/10"), "nguid": none, "size": 16 * MIB, "allowed_hosts": hosts, "assigned_ports": [port]},
            ]},
            {"nvmet_ports": [
                {"port": 1, "address": "127.0.0.1", "protocol": "tcp", "service_id": "4420", "nqn": "nqn.a"},
                {"port": 1, "address": "127.0.0.1", "protocol": "tcp", "service_id": "4420", "nqn": "nqn.b"},
            ]},
        ]})
    );
    let undefined = |port: u32| json!({"port": port, "address": "UNDEFINED", "protocol": "UNDEFINED", "service_id": "UNDEFINED"});
    assert_eq!(
        guest.read("listAllNVMePorts"),
        json!({"targets": [{"nvmet_ports": [port, undefined(2), undefined(10)]}]})
    );
}

#[test]
fn a_port_is_listed_with_what_it_has_so_far() {
    let guest = guest_with_targets();
    configure(
        "mkdir ports/7; echo rdma >ports/7/addr_trtype; mkdir ports/8; echo 10.0.0.1 >ports/8/addr_traddr",
    );
    assert_eq!(
        guest.read("listAllNVMePorts"),
        json!({"targets": [{"nvmet_ports": [
            {"port": 7, "address": "UNDEFINED", "protocol": "rdma", "service_id": "UNDEFINED"},
            {"port": 8, "address": "10.0.0.1", "protocol": "UNDEFINED", "service_id": "UNDEFINED"},
        ]}]})
    );
}

#[test]
fn an_initiator_sees_the_new_size_of_an_exported_disk() {
    let guest = guest_with_targets();
    guest.disk(16);
    let nqn = "nqn.2024-01.org.example:a";
    configure(&format!(
        "{PORT} mkdir subsystems/{nqn} subsystems/{nqn}/namespaces/1; echo 1 >subsystems/{nqn}/attr_allow_any_host
         echo -n /dev/rd0 >subsystems/{nqn}/namespaces/1/device_path; echo 1 >subsystems/{nqn}/namespaces/1/enable
         ln -s {TREE}/subsystems/{nqn} ports/1/subsystems/{nqn}"
    ));
    sh(&format!(
        "modprobe nvme-tcp; nvme connect -t tcp -a 127.0.0.1 -s 4420 -n {nqn} -q nqn.2024-01.org.example:host \
         -I 00000000-0000-0000-0000-000000000001"
    ));
    let disk =
        || names("/sys/block").into_iter().find(|name| name.starts_with("nvme") && !name.contains('c'));
    eventually("the initiator has the disk", || disk().and_then(|disk| size(&disk)) == Some(16 * MIB));
    let listed = guest.read("listAllResources")["resources"][1]["volumes"].clone();
    let is_listed = listed
        .as_array()
        .expect("disks")
        .iter()
        .any(|entry| Some(&entry["device"]) == disk().map(Into::into).as_ref());
    assert!(is_listed, "{listed}");
    guest.change("resizeRapidDisk/rd0/40");
    eventually("the initiator has the new size", || disk().and_then(|disk| size(&disk)) == Some(40 * MIB));
    // A connected disk cannot be made smaller.
    guest.refuses("resizeRapidDisk/rd0/20", 409, &["rd0", "namespace 1", nqn]);
    guest.refuses("removeRapidDisk/rd0", 409, &["rd0", "namespace 1", nqn]);
    sh("nvme disconnect-all");
    eventually("the initiator is gone", || disk().is_none());
    assert_eq!(sys(&format!("{TREE}/subsystems/{nqn}/namespaces/1/enable")).as_deref(), Some("1"));
}

#[test]
fn a_namespace_that_is_not_enabled_does_not_hinder_a_resize() {
    let guest = guest_with_targets();
    guest.disk(16);
    configure(
        "mkdir subsystems/nqn.a subsystems/nqn.a/namespaces/1; echo -n /dev/rd0 >subsystems/nqn.a/namespaces/1/device_path",
    );
    guest.change("resizeRapidDisk/rd0/24");
    assert_eq!(size("rd0"), Some(24 * MIB));
}

#[test]
fn a_disk_is_known_by_whatever_path_it_is_exported() {
    let guest = guest_with_targets();
    guest.disk(16);
    let dev = attribute("rd0", "dev").expect("a number").replace(':', " ");
    sh(&format!("ln -s /dev/rd0 '/tmp/test/link '; mknod /tmp/test/node b {dev}"));
    // A blank belongs to the name.
    for path in ["/tmp/test/link ", "/tmp/test/node"] {
        configure(&format!(
            "mkdir subsystems/nqn.a subsystems/nqn.a/namespaces/1
             cd subsystems/nqn.a/namespaces/1; echo -n '{path}' >device_path; echo 1 >enable"
        ));
        guest.refuses("removeRapidDisk/rd0", 409, &["rd0", "namespace 1 of nqn.a"]);
        configure(
            "echo 0 >subsystems/nqn.a/namespaces/1/enable; rmdir subsystems/nqn.a/namespaces/1 subsystems/nqn.a",
        );
    }
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn an_initiator_knows_an_exported_volume_again() {
    let guest = export::guest_with_port();
    let exported = |volume: &str, mib: u64| {
        let nqn = export::export(&guest, &format!("{volume}/1"));
        assert!(export::connect("tcp", "127.0.0.1", &nqn, export::HOST), "it does not connect");
        let disk = export::connected_disk(mib * MIB);
        let seen = ["uuid", "nguid"].map(|name| attribute(&disk, name).expect("an identity"));
        let listed = guest.read("listAllNVMeTargets")["targets"][0]["nvmet_targets"][0].clone();
        assert_eq!([&listed["uuid"], &listed["nguid"]], [&seen[0], &seen[1]]);
        export::disconnect();
        guest.change(&format!("removeNVMeTarget/{volume}"));
        seen
    };
    guest.disk(8);
    guest.disk(16);
    let first = exported("rd0", 8);
    assert_eq!(exported("rd0", 8), first);
    // It does not depend on the RAM disk's contents or size, as its NQN does not.
    guest.change("removeRapidDisk/rd0");
    guest.disk(24);
    assert_eq!(exported("rd0", 24), first);
    let other = exported("rd1", 16);
    assert!(first[0] != other[0] && first[1] != other[1], "{first:?} {other:?}");
}
