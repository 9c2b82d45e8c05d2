//! The command line: flags, logs and how an error looks. Decides nothing about data.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};
use crate::progress::LogBesideBars;

/// Removes the people who opted out from a data lake, and proves it.
#[derive(Debug, Parser)]
#[command(name = "lakescrub", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub common: Common,
}

const EXIT_CODES: &str = "Exit codes: 0 clean, 1 internal, 2 usage, 3 incomplete, 4 residue, 5 blocked, 6 conflict, \
7 unavailable, 8 untrusted, 9 overdue, 10 refused, 130/143 interrupted";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The scheduled job: load, find, plan, rewrite, read back, verify, write the manifest
    Scrub {
        job: PathBuf,
        /// A backup taken at TIME was restored: replays the whole request ledger, and records that it did
        #[arg(long, value_name = "TIME", env = "LAKESCRUB_SINCE_RESTORE")]
        since_restore: Option<String>,
    },
    /// Dry run: the same find and plan; prints what would change and writes nothing
    Plan { job: PathBuf },
    /// Read-only: scans every object with the independent engine and writes a manifest
    Verify {
        job: PathBuf,
        /// Also searches the columns that no rule names, whatever the job says; what is found there is residue
        #[arg(long, env = "LAKESCRUB_SEARCH", value_parser = FalseyValueParser::new())]
        search: bool,
    },
    /// Validates the job file, lists, keys, credentials and reach of every location; reads the lists, and no rows of the datasets
    Check { job: PathBuf },
    /// Makes DIR/signing.key, DIR/signing.pub and DIR/tag.key; never overwrites
    Keygen { dir: PathBuf },
    /// Works on verification manifests; needs no access to the data
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Checks newly landed objects before they are published: exit 4 when one holds a suppressed identifier
    Gate {
        job: PathBuf,
        /// Objects, prefixes (ending in /) or globs
        #[arg(required = true)]
        uri: Vec<String>,
        /// Whose rules to look with; without it those of every dataset that an object belongs to, or of the job's only one
        #[arg(long, env = "LAKESCRUB_DATASET")]
        dataset: Option<String>,
    },
    /// The request ledger: the durable record of every request and what became of it
    #[command(subcommand)]
    Requests(RequestsCommand),
    /// California's Delete Request and Opt-out Platform: reads its downloads, writes the uploads; makes no network call
    #[command(subcommand)]
    Drop(DropCommand),
    /// Prints a completion script
    Completions { shell: Shell },
}

