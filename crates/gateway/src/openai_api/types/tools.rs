//! Tools, which of them may or must be called, and the shape of the answer.

use super::read::{Bounded, BoundedJson, JSON_VALUES_MAX, deserialize_any};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use std::{fmt, marker::PhantomData};

/// OpenAI's limit is 128; agents with many servers behind them come with more.
pub const TOOLS_MAX: usize = 512;

/// At most [`TOOLS_MAX`] tools whose schemas have at most [`JSON_VALUES_MAX`] values together.
#[derive(Clone, Debug)]
pub struct ToolList<T>(pub Vec<T>);

pub type Tools = ToolList<ToolIn>;

/// A tool in the shape of some API.
pub trait WithSchema {
    fn schema(&self) -> Option<&BoundedJson>;
}

impl WithSchema for ToolIn {
    fn schema(&self) -> Option<&BoundedJson> {
        self.function.as_ref()?.parameters.as_ref()
    }
}

impl<T> Default for ToolList<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct ToolIn {
    /// Only `function` can be done.
    pub r#type: String,
    pub function: Option<FunctionIn>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct FunctionIn {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of the arguments; without one the function takes none.
    pub parameters: Option<BoundedJson>,
    /// The arguments are held to the schema.
    pub strict: Option<bool>,
}

/// `"none"`, `"auto"`, `"required"`, or an object.
#[derive(Clone, Debug)]
pub enum ToolChoiceIn {
    Mode(String),
    Object(ToolChoiceObject),
}

/// `{"type":"function","function":{"name"}}` or `{"type":"allowed_tools","allowed_tools":{"mode","tools"}}`.
#[derive(Clone, Debug, Deserialize)]
pub struct ToolChoiceObject {
    pub r#type: String,
    pub function: Option<NamedIn>,
    pub allowed_tools: Option<AllowedToolsIn>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct NamedIn {
    pub name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AllowedToolsIn {
    /// `auto` or `required`.
    pub mode: String,
    pub tools: Bounded<AllowedToolIn, TOOLS_MAX>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AllowedToolIn {
    pub r#type: String,
    pub function: Option<NamedIn>,
}

/// `{"type":"text"}`, `{"type":"json_object"}` or `{"type":"json_schema","json_schema":{…}}`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ResponseFormat {
    pub r#type: String,
    pub json_schema: Option<JsonSchemaIn>,
    /// llama-server's way to give a schema with `json_object`.
    pub schema: Option<BoundedJson>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct JsonSchemaIn {
    pub name: Option<String>,
    pub schema: Option<BoundedJson>,
    pub strict: Option<bool>,
}

impl<'de, T: Deserialize<'de> + WithSchema> Deserialize<'de> for ToolList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ToolListReader(PhantomData))
    }
}

struct ToolListReader<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + WithSchema> Visitor<'de> for ToolListReader<T> {
    type Value = ToolList<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of tools")
    }

    fn visit_unit<E: de::Error>(self) -> Result<ToolList<T>, E> {
        Ok(ToolList::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ToolList<T>, A::Error> {
        let (mut tools, mut values) = (Vec::new(), 0);
        while let Some(tool) = seq.next_element::<T>()? {
            values += tool.schema().map_or(0, BoundedJson::values);
            tools.push(tool);
            if tools.len() > TOOLS_MAX {
                return Err(de::Error::custom(format_args!("more than {TOOLS_MAX} tools")));
            }
            if values > JSON_VALUES_MAX {
                return Err(de::Error::custom(format_args!("more than {JSON_VALUES_MAX} values in the schemas")));
            }
        }
        Ok(ToolList(tools))
    }
}

deserialize_any!(ToolChoiceIn, "a string or an object", {
    fn visit_str<E: de::Error>(self, mode: &str) -> Result<ToolChoiceIn, E> {
        Ok(ToolChoiceIn::Mode(mode.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ToolChoiceIn, A::Error> {
        ToolChoiceObject::deserialize(MapAccessDeserializer::new(map)).map(ToolChoiceIn::Object)
    }
});
