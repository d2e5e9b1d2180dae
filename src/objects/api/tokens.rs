//! Tokens of service accounts, as the kubelet's `token_manager.go`.
//!
//! In: a pod, an audience, a life time. Out: a token bound to that pod, from the TokenRequest API or from memory while it
//! is young. Tokens are in memory only, never on disk, never in a log; they go with the pod.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;

use super::ApiObjects;
use super::errors::{is_not_found_of, is_unrelated, words};
use crate::ids::PodUid;

/// A token older than this is asked for anew, however long it lives.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);
/// Nodes that asked at one time do not ask again at one time.
const MAX_JITTER_MILLIS: i64 = 10_000;
/// A pod whose token could not be refreshed is told again after this; the kubelet looks about as often.
const TELL_AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// A request that hangs must not hold a pod's other volumes for longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Right after a pod came, the API server's own caches may not know of it yet (`NodeRestriction` and the Node authorizer look
/// there), and it refuses: a kubelet is slower than those caches. How long to wait before each further try, in milliseconds.
const YOUNG_POD_RETRIES: [u64; 7] = [2, 4, 8, 16, 32, 64, 128];

/// A token: shown to nobody but the pod.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
    expires: Timestamp,
}

impl Token {
    /// The token itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// When it ends.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.expires
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Whose token it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenOwner {
    /// The pod's UID, to which the token is bound.
    pub uid: PodUid,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
}

/// One token of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wanted {
    owner: TokenOwner,
    /// Empty for the API server itself.
    audience: String,
    expiration_seconds: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Issued {
    token: Token,
    expires: Timestamp,
    refresh_at: Timestamp,
    /// When its pod was last told that it is due.
    told: Option<Timestamp>,
}

/// The tokens of this node's pods.
#[derive(Debug, Default)]
pub(super) struct TokenCache {
    issued: Mutex<HashMap<Wanted, Issued>>,
}

impl TokenCache {
    /// Pods with tokens that are due now and were not told lately; forgets tokens that are over.
    pub(super) fn due(&self, now: Timestamp) -> Vec<PodUid> {
        let mut issued = self.issued.lock();
        issued.retain(|_, token| token.expires > now);
        let mut due = Vec::new();
        for (wanted, token) in issued.iter_mut() {
            let told_lately = token.told.is_some_and(|told| now.duration_since(told) < TELL_AGAIN);
            if token.refresh_at <= now && !told_lately {
                token.told = Some(now);
                due.push(wanted.owner.uid.clone());
            }
        }
        due.sort();
        due.dedup();
        due
    }

    pub(super) fn forget(&self, uid: &PodUid) {
        self.issued.lock().retain(|wanted, _| wanted.owner.uid != *uid);
    }

    fn get(&self, wanted: &Wanted) -> Option<Issued> {
        self.issued.lock().get(wanted).cloned()
    }

    fn put(&self, wanted: Wanted, issued: Issued) {
        self.issued.lock().insert(wanted, issued);
    }
}

impl ApiObjects {
    /// A token of the pod's service account for `audience` (empty: the API server's own).
    ///
    /// From memory while it is young. When the API server does not give a new one, the old one is good until it ends.
    ///
    /// # Errors
    /// The kubelet's words and the server's.
    pub async fn token(
        &self,
        owner: &TokenOwner,
        audience: &str,
        expiration_seconds: Option<i64>,
    ) -> Result<Token, String> {
        let wanted = Wanted { owner: owner.clone(), audience: audience.to_owned(), expiration_seconds };
        let cached = self.inner.tokens.get(&wanted);
        if let Some(issued) = &cached
            && self.inner.clock.now() < issued.refresh_at
        {
            return Ok(issued.token.clone());
        }
        let result = tokio::time::timeout(REQUEST_TIMEOUT, self.request_token(&wanted)).await;
        let result = result.unwrap_or_else(|_| Err("the API server did not answer in time".to_owned()));
        match (result, cached) {
            (Ok(issued), _) => {
                let token = issued.token.clone();
                self.inner.tokens.put(wanted, issued);
                Ok(token)
            }
            (Err(reason), None) => Err(format!("failed to fetch token: {reason}")),
            (Err(reason), Some(old)) if old.expires <= self.inner.clock.now() => {
                let TokenOwner { namespace, service_account, .. } = owner;
                Err(format!("token {service_account:?}/{namespace:?} expired and refresh failed: {reason}"))
            }
            (Err(reason), Some(old)) => {
                tracing::warn!(podUID = %owner.uid, err = reason, "Couldn't update token");
                Ok(old.token)
            }
        }
    }

