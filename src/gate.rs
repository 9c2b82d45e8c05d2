//! The gate: newly landed objects are looked at before they are published.
//!
//! Wiring: finds with the rules of every dataset that an object belongs to, writes a small signed manifest, and says with exit code 4
//! that one holds a suppressed identifier. Reads only the objects it is given; nothing in them is changed. Which objects these are is
//! decided in [`gate_scope`], what their names hold in [`gate_names`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cli::{Common, print_error};
use crate::error::{Error, Exit, Result};
use crate::find::{self, Find};
use crate::format::Compression;
use crate::gate_names::{self, Names};
use crate::gate_scope::{self, Share, datasets_of};
use crate::identifier::{self, NORMALISER_VERSION};
use crate::job::{DatasetSpec, Job, Scope, scope_of};
use crate::keys;
use crate::ledger;
use crate::ledger_probe;
use crate::ledger_run;
use crate::manifest::{GATE_TYPE, PAYLOAD_TYPE, STATEMENT_TYPE, sha256_hex};
use crate::match_index::{Builder, MatchIndex, Matcher};
use crate::meter::Meter;
use crate::plan::{Finding, Seen};
use crate::request;
use crate::run::{exit_json, print_json, print_lines, run_id};
use crate::session::{random, uses_s3};
use crate::show::{self, plural};
use crate::signature::TagKey;
use crate::store::{Location, Object, Precondition, Stores};
use crate::tag;

/// What the gate says of one object.
struct Judged {
    dataset: String,
    /// As it may be shown.
    shown: String,
    object: Option<Object>,
    rows: Option<u64>,
    rows_matched: Option<u64>,
    exit: Exit,
    reason: Option<String>,
    /// Lies where the dataset's objects lie, so that a scrub comes to it.
    is_in_dataset: bool,
}

impl Judged {
    fn json(&self) -> Value {
        let object = self.object.as_ref();
        json!({
            "object": self.shown,
            "dataset": self.dataset,
            "etag": object.map(|object| object.etag.0.as_str()),
            "version_id": object.and_then(|object| object.version_id.as_deref()),
            "size_bytes": object.map(|object| object.size_bytes),
            "rows": self.rows,
            "rows_matched": self.rows_matched,
            "outcome": self.outcome(),
            "reason": self.reason,
        })
    }

    fn outcome(&self) -> &'static str {
        match self.exit {
            Exit::Clean => "clean",
            Exit::Residue => "suppressed",
            Exit::Internal
            | Exit::Usage
            | Exit::Incomplete
            | Exit::Blocked
            | Exit::Conflict
            | Exit::Unavailable
            | Exit::Untrusted
            | Exit::Overdue
            | Exit::Refused
            | Exit::Interrupted
            | Exit::Terminated => "not checked",
        }
    }

    fn line(&self) -> String {
        let counted = self.rows.zip(self.rows_matched);
        let counts = counted.map(|(rows, matched)| {
            let (rows, holds) = (plural(rows, "row", "rows"), if matched == 1 { "holds" } else { "hold" });
            format!("{matched} of {rows} {holds} a suppressed identifier")
        });
        let told: Vec<String> = counts.into_iter().chain(self.reason.clone()).collect();
        format!("{}  {}  {}", self.outcome(), self.shown, told.join("; "))
    }
}

