//! What the events of the ledger amount to: every request, its identifiers, and what became of it.
//!
//! Pure: a fold over events in their order, and nothing else decides a state. Invariants: an event is never forgotten by another
//! (a withdrawal stops removal and erases nothing), taking an event in twice is taking it in once, and an identifier that an exemption
//! holds is looked for on nobody's request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use jiff::Timestamp;

use crate::ledger_event::{DueDate, Event, Fact, Segment, Tagged, Text};

/// All requests, in the order in which they came.
#[derive(Debug, Default)]
pub struct Requests {
    requests: Vec<Request>,
    by_id: HashMap<Text, u32, foldhash::fast::RandomState>,
    entries: Vec<Entry>,
    /// The last entry of a tag; the others hang on it.
    by_tag: ByTag<u32>,
    /// The requests of tags under other keys.
    by_stale_tag: ByTag<Vec<u32>>,
    /// What requests hold under other keys, each identifier and key once.
    stale: HashMap<u32, Vec<Stale>>,
    /// Whether tags of two keys were ever compared. Before that, of a ledger that earlier versions wrote, only their counts tell whether
    /// a request has under the present key what it had under another.
    is_rekeyed: bool,
    key_id: Option<Text>,
    /// The names of all upload files that answers were ever given in.
    answer_files: BTreeSet<Text>,
    /// The last clean run that was heard of: it says the same of millions.
    verified: Option<Arc<Verified>>,
    /// How many were taken in.
    pub events: u64,
}

/// By the first 16 bytes of tags.
type ByTag<T> = HashMap<[u8; 16], T, BuildHasherDefault<Spread>>;

/// Tags are spread evenly already.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let eight = bytes.first_chunk().copied().unwrap_or_default();
        self.0 = u64::from_le_bytes(eight);
    }

    fn write_usize(&mut self, _length: usize) {}
}

/// A moment in the ledger: which requests a run that read it then looks for.
#[derive(Debug, Clone, Default)]
pub struct Mark {
    asked: Vec<bool>,
    entries: u32,
}

/// The tags that exemptions in force keep from being matched, by their heads, and the positions of the requests that are exempted.
#[derive(Debug, Clone, Default)]
pub struct Holds {
    at: Timestamp,
    by_tag: ByTag<Vec<u32>>,
}

/// One identifier of one request.
#[derive(Debug, Clone)]
struct Entry {
    request: u32,
    /// Of the same tag, taken in before this one.
    next: Option<u32>,
    /// Another of the same tag was taken in after this one.
    is_followed: bool,
    /// Of the same request, taken in after this one.
    next_of_request: Option<u32>,
    identifier: Tagged,
}

/// One identifier of one request under another key than the present one.
#[derive(Debug, Clone)]
struct Stale {
    key_id: Text,
    identifier: Tagged,
    /// Whether the request has it under a later key.
    is_rekeyed: bool,
}

/// One request and what the events say of it.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: Text,
    pub source: Text,
    /// When the person asked, as the list says.
    pub received_at: Option<Timestamp>,
    /// When the ledger learnt of it.
    pub recorded_at: Timestamp,
    pub regime: Option<Text>,
    pub due: Option<DueDate>,
    pub list_digest: Option<Text>,
    /// Whether its id came in under another key than the present one, on which the ids depend that are tags.
    pub is_named_before: bool,
    /// The first and the last of its entries, which are its tags under the present key. The others hang on the first.
    entries: Option<(u32, u32)>,
    /// Its tags under other keys, which nothing can be compared with any more.
    pub stale_tags: u32,
    /// When it was last asked for, as far as anybody told.
    pub asked_at: Option<Timestamp>,
    /// When it was withdrawn, unless it was asked for later.
    pub withdrawn_at: Option<Timestamp>,
    /// Whether that was said here, under the present key: a command, and no download of some earlier day.
    pub is_withdrawn_here: bool,
    pub exempted: Option<Arc<Exemption>>,
    /// The last run that found nothing of it after the last fact to the contrary.
    pub verified: Option<Arc<Verified>>,
    /// By dataset: what was planned and removed there.
    pub datasets: Vec<(Text, InDataset)>,
    /// When a run first saw that it is back, until it is verified clean again.
    pub reappeared_at: Option<Timestamp>,
    /// How often it came back: from one clean run to the next, once.
    pub reappearances: u32,
    /// When it was last opened again without a return: a run saw its first rows after another had found nothing, or an identifier
    /// was added to it.
    pub reopened_at: Option<Timestamp>,
    pub answered: Option<Arc<Answered>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exemption {
    /// When it was recorded.
    pub at: Timestamp,
    pub ground: Text,
    pub until: Option<Timestamp>,
}

impl Exemption {
    /// To the end of the second that it names: a day ends with its last one.
    fn is_in_force(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now.as_second() <= until.as_second())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub at: Timestamp,
    pub run_id: Text,
    pub manifest_digest: Text,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub at: Timestamp,
    pub status: u64,
    pub source: Text,
}

/// What runs did about a request in one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InDataset {
    /// Announced by a run that has not said yet how it ended.
    pub planned: Option<Planned>,
    /// Over all runs.
    pub rows_removed: u64,
    /// Distinct consumers whose rows matched, at most in one run; `None` where no dataset names a consumer key.
    pub consumers: Option<u64>,
    pub removed_at: Option<Timestamp>,
    /// The last run that removed rows, and its manifest.
    pub removed_by: Option<(Text, Text)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub run_id: Text,
    pub rows: u64,
    pub consumers: Option<u64>,
    pub at: Timestamp,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Received, and no run has ended with it yet.
    Open,
    /// A run has announced that it removes rows and not said yet that it did.
    Planned,
    /// Rows are gone; no run has found everything clean since.
    Removed,
    /// Rows were removed and a run has found nothing left.
    Done,
    /// A run has looked at everything, and nothing ever matched. It is looked for in every later run.
    NotFound,
    /// It was done and matches again.
    Reappeared,
    /// Its data stay for a reason.
    Exempted,
    Withdrawn,
}

impl State {
    pub const ALL: [State; 8] = [
        State::Open,
        State::Planned,
        State::Removed,
        State::Done,
        State::NotFound,
        State::Reappeared,
        State::Exempted,
        State::Withdrawn,
    ];

    pub fn name(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Planned => "planned",
            State::Removed => "removed",
            State::Done => "done",
            State::NotFound => "not-found",
            State::Reappeared => "re-appeared",
            State::Exempted => "exempted",
            State::Withdrawn => "withdrawn",
        }
    }

    pub fn parse(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether a run has still to do something about it.
    pub fn is_open(self) -> bool {
        match self {
            State::Open | State::Planned | State::Removed | State::Reappeared => true,
            State::Done | State::NotFound | State::Exempted | State::Withdrawn => false,
        }
    }
}

