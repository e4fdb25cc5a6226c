//! No headers and no body panic, and none prove a sender that has no credential.

#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use variance_connector::{
    auth::{Auth, Settings, SigningSecret, Token, Verdict},
    inflate::Encoding,
    json::Raw,
};

/// The timestamp of the Standard Webhooks specification's example: what the fuzzer finds is at least once fresh.
const NOW: Duration = Duration::from_secs(1_614_265_330);

static AUTH: LazyLock<Auth> = LazyLock::new(|| {
    Auth::new(Settings {
        tokens: vec!["a token that no fuzzer will come upon".parse().expect("long enough")],
        signing_secrets: vec!["whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX".parse().expect("long enough")],
    })
});

fuzz_target!(|data: &[u8]| {
    // The body, then header values, a line each, whose first byte says of which header.
    let mut lines = data.split(|&byte| byte == b'\n');
    let body = lines.next().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let Some((&name, value)) = line.split_first() else { continue };
        let name = match name {
            b'a' => "authorization",
            b'x' => "x-connector-token",
            b'i' => "webhook-id",
            b't' => "webhook-timestamp",
            b's' => "webhook-signature",
            _ => "content-encoding",
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    for takes_api_key in [false, true] {
        let verdict = AUTH.judge_head(&headers, SystemTime::UNIX_EPOCH + NOW, takes_api_key);
        assert_ne!(verdict, Verdict::Proven);
    }
    assert!(!AUTH.signature_is_valid(&headers, body));
    let _ = Encoding::of(&headers);
    if let Ok(text) = std::str::from_utf8(body) {
        assert!(!Raw::parse(text).is_ok_and(|api_key| AUTH.api_key_is_valid(api_key)));
        let _ = (text.parse::<Token>(), text.parse::<SigningSecret>());
    }
});
