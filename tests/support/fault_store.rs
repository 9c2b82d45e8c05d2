//! A store in memory that fails as stores do, by a schedule drawn from a seed: calls that give up, bodies cut short, replies that
//! get lost, other writers, listings that lie. It watches the lake while it does: whatever is written over an object must be
//! exactly what a rewrite of that object's bytes gives.
//!
//! A draw depends on the seed, the call and its object, and on how often that call was made, not on the order of threads: a seed
//! that failed fails again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lakescrub::manifest::sha256_hex;
use lakescrub::store::{
    ConditionalWrites, Etag, Location, Object, Precondition, Replacement, Store, StoreError, Stores,
};

/// Which store it behaves like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// The ETag tells the content; new content cannot be read before the swap, and what is not aborted stays as an upload.
    S3,
    /// The ETag tells the write; new content can be read before the swap, and goes when it is dropped.
    Disk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    List,
    Head,
    GetRange,
    Get,
    Put,
    Delete,
    Replace,
    Write,
    Stage,
    Commit,
    Abort,
    Probe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// 500 or 503 SlowDown, retried until it worked.
    Slow,
    /// 500, 503 or a time-out until the retries were used up; nothing happened.
    Unavailable,
    /// The effect is there, the reply is not, nor were those to the retries.
    ReplyLost,
    /// The reply got lost, and the retry met what the first attempt had written.
    LooksChanged,
    /// The body ends too early.
    Truncated,
    /// Another writer replaces the object just before the call.
    Overwritten,
    /// Another writer adds an object to the lake just before the call.
    Landed,
    PageLost,
    PageDoubled,
    /// Other bytes are stored than were sent. Only where a test asks for it.
    Corrupted,
}

impl Fault {
    fn can_befall(self, call: Call) -> bool {
        match self {
            Fault::Slow | Fault::Unavailable | Fault::Landed => true,
            Fault::ReplyLost => matches!(call, Call::Put | Call::Delete | Call::Commit | Call::Abort),
            // A replacement knows its own write by the write id.
            Fault::LooksChanged => matches!(call, Call::Put),
            Fault::Truncated => matches!(call, Call::GetRange | Call::Get),
            Fault::Overwritten => matches!(call, Call::GetRange | Call::Commit | Call::Delete | Call::Replace),
            Fault::PageLost | Fault::PageDoubled => call == Call::List,
            Fault::Corrupted => call == Call::Commit,
        }
    }
}

const FAULTS: [Fault; 9] = [
    Fault::Slow,
    Fault::Unavailable,
    Fault::ReplyLost,
    Fault::LooksChanged,
    Fault::Truncated,
    Fault::Overwritten,
    Fault::Landed,
    Fault::PageLost,
    Fault::PageDoubled,
];

/// What goes wrong, and how often.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    pub seed: u64,
    /// In 1,024 calls.
    pub rate: u64,
    pub faults: Vec<Fault>,
    /// What befalls the first such call on a location that holds this text.
    pub once: Vec<(Call, &'static str, Fault)>,
    /// The process dies at this call: it and all after it fail and do nothing. `true`: the call's effect is still there.
    pub killed_at: Option<(u64, bool)>,
}

pub fn draw(seed: u64, what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, what).hash(&mut hasher);
    hasher.finish()
}

impl Schedule {
    pub fn of(seed: u64) -> Schedule {
        let rate = [6, 20, 60, 200][(draw(seed, "rate") % 4) as usize];
        // One sort of fault alone goes deeper into a run than all of them at once.
        let single = draw(seed, "single").is_multiple_of(2);
        let chosen = |(number, _): &(usize, Fault)| match single {
            true => *number as u64 == draw(seed, "which") % FAULTS.len() as u64,
            false => draw(seed, ("among", number)).is_multiple_of(3),
        };
        let faults = FAULTS.into_iter().enumerate().filter(chosen).map(|(_, fault)| fault).collect();
        Schedule { seed, rate, faults, ..Schedule::default() }
    }

    pub fn once(call: Call, on: &'static str, fault: Fault) -> Schedule {
        Schedule { once: vec![(call, on, fault)], ..Schedule::default() }
    }

    pub fn killed_at(call: u64, with_effect: bool) -> Schedule {
        Schedule { killed_at: Some((call, with_effect)), ..Schedule::default() }
    }

    /// Whether another writer or a lying listing is part of it: then counts of several runs need not add up.
    pub fn misleads(&self) -> bool {
        let misleading = [Fault::Overwritten, Fault::Landed, Fault::PageLost, Fault::PageDoubled];
        self.faults.iter().any(|fault| misleading.contains(fault))
    }
}

