use proptest::prelude::*;

use super::*;

/// 256 single bytes, a few longer tokens, two control tokens; the last one ends answers.
fn words() -> Words {
    let mut words = Words::default();
    for byte in 0..=255_u8 {
        words.push(&[byte]);
    }
    for longer in ["{\"", "\":", "true", "null", "12", "ab"] {
        words.push(longer.as_bytes());
    }
    words.push_control("<|call|>");
    words.push_control("<|end|>");
    words.set_end_tokens(&[END]);
    words
}

const CALL: Token = 262;
const END: Token = 263;

fn allowed(constraint: &mut Constraint) -> Vec<Token> {
    let mut logits = vec![0.0; 264];
    constraint.mask(&mut logits).unwrap();
    (0..264).filter(|token| logits[*token as usize] == 0.0).collect()
}

fn text(tokens: &[Token]) -> String {
    let words = words();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| words.word(*token as usize)).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

const COMPACT: &str = r#""x-guidance": {"whitespace_flexible": false}"#;

#[test]
fn a_schema_leaves_only_what_it_allows_and_then_the_end() {
    let grammar = format!(r#"start: %json {{"enum": ["ab", true], {COMPACT}}}"#);
    let mut constraint = Grammars::new(&words()).unwrap().compile(&grammar, &[]).unwrap();
    assert_eq!(allowed(&mut constraint), [u32::from(b'"'), u32::from(b't'), 258]);
    constraint.accept(258).unwrap();
    assert!(constraint.is_complete());
    assert_eq!(allowed(&mut constraint), [END]);
}

#[test]
fn control_tokens_are_named_by_their_ids() {
    let mut constraint = Grammars::new(&words()).unwrap().compile("start: <[262]> \"x\"", &[]).unwrap();
    assert_eq!(allowed(&mut constraint), [CALL]);
    constraint.accept(CALL).unwrap();
    assert_eq!(allowed(&mut constraint), [u32::from(b'x')]);
    assert_eq!(constraint.accept(CALL), Err(GrammarError::Broken));
}

#[test]
fn a_bad_pattern_is_named_with_what_is_wrong() {
    let Err(error) = check(r#"start: %json {"type": "string", "pattern": "^(?=a)b$"}"#) else { panic!("accepted") };
    let text = error.to_string();
    assert!(text.contains("look") && text.contains("(?=a)b") && !text.contains('\n'), "{text}");
}

#[test]
fn nonsense_is_refused_in_words() {
    for bad in ["", "start: %json {\"type\": 7}", "start: missing", "start: \"unclosed", "start: %json {", "\u{0}"] {
        assert!(matches!(check(bad), Err(GrammarError::Invalid(why)) if !why.is_empty()), "{bad}");
    }
    assert_eq!(check(&" ".repeat(GRAMMAR_BYTES_MAX + 1)), Err(GrammarError::TooLarge { bytes: GRAMMAR_BYTES_MAX + 1 }));
    let deep = format!("start: {}\"a\"{}", "(".repeat(5_000), ")".repeat(5_000));
    assert_eq!(check(&deep), Err(GrammarError::TooDeep));
    let schema =
        |depth| format!("start: %json {}{}", r#"{"items":"#.repeat(depth), "true".to_owned() + &"}".repeat(depth));
    assert_eq!(check(&schema(100)), Ok(()));
    assert!(check(&schema(200)).is_err());
    let prefixes = format!("start: {}A\nA: \"a\"", "~".repeat(60_000));
    assert!(check(&prefixes).is_err());
}

#[test]
fn work_is_bounded() {
    let explosive = r#"start: /(a|b|ab){1,9000}(x?){9000}y{5000,9000}/"#;
    let began = std::time::Instant::now();
    let _ = check(explosive);
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is drawn among the allowed tokens, the result is valid JSON of the schema, and an answer that is cut
    /// anywhere goes on with the same masks.
    #[test]
    fn any_draw_is_valid_and_resumes(draws in prop::collection::vec(any::<u32>(), 400), cut in 0_usize..40) {
        let schema = r#"{"type":"object","properties":{"a":{"type":"string","maxLength":5},"b":{"type":"array",
            "items":{"type":"integer","minimum":-5,"maximum":120},"maxItems":3},"c":{"type":["null","boolean"]}},
            "required":["a","b"],"additionalProperties":false,"x-guidance":{"whitespace_flexible":false}}"#;
        let grammar = format!("start: %json {schema}");
        let grammars = Grammars::new(&words()).unwrap();
        let mut constraint = grammars.compile(&grammar, &[]).unwrap();
        let mut answer = Vec::new();
        for draw in draws {
            let allowed = allowed(&mut constraint);
            if answer.len() == cut {
                let mut resumed = grammars.compile(&grammar, &answer).unwrap();
                prop_assert_eq!(super::tests::allowed(&mut resumed), allowed.clone());
                constraint = resumed;
            }
            let token = allowed[draw as usize % allowed.len()];
            if token == END {
                break;
            }
            constraint.accept(token).unwrap();
            answer.push(token);
            if constraint.is_complete() {
                break;
            }
        }
        let value: serde_json::Value = serde_json::from_str(&text(&answer)).unwrap();
        prop_assert!(value["a"].as_str().unwrap().chars().count() <= 5);
        let b = value["b"].as_array().unwrap();
        prop_assert!(b.len() <= 3 && b.iter().all(|n| (-5.0..=120.0).contains(&n.as_f64().unwrap())));
        prop_assert!(value.get("c").is_none_or(|c| c.is_null() || c.is_boolean()));
    }

    #[test]
    fn no_text_breaks_the_check(text in "\\PC{0,300}") {
        let _ = check(&text);
        let _ = check(&format!("start: {text}"));
        let _ = check(&format!("start: %json {text}"));
    }
}
