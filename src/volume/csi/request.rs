//! What drivers are asked: pure decisions about modes, attributes and ownership.
//!
//! In: a volume's spec, the cluster's CSIDriver, the driver's capabilities. Out: parts of requests. Calls nobody.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::CSIDriver;

use super::record::Lifecycle;
use super::wire::{AccessMode, MountVolume, VolumeCapability, access_mode, capability};

/// The driver's capabilities.
#[derive(Debug, Clone)]
pub(super) struct Can(pub(super) Vec<i32>);

impl Can {
    pub(super) fn stage(&self) -> bool {
        self.0.contains(&capability::STAGE_UNSTAGE_VOLUME)
    }

    pub(super) fn mount_group(&self) -> bool {
        self.0.contains(&capability::VOLUME_MOUNT_GROUP)
    }

    pub(super) fn stats(&self) -> bool {
        self.0.contains(&capability::GET_VOLUME_STATS)
    }

    pub(super) fn expand(&self) -> bool {
        self.0.contains(&capability::EXPAND_VOLUME)
    }

    /// The kubelet's `asCSIAccessModeV1`, or its finer form for drivers that know it.
    fn mode(&self, mode: &str) -> i32 {
        let fine = self.0.contains(&capability::SINGLE_NODE_MULTI_WRITER);
        match mode {
            "ReadWriteOnce" if fine => access_mode::SINGLE_NODE_MULTI_WRITER,
            "ReadWriteOncePod" if fine => access_mode::SINGLE_NODE_SINGLE_WRITER,
            "ReadWriteOnce" | "ReadWriteOncePod" => access_mode::SINGLE_NODE_WRITER,
            "ReadOnlyMany" => access_mode::MULTI_NODE_READER_ONLY,
            "ReadWriteMany" => access_mode::MULTI_NODE_MULTI_WRITER,
            _ => access_mode::UNKNOWN,
        }
    }

    /// How a volume of files is mounted.
    pub(super) fn capability(
        &self,
        mode: &str,
        fs_type: &str,
        flags: &[String],
        fs_group: Option<i64>,
    ) -> VolumeCapability {
        let group = fs_group.filter(|_| self.mount_group()).map(|group| group.to_string());
        VolumeCapability {
            mount: Some(MountVolume {
                fs_type: fs_type.to_owned(),
                mount_flags: flags.to_vec(),
                volume_mount_group: group.unwrap_or_default(),
            }),
            access_mode: Some(AccessMode { mode: self.mode(mode) }),
        }
    }
}

/// Whether a controller must attach the volume first. A driver the cluster knows nothing about is attached.
pub(super) fn must_attach(driver: Option<&CSIDriver>) -> bool {
    driver.and_then(|driver| driver.spec.attach_required) != Some(false)
}

/// Whether the driver wants volumes published again and again, which gives it fresh tokens.
pub(super) fn wants_republish(driver: Option<&CSIDriver>) -> bool {
    driver.and_then(|driver| driver.spec.requires_republish) == Some(true)
}

/// Whether the driver has volumes of this life.
pub(super) fn check_lifecycle(name: &str, driver: Option<&CSIDriver>, wanted: Lifecycle) -> Result<(), String> {
    let Some(driver) = driver else {
        // Persistent volumes are what every driver has.
        return match wanted {
            Lifecycle::Persistent => Ok(()),
            Lifecycle::Ephemeral => {
                Err(format!("volume mode \"Ephemeral\" not supported by driver {name} (no CSIDriver object)"))
            }
        };
    };
    let modes = driver.spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
    let has = |mode: &str| modes.iter().any(|given| given == mode) || (modes.is_empty() && mode == "Persistent");
    if has(wanted.name()) {
        return Ok(());
    }
    let only: Vec<String> = modes.iter().map(|mode| format!("{mode:?}")).collect();
    Err(format!("volume mode {:?} not supported by driver {name} (only supports [{}])", wanted.name(), only.join(" ")))
}

/// What a driver with `podInfoOnMount` is told of the pod.
pub(super) fn pod_info(driver: Option<&CSIDriver>, pod: &Pod, lifecycle: Lifecycle) -> HashMap<String, String> {
    if driver.and_then(|driver| driver.spec.pod_info_on_mount) != Some(true) {
        return HashMap::new();
    }
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    HashMap::from([
        ("csi.storage.k8s.io/pod.name".to_owned(), text(&pod.metadata.name)),
        ("csi.storage.k8s.io/pod.namespace".to_owned(), text(&pod.metadata.namespace)),
        ("csi.storage.k8s.io/pod.uid".to_owned(), text(&pod.metadata.uid)),
        ("csi.storage.k8s.io/serviceAccount.name".to_owned(), account.unwrap_or_default()),
        ("csi.storage.k8s.io/ephemeral".to_owned(), (lifecycle == Lifecycle::Ephemeral).to_string()),
    ])
}

