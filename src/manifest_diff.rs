//! `manifest diff`: what changed between two runs, told from their checked manifests alone.
//!
//! Must not read data or judge which run is right. Invariant: only manifests that passed [`crate::manifest_check`] are compared.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use crate::error::Result;
use crate::manifest::{DatasetRecord, Observed, Verdict};
use crate::manifest_check::{CheckedManifest, checked_manifest};
use crate::object_table::{ObjectRow, Outcome};
use crate::store::{Location, Stores};

/// The changes from run `a` to run `b`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiffReport {
    pub a: RunName,
    pub b: RunName,
    pub job: Option<Change<String>>,
    pub normaliser: Option<Change<String>>,
    pub verdict: Option<Change<Verdict>>,
    pub lists: Vec<ListDiff>,
    pub datasets: Vec<DatasetDiff>,
    /// Sentences of the manifests.
    pub limits_new: Vec<String>,
    pub limits_gone: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunName {
    pub run_id: String,
    pub command: String,
    pub finished_at: Timestamp,
    pub digest: String,
    pub keyid: String,
}

/// A value that is not the same in both runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Change<T> {
    pub a: T,
    pub b: T,
}

/// A list that changed. `None` on the side where it is not named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListDiff {
    pub name: String,
    pub digest: Change<Option<String>>,
    pub identifiers: Change<Option<u64>>,
}

/// A dataset in which something changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatasetDiff {
    pub name: String,
    /// Counts that differ, by the path of their name in the manifest, as `rows.matched`.
    pub counts: BTreeMap<String, Change<Observed<u64>>>,
    /// Locations of current objects, and of noncurrent versions as `LOCATION (version ID)`.
    pub objects_new: Vec<String>,
    pub objects_gone: Vec<String>,
    pub objects_changed: Vec<ObjectDiff>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectDiff {
    pub object: String,
    pub etag: Option<Change<Option<String>>>,
    pub size_bytes: Option<Change<Option<u64>>>,
    pub rows_after: Option<Change<Option<u64>>>,
    pub outcome: Option<Change<Outcome>>,
}

/// Reads and checks both manifests, then compares them.
pub async fn diff(a: &Location, b: &Location, stores: &Stores, public_key: Option<&Path>) -> Result<DiffReport> {
    let a = checked_manifest(a, stores, public_key).await?;
    let b = checked_manifest(b, stores, public_key).await?;
    Ok(compare(&a, &b))
}

pub fn compare(a: &CheckedManifest, b: &CheckedManifest) -> DiffReport {
    let (from, to) = (&a.statement.predicate, &b.statement.predicate);
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|limit| !those.contains(limit)).cloned().collect()
    };
    DiffReport {
        a: run_name(a),
        b: run_name(b),
        job: change(from.run.job.digest.clone(), to.run.job.digest.clone()),
        normaliser: change(from.normaliser.version.clone(), to.normaliser.version.clone()),
        verdict: change(from.verdict, to.verdict),
        lists: list_diffs(a, b),
        datasets: dataset_diffs(a, b),
        limits_new: only(&to.limits, &from.limits),
        limits_gone: only(&from.limits, &to.limits),
    }
}

/// Objects named in a line of text; `--json` has them all.
const OBJECTS_TOLD: usize = 20;

impl DiffReport {
    /// For people, a line each.
    pub fn lines(&self) -> Vec<String> {
        let name = |run: &RunName| format!("{} ({} of {})", run.run_id, run.command, run.finished_at);
        let mut lines = vec![format!("from run {} to run {}", name(&self.a), name(&self.b))];
        lines.extend(self.verdict.map(|verdict| format!("verdict: {} -> {}", verdict.a.name(), verdict.b.name())));
        lines.extend(self.job.as_ref().map(|_| "job: its text changed".to_owned()));
        lines.extend(self.normaliser.as_ref().map(|version| format!("normaliser: {} -> {}", version.a, version.b)));
        lines.extend(self.lists.iter().map(ListDiff::line));
        lines.extend(self.datasets.iter().flat_map(DatasetDiff::lines));
        lines.extend(self.limits_new.iter().map(|limit| format!("limit, new: {limit}")));
        lines.extend(self.limits_gone.iter().map(|limit| format!("limit, gone: {limit}")));
        if lines.len() == 1 {
            lines.push("nothing changed".to_owned());
        }
        lines
    }
}

