//! Making a driver's volume a directory of a pod: attached, staged, published, given to its group.
//!
//! In: one volume of one pod. Out: the directory, or which step failed and why, in the kubelet's words.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, CSIVolumeSource, PersistentVolume, PersistentVolumeSpec, Pod, SecretReference,
};
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use tokio::time::Instant;

use super::client::Socket;
use super::record::{self, Lifecycle, Record};
use super::request::{self, Can};
use super::wire::{PublishRequest, StageRequest};
use super::{Attaching, Csi, told};
use crate::ids::PodUid;
use crate::objects::{ApiObjects, TokenOwner};
use crate::pod::run::Access;
use crate::vfs::{self, GroupChange};
use crate::volume::error::{SET_UP, VolumeError};
use crate::volume::persistent;

/// The kubelet's `podAttachAndMountTimeout`.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(123);
/// How long one try waits for a controller.
const ATTACH_PATIENCE: Duration = Duration::from_secs(5);
/// Waits between looks at what a controller does.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(2);

const MOUNT_DEVICE: &str = "MountVolume.MountDevice failed";

/// Whether the volume is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::volume) enum Publishing {
    /// It is to be mounted.
    First,
    /// It is mounted, and drivers that ask for it (`requiresRepublish`) are asked once more.
    Again,
}

/// One volume of one pod.
pub(in crate::volume) struct Wanted<'a> {
    pub(in crate::volume) uid: &'a PodUid,
    pub(in crate::volume) pod: &'a Pod,
    pub(in crate::volume) node: &'a str,
    /// `<root>/pods/<uid>`.
    pub(in crate::volume) pod_root: PathBuf,
    /// `volumes[].name`.
    pub(in crate::volume) volume: &'a str,
    pub(in crate::volume) source: Source<'a>,
    pub(in crate::volume) fs_group: Option<i64>,
    pub(in crate::volume) change: GroupChange,
    pub(in crate::volume) token_owner: TokenOwner,
}

/// Where the volume is described.
#[derive(Clone, Copy)]
pub(in crate::volume) enum Source<'a> {
    Persistent { volume: &'a PersistentVolume, csi: &'a CSIPersistentVolumeSource, access: Access },
    Inline(&'a CSIVolumeSource),
}

/// The parts of either source by one name.
pub(super) struct Parts<'a> {
    pub(super) name: String,
    pub(super) driver: &'a str,
    pub(super) handle: String,
    lifecycle: Lifecycle,
    pub(super) fs_type: &'a str,
    attributes: HashMap<String, String>,
    pub(super) read_only: bool,
    modes: Option<&'a [String]>,
    pub(super) options: &'a [String],
}

impl<'a> Wanted<'a> {
    pub(super) fn parts(&self) -> Parts<'a> {
        match self.source {
            Source::Persistent { volume, csi, access } => {
                let spec: Option<&PersistentVolumeSpec> = volume.spec.as_ref();
                Parts {
                    name: persistent::name(volume).to_owned(),
                    driver: &csi.driver,
                    handle: csi.volume_handle.clone(),
                    lifecycle: Lifecycle::Persistent,
                    fs_type: csi.fs_type.as_deref().unwrap_or_default(),
                    attributes: csi.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
                    read_only: access == Access::ReadOnly,
                    modes: spec.and_then(|spec| spec.access_modes.as_deref()),
                    options: spec.and_then(|spec| spec.mount_options.as_deref()).unwrap_or_default(),
                }
            }
            Source::Inline(csi) => Parts {
                name: self.volume.to_owned(),
                driver: &csi.driver,
                handle: record::inline_handle(self.uid, self.volume),
                lifecycle: Lifecycle::Ephemeral,
                fs_type: csi.fs_type.as_deref().unwrap_or_default(),
                attributes: csi.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
                read_only: csi.read_only == Some(true),
                modes: None,
                options: &[],
            },
        }
    }
}

impl Parts<'_> {
    pub(super) fn mode(&self) -> &str {
        self.modes.and_then(|modes| modes.first()).map_or("ReadWriteOnce", String::as_str)
    }

    pub(super) fn unique_name(&self) -> String {
        record::unique_name(self.driver, &self.handle)
    }
}

