//! Whole networks over real sockets on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{ECHO, Node, config, counter, model, round_trip, start, start_joined, until};
use opengrid_network::{DialError, Network, NetworkEvent, OpenError, PeerAddress, StartError, Verdict};
use opengrid_protocol::NodeId;
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn a_node_joins_by_address_and_streams_carry_bytes_both_ways() {
    let first = start(config()).await;
    first.serve_echo();
    let mut second = start_joined(&first).await;
    second.wait_connected(first.id()).await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number * 7 % 251) as u8).collect();
    let stream = second.network.open_stream(first.id(), ECHO).await.unwrap();
    assert!(!stream.relayed());
    assert_eq!(round_trip(stream, &bytes).await, bytes);
    assert!(second.network.is_on_this_host(first.id()) && second.network.is_on_this_host(second.id()));
    assert!(!second.network.is_on_this_host(NodeId([7; 32])), "nobody knows where that one is");
    until(Duration::from_secs(3), "both know each other's agent", || {
        let knows = |node: &Node| {
            node.network.peers().iter().any(|peer| {
                peer.agent.as_deref().is_some_and(|agent| agent.starts_with("opengrid/")) && peer.connected_direct
            })
        };
        knows(&first) && knows(&second)
    })
    .await;
    assert!(counter(&second.network.metrics_text(), "opengrid_network_stream_bytes_total") >= 6_000_000);
    assert!(counter(&second.network.metrics_text(), "opengrid_network_libp2p_bandwidth_bytes_total") > 6_000_000);
    let unknown = second.network.open_stream(first.id(), "/nobody/speaks/this").await.unwrap_err();
    assert_eq!(unknown, OpenError::Unsupported("/nobody/speaks/this".to_owned()));
}

