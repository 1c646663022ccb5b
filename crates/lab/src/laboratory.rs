//! A running laboratory: its namespaces, their devices and the thread between them.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use serde::Serialize;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use tokio::sync::{mpsc, oneshot};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::{
    control::{Reply, Request},
    fabric::{Fabric, HOSTS_MAX, HostId},
    forwarder::{Bell, Command, Forwarder},
    link::LinkSettings,
    namespace::{self, Namespace, NamespaceError},
    packet,
};

/// The TUN device in every host.
const DEVICE: &str = "wan";
/// What a host may send before the laboratory takes it, in packets; the kernel drops the rest.
const DEVICE_QUEUE: u32 = 4096;
const COMMANDS_MAX: usize = 16;
const RUN: &str = "/run/opengrid-lab";
const NAME_MAX: usize = 16;
pub const MTU_MIN: u16 = 576;

#[derive(Clone, Debug)]
pub struct Config {
    /// Namespaces are called so and a number. Of a name there is one laboratory at a time.
    pub name: String,
    pub hosts: u8,
    pub mtu: u16,
    /// Of every link at first.
    pub links: LinkSettings,
    pub seed: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("{0} hosts: 1 to {HOSTS_MAX} are possible")]
    Hosts(u8),
    #[error("MTU {0}: {MTU_MIN} to 65535 are possible")]
    Mtu(u16),
    #[error("the name {0:?}: use 1 to {NAME_MAX} letters, digits and hyphens, and no digit at the end")]
    Name(String),
    #[error("{0} is in use by another laboratory: end that one, or give this one another --name")]
    InUse(String),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("cannot open the TUN device of {host}: {source}")]
    Device { host: String, source: io::Error },
    #[error("cannot start the thread that moves packets: {0}")]
    Thread(io::Error),
}

/// A host as it is announced.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    pub host: HostId,
    pub namespace: String,
    pub address: Ipv4Addr,
}

/// All of it ends when this is dropped.
pub struct Laboratory {
    handle: Handle,
    thread: Option<JoinHandle<io::Result<()>>>,
    realtime: bool,
    namespaces: Vec<Namespace>,
    _lock: File,
}

impl Laboratory {
    /// Removes what an earlier one of the same name left behind, makes the hosts and starts.
    ///
    /// # Errors
    /// Where root, `ip` or TUN devices are missing, the name is in use or the configuration impossible.
    pub fn up(config: &Config) -> Result<Self, LabError> {
        check(config)?;
        let lock = clear(&config.name)?;
        let namespaces = (0..config.hosts).map(|host| add_host(config, HostId(host))).collect::<Result<Vec<_>, _>>()?;
        let devices = namespaces.iter().map(open_device).collect::<Result<Vec<_>, _>>()?;
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let bell = Arc::new(Bell::new().map_err(LabError::Thread)?);
        let fabric = Fabric::new(config.hosts, &config.links, config.seed);
        let forwarder = Forwarder::new(devices, fabric, commands, bell.clone()).map_err(LabError::Thread)?;
        let (realtime, thread) = start(forwarder).map_err(LabError::Thread)?;
        let names: Vec<_> = namespaces.iter().map(|namespace| namespace.name().to_owned()).collect();
        let handle = Handle { commands: sender, bell, namespaces: names.into() };
        Ok(Self { handle, thread: Some(thread), realtime, namespaces, _lock: lock })
    }

    pub fn hosts(&self) -> Vec<Host> {
        let named = self.namespaces.iter().zip((0..).map(HostId));
        let host = |(namespace, host): (&Namespace, _)| Host {
            host,
            namespace: namespace.name().to_owned(),
            address: packet::address(host),
        };
        named.map(host).collect()
    }

