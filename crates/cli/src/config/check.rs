//! What single values must look like, and what must hold between them.

use std::net::SocketAddr;

use opengrid_protocol::{
    NodeId,
    invite::Invite,
    limits::{ADDRESS_BYTES_MAX, MODEL_ID_BYTES_MAX},
};

use opengrid_node::config::{Wish, WishedPart};

use super::{Config, ConfigError, Engine, ServeModels, value::clip};

/// Says what is wrong with a text, lower-case, for a place in front of it.
pub type Check = fn(&str) -> Result<(), String>;

pub fn socket_address(text: &str) -> Result<(), String> {
    text.parse::<SocketAddr>()
        .map(drop)
        .map_err(|_| format!("`{text}` is no address with a port; write it as 127.0.0.1:8470 or [::1]:8470"))
}

pub fn host_name(text: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if (1..=253).contains(&text.len()) && text.chars().all(legal) {
        return Ok(());
    }
    Err(format!("`{text}` is no host name; write it as grid.example, without https://, port and path"))
}

/// As browsers write it: a scheme, a host in lower case, and a port unless it is the usual one.
pub fn origin(text: &str) -> Result<(), String> {
    if text == "*" {
        return Ok(());
    }
    let wrong = || format!("`{text}` is no origin; write it as https://app.example or http://localhost:3000");
    let url: reqwest::Url = text.parse().map_err(|_| wrong())?;
    let is_web = matches!(url.scheme(), "http" | "https");
    if is_web && url.origin().ascii_serialization() == text { Ok(()) } else { Err(wrong()) }
}

pub fn http_url(text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains(|c: char| c.is_whitespace() || c.is_control()) => Ok(()),
        _ => Err(format!("`{text}` is no URL; it starts with https:// or http://")),
    }
}

/// What `serve.engine` may be besides a URL.
const ENGINES: [&str; 4] = ["exact", "fast", "auto", "fake"];

pub fn engine(text: &str) -> Result<(), String> {
    if ENGINES.contains(&text) || (text.contains("://") && http_url(text).is_ok()) {
        return Ok(());
    }
    let known = ENGINES.map(|engine| format!("`{engine}`")).join(", ");
    Err(format!("`{}` is none of {known}, and no URL such as http://127.0.0.1:8000", clip(text)))
}

pub fn invite(text: &str) -> Result<(), String> {
    Invite::from_text(text).map(drop).map_err(|error| error.to_string())
}

/// Coarse: the network crate parses them.
fn multiaddress(text: &str) -> Result<(), String> {
    let parts = text.split('/').count();
    if text.starts_with('/') && parts >= 3 && text.len() <= ADDRESS_BYTES_MAX && !text.contains(char::is_whitespace) {
        return Ok(());
    }
    Err(format!("`{text}` is no multiaddress; write it as /ip4/192.0.2.7/tcp/4470"))
}

pub fn peer_address(text: &str) -> Result<(), String> {
    multiaddress(text)?;
    match text.rsplit_once("/p2p/").map(|(_, id)| id.parse::<NodeId>()) {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(format!("`{text}`: {error}")),
        None => Err(format!("`{text}` does not say which node it is; end it with /p2p/12D3KooW…")),
    }
}

pub fn model_id(text: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-._/:@".contains(c);
    if (1..=MODEL_ID_BYTES_MAX).contains(&text.len()) && text.chars().all(legal) {
        return text.parse::<Wish>().map(drop).map_err(|error| format!("`{text}`: {error}"));
    }
    Err(format!("`{text}` is no model id; `opengrid ls --all` lists them"))
}

/// A whole model, or nothing.
pub fn draft(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    model_id(text)?;
    match text.parse::<Wish>() {
        Ok(wish) if wish.part == WishedPart::Whole => Ok(()),
        _ => Err(format!("`{text}` names layers: a draft model is used whole")),
    }
}

pub fn model_source(text: &str) -> Result<(), String> {
    match text {
        "peers" | "hub" | "package" => Ok(()),
        _ => Err(format!("`{text}` is no source; there are `peers`, `hub` and `package`")),
    }
}

/// # Errors
/// The first rule between several settings that is broken.
pub fn together(config: &Config) -> Result<(), ConfigError> {
    if let ServeModels::These(ids) = &config.serve.models
        && let Some(word) = ids.iter().find(|id| *id == "auto" || *id == "none")
    {
        return Err(ConfigError::Setting {
            place: "[serve] models".to_owned(),
            what: format!("`{word}` stands alone: either \"{word}\", or a list of model ids"),
        });
    }
    let any_origin = config.api.cors_origins.iter().any(|origin| origin == "*");
    if any_origin && !config.api.needs_key() {
        return Err(ConfigError::Setting {
            place: "[api] cors_origins".to_owned(),
            what: "any web page could use the API: name the origins, or set require_key = true".to_owned(),
        });
    }
    let one_model = match &config.serve.models {
        ServeModels::Auto => false,
        ServeModels::None => true,
        ServeModels::These(ids) => ids.len() == 1,
    };
    if matches!(config.serve.engine, Engine::External(_) | Engine::Auto) && !one_model {
        return Err(ConfigError::Setting {
            place: "[serve] engine".to_owned(),
            what: "an external engine serves one model: name it, as --serve smollm2-135m".to_owned(),
        });
    }
    let in_parts = |id: &String| id.parse::<Wish>().is_ok_and(|wish| wish.part != WishedPart::Whole);
    let some_in_parts = matches!(&config.serve.models, ServeModels::These(ids) if ids.iter().any(in_parts));
    if config.serve.draft.is_some() && !some_in_parts {
        return Err(ConfigError::Setting {
            place: "[serve] draft".to_owned(),
            what:
                "it guesses for the last layers of a model: serve those, as --serve ID --layers 20..30, or leave it out"
                    .to_owned(),
        });
    }
    if config.models.dir.as_os_str().is_empty() {
        return Err(ConfigError::Setting {
            place: "[models] dir".to_owned(),
            what: "this user has no data directory: set it, or OPENGRID_MODELS".to_owned(),
        });
    }
    Ok(())
}
