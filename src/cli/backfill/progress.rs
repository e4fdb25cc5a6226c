//! How far it is: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::{self, IsTerminal},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use super::counts::Counts;
use crate::{cli::input::Position, metrics::StateLabel, outbox::Outbox};

/// How often it is looked at.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// How often there is a line where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bar: ProgressBar,
    is_quiet: bool,
    start: Instant,
    total_bytes: Option<u64>,
    position: Position,
    counts: Arc<Counts>,
    last: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    line: Instant,
    is_paused: bool,
}

impl Progress {
    pub(super) fn start(is_quiet: bool, total_bytes: Option<u64>, position: Position, counts: Arc<Counts>) -> Self {
        let bar = match (io::stderr().is_terminal() && !is_quiet, total_bytes) {
            (false, _) => ProgressBar::hidden(),
            (true, Some(total)) => ProgressBar::new(total)
                .with_style(style("{bar:24} {percent}% of {binary_total_bytes}, {msg}, {eta} left")),
            (true, None) => ProgressBar::new_spinner().with_style(style("{spinner} {binary_bytes}, {msg}")),
        };
        let start = Instant::now();
        let last = Mutex::new(Last { line: start, is_paused: false });
        Self(Arc::new(Inner { bar, is_quiet, start, total_bytes, position, counts, last }))
    }

    /// Says what is wrong.
    pub(super) fn say(&self, line: &str) {
        self.0.bar.suspend(|| eprintln!("{line}"));
    }

    /// Says what is worth knowing.
    pub(super) fn note(&self, line: &str) {
        if !self.0.is_quiet {
            self.say(line);
        }
    }

    /// Brings it up to date.
    pub(super) fn update(&self, outbox: &Outbox) {
        let Inner { bar, is_quiet, start, total_bytes, position, counts, last } = &*self.0;
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let health = outbox.health();
        let is_paused = health.state == StateLabel::Paused;
        if std::mem::replace(&mut last.is_paused, is_paused) != is_paused {
            match health.reason.filter(|_| is_paused) {
                Some(fault) => self.say(&format!("Variance does not take events ({fault}): waiting, and trying again")),
                None => self.say("Variance takes events again"),
            }
        }
        let (elapsed, bytes) = (start.elapsed(), position.load(Ordering::Relaxed));
        let rate = HumanCount((counts.read() as f64 / elapsed.as_secs_f64()) as u64);
        let message = format!("{rate} events/s, {}", counts.brief());
        if !bar.is_hidden() {
            bar.set_position(bytes);
            bar.set_message(message);
        } else if !is_quiet && last.line.elapsed() >= LINE_EVERY {
            last.line = Instant::now();
            let left = total_bytes.filter(|total| bytes > 0 && *total >= bytes).map(|total| {
                let left = elapsed.mul_f64((total - bytes) as f64 / bytes as f64);
                format!(" of {}, {} left", HumanBytes(total), HumanDuration(left))
            });
            eprintln!("{}{}: {message}", HumanBytes(bytes), left.unwrap_or_default());
        }
    }

    pub(super) fn finish(&self) {
        self.0.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a template that is known to be right")
}
