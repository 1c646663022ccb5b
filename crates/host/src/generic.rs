//! Any system that `sysinfo` knows.

use std::thread::available_parallelism;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::{Battery, Cpu, Gpu, Memory, Os, Platform, bounded, gpu};

/// Knows no batteries; GPUs by `nvidia-smi` alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Generic;

impl Platform for Generic {
    fn os(&self) -> Os {
        Os {
            family: std::env::consts::OS.to_owned(),
            name: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
            arch: std::env::consts::ARCH.to_owned(),
        }
    }

    fn cpu(&self) -> Cpu {
        let kind = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
        let system = System::new_with_specifics(kind);
        let cpus = system.as_ref().map_or(&[][..], System::cpus);
        let logical_cores = u32::try_from(cpus.len()).unwrap_or(u32::MAX).max(1);
        let physical = System::physical_core_count().ok().and_then(|count| u32::try_from(count).ok());
        Cpu {
            brand: cpus.first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default(),
            physical_cores: physical.unwrap_or(logical_cores).clamp(1, logical_cores),
            logical_cores,
            usable_cores: usable_cores(logical_cores),
            features: Vec::new(),
        }
    }

    fn memory(&self) -> Memory {
        let kind = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let Ok(system) = System::new_with_specifics(kind) else {
            return Memory { total_bytes: 0, available_bytes: 0 };
        };
        let total_bytes = system.total_memory();
        Memory { total_bytes, available_bytes: system.available_memory().min(total_bytes) }
    }

    fn gpus(&self) -> Vec<Gpu> {
        gpu::nvidia_smi(bounded::TIMEOUT).unwrap_or_default()
    }

    fn battery(&self) -> Option<Battery> {
        None
    }
}

/// What the standard library says: on Linux it knows affinity and control groups.
pub fn usable_cores(logical_cores: u32) -> u32 {
    let usable = available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok());
    usable.unwrap_or(logical_cores).clamp(1, logical_cores)
}
