//! The job file: what to look for, where, and what to do about it (contract, section 3).
//!
//! Everything is parsed into these types, by [`crate::job_read`] and [`crate::job_rules`], and judged as a whole by
//! [`crate::job_check`]; past them nobody reads TOML. Unknown keys are faults, and all faults are told
//! at once. Relative paths are relative to the job file.

use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use sha2::{Digest, Sha256};
use toml::de::DeTable;

use crate::action::Action;
use crate::deadline::Regimes;
use crate::error::{Error, Result};
use crate::format::{CsvDialect, Format};
use crate::identifier::{ColumnPath, DateFormat, Hashed, Kind};
use crate::job_read::{Edge, read_job};
use crate::store::Location;
use crate::store::s3::S3Settings;
use crate::toml_reader::{Fault, Faults, Table, set};

/// A whole job.
#[derive(Debug, Clone)]
pub struct Job {
    pub name: String,
    /// SHA-256 of the job file's bytes followed by every `--set`, in hex.
    pub digest: String,
    pub state: State,
    pub s3: S3Settings,
    pub guard: Guard,
    pub resources: Resources,
    /// Synthetic identifiers that are taken through a run, for each rule and list; 0: none.
    pub canaries: u64,
    /// The lists that are files.
    pub lists: Vec<ListSpec>,
    /// The list that is the request ledger under `state`, if one is.
    pub ledger: Option<LedgerList>,
    pub datasets: Vec<DatasetSpec>,
    /// Until when requests are to be done.
    pub regimes: Regimes,
    /// How often the job runs, for forecasts.
    pub runs_every: Option<SignedDuration>,
    pub drop: Option<DropSpec>,
}

/// A `[[list]]` with `uri = "ledger"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerList {
    pub name: String,
}

/// The `uri` of a list that is the request ledger; a file of that name is `./ledger`.
pub const LEDGER_URI: &str = "ledger";

/// How this broker takes part in California's Delete Request and Opt-out Platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropSpec {
    /// Four digits.
    pub broker_id: String,
    /// An age public key; downloads are kept encrypted to it.
    pub archive_recipient: Option<String>,
    /// Uploads are split above this.
    pub rows_per_file: u64,
}

#[derive(Debug, Clone)]
pub struct State {
    /// A prefix: journals, manifests, lock, keys.
    pub location: Location,
    pub signing_key: KeySource,
    pub tag_key: KeySource,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    Env(String),
}

/// What stops a run before anything is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    /// Largest share of a dataset's rows that may match.
    pub max_fraction: f64,
    /// Most rows that may match in all datasets together.
    pub max_rows: u64,
    pub max_bad_list_rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    pub threads: usize,
    /// Bounds what rewrites, scans and verification hold at a time, in MiB, next to the match index.
    pub memory_mib: u64,
    pub requests_in_flight: usize,
}

/// Which objects a `uri` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Object(Location),
    /// Everything below.
    Prefix(Location),
    /// What matches `pattern`, an absolute glob in the store's own spelling; `root` is the longest part without a wildcard.
    Glob {
        root: Location,
        pattern: String,
    },
}

impl Scope {
    /// Where a listing of it starts.
    pub fn root(&self) -> &Location {
        match self {
            Scope::Object(location) | Scope::Prefix(location) => location,
            Scope::Glob { root, .. } => root,
        }
    }
}

#[derive(Debug, Clone)]
pub struct ListSpec {
    pub name: String,
    /// As written, for people.
    pub uri: String,
    pub scope: Scope,
    /// `None`: inferred from each file's name.
    pub format: Option<ListFormat>,
    pub request_id: Option<String>,
    pub received_at: Option<String>,
    /// The deadline of its requests.
    pub regime: Option<String>,
    pub columns: Vec<ListColumn>,
    pub csv: CsvDialect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    Csv,
    Tsv,
    Parquet,
    Ndjson,
    /// One identifier a line.
    Txt,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListColumn {
    /// Ignored for `txt`, which has one column.
    pub column: String,
    pub kind: Kind,
    pub hashed: Option<Hashed>,
}

#[derive(Debug, Clone)]
pub struct DatasetSpec {
    pub name: String,
    /// As written, for people.
    pub uri: String,
    pub scope: Scope,
    /// `None`: inferred from each object's name.
    pub format: Option<Format>,
    pub action: Action,
    pub missing_column: MissingColumn,
    pub when_empty: WhenEmpty,
    pub rules: Vec<MatchRule>,
    pub csv: CsvDialect,
    pub search: Search,
    pub stray: Stray,
    pub versions: VersionPolicy,
    /// The column that tells one DROP consumer from another.
    pub consumer_key: Option<ColumnPath>,
}

/// Whether columns that no rule names are searched for listed identifiers of distinctive kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    Off,
    /// Findings are told.
    Report,
    /// Findings are residue.
    Residue,
}

