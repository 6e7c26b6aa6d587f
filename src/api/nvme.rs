//! NVMe ports, targets and hosts: their parameters, what is done with them, and their JSON.

use std::sync::Arc;

use serde_json::{Value, json};

use super::answer::{done, list, made};
use super::parameters::{Kind, Parameter, Parameters, Parsed, Values};
use crate::storage::{
    Export, Nqn, Port, PortAddress, PortId, Ports, Protocol, Result, ServiceId, Storage, Volume,
};

/// What is done with NVMe ports and targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NvmeAction {
    /// List the targets and the ports that they are linked to.
    Targets,
    /// List the ports.
    Ports,
    /// Make a port.
    CreatePort(PortId, PortAddress, Protocol, ServiceId),
    /// Remove a port.
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

impl NvmeAction {
    /// Reads the action that makes a port with the default service id.
    ///
    /// # Errors
    /// A parameter is wrong.
    pub fn create_port(parameters: &mut Parameters<'_>) -> Parsed<NvmeAction> {
        let (port, address, protocol) = (parameters.take()?, parameters.take()?, parameters.take()?);
        check_new_port(port)?;
        Ok(NvmeAction::CreatePort(port, address, protocol, ServiceId::DEFAULT))
    }

    /// Reads the action that makes a port with a service id.
    ///
    /// # Errors
    /// A parameter is wrong, or the protocol has no service id.
    pub fn create_port_with_service(parameters: &mut Parameters<'_>) -> Parsed<NvmeAction> {
        let (port, address, protocol) = (parameters.take()?, parameters.take()?, parameters.take()?);
        check_new_port(port)?;
        if protocol == Protocol::Loop {
            return Err("the protocol loop has no service id".into());
        }
        Ok(NvmeAction::CreatePort(port, address, protocol, parameters.take()?))
    }
}

/// Refuses to make a port 0, which other programs take for the default.
fn check_new_port(port: PortId) -> Parsed<()> {
    if port.number() == 0 {
        return Err("a new port has a number from 1 to 65535, not 0".into());
    }
    Ok(())
}

/// The numbers 1 to 65535 as a regular expression.
macro_rules! number_of_16_bits {
    () => {
        "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
    };
}

impl Parameter for Volume {
    const KIND: Kind = Kind {
        name: "volume",
        description: "What is exported: a RAM disk or a cache, as `listRapidDiskVolumes` names it.",
        values: Values::Pattern("rd(0|[1-9][0-9]{0,8})|rc-w[tab]_[0-9A-Za-z#+.:=@_-]{1,121}"),
        example: "rd0",
        expected: "the name of a RAM disk or a cache, such as rd0 or rc-wt_sdb",
    };

    fn read(text: &str) -> Option<Volume> {
        Volume::parse(text)
    }
}

impl Parameter for PortId {
    const KIND: Kind = Kind {
        name: "port",
        description: "The number of an NVMe port, 0 to 65535. It is a name that you choose, not a TCP port. A new \
                      port cannot have the number 0, which other programs use.",
        values: Values::Pattern(concat!("0|", number_of_16_bits!())),
        example: "1",
        expected: "the number of a port, 0 to 65535",
    };

    fn read(text: &str) -> Option<PortId> {
        PortId::parse(text)
    }
}

impl Parameter for Ports {
    const KIND: Kind = Kind {
        name: "ports",
        description: "The number of an NVMe port, or `all` for every port there is.",
        values: Values::Pattern(concat!("all|0|", number_of_16_bits!())),
        example: "all",
        expected: "the number of a port, 0 to 65535, or all",
    };

    fn read(text: &str) -> Option<Ports> {
        Ports::parse(text)
    }
}

impl Parameter for PortAddress {
    const KIND: Kind = Kind {
        name: "interface",
        description: "Where the port listens: the name of a network interface, whose first address is taken, IPv4 \
                      before IPv6; or an address of this machine, a colon in it written `%3A`; or `none`, for the \
                      protocol `loop`.",
        values: Values::Pattern("[!-.0-9;-~]{1,15}|[0-9A-Fa-f:.]{2,45}"),
        example: "eth0",
        expected: "an address or the name of a network interface; loop takes none",
    };

    fn read(text: &str) -> Option<PortAddress> {
        PortAddress::parse(text)
    }
}

impl Parameter for Protocol {
    const KIND: Kind = Kind {
        name: "protocol",
        description: "The transport: NVMe over TCP, over RDMA, or within this machine.",
        values: Values::OneOf(&["tcp", "rdma", "loop"]),
        example: "tcp",
        expected: "a protocol; there are tcp, rdma and loop",
    };