/// What a scrub makes of an object's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    Kept,
    Becomes(Bytes),
    Dropped,
}

/// What objects of the lake are to become, by their bytes. Of others nothing is known.
pub type Wishes = Arc<HashMap<Bytes, Wish>>;

/// What other writers do: new content for objects that are there, and objects that land.
#[derive(Debug, Clone, Default)]
pub struct OtherWriters {
    pub overwrite: Vec<(Location, Bytes)>,
    pub land: Vec<(Location, Bytes)>,
}

#[derive(Debug, Clone)]
struct Held {
    bytes: Bytes,
    etag: Etag,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Location, Held>,
    staged: BTreeMap<Location, Held>,
    uploads: BTreeSet<String>,
    uploads_not_aborted: usize,
    writes: u64,
    calls: u64,
    schedule: Schedule,
    drawn: HashMap<(Call, String), u64>,
    others: OtherWriters,
    /// The lake's objects as their own writers left them.
    originals: BTreeMap<Location, Bytes>,
    /// What the last listing of each prefix in the lake answered, and which of it was read since.
    listed: BTreeMap<Location, Vec<(Object, Bytes)>>,
    read_since: BTreeSet<(Location, Etag)>,
    log: Vec<String>,
    violations: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct FaultStore {
    flavour: Flavour,
    lake: Location,
    wishes: Wishes,
    state: Arc<Mutex<State>>,
}

impl FaultStore {
    /// `lake` is the prefix that is watched.
    pub fn new(flavour: Flavour, lake: Location, wishes: Wishes) -> FaultStore {
        FaultStore { flavour, lake, wishes, state: Arc::default() }
    }

    pub fn with(self, location: Location, bytes: impl Into<Bytes>) -> FaultStore {
        self.state().store(self.flavour, &location, bytes.into(), &self.lake);
        self
    }

    pub fn stores(&self) -> Stores {
        let store: Arc<dyn Store> = Arc::new(self.clone());
        Stores::new(store.clone(), store)
    }

    /// From now on calls go by `schedule`, counted from 0.
    pub fn start(&self, schedule: Schedule, others: OtherWriters) {
        let mut state = self.state();
        (state.schedule, state.others, state.calls) = (schedule, others, 0);
        state.drawn.clear();
    }

    pub fn heal(&self) {
        self.start(Schedule::default(), OtherWriters::default());
    }

    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Writes behind everyone's back.
    pub fn set(&self, location: &Location, bytes: impl Into<Bytes>) {
        self.state().store(self.flavour, location, bytes.into(), &self.lake);
    }

    pub fn read(&self, location: &Location) -> Option<Bytes> {
        self.state().objects.get(location).map(|held| held.bytes.clone())
    }

    pub fn below(&self, prefix: &Location) -> BTreeMap<Location, Bytes> {
        let state = self.state();
        let below = state.objects.iter().filter(|(location, _)| is_below(prefix, location));
        below.map(|(location, held)| (location.clone(), held.bytes.clone())).collect()
    }

    /// What the lake must be once all is well: the wish of every object's own writer.
    pub fn wished(&self) -> BTreeMap<Location, Bytes> {
        let state = self.state();
        let wished = state.originals.iter().filter_map(|(location, bytes)| match self.wish(bytes) {
            Wish::Kept => Some((location.clone(), bytes.clone())),
            Wish::Becomes(new) => Some((location.clone(), new)),
            Wish::Dropped => None,
        });
        wished.collect()
    }

    /// What the last listings of the lake answered: the object, its bytes then, and whether it was read since.
    pub fn last_listed(&self) -> Vec<(Object, Bytes, bool)> {
        let state = self.state();
        let listed = state.listed.values().flatten();
        let read = |object: &Object| state.read_since.contains(&(object.location.clone(), object.etag.clone()));
        listed.map(|(object, bytes)| (object.clone(), bytes.clone(), read(object))).collect()
    }

    pub fn wish(&self, bytes: &Bytes) -> Wish {
        self.wishes.get(bytes).cloned().unwrap_or(Wish::Kept)
    }

