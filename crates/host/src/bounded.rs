//! Work that may hang (drivers, network disks, other programs), cut off after a time.

use std::{
    io::Read,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Most output that is read of a program.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
/// Largest file of `/proc` or `/sys` that is read.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The result of `work`, or `None` after `timeout`; the thread that hangs in the kernel is then left to itself.
pub fn run<T: Send + 'static>(timeout: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let spawned = thread::Builder::new().name("host-probe".to_owned()).spawn(move || {
        // Nobody listens after the timeout.
        let _ = sender.send(work());
    });
    spawned.ok()?;
    receiver.recv_timeout(timeout).ok()
}

/// Standard output of a program that ends well within `timeout`; it is killed otherwise.
pub fn output(program: &str, arguments: &[&str], timeout: Duration) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let started = Instant::now();
    let stdout = child.stdout.take()?;
    let text = run(timeout, move || {
        let mut text = String::new();
        stdout.take(OUTPUT_BYTES_MAX).read_to_string(&mut text).ok().map(|_| text)
    });
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return text.flatten().filter(|_| status.success()),
            Ok(None) if started.elapsed() < timeout => thread::sleep(Duration::from_millis(5)),
            _ => break,
        }
    }
    tracing::debug!(program, "a hardware probe did not answer and was ended");
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// A small text file, trimmed; `None` where it is missing or unreadable.
pub fn read(path: &std::path::Path) -> Option<String> {
    let file = std::fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A file that holds one number.
pub fn read_number<T: std::str::FromStr>(path: &std::path::Path) -> Option<T> {
    read(path)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_cut_off() {
        let started = Instant::now();
        assert_eq!(run(Duration::from_millis(50), || thread::sleep(Duration::from_secs(5))), None);
        assert!(started.elapsed() < Duration::from_secs(2));
        assert_eq!(run(Duration::from_secs(5), || 7), Some(7));
    }

    #[cfg(unix)]
    #[test]
    fn programs_are_read_failed_and_killed() {
        let started = Instant::now();
        assert_eq!(output("sh", &["-c", "echo hi"], TIMEOUT).as_deref(), Some("hi\n"));
        assert_eq!(output("sh", &["-c", "echo hi; exit 3"], TIMEOUT), None);
        assert_eq!(output("no-such-program", &[], TIMEOUT), None);
        assert_eq!(output("sleep", &["30"], Duration::from_millis(100)), None);
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn files_are_optional() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("n"), "42\n").unwrap();
        assert_eq!(read_number::<u64>(&dir.path().join("n")), Some(42));
        assert_eq!(read_number::<u64>(&dir.path().join("missing")), None);
    }
}
