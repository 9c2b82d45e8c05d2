//! The account of a run: what was observed, put together for the manifest, and the exit code that follows from it.
//!
//! Pure: it takes the plan, the outcomes and what the verifying scan saw, and invents nothing. A count that nobody took is
//! "not checked".

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::action::{Action, Redaction};
use crate::canary;
use crate::dataset::listing;
use crate::error::Exit;
use crate::identifier::{Kind, NORMALISER_VERSION};
use crate::job::{DatasetSpec, Job, MatchRule, Search, Stray};
use crate::journal::Swap;
use crate::manifest::{
    Canaries, DatasetRecord, JobFile, LedgerRecord, ListRead, Normaliser, ObjectCounts, Observations, Observed,
    Residue, RowCounts, Run, Stage, Tool, UploadCounts, Verdict, Verification, VersionCounts,
};
use crate::match_index::Added;
use crate::object_table::{ObjectRow, Outcome as RowOutcome};
use crate::plan::{self, DatasetPlan, Decision, Plan, Shown, Step};
use crate::purge::{PurgeEnded, Purged};
use crate::request::ListReport;
use crate::residue::Place;
use crate::rewrite::{Ended, Outcome};
use crate::show;
use crate::store::{Location, Object};
use crate::verify::{Verified, VerifiedDataset, VerifiedObject, VerifiedVersions, VerifyOutcome};

/// Everything that was observed in a run.
pub struct Account<'a> {
    pub job: &'a Job,
    pub lists: &'a [(ListReport, Added)],
    /// `None` in a run that only verifies.
    pub plan: Option<&'a Plan>,
    /// By dataset, by step; `None` where nothing was to be done.
    pub outcomes: &'a [Vec<Option<Outcome>>],
    /// By dataset; empty in a run that only verifies.
    pub purged: &'a [Purged],
    /// Swaps of an earlier, killed attempt of this run.
    pub recovered: &'a [Recovered],
    pub verified: &'a Verified,
    /// Buckets on which conditional writes are ignored and the job allows it.
    pub unconditional_writes: &'a [String],
    /// The run's times are what `--now` says.
    pub is_clock_set: bool,
    /// A run that never ended and that this one has left as it is.
    pub left_open: Option<&'a str>,
    pub shown: Shown<'a>,
    /// `None` when none were asked for.
    pub canaries: Option<canary::Counts>,
    /// `None` for a job without the ledger.
    pub ledger: Option<LedgerRecord>,
    /// DROP work items that were left alone, for nobody can tell how many consumers they mean.
    pub undecided: u64,
}

/// A swap of a killed attempt that did happen.
#[derive(Debug, Clone)]
pub struct Recovered {
    pub swap: Swap,
    pub etag: String,
}

/// Names and times of the run, which the account itself cannot know.
pub struct RunFacts {
    pub id: String,
    pub command: &'static str,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub resumed: bool,
    pub tool_digest: Observed<String>,
    pub stages: Vec<Stage>,
}

/// The account, ready to be sealed.
pub struct Settlement {
    pub observations: Observations,
    pub rows: Vec<ObjectRow>,
    pub exit: Exit,
}

