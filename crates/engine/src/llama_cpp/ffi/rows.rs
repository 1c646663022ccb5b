//! Rows between layers: in as embeddings, out of the last layer, and those of tokens from the model's token table.

use std::{
    ffi::{CStr, CString, c_void},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use llama_cpp_sys_2 as sys;
use opengrid_protocol::session::Token;
use parking_lot::Mutex;

use super::{BatchToken, Context, Model, last_error};

/// Consecutive rows of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub slot: usize,
    /// Position of the first row.
    pub from: usize,
    pub rows: usize,
    /// Of how many of the last rows the logits are wanted.
    pub outputs: usize,
}

/// Keeps what comes out of one layer.
pub struct Capture {
    name: CString,
    rows: Mutex<Vec<f32>>,
}

impl Capture {
    /// llama.cpp's graphs call the output of layer N `l_out-N`.
    pub(super) fn of_last_layer(model: &Model) -> Result<Self, String> {
        // SAFETY: reads a field of a live model.
        let layers = unsafe { sys::llama_model_n_layer(model.ptr()) };
        let name = CString::new(format!("l_out-{}", layers - 1)).map_err(|error| error.to_string())?;
        Ok(Self { name, rows: Mutex::default() })
    }

    pub(super) fn wants(&self, node: &sys::ggml_tensor) -> bool {
        // SAFETY: the name is an array that ends in a NUL.
        unsafe { CStr::from_ptr(node.name.as_ptr()) == self.name.as_c_str() }
    }

    pub(super) fn take(&self, node: &sys::ggml_tensor) {
        let mut rows = self.rows.lock();
        let node = std::ptr::from_ref(node);
        // SAFETY: the node was just computed; its size is asked for first, and exactly so many bytes are copied. What is
        // no contiguous F32 is left out: the rows are missing then.
        unsafe {
            if (*node).type_ != sys::GGML_TYPE_F32 || !sys::ggml_is_contiguous(node) {
                return;
            }
            let count = usize::try_from(sys::ggml_nelements(node)).unwrap_or(0);
            rows.resize(count, 0.0);
            sys::ggml_backend_tensor_get(node, rows.as_mut_ptr().cast::<c_void>(), 0, count * size_of::<f32>());
        }
    }
}