    /// Whether the thread goes before all ordinary ones. Without it, busy neighbours make packets late.
    pub fn is_realtime(&self) -> bool {
        self.realtime
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends it, and says what ended it before.
    ///
    /// # Errors
    /// When moving packets had failed, for instance because somebody removed a device.
    pub fn down(mut self) -> io::Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> io::Result<()> {
        self.handle.bell.stop();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Laboratory {
    fn drop(&mut self) {
        // Whoever wants to know calls `down`.
        let _ = self.stop();
    }
}

/// Speaks to the thread that moves packets.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    bell: Arc<Bell>,
    namespaces: Arc<[String]>,
}

impl Handle {
    /// A reply always comes; that of an ended laboratory is a refusal.
    pub async fn ask(&self, request: Request) -> Reply {
        let (sender, reply) = oneshot::channel();
        let sent = self.commands.send((request, sender)).await;
        self.bell.ring();
        match (sent, reply.await) {
            (Ok(()), Ok(reply)) => reply,
            _ => Reply::refused("the laboratory has ended"),
        }
    }

    /// The same, outside of an async runtime.
    pub fn ask_blocking(&self, request: Request) -> Reply {
        let (sender, reply) = oneshot::channel();
        let sent = self.commands.blocking_send((request, sender));
        self.bell.ring();
        match (sent, reply.blocking_recv()) {
            (Ok(()), Ok(reply)) => reply,
            _ => Reply::refused("the laboratory has ended"),
        }
    }

    /// Returns when the laboratory has ended.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// Packets that the hosts' kernels dropped because the laboratory did not take them in time.
    pub fn overrun(&self) -> u64 {
        self.namespaces.iter().filter_map(|name| namespace::within(name, dropped_by_kernel).ok().flatten()).sum()
    }
}

fn check(config: &Config) -> Result<(), LabError> {
    let Config { hosts, mtu, .. } = config;
    if !(1..=HOSTS_MAX).contains(hosts) {
        return Err(LabError::Hosts(*hosts));
    }
    if *mtu < MTU_MIN {
        return Err(LabError::Mtu(*mtu));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), LabError> {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let ends_well = name.bytes().last().is_some_and(|last| !last.is_ascii_digit());
    if !letters || !ends_well || name.starts_with('-') || name.len() > NAME_MAX {
        return Err(LabError::Name(name.to_owned()));
    }
    Ok(())
}

/// Where the control socket of a laboratory is when nothing else is said.
pub fn control_path(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.sock"))
}

/// Takes the name for this process and removes what is left of another that had it.
///
/// # Errors
/// When a living laboratory has it, or it is no name for one.
pub fn clear(name: &str) -> Result<File, LabError> {
    check_name(name)?;
    let path = Path::new(RUN).join(format!("{name}.lock"));
    let failed = |source| LabError::File { path: path.clone(), source };
    fs::create_dir_all(RUN).map_err(failed)?;
    let lock = File::create(&path).map_err(failed)?;
    match lock.try_lock() {
        Err(fs::TryLockError::WouldBlock) => return Err(LabError::InUse(name.to_owned())),
        Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        Ok(()) => {}
    }
    for stale in namespace::numbered(name) {
        namespace::remove(&stale)?;
    }
    Ok(lock)
}

pub fn namespace_name(name: &str, host: HostId) -> String {
    format!("{name}{}", host.0)
}

fn add_host(config: &Config, host: HostId) -> Result<Namespace, LabError> {
    let (address, mtu) = (packet::address(host), config.mtu);
    let lines = format!(
        "link set lo up\n\
         tuntap add {DEVICE} mode tun\n\
         addr add {address}/24 dev {DEVICE}\n\
         link set {DEVICE} mtu {mtu} txqueuelen {DEVICE_QUEUE}\n"
    );
    Ok(Namespace::add(namespace_name(&config.name, host), &lines)?)
}

/// Opens it and only then sets it up. A device that is up before it is open gets its queue when the kernel finds the
/// time (`linkwatch`), and loses without a word what is sent until then.
fn open_device(namespace: &Namespace) -> Result<SyncDevice, LabError> {
    let open = || {
        let device = DeviceBuilder::new().name(DEVICE).enable(true).build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    };
    let failed = |source| LabError::Device { host: namespace.name().to_owned(), source };
    namespace::within(namespace.name(), open)?.map_err(failed)
}

/// The thread, and whether it goes before all others.
fn start(forwarder: Forwarder) -> io::Result<(bool, JoinHandle<io::Result<()>>)> {
    let (sender, realtime) = oneshot::channel();
    let run = move || {
        let _ = sender.send(go_first());
        forwarder.run()
    };
    let thread = thread::Builder::new().name("forwarder".to_owned()).spawn(run)?;
    Ok((realtime.blocking_recv().unwrap_or(false), thread))
}

/// Gives the calling thread real-time priority where the kernel allows it. The programs under test may spin on all
/// cores; a thread of the ordinary class would wait for their time slices.
pub fn go_first() -> bool {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let Ok(lowest) = ThreadPriorityValue::try_from(1) else { return false };
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(lowest), policy).is_ok()
}

fn dropped_by_kernel() -> Option<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    let (_, row) = table.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.trim() == DEVICE))?;
    // Eight columns of what was received, then bytes, packets, errors and drops of what was sent.
    row.split_whitespace().nth(11)?.parse().ok()
}