impl Account<'_> {
    /// Draws the account up.
    pub fn settle(&self, facts: RunFacts) -> Settlement {
        let mut exits: Vec<Exit> = self.plan.map(plan::exits).unwrap_or_default();
        let (mut rows, mut strays) = (Vec::new(), Vec::new());
        for (number, verified) in self.verified.datasets.iter().enumerate() {
            let spec = &self.job.datasets[number];
            let plan = self.plan.map(|plan| &plan.datasets[number]);
            let outcomes = self.outcomes.get(number).map_or(&[][..], Vec::as_slice);
            let (engine, shown) = (self.engine(), self.shown);
            let mut dataset =
                DatasetRows { spec, engine, shown, rows: BTreeMap::new(), strays: BTreeMap::new(), exits: Vec::new() };
            plan.into_iter().for_each(|plan| dataset.take_plan(plan, outcomes));
            // Last to first: an object that two attempts rewrote is as the later one left it.
            self.recovered
                .iter()
                .rev()
                .filter(|swap| swap.swap.dataset == spec.name)
                .for_each(|swap| dataset.take_recovered(swap));
            dataset.take_verified(verified);
            exits.append(&mut dataset.exits);
            rows.extend(dataset.rows.into_values());
            strays.push(dataset.strays);
            let engine = self.engine();
            let mut versions = VersionRows { spec, engine, shown, rows: BTreeMap::new(), exits: Vec::new() };
            plan.iter().for_each(|plan| versions.take_plan(plan));
            self.purged.get(number).into_iter().for_each(|purged| versions.take_purged(purged));
            verified
                .versions
                .iter()
                .flat_map(|versions| &versions.objects)
                .for_each(|object| versions.take_verified(object));
            exits.append(&mut versions.exits);
            rows.extend(versions.rows.into_values());
        }
        exits.extend((self.undecided > 0).then_some(Exit::Incomplete));
        let verdict = verdict(&exits);
        let exit = Exit::gravest(exits);
        let observations = self.observations(facts, &rows, strays, (exit, verdict));
        Settlement { observations, rows, exit }
    }

    fn engine(&self) -> String {
        format!("polars {}", self.verified.engine_version)
    }

    fn observations(
        &self,
        facts: RunFacts,
        rows: &[ObjectRow],
        strays: Vec<BTreeMap<String, u64>>,
        (exit, verdict): (Exit, Verdict),
    ) -> Observations {
        Observations {
            run: Run {
                id: facts.id,
                started_at: facts.started_at,
                finished_at: facts.finished_at,
                command: facts.command.to_owned(),
                exit: exit.code(),
                resumed: facts.resumed,
                tool: Tool {
                    name: env!("CARGO_PKG_NAME").to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    digest: facts.tool_digest,
                },
                job: JobFile { name: self.job.name.clone(), digest: self.job.digest.clone() },
                stages: facts.stages,
            },
            lists: lists(self.lists),
            normaliser: Normaliser {
                version: NORMALISER_VERSION.to_owned(),
                self_test: Observed::Seen("passed".to_owned()),
            },
            datasets: self
                .verified
                .datasets
                .iter()
                .zip(strays)
                .enumerate()
                .map(|(i, (verified, strays))| self.record(i, verified, rows, strays))
                .collect(),
            verification: self.verification(rows),
            limits: self.limits(),
            verdict,
            ledger: self.ledger.clone(),
        }
    }

    fn record(
        &self,
        number: usize,
        verified: &VerifiedDataset,
        rows: &[ObjectRow],
        strays: BTreeMap<String, u64>,
    ) -> DatasetRecord {
        let spec = &self.job.datasets[number];
        let is_listed = verified.unlisted.is_none();
        let listed = |count: u64| if is_listed { Observed::Seen(count) } else { Observed::NotChecked };
        let not_in_scope = listed(verified.not_in_scope.len() as u64);
        DatasetRecord {
            name: spec.name.clone(),
            uri: spec.uri.clone(),
            action: spec.action.name().to_owned(),
            listed_at: if is_listed { Observed::Seen(verified.listed_at) } else { Observed::NotChecked },
            objects: ObjectCounts::tally(&spec.name, rows, not_in_scope),
            rows: RowCounts::tally(&spec.name, rows),
            not_comparable: Observed::Seen(verified.not_comparable.clone()),
            undeclared: undeclared(spec, verified),
            // A run that only verifies replaces nothing, and looks at nothing of the kind.
            strays_redacted: match self.plan.is_none() && strays.is_empty() {
                true => Observed::NotChecked,
                false => Observed::Seen(strays),
            },
            versions: self.version_counts(number, verified, rows),
            uploads: UploadCounts {
                listed: Observed::Seen(
                    self.purged.get(number).map_or(verified.uploads, |purged| purged.uploads_listed),
                ),
                aborted: Observed::Seen(self.purged.get(number).map_or(0, |purged| purged.uploads_aborted)),
                remaining: listed(verified.uploads),
            },
        }
    }

    /// A store that keeps no versions has none.
    fn version_counts(&self, number: usize, verified: &VerifiedDataset, rows: &[ObjectRow]) -> VersionCounts {
        let of = |wanted: RowOutcome| {
            let versions = rows.iter().filter(|row| !row.is_current && row.dataset == verified.name);
            Observed::Seen(versions.filter(|row| row.outcome == wanted).count() as u64)
        };
        let left = |versions: &VerifiedVersions| versions.objects.len() as u64 + versions.delete_markers;
        let remaining = verified.versions.as_ref().map_or(0, left);
        let before = self.purged.get(number).and_then(|purged| purged.versions.as_ref());
        VersionCounts {
            listed: Observed::Seen(before.map_or(remaining, |versions| versions.listed)),
            purged: of(RowOutcome::Purged),
            locked: of(RowOutcome::Locked),
            remaining: if verified.unlisted.is_none() { Observed::Seen(remaining) } else { Observed::NotChecked },
        }
    }

    fn verification(&self, rows: &[ObjectRow]) -> Verification {
        let scanned: Vec<u64> = rows.iter().filter_map(|row| row.rows_scanned).collect();
        let of_rows = || self.verified.datasets.iter().filter(|dataset| dataset.table_format.is_none());
        let objects = || of_rows().flat_map(|dataset| &dataset.objects);
        let place = |place: Place| Observed::Seen(objects().map(|object| object.residues.count(place)).sum());
        Verification {
            engine: "polars".to_owned(),
            engine_version: self.verified.engine_version.to_owned(),
            pruning: false,
            objects: Observed::Seen(scanned.len() as u64),
            rows: Observed::Seen(scanned.iter().sum()),
            residue: Residue {
                rows: Observed::Seen(objects().map(|object| object.rows_matched).sum()),
                statistics: place(Place::Statistics),
                dictionaries: place(Place::Dictionaries),
                paths: Observed::Seen(objects().map(|object| object.residues.named.len() as u64).sum()),
                versions: Observed::Seen(
                    rows.iter().filter(|row| !row.is_current && row.outcome == RowOutcome::Residue).count() as u64,
                ),
                filters: place(Place::Filters),
                metadata: place(Place::Metadata),
                gaps: place(Place::Gaps),
                labels: place(Place::Labels),
                undeclared: match self.job.datasets.iter().all(|spec| spec.search == Search::Off) {
                    true => Observed::NotChecked,
                    false => place(Place::Undeclared),
                },
            },
            canaries: self.canaries.map_or_else(Canaries::default, |counts| Canaries {
                planted: Observed::Seen(counts.planted),
                found: Observed::Seen(counts.found),
                removed: Observed::Seen(counts.removed),
            }),
        }
    }

    /// What was not looked at, in plain sentences.
    fn limits(&self) -> Vec<String> {
        let mut limits = vec!["Objects that were written after a dataset was listed were not looked at.".to_owned()];
        if self.is_clock_set {
            limits.push("The times of this run are not the clock's: --now set them.".to_owned());
        }
        limits.extend(
            self.left_open
                .map(|run| format!("Run {run} never ended. What it had announced was left to the next scrub.")),
        );
        let purged = self.purged.iter().filter_map(|purged| purged.unlisted.as_ref());
        let verified = self.verified.datasets.iter().filter_map(|dataset| dataset.unlisted.as_ref());
        let unlisted: BTreeSet<&str> = purged.chain(verified).map(|error| error.message.as_str()).collect();
        limits.extend(unlisted.iter().map(|message| format!("Not looked at: {message}.")));
        if let Some(opted_out) = self.ledger.as_ref().map(|ledger| ledger.opted_out).filter(|count| *count > 0) {
            limits.push(format!(
                "{opted_out} DROP work items lead to several consumers each: their rows were kept, for these are to be opted out instead."
            ));
        }
        if let Some(held) = self.ledger.as_ref().map(|ledger| ledger.held).filter(|count| *count > 0) {
            limits.push(format!(
                "{held} requests name somebody whose data stay by the exemption of another request: what they share was not looked for."
            ));
        }
        limits.extend(self.ledger.iter().flat_map(|ledger| ledger.not_compared.sentences()));
        limits.extend(self.lists.iter().flat_map(|(report, added)| let_go(report, added)));
        if self.undecided > 0 {
            limits.push(format!(
                "{} DROP work items were left alone: an object that could not be read, or lacks its consumer key, hides how many consumers they mean.",
                self.undecided
            ));
        }
        for (spec, verified) in self.job.datasets.iter().zip(&self.verified.datasets) {
            if spec.search == Search::Off {
                let name = &spec.name;
                limits.push(format!("Dataset {name}: columns that no [[dataset.match]] names were not searched."));
            }
            if !verified.not_in_scope.is_empty() {
                limits.push(self.not_in_scope(spec, verified));
            }
            let unread: u64 = verified.objects.iter().map(|object| object.residues.unread_bytes).sum();
            if unread > 0 {
                limits.push(format!(
                    "Dataset {}: {unread} bytes that belong to no page could be searched as plain text only.",
                    spec.name
                ));
            }
            limits.extend(beyond_the_listing(spec, verified));
            limits.extend(self.plan.and_then(|plan| other_names(plan, spec)));
            let unread: u64 = verified.objects.iter().map(|object| object.residues.unread_filters).sum();
            if unread > 0 {
                limits.push(format!(
                    "Dataset {}: {unread} bloom filters hold more than their values explain and could not be compared.",
                    spec.name
                ));
            }
            let unread: u64 = verified.objects.iter().map(|object| object.residues.unread_labels).sum();
            if unread > 0 {
                limits.push(format!(
                    "Dataset {}: the user metadata or tags of {unread} objects could not be read and were not searched.",
                    spec.name
                ));
            }
            let unsure: u64 = verified.objects.iter().map(|object| object.residues.unsure_cells).sum();
            if unsure > 0 {
                limits.push(format!(
                    "Dataset {}: in {unsure} cells a listed address is part of a longer one, which may be another person's; they are not residue.",
                    spec.name
                ));
            }
            limits.extend(
                verified
                    .not_comparable
                    .iter()
                    .map(|(column, count)| format!("Dataset {}: {}.", spec.name, show::no_identifiers(column, *count))),
            );
            limits.extend(unlisted_kinds(self.job, spec));
            limits.extend(tagged_columns(spec));
        }
        if self
            .job
            .datasets
            .iter()
            .flat_map(|spec| &spec.rules)
            .flat_map(MatchRule::parts)
            .any(|part| part.kind == Kind::Phone)
        {
            limits.push(
                "Kind phone compares the last ten digits: numbers of two countries can be taken for one.".to_owned(),
            );
        }
        limits.extend(self.job.ledger.iter().map(|ledger| {
            format!(
                "List {} holds keyed tags: the cut bounds of Parquet files, and bloom filters that hold more than their values explain, were not compared with it.",
                ledger.name
            )
        }));
        for bucket in self.unconditional_writes {
            limits.push(format!(
                "The store of bucket {bucket} ignores conditional writes; the job allowed writing all the same."
            ));
        }
        limits
    }
}

