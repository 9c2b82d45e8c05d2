//! The purge stage: removes for good what a listing of current objects does not show: noncurrent versions that hold a match, the
//! delete markers that only hid them, and unfinished uploads that have grown old.
//!
//! Runs after every rewritten object was read back: until then the old version is the only good copy of the rows we keep
//! (invariant 2). A version that a lock protects is an outcome of its own, never bypassed and never hidden.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};

use crate::dataset::listing;
use crate::error::{Error, Exit, Result};
use crate::job::{DatasetSpec, Resources};
use crate::journal::{AnnouncedPurge, Event, Held, Journal, Lock};
use crate::meter::Meter;
use crate::plan::{DatasetPlan, Decision};
use crate::store::{Etag, Location, Object, Store, StoreError, UnfinishedUpload, Version};

/// Everything the purge of one dataset needs.
pub struct Purge<'a> {
    pub spec: &'a DatasetSpec,
    pub store: Arc<dyn Store>,
    pub journal: &'a Journal,
    pub lock: &'a Lock,
    /// What must not be purged.
    pub held: &'a [Held],
    pub resources: &'a Resources,
    pub meter: Arc<Meter>,
    /// Set when the run is asked to stop: what has begun is ended, nothing new begins.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// How an object's name may be shown and noted.
    pub shown: &'a (dyn Fn(&Location) -> String + Sync),
}

/// An object that this run, or a killed attempt of it, has replaced or dropped: its old version holds the removed rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    pub location: Location,
    pub etag: Etag,
    pub rows: u64,
    pub rows_matched: u64,
}

/// What became of one dataset.
#[derive(Debug, Clone, Default)]
pub struct Purged {
    /// `None` where the store keeps no versions.
    pub versions: Option<PurgedVersions>,
    pub uploads_listed: u64,
    pub uploads_aborted: u64,
    /// Uploads that should have gone and did not, with the reason.
    pub uploads_failed: Vec<(Exit, String)>,
    /// Its versions or uploads could not be listed: what had to go is still there.
    pub unlisted: Option<Error>,
}

#[derive(Debug, Clone, Default)]
pub struct PurgedVersions {
    /// Noncurrent versions and delete markers that were there before the purge.
    pub listed: u64,
    pub outcomes: Vec<PurgeOutcome>,
}

/// What became of one version.
#[derive(Debug, Clone)]
pub struct PurgeOutcome {
    pub object: Object,
    pub rows: u64,
    pub rows_matched: u64,
    pub ended: PurgeEnded,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PurgeEnded {
    Purged,
    Failed {
        exit: Exit,
        reason: String,
    },
    /// The run was asked to stop before its turn.
    NotBegun,
}

/// A version that has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Doomed {
    object: Object,
    rows: u64,
    rows_matched: u64,
}

/// So many versions are announced to the journal at a time.
const ANNOUNCED_AT_A_TIME: usize = 1000;

/// Purges one dataset. `earlier` are versions that a killed attempt of this run had announced. Errors: the store is out of reach, or
/// the lock is lost.
pub async fn purge(
    purge: &Purge<'_>,
    plan: &DatasetPlan,
    replaced: &[Replaced],
    earlier: &[AnnouncedPurge],
    now: Timestamp,
) -> Result<Purged> {
    let root = purge.spec.scope.root();
    let mut purged = Purged::default();
    let spec = purge.spec;
    let versions = purge.store.list_versions(root).await;
    match versions.map_err(|error| error.not_listed("the object versions", &spec.name, &spec.uri)) {
        Ok(Some(versions)) => {
            purged.versions = Some(purge_versions(purge, &versions, plan, replaced, earlier).await?);
        }
        Ok(None) => {}
        Err(error) if error.is_of_one_dataset() => purged.unlisted = Some(error),
        Err(error) => return Err(error),
    }
    let uploads = purge.store.list_uploads(root).await;
    match uploads.map_err(|error| error.not_listed("the uploads", &spec.name, &spec.uri)) {
        Ok(uploads) => abort_uploads(purge, &uploads, now, &mut purged).await,
        Err(error) if error.is_of_one_dataset() => purged.unlisted = Some(error),
        Err(error) => return Err(error),
    }
    Ok(purged)
}

