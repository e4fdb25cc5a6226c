//! A log that nobody reads, or that cannot be written, costs lines and nothing else.

use std::{
    fs::File,
    io::{BufRead, BufReader, PipeReader, Read, Write, pipe},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use futures_util::future;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    net::{TcpSocket, unix::pipe::Sender},
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    harness::{AUTHORIZATION, PATIENCE, Reply, client},
    variance::{Behaviour, Variance},
};

/// The trouble with standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It was closed before the start.
    Closed,
    /// Its disk is full.
    Full,
    /// It is a pipe without a reader.
    Gone,
    /// It is a pipe that is full, with a reader that does not read.
    Blocked,
    /// It is such a pipe, and writing to it fails instead of waiting.
    Refusing,
}

pub const TROUBLES: [Trouble; 5] = [Trouble::Closed, Trouble::Full, Trouble::Gone, Trouble::Blocked, Trouble::Refusing];

/// Returns standard error in this trouble, the shell's redirection for it, and the other end.
fn standard_error(trouble: Trouble) -> (Stdio, &'static str, Option<PipeReader>) {
    let (reader, mut writer) = pipe().unwrap();
    match trouble {
        Trouble::Closed => (Stdio::null(), "2>&-", None),
        Trouble::Full => (File::create("/dev/full").unwrap().into(), "", None),
        Trouble::Gone => (writer.into(), "", None),
        Trouble::Blocked => {
            // This is as much as a pipe holds.
            writer.write_all(&[b'\n'; 64 << 10]).unwrap();
            (writer.into(), "", Some(reader))
        }
        Trouble::Refusing => {
            writer.write_all(&[b'\n'; 64 << 10]).unwrap();
            // All that tokio's two conversions change is that the descriptor no longer blocks.
            let sender = Sender::from_owned_fd(writer.into()).unwrap();
            (sender.into_nonblocking_fd().unwrap().into(), "", Some(reader))
        }
    }
}

/// `serve`, whose log is in trouble. It is killed when it is dropped.
pub struct Program {
    child: Child,
    client: Client,
    pub address: String,
    log: Option<PipeReader>,
    /// Keeps the port from others.
    _reservation: TcpSocket,
}