/// Checks the objects that `uris` name.
pub async fn gate(common: &Common, path: &Path, uris: &[String], dataset: Option<&str>) -> Result<Exit> {
    let started = std::time::Instant::now();
    let job = Job::read(path, &common.set)?;
    job.check_datasets()?;
    // The verifier, whose own test takes as long as all the rest of a start, is not asked here.
    identifier::self_test()
        .map_err(|reason| Error::internal(format!("the self-test of the normaliser failed: {reason}")))?;
    let now = common.now.unwrap_or_else(Timestamp::now);
    let signing_key = keys::load_signing_key(&job.state.signing_key)?;
    let key = Arc::new(keys::load_tag_key(&job.state.tag_key)?);
    let scopes = uris.iter().map(|uri| scope_of(uri)).collect::<Result<Vec<Scope>>>()?;
    let needs_s3 = uses_s3(&job) || scopes.iter().any(|scope| matches!(scope.root(), Location::S3 { .. }));
    let stores = Stores::open(&job.s3, job.resources.requests_in_flight, needs_s3).await?;
    let candidates = scopes.iter().map(|scope| datasets_of(&job, scope, dataset)).collect::<Result<Vec<_>>>()?;
    let datasets = gate_names::datasets(&job);
    let (index, lists) = load(&job, &datasets, &stores, key.clone(), now).await?;
    let start_ms = started.elapsed().as_millis() as u64;
    let (mut judged, mut not_comparable) = (Vec::new(), NotComparable::new());
    let gate = Gate { job: &job, stores: &stores, index, datasets: &datasets, key: &key };
    for (candidates, (scope, uri)) in candidates.iter().zip(scopes.iter().zip(uris)) {
        judged.extend(gate.judge(candidates, scope, uri, &mut not_comparable).await);
    }
    let exit = Exit::gravest(judged.iter().map(|judged| judged.exit));
    let id = run_id(now)?;
    let objects: Vec<Value> = judged.iter().map(Judged::json).collect();
    let statement = json!({
        "_type": STATEMENT_TYPE,
        "subject": judged.iter().filter_map(subject).collect::<Vec<_>>(),
        "predicateType": GATE_TYPE,
        "predicate": {
            "run": {
                "id": id,
                "at": now,
                "exit": exit.code(),
                "tool": { "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") },
                "job": { "name": job.name, "digest": job.digest },
            },
            "lists": lists,
            "normaliser": { "version": NORMALISER_VERSION, "self_test": "passed" },
            "objects": objects,
            "not_comparable": not_comparable,
            "verdict": if exit == Exit::Clean { "clean" } else if exit == Exit::Residue { "suppressed" } else { "incomplete" },
        },
    });
    let payload = serde_json::to_vec(&statement).map_err(|_| Error::internal("a gate's statement is no JSON"))?;
    let location = job.state.location.join("gate").join(&format!("{id}.dsse.json"));
    let envelope = signing_key.seal(PAYLOAD_TYPE, &payload).to_bytes();
    stores.of(&location).put(&location, envelope.into(), Precondition::Absent).await?;
    if common.json {
        print_json(&json!({
            "command": "gate",
            "exit": exit_json(exit),
            "start_ms": start_ms,
            "lists": lists,
            "objects": objects,
            "not_comparable": not_comparable,
            "manifest": { "location": location.to_string(), "digest": sha256_hex(&payload) },
        }))?;
    } else {
        let mut lines: Vec<String> = judged.iter().map(Judged::line).collect();
        lines.extend(not_comparable.iter().flat_map(|(dataset, columns)| {
            columns.iter().map(|(column, count)| show::not_comparable(dataset, column, *count))
        }));
        lines.push(format!("manifest  {location}"));
        print_lines(&lines)?;
    }
    if exit == Exit::Residue {
        let held = judged.iter().filter(|judged| judged.exit == Exit::Residue).count();
        let (all, holds) = (plural(judged.len() as u64, "object", "objects"), if held == 1 { "holds" } else { "hold" });
        let error = Error::new(exit, format!("{held} of {all} {holds} a suppressed identifier"));
        print_error(common, &error.hint(hint(&judged)));
    }
    Ok(exit)
}

/// What to do with those that hold a suppressed identifier: a scrub comes only to what lies in a dataset.
fn hint(judged: &[Judged]) -> &'static str {
    let mut held = judged.iter().filter(|judged| judged.exit == Exit::Residue);
    match held.all(|judged| judged.is_in_dataset) {
        true => "do not publish them; `lakescrub scrub` removes the rows where they are",
        false => {
            "do not publish them: no scrub comes to what lies in no dataset of the job. Have them written anew without these people, \
             or make their folder a [[dataset]] and scrub it"
        }
    }
}

