//! `opengrid completions`: a completion script on stdout.

use clap::CommandFactory;

use crate::{
    args::{Cli, CompletionsArgs},
    output,
};

/// # Errors
/// When stdout is closed.
pub fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "opengrid", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}
