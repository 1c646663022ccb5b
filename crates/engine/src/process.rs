//! A child process on the node's side: started with a small environment, its streams framed, its end certain.

use std::{io, path::Path, process::Stdio, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use opengrid_protocol::codec;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tokio_util::{
    codec::{FramedRead, LengthDelimitedCodec},
    task::AbortOnDropHandle,
};

use crate::ipc;

/// A child that was asked to end gets so long before it is killed.
const END: Duration = Duration::from_millis(1_000);
/// Of what a child writes to stderr, the end is kept for its obituary.
const LAST_WORDS_BYTES: usize = 2_000;

/// What goes to a child.
pub struct Input(ChildStdin);

/// What comes from a child.
pub struct Output {
    frames: FramedRead<ChildStdout, LengthDelimitedCodec>,
    bytes_max: usize,
}

/// A running child; killed when dropped.
pub struct ChildProcess {
    pub input: Input,
    pub output: Output,
    child: Child,
    last_words: AbortOnDropHandle<String>,
}

/// How to start a child.
pub struct Launch<'a> {
    pub program: &'a Path,
    pub command: &'a str,
    pub environment: &'a [(&'a str, &'a str)],
    /// GPU drivers find their libraries and devices by the environment.
    pub keep_environment: bool,
    /// Largest frame that the child may send, in bytes.
    pub frame_bytes_max: usize,
}

impl ChildProcess {
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(launch: &Launch<'_>) -> io::Result<Self> {
        let mut command = Command::new(launch.program);
        command.arg(launch.command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        // Ctrl-C in a terminal goes to the whole foreground group; the child ends when the node has drained.
        #[cfg(unix)]
        command.process_group(0);
        if cfg!(unix) && !launch.keep_environment {
            let library_path = std::env::var_os("LD_LIBRARY_PATH");
            command.env_clear().envs(library_path.map(|path| ("LD_LIBRARY_PATH", path)));
        }
        command.env("GGML_NO_BACKTRACE", "1").envs(launch.environment.iter().copied());
        let mut child = command.spawn()?;
        let missing = || io::Error::other("the child has no streams");
        let input = Input(child.stdin.take().ok_or_else(missing)?);
        let frames = FramedRead::new(child.stdout.take().ok_or_else(missing)?, ipc::frames(launch.frame_bytes_max));
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let last_words = AbortOnDropHandle::new(tokio::spawn(keep_last_words(stderr)));
        let output = Output { frames, bytes_max: launch.frame_bytes_max };
        Ok(Self { input, output, child, last_words })
    }

    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks the child to end by closing its stdin, kills it if it does not, and returns how it ended and what it
    /// said last. No process is left behind.
    pub async fn end(mut self) -> String {
        drop(self.input);
        let status = match timeout(END, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                let _ = self.child.start_kill();
                self.child.wait().await
            }
        };
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let words = timeout(END, self.last_words).await.ok().and_then(Result::ok).unwrap_or_default();
        if words.is_empty() { status } else { format!("{status}; its last words: {words}") }
    }

    /// Kills the child without asking.
    pub async fn kill(mut self) -> String {
        let _ = self.child.start_kill();
        self.end().await
    }
}

impl Input {
    /// Not safe to cancel: half a frame would be left in the pipe.
    ///
    /// # Errors
    /// When the child is gone.
    pub async fn send(&mut self, frame: &Bytes) -> io::Result<()> {
        self.0.write_all(frame).await
    }
}

impl Output {
    /// The next message; safe to cancel.
    ///
    /// # Errors
    /// When the child is gone, or sends what is no message.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let frame = self.frames.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
        codec::decode(&frame, self.bytes_max).map_err(|error| io::Error::other(error.to_string()))
    }
}

async fn keep_last_words(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut words: Vec<u8> = Vec::new();
    let mut piece = [0; 1_024];
    while let Ok(count @ 1..) = stderr.read(&mut piece).await {
        words.extend_from_slice(&piece[..count]);
        let over = words.len().saturating_sub(LAST_WORDS_BYTES);
        words.drain(..over);
    }
    String::from_utf8_lossy(&words).trim().replace('\n', " | ")
}