fn subject(judged: &Judged) -> Option<Value> {
    let object = judged.object.as_ref()?;
    Some(json!({ "name": judged.shown, "digest": { "etag": object.etag.0 } }))
}

/// All that is listed, and what the manifest says of the lists.
async fn load(
    job: &Job,
    datasets: &[DatasetSpec],
    stores: &Stores,
    key: Arc<TagKey>,
    now: Timestamp,
) -> Result<(Arc<MatchIndex>, Vec<Value>)> {
    let mut lists = Vec::new();
    let tags = match &job.ledger {
        None => None,
        Some(list) => {
            let state = &job.state.location;
            let anchor = ledger_run::anchor(stores.of(state).as_ref(), state).await?;
            let probe = ledger_probe::load(stores.of(state), state, &key, now, anchor.as_ref()).await?;
            let probe = probe.ok_or_else(|| {
                let (name, folder) = (&list.name, ledger::folder(state));
                Error::usage(format!("list {name} is missing: there is no ledger at {folder}"))
                    .hint("`lakescrub requests import` makes one")
            })?;
            let (segments, digest) = (probe.head.sequence, probe.head.digest_hex());
            lists.push(json!({ "name": list.name, "uri": "ledger", "digest": digest, "segments": segments }));
            Some(probe.tags(key))
        }
    };
    let mut builder = Builder::new(&job.lists, datasets, random()?).with_tags(tags);
    let reports = request::read_lists(job, stores, &|| now, &Meter::default(), &mut |entry| builder.add(entry)).await?;
    for report in reports {
        lists.push(json!({ "name": report.name, "uri": report.uri, "digest": report.digest, "rows": report.rows }));
    }
    Ok((Arc::new(builder.finish().0), lists))
}

/// Values that no rule could read, by dataset and column.
type NotComparable = BTreeMap<String, BTreeMap<String, u64>>;

/// What objects are looked at with.
struct Gate<'a> {
    job: &'a Job,
    stores: &'a Stores,
    index: Arc<MatchIndex>,
    /// Those that the index was made for, see [`gate_names::datasets`].
    datasets: &'a [DatasetSpec],
    key: &'a TagKey,
}

/// One dataset's rules for the objects of a scope.
struct Looker<'a> {
    spec: &'a DatasetSpec,
    matcher: Arc<Matcher>,
    names: Names<'a>,
    key: &'a TagKey,
}