impl Command {
    /// As it is typed, and as the JSON result names it.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Scrub { .. } => "scrub",
            Command::Plan { .. } => "plan",
            Command::Verify { .. } => "verify",
            Command::Check { .. } => "check",
            Command::Keygen { .. } => "keygen",
            Command::Manifest(ManifestCommand::Check { .. }) => "manifest check",
            Command::Manifest(ManifestCommand::Diff { .. }) => "manifest diff",
            Command::Gate { .. } => "gate",
            Command::Requests(requests) => requests.name(),
            Command::Drop(DropCommand::Import { .. }) => "drop import",
            Command::Drop(DropCommand::Answer { .. }) => "drop answer",
            Command::Completions { .. } => "completions",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum DropCommand {
    /// Records the work items of a download, <YYYYMMDD>_<DataBrokerId>_DROP.zip, in the request ledger
    Import { job: PathBuf, zip: PathBuf },
    /// Writes a status for every work item that has none yet, or another one by now, as the files to upload
    Answer {
        job: PathBuf,
        /// The folder for the files; made if it is not there
        #[arg(long, value_name = "DIR", env = "LAKESCRUB_OUT")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum RequestsCommand {
    /// Records the requests of lists; what the ledger knows already adds nothing
    Import {
        job: PathBuf,
        /// Names of the job's lists, or files; without any, all lists of the job
        list: Vec<String>,
        #[command(flatten)]
        read_as: ReadAs,
        /// The deadline regime of these requests, such as us-ca-drop
        #[arg(long, env = "LAKESCRUB_REGIME")]
        regime: Option<String>,
        /// The tag key before a rotation: requests found under it keep their history under the present one
        #[arg(long, value_name = "FILE", env = "LAKESCRUB_OLD_TAG_KEY")]
        old_tag_key: Option<PathBuf>,
    },
    /// Records one request
    Add {
        job: PathBuf,
        /// KIND=VALUE, all of one person; `-` reads such lines from stdin, where no process list shows them
        #[arg(required = true, value_name = "KIND=VALUE")]
        identifier: Vec<String>,
        /// The request's own id; without one it is derived from the first identifier's tag
        #[arg(long, visible_alias = "id", env = "LAKESCRUB_REQUEST_ID")]
        request_id: Option<String>,
        /// When the person asked, in RFC 3339 or as a date; now, if left out
        #[arg(long, env = "LAKESCRUB_RECEIVED_AT")]
        received_at: Option<String>,
        /// Where the request came from
        #[arg(long, default_value = "manual", env = "LAKESCRUB_SOURCE")]
        source: String,
        /// The deadline regime, such as us-ca-drop
        #[arg(long, env = "LAKESCRUB_REGIME")]
        regime: Option<String>,
        /// The values are hashes of the canonical form: sha256-hex or sha256-base64
        #[arg(long, env = "LAKESCRUB_HASHED")]
        hashed: Option<String>,
        /// The tag key before a rotation: what was added by hand is added with it once more
        #[arg(long, value_name = "FILE", env = "LAKESCRUB_OLD_TAG_KEY")]
        old_tag_key: Option<PathBuf>,
    },
    /// The person opted in again: stops later removal and is recorded, history stays
    Withdraw {
        job: PathBuf,
        /// Request ids, or KIND=VALUE for all requests of a person; `-` reads such lines from stdin
        #[arg(required_unless_present = "list")]
        who: Vec<String>,
        /// Withdraws every request of the people on this list: a name of the job's, or a file
        #[arg(long, env = "LAKESCRUB_LIST")]
        list: Option<String>,
        #[command(flatten)]
        read_as: ReadAs,
        /// Where the withdrawal came from
        #[arg(long, default_value = "manual", env = "LAKESCRUB_SOURCE")]
        source: String,
    },
    /// The data of these requests stay, for a reason, until a time or for good
    Exempt {
        job: PathBuf,
        /// Request ids, or KIND=VALUE; `-` reads such lines from stdin
        #[arg(required = true)]
        who: Vec<String>,
        /// Why, such as "tax records, 6 years"
        #[arg(long, env = "LAKESCRUB_GROUND")]
        ground: String,
        /// In RFC 3339 or as a date; for good, if left out
        #[arg(long, env = "LAKESCRUB_UNTIL")]
        until: Option<String>,
    },
    /// Shows every request and where it stands
    List {
        job: PathBuf,
        /// Only requests in this state: open, planned, removed, done, not-found, re-appeared, exempted, withdrawn; or overdue, in whatever state
        #[arg(long, env = "LAKESCRUB_REQUEST_STATE")]
        state: Option<String>,
        /// Only requests from this source
        #[arg(long, env = "LAKESCRUB_SOURCE")]
        source: Option<String>,
        /// Only this request
        #[arg(long, visible_alias = "id", env = "LAKESCRUB_REQUEST_ID")]
        request_id: Option<String>,
    },
    /// Counts the requests by state, source and kind, and tells how they stand against their due dates
    Status {
        job: PathBuf,
        /// Exits 9 when a request is past its due date
        #[arg(long, env = "LAKESCRUB_FAIL_ON_OVERDUE", value_parser = FalseyValueParser::new())]
        fail_on_overdue: bool,
        /// Requests that are due within so many days are counted as due soon
        #[arg(long, value_name = "DAYS", default_value_t = 7, env = "LAKESCRUB_DUE_WITHIN")]
        due_within: u32,
    },
    /// Writes the requests, or with --events every event, as CSV, NDJSON or Parquet
    Export {
        job: PathBuf,
        /// By its ending .csv, .ndjson or .parquet; without it, CSV on stdout
        #[arg(long, env = "LAKESCRUB_OUT")]
        out: Option<PathBuf>,
        /// Every event instead of every request
        #[arg(long, env = "LAKESCRUB_EVENTS", value_parser = FalseyValueParser::new())]
        events: bool,
        #[arg(long, value_enum, env = "LAKESCRUB_EXPORT_FORMAT")]
        format: Option<ExportFormat>,
    },
}

/// How a file that no [[list]] of the job names is read.
#[derive(Debug, Clone, Default, Args)]
pub struct ReadAs {
    /// A column of a file that is no list of the job: COLUMN=KIND or COLUMN=KIND:HASHED; else columns named after their kinds are taken
    #[arg(long = "column", value_name = "COLUMN=KIND[:HASHED]", env = "LAKESCRUB_COLUMN", value_delimiter = '\n')]
    pub columns: Vec<String>,
    /// The file's column of request ids
    #[arg(long, value_name = "COLUMN", env = "LAKESCRUB_ID_COLUMN")]
    pub id_column: Option<String>,
    /// The file's column of times at which people asked
    #[arg(long, value_name = "COLUMN", env = "LAKESCRUB_RECEIVED_AT_COLUMN")]
    pub received_at_column: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    Csv,
    Ndjson,
    Parquet,
}

impl RequestsCommand {
    fn name(&self) -> &'static str {
        match self {
            RequestsCommand::Import { .. } => "requests import",
            RequestsCommand::Add { .. } => "requests add",
            RequestsCommand::Withdraw { .. } => "requests withdraw",
            RequestsCommand::Exempt { .. } => "requests exempt",
            RequestsCommand::List { .. } => "requests list",
            RequestsCommand::Status { .. } => "requests status",
            RequestsCommand::Export { .. } => "requests export",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum ManifestCommand {
    /// Checks signature, digests, inclusion proofs and chain
    Check {
        /// A run's folder, or the state
        path: String,
        /// The key to trust; without it the copy in the state is used
        #[arg(long, env = "LAKESCRUB_PUBLIC_KEY")]
        public_key: Option<PathBuf>,
    },
    /// Shows what changed between two runs
    Diff {
        /// The folder of the earlier run: STATE/manifests/RUN_ID
        a: String,
        /// The folder of the later run
        b: String,
    },
}

#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The result as one JSON document on stdout
    #[arg(long, global = true, env = "LAKESCRUB_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// How the log on stderr looks; auto is text
    #[arg(long, global = true, env = "LAKESCRUB_LOG_FORMAT", value_enum, default_value = "auto")]
    pub log_format: LogFormat,
    /// Progress bars on stderr; auto shows them on a terminal
    #[arg(long, global = true, env = "LAKESCRUB_PROGRESS", value_enum, default_value = "auto")]
    pub progress: When,
    /// More log: -v debug, -vv trace
    #[arg(short, long, global = true, action = clap::ArgAction::Count, env = "LAKESCRUB_VERBOSE")]
    pub verbose: u8,
    /// Warnings and errors only
    #[arg(short, long, global = true, env = "LAKESCRUB_QUIET", value_parser = FalseyValueParser::new())]
    pub quiet: bool,
    /// Overrides a value of the job file, e.g. guard.max_rows=10 or dataset.0.action=redact
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", env = "LAKESCRUB_SET", value_delimiter = '\n')]
    pub set: Vec<String>,
    /// The time the run takes as now, in RFC 3339; a date means its midnight in UTC
    #[arg(long, global = true, value_name = "RFC3339", env = "LAKESCRUB_NOW", value_parser = moment)]
    pub now: Option<jiff::Timestamp>,
}

/// A time in RFC 3339, or a date: its midnight in UTC, as in the lists.
fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    let midnight = |date: jiff::civil::Date| date.to_zoned(jiff::tz::TimeZone::UTC).map(|zoned| zoned.timestamp());
    text.parse()
        .or_else(|_| text.parse().and_then(midnight))
        .map_err(|_| "neither a time such as 2026-11-01T02:00:00Z nor a date such as 2026-11-01".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    Auto,
    Always,
    Never,
}

impl Common {
    /// Whether bars are drawn: asked for, or a terminal that is nobody's pipe or build.
    pub fn shows_progress(&self) -> bool {
        match self.progress {
            When::Always => true,
            When::Never => false,
            When::Auto => std::io::stderr().is_terminal() && std::env::var_os("CI").is_none() && !self.quiet,
        }
    }

    fn colours(&self) -> bool {
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }
}

/// Starts the log on stderr. Only this crate speaks below warnings: libraries may quote what they read.
pub fn start_log(common: &Common) {
    let level = match (common.quiet, common.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::new(format!("off,lakescrub={level}"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogBesideBars).with_target(false);
    // A log that cannot be written (a full disk, a closed stderr) must not end the run, as a panic about it would.
    let log = log.log_internal_errors(false);
    // A second start in one process (tests) keeps the first log.
    let _ = match common.log_format {
        LogFormat::Json => log.json().flatten_event(true).try_init(),
        LogFormat::Auto | LogFormat::Text => log.with_ansi(common.colours()).compact().try_init(),
    };
}

/// Prints an error and its hint on stderr: as two lines for people, or as one event of a JSON log.
pub fn print_error(common: &Common, error: &Error) {
    let hint = error.hint.as_deref();
    if common.log_format == LogFormat::Json {
        tracing::error!(exit = error.exit.code(), hint, "{}", error.message);
        return;
    }
    let mut err = std::io::stderr().lock();
    // Nothing is left to tell when stderr is gone.
    let _ = writeln!(err, "error: {}", error.message);
    if let Some(hint) = hint {
        let _ = writeln!(err, "  hint: {hint}");
    }
}

/// Prints the result on stdout. A reader that has seen enough (`| head`) is no fault; a full disk is.
pub fn print_result(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::internal(format!("the result cannot be written to stdout: {}", error.kind()))
                .hint("the command itself has ended; a run's result is in its manifest"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
