//! The rewrite stage: carries out a plan, object by object, each as one conditional swap that is journaled and read back.
//!
//! An object that fails is an outcome of its own and stays as it was; the others go on. Old bytes go only after the new
//! ones were read back and compared: before the swap where the store can show them (a local disk), right after it otherwise.

use std::collections::BTreeMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::StreamExt;
use sha2::{Digest, Sha256};

use crate::action::Action;
use crate::error::{Error, Exit, Result};
use crate::format::{self, Edit, FormatError, Proof, Tagger};
use crate::job::{DatasetSpec, Resources};
use crate::journal::{Event, Held, Journal, Lock, Swap};
use crate::meter::Meter;
use crate::plan::{DatasetPlan, Decision, Step};
use crate::residue::Cleanse;
use crate::store::{
    self, Location, Object, ObjectReader, Replacement, ReplacementWriter, Store, StoreError, Written, store_error,
};

/// Everything the rewrite of one dataset needs.
pub struct Rewrite<'a> {
    pub spec: &'a DatasetSpec,
    pub store: Arc<dyn Store>,
    pub journal: &'a Journal,
    pub lock: &'a Lock,
    pub tagger: Arc<dyn Tagger>,
    pub resources: &'a Resources,
    pub meter: Arc<Meter>,
    /// The keyed tag of an object's name, by which a later run finds it again where the name may not be told.
    pub name_tag: &'a (dyn Fn(&Location) -> String + Sync),
    /// Set when the run is asked to stop: what has begun is ended, nothing new begins.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// What became of one planned step.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The object as it now is; `None` when it was dropped or not swapped.
    pub object: Option<Object>,
    pub sha256: Option<String>,
    pub rows_removed: u64,
    pub rows_redacted: u64,
    /// Cells in which a stray identifier was replaced, by column.
    pub strays_redacted: BTreeMap<String, u64>,
    /// Counted from the store after the write.
    pub rows_after: Option<u64>,
    pub ended: Ended,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    Rewritten,
    Dropped,
    Failed {
        exit: Exit,
        reason: String,
    },
    /// The run was asked to stop before this step began.
    NotBegun,
}

impl Outcome {
    fn nothing(ended: Ended) -> Outcome {
        Outcome {
            object: None,
            sha256: None,
            rows_removed: 0,
            rows_redacted: 0,
            strays_redacted: BTreeMap::new(),
            rows_after: None,
            ended,
        }
    }
}

/// A step's failure, with the exit code it means.
struct Failure {
    exit: Exit,
    reason: String,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure { exit: error.exit(), reason: error.to_string() }
    }
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Failure {
        let exit = match &error {
            FormatError::Store(error) => error.exit(),
            FormatError::Corrupt(_) | FormatError::Unsupported(_) | FormatError::Mismatch(_) => Exit::Incomplete,
        };
        Failure { exit, reason: error.to_string() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { exit: error.exit, reason: error.message }
    }
}

/// Carries out the steps of one dataset; `outcomes[i]` belongs to `plan.steps[i]`, `None` where nothing was to be done.
pub async fn rewrite(rewrite: &Rewrite<'_>, plan: &DatasetPlan) -> Vec<Option<Outcome>> {
    // Summaries first: a stop in between leaves none that tells of files as they were.
    let mut outcomes: Vec<Option<Outcome>> = Vec::new();
    outcomes.resize_with(plan.steps.len(), || None);
    // Few large objects are each read back by several threads.
    let rewritten = plan.steps.iter().filter(|step| matches!(step.decision, Decision::Rewrite { .. })).count();
    let threads = rewrite.resources.threads.div_ceil(rewritten.clamp(1, in_flight(rewrite.resources)));
    for summaries in [true, false] {
        let numbers = (0..plan.steps.len()).filter(|number| plan.steps[*number].is_summary == summaries);
        let carried =
            numbers.map(|number| async move { (number, carry_out(rewrite, &plan.steps[number], threads).await) });
        let mut carried = futures::stream::iter(carried).buffer_unordered(in_flight(rewrite.resources));
        while let Some((number, outcome)) = carried.next().await {
            outcomes[number] = outcome;
        }
    }
    outcomes
}

/// `None`: there is nothing to be done.
async fn carry_out(rewrite: &Rewrite<'_>, step: &Step, threads: usize) -> Option<Outcome> {
    match &step.decision {
        Decision::Keep | Decision::Purge | Decision::Report | Decision::Skip { .. } | Decision::Refuse { .. } => None,
        Decision::Rewrite { .. } | Decision::Drop { .. } if (rewrite.stop)() => Some(Outcome::nothing(Ended::NotBegun)),
        Decision::Rewrite { rows, cleanse } => {
            Some(ended(rewrite, step, swap_rows(rewrite, step, threads, rows, cleanse).await))
        }
        Decision::Drop { .. } => Some(ended(rewrite, step, drop_object(rewrite, step).await)),
    }
}