    fn read(text: &str) -> Option<Protocol> {
        Protocol::parse(text)
    }
}

impl Parameter for ServiceId {
    const KIND: Kind = Kind {
        name: "service",
        description: "The TCP or RDMA port at which the NVMe port listens; 4420 if not given. The protocol `loop` \
                      has none.",
        values: Values::Pattern(number_of_16_bits!()),
        example: "4421",
        expected: "a service id, 1 to 65535",
    };

    fn read(text: &str) -> Option<ServiceId> {
        ServiceId::parse(text)
    }
}

impl Parameter for Nqn {
    const KIND: Kind = Kind {
        name: "hostnqn",
        description: "The NQN of an initiator. On Linux it is in the initiator's file `/etc/nvme/hostnqn`.",
        values: Values::Pattern("[!-.0-~]{1,223}"),
        example: "nqn.2014-08.org.nvmexpress:uuid:8a2f4b10-6c1d-4e53-9b7a-d05c3e91f264",
        expected: "an NQN of at most 223 bytes",
    };

    fn read(text: &str) -> Option<Nqn> {
        Nqn::parse(text)
    }
}

/// Does what `action` asks for. Returns the answer's body.
pub fn execute(storage: &Storage, action: &NvmeAction) -> Result<Value> {
    Ok(match action {
        NvmeAction::Targets => {
            let (targets, ports) = storage.exports.list()?;
            list_targets(&targets, &ports)
        }
        NvmeAction::Ports => list_ports(&storage.exports.ports()?),
        NvmeAction::CreatePort(id, place, protocol, service) => {
            made_port(&storage.exports.create_port(*id, place, *protocol, *service)?)
        }
        NvmeAction::RemovePort(id) => {
            storage.exports.remove_port(*id)?;
            done(format!("port {id} is removed"))
        }
        NvmeAction::CreateTarget(volume, ports, host) => {
            let nqn = storage.exports.create(volume, *ports, host.as_ref())?;
            made("nqn", &nqn, format!("{volume} is exported as {nqn}"))
        }
        NvmeAction::RemoveTarget(volume, port) => {
            storage.exports.remove(volume, *port)?;
            done(match port {
                None => format!("{volume} is not exported any more"),
                Some(port) => format!("{volume} is not exported at port {port} any more"),
            })
        }
        NvmeAction::AllowHost(volume, host) => {
            let nqn = storage.exports.allow_host(volume, host)?;
            made("nqn", &nqn, format!("{host} may connect to {volume}"))
        }
        NvmeAction::DenyHost(volume, host) => {
            let nqn = storage.exports.deny_host(volume, host)?;
            made("nqn", &nqn, format!("{host} may not connect to {volume} any more"))
        }
    })
}

/// `listAllNVMeTargets`: the reference's two lists, and in each target who may
/// connect and where.
fn list_targets(targets: &[Export], ports: &[Arc<Port>]) -> Value {
    let link = |at: &Port, nqn: &String| {
        let mut link = port(at);
        link["nqn"] = json!(nqn);
        link
    };
    let links = ports.iter().flat_map(|port| port.subsystems.iter().map(move |nqn| link(port, nqn)));
    list("targets", [list("nvmet_targets", targets.iter().map(target)), list("nvmet_ports", links)])
}

fn target(target: &Export) -> Value {
    let Export { subsystem, namespace, size, uuid, nguid, ports } = target;
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
        "assigned_ports": ports.iter().map(|at| port(at)).collect::<Vec<_>>(),
    });
    if let Some(controllers) = subsystem.controllers {
        fields["controllers"] = controllers.into();
    }
    for (name, value) in [("uuid", uuid), ("nguid", nguid)] {
        if let Some(value) = value {
            fields[name] = value.as_str().into();
        }
    }
    fields
}

