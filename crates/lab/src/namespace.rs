//! Network namespaces by name, as `ip netns` knows them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use rustix::{
    process::{Pid, Signal, geteuid, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

const DIRECTORY: &str = "/run/netns";
pub const TUN: &str = "/dev/net/tun";

#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("cannot run `ip` (Debian package iproute2): {0}")]
    NoIp(io::Error),
    #[error("`ip {arguments}` failed: {output}")]
    Ip { arguments: String, output: String },
    #[error("cannot enter the network namespace {name}: {source}")]
    Enter { name: String, source: io::Error },
}

/// Why this machine cannot have a laboratory, in words; nothing when it can.
pub fn why_not() -> Option<String> {
    if !geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    if !Path::new(TUN).exists() {
        return Some(format!("{TUN} does not exist: this kernel has no TUN devices"));
    }
    let probe = format!("oglabprobe{}", std::process::id());
    let made = ip(&["netns", "add", &probe], "").and_then(|()| {
        let tun = ip(&["-n", &probe, "tuntap", "add", "probe", "mode", "tun"], "");
        ip(&["netns", "del", &probe], "").and(tun)
    });
    made.err().map(|error| error.to_string())
}

/// A namespace of this name, removed with its processes when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it and runs lines of `ip -batch` in it.
    pub fn add(name: String, lines: &str) -> Result<Self, NamespaceError> {
        ip(&["netns", "add", &name], "")?;
        let namespace = Self { name };
        ip(&["-n", &namespace.name, "-batch", "-"], lines)?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Whoever could be told is told by the stale namespace that the next start removes.
        let _ = remove(&self.name);
    }
}

/// Removes a namespace with whatever still runs in it.
pub fn remove(name: &str) -> Result<(), NamespaceError> {
    for pid in ip_output(&["netns", "pids", name])?.lines() {
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|pid| *pid != rustix::process::getpid()) {
            // It may be gone already.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    ip(&["netns", "del", name], "")
}

/// Existing namespaces whose names are `prefix` and a number.
pub fn numbered(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.strip_prefix(prefix).is_some_and(is_number)).collect()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Moves the calling thread, and what it starts from now on, into a namespace for good.
pub fn enter(name: &str) -> Result<(), NamespaceError> {
    let failed = |source| NamespaceError::Enter { name: name.to_owned(), source };
    let file = fs::File::open(PathBuf::from(DIRECTORY).join(name)).map_err(failed)?;
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).map_err(|error| failed(error.into()))
}

/// Does something in a namespace, on a thread of its own. Sockets and devices that it opens stay there wherever they are
/// used afterwards.
pub fn within<T: Send>(name: &str, action: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    let inside = || enter(name).map(|()| action());
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ip(arguments: &[&str], input: &str) -> Result<(), NamespaceError> {
    run_ip(arguments, input).map(|_| ())
}

fn ip_output(arguments: &[&str]) -> Result<String, NamespaceError> {
    run_ip(arguments, "")
}

fn run_ip(arguments: &[&str], input: &str) -> Result<String, NamespaceError> {
    let mut command = Command::new("ip");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(NamespaceError::NoIp)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early says why on stderr.
        let _ = io::Write::write_all(&mut stdin, input.as_bytes());
    }
    let output = child.wait_with_output().map_err(NamespaceError::NoIp)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NamespaceError::Ip { arguments: arguments.join(" "), output: said })
}
