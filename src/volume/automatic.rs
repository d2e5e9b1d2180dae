//! The volume with the token of its service account that the API server adds to every pod that does not refuse it.
//!
//! Few programs look into it, and each token costs the API server several reads of its store and a signature: this one is
//! asked for when a guest first comes to the volume, or when there is time. A token that somebody wrote into the pod's own
//! volumes is there before the pod starts, as the kubelet has both.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Volume, VolumeProjection};

/// As the admission plugin ServiceAccount begins its name.
const PREFIX: &str = "kube-api-access-";

/// The one field of the pod that it shows.
const NAMESPACE: &str = "metadata.namespace";

/// Whether a volume's token may come later than the pod's containers.
pub(super) fn is_automatic(volume: &Volume) -> bool {
    let sources = || volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let is_token = |source: &VolumeProjection| {
        source.service_account_token.as_ref().is_some_and(|token| token.audience.as_ref().is_none_or(String::is_empty))
    };
    // Nothing that changes with the pod.
    let is_lasting = |source: &VolumeProjection| {
        let items = || source.downward_api.iter().flat_map(|downward| downward.items.iter().flatten());
        let is_namespace =
            |item: &DownwardAPIVolumeFile| item.field_ref.as_ref().is_some_and(|field| field.field_path == NAMESPACE);
        source.config_map.is_some() || source.downward_api.is_some() && items().all(is_namespace)
    };
    volume.name.starts_with(PREFIX)
        && sources().any(is_token)
        && sources().all(|source| is_token(source) || is_lasting(source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_the_api_server_adds_may_come_later() {
        let token = |audience: &str| json!({"serviceAccountToken": {"path": "token", "audience": audience}});
        let shows = |field: &str| json!({"downwardAPI": {"items": [{"path": "x", "fieldRef": {"fieldPath": field}}]}});
        let root = json!({"configMap": {"name": "kube-root-ca.crt"}});
        for (case, volume, expected) in [
            (
                "added",
                json!({"name": "kube-api-access-x7", "projected": {"sources": [token(""), root, shows("metadata.namespace")]}}),
                true,
            ),
            (
                "with labels",
                json!({"name": "kube-api-access-x7", "projected": {"sources": [token(""), shows("metadata.labels")]}}),
                false,
            ),
            ("a user's own", json!({"name": "token", "projected": {"sources": [token("")]}}), false),
            (
                "for somebody else",
                json!({"name": "kube-api-access-x", "projected": {"sources": [token("vault")]}}),
                false,
            ),
            ("without a token", json!({"name": "kube-api-access-x", "projected": {"sources": [root]}}), false),
            ("no projection", json!({"name": "kube-api-access-x", "emptyDir": {}}), false),
        ] {
            assert_eq!(is_automatic(&serde_json::from_value(volume).unwrap()), expected, "{case}");
        }
    }
}
