//! The only user of libp2p: swarm, discovery, NAT traversal, streams and relays
