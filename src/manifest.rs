//! The verification manifest (contract, section 5): what a run observed, as an in-toto Statement, and whether it is at one
//! with itself.
//!
//! Pure values: no store, no clock, no key. Every field is an observation and "not checked" is a value of its own. Invariant:
//! [`seal`] makes no statement whose counts contradict its objects, so what is signed adds up.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::object_table::{self, ObjectRow, Outcome};

pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
pub const PREDICATE_TYPE: &str = "urn:lakescrub:verification:v1";
/// What a gate signs.
pub const GATE_TYPE: &str = "urn:lakescrub:gate:v1";
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
pub const OBJECTS_FILE: &str = "objects.parquet";

/// A value that was seen, or the statement that nobody looked: written as the value or as `"not checked"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Observed<T> {
    Seen(T),
    #[default]
    NotChecked,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    #[serde(rename = "_type")]
    pub statement_type: String,
    pub subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    pub predicate: Predicate,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub name: String,
    /// Algorithm to hex.
    pub digest: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Predicate {
    pub run: Run,
    pub lists: Vec<ListRead>,
    pub normaliser: Normaliser,
    pub datasets: Vec<DatasetRecord>,
    pub verification: Verification,
    pub objects: ObjectsFile,
    pub limits: Vec<String>,
    pub verdict: Verdict,
    /// The request ledger, where it is a list of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerRecord>,
    /// `None` in the first run of a state.
    pub previous: Option<Previous>,
}

/// All that a run knows of itself; [`seal`] adds what binds the objects, the chain adds `previous`.
#[derive(Debug, Clone, PartialEq)]
pub struct Observations {
    pub run: Run,
    pub lists: Vec<ListRead>,
    pub normaliser: Normaliser,
    pub datasets: Vec<DatasetRecord>,
    pub verification: Verification,
    /// Plain sentences: what was not looked at.
    pub limits: Vec<String>,
    pub verdict: Verdict,
    /// `None` for a job without the ledger.
    pub ledger: Option<LedgerRecord>,
}

/// What a run saw of the request ledger.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LedgerRecord {
    /// How many segments it had when the manifest was written, and the hex digest of the last: a ledger that is cut off later shows.
    pub segments: u64,
    pub digest: String,
    /// All of them, withdrawn ones included.
    pub requests: u64,
    /// Requests of which an identifier was not looked for, because another request that is exempted has it: its rows are kept, and no
    /// residue.
    #[serde(default)]
    pub held: u64,
    /// DROP work items whose identifier leads to several consumers: their rows are kept, and no residue.
    #[serde(default)]
    pub opted_out: u64,
    #[serde(default, skip_serializing_if = "NotCompared::is_empty")]
    pub not_compared: NotCompared,
    /// Requests that match a row or a name again, having been done with before.
    pub reappeared: u64,
    /// In which objects, at most [`REAPPEARANCES_TOLD`] of them.
    pub reappearances: Vec<Reappearance>,
    /// The time of a backup restore that this run replays the ledger after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_restore: Option<Timestamp>,
}

/// What of the requests that stand no rule of the job asks the ledger for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NotCompared {
    /// Requests with an identifier of a kind that no rule compares, by kind.
    pub by_kind: BTreeMap<String, u64>,
    /// Those of them that have no other identifier: nobody looked for them, and they stay open.
    pub requests: u64,
}

impl NotCompared {
    pub fn is_empty(&self) -> bool {
        self.by_kind.is_empty()
    }

    pub fn sentences(&self) -> Vec<String> {
        let by_kind = self.by_kind.iter().map(|(kind, count)| {
            format!("Identifiers of kind {kind}, which {count} of the ledger's requests have, were not looked for: no rule compares them with the ledger.")
        });
        let open = (self.requests > 0)
            .then(|| format!("Requests without an identifier that any rule compares stay open: {}.", self.requests));
        by_kind.chain(open).collect()
    }
}

