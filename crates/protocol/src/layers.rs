//! Parts of models: contiguous ranges of layers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ModelRoot, limits::LAYERS_MAX};

/// Layers `from..to` of a model, counted from 0; never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct Layers {
    from: u16,
    to: u16,
}

/// A model, or some of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    pub model: ModelRoot,
    /// `None`: all of it.
    pub layers: Option<Layers>,
}

impl Share {
    pub fn whole(model: ModelRoot) -> Self {
        Self { model, layers: None }
    }
}

/// Why numbers or a text are no range of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayersError {
    #[error("layers {0}..{1} are none: the second number must be larger than the first")]
    Empty(u32, u32),
    #[error("a model has at most {LAYERS_MAX} layers")]
    TooMany,
    #[error("layers are written FROM..TO, e.g. 0..10 for the first ten")]
    Form,
}

impl Layers {
    /// # Errors
    /// An empty range, or more than [`LAYERS_MAX`].
    pub fn new(from: u32, to: u32) -> Result<Self, LayersError> {
        if from >= to {
            return Err(LayersError::Empty(from, to));
        }
        match (u16::try_from(from), u16::try_from(to)) {
            (Ok(from), Ok(to)) if to <= LAYERS_MAX => Ok(Self { from, to }),
            _ => Err(LayersError::TooMany),
        }
    }

    pub fn from(self) -> u32 {
        self.from.into()
    }

    pub fn to(self) -> u32 {
        self.to.into()
    }

    /// How many; at least one.
    pub fn count(self) -> u32 {
        self.to() - self.from()
    }

    pub fn contains(self, layer: u32) -> bool {
        (self.from()..self.to()).contains(&layer)
    }
}

impl TryFrom<(u16, u16)> for Layers {
    type Error = LayersError;

    fn try_from((from, to): (u16, u16)) -> Result<Self, LayersError> {
        Self::new(from.into(), to.into())
    }
}

impl From<Layers> for (u16, u16) {
    fn from(layers: Layers) -> Self {
        (layers.from, layers.to)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.from, self.to)
    }
}

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Layers {
    type Err = LayersError;

    fn from_str(text: &str) -> Result<Self, LayersError> {
        let (from, to) = text.split_once("..").ok_or(LayersError::Form)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| LayersError::Form);
        Self::new(number(from)?, number(to)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn ranges_print_and_parse_and_are_never_empty() {
        let layers: Layers = "10..20".parse().unwrap();
        assert_eq!((layers.from(), layers.to(), layers.count()), (10, 20, 10));
        assert_eq!(layers.to_string().parse(), Ok(layers));
        assert_eq!("5..5".parse::<Layers>(), Err(LayersError::Empty(5, 5)));
        assert_eq!("0..100000".parse::<Layers>(), Err(LayersError::TooMany));
        for text in ["", "5", "..", "a..b", "1..2..3", "-1..2"] {
            assert_eq!(text.parse::<Layers>(), Err(LayersError::Form), "{text}");
        }
    }

    #[test]
    fn what_is_no_range_does_not_decode() {
        let layers = Layers::new(3, 7).unwrap();
        assert_eq!(codec::decode::<Layers>(&codec::encode(&layers), 16), Ok(layers));
        assert!(codec::decode::<Layers>(&codec::encode(&(7_u16, 3_u16)), 16).is_err());
    }
}
