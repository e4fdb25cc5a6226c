//! The command that goes on where this one stopped.

use std::path::Path;

use jiff::Timestamp;

use super::Args;

/// The place where a run goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// After this many events of files, or ids of a log.
    Skip(u64),
    /// From a time on, or after the event of that time and uuid; only with what PostHog took in since another time.
    From { since: Timestamp, after: Option<String>, ingested_since: Option<Timestamp> },
}

/// Returns the command with the same arguments, but for where it begins.
pub(super) fn command(args: &Args, resume: &Resume) -> String {
    let Args {
        files,
        from_posthog,
        ingested,
        lost,
        config,
        failed,
        rate,
        since,
        until,
        quiet,
        after: _,
        ingested_since: _,
        skip: _,
    } = args;
    let (skip, since, after, ingested_since) = match resume.clone() {
        Resume::Skip(skip) => (skip, *since, None, None),
        Resume::From { since, after, ingested_since } => (0, Some(since), after, ingested_since),
    };
    let mut words = vec!["variance-connector".to_owned(), "backfill".to_owned()];
    words.extend(from_posthog.then(|| "--from-posthog".to_owned()));
    words.extend((!from_posthog || skip > 0).then(|| format!("--skip {skip}")));
    for (flag, path) in [("--lost", lost), ("--config", config), ("--failed", failed)] {
        words.extend(path.iter().map(|path| format!("{flag} {}", quoted(path))));
    }
    words.extend(rate.map(|rate| format!("--rate {rate}")));
    for (flag, time) in [("--since", since), ("--until", *until), ("--ingested-since", ingested_since)] {
        words.extend(time.iter().map(|time| format!("{flag} {time}")));
    }
    words.extend(after.map(|after| format!("--after {after}")));
    for (flag, is_given) in [("--ingested", *ingested), ("--quiet", *quiet)] {
        words.extend(is_given.then(|| flag.to_owned()));
    }
    if files.iter().any(|file| file.to_string_lossy().starts_with('-') && file.as_os_str() != "-") {
        words.push("--".to_owned());
    }
    words.extend(files.iter().map(|file| quoted(file)));
    words.join(" ")
}

/// Quotes a path for a POSIX shell.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./,:@%+=".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn resumed(arguments: &str, resume: &Resume) -> String {
        command(&Command::try_parse_from(arguments.split('|')).unwrap().args, resume)
    }

    #[test]
    fn everything_but_where_it_begins_is_said_again() {
        let files =
            "backfill|--skip=7|--config=c.toml|--failed=bad lines|--rate=100|--since=2026-08-20|-q|a.jsonl|it's|-";
        assert_eq!(
            resumed(files, &Resume::Skip(42)),
            r"variance-connector backfill --skip 42 --config c.toml --failed 'bad lines' --rate 100 --since 2026-08-20T00:00:00Z --quiet a.jsonl 'it'\''s' -"
        );
        let posthog = "backfill|--from-posthog|--ingested|--since=2026-08-20|--until=2026-08-21|--after=0198c4c1-6c1e-7d3a-9b54-000000000000|--rate=5";
        let uuid = "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11";
        let time = "2026-08-20T09:14:03.512345Z".parse().unwrap();
        let from = |after: Option<&str>, ingested_since| {
            resumed(posthog, &Resume::From { since: time, after: after.map(str::to_owned), ingested_since })
        };
        let start = "variance-connector backfill --from-posthog --rate 5 --since 2026-08-20T09:14:03.512345Z \
                     --until 2026-08-21T00:00:00Z";
        assert_eq!(from(Some(uuid), None), format!("{start} --after {uuid} --ingested"));
        assert_eq!(
            from(None, "2026-08-22T00:00:00Z".parse().ok()),
            format!("{start} --ingested-since 2026-08-22T00:00:00Z --ingested")
        );
        assert_eq!(
            resumed("backfill|--from-posthog|--lost=a.log", &Resume::Skip(200)),
            "variance-connector backfill --from-posthog --skip 200 --lost a.log"
        );
    }
}
