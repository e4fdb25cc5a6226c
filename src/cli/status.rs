//! `status`: shows the state of the running service to people.
//!
//! It shows what `/readyz` and `/metrics` report. Rates come from two looks at the same counters.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::ValueEnum;
use tokio::time::{Instant, sleep, sleep_until};

use self::report::Report;
use super::{
    ask::{self, Service},
    tell,
};
use crate::{config::Variables, telemetry};

mod look;
mod report;
mod screen;

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The number of looks over which `--watch` takes rates.
const LOOKS: usize = 11;

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    #[command(flatten)]
    service: ask::Args,
    /// Repaint every second until Ctrl-C; without a terminal, print a line every second
    #[arg(long)]
    watch: bool,
    /// What is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One screen for people
    Text,
    /// An object for programs, on a line
    Json,
}

/// Prints the state of the service. Fails if it does not answer at first.
pub(super) fn run(args: Args, variables: &Variables) -> anyhow::Result<()> {
    let Args { service, watch, format } = args;
    let service = Service::find(service, variables)?;
    super::runtime()?.block_on(async {
        match watch {
            false => once(&service, format).await,
            true => always(&service, format).await,
        }
    })
}

async fn once(service: &Service, format: Format) -> anyhow::Result<()> {
    let before = look::look(service).await?;
    sleep(INTERVAL).await;
    let report = Report::new(service.address, &before, &look::look(service).await?);
    let text = match format {
        Format::Text => screen::screen(&report, telemetry::is_colourful(&io::stdout())),
        Format::Json => json(&report),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// Prints the state again and again. If the service does not answer for a while, as during a restart, it says so and
/// goes on asking.
async fn always(service: &Service, format: Format) -> anyhow::Result<()> {
    let paints = format == Format::Text && io::stdout().is_terminal();
    let mut looks = VecDeque::from([look::look(service).await?]);
    if paints {
        io::stdout().write_all(screen::CLEAR.as_bytes())?;
    }
    let mut next = Instant::now();
    loop {
        next = (next + INTERVAL).max(Instant::now());
        sleep_until(next).await;
        let text = match look::look(service).await {
            Ok(look) => {
                if looks.back().is_some_and(|last| last.is_before_restart_of(&look)) {
                    looks.clear();
                }
                looks.push_back(look);
                if looks.len() > LOOKS {
                    looks.pop_front();
                }
                let report = Report::new(service.address, &looks[0], &looks[looks.len() - 1]);
                match format {
                    Format::Json => json(&report),
                    Format::Text if paints => screen::screen(&report, telemetry::is_colourful(&io::stdout())),
                    Format::Text => screen::line(&report),
                }
            }
            Err(error) if paints => format!("{error:#}\n"),
            Err(error) => {
                tell(format_args!("error: {error:#}"));
                continue;
            }
        };
        let text = if paints { screen::repaint(&text) } else { text };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
    }
}

fn json(report: &Report) -> String {
    serde_json::to_string(report).expect("its keys are strings") + "\n"
}
