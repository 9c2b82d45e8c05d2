//! The request ledger: the durable record of every request, an append-only, hash-chained log of immutable segments.
//!
//! ```text
//! STATE/ledger/00000000000000000007.parquet                         one segment, written once
//! STATE/ledger/00000000000000000001-00000000000000000006.parquet    several, gathered now and then
//! ```
//! What an event is stands in [`crate::ledger_event`], what events amount to in [`crate::ledger_fold`]. Invariants: a segment is
//! written only where none is, so of two writers one loses and tries again behind the other; what was gathered is removed only
//! after the gathered file is there, and a chain that does not fit is never built upon.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::error::{Error, Exit, Result};
use crate::ledger_event::{ChainDigest, Event, Interner, Segment, Text, decode, encode, read};
use crate::ledger_fold::Requests;
use crate::signature::TagKey;
use crate::store::{self, Location, Object, Precondition, Store, StoreError};

/// So many events are written in one segment at most.
pub const EVENTS_A_SEGMENT: usize = if cfg!(test) { 4 } else { 250_000 };
/// So many files are gathered in one.
const LOOSE_SEGMENTS_MAX: usize = 32;
/// How often a writer that lost a race tries again.
const ATTEMPTS_MAX: usize = 50;

/// Where a ledger ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// The number of the last segment; 0 of an empty ledger.
    pub sequence: u64,
    pub digest: ChainDigest,
}

impl Head {
    /// Hex, as manifests name it.
    pub fn digest_hex(&self) -> String {
        hex::encode(self.digest)
    }
}

/// The ledger as it was last read, folded.
#[derive(Debug)]
pub struct Ledger {
    store: Arc<dyn Store>,
    state: Location,
    key_id: Text,
    /// The digest after each segment, from the first on.
    digests: Vec<ChainDigest>,
    requests: Requests,
    files: Vec<File>,
    texts: Interner,
    /// Taken in and not written, by request.
    supposed: HashMap<Text, Vec<Event>>,
}

/// One file of the ledger: the segments that its name tells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    first: u64,
    last: u64,
    object: Object,
}

/// The ledger's head as a run saw it and wrote it into its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    pub run_id: String,
    pub head: Head,
}

/// What an append did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Appended {
    /// Events that were news and are written now.
    pub events: u64,
    /// Events that the ledger knew.
    pub known: u64,
}

/// The folder of the ledger, as a prefix.
pub fn folder(state: &Location) -> Location {
    state.join("ledger/")
}

/// The id under which segments name a tag key: a tag of fixed words, which tells nothing of the key.
pub fn key_id(key: &TagKey) -> Text {
    key.tag("key", &Sha256::digest(b"lakescrub ledger").into())[..16].into()
}

impl Ledger {
    /// Reads and folds the ledger under `state`; an empty one where there is none.
    ///
    /// Errors: a chain that does not fit ([`Exit::Untrusted`]), or what the store says.
    pub async fn open(store: Arc<dyn Store>, state: &Location, key: &TagKey) -> Result<Ledger> {
        Ledger::open_as(store, state, key_id(key)).await
    }

    async fn open_as(store: Arc<dyn Store>, state: &Location, key_id: Text) -> Result<Ledger> {
        // A file that was gathered between the listing and the read is gone: the next listing shows where its segments are.
        for _ in 0..ATTEMPTS_MAX {
            let mut ledger = Ledger {
                store: store.clone(),
                state: state.clone(),
                key_id: key_id.clone(),
                digests: Vec::new(),
                requests: Requests::new(key_id.clone()),
                files: Vec::new(),
                texts: Interner::default(),
                supposed: HashMap::new(),
            };
            match ledger.read_on().await {
                Err(error) if error.is_gone => continue,
                outcome => return outcome.map(|()| ledger).map_err(|error| error.error),
            }
        }
        Err(Error::new(Exit::Conflict, "the ledger changed again and again while it was read").hint("run again"))
    }

