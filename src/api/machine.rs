//! The machine as a whole: the service, its resources, and the list of all volumes.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::answer::{line, list};
use super::{caches, disks};
use crate::storage::{Cache, Disk, Health, Policy, RamDisk, Resources, Result, Storage};

/// What is asked about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineAction {
    /// Memory and disks of the machine.
    Resources,
    /// RAM disks and caches.
    Volumes,
}

/// The text of the last status, and what it was made of: most are asked for between two looks.
#[derive(Default)]
pub struct LastStatus(Mutex<Option<(Arc<Health>, String)>>);

impl LastStatus {
    /// The text of `checkServiceStatus`, as it goes out.
    pub fn text(&self, health: Arc<Health>) -> String {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((of, text)) if Arc::ptr_eq(of, &health) => text.clone(),
            _ => {
                let text = line(&service(&health));
                *last = Some((health, text.clone()));
                text
            }
        }
    }
}

/// Does what `action` asks for. Returns the answer's body.
pub fn execute(storage: &Storage, action: &MachineAction) -> Result<Value> {
    Ok(match action {
        MachineAction::Resources => resources(&storage.resources()?),
        MachineAction::Volumes => volumes(&storage.disks.list()?, &storage.caches.list()?),
    })
}

/// `checkServiceStatus`.
fn service(health: &Health) -> Value {
    let driver_of = |wanted| {
        let found = health.policies.iter().find(|(policy, _)| *policy == wanted);
        found.map(|(_, driver)| *driver)
    };
    let mut body = json!({
        "status": "OK",
        "version": env!("CARGO_PKG_VERSION"),
        "ram_driver": health.ram_driver,
        "ram_drivers": health.ram_drivers,
        "missing_ram_drivers": health
            .missing_ram_drivers
            .iter()
            .map(|(driver, lacks)| json!({"driver": driver, "lacks": lacks}))
            .collect::<Vec<_>>(),
        "cache_driver": driver_of(Policy::WriteThrough),
        "cache_drivers": health.cache_drivers,
        "policies": health.policies.iter().map(|(policy, _)| policy.as_str()).collect::<Vec<_>>(),
    });
    if let Some(shortage) = health.shortage {
        body["warning"] = shortage.to_string().into();
        body["memory_available"] = shortage.available.into();
        body["memory_promised"] = shortage.promised.into();
    }
    body
}

/// `listAllResources`.
fn resources(resources: &Resources) -> Value {
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "UNAVAILABLE".to_owned());
    let disk = |disk: &Disk| {
        json!({
            "device": disk.name, "size": disk.size, "vendor": known(&disk.vendor), "model": known(&disk.model)
        })
    };
    let memory = json!({"mem_total": resources.memory.total, "mem_free": resources.memory.free});
    let disks = resources.disks.iter().map(disk);
    list("resources", [list("memory", [memory]), list("volumes", disks)])
}

/// `listRapidDiskVolumes`.
fn volumes(disks: &[RamDisk], caches: &[Cache]) -> Value {
    let (disks, caches) = (disks.iter().map(disks::entry), caches.iter().map(caches::entry));
    list("volumes", [list("rapiddisk", disks), list("rapiddisk_cache", caches)])
}

#[cfg(test)]
mod tests {
    use super::super::page;
    use super::*;
    use crate::kernel::machine::Memory;
    use crate::storage::{CacheName, DiskName, Shortage};

    fn health() -> Health {
        Health {
            ram_driver: Some("rapiddisk"),
            ram_drivers: vec!["rapiddisk", "loop"],
            missing_ram_drivers: vec![(
                "brd",
                "the kernel module brd is not loaded; load it with: modprobe brd rd_nr=0 rd_size=17179869184"
                    .into(),
            )],
            policies: vec![
                (Policy::WriteThrough, "rapiddisk-cache"),
                (Policy::WriteAround, "rapiddisk-cache"),
                (Policy::Writeback, "dm-writecache"),
            ],
            cache_drivers: vec!["rapiddisk-cache", "dm-writecache"],
            shortage: None,
        }
    }

    fn two_disks_and_a_cache() -> Value {
        let disk = |number, usage, locked| RamDisk {
            name: DiskName(number),
            size: 67108864,
            usage,
            is_measured: true,
            locked,
            driver: "loop",
            compressed: None,
            fault: None,
        };
        let cache = Cache {
            name: CacheName::parse("rc-wa_loop7").unwrap(),
            disk: "rd0".into(),
            source: "loop7".into(),
            policy: Policy::WriteAround,
            driver: "rapiddisk-cache",
        };
        volumes(&[disk(0, 65536, false), disk(1, 4096, true)], &[cache])
    }

