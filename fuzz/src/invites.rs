use bech32::{Bech32m, Hrp};
use opengrid_protocol::{codec, invite::Invite, limits::INVITE_ADDRESSES_MAX};

/// The bytes as a text; as what a valid checksum covers; and as an invite that a node would print.
pub fn invites(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        read(text);
    }
    if let Ok(text) = bech32::encode::<Bech32m>(Hrp::parse_unchecked("grid"), data) {
        read(&text);
    }
    if let Ok(invite) = codec::decode::<Invite>(data, data.len()) {
        let text = invite.to_text();
        let printed = read(&text).expect("what is printed can be read");
        assert_eq!((printed.node, printed.private), (invite.node, invite.private));
    }
}

/// An invite that is read is within its limits, and prints to a text that is read as the same.
fn read(text: &str) -> Option<Invite> {
    let invite = Invite::from_text(text).ok()?;
    assert!(invite.addresses.len() <= INVITE_ADDRESSES_MAX);
    assert_eq!(Invite::from_text(&invite.to_text()).as_ref(), Ok(&invite));
    Some(invite)
}