    /// What every request has come to.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Takes events in without writing them, for as long as this ledger is held: what a dry run would have recorded. One that is
    /// appended later is news still.
    pub fn suppose(&mut self, events: &[Event]) {
        for event in events {
            if self.requests.is_news(event) {
                self.requests.take_event(event, None);
                self.supposed.entry(event.request_id.clone()).or_default().push(event.clone());
            }
        }
    }

    /// Whether it shows more than is written.
    pub fn is_supposing(&self) -> bool {
        !self.supposed.is_empty()
    }

    /// Reads on, if somebody has written behind the head, and supposes what it supposed.
    pub async fn catch_up(&mut self) -> Result<()> {
        match segments_behind(self.store.as_ref(), &self.state, &self.head()).await? {
            Some((_, behind)) if behind.is_empty() => Ok(()),
            Some(_) | None => self.reopen().await,
        }
    }

    /// Reads it anew, and supposes what it supposed.
    async fn reopen(&mut self) -> Result<()> {
        let supposed = std::mem::take(&mut self.supposed);
        *self = Ledger::open_as(self.store.clone(), &self.state, self.key_id.clone()).await?;
        supposed.into_values().for_each(|events| self.suppose(&events));
        Ok(())
    }

    /// A digest of what a listing shows of its files.
    pub fn listing(&self) -> [u8; 32] {
        listing_digest(self.files.iter())
    }

    pub fn head(&self) -> Head {
        Head { sequence: self.digests.len() as u64, digest: self.digests.last().copied().unwrap_or_default() }
    }

    /// Whether a ledger whose head this was is a beginning of this one.
    pub fn goes_on_from(&self, head: &Head) -> bool {
        match head.sequence.checked_sub(1) {
            None => true,
            Some(last) => self.digests.get(last as usize) == Some(&head.digest),
        }
    }

    /// Refuses a ledger that lost its last segments, or was replaced: it is not the one that a run saw.
    pub fn check_anchor(&self, anchor: Option<&Anchor>) -> Result<()> {
        let Some(Anchor { run_id, head }) = anchor.filter(|anchor| !self.goes_on_from(&anchor.head)) else {
            return Ok(());
        };
        let message = format!("the ledger is not the one that run {run_id} saw: its last segments are gone");
        let from = "restore the state's ledger/ folder from where it was lost";
        Err(Error::new(Exit::Untrusted, message)
            .hint(format!("{from}, up to segment {}; nothing was written", head.sequence)))
    }

    /// Refuses to compare with a ledger that holds requests under another tag key: they would silently match nobody.
    pub fn check_key(&self, now: Timestamp) -> Result<()> {
        match self.requests.not_comparable(now) {
            0 => Ok(()),
            lost => Err(Error::usage(format!(
                "{lost} requests of the ledger are tagged with another tag_key and can never be compared"
            ))
            .hint(
                "import the lists that have them again with this key and the one before (`requests import --old-tag-key`); withdraw by \
                 their ids (`requests list`) those of which no list has every identifier any more",
            )),
        }
    }

    /// Writes the events that are news behind the last segment. When another writer was faster, its events are read first, and what
    /// is known by then is left out. An event that repeats one before it in `events` is known, too.
    pub async fn append(&mut self, events: Vec<Event>) -> Result<Appended> {
        self.append_in(events, EVENTS_A_SEGMENT).await
    }

    /// [`Ledger::append`] in one segment, however many they are: after a kill all of them are there, or none.
    pub async fn append_at_once(&mut self, events: Vec<Event>) -> Result<Appended> {
        self.append_in(events, usize::MAX).await
    }

