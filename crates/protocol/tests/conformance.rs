//! The bytes of one value of every kind, against `conformance.txt`: a change on the wire is never silent. Another
//! implementation can be tested against the same file.
#![allow(clippy::unwrap_used)]

use std::{fmt::Write as _, path::Path};

use opengrid_protocol::{
    Layers, ModelRoot, NodeId, Sampling, SessionId, Signed,
    beacon::{Beacon, Class, Features, StageBeacon},
    codec,
    content::{ContentRequest, ContentResponse, Manifest},
    frame,
    invite::Invite,
    pipeline::{Carried, Cells, Complaint, Hop, OpenPart, Order, PartId, PartState, Route, Standby, ToStage},
    sealing_key::SealingKey,
    session::{Embed, Finish, Open, Refusal, Tier, ToGateway, ToWorker, TokenOut, Usage},
};

const HEADER: &str =
    "# name: bytes in hexadecimal (or text). Written by UPDATE_GOLDEN=1 cargo test -p opengrid-protocol.
# A line that changes is a change of the wire protocol: old and new nodes would not understand each other.
";

#[derive(Default)]
struct Snapshot(String);

impl Snapshot {
    fn text(&mut self, name: &str, text: &str) {
        writeln!(self.0, "{name}: {text}").unwrap();
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        self.text(name, &hex::encode(bytes));
    }

    /// The encoding of `value`, which also decodes to `value`.
    fn value<T>(&mut self, name: &str, value: &T)
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let bytes = codec::encode(value);
        assert_eq!(codec::decode::<T>(&bytes, bytes.len()).as_ref(), Ok(value));
        self.bytes(name, &bytes);
    }
}

fn counting<const N: usize>(from: u8) -> [u8; N] {
    std::array::from_fn(|i| from.wrapping_add(i as u8))
}

fn sampling() -> Sampling {
    Sampling {
        seed: 0x0123_4567_89ab_cdef,
        choice: 2,
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        presence_penalty: 0.5,
        frequency_penalty: -0.5,
        repeat_penalty: 1.1,
        repeat_last_n: 64,
        logit_bias: vec![(9, -100.0), (49_151, 2.5)],
    }
}

fn sessions(snapshot: &mut Snapshot) {
    let (session, model) = (SessionId(0xfedc_ba98), ModelRoot(counting(0)));
    let open = Open {
        session,
        model,
        tokens: vec![1, 200, 49_151, u32::MAX],
        prompt_tokens: 3,
        completion_tokens_max: 256,
        stop_tokens: vec![0, 2],
        sampling: sampling(),
        top_logprobs: Some(5),
        grammar: Some("start: /a+/".into()),
        tier: Tier::Priority,
    };
    let plain =
        Open { sampling: Sampling::greedy(), top_logprobs: None, grammar: None, tier: Tier::Default, ..open.clone() };
    snapshot.value("to_worker.open", &ToWorker::Open(Box::new(open)));
    snapshot.value("to_worker.open.greedy", &ToWorker::Open(Box::new(plain)));
    snapshot.value("to_worker.cancel", &ToWorker::Cancel { session });
    let embed = Embed { session, model, texts: vec![vec![101, 7_592, 102], vec![101, 102]] };
    snapshot.value("to_worker.embed", &ToWorker::Embed(Box::new(embed)));
    snapshot.value("to_gateway.accepted", &ToGateway::Accepted { session, queued: 3 });
    let tokens = vec![
        TokenOut { token: 200, logprob: None, top: vec![] },
        TokenOut { token: 7, logprob: Some(-0.25), top: vec![(7, -0.25), (8, -1.5)] },
    ];
    snapshot.value("to_gateway.tokens", &ToGateway::Tokens { session, from: 130, tokens });
    let usage = Usage { cached_tokens: 100, prefilled_tokens: 28, generated_tokens: 256 };
    snapshot.value("to_gateway.finished.stop", &ToGateway::Finished { session, finish: Finish::Stop(2), usage });
    snapshot.value("to_gateway.finished.length", &ToGateway::Finished { session, finish: Finish::Length, usage });
    let refusals = [
        ("busy", Refusal::Busy),
        ("draining", Refusal::Draining),
        ("model_not_served", Refusal::ModelNotServed),
        ("context_too_small", Refusal::ContextTooSmall { context_tokens: 8_192 }),
        ("invalid", Refusal::Invalid("too many stop tokens".into())),
        ("engine_failed", Refusal::EngineFailed),
    ];
    for (name, why) in refusals {
        snapshot.value(&format!("to_gateway.refused.{name}"), &ToGateway::Refused { session, why });
    }
    snapshot.value("to_gateway.heartbeat", &ToGateway::Heartbeat);
    let vectors = vec![vec![0.6, -0.8], vec![1.0, 0.0]];
    snapshot.value("to_gateway.embedded", &ToGateway::Embedded { session, vectors });
}