/// What of a list was not applied because the ledger has let it go, and what was applied without a look at the ledger.
pub fn let_go(report: &ListReport, added: &Added) -> Vec<String> {
    let name = &report.name;
    let entries = added.let_go;
    let left_out = (entries > 0).then(|| {
        let entries = show::plural(entries, "entry", "entries");
        format!("List {name}: {entries} withdrawn or exempted in the ledger, and so not applied.")
    });
    let blind = added.not_looked_up.iter().map(|column| {
        format!("List {name}: the hashes of column {column} lead to no tag, so they were applied whatever the ledger has withdrawn or exempted.")
    });
    left_out.into_iter().chain(blind).collect()
}

/// Names that are told one by one in a limit.
const NAMES_TOLD: usize = 20;

fn undeclared(spec: &DatasetSpec, verified: &VerifiedDataset) -> Observed<BTreeMap<String, u64>> {
    if spec.search == Search::Off {
        return Observed::NotChecked;
    }
    let mut sums = BTreeMap::new();
    for (column, count) in verified.objects.iter().flat_map(|object| object.residues.by_column(Place::Undeclared)) {
        *sums.entry(column.to_string()).or_default() += count;
    }
    Observed::Seen(sums)
}

impl Account<'_> {
    /// In the prefix, not in scope: counted, and told by name as far as that is readable.
    fn not_in_scope(&self, spec: &DatasetSpec, verified: &VerifiedDataset) -> String {
        let count = verified.not_in_scope.len();
        let told = verified.not_in_scope.iter().take(NAMES_TOLD).map(|object| (self.shown)(spec, &object.location));
        let mut names = told.collect::<Vec<_>>().join(", ");
        if count > NAMES_TOLD {
            names.push_str(&format!(" and {} more", count - NAMES_TOLD));
        }
        format!("Dataset {}: {count} objects in its prefix are not in scope by their names: {names}.", verified.name)
    }
}

