//! The `lakescrub` command: starts the log, runs one command, and turns what came of it into the exit code.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::Parser;
use lakescrub::cli::{self, Cli};
use lakescrub::error::{Error, Exit};
use lakescrub::run;

/// Decoders give back and ask for megabytes all the time: the C library's allocator hands them to the kernel and takes zeroed pages for
/// them, which cost the verifier a fifth of its time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Large pieces are kept for the next to come like small ones, and lie in large pages. The variable `_RJEM_MALLOC_CONF` goes before.
// SAFETY: nothing else has this name, under which the allocator looks for a C string or null at its start.
#[allow(non_upper_case_globals)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: Option<&'static std::ffi::CStr> = Some(c"oversize_threshold:0,thp:always");

/// Where the last panic was.
static PANICKED_AT: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    // A library's panic message may quote what it read: only the place is told.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        tracing::debug!(place, "a thread panicked");
        *PANICKED_AT.lock().unwrap_or_else(|broken| broken.into_inner()) = place;
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
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

/// Help and version are asked for like results; anything else is a usage error, which `--json` tells on stdout as well.
fn not_understood(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::from(Exit::Clean.code());
    }
    if std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or("").trim_start_matches("error: ");
        run::print_not_understood(message);
    }
    ExitCode::from(Exit::Usage.code())
}

fn panicked() -> Error {
    let place = PANICKED_AT.lock().unwrap_or_else(|broken| broken.into_inner()).clone();
    Error::internal(format!("the program panicked at {place}"))
        .hint("this is a bug; the journal is whole, so it is safe to run again")
}
