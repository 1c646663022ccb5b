#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const HERMES: Notation =
    Notation { openers: &["<tool_call>"], bare: false, named: false, closer: Some("</tool_call>") };
const LLAMA: Notation = Notation { openers: &["<|python_tag|>"], bare: true, named: false, closer: None };
const MISTRAL: Notation = Notation { openers: &["[TOOL_CALLS]"], bare: false, named: true, closer: None };
const PHI: Notation =
    Notation { openers: &["<|tool_call|>", "functools["], bare: false, named: false, closer: Some("<|/tool_call|>") };
const ALL: [&Notation; 4] = [&HERMES, &LLAMA, &MISTRAL, &PHI];

fn parser(notation: &'static Notation, one: bool) -> CallParser {
    let mut next = 0;
    let new_id = move || {
        next += 1;
        format!("id{next}")
    };
    let names = ["f", "get_weather"].map(String::from).into();
    CallParser::new(notation, names, one, Box::new(new_id))
}

/// The text and the calls (`name(arguments)`).
fn join(fragments: Vec<Fragment>) -> (String, Vec<String>) {
    let (mut text, mut calls) = (String::new(), Vec::<String>::new());
    for fragment in fragments {
        match fragment {
            Fragment::Text(more) => text += &more,
            Fragment::Call(delta) => {
                if let Some(head) = delta.head {
                    assert_eq!((delta.index, head.id), (calls.len(), format!("id{}", calls.len() + 1)));
                    calls.push(head.name + "|");
                }
                assert_eq!(delta.index + 1, calls.len(), "fragments belong to the last call");
                calls.last_mut().unwrap().push_str(&delta.arguments);
            }
        }
    }
    (text, calls)
}

fn read_pieces<'a>(
    notation: &'static Notation,
    one: bool,
    pieces: impl IntoIterator<Item = &'a str>,
) -> (String, Vec<String>) {
    let (mut parser, mut out) = (parser(notation, one), Vec::new());
    for piece in pieces {
        parser.push(piece, &mut out);
    }
    parser.finish(&mut out);
    join(out)
}

/// Whole, and character by character.
fn read(notation: &'static Notation, text: &str) -> (String, Vec<String>) {
    let whole = read_pieces(notation, false, [text]);
    let characters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(read_pieces(notation, false, characters.iter().map(String::as_str)), whole);
    whole
}

fn check(notation: &'static Notation, text: &str, content: &str, calls: &[&str]) {
    let (found, found_calls) = read(notation, text);
    assert_eq!((found.as_str(), found_calls), (content, calls.iter().map(|c| (*c).to_owned()).collect()), "{text}");
}

