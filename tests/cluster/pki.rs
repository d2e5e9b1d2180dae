//! The cluster's authorities and certificates, as `kubeadm init` makes them.
//!
//! In: names. Out: PEM files and kubeconfigs in one directory. Keys are P-256: they take no time to make.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Client,
    Server,
}

/// The authorities, in a directory of PEM files.
pub struct Pki {
    dir: PathBuf,
    cluster: CertifiedIssuer<'static, KeyPair>,
    front_proxy: CertifiedIssuer<'static, KeyPair>,
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

impl Pki {
    /// New authorities, the service accounts' key, and the certificates of the control plane at `addresses`.
    pub fn new(dir: &Path, addresses: &[&str]) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        let pki =
            Self { dir: dir.to_owned(), cluster: authority("kubernetes"), front_proxy: authority("front-proxy-ca") };
        for (name, issuer) in [("ca", &pki.cluster), ("front-proxy-ca", &pki.front_proxy)] {
            pki.write(&format!("{name}.crt"), &issuer.pem());
            pki.write(&format!("{name}.key"), &issuer.key().serialize_pem());
        }
        let accounts = KeyPair::generate().expect("a key");
        pki.write("sa.key", &accounts.serialize_pem());
        pki.write("sa.pub", &accounts.public_key_pem());
        let mut names = vec!["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        names.extend(["kubernetes.default.svc.cluster.local", "127.0.0.1", "10.96.0.1"]);
        names.extend(addresses);
        pki.issue("apiserver", "kube-apiserver", None, Use::Server, &names);
        let masters = Some("system:masters");
        pki.issue("apiserver-kubelet-client", "kube-apiserver-kubelet-client", masters, Use::Client, &[]);
        pki.issue_by(&pki.front_proxy, "front-proxy-client", "front-proxy-client", None, Use::Client, &[]);
        pki
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.dir.join(name), content).expect("a PEM file is written");
    }

    /// A file of the directory.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn issue_by(
        &self,
        issuer: &CertifiedIssuer<'static, KeyPair>,
        file: &str,
        common_name: &str,
        organization: Option<&str>,
        purpose: Use,
        names: &[&str],
    ) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names and addresses");
        params.distinguished_name = DistinguishedName::new();
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match purpose {
            Use::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Use::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, issuer).expect("a certificate");
        self.write(&format!("{file}.crt"), &certificate.pem());
        self.write(&format!("{file}.key"), &key.serialize_pem());
    }

    /// `FILE.crt` and `FILE.key`, signed by the cluster's authority.
    pub fn issue(&self, file: &str, common_name: &str, organization: Option<&str>, purpose: Use, names: &[&str]) {
        self.issue_by(&self.cluster, file, common_name, organization, purpose, names);
    }

    /// A kubeconfig `USER.kubeconfig` with a new client certificate; its path.
    pub fn kubeconfig(&self, file: &str, server: &str, common_name: &str, organization: Option<&str>) -> PathBuf {
        self.issue(file, common_name, organization, Use::Client, &[]);
        let encoded = |name: &str| BASE64.encode(fs::read(self.dir.join(name)).expect("just written"));
        let user = format!(
            "client-certificate-data: {}\n    client-key-data: {}",
            encoded(&format!("{file}.crt")),
            encoded(&format!("{file}.key"))
        );
        self.kubeconfig_of(file, server, &user)
    }

    /// A kubeconfig with these fields of a user.
    pub fn kubeconfig_of(&self, file: &str, server: &str, user: &str) -> PathBuf {
        let path = self.dir.join(format!("{file}.kubeconfig"));
        let authority = BASE64.encode(self.cluster.pem());
        let config = format!(
            "apiVersion: v1
kind: Config
clusters:
- name: kubernetes
  cluster:
    server: {server}
    certificate-authority-data: {authority}
users:
- name: user
  user:
    {user}
contexts:
- name: context
  context:
    cluster: kubernetes
    user: user
current-context: context
"
        );
        fs::write(&path, config).expect("a kubeconfig is written");
        path
    }
}
