//! Messages to prompt text, and tokens to text: the part of a model that stays at the gateway.

pub mod answer;
mod clock;
pub mod detokenize;
pub mod grammar;
pub mod reasoning;
pub mod stop;
pub mod template;
pub mod tools;
