//! `opengrid join`: a running node joins at once; else the invite is kept for the next `opengrid up`.

use opengrid_protocol::invite::Invite;
use serde_json::json;

use crate::{api::Api, args::JoinArgs, context::Context, errors::usage, joins, output};

/// # Errors
/// When the text is no invite, the node cannot reach the grid, or the invite cannot be kept.
pub async fn run(args: &JoinArgs, context: &Context) -> anyhow::Result<()> {
    let invite = Invite::from_text(&args.invite).map_err(|error| usage(error.to_string()))?;
    let text = args.invite.trim();
    let running = Api::of_home(&context.home)?;
    if let Some(api) = &running {
        api.change("/grid/v1/join", &json!({ "invite": text })).await?;
    }
    // Kept in both cases: the running node's own memory is its peer cache, which forgets nodes that stay away.
    let kept = joins::remember(&context.home, text)?;
    if context.json {
        return output::json(&json!({ "peer_id": invite.node.to_string(), "joined": running.is_some(), "kept": kept }));
    }
    match running {
        Some(api) => output::line(format!("the node at {} joined the grid of {}", api.url(), invite.node)),
        None => output::line(format!("no node runs: the next `opengrid up` joins the grid of {}", invite.node)),
    }?;
    if invite.private {
        output::line("the grid is private: the node needs its key too (`opengrid up --grid-key FILE`)")?;
    }
    Ok(())
}
