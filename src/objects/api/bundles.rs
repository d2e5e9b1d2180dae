//! Trust anchors of ClusterTrustBundles.
//!
//! In: a bundle's name, or a signer and labels. Out: its certificates as PEM, each once. Asked each time the volume is
//! made or refreshed: few pods have one, and a watch of all bundles is not worth it until they do.

use std::collections::BTreeSet;

use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use kube::Api;
use kube::api::ListParams;
use kube::core::Selector;

use super::ApiObjects;
use super::errors::{is_not_found, words};

impl ApiObjects {
    /// The trust anchors a projection asks for.
    ///
    /// # Errors
    /// The kubelet's words.
    pub async fn trust_anchors(&self, wanted: &ClusterTrustBundleProjection) -> Result<Vec<u8>, String> {
        let optional = wanted.optional == Some(true);
        let api: Api<ClusterTrustBundle> = Api::all(self.inner.client.clone());
        let bundles = match (&wanted.name, &wanted.signer_name) {
            (Some(name), _) => match api.get(name).await {
                Ok(bundle) => vec![bundle],
                Err(error) if is_not_found(&error) && optional => return Ok(Vec::new()),
                // The kubelet's words are its cache's, which has another name for the kind.
                Err(error) if is_not_found(&error) => {
                    return Err(format!(
                        "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found"
                    ));
                }
                Err(error) => return Err(format!("while getting ClusterTrustBundle: {}", words(&error))),
            },
            (None, Some(signer)) => {
                // No selector is no bundle, an empty one is all of them.
                let Some(labels) = &wanted.label_selector else { return none(optional) };
                let selector: Selector =
                    labels.clone().try_into().map_err(|error| format!("while parsing label selector: {error}"))?;
                let filter = ListParams::default().fields(&format!("spec.signerName={signer}")).labels_from(&selector);
                let found = api.list(&filter).await;
                found.map_err(|error| format!("while listing ClusterTrustBundles: {}", words(&error)))?.items
            }
            (None, None) => {
                return Err("ClusterTrustBundle projection requires either name or signerName to be set".into());
            }
        };
        if bundles.is_empty() {
            return none(optional);
        }
        Ok(anchors(bundles.iter().map(|bundle| bundle.spec.trust_bundle.as_str())))
    }
}

fn none(optional: bool) -> Result<Vec<u8>, String> {
    if optional {
        return Ok(Vec::new());
    }
    Err("combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned())
}

/// Every certificate once, without what stands between them.
fn anchors<'a>(bundles: impl Iterator<Item = &'a str>) -> Vec<u8> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut seen = BTreeSet::new();
    for bundle in bundles {
        for part in bundle.split(BEGIN).skip(1) {
            let Some((body, _)) = part.split_once(END) else { continue };
            seen.insert(body.split_whitespace().collect::<String>());
        }
    }
    let mut pem = String::new();
    for body in seen {
        pem.push_str(BEGIN);
        pem.push('\n');
        for line in body.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str(END);
        pem.push('\n');
    }
    pem.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_certificate_is_told_once_and_nothing_else() {
        let pem = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        let one = format!("# a comment\n{}{}", pem("QkJC"), pem("QUFB"));
        let two = pem("QU\nFB");
        let joined = String::from_utf8(anchors([one.as_str(), two.as_str()].into_iter())).unwrap();
        assert_eq!(joined, format!("{}{}", pem("QUFB"), pem("QkJC")));
    }
}
