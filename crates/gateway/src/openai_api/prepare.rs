//! From a checked request to running sessions: prompts to tokens, tokens to the grid.

use futures::future::try_join_all;
use opengrid_node::handle::{Answer, GridError, Job, ModelRow, Task, TextModel};
use opengrid_protocol::{limits::PROMPT_TOKENS_MAX, session::Token};

use super::{
    errors::ApiError,
    gap::Gap,
    generation::Generation,
    ids,
    options::{Api, Options, Tier},
    sampling::sampling,
    tools::Format,
    types::{Bounded, ContentIn, GenerationRequest, MessageIn, Part, PromptIn, PromptItem},
};
use crate::{
    asked::Asked,
    server::Gateway,
    text::template::{Message, TemplateError},
};

/// Seconds after which a client may ask again for a model that nobody serves: beacons of a new worker take that long.
const RETRY_AFTER_S: u32 = 5;

/// A prompt in tokens and, for `echo`, in text.
struct Prompt {
    tokens: Vec<Token>,
    echo: Option<String>,
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
    if options.tool_use.is_some() || options.format != Format::Text {
        return Err(ApiError::unsupported("tools", "tools and response formats are not supported yet"));
    }
    let row = find_model_for(gateway, &request.model, Task::Generation)?;
    let place = gateway
        .requests
        .clone()
        .try_acquire_owned()
        .map_err(|_| ApiError::overloaded("this gateway answers as many requests as it can; retry in 1 s"))?;
    let mut followed = gateway.metrics.follow(&row.id, asked.came);
    let text = gateway.grid.text(&row.id).await?;
    let sampling = sampling(&request, text.vocabulary_size())?;
    let prompts = match api {
        Api::Chat => vec![chat_prompt(gateway, request.messages, text.as_ref()).await?],
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
    let stop_tokens = if options.ignore_eos { Vec::new() } else { text.end_tokens().to_vec() };
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
                grammar: None,
                tier: opengrid_protocol::session::Tier::Default,
                affinity: options.affinity.clone(),
            });
        }
    }
    let answers = try_join_all(jobs.into_iter().map(|job| start(gateway, job, &options))).await?;
    let prompt_tokens = prompt_tokens.iter().sum();
    followed.prompt(prompt_tokens);
    let generation =
        Generation::new(answers, echoes, text, &options, prompt_tokens, envelope(&options, &row), followed, place);
    Ok((options, generation))
}

/// Tokens of a chat's prompt.
///
/// # Errors
/// Those of [`place`] but the ones of placing.
pub async fn count(gateway: &Gateway, mut request: GenerationRequest) -> Result<usize, ApiError> {
    Options::check(Api::Chat, &mut request, gateway.config.choices_max)?;
    let row = find_model_for(gateway, &request.model, Task::Generation)?;
    let text = gateway.grid.text(&row.id).await?;
    Ok(chat_prompt(gateway, request.messages, text.as_ref()).await?.tokens.len())
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

async fn chat_prompt(
    gateway: &Gateway,
    messages: Option<Bounded<MessageIn, { super::types::MESSAGES_MAX }>>,
    text: &dyn TextModel,
) -> Result<Prompt, ApiError> {
    let messages = messages.ok_or_else(|| ApiError::missing("messages"))?.0;
    if messages.is_empty() {
        return Err(ApiError::invalid_value("messages", "`messages` is empty"));
    }
    let messages = messages.into_iter().enumerate().map(|(at, m)| flatten(at, m)).collect::<Result<Vec<_>, _>>()?;
    let template = gateway.templates.get(text.chat_template())?;
    let (bos, eos) = (text.bos_text().to_owned(), text.eos_text().to_owned());
    let turn = gateway.rendering.acquire().await.map_err(|error| GridError::Internal(error.to_string()))?;
    // A stranger's template may use all its fuel: that must not hold up other requests.
    let rendered = tokio::task::spawn_blocking(move || {
        let prompt = template.render(&messages, &bos, &eos)?;
        let begins_with_bos = !bos.is_empty() && prompt.starts_with(&bos);
        Ok::<_, TemplateError>((prompt, begins_with_bos))
    });
    let (prompt, begins_with_bos) =
        rendered.await.map_err(|error| ApiError::from(GridError::Internal(error.to_string())))??;
    drop(turn);
    let tokens = text.tokenize(&prompt, text.adds_bos() && !begins_with_bos, true).await?;
    Ok(Prompt { tokens, echo: None })
}

/// A message whose content is one text.
fn flatten(at: usize, message: MessageIn) -> Result<Message, ApiError> {
    use super::types::Shape;
    let role = match message.role.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" | "function" => {
            return Err(ApiError::unsupported(format!("messages[{at}].role"), "tools are not supported yet"));
        }
        other => {
            let shown: String = other.chars().take(64).collect();
            let message = format!("unknown role `{shown}`: use system, developer, user or assistant");
            return Err(ApiError::invalid_value(format!("messages[{at}].role"), message));
        }
    };
    if message.tool_calls.is_some_and(|calls| !calls.0.is_empty()) {
        return Err(ApiError::unsupported(format!("messages[{at}].tool_calls"), "tools are not supported yet"));
    }
    if !matches!(message.function_call, Shape::Absent | Shape::EmptyList) {
        return Err(ApiError::unsupported(format!("messages[{at}].function_call"), "use `tool_calls`"));
    }
    let content = match message.content {
        ContentIn::Text(text) => text,
        ContentIn::Parts(parts) => join_parts(at, parts)?,
        ContentIn::None if role == "assistant" => String::new(),
        ContentIn::None => {
            let param = format!("messages[{at}].content");
            return Err(ApiError::invalid_value(param, format!("a message of role `{role}` needs a content")));
        }
    };
    Ok(Message { role: role.to_owned(), content, name: message.name })
}

