#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use opengrid_grammar::{Constraint, Grammars, Words};
use proptest::prelude::*;

use super::*;
use crate::text::tools::{
    Tool,
    calls::{CallParser, Fragment},
    dialect::Dialect,
};

const END: Token = 256;
/// What is written as `[TOOL_CALLS]`, `<|tool_call|>`, `<|/tool_call|>`, `[ARGS]`, `<tool_call>`, `</think>`.
const MARKS: [&str; 6] = ["[TOOL_CALLS]", "<|tool_call|>", "<|/tool_call|>", "[ARGS]", "<tool_call>", "</think>"];

/// Bytes, then the end, then the marks.
fn grammars() -> Grammars {
    let mut words = Words::default();
    (0..=255_u8).for_each(|byte| words.push(&[byte]));
    words.push_control("<|end|>");
    MARKS.iter().for_each(|mark| words.push_control(mark));
    words.set_end_tokens(&[END]);
    Grammars::new(&words).unwrap()
}

fn as_token(mark: &str) -> Option<Token> {
    MARKS.iter().position(|known| *known == mark).map(|at| END + 1 + at as Token)
}

fn as_text(_: &str) -> Option<Token> {
    None
}

/// The text's tokens, marks as control tokens if `control` says so.
fn tokens(text: &str, control: ControlToken) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    'text: while let Some(first) = rest.chars().next() {
        for mark in MARKS {
            if let (true, Some(token)) = (rest.starts_with(mark), control(mark)) {
                tokens.push(token);
                rest = &rest[mark.len()..];
                continue 'text;
            }
        }
        let (bytes, after) = rest.split_at(first.len_utf8());
        tokens.extend(bytes.bytes().map(Token::from));
        rest = after;
    }
    tokens
}

fn allowed(constraint: &mut Constraint) -> Vec<Token> {
    let mut logits = vec![0.0; END as usize + 1 + MARKS.len()];
    constraint.mask(&mut logits).unwrap();
    (0..logits.len() as Token).filter(|token| logits[*token as usize] == 0.0).collect()
}

/// Whether the answer may be this and nothing more.
fn accepts(grammar: &str, text: &str, control: ControlToken) -> bool {
    let Ok(mut constraint) = grammars().compile(grammar, &tokens(text, control)) else { return false };
    constraint.is_complete() || allowed(&mut constraint).contains(&END)
}

fn check_all(grammar: &str, control: ControlToken, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(accepts(grammar, text, control), "refuses {text:?}: {grammar}");
    }
    for text in bad {
        assert!(!accepts(grammar, text, control), "accepts {text:?}: {grammar}");
    }
}

fn tool(name: &str, parameters: Value, strict: bool) -> Tool {
    Tool { name: name.into(), description: None, parameters, strict }
}

fn tools() -> Vec<Tool> {
    let city = json!({
        "type": "object", "properties": { "city": { "type": "string", "maxLength": 20 } }, "required": ["city"],
        "additionalProperties": false,
    });
    vec![tool("look", city, true), tool("now", json!({ "type": "object", "additionalProperties": false }), false)]
}

fn grammar(dialect: Dialect, force: Force, parallel: bool, control: ControlToken) -> String {
    let tools = tools();
    CallGrammar { tools: &tools, dialect, force, parallel, schemas: true, after_thoughts: false, control }.text()
}

#[test]
fn hermes_calls() {
    let look = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>";
    let now = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let both = format!("{look}\n{now}");
    for control in [&as_text as ControlToken, &as_token] {
        let forced = grammar(Dialect::Hermes, Force::Calls, true, control);
        let bad = [
            "",
            "Hello",
            "<tool_call>\n{\"name\": \"other\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"look\", \"arguments\": {}}\n</tool_call>",
        ];
        check_all(&forced, control, &[look, now, &both], &bad);
        check_all(&grammar(Dialect::Hermes, Force::Calls, false, control), control, &[look, now], &[&both]);
        let free = grammar(Dialect::Hermes, Force::IfCalled, true, control);
        let after = format!("Let me <see>.\n{look}\nDone.");
        let wrong = bad[3];
        check_all(&free, control, &["", "Hello\n\n", "a < b", look, &both, &after], &[wrong, "x<tool_call>y"]);
        let many = vec![now; 17].join("\n");
        check_all(&forced, control, &[&vec![now; 16].join("\n")], &[&many]);
    }
}

