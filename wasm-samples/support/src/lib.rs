//! What several guests share: check lists that end in a verdict ([`check`]), dates without a time zone
//! database ([`utc`]), arguments ([`args`]), the
//! working directory ([`cwd`]), and targets of HTTP requests ([`target`]). Nothing here knows which WASI version it is built for.

pub mod args;
pub mod check;
pub mod cwd;
pub mod target;
pub mod utc;
