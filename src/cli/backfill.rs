//! `backfill`: forwards the events of exported files, or those that PostHog still has, through the service's own
//! decoder, mapping and outbox.
//!
//! A thread reads and maps, the runtime posts. Between them there is a budget of memory, so that neither the size of a
//! file nor that of its events matters.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Write},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use futures_util::stream::FuturesUnordered;
use indicatif::HumanCount;
use jiff::Timestamp;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};
use uuid::Uuid;

use self::{
    counts::Counts,
    failures::Failures,
    from_posthog::{FromPosthog, Lost, MARGIN, Task},
    progress::{Measure, Progress},
    reader::{BUDGET, Next, Reader},
    resume::Resume,
    sender::{Pace, Sender, Stopped},
    times::Times,
};
use super::{
    Failed,
    input::{Position, Source},
    tell,
};
use crate::{
    config::{self, Flags, Forwarding, Loaded, Variables},
    destination::Destination,
    metrics::Metrics,
    outbox::{Outbox, OutboxSettings},
    query_api::QueryApi,
    shutdown,
};

mod counts;
mod failures;
mod from_posthog;
mod progress;
mod reader;
mod resume;
mod sender;
mod times;

/// The least size of the window of events in the outbox.
const MIN_WINDOW: usize = 256;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Files with PostHog's events, plain or packed: exports, or bodies of requests; `-` is standard input
    #[arg(
        value_name = "FILE",
        required_unless_present_any = ["from_posthog", "ingested", "ingested_since", "lost", "after"],
        conflicts_with = "from_posthog"
    )]
    files: Vec<PathBuf>,
    /// Read the events from PostHog's Query API, with the settings `posthog.…`
    #[arg(long)]
    from_posthog: bool,
    /// Only events that PostHog took in between `--since` and `--until`, whenever they happened: those of an outage
    #[arg(long)]
    ingested: bool,
    /// Only events that PostHog took in at this time or later; an interrupted run may print it
    #[arg(long, value_name = "TIME", value_parser = times::parse_argument)]
    ingested_since: Option<Timestamp>,
    /// Only events that this log of the connector names as lost; `-` is standard input
    #[arg(long, value_name = "LOG", conflicts_with_all = ["since", "until", "ingested", "ingested_since"])]
    lost: Option<PathBuf>,
    /// Only events after this one at the time of `--since`; an interrupted run prints it
    #[arg(long, value_name = "UUID", requires = "since", value_parser = super::uuid)]
    after: Option<Uuid>,
    /// The configuration file; else that in `CONNECTOR_CONFIG`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Append invalid and refused events to this file as they came, so that it can be the next input
    #[arg(long, value_name = "FILE")]
    failed: Option<PathBuf>,
    /// The most events per second
    #[arg(long, value_name = "N", value_parser = super::at_least_one)]
    rate: Option<NonZeroU32>,
    /// Only events from this time on, such as 2026-08-20 or 2026-08-20T09:00Z
    #[arg(long, value_name = "TIME", value_parser = times::parse_argument)]
    since: Option<Timestamp>,
    /// Only events before this time
    #[arg(long, value_name = "TIME", value_parser = times::parse_argument)]
    until: Option<Timestamp>,
    /// Skip the first N events; an interrupted run prints N
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::whole_number)]
    skip: u64,
    /// Print only problems
    #[arg(long, short)]
    quiet: bool,
}

/// Forwards everything and reports what became of it. Fails if any of it failed.
pub(super) fn run(args: Args, variables: &Variables) -> anyhow::Result<()> {
    if let Some(problem) = problem(&args, Timestamp::now()) {
        return Err(config::Error { problems: vec![problem] }.into());
    }
    let flags = Flags { config: args.config.clone(), ..Flags::default() };
    let Loaded { config, warnings, settings: _ } = config::forwarding(&flags, variables, args.from_posthog)?;
    for warning in warnings {
        tell(format_args!("warning: {warning}"));
    }
    let task = match args.from_posthog {
        false => None,
        true => match task(&args)? {
            Some(task) => Some(task),
            None => return Ok(()),
        },
    };
    super::runtime()?.block_on(forward(args, task, config))
}

