//! `backfill`: forwards the events of exported files, on the service's own way: its decoder, mapping and outbox.
//!
//! A thread reads and maps, the runtime posts. Between them there is a budget of memory, so that neither the size of a
//! file nor that of its events matters.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Write},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process,
    sync::{Arc, atomic::AtomicU64},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::stream::FuturesUnordered;
use indicatif::HumanCount;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};

use self::{
    counts::Counts,
    failures::Failures,
    progress::Progress,
    reader::{BUDGET, Reader},
    sender::{Pace, Sender, Stopped},
    times::Times,
};
use super::{
    Failed,
    input::{Position, Source},
};
use crate::{
    config::{self, Flags, Forwarding, Loaded},
    destination::Destination,
    metrics::Metrics,
    outbox::Outbox,
    shutdown,
};

mod counts;
mod failures;
mod progress;
mod reader;
mod resume;
mod sender;
mod times;

/// How many events are in the outbox at once, at least.
const MIN_WINDOW: usize = 256;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Files with PostHog's events, plain or packed: exports, or bodies of requests; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The configuration file; else that in `CONNECTOR_CONFIG`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Append what is invalid or refused to this file, as it was, so that it can be the next input
    #[arg(long, value_name = "FILE")]
    failed: Option<PathBuf>,
    /// The most events per second
    #[arg(long, value_name = "N", value_parser = super::at_least_one)]
    rate: Option<NonZeroU32>,
    /// Only events from this time on, such as 2026-08-20 or 2026-08-20T09:00:00Z
    #[arg(long, value_name = "TIME", value_parser = times::parse_argument)]
    since: Option<jiff::Timestamp>,
    /// Only events before this time
    #[arg(long, value_name = "TIME", value_parser = times::parse_argument)]
    until: Option<jiff::Timestamp>,
    /// Pass over the first events, as a run that was interrupted tells to
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::whole_number)]
    skip: u64,
    /// Say nothing but what is wrong
    #[arg(long, short)]
    quiet: bool,
}

/// Forwards everything and tells what became of it. Fails if any of it did.
pub(super) fn run(args: Args, variables: impl IntoIterator<Item = (OsString, OsString)>) -> anyhow::Result<()> {
    let flags = Flags { config: args.config.clone(), ..Flags::default() };
    let Loaded { config: forwarding, settings: _, warnings } = config::forwarding(&flags, variables)?;
    if let Some(failed) = args.failed.as_deref().filter(|failed| is_among(failed, &args.files)) {
        let problem = format!("--failed {} is one of the files to be read", failed.display());
        return Err(config::Error { problems: vec![problem] }.into());
    }
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    super::runtime()?.block_on(forward(args, forwarding))
}

async fn forward(args: Args, forwarding: Forwarding) -> anyhow::Result<()> {
    let Forwarding { mapping, destination, outbox, shutdown_grace } = forwarding;
    let stop = shutdown::on_signal().context("signals cannot be listened to")?;
    let at_once = stop.at_once;
    tokio::spawn(async move {
        at_once.cancelled().await;
        process::exit(1);
    });
    let start = Instant::now();
    let counts = Arc::new(Counts::default());
    let position = Position::default();
    let sources: Vec<_> = args.files.iter().map(Source::new).collect();
    let total_bytes = sources.iter().map(Source::len).sum();
    let progress = Progress::start(args.quiet, total_bytes, Arc::clone(&position), Arc::clone(&counts));
    let mut failures = Failures::open(args.failed.as_deref(), progress.clone())?;

    let concurrency = outbox.concurrency;
    let destination =
        Destination::new(destination, concurrency).context("no client for Variance: are there root certificates?")?;
    let outbox = Outbox::start(outbox, destination, Metrics::new());
    let next = Arc::new(AtomicU64::new(0));
    let (works, queue) = mpsc::unbounded_channel();
    let reader = Reader {
        mapping,
        times: Times { since: args.since, until: args.until },
        skip: args.skip,
        keeps_originals: args.failed.is_some(),
        outbox: outbox.clone(),
        counts: Arc::clone(&counts),
        progress: progress.clone(),
        budget: Arc::new(Semaphore::new(BUDGET)),
        works,
        next: Arc::clone(&next),
        runtime: Handle::current(),
    };
    let reading = thread::spawn(move || reader.read(&sources, &position));
    let sender = Sender {
        outbox: &outbox,
        queue,
        under_way: BTreeMap::new(),
        outcomes: FuturesUnordered::new(),
        window: MIN_WINDOW.max(2 * concurrency),
        pace: args.rate.map(Pace::new),
        counts: &counts,
        failures: &mut failures,
        progress: &progress,
        returned: 0,
        last_pause: None,
        next: &next,
        grace: shutdown_grace,
        stop_by: None,
        not_kept: Vec::new(),
    };
    let stopped = sender.send(&stop.asked).await;
    outbox.close().await;
    // If it was interrupted, the thread may wait for input that never comes; the process ends without it.
    if let Stopped::AtTheEnd = stopped {
        reading.join().expect("the reader does not panic");
    }
    progress.finish();
    if !args.quiet {
        let elapsed = Duration::from_millis(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX));
        let rate = (counts.read() as f64 / start.elapsed().as_secs_f64()) as u64;
        let took = humantime::format_duration(elapsed);
        let told = writeln!(io::stdout(), "{counts}\nIt took {took} ({} events per second).", HumanCount(rate));
        // If nobody listens any more, the exit code still tells.
        drop(told);
    }
    if let Stopped::Early { resume_at } = stopped {
        eprintln!("To go on from here:\n  {}", resume::command(&args, resume_at));
    }
    match (stopped, counts.has_failures()) {
        (Stopped::AtTheEnd, false) => Ok(()),
        _ => Err(Failed.into()),
    }
}

fn is_among(path: &Path, others: &[PathBuf]) -> bool {
    let real = path.canonicalize();
    real.is_ok_and(|real| others.iter().any(|other| other.canonicalize().is_ok_and(|other| other == real)))
}
