//! Entry of the `opengrid` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::SUCCESS
}
