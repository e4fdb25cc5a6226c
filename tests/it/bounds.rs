//! The memory that the program takes, compared with what the documentation promises.

use std::collections::BTreeMap;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    harness::{self, gzip},
    program::Program,
    variance::{Accepting, Behaviour, Variance},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_takes_no_more_memory_than_max_held_says() {
    const MAX_HELD: usize = 16 << 20;
    for (size, at_once) in [(300, 200), (1 << 20, 1)] {
        let mut variance = Variance::start().await;
        variance.vanish();
        let program = Program::serve(&variance).env("CONNECTOR_MAX_HELD", "16MiB");
        let (running, address) = program.env("CONNECTOR_WEBHOOK_DEADLINE", "200ms").ready().await;
        let client = harness::client();
        let post = async |requests: usize, at_once: usize| {
            let event = |n| {
                let id = format!("{requests}-{n}");
                json!({"event": "e", "uuid": id, "properties": {"x": "x".repeat(size - 200)}})
            };
            let body = json!((0..at_once).map(event).collect::<Vec<_>>()).to_string();
            client.post(format!("http://{address}/webhook")).body(body).send().await.unwrap().status().as_u16()
        };
        // The breaker opens, and everything that serves a request is allocated.
        let mut requests = 0;
        while requests < 8 {
            assert_eq!(post(requests, 1).await, 503);
            requests += 1;
        }
        let before = running.memory("VmRSS");
        while post(requests, at_once).await != 429 {
            requests += 1;
        }
        let grown = running.memory("VmRSS").saturating_sub(before);
        let health = client.get(format!("http://{address}/healthz")).send().await.unwrap().text().await.unwrap();
        let health: serde_json::Value = serde_json::from_str(&health).unwrap();
        let held = health["held"]["events"].as_u64().unwrap() as usize;
        println!("{held} events of {size} bytes: {grown} bytes more than {before}");
        assert!(held > MAX_HELD / (2 * size + 2000), "{held}");
        assert!(grown < MAX_HELD + (4 << 20), "{held} events of {size} bytes take {grown}");
    }
}

