//! The suppression lists as the verifier reads them anew: sets of keyed fingerprints, and the question whether a row is in them.
//!
//! Lists and data go through the same steps: values become canonical forms or digests, these become fingerprints. Which rule asks
//! for which list column is decided here; [`crate::verify_entries`] fills the sets, [`crate::verify_rules`] has the rules of a dataset,
//! [`crate::verify_words`] asks for words of running text. Invariant: no text of a list is kept, only fingerprints under a key of this run.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::mem::discriminant;
use std::sync::Arc;

use polars::prelude::*;

use crate::identifier::{HashFunction, Hashed, Kind};
use crate::job::{Job, ListColumn, MatchPart, MatchRule};
use crate::verify::{Sighting, Sightings};
use crate::verify_batch::{Batch, Element, Leaf, Tally};
use crate::verify_bytes::Listed;
use crate::verify_entries::FilterHashes;
use crate::verify_ledger::{Tagged, Tagger};
use crate::verify_normalise::{Fingerprints, Form, canonicals, digest_of, digests, function_of, plain_texts};
use crate::verify_rules::{Held, Joined, Probe, Rules, each_row};
use crate::verify_tokens::{Around, stands_alone};
use crate::verify_words::{Hit, look_of, looks_of};

/// All lists of a job, ready to be asked.
pub struct Suppressed {
    pub(crate) fingerprints: Arc<Fingerprints>,
    pub(crate) selections: Vec<Selection>,
    pub(crate) composites: Vec<Composite>,
    /// Functions that some data column is hashed with: plain list entries are kept under them too.
    pub(crate) stored_functions: Vec<HashFunction>,
    /// Their spellings.
    pub(crate) stored_spellings: Vec<Hashed>,
    /// The identifiers of the request ledger, where it is a list of the job.
    pub tagged: Option<Tagged>,
}

/// What one match part may be compared with.
pub(crate) struct Selection {
    pub(crate) kind: Kind,
    pub(crate) list_column: Option<String>,
    /// Some list column feeds it, or the ledger.
    pub(crate) is_listed: bool,
    /// The ledger feeds it: its tags are asked as well.
    pub(crate) is_tagged: bool,
    pub(crate) tagger: Option<Tagger>,
    /// Spellings of the hashes that lists hold, or that data columns hold of what is listed.
    pub(crate) listed_hashes: Vec<Hashed>,
    /// Functions that the selected list columns are hashed with: plain data is compared under them too.
    pub(crate) listed_functions: Vec<HashFunction>,
    pub(crate) keys: HashSet<u128, Spread>,
    /// What is listed as bloom filters hash it: canonical texts, and digests in every spelling that a data column has.
    pub(crate) filter_hashes: FilterHashes,
}

/// The list rows that a rule with several parts may match.
pub(crate) struct Composite {
    pub(crate) selections: Vec<usize>,
    pub(crate) rows: HashSet<u128, Spread>,
}

/// How many digests are kept for values that come again.
const KNOWN_MAX: usize = 1 << 16;

/// Fingerprints are spread evenly already.
#[derive(Clone, Copy, Default)]
pub struct Spread;

impl BuildHasher for Spread {
    type Hasher = Spreader;

    fn build_hasher(&self) -> Spreader {
        Spreader(0)
    }
}

pub struct Spreader(u64);

