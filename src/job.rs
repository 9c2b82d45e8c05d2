//! The job file: what to look for, where, and what to do about it (contract, section 3).
//!
//! Everything is parsed into types here; past this module nobody reads TOML. Unknown keys are faults, and all faults are told
//! at once. Relative paths are relative to the job file.

use std::path::{Path, PathBuf};

use jiff::civil::Date;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use sha2::{Digest, Sha256};
use toml::de::DeTable;

use crate::action::{Action, Redact, Redaction};
use crate::deadline::{Holidays, Regime, Regimes, Source, Term, known_zone};
use crate::drop_files::{ListType, is_broker_id, is_recipient};
use crate::error::{Error, Result};
use crate::format::{CsvDialect, Format};
use crate::identifier::{ColumnPath, DateFormat, HashFunction, Hashed, Kind, known_region};
use crate::store::Location;
use crate::store::s3::S3Settings;
use crate::toml_reader::{Fault, Faults, Field, Table, set};

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

/// DROP names no limit; this keeps a file at 15 MB.
const DROP_ROWS_PER_FILE: u64 = 1_000_000;

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

/// What a relative path starts from.
struct Edge {
    folder: PathBuf,
}

fn read_job(mut top: Table<'_>, edge: &Edge, digest: String) -> Option<Job> {
    if top.integer("version", 0).is_some_and(|version| version != 1) {
        top.fault("version", "must be 1");
    }
    let name = top.string("name").unwrap_or_else(|| "job".to_owned());
    let state = edge.state(top.table("state"));
    let mut storage = top.table("storage");
    let s3 = s3_settings(storage.table("s3"));
    storage.finish();
    let guard = guard(top.table("guard"));
    let resources = resources(top.table("resources"));
    let canaries = canaries(top.table("canary"));
    let regimes = regimes(&mut top);
    let runs_every = runs_every(top.table("schedule"));
    let drop = top.take("drop").and_then(Field::table).map(drop_spec);
    let (mut ledgers, mut lists) = (Vec::new(), Vec::new());
    for table in top.tables("list") {
        match edge.list(table) {
            Some(AnyList::Ledger(ledger)) => ledgers.push(ledger),
            Some(AnyList::Files(list)) => lists.push(Some(*list)),
            None => lists.push(None),
        }
    }
    let datasets: Vec<_> = top.tables("dataset").into_iter().map(|table| edge.dataset(table)).collect();
    if lists.is_empty() && ledgers.is_empty() {
        top.fault("list", "is missing: a job needs at least one [[list]]");
    }
    if datasets.is_empty() {
        top.fault("dataset", "is missing: a job needs at least one [[dataset]]");
    }
    let (lists, datasets): (Option<Vec<_>>, Option<Vec<_>>) =
        (lists.into_iter().collect(), datasets.into_iter().collect());
    if let (Some(lists), Some(datasets)) = (&lists, &datasets) {
        let names = ledgers.iter().map(|ledger| &ledger.name).chain(lists.iter().map(|list| &list.name));
        check_names(&top, "list", names.map(String::as_str));
        check_ledger(&top, &ledgers, datasets);
        check_names(&top, "dataset", datasets.iter().map(|dataset| dataset.name.as_str()));
        check_comparable(&top, lists, datasets);
        check_regimes(&top, lists, &regimes);
        datasets.iter().for_each(|dataset| check_redaction(&top, dataset));
        check_apart(&top, lists, datasets, state.as_ref());
    }
    top.finish();
    Some(Job {
        name,
        digest,
        state: state?,
        s3,
        guard,
        resources,
        canaries,
        lists: lists?,
        ledger: ledgers.pop(),
        datasets: datasets?,
        regimes,
        runs_every,
        drop: flatten(drop)?,
    })
}

fn check_names<'a>(top: &Table<'_>, key: &str, names: impl Iterator<Item = &'a str>) {
    let mut seen = std::collections::HashSet::new();
    for name in names.filter(|name| !seen.insert(*name)) {
        top.fault(key, format!("two are named \"{name}\""));
    }
}

