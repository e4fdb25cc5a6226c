//! Any `Retry-After` is a wait within the limit or none, and seconds mean what they say.

#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use variance_connector::backoff::{MAX_RETRY_AFTER, retry_after};

fuzz_target!(|input: (u64, u32, &[u8])| {
    let (seconds, nanoseconds, value) = input;
    let since_1970 = Duration::new(seconds >> 1, nanoseconds % 1_000_000_000);
    let Some(now) = SystemTime::UNIX_EPOCH.checked_add(since_1970) else { return };
    let wait = retry_after(value, now);
    assert!(wait.is_none_or(|wait| !wait.is_zero() && wait <= MAX_RETRY_AFTER), "{wait:?}");
    let digits = value.trim_ascii();
    if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
        // Digit by digit, as far as the limit.
        let limit = MAX_RETRY_AFTER.as_secs();
        let seconds = digits.iter().fold(0, |sum, digit| limit.min(sum * 10 + u64::from(digit - b'0')));
        assert_eq!(wait, (seconds > 0).then_some(Duration::from_secs(seconds)));
    } else if let Some(wait) = wait {
        // For a date, a second later the wait is a second shorter, unless the limit hides that.
        let later = retry_after(value, now + Duration::from_secs(1)).unwrap_or_default();
        assert!(later == MAX_RETRY_AFTER || later == wait.saturating_sub(Duration::from_secs(1)));
    }
});
