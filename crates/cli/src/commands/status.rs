//! `opengrid status`: the running node in a few lines.

use serde_json::Value;

use crate::{
    api::Api,
    args::TargetArgs,
    context::Context,
    output::{self, duration},
    shapes::{ServedModel, Status},
};

/// # Errors
/// When no node answers.
pub async fn run(args: &TargetArgs, context: &Context) -> anyhow::Result<()> {
    let api = Api::of(args, &context.home)?;
    let answer: Value = api.get("/grid/v1/status").await?;
    if context.json {
        return output::json(&answer);
    }
    let status: Status = serde_json::from_value(answer)?;
    output::line(text(&status))
}

fn served(model: &ServedModel) -> String {
    let by = if model.engine.is_empty() { String::new() } else { format!(", {}", model.engine) };
    format!("{} ({}{by})", model.id, model.state)
}

fn text(status: &Status) -> String {
    let models: Vec<String> = status.models.iter().map(served).collect();
    let rows = [
        ("state", status.state.clone()),
        ("peer id", status.peer_id.clone()),
        ("version", status.version.clone()),
        ("role", status.role.clone()),
        ("up for", duration(status.uptime_seconds)),
        ("serves", if models.is_empty() { "no model".into() } else { models.join(", ") }),
        ("sessions", format!("{} running, {} tokens generated", status.sessions_running, status.tokens_generated)),
        ("peers", format!("{} connected", status.peers)),
        ("api", status.api.clone()),
        ("addresses", status.p2p_addresses.join(" ")),
        ("nat", status.nat.clone()),
        ("invite", status.invite.clone()),
    ];
    output::pairs(&rows)
}
