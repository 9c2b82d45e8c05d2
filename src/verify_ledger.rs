//! The request ledger as the verifier reads it: its files again, with Polars, and a fold of its own that knows four kinds of events.
//!
//! Written apart from the ledger's own modules on purpose: a request that their fold forgets, or goes on with after it was withdrawn,
//! shows as a difference. Whether the chain fits is for whoever opens the ledger to say. Invariant: only tags are held.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Cursor;
use std::sync::{Arc, OnceLock, RwLock};

use jiff::Timestamp;
use memmap2::MmapMut;
use polars::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::{Error, Exit, Result};
use crate::signature::{KindTags, TagKey, tag_of_hex};
use crate::store::{self, Location, Store, StoreError};
use crate::verify_list::Spread;
use crate::verify_normalise::{Fingerprints, Form};

/// The label of the number that a listed text stands for.
const NUMBER: &str = "text-number";

/// The tags that a match means, and the key to make more.
pub struct Tagged {
    key: Arc<TagKey>,
    /// The first 16 bytes of each.
    tags: HashSet<u128, Spread>,
    /// Those that requests have and nobody asks for: of whom opted in again, or what an exemption holds. No other list asks for them.
    pub let_go: Arc<HashSet<u128, Spread>>,
    /// Kinds that any request has.
    pub kinds: BTreeSet<String>,
    /// The last segment that was read; 0: there is none.
    pub last: u64,
    strangers: Strangers,
}

/// Makes the tags of the values of one kind.
#[derive(Clone)]
pub struct Tagger {
    own: KindTags,
    /// For numbers of kind `text`.
    number: Option<KindTags>,
    /// Tells the kinds apart by which the same value may be asked.
    salt: u128,
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
        Tagger { own: self.key.tags_of(kind), number, salt: head(&Sha256::digest(kind)) }
    }

    /// To ask for values of one kind.
    pub fn asking<'a>(&'a self, tagger: &'a Tagger) -> Asking<'a> {
        Asking { tagged: self, tagger, questions: Vec::with_capacity(QUESTIONS), bytes: Vec::new() }
    }
}

/// So many values are asked together.
const QUESTIONS: usize = 64;

/// Values that wait until there are enough of them: whether they are strangers is looked up far away, for all at the same time.
pub struct Asking<'a> {
    tagged: &'a Tagged,
    tagger: &'a Tagger,
    questions: Vec<Question>,
    /// Their canonical forms, one after the other.
    bytes: Vec<u8>,
}

struct Question {
    index: usize,
    fingerprint: u128,
    end: usize,
    is_number: bool,
}

impl Asking<'_> {
    /// Asks for the canonical form of value `index`. `fingerprint` is the form's own, under a key of this run: of what is known by it to be
    /// nobody's no tag is made again. Gives the tags that the ledger holds to `each`, of this value or of earlier ones.
    pub fn ask(
        &mut self,
        index: usize,
        fingerprint: u128,
        canonical: &[u8],
        is_number: bool,
        each: &mut dyn FnMut(usize, u128),
    ) {
        self.bytes.extend_from_slice(canonical);
        let (fingerprint, end) = (fingerprint ^ self.tagger.salt, self.bytes.len());
        self.questions.push(Question { index, fingerprint, end, is_number });
        if self.questions.len() == QUESTIONS {
            self.answer(each);
        }
    }

    /// Answers what was asked so far.
    pub fn answer(&mut self, each: &mut dyn FnMut(usize, u128)) {
        let mut are_known = [false; QUESTIONS];
        self.tagged.strangers.know(self.questions.iter().map(|question| question.fingerprint), &mut are_known);
        let (mut start, mut met) = (0, Vec::new());
        for (question, is_known) in self.questions.drain(..).zip(are_known) {
            let canonical = &self.bytes[start..question.end];
            start = question.end;
            if is_known {
                continue;
            }
            let mut is_held = false;
            for tag in self.tagger.of_canonical(canonical, question.is_number).filter(|tag| self.tagged.holds(*tag)) {
                is_held = true;
                each(question.index, tag);
            }
            if !is_held {
                met.push(question.fingerprint);
            }
        }
        self.tagged.strangers.meet(&met);
        self.bytes.clear();
    }
}

/// Fingerprints of values that are in no request, for as long as there is room: 64 MiB, which the system gives as they are written to.
///
/// A tag costs three rounds of SHA-256, and columns of identifiers hold the same few over and over. The lower half of a fingerprint says
/// in which group of places it is kept, the upper half is what is kept; whoever finds all of a group taken takes one of them. A value of
/// the ledger that is taken for one of the eight strangers of its group is residue that is not seen: a probability of 2^-61 for each such
/// value. The find stage has a memory of the same shape under another key (`unlisted`): it is written twice on purpose, so that what
/// one of them overlooks the other one sees.
#[derive(Default)]
struct Strangers(OnceLock<Option<RwLock<MmapMut>>>);

