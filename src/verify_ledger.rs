//! The request ledger as the verifier reads it: its files again, with Polars, and a fold of its own that knows four kinds of events.
//!
//! Written apart from the ledger's own modules on purpose: a request that their fold forgets, or goes on with after it was withdrawn,
//! shows as a difference. Whether the chain fits is for whoever opens the ledger to say. Invariant: only tags are held.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Cursor;
use std::sync::Arc;

use jiff::Timestamp;
use polars::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::{Error, Exit, Result};
use crate::signature::{KindTags, TagKey};
use crate::store::{self, Location, Store, StoreError};
use crate::verify_list::Spread;

/// The label of the number that a listed text stands for.
const NUMBER: &str = "text-number";

/// The tags that a match means, and the key to make more.
pub struct Tagged {
    key: Arc<TagKey>,
    /// The first 16 bytes of each.
    tags: HashSet<u128, Spread>,
    /// Kinds that any request has.
    pub kinds: BTreeSet<String>,
}

/// Makes the tags of the values of one kind.
#[derive(Clone)]
pub struct Tagger {
    own: KindTags,
    /// For numbers of kind `text`.
    number: Option<KindTags>,
}

impl Tagger {
    pub fn of_digest(&self, sha256: &[u8]) -> Option<u128> {
        Some(head(&self.own.tag(sha256.try_into().ok()?)))
    }

    /// Under which tags a canonical form may stand: a number of kind `text` also under that of the texts which are written otherwise.
    pub fn of_canonical(&self, canonical: &[u8], is_number: bool) -> impl Iterator<Item = u128> {
        let (tag, digest) = self.own.tag_of_canonical(canonical);
        let number = self.number.as_ref().filter(|_| is_number).map(|tags| head(&tags.tag(&digest)));
        std::iter::once(head(&tag)).chain(number)
    }
}

