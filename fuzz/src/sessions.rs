use opengrid_protocol::{
    codec,
    content::{ContentRequest, ContentResponse},
    limits::{EMBED_TEXTS_MAX, FRAME_BYTES_MAX, LOGIT_BIAS_MAX, POSITIONS_MAX, PROMPT_TOKENS_MAX, STOP_TOKENS_MAX},
    pipeline::{Order, ToStage},
    session::{ToGateway, ToWorker},
};
use serde::{Serialize, de::DeserializeOwned};

/// The first byte chooses the type; a value encodes to no more bytes than it came in and comes back equal. What an
/// opening's check lets pass is within the limits that others rely on.
pub fn session_messages(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 5 {
        0 => match decode::<ToWorker>(bytes) {
            Some(ToWorker::Open(open)) if open.check().is_ok() => {
                assert!((1..=PROMPT_TOKENS_MAX).contains(&open.tokens.len()));
                assert!((1..=open.tokens.len()).contains(&(open.prompt_tokens as usize)));
                assert!(open.stop_tokens.len() <= STOP_TOKENS_MAX);
                assert!(open.sampling.logit_bias.len() <= LOGIT_BIAS_MAX);
                assert!(open.sampling.temperature.is_finite() && open.sampling.repeat_penalty > 0.0);
            }
            Some(ToWorker::Embed(embed)) if embed.check().is_ok() => {
                assert!((1..=EMBED_TEXTS_MAX).contains(&embed.texts.len()));
                assert!((1..=PROMPT_TOKENS_MAX).contains(&embed.texts.concat().len()));
                assert!(embed.texts.iter().all(|text| !text.is_empty()));
            }
            Some(ToWorker::OpenPart(part)) if part.check().is_ok() => {
                assert!((1..=POSITIONS_MAX).contains(&part.positions_max));
                assert!(part.head.is_none_or(|head| head.check().is_ok() && head.session == part.session));
            }
            Some(ToWorker::Order { order: Order::Feed { from, tokens }, .. })
                if (Order::Feed { from, tokens: tokens.clone() }).check().is_ok() =>
            {
                assert!((1..=PROMPT_TOKENS_MAX).contains(&tokens.len()) && from <= POSITIONS_MAX);
            }
            Some(ToWorker::Standby(standby)) if standby.check().is_ok() => assert!(standby.layers.from() > 0),
            Some(ToWorker::Order { order: Order::Prepare { standby, until }, .. })
                if (Order::Prepare { standby, until }).check().is_ok() =>
            {
                assert!(until <= POSITIONS_MAX);
            }
            _ => {}
        },
        1 => drop(decode::<ToGateway>(bytes)),
        2 => drop(decode::<ContentRequest>(bytes)),
        4 => {
            if let Some(message) = decode::<ToStage>(bytes).filter(|message| message.check().is_ok()) {
                assert!(message.from <= POSITIONS_MAX);
            }
        }
        _ => drop(decode::<ContentResponse>(bytes)),
    }
}

fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = codec::decode(bytes, FRAME_BYTES_MAX).ok()?;
    let encoded = codec::encode(&value);
    assert!(encoded.len() <= bytes.len());
    let again: T = codec::decode(&encoded, FRAME_BYTES_MAX).expect("our own encoding");
    assert_eq!(codec::encode(&again), encoded);
    Some(value)
}
