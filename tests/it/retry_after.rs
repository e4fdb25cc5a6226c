//! `Retry-After`, as Variance means it and as it never should be.

use std::{
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use tokio::task::JoinSet;
use variance_connector::backoff::MAX_RETRY_AFTER;

use crate::{
    harness::Service,
    variance::{Behaviour, Variance},
};

const EVENT: &str = r#"{"event":"e","uuid":"a","distinct_id":"d"}"#;

/// Starts a stand-in that answers once with these header lines and then takes everything.
async fn once(status: u16, headers: &str) -> Variance {
    let variance = Variance::start().await;
    let first = Mutex::new(Some(Behaviour::StatusWith(status, format!("{headers}\r\n"))));
    variance.script(move |_| first.lock().unwrap().take().unwrap_or(Behaviour::Status(200)));
    variance
}

#[tokio::test]
async fn one_that_is_unreadable_past_or_zero_is_as_good_as_none() {
    let mut rows = JoinSet::new();
    for (status, headers) in [
        (503, "Retry-After: -1"),
        (503, "Retry-After: +5"),
        (503, "Retry-After: 0"),
        (503, "Retry-After: 000"),
        (503, "Retry-After: 1.5"),
        (503, "Retry-After: 1e9"),
        (503, "Retry-After: 0x10"),
        (503, "Retry-After: 1 2"),
        (503, "Retry-After: inf"),
        (503, "Retry-After: NaN"),
        (503, "Retry-After: soon"),
        (503, "Retry-After:"),
        (503, "Retry-After: \t "),
        (503, "Retry-After: \u{661}\u{662}"),
        (503, "Retry-After: \u{b2}"),
        (503, "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT"),
        (503, "Retry-After: Sunday, 06-Nov-94 08:49:37 GMT"),
        (503, "Retry-After: Fri, 32 Dec 9999 23:59:59 GMT"),
        (503, "Retry-After: Fri, 31 Dec 99999 23:59:59 GMT"),
        (503, "Retry-After: 9999-12-31T23:59:59Z"),
        (503, "Retry-After: NaN\r\nRetry-After: 120"),
        (429, "Retry-After: -120"),
        // The header means something with 429 and 503 alone.
        (500, "Retry-After: 120"),
        (502, "Retry-After: 120"),
        (403, "Retry-After: 120"),
    ] {
        rows.spawn(async move {
            let variance = once(status, headers).await;
            let service = Service::start(&variance, |_| {}).await;
            assert_eq!(service.post("/webhook", EVENT).await.status, 200, "{status}, {headers:?}");
            assert_eq!(variance.ids(), ["a", "a"], "{status}, {headers:?}");
            let openings = service.metric("variance_connector_breaker_openings_total").await;
            assert_eq!(openings, 0.0, "{status}, {headers:?}");
        });
    }
    while let Some(row) = rows.join_next().await {
        row.unwrap();
    }
}

#[tokio::test]
async fn one_that_asks_for_time_gets_it_at_once_but_never_more_than_its_limit() {
    const MINUTE: Duration = Duration::from_secs(60);
    let in_two_minutes = format!("Retry-After: {}", httpdate::fmt_http_date(SystemTime::now() + 2 * MINUTE));
    let mut rows = JoinSet::new();
    for (headers, least, most) in [
        ("Retry-After: 120".to_owned(), MINUTE, 2 * MINUTE),
        ("retry-AFTER:\t120 ".to_owned(), MINUTE, 2 * MINUTE),
        (in_two_minutes, MINUTE, 2 * MINUTE),
        ("Retry-After: 120\r\nRetry-After: NaN".to_owned(), MINUTE, 2 * MINUTE),
        ("Retry-After: 301".to_owned(), 4 * MINUTE, MAX_RETRY_AFTER),
        ("Retry-After: 1000000000".to_owned(), 4 * MINUTE, MAX_RETRY_AFTER),
        (format!("Retry-After: {}", "9".repeat(5000)), 4 * MINUTE, MAX_RETRY_AFTER),
        ("Retry-After: Fri, 31 Dec 9999 23:59:59 GMT".to_owned(), 4 * MINUTE, MAX_RETRY_AFTER),
    ] {
        for status in [429, 503] {
            let headers = headers.clone();
            rows.spawn(async move {
                let variance = once(status, &headers).await;
                let service = Service::start(&variance, |settings| {
                    settings.server.webhook_deadline = Duration::from_millis(200);
                })
                .await;
                while service.get("/healthz").await.json()["destination"]["state"] != "paused" {
                    assert_eq!(service.post("/webhook", EVENT).await.status, 503, "{headers:?}");
                }
                let paused = service.outbox.paused().unwrap();
                assert!((least..=most).contains(&paused), "{status}, {headers:?}: {paused:?}");
                assert_eq!(variance.ids(), ["a"], "{headers:?}: it took one attempt");
                let reply = service.post("/webhook", EVENT).await;
                let told: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
                assert!((1..=most.as_secs()).contains(&told), "{status}, {headers:?}: {told}");
            });
        }
    }
    while let Some(row) = rows.join_next().await {
        row.unwrap();
    }
}

#[tokio::test]
async fn when_the_time_that_was_asked_for_is_over_the_event_arrives() {
    const SECOND: Duration = Duration::from_secs(1);
    let variance = once(503, "Retry-After: 1").await;
    let service = Service::start(&variance, |_| {}).await;
    let start = Instant::now();
    let reply = service.post("/webhook", EVENT).await;
    assert_eq!(reply.status, 200, "a request under way waits through the pause");
    assert!(start.elapsed() >= SECOND);
    assert_eq!(variance.ids(), ["a", "a"]);
}
