//! What links do to packets between real sockets in real namespaces. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    num::NonZeroU64,
    thread,
    time::{Duration, Instant},
};

use common::{A, B, C, Lab, MS, SILENCE, arrivals, eventually, numbers, send};
use opengrid_lab::{
    control::Set, laboratory::namespace_name, link::LinkSettings, measure::percentile, namespace::within, packet,
};

/// The limit that `./bench lab` holds the laboratory to.
const ADDED_MAX: Duration = Duration::from_micros(300);

#[test]
fn the_laboratory_itself_adds_little() {
    let Some(lab) = Lab::up(2, LinkSettings::default()) else { return };
    let way = lab.way(A, B);
    eventually(
        |(_, p99)| *p99 <= ADDED_MAX,
        || {
            let times = way.times(500, Duration::ZERO).unwrap();
            (percentile(&times, 50), percentile(&times, 99))
        },
    );
}

#[test]
fn packets_take_the_delay_of_their_own_link() {
    let Some(lab) = Lab::up(3, LinkSettings::default()) else { return };
    for (from, to, delay_ms) in [(A, B, 10), (B, A, 40), (A, C, 3)] {
        lab.set(Set { from: Some(from), to: Some(to), delay_us: Some(delay_ms * 1000), ..Default::default() });
    }
    for (from, to, delay) in [(A, B, 10 * MS), (B, A, 40 * MS), (A, C, 3 * MS), (C, B, Duration::ZERO)] {
        let way = lab.way(from, to);
        eventually(
            |median| *median <= delay + 2 * ADDED_MAX,
            || {
                let times = way.times(15, Duration::ZERO).unwrap();
                // However busy the machine is, nothing is early.
                assert!(times.iter().all(|time| *time >= delay), "{times:?}");
                percentile(&times, 50)
            },
        );
    }
}

