//! The log: lines on standard error, because standard output belongs to the results of commands.
//!
//! A thread of its own writes them, so that neither a slow reader nor a failing write costs more than lines.

use std::{
    env, fmt,
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
    panic,
    str::FromStr,
    sync::Arc,
    thread,
    time::Duration,
};

use tracing::{Dispatch, level_filters::LevelFilter};
use tracing_subscriber::{EnvFilter, filter::Directive, fmt::MakeWriter, reload, util::SubscriberInitExt};

use self::queue::Queue;
use crate::metrics::Metrics;

mod queue;

mod text;

/// The target of this program's own events.
const OWN: &str = env!("CARGO_CRATE_NAME");

/// The level at which dependencies log unless a directive names them.
const OTHERS: LevelFilter = LevelFilter::WARN;

/// The longest that the end of the program waits for the log's reader.
const FLUSH_FOR: Duration = Duration::from_secs(1);

/// The settings of the log.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The form of a line; `None` means text on a terminal and JSON elsewhere.
    pub format: Option<Format>,
    /// The directives for what is logged.
    pub level: Directives,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text for people.
    Text,
    /// One JSON object per line, with the event's fields beside `timestamp`, `level`, `message` and `target`.
    Json,
}

/// The valid directives of an [`EnvFilter`]. A bare level is for this program alone: it lowers the level of
/// dependencies, but does not raise it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives(String);

/// The running log. When it is dropped, it waits a moment for its lines to be written.
#[must_use]
pub struct Log {
    queue: Arc<Queue>,
    format: Option<Format>,
    set_filter: SetFilter,
}

/// A function that replaces the filter.
type SetFilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// Starts the log on standard error, for panics too. Colours are used only on a terminal and without `NO_COLOR`. Lines
/// that have to be dropped are counted in `metrics`.
///
/// # Errors
/// When no thread or descriptor can be had for it, or there is another log already.
pub fn init(settings: &LogSettings, metrics: Metrics) -> io::Result<Log> {
    let is_terminal = io::stderr().is_terminal();
    let is_colourful = is_colourful(&io::stderr());
    // Not `io::stderr`: its lock would be held for as long as a write takes, and others want it.
    let output = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let queue = Arc::new(Queue::new(metrics));
    let (dispatch, set_filter) = dispatch(settings, is_terminal, is_colourful, Arc::clone(&queue));
    dispatch.try_init().map_err(io::Error::other)?;
    let lines = Arc::clone(&queue);
    thread::Builder::new().name("log".to_owned()).spawn(move || lines.write_to(output))?;
    // The default hook writes to standard error itself, and waits for its reader.
    panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a part of the connector has failed: this is a bug")));
    Ok(Log { queue, format: settings.format, set_filter })
}

/// True on a terminal without `NO_COLOR`.
pub fn is_colourful(output: &impl IsTerminal) -> bool {
    output.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

impl Log {
    /// Applies other settings, except for the format. Returns true if the format has changed, which takes a restart.
    pub fn reload(&self, settings: &LogSettings) -> bool {
        (self.set_filter)(settings.level.filter());
        settings.format != self.format
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.flush(FLUSH_FOR);
    }
}

fn dispatch<W>(settings: &LogSettings, is_terminal: bool, is_colourful: bool, writer: W) -> (Dispatch, SetFilter)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let LogSettings { format, level } = settings;
    let lines = tracing_subscriber::fmt().with_env_filter(level.filter()).with_writer(writer).with_ansi(is_colourful);
    let lines = lines.log_internal_errors(false);
    match format.unwrap_or(if is_terminal { Format::Text } else { Format::Json }) {
        Format::Text => {
            let lines = lines.fmt_fields(text::fields()).with_filter_reloading();
            let set_filter = setter(lines.reload_handle());
            (lines.into(), set_filter)
        }
        Format::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            let lines = lines.with_filter_reloading();
            let set_filter = setter(lines.reload_handle());
            (lines.into(), set_filter)
        }
    }
}

fn setter<S: 'static>(handle: reload::Handle<EnvFilter, S>) -> SetFilter {
    // It fails only when nothing uses the filter any longer.
    Box::new(move |filter| drop(handle.reload(filter)))
}