/// Where bytes of removed rows may lie that no listing of the store shows.
fn beyond_the_listing(spec: &DatasetSpec, verified: &VerifiedDataset) -> Vec<String> {
    let mut limits = verified.standing_rules.clone();
    if let Location::Local(_) = spec.scope.root() {
        limits.push(format!(
            "Dataset {} is on a local disk: its snapshots, backups and freed blocks were not looked at.",
            spec.name
        ));
    }
    if verified.uploads > 0 {
        limits.push(format!(
            "Dataset {}: {} unfinished uploads remain, whose parts nobody can read.",
            spec.name, verified.uploads
        ));
    }
    limits
}

/// What was taken out of a file is still in its hard links.
fn other_names(plan: &Plan, spec: &DatasetSpec) -> Option<String> {
    let steps = plan.datasets.iter().filter(|dataset| dataset.name == spec.name).flat_map(|dataset| &dataset.steps);
    let changed = steps.filter(|step| step.has_other_names && step.decision.changes()).count();
    (changed > 0).then(|| {
        format!(
            "Dataset {}: {changed} of the changed files had other names (hard links), which keep what was removed here.",
            spec.name
        )
    })
}

/// A rule for whose kind no list has a column can never match; that is said, not assumed clean.
pub fn unlisted_kinds(job: &Job, spec: &DatasetSpec) -> Vec<String> {
    if job.ledger.is_some() {
        return Vec::new();
    }
    let listed =
        |kind: &Kind| job.lists.iter().flat_map(|list| &list.columns).any(|column| column.kind.same_family(kind));
    let parts = spec.rules.iter().flat_map(MatchRule::compared).filter(|part| !listed(&part.kind));
    parts
        .map(|part| {
            format!(
                "Dataset {}: no list holds identifiers of kind {} for column {}.",
                spec.name,
                part.kind.name(),
                part.column
            )
        })
        .collect()
}

