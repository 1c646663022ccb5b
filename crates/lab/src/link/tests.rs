#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn link(settings: LinkSettings) -> Link {
    Link::new(settings, 7)
}

fn rate(bytes_per_s: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes_per_s)
}

#[test]
fn a_perfect_link_takes_no_time() {
    assert_eq!(link(LinkSettings::default()).offer(5 * MS, 1500), Fate::Arrives(5 * MS));
}

#[test]
fn the_transmitter_spaces_packets_by_their_length_and_the_delay_comes_on_top() {
    let mut link = link(LinkSettings { delay: 10 * MS, rate: rate(1_000_000), ..Default::default() });
    assert_eq!(link.offer(Duration::ZERO, 1000), Fate::Arrives(11 * MS));
    assert_eq!(link.offer(Duration::ZERO, 2000), Fate::Arrives(13 * MS));
    assert_eq!(link.offer(Duration::ZERO, 1000), Fate::Arrives(14 * MS));
    // It has been idle for a while: no credit is saved up.
    assert_eq!(link.offer(100 * MS, 1000), Fate::Arrives(111 * MS));
}

#[test]
fn the_queue_drops_what_it_has_no_room_for_and_takes_more_when_it_has_drained() {
    let mut link = link(LinkSettings { rate: rate(1_000_000), queue_bytes: 3000, ..Default::default() });
    let fates: Vec<_> = (0..5).map(|_| link.offer(Duration::ZERO, 1000)).collect();
    assert_eq!(fates[..3], [Fate::Arrives(MS), Fate::Arrives(2 * MS), Fate::Arrives(3 * MS)]);
    assert_eq!(fates[3..], [Fate::QueueFull, Fate::QueueFull]);
    assert_eq!(link.offer(MS, 1000), Fate::Arrives(4 * MS));
    assert_eq!(link.counters().queue_full, 2);
}

#[test]
fn a_packet_longer_than_the_queue_passes_an_idle_transmitter() {
    let mut link = link(LinkSettings { rate: rate(1_000_000), queue_bytes: 100, ..Default::default() });
    assert_eq!(link.offer(Duration::ZERO, 1000), Fate::Arrives(MS));
    assert_eq!(link.offer(Duration::ZERO, 1000), Fate::QueueFull);
}

#[test]
fn another_rate_counts_at_once() {
    let mut link = link(LinkSettings { rate: rate(1), ..Default::default() });
    assert_eq!(link.offer(Duration::ZERO, 10), Fate::Arrives(10_000 * MS));
    link.set(LinkSettings { rate: rate(1_000_000), reorder: true, ..Default::default() });
    assert_eq!(link.offer(Duration::ZERO, 1000), Fate::Arrives(MS));
}

#[test]
fn a_shorter_delay_does_not_overtake_what_is_under_way() {
    let mut link = link(LinkSettings { delay: 100 * MS, ..Default::default() });
    link.offer(Duration::ZERO, 1);
    link.set(LinkSettings::default());
    assert_eq!(link.offer(MS, 1), Fate::Arrives(100 * MS));
}

#[test]
fn loss_is_as_often_as_set_and_the_same_again_with_the_same_seed() {
    let settings = LinkSettings { loss_ppm: 30_000, ..Default::default() };
    let fates = |seed| -> Vec<Fate> {
        let mut link = Link::new(settings.clone(), seed);
        (0..100_000).map(|_| link.offer(Duration::ZERO, 100)).collect()
    };
    let first = fates(1);
    let lost = first.iter().filter(|fate| **fate == Fate::Lost).count();
    // 3,000 expected, standard deviation 54.
    assert!((2_700..3_300).contains(&lost), "{lost}");
    assert_eq!(first, fates(1));
    assert_ne!(first, fates(2));
}

#[test]
fn everything_is_lost_at_a_million() {
    let mut link = link(LinkSettings { loss_ppm: LOSS_PPM_MAX, ..Default::default() });
    assert!((0..1000).all(|_| link.offer(Duration::ZERO, 1) == Fate::Lost));
}

#[test]
fn jitter_fills_its_range_evenly() {
    let mut link = link(LinkSettings { delay: 10 * MS, jitter: 8 * MS, reorder: true, ..Default::default() });
    let mut quarters = [0; 4];
    for _ in 0..4000 {
        let Fate::Arrives(at) = link.offer(Duration::ZERO, 1) else { panic!("lost without loss") };
        let over = at.checked_sub(10 * MS).unwrap();
        quarters[(over.as_nanos() / (2 * MS).as_nanos()) as usize] += 1;
    }
    assert!(quarters.iter().all(|count| (850..1150).contains(count)), "{quarters:?}");
}

#[test]
fn a_cut_link_swallows_and_a_healed_one_starts_afresh() {
    let mut link = link(LinkSettings { delay: 100 * MS, ..Default::default() });
    link.offer(Duration::ZERO, 1);
    link.cut();
    assert_eq!(link.offer(MS, 1), Fate::Cut);
    link.set(LinkSettings::default());
    link.heal();
    assert_eq!(link.offer(2 * MS, 1), Fate::Arrives(2 * MS));
    assert_eq!(link.counters().cut, 1);
}

fn any_settings() -> impl Strategy<Value = LinkSettings> {
    let times = (0u64..200_000, 0u64..50_000);
    (times, 0u32..=LOSS_PPM_MAX / 2, proptest::option::of(1_000u64..10_000_000), 0u64..100_000, any::<bool>()).prop_map(
        |((delay_us, jitter_us), loss_ppm, bytes_per_s, queue_bytes, reorder)| LinkSettings {
            delay: Duration::from_micros(delay_us),
            jitter: Duration::from_micros(jitter_us),
            loss_ppm,
            rate: bytes_per_s.and_then(NonZeroU64::new),
            queue_bytes,
            reorder,
        },
    )
}

proptest! {
    #[test]
    fn no_packet_is_early_and_order_and_rate_hold(
        settings in any_settings(),
        seed: u64,
        packets in proptest::collection::vec((0u64..20_000, 1usize..1500), 1..200),
    ) {
        let mut link = Link::new(settings.clone(), seed);
        let (mut now, mut last, mut offered, mut carried) = (Duration::ZERO, Duration::ZERO, 0, 0u64);
        for (pause_us, bytes) in packets {
            now += Duration::from_micros(pause_us);
            offered += 1;
            let Fate::Arrives(at) = link.offer(now, bytes) else { continue };
            link.counters.delivered += 1;
            carried += bytes as u64;
            prop_assert!(at >= now + settings.delay);
            if !settings.reorder {
                prop_assert!(at >= last);
            }
            last = at;
            if let Some(rate) = settings.rate {
                // What arrived by `at` left the transmitter before, at no more than its rate.
                let sendable = rate.get() as f64 * (at - settings.delay).as_secs_f64();
                prop_assert!(carried as f64 <= sendable + 1.0);
                // The queue bounds how long a packet can take.
                let queued = settings.queue_bytes.max(1500) as f64 / rate.get() as f64;
                let slowest = settings.delay + settings.jitter + Duration::from_secs_f64(queued);
                let mut bound = now + slowest;
                if !settings.reorder {
                    bound += settings.jitter;
                }
                prop_assert!(at <= bound + Duration::from_micros(1));
            }
        }
        let counters = link.counters();
        prop_assert_eq!(counters.delivered + counters.lost + counters.queue_full, offered);
    }
}
