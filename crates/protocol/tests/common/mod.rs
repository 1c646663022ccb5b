//! Arbitrary values of every wire type; floats are any bits, NaN included.
#![allow(dead_code)]

use opengrid_protocol::{
    Layers, ModelRoot, NodeId, Sampling, SessionId, Signed,
    beacon::{Beacon, Class, Features, StageBeacon},
    content::{ContentRequest, ContentResponse, Manifest},
    invite::Invite,
    pipeline::{Carried, Cells, Complaint, Hop, OpenPart, Order, PartId, PartState, Route, Standby, ToStage},
    sealing_key::SealingKey,
    session::{Embed, Finish, Open, Refusal, Tier, ToGateway, ToWorker, Token, TokenOut, Usage},
};
use proptest::{collection::vec, prelude::*};

pub fn node() -> impl Strategy<Value = NodeId> {
    any::<[u8; 32]>().prop_map(NodeId)
}

pub fn root() -> impl Strategy<Value = ModelRoot> {
    any::<[u8; 32]>().prop_map(ModelRoot)
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<u64>().prop_map(SessionId)
}

fn float() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

pub fn sampling() -> impl Strategy<Value = Sampling> {
    let floats = [(); 6].map(|()| float());
    (any::<[u64; 1]>(), any::<[u32; 3]>(), floats, vec((any::<u32>(), float()), 0..5)).prop_map(
        |([seed], [choice, top_k, repeat_last_n], floats, logit_bias)| {
            let [temperature, top_p, min_p, presence_penalty, frequency_penalty, repeat_penalty] = floats;
            Sampling {
                seed,
                choice,
                temperature,
                top_k,
                top_p,
                min_p,
                presence_penalty,
                frequency_penalty,
                repeat_penalty,
                repeat_last_n,
                logit_bias,
            }
        },
    )
}

fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![Just(Tier::Flex), Just(Tier::Default), Just(Tier::Priority)]
}

prop_compose! {
    pub fn open()(
        session in session(), model in root(), tokens in vec(any::<Token>(), 0..50), prompt_tokens: u32,
        completion_tokens_max: u32, stop_tokens in vec(any::<Token>(), 0..5), sampling in sampling(),
        top_logprobs: Option<u8>, grammar: Option<String>, tier in tier(),
    ) -> Open {
        Open {
            session, model, tokens, prompt_tokens, completion_tokens_max, stop_tokens, sampling, top_logprobs, grammar,
            tier,
        }
    }
}

pub fn to_worker() -> impl Strategy<Value = ToWorker> {
    prop_oneof![
        open().prop_map(|open| ToWorker::Open(Box::new(open))),
        session().prop_map(|session| ToWorker::Cancel { session }),
        (session(), root(), vec(vec(any::<Token>(), 0..10), 0..5))
            .prop_map(|(session, model, texts)| ToWorker::Embed(Box::new(Embed { session, model, texts }))),
        open_part().prop_map(|part| ToWorker::OpenPart(Box::new(part))),
        (session(), order()).prop_map(|(session, order)| ToWorker::Order { session, order }),
        standby().prop_map(|standby| ToWorker::Standby(Box::new(standby))),
    ]
}

fn layers() -> impl Strategy<Value = Layers> {
    (0_u32..4_000, 1_u32..96)
        .prop_map(|(from, count)| Layers::new(from, from + count))
        .prop_filter_map("a range", Result::ok)
}

fn part() -> impl Strategy<Value = PartId> {
    any::<[u8; 16]>().prop_map(PartId)
}

prop_compose! {
    fn route()(epoch: u32, previous in node(), node in node(), part in part()) -> Route {
        Route { epoch, previous, next: Hop { node, part } }
    }
}

prop_compose! {
    fn open_part()(
        session in session(), part in part(), model in root(), layers in layers(), route in route(), positions_max: u32,
        head in prop::option::of(open()),
    ) -> OpenPart {
        OpenPart { session, part, model, layers, route, positions_max, head: head.map(Box::new) }
    }
}

prop_compose! {
    fn standby()(
        session in session(), part in part(), model in root(), layers in layers(), sender in node(),
    ) -> Standby {
        Standby { session, part, model, layers, sender }
    }
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        route().prop_map(Order::Rewire),
        any::<(u32, u32)>().prop_map(|(keep, send_from)| Order::Start { keep, send_from }),
        (any::<u32>(), vec(any::<Token>(), 0..20)).prop_map(|(from, tokens)| Order::Feed { from, tokens }),
        Just(Order::Again),
        vec(node(), 0..4).prop_map(Order::Meet),
        (route(), any::<u32>()).prop_map(|(Route { epoch, next: to, .. }, until)| Order::HandOver { to, epoch, until }),
        node().prop_map(|from| Order::TakeOver { from }),
        (node(), part(), any::<u32>())
            .prop_map(|(node, part, until)| Order::Prepare { standby: Hop { node, part }, until }),
    ]
}

pub fn to_stage() -> impl Strategy<Value = ToStage> {
    let carried = prop_oneof![
        vec(any::<u8>(), 0..200).prop_map(|rows| Carried::Rows(rows.into())),
        vec(any::<Token>(), 0..20).prop_map(Carried::Tokens),
        (any::<[u8; 16]>(), any::<u32>(), vec(any::<u8>(), 0..200))
            .prop_map(|(layout, of, cells)| Carried::Cells(Cells { layout, of, cells: cells.into() })),
    ];
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>());
    (part(), numbers, carried).prop_map(|(part, (epoch, lap, from), carried)| ToStage {
        part,
        epoch,
        lap,
        from,
        carried,
    })
}