fn tagged_columns(spec: &DatasetSpec) -> Vec<String> {
    let Action::Redact(columns) = &spec.action else { return Vec::new() };
    let tagged = columns.iter().filter(|redact| redact.with == Redaction::Tag);
    tagged
        .map(|redact| {
            format!("Dataset {}: column {} is pseudonymised by keyed tags, not erased.", spec.name, redact.column)
        })
        .collect()
}

/// What was found outweighs what went wrong beside it.
fn verdict(exits: &[Exit]) -> Verdict {
    match Exit::gravest(exits.iter().copied()) {
        Exit::Clean => Verdict::Clean,
        _ if exits.contains(&Exit::Residue) => Verdict::Residue,
        Exit::Blocked => Verdict::Blocked,
        Exit::Residue
        | Exit::Internal
        | Exit::Usage
        | Exit::Incomplete
        | Exit::Conflict
        | Exit::Unavailable
        | Exit::Untrusted
        | Exit::Overdue
        | Exit::Refused
        | Exit::Interrupted
        | Exit::Terminated => Verdict::Incomplete,
    }
}

/// The lists as the manifest shows them.
pub fn lists(lists: &[(ListReport, Added)]) -> Vec<ListRead> {
    let list = |(report, added): &(ListReport, Added)| ListRead {
        name: report.name.clone(),
        uri: report.uri.clone(),
        digest: report.digest.clone(),
        read_at: report.read_at,
        rows: report.rows,
        identifiers: added.identifiers.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        duplicates: added.duplicates,
        malformed: report.malformed,
        blank: report.blank,
    };
    lists.iter().map(list).collect()
}

/// The rows of one dataset while they are put together, by location.
struct DatasetRows<'a> {
    spec: &'a DatasetSpec,
    engine: String,
    shown: Shown<'a>,
    rows: BTreeMap<String, ObjectRow>,
    /// By column, cells in which a stray identifier was replaced.
    strays: BTreeMap<String, u64>,
    exits: Vec<Exit>,
}

