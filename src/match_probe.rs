//! Whether one value is listed: what a rule asks of each cell, and the short cuts that spare most of them the question.
//!
//! No I/O and no clock. Invariant: a short cut answers "is not listed" only where the whole question would; "is listed" is always the
//! answer of a set or of the ledger's table.
//!
//! ```text
//! short cut   spares                               holds for
//! screen      the whole question                   a text column of plain e-mail addresses that no hash and no tag is compared with;
//!                                                  the address has a fingerprint
//! canonical   the making and copying of the form   a plain column; the value certainly is its own canonical form
//! unlisted    the making of a tag                  a plain value that the ledger was asked for in vain, known by kind, number or text
//! ```
//!
//! [`Probe::fetch`] is none of them: a guess of where `unlisted` will look, which costs time alone when it is wrong.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128_with_secret;

use crate::identifier::{Canonical, HashFunction, Hashed, Kind, Value};
use crate::job::MatchPart;
use crate::match_index::{Form, MatchIndex, Secret, Tags, form_of};
use crate::screen::{self, Screen};
use crate::signature::KindTags;
use crate::tag_table::TagTable;

/// What a value is to a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Match,
    NoMatch,
    NotComparable,
}

/// Asks whether one value is listed.
#[derive(Clone)]
pub struct Probe {
    index: Arc<MatchIndex>,
    kind: Kind,
    hashed: Option<Hashed>,
    plain: Option<u16>,
    number: Option<u16>,
    hashes: Vec<(HashFunction, u16)>,
    /// Boxed: most jobs have none.
    tags: Option<Box<ProbeTags>>,
    /// Where it knows all that the value is compared with.
    screen: Option<Arc<Screen>>,
}

/// Buffers that a thread of work reuses from value to value.
#[derive(Default)]
pub struct Scratch {
    pub(crate) canonical: Vec<u8>,
    pub(crate) digest: Vec<u8>,
}

/// What a value is asked of the ledger with. A plain value takes three SHA-256 compressions, a digest two; values repeat in most
/// columns, and one that was not there is not made a tag of again.
#[derive(Clone)]
struct ProbeTags {
    table: TagTable,
    /// Tells the kinds apart that share a memory of what is not there.
    salt: u128,
    own: KindTags,
    /// For numbers, beside `own`.
    numbers: Option<KindTags>,
}

impl MatchIndex {
    pub(crate) fn probe(self: &Arc<Self>, part: &MatchPart) -> Probe {
        let set = |form| self.set(&part.kind, form, &part.list_column);
        let mut probe = Probe {
            index: self.clone(),
            kind: part.kind.clone(),
            hashed: part.hashed,
            plain: set(form_of(part.hashed)),
            number: set(Form::Number),
            hashes: match part.hashed {
                Some(_) => Vec::new(),
                None => HashFunction::ALL.iter().filter_map(|f| Some((*f, set(Form::Hash(*f))?))).collect(),
            },
            tags: self.tags.as_ref().and_then(|tags| ProbeTags::new(tags, &self.secret, part)),
            screen: None,
        };
        // Digests and tags say nothing about the text that they are of.
        let is_screened = part.kind == Kind::Email && part.hashed.is_none();
        probe.screen = (is_screened && probe.hashes.is_empty() && probe.tags.is_none()).then(|| self.screen.clone());
        probe
    }
}

/// Told apart from "has no fingerprint" in what [`Probe::fetch`] of a screened probe gives.
const FINGERPRINTED: u128 = 1 << 32;

impl Probe {
    /// Whether [`Probe::fetch`] has anything to do.
    pub fn looks_far(&self) -> bool {
        let is_far = self.screen.as_ref().is_some_and(|screen| screen.is_far());
        is_far || (self.tags.is_some() && self.hashed.is_none())
    }

    /// Tells of a value that will be asked about soon: what is looked up far away is on its way until then. Costs a wrong guess, no
    /// more, when the value is not its own canonical form. What it is looked up by, for [`Probe::check_bytes`].
    #[inline]
    pub fn fetch(&self, bytes: &[u8]) -> u128 {
        if let Some(screen) = &self.screen {
            return screen::fingerprint(bytes).map_or(0, |fingerprint| {
                screen.fetch(fingerprint);
                FINGERPRINTED | u128::from(fingerprint)
            });
        }
        let Some(tags) = &self.tags else { return 0 };
        let key = tags.unlisted_key(&self.index.secret, bytes, false);
        self.index.unlisted.fetch(key);
        key
    }

