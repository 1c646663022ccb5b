#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::text::template::{ChatTemplate, Scene, TemplateError};

fn tool(name: &str) -> Tool {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    Tool { name: name.into(), description: Some("Looks".into()), parameters, strict: false }
}

fn call(id: &str, city: &str) -> Call {
    Call { id: id.into(), name: "look".into(), arguments: json!({ "city": city }) }
}

fn result(id: &str, content: &str) -> Message {
    Message { call_id: Some(id.into()), ..Message::new(Role::Tool, content) }
}

/// A question, two calls, their results in the other order, an answer and another question.
fn conversation() -> Vec<Message> {
    vec![
        Message::new(Role::System, "Be brief."),
        Message::new(Role::User, "Rome or Bonn?"),
        Message { calls: vec![call("call_a", "Rome"), call("call_b", "Bonn")], ..Message::new(Role::Assistant, "Hm.") },
        result("call_b", "rain"),
        result("call_a", "sun"),
        Message::new(Role::Assistant, "Rome."),
        Message::new(Role::User, "Sure?"),
    ]
}

fn render(source: Option<&str>, messages: Vec<Message>, tools: &[Tool]) -> Result<String, TemplateError> {
    let template = ChatTemplate::compile(source)?;
    let adapted = adapt(messages, tools, template.dialect, template.abilities());
    let (messages, tools) = (&adapted.messages, adapted.tools.as_slice());
    template.render(&Scene { messages, tools, bos: "<s>", eos: "</s>", variables: None })
}

macro_rules! template {
    ($name:literal) => {
        Some(include_str!(concat!("../../../tests/templates/", $name, ".jinja")))
    };
}

#[test]
fn every_family_renders_a_whole_conversation_with_tools() {
    for (name, source) in [
        ("none", None),
        ("gemma", template!("gemma")),
        ("hermes3", template!("hermes3")),
        ("llama3", template!("llama3")),
        ("llama3_1", template!("llama3_1")),
        ("llama3_2", template!("llama3_2")),
        ("mistral", template!("mistral")),
        ("mistral_nemo", template!("mistral_nemo")),
        ("mistral_small3_2", template!("mistral_small3_2")),
        ("phi3_5", template!("phi3_5")),
        ("phi4_mini", template!("phi4_mini")),
        ("qwen2_5", template!("qwen2_5")),
        ("qwen2_5_short", template!("qwen2_5_short")),
        ("qwen3", template!("qwen3")),
        ("smollm2", template!("smollm2")),
        ("smollm3", template!("smollm3")),
    ] {
        let prompt = render(source, conversation(), &[tool("look")]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let parts = ["Be brief.", "Rome or Bonn?", "\"look\"", "\"Rome\"", "\"Bonn\"", "rain", "sun", "Rome.", "Sure?"];
        for part in parts {
            assert!(prompt.contains(part), "{name} lost {part}: {prompt}");
        }
        let order = ["Rome or Bonn?", "\"Rome\"", "sun", "Rome.", "Sure?"].map(|part| prompt.rfind(part).unwrap());
        assert!(order.is_sorted(), "{name}: {prompt}");
    }
}

#[test]
fn models_without_tools_are_taught() {
    let tools = [tool("look")];
    let signature = tools[0].to_json();
    let lesson = format!("{LESSON}{signature}\n{LESSON_END}");
    let calls = "Hm.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"city\":\"Rome\"}}\n</tool_call>\n\
                 <tool_call>\n{\"name\": \"look\", \"arguments\": {\"city\":\"Bonn\"}}\n</tool_call>";
    let results = "<tool_response>\nrain\n</tool_response>\n\n<tool_response>\nsun\n</tool_response>";
    let prompt = render(template!("gemma"), conversation(), &tools).unwrap();
    let turn = |role: &str, text: &str| format!("<start_of_turn>{role}\n{text}<end_of_turn>\n");
    let expected = [
        turn("user", &format!("Be brief.\n\n{lesson}\n\nRome or Bonn?")),
        turn("model", calls),
        turn("user", results),
        turn("model", "Rome."),
        turn("user", "Sure?"),
    ];
    assert_eq!(prompt, format!("<s>{}<start_of_turn>model\n", expected.concat()));
    let asked = vec![Message::new(Role::User, "Where?")];
    let prompt = render(None, asked, &tools).unwrap();
    assert_eq!(
        prompt,
        format!("<|im_start|>system\n{lesson}<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n")
    );
}

#[test]
fn calls_that_cannot_stand_together_are_told_one_by_one() {
    let prompt = render(template!("llama3_1"), conversation(), &[tool("look")]).unwrap();
    let (_, told) = prompt.split_once("Rome or Bonn?<|eot_id|>").unwrap();
    let turn = |role: &str, text: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>");
    let expected = [
        turn("assistant", "{\"name\": \"look\", \"parameters\": {\"city\": \"Rome\"}}"),
        turn("ipython", "\"sun\""),
        turn("assistant", "{\"name\": \"look\", \"parameters\": {\"city\": \"Bonn\"}}"),
        turn("ipython", "\"rain\""),
    ];
    assert!(told.starts_with(&expected.concat()), "{told}");
    let mut odd = conversation();
    odd.insert(4, result("call_unknown", "lost"));
    assert!(render(template!("llama3_1"), odd, &[tool("look")]).unwrap().contains("lost"));
}

#[test]
fn ids_of_others_become_short_ones() {
    let prompt = render(template!("mistral_nemo"), conversation(), &[tool("look")]).unwrap();
    for id in ["\"id\": \"id0000000\"", "\"id\": \"id0000001\"", "\"call_id\": \"id0000001\""] {
        assert!(prompt.contains(id), "{prompt}");
    }
    let mut kept = conversation();
    kept[2].calls[0].id = "abcDEF123".into();
    assert!(render(template!("mistral_nemo"), kept, &[]).unwrap().contains("\"id\": \"abcDEF123\""));
}

#[test]
fn phi_gets_its_tools_in_the_system_message() {
    let prompt = render(template!("phi4_mini"), conversation(), &[tool("look")]).unwrap();
    let tools = serde_json::Value::from(vec![tool("look").to_json()]);
    assert!(prompt.starts_with(&format!("<|system|>Be brief.<|tool|>{tools}<|/tool|><|end|>")), "{prompt}");
    let call = "<|tool_call|>[{\"name\": \"look\", \"arguments\": {\"city\":\"Rome\"}}, ";
    assert!(prompt.contains(call) && prompt.contains("<|tool|>sun<|end|>"), "{prompt}");
}
