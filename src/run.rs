//! One function per command on a job, each of which knows the order of its stages.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use clap::CommandFactory;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::account::{self, Account, Recovered, RunFacts, Settlement};
use crate::canary;
use crate::chain;
use crate::cli::{self, Cli, Command, Common, ManifestCommand, print_result};
use crate::drop;
use crate::error::{Error, Exit, Result};
use crate::find;
use crate::gate;
use crate::job::{DatasetSpec, Job, Search, Stray};
use crate::journal::{self, AnnouncedPurge, Journal, Lock, Unfinished};
use crate::keys;
use crate::ledger_run::{self, Book, Left, Looking};
use crate::manifest::{Observed, Stage, StageName};
use crate::manifest_check;
use crate::manifest_diff;
use crate::match_index::MatchIndex;
use crate::plan::{self, DatasetPlan, Decision, Plan};
use crate::purge::{self, Purge, PurgeEnded, Purged, Replaced};
use crate::request;
use crate::request_import::moment;
use crate::requests;
use crate::rewrite::{self, Ended, Outcome, Rewrite, Settled};
use crate::session::{Clock, Session, Stop, check_constants, random};
use crate::show;
use crate::signature::{SigningKey, TagKey};
use crate::store::s3::REQUESTS_IN_FLIGHT;
use crate::store::{self, Etag, Location, Stores};
use crate::tag::{self, DatasetTagger};
use crate::verify;

/// Runs one command to its end and says with which code the process is to exit.
pub fn run(cli: &Cli) -> Result<Exit> {
    if let Command::Completions { shell } = &cli.command {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Cli::command(), "lakescrub", &mut script);
        print_result(&String::from_utf8_lossy(&script))?;
        return Ok(Exit::Clean);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(run_command(cli));
    // A blocking read that hangs must not hold the exit back.
    runtime.shutdown_background();
    outcome
}

async fn run_command(cli: &Cli) -> Result<Exit> {
    let common = &cli.common;
    match &cli.command {
        Command::Scrub { job, since_restore } => scrub(common, job, since_restore.as_deref()).await,
        Command::Plan { job } => plan(common, job).await,
        Command::Verify { job, search } => verify(common, job, *search).await,
        Command::Check { job } => check(common, job).await,
        Command::Keygen { dir } => keygen(common, dir),
        Command::Manifest(ManifestCommand::Check { path, public_key }) => {
            manifest_check(common, path, public_key.as_deref()).await
        }
        Command::Manifest(ManifestCommand::Diff { a, b }) => manifest_diff(common, a, b).await,
        Command::Gate { job, uri, dataset } => gate::gate(common, job, uri, dataset.as_deref()).await,
        Command::Requests(command) => requests::run(common, command).await,
        Command::Drop(command) => drop::run(common, command).await,
        Command::Completions { .. } => unreachable!("answered before the runtime started"),
    }
}

/// How a run ended, and the result to print.
#[derive(Debug)]
pub struct RunResult {
    pub exit: Exit,
    pub result: String,
}

impl RunResult {
    /// The run is over and its manifest written, but an exit of 0 would promise a result that nobody got.
    fn print(self) -> Result<Exit> {
        print_result(&self.result).map(|()| self.exit)
    }
}

async fn plan(common: &Common, path: &Path) -> Result<Exit> {
    let mut session = Session::open(common, path).await?;
    let (index, lists, verifier_lists) = session.load_to_remove().await?;
    check_constants(&session.job, &index)?;
    let mut found = session.find(&index, Vec::new()).await?;
    session.check_counted(&found)?;
    session.inspect(&verifier_lists, &mut found).await?;
    let tag_key = keys::load_tag_key(&session.job.state.tag_key).ok();
    let shown = |spec: &DatasetSpec, location: &Location| {
        tag::shown(tag_key.as_ref(), &location.to_string(), &verifier_lists.named(spec, location))
    };
    let plan = session.plan(found, &shown);
    let guard = plan::check_overlap(&plan).and_then(|()| plan::check_guard(&plan, &session.job.guard));
    let exit = Exit::gravest(plan::exits(&plan).into_iter().chain(guard.as_ref().err().map(|error| error.exit)));
    if common.json {
        let mut document = plan::to_json(&plan);
        document["command"] = json!("plan");
        document["exit"] = exit_json(exit);
        document["run"] = json!({ "stages": stages(&session) });
        document["lists"] = json!(account::lists(&lists));
        if let Err(error) = &guard {
            document["error"] = error_json(error);
        }
        print_json(&document)?;
    } else {
        print_result(&show::plan(&plan))?;
    }
    // What stops the run is told beside the plan, which shows why.
    guard.as_ref().err().into_iter().for_each(|error| cli::print_error(common, error));
    Ok(exit)
}