    async fn append_in(&mut self, events: Vec<Event>, piece_events: usize) -> Result<Appended> {
        let total = events.len() as u64;
        let mut appended = Appended::default();
        let mut rest = events.into_iter().peekable();
        while rest.peek().is_some() {
            let mut piece: Vec<Event> = rest.by_ref().take(piece_events).collect();
            // What one row says is judged as a whole.
            let last = piece.last().map(|last| last.request_id.clone());
            while let Some(next) = rest.next_if(|next| Some(&next.request_id) == last.as_ref()) {
                piece.push(next);
            }
            appended.events += self.append_piece(piece).await?;
        }
        appended.known = total - appended.events;
        if appended.events > 0 && self.files.len() > LOOSE_SEGMENTS_MAX {
            // The events are written; that their files are many is no reason to fail.
            if let Err(error) = self.gather().await {
                tracing::warn!(%error, "the ledger's segments not gathered; the next writer does it");
            }
        }
        Ok(appended)
    }

    async fn append_piece(&mut self, mut piece: Vec<Event>) -> Result<u64> {
        for _ in 0..ATTEMPTS_MAX {
            let is_news = self.take_news(&piece);
            let count = is_news.iter().filter(|is_news| **is_news).count();
            if count == 0 {
                return Ok(0);
            }
            // Of an import all is news as a rule: it is not held twice.
            let events = match count == piece.len() {
                true => std::mem::take(&mut piece),
                false => {
                    piece.iter().zip(is_news).filter(|(_, is_news)| *is_news).map(|(event, _)| event.clone()).collect()
                }
            };
            let before = self.head();
            let segment = Segment { sequence: before.sequence + 1, key_id: self.key_id.clone(), events };
            let location = self.location(segment.sequence, segment.sequence);
            let bytes = encode(std::slice::from_ref(&segment), &before.digest)?;
            if write_new(self.store.as_ref(), &location, bytes).await?
                && self.is_in_chain(segment.sequence, segment.digest(&before.digest)).await?
            {
                return Ok(count as u64);
            }
            if piece.is_empty() {
                piece = segment.events;
            }
            self.reopen().await?;
        }
        Err(Error::new(Exit::Conflict, "other writers of the ledger were faster each time; nothing was recorded")
            .hint("run again"))
    }

    /// Which events say something new, given the ledger and each other. They are folded in at once: whoever cannot write them
    /// reads the ledger anew.
    fn take_news(&mut self, events: &[Event]) -> Vec<bool> {
        let mut news = Vec::with_capacity(events.len());
        // The last row without an id that was judged, and the judgement, which holds for all of it.
        let mut judged: Option<(&Text, bool)> = None;
        for (number, event) in events.iter().enumerate() {
            let of_request = self.supposed.get_mut(&event.request_id);
            let place = of_request.as_ref().and_then(|known| known.iter().position(|known| known.fact == event.fact));
            if let Some((known, place)) = of_request.zip(place) {
                known.swap_remove(place);
                if known.is_empty() {
                    self.supposed.remove(&event.request_id);
                }
                news.push(true);
                continue;
            }
            let of_row = judged.filter(|(id, _)| **id == event.request_id).map(|(_, is_news)| is_news);
            let is_news = match of_row {
                Some(is_news) if self.requests.get(&event.request_id).is_none() => is_news,
                _ if !self.requests.stands_for_row(event) => self.requests.is_news(event),
                _ => {
                    let row = events[number..].chunk_by(|one, next| one.request_id == next.request_id).next();
                    let is_news = self.requests.is_news_row(row.unwrap_or_default());
                    judged = Some((&event.request_id, is_news));
                    is_news
                }
            };
            if is_news {
                self.requests.take_event(event, None);
            }
            news.push(is_news);
        }
        news
    }

    /// Whether the segment just written counts. A writer that was slow may have written where a segment stood that is gathered by
    /// now: a look at the files after the write tells.
    async fn is_in_chain(&mut self, sequence: u64, digest: ChainDigest) -> Result<bool> {
        let files = list(self.store.as_ref(), &self.state).await?;
        let mut covering = files.iter().filter(|file| file.first <= sequence && sequence <= file.last);
        let ours = covering.next().filter(|file| file.first == file.last).cloned();
        if let (Some(ours), None) = (ours, covering.next()) {
            self.digests.push(digest);
            self.files.push(ours);
            return Ok(true);
        }
        self.reopen().await?;
        Ok(self.digests.get(sequence as usize - 1) == Some(&digest))
    }