#[test]
fn hermes() {
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    check(&HERMES, call, "", &["f|{\"a\": 1}"]);
    check(&HERMES, &format!("\n\n{call}\n{call}\n"), "", &["f|{\"a\": 1}", "f|{\"a\": 1}"]);
    check(&HERMES, &format!("Let me see.\n{call}"), "Let me see.\n", &["f|{\"a\": 1}"]);
    check(&HERMES, &format!("{call}\n\nDone."), "\n\nDone.", &["f|{\"a\": 1}"]);
    check(&HERMES, "<tool_call>{\"arguments\": {\"a\": [{}]}, \"name\": \"f\"}", "", &["f|{\"a\": [{}]}"]);
    check(&HERMES, "<tool_call>{\"name\": \"f\"}</tool_call>", "", &["f|{}"]);
    check(&HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>", "", &["f|{}"]);
    check(
        &HERMES,
        "<tool_call>[{\"name\":\"f\",\"arguments\":{}},{\"name\":\"f\"}]</tool_call>",
        "",
        &["f|{}", "f|{}"],
    );
    let as_text =
        "<tool_call>{\"id\": 12, \"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\", \"x\": [1, 2]}</tool_call>";
    check(&HERMES, as_text, "", &["f|{\"a\": 1}"]);
}

#[test]
fn llama() {
    check(&LLAMA, "{\"name\": \"f\", \"parameters\": {\"a\": \"b\"}}", "", &["f|{\"a\": \"b\"}"]);
    check(&LLAMA, "\n{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}", "", &["f|{}"]);
    check(&LLAMA, "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", "", &["f|{}"]);
    let two = "{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"get_weather\", \"parameters\": {}}";
    check(&LLAMA, two, "", &["f|{}", "get_weather|{}"]);
    for text in
        ["{\"city\": \"Paris\"}", "{}", "{", "Use {\"name\": \"f\", \"parameters\": {}} for it", "{\"name\": 1}"]
    {
        check(&LLAMA, text, text, &[]);
    }
    let (mut parser, mut out) = (parser(&LLAMA, false), Vec::new());
    parser.push("{\"city", &mut out);
    assert_eq!(out, [], "may still be a call");
    parser.push("\"", &mut out);
    assert_eq!(out, [Fragment::Text("{\"city\"".into())], "JSON that is no call is not held back");
}

#[test]
fn mistral() {
    let two = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"id\": \"123456789\"}, {\"name\": \"f\"}]";
    check(&MISTRAL, two, "", &["f|{\"a\": 1}", "f|{}"]);
    check(&MISTRAL, "[TOOL_CALLS]f[ARGS]{\"a\": 1}", "", &["f|{\"a\": 1}"]);
    check(&MISTRAL, "[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}[TOOL_CALLS]f{}", "", &["f|{}", "f|{}"]);
    check(&MISTRAL, "Hm.[TOOL_CALLS]f[ARGS]{}", "Hm.", &["f|{}"]);
    for text in ["[TOOL_CALLS]g[ARGS]{}", "[TOOL_CALLS]f[ARG]{}", "[TOOL_CALLS][]", "[TOOL_CALLS]", "[TOOL_CALLS]f"] {
        check(&MISTRAL, text, text, &[]);
    }
}

#[test]
fn phi() {
    check(&PHI, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}]<|/tool_call|>", "", &["f|{}"]);
    check(&PHI, "functools[{\"name\": \"f\", \"arguments\": {}}]", "", &["f|{}"]);
    check(&PHI, "functools is a module: functools[x]", "functools is a module: functools[x]", &[]);
}

#[test]
fn what_is_no_call_is_given_back() {
    for text in [
        "",
        "a < b",
        "<tool_cal",
        "<tool_call>",
        "<tool_call> what?",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 3}</tool_call>",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"arguments\": [], \"name\": \"f\"}</tool_call>",
        "<tool_call>{'name': 'f'}</tool_call>",
        "<tool_call>[]</tool_call>",
        "</tool_call> \n ",
        " \n ",
    ] {
        check(&HERMES, text, text, &[]);
    }
    check(&HERMES, "<tool_call><tool_call>{\"name\": \"f\"}", "<tool_call>", &["f|{}"]);
    let long = format!("<tool_call>{{\"arguments\": {{\"a\": \"{}\"}}, \"name\": \"f\"}}", "x".repeat(HELD_BYTES_MAX));
    check(&HERMES, &long, &long, &[]);
}

#[test]
fn a_call_that_breaks_off_keeps_what_there_was() {
    check(&HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tr", "", &["f|{\"a\": tr"]);
    check(
        &HERMES,
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru}}</tool_call>",
        "}}</tool_call>",
        &["f|{\"a\": tru"],
    );
    check(&HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}", "", &["f|{\"a\": 1}"]);
    check(&MISTRAL, "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}, ", "", &["f|{}"]);
}

#[test]
fn a_further_call_cut_off_before_its_name_is_dropped() {
    for rest in ["<tool_c", "\n<tool_call>", "<tool_call>\n{\"name\": \"", "<tool_call>{\"name\": \"get_wea"] {
        check(&HERMES, &format!("<tool_call>{{\"name\": \"f\"}}</tool_call>{rest}"), "", &["f|{}"]);
    }
    check(&MISTRAL, "[TOOL_CALLS][{\"name\": \"f\"}, {\"nam", "", &["f|{}"]);
    check(&LLAMA, "{\"name\": \"f\"}; {\"na", "", &["f|{}"]);
    let unknown = "<tool_call>{\"name\": \"unknown\"}";
    check(&HERMES, &format!("<tool_call>{{\"name\": \"f\"}}</tool_call>{unknown}"), unknown, &["f|{}"]);
}