/// How long each stage took; by a clock that `--now` stopped, no time at all, so that the same plan is the same bytes.
fn stages(session: &Session) -> Vec<Stage> {
    let mut stages = session.progress.stages();
    if session.common.now.is_some() {
        stages.iter_mut().for_each(|stage| stage.seconds = 0.0);
    }
    stages
}

async fn scrub(common: &Common, path: &Path, since_restore: Option<&str>) -> Result<Exit> {
    let mut session = Session::open(common, path).await?;
    if let Some(text) = since_restore {
        if session.job.ledger.is_none() {
            return Err(Error::usage("--since-restore replays the request ledger, which is no list of this job")
                .hint("add a [[list]] with uri = \"ledger\"; a scrub without it removes whatever its lists hold now"));
        }
        let time = moment(text).filter(|time| *time <= session.now());
        session.since_restore = Some(time.ok_or_else(|| {
            Error::usage(format!("--since-restore {text} is no date or time in the past"))
                .hint("the time that the restored backup was taken at, such as 2026-08-01T02:00:00Z")
        })?);
    }
    scrub_session(session).await?.print()
}

/// The scheduled job on given stores and by a given clock; prints nothing and hears no signal.
pub async fn scrub_with(common: &Common, job: Job, stores: Stores, clock: Clock) -> Result<RunResult> {
    scrub_session(Session::with(common, job, stores, clock, Stop::default())?).await
}

async fn scrub_session(mut session: Session) -> Result<RunResult> {
    let signing_key = session.signing_key()?;
    let tag_key = Arc::new(keys::load_tag_key(&session.job.state.tag_key)?);
    locked(&mut session, "scrub", async |session, run, lock| {
        let ignored = session.probe().await?;
        for spec in &session.job.datasets {
            sweep(session, spec.scope.root()).await?;
        }
        let recovered = recover(session, run, &tag_key).await?;
        let canaries = canaries(session, run, lock).await?;
        let (index, lists, verifier_lists) = session.load_to_remove().await?;
        check_constants(&session.job, &index)?;
        let mut found = session.find(&index, Vec::new()).await?;
        session.check_counted(&found)?;
        session.inspect(&verifier_lists, &mut found).await?;
        let shown = |spec: &DatasetSpec, location: &Location| {
            tag::shown(Some(&tag_key), &location.to_string(), &verifier_lists.named(spec, location))
        };
        let mut plan = session.plan(found, &shown);
        plan::check_overlap(&plan)?;
        plan::check_guard(&plan, &session.job.guard)?;
        let mut book = session.book(&run.id, run.left_open.as_deref()).await?;
        announce(session, book.as_mut(), &verifier_lists, &shown, &mut plan).await?;
        book.as_ref().map_or(Ok(()), Book::check_still_asked)?;
        let outcomes = rewrite(session, run, lock, &plan, tag_key.clone(), &verifier_lists).await?;
        let late = Late { index: &index, lists: &verifier_lists, tag_key: tag_key.clone(), shown: &shown };
        let (plan, outcomes) = rewrite_late(session, run, lock, &late, book.as_mut(), plan, outcomes).await?;
        let purged = purge(session, run, lock, (&plan, &outcomes), &recovered, &shown).await?;
        let verified = session.verify(&verifier_lists).await?;
        let account = Account {
            job: &session.job,
            lists: &lists,
            plan: Some(&plan),
            outcomes: &outcomes,
            purged: &purged,
            recovered: &recovered,
            verified: &verified,
            unconditional_writes: &ignored,
            is_clock_set: session.common.now.is_some(),
            left_open: None,
            shown: &shown,
            canaries,
            ledger: book.as_ref().map(|book| book.record(&session.job)),
            undecided: session.withheld.undecided.len() as u64,
        };
        let (result, digest) = publish(session, &account, &signing_key, run).await?;
        if let Some(book) = &mut book {
            book.close(&digest, result.exit, &session.job, &left(&plan, &outcomes, &purged)).await?;
            book.refresh_probe(&session.job, &session.stores, &tag_key).await;
        }
        Ok(result)
    })
    .await
}

/// Writes into the ledger what the plan is about to remove: write before destroy.
async fn announce(
    session: &Session,
    book: Option<&mut Book>,
    lists: &verify::Lists,
    shown: plan::Shown<'_>,
    plan: &mut Plan,
) -> Result<()> {
    let Some(book) = book else { return Ok(()) };
    let looking = Looking { job: &session.job, stores: &session.stores, lists, shown };
    book.announce(&looking, plan).await
}

