//! A session's cache on its way from one stage to another: cells by position, each with the keys and values that all
//! layers of the stage keep of one token. Pure.
//!
//! A cell holds numbers and nothing else. What llama.cpp's own format says besides them (counts, positions, types, sizes)
//! never comes from a peer: it is written anew by the [`Layout`] that this context showed when it wrote one cell itself.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How llama.cpp begins the state of one sequence.
const MAGIC: u32 = 0xaf14_3cd8;
/// ggml's numbers of the types that a cache may have here.
const F32: u32 = 0;
const F16: u32 = 1;
/// Longest cell in bytes: pieces hold whole ones.
pub const CELL_BYTES_MAX: usize = 960 * 1024;
/// Most caches of a model: one of layers that see all, one of those with a window.
const CACHES_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CellsError {
    #[error("the cache is of a kind that cannot be moved")]
    Unknown,
    #[error("the cache is not laid out as this stage lays out its own")]
    OtherLayout,
    #[error("no whole cells")]
    NotWhole,
    #[error("numbers that are none")]
    NotFinite,
}

/// How a context stores a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// One for each slot; a sequence lies in that of its slot.
    streams: u32,
    caches: Vec<Cache>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cache {
    /// Values lie by number, not by cell.
    transposed: bool,
    rotated: [u32; 2],
    layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Layer {
    key: Row,
    value: Row,
}

/// What one layer keeps of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    is_half: bool,
    numbers: u32,
}

impl Row {
    fn of(kind: u32, bytes: u64) -> Result<Self, CellsError> {
        let is_half = match kind {
            F16 => true,
            F32 => false,
            _ => return Err(CellsError::Unknown),
        };
        let size = if is_half { 2 } else { 4 };
        let numbers = u32::try_from(bytes / size).map_err(|_| CellsError::Unknown)?;
        if bytes == 0 || !bytes.is_multiple_of(size) { Err(CellsError::Unknown) } else { Ok(Self { is_half, numbers }) }
    }

    fn kind(self) -> u32 {
        if self.is_half { F16 } else { F32 }
    }

    fn number_bytes(self) -> usize {
        if self.is_half { 2 } else { 4 }
    }

    fn bytes(self) -> usize {
        (self.numbers as usize).saturating_mul(self.number_bytes())
    }

    fn is_finite(self, numbers: &[u8]) -> bool {
        if self.is_half {
            return numbers.as_chunks().0.iter().all(|half| u16::from_le_bytes(*half) & 0x7c00 != 0x7c00);
        }
        numbers.as_chunks().0.iter().all(|number| f32::from_le_bytes(*number).is_finite())
    }
}

/// What comes next in a state.
enum Next<'a> {
    /// Exactly these bytes.
    Fixed(&'a [u8]),
    /// These bytes of every cell, one cell after the other.
    OfEach(Range<usize>),
}

impl Layout {
    /// From what this context wrote for a sequence of one cell, in the slot `slot`.
    ///
    /// # Errors
    /// [`CellsError::Unknown`] for everything but keys and values of numbers at plain positions.
    pub fn learn(state: &[u8], slot: u32) -> Result<Self, CellsError> {
        let mut reader = Reader(state);
        if reader.u32()? != MAGIC || reader.u32()? != slot {
            return Err(CellsError::Unknown);
        }
        let mut layout = Self { streams: 0, caches: Vec::new() };
        while !reader.0.is_empty() {
            let streams = reader.u32()?;
            if layout.caches.len() >= CACHES_MAX || (!layout.caches.is_empty() && layout.streams != streams) {
                return Err(CellsError::Unknown);
            }
            layout.streams = streams;
            layout.caches.push(reader.cache(streams, slot)?);
        }
        let fits = (1..=CELL_BYTES_MAX).contains(&layout.cell_bytes());
        // Whatever was not looked at above differs here.
        if fits && layout.cells(state, slot, 1).is_ok() { Ok(layout) } else { Err(CellsError::Unknown) }
    }

    /// Bytes of a cell.
    pub fn cell_bytes(&self) -> usize {
        self.rows().map(|(row, _)| row.bytes()).fold(0, usize::saturating_add)
    }

