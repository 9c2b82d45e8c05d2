//! A run and the request ledger: what a run compares with, and what it writes down before and after it removes anything.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::chain;
use crate::drop_answer::is_opted_out;
use crate::error::{Error, Exit, Result};
use crate::identifier::Kind;
use crate::job::{Job, LEDGER_URI, MatchRule};
use crate::ledger::{self, Anchor, Head, Ledger};
use crate::ledger_event::{Event, Fact, Text};
use crate::ledger_fold::{Holds, Mark, Request};
use crate::ledger_probe::{self, ProbeTable};
use crate::manifest::{LedgerRecord, NotCompared, REAPPEARANCES_TOLD, Reappearance, sha256_hex};
use crate::match_index::{Added, Tags};
use crate::plan::{self, Plan};
use crate::request::ListReport;
use crate::request_import::whole_microseconds;
use crate::signature::TagKey;
use crate::store::{self, Location, Object, Store, Stores};
use crate::verify::{self, Sightings, Verified};
use crate::verify_batch::Fault;

/// Opens the ledger for a job that has it as a list; `None` for any other job.
///
/// Errors: no ledger there (a list that is missing), requests under another key, a chain that does not fit or lost its end.
pub async fn open(job: &Job, stores: &Stores, key: &TagKey, now: Timestamp) -> Result<Option<Ledger>> {
    let Some(list) = &job.ledger else { return Ok(None) };
    let state = &job.state.location;
    let store = stores.of(state);
    let anchor = anchor(store.as_ref(), state).await?;
    let ledger = Ledger::open(store, state, key).await?;
    // First: one that is gone, though a run saw it, is no list that was never there.
    ledger.check_anchor(anchor.as_ref())?;
    if ledger.head().sequence == 0 {
        let name = &list.name;
        return Err(Error::usage(format!("list {name} is missing: there is no ledger at {}", ledger::folder(state)))
            .hint("`lakescrub requests import` or `lakescrub drop import` makes one, of a list without anybody, too"));
    }
    ledger.check_key(now)?;
    Ok(Some(ledger))
}

/// The last run that has the ledger in its manifest, and the ledger's head as it saw it. Read before the ledger is, what it names must
/// be there.
pub async fn anchor(store: &dyn Store, state: &Location) -> Result<Option<Anchor>> {
    let Some((run_id, predicate)) = chain::newest(store, state, |predicate| predicate["ledger"].is_object()).await?
    else {
        return Ok(None);
    };
    let anchor = &predicate["ledger"];
    let sequence = anchor["segments"].as_u64().unwrap_or(0);
    let digest = anchor["digest"].as_str().and_then(|text| hex::decode(text).ok());
    let digest = digest.and_then(|raw| raw.try_into().ok()).unwrap_or_default();
    Ok(Some(Anchor { run_id, head: Head { sequence, digest } }))
}

/// What is asked of each value: the tags of all requests that stand at `now`.
pub fn tags(ledger: &Ledger, key: Arc<TagKey>, now: Timestamp) -> Tags {
    ProbeTable::of(ledger, now).tags(key)
}

/// How many requests name somebody whose data stay by the exemption of another request.
pub fn held(ledger: &Ledger, now: Timestamp) -> u64 {
    let requests = ledger.requests();
    let holds = requests.holds(now);
    requests.iter().filter(|request| !requests.held_by(request, &holds).is_empty()).count() as u64
}

/// The kinds that some rule of the job compares with the ledger.
pub fn compared_kinds(job: &Job) -> BTreeSet<&'static str> {
    let of_rule = |rule: &MatchRule| match rule {
        MatchRule::Single(part) | MatchRule::Joined { whole: part, .. } => {
            part.list_column.is_none().then(|| part.kind.name())
        }
        MatchRule::All(_) => None,
    };
    job.datasets.iter().flat_map(|spec| &spec.rules).filter_map(of_rule).collect()
}

