//! A request for a response as a request for a chat, and what of it is said again in the answer.

use opengrid_protocol::limits::TOP_LOGPROBS_MAX;
use serde_json::Value;

use super::{
    echo::Echo,
    input::messages,
    request::{FormatIn, FunctionToolIn, ResponsesRequest},
};
use crate::openai_api::{
    errors::ApiError,
    types::{
        AllowedToolIn, AllowedToolsIn, Bounded, FunctionIn, GenerationRequest, JsonSchemaIn, LogprobsIn, NamedIn,
        ResponseFormat, Shape, TOOLS_MAX, ToolChoiceIn, ToolChoiceObject, ToolIn, ToolList,
    },
};

const METADATA_ENTRIES_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;
const IDENTIFIER_BYTES_MAX: usize = 512;
const LOGPROBS: &str = "message.output_text.logprobs";
/// What else may be asked for: parts of what tools of OpenAI's own give, of images and of its reasoning models.
const INCLUDES: [&str; 8] = [
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    LOGPROBS,
];

/// Names of fields in chat and here, for errors.
pub const NAMES: &[(&str, &str)] = &[
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format.json_schema.schema", "text.format.schema"),
    ("response_format", "text.format"),
    (".function.", "."),
];

/// # Errors
/// 400 with the first field that asks for what cannot be done.
pub fn translate(request: ResponsesRequest) -> Result<(GenerationRequest, Echo), ApiError> {
    check_stateless(&request)?;
    check_sizes(&request)?;
    let logprobs = includes_logprobs(&request)?;
    let echo = Echo::of(&request)?;
    let input = request.input.ok_or_else(|| ApiError::missing("input"))?;
    let format = request.text.and_then(|text| text.format);
    let tools = request.tools.0.into_iter().enumerate().map(|(at, tool)| to_chat_tool(at, tool));
    let translated = GenerationRequest {
        model: request.model,
        messages: Some(messages(request.instructions.as_deref(), input)?),
        max_completion_tokens: request.max_output_tokens,
        fit_context: true,
        stream: request.stream,
        logprobs: logprobs.then_some(LogprobsIn::Flag(true)),
        top_logprobs: request.top_logprobs.filter(|_| logprobs),
        prompt_cache_key: request.prompt_cache_key,
        seed: request.seed,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        tools: ToolList(tools.collect::<Result<_, _>>()?),
        tool_choice: request.tool_choice.map(|choice| to_chat_choice(choice.0)).transpose()?,
        parallel_tool_calls: request.parallel_tool_calls,
        response_format: format.map(to_chat_format).transpose()?,
        service_tier: request.service_tier,
        ..GenerationRequest::default()
    };
    Ok((translated, echo))
}

fn check_stateless(request: &ResponsesRequest) -> Result<(), ApiError> {
    let nothing_stored = "this gateway stores no responses: send the whole conversation as `input`";
    let rules = [
        (&request.previous_response_id, "previous_response_id", nothing_stored),
        (&request.conversation, "conversation", nothing_stored),
        (&request.prompt, "prompt", "this gateway stores no prompts: send its text as `instructions` or `input`"),
    ];
    if let Some((_, param, why)) = rules.into_iter().find(|(shape, ..)| **shape != Shape::Absent) {
        return Err(ApiError::unsupported(param, why));
    }
    if request.background == Some(true) {
        let why = "this gateway stores no responses, so that none can be fetched later: use `stream`";
        return Err(ApiError::unsupported("background", why));
    }
    match request.truncation.as_deref() {
        None | Some("auto" | "disabled") => Ok(()),
        Some(_) => Err(ApiError::invalid_value("truncation", "`truncation` is `auto` or `disabled`")),
    }
}

fn check_sizes(request: &ResponsesRequest) -> Result<(), ApiError> {
    for (text, param) in [(&request.user, "user"), (&request.safety_identifier, "safety_identifier")] {
        if text.as_ref().is_some_and(|text| text.len() > IDENTIFIER_BYTES_MAX) {
            return Err(ApiError::invalid_value(param, format!("`{param}` is over {IDENTIFIER_BYTES_MAX} bytes")));
        }
    }
    let fits = |(key, value): (&String, &Value)| {
        let chars = |text: &str| text.chars().count();
        chars(key) <= METADATA_KEY_CHARS_MAX
            && value.as_str().is_some_and(|value| chars(value) <= METADATA_VALUE_CHARS_MAX)
    };
    match request.metadata.as_ref().map(|metadata| &metadata.0) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(entries)) if entries.len() <= METADATA_ENTRIES_MAX && entries.iter().all(fits) => Ok(()),
        Some(_) => Err(ApiError::invalid_value(
            "metadata",
            format!(
                "`metadata` is an object with at most {METADATA_ENTRIES_MAX} texts of {METADATA_VALUE_CHARS_MAX} \
                 characters, whose keys have at most {METADATA_KEY_CHARS_MAX}"
            ),
        )),
    }
}