    /// Names the order of the numbers in a cell, and what they are. Equal ids, equal cells.
    pub fn id(&self) -> [u8; 16] {
        let mut hash = blake3::Hasher::new_derive_key("opengrid 2026 layout of a cell");
        for cache in &self.caches {
            for number in cache.rotated.into_iter().chain([cache.layers.len() as u32]) {
                hash.update(&number.to_le_bytes());
            }
            for row in cache.layers.iter().flat_map(|layer| [layer.key, layer.value]) {
                hash.update(&row.kind().to_le_bytes()).update(&row.numbers.to_le_bytes());
            }
        }
        let mut id = [0; 16];
        hash.finalize_xof().fill(&mut id);
        id
    }

    /// How many cells these are.
    ///
    /// # Errors
    /// Parts of cells, none at all, or numbers that are not finite: attention over a free cell that holds such a number
    /// would spoil the next session of the slot, too.
    pub fn check(&self, cells: &[u8]) -> Result<u32, CellsError> {
        let cell_bytes = self.cell_bytes();
        if cells.is_empty() || cell_bytes == 0 || !cells.len().is_multiple_of(cell_bytes) {
            return Err(CellsError::NotWhole);
        }
        for cell in cells.chunks_exact(cell_bytes) {
            let finite = |(row, at): (Row, usize)| cell.get(at..at + row.bytes()).is_some_and(|it| row.is_finite(it));
            if !self.rows().all(finite) {
                return Err(CellsError::NotFinite);
            }
        }
        u32::try_from(cells.len() / cell_bytes).map_err(|_| CellsError::NotWhole)
    }

    /// The cells of a sequence that this context wrote; it has `count`, at positions from 0 on.
    ///
    /// # Errors
    /// [`CellsError::OtherLayout`] where any byte beside the numbers is not as expected: cells are missing, or lie otherwise.
    pub fn cells(&self, state: &[u8], slot: u32, count: u32) -> Result<Vec<u8>, CellsError> {
        let (cell_bytes, count) = (self.cell_bytes(), count as usize);
        let total = cell_bytes.checked_mul(count).filter(|total| *total <= state.len());
        let mut cells = vec![0; total.ok_or(CellsError::OtherLayout)?];
        let mut reader = Reader(state);
        self.walk(slot, count as u32, &mut |next| {
            match next {
                Next::Fixed(bytes) if reader.take(bytes.len())? == bytes => {}
                Next::Fixed(_) => return Err(CellsError::OtherLayout),
                Next::OfEach(place) => {
                    let numbers = reader.take(place.len() * count)?;
                    for (cell, numbers) in cells.chunks_exact_mut(cell_bytes).zip(numbers.chunks_exact(place.len())) {
                        cell[place.clone()].copy_from_slice(numbers);
                    }
                }
            }
            Ok(())
        })?;
        if reader.0.is_empty() { Ok(cells) } else { Err(CellsError::OtherLayout) }
    }

    /// What this context would write for a sequence of these cells, at positions from 0 on.
    pub fn state(&self, slot: u32, cells: &[u8]) -> Vec<u8> {
        let cell_bytes = self.cell_bytes().max(1);
        let count = cells.len() / cell_bytes;
        let mut state = Vec::with_capacity(cells.len() + count * 12 + 4_096);
        let written: Result<(), CellsError> = self.walk(slot, count as u32, &mut |next| {
            match next {
                Next::Fixed(bytes) => state.extend_from_slice(bytes),
                Next::OfEach(place) => {
                    for cell in cells.chunks_exact(cell_bytes) {
                        state.extend_from_slice(&cell[place.clone()]);
                    }
                }
            }
            Ok(())
        });
        debug_assert!(written.is_ok(), "nothing above fails");
        state
    }

    /// All rows of a cell, and where each begins in it.
    fn rows(&self) -> impl Iterator<Item = (Row, usize)> {
        let rows = self.caches.iter().flat_map(|cache| &cache.layers).flat_map(|layer| [layer.key, layer.value]);
        rows.scan(0, |at: &mut usize, row| {
            let here = *at;
            *at = at.saturating_add(row.bytes());
            Some((row, here))
        })
    }

