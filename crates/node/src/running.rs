//! The chains that this gateway's answers go through at this moment, for people.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use opengrid_protocol::SessionId;
use parking_lot::Mutex;

use crate::{
    chains::ChainStage,
    handle::{NodeIdText, PipelineRow, PipelineStage},
};

/// Rows that are told at once.
const ROWS_MAX: usize = 64;

#[derive(Clone, Default)]
pub struct RunningChains(Arc<Mutex<BTreeMap<u64, PipelineRow>>>);

impl RunningChains {
    pub fn rows(&self) -> Vec<PipelineRow> {
        self.0.lock().values().take(ROWS_MAX).cloned().collect()
    }

    /// Lists a chain, while the value lives.
    pub fn begin(&self, session: SessionId, model: &str) -> Listed {
        let row = PipelineRow { model: model.to_owned(), stages: Vec::new(), tokens: 0, lap_ms: None, put_together: 0 };
        self.0.lock().insert(session.0, row);
        Listed { chains: self.clone(), session: session.0 }
    }
}

/// A chain in the list.
pub struct Listed {
    chains: RunningChains,
    session: u64,
}

impl Listed {
    /// The chain was put together: its stages, each with the way to the next one in microseconds.
    pub fn runs_over(&self, chain: &[ChainStage], ways_us: &[u64]) {
        let stage = |(stage, way_us): (&ChainStage, &u64)| PipelineStage {
            peer_id: NodeIdText(stage.node),
            layers: stage.layers.to_string(),
            compute_ms: stage.visit_us as f64 / 1_000.0,
            way_ms: *way_us as f64 / 1_000.0,
        };
        let stages = chain.iter().zip(ways_us).map(stage).collect();
        if let Some(row) = self.chains.0.lock().get_mut(&self.session) {
            row.stages = stages;
            row.put_together += 1;
        }
    }

    /// So many tokens of the answer are known, the last ones after so long.
    pub fn advanced(&self, tokens: u32, lap: Duration) {
        if let Some(row) = self.chains.0.lock().get_mut(&self.session) {
            row.tokens = tokens;
            row.lap_ms = Some(lap.as_secs_f64() * 1_000.0);
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.chains.0.lock().remove(&self.session);
    }
}
