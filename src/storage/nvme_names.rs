//! The names of the NVMe side, as types that only hold valid values.

use std::fmt;
use std::net::IpAddr;

use super::names::{CacheName, DiskName};

/// Longest NQN in bytes (NVMe base specification, NVMe Qualified Names).
const NQN_MAX: usize = 223;

/// What the names of exports begin with.
const PREFIX: &str = "nqn.2021-06.org.rapiddisk:";

/// An NVMe qualified name: 1 to 223 printable ASCII characters without blank or
/// `/`, and neither `.` nor `..`, since it is a directory's name in configfs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nqn(String);

impl Nqn {
    /// Checks a name; `None` if it is not one.
    pub fn parse(name: &str) -> Option<Nqn> {
        let fits = (1..=NQN_MAX).contains(&name.len());
        let is_printable = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        (fits && is_printable && !matches!(name, "." | "..")).then(|| Nqn(name.to_owned()))
    }

    /// The name under which a volume of the machine `host` is exported; `None` if
    /// it would be too long. What a host name should not hold becomes `-`.
    pub fn of(host: &str, volume: &Volume) -> Option<Nqn> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        let host = host.replace(|c| !is_plain(c), "-");
        Nqn::parse(&format!("{PREFIX}{host}-{volume}"))
    }

    /// Whether some machine exports `volume` under this name.
    pub fn is_export_of(&self, volume: &Volume) -> bool {
        self.0.starts_with(PREFIX) && self.0.ends_with(&format!("-{volume}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a port. This daemon makes none with number 0, but others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(u16);

impl PortId {
    /// Reads a decimal number without leading zero.
    pub fn parse(text: &str) -> Option<PortId> {
        if text == "0" { Some(PortId(0)) } else { decimal(text).map(PortId) }
    }

    /// The number.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A transport service id: for TCP and RDMA a port number, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceId(u16);

impl ServiceId {
    /// The one IANA has assigned to NVMe over Fabrics.
    pub const DEFAULT: ServiceId = ServiceId(4420);

    /// Reads a decimal number without leading zero.
    pub fn parse(text: &str) -> Option<ServiceId> {
        decimal(text).map(ServiceId)
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn decimal(text: &str) -> Option<u16> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_decimal || text.starts_with('0') { None } else { text.parse().ok() }
}

/// A transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// NVMe/TCP.
    Tcp,
    /// NVMe/RDMA.
    Rdma,
    /// Within this machine.
    Loop,
}

impl Protocol {
    /// Reads `tcp`, `rdma` or `loop`.
    pub fn parse(text: &str) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Rdma, Protocol::Loop].into_iter().find(|protocol| protocol.as_str() == text)
    }

    /// As configfs calls it (`addr_trtype`).
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Rdma => "rdma",
            Protocol::Loop => "loop",
        }
    }

    /// The kernel module that serves it.
    pub fn module(self) -> &'static str {
        match self {
            Protocol::Tcp => "nvmet-tcp",
            Protocol::Rdma => "nvmet-rdma",
            Protocol::Loop => "nvme-loop",
        }
    }
}

/// Where a port listens, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortAddress {
    /// At this address.
    Address(IpAddr),
    /// At the first address of this network interface.
    Interface(String),
    /// Nowhere: `none`, for the transport `loop`.
    Nowhere,
}

impl PortAddress {
    /// Reads an address, the name of an interface, or `none`.
    pub fn parse(text: &str) -> Option<PortAddress> {
        if let Ok(address) = text.parse() {
            return Some(PortAddress::Address(address));
        }
        // As the kernel's dev_valid_name(), and no longer than IFNAMSIZ allows.
        let is_name = (1..16).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte))
            && !matches!(text, "." | "..");
        match text {
            "none" => Some(PortAddress::Nowhere),
            _ => is_name.then(|| PortAddress::Interface(text.to_owned())),
        }
    }
}

impl fmt::Display for PortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortAddress::Address(address) => address.fmt(f),
            PortAddress::Interface(name) => f.write_str(name),
            PortAddress::Nowhere => f.write_str("none"),
        }
    }
}

/// Something that can be exported: a RAM disk or a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// A RAM disk.
    Disk(DiskName),
    /// A cache mapping.
    Cache(CacheName),
}

