//! From a request's method and target to a typed action: one table.

use crate::http::Method;
use crate::storage::{
    CacheName, DiskName, Nqn, Policy, PortAddress, PortId, Ports, Protocol, ServiceId, Size, SourceName,
    Volume,
};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Is the service there?
    Status,
    /// Memory and disks of the machine.
    Resources,
    /// RAM disks and caches.
    Volumes,
    /// The counters of a cache.
    CacheStats(CacheName),
    /// NVMe targets and the ports they are linked to.
    Targets,
    /// NVMe ports.
    Ports,
    /// Make a RAM disk.
    CreateDisk(Size),
    /// Give a RAM disk another size.
    ResizeDisk(DiskName, Size),
    /// Free the memory of a RAM disk.
    FlushDisk(DiskName),
    /// Remove a RAM disk.
    RemoveDisk(DiskName),
    /// Make a RAM disk read-only.
    LockDisk(DiskName),
    /// Make a RAM disk read-write.
    UnlockDisk(DiskName),
    /// Put a RAM disk as a cache in front of a source.
    CreateCache(DiskName, SourceName, Policy),
    /// Remove a cache.
    RemoveCache(CacheName),
    /// Make an NVMe port.
    CreatePort(PortId, PortAddress, Protocol, ServiceId),
    /// Remove an NVMe port.
    RemovePort(PortId),
    /// Export a volume, to one host or to any.
    CreateTarget(Volume, Ports, Option<Nqn>),
    /// End the export of a volume, at one port or everywhere.
    RemoveTarget(Volume, Option<PortId>),
    /// Let a host connect to a volume's target.
    AllowHost(Volume, Nqn),
    /// Keep a host from a volume's target.
    DenyHost(Volume, Nqn),
}

/// Why a request is none of the actions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAction {
    /// A parameter or the encoding of the path is wrong.
    Invalid(String),
    /// There is no such path.
    NoPath(String),
    /// The path takes these methods, as in the field `Allow`.
    NoMethod(&'static str),
}

/// How a path is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Post,
}

impl Verb {
    fn allows(self, method: &Method) -> bool {
        match self {
            Verb::Get => matches!(method, Method::Get | Method::Head),
            Verb::Post => matches!(method, Method::Post),
        }
    }

    fn allowed(self) -> &'static str {
        match self {
            Verb::Get => "GET, HEAD",
            Verb::Post => "POST",
        }
    }
}

impl Action {
    /// Reads the action from a method and a target as in the request line.
    pub fn parse(method: &Method, target: &str) -> Result<Action, NoAction> {
        let path = target.split_once('?').map_or(target, |(path, _query)| path);
        let segments = path.split('/').skip(1).map(decode).collect::<Option<Vec<_>>>();
        let segments =
            segments.ok_or_else(|| NoAction::Invalid(format!("{path} is not well percent-encoded")))?;
        let (verb, action) = route(&segments).ok_or_else(|| {
            NoAction::NoPath(format!("there is no {path}; the README lists the paths and their parameters"))
        })?;
        if verb.allows(method) {
            action.map_err(NoAction::Invalid)
        } else {
            Err(NoAction::NoMethod(verb.allowed()))
        }
    }

    /// Whether it changes anything.
    pub fn is_change(&self) -> bool {
        use Action::*;
        !matches!(self, Status | Resources | Volumes | CacheStats(_) | Targets | Ports)
    }
}

type Parsed<T> = Result<T, String>;

