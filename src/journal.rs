//! The journal of a run and the lock on its state.
//!
//! Every swap of an object is announced before it happens and confirmed after it (write before destroy), each entry an
//! object of its own that is written once. After a kill, the next run reads the journal and knows what the dead one did.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Exit, Result};
use crate::store::{self, Etag, Location, Object, Precondition, Store, StoreError};

/// What a journal entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Begun {
        started_at: Timestamp,
        job: String,
    },
    /// The new content is complete and proven as far as the store allows; the swap comes next.
    Swapping(Swap),
    Swapped {
        sequence: u64,
        etag: String,
    },
    /// The swap did not happen: the object is as it was.
    GivenUp {
        sequence: u64,
    },
    /// These versions are removed next; a listing tells afterwards which of them are gone.
    Purging {
        versions: Vec<AnnouncedPurge>,
    },
}

/// One version that is to be removed for good; enough to put it into the manifest when it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedPurge {
    pub dataset: String,
    pub location: String,
    pub version_id: String,
    pub etag: String,
    pub size_bytes: u64,
    pub rows: u64,
    pub rows_matched: u64,
}

impl AnnouncedPurge {
    /// The version as it was.
    pub fn object(&self) -> Object {
        Object {
            location: Location::shown(&self.location),
            size_bytes: self.size_bytes,
            etag: Etag(self.etag.clone()),
            version_id: Some(self.version_id.clone()),
            storage_class: None,
        }
    }
}

/// The counts and names of one swap; enough to tell afterwards whether it happened, and to put it into the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    pub dataset: String,
    /// As it may be shown.
    pub location: String,
    /// The keyed tag of the true name, where that may not be shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_tag: Option<String>,
    pub etag_before: String,
    pub rows_before: u64,
    pub rows_matched: u64,
    pub rows_removed: u64,
    pub rows_redacted: u64,
    /// Cells in which a stray identifier was replaced, by column.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub strays_redacted: BTreeMap<String, u64>,
    pub rows_after: u64,
    pub dropped: bool,
    /// Of the new content; an object that has both is ours.
    pub size_bytes: u64,
    pub sha256: String,
}

/// An object whose new content was swapped in and then differed from what was kept: its old version may be the only good copy, so
/// no run purges it until a person has looked and removed this note from the state's folder `held/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub location: String,
    /// Of the old version.
    pub etag: String,
    pub reason: String,
}

fn holds(state: &Location) -> Location {
    state.join("held")
}

/// What earlier runs hold back from purging.
pub async fn held(store: &Arc<dyn Store>, state: &Location) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for entry in store::list(store.as_ref(), &holds(state).join("")).await? {
        let (_, bytes) = store::read_whole(store.as_ref(), &entry.location).await?;
        held.push(serde_json::from_slice(&bytes).map_err(|_| {
            Error::new(Exit::Untrusted, format!("{} is no note of a held version", entry.location))
                .hint("it kept an old object version from being purged: find out which before you remove it")
        })?);
    }
    Ok(held)
}

/// The journal of one run.
#[derive(Debug)]
pub struct Journal {
    store: Arc<dyn Store>,
    state: Location,
    root: Location,
    pub run_id: String,
    next: AtomicU64,
    /// Swaps that were announced and neither confirmed nor given up.
    open: AtomicU64,
}

/// What a run that never ended left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    pub run_id: String,
    /// The name of the job that it ran.
    pub job: String,
    pub started_at: Timestamp,
    /// Swaps by sequence number, with the ETag after it where the swap was confirmed.
    pub swaps: Vec<(u64, Swap, Option<String>)>,
    pub purges: Vec<AnnouncedPurge>,
    next: u64,
}

fn journals(state: &Location) -> Location {
    state.join("journal")
}

impl Journal {
    pub async fn begin(
        store: Arc<dyn Store>,
        state: &Location,
        run_id: &str,
        started_at: Timestamp,
        job: &str,
    ) -> Result<Journal> {
        let journal = Journal::unwritten(store, state, run_id);
        journal.write(&Event::Begun { started_at, job: job.to_owned() }).await?;
        Ok(journal)
    }

    /// A journal that nothing is written to, for a run that changes nothing.
    pub fn unwritten(store: Arc<dyn Store>, state: &Location, run_id: &str) -> Journal {
        let root = journals(state).join(run_id);
        let (next, open) = (AtomicU64::new(0), AtomicU64::new(0));
        Journal { store, state: state.clone(), root, run_id: run_id.to_owned(), next, open }
    }

