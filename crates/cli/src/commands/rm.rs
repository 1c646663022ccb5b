//! `opengrid rm`: removes models from the store.

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::{
    api::Api,
    args::RmArgs,
    context::Context,
    output::{self, bytes},
    shapes::Status,
    store::Models,
};

/// # Errors
/// When a model does not exist, is not in the store, or is served by the running node. What came before is removed.
pub async fn run(args: &RmArgs, context: &Context) -> anyhow::Result<()> {
    let models = Models::open(context)?;
    let entries = args.models.iter().map(|id| models.entry(id)).collect::<anyhow::Result<Vec<_>>>()?;
    let served = served_models(context).await?;
    if let Some(entry) = entries.iter().find(|entry| served.contains(&entry.id)) {
        bail!("`{}` is served by the running node: stop it first with `opengrid down`", entry.id);
    }
    let mut removed: Vec<Value> = Vec::new();
    for entry in entries {
        if !models.store.contains(entry.root()) {
            bail!("`{}` is not in the store: `opengrid ls --local` lists what is", entry.id);
        }
        let freed = models.store.remove(entry.root()).with_context(|| format!("cannot remove `{}`", entry.id))?;
        removed.push(json!({ "id": entry.id, "freed_bytes": freed }));
        if !context.json {
            output::line(format!("removed {} ({} freed)", entry.id, bytes(freed)))?;
        }
    }
    if context.json { output::json(&removed) } else { Ok(()) }
}

async fn served_models(context: &Context) -> anyhow::Result<Vec<String>> {
    let Some(api) = Api::of_home(&context.home)? else { return Ok(Vec::new()) };
    let status: Status = api.get("/grid/v1/status").await?;
    Ok(status.models.into_iter().map(|model| model.id).collect())
}