impl Program {
    pub async fn start(variance: &Variance, trouble: Trouble, variables: &[(&str, &str)]) -> Self {
        // The port is chosen here, because the log may not be able to name it.
        let reservation = TcpSocket::new_v4().unwrap();
        reservation.set_reuseaddr(true).unwrap();
        reservation.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = reservation.local_addr().unwrap().to_string();
        let (stderr, redirection, log) = standard_error(trouble);
        let child = Command::new("/bin/sh")
            .args(["-c", &format!("exec \"$0\" {redirection}"), env!("CARGO_BIN_EXE_variance-connector")])
            .env_clear()
            .envs([("VARIANCE_WEBHOOK_URL", &*variance.url()), ("VARIANCE_AUTHORIZATION", AUTHORIZATION)])
            .envs([("CONNECTOR_LISTEN", &*address), ("CONNECTOR_WEBHOOK_DEADLINE", "1s")])
            .envs([("CONNECTOR_LOG_LEVEL", "debug"), ("CONNECTOR_LOG_FORMAT", "json")])
            .envs(variables.iter().copied())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let program = Self { child, client: client(), address, log, _reservation: reservation };
        let ready = async {
            while program.client.get(program.url("/healthz")).send().await.is_err() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, ready).await.unwrap_or_else(|_| panic!("{trouble:?}: it does not start"));
        program
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn post(&self, ids: &[&str]) -> u16 {
        let event = |id: &&str| json!({"event": "e", "uuid": id, "distinct_id": "d"});
        let body = json!(ids.iter().map(event).collect::<Vec<_>>()).to_string();
        Reply::of(self.client.post(self.url("/webhook")).body(body)).await.status
    }

    pub async fn get(&self, path: &str) -> String {
        Reply::of(self.client.get(self.url(path))).await.text
    }

    async fn lines_dropped(&self) -> u64 {
        let metrics = self.get("/metrics").await;
        let name = "variance_connector_log_lines_dropped_total ";
        metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    }

    /// Sends SIGTERM to the program and returns its exit code.
    async fn stop(&mut self) -> Option<i32> {
        self.terminate();
        self.ended().await
    }

    pub fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    /// Waits for the end of the program and returns its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, ended).await.expect("it ends")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The program may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_starts_serves_holds_retries_refuses_and_stops_whatever_the_log_is() {
    future::join_all(TROUBLES.map(|trouble| async move {
        let variance = Variance::start().await;
        let mut program = Program::start(&variance, trouble, &[]).await;
        assert_eq!(program.post(&["delivered"]).await, 200, "{trouble:?}");

        variance.script(|received| Behaviour::Status(if received.id() == "refused" { 422 } else { 503 }));
        assert_eq!(program.post(&["refused"]).await, 422, "{trouble:?}");
        assert_eq!(program.post(&["1", "2", "3", "4", "5", "6", "7"]).await, 503, "{trouble:?}");
        let health: Value = serde_json::from_str(&program.get("/healthz").await).unwrap();
        assert_eq!(health["held"]["events"], 7, "{trouble:?}");

        variance.always(Behaviour::Status(200));
        let emptied = async { while !program.get("/healthz").await.contains(r#""held":{"events":0,"#) {} };
        timeout(PATIENCE, emptied).await.unwrap_or_else(|_| panic!("{trouble:?}: what is held stays"));
        assert_eq!(program.post(&["after the outage"]).await, 200, "{trouble:?}");

        let dropped = program.lines_dropped().await;
        assert_eq!(
            dropped > 0,
            matches!(trouble, Trouble::Full | Trouble::Gone | Trouble::Refusing),
            "{trouble:?}: {dropped}"
        );
        assert_eq!(program.stop().await, Some(0), "{trouble:?}");
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_read_late_is_whole() {
    let variance = Variance::start().await;
    let mut program = Program::start(&variance, Trouble::Blocked, &[]).await;
    // Each request makes a line.
    for n in 0..1000 {
        assert_eq!(program.post(&[&n.to_string()]).await, 200);
    }
    let mut reader = program.log.take().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).unwrap();
        log
    });
    assert_eq!(program.stop().await, Some(0));
    let log = read.await.unwrap();
    let messages: Vec<Value> =
        log.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(messages[0]["message"], "ready");
    assert_eq!(messages.iter().filter(|line| line["message"] == "replied" && line["route"] == "webhook").count(), 1000);
    assert_eq!(messages.last().unwrap()["message"], "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_were_dropped_are_counted_and_told_of_once_the_log_is_written_again() {
    let variance = Variance::start().await;
    let program = Program::start(&variance, Trouble::Refusing, &[]).await;
    assert_eq!(program.post(&["before"]).await, 200);
    let counted = async { while program.lines_dropped().await < 2 {} };
    timeout(PATIENCE, counted).await.expect("they are counted");
    let mut reader = BufReader::new(program.log.as_ref().unwrap().try_clone().unwrap());
    let (lines, mut received) = mpsc::unbounded_channel::<Value>();
    thread::spawn(move || {
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap() > 0 {
            if line != "\n" {
                // The test may have seen enough.
                drop(lines.send(serde_json::from_str(&line).unwrap()));
            }
            line.clear();
        }
    });
    let told = async {
        loop {
            assert_eq!(program.post(&["after"]).await, 200);
            while let Ok(line) = received.try_recv() {
                if line["message"] == "log lines were dropped: the log could not be written" {
                    return line;
                }
            }
        }
    };
    let line = timeout(PATIENCE, told).await.expect("they are told of");
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["lines"], program.lines_dropped().await);
}
