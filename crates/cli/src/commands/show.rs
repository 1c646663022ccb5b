//! `opengrid show`: all that is known of a model.

use anyhow::bail;
use opengrid_models::{
    ModelEntry,
    catalogue::{Source, Task},
    gguf,
};
use serde_json::json;

use crate::{
    args::ShowArgs,
    context::Context,
    output::{self, bytes},
    store::{self, Models},
};

/// # Errors
/// When the model does not exist; with `--path`, when its file is not in the store.
pub async fn run(args: &ShowArgs, context: &Context) -> anyhow::Result<()> {
    let models = Models::open(context)?;
    let entry = models.entry(&args.model)?;
    let path = models.store.path(entry.root());
    if args.path {
        let Some(path) = path else { bail!("`{0}` is not in the store: `opengrid pull {0}` gets it", entry.id) };
        return output::line(path.to_string_lossy());
    }
    let info = path.as_deref().map(gguf::file::read_info).transpose()?;
    let grid = store::on_grid(context).await;
    let workers = grid.map(|models| models.iter().find(|model| model.id == entry.id).map_or(0, |model| model.workers));
    if context.json {
        return output::json(&json!({
            "id": entry.id,
            "name": entry.name,
            "licence": entry.licence,
            "task": entry.task,
            "class": format!("{:?}", entry.class).to_lowercase(),
            "context_tokens": entry.context,
            "root": entry.root().to_string(),
            "sha256": hex::encode(entry.file.sha256),
            "size_bytes": entry.file.size,
            "sources": entry.sources.iter().map(source_text).collect::<Vec<_>>(),
            "path": path,
            "workers": workers,
            "file": info.as_ref().map(serde_json::to_value).transpose()?,
        }));
    }
    let mut rows = of_catalogue(entry);
    rows.push(("here", path.map_or_else(|| "no".into(), |path| path.display().to_string())));
    rows.push(("workers", workers.map_or_else(|| "unknown (no node runs)".into(), |count| count.to_string())));
    rows.extend(info.iter().flat_map(of_file));
    output::line(output::pairs(&rows))
}

fn of_catalogue(entry: &ModelEntry) -> Vec<(&'static str, String)> {
    vec![
        ("model", entry.id.clone()),
        ("name", entry.name.clone()),
        ("licence", entry.licence.clone()),
        ("task", entry.task.to_string()),
        ("class", format!("{:?}", entry.class).to_lowercase()),
        ("context", format!("{} tokens", entry.context)),
        ("size", format!("{} ({} bytes)", bytes(entry.file.size), entry.file.size)),
        ("root", entry.root().to_string()),
        ("sha256", hex::encode(entry.file.sha256)),
        ("sources", entry.sources.iter().map(source_text).collect::<Vec<_>>().join(", ")),
    ]
}

fn of_file(info: &gguf::ModelInfo) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("architecture", info.architecture.clone()),
        ("parameters", parameters(info.parameters)),
        ("quantisation", info.quantisation.clone()),
        ("layers", info.block_count.to_string()),
        ("vocabulary", format!("{} tokens", info.tokens)),
    ];
    // An encoder keeps nothing.
    if info.task == Task::Generation {
        rows.push(("kv cache", format!("{} per token", bytes(info.kv_bytes_per_token))));
    }
    rows
}

/// `135 M`, `7.2 B`.
fn parameters(count: u64) -> String {
    let millions = count as f64 / 1e6;
    if millions < 1_000.0 { format!("{millions:.0} M") } else { format!("{:.1} B", millions / 1_000.0) }
}

fn source_text(source: &Source) -> String {
    let place = match source {
        Source::Hub { repo, revision, path, .. } => format!("hub {repo}/{path} at {revision}"),
        Source::Package { registry, name, version, .. } => {
            format!("{} package {name} {version}", format!("{registry:?}").to_lowercase())
        }
    };
    if source.convert().is_some() { format!("{place} (converted)") } else { place }
}
