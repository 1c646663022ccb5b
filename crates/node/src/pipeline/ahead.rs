//! What a part sends ahead to a standby: a copy of the rows that are known to be true, from the first on. Pure.

use bytes::Bytes;
use opengrid_protocol::{limits::STANDBY_BYTES_MAX, pipeline::Hop};

use super::flow::Flow;

/// A piece that goes ahead, in bytes: short beside what else wants to leave.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Where rows go ahead, and which.
#[derive(Debug, Default)]
pub struct Ahead {
    standby: Option<Hop>,
    /// Rows below are true.
    until: u32,
    sent: u32,
    stopped: bool,
}

impl Ahead {
    /// The gateway says who stands by, and how far rows are true. Whether that is another than before.
    pub fn prepare(&mut self, standby: Hop, until: u32) -> bool {
        let is_new = self.standby != Some(standby);
        if is_new {
            *self = Self { standby: Some(standby), ..Self::default() };
        }
        self.until = self.until.max(until);
        is_new
    }

    /// This standby gets no more.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    pub fn standby(&self) -> Option<Hop> {
        self.standby
    }

    /// How many rows may leave now.
    fn next_count(&self, flow: &Flow) -> u32 {
        let (kept, row_bytes) = (flow.kept(), flow.row_bytes());
        // What the ring lost is not sent: the rest would be of no use.
        if self.standby.is_none() || self.stopped || kept.start > self.sent {
            return 0;
        }
        let most = self.sent + (PIECE_BYTES_MAX / row_bytes).max(1) as u32;
        let end = most.min(self.until).min(kept.end).min((STANDBY_BYTES_MAX / row_bytes) as u32);
        end.saturating_sub(self.sent)
    }

    /// Whether [`Ahead::next`] has something, and how many bytes.
    pub fn next_bytes(&self, flow: &Flow) -> Option<usize> {
        let count = self.next_count(flow) as usize;
        (count > 0).then(|| count * flow.row_bytes())
    }

    /// The next piece; it counts as sent.
    pub fn next(&mut self, flow: &Flow) -> Option<(u32, Bytes)> {
        let count = self.next_count(flow);
        let rows = flow.rows(self.sent..self.sent + count)?;
        let from = self.sent;
        self.sent += count;
        Some((from, rows))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use opengrid_engine::Lap;
    use opengrid_protocol::{
        NodeId,
        pipeline::{PartId, Route},
    };

    use super::*;
    use crate::pipeline::flow::Kind;

    const ROW: usize = 1024;

    fn hop(id: u8) -> Hop {
        Hop { node: NodeId([7; 32]), part: PartId([id; 16]) }
    }

    fn flow(rows: usize, ring_bytes: usize) -> Flow {
        let route = Route { epoch: 1, previous: NodeId([1; 32]), next: hop(2) };
        let mut flow = Flow::new(Kind::Middle, route, 100_000, ROW, ring_bytes);
        flow.made(Lap::default(), 0, &vec![0; rows * ROW]);
        flow
    }

    fn all(ahead: &mut Ahead, flow: &Flow) -> Vec<(u32, usize)> {
        std::iter::from_fn(|| {
            let bytes = ahead.next_bytes(flow);
            let next = ahead.next(flow).map(|(from, rows)| (from, rows.len()));
            assert_eq!(bytes, next.map(|(_, bytes)| bytes));
            next
        })
        .collect()
    }

    #[test]
    fn true_rows_go_in_small_pieces_each_once() {
        let (mut ahead, flow) = (Ahead::default(), flow(100, 1 << 20));
        assert!(all(&mut ahead, &flow).is_empty(), "nobody stands by");
        ahead.prepare(hop(1), 70);
        assert_eq!(all(&mut ahead, &flow), [(0, 32 * ROW), (32, 32 * ROW), (64, 6 * ROW)]);
        ahead.prepare(hop(1), 60);
        assert!(all(&mut ahead, &flow).is_empty(), "an older word");
        ahead.prepare(hop(1), 200);
        assert_eq!(all(&mut ahead, &flow), [(70, 30 * ROW)], "more is not there yet");
        ahead.prepare(hop(3), 5);
        assert_eq!(all(&mut ahead, &flow), [(0, 5 * ROW)], "another has nothing");
        ahead.stop();
        assert!(!ahead.prepare(hop(3), 50), "the same");
        assert!(all(&mut ahead, &flow).is_empty(), "what was under way may be lost");
        assert!(ahead.prepare(hop(4), 3));
        assert_eq!(all(&mut ahead, &flow), [(0, 3 * ROW)]);
    }

    #[test]
    fn nothing_goes_behind_a_gap_or_beyond_what_a_standby_takes() {
        let (mut ahead, lost) = (Ahead::default(), flow(100, 50 * ROW));
        ahead.prepare(hop(1), 100);
        assert!(all(&mut ahead, &lost).is_empty(), "the ring lost the first rows");
        let (mut ahead, long) = (Ahead::default(), flow(40_000, 64 << 20));
        ahead.prepare(hop(1), 40_000);
        let sent: usize = all(&mut ahead, &long).iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(sent, STANDBY_BYTES_MAX);
    }
}
