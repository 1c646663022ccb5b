//! Logit bias and penalties. What they need is a function of the prompt and the answer so far.

use std::collections::{BTreeMap, VecDeque};

use opengrid_protocol::{Sampling, session::Token};

/// How often tokens occur: in the answer, and in the last `repeat_last_n` tokens of prompt and answer.
#[derive(Clone)]
pub(crate) struct Penalties {
    counts_answer: bool,
    answer: BTreeMap<Token, u32>,
    window_tokens_max: usize,
    window: VecDeque<Token>,
    recent: BTreeMap<Token, u32>,
}

impl Penalties {
    pub(crate) fn new(sampling: &Sampling, prompt: &[Token], answer: &[Token]) -> Self {
        let repeats = sampling.repeat_penalty != 1.0;
        let mut penalties = Self {
            counts_answer: sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0,
            answer: BTreeMap::new(),
            window_tokens_max: if repeats { sampling.repeat_last_n as usize } else { 0 },
            window: VecDeque::new(),
            recent: BTreeMap::new(),
        };
        let last = prompt.len().saturating_sub(penalties.window_tokens_max);
        prompt[last..].iter().for_each(|token| penalties.remember(*token));
        answer.iter().for_each(|token| penalties.accept(*token));
        penalties
    }

    pub(crate) fn accept(&mut self, token: Token) {
        if self.counts_answer {
            *self.answer.entry(token).or_insert(0) += 1;
        }
        self.remember(token);
    }

    fn remember(&mut self, token: Token) {
        if self.window_tokens_max == 0 {
            return;
        }
        if self.window.len() == self.window_tokens_max
            && let Some(oldest) = self.window.pop_front()
            && let Some(count) = self.recent.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.recent.remove(&oldest);
            }
        }
        self.window.push_back(token);
        *self.recent.entry(token).or_insert(0) += 1;
    }

    /// Bias first, then the repeat penalty, then frequency and presence. Ids outside the vocabulary are ignored.
    pub(crate) fn apply(&self, sampling: &Sampling, logits: &mut [f32]) {
        for (token, bias) in &sampling.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for token in self.recent.keys() {
            if let Some(logit) = logits.get_mut(*token as usize) {
                let factor = sampling.repeat_penalty;
                *logit = if *logit > 0.0 { *logit / factor } else { *logit * factor };
            }
        }
        for (token, count) in &self.answer {
            if let Some(logit) = logits.get_mut(*token as usize) {
                let frequency = *count as f32 * sampling.frequency_penalty;
                *logit -= frequency + sampling.presence_penalty;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(sampling: &Sampling, prompt: &[Token], answer: &[Token], logits: &[f32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        Penalties::new(sampling, prompt, answer).apply(sampling, &mut logits);
        logits
    }

    #[test]
    fn presence_counts_once_and_frequency_every_time_in_the_answer_only() {
        let sampling = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::greedy() };
        assert_eq!(applied(&sampling, &[0, 0], &[1, 2, 2], &[1.0; 4]), [1.0, 0.25, 0.0, 1.0]);
    }

    #[test]
    fn the_repeat_penalty_looks_back_over_prompt_and_answer() {
        let sampling = Sampling { repeat_penalty: 2.0, repeat_last_n: 3, ..Sampling::greedy() };
        assert_eq!(applied(&sampling, &[0, 1, 2], &[3], &[4.0, 4.0, -4.0, 0.0]), [4.0, 2.0, -8.0, 0.0]);
        let off = Sampling { repeat_last_n: 0, ..sampling };
        assert_eq!(applied(&off, &[0, 1, 2], &[3], &[4.0; 4]), [4.0; 4]);
    }

    #[test]
    fn bias_comes_first_and_ids_outside_the_vocabulary_are_ignored() {
        let sampling = Sampling {
            repeat_penalty: 2.0,
            presence_penalty: 1.0,
            logit_bias: vec![(0, 3.0), (0, 1.0), (u32::MAX, 1.0)],
            ..Sampling::greedy()
        };
        assert_eq!(applied(&sampling, &[u32::MAX], &[0, u32::MAX], &[-1.0]), [0.5]);
    }
}
