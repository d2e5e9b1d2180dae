//! One endpoint of one repository: requests with authentication, redirects and deadlines.
//!
//! In: a method, a path, perhaps a body. Out: an answer with a good status, or a [`RegistryError`]. Redirects
//! are followed by hand: what identifies us (token, password, configured headers, client certificate) goes
//! to the endpoint's own origin and nowhere else.

use std::path::PathBuf;
use std::sync::OnceLock;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderValue, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use tokio::sync::Mutex;
use url::Url;

use super::super::credential::{Credential, Secret};
use super::super::reference::ImageRef;
use super::answer::{detail_of, error_of, read_bounded, shown, transport};
use super::auth::{self, Challenge, TokenAnswer};
use super::client::{Identify, build_client, configured_headers};
use super::hosts::{Endpoint, Role, is_loopback};
use super::{Action, RegistryError};

/// Registry to object store is one hop; more than a few is a loop.
const MAX_REDIRECTS: usize = 5;

/// One endpoint of one repository.
#[derive(Debug)]
pub(super) struct Session {
    endpoint: Endpoint,
    repository: String,
    action: Action,
    own: reqwest::Client,
    /// For other hosts that a redirect or a challenge names; made when first needed.
    foreign: OnceLock<reqwest::Client>,
    /// Tried in order; a single `None` is the anonymous user.
    candidates: Vec<Option<Credential>>,
    authorization: Mutex<Authorization>,
}

/// Who we currently are to the endpoint.
#[derive(Default)]
struct Authorization {
    header: Option<HeaderValue>,
    candidate: usize,
    challenge: Option<Challenge>,
    trust: Trust,
}

/// Whether the current header has ever worked: a token that did is renewed, one that did not is given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Trust {
    #[default]
    Untried,
    Proven,
}

impl std::fmt::Debug for Authorization {
    /// Never the header.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization").field("candidate", &self.candidate).finish_non_exhaustive()
    }
}

/// A request that can be sent again.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// A body that can be sent again.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Empty,
    Bytes(Bytes),
    File { path: PathBuf, size: u64 },
}

impl Session {
    pub(super) fn new(
        endpoint: Endpoint,
        reference: &ImageRef,
        credentials: &[Credential],
        action: Action,
    ) -> Result<Self, RegistryError> {
        let own = build_client(&endpoint, Identify::Yes)?;
        let candidates = candidates(&endpoint, reference, credentials);
        Ok(Self {
            endpoint,
            repository: reference.repository().to_owned(),
            action,
            own,
            foreign: OnceLock::new(),
            candidates,
            authorization: Mutex::default(),
        })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// `<base>/<repository>/<rest>`; a mirror is told whose content is meant, as containerd does.
    pub(super) fn url(&self, rest: &str) -> Url {
        let mut url = self.endpoint.base.clone();
        url.set_path(&format!("{}/{}/{rest}", self.endpoint.base.path(), self.repository));
        if self.endpoint.role == Role::Mirror {
            url.query_pairs_mut().append_pair("ns", &self.endpoint.registry);
        }
        url
    }

    /// Whether `url` is the endpoint's own host: what identifies us may go there.
    fn is_own(&self, url: &Url) -> bool {
        let base = &self.endpoint.base;
        url.scheme() == base.scheme()
            && url.host() == base.host()
            && url.port_or_known_default() == base.port_or_known_default()
    }

    /// Sends a request, authenticating when asked to, and gives the answer if its status is one of `expected`.
    pub(super) async fn send(&self, call: &Call, expected: &[StatusCode]) -> Result<reqwest::Response, RegistryError> {
        // Each round either renews a proven token or moves on to another credential.
        for _ in 0..self.candidates.len() + 2 {
            let header = self.authorization.lock().await.header.clone();
            let response = self.follow(call, header.as_ref()).await?;
            let status = response.status();
            let ours = self.is_own(response.url());
            if ours && (status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN) {
                self.authenticate(response, header.as_ref()).await?;
                continue;
            }
            if ours && header.is_some() {
                self.authorization.lock().await.trust = Trust::Proven;
            }
            if expected.contains(&status) {
                return Ok(response);
            }
            return Err(error_of(response).await);
        }
        Err(self.refused(&call.url, String::new()))
    }

    /// Follows redirects of reads; nothing that identifies us leaves the endpoint's origin.
    async fn follow(
        &self,
        call: &Call,
        authorization: Option<&HeaderValue>,
    ) -> Result<reqwest::Response, RegistryError> {
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let own = self.is_own(&url);
            let client = if own { &self.own } else { self.foreign()? };
            let mut request = client.request(call.method.clone(), url.clone()).headers(call.headers.clone());
            if own {
                request = request.headers(configured_headers(&self.endpoint));
                if let Some(authorization) = authorization {
                    request = request.header(AUTHORIZATION, authorization.clone());
                }
            }
            let request = attach_body(request, &call.body, &url).await?;
            let response = request.send().await.map_err(|source| transport(&url, source))?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            url = self.redirect_target(call, &url, &response)?;
        }
        Err(RegistryError::Redirect { url: shown(&call.url), target: shown(&url), problem: "is one redirect too many" })
    }

