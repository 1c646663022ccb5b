//! Which bytes of the model become which tensor of the slice.

use std::ops::Range;

use opengrid_protocol::{Layers, ModelRoot};

use super::{
    SliceError,
    architecture::{HEAD, Rules, TOKEN_TABLE, layer_of},
    metadata::{self, NO_VOCABULARY_ROWS},
};
use crate::gguf::{GgmlType, Gguf, ModelInfo, Piece, Plan, Tensor, write::Writer};

/// ggml's numbers of types.
const F32: u32 = 0;
const F16: u32 = 1;
const Q4_0: u32 = 2;
const TQ1_0: u32 = 34;

/// A slice in the making.
#[derive(Clone, Debug, PartialEq)]
pub struct SlicePlan {
    pub layers: Layers,
    /// Of the whole model.
    pub layer_count: u32,
    /// The first slice needs it beside its file, to make rows of tokens.
    pub embedding: Embedding,
    /// The slice's file.
    pub file: Plan,
    header_bytes: u64,
}

/// The token table inside the model's file: row `t` is that of token `t`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Embedding {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// ggml's number of its type.
    pub kind: u32,
    /// Numbers of a row.
    pub width: u64,
    pub rows: u64,
    pub row_bytes: u64,
    /// What the numbers are multiplied with.
    pub scale: f32,
}

impl Embedding {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.rows * self.row_bytes
    }
}

impl SlicePlan {
    /// It has the first layer: tokens come in.
    pub fn is_first(&self) -> bool {
        self.layers.from() == 0
    }

    /// It has the last layer and the head: tokens go out.
    pub fn is_last(&self) -> bool {
        self.layers.to() == self.layer_count
    }

    /// The bytes of the model's file that are needed to make the slice and, for the first one, to look tokens up:
    /// ascending, apart from each other.
    pub fn source_ranges(&self) -> Vec<Range<u64>> {
        let copied = self.file.pieces.iter().filter_map(|piece| match piece {
            Piece::Copy(range) => Some(range.clone()),
            Piece::Zeros(_) => None,
        });
        let mut ranges: Vec<Range<u64>> = std::iter::once(0..self.header_bytes).chain(copied).collect();
        ranges.extend(self.is_first().then(|| self.embedding.range()));
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }

    /// Bytes of weights that the slice really has.
    pub fn weight_bytes(&self) -> u64 {
        let copied = self.file.pieces.iter().filter(|piece| matches!(piece, Piece::Copy(_)));
        copied.map(Piece::length).fold(0, u64::saturating_add)
    }
}

/// What the layers of a model take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Bytes of weights by layer; those of the last one with the head.
    pub layer_bytes: Vec<u64>,
    pub info: ModelInfo,
}

impl Outline {
    pub fn layer_count(&self) -> u32 {
        self.layer_bytes.len() as u32
    }

    /// Of a slice of these layers.
    pub fn weight_bytes(&self, layers: Layers) -> u64 {
        let bytes = self.layer_bytes.get(layers.from() as usize..layers.to() as usize).unwrap_or_default();
        bytes.iter().copied().fold(0, u64::saturating_add)
    }
}

/// What each layer of the model with this header takes.
///
/// # Errors
/// The model is not one that is cut.
pub fn outline(gguf: &Gguf<'_>, root: ModelRoot) -> Result<Outline, SliceError> {
    let layers = Rules::of(gguf)?.layers;
    let bytes = |layer: u32| {
        let layers = Layers::new(layer, layer + 1).map_err(|error| SliceError::Unproven(error.to_string()))?;
        Ok(plan(gguf, root, layers)?.weight_bytes())
    };
    Ok(Outline { layer_bytes: (0..layers).map(bytes).collect::<Result<_, SliceError>>()?, info: gguf.info()? })
}