fn check_regimes(top: &Table<'_>, lists: &[ListSpec], regimes: &Regimes) {
    for list in lists {
        if let Some(regime) = list.regime.as_ref().filter(|regime| regimes.get(regime).is_none()) {
            top.fault("list", format!("{}: regime \"{regime}\" is none of {}", list.name, regimes.ids().join(", ")));
        }
    }
}

/// A pair that can never be compared is a fault, never "clean": a list of one hash function against a column of another, and a
/// composite whose list columns no list has.
fn check_comparable(top: &Table<'_>, lists: &[ListSpec], datasets: &[DatasetSpec]) {
    for dataset in datasets {
        for rule in &dataset.rules {
            for part in rule.compared() {
                let columns = || lists.iter().flat_map(|list| list.columns.iter().map(move |column| (list, column)));
                let feeds = |column: &ListColumn| part.list_column.as_ref().is_none_or(|name| *name == column.column);
                for (list, column) in
                    columns().filter(|(_, column)| feeds(column) && column.kind.same_family(&part.kind))
                {
                    if let (Some(listed), Some(stored)) = (column.hashed, part.hashed)
                        && listed.function() != stored.function()
                    {
                        top.fault(
                            "dataset",
                            format!(
                                "{}: column {} holds {} but list {} column {} holds {}: they can never be compared",
                                dataset.name,
                                part.column,
                                stored.name(),
                                list.name,
                                column.column,
                                listed.name()
                            ),
                        );
                    }
                }
                if let Some(name) = &part.list_column
                    && !columns().any(|(_, column)| column.column == *name && column.kind.same_family(&part.kind))
                {
                    top.fault(
                        "dataset",
                        format!("{}: no list has a column \"{name}\" of kind {}", dataset.name, part.kind.name()),
                    );
                }
            }
        }
    }
}

/// The ledger's tags are made from SHA-256: a column of another hash function can never be compared with them.
fn check_ledger(top: &Table<'_>, ledgers: &[LedgerList], datasets: &[DatasetSpec]) {
    let Some(ledger) = ledgers.first() else { return };
    if ledgers.len() > 1 {
        top.fault("list", "only one can be the ledger: it holds the requests of all sources");
    }
    for dataset in datasets {
        for part in dataset.rules.iter().flat_map(MatchRule::compared).filter(|part| part.list_column.is_none()) {
            let Some(hashed) = part.hashed.filter(|hashed| hashed.function() != HashFunction::Sha256) else { continue };
            top.fault(
                "dataset",
                format!(
                    "{}: column {} holds {} but list {} is the ledger, whose tags are made from SHA-256: they can never be compared",
                    dataset.name,
                    part.column,
                    hashed.name(),
                    ledger.name
                ),
            );
        }
    }
}

