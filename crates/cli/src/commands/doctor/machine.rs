//! Memory and disk.

use anyhow::Context as _;
use opengrid_host::{HostProfile, Probe};

use super::Check;
use crate::{context::Context, output::bytes};

/// The default model with its KV cache and the node around it.
const MEMORY_BYTES_MIN: u64 = 1_000_000_000;
const DISK_BYTES_MIN: u64 = 1_000_000_000;

/// # Errors
/// When the probe's thread dies.
pub async fn profile(context: &Context) -> anyhow::Result<HostProfile> {
    let directory = context.settings.config.models.dir.clone();
    tokio::task::spawn_blocking(move || Probe::new(directory).run()).await.context("the machine could not be read")
}

pub fn memory(host: &HostProfile) -> Check {
    let (available, total) = (host.memory.available_bytes, host.memory.total_bytes);
    let finding = format!("{} of {} available", bytes(available), bytes(total));
    if available == 0 {
        Check::warn("memory", "cannot be read on this system", "see that the models you serve fit")
    } else if available < MEMORY_BYTES_MIN {
        Check::warn("memory", finding, "close programs, or serve nothing here (`opengrid up --serve none`)")
    } else {
        Check::ok("memory", finding)
    }
}

pub fn disk(host: &HostProfile) -> Check {
    let Some(disk) = &host.disk else {
        return Check::warn("disk", "cannot be read on this system", "see that the models you pull fit");
    };
    let finding = format!("{} free for models in {}", bytes(disk.free_bytes), disk.path.display());
    if disk.free_bytes < DISK_BYTES_MIN {
        Check::warn("disk", finding, "remove models (`opengrid rm`), or set models.dir to a larger disk")
    } else {
        Check::ok("disk", finding)
    }
}