/// One rewrite holds about one compressed row group next to its part buffers.
const REWRITE_MIB: u64 = 128;

fn in_flight(resources: &Resources) -> usize {
    ((resources.memory_mib / REWRITE_MIB).max(1) as usize).min(resources.threads)
}

fn ended(rewrite: &Rewrite<'_>, step: &Step, outcome: Result<Outcome, Failure>) -> Outcome {
    rewrite.meter.add(1, step.rows, step.object.size_bytes);
    match outcome {
        Ok(outcome) if matches!(outcome.ended, Ended::Failed { .. }) => outcome,
        Ok(outcome) => {
            match &outcome.ended {
                Ended::Dropped => {
                    tracing::info!(object = step.shown, rows_removed = outcome.rows_removed, "object dropped")
                }
                Ended::Rewritten | Ended::Failed { .. } | Ended::NotBegun => {
                    tracing::info!(object = step.shown, rows_removed = outcome.rows_removed, "object rewritten");
                }
            }
            outcome
        }
        Err(Failure { exit, reason }) => {
            // A store's message names the object as it is; the name may hold an identifier.
            let reason = reason.replace(&step.object.location.to_string(), &step.shown);
            tracing::error!(object = step.shown, reason, "object not rewritten");
            Outcome::nothing(Ended::Failed { exit, reason })
        }
    }
}

