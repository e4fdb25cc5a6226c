//! Senders without a credential cost their bytes, and nobody else's time or place.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
    time::timeout,
};

use crate::{
    harness::{self, PATIENCE, Reply, gzip},
    program::{Program, Running},
    variance::{Behaviour, Variance},
};

const TOKEN: &str = "a-token-of-the-tests";

/// Starts the program, which asks for a token. Returns its address as well.
async fn guarded(variance: &Variance) -> (Running, String) {
    Program::serve(variance).env("CONNECTOR_TOKEN", TOKEN).ready().await
}

/// Returns an event that takes long to compare and to map: a few long keys that are all escapes.
fn slow_event() -> String {
    let keys: Vec<_> = (0..32).map(|n| format!(r#""{}{n}":1"#, r"\n".repeat(60_000))).collect();
    format!(r#"{{"event":"e","properties":{{{}}}}}"#, keys.join(","))
}

/// Returns a batch of such events whose `sent_at` comes after them, and whose key is wrong.
fn slow_batch(events: usize) -> Vec<u8> {
    let events = vec![slow_event(); events].join(",");
    gzip(format!(r#"{{"batch":[{events}],"sent_at":"2024-01-01T00:00:00Z","api_key":"somebody-elses"}}"#))
}

async fn post_packed(client: &reqwest::Client, address: &str, body: Vec<u8>) -> u16 {
    let request = client.post(format!("http://{address}/batch")).header("content-encoding", "gzip").body(body);
    Reply::of(request).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packed_bodies_of_strangers_take_no_turns_from_those_who_are_served() {
    const BODIES: usize = 24;
    let variance = Variance::start().await;
    let (_running, address) = guarded(&variance).await;
    let client = harness::client();
    let body = slow_batch(1);
    assert!(body.len() < 16 << 10, "{} bytes are few", body.len());
    let mut strangers = JoinSet::new();
    for _ in 0..BODIES {
        let (client, address, body) = (client.clone(), address.clone(), body.clone());
        strangers.spawn(async move { post_packed(&client, &address, body).await });
    }
    let mut served = 0;
    while !strangers.is_empty() {
        let health = client.get(format!("http://{address}/healthz"));
        assert_eq!(Reply::of(health).await.status, 200);
        served += 1;
        while let Some(status) = strangers.try_join_next() {
            assert_eq!(status.unwrap(), 401);
        }
    }
    println!("{served} requests were served beside {BODIES} bodies of strangers");
    assert!(served > 3 * BODIES, "{served} requests were served beside {BODIES} bodies of strangers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_of_a_body_before_its_sender_is_known() {
    let variance = Variance::start().await;
    let (running, address) = guarded(&variance).await;
    let client = harness::client();
    let before = running.memory("VmHWM");
    let page = format!(r#"{{"event":"$pageview","properties":{{"$current_url":"h/?{}"}}}}"#, "<".repeat(4_190_000));
    let batch = format!(r#"{{"batch":[{}],"api_key":"somebody-elses"}}"#, vec![page; 15].join(","));
    assert_eq!(post_packed(&client, &address, gzip(&batch)).await, 401);
    let grown = running.memory("VmHWM") - before;
    println!("{grown} bytes more for {} unpacked", batch.len());
    assert!(grown < 8 << 20, "{grown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_of_strangers_keep_no_large_body_of_a_known_sender_waiting() {
    let variance = Variance::start().await;
    let (_running, address) = guarded(&variance).await;
    let client = harness::client();
    let body = slow_batch(2);
    let over = Arc::new(AtomicBool::new(false));
    let denied = Arc::new(Notify::new());
    let mut strangers = JoinSet::new();
    for _ in 0..8 {
        let (client, address, body) = (client.clone(), address.clone(), body.clone());
        let (over, denied) = (Arc::clone(&over), Arc::clone(&denied));
        strangers.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(post_packed(&client, &address, body.clone()).await, 401);
                denied.notify_one();
            }
        });
    }
    denied.notified().await;
    for n in 0..5 {
        let event = json!({"event": "e", "uuid": n.to_string(), "properties": {"x": "x".repeat(300 << 10)}});
        let request = client.post(format!("http://{address}/webhook")).bearer_auth(TOKEN).body(event.to_string());
        let reply = Reply::of(request).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    over.store(true, Ordering::Relaxed);
    strangers.join_all().await;
    assert_eq!(variance.count(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_takes_what_has_arrived_of_it_and_not_what_it_announces() {
    let variance = Variance::start().await;
    let (running, address) = guarded(&variance).await;
    let before = running.memory("VmPeak");
    let mut halves = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!("POST /batch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 64 << 20);
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&[b' '; 20_000]).await.unwrap();
        halves.push(stream);
    }
    // All bodies are being read by now, since each was accepted before this one.
    let body = json!({"batch": [{"event": "e", "uuid": "1"}], "api_key": TOKEN}).to_string();
    let reply = Reply::of(harness::client().post(format!("http://{address}/batch")).body(body)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let grown = running.memory("VmPeak") - before;
    println!("{grown} bytes of addresses for 200 half bodies");
    assert!(grown < 1 << 30, "{grown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_idle_connections_than_there_may_be_keep_nobody_out_and_end_no_request() {
    const CONNECTIONS: u64 = 2_300;
    rlimit::increase_nofile_limit(2 * CONNECTIONS).unwrap();
    let variance = Variance::start().await;
    variance.always(Behaviour::BytesThenSilence(Vec::new()));
    let (_running, address) = guarded(&variance).await;
    let client = harness::client();
    let webhook = |id: &str| {
        let event = json!({"event": "e", "uuid": id}).to_string();
        Reply::of(client.post(format!("http://{address}/webhook")).bearer_auth(TOKEN).body(event))
    };
    let waiting = tokio::spawn(webhook("first"));
    variance.received_at_least(1).await;
    let mut idle = Vec::new();
    for n in 0..CONNECTIONS {
        let mut stream = timeout(PATIENCE, TcpStream::connect(&address)).await.unwrap().unwrap();
        // Some send nothing, some do not finish, and some send everything.
        let said = [
            "",
            "POST /batch HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
            "POST /webhook",
            "GET /healthz HTTP/1.1\r\n\r\n",
        ];
        stream.write_all(said[n as usize % said.len()].as_bytes()).await.unwrap();
        idle.push(stream);
    }
    let ended = Program::new(["healthcheck"]).env("CONNECTOR_LISTEN", &address).run().await;
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(waiting.await.unwrap().status, 503, "it was answered, when its time was over");
    variance.always(Behaviour::Status(200));
    let client = harness::client();
    let event = json!({"event": "e", "uuid": "second"}).to_string();
    let request = client.post(format!("http://{address}/webhook")).bearer_auth(TOKEN).body(event);
    assert_eq!(Reply::of(request).await.status, 200, "a new connection is served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_requests_as_there_may_be_keep_no_health_check_out() {
    const CONNECTIONS: u64 = 2_100;
    rlimit::increase_nofile_limit(2 * CONNECTIONS).unwrap();
    let variance = Variance::start().await;
    variance.always(Behaviour::BytesThenSilence(Vec::new()));
    let program = Program::serve(&variance).env("CONNECTOR_TOKEN", TOKEN);
    let program = program.env("CONNECTOR_WEBHOOK_DEADLINE", "60s").env("CONNECTOR_ATTEMPT_TIMEOUT", "60s");
    let (_running, address) = program.ready().await;
    let mut replies = JoinSet::new();
    for n in 0..CONNECTIONS {
        let mut stream = timeout(PATIENCE, TcpStream::connect(&address)).await.unwrap().unwrap();
        let event = json!({"event": "e", "uuid": format!("{n:04}")}).to_string();
        let head = format!(
            "POST /webhook HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\r\n",
            event.len()
        );
        stream.write_all((head + &event).as_bytes()).await.unwrap();
        replies.spawn(async move {
            let mut reply = vec![0; 12];
            stream.read_exact(&mut reply).await.ok().map(|_| String::from_utf8(reply).unwrap())
        });
    }
    let ended = Program::new(["healthcheck"]).env("CONNECTOR_LISTEN", &address).run().await;
    assert_eq!(ended.code, 0, "{}", ended.err);
    // All those that are not taken in are told so, and no other is answered before its time.
    let mut refused = 0;
    while refused < CONNECTIONS - 1984 {
        let reply = timeout(PATIENCE, replies.join_next()).await.unwrap().unwrap().unwrap();
        assert!(reply.as_deref().is_none_or(|reply| reply == "HTTP/1.1 429"), "{reply:?}");
        refused += 1;
    }
}