impl Hasher for Spreader {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

impl Suppressed {
    /// Empty sets for everything the job's rules ask for; what the ledger holds is there at once.
    pub fn new(job: &Job, seed: [u8; 16], tagged: Option<Tagged>) -> Suppressed {
        let of_ledger = |kind: &Kind| tagged.as_ref().is_some_and(|tagged| tagged.kinds.contains(kind.name()));
        let mut empty = Suppressed {
            fingerprints: Arc::new(Fingerprints::new(seed)),
            selections: Vec::new(),
            composites: Vec::new(),
            stored_functions: Vec::new(),
            stored_spellings: Vec::new(),
            tagged: None,
        };
        let parts = || job.datasets.iter().flat_map(|dataset| &dataset.rules).flat_map(MatchRule::compared);
        let listed = || job.lists.iter().flat_map(|list| &list.columns);
        // What running text is searched for is all that is listed of a distinctive kind, whatever the rules ask for.
        let distinctive = listed().filter(|column| column.hashed.is_some() || !looks_of(&column.kind).is_empty());
        let wanted = parts().map(|part| (part.kind.clone(), part.list_column.clone()));
        let of_lists = distinctive.map(|column| (column.kind.clone(), None));
        let kinds = Kind::NAMES.iter().filter_map(|name| Kind::parse(name, None));
        let tagged_kinds = kinds.filter(|kind| of_ledger(kind) && !looks_of(kind).is_empty()).map(|kind| (kind, None));
        for (kind, list_column) in wanted.chain(of_lists).chain(tagged_kinds) {
            if empty.selection_of(&kind, list_column.as_ref()).is_none() {
                let mut selection = Selection::new(kind, list_column);
                selection.is_tagged = selection.list_column.is_none() && of_ledger(&selection.kind);
                selection.is_listed = selection.is_tagged || listed().any(|column| selection.takes(column));
                let tags = tagged.as_ref().filter(|_| selection.is_tagged);
                selection.tagger = tags.map(|tagged| tagged.tagger(selection.kind.name()));
                let taken = listed().filter(|column| selection.takes(column));
                let hashes: Vec<Hashed> = taken.filter_map(|column| column.hashed).collect();
                let functions: BTreeSet<_> = hashes.iter().map(|hashed| function_of(*hashed)).collect();
                selection.listed_functions = functions.into_iter().collect();
                let stored = parts().filter(|part| discriminant(&part.kind) == discriminant(&selection.kind));
                selection.listed_hashes = hashes.into_iter().chain(stored.filter_map(|part| part.hashed)).collect();
                selection.listed_hashes.sort_unstable_by_key(|hashed| look_of(*hashed));
                selection.listed_hashes.dedup();
                empty.selections.push(selection);
            }
        }
        let functions: BTreeSet<_> = parts().filter_map(|part| part.hashed).map(function_of).collect();
        empty.stored_functions = functions.into_iter().collect();
        empty.stored_spellings = parts().filter_map(|part| part.hashed).collect();
        empty.stored_spellings.sort_unstable_by_key(|hashed| look_of(*hashed));
        empty.stored_spellings.dedup();
        for rule in job.datasets.iter().flat_map(|dataset| &dataset.rules) {
            if let MatchRule::All(parts) = rule {
                let selections: Vec<usize> = parts.iter().filter_map(|part| empty.selection(part)).collect();
                if !empty.composites.iter().any(|known| known.selections == selections) {
                    empty.composites.push(Composite { selections, rows: HashSet::with_hasher(Spread) });
                }
            }
        }
        empty.tagged = tagged;
        empty
    }

    pub(crate) fn selection(&self, part: &MatchPart) -> Option<usize> {
        self.selection_of(&part.kind, part.list_column.as_ref())
    }

    fn selection_of(&self, kind: &Kind, list_column: Option<&String>) -> Option<usize> {
        self.selections.iter().position(|selection| {
            discriminant(&selection.kind) == discriminant(kind) && selection.list_column.as_ref() == list_column
        })
    }

    /// How many rows of the batch match a rule, and what could not be compared.
    pub fn matches(&self, rules: &Rules, batch: &Batch) -> PolarsResult<Tally> {
        let mut matched = vec![false; batch.rows];
        let mut not_comparable = vec![0; rules.columns.len()];
        let mut hits: Vec<Vec<Held>> = Vec::with_capacity(rules.probes.len());
        for probe in &rules.probes {
            let mut found = Vec::new();
            for leaf in &batch.columns[probe.column] {
                let count = self.hits(probe, leaf, &mut found)?;
                not_comparable[probe.column] += if probe.counted_elsewhere { 0 } else { count };
            }
            if probe.single {
                found.iter().for_each(|held: &Held| matched[held.row as usize] = true);
            }
            hits.push(found);
        }
        for rule in &rules.composites {
            let mut parts: Vec<_> = rule.probes.iter().map(|probe| hits[*probe].clone()).collect();
            let rows = &self.composites[rule.composite].rows;
            let together = |a: (usize, &Element), b: (usize, &Element)| rule.together(a, b);
            each_row(&mut parts, &together, &mut |row, keys| {
                matched[row as usize] |= rows.contains(&self.fingerprints.row(keys));
            });
        }
        for rule in &rules.joined {
            self.joined(rules, rule, batch, &mut matched, &mut not_comparable)?;
        }
        let rows_matched = matched.iter().filter(|matched| **matched).count() as u64;
        Ok(Tally { rows: batch.rows as u64, rows_matched, not_comparable, ..Tally::default() })
    }

    /// Marks the rows whose columns make up a listed identifier, and counts the values that cannot be part of one.
    fn joined(
        &self,
        rules: &Rules,
        rule: &Joined,
        batch: &Batch,
        matched: &mut [bool],
        not_comparable: &mut [u64],
    ) -> PolarsResult<()> {
        let (rows, values, unread) = rule.made_up.values(batch)?;
        for (number, (column, kind)) in rule.made_up.columns.iter().enumerate() {
            let earlier = rule.made_up.columns[..number].contains(&(*column, kind.clone()));
            let counted = earlier || rules.counts(*column, kind, rule);
            not_comparable[*column] += if counted { 0 } else { unread[number] };
        }
        let found = self.hits_made_up(rule, &rows, values)?;
        found.iter().for_each(|held| matched[held.row as usize] = true);
        Ok(())
    }