/// A list inside a dataset would be scrubbed empty, and a state inside one would be scanned as data; what is hidden by its name
/// (`.lakescrub/`) is no part of a dataset.
fn check_apart(top: &Table<'_>, lists: &[ListSpec], datasets: &[DatasetSpec], state: Option<&State>) {
    let is_inside = |dataset: &DatasetSpec, inner: &Location| {
        let Scope::Prefix(root) = &dataset.scope else { return dataset.scope == Scope::Object(inner.clone()) };
        let (root, inner) = (root.to_string(), inner.to_string());
        let below = inner.trim_end_matches('/').strip_prefix(root.trim_end_matches('/'));
        // The dataset's root itself is in it.
        let below = below.and_then(|rest| if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') });
        below.is_some_and(|below| !below.split('/').any(|segment| segment.starts_with(['_', '.'])))
    };
    for dataset in datasets {
        for list in lists.iter().filter(|list| is_inside(dataset, list.scope.root())) {
            top.fault("list", format!("{} lies in dataset {}, which would be scrubbed of it", list.name, dataset.name));
        }
        if state.is_some_and(|state| is_inside(dataset, &state.location)) {
            top.fault("state.uri", format!("lies in dataset {}, where it would be read as data", dataset.name));
        }
    }
}

/// A redacted row must not match again: every rule needs a redacted column, or the identifier stays and each run finds it anew.
fn check_redaction(top: &Table<'_>, dataset: &DatasetSpec) {
    let Action::Redact(columns) = &dataset.action else { return };
    for rule in &dataset.rules {
        let covered = |part: &MatchPart| columns.iter().any(|redact| redact.column == part.column);
        if !rule.parts().iter().any(covered) {
            let columns: Vec<String> = rule.parts().iter().map(|part| part.column.to_string()).collect();
            top.fault(
                "dataset",
                format!(
                    "{}: {} is matched but not redacted, so its identifiers would stay",
                    dataset.name,
                    columns.join(" and ")
                ),
            );
        }
    }
}

fn s3_settings(mut table: Table<'_>) -> S3Settings {
    let settings = S3Settings {
        endpoint: table.string("endpoint"),
        region: table.string("region"),
        profile: table.string("profile"),
        allow_http: table.boolean("allow_http").unwrap_or(false),
        path_style: table.boolean("path_style"),
        unconditional_writes: table
            .take("unconditional_writes")
            .and_then(|field| {
                field.one_of(&["\"refuse\"", "\"allow\""], |text| match text {
                    "refuse" => Some(false),
                    "allow" => Some(true),
                    _ => None,
                })
            })
            .unwrap_or(false),
    };
    if settings.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")) && !settings.allow_http {
        table.fault("endpoint", "is plain http; set allow_http = true to permit it");
    }
    table.finish();
    settings
}

fn guard(mut table: Table<'_>) -> Guard {
    let guard = Guard {
        max_fraction: table.fraction("max_fraction").unwrap_or(0.25),
        max_rows: table.integer("max_rows", 0).unwrap_or(1_000_000),
        max_bad_list_rows: table.integer("max_bad_list_rows", 0).unwrap_or(0),
    };
    table.finish();
    guard
}

/// More than these would take longer than a small dataset.
const CANARIES_MAX: u64 = 1000;

fn canaries(mut table: Table<'_>) -> u64 {
    let count = table.integer("count", 0).unwrap_or(0);
    if count > CANARIES_MAX {
        table.fault("count", format!("must be {CANARIES_MAX} at most"));
    }
    table.finish();
    count
}

fn resources(mut table: Table<'_>) -> Resources {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let resources = Resources {
        threads: table.integer("threads", 1).map_or(cores, |threads| threads as usize),
        memory_mib: table.integer("memory_mib", 64).unwrap_or(512),
        requests_in_flight: table.integer("requests_in_flight", 1).unwrap_or(32) as usize,
    };
    table.finish();
    resources
}

fn regimes(top: &mut Table<'_>) -> Regimes {
    let mut table = top.table("deadlines");
    let zone = table.string("time_zone").unwrap_or_else(|| "UTC".to_owned());
    if !known_zone(&zone) {
        table.fault("time_zone", format!("\"{zone}\" is no time zone of the IANA database"));
    }
    table.finish();
    let own: Vec<_> = top.tables("deadline").into_iter().filter_map(regime).collect();
    check_names(top, "deadline", own.iter().map(|regime| regime.id.as_str()));
    Regimes::new(own, &zone)
}