impl Request {
    fn new(id: Text, recorded_at: Timestamp, source: Text) -> Request {
        Request {
            id,
            source,
            received_at: None,
            recorded_at,
            regime: None,
            due: None,
            list_digest: None,
            is_named_before: false,
            entries: None,
            stale_tags: 0,
            asked_at: None,
            withdrawn_at: None,
            is_withdrawn_here: false,
            exempted: None,
            verified: None,
            datasets: Vec::new(),
            reappeared_at: None,
            reappearances: 0,
            reopened_at: None,
            answered: None,
        }
    }

    pub fn state(&self, now: Timestamp) -> State {
        match (&self.withdrawn_at, &self.verified) {
            (Some(_), _) => State::Withdrawn,
            _ if self.is_exempt(now) => State::Exempted,
            _ if self.has_plan_of(None) => State::Planned,
            _ if self.reappeared_at.is_some() => State::Reappeared,
            (None, Some(_)) if self.rows_removed() > 0 => State::Done,
            (None, Some(_)) => State::NotFound,
            (None, None) if self.rows_removed() > 0 => State::Removed,
            (None, None) => State::Open,
        }
    }

    /// Whether a match means this request: not when it is withdrawn or exempted.
    pub fn is_suppressed(&self, now: Timestamp) -> bool {
        match self.state(now) {
            State::Withdrawn | State::Exempted => false,
            State::Open | State::Planned | State::Removed | State::Done | State::NotFound | State::Reappeared => true,
        }
    }

    /// Whether its data stay for a reason, which a withdrawal does not end: whoever opted in again may ask anew before it has ended.
    pub fn is_exempt(&self, now: Timestamp) -> bool {
        self.exempted.as_ref().is_some_and(|exemption| exemption.is_in_force(now))
    }

    pub fn rows_removed(&self) -> u64 {
        self.datasets.iter().map(|(_, facts)| facts.rows_removed).sum()
    }

    /// When the deadline began to run: as received, or else when the ledger learnt of it.
    pub fn clock_from(&self) -> Timestamp {
        self.received_at.unwrap_or(self.recorded_at)
    }

    /// When it was last done with: verified clean and not come back since, withdrawn, or exempted for good.
    pub fn done_at(&self) -> Option<Timestamp> {
        self.withdrawn_at.or_else(|| {
            let verified = self.verified.as_ref().map(|verified| verified.at);
            verified.filter(|_| self.reappeared_at.is_none())
        })
    }

    fn dataset(&mut self, name: &Text) -> &mut InDataset {
        let at = self.datasets.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            // Of millions of requests each has a few at most: no room is kept for more.
            self.datasets.reserve_exact(1);
            self.datasets.push((name.clone(), InDataset::default()));
            self.datasets.len() - 1
        });
        &mut self.datasets[at].1
    }

    /// Whether a match is a return: rows were removed and a run found nothing left. Once it is back it is so until the next clean run.
    pub fn was_done(&self) -> bool {
        self.reappeared_at.is_some() || (self.verified.is_some() && self.rows_removed() > 0)
    }

    /// Whether a run has looked at everything and nothing has ever matched: then a match is its first one.
    pub fn was_not_found(&self) -> bool {
        self.reappeared_at.is_none() && self.verified.is_some() && self.rows_removed() == 0
    }

    /// Whether a run has announced rows and not said yet how it ended: this one, or any.
    pub fn has_plan_of(&self, run_id: Option<&str>) -> bool {
        let mut plans = self.datasets.iter().filter_map(|(_, facts)| facts.planned.as_ref());
        plans.any(|planned| run_id.is_none_or(|run_id| *planned.run_id == *run_id))
    }

    /// The last moment at which it was known to be gone.
    pub fn gone_at(&self) -> Option<Timestamp> {
        let removed = self.datasets.iter().filter_map(|(_, facts)| facts.removed_at).max();
        self.verified.as_ref().map(|verified| verified.at).max(removed)
    }
}

/// How the ids of requests begin that their list gives none: the rest is the head of the first identifier's tag.
const DERIVED: &str = "tag-";

/// How the sources end that are downloads of DROP.
const DOWNLOAD: &str = "_DROP.zip";

/// The id of a request that its list gives none.
pub fn derived_id(tag: &[u8; 32]) -> String {
    format!("{DERIVED}{}", hex::encode(&tag[..8]))
}

fn head(tag: &[u8; 32]) -> [u8; 16] {
    tag[..16].try_into().expect("half a tag")
}

impl Requests {
    /// No request yet. `key_id`: of the tag key whose tags can be compared.
    pub fn new(key_id: Text) -> Requests {
        Requests { key_id: Some(key_id), ..Requests::default() }
    }

    /// Takes in a segment's events, in their order.
    pub fn take(&mut self, segment: &Segment) {
        let comparable = self.key_id.as_ref().is_none_or(|own| *own == segment.key_id);
        let stale_key = (!comparable).then_some(&segment.key_id);
        segment.events.iter().for_each(|event| self.take_event(event, stale_key));
    }

    /// In the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter()
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub fn get(&self, id: &str) -> Option<&Request> {
        self.by_id.get(id).map(|number| &self.requests[*number as usize])
    }

    /// A request by its position in [`Requests::iter`].
    pub fn at(&self, number: u32) -> &Request {
        &self.requests[number as usize]
    }

    /// A request's identifiers under the present key.
    pub fn identifiers<'a>(&'a self, request: &'a Request) -> impl Iterator<Item = &'a Tagged> {
        let first = request.entries.map(|(first, _)| &self.entries[first as usize]);
        let next = |entry: &&'a Entry| entry.next_of_request.map(|next| &self.entries[next as usize]);
        std::iter::successors(first, next).map(|entry| &entry.identifier)
    }

    /// The positions of the requests that hold this tag. A tag is told by its first 16 bytes.
    pub fn with_tag(&self, tag: [u8; 16]) -> impl Iterator<Item = u32> {
        let mut next = self.by_tag.get(&tag).copied();
        std::iter::from_fn(move || {
            let entry = &self.entries[next? as usize];
            next = entry.next;
            Some(entry.request)
        })
    }

