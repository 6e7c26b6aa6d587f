//! NVMe ports and targets that are made and removed over the API: what configfs then has, and
//! that the kernel's own initiator can use them.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::support::kernel::{State, eventually, names, put, size, works};
use crate::support::{Guest, MIB, assert_same_data, clean, guest, noise, read, sh, sys, write};

pub const TREE: &str = "/sys/kernel/config/nvmet";
pub const HOST: &str = "nqn.2024-01.org.example:host";
pub const STRANGER: &str = "nqn.2024-01.org.example:stranger";

/// Loads what exports need.
pub fn load_nvmet() {
    sh("modprobe -a configfs nvmet nvmet-tcp nvme-tcp");
    if !works("mountpoint -q /sys/kernel/config") {
        sh("mount -t configfs none /sys/kernel/config");
    }
}

pub fn guest_with_nvmet() -> Guest {
    let guest = guest();
    load_nvmet();
    guest
}

/// The same guest with port 1: TCP on the loopback.
pub fn guest_with_port() -> Guest {
    let guest = guest_with_nvmet();
    guest.change("createNVMePort/1/127.0.0.1/tcp");
    guest
}

/// Exports a volume and gives its NQN.
pub fn export(guest: &Guest, path: &str) -> String {
    let made = guest.change(&format!("createNVMeTarget/{path}"));
    made["nqn"].as_str().expect("the NQN").to_owned()
}

/// Connects this machine's initiator. Returns whether it could.
pub fn connect(transport: &str, address: &str, nqn: &str, host: &str) -> bool {
    works(&format!(
        "nvme connect -t {transport} -a {address} -s 4420 -n {nqn} -q {host} -I 00000000-0000-0000-0000-000000000001"
    ))
}

/// The name of the initiator's disk, if it has one.
fn initiator_disk() -> Option<String> {
    names("/sys/block").into_iter().find(|name| name.starts_with("nvme") && !name.contains('c'))
}

pub fn connected_disk(bytes: u64) -> String {
    eventually("the initiator has the disk", || initiator_disk().and_then(|disk| size(&disk)) == Some(bytes));
    initiator_disk().expect("the disk")
}

pub fn disconnect() {
    sh("nvme disconnect-all");
    eventually("the initiator is gone", || initiator_disk().is_none());
}

/// Everything in the tree, by name.
pub fn tree() -> Vec<String> {
    ["ports", "subsystems", "hosts"].iter().flat_map(|dir| names(&format!("{TREE}/{dir}"))).collect()
}

pub fn attribute(path: &str) -> Option<String> {
    sys(&format!("{TREE}/{path}"))
}

#[test]
fn a_port_is_made_as_asked_and_again_without_a_change() {
    let guest = guest_with_nvmet();
    let made = guest.change("createNVMePort/1/127.0.0.1/tcp");
    assert_eq!(made["port"], 1);
    assert_eq!(
        (&made["address"], &made["protocol"], &made["service_id"]),
        (&json!("127.0.0.1"), &json!("tcp"), &json!("4420"))
    );
    for (name, value) in [("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", "127.0.0.1"), ("trsvcid", "4420")]
    {
        assert_eq!(attribute(&format!("ports/1/addr_{name}")).as_deref(), Some(value), "{name}");
    }
    let before = State::now();
    guest.change("createNVMePort/1/127.0.0.1/tcp/4420");
    before.assert_unchanged("the same port again");
    for other in ["127.0.0.2/tcp", "127.0.0.1/rdma", "127.0.0.1/tcp/4421"] {
        guest.refuses(&format!("createNVMePort/1/{other}"), 409, &["port 1"]);
    }
    guest.change("createNVMePort/2/%3A%3A1/tcp/4421");
    assert_eq!(attribute("ports/2/addr_adrfam").as_deref(), Some("ipv6"));
    guest.change("createNVMePort/3/none/loop");
    assert_eq!(attribute("ports/3/addr_trtype").as_deref(), Some("loop"));
    let listed = guest.read("listAllNVMePorts")["targets"][0]["nvmet_ports"].clone();
    assert_eq!(
        listed,
        json!([
            {"port": 1, "address": "127.0.0.1", "protocol": "tcp", "service_id": "4420"},
            {"port": 2, "address": "::1", "protocol": "tcp", "service_id": "4421"},
            {"port": 3, "address": "UNDEFINED", "protocol": "loop", "service_id": "UNDEFINED"},
        ])
    );
    for port in 1..=3 {
        guest.change(&format!("removeNVMePort/{port}"));
    }
    assert_eq!(tree(), [""; 0]);
    guest.refuses("removeNVMePort/1", 404, &["port 1"]);
}