    /// Uploads that nobody committed or tried to abort.
    pub fn uploads_left(&self) -> usize {
        let state = self.state();
        state.uploads.len() - state.uploads_not_aborted.min(state.uploads.len())
    }

    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    pub fn log(&self) -> String {
        self.state().log.join("\n")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    /// What befalls this call. `Err` when the process is dead.
    fn befalls(&self, call: Call, location: &Location, detail: &str) -> Result<Befallen, StoreError> {
        let mut state = self.state();
        let number = state.calls;
        state.calls += 1;
        if let Some((dies_at, with_effect)) = state.schedule.killed_at {
            if number > dies_at || (number == dies_at && !with_effect) {
                return Err(unavailable(location, "killed"));
            }
            return Ok(Befallen { fault: (number == dies_at).then_some(Fault::ReplyLost) });
        }
        let name = location.to_string();
        let planned = state.schedule.once.iter().position(|(at, on, _)| *at == call && name.contains(on));
        if let Some(planned) = planned {
            let (_, _, fault) = state.schedule.once.remove(planned);
            return self.happens(&mut state, fault, location, &format!("{number:>5} {call:?} {location} {detail}"));
        }
        let key = (call, format!("{} {detail}", without_run_id(location)));
        let nth = *state.drawn.entry(key.clone()).and_modify(|nth| *nth += 1).or_insert(0);
        let Schedule { seed, rate, .. } = state.schedule;
        if draw(seed, (&key, nth)) % 1024 >= rate {
            return Ok(Befallen { fault: None });
        }
        let possible: Vec<Fault> =
            state.schedule.faults.iter().copied().filter(|fault| fault.can_befall(call)).collect();
        if possible.is_empty() {
            return Ok(Befallen { fault: None });
        }
        let fault = possible[draw(seed, ("fault", &key, nth)) as usize % possible.len()];
        self.happens(&mut state, fault, location, &format!("{number:>5} {call:?} {location} {detail}"))
    }

    fn happens(
        &self,
        state: &mut State,
        fault: Fault,
        location: &Location,
        call: &str,
    ) -> Result<Befallen, StoreError> {
        state.log.push(format!("{call}: {fault:?}"));
        match fault {
            Fault::Unavailable => return Err(unavailable(location, "503 SlowDown, given up")),
            Fault::Overwritten => {
                let at = state.others.overwrite.iter().position(|(object, _)| object == location);
                if let Some(at) = at.filter(|_| state.objects.contains_key(location)) {
                    let (location, bytes) = state.others.overwrite.remove(at);
                    state.store(self.flavour, &location, bytes, &self.lake);
                }
            }
            Fault::Landed => {
                if let Some((location, bytes)) = state.others.land.pop() {
                    state.store(self.flavour, &location, bytes, &self.lake);
                }
            }
            Fault::Slow
            | Fault::ReplyLost
            | Fault::LooksChanged
            | Fault::Truncated
            | Fault::PageLost
            | Fault::PageDoubled
            | Fault::Corrupted => {}
        }
        Ok(Befallen { fault: Some(fault) })
    }

    fn is_lake(&self, location: &Location) -> bool {
        is_below(&self.lake, location)
    }
}

impl State {
    fn store(&mut self, flavour: Flavour, location: &Location, bytes: Bytes, lake: &Location) {
        if is_below(lake, location) {
            self.originals.insert(location.clone(), bytes.clone());
        }
        self.write(flavour, location, bytes);
    }

    fn write(&mut self, flavour: Flavour, location: &Location, bytes: Bytes) -> Object {
        self.writes += 1;
        let digest = &sha256_hex(&bytes)[..32];
        let etag = Etag(match flavour {
            Flavour::S3 => format!("\"{digest}\""),
            Flavour::Disk => format!("{digest}-{}", self.writes),
        });
        let held = Held { bytes, etag };
        let object = object(location, &held);
        self.objects.insert(location.clone(), held);
        object
    }

    fn held(&self, location: &Location) -> Result<Held, StoreError> {
        let held = self.objects.get(location).or_else(|| self.staged.get(location));
        held.cloned().ok_or_else(|| StoreError::NotFound(location.clone()))
    }

