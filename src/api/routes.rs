//! The endpoints as one table. From it come the parser, the answers 404 and 405, the
//! tables of the page `src/api/README.md`, and the specification.
//!
//! A new endpoint is a row here, and an action with its function in the file of its noun.

use std::borrow::Cow;
use std::sync::LazyLock;

use super::action::{Action, NoAction};
use super::caches::{CacheAction, Discard};
use super::disks::{DiskAction, Limit};
use super::machine::MachineAction;
use super::nvme::NvmeAction;
use super::parameters::{Kind, Options, Parameter, Parameters, Parsed, Segments};
use super::schemas::{self, Answer};
use crate::http::Method;
use crate::http::{Call, Class};
use crate::storage::{
    Algorithm, BlockSize, CacheName, DiskName, Nqn, Policy, PortAddress, PortId, Ports, Protocol, RamDriver,
    ServiceId, Size, SourceName, Volume,
};

/// How a path is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// GET, and HEAD as well.
    Get,
    /// POST.
    Post,
}

/// One call of the API.
pub struct Endpoint {
    /// How it is called.
    pub verb: Verb,
    /// Its path; a segment that begins with `@` is the parameter of that name.
    pub path: &'static str,
    /// The options that its query may have.
    pub options: &'static [Kind],
    /// How it is carried out.
    pub class: Class,
    /// Bytes of a body that it takes; 0: none.
    pub body: usize,
    /// A target that calls it.
    pub example: &'static str,
    /// What it does, in one sentence.
    pub summary: &'static str,
    /// What it answers.
    pub answer: &'static Answer,
    /// Makes its action of the parameters in its path.
    pub action: fn(&mut Parameters<'_>) -> Parsed<Action>,
}

/// Every call of the API.
pub static ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        class: Class::Instant,
        ..read(
            "/v1/checkServiceStatus",
            "/v1/checkServiceStatus",
            "Says that the service runs, and which drivers it has.",
            &schemas::STATUS,
            |_| Ok(Action::Status),
        )
    },
    read(
        "/v1/openapi.json",
        "/v1/openapi.json",
        "Describes every call, in the form of OpenAPI 3.1.",
        &schemas::SPECIFICATION,
        |_| Ok(Action::Specification),
    ),
    read(
        "/v1/listAllResources",
        "/v1/listAllResources",
        "Lists the memory and the disks of the machine.",
        &schemas::RESOURCES,
        |_| Ok(MachineAction::Resources.into()),
    ),
    read(
        "/v1/listRapidDiskVolumes",
        "/v1/listRapidDiskVolumes",
        "Lists the RAM disks and the caches.",
        &schemas::VOLUMES,
        |_| Ok(MachineAction::Volumes.into()),
    ),
    Endpoint {
        options: &[RamDriver::KIND, Algorithm::KIND, Limit::KIND],
        ..change(
            "/v1/createRapidDisk/@size",
            "/v1/createRapidDisk/128",
            "Makes a RAM disk.",
            &schemas::CREATE_DISK,
            |p| DiskAction::create(p).map(Action::from),
        )
    },
    change(
        "/v1/resizeRapidDisk/@disk/@size",
        "/v1/resizeRapidDisk/rd0/1GiB",
        "Gives a RAM disk another size.",
        &schemas::RESIZE_DISK,
        |p| Ok(DiskAction::Resize(p.take()?, p.take()?).into()),
    ),
    change(
        "/v1/flushRapidDisk/@disk",
        "/v1/flushRapidDisk/rd0",
        "Destroys the contents of a RAM disk and frees its memory.",
        &schemas::FLUSH_DISK,
        |p| Ok(DiskAction::Flush(p.take()?).into()),
    ),
    change(
        "/v1/removeRapidDisk/@disk",
        "/v1/removeRapidDisk/rd0",
        "Removes a RAM disk and its contents.",
        &schemas::REMOVE_DISK,
        |p| Ok(DiskAction::Remove(p.take()?).into()),
    ),
    change(
        "/v1/lockRapidDisk/@disk",
        "/v1/lockRapidDisk/rd0",
        "Makes a RAM disk read-only.",
        &schemas::LOCK_DISK,
        |p| Ok(DiskAction::Lock(p.take()?).into()),
    ),
    change(
        "/v1/unlockRapidDisk/@disk",
        "/v1/unlockRapidDisk/rd0",
        "Makes a RAM disk read-write.",
        &schemas::UNLOCK_DISK,
        |p| Ok(DiskAction::Unlock(p.take()?).into()),
    ),
    Endpoint {
        options: &[BlockSize::KIND],
        ..change(
            "/v1/createRapidDiskCache/@disk/@source/@policy",
            "/v1/createRapidDiskCache/rd0/sdb/writeback",
            "Makes a RAM disk the cache of another device.",
            &schemas::CREATE_CACHE,
            |p| CacheAction::create(p).map(Action::from),
        )
    },
    Endpoint {
        options: &[Discard::KIND],
        ..change(
            "/v1/removeRapidDiskCache/@cache",
            "/v1/removeRapidDiskCache/rc-wb_sdb",
            "Removes a cache; its RAM disk and its source stay.",
            &schemas::REMOVE_CACHE,
            |p| Ok(CacheAction::Remove(p.take()?, p.option()?.unwrap_or_default()).into()),
        )
    },
    read(
        "/v1/showRapidDiskCacheStats/@cache",
        "/v1/showRapidDiskCacheStats/rc-wt_sdb",
        "Shows the counters of a cache.",
        &schemas::STATISTICS,
        |p| Ok(CacheAction::Stats(p.take()?).into()),
    ),
    read(
        "/v1/listAllNVMeTargets",
        "/v1/listAllNVMeTargets",
        "Lists the NVMe targets and the ports that offer them.",
        &schemas::TARGETS,
        |_| Ok(NvmeAction::Targets.into()),
    ),
    read("/v1/listAllNVMePorts", "/v1/listAllNVMePorts", "Lists the NVMe ports.", &schemas::PORTS, |_| {
        Ok(NvmeAction::Ports.into())
    }),
    change(
        "/v1/createNVMePort/@port/@interface/@protocol",
        "/v1/createNVMePort/1/eth0/tcp",
        "Makes an NVMe port, with the service 4420.",
        &schemas::CREATE_PORT,
        |p| NvmeAction::create_port(p).map(Action::from),
    ),
    change(
        "/v1/createNVMePort/@port/@interface/@protocol/@service",
        "/v1/createNVMePort/2/10.0.0.5/tcp/4421",
        "Makes an NVMe port.",
        &schemas::CREATE_PORT,
        |p| NvmeAction::create_port_with_service(p).map(Action::from),
    ),
    change(
        "/v1/removeNVMePort/@port",
        "/v1/removeNVMePort/1",
        "Removes an NVMe port.",
        &schemas::REMOVE_PORT,
        |p| Ok(NvmeAction::RemovePort(p.take()?).into()),
    ),
    change(
        "/v1/createNVMeTarget/@volume/@ports",
        "/v1/createNVMeTarget/rd0/1",
        "Exports a volume to any host.",
        &schemas::CREATE_TARGET,
        |p| Ok(NvmeAction::CreateTarget(p.take()?, p.take()?, None).into()),
    ),
    change(
        "/v1/createNVMeTarget/@volume/@ports/@hostnqn",
        "/v1/createNVMeTarget/rd0/all/nqn.2014-08.org.nvmexpress:uuid:8a2f4b10-6c1d-4e53-9b7a-d05c3e91f264",
        "Exports a volume to one host.",
        &schemas::CREATE_TARGET,
        |p| Ok(NvmeAction::CreateTarget(p.take()?, p.take()?, Some(p.take()?)).into()),
    ),
    change(
        "/v1/removeNVMeTarget/@volume",
        "/v1/removeNVMeTarget/rd0",
        "Ends the export of a volume at every port.",
        &schemas::REMOVE_TARGET,
        |p| Ok(NvmeAction::RemoveTarget(p.take()?, None).into()),
    ),
    change(
        "/v1/removeNVMeTarget/@volume/@port",
        "/v1/removeNVMeTarget/rd0/1",
        "Ends the export of a volume at one port.",
        &schemas::REMOVE_TARGET,
        |p| Ok(NvmeAction::RemoveTarget(p.take()?, Some(p.take()?)).into()),
    ),
    change(
        "/v1/allowNVMeHost/@volume/@hostnqn",
        "/v1/allowNVMeHost/rd0/nqn.2014-08.org.nvmexpress:uuid:8a2f4b10-6c1d-4e53-9b7a-d05c3e91f264",
        "Lets a host connect to an exported volume.",
        &schemas::ALLOW_HOST,
        |p| Ok(NvmeAction::AllowHost(p.take()?, p.take()?).into()),
    ),
    change(
        "/v1/denyNVMeHost/@volume/@hostnqn",
        "/v1/denyNVMeHost/rd0/nqn.2014-08.org.nvmexpress:uuid:8a2f4b10-6c1d-4e53-9b7a-d05c3e91f264",
        "Keeps a host from connecting to an exported volume.",
        &schemas::DENY_HOST,
        |p| Ok(NvmeAction::DenyHost(p.take()?, p.take()?).into()),
    ),
];