    /// The requests that have an identifier.
    pub fn with_identifier<'a>(&'a self, identifier: &Tagged) -> impl Iterator<Item = u32> + use<'a> {
        self.with_tag(head(&identifier.tag))
    }

    /// Which tags nobody's request is matched by at `now`, because an exempted one has them.
    pub fn holds(&self, now: Timestamp) -> Holds {
        let mut by_tag: ByTag<Vec<u32>> = ByTag::default();
        for (number, request) in self.requests.iter().enumerate().filter(|(_, request)| request.is_exempt(now)) {
            for identifier in self.identifiers(request) {
                by_tag.entry(head(&identifier.tag)).or_default().push(number as u32);
            }
        }
        Holds { at: now, by_tag }
    }

    /// The exempted requests that hold an identifier of this one, which asks for it in vain. None of a request that asks for nothing.
    pub fn held_by(&self, request: &Request, holds: &Holds) -> BTreeSet<u32> {
        if !request.is_suppressed(holds.at) {
            return BTreeSet::new();
        }
        let own = self.identifiers(request).filter_map(|identifier| holds.by_tag.get(&head(&identifier.tag)));
        own.flatten().copied().collect()
    }

    /// How far the ledger was read: what comes later is none of this run's.
    pub fn mark(&self, now: Timestamp) -> Mark {
        let holds = self.holds(now);
        // What is held in part is looked for in part, which proves nothing of the whole.
        let is_asked = |request: &Request| request.is_suppressed(now) && self.held_by(request, &holds).is_empty();
        let asked = self.requests.iter().map(is_asked).collect();
        Mark { asked, entries: self.entries.len() as u32 }
    }

    /// The positions of the requests that were asked for at the mark, with the same identifiers as now.
    pub fn asked_at<'a>(&'a self, mark: &'a Mark) -> impl Iterator<Item = (u32, &'a Request)> {
        let requests = self.requests.iter().enumerate().map(|(number, request)| (number as u32, request));
        requests
            .zip(&mark.asked)
            .filter(|(_, asked)| **asked)
            .map(|(request, _)| request)
            .filter(|(_, request)| request.entries.is_some_and(|(_, last)| last < mark.entries))
    }

    /// The requests that hold this tag under another key than the present one.
    pub fn with_stale_tag(&self, tag: &[u8; 32]) -> impl Iterator<Item = &Request> {
        self.by_stale_tag.get(&head(tag)).into_iter().flatten().map(|number| self.at(*number))
    }

    /// Whether the request holds this tag under another key than the present one.
    pub fn has_stale_tag(&self, request: &Request, tag: &[u8; 32]) -> bool {
        self.stale_of(request).iter().any(|stale| stale.identifier.tag == *tag)
    }

    fn stale_of(&self, request: &Request) -> &[Stale] {
        let stale = self.by_id.get(&request.id).and_then(|number| self.stale.get(number));
        stale.map_or(&[], Vec::as_slice)
    }

    /// Every identifier that a match means at `now`, once: those of withdrawn requests are not there, nor is any that an exempted one
    /// has, whoever else asks for it.
    pub fn suppressed(&self, now: Timestamp) -> impl Iterator<Item = &Tagged> {
        let holds = self.holds(now);
        let is_first = move |number: u32, entry: &Entry| {
            // Most tags are one request's.
            if entry.next.is_none() && !entry.is_followed {
                return self.requests[entry.request as usize].is_suppressed(now);
            }
            let mut next = self.by_tag.get(&head(&entry.identifier.tag)).copied();
            while let Some(other) = next {
                let entry = &self.entries[other as usize];
                if self.requests[entry.request as usize].is_suppressed(now) {
                    return other == number;
                }
                next = entry.next;
            }
            false
        };
        let entries = self.entries.iter().enumerate();
        let free = entries.filter(move |(_, entry)| !holds.by_tag.contains_key(&head(&entry.identifier.tag)));
        free.filter(move |(number, entry)| is_first(*number as u32, entry)).map(|(_, entry)| &entry.identifier)
    }

    /// Whether any request has an identifier of this kind.
    pub fn has_kind(&self, kind: &str) -> bool {
        self.entries.iter().any(|entry| *entry.identifier.kind == *kind)
    }

    /// The tags that requests have and that nobody's match means at `now`: of whom opted in again, or what an exemption holds.
    pub fn let_go(&self, now: Timestamp) -> Vec<&[u8; 32]> {
        let holds = self.holds(now);
        let resting = self.requests.iter().filter(|request| !request.is_suppressed(now));
        let tags = resting.flat_map(|request| self.identifiers(request)).map(|identifier| &identifier.tag);
        let is_asked = |tag: &[u8; 32]| self.with_tag(head(tag)).any(|number| self.at(number).is_suppressed(now));
        tags.filter(|tag| holds.by_tag.contains_key(&head(tag)) || !is_asked(tag)).collect()
    }

    /// Distinct identifiers by kind, of all requests.
    pub fn identifiers_by_kind(&self) -> BTreeMap<&str, u64> {
        let mut kinds = BTreeMap::new();
        for first in self.by_tag.values() {
            *kinds.entry(&*self.entries[*first as usize].identifier.kind).or_default() += 1;
        }
        kinds
    }

    /// Requests that should match, or keep others from it, and of which an identifier is not there under the present key: their lists must
    /// be imported again.
    pub fn not_comparable(&self, now: Timestamp) -> usize {
        let lost = |(number, request): &(usize, &Request)| {
            let matters = request.is_suppressed(now) || request.is_exempt(now);
            matters && (request.entries.is_none() || self.lacks_entries(*number as u32))
        };
        self.requests.iter().enumerate().filter(lost).count()
    }

    /// Requests of which an identifier is there under another key alone: whoever names it under the present one is not known for its own.
    /// One that was withdrawn under the present key is given up.
    pub fn left_behind(&self) -> usize {
        self.stale.keys().filter(|number| self.is_left_behind(self.at(**number))).count()
    }

    /// Whether that is said of this request.
    pub fn is_left_behind(&self, request: &Request) -> bool {
        let Some(number) = self.by_id.get(&request.id).filter(|number| self.stale.contains_key(number)) else {
            return false;
        };
        let is_given_up = request.withdrawn_at.is_some() && request.is_withdrawn_here;
        !is_given_up && (request.entries.is_none() || self.lacks_entries(*number))
    }

    /// As long as no tags were compared, a request must have as many identifiers of each kind as it had under any other key.
    fn lacks_entries(&self, number: u32) -> bool {
        if self.is_rekeyed {
            return self.stale.get(&number).into_iter().flatten().any(|stale| !stale.is_rekeyed);
        }
        let mut had: BTreeMap<(&Text, &Text), usize> = BTreeMap::new();
        for Stale { key_id, identifier, .. } in self.stale.get(&number).into_iter().flatten() {
            *had.entry((key_id, &identifier.kind)).or_default() += 1;
        }
        let has = |kind: &Text| self.identifiers(self.at(number)).filter(|own| own.kind == *kind).count();
        had.iter().any(|((_, kind), count)| has(kind) < *count)
    }

    /// The last second of the set of [`Requests::suppressed`] as it is at `now`, if it changes without an event: an exemption ends.
    pub fn stands_until(&self, now: Timestamp) -> Option<Timestamp> {
        let exempt = self.requests.iter().filter(|request| request.is_exempt(now));
        exempt.filter_map(|request| request.exempted.as_ref()?.until).min()
    }

    /// The last second at which that set was another one, by the same events: an exemption that has ended was still in force.
    pub fn stands_since(&self, now: Timestamp) -> Option<Timestamp> {
        let free = self.requests.iter().filter(|request| !request.is_exempt(now));
        free.filter_map(|request| request.exempted.as_ref()?.until).max()
    }

    /// Whether the event says something that is not known yet.
    pub fn is_news(&self, event: &Event) -> bool {
        let Some(request) = self.get(&event.request_id) else {
            return match &event.fact {
                Fact::Received { .. } => !self.stands_for_row(event) || self.is_news_row(std::slice::from_ref(event)),
                // What it withdraws may come later, from an older download.
                Fact::Withdrawn { at, .. } => at.is_some(),
                Fact::Imported { .. } => self.events == 0,
                Fact::Rekeyed { .. }
                | Fact::Planned { .. }
                | Fact::Removed { .. }
                | Fact::VerifiedClean { .. }
                | Fact::Reappeared { .. }
                | Fact::Found { .. }
                | Fact::Exempted { .. }
                | Fact::Answered { .. } => false,
            };
        };
        match &event.fact {
            Fact::Received { identifier, source, received_at, due, .. } => {
                let has_it = self.identifiers(request).any(|known| known == identifier);
                !(has_it || self.turns_away(request, identifier, source, *received_at))
                    || is_asked_anew(request, *received_at)
                    || is_listed_later(request, source, *received_at)
                    || is_due_earlier(request, due.as_ref())
            }
            Fact::Rekeyed { identifier, old_tag } => {
                let mut stale = self.stale_of(request).iter().filter(|stale| stale.identifier.tag == *old_tag);
                let has_it = self.identifiers(request).any(|known| known == identifier);
                stale.any(|stale| stale.identifier.kind == identifier.kind && !(stale.is_rekeyed && has_it))
            }
            Fact::Planned { dataset, run_id, rows, .. } => {
                let known = request.datasets.iter().find(|(name, _)| name == dataset).map(|(_, facts)| facts);
                let is_known = |facts: &InDataset| {
                    facts.planned.as_ref().is_some_and(|planned| planned.run_id == *run_id && planned.rows >= *rows)
                        || facts.removed_by.as_ref().is_some_and(|(by, _)| by == run_id)
                };
                !known.is_some_and(is_known)
            }
            Fact::Removed { dataset, run_id, .. } => {
                let known = request.datasets.iter().find(|(name, _)| name == dataset).map(|(_, facts)| facts);
                let by = known.and_then(|facts| facts.removed_by.as_ref());
                by.is_none_or(|(known, _)| known != run_id)
            }
            Fact::VerifiedClean { run_id, .. } => {
                request.verified.as_ref().is_none_or(|verified| verified.run_id != *run_id)
            }
            Fact::Exempted { ground, until } => {
                !request.exempted.as_ref().is_some_and(|known| known.ground == *ground && known.until == *until)
            }
            Fact::Withdrawn { at: None, .. } => request.withdrawn_at.is_none() || !request.is_withdrawn_here,
            Fact::Withdrawn { at: Some(at), .. } => withdraws(request, *at),
            Fact::Answered { status, .. } => {
                request.answered.as_ref().is_none_or(|answered| answered.status != *status)
            }
            Fact::Reappeared { .. } => true,
            Fact::Found { .. } => request.was_not_found(),
            Fact::Imported { .. } => false,
        }
    }

    /// Whether this identifier, which the request has not, is not to be hung onto it, because somebody opted in again and the asking tells
    /// no later time. On a withdrawn request nobody would ask for it, though nobody withdrew it; and on an open one that has no id of its
    /// own what was withdrawn would be asked for once more. An id of a list is asked for by that list.
    pub fn turns_away(
        &self,
        request: &Request,
        identifier: &Tagged,
        source: &str,
        received_at: Option<Timestamp>,
    ) -> bool {
        let is_let_go = |request: &Request| request.withdrawn_at.is_some() && !is_asked_anew(request, received_at);
        if self.identifiers(request).any(|known| known == identifier) {
            return false;
        }
        if request.withdrawn_at.is_none() {
            let mut holding = self.with_tag(head(&identifier.tag)).map(|number| self.at(number)).peekable();
            return request.id.starts_with(DERIVED) && holding.peek().is_some() && holding.all(is_let_go);
        }
        // Of a work item the download may come that its cancellation came before.
        let is_first = request.entries.is_none() && request.stale_tags == 0;
        is_let_go(request) && !is_first && !source.ends_with(DOWNLOAD) && !self.may_make_up(request, &identifier.kind)
    }

    /// Whether one more identifier of this kind may be one that the request has under another key.
    fn may_make_up(&self, request: &Request, kind: &Text) -> bool {
        let number = self.by_id.get(&request.id);
        !self.is_rekeyed && number.is_some_and(|number| self.makes_up(*number, kind, None))
    }

    /// For each of these identifiers a request that asks for it; `None`: of some of them there is none.
    pub fn asking_for(&self, identifiers: &[Tagged]) -> Option<Vec<&Request>> {
        let asking = |tagged: &Tagged| {
            let mut known = self.with_tag(head(&tagged.tag)).map(|number| self.at(number));
            known.find(|known| known.withdrawn_at.is_none())
        };
        identifiers.iter().map(asking).collect()
    }

    /// Whether it is the first event of a row without an id that no request is named after. An id of a list that begins like one that is
    /// derived is an id.
    pub fn stands_for_row(&self, event: &Event) -> bool {
        let Fact::Received { identifier, .. } = &event.fact else { return false };
        event.request_id.starts_with(DERIVED)
            && *event.request_id == *derived_id(&identifier.tag)
            && self.get(&event.request_id).is_none()
    }

    /// Whether a row without an id, whose events these are, says something new: as a whole, for it stands for one person. Were only some
    /// of its identifiers recorded, whoever withdraws the others would go on being removed by these. Rows that name somebody who
    /// opted in again, and tell no later asking, say nothing.
    pub fn is_news_row(&self, row: &[Event]) -> bool {
        let mut is_news = false;
        for event in row {
            let Fact::Received { identifier, received_at, .. } = &event.fact else { continue };
            let known = || self.with_tag(head(&identifier.tag)).map(|number| self.at(number));
            // Of an unknown identifier that is said of all requests that have it.
            if known().all(|known| is_asked_anew(known, *received_at)) {
                is_news = true;
            } else if known().all(|known| known.withdrawn_at.is_some()) {
                return false;
            }
        }
        is_news
    }

    pub fn answer_files(&self) -> &BTreeSet<Text> {
        &self.answer_files
    }

    /// Takes in one event; `stale_key`: of its tag, when that is not made with the present key.
    pub fn take_event(&mut self, event: &Event, stale_key: Option<&Text>) {
        self.events += 1;
        // Of no request.
        if matches!(event.fact, Fact::Imported { .. }) {
            return;
        }
        let number = match self.by_id.get(&event.request_id) {
            Some(number) => *number,
            None => {
                let source = match &event.fact {
                    Fact::Received { source, .. } | Fact::Withdrawn { source, .. } | Fact::Answered { source, .. } => {
                        source
                    }
                    Fact::Planned { .. }
                    | Fact::Removed { .. }
                    | Fact::VerifiedClean { .. }
                    | Fact::Reappeared { .. }
                    | Fact::Found { .. }
                    | Fact::Exempted { .. }
                    | Fact::Rekeyed { .. }
                    | Fact::Imported { .. } => &event.request_id,
                };
                let number = u32::try_from(self.requests.len()).expect("fewer than four billion requests");
                let new = Request::new(event.request_id.clone(), event.recorded_at, source.clone());
                self.requests.push(Request { is_named_before: stale_key.is_some(), ..new });
                self.by_id.insert(event.request_id.clone(), number);
                number
            }
        };
        if let Fact::Received { identifier, source, received_at, .. } = &event.fact
            && self.take_identifier(number, identifier, source, stale_key)
        {
            self.requests[number as usize].reopen(received_at.unwrap_or(event.recorded_at));
        }
        if let Fact::Rekeyed { identifier, old_tag } = &event.fact {
            self.take_rekeyed(number, identifier, old_tag, stale_key);
        }
        if let Fact::Answered { source, .. } = &event.fact {
            self.answer_files.insert(source.clone());
        }
        take_fact(&mut self.requests[number as usize], event, stale_key.is_none());
        if let Fact::VerifiedClean { run_id, manifest_digest } = &event.fact {
            let at = event.recorded_at;
            let is_it =
                |known: &Verified| (known.at, &known.run_id, &known.manifest_digest) == (at, run_id, manifest_digest);
            if !self.verified.as_deref().is_some_and(is_it) {
                let (run_id, manifest_digest) = (run_id.clone(), manifest_digest.clone());
                self.verified = Some(Arc::new(Verified { at, run_id, manifest_digest }));
            }
            self.requests[number as usize].verified = self.verified.clone();
        }
    }

    /// Whether the request had no such identifier. What only makes up for one under another key is none that it had not.
    fn take_identifier(&mut self, number: u32, identifier: &Tagged, source: &str, stale_key: Option<&Text>) -> bool {
        let makes_up = match self.is_rekeyed {
            false => self.makes_up(number, &identifier.kind, stale_key),
            true => source.ends_with(DOWNLOAD) && self.takes_over(number, &identifier.kind, stale_key),
        };
        self.hold(number, identifier, stale_key) && !makes_up
    }

    /// Whether the request did not hold this identifier under this key.
    fn hold(&mut self, number: u32, identifier: &Tagged, stale_key: Option<&Text>) -> bool {
        if let Some(key_id) = stale_key {
            let known = self.stale.entry(number).or_default();
            if known.iter().any(|known| known.key_id == *key_id && known.identifier == *identifier) {
                return false;
            }
            known.push(Stale { key_id: key_id.clone(), identifier: identifier.clone(), is_rekeyed: false });
            self.requests[number as usize].stale_tags += 1;
            let holding = self.by_stale_tag.entry(head(&identifier.tag)).or_default();
            if !holding.contains(&number) {
                holding.push(number);
            }
            return true;
        }
        let request = &self.requests[number as usize];
        if self.identifiers(request).any(|known| known == identifier) {
            return false;
        }
        let entry = self.entries.len() as u32;
        let next = self.by_tag.insert(head(&identifier.tag), entry);
        if let Some(before) = next {
            self.entries[before as usize].is_followed = true;
        }
        let identifier = identifier.clone();
        self.entries.push(Entry { request: number, next, is_followed: false, next_of_request: None, identifier });
        let own = &mut self.requests[number as usize].entries;
        let first = match *own {
            None => entry,
            Some((first, last)) => {
                self.entries[last as usize].next_of_request = Some(entry);
                first
            }
        };
        *own = Some((first, entry));
        true
    }

    /// From the first comparison on counts tell nothing: what they told so far stands.
    fn take_rekeyed(&mut self, number: u32, identifier: &Tagged, old_tag: &[u8; 32], stale_key: Option<&Text>) {
        if !self.is_rekeyed {
            let made_up: Vec<(u32, Vec<bool>)> =
                self.stale.keys().map(|number| (*number, self.made_up(*number))).collect();
            for (number, made_up) in made_up {
                let stale = self.stale.get_mut(&number).into_iter().flatten();
                stale.zip(made_up).for_each(|(stale, made_up)| stale.is_rekeyed = made_up);
            }
            self.is_rekeyed = true;
        }
        self.hold(number, identifier, stale_key);
        // The key before may be the present one again.
        let has_old = self.identifiers(self.at(number)).any(|own| own.tag == *old_tag);
        for stale in self.stale.get_mut(&number).into_iter().flatten() {
            stale.is_rekeyed |= stale.identifier.tag == *old_tag || (has_old && stale.identifier == *identifier);
        }
    }

    /// Which identifiers under other keys the request has under a later one, as far as counts tell.
    fn made_up(&self, number: u32) -> Vec<bool> {
        let stale = &self.stale[&number];
        let first = |key_id: &Text| stale.iter().position(|stale| stale.key_id == *key_id);
        let made_up = |Stale { key_id, identifier, .. }: &Stale| {
            let kind = &identifier.kind;
            let under = |key_id: &Text| {
                stale.iter().filter(|stale| stale.key_id == *key_id && stale.identifier.kind == *kind).count()
            };
            let own = self.identifiers(self.at(number)).filter(|own| own.kind == *kind).count();
            let later = stale.iter().filter(|later| first(&later.key_id) > first(key_id));
            own >= under(key_id) || later.into_iter().any(|later| under(&later.key_id) >= under(key_id))
        };
        stale.iter().map(made_up).collect()
    }

    /// A work item has one identifier for good: another tag of it is that of another key. Whether it took over.
    fn takes_over(&mut self, number: u32, kind: &Text, stale_key: Option<&Text>) -> bool {
        let others = self.stale.get_mut(&number).into_iter().flatten();
        let others = others.filter(|stale| stale_key != Some(&stale.key_id) && !stale.is_rekeyed);
        let mut others: Vec<&mut Stale> = others.filter(|stale| stale.identifier.kind == *kind).collect();
        if let [other] = &mut others[..] {
            other.is_rekeyed = true;
            return true;
        }
        false
    }

    /// Whether the request has fewer identifiers of the kind under this key than under another one: no tag tells which stands for which.
    fn makes_up(&self, number: u32, kind: &Text, stale_key: Option<&Text>) -> bool {
        let stale = self.stale.get(&number);
        if stale.is_none() && stale_key.is_none() {
            return false;
        }
        let mut counts: BTreeMap<Option<&Text>, usize> = BTreeMap::new();
        for Stale { key_id, identifier, .. } in stale.into_iter().flatten() {
            *counts.entry(Some(key_id)).or_default() += usize::from(identifier.kind == *kind);
        }
        let own = self.identifiers(self.at(number)).filter(|own| own.kind == *kind).count();
        counts.insert(None, own);
        let under_this = counts.get(&stale_key).copied().unwrap_or(0);
        counts.values().any(|count| *count > under_this)
    }
}