/// An object that holds again what was gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reappearance {
    pub dataset: String,
    /// As it may be shown.
    pub object: String,
    /// Requests that match in it, the ids of some of them, and their rows.
    pub requests: u64,
    #[serde(default)]
    pub request_ids: Vec<String>,
    pub rows: u64,
    /// When their dataset was last seen clean.
    pub since: Option<Timestamp>,
    /// The job that wrote the object, if its metadata says so.
    pub written_by: Option<String>,
}

/// Objects that are told one by one; the ledger has all.
pub const REAPPEARANCES_TOLD: usize = 100;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub id: String,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub command: String,
    /// The code the process returns, as far as it was known when the manifest was written.
    pub exit: u8,
    /// Whether this run took up the journal of one that was stopped.
    pub resumed: bool,
    pub tool: Tool,
    pub job: JobFile,
    pub stages: Vec<Stage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    pub name: String,
    pub version: String,
    /// Hex SHA-256 of the program file.
    pub digest: Observed<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFile {
    pub name: String,
    /// Hex SHA-256, see [`crate::job::Job::digest`].
    pub digest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub name: StageName,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageName {
    Load,
    Find,
    Plan,
    Rewrite,
    Purge,
    Verify,
    Manifest,
}

/// One suppression list as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRead {
    pub name: String,
    pub uri: String,
    /// Hex SHA-256 of the list's bytes.
    pub digest: String,
    pub read_at: Timestamp,
    pub rows: u64,
    /// Distinct identifiers by kind.
    pub identifiers: BTreeMap<String, u64>,
    pub duplicates: u64,
    pub malformed: u64,
    /// Rows without any identifier.
    #[serde(default)]
    pub blank: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Normaliser {
    pub version: String,
    /// `"passed"`: the known-answer vectors were run before the job.
    pub self_test: Observed<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRecord {
    pub name: String,
    pub uri: String,
    /// `delete`, `redact` or, in a run that changes nothing, `none`.
    pub action: String,
    pub listed_at: Observed<Timestamp>,
    pub objects: ObjectCounts,
    pub rows: RowCounts,
    /// Column to the count of values that have no canonical form.
    pub not_comparable: Observed<BTreeMap<String, u64>>,
    /// Column that no rule names to the count of its cells that hold a listed identifier.
    #[serde(default)]
    pub undeclared: Observed<BTreeMap<String, u64>>,
    /// Column that no rule names to the count of its cells in which a listed identifier was replaced.
    #[serde(default)]
    pub strays_redacted: Observed<BTreeMap<String, u64>>,
    pub versions: VersionCounts,
    pub uploads: UploadCounts,
}

impl DatasetRecord {
    /// Cells in which a listed identifier was replaced, of all columns.
    pub fn strays_redacted_in_all(&self) -> Observed<u64> {
        match &self.strays_redacted {
            Observed::Seen(columns) => Observed::Seen(columns.values().sum()),
            Observed::NotChecked => Observed::NotChecked,
        }
    }
}

/// Current objects of one dataset. Made by [`ObjectCounts::tally`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ObjectCounts {
    /// In scope or not.
    pub listed: Observed<u64>,
    /// Rows were read.
    pub scanned: Observed<u64>,
    pub rewritten: Observed<u64>,
    pub dropped: Observed<u64>,
    /// In scope but its rows could not be read: unreadable, unsupported, archived.
    pub unreadable: Observed<u64>,
    pub not_in_scope: Observed<u64>,
}

/// Rows of the current objects of one dataset. Made by [`RowCounts::tally`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RowCounts {
    pub before: Observed<u64>,
    pub matched: Observed<u64>,
    pub removed: Observed<u64>,
    pub redacted: Observed<u64>,
    pub after: Observed<u64>,
}

