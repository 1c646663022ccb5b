//! How late packets were handed over (pure): the laboratory's own share in what an experiment measures.

use std::time::Duration;

const STEP: Duration = Duration::from_micros(10);
/// Up to 10 ms in steps; all that is later falls into the last one.
const STEPS: usize = 1001;

#[derive(Debug)]
pub struct Lateness {
    counts: Box<[u64]>,
    total: u64,
    worst: Duration,
}

impl Default for Lateness {
    fn default() -> Self {
        Self { counts: vec![0; STEPS].into(), total: 0, worst: Duration::ZERO }
    }
}

impl Lateness {
    pub fn record(&mut self, late: Duration) {
        let step = late.as_nanos() / STEP.as_nanos();
        self.counts[usize::try_from(step).unwrap_or(usize::MAX).min(STEPS - 1)] += 1;
        self.total += 1;
        self.worst = self.worst.max(late);
    }

    pub fn worst(&self) -> Duration {
        self.worst
    }

    /// By nearest rank, rounded up to 10 us; the worst one where it lies beyond 10 ms. Zero when nothing was recorded.
    pub fn percentile(&self, percent: u8) -> Duration {
        let rank = (self.total * u64::from(percent.min(100))).div_ceil(100);
        let mut below = 0;
        let step = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        });
        match step {
            _ if self.total == 0 => Duration::ZERO,
            Some(step) if step < STEPS - 1 => (STEP * (step as u32 + 1)).min(self.worst),
            _ => self.worst,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_values_rounded_up() {
        let mut lateness = Lateness::default();
        assert_eq!(lateness.percentile(50), Duration::ZERO);
        (1..=100).for_each(|micros| lateness.record(Duration::from_micros(micros)));
        assert_eq!(lateness.percentile(50), Duration::from_micros(60));
        assert_eq!(lateness.percentile(99), Duration::from_micros(100));
        lateness.record(Duration::from_secs(3));
        assert_eq!(lateness.percentile(100), Duration::from_secs(3));
        assert_eq!(lateness.worst(), Duration::from_secs(3));
    }
}