/// What the job's rules ask nothing of, in requests that stand.
pub fn not_compared(job: &Job, ledger: &Ledger, now: Timestamp) -> NotCompared {
    let (compared, requests) = (compared_kinds(job), ledger.requests());
    let mut not_compared = NotCompared::default();
    for request in requests.iter().filter(|request| request.is_suppressed(now)) {
        let kinds: BTreeSet<&str> = requests.identifiers(request).map(|identifier| &*identifier.kind).collect();
        let unasked = kinds.iter().filter(|kind| Kind::NAMES.contains(kind) && !compared.contains(*kind));
        unasked.for_each(|kind| *not_compared.by_kind.entry((*kind).to_owned()).or_default() += 1);
        not_compared.requests += u64::from(!kinds.is_empty() && kinds.is_disjoint(&compared));
    }
    not_compared
}

/// The ledger as one of the lists that were read.
pub fn report(job: &Job, ledger: &Ledger, now: Timestamp) -> Option<(ListReport, Added)> {
    let list = job.ledger.as_ref()?;
    let mut added = Added::default();
    for identifier in ledger.requests().suppressed(now) {
        // The number that a text stands for is no identifier of its own.
        if let Some(kind) = Kind::NAMES.iter().find(|name| ***name == *identifier.kind) {
            *added.identifiers.entry(kind).or_default() += 1;
        }
    }
    let head = ledger.head();
    let report = ListReport {
        name: list.name.clone(),
        uri: LEDGER_URI.to_owned(),
        files: 1,
        digest: head.digest_hex(),
        read_at: now,
        rows: ledger.requests().len() as u64,
        malformed: 0,
        blank: 0,
        bad: Vec::new(),
    };
    Some((report, added))
}

/// What one run writes into the ledger, and what it saw for it.
pub struct Book {
    ledger: Ledger,
    mark: Mark,
    /// As they were when the ledger was loaded; so are the requests that a match means, by their positions.
    holds: Holds,
    asked: Vec<bool>,
    run_id: Text,
    /// A run that never ended, which this one leaves to the next scrub: nobody can say yet what became of its plan.
    left_open: Option<Text>,
    now: Timestamp,
    /// By dataset of the job, then by object.
    seen: Vec<Vec<Seen>>,
    reappeared: BTreeSet<u32>,
    reappearances: Vec<Reappearance>,
    since_restore: Option<Timestamp>,
}

/// What one object holds of the ledger's requests.
struct Seen {
    location: Location,
    /// Of a noncurrent one.
    version_id: Option<String>,
    /// By request.
    held: BTreeMap<u32, Held>,
}

#[derive(Default)]
struct Held {
    rows: u64,
    consumers: BTreeSet<u64>,
}

/// What a run has left of a dataset.
pub struct Left {
    /// `false`: nothing of it was looked at.
    pub is_listed: bool,
    /// The objects and noncurrent versions, by their ids, that are as they were.
    pub objects: Vec<(Location, Option<String>)>,
    /// Those of them whose rows may not have been read.
    pub unread: Vec<Location>,
}

/// The rows of one dataset's objects, by request.
#[derive(Default)]
struct Sums {
    /// There is no object whose rows this run has not seen.
    sees_all: bool,
    seen: HashMap<u32, u64>,
    /// Those in objects that are as they were.
    left: HashMap<u32, u64>,
}

impl Sums {
    /// How many of the `planned` rows are gone. A plan of a killed attempt may count rows that this one has not seen: these are gone, too,
    /// if it has seen all that there is.
    fn gone(&self, request: u32, planned: u64) -> u64 {
        let of = |sums: &HashMap<u32, u64>| sums.get(&request).copied().unwrap_or(0);
        let all = if self.sees_all { planned } else { planned.min(of(&self.seen)) };
        all.saturating_sub(of(&self.left))
    }
}