fn regime(mut table: Table<'_>) -> Option<Regime> {
    let id = table.required("name").and_then(Field::string);
    let mut count = |name| table.integer(name, 0).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let terms = [
        count("days").map(Term::CalendarDays),
        count("business_days").map(Term::BusinessDays),
        count("months").map(Term::Months),
    ];
    let term = match terms.into_iter().flatten().collect::<Vec<_>>().as_slice() {
        [term] => Some(*term),
        _ => {
            table.fault("", "needs one of days, business_days and months");
            None
        }
    };
    let holidays = [("none", Holidays::None), ("us-federal", Holidays::UsFederal), ("eu", Holidays::Eu)];
    let holidays = choice(&mut table, "holidays", &holidays);
    let days_off = table.take("days_off").map(Field::array).unwrap_or_default().into_iter().filter_map(day).collect();
    let from = table.take("from").and_then(day);
    let until = table.take("until").and_then(day);
    let regime = Regime {
        id: id.unwrap_or_default(),
        duty: table.string("duty").unwrap_or_default(),
        term: term.unwrap_or(Term::CalendarDays(0)),
        extension: None,
        ends_on_working_day: table.boolean("ends_on_working_day").unwrap_or(false),
        holidays: holidays?,
        days_off,
        from,
        until,
        successor: None,
        citation: table.string("citation").unwrap_or_else(|| "the job file".to_owned()),
        source: Source::Job,
    };
    table.finish();
    Some(regime)
}

fn day(field: Field<'_>) -> Option<Date> {
    field.one_of(&["a date such as \"2026-12-24\""], |text| text.parse().ok())
}

/// Days are of 24 hours: a schedule has no time zone.
fn runs_every(mut table: Table<'_>) -> Option<SignedDuration> {
    let every = table.take("every").and_then(|field| {
        field.one_of(&["a duration such as \"24h\" or \"7 days\""], |text| {
            let span: Span = text.parse().ok()?;
            let every = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
            every.is_positive().then_some(every)
        })
    });
    table.finish();
    every
}

/// What a `[[list]]` can be.
enum AnyList {
    Files(Box<ListSpec>),
    Ledger(LedgerList),
}