impl Csi {
    /// Mounts a volume for a pod and gives the directory; idempotent, as drivers have to be.
    ///
    /// # Errors
    /// The step that failed.
    pub(in crate::volume) async fn mount(
        &self,
        api: &ApiObjects,
        wanted: &Wanted<'_>,
        publishing: Publishing,
    ) -> Result<PathBuf, VolumeError> {
        let parts = wanted.parts();
        let failed = |step, reason: String| VolumeError::mount(step, &parts.name, reason);
        let driver = api.csi_driver(parts.driver).await;
        let driver =
            driver.map_err(|reason| failed(SET_UP, told("mounter.SetupAt failed to check the driver", &reason)))?;
        let driver = driver.as_ref();
        if publishing == Publishing::Again && !request::wants_republish(driver) {
            return Ok(record::pod_dir(&wanted.pod_root, &parts.name).join("mount"));
        }
        request::check_lifecycle(parts.driver, driver, parts.lifecycle)
            .map_err(|error| failed(SET_UP, told("mounter.SetupAt failed to check volume lifecycle mode", &error)))?;
        let publish_context = match parts.lifecycle {
            Lifecycle::Persistent if request::must_attach(driver) => self.attached(api, wanted, &parts).await?,
            _ => HashMap::new(),
        };
        let lock = self.lock_of(&parts.unique_name());
        let _alone = lock.lock().await;
        let (step, client) = match parts.lifecycle {
            Lifecycle::Persistent => (MOUNT_DEVICE, "attacher.MountDevice failed to create newCsiDriverClient"),
            Lifecycle::Ephemeral => (SET_UP, "mounter.SetUpAt failed to get CSI client"),
        };
        let socket = self.inner.drivers.socket(parts.driver).map_err(|error| failed(step, told(client, &error)))?;
        let can = Can(socket.capabilities().await.map_err(|error| failed(step, error.to_string()))?);
        let staged = match (parts.lifecycle, wanted.source) {
            (Lifecycle::Persistent, _) if publishing == Publishing::Again => {
                let staged = record::global_dir(&self.inner.root, parts.driver, &parts.handle).join("globalmount");
                can.stage().then(|| staged.display().to_string())
            }
            (Lifecycle::Persistent, Source::Persistent { csi, .. }) => {
                let secret = csi.node_stage_secret_ref.as_ref();
                let staging = self.stage(api, wanted, &parts, (&socket, &can), (secret, &publish_context));
                staging.await.map_err(|reason| failed(MOUNT_DEVICE, reason))?
            }
            _ => None,
        };
        let request = publish_request(api, wanted, &parts, driver, &can);
        let mut request = request.await.map_err(|reason| failed(SET_UP, reason))?;
        request.staging_target_path = staged.unwrap_or_default();
        request.publish_context = publish_context;
        let published = publish(wanted, &parts, &socket, (request, publishing)).await;
        let target = published.map_err(|reason| failed(SET_UP, reason))?;
        if let Some(group) = wanted.fs_group.and_then(|group| u32::try_from(group).ok())
            && !can.mount_group()
            && !parts.read_only
            && request::gives_group(driver, parts.fs_type, parts.modes)
        {
            let (path, change) = (target.clone(), wanted.change);
            let given =
                tokio::task::spawn_blocking(move || vfs::give_to_group(&path, group, Access::ReadWrite, change));
            let given = given.await.map_err(|error| error.to_string()).and_then(|r| r.map_err(|e| e.to_string()));
            let what = format!("applyFSGroup failed for vol {}", parts.handle);
            given.map_err(|error| failed(SET_UP, format!("{what}: {error}")))?;
        }
        // Its record says from now on that it is in use.
        self.inner.attaching.lock().remove(&parts.unique_name());
        Ok(target)
    }