async fn swap_rows(
    rewrite: &Rewrite<'_>,
    step: &Step,
    threads: usize,
    rows: &roaring::RoaringTreemap,
    cleanse: &Cleanse,
) -> Result<Outcome, Failure> {
    let encoded = format_of(step)?;
    let write_id = format!("{}-{}", rewrite.journal.run_id, random_hex()?);
    let replacement = rewrite.store.replace(&step.object, &write_id).await?;
    let ready = write_replacement(rewrite, step, encoded, rows, cleanse, replacement).await?;
    let Ready { mut replacement, proof, written } = ready;
    let (size_bytes, sha256) = (written.size_bytes, hex::encode(written.sha256));
    let receipt = proof.receipt().clone();
    let strays_redacted: BTreeMap<String, u64> =
        receipt.strays_redacted.iter().map(|(column, cells)| (column.to_string(), *cells)).collect();
    let staged = match check_counts(step, &rewrite.spec.action, &receipt) {
        Ok(()) => replacement.stage().await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    let staged = match staged {
        Ok(Some(staged)) => read_back(rewrite, step, threads, staged, proof.clone()).await.map(|()| true),
        Ok(None) => Ok(false),
        Err(failure) => Err(failure),
    };
    let proven = match staged.and_then(|proven| rewrite.lock.check().map_err(Failure::from).map(|()| proven)) {
        Ok(proven) => proven,
        Err(failure) => {
            abort(rewrite, step, replacement).await;
            return Err(failure);
        }
    };
    let swap = Swap {
        dataset: rewrite.spec.name.clone(),
        location: step.shown.clone(),
        name_tag: name_tag(rewrite, step),
        etag_before: step.object.etag.0.clone(),
        rows_before: receipt.rows_before,
        rows_matched: step.rows_matched,
        rows_removed: receipt.rows_removed,
        rows_redacted: receipt.rows_redacted,
        strays_redacted: strays_redacted.clone(),
        rows_after: receipt.rows_after,
        dropped: false,
        size_bytes,
        sha256: sha256.clone(),
    };
    let sequence = match rewrite.journal.write(&Event::Swapping(swap.clone())).await {
        Ok(sequence) => sequence,
        Err(error) => {
            abort(rewrite, step, replacement).await;
            return Err(error.into());
        }
    };
    let object = match replacement.commit().await {
        Ok(object) => object,
        Err(error) => match after_failed_swap(rewrite, step, &swap, sequence, &error).await? {
            Settled::Swapped { object: Some(object) } => object,
            Settled::Swapped { object: None } | Settled::NotSwapped => return Err(error.into()),
        },
    };
    let differs = match proven {
        true => None,
        false => match read_back(rewrite, step, threads, object.clone(), proof).await {
            Ok(()) => None,
            // What could not be read is not yet known to be right: the swap stays in doubt.
            Err(failure) if failure.exit == Exit::Unavailable => return Err(failure),
            Err(failure) => {
                // Nothing is restored silently: the old version stays, and a person decides.
                let (location, etag) = (step.shown.clone(), step.object.etag.0.clone());
                rewrite.journal.hold(sequence, &Held { location, etag, reason: failure.reason.clone() }).await?;
                Some(failure)
            }
        },
    };
    rewrite.journal.write(&Event::Swapped { sequence, etag: object.etag.0.clone() }).await?;
    if let Some(Failure { exit, reason }) = differs {
        tracing::error!(object = step.shown, reason, "object rewritten, but not as it should be");
        // With the object as it now is: it must not be taken for another writer's.
        return Ok(Outcome { object: Some(object), ..Outcome::nothing(Ended::Failed { exit, reason }) });
    }
    Ok(Outcome {
        object: Some(object),
        sha256: Some(sha256),
        rows_removed: receipt.rows_removed,
        rows_redacted: receipt.rows_redacted,
        strays_redacted,
        rows_after: Some(receipt.rows_after),
        ended: Ended::Rewritten,
    })
}

/// Gives up what was begun. What stays behind is no object and holds kept rows only; why it was given up is what is to be told.
async fn abort(rewrite: &Rewrite<'_>, step: &Step, replacement: Box<dyn Replacement>) {
    if let Err(error) = replacement.abort().await {
        tracing::warn!(run = rewrite.journal.run_id, object = step.shown, %error, "replacement not removed");
    }
}

/// What a swap that ended in an error came to: the reply alone may be lost. While the store cannot tell, the swap stays open in
/// the journal, for the next run to settle.
async fn after_failed_swap(
    rewrite: &Rewrite<'_>,
    step: &Step,
    swap: &Swap,
    sequence: u64,
    error: &StoreError,
) -> Result<Settled, Failure> {
    let settled = match error {
        StoreError::Changed(_)
        | StoreError::NotFound(_)
        | StoreError::Denied { .. }
        | StoreError::Locked { .. }
        | StoreError::Archived { .. } => Settled::NotSwapped,
        StoreError::Unavailable { .. } | StoreError::Other { .. } => {
            settle(&rewrite.store, &step.object.location, swap).await?
        }
    };
    if settled == Settled::NotSwapped {
        rewrite.journal.write(&Event::GivenUp { sequence }).await?;
    } else {
        let reason = step.without_name(&error.to_string());
        tracing::warn!(object = step.shown, reason, "swapped, although the store told of a fault");
    }
    Ok(settled)
}

async fn drop_object(rewrite: &Rewrite<'_>, step: &Step) -> Result<Outcome, Failure> {
    rewrite.lock.check()?;
    let swap = Swap {
        dataset: rewrite.spec.name.clone(),
        location: step.shown.clone(),
        name_tag: name_tag(rewrite, step),
        etag_before: step.object.etag.0.clone(),
        rows_before: step.rows,
        rows_matched: step.rows_matched,
        rows_removed: step.rows,
        rows_redacted: 0,
        strays_redacted: BTreeMap::new(),
        rows_after: 0,
        dropped: true,
        size_bytes: 0,
        sha256: String::new(),
    };
    let sequence = rewrite.journal.write(&Event::Swapping(swap.clone())).await?;
    if let Err(error) = rewrite.store.delete(&step.object).await
        && after_failed_swap(rewrite, step, &swap, sequence, &error).await? == Settled::NotSwapped
    {
        return Err(error.into());
    }
    rewrite.journal.write(&Event::Swapped { sequence, etag: String::new() }).await?;
    Ok(Outcome { rows_removed: step.rows, rows_after: Some(0), ..Outcome::nothing(Ended::Dropped) })
}

/// What was written must be what was planned: the rows that find counted, and exactly those gone.
fn check_counts(step: &Step, action: &Action, receipt: &format::Receipt) -> Result<(), Failure> {
    let (removed, redacted) = match action {
        Action::Delete => (step.rows_matched, 0),
        Action::Redact(_) => (0, step.rows_matched),
    };
    let as_planned = receipt.rows_before == step.rows
        && receipt.rows_removed == removed
        && receipt.rows_redacted == redacted
        && receipt.rows_before - receipt.rows_removed == receipt.rows_after;
    if as_planned {
        return Ok(());
    }
    let format::Receipt { rows_before, rows_removed, rows_redacted, rows_after, .. } = receipt;
    Err(Failure {
        exit: Exit::Internal,
        reason: format!(
            "planned {} of {} rows, but the rewrite counted {rows_before} before, {rows_removed} removed, \
             {rows_redacted} redacted, {rows_after} after",
            step.rows_matched, step.rows
        ),
    })
}

/// A replacement that waits for its swap.
struct Ready {
    replacement: Box<dyn Replacement>,
    proof: Proof,
    written: Written,
}

/// Decodes, filters and encodes on a thread of its own; bytes leave through the replacement as they are made.
async fn write_replacement(
    rewrite: &Rewrite<'_>,
    step: &Step,
    encoded: format::Encoded,
    rows: &roaring::RoaringTreemap,
    cleanse: &Cleanse,
    replacement: Box<dyn Replacement>,
) -> Result<Ready, Failure> {
    let reader = ObjectReader::new(rewrite.store.clone(), step.object.clone());
    let mut out = ReplacementWriter::new(replacement);
    let (rows, cleanse) = (rows.clone(), cleanse.clone());
    let (action, tagger) = (rewrite.spec.action.clone(), rewrite.tagger.clone());
    let dialect = rewrite.spec.csv.clone();
    let work = tokio::task::spawn_blocking(move || {
        let edit = Edit { rows: &rows, action: &action, tagger: tagger.as_ref(), cleanse: &cleanse };
        // A decoder that panics on odd bytes must not take the replacement with it, which is to be aborted.
        let work = AssertUnwindSafe(|| format::rewrite(encoded, &dialect, &reader, &edit, &mut out));
        let outcome = std::panic::catch_unwind(work)
            .unwrap_or_else(|_| Err(FormatError::Corrupt("the decoder panicked".to_owned())));
        let (replacement, written) = out.finish();
        let ready = outcome.map_err(Failure::from).and_then(|proof| match written {
            Ok(written) => Ok((proof, written)),
            Err(error) => Err(io_failure(&error)),
        });
        (replacement, ready)
    });
    let stopped = |_| Failure { exit: Exit::Internal, reason: "the writing thread ended".to_owned() };
    let (replacement, ready) = work.await.map_err(stopped)?;
    match ready {
        Ok((proof, written)) => Ok(Ready { replacement, proof, written }),
        Err(failure) => {
            abort(rewrite, step, replacement).await;
            Err(failure)
        }
    }
}

fn format_of(step: &Step) -> Result<format::Encoded, Failure> {
    let format =
        step.format.ok_or_else(|| Failure { exit: Exit::Internal, reason: "planned without a format".to_owned() })?;
    Ok(format::Encoded { format, compression: step.compression })
}

fn io_failure(error: &io::Error) -> Failure {
    match store_error(error) {
        Some(found) => found.clone().into(),
        None => Failure { exit: Exit::Internal, reason: format!("cannot write: {}", error.kind()) },
    }
}

/// Opens the written object anew and compares it with what was kept.
async fn read_back(
    rewrite: &Rewrite<'_>,
    step: &Step,
    threads: usize,
    object: Object,
    proof: Proof,
) -> Result<(), Failure> {
    let reader = ObjectReader::new(rewrite.store.clone(), object);
    let (kind, dialect) = (format_of(step)?, rewrite.spec.csv.clone());
    let work = tokio::task::spawn_blocking(move || format::read_back(kind, &dialect, &reader, &proof, threads));
    match work.await {
        Ok(outcome) => outcome.map_err(Failure::from),
        Err(_) => Err(Failure {
            exit: Exit::Incomplete,
            reason: "differs after the rewrite: the decoder panicked".to_owned(),
        }),
    }
}

fn random_hex() -> Result<String> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("no random bytes: {error}")))?;
    Ok(hex::encode(bytes))
}