    fn location(&self, first: u64, last: u64) -> Location {
        let name =
            if first == last { format!("{first:020}.parquet") } else { format!("{first:020}-{last:020}.parquet") };
        folder(&self.state).join(&name)
    }

    /// Reads the files that lie behind the head.
    async fn read_on(&mut self) -> Result<(), ReadError> {
        for file in list(self.store.as_ref(), &self.state).await? {
            let next = self.digests.len() as u64 + 1;
            if file.last < next {
                // Gathered in a file that was read; whoever gathered it was stopped before it removed this one.
                continue;
            }
            self.read_file(file).await?;
        }
        Ok(())
    }

    async fn read_file(&mut self, file: File) -> Result<(), ReadError> {
        let location = file.object.location.clone();
        let untrusted = |why: String| {
            let error = Error::new(Exit::Untrusted, format!("{location} {why}"));
            let hint = "the ledger was changed by somebody else than lakescrub: restore the state's ledger/ folder";
            ReadError { error: error.hint(hint), is_gone: false }
        };
        let bytes = match store::read_whole(self.store.as_ref(), &location).await {
            Ok((_, bytes)) => bytes,
            Err(StoreError::NotFound(_)) => {
                let error = Error::from(StoreError::NotFound(location.clone()));
                return Err(ReadError { error, is_gone: true });
            }
            Err(error) => return Err(ReadError::from(Error::from(error))),
        };
        // What is wrong with the file leaves a ledger behind that nobody gets: it is read anew, or not at all.
        let mut taking = Taking {
            digests: std::mem::take(&mut self.digests),
            requests: std::mem::take(&mut self.requests),
            texts: std::mem::take(&mut self.texts),
            first_and_last: None,
            fault: None,
        };
        let taking = tokio::task::spawn_blocking(move || taking.file(bytes).map(|()| taking)).await;
        let taken = taking.map_err(|_| untrusted("cannot be decoded".to_owned()))?.map_err(untrusted)?;
        if taken.first_and_last != Some((file.first, file.last)) {
            return Err(untrusted("does not hold the segments that its name tells".to_owned()));
        }
        if let Some(fault) = taken.fault {
            return Err(untrusted(fault));
        }
        (self.digests, self.requests, self.texts) = (taken.digests, taken.requests, taken.texts);
        self.files.push(file);
        Ok(())
    }

    /// Every event, as the ledger was when it was opened.
    pub async fn segments(&self) -> Result<Vec<Segment>> {
        let (mut segments, mut texts) = (Vec::new(), Interner::default());
        for file in &self.files {
            let (_, bytes) = store::read_whole(self.store.as_ref(), &file.object.location).await?;
            let decoded = decode(bytes, &mut texts)
                .map_err(|why| Error::new(Exit::Untrusted, format!("{} {why}", file.object.location)))?;
            let next = segments.last().map_or(1, |last: &Segment| last.sequence + 1);
            segments.extend(decoded.segments.into_iter().filter(|segment| segment.sequence >= next));
        }
        Ok(segments)
    }

    /// Gathers the files so far in one, and removes them. The chain stays as it was.
    async fn gather(&mut self) -> Result<()> {
        let files = self.files.clone();
        let segments = self.segments().await?;
        let last = segments.last().map_or(0, |segment| segment.sequence);
        let location = self.location(1, last);
        let bytes = encode(&segments, &[0; 32])?;
        drop(segments);
        write_new(self.store.as_ref(), &location, bytes).await?;
        // Only what a look at the gathered file proves to be in it goes.
        let (object, written) = store::read_whole(self.store.as_ref(), &location).await?;
        let decoded = decode(written, &mut Interner::default());
        let digest = decoded.ok().map(|it| it.last);
        if digest != self.digests.get(last as usize - 1).copied() {
            return Err(Error::new(Exit::Untrusted, format!("{location} is not the ledger that was gathered in it")));
        }
        for file in &files {
            self.store.delete(&file.object).await?;
        }
        // And what other writers gathered meanwhile, or wrote in vain: whoever reads the files as one table would count it twice.
        let within = |file: &File| file.last <= last && file.object.location != location;
        for file in list(self.store.as_ref(), &self.state).await?.iter().filter(|file| within(file)) {
            self.store.delete(&file.object).await?;
        }
        self.files = vec![File { first: 1, last, object }];
        tracing::info!(segments = last, "the ledger's segments gathered in one file");
        Ok(())
    }
}

