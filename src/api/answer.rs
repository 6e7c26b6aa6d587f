//! The JSON shapes of the API, and the one place where an error becomes a status.

use std::fmt::Display;

use serde_json::{Map, Value, json};

use super::NoAction;
use crate::http::Response;
use crate::storage::{CacheStats, Error, Health, Policy, Port, Resources, Target, Volumes};

/// The HTTP status of an error.
pub fn status(error: &Error) -> u16 {
    match error {
        Error::Invalid(_) => 400,
        Error::NotFound(_) => 404,
        Error::Conflict(_) => 409,
        Error::Kernel(..) | Error::NotUndone(..) => 500,
        Error::Unavailable(_) => 503,
        Error::NoMemory(_) => 507,
    }
}

/// An answer with a JSON body.
pub fn json(status: u16, body: &Value) -> Response {
    let mut text = body.to_string();
    // For the terminal of whoever uses curl.
    text.push('\n');
    Response::new(status, "application/json", text)
}

/// The answer to a request that failed.
pub fn failed(status: u16, message: &str) -> Response {
    json(status, &json!({"status": "Failed", "message": message}))
}

/// The answer to a request that is no action.
pub fn no_action(why: &NoAction) -> Response {
    match why {
        NoAction::Invalid(message) => failed(400, message),
        NoAction::NoPath(message) => failed(404, message),
        NoAction::NoMethod(allowed) => {
            failed(405, &format!("this path takes {allowed}")).with_field("Allow", *allowed)
        }
    }
}

/// The body for a change that was made.
pub fn done(message: String) -> Value {
    json!({"status": "Success", "message": message})
}

/// The same, with what was made as a field of its own.
pub fn made(field: &str, name: &impl Display, message: String) -> Value {
    let mut body = done(message);
    body[field] = Value::String(name.to_string());
    body
}

/// `checkServiceStatus`.
pub fn service(health: &Health) -> Value {
    let driver_of = |wanted| {
        let found = health.policies.iter().find(|(policy, _)| *policy == wanted);
        found.map(|(_, driver)| driver.as_str())
    };
    let mut body = json!({
        "status": "OK",
        "version": env!("CARGO_PKG_VERSION"),
        "ram_driver": health.ram_driver,
        "ram_drivers": health.ram_drivers,
        "cache_driver": driver_of(Policy::WriteThrough),
        "cache_drivers": health.cache_drivers.iter().map(|driver| driver.as_str()).collect::<Vec<_>>(),
        "policies": health.policies.iter().map(|(policy, _)| policy.as_str()).collect::<Vec<_>>(),
    });
    if let Some(shortage) = health.shortage {
        body["warning"] = shortage.to_string().into();
        body["memory_available"] = shortage.available.into();
        body["memory_promised"] = shortage.promised.into();
    }
    body
}

/// An object with one field, an array. `json!` would copy what is in it.
fn list(field: &str, values: impl IntoIterator<Item = Value>) -> Value {
    Value::Object([(field.to_owned(), values.into_iter().collect())].into_iter().collect())
}

/// `listAllResources`.
pub fn resources(resources: &Resources) -> Value {
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "UNAVAILABLE".to_owned());
    let disk = |disk: &crate::storage::Disk| {
        json!({
            "device": disk.name, "size": disk.size, "vendor": known(&disk.vendor), "model": known(&disk.model)
        })
    };
    let memory = json!({"mem_total": resources.memory.total, "mem_free": resources.memory.free});
    let disks = resources.disks.iter().map(disk);
    list("resources", [list("memory", [memory]), list("volumes", disks)])
}

/// `listRapidDiskVolumes`.
pub fn volumes(volumes: &Volumes) -> Value {
    let disk = |disk: &crate::storage::RamDisk| {
        json!({
            "device": disk.name.to_string(),
            "size": disk.size,
            "usage": disk.usage,
            "status": if disk.locked { "locked" } else { "unlocked" },
            "driver": disk.driver,
        })
    };
    let cache = |cache: &crate::storage::Cache| {
        json!({
            "device": cache.name.to_string(),
            "cache": cache.disk,
            "source": cache.source,
            "mode": cache.policy.as_str(),
            "driver": cache.driver.as_str(),
        })
    };
    let (disks, caches) = (volumes.disks.iter().map(disk), volumes.caches.iter().map(cache));
    list("volumes", [list("rapiddisk", disks), list("rapiddisk_cache", caches)])
}