/// What is needed to look into a dataset's objects once more.
pub struct Looking<'a> {
    pub job: &'a Job,
    pub stores: &'a Stores,
    pub lists: &'a verify::Lists,
    pub shown: plan::Shown<'a>,
}

impl Book {
    /// `ledger` as it was loaded, `now` as it was then.
    pub fn new(
        ledger: Ledger,
        (run_id, left_open): (&str, Option<&str>),
        now: Timestamp,
        since_restore: Option<Timestamp>,
    ) -> Book {
        let (mark, holds) = (ledger.requests().mark(now), ledger.requests().holds(now));
        let asked = ledger.requests().iter().map(|request| request.is_suppressed(now)).collect();
        Book {
            ledger,
            mark,
            holds,
            asked,
            run_id: run_id.into(),
            left_open: left_open.map(Text::from),
            now: whole_microseconds(now),
            seen: Vec::new(),
            reappeared: BTreeSet::new(),
            reappearances: Vec::new(),
            since_restore,
        }
    }

    /// Writes down what was decided, and so far only supposed, before anything was planned.
    pub async fn record_decided(&mut self, events: Vec<Event>) -> Result<()> {
        self.ledger.append(events).await.map(drop)
    }

    /// Writes down which rows the plan is about to remove, before anything is removed, and who is back. An object of which nobody can
    /// tell whose rows it holds is refused: what is not written down is not removed.
    pub async fn announce(&mut self, looking: &Looking<'_>, plan: &mut Plan) -> Result<()> {
        self.settle_earlier_runs(looking).await?;
        for number in 0..plan.datasets.len() {
            let dataset = &plan.datasets[number];
            let steps = dataset.steps.iter().filter(|step| !step.is_summary && step.rows_matched > 0);
            let objects: Vec<Object> = steps.map(|step| step.object.clone()).collect();
            // A version that is only reported stays: nothing of it is planned.
            let versions = dataset.versions.iter().flatten();
            let versions = versions.filter(|step| step.rows_matched > 0 && step.decision.changes());
            let versions: Vec<Object> = versions.map(|step| step.object.clone()).collect();
            let mut unknown = self.look(looking, number, objects, false).await;
            unknown.extend(self.look(looking, number, versions, true).await);
            for (object, fault) in unknown {
                let reason = format!("cannot tell whose rows it holds: {}", fault.reason);
                let shown = (looking.shown)(&looking.job.datasets[number], &object.location);
                let reason = reason.replace(&object.location.to_string(), &shown);
                plan.refuse(number, &object, fault.exit, &reason);
            }
        }
        let planned = self.planned(looking.job);
        let reappeared = self.came_back(looking).await;
        // Whoever writes behind the last segment has read it. What a killed attempt had announced is not written again.
        if self.ledger.append(planned).await?.events == 0 {
            self.ledger.catch_up().await?;
        }
        self.ledger.append(reappeared).await?;
        Ok(())
    }

    /// Refuses to go on when somebody whose rows are planned has opted in again, or is held, since the ledger was loaded.
    pub fn check_still_asked(&self) -> Result<()> {
        let requests = self.ledger.requests();
        let holds = requests.holds(self.now);
        let planned: BTreeSet<u32> = self.seen.iter().flatten().flat_map(|seen| seen.held.keys().copied()).collect();
        let is_asked = |number: &u32| {
            let request = requests.at(*number);
            request.is_suppressed(self.now)
                && requests.held_by(request, &holds) == requests.held_by(request, &self.holds)
        };
        match planned.iter().filter(|number| !is_asked(number)).count() {
            0 => Ok(()),
            requests => Err(Error::new(
                Exit::Conflict,
                format!("{requests} requests with rows to remove were withdrawn or exempted while the run was at work"),
            )
            .hint("run again: their rows stay then")),
        }
    }

