//! What the WASI 0.2 guests share: TCP on the wstd reactor ([`tcp`]) and signals from the node ([`signal`]).
//!
//! wstd has a TCP of its own, but it neither listens on IPv6 nor tells a peer's address as one.
#![cfg(target_env = "p2")]

pub mod signal;
pub mod tcp;
