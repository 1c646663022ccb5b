//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A wide area network of Linux network namespaces, for tests and measurements.
#[derive(Debug, Parser)]
#[command(name = "opengrid-lab", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes the hosts, prints one JSON line when they are ready, and runs until SIGTERM or SIGINT
    Up(Up),
    /// Runs a command in a host: exec 0 -- ping 10.77.0.2
    Exec(Exec),
    /// Sends requests (one JSON object each, see `control`) to a running laboratory and prints the replies
    Tell(Tell),
    /// Removes what a killed laboratory left behind
    Clean(Name),
    /// Measures what the laboratory itself costs on this machine and prints it as JSON
    Measure(Measure),
    /// Says why this machine cannot do it, with status 1; nothing when it can
    Check,
}

#[derive(Debug, Args)]
pub struct Name {
    /// Namespaces are called NAME0, NAME1 and so on
    #[arg(long, default_value = "oglab")]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    pub name: Name,
    /// How many hosts; host N has the address 10.77.0.N+1
    #[arg(long, default_value_t = 2)]
    pub hosts: u8,
    /// One-way delay of every link, in milliseconds
    #[arg(long, default_value_t = 0.0)]
    pub delay_ms: f64,
    /// Up to so many milliseconds more, drawn uniformly for each packet
    #[arg(long, default_value_t = 0.0)]
    pub jitter_ms: f64,
    /// Packets lost of a million
    #[arg(long, default_value_t = 0)]
    pub loss_ppm: u32,
    /// Bytes per second of every link; 0 is without limit
    #[arg(long, default_value_t = 0)]
    pub rate_bytes_per_s: u64,
    /// Bytes that may wait for a link with a rate
    #[arg(long)]
    pub queue_bytes: Option<u64>,
    /// Lets jitter change the order of packets
    #[arg(long)]
    pub reorder: bool,
    /// Largest IP packet
    #[arg(long, default_value_t = 1500)]
    pub mtu: u16,
    /// Of loss and jitter: the same seed treats the N-th packet of a link in the same way again
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The control socket [default: /run/opengrid-lab/NAME.sock]
    #[arg(long)]
    pub control: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    pub name: Name,
    pub host: u8,
    #[arg(last = true, required = true)]
    pub command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub struct Tell {
    #[command(flatten)]
    pub name: Name,
    /// The control socket [default: /run/opengrid-lab/NAME.sock]
    #[arg(long)]
    pub control: Option<PathBuf>,
    #[arg(required = true)]
    pub requests: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Measure {
    /// The namespaces are called NAME0 and NAME1
    #[arg(long, default_value = "oglabm")]
    pub name: String,
    /// Packets of which the one-way time is taken, without a delay; a tenth of them with each delay
    #[arg(long, default_value_t = 5000)]
    pub packets: u32,
    /// How long to send as fast as possible
    #[arg(long, default_value_t = 3)]
    pub seconds: u64,
}