impl Edge {
    fn state(&self, mut table: Table<'_>) -> Option<State> {
        let uri = table.string("uri").unwrap_or_else(|| ".lakescrub/".to_owned());
        let key = |field: Option<Field<'_>>, name: &str| match field {
            None => Some(KeySource::File(self.folder.join("keys").join(name))),
            Some(field) if field.is_table() => {
                let mut table = field.table()?;
                let env = table.required("env").and_then(Field::string);
                table.finish();
                env.map(KeySource::Env)
            }
            Some(field) => field.string().map(|path| KeySource::File(self.folder.join(path))),
        };
        let signing_key = key(table.take("signing_key"), "signing.key");
        let tag_key = key(table.take("tag_key"), "tag.key");
        let folder = uri.trim_end_matches('/');
        let location = match self.location(folder) {
            // The job's own folder, or the root of the disk, would fill with journals and be swept of what looks like ours.
            Ok(_) if folder.trim().is_empty() => {
                table.fault("uri", "names no folder for the state".to_owned());
                None
            }
            Ok(location) => Some(location),
            Err(message) => {
                table.fault("uri", message);
                None
            }
        };
        table.finish();
        Some(State { location: location?, signing_key: signing_key?, tag_key: tag_key? })
    }

    fn list(&self, mut table: Table<'_>) -> Option<AnyList> {
        let name = table.required("name").and_then(Field::string);
        let uri = table.required("uri").and_then(Field::string);
        if uri.as_deref() == Some(LEDGER_URI) {
            // Its columns are those of the lists that were imported.
            table.finish();
            return name.map(|name| AnyList::Ledger(LedgerList { name }));
        }
        let scope = uri.as_ref().and_then(|uri| self.scope(&table, uri));
        let format = table.take("format").map(|field| {
            field.one_of(&["csv", "tsv", "parquet", "ndjson", "txt"], |text| match text {
                "csv" => Some(ListFormat::Csv),
                "tsv" => Some(ListFormat::Tsv),
                "parquet" => Some(ListFormat::Parquet),
                "ndjson" => Some(ListFormat::Ndjson),
                "txt" => Some(ListFormat::Txt),
                _ => None,
            })
        });
        let request_id = table.string("request_id");
        let received_at = table.string("received_at");
        let regime = table.string("regime");
        let csv = csv_dialect(table.table("csv"));
        let columns: Vec<_> = table.tables("column").into_iter().map(list_column).collect();
        if columns.is_empty() {
            table.fault("column", "is missing: a list needs at least one [[list.column]]");
        }
        table.finish();
        Some(AnyList::Files(Box::new(ListSpec {
            name: name?,
            uri: uri?,
            scope: scope?,
            format: flatten(format)?,
            request_id,
            received_at,
            regime,
            columns: columns.into_iter().collect::<Option<_>>()?,
            csv,
        })))
    }

    fn dataset(&self, mut table: Table<'_>) -> Option<DatasetSpec> {
        let name = table.required("name").and_then(Field::string);
        let uri = table.required("uri").and_then(Field::string);
        let scope = uri.as_ref().and_then(|uri| self.scope(&table, uri));
        let format = table.take("format").map(|field| {
            field.one_of(&["parquet", "csv", "tsv", "ndjson"], |text| match text {
                "parquet" => Some(Format::Parquet),
                "csv" => Some(Format::Csv),
                "tsv" => Some(Format::Tsv),
                "ndjson" => Some(Format::Ndjson),
                _ => None,
            })
        });
        let missing_column =
            choice(&mut table, "missing_column", &[("error", MissingColumn::Error), ("skip", MissingColumn::Skip)]);
        let when_empty = choice(&mut table, "when_empty", &[("keep", WhenEmpty::Keep), ("drop", WhenEmpty::Drop)]);
        let searches = [("off", Search::Off), ("report", Search::Report), ("residue", Search::Residue)];
        let search = choice(&mut table, "search", &searches);
        let stray = choice(&mut table, "stray", &[("keep", Stray::Keep), ("redact", Stray::Redact)]);
        if stray == Some(Stray::Redact) && search == Some(Search::Off) {
            table.fault("stray", "needs search = \"report\" or \"residue\"");
        }
        let action = action(&mut table);
        let csv = csv_dialect(table.table("csv"));
        let versions = versions(table.table("versions"));
        let rules: Vec<_> = table.tables("match").into_iter().map(match_rule).collect();
        let drop = drop_columns(table.table("drop"));
        if rules.is_empty() && drop.as_ref().is_some_and(|drop| drop.rules.is_empty()) {
            table.fault("match", "is missing: a dataset needs at least one [[dataset.match]], or [dataset.drop]");
        }
        table.finish();
        let DropColumns { rules: drop_rules, consumer_key } = drop?;
        let rules: Option<Vec<MatchRule>> = rules.into_iter().collect();
        Some(DatasetSpec {
            name: name?,
            uri: uri?,
            scope: scope?,
            format: flatten(format)?,
            action: action?,
            missing_column: missing_column?,
            when_empty: when_empty?,
            rules: rules?.into_iter().chain(drop_rules).collect(),
            csv,
            search: search?,
            stray: stray?,
            versions: versions?,
            consumer_key,
        })
    }

    fn scope(&self, table: &Table<'_>, uri: &str) -> Option<Scope> {
        self.parse_scope(uri).map_err(|message| table.fault("uri", message)).ok()
    }

    fn parse_scope(&self, uri: &str) -> Result<Scope, String> {
        if uri.trim().is_empty() {
            return Err("is empty".to_owned());
        }
        let location = self.location(uri)?;
        if let Some(wildcard) = uri.find(['*', '?', '[', '{']) {
            let (folder, wild) = uri.split_at(uri[..wildcard].rfind('/').map_or(0, |slash| slash + 1));
            let root = self.location(folder)?;
            // The folder that the job file lies in may have a bracket in its name, which is no wildcard.
            let pattern = match &root {
                Location::Local(path) => {
                    let folder = globset::escape(path.to_str().ok_or("is not UTF-8")?);
                    format!("{}/{wild}", folder.trim_end_matches('/'))
                }
                Location::S3 { key, .. } => format!("{}{wild}", globset::escape(key)),
            };
            globset::Glob::new(&pattern).map_err(|error| format!("is not a glob: {}", error.kind()))?;
            return Ok(Scope::Glob { root, pattern });
        }
        let folder = uri.ends_with('/') || matches!(&location, Location::Local(path) if path.is_dir());
        Ok(match (folder, location) {
            (false, location) => Scope::Object(location),
            (true, location) => Scope::Prefix(location),
        })
    }

    fn location(&self, uri: &str) -> Result<Location, String> {
        if let Some(rest) = uri.strip_prefix("s3://") {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err("names no bucket".to_owned());
            }
            return Ok(Location::S3 { bucket: bucket.to_owned(), key: key.to_owned() });
        }
        let path = uri.strip_prefix("file://").unwrap_or(uri);
        if let Some((scheme, _)) = path.split_once("://") {
            return Err(format!("has the scheme {scheme}://; s3://, file:// and plain paths are known"));
        }
        Ok(Location::Local(without_dots(&self.folder.join(path))))
    }
}

