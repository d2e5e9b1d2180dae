//! Services as a guest's sockets see them.
//!
//! In: a destination as the guest names it. Out: the one to connect or send to. A pod and the node itself are `Inside`:
//! `externalTrafficPolicy` is not for them, as with kube-proxy's short circuit.

use std::net::{IpAddr, SocketAddr};

use super::flows::Flows;
use super::table::Source;
use crate::errno::Errno;
use crate::network::pod::{PodNetwork, Protocol};

impl PodNetwork {
    /// Where a guest's connection really goes: to an endpoint when the destination is a Service's, else where it says.
    ///
    /// # Errors
    /// ECONNREFUSED for a Service without an endpoint.
    pub(in crate::network) fn service_target(&self, to: SocketAddr) -> Result<SocketAddr, Errno> {
        let picked = self.services().pick(to, Protocol::Tcp, self.as_source(to.ip()), |ip| self.is_node(ip));
        picked.map_or(Ok(to), |target| target.map(SocketAddr::from))
    }

    /// The same for datagrams: all of one flow go to one endpoint, as long as it is there.
    ///
    /// # Errors
    /// ECONNREFUSED for a Service without an endpoint.
    pub(in crate::network) fn service_flow(&self, flows: &mut Flows, to: SocketAddr) -> Result<SocketAddr, Errno> {
        let services = self.services();
        let Some(frontend) = services.find(to, Protocol::Udp, |ip| self.is_node(ip)) else { return Ok(to) };
        let (frontend, source, generation) = (frontend?, self.as_source(to.ip()), services.generation());
        if let Some(target) = flows.find(to, generation, |target| frontend.still_has(source, target)) {
            return Ok(target.into());
        }
        let target = frontend.pick(source)?;
        flows.note(to, target, generation);
        Ok(target.into())
    }

    fn as_source(&self, towards: IpAddr) -> Source {
        Source::Inside(self.ip_towards(towards))
    }
}
