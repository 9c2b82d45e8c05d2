//! The plan: what a run would do to every object and why, decided from findings alone.
//!
//! Pure: the same findings and policy give the same plan, byte for byte, and nothing here reads or writes.

use std::collections::{BTreeMap, HashMap};

use roaring::RoaringTreemap;
use serde_json::{Value, json};

use crate::action::Action;
use crate::error::{Error, Exit, Result};
use crate::format::{Compression, Format};
use crate::identifier::ColumnPath;
use crate::job::{DatasetSpec, Guard, Noncurrent, Stray, WhenEmpty};
use crate::residue::{Cleanse, Place, Residues, SeenChunks};
use crate::store::{Location, Object};

/// What the find stage saw of one object.
#[derive(Debug, Clone)]
pub struct Finding {
    pub object: Object,
    pub format: Option<Format>,
    pub compression: Compression,
    pub seen: Seen,
    /// Match columns that the object lacks and the job says to skip: the rules on them asked nothing.
    pub lacks: Vec<ColumnPath>,
    /// The chunks whose pages the byte-level check need not read again.
    pub chunks: SeenChunks,
    /// What the byte-level check found beside the rows.
    pub residues: Residues,
    /// It gathers the footers of others and holds no rows of its own.
    pub is_summary: bool,
    /// On a local disk other names (hard links) keep its bytes whatever this one gets.
    pub has_other_names: bool,
}

impl Finding {
    pub fn new(object: Object, format: Option<Format>, compression: Compression, seen: Seen) -> Finding {
        Finding {
            object,
            format,
            compression,
            seen,
            lacks: Vec::new(),
            chunks: SeenChunks::default(),
            residues: Residues::default(),
            is_summary: false,
            has_other_names: false,
        }
    }
}

#[derive(Debug, Clone)]
pub enum Seen {
    /// Every row was compared; `matched` holds row numbers from 0.
    Rows { rows: u64, matched: RoaringTreemap },
    /// No rule could be asked: the object lacks the columns of all, and the job says so much is to be skipped.
    Skipped,
    /// Could not be read or must not be.
    Failed { exit: Exit, reason: String },
}

/// What the find stage saw of one dataset.
#[derive(Debug, Clone, Default)]
pub struct Found {
    pub listed_at: jiff::Timestamp,
    pub findings: Vec<Finding>,
    pub not_in_scope: Vec<Object>,
    /// Values that no rule could read, by column.
    pub not_comparable: BTreeMap<String, u64>,
    /// Noncurrent object versions; `None` where the store keeps none.
    pub versions: Option<Vec<Finding>>,
    /// The dataset could not be listed, so that nothing of it was looked at.
    pub unlisted: Option<Error>,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub datasets: Vec<DatasetPlan>,
}

#[derive(Debug, Clone)]
pub struct DatasetPlan {
    pub name: String,
    pub uri: String,
    pub action: Action,
    pub listed_at: jiff::Timestamp,
    pub steps: Vec<Step>,
    pub not_in_scope: Vec<Object>,
    pub not_comparable: BTreeMap<String, u64>,
    /// Noncurrent object versions; `None` where the store keeps none.
    pub versions: Option<Vec<Step>>,
    /// The dataset could not be listed, so that it has no steps.
    pub unlisted: Option<Error>,
}

/// What is to happen to one object.
#[derive(Debug, Clone)]
pub struct Step {
    pub object: Object,
    /// The object's name as it may be shown: with tags in place of identifiers.
    pub shown: String,
    pub format: Option<Format>,
    pub compression: Compression,
    pub rows: u64,
    pub rows_matched: u64,
    /// Other rows, in which a stray identifier is to be replaced.
    pub rows_strayed: u64,
    /// By column, cells with a stray identifier that is to be replaced; those of rows that match are among them.
    pub strays: BTreeMap<ColumnPath, u64>,
    /// What the object holds beside the rows that match, in words.
    pub beside: Option<String>,
    /// The match columns that were skipped, in words.
    pub skipped: Option<String>,
    /// Hard links keep the bytes that it has now.
    pub has_other_names: bool,
    /// It gathers the footers of others.
    pub is_summary: bool,
    pub decision: Decision,
}

#[derive(Debug, Clone)]
pub enum Decision {
    /// No row matches: the object is not written.
    Keep,
    Rewrite {
        rows: RoaringTreemap,
        cleanse: Cleanse,
    },
    /// The object goes as a whole.
    Drop {
        why: String,
    },
    /// A noncurrent version holds a match: it is removed for good.
    Purge,
    /// A noncurrent version holds a match, and the job only wants to know.
    Report,
    /// Left alone because the job says so.
    Skip {
        reason: String,
    },
    /// Not touched, and the run is not clean.
    Refuse {
        exit: Exit,
        reason: String,
    },
}