/// Noncurrent object versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VersionCounts {
    /// Delete markers included; before anything was purged.
    pub listed: Observed<u64>,
    pub purged: Observed<u64>,
    pub locked: Observed<u64>,
    /// Delete markers included, as the listing after the purge showed.
    #[serde(default)]
    pub remaining: Observed<u64>,
}

/// Unfinished multipart uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UploadCounts {
    pub listed: Observed<u64>,
    pub aborted: Observed<u64>,
    /// As the listing after the purge showed.
    #[serde(default)]
    pub remaining: Observed<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    pub engine: String,
    pub engine_version: String,
    /// Whether statistics, bloom filters or indexes were trusted to skip rows: always false (design, invariant 10).
    pub pruning: bool,
    pub objects: Observed<u64>,
    pub rows: Observed<u64>,
    pub residue: Residue,
    pub canaries: Canaries,
}

/// What the verifying scan still found, by the place it was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Residue {
    pub rows: Observed<u64>,
    pub statistics: Observed<u64>,
    pub dictionaries: Observed<u64>,
    pub paths: Observed<u64>,
    pub versions: Observed<u64>,
    #[serde(default)]
    pub filters: Observed<u64>,
    #[serde(default)]
    pub metadata: Observed<u64>,
    #[serde(default)]
    pub gaps: Observed<u64>,
    /// User metadata and tags of objects.
    #[serde(default)]
    pub labels: Observed<u64>,
    /// Cells of columns that no rule names; counts as residue where the job says so.
    #[serde(default)]
    pub undeclared: Observed<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Canaries {
    pub planted: Observed<u64>,
    pub found: Observed<u64>,
    #[serde(default)]
    pub removed: Observed<u64>,
}

/// The table of objects, bound by its bytes and by its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectsFile {
    pub file: String,
    pub rows: u64,
    /// Hex, of the file's bytes.
    pub sha256: String,
    /// Hex, RFC 6962, over [`ObjectRow::canonical_json`] of each row in the file's order.
    pub merkle_root: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Clean,
    Residue,
    Incomplete,
    Blocked,
}

/// The run before this one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Previous {
    pub run_id: String,
    /// Hex SHA-256 of its `manifest.json`, which is the signed payload.
    pub digest: String,
}

/// A manifest ready to be signed and written.
#[derive(Debug, Clone, PartialEq)]
pub struct Sealed {
    pub statement: Statement,
    /// The statement's bytes: what is signed, and the content of `manifest.json`.
    pub payload: Vec<u8>,
    /// The content of `objects.parquet`.
    pub table: Bytes,
}

/// Binds `rows` to what was observed. An error is a fault of ours: the counts do not add up, and nothing must be signed.
pub fn seal(observed: Observations, mut rows: Vec<ObjectRow>, previous: Option<Previous>) -> Result<Sealed> {
    object_table::sort(&mut rows);
    let not_at_one =
        |why: String| Error::internal(format!("cannot sign the manifest of run {}: {why}", observed.run.id));
    agrees(&observed.datasets, &observed.verification, observed.verdict, &rows).map_err(not_at_one)?;
    let table = object_table::encode(&rows)?;
    let objects = ObjectsFile {
        file: OBJECTS_FILE.to_owned(),
        rows: rows.len() as u64,
        sha256: sha256_hex(&table),
        merkle_root: hex::encode(object_table::tree(&rows).root()),
    };
    let digest = BTreeMap::from([("sha256".to_owned(), objects.sha256.clone())]);
    let statement = Statement {
        statement_type: STATEMENT_TYPE.to_owned(),
        subject: vec![Subject { name: OBJECTS_FILE.to_owned(), digest }],
        predicate_type: PREDICATE_TYPE.to_owned(),
        predicate: Predicate {
            run: observed.run,
            lists: observed.lists,
            normaliser: observed.normaliser,
            datasets: observed.datasets,
            verification: observed.verification,
            objects,
            limits: observed.limits,
            verdict: observed.verdict,
            ledger: observed.ledger,
            previous,
        },
    };
    let payload = statement.to_bytes();
    Ok(Sealed { statement, payload, table })
}

