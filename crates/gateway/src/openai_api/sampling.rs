//! OpenAI's sampling parameters, and the usual ones of open models, as the grid's.

use opengrid_protocol::Sampling;

use super::{errors::ApiError, types::GenerationRequest};

/// The sampling of choice 0. Without a seed one is drawn.
///
/// # Errors
/// 400 with the first parameter outside its range. `vocabulary_size` bounds the ids of `logit_bias`.
pub fn sampling(request: &GenerationRequest, vocabulary_size: u32) -> Result<Sampling, ApiError> {
    let number = |param, value: Option<f64>, default, low, high| within(param, value.unwrap_or(default), low, high);
    Ok(Sampling {
        seed: seed(request)?,
        choice: 0,
        temperature: number("temperature", request.temperature, 1.0, 0.0, 2.0)?,
        top_k: top_k(request)?,
        top_p: number("top_p", request.top_p, 1.0, 0.0, 1.0)?,
        min_p: number("min_p", request.min_p, 0.0, 0.0, 1.0)?,
        presence_penalty: number("presence_penalty", request.presence_penalty, 0.0, -2.0, 2.0)?,
        frequency_penalty: number("frequency_penalty", request.frequency_penalty, 0.0, -2.0, 2.0)?,
        repeat_penalty: number("repeat_penalty", request.repeat_penalty, 1.0, 0.01, 100.0)?,
        repeat_last_n: repeat_last_n(request)?,
        logit_bias: logit_bias(request, vocabulary_size)?,
    })
}

fn within(param: &'static str, value: f64, low: f64, high: f64) -> Result<f32, ApiError> {
    if value >= low && value <= high {
        return Ok(value as f32);
    }
    Err(ApiError::invalid_value(param, format!("`{param}` must lie between {low} and {high}, not {value}")))
}

fn seed(request: &GenerationRequest) -> Result<u64, ApiError> {
    let Some(number) = &request.seed else { return Ok(rand::random()) };
    number
        .as_u64()
        .or_else(|| number.as_i64().map(i64::cast_unsigned))
        .ok_or_else(|| ApiError::invalid_value("seed", "`seed` must be an integer of 64 bits"))
}

/// -1 and 0 keep all.
fn top_k(request: &GenerationRequest) -> Result<u32, ApiError> {
    match request.top_k.unwrap_or(0) {
        -1 => Ok(0),
        k => k
            .try_into()
            .map_err(|_| ApiError::invalid_value("top_k", format!("`top_k` must lie in -1..={}, not {k}", u32::MAX))),
    }
}

fn repeat_last_n(request: &GenerationRequest) -> Result<u32, ApiError> {
    let n = request.repeat_last_n.unwrap_or(64);
    let fits = u32::try_from(n).ok().filter(|n| *n <= 65_536);
    fits.ok_or_else(|| {
        ApiError::invalid_value("repeat_last_n", format!("`repeat_last_n` must lie between 0 and 65536, not {n}"))
    })
}

fn logit_bias(request: &GenerationRequest, vocabulary_size: u32) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(entries) = &request.logit_bias else { return Ok(Vec::new()) };
    let checked = |(token, bias): &(u32, f64)| {
        if *token >= vocabulary_size {
            let message = format!("`logit_bias` names token {token}, the vocabulary has {vocabulary_size}");
            return Err(ApiError::invalid_value("logit_bias", message));
        }
        Ok((*token, within("logit_bias", *bias, -100.0, 100.0)?))
    };
    entries.0.iter().map(checked).collect()
}