    fn holds(&self, location: &Location, when: &Precondition) -> bool {
        let etag = self.objects.get(location).map(|held| &held.etag);
        match when {
            Precondition::Absent => etag.is_none(),
            Precondition::Unchanged(wish) => etag == Some(wish),
            Precondition::None => true,
        }
    }
}

struct Befallen {
    fault: Option<Fault>,
}

impl Befallen {
    async fn delay(&self) {
        if self.fault == Some(Fault::Slow) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The reply to a call whose effect is there.
    fn reply<T>(&self, location: &Location, done: T) -> Result<T, StoreError> {
        match self.fault {
            Some(Fault::ReplyLost) => Err(unavailable(location, "the connection was reset")),
            Some(Fault::LooksChanged) => Err(StoreError::Changed(location.clone())),
            Some(_) | None => Ok(done),
        }
    }

    fn body(&self, bytes: Bytes) -> Bytes {
        match self.fault {
            Some(Fault::Truncated) => bytes.slice(..bytes.len() / 2),
            Some(_) | None => bytes,
        }
    }
}

fn object(location: &Location, held: &Held) -> Object {
    Object {
        location: location.clone(),
        size_bytes: held.bytes.len() as u64,
        etag: held.etag.clone(),
        version_id: None,
        storage_class: None,
    }
}

/// A byte early in the content is another one.
fn corrupted(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    let at = bytes.len() / 8;
    bytes[at] ^= 1;
    Bytes::from(bytes)
}

fn unavailable(location: &Location, reason: &str) -> StoreError {
    StoreError::Unavailable { location: location.clone(), reason: reason.to_owned() }
}

pub fn is_below(prefix: &Location, location: &Location) -> bool {
    match (prefix, location) {
        (Location::Local(prefix), Location::Local(path)) => path.starts_with(prefix),
        (Location::S3 { bucket: a, key: prefix }, Location::S3 { bucket: b, key }) => a == b && key.starts_with(prefix),
        (Location::Local(_), Location::S3 { .. }) | (Location::S3 { .. }, Location::Local(_)) => false,
    }
}

/// Run ids and write ids are random; draws must not depend on them.
fn without_run_id(location: &Location) -> String {
    let name = location.to_string();
    let is_id = |segment: &str| segment.len() == 25 && segment.as_bytes()[16] == b'-';
    let segments = name.split('/').map(|segment| match segment {
        id if is_id(id) => "RUN",
        temporary if temporary.starts_with(".lakescrub-") => "TEMPORARY",
        other => other,
    });
    segments.collect::<Vec<_>>().join("/")
}

#[async_trait]
impl Store for FaultStore {
    async fn list(&self, prefix: &Location) -> Result<Vec<Object>, StoreError> {
        let befallen = self.befalls(Call::List, prefix, "")?;
        befallen.delay().await;
        let mut state = self.state();
        let below = state.objects.iter().filter(|(location, _)| is_below(prefix, location));
        let mut listed: Vec<(Object, Bytes)> =
            below.map(|(location, held)| (object(location, held), held.bytes.clone())).collect();
        let page = listed.len().min(3);
        let at = (draw(state.schedule.seed, "page") as usize) % (listed.len() - page + 1);
        match befallen.fault {
            Some(Fault::PageLost) => drop(listed.drain(at..at + page)),
            Some(Fault::PageDoubled) => {
                let again = listed[at..at + page].to_vec();
                listed.splice(at..at, again);
            }
            Some(_) | None => {}
        }
        let objects = listed.iter().map(|(object, _)| object.clone()).collect();
        if self.is_lake(prefix) {
            for (object, _) in &listed {
                let name = (object.location.clone(), object.etag.clone());
                state.read_since.remove(&name);
            }
            state.listed.insert(prefix.clone(), listed);
        }
        Ok(objects)
    }

    async fn head(&self, location: &Location) -> Result<Object, StoreError> {
        let befallen = self.befalls(Call::Head, location, "")?;
        befallen.delay().await;
        self.state().held(location).map(|held| object(location, &held))
    }

    async fn get_range(&self, listed: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
        let befallen = self.befalls(Call::GetRange, &listed.location, &format!("{range:?}"))?;
        befallen.delay().await;
        let mut state = self.state();
        let held = state.held(&listed.location)?;
        if held.etag != listed.etag {
            return Err(StoreError::Changed(listed.location.clone()));
        }
        if range.start > range.end || range.end > held.bytes.len() as u64 {
            let reason = format!("416 range {range:?} of {}", held.bytes.len());
            return Err(StoreError::Other { location: listed.location.clone(), reason });
        }
        state.read_since.insert((listed.location.clone(), listed.etag.clone()));
        Ok(befallen.body(held.bytes.slice(range.start as usize..range.end as usize)))
    }

    async fn get(&self, location: &Location) -> Result<(Object, Bytes), StoreError> {
        let befallen = self.befalls(Call::Get, location, "")?;
        befallen.delay().await;
        let held = self.state().held(location)?;
        Ok((object(location, &held), befallen.body(held.bytes)))
    }

    async fn put(&self, location: &Location, bytes: Bytes, when: Precondition) -> Result<Object, StoreError> {
        let befallen = self.befalls(Call::Put, location, "")?;
        befallen.delay().await;
        let mut state = self.state();
        if self.is_lake(location) {
            state.violations.push(format!("a put to {location}, past all replacements"));
        }
        if !state.holds(location, &when) {
            return Err(StoreError::Changed(location.clone()));
        }
        let written = state.write(self.flavour, location, bytes);
        befallen.reply(location, written)
    }