    fn memory_and_a_disk(model: Option<&str>) -> Resources {
        let memory = Memory { total: 2084130816, free: 229003264 };
        let disk = Disk {
            name: "sda".into(),
            size: 26843545600,
            vendor: Some("ATA".into()),
            model: model.map(str::to_owned),
        };
        Resources { memory, disks: [disk].into() }
    }

    /// The example texts of the API reference, word for word, and what is added.
    #[test]
    fn the_shapes_are_those_of_the_reference() {
        assert_eq!(
            resources(&memory_and_a_disk(Some("VBOX"))),
            json!({"resources": [
                {"memory": [{"mem_total": 2084130816u64, "mem_free": 229003264}]},
                {"volumes": [{"device": "sda", "size": 26843545600u64, "vendor": "ATA", "model": "VBOX"}]},
            ]})
        );
        assert_eq!(
            two_disks_and_a_cache(),
            json!({"volumes": [
                {"rapiddisk": [
                    {"device": "rd0", "size": 67108864, "usage": 65536, "usage_measured": true, "status": "unlocked", "driver": "loop"},
                    {"device": "rd1", "size": 67108864, "usage": 4096, "usage_measured": true, "status": "locked", "driver": "loop"},
                ]},
                {"rapiddisk_cache": [
                    {"device": "rc-wa_loop7", "cache": "rd0", "source": "loop7", "mode": "write-around", "driver": "rapiddisk-cache"},
                ]},
            ]})
        );
    }

    #[test]
    fn the_answers_have_these_bytes() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            service(&health()).to_string(),
            [
                r#"{"cache_driver":"rapiddisk-cache","cache_drivers":["rapiddisk-cache","dm-writecache"],"#,
                r#""missing_ram_drivers":[{"driver":"brd","lacks":"the kernel module brd is not loaded; load it "#,
                r#"with: modprobe brd rd_nr=0 rd_size=17179869184"}],"#,
                r#""policies":["write-through","write-around","writeback"],"ram_driver":"rapiddisk","#,
                r#""ram_drivers":["rapiddisk","loop"],"status":"OK","version":""#,
                version,
                r#""}"#,
            ]
            .concat()
        );
        let shortage = Some(Shortage { available: 104857600, promised: 536870912 });
        assert_eq!(
            service(&Health { shortage, ..Health::default() }).to_string(),
            [
                r#"{"cache_driver":null,"cache_drivers":[],"memory_available":104857600,"#,
                r#""memory_promised":536870912,"missing_ram_drivers":[],"policies":[],"ram_driver":null,"ram_drivers":[],"status":"OK","#,
                r#""version":""#,
                version,
                r#"","warning":"the RAM disks may still claim 512 MiB, and the machine has 100 MiB; remove or "#,
                r#"shrink some, or programs are killed for memory"}"#,
            ]
            .concat()
        );
        assert_eq!(
            resources(&memory_and_a_disk(None)).to_string(),
            concat!(
                r#"{"resources":[{"memory":[{"mem_free":229003264,"mem_total":2084130816}]},"#,
                r#"{"volumes":[{"device":"sda","model":"UNAVAILABLE","size":26843545600,"vendor":"ATA"}]}]}"#
            )
        );
        assert_eq!(volumes(&[], &[]).to_string(), r#"{"volumes":[{"rapiddisk":[]},{"rapiddisk_cache":[]}]}"#);
    }

    #[test]
    fn a_status_is_made_anew_for_each_look_only() {
        let last = LastStatus::default();
        let first = Arc::new(health());
        assert_eq!(last.text(Arc::clone(&first)), line(&service(&first)));
        assert_eq!(last.text(first), line(&service(&health())));
        let second = Arc::new(Health::default());
        assert_eq!(last.text(Arc::clone(&second)), line(&service(&second)));
    }

    #[test]
    fn the_page_shows_these_answers() {
        let mut status = service(&health());
        status["version"] = page::example("checkServiceStatus")["version"].clone();
        assert_eq!(page::example("checkServiceStatus"), status);
        assert_eq!(page::example("listAllResources"), resources(&memory_and_a_disk(Some("VBOX"))));
        assert_eq!(page::example("listRapidDiskVolumes"), two_disks_and_a_cache());
    }
}
