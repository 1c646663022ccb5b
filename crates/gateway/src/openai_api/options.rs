//! What a request asks for besides its prompt and sampling, checked.

use opengrid_protocol::{
    limits::{COMPLETION_TOKENS_MAX, TOP_LOGPROBS_MAX},
    session::Tier,
};

use super::{
    errors::ApiError,
    tools::{self, Format, ToolUse, tool_use},
    types::{GenerationRequest, LogprobsIn, Shape},
};

const STOPS_MAX: usize = 4;
const STOP_BYTES_MAX: usize = 4_096;
const AFFINITY_BYTES_MAX: usize = 512;
/// OpenAI's default for `/v1/completions`.
const TEXT_COMPLETION_TOKENS: u32 = 16;

/// Which of the two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Chat,
    Text,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub api: Api,
    /// `service_tier`: which queue a request waits in. `None` where the request does not speak of it: then the answer
    /// does not either.
    pub tier: Option<Tier>,
    pub tool_use: Option<ToolUse>,
    pub format: Format,
    /// Answers to each prompt.
    pub n: u32,
    /// `None`: up to the end of the context.
    pub completion_tokens_max: Option<u32>,
    /// An answer that would not fit the context may be shorter.
    pub fit_context: bool,
    pub stops: Vec<String>,
    pub ignore_eos: bool,
    pub echo: bool,
    pub stream: bool,
    pub include_usage: bool,
    pub top_logprobs: Option<u8>,
    pub affinity: Option<String>,
}

impl Options {
    /// # Errors
    /// 400 with the first field that asks for what cannot be done.
    pub fn check(api: Api, request: &mut GenerationRequest, choices_max: u32) -> Result<Self, ApiError> {
        check_supported(request)?;
        let n = n(request, choices_max)?;
        let chat = api == Api::Chat;
        let options = Self {
            api,
            tier: tier(request)?,
            tool_use: if chat { tool_use(request)? } else { None },
            format: tools::format(request.response_format.as_ref())?,
            n,
            completion_tokens_max: completion_tokens_max(api, request)?,
            fit_context: request.fit_context,
            stops: stops(request)?,
            ignore_eos: request.ignore_eos.unwrap_or(false),
            echo: api == Api::Text && request.echo.unwrap_or(false),
            stream: request.stream.unwrap_or(false),
            include_usage: request.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false),
            top_logprobs: top_logprobs(api, request)?,
            affinity: affinity(request)?,
        };
        if options.echo && options.top_logprobs.is_some() {
            return Err(ApiError::unsupported(
                "echo",
                "`echo` with `logprobs` is not supported: prompts have no logprobs",
            ));
        }
        Ok(options)
    }
}

fn check_supported(request: &GenerationRequest) -> Result<(), ApiError> {
    let is = |shape: &Shape, allowed: &[&str]| matches!(shape, Shape::Text(text) if allowed.contains(&text.as_str()));
    let nothing = |shape: &Shape| matches!(shape, Shape::Absent | Shape::EmptyList);
    let modalities_ok = request.modalities.as_ref().is_none_or(|list| list.0.iter().all(|kind| kind == "text"));
    let rules = [
        (nothing(&request.functions), "functions"),
        (nothing(&request.function_call) || is(&request.function_call, &["none", "auto"]), "function_call"),
        (nothing(&request.audio), "audio"),
        (nothing(&request.web_search_options), "web_search_options"),
        (modalities_ok, "modalities"),
        (request.best_of.is_none_or(|best_of| best_of == request.n.unwrap_or(1)), "best_of"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, param)) => Err(ApiError::unsupported(*param, format!("this value of `{param}` is not supported yet"))),
        None => Ok(()),
    }
}

fn tier(request: &GenerationRequest) -> Result<Option<Tier>, ApiError> {
    match request.service_tier.as_deref() {
        None => Ok(None),
        Some("auto" | "default") => Ok(Some(Tier::Default)),
        Some("priority") => Ok(Some(Tier::Priority)),
        Some("flex") => Ok(Some(Tier::Flex)),
        Some(_) => {
            Err(ApiError::invalid_value("service_tier", "`service_tier` is `auto`, `default`, `priority` or `flex`"))
        }
    }
}

