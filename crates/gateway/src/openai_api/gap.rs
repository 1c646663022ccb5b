//! `suffix`: prompts whose answer fills the gap between two texts, for models that were trained to (Bavarian et al.,
//! "Efficient Training of Language Models to Fill in the Middle", 2022).

use opengrid_node::handle::TextModel;
use opengrid_protocol::session::Token;

use super::errors::ApiError;

/// What stands around the text in front of a gap.
pub struct Gap {
    before: Vec<Token>,
    after: Vec<Token>,
}

impl Gap {
    /// `None` without a suffix.
    ///
    /// # Errors
    /// 400 where the model cannot fill gaps.
    pub async fn new(suffix: Option<&str>, text: &dyn TextModel) -> Result<Option<Self>, ApiError> {
        let Some(suffix) = suffix.filter(|suffix| !suffix.is_empty()) else { return Ok(None) };
        let [prefix_mark, suffix_mark, middle_mark] = text.fill_in_middle().ok_or_else(|| {
            ApiError::unsupported("suffix", "this model was not trained to fill gaps: leave `suffix` out")
        })?;
        // What the model wants in front of every prompt.
        let mut before = text.tokenize("", true, false).await?;
        before.push(prefix_mark);
        let suffix = text.tokenize(suffix, false, false).await?;
        let after = [&[suffix_mark], &suffix[..], &[middle_mark]].concat();
        Ok(Some(Self { before, after }))
    }

    pub fn around(&self, prompt: &[Token]) -> Vec<Token> {
        [&self.before, prompt, &self.after].concat()
    }
}