#[test]
fn a_port_takes_the_first_address_of_an_interface() {
    let guest = guest_with_nvmet();
    assert_eq!(guest.change("createNVMePort/1/lo/tcp")["address"], "127.0.0.1");
    assert_eq!(guest.change("createNVMePort/2/eth0/tcp")["address"], "10.0.2.15");
    // Without an IPv4 address an IPv6 one is taken, but no link-local one.
    sh("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra; ip addr flush dev eth0; ip -6 addr flush dev eth0");
    guest.refuses("createNVMePort/3/eth0/tcp", 409, &["eth0", "address"]);
    sh("ip -6 addr add fd00::15/64 dev eth0");
    eventually("the address can be used", || guest.post("createNVMePort/3/eth0/tcp").status == 200);
    assert_eq!(attribute("ports/3/addr_traddr").as_deref(), Some("fd00::15"));
    sh(
        "ip -6 addr del fd00::15/64 dev eth0; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2",
    );
    guest.refuses("createNVMePort/4/none-such/tcp", 404, &["none-such"]);
}

#[test]
fn a_port_in_the_place_of_another_is_refused_when_it_is_made() {
    let guest = guest_with_port();
    let taken = ["127.0.0.1/tcp", "127.0.0.1/tcp/4420", "0.0.0.0/tcp", "%3A%3A/tcp"];
    let requests = taken.map(|place| format!("createNVMePort/2/{place}"));
    guest.refuses_each(&requests, 409, &["port 1 listens at 127.0.0.1 service 4420"]);
    guest.change("createNVMePort/2/127.0.0.1/tcp/4421");
    guest.change("createNVMePort/3/127.0.0.2/tcp");
    guest.change("createNVMePort/4/%3A%3A1/tcp");
}

#[test]
fn a_port_0_that_others_made_is_a_port_like_any_other() {
    let guest = guest_with_nvmet();
    guest.refuses("createNVMePort/0/127.0.0.1/tcp", 400, &["not 0"]);
    sh(&format!(
        "mkdir {TREE}/ports/0; cd {TREE}/ports/0; echo tcp >addr_trtype; echo ipv4 >addr_adrfam; \
                 echo 127.0.0.1 >addr_traddr; echo 4420 >addr_trsvcid"
    ));
    guest.disk(8);
    let nqn = export(&guest, "rd0/0");
    assert_eq!(names(&format!("{TREE}/ports/0/subsystems")), [&*nqn]);
    guest.refuses("removeNVMePort/0", 409, &["port 0", &nqn]);
    guest.change("removeNVMeTarget/rd0/0");
    guest.change("removeNVMePort/0");
    assert_eq!(tree(), [""; 0]);
}

#[test]
fn a_port_that_cannot_be_is_refused() {
    let guest = guest_with_nvmet();
    guest.refuses_each(
        &["createNVMePort/1/192.0.2.1/tcp", "createNVMePort/1/2001:db8::1/rdma"],
        409,
        &["no address of this machine"],
    );
    let wrong = [
        "createNVMePort/0/lo/tcp",
        "createNVMePort/65536/lo/tcp",
        "createNVMePort/1x/lo/tcp",
        "createNVMePort/1/lo/fc",
        "createNVMePort/1/lo/tcp/0",
        "createNVMePort/1/a%2Fb/tcp",
        "createNVMePort/1/none/tcp",
        "createNVMePort/1/lo/loop",
        "removeNVMePort/x",
    ];
    guest.refuses_each(&wrong, 400, &[]);
}

