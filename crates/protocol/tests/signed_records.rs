//! Signed records against forgers, replayers and wrong clocks.
#![allow(clippy::unwrap_used)]

mod common;

use opengrid_protocol::{
    ModelRoot, NodeId, Signed,
    beacon::{Beacon, Class, Features},
    codec::DecodeError,
    limits::{BEACON_LIFE_MS, BEACON_LIFE_MS_MAX, CLOCK_SKEW_MS_MAX, RECORD_BYTES_MAX},
    sealing_key::SealingKey,
    signed::RecordError,
};
use proptest::prelude::*;

const NOW_MS: u64 = 1_800_000_000_000;
const SECRET: [u8; 32] = [8; 32];

fn beacon() -> Beacon {
    Beacon {
        model: ModelRoot([1; 32]),
        model_id: "smollm2-135m".into(),
        class: Class::Approximate,
        features: Features::EMBEDDED,
        sequence: 1,
        issued_ms: NOW_MS,
        life_ms: BEACON_LIFE_MS,
        context_tokens: 8_192,
        slots: 4,
        slots_busy: 1,
        queued: 0,
        decode_millitokens_per_s: 90_000,
        prefill_millitokens_per_s: 400_000,
        draining: false,
        stage: None,
    }
}

proptest! {
    #[test]
    fn what_is_signed_opens(mut beacon in common::beacon(), secret: [u8; 32]) {
        beacon.model_id = "a-model".into();
        beacon.life_ms %= BEACON_LIFE_MS_MAX;
        let signed = Signed::from_bytes(&Signed::seal(&beacon, &secret).to_bytes()).unwrap();
        prop_assert_eq!(signed.open::<Beacon>(beacon.issued_ms), Ok(beacon));
    }

    #[test]
    fn any_flipped_bit_is_noticed(at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = Signed::seal(&beacon(), &SECRET).to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(signed) = Signed::from_bytes(&bytes) {
            prop_assert_eq!(signed.open::<Beacon>(NOW_MS), Err(RecordError::BadSignature(signed.signer)));
        }
    }

    #[test]
    fn noise_opens_as_nothing(signed in common::signed(), now_ms: u64) {
        prop_assert_eq!(signed.open::<Beacon>(now_ms), Err(RecordError::BadSignature(signed.signer)));
        prop_assert_eq!(signed.open::<SealingKey>(now_ms), Err(RecordError::BadSignature(signed.signer)));
    }
}

#[test]
fn a_record_holds_from_its_issue_to_its_end_and_some_skew_around() {
    let signed = Signed::seal(&beacon(), &SECRET);
    let end_ms = NOW_MS + BEACON_LIFE_MS;
    for now_ms in [NOW_MS - CLOCK_SKEW_MS_MAX, NOW_MS, end_ms, end_ms + CLOCK_SKEW_MS_MAX] {
        assert_eq!(signed.open(now_ms), Ok(beacon()), "{now_ms}");
    }
    let late_ms = CLOCK_SKEW_MS_MAX + 1;
    assert_eq!(signed.open::<Beacon>(end_ms + late_ms), Err(RecordError::Expired(late_ms)));
    let early_ms = CLOCK_SKEW_MS_MAX + 1;
    assert_eq!(signed.open::<Beacon>(NOW_MS - early_ms), Err(RecordError::FromTheFuture(early_ms)));
    assert_eq!(signed.open::<Beacon>(0), Err(RecordError::FromTheFuture(NOW_MS)));
    assert_eq!(signed.open::<Beacon>(u64::MAX), Err(RecordError::Expired(u64::MAX - end_ms)));
}

#[test]
fn one_kind_never_passes_for_another() {
    let key = SealingKey { key_id: [0; 8], public: vec![0; 1_216], issued_ms: NOW_MS, expires_ms: NOW_MS + 1 };
    let signed = Signed::seal(&key, &SECRET);
    assert_eq!(signed.open(NOW_MS), Ok(key));
    assert_eq!(signed.open::<Beacon>(NOW_MS), Err(RecordError::BadSignature(signed.signer)));
}

#[test]
fn another_signer_is_refused() {
    let other = Signed::seal(&beacon(), &[9; 32]).signer;
    let stolen = Signed { signer: other, ..Signed::seal(&beacon(), &SECRET) };
    assert_eq!(stolen.open::<Beacon>(NOW_MS), Err(RecordError::BadSignature(other)));
}

/// Under a key of small order some signatures hold for every message; strict verification knows none.
#[test]
fn keys_of_small_order_sign_nothing() {
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut signature = vec![0; 64];
    signature[0] = 1;
    let payload = Signed::seal(&beacon(), &SECRET).payload;
    let forged = Signed { signer: NodeId(identity), payload, signature };
    assert_eq!(forged.open::<Beacon>(NOW_MS), Err(RecordError::BadSignature(NodeId(identity))));
}

/// Ed25519's s and s + L are the same scalar; only the canonical one is a signature, so that none has two forms.
#[test]
fn signatures_have_one_form() {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut signed = Signed::seal(&beacon(), &SECRET);
    let mut carry = 0;
    for (byte, order) in signed.signature[32..].iter_mut().zip(ORDER) {
        carry += u16::from(*byte) + u16::from(order);
        *byte = carry as u8;
        carry >>= 8;
    }
    assert_eq!(signed.open::<Beacon>(NOW_MS), Err(RecordError::BadSignature(signed.signer)));
}

#[test]
fn limits_hold_for_signed_records_too() {
    let mut beacon = beacon();
    beacon.life_ms = BEACON_LIFE_MS_MAX + 1;
    let refused = Signed::seal(&beacon, &SECRET).open::<Beacon>(NOW_MS);
    assert_eq!(refused, Err(DecodeError::Invalid("beacon lives too long").into()));
    beacon.model_id = "x".repeat(RECORD_BYTES_MAX);
    let signed = Signed::seal(&beacon, &SECRET);
    assert!(matches!(signed.open::<Beacon>(NOW_MS), Err(RecordError::Decode(DecodeError::TooLarge { .. }))));
    assert!(matches!(Signed::from_bytes(&signed.to_bytes()), Err(DecodeError::TooLarge { .. })));
}