    /// Those of the identifiers made up of several columns that some list holds, by row.
    fn hits_made_up(&self, rule: &Joined, rows: &[u32], values: Series) -> PolarsResult<Vec<Held>> {
        let mut found = Vec::new();
        self.hits(&Probe::of(rule.kind.clone(), None, rule.selection), &Leaf::flat(values), &mut found)?;
        found.iter_mut().for_each(|held: &mut Held| held.row = rows[held.row as usize]);
        Ok(found)
    }

    /// Which rows of the batch hold an identifier of the ledger, in one column or made up of several; every row those that are `named`
    /// elsewhere. The batch's last column may be one that no rule names: it tells consumers apart.
    pub fn sightings(&self, rules: &Rules, batch: &Batch, named: &BTreeSet<u128>) -> PolarsResult<Sightings> {
        let mut sightings = Sightings::new();
        let Some(tagged) = &self.tagged else { return Ok(sightings) };
        let mut found = Vec::new();
        for probe in rules.probes.iter().filter(|probe| probe.single) {
            for leaf in &batch.columns[probe.column] {
                self.hits(probe, leaf, &mut found)?;
            }
        }
        for rule in &rules.joined {
            let (rows, values, _) = rule.made_up.values(batch)?;
            found.extend(self.hits_made_up(rule, &rows, values)?);
        }
        found.retain(|held: &Held| tagged.holds(held.key));
        let mut found: Vec<(u32, u128)> = found.into_iter().map(|held| (held.row, held.key)).collect();
        for tag in named {
            found.extend((0..batch.rows as u32).map(|row| (row, *tag)));
        }
        found.sort_unstable();
        found.dedup();
        let consumers = match batch.columns.get(rules.columns.len()) {
            Some(leaves) if !found.is_empty() => self.consumers(leaves)?,
            Some(_) | None => HashMap::new(),
        };
        for held in found.chunk_by(|(row, _), (other, _)| row == other) {
            let tags = held.iter().map(|(_, tag)| *tag).collect();
            let sighting: &mut Sighting = sightings.entry(tags).or_default();
            sighting.rows += 1;
            sighting.consumers.extend(consumers.get(&held[0].0));
        }
        Ok(sightings)
    }

    /// What tells the consumers of rows apart, by row: the same value is the same consumer however a file writes it. A blank one is
    /// nobody.
    fn consumers(&self, leaves: &[Leaf]) -> PolarsResult<HashMap<u32, u64>> {
        let mut consumers = HashMap::new();
        for leaf in leaves {
            let texts = plain_texts(&leaf.values)?;
            for (index, text) in texts.iter().enumerate() {
                let key = text.map(|text| self.fingerprints.canonical(Form::Text, text.as_bytes()) as u64);
                consumers.extend(key.map(|key| (leaf.row(index), key)));
            }
        }
        Ok(consumers)
    }

    /// The tag of a digest, if the ledger holds it.
    pub fn tag_of(&self, kind: &str, sha256: &[u8; 32]) -> Option<u128> {
        let tagged = self.tagged.as_ref()?;
        tagged.tagger(kind).of_digest(sha256).filter(|tag| tagged.holds(*tag))
    }

    /// Which of the values a rule of its own on `column` matches, by index. What is part of a composite alone cannot be told
    /// from one value.
    pub fn listed(&self, rules: &Rules, column: usize, values: &Series) -> PolarsResult<Vec<usize>> {
        let leaf = Leaf::flat(values.clone());
        let mut found = Vec::new();
        for probe in rules.probes.iter().filter(|probe| probe.single && probe.column == column) {
            self.hits(probe, &leaf, &mut found)?;
        }
        let mut indexes: Vec<usize> = found.into_iter().map(|held: Held| held.row as usize).collect();
        indexes.sort_unstable();
        indexes.dedup();
        Ok(indexes)
    }

