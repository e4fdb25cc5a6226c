//! `--from-posthog`: the events that PostHog still has, read through its Query API.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Display,
    time::{Duration, Instant},
};

use indicatif::HumanCount;
use jiff::{SignedDuration, Timestamp, civil::Date};
use tokio::time::timeout;
use uuid::Uuid;

pub(super) use self::lost::Lost;
use self::{
    days::{Days, date_of, day_span},
    hogql::{BOUNDS_COLUMNS, By, DAY_COLUMNS, PAGE_COLUMNS, Selection, Which},
    pages::{Key, Pages, Span, windows},
    row::{Line, time_of},
};
use super::{
    reader::{Reader, Stop},
    resume::Resume,
};
use crate::{
    backoff::Backoff,
    cli::input::Original,
    json::Raw,
    posthog::Event,
    query_api::{Query, QueryApi, QueryError, Reply},
};

mod days;
mod hogql;
mod lost;
mod pages;
mod row;

/// The distance from now at which reading stops by default: events can arrive late.
pub(super) const MARGIN: Duration = Duration::from_secs(15 * 60);

/// The longest that a PostHog that has not answered yet may be away.
const PATIENCE_AT_THE_START: Duration = Duration::from_secs(30);

/// The pauses after queries that fail.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// The most failures in a row of queries that cannot ask for less.
const MAX_HOPELESS: u32 = 10;

/// The most ids of a log in one query.
const IDS_AT_ONCE: usize = 200;

/// Days before the first line that names a lost event, and after the last, in which the event may have happened. Each
/// pair is tried in turn until all events are found.
const AROUND_LOG: [(i64, i64); 4] = [(1, 1), (8, 1), (60, 2), (730, 365)];

/// The events to read.
#[derive(Debug)]
pub(super) enum Task {
    /// All events of a time, or those after an event of that time, and of these those that PostHog took in since another.
    Time { span: (Timestamp, Timestamp), after: Option<Uuid>, ingested: bool, ingested_since: Option<Timestamp> },
    /// The events that a log names, without the first few.
    Lost { lost: Lost, skip: u64 },
}

/// The reason why reading stopped early.
#[derive(Debug, thiserror::Error)]
enum Early {
    #[error(transparent)]
    Stop(#[from] Stop),
    #[error("{0}")]
    GiveUp(String),
}

pub(super) struct FromPosthog {
    api: QueryApi,
    reader: Reader,
    start: Instant,
    /// Events that PostHog took in since then may have been missing from an answer: shortly before the start.
    late_since: Timestamp,
    has_answered: bool,
    failures: u32,
    /// The number of failures in a row of queries that could not have asked for less.
    hopeless: u32,
    queries: u64,
    days: Days,
}

impl FromPosthog {
    pub(super) fn new(api: QueryApi, reader: Reader) -> Self {
        Self {
            api,
            reader,
            start: Instant::now(),
            late_since: Timestamp::now() - MARGIN,
            has_answered: false,
            failures: 0,
            hopeless: 0,
            queries: 0,
            days: Days::default(),
        }
    }

    /// Reads until there is no more, or until nobody takes it. Returns false if it gave up, and has said why.
    pub(super) fn read(mut self, task: Task) -> bool {
        let read = match task {
            Task::Time { span: (from, until), after, ingested, ingested_since } => {
                let by = if ingested { By::CreatedAt } else { By::Timestamp };
                self.time(Span::new(from, until), after, by, ingested_since)
            }
            Task::Lost { lost, skip } => self.lost(&lost, skip),
        };
        match read {
            Ok(()) => {
                let queries = HumanCount(self.queries);
                self.reader.progress.note(&format!("PostHog has answered {queries} queries"));
                true
            }
            Err(Early::Stop(_)) => true,
            Err(Early::GiveUp(problem)) => {
                self.reader.progress.say(&format!("error: {problem}"));
                false
            }
        }
    }