    /// For a run that removes nothing: who is back in the objects that the verifier found rows in.
    pub async fn look_back(&mut self, looking: &Looking<'_>, verified: &Verified) -> Result<()> {
        self.settle_earlier_runs(looking).await?;
        for (number, dataset) in verified.datasets.iter().enumerate() {
            let objects = dataset.objects.iter().filter(|object| object.rows_matched > 0);
            let objects: Vec<Object> = objects.map(|object| object.object.clone()).collect();
            // What cannot be told apart is residue all the same.
            self.look(looking, number, objects, false).await;
        }
        let reappeared = self.came_back(looking).await;
        self.ledger.append(reappeared).await.map(drop)
    }

    /// Finds out which requests the rows of these objects mean; objects that were looked into before are left out. Gives back those of
    /// which it cannot be told.
    async fn look(
        &mut self,
        looking: &Looking<'_>,
        number: usize,
        mut objects: Vec<Object>,
        are_noncurrent: bool,
    ) -> Vec<(Object, Fault)> {
        self.seen.resize_with(looking.job.datasets.len(), Vec::new);
        let spec = &looking.job.datasets[number];
        let version_of = |object: &Object| object.version_id.clone().filter(|_| are_noncurrent);
        objects.retain(|object| {
            let is_same = |seen: &Seen| seen.location == object.location && seen.version_id == version_of(object);
            !self.seen[number].iter().any(is_same)
        });
        let mut unknown = Vec::new();
        let mut each = |object: Object, sighted| match sighted {
            Ok(verify::Sighted { sightings, .. }) => {
                let (held, version_id) = (self.held(&sightings), version_of(&object));
                self.seen[number].push(Seen { location: object.location, version_id, held });
            }
            Err(fault) => unknown.push((object, fault)),
        };
        let Looking { job, stores, lists, .. } = looking;
        verify::attribute(lists, job, stores, spec, spec.consumer_key.as_ref(), objects, &mut each).await;
        unknown
    }

    /// Rows and consumers by request. A row that holds several identifiers of one is one row of it.
    fn held(&self, sightings: &Sightings) -> BTreeMap<u32, Held> {
        let mut held: BTreeMap<u32, Held> = BTreeMap::new();
        let requests = self.ledger.requests();
        for (tags, sighting) in sightings {
            let meant = tags.iter().flat_map(|tag| requests.with_tag(tag.to_be_bytes()));
            let meant: BTreeSet<u32> = meant.filter(|number| self.asked.get(*number as usize) == Some(&true)).collect();
            for number in meant {
                let held = held.entry(number).or_default();
                held.rows += sighting.rows;
                held.consumers.extend(&sighting.consumers);
            }
        }
        held
    }

    /// One event for each request and dataset, with the rows of all objects so far.
    fn planned(&self, job: &Job) -> Vec<Event> {
        let mut events = Vec::new();
        for (spec, seen) in job.datasets.iter().zip(&self.seen) {
            let mut sums: BTreeMap<u32, Held> = BTreeMap::new();
            // A row of an old version is as a rule one of the current object, too: it counts where that has none.
            for are_noncurrent in [false, true] {
                let mut of_these: BTreeMap<u32, Held> = BTreeMap::new();
                let these = seen.iter().filter(|seen| seen.version_id.is_some() == are_noncurrent);
                for (number, held) in these.flat_map(|seen| &seen.held) {
                    let sum = of_these.entry(*number).or_default();
                    sum.rows += held.rows;
                    sum.consumers.extend(&held.consumers);
                }
                of_these.into_iter().for_each(|(number, held)| {
                    sums.entry(number).or_insert(held);
                });
            }
            let dataset: Text = spec.name.as_str().into();
            events.extend(sums.into_iter().map(|(number, held)| {
                let consumers = Some(held.consumers.len() as u64).filter(|count| *count > 0);
                let (dataset, run_id, rows) = (dataset.clone(), self.run_id.clone(), held.rows);
                self.event(number, Fact::Planned { dataset, run_id, rows, consumers })
            }));
        }
        events
    }

