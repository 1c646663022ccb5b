//! The control socket: lines of [`crate::control`] over a Unix socket that only root can open.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use futures::{SinkExt, StreamExt};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::codec::{Framed, LinesCodec};

use crate::{
    control::{REQUEST_BYTES_MAX, Reply, Request},
    laboratory::Handle,
};

const CONNECTIONS_MAX: usize = 16;

/// A socket at `path`; what lies there from before is replaced.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until an error of the socket itself; dropping the future ends all connections.
pub async fn serve(listener: &UnixListener, handle: &Handle) -> io::Result<()> {
    let (mut connections, room) = (JoinSet::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return Ok(()) };
        while connections.try_join_next().is_some() {}
        let (stream, _) = listener.accept().await?;
        let handle = handle.clone();
        connections.spawn(async move {
            converse(stream, &handle).await;
            drop(permit);
        });
    }
}

/// Answers line by line until the other side has enough, or sends a line that has no end.
async fn converse(stream: UnixStream, handle: &Handle) {
    let mut lines = Framed::new(stream, LinesCodec::new_with_max_length(REQUEST_BYTES_MAX));
    while let Some(line) = lines.next().await {
        let (reply, more) = match line {
            Ok(line) => (answer(&line, handle).await, true),
            Err(error) => (Reply::refused(error), false),
        };
        let Ok(text) = serde_json::to_string(&reply) else { return };
        if lines.send(text).await.is_err() || !more {
            return;
        }
    }
}

async fn answer(line: &str, handle: &Handle) -> Reply {
    let request = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(error) => return Reply::refused(format!("not a request: {error}")),
    };
    let is_stats = request == Request::Stats;
    let mut reply = handle.ask(request).await;
    if is_stats && let Some(stats) = &mut reply.stats {
        let handle = handle.clone();
        stats.overrun = tokio::task::spawn_blocking(move || handle.overrun()).await.unwrap_or_default();
    }
    reply
}