const GROUPS: usize = 1 << 20;
const PLACES_IN_A_GROUP: usize = 8;
const GROUP_BYTES: usize = 8 * PLACES_IN_A_GROUP;

fn group(fingerprint: u128) -> std::ops::Range<usize> {
    let start = fingerprint as usize % GROUPS * GROUP_BYTES;
    start..start + GROUP_BYTES
}

/// Zero is an empty place.
fn kept(fingerprint: u128) -> u64 {
    (fingerprint >> 64) as u64
}

impl Strangers {
    /// `None`: the system has no room, and nobody is kept.
    fn map(&self) -> Option<&RwLock<MmapMut>> {
        let map = || {
            let map = MmapMut::map_anon(GROUPS * GROUP_BYTES).ok()?;
            // Each look is at another page: large ones spare the processor the search for it. Without them it is only slower.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            Some(RwLock::new(map))
        };
        self.0.get_or_init(map).as_ref()
    }

    /// Which of the fingerprints are a stranger's. No look waits for the one before: there is no branch between them.
    fn know(&self, fingerprints: impl Iterator<Item = u128>, are_known: &mut [bool; QUESTIONS]) {
        let Some(map) = self.map() else { return };
        let map = map.read().unwrap_or_else(|broken| broken.into_inner());
        for (fingerprint, is_known) in fingerprints.zip(are_known) {
            let wanted = kept(fingerprint);
            let places = map[group(fingerprint)].chunks_exact(8);
            let is_there = places.fold(false, |found, place| found | (place == wanted.to_ne_bytes()));
            *is_known = is_there & (wanted != 0);
        }
    }

