//! What a command on a job stands on: the job, its stores, the ledger, the clock and the wish to stop; and the stages that write
//! nothing, as every command runs them.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use jiff::Timestamp;

use crate::account;
use crate::action::{Action, Redaction};
use crate::cli::Common;
use crate::drop_consumers::{self, Withheld};
use crate::error::{Error, Exit, Result};
use crate::find::{self, Find};
use crate::format::{Compression, Format};
use crate::identifier;
use crate::job::{Job, Scope};
use crate::keys;
use crate::ledger::Ledger;
use crate::ledger_event::Text;
use crate::ledger_run::{self, Book};
use crate::manifest::{NotCompared, StageName};
use crate::match_index::{Added, Builder, MatchIndex};
use crate::plan::{self, Finding, Found, Plan};
use crate::progress::Progress;
use crate::request::{self, ListReport};
use crate::residue::Residues;
use crate::signature::SigningKey;
use crate::store::{ConditionalWrites, Location, Stores};
use crate::verify::{self, Verified};
use crate::verify_batch::Fault;

/// What the time is: the system's, the one `--now` names, or a test's.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What every command on a job starts from.
pub struct Session {
    pub job: Job,
    pub stores: Stores,
    pub common: Common,
    pub clock: Clock,
    pub progress: Progress,
    pub stop: Stop,
    /// As it was loaded, and when; `None` for a job without it.
    pub ledger: Option<(Ledger, Timestamp)>,
    /// DROP work items that this run leaves alone, and what it has looked into to know which.
    pub withheld: Withheld,
    /// A backup was restored: what was removed since then is expected to be back.
    pub since_restore: Option<Timestamp>,
}

/// The lists' identifiers, what was read of each list, and the lists as the verifier reads them by itself.
pub type Loaded = (Arc<MatchIndex>, Vec<(ListReport, Added)>, verify::Lists);

/// Which signal asked the run to stop: 0, or the exit code it means.
#[derive(Clone, Default)]
pub struct Stop {
    asked: Arc<AtomicU8>,
    bell: Arc<tokio::sync::Notify>,
}

impl Stop {
    /// Listens for SIGINT and SIGTERM; the second one ends the process at once.
    pub fn listen() -> Result<Stop> {
        use tokio::signal::unix::{SignalKind, signal};
        let stop = Stop::default();
        for (kind, exit) in [(SignalKind::interrupt(), Exit::Interrupted), (SignalKind::terminate(), Exit::Terminated)]
        {
            let mut signals =
                signal(kind).map_err(|error| Error::internal(format!("cannot listen for signals: {error}")))?;
            let stop = stop.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if stop.asked.swap(exit.code(), Ordering::SeqCst) != 0 {
                        std::process::exit(i32::from(exit.code()));
                    }
                    tracing::warn!("stopping after what has begun; a second signal stops at once");
                    stop.bell.notify_waiters();
                }
            });
        }
        Ok(stop)
    }

    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst) != 0
    }

    pub fn error(&self) -> Error {
        let exit = if self.asked.load(Ordering::SeqCst) == Exit::Terminated.code() {
            Exit::Terminated
        } else {
            Exit::Interrupted
        };
        Error::new(exit, "interrupted; the journal is whole").hint("run again to resume")
    }

    /// `work`, unless a stop is asked for first: for stages that write nothing.
    pub async fn unless<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let bell = self.bell.notified();
        tokio::pin!(bell);
        bell.as_mut().enable();
        if self.is_asked() {
            return Err(self.error());
        }
        tokio::select! {
            done = work => done,
            () = bell => Err(self.error()),
        }
    }
}

