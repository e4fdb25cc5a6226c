//! The display of progress: a bar on a terminal, a line now and then elsewhere. It counts events that have ended,
//! however far reading is ahead of them.

use std::{
    io::{self, IsTerminal},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use jiff::Timestamp;

use super::counts::Counts;
use crate::{
    cli::{input::Position, tell},
    metrics::StateLabel,
    outbox::Outbox,
};

/// The time between two updates.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// The time between two lines where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bar: ProgressBar,
    is_quiet: bool,
    start: Instant,
    measure: Measure,
    counts: Arc<Counts>,
    /// The events in all, once that is known.
    expected: AtomicU64,
    /// The time that reading has reached.
    reached: Mutex<Option<Timestamp>>,
    last: Mutex<Last>,
}

/// The measure of the work to do.
#[derive(Clone, Debug)]
pub(super) enum Measure {
    /// The bytes in all, if that is known, and those read so far.
    Bytes(Option<u64>, Position),
    /// The events in all, once that is known.
    Events,
}

#[derive(Debug)]
struct Last {
    line: Instant,
    is_paused: bool,
}

impl Progress {
    pub(super) fn start(is_quiet: bool, measure: Measure, counts: Arc<Counts>) -> Self {
        let template = match &measure {
            Measure::Bytes(Some(_), _) => "{bar:24} {percent}% of {binary_total_bytes}, {msg}, {eta} left",
            Measure::Bytes(None, _) => "{spinner} {binary_bytes}, {msg}",
            Measure::Events => "{bar:24} {human_pos} of {human_len} events, {msg}, {eta} left",
        };
        let bar = if io::stderr().is_terminal() && !is_quiet {
            let style = ProgressStyle::with_template(template).expect("a template that is known to be right");
            ProgressBar::new(0).with_style(style).with_message("reading")
        } else {
            ProgressBar::hidden()
        };
        let start = Instant::now();
        let last = Mutex::new(Last { line: start, is_paused: false });
        let (expected, reached) = (AtomicU64::default(), Mutex::default());
        Self(Arc::new(Inner { bar, is_quiet, start, measure, counts, expected, reached, last }))
    }

    /// Prints a problem.
    pub(super) fn say(&self, line: &str) {
        self.0.bar.suspend(|| tell(line));
    }

    /// Prints something worth knowing, unless the user wants quiet.
    pub(super) fn note(&self, line: &str) {
        if !self.0.is_quiet {
            self.say(line);
        }
    }

    /// Notes how many events there are in all.
    pub(super) fn expect(&self, events: u64) {
        self.0.expected.store(events, Ordering::Relaxed);
    }

    /// Notes the time that reading has reached.
    pub(super) fn reach(&self, time: Timestamp) {
        *self.0.reached.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }

    /// Updates the display.
    pub(super) fn update(&self, outbox: &Outbox) {
        let Inner { bar, is_quiet, start, measure, counts, expected, reached, last } = &*self.0;
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let health = outbox.health();
        let is_paused = health.state == StateLabel::Paused;
        if std::mem::replace(&mut last.is_paused, is_paused) != is_paused {
            match health.reason.filter(|_| is_paused) {
                Some(fault) => self.say(&format!("Variance does not accept events ({fault}): waiting and retrying")),
                None => self.say("Variance accepts events again"),
            }
        }
        let (done, total, reached) = match measure {
            Measure::Bytes(total, read) => {
                let read = read.load(Ordering::Relaxed);
                ((read as f64 * counts.part_ended()) as u64, *total, String::new())
            }
            Measure::Events => {
                let reached = *reached.lock().unwrap_or_else(PoisonError::into_inner);
                let reached = reached.map(|time| format!("up to {time:.0}, ")).unwrap_or_default();
                (counts.ended(), Some(expected.load(Ordering::Relaxed)), reached)
            }
        };
        let message = format!("{reached}{} events/s, {}", HumanCount(self.rate()), counts.brief());
        if !bar.is_hidden() {
            bar.set_length(total.unwrap_or_default());
            bar.set_position(done);
            bar.set_message(message);
        } else if !is_quiet && last.line.elapsed() >= LINE_EVERY {
            last.line = Instant::now();
            let left = total.filter(|total| done > 0 && *total >= done).map(|total| {
                let left = start.elapsed().mul_f64((total - done) as f64 / done as f64);
                format!(", {} left", HumanDuration(left))
            });
            let total = total.filter(|total| *total > 0).map(|total| format!(" of {}", measure.amount(total)));
            let (total, left) = (total.unwrap_or_default(), left.unwrap_or_default());
            tell(format_args!("{}{total}{left}: {message}", measure.amount(done)));
        }
    }

    /// The number of events that have ended, per second.
    pub(super) fn rate(&self) -> u64 {
        (self.0.counts.ended() as f64 / self.0.start.elapsed().as_secs_f64()) as u64
    }

    /// The time that has passed so far.
    pub(super) fn elapsed(&self) -> Duration {
        self.0.start.elapsed()
    }

    pub(super) fn finish(&self) {
        self.0.bar.finish_and_clear();
    }
}

impl Measure {
    fn amount(&self, number: u64) -> String {
        match self {
            Self::Bytes(..) => HumanBytes(number).to_string(),
            Self::Events => format!("{} events", HumanCount(number)),
        }
    }
}
