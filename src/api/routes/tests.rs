//! What each path is, and that the table is sound.

use std::collections::HashSet;

use proptest::prelude::*;
use proptest::string::string_regex;

use super::super::parameters::{MOST_SEGMENTS, Values};
use super::*;
use crate::storage::NewDisk;

fn parse(method: &Method, target: &str) -> Result<Action, NoAction> {
    match route(method, target).action {
        Action::Refuse(why) => Err(why),
        action => Ok(action),
    }
}

fn get(target: &str) -> Result<Action, NoAction> {
    parse(&Method::Get, target)
}

fn post(target: &str) -> Result<Action, NoAction> {
    parse(&Method::Post, target)
}

fn is_invalid(result: Result<Action, NoAction>) -> bool {
    matches!(result, Err(NoAction::Invalid(_)))
}

fn ok(action: impl Into<Action>) -> Result<Action, NoAction> {
    Ok(action.into())
}

#[test]
fn each_path_of_the_reference_is_an_action() {
    let cache = || CacheName::parse("rc-wt_sdb").unwrap();
    let size = Size::parse("128").unwrap();
    let rd0 = DiskName(0);
    assert_eq!(get("/v1/checkServiceStatus"), ok(Action::Status));
    assert_eq!(get("/v1/listAllResources"), ok(MachineAction::Resources));
    assert_eq!(get("/v1/listRapidDiskVolumes"), ok(MachineAction::Volumes));
    assert_eq!(get("/v1/showRapidDiskCacheStats/rc-wt_sdb"), ok(CacheAction::Stats(cache())));
    assert_eq!(get("/v1/listAllNVMeTargets"), ok(NvmeAction::Targets));
    assert_eq!(get("/v1/listAllNVMePorts"), ok(NvmeAction::Ports));
    let mut new = NewDisk { size, driver: None, algorithm: None, limit: None };
    assert_eq!(post("/v1/createRapidDisk/128"), ok(DiskAction::Create(new.clone())));
    new.driver = RamDriver::parse("zram");
    assert_eq!(post("/v1/createRapidDisk/128?driver=zram"), ok(DiskAction::Create(new.clone())));
    new.algorithm = Algorithm::parse("lz4");
    new.limit = Size::parse("64");
    assert_eq!(
        post("/v1/createRapidDisk/128?limit=64&driver=zram&algorithm=lz4"),
        ok(DiskAction::Create(new))
    );
    assert_eq!(post("/v1/resizeRapidDisk/rd0/128"), ok(DiskAction::Resize(rd0, size)));
    assert_eq!(post("/v1/flushRapidDisk/rd0"), ok(DiskAction::Flush(rd0)));
    assert_eq!(post("/v1/removeRapidDisk/rd0"), ok(DiskAction::Remove(rd0)));
    assert_eq!(post("/v1/lockRapidDisk/rd0"), ok(DiskAction::Lock(rd0)));
    assert_eq!(post("/v1/unlockRapidDisk/rd0"), ok(DiskAction::Unlock(rd0)));
    assert_eq!(
        post("/v1/createRapidDiskCache/rd0/sdb/write-through"),
        ok(CacheAction::Create(rd0, SourceName::parse("sdb").unwrap(), Policy::WriteThrough, None))
    );
    assert_eq!(post("/v1/removeRapidDiskCache/rc-wt_sdb"), ok(CacheAction::Remove(cache(), Discard(false))));
}

