//! ClusterTrustBundles in volumes: by name, by signer and labels, absent ones, and what changes while a guest reads.

use super::volumes::{TOOLS, holder, until};
use crate::cluster::{Cluster, NodeOptions, Space};

/// The certificate of a new authority, as PEM.
fn authority(name: &str) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").pem().replace('\r', "")
}

fn bundle(space: &Space<'_>, name: &str, signer: &str, labels: &str, pem: &str) {
    let pem = serde_json::to_string(pem).expect("a string");
    space.apply(&format!(
        "{{apiVersion: certificates.k8s.io/v1beta1, kind: ClusterTrustBundle, metadata: {{name: '{name}', labels: {{{labels}}}}}, \
         spec: {{{signer}trustBundle: {pem}}}}}"
    ));
}

fn projected(source: &str) -> String {
    format!("projected: {{sources: [{{clusterTrustBundle: {{{source}, path: ca.pem}}}}]}}")
}

#[test]
fn trust_anchors_are_files_and_what_is_missing_is_said() {
    let Some(cluster) = Cluster::gated() else { return };
    let space = cluster.space("bundles");
    let _node = space.node(NodeOptions { tools: TOOLS, kubelet: "syncFrequency: 1s", ..NodeOptions::default() });
    let [own, one, two, other] = ["own", "one", "two", "other"].map(authority);
    bundle(&space, "SPACE", "", "", &own);
    let signer = "signerName: example.com/SPACE, ";
    bundle(&space, "example.com:SPACE:one", signer, "live: 'yes'", &one);
    bundle(&space, "example.com:SPACE:both", signer, "live: 'yes'", &format!("{two}{one}"));
    bundle(&space, "example.com:SPACE:other", signer, "live: 'no'", &other);
    // Readers: what writes into its volume is not for one that is read-only.
    let pod = |name: &str, source: &str| {
        let manifest = holder(name, "", &projected(source));
        space.apply(&manifest.replace("--file, /data/seen", "--file, /tmp/seen"));
    };
    pod("named", "name: SPACE");
    pod("signed", "signerName: example.com/SPACE, labelSelector: {matchLabels: {live: 'yes'}}");
    pod("all", "signerName: example.com/SPACE, labelSelector: {}");
    pod("optional", "name: SPACE-absent, optional: true");
    pod("missing", "name: SPACE-absent");
    pod("nobodys", "signerName: example.com/absent, labelSelector: {}");
    let shown = |name: &str| {
        space.wait_ready(name);
        space.ok(&["exec", name, "--", "/bin/cat", "/data/ca.pem"])
    };
    assert_eq!(shown("named"), own);
    for (name, wanted) in [("signed", vec![&one, &two]), ("all", vec![&one, &two, &other])] {
        let text = shown(name);
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), wanted.len(), "each once: {text}");
        assert!(wanted.iter().all(|pem| text.contains(pem.as_str())), "{name}: {text}");
    }
    assert_eq!(shown("optional"), "");
    let failed = "MountVolume.SetUp failed for volume \"data\" : ";
    let absent = format!(
        "{failed}while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"{}-absent\" not found",
        space.name()
    );
    space.wait_event("missing", "FailedMount", &[&absent]);
    let zero = format!("{failed}combination of signerName and labelSelector matched zero ClusterTrustBundles");
    space.wait_event("nobodys", "FailedMount", &[&zero]);

    // What comes is mounted, what changes is shown.
    bundle(&space, "SPACE-absent", "", "", &other);
    assert_eq!(shown("missing"), other);
    bundle(&space, "SPACE", "", "", &two);
    until("the guest sees the other authority", || shown("named") == two);
    until("the one that came is seen by who could do without", || shown("optional") == other);
}
