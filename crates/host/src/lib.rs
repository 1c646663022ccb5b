//! What the host machine has (processor, memory, disk, GPUs, battery), read within bounded time and within the limits
//! of the process's control groups, and what a node should make of it.
//!
//! [`Probe::run`] reads a [`HostProfile`] through a [`Platform`]: Linux reads `/proc` and `/sys`, every other system
//! goes through `sysinfo`. [`recommend`] is pure: a profile, a model's needs and the owner's limits give a [`Plan`].

mod bounded;
mod cgroup;
mod generic;
mod gpu;
#[cfg(target_os = "linux")]
mod linux;
mod plan;
mod profile;

use std::path::{Path, PathBuf};

pub use generic::Generic;
#[cfg(target_os = "linux")]
pub use linux::Linux;
pub use plan::{ModelNeeds, OwnerLimits, Plan, Role, Shortage, recommend, role_by_speed, room_beside};
pub use profile::{Battery, Cpu, Disk, Gpu, HostProfile, Memory, Os};

/// Reads one machine. What cannot be read is left out or zero, never guessed.
pub trait Platform {
    fn os(&self) -> Os;
    fn cpu(&self) -> Cpu;
    /// Within the limits of the process's control groups.
    fn memory(&self) -> Memory;
    fn gpus(&self) -> Vec<Gpu>;
    /// `None`: a machine without a battery, or one that does not tell.
    fn battery(&self) -> Option<Battery>;
}

/// Reads the profile of this machine.
#[derive(Clone, Debug)]
pub struct Probe {
    disk_path: PathBuf,
}

impl Probe {
    /// `disk_path` is where models are kept; it need not exist yet.
    pub fn new(disk_path: impl Into<PathBuf>) -> Self {
        Self { disk_path: disk_path.into() }
    }

    /// Blocks for at most about 5 seconds (a hanging GPU driver or network disk), usually a few milliseconds.
    pub fn run(&self) -> HostProfile {
        #[cfg(target_os = "linux")]
        let platform = Linux::new();
        #[cfg(not(target_os = "linux"))]
        let platform = Generic;
        self.run_on(&platform)
    }

    pub fn run_on(&self, platform: &impl Platform) -> HostProfile {
        HostProfile {
            os: platform.os(),
            cpu: platform.cpu(),
            memory: platform.memory(),
            disk: disk(&self.disk_path),
            gpus: platform.gpus(),
            battery: platform.battery(),
        }
    }
}

/// The disk that holds `path` or, while that does not exist, its nearest ancestor.
fn disk(path: &Path) -> Option<Disk> {
    let absolute = std::path::absolute(path).ok()?;
    bounded::run(bounded::TIMEOUT, move || {
        let existing = absolute.ancestors().find(|ancestor| ancestor.exists())?;
        let free_bytes = fs4::available_space(existing).ok()?;
        let total_bytes = fs4::total_space(existing).ok()?;
        Some(Disk { path: absolute.clone(), free_bytes, total_bytes })
    })?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_plausible_profile() {
        let dir = tempfile::tempdir().unwrap();
        let profile = Probe::new(dir.path().join("not/yet")).run();
        assert!(profile.cpu.physical_cores >= 1 && profile.cpu.logical_cores >= profile.cpu.physical_cores);
        assert!(profile.cpu.usable_cores >= 1 && profile.cpu.usable_cores <= profile.cpu.logical_cores);
        assert!(profile.memory.total_bytes > 64 << 20);
        assert!((1..=profile.memory.total_bytes).contains(&profile.memory.available_bytes));
        let disk = profile.disk.clone().unwrap();
        assert!(disk.total_bytes > 0 && disk.free_bytes <= disk.total_bytes);
        let json = serde_json::to_value(&profile).unwrap();
        assert_eq!(json["memory"]["total_bytes"], profile.memory.total_bytes);
    }

    /// The two ways to read a machine agree, wherever the tests run.
    #[test]
    fn the_generic_platform_sees_the_same_processor() {
        let (own, generic) = (Probe::new(".").run(), Probe::new(".").run_on(&Generic));
        assert_eq!(own.cpu.usable_cores, generic.cpu.usable_cores);
        assert!(generic.cpu.physical_cores >= 1);
        assert!(own.memory.total_bytes <= generic.memory.total_bytes);
    }
}
