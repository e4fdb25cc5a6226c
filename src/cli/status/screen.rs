//! The report for people: one screen, or a line.

use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use indicatif::HumanCount;
use strum::VariantArray;

use super::report::{Count, Report, Times};
use crate::metrics::{CallLabel, OutcomeLabel};

/// Clears a terminal's screen.
pub(super) const CLEAR: &str = "\x1b[2J";

/// Returns the text that paints a screen over the last one, without clearing first, which would flicker.
pub(super) fn repaint(screen: &str) -> String {
    format!("\x1b[H{}\x1b[J", screen.replace('\n', "\x1b[K\n"))
}

#[derive(Clone, Copy)]
enum Colour {
    Plain = 0,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Lays out the report as one screen of 80 columns.
pub(super) fn screen(report: &Report, is_colourful: bool) -> String {
    let paint = |colour: Colour, text: String| match colour {
        Colour::Plain => text,
        _ if !is_colourful => text,
        _ => format!("\x1b[{}m{text}\x1b[0m", colour as u8),
    };
    let red_if = |is_red: bool| if is_red { Colour::Red } else { Colour::Plain };
    let Report { variance, outcomes, held, attempts, replies, senders_refused, .. } = report;
    let stopping = if report.status == "draining" { ", stopping" } else { "" };
    let Report { version, address, uptime_seconds, over_seconds, .. } = report;
    let started = time(*uptime_seconds as f64);
    let mut lines = vec![
        format!("variance-connector {version} at {address}, started {started} ago{stopping}"),
        row("", &format!("rates (/s) are those of the last {over_seconds:.0} s")),
    ];

    let colour = match variance.state.as_str() {
        "up" => Colour::Green,
        "failing" => Colour::Yellow,
        "paused" => Colour::Red,
        _ => Colour::Plain,
    };
    let state = paint(colour, variance.state.clone());
    let reason = variance.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    lines.push(row("Variance", &format!("{state} for {}{reason}", ago(&variance.since))));
    let last = variance.last_success.as_ref().map(|last| format!("accepted an event {} ago", ago(last)));
    let last = last.as_deref().unwrap_or("has accepted no event yet");
    let next = variance.next_attempt_seconds.map(|seconds| format!("; next attempt in {}", time(seconds)));
    lines.push(row("", &format!("{last}{}", next.unwrap_or_default())));
    lines.push(String::new());

    let cells = |label: &str, cell: &dyn Fn(OutcomeLabel) -> String| {
        let cells = OutcomeLabel::VARIANTS.iter().map(|outcome| cell(*outcome));
        cells.fold(format!("{label:<10}"), |line, cell| line + " " + &cell)
    };
    lines.push(cells("Events", &|outcome| format!("{:>10}", outcome.as_ref())));
    for call in CallLabel::VARIANTS.iter().map(AsRef::as_ref) {
        let counts = &report.events[call];
        lines.push(cells(&format!("  {call}"), &|outcome| format!("{:>10}", human(counts[outcome.as_ref()]))));
    }
    let is_loss = |outcome| matches!(outcome, OutcomeLabel::Refused | OutcomeLabel::Abandoned);
    lines.push(cells("  all", &|outcome| {
        let total = outcomes[outcome.as_ref()].total;
        paint(red_if(is_loss(outcome) && total > 0), format!("{:>10}", human(total)))
    }));
    lines.push(cells("  /s", &|outcome| format!("{:>10.1}", outcomes[outcome.as_ref()].per_second)));
    lines.push(String::new());

    let joined = human(report.joined.total);
    lines.push(row("Received", &format!("{}; {joined} were re-sends of known events", count(report.received))));
    let part = 100.0 * held.bytes as f64 / (held.limit_bytes as f64).max(1.0);
    let bytes = |bytes| ByteSize(bytes).display().iec().to_string();
    let memory = format!("{}, {part:.0} % of {}", bytes(held.bytes), bytes(held.limit_bytes));
    let oldest = format!("the oldest for {} of {}", time(held.oldest_seconds), time(held.retry_for_seconds));
    lines.push(row("Held", &format!("{} ({memory}); {oldest}", human(held.events))));
    lines.push(row(
        "Attempts",
        &format!("{}; {} in flight of {} at once", count(attempts.count), attempts.in_flight, attempts.limit),
    ));
    lines.push(row("", &times(attempts.times)));
    for (label, route) in [("Replies", "webhook"), ("", "batch")] {
        let replies = &replies[route];
        lines.push(row(label, &format!("{route}: {}; {}", count(replies.count), times(replies.times))));
    }
    let [missing, wrong] = ["missing", "wrong"].map(|reason| human(senders_refused[reason].total));
    lines.push(row("Senders", &format!("refused: {missing} without a credential, {wrong} with a wrong one")));
    let lost = ["refused", "abandoned"].map(|outcome| outcomes[outcome].total);
    let dropped = report.log_lines_dropped;
    let text =
        format!("{} refused by Variance, {} given up; {dropped} lines of the log", human(lost[0]), human(lost[1]));
    lines.push(row("Lost", &paint(red_if(lost != [0, 0] || dropped > 0), text)));
    lines.push(String::new());
    lines.join("\n")
}

/// Lays out the report as one line, for output that is not a terminal.
pub(super) fn line(report: &Report) -> String {
    let Report { variance, received, outcomes, held, attempts, .. } = report;
    let [delivered, refused, abandoned] = ["delivered", "refused", "abandoned"].map(|outcome| outcomes[outcome]);
    format!(
        "{} Variance {}; received {}; delivered {}; held {}; in flight {} of {}; lost {}\n",
        humantime::format_rfc3339_seconds(SystemTime::now()),
        variance.state,
        count(*received),
        count(delivered),
        held.events,
        attempts.in_flight,
        attempts.limit,
        refused.total + abandoned.total,
    )
}

fn row(label: &str, text: &str) -> String {
    format!("{label:<10} {text}")
}

fn human(count: u64) -> String {
    HumanCount(count).to_string()
}

fn count(Count { total, per_second }: Count) -> String {
    format!("{} ({per_second:.1}/s)", human(total))
}

fn times(times: Option<Times>) -> String {
    let Some(Times { half_within, most_within, recent }) = times else { return "no times yet".to_owned() };
    let within = |bound: Option<f64>| match bound {
        Some(seconds) => format!("in {:?}", Duration::from_secs_f64(seconds)),
        None => "longer than is measured".to_owned(),
    };
    let since = if recent { "" } else { " since the start" };
    format!("half {}, 99 % {}{since}", within(half_within), within(most_within))
}

/// Returns the time since a moment, which is in the form that the service uses.
fn ago(moment: &str) -> String {
    let since = humantime::parse_rfc3339(moment).ok().and_then(|moment| SystemTime::now().duration_since(moment).ok());
    time(since.unwrap_or_default().as_secs_f64())
}

/// Formats a time in whole seconds.
fn time(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
}
