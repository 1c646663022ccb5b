//! `opengrid ps`: what the running node serves and how busy it is.

use serde_json::{Value, json};

use crate::{
    api::Api,
    args::TargetArgs,
    context::Context,
    output::{self, bytes},
    shapes::{ServedModel, Status},
};

const HEADINGS: [&str; 9] = ["model", "state", "sessions", "queued", "context", "decode", "memory", "class", "engine"];
const RIGHT: [bool; 9] = [false, false, true, true, true, true, true, false, false];

/// # Errors
/// When no node answers.
pub async fn run(args: &TargetArgs, context: &Context) -> anyhow::Result<()> {
    let api = Api::of(args, &context.home)?;
    let answer: Value = api.get("/grid/v1/status").await?;
    if context.json {
        return output::json(&json!({
            "models": answer.get("models"),
            "sessions_running": answer.get("sessions_running"),
            "tokens_generated": answer.get("tokens_generated"),
        }));
    }
    let status: Status = serde_json::from_value(answer)?;
    if status.models.is_empty() {
        let sessions = status.sessions_running;
        return output::line(format!("this node serves no model ({sessions} sessions of its own run elsewhere)"));
    }
    let rows: Vec<Vec<String>> = status.models.iter().map(row).collect();
    output::line(output::table(&HEADINGS, &RIGHT, &rows))
}

fn row(model: &ServedModel) -> Vec<String> {
    vec![
        model.id.clone(),
        model.state.clone(),
        format!("{}/{}", model.slots_busy, model.slots),
        model.queued.to_string(),
        model.context_tokens.to_string(),
        format!("{:.0} tok/s", model.decode_tokens_per_s),
        bytes(model.memory_bytes),
        model.class.clone(),
        model.engine.clone(),
    ]
}