impl Session {
    pub async fn open(common: &Common, path: &Path) -> Result<Session> {
        // An empty `LAKESCRUB_SET` is none.
        let set: Vec<String> = common.set.iter().filter(|set| !set.is_empty()).cloned().collect();
        let job = Job::read(path, &set)?;
        job.check_datasets()?;
        for key in [&job.state.signing_key, &job.state.tag_key] {
            keys::open_to_others(key).into_iter().for_each(|warning| tracing::warn!("{warning}"));
        }
        let stop = Stop::listen()?;
        let stores = Stores::open(&job.s3, job.resources.requests_in_flight, uses_s3(&job)).await?;
        let now = common.now;
        Session::with(common, job, stores, Arc::new(move || now.unwrap_or_else(Timestamp::now)), stop)
    }

    pub fn with(common: &Common, job: Job, stores: Stores, clock: Clock, stop: Stop) -> Result<Session> {
        self_test()?;
        let progress = Progress::new(common.shows_progress());
        Ok(Session {
            job,
            stores,
            common: common.clone(),
            clock,
            progress,
            stop,
            ledger: None,
            since_restore: None,
            withheld: Withheld::default(),
        })
    }

    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// What is compared with, for a run that removes or plans to: without the DROP work items whose identifier leads to several
    /// consumers or to nobody knows how many.
    pub async fn load_to_remove(&mut self) -> Result<Loaded> {
        let loaded = self.load().await?;
        let has_key = self.job.datasets.iter().any(|spec| spec.consumer_key.is_some());
        let Some((ledger, now)) = self.ledger.as_ref().filter(|_| has_key) else { return Ok(loaded) };
        let looking = drop_consumers::withheld(&self.job, &self.stores, &loaded.2, ledger.requests(), *now);
        self.withheld = self.stop.unless(looking).await?;
        let withheld = &self.withheld;
        if withheld.is_empty() {
            return Ok(loaded);
        }
        let (several, undecided) = (withheld.several.len(), withheld.undecided.len());
        tracing::warn!(
            several,
            undecided,
            "work items that lead to several consumers, or of which these could not be counted, are left alone"
        );
        let ids = withheld.ids();
        // The very ledger whose work items were counted: what has come in since then was counted by nobody.
        let ledger = self.ledger.take();
        self.load_with(ledger, &ids).await
    }

    /// Refuses to go on when objects with rows to remove came or changed since their consumers were counted.
    pub fn check_counted(&self, found: &[Found]) -> Result<()> {
        for (spec, found) in self.job.datasets.iter().zip(found) {
            let (objects, name) = (self.withheld.uncounted(&spec.name, &found.findings), &spec.name);
            if objects > 0 {
                return Err(Error::new(
                    Exit::Conflict,
                    format!(
                        "dataset {name}: {objects} objects changed while consumers were counted; nothing was written"
                    ),
                )
                .hint("run again when their writer has finished"));
            }
        }
        Ok(())
    }

    /// The lists' identifiers, what was read of each list, and the lists as the verifier reads them by itself.
    pub async fn load(&mut self) -> Result<Loaded> {
        self.load_with(None, &BTreeSet::new()).await
    }

