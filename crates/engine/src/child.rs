//! What both kinds of child process share: their streams, their death with the parent, their hidden commands.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Stdin},
    process::ExitCode,
};

use crate::{llama_cpp, vocabulary};

/// Hidden subcommands of the binary; the node starts itself with them.
pub const ENGINE_COMMAND: &str = "engine-child";
pub const TOKENIZER_COMMAND: &str = "tokenizer-child";

/// Runs as a child process where the first of `args` (without the program's name) is `engine-child` or
/// `tokenizer-child`: frames come on stdin and go to stdout. Call before anything else, above all before any thread.
///
/// # Returns
/// Failure for other arguments, and when the stream from the parent is no stream of frames.
pub fn child_main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let run = match args.next().as_deref().and_then(|command| command.to_str()) {
        Some(ENGINE_COMMAND) => llama_cpp::run_child,
        Some(TOKENIZER_COMMAND) => vocabulary::run_child,
        _ => {
            eprintln!("this is started by opengrid itself: {ENGINE_COMMAND} or {TOKENIZER_COMMAND}");
            return ExitCode::from(2);
        }
    };
    match take_streams().and_then(|(input, output)| run(input, output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("child process: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Is this a command of [`child_main`]?
pub fn is_child_command(argument: &std::ffi::OsStr) -> bool {
    argument == ENGINE_COMMAND || argument == TOKENIZER_COMMAND
}

/// The parent's streams. What C code prints to stdout goes to stderr from here on.
#[cfg(unix)]
fn take_streams() -> io::Result<(Stdin, File)> {
    use std::os::fd::AsFd;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok((io::stdin(), File::from(output)))
}

#[cfg(windows)]
fn take_streams() -> io::Result<(Stdin, File)> {
    use std::os::windows::io::AsHandle;
    let output = io::stdout().as_handle().try_clone_to_owned()?;
    Ok((io::stdin(), File::from(output)))
}

/// Ends this process at once, whatever its other threads compute: no destructors, no signal handlers.
///
/// A parent that is gone is noticed by the end of stdin; `PR_SET_PDEATHSIG` would tie the child to the parent's
/// *thread* that started it, and tokio's threads come and go.
pub fn end_at_once() -> ! {
    #[cfg(unix)]
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}
