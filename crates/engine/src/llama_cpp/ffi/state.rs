//! The cells of one slot, out of a context and into it.

use llama_cpp_sys_2 as sys;

use super::{Context, Span, last_error};
use crate::cells::Layout;

impl Context<'_> {
    /// How this context lays out cells; slot 0 must be empty, and is again afterwards.
    ///
    /// # Errors
    /// llama.cpp fails, or lays them out in a way that [`Layout`] does not know.
    pub fn learn_layout(&mut self) -> Result<Layout, String> {
        let row = vec![0.0; self.width];
        self.decode_rows(&[Span { slot: 0, from: 0, rows: 1, outputs: 0 }], &row)?;
        let state = self.slot_state(0);
        self.truncate(0, 0);
        Layout::learn(&state?, 0).map_err(|error| error.to_string())
    }

    /// The first `count` cells of a slot, which has no others, or `None` where they do not lie as [`Layout`] says: a window
    /// has passed over some.
    ///
    /// # Errors
    /// llama.cpp fails.
    pub fn slot_cells(&mut self, layout: &Layout, slot: usize, count: usize) -> Result<Option<Vec<u8>>, String> {
        let state = self.slot_state(slot)?;
        Ok(layout.cells(&state, slot as u32, count as u32).ok())
    }

    /// Fills a slot with cells at positions from 0 on, in place of what it has; they were checked by [`Layout::check`].
    ///
    /// # Errors
    /// llama.cpp refuses them: the slot is empty then.
    pub fn fill_slot(&mut self, layout: &Layout, slot: usize, cells: &[u8]) -> Result<(), String> {
        if slot >= self.slots {
            return Err("there is no such slot".to_owned());
        }
        self.truncate(slot, 0);
        let state = layout.state(slot as u32, cells);
        // SAFETY: pointer and length belong together and are only read, within the call; the sequence id lies within the
        // context's `n_seq_max`. The bytes are what this context writes itself for so many cells.
        let taken = unsafe { sys::llama_state_seq_set_data(self.ptr(), state.as_ptr(), state.len(), slot as i32) };
        let count = cells.len() / layout.cell_bytes().max(1);
        if taken == state.len() && self.last_position(slot) == Some(count.saturating_sub(1)) {
            return Ok(());
        }
        self.truncate(slot, 0);
        Err(last_error("llama.cpp refuses the cells"))
    }

    fn last_position(&self, slot: usize) -> Option<usize> {
        // SAFETY: the context is live and the sequence id lies within its `n_seq_max`.
        let last = unsafe { sys::llama_memory_seq_pos_max(sys::llama_get_memory(self.ptr()), slot as i32) };
        usize::try_from(last).ok()
    }

    fn slot_state(&mut self, slot: usize) -> Result<Vec<u8>, String> {
        if slot >= self.slots {
            return Err("there is no such slot".to_owned());
        }
        // SAFETY: the context is live and the sequence id lies within its `n_seq_max`.
        let bytes = unsafe { sys::llama_state_seq_get_size(self.ptr(), slot as i32) };
        let mut state = vec![0; bytes];
        // SAFETY: as above; llama.cpp writes at most `bytes` bytes, which the buffer has.
        let written = unsafe { sys::llama_state_seq_get_data(self.ptr(), state.as_mut_ptr(), bytes, slot as i32) };
        if written == bytes && bytes > 0 { Ok(state) } else { Err(last_error("llama.cpp gives no cells")) }
    }
}