    /// Goes on with the journal of a run that never ended.
    pub fn resume(store: Arc<dyn Store>, state: &Location, unfinished: &Unfinished) -> Journal {
        let root = journals(state).join(&unfinished.run_id);
        let open = unfinished.swaps.iter().filter(|(_, _, confirmed)| confirmed.is_none()).count() as u64;
        let (next, open) = (AtomicU64::new(unfinished.next), AtomicU64::new(open));
        Journal { store, state: state.clone(), root, run_id: unfinished.run_id.clone(), next, open }
    }

    /// Writes one entry durably and returns its sequence number.
    pub async fn write(&self, event: &Event) -> Result<u64, StoreError> {
        let sequence = self.next.fetch_add(1, Ordering::SeqCst);
        let bytes = serde_json::to_vec(event).expect("a journal entry is plain JSON");
        let location = self.root.join(&format!("{sequence:08}.json"));
        put_or_own(self.store.as_ref(), &location, Bytes::from(bytes), Precondition::Absent).await?;
        match event {
            Event::Begun { .. } | Event::Purging { .. } => {}
            Event::Swapping(_) => drop(self.open.fetch_add(1, Ordering::SeqCst)),
            Event::Swapped { .. } | Event::GivenUp { .. } => drop(self.open.fetch_sub(1, Ordering::SeqCst)),
        }
        stop_for_tests(sequence);
        Ok(sequence)
    }

    /// How many announced swaps nobody can tell the end of. Such a run must not end with a manifest: the next one goes on with
    /// its journal and looks.
    pub fn swaps_in_doubt(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }

    /// Notes durably that an old version must not be purged.
    pub async fn hold(&self, sequence: u64, held: &Held) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(held).expect("a note is plain JSON");
        let name = format!("{}-{sequence:08}.json", self.run_id);
        self.store.put(&holds(&self.state).join(&name), Bytes::from(bytes), Precondition::None).await.map(drop)
    }

    /// Whether a swap was announced: then a later run must know of it.
    pub fn has_swaps(&self) -> bool {
        self.next.load(Ordering::SeqCst) > 1
    }

    /// Removes the journal: the run's manifest tells it all now. Entries go last to first, so that a kill in between leaves
    /// a journal that still begins.
    pub async fn remove(&self) -> Result<(), StoreError> {
        remove(&self.store, &self.root).await
    }
}

/// One conditional write. A conflict with the very same bytes is our own write, whose reply was lost.
async fn put_or_own(
    store: &dyn Store,
    location: &Location,
    bytes: Bytes,
    when: Precondition,
) -> Result<Object, StoreError> {
    match store.put(location, bytes.clone(), when).await {
        Err(StoreError::Changed(changed)) => match store::read_whole(store, location).await {
            Ok((object, there)) if there == bytes => Ok(object),
            Ok(_) | Err(StoreError::NotFound(_)) => Err(StoreError::Changed(changed)),
            Err(error) => Err(error),
        },
        other => other,
    }
}

async fn remove(store: &Arc<dyn Store>, root: &Location) -> Result<(), StoreError> {
    let prefix = root.join("");
    for entry in store::list(store.as_ref(), &prefix).await?.iter().rev() {
        store.delete(entry).await?;
    }
    if let Location::Local(folder) = root {
        remove_empty_beside(folder.clone()).await;
    }
    Ok(())
}

/// On a local disk a journal without entries leaves its folder, and so did those before it. Of one that is not empty nothing is removed.
async fn remove_empty_beside(folder: PathBuf) {
    let removing = tokio::task::spawn_blocking(move || {
        let beside = folder.parent().and_then(|journals| std::fs::read_dir(journals).ok());
        beside.into_iter().flatten().flatten().for_each(|entry| drop(std::fs::remove_dir(entry.path())));
    });
    // What is left over holds nothing.
    drop(removing.await);
}

/// Crash tests name an entry after which the process is to die as by kill -9.
fn stop_for_tests(sequence: u64) {
    if cfg!(debug_assertions)
        && std::env::var("LAKESCRUB_TEST_KILL_AFTER_ENTRY").is_ok_and(|wanted| wanted == sequence.to_string())
    {
        // An abort runs no destructor and flushes nothing, just as a kill.
        std::process::abort();
    }
}