    fn event(&self, number: u32, fact: Fact) -> Event {
        let request_id = self.ledger.requests().at(number).id.clone();
        Event { recorded_at: self.now, request_id, fact }
    }

    /// Requests that were done with and match again, object by object: told by every run until they are gone, written down by the first.
    /// What this very run has planned is no return, and neither are the first rows of whom nothing was ever found.
    async fn came_back(&mut self, looking: &Looking<'_>) -> Vec<Event> {
        let (mut events, mut clean) = (Vec::new(), BTreeMap::new());
        let mut told: HashSet<String> = self.reappearances.iter().map(|known| known.object.clone()).collect();
        for (spec, seen) in looking.job.datasets.iter().zip(&self.seen) {
            for seen in seen.iter().filter(|seen| seen.version_id.is_none()) {
                let requests = self.ledger.requests();
                let shown = (looking.shown)(spec, &seen.location);
                let first = seen.held.iter().filter(|(number, _)| requests.at(**number).was_not_found());
                events.extend(first.map(|(number, held)| {
                    let (dataset, object): (Text, Text) = (spec.name.as_str().into(), shown.as_str().into());
                    self.event(*number, Fact::Found { dataset, run_id: self.run_id.clone(), object, rows: held.rows })
                }));
                let back: Vec<(&u32, &Held)> =
                    seen.held.iter().filter(|(number, _)| self.was_gone(requests.at(**number))).collect();
                if back.is_empty() || !told.insert(shown.clone()) {
                    continue;
                }
                let written_by = written_by(looking, &seen.location).await;
                if !clean.contains_key(&spec.name) {
                    clean.insert(spec.name.clone(), last_clean(looking, &spec.name).await);
                }
                let since = |number: &u32| clean[&spec.name].or_later(requests.at(*number).gone_at());
                let (dataset, object): (Text, Text) = (spec.name.as_str().into(), shown.as_str().into());
                for (number, held) in back.iter().filter(|(number, _)| requests.at(**number).reappeared_at.is_none()) {
                    let fact = Fact::Reappeared {
                        dataset: dataset.clone(),
                        run_id: self.run_id.clone(),
                        object: object.clone(),
                        rows: held.rows,
                        since: since(number),
                        written_by: written_by.as_deref().map(Text::from),
                    };
                    events.push(self.event(**number, fact));
                }
                let rows = back.iter().map(|(_, held)| held.rows).sum();
                tracing::warn!(object = shown, requests = back.len(), rows, "removed before and back");
                self.reappeared.extend(back.iter().map(|(number, _)| **number));
                self.reappearances.push(Reappearance {
                    dataset: spec.name.clone(),
                    object: shown,
                    requests: back.len() as u64,
                    request_ids: back
                        .iter()
                        .take(IDS_TOLD)
                        .map(|(number, _)| requests.at(**number).id.to_string())
                        .collect(),
                    rows,
                    // All of them were.
                    since: back.iter().filter_map(|(number, _)| since(number)).min(),
                    written_by,
                });
            }
        }
        events
    }

    /// Done with by another run than this one, and nothing recorded by this one yet.
    fn was_gone(&self, request: &Request) -> bool {
        let by_this_run = request
            .datasets
            .iter()
            .any(|(_, facts)| facts.removed_by.as_ref().is_some_and(|(run, _)| *run == self.run_id));
        request.was_done() && !by_this_run
    }

    /// What the manifest says of the ledger.
    pub fn record(&self, job: &Job) -> LedgerRecord {
        let head = self.ledger.head();
        LedgerRecord {
            segments: head.sequence,
            digest: head.digest_hex(),
            requests: self.ledger.requests().len() as u64,
            held: held(&self.ledger, self.now),
            opted_out: self.ledger.requests().iter().filter(|request| is_opted_out(request, self.now)).count() as u64,
            not_compared: not_compared(job, &self.ledger, self.now),
            reappeared: self.reappeared.len() as u64,
            reappearances: self.reappearances.iter().take(REAPPEARANCES_TOLD).cloned().collect(),
            since_restore: self.since_restore,
        }
    }

