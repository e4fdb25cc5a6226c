//! The events that the connector's own log names as lost, whatever was added around its lines on the way.

use std::{
    collections::HashSet,
    io::{self, BufRead, Read},
};

use jiff::Timestamp;
use uuid::Uuid;

/// The message of the lines that name lost events.
const MESSAGE: &str = "events are lost";

/// Part of every line of the connector, in the name of the module that logged it.
const CRATE: &str = "variance_connector";

/// The most bytes of a line that are searched together. Lines that name lost events are a few KiB long.
const MAX_LINE: u64 = 1 << 20;

/// The ids of lost events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::cli::backfill) struct Lost {
    /// The ids, each once, in the order of the log.
    pub(in crate::cli::backfill) ids: Vec<Uuid>,
    /// Ids that PostHog cannot have, since its own are UUIDs.
    pub(in crate::cli::backfill) others: Vec<String>,
    /// The times of the first and the last line that names an event.
    pub(in crate::cli::backfill) logged: Option<(Timestamp, Timestamp)>,
    /// True if any line is the connector's; otherwise this is another log, or none.
    pub(in crate::cli::backfill) is_connectors: bool,
}

impl Lost {
    /// Reads a log to its end.
    pub(in crate::cli::backfill) fn read(mut log: impl BufRead) -> io::Result<Self> {
        let (mut lost, mut seen, mut line) = (Self::default(), HashSet::new(), Vec::new());
        loop {
            line.clear();
            if log.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                return Ok(lost);
            }
            lost.line(&String::from_utf8_lossy(&line), &mut seen);
        }
    }

    fn line(&mut self, line: &str, seen: &mut HashSet<String>) {
        self.is_connectors |= line.contains(CRATE);
        let Some((_, rest)) = line.split_once(MESSAGE) else { return };
        // In JSON the fields may come before the message.
        let Some((_, field)) = rest.split_once("uuids").or_else(|| line.split_once("uuids")) else { return };
        for id in ids(field) {
            match Uuid::parse_str(id) {
                Ok(uuid) if seen.insert(uuid.to_string()) => self.ids.push(uuid),
                Err(_) if seen.insert(id.to_owned()) => self.others.push(id.to_owned()),
                _ => {}
            }
        }
        let mut words = line.split(|char: char| char.is_whitespace() || matches!(char, '"' | '\\' | '='));
        if let Some(time) = words.find_map(|word| word.parse().ok()) {
            let (first, last) = self.logged.unwrap_or((time, time));
            self.logged = Some((first.min(time), last.max(time)));
        }
    }
}

/// Returns the ids in the text after the field's name: in quotes if there are several, in older versions as a printed
/// list. A log that was packed into JSON once more has `\` before each quote.
fn ids(field: &str) -> impl Iterator<Item = &str> {
    let separators = |char: char| matches!(char, '"' | '\\' | ':' | '=' | ' ');
    let value = field.trim_start_matches(separators);
    let before = &field[..field.len() - value.len()];
    let end = match value.strip_prefix('[') {
        Some(list) => list.find(']').map(|end| end + 1),
        None if before.contains('"') => value.find('"'),
        None => value.find(char::is_whitespace),
    };
    let value = &value[..end.unwrap_or(value.len())];
    value
        .split(|char: char| char.is_whitespace() || matches!(char, ',' | '"' | '\\' | '[' | ']'))
        .filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11";
    const B: &str = "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b12";

    fn uuid(id: &str) -> Uuid {
        id.parse().unwrap()
    }

    fn read(log: &str) -> Lost {
        Lost::read(log.as_bytes()).unwrap()
    }

    #[test]
    fn the_ids_are_found_in_every_form_of_the_log() {
        let time = "2026-11-28T10:00:00.123456Z";
        let text = format!("{time} ERROR variance_connector::outbox: events are lost count=2 reason=\"no time\"");
        let json = format!(r#"{{"timestamp":"{time}","level":"ERROR","message":"events are lost","count":2"#);
        let json_uuids = format!(r#"{json},"uuids":"{A} x {B}","target":"a b"}}"#);
        for line in [
            format!("{text} uuids=\"{A} x {B}\" more=1"),
            format!("variance-connector-1  | {text} uuids=[\"{A}\", \"x\", \"{B}\"] more=1"),
            json_uuids.clone(),
            format!(r#"{json},"uuids":"[\"{A}\", \"x\", \"{B}\"]","target":"a b"}}"#),
            format!(r#"{{"uuids":"{A} x {B}","message":"events are lost","timestamp":"{time}"}}"#),
            format!("{{\"log\":{},\"stream\":\"stderr\"}}", serde_json::to_string(&json_uuids).unwrap()),
        ] {
            let lost = read(&format!("noise uuids={B}\n{line}\nmore noise\n"));
            assert_eq!(lost.ids, [A, B].map(uuid), "{line}");
            assert_eq!(lost.others, ["x"], "{line}");
            let time: Timestamp = time.parse().unwrap();
            assert_eq!(lost.logged, Some((time, time)), "{line}");
        }
        assert_eq!(read(&format!("{text} uuids={A} more={B}")).ids, [uuid(A)]);
    }

    #[test]
    fn each_is_named_once_and_times_are_bounds() {
        let line = |second: u32, id: &str| format!("2026-11-28T10:00:0{second}Z events are lost uuids=\"{id}\"\r\n");
        let log = [line(5, B), line(1, A), line(9, &B.to_uppercase())].concat();
        let lost = read(&log);
        assert_eq!(lost.ids, [B, A].map(uuid));
        let bounds = ["2026-11-28T10:00:01Z", "2026-11-28T10:00:09Z"].map(|time| time.parse::<Timestamp>().unwrap());
        assert_eq!(lost.logged, Some((bounds[0], bounds[1])));
    }

    #[test]
    fn a_log_of_anything_else_names_nothing() {
        for log in ["", "\n", "events are lost", "events are lost uuids=", "uuids=\"a\"", "\u{0}\u{1}\u{feff}\n{"] {
            assert_eq!(read(log), Lost::default(), "{log:?}");
        }
        let long = "x".repeat(3 << 20);
        assert_eq!(read(&format!("{long}\nevents are lost uuids=\"{A}\"")).ids.len(), 1);
        assert_eq!(Lost::read(&b"\xff\xfe events are lost uuids=\"z\" \xff"[..]).unwrap().others, ["z"]);
    }
}
