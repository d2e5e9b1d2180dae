//! What the API server knows of CSI volumes: drivers, attachments, secrets of volumes, what is attached to the node.
//!
//! In: names. Out: objects, or the kubelet's words why not. Asked each time: a node may read these by name, and mounts are
//! few.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::Api;

use super::ApiObjects;
use super::errors::words;

impl ApiObjects {
    /// What the cluster says about a driver; `None` when it says nothing.
    ///
    /// # Errors
    /// The API server's words.
    pub async fn csi_driver(&self, name: &str) -> Result<Option<CSIDriver>, String> {
        Api::<CSIDriver>::all(self.inner.client.clone()).get_opt(name).await.map_err(|error| words(&error))
    }

    /// An attachment of a volume to this node.
    ///
    /// # Errors
    /// The API server's words.
    pub async fn volume_attachment(&self, name: &str) -> Result<VolumeAttachment, String> {
        Api::<VolumeAttachment>::all(self.inner.client.clone()).get(name).await.map_err(|error| words(&error))
    }

    /// The content of a secret that a volume refers to, which need not be in the pod's namespace.
    ///
    /// # Errors
    /// The kubelet's words.
    pub async fn volume_secret(&self, namespace: &str, name: &str) -> Result<HashMap<String, String>, String> {
        let secrets: Api<Secret> = Api::namespaced(self.inner.client.clone(), namespace);
        let secret = secrets.get(name).await.map_err(|error| {
            let said = words(&error);
            format!(
                "kubernetes.io/csi: failed to find the secret {name} in the namespace {namespace} with error: {said}"
            )
        })?;
        let data = secret.data.unwrap_or_default().into_iter();
        Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
    }

    /// Whether the Node says that a volume is in use here, as this node told it, and that a controller attached it.
    ///
    /// # Errors
    /// The API server's words.
    pub async fn is_attached(&self, node: &str, volume: &str) -> Result<bool, String> {
        let found = Api::<Node>::all(self.inner.client.clone()).get(node).await.map_err(|error| words(&error))?;
        let status = found.status.unwrap_or_default();
        let in_use = status.volumes_in_use.iter().flatten().any(|name| name == volume);
        Ok(in_use && status.volumes_attached.iter().flatten().any(|attached| attached.name == volume))
    }
}
