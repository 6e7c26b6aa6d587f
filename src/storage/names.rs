//! The names and quantities that cross from a client into the storage layer, as
//! types that only hold valid values.

use std::fmt;

use crate::kernel::dm;

/// Bytes in a MiB, the unit of a size without one.
const MIB: u64 = 1 << 20;

/// The name of a RAM disk: `rd` and a decimal number without leading zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskName(pub u32);

impl DiskName {
    /// Reads `rdN`; `None` if it is not one.
    pub fn parse(name: &str) -> Option<DiskName> {
        let digits = name.strip_prefix("rd")?;
        let is_canonical = digits == "0" || !digits.starts_with('0');
        let is_decimal = digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_canonical && is_decimal { digits.parse().ok().map(DiskName) } else { None }
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rd{}", self.0)
    }
}

/// A size in bytes, more than zero and a multiple of the MiB. One too large for
/// 64 bits saturates: no memory limit allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// Reads a size: MiB as a plain number, or a number with a unit.
    pub fn parse(text: &str) -> Option<Size> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = match unit {
            "" | "M" | "MiB" => MIB,
            "G" | "GiB" => MIB << 10,
            "T" | "TiB" => MIB << 20,
            _ => return None,
        };
        if number.is_empty() || number.bytes().all(|byte| byte == b'0') {
            return None;
        }
        // All digits, so the only error is a number beyond 64 bits.
        let number: u64 = number.parse().unwrap_or(u64::MAX);
        Some(Size(number.saturating_mul(unit).min(u64::MAX - u64::MAX % MIB)))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// How a cache treats writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// To the source and the cache, done when the source is.
    WriteThrough,
    /// To the source alone.
    WriteAround,
    /// To the cache, and later to the source.
    Writeback,
}

impl Policy {
    /// Each of them.
    pub const ALL: [Policy; 3] = [Policy::WriteThrough, Policy::WriteAround, Policy::Writeback];

    /// Reads a policy's name; `write-back` is another for `writeback`.
    pub fn parse(name: &str) -> Option<Policy> {
        let name = if name == "write-back" { "writeback" } else { name };
        Policy::ALL.into_iter().find(|policy| policy.as_str() == name)
    }

    /// The policy's name, which is also the `mode` in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::WriteThrough => "write-through",
            Policy::WriteAround => "write-around",
            Policy::Writeback => "writeback",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Policy::WriteThrough => "rc-wt_",
            Policy::WriteAround => "rc-wa_",
            Policy::Writeback => "rc-wb_",
        }
    }
}

/// Bytes in a block of a writeback cache, as asked for: a power of two from 512 to 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u64);

impl BlockSize {
    /// Reads a number of bytes; `None` if there are no such blocks.
    pub fn parse(text: &str) -> Option<BlockSize> {
        ["512", "1024", "2048", "4096"].contains(&text).then(|| text.parse().ok().map(BlockSize))?
    }

    /// The bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// How a RAM disk of `zram` compresses, by the kernel's name of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Algorithm(String);

impl Algorithm {
    /// Reads a name: 1 to 32 small letters, digits, dashes and underscores.
    pub fn parse(name: &str) -> Option<Algorithm> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        ((1..=32).contains(&name.len()) && name.bytes().all(allowed)).then(|| Algorithm(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a cache mapping: its policy's prefix and the last part of its
/// source's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheName(dm::Name);

impl CacheName {
    /// Reads the name of a cache; `None` if it has no prefix of ours or is not a
    /// valid device-mapper name.
    pub fn parse(name: &str) -> Option<CacheName> {
        let is_ours =
            |policy: &Policy| name.strip_prefix(policy.prefix()).is_some_and(|rest| !rest.is_empty());
        Policy::ALL.iter().any(is_ours).then(|| dm::Name::new(name)).flatten().map(CacheName)
    }

    /// The name a cache of `source` gets; `None` if that is too long. Each character that device-mapper's names
    /// should not have becomes `_`.
    pub fn of(policy: Policy, source: &SourceName) -> Option<CacheName> {
        let plain = unmangled(source.last_part()).replace(|c| !dm::Name::allows(c), "_");
        dm::Name::new(&format!("{}{plain}", policy.prefix())).map(CacheName)
    }

    /// The policy its prefix stands for.
    pub fn policy(&self) -> Policy {
        let named = |policy: &Policy| self.0.as_str().starts_with(policy.prefix());
        // The constructors leave no name without one of the prefixes.
        Policy::ALL.into_iter().find(named).unwrap_or(Policy::WriteThrough)
    }

    /// As a device-mapper name.
    pub fn as_dm(&self) -> &dm::Name {
        &self.0
    }
}

impl fmt::Display for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A mapping that a dm-cache stands on, cut out of its RAM disk. Named after the
/// cache, and no cache itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Where dm-cache notes what is in which block.
    Metadata,
    /// The blocks.
    Data,
}

impl Part {
    /// Both, in their order on the RAM disk.
    pub const ALL: [Part; 2] = [Part::Metadata, Part::Data];

    /// As long as a cache's, so that no name gets too long by it.
    fn prefix(self) -> &'static str {
        match self {
            Part::Metadata => "rc-wm_",
            Part::Data => "rc-wd_",
        }
    }

    /// Its name under a cache.
    pub fn of(self, cache: &CacheName) -> dm::Name {
        let (_, source) = cache.0.as_str().split_at(self.prefix().len());
        dm::Name::new(&format!("{}{source}", self.prefix())).expect("a cache's name but for the prefix")
    }

    /// The cache that a mapping of this name is a part of.
    pub fn cache_of(name: &str) -> Option<CacheName> {
        let source = Part::ALL.iter().find_map(|part| name.strip_prefix(part.prefix()))?;
        CacheName::parse(&format!("{}{source}", Policy::WriteThrough.prefix()))
    }
}

/// The name of a device below `/dev`, such as `sdb` or `mapper/vg0-home`: parts without control characters,
/// none of them `.` or `..`, at most 255 bytes in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceName(String);

impl SourceName {
    /// Checks a name; `None` if it is not one.
    pub fn parse(name: &str) -> Option<SourceName> {
        let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control);
        (name.len() <= 255 && name.split('/').all(is_name)).then(|| SourceName(name.to_owned()))
    }

