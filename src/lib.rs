//! Wasilet: a Kubernetes node whose containers are WebAssembly.
//!
//! The map of the house. A module imports only from levels below its own; modules of one level never
//! import each other (`tests/architecture.rs` reads every `use crate::` and holds this table).
//!
//! | level | module | owns |
//! |---|---|---|
//! | 0 | [`ids`], [`errno`], [`clock`], [`yaml`] | names, error numbers, time, strict YAML |
//! | 1 | [`config`], [`telemetry`], [`descriptors`] | settings, logging, the share of open files |
//! |   | [`pod`] | pure decisions about pods, and the plain data the other rooms exchange |
//! | 2 | [`vfs`] | the filesystem core: nodes, mounts, overlay, layers, projection |
//! |   | [`objects`] | ConfigMaps and Secrets that pods refer to |
//! |   | [`events`] | the Event recorder |
//! |   | [`logs`] | CRI log files: writer, rotation, reader |
//! |   | [`state`] | what survives a restart of the agent, on disk |
//! |   | [`identity`] | certificates, CSRs, joining; the client every other room reaches the API server with |
//! | 3 | [`image`] | references, registries, the store, formats |
//! |   | [`volume`] | volume specs and fetched objects to the runtime's volumes |
//! |   | [`network`] | pod addresses, sockets, loopback, name lookup |
//! | 4 | [`runtime`] | the only importer of wasmtime: engine, artifacts, limits, processes, WASI |
//! | 5 | [`status`] | pod statuses, as typed API objects |
//! |   | [`probe`] | asks containers how they are; runs their hooks |
//! | 6 | [`worker`] | one actor per pod: asks `pod::plan` what to do, does it, reports |
//! | 7 | [`source`] | desired pods: manifest files, the API server; mirror pods |
//! |   | [`server`] | the kubelet's API, on a Unix socket and over HTTPS |
//! |   | [`node`] | the Node object: registration, Lease, conditions, capacity; the machine's shutdown |
//! | 8 | [`agent`], [`cli`] | wiring, start and drain order; commands and their output |

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod errno;
pub mod events;
pub mod identity;
pub mod ids;
pub mod image;
pub mod logs;
pub mod network;
pub mod node;
pub mod objects;
pub mod pod;
pub mod probe;
pub mod runtime;
pub mod server;
pub mod source;
pub mod state;
pub mod status;
pub mod telemetry;
pub mod vfs;
pub mod volume;
pub mod worker;
pub mod yaml;
