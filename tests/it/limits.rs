//! Hostile senders meet limits that cost nobody else anything, and get a reply where that helps.

use std::{
    io::Write as _,
    pin::pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::{Compression, write::ZlibEncoder};
use ring::hmac::{self, HMAC_SHA256};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    harness::{PATIENCE, Reply, Service, event, gzip},
    variance::{Behaviour, Variance},
};

const TOKEN: &str = "a-token-of-the-tests";
const SECRET: &[u8] = b"a-signing-secret-of-the-tests";
const MAX_BODY: usize = 1 << 20;

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut packer = ZlibEncoder::new(Vec::new(), Compression::best());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// Starts a service with small bodies that asks for a token.
async fn guarded(variance: &Variance) -> Service {
    Service::start(variance, |settings| {
        settings.server.max_body = MAX_BODY;
        settings.auth.tokens = vec![TOKEN.parse().unwrap()];
    })
    .await
}

#[tokio::test]
async fn a_packed_body_is_held_to_the_limits_of_what_is_in_it() {
    let variance = Variance::start().await;
    let service = guarded(&variance).await;
    type Pack = fn(&[u8]) -> Vec<u8>;
    for (encoding, pack) in [("gzip", (|bytes| gzip(bytes)) as Pack), ("deflate", deflate)] {
        let spaces = |len: usize| pack(&[b" ".repeat(len), event(encoding).into_bytes()].concat());
        let fits = spaces(MAX_BODY - event(encoding).len());
        let whole = pack(event("cut").as_bytes());
        for (what, body, status) in [
            ("as much as may be, a thousandth of it packed", fits, 200),
            ("a byte more", spaces(MAX_BODY - event(encoding).len() + 1), 413),
            ("a bomb", pack(&vec![b'0'; 300 * MAX_BODY]), 413),
            ("a bomb of one string", pack(&[b"[\"", &*vec![b'x'; 300 * MAX_BODY], b"\"]"].concat()), 413),
            ("cut", whole[..whole.len() - 1].to_vec(), 400),
            ("cut to nothing", Vec::new(), 400),
            ("rubbish", b"[{\"event\":\"e\"}]".to_vec(), 400),
            ("rubbish behind a good start", [&whole[..whole.len() / 2], &[0xff; 100]].concat(), 400),
            ("packed twice", pack(&pack(event("twice").as_bytes())), 400),
        ] {
            for path in ["/webhook", "/batch"] {
                let request = service.client.post(service.url(path)).bearer_auth(TOKEN);
                let reply = Reply::of(request.header("content-encoding", encoding).body(body.clone())).await;
                assert_eq!(reply.status, status, "{encoding}, {what}: {}", reply.text);
                assert_eq!(reply.reasons().len(), usize::from(status != 200), "{encoding}, {what}");
            }
        }
    }
    let layers = service.client.post(service.url("/webhook")).bearer_auth(TOKEN);
    let layers = layers.header("content-encoding", "gzip, gzip").body(gzip(gzip(event("layers"))));
    assert_eq!(Reply::of(layers).await.status, 415);
    assert_eq!(variance.ids(), ["gzip", "deflate"]);
}

#[tokio::test]
async fn an_early_reply_reaches_a_sender_that_writes_on() {
    let variance = Variance::start().await;
    let service = guarded(&variance).await;
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    // The length is more than all buffers on the way hold.
    const LENGTH: usize = 16 << 20;
    for (status, path, headers) in [
        (401, "/webhook", String::new()),
        (413, "/webhook", token.clone()),
        (413, "/batch", String::new()),
        (415, "/batch", format!("{token}Content-Type: image/png\r\n")),
        (415, "/webhook", format!("{token}Content-Encoding: br\r\n")),
        (404, "/capture", token.clone()),
        (405, "/metrics", token.clone()),
    ] {
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; LENGTH]).await.expect("all of it is taken");
        let mut reply = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut reply)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&reply), format!("HTTP/1.1 {status}"));
    }
    assert_eq!(variance.received().len(), 0);
}

