//! How well the connector finds out what Variance takes: `cargo bench --bench limits`.
//!
//! Starts receivers with limits of their own, each with the real binary at its defaults in front of it, sends more than
//! the receiver takes and prints the receiver's counts beside what is expected. It takes three minutes;
//! `cargo bench --bench limits -- slots` runs the cases whose name has `slots` in it, and `--binary PATH` uses another
//! build.

#![expect(unreachable_pub, reason = "nothing can be reached from outside of a benchmark")]

mod receiver;
#[expect(dead_code, reason = "the other benchmark uses the rest")]
#[path = "../shared/mod.rs"]
mod shared;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::ensure;
use receiver::Seen;
use shared::{
    process::Process,
    sender::{Sender, exchange},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// The time in which the connector learns, which is not judged.
const LEARNING: Duration = Duration::from_secs(5);

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let Some(("receiver", kind)) = args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return receiver::run(kind);
    }
    let (mut wanted, mut binary) = (String::new(), PathBuf::from(Process::CONNECTOR));
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--binary" => binary = args.next().unwrap_or_default().into(),
            other => wanted = other.to_owned(),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(cases(&binary, &|name: &str| name.contains(&wanted)))
}

async fn cases(binary: &Path, is_wanted: &dyn Fn(&str) -> bool) -> anyhow::Result<()> {
    let ten = Duration::from_secs(10);
    println!("| receiver | taken | rejected | median reply | longest | duplicates | log lines | expected |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, kind, learning, expected) in [
        ("200 ms", &["delay", "200"][..], LEARNING, "1,000/s"),
        ("50 ms", &["delay", "50"], LEARNING, "3,500/s"),
        ("log-normal, median 50 ms", &["log-normal", "50"], LEARNING, "80 % of 256 / mean: 2,485/s"),
        ("rate of 500/s, 429", &["rate", "500"], LEARNING, "450/s, 5 % rejected"),
    ] {
        if is_wanted(name) {
            let run = Run::start(binary, kind, &[]).await?;
            run.row(name, learning, ten, expected).await?;
        }
    }
    if is_wanted("rate of 500/s, 429 with Retry-After: 2") {
        let run = Run::start(binary, &["rate", "500", "2"], &[]).await?;
        let expected = "350/s, 5 % rejected, a line per 10 s";
        run.row("rate of 500/s, 429 with Retry-After: 2", 3 * LEARNING, 2 * ten, expected).await?;
    }
    if is_wanted("16 slots of 20 ms") {
        let run = Run::start(binary, &["slots", "16", "16", "20"], &[("CONNECTOR_CONCURRENCY", "16")]).await?;
        let fixed = run.row("16 slots of 20 ms, CONNECTOR_CONCURRENCY=16", LEARNING, ten, "").await?;
        let run = Run::start(binary, &["slots", "16", "16", "20"], &[]).await?;
        let expected = format!("95 % of that: {:.0}/s, median 45 ms", fixed * 0.95);
        run.row("16 slots of 20 ms", LEARNING, ten, &expected).await?;
    }
    if is_wanted("200 slots of 20 ms, 20 for ten seconds") {
        let run = Run::start(binary, &["slots", "200", "20", "20"], &[]).await?;
        run.row("200 slots of 20 ms", LEARNING, LEARNING, "").await?;
        sleep_until(run.started + ten + Duration::from_secs(6)).await;
        run.row("20 from then on, from the sixth second on", Duration::ZERO, Duration::from_secs(4), "60 ms").await?;
        run.row("200 again, from the tenth second on", 4 * LEARNING + ten, LEARNING, "").await?;
    }
    if is_wanted("burst of 1,000 webhooks, 300 ms") {
        burst(binary).await?;
    }
    Ok(())
}

/// A receiver, the connector in front of it, and senders that never rest.
struct Run {
    receiver: Process,
    _connector: Process,
    log: tempfile::NamedTempFile,
    started: Instant,
    _senders: JoinSet<()>,
}

