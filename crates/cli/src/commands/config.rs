//! `opengrid config`: writes the commented file, shows what is in force.

use crate::{
    args::{ConfigCommand, Global},
    config,
    context::Context,
    errors::usage,
    output,
};

/// # Errors
/// When the file exists already or a setting is wrong.
pub fn run(command: &ConfigCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Init => init(global),
        ConfigCommand::Show => show(&Context::load(global, None)?),
    }
}

/// Does not read the settings: a wrong file must not keep a fresh one from being written elsewhere.
fn init(global: &Global) -> anyhow::Result<()> {
    let home = config::home_dir(global.home.clone()).map_err(|error| usage(error.to_string()))?;
    let path = config::init(&home)?;
    if global.json {
        output::json(&serde_json::json!({ "path": path }))
    } else {
        output::line(format!("wrote {}", path.display()))
    }
}

fn show(context: &Context) -> anyhow::Result<()> {
    if context.json {
        output::json(&context.settings.show_json())
    } else {
        output::line(context.settings.show().trim_end())
    }
}