impl ListDiff {
    fn line(&self) -> String {
        match (self.identifiers.a, self.identifiers.b) {
            (None, Some(b)) => format!("list {}: new, {b} identifiers", self.name),
            (Some(a), None) => format!("list {}: gone, had {a} identifiers", self.name),
            (a, b) => format!("list {}: identifiers {} -> {}", self.name, a.unwrap_or(0), b.unwrap_or(0)),
        }
    }
}

impl DatasetDiff {
    fn lines(&self) -> Vec<String> {
        let name = &self.name;
        let counts =
            self.counts.iter().map(|(count, change)| format!("dataset {name}: {count} {} -> {}", change.a, change.b));
        let mut lines: Vec<String> = counts.collect();
        let changed: Vec<String> = self.objects_changed.iter().map(ObjectDiff::line).collect();
        for (what, objects) in [("new", &self.objects_new), ("gone", &self.objects_gone), ("changed", &changed)] {
            lines.extend(objects.iter().take(OBJECTS_TOLD).map(|object| format!("dataset {name}: {what} {object}")));
            if objects.len() > OBJECTS_TOLD {
                lines.push(format!("dataset {name}: {what}, and {} more objects", objects.len() - OBJECTS_TOLD));
            }
        }
        lines
    }
}

impl ObjectDiff {
    fn line(&self) -> String {
        let told = |count: Option<u64>| Observed::from(count).to_string();
        let parts = [
            self.etag.as_ref().map(|_| "other content".to_owned()),
            self.size_bytes.map(|size| format!("bytes {} -> {}", told(size.a), told(size.b))),
            self.rows_after.map(|rows| format!("rows {} -> {}", told(rows.a), told(rows.b))),
            self.outcome.map(|outcome| format!("{} -> {}", outcome.a.name(), outcome.b.name())),
        ];
        format!("{}: {}", self.object, parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl<T: fmt::Display> fmt::Display for Change<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.a, self.b)
    }
}

fn run_name(manifest: &CheckedManifest) -> RunName {
    let run = manifest.run.clone();
    RunName {
        run_id: run.run_id,
        command: run.command,
        finished_at: run.finished_at,
        digest: run.digest,
        keyid: run.keyid,
    }
}

fn change<T: PartialEq>(a: T, b: T) -> Option<Change<T>> {
    (a != b).then_some(Change { a, b })
}

/// Values of both sides under one name, in the order of the names.
fn paired<'a, K: Ord, T>(
    a: impl IntoIterator<Item = &'a T>,
    b: impl IntoIterator<Item = &'a T>,
    name: impl Fn(&'a T) -> K,
) -> BTreeMap<K, (Option<&'a T>, Option<&'a T>)> {
    let mut pairs: BTreeMap<K, (Option<&'a T>, Option<&'a T>)> = BTreeMap::new();
    for item in a {
        pairs.entry(name(item)).or_default().0 = Some(item);
    }
    for item in b {
        pairs.entry(name(item)).or_default().1 = Some(item);
    }
    pairs
}

fn list_diffs(a: &CheckedManifest, b: &CheckedManifest) -> Vec<ListDiff> {
    let pairs = paired(&a.statement.predicate.lists, &b.statement.predicate.lists, |list| list.name.clone());
    let diffs = pairs.into_iter().filter_map(|(name, (a, b))| {
        let digest = change(a.map(|list| list.digest.clone()), b.map(|list| list.digest.clone()))?;
        let [a, b] = [a, b].map(|list| list.map(|list| list.identifiers.values().sum()));
        Some(ListDiff { name, digest, identifiers: Change { a, b } })
    });
    diffs.collect()
}

fn dataset_diffs(a: &CheckedManifest, b: &CheckedManifest) -> Vec<DatasetDiff> {
    let pairs = paired(&a.statement.predicate.datasets, &b.statement.predicate.datasets, |dataset| &dataset.name);
    let diffs = pairs.into_iter().map(|(name, (from, to))| {
        let of = |rows: &'_ [ObjectRow]| -> Vec<ObjectRow> {
            rows.iter().filter(|row| row.dataset == *name).cloned().collect()
        };
        let mut diff = object_diffs(name, &of(&a.rows), &of(&b.rows));
        diff.counts = count_diffs(from, to);
        diff
    });
    let is_empty = |diff: &DatasetDiff| {
        diff.counts.is_empty()
            && diff.objects_new.is_empty()
            && diff.objects_gone.is_empty()
            && diff.objects_changed.is_empty()
    };
    diffs.filter(|diff| !is_empty(diff)).collect()
}

