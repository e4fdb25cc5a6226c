//! The commands that need nothing, and the messages about a wrong configuration.

use std::process::{Command, Stdio};

use crate::{
    harness::AUTHORIZATION,
    program::{Ended, Program},
    variance::Variance,
};

async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let program = Program::new(arguments);
    variables.iter().fold(program, |program, (name, value)| program.env(name, value)).run().await
}

#[tokio::test]
async fn the_demonstration_shows_all_calls_and_what_did_not_arrive_and_why() {
    let output = run(&["demo"], &[]).await;
    let shown = &output.out;
    assert!(output.code == 0, "{shown}{}", &output.err);
    for piece in [
        "→ track \"plan upgraded\" arrived at Variance (Authorization: Bearer …al)",
        "→ page arrived",
        "→ identify arrived",
        "→ alias arrived",
        "\"mood\": \"🦔\"",
        "\"sku\": \"seat\"",
        "✕ \"$autocapture\" was filtered: not one of the calls that Variance accepts",
        "✕ \"$groupidentify\" was filtered: the call `group` is not in filter.calls",
        "✕ the event at index 4: the event has no name: `event` is missing",
        "← 503 Service Unavailable: 1 received, 1 held",
        "11 events received = 7 delivered + 2 filtered + 1 invalid + 1 held",
        "7 calls arrived at Variance, each once.",
    ] {
        assert!(shown.contains(piece), "{piece:?} is not in:\n{shown}");
    }
    assert!(!shown.contains("demo-variance-credential"), "the credential is masked");
}

#[tokio::test]
async fn a_wrong_configuration_is_told_before_a_port_is_opened() {
    // If the listener were opened first, the address would be the problem.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let required =
        [("VARIANCE_WEBHOOK_URL", "https://variance.example/hook"), ("VARIANCE_AUTHORIZATION", "Bearer canary")];
    for (variables, problem) in [
        (
            vec![required[1]],
            "error: variance.webhook_url (environment variable VARIANCE_WEBHOOK_URL) is missing: copy it from Variance > \
             Integrations > PostHog",
        ),
        (
            vec![required[0]],
            "error: variance.authorization (environment variable VARIANCE_AUTHORIZATION) is missing: copy the header",
        ),
        (
            vec![("VARIANCE_WEBHOOK_URL", "variance"), required[1]],
            "error: variance.webhook_url (environment variable VARIANCE_WEBHOOK_URL) must be the http or https URL from",
        ),
        (
            vec![required[0], required[1], ("CONNECTOR_CONCURRENCY", "many")],
            "error: delivery.concurrency (environment variable CONNECTOR_CONCURRENCY) is \"many\", but must be a whole number",
        ),
    ] {
        let variables: Vec<_> = variables.into_iter().chain([("CONNECTOR_LISTEN", &*listen)]).collect();
        let output = run(&["serve"], &variables).await;
        let told = &output.err;
        assert_eq!(output.code, 64, "{told}");
        assert!(told.starts_with(problem) && told.lines().count() == 1, "{told}");
        assert!(!told.contains("canary"), "{told}");
    }
    let output = run(&["serve", "--listen", &listen], &required).await;
    let told = &output.err;
    assert_eq!(output.code, 1, "{told}");
    assert!(told.contains(&format!("cannot listen on {listen} (server.listen)")), "{told}");
}

#[tokio::test]
async fn an_unknown_key_of_the_file_is_named_with_the_one_that_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("connector.toml");
    std::fs::write(&file, "[delivery]\nconcurency = 8\n").unwrap();
    let output = run(&["serve", "--config", file.to_str().unwrap()], &[]).await;
    let told = &output.err;
    assert_eq!(output.code, 64, "{told}");
    assert!(told.contains("delivery.concurency") && told.contains("delivery.concurrency"), "{told}");
}

#[tokio::test]
async fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell], &[]).await;
        assert!(output.code == 0 && output.out.contains("healthcheck"), "{shell}");
    }
    assert_eq!(run(&["completions", "cmd.exe"], &[]).await.code, 64);
}

#[tokio::test]
async fn output_that_nobody_reads_or_that_has_no_room_is_no_panic() {
    let variance = Variance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let events = folder.path().join("events.jsonl");
    std::fs::write(&events, "{\"event\":\"e\",\"distinct_id\":\"d\"}\nno event\n").unwrap();
    let events = events.to_str().unwrap();
    for arguments in [
        &["--help"][..],
        &["--nonsense"],
        &["serve"],
        &["check", "--send"],
        &["check", "--format", "json"],
        &["preview", events, "/nowhere"],
        &["backfill", events, "/nowhere"],
        &["backfill", "--quiet", events],
        &["healthcheck", "--listen", "127.0.0.1:1"],
        &["completions", "bash"],
    ] {
        for redirection in [">&- 2>&-", ">/dev/full 2>/dev/full", "| true", "2>&1 | true", ">/dev/full 2>&-"] {
            // The shell writes the exit code to a file, since a pipe hides it.
            let code = folder.path().join("code");
            let program = env!("CARGO_BIN_EXE_variance-connector");
            let script = format!("{{ \"$0\" \"$@\"; echo $? > {}; }} {redirection}", code.display());
            let url = if arguments == ["serve"] { "nowhere".to_owned() } else { variance.url() };
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &script, program]).args(arguments).stdin(Stdio::null()).env_clear();
            command.envs([("VARIANCE_WEBHOOK_URL", &*url), ("VARIANCE_AUTHORIZATION", AUTHORIZATION)]);
            // The output of the shell itself is of no interest: the redirections have most of it.
            drop(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap());
            let code = std::fs::read_to_string(&code).unwrap();
            assert!(matches!(code.trim(), "0" | "1" | "64"), "{arguments:?} {redirection}: {code}");
        }
    }
}

#[tokio::test]
async fn healthcheck_reaches_a_service_on_all_addresses_where_there_is_no_ipv6() {
    let variance = Variance::start().await;
    // As if it listened on `[::]` with IPv6 switched off.
    let (_running, address) = Program::serve(&variance).ready().await;
    let port = address.rsplit_once(':').unwrap().1;
    let ended = Program::new(["healthcheck"]).env("CONNECTOR_LISTEN", format!("[::]:{port}")).run().await;
    assert_eq!(ended.code, 0, "{ended:?}");
}
