//! A request for a message as a request for a chat.

use serde_json::json;

use super::{
    request::{FormatIn, MessagesRequest, ToolChoiceIn as ChoiceIn, ToolIn as OwnToolIn},
    turns::messages,
};
use crate::openai_api::{
    errors::ApiError,
    types::{
        BoundedJson, FunctionIn, GenerationRequest, JsonSchemaIn, NamedIn, OneOrMore, ResponseFormat, Shape,
        ToolChoiceIn, ToolChoiceObject, ToolIn, ToolList,
    },
};

/// Names of fields in chat and here, for errors.
pub const NAMES: &[(&str, &str)] = &[
    ("max_completion_tokens", "max_tokens"),
    ("response_format.json_schema.schema", "output_config.format.schema"),
    (".function.parameters", ".input_schema"),
    ("parameters", "input_schema"),
    (".function.", "."),
    ("stop", "stop_sequences"),
];

/// # Errors
/// 400 with the first field that asks for what cannot be done.
pub fn translate(request: MessagesRequest) -> Result<GenerationRequest, ApiError> {
    for (shape, param) in [(&request.mcp_servers, "mcp_servers"), (&request.container, "container")] {
        if !matches!(shape, Shape::Absent | Shape::EmptyList) {
            return Err(ApiError::unsupported(param, format!("{param}: not supported, nothing runs tools here")));
        }
    }
    let thinks = thinks(&request)?;
    let turns = request.messages.ok_or_else(|| ApiError::missing("messages"))?;
    let tools = request.tools.0.into_iter().enumerate().map(|(at, tool)| to_chat_tool(at, tool));
    let parallel = request.tool_choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use);
    let format = request.output_config.and_then(|config| config.format);
    Ok(GenerationRequest {
        model: request.model,
        messages: Some(messages(request.system, turns.0)?),
        max_completion_tokens: request.max_tokens,
        fit_context: true,
        stream: request.stream,
        stop: request.stop_sequences.map(|stops| OneOrMore(stops.0)),
        seed: request.seed,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        tools: ToolList(tools.collect::<Result<_, _>>()?),
        tool_choice: request.tool_choice.map(to_chat_choice).transpose()?,
        parallel_tool_calls: parallel.map(|disabled| !disabled),
        response_format: format.map(to_chat_format).transpose()?,
        chat_template_kwargs: Some(BoundedJson(json!({ "enable_thinking": thinks }))),
        ..GenerationRequest::default()
    })
}

/// Whether the model may think before it answers, where it can.
///
/// # Errors
/// 400 for values that do not exist.
pub fn thinks(request: &MessagesRequest) -> Result<bool, ApiError> {
    match request.thinking.as_ref().map(|thinking| thinking.r#type.as_str()) {
        None | Some("disabled") => Ok(false),
        Some("enabled" | "adaptive") => Ok(true),
        Some(_) => {
            let message = "thinking.type: it is `enabled`, `adaptive` or `disabled`";
            Err(ApiError::invalid_value("thinking.type", message))
        }
    }
}

fn to_chat_tool(at: usize, tool: OwnToolIn) -> Result<ToolIn, ApiError> {
    if let Some(kind) = tool.r#type.filter(|kind| kind != "custom") {
        let shown: String = kind.chars().take(64).collect();
        let message = format!("tools.{at}.type: `{shown}` is not supported: only tools with an `input_schema`");
        return Err(ApiError::unsupported(format!("tools.{at}.type"), message));
    }
    let missing = || ApiError::invalid_value("tools", format!("tools.{at}.input_schema: field required"));
    let function = FunctionIn {
        name: tool.name,
        description: tool.description,
        parameters: Some(tool.input_schema.ok_or_else(missing)?),
        strict: tool.strict,
    };
    Ok(ToolIn { r#type: "function".into(), function: Some(function) })
}

fn to_chat_choice(choice: ChoiceIn) -> Result<ToolChoiceIn, ApiError> {
    let mode = |mode: &str| Ok(ToolChoiceIn::Mode(mode.to_owned()));
    match (choice.r#type.as_str(), choice.name) {
        ("auto", _) => mode("auto"),
        ("any", _) => mode("required"),
        ("none", _) => mode("none"),
        ("tool", Some(name)) => Ok(ToolChoiceIn::Object(ToolChoiceObject {
            r#type: "function".into(),
            function: Some(NamedIn { name }),
            allowed_tools: None,
        })),
        ("tool", None) => Err(ApiError::invalid_value("tool_choice.name", "tool_choice.name: field required")),
        _ => {
            let message = "tool_choice.type: it is `auto`, `any`, `tool` or `none`";
            Err(ApiError::invalid_value("tool_choice.type", message))
        }
    }
}

fn to_chat_format(format: FormatIn) -> Result<ResponseFormat, ApiError> {
    if format.r#type != "json_schema" {
        let message = "output_config.format.type: only `json_schema` is supported";
        return Err(ApiError::unsupported("output_config.format.type", message));
    }
    let missing = || ApiError::missing("output_config.format.schema");
    let schema = Some(format.schema.ok_or_else(missing)?);
    let json_schema = Some(JsonSchemaIn { name: None, schema, strict: Some(true) });
    Ok(ResponseFormat { r#type: format.r#type, json_schema, schema: None })
}
