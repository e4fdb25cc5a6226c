//! Settings that change while the program runs, without losing the events that it holds.

use std::{collections::HashSet, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{self, AUTHORIZATION},
    program::{Errors, Program, Running},
    variance::{Behaviour, Variance},
};

const TOKEN: &str = "the-first-token-of-16";
const OTHER_TOKEN: &str = "another-token-of-16";

/// Answers 404 to requests to any other path.
fn only_at(variance: &Variance, path: &'static str) {
    variance.script(move |received| Behaviour::Status(if received.path() == path { 200 } else { 404 }));
}

/// Posts events with these names as ids, and returns the status and the reply.
async fn post(address: &str, token: &str, names: &[String]) -> (u16, Value) {
    let events: Vec<_> = names.iter().map(|name| json!({"event": "e", "uuid": name, "distinct_id": "d"})).collect();
    let request = harness::client().post(format!("http://{address}/batch")).bearer_auth(token);
    let reply = request.body(json!(events).to_string()).send().await.unwrap();
    (reply.status().as_u16(), serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap())
}

async fn post_one(address: &str, token: &str, name: &str) -> u16 {
    post(address, token, &[name.to_owned()]).await.0
}

async fn held(address: &str) -> u64 {
    let reply = harness::client().get(format!("http://{address}/readyz")).send().await.unwrap();
    let health: Value = serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap();
    health["held"]["events"].as_u64().unwrap()
}

/// Prepares a program that reads a wrong URL from the file `url` of a folder.
fn with_url_file(variance: &Variance) -> (TempDir, Program) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    std::fs::write(&file, format!("http://{}/wrong\n", variance.address)).unwrap();
    let program = Program::new(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
        .env("VARIANCE_WEBHOOK_URL_FILE", &file)
        .env("VARIANCE_AUTHORIZATION", AUTHORIZATION)
        .env("CONNECTOR_BATCH_DEADLINE", "500ms");
    (folder, program)
}

/// Starts a program that reads its token from the file `tokens` of a folder.
async fn with_token_file(variance: &Variance) -> (TempDir, Running, String, Errors) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    std::fs::write(&file, TOKEN).unwrap();
    let program = Program::serve(variance).env("CONNECTOR_TOKEN_FILE", &file).env("CONNECTOR_LOG_FORMAT", "json");
    let (running, address, log) = program.ready_and_heard().await;
    (folder, running, address, log)
}

#[tokio::test]
async fn events_held_by_a_wrong_url_arrive_once_its_file_is_mended() {
    let variance = Variance::start().await;
    only_at(&variance, "/right");
    let (folder, program) = with_url_file(&variance);
    let file = folder.path().join("url");
    let (running, address, mut log) = program.ready_and_heard().await;
    let names: Vec<_> = (0..1_000).map(|n| format!("event-{n}")).collect();
    for names in names.chunks(100) {
        assert_eq!(post(&address, TOKEN, names).await.0, 503);
    }
    assert_eq!(held(&address).await, 1_000);

    std::fs::write(&file, "no URL").unwrap();
    log.message("the webhook URL could not be read again").await;
    std::fs::write(&file, format!("http://{}/right\n", variance.address)).unwrap();
    log.message("the webhook URL was read again: it has changed").await;
    while held(&address).await > 0 {
        tokio::task::yield_now().await;
    }
    let arrived: Vec<_> =
        variance.received().iter().filter(|received| received.path() == "/right").map(|r| r.id()).collect();
    assert_eq!((arrived.len(), arrived.into_iter().collect::<HashSet<_>>()), (1_000, names.into_iter().collect()));
    assert_eq!(post_one(&address, TOKEN, "later").await, 200);
    drop(running);
}

#[tokio::test]
async fn events_refused_at_a_wrong_url_arrive_once_its_file_is_mended() {
    let variance = Variance::start().await;
    variance.script(|received| Behaviour::Status(if received.path() == "/right" { 200 } else { 400 }));
    let (folder, program) = with_url_file(&variance);
    let file = folder.path().join("url");
    let (_running, address, mut log) = program.ready_and_heard().await;
    let names: Vec<_> = (0..10).map(|n| format!("event-{n}")).collect();
    assert_eq!(post(&address, TOKEN, &names).await.0, 503, "nothing shows that Variance takes any event");
    std::fs::write(&file, format!("http://{}/right", variance.address)).unwrap();
    log.message("the webhook URL was read again: it has changed").await;
    while held(&address).await > 0 {
        tokio::task::yield_now().await;
    }
    let arrived = variance.received().iter().filter(|received| received.path() == "/right").count();
    assert_eq!(arrived, 10);
}

