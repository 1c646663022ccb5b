//! QUIC connections do not notice when the program at the other end dies: nothing closes them, and silence must be waited
//! out. Its host knows, and says so to whoever sends to the port: "port unreachable" (RFC 792, RFC 4443). Hosts say that a
//! few times and then once a second (`icmp_ratelimit` in Linux), and what a connection sends into the void counts. Over TCP
//! they reset each attempt to connect (RFC 9293, 3.10.7.1); but so do many firewalls, whatever runs behind them. So that counts
//! only where the port accepted while the program ran.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use futures::{FutureExt, future::select_ok};
use tokio::net::{TcpStream, UdpSocket};

/// No QUIC packet is so short: whoever listens drops it.
const KNOCK: [u8; 1] = [0];

/// Where a program listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub udp: SocketAddr,
    /// One that accepted a connection.
    pub tcp: Option<SocketAddr>,
}

/// The first of these TCP ports that accepts a connection, which is closed at once.
pub async fn accepting(ports: Vec<SocketAddr>) -> Option<SocketAddr> {
    let tries = ports.into_iter().map(|port| async move { TcpStream::connect(port).await.map(|_| port) }.boxed());
    select_ok(tries).await.ok().map(|(port, _)| port)
}

/// Waits until the host says that nothing listens at one of the ports. Where it says nothing, that may be for ever; another answer
/// says nothing of the other port.
pub async fn is_refused(ports: Ports) -> bool {
    let over_udp = async { refusal(&knock(ports.udp).await) };
    let over_tcp = async { refusal(&TcpStream::connect(ports.tcp.ok_or(())?).await) };
    select_ok([over_udp.boxed(), over_tcp.boxed()]).await.is_ok()
}

/// `Ok` for a refusal.
fn refusal<T>(outcome: &io::Result<T>) -> Result<(), ()> {
    let refused = |error: &io::Error| matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset);
    outcome.as_ref().err().is_some_and(refused).then_some(()).ok_or(())
}

async fn knock(address: SocketAddr) -> io::Result<()> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Only a connected socket hears of it.
    socket.connect(address).await?;
    socket.send(&KNOCK).await?;
    socket.recv(&mut [0]).await.map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);

    async fn refused(udp: SocketAddr, tcp: Option<SocketAddr>) -> bool {
        timeout(PATIENCE, is_refused(Ports { udp, tcp })).await.unwrap_or(false)
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_an_open_one_is_not() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        assert!(!refused(address, None).await, "it listens, and says nothing");
        drop(socket);
        assert!(refused(address, None).await);
    }

    #[tokio::test]
    async fn over_tcp_it_is_told_as_well() {
        // Stands for a host that says nothing over UDP (any more).
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let silent = socket.local_addr().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap();
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        assert_eq!(accepting(vec![closed]).await, None);
        assert_eq!(accepting(vec![closed, port]).await, Some(port));
        assert!(!refused(silent, Some(port)).await, "it accepts");
        drop(listener);
        assert!(refused(silent, Some(port)).await);
        assert!(!refused(silent, None).await);
    }
}
