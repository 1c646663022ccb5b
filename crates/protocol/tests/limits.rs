//! Each limit of a record or message holds at its edge and is named when broken.
#![allow(clippy::unwrap_used)]

use opengrid_protocol::{
    ModelRoot, NodeId, Record, Sampling, SessionId,
    beacon::{Beacon, Class, Features},
    codec::{self, DecodeError},
    limits::*,
    pipeline::{Carried, Cells, Hop, Order, PartId, ToStage},
    sealing_key::{SealingKey, XWING_PUBLIC_BYTES},
    session::{Embed, Open, ToGateway, ToWorker},
};

/// What `change` makes of a good value is refused, for a reason that says so.
fn refused<T: Clone>(good: &T, check: impl Fn(&T) -> Result<(), DecodeError>, change: impl Fn(&mut T), reason: &str) {
    assert_eq!(check(good), Ok(()));
    let mut bad = good.clone();
    change(&mut bad);
    match check(&bad) {
        Err(DecodeError::Invalid(why)) => assert!(why.contains(reason), "{why:?} does not say {reason:?}"),
        other => panic!("{other:?} instead of {reason:?}"),
    }
}

fn open() -> Open {
    Open {
        session: SessionId(1),
        model: ModelRoot([0; 32]),
        tokens: vec![7; PROMPT_TOKENS_MAX],
        prompt_tokens: PROMPT_TOKENS_MAX as u32,
        completion_tokens_max: COMPLETION_TOKENS_MAX,
        stop_tokens: vec![2; STOP_TOKENS_MAX],
        sampling: sampling(),
        top_logprobs: Some(TOP_LOGPROBS_MAX),
        grammar: Some("a".repeat(GRAMMAR_BYTES_MAX)),
        tier: opengrid_protocol::session::Tier::Priority,
    }
}

/// Every parameter at an edge of its range.
fn sampling() -> Sampling {
    Sampling {
        seed: u64::MAX,
        choice: u32::MAX,
        temperature: 100.0,
        top_k: u32::MAX,
        top_p: 1.0,
        min_p: 1.0,
        presence_penalty: -100.0,
        frequency_penalty: 100.0,
        repeat_penalty: 0.01,
        repeat_last_n: 65_536,
        logit_bias: vec![(u32::MAX, 1e4); LOGIT_BIAS_MAX],
    }
}

#[test]
fn sessions() {
    let check = |change: fn(&mut Open), reason: &str| refused(&open(), Open::check, change, reason);
    check(|open| open.tokens.clear(), "at least one token");
    check(|open| open.tokens.push(1), "too many prompt tokens");
    check(|open| open.prompt_tokens = 0, "prompt_tokens");
    check(|open| open.prompt_tokens += 1, "prompt_tokens");
    check(|open| open.completion_tokens_max += 1, "completion_tokens_max");
    check(|open| open.stop_tokens.push(1), "stop tokens");
    check(|open| open.top_logprobs = Some(TOP_LOGPROBS_MAX + 1), "top_logprobs");
    check(|open| open.sampling.temperature = -1.0, "temperature");
}

fn embed() -> Embed {
    let mut texts = vec![vec![7; 1]; EMBED_TEXTS_MAX];
    texts[0] = vec![7; PROMPT_TOKENS_MAX - EMBED_TEXTS_MAX + 1];
    Embed { session: SessionId(1), model: ModelRoot([0; 32]), texts }
}

#[test]
fn texts() {
    let check = |change: fn(&mut Embed), reason: &str| refused(&embed(), Embed::check, change, reason);
    check(|embed| embed.texts.clear(), "no texts");
    check(|embed| embed.texts.push(vec![1]), "too many");
    check(|embed| embed.texts[3].clear(), "at least one token");
    check(|embed| embed.texts[3].push(1), "too many tokens");
}

#[test]
fn the_largest_texts_and_vectors_fit_a_frame() {
    let mut largest = embed();
    largest.texts.iter_mut().flatten().for_each(|token| *token = u32::MAX);
    let vectors = vec![vec![f32::MAX; EMBEDDING_WIDTH_MAX as usize]; EMBED_TEXTS_MAX];
    let texts = codec::encode(&ToWorker::Embed(Box::new(largest)));
    let vectors = codec::encode(&ToGateway::Embedded { session: SessionId(u64::MAX), vectors });
    for bytes in [texts, vectors] {
        assert!(bytes.len() < FRAME_BYTES_MAX * 9 / 10, "{} bytes leave no room for sealing", bytes.len());
    }
}