/// Every kind of parameter that a path has.
pub static KINDS: &[Kind] = &[
    DiskName::KIND,
    Size::KIND,
    SourceName::KIND,
    Policy::KIND,
    CacheName::KIND,
    Volume::KIND,
    PortId::KIND,
    Ports::KIND,
    PortAddress::KIND,
    Protocol::KIND,
    ServiceId::KIND,
    Nqn::KIND,
];

/// Every kind of option.
pub static OPTIONS: &[Kind] =
    &[RamDriver::KIND, Algorithm::KIND, Limit::KIND, BlockSize::KIND, Discard::KIND];

type ToAction = fn(&mut Parameters<'_>) -> Parsed<Action>;

/// A call that changes nothing.
const fn read(
    path: &'static str,
    example: &'static str,
    summary: &'static str,
    answer: &'static Answer,
    action: ToAction,
) -> Endpoint {
    Endpoint {
        verb: Verb::Get,
        path,
        options: &[],
        class: Class::Read,
        body: 0,
        example,
        summary,
        answer,
        action,
    }
}

/// A call that changes something.
const fn change(
    path: &'static str,
    example: &'static str,
    summary: &'static str,
    answer: &'static Answer,
    action: ToAction,
) -> Endpoint {
    Endpoint {
        verb: Verb::Post,
        path,
        options: &[],
        class: Class::Change,
        body: 0,
        example,
        summary,
        answer,
        action,
    }
}

impl Verb {
    fn allows(self, method: &Method) -> bool {
        match self {
            Verb::Get => matches!(method, Method::Get | Method::Head),
            Verb::Post => matches!(method, Method::Post),
        }
    }

    /// The methods, as in the field `Allow`.
    fn allowed(self) -> &'static str {
        match self {
            Verb::Get => "GET, HEAD",
            Verb::Post => "POST",
        }
    }
}

