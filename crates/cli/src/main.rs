//! Entry of the `opengrid` binary.

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};
use opengrid_cli::{
    args::Cli,
    commands,
    errors::{exit_code, one_line},
};

fn main() -> ExitCode {
    // Before anything starts a thread: the engine's children confine themselves first.
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|command| opengrid_engine::is_child_command(&command)) {
        return opengrid_engine::child_main(std::env::args_os().skip(1));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let result = runtime.block_on(commands::run(cli));
    // A thread that waits for a terminal or a disk must not keep the process.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| fail(&error))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let code = exit_code(error);
    if code != 0 {
        eprintln!("error: {}", one_line(error));
    }
    ExitCode::from(code)
}

/// Help and version are no errors. The rest is one line on stderr.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            let rendered = error.render().to_string();
            let message = rendered.split("\n\nFor more information").next().unwrap_or(&rendered);
            eprintln!("{}", message.split_whitespace().collect::<Vec<_>>().join(" "));
            ExitCode::from(2)
        }
    }
}
