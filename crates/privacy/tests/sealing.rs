//! A gateway, a worker and an adversary between them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use opengrid_privacy::sealing::{
    ClientChannel, HELLO_BYTES, KeyRing, Opener, PLAINTEXT_BYTES_MAX, SealError, Sealer, frame_bytes,
};
use opengrid_protocol::{
    NodeId, Signed,
    limits::{CLOCK_SKEW_MS_MAX, FRAME_BYTES_MAX, SEALING_KEY_LIFE_MS, SEALING_KEY_OVERLAP_MS},
    sealing_key::SealingKey,
};
use proptest::prelude::*;

const NOW_MS: u64 = 1_800_000_000_000;
const GATEWAY: NodeId = NodeId([3; 32]);

fn ring() -> KeyRing {
    KeyRing::new([5; 32], NOW_MS)
}

fn key_of(signed: &Signed, now_ms: u64) -> SealingKey {
    signed.open(now_ms).unwrap()
}

/// Opens a channel to what the ring publishes at `now_ms`.
fn hello_to(ring: &mut KeyRing, now_ms: u64) -> (ClientChannel, Vec<u8>) {
    let signed = ring.current(now_ms);
    ClientChannel::open(signed.signer, &key_of(&signed, now_ms), GATEWAY).unwrap()
}

struct Ends {
    gateway: (Sealer, Opener),
    worker: (Sealer, Opener),
}

fn connect(ring: &mut KeyRing) -> Ends {
    let (client, hello) = hello_to(ring, NOW_MS);
    assert_eq!(hello.len(), HELLO_BYTES);
    let server = ring.accept(&hello, GATEWAY, NOW_MS).unwrap();
    Ends { gateway: client.into_split(), worker: server.into_split() }
}

