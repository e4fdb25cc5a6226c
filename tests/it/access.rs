//! Only senders with a credential get in: every route with every shape of credential, over HTTP.

use std::{
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Method;
use ring::hmac;
use serde_json::{Value, json};

use crate::{
    harness::{Reply, Service},
    program::Program,
    variance::Variance,
};

const TOKEN: &str = "the-first-of-two-tokens";
const SECOND_TOKEN: &str = "the-second-of-two-tokens";
const SECRET: &[u8] = b"the-first-of-two-signing-secrets";
const SECOND_SECRET: &[u8] = b"the-second-of-two-signing-secrets";
const OTHER_SECRET: &[u8] = b"a-signing-secret-of-somebody-else";

const FAILURES: [&str; 2] = [
    r#"variance_connector_auth_failures_total{reason="missing"}"#,
    r#"variance_connector_auth_failures_total{reason="wrong"}"#,
];

/// The credential that a sender presents along with an event.
#[derive(Clone, Default)]
struct Credential {
    headers: Vec<(&'static str, String)>,
    /// The body, with `{id}` in place of an event's id.
    body: Option<String>,
    /// True to compress the body after it was made, and before it is signed.
    packed: bool,
    signature: Option<Signature>,
}

/// A signature, with its differences from a right one.
#[derive(Clone, Copy)]
struct Signature {
    secret: &'static [u8],
    /// The timestamp's distance from now, in seconds.
    age: i64,
    /// Text put around the signature.
    around: [&'static str; 2],
    /// Text at the end of the signed body that the sent one does not have.
    altered: &'static str,
    /// True to sign the body before it is compressed.
    before_packing: bool,
    /// The id that is sent. The signed one is always the same.
    id: &'static str,
}

const SIGNED: Signature =
    Signature { secret: SECRET, age: 0, around: ["v1,", ""], altered: "", before_packing: false, id: "msg_1" };

fn none() -> Credential {
    Credential::default()
}

fn header(name: &'static str, value: impl Into<String>) -> Credential {
    none().and(name, value)
}

fn bearer(token: &str) -> Credential {
    header("authorization", format!("Bearer {token}"))
}

fn body(body: impl std::fmt::Display) -> Credential {
    Credential { body: Some(body.to_string()), ..none() }
}

fn signed(signature: Signature) -> Credential {
    Credential { signature: Some(signature), ..none() }
}

impl Credential {
    fn and(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn packed(self) -> Self {
        Self { packed: true, ..self }
    }

    async fn send(self, service: &Service, path: &str, id: &str) -> Reply {
        self.send_by(Method::POST, service, path, id).await
    }

    async fn send_by(self, method: Method, service: &Service, path: &str, id: &str) -> Reply {
        let body = self.body.unwrap_or_else(|| event().to_string()).replace("{id}", id);
        let mut request = service.client.request(method, service.url(path));
        let mut bytes = body.clone().into_bytes();
        if self.packed {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&bytes).unwrap();
            bytes = gzip.finish().unwrap();
            request = request.header("content-encoding", "gzip");
        }
        if let Some(Signature { secret, age, around, altered, before_packing, id }) = self.signature {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let timestamp = now.checked_add_signed(age).unwrap();
            let covered = if before_packing { body.as_bytes() } else { &bytes };
            let signed = [format!("msg_1.{timestamp}.").as_bytes(), covered, altered.as_bytes()].concat();
            let right = STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &signed));
            request = request.header("webhook-id", id).header("webhook-timestamp", timestamp.to_string());
            request = request.header("webhook-signature", format!("{}{right}{}", around[0], around[1]));
        }
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        Reply::of(request.body(bytes)).await
    }
}

fn event() -> Value {
    json!({"event": "e", "uuid": "{id}", "distinct_id": "d"})
}

fn batch(api_key: impl Into<Value>) -> Value {
    json!({"api_key": api_key.into(), "batch": [event()]})
}

/// Returns each credential, whether it opens `/webhook`, and whether it opens `/batch`.
fn credentials() -> Vec<(&'static str, Credential, [bool; 2])> {
    let half = &TOKEN[..TOKEN.len() / 2];
    let longer = format!("{TOKEN}-and-more");
    let packed_batch = body(batch(TOKEN)).packed();
    let everywhere = [true, true];
    let nowhere = [false, false];
    vec![
        ("none", none(), nowhere),
        // Tokens in headers.
        ("right", bearer(TOKEN), everywhere),
        ("the second", bearer(SECOND_TOKEN), everywhere),
        ("scheme in other letters", header("authorization", format!("bEARER  {TOKEN} ")), everywhere),
        ("bare", header("authorization", TOKEN), everywhere),
        ("own header", header("x-connector-token", TOKEN), everywhere),
        ("wrong beside right", bearer("a-token-of-somebody").and("x-connector-token", TOKEN), everywhere),
        ("right beside wrong", bearer(TOKEN).and("x-connector-token", "a-token-of-somebody"), everywhere),
        ("twice", bearer("a-token-of-somebody").and("authorization", format!("Bearer {TOKEN}")), everywhere),
        ("wrong", bearer("a-token-of-somebody"), nowhere),
        ("empty", bearer(""), nowhere),
        ("empty header", header("authorization", ""), nowhere),
        ("prefix", bearer(half), nowhere),
        ("longer", bearer(&longer), nowhere),
        ("other letters", bearer(&TOKEN.to_uppercase()), nowhere),
        ("Basic", header("authorization", format!("Basic {}", STANDARD.encode(format!(":{TOKEN}")))), nowhere),
        ("Basic with the token itself", header("authorization", format!("Basic {TOKEN}")), nowhere),
        ("both tokens as one", bearer(&format!("{TOKEN},{SECOND_TOKEN}")), nowhere),
        ("cookie", header("cookie", format!("token={TOKEN}")), nowhere),
        // The batch's `api_key`.
        ("api_key first", body(format!(r#"{{"api_key":"{TOKEN}","batch":[{}]}}"#, event())), [false, true]),
        ("api_key last", body(format!(r#"{{"batch":[{}],"api_key":"{SECOND_TOKEN}"}}"#, event())), [false, true]),
        ("api_key escaped", body(batch(TOKEN)).escaped(), [false, true]),
        ("api_key packed", packed_batch, [false, true]),
        ("api_key beside a wrong header", bearer_and_body("a-token-of-somebody", &batch(TOKEN)), [false, true]),
        ("header beside a wrong api_key", bearer_and_body(TOKEN, &batch("a-token-of-somebody")), everywhere),
        ("api_key wrong", body(batch("a-token-of-somebody")), nowhere),
        ("api_key empty", body(batch("")), nowhere),
        ("api_key prefix", body(batch(half)), nowhere),
        ("api_key longer", body(batch(longer)), nowhere),
        ("api_key null", body(batch(Value::Null)), nowhere),
        ("api_key list", body(batch(json!([TOKEN]))), nowhere),
        ("api_key object", body(batch(json!({"api_key": TOKEN}))), nowhere),
        ("api_key within an event", body(json!({"event": "e", "uuid": "{id}", "api_key": TOKEN})), nowhere),
        ("api_key within an element", body(json!({"batch": [{"event": event(), "api_key": TOKEN}]})), nowhere),
        ("api_key within properties", body(json!([{"event": "e", "properties": {"api_key": TOKEN}}])), nowhere),
        (
            "api_key last of two",
            body(format!(r#"{{"api_key":"{TOKEN}","batch":[{}],"api_key":"wrong"}}"#, event())),
            nowhere,
        ),
        ("api_key in what is no JSON", body(format!(r#"{{"api_key":"{TOKEN}","batch":["#)), nowhere),
        // Signatures.
        ("signed", signed(SIGNED), everywhere),
        ("signed again with the same id", signed(SIGNED), everywhere),
        ("signed with the second secret", signed(Signature { secret: SECOND_SECRET, ..SIGNED }), everywhere),
        ("signed and packed", signed(SIGNED).packed(), everywhere),
        ("signed four minutes ago", signed(Signature { age: -240, ..SIGNED }), everywhere),
        ("signed beside a wrong token", signed(SIGNED).and("authorization", "Bearer a-token"), everywhere),
        (
            "several signatures",
            signed(Signature { around: ["v1,AAAA v1a,BBBB v1,", " v2,CCCC"], ..SIGNED }),
            everywhere,
        ),
        ("signed with another secret", signed(Signature { secret: OTHER_SECRET, ..SIGNED }), nowhere),
        ("token beside a wrong signature", signed(SIGNED.of_another()).and("authorization", TOKEN), everywhere),
        ("stale", signed(Signature { age: -310, ..SIGNED }), nowhere),
        // It is far enough in the future to stay wrong while it is on its way.
        ("from the future", signed(Signature { age: 3600, ..SIGNED }), nowhere),
        ("body altered", signed(Signature { altered: " ", ..SIGNED }), nowhere),
        ("id altered", signed(Signature { id: "msg_2", ..SIGNED }), nowhere),
        ("version unknown", signed(Signature { around: ["v2,", ""], ..SIGNED }), nowhere),
        ("signature cut", header("webhook-signature", "v1,AAAA").and("webhook-id", "msg_1"), nowhere),
        ("signature empty", signed(Signature { around: [" ", ""], ..SIGNED }), nowhere),
        ("signed before it was packed", signed(Signature { before_packing: true, ..SIGNED }).packed(), nowhere),
    ]
}

impl Credential {
    /// Puts an escape into the key of the envelope.
    fn escaped(mut self) -> Self {
        self.body = self.body.map(|body| body.replace("api_key", r"api\u005fkey"));
        self
    }
}

impl Signature {
    fn of_another(self) -> Self {
        Self { secret: OTHER_SECRET, ..self }
    }
}

fn bearer_and_body(token: &str, body: &Value) -> Credential {
    Credential { body: Some(body.to_string()), ..bearer(token) }
}

#[tokio::test]
async fn only_a_right_credential_opens_a_route_and_a_failed_one_takes_nothing_in() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| {
        settings.auth.tokens = vec![TOKEN.parse().unwrap(), SECOND_TOKEN.parse().unwrap()];
        let secrets = [SECRET, SECOND_SECRET].map(|secret| format!("whsec_{}", STANDARD.encode(secret)));
        settings.auth.signing_secrets = secrets.map(|secret| secret.parse().unwrap()).to_vec();
    })
    .await;
    let (mut opened, mut denied) = (Vec::new(), 0);
    for (name, credential, [webhook, batch]) in credentials() {
        for (path, opens) in [("/webhook", webhook), ("/webhook/", webhook), ("/batch", batch), ("/batch/", batch)] {
            let id = format!("{name} {path}");
            let reply = credential.clone().send(&service, path, &id).await;
            let expected = if opens { 200 } else { 401 };
            assert_eq!(reply.status, expected, "{id}: {}", reply.text);
            if opens {
                assert_eq!(reply.counts(), [1, 1, 0, 0, 0, 0], "{id}: {}", reply.text);
                opened.push(id);
            } else {
                denied += 1;
                assert_eq!(reply.headers["www-authenticate"], "Bearer", "{id}");
                assert_eq!((reply.counts(), reply.reasons().len()), ([0; 6], 1), "{id}: {}", reply.text);
            }
        }
    }
    assert_eq!(variance.ids(), opened);
    let [missing, wrong] = FAILURES.map(|failures| service.metric(failures));
    assert_eq!(missing.await + wrong.await, f64::from(denied));
    assert_eq!(service.metric("variance_connector_received_events_total").await, opened.len() as f64);
}

#[tokio::test]
async fn what_is_no_door_asks_for_no_credential_and_takes_nothing_in() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| settings.auth.tokens = vec![TOKEN.parse().unwrap()]).await;
    for (name, credential, _) in credentials() {
        for (method, paths, status) in [
            (Method::POST, &["/", "/webhooks", "/webhook/x", "/batch//", "/capture", "/e/"][..], 404),
            (Method::POST, &["/healthz", "/readyz", "/metrics"], 405),
            (Method::GET, &["/webhook", "/batch", "/batch/"], 405),
            (Method::GET, &["/healthz", "/readyz", "/metrics"], 200),
        ] {
            for path in paths {
                let reply = credential.clone().send_by(method.clone(), &service, path, name).await;
                assert_eq!(reply.status, status, "{name}: {method} {path}");
            }
        }
    }
    assert_eq!(variance.received().len(), 0);
    assert_eq!(service.metric("variance_connector_received_events_total").await, 0.0);
    for failures in FAILURES {
        assert_eq!(service.metric(failures).await, 0.0, "{failures}");
    }
}

#[tokio::test]
async fn what_is_not_configured_opens_nothing() {
    let variance = Variance::start().await;
    let token = bearer(TOKEN);
    let service = Service::start(&variance, |settings| settings.auth.tokens = vec![TOKEN.parse().unwrap()]).await;
    assert_eq!(signed(SIGNED).send(&service, "/batch", "signed").await.status, 401);
    assert_eq!(token.clone().send(&service, "/batch", "token").await.status, 200);

    let secret = STANDARD.encode(SECRET);
    let service =
        Service::start(&variance, |settings| settings.auth.signing_secrets = vec![secret.parse().unwrap()]).await;
    assert_eq!(token.send(&service, "/webhook", "token to signed").await.status, 401);
    assert_eq!(body(batch(TOKEN)).send(&service, "/batch", "api_key to signed").await.status, 401);
    assert_eq!(signed(SIGNED).send(&service, "/webhook", "signed, alone").await.status, 200);

    let service = Service::start(&variance, |_| {}).await;
    for (name, credential, _) in credentials().into_iter().filter(|(name, ..)| !name.contains("no JSON")) {
        assert_eq!(credential.send(&service, "/webhook", name).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn a_configuration_that_would_let_anybody_in_does_not_start_and_says_what_would() {
    let variance = Variance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    std::fs::write(&file, format!("{TOKEN}\nshort\n")).unwrap();
    let no_credential = "senders need no credential: set server.token (CONNECTOR_TOKEN) or \
                         server.signing_secret (CONNECTOR_SIGNING_SECRET). If only senders that you trust can reach \
                         it, set server.allow_anonymous (CONNECTOR_ALLOW_ANONYMOUS) to true instead";
    let token = "must be a token of at least 16 characters";
    let secret = "must be a signing secret of at least 24 bytes in base64, such as `whsec_…`";
    let in_base64 = "must be a signing secret in base64 (letters, digits, `+` and `/`), such as `whsec_…`";
    for (variables, way_out) in [
        (&[][..], no_credential),
        (&[("CONNECTOR_LISTEN", "[::]:0")], no_credential),
        (&[("CONNECTOR_TOKEN", ""), ("CONNECTOR_SIGNING_SECRET", "")], no_credential),
        (&[("CONNECTOR_ALLOW_ANONYMOUS", "false")], no_credential),
        (&[("CONNECTOR_ALLOW_ANONYMOUS", "yes")], "is \"yes\", but must be true or false"),
        (&[("CONNECTOR_TOKEN", "short")], token),
        (&[("CONNECTOR_TOKEN", " , ")], token),
        (&[("CONNECTOR_TOKEN", "the-first-of-two-tokens,short")], token),
        (&[("CONNECTOR_TOKEN_FILE", file.to_str().unwrap())], token),
        (&[("CONNECTOR_TOKEN", "short"), ("CONNECTOR_ALLOW_ANONYMOUS", "true")], token),
        (&[("CONNECTOR_TOKEN", "short"), ("CONNECTOR_LISTEN", "127.0.0.1:0")], token),
        (&[("CONNECTOR_SIGNING_SECRET", "whsec_")], secret),
        (&[("CONNECTOR_SIGNING_SECRET", "whsec_dG9vIHNob3J0")], secret),
        (&[("CONNECTOR_SIGNING_SECRET", "whsec_this!is@not#base64$this%is^not&base64")], in_base64),
        (&[("CONNECTOR_TOKEN", TOKEN), ("CONNECTOR_SIGNING_SECRET", "broken")], secret),
    ] {
        let program = Program::new(["serve"]).to(&variance).env("CONNECTOR_LISTEN", "0.0.0.0:0");
        let mut running = variables.iter().fold(program, |program, (name, value)| program.env(name, value)).start();
        let mut errors = running.errors();
        // If the program starts anyway, this is a line of its log, and it does not end.
        let told = errors.next().await.expect("it says why not");
        assert!(told.starts_with("error: server."), "{variables:?}: {told}");
        assert_eq!((errors.next().await, running.ended().await.code), (None, 64), "{variables:?}: {told}");
        assert!(told.contains(way_out), "{variables:?}: {told}");
    }
}