    fn redirect_target(&self, call: &Call, from: &Url, response: &reqwest::Response) -> Result<Url, RegistryError> {
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let target = location.and_then(|location| from.join(location).ok()).ok_or_else(|| RegistryError::Protocol {
            url: shown(from),
            problem: "a redirect without a usable Location".to_owned(),
        })?;
        let refuse = |problem| Err(RegistryError::Redirect { url: shown(from), target: shown(&target), problem });
        match () {
            () if !matches!(call.method, Method::GET | Method::HEAD) => refuse("an upload does not follow"),
            () if !matches!(target.scheme(), "http" | "https") => refuse("is not http or https"),
            () if from.scheme() == "https" && target.scheme() == "http" => refuse("is not encrypted"),
            () if !self.endpoint.is_loopback() && is_internal(&target) => {
                refuse("is this machine's own or a link-local address")
            }
            () => Ok(target),
        }
    }

    fn foreign(&self) -> Result<&reqwest::Client, RegistryError> {
        if let Some(client) = self.foreign.get() {
            return Ok(client);
        }
        let client = build_client(&self.endpoint, Identify::No)?;
        Ok(self.foreign.get_or_init(|| client))
    }

    /// After a 401 or 403: a new `Authorization` for the next try, or the error that ends it.
    async fn authenticate(&self, response: reqwest::Response, used: Option<&HeaderValue>) -> Result<(), RegistryError> {
        let mut state = self.authorization.lock().await;
        if state.header.as_ref() != used {
            // Another request of this session renewed it meanwhile.
            return Ok(());
        }
        let (url, status) = (response.url().clone(), response.status());
        if status == StatusCode::UNAUTHORIZED {
            state.challenge = Some(auth::challenge(&url, response.headers())?);
        }
        let mut detail = detail_of(response).await;
        let Some(challenge) = state.challenge.clone() else { return Err(self.refused(&url, detail)) };
        // A header that worked before has expired (401); one that never did, or lacks the right, is given up.
        if state.header.is_some() && (state.trust == Trust::Untried || status == StatusCode::FORBIDDEN) {
            state.candidate += 1;
        }
        while let Some(candidate) = self.candidates.get(state.candidate) {
            match self.header_for(&challenge, candidate.as_ref()).await {
                Ok(Some(header)) => {
                    state.header = Some(header);
                    state.trust = Trust::Untried;
                    return Ok(());
                }
                Ok(None) => {}
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => detail = format!(": {}", super::super::error::chain(&error)),
            }
            state.candidate += 1;
        }
        // The next request of this session starts over: it may be for another scope.
        *state = Authorization::default();
        Err(self.refused(&url, detail))
    }

