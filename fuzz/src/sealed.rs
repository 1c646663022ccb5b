use opengrid_privacy::sealing::{ClientChannel, KeyRing, Opener, Sealer};
use opengrid_protocol::{NodeId, sealing_key::SealingKey};

const NOW_MS: u64 = 1_800_000_000_000;
const GATEWAY: NodeId = NodeId([3; 32]);

/// The bytes as a hello and as a frame; and as the orders of an adversary between gateway and worker, who may deliver,
/// change, repeat, drop, reflect and invent frames. Everything up to the first interference arrives, nothing after it.
pub fn sealed_frames(data: &[u8]) {
    let mut ring = KeyRing::new([5; 32], NOW_MS);
    assert!(ring.accept(data, GATEWAY, NOW_MS).is_err(), "nobody guesses a hello");
    let signed = ring.current(NOW_MS);
    let key: SealingKey = signed.open(NOW_MS).expect("a fresh record");
    let (client, mut hello) = ClientChannel::open(signed.signer, &key, GATEWAY).expect("a good key");
    if change(&mut hello, data) {
        assert!(ring.accept(&hello, GATEWAY, NOW_MS).is_err());
        change(&mut hello, data);
    }
    let server = ring.accept(&hello, GATEWAY, NOW_MS).expect("an unchanged hello");
    let ((gateway_sealer, gateway_opener), (worker_sealer, worker_opener)) = (client.into_split(), server.into_split());
    let mut forward = Way { sealer: gateway_sealer, opener: worker_opener, seen: vec![], tampered: false };
    let mut backward = Way { sealer: worker_sealer, opener: gateway_opener, seen: vec![], tampered: false };
    for order in data.chunks(8).take(64) {
        if order[0] & 0x80 == 0 { forward.obey(order, &backward.seen) } else { backward.obey(order, &forward.seen) }
    }
}

/// Flips the bits of `mask` in the middle of `bytes`; whether that changed anything. Twice changes nothing.
fn change(bytes: &mut [u8], mask: &[u8]) -> bool {
    let start = bytes.len().saturating_sub(mask.len()) / 2;
    bytes[start..].iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    mask.iter().take(bytes.len() - start).any(|mask| *mask != 0)
}

struct Way {
    sealer: Sealer,
    opener: Opener,
    seen: Vec<Vec<u8>>,
    tampered: bool,
}

impl Way {
    /// The first byte of `order` says what to do (of its lower bits), the others are the material.
    fn obey(&mut self, order: &[u8], other_way: &[Vec<u8>]) {
        let material = &order[1..];
        match order[0] % 6 {
            0 => {
                let frame = self.sealer.seal(material).expect("small enough");
                let opened = self.opener.open(&frame);
                if self.tampered {
                    assert!(opened.is_err());
                } else {
                    assert_eq!(opened.as_deref(), Ok(material));
                }
                self.seen.push(frame);
            }
            1 => {
                let mut frame = self.sealer.seal(b"text").expect("small enough");
                if change(&mut frame, material) {
                    self.refuse(&frame);
                } else {
                    self.tampered = true;
                }
            }
            2 => {
                self.sealer.seal(b"dropped").expect("small enough");
                self.tampered = true;
            }
            3 => {
                if let Some(frame) = self.seen.last().cloned() {
                    self.refuse(&frame);
                }
            }
            4 => {
                if let Some(frame) = other_way.last() {
                    self.refuse(frame);
                }
            }
            _ => self.refuse(&material.repeat(material.len().max(1).next_multiple_of(8) * 8)),
        }
    }

    fn refuse(&mut self, frame: &[u8]) {
        assert!(self.opener.open(frame).is_err());
        self.tampered = true;
    }
}