impl Decision {
    pub fn name(&self) -> &'static str {
        match self {
            Decision::Keep => "keep",
            Decision::Rewrite { .. } => "rewrite",
            Decision::Drop { .. } => "drop",
            Decision::Purge => "purge",
            Decision::Report => "report",
            Decision::Skip { .. } => "skip",
            Decision::Refuse { .. } => "refuse",
        }
    }

    /// Whether the step writes or drops the object.
    pub fn changes(&self) -> bool {
        match self {
            Decision::Rewrite { .. } | Decision::Drop { .. } | Decision::Purge => true,
            Decision::Keep | Decision::Report | Decision::Skip { .. } | Decision::Refuse { .. } => false,
        }
    }
}

impl Step {
    /// A store's message names the object as it is, and the name may hold an identifier.
    pub fn without_name(&self, reason: &str) -> String {
        reason.replace(&self.object.location.to_string(), &self.shown)
    }

    fn with_beside(&self, rows: String) -> String {
        let beside = self.beside.iter().map(|beside| format!("; a listed identifier is in {beside}"));
        let skipped = self.skipped.iter().map(|skipped| format!("; {skipped}"));
        std::iter::once(rows).chain(beside).chain(skipped).collect()
    }

    /// Why the step is what it is, for people.
    pub fn reason(&self) -> String {
        let (matched, rows) = (self.rows_matched, self.rows);
        match &self.decision {
            Decision::Keep => "no row matches".to_owned(),
            Decision::Rewrite { .. } => self.with_beside(match matched {
                0 => "no row matches".to_owned(),
                all if all == rows => "every row matches".to_owned(),
                some => format!("{some} of {rows} rows match"),
            }),
            Decision::Drop { why } => why.clone(),
            Decision::Purge => self.with_beside(format!("{matched} of {rows} rows of a noncurrent version match")),
            Decision::Report => self.with_beside(format!(
                "{matched} of {rows} rows of a noncurrent version match, and noncurrent = \"report\""
            )),
            Decision::Skip { reason } | Decision::Refuse { reason, .. } => reason.clone(),
        }
    }
}

impl Plan {
    /// Leaves an object, or one of its old versions, as it is.
    pub fn refuse(&mut self, dataset: usize, object: &Object, exit: Exit, reason: &str) {
        let dataset = &mut self.datasets[dataset];
        let steps = dataset.steps.iter_mut().chain(dataset.versions.iter_mut().flatten());
        for step in steps.filter(|step| step.object == *object) {
            step.decision = Decision::Refuse { exit, reason: reason.to_owned() };
        }
    }

    /// Leaves every object and version as it is.
    pub fn refuse_all(&mut self, exit: Exit, reason: &str) {
        let steps = self
            .datasets
            .iter_mut()
            .flat_map(|dataset| dataset.steps.iter_mut().chain(dataset.versions.iter_mut().flatten()));
        steps.for_each(|step| step.decision = Decision::Refuse { exit, reason: reason.to_owned() });
    }

    /// Takes in objects that were found later; their steps follow the others.
    pub fn take_late(&mut self, late: Plan) {
        for (dataset, late) in self.datasets.iter_mut().zip(late.datasets) {
            dataset.steps.extend(late.steps);
        }
    }
}

impl DatasetPlan {
    pub fn rows(&self) -> u64 {
        self.steps.iter().map(|step| step.rows).sum()
    }

    pub fn rows_matched(&self) -> u64 {
        self.steps.iter().map(|step| step.rows_matched).sum()
    }

    /// Rows that do not match, but get a cell without the identifier that strayed into it.
    pub fn rows_strayed(&self) -> u64 {
        self.steps.iter().map(|step| step.rows_strayed).sum()
    }

    /// By column, cells in which stray identifiers are to be replaced.
    pub fn strays(&self) -> BTreeMap<&ColumnPath, u64> {
        let mut sums = BTreeMap::new();
        for (column, cells) in self.steps.iter().flat_map(|step| &step.strays) {
            *sums.entry(column).or_default() += cells;
        }
        sums
    }

    pub fn objects(&self, decision: &str) -> usize {
        self.steps.iter().filter(|step| step.decision.name() == decision).count()
    }

    /// Noncurrent versions with this decision; 0 where the store keeps none.
    pub fn versions(&self, decision: &str) -> usize {
        self.versions.iter().flatten().filter(|step| step.decision.name() == decision).count()
    }
}