/// Sends a body without its end. Returns the status of the reply that comes at last.
async fn post_half(address: &str, path: &str, body: String) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len() + 1);
    stream.write_all(head.as_bytes()).await.unwrap();
    // A sender that is refused may be cut off.
    drop(stream.write_all(body.as_bytes()).await);
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).await.unwrap();
    std::str::from_utf8(&reply[9..]).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_at_once_takes_no_more_memory_than_the_sum_of_its_limits() {
    const MAX_HELD: usize = 16 << 20;
    const MAX_BODY: usize = 4 << 20;
    /// The memory for what is made from the bodies of a route, beyond that for the bodies.
    const BESIDE_BODIES: usize = 4 << 20;
    /// The thread's stack and its share of the allocator's memory, which belong to what the program itself takes.
    const LARGE_BODY_THREAD: usize = 4 << 20;
    let large = |id: String| json!({"event": "e", "uuid": id, "properties": {"x": "x".repeat(1_700_000)}});
    let packed = gzip(json!([large("a".to_owned()), large("b".to_owned())]).to_string());
    // What is made from an event can be larger than the event: here it is as large as it can be.
    let page = |id: &str| json!({"event": "$pageview", "uuid": id, "properties": {"$current_url": format!("h/?{}", "<".repeat(1_380_000))}});
    let pages = gzip(json!([page("a"), page("b"), page("c")]).to_string());
    let keys: Vec<_> = (0..32).map(|n| format!(r#""{}{n}":1"#, r"\n".repeat(64_000))).collect();
    let escaped_keys = gzip(format!(r#"{{"event":"$identify","$set":{{{}}}}}"#, keys.join(",")));
    let small_properties = gzip(format!(r#"{{"event":"e","properties":{{{}"":0}}}}"#, r#""":0,"#.repeat(830_000)));
    let small_events = format!("[{}0]", r#"{"event":"e"},"#.repeat(9_999));
    let no_events = format!("[{}1]", "1,".repeat(9_999));
    for (what, count) in [
        ("half a body", 6),
        ("large events that wait for room", 8),
        ("events that take little while they are packed", 8),
        ("pages whose query grows when it is written out", 8),
        ("keys that are all escapes", 8),
        ("as many properties as there is room for", 8),
        ("10,000 small events", 40),
        ("10,000 that are none", 150),
    ] {
        let variance = Variance::start().await;
        variance.accepting(Accepting::Silently);
        let (running, address) = Program::serve(&variance)
            .env("CONNECTOR_MAX_HELD", "16MiB")
            .env("CONNECTOR_MAX_BODY", "4MiB")
            .env("CONNECTOR_BATCH_DEADLINE", "1s")
            .env("CONNECTOR_WEBHOOK_DEADLINE", "1s")
            .ready()
            .await;
        let idle = running.memory("VmHWM");
        let client = harness::client();
        let mut requests = JoinSet::<u16>::new();
        for n in 0..count {
            for path in ["webhook", "batch"] {
                let request = client.post(format!("http://{address}/{path}"));
                let id = format!("{path} {n}");
                let request = match what {
                    "half a body" => {
                        let (address, body) = (address.clone(), "x".repeat(MAX_BODY - 100));
                        requests.spawn(async move { post_half(&address, path, body).await });
                        continue;
                    }
                    "large events that wait for room" => {
                        let events = json!([{"event": "e", "uuid": id}, large(id.clone() + "a"), large(id + "b")]);
                        request.body(events.to_string())
                    }
                    "events that take little while they are packed" => {
                        request.header("content-encoding", "gzip").body(packed.clone())
                    }
                    "pages whose query grows when it is written out" => {
                        request.header("content-encoding", "gzip").body(pages.clone())
                    }
                    "keys that are all escapes" => {
                        request.header("content-encoding", "gzip").body(escaped_keys.clone())
                    }
                    "as many properties as there is room for" => {
                        request.header("content-encoding", "gzip").body(small_properties.clone())
                    }
                    "10,000 small events" => request.body(small_events.clone()),
                    _ => request.body(no_events.clone()),
                };
                requests.spawn(async move { request.send().await.unwrap().status().as_u16() });
            }
        }
        let mut statuses = BTreeMap::<u16, usize>::new();
        while let Some(status) = requests.join_next().await {
            *statuses.entry(status.unwrap()).or_default() += 1;
        }
        let most = running.memory("VmHWM") - idle;
        // A quarter is for what the allocator keeps. An idle program does not have the thread.
        let limits =
            (MAX_HELD + 2 * (2 * MAX_BODY + BESIDE_BODIES) + 2 * count * (24 << 10) + LARGE_BODY_THREAD) * 5 / 4;
        println!("{what}: {statuses:?}, {most} bytes at the most of {limits}");
        assert!(most < limits, "{what}: {most} bytes, where {limits} are allowed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_half_sent_heads_take_no_more_memory_than_connections_may() {
    let variance = Variance::start().await;
    let program = Program::serve(&variance).env("CONNECTOR_MAX_BODY", "4MiB").env("CONNECTOR_MAX_HELD", "16MiB");
    let (running, address) = program.ready().await;
    let mut streams = Vec::new();
    for _ in 0..1_000 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(format!("POST /webhook HTTP/1.1\r\nX: {}", "x".repeat(15_000)).as_bytes()).await.unwrap();
        streams.push(stream);
    }
    for _ in 0..10 {
        let reply =
            harness::Reply::of(harness::client().post(format!("http://{address}/webhook")).body(r#"{"event":"e"}"#))
                .await;
        assert_eq!(reply.status, 200);
    }
    let peak = running.memory("VmHWM");
    println!("a thousand half heads: {peak} bytes at most");
    // According to docs/delivery.md: memory for held events, for bodies and for the rest, and a quarter of the sum for
    // the allocator.
    assert!(peak < ((16 + 4 * 4 + 80) * 5 / 4) << 20, "{peak}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_of_hundreds_of_kib_fit_in_the_quarter_of_the_sum() {
    let variance = Variance::start().await;
    let long = "x".repeat(400 << 10);
    let head = format!("HTTP/1.1 200 OK\r\nSet-Cookie: {long}\r\nContent-Length: 0\r\n\r\n");
    variance.always(Behaviour::Bytes(head.into_bytes()));
    let (running, address) = Program::serve(&variance).env("CONNECTOR_ATTEMPT_TIMEOUT", "60s").ready().await;
    let idle = running.memory("VmHWM");
    let events: Vec<_> = (0..300).map(|n| json!({"event": "e", "uuid": format!("{n}")})).collect();
    let body = json!({"batch": events}).to_string();
    let reply = harness::client().post(format!("http://{address}/batch")).body(body).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    assert_eq!(variance.received().len(), 300);
    let grown = running.memory("VmHWM") - idle;
    println!("300 long heads: {grown} bytes more than {idle}");
    // The sum without the quarter is 432 MiB by default.
    assert!(grown < 108 << 20, "{grown}");
}
