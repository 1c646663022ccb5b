//! Linux: `/proc` and `/sys`, below a root that tests choose.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{
    Battery, Cpu, Gpu, Memory, Os, Platform,
    bounded::{self, read, read_number},
    cgroup, generic, gpu,
};

/// Most processors and power supplies that are looked at.
const DEVICES_MAX: u32 = 8_192;
/// What llama.cpp's kernels are built for.
const FEATURES: [&str; 14] = [
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "bmi2",
    "avx_vnni",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
];

#[derive(Clone, Debug)]
pub struct Linux {
    root: PathBuf,
}

impl Linux {
    pub fn new() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// Reads the tree below `root` instead of the machine's.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn is_machine(&self) -> bool {
        self.root == Path::new("/")
    }
}

impl Default for Linux {
    fn default() -> Self {
        Self::new()
    }
}

impl Platform for Linux {
    fn os(&self) -> Os {
        let release = read(&self.root.join("etc/os-release")).unwrap_or_default();
        let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Os {
            family: "linux".to_owned(),
            name: name.unwrap_or("Linux").trim_matches('"').chars().take(128).collect(),
            arch: std::env::consts::ARCH.to_owned(),
        }
    }

    fn cpu(&self) -> Cpu {
        let text = read(&self.root.join("proc/cpuinfo")).unwrap_or_default();
        let info = CpuInfo::parse(&text);
        let logical_cores = info.logical_cores.max(1);
        let physical_cores = info.physical_cores.or_else(|| self.cores_by_topology()).unwrap_or(logical_cores);
        let quota = cgroup::limits(&self.root).cores.map(|cores| (cores.floor() as u32).max(1));
        let usable = if self.is_machine() { generic::usable_cores(logical_cores) } else { logical_cores };
        Cpu {
            brand: info.brand,
            physical_cores: physical_cores.clamp(1, logical_cores),
            logical_cores,
            usable_cores: usable.min(quota.unwrap_or(usable)),
            features: info.features,
        }
    }

    fn memory(&self) -> Memory {
        let text = read(&self.root.join("proc/meminfo")).unwrap_or_default();
        let total = meminfo_bytes(&text, "MemTotal:").unwrap_or(0);
        // Kernels before 3.14 have no MemAvailable.
        let available = meminfo_bytes(&text, "MemAvailable:").or_else(|| meminfo_bytes(&text, "MemFree:")).unwrap_or(0);
        let limit = cgroup::limits(&self.root).memory;
        let total_bytes = limit.map_or(total, |limit| total.min(limit.limit_bytes));
        let available_bytes = limit.map_or(available, |limit| available.min(limit.available_bytes)).min(total_bytes);
        Memory { total_bytes, available_bytes }
    }

    fn gpus(&self) -> Vec<Gpu> {
        let by_tool = self.is_machine().then(|| gpu::nvidia_smi(bounded::TIMEOUT)).flatten().unwrap_or_default();
        let mut found = gpu::device_tree(&self.root);
        if !by_tool.is_empty() {
            found.retain(|gpu| !by_tool.iter().any(|known| known.name == gpu.name));
        }
        by_tool.into_iter().chain(found).collect()
    }

    fn battery(&self) -> Option<Battery> {
        let folder = self.root.join("sys/class/power_supply");
        let entries = std::fs::read_dir(folder).ok()?;
        let mut supplies: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).take(64).collect();
        supplies.sort();
        let kind = |supply: &Path| read(&supply.join("type")).unwrap_or_default();
        // Mice and keyboards have batteries of scope "Device".
        let is_battery =
            |supply: &&PathBuf| kind(supply) == "Battery" && read(&supply.join("scope")).as_deref() != Some("Device");
        let mains = supplies
            .iter()
            .any(|supply| kind(supply) == "Mains" && read_number::<u8>(&supply.join("online")) == Some(1));
        let battery = supplies.iter().find(is_battery)?;
        let discharging = read(&battery.join("status")).as_deref() == Some("Discharging");
        let percent = read_number::<u8>(&battery.join("capacity"))?.min(100);
        Some(Battery { percent, discharging: discharging && !mains })
    }
}

impl Linux {
    /// Machines whose `cpuinfo` names no cores (ARM, some virtual ones): sets of hardware threads that share one.
    fn cores_by_topology(&self) -> Option<u32> {
        let folder = self.root.join("sys/devices/system/cpu");
        let siblings = |index: u32| read(&folder.join(format!("cpu{index}/topology/thread_siblings_list")));
        let cores: BTreeSet<String> = (0..DEVICES_MAX).map_while(siblings).collect();
        u32::try_from(cores.len()).ok().filter(|count| *count > 0)
    }
}

