//! Pure decisions about pods, and the plain data the other rooms exchange.
//!
//! Imports no tokio, no wasmtime, no clock, no filesystem: everything it needs comes in as a value.
//!
//! | step of a pod's life | modules |
//! |---|---|
//! | a manifest becomes a pod | [`static_pod`], [`defaults`], [`validation`] (with [`names`], [`field`]), [`admission`] (with [`sysctl`]) |
//! | what to do next | [`plan`] (with [`restart`], [`back_off`]), [`probe`] |
//! | its resources change while it runs | [`allocation`] |
//! | a container is described | [`ephemeral`], [`env`], [`downward`], [`service_env`], [`expansion`], [`command`], [`user`], [`resources`], [`volumes`], [`container`], [`sandbox`], [`dns`] |
//! | where a connection to a Service goes | [`services`] |
//! | what is said about it | [`status`], [`termination`], [`qos`] |
//! | the data for the runtime | [`run`] |
//! | who may talk to whom | [`policies`] |

pub mod admission;
pub mod allocation;
pub mod back_off;
pub mod command;
pub mod container;
pub mod defaults;
pub mod dns;
pub mod downward;
pub mod env;
pub mod env_file;
pub mod ephemeral;
pub mod expansion;
pub mod field;
pub mod names;
pub mod plan;
pub mod policies;
pub mod probe;
pub mod qos;
pub mod quantity;
pub mod resources;
pub mod restart;
pub mod run;
pub mod sandbox;
pub mod service_env;
pub mod services;
pub mod static_pod;
pub mod status;
pub mod sysctl;
pub mod termination;
pub mod toolbox;
pub mod user;
pub mod validation;
pub mod volumes;
