//! Logs go to stderr; prompts and answers are never logged at any level.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::errors::usage;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Starts logging. `filter`: a level, or tracing's filter syntax.
///
/// # Errors
/// When `filter` is neither.
pub fn start(filter: &str, format: Format) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(filter).map_err(|error| {
        usage(format!("`{filter}` is no log level ({error}): use error, warn, info, debug, or a filter like opengrid_network=debug"))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().try_init(),
    }
    .map_err(|error| anyhow::anyhow!("logging could not start: {error}"))
}
