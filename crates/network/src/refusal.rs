//! QUIC connections do not notice when the program at the other end dies: nothing closes them, and silence must be waited
//! out. Its host knows, and says so to whoever sends to the port: "port unreachable" (RFC 792, RFC 4443).

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::UdpSocket;

/// No QUIC packet is so short: whoever listens drops it.
const KNOCK: [u8; 1] = [0];

/// Waits until a host says that nothing listens at this UDP port; for ever where it says nothing.
pub async fn is_refused(address: SocketAddr) -> bool {
    matches!(knock(address).await, Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset))
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

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_refused_an_open_one_is_not() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let patience = Duration::from_millis(500);
        assert!(timeout(patience, is_refused(address)).await.is_err(), "it listens, and says nothing");
        drop(socket);
        assert!(timeout(patience, is_refused(address)).await.unwrap());
    }
}
