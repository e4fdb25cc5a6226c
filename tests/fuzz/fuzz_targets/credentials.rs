//! No headers and no body cause a panic, and none prove a sender that has no credential. A right signature counts
//! beside any others, for its own body alone.

#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use ring::hmac;
use variance_connector::{
    auth::{Auth, AuthSettings, Proof, SigningSecret, Token},
    inflate::Encoding,
    json::Raw,
};

/// The timestamp of the Standard Webhooks specification's example, so that fuzzed signatures can be fresh.
const NOW: Duration = Duration::from_secs(1_614_265_330);

const SIGNING_KEY: &[u8] = b"a key that no fuzzer will come upon";

/// The most signatures of one request that are checked.
const MAX_SIGNATURES: usize = 16;

static AUTH: LazyLock<Auth> = LazyLock::new(|| {
    Auth::new(AuthSettings {
        tokens: vec!["a token that no fuzzer will come upon".parse().expect("long enough")],
        signing_secrets: vec![STANDARD.encode(SIGNING_KEY).parse().expect("long enough")],
        ..AuthSettings::default()
    })
});

fuzz_target!(|data: &[u8]| {
    // The input is the body, then a line for each header value, whose first byte selects the header.
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
        let proof = AUTH.judge_head(&headers, SystemTime::UNIX_EPOCH + NOW, takes_api_key);
        assert_ne!(proof, Ok(Proof::Proven));
    }
    assert!(!AUTH.signature_is_valid(&headers, body));
    let _ = Encoding::of(&headers);
    if let Ok(text) = std::str::from_utf8(body) {
        assert!(!Raw::parse(text).is_ok_and(|api_key| AUTH.api_key_is_valid(api_key)));
        let _ = (text.parse::<Token>(), text.parse::<SigningSecret>());
    }
    check_signed(headers, body);
});

/// Adds a right signature after those that are there.
fn check_signed(mut headers: HeaderMap, body: &[u8]) {
    let [id, timestamp] = ["webhook-id", "webhook-timestamp"].map(|name| headers.get(name).cloned());
    let (Some(id), Some(timestamp)) = (id, timestamp) else { return };
    let content = [id.as_bytes(), timestamp.as_bytes(), body].join(&b'.');
    let right = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SIGNING_KEY), &content);
    let others = headers.get_all("webhook-signature").iter();
    let others: usize = others.map(|value| value.as_bytes().split(|&byte| byte == b' ').count()).sum();
    let signature = format!("v1,{}", STANDARD.encode(right));
    headers.append("webhook-signature", signature.parse().expect("it is ASCII"));

    let is_usable = !id.is_empty() && !id.as_bytes().contains(&b'.') && others < MAX_SIGNATURES;
    assert_eq!(AUTH.signature_is_valid(&headers, body), is_usable);
    assert!(!AUTH.signature_is_valid(&headers, &[body, b" "].concat()));
    // Only the headers decide whether it is also fresh.
    let proof = AUTH.judge_head(&headers, SystemTime::UNIX_EPOCH + NOW, false);
    assert_ne!(proof, Ok(Proof::Proven), "before the body has been read");
    let fresh = format!("{}", NOW.as_secs());
    if is_usable && timestamp.as_bytes() == fresh.as_bytes() {
        assert!(matches!(proof, Ok(Proof::Unproven { signature: true, api_key: false, .. })), "{proof:?}");
    }
}
