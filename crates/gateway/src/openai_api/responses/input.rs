//! Items of a conversation as the messages of a chat.

use super::request::{InputIn, ItemIn};
use crate::openai_api::{
    errors::ApiError,
    types::{Bounded, CALLS_MAX, CalledIn, ContentIn, MESSAGES_MAX, MessageIn, Part, ToolCallIn},
};

/// `instructions` go first.
///
/// # Errors
/// 400 with the item at fault.
pub fn messages(instructions: Option<&str>, input: InputIn) -> Result<Bounded<MessageIn, { MESSAGES_MAX }>, ApiError> {
    let mut messages = Messages::default();
    if let Some(instructions) = instructions {
        messages.done.push(message("system", ContentIn::Text(instructions.to_owned())));
    }
    match input {
        InputIn::Text(text) => messages.done.push(message("user", ContentIn::Text(text))),
        InputIn::Items(items) if items.is_empty() => {
            return Err(ApiError::invalid_value("input", "`input` is empty"));
        }
        InputIn::Items(items) => {
            for (at, item) in items.into_iter().enumerate() {
                messages.add(at, item)?;
            }
        }
    }
    Ok(Bounded(messages.done))
}

fn message(role: &str, content: ContentIn) -> MessageIn {
    MessageIn { role: role.to_owned(), content, ..MessageIn::default() }
}

#[derive(Default)]
struct Messages {
    done: Vec<MessageIn>,
    /// What the assistant thought before its next message or call.
    reasoning: Option<String>,
}

impl Messages {
    fn add(&mut self, at: usize, item: ItemIn) -> Result<(), ApiError> {
        match item.r#type.as_deref() {
            None | Some("message") => self.add_message(at, item),
            Some("function_call") => self.add_call(at, item),
            Some("function_call_output") => self.add_output(at, item),
            Some("reasoning") => {
                self.reasoning = Some(joined(item.content)).filter(|text| !text.is_empty());
                Ok(())
            }
            Some("item_reference") => Err(ApiError::unsupported(
                format!("input[{at}].type"),
                "this gateway stores nothing, so that there is nothing to refer to: send the item itself",
            )),
            Some(other) => {
                let shown: String = other.chars().take(64).collect();
                Err(ApiError::unsupported(
                    format!("input[{at}].type"),
                    format!(
                        "items of type `{shown}` are not supported: use message, function_call, function_call_output \
                         or reasoning"
                    ),
                ))
            }
        }
    }

    fn add_message(&mut self, at: usize, item: ItemIn) -> Result<(), ApiError> {
        let role = item.role.ok_or_else(|| missing(at, "role"))?;
        if !matches!(role.as_str(), "user" | "system" | "developer" | "assistant") {
            let shown: String = role.chars().take(64).collect();
            let message = format!("unknown role `{shown}`: use user, system, developer or assistant");
            return Err(ApiError::invalid_value(format!("input[{at}].role"), message));
        }
        let content = content(item.content, &format!("input[{at}].content"))?;
        let reasoning_content = self.reasoning.take().filter(|_| role == "assistant");
        self.done.push(MessageIn { reasoning_content, ..message(&role, content) });
        Ok(())
    }

    /// Calls belong to the assistant's message before them.
    fn add_call(&mut self, at: usize, item: ItemIn) -> Result<(), ApiError> {
        let call = ToolCallIn {
            id: Some(item.call_id.ok_or_else(|| missing(at, "call_id"))?),
            r#type: Some("function".into()),
            function: Some(CalledIn {
                name: item.name.ok_or_else(|| missing(at, "name"))?,
                arguments: item.arguments.ok_or_else(|| missing(at, "arguments"))?,
            }),
        };
        let reasoning_content = self.reasoning.take();
        match self.done.last_mut() {
            Some(last) if last.role == "assistant" && reasoning_content.is_none() => {
                let calls = &mut last.tool_calls.get_or_insert_with(|| Bounded(Vec::new())).0;
                if calls.len() >= CALLS_MAX {
                    let message = format!("more than {CALLS_MAX} calls follow each other");
                    return Err(ApiError::invalid_value(format!("input[{at}]"), message));
                }
                calls.push(call);
            }
            _ => self.done.push(MessageIn {
                tool_calls: Some(Bounded(vec![call])),
                reasoning_content,
                ..message("assistant", ContentIn::None)
            }),
        }
        Ok(())
    }

    fn add_output(&mut self, at: usize, item: ItemIn) -> Result<(), ApiError> {
        let tool_call_id = Some(item.call_id.ok_or_else(|| missing(at, "call_id"))?);
        let content = content(item.output, &format!("input[{at}].output"))?;
        self.done.push(MessageIn { tool_call_id, ..message("tool", content) });
        Ok(())
    }
}

fn missing(at: usize, field: &str) -> ApiError {
    ApiError::missing(format!("input[{at}].{field}"))
}

/// Parts get the types that they have in a chat.
fn content(content: ContentIn, param: &str) -> Result<ContentIn, ApiError> {
    match content {
        ContentIn::None => Err(ApiError::missing(param.to_owned())),
        ContentIn::Text(text) => Ok(ContentIn::Text(text)),
        ContentIn::Parts(parts) => {
            let parts =
                parts.into_iter().enumerate().map(|(index, part)| chat_part(part, &format!("{param}[{index}]")));
            parts.collect::<Result<_, _>>().map(ContentIn::Parts)
        }
    }
}

fn chat_part(part: Part, param: &str) -> Result<Part, ApiError> {
    let (r#type, field, held) = match part.r#type.as_str() {
        "input_text" | "output_text" | "text" => ("text", "text", part.text.is_some()),
        "refusal" => ("refusal", "refusal", part.refusal.is_some()),
        _ => {
            let message = "only parts of type `input_text`, `output_text` and `refusal` are supported";
            return Err(ApiError::unsupported(format!("{param}.type"), message));
        }
    };
    if !held {
        return Err(ApiError::missing(format!("{param}.{field}")));
    }
    Ok(Part { r#type: r#type.to_owned(), ..part })
}

fn joined(content: ContentIn) -> String {
    match content {
        ContentIn::None => String::new(),
        ContentIn::Text(text) => text,
        ContentIn::Parts(parts) => parts.into_iter().filter_map(|part| part.text).collect(),
    }
}
