//! A node joined to a real cluster: one file a promise. `cluster` is what they stand on.

mod auth;
mod chart;
mod controllers;
mod credentials;
mod dns;
mod env_files;
mod families;
mod forward;
mod harness;
mod join;
mod kubectl;
mod limits;
mod offline;
mod policy;
mod resize;
mod services;
mod toolbox;
mod volumes;
mod writes;
mod wrong;
