use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;

const TOKEN: &str = "the right token, longer than 16";
const OTHER_TOKEN: &str = "another-token-that-is-right";

/// The example of the specification's reference libraries.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const TIMESTAMP: u64 = 1_614_265_330;
const BODY: &[u8] = b"{\"test\": 2432232314}";
const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

const OTHER_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const WRONG_SIGNATURE: &str = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn auth(tokens: &[&str], signing_secrets: &[&str]) -> Auth {
    Auth::new(AuthSettings {
        tokens: tokens.iter().map(|token| token.parse().unwrap()).collect(),
        signing_secrets: signing_secrets.iter().map(|secret| secret.parse().unwrap()).collect(),
        ..AuthSettings::default()
    })
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

fn signed(id: &str, timestamp: &str, signature: &str) -> HeaderMap {
    headers(&[("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)])
}

fn sign(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    let SigningSecret { key, .. } = secret.parse().unwrap();
    let content = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    format!("v1,{}", BASE64.encode(hmac::sign(&key, &content)))
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(TIMESTAMP)
}

#[test]
fn a_token_counts_in_every_header_that_may_hold_one() {
    use Denied::{NoToken, WrongToken};
    let auth = auth(&[OTHER_TOKEN, TOKEN], &[]);
    let bearer = format!("Bearer {TOKEN}");
    let prefix = format!("Bearer {}", &TOKEN[..TOKEN.len() - 1]);
    let longer = format!("Bearer {TOKEN}r");
    let (a, x) = ("authorization", "x-connector-token");
    for (what, pairs, expected) in [
        ("right", &[(a, &*bearer)][..], Ok(())),
        ("the other one", &[(a, &format!("Bearer {OTHER_TOKEN}"))], Ok(())),
        ("scheme in lower case", &[(a, &format!("bearer {TOKEN}"))], Ok(())),
        ("scheme in upper case, more spaces", &[(a, &format!("BEARER   {TOKEN} "))], Ok(())),
        ("bare", &[(a, TOKEN)], Ok(())),
        ("own header", &[(x, TOKEN)], Ok(())),
        ("missing", &[], Err(NoToken)),
        ("another header", &[("x-api-key", TOKEN)], Err(NoToken)),
        ("empty", &[(a, "")], Err(NoToken)),
        ("empty own header", &[(x, " ")], Err(NoToken)),
        ("a scheme alone", &[(a, "Bearer ")], Err(WrongToken)),
        ("wrong", &[(a, "Bearer something else entirely")], Err(WrongToken)),
        ("wrong in the own header", &[(x, "something else entirely")], Err(WrongToken)),
        ("prefix of the right one", &[(a, &prefix)], Err(WrongToken)),
        ("longer than the right one", &[(a, &longer)], Err(WrongToken)),
        ("other case", &[(a, &bearer.to_uppercase())], Err(WrongToken)),
        ("wrong scheme", &[(a, &format!("Basic {TOKEN}"))], Err(WrongToken)),
        ("no space", &[(a, &format!("Bearer{TOKEN}"))], Err(WrongToken)),
        ("both tokens at once", &[(a, &format!("Bearer {TOKEN},{OTHER_TOKEN}"))], Err(WrongToken)),
        ("a scheme in the own header", &[(x, &bearer)], Err(WrongToken)),
        ("wrong, then right", &[(a, "Bearer wrong"), (a, &bearer)], Ok(())),
        ("right, then wrong", &[(a, &bearer), (a, "Bearer wrong")], Ok(())),
        ("wrong beside right in the own header", &[(a, "Basic dTpw"), (x, TOKEN)], Ok(())),
        ("right beside wrong in the own header", &[(a, &bearer), (x, "wrong")], Ok(())),
        ("right beside half a signature", &[(a, &bearer), ("webhook-id", "1")], Ok(())),
    ] {
        let expected = expected.map(|()| Proof::Proven);
        assert_eq!(auth.judge_head(&headers(pairs), now(), false), expected, "{what}");
    }
}

#[test]
fn an_api_key_is_awaited_where_it_counts_and_tokens_are_known() {
    use Denied::{NoApiKey, NoSignature, NoToken, WrongToken};
    let unproven = |otherwise| Ok(Proof::Unproven { signature: false, api_key: true, otherwise });
    let wrong = headers(&[("authorization", "Bearer wrong")]);
    let right = headers(&[("authorization", TOKEN)]);
    let signature = signed(ID, &TIMESTAMP.to_string(), SIGNATURE);
    for (what, auth, headers, takes_api_key, expected) in [
        ("nothing yet", auth(&[TOKEN], &[SECRET]), HeaderMap::new(), true, unproven(NoApiKey)),
        ("a wrong token", auth(&[TOKEN], &[]), wrong.clone(), true, unproven(WrongToken)),
        ("another route", auth(&[TOKEN], &[SECRET]), HeaderMap::new(), false, Err(NoToken)),
        ("a signature that is not asked for", auth(&[TOKEN], &[]), signature, false, Err(NoToken)),
        ("no tokens", auth(&[], &[SECRET]), HeaderMap::new(), true, Err(NoSignature)),
        ("no tokens but one sent", auth(&[], &[SECRET]), wrong, true, Err(NoSignature)),
        ("no need", auth(&[TOKEN], &[]), right, true, Ok(Proof::Proven)),
    ] {
        assert_eq!(auth.judge_head(&headers, now(), takes_api_key), expected, "{what}");
    }
}

#[test]
fn an_api_key_is_compared_by_what_it_means() {
    let auth = auth(&[OTHER_TOKEN, "sixteen \"quoted\" é"], &[SECRET]);
    for (api_key, expected) in [
        (r#""another-token-that-is-right""#, true),
        (r#""\u0061nother-token-that-is-right""#, true),
        (r#""sixteen \"quoted\" \u00e9""#, true),
        (r#""sixteen \"quoted\" é""#, true),
        (r#""another-token-that-is-righ""#, false),
        (r#""another-token-that-is-right ""#, false),
        (r#""another-token-that-is-right\u0000""#, false),
        (r#""Bearer another-token-that-is-right""#, false),
        (r#""\ud83d""#, false),
        (r#""""#, false),
        ("[\"another-token-that-is-right\"]", false),
        ("null", false),
        ("1", false),
    ] {
        assert_eq!(auth.api_key_is_valid(Raw::parse(api_key).unwrap()), expected, "{api_key}");
    }
}

#[test]
fn everybody_may_send_where_nothing_is_asked() {
    let auth = auth(&[], &[]);
    assert_eq!(auth.judge_head(&HeaderMap::new(), now(), false), Ok(Proof::Proven));
    assert_eq!(auth.judge_head(&headers(&[("authorization", "Bearer any")]), now(), true), Ok(Proof::Proven));
    assert!(!auth.api_key_is_valid(Raw::parse("\"\"").unwrap()));
    assert!(!auth.signature_is_valid(&signed(ID, &TIMESTAMP.to_string(), SIGNATURE), BODY));
}

#[test]
fn a_signature_is_judged_by_its_headers_before_the_body() {
    use Denied::{
        NoToken, PartialSignature, StaleTimestamp, UnreadableSignature, UnreadableTimestamp, UnusableId, WrongSignature,
    };
    let auth = auth(&[TOKEN], &[SECRET]);
    let at = |seconds: u64| signed(ID, &seconds.to_string(), SIGNATURE);
    let timestamped = |timestamp| signed(ID, timestamp, SIGNATURE);
    let signature = |signature| signed(ID, &TIMESTAMP.to_string(), signature);
    let without = |name| {
        let mut headers = at(TIMESTAMP);
        headers.remove(name);
        headers
    };
    let many = [WRONG_SIGNATURE; 1000].join(" ");
    for (what, headers, expected) in [
        ("fresh", at(TIMESTAMP), Ok(())),
        ("five minutes old", at(TIMESTAMP - 300), Ok(())),
        ("five minutes ahead", at(TIMESTAMP + 300), Ok(())),
        ("five minutes and a second old", at(TIMESTAMP - 301), Err(StaleTimestamp)),
        ("five minutes and a second ahead", at(TIMESTAMP + 301), Err(StaleTimestamp)),
        ("from 1970", timestamped("0"), Err(StaleTimestamp)),
        ("in milliseconds", at(TIMESTAMP * 1000), Err(StaleTimestamp)),
        ("as far ahead as can be said", at(u64::MAX), Err(StaleTimestamp)),
        ("further", timestamped("18446744073709551616"), Err(UnreadableTimestamp)),
        ("negative", timestamped("-1614265330"), Err(UnreadableTimestamp)),
        ("the least of i64", timestamped("-9223372036854775808"), Err(UnreadableTimestamp)),
        ("a fraction", timestamped("1614265330.5"), Err(UnreadableTimestamp)),
        ("not a number", timestamped("now"), Err(UnreadableTimestamp)),
        ("infinite", timestamped("inf"), Err(UnreadableTimestamp)),
        ("an empty timestamp", timestamped(""), Err(UnreadableTimestamp)),
        ("no headers", HeaderMap::new(), Err(NoToken)),
        ("no id", without("webhook-id"), Err(PartialSignature)),
        ("no timestamp", without("webhook-timestamp"), Err(PartialSignature)),
        ("no signature", without("webhook-signature"), Err(PartialSignature)),
        ("an empty id", signed("", &TIMESTAMP.to_string(), SIGNATURE), Err(UnusableId)),
        ("an id with a stop", signed("a.1", &TIMESTAMP.to_string(), SIGNATURE), Err(UnusableId)),
        ("an empty signature", signature(""), Err(UnreadableSignature)),
        ("no version", signature(&SIGNATURE[3..]), Err(UnreadableSignature)),
        ("another version", signature(&format!("v2,{}", &SIGNATURE[3..])), Err(UnreadableSignature)),
        ("the version of public keys", signature(&format!("v1a,{}", &SIGNATURE[3..])), Err(UnreadableSignature)),
        ("a signature cut short", signature(&SIGNATURE[..20]), Err(UnreadableSignature)),
        ("a signature in hexadecimal", signature(&format!("v1,{}", "ab".repeat(32))), Err(UnreadableSignature)),
        ("a wrong signature", signature(WRONG_SIGNATURE), Ok(())),
        ("a thousand of them", signature(&many), Ok(())),
    ] {
        let expected =
            expected.map(|()| Proof::Unproven { signature: true, api_key: false, otherwise: WrongSignature });
        assert_eq!(auth.judge_head(&headers, now(), false), expected, "{what}");
    }
    let both = Ok(Proof::Unproven { signature: true, api_key: true, otherwise: WrongSignature });
    assert_eq!(auth.judge_head(&at(TIMESTAMP), now(), true), both);
    let before_1970 = UNIX_EPOCH - Duration::from_secs(1_000_000);
    assert_eq!(auth.judge_head(&at(TIMESTAMP), before_1970, false), Err(StaleTimestamp));
}

#[test]
fn a_signature_covers_id_timestamp_and_body() {
    let auth = auth(&[TOKEN], &[OTHER_SECRET, SECRET]);
    let timestamp = &*TIMESTAMP.to_string();
    let version_2 = format!("v2,{}", &SIGNATURE[3..]);
    let by_other = sign(OTHER_SECRET, ID, timestamp, BODY);
    let by_stranger = sign("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", ID, timestamp, BODY);
    let compressed = b"\x1f\x8b\xff not UTF-8";
    let of_compressed = sign(SECRET, ID, timestamp, compressed);
    let unpadded = SIGNATURE.trim_end_matches('=');
    let last_that_counts = format!("{}{SIGNATURE}", format!("{WRONG_SIGNATURE} ").repeat(MAX_SIGNATURES - 1));
    let one_too_late = format!("{}{SIGNATURE}", format!("{WRONG_SIGNATURE} ").repeat(MAX_SIGNATURES));
    for (what, headers, body, expected) in [
        ("the specification's example", signed(ID, timestamp, SIGNATURE), BODY, true),
        ("another secret", signed(ID, timestamp, &by_other), BODY, true),
        ("a secret that nobody knows", signed(ID, timestamp, &by_stranger), BODY, false),
        ("altered body", signed(ID, timestamp, SIGNATURE), b"{\"test\": 2432232315}", false),
        ("longer body", signed(ID, timestamp, SIGNATURE), b"{\"test\": 2432232314} ", false),
        ("no body", signed(ID, timestamp, SIGNATURE), b"", false),
        ("altered id", signed("msg_p5jXN8AQM9LWM0D4loKWxJeK", timestamp, SIGNATURE), BODY, false),
        ("altered timestamp", signed(ID, "1614265331", SIGNATURE), BODY, false),
        ("the same timestamp in other digits", signed(ID, "01614265330", SIGNATURE), BODY, false),
        ("altered signature", signed(ID, timestamp, WRONG_SIGNATURE), BODY, false),
        ("not padded", signed(ID, timestamp, unpadded), BODY, true),
        ("a body that is no text", signed(ID, timestamp, &of_compressed), compressed, true),
        ("wrong, then right", signed(ID, timestamp, &format!("{WRONG_SIGNATURE} {SIGNATURE}")), BODY, true),
        ("right, then wrong", signed(ID, timestamp, &format!("{SIGNATURE} {WRONG_SIGNATURE}")), BODY, true),
        ("beside another version", signed(ID, timestamp, &format!("{version_2}  {SIGNATURE}")), BODY, true),
        ("another version alone", signed(ID, timestamp, &version_2), BODY, false),
        ("beside rubbish", signed(ID, timestamp, &format!(", v1 v1, v1,! {SIGNATURE}")), BODY, true),
        ("the last that is looked at", signed(ID, timestamp, &last_that_counts), BODY, true),
        ("the first that is not", signed(ID, timestamp, &one_too_late), BODY, false),
        ("no headers", HeaderMap::new(), BODY, false),
    ] {
        assert_eq!(auth.signature_is_valid(&headers, body), expected, "{what}");
    }
    let mut in_two_headers = signed(ID, timestamp, WRONG_SIGNATURE);
    in_two_headers.append("webhook-signature", SIGNATURE.parse().unwrap());
    assert!(auth.signature_is_valid(&in_two_headers, BODY));
    assert!(
        auth.signature_is_valid(&in_two_headers, BODY),
        "an id may come again: PostHog keeps it when it tries again"
    );
}

#[test]
fn credentials_that_are_too_weak_are_not_taken() {
    for (token, is_taken) in [
        ("sixteen letters!", true),
        ("sechzehn Zeichöö", true),
        ("fifteen letters", false),
        ("", false),
        ("                 ", false),
        ("short            ", false),
        (" sixteen letters!", false),
        ("sixteen letters!\n", false),
        ("sixteen\0letters!", false),
    ] {
        assert_eq!(Token::from_str(token).is_ok(), is_taken, "{token:?}");
    }
    for (secret, is_taken) in [
        (SECRET, true),
        (&SECRET["whsec_".len()..], true),
        ("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", true),
        ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", true),
        (&SECRET[..SECRET.len() - 4], false),
        ("whsec_", false),
        ("", false),
        ("whsec_not!!valid@@base64@@not!!valid@@base64", false),
        ("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqrTwjUPD8ILPZIo2", false),
    ] {
        assert_eq!(SigningSecret::from_str(secret).is_ok(), is_taken, "{secret:?}");
    }
}

#[test]
fn nothing_that_is_printed_holds_a_credential() {
    let settings = AuthSettings {
        tokens: vec![TOKEN.parse().unwrap()],
        signing_secrets: vec![SECRET.parse().unwrap()],
        ..AuthSettings::default()
    };
    assert_eq!(
        format!("{settings:?} {:?}", Auth::new(settings.clone())),
        "AuthSettings { tokens: [Token([hidden])], token_file: None, signing_secrets: [SigningSecret([hidden])], \
         signing_secret_file: None } \
         Auth { tokens: 1, signing_secrets: 1 }"
    );
}

#[test]
fn credentials_of_a_file_are_read_again_when_a_sender_presents_an_unknown_one() {
    let folder = tempfile::tempdir().unwrap();
    let [token_file, signing_secret_file] = ["tokens", "secrets"].map(|name| folder.path().join(name));
    let write = |file, text: &str| std::fs::write(file, text).unwrap();
    write(&token_file, TOKEN);
    write(&signing_secret_file, SECRET);
    let settings = AuthSettings {
        tokens: vec![TOKEN.parse().unwrap()],
        token_file: Some(token_file.clone()),
        signing_secrets: vec![SECRET.parse().unwrap()],
        signing_secret_file: Some(signing_secret_file.clone()),
    };
    let bearer = |token: &str| headers(&[("authorization", &format!("Bearer {token}"))]);
    let is_proven = |auth: &Auth, token: &str| auth.judge_head(&bearer(token), now(), false) == Ok(Proof::Proven);
    let timestamp = &*TIMESTAMP.to_string();
    let by_other = signed(ID, timestamp, &sign(OTHER_SECRET, ID, timestamp, BODY));

    let auth = Auth::new(settings.clone());
    write(&token_file, &format!("{TOKEN}\n\n Authorization: Bearer {OTHER_TOKEN}\n"));
    assert!(is_proven(&auth, TOKEN) && is_proven(&auth, OTHER_TOKEN));
    write(&token_file, "a-third-token-of-the-file");
    assert!(!is_proven(&auth, "a-third-token-of-the-file"), "it was read a moment ago");
    assert!(is_proven(&auth, TOKEN));

    let api_key = format!("\"{OTHER_TOKEN}\"");
    write(&token_file, OTHER_TOKEN);
    assert!(Auth::new(settings.clone()).api_key_is_valid(Raw::parse(&api_key).unwrap()));
    write(&signing_secret_file, OTHER_SECRET);
    assert!(Auth::new(settings.clone()).signature_is_valid(&by_other, BODY));

    // Files are not read for a known credential, and a file that cannot be read changes nothing.
    let auth = Auth::new(settings);
    assert!(is_proven(&auth, TOKEN));
    write(&token_file, "short");
    assert!(!is_proven(&auth, "short") && is_proven(&auth, TOKEN));
    assert!(!auth.signature_is_valid(&by_other, BODY), "all files or none");
    let ten_seconds_later = Instant::now() + READ_AGAIN_AFTER;
    write(&token_file, OTHER_TOKEN);
    assert!(auth.read_again(ten_seconds_later) && !auth.read_again(ten_seconds_later));
    assert!(!is_proven(&auth, TOKEN) && is_proven(&auth, OTHER_TOKEN) && auth.signature_is_valid(&by_other, BODY));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_header_panics_or_proves_anything(values in header_values(), body: Vec<u8>, takes_api_key: bool) {
        let auth = auth(&[TOKEN], &[SECRET]);
        let headers: HeaderMap = values
            .into_iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_bytes(&value).unwrap()))
            .collect();
        prop_assert_ne!(auth.judge_head(&headers, now(), takes_api_key), Ok(Proof::Proven));
        prop_assert!(!auth.signature_is_valid(&headers, &body));
    }

    #[test]
    fn what_is_signed_is_valid_until_a_byte_changes(
        id in "[a-z_0-9-]{1,40}",
        body: Vec<u8>,
        at: prop::sample::Index,
    ) {
        let auth = auth(&[], &[SECRET]);
        let timestamp = TIMESTAMP.to_string();
        let headers = signed(&id, &timestamp, &sign(SECRET, &id, &timestamp, &body));
        let expected = Ok(Proof::Unproven { signature: true, api_key: false, otherwise: Denied::WrongSignature });
        prop_assert_eq!(auth.judge_head(&headers, now(), true), expected);
        prop_assert!(auth.signature_is_valid(&headers, &body));
        let mut altered = body;
        match altered.len() {
            0 => altered.push(0),
            len => altered[at.index(len)] ^= 1,
        }
        prop_assert!(!auth.signature_is_valid(&headers, &altered));
    }
}

fn header_values() -> impl Strategy<Value = Vec<(&'static str, Vec<u8>)>> {
    let name = prop::sample::select(vec![
        "authorization",
        "x-connector-token",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ]);
    let any_bytes = prop::collection::vec(prop_oneof![0x20..=0x7e_u8, 0x80..=0xff_u8], 0..60);
    let almost =
        "(Bearer |bearer|v1,|v2,|-|[+]|16142653[0-9]{2}|[A-Za-z0-9+/]{43}=| |,|[.]){0,5}".prop_map(String::into_bytes);
    prop::collection::vec((name, prop_oneof![any_bytes, almost]), 0..8)
}
