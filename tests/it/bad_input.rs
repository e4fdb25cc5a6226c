//! Bad input gets a clear answer and costs nothing else.

use std::{convert::Infallible, io::Write as _, time::Duration};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    harness::{PATIENCE, Reply, Service},
    variance::{Behaviour, Variance},
};

const TOKEN: &str = "a-token-of-the-tests";

#[tokio::test]
async fn a_body_that_is_no_container_of_events_is_400() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    let cases: [(&[u8], &str); 9] = [
        (b"", "the body is not JSON: expected a value at byte 0"),
        (b"hello", "the body is not JSON: expected a value at byte 0"),
        (br#"{"event":"a","#, "the body is not JSON: expected a key in quotes at byte 13"),
        (br#"{"batch":[{"event":"a"}"#, "the body is not JSON: expected `,` or `]` at byte 23"),
        (br#"{"event":"a"} {"#, "the body is not JSON: expected nothing more at byte 14"),
        (b"\"text\"", "the body must be a JSON object or array"),
        (b"42", "the body must be a JSON object or array"),
        (b"null", "the body must be a JSON object or array"),
        (b"{\"event\":\"\xff\"}", "the body is not JSON: it is not UTF-8"),
    ];
    for path in ["/webhook", "/batch"] {
        for (body, reason) in cases {
            let reply = service.post(path, body).await;
            assert_eq!((reply.status, reply.counts()), (400, [0; 6]), "{}", String::from_utf8_lossy(body));
            assert_eq!(reply.reasons(), [reason]);
        }
    }
}

#[tokio::test]
async fn nothing_to_do_is_fine() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for body in ["[]", r#"{"batch":[]}"#, " [ ] "] {
        let reply = service.post("/webhook", body).await;
        assert_eq!((reply.status, reply.counts()), (200, [0; 6]), "{body}");
    }
}

#[tokio::test]
async fn an_element_that_is_no_event_is_named_and_refused_for_good() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for (body, reason) in [
        ("{}", "the event has no name: `event` is missing"),
        (r#"{"event":""}"#, "the event has no name: `event` must be a string that is not empty"),
        (r#"{"event":7}"#, "the event has no name: `event` must be a string that is not empty"),
        (r#"{"event":null}"#, "the event has no name: `event` must be a string that is not empty"),
        (r#"{"event":["a"]}"#, "the event has no name: `event` must be a string that is not empty"),
        (r#"{"event":{}}"#, "the event has no name: `event` is missing"),
        (r#"{"event":{"event":{"event":"a"}}}"#, "the event has no name: `event` must be a string that is not empty"),
        (r#"{"batch":7}"#, "`batch` must be an array of events in the outermost object of the body"),
        ("[null]", "an event must be a JSON object"),
        ("[17]", "an event must be a JSON object"),
        ("[[]]", "an event must be a JSON object"),
    ] {
        let reply = service.post("/webhook", body).await;
        assert_eq!((reply.status, reply.counts()), (422, [1, 0, 0, 0, 1, 0]), "{body}");
        assert_eq!(reply.reasons(), [reason], "{body}");
    }
    let slack = r#"{"text":"*Ada* did *plan upgraded*","blocks":[]}"#;
    let reply = service.post("/webhook", slack).await;
    assert_eq!(reply.status, 422);
    assert!(reply.reasons()[0].contains("Slack-style action webhook"), "{:?}", reply.reasons());
    assert!(reply.reasons()[0].contains("HTTP Webhook"), "{:?}", reply.reasons());
    assert!(variance.received().is_empty());
}

#[tokio::test]
async fn properties_of_another_type_are_no_properties() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for (index, properties) in ["null", "\"text\"", "[1]", "7", "{}"].into_iter().enumerate() {
        let body = format!(r#"{{"event":"e","uuid":"u{index}","distinct_id":"d","properties":{properties}}}"#);
        assert_eq!(service.post("/webhook", body).await.counts(), [1, 1, 0, 0, 0, 0], "{properties}");
        let message = &variance.bodies()[index];
        assert_eq!((&message["userId"], message.get("properties")), (&json!("d"), None), "{properties}");
    }
}

#[tokio::test]
async fn what_a_json_library_would_change_or_refuse_passes_unchanged() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    let properties = format!(
        r#""big":18446744073709551617,"exp":1.50E+400,"half":"cut \ud83d","ke\udc00y":"\u00e9é\/","deep":{deep}"#
    );
    let body = format!(r#"{{"event":"e\u0301","uuid":"u","distinct_id":"d","properties":{{{properties},"big":1E1}}}}"#);
    assert_eq!(service.post("/webhook", body).await.counts(), [1, 1, 0, 0, 0, 0]);
    let sent = String::from_utf8(variance.received()[0].body.clone()).unwrap();
    assert!(sent.contains(r#""event":"e\u0301""#), "{sent}");
    for piece in [r#""exp":1.50E+400"#, r#""half":"cut \ud83d""#, r#""ke\udc00y":"\u00e9é\/""#, deep.as_str()] {
        assert!(sent.contains(piece), "{piece}");
    }
    assert!(sent.contains(r#""big":1E1"#) && !sent.contains("1844674407"), "of a repeated key the last counts");
}

#[tokio::test]
async fn one_bad_event_in_a_batch_of_5000_costs_no_neighbour() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    let mut events: Vec<_> = (0..5000).map(|n| json!({"event": "e", "uuid": format!("id-{n}")})).collect();
    events[2500] = json!({"event": {"event": 7}});
    let reply = service.post("/batch", json!({"batch": events}).to_string()).await;
    assert_eq!((reply.status, reply.counts()), (200, [5000, 4999, 0, 0, 1, 0]));
    assert_eq!(reply.json()["problems"][0]["index"], 2500);
    assert_eq!(variance.received().len(), 4999);
}

#[tokio::test]
async fn limits_are_told_before_anything_is_taken_in() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| settings.server.max_body = 1 << 20).await;
    let too_large = format!(r#"{{"event":"e","properties":{{"x":"{}"}}}}"#, "x".repeat(1 << 20));
    let reply = service.post("/webhook", too_large.clone()).await;
    assert_eq!((reply.status, reply.reasons()[0].as_str()), (413, "the body is larger than server.max_body (1.0 MiB)"));

    // The body has no length that could give it away beforehand.
    let chunks = chunked(&too_large);
    let reply = Reply::of(service.client.post(service.url("/webhook")).body(chunks)).await;
    assert_eq!(reply.status, 413);

    let too_many = format!("[{}{{}}]", "{},".repeat(10_000));
    let reply = service.post("/batch", too_many).await;
    assert_eq!((reply.status, reply.reasons()[0].as_str()), (413, "the body has more than 10000 events"));
    assert!(variance.received().is_empty());
}

#[tokio::test]
async fn a_body_within_its_limit_has_room_however_small_that_is() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| settings.server.max_body = 14_000).await;
    // The messages and results for such events take many times their own bytes.
    let body = format!("[{}0]", r#"{"event":"e"},"#.repeat(999));
    let reply = service.post("/batch", body).await;
    assert_eq!((reply.status, reply.counts()), (200, [1000, 999, 0, 0, 1, 0]));
}

/// Returns a body of unknown length, which is sent in chunks.
fn chunked(text: &str) -> reqwest::Body {
    let pieces: Vec<_> = text.as_bytes().chunks(64 << 10).map(Bytes::copy_from_slice).collect();
    let frames = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    reqwest::Body::wrap(StreamBody::new(futures_util::stream::iter(frames)))
}

#[tokio::test]
async fn an_element_over_4_mib_is_invalid_and_its_neighbours_go_on() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    let large = format!(r#"{{"event":"e","properties":{{"x":"{}"}}}}"#, "x".repeat(4 << 20));
    let body = format!(r#"[{{"event":"a","uuid":"1"}},{large},{{"event":"b","uuid":"2"}}]"#);
    let reply = service.post("/batch", body).await;
    assert_eq!(reply.counts(), [3, 2, 0, 0, 1, 0]);
    assert_eq!(reply.reasons(), ["the event is larger than 4 MiB"]);
}

#[tokio::test]
async fn content_types_that_are_not_json_are_415() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for (content_type, status) in [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/cloudevents+json", 200),
        ("text/plain", 200),
        ("", 200),
        ("application/json, application/json", 200),
        ("application/json; charset=utf-8,application/json", 200),
        ("application/json, text/html", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("text/html", 415),
    ] {
        let request = service.client.post(service.url("/webhook")).header("content-type", content_type).body("[]");
        assert_eq!(Reply::of(request).await.status, status, "{content_type:?}");
    }
}

#[tokio::test]
async fn a_head_is_16_kib_at_most() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for (length, status) in [(15 << 10, 200), (16 << 10, 431)] {
        let request = service.client.get(service.url("/healthz")).header("x-long", "a".repeat(length));
        assert_eq!(request.send().await.unwrap().status(), status, "{length}");
    }
}

/// Returns the reply to `bytes` from a sender that then closes its side.
async fn reply_to(service: &Service, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reply = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
    reply
}

#[tokio::test]
async fn a_sender_that_closes_its_side_after_the_body_still_gets_its_reply() {
    let variance = Variance::start().await;
    variance.always(Behaviour::After(Duration::from_millis(300), Box::new(Behaviour::Status(200))));
    let service = Service::start(&variance, |_| {}).await;
    let body = r#"{"event":"e","uuid":"1"}"#;
    let head = format!("POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    let reply = reply_to(&service, format!("{head}{body}").as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.contains(r#""delivered":1"#), "{reply:?}");
    // A request that is cut off gets no reply, or 400.
    let reply = reply_to(&service, format!("{head}{}", &body[1..]).as_bytes()).await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 400 "), "{reply:?}");
    assert_eq!(variance.count(), 1);
}

#[tokio::test]
async fn gzip_is_known_by_its_first_bytes_and_may_have_zeros_or_line_ends_behind_it() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| settings.auth.tokens = vec![TOKEN.parse().unwrap()]).await;
    let mut sent = Vec::new();
    for (encoding, behind) in [(None, &b""[..]), (None, &[0; 512]), (Some("gzip"), &[0]), (Some("gzip"), b"\r\n")] {
        for path in ["/webhook", "/batch"] {
            let id = format!("{encoding:?} {} {path}", behind.len());
            let body = json!({"batch": [{"event": "e", "uuid": id}], "api_key": TOKEN}).to_string();
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(body.as_bytes()).unwrap();
            let body = [gzip.finish().unwrap(), behind.to_vec()].concat();
            let mut request = service.client.post(service.url(path)).body(body);
            if path == "/webhook" {
                request = request.bearer_auth(TOKEN);
            }
            if let Some(encoding) = encoding {
                request = request.header("content-encoding", encoding);
            }
            let reply = Reply::of(request).await;
            assert_eq!((reply.status, reply.counts()[1]), (200, 1), "{id}: {}", reply.text);
            sent.push(id);
        }
    }
    assert_eq!(variance.ids(), sent);
}

#[tokio::test]
async fn slashes_before_a_path_change_nothing() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    let paths = ["//webhook", "///webhook/", "//batch"];
    for path in paths {
        assert_eq!(service.post(path, json!({"event": "e", "uuid": path}).to_string()).await.status, 200, "{path}");
    }
    assert_eq!(service.get("//healthz").await.status, 200);
    for path in ["/x//webhook", "//", "/webhook//", "/web//hook"] {
        assert_eq!(service.post(path, "[]").await.status, 404, "{path}");
    }
    assert_eq!(variance.ids(), paths);
}
