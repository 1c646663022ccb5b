//! Which host an IP packet is for (pure).

use std::net::Ipv4Addr;

use crate::fabric::HostId;

const NETWORK: [u8; 3] = [10, 77, 0];
/// Hosts count from 0, their addresses from .1.
const FIRST: u8 = 1;
const IPV4_HEADER_BYTES: usize = 20;

pub fn address(host: HostId) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, host.0.saturating_add(FIRST))
}

/// The receiver of a packet, or nothing when it is not IPv4 to an address of the laboratory. Such a packet comes from a
/// program under test and may be anything.
pub fn receiver(packet: &[u8], hosts: u8) -> Option<HostId> {
    let header = packet.get(..IPV4_HEADER_BYTES)?;
    let (version, [network @ .., last]) = (header[0] >> 4, [header[16], header[17], header[18], header[19]]);
    let host = last.checked_sub(FIRST)?;
    (version == 4 && network == NETWORK && host < hosts).then_some(HostId(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(address: Ipv4Addr) -> Vec<u8> {
        let mut packet = vec![0x45; IPV4_HEADER_BYTES];
        packet[16..20].copy_from_slice(&address.octets());
        packet
    }

    #[test]
    fn every_host_gets_what_is_sent_to_its_address() {
        assert!((0..250).all(|host| receiver(&to(address(HostId(host))), 250) == Some(HostId(host))));
    }

    #[test]
    fn anything_else_has_no_receiver() {
        for elsewhere in ["10.77.0.0", "10.77.0.4", "10.77.1.1", "224.0.0.251", "255.255.255.255"] {
            assert_eq!(receiver(&to(elsewhere.parse().unwrap_or(Ipv4Addr::UNSPECIFIED)), 3), None, "{elsewhere}");
        }
        let mut six = to(address(HostId(0)));
        six[0] = 0x60;
        assert_eq!(receiver(&six, 3), None);
        let whole = to(address(HostId(0)));
        assert!((0..IPV4_HEADER_BYTES).all(|length| receiver(&whole[..length], 3).is_none()));
    }
}