impl Directives {
    fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl FromStr for Directives {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RIGHT: &str = "a level (off, error, warn, info, debug, trace) or directives such as \
                             \"variance_connector=debug,hyper=info\"";
        let (mut own, mut others) = (LevelFilter::INFO, OTHERS);
        let mut named = Vec::new();
        for part in text.split(',').map(str::trim) {
            if let Some(level) = level(part) {
                own = level;
                others = OTHERS.min(level);
            } else if part.contains('=') && part.parse::<Directive>().is_ok() {
                named.push(part);
            } else {
                // A word alone would be a target, and a misspelt level would silently log nothing.
                return Err(RIGHT);
            }
        }
        let first = [others.to_string(), format!("{OWN}={own}")];
        let all: Vec<_> = first.iter().map(String::as_str).chain(named).collect();
        Ok(Self(all.join(",")))
    }
}

impl fmt::Display for Directives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Parses a level by its name. The numbers and the empty text that the parser allows are not levels here.
fn level(word: &str) -> Option<LevelFilter> {
    word.parse().ok().filter(|_| word.chars().next().is_some_and(char::is_alphabetic))
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("text or json"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::dispatcher;

    use super::*;

    #[test]
    fn a_bare_level_is_for_this_program() {
        for (text, directives) in [
            ("debug", "warn,variance_connector=debug"),
            ("TRACE", "warn,variance_connector=trace"),
            ("error", "error,variance_connector=error"),
            ("off", "off,variance_connector=off"),
            ("hyper=info", "warn,variance_connector=info,hyper=info"),
            ("debug, hyper=info", "warn,variance_connector=debug,hyper=info"),
            ("variance_connector=debug,hyper=info", "warn,variance_connector=info,variance_connector=debug,hyper=info"),
        ] {
            assert_eq!(text.parse::<Directives>().unwrap().to_string(), directives, "{text}");
        }
    }

    #[test]
    fn what_is_neither_level_nor_directive_is_wrong() {
        for text in ["", ",", "debgu", "3", "hyper", "hyper=loud", "debug,hyper=[", "=debug=info"] {
            assert!(text.parse::<Directives>().unwrap_err().starts_with("a level"), "{text}");
        }
    }

    #[test]
    fn dependencies_are_quiet_unless_a_directive_names_them() {
        for (level, expected) in [
            ("info", "own info, other warn"),
            ("debug", "own info, own debug, other warn"),
            ("error", ""),
            ("hyper=debug", "own info, other debug, other warn"),
            ("variance_connector=debug", "own info, own debug, other warn"),
            ("variance_connector::outbox=debug", "own info, other warn"),
        ] {
            let logged = log(Format::Json, level);
            let messages: Vec<_> = logged
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["message"].to_string())
                .collect();
            assert_eq!(messages.join(", ").replace('"', ""), expected, "{level}");
        }
    }

    #[test]
    fn json_has_an_object_with_flat_fields_on_each_line() {
        let line: serde_json::Value = serde_json::from_str(log(Format::Json, "info").lines().next().unwrap()).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "own info");
        assert_eq!(line["target"], "variance_connector");
        assert_eq!(line["events"], 3);
        assert!(humantime::parse_rfc3339(line["timestamp"].as_str().unwrap()).is_ok());
        assert_eq!(line.as_object().unwrap().len(), 5, "{line}");
    }

    #[test]
    fn text_is_plain_where_colours_are_not_wanted() {
        let logged = log(Format::Text, "info");
        assert!(logged.contains(" INFO variance_connector: own info events=3\n"), "{logged}");
        assert!(!logged.contains('\u{1b}'), "{logged}");
    }

    #[test]
    fn a_value_of_several_words_is_quoted_in_text() {
        let logged = log(Format::Text, "hyper=debug");
        let expected = " hyper: other debug reason=\"no such host\" name=\"a b\" empty=\"\"\n";
        assert!(logged.contains(expected), "{logged}");
    }

    #[test]
    fn without_a_format_a_terminal_gets_text_and_the_rest_json() {
        for (is_terminal, start) in [(true, "20"), (false, "{")] {
            let settings = LogSettings { format: None, level: "info".parse().unwrap() };
            let logged = log_with(|writer| dispatch(&settings, is_terminal, false, writer).0);
            assert!(logged.starts_with(start), "{logged}");
        }
    }

    fn log(format: Format, level: &str) -> String {
        let settings = LogSettings { format: Some(format), level: level.parse().unwrap() };
        log_with(|writer| dispatch(&settings, true, false, writer).0)
    }

    fn log_with(dispatch: impl FnOnce(Buffer) -> Dispatch) -> String {
        let buffer = Buffer::default();
        dispatcher::with_default(&dispatch(buffer.clone()), || {
            tracing::info!(target: "variance_connector", events = 3, "own info");
            tracing::debug!(target: "variance_connector", "own debug");
            tracing::debug!(target: "hyper", reason = %"no such host", name = "a b", empty = %"", "other debug");
            tracing::warn!(target: "hyper", "other warn");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Buffer {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }
}
