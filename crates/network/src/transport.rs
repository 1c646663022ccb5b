//! TCP and QUIC with Noise and Yamux, names resolved, over relays where need be.

use std::{
    io,
    net::{IpAddr, TcpListener, UdpSocket},
    time::Duration,
};

use futures::future::Either;
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, OrTransport},
        upgrade::Version,
    },
    dns, identity, metrics,
    multiaddr::Protocol,
    noise,
    pnet::{PnetConfig, PreSharedKey},
    quic, relay, tcp, yamux,
};
use prometheus_client::registry::Registry;

use crate::config::StartError;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

type Muxed = Boxed<(PeerId, StreamMuxerBox)>;

/// The whole transport and the relay client's behaviour that belongs to it.
pub(crate) fn build(
    key: &identity::Keypair,
    grid_key: Option<[u8; 32]>,
    registry: &mut Registry,
) -> Result<(Muxed, relay::client::Behaviour), StartError> {
    let (circuits, behaviour) = relay::client::new(key.public().to_peer_id());
    let circuits = circuits
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key).map_err(setup)?)
        .multiplex(yamux::Config::default())
        .timeout(HANDSHAKE_TIMEOUT)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let either = OrTransport::new(circuits, resolving(key, grid_key)?).map(|either, _| match either {
        Either::Left(output) | Either::Right(output) => output,
    });
    let counted = metrics::BandwidthTransport::new(either, registry);
    Ok((counted.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed(), behaviour))
}

fn resolving(key: &identity::Keypair, grid_key: Option<[u8; 32]>) -> Result<Muxed, StartError> {
    match dns::tokio::Transport::system(direct(key, grid_key)?) {
        Ok(transport) => Ok(transport.boxed()),
        Err(error) => {
            tracing::warn!(%error, "no name resolution: addresses with names cannot be dialled");
            direct(key, grid_key)
        }
    }
}

fn direct(key: &identity::Keypair, grid_key: Option<[u8; 32]>) -> Result<Muxed, StartError> {
    let sockets = || tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let noise = noise::Config::new(key).map_err(setup)?;
    let Some(grid_key) = grid_key else {
        let tcp = sockets()
            .upgrade(Version::V1Lazy)
            .authenticate(noise)
            .multiplex(yamux::Config::default())
            .timeout(HANDSHAKE_TIMEOUT)
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
        let quic = quic::tokio::Transport::new(quic::Config::new(key))
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
        let either = OrTransport::new(quic, tcp).map(|either, _| match either {
            Either::Left(output) | Either::Right(output) => output,
        });
        return Ok(either.boxed());
    };
    let shared = PnetConfig::new(PreSharedKey::new(grid_key));
    Ok(sockets()
        .and_then(move |socket, _| shared.handshake(socket))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(HANDSHAKE_TIMEOUT)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed())
}

fn setup(error: impl std::fmt::Display) -> StartError {
    StartError::Setup(error.to_string())
}

/// A port that is free on all of `ips`, or `wanted`. libp2p shares listening TCP ports (SO_REUSEPORT), so a second
/// node on one port would go unnoticed without this check.
pub(crate) fn claim_port(ips: &[IpAddr], wanted: u16) -> Result<u16, StartError> {
    if wanted != 0 {
        ips.iter().try_for_each(|ip| check_free(*ip, wanted))?;
        return Ok(wanted);
    }
    let first = *ips.first().ok_or(StartError::NothingToListenOn)?;
    let mut last = StartError::NothingToListenOn;
    for _ in 0..16 {
        let listen = |why: io::Error| StartError::Listen { ip: first, port: 0, why: why.to_string() };
        let port = TcpListener::bind((first, 0)).and_then(|socket| socket.local_addr()).map_err(listen)?.port();
        match ips.iter().try_for_each(|ip| check_free(*ip, port)) {
            Ok(()) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn check_free(ip: IpAddr, port: u16) -> Result<(), StartError> {
    let bound = TcpListener::bind((ip, port)).map(drop).and_then(|()| UdpSocket::bind((ip, port)).map(drop));
    match bound {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(StartError::PortTaken { ip, port }),
        // A machine without IPv6 still listens on IPv4.
        Err(_) if ip.is_ipv6() && ip.is_unspecified() => Ok(()),
        Err(error) => Err(StartError::Listen { ip, port, why: error.to_string() }),
    }
}

/// What to listen on: TCP, and QUIC unless the grid is private.
pub(crate) fn listen_addresses(ip: IpAddr, port: u16, private: bool) -> Vec<Multiaddr> {
    let base = Multiaddr::from(ip);
    let mut addresses = vec![base.clone().with(Protocol::Tcp(port))];
    if !private {
        addresses.push(base.with(Protocol::Udp(port)).with(Protocol::QuicV1));
    }
    addresses
}