/// The objects of each dataset that are as they were, or whose rewrite nobody can vouch for, and its noncurrent versions that were not
/// purged.
fn left(plan: &Plan, outcomes: &[Vec<Option<Outcome>>], purged: &[Purged]) -> Vec<Left> {
    let is_done = |outcome: &Option<Outcome>| match outcome.as_ref().map(|outcome| &outcome.ended) {
        Some(Ended::Rewritten | Ended::Dropped) => true,
        Some(Ended::Failed { .. } | Ended::NotBegun) | None => false,
    };
    let of = |((dataset, outcomes), purged): ((&DatasetPlan, &Vec<Option<Outcome>>), &Purged)| {
        let left = dataset.steps.iter().zip(outcomes).filter(|(_, outcome)| !is_done(outcome));
        let left = left.map(|(step, _)| (step.object.location.clone(), None));
        let gone = purged.versions.iter().flat_map(|versions| &versions.outcomes);
        let gone = gone.filter(|outcome| outcome.ended == PurgeEnded::Purged);
        let gone: HashSet<(&Location, &Option<String>)> =
            gone.map(|outcome| (&outcome.object.location, &outcome.object.version_id)).collect();
        let versions = dataset.versions.iter().flatten().map(|step| &step.object);
        let versions = versions.filter(|object| !gone.contains(&(&object.location, &object.version_id)));
        let all = dataset.steps.iter().chain(dataset.versions.iter().flatten());
        let unread = all.filter(|step| match &step.decision {
            Decision::Refuse { .. } | Decision::Skip { .. } => true,
            Decision::Keep | Decision::Rewrite { .. } | Decision::Drop { .. } | Decision::Purge | Decision::Report => {
                false
            }
        });
        Left {
            is_listed: dataset.unlisted.is_none(),
            objects: left.chain(versions.map(|object| (object.location.clone(), object.version_id.clone()))).collect(),
            unread: unread.map(|step| step.object.location.clone()).collect(),
        }
    };
    plan.datasets.iter().zip(outcomes).zip(purged).map(of).collect()
}

async fn verify(common: &Common, path: &Path, search: bool) -> Result<Exit> {
    let mut session = Session::open(common, path).await?;
    if search {
        session.job.datasets.iter_mut().for_each(|dataset| dataset.search = Search::Residue);
    }
    let signing_key = session.signing_key()?;
    locked(&mut session, "verify", async |session, run, lock| {
        let canaries = canaries(session, run, lock).await?;
        let (_, lists, verifier_lists) = session.load().await?;
        let mut book = session.book(&run.id, run.left_open.as_deref()).await?;
        let verified = session.verify(&verifier_lists).await?;
        let tag_key = keys::load_tag_key(&session.job.state.tag_key).ok();
        let shown = |spec: &DatasetSpec, location: &Location| {
            tag::shown(tag_key.as_ref(), &location.to_string(), &verifier_lists.named(spec, location))
        };
        if let Some(book) = &mut book {
            let looking = Looking { job: &session.job, stores: &session.stores, lists: &verifier_lists, shown: &shown };
            book.look_back(&looking, &verified).await?;
        }
        let account = Account {
            job: &session.job,
            lists: &lists,
            plan: None,
            outcomes: &[],
            purged: &[],
            recovered: &[],
            verified: &verified,
            unconditional_writes: &[],
            is_clock_set: session.common.now.is_some(),
            left_open: run.left_open.as_deref(),
            shown: &shown,
            canaries,
            ledger: book.as_ref().map(|book| book.record(&session.job)),
            undecided: 0,
        };
        let (result, digest) = publish(session, &account, &signing_key, run).await?;
        if let Some(book) = &mut book {
            book.close(&digest, result.exit, &session.job, &[]).await?;
        }
        Ok(result)
    })
    .await
    .and_then(RunResult::print)
}

/// One run: its name and its journal.
pub struct Run {
    pub id: String,
    pub command: &'static str,
    pub started_at: Timestamp,
    /// How many earlier attempts of this run were killed.
    pub resumed: bool,
    journal: Journal,
    unfinished: Option<Unfinished>,
    /// Another run that never ended, which this one leaves to the next scrub.
    left_open: Option<String>,
}

impl Run {
    fn new(id: String, command: &'static str, started_at: Timestamp, journal: Journal) -> Run {
        Run { id, command, started_at, resumed: false, journal, unfinished: None, left_open: None }
    }
}

