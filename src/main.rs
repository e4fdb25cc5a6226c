//! The program: installs the TLS provider and runs the command line.

use std::{env, process::ExitCode};

use variance_connector::cli;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().expect("nothing has named a provider before");
    cli::run(env::args_os(), env::vars_os())
}
