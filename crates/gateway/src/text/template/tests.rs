//! `tests/templates/expected.json` was rendered by Python's jinja2, see `reference.py` there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeMap, time::Instant};

use super::*;
use crate::text::clock::strftime_utc;

type Rendered = BTreeMap<String, Option<String>>;

#[derive(serde::Deserialize)]
struct Expected {
    conversations: BTreeMap<String, Vec<Message>>,
    tools: Vec<FixtureTool>,
    with_tools: Vec<String>,
    bos: String,
    eos: String,
    expected: BTreeMap<String, Rendered>,
}

#[derive(serde::Deserialize)]
struct FixtureTool {
    name: String,
    description: String,
    parameters: serde_json::Value,
}

impl From<FixtureTool> for Tool {
    fn from(tool: FixtureTool) -> Self {
        Self { name: tool.name, description: Some(tool.description), parameters: tool.parameters, strict: false }
    }
}

const SOURCES: &[(&str, &str)] = &[
    ("gemma", include_str!("../../../tests/templates/gemma.jinja")),
    ("hermes3", include_str!("../../../tests/templates/hermes3.jinja")),
    ("llama3", include_str!("../../../tests/templates/llama3.jinja")),
    ("llama3_1", include_str!("../../../tests/templates/llama3_1.jinja")),
    ("llama3_2", include_str!("../../../tests/templates/llama3_2.jinja")),
    ("mistral", include_str!("../../../tests/templates/mistral.jinja")),
    ("mistral_nemo", include_str!("../../../tests/templates/mistral_nemo.jinja")),
    ("mistral_small3_2", include_str!("../../../tests/templates/mistral_small3_2.jinja")),
    ("phi3_5", include_str!("../../../tests/templates/phi3_5.jinja")),
    ("phi4_mini", include_str!("../../../tests/templates/phi4_mini.jinja")),
    ("python_idioms", include_str!("../../../tests/templates/python_idioms.jinja")),
    ("qwen2_5", include_str!("../../../tests/templates/qwen2_5.jinja")),
    ("qwen2_5_short", include_str!("../../../tests/templates/qwen2_5_short.jinja")),
    ("qwen3", include_str!("../../../tests/templates/qwen3.jinja")),
    ("smollm2", include_str!("../../../tests/templates/smollm2.jinja")),
    ("smollm3", include_str!("../../../tests/templates/smollm3.jinja")),
];

fn source(name: &str) -> &'static str {
    SOURCES.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no template {name}")).1
}

fn compiled(name: &str) -> ChatTemplate {
    ChatTemplate::compile(Some(source(name))).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The reference has `<<%d %b %Y>>` where the date stands.
fn dated(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("<<%") {
        let (format, after) = after.split_once(">>").unwrap();
        out += before;
        out += &strftime_utc(&format!("%{format}"));
        rest = after;
    }
    out + rest
}

fn user(content: &str) -> Message {
    Message::new(Role::User, content)
}

fn scene<'a>(messages: &'a [Message], tools: &'a [Tool]) -> Scene<'a> {
    Scene { messages, tools, bos: "<s>", eos: "</s>", variables: None }
}

fn render(source: &str) -> Result<String, TemplateError> {
    ChatTemplate::compile(Some(source))?.render(&scene(&[user("hi")], &[]))
}

#[test]
fn templates_render_as_in_python() {
    let fixture: Expected = serde_json::from_str(include_str!("../../../tests/templates/expected.json")).unwrap();
    assert_eq!(fixture.expected.len(), SOURCES.len());
    let tools: Vec<Tool> = fixture.tools.into_iter().map(Tool::from).collect();
    for (name, renderings) in fixture.expected {
        let template = compiled(&name);
        for (conversation, expected) in renderings {
            let tools = if fixture.with_tools.contains(&conversation) { tools.as_slice() } else { &[] };
            let messages = &fixture.conversations[&conversation];
            let scene = Scene { messages, tools, bos: &fixture.bos, eos: &fixture.eos, variables: None };
            let rendered = template.render(&scene);
            match expected {
                Some(text) => assert_eq!(rendered.as_deref(), Ok(dated(&text).as_str()), "{name} {conversation}"),
                None => {
                    assert!(matches!(rendered, Err(TemplateError::Refused(_))), "{name} {conversation}: {rendered:?}")
                }
            }
        }
    }
}

#[test]
fn what_templates_can_do_is_found_out() {
    let full = Abilities {
        system: true,
        tools: true,
        system_tools: false,
        calls: true,
        parallel_calls: true,
        text_arguments: false,
        long_ids: true,
        results: true,
    };
    let plain = Abilities { tools: false, calls: false, results: false, ..full };
    for (name, dialect, abilities) in [
        ("qwen2_5", Some(Dialect::Hermes), full),
        ("qwen3", Some(Dialect::Hermes), full),
        ("hermes3", Some(Dialect::Hermes), full),
        ("llama3_1", Some(Dialect::Llama), Abilities { parallel_calls: false, ..full }),
        ("llama3_2", Some(Dialect::Llama), Abilities { parallel_calls: false, ..full }),
        ("mistral_nemo", Some(Dialect::Mistral), Abilities { long_ids: false, ..full }),
        ("mistral_small3_2", Some(Dialect::MistralNamed), Abilities { long_ids: false, ..full }),
        ("phi4_mini", Some(Dialect::Phi), Abilities { system_tools: true, results: true, ..plain }),
        ("phi3_5", None, plain),
        ("smollm2", None, Abilities { results: true, ..plain }),
        ("smollm3", None, Abilities { results: true, ..plain }),
    ] {
        let template = compiled(name);
        assert_eq!((template.dialect, template.abilities()), (dialect, abilities), "{name}");
    }
    let gemma = compiled("gemma").abilities();
    assert!(!gemma.system && !gemma.tools && !gemma.calls, "{gemma:?}");
    assert!(compiled("qwen3").thinks && compiled("smollm3").thinks && !compiled("qwen2_5").thinks);
    let text = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments }}{% endfor %}\
                {% endfor %}{% if tools %}{{ tools[0].function.name }}{% endif %}";
    let abilities = ChatTemplate::compile(Some(text)).unwrap().abilities();
    assert!(abilities.text_arguments && abilities.calls, "an object would be printed as Python prints it");
}

