//! What each call answers, as the specification says it: the objects in the answers, and for each call its
//! object, the codes with which it refuses, and an example.

/// What a call answers.
pub struct Answer {
    /// The name of the object in the answer 200: one of [`SCHEMAS`].
    pub schema: &'static str,
    /// The codes with which the call itself refuses, in ascending order. [`CODES`](super::errors::CODES) has
    /// those that any request may get.
    pub refused: &'static [u16],
    /// An answer 200, in JSON.
    pub example: &'static str,
}

/// The objects by their names, and the fields of each: a name and what it holds, separated by commas.
///
/// | | |
/// | --- | --- |
/// | `NAME? …` | the field may be missing |
/// | `* …` | any other fields; this is the last one |
/// | `text`, `texts` | a text, a list of texts |
/// | `count`, `flag`, `object` | a number from 0 on, a truth value, any object |
/// | `text/null`, `number/null` | what it says, or null |
/// | `one:A`, `one:A/B` | one of these texts |
/// | `list:A` | a list of such objects |
/// | `pair:A/B` | a list of these two objects |
pub static SCHEMAS: &[(&str, &str)] = &[
    ("Failed", "message text, status one:Failed"),
    ("Done", "message text, status one:Success"),
    ("MadeDevice", "device text, message text, status one:Success"),
    ("RemovedCache", "lost_blocks? count, message text, status one:Success"),
    (
        "MadePort",
        "port count, address text, protocol text, service_id text, message text, status one:Success",
    ),
    ("Exported", "nqn text, message text, status one:Success"),
    (
        "Status",
        "status one:OK, version text, ram_driver text/null, ram_drivers texts, missing_ram_drivers list:MissingDriver, \
         cache_driver text/null, cache_drivers texts, policies texts, warning? text, memory_available? count, \
         memory_promised? count",
    ),
    ("MissingDriver", "driver text, lacks text"),
    ("Specification", "openapi text, info object, paths object"),
    ("Resources", "resources pair:MemoryList/DiskList"),
    ("MemoryList", "memory list:Memory"),
    ("Memory", "mem_total count, mem_free count"),
    ("DiskList", "volumes list:Disk"),
    ("Disk", "device text, size count, vendor text, model text"),
    ("Volumes", "volumes pair:RamDiskList/CacheList"),
    ("RamDiskList", "rapiddisk list:RamDisk"),
    (
        "RamDisk",
        "device text, size count, usage count, usage_measured flag, status one:locked/unlocked, driver text, \
         fault? text, stored? count, ratio? number/null, limit? count, algorithm? text",
    ),
    ("CacheList", "rapiddisk_cache list:Cache"),
    (
        "Cache",
        "device text, cache text, source text, mode one:write-through/write-around/writeback, driver text",
    ),
    ("Statistics", "statistics list:CacheStatistics"),
    (
        "CacheStatistics",
        "cache_stats list:Counters, not_counted? texts, metadata_mode? one:ro/rw, needs_check? flag",
    ),
    ("Counters", "device text, * count"),
    ("Targets", "targets pair:TargetList/OfferList"),
    ("TargetList", "nvmet_targets list:Target"),
    (
        "Target",
        "nqn text, namespace count, device text, size count, enabled one:true/false, serial text, uuid? text, \
         nguid? text, any_host flag, allowed_hosts list:Host, assigned_ports list:Port, controllers? count",
    ),
    ("Host", "host text"),
    ("OfferList", "nvmet_ports list:Offer"),
    ("Offer", "port count, address text, protocol text, service_id text, nqn text"),
    ("Ports", "targets list:PortList"),
    ("PortList", "nvmet_ports list:Port"),
    ("Port", "port count, address text, protocol text, service_id text"),
];