#[test]
fn calls_of_other_families() {
    let llama = "{\"name\": \"look\", \"parameters\": {\"city\": \"Bonn\"}}";
    check_all(&grammar(Dialect::Llama, Force::Calls, true, &as_text), &as_text, &[llama], &["", "{}", "x"]);
    let free = grammar(Dialect::Llama, Force::IfCalled, true, &as_text);
    check_all(&free, &as_text, &["", "Hi {", " x", llama], &["{", "{\"a\": 1}", " {\"name\": \"x\""]);

    let list = "[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"now\", \"arguments\": {}}]";
    let named = "[TOOL_CALLS]look[ARGS]{\"city\": \"Bonn\"}[TOOL_CALLS]now[ARGS]{}";
    let phi = "<|tool_call|>[{\"name\": \"now\", \"arguments\": {}}]<|/tool_call|>";
    for control in [&as_text as ControlToken, &as_token] {
        for (dialect, calls) in [(Dialect::Mistral, list), (Dialect::MistralNamed, named), (Dialect::Phi, phi)] {
            check_all(&grammar(dialect, Force::Calls, true, control), control, &[calls], &["", "Hi"]);
            let free = grammar(dialect, Force::IfCalled, true, control);
            let after = format!("Hi. {calls}");
            check_all(&free, control, &["", "Hi [x]", calls, &after], &[&calls[..calls.len() - 2]]);
        }
    }
}

#[test]
fn json_answers() {
    let schema = json!({
        "type": "object", "properties": { "a": { "type": "integer" }, "b": { "type": ["number", "null"] } },
        "required": ["a", "b"], "additionalProperties": false,
    });
    let answer = JsonAnswer { schema: Some(&schema), strict: true };
    let plain = answer.grammar(false, &as_text);
    let bad = [
        "",
        "{}",
        "{ \"a\": 1, \"b\": 2}",
        "{\"a\":1,\"b\":2}",
        "{\"a\": 1.5, \"b\": 2}",
        "{\"a\": 1, \"b\": 2}\n",
        "{\"a\": 9007199254740992, \"b\": 2}",
        "{\"a\": 1, \"b\": 0.0000000001}",
    ];
    check_all(&plain, &as_text, &["{\"a\": 1, \"b\": null}", "{\"a\": -12, \"b\": 0.123456789}"], &bad);
    let any = JsonAnswer { schema: None, strict: false }.grammar(false, &as_text);
    check_all(&any, &as_text, &["{}", "{\"x\": [1, {\"y\": null}]}"], &["[]", "1", "\"x\"", "", "{\"x\": ]"]);
    for control in [&as_text as ControlToken, &as_token] {
        let thought = answer.grammar(true, control);
        let good = "Hm, {1}.\n</think>\n\n{\"a\": 1, \"b\": null}";
        check_all(&thought, control, &[good], &["Hm", "{\"a\": 1, \"b\": null}", "Hm</think>Well"]);
    }
    let either = grammar(Dialect::Hermes, Force::CallsOr(answer), false, &as_text);
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    check_all(&either, &as_text, &[call, "{\"a\": 1, \"b\": null}"], &["Hi", "", "{}"]);
}

#[test]
fn numbers_end() {
    let unbounded = [
        json!({ "type": "number" }),
        json!({ "type": "integer" }),
        json!({ "type": "number", "minimum": 0 }),
        json!({ "type": "number", "exclusiveMaximum": 1.5 }),
        json!({ "anyOf": [{ "type": "integer" }, { "type": "array", "items": { "type": "number" }, "maxItems": 1 }] }),
        json!({ "$defs": { "n": { "type": "number" } }, "$ref": "#/$defs/n" }),
    ];
    for schema in unbounded {
        let grammar = JsonAnswer { schema: Some(&schema), strict: true }.grammar(false, &as_text);
        for digit in ["9", "1", "0"] {
            for start in ["", "0.", "-", "[", "[0."] {
                let endless = start.to_owned() + &digit.repeat(60);
                assert!(grammars().compile(&grammar, &tokens(&endless, &as_text)).is_err(), "{schema} takes {endless}");
            }
        }
    }
    for (schema, value) in [
        (json!({ "type": "number", "maximum": 1e16 }), "5000000000000000"),
        (json!({ "type": "number", "multipleOf": 0.5 }), "-1.5"),
        (json!({ "type": "number", "minimum": 0, "maximum": 1e-12 }), "0.000000000001"),
        (json!({ "allOf": [{ "type": "number" }, { "minimum": 3 }] }), "3.5"),
        (json!({ "enum": [1e300, 5] }), "5"),
        (json!({ "type": "integer", "minimum": 5 }), "9007199254740991"),
    ] {
        let grammar = JsonAnswer { schema: Some(&schema), strict: true }.grammar(false, &as_text);
        assert!(accepts(&grammar, value, &as_text), "{schema} refuses {value}");
    }
}