fn object_diffs(dataset: &str, a: &[ObjectRow], b: &[ObjectRow]) -> DatasetDiff {
    let mut diff = DatasetDiff {
        name: dataset.to_owned(),
        counts: BTreeMap::new(),
        objects_new: Vec::new(),
        objects_gone: Vec::new(),
        objects_changed: Vec::new(),
    };
    for (object, pair) in paired(a, b, object_name) {
        match pair {
            (Some(a), Some(b)) => diff.objects_changed.extend(object_diff(object, a, b)),
            (Some(_), None) => diff.objects_gone.push(object),
            (None, _) => diff.objects_new.push(object),
        }
    }
    diff
}

/// The version tells noncurrent versions apart; a current object is the same one under each new version.
fn object_name(row: &ObjectRow) -> String {
    match &row.version_id {
        Some(version_id) if !row.is_current => format!("{} (version {version_id})", row.location),
        Some(_) | None => row.location.clone(),
    }
}

fn object_diff(object: String, a: &ObjectRow, b: &ObjectRow) -> Option<ObjectDiff> {
    let diff = ObjectDiff {
        object,
        etag: change(a.etag.clone(), b.etag.clone()),
        size_bytes: change(a.size_bytes, b.size_bytes),
        rows_after: change(a.rows_after, b.rows_after),
        outcome: change(a.outcome, b.outcome),
    };
    let changed =
        diff.etag.is_some() || diff.size_bytes.is_some() || diff.rows_after.is_some() || diff.outcome.is_some();
    changed.then_some(diff)
}

fn count_diffs(a: Option<&DatasetRecord>, b: Option<&DatasetRecord>) -> BTreeMap<String, Change<Observed<u64>>> {
    let pairs = counts(a).into_iter().zip(counts(b));
    pairs.filter_map(|((name, a), (_, b))| Some((name.to_owned(), change(a, b)?))).collect()
}

fn counts(dataset: Option<&DatasetRecord>) -> Vec<(&'static str, Observed<u64>)> {
    let objects = dataset.map(|dataset| dataset.objects).unwrap_or_default();
    let rows = dataset.map(|dataset| dataset.rows).unwrap_or_default();
    let versions = dataset.map(|dataset| dataset.versions).unwrap_or_default();
    let uploads = dataset.map(|dataset| dataset.uploads).unwrap_or_default();
    vec![
        ("objects.listed", objects.listed),
        ("objects.scanned", objects.scanned),
        ("objects.rewritten", objects.rewritten),
        ("objects.dropped", objects.dropped),
        ("objects.unreadable", objects.unreadable),
        ("objects.not_in_scope", objects.not_in_scope),
        ("rows.before", rows.before),
        ("rows.matched", rows.matched),
        ("rows.removed", rows.removed),
        ("rows.redacted", rows.redacted),
        ("rows.after", rows.after),
        ("strays_redacted", dataset.map(DatasetRecord::strays_redacted_in_all).unwrap_or_default()),
        ("versions.listed", versions.listed),
        ("versions.purged", versions.purged),
        ("versions.locked", versions.locked),
        ("uploads.listed", uploads.listed),
        ("uploads.aborted", uploads.aborted),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(location: &str, etag: &str) -> ObjectRow {
        ObjectRow { etag: Some(etag.into()), rows_after: Some(5), ..ObjectRow::new("events", location) }
    }

    #[test]
    fn objects_are_new_gone_or_changed() {
        let noncurrent = ObjectRow { is_current: false, version_id: Some("v1".into()), ..row("b", "1") };
        let newer = ObjectRow { version_id: Some("v2".into()), rows_after: Some(4), ..row("b", "2") };
        let a = [row("a", "1"), row("b", "1"), noncurrent];
        let b = [row("b", "2"), row("c", "1")];
        let diff = object_diffs("events", &a, &b);
        assert_eq!(diff.objects_new, ["c"]);
        assert_eq!(diff.objects_gone, ["a", "b (version v1)"]);
        assert_eq!(diff.lines().last().unwrap(), "dataset events: changed b: other content");
        let diff = object_diffs("events", &[row("b", "1")], &[newer]);
        assert_eq!(diff.lines(), ["dataset events: changed b: other content, rows 5 -> 4"]);
        assert_eq!(object_diffs("events", &a, &a).lines(), [""; 0]);
    }

    #[test]
    fn a_line_of_text_does_not_name_a_million_objects() {
        let many: Vec<ObjectRow> = (0..30).map(|i| row(&format!("object-{i:02}"), "1")).collect();
        let lines = object_diffs("events", &[], &many).lines();
        assert_eq!(lines.len(), OBJECTS_TOLD + 1);
        assert_eq!(lines.last().unwrap(), "dataset events: new, and 10 more objects");
    }
}