#[test]
fn arguments_come_as_they_are_read() {
    let (mut parser, mut out) = (parser(&HERMES, false), Vec::new());
    parser.push("<tool_call>\n{\"name\": \"f\"", &mut out);
    let head = CallHead { id: "id1".into(), name: "f".into() };
    let first = CallDelta { index: 0, head: Some(head), arguments: String::new() };
    assert_eq!(std::mem::take(&mut out), [Fragment::Call(first)]);
    assert!(!parser.called());
    for (piece, arguments) in [(", \"arguments\": {\"ci", "{\"ci"), ("ty\": \"Par", "ty\": \"Par"), ("is\"}}", "is\"}")]
    {
        parser.push(piece, &mut out);
        let delta = CallDelta { index: 0, head: None, arguments: arguments.into() };
        assert_eq!(std::mem::take(&mut out), [Fragment::Call(delta)]);
    }
    assert!(parser.called() && !parser.complete());
}

#[test]
fn one_call_only_ends_the_answer() {
    let call = "<tool_call>{\"name\": \"f\"}</tool_call>";
    let mut parser = parser(&HERMES, true);
    let mut out = Vec::new();
    parser.push(&format!("{call}{call} text"), &mut out);
    assert!(parser.complete());
    parser.finish(&mut out);
    assert_eq!(join(out), (String::new(), vec!["f|{}".to_owned()]));
    let list = "[TOOL_CALLS][{\"name\": \"f\"}, {\"name\": \"f\"}]";
    assert_eq!(read_pieces(&MISTRAL, true, [list]), (String::new(), vec!["f|{}".to_owned()]));
}

fn soup() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|tool_call|>",
        "functools[",
        "<|/tool_call|>",
        "{",
        "}",
        "[",
        "]",
        "\"name\"",
        "\"arguments\"",
        "\"parameters\"",
        ":",
        ",",
        ";",
        "\"f\"",
        "\"get_weather\"",
        "f",
        "\"",
        "\\",
        "1",
        "true",
        " ",
        "\n",
        "é",
        "text",
        "<",
        "tool",
        "{\"name\": \"f\", \"arguments\": {",
        "\"a\": [1, 2]",
        "}}",
        "{\"name\": \"f\", \"parameters\": {}}",
    ]);
    prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_cut_gives_the_same(text in soup(), which in 0..4usize, size in 1..9usize, one in any::<bool>()) {
        let characters: Vec<char> = text.chars().collect();
        let pieces: Vec<String> = characters.chunks(size).map(|c| c.iter().collect()).collect();
        let cut = read_pieces(ALL[which], one, pieces.iter().map(String::as_str));
        prop_assert_eq!(cut, read_pieces(ALL[which], one, [text.as_str()]));
    }

    #[test]
    fn text_without_calls_is_untouched(text in soup(), which in 0..4usize) {
        let (found, calls) = read(ALL[which], &text);
        if calls.is_empty() {
            prop_assert_eq!(found, text);
        } else {
            let characters = found.chars().count() + calls.iter().map(|call| call.chars().count()).sum::<usize>();
            prop_assert!(characters <= text.chars().count() + 3 * calls.len());
        }
    }

    #[test]
    fn calls_are_found_in_any_text(
        before in "[a-z <{\\[\n]{0,20}",
        arguments in prop::collection::hash_map("[a-zé\"\\\\\n]{0,6}", any::<f64>(), 0..4),
    ) {
        let arguments = serde_json::to_string(&arguments).unwrap();
        let call = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>");
        let (text, calls) = read(&HERMES, &(before.clone() + &call));
        prop_assert_eq!(calls, vec![format!("f|{arguments}")]);
        prop_assert_eq!(text, if before.trim().is_empty() { String::new() } else { before });
    }
}