fn join_parts(at: usize, parts: Vec<Part>) -> Result<String, ApiError> {
    let mut content = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let at = |field: &str| format!("messages[{at}].content[{index}].{field}");
        if part.r#type != "text" {
            return Err(ApiError::unsupported(at("type"), "only parts of type `text` are supported"));
        }
        content += &part.text.ok_or_else(|| ApiError::invalid_value(at("text"), "a text part needs a `text`"))?;
    }
    Ok(content)
}

async fn text_prompts(
    prompt: Option<PromptIn>,
    gap: Option<&Gap>,
    options: &Options,
    choices_max: u32,
    text: &dyn TextModel,
) -> Result<Vec<Prompt>, ApiError> {
    let echo = options.echo;
    let items = match prompt.ok_or_else(|| ApiError::missing("prompt"))? {
        PromptIn::Text(prompt) => vec![PromptItem::Text(prompt)],
        PromptIn::List(items) if items.is_empty() => items,
        PromptIn::List(items) => match tokens_only(&items) {
            Some(tokens) => vec![PromptItem::Tokens(tokens)],
            None => items,
        },
    };
    let choices = items.len() as u64 * u64::from(options.n);
    if !(1..=u64::from(choices_max)).contains(&choices) {
        let message = format!("`n` times the number of prompts must lie between 1 and {choices_max}, not {choices}");
        return Err(ApiError::invalid_value("prompt", message));
    }
    let mut prompts = Vec::new();
    for item in items {
        prompts.push(match item {
            PromptItem::Text(prompt) => {
                let tokens = text.tokenize(&prompt, gap.is_none(), true).await?;
                Prompt { tokens, echo: echo.then_some(prompt) }
            }
            PromptItem::Tokens(tokens) => token_prompt(tokens, echo, text)?,
            PromptItem::Token(_) => {
                return Err(ApiError::invalid_value("prompt", "`prompt` mixes token ids with other prompts"));
            }
        });
    }
    if let Some(gap) = gap {
        prompts.iter_mut().for_each(|prompt| prompt.tokens = gap.around(&prompt.tokens));
    }
    Ok(prompts)
}

pub(super) fn tokens_only(items: &[PromptItem]) -> Option<Vec<Token>> {
    let token = |item: &PromptItem| match item {
        PromptItem::Token(token) => Some(*token),
        PromptItem::Text(_) | PromptItem::Tokens(_) => None,
    };
    items.iter().map(token).collect()
}

fn token_prompt(tokens: Vec<Token>, echo: bool, text: &dyn TextModel) -> Result<Prompt, ApiError> {
    if let Some(token) = tokens.iter().find(|token| **token >= text.vocabulary_size()) {
        let message = format!("`prompt` has token {token}, the vocabulary has {}", text.vocabulary_size());
        return Err(ApiError::invalid_value("prompt", message));
    }
    let echo = echo.then(|| {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| text.piece(*token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    Ok(Prompt { tokens, echo })
}