#[test]
fn what_is_exported_is_found_and_used_by_an_initiator() {
    let guest = guest_with_port();
    guest.disk(32);
    let nqn = export(&guest, "rd0/1");
    assert!(nqn.starts_with("nqn.2021-06.org.rapiddisk:") && nqn.ends_with("-rd0"), "{nqn}");
    assert_eq!(attribute(&format!("subsystems/{nqn}/attr_model")).as_deref(), Some("RapidDisk"));
    assert!(sh("nvme discover -t tcp -a 127.0.0.1 -s 4420").contains(&nqn));
    assert!(connect("tcp", "127.0.0.1", &nqn, HOST), "it does not connect");
    let disk = connected_disk(32 * MIB);
    sh(&format!("mke2fs -q -F -t ext4 /dev/{disk}; mount -t ext4 /dev/{disk} /mnt"));
    let data = noise(7, 4 * MIB as usize);
    std::fs::write("/mnt/file", &data).expect("a file on the initiator's disk");
    sh("umount /mnt; echo 3 >/proc/sys/vm/drop_caches");
    sh(&format!("mount -t ext4 /dev/{disk} /mnt"));
    assert_same_data("what was written over NVMe/TCP", &read("/mnt/file", 0, data.len()), &data);
    sh("umount /mnt");
    // The disk is resized while the initiator is connected: neither side disconnects.
    guest.change("resizeRapidDisk/rd0/48");
    assert_eq!(connected_disk(48 * MIB), disk);
    let listed = guest.read("listAllNVMeTargets")["targets"][0]["nvmet_targets"][0].clone();
    assert_eq!((&listed["size"], &listed["any_host"]), (&json!(48 * MIB), &json!(true)));
    // An exported disk is in use.
    for change in ["removeRapidDisk/rd0", "flushRapidDisk/rd0", "createRapidDiskCache/rd0/sda/write-through"]
    {
        guest.refuses(change, 409, &["rd0", &nqn]);
    }
    guest.change("removeNVMeTarget/rd0");
    eventually("the initiator is cut off", || {
        initiator_disk().is_none_or(|disk| size(&disk) == Some(0)) || works("nvme disconnect-all")
    });
    guest.change("removeNVMePort/1");
    assert_eq!(tree(), [""; 0]);
    // The data is still on the disk.
    sh("mount -t ext4 /dev/rd0 /mnt");
    assert_same_data("what is on the disk", &read("/mnt/file", 0, data.len()), &data);
    sh("umount /mnt");
    guest.change("removeRapidDisk/rd0");
}

#[test]
fn the_same_export_again_changes_nothing_and_its_serial_number_stays() {
    let guest = guest_with_port();
    guest.change("createNVMePort/2/127.0.0.1/tcp/4421");
    guest.disk(8);
    guest.disk(8);
    let nqn = export(&guest, "rd0/1");
    let serial = attribute(&format!("subsystems/{nqn}/attr_serial"));
    let before = State::now();
    assert_eq!(export(&guest, "rd0/1"), nqn);
    before.assert_unchanged("the same export again");
    // Another port is added.
    export(&guest, "rd0/all");
    assert_eq!(names(&format!("{TREE}/ports/2/subsystems")), [&*nqn]);
    guest.refuses("removeNVMePort/2", 409, &["port 2", &nqn]);
    guest.change("removeNVMeTarget/rd0/2");
    guest.refuses("removeNVMeTarget/rd0/2", 404, &["rd0", "port 2"]);
    assert_eq!(names(&format!("{TREE}/subsystems")), [&*nqn]);
    // The target is removed together with its last port.
    guest.change("removeNVMeTarget/rd0/1");
    assert_eq!(names(&format!("{TREE}/subsystems")), [""; 0]);
    guest.refuses("removeNVMeTarget/rd0", 404, &["rd0"]);
    assert_eq!(export(&guest, "rd0/1"), nqn);
    assert_eq!(attribute(&format!("subsystems/{nqn}/attr_serial")), serial);
    let other = export(&guest, "rd1/1");
    assert_ne!(attribute(&format!("subsystems/{other}/attr_serial")), serial);
}

