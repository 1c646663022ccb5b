//! Downloads that the owner asks a running node for: peers are a source there, as they are not for a lone command.

use std::sync::Arc;

use opengrid_models::{
    Fetcher, ModelEntry,
    download::{FetchError, Progress, ProgressSink},
};
use opengrid_network::Network;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{content::GridContent, handle::PullEvent};

/// Downloads at once.
pub const PULLS_MAX: usize = 4;
/// Reports that wait for a slow reader; more are left out.
pub const EVENTS_MAX: usize = 16;

/// One download.
pub struct Pull {
    pub fetcher: Fetcher,
    pub content: Arc<GridContent>,
    pub network: Network,
    pub entry: ModelEntry,
    pub permit: OwnedSemaphorePermit,
}

impl Pull {
    /// Runs until the file is there, nobody has it, nobody listens any more or `node_end`.
    pub async fn run(self, events: mpsc::Sender<PullEvent>, node_end: CancellationToken) {
        let _permit = self.permit;
        let cancel = node_end.child_token();
        let reports = events.clone();
        let progress: ProgressSink = Arc::new(move |progress: Progress| {
            let _ = reports.try_send(PullEvent::Progress(progress));
        });
        let fetching = self.fetcher.fetch(&self.entry, Some(self.content.as_ref()), &progress, &cancel);
        tokio::pin!(fetching);
        let fetched = tokio::select! {
            fetched = &mut fetching => fetched,
            () = events.closed() => {
                cancel.cancel();
                fetching.await
            }
        };
        let last = match fetched {
            Ok(_) => {
                if let Err(error) = self.network.provide(self.entry.root()).await {
                    tracing::warn!(model = self.entry.id, %error, "not announced in the DHT");
                }
                PullEvent::Done
            }
            Err(FetchError::Cancelled) => PullEvent::Failed("the node stops; what is there is kept".into()),
            Err(error) => PullEvent::Failed(error.to_string()),
        };
        let _ = events.send(last).await;
    }
}
