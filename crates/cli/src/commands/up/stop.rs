//! The signals that end a node.

use anyhow::Context;

/// Ctrl-C and, on Unix, SIGTERM and SIGHUP (the terminal was closed).
pub struct Signals {
    #[cfg(unix)]
    unix: [tokio::signal::unix::Signal; 3],
}

#[cfg(unix)]
impl Signals {
    /// From now on the process does not die of them.
    ///
    /// # Errors
    /// When the system refuses handlers.
    pub fn listen() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).context("cannot listen to signals");
        let unix = [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?];
        Ok(Self { unix })
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        let [interrupt, terminate, hangup] = &mut self.unix;
        tokio::select! {
            _ = interrupt.recv() => "interrupted",
            _ = terminate.recv() => "terminated",
            _ = hangup.recv() => "the terminal was closed",
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    /// # Errors
    /// Never here.
    pub fn listen() -> anyhow::Result<Self> {
        Ok(Self {})
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        "interrupted"
    }
}