impl Run {
    async fn start(binary: &Path, kind: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let receiver = Process::receiver(kind)?;
        let log = tempfile::NamedTempFile::new()?;
        let connector = Process::start(binary, receiver.address(), variables, log.reopen()?)?;
        let sender = Sender::new(connector.address(), "/batch", 500);
        let mut senders = JoinSet::new();
        // The last events of some may be slow ones, so there are enough others.
        for _ in 0..16 {
            senders.spawn(keep_sending(sender));
        }
        Ok(Self { receiver, _connector: connector, log, started: Instant::now(), _senders: senders })
    }

    /// Prints what the receiver sees for `time`, beginning `after` the start. Returns how many events it takes per
    /// second.
    async fn row(&self, name: &str, after: Duration, time: Duration, expected: &str) -> anyhow::Result<f64> {
        sleep_until(self.started + after).await;
        let lines = self.log_lines()?;
        ask(&self.receiver).await?;
        let start = Instant::now();
        sleep(time).await;
        let seen = ask(&self.receiver).await?;
        let rate = seen.taken as f64 / start.elapsed().as_secs_f64();
        let lines = self.log_lines()? - lines;
        println!(
            "| {name} | {rate:.0}/s | {:.2} % | {:.1} ms | {:.1} ms | {} | {lines} | {expected} |",
            100.0 * seen.rejected as f64 / (seen.taken + seen.rejected).max(1) as f64,
            seen.median_ms,
            seen.longest_ms,
            seen.duplicates,
        );
        Ok(rate)
    }

    fn log_lines(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_to_string(self.log.path())?.lines().count())
    }
}

/// Sends batch after batch, and repeats each until it is answered with 200.
async fn keep_sending(sender: Sender) {
    let mut request = Vec::new();
    loop {
        sender.write_request(&mut request);
        loop {
            let Ok(mut stream) = sender.connect().await else { return };
            match exchange(&mut stream, &request).await {
                Ok((200, _)) => break,
                Ok(_) => sleep(Duration::from_secs(1)).await,
                Err(_) => return,
            }
        }
    }
}

async fn ask(receiver: &Process) -> anyhow::Result<Seen> {
    let mut stream = tokio::net::TcpStream::connect(receiver.address()).await?;
    let (status, text) = exchange(&mut stream, b"GET / HTTP/1.1\r\n\r\n").await?;
    ensure!(status == 200, "{status}: {text}");
    Seen::parse(&text)
}

/// Sends as PostHog's own backfill does: all webhooks at once over 500 connections, one attempt each, which must be
/// over in 3 s. Those that wait for a connection have as long.
async fn burst(binary: &Path) -> anyhow::Result<()> {
    let receiver = Process::receiver(&["delay", "300"])?;
    let connector = Process::start(binary, receiver.address(), &[], Stdio::inherit())?;
    let sender = Sender::new(connector.address(), "/webhook", 1);
    // A fifth of the events is filtered.
    let left = Arc::new(AtomicUsize::new(1250));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..500 {
        let left = Arc::clone(&left);
        tasks.spawn(async move {
            let mut failed = 0;
            let mut request = Vec::new();
            let mut stream = sender.connect().await?;
            while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                sender.write_request(&mut request);
                let (status, _) = exchange(&mut stream, &request).await?;
                failed += usize::from(status != 200 || start.elapsed() > Duration::from_secs(3));
            }
            anyhow::Ok(failed)
        });
    }
    let mut failed = 0;
    while let Some(task) = tasks.join_next().await {
        failed += task??;
    }
    let seen = ask(&receiver).await?;
    println!(
        "| burst of 1,000 webhooks, 300 ms | {} in all | {:.1} % late or failed | {:.1} ms | {:.1} ms | {} | | 5 % late |",
        seen.taken,
        failed as f64 / 10.0,
        seen.median_ms,
        seen.longest_ms,
        seen.duplicates,
    );
    Ok(())
}