fn route(segments: &[String]) -> Option<(Verb, Parsed<Action>)> {
    use Action::*;
    use Verb::*;
    let segments: Vec<_> = segments.iter().map(String::as_str).collect();
    let ["v1", path @ ..] = &segments[..] else { return None };
    Some(match *path {
        ["checkServiceStatus"] => (Get, Ok(Status)),
        ["listAllResources"] => (Get, Ok(Resources)),
        ["listRapidDiskVolumes"] => (Get, Ok(Volumes)),
        ["showRapidDiskCacheStats", volume] => (Get, cache(volume).map(CacheStats)),
        ["listAllNVMeTargets"] => (Get, Ok(Targets)),
        ["listAllNVMePorts"] => (Get, Ok(Ports)),
        ["createRapidDisk", bytes] => (Post, size(bytes).map(CreateDisk)),
        ["resizeRapidDisk", volume, bytes] => {
            (Post, disk(volume).and_then(|disk| Ok(ResizeDisk(disk, size(bytes)?))))
        }
        ["flushRapidDisk", volume] => (Post, disk(volume).map(FlushDisk)),
        ["removeRapidDisk", volume] => (Post, disk(volume).map(RemoveDisk)),
        ["lockRapidDisk", volume] => (Post, disk(volume).map(LockDisk)),
        ["unlockRapidDisk", volume] => (Post, disk(volume).map(UnlockDisk)),
        ["createRapidDiskCache", volume, origin, mode] => {
            (Post, disk(volume).and_then(|disk| Ok(CreateCache(disk, source(origin)?, policy(mode)?))))
        }
        ["removeRapidDiskCache", volume] => (Post, cache(volume).map(RemoveCache)),
        ["createNVMePort", number, place, transport] => (Post, create_port(number, place, transport, None)),
        ["createNVMePort", number, place, transport, id] => {
            (Post, create_port(number, place, transport, Some(id)))
        }
        ["removeNVMePort", number] => (Post, port(number).map(RemovePort)),
        ["createNVMeTarget", name, at] => {
            (Post, volume(name).and_then(|volume| Ok(CreateTarget(volume, ports(at)?, None))))
        }
        ["createNVMeTarget", name, at, host] => {
            (Post, volume(name).and_then(|volume| Ok(CreateTarget(volume, ports(at)?, Some(nqn(host)?)))))
        }
        ["removeNVMeTarget", name] => (Post, volume(name).map(|volume| RemoveTarget(volume, None))),
        ["removeNVMeTarget", name, at] => {
            (Post, volume(name).and_then(|volume| Ok(RemoveTarget(volume, Some(port(at)?)))))
        }
        ["allowNVMeHost", name, host] => {
            (Post, volume(name).and_then(|volume| Ok(AllowHost(volume, nqn(host)?))))
        }
        ["denyNVMeHost", name, host] => {
            (Post, volume(name).and_then(|volume| Ok(DenyHost(volume, nqn(host)?))))
        }
        _ => return None,
    })
}

fn create_port(number: &str, at: &str, transport: &str, id: Option<&str>) -> Parsed<Action> {
    let (number, place, protocol) = (port(number)?, place(at)?, protocol(transport)?);
    let service = match id {
        None => ServiceId::DEFAULT,
        Some(_) if protocol == Protocol::Loop => return Err("the protocol loop has no service id".into()),
        Some(id) => service(id)?,
    };
    Ok(Action::CreatePort(number, place, protocol, service))
}

fn volume(text: &str) -> Parsed<Volume> {
    Volume::parse(text)
        .ok_or_else(|| format!("{text:?} is not the name of a RAM disk or a cache, such as rd0 or rc-wt_sdb"))
}

fn port(text: &str) -> Parsed<PortId> {
    PortId::parse(text).ok_or_else(|| format!("{text:?} is not the number of a port, 1 to 65535"))
}

fn ports(text: &str) -> Parsed<Ports> {
    Ports::parse(text).ok_or_else(|| format!("{text:?} is not the number of a port, 1 to 65535, or all"))
}

fn service(text: &str) -> Parsed<ServiceId> {
    ServiceId::parse(text).ok_or_else(|| format!("{text:?} is not a service id, 1 to 65535"))
}

fn protocol(text: &str) -> Parsed<Protocol> {
    Protocol::parse(text).ok_or_else(|| format!("{text:?} is not a protocol; there are tcp, rdma and loop"))
}

fn place(text: &str) -> Parsed<PortAddress> {
    PortAddress::parse(text).ok_or_else(|| {
        format!("{text:?} is not an address or the name of a network interface; loop takes none")
    })
}

fn nqn(text: &str) -> Parsed<Nqn> {
    Nqn::parse(text).ok_or_else(|| format!("{text:?} is not an NQN of at most 223 bytes"))
}

fn disk(text: &str) -> Parsed<DiskName> {
    DiskName::parse(text).ok_or_else(|| format!("{text:?} is not the name of a RAM disk, such as rd0"))
}

fn size(text: &str) -> Parsed<Size> {
    Size::parse(text).ok_or_else(|| {
        format!("{text:?} is not a size: a number of MiB above 0, or one with M, MiB, G, GiB, T or TiB")
    })
}

fn source(text: &str) -> Parsed<SourceName> {
    SourceName::parse(text).ok_or_else(|| {
        format!("{text:?} is not the name of a device below /dev, such as sdb or mapper%2Fvg0-home")
    })
}

fn policy(text: &str) -> Parsed<Policy> {
    Policy::parse(text).ok_or_else(|| {
        format!("{text:?} is not a policy; there are write-through, write-around and writeback")
    })
}

fn cache(text: &str) -> Parsed<CacheName> {
    CacheName::parse(text).ok_or_else(|| format!("{text:?} is not the name of a cache, such as rc-wt_sdb"))
}

