//! `--engine auto`: which external engines are on this machine?

use opengrid_engine::{Found, LOCAL_PORTS, find_local};

use crate::{
    config::{Engine, Serve, ServeModels},
    errors::usage,
};

/// Where to look for the external engine; says what was found.
///
/// # Errors
/// When `auto` finds none.
pub async fn urls(serve: &Serve) -> anyhow::Result<Vec<String>> {
    match &serve.engine {
        Engine::External(url) => Ok(vec![url.clone()]),
        Engine::Auto if serve.models != ServeModels::None => {
            let found = find_local().await;
            found.iter().for_each(|engine| eprintln!("found {}", line(engine)));
            let urls: Vec<String> = found.into_iter().map(|engine| engine.url).collect();
            if urls.is_empty() { Err(none_found()) } else { Ok(urls) }
        }
        _ => Ok(Vec::new()),
    }
}

fn line(found: &Found) -> String {
    let context = found.context_tokens.map(|tokens| format!(", {tokens} tokens of context")).unwrap_or_default();
    let model: String = found.model.chars().filter(|c| !c.is_control()).take(100).collect();
    format!("{} at {}: {model}{context}", found.name(), found.url)
}

fn none_found() -> anyhow::Error {
    let ports = LOCAL_PORTS.map(|port| port.to_string()).join(", ");
    usage(format!(
        "no llama-server, vLLM or trtllm-serve answers on 127.0.0.1 at the ports {ports}: start one, or give its address \
         as --engine http://127.0.0.1:PORT"
    ))
}