fn includes_logprobs(request: &ResponsesRequest) -> Result<bool, ApiError> {
    let includes = request.include.as_ref().map_or(&[][..], |list| &list.0);
    if let Some(at) = includes.iter().position(|name| !INCLUDES.contains(&name.as_str())) {
        let message = format!("unknown value; what can be included is `{LOGPROBS}`");
        return Err(ApiError::invalid_value(format!("include[{at}]"), message));
    }
    if request.top_logprobs.is_some_and(|count| !(0..=i64::from(TOP_LOGPROBS_MAX)).contains(&count)) {
        let message = format!("`top_logprobs` must lie between 0 and {TOP_LOGPROBS_MAX}");
        return Err(ApiError::invalid_value("top_logprobs", message));
    }
    Ok(includes.iter().any(|name| name == LOGPROBS))
}

fn to_chat_tool(at: usize, tool: FunctionToolIn) -> Result<ToolIn, ApiError> {
    if tool.r#type != "function" {
        let shown: String = tool.r#type.chars().take(64).collect();
        let message = format!(
            "tools of type `{shown}` are not supported: nothing runs them here. Use tools of type `function`, which \
             the client runs"
        );
        return Err(ApiError::unsupported(format!("tools[{at}].type"), message));
    }
    let function = FunctionIn {
        name: tool.name.ok_or_else(|| ApiError::missing(format!("tools[{at}].name")))?,
        description: tool.description,
        parameters: tool.parameters.filter(|schema| !schema.0.is_null()),
        strict: tool.strict,
    };
    Ok(ToolIn { r#type: tool.r#type, function: Some(function) })
}

fn to_chat_choice(choice: Value) -> Result<ToolChoiceIn, ApiError> {
    let named = |value: &Value| value["name"].as_str().map(|name| NamedIn { name: name.to_owned() });
    let object = |r#type: &str| ToolChoiceObject { r#type: r#type.to_owned(), function: None, allowed_tools: None };
    match (&choice, choice["type"].as_str()) {
        (Value::String(mode), _) => Ok(ToolChoiceIn::Mode(mode.clone())),
        (_, Some("function")) => {
            let function = Some(named(&choice).ok_or_else(|| ApiError::missing("tool_choice.name"))?);
            Ok(ToolChoiceIn::Object(ToolChoiceObject { function, ..object("function") }))
        }
        (_, Some("allowed_tools")) => {
            let tools = choice["tools"].as_array().filter(|tools| tools.len() <= TOOLS_MAX);
            let tools = tools.ok_or_else(|| ApiError::missing("tool_choice.tools"))?;
            let allowed = |tool: &Value| AllowedToolIn {
                r#type: tool["type"].as_str().unwrap_or_default().to_owned(),
                function: named(tool),
            };
            let mode = choice["mode"].as_str().unwrap_or("auto").to_owned();
            let allowed_tools = AllowedToolsIn { mode, tools: Bounded(tools.iter().map(allowed).collect()) };
            Ok(ToolChoiceIn::Object(ToolChoiceObject { allowed_tools: Some(allowed_tools), ..object("allowed_tools") }))
        }
        _ => Err(ApiError::unsupported(
            "tool_choice",
            "`tool_choice` is `none`, `auto`, `required` or an object of type `function` or `allowed_tools`",
        )),
    }
}

fn to_chat_format(format: FormatIn) -> Result<ResponseFormat, ApiError> {
    let json_schema = match (format.r#type.as_str(), format.schema) {
        ("text" | "json_object", _) => None,
        ("json_schema", Some(schema)) => {
            Some(JsonSchemaIn { name: format.name, schema: Some(schema), strict: format.strict })
        }
        ("json_schema", None) => return Err(ApiError::missing("text.format.schema")),
        _ => {
            let message = "`type` is `text`, `json_object` or `json_schema`; this one is not supported";
            return Err(ApiError::unsupported("text.format.type", message));
        }
    };
    Ok(ResponseFormat { r#type: format.r#type, json_schema, schema: None })
}
