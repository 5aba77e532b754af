//! When a failed call is made again: full jitter, `Retry-After`, and one budget for all calls of a client, so that they do not
//! all ask a server in trouble at once (`docs/reliability.md` N3). A create is never made again here, but it waits for its
//! [`Retries::turn`] as every call does.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{ApiError, Class};

/// The constants of [`Retries`]. Tests use shorter pauses.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// Tries of one call, the first included.
    pub tries: u32,
    /// Upper end of the first pause; it doubles for each further pause.
    pub first: Duration,
    /// The same after [`Class::RateLimited`].
    pub first_limited: Duration,
    pub longest: Duration,
    /// Longest wait that a server may ask for.
    pub longest_asked: Duration,
}

impl Policy {
    pub const STANDARD: Self = Self {
        tries: 6,
        first: Duration::from_millis(500),
        first_limited: Duration::from_secs(2),
        longest: Duration::from_secs(60),
        longest_asked: Duration::from_secs(120),
    };
}

/// Retries that may follow each other at once, over all calls.
const BUDGET: f64 = 20.0;
/// How fast the budget fills again.
const BUDGET_PER_SECOND: f64 = 1.0;
/// A call that would wait longer than this for the budget gives up instead.
const LONGEST_QUEUE: Duration = Duration::from_secs(120);

/// The budget and the pause that all calls of one client share.
#[derive(Debug)]
pub(super) struct Retries {
    policy: Policy,
    bucket: Mutex<Bucket>,
    /// No call is sent before this instant: a reply asked for it with `Retry-After`.
    not_before: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Bucket {
    /// Negative: calls that wait have taken tokens in advance.
    tokens: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// Takes one token and gives the wait for it; `None`: the wait would be too long, and no token was taken.
    fn take(&mut self, now: Instant) -> Option<Duration> {
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.tokens = (self.tokens + since.as_secs_f64() * BUDGET_PER_SECOND).min(BUDGET);
        let wait = Duration::from_secs_f64((1.0 - self.tokens).max(0.0) / BUDGET_PER_SECOND);
        if wait > LONGEST_QUEUE {
            return None;
        }
        self.tokens -= 1.0;
        Some(wait)
    }
}

impl Retries {
    pub fn new(policy: Policy) -> Self {
        Self { policy, bucket: Mutex::new(Bucket { tokens: BUDGET, at: None }), not_before: Mutex::default() }
    }

    /// A reply to one call asked for a wait: every call waits.
    pub fn hold_all(&self, asked: Duration) {
        let until = Instant::now() + asked.min(self.policy.longest_asked);
        let mut not_before = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        *not_before = (*not_before).max(Some(until));
    }

    /// Waits until the server takes calls again.
    pub async fn turn(&self) {
        loop {
            let until = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
            match until {
                // Another reply may move the instant while this call waits.
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }

    /// The tries of one call.
    pub fn start(&self) -> Tries<'_> {
        Tries { retries: self, made: 1 }
    }
}

/// The tries of one call so far.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    retries: &'a Retries,
    made: u32,
}

impl Tries<'_> {
    /// Waits until the call may be tried again.
    ///
    /// # Errors
    /// The given error, when it is final or the tries are used up.
    pub async fn pause(&mut self, error: ApiError) -> Result<(), ApiError> {
        let Some(wait) = self.wait(&error) else { return Err(error) };
        tracing::debug!(call = error.call, tries = self.made, wait_ms = wait.as_millis(), "trying again: {error}");
        self.made += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn wait(&self, error: &ApiError) -> Option<Duration> {
        let policy = &self.retries.policy;
        if self.made >= policy.tries || !error.is_retryable() {
            return None;
        }
        let queued = self.retries.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())?;
        let first = if error.class == Class::RateLimited { policy.first_limited } else { policy.first };
        let doubled = first.saturating_mul(1 << (self.made - 1).min(16)).min(policy.longest);
        // Full jitter; the wait that the server asked for is the minimum.
        let drawn = doubled.mul_f64(fastrand::f64());
        let asked = error.retry_after.map_or(Duration::ZERO, |asked| asked.min(policy.longest_asked));
        Some(queued.max(drawn).max(asked))
    }
}

/// Reads `Retry-After`: seconds, or a date.
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return (seconds >= 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    // A date in the past asks for nothing.
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(class: Class) -> ApiError {
        ApiError::new("try", class, "")
    }

    #[test]
    fn pauses_grow_and_end() {
        let retries = Retries::new(Policy::STANDARD);
        let mut tries = retries.start();
        for most in [500, 1000, 2000, 4000, 8000] {
            let wait = tries.wait(&error(Class::Transient)).expect("another try");
            assert!(wait <= Duration::from_millis(most), "{wait:?}");
            tries.made += 1;
        }
        assert_eq!(tries.wait(&error(Class::Transient)), None);
        assert_eq!(retries.start().wait(&error(Class::Account)), None);
    }

    #[test]
    fn the_server_is_heard_within_bounds() {
        let retries = Retries::new(Policy::STANDARD);
        let mut limited = error(Class::RateLimited);
        limited.retry_after = Some(Duration::from_secs(90));
        assert_eq!(retries.start().wait(&limited), Some(Duration::from_secs(90)));
        limited.retry_after = Some(Duration::MAX);
        assert_eq!(retries.start().wait(&limited), Some(Duration::from_secs(120)));
        limited.should_retry = Some(false);
        assert_eq!(retries.start().wait(&limited), None);
        let mut bad = error(Class::BadRequest);
        assert_eq!(retries.start().wait(&bad), None);
        bad.should_retry = Some(true);
        assert!(retries.start().wait(&bad).is_some());
        let mut broke = error(Class::Account);
        broke.should_retry = Some(true);
        assert_eq!(retries.start().wait(&broke), None, "an empty wallet stays empty");
    }

    #[test]
    fn the_budget_is_one_for_all() {
        let mut bucket = Bucket { tokens: BUDGET, at: None };
        let now = Instant::now();
        for _ in 0..20 {
            assert_eq!(bucket.take(now), Some(Duration::ZERO));
        }
        assert_eq!(bucket.take(now), Some(Duration::from_secs(1)));
        assert_eq!(bucket.take(now), Some(Duration::from_secs(2)));
        assert_eq!(bucket.take(now + Duration::from_secs(10)), Some(Duration::ZERO));
        bucket.tokens = -200.0;
        assert_eq!(bucket.take(now + Duration::from_secs(10)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn r10_20_what_one_call_was_told_holds_all() {
        let retries = Retries::new(Policy::STANDARD);
        let began = Instant::now();
        retries.turn().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        retries.hold_all(Duration::from_secs(30));
        retries.hold_all(Duration::from_secs(7));
        retries.turn().await;
        assert_eq!(began.elapsed(), Duration::from_secs(30), "the longest counts");
        retries.hold_all(Duration::MAX);
        retries.turn().await;
        assert_eq!(began.elapsed(), Duration::from_secs(150), "within bounds");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_480 - 30);
        for (text, seconds) in [
            ("7", Some(7.0)),
            (" 0.5 ", Some(0.5)),
            ("-1", None),
            ("soon", None),
            ("NaN", None),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(30.0)),
            ("Tue, 20 Oct 2015 07:28:00 GMT", Some(0.0)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0.0)),
            ("Wed, 21 Foo 2015 07:28:00 GMT", None),
        ] {
            assert_eq!(parse_retry_after(text, now), seconds.map(Duration::from_secs_f64), "{text}");
        }
        assert_eq!(parse_retry_after("1e300", now), Some(Duration::MAX));
    }
}
