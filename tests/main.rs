//! The one integration-test binary: wasmtime is linked once. A file a promise a user would recognise; each runs the
//! real `wasilet` binary on real guests.

#![allow(clippy::unwrap_used, reason = "a test that meets an error it did not expect has failed")]

mod architecture;
mod bad_input;
mod charts;
mod cluster;
mod density;
mod go;
mod images;
mod joined;
mod languages;
mod limits;
mod play;
mod pod_cidr;
mod pod_network;
mod probes;
mod promises;
mod shutdown;
mod standalone;
mod support;
mod toolbox;
mod volumes;

#[path = "../fuzz/targets/mod.rs"]
mod fuzz;
