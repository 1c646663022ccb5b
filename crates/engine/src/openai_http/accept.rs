//! Whether an engine computes the model that is to be served. What cannot be seen from outside (the weights themselves) is
//! the owner's word; what can be seen is compared: vocabulary, size, context.

use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use opengrid_protocol::{
    Sampling,
    session::{Tier, Token},
};

use super::{
    ExternalConfig, ExternalError,
    assembly::{Assembly, Then},
    gaps::Gaps,
    http::{self, Events, ask},
    probe::{self, Found, base_url, identify},
    profile::{Kind, Segment},
    reference::KNOWN_TEXT,
};
use crate::{GenerateRequest, llama_cpp::speeds::Speeds};

/// Share by which counts of weights may differ: some count tied matrices twice.
const PARAMETERS_TOLERANCE: f64 = 0.3;
/// Tokens of the measuring answer, and of the answer whose pieces are compared.
const MEASURED_TOKENS: u32 = 16;
const COMPARED_TOKENS: u32 = 24;
/// Speeds that are believed when a measurement gives nothing usable.
const SPEEDS_UNKNOWN: Speeds = Speeds { decode: 1.0, prefill: 10.0 };

pub struct Accepted {
    pub client: Client,
    pub found: Found,
    pub context_tokens: u32,
    pub slots: u16,
    pub speeds: Speeds,
    pub gaps: Gaps,
}

/// # Errors
/// [`ExternalError`], in words for people.
pub async fn accept(config: &ExternalConfig) -> Result<Accepted, ExternalError> {
    let url = base_url(&config.url)?;
    let client = http::client(config.timeouts.connect).map_err(ExternalError::Unfit)?;
    let found = identify(&client, &url, config.timeouts.question).await?;
    let context_tokens = context(config, &found)?;
    let slots = config.slots.or(found.slots).unwrap_or(found.kind.slots_default());
    let slots = slots.min(found.slots.unwrap_or(u16::MAX)).max(1);
    same_model(config, &client, &found).await?;
    let gaps = Gaps::of(&config.reference);
    // The first answer of a server that was just started is slow.
    measure(config, &client, &found, &gaps, MEASURED_TOKENS).await?;
    let speeds = measure(config, &client, &found, &gaps, MEASURED_TOKENS).await?;
    Ok(Accepted { client, found, context_tokens, slots, speeds, gaps })
}

fn context(config: &ExternalConfig, found: &Found) -> Result<u32, ExternalError> {
    let said = found.context_tokens.or(config.context_tokens).ok_or_else(|| {
        let (name, url) = (found.kind.name(), &found.url);
        ExternalError::Unfit(format!(
            "{name} at {url} does not say how long its context is: set serve.context_tokens to its --max_seq_len"
        ))
    })?;
    let trained = if config.trained_context == 0 { u32::MAX } else { config.trained_context };
    let tokens = said.min(trained).min(config.context_tokens.unwrap_or(u32::MAX));
    let least = 8 * MEASURED_TOKENS;
    if tokens < least {
        return Err(ExternalError::Unfit(format!("a context of {tokens} tokens is too short to serve ({least})")));
    }
    Ok(tokens)
}

/// # Errors
/// The first thing in which the engine's model is another.
pub async fn same_model(config: &ExternalConfig, client: &Client, found: &Found) -> Result<(), ExternalError> {
    let other = |what: String| {
        let (name, url, model) = (found.kind.name(), &found.url, http::clip(&found.model));
        ExternalError::Unfit(format!("{name} at {url} serves another model (`{model}`): {what}"))
    };
    let reference = &config.reference;
    if let Some(size) = found.vocabulary_size.filter(|size| *size != reference.size) {
        return Err(other(format!("its vocabulary has {size} tokens, not {}", reference.size)));
    }
    if let (Some(theirs), Some(ours)) = (found.parameters, config.parameters)
        && (theirs as f64 - ours as f64).abs() > ours as f64 * PARAMETERS_TOLERANCE
    {
        return Err(other(format!("it has {theirs} weights, not {ours}")));
    }
    let same = match found.kind {
        Kind::LlamaServer => {
            let body = json!({"content": KNOWN_TEXT, "add_special": false, "parse_special": false});
            tokenized(config, client, found, body).await? == reference.known_tokens
        }
        Kind::Vllm => {
            let body = json!({"model": found.model, "prompt": KNOWN_TEXT, "add_special_tokens": false});
            tokenized(config, client, found, body).await? == reference.known_tokens
        }
        Kind::TensorRtLlm => same_pieces(config, client, found).await?,
    };
    if same { Ok(()) } else { Err(other("it cuts a known text into other tokens".to_owned())) }
}

#[derive(Deserialize)]
struct Tokenized {
    tokens: Vec<Token>,
}