prop_compose! {
    fn token_out()(
        token: Token, logprob in prop::option::of(float()), top in vec((any::<Token>(), float()), 0..4),
    ) -> TokenOut {
        TokenOut { token, logprob, top }
    }
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        Just(Refusal::Busy),
        Just(Refusal::Draining),
        Just(Refusal::ModelNotServed),
        any::<u32>().prop_map(|context_tokens| Refusal::ContextTooSmall { context_tokens }),
        any::<String>().prop_map(Refusal::Invalid),
        Just(Refusal::EngineFailed),
    ]
}

fn finish() -> impl Strategy<Value = Finish> {
    prop_oneof![any::<Token>().prop_map(Finish::Stop), Just(Finish::Length)]
}

fn usage() -> impl Strategy<Value = Usage> {
    any::<[u32; 3]>().prop_map(|[cached_tokens, prefilled_tokens, generated_tokens]| Usage {
        cached_tokens,
        prefilled_tokens,
        generated_tokens,
    })
}

pub fn to_gateway() -> impl Strategy<Value = ToGateway> {
    prop_oneof![
        (session(), any::<u32>()).prop_map(|(session, queued)| ToGateway::Accepted { session, queued }),
        (session(), any::<u32>(), vec(token_out(), 0..5)).prop_map(|(session, from, tokens)| ToGateway::Tokens {
            session,
            from,
            tokens
        }),
        (session(), finish(), usage()).prop_map(|(session, finish, usage)| ToGateway::Finished {
            session,
            finish,
            usage
        }),
        (session(), refusal()).prop_map(|(session, why)| ToGateway::Refused { session, why }),
        Just(ToGateway::Heartbeat),
        (session(), vec(vec(float(), 0..8), 0..5))
            .prop_map(|(session, vectors)| ToGateway::Embedded { session, vectors }),
        (session(), any::<u32>(), any::<(u32, u32, u32, bool)>()).prop_map(
            |(session, epoch, (have, kept_from, sent, drew))| {
                ToGateway::Rewired { session, epoch, state: PartState { have, kept_from, sent, drew } }
            }
        ),
        (session(), any::<u32>(), complaint()).prop_map(|(session, epoch, complaint)| ToGateway::Complains {
            session,
            epoch,
            complaint
        }),
        session().prop_map(|session| ToGateway::Leaves { session }),
    ]
}

fn complaint() -> impl Strategy<Value = Complaint> {
    prop_oneof![Just(Complaint::NextUnreachable), Just(Complaint::BadInput), Just(Complaint::CannotHandOver)]
}

prop_compose! {
    fn stage_beacon()(
        layers in layers(), width in 1_u32.., delays in vec((node(), any::<u32>()), 0..4),
    ) -> StageBeacon {
        let layer_count = layers.to() as u16 + u16::from(layers.from() == 0);
        StageBeacon { layers, layer_count, width, delays }
    }
}

pub fn class() -> impl Strategy<Value = Class> {
    prop_oneof![any::<[u8; 16]>().prop_map(Class::Exact), Just(Class::Approximate)]
}

prop_compose! {
    pub fn beacon()(
        model in root(), model_id: String, class in class(), longs: [u64; 3], ints: [u32; 3], shorts: [u16; 3],
        draining: bool, features: u32, stage in prop::option::of(stage_beacon()),
    ) -> Beacon {
        let [sequence, issued_ms, life_ms] = longs;
        let [context_tokens, decode_millitokens_per_s, prefill_millitokens_per_s] = ints;
        let [slots, slots_busy, queued] = shorts;
        Beacon {
            model, model_id, class, features: Features(features), sequence, issued_ms, life_ms, context_tokens, slots, slots_busy, queued,
            decode_millitokens_per_s, prefill_millitokens_per_s, draining, stage,
        }
    }
}

prop_compose! {
    pub fn sealing_key()(
        key_id: [u8; 8], public in vec(any::<u8>(), 0..1_300), issued_ms: u64, expires_ms: u64,
    ) -> SealingKey {
        SealingKey { key_id, public, issued_ms, expires_ms }
    }
}

pub fn content_request() -> impl Strategy<Value = ContentRequest> {
    prop_oneof![
        root().prop_map(|root| ContentRequest::Manifest { root }),
        (root(), any::<u32>()).prop_map(|(root, index)| ContentRequest::Chunk { root, index }),
    ]
}

pub fn content_response() -> impl Strategy<Value = ContentResponse> {
    prop_oneof![
        (any::<u64>(), vec(any::<[u8; 32]>(), 0..20))
            .prop_map(|(size, chunks)| ContentResponse::Manifest(Manifest { size, chunks })),
        any::<u32>().prop_map(|bytes| ContentResponse::Chunk { bytes }),
        Just(ContentResponse::NotHere),
        Just(ContentResponse::Busy),
    ]
}

prop_compose! {
    pub fn signed()(
        signer in node(), payload in vec(any::<u8>(), 0..200), signature in vec(any::<u8>(), 0..80),
    ) -> Signed {
        Signed { signer, payload, signature }
    }
}

prop_compose! {
    pub fn invite()(
        node in node(), addresses in vec(vec(any::<u8>(), 0..300), 0..20), private: bool,
    ) -> Invite {
        Invite { node, addresses, private }
    }
}