    fn meet(&self, fingerprints: &[u128]) {
        let Some(map) = self.map().filter(|_| !fingerprints.is_empty()) else { return };
        let mut map = map.write().unwrap_or_else(|broken| broken.into_inner());
        for fingerprint in fingerprints {
            let (group, kept) = (&mut map[group(*fingerprint)], kept(*fingerprint));
            let free = group.chunks_exact(8).position(|place| place == [0; 8]);
            let place = 8 * free.unwrap_or(kept as usize % PLACES_IN_A_GROUP);
            group[place..place + 8].copy_from_slice(&kept.to_ne_bytes());
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
    let mut events = Events::new(own_key, last).map_err(Unread::For)?;
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
    Ok(events.tagged(key, now.as_microsecond(), withheld))
}

fn unreadable(location: &Location) -> Error {
    Error::new(Exit::Untrusted, format!("the ledger cannot be read by the verifier: {location}"))
}

/// What the events say of the requests, as far as it matters for a match. A request is known by the fingerprint of its id.
struct Events {
    own_key: String,
    ids: Fingerprints,
    /// Request and tag, of every identifier under the present key.
    asked: Vec<(u128, u128)>,
    /// When, in microseconds since 1970, as all times here.
    withdrawn: HashMap<u128, i64, Spread>,
    /// The latest asking of each request that has one later than the ledger knew it: there is none as a rule.
    asked_ahead: HashMap<u128, i64, Spread>,
    /// For good, or until then.
    exempted: HashMap<u128, Option<i64>, Spread>,
    kinds: BTreeSet<String>,
    read_up_to: u64,
    last: Option<u64>,
}

impl Events {
    fn new(own_key: String, last: Option<u64>) -> Result<Events> {
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).map_err(|error| Error::internal(format!("cannot draw a random key: {error}")))?;
        Ok(Events {
            own_key,
            ids: Fingerprints::new(seed),
            asked: Vec::new(),
            withdrawn: HashMap::with_hasher(Spread),
            asked_ahead: HashMap::with_hasher(Spread),
            exempted: HashMap::with_hasher(Spread),
            kinds: BTreeSet::new(),
            read_up_to: 0,
            last,
        })
    }

    fn id(&self, request_id: &str) -> u128 {
        self.ids.canonical(Form::Text, request_id.as_bytes())
    }

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
            let Some(id) = request_id.get(row).map(|id| self.id(id)) else { continue };
            match event.get(row) {
                // The latter has no time, and is a tag alone.
                Some("received" | "rekeyed") => {
                    let asked = received_at.get(row);
                    if asked.zip(self.withdrawn.get(&id)).is_some_and(|(asked, withdrawn)| asked > *withdrawn) {
                        self.withdrawn.remove(&id);
                    }
                    if let Some(asked) = asked.filter(|asked| recorded_at.get(row).is_some_and(|at| *asked > at)) {
                        let latest = self.asked_ahead.entry(id).or_insert(asked);
                        *latest = asked.max(*latest);
                    }
                    let raw = tag.get(row).and_then(tag_of_hex);
                    if let Some(raw) = raw.filter(|_| key.get(row) == Some(self.own_key.as_str())) {
                        self.asked.push((id, head(&raw)));
                    }
                    self.kinds.extend(kind.get(row).filter(|kind| !self.kinds.contains(*kind)).map(str::to_owned));
                }
                Some("withdrawn") => {
                    // One without a time of its own is later than whatever was asked before it.
                    let told = match received_at.get(row) {
                        None => recorded_at.get(row).max(self.asked_ahead.get(&id).copied()),
                        told => told,
                    };
                    let known = self.withdrawn.get(&id).copied();
                    known.max(told).map(|at| self.withdrawn.insert(id, at));
                }
                Some("exempted") => {
                    self.exempted.insert(id, until.get(row));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The tags that stand at `now`. An exemption lasts to the end of the second that it names.
    fn tagged(self, key: Arc<TagKey>, now: i64, withheld: &BTreeSet<Arc<str>>) -> Tagged {
        let second = |micros: i64| micros.div_euclid(1_000_000);
        let mut kept: HashSet<u128, Spread> = HashSet::with_hasher(Spread);
        kept.extend(withheld.iter().map(|id| self.id(id)));
        let in_force = |until: &Option<i64>| until.is_none_or(|until| second(now) <= second(until));
        kept.extend(self.exempted.iter().filter(|(_, until)| in_force(until)).map(|(id, _)| *id));
        let mut tags = HashSet::with_capacity_and_hasher(self.asked.len(), Spread);
        tags.extend(self.asked.iter().filter(|(id, _)| !self.withdrawn.contains_key(id)).map(|(_, tag)| *tag));
        for (_, tag) in self.asked.iter().filter(|(id, _)| kept.contains(id)) {
            tags.remove(tag);
        }
        let is_resting = |id: &u128| self.withdrawn.contains_key(id) || kept.contains(id);
        let mut let_go = HashSet::with_hasher(Spread);
        let_go.extend(self.asked.iter().filter(|(id, _)| is_resting(id)).map(|(_, tag)| *tag));
        let_go.retain(|tag| !tags.contains(tag));
        let (let_go, strangers) = (Arc::new(let_go), Strangers::default());
        Tagged { key, tags, let_go, kinds: self.kinds, last: self.read_up_to, strangers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(number: u128) -> u128 {
        (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }

    fn know(strangers: &Strangers, fingerprint: u128) -> bool {
        let mut are_known = [false; QUESTIONS];
        strangers.know(std::iter::once(fingerprint), &mut are_known);
        are_known[0]
    }

    #[test]
    fn a_stranger_is_known_again_and_nobody_else_is() {
        let strangers = Strangers::default();
        assert!(!know(&strangers, fingerprint(0)) && !know(&strangers, 0));
        for number in 0..1000 {
            strangers.meet(&[fingerprint(number)]);
            assert!(know(&strangers, fingerprint(number)));
        }
        assert!((0..1000).all(|number| know(&strangers, fingerprint(number))));
        assert!((1000..9000).all(|number| !know(&strangers, fingerprint(number))));
        // The place alone says nothing.
        assert!(!know(&strangers, fingerprint(3) ^ 1 << 64) && !know(&strangers, fingerprint(3) as u64 as u128));
    }

    #[test]
    fn a_full_group_forgets_one_stranger_for_another() {
        let (strangers, in_one_group) = (Strangers::default(), |number: u128| (number + 1) << 64 | 7);
        (0..9).for_each(|number| strangers.meet(&[in_one_group(number)]));
        assert_eq!((0..9).filter(|number| know(&strangers, in_one_group(*number))).count(), 8);
        assert!(know(&strangers, in_one_group(8)));
    }

    #[test]
    fn every_value_is_answered_for_itself_and_what_is_nobodys_as_one_kind_may_be_somebodys_as_another() {
        let key = Arc::new(TagKey::new([1; 32]));
        let vin = |number: usize| head(&key.tags_of("vin").tag_of_canonical(number.to_string().as_bytes()).0);
        let listed = [3, 64, 65, 199];
        let tagged = Tagged {
            key: key.clone(),
            tags: listed.iter().map(|number| vin(*number)).collect(),
            let_go: Arc::default(),
            kinds: BTreeSet::new(),
            last: 1,
            strangers: Strangers::default(),
        };
        let held = |kind: &str| {
            let (tagger, mut held) = (tagged.tagger(kind), Vec::new());
            let mut asking = tagged.asking(&tagger);
            let mut each = |index, tag| held.push((index, tag));
            for number in 0..200 {
                asking.ask(number, fingerprint(number as u128), number.to_string().as_bytes(), false, &mut each);
            }
            asking.answer(&mut each);
            held
        };
        for _ in 0..2 {
            assert_eq!(held("zip"), []);
            assert_eq!(held("vin"), listed.map(|number| (number, vin(number))));
        }
    }
}
