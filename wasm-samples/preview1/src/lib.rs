//! What the preview 1 guests share: the node's host calls for processes ([`process`]) and signals ([`signal`]).
#![cfg(target_env = "p1")]

pub mod process;
pub mod signal;
