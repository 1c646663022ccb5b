//! Entry of `opengrid-lab`.

#[cfg(target_os = "linux")]
mod args;
#[cfg(target_os = "linux")]
mod commands;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    let cli = <args::Cli as clap::Parser>::parse();
    commands::run(cli.command).unwrap_or_else(|error| {
        eprintln!("opengrid-lab: {error}");
        ExitCode::FAILURE
    })
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("opengrid-lab: it is made of Linux network namespaces and runs on Linux only");
    ExitCode::FAILURE
}
