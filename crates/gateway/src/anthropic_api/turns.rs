//! Turns of blocks as the messages of a chat.

use super::request::{BlockIn, BlocksIn, TurnIn};
use crate::openai_api::{
    errors::ApiError,
    types::{Bounded, CALLS_MAX, CalledIn, ContentIn, MESSAGES_MAX, MessageIn, Part, ToolCallIn},
};

type Messages = Bounded<MessageIn, MESSAGES_MAX>;

/// `system` goes first.
///
/// # Errors
/// 400 with the block at fault.
pub fn messages(system: ContentIn, turns: Vec<TurnIn>) -> Result<Messages, ApiError> {
    if turns.is_empty() {
        return Err(ApiError::invalid_value("messages", "messages: at least one message is required"));
    }
    if turns.last().is_some_and(|turn| turn.role == "assistant") {
        let message = "messages: the last message is the assistant's; an answer cannot be begun for the model here";
        return Err(ApiError::unsupported("messages", message));
    }
    let mut messages = Vec::new();
    match texts_only(system, "system")? {
        ContentIn::None => {}
        content => messages.push(message("system", content)),
    }
    for (at, turn) in turns.into_iter().enumerate() {
        let place = format!("messages.{at}");
        match turn.role.as_str() {
            "user" | "system" => add_user(&turn.role, turn.content, &place, &mut messages)?,
            "assistant" => messages.push(assistant(turn.content, &place)?),
            other => {
                let shown: String = other.chars().take(64).collect();
                let message = format!("{place}.role: unknown role `{shown}`: use user or assistant");
                return Err(ApiError::invalid_value(format!("{place}.role"), message));
            }
        }
        if messages.len() > MESSAGES_MAX {
            let message = format!("messages: more than {MESSAGES_MAX} messages and tool results");
            return Err(ApiError::invalid_value("messages", message));
        }
    }
    Ok(Bounded(messages))
}

fn message(role: &str, content: ContentIn) -> MessageIn {
    MessageIn { role: role.to_owned(), content, ..MessageIn::default() }
}

fn text_part(text: String) -> Part {
    Part { r#type: "text".into(), text: Some(text), refusal: None }
}

/// Results of tools are messages of their own, in the order of the blocks.
fn add_user(role: &str, content: BlocksIn, place: &str, messages: &mut Vec<MessageIn>) -> Result<(), ApiError> {
    let blocks = match content {
        BlocksIn::Text(text) => {
            messages.push(message(role, ContentIn::Text(text)));
            return Ok(());
        }
        BlocksIn::Blocks(blocks) => blocks,
    };
    if blocks.is_empty() {
        return Err(ApiError::invalid_value(format!("{place}.content"), format!("{place}.content: it is empty")));
    }
    let mut parts = Vec::new();
    for (index, block) in blocks.into_iter().enumerate() {
        let place = format!("{place}.content.{index}");
        match block.r#type.as_str() {
            "text" => parts.push(text_part(block.text.ok_or_else(|| missing(&place, "text"))?)),
            "tool_result" if role == "user" => {
                flush(role, &mut parts, messages);
                messages.push(tool_result(block, &place)?);
            }
            _ => return Err(unsupported(&block, &place, "text and tool_result")),
        }
    }
    flush(role, &mut parts, messages);
    Ok(())
}

fn flush(role: &str, parts: &mut Vec<Part>, messages: &mut Vec<MessageIn>) {
    if !parts.is_empty() {
        messages.push(message(role, ContentIn::Parts(std::mem::take(parts))));
    }
}

fn tool_result(block: BlockIn, place: &str) -> Result<MessageIn, ApiError> {
    let tool_call_id = Some(block.tool_use_id.ok_or_else(|| missing(place, "tool_use_id"))?);
    let content = match texts_only(block.content, &format!("{place}.content"))? {
        ContentIn::None => ContentIn::Text(String::new()),
        content => content,
    };
    Ok(MessageIn { tool_call_id, ..message("tool", content) })
}

fn assistant(content: BlocksIn, place: &str) -> Result<MessageIn, ApiError> {
    let blocks = match content {
        BlocksIn::Text(text) => return Ok(message("assistant", ContentIn::Text(text))),
        BlocksIn::Blocks(blocks) => blocks,
    };
    let (mut parts, mut calls, mut reasoning) = (Vec::new(), Vec::new(), String::new());
    for (index, block) in blocks.into_iter().enumerate() {
        let place = format!("{place}.content.{index}");
        match block.r#type.as_str() {
            "text" => parts.push(text_part(block.text.ok_or_else(|| missing(&place, "text"))?)),
            "thinking" => reasoning += &block.thinking.unwrap_or_default(),
            "redacted_thinking" => {}
            "tool_use" if calls.len() >= CALLS_MAX => {
                return Err(ApiError::invalid_value(place.clone(), format!("{place}: more than {CALLS_MAX} calls")));
            }
            "tool_use" => calls.push(tool_use(block, &place)?),
            _ => return Err(unsupported(&block, &place, "text, thinking and tool_use")),
        }
    }
    let content = if parts.is_empty() { ContentIn::None } else { ContentIn::Parts(parts) };
    Ok(MessageIn {
        reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
        tool_calls: (!calls.is_empty()).then_some(Bounded(calls)),
        ..message("assistant", content)
    })
}

fn tool_use(block: BlockIn, place: &str) -> Result<ToolCallIn, ApiError> {
    let input = block.input.ok_or_else(|| missing(place, "input"))?;
    if !input.get().starts_with('{') {
        let message = format!("{place}.input: it must be an object");
        return Err(ApiError::invalid_value(format!("{place}.input"), message));
    }
    Ok(ToolCallIn {
        id: Some(block.id.ok_or_else(|| missing(place, "id"))?),
        r#type: Some("function".into()),
        function: Some(CalledIn {
            name: block.name.ok_or_else(|| missing(place, "name"))?,
            arguments: Box::<str>::from(input).into_string(),
        }),
    })
}

/// Texts, or blocks of them.
fn texts_only(content: ContentIn, place: &str) -> Result<ContentIn, ApiError> {
    let ContentIn::Parts(parts) = content else { return Ok(content) };
    for (index, part) in parts.iter().enumerate() {
        let place = format!("{place}.{index}");
        if part.r#type != "text" {
            let message = format!("{place}.type: only blocks of type `text` are supported here");
            return Err(ApiError::unsupported(format!("{place}.type"), message));
        }
        if part.text.is_none() {
            return Err(missing(&place, "text"));
        }
    }
    Ok(if parts.is_empty() { ContentIn::None } else { ContentIn::Parts(parts) })
}

fn missing(place: &str, field: &str) -> ApiError {
    ApiError::invalid_value(format!("{place}.{field}"), format!("{place}.{field}: field required"))
}

fn unsupported(block: &BlockIn, place: &str, supported: &str) -> ApiError {
    let shown: String = block.r#type.chars().take(64).collect();
    let message = format!("{place}.type: blocks of type `{shown}` are not supported here, but {supported}");
    ApiError::unsupported(format!("{place}.type"), message)
}
