//! The `lakescrub` command.

use std::process::ExitCode;

use clap::Parser;
use lakescrub::cli::{self, Cli};
use lakescrub::run;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::start_log(&cli.common);
    match run::run(&cli) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            cli::print_error(&error);
            ExitCode::from(error.exit.code())
        }
    }
}
