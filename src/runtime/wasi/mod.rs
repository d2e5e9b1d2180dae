//! WASI front-ends: thin translations between guests' ABIs and `vfs`, `network` and the process tree.
//!
//! In: guest calls. Out: calls of [`super::process`] objects. No state of its own that another front-end
//! would miss: fds, signals and pipes live in the process.

pub mod p1;
pub mod p2;
