//! Answering a registry's 401: Basic, or a bearer token from its token service.
//!
//! In: `WWW-Authenticate` headers and a credential. Out: an `Authorization` header. Tokens live as long as
//! their session; nothing is written anywhere, nothing secret is printed.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use http_auth::parser::ChallengeParser;
use serde::Deserialize;
use url::Url;

use super::super::credential::{Credential, Secret};
use super::RegistryError;

/// How the registry wants to be authenticated to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from this service.
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

/// Tokens of some clouds are several kilobytes.
pub(super) const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// A token service's answer: one of the two names.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl TokenAnswer {
    pub(super) fn into_token(self) -> Option<String> {
        self.token.or(self.access_token).filter(|token| !token.is_empty())
    }
}

/// The best challenge of an answer: Bearer before Basic, as Docker does.
///
/// # Errors
/// [`RegistryError::Challenge`] when there is none this node can use.
pub(super) fn challenge(url: &Url, headers: &HeaderMap) -> Result<Challenge, RegistryError> {
    let unusable = |problem: String| RegistryError::Challenge { url: url.to_string(), problem };
    let mut basic = false;
    let mut others = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        for challenge in ChallengeParser::new(text).flatten() {
            let param = |name: &str| {
                challenge
                    .params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let realm = param("realm").ok_or_else(|| unusable("a bearer challenge without realm".to_owned()))?;
                let realm = url.join(&realm).map_err(|_| unusable("a bearer realm that is no URL".to_owned()))?;
                check_realm(url, &realm)?;
                return Ok(Challenge::Bearer { realm, service: param("service"), scope: param("scope") });
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = true;
            } else {
                others.push(challenge.scheme.chars().take(32).collect::<String>());
            }
        }
    }
    match (basic, others.is_empty()) {
        (true, _) => Ok(Challenge::Basic),
        (false, true) => Err(unusable("401 without a WWW-Authenticate header".to_owned())),
        (false, false) => Err(unusable(format!("scheme {}", others.join(", ")))),
    }
}

/// A registry over HTTPS may not have a password sent in the clear.
fn check_realm(url: &Url, realm: &Url) -> Result<(), RegistryError> {
    let fine = match realm.scheme() {
        "https" => true,
        "http" => url.scheme() == "http",
        _ => false,
    };
    if fine && realm.host().is_some() {
        return Ok(());
    }
    Err(RegistryError::Challenge {
        url: url.to_string(),
        problem: "its token service is not reached over https".to_owned(),
    })
}

/// The `Authorization` value for Basic.
pub(super) fn basic_header(username: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}")))
}

/// What a credential gives without asking a token service.
pub(super) fn direct_header(challenge: &Challenge, credential: Option<&Credential>) -> Option<String> {
    match (challenge, credential.map(Credential::secret)) {
        (Challenge::Basic, Some(Secret::Basic { username, password })) => Some(basic_header(username, password)),
        (_, Some(Secret::Bearer(token))) => Some(format!("Bearer {token}")),
        _ => None,
    }
}

/// The token request's URL: the realm with service and scope.
pub(super) fn token_url(realm: &Url, service: Option<&str>, scope: &str) -> Url {
    let mut url = realm.clone();
    let mut query = url.query_pairs_mut();
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    query.append_pair("scope", scope);
    drop(query);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str, values: &[&'static str]) -> Result<Challenge, RegistryError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        challenge(&url.parse().unwrap(), &headers)
    }

    #[test]
    fn bearer_is_preferred_and_read_whole() {
        let found = read(
            "https://r.example/v2/",
            &[
                "Basic realm=\"x\"",
                "Bearer realm=\"https://auth.example/token\",service=\"r\",scope=\"repository:a:pull\"",
            ],
        );
        let Challenge::Bearer { realm, service, scope } = found.unwrap() else { panic!("bearer is preferred") };
        assert_eq!(realm.as_str(), "https://auth.example/token");
        assert_eq!(service.as_deref(), Some("r"));
        assert_eq!(scope.as_deref(), Some("repository:a:pull"));
        assert_eq!(read("https://r.example/", &["Basic realm=\"x\""]).unwrap(), Challenge::Basic);
    }

    #[test]
    fn a_password_is_not_sent_in_the_clear_for_a_registry_over_https() {
        let error = read("https://r.example/", &["Bearer realm=\"http://auth.example/token\""]).unwrap_err();
        assert!(error.to_string().contains("not reached over https"));
        assert!(read("http://localhost:5000/", &["Bearer realm=\"http://localhost:5001/token\""]).is_ok());
        assert!(read("http://localhost/", &["Bearer realm=\"file:///etc/passwd\""]).is_err());
    }

    #[test]
    fn other_schemes_are_named() {
        let error = read("https://r.example/", &["Negotiate"]).unwrap_err().to_string();
        assert!(error.contains("scheme Negotiate"), "{error}");
        assert!(read("https://r.example/", &[]).unwrap_err().to_string().contains("without a WWW-Authenticate"));
    }

    #[test]
    fn the_token_request_keeps_the_realms_own_query() {
        let realm = "https://auth.example/token?a=b".parse().unwrap();
        let url = token_url(&realm, Some("r s"), "repository:x/y:pull");
        assert_eq!(url.as_str(), "https://auth.example/token?a=b&service=r+s&scope=repository%3Ax%2Fy%3Apull");
    }
}