#[derive(Debug, Default, PartialEq)]
struct CpuInfo {
    brand: String,
    logical_cores: u32,
    physical_cores: Option<u32>,
    features: Vec<String>,
}

impl CpuInfo {
    fn parse(text: &str) -> Self {
        let mut info = Self::default();
        let mut cores = BTreeSet::new();
        let mut package = "";
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name.trim() {
                "processor" => info.logical_cores = (info.logical_cores + 1).min(DEVICES_MAX),
                "model name" | "Model" | "cpu model" if info.brand.is_empty() => {
                    info.brand = value.chars().take(128).collect();
                }
                "physical id" => package = value,
                "core id" => {
                    cores.insert((package, value));
                }
                "flags" | "Features" if info.features.is_empty() => {
                    let has = |feature: &&str| value.split(' ').any(|flag| flag == *feature);
                    info.features = FEATURES.iter().filter(|f| has(f)).map(|&f| f.to_owned()).collect();
                }
                _ => {}
            }
        }
        info.physical_cores = u32::try_from(cores.len()).ok().filter(|count| *count > 0);
        info
    }
}

/// `MemTotal:       24684424 kB`.
fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Linux) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let linux = Linux::below(dir.path());
        (dir, linux)
    }

    fn cpuinfo(packages: u32, cores: u32, threads: u32) -> String {
        let mut text = String::new();
        for index in 0..packages * cores * threads {
            let (package, core) = (index / (cores * threads), index / threads % cores);
            text += &format!(
                "processor\t: {index}\nmodel name\t: Test CPU\nphysical id\t: {package}\ncore id\t\t: {core}\n\
                 flags\t\t: fpu avx2 avx512f avx512_vnni\n\n"
            );
        }
        text
    }

    #[test]
    fn hyperthreads_and_sockets_are_told_apart() {
        let (_dir, linux) = machine(&[("proc/cpuinfo", &cpuinfo(2, 4, 2))]);
        let cpu = linux.cpu();
        assert_eq!((cpu.logical_cores, cpu.physical_cores, cpu.usable_cores), (16, 8, 16));
        assert_eq!(cpu.brand, "Test CPU");
        assert_eq!(cpu.features, ["avx2", "avx512f", "avx512_vnni"]);
    }

    #[test]
    fn processors_without_core_ids_are_counted_by_topology() {
        let arm = "processor\t: 0\nFeatures\t: fp asimddp\n\nprocessor\t: 1\n\n";
        let (_dir, linux) = machine(&[
            ("proc/cpuinfo", arm),
            ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1\n"),
            ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1\n"),
        ]);
        assert_eq!((linux.cpu().physical_cores, linux.cpu().logical_cores), (1, 2));
        assert_eq!(linux.cpu().features, ["asimddp"]);
    }

    #[test]
    fn control_groups_limit_cores_and_memory() {
        let (_dir, linux) = machine(&[
            ("proc/cpuinfo", &cpuinfo(1, 8, 1)),
            ("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    900 kB\n"),
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cpu.max", "350000 100000\n"),
            ("sys/fs/cgroup/memory.max", "512000\n"),
            ("sys/fs/cgroup/memory.current", "12000\n"),
        ]);
        assert_eq!(linux.cpu().usable_cores, 3);
        assert_eq!(linux.memory(), Memory { total_bytes: 512_000, available_bytes: 500_000 });
    }

    #[test]
    fn an_empty_machine_is_no_reason_to_panic() {
        let (_dir, linux) = machine(&[]);
        assert_eq!(linux.cpu().usable_cores, 1);
        assert_eq!(linux.memory(), Memory { total_bytes: 0, available_bytes: 0 });
        assert_eq!((linux.gpus(), linux.battery()), (vec![], None));
    }

    #[test]
    fn batteries_of_mice_do_not_count_and_mains_do() {
        let supply = |name: &str, file: &str| format!("sys/class/power_supply/{name}/{file}");
        let (_dir, linux) = machine(&[
            (&supply("A_mouse", "type"), "Battery\n"),
            (&supply("A_mouse", "scope"), "Device\n"),
            (&supply("A_mouse", "capacity"), "3\n"),
            (&supply("BAT0", "type"), "Battery\n"),
            (&supply("BAT0", "status"), "Discharging\n"),
            (&supply("BAT0", "capacity"), "77\n"),
            (&supply("AC", "type"), "Mains\n"),
            (&supply("AC", "online"), "0\n"),
        ]);
        assert_eq!(linux.battery(), Some(Battery { percent: 77, discharging: true }));
        std::fs::write(linux.root.join(supply("AC", "online")), "1\n").unwrap();
        assert_eq!(linux.battery(), Some(Battery { percent: 77, discharging: false }));
    }
}
