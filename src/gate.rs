//! The gate: newly landed objects are looked at before they are published.
//!
//! Wiring: finds with the rules of the dataset that an object is meant for, writes a small signed manifest, and says with exit code 4
//! that one holds a suppressed identifier. Reads only the objects it is given; nothing in them is changed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cli::{Common, print_error};
use crate::dataset::listing::{self, Listing};
use crate::error::{Error, Exit, Result};
use crate::find::{self, Find};
use crate::format::Compression;
use crate::identifier::{self, Kind, NORMALISER_VERSION, Value as Cell};
use crate::job::{DatasetSpec, Job, MatchRule, Scope, scope_of};
use crate::keys;
use crate::ledger;
use crate::ledger_probe;
use crate::ledger_run;
use crate::manifest::{GATE_TYPE, PAYLOAD_TYPE, STATEMENT_TYPE, sha256_hex};
use crate::match_index::{Builder, MatchIndex, Matcher};
use crate::meter::Meter;
use crate::plan::{Finding, Seen};
use crate::request;
use crate::request_id::percent_decoded;
use crate::run::{exit_json, print_json, print_lines, run_id};
use crate::session::{random, uses_s3};
use crate::show::{self, plural};
use crate::signature::TagKey;
use crate::store::{Location, Object, Precondition, Stores};

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
            _ => "not checked",
        }
    }

    fn line(&self) -> String {
        let counted = self.rows.zip(self.rows_matched);
        let counts = counted.map(|(rows, matched)| {
            let (rows, holds) = (plural(rows, "row", "rows"), if matched == 1 { "holds" } else { "hold" });
            format!("{matched} of {rows} {holds} a suppressed identifier")
        });
        format!("{}  {}  {}", self.outcome(), self.shown, self.reason.clone().or(counts).unwrap_or_default())
    }
}

/// Checks the objects that `uris` name.
pub async fn gate(common: &Common, path: &Path, uris: &[String], dataset: Option<&str>) -> Result<Exit> {
    let started = std::time::Instant::now();
    let job = Job::read(path, &common.set)?;
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
    let (index, lists) = load(&job, &stores, key.clone(), now).await?;
    let start_ms = started.elapsed().as_millis() as u64;
    let (mut judged, mut not_comparable) = (Vec::new(), NotComparable::new());
    for (candidates, (scope, uri)) in candidates.iter().zip(scopes.iter().zip(uris)) {
        for number in candidates {
            let meant = Meant { candidates, number: *number, scope, uri };
            judged.extend(judge(&job, &stores, &index, meant, &key, &mut not_comparable).await);
        }
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
        print_error(common, &error.hint("do not publish them; `lakescrub scrub` removes the rows where they are"));
    }
    Ok(exit)
}

fn subject(judged: &Judged) -> Option<Value> {
    let object = judged.object.as_ref()?;
    Some(json!({ "name": judged.shown, "digest": { "etag": object.etag.0 } }))
}

/// The datasets that objects may be meant for: the one named, those under whose folder they lie or that lie under theirs, or the only one.
fn datasets_of(job: &Job, scope: &Scope, named: Option<&str>) -> Result<Vec<usize>> {
    if let Some(name) = named {
        let number = job.datasets.iter().position(|spec| spec.name == name);
        let number = number.ok_or_else(|| Error::usage(format!("--dataset {name} is no dataset of the job")))?;
        return Ok(vec![number]);
    }
    let root = scope.root();
    let is_meant = |spec: &DatasetSpec| is_below(spec.scope.root(), root) || is_below(root, spec.scope.root());
    let meant: Vec<usize> = (0..job.datasets.len()).filter(|number| is_meant(&job.datasets[*number])).collect();
    match job.datasets.len() {
        _ if !meant.is_empty() => Ok(meant),
        1 => Ok(vec![0]),
        _ => Err(Error::usage(format!("{root} lies under no dataset of the job"))
            .hint("say --dataset NAME: its rules are those that the objects are looked at with")),
    }
}

fn is_below(outer: &Location, inner: &Location) -> bool {
    let (outer, inner) = (outer.to_string(), inner.to_string());
    inner == outer || inner.starts_with(&format!("{}/", outer.trim_end_matches('/')))
}

/// Objects to look at with the rules of dataset `number`, one of several that they may be meant for.
struct Meant<'a> {
    candidates: &'a [usize],
    number: usize,
    scope: &'a Scope,
    uri: &'a str,
}

