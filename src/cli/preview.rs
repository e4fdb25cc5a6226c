//! `preview`: prints what would be posted, and what would not and why. Nothing is sent.

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
    time::SystemTime,
};

use self::tally::Tally;
use super::{
    Failed,
    input::{Item, Position, Reason, Source},
    pretty::indent,
    tell,
};
use crate::{
    config::{self, Flags, Variables},
    mapping::NoMessage,
};

mod tally;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files with PostHog's events, plain or packed: bodies of requests, or exports; `-` is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// The configuration file, for the settings of what is forwarded; else that in `CONNECTOR_CONFIG`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print each body over several lines
    #[arg(long)]
    pretty: bool,
    /// Print no table
    #[arg(long, short)]
    quiet: bool,
}

/// Prints the bodies, and a table of the events. Fails if something cannot be read.
pub(super) fn run(args: Args, variables: &Variables) -> anyhow::Result<()> {
    let Args { files, config, pretty, quiet } = args;
    let mapping = config::mapping_alone(&Flags { config, ..Flags::default() }, variables)?;
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut tally = Tally::default();
    let mut unreadable = 0;
    let mut scratch = Vec::new();
    for source in files.iter().map(Source::new) {
        if source.is_terminal() && !quiet {
            tell("Reading standard input; Ctrl-D ends it.");
        }
        let mut take = |item: Item<'_>| {
            match item {
                Item::Event(place, event, _) => match mapping.message(event, SystemTime::now(), &mut scratch) {
                    Ok(message) => {
                        tally.mapped(message.call);
                        let body = message.body();
                        if pretty {
                            indent(&body, &mut out)?
                        } else {
                            out.write_all(&body)?
                        }
                        out.write_all(b"\n")?;
                    }
                    Err(NoMessage::Filtered(filtered)) => tally.filtered(&event.name(), filtered),
                    Err(NoMessage::Invalid(invalid)) => tally.invalid(place, Reason::new(&invalid)),
                },
                Item::Invalid(place, reason, _) => tally.invalid(place, reason),
                Item::Unreadable(problem) => {
                    unreadable += 1;
                    tell(format_args!("error: {problem}"));
                }
                Item::Note(note) => {
                    if !quiet {
                        tell(format_args!("note: {note}"));
                    }
                }
            }
            Ok(())
        };
        source.read(&Position::default(), &mut take)?;
    }
    out.flush()?;
    if !quiet {
        // The command does not fail if nobody reads the table.
        drop(write!(io::stderr(), "{tally}"));
    }
    if unreadable > 0 { Err(Failed.into()) } else { Ok(()) }
}
