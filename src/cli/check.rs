//! `check`: prints the configuration, and tries whether Variance takes an event with it.

use std::{
    fmt,
    io::{self, Write},
    time::SystemTime,
};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use self::answer::Answer;
pub(super) use self::answer::advice;
use super::{Failed, serve};
use crate::{
    config::{self, Config, Flags, Loaded, Setting, Variables},
    destination::Destination,
    json::Raw,
    mapping::MappingSettings,
    posthog::Event,
    query_api::{PosthogSettings, Query, QueryApi, QueryError},
    service::ServiceSettings,
    variance::{Call, Message},
};

mod answer;

/// The name of the event that is sent.
const TEST_EVENT: &str = "variance-connector test";

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    #[command(flatten)]
    settings: serve::Args,
    /// Post a test event, which is marked as one, and say what the answer means
    #[arg(long)]
    send: bool,
    /// Try `posthog.…` with a query of one row, and say what the answer means
    #[arg(long)]
    posthog: bool,
    /// What is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    format: Format,
    /// Print nothing but warnings and what is wrong
    #[arg(long, short, conflicts_with = "format")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for people
    Text,
    /// An object for programs
    Json,
}

/// Everything that the command prints. In JSON, programs rely on its fields.
#[derive(Default, Serialize)]
struct Report {
    settings: Vec<Line>,
    warnings: Vec<String>,
    problems: Vec<String>,
    /// The result of the test event, if one was asked for.
    send: Option<Answer>,
    /// The result of the query, if one was asked for.
    posthog: Option<QueryAnswer>,
}

/// The result of a query to PostHog.
#[derive(Serialize)]
struct QueryAnswer {
    works: bool,
    text: String,
}

/// One setting.
#[derive(Serialize)]
struct Line {
    key: &'static str,
    value: Option<String>,
    origin: String,
}

/// Prints the configuration. Fails if it is wrong, or if Variance does not take the test event or PostHog the query.
pub(super) fn run(args: Args, variables: &Variables) -> anyhow::Result<()> {
    let Args { settings: flags, send, posthog, format, quiet } = args;
    let mut out = io::stdout().lock();
    let flags = Flags::from(flags);
    let asked = config::posthog(&flags, variables, posthog);
    let loaded = config::load(&flags, variables).and_then(|mut loaded| {
        let asked = match asked {
            Ok(asked) => {
                loaded.settings.extend(asked.settings);
                let others: Vec<_> = asked.warnings.into_iter().filter(|it| !loaded.warnings.contains(it)).collect();
                loaded.warnings.extend(others);
                asked.config
            }
            Err(error) if posthog => return Err(error),
            // The service does without them.
            Err(error) => {
                loaded.warnings.extend(error.problems);
                None
            }
        };
        Ok((loaded, asked.filter(|_| posthog)))
    });
    let (Loaded { config, settings, warnings }, asked) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            if format == Format::Json {
                let report = Report { problems: error.problems.clone(), ..Report::default() };
                writeln!(out, "{}", json!(report))?;
            }
            return Err(error.into());
        }
    };
    let mut report = Report { settings: settings.into_iter().map(Line::from).collect(), warnings, ..Report::default() };
    // The table comes before the answer, which may take as long as an attempt.
    if format == Format::Text && !quiet {
        write!(out, "{}", Table(&report.settings))?;
    }
    if format == Format::Text {
        for warning in &report.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        out.flush()?;
    }
    if send {
        report.send = Some(super::runtime()?.block_on(send_test(config))?);
    }
    if let Some(posthog) = asked {
        report.posthog = Some(super::runtime()?.block_on(ask(posthog))?);
    }
    match (format, &report.send) {
        (Format::Json, _) => writeln!(out, "{}", json!(report))?,
        (Format::Text, Some(answer)) if !quiet || !answer.is_fine() => writeln!(out, "{answer}")?,
        (Format::Text, None) if !quiet && report.posthog.is_none() => {
            writeln!(out, "The configuration is valid. Nothing was sent (`--send` would).")?
        }
        (Format::Text, _) => {}
    }
    if let Some(QueryAnswer { works, text }) = report.posthog.as_ref().filter(|_| format == Format::Text)
        && !(quiet && *works)
    {
        writeln!(out, "{text}")?;
    }
    let is_taken = report.send.is_none_or(|answer| answer.is_accepted());
    let works = report.posthog.is_none_or(|answer| answer.works);
    if is_taken && works { Ok(()) } else { Err(Failed.into()) }
}

