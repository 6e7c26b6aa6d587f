//! The machine's memory and its name.

use super::{Error, Result, Root};

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `MemTotal` of /proc/meminfo.
    pub total: u64,
    /// `MemFree` of /proc/meminfo.
    pub free: u64,
}

/// Asks sysinfo(2), which has the same two numbers as /proc/meminfo without the
/// forty others that take time to make.
pub fn memory() -> Memory {
    let info = rustix::system::sysinfo();
    let bytes = |units: u64| units.saturating_mul(u64::from(info.mem_unit));
    Memory { total: bytes(info.totalram as u64), free: bytes(info.freeram as u64) }
}

/// The machine's host name (uname(2)).
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Memory for new claims without swapping, in bytes (`MemAvailable` of /proc/meminfo).
pub fn available_memory(root: &Root) -> Result<u64> {
    let text = root.text("proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib.saturating_mul(1024)).ok_or_else(|| Error::strange("read /proc/meminfo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_that_of_meminfo() {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
        let kib: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        let memory = memory();
        assert_eq!(memory.total, kib * 1024);
        assert!((1..memory.total).contains(&memory.free));
    }
}
