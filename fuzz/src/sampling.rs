use opengrid_protocol::{Sampling, codec};
use opengrid_sampler::{Sampler, logprobs};

/// Parameters that a peer sent (a length byte, then so many bytes of them) and the logits of a broken engine: no panic,
/// a token of the vocabulary, finite log-probabilities. Valid parameters draw the same from a sampler that resumed.
pub fn sampling(data: &[u8]) {
    let Some((length, rest)) = data.split_first() else { return };
    let Some((parameters, logits)) = rest.split_at_checked((*length).into()) else { return };
    let Ok(sampling) = codec::decode::<Sampling>(parameters, parameters.len()) else { return };
    let raw: Vec<f32> = logits.as_chunks().0.iter().map(|bits| f32::from_le_bytes(*bits)).collect();
    let prompt = [0, 1, u32::MAX];
    let mut answer = vec![];
    let mut living = Sampler::new(&sampling, &prompt, &[]);
    for step in 0..4 {
        let token = living.pick(&mut raw.clone(), step);
        assert!((token as usize) < raw.len().max(1));
        let resumed = Sampler::new(&sampling, &prompt, &answer).pick(&mut raw.clone(), step);
        assert_eq!(resumed, token);
        living.accept(token);
        answer.push(token);
        let (logprob, top) = logprobs(&raw, token, *length);
        assert!(logprob.is_finite() && top.iter().all(|(_, logprob)| logprob.is_finite()));
    }
}
