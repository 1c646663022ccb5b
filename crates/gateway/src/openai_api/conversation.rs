//! The messages of a request, checked and flattened to texts.

use std::collections::HashMap;

use axum::http::StatusCode;
use serde_json::Value;

use super::{
    errors::ApiError,
    types::{Bounded, BoundedJson, ContentIn, MESSAGES_MAX, MessageIn, Part, Shape, ToolCallIn},
};
use crate::text::template::{Call, Message, Role};

/// # Errors
/// 400 with the message at fault.
pub fn conversation(messages: Option<Bounded<MessageIn, MESSAGES_MAX>>) -> Result<Vec<Message>, ApiError> {
    let messages = messages.ok_or_else(|| ApiError::missing("messages"))?.0;
    if messages.is_empty() {
        return Err(ApiError::invalid_value("messages", "`messages` is empty"));
    }
    let mut messages: Vec<Message> =
        messages.into_iter().enumerate().map(|(at, message)| flatten(at, message)).collect::<Result<_, _>>()?;
    name_results(&mut messages);
    Ok(messages)
}

/// Some templates want to know which function a result is of.
fn name_results(messages: &mut [Message]) {
    let mut names: HashMap<String, String> = HashMap::new();
    for message in messages {
        for call in &message.calls {
            names.insert(call.id.clone(), call.name.clone());
        }
        if let (Role::Tool, None, Some(id)) = (message.role, &message.name, &message.call_id) {
            message.name = names.get(id).cloned();
        }
    }
}

/// A message whose content is one text.
fn flatten(at: usize, message: MessageIn) -> Result<Message, ApiError> {
    let field = |field: &str| format!("messages[{at}].{field}");
    let role = match message.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        "function" => return Err(ApiError::unsupported(field("role"), "functions are now tools: use role `tool`")),
        other => {
            let shown: String = other.chars().take(64).collect();
            let message = format!("unknown role `{shown}`: use system, developer, user, assistant or tool");
            return Err(ApiError::invalid_value(field("role"), message));
        }
    };
    if !matches!(message.function_call, Shape::Absent | Shape::EmptyList) {
        return Err(ApiError::unsupported(field("function_call"), "functions are now tools: use `tool_calls`"));
    }
    let calls = message.tool_calls.map_or_else(Vec::new, |calls| calls.0);
    if !calls.is_empty() && role != Role::Assistant {
        return Err(ApiError::invalid_value(field("tool_calls"), "only the assistant has `tool_calls`"));
    }
    if role == Role::Tool && message.tool_call_id.is_none() {
        let why = "a message of role `tool` needs the `tool_call_id` that it answers";
        return Err(
            ApiError::new(StatusCode::BAD_REQUEST, "missing_required_parameter", why).with_param(field("tool_call_id"))
        );
    }
    let content = match (message.content, message.refusal) {
        (ContentIn::Text(text), _) => text,
        (ContentIn::Parts(parts), _) => join_parts(at, parts, role)?,
        (ContentIn::None, Some(refusal)) if role == Role::Assistant => refusal,
        (ContentIn::None, _) if role == Role::Assistant => String::new(),
        (ContentIn::None, _) => {
            let why = format!("a message of role `{}` needs a content", message.role);
            return Err(ApiError::invalid_value(field("content"), why));
        }
    };
    let calls = calls.into_iter().enumerate().map(|(index, call)| to_call(at, index, call));
    Ok(Message {
        name: message.name,
        reasoning: message.reasoning_content.filter(|_| role == Role::Assistant),
        calls: calls.collect::<Result<_, _>>()?,
        call_id: message.tool_call_id.filter(|_| role == Role::Tool),
        ..Message::new(role, content)
    })
}

fn to_call(at: usize, index: usize, call: ToolCallIn) -> Result<Call, ApiError> {
    let field = |field: &str| format!("messages[{at}].tool_calls[{index}].{field}");
    if call.r#type.is_some_and(|kind| kind != "function") {
        return Err(ApiError::unsupported(field("type"), "only calls of type `function` are supported"));
    }
    let function = call
        .function
        .ok_or_else(|| ApiError::invalid_value(field("function"), "a call needs a `function` with a `name`"))?;
    // Models write JSON of any kind, and clients send it back.
    let arguments = match serde_json::from_str::<BoundedJson>(&function.arguments) {
        Ok(BoundedJson(object @ Value::Object(_))) => object,
        _ if function.arguments.trim().is_empty() => Value::Object(serde_json::Map::new()),
        _ => Value::String(function.arguments),
    };
    Ok(Call { id: call.id.unwrap_or_default(), name: function.name, arguments })
}

fn join_parts(at: usize, parts: Vec<Part>, role: Role) -> Result<String, ApiError> {
    let mut content = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let at = |field: &str| format!("messages[{at}].content[{index}].{field}");
        let (text, name) = match part.r#type.as_str() {
            "text" => (part.text, "text"),
            "refusal" if role == Role::Assistant => (part.refusal, "refusal"),
            _ => return Err(ApiError::unsupported(at("type"), "only parts of type `text` are supported")),
        };
        content += &text.ok_or_else(|| ApiError::invalid_value(at(name), format!("a {name} part needs a `{name}`")))?;
    }
    Ok(content)
}
