//! Who may use the kubelet API: authentication and authorization of every request over HTTPS.
//!
//! In: a request with the certificates of its connection. Out: the request goes on, or 401/403/500 in the kubelet's
//! words. The API server decides (TokenReview, SubjectAccessReview); its answers are kept for the configured times,
//! so that known users are served while it is away. The Unix socket does not come through here: its file mode decides.
//!
//! ```text
//!  certificate (x509) ─┐
//!  bearer token ───────┼─▶ user ─▶ attributes (nodes/SUBRESOURCE) ─▶ SubjectAccessReview ─▶ handler
//!  WebSocket token ────┘     └ nothing shown: anonymous if enabled, else 401
//! ```

mod attributes;
mod cache;
mod credentials;
mod review;
#[cfg(test)]
pub(super) mod testing;
mod user;
mod x509;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use kube::Client;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::{AuthorizationMode, ServerConfig};

pub use attributes::{RequestAttributes, request_attributes};
pub use review::{AccessQuestion, ReviewError, Reviewer, TokenAnswer};
pub use user::UserInfo;
pub(super) use x509::RequestAnyCertificate;

use cache::ExpiringCache;
use review::ApiReviewer;
use x509::ClientAuthorities;

/// Tokens whose bearer is remembered; far more than clients of one node.
const KNOWN_TOKENS: usize = 4096;
/// Answers about access that are remembered (the API server's own webhook cache has as many).
const KNOWN_ACCESS: usize = 8192;
/// A rejected token is remembered for this time at most: long enough that guessing does not load the API server,
/// short enough that a token it learns of late works soon.
const REJECTED_TTL: Duration = Duration::from_secs(10);
/// Reviews under way at once; more wait here and not in the API server.
const REVIEWS: usize = 64;
/// Sum of the lengths of what a client chooses in a question; longer ones are asked each time (the webhook's limit).
const MAX_CACHED_QUESTION: usize = 10_000;

/// Why nobody could be let in as configured.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file of `authentication.x509.clientCAFile`.
    #[error("authentication.x509.clientCAFile: {} cannot be used: {reason}", path.display())]
    ClientCaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The cluster's authorities.
    #[error("the cluster's certificate authority cannot be used for client certificates: {reason}")]
    ClientCa {
        /// Why.
        reason: String,
    },
    /// Nothing a client could show would be looked at.
    #[error(
        "no authentication method configured: the node is in no cluster, so give authentication.x509.clientCAFile, \
         or turn the kubelet API off with enableServer: false"
    )]
    NoMethod,
    /// Nobody to ask.
    #[error(
        "no client provided, cannot use webhook authorization: the node is in no cluster, so set authorization.mode \
         to AlwaysAllow (every client with a certificate of clientCAFile may do everything then)"
    )]
    NoAuthorizer,
}

/// Authentication and authorization of requests.
pub struct Auth {
    node_name: String,
    anonymous: bool,
    authorities: Option<ClientAuthorities>,
    tokens: Option<Tokens>,
    access: Access,
}

struct Tokens {
    reviewer: Arc<dyn Reviewer>,
    reviews: Arc<Semaphore>,
    ttl: Duration,
    known: Mutex<ExpiringCache<[u8; 32], UserInfo>>,
    // Apart, so that guesses push no known token out.
    rejected: Mutex<ExpiringCache<[u8; 32], String>>,
}

enum Access {
    AlwaysAllow,
    Review {
        reviewer: Arc<dyn Reviewer>,
        reviews: Arc<Semaphore>,
        allowed_ttl: Duration,
        denied_ttl: Duration,
        known: Mutex<ExpiringCache<[u8; 32], bool>>,
    },
}

/// Why a request does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not known who sent it.
    #[error("Unauthorized")]
    Unauthorized,
    /// Who sent it may not.
    #[error("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{}])", subresources.join(" "))]
    Forbidden {
        /// The user's name.
        user: String,
        /// The verb.
        verb: &'static str,
        /// The subresources asked about.
        subresources: Vec<&'static str>,
    },
    /// Whether they may could not be found out.
    #[error("Authorization error (user={user}, verb={verb}, resource=nodes, subresource={subresource})")]
    Unanswered {
        /// The user's name.
        user: String,
        /// The verb.
        verb: &'static str,
        /// The subresource asked about.
        subresource: &'static str,
    },
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, self.to_string()).into_response(),
            // The kubelet ends this one sentence with a line feed.
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, format!("{self}\n")).into_response(),
            Self::Unanswered { .. } => (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response(),
        }
    }
}