#[tokio::test]
async fn tokens_and_signing_secrets_rotate_by_file() {
    let variance = Variance::start().await;
    let (folder, _running, address, mut log) = with_token_file(&variance).await;
    let file = folder.path().join("tokens");
    assert_eq!(post_one(&address, TOKEN, "a").await, 200);
    std::fs::write(&file, format!("{OTHER_TOKEN}\n{TOKEN}\n")).unwrap();
    for token in [OTHER_TOKEN, TOKEN] {
        assert_eq!(post_one(&address, token, "b").await, 200, "{token}");
    }
    log.message("the senders' credentials were read again: they have changed").await;
    assert_eq!(post_one(&address, "a-token-that-nobody-knows", "c").await, 401);
}

#[tokio::test]
async fn tokens_stay_valid_when_their_file_cannot_be_read_again() {
    let variance = Variance::start().await;
    let (folder, _running, address, mut log) = with_token_file(&variance).await;
    let file = folder.path().join("tokens");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(post_one(&address, OTHER_TOKEN, "a").await, 401);
    log.message("the senders' credentials could not be read again: the previous ones stay valid").await;
    assert_eq!(post_one(&address, TOKEN, "b").await, 200);
}

/// Starts the program with a configuration file.
async fn with_file(file: &Path, content: &str) -> (Running, String, Errors) {
    std::fs::write(file, content).unwrap();
    let file = file.to_str().unwrap();
    Program::new(["serve", "--config", file, "--listen", "127.0.0.1:0", "--log-format", "json"]).ready_and_heard().await
}

#[tokio::test]
async fn a_signal_reads_the_whole_configuration_again() {
    let variance = Variance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("connector.toml");
    let config = |path: &str, token: &str, more: &str| {
        let url = format!("http://{}{path}", variance.address);
        format!(
            "[variance]\nwebhook_url = '{url}'\nauthorization = 'Bearer {path}'\n[server]\ntoken = '{token}'\n{more}"
        )
    };
    // One event is refused at the first path only.
    variance.script(|received| {
        Behaviour::Status(if received.path() == "/first" && received.id() == "refused" { 400 } else { 200 })
    });
    let (running, address, mut log) = with_file(&file, &config("/first", TOKEN, "")).await;
    assert_eq!(post_one(&address, TOKEN, "taken").await, 200);
    for _ in 0..2 {
        assert_eq!(post_one(&address, TOKEN, "refused").await, 422);
    }
    assert_eq!(variance.count(), 2, "the refusal is remembered");

    std::fs::write(&file, config("/second", "short", "")).unwrap();
    running.signal("-HUP");
    let messages =
        log.message("the configuration was read again and has problems: the service keeps the old one").await;
    assert!(
        messages.iter().any(|message| message.contains("server.token") && message.contains("line 5")),
        "{messages:?}"
    );
    assert_eq!(post_one(&address, TOKEN, "still").await, 200);
    assert_eq!(variance.received().last().unwrap().path(), "/first");

    let more = "max_body = '1MiB'\n[filter]\nexclude = ['e']\n[log]\nlevel = 'debug'\n";
    std::fs::write(&file, config("/second", OTHER_TOKEN, more)).unwrap();
    running.signal("-HUP");
    let messages = log.message("the configuration was read again").await;
    let fixed = |name: &str| messages.iter().any(|message| message.starts_with(&format!("{name} has changed")));
    assert!(fixed("server.max_body") && !fixed("delivery.max_held") && !fixed("server.listen"), "{messages:?}");
    assert_eq!(post_one(&address, TOKEN, "new").await, 401);
    log.message("replied").await;
    let (status, reply) = post(&address, OTHER_TOKEN, &["new".to_owned()]).await;
    assert_eq!((status, &reply["filtered"]), (200, &json!(1)));

    std::fs::write(&file, config("/second", OTHER_TOKEN, "")).unwrap();
    running.signal("-HUP");
    log.message("the configuration was read again").await;
    assert_eq!(post_one(&address, OTHER_TOKEN, "refused").await, 200, "what the first path refused is forgotten");
    let last = variance.received().pop().unwrap();
    assert_eq!((last.path(), last.headers["authorization"].as_str()), ("/second", "Bearer /second"));
}

#[tokio::test]
async fn a_signal_with_another_url_ends_a_pause() {
    let variance = Variance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("connector.toml");
    let config = |path: &str| {
        let url = format!("http://{}{path}", variance.address);
        format!("[variance]\nwebhook_url = '{url}'\nauthorization = 'a'\n[server]\nbatch_deadline = '300ms'\n")
    };
    variance.script(|received| match received.path() {
        "/busy" => Behaviour::StatusWith(503, "Retry-After: 300".to_owned()),
        _ => Behaviour::Status(200),
    });
    let (running, address, mut log) = with_file(&file, &config("/busy")).await;
    assert_eq!(post_one(&address, TOKEN, "held").await, 503);
    std::fs::write(&file, config("/open")).unwrap();
    running.signal("-HUP");
    log.message("the configuration was read again").await;
    variance.received_at_least(2).await;
    assert_eq!(variance.received()[1].path(), "/open");
}
