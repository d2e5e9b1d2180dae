//! Requests to the API server, bounded in time, and what to do between failed ones.
//!
//! In: a request. Out: its answer, or which step failed. Retries nothing itself.

use std::future::Future;
use std::time::Duration;

/// The kubelet's timeout of heartbeats: the frequency of status updates.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The first wait after a failure, doubled up to the last (`maxBackoff` of the kubelet's leases and registration).
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_secs(7);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API server refused, or could not be reached.
    #[error("{step}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// It did not answer in time.
    #[error("{step}: no answer within {TIMEOUT:?}")]
    TimedOut {
        /// What was being done.
        step: &'static str,
    },
}

impl ApiError {
    /// The status code, if the server answered.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Failed { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::TimedOut { .. } => None,
        }
    }
}

/// Does one request.
pub(super) async fn bounded<T>(
    step: &'static str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|source| ApiError::Failed { step, source: Box::new(source) }),
        Err(_) => Err(ApiError::TimedOut { step }),
    }
}

/// Waits that double, with a little chance so that nodes do not come back together.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    failures: u32,
}

impl BackOff {
    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let wait = FIRST_WAIT.saturating_mul(2u32.saturating_pow(self.failures)).min(LAST_WAIT);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f64(0.8 + 0.4 * rand::random::<f64>())
    }

    /// After a success.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Says a failure once, however often it is repeated, and that it is over: an API server that is away for an hour is two
/// lines.
#[derive(Debug, Default)]
pub(super) struct Outage {
    said: Option<String>,
}

impl Outage {
    /// A step failed.
    pub(super) fn failed(&mut self, what: &str, error: &(dyn std::error::Error + 'static)) {
        let err = crate::image::chain(error);
        if self.said.as_ref() == Some(&err) {
            tracing::debug!(err, "{what}");
        } else {
            tracing::warn!(err, "{what}");
            self.said = Some(err);
        }
    }

    /// It was done.
    pub(super) fn over(&mut self, what: &str) {
        if self.said.take().is_some() {
            tracing::info!("{what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_said_once_until_it_is_over() {
        let error = |step| ApiError::TimedOut { step };
        let mut outage = Outage::default();
        outage.failed("x", &error("a"));
        let said = outage.said.clone();
        outage.failed("x", &error("a"));
        assert_eq!(outage.said, said);
        outage.failed("x", &error("b"));
        assert_ne!(outage.said, said, "another one is news");
        outage.over("y");
        assert_eq!(outage.said, None);
    }

    #[test]
    fn waits_double_and_are_bounded() {
        let mut back_off = BackOff::default();
        let first = back_off.next();
        assert!(first >= FIRST_WAIT.mul_f64(0.8) && first <= FIRST_WAIT.mul_f64(1.2));
        let last = (0..100).map(|_| back_off.next()).last().unwrap();
        assert!(last >= LAST_WAIT.mul_f64(0.8) && last <= LAST_WAIT.mul_f64(1.2));
        back_off.reset();
        assert!(back_off.next() <= FIRST_WAIT.mul_f64(1.2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_answer_ends() {
        let error = bounded("asking", std::future::pending::<kube::Result<()>>()).await.unwrap_err();
        assert_eq!(error.to_string(), "asking: no answer within 10s");
        assert_eq!(error.code(), None);
    }
}
