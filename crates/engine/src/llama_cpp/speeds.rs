//! How fast the engine really is: means over the steps that it runs. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::messages::Measured;

/// Weight of the newest step: of one decoded token, of a prefill of [`PREFILL_TOKENS_MIN`] or more.
const NEWEST_DECODE: f32 = 0.05;
const NEWEST_PREFILL: f32 = 0.25;
/// Shorter prefills say little: a step has costs that do not grow with it.
const PREFILL_TOKENS_MIN: usize = 32;
/// No machine is faster; what a child claims beyond is cut.
const TOKENS_PER_S_MAX: f32 = 1e7;
/// Speeds that rose by less are not worth a write.
const BETTER: f32 = 1.1;

/// In tokens per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speeds {
    /// Of one stream alone.
    pub decode: f32,
    pub prefill: f32,
}

impl Speeds {
    /// After a step of `tokens`: one decoded token of a lone stream, or a prefill and nothing else.
    pub fn record(&mut self, tokens: usize, took: Duration) {
        let now = tokens as f32 / took.as_secs_f32().max(1e-6);
        match tokens {
            1 => self.decode += (now - self.decode) * NEWEST_DECODE,
            PREFILL_TOKENS_MIN.. => self.prefill += (now - self.prefill) * NEWEST_PREFILL,
            _ => {}
        }
    }

    /// The same where a child said something sensible, the known speeds where it did not.
    pub fn sane(self, known: Self) -> Self {
        let sane = |speed: f32, known: f32| {
            if speed.is_finite() && speed > 0.0 { speed.min(TOKENS_PER_S_MAX) } else { known }
        };
        Self { decode: sane(self.decode, known.decode), prefill: sane(self.prefill, known.prefill) }
    }
}

impl Measured {
    pub fn speeds(&self) -> Speeds {
        Speeds { decode: self.decode_tokens_per_s, prefill: self.prefill_tokens_per_s }
    }

    /// With the better of both speeds; `None` when none is clearly better.
    pub fn improved(&self, speeds: Speeds) -> Option<Self> {
        let better =
            speeds.decode > self.decode_tokens_per_s * BETTER || speeds.prefill > self.prefill_tokens_per_s * BETTER;
        better.then(|| Self {
            decode_tokens_per_s: self.decode_tokens_per_s.max(speeds.decode),
            prefill_tokens_per_s: self.prefill_tokens_per_s.max(speeds.prefill),
            ..*self
        })
    }
}

#[cfg(test)]
mod tests {
    use opengrid_protocol::beacon::Class;

    use super::*;

    #[test]
    fn real_steps_correct_a_bad_measurement() {
        let mut speeds = Speeds { decode: 7.0, prefill: 50.0 };
        for _ in 0..100 {
            speeds.record(1, Duration::from_millis(10));
            speeds.record(300, Duration::from_secs(1));
            speeds.record(4, Duration::from_secs(100));
        }
        assert!((95.0..=100.0).contains(&speeds.decode), "{speeds:?}");
        assert!((295.0..=300.0).contains(&speeds.prefill), "{speeds:?}");
    }

    #[test]
    fn nonsense_is_not_believed() {
        let known = Speeds { decode: 7.0, prefill: 50.0 };
        for nonsense in [f32::NAN, f32::INFINITY, -1.0, 0.0] {
            assert_eq!(Speeds { decode: nonsense, prefill: nonsense }.sane(known), known);
        }
        assert_eq!(Speeds { decode: 1e30, prefill: 60.0 }.sane(known), Speeds { decode: 1e7, prefill: 60.0 });
    }

    #[test]
    fn only_better_speeds_are_kept() {
        let kept = Measured { class: Class::Approximate, decode_tokens_per_s: 50.0, prefill_tokens_per_s: 200.0 };
        assert_eq!(kept.improved(Speeds { decode: 54.0, prefill: 210.0 }), None);
        let better = kept.improved(Speeds { decode: 90.0, prefill: 20.0 });
        assert_eq!(better, Some(Measured { decode_tokens_per_s: 90.0, ..kept }));
    }
}