impl Auth {
    /// As configured. `client` asks the API server, if the node is in a cluster; `cluster_ca` are the authorities of
    /// client certificates when no `clientCAFile` is set.
    ///
    /// # Errors
    /// [`AuthError`] when the authorities cannot be read or nobody could ever be let in.
    pub fn new(
        config: &ServerConfig,
        node_name: &str,
        client: Option<Client>,
        cluster_ca: Vec<CertificateDer<'static>>,
    ) -> Result<Self, AuthError> {
        let reviewer = client.map(|client| Arc::new(ApiReviewer::new(client)) as Arc<dyn Reviewer>);
        Self::with_reviewer(config, node_name, reviewer, cluster_ca)
    }

    /// As [`Self::new`], with somebody else to ask.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_reviewer(
        config: &ServerConfig,
        node_name: &str,
        reviewer: Option<Arc<dyn Reviewer>>,
        cluster_ca: Vec<CertificateDer<'static>>,
    ) -> Result<Self, AuthError> {
        let authentication = &config.authentication;
        let authorities = match &authentication.client_ca_file {
            Some(path) => Some(ClientAuthorities::from_file(path)?),
            None if cluster_ca.is_empty() => None,
            None => Some(ClientAuthorities::given(cluster_ca)?),
        };
        let reviews = Arc::new(Semaphore::new(REVIEWS));
        let tokens = reviewer.as_ref().filter(|_| authentication.webhook).map(|reviewer| Tokens {
            reviewer: reviewer.clone(),
            reviews: reviews.clone(),
            ttl: authentication.cache_ttl,
            known: Mutex::new(ExpiringCache::new(KNOWN_TOKENS)),
            rejected: Mutex::new(ExpiringCache::new(KNOWN_TOKENS)),
        });
        if authorities.is_none() && tokens.is_none() && !authentication.anonymous {
            return Err(AuthError::NoMethod);
        }
        let access = match (config.authorization.mode, reviewer) {
            (AuthorizationMode::AlwaysAllow, _) => Access::AlwaysAllow,
            (AuthorizationMode::Webhook, None) => return Err(AuthError::NoAuthorizer),
            (AuthorizationMode::Webhook, Some(reviewer)) => Access::Review {
                reviewer,
                reviews,
                allowed_ttl: config.authorization.allowed_ttl,
                denied_ttl: config.authorization.denied_ttl,
                known: Mutex::new(ExpiringCache::new(KNOWN_ACCESS)),
            },
        };
        let node_name = node_name.to_owned();
        Ok(Self { node_name, anonymous: authentication.anonymous, authorities, tokens, access })
    }

    /// Who sent a request, whose token is taken out of its headers.
    ///
    /// # Errors
    /// [`Refusal::Unauthorized`]: nothing was shown and nobody is let in without, or what was shown is wrong; that is
    /// never taken for nothing.
    pub async fn authenticate(
        &self,
        headers: &mut HeaderMap,
        certificates: &[CertificateDer<'static>],
    ) -> Result<UserInfo, Refusal> {
        let mut was_wrong = false;
        if let Some(authorities) = self.authorities.as_ref().filter(|_| !certificates.is_empty()) {
            match authorities.authenticate(certificates).await {
                Ok(Some(user)) => return Ok(user.authenticated()),
                Ok(None) => {}
                Err(error) => {
                    was_wrong = true;
                    tracing::warn!(err = chain(&error), "Unable to authenticate the request by its certificate");
                }
            }
        }
        if let Some(tokens) = &self.tokens {
            if let Some(token) = credentials::bearer_token(headers) {
                if let Some(user) = tokens.user(&token).await {
                    credentials::forget_bearer_token(headers);
                    return Ok(user.authenticated());
                }
                was_wrong = true;
            }
            match credentials::protocol_token(headers) {
                Ok(None) => {}
                Ok(Some((token, others))) => {
                    if let Some(user) = tokens.user(&token).await {
                        credentials::forget_protocol_token(headers, &others);
                        return Ok(user.authenticated());
                    }
                    was_wrong = true;
                }
                Err(error) => {
                    was_wrong = true;
                    tracing::warn!(err = %error, "Unable to authenticate the request by its subprotocols");
                }
            }
        }
        if self.anonymous && !was_wrong { Ok(UserInfo::anonymous()) } else { Err(Refusal::Unauthorized) }
    }

    /// Whether a user may do what a request does.
    ///
    /// # Errors
    /// [`Refusal::Forbidden`], or [`Refusal::Unanswered`] when nobody says.
    pub async fn authorize(&self, user: &UserInfo, method: &Method, path: &str) -> Result<(), Refusal> {
        let RequestAttributes { verb, subresources, .. } = request_attributes(method, path);
        for &subresource in &subresources {
            let question = AccessQuestion { node: &self.node_name, verb, subresource };
            match self.access.allows(user, question).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(err = chain(&error), user = user.name, verb, subresource, "Authorization error");
                    return Err(Refusal::Unanswered { user: user.name.clone(), verb, subresource });
                }
            }
        }
        tracing::debug!(user = user.name, verb, ?subresources, "Forbidden");
        Err(Refusal::Forbidden { user: user.name.clone(), verb, subresources })
    }
}