/// The path without `.` and `..`, so that a glob over it compares equal to what a listing shows.
fn without_dots(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// `None` of a field that is there but wrong is a failure; a field that is not there is not.
fn flatten<T>(field: Option<Option<T>>) -> Option<Option<T>> {
    match field {
        None => Some(None),
        Some(None) => None,
        Some(value) => Some(value),
    }
}

/// The first choice is the default.
fn choice<T: Copy>(table: &mut Table<'_>, name: &'static str, choices: &[(&str, T)]) -> Option<T> {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    match table.take(name) {
        None => Some(choices[0].1),
        Some(field) => {
            field.one_of(&names, |text| choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value))
        }
    }
}

fn kind(table: &mut Table<'_>) -> Option<Kind> {
    let region = table.string("region");
    if let Some(region) = region.as_ref().filter(|region| !known_region(region)) {
        table.fault("region", format!("\"{region}\" is no ISO 3166-1 alpha-2 region"));
    }
    let date_format = date_format(table);
    let mut kind = table.required("kind")?.one_of(&Kind::NAMES, |name| Kind::parse(name, region.as_deref()))?;
    if region.is_some() && !matches!(kind, Kind::PhoneE164 { .. }) {
        table.fault("region", "belongs to kind phone-e164 only");
    }
    match (&mut kind, date_format?) {
        (Kind::Date { format }, date_format) => *format = date_format,
        (_, Some(_)) => table.fault("date_format", "belongs to kind date only"),
        (_, None) => {}
    }
    Some(kind)
}

fn date_format(table: &mut Table<'_>) -> Option<Option<DateFormat>> {
    let allowed = "a format that tells %Y, %m and %d (or %b, %B for the month) once each, such as \"%m/%d/%Y\"";
    flatten(table.take("date_format").map(|field| field.one_of(&[allowed], DateFormat::parse)))
}

fn hashed(table: &mut Table<'_>) -> Option<Option<Hashed>> {
    flatten(table.take("hashed").map(|field| field.one_of(&Hashed::NAMES, Hashed::parse)))
}

fn list_column(mut table: Table<'_>) -> Option<ListColumn> {
    let column = table.required("column").and_then(Field::string);
    let kind = kind(&mut table);
    let hashed = hashed(&mut table);
    table.finish();
    Some(ListColumn { column: column?, kind: kind?, hashed: hashed? })
}

fn match_rule(mut table: Table<'_>) -> Option<MatchRule> {
    if let Some(columns) = table.take("columns") {
        return joined_rule(table, columns);
    }
    let Some(all) = table.take("all") else {
        return match_part(table, false).map(MatchRule::Single);
    };
    let parts: Vec<_> = all.array().into_iter().filter_map(Field::table).map(|part| match_part(part, true)).collect();
    if parts.len() < 2 {
        table.fault("all", "needs at least two parts");
    }
    table.finish();
    Some(MatchRule::All(parts.into_iter().collect::<Option<_>>()?))
}

