//! Manifests and blobs into a repository.
//!
//! In: files of the store. Out: the registry has them. What it has already is not sent again; a blob goes in
//! one piece, as the distribution specification's "POST then PUT".

use std::path::PathBuf;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use url::Url;

use crate::ids::Digest;

use super::super::documents::Descriptor;
use super::answer::shown;
use super::pull::send_with_retry;
use super::session::{Body, Call, Session};
use super::{RegistryError, Repository};

/// Whether a blob had to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was sent.
    Sent,
    /// The registry had it.
    AlreadyThere,
}

impl Repository {
    /// Sends one blob unless the registry has it.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn push_blob(&self, blob: &Descriptor, file: PathBuf) -> Result<Pushed, RegistryError> {
        let session = self.push_session()?;
        let head = call(Method::HEAD, session.url(&format!("blobs/{}", blob.digest)), Body::Empty);
        match send_with_retry(session, &head, &[StatusCode::OK]).await {
            Ok(_) => return Ok(Pushed::AlreadyThere),
            Err(RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let start = call(Method::POST, session.url("blobs/uploads/"), Body::Bytes(Bytes::new()));
        let response = send_with_retry(session, &start, &[StatusCode::ACCEPTED]).await?;
        let mut upload = upload_location(&response)?;
        upload.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let body = Body::File { path: file, size: blob.size };
        let mut put = call(Method::PUT, upload, body);
        put.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        // Not retried as a whole: the upload's state is unknown then, and the caller may push again.
        session.send(&put, &[StatusCode::CREATED]).await?;
        Ok(Pushed::Sent)
    }

    /// Sends the manifest and lets the name point at it.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn push_manifest(&self, media_type: &str, bytes: Vec<u8>) -> Result<Digest, RegistryError> {
        let session = self.push_session()?;
        let digest = Digest::of(&bytes);
        // By tag when there is one; the registry checks a digest itself.
        let selector = self.reference.tag().unwrap_or(digest.as_str());
        let url = session.url(&format!("manifests/{selector}"));
        let mut put = call(Method::PUT, url, Body::Bytes(bytes.into()));
        let content_type = HeaderValue::from_str(media_type).map_err(|_| RegistryError::Protocol {
            url: shown(&put.url),
            problem: format!("nothing yet: media type {media_type:?} cannot be a header"),
        })?;
        put.headers.insert(CONTENT_TYPE, content_type);
        send_with_retry(session, &put, &[StatusCode::CREATED]).await?;
        Ok(digest)
    }

    fn push_session(&self) -> Result<&Session, RegistryError> {
        // Mirrors follow the registry: what is pushed goes to the first that takes pushes, as containerd does.
        self.endpoints
            .first()
            .map(AsRef::as_ref)
            .ok_or_else(|| RegistryError::NoEndpoint { registry: self.reference.registry().to_owned(), action: "push" })
    }
}

fn call(method: Method, url: Url, body: Body) -> Call {
    Call { method, url, headers: HeaderMap::new(), body }
}

fn upload_location(response: &reqwest::Response) -> Result<Url, RegistryError> {
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let upload = location.and_then(|location| response.url().join(location).ok());
    upload.filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(|| RegistryError::Protocol {
        url: shown(response.url()),
        problem: "an upload without a usable Location".to_owned(),
    })
}