/// The two directions of a fresh channel: who seals and who opens.
fn directions() -> [(Sealer, Opener); 2] {
    let ends = connect(&mut ring());
    let ((gateway_sealer, gateway_opener), (worker_sealer, worker_opener)) = (ends.gateway, ends.worker);
    [(gateway_sealer, worker_opener), (worker_sealer, gateway_opener)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn messages_arrive_in_both_directions(messages in prop::collection::vec(
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..6_000)), 1..20,
    )) {
        let mut ends = connect(&mut ring());
        for (from_gateway, message) in messages {
            let (sealer, opener) = if from_gateway {
                (&mut ends.gateway.0, &mut ends.worker.1)
            } else {
                (&mut ends.worker.0, &mut ends.gateway.1)
            };
            let frame = sealer.seal(&message).unwrap();
            prop_assert_eq!(frame.len(), frame_bytes(message.len()));
            prop_assert_eq!(opener.open(&frame).unwrap(), message);
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed(size in 0usize..300, position: prop::sample::Index, bit in 0u8..8) {
        for (mut sealer, mut opener) in directions() {
            let mut frame = sealer.seal(&vec![1; size]).unwrap();
            let at = position.index(frame.len());
            frame[at] ^= 1 << bit;
            prop_assert_eq!(opener.open(&frame), Err(SealError::Refused));
        }
    }

    #[test]
    fn any_flipped_bit_of_a_hello_is_noticed(position in 0..HELLO_BYTES, bit in 0u8..8) {
        let mut ring = ring();
        let (_, mut hello) = hello_to(&mut ring, NOW_MS);
        hello[position] ^= 1 << bit;
        let expected = match position {
            0 => SealError::HelloVersion(1 ^ (1 << bit)),
            1..9 => SealError::UnknownKey,
            _ => SealError::HelloRefused,
        };
        prop_assert_eq!(ring.accept(&hello, GATEWAY, NOW_MS).unwrap_err(), expected);
        hello[position] ^= 1 << bit;
        prop_assert!(ring.accept(&hello, GATEWAY, NOW_MS).is_ok(), "the mended hello is still good");
    }

    #[test]
    fn noise_neither_opens_nor_panics(bytes in prop::collection::vec(any::<u8>(), 0..3_000)) {
        prop_assert!(ring().accept(&bytes, GATEWAY, NOW_MS).is_err());
        for (_, mut opener) in directions() {
            prop_assert!(opener.open(&bytes).is_err());
        }
    }
}

#[test]
fn the_largest_message_fits_and_the_next_does_not() {
    for (mut sealer, mut opener) in directions() {
        assert_eq!(
            sealer.seal(&vec![0; PLAINTEXT_BYTES_MAX + 1]),
            Err(SealError::TooLarge { size: PLAINTEXT_BYTES_MAX + 1 })
        );
        let frame = sealer.seal(&vec![8; PLAINTEXT_BYTES_MAX]).unwrap();
        assert_eq!(frame.len(), FRAME_BYTES_MAX);
        assert_eq!(opener.open(&frame).unwrap(), vec![8; PLAINTEXT_BYTES_MAX]);
    }
}

#[test]
fn repeated_frames_are_refused_and_end_the_channel() {
    for (mut sealer, mut opener) in directions() {
        let (first, second) = (sealer.seal(b"first").unwrap(), sealer.seal(b"second").unwrap());
        assert_eq!(opener.open(&first).unwrap(), b"first");
        assert_eq!(opener.open(&first), Err(SealError::Refused));
        assert_eq!(opener.open(&second), Err(SealError::Broken));
    }
}

#[test]
fn missing_and_swapped_frames_are_refused() {
    for (mut sealer, mut opener) in directions() {
        let (_dropped, second) = (sealer.seal(b"first").unwrap(), sealer.seal(b"second").unwrap());
        assert_eq!(opener.open(&second), Err(SealError::Refused));
    }
}

#[test]
fn cut_and_stretched_frames_are_refused() {
    for size in [0, 15, 16, 63, 65, 128, 4_096, FRAME_BYTES_MAX + 4_096] {
        for (mut sealer, mut opener) in directions() {
            let mut frame = sealer.seal(b"text").unwrap();
            assert_eq!(frame.len(), 64);
            frame.resize(size, 0);
            assert!(matches!(opener.open(&frame), Err(SealError::FrameSize { .. } | SealError::Refused)), "{size}");
        }
    }
}

#[test]
fn frames_of_another_channel_or_direction_are_refused() {
    let mut ring = ring();
    let (mut one, mut other) = (connect(&mut ring), connect(&mut ring));
    let (forward, backward) = (one.gateway.0.seal(b"prompt").unwrap(), one.worker.0.seal(b"answer").unwrap());
    assert_eq!(other.worker.1.open(&forward), Err(SealError::Refused));
    assert_eq!(other.gateway.1.open(&backward), Err(SealError::Refused));
    assert_eq!(one.gateway.1.open(&forward), Err(SealError::Refused), "reflected to its sender");
    assert_eq!(one.worker.1.open(&backward), Err(SealError::Refused), "reflected to its sender");
}

#[test]
fn a_hello_is_accepted_once() {
    let mut ring = ring();
    let (_client, hello) = hello_to(&mut ring, NOW_MS);
    ring.accept(&hello, GATEWAY, NOW_MS).unwrap();
    assert_eq!(ring.accept(&hello, GATEWAY, NOW_MS).unwrap_err(), SealError::Replayed);
    let rotated_ms = NOW_MS + SEALING_KEY_LIFE_MS;
    assert_eq!(ring.accept(&hello, GATEWAY, rotated_ms).unwrap_err(), SealError::Replayed, "in the overlap too");
    let forgotten_ms = rotated_ms + SEALING_KEY_OVERLAP_MS;
    assert_eq!(ring.accept(&hello, GATEWAY, forgotten_ms).unwrap_err(), SealError::UnknownKey);
}

#[test]
fn a_hello_counts_only_from_its_gateway_to_its_worker() {
    let mut ring = ring();
    let (_client, hello) = hello_to(&mut ring, NOW_MS);
    assert_eq!(ring.accept(&hello, NodeId([4; 32]), NOW_MS).unwrap_err(), SealError::HelloRefused);

    let signed = ring.current(NOW_MS);
    let (_client, hello) = ClientChannel::open(NodeId([9; 32]), &key_of(&signed, NOW_MS), GATEWAY).unwrap();
    assert_eq!(ring.accept(&hello, GATEWAY, NOW_MS).unwrap_err(), SealError::HelloRefused);

    let (_client, hello) = hello_to(&mut KeyRing::new([6; 32], NOW_MS), NOW_MS);
    assert_eq!(ring.accept(&hello, GATEWAY, NOW_MS).unwrap_err(), SealError::UnknownKey);
}

#[test]
fn keys_rotate_overlap_and_go() {
    let mut ring = ring();
    let first = ring.current(NOW_MS);
    assert_eq!(ring.current(NOW_MS + SEALING_KEY_LIFE_MS - 1), first, "the same key all its life");
    let (client, hello) = hello_to(&mut ring, NOW_MS + SEALING_KEY_LIFE_MS - 1);
    let (_late_client, late_hello) = hello_to(&mut ring, NOW_MS + SEALING_KEY_LIFE_MS - 1);

    let rotated_ms = NOW_MS + SEALING_KEY_LIFE_MS;
    let second = ring.current(rotated_ms);
    assert_ne!(key_of(&second, rotated_ms).public, key_of(&first, NOW_MS).public);
    let (mut sealer, _) = client.into_split();
    let server = ring.accept(&hello, GATEWAY, rotated_ms + SEALING_KEY_OVERLAP_MS - 1).expect("in the overlap");
    let (_, mut opener) = server.into_split();
    let late_ms = rotated_ms + SEALING_KEY_OVERLAP_MS;
    assert_eq!(ring.accept(&late_hello, GATEWAY, late_ms).unwrap_err(), SealError::UnknownKey);
    assert_eq!(opener.open(&sealer.seal(b"still open").unwrap()).unwrap(), b"still open", "channels outlive their key");
}

#[test]
fn a_ring_that_slept_for_hours_accepts_nothing_old() {
    let mut ring = ring();
    let (_client, hello) = hello_to(&mut ring, NOW_MS);
    let woken_ms = NOW_MS + 3 * SEALING_KEY_LIFE_MS;
    assert_eq!(ring.accept(&hello, GATEWAY, woken_ms).unwrap_err(), SealError::UnknownKey);
    assert!(ring.current(woken_ms).open::<SealingKey>(woken_ms).is_ok());
}

#[test]
fn a_clock_set_back_makes_a_key_that_gateways_take() {
    let mut ring = ring();
    let back_ms = NOW_MS - CLOCK_SKEW_MS_MAX - 1;
    assert!(ring.current(back_ms).open::<SealingKey>(back_ms).is_ok());
    let (_client, hello) = hello_to(&mut ring, back_ms);
    assert!(ring.accept(&hello, GATEWAY, back_ms).is_ok());
}

#[test]
fn broken_public_keys_are_refused() {
    let signed = ring().current(NOW_MS);
    let good = key_of(&signed, NOW_MS);
    let too_short = SealingKey { public: good.public[1..].to_vec(), ..good.clone() };
    // ML-KEM coefficients are 12 bits below 3,329.
    let out_of_range = SealingKey { public: [&[0xff; 1_152], &good.public[1_152..]].concat(), ..good };
    for key in [too_short, out_of_range] {
        assert_eq!(ClientChannel::open(signed.signer, &key, GATEWAY).unwrap_err(), SealError::BadKey);
    }
}

#[test]
fn nothing_secret_shows_in_debug_output() {
    let mut ring = ring();
    let (client, _) = hello_to(&mut ring, NOW_MS);
    assert_eq!(format!("{client:?}"), "ClientChannel { .. }");
    assert!(!format!("{ring:?}").contains("[5, 5"));
}