/// The journal that a run without an end left, if any. `has_manifest` says whether a run's manifest exists: then only the
/// clean-up was missing, which is done here.
pub async fn unfinished(
    store: &Arc<dyn Store>,
    state: &Location,
    has_manifest: impl AsyncFn(&str) -> Result<bool>,
) -> Result<Option<Unfinished>> {
    let mut found: Vec<Unfinished> = Vec::new();
    let entries = store::list(store.as_ref(), &journals(state).join("")).await?;
    for entry in &entries {
        let Some((run_id, sequence)) = entry_name(entry) else { continue };
        let (_, bytes) = store::read_whole(store.as_ref(), &entry.location).await?;
        let event: Event = serde_json::from_slice(&bytes).map_err(|_| {
            Error::new(Exit::Untrusted, format!("the journal entry {} is no journal entry", entry.location))
                .hint("move the folder journal/ of the state away and run again")
        })?;
        if found.last().is_none_or(|last| last.run_id != run_id) {
            found.push(Unfinished {
                job: String::new(),
                run_id,
                started_at: Timestamp::UNIX_EPOCH,
                swaps: Vec::new(),
                purges: Vec::new(),
                next: 0,
            });
        }
        found.last_mut().expect("pushed above").take(sequence, event);
    }
    let mut open = None;
    for unfinished in found {
        if has_manifest(&unfinished.run_id).await? {
            remove(store, &journals(state).join(&unfinished.run_id)).await?;
        } else {
            open = Some(unfinished);
        }
    }
    Ok(open)
}

fn entry_name(entry: &Object) -> Option<(String, u64)> {
    let name = entry.location.to_string();
    let mut segments = name.rsplit('/');
    let sequence = segments.next()?.strip_suffix(".json")?.parse().ok()?;
    Some((segments.next()?.to_owned(), sequence))
}

impl Unfinished {
    fn take(&mut self, sequence: u64, event: Event) {
        self.next = self.next.max(sequence + 1);
        match event {
            Event::Begun { started_at, job } => (self.started_at, self.job) = (started_at, job),
            Event::Swapping(swap) => self.swaps.push((sequence, swap, None)),
            Event::Swapped { sequence, etag } => {
                if let Some(swap) = self.swaps.iter_mut().find(|swap| swap.0 == sequence) {
                    swap.2 = Some(etag);
                }
            }
            Event::GivenUp { sequence } => self.swaps.retain(|swap| swap.0 != sequence),
            Event::Purging { versions } => self.purges.extend(versions),
        }
    }
}

/// Who holds the lock on a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    run_id: String,
    host: String,
    pid: u32,
    /// Tells a process from a later one of the same number.
    process_started: String,
    taken_at: Timestamp,
    expires_at: Timestamp,
}

/// After this long without renewal a lock is dead.
const LOCK_TTL: SignedDuration = SignedDuration::from_secs(60);
const RENEW_EVERY: Duration = Duration::from_secs(15);

/// The lock on a state, renewed in the background until it is released.
#[derive(Debug)]
pub struct Lock {
    store: Arc<dyn Store>,
    location: Location,
    current: Arc<tokio::sync::Mutex<Object>>,
    lost: Arc<AtomicBool>,
    /// Seconds since boot at which it was last ours for certain.
    renewed_s: Arc<AtomicU64>,
    renewal: tokio::task::JoinHandle<()>,
}

/// Time since boot, in seconds; goes on while the machine sleeps, and no clock change moves it.
fn boot_seconds() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec.unsigned_abs()
}

impl Lock {
    /// Takes the lock, or says who holds it. A lock that expired, or whose process died on this machine, is taken over.
    pub async fn take(store: Arc<dyn Store>, state: &Location, run_id: &str) -> Result<Lock> {
        let location = state.join("lock.json");
        let ours = Holder::this(run_id);
        let mut precondition = Precondition::Absent;
        for _ in 0..5 {
            let asked_s = boot_seconds();
            match put_or_own(store.as_ref(), &location, ours.bytes(), precondition).await {
                Ok(object) => return Ok(Lock::hold(store, location, object, ours, asked_s)),
                Err(StoreError::Changed(_)) => {}
                Err(error) => return Err(error.into()),
            }
            precondition = match store::read_whole(store.as_ref(), &location).await {
                Err(StoreError::NotFound(_)) => Precondition::Absent,
                Err(error) => return Err(error.into()),
                Ok((object, bytes)) => match serde_json::from_slice::<Holder>(&bytes) {
                    Ok(holder) if holder.lives(&ours) => return Err(holder.refusal()),
                    // Dead, or no lock of ours at all: taken over unless another run is quicker.
                    Ok(_) | Err(_) => Precondition::Unchanged(object.etag),
                },
            };
        }
        Err(Error::new(Exit::Conflict, "the lock of the state changes hands too fast").hint("run again"))
    }

    fn hold(store: Arc<dyn Store>, location: Location, object: Object, holder: Holder, since_s: u64) -> Lock {
        let current = Arc::new(tokio::sync::Mutex::new(object));
        let lost = Arc::new(AtomicBool::new(false));
        let renewed_s = Arc::new(AtomicU64::new(since_s));
        let renewing = Renewing { current: current.clone(), lost: lost.clone(), renewed_s: renewed_s.clone() };
        let renewal = tokio::spawn(renew(store.clone(), location.clone(), holder, renewing));
        Lock { store, location, current, lost, renewed_s, renewal }
    }