    fn time(
        &mut self,
        span: Span,
        after: Option<Uuid>,
        by: By,
        ingested_since: Option<Timestamp>,
    ) -> Result<(), Early> {
        let which = Which::forwarded(&self.reader.mapping);
        let mut selection = Selection { by, happened: None, ingested_since, which };
        if by == By::CreatedAt {
            selection.happened = Some(self.happened(&selection, span)?);
        }
        let after = after.map(|uuid| Key { time: span.from, uuid: uuid.to_string() });
        let counts = self.count(&selection, span, after.as_ref())?;
        let total = counts.values().sum();
        self.reader.progress.expect(total);
        let again = match by {
            By::Timestamp => "",
            By::CreatedAt => "; what Variance has of them already comes a second time, with the same messageId",
        };
        self.reader.progress.note(&format!(
            "PostHog has {} events that are forwarded, from {} up to {}{again}",
            HumanCount(total),
            span.from,
            span.until
        ));
        let plan = windows(span, counts.iter().map(|(day, count)| (day_span(*day), *count)));
        self.pages(&selection, Pages::new(plan, after.clone()), &mut |_| {})?;
        self.read_grown_days(&selection, span, after.as_ref())
    }

    /// Compares what was read with PostHog's own counts. Of days that have grown, reads what came late, and then all.
    fn read_grown_days(&mut self, selection: &Selection, span: Span, after: Option<&Key>) -> Result<(), Early> {
        let late_since = selection.ingested_since.max(Some(self.late_since));
        let late = Selection { ingested_since: late_since, ..selection.clone() };
        self.go_on_from(&late, &after.cloned().unwrap_or_else(|| Key::at(span.from)));
        for again in [Some(&late), Some(&late), Some(selection), None] {
            let mut grown = self.count(selection, span, after)?;
            grown.retain(|date, count| *count > self.days.read(*date));
            if grown.is_empty() {
                break;
            }
            for (date, count) in grown {
                let read = self.days.read(date);
                let Some(again) = again else {
                    let problem = format!("{date}: PostHog counts {count} events, but returned only {read} of them");
                    self.reader.missing(count - read, &problem);
                    continue;
                };
                let only_late = again.ingested_since != selection.ingested_since;
                let what = match only_late {
                    true => format!("what PostHog took in since {:.0}", self.late_since),
                    false => "all of it again".to_owned(),
                };
                let twice = match self.days.has_forgotten(date) {
                    true => "; events of it that were sent already come a second time, with the same messageId",
                    false => "",
                };
                let more = HumanCount(count - read);
                self.reader.progress.note(&format!("{date} has {more} more events by now: reading {what}{twice}"));
                self.days.begin_again(date, only_late);
                let day = day_span(date);
                let day = Span { from: day.from.max(span.from), until: day.until.min(span.until) };
                let after = after.filter(|after| after.time >= day.from).cloned();
                self.pages(again, Pages::new([day], after), &mut |_| {})?;
            }
        }
        Ok(())
    }

    /// Notes that all up to and including this place was read.
    fn go_on_from(&self, selection: &Selection, Key { time, uuid }: &Key) {
        let after = Some(uuid.clone()).filter(|uuid| !uuid.is_empty());
        self.reader.next().resume = Resume::From { since: *time, after, ingested_since: selection.ingested_since };
    }

    fn lost(&mut self, lost: &Lost, skip: u64) -> Result<(), Early> {
        let now = Timestamp::now();
        let (first, last) = lost.logged.unwrap_or((now, now));
        let mut missing = Vec::new();
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(lost.ids.len());
        self.reader.progress.expect((lost.ids.len() - skip) as u64);
        for (index, ids) in lost.ids[skip..].chunks(IDS_AT_ONCE).enumerate() {
            self.reader.next().resume = Resume::Skip((skip + index * IDS_AT_ONCE) as u64);
            let mut ids = ids.to_vec();
            for (before, after) in AROUND_LOG {
                let span = Span::new(shifted(first, -24 * before), shifted(last, 24 * after));
                let which = Which::Ids(ids.clone());
                let selection = Selection { by: By::Timestamp, happened: None, ingested_since: None, which };
                let mut found = HashSet::new();
                self.pages(&selection, Pages::new([span], None), &mut |uuid| {
                    found.extend(Uuid::parse_str(uuid));
                })?;
                ids.retain(|id| !found.contains(id));
                if ids.is_empty() {
                    break;
                }
            }
            missing.extend(ids);
        }
        let missing = missing.iter().map(Uuid::to_string);
        for (ids, what) in [
            (missing.collect(), "PostHog does not have"),
            (lost.others.clone(), "not the uuid of an event of PostHog:"),
        ] {
            if !ids.is_empty() {
                self.reader.missing(ids.len() as u64, &format!("{what} {}", ids.join(" ")));
            }
        }
        Ok(())
    }