/// The endpoints, each with its path cut into segments: once, not for each request.
pub static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| ENDPOINTS.iter().map(Route::of).collect());

/// An endpoint with its path.
pub struct Route {
    /// The segments of the path: the version, the name of the call, and the parameters, each behind an `@`.
    pub template: Vec<&'static str>,
    /// The endpoint.
    pub endpoint: &'static Endpoint,
}

impl Route {
    fn of(endpoint: &'static Endpoint) -> Route {
        Route { template: endpoint.path.split('/').skip(1).collect(), endpoint }
    }

    fn matches(&self, segments: &[Cow<'_, str>]) -> bool {
        let fits = |(part, segment): (&&str, &Cow<'_, str>)| part.starts_with('@') || *part == segment;
        self.template.len() == segments.len() && self.template.iter().zip(segments).all(fits)
    }
}

/// What a request asks for, by its method and its target as in the request line.
pub fn route(method: &Method, target: &str) -> Call<Action> {
    find(method, target).unwrap_or_else(|why| Call {
        action: Action::Refuse(why),
        class: Class::Instant,
        body: 0,
    })
}

fn find(method: &Method, target: &str) -> Result<Call<Action>, NoAction> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let segments =
        Segments::of(path).ok_or_else(|| NoAction::Invalid(format!("{path} is not well percent-encoded")))?;
    let no_path = || match meant(path) {
        Some(meant) => NoAction::NoPath(format!("there is no {path}; did you mean {meant}?")),
        None => NoAction::NoPath(format!("there is no {path}; src/api/README.md lists the paths")),
    };
    let texts = segments.texts().ok_or_else(no_path)?;
    let Route { template, endpoint } = ROUTES.iter().find(|it| it.matches(texts)).ok_or_else(no_path)?;
    if !endpoint.verb.allows(method) {
        return Err(NoAction::NoMethod(endpoint.verb.allowed()));
    }
    let options = Options::of(query, endpoint.options).map_err(NoAction::Invalid)?;
    let mut parameters = Parameters::new(template, texts, options);
    let action = (endpoint.action)(&mut parameters).map_err(NoAction::Invalid)?;
    Ok(Call { action, class: endpoint.class, body: endpoint.body })
}

/// The path that was meant by one with a slash at its end, or in the wrong case.
fn meant(path: &str) -> Option<String> {
    let texts: Vec<_> = path.trim_end_matches('/').split('/').skip(1).collect();
    let is_like = |(part, text): (&&str, &&str)| part.starts_with('@') || part.eq_ignore_ascii_case(text);
    let is_meant = |route: &&Route| {
        route.template.len() == texts.len() && route.template.iter().zip(&texts).all(is_like)
    };
    let route = ROUTES.iter().find(is_meant)?;
    let parts = route.template.iter().zip(&texts);
    Some(parts.map(|(part, text)| format!("/{}", if part.starts_with('@') { text } else { part })).collect())
}

#[cfg(test)]
mod tests;
