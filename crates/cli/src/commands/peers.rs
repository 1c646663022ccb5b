//! `opengrid peers`: the nodes that the running node knows.

use serde_json::Value;

use crate::{
    api::{self, Api},
    args::TargetArgs,
    context::Context,
    output,
    shapes::{Peer, named},
};

const HEADINGS: [&str; 5] = ["peer id", "path", "rtt", "version", "serves"];
const RIGHT: [bool; 5] = [false, false, true, false, false];

/// # Errors
/// When no node answers.
pub async fn run(args: &TargetArgs, context: &Context) -> anyhow::Result<()> {
    let api = Api::of(args, &context.home)?;
    let answer: Value = api.get("/grid/v1/peers").await?;
    if context.json {
        return output::json(&answer);
    }
    let peers: Vec<Peer> = api::rows(&answer, "peers")?;
    if peers.is_empty() {
        return output::line("no peers yet: join a grid with `opengrid join INVITE`, or wait for one on this network");
    }
    let rows: Vec<Vec<String>> = peers.iter().map(row).collect();
    output::line(output::table(&HEADINGS, &RIGHT, &rows))
}

fn row(peer: &Peer) -> Vec<String> {
    let models = peer.models.iter().map(|model| {
        let draining = if model.draining { ", draining" } else { "" };
        format!("{} {}/{} busy{draining}", named(&model.id, model.layers.as_deref()), model.slots_busy, model.slots)
    });
    let serves = match &peer.refused {
        Some(fault) => format!("refused for some minutes, it sent {fault}"),
        None => models.collect::<Vec<_>>().join("; "),
    };
    vec![
        peer.peer_id.clone(),
        if peer.connected { peer.path.clone() } else { "not connected".into() },
        peer.rtt_ms.map_or_else(|| "-".into(), |rtt| format!("{rtt:.1} ms")),
        peer.version.clone().unwrap_or_else(|| "-".into()),
        serves,
    ]
}
