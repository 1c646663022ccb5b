//! Prompts of `/v1/completions`: texts or token ids, one or several.

use opengrid_node::handle::TextModel;
use opengrid_protocol::session::Token;

use super::{
    constraint,
    errors::ApiError,
    gap::Gap,
    options::Options,
    prepare::{Prepared, Prompt},
    types::{PromptIn, PromptItem},
};
use crate::text::answer::Reading;

/// # Errors
/// 400 for prompts that are none, too many, or of unknown tokens.
pub async fn text_prompts(
    prompt: Option<PromptIn>,
    gap: Option<&Gap>,
    options: &Options,
    choices_max: u32,
    text: &dyn TextModel,
) -> Result<Prepared, ApiError> {
    let echo = options.echo;
    let items = match prompt.ok_or_else(|| ApiError::missing("prompt"))? {
        PromptIn::Text(prompt) => vec![PromptItem::Text(prompt)],
        PromptIn::List(items) if items.is_empty() => items,
        PromptIn::List(items) => match tokens_only(&items) {
            Some(tokens) => vec![PromptItem::Tokens(tokens)],
            None => items,
        },
    };
    let choices = items.len() as u64 * u64::from(options.n);
    if !(1..=u64::from(choices_max)).contains(&choices) {
        let message = format!("`n` times the number of prompts must lie between 1 and {choices_max}, not {choices}");
        return Err(ApiError::invalid_value("prompt", message));
    }
    let mut prompts = Vec::new();
    for item in items {
        prompts.push(match item {
            PromptItem::Text(prompt) => {
                let tokens = text.tokenize(&prompt, gap.is_none(), true).await?;
                Prompt { tokens, echo: echo.then_some(prompt) }
            }
            PromptItem::Tokens(tokens) => token_prompt(tokens, echo, text)?,
            PromptItem::Token(_) => {
                return Err(ApiError::invalid_value("prompt", "`prompt` mixes token ids with other prompts"));
            }
        });
    }
    if let Some(gap) = gap {
        prompts.iter_mut().for_each(|prompt| prompt.tokens = gap.around(&prompt.tokens));
    }
    let grammar = constraint::checked(&options.format).await?;
    Ok(Prepared { prompts, reading: Reading::default(), grammar })
}

pub(super) fn tokens_only(items: &[PromptItem]) -> Option<Vec<Token>> {
    let token = |item: &PromptItem| match item {
        PromptItem::Token(token) => Some(*token),
        PromptItem::Text(_) | PromptItem::Tokens(_) => None,
    };
    items.iter().map(token).collect()
}

fn token_prompt(tokens: Vec<Token>, echo: bool, text: &dyn TextModel) -> Result<Prompt, ApiError> {
    if let Some(token) = tokens.iter().find(|token| **token >= text.vocabulary_size()) {
        let message = format!("`prompt` has token {token}, the vocabulary has {}", text.vocabulary_size());
        return Err(ApiError::invalid_value("prompt", message));
    }
    let echo = echo.then(|| {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| text.piece(*token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    Ok(Prompt { tokens, echo })
}
