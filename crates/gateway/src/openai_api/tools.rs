//! Tools and the answer's format, checked.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{
    errors::ApiError,
    types::{AllowedToolsIn, FunctionIn, GenerationRequest, ResponseFormat, ToolChoiceIn, ToolChoiceObject, ToolIn},
};
use crate::text::tools::{NAME_CHARS_MAX, Tool};

const DESCRIPTION_BYTES_MAX: usize = 64 * 1024;

/// The tools that the model may call now, and whether it must.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolUse {
    /// Never empty.
    pub tools: Vec<Tool>,
    /// One of them is called, whatever the model would rather do. With one tool it is that one.
    pub required: bool,
    /// More than one call is allowed.
    pub parallel: bool,
}

/// What the answer's text must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Format {
    #[default]
    Text,
    JsonObject,
    JsonSchema {
        schema: Value,
        /// Keywords that cannot be enforced are an error.
        strict: bool,
        /// Where the schema stands in the request.
        param: &'static str,
    },
}

#[derive(PartialEq)]
enum Choice<'a> {
    None,
    Auto,
    Required,
    Named(&'a str),
}

/// The request's tools; `None` without any or with `tool_choice: "none"`.
///
/// # Errors
/// 400 with the field at fault.
pub fn tool_use(request: &GenerationRequest) -> Result<Option<ToolUse>, ApiError> {
    let tools = &request.tools.0;
    let mut names = HashSet::new();
    for (at, tool) in tools.iter().enumerate() {
        let name = check(tool, at)?.name.as_str();
        if !names.insert(name) {
            return Err(ApiError::invalid_value(
                format!("tools[{at}].function.name"),
                format!("two tools have the name `{name}`"),
            ));
        }
    }
    let (choice, allowed) = choice(request.tool_choice.as_ref())?;
    if tools.is_empty() && matches!(choice, Choice::Required | Choice::Named(_)) {
        return Err(ApiError::invalid_value("tool_choice", "`tool_choice` demands a call, but there are no `tools`"));
    }
    let unknown = allowed.iter().flatten().find(|name| !names.contains(*name));
    if let (Some(name), false) = (unknown, tools.is_empty()) {
        let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
        return Err(ApiError::invalid_value(
            "tool_choice",
            format!("`tool_choice` names `{shown}`, no tool has that name"),
        ));
    }
    if tools.is_empty() || choice == Choice::None {
        return Ok(None);
    }
    let wanted = |tool: &&ToolIn| {
        let name = tool.function.as_ref().map_or("", |function| function.name.as_str());
        allowed.as_ref().is_none_or(|allowed| allowed.contains(name))
    };
    let callable = tools.iter().filter(wanted).filter_map(|tool| tool.function.as_ref()).map(to_tool).collect();
    Ok(Some(ToolUse {
        tools: callable,
        required: matches!(choice, Choice::Required | Choice::Named(_)),
        parallel: request.parallel_tool_calls.unwrap_or(true) && !matches!(choice, Choice::Named(_)),
    }))
}

fn check(tool: &ToolIn, at: usize) -> Result<&FunctionIn, ApiError> {
    let field = |field: &str| format!("tools[{at}].{field}");
    let function = match (tool.r#type.as_str(), &tool.function) {
        ("function", Some(function)) => function,
        ("function", None) => {
            return Err(ApiError::invalid_value(field("function"), "a tool of type `function` needs a `function`"));
        }
        _ => return Err(ApiError::unsupported(field("type"), "only tools of type `function` are supported")),
    };
    let name_ok = |c: char| c.is_ascii_alphanumeric() || "_.:/-".contains(c);
    if function.name.is_empty() || function.name.len() > NAME_CHARS_MAX || !function.name.chars().all(name_ok) {
        let message = format!("a function's name has 1 to {NAME_CHARS_MAX} characters of a-z, A-Z, 0-9, `_.:/-`");
        return Err(ApiError::invalid_value(field("function.name"), message));
    }
    if function.description.as_ref().is_some_and(|text| text.len() > DESCRIPTION_BYTES_MAX) {
        let message = format!("the description is over {DESCRIPTION_BYTES_MAX} bytes");
        return Err(ApiError::invalid_value(field("function.description"), message));
    }
    let kind = function.parameters.as_ref().map(|schema| (&schema.0, schema.0.get("type")));
    match kind {
        None => {}
        Some((Value::Object(_), None)) => {}
        Some((Value::Object(_), Some(kind))) if kind == "object" => {}
        Some(_) => {
            let message = "`parameters` must be a JSON schema of type `object`";
            return Err(ApiError::invalid_value(field("function.parameters"), message));
        }
    }
    Ok(function)
}

