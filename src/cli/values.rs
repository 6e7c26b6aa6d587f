//! Reads the values of flags: a port, an address, a limit.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::config::Error;
use crate::http::Listen;
use crate::storage::{CacheDriver, MemoryLimit, RamDriver, Size};

/// Reads a value by `read`. The error names the value and says what it should be.
pub(super) fn value<T>(value: &OsStr, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
    value.to_str().and_then(read).ok_or_else(|| Error(format!("{value:?} is not {what}")))
}

/// A number in this range.
pub(super) fn number(text: &OsStr, least: usize, most: usize) -> Result<usize, Error> {
    let what = format!("a number from {least} to {most}");
    value(text, &what, |text| digits(text)?.parse().ok().filter(|number| (least..=most).contains(number)))
}

/// A time of 1 to 3600 seconds.
pub(super) fn seconds(text: &OsStr) -> Result<Duration, Error> {
    Ok(Duration::from_secs(number(text, 1, 3600)? as u64))
}

/// Any text but the empty one.
pub(super) fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A TCP port.
pub(super) fn port(text: &str) -> Option<u16> {
    digits(text)?.parse().ok().filter(|&port| port != 0)
}

/// An address to listen at. Its port is 0 where the text has none.
pub(super) fn listen(text: &str) -> Option<Listen> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Path::new(path).is_absolute().then(|| Listen::Unix(path.into()));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then_some(Listen::Tcp(address));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|address| Listen::Tcp(SocketAddr::new(address, 0)))
}

/// A size, or a part of the machine's memory in percent.
pub(super) fn memory_limit(text: &str) -> Option<MemoryLimit> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent = digits(percent)?.parse().ok();
            percent.filter(|percent| (1..=100).contains(percent)).map(MemoryLimit::Percent)
        }
        // A size that does not fit into 64 bits is read as the largest one that does. A limit that
        // high would let such a size pass.
        None => Size::parse(text).map(Size::bytes).filter(|&bytes| bytes < 1 << 60).map(MemoryLimit::Bytes),
    }
}

/// A driver of RAM disks, or `None` for the first one that the kernel has.
pub(super) fn ram_driver(text: &str) -> Option<Option<RamDriver>> {
    match text {
        "auto" => Some(None),
        name => RamDriver::parse(name).map(Some),
    }
}

/// A driver of write-through caches, or `None` for the first one that the kernel has.
pub(super) fn cache_driver(text: &str) -> Option<Option<CacheDriver>> {
    match text {
        "auto" => Some(None),
        name => CacheDriver::parse(name).map(Some),
    }
}

/// The text, if it has nothing but digits. `parse` alone would take a sign as well.
fn digits(text: &str) -> Option<&str> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text)
}