/// `listAllNVMePorts`.
fn list_ports(ports: &[Port]) -> Value {
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
fn made_port(made: &Port) -> Value {
    let mut body = done(format!("port {} is ready for targets", made.id));
    if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), port(made)) {
        body.extend(fields);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::super::page;
    use super::*;
    use crate::kernel::nvmet::{Namespace, Subsystem};

    const UUID: &str = "9822e8cb-97c5-8291-a615-b2b6043e58b6";

    fn port_of(id: u32, address: Option<&str>, nqn: &str) -> Arc<Port> {
        Arc::new(Port {
            id,
            address: address.map(str::to_owned),
            protocol: address.map(|_| "tcp".to_owned()),
            service_id: address.map(|_| "4420".to_owned()),
            subsystems: vec![nqn.to_owned()],
        })
    }

    fn target_of(nqn: &str, host: &str, serial: Option<&str>, size: u64, ports: &[Arc<Port>]) -> Export {
        let namespace = Namespace { id: 1, device: "/dev/rd1".into(), enabled: true };
        Export {
            namespace: namespace.clone(),
            subsystem: Arc::new(Subsystem {
                nqn: nqn.to_owned(),
                namespaces: vec![namespace],
                allowed_hosts: vec![host.to_owned()],
                any_host: false,
                serial: serial.map(str::to_owned),
                controllers: Some(2),
            }),
            size: Some(size),
            uuid: Some(UUID.to_owned()),
            nguid: None,
            ports: ports.into(),
        }
    }

    #[test]
    fn targets_have_both_shapes_that_clients_know() {
        let ports_there = vec![port_of(1, Some("10.0.0.185"), "rd1-test"), port_of(2, None, "rd1-test")];
        let target = target_of("rd1-test", "nqn.host", Some("0123"), 4096, &ports_there[..1]);
        assert_eq!(
            list_targets(&[target], &ports_there),
            json!({"targets": [
                {"nvmet_targets": [{
                    "nqn": "rd1-test", "namespace": 1, "device": "/dev/rd1", "enabled": "true",
                    "allowed_hosts": [{"host": "nqn.host"}],
                    "any_host": false, "serial": "0123", "size": 4096, "controllers": 2, "uuid": UUID,
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
            list_ports(&[Port::clone(&ports_there[0])]),
            json!({"targets": [{"nvmet_ports": [
                {"port": 1, "address": "10.0.0.185", "protocol": "tcp", "service_id": "4420"}
            ]}]})
        );
    }

    #[test]
    fn the_answers_have_these_bytes() {
        let port =
            Arc::new(Port { service_id: None, ..Port::clone(&port_of(1, Some("10.0.0.185"), "nqn.x")) });
        let target = target_of("nqn.x", "nqn.host", None, 4096, std::slice::from_ref(&port));
        assert_eq!(
            list_targets(&[target], std::slice::from_ref(&port)).to_string(),
            concat!(
                r#"{"targets":[{"nvmet_targets":[{"allowed_hosts":[{"host":"nqn.host"}],"any_host":false,"#,
                r#""assigned_ports":[{"address":"10.0.0.185","port":1,"protocol":"tcp","service_id":"UNDEFINED"}],"#,
                r#""controllers":2,"device":"/dev/rd1","enabled":"true","namespace":1,"nqn":"nqn.x","#,
                r#""serial":"UNAVAILABLE","size":4096,"uuid":"9822e8cb-97c5-8291-a615-b2b6043e58b6"}]},"#,
                r#"{"nvmet_ports":[{"address":"10.0.0.185","nqn":"nqn.x","#,
                r#""port":1,"protocol":"tcp","service_id":"UNDEFINED"}]}]}"#
            )
        );
        assert_eq!(
            list_ports(std::slice::from_ref(&port)).to_string(),
            concat!(
                r#"{"targets":[{"nvmet_ports":[{"address":"10.0.0.185","port":1,"protocol":"tcp","#,
                r#""service_id":"UNDEFINED"}]}]}"#
            )
        );
        assert_eq!(
            made_port(&port).to_string(),
            concat!(
                r#"{"address":"10.0.0.185","message":"port 1 is ready for targets","port":1,"protocol":"tcp","#,
                r#""service_id":"UNDEFINED","status":"Success"}"#
            )
        );
    }

    #[test]
    fn the_page_shows_these_answers() {
        let nqn = "nqn.2021-06.org.rapiddisk:box-rd1";
        let port = port_of(1, Some("10.0.0.185"), nqn);
        let target = target_of(
            nqn,
            Nqn::KIND.example,
            Some("6486d0f0dfcb75b6"),
            67108864,
            std::slice::from_ref(&port),
        );
        let target = Export { nguid: Some(UUID.to_owned()), ..target };
        let target = list_targets(&[target], std::slice::from_ref(&port));
        assert_eq!(page::example("listAllNVMeTargets"), target);
        assert_eq!(page::example("listAllNVMePorts"), list_ports(std::slice::from_ref(&port)));
        assert_eq!(page::example("createNVMePort"), made_port(&port));
    }
}
