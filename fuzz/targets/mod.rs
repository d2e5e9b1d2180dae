//! Fuzz targets: each replays its corpus and tries random inputs in `make test`, a minute of them in `make fuzz`.

mod hosts_toml;
mod image_ref;
mod jws;
mod layer_index;
mod layer_unpack;
mod log_reader;
mod manifest;
mod preview1;
mod sockets;
mod spdy;
mod vfs_path;
mod websocket;
