//! Multiaddresses: parsing from outside, and from where an address can be reached.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use opengrid_protocol::{NodeId, limits::ADDRESS_BYTES_MAX};

use crate::config::{PeerAddress, StartError};

/// From where an address can be dialled, widest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// This machine.
    Loopback,
    /// This LAN.
    Private,
    Public,
}

/// The id of a peer with an Ed25519 key; other keys are no OpenGrid nodes.
pub(crate) fn node_id(peer: &PeerId) -> Option<NodeId> {
    NodeId::from_peer_id_bytes(&peer.to_bytes()).ok()
}

pub(crate) fn peer_id(node: NodeId) -> Option<PeerId> {
    PeerId::from_bytes(&node.to_peer_id_bytes()).ok()
}

/// Where a direct QUIC address leads.
pub fn udp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut protocols = address.iter().skip(1);
    let Protocol::Udp(port) = protocols.next()? else { return None };
    (protocols.next() == Some(Protocol::QuicV1) && !is_relayed(address)).then_some(SocketAddr::new(ip(address)?, port))
}

/// Where a direct TCP address leads.
pub fn tcp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let Protocol::Tcp(port) = address.iter().nth(1)? else { return None };
    (!is_relayed(address)).then_some(SocketAddr::new(ip(address)?, port))
}

pub fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// `None` for what cannot be dialled (unspecified address, other kinds).
pub(crate) fn reach(address: &Multiaddr) -> Option<Reach> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => ip_reach(ip.into()),
        Protocol::Ip6(ip) => ip_reach(ip.into()),
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_) => Some(Reach::Public),
        _ => None,
    }
}

pub(crate) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// Whether `ip` is that of this machine, whose addresses are `own`. A public one may be a router's, which machines share: it
/// tells nothing.
pub(crate) fn is_of_this_machine(ip: IpAddr, own: &[String]) -> bool {
    let is_own = || own.iter().filter_map(|own| self::ip(&own.parse().ok()?)).any(|own| own == ip);
    match ip_reach(ip) {
        Some(Reach::Loopback) => true,
        Some(Reach::Private) => is_own(),
        Some(Reach::Public) | None => false,
    }
}

fn ip_reach(ip: IpAddr) -> Option<Reach> {
    // Link-local IPv6 cannot be dialled without the name of an interface, which differs by machine.
    if ip.is_unspecified() || ip.is_multicast() || matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        return None;
    }
    if ip.is_loopback() {
        return Some(Reach::Loopback);
    }
    let private = match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            // 100.64.0.0/10 is carrier-grade NAT (RFC 6598).
            ip.is_private() || ip.is_link_local() || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(ip) => ip.is_unique_local(),
    };
    Some(if private { Reach::Private } else { Reach::Public })
}

/// How useful an address of ours is to others, most useful first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    kind: Kind,
    ipv6: bool,
    udp: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Public,
    Lan,
    Relayed,
    Loopback,
}

impl Rank {
    /// `None` for what cannot be dialled.
    pub fn of(address: &Multiaddr) -> Option<Self> {
        let kind = match (is_relayed(address), reach(address)?) {
            (true, _) => Kind::Relayed,
            (false, Reach::Public) => Kind::Public,
            (false, Reach::Private) => Kind::Lan,
            (false, Reach::Loopback) => Kind::Loopback,
        };
        let has = |wanted: fn(&Protocol<'_>) -> bool| address.iter().any(|part| wanted(&part));
        Some(Self {
            kind,
            ipv6: has(|part| matches!(part, Protocol::Ip6(_))),
            udp: has(|part| matches!(part, Protocol::Udp(_))),
        })
    }
}

/// The addresses of a ranked list that an invite needs. It should be short: whoever joins learns the others.
pub(crate) fn for_invite(ranked: &[String]) -> Vec<String> {
    const KEPT: usize = 4;
    let kinds: Vec<(Kind, &String)> =
        ranked.iter().filter_map(|text| Some((Rank::of(&text.parse().ok()?)?.kind, text))).collect();
    let of = |kind: Kind, limit: usize| {
        kinds.iter().filter(move |(known, _)| *known == kind).take(limit).map(|(_, text)| (*text).clone())
    };
    let public: Vec<_> = of(Kind::Public, 2).collect();
    // The loopback address is for several nodes on one machine.
    let last: Vec<_> = of(Kind::Relayed, 1).chain(of(Kind::Loopback, 1)).collect();
    let lan = of(Kind::Lan, KEPT - public.len() - last.len());
    public.iter().cloned().chain(lan).chain(last.iter().cloned()).collect()
}

/// The address without a trailing `/p2p/…`, and that peer. Circuit addresses keep the relay's id.
pub(crate) fn split_peer(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            (address, Some(peer))
        }
        _ => (address, None),
    }
}