#[test]
fn the_largest_session_fits_a_frame() {
    let mut largest = open();
    largest.tokens = vec![u32::MAX; PROMPT_TOKENS_MAX];
    let bytes = codec::encode(&ToWorker::Open(Box::new(largest)));
    assert!(bytes.len() < FRAME_BYTES_MAX * 9 / 10, "{} bytes leave no room for sealing", bytes.len());
}

#[test]
fn cells_of_a_cache() {
    let cells = Cells { layout: [1; 16], of: POSITIONS_MAX, cells: vec![0; ROWS_BYTES_MAX].into() };
    let piece = ToStage {
        part: PartId([2; 16]),
        epoch: 1,
        lap: 0,
        from: POSITIONS_MAX - 1,
        carried: Carried::Cells(cells.clone()),
    };
    assert!(codec::encode(&piece).len() < FRAME_BYTES_MAX);
    let changed = |from, of, bytes: usize| {
        let carried = Carried::Cells(Cells { of, cells: vec![0; bytes].into(), ..cells.clone() });
        ToStage { from, carried, ..piece.clone() }
    };
    assert_eq!(piece.check(), Ok(()));
    for bad in [
        changed(POSITIONS_MAX, POSITIONS_MAX, 8),
        changed(0, POSITIONS_MAX + 1, 8),
        changed(0, 0, 8),
        changed(0, 8, 0),
        changed(0, 8, ROWS_BYTES_MAX + 1),
    ] {
        assert!(bad.check().is_err());
    }
    let hop = Hop { node: NodeId([3; 32]), part: PartId([4; 16]) };
    let until = |until| Order::HandOver { to: hop, epoch: 1, until };
    assert_eq!(until(POSITIONS_MAX).check(), Ok(()));
    assert!(until(POSITIONS_MAX + 1).check().is_err());
}

#[test]
fn sampling_parameters() {
    let check = |change: fn(&mut Sampling), reason: &str| refused(&sampling(), Sampling::check, change, reason);
    check(|sampling| sampling.temperature = 100.1, "temperature");
    check(|sampling| sampling.temperature = f32::NAN, "temperature");
    check(|sampling| sampling.top_p = 1.01, "top_p");
    check(|sampling| sampling.top_p = -0.1, "top_p");
    check(|sampling| sampling.min_p = f32::INFINITY, "min_p");
    check(|sampling| sampling.presence_penalty = -101.0, "presence_penalty");
    check(|sampling| sampling.frequency_penalty = f32::NAN, "frequency_penalty");
    check(|sampling| sampling.repeat_penalty = 0.0, "repeat_penalty");
    check(|sampling| sampling.repeat_last_n += 1, "repeat_last_n");
    check(|sampling| sampling.logit_bias.push((0, 0.0)), "logit_bias");
    check(|sampling| sampling.logit_bias[0].1 = f32::NEG_INFINITY, "logit_bias");
}

#[test]
fn beacons() {
    let good = Beacon {
        model: ModelRoot([0; 32]),
        model_id: "x".repeat(MODEL_ID_BYTES_MAX),
        class: Class::Approximate,
        features: Features::EMBEDDED,
        sequence: 0,
        issued_ms: 0,
        life_ms: BEACON_LIFE_MS_MAX,
        context_tokens: 0,
        slots: 0,
        slots_busy: 0,
        queued: 0,
        decode_millitokens_per_s: 0,
        prefill_millitokens_per_s: 0,
        draining: false,
        stage: None,
    };
    refused(&good, Beacon::check, |beacon| beacon.life_ms += 1, "lives too long");
    refused(&good, Beacon::check, |beacon| beacon.model_id.push('x'), "model id");
    refused(&good, Beacon::check, |beacon| beacon.model_id.clear(), "model id");
    let last_ms = Beacon { issued_ms: u64::MAX, ..good };
    assert_eq!(last_ms.validity_ms(), (u64::MAX, u64::MAX));
}

#[test]
fn sealing_keys() {
    let life_ms = SEALING_KEY_LIFE_MS + SEALING_KEY_OVERLAP_MS;
    let good =
        SealingKey { key_id: [0; 8], public: vec![0; XWING_PUBLIC_BYTES], issued_ms: 5, expires_ms: 5 + life_ms };
    refused(&good, SealingKey::check, |key| key.expires_ms += 1, "lives too long");
    refused(&good, SealingKey::check, |key| key.public.push(0), "1,216 bytes");
}
