//! End-to-end sealing between gateway and worker
