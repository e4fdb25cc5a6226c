//! The program at the end of its life: Variance has every event that was acknowledged.

use std::{
    collections::HashSet,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    harness,
    program::{Program, Running},
    variance::{Behaviour, Variance},
};

const GRACE: Duration = Duration::from_secs(3);

/// Starts the program in front of the stand-in. Returns its address as well.
async fn start(variance: &Variance) -> (Running, String) {
    Program::serve(variance).env("CONNECTOR_SHUTDOWN_GRACE", "3s").ready().await
}

/// Starts senders that post until nobody answers, and that record the events that were acknowledged.
pub fn load(address: &str, acknowledged: &Arc<Mutex<Vec<String>>>) -> JoinSet<()> {
    let client = harness::client();
    let mut senders = JoinSet::new();
    for sender in 0..16 {
        let (client, url) = (client.clone(), format!("http://{address}/webhook"));
        let acknowledged = Arc::clone(acknowledged);
        senders.spawn(async move {
            for n in 0.. {
                let id = format!("{sender}-{n}");
                let body = json!({"event": "e", "uuid": id, "distinct_id": "d"}).to_string();
                match client.post(&url).body(body).send().await {
                    Ok(reply) if reply.status() == 200 => acknowledged.lock().unwrap().push(id),
                    Ok(reply) => assert_eq!(reply.status(), 503),
                    Err(_) => return,
                }
            }
        });
    }
    senders
}

/// The stand-in's record of the events that it read.
#[derive(Default)]
pub struct Ledger {
    pub taken: HashSet<String>,
    pub failed: HashSet<String>,
}

/// Makes the stand-in slow, and makes it fail a fifth of all events once: the program holds those for a while.
pub fn fail_some(variance: &Variance) -> Arc<Mutex<Ledger>> {
    let ledger = Arc::<Mutex<Ledger>>::default();
    let script = Arc::clone(&ledger);
    variance.script(move |received| {
        let id = received.id();
        let mut ledger = script.lock().unwrap();
        let is_one_of_five = id.bytes().map(u32::from).sum::<u32>().is_multiple_of(5);
        let status = if is_one_of_five && ledger.failed.insert(id.clone()) { 500 } else { 200 };
        if status == 200 {
            ledger.taken.insert(id);
        }
        Behaviour::After(Duration::from_millis(5), Box::new(Behaviour::Status(status)))
    });
    ledger
}

pub fn assert_all_arrived(acknowledged: &Mutex<Vec<String>>, ledger: &Mutex<Ledger>) {
    let (acknowledged, ledger) = (acknowledged.lock().unwrap(), ledger.lock().unwrap());
    assert!(!acknowledged.is_empty(), "nothing was acknowledged: there was no load");
    assert!(!ledger.failed.is_empty(), "nothing was held");
    for id in acknowledged.iter() {
        assert!(ledger.taken.contains(id), "{id} was acknowledged and is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_under_load_it_finishes_what_it_has_and_ends_in_its_grace() {
    for round in 0..8 {
        let variance = Variance::start().await;
        let ledger = fail_some(&variance);
        let (running, address) = start(&variance).await;
        let silent = TcpStream::connect(&address).await.unwrap();
        let mut half_head = TcpStream::connect(&address).await.unwrap();
        half_head.write_all(b"POST /webhook HTTP/1.1\r\nHost: ").await.unwrap();
        let mut half_body = TcpStream::connect(&address).await.unwrap();
        half_body
            .write_all(b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"event\"")
            .await
            .unwrap();
        let acknowledged = Arc::default();
        let mut senders = load(&address, &acknowledged);
        variance.received_at_least(20 + 30 * round).await;
        let start = Instant::now();
        running.signal("-TERM");
        let mut reply = String::new();
        half_body.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
        let ended = running.ended().await;
        let time = start.elapsed();
        assert_eq!(ended.code, 0);
        assert!(time < GRACE + Duration::from_secs(2), "{time:?}");
        while let Some(sender) = senders.join_next().await {
            sender.unwrap();
        }
        assert_all_arrived(&acknowledged, &ledger);
        drop((silent, half_head));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_it_has_acknowledged_nothing_that_variance_does_not_have() {
    for round in 0..8 {
        let variance = Variance::start().await;
        let ledger = fail_some(&variance);
        let (running, address) = start(&variance).await;
        let acknowledged = Arc::default();
        let mut senders = load(&address, &acknowledged);
        variance.received_at_least(50 + 50 * round).await;
        drop(running);
        while let Some(sender) = senders.join_next().await {
            sender.unwrap();
        }
        assert_all_arrived(&acknowledged, &ledger);
    }
}

#[tokio::test]
async fn another_signal_a_second_later_ends_it_at_once() {
    let variance = Variance::start().await;
    variance.always(Behaviour::BytesThenSilence(Vec::new()));
    let (mut running, address) = Program::serve(&variance)
        .env("CONNECTOR_SHUTDOWN_GRACE", "1h")
        .env("CONNECTOR_WEBHOOK_DEADLINE", "1h")
        .ready()
        .await;
    let client = harness::client();
    let body = r#"{"event":"e"}"#;
    let request = tokio::spawn(client.post(format!("http://{address}/webhook")).body(body).send());
    variance.received_at_least(1).await;
    running.signal("-TERM");
    let refused = loop {
        let reply = client.post(format!("http://{address}/webhook")).body("[]").send().await.unwrap();
        if reply.status() == 503 {
            break reply;
        }
    };
    assert_eq!(refused.headers()["connection"], "close");
    let child = running.child.as_mut().unwrap();
    let status = loop {
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
    };
    assert_eq!(status.code(), Some(1));
    assert!(request.await.unwrap().is_err());
}

/// Starts the program with one event that Variance does not take yet.
async fn holding(variance: &Variance) -> Running {
    variance.always(Behaviour::Status(500));
    let program = Program::serve(variance).env("CONNECTOR_WEBHOOK_DEADLINE", "1s");
    let (running, address) = program.env("CONNECTOR_SHUTDOWN_GRACE", "60s").ready().await;
    let reply = harness::client().post(format!("http://{address}/webhook")).body(r#"{"event":"e","uuid":"held"}"#);
    assert_eq!(reply.send().await.unwrap().status(), 503);
    running
}

#[tokio::test]
async fn every_signal_to_stop_delivers_first_and_two_at_once_are_one() {
    let all = ["-TERM", "-INT", "-QUIT", "-TERM -TERM", "-INT -INT", "-QUIT -TERM", "-HUP -HUP -TERM"];
    future::join_all(all.map(|signals| async move {
        let variance = Variance::start().await;
        let running = holding(&variance).await;
        let id = running.child.as_ref().unwrap().id();
        let kill = signals.split(' ').map(|signal| format!("kill {signal} {id}")).collect::<Vec<_>>().join("; ");
        let before = variance.count();
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        variance.received_at_least(before + 1).await;
        variance.always(Behaviour::Status(200));
        assert_eq!(running.ended().await.code, 0, "{signals}");
        assert_eq!(variance.ids().last().unwrap(), "held", "{signals}");
    }))
    .await;
}