/// How an object's name may be shown: with tags in place of the identifiers in it.
pub type Shown<'a> = &'a (dyn Fn(&DatasetSpec, &Location) -> String + Sync);

/// Decides every object of every dataset; `found[i]` belongs to `datasets[i]`.
pub fn build(datasets: &[DatasetSpec], found: Vec<Found>, shown: Shown<'_>) -> Plan {
    Plan { datasets: datasets.iter().zip(found).map(|(spec, found)| plan_dataset(spec, found, shown)).collect() }
}

fn plan_dataset(spec: &DatasetSpec, found: Found, shown: Shown<'_>) -> DatasetPlan {
    let mut steps: Vec<Step> = found.findings.into_iter().map(|finding| decide(spec, finding, shown)).collect();
    let mut not_in_scope = found.not_in_scope;
    not_in_scope.extend(settle_summaries(&mut steps));
    steps.sort_by(|a, b| a.object.location.cmp(&b.object.location));
    let versions = found.versions.map(|findings| {
        let mut steps: Vec<Step> = findings.into_iter().map(|finding| decide_version(spec, finding, shown)).collect();
        let name = |step: &Step| (step.object.location.clone(), step.object.version_id.clone());
        steps.sort_by_key(name);
        steps
    });
    DatasetPlan {
        name: spec.name.clone(),
        uri: spec.uri.clone(),
        action: spec.action.clone(),
        listed_at: found.listed_at,
        steps,
        not_in_scope,
        not_comparable: found.not_comparable,
        versions,
        unlisted: found.unlisted,
    }
}

/// A summary that holds nothing is no part of the dataset, which is what this returns; but a `_metadata` that tells where in the files
/// around it row groups stand goes with the first change of one: its readers would take other bytes for rows.
fn settle_summaries(steps: &mut Vec<Step>) -> Vec<Object> {
    let changed: Vec<String> =
        steps.iter().filter(|step| step.decision.changes()).map(|step| step.object.location.to_string()).collect();
    let (mut idle, mut rest): (Vec<Step>, Vec<Step>) =
        std::mem::take(steps).into_iter().partition(|step| step.is_summary && matches!(step.decision, Decision::Keep));
    for step in idle.extract_if(.., |step| {
        step.object.location.file_name() == "_metadata" && {
            let name = step.object.location.to_string();
            let folder = name.trim_end_matches("_metadata");
            changed.iter().any(|changed| changed.starts_with(folder))
        }
    }) {
        let why = "tells where row groups stand in files that change; their writer can make it again".to_owned();
        rest.push(Step { decision: Decision::Drop { why }, ..step });
    }
    *steps = rest;
    idle.into_iter().map(|step| step.object).collect()
}

/// A noncurrent version stays or goes as a whole: nobody can write to it.
fn decide_version(spec: &DatasetSpec, finding: Finding, shown: Shown<'_>) -> Step {
    let mut step = decide(spec, finding, shown);
    if let Decision::Rewrite { .. } | Decision::Drop { .. } = step.decision {
        step.decision = match spec.versions.noncurrent {
            Noncurrent::Purge => Decision::Purge,
            Noncurrent::Report => Decision::Report,
        };
    }
    step
}

