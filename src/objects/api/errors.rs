//! What the API server said, for a person.
//!
//! In: an error of the client. Out: the words of client-go: the server's own message, or what failed on the way to it.

/// The server's message, or the chain of what failed.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => chain(other),
    }
}

/// The same for a watch.
pub(super) fn watch_words(error: &kube::runtime::watcher::Error) -> String {
    use kube::runtime::watcher::Error;
    match error {
        Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => words(error),
        Error::WatchError(status) if !status.message.is_empty() => status.message.clone(),
        other => chain(other),
    }
}

/// Whether the server says that we may not watch that.
pub(super) fn is_forbidden(error: &kube::runtime::watcher::Error) -> bool {
    use kube::runtime::watcher::Error;
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status))
        | Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

/// Whether the server says that there is no such thing.
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether what is not there is one of `resource` (`pods`).
pub(super) fn is_not_found_of(error: &kube::Error, resource: &str) -> bool {
    matches!(error, kube::Error::Api(status)
        if status.code == 404 && status.details.as_ref().is_some_and(|details| details.kind == resource))
}

/// Whether the Node authorizer has not heard of a pod of this node that refers to the object: there is none, or its own
/// watch of pods is behind.
pub(super) fn is_unrelated(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403 && status.message.contains("no relationship found"))
}

/// An error and its causes, each told once: a wrapper often repeats what it wraps.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn the_servers_own_words_are_told() {
        let status = Status::failure("secrets \"s\" is forbidden: no relationship found", "Forbidden").with_code(403);
        let error = kube::Error::Api(Box::new(status));
        assert_eq!(words(&error), "secrets \"s\" is forbidden: no relationship found");
        assert!(!is_not_found(&error) && is_unrelated(&error));
        let watch = kube::runtime::watcher::Error::InitialListFailed(error);
        assert!(is_forbidden(&watch));
        assert_eq!(watch_words(&watch), "secrets \"s\" is forbidden: no relationship found");
    }

    #[test]
    fn what_never_reached_the_server_says_where_it_stopped() {
        let io = std::io::Error::other("connection refused");
        assert_eq!(words(&kube::Error::Service(Box::new(io))), "ServiceError: connection refused");
    }
}