/// Runs `work` under the lock of the state, with the journal of a new run or of the one that never ended.
async fn locked(
    session: &mut Session,
    command: &'static str,
    work: impl AsyncFnOnce(&mut Session, &Run, &Lock) -> Result<RunResult>,
) -> Result<RunResult> {
    let state = session.job.state.location.clone();
    let store = session.stores.of(&state);
    let id = run_id(session.now())?;
    // It reads a hundred megabytes, which need not wait for the end.
    std::thread::spawn(tool_digest);
    // First: the lock itself is a conditional write.
    session.probe().await?;
    let lock = Lock::take(store.clone(), &state, &id).await?;
    let outcome = async {
        // A chain that cannot be continued stops the run before it changes anything.
        chain::latest(store.as_ref(), &state).await?;
        let key = session.signing_key()?.public_key();
        if let Some(other) = chain::check_end(store.as_ref(), &state, &key).await? {
            let own = key.keyid();
            tracing::warn!(own, other, "the last run signed with another key; auditors need both public keys");
        }
        sweep(session, &state).await?;
        let has_manifest = async |id: &str| chain::has_manifest(store.as_ref(), &state, id).await;
        let unfinished = journal::unfinished(&store, &state, has_manifest).await?;
        let run = match unfinished {
            // It changes nothing, neither in the lake nor of what another run has begun.
            left if command == "verify" => {
                let left_open = left.map(|left| left.run_id);
                if let Some(run) = &left_open {
                    tracing::warn!(run, "a run never ended; the next scrub goes on with it");
                }
                let journal = Journal::unwritten(store.clone(), &state, &id);
                Run { left_open, ..Run::new(id, command, session.now(), journal) }
            }
            Some(unfinished) if unfinished.job != session.job.name => {
                let (id, job) = (&unfinished.run_id, &unfinished.job);
                return Err(Error::new(
                    Exit::Conflict,
                    format!("run {id} of job \"{job}\" never ended, and this job shares its state"),
                )
                .hint("run that job again first, or give each job a [state] uri of its own"));
            }
            Some(unfinished) => {
                tracing::warn!(run = unfinished.run_id, "going on with a run that never ended");
                let journal = Journal::resume(store.clone(), &state, &unfinished);
                let (id, started_at) = (unfinished.run_id.clone(), unfinished.started_at);
                let run = Run::new(id, command, started_at, journal);
                Run { resumed: true, unfinished: Some(unfinished), ..run }
            }
            None => {
                let started_at = session.now();
                let journal = Journal::begin(store.clone(), &state, &id, started_at, &session.job.name).await?;
                Run::new(id, command, started_at, journal)
            }
        };
        let outcome = work(session, &run, &lock).await;
        if may_forget(&outcome, &run)
            && let Err(error) = run.journal.remove().await
        {
            tracing::warn!(%error, "journal not removed; the next run does it");
        }
        outcome
    }
    .await;
    if let Err(error) = lock.release().await {
        tracing::warn!(%error, "lock not released; it expires by itself");
    }
    outcome
}

/// Removes what a killed run left beside objects: no listing shows it, but it holds rows.
async fn sweep(session: &Session, prefix: &Location) -> Result<()> {
    let files = session.stores.of(prefix).sweep(prefix).await?;
    if files > 0 {
        tracing::info!(prefix = %prefix, files, "temporary files of a killed run removed");
    }
    Ok(())
}

/// Whether the journal tells nothing more: the manifest is written, or nothing was begun that a later run must know of.
fn may_forget(outcome: &Result<RunResult>, run: &Run) -> bool {
    outcome.is_ok() || (!run.resumed && !run.journal.has_swaps())
}

pub fn run_id(now: Timestamp) -> Result<String> {
    Ok(format!("{}-{}", now.strftime("%Y%m%dT%H%M%SZ"), hex::encode(random::<4>()?)))
}

/// Takes the job's canaries through a run of their own. One that is not seen or not removed ends the command before it has read or
/// written anything: what it would say of the datasets could not be trusted.
async fn canaries(session: &Session, run: &Run, lock: &Lock) -> Result<Option<canary::Counts>> {
    if session.job.canaries == 0 {
        return Ok(None);
    }
    let Session { job, stores, .. } = session;
    let counts = canary::run(job, stores, lock, &run.id, session.now(), random()?).await?;
    tracing::info!(planted = counts.planted, found = counts.found, removed = counts.removed, "canaries");
    if counts.found == counts.planted && counts.removed == counts.planted {
        return Ok(Some(counts));
    }
    let canary::Counts { planted, found, removed } = counts;
    Err(Error::internal(format!("of {planted} canaries {found} were found and {removed} removed; nothing was written"))
        .hint("this build does not do what this job asks for; do not use it, and report the job file"))
}

