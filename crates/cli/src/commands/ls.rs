//! `opengrid ls`: the models of the catalogue and of the store.

use opengrid_models::{ModelEntry, catalogue::Task};
use serde::Serialize;

use crate::{
    args::LsArgs,
    context::Context,
    output::{self, bytes},
    store::{self, Models},
};

const HEADINGS: [&str; 7] = ["model", "task", "class", "size", "licence", "here", "workers"];
const RIGHT: [bool; 7] = [false, false, false, true, false, false, true];

#[derive(Serialize)]
struct Row {
    id: String,
    name: String,
    root: String,
    task: Task,
    class: String,
    size_bytes: u64,
    licence: String,
    local: bool,
    /// Live workers that the running node knows; none without a running node.
    workers: Option<u64>,
}

/// # Errors
/// When the store or the user's catalogue cannot be read.
pub async fn run(args: &LsArgs, context: &Context) -> anyhow::Result<()> {
    let models = Models::open(context)?;
    let grid = store::on_grid(context).await;
    let workers = |id: &str| Some(grid.as_ref()?.iter().find(|model| model.id == id).map_or(0, |model| model.workers));
    let rows: Vec<Row> = models
        .catalogue
        .models()
        .map(|entry| row(entry, models.store.contains(entry.root()), workers(&entry.id)))
        .filter(|row| row.local || !args.local)
        .collect();
    if context.json {
        return output::json(&rows);
    }
    if rows.is_empty() {
        return output::line("no model in the store: `opengrid pull smollm2-135m` gets a small one");
    }
    output::line(output::table(&HEADINGS, &RIGHT, &rows.iter().map(cells).collect::<Vec<_>>()))
}

fn row(entry: &ModelEntry, local: bool, workers: Option<u64>) -> Row {
    Row {
        id: entry.id.clone(),
        name: entry.name.clone(),
        root: entry.root().to_string(),
        task: entry.task,
        class: format!("{:?}", entry.class).to_lowercase(),
        size_bytes: entry.file.size,
        licence: entry.licence.clone(),
        local,
        workers,
    }
}

fn cells(row: &Row) -> Vec<String> {
    vec![
        row.id.clone(),
        row.task.to_string(),
        row.class.clone(),
        bytes(row.size_bytes),
        row.licence.clone(),
        if row.local { "yes" } else { "no" }.into(),
        row.workers.map_or_else(|| "-".into(), |count| count.to_string()),
    ]
}