    /// [`Session::load`] with the ledger as it was `opened` before. Its requests that are `withheld`, by id, are as if exempted.
    async fn load_with(&mut self, opened: Option<(Ledger, Timestamp)>, withheld: &BTreeSet<Text>) -> Result<Loaded> {
        let stage = self.progress.begin(StageName::Load);
        let now = opened.as_ref().map_or_else(|| self.now(), |(_, now)| *now);
        let (ledger, tags, ahead) = match &self.job.ledger {
            None => (None, None, None),
            Some(_) => {
                let key = Arc::new(keys::load_tag_key(&self.job.state.tag_key)?);
                let (mut ledger, ahead) = match opened {
                    Some((ledger, _)) => (Some(ledger), None),
                    None => {
                        let opening = ledger_run::open(&self.job, &self.stores, &key, now);
                        // The verifier reads it by itself at the same time. What it cannot read it is asked for again, once the ledger is believed.
                        let reading = verify::read_ledger(&self.job, &self.stores, now, withheld);
                        let both = async { Ok(tokio::join!(opening, reading)) };
                        let (ledger, ahead) = self.stop.unless(both).await?;
                        (ledger?, ahead.unwrap_or(None))
                    }
                };
                if let Some(ledger) = &mut ledger {
                    ledger.suppose(&self.withheld.supposed(now));
                }
                let tags = ledger.as_ref().map(|ledger| ledger_run::tags(ledger, key, now));
                (ledger, tags, ahead)
            }
        };
        let end = ledger.as_ref().map(|ledger| verify::LedgerEnd {
            sequence: ledger.head().sequence,
            at: now,
            withheld: withheld.clone(),
            ahead,
        });
        let builder = Builder::new(&self.job.lists, &self.job.datasets, random()?);
        let mut builder = builder.with_tags(tags);
        let clock = || self.now();
        let mut each = |entry: request::Entry<'_>| builder.add(entry);
        let reading = request::read_lists(&self.job, &self.stores, &clock, &stage.meter, &mut each);
        let again = verify::read_lists_up_to(&self.job, &self.stores, &clock, end);
        // Side by side, and the first one's errors count: the second leaves it to that to say what is wrong with a list.
        let both = async { Ok(tokio::join!(reading, again)) };
        let (reports, verifier_lists) = self.stop.unless(both).await?;
        let (reports, verifier_lists) = (reports?, verifier_lists?);
        let mut pairs = reports.iter().zip(verifier_lists.read());
        if let Some(list) = pairs.find(|(report, again)| report.digest != again.digest).map(|(report, _)| &report.name)
        {
            return Err(Error::new(
                Exit::Conflict,
                format!("list {list} changed while it was read; nothing was written"),
            )
            .hint("run again when its writer has finished"));
        }
        let (index, mut added) = builder.finish();
        let index = Arc::new(index);
        self.progress.end(stage);
        for ((report, added), list) in reports.iter().zip(&added).zip(&self.job.lists) {
            if added.identifiers.values().sum::<u64>() == 0 && added.duplicates == 0 && added.let_go == 0 {
                tracing::warn!(list = report.name, uri = list.uri, "list holds no identifier");
            }
            if report.blank > 0 {
                tracing::warn!(list = report.name, rows = report.blank, "list has rows without an identifier");
            }
            account::let_go(report, added).into_iter().for_each(|sentence| tracing::warn!("{sentence}"));
        }
        let unlisted = self.job.datasets.iter().flat_map(|spec| account::unlisted_kinds(&self.job, spec));
        unlisted.for_each(|sentence| tracing::warn!("{sentence}"));
        let uncompared = ledger.as_ref().map(|ledger| ledger_run::not_compared(&self.job, ledger, now));
        uncompared.iter().flat_map(NotCompared::sentences).for_each(|sentence| tracing::warn!("{sentence}"));
        let held = ledger.as_ref().map_or(0, |ledger| ledger_run::held(ledger, now));
        if held > 0 {
            let requests = held;
            tracing::warn!(requests, "requests name people whose data stay by another's exemption, and are held by it");
        }
        let of_ledger = ledger.as_ref().and_then(|ledger| ledger_run::report(&self.job, ledger, now));
        let standing = ledger.as_ref().map(|ledger| ledger.requests().suppressed(now).count() as u64);
        if verifier_lists.tags() != standing {
            return Err(Error::internal("two readers of the ledger count different identifiers; nothing was written"));
        }
        self.ledger = ledger.map(|ledger| (ledger, now));
        let mut reports = reports;
        if let Some((report, of_ledger)) = of_ledger {
            reports.push(report);
            added.push(of_ledger);
        }
        let identifiers: u64 = added.iter().flat_map(|added| added.identifiers.values()).sum();
        tracing::info!(identifiers, "lists loaded");
        Ok((index, reports.into_iter().zip(added).collect(), verifier_lists))
    }

    /// What run `run_id`, which goes on with `left_open` if there is one, writes into the ledger, with what is decided so far; `None` for a job without it.
    pub async fn book(&mut self, run_id: &str, left_open: Option<&str>) -> Result<Option<Book>> {
        let Some((ledger, now)) = self.ledger.take() else { return Ok(None) };
        let mut book = Book::new(ledger, (run_id, left_open), now, self.since_restore);
        book.record_decided(self.withheld.events(now)).await?;
        Ok(Some(book))
    }