fn head(tag: &[u8]) -> u128 {
    tag[..16].iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

impl Tagged {
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    pub fn holds(&self, tag: u128) -> bool {
        self.tags.contains(&tag)
    }

    pub fn tagger(&self, kind: &str) -> Tagger {
        let number = (kind == "text" && self.kinds.contains(NUMBER)).then(|| self.key.tags_of(NUMBER));
        Tagger { own: self.key.tags_of(kind), number }
    }
}

/// What the events say of one request, as far as it matters for a match.
#[derive(Default)]
struct Asked {
    tags: Vec<u128>,
    /// Microseconds since 1970, as all times here.
    withdrawn_at: Option<i64>,
    asked_at: Option<i64>,
    /// For good, or until then.
    exempted: Option<Option<i64>>,
}

impl Asked {
    /// An exemption lasts to the end of the second that it names.
    fn is_exempt(&self, now: i64) -> bool {
        let second = |micros: i64| micros.div_euclid(1_000_000);
        match self.exempted {
            None => false,
            Some(None) => true,
            Some(Some(until)) => second(now) <= second(until),
        }
    }
}

/// How often a listing is made again because a file of it was gathered into another before it was read.
const LISTINGS_MAX: usize = 5;

/// Reads the ledger below `state` up to segment `last` and gives the tags that stand at `now`. What an exempted request has, withdrawn or
/// not, is nobody's to ask for; one that is `withheld` is as if exempted.
pub async fn read(
    store: &Arc<dyn Store>,
    state: &Location,
    key: Arc<TagKey>,
    last: Option<u64>,
    now: Timestamp,
    withheld: &BTreeSet<Arc<str>>,
) -> Result<Tagged> {
    let mut listings = 1;
    loop {
        match read_listed(store, state, key.clone(), last, now, withheld).await {
            Err(Unread::Gone) if listings < LISTINGS_MAX => listings += 1,
            Err(Unread::Gone) => {
                return Err(Error::new(Exit::Conflict, "the ledger changed again and again while it was read")
                    .hint("run again"));
            }
            Err(Unread::For(error)) => return Err(error),
            Ok(tagged) => return Ok(tagged),
        }
    }
}

enum Unread {
    Gone,
    For(Error),
}

impl From<StoreError> for Unread {
    fn from(error: StoreError) -> Unread {
        match error {
            StoreError::NotFound(_) => Unread::Gone,
            other => Unread::For(other.into()),
        }
    }
}

async fn read_listed(
    store: &Arc<dyn Store>,
    state: &Location,
    key: Arc<TagKey>,
    last: Option<u64>,
    now: Timestamp,
    withheld: &BTreeSet<Arc<str>>,
) -> Result<Tagged, Unread> {
    let mut files = Vec::new();
    for object in store::list(store.as_ref(), &state.join("ledger/")).await? {
        let Some(name) = object.location.file_name().strip_suffix(".parquet") else { continue };
        let numbers: Option<Vec<u64>> = name.split('-').map(|number| number.parse().ok()).collect();
        if let Some((first, rest)) = numbers.as_deref().and_then(|numbers| numbers.split_first()) {
            files.push((*first, std::cmp::Reverse(rest.last().copied().unwrap_or(*first)), object.location));
        }
    }
    files.sort();
    let own_key = key.tag("key", &Sha256::digest(b"lakescrub ledger").into())[..16].to_owned();
    let mut events = Events { own_key, requests: HashMap::new(), kinds: BTreeSet::new(), read_up_to: 0, last };
    for (_, std::cmp::Reverse(to), location) in files {
        if to <= events.read_up_to {
            continue;
        }
        let (_, bytes) = store::read_whole(store.as_ref(), &location).await?;
        let reading = tokio::task::spawn_blocking(move || {
            let outcome = events.read_file(&bytes);
            (events, outcome)
        });
        let (back, outcome) = reading.await.map_err(|_| Unread::For(unreadable(&location)))?;
        events = back;
        outcome.map_err(|_| Unread::For(unreadable(&location)))?;
    }
    let now = now.as_microsecond();
    let mut tags = HashSet::with_hasher(Spread);
    let asking = events.requests.values().filter(|request| request.withdrawn_at.is_none());
    asking.for_each(|request| tags.extend(&request.tags));
    let is_kept = |(id, request): &(&String, &Asked)| withheld.contains(id.as_str()) || request.is_exempt(now);
    for tag in events.requests.iter().filter(is_kept).flat_map(|(_, request)| &request.tags) {
        tags.remove(tag);
    }
    Ok(Tagged { key, tags, kinds: events.kinds })
}

fn unreadable(location: &Location) -> Error {
    Error::new(Exit::Untrusted, format!("the ledger cannot be read by the verifier: {location}"))
}

struct Events {
    own_key: String,
    requests: HashMap<String, Asked>,
    kinds: BTreeSet<String>,
    read_up_to: u64,
    last: Option<u64>,
}

impl Events {
    fn read_file(&mut self, bytes: &[u8]) -> PolarsResult<()> {
        let names = ["sequence", "key", "event", "recorded_at", "request_id", "kind", "tag", "received_at", "until"];
        let names = names.map(str::to_owned).to_vec();
        let frame = ParquetReader::new(Cursor::new(bytes)).with_columns(Some(names)).finish()?;
        let times = |name: &str| frame.column(name)?.as_materialized_series().to_physical_repr().cast(&DataType::Int64);
        let (recorded_at, received_at, until) = (times("recorded_at")?, times("received_at")?, times("until")?);
        let (recorded_at, received_at, until) = (recorded_at.i64()?, received_at.i64()?, until.i64()?);
        let sequence = frame.column("sequence")?.i64()?;
        let text = |name: &str| frame.column(name)?.str();
        let (key, event, request_id) = (text("key")?, text("event")?, text("request_id")?);
        let (kind, tag) = (text("kind")?, text("tag")?);
        let before = self.read_up_to;
        for row in 0..frame.height() {
            let number = sequence.get(row).unwrap_or(0) as u64;
            // Gathered segments may stand in two files.
            if number <= before || self.last.is_some_and(|last| number > last) {
                continue;
            }
            self.read_up_to = self.read_up_to.max(number);
            let Some(id) = request_id.get(row) else { continue };
            if !self.requests.contains_key(id) {
                self.requests.insert(id.to_owned(), Asked::default());
            }
            let request = self.requests.get_mut(id).expect("inserted above");
            match event.get(row) {
                // The latter has no time, and is a tag alone.
                Some("received" | "rekeyed") => {
                    let later = received_at.get(row).zip(request.withdrawn_at);
                    if later.is_some_and(|(received, withdrawn)| received > withdrawn) {
                        request.withdrawn_at = None;
                    }
                    request.asked_at = request.asked_at.max(received_at.get(row));
                    let raw = tag.get(row).and_then(|tag| hex::decode(tag).ok()).filter(|raw| raw.len() == 32);
                    if let Some(raw) = raw.filter(|_| key.get(row) == Some(self.own_key.as_str())) {
                        request.tags.push(head(&raw));
                    }
                    self.kinds.extend(kind.get(row).filter(|kind| !self.kinds.contains(*kind)).map(str::to_owned));
                }
                // One without a time of its own is later than whatever was asked before it.
                Some("withdrawn") => match received_at.get(row) {
                    None => request.withdrawn_at = request.withdrawn_at.max(request.asked_at).max(recorded_at.get(row)),
                    told if told >= request.asked_at => request.withdrawn_at = request.withdrawn_at.max(told),
                    _ => {}
                },
                Some("exempted") => request.exempted = Some(until.get(row)),
                _ => {}
            }
        }
        Ok(())
    }
}
