//! `/portForward`: connections to ports of a pod.
//!
//! In: the names of a request's path. Out: an upgraded connection that [`super::streaming`] serves. Only finds the pod
//! and dials: what carries the bytes is not known here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde::Deserialize;

use super::NodeApi;
use super::streaming::{self, BoxDuplex, Dial, StreamingError};
use crate::errno::Errno;
use crate::ids::PodUid;
use crate::runtime::Runtime;

/// The path of a request.
#[derive(Debug, Deserialize)]
pub(super) struct Names {
    namespace: String,
    pod: String,
    uid: Option<String>,
}

pub(super) async fn handle(
    State(api): State<NodeApi>,
    Path(names): Path<Names>,
    request: Request,
) -> Result<Response, StreamingError> {
    streaming::check_ports(&request, api.streaming)?;
    let snapshot = api.status.find(&names.namespace, &names.pod).ok_or(StreamingError::NoPod)?;
    let uid = snapshot.pod.metadata.uid.clone().unwrap_or_default();
    if names.uid.is_some_and(|wanted| wanted != uid) {
        return Err(StreamingError::OtherPod);
    }
    let no_sandbox = |_| StreamingError::NoSandbox { full_name: format!("{}_{}", names.pod, names.namespace) };
    let uid = PodUid::new(uid).map_err(no_sandbox)?;
    let (runtime, pod) = (api.runtime.clone(), names.pod);
    let dial: Dial = Arc::new(move |port| {
        let (runtime, uid, pod) = (runtime.clone(), uid.clone(), pod.clone());
        Box::pin(async move {
            let failed = |reason: String| format!("error forwarding port {port} to pod {pod}, uid {uid}: {reason}");
            dial(&runtime, &uid, port).await.map_err(failed)
        })
    });
    streaming::port_forward(request, api.streaming, dial).await
}

/// Connects to a port of the pod as a program of the pod would: its loopback, IPv4 first.
async fn dial(runtime: &Runtime, uid: &PodUid, port: u16) -> Result<BoxDuplex, String> {
    let connect = async |ip: IpAddr| runtime.dial(uid, SocketAddr::new(ip, port)).await;
    let first = match connect(Ipv4Addr::LOCALHOST.into()).await {
        Ok(stream) => return Ok(Box::new(stream)),
        Err(errno) => errno,
    };
    match connect(Ipv6Addr::LOCALHOST.into()).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(second) => {
            let words = |errno: Errno| std::io::Error::from_raw_os_error(errno.raw()).kind().to_string();
            let (first, second) = (words(first), words(second));
            let what = format!("failed to connect to localhost:{port} inside the pod");
            Err(format!(
                "{what}, IPv4: dial tcp4 127.0.0.1:{port}: connect: {first} IPv6: dial tcp6 [::1]:{port}: connect: {second}"
            ))
        }
    }
}