    /// An error once another run has taken the lock over, or may have since it was last renewed; asked before every swap.
    pub fn check(&self) -> Result<()> {
        let age_s = boot_seconds().saturating_sub(self.renewed_s.load(Ordering::SeqCst));
        if self.lost.load(Ordering::SeqCst) || age_s >= LOCK_TTL.as_secs().unsigned_abs() {
            return Err(Error::new(
                Exit::Conflict,
                format!("the lock {} expired or was taken over by another run", self.location),
            )
            .hint("this process was stalled for longer than the lock lives; run again"));
        }
        Ok(())
    }

    pub async fn release(self) -> Result<(), StoreError> {
        // A renewal under way holds it; one that is cut off could still arrive after the lock was removed.
        let current = self.current.lock().await;
        self.renewal.abort();
        match self.store.delete(&current).await {
            // Taken over: not ours to remove.
            Err(StoreError::Changed(_)) => Ok(()),
            other => other,
        }
    }
}

/// What the renewal of a lock shares with its holder.
struct Renewing {
    current: Arc<tokio::sync::Mutex<Object>>,
    lost: Arc<AtomicBool>,
    renewed_s: Arc<AtomicU64>,
}

async fn renew(store: Arc<dyn Store>, location: Location, mut holder: Holder, shared: Renewing) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        let mut object = shared.current.lock().await;
        let asked_s = boot_seconds();
        holder.expires_at = Timestamp::now() + LOCK_TTL;
        let when = Precondition::Unchanged(object.etag.clone());
        match put_or_own(store.as_ref(), &location, holder.bytes(), when).await {
            Ok(renewed) => {
                *object = renewed;
                shared.renewed_s.store(asked_s, Ordering::SeqCst);
            }
            Err(StoreError::Changed(_) | StoreError::NotFound(_)) => return shared.lost.store(true, Ordering::SeqCst),
            // The store may come back before the lock expires; if not, the swaps fail as well.
            Err(_) => tracing::warn!(lock = %location, "lock not renewed"),
        }
    }
}

impl Holder {
    fn this(run_id: &str) -> Holder {
        let now = Timestamp::now();
        Holder {
            run_id: run_id.to_owned(),
            host: this_host(),
            pid: std::process::id(),
            process_started: process_started(std::process::id()).unwrap_or_default(),
            taken_at: now,
            expires_at: now + LOCK_TTL,
        }
    }

    fn bytes(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("a lock is plain JSON"))
    }

    fn lives(&self, ours: &Holder) -> bool {
        let here = !self.host.is_empty() && self.host == ours.host;
        !(here && self.process_is_gone()) && Timestamp::now() < self.expires_at
    }

    /// On this machine. One that may not be looked into (hidepid) is there as long as signals could reach somebody of that number.
    fn process_is_gone(&self) -> bool {
        match process_started(self.pid) {
            Some(started) => started != self.process_started,
            None => {
                let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
                pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
            }
        }
    }

    fn refusal(&self) -> Error {
        Error::new(
            Exit::Conflict,
            format!("run {} (process {}, since {}) holds the lock on this state", self.run_id, self.pid, self.taken_at),
        )
        .hint(format!("wait for it to end; a dead holder's lock expires at {}", self.expires_at))
    }
}

/// This boot of this machine, and this space of process numbers: only there does a process number mean anything.
fn this_host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    if boot.is_empty() || space.is_empty() { String::new() } else { format!("{} {space}", boot.trim()) }
}

/// The start time of a process in clock ticks since boot: field 22 of proc(5) `stat`, after the name in parentheses.
fn process_started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::local::LocalStore;

    #[test]
    fn a_lock_that_was_not_renewed_for_its_lifetime_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let state = Location::Local(folder.path().to_owned());
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let lock = Lock::take(Arc::new(LocalStore), &state, "run").await.unwrap();
            lock.check().unwrap();
            let stalled_s = boot_seconds().checked_sub(LOCK_TTL.as_secs().unsigned_abs()).expect("booted a minute ago");
            lock.renewed_s.store(stalled_s, Ordering::SeqCst);
            assert_eq!(lock.check().unwrap_err().exit, Exit::Conflict);
            lock.release().await.unwrap();
        });
    }

    #[test]
    fn a_process_is_gone_when_its_number_is_free_or_another_ones() {
        let ours = Holder::this("run");
        assert!(!ours.process_is_gone());
        assert!(Holder { process_started: "1".to_owned(), ..ours.clone() }.process_is_gone());
        assert!(Holder { pid: i32::MAX.unsigned_abs(), ..ours }.process_is_gone());
    }
}
