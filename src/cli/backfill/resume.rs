//! The command that goes on where this one has stopped.

use std::path::Path;

use super::Args;

/// The same arguments, but for how many events are passed over.
pub(super) fn command(args: &Args, skip: u64) -> String {
    let Args { files, config, failed, rate, since, until, skip: _, quiet } = args;
    let mut words = vec!["variance-connector".to_owned(), "backfill".to_owned(), format!("--skip {skip}")];
    for (flag, path) in [("--config", config), ("--failed", failed)] {
        words.extend(path.iter().map(|path| format!("{flag} {}", quoted(path))));
    }
    words.extend(rate.map(|rate| format!("--rate {rate}")));
    for (flag, time) in [("--since", since), ("--until", until)] {
        words.extend(time.iter().map(|time| format!("{flag} {time}")));
    }
    if *quiet {
        words.push("--quiet".to_owned());
    }
    if files.iter().any(|file| file.to_string_lossy().starts_with('-') && file.as_os_str() != "-") {
        words.push("--".to_owned());
    }
    words.extend(files.iter().map(|file| quoted(file)));
    words.join(" ")
}

/// As a POSIX shell reads it back.
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
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn everything_but_the_number_is_said_again() {
        let args = Args {
            files: ["a.jsonl", "it's here", "-"].map(PathBuf::from).to_vec(),
            config: Some("c.toml".into()),
            failed: Some("bad lines".into()),
            rate: "100".parse().ok(),
            since: "2026-08-20T00:00:00Z".parse().ok(),
            until: None,
            skip: 7,
            quiet: true,
        };
        let expected = r"variance-connector backfill --skip 42 --config c.toml --failed 'bad lines' --rate 100 --since 2026-08-20T00:00:00Z --quiet a.jsonl 'it'\''s here' -";
        assert_eq!(command(&args, 42), expected);
    }
}