/// Settles what a killed attempt announced.
async fn recover(session: &Session, run: &Run, tag_key: &TagKey) -> Result<Vec<Recovered>> {
    let mut recovered = Vec::new();
    for (sequence, swap, confirmed) in run.unfinished.iter().flat_map(|unfinished| &unfinished.swaps) {
        if let Some(etag) = confirmed {
            recovered.push(Recovered { swap: swap.clone(), etag: etag.clone() });
            continue;
        }
        let location = named(session, swap, tag_key).await?;
        match rewrite::settle(&session.stores.of(&location), &location, swap).await? {
            Settled::Swapped { object } => {
                let etag = object.map_or_else(String::new, |object| object.etag.0);
                if let (Location::S3 { .. }, false) = (&location, swap.dropped) {
                    // The attempt died between the swap and the read-back: nobody has compared the new content yet, so a
                    // person does before the old version goes.
                    let reason = "the run was killed before the new content was read back".to_owned();
                    let held =
                        journal::Held { location: swap.location.clone(), etag: swap.etag_before.clone(), reason };
                    run.journal.hold(*sequence, &held).await?;
                }
                run.journal.write(&journal::Event::Swapped { sequence: *sequence, etag: etag.clone() }).await?;
                recovered.push(Recovered { swap: swap.clone(), etag });
            }
            Settled::NotSwapped => {
                run.journal.write(&journal::Event::GivenUp { sequence: *sequence }).await?;
            }
        }
    }
    Ok(recovered)
}

/// Where an announced swap took place. A name that may not be told is looked for by its tag; the object may be gone.
async fn named(session: &Session, swap: &journal::Swap, tag_key: &TagKey) -> Result<Location> {
    let shown = Location::shown(&swap.location);
    let dataset = session.job.datasets.iter().find(|spec| spec.name == swap.dataset);
    let (Some(tag), Some(spec)) = (&swap.name_tag, dataset) else { return Ok(shown) };
    let root = spec.scope.root();
    let listed = store::list(session.stores.of(root).as_ref(), root).await?.into_iter().map(|object| object.location);
    Ok(listed.into_iter().find(|location| tag::of_name(tag_key, &location.to_string()) == *tag).unwrap_or(shown))
}

/// Carries the plan out; an interrupted rewrite ends what it began and leaves the rest to the next run.
async fn rewrite(
    session: &mut Session,
    run: &Run,
    lock: &Lock,
    plan: &Plan,
    tag_key: Arc<TagKey>,
    lists: &verify::Lists,
) -> Result<Vec<Vec<Option<Outcome>>>> {
    let stage = session.progress.begin(StageName::Rewrite);
    let changes = plan.datasets.iter().flat_map(|dataset| &dataset.steps).filter(|step| step.decision.changes());
    changes.for_each(|step| stage.meter.expect(1, step.object.size_bytes));
    let stop = || session.stop.is_asked();
    let mut outcomes = Vec::new();
    for (spec, dataset) in session.job.datasets.iter().zip(&plan.datasets) {
        let strays = (spec.stray == Stray::Redact).then(|| {
            let lists = lists.clone();
            Arc::new(move |text: &[u8]| lists.without_strays(text)) as tag::Strays
        });
        let rewrite = Rewrite {
            spec,
            store: session.stores.of(spec.scope.root()),
            journal: &run.journal,
            lock,
            tagger: Arc::new(DatasetTagger::new(tag_key.clone(), spec, strays)),
            resources: &session.job.resources,
            meter: stage.meter.clone(),
            name_tag: &|location| tag::of_name(&tag_key, &location.to_string()),
            stop: &stop,
        };
        outcomes.push(rewrite::rewrite(&rewrite, dataset).await);
    }
    session.progress.end(stage);
    lock.check()?;
    if session.stop.is_asked() {
        return Err(session.stop.error());
    }
    match run.journal.swaps_in_doubt() {
        0 => Ok(outcomes),
        objects => Err(Error::new(
            Exit::Unavailable,
            format!("the store could not tell whether {objects} objects were replaced; the journal is whole"),
        )
        .hint("run again to resume")),
    }
}

/// How often a run looks for what other writers put into its datasets while it was at work.
const LATE_ROUNDS_MAX: usize = 3;

/// What is needed to treat an object that landed late like any other.
struct Late<'a> {
    index: &'a Arc<MatchIndex>,
    lists: &'a verify::Lists,
    tag_key: Arc<TagKey>,
    shown: plan::Shown<'a>,
}