#[test]
fn only_allowed_hosts_connect_and_the_last_denial_leaves_it_closed() {
    let guest = guest_with_port();
    guest.disk(8);
    let nqn = export(&guest, &format!("rd0/1/{HOST}"));
    let hosts = || names(&format!("{TREE}/subsystems/{nqn}/allowed_hosts"));
    let any = || attribute(&format!("subsystems/{nqn}/attr_allow_any_host"));
    let may = |host: &str| {
        let may = connect("tcp", "127.0.0.1", &nqn, host);
        if may {
            connected_disk(8 * MIB);
            disconnect();
        }
        may
    };
    assert_eq!((hosts(), any().as_deref()), (vec![HOST.to_owned()], Some("0")));
    assert!(may(HOST) && !may(STRANGER));
    // An export to any host would be a different one.
    guest.refuses("createNVMeTarget/rd0/1", 409, &[&nqn]);
    export(&guest, &format!("rd0/1/{STRANGER}"));
    assert!(may(HOST) && may(STRANGER));
    guest.change(&format!("denyNVMeHost/rd0/{HOST}"));
    assert!(!may(HOST) && may(STRANGER));
    assert_eq!(names(&format!("{TREE}/hosts")), [STRANGER]);
    guest.change(&format!("denyNVMeHost/rd0/{STRANGER}"));
    assert_eq!((hosts(), any().as_deref()), (vec![], Some("0")));
    assert!(!may(HOST) && !may(STRANGER));
    let before = State::now();
    guest.change(&format!("denyNVMeHost/rd0/{STRANGER}"));
    before.assert_unchanged("the same denial again");
    guest.change(&format!("allowNVMeHost/rd0/{HOST}"));
    assert!(may(HOST) && !may(STRANGER));
    guest.change("removeNVMeTarget/rd0");
    assert_eq!(tree(), ["1"], "the hosts went with the target");
    // The first host that is allowed closes a target that was open to any host.
    export(&guest, "rd0/1");
    assert!(may(STRANGER));
    guest.refuses(&format!("denyNVMeHost/rd0/{STRANGER}"), 409, &["any host"]);
    guest.change(&format!("allowNVMeHost/rd0/{HOST}"));
    assert!(may(HOST) && !may(STRANGER));
    guest.refuses(&format!("allowNVMeHost/rd1/{HOST}"), 404, &["rd1"]);
    guest.refuses(&format!("allowNVMeHost/rd0/{}", "n".repeat(224)), 400, &["NQN"]);
}

#[test]
fn a_host_that_another_target_allows_keeps_its_entry() {
    let guest = guest_with_port();
    for disk in 0..2 {
        guest.disk(8);
        export(&guest, &format!("rd{disk}/1/{HOST}"));
    }
    guest.change("removeNVMeTarget/rd0");
    assert_eq!(names(&format!("{TREE}/hosts")), [HOST]);
    guest.change("removeNVMeTarget/rd1");
    assert_eq!(names(&format!("{TREE}/hosts")), [""; 0]);
}

#[test]
fn a_failure_at_any_step_leaves_the_tree_as_it_was() {
    let guest = guest_with_port();
    guest.disk(8);
    // Another program listens at the port's address: the first link fails.
    let taken = TcpListener::bind("127.0.0.1:4420").expect("the port");
    guest.refuses_each(
        &["createNVMeTarget/rd0/1".to_owned(), format!("createNVMeTarget/rd0/1/{HOST}")],
        409,
        &["port 1", "4420"],
    );
    // The second of two links fails, and the first is undone.
    guest.change("createNVMePort/2/127.0.0.1/tcp/4499");
    sh(&format!(
        "mkdir {TREE}/ports/0; cd {TREE}/ports/0; echo tcp >addr_trtype; echo ipv4 >addr_adrfam; \
                 echo 127.0.0.1 >addr_traddr; echo 4498 >addr_trsvcid"
    ));
    guest.refuses(&format!("createNVMeTarget/rd0/all/{HOST}"), 409, &["port 1", "4420"]);
    drop(taken);
    // An address that this machine does not have.
    sh(&format!(
        "mkdir {TREE}/ports/9; cd {TREE}/ports/9; echo tcp >addr_trtype; echo ipv4 >addr_adrfam; \
                 echo 192.0.2.1 >addr_traddr; echo 4420 >addr_trsvcid"
    ));
    guest.refuses("createNVMeTarget/rd0/9", 409, &["port 9", "192.0.2.1"]);
    // A port without a transport.
    sh(&format!("mkdir {TREE}/ports/8"));
    guest.refuses("createNVMeTarget/rd0/8", 409, &["port 8"]);
    // A transport that is not loaded, and that the kernel cannot load.
    let helper = sys("/proc/sys/kernel/modprobe").expect("the kernel's helper");
    put("/proc/sys/kernel/modprobe", "/nowhere");
    guest.change("createNVMePort/7/none/loop");
    guest.refuses("createNVMeTarget/rd0/7", 503, &["modprobe nvme-loop"]);
    put("/proc/sys/kernel/modprobe", &helper);
    // A host is added to an export, and the new port fails: the host is removed again.
    let nqn = export(&guest, &format!("rd0/1/{HOST}"));
    guest.refuses(&format!("createNVMeTarget/rd0/9/{STRANGER}"), 409, &["port 9"]);
    assert_eq!(names(&format!("{TREE}/hosts")), [HOST]);
    // A target that was open to any host is open again afterwards.
    guest.change("removeNVMeTarget/rd0");
    export(&guest, "rd0/1");
    guest.refuses(&format!("createNVMeTarget/rd0/9/{HOST}"), 409, &["port 9"]);
    assert_eq!(attribute(&format!("subsystems/{nqn}/attr_allow_any_host")).as_deref(), Some("1"));
    guest.refuses("createNVMeTarget/rd0/77", 404, &["port 77"]);
    guest.refuses("createNVMeTarget/rd9/1", 404, &["rd9"]);
}

