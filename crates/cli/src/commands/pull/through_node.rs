//! A download by the node that runs in the home: it has peers to ask, which a lone command has not.

use anyhow::bail;
use opengrid_models::ModelEntry;
use opengrid_node::handle::PullEvent;
use serde_json::json;

use super::Shown;
use crate::{
    api::Api,
    context::Context,
    output::clean,
    progress::byte_bar,
    runtime::{self, RuntimeError},
    sse::Events,
    store::Models,
};

/// The home's node, if it runs and its store is the one that this command looks at.
///
/// # Errors
/// When its runtime file cannot be read.
pub fn find(models: &Models, context: &Context) -> anyhow::Result<Option<Api>> {
    let runtime = match runtime::read(&context.home) {
        Ok(runtime) => runtime,
        Err(RuntimeError::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let same = |a: &std::path::Path, b: &std::path::Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(&runtime.models_dir, models.store.directory()) { Api::of_runtime(&runtime).map(Some) } else { Ok(None) }
}

/// Asks for the file and shows how it goes. Ending this command ends the download; what is there is kept.
///
/// # Errors
/// When no source has the file, or the node ends.
pub async fn fetch(api: &Api, entry: &ModelEntry) -> anyhow::Result<()> {
    let mut response = api.stream("/grid/v1/pull", &json!({ "model": entry.id })).await?;
    let bar = byte_bar(&entry.id, entry.file.size);
    let mut shown = Shown { bar: bar.clone(), id: entry.id.clone(), step: None };
    let mut events = Events::default();
    let ended = loop {
        let part = tokio::select! {
            part = response.chunk() => part,
            _ = tokio::signal::ctrl_c() => bail!("stopped: `opengrid pull {}` goes on where it was", entry.id),
        };
        let Ok(Some(part)) = part else {
            bail!("the node at {} stopped: `opengrid pull {}` goes on where it was", api.url(), entry.id);
        };
        let last = events.push(&part)?.iter().find_map(|event| end_of(event, &mut shown));
        if let Some(ended) = last {
            break ended;
        }
    };
    bar.finish_and_clear();
    ended
}

/// `None` while the download goes on.
fn end_of(event: &str, shown: &mut Shown) -> Option<anyhow::Result<()>> {
    match serde_json::from_str(event) {
        Ok(PullEvent::Progress(progress)) => {
            shown.show(&progress);
            None
        }
        Ok(PullEvent::Done) => Some(Ok(())),
        Ok(PullEvent::Failed(why)) => Some(Err(anyhow::anyhow!(clean(&why)))),
        Err(_) => Some(Err(anyhow::anyhow!("node and command are of different versions: update both"))),
    }
}
