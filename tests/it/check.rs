//! `check` prints the configuration, and says what Variance's answer means.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::{
    harness::AUTHORIZATION,
    program::Program,
    tls::{self, AUTHORITY, NO_AUTHORITY},
    variance::{Behaviour, Variance},
};

#[tokio::test]
async fn every_setting_is_shown_with_its_origin_and_no_secret_whole() {
    let variance = Variance::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (file, secret) = (directory.path().join("connector.toml"), directory.path().join("secret"));
    std::fs::write(&secret, "whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0\n").unwrap();
    let text = format!("[filter]\nexclude = [\"a\", \"b*\"]\n[server]\nsigning_secret_file = {secret:?}\n");
    std::fs::write(&file, text).unwrap();
    let ended = Program::new(["check", "--config", file.to_str().unwrap(), "--listen", "0.0.0.0:80"])
        .to(&variance)
        .env("CONNECTOR_TOKEN", "a-token-of-mine-with-entropy")
        .env("CONNECTOR_SHUTDOWN_GRACE", "11s")
        .env("container", "oci")
        .run()
        .await;
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    let lines: Vec<Vec<_>> = ended
        .out
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let file = file.to_str().unwrap();
    for expected in [
        ["variance.authorization", "26 characters ending in \"al\"", "environment variable VARIANCE_AUTHORIZATION"],
        ["server.listen", "0.0.0.0:80", "flag --listen"],
        ["server.token", "28 characters ending in \"py\"", "environment variable CONNECTOR_TOKEN"],
        ["server.signing_secret", "42 characters ending in \"V0\"", &format!("file {}", secret.display())],
        ["filter.exclude", "a, b*", &format!("{file} line 2")],
        ["delivery.retry_for", "1h", "default"],
    ] {
        assert!(lines.contains(&expected.to_vec()), "{expected:?} in {}", ended.out);
    }
    assert!(ended.out.contains("\nwarning: delivery.shutdown_grace"), "{}", ended.out);
    for secret in ["variance-credential", "a-token-of-mine", "c2VjcmV0"] {
        assert!(!ended.out.contains(secret), "{secret} in {}", ended.out);
    }
    assert!(variance.received().is_empty(), "nothing is sent unasked");
}

#[tokio::test]
async fn what_is_wrong_with_the_configuration_is_told_and_exits_with_64() {
    let run = |format: &'static str| {
        Program::new(["check", "--send", "--format", format]).env("CONNECTOR_CALLS", "capture,walk")
    };
    let ended = run("text").run().await;
    assert_eq!((ended.code, ended.out.as_str()), (64, ""));
    for name in ["error: variance.webhook_url", "error: variance.authorization", "error: filter.calls"] {
        assert!(ended.err.contains(name), "{}", ended.err);
    }
    let ended = run("json").run().await;
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((ended.code, report["problems"].as_array().unwrap().len()), (64, 3), "{report}");
}

#[tokio::test]
async fn the_test_event_is_one_marked_track_whatever_the_filters_say() {
    let variance = Variance::start().await;
    let ended = Program::new(["check", "--send"]).to(&variance).env("CONNECTOR_CALLS", "page").run().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.out.lines().last(), Some("accepted: Variance has the test event"));
    let received = variance.received();
    assert_eq!((received.len(), received[0].headers["authorization"].as_str()), (1, AUTHORIZATION));
    let body = received[0].json();
    assert_eq!((&body["type"], &body["event"]), (&json!("track"), &json!("variance-connector test")));
    assert_eq!((&body["properties"]["test"], &body["userId"]), (&json!(true), &json!("variance-connector-test")));
}

#[tokio::test]
async fn what_an_answer_means_is_said_in_words_and_for_programs() {
    let variance = Variance::start().await;
    let moved = |location| Behaviour::StatusWith(308, format!("Location: {location}"));
    for (behaviour, result, status, words) in [
        (Behaviour::Status(401), "credential_refused", json!(401), "credential refused: Variance answered 401"),
        (Behaviour::Status(404), "wrong_path", json!(404), "no webhook at the path of"),
        (moved("https://me:pass@elsewhere.example/hook"), "redirect", json!(308), "to https://elsewhere.example. "),
        (moved("/hooks/posthog/"), "redirect", json!(308), "to another path of the same host. "),
        (moved("mailto:me"), "redirect", json!(308), "308 Permanent Redirect. "),
        (Behaviour::Status(308), "redirect", json!(308), "308 Permanent Redirect. "),
        (Behaviour::Status(400), "event_refused", json!(400), "event refused: Variance answered 400"),
        (Behaviour::Status(429), "busy", json!(429), "busy: Variance answered 429"),
        (Behaviour::Status(500), "server_error", json!(500), "server error: Variance answered 500"),
        (Behaviour::BytesThenSilence(Vec::new()), "timed_out", Value::Null, "did not answer within 300ms"),
        (Behaviour::Reset, "connection_broken", Value::Null, "connection broken: 127.0.0.1"),
    ] {
        variance.always(behaviour);
        let timeout = if result == "timed_out" { "300ms" } else { "30s" };
        let program = Program::new(["check", "--send", "--format", "json"]).to(&variance);
        let ended = program.env("CONNECTOR_ATTEMPT_TIMEOUT", timeout).run().await;
        let send = serde_json::from_str::<Value>(&ended.out).unwrap()["send"].take();
        assert_eq!((ended.code, &send["result"], &send["status"]), (1, &json!(result), &status), "{send}");
        assert!(send["text"].as_str().unwrap().contains(words), "{send}");
        assert_eq!(ended.err, "");
    }
    variance.always(Behaviour::Status(403));
    let ended = Program::new(["check", "--send", "--quiet"]).to(&variance).run().await;
    assert_eq!((ended.code, ended.out.lines().count()), (1, 1), "{ended:?}");
    assert!(ended.out.starts_with("credential refused: Variance answered 403"), "{ended:?}");
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_is_told_by_why() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (tls, _) = tls::server();
    for (url, authority, words) in [
        (format!("http://{closed}/"), AUTHORITY, "cannot connect: nothing accepts connections at 127.0.0.1"),
        (
            "https://no-such-host.invalid/".to_owned(),
            AUTHORITY,
            "cannot resolve: there is no address for no-such-host.invalid",
        ),
        (format!("https://localhost:{tls}/"), AUTHORITY, "TLS name mismatch: the certificate is not for localhost"),
        (format!("https://localhost:{tls}/"), NO_AUTHORITY, "no trusted TLS: localhost"),
    ] {
        let program = Program::new(["check", "--send", "-q"]).env("VARIANCE_AUTHORIZATION", AUTHORIZATION);
        let ended = program.env("VARIANCE_WEBHOOK_URL", &url).env("SSL_CERT_FILE", authority).run().await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.out.starts_with(words), "{url}: {ended:?}");
    }
}
