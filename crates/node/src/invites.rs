//! Invites of this node, and joining by those of others.

use opengrid_network::{Network, PeerAddress};
use opengrid_protocol::invite::Invite;

/// This node's invite with its present addresses, the most useful first.
pub fn own_invite(network: &Network, private: bool) -> String {
    let addresses = network.invite_addresses();
    let addresses = addresses.iter().filter_map(|address| opengrid_network::address_to_bytes(address)).collect();
    Invite { node: network.local(), addresses, private }.to_text()
}

/// Dials the node of an invite.
///
/// # Errors
/// A sentence for the person who typed it.
pub async fn join(network: &Network, text: &str, have_grid_key: bool) -> Result<(), String> {
    let addresses = addresses_of(text, have_grid_key)?;
    if addresses.iter().any(|address| address.node == Some(network.local())) {
        return Err("this is the node's own invite: run `opengrid join` on the other machine".into());
    }
    network.join(addresses).await.map(drop).map_err(|error| format!("cannot reach the inviting node: {error}"))
}

/// Where an invite leads.
///
/// # Errors
/// A sentence for the person who typed it.
pub fn addresses_of(text: &str, have_grid_key: bool) -> Result<Vec<PeerAddress>, String> {
    let invite = Invite::from_text(text).map_err(|error| error.to_string())?;
    if invite.private && !have_grid_key {
        return Err("the invite is to a private grid: give its key with --grid-key FILE".into());
    }
    let address = |bytes: &Vec<u8>| {
        let address = opengrid_network::address_from_bytes(bytes)?;
        Some(PeerAddress { node: Some(invite.node), address })
    };
    let addresses: Vec<_> = invite.addresses.iter().filter_map(address).collect();
    if addresses.is_empty() {
        return Err("the invite holds no address that this program understands: ask for a new one".into());
    }
    Ok(addresses)
}
