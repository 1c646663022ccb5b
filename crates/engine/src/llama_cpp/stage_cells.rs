//! Caches of sessions that move between stages, at the stage's child.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{messages::Progress, stage_child::Server};
use crate::cells::Layout;

/// Cells of one frame at most, in bytes: rows of other sessions go in between.
const PIECE_BYTES_MAX: usize = 256 * 1024;
/// Pieces that are written between two steps.
const PIECES_AT_ONCE: usize = 8;

/// Cells that leave, and those that came but are not complete.
pub(super) struct Moves {
    /// `None`: caches of this kind stay where they are.
    pub layout: Option<Layout>,
    /// Which sessions are to leave next: a cache is read between two steps, one at a time.
    asked: VecDeque<Asked>,
    leaving: VecDeque<Leaving>,
    /// By slot.
    came: Vec<Vec<u8>>,
}

struct Asked {
    id: u64,
    until: usize,
    tag: u32,
}

struct Leaving {
    id: u64,
    tag: u32,
    cells: Bytes,
    of: u32,
    sent: u32,
}

impl Moves {
    pub fn new(layout: Option<Layout>, slots: usize) -> Self {
        Self { layout, asked: VecDeque::new(), leaving: VecDeque::new(), came: vec![Vec::new(); slots] }
    }

    /// Nothing waits to be read or written.
    pub fn idle(&self) -> bool {
        self.asked.is_empty() && self.leaving.is_empty()
    }

    /// The first `until` cells of a session are to leave; what was asked of it before is not.
    pub fn ask(&mut self, id: u64, until: usize, tag: u32) {
        self.asked.retain(|asked| asked.id != id);
        self.leaving.retain(|leaving| leaving.id != id);
        self.asked.push_back(Asked { id, until, tag });
    }

    /// The session ended.
    pub fn forget(&mut self, id: u64, slot: usize) {
        self.asked.retain(|asked| asked.id != id);
        self.leaving.retain(|leaving| leaving.id != id);
        self.goes_without(slot);
    }

    /// The session begins without what came.
    pub fn goes_without(&mut self, slot: usize) {
        self.came[slot] = Vec::new();
    }

    /// The next pieces of those that leave.
    pub fn pieces(&mut self) -> Vec<(u64, Progress)> {
        let mut pieces = Vec::new();
        let cell_bytes = self.layout.as_ref().map_or(1, |layout| layout.cell_bytes().max(1));
        while pieces.len() < PIECES_AT_ONCE
            && let Some(leaving) = self.leaving.front_mut()
        {
            let count = (PIECE_BYTES_MAX / cell_bytes).max(1).min((leaving.of - leaving.sent) as usize);
            let cells = leaving.cells.split_to(count * cell_bytes);
            let (from, of, tag) = (leaving.sent, leaving.of, leaving.tag);
            pieces.push((leaving.id, Progress::Cells { tag, from, of, cells }));
            leaving.sent += count as u32;
            if leaving.sent == leaving.of {
                self.leaving.pop_front();
            }
        }
        pieces
    }
}

impl Server<'_> {
    /// Begins to give the cells of the next session that was asked for, or all that it has.
    pub(super) fn export_next(&mut self) -> Result<(), String> {
        if !self.moves.leaving.is_empty() {
            return Ok(());
        }
        let Some(Asked { id, until, tag }) = self.moves.asked.pop_front() else { return Ok(()) };
        let Some(slot) = self.spans.slot(id) else { return Ok(()) };
        let has = self.spans.computed_rows(slot);
        let of = until.min(has);
        let refuse = |why: &str| Progress::CellsRefused(why.to_owned());
        let Some(layout) = &self.moves.layout else {
            self.emit(id, refuse("caches of this model stay where they are"));
            return Ok(());
        };
        if of == 0 {
            self.emit(id, refuse("there are no cells"));
            return Ok(());
        }
        match self.context.slot_cells(layout, slot, has)? {
            Some(mut cells) => {
                cells.truncate(of * layout.cell_bytes());
                let leaving = Leaving { id, tag, cells: cells.into(), of: of as u32, sent: 0 };
                self.moves.leaving.push_back(leaving);
            }
            None => self.emit(id, refuse("cells of this session are missing: a window passed over them")),
        }
        Ok(())
    }

    /// Takes cells for a session that has none. What does not fit leaves the session empty.
    pub(super) fn import(&mut self, id: u64, cells: &[u8], last: bool) {
        let Some(slot) = self.spans.slot(id) else { return };
        let Some(layout) = &self.moves.layout else { return };
        let came = &mut self.moves.came[slot];
        let most = self.context_tokens * layout.cell_bytes();
        if came.len() + cells.len() > most {
            *came = Vec::new();
            return self.emit(id, Progress::CellsRefused("more cells than the context holds".to_owned()));
        }
        came.extend_from_slice(cells);
        if !last {
            return;
        }
        let came = std::mem::take(came);
        let count = came.len() / layout.cell_bytes();
        if !self.spans.is_fresh(slot) {
            return self.emit(id, Progress::CellsRefused("the session has begun".to_owned()));
        }
        match self.context.fill_slot(layout, slot, &came) {
            Ok(()) => {
                self.spans.filled(slot, count);
                self.emit(id, Progress::Imported(count as u32));
            }
            Err(why) => self.emit(id, Progress::CellsRefused(why)),
        }
    }
}