#[test]
fn names_and_schemas_cannot_break_out() {
    for name in ["a", "a.b:c/d-e_f", "start", "call", "TEXT"] {
        let tools = [tool(name, json!({ "type": "object", "description": "\"} call: \"x\" // {" }), false)];
        let grammar = CallGrammar {
            tools: &tools,
            dialect: Dialect::Hermes,
            force: Force::Calls,
            parallel: false,
            schemas: true,
            after_thoughts: false,
            control: &as_text,
        };
        let call = format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{}}}}\n</tool_call>");
        assert!(accepts(&grammar.text(), &call, &as_text), "{name}");
    }
    let schema = json!({ "enum": ["\"\n} start: \"x\" %json {", "// </think>", "é\u{1}"] });
    let grammar = JsonAnswer { schema: Some(&schema), strict: true }.grammar(false, &as_text);
    for value in schema["enum"].as_array().unwrap() {
        assert!(accepts(&grammar, &value.to_string(), &as_text), "{value}");
    }
}

#[test]
fn bounds_of_64_bits_are_no_obstacle() {
    for (low, high) in [(json!(i64::MIN), json!(i64::MAX)), (json!(0), json!(u64::MAX)), (json!(-1e30), json!(1e30))] {
        let schema = json!({ "type": "integer", "minimum": low, "maximum": high });
        let grammar = JsonAnswer { schema: Some(&schema), strict: true }.grammar(false, &as_text);
        check_all(&grammar, &as_text, &["0", "9007199254740991"], &["9007199254740992", "1.5"]);
    }
}

#[test]
fn many_tools_are_held_to_their_names_at_least() {
    let tools: Vec<Tool> =
        (0..512).map(|n| tool(&format!("function_of_a_large_agent_{n}"), json!({}), false)).collect();
    let grammar = CallGrammar {
        tools: &tools,
        dialect: Dialect::Hermes,
        force: Force::Calls,
        parallel: false,
        schemas: false,
        after_thoughts: false,
        control: &as_text,
    };
    let text = grammar.text();
    assert!(text.len() <= opengrid_protocol::limits::GRAMMAR_BYTES_MAX, "{} bytes", text.len());
    let call =
        |name: &str| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"a\": [1]}}}}\n</tool_call>");
    let (known, unknown) = (call("function_of_a_large_agent_511"), call("function_of_a_large_agent_512"));
    check_all(&text, &as_text, &[&known], &[&unknown]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is drawn from a grammar that forces calls, the parser finds them and nothing else.
    #[test]
    fn what_is_forced_is_read(draws in prop::collection::vec(any::<u32>(), 3_000), which in 0..5_usize) {
        let dialect =
            [Dialect::Hermes, Dialect::Llama, Dialect::Mistral, Dialect::MistralNamed, Dialect::Phi][which];
        let tools = tools();
        let grammar = CallGrammar {
            tools: &tools, dialect, force: Force::Calls, parallel: true, schemas: true, after_thoughts: false, control: &as_token,
        };
        let mut constraint = grammars().compile(&grammar.text(), &[]).unwrap();
        let mut text = Vec::new();
        let mut complete = false;
        for draw in draws {
            let allowed = allowed(&mut constraint);
            // Draws of all bytes make long strings; the end is taken when it can be.
            let token = if allowed.contains(&END) { END } else { allowed[draw as usize % allowed.len()] };
            if token == END {
                complete = true;
                break;
            }
            constraint.accept(token).unwrap();
            match token.checked_sub(END + 1) {
                Some(mark) => text.extend_from_slice(MARKS[mark as usize].as_bytes()),
                None => text.push(token as u8),
            }
            if constraint.is_complete() {
                complete = true;
                break;
            }
        }
        prop_assert!(complete);
        let names: HashSet<String> = tools.iter().map(|tool| tool.name.clone()).collect();
        let mut parser = CallParser::new(dialect.notation(), names, false, Box::new(String::new));
        let mut fragments = Vec::new();
        parser.push(&String::from_utf8(text).unwrap(), &mut fragments);
        parser.finish(&mut fragments);
        prop_assert!(parser.called());
        for fragment in fragments {
            let Fragment::Call(call) = fragment else { return Err(TestCaseError::fail(format!("{fragment:?}"))) };
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
            prop_assert!(arguments.is_object());
        }
    }
}