    /// As [`Probe::check`] of a column's bytes, which are a text when they are UTF-8 and the column `is_text`; `key` is what
    /// [`Probe::fetch`] of this probe gave for these bytes.
    #[inline]
    pub fn check_bytes(&self, bytes: &[u8], is_text: bool, key: Option<u128>, scratch: &mut Scratch) -> Check {
        if let Some(screen) = &self.screen
            && is_text
        {
            let fingerprint = match key {
                Some(key) => (key & FINGERPRINTED != 0).then_some(key as u32),
                None => screen::fingerprint(bytes),
            };
            if fingerprint.is_some_and(|fingerprint| !screen.holds(fingerprint)) {
                return Check::NoMatch;
            }
        }
        if is_text && self.hashed.is_none() && self.kind.is_canonical_ascii(bytes) {
            return self.check_canonical(bytes, key, scratch);
        }
        let value = match is_text {
            true => std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Text),
            false => Value::Bytes(bytes),
        };
        self.check(value, scratch)
    }

    pub fn check(&self, value: Value<'_>, scratch: &mut Scratch) -> Check {
        if let Value::Text(text) = value
            && self.hashed.is_none()
            && self.kind.is_canonical(text)
        {
            return self.check_canonical(text.as_bytes(), None, scratch);
        }
        let read = match self.hashed {
            Some(hashed) => hashed.read(value, &mut scratch.canonical),
            None => self.kind.canonicalise(value, &mut scratch.canonical),
        };
        let listed = match read {
            Canonical::Empty => false,
            Canonical::NotComparable => return Check::NotComparable,
            Canonical::Number => self.holds(self.number, &scratch.canonical),
            Canonical::Text => self.holds(self.plain, &scratch.canonical),
        };
        let in_ledger = |tags: &ProbeTags| match (self.hashed, read) {
            (_, Canonical::Empty | Canonical::NotComparable) => false,
            (Some(_), Canonical::Text | Canonical::Number) => tags.hold_digest(&scratch.canonical),
            (None, Canonical::Text | Canonical::Number) => {
                tags.hold_canonical(&self.index, &scratch.canonical, None, read == Canonical::Number)
            }
        };
        if listed
            || self.tags.as_deref().is_some_and(in_ledger)
            || (!scratch.canonical.is_empty() && read != Canonical::Empty && self.hash_listed(scratch))
        {
            Check::Match
        } else {
            Check::NoMatch
        }
    }

    /// For a value that is its own canonical form: nothing is copied.
    #[inline]
    pub(crate) fn check_canonical(&self, canonical: &[u8], key: Option<u128>, scratch: &mut Scratch) -> Check {
        let listed = self.holds(self.plain, canonical)
            || self.tags.as_ref().is_some_and(|tags| tags.hold_canonical(&self.index, canonical, key, false))
            || self.hashes.iter().any(|(function, set)| {
                function.digest(canonical, &mut scratch.digest);
                self.index.holds(*set, &scratch.digest)
            });
        if listed { Check::Match } else { Check::NoMatch }
    }

    fn holds(&self, set: Option<u16>, bytes: &[u8]) -> bool {
        set.is_some_and(|set| self.index.holds(set, bytes))
    }

    fn hash_listed(&self, scratch: &mut Scratch) -> bool {
        self.hashes.iter().any(|(function, set)| {
            function.digest(&scratch.canonical, &mut scratch.digest);
            self.index.holds(*set, &scratch.digest)
        })
    }
}

impl ProbeTags {
    /// `None`: the ledger can say nothing about the part.
    fn new(tags: &Tags, secret: &Secret, part: &MatchPart) -> Option<Box<ProbeTags>> {
        let is_comparable = part.hashed.is_none_or(|hashed| hashed.function() == HashFunction::Sha256);
        if part.list_column.is_some() || !is_comparable {
            return None;
        }
        let numbers = tags.numbers.filter(|_| part.kind == Kind::Text && part.hashed.is_none());
        Some(Box::new(ProbeTags {
            table: tags.table.clone(),
            salt: xxh3_128_with_secret(part.kind.name().as_bytes(), &secret.xxh3),
            own: tags.key.tags_of(part.kind.name()),
            numbers: numbers.map(|label| tags.key.tags_of(label)),
        }))
    }

    /// By what a value is known that is not there.
    #[inline]
    fn unlisted_key(&self, secret: &Secret, canonical: &[u8], is_number: bool) -> u128 {
        // A number is asked for under another label as well.
        let salt = if is_number { !self.salt } else { self.salt };
        xxh3_128_with_secret(canonical, &secret.xxh3) ^ salt
    }

    #[inline]
    fn hold_canonical(&self, index: &MatchIndex, canonical: &[u8], key: Option<u128>, is_number: bool) -> bool {
        let key = key.unwrap_or_else(|| self.unlisted_key(&index.secret, canonical, is_number));
        if index.unlisted.holds(key) {
            return false;
        }
        let is_held = self.hold_anew(canonical, is_number);
        if !is_held {
            index.unlisted.insert(key);
        }
        is_held
    }

    fn hold_anew(&self, canonical: &[u8], is_number: bool) -> bool {
        let (tag, digest) = self.own.tag_of_canonical(canonical);
        let numbers = self.numbers.as_ref().filter(|_| is_number);
        self.table.contains(&tag) || numbers.is_some_and(|numbers| self.table.contains(&numbers.tag(&digest)))
    }

    fn hold_digest(&self, digest: &[u8]) -> bool {
        digest.try_into().is_ok_and(|digest| self.table.contains(&self.own.tag(digest)))
    }
}