/// Invariant: whatever is listed is taken by the rules of some candidate, or told by the first.
impl Meant<'_> {
    /// Whether an object is looked at with these rules: those of all datasets that it belongs to, and when it belongs to none, of all
    /// candidates that would list it.
    fn takes(&self, job: &Job, location: &Location, is_listed: bool) -> bool {
        let fits = |number: &usize| fits(&job.datasets[*number], location);
        fits(&self.number) || (is_listed && !self.candidates.iter().any(fits))
    }

    /// Whether an object that these rules do not take is to be told here: no candidate's rules take it.
    fn tells(&self, job: &Job, location: &Location) -> bool {
        let takes = |number: &usize| {
            let spec = &job.datasets[*number];
            let would_list = |name: &str| listing::belongs(name, spec.format);
            fits(spec, location) || listing::is_in_scope(self.scope, location, &would_list)
        };
        self.candidates.first() == Some(&self.number) && !self.candidates.iter().any(takes)
    }
}

fn fits(spec: &DatasetSpec, location: &Location) -> bool {
    let is_named = |name: &str| listing::belongs(name, spec.format);
    is_below(spec.scope.root(), location) && listing::is_in_scope(&spec.scope, location, &is_named)
}

/// All that is listed, and what the manifest says of the lists.
async fn load(job: &Job, stores: &Stores, key: Arc<TagKey>, now: Timestamp) -> Result<(Arc<MatchIndex>, Vec<Value>)> {
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
    let mut builder = Builder::new(&job.lists, &job.datasets, random()?).with_tags(tags);
    let reports = request::read_lists(job, stores, &|| now, &Meter::default(), &mut |entry| builder.add(entry)).await?;
    for report in reports {
        lists.push(json!({ "name": report.name, "uri": report.uri, "digest": report.digest, "rows": report.rows }));
    }
    Ok((Arc::new(builder.finish().0), lists))
}

/// Values that no rule could read, by dataset and column.
type NotComparable = BTreeMap<String, BTreeMap<String, u64>>;