    /// Writes down what was removed, given what is left of each dataset, and who is verified clean.
    pub async fn close(&mut self, manifest_digest: &str, exit: Exit, job: &Job, left: &[Left]) -> Result<()> {
        let manifest_digest: Text = manifest_digest.into();
        let mut removed = Vec::new();
        let sums: Vec<Sums> = (0..job.datasets.len()).map(|place| self.sums(place, left.get(place))).collect();
        // A killed attempt saw rows of theirs where this one has not looked.
        let mut out_of_sight = BTreeSet::new();
        for (number, request) in self.ledger.requests().iter().enumerate() {
            for (dataset, facts) in &request.datasets {
                let Some(planned) = facts.planned.as_ref().filter(|planned| planned.run_id == self.run_id) else {
                    continue;
                };
                let place = job.datasets.iter().position(|spec| *spec.name == **dataset);
                if place.is_none() {
                    out_of_sight.insert(number as u32);
                }
                let rows = place.map_or(0, |place| sums[place].gone(number as u32, planned.rows));
                let fact = Fact::Removed {
                    dataset: dataset.clone(),
                    run_id: self.run_id.clone(),
                    rows,
                    consumers: planned.consumers,
                    manifest_digest: manifest_digest.clone(),
                };
                removed.push(self.event(number as u32, fact));
            }
        }
        self.ledger.append(removed).await?;
        if exit != Exit::Clean {
            return Ok(());
        }
        let requests = self.ledger.requests();
        // Any other plan without a manifest is void: its run ended before it had changed anything.
        let compared = compared_kinds(job);
        let is_compared = |request: &Request| requests.identifiers(request).any(|own| compared.contains(&*own.kind));
        let is_left_open =
            |request: &Request| self.left_open.as_ref().is_some_and(|run| request.has_plan_of(Some(run)));
        let unsaid = requests.asked_at(&self.mark).filter(|(number, request)| {
            let is_said = request.verified.is_some() && request.reappeared_at.is_none() && !request.has_plan_of(None);
            let is_unknown = is_left_open(request) || out_of_sight.contains(number) || !is_compared(request);
            !is_unknown && (!is_said || self.since_restore.is_some())
        });
        let verified: Vec<Event> = unsaid
            .map(|(number, _)| {
                let (run_id, manifest_digest) = (self.run_id.clone(), manifest_digest.clone());
                self.event(number, Fact::VerifiedClean { run_id, manifest_digest })
            })
            .collect();
        self.ledger.append(verified).await.map(drop)
    }

    /// For the next gate.
    pub async fn refresh_probe(&self, job: &Job, stores: &Stores, key: &TagKey) {
        let state = &job.state.location;
        ledger_probe::refresh(&stores.of(state), &self.ledger, state, key, self.now).await;
    }

    /// What this run has seen of a dataset, added up by request once for all of them.
    fn sums(&self, dataset: usize, left: Option<&Left>) -> Sums {
        let seen = || self.seen.get(dataset).into_iter().flatten();
        let locations: HashSet<&Location> = seen().map(|seen| &seen.location).collect();
        let sees_all = left.is_none_or(|left| left.is_listed && left.unread.iter().all(|at| locations.contains(at)));
        let left: HashSet<(&Location, &Option<String>)> = left
            .into_iter()
            .flat_map(|left| &left.objects)
            .map(|(location, version_id)| (location, version_id))
            .collect();
        let current = seen().filter(|seen| seen.version_id.is_none()).flat_map(|seen| seen.held.keys());
        let current: HashSet<u32> = current.copied().collect();
        let mut sums = Sums { sees_all, ..Sums::default() };
        for seen in seen() {
            let is_left = left.contains(&(&seen.location, &seen.version_id));
            for (request, held) in &seen.held {
                // Counted as [`Book::planned`] counts: the rows of old versions where no current object has any.
                if seen.version_id.is_none() == current.contains(request) {
                    *sums.seen.entry(*request).or_default() += held.rows;
                    *sums.left.entry(*request).or_default() += if is_left { held.rows } else { 0 };
                }
            }
        }
        sums
    }