async fn purge_versions(
    purge: &Purge<'_>,
    versions: &[Version],
    plan: &DatasetPlan,
    replaced: &[Replaced],
    earlier: &[AnnouncedPurge],
) -> Result<PurgedVersions> {
    let belongs = |name: &str| listing::belongs(name, purge.spec.format);
    let is_ours = |location: &Location| listing::is_in_scope(&purge.spec.scope, location, &belongs);
    let ours: Vec<&Version> = versions.iter().filter(|version| is_ours(&version.object.location)).collect();
    let mut outcomes = gone_already(&ours, earlier, purge.shown);
    let listed = ours.iter().filter(|version| !version.is_current || version.is_delete_marker).count() + outcomes.len();
    let (kept_back, doomed): (Vec<_>, Vec<_>) = doomed(&ours, plan, replaced).into_iter().partition(|doomed| {
        let location = (purge.shown)(&doomed.object.location);
        purge.held.iter().any(|held| held.location == location && held.etag == doomed.object.etag.0)
    });
    outcomes.extend(kept_back.into_iter().map(kept_back_by_hand));
    doomed.iter().for_each(|version| purge.meter.expect(1, version.object.size_bytes));
    for chunk in doomed.chunks(ANNOUNCED_AT_A_TIME) {
        purge.lock.check()?;
        let announced = chunk.iter().map(|version| version.announced(purge)).collect();
        purge.journal.write(&Event::Purging { versions: announced }).await?;
        let deletes = chunk.iter().map(|version| delete(purge, version));
        outcomes.extend(
            futures::stream::iter(deletes)
                .buffered(purge.resources.requests_in_flight)
                .collect::<Vec<PurgeOutcome>>()
                .await,
        );
    }
    let gone: BTreeSet<(&Location, &str)> = outcomes
        .iter()
        .filter(|outcome| outcome.ended == PurgeEnded::Purged)
        .filter_map(|outcome| Some((&outcome.object.location, outcome.object.version_id.as_deref()?)))
        .collect();
    for marker in idle_markers(&ours, &gone) {
        if let Err(error) = purge.store.delete_version(marker).await {
            // It holds a name and no row; the version it hid is gone.
            let (object, error) = hidden(purge, &marker.location, &error);
            tracing::warn!(object, error, "delete marker not removed");
        }
    }
    Ok(PurgedVersions { listed: listed as u64, outcomes })
}

impl Doomed {
    fn announced(&self, purge: &Purge<'_>) -> AnnouncedPurge {
        AnnouncedPurge {
            dataset: purge.spec.name.clone(),
            location: (purge.shown)(&self.object.location),
            version_id: self.object.version_id.clone().unwrap_or_default(),
            etag: self.object.etag.0.clone(),
            size_bytes: self.object.size_bytes,
            rows: self.rows,
            rows_matched: self.rows_matched,
        }
    }
}

fn kept_back_by_hand(version: Doomed) -> PurgeOutcome {
    let Doomed { object, rows, rows_matched } = version;
    let reason = "its rewrite could not be proven, so it may be the only good copy; compare it with the current object, then \
                  remove its note from the state's folder held/";
    PurgeOutcome {
        object,
        rows,
        rows_matched,
        ended: PurgeEnded::Failed { exit: Exit::Incomplete, reason: reason.to_owned() },
    }
}

