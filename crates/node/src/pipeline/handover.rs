//! Caches that move from part to part: the room for them at a node, and the order in which they come.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use opengrid_protocol::limits::HANDED_BYTES_MAX;

/// What moves at this node, and what did.
#[derive(Default)]
pub struct Handovers {
    bytes: Arc<AtomicUsize>,
    /// Caches that parts here took over whole.
    pub taken: AtomicU64,
    /// Those that came damaged, or not at all, or found no room.
    pub failed: AtomicU64,
}

impl Handovers {
    /// Room for a cache; none where too much is under way.
    pub fn reserve(&self, bytes: usize) -> Option<Reserved> {
        let reserve = |reserved: usize| reserved.checked_add(bytes).filter(|total| *total <= HANDED_BYTES_MAX);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).ok()?;
        Some(Reserved { of: self.bytes.clone(), bytes })
    }

    pub fn count(&self, taken: bool) {
        if taken { &self.taken } else { &self.failed }.fetch_add(1, Ordering::Relaxed);
    }
}

/// Given back on drop.
pub struct Reserved {
    of: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The pieces of a cache, of which each must continue the one before.
#[derive(Debug)]
pub struct Pieces {
    /// Most positions that may come.
    most: u32,
    next: u32,
    /// As the first one said.
    of: Option<u32>,
}

impl Pieces {
    pub fn new(most: u32) -> Self {
        Self { most, next: 0, of: None }
    }

    /// Whether this many positions may come in all. Asked before anything of a piece is kept.
    ///
    /// # Errors
    /// No honest part sends this.
    pub fn announced(&mut self, of: u32) -> Result<(), &'static str> {
        let known = *self.of.get_or_insert(of);
        if of == known && of <= self.most {
            Ok(())
        } else {
            Err("more cells than the part may have, or than were announced")
        }
    }

    /// Takes a piece; true for the last one.
    ///
    /// # Errors
    /// No honest part sends this.
    pub fn take(&mut self, from: u32, count: u32) -> Result<bool, &'static str> {
        let of = self.of.ok_or("nothing was announced")?;
        let end = from.checked_add(count).filter(|end| *end <= of).ok_or("more cells than were announced")?;
        if from != self.next || count == 0 {
            return Err("cells out of order");
        }
        self.next = end;
        Ok(end == of)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_and_given_back() {
        let handovers = Handovers::default();
        let first = handovers.reserve(HANDED_BYTES_MAX - 10).unwrap();
        assert!(handovers.reserve(11).is_none());
        assert!(handovers.reserve(usize::MAX).is_none());
        let second = handovers.reserve(10).unwrap();
        drop(first);
        assert!(handovers.reserve(HANDED_BYTES_MAX - 10).is_some());
        drop(second);
        assert!(handovers.reserve(HANDED_BYTES_MAX).is_some());
    }

    #[test]
    fn pieces_come_in_order_and_no_more_than_announced() {
        let mut pieces = Pieces::new(100);
        assert!(pieces.take(0, 1).is_err(), "of how many?");
        pieces.announced(100).unwrap();
        assert_eq!(pieces.take(0, 60), Ok(false));
        assert!(pieces.announced(99).is_err(), "another number");
        for (from, count) in [(0, 10), (61, 10), (60, 0), (60, 41), (60, u32::MAX), (59, 2)] {
            assert!(pieces.take(from, count).is_err(), "{from} {count}");
        }
        assert_eq!(pieces.take(60, 40), Ok(true));
        assert!(Pieces::new(100).announced(101).is_err());
    }
}