/// Whether the counts add up: per object, per dataset against the table, and the verdict against the residue. The error says
/// which do not.
pub fn agrees(
    datasets: &[DatasetRecord],
    verification: &Verification,
    verdict: Verdict,
    rows: &[ObjectRow],
) -> Result<(), String> {
    for pair in rows.windows(2) {
        if pair[0].key() == pair[1].key() {
            return Err(format!("{} of dataset {} stands in the table twice", pair[0].location, pair[0].dataset));
        }
    }
    for row in rows {
        object_adds_up(row)?;
        if !datasets.iter().any(|dataset| dataset.name == row.dataset) {
            return Err(format!("{} is of dataset {}, which the manifest does not name", row.location, row.dataset));
        }
    }
    datasets.iter().try_for_each(|dataset| dataset_adds_up(dataset, rows))?;
    verdict_fits(datasets, verification, verdict, rows)
}

fn object_adds_up(row: &ObjectRow) -> Result<(), String> {
    let adds_up = match (row.rows_before, row.rows_removed, row.rows_after) {
        (Some(before), Some(removed), Some(after)) => before.checked_sub(removed) == Some(after),
        // One of them alone would make the totals contradict each other.
        (before, removed, after) => before.or(removed).or(after).is_none(),
    };
    adds_up.then_some(()).ok_or_else(|| {
        let told = |count: Option<u64>| count.map_or("not checked".to_owned(), |count| count.to_string());
        let [before, removed, after] = [row.rows_before, row.rows_removed, row.rows_after].map(told);
        format!("{}: rows before {before}, removed {removed}, after {after} do not add up", row.location)
    })
}

fn dataset_adds_up(dataset: &DatasetRecord, rows: &[ObjectRow]) -> Result<(), String> {
    let (stated, counted) = (&dataset.rows, RowCounts::tally(&dataset.name, rows));
    let pairs = [
        ("rows before", stated.before, counted.before),
        ("rows matched", stated.matched, counted.matched),
        ("rows removed", stated.removed, counted.removed),
        ("rows redacted", stated.redacted, counted.redacted),
        ("rows after", stated.after, counted.after),
    ];
    let (stated, counted) = (&dataset.objects, ObjectCounts::tally(&dataset.name, rows, dataset.objects.not_in_scope));
    let objects = [
        ("objects listed", stated.listed, counted.listed),
        ("objects scanned", stated.scanned, counted.scanned),
        ("objects rewritten", stated.rewritten, counted.rewritten),
        ("objects dropped", stated.dropped, counted.dropped),
        ("objects unreadable", stated.unreadable, counted.unreadable),
    ];
    let redacted: u64 = current(&dataset.name, rows).filter_map(|row| row.strays_redacted).sum();
    let strays = [("strays redacted", dataset.strays_redacted_in_all(), Observed::Seen(redacted))];
    for (what, stated, counted) in pairs.into_iter().chain(objects).chain(strays) {
        // A total that nobody states claims nothing; one that is stated must be what the table shows.
        if let Observed::Seen(stated) = stated
            && stated != counted.or(0)
        {
            let counted = counted.or(0);
            return Err(format!("dataset {}: {what} is {stated}, its objects make {counted}", dataset.name));
        }
    }
    Ok(())
}

