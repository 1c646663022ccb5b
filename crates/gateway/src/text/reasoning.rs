//! What a model thinks aloud before it answers, apart from the answer.

pub const BEGIN: &str = "<think>";
pub const END: &str = "</think>";

/// Where an answer starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinking {
    /// The model does not think, or its thoughts are part of the text.
    #[default]
    Never,
    /// It may begin with `<think>`.
    MayBegin,
    /// The prompt ends with `<think>`.
    Begun,
}

/// Splits an answer at `</think>`. White space around the thoughts is dropped.
#[derive(Debug)]
pub struct ReasoningSplit {
    state: State,
    /// Text that may become a mark, or white space.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space and a beginning of `<think>` has come.
    Start,
    /// White space at the beginning of the thoughts.
    Opening,
    Thoughts,
    /// White space after `</think>`.
    Closing,
    Answer,
}

impl ReasoningSplit {
    pub fn new(thinking: Thinking) -> Self {
        let state = match thinking {
            Thinking::Never => State::Answer,
            Thinking::MayBegin => State::Start,
            Thinking::Begun => State::Opening,
        };
        Self { state, held: String::new() }
    }

    /// Appends what is certainly thought and what is certainly answer.
    pub fn push(&mut self, text: &str, thoughts: &mut String, answer: &mut String) {
        for (at, c) in text.char_indices() {
            if self.state == State::Answer {
                answer.push_str(&text[at..]);
                return;
            }
            self.take(c, thoughts, answer);
        }
    }

    /// The answer ends here.
    pub fn finish(&mut self, thoughts: &mut String, answer: &mut String) {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Start | State::Answer => answer.push_str(&held),
            State::Opening | State::Thoughts => thoughts.push_str(held.trim_end()),
            State::Closing => {}
        }
    }

    fn take(&mut self, c: char, thoughts: &mut String, answer: &mut String) {
        match self.state {
            State::Opening | State::Closing if c.is_whitespace() => return,
            State::Opening => self.state = State::Thoughts,
            State::Closing => self.state = State::Answer,
            State::Start | State::Thoughts | State::Answer => {}
        }
        self.held.push(c);
        match self.state {
            State::Start if self.held.trim_start() == BEGIN => self.enter(State::Opening),
            State::Start if BEGIN.starts_with(self.held.trim_start()) => {}
            State::Thoughts if self.held.ends_with(END) => {
                let thought = self.held.strip_suffix(END).unwrap_or_default();
                thoughts.push_str(thought.trim_end());
                self.enter(State::Closing);
            }
            State::Thoughts => {
                let certain = self.certain_bytes();
                thoughts.push_str(&self.held[..certain]);
                self.held.drain(..certain);
            }
            _ => {
                answer.push_str(&std::mem::take(&mut self.held));
                self.state = State::Answer;
            }
        }
    }

    fn enter(&mut self, state: State) {
        self.held.clear();
        self.state = state;
    }

    /// All but a beginning of `</think>` at the end and the white space before it.
    fn certain_bytes(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = held.len().min(END.len() - 1);
        let mark = (1..=longest).rev().find(|n| held.ends_with(&END.as_bytes()[..*n])).unwrap_or(0);
        self.held[..held.len() - mark].trim_end().len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(thinking: Thinking, text: &str, size: usize) -> (String, String) {
        let (mut split, mut thoughts, mut answer) = (ReasoningSplit::new(thinking), String::new(), String::new());
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(size) {
            split.push(&piece.iter().collect::<String>(), &mut thoughts, &mut answer);
        }
        split.finish(&mut thoughts, &mut answer);
        (thoughts, answer)
    }

    #[test]
    fn thoughts_and_answer_are_told_apart() {
        use Thinking::{Begun, MayBegin, Never};
        for (thinking, text, thoughts, answer) in [
            (MayBegin, "<think>\nHm.\n\nSo: 4.\n</think>\n\nFour.", "Hm.\n\nSo: 4.", "Four."),
            (MayBegin, "\n<think>\n\n</think>\n\nFour.\n", "", "Four.\n"),
            (MayBegin, "Four <think>", "", "Four <think>"),
            (MayBegin, "\n<thin", "", "\n<thin"),
            (MayBegin, "<think>a < b </thin", "a < b </thin", ""),
            (Begun, "Hm.</think>Four.", "Hm.", "Four."),
            (Begun, "Hm. \n", "Hm.", ""),
            (Begun, "\n</think>", "", ""),
            (Never, "<think>a</think>b", "", "<think>a</think>b"),
        ] {
            assert_eq!(split(thinking, text, 100), (thoughts.into(), answer.into()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            pieces in prop::collection::vec(
                prop::sample::select(vec!["<think>", "</think>", "\n", " ", "é", "a", "<", "</", "think"]), 0..16),
            size in 1..6usize,
            which in 0..3usize,
        ) {
            let thinking = [Thinking::Never, Thinking::MayBegin, Thinking::Begun][which];
            let text = pieces.concat();
            prop_assert_eq!(split(thinking, &text, size), split(thinking, &text, 1_000));
        }
    }
}
