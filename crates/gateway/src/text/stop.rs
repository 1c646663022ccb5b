//! Stop strings: matched in the text, whatever the token borders are.

/// Finds the first stop string to complete. Text that may be the beginning of one is held back.
///
/// The result depends on the text only, not on how it is cut into pieces: of several matches the one that ends first
/// counts, of those with one end the longest.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that is not given out yet.
    held: String,
    /// The place in `stops` of the one that was found.
    found: Option<usize>,
}

impl StopMatcher {
    /// Empty stop strings are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new(), found: None }
    }

    /// Appends to `out` what is certainly no part of a stop string; true when a stop string was found: then `out`
    /// ends right before it and nothing must be pushed any more.
    pub fn push(&mut self, text: &str, out: &mut String) -> bool {
        if self.stops.is_empty() {
            out.push_str(text);
            return false;
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_match() {
            out.push_str(&self.held[..start]);
            self.held.clear();
            self.found = Some(stop);
            return true;
        }
        let safe = self.held.len() - self.longest_beginning();
        out.push_str(&self.held[..safe]);
        self.held.drain(..safe);
        false
    }

    /// Nothing follows: gives out what was held back.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
    }

    /// The stop string that was found.
    pub fn found(&self) -> Option<&str> {
        self.found.and_then(|at| self.stops.get(at)).map(String::as_str)
    }

    /// Where the stop string begins that ends first, and which one it is.
    fn first_match(&self) -> Option<(usize, usize)> {
        self.stops
            .iter()
            .enumerate()
            .filter_map(|(at, stop)| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, at)))
            .min()
            .map(|(_, start, at)| (start, at))
    }

    /// Bytes at the end of `held` that a stop string begins with.
    fn longest_beginning(&self) -> usize {
        let held = self.held.as_bytes();
        let beginning = |stop: &String| {
            let longest = (stop.len() - 1).min(held.len());
            (1..=longest).rev().find(|&n| held.ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
        };
        self.stops.iter().map(beginning).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut out = String::new();
        for piece in pieces {
            if matcher.push(piece, &mut out) {
                return (out, true);
            }
        }
        matcher.finish(&mut out);
        (out, false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_cut_exactly() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), true));
        assert_eq!(run(&["END"], &["one E", "N", "d two"]), ("one ENd two".into(), false));
        assert_eq!(run(&["\n\n"], &["a\n", "b\n\nc"]), ("a\nb".into(), true));
        assert_eq!(run(&["aab"], &["aaa", "ab"]), ("aa".into(), true));
        assert_eq!(run(&["né"], &["un n", "é"]), ("un ".into(), true));
    }

    #[test]
    fn the_stop_string_that_was_found_is_known() {
        let mut matcher = StopMatcher::new(["", "END", "two", "wo"].map(str::to_owned).into());
        let mut out = String::new();
        assert!(!matcher.push("one t", &mut out));
        assert_eq!(matcher.found(), None);
        assert!(matcher.push("wo END", &mut out));
        assert_eq!((matcher.found(), out.as_str()), (Some("two"), "one "));
    }

    #[test]
    fn beginnings_are_held_back_and_given_out_at_the_end() {
        let mut matcher = StopMatcher::new(vec!["stop".into()]);
        let mut out = String::new();
        assert!(!matcher.push("well sto", &mut out));
        assert_eq!(out, "well ");
        matcher.finish(&mut out);
        assert_eq!(out, "well sto");
    }

    /// The definition, character by character.
    fn oracle(stops: &[String], text: &str) -> (String, bool) {
        for (at, c) in text.char_indices() {
            let seen = &text[..at + c.len_utf8()];
            if let Some(longest) =
                stops.iter().filter(|s| !s.is_empty() && seen.ends_with(s.as_str())).map(String::len).max()
            {
                return (seen[..seen.len() - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #[test]
        fn every_split_gives_what_the_definition_gives(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            size in 1..5usize,
        ) {
            let characters: Vec<char> = text.chars().collect();
            let pieces: Vec<String> = characters.chunks(size).map(|c| c.iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let names: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&names, &pieces), oracle(&stops, &text));
        }
    }
}