/// `showRapidDiskCacheStats`.
pub fn cache_stats(stats: &CacheStats) -> Value {
    let mut fields = Map::new();
    fields.insert("device".into(), stats.name.to_string().into());
    fields.extend(stats.counters.iter().map(|&(name, count)| (name.to_owned(), count.into())));
    if let Some(metadata) = stats.metadata {
        fields.insert("metadata_mode".into(), if metadata.read_only { "ro" } else { "rw" }.into());
        fields.insert("needs_check".into(), metadata.needs_check.into());
    }
    if !stats.not_counted.is_empty() {
        fields.insert("not_counted".into(), stats.not_counted.clone().into());
    }
    json!({"statistics": [{"cache_stats": [fields]}]})
}

/// `listAllNVMeTargets`: the reference's two lists, and in each target who may
/// connect and where.
pub fn targets(targets: &[Target], ports: &[Port]) -> Value {
    let target = |target: &Target| {
        let Target { subsystem, namespace, size, ports } = target;
        let hosts: Vec<_> = subsystem.allowed_hosts.iter().map(|host| json!({"host": host})).collect();
        let mut fields = json!({
            "nqn": subsystem.nqn,
            "namespace": namespace.id,
            "device": namespace.device,
            "enabled": if namespace.enabled { "true" } else { "false" },
            "any_host": subsystem.any_host,
            "serial": subsystem.serial.as_deref().unwrap_or("UNAVAILABLE"),
            "size": size.unwrap_or(0),
            "allowed_hosts": hosts,
            "assigned_ports": ports.iter().map(port).collect::<Vec<_>>(),
        });
        if let Some(controllers) = subsystem.controllers {
            fields["controllers"] = controllers.into();
        }
        fields
    };
    let link = |at: &Port, nqn: &String| {
        let mut link = port(at);
        link["nqn"] = json!(nqn);
        link
    };
    let links = ports.iter().flat_map(|port| port.subsystems.iter().map(move |nqn| link(port, nqn)));
    list("targets", [list("nvmet_targets", targets.iter().map(target)), list("nvmet_ports", links)])
}

/// `listAllNVMePorts`.
pub fn ports(ports: &[Port]) -> Value {
    list("targets", [list("nvmet_ports", ports.iter().map(port))])
}

fn port(port: &Port) -> Value {
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "UNDEFINED".to_owned());
    json!({
        "port": port.id,
        "address": known(&port.address),
        "protocol": known(&port.protocol),
        "service_id": known(&port.service_id),
    })
}