/// Whether this node gives the files to `fsGroup` (the kubelet's `supportsFSGroup`). `modes` is none for an inline volume.
pub(super) fn gives_group(driver: Option<&CSIDriver>, fs_type: &str, modes: Option<&[String]>) -> bool {
    let policy = driver.and_then(|driver| driver.spec.fs_group_policy.as_deref());
    match policy.unwrap_or("ReadWriteOnceWithFSType") {
        "None" => false,
        "File" => true,
        _ => {
            let once = |mode: &String| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod";
            !fs_type.is_empty() && modes.is_none_or(|modes| modes.iter().any(once))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn driver(spec: serde_json::Value) -> CSIDriver {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap()
    }

    #[test]
    fn access_modes_are_as_fine_as_the_driver_knows() {
        let (coarse, fine) = (Can(vec![]), Can(vec![capability::SINGLE_NODE_MULTI_WRITER]));
        for (mode, of_coarse, of_fine) in [
            ("ReadWriteOnce", 1, 7),
            ("ReadWriteOncePod", 1, 6),
            ("ReadOnlyMany", 3, 3),
            ("ReadWriteMany", 5, 5),
            ("Strange", 0, 0),
        ] {
            assert_eq!((coarse.mode(mode), fine.mode(mode)), (of_coarse, of_fine), "{mode}");
        }
    }

    #[test]
    fn a_group_is_given_by_whom_the_policy_says() {
        let once = ["ReadWriteOnce".to_owned()];
        let many = ["ReadWriteMany".to_owned()];
        for (case, policy, fs_type, modes, expected) in [
            ("the default wants a type", json!({}), "", Some(&once[..]), false),
            ("the default and one writer", json!({}), "ext4", Some(&once[..]), true),
            ("the default and many", json!({}), "ext4", Some(&many[..]), false),
            ("inline", json!({}), "ext4", None, true),
            ("File", json!({"fsGroupPolicy": "File"}), "", Some(&many[..]), true),
            ("None", json!({"fsGroupPolicy": "None"}), "ext4", Some(&once[..]), false),
        ] {
            assert_eq!(gives_group(Some(&driver(policy)), fs_type, modes), expected, "{case}");
        }
    }

    #[test]
    fn lives_of_volumes_are_what_the_driver_offers() {
        let both = driver(json!({"volumeLifecycleModes": ["Persistent", "Ephemeral"]}));
        let plain = driver(json!({}));
        assert_eq!(check_lifecycle("d", Some(&both), Lifecycle::Ephemeral), Ok(()));
        assert_eq!(check_lifecycle("d", Some(&plain), Lifecycle::Persistent), Ok(()));
        assert_eq!(check_lifecycle("d", None, Lifecycle::Persistent), Ok(()));
        let persistent = driver(json!({"volumeLifecycleModes": ["Persistent"]}));
        assert_eq!(
            check_lifecycle("d", Some(&persistent), Lifecycle::Ephemeral).unwrap_err(),
            "volume mode \"Ephemeral\" not supported by driver d (only supports [\"Persistent\"])"
        );
        assert!(check_lifecycle("d", None, Lifecycle::Ephemeral).unwrap_err().contains("no CSIDriver object"));
    }

    #[test]
    fn only_a_driver_that_asks_is_told_of_the_pod() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [], "serviceAccountName": "sa"}}),
        )
        .unwrap();
        assert!(pod_info(Some(&driver(json!({}))), &pod, Lifecycle::Ephemeral).is_empty());
        let told = pod_info(Some(&driver(json!({"podInfoOnMount": true}))), &pod, Lifecycle::Ephemeral);
        assert_eq!(told["csi.storage.k8s.io/pod.uid"], "u");
        assert_eq!(told["csi.storage.k8s.io/ephemeral"], "true");
        assert_eq!(told["csi.storage.k8s.io/serviceAccount.name"], "sa");
    }

    #[test]
    fn volumes_are_attached_unless_the_driver_says_no() {
        assert!(must_attach(None) && must_attach(Some(&driver(json!({})))));
        assert!(!must_attach(Some(&driver(json!({"attachRequired": false})))));
        assert!(!wants_republish(None) && !wants_republish(Some(&driver(json!({})))));
        assert!(wants_republish(Some(&driver(json!({"requiresRepublish": true})))));
    }
}
