//! One file per verb, and which runs.

pub mod bench;
pub mod completions;
pub mod config;
pub mod doctor;
pub mod down;
pub mod invite;
pub mod join;
pub mod keys;
pub mod ls;
pub mod peers;
pub mod ps;
pub mod pull;
pub mod rm;
pub mod run;
pub mod show;
pub mod slice;
pub mod status;
pub mod up;

use std::process::ExitCode;

use crate::{
    args::{Cli, Command},
    context::Context,
    logging,
};

/// What commands log unless told otherwise: they have their own words for what goes wrong.
const QUIET: &str = "error";

/// Runs the command.
///
/// # Errors
/// What went wrong, for [`crate::errors::one_line`] and [`crate::errors::exit_code`].
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = cli.global;
    let context = |up| Context::load(&global, up);
    if !matches!(cli.command, Command::Up(_)) {
        logging::start(global.log.as_deref().unwrap_or(QUIET), logging::Format::Text)?;
    }
    match cli.command {
        Command::Up(args) => {
            let context = context(Some(&args))?;
            context.start_logging(&global)?;
            up::run(&context).await?;
        }
        Command::Run(args) => run::run(&args, &context(None)?).await?,
        Command::Pull(args) => pull::run(&args, &context(None)?).await?,
        Command::Slice(args) => slice::run(&args, &context(None)?).await?,
        Command::Ls(args) => ls::run(&args, &context(None)?).await?,
        Command::Show(args) => show::run(&args, &context(None)?).await?,
        Command::Rm(args) => rm::run(&args, &context(None)?).await?,
        Command::Ps(args) => ps::run(&args, &context(None)?).await?,
        Command::Status(args) => status::run(&args, &context(None)?).await?,
        Command::Peers(args) => peers::run(&args, &context(None)?).await?,
        Command::Invite(args) => invite::run(&args, &context(None)?).await?,
        Command::Join(args) => join::run(&args, &context(None)?).await?,
        Command::Keys(command) => keys::run(&command, &context(None)?)?,
        Command::Down(args) => down::run(&args, &context(None)?).await?,
        Command::Bench(args) => bench::run(&args, &context(None)?).await?,
        Command::Doctor(args) => return doctor::run(&args, &global).await,
        Command::Config(command) => config::run(&command, &global)?,
        Command::Completions(args) => completions::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