#[test]
fn what_is_used_otherwise_is_not_exported() {
    let guest = guest_with_port();
    guest.disk(16);
    sh("mke2fs -q -F /dev/rd0; mount -t ext4 /dev/rd0 /mnt");
    // The disk is not compared, as the mounted file system may write to it.
    guest.post("createNVMeTarget/rd0/1").failure(409, &["rd0", "/mnt"]);
    assert_eq!(tree(), ["1"]);
    sh("umount /mnt; mount -t ext4 -o ro /dev/rd0 /mnt");
    guest.refuses("createNVMeTarget/rd0/1", 409, &["rd0", "/mnt"]);
    sh("umount /mnt");
    guest.change("lockRapidDisk/rd0");
    guest.refuses("createNVMeTarget/rd0/1", 409, &["rd0", "locked"]);
    guest.change("unlockRapidDisk/rd0");
    sh(&format!(
        "mkdir {TREE}/subsystems/nqn.other {TREE}/subsystems/nqn.other/namespaces/3; \
                 cd {TREE}/subsystems/nqn.other/namespaces/3; echo -n /dev/rd0 >device_path; echo 1 >enable"
    ));
    guest.refuses("createNVMeTarget/rd0/1", 409, &["rd0", "namespace 3 of nqn.other"]);
    clean::exports();
    guest.change("createNVMePort/1/127.0.0.1/tcp");
    guest.disk(16);
    let cache = guest.cache("rd0", "sda", "write-through");
    guest.refuses("createNVMeTarget/rd0/1", 409, &["rd0", &cache]);
    // A cache is a volume, too.
    let nqn = export(&guest, &format!("{cache}/1"));
    assert!(nqn.ends_with(&cache), "{nqn}");
    guest.refuses(&format!("removeRapidDiskCache/{cache}"), 409, &[&cache, &nqn]);
    assert!(connect("tcp", "127.0.0.1", &nqn, HOST));
    let disk = connected_disk(64 * MIB);
    let data = noise(3, MIB as usize);
    write(&format!("/dev/{disk}"), 0, &data);
    disconnect();
    guest.change(&format!("removeNVMeTarget/{cache}"));
    guest.change(&format!("removeRapidDiskCache/{cache}"));
    assert_same_data("what was written through export and cache", &read("/dev/sda", 0, data.len()), &data);
}

