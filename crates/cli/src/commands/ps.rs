//! `opengrid ps`: what the running node serves and how busy it is, which of its answers go through several nodes, and
//! which layers of which model lack a volunteer.

use serde_json::{Value, json};

use crate::{
    api::{self, Api},
    args::TargetArgs,
    context::Context,
    output::{self, bytes},
    shapes::{Coverage, Model, Pipeline, PipelineStage, ServedModel, Status, named},
};

const HEADINGS: [&str; 9] = ["model", "state", "sessions", "queued", "context", "decode", "memory", "class", "engine"];
const RIGHT: [bool; 9] = [false, false, true, true, true, true, true, false, false];
const PIPELINE_HEADINGS: [&str; 5] = ["pipeline", "tokens", "lap", "mended", "stages (compute, way to the next)"];
const PIPELINE_RIGHT: [bool; 5] = [false, true, true, true, false];
const COVERAGE_HEADINGS: [&str; 4] = ["in parts", "chains", "nobody holds", "layers held"];
const COVERAGE_RIGHT: [bool; 4] = [false, true, false, false];

/// # Errors
/// When no node answers.
pub async fn run(args: &TargetArgs, context: &Context) -> anyhow::Result<()> {
    let api = Api::of(args, &context.home)?;
    let answer: Value = api.get("/grid/v1/status").await?;
    let models: Value = api.get("/grid/v1/models").await?;
    if context.json {
        return output::json(&json!({
            "models": answer.get("models"),
            "sessions_running": answer.get("sessions_running"),
            "tokens_generated": answer.get("tokens_generated"),
            "pipelines": answer.get("pipelines"),
            "parts": answer.get("parts"),
            "parts_kept_bytes": answer.get("parts_kept_bytes"),
            "coverage": coverage_of(&models),
        }));
    }
    let status: Status = serde_json::from_value(answer)?;
    let models: Vec<Model> = api::rows(&models, "models")?;
    let mut parts = vec![served(&status)];
    if !status.pipelines.is_empty() {
        let rows: Vec<Vec<String>> = status.pipelines.iter().map(pipeline_row).collect();
        parts.push(output::table(&PIPELINE_HEADINGS, &PIPELINE_RIGHT, &rows));
    }
    let rows: Vec<Vec<String>> =
        models.iter().filter_map(|model| Some(coverage_row(&model.id, model.coverage.as_ref()?))).collect();
    if !rows.is_empty() {
        parts.push(output::table(&COVERAGE_HEADINGS, &COVERAGE_RIGHT, &rows));
    }
    output::line(parts.join("\n\n"))
}

fn coverage_of(models: &Value) -> Vec<Value> {
    let models: Vec<Value> = api::rows(models, "models").unwrap_or_default();
    let held = models.into_iter().filter(|model| model["coverage"].is_object());
    held.map(|model| json!({ "id": model["id"], "coverage": model["coverage"] })).collect()
}

fn served(status: &Status) -> String {
    if status.models.is_empty() {
        let sessions = status.sessions_running;
        return format!("this node serves no model ({sessions} sessions of its own run elsewhere)");
    }
    let rows: Vec<Vec<String>> = status.models.iter().map(row).collect();
    let table = output::table(&HEADINGS, &RIGHT, &rows);
    match status.parts {
        0 => table,
        parts => {
            let kept = bytes(status.parts_kept_bytes);
            format!("{table}\nparts of sessions here ({parts}) keep {kept} to send again if another node is lost")
        }
    }
}

fn row(model: &ServedModel) -> Vec<String> {
    vec![
        named(&model.id, model.layers.as_deref()),
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

fn pipeline_row(pipeline: &Pipeline) -> Vec<String> {
    let stage = |stage: &PipelineStage| {
        let node: String = stage.peer_id.chars().skip(stage.peer_id.chars().count().saturating_sub(8)).collect();
        format!("{} {node} ({:.1} ms, {:.1} ms)", stage.layers, stage.compute_ms, stage.way_ms)
    };
    vec![
        pipeline.model.clone(),
        pipeline.tokens.to_string(),
        pipeline.lap_ms.map_or_else(|| "-".to_owned(), |lap| format!("{lap:.0} ms")),
        format!("{}x", pipeline.put_together.saturating_sub(1)),
        pipeline.stages.iter().map(stage).collect::<Vec<_>>().join(" > "),
    ]
}

fn coverage_row(id: &str, coverage: &Coverage) -> Vec<String> {
    let held = coverage.stages.iter().map(|stage| format!("{} by {}", stage.layers, stage.holders.len()));
    let gaps = match (coverage.gaps.is_empty(), coverage.chains) {
        (true, 0) => "- (but no part begins where another ends)".to_owned(),
        (true, _) => "-".to_owned(),
        (false, _) => coverage.gaps.join(", "),
    };
    vec![
        format!("{id} ({} layers)", coverage.layer_count),
        coverage.chains.to_string(),
        gaps,
        held.collect::<Vec<_>>().join(", "),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pipelines_and_coverage_are_rows_of_words() {
        let pipeline: Pipeline = serde_json::from_value(json!({
            "model": "m", "tokens": 12, "lap_ms": 104.2, "put_together": 2,
            "stages": [
                { "peer_id": "12D3KooWaaaabbbb", "layers": "0..10", "compute_ms": 1.5, "way_ms": 25.0 },
                { "peer_id": "12D3KooWccccdddd", "layers": "10..30", "compute_ms": 2.0, "way_ms": 24.0 },
            ],
        }))
        .unwrap();
        let stages = "0..10 aaaabbbb (1.5 ms, 25.0 ms) > 10..30 ccccdddd (2.0 ms, 24.0 ms)";
        assert_eq!(pipeline_row(&pipeline), ["m", "12", "104 ms", "1x", stages]);
        let coverage: Coverage = serde_json::from_value(json!({
            "layer_count": 30, "chains": 0, "gaps": ["10..12"],
            "stages": [{ "layers": "0..10", "holders": ["a", "b"] }, { "layers": "12..30", "holders": ["a"] }],
        }))
        .unwrap();
        let row = coverage_row("m", &coverage);
        assert_eq!(row, ["m (30 layers)", "0", "10..12", "0..10 by 2, 12..30 by 1"]);
    }
}