    /// A run that was killed after its manifest and before its last word here has removed what the manifest says: all that it planned
    /// after a clean end, else no more than was removed from current objects.
    async fn settle_earlier_runs(&mut self, looking: &Looking<'_>) -> Result<()> {
        let state = &looking.job.state.location;
        let store = looking.stores.of(state);
        let mut manifests: BTreeMap<Text, Option<(Value, Text)>> = BTreeMap::new();
        let mut removed = Vec::new();
        for (number, request) in self.ledger.requests().iter().enumerate() {
            for (dataset, facts) in &request.datasets {
                let Some(planned) = facts.planned.as_ref().filter(|planned| planned.run_id != self.run_id) else {
                    continue;
                };
                if !manifests.contains_key(&planned.run_id) {
                    let there = chain::has_manifest(store.as_ref(), state, &planned.run_id).await?;
                    let manifest = match there {
                        true => Some(statement_and_digest(store.as_ref(), state, &planned.run_id).await?),
                        false => None,
                    };
                    manifests.insert(planned.run_id.clone(), manifest);
                }
                let Some((statement, digest)) = &manifests[&planned.run_id] else { continue };
                let records = statement["predicate"]["datasets"].as_array().into_iter().flatten();
                let record = records.into_iter().find(|record| record["name"] == **dataset);
                let count = |name: &str| record.map_or(0, |record| record["rows"][name].as_u64().unwrap_or(0));
                let rows = match statement["predicate"]["run"]["exit"].as_u64() {
                    Some(0) => planned.rows,
                    _ => planned.rows.min(count("removed") + count("redacted")),
                };
                let (dataset, run_id) = (dataset.clone(), planned.run_id.clone());
                let (consumers, manifest_digest) = (planned.consumers, digest.clone());
                let fact = Fact::Removed { dataset, run_id, rows, consumers, manifest_digest };
                removed.push(self.event(number as u32, fact));
            }
        }
        self.ledger.append(removed).await.map(drop)
    }
}

async fn statement_and_digest(store: &dyn Store, state: &Location, run_id: &str) -> Result<(Value, Text)> {
    let location = chain::run_folder(state, run_id).join(chain::STATEMENT_FILE);
    let (_, bytes) = store::read_whole(store, &location).await?;
    let statement = serde_json::from_slice(&bytes)
        .map_err(|_| Error::new(Exit::Untrusted, format!("{location} is no statement of a run")))?;
    Ok((statement, sha256_hex(&bytes).into()))
}

/// So many requests are told by id for an object.
const IDS_TOLD: usize = 20;

/// When the last run that ended clean listed a dataset, and so last saw nobody of the ledger in it.
enum LastClean {
    At(Timestamp),
    Never,
    /// There may have been one, and nobody can tell when.
    NotKnown,
}

impl LastClean {
    /// The later one of it and when somebody was gone; `None`: not known.
    fn or_later(&self, gone_at: Option<Timestamp>) -> Option<Timestamp> {
        match self {
            LastClean::At(at) => gone_at.max(Some(*at)),
            LastClean::Never => gone_at,
            LastClean::NotKnown => None,
        }
    }
}

async fn last_clean(looking: &Looking<'_>, dataset: &str) -> LastClean {
    let state = &looking.job.state.location;
    let record = |predicate: &Value| {
        let mut records = predicate["datasets"].as_array()?.iter();
        records.find(|record| record["name"] == dataset).cloned()
    };
    let is_clean = |predicate: &Value| {
        predicate["run"]["exit"] == 0 && predicate["ledger"].is_object() && record(predicate).is_some()
    };
    match chain::newest(looking.stores.of(state).as_ref(), state, is_clean).await {
        Ok(None) => LastClean::Never,
        Ok(Some((_, predicate))) => {
            let listed_at = record(&predicate).and_then(|record| record["listed_at"].as_str()?.parse().ok());
            listed_at.map_or(LastClean::NotKnown, |at| LastClean::At(whole_microseconds(at)))
        }
        Err(_) => LastClean::NotKnown,
    }
}