/// Finds and rewrites objects that landed since the datasets were listed, until a listing shows no new one. What lands after the
/// last round, or would be more than the guard allows, is left to the verifying scan, which tells of it; so is an object that
/// changed under the run, for its writer may not be done, and one whose consumers nobody has counted.
async fn rewrite_late(
    session: &mut Session,
    run: &Run,
    lock: &Lock,
    with: &Late<'_>,
    mut book: Option<&mut Book>,
    mut plan: Plan,
    mut outcomes: Vec<Vec<Option<Outcome>>>,
) -> Result<(Plan, Vec<Vec<Option<Outcome>>>)> {
    for _ in 0..LATE_ROUNDS_MAX {
        let known: Vec<HashSet<Location>> = plan.datasets.iter().map(locations).collect();
        let mut found = session.find(with.index, known.clone()).await?;
        session.inspect(with.lists, &mut found).await?;
        for ((found, known), planned) in found.iter_mut().zip(&known).zip(&plan.datasets) {
            // A summary file is listed each time. What could not be listed at first, or whose versions could not, is left alone.
            found.findings.retain(|finding| planned.unlisted.is_none() && !known.contains(&finding.object.location));
            if session.withheld.is_counted(&planned.name) && !found.findings.is_empty() {
                let (dataset, objects) = (&planned.name, found.findings.len());
                tracing::warn!(dataset, objects, "landed after consumers were counted; left to the next run");
                found.findings.clear();
            }
        }
        let mut late = plan::build(&session.job.datasets, found, with.shown);
        let objects: usize = late.datasets.iter().map(|dataset| dataset.steps.len()).sum();
        if objects == 0 {
            break;
        }
        tracing::info!(objects, "objects landed while the run was at work");
        let mut whole = plan.clone();
        whole.take_late(late.clone());
        if plan::check_guard(&whole, &session.job.guard).is_err() {
            tracing::warn!(objects, "with these the plan would be more than [guard] allows; they are left alone");
            break;
        }
        announce(session, book.as_deref_mut(), with.lists, with.shown, &mut late).await?;
        if let Some(error) = book.as_deref().and_then(|book| book.check_still_asked().err()) {
            tracing::warn!(objects, reason = error.message, "objects that landed late are left alone");
            late.refuse_all(error.exit, &error.message);
        }
        let more = rewrite(session, run, lock, &late, with.tag_key.clone(), with.lists).await?;
        outcomes.iter_mut().zip(more).for_each(|(outcomes, more)| outcomes.extend(more));
        plan.take_late(late);
    }
    Ok((plan, outcomes))
}

fn locations(dataset: &DatasetPlan) -> HashSet<Location> {
    dataset.steps.iter().map(|step| step.object.location.clone()).collect()
}

/// Removes what the rewrite left behind the current objects.
async fn purge(
    session: &mut Session,
    run: &Run,
    lock: &Lock,
    (plan, outcomes): (&Plan, &[Vec<Option<Outcome>>]),
    recovered: &[Recovered],
    shown: plan::Shown<'_>,
) -> Result<Vec<Purged>> {
    let stage = session.progress.begin(StageName::Purge);
    let state = &session.job.state.location;
    let held = journal::held(&session.stores.of(state), state).await?;
    let stop = || session.stop.is_asked();
    let mut purged = Vec::new();
    for ((spec, dataset), outcomes) in session.job.datasets.iter().zip(&plan.datasets).zip(outcomes) {
        let purge = Purge {
            spec,
            store: session.stores.of(spec.scope.root()),
            journal: &run.journal,
            lock,
            held: &held,
            resources: &session.job.resources,
            meter: stage.meter.clone(),
            stop: &stop,
            shown: &|location| shown(spec, location),
        };
        let replaced = replaced(dataset, outcomes, recovered);
        let announced = run.unfinished.iter().flat_map(|unfinished| &unfinished.purges);
        let earlier: Vec<AnnouncedPurge> = announced.filter(|purge| purge.dataset == spec.name).cloned().collect();
        purged.push(purge::purge(&purge, dataset, &replaced, &earlier, session.now()).await?);
    }
    session.progress.end(stage);
    if session.stop.is_asked() { Err(session.stop.error()) } else { Ok(purged) }
}