    async fn request_token(&self, wanted: &Wanted) -> Result<Issued, String> {
        let Wanted { owner, audience, expiration_seconds } = wanted;
        let api: Api<ServiceAccount> = Api::namespaced(self.inner.client.clone(), &owner.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: if audience.is_empty() { None } else { Some(vec![audience.clone()]) },
                expiration_seconds: *expiration_seconds,
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(owner.name.clone()),
                    uid: Some(owner.uid.as_str().to_owned()),
                }),
            }),
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let ask = || api.create_token_request(&owner.service_account, &params, &request);
        let mut given = ask().await;
        for millis in YOUNG_POD_RETRIES {
            if !given.as_ref().is_err_and(|error| is_not_found_of(error, "pods") || is_unrelated(error)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(millis)).await;
            given = ask().await;
        }
        let given = given.map_err(|error| words(&error))?;
        let empty = "the API server answered without a token";
        let status = given.status.ok_or(empty)?;
        let expires = status.expiration_timestamp.ok_or(empty)?.0;
        let token = Token { text: status.token.ok_or(empty)?, expires };
        let seconds = given.spec.and_then(|spec| spec.expiration_seconds);
        let refresh_at = refresh_at(expires, seconds, jitter());
        Ok(Issued { token, expires, refresh_at, told: None })
    }
}

/// When a token that ends at `expires` after `seconds` is to be asked for anew: at four fifths of its life, at the latest
/// when it is a day old, a little earlier by `jitter`.
fn refresh_at(expires: Timestamp, seconds: Option<i64>, jitter: SignedDuration) -> Timestamp {
    // A server that says nothing of the life time: until the end, as with the kubelet.
    let Some(seconds) = seconds else { return expires };
    let life = SignedDuration::from_secs(seconds);
    let fifth = SignedDuration::from_secs(seconds.saturating_mul(20) / 100);
    let late = expires.saturating_sub(fifth.saturating_add(jitter));
    let aged = expires.saturating_sub(life.saturating_sub(MAX_AGE).saturating_add(jitter));
    let (late, aged) = (late.unwrap_or(expires), aged.unwrap_or(expires));
    late.min(aged)
}

fn jitter() -> SignedDuration {
    SignedDuration::from_millis(rand::random_range(0..MAX_JITTER_MILLIS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_is_asked_for_anew_at_four_fifths_of_its_life_or_when_a_day_old() {
        let none = SignedDuration::ZERO;
        for (case, seconds, jitter, expected) in [
            ("ten minutes", Some(600), none, "2026-01-10T11:58:00Z"),
            ("an hour", Some(3600), none, "2026-01-10T11:48:00Z"),
            ("an hour, jittered", Some(3600), SignedDuration::from_secs(10), "2026-01-10T11:47:50Z"),
            ("five days, issued on the 5th", Some(5 * 86_400), none, "2026-01-06T12:00:00Z"),
            ("unknown", None, none, "2026-01-10T12:00:00Z"),
        ] {
            assert_eq!(refresh_at(at("2026-01-10T12:00:00Z"), seconds, jitter), at(expected), "{case}");
        }
    }

    #[test]
    fn a_pod_is_told_once_a_minute_that_a_token_is_due_and_forgotten_tokens_go() {
        let cache = TokenCache::default();
        let owner = |uid: &str| TokenOwner {
            uid: PodUid::new(uid).unwrap(),
            name: "web".to_owned(),
            namespace: "ns".to_owned(),
            service_account: "default".to_owned(),
        };
        let put = |uid: &str, audience: &str, refresh: &str, expires: &str| {
            let wanted = Wanted { owner: owner(uid), audience: audience.to_owned(), expiration_seconds: Some(600) };
            let token = Token { text: "secret".to_owned(), expires: at(expires) };
            cache.put(wanted, Issued { token, expires: at(expires), refresh_at: at(refresh), told: None });
        };
        put("a", "", "2026-01-01T00:01:00Z", "2026-01-01T01:00:00Z");
        put("a", "vault", "2026-01-01T00:01:00Z", "2026-01-01T01:00:00Z");
        put("b", "", "2026-01-01T00:30:00Z", "2026-01-01T01:00:00Z");
        let due = |time: &str| cache.due(at(time)).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(due("2026-01-01T00:00:00Z"), "");
        assert_eq!(due("2026-01-01T00:01:00Z"), "a");
        assert_eq!(due("2026-01-01T00:01:30Z"), "");
        assert_eq!(due("2026-01-01T00:02:00Z"), "a");
        assert_eq!(due("2026-01-01T00:40:00Z"), "a b");
        cache.forget(&PodUid::new("a").unwrap());
        assert_eq!(cache.issued.lock().len(), 1);
        assert_eq!(due("2026-01-01T01:00:00Z"), "", "it ended");
        assert!(cache.issued.lock().is_empty());
    }

    #[test]
    fn a_token_shows_nothing_of_itself() {
        assert_eq!(format!("{:?}", Token { text: "secret".to_owned(), expires: Timestamp::UNIX_EPOCH }), "Token(..)");
    }
}