fn to_tool(function: &FunctionIn) -> Tool {
    let no_arguments = || json!({ "type": "object", "properties": {} });
    Tool {
        name: function.name.clone(),
        description: function.description.clone(),
        parameters: function.parameters.as_ref().map_or_else(no_arguments, |schema| schema.0.clone()),
        strict: function.strict.unwrap_or(false),
    }
}

type Allowed<'a> = Option<HashSet<&'a str>>;

fn choice(choice: Option<&ToolChoiceIn>) -> Result<(Choice<'_>, Allowed<'_>), ApiError> {
    let bad = |message: &str| Err(ApiError::invalid_value("tool_choice", message));
    match choice {
        None => Ok((Choice::Auto, None)),
        Some(ToolChoiceIn::Mode(mode)) => match mode.as_str() {
            "none" => Ok((Choice::None, None)),
            "auto" => Ok((Choice::Auto, None)),
            "required" => Ok((Choice::Required, None)),
            _ => bad("`tool_choice` is `none`, `auto`, `required` or an object that names a function"),
        },
        Some(ToolChoiceIn::Object(object)) => match (object.r#type.as_str(), object) {
            ("function", ToolChoiceObject { function: Some(function), .. }) => {
                Ok((Choice::Named(&function.name), Some(HashSet::from([function.name.as_str()]))))
            }
            ("function", _) => bad("`tool_choice` of type `function` needs a `function` with a `name`"),
            ("allowed_tools", ToolChoiceObject { allowed_tools: Some(allowed), .. }) => allowed_tools(allowed),
            ("allowed_tools", _) => bad("`tool_choice` of type `allowed_tools` needs `allowed_tools`"),
            _ => Err(ApiError::unsupported("tool_choice", "`tool_choice` has type `function` or `allowed_tools`")),
        },
    }
}

fn allowed_tools(allowed: &AllowedToolsIn) -> Result<(Choice<'_>, Allowed<'_>), ApiError> {
    let choice = match allowed.mode.as_str() {
        "auto" => Choice::Auto,
        "required" => Choice::Required,
        _ => return Err(ApiError::invalid_value("tool_choice.allowed_tools.mode", "`mode` is `auto` or `required`")),
    };
    let names = allowed.tools.0.iter().filter_map(|tool| tool.function.as_ref()).map(|function| function.name.as_str());
    let names: HashSet<&str> = names.collect();
    if names.is_empty() || allowed.tools.0.iter().any(|tool| tool.r#type != "function") {
        let message = "`tools` lists at least one {\"type\":\"function\",\"function\":{\"name\":…}}, and nothing else";
        return Err(ApiError::invalid_value("tool_choice.allowed_tools.tools", message));
    }
    Ok((choice, Some(names)))
}

/// # Errors
/// 400 for types that do not exist and a `json_schema` without a schema.
pub fn format(format: Option<&ResponseFormat>) -> Result<Format, ApiError> {
    let Some(format) = format else { return Ok(Format::Text) };
    match (format.r#type.as_str(), &format.json_schema, &format.schema) {
        ("text", _, _) => Ok(Format::Text),
        ("json_object", _, None) => Ok(Format::JsonObject),
        ("json_object", _, Some(schema)) => checked_schema(&schema.0, false, "response_format.schema"),
        ("json_schema", Some(json_schema), _) => match &json_schema.schema {
            _ if !json_schema.name.as_ref().is_none_or(|name| is_schema_name(name)) => Err(ApiError::invalid_value(
                "response_format.json_schema.name",
                "a schema's name has 1 to 64 characters of a-z, A-Z, 0-9, `_-`",
            )),
            Some(schema) => {
                let strict = json_schema.strict.unwrap_or(false);
                checked_schema(&schema.0, strict, "response_format.json_schema.schema")
            }
            None => Ok(Format::JsonObject),
        },
        ("json_schema", None, _) => {
            Err(ApiError::invalid_value("response_format.json_schema", "`json_schema` is missing: it holds the schema"))
        }
        _ => Err(ApiError::unsupported(
            "response_format.type",
            "`type` is `text`, `json_object` or `json_schema`; this one is not supported",
        )),
    }
}

fn is_schema_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn checked_schema(schema: &Value, strict: bool, param: &'static str) -> Result<Format, ApiError> {
    if schema.is_object() {
        return Ok(Format::JsonSchema { schema: schema.clone(), strict, param });
    }
    Err(ApiError::invalid_value(param, "a JSON schema is an object"))
}