#[test]
fn further_variables_are_seen_and_ours_stay() {
    let template = ChatTemplate::compile(Some("{{ mode }} {{ messages | length }} {{ bos_token }}")).unwrap();
    let variables = serde_json::json!({ "mode": "fast", "messages": [], "bos_token": "x" });
    let scene = Scene { variables: Some(&variables), ..scene(&[], &[]) };
    assert_eq!(template.render(&Scene { messages: &[user("hi")], ..scene }).unwrap(), "fast 1 <s>");
}

#[test]
fn without_a_template_it_is_chatml() {
    let prompt = ChatTemplate::compile(None).unwrap().render(&scene(&[user("a\n")], &[])).unwrap();
    assert_eq!(prompt, "<|im_start|>user\na\n<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn a_template_can_refuse_with_its_own_words() {
    let refused = render("{{ raise_exception('users must be polite\n') }}");
    assert_eq!(refused, Err(TemplateError::Refused("users must be polite ".into())));
}

#[test]
fn bad_templates_are_clear_errors() {
    for bad in [
        "{% for %}",
        "{{ messages",
        "{{ x.y.z }}",
        "{{ 1 / 0 }}",
        "{{ nothing() }}",
        "{% include 'file' %}",
        "{{ 1 | no }}",
    ] {
        assert!(matches!(render(bad), Err(TemplateError::Broken(_))), "{bad}: {:?}", render(bad));
    }
    let large = " ".repeat(SOURCE_BYTES_MAX + 1);
    assert!(matches!(render(&large), Err(TemplateError::Broken(_))));
}

#[test]
fn hostile_templates_run_out_of_fuel() {
    for hostile in [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% set x = 'aaaaaaaaaaaaaaaa' * 100000000 %}{{ x }}",
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' | indent(1000000000) }}",
        "{{ ' '.join(range(100000)) * 100000 }}",
    ] {
        let start = Instant::now();
        assert!(render(hostile).is_err(), "{hostile}");
        assert!(start.elapsed().as_secs() < 5, "{:?} for {hostile}", start.elapsed());
    }
}

#[test]
fn long_prompts_fit_and_endless_ones_do_not() {
    let template = compiled("smollm2");
    let long = user(&"x".repeat(8 * 1024 * 1024));
    assert!(template.render(&scene(std::slice::from_ref(&long), &[])).unwrap().len() > 8 * 1024 * 1024);
    let many = vec![user("hello"); 16_384];
    assert!(template.render(&scene(&many, &[])).is_ok());
    let all = vec![long; 5];
    assert!(template.render(&scene(&all, &[])).is_err());
}

#[test]
fn the_date_is_today_s() {
    let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!((2024..2200).contains(&year));
}

#[test]
fn the_cache_compiles_once_and_stays_small() {
    let cache = TemplateCache::default();
    let first = cache.get(Some("{{ 1 }}")).unwrap();
    assert!(Arc::ptr_eq(&first, &cache.get(Some("{{ 1 }}")).unwrap()));
    assert!(cache.get(Some("{% for %}")).is_err());
    for i in 0..200 {
        cache.get(Some(&format!("{{{{ {i} }}}}"))).unwrap();
    }
    assert!(cache.0.lock().len() <= CACHE_ENTRIES_MAX);
}
