//! `tests/templates/expected.json` was rendered by Python's jinja2 3.1.6, set up as transformers does;
//! `smollm2.jinja` is the template of the default model's GGUF.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeMap, time::Instant};

use super::*;

type Rendered = BTreeMap<String, Option<String>>;

#[derive(serde::Deserialize)]
struct Expected {
    conversations: BTreeMap<String, Vec<BTreeMap<String, String>>>,
    bos: String,
    eos: String,
    expected: BTreeMap<String, Rendered>,
}

fn source(name: &str) -> &'static str {
    match name {
        "smollm2" => include_str!("../../tests/templates/smollm2.jinja"),
        "llama3" => include_str!("../../tests/templates/llama3.jinja"),
        "qwen2_5" => include_str!("../../tests/templates/qwen2_5.jinja"),
        "mistral" => include_str!("../../tests/templates/mistral.jinja"),
        "gemma" => include_str!("../../tests/templates/gemma.jinja"),
        "python_idioms" => include_str!("../../tests/templates/python_idioms.jinja"),
        other => panic!("no template {other}"),
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), name: None }
}

fn render(source: &str) -> Result<String, TemplateError> {
    ChatTemplate::compile(Some(source))?.render(&[message("user", "hi")], "<s>", "</s>")
}

#[test]
fn templates_render_as_in_python() {
    let fixture: Expected = serde_json::from_str(include_str!("../../tests/templates/expected.json")).unwrap();
    assert_eq!(fixture.expected.len(), 6);
    for (name, renderings) in fixture.expected {
        let template = ChatTemplate::compile(Some(source(&name))).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (conversation, expected) in renderings {
            let messages: Vec<Message> = fixture.conversations[&conversation]
                .iter()
                .map(|fields| message(&fields["role"], &fields["content"]))
                .collect();
            let rendered = template.render(&messages, &fixture.bos, &fixture.eos);
            match expected {
                Some(text) => assert_eq!(rendered.as_deref(), Ok(text.as_str()), "{name} {conversation}"),
                None => {
                    assert!(matches!(rendered, Err(TemplateError::Refused(_))), "{name} {conversation}: {rendered:?}")
                }
            }
        }
    }
}

#[test]
fn without_a_template_it_is_chatml() {
    let prompt = ChatTemplate::compile(None).unwrap().render(&[message("user", "a\n")], "<s>", "</s>").unwrap();
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
    let template = ChatTemplate::compile(Some(source("smollm2"))).unwrap();
    let long = message("user", &"x".repeat(8 * 1024 * 1024));
    assert!(template.render(std::slice::from_ref(&long), "", "").unwrap().len() > 8 * 1024 * 1024);
    let many = vec![message("user", "hello"); 16_384];
    assert!(template.render(&many, "", "").is_ok());
    let all = vec![long; 5];
    assert!(template.render(&all, "", "").is_err());
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