fn pipelines(snapshot: &mut Snapshot) {
    let (session, model) = (SessionId(0xfedc_ba98), ModelRoot(counting(0)));
    let (part, other) = (PartId(counting(0x50)), PartId(counting(0x60)));
    let route = Route { epoch: 2, previous: NodeId(counting(1)), next: Hop { node: NodeId(counting(2)), part: other } };
    let head = Open {
        session,
        model,
        tokens: vec![1, 2],
        prompt_tokens: 2,
        completion_tokens_max: 8,
        stop_tokens: vec![0],
        sampling: Sampling::greedy(),
        top_logprobs: None,
        grammar: None,
        tier: Tier::Default,
    };
    let layers = Layers::new(20, 30).unwrap();
    let middle = OpenPart { session, part, model, layers, route: route.clone(), positions_max: 300, head: None };
    let last = OpenPart { head: Some(Box::new(head)), ..middle.clone() };
    snapshot.value("to_worker.open_part", &ToWorker::OpenPart(Box::new(middle)));
    snapshot.value("to_worker.open_part.last", &ToWorker::OpenPart(Box::new(last)));
    let orders = [
        ("hand_over", Order::HandOver { to: route.next, epoch: 3, until: 199 }),
        ("take_over", Order::TakeOver { from: NodeId(counting(1)) }),
        ("rewire", Order::Rewire(route)),
        ("start", Order::Start { keep: 130, send_from: 200 }),
        ("feed", Order::Feed { from: 130, tokens: vec![1, 49_151] }),
        ("again", Order::Again),
        ("meet", Order::Meet(vec![NodeId(counting(6))])),
        ("prepare", Order::Prepare { standby: Hop { node: NodeId(counting(6)), part: other }, until: 300 }),
    ];
    for (name, order) in orders {
        snapshot.value(&format!("to_worker.order.{name}"), &ToWorker::Order { session, order });
    }
    let standby = Standby { session, part, model, layers, sender: NodeId(counting(1)) };
    snapshot.value("to_worker.standby", &ToWorker::Standby(Box::new(standby)));
    let state = PartState { have: 200, kept_from: 10, sent: 199, drew: true };
    snapshot.value("to_gateway.rewired", &ToGateway::Rewired { session, epoch: 2, state });
    snapshot.value("to_gateway.leaves", &ToGateway::Leaves { session });
    for (name, complaint) in [
        ("next_unreachable", Complaint::NextUnreachable),
        ("bad_input", Complaint::BadInput),
        ("cannot_hand_over", Complaint::CannotHandOver),
    ] {
        snapshot.value(&format!("to_gateway.complains.{name}"), &ToGateway::Complains { session, epoch: 2, complaint });
    }
    let rows = Carried::Rows([0, 0, 128, 63].to_vec().into());
    snapshot.value("to_stage.rows", &ToStage { part, epoch: 2, lap: 0, from: 130, carried: rows });
    let tokens = Carried::Tokens(vec![200, 7]);
    snapshot.value("to_stage.tokens", &ToStage { part, epoch: 2, lap: 3, from: 131, carried: tokens });
    let cells = Cells { layout: counting(0x70), of: 199, cells: [0, 60, 0, 188].to_vec().into() };
    snapshot.value("to_stage.cells", &ToStage { part, epoch: 3, lap: 0, from: 64, carried: Carried::Cells(cells) });
}

