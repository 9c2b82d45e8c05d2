//! The `lakescrub` command: starts the log, runs one command, and turns what came of it into the exit code.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::Parser;
use lakescrub::cli::{self, Cli};
use lakescrub::error::Error;
use lakescrub::run;

/// Where the last panic was.
static PANICKED_AT: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    // A library's panic message may quote what it read: only the place is told.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        tracing::debug!(place, "a thread panicked");
        *PANICKED_AT.lock().unwrap_or_else(|broken| broken.into_inner()) = place;
    }));
    let cli = Cli::parse();
    cli::start_log(&cli.common);
    let outcome = catch_unwind(AssertUnwindSafe(|| run::run(&cli))).unwrap_or_else(|_| Err(panicked()));
    match outcome {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            cli::print_error(&cli.common, &error);
            run::print_failure(&cli, &error);
            ExitCode::from(error.exit.code())
        }
    }
}

fn panicked() -> Error {
    let place = PANICKED_AT.lock().unwrap_or_else(|broken| broken.into_inner()).clone();
    Error::internal(format!("the program panicked at {place}"))
        .hint("this is a bug; the journal is whole, so it is safe to run again")
}