    /// Goes through the state of a sequence, in the order of llama.cpp's `llama_kv_cache::state_write`.
    fn walk(
        &self,
        slot: u32,
        count: u32,
        visit: &mut dyn FnMut(Next<'_>) -> Result<(), CellsError>,
    ) -> Result<(), CellsError> {
        fixed(visit, &[MAGIC, slot])?;
        let mut rows = self.rows();
        for cache in &self.caches {
            fixed(visit, &[self.streams])?;
            let places: Vec<(Row, usize)> = rows.by_ref().take(cache.layers.len() * 2).collect();
            for stream in 0..self.streams {
                if stream == slot && count > 0 {
                    fixed(visit, &[count])?;
                    cache.walk(slot, count, &places, visit)?;
                } else {
                    fixed(visit, &[0])?;
                }
            }
        }
        Ok(())
    }
}

impl Cache {
    /// `places`: of key and value of each layer in turn.
    fn walk(
        &self,
        slot: u32,
        count: u32,
        places: &[(Row, usize)],
        visit: &mut dyn FnMut(Next<'_>) -> Result<(), CellsError>,
    ) -> Result<(), CellsError> {
        for position in 0..count {
            fixed(visit, &[position, 1, slot])?;
        }
        fixed(visit, &[u32::from(self.transposed), self.layers.len() as u32, self.rotated[0], self.rotated[1]])?;
        for (row, at) in places.iter().step_by(2) {
            fixed(visit, &[row.kind(), row.bytes() as u32, 0])?;
            visit(Next::OfEach(*at..at + row.bytes()))?;
        }
        for (row, at) in places.iter().skip(1).step_by(2) {
            if !self.transposed {
                fixed(visit, &[row.kind(), row.bytes() as u32, 0])?;
                visit(Next::OfEach(*at..at + row.bytes()))?;
                continue;
            }
            fixed(visit, &[row.kind(), row.number_bytes() as u32, row.numbers])?;
            for number in (*at..at + row.bytes()).step_by(row.number_bytes()) {
                visit(Next::OfEach(number..number + row.number_bytes()))?;
            }
        }
        Ok(())
    }
}

fn fixed(visit: &mut dyn FnMut(Next<'_>) -> Result<(), CellsError>, numbers: &[u32]) -> Result<(), CellsError> {
    numbers.iter().try_for_each(|number| visit(Next::Fixed(&number.to_le_bytes())))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], CellsError> {
        let (taken, left) = self.0.split_at_checked(bytes).ok_or(CellsError::OtherLayout)?;
        self.0 = left;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, CellsError> {
        let (number, left) = self.0.split_first_chunk().ok_or(CellsError::OtherLayout)?;
        self.0 = left;
        Ok(u32::from_le_bytes(*number))
    }

    fn u64(&mut self) -> Result<u64, CellsError> {
        Ok(u64::from(self.u32()?) | u64::from(self.u32()?) << 32)
    }

    /// One cache that holds one cell, which lies in the stream `slot`.
    fn cache(&mut self, streams: u32, slot: u32) -> Result<Cache, CellsError> {
        let mut cache = None;
        for stream in 0..streams {
            match self.u32()? {
                0 if stream != slot => {}
                1 if stream == slot => cache = Some(self.cell()?),
                _ => return Err(CellsError::Unknown),
            }
        }
        cache.ok_or(CellsError::Unknown)
    }

    fn cell(&mut self) -> Result<Cache, CellsError> {
        // Position, and in which sequences it is: looked at by whoever compares.
        self.take(12)?;
        let [transposed, count, rotated_key, rotated_value] = [self.u32()?, self.u32()?, self.u32()?, self.u32()?];
        let mut keys = Vec::new();
        for _ in 0..count {
            let row = Row::of(self.u32()?, self.u64()?)?;
            self.take(row.bytes())?;
            keys.push(row);
        }
        let mut layers = Vec::new();
        for key in keys {
            let kind = self.u32()?;
            let bytes = if transposed == 0 {
                self.u64()?
            } else {
                u64::from(self.u32()?).checked_mul(u64::from(self.u32()?)).ok_or(CellsError::Unknown)?
            };
            let value = Row::of(kind, bytes)?;
            self.take(value.bytes())?;
            layers.push(Layer { key, value });
        }
        Ok(Cache { transposed: transposed != 0, rotated: [rotated_key, rotated_value], layers })
    }
}

#[cfg(test)]
#[path = "cells_tests.rs"]
mod tests;
