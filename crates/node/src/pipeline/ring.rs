//! What came out of a part, by position: what waits to be sent, and what was sent, for a stage that takes a lost one's
//! place. Pure, bounded.

use std::ops::Range;

use bytes::Bytes;

/// The latest rows of one session.
pub struct Ring {
    row_bytes: usize,
    bytes_max: usize,
    /// Position of the first row that is kept.
    first: u32,
    rows: Vec<u8>,
}

impl std::fmt::Debug for Ring {
    /// Without the rows, which tell of the text.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({:?} of {} bytes each)", self.kept(), self.row_bytes)
    }
}

impl Ring {
    /// Keeps at most `bytes_max` bytes, at least one row.
    pub fn new(row_bytes: usize, bytes_max: usize) -> Self {
        Self { row_bytes: row_bytes.max(1), bytes_max: bytes_max.max(row_bytes), first: 0, rows: Vec::new() }
    }

    /// Takes rows of positions from `from` on, in place of all from there on. Rows that do not continue what is kept begin
    /// the ring anew.
    pub fn push(&mut self, from: u32, rows: &[u8]) {
        if from < self.first || from > self.end() {
            self.first = from;
            self.rows.clear();
        }
        self.rows.truncate((from - self.first) as usize * self.row_bytes);
        self.rows.extend_from_slice(rows);
        let over = self.rows.len().saturating_sub(self.bytes_max).div_ceil(self.row_bytes);
        // In large steps: each moves what is left.
        if over > 0 {
            let dropped = (over + self.bytes_max / self.row_bytes / 8).min(self.rows.len() / self.row_bytes);
            self.rows.drain(..dropped * self.row_bytes);
            self.first += dropped as u32;
        }
    }

    /// Forgets all; what comes next is at `first`.
    pub fn begin_at(&mut self, first: u32) {
        self.first = first;
        self.rows.clear();
    }

    /// Forgets positions from `end` on.
    pub fn truncate(&mut self, end: u32) {
        let kept = end.clamp(self.first, self.end()) - self.first;
        self.rows.truncate(kept as usize * self.row_bytes);
        if end < self.first {
            self.first = end;
        }
    }

    /// Positions that are kept.
    pub fn kept(&self) -> Range<u32> {
        self.first..self.end()
    }

    fn end(&self) -> u32 {
        self.first + (self.rows.len() / self.row_bytes) as u32
    }

    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    pub fn bytes(&self) -> usize {
        self.rows.len()
    }

    /// The rows of `positions`; `None` where one of them is not kept.
    pub fn rows(&self, positions: Range<u32>) -> Option<Bytes> {
        let kept = self.kept();
        if positions.start < kept.start || positions.end > kept.end || positions.is_empty() {
            return None;
        }
        let at = |position: u32| (position - self.first) as usize * self.row_bytes;
        Some(Bytes::copy_from_slice(&self.rows[at(positions.start)..at(positions.end)]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(position: u32, version: u8) -> [u8; 4] {
        [position as u8, (position >> 8) as u8, version, 7]
    }

    #[test]
    fn what_is_sent_again_takes_the_place_of_what_was_there() {
        let mut ring = Ring::new(4, 1 << 20);
        let rows = |range: Range<u32>, version| range.flat_map(|at| row(at, version)).collect::<Vec<u8>>();
        ring.push(0, &rows(0..10, 1));
        ring.push(7, &rows(7..9, 2));
        assert_eq!(ring.kept(), 0..9);
        assert_eq!(ring.rows(6..8).unwrap(), [row(6, 1), row(7, 2)].concat());
        assert!(ring.rows(8..10).is_none());
        ring.push(20, &rows(20..21, 3));
        assert_eq!(ring.kept(), 20..21, "a gap begins anew");
    }

    proptest! {
        #[test]
        fn the_latest_rows_are_kept_within_the_bound(steps in prop::collection::vec((0_u32..6, 1_u32..40), 1..60)) {
            let (mut ring, mut truth) = (Ring::new(4, 200), Vec::<u8>::new());
            for (version, (back, count)) in steps.into_iter().enumerate() {
                let from = (truth.len() as u32).saturating_sub(back).max(ring.kept().start);
                truth.truncate(from as usize);
                truth.extend((0..count).map(|_| version as u8));
                let rows: Vec<u8> = (from..from + count).flat_map(|at| row(at, version as u8)).collect();
                ring.push(from, &rows);
                prop_assert!(ring.bytes() <= 200);
                let kept = ring.kept();
                prop_assert_eq!(kept.end as usize, truth.len());
                for position in kept {
                    prop_assert_eq!(ring.rows(position..position + 1).unwrap()[2], truth[position as usize]);
                }
            }
        }
    }
}