fn verdict_fits(
    datasets: &[DatasetRecord],
    verification: &Verification,
    verdict: Verdict,
    rows: &[ObjectRow],
) -> Result<(), String> {
    if verdict != Verdict::Clean {
        return Ok(());
    }
    let Residue {
        rows: in_rows,
        statistics,
        dictionaries,
        paths,
        versions,
        filters,
        metadata,
        gaps,
        labels,
        undeclared: _,
    } = verification.residue;
    let found = [in_rows, statistics, dictionaries, paths, versions, filters, metadata, gaps, labels];
    if found.iter().any(|count| count.or(0) > 0) {
        return Err("the verdict is clean but residue was found".to_owned());
    }
    if in_rows == Observed::NotChecked {
        return Err("the verdict is clean but no rows were verified".to_owned());
    }
    if let Some(row) = rows.iter().find(|row| !row.outcome.is_clean()) {
        return Err(format!("the verdict is clean but {} is {}", row.location, row.outcome.name()));
    }
    match datasets.iter().find(|dataset| !rows.iter().any(|row| row.dataset == dataset.name)) {
        Some(empty) => Err(format!("the verdict is clean but dataset {} holds no object", empty.name)),
        None => Ok(()),
    }
}

impl Statement {
    /// Indented JSON ended by a line feed, the same bytes for the same statement.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a statement has string keys only");
        bytes.push(b'\n');
        bytes
    }

    /// From checked bytes. The error says what is not as it must be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let statement: Statement =
            serde_json::from_slice(bytes).map_err(|error| format!("is not a statement of this predicate: {error}"))?;
        if statement.statement_type != STATEMENT_TYPE {
            return Err(format!("has the statement type {:?}", statement.statement_type));
        }
        if statement.predicate_type != PREDICATE_TYPE {
            return Err(format!("has the predicate type {:?}", statement.predicate_type));
        }
        Ok(statement)
    }
}

impl StageName {
    pub fn name(self) -> &'static str {
        match self {
            StageName::Load => "load",
            StageName::Find => "find",
            StageName::Plan => "plan",
            StageName::Rewrite => "rewrite",
            StageName::Purge => "purge",
            StageName::Verify => "verify",
            StageName::Manifest => "manifest",
        }
    }
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Clean => "clean",
            Verdict::Residue => "residue",
            Verdict::Incomplete => "incomplete",
            Verdict::Blocked => "blocked",
        }
    }
}

impl RowCounts {
    /// The totals over the current objects of `dataset`; a count that no object has is not checked.
    pub fn tally(dataset: &str, rows: &[ObjectRow]) -> Self {
        let sum = |count: fn(&ObjectRow) -> Option<u64>| {
            let seen: Vec<u64> = current(dataset, rows).filter_map(count).collect();
            if seen.is_empty() { Observed::NotChecked } else { Observed::Seen(seen.iter().sum()) }
        };
        RowCounts {
            before: sum(|row| row.rows_before),
            matched: sum(|row| row.rows_matched),
            removed: sum(|row| row.rows_removed),
            redacted: sum(|row| row.rows_redacted),
            after: sum(|row| row.rows_after),
        }
    }
}

impl ObjectCounts {
    /// The counts over the current objects of `dataset`, next to `not_in_scope`, which the table does not hold.
    pub fn tally(dataset: &str, rows: &[ObjectRow], not_in_scope: Observed<u64>) -> Self {
        let count = |wish: &dyn Fn(&ObjectRow) -> bool| {
            Observed::Seen(current(dataset, rows).filter(|row| wish(row)).count() as u64)
        };
        ObjectCounts {
            // A dataset that could not be listed has no count of either.
            listed: match not_in_scope {
                Observed::Seen(count) => Observed::Seen(current(dataset, rows).count() as u64 + count),
                Observed::NotChecked => Observed::NotChecked,
            },
            scanned: count(&|row| row.rows_scanned.is_some()),
            rewritten: count(&ObjectRow::is_rewritten),
            dropped: count(&|row| row.outcome == Outcome::Dropped),
            unreadable: count(&|row| row.outcome.is_unread()),
            not_in_scope,
        }
    }
}

fn current<'a>(dataset: &'a str, rows: &'a [ObjectRow]) -> impl Iterator<Item = &'a ObjectRow> {
    rows.iter().filter(move |row| row.is_current && row.dataset == dataset)
}

/// Lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

const NOT_CHECKED: &str = "not checked";

