//! `opengrid invite`: the invite alone on the first line, so that scripts can take it.

use std::time::{Duration, Instant};

use anyhow::bail;
use qrcode::{QrCode, render::unicode::Dense1x2};
use serde_json::json;

use crate::{
    api::Api,
    args::InviteArgs,
    context::Context,
    output,
    runtime::{self, RuntimeError},
    shapes::Status,
};

const POLL: Duration = Duration::from_millis(100);

/// # Errors
/// When no node runs within the time to wait, or it has no address yet.
pub async fn run(args: &InviteArgs, context: &Context) -> anyhow::Result<()> {
    let invite = await_invite(args, context).await?;
    if context.json {
        return output::json(&json!({ "invite": invite }));
    }
    output::line(&invite)?;
    if args.qr {
        output::line(qr(&invite)?)?;
    }
    Ok(())
}

async fn await_invite(args: &InviteArgs, context: &Context) -> anyhow::Result<String> {
    let deadline = Instant::now() + Duration::from_secs(args.wait);
    loop {
        match read(args, context).await {
            Ok(invite) if !invite.is_empty() => return Ok(output::clean(&invite)),
            Ok(_) if Instant::now() >= deadline => {
                bail!("the node has no address to invite to yet: try again, or see `opengrid doctor`")
            }
            Err(error) if Instant::now() >= deadline || !may_come(&error) => return Err(error),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

/// The node's status has its newest addresses; the runtime file is there a moment before the API answers.
async fn read(args: &InviteArgs, context: &Context) -> anyhow::Result<String> {
    if args.target.api.is_some() {
        let status: Status = Api::of(&args.target, &context.home)?.get("/grid/v1/status").await?;
        return Ok(status.invite);
    }
    let runtime = runtime::read(&context.home)?;
    match Api::of_runtime(&runtime)?.get::<Status>("/grid/v1/status").await {
        Ok(status) if !status.invite.is_empty() => Ok(status.invite),
        _ => Ok(runtime.invite),
    }
}

/// Whether waiting can help.
fn may_come(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<RuntimeError>() {
        Some(RuntimeError::Unreadable { .. }) => false,
        // Malformed: the node may be writing it at this moment.
        Some(_) => true,
        None => error.downcast_ref::<crate::errors::Usage>().is_none(),
    }
}

/// In capitals: a QR code holds them in 5.5 bits each instead of 8, and Bech32 reads both.
fn qr(invite: &str) -> anyhow::Result<String> {
    let code = QrCode::new(invite.to_ascii_uppercase())?;
    Ok(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use opengrid_protocol::{NodeId, invite::Invite};

    use super::*;

    #[test]
    fn the_longest_invite_fits_a_qr_code_and_capitals_still_parse() {
        let invite = Invite { node: NodeId([1; 32]), addresses: vec![vec![7; 60]; 16], private: false };
        let text = invite.to_text();
        assert!(qr(&text).unwrap().lines().count() > 20);
        assert_eq!(Invite::from_text(&text.to_ascii_uppercase()), Invite::from_text(&text));
    }
}