impl Request {
    /// It has more to be looked for than the last run looked for.
    fn reopen(&mut self, at: Timestamp) {
        if self.verified.take().is_some() {
            self.reopened_at = Some(at);
        }
    }
}

/// A withdrawn request is open again when the person asks at a later time; the same list once more is no such asking.
fn is_asked_anew(request: &Request, received_at: Option<Timestamp>) -> bool {
    request.withdrawn_at.is_some_and(|withdrawn| received_at.is_some_and(|received| received > withdrawn))
}

/// DROP lists an item once, so a later download that has it again tells that it was removed in between; that removal may be imported last.
fn is_listed_later(request: &Request, source: &str, received_at: Option<Timestamp>) -> bool {
    source.ends_with(DOWNLOAD) && (received_at > request.asked_at || becomes_item(request, source))
}

/// Whether a request that came with a list is a work item from now on, which is to be answered.
fn becomes_item(request: &Request, source: &str) -> bool {
    source.ends_with(DOWNLOAD) && !request.source.ends_with(DOWNLOAD)
}

/// Whether somebody asked by a rule whose term ends before that of the rules so far.
fn is_due_earlier(request: &Request, due: Option<&DueDate>) -> bool {
    let known = request.due.as_ref();
    request.withdrawn_at.is_none() && due.is_some_and(|due| known.is_none_or(|known| due.at < known.at))
}