    async fn delete(&self, listed: &Object) -> Result<(), StoreError> {
        let befallen = self.befalls(Call::Delete, &listed.location, "")?;
        befallen.delay().await;
        let mut state = self.state();
        let Ok(held) = state.held(&listed.location) else { return befallen.reply(&listed.location, ()) };
        if held.etag != listed.etag {
            return Err(StoreError::Changed(listed.location.clone()));
        }
        if self.is_lake(&listed.location) && self.wishes.get(&held.bytes).is_some_and(|wish| *wish != Wish::Dropped) {
            state.violations.push(format!("{} was deleted, and kept rows with it", listed.location));
        }
        state.objects.remove(&listed.location);
        befallen.reply(&listed.location, ())
    }

    async fn replace(&self, listed: &Object, write_id: &str) -> Result<Box<dyn Replacement>, StoreError> {
        let befallen = self.befalls(Call::Replace, &listed.location, "")?;
        befallen.delay().await;
        let mut state = self.state();
        if state.held(&listed.location)?.etag != listed.etag {
            return Err(StoreError::Changed(listed.location.clone()));
        }
        state.uploads.insert(write_id.to_owned());
        let (store, object, write_id) = (self.clone(), listed.clone(), write_id.to_owned());
        Ok(Box::new(FaultReplacement { store, object, write_id, bytes: Vec::new() }))
    }

    async fn probe(&self, prefix: &Location) -> Result<ConditionalWrites, StoreError> {
        self.befalls(Call::Probe, prefix, "")?.delay().await;
        Ok(ConditionalWrites::Honoured)
    }
}

struct FaultReplacement {
    store: FaultStore,
    object: Object,
    write_id: String,
    bytes: Vec<u8>,
}

impl FaultReplacement {
    fn temporary(&self) -> Location {
        Location::Local(format!("/.lakescrub-{}.tmp", self.write_id).into())
    }

    fn forget(&self, state: &mut State) {
        state.uploads.remove(&self.write_id);
        state.staged.remove(&self.temporary());
    }
}

#[async_trait]
impl Replacement for FaultReplacement {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let befallen = self.store.befalls(Call::Write, &self.object.location, "")?;
        befallen.delay().await;
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn stage(&mut self) -> Result<Option<Object>, StoreError> {
        let befallen = self.store.befalls(Call::Stage, &self.object.location, "")?;
        befallen.delay().await;
        if self.store.flavour == Flavour::S3 {
            return Ok(None);
        }
        let held = Held { bytes: Bytes::from(self.bytes.clone()), etag: Etag(self.write_id.clone()) };
        let staged = object(&self.temporary(), &held);
        self.store.state().staged.insert(self.temporary(), held);
        Ok(Some(staged))
    }

    async fn commit(self: Box<Self>) -> Result<Object, StoreError> {
        let location = &self.object.location;
        // Whoever consumed the replacement cannot abort it any more.
        let befallen = self.store.befalls(Call::Commit, location, "").inspect_err(|_| {
            self.store.state().uploads_not_aborted += 1;
        })?;
        befallen.delay().await;
        let mut state = self.store.state();
        let Ok(old) = state.held(location) else {
            self.forget(&mut state);
            return Err(StoreError::Changed(location.clone()));
        };
        if old.etag != self.object.etag {
            self.forget(&mut state);
            return Err(StoreError::Changed(location.clone()));
        }
        let new = Bytes::from(self.bytes.clone());
        if self.store.wishes.get(&old.bytes).is_some_and(|wish| *wish != Wish::Becomes(new.clone())) {
            state
                .violations
                .push(format!("{location} was replaced by other bytes than its own without the matching rows"));
        }
        let stored = if befallen.fault == Some(Fault::Corrupted) { corrupted(&new) } else { new };
        let written = state.write(self.store.flavour, location, stored);
        self.forget(&mut state);
        befallen.reply(location, written)
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        let befallen = self.store.befalls(Call::Abort, &self.object.location, "").inspect_err(|_| {
            self.store.state().uploads_not_aborted += 1;
        })?;
        befallen.delay().await;
        self.forget(&mut self.store.state());
        befallen.reply(&self.object.location, ())
    }
}

impl Drop for FaultReplacement {
    fn drop(&mut self) {
        if self.store.flavour == Flavour::Disk {
            let temporary = self.temporary();
            let mut state = self.store.state();
            state.uploads.remove(&self.write_id);
            state.staged.remove(&temporary);
        }
    }
}
