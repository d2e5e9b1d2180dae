//! `wasi:sockets/ip-name-lookup`: names to addresses by the pod's resolver.
//!
//! In: a name. Out: a stream of addresses in the order to try them. The lookup goes on whether or not the
//! guest asks; dropping the stream ends it.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::vec;

use wasmtime::component::Resource;
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::super::bindings::sockets::ip_name_lookup;
use super::super::bindings::sockets::network::{ErrorCode, IpAddress};
use super::super::errors::SocketResult;
use super::{Network, View, address};
use crate::network::ResolveError;

type Outcome = Result<vec::IntoIter<IpAddr>, ErrorCode>;

/// The resource behind `resolve-address-stream`.
pub enum ResolveAddressStream {
    /// The resolver works.
    Waiting(AbortOnDropJoinHandle<Outcome>),
    /// It answered.
    Done(Outcome),
}

fn code(error: &ResolveError) -> ErrorCode {
    match error {
        ResolveError::InvalidName { .. } => ErrorCode::InvalidArgument,
        ResolveError::NotFound { .. } => ErrorCode::NameUnresolvable,
        ResolveError::Temporary { .. } => ErrorCode::TemporaryResolverFailure,
        ResolveError::NoServers { .. } => ErrorCode::PermanentResolverFailure,
    }
}

/// The name as a resolver takes it: an address as it is, other names in their ASCII form (IDNA), which the
/// interface leaves to the host.
fn ascii_name(name: &str) -> Result<String, ErrorCode> {
    if name.parse::<IpAddr>().is_ok() {
        return Ok(name.to_owned());
    }
    match url::Host::parse(name) {
        Ok(url::Host::Domain(name)) => Ok(name),
        Ok(url::Host::Ipv4(address)) => Ok(address.to_string()),
        Ok(url::Host::Ipv6(address)) => Ok(address.to_string()),
        Err(_) => Err(ErrorCode::InvalidArgument),
    }
}

impl ip_name_lookup::Host for View<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> SocketResult<Resource<ResolveAddressStream>> {
        self.table.get(&network)?;
        let name = ascii_name(&name)?;
        let pod = self.network().clone();
        let mut lookup = Box::pin(async move {
            let addresses = pod.resolve(&name).await.map_err(|error| code(&error))?;
            Ok::<_, ErrorCode>(addresses.into_iter())
        });
        // Literals and names of the hosts file are answered here and now.
        let stream = match lookup.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(code)) => return Err(code.into()),
            Poll::Ready(outcome) => ResolveAddressStream::Done(outcome),
            Poll::Pending => ResolveAddressStream::Waiting(spawn(lookup)),
        };
        Ok(self.table.push(stream)?)
    }
}

impl ip_name_lookup::HostResolveAddressStream for View<'_> {
    fn resolve_next_address(&mut self, stream: Resource<ResolveAddressStream>) -> SocketResult<Option<IpAddress>> {
        let stream = self.table.get_mut(&stream)?;
        if let ResolveAddressStream::Waiting(task) = stream {
            match Pin::new(task).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(outcome) => *stream = ResolveAddressStream::Done(outcome),
                Poll::Pending => return Err(ErrorCode::WouldBlock.into()),
            }
        }
        match stream {
            ResolveAddressStream::Done(Ok(addresses)) => Ok(addresses.next().map(address::guest_ip)),
            ResolveAddressStream::Done(Err(code)) => Err((*code).into()),
            ResolveAddressStream::Waiting(_) => Err(ErrorCode::WouldBlock.into()),
        }
    }

    fn subscribe(&mut self, stream: Resource<ResolveAddressStream>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<ResolveAddressStream>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}

#[async_trait]
impl Pollable for ResolveAddressStream {
    async fn ready(&mut self) {
        if let Self::Waiting(task) = self {
            *self = Self::Done(task.await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_reach_the_resolver_in_ascii_and_addresses_as_they_are() {
        for (name, ascii) in [
            ("example.com", "example.com"),
            ("my_service.default", "my_service.default"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(ascii_name(name).as_deref(), Ok(ascii), "{name}");
        }
        for name in ["", "a b", "a/b", "http://a"] {
            assert_eq!(ascii_name(name), Err(ErrorCode::InvalidArgument), "{name:?}");
        }
    }
}