async fn tokenized(
    config: &ExternalConfig,
    client: &Client,
    found: &Found,
    body: Value,
) -> Result<Vec<Token>, ExternalError> {
    let request = client.post(format!("{}/tokenize", found.url)).json(&body);
    let answer: Result<Tokenized, _> = ask(request, config.timeouts.question).await;
    answer.map(|answer| answer.tokens).map_err(|error| probe::describe(&found.url, &error))
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    token_ids: Option<Vec<Token>>,
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Logprobs {
    tokens: Vec<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<usize>,
}

/// trtllm-serve has no public tokenizer: the known text as a prompt must count as many tokens as ours, and the texts of
/// some generated ids must be those of ours.
async fn same_pieces(config: &ExternalConfig, client: &Client, found: &Found) -> Result<bool, ExternalError> {
    let body = json!({
        "model": found.model, "prompt": KNOWN_TEXT, "add_special_tokens": false, "max_tokens": COMPARED_TOKENS,
        "detokenize": false, "logprobs": 1, "ignore_eos": true, "seed": 1,
    });
    let request = client.post(format!("{}/v1/completions", found.url)).json(&body);
    let answer: Completion =
        ask(request, config.timeouts.first_token).await.map_err(|error| probe::describe(&found.url, &error))?;
    let no_ids = || {
        let why = "returns no token ids (`detokenize: false`): it is too old";
        ExternalError::Unfit(format!("{} at {} {why}", found.name(), found.url))
    };
    let choice = answer.choices.into_iter().next().ok_or_else(no_ids)?;
    let ids = choice.token_ids.filter(|ids| !ids.is_empty()).ok_or_else(no_ids)?;
    let texts = choice.logprobs.map(|logprobs| logprobs.tokens).unwrap_or_default();
    let counted = answer.usage.and_then(|usage| usage.prompt_tokens);
    let reference = &config.reference;
    let agrees = |(id, text): (&Token, &String)| match std::str::from_utf8(reference.pieces.get(*id)) {
        // Decoders strip a leading space, and print no control tokens.
        Ok(piece) => piece.trim() == text.trim() || piece.is_empty() || text.is_empty(),
        Err(_) => true,
    };
    let known = ids.iter().all(|id| *id < reference.size);
    let same_length = texts.len() == ids.len() && counted == Some(reference.known_tokens.len());
    Ok(known && same_length && ids.iter().zip(&texts).all(agrees))
}

/// A short answer as real ones are computed; proves the wire format, and gives first speeds.
///
/// # Errors
/// When no such answer comes.
pub async fn measure(
    config: &ExternalConfig,
    client: &Client,
    found: &Found,
    gaps: &Gaps,
    tokens: u32,
) -> Result<Speeds, ExternalError> {
    let failed = |why: &str| ExternalError::Unfit(format!("{} at {} does not answer: {why}", found.name(), found.url));
    let request = measuring_request(config, tokens.max(1));
    let mut assembly = Assembly::new(&config.reference, gaps, &request);
    let (tokens_max, stream) = assembly.begin_segment();
    let (model, all) = (&found.model, &request.tokens);
    let segment = Segment { request: &request, model, tokens: all, tokens_max, stream, slot: 0, own_cache: false };
    let post = client.post(format!("{}{}", found.url, found.kind.path())).json(&found.kind.body(&segment));
    let began = Instant::now();
    let deadline = began + config.timeouts.first_token;
    let mut events = Events::open(post, deadline).await.map_err(|error| probe::describe(&found.url, &error))?;
    let (mut first, mut last, mut count) = (None, began, 0_usize);
    let mut within = false;
    while let Some(data) = events.next(deadline).await.map_err(|error| failed(&error.to_string()))? {
        let step = found.kind.read(&data).and_then(|chunk| assembly.take(chunk)).map_err(&failed)?;
        if !step.tokens.is_empty() {
            (last, count) = (Instant::now(), count + step.tokens.len());
            first.get_or_insert((last, count));
        }
        if step.then != Then::More {
            within = step.then == Then::Again;
            break;
        }
    }
    let Some((first, early)) = first else {
        // So few tokens may all lie within one character: computed, if not measured.
        return if within && tokens < MEASURED_TOKENS { Ok(SPEEDS_UNKNOWN) } else { Err(failed("no token came")) };
    };
    let per_second = |tokens: usize, time: std::time::Duration| tokens as f32 / time.as_secs_f32().max(1e-4);
    let decode = if count > early { per_second(count - early, last - first) } else { 0.0 };
    Ok(Speeds { decode, prefill: per_second(all.len(), first - began) }.sane(SPEEDS_UNKNOWN))
}

fn measuring_request(config: &ExternalConfig, tokens: u32) -> GenerateRequest {
    let prompt = config.reference.known_tokens.iter().copied().take(4 * tokens as usize).collect::<Vec<_>>();
    GenerateRequest {
        // Of nobody, and another one each time for engines that cache by it.
        client: *blake3::hash(format!("{:?}", std::time::SystemTime::now()).as_bytes()).as_bytes(),
        prompt_tokens: prompt.len() as u32,
        tokens: prompt,
        completion_tokens_max: tokens,
        stop_tokens: Vec::new(),
        sampling: Sampling::greedy(),
        top_logprobs: None,
        grammar: None,
        tier: Tier::default(),
    }
}
