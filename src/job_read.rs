//! The tables of a job file, read into the types of [`crate::job`].
//!
//! Invariant: a field that is there but wrong is a fault, never its default; what is read to its end is finished, so that a key which
//! nobody asked for is a fault too.

use std::path::{Path, PathBuf};

use jiff::civil::Date;
use jiff::{SignedDuration, Span, SpanRelativeTo};

use crate::action::{Action, Redact, Redaction};
use crate::deadline::{Holidays, Regime, Regimes, Source, Term, known_zone};
use crate::drop_files::{is_broker_id, is_recipient};
use crate::format::{CsvDialect, Format};
use crate::identifier::ColumnPath;
use crate::job::{
    DatasetSpec, DropSpec, Guard, Job, KeySource, LEDGER_URI, LedgerList, ListColumn, ListFormat, ListSpec, MatchRule,
    MissingColumn, Noncurrent, Resources, Scope, Search, State, Stray, VersionPolicy, WhenEmpty,
};
use crate::job_check::{check_apart, check_comparable, check_ledger, check_names, check_redaction, check_regimes};
use crate::job_rules::{DropColumns, drop_columns, hashed, kind, match_rule};
use crate::store::Location;
use crate::store::s3::S3Settings;
use crate::toml_reader::{Field, Table, flatten};

/// What a relative path starts from.
pub(crate) struct Edge {
    pub(crate) folder: PathBuf,
}

pub(crate) fn read_job(mut top: Table<'_>, edge: &Edge, digest: String) -> Option<Job> {
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

    pub(crate) fn parse_scope(&self, uri: &str) -> Result<Scope, String> {
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

fn list_column(mut table: Table<'_>) -> Option<ListColumn> {
    let column = table.required("column").and_then(Field::string);
    let kind = kind(&mut table);
    let hashed = hashed(&mut table);
    table.finish();
    Some(ListColumn { column: column?, kind: kind?, hashed: hashed? })
}

/// DROP names no limit; this keeps a file at 15 MB.
const DROP_ROWS_PER_FILE: u64 = 1_000_000;

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

    #[test]
    fn a_folder_with_brackets_in_its_name_is_no_glob() {
        let edge = Edge { folder: "/jobs/[a]{b}".into() };
        let Ok(Scope::Glob { root, pattern }) = edge.parse_scope("lake/*.csv") else { panic!("a glob") };
        assert_eq!(root, Location::Local("/jobs/[a]{b}/lake".into()));
        let glob = globset::GlobBuilder::new(&pattern).literal_separator(true).build().unwrap().compile_matcher();
        assert!(glob.is_match("/jobs/[a]{b}/lake/x.csv") && !glob.is_match("/jobs/a/lake/x.csv"), "{pattern}");
    }
}
