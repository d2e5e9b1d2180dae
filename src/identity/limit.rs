//! Bounds the requests to the API server: `kubeAPIQPS` and `kubeAPIBurst`, a token bucket as client-go's.
//!
//! In: permission to send, asked for. Out: when. Knows nothing of HTTP.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A bucket of `burst` tokens that fills at `qps` a second.
#[derive(Debug)]
pub struct Bucket {
    interval: Duration,
    burst: u32,
    /// When the bucket would be full again if nobody asked any more.
    full_at: Mutex<Option<Instant>>,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(qps: f32, burst: u32) -> Self {
        let qps = f64::from(qps.max(0.001));
        Self { interval: Duration::from_secs_f64(1.0 / qps), burst: burst.max(1), full_at: Mutex::new(None) }
    }

    /// Takes a token; returns how long its owner has to wait before using it.
    fn take(&self, now: Instant) -> Duration {
        let mut full_at = self.full_at.lock();
        let from = full_at.map_or(now, |at| at.max(now));
        let after = from + self.interval;
        *full_at = Some(after);
        // `missing` tokens: as long as there are no more than the burst, nobody waits.
        let missing = after.duration_since(now);
        missing.saturating_sub(self.interval * self.burst)
    }

    /// Waits for a token. A dropped waiter's token is spent, as a request that was sent and dropped would be.
    pub async fn wait(&self) {
        let wait = self.take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_spread() {
        let bucket = Bucket::new(10.0, 3);
        let now = Instant::now();
        let waits: Vec<_> = (0..5).map(|_| bucket.take(now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
        assert_eq!(bucket.take(now + Duration::from_secs(60)), Duration::ZERO, "it fills up again");
        let waits: Vec<_> = (0..3).map(|_| bucket.take(now + Duration::from_secs(60)).as_millis()).collect();
        assert_eq!(waits, [0, 0, 100], "but no further than the burst");
    }
}