/// The versions that have to go: those whose scan found a match, and those that this run has replaced.
fn doomed(versions: &[&Version], plan: &DatasetPlan, replaced: &[Replaced]) -> Vec<Doomed> {
    let planned: BTreeMap<(&Location, Option<&str>), (u64, u64)> = plan
        .versions
        .iter()
        .flatten()
        .filter(|step| matches!(step.decision, Decision::Purge))
        .map(|step| ((&step.object.location, step.object.version_id.as_deref()), (step.rows, step.rows_matched)))
        .collect();
    let replaced: BTreeMap<(&Location, &Etag), (u64, u64)> =
        replaced.iter().map(|object| ((&object.location, &object.etag), (object.rows, object.rows_matched))).collect();
    let doomed = |version: &&Version| {
        let object = &version.object;
        let counts = planned
            .get(&(&object.location, object.version_id.as_deref()))
            .or_else(|| replaced.get(&(&object.location, &object.etag)));
        counts.map(|(rows, rows_matched)| Doomed { object: object.clone(), rows: *rows, rows_matched: *rows_matched })
    };
    versions.iter().filter(|version| !version.is_current && !version.is_delete_marker).filter_map(doomed).collect()
}

/// What a killed attempt had announced and no listing shows any more was purged by it.
fn gone_already(
    versions: &[&Version],
    earlier: &[AnnouncedPurge],
    shown: &(dyn Fn(&Location) -> String + Sync),
) -> Vec<PurgeOutcome> {
    let there: BTreeSet<(String, &str)> = versions
        .iter()
        .filter_map(|version| Some((shown(&version.object.location), version.object.version_id.as_deref()?)))
        .collect();
    let gone = earlier.iter().filter(|purge| !there.contains(&(purge.location.clone(), purge.version_id.as_str())));
    gone.map(|purge| PurgeOutcome {
        object: purge.object(),
        rows: purge.rows,
        rows_matched: purge.rows_matched,
        ended: PurgeEnded::Purged,
    })
    .collect()
}

/// The delete markers of keys of which nothing but markers is left, and something was purged. Where a version stays, so does the
/// marker: without it the version would be the current object again.
fn idle_markers<'v>(versions: &[&'v Version], gone: &BTreeSet<(&Location, &str)>) -> Vec<&'v Object> {
    let is_gone =
        |object: &Object| object.version_id.as_deref().is_some_and(|id| gone.contains(&(&object.location, id)));
    let purged: BTreeSet<&Location> = gone.iter().map(|(location, _)| *location).collect();
    let left: BTreeSet<&Location> = versions
        .iter()
        .filter(|version| !version.is_delete_marker && !is_gone(&version.object))
        .map(|version| &version.object.location)
        .collect();
    versions
        .iter()
        .filter(|version| version.is_delete_marker)
        .map(|version| &version.object)
        .filter(|marker| purged.contains(&marker.location) && !left.contains(&marker.location))
        .collect()
}

async fn delete(purge: &Purge<'_>, version: &Doomed) -> PurgeOutcome {
    let Doomed { object, rows, rows_matched } = version.clone();
    let outcome = |ended| PurgeOutcome { object: object.clone(), rows, rows_matched, ended };
    if (purge.stop)() {
        return outcome(PurgeEnded::NotBegun);
    }
    let deleted = purge.store.delete_version(&object).await;
    purge.meter.add(1, rows, object.size_bytes);
    let version_id = object.version_id.as_deref().unwrap_or_default();
    match deleted {
        Ok(()) => {
            tracing::info!(object = (purge.shown)(&object.location), version_id, "version purged");
            outcome(PurgeEnded::Purged)
        }
        Err(error) => {
            let (name, reason) = hidden(purge, &object.location, &error);
            tracing::error!(object = name, version_id, error = reason, "version not purged");
            outcome(PurgeEnded::Failed { exit: error.exit(), reason })
        }
    }
}

