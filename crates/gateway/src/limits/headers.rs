//! OpenAI's headers about limits.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::{Meter, bucket::State};

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// All names that [`write`] may set.
pub fn names() -> impl Iterator<Item = HeaderName> {
    REQUESTS.into_iter().chain(TOKENS)
}

/// Sets the headers of the limits that `meter` has.
pub fn write(headers: &mut HeaderMap, meter: &Meter) {
    for (names, state) in [REQUESTS, TOKENS].into_iter().zip(meter.states()) {
        let Some(State { limit, remaining, full_in }) = state else { continue };
        let [limit_name, remaining_name, reset_name] = names;
        headers.insert(limit_name, limit.into());
        headers.insert(remaining_name, remaining.into());
        if let Ok(reset) = HeaderValue::from_str(&duration(full_in)) {
            headers.insert(reset_name, reset);
        }
    }
}

/// As OpenAI writes durations, which is as Go does: `120ms`, `1.5s`, `6m0s`, `1h0m0s`. Rounded up to milliseconds.
pub fn duration(time: Duration) -> String {
    let ms = time.as_micros().div_ceil(1_000);
    let (hours, minutes, ms_rest) = (ms / 3_600_000, ms / 60_000 % 60, ms % 60_000);
    let seconds = match ms_rest % 1_000 {
        0 => format!("{}s", ms_rest / 1_000),
        part => format!("{}.{}s", ms_rest / 1_000, format!("{part:03}").trim_end_matches('0')),
    };
    match (hours, minutes) {
        (0, 0) if (1..1_000).contains(&ms) => format!("{ms}ms"),
        (0, 0) => seconds,
        (0, _) => format!("{minutes}m{seconds}"),
        _ => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        for (ms, text) in [
            (0, "0s"),
            (1, "1ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (8_640, "8.64s"),
            (59_999, "59.999s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (61_500, "1m1.5s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(duration(Duration::from_micros(1)), "1ms");
    }
}
