//! The running node, its ports, its NAT and its clock.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::net::{TcpListener, UdpSocket};

use super::Check;
use crate::{context::Context, errors::one_line, shapes::Status};

/// No sound clock shows less: 2026-01-01.
const UNIX_SECONDS_MIN: u64 = 1_767_225_600;

pub fn running(status: &anyhow::Result<Option<Status>>) -> Check {
    match status {
        Ok(Some(status)) => Check::ok("node", format!("runs: {}, {} peers", status.state, status.peers)),
        Ok(None) => Check::ok("node", "does not run (`opengrid up` starts it)"),
        Err(error) => Check::fail("node", one_line(error), "end the process and start it with `opengrid up`"),
    }
}

/// A running node holds its ports itself, which its status has shown.
pub async fn ports(context: &Context, running: bool) -> Vec<Check> {
    if running {
        return vec![Check::ok("ports", "held by the running node")];
    }
    let config = &context.settings.config;
    let p2p = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), config.network.p2p_port);
    let listen = config.api.listen;
    vec![
        port(format!("the api's {listen}"), TcpListener::bind(listen).await.map(drop), "api.listen (--listen)"),
        port(
            format!("tcp {} for nodes", p2p.port()),
            TcpListener::bind(p2p).await.map(drop),
            "network.p2p_port (--p2p-port)",
        ),
        port(
            format!("udp {} for nodes", p2p.port()),
            UdpSocket::bind(p2p).await.map(drop),
            "network.p2p_port (--p2p-port)",
        ),
    ]
}

fn port(what: String, bound: io::Result<()>, setting: &str) -> Check {
    match bound {
        Ok(()) => Check::ok("ports", format!("{what} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Check::fail(
            "ports",
            format!("{what} is taken by another program"),
            format!("end it, or set another {setting}"),
        ),
        Err(error) => Check::fail("ports", format!("{what} cannot be used: {error}"), format!("set another {setting}")),
    }
}

pub fn nat(status: Option<&Status>) -> Check {
    match status.map(|status| status.nat.as_str()) {
        Some("public") => Check::ok("nat", "others reach this node directly"),
        Some("private") => Check::warn(
            "nat",
            "others reach this node only over relays and punched holes",
            "forward the p2p port (tcp and udp) in the router, or turn on its upnp",
        ),
        Some(_) => Check::warn("nat", "not known yet", "it takes a few peers and a minute: look again then"),
        None => Check::warn("nat", "only a running node can tell", "start it with `opengrid up` and look again"),
    }
}

/// Signed records of a wrong clock are refused. The node compares with its peers and says so in its state.
pub fn clock(status: Option<&Status>) -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if now < UNIX_SECONDS_MIN {
        return Check::fail("clock", "it shows a time before 2026", "set it (`timedatectl set-ntp true`)");
    }
    let complaint = status.and_then(|status| status.state.split("; ").find(|part| part.contains("clock")));
    match (complaint, status) {
        (Some(complaint), _) => Check::fail("clock", complaint, "set this machine's time"),
        (None, Some(status)) if status.peers > 0 => Check::ok("clock", "agrees with the peers'"),
        _ => Check::ok("clock", "plausible (no peer to compare with)"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::commands::doctor::Level;

    #[tokio::test]
    async fn a_taken_port_fails_with_the_setting_to_change() {
        let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bound = TcpListener::bind(held.local_addr().unwrap()).await.map(drop);
        let check = port("tcp".into(), bound, "network.p2p_port");
        assert_eq!(check.level, Level::Fail);
        assert!(check.mend.unwrap().contains("network.p2p_port"));
    }

    #[test]
    fn the_clocks_complaint_is_found_in_the_state() {
        let state = "serving; this machine's clock is 400 s off its peers': set it (timedatectl set-ntp true)";
        let status = Status { state: state.into(), peers: 3, ..Status::default() };
        assert_eq!(clock(Some(&status)).level, Level::Fail);
        let status = Status { state: "serving".into(), peers: 3, ..Status::default() };
        assert_eq!(clock(Some(&status)).level, Level::Ok);
        assert_eq!(clock(None).level, Level::Ok);
    }

    #[test]
    fn every_kind_of_nat_has_a_line() {
        let with = |nat: &str| nat_of(nat).level;
        assert_eq!((with("public"), with("private"), with("unknown")), (Level::Ok, Level::Warn, Level::Warn));
        assert_eq!(nat(None).level, Level::Warn);
    }

    fn nat_of(text: &str) -> Check {
        nat(Some(&Status { nat: text.into(), ..Status::default() }))
    }
}