impl DatasetRows<'_> {
    fn take_plan(&mut self, plan: &DatasetPlan, outcomes: &[Option<Outcome>]) {
        for (number, step) in plan.steps.iter().enumerate() {
            let outcome = outcomes.get(number).and_then(Option::as_ref);
            let row = self.planned(step, outcome);
            self.rows.insert(row.location.clone(), row);
        }
    }

    fn planned(&mut self, step: &Step, outcome: Option<&Outcome>) -> ObjectRow {
        let mut row = ObjectRow::new(&self.spec.name, &step.shown);
        row.etag = Some(step.object.etag.0.clone());
        row.version_id = step.object.version_id.clone();
        row.size_bytes = Some(step.object.size_bytes);
        match &step.decision {
            Decision::Keep => {
                row.rows_matched = Some(0);
                row.rows_redacted = Some(0);
                take_strays(&mut row, &mut self.strays, self.spec, &BTreeMap::new());
                counts(&mut row, step.rows, 0, step.rows);
            }
            Decision::Skip { reason } => {
                row.outcome = RowOutcome::Skipped;
                row.reason = Some(reason.clone());
            }
            Decision::Refuse { exit, reason } => {
                row.outcome = failed(*exit);
                row.reason = Some(reason.clone());
            }
            // Only versions are purged or reported; see `VersionRows`.
            Decision::Purge | Decision::Report => {}
            Decision::Rewrite { .. } | Decision::Drop { .. } => {
                row.action = self.spec.action.name().to_owned();
                row.rows_matched = Some(step.rows_matched);
                row.reason = Some(step.reason());
                self.take_outcome(&mut row, step, outcome);
            }
        }
        row
    }

    fn take_outcome(&mut self, row: &mut ObjectRow, step: &Step, outcome: Option<&Outcome>) {
        let Some(outcome) = outcome else { return };
        match &outcome.ended {
            Ended::Rewritten | Ended::Dropped => {
                row.outcome = if outcome.ended == Ended::Dropped { RowOutcome::Dropped } else { RowOutcome::Rewritten };
                row.sha256 = outcome.sha256.clone();
                row.rows_redacted = Some(outcome.rows_redacted);
                take_strays(row, &mut self.strays, self.spec, &outcome.strays_redacted);
                if let Some(rows_after) = outcome.rows_after {
                    counts(row, step.rows, outcome.rows_removed, rows_after);
                }
                if let Some(object) = &outcome.object {
                    row.etag = Some(object.etag.0.clone());
                    row.version_id = object.version_id.clone();
                    row.size_bytes = Some(object.size_bytes);
                }
            }
            Ended::Failed { exit, reason } => {
                row.outcome = if *exit == Exit::Incomplete { RowOutcome::Failed } else { failed(*exit) };
                row.reason = Some(reason.clone());
                if let Some(object) = &outcome.object {
                    // Swapped, but not as it should be.
                    row.etag = Some(object.etag.0.clone());
                    row.version_id = object.version_id.clone();
                } else if *exit != Exit::Conflict {
                    // It stands as the scan saw it. Without its counts, more rows would match than there were.
                    counts(row, step.rows, 0, step.rows);
                }
                self.exits.push(*exit);
            }
            Ended::NotBegun => {
                counts(row, step.rows, 0, step.rows);
                row.outcome = RowOutcome::Failed;
                row.reason = Some("the run was stopped before this object's turn".to_owned());
                self.exits.push(Exit::Incomplete);
            }
        }
    }

    /// Adds what a killed attempt did to an object, when this attempt found the object as that one left it.
    fn take_recovered(&mut self, recovered: &Recovered) {
        let swap = &recovered.swap;
        let dataset = self.spec.name.clone();
        let action = self.spec.action.name();
        let row = self.rows.entry(swap.location.clone()).or_insert_with(|| {
            // Nothing of this attempt stands beside it: the object was dropped, or this attempt only verifies.
            let mut row = ObjectRow::new(dataset, swap.location.clone());
            row.etag = Some(recovered.etag.clone());
            counts(&mut row, swap.rows_after, 0, swap.rows_after);
            row
        });
        let (before, removed, after) = match (row.rows_before, row.rows_removed, row.rows_after) {
            (Some(before), Some(removed), Some(after)) => (before, removed, after),
            // Not counted by this attempt, but still as that one left it: then its counts stand.
            _ if row.etag.as_ref() == Some(&recovered.etag) => (swap.rows_after, 0, swap.rows_after),
            _ => return,
        };
        if before != swap.rows_after {
            return;
        }
        counts(row, swap.rows_before, swap.rows_removed + removed, after);
        row.rows_matched = Some(row.rows_matched.unwrap_or(0) + swap.rows_matched);
        row.rows_redacted = Some(row.rows_redacted.unwrap_or(0) + swap.rows_redacted);
        row.action = action.to_owned();
        take_strays(row, &mut self.strays, self.spec, &swap.strays_redacted);
        if row.outcome == RowOutcome::Unchanged {
            row.outcome = if swap.dropped { RowOutcome::Dropped } else { RowOutcome::Rewritten };
            row.sha256 = (!swap.dropped).then(|| swap.sha256.clone());
        }
        if row.outcome.is_clean() {
            row.reason = Some(format!("{} of {} rows matched", swap.rows_matched, swap.rows_before));
        }
    }

    fn take_verified(&mut self, verified: &VerifiedDataset) {
        if let Some(error) = &verified.unlisted {
            self.exits.push(error.exit);
            for row in self.rows.values_mut().filter(|row| row.outcome.is_clean()) {
                row.outcome = failed(error.exit);
                row.reason = Some(format!("not verified: {}", error.message));
            }
            return;
        }
        if let Some(table) = verified.table_format {
            self.take_table(table, &verified.objects);
            return;
        }
        if verified.objects.is_empty() && self.rows.values().all(|row| row.outcome != RowOutcome::Dropped) {
            self.exits.push(Exit::Incomplete);
        }
        for object in &verified.objects {
            self.take_object(object);
        }
        let seen: std::collections::HashSet<String> = verified.objects.iter().map(|object| self.name(object)).collect();
        for row in
            self.rows.values_mut().filter(|row| row.outcome != RowOutcome::Dropped && !seen.contains(&row.location))
        {
            row.outcome = RowOutcome::Changed;
            row.reason = Some("was gone when the dataset was listed again".to_owned());
            self.exits.push(Exit::Conflict);
        }
    }

    fn name(&self, object: &VerifiedObject) -> String {
        (self.shown)(self.spec, &object.object.location)
    }

    /// The files of a live table. What the scan found in them says nothing about the table: some may be out of it by its log,
    /// and deleted rows may still stand in others.
    fn take_table(&mut self, table: &str, objects: &[VerifiedObject]) {
        self.exits.push(Exit::Incomplete);
        for object in objects {
            let location = self.name(object);
            let mut row = ObjectRow::new(self.spec.name.clone(), location.clone());
            row.etag = Some(object.object.etag.0.clone());
            row.version_id = object.object.version_id.clone();
            row.size_bytes = Some(object.object.size_bytes);
            row.outcome = RowOutcome::Unsupported;
            row.reason = Some(listing::table_reason(table));
            self.rows.insert(location, row);
        }
    }

    fn take_object(&mut self, object: &VerifiedObject) {
        let (location, dataset) = (self.name(object), self.spec.name.clone());
        // A store's message names the object as it is, and the name may hold an identifier.
        let name = object.object.location.to_string();
        let row = self.rows.entry(location.clone()).or_insert_with(|| {
            let mut row = ObjectRow::new(dataset, location);
            row.rows_matched = Some(object.rows_matched);
            row
        });
        let changed = row.etag.as_ref().is_some_and(|etag| *etag != object.object.etag.0);
        row.etag = Some(object.object.etag.0.clone());
        row.version_id = object.object.version_id.clone();
        row.size_bytes = Some(object.object.size_bytes);
        match &object.outcome {
            VerifyOutcome::Checked => {
                row.rows_scanned = Some(object.rows);
                row.checked_by = Some(self.engine.clone());
                self.exits.extend(take_difference(row, changed, object.rows));
            }
            VerifyOutcome::Skipped { reason } => {
                self.exits.extend(take_difference(row, changed, object.rows));
                // What the other rules led to stays on the line, and names the column too.
                let is_rewritten = row.outcome == RowOutcome::Rewritten;
                if row.outcome.is_clean() || row.outcome == RowOutcome::Skipped {
                    row.outcome = RowOutcome::Skipped;
                    let done = row.reason.take().filter(|_| is_rewritten);
                    row.reason = Some(done.unwrap_or_else(|| reason.replace(&name, &row.location)));
                }
                self.exits.push(Exit::Incomplete);
            }
            VerifyOutcome::Failed { exit, reason } => {
                if row.outcome.is_clean() {
                    row.outcome = failed(*exit);
                    row.reason = Some(format!("not verified: {}", reason.replace(&name, &row.location)));
                }
                self.exits.push(*exit);
            }
        }
        // Also of an object that lacks a column: the rules that could be checked found what is there.
        if let Some(found) = residue(object, self.spec.search == Search::Residue) {
            let why =
                row.reason.take().filter(|_| !row.outcome.is_clean()).map_or(String::new(), |why| format!("; {why}"));
            row.outcome = RowOutcome::Residue;
            row.reason = Some(format!("{found}{why}"));
            self.exits.push(Exit::Residue);
        }
    }
}