#[tokio::test]
async fn beside_a_quic_connection_a_peers_tcp_port_is_known_once_it_accepts() {
    let first = start(config()).await;
    let mut over_quic = config();
    over_quic.bootstrap = first.addresses().into_iter().filter(|peer| peer.address.contains("/quic-v1")).collect();
    assert!(!over_quic.bootstrap.is_empty(), "it listens over QUIC");
    let mut second = start(over_quic).await;
    second.wait_connected(first.id()).await;
    let patience = Duration::from_secs(1);
    let mut found = None;
    // Its addresses come a moment after the connection.
    for _ in 0..50 {
        found = second.network.accepting_port(first.id(), patience).await;
        if found.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let port = found.expect("a port that accepts");
    let listens = |address: &String| address.contains(&format!("/tcp/{}", port.port()));
    assert!(first.network.listen_addresses().iter().any(listens), "{port} is its own");
    assert!(!second.network.is_refused(first.id(), found, patience).await, "it lives");
}

#[tokio::test]
async fn two_hundred_streams_at_once_all_arrive() {
    let first = start(config()).await;
    let mut generous = config();
    generous.bootstrap = first.addresses();
    first.serve_echo();
    let mut second = start(generous).await;
    second.wait_connected(first.id()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200_u32 {
        let (network, to) = (second.network.clone(), first.id());
        tasks.spawn(async move {
            // A receiver at its limit resets the stream: the caller comes again.
            for attempt in 0..100_u64 {
                let Ok(mut stream) = network.open_stream(to, ECHO).await else { continue };
                let mut back = Vec::new();
                let sent = stream.write_all(&number.to_le_bytes()).await.is_ok() && stream.shutdown().await.is_ok();
                let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut back).await;
                if sent && read.is_ok() && back == number.to_le_bytes() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5 + attempt)).await;
            }
            panic!("stream {number} never got through");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn gossip_reaches_a_new_node_within_two_seconds_of_its_start() {
    let author = start(config()).await;
    let relay = start_joined(&author).await;
    author.network.subscribe(model(1)).await.unwrap();
    relay.network.subscribe(model(1)).await.unwrap();
    let talking = author.network.clone();
    let talk = tokio::spawn(async move {
        for number in 0_u32.. {
            talking.publish(model(1), number.to_le_bytes().to_vec()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    let mut late = start_joined(&relay).await;
    late.network.subscribe(model(1)).await.unwrap();
    let from = late
        .wait(Duration::from_secs(5), "gossip", |event| match event {
            NetworkEvent::Gossip(gossip) if gossip.topic == model(1) => Some(gossip.from),
            _ => None,
        })
        .await
        .0;
    assert!(began.elapsed() < Duration::from_secs(2), "took {:?}", began.elapsed());
    assert_eq!(from, author.id(), "the author is named, whoever forwarded it");
    talk.abort();
}

#[tokio::test]
async fn the_validator_decides_what_is_delivered() {
    let author = start(config()).await;
    let mut strict = config();
    strict.bootstrap = author.addresses();
    strict.gossip_validator =
        Arc::new(|gossip| if gossip.bytes == b"good" { Verdict::Accept } else { Verdict::Reject });
    let mut strict = start(strict).await;
    strict.network.subscribe(model(2)).await.unwrap();
    author.network.subscribe(model(2)).await.unwrap();
    strict.wait_connected(author.id()).await;
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    author.network.publish(model(2), b"bad".to_vec()).await.unwrap();
    author.network.publish(model(2), b"good".to_vec()).await.unwrap();
    let bytes = strict
        .wait(Duration::from_secs(5), "gossip", |event| match event {
            NetworkEvent::Gossip(gossip) => Some(gossip.bytes),
            _ => None,
        })
        .await
        .0;
    assert_eq!(bytes, b"good");
    until(Duration::from_secs(3), "the refusal is counted", || {
        strict.network.metrics_text().contains("opengrid_network_gossip_total{fate=\"Rejected\"} 1")
    })
    .await;
    assert!(author.network.publish(model(2), vec![0; 5_000]).await.is_err());
}

#[tokio::test]
async fn a_provider_is_found_and_reached_through_a_third_node() {
    let third = start(config()).await;
    let provider = start_joined(&third).await;
    provider.serve_echo();
    provider.network.provide(model(3)).await.unwrap();
    let mut seeker = start_joined(&third).await;
    seeker.wait_connected(third.id()).await;
    let start = Instant::now();
    let found = loop {
        let found = seeker.network.providers(model(3)).await;
        if !found.is_empty() || start.elapsed() > Duration::from_secs(5) {
            break found;
        }
    };
    assert_eq!(found, [provider.id()]);
    let stream = seeker.network.open_stream(provider.id(), ECHO).await.unwrap();
    assert_eq!(round_trip(stream, b"hello").await, b"hello");
    assert!(seeker.network.providers(model(99)).await.is_empty());
}

#[tokio::test]
async fn a_node_that_leaves_is_gone_at_once() {
    let mut first = start(config()).await;
    let second = start_joined(&first).await;
    first.wait_connected(second.id()).await;
    second.network.shutdown().await;
    let took = first.wait_disconnected(second.id(), Duration::from_secs(5)).await;
    assert!(took < Duration::from_secs(2), "took {took:?}");
    assert!(!first.knows(second.id()));
    let closed = second.network.open_stream(first.id(), ECHO).await.unwrap_err();
    assert_eq!(closed, OpenError::Closed);
}

#[tokio::test]
async fn a_silent_node_is_gone_within_eight_seconds() {
    let mut first = start(config()).await;
    let addresses = first.addresses();
    let (tell, told) = std::sync::mpsc::channel();
    let (freeze, frozen) = std::sync::mpsc::channel::<()>();
    // A runtime of one thread that is then blocked: as silent as a stopped process, its sockets stay open.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut config = config();
            config.bootstrap = addresses.clone();
            let mut silent = start(config).await;
            silent.wait_connected(addresses[0].node.unwrap()).await;
            tell.send(silent.id()).unwrap();
            // Long enough to answer some pings, then silence.
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            tell.send(silent.id()).unwrap();
            let _ = frozen.recv();
        });
    });
    let (_, silent) = tokio::task::spawn_blocking(move || (told.recv().unwrap(), told.recv().unwrap())).await.unwrap();
    assert!(first.knows(silent));
    let took = first.wait_disconnected(silent, Duration::from_secs(12)).await;
    assert!(took < Duration::from_secs(8), "took {took:?}");
    drop(freeze);
    thread.join().unwrap();
}

#[tokio::test]
async fn a_private_grid_refuses_strangers_and_takes_its_own() {
    let key = Some([42; 32]);
    let mut inside = config();
    inside.grid_key = key;
    let mut first = start(inside).await;
    assert!(first.network.listen_addresses().iter().all(|address| address.contains("/tcp/")));
    first.serve_echo();

    let stranger = start(config()).await;
    assert!(stranger.network.dial(first.addresses()).await.is_err());
    let mut wrong = config();
    wrong.grid_key = Some([43; 32]);
    let wrong = start(wrong).await;
    assert!(wrong.network.dial(first.addresses()).await.is_err());
    assert!(first.network.peers().is_empty());

    let mut member = config();
    member.grid_key = key;
    member.bootstrap = first.addresses();
    let member = start(member).await;
    first.wait_connected(member.id()).await;
    let stream = member.network.open_stream(first.id(), ECHO).await.unwrap();
    assert_eq!(round_trip(stream, b"ours").await, b"ours");
}

#[tokio::test]
async fn connection_limits_hold() {
    let mut small = config();
    small.limits.connections = 3;
    let small = start(small).await;
    let mut others = Vec::new();
    for _ in 0..6 {
        others.push(start(config()).await);
    }
    let mut connected = 0;
    for other in &others {
        connected += usize::from(other.network.dial(small.addresses()).await.is_ok());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(small.network.peers().len() <= 3, "{} peers", small.network.peers().len());
    assert!(connected >= 3 || !small.network.peers().is_empty());
    assert!(counter(&small.network.metrics_text(), "opengrid_network_connections_refused_total") >= 3);
}

#[tokio::test]
async fn streams_over_the_limit_are_reset_and_others_are_not_disturbed() {
    let mut small = config();
    small.limits.streams_per_connection = 4;
    let small = start(small).await;
    small.serve_echo();
    let mut greedy = start_joined(&small).await;
    greedy.wait_connected(small.id()).await;
    let mut held = Vec::new();
    for _ in 0..12 {
        held.push(greedy.network.open_stream(small.id(), ECHO).await.unwrap());
    }
    until(Duration::from_secs(3), "the others are reset", || {
        counter(&small.network.metrics_text(), "opengrid_network_streams_refused_total") >= 8
    })
    .await;
    let mut modest = start_joined(&small).await;
    modest.wait_connected(small.id()).await;
    let stream = modest.network.open_stream(small.id(), ECHO).await.unwrap();
    assert_eq!(round_trip(stream, b"me too").await, b"me too");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = start(config()).await;
    let address = first.network.listen_addresses().into_iter().find(|address| address.contains("/tcp/")).unwrap();
    let port: u16 = address.rsplit('/').next().unwrap().parse().unwrap();
    let mut second = config();
    second.p2p_port = port;
    let error = Network::start(second).await.unwrap_err();
    assert!(matches!(error, StartError::PortTaken { port: taken, .. } if taken == port), "{error}");
    assert!(error.to_string().contains(&port.to_string()));
    let mut third = config();
    third.bootstrap = vec![PeerAddress { node: None, address: "not an address".to_owned() }];
    assert!(matches!(Network::start(third).await.unwrap_err(), StartError::BadAddress { .. }));
}

#[tokio::test]
async fn the_peer_cache_rejoins_without_bootstrap() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Some(folder.path().join("peers.json"));
    let first = start(config()).await;
    let second = start_joined(&first).await;
    let mut third = config();
    (third.bootstrap, third.peer_cache) = (first.addresses(), cache.clone());
    let again = third.clone();
    let third = start(third).await;
    until(Duration::from_secs(10), "the third meets the second over the DHT", || {
        third.network.peers().iter().any(|peer| peer.node == second.id() && !peer.addresses.is_empty())
    })
    .await;
    third.network.shutdown().await;
    first.network.shutdown().await;
    let mut again = again;
    again.bootstrap = Vec::new();
    let mut third = start(again).await;
    let took = third.wait_connected(second.id()).await;
    assert!(took < Duration::from_secs(5), "took {took:?}");
}

#[tokio::test]
async fn bootstrap_nodes_that_start_later_are_joined() {
    let mut later = config();
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    later.p2p_port = probe.local_addr().unwrap().port();
    drop(probe);
    let mut early = config();
    early.bootstrap = vec![PeerAddress { node: None, address: format!("/ip4/127.0.0.1/tcp/{}", later.p2p_port) }];
    let mut early = start(early).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let later = start(later).await;
    let took = early.wait_connected(later.id()).await;
    assert!(took < Duration::from_secs(4), "took {took:?}");
}

#[tokio::test]
async fn a_punished_peer_is_disconnected_and_refused_for_a_while() {
    let mut judge = start(config()).await;
    let culprit = start(config()).await;
    culprit.network.dial(judge.addresses()).await.unwrap();
    judge.wait_connected(culprit.id()).await;
    judge.network.punish_for(culprit.id(), "test", Duration::from_secs(2)).await;
    judge.wait_disconnected(culprit.id(), Duration::from_secs(3)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _ = culprit.network.dial(judge.addresses()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!judge.knows(culprit.id()));
    assert!(matches!(
        judge.network.dial_peer(culprit.id()).await,
        Err(DialError::Unreachable(_) | DialError::NoAddress)
    ));
    tokio::time::sleep(Duration::from_secs(2)).await;
    culprit.network.dial(judge.addresses()).await.unwrap();
    until(Duration::from_secs(3), "pardoned", || judge.knows(culprit.id())).await;
}

#[tokio::test]
async fn noise_on_the_port_disturbs_nobody() {
    let mut first = start(config()).await;
    let address = first.network.listen_addresses().into_iter().find(|address| address.contains("/tcp/")).unwrap();
    let port: u16 = address.rsplit('/').next().unwrap().parse().unwrap();
    let mut held = Vec::new();
    for byte in 0..40_u8 {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let _ = socket.write_all(&vec![byte; 5_000]).await;
        held.push(socket);
    }
    let second = start_joined(&first).await;
    first.wait_connected(second.id()).await;
    assert_eq!(first.network.peers().len(), 1);
}

#[tokio::test]
async fn impossible_dials_fail_in_plain_words() {
    let first = start(config()).await;
    let dead = PeerAddress { node: None, address: "/ip4/127.0.0.1/tcp/9".to_owned() };
    let error = first.network.dial(vec![dead]).await.unwrap_err().to_string();
    assert!(error.contains("/ip4/127.0.0.1/tcp/9") && error.to_lowercase().contains("refused"), "{error}");
    assert!(!error.contains("TransportError"), "{error}");
    let oneself = first.network.dial(first.addresses()).await.unwrap_err();
    assert!(oneself.to_string().contains("this node itself"), "{oneself}");
    let other = start(config()).await;
    let mut lie = other.addresses();
    lie.iter_mut().for_each(|address| address.node = Some(opengrid_protocol::NodeId([1; 32])));
    assert!(first.network.dial(lie).await.is_err());
    assert_eq!(first.network.dial(Vec::new()).await, Err(DialError::NoAddress));
}