    /// Waits until a controller attached the volume and gives what it said about that.
    async fn attached(
        &self,
        api: &ApiObjects,
        wanted: &Wanted<'_>,
        parts: &Parts<'_>,
    ) -> Result<HashMap<String, String>, VolumeError> {
        let unique = parts.unique_name();
        // Said before it is waited for: no controller may detach it from now on.
        self.inner.in_use.send_if_modified(|all| all.insert(unique.clone()));
        let began = {
            let now = Instant::now();
            let mut attaching = self.inner.attaching.lock();
            let since = attaching.entry(unique.clone()).or_insert(Attaching { began: now, tried: now });
            since.tried = now;
            since.began
        };
        // In between the worker looks whether the pod is still wanted.
        let deadline = Instant::now() + ATTACH_PATIENCE;
        let mut wait = FIRST_LOOK;
        loop {
            match api.is_attached(wanted.node, &unique).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(volume = unique, err = error, "Could not look whether a volume is attached");
                }
            }
            if Instant::now() >= deadline {
                let name = wanted.volume.to_owned();
                if began.elapsed() < ATTACH_TIMEOUT {
                    return Err(VolumeError::Attaching { name });
                }
                self.inner.attaching.lock().remove(&unique);
                return Err(VolumeError::NotAttached { name });
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LAST_LOOK);
        }
        let name = record::attachment_name(&parts.handle, parts.driver, wanted.node);
        let failed = |reason| VolumeError::mount("MountVolume.WaitForAttach failed", &parts.name, reason);
        let attachment = api.volume_attachment(&name).await.map_err(|error| {
            failed(format!("volume {} has GET error for volume attachment {name}: {error}", parts.handle))
        })?;
        check_attachment(&attachment, &parts.handle).map_err(failed)?;
        let status = attachment.status.unwrap_or_default();
        Ok(status.attachment_metadata.unwrap_or_default().into_iter().collect())
    }

    /// Stages the volume where the driver has that; gives the place.
    async fn stage(
        &self,
        api: &ApiObjects,
        wanted: &Wanted<'_>,
        parts: &Parts<'_>,
        (socket, can): (&Socket, &Can),
        (secret, publish_context): (Option<&SecretReference>, &HashMap<String, String>),
    ) -> Result<Option<String>, String> {
        if !can.stage() {
            return Ok(None);
        }
        let secrets = match secret {
            Some(reference) => secret_of(api, reference, "NodeStageSecretRef").await?,
            None => HashMap::new(),
        };
        let dir = record::global_dir(&self.inner.root, parts.driver, &parts.handle);
        let staged = dir.join("globalmount");
        let record = Record {
            driver_name: parts.driver.to_owned(),
            volume_handle: parts.handle.clone(),
            spec_name: String::new(),
            node_name: String::new(),
            attachment: String::new(),
            volume_lifecycle_mode: Lifecycle::Persistent,
        };
        write(record, dir, Some(staged.clone()))
            .await
            .map_err(|error| told("failed to save volume info data", &error))?;
        let request = StageRequest {
            volume_id: parts.handle.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: staged.display().to_string(),
            volume_capability: Some(can.capability(parts.mode(), parts.fs_type, parts.options, wanted.fs_group)),
            secrets,
            volume_context: parts.attributes.clone(),
        };
        match socket.stage(request).await {
            Ok(()) => Ok(Some(staged.display().to_string())),
            Err(error) => {
                if error.is_final() {
                    // Empty, or in use by another pod already: then it stays.
                    let _ = tokio::task::spawn_blocking(move || record::remove_target(&staged)).await;
                }
                Err(error.to_string())
            }
        }
    }
}

async fn publish_request(
    api: &ApiObjects,
    wanted: &Wanted<'_>,
    parts: &Parts<'_>,
    driver: Option<&CSIDriver>,
    can: &Can,
) -> Result<PublishRequest, String> {
    let reference = match wanted.source {
        Source::Persistent { csi, .. } => csi.node_publish_secret_ref.clone(),
        Source::Inline(csi) => csi.node_publish_secret_ref.as_ref().map(|reference| SecretReference {
            name: Some(reference.name.clone()),
            namespace: wanted.pod.metadata.namespace.clone(),
        }),
    };
    let mut secrets = match &reference {
        Some(reference) => secret_of(api, reference, "NodePublishSecretRef").await?,
        None => HashMap::new(),
    };
    let mut volume_context = parts.attributes.clone();
    volume_context.extend(request::pod_info(driver, wanted.pod, parts.lifecycle));
    let tokens = tokens(api, wanted, driver).await;
    let tokens = tokens.map_err(|e| told("mounter.SetUpAt failed to get service accoount token attributes", &e))?;
    if driver.and_then(|driver| driver.spec.service_account_token_in_secrets) == Some(true) {
        secrets.extend(tokens);
    } else {
        volume_context.extend(tokens);
    }
    Ok(PublishRequest {
        volume_id: parts.handle.clone(),
        publish_context: HashMap::new(),
        staging_target_path: String::new(),
        target_path: String::new(),
        volume_capability: Some(can.capability(parts.mode(), parts.fs_type, parts.options, wanted.fs_group)),
        readonly: parts.read_only,
        secrets,
        volume_context,
    })
}