impl Volume {
    /// Reads the name of a RAM disk or of a cache.
    pub fn parse(name: &str) -> Option<Volume> {
        DiskName::parse(name).map(Volume::Disk).or_else(|| CacheName::parse(name).map(Volume::Cache))
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Volume::Disk(name) => name.fmt(f),
            Volume::Cache(name) => name.fmt(f),
        }
    }
}

/// The ports that a target is to be offered at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every port there is.
    All,
    /// This one.
    One(PortId),
}

impl Ports {
    /// Reads a port's number or `all`.
    pub fn parse(text: &str) -> Option<Ports> {
        if text == "all" { Some(Ports::All) } else { PortId::parse(text).map(Ports::One) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nqns_are_bounded_and_stay_one_directory() {
        for good in ["rd1-test", "nqn.2014-08.org.nvmexpress:uuid:0-1", &"x".repeat(223)] {
            assert_eq!(Nqn::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\n", "a\0", "é", &"x".repeat(224)] {
            assert_eq!(Nqn::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_export_is_named_after_host_and_volume() {
        let volume = Volume::parse("rc-wt_sda").unwrap();
        let nqn = |host: &str| Nqn::of(host, &volume).map(|nqn| nqn.0);
        assert_eq!(nqn("box").unwrap(), "nqn.2021-06.org.rapiddisk:box-rc-wt_sda");
        assert_eq!(nqn("a/../b c").unwrap(), "nqn.2021-06.org.rapiddisk:a-..-b-c-rc-wt_sda");
        assert_eq!(nqn(&"h".repeat(223)), None);
        let is_export = |name: &str| Nqn::parse(name).unwrap().is_export_of(&volume);
        assert!(is_export("nqn.2021-06.org.rapiddisk:other-rc-wt_sda"));
        assert!(!is_export("nqn.2021-06.org.rapiddisk:other-rd0") && !is_export("nqn.other:box-rc-wt_sda"));
    }

    #[test]
    fn numbers_are_decimal_and_in_range() {
        assert_eq!(PortId::parse("65535").unwrap().number(), 65535);
        assert_eq!(ServiceId::parse("4420"), Some(ServiceId::DEFAULT));
        assert_eq!(PortId::parse("0").unwrap().number(), 0);
        assert_eq!(ServiceId::parse("0"), None);
        for bad in ["", "00", "01", "-1", "+1", "65536", "1x", " 1", "99999999999999999999"] {
            assert_eq!(PortId::parse(bad), None, "{bad:?}");
            assert_eq!(ServiceId::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Ports::parse("all"), Some(Ports::All));
        assert_eq!(Ports::parse("7"), PortId::parse("7").map(Ports::One));
        assert_eq!(Ports::parse("any"), None);
    }

    #[test]
    fn a_port_has_an_address_an_interface_or_neither() {
        assert_eq!(PortAddress::parse("10.0.0.1"), Some(PortAddress::Address("10.0.0.1".parse().unwrap())));
        assert_eq!(PortAddress::parse("fe80::1"), Some(PortAddress::Address("fe80::1".parse().unwrap())));
        assert_eq!(PortAddress::parse("eth0.100"), Some(PortAddress::Interface("eth0.100".into())));
        assert_eq!(PortAddress::parse("none"), Some(PortAddress::Nowhere));
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "an-interface-too-long", "1.2.3.4:80", "[::1]", "é"]
        {
            assert_eq!(PortAddress::parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        /// What is accepted is shown as it came.
        #[test]
        fn what_is_accepted_round_trips(text in "\\PC{0,12}|[0-9a-f.:]{0,12}|rd[0-9]{0,4}") {
            if let Some(nqn) = Nqn::parse(&text) {
                prop_assert_eq!(nqn.to_string(), text.clone());
            }
            if let Some(volume) = Volume::parse(&text) {
                prop_assert_eq!(volume.to_string(), text.clone());
            }
            if let Some(port) = PortId::parse(&text) {
                prop_assert_eq!(port.to_string(), text.clone());
            }
            if let Some(address @ (PortAddress::Interface(_) | PortAddress::Nowhere)) = PortAddress::parse(&text) {
                prop_assert_eq!(address.to_string(), text);
            }
        }
    }
}
