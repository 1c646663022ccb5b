//! Server-sent events, as far as the OpenAI API uses them: `data:` lines between blank lines.

/// Longest event in bytes; a stream with a longer one is refused.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// Cuts a byte stream into the `data` of its events.
#[derive(Debug, Default)]
pub struct Events {
    buffer: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer's stream has an event of more than {EVENT_BYTES_MAX} bytes")]
pub struct TooLong;

impl Events {
    /// The events that `bytes` complete, oldest first. Comments and other fields than `data` are dropped.
    ///
    /// # Errors
    /// When an unfinished event is over 1 MiB.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some((end, next)) = event_end(&self.buffer) {
            if let Some(data) = data_of(&self.buffer[..end]) {
                events.push(data);
            }
            self.buffer.drain(..next);
        }
        if self.buffer.len() > EVENT_BYTES_MAX { Err(TooLong) } else { Ok(events) }
    }
}

/// Where the first event ends and where the next starts.
fn event_end(buffer: &[u8]) -> Option<(usize, usize)> {
    let unix = buffer.windows(2).position(|pair| pair == b"\n\n").map(|at| (at, at + 2));
    let dos = buffer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| (at, at + 4));
    [unix, dos].into_iter().flatten().min()
}

fn data_of(event: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(event);
    let data: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| data.strip_prefix(' ').unwrap_or(data))
        .collect();
    (!data.is_empty()).then(|| data.join("\n"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let stream =
            ": keep-alive\n\ndata: {\"a\":\"é\"}\n\ndata: x\ndata: y\r\n\r\nevent: e\n\ndata: [DONE]\n\n".as_bytes();
        let expected = ["{\"a\":\"é\"}", "x\ny", "[DONE]"];
        for size in 1..stream.len() {
            let mut events = Events::default();
            let found: Vec<String> = stream.chunks(size).flat_map(|part| events.push(part).unwrap()).collect();
            assert_eq!(found, expected, "cut every {size} bytes");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut events = Events::default();
        let part = vec![b'a'; EVENT_BYTES_MAX];
        assert_eq!(events.push(&part), Ok(vec![]));
        assert_eq!(events.push(b"a"), Err(TooLong));
    }
}