/// Sends a head that announces a body, and half of that. The reply comes later.
async fn half_sent(service: &Service, path: &str, headers: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let length = body.len() + 1;
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

/// Returns the status that a sender gets, and the rest of its reply.
async fn told(stream: &mut TcpStream) -> (u16, String) {
    let mut reply = vec![0; 4 << 10];
    let length = timeout(PATIENCE, stream.read(&mut reply)).await.unwrap().unwrap();
    let reply = String::from_utf8(reply[..length].to_vec()).unwrap();
    (reply["HTTP/1.1 ".len()..][..3].parse().unwrap(), reply)
}

const LARGE_BODY: usize = 8 << 20;

/// Starts a service with bodies of this size that asks for a token or a signature.
async fn guarded_twice(variance: &Variance) -> Service {
    Service::start(variance, |settings| {
        settings.server.max_body = LARGE_BODY;
        settings.auth.tokens = vec![TOKEN.parse().unwrap()];
        settings.auth.signing_secrets = vec![STANDARD.encode(SECRET).parse().unwrap()];
        // No attempt is repeated while another is waited for.
        settings.destination.attempt_timeout = PATIENCE;
    })
    .await
}

#[tokio::test]
async fn bodies_that_are_being_read_have_a_budget_and_those_of_strangers_a_smaller_one() {
    let variance = Variance::start().await;
    let service = guarded_twice(&variance).await;
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let most = " ".repeat(LARGE_BODY - 1000);
    let own = |id: &'static str| format!(r#"{{"batch":[{}],"api_key":"{TOKEN}"{}}}"#, event(id), " ".repeat(2000));
    let batch = |id| service.post("/batch", own(id));

    // One stranger may use all the memory for strangers, but cannot keep others from it: it makes room for them.
    let mut stranger = half_sent(&service, "/batch", "", &most).await;
    let (status, reply) = {
        let mut told = pin!(told(&mut stranger));
        loop {
            tokio::select! {
                biased;
                told = &mut told => break told,
                reply = batch("a stranger, as far as one knows") => assert_eq!(reply.status, 200, "{}", reply.text),
            }
        }
    };
    assert_eq!(status, 429);
    assert!(reply.contains("the connector is reading as many bodies as it can"), "{reply}");
    assert!(reply.to_ascii_lowercase().contains("retry-after: 1\r\n"), "{reply}");

    // Known senders have more than twice as much on each route.
    let known = async |path: &str, id: &str| {
        let body = event(id) + &" ".repeat(2000);
        Reply::of(service.client.post(service.url(path)).bearer_auth(TOKEN).body(body)).await
    };
    let [first, second] =
        [half_sent(&service, "/batch", &token, &most).await, half_sent(&service, "/batch", &token, &most).await];
    let mut third = half_sent(&service, "/batch", &token, &most).await;
    assert_eq!(told(&mut third).await.0, 429);
    assert_eq!(known("/batch", "known").await.status, 200);
    assert_eq!(known("/webhook", "other route").await.status, 200);
    assert_eq!(batch("after all").await.status, 200);
    drop((first, second));
}

#[tokio::test]
async fn a_body_of_whose_messages_there_can_never_be_room_is_not_asked_for_again() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| settings.server.max_body = 16 << 20).await;
    let page = |id: &str, length| {
        let url = format!("h/?{}", "<".repeat(length));
        json!({"event": "$pageview", "uuid": id, "properties": {"$current_url": url}})
    };
    for (length, status) in [(4_100_000, 413), (2_000_000, 200)] {
        let body = json!(["a", "b", "c", "d"].map(|id| page(id, length))).to_string();
        let request = service.client.post(service.url("/batch")).header("content-encoding", "gzip");
        let reply = Reply::of(request.body(gzip(body))).await;
        assert_eq!(reply.status, status, "{}", reply.text);
    }
    assert_eq!(variance.count(), 4);
}

#[tokio::test]
async fn a_sender_who_turns_out_to_be_known_makes_room_for_strangers_while_it_waits() {
    let variance = Variance::start().await;
    let service = guarded_twice(&variance).await;
    variance.always(Behaviour::BytesThenSilence(Vec::new()));
    for is_signed in [false, true] {
        let properties = json!({"x": "x".repeat(LARGE_BODY / 2 - 2000)});
        let large = |id| json!({"event": id, "uuid": is_signed.to_string(), "properties": properties});
        let key = if is_signed { "none" } else { TOKEN };
        let body = json!({"batch": [large("first"), large("second")], "api_key": key}).to_string();
        let before = variance.count();
        // A request outlasts its sender for a while, and keeps its memory, so each case has a route of its own.
        let mut request = service.client.post(service.url(if is_signed { "/webhook" } else { "/batch" }));
        if is_signed {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let signature = hmac::sign(&hmac::Key::new(HMAC_SHA256, SECRET), format!("id.{time}.{body}").as_bytes());
            let signature = format!("v1,{}", STANDARD.encode(signature));
            request = request.header("webhook-id", "id").header("webhook-timestamp", time);
            request = request.header("webhook-signature", signature);
        }
        let waiting = tokio::spawn(Reply::of(request.body(body)));
        variance.received_at_least(before + 2).await;
        let wrong = format!(r#"{{"batch":[],"api_key":"wrong"}}{}"#, " ".repeat(10_000));
        assert_eq!(service.post("/batch", wrong).await.status, 401, "signed: {is_signed}");
        waiting.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_senders_are_let_go_of_in_time_and_keep_nobody_waiting() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| {
        settings.auth.tokens = vec![TOKEN.parse().unwrap()];
        settings.server.head_timeout = Duration::from_secs(2);
        settings.server.webhook_deadline = Duration::from_secs(2);
        settings.server.batch_deadline = Duration::from_secs(2);
    })
    .await;
    let address = service.address;
    let mut slow = JoinSet::new();
    for n in 0..1_000 {
        slow.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let head = "POST /webhook HTTP/1.1\r\nHost: x\r\nX-Padding: ";
            stream.write_all(&head.as_bytes()[..head.len() - n % 30]).await.unwrap();
            drop(stream.read_to_end(&mut Vec::new()).await);
        });
    }
    for n in 0..200 {
        slow.spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let (mut reading, mut writing) = stream.into_split();
            let path = if n % 2 == 0 { "/webhook" } else { "/batch" };
            let token = if n % 3 == 0 { "" } else { "Authorization: Bearer a-token-of-the-tests\r\n" };
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{token}Content-Length: 1000\r\n\r\n");
            writing.write_all(head.as_bytes()).await.unwrap();
            let drip = async {
                while writing.write_all(b" ").await.is_ok() {
                    sleep(Duration::from_millis(100)).await
                }
            };
            let mut reply = Vec::new();
            tokio::select! {
                () = drip => {}
                _ = reading.read_to_end(&mut reply) => {}
            }
        });
    }
    let mut answered = 0;
    let beside = async {
        // Each slow request ends when its connection does.
        while !slow.is_empty() {
            let id = event(answered);
            let reply = service.client.post(service.url("/webhook")).bearer_auth(TOKEN).body(id);
            assert_eq!(Reply::of(reply).await.status, 200);
            answered += 1;
            sleep(Duration::from_millis(20)).await;
            while slow.try_join_next().is_some_and(|ended| ended.is_ok()) {}
        }
    };
    timeout(PATIENCE, beside).await.expect("slow senders are let go of");
    assert!(answered > 10, "{answered}");
}