async fn abort_uploads(purge: &Purge<'_>, uploads: &[UnfinishedUpload], now: Timestamp, purged: &mut Purged) {
    let belongs = |name: &str| listing::belongs(name, purge.spec.format);
    let ours = uploads.iter().filter(|upload| listing::is_in_scope(&purge.spec.scope, &upload.location, &belongs));
    for upload in ours {
        purged.uploads_listed += 1;
        if !is_old(upload, purge.spec.versions.abort_uploads_after_days, now) || (purge.stop)() {
            continue;
        }
        match purge.store.abort_upload(upload).await {
            Ok(()) => {
                tracing::info!(object = (purge.shown)(&upload.location), "unfinished upload aborted");
                purged.uploads_aborted += 1;
            }
            Err(error) => {
                let (name, reason) = hidden(purge, &upload.location, &error);
                tracing::error!(object = name, error = reason, "unfinished upload not aborted");
                purged.uploads_failed.push((error.exit(), reason));
            }
        }
    }
}

/// The name as it may be shown, and a store's message with that name in it.
fn hidden(purge: &Purge<'_>, location: &Location, error: &StoreError) -> (String, String) {
    let shown = (purge.shown)(location);
    let reason = error.to_string().replace(&location.to_string(), &shown);
    (shown, reason)
}

/// An upload whose beginning nobody tells is old: it may be as old as the bucket.
fn is_old(upload: &UnfinishedUpload, days: u32, now: Timestamp) -> bool {
    let age = SignedDuration::from_hours(24 * i64::from(days));
    upload.begun_at.is_none_or(|begun_at| now.duration_since(begun_at) >= age)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(key: &str, id: &str, is_current: bool, is_delete_marker: bool) -> Version {
        let location = Location::S3 { bucket: "lake".to_owned(), key: key.to_owned() };
        let object = Object {
            location,
            size_bytes: 1,
            etag: Etag(format!("\"{id}\"")),
            version_id: Some(id.to_owned()),
            storage_class: None,
        };
        Version { object, is_current, is_delete_marker }
    }

    #[test]
    fn a_marker_goes_with_the_last_version_it_hid_and_stays_with_any_other() {
        for (name, versions, gone, wanted) in [
            ("all gone", vec![("m", true, true), ("1", false, false)], vec!["1"], vec!["m"]),
            ("one left", vec![("m", true, true), ("1", false, false), ("2", false, false)], vec!["1"], vec![]),
            ("none purged", vec![("m", true, true)], vec![], vec![]),
            ("an old marker", vec![("3", true, false), ("m", false, true), ("1", false, false)], vec!["1"], vec![]),
            (
                "two markers",
                vec![("m", true, true), ("n", false, true), ("1", false, false)],
                vec!["1"],
                vec!["m", "n"],
            ),
        ] {
            let versions: Vec<Version> =
                versions.into_iter().map(|(id, current, marker)| version("a", id, current, marker)).collect();
            let listed: Vec<&Version> = versions.iter().collect();
            let location = versions[0].object.location.clone();
            let gone = gone.into_iter().map(|id| (&location, id)).collect();
            let idle: Vec<&str> =
                idle_markers(&listed, &gone).into_iter().filter_map(|marker| marker.version_id.as_deref()).collect();
            assert_eq!(idle, wanted, "{name}");
        }
    }

    #[test]
    fn uploads_grow_old_by_the_day() {
        let upload = |begun_at: Option<&str>| UnfinishedUpload {
            location: Location::S3 { bucket: "lake".to_owned(), key: "a".to_owned() },
            upload_id: "u".to_owned(),
            begun_at: begun_at.map(|text| text.parse().unwrap()),
        };
        let now = "2026-11-25T00:00:00Z".parse().unwrap();
        for (begun_at, days, wanted) in [
            (Some("2026-11-18T00:00:00Z"), 7, true),
            (Some("2026-11-18T00:00:01Z"), 7, false),
            (Some("2026-11-25T00:00:00Z"), 0, true),
            (None, 7, true),
        ] {
            assert_eq!(is_old(&upload(begun_at), days, now), wanted, "{begun_at:?}");
        }
    }
}