/// The objects whose old content this run, or a killed attempt of it, has put behind a new one.
fn replaced(plan: &DatasetPlan, outcomes: &[Option<Outcome>], recovered: &[Recovered]) -> Vec<Replaced> {
    let swapped = plan.steps.iter().zip(outcomes).filter(|(_, outcome)| match outcome.as_ref().map(|it| &it.ended) {
        Some(Ended::Rewritten | Ended::Dropped) => true,
        Some(Ended::Failed { .. } | Ended::NotBegun) | None => false,
    });
    let swapped = swapped.map(|(step, _)| Replaced {
        location: step.object.location.clone(),
        etag: step.object.etag.clone(),
        rows: step.rows,
        rows_matched: step.rows_matched,
    });
    let earlier = recovered.iter().map(|recovered| &recovered.swap).filter(|swap| swap.dataset == plan.name);
    let earlier = earlier.map(|swap| Replaced {
        location: Location::shown(&swap.location),
        etag: Etag(swap.etag_before.clone()),
        rows: swap.rows_before,
        rows_matched: swap.rows_matched,
    });
    swapped.chain(earlier).collect()
}

/// Writes the manifest; the result is what it says, for people or as JSON, and the manifest's digest.
async fn publish(session: &Session, account: &Account<'_>, key: &SigningKey, run: &Run) -> Result<(RunResult, String)> {
    let state = &session.job.state.location;
    let store = session.stores.of(state);
    let facts = RunFacts {
        id: run.id.clone(),
        command: run.command,
        started_at: run.started_at,
        finished_at: session.now(),
        resumed: run.resumed,
        tool_digest: tool_digest(),
        stages: session.progress.stages(),
    };
    let started = Instant::now();
    let Settlement { mut observations, rows, exit } = account.settle(facts);
    // Up to what is signed, which cannot tell how long its own signature took.
    observations.run.stages.push(Stage { name: StageName::Manifest, seconds: started.elapsed().as_secs_f64() });
    let shown = show::result(&observations, &rows, exit);
    let published = chain::publish(store.as_ref(), state, observations, rows, key).await?;
    if session.common.json {
        let (_, bytes) = store::read_whole(store.as_ref(), &published.location.join("manifest.json")).await?;
        let statement: Value =
            serde_json::from_slice(&bytes).map_err(|_| Error::internal("the manifest is no JSON"))?;
        let mut document = statement["predicate"].clone();
        document["command"] = json!(run.command);
        document["exit"] = exit_json(exit);
        document["manifest"] = json!({ "location": published.location.to_string(), "digest": published.digest });
        Ok((RunResult { exit, result: json_text(&document) }, published.digest))
    } else {
        let result = format!("{shown}manifest  {}\n", published.location);
        Ok((RunResult { exit, result }, published.digest))
    }
}

/// SHA-256 of the program that runs, so that an auditor can tell which one it was.
fn tool_digest() -> Observed<String> {
    static DIGEST: OnceLock<Option<String>> = OnceLock::new();
    let hash = || {
        let mut program = std::fs::File::open(std::env::current_exe().ok()?).ok()?;
        let (mut sha256, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match program.read(&mut piece).ok()? {
                0 => return Some(hex::encode(sha256.finalize())),
                n => sha256.update(&piece[..n]),
            }
        }
    };
    DIGEST.get_or_init(hash).clone().map_or(Observed::NotChecked, Observed::Seen)
}

async fn check(common: &Common, path: &Path) -> Result<Exit> {
    let session = Session::open(common, path).await?;
    session.signing_key()?;
    keys::load_tag_key(&session.job.state.tag_key)?;
    let mut exits = Vec::new();
    let mut lines = Vec::new();
    let state = &session.job.state.location;
    session.stores.of(state).list(&state.join("manifests")).await?;
    let ignored = session.probe().await?;
    let reports =
        request::read_lists(&session.job, &session.stores, &|| session.now(), &Default::default(), &mut |_| {}).await?;
    for report in &reports {
        let files = show::plural(report.files as u64, "file", "files");
        let blank = (report.blank > 0).then(|| format!(", {} of them without an identifier", report.blank));
        let rows = show::plural(report.rows, "row", "rows");
        lines.push(format!("list {}: {rows} in {files}{}", report.name, blank.unwrap_or_default()));
    }
    let key = keys::load_tag_key(&session.job.state.tag_key)?;
    if let Some(ledger) = ledger_run::open(&session.job, &session.stores, &key, session.now()).await? {
        let name = session.job.ledger.as_ref().map_or("", |list| &list.name);
        let standing = ledger.requests().suppressed(session.now()).count();
        lines.push(format!("list {name}: {} requests, {standing} identifiers in the ledger", ledger.requests().len()));
        lines.extend(ledger_run::not_compared(&session.job, &ledger, session.now()).sentences());
    }
    let mut owners: BTreeMap<Location, &str> = BTreeMap::new();
    for spec in &session.job.datasets {
        lines.extend(account::unlisted_kinds(&session.job, spec));
        match find::reach(spec, session.stores.of(spec.scope.root()).as_ref()).await {
            Err(error) if error.is_of_one_dataset() => {
                exits.push(error.exit);
                lines.push(error.message);
            }
            reached => {
                let objects = reached?;
                exits.extend(objects.is_empty().then_some(Exit::Incomplete));
                let count = show::plural(objects.len() as u64, "object", "objects");
                lines.push(format!("dataset {}: {count} at {}", spec.name, spec.uri));
                let taken = objects.into_iter().filter_map(|object| owners.insert(object.location, &spec.name)).next();
                if let Some(other) = taken {
                    exits.push(Exit::Usage);
                    lines.push(format!("datasets {other} and {}: an object is in both", spec.name));
                }
            }
        }
    }
    lines.extend(
        ignored.iter().map(|bucket| format!("bucket {bucket}: ignores conditional writes, allowed by the job")),
    );
    let exit = Exit::gravest(exits);
    if common.json {
        print_json(&json!({ "command": "check", "exit": exit_json(exit), "checked": lines }))?;
    } else {
        let verdict = match exit {
            Exit::Clean => "the job is ready to run",
            _ => "the job is not ready to run",
        };
        lines.push(verdict.to_owned());
        print_lines(&lines)?;
    }
    Ok(exit)
}