/// Parses what a person or a file gave.
pub(crate) fn parse(given: &PeerAddress) -> Result<(Option<PeerId>, Multiaddr), StartError> {
    let bad = || StartError::BadAddress { address: given.address.chars().take(ADDRESS_BYTES_MAX).collect() };
    if given.address.len() > ADDRESS_BYTES_MAX {
        return Err(bad());
    }
    let address: Multiaddr = given.address.parse().map_err(|_| bad())?;
    let (address, inside) = split_peer(address);
    let wanted = given.node.and_then(peer_id);
    if matches!((wanted, inside), (Some(wanted), Some(inside)) if wanted != inside) || reach(&address).is_none() {
        return Err(bad());
    }
    Ok((wanted.or(inside), address))
}

/// The addresses that a peer claims, as far as they make sense for us and for those whom we tell about it: loopback
/// and LAN addresses only when it was met there, loopback ones only where it has no other.
pub(crate) fn credible(claimed: &[Multiaddr], met: &Multiaddr, limit: usize) -> Vec<Multiaddr> {
    let met_reach = if is_relayed(met) { Reach::Public } else { reach(met).unwrap_or(Reach::Public) };
    let mut wide: Vec<Multiaddr> = Vec::new();
    let mut loopback: Vec<Multiaddr> = Vec::new();
    for address in claimed {
        let (address, _) = split_peer(address.clone());
        if address.len() > ADDRESS_BYTES_MAX {
            continue;
        }
        match reach(&address) {
            Some(Reach::Public) => wide.push(address),
            Some(Reach::Private) if met_reach <= Reach::Private => wide.push(address),
            Some(Reach::Loopback) if met_reach == Reach::Loopback => loopback.push(address),
            _ => {}
        }
    }
    let mut kept = if wide.is_empty() { loopback } else { wide };
    kept.sort();
    kept.dedup();
    kept.truncate(limit);
    kept
}

/// Whether an address that the DHT tells of a peer may be tried. Anybody writes there, and who wrote is not told: where
/// the grid is more than this LAN, a loopback or LAN address would send us to machines of our own.
pub(crate) fn from_dht(address: &Multiaddr, met_public: bool) -> bool {
    match reach(address) {
        Some(Reach::Public) => true,
        Some(Reach::Private | Reach::Loopback) => !met_public,
        None => false,
    }
}

/// Binary form of a multiaddress without its trailing `/p2p/…`, as invites hold it; `None` when it does not parse.
pub fn address_to_bytes(address: &str) -> Option<Vec<u8>> {
    let (address, _) = split_peer(address.parse().ok()?);
    let bytes = address.to_vec();
    (bytes.len() <= ADDRESS_BYTES_MAX).then_some(bytes)
}

