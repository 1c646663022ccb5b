//! The actors that wire the pure machines to I/O. The gateway sees only [`handle::GridHandle`].

pub mod handle;
