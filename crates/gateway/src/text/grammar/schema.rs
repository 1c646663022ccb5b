//! JSON schemas as grammar items.

use serde_json::{Map, Value, json};

use super::closing::close_objects;

/// The largest integer that every JSON reader understands (RFC 8259, section 6).
const INTEGER_MAX: i64 = (1 << 53) - 1;
const NUMBER_MAX: f64 = 1e15;
/// Finest number.
const NUMBER_STEP: f64 = 1e-9;

/// `%json {…}` for a value of `schema`, an object.
///
/// White space is what Python's `json.dumps` writes, as models have seen it most: none can run on for ever. Numbers get
/// bounds where the schema has none, for the same reason. Objects that list properties get no others.
pub fn rule(schema: &Value, strict: bool) -> String {
    let mut schema = schema.clone();
    close_objects(&mut schema);
    let fine = !mentions(&schema, &["allOf", "multipleOf"]);
    bound_numbers(&mut schema, fine);
    if let Value::Object(entries) = &mut schema {
        let options = json!({
            "whitespace_flexible": false,
            "item_separator": ", ",
            "key_separator": ": ",
            "lenient": !strict,
        });
        entries.insert("x-guidance".into(), options);
    }
    format!("%json {schema}")
}

/// Whether one of `keys` stands anywhere in it.
pub fn mentions(value: &Value, keys: &[&str]) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| mentions(item, keys)),
        Value::Object(entries) => {
            entries.iter().any(|(key, value)| keys.contains(&key.as_str()) || mentions(value, keys))
        }
        _ => false,
    }
}

fn bound_numbers(schema: &mut Value, fine: bool) {
    let Value::Object(entries) = schema else { return };
    if !["enum", "const", "$ref"].iter().any(|key| entries.contains_key(*key)) {
        bound(entries, fine);
    }
    for (key, value) in entries.iter_mut() {
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(inner)) => {
                inner.values_mut().for_each(|inner| bound_numbers(inner, fine));
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(inner)) => {
                inner.iter_mut().for_each(|inner| bound_numbers(inner, fine));
            }
            ("items" | "additionalProperties" | "additionalItems", inner) => bound_numbers(inner, fine),
            _ => {}
        }
    }
}

fn bound(entries: &mut Map<String, Value>, fine: bool) {
    let is = |wanted: &str| match entries.get("type") {
        Some(Value::String(kind)) => kind == wanted,
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == wanted),
        _ => false,
    };
    let (integer, number) = (is("integer"), is("number"));
    if !integer && !number {
        return;
    }
    if integer && !number {
        clamp(entries);
    }
    let bounds = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"];
    let given = bounds.map(|key| entries.get(key).and_then(Value::as_f64));
    let (low, high) = (given[0].or(given[1]), given[2].or(given[3]));
    // Outside of what we would add, the schema's author knows what they do.
    if low.into_iter().chain(high).any(|bound| bound.abs() >= NUMBER_MAX) {
        return;
    }
    let limit = if number { json!(NUMBER_MAX) } else { json!(INTEGER_MAX) };
    let negative = if number { json!(-NUMBER_MAX) } else { json!(-INTEGER_MAX) };
    if low.is_none() {
        entries.insert("minimum".into(), negative);
    }
    if high.is_none() {
        entries.insert("maximum".into(), limit);
    }
    let coarse = |bound: f64| (bound * 1e6).fract() == 0.0;
    if number && !integer && fine && low.into_iter().chain(high).all(coarse) {
        entries.insert("multipleOf".into(), json!(NUMBER_STEP));
    }
}

/// Bounds of 64-bit integers, which generators of schemas write, are beyond what llguidance can build.
fn clamp(entries: &mut Map<String, Value>) {
    let limit = INTEGER_MAX as f64;
    let ends = [("minimum", -1), ("exclusiveMinimum", -1), ("maximum", 1), ("exclusiveMaximum", 1)];
    for (key, sign) in ends {
        let bound = entries.get(key).and_then(Value::as_f64);
        if bound.is_some_and(|bound| bound * f64::from(sign) > limit) {
            entries.insert(key.into(), json!(INTEGER_MAX * i64::from(sign)));
        }
    }
}