/// What `scrub` does with a listed identifier in a column that no rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    Keep,
    /// The identifier alone is replaced within its cell.
    Redact,
}

/// What becomes of what a listing of current objects does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionPolicy {
    pub noncurrent: Noncurrent,
    /// Unfinished uploads this old or older are aborted.
    pub abort_uploads_after_days: u32,
}

/// What happens to a noncurrent object version that holds a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noncurrent {
    Purge,
    Report,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingColumn {
    Error,
    Skip,
}

/// What becomes of an object all of whose rows are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenEmpty {
    Keep,
    Drop,
}

/// A row matches when any rule of its dataset does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MatchRule {
    Single(MatchPart),
    /// All parts must match the same list row; each part names its list column.
    All(Vec<MatchPart>),
    /// The parts together make up one identifier (DROP's NDZ and NameVIN).
    Joined {
        parts: Vec<MatchPart>,
        /// What is compared with the lists; its column is the first part's.
        whole: MatchPart,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchPart {
    pub column: ColumnPath,
    pub kind: Kind,
    /// The data holds hashes.
    pub hashed: Option<Hashed>,
    /// Only this column of the lists is compared; always there in a composite.
    pub list_column: Option<String>,
}

impl MatchRule {
    /// What is read in the data.
    pub fn parts(&self) -> &[MatchPart] {
        match self {
            MatchRule::Single(part) => std::slice::from_ref(part),
            MatchRule::All(parts) | MatchRule::Joined { parts, .. } => parts,
        }
    }

    /// What is compared with the lists.
    pub fn compared(&self) -> &[MatchPart] {
        match self {
            MatchRule::Single(part) => std::slice::from_ref(part),
            MatchRule::All(parts) => parts,
            MatchRule::Joined { whole, .. } => std::slice::from_ref(whole),
        }
    }

    /// The columns together make up one identifier of `kind`, which has as many parts; `date_format` is of those of kind date.
    pub fn joined(
        kind: Kind,
        columns: Vec<ColumnPath>,
        date_format: Option<DateFormat>,
        list_column: Option<String>,
    ) -> MatchRule {
        let of = |(kind, column): (&Kind, &ColumnPath)| {
            let kind = match kind {
                Kind::Date { .. } => Kind::Date { format: date_format.clone() },
                kind => kind.clone(),
            };
            MatchPart { column: column.clone(), kind, hashed: None, list_column: None }
        };
        let parts = kind.parts().iter().zip(&columns).map(of).collect();
        let column = columns.into_iter().next().expect("an identifier of several columns has a first one");
        MatchRule::Joined { parts, whole: MatchPart { column, kind, hashed: None, list_column } }
    }
}

impl Job {
    /// Refuses a job that only takes requests in, for a command that looks at data.
    pub fn check_datasets(&self) -> Result<()> {
        match self.datasets.is_empty() {
            false => Ok(()),
            true => Err(Error::usage("the job has no [[dataset]]: there is nothing that this command could look at")
                .hint("without one a job takes requests in: the `requests` commands and `drop import`")),
        }
    }

    /// Reads and parses a job file; `overrides` are `key=value` of `--set`.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Job> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::usage(format!("cannot read the job file {}: {error}", path.display()))
                .hint("see jobs/ in the source tree for examples")
        })?;
        let folder = std::path::absolute(path)
            .ok()
            .and_then(|absolute| absolute.parent().map(Path::to_owned))
            .unwrap_or_else(|| PathBuf::from("/"));
        Job::parse(&text, &folder, overrides).map_err(|faults| {
            let lines: Vec<String> = faults.iter().map(|fault| display_fault(path, overrides, fault)).collect();
            Error::usage(lines.join("\n")).hint("the README's section \"The job file\" lists every key")
        })
    }

    /// Parses a job file's text; relative paths start at `folder`.
    pub fn parse(text: &str, folder: &Path, overrides: &[String]) -> Result<Job, Vec<Fault>> {
        // One job file a process: leaking its text lets `--set` values and file values live in one table.
        let text: &'static str = Box::leak(text.to_owned().into_boxed_str());
        let faults = Faults::new(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            faults.add(error.span().unwrap_or(0..0), "", error.message());
        }
        if !errors.is_empty() {
            return Err(faults.take());
        }
        let (span, mut fields) = (table.span(), table.into_inner());
        for text in overrides {
            let outcome = match text.split_once('=') {
                Some((key, value)) => set(&mut fields, key.trim(), value.trim()),
                None => Err(format!("\"{text}\" is not key=value")),
            };
            if let Err(message) = outcome {
                faults.add(0..0, "--set", message);
            }
        }
        let mut digest = Sha256::new_with_prefix(text);
        overrides.iter().for_each(|text| digest.update(text));
        let table = Table::new("", toml::Spanned::new(span, fields), faults.clone());
        let job = read_job(table, &Edge { folder: folder.to_owned() }, hex::encode(digest.finalize()));
        match (job, faults.take()) {
            (Some(job), found) if found.is_empty() => Ok(job),
            (_, found) => Err(found),
        }
    }
}