/// Names under which writers leave their own: the words that Airflow, Spark, dbt and people use.
const WRITERS: [&str; 8] = ["job", "writer", "written", "producer", "pipeline", "dag", "workflow", "loader"];

/// The job that wrote an object, if its user metadata or tags say so. A value that may hold an identifier is not told.
async fn written_by(looking: &Looking<'_>, location: &Location) -> Option<String> {
    let store = looking.stores.of(location);
    let object = store.head(location).await.ok()?;
    let labels = store.labels(&object).await.ok()?;
    let told = labels.chunks_exact(2).find(|pair| {
        let name = pair[0].to_lowercase();
        WRITERS.iter().any(|word| name.contains(word))
    })?;
    let value = &told[1];
    (names_a_job(value) && looking.lists.without_strays(value.as_bytes()).is_none()).then(|| value.clone())
}

/// Whether a text looks like the name of a job, and not like an address, a number that somebody is called by, or a hash.
fn names_a_job(text: &str) -> bool {
    let is_sign = |c: char| c.is_alphanumeric() || "-_./:+, #()".contains(c);
    let mut runs = text.split(|c: char| !c.is_ascii_alphanumeric());
    // Eight digits may be a day.
    let is_day = |run: &str| run.len() == 8 && run.starts_with("20");
    let is_number = |run: &str| run.len() >= 7 && run.bytes().all(|byte| byte.is_ascii_digit()) && !is_day(run);
    let is_hash = |run: &str| {
        run.len() >= 20
            && run.bytes().any(|byte| byte.is_ascii_digit())
            && run.bytes().any(|byte| byte.is_ascii_alphabetic())
    };
    text.len() <= 200 && text.chars().all(is_sign) && !runs.any(|run| is_number(run) || is_hash(run))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn rows_are_gone_that_were_planned_and_seen_and_are_not_left() {
        let sums = |sees_all| Sums { sees_all, seen: [(1, 5), (2, 3)].into(), left: [(2, 2)].into() };
        for (sees_all, request, planned, wish) in
            [(true, 1, 5, 5), (true, 1, 7, 7), (false, 1, 7, 5), (true, 2, 3, 1), (false, 2, 9, 1), (false, 3, 4, 0)]
        {
            assert_eq!(sums(sees_all).gone(request, planned), wish, "{sees_all} {request} {planned}");
        }
    }

    #[test]
    fn since_when_somebody_is_back_is_not_known_when_the_last_clean_run_is_not() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let last = |second| LastClean::At(at(second).unwrap());
        for (clean, gone_at, wish) in [
            (last(5), at(3), at(5)),
            (last(5), at(7), at(7)),
            (last(5), None, at(5)),
            (LastClean::Never, at(3), at(3)),
            (LastClean::NotKnown, at(3), None),
        ] {
            assert_eq!(clean.or_later(gone_at), wish, "{gone_at:?}");
        }
    }

    #[test]
    fn who_wrote_an_object_is_told_by_what_names_a_job() {
        for name in
            ["nightly_load", "airflow: customers/load #12", "load-20261101", "scheduled__2026-11-01T00:00:00+00:00"]
        {
            assert!(names_a_job(name), "{name}");
        }
        let hash = hex::encode(Sha256::digest("ann@x.org"));
        for other in ["ann@x.org", "4155559317", "+1 4155559317", "bob%40corp.org", &hash, &hash[..32]] {
            assert!(!names_a_job(other), "{other}");
        }
    }
}
