//! `opengrid slice`: some layers of a model as a file of their own.

use anyhow::bail;
use opengrid_models::{
    download::FetchError,
    store::{StoreError, StoredSlice},
};
use serde_json::json;

use super::pull::with_bar;
use crate::{
    args::SliceArgs,
    context::Context,
    output::{self, bytes},
    store::Models,
};

/// # Errors
/// When the model does not exist, is not one that is cut, has no such layers, or what it needs cannot be had.
pub async fn run(args: &SliceArgs, context: &Context) -> anyhow::Result<()> {
    let models = Models::open(context)?;
    let entry = models.entry(&args.model)?;
    let made = with_bar(&models, entry, context, async |fetcher, progress, cancel| {
        fetcher.fetch_slice(entry, args.layers, None, progress, cancel).await
    });
    match made.await {
        Ok(slice) => report(&entry.id, &slice, context.json),
        Err(FetchError::Cancelled) => bail!("stopped: what is there is kept"),
        Err(error @ FetchError::NoSource { .. }) => bail!("{error}; `opengrid pull {}` gets the whole model", entry.id),
        Err(FetchError::Store(StoreError::Slice { source, .. })) => bail!("`{}`: {source}", entry.id),
        Err(error) => Err(error.into()),
    }
}

fn report(id: &str, slice: &StoredSlice, json: bool) -> anyhow::Result<()> {
    let StoredSlice { path, plan, tokens } = slice;
    let tokens = tokens.as_ref().map(|(path, _)| path);
    if json {
        return output::json(&json!({
            "id": id,
            "layers": { "from": plan.layers.from(), "to": plan.layers.to(), "of": plan.layer_count },
            "path": path,
            "weight_bytes": plan.weight_bytes(),
            "tokens": tokens,
        }));
    }
    let mut rows = vec![
        ("model", id.to_owned()),
        ("layers", format!("{} of {}", plan.layers, plan.layer_count)),
        ("weights", bytes(plan.weight_bytes())),
        ("file", path.display().to_string()),
    ];
    rows.extend(tokens.map(|path| ("token table", path.display().to_string())));
    output::line(output::pairs(&rows))
}