fn records(snapshot: &mut Snapshot) {
    let beacon = Beacon {
        model: ModelRoot(counting(0)),
        model_id: "smollm2-135m".into(),
        class: Class::Exact(counting(0x40)),
        features: Features::EMBEDDED,
        sequence: 1_000,
        issued_ms: 1_800_000_000_000,
        life_ms: 8_000,
        context_tokens: 8_192,
        slots: 4,
        slots_busy: 1,
        queued: 0,
        decode_millitokens_per_s: 90_000,
        prefill_millitokens_per_s: 400_000,
        draining: false,
        stage: None,
    };
    let approximate = Beacon { class: Class::Approximate, features: Features::EMBED, draining: true, ..beacon.clone() };
    let key = SealingKey {
        key_id: counting(0x10),
        public: counting::<1_216>(0).to_vec(),
        issued_ms: 1_800_000_000_000,
        expires_ms: 1_800_003_600_000,
    };
    snapshot.value("beacon", &beacon);
    snapshot.value("beacon.approximate", &approximate);
    let stage = StageBeacon {
        layers: Layers::new(10, 20).unwrap(),
        layer_count: 30,
        width: 576,
        delays: vec![(NodeId(counting(7)), 20_500)],
    };
    snapshot.value("beacon.stage", &Beacon { stage: Some(stage), ..beacon.clone() });
    snapshot.value("sealing_key", &key);
    snapshot.bytes("signed.beacon", &Signed::seal(&beacon, &counting(1)).to_bytes());
    snapshot.bytes("signed.sealing_key", &Signed::seal(&key, &counting(1)).to_bytes());
}

fn content(snapshot: &mut Snapshot) {
    let root = ModelRoot(counting(0));
    snapshot.value("content_request.manifest", &ContentRequest::Manifest { root });
    snapshot.value("content_request.chunk", &ContentRequest::Chunk { root, index: 93 });
    let manifest = Manifest { size: 98_362_432, chunks: vec![counting(1), counting(2)] };
    snapshot.value("content_response.manifest", &ContentResponse::Manifest(manifest));
    snapshot.value("content_response.chunk", &ContentResponse::Chunk { bytes: 1_048_576 });
    snapshot.value("content_response.not_here", &ContentResponse::NotHere);
    snapshot.value("content_response.busy", &ContentResponse::Busy);
}

fn texts(snapshot: &mut Snapshot) {
    let node = NodeId(counting(0));
    snapshot.text("node_id", &node.to_string());
    snapshot.text("model_root", &ModelRoot(counting(0)).to_string());
    let addresses = vec![vec![4, 127, 0, 0, 1, 6, 0x11, 0x76], vec![4, 127, 0, 0, 1, 0x91, 2, 0x11, 0x76, 0xcd, 3]];
    let invite = Invite { node, addresses, private: false };
    assert_eq!(Invite::from_text(&invite.to_text()), Ok(invite.clone()));
    snapshot.text("invite", &invite.to_text());
    snapshot.text("invite.private", &Invite { private: true, ..invite }.to_text());
    snapshot.bytes("frame", &frame::encode(b"body", 4).unwrap());
}

#[test]
fn the_wire_is_that_of_the_conformance_file() {
    let mut snapshot = Snapshot(HEADER.into());
    sessions(&mut snapshot);
    pipelines(&mut snapshot);
    records(&mut snapshot);
    content(&mut snapshot);
    texts(&mut snapshot);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &snapshot.0).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    for (found, expected) in snapshot.0.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(snapshot.0.lines().count(), expected.lines().count());
}