    /// Returns the time span in which the events happened that came in within `span`.
    fn happened(&mut self, selection: &Selection, span: Span) -> Result<Span, Early> {
        let bounds = match self.ask(&selection.bounds(span), &BOUNDS_COLUMNS)? {
            Ok(reply) => reply,
            Err(reason) => {
                let bounds = Span::new(shifted(span.from, -24 * 31), shifted(span.until, 24));
                self.reader.progress.say(&format!(
                    "warning: {reason}, so only events that happened between {} and {} are read",
                    bounds.from, bounds.until
                ));
                return Ok(bounds);
            }
        };
        let rows = bounds.rows().map_err(give_up)?;
        let times = rows.first().map(|row| [row[1], row[2]].map(time_of));
        match times {
            Some([Some(first), Some(last)]) => Ok(Span::new(first, shifted(last, 1))),
            _ => Ok(span),
        }
    }

    /// Returns PostHog's own counts by day.
    fn count(&mut self, selection: &Selection, span: Span, after: Option<&Key>) -> Result<BTreeMap<Date, u64>, Early> {
        let mut counts = BTreeMap::new();
        let mut spans = vec![span];
        while let Some(span) = spans.pop() {
            let reply = match self.ask(&selection.days(span, after), &DAY_COLUMNS)? {
                Ok(reply) => reply,
                Err(reason) => {
                    let Some(middle) = middle_day(span) else {
                        self.failed(&reason)?;
                        spans.push(span);
                        continue;
                    };
                    spans.extend([Span { from: middle, ..span }, Span { until: middle, ..span }]);
                    continue;
                }
            };
            let rows = reply.rows().map_err(give_up)?;
            let mut last = None;
            for row in rows {
                let (day, count) = (row[0].to_plain().parse::<Date>(), row[1].to_plain().parse::<u64>());
                let (Ok(day), Ok(count)) = (day, count) else {
                    return Err(give_up("PostHog answered with counts in an unexpected form"));
                };
                counts.insert(day, count);
                last = last.max(Some(day));
            }
            // There may be more days than fit into one answer.
            if let Some(from) =
                last.map(|day| day_span(day).until).filter(|from| *from > span.from && *from < span.until)
            {
                spans.push(Span { from, ..span });
            }
        }
        Ok(counts)
    }

    /// Reads all pages, and passes the uuid of each event to `told`.
    fn pages(&mut self, selection: &Selection, mut pages: Pages, told: &mut dyn FnMut(&str)) -> Result<(), Early> {
        let is_time = matches!(selection.which, Which::Calls { .. });
        while let Some(page) = pages.next() {
            let reply = match self.ask(&selection.page(&page), &PAGE_COLUMNS)? {
                Ok(reply) => reply,
                Err(reason) => {
                    if !pages.too_much() {
                        self.failed(&reason)?;
                    }
                    continue;
                }
            };
            let rows = reply.rows().map_err(give_up)?;
            let keys = rows.iter().map(|row| row::key(row, selection.by)).collect::<Result<Vec<_>, _>>();
            let keys = keys.map_err(give_up)?;
            let (mut before, mut previous) = (pages.after().clone(), pages.after().clone());
            let used = pages.took(&keys).map_err(give_up)?;
            for (row, key) in rows.iter().zip(&keys).take(used) {
                if *key != previous {
                    before = std::mem::replace(&mut previous, key.clone());
                }
                if is_time {
                    self.go_on_from(selection, &before);
                    self.reader.progress.reach(key.time);
                }
                told(&key.uuid);
                self.row(key, Line::of(row).map_err(give_up)?)?;
            }
            if is_time {
                self.go_on_from(selection, pages.after());
            }
        }
        Ok(())
    }

