//! Speed per model class: measured where a model of the class is here, else scaled from the nearest measured one.
//!
//! One stream's decoding reads every weight once per token, so it is bound by memory and scales with their bytes;
//! prefill is bound by arithmetic and scales with the number of parameters. Small models gain from the caches, so an
//! estimate from a smaller model is on the high side.

use serde::Serialize;

/// What speed depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub weight_bytes: u64,
    pub parameters: u64,
}

pub struct Measured {
    pub id: String,
    pub class: String,
    pub size: Size,
    pub prefill_tokens_per_s: f32,
    pub decode_tokens_per_s: f32,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct ClassRow {
    pub class: &'static str,
    pub prefill_tokens_per_s: Option<f32>,
    pub decode_tokens_per_s: Option<f32>,
    /// A typical model of the class fits the memory that the owner allows.
    pub fits: bool,
    /// e.g. `measured: smollm2-135m`.
    pub basis: String,
}

/// A typical model of each class in 4-bit quantisation (4.85 bits per weight): 0.5, 3, 8 and 70 billion parameters.
const TYPICAL: [(&str, Size); 4] = [
    ("tiny", Size { weight_bytes: 300_000_000, parameters: 500_000_000 }),
    ("small", Size { weight_bytes: 1_800_000_000, parameters: 3_000_000_000 }),
    ("medium", Size { weight_bytes: 4_900_000_000, parameters: 8_000_000_000 }),
    ("large", Size { weight_bytes: 42_500_000_000, parameters: 70_000_000_000 }),
];

/// A row per class, lightest first.
pub fn classes(measured: &[Measured], available_bytes: u64, memory_percent: u32) -> Vec<ClassRow> {
    let allowed = available_bytes / 100 * u64::from(memory_percent);
    TYPICAL.iter().map(|(class, typical)| row(class, *typical, measured, typical.weight_bytes <= allowed)).collect()
}

fn row(class: &'static str, typical: Size, measured: &[Measured], fits: bool) -> ClassRow {
    if let Some(own) = measured.iter().filter(|model| model.class == class).max_by_key(|model| model.size.weight_bytes)
    {
        return ClassRow {
            class,
            prefill_tokens_per_s: Some(own.prefill_tokens_per_s),
            decode_tokens_per_s: Some(own.decode_tokens_per_s),
            fits: true,
            basis: format!("measured: {}", own.id),
        };
    }
    let distance = |model: &&Measured| model.size.weight_bytes.abs_diff(typical.weight_bytes);
    let Some(nearest) = measured.iter().filter(|model| model.size.parameters > 0).min_by_key(distance) else {
        return ClassRow {
            class,
            prefill_tokens_per_s: None,
            decode_tokens_per_s: None,
            fits,
            basis: "no model here to measure".into(),
        };
    };
    let scaled = |speed: f32, own: u64, other: u64| (f64::from(speed) * own as f64 / other as f64) as f32;
    ClassRow {
        class,
        prefill_tokens_per_s: Some(scaled(nearest.prefill_tokens_per_s, nearest.size.parameters, typical.parameters)),
        decode_tokens_per_s: Some(scaled(nearest.decode_tokens_per_s, nearest.size.weight_bytes, typical.weight_bytes)),
        fits,
        basis: format!("estimated from {}", nearest.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(class: &str, weight_bytes: u64) -> Measured {
        Measured {
            id: format!("m-{class}"),
            class: class.into(),
            size: Size { weight_bytes, parameters: weight_bytes * 2 },
            prefill_tokens_per_s: 300.0,
            decode_tokens_per_s: 90.0,
        }
    }

    #[test]
    fn what_was_measured_is_not_estimated() {
        let rows = classes(&[model("tiny", 100_000_000)], 16_000_000_000, 75);
        assert_eq!((rows[0].decode_tokens_per_s, rows[0].basis.as_str()), (Some(90.0), "measured: m-tiny"));
        assert_eq!((rows[1].decode_tokens_per_s, rows[1].basis.as_str()), (Some(5.0), "estimated from m-tiny"));
        assert_eq!(rows[1].prefill_tokens_per_s, Some(20.0));
        assert!(rows[2].fits && !rows[3].fits);
    }

    #[test]
    fn the_nearest_measured_model_counts() {
        let rows = classes(&[model("tiny", 100_000_000), model("medium", 4_900_000_000)], 64_000_000_000, 75);
        assert_eq!(rows[3].basis, "estimated from m-medium");
        assert_eq!(rows[1].basis, "estimated from m-tiny");
        assert!(classes(&[], 0, 75).iter().all(|row| row.decode_tokens_per_s.is_none() && !row.fits));
    }
}