/// Text of a binary multiaddress; `None` when it does not decode or is longer than an invite allows.
pub fn address_from_bytes(bytes: &[u8]) -> Option<String> {
    if bytes.len() > ADDRESS_BYTES_MAX {
        return None;
    }
    Multiaddr::try_from(bytes.to_vec()).ok().map(|address| address.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn machines_behind_one_router_are_not_one() {
        let own = ["/ip4/10.0.0.9/tcp/1", "/ip4/198.51.100.7/tcp/1"].map(str::to_owned);
        let is_here = |ip: &str| is_of_this_machine(ip.parse().unwrap(), &own);
        assert!(is_here("127.0.0.1") && is_here("::1") && is_here("10.0.0.9"));
        assert!(!is_here("10.0.0.8") && !is_here("198.51.100.7"));
    }

    #[test]
    fn reach_follows_the_ranges() {
        let cases = [
            ("/ip4/127.0.0.1/tcp/1", Some(Reach::Loopback)),
            ("/ip6/::1/udp/1/quic-v1", Some(Reach::Loopback)),
            ("/ip4/10.1.2.3/tcp/1", Some(Reach::Private)),
            ("/ip4/100.64.0.1/tcp/1", Some(Reach::Private)),
            ("/ip4/100.128.0.1/tcp/1", Some(Reach::Public)),
            ("/ip6/fd00::1/tcp/1", Some(Reach::Private)),
            ("/ip6/fe80::1/tcp/1", None),
            ("/ip4/198.51.100.7/tcp/1", Some(Reach::Public)),
            ("/dns4/example.org/tcp/1", Some(Reach::Public)),
            ("/ip4/0.0.0.0/tcp/1", None),
            ("/memory/1", None),
        ];
        for (text, expected) in cases {
            assert_eq!(reach(&address(text)), expected, "{text}");
        }
    }

    fn invited(known: &[&str]) -> Vec<String> {
        let mut ranked: Vec<_> = known.iter().map(|text| (Rank::of(&address(text)).unwrap(), *text)).collect();
        ranked.sort();
        for_invite(&ranked.into_iter().map(|(_, text)| text.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn invites_hold_few_addresses_the_most_useful_first() {
        let loopback = ["/ip6/::1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1"];
        assert_eq!(invited(&loopback), ["/ip4/127.0.0.1/tcp/1"]);
        let lan = ["/ip6/fd00::9/tcp/1", "/ip4/10.0.0.9/udp/1/quic-v1", "/ip4/172.17.0.1/tcp/1", "/ip4/10.0.0.9/tcp/1"];
        let at_home = ["/ip4/10.0.0.9/tcp/1", "/ip4/172.17.0.1/tcp/1", "/ip4/10.0.0.9/udp/1/quic-v1"];
        assert_eq!(invited(&[&loopback[..], &lan[..]].concat()), [&at_home[..], &["/ip4/127.0.0.1/tcp/1"]].concat());
        let relayed = format!("/ip4/198.51.100.1/tcp/1/p2p/{}/p2p-circuit", NodeId([7; 32]));
        let behind_nat = invited(&[&loopback[..], &lan[..], &[&relayed, &relayed]].concat());
        assert_eq!(behind_nat, [at_home[0], at_home[1], &relayed, "/ip4/127.0.0.1/tcp/1"]);
        let public = ["/ip6/2001:db8::7/tcp/1", "/ip4/198.51.100.7/udp/1/quic-v1", "/ip4/198.51.100.7/tcp/1"];
        let server = invited(&[&public[..], &lan[..], &loopback[..]].concat());
        assert_eq!(server, [public[2], public[1], at_home[0], "/ip4/127.0.0.1/tcp/1"]);
        assert!(invited(&[]).is_empty());
    }

    #[test]
    fn local_addresses_are_believed_only_where_they_make_sense() {
        let claimed = ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.9/tcp/1", "/ip4/198.51.100.7/tcp/1"].map(address);
        let from = |met: &str| credible(&claimed, &address(met), 8);
        assert_eq!(from("/ip4/203.0.113.1/tcp/9"), [address("/ip4/198.51.100.7/tcp/1")]);
        assert_eq!(from("/ip4/10.0.0.9/tcp/9").len(), 2);
        assert_eq!(from("/ip4/127.0.0.1/tcp/9").len(), 2);
        assert_eq!(credible(&claimed[..1], &address("/ip4/127.0.0.1/tcp/9"), 8).len(), 1);
        assert_eq!(credible(&claimed, &address("/ip4/10.0.0.9/tcp/9"), 1).len(), 1);
    }

    #[test]
    fn the_dht_is_believed_of_local_addresses_only_where_there_are_no_others() {
        let relayed = |ip: &str| format!("/ip4/{ip}/tcp/1/p2p/{}/p2p-circuit", NodeId([7; 32]));
        let local = ["/ip4/127.0.0.1/tcp/80", "/ip4/192.168.1.1/tcp/80", "/ip6/fd00::1/tcp/80", &relayed("10.0.0.1")];
        let public = ["/ip4/198.51.100.7/tcp/1", &relayed("198.51.100.7")];
        assert!(local.iter().chain(&public).all(|text| from_dht(&address(text), false)));
        assert!(local.iter().all(|text| !from_dht(&address(text), true)));
        assert!(public.iter().all(|text| from_dht(&address(text), true)));
        assert!(!from_dht(&address("/ip4/0.0.0.0/tcp/1"), false));
    }

    #[test]
    fn addresses_from_outside_are_checked() {
        let node = |byte| peer_id(NodeId([byte; 32])).unwrap();
        let given = |node: Option<NodeId>, text: &str| parse(&PeerAddress { node, address: text.to_owned() });
        let key = NodeId([7; 32]);
        assert_eq!(given(Some(key), "/ip4/10.0.0.1/tcp/4").unwrap().0, Some(node(7)));
        let with_peer = format!("/ip4/10.0.0.1/tcp/4/p2p/{key}");
        assert_eq!(given(None, &with_peer).unwrap(), (Some(node(7)), address("/ip4/10.0.0.1/tcp/4")));
        assert!(given(Some(NodeId([8; 32])), &with_peer).is_err());
        assert!(given(None, "nonsense").is_err());
        assert!(given(None, &"/ip4/1.2.3.4".repeat(100)).is_err());
        let bytes = address_to_bytes(&with_peer).unwrap();
        assert_eq!(address_from_bytes(&bytes).as_deref(), Some("/ip4/10.0.0.1/tcp/4"));
        assert_eq!(address_from_bytes(&[0xff; 9]), None);
    }
}
