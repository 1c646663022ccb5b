//! GPUs: `nvidia-smi` where it is installed, else the kernel's device tree.

use std::{path::Path, time::Duration};

use crate::{
    Gpu,
    bounded::{self, read, read_number},
};

/// Most GPUs of one machine that are listed.
const GPUS_MAX: usize = 64;
const MIB: u64 = 1024 * 1024;

/// `None`: no `nvidia-smi`, or it does not answer.
pub fn nvidia_smi(timeout: Duration) -> Option<Vec<Gpu>> {
    let arguments = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"];
    bounded::output("nvidia-smi", &arguments, timeout).map(|text| parse_nvidia_smi(&text))
}

/// Lines such as `NVIDIA H100 80GB HBM3, 81559, 81008` (MiB).
fn parse_nvidia_smi(text: &str) -> Vec<Gpu> {
    let row = |line: &str| {
        let mut fields = line.rsplitn(3, ',').map(str::trim);
        let (free, total, name) = (fields.next()?, fields.next()?, fields.next()?);
        let mib = |text: &str| text.parse::<u64>().ok().and_then(|mib| mib.checked_mul(MIB));
        // Unified-memory boards say "[N/A]".
        Some(Gpu { name: tidy(name), memory_bytes: mib(total).unwrap_or(0), memory_free_bytes: mib(free) })
    };
    text.lines().filter_map(row).filter(|gpu| !gpu.name.is_empty()).take(GPUS_MAX).collect()
}

/// Graphics cards below `root` (`/` but in tests) that the kernel drives.
pub fn device_tree(root: &Path) -> Vec<Gpu> {
    let mut found = nvidia_proc(root);
    let mut cards = names(&root.join("sys/class/drm"), |name| {
        // `card0`, not its connectors `card0-HDMI-A-1`.
        name.strip_prefix("card").is_some_and(|digits| digits.chars().all(|c| c.is_ascii_digit()))
    });
    cards.sort();
    for card in cards {
        let device = root.join("sys/class/drm").join(card).join("device");
        let vendor = read(&device.join("vendor")).unwrap_or_default();
        let name = match vendor.as_str() {
            "0x1002" => read(&device.join("product_name")).unwrap_or_else(|| "AMD GPU".to_owned()),
            "0x8086" => "Intel GPU".to_owned(),
            // NVIDIA's own driver is listed above; virtual displays compute nothing.
            _ => continue,
        };
        let total = read_number::<u64>(&device.join("mem_info_vram_total"));
        let used = read_number::<u64>(&device.join("mem_info_vram_used"));
        found.push(Gpu {
            name: tidy(&name),
            memory_bytes: total.unwrap_or(0),
            memory_free_bytes: total.zip(used).map(|(total, used)| total.saturating_sub(used)),
        });
    }
    found.truncate(GPUS_MAX);
    found
}

/// What NVIDIA's driver tells without its tools: names only.
fn nvidia_proc(root: &Path) -> Vec<Gpu> {
    let folder = root.join("proc/driver/nvidia/gpus");
    let mut boards = names(&folder, |_| true);
    boards.sort();
    let model = |board: String| {
        let text = read(&folder.join(board).join("information"))?;
        let name = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(Gpu { name: tidy(name), memory_bytes: 0, memory_free_bytes: None })
    };
    boards.into_iter().filter_map(model).collect()
}

fn names(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| wanted(name)).take(GPUS_MAX).collect()
}

fn tidy(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(128).collect::<String>().trim().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nvidia_smi_rows_are_read_and_others_left_out() {
        let text = "NVIDIA H100 80GB HBM3, 81559, 81008\nOdd, name, 100, [N/A]\nNVIDIA GB10, [N/A], [N/A]\nno row\n";
        let gpus = parse_nvidia_smi(text);
        assert_eq!(gpus.len(), 3);
        assert_eq!((gpus[0].memory_bytes, gpus[0].memory_free_bytes), (81_559 * MIB, Some(81_008 * MIB)));
        assert_eq!((gpus[1].name.as_str(), gpus[1].memory_free_bytes), ("Odd, name", None));
        assert_eq!((gpus[2].name.as_str(), gpus[2].memory_bytes), ("NVIDIA GB10", 0));
        assert!(parse_nvidia_smi(&"x, 1, 1\n".repeat(1_000)).len() <= GPUS_MAX);
    }

    #[test]
    fn the_device_tree_lists_cards_and_no_connectors() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("sys/class/drm/card0/device/vendor", "0x1002\n");
        write("sys/class/drm/card0/device/product_name", "Radeon PRO W7900\n");
        write("sys/class/drm/card0/device/mem_info_vram_total", "48000\n");
        write("sys/class/drm/card0/device/mem_info_vram_used", "1000\n");
        write("sys/class/drm/card0-HDMI-A-1/device/vendor", "0x1002\n");
        write("sys/class/drm/card1/device/vendor", "0x8086\n");
        write("sys/class/drm/card2/device/vendor", "0x1af4\n");
        write("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA A10\nIRQ: 3\n");
        let gpus = device_tree(root.path());
        let names: Vec<&str> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
        assert_eq!(names, ["NVIDIA A10", "Radeon PRO W7900", "Intel GPU"]);
        assert_eq!(gpus[1].memory_free_bytes, Some(47_000));
    }
}
