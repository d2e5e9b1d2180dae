//! The API server's say: TokenReview and SubjectAccessReview.
//!
//! In: a token, or a user and what it wants. Out: the answer. Asks each time (`super` keeps answers); asks again a
//! few times when the server is busy, and not at all long: a request of the kubelet API waits meanwhile.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::user::UserInfo;

/// How long one answer may take, over all tries.
const PATIENCE: Duration = Duration::from_secs(10);
/// Waits between tries (the kubelet's begin with 500 ms and grow by half).
const RETRY_WAITS: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_millis(750), Duration::from_millis(1125)];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server did not take the question.
    #[error("the API server could not be asked")]
    Api(#[source] Box<kube::Error>),
    /// It did not answer.
    #[error("the API server did not answer within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// It answered without an answer.
    #[error("the API server's review has no status")]
    NoStatus,
}

/// What a user wants of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessQuestion<'a> {
    /// The node.
    pub node: &'a str,
    /// The verb.
    pub verb: &'a str,
    /// The subresource of `nodes`.
    pub subresource: &'a str,
}

/// Who a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenAnswer {
    /// This user.
    User(UserInfo),
    /// Nobody, with the server's reason if it gave one.
    Unknown {
        /// Such as `token has expired`.
        reason: String,
    },
}

impl TokenAnswer {
    /// The user, if there is one.
    #[must_use]
    pub fn into_user(self) -> Option<UserInfo> {
        match self {
            Self::User(user) => Some(user),
            Self::Unknown { .. } => None,
        }
    }
}

/// Who answers: the API server, or a table in tests.
pub trait Reviewer: Send + Sync + 'static {
    /// Who the bearer of a token is.
    fn review_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenAnswer, ReviewError>>;

    /// Whether a user may do it.
    fn review_access<'a>(
        &'a self,
        user: &'a UserInfo,
        question: AccessQuestion<'a>,
    ) -> BoxFuture<'a, Result<bool, ReviewError>>;
}

/// The API server.
pub(super) struct ApiReviewer {
    client: Client,
}

impl ApiReviewer {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }
}

impl Reviewer for ApiReviewer {
    fn review_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenAnswer, ReviewError>> {
        async move {
            // No audiences: those of the API server itself, as the kubelet asks.
            let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
            let review = TokenReview { spec, ..TokenReview::default() };
            let status = ask(&Api::all(self.client.clone()), &review).await?.status.ok_or(ReviewError::NoStatus)?;
            if status.authenticated != Some(true) {
                return Ok(TokenAnswer::Unknown { reason: status.error.unwrap_or_default() });
            }
            let user = status.user.unwrap_or_default();
            Ok(TokenAnswer::User(UserInfo {
                name: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            }))
        }
        .boxed()
    }

    fn review_access<'a>(
        &'a self,
        user: &'a UserInfo,
        question: AccessQuestion<'a>,
    ) -> BoxFuture<'a, Result<bool, ReviewError>> {
        async move {
            let review = SubjectAccessReview { spec: access_spec(user, question), ..SubjectAccessReview::default() };
            let status = ask(&Api::all(self.client.clone()), &review).await?.status.ok_or(ReviewError::NoStatus)?;
            // Both at once is a contradiction, which the kubelet reads as no.
            Ok(status.allowed && status.denied != Some(true))
        }
        .boxed()
    }
}

fn access_spec(user: &UserInfo, question: AccessQuestion<'_>) -> SubjectAccessReviewSpec {
    SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
        groups: Some(user.groups.clone()).filter(|groups| !groups.is_empty()),
        extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
        resource_attributes: Some(ResourceAttributes {
            verb: Some(question.verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(question.subresource.to_owned()),
            name: Some(question.node.to_owned()),
            ..ResourceAttributes::default()
        }),
        ..SubjectAccessReviewSpec::default()
    }
}

async fn ask<K>(api: &Api<K>, review: &K) -> Result<K, ReviewError>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let tries = async {
        let mut waits = RETRY_WAITS.iter();
        loop {
            match api.create(&PostParams::default(), review).await {
                Ok(answer) => return Ok(answer),
                Err(error) => match waits.next().filter(|_| is_passing(&error)) {
                    Some(wait) => tokio::time::sleep(*wait).await,
                    None => return Err(ReviewError::Api(Box::new(error))),
                },
            }
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.unwrap_or(Err(ReviewError::TimedOut))
}

/// Whether the server will likely answer when asked again (the webhooks' `DefaultShouldRetry`).
fn is_passing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 429 | 500 | 503 | 504))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_the_kubelets() {
        let user = UserInfo { name: "jane".into(), groups: vec!["dev".into()], ..UserInfo::default() };
        let question = AccessQuestion { node: "edge-1", verb: "get", subresource: "metrics" };
        assert_eq!(
            serde_json::to_value(access_spec(&user, question)).unwrap(),
            serde_json::json!({"user": "jane", "groups": ["dev"], "resourceAttributes": {
                "verb": "get", "version": "v1", "resource": "nodes", "subresource": "metrics", "name": "edge-1"}})
        );
    }
}
