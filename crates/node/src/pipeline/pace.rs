//! How fast this node sends rows ahead: slowly enough that what runs now does not feel it. Pure.

use std::time::{Duration, Instant};

/// So much may leave at once after a pause: the rows of a short prompt.
const BURST: Duration = Duration::from_millis(1_500);

/// So many bytes a second, and a burst after a pause.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    /// When all that left would have left at the even pace.
    paid_until: Option<Instant>,
}

impl Pace {
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, paid_until: None }
    }

    /// Nothing leaves at all.
    pub fn is_none(&self) -> bool {
        self.bytes_per_s == 0
    }

    /// Counts `bytes` as sent at `now`.
    ///
    /// # Errors
    /// When to ask again; nothing may leave before.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Result<(), Instant> {
        let since = self.paid_until.map_or(now, |paid| paid.max(now));
        if since.duration_since(now) > BURST {
            return Err(since.checked_sub(BURST).unwrap_or(now));
        }
        let micros = (bytes as u64).saturating_mul(1_000_000) / self.bytes_per_s.max(1);
        self.paid_until = Some(since + Duration::from_micros(micros));
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_leaves_at_once_and_the_rest_at_an_even_pace() {
        let (mut pace, began) = (Pace::new(1_000_000), Instant::now());
        let (mut now, mut sent) = (began, 0);
        let mut at_once = None;
        while sent < 10_000_000 {
            match pace.take(50_000, now) {
                Ok(()) => sent += 50_000,
                Err(later) => {
                    assert!(later > now, "asking again makes no sense before");
                    at_once.get_or_insert(sent);
                    now = later;
                }
            }
        }
        assert!((1_450_000..=1_600_000).contains(&at_once.unwrap()), "{at_once:?}");
        let took = now.duration_since(began).as_secs_f64();
        assert!((8.0..9.0).contains(&took), "{took}");
        let later = now + Duration::from_secs(60);
        assert!((0..30).all(|_| pace.take(50_000, later).is_ok()), "a burst again after a pause");
    }
}