impl<T> Observed<T> {
    pub fn or(self, instead: T) -> T {
        match self {
            Observed::Seen(value) => value,
            Observed::NotChecked => instead,
        }
    }
}

impl<T> From<Option<T>> for Observed<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Observed::NotChecked, Observed::Seen)
    }
}

impl<T: std::fmt::Display> std::fmt::Display for Observed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Observed::Seen(value) => value.fmt(f),
            Observed::NotChecked => f.write_str(NOT_CHECKED),
        }
    }
}

impl<T: Serialize> Serialize for Observed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Observed::Seen(value) => value.serialize(serializer),
            Observed::NotChecked => serializer.serialize_str(NOT_CHECKED),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Observed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        enum Words {
            #[serde(rename = "not checked")]
            NotChecked,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Words(Words),
            Value(T),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Words(Words::NotChecked) => Observed::NotChecked,
            Either::Value(value) => Observed::Seen(value),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Observed::{NotChecked, Seen};

    fn row(location: &str, before: u64, removed: u64) -> ObjectRow {
        ObjectRow {
            rows_scanned: Some(before - removed),
            rows_matched: Some(removed),
            rows_removed: Some(removed),
            rows_redacted: Some(0),
            rows_before: Some(before),
            rows_after: Some(before - removed),
            outcome: if removed > 0 { Outcome::Rewritten } else { Outcome::Unchanged },
            ..ObjectRow::new("events", location)
        }
    }

    fn observations(rows: &[ObjectRow]) -> Observations {
        let now = Timestamp::UNIX_EPOCH;
        Observations {
            run: Run {
                id: "run-1".into(),
                started_at: now,
                finished_at: now,
                command: "scrub".into(),
                exit: 0,
                resumed: false,
                tool: Tool { name: "lakescrub".into(), version: "0".into(), digest: NotChecked },
                job: JobFile { name: "nightly".into(), digest: "00".into() },
                stages: vec![Stage { name: StageName::Load, seconds: 0.25 }],
            },
            lists: vec![],
            normaliser: Normaliser { version: "1".into(), self_test: Seen("passed".into()) },
            datasets: vec![DatasetRecord {
                name: "events".into(),
                uri: "s3://lake/events/".into(),
                action: "delete".into(),
                listed_at: Seen(now),
                objects: ObjectCounts::tally("events", rows, Seen(1)),
                rows: RowCounts::tally("events", rows),
                not_comparable: Seen(BTreeMap::from([("email".into(), 2)])),
                undeclared: NotChecked,
                strays_redacted: NotChecked,
                versions: VersionCounts::default(),
                uploads: UploadCounts::default(),
            }],
            verification: Verification {
                engine: "polars".into(),
                engine_version: "0".into(),
                pruning: false,
                objects: Seen(2),
                rows: Seen(17),
                residue: Residue { rows: Seen(0), ..Residue::default() },
                canaries: Canaries::default(),
            },
            limits: vec!["backups were not looked at".into()],
            verdict: Verdict::Clean,
            ledger: None,
        }
    }

    fn table() -> Vec<ObjectRow> {
        vec![row("s3://lake/events/b", 10, 3), row("s3://lake/events/a", 10, 0)]
    }

    #[test]
    fn not_checked_is_a_value_of_its_own() {
        let cases: [(Observed<u64>, &str); 3] = [(Seen(0), "0"), (Seen(7), "7"), (NotChecked, "\"not checked\"")];
        for (value, json) in cases {
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<Observed<u64>>(json).unwrap(), value);
        }
        assert!(serde_json::from_str::<Observed<u64>>("\"checked\"").is_err());
        assert!(serde_json::from_str::<Observed<u64>>("null").is_err());
    }

    #[test]
    fn a_sealed_statement_has_the_names_of_the_contract() {
        let sealed = seal(observations(&table()), table(), None).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&sealed.payload).unwrap();
        let names = [
            "/_type",
            "/subject/0/digest/sha256",
            "/predicateType",
            "/predicate/run/tool/digest",
            "/predicate/run/job/digest",
            "/predicate/run/stages/0/seconds",
            "/predicate/lists",
            "/predicate/normaliser/self_test",
            "/predicate/datasets/0/listed_at",
            "/predicate/datasets/0/objects/not_in_scope",
            "/predicate/datasets/0/rows/before",
            "/predicate/datasets/0/not_comparable/email",
            "/predicate/datasets/0/versions/purged",
            "/predicate/datasets/0/uploads/aborted",
            "/predicate/verification/residue/dictionaries",
            "/predicate/verification/canaries/planted",
            "/predicate/objects/merkle_root",
            "/predicate/limits/0",
            "/predicate/verdict",
            "/predicate/previous",
        ];
        for name in names {
            assert!(json.pointer(name).is_some(), "{name} in {json:#}");
        }
        assert_eq!(json["predicate"]["verification"]["pruning"], false);
        assert_eq!(json["predicate"]["datasets"][0]["rows"]["after"], 17);
        assert_eq!(json["predicate"]["datasets"][0]["versions"]["purged"], "not checked");
        assert_eq!(json["subject"][0]["name"], "objects.parquet");
        assert_eq!(Statement::from_bytes(&sealed.payload).unwrap(), sealed.statement);
    }

    #[test]
    fn the_same_run_gives_the_same_bytes_in_whatever_order_its_objects_came() {
        let mut turned = table();
        turned.reverse();
        let sealed = seal(observations(&table()), table(), None).unwrap();
        assert_eq!(seal(observations(&turned), turned, None).unwrap(), sealed);
    }

    #[test]
    fn what_does_not_add_up_is_not_signed() {
        type Change = fn(&mut Observations, &mut Vec<ObjectRow>);
        let cases: [(&str, Change); 13] = [
            ("do not add up", |_, rows| rows[0].rows_after = Some(8)),
            ("do not add up", |_, rows| rows[0].rows_after = None),
            ("do not add up", |_, rows| rows[0].rows_removed = Some(11)),
            ("rows before is 21", |run, _| run.datasets[0].rows.before = Seen(21)),
            ("rows matched is 4", |run, _| run.datasets[0].rows.matched = Seen(4)),
            ("objects rewritten is 0", |run, _| run.datasets[0].objects.rewritten = Seen(0)),
            ("objects listed is 2", |run, _| run.datasets[0].objects.listed = Seen(2)),
            ("twice", |_, rows| rows.push(rows[0].clone())),
            ("does not name", |_, rows| rows.push(ObjectRow::new("users", "s3://lake/users/a"))),
            ("residue was found", |run, _| run.verification.residue.paths = Seen(1)),
            ("no rows were verified", |run, _| run.verification.residue.rows = NotChecked),
            ("is failed", |_, rows| rows[1].outcome = Outcome::Failed),
            ("holds no object", |run, _| {
                let mut empty = run.datasets[0].clone();
                (empty.name, empty.rows, empty.objects) =
                    ("users".into(), RowCounts::default(), ObjectCounts::default());
                run.datasets.push(empty);
            }),
        ];
        for (wish, change) in cases {
            let mut rows = table();
            let mut run = observations(&rows);
            change(&mut run, &mut rows);
            let error = seal(run, rows, None).unwrap_err();
            assert!(error.message.contains(wish), "{error} should tell: {wish}");
        }
    }

    #[test]
    fn noncurrent_versions_stand_in_the_table_and_not_in_the_totals() {
        let mut rows = table();
        rows.push(ObjectRow { is_current: false, version_id: Some("v1".into()), ..row("s3://lake/events/b", 10, 3) });
        assert_eq!(RowCounts::tally("events", &rows), RowCounts::tally("events", &table()));
        assert!(seal(observations(&rows), rows, None).is_ok());
    }
}