    /// The values of a leaf that some list holds, by row.
    pub(crate) fn hits(&self, probe: &Probe, leaf: &Leaf, found: &mut Vec<Held>) -> PolarsResult<u64> {
        let selection = &self.selections[probe.selection];
        let ledger = self.tagged.as_ref().zip(selection.tagger.as_ref());
        let mut keep = |index: usize, key: u128| {
            found.push(Held { row: leaf.row(index), element: leaf.element(index), key });
        };
        if let Some(hashed) = probe.hashed {
            let function = function_of(hashed);
            let ledger = ledger.filter(|_| function == HashFunction::Sha256);
            return digests(hashed, &leaf.values, &mut |index, digest| {
                let key = self.fingerprints.digest(function, digest);
                if selection.keys.contains(&key) {
                    keep(index, key);
                }
                let held =
                    |(tagged, tagger): (&Tagged, &Tagger)| tagger.of_digest(digest).filter(|it| tagged.holds(*it));
                if let Some(tag) = ledger.and_then(held) {
                    keep(index, tag);
                }
            });
        }
        // A value that comes again is not hashed again: columns of identifiers repeat a few of them over and over.
        let mut known: HashMap<u128, Vec<u128>, Spread> = HashMap::with_hasher(Spread);
        let mut asking = ledger.map(|(tagged, tagger)| tagged.asking(tagger));
        let not_comparable = canonicals(&probe.kind, &leaf.values, &mut |index, form, canonical| {
            let key = self.fingerprints.canonical(form, canonical);
            if selection.keys.contains(&key) {
                keep(index, key);
            }
            if !selection.listed_functions.is_empty() {
                if known.len() >= KNOWN_MAX {
                    known.clear();
                }
                let under =
                    |function: &HashFunction| self.fingerprints.digest(*function, &digest_of(*function, canonical));
                let keys = known.entry(key);
                let keys = keys.or_insert_with(|| selection.listed_functions.iter().map(under).collect());
                keys.iter().filter(|key| selection.keys.contains(*key)).for_each(|key| keep(index, *key));
            }
            if let Some(asking) = &mut asking {
                asking.ask(index, key, canonical, form == Form::Number, &mut keep);
            }
        })?;
        if let Some(asking) = &mut asking {
            asking.answer(&mut keep);
        }
        Ok(not_comparable)
    }
}

impl Selection {
    fn new(kind: Kind, list_column: Option<String>) -> Self {
        let keys = HashSet::with_hasher(Spread);
        Selection {
            kind,
            list_column,
            is_listed: false,
            is_tagged: false,
            tagger: None,
            listed_hashes: Vec::new(),
            listed_functions: Vec::new(),
            keys,
            filter_hashes: Vec::new(),
        }
    }

    pub(crate) fn takes(&self, column: &ListColumn) -> bool {
        discriminant(&self.kind) == discriminant(&column.kind)
            && self.list_column.as_ref().is_none_or(|name| *name == column.column)
    }
}

/// The lists under the rules of one dataset: what the byte-level check asks.
pub struct Asked {
    pub suppressed: Arc<Suppressed>,
    pub rules: Arc<Rules>,
}

impl Asked {
    /// Whether a list's column feeds a plain rule of its own on the data's column.
    pub fn compares(&self, column: usize, listed: &ListColumn) -> bool {
        let single = self.rules.probes.iter().filter(|probe| probe.single && probe.hashed.is_none());
        let mut of_column = single.filter(|probe| probe.column == column);
        listed.hashed.is_none() && of_column.any(|probe| self.suppressed.selections[probe.selection].takes(listed))
    }
}

impl Listed for Asked {
    fn is_spelled(&self, column: usize) -> bool {
        let mut probes = self.rules.probes.iter().filter(|probe| probe.single && probe.column == column);
        !probes.any(|probe| self.suppressed.selections[probe.selection].is_tagged)
    }

    fn is_plain(&self, column: usize) -> bool {
        self.rules.kinds(column).any(|(_, hashed)| hashed.is_none())
    }

    fn filter_hashes(&self, column: usize, each: &mut dyn FnMut(u64)) {
        for probe in self.rules.probes.iter().filter(|probe| probe.single && probe.column == column) {
            let spelled = self.suppressed.selections[probe.selection].filter_hashes.iter();
            let hashes = spelled.filter(|(hashed, _)| *hashed == probe.hashed).flat_map(|(_, hashes)| hashes);
            hashes.for_each(|hash| each(*hash));
        }
    }

    fn values(&self, column: usize, values: &Series) -> PolarsResult<Vec<usize>> {
        self.suppressed.listed(&self.rules, column, values)
    }

    fn texts(&self, texts: &[&[u8]], around: Around) -> PolarsResult<Vec<usize>> {
        let hits = self.suppressed.tokens(texts, around)?.into_iter();
        // A text is dropped whole, so a word inside another person's is no reason; in binary the neighbours say nothing.
        let counts = |hit: &Hit| around == Around::Binary || stands_alone(texts[hit.text], &hit.range, hit.look);
        let mut indexes: Vec<usize> = hits.filter(counts).map(|hit| hit.text).collect();
        indexes.sort_unstable();
        indexes.dedup();
        Ok(indexes)
    }
}