async fn publish(
    wanted: &Wanted<'_>,
    parts: &Parts<'_>,
    socket: &Socket,
    (mut request, publishing): (PublishRequest, Publishing),
) -> Result<PathBuf, String> {
    let dir = record::pod_dir(&wanted.pod_root, &parts.name);
    let target = dir.join("mount");
    let record = Record {
        driver_name: parts.driver.to_owned(),
        volume_handle: parts.handle.clone(),
        spec_name: parts.name.clone(),
        node_name: wanted.node.to_owned(),
        attachment: record::attachment_name(&parts.handle, parts.driver, wanted.node),
        volume_lifecycle_mode: parts.lifecycle,
    };
    let saved = write(record, dir, None).await;
    saved.map_err(|error| told("mounter.SetUpAt failed to save volume info data", &error))?;
    request.target_path = target.display().to_string();
    match socket.publish(request).await {
        Ok(()) => Ok(target),
        Err(error) => {
            if error.is_final() && publishing == Publishing::First {
                let left = target.clone();
                let _ = tokio::task::spawn_blocking(move || record::remove_target(&left)).await;
            }
            Err(error.to_string())
        }
    }
}

/// Writes a record into its directory, which is made, 0750 as the kubelet's, with the one in it where one is given.
async fn write(record: Record, dir: PathBuf, inner: Option<PathBuf>) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let written = tokio::task::spawn_blocking(move || {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o750);
        builder.create(&dir)?;
        if let Some(inner) = inner {
            builder.create(inner)?;
        }
        record.write(&dir)
    });
    written.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

async fn secret_of(
    api: &ApiObjects,
    reference: &SecretReference,
    field: &str,
) -> Result<HashMap<String, String>, String> {
    let namespace = reference.namespace.as_deref().unwrap_or_default();
    let name = reference.name.as_deref().unwrap_or_default();
    let found = api.volume_secret(namespace, name).await;
    found.map_err(|error| format!("fetching {field} {namespace}/{name} failed: {error}"))
}

/// Tokens of the pod's service account that the driver asks for (`tokenRequests`).
async fn tokens(
    api: &ApiObjects,
    wanted: &Wanted<'_>,
    driver: Option<&CSIDriver>,
) -> Result<HashMap<String, String>, String> {
    let requests = driver.and_then(|driver| driver.spec.token_requests.as_deref()).unwrap_or_default();
    if requests.is_empty() {
        return Ok(HashMap::new());
    }
    let mut all = serde_json::Map::new();
    for request in requests {
        let token = api.token(&wanted.token_owner, &request.audience, request.expiration_seconds).await?;
        let text = String::from_utf8_lossy(token.as_bytes()).into_owned();
        let status = serde_json::json!({"token": text, "expirationTimestamp": token.expires().to_string()});
        all.insert(request.audience.clone(), status);
    }
    let text = serde_json::Value::Object(all).to_string();
    Ok(HashMap::from([("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), text)]))
}

/// The kubelet's `verifyAttachmentStatus`.
fn check_attachment(attachment: &VolumeAttachment, handle: &str) -> Result<(), String> {
    if attachment.metadata.deletion_timestamp.is_some() {
        return Err("volume attachment is being deleted".to_owned());
    }
    let status = attachment.status.as_ref();
    if status.is_some_and(|status| status.attached) {
        return Ok(());
    }
    if let Some(error) = status.and_then(|status| status.attach_error.as_ref()) {
        return Err(error.message.clone().unwrap_or_default());
    }
    let name = attachment.metadata.name.as_deref().unwrap_or_default();
    Err(format!("volume {handle} is not attached for volume attachment {name}"))
}
