#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const A: HostId = HostId(0);
const B: HostId = HostId(1);
const C: HostId = HostId(2);

fn fabric(settings: LinkSettings) -> Fabric<Vec<u8>> {
    Fabric::new(3, &settings, 1)
}

fn send(fabric: &mut Fabric<Vec<u8>>, now: Duration, from: HostId, to: HostId, mark: u8) {
    fabric.send(now, from, to, 1, || vec![mark]);
}

/// Marks of what is due at `now`.
fn due(fabric: &mut Fabric<Vec<u8>>, now: Duration) -> Vec<(HostId, u8)> {
    std::iter::from_fn(|| fabric.take_due(now)).map(|delivery| (delivery.to, delivery.packet[0])).collect()
}

#[test]
fn packets_come_out_when_due_and_where_they_belong() {
    let mut fabric = fabric(LinkSettings { delay: 20 * MS, ..Default::default() });
    fabric.link_mut(A, C).unwrap().set(LinkSettings { delay: 5 * MS, ..Default::default() });
    send(&mut fabric, Duration::ZERO, A, B, 1);
    send(&mut fabric, MS, A, C, 2);
    assert_eq!(fabric.next_due(), Some(6 * MS));
    assert_eq!(due(&mut fabric, 5 * MS), []);
    assert_eq!(due(&mut fabric, 6 * MS), [(C, 2)]);
    assert_eq!(due(&mut fabric, 20 * MS), [(B, 1)]);
    assert_eq!(fabric.next_due(), None);
}

#[test]
fn a_cut_takes_what_is_under_way_in_that_direction_only() {
    let mut fabric = fabric(LinkSettings { delay: 20 * MS, ..Default::default() });
    send(&mut fabric, Duration::ZERO, A, B, 1);
    send(&mut fabric, Duration::ZERO, B, A, 2);
    fabric.link_mut(A, B).unwrap().cut();
    fabric.link_mut(A, B).unwrap().heal();
    send(&mut fabric, MS, A, B, 3);
    assert_eq!(due(&mut fabric, 30 * MS), [(A, 2), (B, 3)]);
    assert_eq!(fabric.link(A, B).unwrap().counters().cut, 1);
    assert_eq!(fabric.under_way_bytes, 0);
}

#[test]
fn memory_is_bounded_and_given_back() {
    let mut fabric = fabric(LinkSettings { delay: 20 * MS, ..Default::default() });
    fabric.under_way_bytes_max = 10 * (1 + PACKET_OVERHEAD_BYTES);
    (0..12).for_each(|mark| send(&mut fabric, Duration::ZERO, A, B, mark));
    assert_eq!(fabric.link(A, B).unwrap().counters().queue_full, 2);
    assert_eq!(due(&mut fabric, 20 * MS).len(), 10);
    send(&mut fabric, 20 * MS, A, B, 12);
    assert_eq!(due(&mut fabric, 40 * MS), [(B, 12)]);
}

#[test]
fn hosts_that_do_not_exist_get_and_send_nothing() {
    let mut fabric = fabric(LinkSettings::default());
    send(&mut fabric, Duration::ZERO, A, HostId(3), 1);
    send(&mut fabric, Duration::ZERO, HostId(3), A, 1);
    assert_eq!(fabric.next_due(), None);
    assert!(fabric.link(A, HostId(3)).is_none());
}

#[test]
fn links_have_luck_of_their_own() {
    let mut fabric = fabric(LinkSettings { loss_ppm: 500_000, ..Default::default() });
    (0..64).for_each(|mark| {
        send(&mut fabric, Duration::ZERO, A, B, mark);
        send(&mut fabric, Duration::ZERO, A, C, mark);
    });
    let arrived = due(&mut fabric, Duration::ZERO);
    let at = |host| arrived.iter().filter(|(to, _)| *to == host).map(|(_, mark)| *mark).collect::<Vec<_>>();
    assert_ne!(at(B), at(C));
}

proptest! {
    /// Nothing is invented, doubled or misled, all is accounted for, and each link keeps its order.
    #[test]
    fn every_packet_is_accounted_for(
        delays_us in proptest::collection::vec(0u64..50_000, 9),
        loss_ppm in 0u32..300_000,
        steps in proptest::collection::vec((0u64..10_000, 0u8..3, 0u8..3, 0u8..20), 1..300),
    ) {
        let mut fabric = fabric(LinkSettings { loss_ppm, jitter: 3 * MS, ..Default::default() });
        for (index, delay_us) in delays_us.iter().enumerate() {
            let settings = LinkSettings { delay: Duration::from_micros(*delay_us), ..fabric.links[index].settings().clone() };
            fabric.links[index].set(settings);
        }
        let (mut now, mut sent, mut arrived) = (Duration::ZERO, 0u64, Vec::new());
        for (number, (pause_us, from, to, cut)) in steps.iter().enumerate() {
            now += Duration::from_micros(*pause_us);
            while let Some(delivery) = fabric.take_due(now) {
                prop_assert!(delivery.due <= now);
                arrived.push(delivery);
            }
            let link = fabric.link_mut(HostId(*from), HostId(*to)).unwrap();
            match cut {
                0 => link.cut(),
                1 => link.heal(),
                _ => {}
            }
            let packet = [&(number as u32).to_le_bytes()[..], &[*from, *to]].concat();
            fabric.send(now, HostId(*from), HostId(*to), packet.len(), || packet);
            sent += 1;
        }
        arrived.extend(std::iter::from_fn(|| fabric.take_due(Duration::MAX)));
        prop_assert!(arrived.windows(2).all(|pair| pair[0].due <= pair[1].due));
        let mut last = std::collections::BTreeMap::new();
        for delivery in &arrived {
            let [a, b, c, d, from, to] = delivery.packet[..] else { panic!("another packet") };
            let number = u32::from_le_bytes([a, b, c, d]);
            prop_assert_eq!(delivery.to, HostId(to));
            prop_assert!(last.insert((from, to), number).is_none_or(|before| before < number));
        }
        let counters: Vec<_> = fabric.links.iter().map(Link::counters).collect();
        prop_assert_eq!(counters.iter().map(|c| c.delivered).sum::<u64>(), arrived.len() as u64);
        prop_assert_eq!(counters.iter().map(|c| c.delivered + c.lost + c.cut + c.queue_full).sum::<u64>(), sent);
        prop_assert_eq!(fabric.under_way_bytes, 0);
    }
}