fn name_tag(rewrite: &Rewrite<'_>, step: &Step) -> Option<String> {
    let location = &step.object.location;
    (step.shown != location.to_string()).then(|| (rewrite.name_tag)(location))
}

/// What a swap that a dead run announced came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The object is ours; `None` when it was dropped.
    Swapped { object: Option<Object> },
    /// It is as it was, or someone else's by now: this run looks at it afresh.
    NotSwapped,
}

/// Looks whether an announced swap happened: an object with the announced size and digest is ours.
pub async fn settle(store: &Arc<dyn Store>, location: &Location, swap: &Swap) -> Result<Settled> {
    let object = match store.head(location).await {
        Ok(object) if swap.dropped || object.size_bytes != swap.size_bytes => {
            drop(object);
            return Ok(Settled::NotSwapped);
        }
        Ok(object) => object,
        Err(StoreError::NotFound(_)) if swap.dropped => return Ok(Settled::Swapped { object: None }),
        Err(StoreError::NotFound(_)) => return Ok(Settled::NotSwapped),
        Err(error) => return Err(error.into()),
    };
    let mut sha256 = Sha256::new();
    let mut at = 0;
    while at < object.size_bytes {
        let end = object.size_bytes.min(at + (4 << 20));
        match store::read(store.as_ref(), &object, at..end).await {
            Ok(bytes) => sha256.update(bytes),
            // Someone else's already.
            Err(StoreError::Changed(_) | StoreError::NotFound(_)) => return Ok(Settled::NotSwapped),
            Err(error) => return Err(error.into()),
        }
        at = end;
    }
    if hex::encode(sha256.finalize()) == swap.sha256 {
        Ok(Settled::Swapped { object: Some(object) })
    } else {
        Ok(Settled::NotSwapped)
    }
}
