//! Delays before the next attempt.

use std::time::{Duration, SystemTime};

use fastrand::Rng;

/// The longest wait that a `Retry-After` can ask for.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(5 * 60);

/// A delay that doubles with each attempt up to a cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
}

impl Backoff {
    /// Creates a backoff of `base` after the first failure, doubled after each further one up to `cap`.
    ///
    /// # Panics
    /// If `base` is zero or over `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        assert!(!base.is_zero() && base.as_nanos() <= cap.as_nanos(), "a backoff needs 0 < base <= cap");
        Self { base, cap }
    }

    /// Draws a delay between nothing and the full one after `failures` failures ("full jitter"), so that senders that
    /// failed together do not come back together.
    pub fn full_jitter(&self, failures: u32, rng: &mut Rng) -> Duration {
        self.full(failures).mul_f64(rng.f64())
    }

    /// Draws a delay between half and all of the full one ("equal jitter"), for a pause that must not be too short.
    pub fn equal_jitter(&self, failures: u32, rng: &mut Rng) -> Duration {
        self.full(failures).mul_f64(0.5 + 0.5 * rng.f64())
    }

    /// Returns the delay after `failures` failures; none counts as one.
    fn full(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }
}

/// Returns the wait that a `Retry-After` asks for: whole seconds or an HTTP date (RFC 9110, section 10.2.3), at most
/// [`MAX_RETRY_AFTER`]. Returns `None` if it is zero, in the past or neither of the two.
pub fn retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let value = std::str::from_utf8(value).ok()?.trim_ascii();
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).ok()?
    };
    (!wait.is_zero()).then_some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_delay_stays_between_nothing_and_its_doubled_base_or_cap(failures in 1..u32::MAX, seed: u64) {
            let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
            let full = Duration::from_millis(100 * 2_u64.pow((failures - 1).min(20))).min(Duration::from_secs(30));
            let mut rng = Rng::with_seed(seed);
            prop_assert!(backoff.full_jitter(failures, &mut rng) <= full);
            let equal = backoff.equal_jitter(failures, &mut rng);
            prop_assert!(full / 2 <= equal && equal <= full);
        }

        #[test]
        fn no_retry_after_is_over_the_limit_or_zero(value: Vec<u8>, now: u32) {
            let wait = retry_after(&value, SystemTime::UNIX_EPOCH + Duration::from_secs(now.into()));
            prop_assert!(wait.is_none_or(|wait| !wait.is_zero() && wait <= MAX_RETRY_AFTER));
        }

        #[test]
        fn whole_seconds_are_read_whatever_surrounds_them(seconds: u64, before in "[ \t]{0,3}0{0,3}", after in "[ \t]{0,3}") {
            let value = format!("{before}{seconds}{after}");
            let wait = Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER)).filter(|wait| !wait.is_zero());
            prop_assert_eq!(retry_after(value.as_bytes(), SystemTime::now()), wait);
        }

        #[test]
        fn a_date_is_as_far_away_as_it_says(now in 1000..200_000_000_000_u64, then in 0..2000_u64) {
            let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let value = httpdate::fmt_http_date(at(now - 1000 + then));
            let away = then.checked_sub(1000).filter(|away| *away > 0);
            let wait = away.map(|away| Duration::from_secs(away).min(MAX_RETRY_AFTER));
            prop_assert_eq!(retry_after(value.as_bytes(), at(now)), wait);
        }

        #[test]
        fn what_has_more_than_digits_is_no_number(value in "([0-9]{1,5}[-+.a-zA-Z_,: \u{660}-\u{669}]{1,3}|[-+])[0-9]{1,5}") {
            prop_assert_eq!(retry_after(value.as_bytes(), SystemTime::now()), None);
        }
    }

    #[test]
    fn full_jitter_spreads_over_the_whole_range() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));
        let mut rng = Rng::with_seed(7);
        let delays: Vec<_> = (0..1000).map(|_| backoff.full_jitter(1, &mut rng).as_millis()).collect();
        for tenth in 0..10 {
            let count = delays.iter().filter(|&&delay| delay / 100 == tenth).count();
            assert!((60..=140).contains(&count), "{count} of 1000 delays in the tenth number {tenth}");
        }
    }

    #[test]
    fn retry_after_is_read_by_its_grammar() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, seconds) in [
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("301", Some(300)),
            ("99999999999999999999999999", Some(300)),
            ("Sun, 06 Nov 1994 08:49:57 GMT", Some(20)),
            ("Sunday, 06-Nov-94 08:49:57 GMT", Some(20)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(300)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Thu, 01 Jan 1970 00:00:00 GMT", None),
            ("0", None),
            ("-1", None),
            ("+5", None),
            ("1.5", None),
            ("inf", None),
            ("NaN", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value.as_bytes(), now), seconds.map(Duration::from_secs), "{value:?}");
        }
    }
}