/// Asks PostHog for one row.
async fn ask(settings: PosthogSettings) -> anyhow::Result<QueryAnswer> {
    let project = settings.project_id;
    let mut api = QueryApi::new(settings).context("the HTTP client for PostHog cannot be set up")?;
    let query = Query { text: "SELECT event AS ev_name FROM events LIMIT 1".to_owned(), ..Query::default() };
    let rows = api.ask(&query, &["ev_name"]).await.and_then(|reply| Ok(reply.rows()?.len()));
    let works = rows.is_ok();
    let text = match rows {
        Ok(0) => format!("PostHog answers: project {project} has no events yet"),
        Ok(_) => format!("PostHog answers: project {project} has events"),
        Err(QueryError::GiveUp(text)) => text,
        Err(QueryError::NoAnswer(reason)) => {
            format!("{reason}. Is posthog.url the address of PostHog, and does this machine reach it?")
        }
        Err(error) => format!("{error}. Try again later"),
    };
    Ok(QueryAnswer { works, text })
}

/// Posts one `track`, whatever the filters say.
async fn send_test(config: Config) -> anyhow::Result<Answer> {
    let ServiceSettings { mapping, destination, .. } = config.service;
    let url = destination.webhook_url.clone();
    let timeout = destination.attempt_timeout;
    let message = test_message(mapping, Uuid::new_v4(), SystemTime::now());
    let destination = Destination::new(destination);
    let (result, reply) = destination.post(message.body()).await;
    let answer = Answer::of(result, &url, &reply, timeout);
    reply.discard().await;
    Ok(answer)
}

/// Makes a PostHog event that nobody can take for a real one, and maps it as all events are mapped.
fn test_message(mut mapping: MappingSettings, id: Uuid, now: SystemTime) -> Message {
    let event = json!({
        "event": TEST_EVENT,
        "uuid": id.to_string(),
        "distinct_id": "variance-connector-test",
        "timestamp": humantime::format_rfc3339_millis(now).to_string(),
        "properties": {"test": true, "sent_by": "variance-connector check --send"},
    });
    // The fields are named one by one, so that a new setting that could filter the event does not compile until it is
    // considered here.
    let MappingSettings {
        calls,
        exclude,
        include,
        anonymous,
        format: _,
        keep_properties: _,
        person_traits: _,
        account_group: _,
    } = &mut mapping;
    *calls = vec![Call::Capture];
    exclude.clear();
    include.clear();
    *anonymous = true;
    let text = event.to_string();
    let element = Raw::parse(&text).expect("it is an object");
    Event::decode(element, None, |event| {
        mapping.message(&event.expect("it has a name"), now, &mut Vec::new()).expect("nothing filters it")
    })
}

impl From<Setting> for Line {
    fn from(Setting { key, value, origin }: Setting) -> Self {
        Self { key: key.name, value, origin: origin.to_string() }
    }
}

/// The settings in columns as wide as they need.
struct Table<'a>(&'a [Line]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |column: fn(&Line) -> &str| self.0.iter().map(|line| column(line).chars().count()).max().unwrap_or(0);
        let (keys, values) = (width(|line| line.key), width(Line::shown));
        for line in self.0 {
            writeln!(f, "{:keys$}  {:values$}  {}", line.key, line.shown(), line.origin)?;
        }
        Ok(())
    }
}

impl Line {
    fn shown(&self) -> &str {
        match &self.value {
            Some(value) if !value.is_empty() => value,
            _ => "-",
        }
    }
}