/// What tells one listing of a ledger from another: names, sizes and ETags of its files.
fn listing_digest<'a>(files: impl Iterator<Item = &'a File>) -> [u8; 32] {
    let mut sha = Sha256::new();
    for File { first, last, object } in files {
        sha.update(format!("{first} {last} {} {}\n", object.size_bytes, object.etag.0));
    }
    sha.finalize().into()
}

/// The segments behind `head`, where they stand in files of their own and follow it, beside the [`Ledger::listing`] of those up to it;
/// `None`: the ledger must be read as a whole, as when the head itself is gone.
pub async fn segments_behind(
    store: &dyn Store,
    state: &Location,
    head: &Head,
) -> Result<Option<([u8; 32], Vec<Segment>)>> {
    let (mut segments, mut digest, mut next) = (Vec::new(), head.digest, head.sequence + 1);
    let mut files = list(store, state).await?;
    let mut covered = 0;
    files.retain(|file| {
        let is_read = file.last > covered;
        covered = covered.max(file.last);
        is_read
    });
    let listing = listing_digest(files.iter().filter(|file| file.last <= head.sequence));
    files.retain(|file| file.last >= head.sequence);
    if files.is_empty() {
        return Ok(None);
    }
    for file in files {
        if file.last < next {
            continue;
        }
        if file.first != next {
            return Ok(None);
        }
        let (_, bytes) = match store::read_whole(store, &file.object.location).await {
            Ok(read) => read,
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Ok(decoded) = decode(bytes, &mut Interner::default()) else { return Ok(None) };
        if decoded.previous != digest {
            return Ok(None);
        }
        digest = decoded.last;
        next = file.last + 1;
        segments.extend(decoded.segments);
    }
    Ok(Some((listing, segments)))
}

/// The ledger while a file is taken into it.
struct Taking {
    digests: Vec<ChainDigest>,
    requests: Requests,
    texts: Interner,
    /// The numbers of the segments that the file begins and ends with.
    first_and_last: Option<(u64, u64)>,
    /// Why the file's segments do not follow those before.
    fault: Option<String>,
}

impl Taking {
    fn file(&mut self, bytes: Bytes) -> Result<(), String> {
        let Taking { digests, requests, texts, first_and_last, fault } = self;
        read(bytes, texts, &mut |chained| {
            let sequence = chained.segment.sequence;
            *first_and_last = Some((first_and_last.map_or(sequence, |(first, _)| first), sequence));
            if fault.is_some() {
                return;
            }
            let next = digests.len() as u64 + 1;
            let before = match sequence {
                1 => Some([0; 32]),
                sequence => sequence.checked_sub(2).and_then(|at| digests.get(at as usize).copied()),
            };
            if sequence > next {
                *fault = Some(format!("follows segment {}, which is missing", sequence - 1));
            } else if before != Some(chained.before) {
                *fault = Some(format!("has a segment {sequence} that does not follow the one before"));
            } else if sequence == next {
                digests.push(chained.after);
                requests.take(&chained.segment);
            }
        })
        .map(drop)
    }
}

/// Why a file of the ledger could not be read; `is_gone`: it was there when the ledger was listed.
struct ReadError {
    error: Error,
    is_gone: bool,
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        ReadError { error, is_gone: false }
    }
}

/// The files of the ledger, gathered ones first where several begin alike.
async fn list(store: &dyn Store, state: &Location) -> Result<Vec<File>> {
    let mut files: Vec<File> = store::list(store, &folder(state)).await?.into_iter().filter_map(named).collect();
    files.sort_by_key(|file| (file.first, std::cmp::Reverse(file.last)));
    Ok(files)
}