/// The rows of one dataset's noncurrent versions, by location and version.
struct VersionRows<'a> {
    spec: &'a DatasetSpec,
    engine: String,
    shown: Shown<'a>,
    rows: BTreeMap<(String, String), ObjectRow>,
    exits: Vec<Exit>,
}

impl VersionRows<'_> {
    fn row(&mut self, object: &Object) -> &mut ObjectRow {
        let location = (self.shown)(self.spec, &object.location);
        let version_id = object.version_id.clone().unwrap_or_default();
        let dataset = self.spec.name.clone();
        self.rows.entry((location.clone(), version_id)).or_insert_with(|| {
            let mut row = ObjectRow::new(&dataset, location);
            row.is_current = false;
            row.version_id = object.version_id.clone();
            row.etag = Some(object.etag.0.clone());
            row.size_bytes = Some(object.size_bytes);
            row
        })
    }

    fn take_plan(&mut self, plan: &DatasetPlan) {
        for step in plan.versions.iter().flatten() {
            let row = self.row(&step.object);
            match &step.decision {
                Decision::Skip { reason } => {
                    row.outcome = RowOutcome::Skipped;
                    row.reason = Some(reason.clone());
                }
                Decision::Refuse { exit, reason } => {
                    row.outcome = failed(*exit);
                    row.reason = Some(reason.clone());
                }
                Decision::Keep
                | Decision::Purge
                | Decision::Report
                | Decision::Rewrite { .. }
                | Decision::Drop { .. } => row.rows_matched = Some(step.rows_matched),
            }
        }
    }

    fn take_purged(&mut self, purged: &Purged) {
        self.exits.extend(purged.uploads_failed.iter().map(|(exit, _)| *exit));
        self.exits.extend(purged.unlisted.iter().map(|error| error.exit));
        for outcome in purged.versions.iter().flat_map(|versions| &versions.outcomes) {
            let exit = {
                let row = self.row(&outcome.object);
                row.action = Action::Delete.name().to_owned();
                row.rows_matched = Some(outcome.rows_matched);
                match &outcome.ended {
                    PurgeEnded::Purged => {
                        row.outcome = RowOutcome::Purged;
                        row.reason = Some(format!("{} of {} rows matched", outcome.rows_matched, outcome.rows));
                        None
                    }
                    PurgeEnded::Failed { exit, reason } => {
                        row.outcome = failed(*exit);
                        row.reason = Some(reason.clone());
                        Some(*exit)
                    }
                    PurgeEnded::NotBegun => {
                        row.outcome = RowOutcome::Failed;
                        row.reason = Some("the run was stopped before this version's turn".to_owned());
                        Some(Exit::Incomplete)
                    }
                }
            };
            self.exits.extend(exit);
        }
    }

    fn take_verified(&mut self, object: &VerifiedObject) {
        let engine = self.engine.clone();
        let undeclared = self.spec.search == Search::Residue;
        let name = object.object.location.to_string();
        let row = self.row(&object.object);
        let exit = match &object.outcome {
            // What stands in the way of its removal is told already.
            VerifyOutcome::Checked if row.outcome == RowOutcome::Locked => {
                row.rows_scanned = Some(object.rows);
                row.checked_by = Some(engine);
                None
            }
            VerifyOutcome::Checked => {
                row.rows_scanned = Some(object.rows);
                row.checked_by = Some(engine);
                row.rows_matched = Some(object.rows_matched);
                residue(object, undeclared).map(|found| {
                    let not_purged = row.reason.take().map(|reason| format!("; not purged: {reason}"));
                    row.outcome = RowOutcome::Residue;
                    row.reason = Some(format!("in a noncurrent version, {found}{}", not_purged.unwrap_or_default()));
                    Exit::Residue
                })
            }
            VerifyOutcome::Skipped { reason } => {
                row.outcome = RowOutcome::Skipped;
                row.reason = Some(reason.replace(&name, &row.location));
                Some(Exit::Incomplete)
            }
            VerifyOutcome::Failed { exit, reason } => {
                if row.outcome.is_clean() {
                    row.outcome = failed(*exit);
                    row.reason = Some(format!("not verified: {}", reason.replace(&name, &row.location)));
                }
                Some(*exit)
            }
        };
        self.exits.extend(exit);
    }
}

