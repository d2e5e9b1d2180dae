//! A node joined to a real cluster: one file a promise. `cluster` is what they stand on.

mod auth;
mod chart;
mod claims;
mod coherence;
mod controllers;
mod credentials;
mod csi;
mod dns;
mod env_files;
mod families;
mod forward;
mod harness;
mod join;
mod kubectl;
mod leftovers;
mod limits;
mod metrics;
mod offline;
mod policy;
mod resize;
mod services;
mod stats;
mod toolbox;
mod volumes;
mod writes;
mod wrong;
