//! Runs one engine or tokenizer child; the tests of this crate use it in place of the `opengrid` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    opengrid_engine::child_main(std::env::args_os().skip(1))
}