/// What was found in an object, if anything that counts as residue.
fn residue(object: &VerifiedObject, undeclared: bool) -> Option<String> {
    let mut found = Vec::new();
    if object.rows_matched > 0 {
        let (rows, holds) =
            (show::plural(object.rows, "row", "rows"), if object.rows_matched == 1 { "holds" } else { "hold" });
        found.push(format!("{} of {rows} {holds} a listed identifier", object.rows_matched));
    }
    found.extend(object.residues.words(undeclared).map(|words| format!("a listed identifier is in {words}")));
    if !object.residues.named.is_empty() {
        found.push("its name holds a listed identifier".to_owned());
    }
    (!found.is_empty()).then(|| found.join("; "))
}

/// Counts the strays that were replaced in an object, in its row and in `sums`; only a job that asks for it has such counts.
fn take_strays(
    row: &mut ObjectRow,
    sums: &mut BTreeMap<String, u64>,
    spec: &DatasetSpec,
    strays: &BTreeMap<String, u64>,
) {
    if spec.stray == Stray::Redact || !strays.is_empty() {
        *row.strays_redacted.get_or_insert(0) += strays.values().sum::<u64>();
    }
    for (column, cells) in strays {
        *sums.entry(column.clone()).or_default() += cells;
    }
}

fn counts(row: &mut ObjectRow, before: u64, removed: u64, after: u64) {
    row.rows_before = Some(before);
    row.rows_removed = Some(removed);
    row.rows_after = Some(after);
}

/// How the verified object differs from the one that was counted: another writer's content, or rows that one engine did not see.
/// The counts, which are of bytes that are no longer there or wrong, go.
fn take_difference(row: &mut ObjectRow, changed: bool, rows: u64) -> Option<Exit> {
    if changed {
        forget_counts(row);
        if row.outcome.is_clean() {
            row.outcome = RowOutcome::Changed;
            row.reason = Some("changed after this run had looked at it".to_owned());
        }
        return Some(Exit::Conflict);
    }
    let ours = row.rows_after.filter(|after| *after != rows)?;
    row.outcome = RowOutcome::Failed;
    row.reason = Some(format!("the engines disagree: {ours} rows counted, {rows} verified"));
    forget_counts(row);
    Some(Exit::Internal)
}

fn forget_counts(row: &mut ObjectRow) {
    (row.rows_before, row.rows_removed, row.rows_after) = (None, None, None);
}

/// The outcome that an object's failure amounts to.
fn failed(exit: Exit) -> RowOutcome {
    match exit {
        Exit::Incomplete => RowOutcome::Unreadable,
        Exit::Blocked => RowOutcome::Locked,
        Exit::Conflict => RowOutcome::Changed,
        Exit::Clean
        | Exit::Internal
        | Exit::Usage
        | Exit::Residue
        | Exit::Unavailable
        | Exit::Untrusted
        | Exit::Overdue
        | Exit::Refused
        | Exit::Interrupted
        | Exit::Terminated => RowOutcome::Failed,
    }
}