fn keygen(common: &Common, dir: &Path) -> Result<Exit> {
    let keys = keys::generate_keys(dir)?;
    if common.json {
        let exit = exit_json(Exit::Clean);
        print_json(&json!({ "command": "keygen", "exit": exit, "directory": dir, "key_id": keys.keyid }))?;
    } else {
        let wrote = format!("wrote signing.key, signing.pub and tag.key to {}", dir.display());
        print_lines(&[wrote, format!("key id {}", keys.keyid)])?;
    }
    Ok(Exit::Clean)
}

/// Where a path or URI on the command line points.
async fn stores_for(texts: &[&str]) -> Result<(Stores, Vec<Location>)> {
    let locations: Vec<Location> = texts
        .iter()
        .map(|text| match Location::shown(text.trim_end_matches('/')) {
            Location::Local(path) => Location::Local(std::path::absolute(&path).unwrap_or(path)),
            s3 @ Location::S3 { .. } => s3,
        })
        .collect();
    let s3 = locations.iter().any(|location| matches!(location, Location::S3 { .. }));
    Ok((Stores::open(&Default::default(), REQUESTS_IN_FLIGHT, s3).await?, locations))
}

async fn manifest_check(common: &Common, path: &str, public_key: Option<&Path>) -> Result<Exit> {
    let (stores, locations) = stores_for(&[path]).await?;
    let report = manifest_check::check(&locations[0], &stores, public_key).await?;
    if common.json {
        print_json(&json!({ "command": "manifest check", "exit": exit_json(Exit::Clean), "report": report }))?;
    } else {
        print_lines(&report.lines())?;
    }
    Ok(Exit::Clean)
}

async fn manifest_diff(common: &Common, a: &str, b: &str) -> Result<Exit> {
    let (stores, locations) = stores_for(&[a, b]).await?;
    let report = manifest_diff::diff(&locations[0], &locations[1], &stores, None).await?;
    if common.json {
        print_json(&json!({ "command": "manifest diff", "exit": exit_json(Exit::Clean), "report": report }))?;
    } else {
        print_lines(&report.lines())?;
    }
    Ok(Exit::Clean)
}

/// With `--json`, the result of a command that failed before it had one.
pub fn print_failure(cli: &Cli, error: &Error) {
    if cli.common.json {
        // The exit code says already that there is no result.
        let _ = print_json(
            &json!({ "command": cli.command.name(), "exit": exit_json(error.exit), "error": error_json(error) }),
        );
    }
}

/// With `--json`, the result of a command line that names no command.
pub fn print_not_understood(message: &str) {
    let error = Error::usage(message);
    let _ = print_json(&json!({ "command": Value::Null, "exit": exit_json(error.exit), "error": error_json(&error) }));
}

pub fn exit_json(exit: Exit) -> Value {
    json!({ "code": exit.code(), "name": exit.name() })
}

fn error_json(error: &Error) -> Value {
    json!({ "message": error.message, "hint": error.hint })
}

pub fn print_json(document: &Value) -> Result<()> {
    print_result(&json_text(document))
}

fn json_text(document: &Value) -> String {
    format!("{document:#}\n")
}

pub fn print_lines(lines: &[String]) -> Result<()> {
    print_result(&lines.iter().map(|line| format!("{}\n", show::plain(line))).collect::<String>())
}