fn joined_rule(mut table: Table<'_>, columns: Field<'_>) -> Option<MatchRule> {
    let kind = table.required("kind").and_then(|field| {
        field.one_of(&["ndz", "namevin"], |name| Kind::parse(name, None).filter(|kind| !kind.parts().is_empty()))
    });
    let date_format = date_format(&mut table);
    let list_column = flatten(table.take("list_column").map(Field::string));
    let columns = kind.as_ref().and_then(|kind| joined_columns(&table, "columns", kind, columns));
    table.finish();
    Some(MatchRule::joined(kind?, columns?, date_format?, list_column?))
}

/// The columns that make up an identifier of `kind`, which must be as many as it has parts.
fn joined_columns(table: &Table<'_>, key: &str, kind: &Kind, columns: Field<'_>) -> Option<Vec<ColumnPath>> {
    let columns: Vec<ColumnPath> = columns.array().into_iter().map(column_path).collect::<Option<_>>()?;
    let parts: Vec<&str> = kind.parts().iter().map(Kind::name).collect();
    if columns.len() != parts.len() {
        let names = parts.join(", ");
        table.fault(key, format!("must name {} columns, of {names} in this order, not {}", parts.len(), columns.len()));
        return None;
    }
    Some(columns)
}

/// What `[dataset.drop]` says: a rule for each column of a list type, or for all columns of a joined one.
struct DropColumns {
    rules: Vec<MatchRule>,
    consumer_key: Option<ColumnPath>,
}

fn drop_columns(mut table: Table<'_>) -> Option<DropColumns> {
    let date_format = date_format(&mut table);
    let consumer_key = flatten(table.take("consumer_key").map(column_path));
    let mut rules = Some(Vec::new());
    for list_type in ListType::ALL {
        let Some(columns) = table.take(list_type.name()) else { continue };
        let of_type = drop_rules(&table, list_type, date_format.clone().flatten(), columns);
        rules = rules.zip(of_type).map(|(mut rules, of_type)| {
            rules.extend(of_type);
            rules
        });
    }
    table.finish();
    date_format?;
    Some(DropColumns { rules: rules?, consumer_key: consumer_key? })
}

fn drop_rules(
    table: &Table<'_>,
    list_type: ListType,
    date_format: Option<DateFormat>,
    columns: Field<'_>,
) -> Option<Vec<MatchRule>> {
    let kind = list_type.kind();
    if !kind.parts().is_empty() {
        let columns = joined_columns(table, list_type.name(), &kind, columns)?;
        return Some(vec![MatchRule::joined(kind, columns, date_format, None)]);
    }
    let columns: Vec<ColumnPath> = columns.array().into_iter().map(column_path).collect::<Option<_>>()?;
    if columns.is_empty() {
        table.fault(list_type.name(), "names no column");
    }
    let single = |column| MatchRule::Single(MatchPart { column, kind: kind.clone(), hashed: None, list_column: None });
    Some(columns.into_iter().map(single).collect())
}

/// `[drop]`: California's Delete Request and Opt-out Platform.
fn drop_spec(mut table: Table<'_>) -> Option<DropSpec> {
    let broker_id = table
        .required("broker_id")?
        .one_of(&["a broker id of four digits"], |id| is_broker_id(id).then(|| id.to_owned()));
    let archive_recipient =
        flatten(table.take("archive_recipient").map(|field| {
            field.one_of(&["an age public key (age1...)"], |key| is_recipient(key).then(|| key.to_owned()))
        }));
    let rows_per_file = table.integer("rows_per_file", 1).unwrap_or(DROP_ROWS_PER_FILE);
    table.finish();
    Some(DropSpec { broker_id: broker_id?, archive_recipient: archive_recipient?, rows_per_file })
}

fn match_part(mut table: Table<'_>, composite: bool) -> Option<MatchPart> {
    let column = table.required("column").and_then(|field| column_path(field));
    let kind = kind(&mut table);
    let hashed = hashed(&mut table);
    let list_column = if composite { table.required("list_column") } else { table.take("list_column") };
    let list_column = flatten(list_column.map(Field::string));
    table.finish();
    Some(MatchPart { column: column?, kind: kind?, hashed: hashed?, list_column: list_column? })
}