/// Returns what is wrong with the combination of arguments.
fn problem(args: &Args, now: Timestamp) -> Option<String> {
    let Args { from_posthog, ingested, ingested_since, lost, after, since, until, skip, .. } = args;
    match (since, until) {
        _ if !from_posthog && (*ingested || ingested_since.is_some() || lost.is_some() || after.is_some()) => {
            Some("--ingested, --ingested-since, --lost and --after need --from-posthog".to_owned())
        }
        _ if *from_posthog && lost.is_none() && *skip > 0 => {
            Some("--skip is for files and --lost: without them, --since and --after say where to begin".to_owned())
        }
        (Some(since), Some(until)) if since >= until => Some(format!("--since {since} is not before --until {until}")),
        (_, Some(until)) if *from_posthog && *until > now => {
            Some(format!("--until {until} is in the future: leave it out to read all events up to 15 minutes ago"))
        }
        (Some(since), None) if *from_posthog && *since >= now - MARGIN => Some(format!(
            "--since {since} is less than 15 minutes ago, where reading ends by default: set --until, too"
        )),
        _ => {
            let failed = args.failed.as_deref()?;
            let mut read = args.files.iter().chain(lost);
            let is_read = read.any(|file| is_same(failed, file));
            is_read.then(|| format!("--failed {} is one of the files to be read: name another file", failed.display()))
        }
    }
}

/// Returns the events to read from PostHog, or `None` if a log names no event as lost.
fn task(args: &Args) -> anyhow::Result<Option<Task>> {
    let Args { ingested, ingested_since, lost, after, since, until, skip, quiet, .. } = args;
    Ok(Some(match lost {
        Some(path) => {
            let log = Source::new(path);
            let lost = log.open().and_then(|text| Lost::read(BufReader::with_capacity(64 << 10, text)));
            let name = log.name;
            let lost = lost.with_context(|| format!("the log {name} (--lost) cannot be read"))?;
            if lost.ids.is_empty() && lost.others.is_empty() {
                anyhow::ensure!(
                    lost.is_connectors,
                    "{name} (--lost) has no line of the connector's log: is it the whole log, with standard error (`2>&1`)?"
                );
                if !quiet {
                    tell(
                        "note: a process that was killed (kill -9, out of memory) cannot name what it lost: use --ingested for that time",
                    );
                    drop(writeln!(io::stdout(), "The log names no event as lost: nothing is lost."));
                }
                return Ok(None);
            }
            Task::Lost { lost, skip: *skip }
        }
        None => {
            let now = Timestamp::now();
            let until = until.unwrap_or_else(|| {
                let until = now - MARGIN;
                if !quiet {
                    tell(format_args!(
                        "note: reading ends at {until:.0}, 15 minutes ago, because events can arrive late (--until sets another end)"
                    ));
                }
                until
            });
            let span = (since.unwrap_or(Timestamp::UNIX_EPOCH), until);
            Task::Time { span, after: *after, ingested: *ingested, ingested_since: *ingested_since }
        }
    }))
}