    /// Scans the objects of every dataset, but for those that are `known` by dataset.
    pub async fn find(&mut self, index: &Arc<MatchIndex>, known: Vec<HashSet<Location>>) -> Result<Vec<Found>> {
        let mut known = known.into_iter();
        let mut found = Vec::new();
        for (number, spec) in self.job.datasets.iter().enumerate() {
            let stage = self.progress.begin_of(StageName::Find, &spec.name);
            let find = Find {
                spec,
                store: self.stores.of(spec.scope.root()),
                matcher: Arc::new(index.matcher(number, spec)),
                resources: &self.job.resources,
                meter: stage.meter.clone(),
                known: known.next(),
            };
            let now = self.now();
            found.push(match self.stop.unless(find::find(&find, now)).await {
                Err(error) if error.is_of_one_dataset() => {
                    Found { listed_at: now, unlisted: Some(error), ..Found::default() }
                }
                other => other?,
            });
            self.progress.end(stage);
        }
        Ok(found)
    }

    /// Adds what the objects hold beside their rows: the verifier's own look at bytes and names, before anything is decided.
    pub async fn inspect(&mut self, lists: &verify::Lists, found: &mut [Found]) -> Result<()> {
        for (number, found) in found.iter_mut().enumerate() {
            let spec = &self.job.datasets[number];
            let stage = self.progress.begin_of(StageName::Find, &spec.name);
            let (summaries, others) = std::mem::take(&mut found.not_in_scope).into_iter().partition(verify::is_summary);
            found.not_in_scope = others;
            let rows = |object| (object, plan::Seen::Rows { rows: 0, matched: Default::default() });
            found.findings.extend(summaries.into_iter().map(rows).map(|(object, seen)| Finding {
                is_summary: true,
                ..Finding::new(object, Some(Format::Parquet), Compression::None, seen)
            }));
            let has_rows = |finding: &Finding| matches!(finding.seen, plan::Seen::Rows { .. });
            let all = found.findings.iter_mut().chain(found.versions.iter_mut().flatten());
            let all = all.filter(|finding| has_rows(finding));
            let objects = all.map(|finding| (finding.object.clone(), std::mem::take(&mut finding.chunks))).collect();
            let inspecting = verify::inspect(lists, &self.job, &self.stores, spec, objects);
            let inspected = self.stop.unless(inspecting).await?;
            let all = found.findings.iter_mut().chain(found.versions.iter_mut().flatten());
            let all = all.filter(|finding| has_rows(finding));
            all.zip(inspected).for_each(|(finding, inspected)| take_inspected(finding, inspected));
            self.progress.end(stage);
        }
        Ok(())
    }

    pub fn plan(&mut self, found: Vec<Found>, shown: plan::Shown<'_>) -> Plan {
        let stage = self.progress.begin(StageName::Plan);
        let plan = plan::build(&self.job.datasets, found, shown);
        self.progress.end(stage);
        for dataset in &plan.datasets {
            if let Some(error) = &dataset.unlisted {
                tracing::error!(dataset = dataset.name, error = error.message, "dataset left alone");
            } else if dataset.steps.is_empty() {
                tracing::warn!(dataset = dataset.name, uri = dataset.uri, "no object matches the dataset's uri");
            }
            for step in &dataset.steps {
                if let plan::Decision::Refuse { reason, .. } | plan::Decision::Skip { reason } = &step.decision {
                    tracing::warn!(object = step.shown, reason, "object left alone");
                }
            }
        }
        plan
    }

    pub async fn verify(&mut self, lists: &verify::Lists) -> Result<Verified> {
        let stage = self.progress.begin(StageName::Verify);
        let clock = || self.now();
        let verifying = verify::verify_with(lists, &self.job, &self.stores, &clock, &stage.meter);
        let verified = self.stop.unless(verifying).await?;
        self.progress.end(stage);
        Ok(verified)
    }