#[test]
fn nvme_paths_are_actions() {
    let (rd0, port) = (Volume::parse("rd0").unwrap(), PortId::parse("1").unwrap());
    let host = || Nqn::parse("nqn.2014-08.org.nvmexpress:uuid:1").unwrap();
    let v6 = PortAddress::Address("fe80::1".parse().unwrap());
    let create = |place, protocol, id| {
        ok(NvmeAction::CreatePort(port, place, protocol, ServiceId::parse(id).unwrap()))
    };
    let eth0 = PortAddress::Interface("eth0".into());
    assert_eq!(post("/v1/createNVMePort/1/eth0/tcp"), create(eth0, Protocol::Tcp, "4420"));
    assert_eq!(post("/v1/createNVMePort/1/fe80%3A%3A1/rdma/4421"), create(v6, Protocol::Rdma, "4421"));
    assert_eq!(post("/v1/createNVMePort/1/none/loop"), create(PortAddress::Nowhere, Protocol::Loop, "4420"));
    assert_eq!(post("/v1/removeNVMePort/1"), ok(NvmeAction::RemovePort(port)));
    let target = |ports, host| ok(NvmeAction::CreateTarget(rd0.clone(), ports, host));
    assert_eq!(post("/v1/createNVMeTarget/rd0/1"), target(Ports::One(port), None));
    assert_eq!(
        post("/v1/createNVMeTarget/rd0/all/nqn.2014-08.org.nvmexpress:uuid:1"),
        target(Ports::All, Some(host()))
    );
    assert_eq!(post("/v1/removeNVMeTarget/rd0"), ok(NvmeAction::RemoveTarget(rd0.clone(), None)));
    assert_eq!(post("/v1/removeNVMeTarget/rd0/1"), ok(NvmeAction::RemoveTarget(rd0.clone(), Some(port))));
    let path = "rd0/nqn.2014-08.org.nvmexpress:uuid:1";
    assert_eq!(post(&format!("/v1/allowNVMeHost/{path}")), ok(NvmeAction::AllowHost(rd0.clone(), host())));
    assert_eq!(post(&format!("/v1/denyNVMeHost/{path}")), ok(NvmeAction::DenyHost(rd0, host())));
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
    assert_eq!(parse(&Method::Head, "/v1/checkServiceStatus"), ok(Action::Status));
    assert_eq!(post("/v1/checkServiceStatus"), Err(NoAction::NoMethod("GET, HEAD")));
    assert_eq!(get("/v1/createRapidDisk/64"), Err(NoAction::NoMethod("POST")));
    // The method is wrong whatever the parameter is.
    assert_eq!(get("/v1/createRapidDisk/nonsense"), Err(NoAction::NoMethod("POST")));
    assert_eq!(parse(&Method::Delete, "/v1/removeRapidDisk/rd0"), Err(NoAction::NoMethod("POST")));
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
        "/v1/createNVMePort/2/10.0.0.5/tcp/4421/1",
        "/v1/createNVMePort/2/10.0.0.5/tcp/4421/1/2/3/4/5/6/7/8",
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
fn a_path_is_decoded_once() {
    let source = |name| SourceName::parse(name).unwrap();
    let cached = |name| ok(CacheAction::Create(DiskName(0), source(name), Policy::Writeback, None));
    assert_eq!(post("/v1/createRapidDiskCache/rd0/mapper%2Fvg0-home/writeback"), cached("mapper/vg0-home"));
    assert_eq!(
        post("/v1/createRapidDiskCache/rd0/mapper%2fvg0%2Dhome/write-back"),
        cached("mapper/vg0-home")
    );
    assert_eq!(post("/v1/createRapidDiskCache/rd0/mapper%252Fx/writeback"), cached("mapper%2Fx"));
    assert_eq!(get("/%76%31/check%53erviceStatus"), ok(Action::Status));
    for target in ["/v1/%", "/v1/%2", "/v1/%zz", "/v1/removeRapidDisk/%ff", "/v1/removeRapidDisk/rd0%"] {
        assert!(is_invalid(get(target)), "{target}");
    }
}

#[test]
fn each_option_is_known_by_name_and_given_once() {
    let sdb = SourceName::parse("sdb").unwrap();
    let cached =
        |block| ok(CacheAction::Create(DiskName(0), sdb.clone(), Policy::Writeback, BlockSize::parse(block)));
    let create = |query: &str| post(&format!("/v1/createRapidDiskCache/rd0/sdb/writeback{query}"));
    assert_eq!(create("?block=512"), cached("512"));
    assert_eq!(create("?%62lock=%34096&"), cached("4096"));
    assert_eq!(create("?"), cached(""));
    let remove = |query: &str| post(&format!("/v1/removeRapidDiskCache/rc-wb_sdb{query}"));
    let cache = CacheName::parse("rc-wb_sdb").unwrap();
    assert_eq!(remove("?discard=1"), ok(CacheAction::Remove(cache.clone(), Discard(true))));
    assert_eq!(remove("?discard=0"), ok(CacheAction::Remove(cache, Discard(false))));
    let refused = |message: &str| Err(NoAction::Invalid(message.to_owned()));
    assert_eq!(create("?block=512&block=512"), refused("the option block is there twice"));
    assert_eq!(create("?size=1"), refused(r#""size" is not an option of this call, which has block"#));
    assert_eq!(create("?block=%zz"), refused("block=%zz is not well percent-encoded"));
    let sizes = "is not a block size; there are 512, 1024, 2048 and 4096";
    assert_eq!(create("?block"), refused(&format!("\"\" {sizes}")));
    assert_eq!(create("?block=513"), refused(&format!("\"513\" {sizes}")));
    assert_eq!(remove("?discard=yes"), refused(r#""yes" is not 1 or 0"#));
    let none = refused(r#""x" is not an option of this call, which has none"#);
    assert_eq!(get("/v1/checkServiceStatus?x=1"), none);
    assert_eq!(post("/v1/flushRapidDisk/rd0?x"), none);
    // What is wrong with the path is said first.
    assert!(matches!(get("/v1/nothing?x=1"), Err(NoAction::NoPath(_))));
    let message = "only writeback has blocks whose size can be chosen";
    assert_eq!(post("/v1/createRapidDiskCache/rd0/sdb/write-through?block=512"), refused(message));
}

/// Clients may show these words to people.
#[test]
fn a_refusal_says_what_is_wrong_in_these_words() {
    let number = "is not the number of a port, 0 to 65535";
    for (target, message) in [
        (
            "createRapidDisk/12abc",
            r#""12abc" is not a size: a number of MiB above 0, or one with M, MiB, G, GiB, T or TiB"#,
        ),
        ("resizeRapidDisk/sda/x", r#""sda" is not the name of a RAM disk, such as rd0"#),
        (
            "createRapidDiskCache/rd0/a%2F%2Fb/x",
            r#""a//b" is not the name of a device below /dev, such as sdb or mapper%2Fvg0-home"#,
        ),
        (
            "createRapidDiskCache/rd0/sdb/fast",
            r#""fast" is not a policy; there are write-through, write-around and writeback"#,
        ),
        ("removeRapidDiskCache/sdb", r#""sdb" is not the name of a cache, such as rc-wt_sdb"#),
        ("removeNVMePort/00", &format!("\"00\" {number}")),
        ("createNVMePort/0/eth0/tcp", "a new port has a number from 1 to 65535, not 0"),
        (
            "createNVMePort/1/a%2Fb/tcp",
            r#""a/b" is not an address or the name of a network interface; loop takes none"#,
        ),
        ("createNVMePort/1/eth0/udp", r#""udp" is not a protocol; there are tcp, rdma and loop"#),
        ("createNVMePort/1/eth0/tcp/x", r#""x" is not a service id, 1 to 65535"#),
        ("createNVMePort/1/none/loop/x", "the protocol loop has no service id"),
        (
            "createNVMeTarget/sda/1",
            r#""sda" is not the name of a RAM disk or a cache, such as rd0 or rc-wt_sdb"#,
        ),
        ("createNVMeTarget/rd0/any", &format!("\"any\" {number}, or all")),
        ("allowNVMeHost/rd0/..", r#"".." is not an NQN of at most 223 bytes"#),
        ("removeRapidDisk/%ff", "/v1/removeRapidDisk/%ff is not well percent-encoded"),
    ] {
        assert_eq!(post(&format!("/v1/{target}")), Err(NoAction::Invalid(message.to_owned())));
    }
    let message = "there is no /x%20y; src/api/README.md lists the paths";
    assert_eq!(get("/x%20y?z"), Err(NoAction::NoPath(message.to_owned())));
}

#[test]
fn a_path_that_is_nearly_right_is_told_which_was_meant() {
    for (path, meant) in [
        ("/v1/checkServiceStatus/", "/v1/checkServiceStatus"),
        ("/v1/checkservicestatus", "/v1/checkServiceStatus"),
        ("/V1/REMOVERAPIDDISK/rd0//", "/v1/removeRapidDisk/rd0"),
        (
            "/v1/createrapiddiskcache/rd0/mapper%2Fa/WriteBack",
            "/v1/createRapidDiskCache/rd0/mapper%2Fa/WriteBack",
        ),
    ] {
        let message = format!("there is no {path}; did you mean {meant}?");
        assert_eq!(get(path), Err(NoAction::NoPath(message)));
    }
}

/// An example that reads its parameters as other kinds than its path names fails in
/// `Parameters::take`.
#[test]
fn the_example_of_each_endpoint_calls_it_with_all_its_parameters() {
    for it in ROUTES.iter() {
        let Route { template, endpoint } = it;
        let method = if endpoint.verb == Verb::Get { Method::Get } else { Method::Post };
        let call = route(&method, endpoint.example);
        let segments = Segments::of(endpoint.example).unwrap();
        let texts = segments.texts().unwrap();
        assert!(it.matches(texts), "{}", endpoint.path);
        let mut parameters = Parameters::new(template, texts, Options::of("", &[]).unwrap());
        let action = (endpoint.action)(&mut parameters).unwrap();
        assert_eq!(parameters.next_text(), None, "{} has parameters that are not read", endpoint.path);
        assert_eq!(call, Call { action, class: endpoint.class, body: endpoint.body });
    }
}

#[test]
fn no_path_is_that_of_two_endpoints() {
    let could_be = |(a, b): (&&str, &&str)| a.starts_with('@') || b.starts_with('@') || a == b;
    for (i, Route { template, endpoint }) in ROUTES.iter().enumerate() {
        assert!(endpoint.path.starts_with('/') && template.len() <= MOST_SEGMENTS, "{}", endpoint.path);
        for other in &ROUTES[i + 1..] {
            let are_same =
                template.len() == other.template.len() && template.iter().zip(&other.template).all(could_be);
            assert!(!are_same, "{} and {}", endpoint.path, other.endpoint.path);
        }
    }
}

#[test]
fn a_change_is_a_post_and_a_read_is_none() {
    for endpoint in ENDPOINTS {
        assert_eq!(endpoint.verb == Verb::Post, endpoint.class == Class::Change, "{}", endpoint.path);
        assert!(endpoint.summary.ends_with('.'), "{}", endpoint.summary);
    }
}

#[test]
fn each_parameter_of_a_path_has_one_kind_and_each_kind_is_used() {
    let parameters = ENDPOINTS.iter().flat_map(|endpoint| endpoint.path.split('/'));
    let used: HashSet<_> = parameters.filter_map(|part| part.strip_prefix('@')).collect();
    let options: HashSet<_> = ENDPOINTS.iter().flat_map(|it| it.options).map(|kind| kind.name).collect();
    assert!(used.is_disjoint(&options));
    for (used, kinds) in [(used, KINDS), (options, OPTIONS)] {
        assert_eq!(used, kinds.iter().map(|kind| kind.name).collect());
        assert_eq!(used.len(), kinds.len(), "two kinds have one name");
    }
}

/// That the example and the values of a kind are accepted by its type.
fn check<T: Parameter>(checked: &mut Vec<&str>) {
    let Kind { name, values, example, .. } = T::KIND;
    checked.push(name);
    let is_accepted = |text: &str| T::read(text).is_some();
    assert!(is_accepted(example), "{name}: {example:?}");
    match values {
        Values::OneOf(texts) => assert!(texts.iter().all(|text| is_accepted(text)), "{name}: {texts:?}"),
        // This pattern allows every name and address, and more.
        Values::Pattern(pattern) if name == "interface" => assert!(string_regex(pattern).is_ok()),
        Values::Pattern(pattern) => proptest!(|(text in string_regex(pattern).unwrap())| {
            // A pattern cannot say shortly that a name is no directory's and how long it may be.
            let is_beyond_patterns = matches!(&*text, "." | "..") || text.len() > 255;
            prop_assert!(is_beyond_patterns || is_accepted(&text), "{}: {:?}", name, text);
        }),
    }
}

#[test]
fn what_a_kind_promises_is_accepted() {
    let mut checked = Vec::new();
    check::<DiskName>(&mut checked);
    check::<Size>(&mut checked);
    check::<SourceName>(&mut checked);
    check::<Policy>(&mut checked);
    check::<CacheName>(&mut checked);
    check::<Volume>(&mut checked);
    check::<PortId>(&mut checked);
    check::<Ports>(&mut checked);
    check::<PortAddress>(&mut checked);
    check::<Protocol>(&mut checked);
    check::<ServiceId>(&mut checked);
    check::<Nqn>(&mut checked);
    check::<RamDriver>(&mut checked);
    check::<Algorithm>(&mut checked);
    check::<Limit>(&mut checked);
    check::<BlockSize>(&mut checked);
    check::<Discard>(&mut checked);
    assert_eq!(checked, KINDS.iter().chain(OPTIONS).map(|kind| kind.name).collect::<Vec<_>>());
}

proptest! {
    /// No target makes the parser panic, and reads are never changes.
    #[test]
    fn any_target_has_an_outcome(target in "/(v1/)?[!-~]{0,60}") {
        for method in [Method::Get, Method::Head] {
            prop_assert!(route(&method, &target).class != Class::Change);
        }
        let call = route(&Method::Post, &target);
        prop_assert!(matches!(call.action, Action::Refuse(_)) || call.class == Class::Change);
    }
}