impl Context<'_> {
    /// Computes rows that come out of the layer before the first one. `spans` ascend by slot, at most one a slot;
    /// `rows` holds theirs in that order.
    ///
    /// # Errors
    /// Spans out of range, and failures of llama.cpp: the cache is in doubt then, the process must end.
    pub fn decode_rows(&mut self, spans: &[Span], rows: &[f32]) -> Result<(), String> {
        self.check_spans(spans, rows)?;
        self.rows_out.clear();
        if self.watch.capture.is_none() {
            return self.decode_embeddings(spans, rows);
        }
        self.rows_out.resize(rows.len(), 0.0);
        for part in even_parts(spans) {
            self.decode_part(spans, &part, rows)?;
        }
        Ok(())
    }

    /// The rows that came out of the last layer in the last [`Context::decode_rows`], in the order of the rows that
    /// went in. Empty unless [`ContextOptions::rows_out`](super::ContextOptions::rows_out).
    pub fn rows_out(&self) -> &[f32] {
        &self.rows_out
    }

    fn check_spans(&self, spans: &[Span], rows: &[f32]) -> Result<(), String> {
        let count: usize = spans.iter().map(|span| span.rows).sum();
        let ascending = spans.windows(2).all(|pair| pair[0].slot < pair[1].slot);
        let sound = |span: &Span| span.slot < self.slots && span.rows > 0 && span.outputs <= span.rows;
        if !ascending || !spans.iter().all(sound) || count > self.batch || rows.len() != count * self.width {
            return Err(format!("{} spans of {count} rows do not fit a step", spans.len()));
        }
        Ok(())
    }

    /// One call in which all slots have equally many rows and follow each other: llama.cpp makes one graph of it, in the
    /// order of the rows (`llama_batch_allocr::split_equal`), so it is known whose rows come out.
    fn decode_part(&mut self, spans: &[Span], part: &Part, rows: &[f32]) -> Result<(), String> {
        let places: Vec<usize> = part.slots.clone().map(|span| part.first_row(spans, span) * self.width).collect();
        let length = part.rows * self.width;
        let part_spans: Vec<Span> = part
            .slots
            .clone()
            .map(|span| Span {
                from: spans[span].from + part.done,
                rows: part.rows,
                outputs: part.rows,
                slot: spans[span].slot,
            })
            .collect();
        let part_rows: Vec<f32> = places.iter().flat_map(|&at| &rows[at..at + length]).copied().collect();
        self.decode_embeddings(&part_spans, &part_rows)?;
        let Some(capture) = &self.watch.capture else { return Ok(()) };
        let mut captured = capture.rows.lock();
        if captured.len() != part_rows.len() {
            return Err("the last layer gave other rows than went in".to_owned());
        }
        for (from, &to) in captured.chunks_exact(length).zip(&places) {
            self.rows_out[to..to + length].copy_from_slice(from);
        }
        captured.clear();
        Ok(())
    }

    fn decode_embeddings(&mut self, spans: &[Span], rows: &[f32]) -> Result<(), String> {
        let entries: Vec<BatchToken> = spans
            .iter()
            .flat_map(|span| {
                (0..span.rows).map(|row| BatchToken {
                    token: 0,
                    position: span.from + row,
                    slot: span.slot,
                    output: row + span.outputs >= span.rows,
                })
            })
            .collect();
        self.outputs.clear();
        self.outputs.extend(entries.iter().map(|entry| entry.output));
        let mut batch = self.buffers.fill(&entries);
        batch.token = std::ptr::null_mut();
        // llama.cpp only reads them.
        batch.embd = rows.as_ptr().cast_mut();
        // SAFETY: all arrays of the batch have `n_tokens` entries (`embd` has `width` numbers for each, as checked) and
        // live during the call; sequence ids were checked.
        match unsafe { sys::llama_decode(self.ptr(), batch) } {
            0 => Ok(()),
            code => Err(last_error(&format!("llama_decode returned {code}"))),
        }
    }
}

/// Rows `done..done + rows` of each of some consecutive spans.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// Indices of spans.
    slots: std::ops::Range<usize>,
    done: usize,
    rows: usize,
}

impl Part {
    /// Index of the first row of `span` in this part among the rows of all spans.
    fn first_row(&self, spans: &[Span], span: usize) -> usize {
        spans[..span].iter().map(|span| span.rows).sum::<usize>() + self.done
    }
}

/// Cuts spans into parts of equally many rows of neighbouring slots, as llama.cpp does itself.
fn even_parts(spans: &[Span]) -> Vec<Part> {
    let mut done = vec![0; spans.len()];
    let mut parts = Vec::new();
    let left = |done: &[usize], span: usize| spans[span].rows - done[span];
    while let Some(first) = (0..spans.len()).find(|&span| left(&done, span) > 0) {
        let follows = |span: &usize| {
            *span == first
                || (spans[*span].slot == spans[*span - 1].slot + 1
                    && left(&done, *span) > 0
                    && done[*span] == done[first])
        };
        let end = (first..spans.len()).take_while(follows).last().map_or(first, |last| last) + 1;
        let rows = (first..end).map(|span| left(&done, span)).min().unwrap_or(0);
        parts.push(Part { slots: first..end, done: done[first], rows });
        done[first..end].iter_mut().for_each(|done| *done += rows);
    }
    parts
}

/// The rows of tokens, read from the model's file.
pub struct TokenTable {
    file: File,
    offset: u64,
    width: usize,
    tokens: u64,
    row_bytes: usize,
    scale: f32,
    /// `None`: the numbers are F32 as they lie there.
    to_float: Option<unsafe extern "C" fn(*const c_void, *mut f32, i64)>,
    buffer: Vec<u8>,
}

