//! A limit for log lines about a fault that repeats.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

/// The least time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts the occurrences of one kind of fault between two lines.
#[derive(Debug, Default)]
pub struct Repeated(Mutex<Since>);

#[derive(Debug, Default)]
struct Since {
    last_line: Option<Instant>,
    unsaid: u64,
}

impl Repeated {
    /// Notes an occurrence. If the last line is long enough ago, returns how many occurrences the next line stands for.
    pub fn note(&self, now: Instant) -> Option<u64> {
        let mut since = self.0.lock().expect("no panic while it is held");
        since.unsaid += 1;
        if since.last_line.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            return None;
        }
        since.last_line = Some(now);
        Some(std::mem::take(&mut since.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_of_all_since_the_one_before() {
        let (repeated, start) = (Repeated::default(), Instant::now());
        for (milliseconds, told) in [
            (0, Some(1)),
            (1, None),
            (9_999, None),
            (10_000, Some(3)),
            (19_999, None),
            (60_000, Some(2)),
            (60_001, None),
        ] {
            assert_eq!(repeated.note(start + Duration::from_millis(milliseconds)), told, "{milliseconds} ms");
        }
    }
}