fn decide(spec: &DatasetSpec, finding: Finding, shown: Shown<'_>) -> Step {
    let mut step = Step {
        shown: shown(spec, &finding.object.location),
        object: finding.object,
        format: finding.format,
        compression: finding.compression,
        rows: 0,
        rows_matched: 0,
        rows_strayed: 0,
        strays: BTreeMap::new(),
        beside: None,
        skipped: lacking(&finding.lacks),
        has_other_names: finding.has_other_names,
        is_summary: finding.is_summary,
        decision: Decision::Keep,
    };
    match finding.seen {
        Seen::Skipped => {}
        Seen::Failed { exit, reason } => {
            step.decision = Decision::Refuse { exit, reason: step.without_name(&reason) };
        }
        Seen::Rows { rows, .. } if !finding.residues.named.is_empty() => {
            // A name cannot be redacted, so the object goes with all its rows: the guard counts them all.
            step.rows = rows;
            let kinds: std::collections::BTreeSet<&str> =
                finding.residues.named.iter().map(|named| named.kind).collect();
            let kinds = kinds.into_iter().collect::<Vec<_>>().join(", ");
            step.decision = match &spec.action {
                Action::Delete => {
                    step.rows_matched = rows;
                    Decision::Drop { why: format!("its name holds a listed identifier ({kinds})") }
                }
                Action::Redact(_) => Decision::Refuse {
                    exit: Exit::Incomplete,
                    reason: format!(
                        "its name holds a listed identifier ({kinds}), which action = \"redact\" cannot take out"
                    ),
                },
            };
        }
        Seen::Rows { rows, matched } => {
            let left = finding.residues.beside(&matched, &spec.action);
            let redacts_strays = spec.stray == Stray::Redact;
            (step.rows, step.rows_matched, step.beside) = (rows, matched.len(), left.words(redacts_strays));
            let found = left.by_column(Place::Undeclared).into_iter().filter(|_| redacts_strays);
            let found: BTreeMap<ColumnPath, u64> = found.collect();
            let strays = found.keys().cloned().collect();
            let strayed = (&left.stray_rows - &matched).len();
            let all = matched.len() == rows && spec.action == Action::Delete && spec.when_empty == WhenEmpty::Drop;
            step.decision = match (&step.beside, matched.is_empty()) {
                (None, true) => Decision::Keep,
                (Some(beside), _) if finding.is_summary => Decision::Drop {
                    why: format!("is a summary of other objects with a listed identifier in {beside}"),
                },
                (Some(_), true)
                    if left.in_bytes() && left.count(Place::Metadata) == left.fixed && left.only(Place::Metadata) =>
                {
                    let reason = "a column's name holds a listed identifier, which no rewrite can take out".to_owned();
                    Decision::Refuse { exit: Exit::Residue, reason }
                }
                (_, false) if all => Decision::Drop { why: "every row matches and when_empty = \"drop\"".to_owned() },
                (_, _) => Decision::Rewrite { rows: matched, cleanse: Cleanse { strays, ..left.cleanse() } },
            };
            if let Decision::Rewrite { .. } = step.decision
                && redacts_strays
            {
                (step.rows_strayed, step.strays) = (strayed, found);
            }
        }
    }
    if let (Decision::Keep, Some(reason)) = (&step.decision, &step.skipped) {
        // Its rows were not compared by all rules, so they do not count among those that were.
        (step.rows, step.decision) = (0, Decision::Skip { reason: reason.clone() });
    }
    step
}

/// What a skipped column is told as.
fn lacking(columns: &[ColumnPath]) -> Option<String> {
    let names: Vec<String> = columns.iter().map(ColumnPath::to_string).collect();
    (!names.is_empty()).then(|| format!("lacks match column {}", names.join(", ")))
}

/// Refuses a plan that would change more than the job allows: rows that match, and rows that stay with a cell replaced.
pub fn check_guard(plan: &Plan, guard: &Guard) -> Result<()> {
    let sum = |rows: fn(&DatasetPlan) -> u64| plan.datasets.iter().map(rows).sum::<u64>();
    let (matched, strayed) = (sum(DatasetPlan::rows_matched), sum(DatasetPlan::rows_strayed));
    if matched + strayed > guard.max_rows {
        let rows = changing(&matched.to_string(), strayed);
        return Err(Error::new(
            Exit::Refused,
            format!("{rows}, more than [guard] max_rows = {}; nothing was written", guard.max_rows),
        )
        .hint("look at `lakescrub plan`; if the lists are right, raise [guard] max_rows"));
    }
    for dataset in &plan.datasets {
        let (matched, strayed, rows) = (dataset.rows_matched(), dataset.rows_strayed(), dataset.rows());
        if (matched + strayed) as f64 > guard.max_fraction * rows as f64 {
            return Err(Error::new(
                Exit::Refused,
                format!(
                    "dataset {}: {}, a larger share than [guard] max_fraction = {}; nothing was written",
                    dataset.name,
                    changing(&format!("{matched} of {rows}"), strayed),
                    guard.max_fraction
                ),
            )
            .hint("look at `lakescrub plan`; if the lists are right, raise [guard] max_fraction"));
        }
    }
    Ok(())
}

/// The rows that a plan changes, in words; `told` is how many match.
fn changing(told: &str, strayed: u64) -> String {
    match strayed {
        0 => format!("{told} rows match"),
        more => format!("{told} rows match and {more} more hold a stray identifier"),
    }
}

/// Refuses two datasets that hold one object: the second would find it changed by the first, run after run.
pub fn check_overlap(plan: &Plan) -> Result<()> {
    let mut owners: HashMap<&Location, &str> = HashMap::new();
    for dataset in &plan.datasets {
        for step in &dataset.steps {
            if let Some(other) =
                owners.insert(&step.object.location, &dataset.name).filter(|other| *other != dataset.name)
            {
                let (name, shown) = (&dataset.name, &step.shown);
                return Err(Error::usage(format!("{shown} is in dataset {other} and in {name}; nothing was written")).hint(
                    "give each object to one dataset, which may have several [[dataset.match]], or narrow a uri or a format",
                ));
            }
        }
    }
    Ok(())
}

