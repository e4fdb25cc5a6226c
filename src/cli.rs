//! The command line: a file for each command, and the exit codes.

use std::{
    ffi::OsString,
    fmt::Display,
    io::{self, Write},
    num::NonZeroU32,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use crate::config::{self, Part};

mod ask;
mod backfill;
mod check;
mod completions;
mod demo;
mod healthcheck;
mod input;
mod pretty;
mod preview;
mod serve;
mod status;

/// The exit code for bad usage or configuration (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

/// The error of a command that has already said why it failed.
#[derive(Debug, thiserror::Error)]
#[error("the command did not succeed")]
struct Failed;

/// Forwards PostHog events to Variance.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_long_help = Part::Service.help())]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service. This is also the default without a command.
    #[command(after_long_help = Part::Service.help())]
    Serve(serve::Args),
    /// Run the connector on this machine with a stand-in for Variance.
    Demo(demo::Args),
    /// Check and print the configuration; with `--send`, post a test event.
    #[command(after_long_help = Part::All.help())]
    Check(check::Args),
    /// Show what would be posted for PostHog's events, without sending anything.
    #[command(after_long_help = Part::Mapping.help())]
    Preview(preview::Args),
    /// Forward events from exported files, or from PostHog itself.
    #[command(after_long_help = Part::Forwarding.help())]
    Backfill(backfill::Args),
    /// Ask the running service whether it is alive.
    #[command(after_long_help = Part::Listen.help())]
    Healthcheck(ask::Args),
    /// Show the state of the running service on one screen.
    #[command(after_long_help = Part::Listen.help())]
    Status(status::Args),
    /// Print the completions for a shell.
    Completions(completions::Args),
}

/// Runs what the arguments say, in this environment. Results go to standard output, errors to standard error.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitCode {
    let Cli { command, serve } = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // If this fails, nobody is left to read an error.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let variables = &variables.into_iter().collect();
    let result = match command.unwrap_or(Command::Serve(serve)) {
        Command::Serve(args) => serve::run(args, variables),
        Command::Demo(args) => demo::run(args),
        Command::Check(args) => check::run(args, variables),
        Command::Preview(args) => preview::run(args, variables),
        Command::Backfill(args) => backfill::run(args, variables),
        Command::Healthcheck(args) => healthcheck::run(args, variables),
        Command::Status(args) => status::run(args, variables),
        Command::Completions(args) => completions::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<Failed>() => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

/// Parses a whole number of at least one, or returns a sentence that says what would be right.
fn at_least_one(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| format!("it must be a whole number from 1 to {}", u32::MAX))
}

/// Parses a whole number, or returns a sentence that says what would be right.
fn whole_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it must be a whole number, such as 0 or 1000".to_owned())
}

/// Parses a UUID, or returns a sentence that says what would be right.
fn uuid(text: &str) -> Result<Uuid, &'static str> {
    text.parse().map_err(|_| "it must be the uuid of an event, such as 0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11")
}

/// True if the reader of our output has read enough, as `head` does.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Creates the runtime of every command, which has one thread. Most of the work for an event is the kernel's, and
/// waking a second thread would cost more than it would take over.
fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("the runtime did not start")
}

/// Writes a line for people to standard error. The command does not fail if nobody reads it.
fn tell(line: impl Display) {
    drop(writeln!(io::stderr(), "{line}"));
}

fn fail(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<config::Error>() {
        Some(config::Error { problems }) => {
            for problem in problems {
                tell(format_args!("error: {problem}"));
            }
            ExitCode::from(USAGE)
        }
        None => {
            tell(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn verify_cli() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_long_help_of_a_command_has_the_settings_that_it_reads_and_no_others() {
        let help = |name| {
            let mut command = Cli::command();
            let command = command.find_subcommand_mut(name).unwrap();
            command.render_long_help().to_string()
        };
        for (name, has, has_not) in [
            ("serve", "server.listen", "posthog.url"),
            ("check", "posthog.url", "--keep-running"),
            ("preview", "filter.calls", "variance.webhook_url"),
            ("backfill", "posthog.api_key_file", "server.token"),
            ("healthcheck", "(server.listen)", "server.token"),
            ("demo", "--keep-running", "CONNECTOR_"),
        ] {
            let help = help(name);
            assert!(help.contains(has) && !help.contains(has_not), "{name}: {help}");
        }
    }

    #[test]
    fn the_short_help_fits_a_screen() {
        let mut cli = Cli::command();
        cli.build();
        for command in iter::once(&cli).chain(cli.get_subcommands()) {
            let help = command.clone().render_help().to_string();
            assert!(help.lines().count() <= 30, "{}: {help}", command.get_name());
        }
    }

    #[test]
    fn without_a_command_it_is_serve() {
        let flags = ["--listen", "localhost:1", "--config", "a.toml", "--log-level", "debug", "--log-format", "json"];
        for start in [&["variance-connector"][..], &["variance-connector", "serve"]] {
            let cli = Cli::try_parse_from(start.iter().chain(&flags)).unwrap();
            let args = match cli.command {
                Some(Command::Serve(args)) => args,
                None => cli.serve,
                Some(other) => panic!("{other:?}"),
            };
            assert_eq!(args.listen.as_deref(), Some("localhost:1"));
            assert_eq!(args.log_format.as_deref(), Some("json"));
        }
    }

    #[test]
    fn usage_and_configuration_exit_with_64_and_the_rest_with_1() {
        let exit = |arguments: &[&str], variables: &[(&str, &str)]| {
            let arguments = ["variance-connector"].iter().chain(arguments).map(OsString::from);
            let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
            format!("{:?}", run(arguments, variables))
        };
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        for arguments in [&["--help"][..], &["--version"], &["serve", "--help"], &["help"]] {
            assert_eq!(exit(arguments, &[]), code(0), "{arguments:?}");
        }
        for arguments in [&["--lisen=x"][..], &["walk"], &["--token", "x"], &["--log-format", "xml"], &["serve", "x"]] {
            assert_eq!(exit(arguments, &[]), code(64), "{arguments:?}");
        }
        assert_eq!(exit(&[], &[]), code(64), "required settings are missing");
        assert_eq!(exit(&["healthcheck"], &[("CONNECTOR_LISTEN", "nowhere")]), code(64));
    }
}
