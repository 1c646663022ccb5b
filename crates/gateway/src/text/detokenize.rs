//! Token pieces are bytes; clients get UTF-8. A character may be spread over several tokens.

/// Joins byte pieces to text. Bytes that may still become a character are held back; bytes that cannot are U+FFFD,
/// one for each maximal invalid part, as `String::from_utf8_lossy` does.
#[derive(Debug, Default)]
pub struct Utf8Stream {
    /// The beginning of one character: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Appends to `out` the text that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty() {
            self.pending = decode(bytes, out).to_vec();
        } else {
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(bytes);
            self.pending = decode(&joined, out).to_vec();
        }
    }

    /// Nothing follows: what is still held back is invalid.
    pub fn finish(&mut self, out: &mut String) {
        if !std::mem::take(&mut self.pending).is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }

    pub fn holds_back(&self) -> bool {
        !self.pending.is_empty()
    }
}

/// Appends all characters of `bytes`, returns the incomplete one at the end.
fn decode<'a>(mut bytes: &'a [u8], out: &mut String) -> &'a [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return &[];
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                out.push_str(&String::from_utf8_lossy(valid));
                let Some(invalid) = error.error_len() else { return rest };
                out.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[invalid..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces_to_text<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let (mut stream, mut out) = (Utf8Stream::default(), String::new());
        for piece in pieces {
            stream.push(piece, &mut out);
        }
        stream.finish(&mut out);
        out
    }

    #[test]
    fn a_character_split_over_tokens_appears_whole_or_not_at_all() {
        let (mut stream, mut out) = (Utf8Stream::default(), String::new());
        for byte in &"😀".as_bytes()[..3] {
            stream.push(&[*byte], &mut out);
            assert_eq!(out, "");
            assert!(stream.holds_back());
        }
        stream.push(&"😀".as_bytes()[3..], &mut out);
        assert_eq!(out, "😀");
        assert!(!stream.holds_back());
    }

    #[test]
    fn a_cut_off_character_is_replaced_at_the_end() {
        assert_eq!(pieces_to_text([b"a\xe2\x82".as_slice()]), "a\u{fffd}");
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_reads_as_the_lossy_whole(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80..=0xf4u8], 0..64),
            size in 1..7usize,
        ) {
            prop_assert_eq!(pieces_to_text(bytes.chunks(size)), String::from_utf8_lossy(&bytes).into_owned());
        }

        #[test]
        fn any_split_of_text_is_the_text(text in "\\PC{0,40}", size in 1..7usize) {
            prop_assert_eq!(pieces_to_text(text.as_bytes().chunks(size)), text);
        }
    }
}
