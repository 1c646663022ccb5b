#![allow(clippy::unwrap_used)]

use super::*;

fn fabric() -> Fabric<Vec<u8>> {
    Fabric::new(3, &LinkSettings::default(), 0)
}

fn request(line: &str) -> Request {
    serde_json::from_str(line).unwrap()
}

/// `from` and `to` of the links for which it holds.
fn where_(fabric: &Fabric<Vec<u8>>, holds: impl Fn(&Link) -> bool) -> Vec<(u8, u8)> {
    let pairs = (0..3).flat_map(|from| (0..3).map(move |to| (from, to)));
    pairs.filter(|(from, to)| holds(fabric.link(HostId(*from), HostId(*to)).unwrap())).collect()
}

#[test]
fn set_changes_the_named_link_and_the_named_settings_only() {
    let mut fabric = fabric();
    fabric.apply(&request(r#"{"command":"set","from":0,"to":1,"delay_us":50000,"rate_bytes_per_s":1000}"#)).unwrap();
    fabric.apply(&request(r#"{"command":"set","from":0,"to":1,"loss_ppm":10,"reorder":true}"#)).unwrap();
    let expected = LinkSettings {
        delay: Duration::from_millis(50),
        loss_ppm: 10,
        rate: NonZeroU64::new(1000),
        reorder: true,
        ..Default::default()
    };
    assert_eq!(where_(&fabric, |link| *link.settings() == expected), [(0, 1)]);
    assert_eq!(where_(&fabric, |link| *link.settings() == LinkSettings::default()).len(), 8);
    fabric.apply(&request(r#"{"command":"set","rate_bytes_per_s":0}"#)).unwrap();
    assert!(where_(&fabric, |link| link.settings().rate.is_some()).is_empty());
}

#[test]
fn a_route_is_one_way_both_ways_or_all_of_a_host() {
    for (line, links) in [
        (r#"{"command":"cut","from":0,"to":1}"#, &[(0, 1)][..]),
        (r#"{"command":"cut","from":0,"to":1,"both_ways":true}"#, &[(0, 1), (1, 0)]),
        (r#"{"command":"cut","from":2}"#, &[(2, 0), (2, 1)]),
        (r#"{"command":"cut","to":2}"#, &[(0, 2), (1, 2)]),
        (r#"{"command":"cut","from":2,"both_ways":true}"#, &[(0, 2), (1, 2), (2, 0), (2, 1)]),
        (r#"{"command":"cut"}"#, &[(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]),
    ] {
        let mut fabric = fabric();
        fabric.apply(&request(line)).unwrap();
        assert_eq!(where_(&fabric, Link::is_cut), links, "{line}");
        fabric.apply(&request(&line.replace("cut", "heal"))).unwrap();
        assert!(where_(&fabric, Link::is_cut).is_empty(), "{line}");
    }
}

#[test]
fn what_is_wrong_is_refused_in_words_and_changes_nothing() {
    for (line, words) in [
        (r#"{"command":"cut","from":3}"#, "there is no host 3: they are numbered 0 to 2"),
        (r#"{"command":"heal","to":255}"#, "there is no host 255: they are numbered 0 to 2"),
        (r#"{"command":"cut","from":1,"to":1}"#, "host 1 reaches itself without the laboratory: name another `to`"),
        (r#"{"command":"set","delay_us":60000001}"#, "delay_us is 60000001, at most 60000000 are possible"),
        (r#"{"command":"set","jitter_us":60000001}"#, "jitter_us is 60000001, at most 60000000 are possible"),
        (r#"{"command":"set","loss_ppm":1000001,"delay_us":5}"#, "loss_ppm is 1000001, at most 1000000 are possible"),
        (r#"{"command":"set","queue_bytes":67108865}"#, "queue_bytes is 67108865, at most 67108864 are possible"),
    ] {
        let mut fabric = fabric();
        assert_eq!(fabric.apply(&request(line)).unwrap_err().to_string(), words);
        let untouched = |link: &Link| !link.is_cut() && *link.settings() == LinkSettings::default();
        assert_eq!(where_(&fabric, untouched).len(), 9);
    }
}

#[test]
fn lines_that_are_no_requests_are_refused() {
    for line in [
        "",
        "{}",
        "null",
        r#"{"command":"stop"}"#,
        r#"{"command":"set","delay_ms":5}"#,
        r#"{"command":"cut","from":-1}"#,
        r#"{"command":"cut","from":256}"#,
        r#"{"command":"set","delay_us":1.5}"#,
    ] {
        assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
    }
}

#[test]
fn replies_and_requests_survive_their_json() {
    let mut fabric = fabric();
    fabric.send(Duration::ZERO, HostId(0), HostId(2), 3, || vec![0; 3]);
    fabric.take_due(Duration::ZERO).unwrap();
    let stats = Stats { links: fabric.link_stats(), late_p99_us: 30, ..Default::default() };
    assert_eq!(stats.links.len(), 1);
    for reply in [Reply::done(), Reply::refused("no"), Reply::stats(stats)] {
        assert_eq!(serde_json::from_str::<Reply>(&serde_json::to_string(&reply).unwrap()).unwrap(), reply);
    }
    let set = Request::Set(Set { from: Some(HostId(1)), delay_us: Some(3), ..Default::default() });
    assert_eq!(serde_json::to_string(&set).unwrap(), r#"{"command":"set","from":1,"both_ways":false,"delay_us":3}"#);
    assert_eq!(request(&serde_json::to_string(&set).unwrap()), set);
}
