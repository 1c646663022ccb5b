//! From a checked request to running sessions: prompts to tokens, tokens to the grid.

use futures::future::try_join_all;
use opengrid_node::handle::{Answer, GridError, Job, ModelRow, Task};
use opengrid_protocol::{
    limits::PROMPT_TOKENS_MAX,
    session::{Tier, Token},
};

use super::{
    chat_prompt::chat_prompt,
    errors::ApiError,
    gap::Gap,
    generation::Generation,
    ids,
    options::{Api, Options},
    sampling::sampling,
    text_prompt::text_prompts,
    types::GenerationRequest,
};
use crate::{asked::Asked, server::Gateway, text::answer::Reading};

/// Seconds after which a client may ask again for a model that nobody serves: beacons of a new worker take that long.
const RETRY_AFTER_S: u32 = 5;

/// A prompt in tokens and, for `echo`, in text.
pub struct Prompt {
    pub tokens: Vec<Token>,
    pub echo: Option<String>,
}

/// Prompts, and what their answers must and may be.
pub struct Prepared {
    pub prompts: Vec<Prompt>,
    pub reading: Reading,
    pub grammar: Option<String>,
}

/// What is constant in all chunks of an answer.
pub struct Envelope {
    pub id: String,
    pub created: u64,
    pub model: String,
    /// Names the exact weights.
    pub fingerprint: String,
    pub tier: Option<Tier>,
}

/// Places all choices of `request` on the grid and returns when workers have accepted them.
///
/// # Errors
/// 404, 503 and every 400 of a request that fits its types.
pub async fn place(
    gateway: &Gateway,
    mut request: GenerationRequest,
    api: Api,
    asked: &Asked,
) -> Result<(Options, Generation), ApiError> {
    let mut options = Options::check(api, &mut request, gateway.config.choices_max)?;
    let row = find_model_for(gateway, &request.model, Task::Generation)?;
    let place = gateway
        .requests
        .clone()
        .try_acquire_owned()
        .map_err(|_| ApiError::overloaded("this gateway answers as many requests as it can; retry in 1 s"))?;
    let mut followed = gateway.metrics.follow(&row.id, asked.came);
    let text = gateway.grid.text(&row.id).await?;
    let sampling = sampling(&request, text.vocabulary_size())?;
    let Prepared { prompts, reading, grammar } = match api {
        Api::Chat => chat_prompt(gateway, request, &options, text.as_ref()).await?,
        Api::Text => {
            let gap = Gap::new(request.suffix.as_deref(), text.as_ref()).await?;
            text_prompts(request.prompt, gap.as_ref(), &options, gateway.config.choices_max, text.as_ref()).await?
        }
    };
    let context = text.trained_context().max(row.context_tokens);
    if options.fit_context {
        options.completion_tokens_max = options.completion_tokens_max.map(|max| fit(max, &prompts, context));
    }
    check_lengths(&prompts, &options, context)?;
    let prompt_tokens: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    let choices = prompts.len() * options.n as usize;
    followed.pay(asked.reserve(prompt_tokens.iter().sum(), options.completion_tokens_max, choices)?);
    // A grammar's end is an end token.
    let stop_tokens = if options.ignore_eos && grammar.is_none() { Vec::new() } else { text.end_tokens().to_vec() };
    let mut echoes = Vec::new();
    let mut jobs = Vec::new();
    for prompt in prompts {
        for choice in 0..options.n {
            let mut sampling = sampling.clone();
            sampling.choice = choice;
            echoes.push(prompt.echo.clone());
            jobs.push(Job {
                model: row.id.clone(),
                prompt: prompt.tokens.clone(),
                completion_tokens_max: options.completion_tokens_max,
                stop_tokens: stop_tokens.clone(),
                vocabulary_size: text.vocabulary_size(),
                sampling,
                top_logprobs: options.top_logprobs,
                grammar: grammar.clone(),
                tier: options.tier.unwrap_or_default(),
                affinity: options.affinity.clone(),
            });
        }
    }
    let answers = try_join_all(jobs.into_iter().map(|job| start(gateway, job, &options))).await?;
    let prompt_tokens = prompt_tokens.iter().sum();
    followed.prompt(prompt_tokens);
    let generation = Generation::new(
        answers,
        echoes,
        text,
        &options,
        &reading,
        prompt_tokens,
        envelope(&options, &row),
        followed,
        place,
    );
    Ok((options, generation))
}

