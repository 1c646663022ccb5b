//! What an answer says again of its request.

use serde::Serialize;
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::request::{FormatIn, FunctionToolIn, ResponsesRequest};
use crate::openai_api::{errors::ApiError, types::BoundedJson};

/// Fields of the response object, as JSON where their size is the client's choice: they are held as long as the answer
/// runs.
#[derive(Debug, Serialize)]
pub struct Echo {
    instructions: Option<String>,
    metadata: Box<RawValue>,
    tools: Box<RawValue>,
    tool_choice: Box<RawValue>,
    parallel_tool_calls: bool,
    text: Box<RawValue>,
    max_output_tokens: Option<i64>,
    temperature: f64,
    top_p: f64,
    top_logprobs: i64,
    prompt_cache_key: Option<String>,
    safety_identifier: Option<String>,
    user: Option<String>,
}

#[derive(Serialize)]
struct ToolOut<'a> {
    r#type: &'a str,
    name: Option<&'a str>,
    description: Option<&'a str>,
    parameters: Option<&'a Value>,
    strict: bool,
}

#[derive(Serialize)]
struct FormatOut<'a> {
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

impl Echo {
    /// # Errors
    /// None in practice: the values came as JSON.
    pub fn of(request: &ResponsesRequest) -> Result<Self, ApiError> {
        let format = request.text.as_ref().and_then(|text| text.format.as_ref());
        let tools: Vec<ToolOut<'_>> = request.tools.0.iter().map(ToolOut::of).collect();
        let metadata = given(request.metadata.as_ref()).cloned().unwrap_or_else(|| json!({}));
        Ok(Self {
            instructions: request.instructions.clone(),
            metadata: raw(&metadata)?,
            tools: raw(&tools)?,
            tool_choice: raw(&given(request.tool_choice.as_ref()).unwrap_or(&json!("auto")))?,
            parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
            text: raw(&json!({ "format": FormatOut::of(format), "verbosity": "medium" }))?,
            max_output_tokens: request.max_output_tokens,
            temperature: request.temperature.unwrap_or(1.0),
            top_p: request.top_p.unwrap_or(1.0),
            top_logprobs: request.top_logprobs.unwrap_or(0),
            prompt_cache_key: request.prompt_cache_key.clone(),
            safety_identifier: request.safety_identifier.clone(),
            user: request.user.clone(),
        })
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> u64 {
        let json = [&self.metadata, &self.tools, &self.tool_choice, &self.text].map(|raw| raw.get().len());
        let texts = [&self.instructions, &self.prompt_cache_key, &self.safety_identifier, &self.user];
        let texts = texts.map(|text| text.as_ref().map_or(0, String::len));
        json.iter().chain(&texts).sum::<usize>() as u64
    }
}

fn given(json: Option<&BoundedJson>) -> Option<&Value> {
    json.map(|json| &json.0).filter(|value| !value.is_null())
}

fn raw(value: &impl Serialize) -> Result<Box<RawValue>, ApiError> {
    to_raw_value(value).map_err(|error| ApiError::invalid_value("", error.to_string()))
}

impl<'a> ToolOut<'a> {
    fn of(tool: &'a FunctionToolIn) -> Self {
        Self {
            r#type: &tool.r#type,
            name: tool.name.as_deref(),
            description: tool.description.as_deref(),
            parameters: given(tool.parameters.as_ref()),
            strict: tool.strict.unwrap_or(false),
        }
    }
}

impl<'a> FormatOut<'a> {
    fn of(format: Option<&'a FormatIn>) -> Self {
        Self {
            r#type: format.map_or("text", |format| &format.r#type),
            name: format.and_then(|format| format.name.as_deref()),
            description: format.and_then(|format| format.description.as_deref()),
            schema: format.and_then(|format| given(format.schema.as_ref())),
            strict: format.and_then(|format| format.strict),
        }
    }
}
