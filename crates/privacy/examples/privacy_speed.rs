//! Prints what sealing costs: the handshake, and frames of a few sizes in each direction.

use std::{hint::black_box, time::Instant};

use opengrid_privacy::sealing::{ClientChannel, KeyRing, Opener, SealError, Sealer};
use opengrid_protocol::{NodeId, sealing_key::SealingKey};

const NOW_MS: u64 = 1_800_000_000_000;
const GATEWAY: NodeId = NodeId([3; 32]);

fn connect(ring: &mut KeyRing, key: &SealingKey, worker: NodeId) -> Result<[(Sealer, Opener); 2], SealError> {
    let (client, hello) = ClientChannel::open(worker, key, GATEWAY)?;
    let (gateway_sealer, gateway_opener) = client.into_split();
    let (worker_sealer, worker_opener) = ring.accept(&hello, GATEWAY, NOW_MS)?.into_split();
    Ok([(gateway_sealer, worker_opener), (worker_sealer, gateway_opener)])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut ring = KeyRing::new([5; 32], NOW_MS);
    let signed = ring.current(NOW_MS);
    let key: SealingKey = signed.open(NOW_MS)?;
    let rounds = 1_000;
    let start = Instant::now();
    for _ in 0..rounds {
        black_box(connect(&mut ring, &key, signed.signer)?);
    }
    println!("handshake, both ends            {:8.1} us", start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds));
    let names = ["gateway to worker", "worker to gateway"];
    for (name, (mut sealer, mut opener)) in names.iter().zip(connect(&mut ring, &key, signed.signer)?) {
        for size in [32, 1_000, 16_000, 400_000] {
            let plaintext = vec![1; size];
            let start = Instant::now();
            for _ in 0..rounds {
                black_box(opener.open(&sealer.seal(&plaintext)?)?);
            }
            let us = start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds);
            println!("{name}, {size:6} bytes {us:8.1} us");
        }
    }
    Ok(())
}
