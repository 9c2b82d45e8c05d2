//! The `lakescrub` command.

use std::process::ExitCode;

use clap::Parser;
use lakescrub::cli::{self, Cli};
use lakescrub::run;

fn main() -> ExitCode {
    // A library's panic message may quote what it read: only the place is told.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        tracing::debug!(place, "a thread panicked");
    }));
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