    /// Passes an event on, unless PostHog has it twice or it was read before.
    fn row(&mut self, key: &Key, Line { text, problem, ingested }: Line) -> Result<(), Stop> {
        let element = Raw::parse(&text).expect("it was put together from JSON");
        let (date, is_late) = (date_of(key.time), ingested >= Some(self.late_since));
        Event::decode(element, None, |event| {
            let is_new = match &event {
                Ok(event) => self.days.add(date, &event.key(), is_late),
                Err(_) => self.days.add(date, &key.uuid, is_late),
            };
            if !is_new {
                return Ok(());
            }
            let place = format!("PostHog's event {}", key.uuid);
            let original = Original::line(&text);
            match (event, problem) {
                (_, Some(problem)) => self.reader.send(&place, Err(problem.to_owned()), original)?,
                (Ok(event), None) => self.reader.event(&place, &event, original)?,
                (Err(invalid), None) => self.reader.send(&place, Err(invalid.to_string()), original)?,
            }
            self.reader.next().number += 1;
            Ok(())
        })
    }

    /// Asks until there is an answer, or until there can be none. The inner error is the reason why the query was too
    /// much for PostHog.
    fn ask(&mut self, query: &Query, columns: &[&str]) -> Result<Result<Reply, String>, Early> {
        loop {
            if self.reader.works.is_closed() {
                return Err(Stop.into());
            }
            self.queries += 1;
            let answer = self.reader.runtime.block_on(self.api.ask(query, columns));
            let (reason, pause) = match answer {
                Ok(reply) => {
                    self.has_answered = true;
                    (self.failures, self.hopeless) = (0, 0);
                    return Ok(Ok(reply));
                }
                Err(QueryError::GiveUp(problem)) => return Err(Early::GiveUp(problem)),
                Err(QueryError::AskForLess(reason)) => {
                    self.reader.progress.note(&format!("{reason}: asking for less at once"));
                    self.failures += 1;
                    if self.failures > 2 {
                        self.wait(&reason, None)?;
                    }
                    return Ok(Err(reason));
                }
                Err(QueryError::NoAnswer(reason)) => {
                    let left = PATIENCE_AT_THE_START.saturating_sub(self.start.elapsed());
                    if !self.has_answered && left.is_zero() {
                        return Err(give_up(format_args!("{reason}. Is posthog.url the address of PostHog?")));
                    }
                    let pause = PAUSES.equal_jitter(self.failures + 1, &mut fastrand::Rng::new());
                    (reason, Some(if self.has_answered { pause } else { pause.min(left) }))
                }
                Err(QueryError::AskLater(reason, pause)) => (reason, pause),
            };
            self.failures += 1;
            self.wait(&reason, pause)?;
        }
    }

    /// Notes that a query failed that cannot ask for less. Gives up after too many in a row.
    fn failed(&mut self, reason: &str) -> Result<(), Early> {
        self.hopeless += 1;
        match self.hopeless > MAX_HOPELESS {
            true => Err(give_up(format_args!("{reason}, and the query cannot be made smaller"))),
            false => Ok(()),
        }
    }

    fn wait(&self, reason: &str, pause: Option<Duration>) -> Result<(), Stop> {
        let pause = pause.unwrap_or_else(|| PAUSES.equal_jitter(self.failures, &mut fastrand::Rng::new()));
        let told = humantime::format_duration(Duration::from_secs(pause.as_secs().max(1)));
        self.reader.progress.note(&format!("{reason}: asking again in {told}"));
        let closed = async { timeout(pause, self.reader.works.closed()).await };
        match self.reader.runtime.block_on(closed) {
            Ok(()) => Err(Stop),
            Err(_elapsed) => Ok(()),
        }
    }
}

fn give_up(problem: impl Display) -> Early {
    Early::GiveUp(problem.to_string())
}

/// Returns the midnight that is nearest to the middle of a span of several days.
fn middle_day(span: Span) -> Option<Timestamp> {
    let middle = shifted(span.from, span.until.duration_since(span.from).as_hours() / 2);
    let Span { from, until } = day_span(date_of(middle));
    [from, until].into_iter().find(|midnight| span.from < *midnight && *midnight < span.until)
}

fn shifted(time: Timestamp, hours: i64) -> Timestamp {
    time.checked_add(SignedDuration::from_hours(hours)).unwrap_or(time)
}