/// Which objects a path or URI on the command line means; relative ones start at the working folder.
pub fn scope_of(uri: &str) -> Result<Scope> {
    let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    Edge { folder }.parse_scope(uri).map_err(|message| Error::usage(format!("{uri} {message}")))
}

fn display_fault(path: &Path, overrides: &[String], fault: &Fault) -> String {
    if fault.key == "--set" {
        return format!("--set {}", fault.message);
    }
    // What `--set` says stands in no line of the file.
    let key = fault.key.replace('[', ".").replace(']', "");
    let is_set = |text: &&String| {
        let path = text.split('=').next().unwrap_or("").trim();
        key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if let Some(text) = overrides.iter().find(is_set).filter(|_| fault.line.is_none()) {
        return format!("--set {text}: {} {}", fault.key, fault.message);
    }
    let line = fault.line.map(|line| format!(":{line}")).unwrap_or_default();
    let key = if fault.key.is_empty() { String::new() } else { format!(" {}", fault.key) };
    format!("{}{line}:{key} {}", path.display(), fault.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMO: &str = r#"version = 1
name = "nightly"
[state]
uri = "state/"
signing_key = { env = "KEY" }
[[list]]
name = "crm"
uri = "s3://privacy/optouts/*.csv"
[[list.column]]
column = "email"
kind = "email"
[[list.column]]
column = "hash"
kind = "email"
hashed = "sha256-base64"
[[list.column]]
column = "zip"
kind = "zip"
[[list.column]]
column = "first"
kind = "text"
[[dataset]]
name = "events"
uri = "lake/../lake/events/"
format = "parquet"
[[dataset.match]]
column = "user.email"
kind = "email"
[[dataset.match]]
all = [{ column = "first", kind = "text", list_column = "first" }, { column = "zip", kind = "zip", list_column = "zip" }]
"#;

    fn faults(text: &str) -> Vec<String> {
        let show = |fault: Fault| format!("{}:{} {}", fault.line.unwrap_or(0), fault.key, fault.message);
        Job::parse(text, Path::new("/jobs"), &[]).err().unwrap_or_default().into_iter().map(show).collect()
    }

    #[test]
    fn a_whole_job_is_read() {
        let job =
            Job::parse(DEMO, Path::new("/jobs"), &["guard.max_rows=7".into(), "dataset.0.name=other".into()]).unwrap();
        assert_eq!(job.state.location, Location::Local("/jobs/state".into()));
        assert_eq!(job.state.signing_key, KeySource::Env("KEY".into()));
        assert_eq!(job.guard.max_rows, 7);
        assert_eq!(job.datasets[0].name, "other");
        assert_eq!(job.datasets[0].scope, Scope::Prefix(Location::Local("/jobs/lake/events".into())));
        let root = Location::S3 { bucket: "privacy".into(), key: "optouts/".into() };
        assert_eq!(job.lists[0].scope, Scope::Glob { root, pattern: "optouts/*.csv".into() });
        assert_eq!(job.datasets[0].rules[1].parts().len(), 2);
    }

    #[test]
    fn all_faults_are_told_at_once_with_key_and_line() {
        let broken = DEMO
            .replace("name = \"nightly\"", "nme = \"nightly\"")
            .replace("kind = \"zip\"\n[[list.column]]", "kind = \"postcode\"\n[[list.column]]")
            .replace("format = \"parquet\"", "format = 5");
        let found = faults(&broken);
        assert_eq!(found.len(), 3, "{found:#?}");
        assert_eq!(found[0], "2:nme is not a known key; did you mean \"name\"?");
        assert!(found[1].starts_with("18:list[0].column[2].kind \"postcode\" is none of email, phone"), "{}", found[1]);
        assert_eq!(found[2], "25:dataset[0].format must be a string, not integer");
    }

    #[test]
    fn what_can_never_be_clean_is_a_fault() {
        let md5 = DEMO.replace(
            "column = \"user.email\"\nkind = \"email\"",
            "column = \"h\"\nkind = \"email\"\nhashed = \"md5-hex\"",
        );
        assert!(faults(&md5)[0].contains("they can never be compared"), "{:?}", faults(&md5));
        let lost = DEMO.replace("list_column = \"zip\"", "list_column = \"plz\"");
        assert!(faults(&lost)[0].contains("no list has a column \"plz\" of kind zip"), "{:?}", faults(&lost));
        let kept = DEMO.replace("format = \"parquet\"", "action = \"redact\"\nredact = { name = \"null\" }");
        assert!(faults(&kept)[0].contains("user.email is matched but not redacted"), "{:?}", faults(&kept));
    }

    #[test]
    fn a_uri_that_names_nothing_is_a_fault() {
        for (from, to, wanted) in [
            ("uri = \"state/\"", "uri = \"\"", "names no folder for the state"),
            ("uri = \"state/\"", "uri = \"/\"", "names no folder for the state"),
            ("uri = \"s3://privacy/optouts/*.csv\"", "uri = \" \"", "is empty"),
            ("uri = \"lake/../lake/events/\"", "uri = \"\"", "is empty"),
        ] {
            let found = faults(&DEMO.replace(from, to));
            assert!(found.iter().any(|fault| fault.contains(wanted)), "{to}: {found:?}");
        }
    }

    #[test]
    fn a_list_may_be_the_ledger_and_compares_with_sha256_alone() {
        let list = "[[list]]\nname = \"all\"\nuri = \"ledger\"\n";
        let job = Job::parse(&format!("{DEMO}{list}"), Path::new("/jobs"), &[]).unwrap();
        assert_eq!((job.lists.len(), job.ledger), (1, Some(LedgerList { name: "all".into() })));
        for (more, wanted) in [
            (list.repeat(2), "only one can be the ledger"),
            (format!("{list}format = \"csv\"\n"), "is not a known key"),
            (
                format!(
                    "{list}[[dataset]]\nname = \"m\"\nuri = \"m/\"\nmatch = [{{ column = \"h\", kind = \"ip\", hashed = \"md5-hex\" }}]\n"
                ),
                "whose tags are made from SHA-256: they can never be compared",
            ),
        ] {
            let found = faults(&format!("{DEMO}{more}"));
            assert!(found.iter().any(|fault| fault.contains(wanted)), "{found:?}");
        }
    }

    #[test]
    fn lists_and_state_lie_apart_from_the_data() {
        for (from, to, wanted) in [
            ("s3://privacy/optouts/*.csv", "lake/events/optouts.csv", "crm lies in dataset events"),
            ("uri = \"state/\"", "uri = \"lake/events/state/\"", "lies in dataset events, where it would be read"),
            ("uri = \"state/\"", "uri = \"lake/events/\"", "lies in dataset events, where it would be read"),
        ] {
            let found = faults(&DEMO.replace(from, to));
            assert!(found.iter().any(|fault| fault.contains(wanted)), "{found:?}");
        }
        assert!(faults(&DEMO.replace("uri = \"state/\"", "uri = \"lake/events/.lakescrub/\"")).is_empty());
    }

    #[test]
    fn deadlines_and_schedule_are_read_with_their_faults() {
        let with = |text: &str| DEMO.replace("[state]", &format!("{text}\n[state]"));
        let text = "[deadlines]\ntime_zone = \"Europe/Berlin\"\n[[deadline]]\nname = \"house\"\nbusiness_days = 3\nholidays = \"eu\"\ndays_off = [\"2026-12-24\"]\n[schedule]\nevery = \"7 days\"";
        let job = Job::parse(&with(text), Path::new("/jobs"), &[]).unwrap();
        assert_eq!(job.runs_every, Some(SignedDuration::from_hours(168)));
        let due = job.regimes.due("house", crate::deadline::Received::On(jiff::civil::date(2026, 12, 23))).unwrap();
        assert_eq!(due.date, jiff::civil::date(2026, 12, 30), "{}", due.how);
        for (broken, wanted) in [
            ("[deadlines]\ntime_zone = \"Mars/Olympus\"", "3:deadlines.time_zone \"Mars/Olympus\" is no time zone"),
            ("[[deadline]]\nname = \"a\"", "3:deadline[0] needs one of days, business_days and months"),
            ("[[deadline]]\nname = \"a\"\ndays = 1\nmonths = 1", "3:deadline[0] needs one of"),
            (
                "[[deadline]]\nname = \"a\"\ndays = 1\ndays_off = [\"24.12.2026\"]",
                "6:deadline[0].days_off[0] \"24.12.2026\" is not a date",
            ),
            ("[schedule]\nevery = \"soon\"", "4:schedule.every \"soon\" is not a duration such as"),
        ] {
            let found = faults(&with(broken));
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{found:?}");
        }
    }

    #[test]
    fn drop_columns_are_rules_of_their_own() {
        let job = DEMO.replace("kind = \"email\"\nhashed", "kind = \"ndz\"\nhashed");
        let events = job.replace(
            "[[dataset.match]]\ncolumn = \"user.email\"\nkind = \"email\"\n",
            "[dataset.drop]\nEmail = [\"user.email\", \"mail\"]\nNDZ = [\"first\", \"last\", \"born\", \"zip\"]\ndate_format = \"%F\"\nconsumer_key = \"user.id\"\n",
        );
        let drop = "[drop]\nbroker_id = \"4821\"\n";
        let job = Job::parse(&events.replace("[state]", &format!("{drop}[state]")), Path::new("/jobs"), &[]).unwrap();
        let rules = &job.datasets[0].rules;
        assert_eq!(rules.len(), 4, "{rules:?}");
        assert_eq!(job.datasets[0].consumer_key, ColumnPath::parse("user.id"));
        let MatchRule::Joined { parts, whole } = &rules[1] else { panic!("{rules:?}") };
        assert_eq!((whole.kind.clone(), parts.len()), (Kind::Ndz, 4));
        assert_eq!(parts[2].kind, Kind::Date { format: DateFormat::parse("%Y-%m-%d") });
        assert_eq!(job.drop.map(|drop| (drop.broker_id, drop.rows_per_file)), Some(("4821".to_owned(), 1_000_000)));
        for (from, to, wanted) in [
            (
                "\"born\", ",
                "",
                "dataset[0].drop.NDZ must name 4 columns, of name, name, date, zip in this order, not 3",
            ),
            ("Email =", "email =", "dataset[0].drop.email is not a known key; did you mean \"Email\"?"),
            ("\"%F\"", "\"DD.MM.YY\"", "dataset[0].drop.date_format \"DD.MM.YY\" is not a format that tells"),
            ("[\"user.email\", \"mail\"]", "[]", "dataset[0].drop.Email names no column"),
        ] {
            let found = faults(&events.replace("[state]", &format!("{drop}[state]")).replace(from, to));
            assert!(found.iter().any(|fault| fault.contains(wanted)), "{found:?}");
        }
        for (broken, wanted) in [
            ("[drop]\n", "drop.broker_id is missing"),
            ("[drop]\nbroker_id = \"48\"\n", "drop.broker_id \"48\" is not a broker id of four digits"),
            (
                "[drop]\nbroker_id = \"4821\"\narchive_recipient = \"age1x\"\n",
                "drop.archive_recipient \"age1x\" is not an age",
            ),
        ] {
            let found = faults(&DEMO.replace("[state]", &format!("{broken}[state]")));
            assert!(found.iter().any(|fault| fault.contains(wanted)), "{found:?}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        assert!(faults("version = 1\nname = \n")[0].starts_with("2:"), "{:?}", faults("version = 1\nname = \n"));
    }
}