    pub fn signing_key(&self) -> Result<SigningKey> {
        keys::load_signing_key(&self.job.state.signing_key)
    }

    /// Refuses stores that ignore conditional writes, unless the job allows them; says which it allowed.
    pub async fn probe(&self) -> Result<Vec<String>> {
        let mut ignored = Vec::new();
        let mut asked = std::collections::BTreeSet::new();
        // With its slash: the probe object belongs where the state's objects are written, not beside the state.
        let state = &self.job.state.location.join("");
        for location in std::iter::once(state).chain(self.job.datasets.iter().map(|spec| spec.scope.root())) {
            let Location::S3 { bucket, .. } = location else { continue };
            if !asked.insert(bucket.clone()) {
                continue;
            }
            // Its listing tells of another fault, and no object of it is written without the same question.
            let verdict = match honours_conditions(&self.stores, &self.job, location).await {
                Err(error) if location != state && error.is_of_one_dataset() => continue,
                other => other?,
            };
            if !verdict {
                ignored.push(bucket.clone());
            }
        }
        Ok(ignored)
    }
}

/// Refuses a store that ignores conditional writes, unless the job allows it: then `false`.
pub async fn honours_conditions(stores: &Stores, job: &Job, location: &Location) -> Result<bool> {
    let Location::S3 { bucket, .. } = location else { return Ok(true) };
    match stores.of(location).probe(location).await? {
        // On the second the store itself makes every swap a single write.
        ConditionalWrites::Honoured | ConditionalWrites::SingleWritesOnly => Ok(true),
        ConditionalWrites::Ignored if job.s3.unconditional_writes => Ok(false),
        ConditionalWrites::Ignored => Err(Error::new(
            Exit::Refused,
            format!("the store of bucket {bucket} ignores conditional writes; nothing was written"),
        )
        .hint("if no other writer is active, set [storage.s3] unconditional_writes = \"allow\"")),
    }
}

/// Refuses to redact a cell to a constant that is listed itself: the row would match again, as somebody else's.
pub fn check_constants(job: &Job, index: &Arc<MatchIndex>) -> Result<()> {
    for (number, spec) in job.datasets.iter().enumerate() {
        let Action::Redact(columns) = &spec.action else { continue };
        let matcher = index.matcher(number, spec);
        for redact in columns {
            let Redaction::Constant(text) = &redact.with else { continue };
            if matcher.matches(&redact.column, identifier::Value::Text(text)) {
                let (name, column) = (&spec.name, &redact.column);
                return Err(Error::usage(format!(
                    "dataset {name}: the constant that column {column} is redacted to is on a list itself; nothing was written"
                )));
            }
        }
    }
    Ok(())
}

/// What could not be looked into is told by the plan, unless it is to be written anew anyway.
fn take_inspected(finding: &mut Finding, inspected: std::result::Result<Residues, Fault>) {
    match (inspected, &finding.seen) {
        (Ok(residues), _) => finding.residues = residues,
        (Err(Fault { exit, reason }), plan::Seen::Rows { matched, .. }) if matched.is_empty() => {
            finding.seen = plan::Seen::Failed { exit, reason };
        }
        (Err(_), plan::Seen::Rows { .. } | plan::Seen::Skipped | plan::Seen::Failed { .. }) => {}
    }
}

pub fn uses_s3(job: &Job) -> bool {
    let scopes = job.lists.iter().map(|list| &list.scope).chain(job.datasets.iter().map(|spec| &spec.scope));
    scopes.map(Scope::root).chain([&job.state.location]).any(|location| matches!(location, Location::S3 { .. }))
}

pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("no random bytes: {error}")))?;
    Ok(bytes)
}

/// Both normalisers against the known answers, before every job.
pub fn self_test() -> Result<()> {
    identifier::self_test().and_then(|()| verify::self_test()).map_err(|reason| {
        Error::internal(format!("the self-test of the normaliser failed: {reason}")).hint("do not use this build")
    })
}