/// Whether a withdrawal of that time is one: nobody asked later, and none is known that is as late.
fn withdraws(request: &Request, at: Timestamp) -> bool {
    request.asked_at.is_none_or(|asked| asked <= at) && request.withdrawn_at.is_none_or(|known| known < at)
}

fn take_fact(request: &mut Request, event: &Event, is_present_key: bool) {
    let at = event.recorded_at;
    match &event.fact {
        Fact::Received { source, received_at, regime, due, list_digest, .. } => {
            let anew = is_asked_anew(request, *received_at);
            if anew {
                // What was done when it was asked before is no answer to this asking. A plan stands until its run has ended.
                (request.withdrawn_at, request.is_withdrawn_here) = (None, false);
                request.verified = None;
                request.reappeared_at = None;
                request.reappearances = 0;
                request.reopened_at = None;
                request.answered = None;
                for (_, facts) in &mut request.datasets {
                    *facts = InDataset { planned: facts.planned.take(), ..InDataset::default() };
                }
            }
            // A later asking of the same person puts off no clock that runs from when the first was recorded.
            let is_first = request.recorded_at == at || received_at.is_some_and(|it| it < request.recorded_at);
            if anew || (request.received_at.is_none() && is_first) {
                request.received_at = *received_at;
            }
            request.asked_at = request.asked_at.max(*received_at);
            let becomes_item = becomes_item(request, source);
            if anew || request.regime.is_none() || is_due_earlier(request, due.as_ref()) {
                request.regime = regime.clone();
                request.due = due.clone();
            }
            if anew || becomes_item || request.list_digest.is_none() {
                (request.source, request.list_digest) = (source.clone(), list_digest.clone());
            }
        }
        // An identifier that is the same under another key is no news of the request.
        Fact::Rekeyed { .. } => {}
        Fact::Planned { dataset, run_id, rows, consumers } => {
            let planned = Planned { run_id: run_id.clone(), rows: *rows, consumers: *consumers, at };
            request.dataset(dataset).planned = Some(planned);
        }
        Fact::Removed { dataset, run_id, rows, consumers, manifest_digest } => {
            let facts = request.dataset(dataset);
            facts.planned = None;
            // The run has ended and left all of it.
            if *rows == 0 {
                return;
            }
            facts.rows_removed += rows;
            facts.consumers = facts.consumers.max(*consumers);
            facts.removed_at = Some(at);
            facts.removed_by = Some((run_id.clone(), manifest_digest.clone()));
            request.verified = None;
        }
        // Whoever calls this tells it that it is verified.
        Fact::VerifiedClean { .. } => {
            request.datasets.iter_mut().for_each(|(_, facts)| facts.planned = None);
            request.reappeared_at = None;
        }
        Fact::Reappeared { .. } => {
            if request.reappeared_at.is_none() {
                request.reappeared_at = Some(at);
                request.reappearances += 1;
            }
        }
        Fact::Found { .. } => {
            request.reopened_at = Some(at);
            request.verified = None;
        }
        Fact::Imported { .. } => {}
        Fact::Exempted { ground, until } => {
            let exemption = Exemption { at, ground: ground.clone(), until: *until };
            let (was, is) = (request.is_exempt(at), exemption.is_in_force(at));
            // Nobody looks for it as long as it is exempted: of what a run saw before, nothing is known when that has ended.
            if was || is {
                let end = exemption.until.filter(|_| is).unwrap_or(at);
                request.reopen(end);
                request.reopened_at = request.reopened_at.map(|_| end);
            }
            request.exempted = Some(Arc::new(exemption));
        }
        // Whoever says so now has the last word over every asking so far, whatever time that has.
        Fact::Withdrawn { at: None, .. } => {
            request.withdrawn_at = request.withdrawn_at.max(request.asked_at).max(Some(at));
            request.is_withdrawn_here = is_present_key;
        }
        Fact::Withdrawn { at: Some(at), .. } => {
            if withdraws(request, *at) {
                (request.withdrawn_at, request.is_withdrawn_here) = (Some(*at), false);
            }
        }
        Fact::Answered { status, source } => {
            request.answered = Some(Arc::new(Answered { at, status: *status, source: source.clone() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Text {
        text.into()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn received(id: &str, tag: u8, received_at: Option<i64>) -> (Text, Fact) {
        let identifier = Tagged { kind: text("email"), tag: [tag; 32] };
        let received_at = received_at.map(at);
        let (source, list_digest) = (text("crm"), None);
        (text(id), Fact::Received { identifier, source, received_at, regime: None, due: None, list_digest })
    }

    fn of(id: &str, fact: Fact) -> (Text, Fact) {
        (text(id), fact)
    }

    fn removed(id: &str, rows: u64) -> (Text, Fact) {
        let (dataset, run_id, manifest_digest) = (text("d"), text("run"), text("m"));
        of(id, Fact::Removed { dataset, run_id, rows, consumers: None, manifest_digest })
    }

    fn planned(id: &str) -> (Text, Fact) {
        of(id, Fact::Planned { dataset: text("d"), run_id: text("run"), rows: 2, consumers: None })
    }

    fn clean(id: &str) -> (Text, Fact) {
        of(id, Fact::VerifiedClean { run_id: text("run"), manifest_digest: text("m") })
    }

    fn back(id: &str) -> (Text, Fact) {
        let (dataset, run_id, object) = (text("d"), text("run2"), text("o"));
        of(id, Fact::Reappeared { dataset, run_id, object, rows: 1, since: None, written_by: None })
    }

    fn found(id: &str) -> (Text, Fact) {
        of(id, Fact::Found { dataset: text("d"), run_id: text("run2"), object: text("o"), rows: 1 })
    }

    fn withdrawn(id: &str) -> (Text, Fact) {
        of(id, Fact::Withdrawn { source: text("desk"), at: None })
    }

    fn removed_from_download(id: &str, second: i64) -> (Text, Fact) {
        of(id, Fact::Withdrawn { source: text("download"), at: Some(at(second)) })
    }

    fn downloaded(id: &str, second: i64) -> (Text, Fact) {
        let (_, mut fact) = received(id, 1, Some(second));
        let Fact::Received { source, .. } = &mut fact else { panic!("received") };
        *source = text(&format!("{second}_DROP.zip"));
        of(id, fact)
    }

    fn exempted(id: &str, until: Option<i64>) -> (Text, Fact) {
        of(id, Fact::Exempted { ground: text("tax"), until: until.map(at) })
    }

    /// Events at second 1, 2, 3, … by the present key, those that are no news left out.
    fn fold(facts: &[(Text, Fact)]) -> Requests {
        let mut requests = Requests::new(text("key"));
        for (second, (request_id, fact)) in facts.iter().enumerate() {
            let (recorded_at, request_id) = (at(second as i64 + 1), request_id.clone());
            let event = Event { recorded_at, request_id, fact: fact.clone() };
            if requests.is_news(&event) {
                requests.take(&Segment { sequence: 1, key_id: text("key"), events: vec![event] });
            }
        }
        requests
    }

    #[test]
    fn a_state_follows_from_the_facts() {
        let r = || received("r", 1, None);
        let cases: [(&[(Text, Fact)], State); 20] = [
            (&[r()], State::Open),
            (&[r(), planned("r")], State::Planned),
            (&[r(), planned("r"), removed("r", 2)], State::Removed),
            (&[r(), planned("r"), removed("r", 2), clean("r")], State::Done),
            (&[r(), clean("r")], State::NotFound),
            (&[r(), removed("r", 2), clean("r"), back("r")], State::Reappeared),
            (&[r(), removed("r", 2), clean("r"), withdrawn("r")], State::Withdrawn),
            (&[r(), exempted("r", None)], State::Exempted),
            (&[r(), exempted("r", Some(2000))], State::Exempted),
            (&[r(), exempted("r", Some(500))], State::Open),
            (&[r(), exempted("r", None), withdrawn("r")], State::Withdrawn),
            // What a run saw before it was exempted is of no use when that has ended.
            (&[r(), clean("r"), exempted("r", Some(500))], State::Open),
            (&[r(), removed("r", 2), clean("r"), exempted("r", Some(500))], State::Removed),
            (&[r(), clean("r"), exempted("r", None), exempted("r", Some(0))], State::Open),
            (&[r(), clean("r"), exempted("r", Some(0))], State::NotFound),
            (&[r(), withdrawn("r"), received("r", 1, Some(90))], State::Open),
            (&[r(), removed("r", 2), clean("r"), back("r"), withdrawn("r"), received("r", 1, Some(90))], State::Open),
            // The run ended and all that it planned is still there.
            (&[r(), planned("r"), removed("r", 0)], State::Open),
            (&[r(), clean("r"), found("r")], State::Open),
            (&[r(), removed("r", 2), clean("r"), found("r")], State::Done),
        ];
        for (facts, wish) in cases {
            let requests = fold(facts);
            let state = requests.get("r").unwrap().state(at(1000));
            assert_eq!(state, wish, "{facts:?}");
            let suppressed = requests.suppressed(at(1000)).count();
            assert_eq!(suppressed, usize::from(!matches!(wish, State::Withdrawn | State::Exempted)), "{facts:?}");
        }
    }

    #[test]
    fn a_return_is_counted_once_and_from_its_first_look() {
        let facts = [received("r", 1, None), removed("r", 2), clean("r"), back("r"), back("r")];
        let requests = fold(&facts);
        let request = requests.get("r").unwrap();
        assert_eq!((request.reappeared_at, request.reappearances), (Some(at(4)), 1));
        assert!(request.was_done(), "until it is verified clean");
        for (facts, wish) in [(&facts[..2], false), (&facts[..3], true), (&[facts[0].clone(), clean("r")], false)] {
            assert_eq!(fold(facts).get("r").unwrap().was_done(), wish, "{facts:?}");
        }
    }

    #[test]
    fn what_is_known_is_no_news() {
        let id = derived_id(&[1; 32]);
        type Case<'a> = (&'a [(Text, Fact)], u64, usize);
        let cases: [Case<'_>; 7] = [
            (&[received("r", 1, None), received("r", 1, None)], 1, 1),
            (&[received("r", 1, None), received("r", 2, None)], 2, 1),
            (&[received("r", 1, None), received("q", 1, None)], 2, 2),
            // A row without an id adds nothing to a known identifier.
            (&[received("r", 1, None), received(&id, 1, None)], 1, 1),
            (&[received("r", 1, None), withdrawn("r"), received(&id, 1, None)], 2, 1),
            (&[received("r", 1, None), withdrawn("r"), received(&id, 1, Some(50))], 3, 2),
            (&[received("r", 1, Some(0)), withdrawn("r"), withdrawn("r"), received("r", 1, Some(0))], 2, 1),
        ];
        for (facts, events, requests) in cases {
            let folded = fold(facts);
            assert_eq!((folded.events, folded.len()), (events, requests), "{facts:?}");
        }
        assert_eq!(fold(&[withdrawn("nobody")]).len(), 0);
    }

    /// Downloads are imported in any order, and what DROP said last counts.
    #[test]
    fn the_dates_of_downloads_decide_and_not_the_order_of_their_imports() {
        let (list, cancel) = (|second| downloaded("r", second), |second| removed_from_download("r", second));
        for (facts, wish) in [
            (vec![list(812), cancel(920)], State::Withdrawn),
            (vec![cancel(920), list(812)], State::Withdrawn),
            (vec![cancel(920), list(812), list(1030)], State::Open),
            (vec![list(812), cancel(920), list(1030)], State::Open),
            (vec![list(812), list(1030), cancel(920)], State::Open),
            (vec![list(1030), cancel(920), list(812)], State::Open),
            (vec![list(812), cancel(920), cancel(1110), list(1030)], State::Withdrawn),
            // In one download, or said here: withdrawn.
            (vec![list(812), cancel(812)], State::Withdrawn),
            (vec![list(812), withdrawn("r"), list(812)], State::Withdrawn),
            (vec![list(812), cancel(920), withdrawn("r"), list(920)], State::Withdrawn),
        ] {
            let folded = fold(&facts);
            assert_eq!(folded.get("r").unwrap().state(at(2000)), wish, "{facts:?}");
            let events = folded.events;
            assert_eq!(fold(&[&facts[..], &facts[..]].concat()).events, events, "twice: {facts:?}");
        }
    }

    #[test]
    fn a_tag_is_suppressed_once_and_as_long_as_one_request_asks_for_it() {
        let both = [received("r", 1, None), received("q", 1, None)];
        assert_eq!(fold(&both).suppressed(at(9)).count(), 1);
        let [r, q] = both;
        assert_eq!(fold(&[r.clone(), q.clone(), withdrawn("q")]).suppressed(at(9)).count(), 1);
        let none = fold(&[r, q, withdrawn("q"), withdrawn("r")]);
        assert_eq!(none.suppressed(at(9)).count(), 0);
        assert_eq!(none.with_tag([1; 16]).count(), 2);
    }

    #[test]
    fn what_an_exempted_request_has_is_asked_for_by_nobody() {
        let both = [received("r", 1, None), received("q", 1, None), received("q", 2, None), received("p", 2, None)];
        let with = |more: &[(Text, Fact)]| fold(&[&both[..], more].concat());
        type Case<'a> = (&'a [(Text, Fact)], usize, &'a [&'a str]);
        let cases: [Case<'_>; 6] = [
            (&[], 2, &[]),
            (&[exempted("r", None)], 1, &["q"]),
            (&[exempted("r", Some(1000))], 1, &["q"]),
            (&[exempted("r", Some(999))], 2, &[]),
            // Whoever opted in again and asks anew under another id is still held.
            (&[exempted("r", None), withdrawn("r")], 1, &["q"]),
            (&[exempted("r", None), exempted("q", None)], 0, &["p"]),
        ];
        for (more, suppressed, held) in cases {
            let requests = with(more);
            let (now, holds) = (at(1000), requests.holds(at(1000)));
            assert_eq!(requests.suppressed(now).count(), suppressed, "{more:?}");
            let is_held = |request: &&Request| !requests.held_by(request, &holds).is_empty();
            let ids: Vec<&str> = requests.iter().filter(is_held).map(|request| &*request.id).collect();
            assert_eq!(ids, held, "{more:?}");
            // No run that looked for a part may say that it looked for the whole.
            let mark = requests.mark(now);
            assert!(requests.asked_at(&mark).all(|(_, request)| !held.contains(&&*request.id)), "{more:?}");
        }
    }

    #[test]
    fn an_exemption_under_another_key_is_not_lost_in_silence() {
        let mut requests = Requests::new(text("new"));
        let event = |(request_id, fact): (Text, Fact)| Event { recorded_at: at(1), request_id, fact };
        let mut take = |key: &str, facts: (Text, Fact)| {
            requests.take(&Segment { sequence: 1, key_id: text(key), events: vec![event(facts)] });
            requests.not_comparable(at(9))
        };
        take("old", received("r", 1, None));
        assert_eq!(take("old", exempted("r", None)), 1);
        // Another request of the same person: its tag under the new key is not held by one under the old.
        assert_eq!(take("new", received("q", 2, None)), 1);
        assert_eq!(take("new", received("r", 2, None)), 0);
    }

    #[test]
    fn an_identifier_that_is_added_opens_a_request_again_and_is_no_return() {
        let done = [received("r", 1, None), removed("r", 2), clean("r")];
        let not_found = [received("r", 1, None), clean("r")];
        for (facts, wish) in [(&done[..], State::Removed), (&not_found[..], State::Open)] {
            let again = fold(&[facts, &[received("r", 1, Some(50))]].concat());
            assert!(!again.get("r").unwrap().state(at(9)).is_open(), "the same identifier");
            let added = fold(&[facts, &[received("r", 7, Some(50))]].concat());
            let request = added.get("r").unwrap();
            assert_eq!((request.state(at(9)), request.reopened_at), (wish, Some(at(50))));
            assert!(!request.was_done() && !request.was_not_found());
        }
        // One that makes up for another key's is the same one as far as anybody can tell; one more is not.
        let mut requests = Requests::new(text("new"));
        let event = |(request_id, fact): (Text, Fact)| Event { recorded_at: at(1), request_id, fact };
        let mut take = |key: &str, facts: (Text, Fact)| {
            requests.take(&Segment { sequence: 1, key_id: text(key), events: vec![event(facts)] });
            requests.get("r").unwrap().state(at(9))
        };
        take("old", received("r", 1, None));
        assert_eq!(take("old", clean("r")), State::NotFound);
        assert_eq!(take("new", received("r", 2, None)), State::NotFound);
        assert_eq!(take("new", received("r", 3, None)), State::Open);
    }

    #[test]
    fn what_is_asked_anew_is_answered_anew() {
        let answer = of("r", Fact::Answered { status: 3, source: text("f") });
        let first = [received("r", 1, None), removed("r", 2), clean("r"), answer, withdrawn("r")];
        assert!(fold(&first).get("r").unwrap().answered.is_some());
        let anew = fold(&[&first[..], &[received("r", 1, Some(90))]].concat());
        assert!(anew.get("r").unwrap().answered.is_none());
        assert_eq!(anew.answer_files().len(), 1, "no name is given twice");
    }

    #[test]
    fn tags_of_another_key_compare_with_nothing_until_they_are_imported_again() {
        let mut requests = Requests::new(text("new"));
        let event = |(request_id, fact): (Text, Fact)| Event { recorded_at: at(1), request_id, fact };
        let segment =
            |key: &str, facts: (Text, Fact)| Segment { sequence: 1, key_id: text(key), events: vec![event(facts)] };
        requests.take(&segment("old", received("r", 1, None)));
        assert_eq!((requests.suppressed(at(9)).count(), requests.not_comparable(at(9))), (0, 1));
        requests.take(&segment("new", received("r", 2, None)));
        assert_eq!((requests.suppressed(at(9)).count(), requests.not_comparable(at(9)), requests.len()), (1, 0, 1));
        // Identifier by identifier, whatever the number of keys.
        requests.take(&segment("old", received("r", 3, None)));
        assert_eq!((requests.suppressed(at(9)).count(), requests.not_comparable(at(9))), (1, 1));
        requests.take(&segment("older", received("r", 5, None)));
        requests.take(&segment("new", received("r", 4, None)));
        assert_eq!((requests.suppressed(at(9)).count(), requests.not_comparable(at(9))), (2, 0));
    }
}
