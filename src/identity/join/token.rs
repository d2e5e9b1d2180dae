//! Bootstrap tokens and pins of authorities, as `kubeadm join` takes them: pure.
//!
//! In: words of the command line. Out: checked values; a secret that no message shows.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;

use crate::identity::pair;

/// `ID.SECRET`: six and sixteen characters of `[a-z0-9]`.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    id: String,
    secret: String,
}

/// A token or pin that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// Not `ID.SECRET`. The word is not repeated: it may be a secret.
    #[error("the bootstrap token is not of the form [a-z0-9]{{6}}.[a-z0-9]{{16}}: was it cut when it was copied?")]
    Token,
    /// Not `sha256:` and 64 hex digits.
    #[error(
        "invalid hash {0:?}, expected \"sha256:\" and 64 hex digits, as 'kubeadm token create --print-join-command' prints them"
    )]
    Pin(String),
}

impl FromStr for BootstrapToken {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let legal = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        match text.split_once('.') {
            Some((id, secret)) if legal(id, 6) && legal(secret, 16) => {
                Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
            }
            _ => Err(WordError::Token),
        }
    }
}

impl BootstrapToken {
    /// The public half, which names the token's Secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key of signatures.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Both, as a bearer token.
    #[must_use]
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl fmt::Debug for BootstrapToken {
    /// Never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootstrapToken({}.***)", self.id)
    }
}

/// Public keys of authorities that are trusted: `sha256:HEX` of the SubjectPublicKeyInfo (RFC 7469).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins(Vec<[u8; 32]>);

impl Pins {
    /// Reads them; commas separate several in one word.
    ///
    /// # Errors
    /// [`WordError::Pin`].
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Self, WordError> {
        let mut pins = Vec::new();
        for word in words.iter().flat_map(|words| words.as_ref().split(',')) {
            let invalid = || WordError::Pin(word.to_owned());
            let (format, digits) = word.split_once(':').ok_or_else(invalid)?;
            if !format.eq_ignore_ascii_case("sha256") {
                return Err(invalid());
            }
            let mut pin = [0; 32];
            hex::decode_to_slice(digits, &mut pin).map_err(|_| invalid())?;
            pins.push(pin);
        }
        Ok(Self(pins))
    }

    /// Whether there are none: nothing is pinned then.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that one of the certificates is pinned; else says what their pins would be.
    ///
    /// # Errors
    /// The pins of what was found.
    pub fn check_any(&self, certificates: &[CertificateDer<'_>]) -> Result<(), Vec<String>> {
        let mut found = Vec::new();
        for hash in certificates.iter().filter_map(|der| pair::public_key_hash(der).ok()) {
            if self.0.contains(&hash) {
                return Ok(());
            }
            found.push(format!("sha256:{}", hex::encode(hash)));
        }
        Err(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_six_and_sixteen() {
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().unwrap();
        assert_eq!((token.id(), token.secret()), ("abcdef", "0123456789abcdef"));
        assert_eq!(token.bearer(), "abcdef.0123456789abcdef");
        assert!(!format!("{token:?}").contains(token.secret()));
        for bad in [
            "",
            "abcdef",
            "abcdef.",
            "abcdef.0123456789abcde",
            "Abcdef.0123456789abcdef",
            "abcdef.0123456789abcdef0",
            "abcdef 0123456789abcdef",
            "äbcde.0123456789abcdef",
        ] {
            assert_eq!(bad.parse::<BootstrapToken>(), Err(WordError::Token), "{bad}");
        }
    }

    #[test]
    fn pins_are_hashes_of_public_keys() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let pin = {
            use rcgen::PublicKeyData as _;
            use sha2::Digest as _;
            format!("sha256:{}", hex::encode(sha2::Sha256::digest(key.subject_public_key_info())))
        };
        let other = format!("sha256:{}", "0".repeat(64));
        let chain = [certificate.der().clone()];
        for (case, words, good) in [
            ("the pin", vec![pin.clone()], true),
            ("upper case", vec![pin.to_uppercase()], true),
            ("among others", vec![format!("{other},{pin}")], true),
            ("another", vec![other.clone()], false),
        ] {
            assert_eq!(Pins::parse(&words).unwrap().check_any(&chain).is_ok(), good, "{case}");
        }
        assert_eq!(Pins::parse(&[other]).unwrap().check_any(&chain), Err(vec![pin]));
        for bad in ["", "sha256:", "sha256:00", "sha1:00", "00", "sha256:zz"] {
            assert_eq!(Pins::parse(&[bad]), Err(WordError::Pin(bad.to_owned())), "{bad}");
        }
    }
}
