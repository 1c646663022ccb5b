//! Tensor infos and the checks of their layout.

use std::collections::BTreeSet;

use super::{GgmlType, GgufError, cursor::Cursor, limits, printable};

/// Where one tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor<'a> {
    pub name: &'a str,
    /// Elements per dimension, fastest first; unused ones are 1.
    pub dimensions: [u64; 4],
    pub kind: GgmlType,
    /// Bytes from the start of the tensor data.
    pub offset: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Number of elements.
    pub elements: u64,
}

pub(super) fn read_all<'a>(cursor: &mut Cursor<'a>, count: u64) -> Result<Vec<Tensor<'a>>, GgufError> {
    let mut tensors = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..count {
        let at = cursor.position() as u64;
        let tensor = read(cursor)?;
        if !names.insert(tensor.name) {
            return Err(invalid(tensor.name, at, "the tensor is there twice".into()));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read<'a>(cursor: &mut Cursor<'a>) -> Result<Tensor<'a>, GgufError> {
    let at = cursor.position() as u64;
    let name = cursor.text("a tensor name", limits::TENSOR_NAME_BYTES_MAX)?;
    let dimensions = dimensions(cursor, name)?;
    let kind_at = cursor.position() as u64;
    let number = cursor.u32("a tensor type")?;
    let kind = GgmlType::from_number(number)
        .ok_or_else(|| invalid(name, kind_at, format!("tensor type {number} is unknown to this program")))?;
    let offset = cursor.u64("a tensor offset")?;
    let elements = dimensions
        .iter()
        .try_fold(1_u64, |product, size| product.checked_mul(*size))
        .filter(|elements| *elements <= i64::MAX as u64)
        .ok_or_else(|| invalid(name, at, format!("{dimensions:?} elements are more than 63 bits can count")))?;
    if !dimensions[0].is_multiple_of(kind.block_elements) {
        let why =
            format!("rows of {} elements do not fit {} blocks of {}", dimensions[0], kind.name, kind.block_elements);
        return Err(invalid(name, at, why));
    }
    let bytes = kind.bytes(elements).ok_or_else(|| invalid(name, at, "its size is beyond 64 bits".into()))?;
    Ok(Tensor { name, dimensions, kind, offset, bytes, elements })
}

fn dimensions(cursor: &mut Cursor<'_>, name: &str) -> Result<[u64; 4], GgufError> {
    let at = cursor.position() as u64;
    let count = cursor.u32("the number of dimensions")?;
    if count > limits::DIMENSIONS_MAX {
        return Err(invalid(name, at, format!("{count} dimensions, {} at most", limits::DIMENSIONS_MAX)));
    }
    let mut dimensions = [1; 4];
    for size in dimensions.iter_mut().take(count as usize) {
        *size = cursor.u64("a dimension")?;
        if *size == 0 {
            return Err(invalid(name, at, "a dimension is zero".into()));
        }
    }
    Ok(dimensions)
}

/// Every tensor aligned, inside the file, and none over another.
pub(super) fn check_layout(
    tensors: &[Tensor<'_>],
    alignment: u32,
    data_offset: u64,
    file_size: u64,
) -> Result<(), GgufError> {
    let mut spans = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if !tensor.offset.is_multiple_of(u64::from(alignment)) {
            return Err(invalid(tensor.name, tensor.offset, format!("its offset is no multiple of {alignment}")));
        }
        let needed = data_offset
            .checked_add(tensor.offset)
            .and_then(|start| start.checked_add(tensor.bytes))
            .ok_or_else(|| invalid(tensor.name, tensor.offset, "its end is beyond 64 bits".into()))?;
        if needed > file_size {
            let what = format!("tensor `{}`", printable(tensor.name));
            let offset = data_offset.saturating_add(tensor.offset);
            return Err(GgufError::Truncated { what, offset, needed, size: file_size });
        }
        spans.push((tensor.offset, tensor.offset + tensor.bytes, tensor.name));
    }
    spans.sort_unstable();
    match spans.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => {
            let why = format!("it overlaps tensor `{}`", printable(pair[0].2));
            Err(invalid(pair[1].2, data_offset + pair[1].0, why))
        }
        None => Ok(()),
    }
}

fn invalid(name: &str, offset: u64, why: String) -> GgufError {
    GgufError::Invalid { what: format!("tensor `{}`", printable(name)), offset, why }
}
