//! Who sent a request: a Kubernetes user, from a certificate or from the API server.

use std::collections::BTreeMap;

use serde::Serialize;

/// The group of everyone who proved who they are.
const AUTHENTICATED: &str = "system:authenticated";
/// The group of everyone who did not.
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// A user as the authorizer is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct UserInfo {
    /// The name.
    pub name: String,
    /// The UID, empty when it has none.
    pub uid: String,
    /// The groups, in the order they were given.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// Who shows nothing.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// The user with the group that all known users are in.
    #[must_use]
    pub(super) fn authenticated(mut self) -> Self {
        if !self.groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}
