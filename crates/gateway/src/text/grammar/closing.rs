//! Objects without properties that their schema does not name.

use serde_json::{Map, Value};

use super::schema::mentions;

/// With these an object may need, or be judged by, properties that another schema names.
const COMBINERS: [&str; 9] = [
    "allOf",
    "oneOf",
    "not",
    "if",
    "dependentSchemas",
    "dependentRequired",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
];
/// Beside `properties`, these say that more than those may come.
const OPEN: [&str; 6] =
    ["additionalProperties", "patternProperties", "propertyNames", "minProperties", "anyOf", "$ref"];

/// Adds `"additionalProperties": false` to every object that lists properties and does not say whether others may follow.
///
/// JSON Schema allows others then, and small models write nonsense there. OpenAI's strict mode demands what is added
/// here, llama.cpp's grammars assume it. What passes the closed schema passes the open one.
pub fn close_objects(schema: &mut Value) {
    if !mentions(schema, &COMBINERS) && !has_open_reference(schema) {
        close(schema);
    }
}

/// An object that lists properties and takes others from elsewhere: closed, the others would be forbidden there.
fn has_open_reference(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(has_open_reference),
        Value::Object(entries) => {
            let refers = entries.contains_key("$ref") || entries.contains_key("anyOf");
            let lists = entries.contains_key("properties") || entries.contains_key("required");
            (refers && lists) || entries.values().any(has_open_reference)
        }
        _ => false,
    }
}

fn close(schema: &mut Value) {
    let Value::Object(entries) = schema else { return };
    if is_closable(entries) {
        entries.insert("additionalProperties".into(), Value::Bool(false));
    }
    for (key, value) in entries.iter_mut() {
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(inner)) => {
                inner.values_mut().for_each(close);
            }
            ("anyOf" | "prefixItems" | "items", Value::Array(inner)) => inner.iter_mut().for_each(close),
            ("items" | "additionalProperties", inner) => close(inner),
            _ => {}
        }
    }
}

fn is_closable(entries: &Map<String, Value>) -> bool {
    let Some(Value::Object(properties)) = entries.get("properties") else { return false };
    let named = |name: &Value| name.as_str().is_some_and(|name| properties.contains_key(name));
    let all_named = match entries.get("required") {
        Some(Value::Array(names)) => names.iter().all(named),
        _ => true,
    };
    !properties.is_empty() && all_named && !OPEN.iter().any(|key| entries.contains_key(*key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(mut schema: Value) -> Value {
        close_objects(&mut schema);
        schema
    }

    #[test]
    fn listed_properties_are_all_there_are() {
        let schema = json!({
            "type": "object",
            "properties": {
                "a": { "anyOf": [{ "properties": { "b": {} } }, { "type": "null" }] },
                "c": { "type": "array", "items": { "$ref": "#/$defs/d" } },
            },
            "required": ["a"],
            "$defs": { "d": { "type": "object", "properties": { "e": {} } } },
        });
        let closed = closed(schema);
        assert_eq!(closed["additionalProperties"], false);
        assert_eq!(closed["properties"]["a"]["anyOf"][0]["additionalProperties"], false);
        assert_eq!(closed["$defs"]["d"]["additionalProperties"], false);
    }

    #[test]
    fn what_says_that_more_may_come_stays_open() {
        for schema in [
            json!({ "type": "object" }),
            json!({ "type": "object", "properties": {} }),
            json!({ "properties": { "a": {} }, "additionalProperties": true }),
            json!({ "properties": { "a": {} }, "additionalProperties": { "type": "string" } }),
            json!({ "properties": { "a": {} }, "patternProperties": { "^x": {} } }),
            json!({ "properties": { "a": {} }, "minProperties": 2 }),
            json!({ "properties": { "a": {} }, "required": ["a", "b"] }),
            json!({ "properties": { "a": {} }, "anyOf": [{ "required": ["b"] }, { "required": ["c"] }] }),
            json!({ "allOf": [{ "properties": { "a": {} } }, { "properties": { "b": {} }, "required": ["b"] }] }),
            json!({ "oneOf": [{ "properties": { "a": {} } }, { "properties": { "b": {} }, "required": ["b"] }] }),
            json!({ "$ref": "#/$defs/d", "properties": { "a": {} }, "$defs": { "d": { "properties": { "b": {} } } } }),
            json!({ "const": { "properties": 1 } }),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }
}