fn named(object: Object) -> Option<File> {
    let name = object.location.file_name().strip_suffix(".parquet")?;
    let (first, last) = name.split_once('-').unwrap_or((name, name));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (1 <= first && first <= last).then_some(File { first, last, object })
}

/// Whether the object is ours: written now, or by a call whose reply was lost. `false`: another writer was faster.
async fn write_new(store: &dyn Store, location: &Location, bytes: Bytes) -> Result<bool> {
    match store.put(location, bytes.clone(), Precondition::Absent).await {
        Ok(_) => Ok(true),
        Err(StoreError::Changed(_)) => match store::read_whole(store, location).await {
            Ok((_, there)) => Ok(there == bytes),
            // Gathered already.
            Err(StoreError::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger_event::{Fact, Tagged};
    use crate::ledger_fold::derived_id;
    use crate::store::local::LocalStore;

    fn received(id: &str, tag: u8) -> Event {
        let fact = Fact::Received {
            identifier: Tagged { kind: "email".into(), tag: [tag; 32] },
            source: "test".into(),
            received_at: None,
            regime: None,
            due: None,
            list_digest: None,
        };
        Event { recorded_at: Timestamp::UNIX_EPOCH, request_id: id.into(), fact }
    }

    async fn ledger(folder: &tempfile::TempDir) -> Ledger {
        let state = Location::Local(folder.path().to_owned());
        Ledger::open(Arc::new(LocalStore), &state, &TagKey::new([1; 32])).await.unwrap()
    }

    /// Segments hold four events here.
    #[tokio::test]
    async fn what_is_one_fact_is_one_segment_however_many_events_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = ledger(&folder).await;
        let answers = |status| {
            let event = |number: u8| Event {
                recorded_at: Timestamp::UNIX_EPOCH,
                request_id: format!("r{number}").into(),
                fact: Fact::Answered { status, source: "file".into() },
            };
            (0..10).map(event).collect::<Vec<Event>>()
        };
        ledger.append((0..10).map(|number| received(&format!("r{number}"), number)).collect()).await.unwrap();
        assert_eq!(ledger.head().sequence, 3);
        assert_eq!(ledger.append_at_once(answers(3)).await.unwrap().events, 10);
        assert_eq!(ledger.head().sequence, 4);
    }

    #[tokio::test]
    async fn a_row_without_an_id_is_recorded_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = ledger(&folder).await;
        let mut add = async |events: &[(&str, u8)]| {
            ledger.append(events.iter().map(|(id, tag)| received(id, *tag)).collect()).await.unwrap().events
        };
        add(&[("R1", 1), ("R2", 2), ("R3", 3)]).await;
        let (one, eight) = (derived_id(&[1; 32]), derived_id(&[8; 32]));
        let (one, eight) = (one.as_str(), eight.as_str());
        // All known; then one that is not, at the end of a segment.
        assert_eq!(add(&[(one, 1), (one, 2)]).await, 0);
        assert_eq!(add(&[("R4", 4), ("R5", 5), (one, 1), (one, 2), (one, 9)]).await, 5);
        assert_eq!(add(&[(one, 1), (one, 2), (one, 9)]).await, 0);
        // A list's own id is one, whatever it begins with.
        assert_eq!(add(&[("tag-1", 1), ("tag-1", 2)]).await, 2);
        // Who opted in again is asked for by no row that tells no time, whatever else stands in it.
        let fact = Fact::Withdrawn { source: "desk".into(), at: None };
        let withdrawn = Event { recorded_at: Timestamp::UNIX_EPOCH, request_id: "R3".into(), fact };
        ledger.append(vec![withdrawn]).await.unwrap();
        let row = vec![received(eight, 8), received(eight, 3)];
        assert_eq!(ledger.append(row).await.unwrap().events, 0);
    }
}
