//! `opengrid down`: asks the node to drain and waits until its process is gone.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;

use crate::{
    api::Api,
    args::DownArgs,
    context::Context,
    output,
    runtime::{self, Runtime, is_alive},
};

const POLL: Duration = Duration::from_millis(50);
/// What a node needs beyond its grace time to close its engine and its files.
const MARGIN: Duration = Duration::from_secs(10);

/// # Errors
/// When no node runs, or it is still there after the time to wait.
pub async fn run(args: &DownArgs, context: &Context) -> anyhow::Result<()> {
    let runtime = runtime::read(&context.home)?;
    Api::of_runtime(&runtime)?.change("/grid/v1/shutdown", &json!({})).await?;
    let wait = args.wait.map_or(context.grace + MARGIN, Duration::from_secs);
    let deadline = Instant::now() + wait;
    while runs(&runtime, context) {
        if Instant::now() >= deadline {
            let (pid, seconds) = (runtime.pid, wait.as_secs());
            bail!("the node (pid {pid}) still runs after {seconds} s: wait with --wait, or end it with `kill {pid}`");
        }
        tokio::time::sleep(POLL).await;
    }
    if context.json { output::json(&json!({ "stopped": runtime.pid })) } else { output::line("stopped") }
}

/// Elsewhere than on Linux a process cannot be looked up, but a node removes its runtime file when it ends.
fn runs(runtime: &Runtime, context: &Context) -> bool {
    if cfg!(target_os = "linux") {
        is_alive(runtime.pid)
    } else {
        runtime::read(&context.home).is_ok_and(|now| now.pid == runtime.pid)
    }
}