impl Tokens {
    /// The bearer of a token, remembered or asked for.
    async fn user(&self, token: &str) -> Option<UserInfo> {
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(answer) = self.remembered(&key) {
            return answer.into_user();
        }
        // Closed never: it is ours.
        let _turn = self.reviews.acquire().await.ok()?;
        // Whoever had the turn before may have asked the same.
        if let Some(answer) = self.remembered(&key) {
            return answer.into_user();
        }
        let answer = self.reviewer.review_token(token).await;
        let now = Instant::now();
        match answer {
            Ok(TokenAnswer::User(user)) => {
                self.known.lock().put(key, user.clone(), self.ttl, now);
                Some(user)
            }
            Ok(TokenAnswer::Unknown { reason }) => {
                tracing::debug!(reason, "A bearer token was rejected");
                self.rejected.lock().put(key, reason, self.ttl.min(REJECTED_TTL), now);
                None
            }
            // Not remembered: it says nothing about the token.
            Err(error) => {
                tracing::error!(err = chain(&error), "Failed to make webhook authenticator request");
                None
            }
        }
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<TokenAnswer> {
        let now = Instant::now();
        let known = self.known.lock().get(key, now).map(TokenAnswer::User);
        let rejected = || self.rejected.lock().get(key, now);
        known.or_else(|| rejected().map(|reason| TokenAnswer::Unknown { reason }))
    }
}

impl Access {
    async fn allows(&self, user: &UserInfo, question: AccessQuestion<'_>) -> Result<bool, ReviewError> {
        let (reviewer, reviews, allowed_ttl, denied_ttl, known) = match self {
            Self::AlwaysAllow => return Ok(true),
            Self::Review { reviewer, reviews, allowed_ttl, denied_ttl, known } => {
                (reviewer, reviews, *allowed_ttl, *denied_ttl, known)
            }
        };
        let key = access_key(user, question);
        if let Some(allowed) = known.lock().get(&key, Instant::now()) {
            return Ok(allowed);
        }
        let _turn = reviews.acquire().await;
        if let Some(allowed) = known.lock().get(&key, Instant::now()) {
            return Ok(allowed);
        }
        let allowed = reviewer.review_access(user, question).await?;
        if question.node.len() + question.verb.len() + question.subresource.len() < MAX_CACHED_QUESTION {
            known.lock().put(key, allowed, if allowed { allowed_ttl } else { denied_ttl }, Instant::now());
        }
        Ok(allowed)
    }
}

/// A key that differs when anything of the question does: lengths stand before texts.
fn access_key(user: &UserInfo, question: AccessQuestion<'_>) -> [u8; 32] {
    let parts = (user, question.node, question.verb, question.subresource);
    let text = serde_json::to_vec(&parts).expect("texts and maps of texts are JSON");
    Sha256::digest(text).into()
}

/// The certificates that the client of a connection showed.
#[derive(Debug, Clone, Default)]
pub(super) struct PeerCertificates(pub(super) Arc<[CertificateDer<'static>]>);

/// The layer in front of every endpoint over HTTPS, those that do not exist included.
pub(super) async fn check(State(auth): State<Arc<Auth>>, mut request: Request, next: Next) -> Response {
    let certificates = request.extensions().get::<PeerCertificates>().cloned().unwrap_or_default();
    let user = match auth.authenticate(request.headers_mut(), &certificates.0).await {
        Ok(user) => user,
        Err(refusal) => return refusal.into_response(),
    };
    if let Err(refusal) = auth.authorize(&user, request.method(), request.uri().path()).await {
        return refusal.into_response();
    }
    next.run(request).await
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::testing::{Authority, TableReviewer};
    use super::*;
    use crate::config::{Authentication, Authorization};

    fn bearer(token: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())])
    }

    fn auth(config: &ServerConfig, reviewer: &Arc<TableReviewer>, ca: &Authority) -> Auth {
        Auth::with_reviewer(config, "edge-1", Some(reviewer.clone()), vec![ca.certificate()]).unwrap()
    }