/// Tokens of a chat's prompt.
///
/// # Errors
/// Those of [`place`] but the ones of placing.
pub async fn count(gateway: &Gateway, mut request: GenerationRequest) -> Result<usize, ApiError> {
    let options = Options::check(Api::Chat, &mut request, gateway.config.choices_max)?;
    let row = find_model_for(gateway, &request.model, Task::Generation)?;
    let text = gateway.grid.text(&row.id).await?;
    let prepared = chat_prompt(gateway, request, &options, text.as_ref()).await?;
    Ok(prepared.prompts.iter().map(|prompt| prompt.tokens.len()).sum())
}

async fn start(gateway: &Gateway, job: Job, options: &Options) -> Result<Answer, ApiError> {
    let (prompt, completion) = (job.prompt.len() as u32, job.completion_tokens_max);
    let again = options.fit_context.then(|| job.clone());
    let mut started = gateway.grid.generate(job).await;
    if let (Err(GridError::ContextOverflow { limit, .. }), Some(mut job)) = (&started, again)
        && *limit > prompt
    {
        // The workers hold less than the model was trained for.
        job.completion_tokens_max = Some(limit - prompt);
        started = gateway.grid.generate(job).await;
    }
    started.map_err(|error| match error {
        GridError::ContextOverflow { limit, .. } => {
            ApiError::context_length(limit, prompt, completion, param(options.api))
        }
        other => other.into(),
    })
}

/// The part of `max` that `context` has room for beside the longest prompt; at least 1.
fn fit(max: u32, prompts: &[Prompt], context: u32) -> u32 {
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let room = context.min(PROMPT_TOKENS_MAX as u32).saturating_sub(u32::try_from(longest).unwrap_or(u32::MAX));
    max.min(room.max(1))
}

fn param(api: Api) -> &'static str {
    match api {
        Api::Chat => "messages",
        Api::Text => "prompt",
    }
}

/// The model, if it does this and somebody serves it now.
///
/// # Errors
/// 400, 404 or 503.
pub fn find_model_for(gateway: &Gateway, id: &str, task: Task) -> Result<ModelRow, ApiError> {
    match gateway.grid.models().into_iter().find(|row| row.id == id) {
        Some(row) if row.task != task => {
            let hint = match row.task {
                Task::Embedding => "makes embeddings, no text: send it to POST /v1/embeddings",
                Task::Generation => "makes text, no embeddings: GET /v1/models names the task of each model",
            };
            Err(ApiError::unsupported("model", format!("the model `{id}` {hint}")))
        }
        _ => find_model(gateway, id),
    }
}

/// The model, if somebody serves it now.
///
/// # Errors
/// 404 or 503.
pub fn find_model(gateway: &Gateway, id: &str) -> Result<ModelRow, ApiError> {
    let row = gateway.grid.models().into_iter().find(|row| row.id == id);
    let row = row.ok_or_else(|| ApiError::model_not_found(id))?;
    if row.workers == 0 { Err(ApiError::no_capacity(id, RETRY_AFTER_S)) } else { Ok(row) }
}

fn envelope(options: &Options, row: &ModelRow) -> Envelope {
    let prefix = match options.api {
        Api::Chat => "chatcmpl-",
        Api::Text => "cmpl-",
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let root = row.root.to_string();
    Envelope {
        id: ids::fresh(prefix),
        created: now.map_or(0, |since| since.as_secs()),
        model: row.id.clone(),
        fingerprint: format!("fp_{}", root.get(..12).unwrap_or(&root)),
        tier: options.tier,
    }
}

fn check_lengths(prompts: &[Prompt], options: &Options, limit: u32) -> Result<(), ApiError> {
    let param = param(options.api);
    for prompt in prompts {
        let tokens = prompt.tokens.len();
        if tokens == 0 {
            return Err(ApiError::invalid_value(param, format!("`{param}` is empty: it has no tokens")));
        }
        let limit = limit.min(PROMPT_TOKENS_MAX as u32);
        let needed = tokens as u64 + u64::from(options.completion_tokens_max.unwrap_or(1));
        if needed > u64::from(limit) {
            let prompt = u32::try_from(tokens).unwrap_or(u32::MAX);
            return Err(ApiError::context_length(limit, prompt, options.completion_tokens_max, param));
        }
    }
    Ok(())
}