/// How the plan itself bears on the exit code: what could not be looked at, and datasets without an object.
pub fn exits(plan: &Plan) -> Vec<Exit> {
    let left_alone = |step: &Step| match &step.decision {
        Decision::Refuse { exit, .. } => Some(*exit),
        Decision::Skip { .. } => Some(Exit::Incomplete),
        Decision::Keep | Decision::Rewrite { .. } | Decision::Report => step.skipped.as_ref().map(|_| Exit::Incomplete),
        // No row is left that a skipped rule could mean.
        Decision::Drop { .. } | Decision::Purge => None,
    };
    let steps = plan.datasets.iter().flat_map(|dataset| dataset.steps.iter().chain(dataset.versions.iter().flatten()));
    let mut exits: Vec<Exit> = steps.filter_map(left_alone).collect();
    exits.extend(plan.datasets.iter().filter(|dataset| dataset.steps.is_empty()).map(
        |dataset| match &dataset.unlisted {
            Some(error) => error.exit,
            None => Exit::Incomplete,
        },
    ));
    exits
}

/// The plan as JSON; the order of keys and steps is fixed.
pub fn to_json(plan: &Plan) -> Value {
    let step = |step: &Step| {
        json!({
            "location": step.shown,
            "etag": step.object.etag.0,
            "version_id": step.object.version_id,
            "size_bytes": step.object.size_bytes,
            "format": step.format.map(Format::name),
            "rows": step.rows,
            "rows_matched": step.rows_matched,
            "rows_strayed": step.rows_strayed,
            "decision": step.decision.name(),
            "reason": step.reason(),
        })
    };
    let strays = |dataset: &DatasetPlan| -> BTreeMap<String, u64> {
        dataset.strays().into_iter().map(|(column, cells)| (column.to_string(), cells)).collect()
    };
    let dataset = |dataset: &DatasetPlan| {
        json!({
            "name": dataset.name,
            "uri": dataset.uri,
            "action": dataset.action.name(),
            "objects": {
                "listed": dataset.steps.len() + dataset.not_in_scope.len(),
                "rewrite": dataset.objects("rewrite"),
                "drop": dataset.objects("drop"),
                "keep": dataset.objects("keep"),
                "skip": dataset.objects("skip"),
                "refuse": dataset.objects("refuse"),
                "not_in_scope": dataset.not_in_scope.len(),
            },
            "rows": { "before": dataset.rows(), "matched": dataset.rows_matched(), "strayed": dataset.rows_strayed() },
            "strays": strays(dataset),
            "not_comparable": dataset.not_comparable,
            "unlisted": dataset.unlisted.as_ref().map(|error| &error.message),
            "steps": dataset.steps.iter().map(step).collect::<Vec<_>>(),
            "versions": dataset.versions.as_ref().map(|versions| versions.iter().map(step).collect::<Vec<_>>()),
        })
    };
    json!({ "datasets": plan.datasets.iter().map(dataset).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::job::Job;
    use crate::store::{Etag, StoreError};

    #[test]
    fn a_stores_message_loses_the_name_that_holds_an_identifier() {
        let job = "version = 1\n[[list]]\nname = \"l\"\nuri = \"l.csv\"\n[[list.column]]\ncolumn = \"e\"\nkind = \"email\"\n\
                   [[dataset]]\nname = \"d\"\nuri = \"lake/\"\n[[dataset.match]]\ncolumn = \"e\"\nkind = \"email\"\n";
        let job = Job::parse(job, Path::new("/"), &[]).unwrap();
        let location = Location::Local("/lake/anna@example.com.csv".into());
        let object = Object {
            location: location.clone(),
            size_bytes: 1,
            etag: Etag("1".to_owned()),
            version_id: None,
            storage_class: None,
        };
        for seen in [
            Seen::Failed { exit: Exit::Conflict, reason: StoreError::Changed(location.clone()).to_string() },
            Seen::Failed { exit: Exit::Incomplete, reason: format!("{location} is cut") },
        ] {
            let found = Found {
                findings: vec![Finding::new(object.clone(), Some(Format::Csv), Compression::None, seen)],
                ..Found::default()
            };
            let plan = build(&job.datasets, vec![found], &|_, _| "/lake/tag".to_owned());
            let shown = to_json(&plan).to_string();
            assert!(shown.contains("/lake/tag ") && !shown.contains("anna"), "{shown}");
        }
    }
}
