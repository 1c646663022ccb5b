//! Log-probabilities in the two shapes that OpenAI has.

use opengrid_node::handle::TextModel;
use opengrid_protocol::session::Token;

use super::{
    options::Api,
    shapes::{Alternative, Logprobs, TextLogprobs, TokenLogprob},
};
use crate::text::answer::Placed;

/// What OpenAI sends where a log-probability is unknown or minus infinity.
const UNKNOWN: f32 = -9999.0;

/// The column or list for `tokens`; `before_chars` characters of echo stand before the answer.
pub fn logprobs(api: Api, model: &dyn TextModel, tokens: &[Placed], before_chars: usize) -> Logprobs {
    match api {
        Api::Chat => Logprobs::Chat { content: token_logprobs(model, tokens), refusal: None },
        Api::Text => Logprobs::Text(text(model, tokens, before_chars)),
    }
}

pub fn token_logprobs(model: &dyn TextModel, tokens: &[Placed]) -> Vec<TokenLogprob> {
    tokens.iter().map(|token| chat(model, token)).collect()
}

fn chat(model: &dyn TextModel, placed: &Placed) -> TokenLogprob {
    let alternative = |token: Token, logprob: f32| {
        let bytes = model.piece(token).to_vec();
        Alternative { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: finite(logprob), bytes }
    };
    TokenLogprob {
        token: alternative(placed.token.token, placed.token.logprob.unwrap_or(UNKNOWN)),
        top_logprobs: placed.token.top.iter().map(|(token, logprob)| alternative(*token, *logprob)).collect(),
    }
}

fn text(model: &dyn TextModel, tokens: &[Placed], before_chars: usize) -> TextLogprobs {
    let mut columns = TextLogprobs::default();
    for placed in tokens {
        let (name, logprob) = (name(model, placed.token.token), finite(placed.token.logprob.unwrap_or(UNKNOWN)));
        let top = placed.token.top.iter().map(|(token, logprob)| (self::name(model, *token), finite(*logprob)));
        columns.top_logprobs.push(top.chain([(name.clone(), logprob)]).collect());
        columns.tokens.push(name);
        columns.token_logprobs.push(logprob);
        columns.text_offset.push(before_chars + placed.offset_chars);
    }
    columns
}

/// A token's text, or `bytes:\xf0\x9f` where it is a part of a character, so that different tokens have different names.
fn name(model: &dyn TextModel, token: Token) -> String {
    let bytes = model.piece(token);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| name + &format!("\\x{byte:02x}")),
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { UNKNOWN }
}
