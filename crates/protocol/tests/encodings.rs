//! Every wire type survives its encoding, and no bytes from outside do more than fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fmt::Debug;

use opengrid_protocol::{
    Signed,
    beacon::Beacon,
    codec::{self, DecodeError},
    content::{ContentRequest, ContentResponse},
    invite::Invite,
    limits::{ADDRESS_BYTES_MAX, FRAME_BYTES_MAX, INVITE_ADDRESSES_MAX},
    pipeline::ToStage,
    sealing_key::SealingKey,
    session::{ToGateway, ToWorker},
};
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};

/// The bytes come back to the same value (compared by its bytes, since NaN is unequal to itself); neither a part of
/// them nor more than them is a value, nor are they under a lower limit.
fn survives<T: Serialize + DeserializeOwned + Debug>(value: &T, cut: prop::sample::Index) -> Result<(), TestCaseError> {
    let bytes = codec::encode(value);
    let decoded: T = codec::decode(&bytes, bytes.len()).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(codec::encode(&decoded), bytes.clone());
    let part = &bytes[..cut.index(bytes.len())];
    prop_assert!(matches!(codec::decode::<T>(part, FRAME_BYTES_MAX), Err(DecodeError::Malformed(_))));
    let more = [bytes.as_slice(), &[0]].concat();
    prop_assert_eq!(codec::decode::<T>(&more, FRAME_BYTES_MAX).unwrap_err(), DecodeError::Trailing(1));
    let limit = bytes.len() - 1;
    let too_large = DecodeError::TooLarge { size: bytes.len(), limit };
    prop_assert_eq!(codec::decode::<T>(&bytes, limit).unwrap_err(), too_large);
    Ok(())
}

/// Decoding neither panics nor gives what does not encode again.
fn withstands<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = codec::decode::<T>(bytes, FRAME_BYTES_MAX) {
        let again = codec::encode(&value);
        prop_assert!(again.len() <= bytes.len(), "a value has no shorter form than ours");
        prop_assert!(codec::decode::<T>(&again, FRAME_BYTES_MAX).is_ok());
    }
    Ok(())
}

fn withstands_as_any_type(bytes: &[u8]) -> Result<(), TestCaseError> {
    withstands::<ToWorker>(bytes)?;
    withstands::<ToGateway>(bytes)?;
    withstands::<ToStage>(bytes)?;
    withstands::<Beacon>(bytes)?;
    withstands::<SealingKey>(bytes)?;
    withstands::<ContentRequest>(bytes)?;
    withstands::<ContentResponse>(bytes)?;
    withstands::<Signed>(bytes)?;
    withstands::<Invite>(bytes)
}

proptest! {
    #[test]
    fn messages_to_stages_survive(value in common::to_stage(), cut: prop::sample::Index) {
        survives(&value, cut)?;
    }

    #[test]
    fn messages_to_workers_survive(value in common::to_worker(), cut: prop::sample::Index) {
        survives(&value, cut)?;
    }

    #[test]
    fn messages_to_gateways_survive(value in common::to_gateway(), cut: prop::sample::Index) {
        survives(&value, cut)?;
    }

    #[test]
    fn beacons_survive(value in common::beacon(), cut: prop::sample::Index) {
        survives(&value, cut)?;
    }

    #[test]
    fn sealing_keys_survive(value in common::sealing_key(), cut: prop::sample::Index) {
        survives(&value, cut)?;
    }

    #[test]
    fn content_messages_survive(
        request in common::content_request(), response in common::content_response(), cut: prop::sample::Index,
    ) {
        survives(&request, cut)?;
        survives(&response, cut)?;
    }

    #[test]
    fn signed_records_survive(value in common::signed(), cut: prop::sample::Index) {
        survives(&value, cut)?;
        prop_assert_eq!(Signed::from_bytes(&value.to_bytes()), Ok(value));
    }

    #[test]
    fn noise_is_withstood(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        withstands_as_any_type(&bytes)?;
    }

    #[test]
    fn damaged_messages_are_withstood(
        value in common::to_worker(), answer in common::to_gateway(), beacon in common::beacon(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for mut bytes in [codec::encode(&value), codec::encode(&answer), codec::encode(&beacon)] {
            for (at, byte) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            withstands_as_any_type(&bytes)?;
        }
    }

    /// Whatever a node knows of itself, the invite that it prints can be read: with the first addresses that fit.
    #[test]
    fn invites_that_are_printed_can_be_read(invite in common::invite()) {
        let text = invite.to_text();
        let read = Invite::from_text(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!((read.node, read.private), (invite.node, invite.private));
        let usable: Vec<_> = invite.addresses.iter().filter(|address| address.len() <= ADDRESS_BYTES_MAX).collect();
        prop_assert!(read.addresses.len() <= INVITE_ADDRESSES_MAX);
        prop_assert!(read.addresses.iter().eq(usable.iter().copied().take(read.addresses.len())));
        prop_assert_eq!(Invite::from_text(&text.to_ascii_uppercase()), Ok(read), "as QR codes write it");
    }

    #[test]
    fn texts_that_are_no_invites_are_withstood(text in "(grid1)?[ -~]{0,80}", tail in any::<String>()) {
        prop_assert!(Invite::from_text(&text).is_err());
        prop_assert!(Invite::from_text(&(text + &tail)).is_err());
    }

    /// Bech32m finds every change of one character.
    #[test]
    fn a_mistyped_invite_is_refused(invite in common::invite(), at: prop::sample::Index, other in "[a-z0-9]") {
        let text = invite.to_text();
        let at = at.index(text.len());
        prop_assume!(text[at..=at] != other);
        let mistyped = [&text[..at], &other, &text[at + 1..]].concat();
        prop_assert!(Invite::from_text(&mistyped).is_err(), "{mistyped}");
    }
}

/// A length of 2^62 costs no memory.
#[test]
fn promised_lengths_reserve_nothing() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f];
    let size = [0];
    let manifest = [&[0], size.as_slice(), &huge].concat();
    assert!(codec::decode::<ContentResponse>(&manifest, FRAME_BYTES_MAX).is_err());
    let payload = [[0; 32].as_slice(), &huge].concat();
    assert!(Signed::from_bytes(&payload).is_err());
}
