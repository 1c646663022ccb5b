//! Just the chunks that a slice is made of, from peers or the hub, each proven against the model's chunk tree. The tree
//! comes from a peer: without one nothing proves a part of a file.

use std::ops::Range;

use opengrid_protocol::Layers;
use tokio_util::sync::CancellationToken;

use super::{
    Attempt, FetchError, Fetcher, Meter, PeerSource, ProgressSink, SharedPartial, Source, SourceError, SourceKind,
    fatal, hub, peers, refusal,
};
use crate::{
    catalogue::ModelEntry,
    chunk_tree::Tree,
    slice::Outline,
    store::{Store, StoredSlice, slices},
};

/// What is read first of a file, to find its header.
const HEADER_GUESS_BYTES: u64 = 1;

impl Fetcher {
    /// Makes the slice of `layers` of `model`: from the whole file where that is here, else from the chunks that it
    /// needs, which are fetched and kept (peers get them from here). The whole file is never fetched.
    ///
    /// # Errors
    /// The model is not cut, nobody has what is needed (the error lists what each said), the disk fails or is full, or
    /// it was cancelled.
    pub async fn fetch_slice(
        &self,
        model: &ModelEntry,
        layers: Layers,
        peers: Option<&dyn PeerSource>,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<StoredSlice, FetchError> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(FetchError::Cancelled),
            result = self.fetch_slice_uncancelled(model, layers, peers, progress) => result,
        }
    }

    /// What each layer of `model` takes: fetches the header of its file, where the file is not here.
    ///
    /// # Errors
    /// As [`Fetcher::fetch_slice`].
    pub async fn fetch_outline(
        &self,
        model: &ModelEntry,
        peers: Option<&dyn PeerSource>,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<Outline, FetchError> {
        let fetch = async {
            let root = model.root();
            let Some(lock) = self.lock_or_appear(model, progress).await? else {
                return blocking(&self.store, move |store| store.outline(root)).await;
            };
            let file = model.file.clone();
            let opened = blocking(&self.store, move |store| store.open_partial(&file, lock)).await?;
            let job = Job { fetcher: self, model, peers, partial: SharedPartial::new(opened), progress };
            job.take_tree().await?;
            job.fetch_header().await?;
            let outline =
                move |partial: &mut crate::store::Partial| slices::outline(&partial.data(), partial.size(), root);
            job.partial.with(outline).await.map_err(fatal)
        };
        let fetched = cancel.run_until_cancelled(fetch).await;
        fetched.unwrap_or(Err(FetchError::Cancelled))
    }

    async fn fetch_slice_uncancelled(
        &self,
        model: &ModelEntry,
        layers: Layers,
        peers: Option<&dyn PeerSource>,
        progress: &ProgressSink,
    ) -> Result<StoredSlice, FetchError> {
        let root = model.root();
        let Some(lock) = self.lock_or_appear(model, progress).await? else {
            return blocking(&self.store, move |store| store.make_slice(root, layers)).await;
        };
        let file = model.file.clone();
        let opened = blocking(&self.store, move |store| store.open_partial(&file, lock)).await?;
        let job = Job { fetcher: self, model, peers, partial: SharedPartial::new(opened), progress };
        job.take_tree().await?;
        job.fetch_header().await?;
        let planned = move |partial: &mut crate::store::Partial| {
            slices::plan(&partial.data(), partial.size(), root, layers).map(|plan| plan.source_ranges())
        };
        let ranges = job.partial.with(planned).await.map_err(fatal)?;
        job.fetch_ranges(ranges).await?;
        let store = self.store.clone();
        let made =
            move |partial: &mut crate::store::Partial| store.slice_of(root, layers, &partial.data(), partial.size());
        job.partial.with(made).await.map_err(fatal)
    }
}

async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> Result<T, crate::store::StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    let store = store.clone();
    let worked = tokio::task::spawn_blocking(move || work(&store)).await;
    Ok(worked.map_err(|error| FetchError::Task(error.to_string()))??)
}

struct Job<'a> {
    fetcher: &'a Fetcher,
    model: &'a ModelEntry,
    peers: Option<&'a dyn PeerSource>,
    partial: SharedPartial,
    progress: &'a ProgressSink,
}

impl Job<'_> {
    /// The tree of an earlier download, else a peer's.
    async fn take_tree(&self) -> Result<(), FetchError> {
        if self.partial.with(|partial| Ok(partial.tree().is_some())).await.map_err(fatal)? {
            return Ok(());
        }
        let none = |why: String| FetchError::NoSource {
            model: self.model.id.clone(),
            attempts: vec![Attempt {
                source: SourceKind::Peers,
                why: format!("{why}; to begin a slice, somebody must have the list of the file's chunks"),
            }],
        };
        let peers = self.peers.ok_or_else(|| none("there is no way to peers".to_owned()))?;
        let found = peers::find_tree(&self.fetcher.config, peers, self.model.root(), self.model.file.size).await;
        let (tree, _): (Tree, _) = found.map_err(none)?;
        self.partial.with(move |partial| partial.use_tree(tree)).await.map_err(fatal)
    }

    async fn fetch_header(&self) -> Result<(), FetchError> {
        let mut bytes = HEADER_GUESS_BYTES;
        loop {
            self.fetch_ranges(std::iter::once(0..bytes).collect()).await?;
            let needs = move |partial: &mut crate::store::Partial| {
                // Whole chunks are there.
                let have = bytes.next_multiple_of(opengrid_protocol::limits::CHUNK_BYTES);
                slices::header_needs(&partial.data(), partial.size(), have)
            };
            match self.partial.with(needs).await.map_err(fatal)? {
                Some(needed) => bytes = needed.max(bytes * 2),
                None => return Ok(()),
            }
        }
    }

    /// From one source after the other, until nothing is missing.
    async fn fetch_ranges(&self, ranges: Vec<Range<u64>>) -> Result<(), FetchError> {
        let wanted = move |partial: &mut crate::store::Partial| {
            partial.want(&ranges)?;
            Ok((partial.wanted_bytes(), partial.first_gap().is_none()))
        };
        let (bytes, done) = self.partial.with(wanted).await.map_err(fatal)?;
        if done {
            return Ok(());
        }
        let mut attempts = Vec::new();
        for (kind, source) in self.fetcher.steps(self.model, self.peers.is_some()) {
            let meter = Meter::new(Some(kind), bytes, self.progress);
            match self.try_source(source, &meter).await {
                Ok(()) => return Ok(()),
                Err(error) => attempts.push(Attempt { source: kind, why: refusal(error)? }),
            }
        }
        Err(FetchError::NoSource { model: self.model.id.clone(), attempts })
    }

    async fn try_source(&self, source: Option<&Source>, meter: &Meter) -> Result<(), SourceError> {
        let config = &self.fetcher.config;
        let (partial, root) = (&self.partial, self.model.root());
        match (source, self.peers) {
            (Some(Source::Hub { repo, revision, path, convert: None }), _) => {
                hub::fetch(config, [repo, revision, path], partial, meter).await
            }
            (Some(_), _) => Err(SourceError::Unavailable("it gives whole files only".to_owned())),
            (None, Some(peers)) => peers::fetch(config, peers, root, partial, meter).await,
            (None, None) => Err(SourceError::Unavailable("there is no way to peers".to_owned())),
        }
    }
}
