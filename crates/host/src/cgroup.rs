//! Limits of the process's control groups, versions 1 and 2 (kernel documentation, `admin-guide/cgroup-v1` and
//! `admin-guide/cgroup-v2`). Pure functions over a directory tree, so that any machine can be tested.

use std::path::{Path, PathBuf};

use crate::bounded::{read, read_number};

/// Version 1 says "no limit" with a number near 2^63.
const V1_UNLIMITED_BYTES: u64 = 1 << 60;
/// Deepest group that is walked.
const DEPTH_MAX: usize = 64;

/// What the groups allow; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Of processor time, in cores.
    pub cores: Option<f64>,
    pub memory: Option<MemoryLimit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    pub limit_bytes: u64,
    /// Not taken by what cannot be reclaimed.
    pub available_bytes: u64,
}

/// Reads the limits of this process under `root` (`/` but in tests).
pub fn limits(root: &Path) -> Limits {
    let membership = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    let mount = root.join("sys/fs/cgroup");
    let mut limits = Limits::default();
    for line in membership.lines().take(DEPTH_MAX) {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            // A hybrid machine mounts version 2 beside version 1.
            for mount in [mount.clone(), mount.join("unified")] {
                for group in groups(&mount, path) {
                    limits = limits.and(v2(&group));
                }
            }
            continue;
        }
        let has = |name: &str| controllers.split(',').any(|controller| controller == name);
        // The combined name is the directory, single names are links to it.
        for group in groups(&mount.join(controllers), path) {
            if has("cpu") {
                limits = limits.and(Limits { cores: v1_cores(&group), memory: None });
            }
            if has("memory") {
                limits = limits.and(Limits { cores: None, memory: v1_memory(&group) });
            }
        }
    }
    limits
}

impl Limits {
    /// Every ancestor limits: the tightest holds.
    fn and(self, other: Self) -> Self {
        let cores = self.cores.into_iter().chain(other.cores).min_by(f64::total_cmp);
        let memory = match (self.memory, other.memory) {
            (Some(a), Some(b)) => Some(MemoryLimit {
                limit_bytes: a.limit_bytes.min(b.limit_bytes),
                available_bytes: a.available_bytes.min(b.available_bytes),
            }),
            (a, b) => a.or(b),
        };
        Self { cores, memory }
    }
}

/// The group's directory and its ancestors' up to the mount. In a container the path may be the host's and missing
/// here; the mount is then the group itself.
fn groups(mount: &Path, path: &str) -> Vec<PathBuf> {
    let relative = path.trim_matches('/');
    let climbs = relative.split('/').any(|part| part == "..");
    let mut groups = vec![mount.to_owned()];
    if !climbs && !relative.is_empty() {
        let full = mount.join(relative);
        let inside = full.ancestors().take_while(|ancestor| *ancestor != mount).take(DEPTH_MAX);
        groups.extend(inside.map(Path::to_owned));
    }
    groups
}

fn v2(group: &Path) -> Limits {
    let cores = read(&group.join("cpu.max")).and_then(|text| {
        let (quota, period) = text.split_once(' ')?;
        cores(quota.parse().ok()?, period.trim().parse().ok()?)
    });
    let limit = read_number::<u64>(&group.join("memory.max"));
    let memory = limit.map(|limit| {
        let used = read_number(&group.join("memory.current")).unwrap_or(0);
        memory_limit(limit, used, &group.join("memory.stat"), "inactive_file")
    });
    Limits { cores, memory }
}

fn v1_cores(group: &Path) -> Option<f64> {
    cores(read_number(&group.join("cpu.cfs_quota_us"))?, read_number(&group.join("cpu.cfs_period_us"))?)
}

fn v1_memory(group: &Path) -> Option<MemoryLimit> {
    let limit = read_number::<u64>(&group.join("memory.limit_in_bytes")).filter(|limit| *limit < V1_UNLIMITED_BYTES)?;
    let used = read_number(&group.join("memory.usage_in_bytes")).unwrap_or(0);
    Some(memory_limit(limit, used, &group.join("memory.stat"), "total_inactive_file"))
}

/// A quota of -1 is none.
fn cores(quota_us: i64, period_us: i64) -> Option<f64> {
    (quota_us > 0 && period_us > 0).then(|| quota_us as f64 / period_us as f64)
}

/// Page cache that nobody uses counts as used, and is given up when memory is asked for.
fn memory_limit(limit_bytes: u64, used: u64, stat: &Path, reclaimable: &str) -> MemoryLimit {
    let stat = read(stat).unwrap_or_default();
    let cache = stat.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == reclaimable).then(|| value.trim().parse::<u64>().ok())?
    });
    let held = used.saturating_sub(cache.unwrap_or(0));
    MemoryLimit { limit_bytes, available_bytes: limit_bytes.saturating_sub(held) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn version_2_limits_are_the_tightest_of_all_ancestors() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/user.slice/node.scope\n"),
            ("sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "4000\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "3500\n"),
            ("sys/fs/cgroup/user.slice/memory.stat", "anon 5\ninactive_file 1000\n"),
            ("sys/fs/cgroup/user.slice/node.scope/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/user.slice/node.scope/memory.max", "9000\n"),
        ]);
        let expected =
            Limits { cores: Some(1.5), memory: Some(MemoryLimit { limit_bytes: 4000, available_bytes: 1500 }) };
        assert_eq!(limits(root.path()), expected);
    }

    #[test]
    fn version_1_and_hybrid_machines_are_read() {
        let root = tree(&[
            ("proc/self/cgroup", "9:memory:/box\n3:cpu,cpuacct:/box\n1:name=systemd:/\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "600\n"),
            ("sys/fs/cgroup/memory/box/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "250000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n"),
        ]);
        let expected =
            Limits { cores: Some(2.5), memory: Some(MemoryLimit { limit_bytes: 1000, available_bytes: 500 }) };
        assert_eq!(limits(root.path()), expected);
    }

    #[test]
    fn a_container_sees_its_group_at_the_mount() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/docker/0123/../../elsewhere\n"),
            ("sys/fs/cgroup/memory.max", "500\n"),
            ("sys/fs/cgroup/cpu.max", "50000 100000\n"),
        ]);
        let expected =
            Limits { cores: Some(0.5), memory: Some(MemoryLimit { limit_bytes: 500, available_bytes: 500 }) };
        assert_eq!(limits(root.path()), expected);
    }

    #[test]
    fn nonsense_is_no_limit() {
        let root = tree(&[
            ("proc/self/cgroup", "garbage\n0::/x\n::::\n"),
            ("sys/fs/cgroup/x/cpu.max", "0 0\n"),
            ("sys/fs/cgroup/x/memory.max", "max\n"),
        ]);
        assert_eq!(limits(root.path()), Limits::default());
        assert_eq!(limits(Path::new("/nonexistent")), Limits::default());
    }
}
