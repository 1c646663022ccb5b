//! A laboratory for wide area networks on one machine: N hosts, each a Linux network namespace with one TUN device, and
//! one thread that moves packets between them as slowly, unevenly and unreliably as it is told. It stands in for
//! `netem`, which not every kernel has.
//!
//! Pure, without clock or I/O: [`link`] (what a link does to a packet), [`fabric`] (all links and what is under way),
//! [`packet`], [`control`], [`lateness`], [`anticipation`]. The rest is Linux only: [`namespace`], `forwarder` (the thread), [`laboratory`]
//! (all of it together), [`server`] (the control socket), [`measure`] (what the laboratory itself costs).
//!
//! Hosts talk IPv4, 10.77.0.1 and following. Anything else that they send (IPv6, multicast) is dropped and counted.

pub mod anticipation;
pub mod control;
pub mod fabric;
pub mod lateness;
pub mod link;
pub mod packet;

#[cfg(target_os = "linux")]
mod forwarder;
#[cfg(target_os = "linux")]
pub mod laboratory;
#[cfg(target_os = "linux")]
pub mod measure;
#[cfg(target_os = "linux")]
pub mod namespace;
#[cfg(target_os = "linux")]
pub mod server;
