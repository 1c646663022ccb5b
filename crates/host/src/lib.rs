//! Hardware probes, limits and benchmark of the host machine
