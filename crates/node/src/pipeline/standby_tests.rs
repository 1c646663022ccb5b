#![allow(clippy::unwrap_used)]

use async_trait::async_trait;
use opengrid_engine::{EngineError, GenerateRequest, Load, Stage, StageCapabilities, StageSession};
use opengrid_protocol::{
    SessionId,
    beacon::Class,
    pipeline::{Hop, Route, STANDBY_EPOCH},
};

use super::*;

const WIDTH: usize = 256;
const ROW: usize = WIDTH * size_of::<f32>();

/// It computes nothing.
struct Rows;

#[async_trait]
impl Stage for Rows {
    fn capabilities(&self) -> StageCapabilities {
        StageCapabilities {
            layers: layers(),
            layer_count: 30,
            width: WIDTH as u32,
            class: Class::Approximate,
            context_tokens: 1_000,
            slots: 1,
            decode_tokens_per_s: 1.0,
            prefill_tokens_per_s: 1.0,
            memory_bytes: 0,
            cells: None,
            description: String::new(),
        }
    }

    fn load(&self) -> Load {
        Load::default()
    }

    fn check(&self, input: &Input) -> Result<(), EngineError> {
        match input {
            Input::Rows(rows) if rows.len().is_multiple_of(ROW) && rows[0] != 0xff => Ok(()),
            _ => Err(EngineError::Busy),
        }
    }

    fn check_cells(&self, _: &[u8; 16], _: &[u8]) -> Result<u32, EngineError> {
        Err(EngineError::Busy)
    }

    fn open(&self, _: Option<GenerateRequest>) -> Result<StageSession, EngineError> {
        Err(EngineError::Busy)
    }

    async fn shutdown(&self) {}
}

fn layers() -> Layers {
    Layers::new(10, 20).unwrap()
}

fn node(id: u8) -> NodeId {
    NodeId([id; 32])
}

fn asked(id: u8) -> Standby {
    let (session, part, model) = (SessionId(id.into()), PartId([id; 16]), ModelRoot([0; 32]));
    Standby { session, part, model, layers: layers(), sender: node(2) }
}

fn rows(id: u8, from: u32, count: usize) -> ToStage {
    let carried = Carried::Rows(vec![id; count * ROW].into());
    ToStage { part: PartId([id; 16]), epoch: STANDBY_EPOCH, lap: 0, from, carried }
}

fn taken(standbys: &Standbys, gateway: NodeId, id: u8, layers: Layers) -> usize {
    let Standby { session, part, model, .. } = asked(id);
    let route = Route { epoch: 2, previous: node(2), next: Hop { node: node(4), part: PartId([4; 16]) } };
    let opening = OpenPart { session, part, model, layers, route, positions_max: 100, head: None };
    standbys.take(gateway, &opening).iter().map(Bytes::len).sum()
}

#[test]
fn only_the_named_sender_fills_a_standby_and_only_its_gateway_opens_it() {
    let standbys = Standbys::default();
    let guard = standbys.add(node(1), &asked(5), Arc::new(Rows)).unwrap();
    assert!(standbys.add(node(9), &asked(5), Arc::new(Rows)).is_err(), "the id is in use");
    assert_eq!(standbys.put(node(2), rows(6, 0, 1)), Put::Unknown);
    assert_eq!(standbys.put(node(3), rows(5, 0, 1)), Put::Foreign);
    assert_eq!(standbys.put(node(2), rows(5, 0, 3)), Put::Kept, "a stranger did no harm");
    assert_eq!(standbys.put(node(2), rows(5, 3, 2)), Put::Kept);
    assert_eq!(standbys.kept().0, 5 * ROW);
    assert_eq!(taken(&standbys, node(9), 5, layers()), 0, "another gateway");
    assert_eq!(taken(&standbys, node(1), 5, Layers::new(10, 30).unwrap()), 0, "other layers");
    assert_eq!(taken(&standbys, node(1), 5, layers()), 5 * ROW);
    assert!(!standbys.has(&guard) && standbys.kept().0 == 0);
    assert_eq!(standbys.put(node(2), rows(5, 5, 1)), Put::Unknown, "it was opened meanwhile");
}

#[test]
fn rows_that_cannot_be_used_end_a_standby() {
    let standbys = Standbys::default();
    let wrong = [
        rows(5, 2, 1),
        rows(5, 0, 1),
        ToStage { carried: Carried::Rows(vec![0xff; ROW].into()), ..rows(5, 1, 1) },
        ToStage { carried: Carried::Rows(vec![5; ROW - 4].into()), ..rows(5, 1, 1) },
        ToStage { carried: Carried::Tokens(vec![1]), ..rows(5, 1, 1) },
    ];
    for message in wrong {
        let guard = standbys.add(node(1), &asked(5), Arc::new(Rows)).unwrap();
        assert_eq!(standbys.put(node(2), rows(5, 0, 1)), Put::Kept);
        assert_eq!(standbys.put(node(2), message.clone()), Put::Bad, "{message:?}");
        assert!(!standbys.has(&guard) && standbys.kept().0 == 0);
    }
}

#[test]
fn memory_is_bounded_and_given_back() {
    let standbys = Standbys::default();
    let piece = 900;
    let fill = |gateway: u8, id: u8| {
        let guard = standbys.add(node(gateway), &asked(id), Arc::new(Rows)).unwrap();
        let mut from = 0;
        while standbys.put(node(2), rows(id, from, piece)) == Put::Kept {
            from += piece as u32;
        }
        assert!(!standbys.has(&guard), "what does not fit ends");
        from as usize * ROW
    };
    assert!((STANDBY_BYTES_MAX - piece * ROW..=STANDBY_BYTES_MAX).contains(&fill(1, 1)));
    let mut guards = Vec::new();
    for id in 10..18 {
        let gateway = node(id / 3);
        let guard = standbys.add(gateway, &asked(id), Arc::new(Rows)).unwrap();
        let full = (0..35).find(|at| standbys.put(node(2), rows(id, at * piece as u32, piece)) != Put::Kept);
        assert!(standbys.kept().0 <= ALL_BYTES_MAX);
        guards.push((guard, full));
    }
    let of_one = (BYTES_OF_ONE_MAX / STANDBY_BYTES_MAX).min(3);
    assert!(guards[..of_one].iter().all(|(_, full)| full.is_none()));
    assert!(guards.iter().any(|(_, full)| full.is_some()), "one gateway cannot have all of it");
    drop(guards);
    assert_eq!(standbys.kept().0, 0, "nothing outlives who asked for it");
    let many: Vec<_> = (0..=u8::MAX).map(|id| standbys.add(node(1), &asked(id), Arc::new(Rows)).is_ok()).collect();
    assert!(many.iter().all(|added| *added), "each guard was dropped at once");
    let held: Vec<_> = (0..=u8::MAX).map_while(|id| standbys.add(node(1), &asked(id), Arc::new(Rows)).ok()).collect();
    assert_eq!(held.len(), COUNT_OF_ONE_MAX);
    assert!(standbys.add(node(2), &asked(255), Arc::new(Rows)).is_ok(), "another gateway's have room");
}