    /// The name, relative to `/dev`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, where sysfs has `!` for each slash in it, as in `cciss!c0d0`.
    pub fn of_sysfs(&self) -> Option<SourceName> {
        SourceName::parse(&self.0.replace('!', "/"))
    }

    /// The name of the mapping, if the device is one below `/dev/mapper`.
    pub fn mapping(&self) -> Option<&str> {
        self.0.strip_prefix("mapper/")
    }

    /// Percent-encoded, as a parameter in a path.
    pub fn encoded(&self) -> String {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+:=@".contains(&byte);
        let encode = |byte: u8| match is_plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        };
        self.0.bytes().map(encode).collect()
    }

    /// What comes after the last slash, or the `!` that stands for it in sysfs.
    fn last_part(&self) -> &str {
        self.0.rsplit(['/', '!']).next().unwrap_or_default()
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name of device-mapper's as it was before libdevmapper or udev wrote some of its bytes as `\\xNN`.
pub fn unmangled(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = rest.strip_prefix(b"\\x").and_then(|hex| std::str::from_utf8(hex.get(..2)?).ok());
        let mangled = hex.filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let mangled = mangled.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(mangled.unwrap_or(byte));
        rest = if mangled.is_some() { &rest[4..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A key that sorts `sd2` before `sd10`: numbers by value, the rest as text.
pub fn natural(name: &str) -> Vec<(usize, &str)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let is_digit = |c: char| c.is_ascii_digit();
        let starts_with_digit = rest.starts_with(is_digit);
        let end = rest.find(|c| is_digit(c) != starts_with_digit).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        // Of two numbers the one with more digits is larger, leading zeros aside.
        let number = run.trim_start_matches('0');
        key.push(if starts_with_digit { (number.len(), number) } else { (0, run) });
        rest = after;
    }
    key
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_mib_or_have_a_unit() {
        let bytes = |text| Size::parse(text).map(Size::bytes);
        assert_eq!(bytes("128"), Some(128 << 20));
        assert_eq!(bytes("128M"), Some(128 << 20));
        assert_eq!(bytes("128MiB"), Some(128 << 20));
        assert_eq!(bytes("2G"), Some(2 << 30));
        assert_eq!(bytes("2GiB"), Some(2 << 30));
        assert_eq!(bytes("1T"), Some(1 << 40));
        assert_eq!(bytes("1TiB"), Some(1 << 40));
        assert_eq!(bytes("007"), Some(7 << 20));
    }

    #[test]
    fn wrong_sizes_are_none() {
        for text in [
            "", "0", "000", "0G", "-1", "+1", " 1", "1 ", "12abc", "0x10", "1.5", "1e3", "M", "1m", "1KiB",
            "1MB", "١",
        ] {
            assert_eq!(Size::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_size_beyond_64_bits_saturates() {
        let all = Size::parse("99999999999999999999999999").unwrap();
        assert_eq!(all.bytes(), u64::MAX - u64::MAX % MIB);
        assert_eq!(Size::parse("18446744073709551615T"), Some(all));
        assert_eq!(Size::parse("17592186044416"), Some(all));
    }

    #[test]
    fn disk_names_are_canonical() {
        assert_eq!(DiskName::parse("rd0"), Some(DiskName(0)));
        assert_eq!(DiskName::parse("rd1023"), Some(DiskName(1023)));
        for name in
            ["", "rd", "rd00", "rd01", "rd-1", "rd+1", "rd1 ", "rd1/..", "sda", "RD1", "rd4294967296", "rd٣"]
        {
            assert_eq!(DiskName::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn policies_are_known_by_name() {
        assert_eq!(Policy::parse("write-through"), Some(Policy::WriteThrough));
        assert_eq!(Policy::parse("write-around"), Some(Policy::WriteAround));
        assert_eq!(Policy::parse("writeback"), Some(Policy::Writeback));
        assert_eq!(Policy::parse("write-back"), Some(Policy::Writeback));
        for name in ["", "wt", "Write-Through", "writethrough", "write-through "] {
            assert_eq!(Policy::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_cache_is_named_after_the_last_part_of_its_source() {
        let source = SourceName::parse("mapper/vg0-home").unwrap();
        let name = CacheName::of(Policy::Writeback, &source).unwrap();
        assert_eq!(name.to_string(), "rc-wb_vg0-home");
        assert_eq!(name.policy(), Policy::Writeback);
        for (source, cache) in [
            ("mapper/my disk", "rc-wb_my_disk"),
            ("mapper/my\\x20disk", "rc-wb_my_disk"),
            ("mapper/\\xc3\\xa4\\x", "rc-wb___x"),
            ("ä", "rc-wb__"),
            ("cciss!c0d0", "rc-wb_c0d0"),
        ] {
            let name = CacheName::of(Policy::Writeback, &SourceName::parse(source).unwrap());
            assert_eq!(name.unwrap().to_string(), cache, "{source}");
        }
        let long = SourceName::parse(&"x".repeat(122)).unwrap();
        assert_eq!(CacheName::of(Policy::WriteThrough, &long), None);
    }

    #[test]
    fn only_our_prefixes_are_caches() {
        assert!(CacheName::parse("rc-wa_sdb1").is_some());
        for name in ["", "rc-wt_", "rc-xx_sda", "vg0-home", "rc-wt_a/b", "rc-wt_a b"] {
            assert_eq!(CacheName::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn sources_stay_below_dev() {
        for good in
            ["sda", "mapper/vg0-home", "disk/by-id/ata-X_1", "mapper/my disk ", "cciss!c0d0", "...", "ä"]
        {
            assert_eq!(SourceName::parse(good).unwrap().as_str(), good);
        }
        let encoded = |name| SourceName::parse(name).unwrap().encoded();
        assert_eq!(encoded("mapper/vg0-my disk#ä"), "mapper%2Fvg0-my%20disk%23%C3%A4");
        let of_sysfs = |name| SourceName::parse(name).unwrap().of_sysfs();
        assert_eq!(of_sysfs("cciss!c0d0").unwrap().as_str(), "cciss/c0d0");
        assert_eq!(of_sysfs("a!..!b"), None);
        for bad in
            ["", "/dev/sda", "../sda", "a/../../b", "a/./b", "a//b", "a/", "/", ".", "..", "a\0b", "a\nb"]
        {
            assert_eq!(SourceName::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_parts_of_a_cache_are_no_caches_and_lead_to_it() {
        let cache = CacheName::parse(&format!("rc-wt_{}", "x".repeat(121))).unwrap();
        for part in Part::ALL {
            let name = part.of(&cache);
            assert_eq!(name.as_str().len(), 127);
            assert_eq!(CacheName::parse(name.as_str()), None);
            assert_eq!(Part::cache_of(name.as_str()).as_ref(), Some(&cache));
        }
        for other in ["rc-wm_", "rc-wt_sda", "rd0", "wm_sda", ""] {
            assert_eq!(Part::cache_of(other), None, "{other:?}");
        }
    }

    #[test]
    fn numbers_sort_by_value() {
        let mut names =
            ["sdb", "loop10", "loop2", "nvme10n1", "nvme2n1", "nvme2n10", "nvme2n9", "sda", "loop002"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(
            names,
            ["loop2", "loop002", "loop10", "nvme2n1", "nvme2n9", "nvme2n10", "nvme10n1", "sda", "sdb"]
        );
    }

    proptest! {
        /// A name that was accepted is shown as it came, and no other text is.
        #[test]
        fn what_is_accepted_round_trips(text in "\\PC{0,12}|rd[0-9]{0,12}|rc-w[tab]_[a-z/.]{0,6}") {
            if let Some(name) = DiskName::parse(&text) {
                prop_assert_eq!(name.to_string(), text.clone());
            }
            if let Some(name) = CacheName::parse(&text) {
                prop_assert_eq!(name.to_string(), text.clone());
            }
            if let Some(name) = SourceName::parse(&text) {
                prop_assert!(Path::new("/dev").join(name.as_str()).components().count() > 2);
                prop_assert!(!text.contains("..") || text.split('/').all(|part| part != ".."));
            }
        }

        /// Any whole number of MiB is read as itself.
        #[test]
        fn sizes_are_exact(number in 1u64..(1 << 44)) {
            prop_assert_eq!(Size::parse(&number.to_string()).unwrap().bytes(), number << 20);
        }
    }
}