/// Plans the slice of `layers` of the model `root` with this header.
///
/// # Errors
/// The model is not one that is cut, or has no such layers.
pub fn plan(gguf: &Gguf<'_>, root: ModelRoot, layers: Layers) -> Result<SlicePlan, SliceError> {
    let rules = Rules::of(gguf)?;
    if layers.to() > rules.layers {
        return Err(SliceError::NoSuchLayers { from: layers.from(), to: layers.to(), count: rules.layers });
    }
    let is_last = layers.to() == rules.layers;
    let table = required(gguf, TOKEN_TABLE)?;
    let embedding = embedding(gguf, &rules, table)?;
    let mut tensors =
        Tensors { gguf, writer: metadata::write(gguf, &rules, root, layers, is_last)?, pieces: Vec::new() };
    for tensor in gguf.tensors() {
        match layer_of(tensor.name) {
            Some((layer, part)) if layers.contains(layer) => {
                tensors.copy(&format!("blk.{}.{part}", layer - layers.from()), tensor);
            }
            Some((layer, _)) if layer >= rules.layers => {
                let why = format!("it has a tensor of layer {layer} and only {} layers", rules.layers);
                return Err(SliceError::Unproven(why));
            }
            Some(_) => {}
            None if tensor.name == TOKEN_TABLE => tensors.token_table(tensor, is_last),
            None if tensor.name == HEAD && !is_last => {}
            None => tensors.copy(tensor.name, tensor),
        }
    }
    let file = Plan { header: tensors.writer.finish(), pieces: tensors.pieces };
    Ok(SlicePlan { layers, layer_count: rules.layers, embedding, file, header_bytes: gguf.data_offset() })
}

fn required<'a, 'g>(gguf: &'g Gguf<'a>, name: &str) -> Result<&'g Tensor<'a>, SliceError> {
    gguf.tensor(name).ok_or_else(|| SliceError::Unproven(format!("it has no tensor `{name}`")))
}

fn embedding(gguf: &Gguf<'_>, rules: &Rules, table: &Tensor<'_>) -> Result<Embedding, SliceError> {
    let [width, rows, ..] = table.dimensions;
    if width != rules.width || rows == 0 {
        let why = format!("its token table has rows of {width} numbers, its layers take {}", rules.width);
        return Err(SliceError::Unproven(why));
    }
    Ok(Embedding {
        offset: gguf.data_offset() + table.offset,
        kind: table.kind.number,
        width,
        rows,
        row_bytes: table.bytes / rows,
        scale: rules.embedding_scale,
    })
}

struct Tensors<'a, 'g> {
    gguf: &'g Gguf<'a>,
    writer: Writer,
    pieces: Vec<Piece>,
}

impl Tensors<'_, '_> {
    fn copy(&mut self, name: &str, tensor: &Tensor<'_>) {
        let start = self.gguf.data_offset() + tensor.offset;
        self.add(name, &tensor.dimensions, tensor.kind.number, Piece::Copy(start..start + tensor.bytes));
    }

    /// The last slice reads it only where it is its head, too. llama.cpp asks for it all the same.
    fn token_table(&mut self, table: &Tensor<'_>, is_last: bool) {
        let is_head = self.gguf.tensor(HEAD).is_none();
        if is_last && is_head {
            return self.copy(TOKEN_TABLE, table);
        }
        let [width, vocabulary, ..] = table.dimensions;
        let (rows, kind) = if is_last { (vocabulary, smallest(width)) } else { (NO_VOCABULARY_ROWS.into(), F32) };
        let bytes = GgmlType::from_number(kind).and_then(|kind| kind.bytes(width.saturating_mul(rows))).unwrap_or(0);
        self.add(TOKEN_TABLE, &[width, rows], kind, Piece::Zeros(bytes));
    }

    fn add(&mut self, name: &str, dimensions: &[u64], kind: u32, piece: Piece) {
        let used = dimensions.iter().rposition(|size| *size != 1).map_or(1, |last| last + 1);
        let writer = std::mem::take(&mut self.writer);
        self.writer = writer.tensor_apart(name, &dimensions[..used], kind, piece.length());
        self.pieces.push(piece);
    }
}

/// The type that takes least room for rows of `width` zeros.
fn smallest(width: u64) -> u32 {
    match width {
        width if width.is_multiple_of(256) => TQ1_0,
        width if width.is_multiple_of(32) => Q4_0,
        _ => F16,
    }
}