impl TokenTable {
    /// `kind` is ggml's number of the table's type; the others are as in `opengrid_models::slice::Embedding`.
    ///
    /// # Errors
    /// A type that llama.cpp cannot make numbers of, or sizes that do not fit it.
    pub fn new(
        file: File,
        [offset, width, tokens, row_bytes]: [u64; 4],
        kind: u32,
        scale: f32,
    ) -> Result<Self, String> {
        let refuse = || format!("the token table (type {kind}, rows of {width}) cannot be read");
        let number = Some(kind).filter(|kind| *kind < sys::GGML_TYPE_COUNT).ok_or_else(refuse)?;
        let columns = i64::try_from(width).map_err(|_| refuse())?;
        // SAFETY: the type lies in ggml's list, whose entries are static.
        let (block, size, to_float) = unsafe {
            let traits = sys::ggml_get_type_traits(number);
            ((*traits).blck_size, sys::ggml_row_size(number, columns), (*traits).to_float)
        };
        let is_float = number == sys::GGML_TYPE_F32;
        let fits = block > 0 && columns % block == 0 && size as u64 == row_bytes && width > 0;
        if !fits || (to_float.is_none() && !is_float) {
            return Err(refuse());
        }
        let to_float = if is_float { None } else { to_float };
        Ok(Self { file, offset, width: width as usize, tokens, row_bytes: size, scale, to_float, buffer: Vec::new() })
    }

    /// Appends the rows of `tokens` to `rows`.
    ///
    /// # Errors
    /// A token outside the table; the file cannot be read.
    pub fn look_up(&mut self, tokens: &[Token], rows: &mut Vec<f32>) -> io::Result<()> {
        for token in tokens {
            let token = u64::from(*token);
            if token >= self.tokens {
                return Err(io::Error::other("a token is out of range"));
            }
            self.buffer.resize(self.row_bytes, 0);
            self.file.seek(SeekFrom::Start(self.offset + token * self.row_bytes as u64))?;
            self.file.read_exact(&mut self.buffer)?;
            let start = rows.len();
            rows.resize(start + self.width, 0.0);
            self.convert(&mut rows[start..]);
        }
        Ok(())
    }

    fn convert(&self, row: &mut [f32]) {
        match self.to_float {
            // SAFETY: `new` checked that a row of this type with `width` numbers has `row_bytes` bytes, which the buffer
            // has; `row` has `width` numbers.
            Some(to_float) => unsafe {
                to_float(self.buffer.as_ptr().cast(), row.as_mut_ptr(), row.len() as i64);
            },
            None => {
                for (number, bytes) in row.iter_mut().zip(self.buffer.as_chunks().0) {
                    *number = f32::from_le_bytes(*bytes);
                }
            }
        }
        if self.scale != 1.0 {
            row.iter_mut().for_each(|number| *number *= self.scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_cover_every_row_once_and_are_even(counts in prop::collection::vec((1_usize..9, 1_usize..3), 1..7)) {
            let mut slot = 0;
            let spans: Vec<Span> = counts.iter().map(|(rows, gap)| {
                slot += gap;
                Span { slot, from: slot * 10, rows: *rows, outputs: 0 }
            }).collect();
            let total: usize = counts.iter().map(|(rows, _)| rows).sum();
            let mut seen = vec![0; total];
            for part in even_parts(&spans) {
                let neighbours = part.slots.clone().skip(1).all(|span| spans[span].slot == spans[span - 1].slot + 1);
                prop_assert!(neighbours && part.rows > 0);
                for span in part.slots.clone() {
                    let first = part.first_row(&spans, span);
                    (first..first + part.rows).for_each(|row| seen[row] += 1);
                }
            }
            prop_assert!(seen.iter().all(|times| *times == 1), "{seen:?}");
        }
    }
}