fn column_path(field: Field<'_>) -> Option<ColumnPath> {
    field.one_of(&["a column path such as user.email or \"a.b\""], ColumnPath::parse)
}

fn action(table: &mut Table<'_>) -> Option<Action> {
    let name = choice(table, "action", &[("delete", false), ("redact", true)]);
    let columns = table.take("redact").and_then(Field::table).map(|mut columns| columns.take_all());
    match (name?, columns) {
        (false, None) => Some(Action::Delete),
        (false, Some(_)) => {
            table.fault("redact", "belongs to action = \"redact\"");
            None
        }
        (true, None) => {
            table.fault("redact", "is missing: action = \"redact\" needs [dataset.redact]");
            None
        }
        (true, Some(columns)) => {
            if columns.is_empty() {
                table.fault("redact", "names no column");
            }
            columns.into_iter().map(|(name, field)| redact(&name, field)).collect::<Option<_>>().map(Action::Redact)
        }
    }
}

fn redact(name: &str, field: Field<'_>) -> Option<Redact> {
    // A TOML key is unquoted already: `"user.email"` as a key is a path, `'"a.b"'` a name with a dot.
    let Some(column) = ColumnPath::parse(name) else {
        field.fault("is not a column path");
        return None;
    };
    let with = if field.is_table() {
        let mut table = field.table()?;
        let constant = table.required("constant").and_then(Field::string);
        table.finish();
        Redaction::Constant(constant?)
    } else {
        field.one_of(&["null", "tag", "{ constant = \"...\" }"], |text| match text {
            "null" => Some(Redaction::Null),
            "tag" => Some(Redaction::Tag),
            _ => None,
        })?
    };
    Some(Redact { column, with })
}

fn versions(mut table: Table<'_>) -> Option<VersionPolicy> {
    let noncurrent = choice(&mut table, "noncurrent", &[("purge", Noncurrent::Purge), ("report", Noncurrent::Report)]);
    let days = table.integer("abort_uploads_after_days", 0).unwrap_or(7);
    table.finish();
    Some(VersionPolicy { noncurrent: noncurrent?, abort_uploads_after_days: u32::try_from(days).unwrap_or(u32::MAX) })
}

fn csv_dialect(mut table: Table<'_>) -> CsvDialect {
    let default = CsvDialect::default();
    let byte = |table: &mut Table<'_>, name: &'static str| {
        table.take(name)?.one_of(&["a single ASCII character"], |text| match text.as_bytes() {
            [byte] if byte.is_ascii() => Some(*byte),
            _ => None,
        })
    };
    let dialect = CsvDialect {
        delimiter: byte(&mut table, "delimiter"),
        quote: byte(&mut table, "quote").unwrap_or(default.quote),
        header: table.boolean("header").unwrap_or(default.header),
        null_strings: table
            .take("null_strings")
            .map(|field| field.array().into_iter().filter_map(Field::string).collect())
            .unwrap_or_default(),
    };
    if let Some(field) = table.take("encoding") {
        field.one_of(&["utf-8"], |text| text.eq_ignore_ascii_case("utf-8").then_some(()));
    }
    table.finish();
    dialect
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
    fn a_folder_with_brackets_in_its_name_is_no_glob() {
        let edge = Edge { folder: "/jobs/[a]{b}".into() };
        let Ok(Scope::Glob { root, pattern }) = edge.parse_scope("lake/*.csv") else { panic!("a glob") };
        assert_eq!(root, Location::Local("/jobs/[a]{b}/lake".into()));
        let glob = globset::GlobBuilder::new(&pattern).literal_separator(true).build().unwrap().compile_matcher();
        assert!(glob.is_match("/jobs/[a]{b}/lake/x.csv") && !glob.is_match("/jobs/a/lake/x.csv"), "{pattern}");
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
