//! A conversation with tools, told the way that a template can render.

use std::collections::HashMap;

use super::{Tool, dialect::Dialect};
use crate::text::template::{Abilities, Call, Message, Role};

/// What models are told that have not learnt tools, or whose way we do not read.
const LESSON: &str = "You may call functions to help the user. These are their signatures, as JSON:\n<tools>\n";
const LESSON_END: &str = "</tools>\nTo call functions, answer with one JSON object for each call, and nothing else, like \
                          this:\n<tool_call>\n{\"name\": \"function-name\", \"arguments\": {\"argument\": \"value\"}}\n\
                          </tool_call>\nThe results come back to you between <tool_response> and </tool_response>. \
                          Without need of a function, answer as usual.";

/// The messages and tools to render, and how the model will write its calls.
pub struct Adapted {
    pub messages: Vec<Message>,
    /// For the template's own `tools`.
    pub tools: Vec<Tool>,
    pub dialect: Dialect,
}

/// Whether a conversation has anything that templates differ in.
pub fn is_plain(messages: &[Message], tools: &[Tool]) -> bool {
    tools.is_empty() && messages.iter().all(|message| message.role != Role::Tool && message.calls.is_empty())
}

pub fn adapt(messages: Vec<Message>, tools: &[Tool], template: Option<Dialect>, abilities: Abilities) -> Adapted {
    match template {
        Some(dialect) if abilities.tools || abilities.system_tools => native(messages, tools, dialect, abilities),
        _ => Adapted { messages: taught(messages, tools, abilities), tools: Vec::new(), dialect: Dialect::Taught },
    }
}

/// The template knows tools, but perhaps not all that comes with them.
fn native(mut messages: Vec<Message>, tools: &[Tool], dialect: Dialect, abilities: Abilities) -> Adapted {
    if !abilities.long_ids {
        shorten_ids(&mut messages);
    }
    if abilities.calls && !abilities.parallel_calls {
        messages = one_call_each(messages);
    }
    for message in &mut messages {
        if !abilities.calls {
            write_calls(message, dialect);
        }
        if abilities.text_arguments {
            let calls = message.calls.iter_mut().filter(|call| !call.arguments.is_string());
            calls.for_each(|call| call.arguments = call.arguments.to_string().into());
        }
    }
    if abilities.tools {
        return Adapted { messages, tools: tools.to_vec(), dialect };
    }
    if !tools.is_empty() {
        let list: Vec<_> = tools.iter().map(Tool::to_json).collect();
        if messages.first().is_none_or(|first| first.role != Role::System) {
            messages.insert(0, Message::new(Role::System, ""));
        }
        messages[0].tools = Some(serde_json::Value::from(list).to_string());
    }
    Adapted { messages, tools: Vec::new(), dialect }
}

/// The template knows no tools: they become part of the texts.
fn taught(messages: Vec<Message>, tools: &[Tool], abilities: Abilities) -> Vec<Message> {
    let mut system = String::new();
    let mut turns: Vec<Message> = Vec::new();
    for mut message in messages {
        write_calls(&mut message, Dialect::Taught);
        if message.role == Role::Tool {
            let response = format!("<tool_response>\n{}\n</tool_response>", message.content);
            message = Message::new(Role::User, response);
        }
        match turns.last_mut() {
            None if message.role == Role::System => add(&mut system, &message.content),
            // Many templates insist on turns that alternate.
            Some(last) if last.role == message.role && message.role == Role::User => {
                add(&mut last.content, &message.content);
            }
            _ => turns.push(message),
        }
    }
    if !tools.is_empty() {
        add(&mut system, &lesson(tools));
    }
    match turns.first_mut() {
        _ if system.is_empty() => {}
        Some(first) if !abilities.system && first.role == Role::User => {
            first.content = format!("{system}\n\n{}", first.content);
        }
        _ => {
            let role = if abilities.system { Role::System } else { Role::User };
            turns.insert(0, Message::new(role, system));
        }
    }
    turns
}

fn lesson(tools: &[Tool]) -> String {
    let signatures = tools.iter().map(|tool| tool.to_json().to_string() + "\n");
    format!("{LESSON}{}{LESSON_END}", signatures.collect::<String>())
}

fn add(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
}

/// Calls become text of the message.
fn write_calls(message: &mut Message, dialect: Dialect) {
    let calls = std::mem::take(&mut message.calls);
    if !calls.is_empty() {
        if !message.content.is_empty() {
            message.content.push('\n');
        }
        message.content += &dialect.write(&calls);
    }
}

/// Each call in a message of its own, with its result behind it.
fn one_call_each(messages: Vec<Message>) -> Vec<Message> {
    let mut out = Vec::with_capacity(messages.len());
    let mut messages = messages.into_iter().peekable();
    while let Some(mut message) = messages.next() {
        if message.calls.len() < 2 {
            out.push(message);
            continue;
        }
        let mut results: HashMap<Option<String>, Vec<Message>> = HashMap::new();
        let mut others = Vec::new();
        let known = |id: &Option<String>, calls: &[Call]| calls.iter().any(|call| id.as_ref() == Some(&call.id));
        while let Some(result) = messages.next_if(|next| next.role == Role::Tool) {
            if known(&result.call_id, &message.calls) {
                results.entry(result.call_id.clone()).or_default().push(result);
            } else {
                others.push(result);
            }
        }
        for call in std::mem::take(&mut message.calls) {
            let found = results.remove(&Some(call.id.clone())).unwrap_or_default();
            let (content, reasoning) = (std::mem::take(&mut message.content), message.reasoning.take());
            out.push(Message { calls: vec![call], reasoning, ..Message::new(Role::Assistant, content) });
            out.extend(found);
        }
        out.extend(others);
    }
    out
}

/// Nine letters or digits, as Mistral has them. Clients bring ids of other services along.
fn shorten_ids(messages: &mut [Message]) {
    let fits = |id: &str| id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let mut short: HashMap<String, String> = HashMap::new();
    let mut shorten = |id: &mut String| {
        if !fits(id) {
            let next = format!("id{:07}", short.len());
            *id = short.entry(std::mem::take(id)).or_insert(next).clone();
        }
    };
    for message in messages {
        message.calls.iter_mut().for_each(|call| shorten(&mut call.id));
        if message.role == Role::Tool {
            shorten(message.call_id.get_or_insert_default());
        }
    }
}

#[cfg(test)]
#[path = "adapt_tests.rs"]
mod tests;
