use opengrid_protocol::session::{Tier, TokenOut};

use super::*;

fn request() -> GenerateRequest {
    GenerateRequest {
        client: [3; 32],
        tokens: vec![1, 2, 3, 9],
        prompt_tokens: 3,
        completion_tokens_max: 8,
        stop_tokens: vec![2],
        sampling: Sampling { seed: 5, temperature: 0.7, top_k: 40, ..Sampling::greedy() },
        top_logprobs: None,
        grammar: None,
        tier: Tier::default(),
    }
}

fn segment(request: &GenerateRequest) -> Segment<'_> {
    let tokens = &request.tokens;
    Segment { request, model: "m", tokens, tokens_max: 7, stream: true, slot: 1, own_cache: true }
}

fn body(kind: Kind, request: &GenerateRequest) -> Value {
    kind.body(&segment(request))
}

const ALL: [Kind; 3] = [Kind::LlamaServer, Kind::Vllm, Kind::TensorRtLlm];

#[test]
fn every_profile_asks_with_token_ids() {
    for kind in ALL {
        let asked = body(kind, &request());
        assert_eq!(asked["prompt"], json!([1, 2, 3, 9]), "{kind:?}");
        assert!(asked.get("max_tokens").or(asked.get("n_predict")) == Some(&json!(7)));
        assert_eq!((&asked["top_k"], &asked["stream"]), (&json!(40), &json!(true)));
    }
}

#[test]
fn seeds_fit_each_engine_and_change_with_seed_choice_and_place() {
    for kind in ALL {
        let seed = |change: &dyn Fn(&mut GenerateRequest)| {
            let mut request = request();
            change(&mut request);
            body(kind, &request)["seed"].as_u64().unwrap()
        };
        let first = seed(&|_| {});
        assert_eq!(first, seed(&|_| {}));
        assert_ne!(first, seed(&|request| request.sampling.seed = u64::MAX));
        assert_ne!(first, seed(&|request| request.sampling.choice = 1));
        assert_ne!(first, seed(&|request| request.tokens.push(4)));
        let most = if kind == Kind::LlamaServer { u64::from(u32::MAX) - 1 } else { i64::MAX as u64 };
        assert!((0..50).all(|n| seed(&|request| request.sampling.seed = n) <= most));
    }
}

#[test]
fn greedy_is_greedy_everywhere() {
    let greedy = GenerateRequest { sampling: Sampling::greedy(), ..request() };
    assert_eq!(body(Kind::LlamaServer, &greedy)["temperature"], json!(0.0));
    for kind in [Kind::Vllm, Kind::TensorRtLlm] {
        assert_eq!(body(kind, &greedy)["top_k"], json!(1));
    }
}

#[test]
fn caches_stay_with_their_client() {
    let (mine, other) = (request(), GenerateRequest { client: [4; 32], ..request() });
    assert_ne!(body(Kind::Vllm, &mine)["cache_salt"], body(Kind::Vllm, &other)["cache_salt"]);
    assert!(!body(Kind::Vllm, &mine)["cache_salt"].as_str().unwrap().contains("0303"), "the key itself stays here");
    let foreign = Segment { own_cache: false, ..segment(&mine) };
    assert_eq!(Kind::LlamaServer.body(&foreign)["cache_prompt"], json!(false));
    assert_eq!(Kind::LlamaServer.body(&foreign)["id_slot"], json!(1));
}

#[test]
fn what_an_engine_cannot_do_is_refused_in_words() {
    let refused = |kind: Kind, change: &dyn Fn(&mut GenerateRequest)| {
        let mut request = request();
        change(&mut request);
        match kind.check(&request) {
            Err(EngineError::Invalid(why)) => why,
            other => panic!("{kind:?}: {other:?}"),
        }
    };
    for kind in ALL {
        assert_eq!(kind.check(&request()), Ok(()));
        assert!(refused(kind, &|request| request.grammar = Some("start: /a/".into())).contains("grammar"));
        assert!(!kind.features().contains(Features::SEEDED) && !kind.features().contains(Features::GRAMMAR));
    }
    let presence = |request: &mut GenerateRequest| request.sampling.presence_penalty = 1.0;
    assert!(refused(Kind::LlamaServer, &presence).starts_with("llama-server counts the prompt"));
    assert!(refused(Kind::TensorRtLlm, &|request| request.top_logprobs = Some(0)).contains("by text"));
    for kind in [Kind::Vllm, Kind::TensorRtLlm] {
        assert!(
            refused(kind, &|request| (request.sampling.repeat_penalty, request.sampling.repeat_last_n) = (1.1, 4))
                .contains("repeat penalty")
        );
        assert!(refused(kind, &|request| request.sampling.logit_bias = vec![(1, 101.0)]).contains("logit_bias"));
    }
    assert!(refused(Kind::Vllm, &|request| request.sampling.temperature = 3.0).contains("temperature"));
    assert!(refused(Kind::Vllm, &|request| request.sampling.frequency_penalty = 3.0).contains("penalty"));
}

