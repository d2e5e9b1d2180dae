//! Pull secrets, old and new, in one form.
//!
//! In: a Secret. Out: the document that image credentials are read from, or nothing when it is no pull secret. Reads no
//! credential itself (`image`).

use k8s_openapi::api::core::v1::Secret;

use super::runtime::DockerConfig;

/// Keys and the types they count with; a Secret of a manifest need not say its type.
const JSON: (&str, &str) = (".dockerconfigjson", "kubernetes.io/dockerconfigjson");
const LEGACY: (&str, &str) = (".dockercfg", "kubernetes.io/dockercfg");

/// The Secret's registries as `{"auths": ...}`.
pub(super) fn docker_config(name: &str, secret: &Secret) -> Option<DockerConfig> {
    let of = |(key, kind): (&str, &str)| {
        let counts = secret.type_.as_deref().is_none_or(|given| given == kind);
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes.filter(|bytes| counts && !bytes.0.is_empty()).map(|bytes| bytes.0.clone())
    };
    let json = of(JSON).or_else(|| {
        let legacy = of(LEGACY)?;
        // The old form is the inner part of the new one.
        Some([b"{\"auths\":".as_slice(), &legacy, b"}"].concat())
    })?;
    Some(DockerConfig { secret: name.to_owned(), json })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn both_forms_of_pull_secrets_are_read_when_their_type_says_so() {
        const AUTHS: &str = r#"{"r.example":{"auth":"eDp5"}}"#;
        let new = format!(r#"{{"auths":{AUTHS}}}"#);
        for (case, kind, key, text, expected) in [
            ("new", Some(JSON.1), JSON.0, new.as_str(), Some(new.as_str())),
            ("old", Some(LEGACY.1), LEGACY.0, AUTHS, Some(new.as_str())),
            ("of a manifest", None, JSON.0, new.as_str(), Some(new.as_str())),
            ("of another type", Some("Opaque"), JSON.0, new.as_str(), None),
            ("empty", Some(JSON.1), JSON.0, "", None),
        ] {
            let data = [(key.to_owned(), ByteString(text.as_bytes().to_vec()))].into();
            let secret = Secret { type_: kind.map(str::to_owned), data: Some(data), ..Secret::default() };
            let found = docker_config("s", &secret).map(|config| String::from_utf8(config.json).unwrap());
            assert_eq!(found.as_deref(), expected, "{case}");
        }
    }
}