async fn forward(args: Args, task: Option<Task>, forwarding: Forwarding) -> anyhow::Result<()> {
    let Forwarding { posthog, mapping, destination, outbox, shutdown_grace } = forwarding;
    let stop = shutdown::on_signal().context("signals cannot be handled")?;
    let at_once = stop.at_once;
    tokio::spawn(async move {
        at_once.cancelled().await;
        process::exit(1);
    });
    let counts = Arc::new(Counts::default());
    let position = Position::default();
    let sources: Vec<_> = args.files.iter().map(Source::new).collect();
    let measure = match &task {
        None => Measure::Bytes(sources.iter().map(Source::len).sum(), Arc::clone(&position)),
        Some(_) => Measure::Events,
    };
    let progress = Progress::start(args.quiet, measure, Arc::clone(&counts));
    let mut failures = Failures::open(args.failed.as_deref(), progress.clone())?;

    let concurrency = outbox.concurrency;
    let (url, timeout) = (destination.webhook_url.clone(), destination.attempt_timeout);
    let destination = Destination::new(destination);
    // The source keeps the events, so they can wait for as long as Variance is away.
    let outbox = OutboxSettings { abandon: false, ..outbox };
    let outbox = Outbox::start(outbox, destination, Metrics::new());
    let resume = match &task {
        Some(Task::Time { span: (since, _), after, ingested_since, .. }) => {
            Resume::From { since: *since, after: after.map(|id| id.to_string()), ingested_since: *ingested_since }
        }
        None | Some(Task::Lost { .. }) => Resume::Skip(args.skip),
    };
    let next = Arc::new(Mutex::new(Next { number: 0, resume }));
    let (works, queue) = mpsc::unbounded_channel();
    let reader = Reader {
        mapping,
        times: match &task {
            None => Times { since: args.since, until: args.until },
            Some(_) => Times::default(),
        },
        keeps_originals: args.failed.is_some(),
        outbox: outbox.clone(),
        counts: Arc::clone(&counts),
        progress: progress.clone(),
        budget: Arc::new(Semaphore::new(BUDGET)),
        works,
        next: Arc::clone(&next),
        runtime: Handle::current(),
        scratch: Vec::new(),
    };
    let skip = args.skip;
    let reading = match task.zip(posthog) {
        Some((task, posthog)) => {
            let api = QueryApi::new(posthog).context("the HTTP client for PostHog cannot be set up")?;
            let from_posthog = FromPosthog::new(api, reader);
            thread::spawn(move || from_posthog.read(task))
        }
        None => thread::spawn(move || {
            reader.files(&sources, &position, skip);
            true
        }),
    };
    let sender = Sender {
        outbox: &outbox,
        request: outbox.request(),
        queue,
        under_way: BTreeMap::new(),
        outcomes: FuturesUnordered::new(),
        window: MIN_WINDOW.max(2 * concurrency),
        pace: args.rate.map(Pace::new),
        counts: &counts,
        failures: &mut failures,
        progress: &progress,
        next: &next,
        grace: shutdown_grace,
        stop_by: None,
        advice: &|fault| super::check::advice(fault, &url, timeout),
        not_kept: Vec::new(),
    };
    let mut stopped = sender.send(&stop.asked).await;
    outbox.close();
    // After an interruption, the thread may wait for input that never comes; the process ends without it.
    if let Stopped::AtTheEnd = stopped
        && !reading.join().expect("the reader does not panic")
    {
        let next = next.lock().expect("no panic while it is held");
        stopped = Stopped::Early(next.resume.clone());
    }
    progress.finish();
    if !args.quiet {
        let took = Duration::from_millis(u64::try_from(progress.elapsed().as_millis()).unwrap_or(u64::MAX));
        let (took, rate) = (humantime::format_duration(took), HumanCount(progress.rate()));
        let told = writeln!(io::stdout(), "{counts}\nIt took {took} ({rate} events per second).");
        // If nobody reads the output, the exit code still says how it went.
        drop(told);
    }
    if let Stopped::Early(resume) = &stopped {
        tell(format_args!("To go on from here:\n  {}", resume::command(&args, resume)));
        if args.files.iter().chain(&args.lost).any(|file| file.as_os_str() == "-") {
            tell("Pipe the same input into it again.");
        }
    }
    match (stopped, counts.has_failures()) {
        (Stopped::AtTheEnd, false) => Ok(()),
        _ => Err(Failed.into()),
    }
}

/// True if two paths lead to the same file.
fn is_same(path: &Path, other: &Path) -> bool {
    let real = path.canonicalize();
    real.is_ok_and(|real| other.canonicalize().is_ok_and(|other| other == real))
}