/// As OpenAI writes it.
pub fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Flex => "flex",
        Tier::Default => "default",
        Tier::Priority => "priority",
    }
}

fn n(request: &GenerationRequest, choices_max: u32) -> Result<u32, ApiError> {
    let n = request.n.unwrap_or(1);
    let fits = u32::try_from(n).ok().filter(|n| (1..=choices_max).contains(n));
    fits.ok_or_else(|| ApiError::invalid_value("n", format!("`n` must lie between 1 and {choices_max}, not {n}")))
}

fn completion_tokens_max(api: Api, request: &GenerationRequest) -> Result<Option<u32>, ApiError> {
    let (param, value) = match (request.max_completion_tokens, request.max_tokens) {
        (Some(value), _) => ("max_completion_tokens", value),
        (None, Some(value)) => ("max_tokens", value),
        (None, None) => return Ok((api == Api::Text).then_some(TEXT_COMPLETION_TOKENS)),
    };
    let fits = u32::try_from(value).ok().filter(|n| (1..=COMPLETION_TOKENS_MAX).contains(n));
    fits.map(Some).ok_or_else(|| {
        let message = format!("`{param}` must lie between 1 and {COMPLETION_TOKENS_MAX}, not {value}");
        ApiError::invalid_value(param, message)
    })
}

fn stops(request: &mut GenerationRequest) -> Result<Vec<String>, ApiError> {
    let stops = request.stop.take().map_or_else(Vec::new, |stops| stops.0);
    if stops.len() > STOPS_MAX {
        return Err(ApiError::invalid_value("stop", format!("`stop` has more than {STOPS_MAX} entries")));
    }
    if stops.iter().any(|stop| stop.len() > STOP_BYTES_MAX) {
        return Err(ApiError::invalid_value("stop", format!("an entry of `stop` is over {STOP_BYTES_MAX} bytes")));
    }
    Ok(stops)
}

fn top_logprobs(api: Api, request: &GenerationRequest) -> Result<Option<u8>, ApiError> {
    let count = |param, value: i64| {
        let fits = u8::try_from(value).ok().filter(|n| *n <= TOP_LOGPROBS_MAX);
        fits.map(Some).ok_or_else(|| {
            ApiError::invalid_value(param, format!("`{param}` must lie between 0 and {TOP_LOGPROBS_MAX}, not {value}"))
        })
    };
    match (api, &request.logprobs, request.top_logprobs) {
        (Api::Chat, Some(LogprobsIn::Flag(true)), top) => count("top_logprobs", top.unwrap_or(0)),
        (Api::Chat, Some(LogprobsIn::Count(_)), _) => {
            Err(ApiError::invalid_value("logprobs", "`logprobs` must be a boolean"))
        }
        (Api::Chat, _, Some(_)) => {
            Err(ApiError::invalid_value("top_logprobs", "`top_logprobs` needs `logprobs`: true"))
        }
        (Api::Chat, _, None) | (Api::Text, None | Some(LogprobsIn::Flag(false)), _) => Ok(None),
        (Api::Text, Some(LogprobsIn::Count(n)), _) => count("logprobs", *n),
        (Api::Text, Some(LogprobsIn::Flag(true)), _) => {
            Err(ApiError::invalid_value("logprobs", "`logprobs` must be a number of alternatives"))
        }
    }
}

fn affinity(request: &mut GenerationRequest) -> Result<Option<String>, ApiError> {
    match request.prompt_cache_key.take() {
        Some(key) if key.len() > AFFINITY_BYTES_MAX => {
            let message = format!("`prompt_cache_key` is over {AFFINITY_BYTES_MAX} bytes");
            Err(ApiError::invalid_value("prompt_cache_key", message))
        }
        key => Ok(key.filter(|key| !key.is_empty())),
    }
}