/// `checkServiceStatus`.
pub static STATUS: Answer = Answer {
    schema: "Status",
    refused: &[],
    example: concat!(
        r#"{"status":"OK","version":""#,
        env!("CARGO_PKG_VERSION"),
        r#"","ram_driver":"rapiddisk","ram_drivers":["rapiddisk","loop"],"missing_ram_drivers":[{"driver":"brd","#,
        r#""lacks":"the kernel module brd is not loaded; load it with: modprobe brd rd_nr=0 rd_size=17179869184"}],"#,
        r#""cache_driver":"rapiddisk-cache","cache_drivers":["rapiddisk-cache","dm-writecache"],"#,
        r#""policies":["write-through","write-around","writeback"]}"#
    ),
};

/// `openapi.json`.
pub static SPECIFICATION: Answer = Answer {
    schema: "Specification",
    refused: &[],
    example: concat!(
        r#"{"openapi":"3.1.0","info":{"title":"rapiddiskd","version":""#,
        env!("CARGO_PKG_VERSION"),
        r#""},"paths":{}}"#
    ),
};

/// `listAllResources`.
pub static RESOURCES: Answer = Answer {
    schema: "Resources",
    refused: &[],
    example: r#"{"resources":[{"memory":[{"mem_total":2084130816,"mem_free":229003264}]},{"volumes":[{"device":"sda","size":26843545600,"vendor":"ATA","model":"VBOX"}]}]}"#,
};

/// `listRapidDiskVolumes`.
pub static VOLUMES: Answer = Answer {
    schema: "Volumes",
    refused: &[],
    example: concat!(
        r#"{"volumes":[{"rapiddisk":[{"device":"rd0","size":67108864,"usage":65536,"usage_measured":true,"#,
        r#""status":"unlocked","driver":"loop"},{"device":"rd1","size":67108864,"usage":4096,"usage_measured":true,"#,
        r#""status":"locked","driver":"loop"}]},{"rapiddisk_cache":[{"device":"rc-wa_loop7","cache":"rd0","#,
        r#""source":"loop7","mode":"write-around","driver":"rapiddisk-cache"}]}]}"#
    ),
};

/// `createRapidDisk`.
pub static CREATE_DISK: Answer = Answer {
    schema: "MadeDevice",
    refused: &[400, 409, 503, 507],
    example: r#"{"device":"rd0","message":"rd0 has 128 MiB","status":"Success"}"#,
};

/// `resizeRapidDisk`.
pub static RESIZE_DISK: Answer = Answer {
    schema: "Done",
    refused: &[404, 409, 507],
    example: r#"{"message":"rd0 has 1024 MiB now","status":"Success"}"#,
};

/// `flushRapidDisk`.
pub static FLUSH_DISK: Answer = Answer {
    schema: "Done",
    refused: &[404, 409],
    example: r#"{"message":"rd0 is empty","status":"Success"}"#,
};

/// `removeRapidDisk`.
pub static REMOVE_DISK: Answer = Answer {
    schema: "Done",
    refused: &[404, 409],
    example: r#"{"message":"rd0 is removed","status":"Success"}"#,
};

/// `lockRapidDisk`.
pub static LOCK_DISK: Answer = Answer {
    schema: "Done",
    refused: &[404, 409],
    example: r#"{"message":"rd0 is read-only","status":"Success"}"#,
};

/// `unlockRapidDisk`.
pub static UNLOCK_DISK: Answer = Answer {
    schema: "Done",
    refused: &[404],
    example: r#"{"message":"rd0 is read-write","status":"Success"}"#,
};

/// `createRapidDiskCache`.
pub static CREATE_CACHE: Answer = Answer {
    schema: "MadeDevice",
    refused: &[400, 404, 409, 503],
    example: r#"{"device":"rc-wb_sdb","message":"rd0 caches sdb (dm-writecache, blocks of 4 KiB); use it as /dev/mapper/rc-wb_sdb","status":"Success"}"#,
};

/// `removeRapidDiskCache`.
pub static REMOVE_CACHE: Answer = Answer {
    schema: "RemovedCache",
    refused: &[404, 409, 500],
    example: r#"{"message":"rc-wb_sdb is removed","status":"Success"}"#,
};

