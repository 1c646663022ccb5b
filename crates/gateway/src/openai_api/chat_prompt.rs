//! The prompt of a chat: messages through the model's template, tools in the model's own way.

use std::sync::Arc;

use opengrid_node::handle::TextModel;
use opengrid_protocol::session::Token;
use serde_json::{Value, json};

use super::{
    constraint::Constraint,
    conversation::conversation,
    errors::ApiError,
    options::Options,
    prepare::{Prepared, Prompt},
    types::GenerationRequest,
};
use crate::{
    server::Gateway,
    text::{
        answer::{Calling, Reading},
        reasoning::{self, Thinking},
        template::{ChatTemplate, Message, Scene, TemplateError},
        tools::{
            Tool,
            adapt::{Adapted, adapt, is_plain},
            dialect::Dialect,
        },
    },
};

/// What a template makes of a request.
struct Rendered {
    prompt: String,
    begins_with_bos: bool,
    dialect: Dialect,
    short_ids: bool,
    thinking: Thinking,
}

/// # Errors
/// Every 400 of messages, tools and formats that fit their types.
pub async fn chat_prompt(
    gateway: &Gateway,
    request: GenerationRequest,
    options: &Options,
    text: &dyn TextModel,
) -> Result<Prepared, ApiError> {
    let scenery = Scenery {
        messages: conversation(request.messages)?,
        tools: options.tool_use.as_ref().map_or_else(Vec::new, |tool_use| tool_use.tools.clone()),
        template: gateway.templates.get(text.chat_template())?,
        variables: request.chat_template_kwargs.map(|variables| variables.0),
        bos: text.bos_text().to_owned(),
        eos: text.eos_text().to_owned(),
    };
    let constraint = Constraint::of(options);
    let whole_answer = constraint.as_ref().is_some_and(Constraint::is_whole_answer);
    let turn = gateway.rendering.acquire().await.map_err(|error| ApiError::internal(&error))?;
    // A stranger's template may use all its fuel: that must not hold up other requests.
    let rendered = blocking(move || scenery.render(whole_answer)).await??;
    let marks = marks(&rendered, options.tool_use.is_some(), text).await?;
    let control = {
        let marks = marks.clone();
        move |mark: &str| marks.iter().find(|(_, text)| *text == mark).map(|(token, _)| *token)
    };
    let grammar = match constraint {
        None => None,
        Some(constraint) => {
            let (dialect, after_thoughts) = (rendered.dialect, rendered.thinking == Thinking::Begun);
            Some(blocking(move || constraint.grammar(dialect, after_thoughts, &control)).await??)
        }
    };
    drop(turn);
    let calls = options.tool_use.as_ref().map(|tool_use| Calling {
        notation: rendered.dialect.notation(),
        names: tool_use.tools.iter().map(|tool| tool.name.clone()).collect(),
        one: !tool_use.parallel,
        short_ids: rendered.short_ids,
    });
    let tokens = text.tokenize(&rendered.prompt, text.adds_bos() && !rendered.begins_with_bos, true).await?;
    let reading = Reading { thinking: rendered.thinking, calls, marks };
    Ok(Prepared { prompts: vec![Prompt { tokens, echo: None }], reading, grammar })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))
}

/// All that rendering needs, owned by the thread that does it.
struct Scenery {
    messages: Vec<Message>,
    tools: Vec<Tool>,
    template: Arc<ChatTemplate>,
    variables: Option<Value>,
    bos: String,
    eos: String,
}

impl Scenery {
    fn render(self, whole_answer: bool) -> Result<Rendered, TemplateError> {
        let template = &self.template;
        let plain = is_plain(&self.messages, &self.tools);
        let abilities = (!plain).then(|| template.abilities());
        let adapted = match abilities {
            Some(abilities) => adapt(self.messages, &self.tools, template.dialect, abilities),
            None => Adapted { messages: self.messages, tools: Vec::new(), dialect: Dialect::Taught },
        };
        let variables = variables(self.variables, whole_answer);
        let scene = Scene {
            messages: &adapted.messages,
            tools: &adapted.tools,
            bos: &self.bos,
            eos: &self.eos,
            variables: variables.as_ref(),
        };
        let prompt = template.render(&scene)?;
        let thinking = match prompt.trim_end().ends_with(reasoning::BEGIN) {
            true => Thinking::Begun,
            false if template.thinks && !whole_answer => Thinking::MayBegin,
            false => Thinking::Never,
        };
        Ok(Rendered {
            begins_with_bos: !self.bos.is_empty() && prompt.starts_with(&self.bos),
            prompt,
            dialect: adapted.dialect,
            short_ids: abilities.is_some_and(|abilities| !abilities.long_ids),
            thinking,
        })
    }
}

/// Templates of models that can think or not are told not to, where the answer has no room for thoughts.
fn variables(variables: Option<Value>, whole_answer: bool) -> Option<Value> {
    match variables {
        Some(Value::Object(mut variables)) => {
            if whole_answer {
                variables.entry("enable_thinking").or_insert(Value::Bool(false));
            }
            Some(Value::Object(variables))
        }
        _ => whole_answer.then(|| json!({ "enable_thinking": false })),
    }
}

/// The marks of calls and thoughts that are control tokens of this model.
async fn marks(rendered: &Rendered, tools: bool, text: &dyn TextModel) -> Result<Vec<(Token, &'static str)>, ApiError> {
    let calls = rendered.dialect.notation().marks().filter(|_| tools);
    let thoughts = [reasoning::BEGIN, reasoning::END].into_iter().filter(|_| rendered.thinking != Thinking::Never);
    let mut marks = Vec::new();
    for mark in calls.chain(thoughts) {
        if let [token] = text.tokenize(mark, false, true).await?.as_slice()
            && text.piece(*token).is_empty()
        {
            marks.push((*token, mark));
        }
    }
    Ok(marks)
}
