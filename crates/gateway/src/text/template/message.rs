//! Messages as templates see them.

use minijinja::{Value, value::Serde};
use serde::Deserialize;

use crate::text::tools::Tool;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// One message, its content already flattened to text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Message {
    pub role: Role,
    #[serde(default)]
    pub content: String,
    pub name: Option<String>,
    /// What the assistant thought before it answered.
    #[serde(rename = "reasoning_content")]
    pub reasoning: Option<String>,
    #[serde(default, rename = "tool_calls")]
    pub calls: Vec<Call>,
    /// Role tool: the call that it answers.
    #[serde(rename = "tool_call_id")]
    pub call_id: Option<String>,
    /// Role system, for templates that look for the tools here: their JSON.
    pub tools: Option<String>,
}

/// A call that the assistant made in an earlier turn.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// An object; a text where the model wrote no valid one, or where the template wants a text.
    pub arguments: serde_json::Value,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        let content = content.into();
        Self { role, content, name: None, reasoning: None, calls: Vec::new(), call_id: None, tools: None }
    }

    pub(super) fn to_value(&self) -> Value {
        let text = |name: &'static str, value: &Option<String>| value.as_ref().map(|value| (name, Value::from(value)));
        let calls = || self.calls.iter().map(Call::to_value).collect::<Value>();
        let pairs = [("role", Value::from(self.role.name())), ("content", Value::from(&self.content))];
        let optional = [
            text("name", &self.name),
            text("reasoning_content", &self.reasoning),
            (!self.calls.is_empty()).then(|| ("tool_calls", calls())),
            text("tool_call_id", &self.call_id),
            text("tools", &self.tools),
        ];
        Value::from_pairs(pairs.into_iter().chain(optional.into_iter().flatten()))
    }
}

impl Call {
    fn to_value(&self) -> Value {
        let function = [("name", Value::from(&self.name)), ("arguments", Value::from(Serde(&self.arguments)))];
        Value::from_pairs([
            ("id", Value::from(&self.id)),
            ("type", Value::from("function")),
            ("function", Value::from_pairs(function)),
        ])
    }
}

impl Tool {
    /// `{"type":"function","function":{…}}`, as OpenAI's clients and Hugging Face's templates have it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description.as_deref().unwrap_or_default(),
                "parameters": self.parameters,
            },
        })
    }
}