    /// The header that answers `challenge`, or nothing when this credential cannot.
    async fn header_for(
        &self,
        challenge: &Challenge,
        credential: Option<&Credential>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let text = match (auth::direct_header(challenge, credential), challenge) {
            (Some(text), _) => Some(text),
            (None, Challenge::Basic) => None,
            (None, Challenge::Bearer { realm, service, scope }) => {
                let wanted = match self.action {
                    Action::Pull => "pull",
                    Action::Push => "pull,push",
                };
                let own_scope = format!("repository:{}:{wanted}", self.repository);
                let scope = scope.as_deref().filter(|scope| !scope.is_empty()).unwrap_or(&own_scope);
                Some(format!("Bearer {}", self.fetch_token(realm, service.as_deref(), scope, credential).await?))
            }
        };
        let Some(text) = text else { return Ok(None) };
        let mut header = HeaderValue::from_str(&text).map_err(|_| RegistryError::Challenge {
            url: shown(&self.endpoint.base),
            problem: "the token or password has characters that a header cannot carry".to_owned(),
        })?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    /// Asks the token service. Its redirects are not followed: the password would go along.
    async fn fetch_token(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: &str,
        credential: Option<&Credential>,
    ) -> Result<String, RegistryError> {
        let client = if self.is_own(realm) { &self.own } else { self.foreign()? };
        let request = match credential.map(Credential::secret) {
            Some(Secret::Identity(token)) => {
                let form = url::form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("service", service.unwrap_or_default())
                    .append_pair("client_id", "wasilet")
                    .append_pair("scope", scope)
                    .append_pair("refresh_token", token)
                    .finish();
                client
                    .post(realm.clone())
                    .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form)
            }
            Some(Secret::Basic { username, password }) => client
                .get(auth::token_url(realm, service, scope))
                .header(AUTHORIZATION, sensitive(&auth::basic_header(username, password), realm)?),
            _ => client.get(auth::token_url(realm, service, scope)),
        };
        let response = request.send().await.map_err(|source| transport(realm, source))?;
        if response.status() != StatusCode::OK {
            return Err(error_of(response).await);
        }
        let body = read_bounded(response, auth::MAX_TOKEN_BYTES).await?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
        answer
            .and_then(TokenAnswer::into_token)
            .ok_or_else(|| RegistryError::Protocol { url: shown(realm), problem: "no token in its answer".to_owned() })
    }

    fn refused(&self, url: &Url, detail: String) -> RegistryError {
        let advice = match self.candidates.first() {
            Some(Some(_)) => "check the user and password of the imagePullSecret or of Docker's config.json",
            _ => "it is private or does not exist; give credentials in an imagePullSecret or in Docker's config.json",
        };
        RegistryError::Unauthorized { url: shown(url), detail, advice }
    }
}

/// Credentials for the endpoint's own host: a registry's are not for its mirrors.
fn candidates(endpoint: &Endpoint, reference: &ImageRef, credentials: &[Credential]) -> Vec<Option<Credential>> {
    let name = match endpoint.role {
        Role::Origin => Some(reference.clone()),
        Role::Mirror => mirror_name(endpoint, reference),
    };
    let found = name.map(|name| Credential::matching(credentials, &name)).unwrap_or_default();
    let mut candidates: Vec<Option<Credential>> = Vec::new();
    for credential in found {
        if !candidates.iter().flatten().any(|known| known == credential) {
            candidates.push(Some(credential.clone()));
        }
    }
    if candidates.is_empty() {
        candidates.push(None);
    }
    candidates
}

fn mirror_name(endpoint: &Endpoint, reference: &ImageRef) -> Option<ImageRef> {
    let host = endpoint.base.host_str()?;
    let authority = endpoint.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    format!("{authority}/{}", reference.repository()).parse().ok()
}

async fn attach_body(
    request: reqwest::RequestBuilder,
    body: &Body,
    url: &Url,
) -> Result<reqwest::RequestBuilder, RegistryError> {
    match body {
        Body::Empty => Ok(request),
        Body::Bytes(bytes) => Ok(request.body(bytes.clone())),
        Body::File { path, size } => {
            let file = tokio::fs::File::open(path).await.map_err(|source| RegistryError::TlsFile {
                url: shown(url),
                path: path.clone(),
                source,
            })?;
            let stream = tokio_util::io::ReaderStream::with_capacity(file, 256 << 10);
            Ok(request.header(http::header::CONTENT_LENGTH, *size).body(reqwest::Body::wrap_stream(stream)))
        }
    }
}

fn sensitive(text: &str, realm: &Url) -> Result<HeaderValue, RegistryError> {
    let mut header = HeaderValue::from_str(text).map_err(|_| RegistryError::Challenge {
        url: shown(realm),
        problem: "the password has characters that a header cannot carry".to_owned(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Loopback and link-local targets by address (the metadata services of clouds): a registry elsewhere has no
/// business sending us there.
fn is_internal(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback() || address.is_link_local() || address.is_unspecified(),
        Some(url::Host::Ipv6(address)) => {
            address.is_loopback() || address.is_unspecified() || (address.segments()[0] & 0xffc0) == 0xfe80
        }
        Some(url::Host::Domain(_)) => is_loopback(url),
        None => true,
    }
}
