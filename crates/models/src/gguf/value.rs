//! Metadata values: typed, borrowed, arrays read lazily.

use super::{GgufError, cursor::Cursor, limits, printable};

/// One metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Should be UTF-8, but tokens of some vocabularies are not.
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// The type of a value, with its number in the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    fn from_number(number: u32) -> Option<Self> {
        use ValueType::*;
        let all = [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        all.get(number as usize).copied()
    }

    /// Encoded bytes; `None` for strings and arrays.
    fn size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// An array whose bounds were checked; its elements are decoded on the way through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: ValueType,
    count: u64,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    pub fn kind(&self) -> ValueType {
        self.kind
    }

    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let kind = self.kind;
        let mut cursor = Cursor::new(self.bytes, self.bytes.len() as u64);
        (0..self.count).map_while(move |_| element(&mut cursor, kind, "an element").ok())
    }
}

impl<'a> Value<'a> {
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::F32(_) => "f32",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F64(_) => "f64",
        }
    }

    /// Any integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// Its type and its bytes in a file.
    pub(crate) fn encoded(&self) -> (ValueType, Vec<u8>) {
        match *self {
            Self::U8(value) => (ValueType::U8, vec![value]),
            Self::I8(value) => (ValueType::I8, value.to_le_bytes().into()),
            Self::U16(value) => (ValueType::U16, value.to_le_bytes().into()),
            Self::I16(value) => (ValueType::I16, value.to_le_bytes().into()),
            Self::U32(value) => (ValueType::U32, value.to_le_bytes().into()),
            Self::I32(value) => (ValueType::I32, value.to_le_bytes().into()),
            Self::F32(value) => (ValueType::F32, value.to_le_bytes().into()),
            Self::Bool(value) => (ValueType::Bool, vec![u8::from(value)]),
            Self::String(bytes) => (ValueType::String, [&(bytes.len() as u64).to_le_bytes(), bytes].concat()),
            Self::Array(Array { kind, count, bytes }) => {
                (ValueType::Array, [&(kind as u32).to_le_bytes()[..], &count.to_le_bytes(), bytes].concat())
            }
            Self::U64(value) => (ValueType::U64, value.to_le_bytes().into()),
            Self::I64(value) => (ValueType::I64, value.to_le_bytes().into()),
            Self::F64(value) => (ValueType::F64, value.to_le_bytes().into()),
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The string, where it is UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        if let Self::String(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }

    pub fn as_array(&self) -> Option<Array<'a>> {
        if let Self::Array(array) = self { Some(*array) } else { None }
    }
}

/// Reads a type and a value of it.
pub(super) fn read<'a>(cursor: &mut Cursor<'a>, key: &str) -> Result<Value<'a>, GgufError> {
    let what = format!("the value of `{}`", printable(key));
    let kind = value_type(cursor, &what)?;
    if kind == ValueType::Array { array(cursor, &what).map(Value::Array) } else { element(cursor, kind, &what) }
}

fn value_type(cursor: &mut Cursor<'_>, what: &str) -> Result<ValueType, GgufError> {
    let offset = cursor.position() as u64;
    let number = cursor.u32(what)?;
    ValueType::from_number(number).ok_or_else(|| {
        let why = format!("{number} is no value type (0 to 12 are)");
        GgufError::Invalid { what: what.to_owned(), offset, why }
    })
}

fn array<'a>(cursor: &mut Cursor<'a>, what: &str) -> Result<Array<'a>, GgufError> {
    let offset = cursor.position() as u64;
    let kind = value_type(cursor, what)?;
    if kind == ValueType::Array {
        let why = "arrays of arrays are not supported (nor by llama.cpp)".to_owned();
        return Err(GgufError::Invalid { what: what.to_owned(), offset, why });
    }
    let count = cursor.count(what, limits::ARRAY_ELEMENTS_MAX)?;
    let from = cursor.position();
    match kind.size() {
        Some(size) => {
            cursor.take(count.saturating_mul(size), what)?;
        }
        None => {
            for _ in 0..count {
                cursor.string(what, limits::STRING_BYTES_MAX)?;
            }
        }
    }
    Ok(Array { kind, count, bytes: cursor.since(from) })
}

fn element<'a>(cursor: &mut Cursor<'a>, kind: ValueType, what: &str) -> Result<Value<'a>, GgufError> {
    Ok(match kind {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(what)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(what)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(what)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(what)?)),
        ValueType::U32 => Value::U32(cursor.u32(what)?),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(what)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(what)?)),
        ValueType::Bool => Value::Bool(cursor.array::<1>(what)?[0] != 0),
        ValueType::String => Value::String(cursor.string(what, limits::STRING_BYTES_MAX)?),
        ValueType::U64 => Value::U64(cursor.u64(what)?),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(what)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(what)?)),
        ValueType::Array => Value::Array(array(cursor, what)?),
    })
}