/// `showRapidDiskCacheStats`.
pub static STATISTICS: Answer = Answer {
    schema: "Statistics",
    refused: &[404, 500, 503],
    example: concat!(
        r#"{"statistics":[{"cache_stats":[{"device":"rc-wt_sdb","reads":527,"writes":1,"cache_hits":264,"#,
        r#""replacement":0,"write_replacement":0,"read_invalidates":1,"write_invalidates":1,"uncached_reads":1,"#,
        r#""uncached_writes":0,"disk_reads":263,"disk_writes":1,"cache_reads":264,"cache_writes":263}]}]}"#
    ),
};

/// `listAllNVMeTargets`.
pub static TARGETS: Answer = Answer {
    schema: "Targets",
    refused: &[],
    example: concat!(
        r#"{"targets":[{"nvmet_targets":[{"nqn":"nqn.2021-06.org.rapiddisk:box-rd1","namespace":1,"#,
        r#""device":"/dev/rd1","size":67108864,"enabled":"true","serial":"6486d0f0dfcb75b6","#,
        r#""uuid":"9822e8cb-97c5-8291-a615-b2b6043e58b6","nguid":"9822e8cb-97c5-8291-a615-b2b6043e58b6","#,
        r#""any_host":false,"allowed_hosts":[{"host":"nqn.2014-08.org.nvmexpress:uuid:8a2f4b10-6c1d-4e53-9b7a-"#,
        r#"d05c3e91f264"}],"assigned_ports":[{"port":1,"address":"10.0.0.185","protocol":"tcp","#,
        r#""service_id":"4420"}],"controllers":2}]},{"nvmet_ports":[{"port":1,"address":"10.0.0.185","#,
        r#""protocol":"tcp","service_id":"4420","nqn":"nqn.2021-06.org.rapiddisk:box-rd1"}]}]}"#
    ),
};

/// `listAllNVMePorts`.
pub static PORTS: Answer = Answer {
    schema: "Ports",
    refused: &[],
    example: r#"{"targets":[{"nvmet_ports":[{"port":1,"address":"10.0.0.185","protocol":"tcp","service_id":"4420"}]}]}"#,
};

/// `createNVMePort`.
pub static CREATE_PORT: Answer = Answer {
    schema: "MadePort",
    refused: &[400, 404, 409],
    example: r#"{"port":1,"address":"10.0.0.185","protocol":"tcp","service_id":"4420","message":"port 1 is ready for targets","status":"Success"}"#,
};

/// `removeNVMePort`.
pub static REMOVE_PORT: Answer = Answer {
    schema: "Done",
    refused: &[404, 409],
    example: r#"{"message":"port 1 is removed","status":"Success"}"#,
};

/// `createNVMeTarget`.
pub static CREATE_TARGET: Answer = Answer {
    schema: "Exported",
    refused: &[404, 409, 503],
    example: r#"{"nqn":"nqn.2021-06.org.rapiddisk:box-rd0","message":"rd0 is exported as nqn.2021-06.org.rapiddisk:box-rd0","status":"Success"}"#,
};

/// `removeNVMeTarget`.
pub static REMOVE_TARGET: Answer = Answer {
    schema: "Done",
    refused: &[404, 409],
    example: r#"{"message":"rd0 is not exported any more","status":"Success"}"#,
};

/// `allowNVMeHost`.
pub static ALLOW_HOST: Answer = Answer {
    schema: "Exported",
    refused: &[404, 409],
    example: r#"{"nqn":"nqn.2021-06.org.rapiddisk:box-rd0","message":"nqn.2014-08.org.nvmexpress:uuid:8a2f4b10-6c1d-4e53-9b7a-d05c3e91f264 may connect to rd0","status":"Success"}"#,
};

/// `denyNVMeHost`.
pub static DENY_HOST: Answer = Answer {
    schema: "Exported",
    refused: &[404, 409],
    example: r#"{"nqn":"nqn.2021-06.org.rapiddisk:box-rd0","message":"nqn.2014-08.org.nvmexpress:uuid:8a2f4b10-6c1d-4e53-9b7a-d05c3e91f264 may not connect to rd0 any more","status":"Success"}"#,
};
