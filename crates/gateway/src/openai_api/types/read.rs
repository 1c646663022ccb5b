//! Reading with bounds: lists, values of several types, free JSON.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// Deepest nesting of a [`BoundedJson`].
pub const JSON_DEPTH_MAX: usize = 32;
/// Most values (scalars, lists and objects) in a [`BoundedJson`].
pub const JSON_VALUES_MAX: usize = 16_384;

/// A list of at most `MAX` entries.
#[derive(Clone, Debug)]
pub struct Bounded<T, const MAX: usize>(pub Vec<T>);

/// Any JSON of bounded depth and number of values, such as a JSON schema.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundedJson(pub Value);

/// What kind of value a field has, where only that matters. Its content is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Absent,
    Text(String),
    EmptyList,
    Other,
}

pub(crate) fn read_seq<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
    mut seq: A,
    max: usize,
) -> Result<Vec<T>, A::Error> {
    let mut items = Vec::new();
    while let Some(item) = seq.next_element()? {
        if items.len() >= max {
            return Err(de::Error::custom(format_args!("more than {max} entries")));
        }
        items.push(item);
    }
    Ok(items)
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
            type Value = Bounded<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                read_seq(seq, MAX).map(Bounded)
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Implements `Deserialize` through a visitor whose methods are given.
macro_rules! deserialize_any {
    ($type:ty, $expecting:literal, { $($methods:tt)* }) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;
                impl<'de> Visitor<'de> for Reader {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    $($methods)*
                }
                deserializer.deserialize_any(Reader)
            }
        }
    };
}
pub(crate) use deserialize_any;

deserialize_any!(Shape, "any value", {
    fn visit_unit<E: de::Error>(self) -> Result<Shape, E> {
        Ok(Shape::Absent)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Shape, E> {
        Ok(Shape::Text(text.chars().take(64).collect()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut empty = true;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            empty = false;
        }
        Ok(if empty { Shape::EmptyList } else { Shape::Other })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Shape::Other)
    }
});

impl BoundedJson {
    /// How many values it has.
    pub fn values(&self) -> usize {
        fn count(value: &Value) -> usize {
            1 + match value {
                Value::Array(items) => items.iter().map(count).sum(),
                Value::Object(entries) => entries.values().map(count).sum(),
                _ => 0,
            }
        }
        count(&self.0)
    }
}

impl<'de> Deserialize<'de> for BoundedJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut left = JSON_VALUES_MAX;
        JsonReader { left: &mut left, depth: 0 }.deserialize(deserializer).map(BoundedJson)
    }
}

struct JsonReader<'a> {
    /// Values that may still come.
    left: &'a mut usize,
    depth: usize,
}

impl JsonReader<'_> {
    fn inner<E: de::Error>(&mut self) -> Result<JsonReader<'_>, E> {
        if self.depth >= JSON_DEPTH_MAX {
            return Err(E::custom(format_args!("nested deeper than {JSON_DEPTH_MAX} levels")));
        }
        Ok(JsonReader { left: self.left, depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for JsonReader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let none_left = || de::Error::custom(format_args!("more than {JSON_VALUES_MAX} values"));
        *self.left = self.left.checked_sub(1).ok_or_else(none_left)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonReader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner()?)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(self.inner()?)?;
            entries.insert(key, value);
        }
        Ok(entries.into())
    }
}
