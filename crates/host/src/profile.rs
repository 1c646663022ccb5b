//! What a machine has.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostProfile {
    pub os: Os,
    pub cpu: Cpu,
    pub memory: Memory,
    /// `None`: the disk did not answer.
    pub disk: Option<Disk>,
    pub gpus: Vec<Gpu>,
    pub battery: Option<Battery>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Os {
    /// `linux`, `macos`, `windows`, …
    pub family: String,
    /// e.g. `Debian GNU/Linux 12 (bookworm)`.
    pub name: String,
    /// `x86_64`, `aarch64`, …
    pub arch: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    pub brand: String,
    pub physical_cores: u32,
    /// Hardware threads.
    pub logical_cores: u32,
    /// Hardware threads that this process may use at once: affinity and control groups count.
    pub usable_cores: u32,
    /// Those instruction sets that decide how fast models run, e.g. `avx2`, `avx512_vnni`.
    pub features: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub total_bytes: u64,
    /// What can be allocated without swapping.
    pub available_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub path: PathBuf,
    pub free_bytes: u64,
    pub total_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    pub name: String,
    /// Of its own; 0 where it shares the machine's memory or does not tell.
    pub memory_bytes: u64,
    /// `None`: the driver does not tell.
    pub memory_free_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Battery {
    /// Charge, 0 to 100.
    pub percent: u8,
    /// No mains.
    pub discharging: bool,
}
