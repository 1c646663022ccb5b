//! The partial file, used from async code: every access runs where blocking is allowed.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Meter, Phase, SourceError};
use crate::{
    catalogue::FileEntry,
    store::{Partial, StoreError},
};

#[derive(Clone)]
pub(super) struct SharedPartial(Arc<Mutex<Partial>>);

impl SharedPartial {
    pub(super) fn new(partial: Partial) -> Self {
        Self(Arc::new(Mutex::new(partial)))
    }

    pub(super) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Partial) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let partial = Arc::clone(&self.0);
        let worked =
            tokio::task::spawn_blocking(move || work(&mut partial.lock().unwrap_or_else(PoisonError::into_inner)));
        Ok(worked.await.map_err(|error| SourceError::Task(error.to_string()))??)
    }

    pub(super) async fn finish(&self, file: &FileEntry, meter: &Meter) -> Result<(), SourceError> {
        let (file, told) = (file.clone(), meter.clone());
        meter.phase(Phase::Verifying);
        self.with(move |partial| partial.finish(&file, &mut |done, _| told.done(done))).await?;
        meter.phase(Phase::Done);
        Ok(())
    }
}
