//! The detached signature of `cluster-info` (RFC 7515, appendix F): HS256 with the secret of a bootstrap token. Pure.
//!
//! In: `HEADER..SIGNATURE`, the text that was signed, a token. Out: yes, or why not. The text comes from a server that
//! nobody has verified yet, so that any bytes must be expected.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde::Deserialize;
use sha2::Sha256;

use super::token::BootstrapToken;

/// Header and signature are less than 200 bytes; more is a mistake or worse.
const MAX_BYTES: usize = 4096;

/// Why a signature is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// Not two dots with nothing between them, or not base64url, or too long.
    #[error("it is not a detached JWS")]
    Form,
    /// The header is not what HS256 with a key id has.
    #[error("its header is not acceptable: {0}")]
    Header(&'static str),
    /// Made with another token.
    #[error("it is by the token {0:?}")]
    OtherToken(String),
    /// The text or the secret is another.
    #[error("the signature does not fit the contents")]
    Signature,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
    /// Extensions that must be understood; we understand none.
    #[serde(default)]
    crit: Option<serde_json::Value>,
    /// RFC 7797: an unencoded payload would change what is signed.
    #[serde(default)]
    b64: Option<serde_json::Value>,
}

/// Checks that `signature` is that of `content` by this token.
///
/// # Errors
/// [`JwsError`].
pub fn verify(signature: &str, content: &str, token: &BootstrapToken) -> Result<(), JwsError> {
    verify_with(signature, content, token.id(), token.secret())
}

fn verify_with(signature: &str, content: &str, id: &str, secret: &str) -> Result<(), JwsError> {
    if signature.len() > MAX_BYTES {
        return Err(JwsError::Form);
    }
    let mut parts = signature.split('.');
    let (Some(header), Some(""), Some(mac), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(JwsError::Form);
    };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| JwsError::Form);
    let (header_bytes, mac) = (decode(header)?, decode(mac)?);
    let parsed: Header = serde_json::from_slice(&header_bytes).map_err(|_| JwsError::Header("no alg or kid"))?;
    if parsed.alg != "HS256" {
        return Err(JwsError::Header("alg is not HS256"));
    }
    if parsed.crit.is_some() || parsed.b64.is_some() {
        return Err(JwsError::Header("it asks for an extension"));
    }
    if parsed.kid != id {
        return Err(JwsError::OtherToken(parsed.kid.chars().take(32).collect()));
    }
    let mut expected = signer(secret);
    expected.update(header.as_bytes());
    expected.update(b".");
    expected.update(URL_SAFE_NO_PAD.encode(content).as_bytes());
    // In constant time.
    expected.verify_slice(&mac).map_err(|_| JwsError::Signature)
}

/// The signature that `verify` takes: what the cluster's `bootstrapsigner` writes.
#[must_use]
pub fn sign(content: &str, token: &BootstrapToken) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{}"}}"#, token.id()));
    let mut mac = signer(token.secret());
    mac.update(header.as_bytes());
    mac.update(b".");
    mac.update(URL_SAFE_NO_PAD.encode(content).as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fn signer(secret: &str) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_of_the_clusters_own_library_are_accepted() {
        // Vectors of k8s.io/cluster-bootstrap, token/jws/jws_test.go.
        let hello = "Hello from the other side. I must have called a thousand times.";
        let secret = "my voice is my passcode";
        for (content, secret, mac) in [
            (hello, secret, "VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"),
            ("", secret, "7Ui1ALizW4jXphVUB7xUqC9vLYLL9RZeOFfVLoB7Tgk"),
            (hello, "", "UfkqvDGiIFxrMnFseDj9LYJOLNrvjW8aHhF71mvvAs8"),
        ] {
            let signature = format!("eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..{mac}");
            assert_eq!(verify_with(&signature, content, "joshua", secret), Ok(()), "{content:?}");
            assert!(verify_with(&format!("{signature}foo"), content, "joshua", secret).is_err());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_reason() {
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().unwrap();
        let other_id: BootstrapToken = "fedcba.0123456789abcdef".parse().unwrap();
        let other_secret: BootstrapToken = "abcdef.fedcba9876543210".parse().unwrap();
        let content = "apiVersion: v1\n";
        let good = sign(content, &token);
        let with_header =
            |header: &str| format!("{}..{}", URL_SAFE_NO_PAD.encode(header), good.rsplit('.').next().unwrap());
        for (case, signature, expected) in [
            ("good", good.clone(), Ok(())),
            ("empty", String::new(), Err(JwsError::Form)),
            ("not detached", good.replace("..", ".e30."), Err(JwsError::Form)),
            ("four parts", format!("{good}."), Err(JwsError::Form)),
            ("padding", format!("{good}="), Err(JwsError::Form)),
            ("very long", "a".repeat(MAX_BYTES + 1), Err(JwsError::Form)),
            ("no algorithm", with_header(r#"{"kid":"abcdef"}"#), Err(JwsError::Header("no alg or kid"))),
            (
                "the algorithm none",
                with_header(r#"{"alg":"none","kid":"abcdef"}"#),
                Err(JwsError::Header("alg is not HS256")),
            ),
            (
                "an extension",
                with_header(r#"{"alg":"HS256","kid":"abcdef","b64":false,"crit":["b64"]}"#),
                Err(JwsError::Header("it asks for an extension")),
            ),
            (
                "another header under the signature",
                with_header(r#"{"kid":"abcdef","alg":"HS256"}"#),
                Err(JwsError::Signature),
            ),
            ("another token", sign(content, &other_id), Err(JwsError::OtherToken("fedcba".to_owned()))),
            ("another secret", sign(content, &other_secret), Err(JwsError::Signature)),
            ("another text", sign("other", &token), Err(JwsError::Signature)),
        ] {
            assert_eq!(verify(&signature, content, &token), expected, "{case}");
        }
    }
}