#[test]
fn what_others_built_is_respected() {
    let guest = guest_with_port();
    guest.disk(8);
    guest.disk(8);
    let nqn = export(&guest, "rd0/1");
    guest.change("removeNVMeTarget/rd0");
    // A target with our name and another device.
    sh(&format!(
        "mkdir {TREE}/subsystems/{nqn} {TREE}/subsystems/{nqn}/namespaces/1; \
                 echo -n /dev/rd1 >{TREE}/subsystems/{nqn}/namespaces/1/device_path"
    ));
    guest.refuses_each(&["createNVMeTarget/rd0/1", "removeNVMeTarget/rd0"], 409, &[&nqn]);
    clean::exports();
    guest.change("createNVMePort/1/127.0.0.1/tcp");
    // A target that a killed daemon left incomplete is completed.
    for step in ["", "/namespaces/1"] {
        sh(&format!("mkdir -p {TREE}/subsystems/{nqn}{step}"));
        export(&guest, "rd0/1");
        assert_eq!(attribute(&format!("subsystems/{nqn}/namespaces/1/enable")).as_deref(), Some("1"));
        guest.change("removeNVMeTarget/rd0");
    }
    assert_eq!(tree(), ["1"]);
}

#[test]
fn without_the_kernels_part_each_change_says_what_to_load() {
    let guest = crate::support::guest_after(&[], || {
        sh(&format!("modprobe -a {}", clean::modules()));
    });
    guest.disk(8);
    let changes = [
        "createNVMePort/1/lo/tcp",
        "removeNVMePort/1",
        "createNVMeTarget/rd0/1",
        "removeNVMeTarget/rd0",
        "allowNVMeHost/rd0/nqn.a",
        "denyNVMeHost/rd0/nqn.a",
    ];
    guest.refuses_each(&changes, 503, &["configfs", "mount"]);
    sh("modprobe configfs; mount -t configfs none /sys/kernel/config");
    guest.refuses_each(&changes, 503, &["modprobe nvmet"]);
    sh("modprobe nvmet");
    guest.change("createNVMePort/1/lo/tcp");
}

#[test]
fn rdma_over_a_soft_device_works_the_same_way() {
    let guest = guest_with_nvmet();
    sh("modprobe -a rdma_rxe nvmet-rdma nvme-rdma");
    sh("rdma link add rxe0 type rxe netdev eth0");
    guest.disk(16);
    guest.change("createNVMePort/5/eth0/rdma");
    let nqn = export(&guest, "rd0/5");
    assert!(connect("rdma", "10.0.2.15", &nqn, HOST), "it does not connect");
    let disk = connected_disk(16 * MIB);
    let data = noise(5, MIB as usize);
    write(&format!("/dev/{disk}"), 0, &data);
    disconnect();
    assert_same_data("what was written over RDMA", &read("/dev/rd0", 0, data.len()), &data);
    guest.change("removeNVMeTarget/rd0");
    guest.change("removeNVMePort/5");
    sh("rdma link delete rxe0");
}

#[test]
fn fifty_targets_on_four_ports_from_eight_clients_leave_nothing_behind() {
    let guest = guest_with_nvmet();
    for port in 1..=4 {
        guest.change(&format!("createNVMePort/{port}/127.0.0.1/tcp/{}", 4420 + port));
    }
    for _ in 0..50 {
        guest.disk(1);
    }
    let client = *guest;
    let in_parallel = |path: &(dyn Fn(usize) -> String + Sync)| {
        std::thread::scope(|scope| {
            for worker in 0..8 {
                scope.spawn(move || {
                    for disk in (worker..50).step_by(8) {
                        client.change_when_free(&path(disk)).success();
                    }
                });
            }
        });
    };
    in_parallel(&|disk| match disk % 2 {
        0 => format!("createNVMeTarget/rd{disk}/all/{HOST}"),
        _ => format!("createNVMeTarget/rd{disk}/{}", disk % 4 + 1),
    });
    let listed = guest.read("listAllNVMeTargets")["targets"][0]["nvmet_targets"].clone();
    let listed = listed.as_array().expect("targets");
    assert_eq!(listed.len(), 50);
    let ports = |target: &Value| target["assigned_ports"].as_array().expect("ports").len();
    assert!(
        listed.iter().all(|target| target["enabled"] == "true" && [1, 4].contains(&ports(target))),
        "{listed:?}"
    );
    assert_eq!(names(&format!("{TREE}/subsystems")).len(), 50);
    in_parallel(&|disk| format!("removeNVMeTarget/rd{disk}"));
    in_parallel(&|disk| format!("removeRapidDisk/rd{disk}"));
    for port in 1..=4 {
        guest.change(&format!("removeNVMePort/{port}"));
    }
    assert_eq!(tree(), [""; 0]);
}