/// The body for a port that was made: its fields as in the list.
pub fn made_port(made: &Port) -> Value {
    let mut body = done(format!("port {} is ready for targets", made.id));
    if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), port(made)) {
        body.extend(fields);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nvmet::{Namespace, Subsystem};
    use crate::kernel::process::Memory;
    use crate::storage::{Cache, CacheName, Disk, DiskName, Driver, Metadata, Policy, RamDisk};

    /// The example texts of the API reference, word for word, and what is added.
    #[test]
    fn the_shapes_are_those_of_the_reference() {
        let memory = Memory { total: 2084130816, free: 229003264 };
        let disk = Disk {
            name: "sda".into(),
            size: 26843545600,
            vendor: Some("ATA".into()),
            model: Some("VBOX".into()),
        };
        assert_eq!(
            resources(&Resources { memory, disks: vec![disk] }),
            json!({"resources": [
                {"memory": [{"mem_total": 2084130816u64, "mem_free": 229003264}]},
                {"volumes": [{"device": "sda", "size": 26843545600u64, "vendor": "ATA", "model": "VBOX"}]},
            ]})
        );
        let disk = |number, usage, locked| RamDisk {
            name: DiskName(number),
            size: 67108864,
            usage,
            locked,
            driver: "loop",
        };
        let cache = Cache {
            name: CacheName::parse("rc-wa_loop7").unwrap(),
            disk: "rd0".into(),
            source: "loop7".into(),
            policy: Policy::WriteAround,
            driver: Driver::RapidDiskCache,
        };
        assert_eq!(
            volumes(&Volumes {
                disks: vec![disk(0, 65536, false), disk(1, 4096, true)],
                caches: vec![cache]
            }),
            json!({"volumes": [
                {"rapiddisk": [
                    {"device": "rd0", "size": 67108864, "usage": 65536, "status": "unlocked", "driver": "loop"},
                    {"device": "rd1", "size": 67108864, "usage": 4096, "status": "locked", "driver": "loop"},
                ]},
                {"rapiddisk_cache": [
                    {"device": "rc-wa_loop7", "cache": "rd0", "source": "loop7", "mode": "write-around", "driver": "rapiddisk-cache"},
                ]},
            ]})
        );
        let stats = CacheStats {
            name: CacheName::parse("rc-wb_sdd").unwrap(),
            counters: vec![
                ("errors", 0),
                ("num_blocks", 16320),
                ("num_free_blocks", 16320),
                ("num_wb_blocks", 0),
            ],
            not_counted: vec![],
            metadata: None,
        };
        assert_eq!(
            cache_stats(&stats),
            json!({"statistics": [{"cache_stats": [
                {"device": "rc-wb_sdd", "errors": 0, "num_blocks": 16320, "num_free_blocks": 16320, "num_wb_blocks": 0}
            ]}]})
        );
    }

    #[test]
    fn what_a_cache_does_not_count_is_named() {
        let stats = CacheStats {
            name: CacheName::parse("rc-wt_sda").unwrap(),
            counters: vec![("reads", 7), ("uncached_reads", 0)],
            not_counted: vec!["uncached_reads"],
            metadata: Some(Metadata { read_only: true, needs_check: false }),
        };
        assert_eq!(
            cache_stats(&stats)["statistics"][0]["cache_stats"][0],
            json!({
                "device": "rc-wt_sda", "reads": 7, "uncached_reads": 0, "not_counted": ["uncached_reads"],
                "metadata_mode": "ro", "needs_check": false
            })
        );
    }

    #[test]
    fn targets_have_both_shapes_that_clients_know() {
        let port = |id, address: Option<&str>| Port {
            id,
            address: address.map(str::to_owned),
            protocol: address.map(|_| "tcp".to_owned()),
            service_id: address.map(|_| "4420".to_owned()),
            subsystems: vec!["rd1-test".into()],
        };
        let ports_there = vec![port(1, Some("10.0.0.185")), port(2, None)];
        let namespace = Namespace { id: 1, device: "/dev/rd1".into(), enabled: true };
        let target = Target {
            namespace: namespace.clone(),
            subsystem: Subsystem {
                nqn: "rd1-test".into(),
                namespaces: vec![namespace],
                allowed_hosts: vec!["nqn.host".into()],
                any_host: false,
                serial: Some("0123".into()),
                controllers: Some(2),
            },
            size: Some(4096),
            ports: ports_there[..1].to_vec(),
        };
        assert_eq!(
            targets(&[target], &ports_there),
            json!({"targets": [
                {"nvmet_targets": [{
                    "nqn": "rd1-test", "namespace": 1, "device": "/dev/rd1", "enabled": "true",
                    "allowed_hosts": [{"host": "nqn.host"}],
                    "any_host": false, "serial": "0123", "size": 4096, "controllers": 2,
                    "assigned_ports": [
                        {"port": 1, "address": "10.0.0.185", "protocol": "tcp", "service_id": "4420"}
                    ],
                }]},
                {"nvmet_ports": [
                    {"port": 1, "address": "10.0.0.185", "protocol": "tcp", "service_id": "4420", "nqn": "rd1-test"},
                    {"port": 2, "address": "UNDEFINED", "protocol": "UNDEFINED", "service_id": "UNDEFINED", "nqn": "rd1-test"},
                ]},
            ]})
        );
        assert_eq!(
            ports(&ports_there[..1]),
            json!({"targets": [{"nvmet_ports": [
                {"port": 1, "address": "10.0.0.185", "protocol": "tcp", "service_id": "4420"}
            ]}]})
        );
    }

    #[test]
    fn each_error_has_its_status() {
        let text = || "x".to_owned();
        let kernel = || crate::kernel::Error { what: text(), errno: 5 };
        assert_eq!(status(&Error::Invalid(text())), 400);
        assert_eq!(status(&Error::NotFound(text())), 404);
        assert_eq!(status(&Error::Conflict(text())), 409);
        assert_eq!(status(&Error::Kernel(text(), kernel())), 500);
        assert_eq!(status(&Error::NotUndone(Box::new(Error::Conflict(text())), vec![])), 500);
        assert_eq!(status(&Error::Unavailable(text())), 503);
        assert_eq!(status(&Error::NoMemory(text())), 507);
    }
}