#[test]
fn packets_under_way_at_once_do_not_wait_for_each_other() {
    let Some(lab) = Lab::up(2, LinkSettings { delay: 100 * MS, ..Default::default() }) else { return };
    let way = lab.way(A, B);
    let started = Instant::now();
    (0..200).for_each(|number| send(&way, number, 100));
    let arrived = arrivals(&way.to, 2 * SILENCE);
    assert_eq!(arrived.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
    assert!(arrived[199].1 - started < 150 * MS, "200 packets in one delay");
}

#[test]
fn jitter_spreads_packets_and_keeps_their_order_unless_told_otherwise() {
    let jitter = LinkSettings { delay: 5 * MS, jitter: 40 * MS, ..Default::default() };
    let Some(lab) = Lab::up(2, jitter) else { return };
    let way = lab.way(A, B);
    let burst = || {
        let started = Instant::now();
        (0..100).for_each(|number| send(&way, number, 100));
        let arrived = arrivals(&way.to, SILENCE);
        assert_eq!(arrived.len(), 100);
        assert!(arrived.iter().all(|(_, at)| *at - started >= 5 * MS));
        arrived
    };
    let kept = burst();
    assert!(kept.is_sorted_by_key(|(number, _)| *number));
    lab.set(Set { reorder: Some(true), ..Default::default() });
    let mixed = burst();
    assert!(!mixed.is_sorted_by_key(|(number, _)| *number));
    // A hundred uniform draws: the first comes early and the last late.
    assert!(mixed[99].1 - mixed[0].1 > 30 * MS);
}

#[test]
fn loss_is_as_often_as_set_and_repeats_with_the_seed() {
    const PACKETS: u32 = 2000;
    let settings = LinkSettings { loss_ppm: 200_000, ..Default::default() };
    let arrived = |seed| {
        let lab = Lab::up_seeded(2, settings.clone(), seed)?;
        let way = lab.way(A, B);
        let mut arrived = Vec::new();
        // In portions that fit the sockets' buffers.
        for start in (0..PACKETS).step_by(100) {
            (start..start + 100).for_each(|number| send(&way, number, 4));
            arrived.extend(numbers(&way.to, 20 * MS));
        }
        arrived.extend(numbers(&way.to, SILENCE));
        let counted = lab.link_stats(A, B);
        assert_eq!((counted.delivered, counted.lost + counted.delivered), (arrived.len() as u64, PACKETS.into()));
        Some(arrived)
    };
    let Some(first) = arrived(1) else { return };
    // 400 lost of 2,000 expected, standard deviation 18.
    assert!((1510..1690).contains(&first.len()), "{}", first.len());
    assert_eq!(arrived(1), Some(first.clone()));
    assert_ne!(arrived(2), Some(first));
}

#[test]
fn a_rate_is_reached_and_never_exceeded() {
    const PACKETS: u32 = 200;
    const PACKET_BYTES: usize = 1000;
    const RATE: u64 = 2_000_000;
    let Some(lab) = Lab::up(2, LinkSettings { rate: NonZeroU64::new(RATE), ..Default::default() }) else { return };
    let way = lab.way(A, B);
    let ideal = ((PACKETS as usize) * PACKET_BYTES) as f64 / RATE as f64;
    eventually(
        |ratio| *ratio <= 1.05,
        || {
            let started = Instant::now();
            // With headers of 28 bytes.
            (0..PACKETS).for_each(|number| send(&way, number, PACKET_BYTES - 28));
            let arrived = arrivals(&way.to, SILENCE);
            assert_eq!(arrived.len(), PACKETS as usize);
            let ratio = (arrived.last().unwrap().1 - started).as_secs_f64() / ideal;
            assert!(ratio >= 1.0, "faster than its rate: {ratio}");
            ratio
        },
    );
}

#[test]
fn the_queue_of_a_rate_drops_what_does_not_fit() {
    let rate = LinkSettings { rate: NonZeroU64::new(100_000), queue_bytes: 10_000, ..Default::default() };
    let Some(lab) = Lab::up(2, rate) else { return };
    let way = lab.way(A, B);
    (0..50).for_each(|number| send(&way, number, 972));
    let arrived = numbers(&way.to, SILENCE);
    // What had left the queue by the time that the last one came is room for one or another more.
    assert!((10..25).contains(&arrived.len()), "{arrived:?}");
    assert_eq!(arrived[..10], (0..10).collect::<Vec<_>>());
    assert_eq!(lab.link_stats(A, B).queue_full, 50 - arrived.len() as u64);
}

#[test]
fn a_cut_swallows_one_direction_without_a_word_and_a_heal_brings_it_back() {
    let Some(lab) = Lab::up(2, LinkSettings { delay: 50 * MS, ..Default::default() }) else { return };
    let (there, back) = (lab.way(A, B), lab.way(B, A));
    send(&there, 1, 4);
    lab.cut(A, B);
    send(&there, 2, 4);
    send(&back, 3, 4);
    assert_eq!(numbers(&there.to, SILENCE), [0; 0], "neither under way nor sent afterwards");
    assert_eq!(numbers(&back.to, SILENCE), [3]);
    lab.heal(A, B);
    send(&there, 4, 4);
    assert_eq!(numbers(&there.to, SILENCE), [4]);
    assert_eq!(lab.link_stats(A, B).cut, 2);
}

#[test]
fn tcp_survives_loss_jitter_and_a_cut() {
    const BYTES: usize = 1 << 20;
    let rough = LinkSettings { delay: 2 * MS, jitter: MS, loss_ppm: 5_000, reorder: true, ..Default::default() };
    let Some(lab) = Lab::up(2, rough) else { return };
    let bind = || TcpListener::bind((packet::address(B), 0)).unwrap();
    let listener = within(&namespace_name(&lab.name, B), bind).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || TcpStream::connect(address).unwrap();
    let mut sender = within(&namespace_name(&lab.name, A), connect).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let sent: Vec<u8> = (0..BYTES).map(|index| (index * 31 % 251) as u8).collect();
    let mut received = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            sender.write_all(&sent[..BYTES / 2]).unwrap();
            lab.cut(A, B);
            thread::sleep(100 * MS);
            lab.heal(A, B);
            sender.write_all(&sent[BYTES / 2..]).unwrap();
            drop(sender);
        });
        receiver.read_to_end(&mut received).unwrap();
    });
    assert!(received == sent);
    assert!(lab.link_stats(A, B).lost > 0);
}

#[test]
fn what_is_for_nobody_is_dropped_and_counted() {
    let Some(lab) = Lab::up(2, LinkSettings::default()) else { return };
    let host = namespace_name(&lab.name, A);
    let before = lab.stats().no_receiver;
    within(&host, || {
        let socket = UdpSocket::bind((packet::address(A), 0)).unwrap();
        for nobody in ["10.77.0.3:9", "10.77.0.200:9"] {
            socket.send_to(b"?", nobody).unwrap();
        }
    })
    .unwrap();
    let way = lab.way(A, B);
    assert!(way.times(1, Duration::ZERO).is_ok(), "others go on");
    assert!(lab.stats().no_receiver >= before + 2);
}