#[test]
fn penalties_go_on_after_a_failover() {
    let mut continued = request();
    continued.tokens = vec![1, 2, 3, 9, 9];
    continued.sampling.frequency_penalty = 0.5;
    continued.sampling.presence_penalty = 0.25;
    continued.sampling.logit_bias = vec![(9, 1.0), (4, -3.0)];
    assert_eq!(body(Kind::Vllm, &continued)["logit_bias"], json!({"4": -3.0, "9": -0.25}));
    assert_eq!(body(Kind::TensorRtLlm, &continued)["prompt_ignore_length"], json!(3));
    assert_eq!(body(Kind::TensorRtLlm, &request()).get("prompt_ignore_length"), None, "old servers refuse the field");
}

fn out(token: Token, logprob: Option<f32>, top: &[(Token, f32)]) -> TokenOut {
    TokenOut { token, logprob, top: top.to_vec() }
}

/// As llama.cpp's server sends them (build of llama-cpp-python 0.3.36).
#[test]
fn llama_servers_chunks_are_read() {
    let event = br#"{"index":0,"content":"I","tokens":[57],"stop":false,"id_slot":-1,"tokens_predicted":1,
        "tokens_evaluated":14,"completion_probabilities":[{"id":57,"token":"I","bytes":[73],"logprob":-1.5,
        "top_logprobs":[{"id":57,"token":"I","bytes":[73],"logprob":-1.5},{"id":504,"token":"The","bytes":[84],
        "logprob":-2.0}]}]}"#;
    let chunk = Kind::LlamaServer.read(event).unwrap();
    assert_eq!(chunk.tokens, [out(57, Some(-1.5), &[(57, -1.5), (504, -2.0)])]);
    assert_eq!((chunk.generated, chunk.text.as_slice(), chunk.end), (Some(1), &b"I"[..], None));
    let last = br#"{"tokens":[],"stop":true,"stop_type":"limit","tokens_predicted":30,
        "timings":{"cache_n":9,"prompt_n":5,"prompt_ms":12.5}}"#;
    let chunk = Kind::LlamaServer.read(last).unwrap();
    assert_eq!((chunk.end, chunk.cached_tokens, chunk.prefill), (Some(End::Length), Some(9), Some((5, 12.5))));
}

/// As vLLM 0.32 sends them.
#[test]
fn vllms_chunks_are_read() {
    let event = br#"{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"I",
        "logprobs":{"text_offset":[0],"token_logprobs":[-1.5],"tokens":["token_id:57"],
        "top_logprobs":[{"token_id:504":-2.0,"token_id:57":-1.5}]},"finish_reason":null,"stop_reason":null,
        "prompt_token_ids":null,"token_ids":[57]}]}"#;
    assert_eq!(Kind::Vllm.read(event).unwrap().tokens, [out(57, Some(-1.5), &[(57, -1.5), (504, -2.0)])]);
    let stop = br#"{"choices":[{"index":0,"text":"","finish_reason":"stop","stop_reason":2,"token_ids":[2]}]}"#;
    assert_eq!(Kind::Vllm.read(stop).unwrap().end, Some(End::Stop(Some(2))));
    let usage = br#"{"choices":[],"usage":{"prompt_tokens":14,"prompt_tokens_details":{"cached_tokens":8}}}"#;
    assert_eq!(Kind::Vllm.read(usage).unwrap(), Chunk { cached_tokens: Some(8), ..Chunk::default() });
}

#[test]
fn nonsense_is_refused() {
    let bad: [&[u8]; 9] = [
        b"",
        b"{",
        b"[]",
        b"\xFF",
        br#"{"error":{"message":"x"}}"#,
        br#"{"tokens":[-1],"tokens_predicted":1}"#,
        br#"{"tokens":[1]}"#,
        br#"{"tokens":[],"tokens_predicted":1,"stop":true,"stop_type":"whim"}"#,
        br#"{"tokens":[99999999999],"tokens_predicted":1}"#,
    ];
    bad.iter().for_each(|data| assert!(Kind::LlamaServer.read(data).is_err(), "{data:?}"));
    let bad: [&[u8]; 6] = [
        b"{",
        b"\xFF",
        br#"{"error":{"message":"x"}}"#,
        br#"{"choices":[{"index":0,"text":"no ids"}]}"#,
        br#"{"choices":[{"token_ids":[-5]}]}"#,
        br#"{"choices":[{"token_ids":[1],"finish_reason":"cancelled"}]}"#,
    ];
    bad.iter().for_each(|data| assert!(Kind::Vllm.read(data).is_err(), "{data:?}"));
}
