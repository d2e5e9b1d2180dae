//! Traits and types generated from the WIT of the interfaces we implement: filesystem and sockets.
//!
//! In: `wit/`. Out: one `Host` trait per interface. Streams, pollables and clocks are the types of
//! wasmtime-wasi, so that a descriptor's stream works in the stock `wasi:io` functions.

#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, reason = "generated code")]
mod generated {
    use crate::runtime::wasi::p2::{errors, filesystem, sockets};

    wasmtime::component::bindgen!({
        path: "src/runtime/wasi/p2/wit",
        world: "wasilet:p2/host",
        imports: {
            // These only make a stream over an open file: nothing to wait for, and a call that is not
            // async costs no future.
            "wasi:filesystem/types.[method]descriptor.read-via-stream": trappable,
            "wasi:filesystem/types.[method]descriptor.write-via-stream": trappable,
            "wasi:filesystem/types.[method]descriptor.append-via-stream": trappable,
            "wasi:filesystem/types.[method]descriptor.get-flags": trappable,
            "wasi:filesystem/types.[drop]descriptor": trappable,
            "wasi:filesystem/types.[drop]directory-entry-stream": trappable,
            "wasi:filesystem/types.filesystem-error-code": trappable,
            "wasi:filesystem/preopens.get-directories": trappable,
            "wasi:filesystem/types": async | trappable,
            // Sockets never wait in a call: start/finish pairs and pollables are the protocol.
            default: trappable,
        },
        trappable_error_type: {
            "wasi:filesystem/types.error-code" => errors::FsError,
            "wasi:sockets/network.error-code" => errors::SocketError,
        },
        with: {
            "wasi:io": wasmtime_wasi_io::bindings::wasi::io,
            "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
            "wasi:filesystem/types.descriptor": filesystem::Descriptor,
            "wasi:filesystem/types.directory-entry-stream": filesystem::DirectoryEntryStream,
            "wasi:sockets/network.network": sockets::Network,
            "wasi:sockets/tcp.tcp-socket": sockets::TcpSocket,
            "wasi:sockets/udp.udp-socket": sockets::UdpSocket,
            "wasi:sockets/udp.incoming-datagram-stream": sockets::IncomingDatagramStream,
            "wasi:sockets/udp.outgoing-datagram-stream": sockets::OutgoingDatagramStream,
            "wasi:sockets/ip-name-lookup.resolve-address-stream": sockets::ResolveAddressStream,
        },
        require_store_data_send: true,
    });
}

pub use generated::LinkOptions;
pub use generated::wasi::{filesystem, sockets};
