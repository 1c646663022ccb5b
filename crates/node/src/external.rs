//! Servers outside of this program as engines. The model's file has to be in the store all the same: gateways fetch the
//! vocabulary from here, and the engine's is compared with it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use opengrid_engine::{ExternalConfig, ExternalEngine, ExternalError, Reference, SharedEngine, Timeouts, Vocabulary};
use opengrid_models::{ModelEntry, gguf::ModelInfo};
use opengrid_protocol::Share;

use crate::node::Node;

/// Pauses between two looks for an engine that is not there yet; doubling.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Waits until one of the addresses answers with an engine of this model.
///
/// # Errors
/// When every address answers, and none with an engine that will do.
pub async fn start(
    node: &Arc<Node>,
    entry: &ModelEntry,
    file: PathBuf,
    info: &ModelInfo,
    urls: &[String],
) -> Result<SharedEngine, String> {
    let reference = Arc::new(reference(node, file).await?);
    let mut pause = PAUSE_MIN;
    loop {
        let waiting = match first_fit(node, info, &reference, urls).await {
            Ok(engine) => return Ok(engine),
            Err(ExternalError::Unfit(why)) => return Err(why),
            Err(error) => error.to_string(),
        };
        tracing::warn!(model = entry.id, why = waiting, "waiting for the external engine");
        node.serving.preparing(Share::whole(entry.root()), &entry.id, format!("waiting ({waiting}) for the engine of"));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn reference(node: &Arc<Node>, file: PathBuf) -> Result<Reference, String> {
    let vocabulary = Vocabulary::start(node.config.program.clone(), file).await.map_err(|error| error.to_string())?;
    let reference = Reference::of(&vocabulary).await.map_err(|error| error.to_string());
    vocabulary.shutdown().await;
    reference
}

/// `NotThere` while any of them may still come.
async fn first_fit(
    node: &Arc<Node>,
    info: &ModelInfo,
    reference: &Arc<Reference>,
    urls: &[String],
) -> Result<SharedEngine, ExternalError> {
    let (mut absent, mut unfit) = (Vec::new(), Vec::new());
    for url in urls {
        match ExternalEngine::start(config(node, info, reference.clone(), url)).await {
            Ok(engine) => return Ok(engine),
            Err(ExternalError::Unfit(why)) => unfit.push(why),
            Err(error) => absent.push(error.to_string()),
        }
    }
    match absent.is_empty() {
        true => Err(ExternalError::Unfit(unfit.join("; "))),
        false => Err(ExternalError::NotThere([absent, unfit].concat().join("; "))),
    }
}

fn config(node: &Arc<Node>, info: &ModelInfo, reference: Arc<Reference>, url: &str) -> ExternalConfig {
    let settings = &node.config.engine;
    ExternalConfig {
        url: url.to_owned(),
        reference,
        parameters: Some(info.parameters).filter(|count| *count > 0),
        trained_context: u32::try_from(info.context_length).unwrap_or(u32::MAX),
        slots: settings.slots,
        context_tokens: settings.context_tokens,
        queue_max: settings.queue_max,
        timeouts: Timeouts::default(),
    }
}
