//! The model store and the catalogue of this user, as the settings name them.

use anyhow::bail;
use opengrid_models::{Catalogue, ModelEntry, Store};
use serde_json::Value;

use crate::{
    api::{self, Api},
    context::Context,
    output::clean,
    shapes::Model,
};

pub struct Models {
    pub catalogue: Catalogue,
    pub store: Store,
}

impl Models {
    /// # Errors
    /// When the store's directory cannot be made or the user's catalogue has a mistake.
    pub fn open(context: &Context) -> anyhow::Result<Self> {
        let directory = &context.settings.config.models.dir;
        let store = Store::open(directory)?;
        Ok(Self { catalogue: Catalogue::load(store.directory())?, store })
    }

    /// # Errors
    /// When the catalogue has no such model; the nearest id is named.
    pub fn entry(&self, id: &str) -> anyhow::Result<&ModelEntry> {
        if let Some(entry) = self.catalogue.get(id) {
            return Ok(entry);
        }
        let id = clean(id);
        match self.catalogue.nearest(&id) {
            Some(nearest) => bail!("the model `{id}` does not exist: did you mean `{nearest}`?"),
            None => bail!("the model `{id}` does not exist: `opengrid ls` lists the models"),
        }
    }
}

/// What the running node of the home knows of the grid's models; `None` without a node that answers.
pub async fn on_grid(context: &Context) -> Option<Vec<Model>> {
    let api = Api::of_home(&context.home).ok()??;
    let answer: Value = api.get("/grid/v1/models").await.ok()?;
    api::rows(&answer, "models").ok()
}
