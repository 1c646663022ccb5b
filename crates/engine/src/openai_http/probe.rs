//! What answers at an address?

use std::time::Duration;

use reqwest::{Client, Url};
use serde::Deserialize;

use super::{
    ExternalError,
    http::{self, HttpError, ask, clip},
    profile::Kind,
};

/// Where engines listen on this machine unless told: vLLM and trtllm-serve on 8000, llama-server on 8080, seconds beside.
pub const LOCAL_PORTS: [u16; 5] = [8000, 8080, 8001, 8081, 8002];
/// On the loopback, an engine that lives answers quickly.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(2);

/// An engine and what it says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub url: String,
    pub kind: Kind,
    pub version: String,
    /// The engine's name of its model.
    pub model: String,
    /// Tokens that one sequence can hold.
    pub context_tokens: Option<u32>,
    pub slots: Option<u16>,
    pub parameters: Option<u64>,
    pub vocabulary_size: Option<u32>,
}

impl Found {
    /// e.g. `vLLM 0.32.0`.
    pub fn name(&self) -> String {
        format!("{} {}", self.kind.name(), self.version)
    }
}

/// The engines on the usual ports of this machine, in the order of the ports.
pub async fn find_local() -> Vec<Found> {
    let Ok(client) = http::client(LOCAL_TIMEOUT) else { return Vec::new() };
    let looks = LOCAL_PORTS.map(|port| {
        let client = client.clone();
        async move { identify(&client, &format!("http://127.0.0.1:{port}"), LOCAL_TIMEOUT).await.ok() }
    });
    futures::future::join_all(looks).await.into_iter().flatten().collect()
}

/// `http://host:port` of what the owner wrote, which may end in `/` or `/v1`.
///
/// # Errors
/// What is wrong with it.
pub fn base_url(text: &str) -> Result<String, ExternalError> {
    let unfit = |why: &str| ExternalError::Unfit(format!("`{}` is no engine's address: {why}", clip(text)));
    let url = Url::parse(text).map_err(|error| unfit(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(unfit("write it as http://127.0.0.1:8000"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(unfit("it has a query"));
    }
    let text = url.as_str().trim_end_matches('/');
    Ok(text.strip_suffix("/v1").unwrap_or(text).to_owned())
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    owned_by: String,
    max_model_len: Option<u32>,
    meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Meta {
    n_vocab: Option<u32>,
    n_params: Option<u64>,
}

#[derive(Deserialize)]
struct Props {
    build_info: Option<String>,
    total_slots: Option<u16>,
    default_generation_settings: Option<Defaults>,
}

#[derive(Deserialize)]
struct Defaults {
    n_ctx: Option<u32>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

/// # Errors
/// [`ExternalError::NotThere`] when nothing answers or it is still loading, [`ExternalError::Unfit`] when it is none of the
/// engines that are known here.
pub async fn identify(client: &Client, url: &str, within: Duration) -> Result<Found, ExternalError> {
    let get = |path: &str| client.get(format!("{url}{path}"));
    let models: Models = ask(get("/v1/models"), within).await.map_err(|error| describe(url, &error))?;
    // A server's own model is first; adapters follow.
    let model = models.data.into_iter().next().ok_or_else(|| not_there(url, "it serves no model yet"))?;
    let found = Found {
        url: url.to_owned(),
        kind: kind(&model.owned_by).ok_or_else(|| stranger(url, &model.owned_by))?,
        version: "of unknown version".to_owned(),
        model: model.id,
        context_tokens: model.max_model_len,
        slots: None,
        parameters: model.meta.as_ref().and_then(|meta| meta.n_params),
        vocabulary_size: model.meta.as_ref().and_then(|meta| meta.n_vocab),
    };
    match found.kind {
        Kind::LlamaServer => {
            let props: Props = ask(get("/props"), within).await.map_err(|error| describe(url, &error))?;
            let context_tokens = props.default_generation_settings.and_then(|defaults| defaults.n_ctx);
            let version = props.build_info.map_or(found.version, |build| clip(&build));
            Ok(Found { version, context_tokens, slots: props.total_slots, ..found })
        }
        Kind::Vllm | Kind::TensorRtLlm => {
            let version: Version = ask(get("/version"), within).await.map_err(|error| describe(url, &error))?;
            Ok(Found { version: clip(&version.version), ..found })
        }
    }
}

fn kind(owned_by: &str) -> Option<Kind> {
    match owned_by {
        "llamacpp" => Some(Kind::LlamaServer),
        "vllm" => Some(Kind::Vllm),
        "tensorrt_llm" => Some(Kind::TensorRtLlm),
        _ => None,
    }
}

fn not_there(url: &str, why: &str) -> ExternalError {
    ExternalError::NotThere(format!("the engine at {url} is not ready: {why}"))
}

fn stranger(url: &str, owner: &str) -> ExternalError {
    let owner = if owner.is_empty() { "an unnamed server".to_owned() } else { format!("`{}`", clip(owner)) };
    ExternalError::Unfit(format!("at {url} answers {owner}, which is neither llama-server, vLLM nor TensorRT-LLM"))
}

pub fn describe(url: &str, error: &HttpError) -> ExternalError {
    match error {
        HttpError::Status { status: 401 | 403, .. } => {
            ExternalError::Unfit(format!("the engine at {url} wants an API key: start it without, on the loopback"))
        }
        HttpError::Status { status: 404 | 405 | 501, .. } | HttpError::Nonsense(_) => {
            ExternalError::Unfit(format!("what answers at {url} is no engine that is known here ({error})"))
        }
        _ => not_there(url, &error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (text, base) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
            ("http://localhost:8080/v1", "http://localhost:8080"),
            ("https://gpu.lan/engine/v1/", "https://gpu.lan/engine"),
        ] {
            assert_eq!(base_url(text).unwrap(), base);
        }
        for text in ["127.0.0.1:8000", "ftp://a", "http://", "http://a/?x=1", ""] {
            assert!(matches!(base_url(text), Err(ExternalError::Unfit(_))), "{text}");
        }
    }
}
