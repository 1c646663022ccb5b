//! What a template can render: found out by rendering small conversations and looking for their parts.

use serde_json::{Value, json};

use super::{
    ChatTemplate, Scene, TemplateError,
    message::{Call, Message, Role},
};
use crate::text::tools::Tool;

/// Nothing else of a template can be told from its source with certainty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Messages of role system.
    pub system: bool,
    /// `tools`.
    pub tools: bool,
    /// Tools as JSON in the system message's `tools`.
    pub system_tools: bool,
    /// `tool_calls` of the assistant.
    pub calls: bool,
    /// Several of them in one message.
    pub parallel_calls: bool,
    /// Arguments are JSON in a text: an object would be printed as Python prints it.
    pub text_arguments: bool,
    /// Ids of calls with other than nine characters.
    pub long_ids: bool,
    /// Messages of role tool.
    pub results: bool,
}

const NAME: &str = "probe_function";
const ARGUMENT: &str = "probe_argument";
const RESULT: &str = "probe_result";
const SYSTEM: &str = "probe_system";

impl Abilities {
    pub fn of(template: &ChatTemplate) -> Self {
        let render = |messages: &[Message], tools: &[Tool]| {
            template.render(&Scene { messages, tools, bos: "<s>", eos: "</s>", variables: None })
        };
        let shows = |messages: &[Message], tools: &[Tool], wanted: &str| {
            render(messages, tools).is_ok_and(|prompt| prompt.contains(wanted))
        };
        let user = Message::new(Role::User, "hello");
        let tool = [Tool {
            name: NAME.into(),
            description: Some(String::new()),
            parameters: json!({ "type": "object", "properties": { ARGUMENT: { "type": "string", "description": "" } } }),
            strict: false,
        }];
        let told = Message { tools: Some(NAME.into()), ..Message::new(Role::System, SYSTEM) };
        let turn = |arguments: &Value, id: &str, count: usize| called(&user, arguments, id, count);
        let (object, text) = (json!({ ARGUMENT: "value" }), Value::from(format!("{{\"{ARGUMENT}\": \"value\"}}")));
        let renders_calls = |arguments: &Value| {
            let prompt = render(&turn(arguments, SHORT_ID, 1), &tool);
            prompt.is_ok_and(|prompt| prompt.contains(&format!("\"{ARGUMENT}\": \"value\"")))
        };
        let as_object = renders_calls(&object);
        let as_text = !as_object && renders_calls(&text);
        let arguments = if as_text { &text } else { &object };
        let is_refused = |prompt: Result<String, TemplateError>| prompt.is_err();
        Self {
            system: shows(&[Message::new(Role::System, SYSTEM), user.clone()], &[], SYSTEM),
            tools: shows(std::slice::from_ref(&user), &tool, NAME),
            system_tools: shows(&[told, user.clone()], &[], NAME),
            calls: as_object || as_text,
            parallel_calls: !is_refused(render(&turn(arguments, SHORT_ID, 2), &tool)),
            text_arguments: as_text,
            long_ids: !is_refused(render(&turn(arguments, "call_0123456789abcdef", 1), &tool)),
            results: shows(&turn(arguments, SHORT_ID, 1), &tool, RESULT),
        }
    }
}

const SHORT_ID: &str = "abcdef123";

/// A question, `count` calls and their results.
fn called(user: &Message, arguments: &Value, id: &str, count: usize) -> Vec<Message> {
    let call = || Call { id: id.into(), name: NAME.into(), arguments: arguments.clone() };
    let calls = std::iter::repeat_with(call).take(count).collect();
    let result = || Message { call_id: Some(id.into()), name: Some(NAME.into()), ..Message::new(Role::Tool, RESULT) };
    let assistant = Message { calls, ..Message::new(Role::Assistant, "") };
    [user.clone(), assistant].into_iter().chain(std::iter::repeat_with(result).take(count)).collect()
}
