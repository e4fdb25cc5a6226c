//! The program itself, as a shell runs it.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tokio::sync::mpsc;

use crate::{harness::AUTHORIZATION, variance::Variance};

/// A run of the program that has not started yet, in an environment of its own.
pub struct Program {
    command: Command,
    input: Vec<u8>,
}

/// The output of the program and its exit code.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Program {
    pub fn new(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_variance-connector"));
        command.args(arguments).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command, input: Vec::new() }
    }

    /// Returns a run of the service in front of the stand-in, on a free port.
    pub fn serve(variance: &Variance) -> Self {
        Self::new(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]).to(variance)
    }

    /// Adds the settings for posting to the stand-in.
    pub fn to(self, variance: &Variance) -> Self {
        self.env("VARIANCE_WEBHOOK_URL", variance.url()).env("VARIANCE_AUTHORIZATION", AUTHORIZATION)
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Redirects its standard output, which is then not in [`Ended::out`].
    #[cfg(target_os = "linux")] // where a terminal is tried
    pub fn out(mut self, out: impl Into<Stdio>) -> Self {
        self.command.stdout(out);
        self
    }

    /// Sets its standard input.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Starts the program, for a test that has something to do meanwhile.
    pub fn start(mut self) -> Running {
        let mut child = self.command.spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), self.input);
        // The program need not read to the end.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
        Running { child: Some(child) }
    }

    /// Starts the service and waits until it listens. Returns its address as well.
    pub async fn ready(self) -> (Running, String) {
        let (running, address, _) = self.ready_and_heard().await;
        (running, address)
    }

    /// Does the same, and also returns its later lines on standard error.
    pub async fn ready_and_heard(self) -> (Running, String, Errors) {
        let mut running = self.start();
        let mut errors = running.errors();
        loop {
            let line: Value = serde_json::from_str(&errors.line("{").await).unwrap();
            if let Some(address) = line["address"].as_str() {
                return (running, address.to_owned(), errors);
            }
        }
    }

    /// Runs the program to its end, while the stand-in goes on.
    pub async fn run(self) -> Ended {
        self.start().ended().await
    }
}

/// A running program. It is killed when it is dropped.
pub struct Running {
    pub child: Option<Child>,
}

/// The lines that a running program writes to standard error.
pub struct Errors(mpsc::UnboundedReceiver<String>);

impl Running {
    /// Takes its standard error, to wait for lines.
    pub fn errors(&mut self) -> Errors {
        let stderr = self.child.as_mut().unwrap().stderr.take().unwrap();
        let (lines, receiver) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                // The test may have read enough.
                drop(lines.send(line.unwrap()));
            }
        });
        Errors(receiver)
    }

    /// Sends the program a signal, such as `-TERM`.
    pub fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Returns a figure of the program's memory in bytes, from `/proc`.
    #[cfg(target_os = "linux")]
    pub fn memory(&self, figure: &str) -> usize {
        let id = self.child.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(figure)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    pub async fn ended(mut self) -> Ended {
        let child = self.child.take().unwrap();
        let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended {
            code: output.status.code().expect("no signal ended it"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

impl Ended {
    /// Returns the first line of its output, which of `backfill` is the summary.
    pub fn summary(&self) -> &str {
        self.out.lines().next().unwrap_or_default()
    }
}

impl Errors {
    /// Returns the next line, or `None` once the program has ended.
    pub async fn next(&mut self) -> Option<String> {
        self.0.recv().await
    }

    /// Waits for a line of the log in JSON with a message that contains `part`. Returns the messages up to that line.
    pub async fn message(&mut self, part: &str) -> Vec<String> {
        let mut messages = Vec::new();
        while let Some(line) = self.0.recv().await {
            let line: Value = serde_json::from_str(&line).unwrap();
            messages.push(line["message"].as_str().unwrap().to_owned());
            if messages.last().is_some_and(|message| message.contains(part)) {
                return messages;
            }
        }
        panic!("no message has {part:?} in {messages:#?}");
    }

    /// Waits for a line that begins with `start`.
    pub async fn line(&mut self, start: &str) -> String {
        let mut before = Vec::new();
        while let Some(line) = self.0.recv().await {
            if line.starts_with(start) {
                return line;
            }
            before.push(line);
        }
        panic!("no line starts with {start:?} in {before:#?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