impl Gate<'_> {
    /// Looks at the objects of a scope with the rules of the `candidates`, by number.
    async fn judge(
        &self,
        candidates: &[usize],
        scope: &Scope,
        uri: &str,
        not_comparable: &mut NotComparable,
    ) -> Vec<Judged> {
        let specs: Vec<&DatasetSpec> = candidates.iter().map(|number| &self.job.datasets[*number]).collect();
        let not_checked = |exit: Exit, reason: String| {
            let spec = specs[0];
            let looker = self.looker(candidates[0], spec);
            let shown = tag::shown(Some(self.key), &scope.root().to_string(), &looker.names.named(scope.root()));
            vec![Judged {
                dataset: spec.name.clone(),
                shown,
                object: None,
                rows: None,
                rows_matched: None,
                exit,
                reason: Some(reason),
                is_in_dataset: false,
            }]
        };
        // Once for all of them: of two listings one may fail, or show what the other does not.
        let listed = match gate_scope::list(self.stores.of(scope.root()).as_ref(), scope).await {
            Ok(listed) => listed,
            Err(error) => {
                let reason = error.to_string().replace(&scope.root().to_string(), "it").replace(uri, "it");
                return not_checked(error.exit(), reason);
            }
        };
        let mut judged = Vec::new();
        for (number, share) in candidates.iter().zip(gate_scope::divide(scope, listed, &specs)) {
            judged.extend(self.look(*number, scope, share, not_comparable).await);
        }
        match judged.is_empty() {
            true => not_checked(Exit::Incomplete, "no object matches".to_owned()),
            false => judged,
        }
    }

    fn looker<'a>(&'a self, number: usize, spec: &'a DatasetSpec) -> Looker<'a> {
        let matcher = Arc::new(self.index.matcher(number, spec));
        let names = Names::new(&self.index, self.datasets, spec, matcher.clone());
        Looker { spec, matcher, names, key: self.key }
    }

    /// Looks at a dataset's share of what was listed.
    async fn look(
        &self,
        number: usize,
        scope: &Scope,
        share: Share,
        not_comparable: &mut NotComparable,
    ) -> Vec<Judged> {
        let own = &self.job.datasets[number];
        let mut spec = own.clone();
        let Share { objects, others } = share;
        // The folders on the way to an object that lies elsewhere may be partitions as well.
        if !objects.iter().all(|object| gate_scope::is_of(own, &object.location)) {
            spec.scope = Scope::Prefix(match scope.root() {
                Location::Local(_) => Location::Local("/".into()),
                Location::S3 { bucket, .. } => Location::S3 { bucket: bucket.clone(), key: String::new() },
            });
        }
        let looker = self.looker(number, &spec);
        let find = Find {
            spec: &spec,
            store: self.stores.of(scope.root()),
            matcher: looker.matcher.clone(),
            resources: &self.job.resources,
            meter: Arc::new(Meter::default()),
            known: None,
        };
        let mut found = find::look(&find, objects).await;
        // What is published with the others was looked at, or is told.
        found.findings.extend(others.into_iter().map(|object| {
            let reason = format!("by its name it is no object of dataset {}: not looked at", spec.name);
            Finding::new(object, None, Compression::None, Seen::Failed { exit: Exit::Incomplete, reason })
        }));
        for (column, count) in found.not_comparable {
            *not_comparable.entry(spec.name.clone()).or_default().entry(column).or_default() += count;
        }
        let judge = |finding: Finding| {
            let is_in_dataset = gate_scope::is_of(own, &finding.object.location);
            looker.judged(finding, is_in_dataset)
        };
        let mut judged: Vec<Judged> = found.findings.into_iter().map(judge).collect();
        judged.sort_by(|a, b| a.shown.cmp(&b.shown));
        judged
    }
}

impl Looker<'_> {
    fn judged(&self, finding: Finding, is_in_dataset: bool) -> Judged {
        let name = finding.object.location.to_string();
        let named = self.names.named(&finding.object.location);
        let shown = tag::shown(Some(self.key), &name, &named);
        let lacks: Vec<String> = finding.lacks.iter().map(ToString::to_string).collect();
        let lacking = (!lacks.is_empty()).then(|| format!("lacks match column {}", lacks.join(", ")));
        let (rows, rows_matched, exit, reason) = match finding.seen {
            Seen::Rows { rows, matched } => {
                let exit = match (matched.is_empty(), &lacking) {
                    (false, _) => Exit::Residue,
                    (true, Some(_)) => Exit::Incomplete,
                    (true, None) => Exit::Clean,
                };
                (Some(rows), Some(matched.len()), exit, lacking.filter(|_| exit == Exit::Incomplete))
            }
            Seen::Skipped => (None, None, Exit::Incomplete, lacking),
            Seen::Failed { exit, reason } => (None, None, exit, Some(reason.replace(&name, "it"))),
        };
        let (exit, reason) = match (named.iter().any(|named| named.is_certain), named.is_empty()) {
            (true, _) if exit != Exit::Residue => {
                (Exit::Residue, Some("its name holds a suppressed identifier".to_owned()))
            }
            // As a scrub would: it may be a part of another person's, so that it is hidden and stops nothing.
            (false, false) => {
                (exit, Some(reason.unwrap_or_else(|| "its name may hold a suppressed identifier".to_owned())))
            }
            (true, _) | (false, true) => (exit, reason),
        };
        let dataset = self.spec.name.clone();
        Judged { dataset, shown, object: Some(finding.object), rows, rows_matched, exit, reason, is_in_dataset }
    }
}