/// Percent-decodes one segment, once. `None` if that is not possible or gives no UTF-8.
fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => 16 * digit(rest.next()?)? + digit(rest.next()?)?,
            byte => byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn get(target: &str) -> Result<Action, NoAction> {
        Action::parse(&Method::Get, target)
    }

    fn post(target: &str) -> Result<Action, NoAction> {
        Action::parse(&Method::Post, target)
    }

    fn is_invalid(result: Result<Action, NoAction>) -> bool {
        matches!(result, Err(NoAction::Invalid(_)))
    }

    #[test]
    fn each_path_of_the_reference_is_an_action() {
        let cache = || CacheName::parse("rc-wt_sdb").unwrap();
        let size = Size::parse("128").unwrap();
        let rd0 = DiskName(0);
        assert_eq!(get("/v1/checkServiceStatus"), Ok(Action::Status));
        assert_eq!(get("/v1/listAllResources"), Ok(Action::Resources));
        assert_eq!(get("/v1/listRapidDiskVolumes"), Ok(Action::Volumes));
        assert_eq!(get("/v1/showRapidDiskCacheStats/rc-wt_sdb"), Ok(Action::CacheStats(cache())));
        assert_eq!(get("/v1/listAllNVMeTargets"), Ok(Action::Targets));
        assert_eq!(get("/v1/listAllNVMePorts"), Ok(Action::Ports));
        assert_eq!(post("/v1/createRapidDisk/128"), Ok(Action::CreateDisk(size)));
        assert_eq!(post("/v1/resizeRapidDisk/rd0/128"), Ok(Action::ResizeDisk(rd0, size)));
        assert_eq!(post("/v1/flushRapidDisk/rd0"), Ok(Action::FlushDisk(rd0)));
        assert_eq!(post("/v1/removeRapidDisk/rd0"), Ok(Action::RemoveDisk(rd0)));
        assert_eq!(post("/v1/lockRapidDisk/rd0"), Ok(Action::LockDisk(rd0)));
        assert_eq!(post("/v1/unlockRapidDisk/rd0"), Ok(Action::UnlockDisk(rd0)));
        assert_eq!(
            post("/v1/createRapidDiskCache/rd0/sdb/write-through"),
            Ok(Action::CreateCache(rd0, SourceName::parse("sdb").unwrap(), Policy::WriteThrough))
        );
        assert_eq!(post("/v1/removeRapidDiskCache/rc-wt_sdb"), Ok(Action::RemoveCache(cache())));
    }

    #[test]
    fn nvme_paths_are_actions() {
        let (rd0, port) = (Volume::parse("rd0").unwrap(), PortId::parse("1").unwrap());
        let host = || Nqn::parse("nqn.2014-08.org.nvmexpress:uuid:1").unwrap();
        let v6 = PortAddress::Address("fe80::1".parse().unwrap());
        let create = |place, protocol, id| {
            Ok(Action::CreatePort(port, place, protocol, ServiceId::parse(id).unwrap()))
        };
        let eth0 = PortAddress::Interface("eth0".into());
        assert_eq!(post("/v1/createNVMePort/1/eth0/tcp"), create(eth0, Protocol::Tcp, "4420"));
        assert_eq!(post("/v1/createNVMePort/1/fe80%3A%3A1/rdma/4421"), create(v6, Protocol::Rdma, "4421"));
        assert_eq!(
            post("/v1/createNVMePort/1/none/loop"),
            create(PortAddress::Nowhere, Protocol::Loop, "4420")
        );
        assert_eq!(post("/v1/removeNVMePort/1"), Ok(Action::RemovePort(port)));
        let target = |ports, host| Ok(Action::CreateTarget(rd0.clone(), ports, host));
        assert_eq!(post("/v1/createNVMeTarget/rd0/1"), target(Ports::One(port), None));
        assert_eq!(
            post("/v1/createNVMeTarget/rd0/all/nqn.2014-08.org.nvmexpress:uuid:1"),
            target(Ports::All, Some(host()))
        );
        assert_eq!(post("/v1/removeNVMeTarget/rd0"), Ok(Action::RemoveTarget(rd0.clone(), None)));
        assert_eq!(post("/v1/removeNVMeTarget/rd0/1"), Ok(Action::RemoveTarget(rd0.clone(), Some(port))));
        let path = "rd0/nqn.2014-08.org.nvmexpress:uuid:1";
        assert_eq!(post(&format!("/v1/allowNVMeHost/{path}")), Ok(Action::AllowHost(rd0.clone(), host())));
        assert_eq!(post(&format!("/v1/denyNVMeHost/{path}")), Ok(Action::DenyHost(rd0, host())));
        for target in [
            "/v1/createNVMePort/0/eth0/tcp",
            "/v1/createNVMePort/1/eth0/udp",
            "/v1/createNVMePort/1/eth0/tcp/x",
            "/v1/createNVMePort/1/none/loop/4420",
            "/v1/createNVMePort/1/a%2Fb/tcp",
            "/v1/createNVMeTarget/sda/1",
            "/v1/createNVMeTarget/rd0/any",
            "/v1/createNVMeTarget/rd0/1/a%2Fb",
            "/v1/removeNVMeTarget/rd0/all",
            "/v1/allowNVMeHost/rd0/..",
        ] {
            assert!(is_invalid(post(target)), "{target}");
        }
    }

    #[test]
    fn a_read_answers_head_and_a_wrong_method_names_the_right_one() {
        assert_eq!(Action::parse(&Method::Head, "/v1/checkServiceStatus"), Ok(Action::Status));
        assert_eq!(post("/v1/checkServiceStatus"), Err(NoAction::NoMethod("GET, HEAD")));
        assert_eq!(get("/v1/createRapidDisk/64"), Err(NoAction::NoMethod("POST")));
        // The method is wrong whatever the parameter is.
        assert_eq!(get("/v1/createRapidDisk/nonsense"), Err(NoAction::NoMethod("POST")));
        assert_eq!(
            Action::parse(&Method::Delete, "/v1/removeRapidDisk/rd0"),
            Err(NoAction::NoMethod("POST"))
        );
    }

    #[test]
    fn other_paths_do_not_exist() {
        for target in [
            "/",
            "/v1",
            "/v1/",
            "/v2/checkServiceStatus",
            "/v1/checkservicestatus",
            "/v1/createRapidDisk",
            "/v1/createRapidDisk/1/2",
            "/v1/checkServiceStatus/",
            "//v1/checkServiceStatus",
            "/v1/removeRapidDisk/rd0/",
        ] {
            assert!(matches!(get(target), Err(NoAction::NoPath(_))), "{target}");
        }
    }

    #[test]
    fn wrong_parameters_are_invalid() {
        for target in [
            "/v1/createRapidDisk/12abc",
            "/v1/createRapidDisk/0",
            "/v1/createRapidDisk/-5",
            "/v1/createRapidDisk/",
            "/v1/resizeRapidDisk/sda/5",
            "/v1/resizeRapidDisk/rd0/x",
            "/v1/removeRapidDisk/rd01",
            "/v1/removeRapidDisk/%2Fdev%2Frd0",
            "/v1/createRapidDiskCache/rd0/sdb/fast",
            "/v1/createRapidDiskCache/rd0/..%2Fsdb/writeback",
            "/v1/createRapidDiskCache/rd0/%2Fdev%2Fsdb/writeback",
            "/v1/removeRapidDiskCache/vg0-home",
            "/v1/removeRapidDisk/rd0%00",
        ] {
            assert!(is_invalid(post(target)), "{target}");
        }
    }

    #[test]
    fn a_path_is_decoded_once_and_a_query_is_ignored() {
        let source = |name| SourceName::parse(name).unwrap();
        let cached = |name| Ok(Action::CreateCache(DiskName(0), source(name), Policy::Writeback));
        assert_eq!(
            post("/v1/createRapidDiskCache/rd0/mapper%2Fvg0-home/writeback"),
            cached("mapper/vg0-home")
        );
        assert_eq!(
            post("/v1/createRapidDiskCache/rd0/mapper%2fvg0%2Dhome/write-back"),
            cached("mapper/vg0-home")
        );
        assert!(is_invalid(post("/v1/createRapidDiskCache/rd0/mapper%252Fx/writeback")));
        assert_eq!(get("/v1/checkServiceStatus?x=%zz"), Ok(Action::Status));
        for target in ["/v1/%", "/v1/%2", "/v1/%zz", "/v1/removeRapidDisk/%ff", "/v1/removeRapidDisk/rd0%"] {
            assert!(is_invalid(get(target)), "{target}");
        }
    }

    proptest! {
        /// Any text survives being encoded and decoded once.
        #[test]
        fn decoding_undoes_encoding(text in "\\PC{0,40}") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(&encoded), Some(text));
        }

        /// No target makes the parser panic, and reads are never changes.
        #[test]
        fn any_target_has_an_outcome(target in "/(v1/)?[!-~]{0,60}") {
            for method in [Method::Get, Method::Head] {
                if let Ok(action) = Action::parse(&method, &target) {
                    prop_assert!(!action.is_change());
                }
            }
            if let Ok(action) = post(&target) {
                prop_assert!(action.is_change());
            }
        }
    }
}