    #[tokio::test]
    async fn what_is_shown_is_believed_or_refused_and_never_overlooked() {
        let (ca, stranger) = (Authority::new("ca"), Authority::new("stranger"));
        let (jane, wrong) = (vec![ca.client("jane", &["dev"]).0], vec![stranger.client("jane", &[]).0]);
        let nothing = Vec::new();
        for (case, anonymous, headers, certificates, expected) in [
            ("a certificate", false, HeaderMap::new(), &jane, Ok("jane")),
            ("a token", false, bearer("good"), &nothing, Ok("bob")),
            ("the certificate comes first", false, bearer("good"), &jane, Ok("jane")),
            ("a wrong certificate with a good token", false, bearer("good"), &wrong, Ok("bob")),
            ("a good certificate with a wrong token", false, bearer("bad"), &jane, Ok("jane")),
            ("nothing", false, HeaderMap::new(), &nothing, Err(Refusal::Unauthorized)),
            ("nothing, where that is allowed", true, HeaderMap::new(), &nothing, Ok("system:anonymous")),
            ("a wrong token is not nothing", true, bearer("bad"), &nothing, Err(Refusal::Unauthorized)),
            ("a wrong certificate is not nothing", true, HeaderMap::new(), &wrong, Err(Refusal::Unauthorized)),
            ("a token nobody can check is not nothing", true, bearer("down"), &nothing, Err(Refusal::Unauthorized)),
        ] {
            let config = ServerConfig {
                authentication: Authentication { anonymous, ..Authentication::default() },
                ..ServerConfig::default()
            };
            let auth = auth(&config, &TableReviewer::new(&[("good", "bob")], &[]), &ca);
            let mut headers = headers;
            let user = auth.authenticate(&mut headers, certificates).await;
            assert_eq!(user.as_ref().map(|user| user.name.as_str()).map_err(Clone::clone), expected, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_their_time_and_serve_while_the_api_server_is_away() {
        let ca = Authority::new("ca");
        let config = ServerConfig {
            authorization: Authorization { denied_ttl: Duration::from_secs(30), ..Authorization::default() },
            ..ServerConfig::default()
        };
        let reviewer = TableReviewer::new(&[("good", "bob")], &[("bob", "metrics")]);
        let auth = auth(&config, &reviewer, &ca);
        for _ in 0..3 {
            let user = auth.authenticate(&mut bearer("good"), &[]).await.unwrap();
            assert_eq!(auth.authorize(&user, &Method::GET, "/metrics").await, Ok(()));
            let refusal = auth.authorize(&user, &Method::GET, "/pods").await.unwrap_err();
            assert_eq!(
                refusal.to_string(),
                "Forbidden (user=bob, verb=get, resource=nodes, subresource(s)=[pods proxy])"
            );
            assert!(auth.authenticate(&mut bearer("bad"), &[]).await.is_err());
        }
        assert_eq!(reviewer.tokens_asked.load(Ordering::SeqCst), 2);
        assert_eq!(reviewer.access_asked.load(Ordering::SeqCst), 3, "metrics, pods and proxy");

        reviewer.away.store(true, Ordering::SeqCst);
        let user = auth.authenticate(&mut bearer("good"), &[]).await.unwrap();
        assert_eq!(auth.authorize(&user, &Method::GET, "/metrics").await, Ok(()));
        tokio::time::advance(Duration::from_secs(31)).await;
        let refusal = auth.authorize(&user, &Method::GET, "/pods").await.unwrap_err();
        let words = "Authorization error (user=bob, verb=get, resource=nodes, subresource=pods)";
        assert_eq!(refusal.to_string(), words);
        assert_eq!(refusal.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
        tokio::time::advance(Duration::from_secs(120)).await;
        assert!(auth.authenticate(&mut bearer("good"), &[]).await.is_err(), "after cacheTTL it is asked again");
    }

    #[tokio::test]
    async fn the_general_right_stands_in_for_the_fine_one() {
        let ca = Authority::new("ca");
        let auth = auth(&ServerConfig::default(), &TableReviewer::new(&[], &[("fine", "pods"), ("old", "proxy")]), &ca);
        let user = |name: &str| UserInfo { name: name.to_owned(), ..UserInfo::default() };
        for (name, path, allowed) in [
            ("fine", "/pods", true),
            ("fine", "/runningpods/", true),
            ("fine", "/configz", false),
            ("fine", "/exec/ns/pod/c", false),
            ("old", "/pods", true),
            ("old", "/configz", true),
            ("old", "/exec/ns/pod/c", true),
            ("old", "/stats/summary", false),
            ("old", "/metrics", false),
        ] {
            let answer = auth.authorize(&user(name), &Method::GET, path).await;
            assert_eq!(answer.is_ok(), allowed, "{name} {path}");
        }
    }

    #[test]
    fn a_configuration_that_lets_nobody_in_is_an_error() {
        let config = ServerConfig::default();
        assert!(matches!(Auth::with_reviewer(&config, "n", None, Vec::new()), Err(AuthError::NoMethod)));
        let ca = vec![Authority::new("ca").certificate()];
        assert!(matches!(Auth::with_reviewer(&config, "n", None, ca.clone()), Err(AuthError::NoAuthorizer)));
        let authorization = Authorization { mode: AuthorizationMode::AlwaysAllow, ..Authorization::default() };
        assert!(Auth::with_reviewer(&ServerConfig { authorization, ..config }, "n", None, ca).is_ok());
    }
}