/// Looks at the objects of a scope with the rules of one dataset.
async fn judge(
    job: &Job,
    stores: &Stores,
    index: &Arc<MatchIndex>,
    meant: Meant<'_>,
    key: &TagKey,
    not_comparable: &mut NotComparable,
) -> Vec<Judged> {
    let Meant { number, scope, uri, .. } = meant;
    let is_first = meant.candidates.first() == Some(&number);
    let mut spec = job.datasets[number].clone();
    let matcher = Arc::new(index.matcher(number, &spec));
    let store = stores.of(scope.root());
    let not_checked = |exit: Exit, reason: String| Judged {
        dataset: spec.name.clone(),
        shown: shown(key, &matcher, &spec, scope.root()),
        object: None,
        rows: None,
        rows_matched: None,
        exit,
        reason: Some(reason),
    };
    let belongs = |name: &str| listing::belongs(name, spec.format);
    let (objects, others) = match listing::list(store.as_ref(), scope, &belongs).await {
        Ok(Listing { in_scope, mut not_in_scope, .. }) => {
            not_in_scope.retain(|object| !is_marker(object));
            if is_first && in_scope.is_empty() && not_in_scope.is_empty() {
                return vec![not_checked(Exit::Incomplete, "no object matches".to_owned())];
            }
            let (mut objects, mut others) = (Vec::new(), Vec::new());
            let listed = in_scope.into_iter().map(|object| (object, true));
            for (object, is_listed) in listed.chain(not_in_scope.into_iter().map(|object| (object, false))) {
                if meant.takes(job, &object.location, is_listed) {
                    objects.push(object);
                } else if meant.tells(job, &object.location) {
                    others.push(object);
                }
            }
            (objects, others)
        }
        Err(_) if !is_first => return Vec::new(),
        Err(error) => {
            let name = scope.root().to_string();
            let reason = error.to_string().replace(&name, "it").replace(uri, "it");
            return vec![not_checked(error.exit(), reason)];
        }
    };
    // The folders on the way to an object that lies elsewhere may be partitions as well.
    if !objects.iter().all(|object| listing::is_in_scope(&spec.scope, &object.location, &belongs)) {
        spec.scope = Scope::Prefix(match scope.root() {
            Location::Local(_) => Location::Local("/".into()),
            Location::S3 { bucket, .. } => Location::S3 { bucket: bucket.clone(), key: String::new() },
        });
    }
    let find = Find {
        spec: &spec,
        store,
        matcher: matcher.clone(),
        resources: &job.resources,
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
    let mut judged: Vec<Judged> =
        found.findings.into_iter().map(|finding| judged(&spec, &matcher, key, finding)).collect();
    judged.sort_by(|a, b| a.shown.cmp(&b.shown));
    judged
}

/// Holds no rows: empty, or what Hadoop and Spark write beside data to say that it is whole.
fn is_marker(object: &Object) -> bool {
    let name = object.location.file_name();
    let is_checksum = name.starts_with('.') && name.ends_with(".crc");
    object.size_bytes == 0
        || name == "_SUCCESS"
        || name.starts_with("_committed_")
        || name.starts_with("_started_")
        || is_checksum
}

fn judged(spec: &DatasetSpec, matcher: &Matcher, key: &TagKey, finding: Finding) -> Judged {
    let shown = shown(key, matcher, spec, &finding.object.location);
    let name = finding.object.location.to_string();
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
    let in_name = shown != name && exit != Exit::Residue;
    let (exit, reason) = match in_name {
        true => (Exit::Residue, Some("its name holds a suppressed identifier".to_owned())),
        false => (exit, reason),
    };
    let dataset = spec.name.clone();
    Judged { dataset, shown, object: Some(finding.object), rows, rows_matched, exit, reason }
}

/// An object's name with a tag in place of every segment that holds a suppressed identifier of a distinctive kind, or is the value of
/// a partition that does.
fn shown(key: &TagKey, matcher: &Matcher, spec: &DatasetSpec, location: &Location) -> String {
    let partitions = listing::partitions(spec.scope.root(), location);
    let is_listed = |text: &str| matcher.columns.iter().any(|column| matcher.matches(column, Cell::Text(text)));
    let is_distinctive = spec.rules.iter().flat_map(MatchRule::parts).any(|part| match part.kind {
        Kind::Email | Kind::Phone | Kind::PhoneE164 { .. } | Kind::Maid | Kind::Uuid | Kind::Vin => true,
        Kind::Ip
        | Kind::Integer
        | Kind::Text
        | Kind::Zip
        | Kind::Name
        | Kind::Date { .. }
        | Kind::Ctvid
        | Kind::Ndz
        | Kind::NameVin => false,
    });
    let name = location.to_string();
    let hidden = |segment: &str| {
        let plain = percent_decoded(segment);
        let value = plain.split_once('=').map_or(plain.as_str(), |(_, value)| value);
        let in_partition = partitions.iter().any(|(_, of)| (of == value || segment.ends_with(of)) && is_listed(of));
        in_partition || (is_distinctive && words(&plain).any(|word| is_listed(word) || is_listed(stem(word))))
    };
    let segments: Vec<String> = name
        .split('/')
        .map(|segment| match hidden(segment) {
            true => format!("tag-{}", &key.tag("name", &Sha256::digest(segment).into())[..16]),
            false => segment.to_owned(),
        })
        .collect();
    segments.join("/")
}

/// What may be an identifier in a name: what stands between other signs, and what stands between any two of the underscores therein.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let pieces = text.split(|c: char| !(c.is_alphanumeric() || "@.+-_".contains(c)));
    let within = |piece: &'_ str| {
        let inner = piece.match_indices('_').map(|(at, _)| at).take(UNDERSCORES_MAX);
        let ends: Vec<usize> = inner.chain([piece.len()]).collect();
        let starts: Vec<usize> = std::iter::once(0).chain(ends.iter().map(|end| end + 1)).collect();
        starts.into_iter().flat_map(move |start| ends.clone().into_iter().map(move |end| (start, end)))
    };
    let between = move |piece| within(piece).filter_map(move |(start, end)| piece.get(start..end));
    pieces.flat_map(between).filter(|word| word.len() > 4)
}

/// A name with more of them has the others in its words.
const UNDERSCORES_MAX: usize = 12;

/// Without the endings that tell format and compression.
fn stem(word: &str) -> &str {
    let endings = [".gz", ".zst", ".parquet", ".csv", ".tsv", ".ndjson", ".jsonl", ".json"];
    endings.iter().find_map(|ending| word.strip_suffix(ending)).map_or(word, stem)
}
