//! Requests that are malformed, or that name something that does not exist.

use crate::support::{Client, guest};

/// Each endpoint with parameters that are well-formed, and its method.
const ENDPOINTS: [(&str, &str); 14] = [
    ("GET", "checkServiceStatus"),
    ("GET", "listAllResources"),
    ("GET", "listRapidDiskVolumes"),
    ("POST", "createRapidDisk/8"),
    ("POST", "resizeRapidDisk/rd0/8"),
    ("POST", "flushRapidDisk/rd0"),
    ("POST", "removeRapidDisk/rd0"),
    ("POST", "createRapidDiskCache/rd0/sda/write-through"),
    ("POST", "removeRapidDiskCache/rc-wt_sda"),
    ("GET", "showRapidDiskCacheStats/rc-wt_sda"),
    ("POST", "lockRapidDisk/rd0"),
    ("POST", "unlockRapidDisk/rd0"),
    ("GET", "listAllNVMeTargets"),
    ("GET", "listAllNVMePorts"),
];

#[test]
fn the_wrong_method_is_refused_with_the_right_one() {
    let guest = guest();
    let before = crate::support::State::now();
    for (method, path) in ENDPOINTS {
        let others = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"];
        let reads = method == "GET";
        let wrong = others
            .into_iter()
            .filter(|&other| if reads { !["GET", "HEAD"].contains(&other) } else { other != "POST" });
        for other in wrong {
            let reply = guest.request(other, &format!("/v1/{path}"));
            assert_eq!(reply.status, 405, "{reply:?}");
            assert_eq!(reply.field("allow"), Some(if reads { "GET, HEAD" } else { "POST" }), "{reply:?}");
            if other != "HEAD" {
                reply.failure(405, &[]);
            }
        }
    }
    before.assert_unchanged("wrong methods");
}

#[test]
fn head_is_answered_like_get_without_the_body() {
    let guest = guest();
    crate::support::sh(
        "modprobe -a configfs nvmet; mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config",
    );
    guest.disk(8);
    guest.cache("rd0", "sda", "write-through");
    for (_, path) in ENDPOINTS.iter().filter(|(method, _)| *method == "GET") {
        let reply = guest.request("HEAD", &format!("/v1/{path}"));
        assert_eq!((reply.status, reply.text.as_str()), (200, ""), "{reply:?}");
        assert_eq!(reply.field("content-type"), Some("application/json"), "{reply:?}");
        let length: usize =
            reply.field("content-length").and_then(|text| text.parse().ok()).expect("a length");
        assert!(length > 20, "{reply:?}");
    }
}

#[test]
fn other_paths_do_not_exist() {
    let guest = guest();
    let before = crate::support::State::now();
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/V1/checkServiceStatus",
        "/v1/checkServiceStatus/",
        "/v2/createRapidDisk/8",
    ] {
        for method in ["GET", "POST"] {
            guest.request(method, path).failure(404, &[]);
        }
    }
    for path in [
        "createRapidDisk",
        "createRapidDisk/8/9",
        "resizeRapidDisk/rd0",
        "removeRapidDisk//dev/rd0",
        "createRapidDiskCache/rd0/sda",
    ] {
        guest.post(path).failure(404, &[]);
    }
    before.assert_unchanged("unknown paths");
}

#[test]
fn wrong_sizes_are_refused() {
    let guest = guest();
    guest.disk(8);
    let before = crate::support::State::now();
    let sizes = [
        "0", "00", "-5", "+5", "abc", "12abc", "1.5", "1e3", "0x10", "64K", "64KiB", "64MB", "64m", "M",
        "%20", "8%20", "%208", "8%00", "8%0A", "%D9%A3", "8;9", "0G", "8MM", "", "--8", "8-",
    ];
    for size in sizes {
        guest.post(&format!("createRapidDisk/{size}")).failure(400, &[]);
        guest.post(&format!("resizeRapidDisk/rd0/{size}")).failure(400, &[]);
    }
    // Malformed.
    for size in ["8%", "8%2", "%zz", "%ff"] {
        guest.post(&format!("createRapidDisk/{size}")).failure(400, &["percent"]);
    }
    before.assert_unchanged("wrong sizes");
}

#[test]
fn wrong_names_are_refused() {
    let guest = guest();
    guest.disk(8);
    let before = crate::support::State::now();
    let with_disk: [fn(&Client, &str) -> crate::support::Reply; 6] = [
        |client, disk| client.post(&format!("removeRapidDisk/{disk}")),
        |client, disk| client.post(&format!("flushRapidDisk/{disk}")),
        |client, disk| client.post(&format!("lockRapidDisk/{disk}")),
        |client, disk| client.post(&format!("unlockRapidDisk/{disk}")),
        |client, disk| client.post(&format!("resizeRapidDisk/{disk}/16")),
        |client, disk| client.post(&format!("createRapidDiskCache/{disk}/sda/write-through")),
    ];
    let names = [
        "sda",
        "rd",
        "rd00",
        "rd01",
        "rd-1",
        "RD0",
        "rd0x",
        "rd0%20",
        "%20rd0",
        "rd0%00",
        "%2Fdev%2Frd0",
        "..%2Frd0",
        "rd0%2F..",
        "rd4294967296",
        "ram0",
        "dm-0",
        "rd0%0Ark",
    ];
    for ask in with_disk {
        names.iter().for_each(|name| ask(&guest, name).failure(400, &[]));
        ask(&guest, "rd7").failure(404, &["rd7"]);
        ask(&guest, "rd4294967295").failure(404, &["rd4294967295"]);
    }
    let sources =
        ["%2Fdev%2Fsda", "..%2Fdev%2Fsda", "mapper%2F..%2Fsda", "sda%2F", "sd%00a", ".", "..", "a%0Ab", ""];
    for source in sources {
        guest.post(&format!("createRapidDiskCache/rd0/{source}/write-through")).failure(400, &[]);
    }
    // Names that a device can have.
    for source in ["sda%20", "mapper%252Fsda", "%C3%A9", "a%5Cx20b"] {
        guest
            .post(&format!("createRapidDiskCache/rd0/{source}/write-through"))
            .failure(404, &["no block device"]);
    }
    for policy in ["wt", "Write-Through", "writethrough", "write_through", "0", "none", ""] {
        guest
            .post(&format!("createRapidDiskCache/rd0/sda/{policy}"))
            .failure(400, &["write-through", "writeback"]);
    }
    for cache in
        ["rd0", "sda", "rc-wt_", "rc-xx_sda", "rc-wt_a%2Fb", "rc-wt_a%20b", "control", "..", "rc-wt_%0A"]
    {
        guest.post(&format!("removeRapidDiskCache/{cache}")).failure(400, &[]);
        guest.get(&format!("showRapidDiskCacheStats/{cache}")).failure(400, &[]);
    }
    for cache in ["rc-wt_sda", "rc-wa_nothing", "rc-wb_sda"] {
        guest.post(&format!("removeRapidDiskCache/{cache}")).failure(404, &[cache]);
        guest.get(&format!("showRapidDiskCacheStats/{cache}")).failure(404, &[cache]);
    }
    before.assert_unchanged("wrong names");
}

#[test]
fn a_path_longer_than_any_name_is_refused_and_costs_nothing() {
    let guest = guest();
    let long = "x".repeat(3000);
    for path in [format!("removeRapidDisk/{long}"), format!("createRapidDisk/{}", "9".repeat(3000)), long] {
        guest.post(&path).failure(414, &[]);
        guest.read("checkServiceStatus");
    }
    let many = "9".repeat(1000);
    guest.post(&format!("createRapidDisk/{many}")).failure(507, &[]);
}
