//! How entries of the suppression lists come into the verifier's sets: batch by batch, each under every key that the data may have it by.
//!
//! Invariant: an entry that the ledger has let go comes into no set, and what its row says together into none either.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use polars::prelude::*;
use polars_parquet::parquet::bloom_filter::hash_byte;

use crate::identifier::{HashFunction, Hashed, Kind};
use crate::job::{ListColumn, ListSpec};
use crate::verify_batch::{Batch, Element, Leaf};
use crate::verify_ledger::{Tagged, Tagger};
use crate::verify_list::{Spread, Suppressed};
use crate::verify_normalise::{Fingerprints, Form, canonicals, digest_of, digests, function_of, plain_numbers};
use crate::verify_rules::{Held, each_row};

/// Takes a batch of one list's columns, in the order of `list.columns`, into the sets.
pub fn add(suppressed: &Mutex<Suppressed>, list: &ListSpec, batch: &Batch) -> PolarsResult<()> {
    let locked = || suppressed.lock().unwrap_or_else(|broken| broken.into_inner());
    // Only the sets need the lock: normalising and hashing goes on side by side.
    let keying = {
        let sets = locked();
        Keying {
            fingerprints: sets.fingerprints.clone(),
            stored_functions: sets.stored_functions.clone(),
            stored_spellings: sets.stored_spellings.clone(),
        }
    };
    let let_go = LetGo::of(locked().tagged.as_ref(), list);
    let columns = list.columns.iter().zip(&batch.columns);
    // By column, the rows whose entry is nobody's to ask for; what the cells of such a row say together is not asked for either.
    let gone = columns.clone().enumerate().map(|(number, (column, leaves))| let_go.rows(number, column, leaves));
    let gone: Vec<HashSet<u32>> = gone.collect::<PolarsResult<_>>()?;
    let gone_anywhere: HashSet<u32> = gone.iter().flatten().copied().collect();
    let keyed = columns.zip(&gone).map(|((column, leaves), gone)| keying.column(column, leaves, gone));
    let keyed: Vec<(Vec<Keyed>, FilterHashes)> = keyed.collect::<PolarsResult<_>>()?;
    let mut sets = locked();
    let Suppressed { fingerprints, selections, composites, .. } = &mut *sets;
    for (column, (keyed, filter_hashes)) in list.columns.iter().zip(&keyed) {
        for selection in selections.iter_mut().filter(|selection| selection.takes(column)) {
            selection.keys.extend(keyed.iter().map(|keyed| keyed.key));
            for (hashed, hashes) in filter_hashes {
                add_filter_hashes(&mut selection.filter_hashes, *hashed, hashes);
            }
        }
    }
    for composite in composites {
        let mut parts = Vec::with_capacity(composite.selections.len());
        for selection in &composite.selections {
            let taken = list.columns.iter().zip(&keyed).filter(|(column, _)| selections[*selection].takes(column));
            let keyed = taken.flat_map(|(_, (keyed, _))| keyed).filter(|keyed| !gone_anywhere.contains(&keyed.row));
            parts.push(keyed.map(Keyed::as_held).collect::<Vec<_>>());
        }
        each_row(&mut parts, &|_, _| true, &mut |_, keys| {
            composite.rows.insert(fingerprints.row(keys));
        });
    }
    Ok(())
}

/// What the ledger has let go, and the makers of the tags of a list's columns where these can be made.
pub struct LetGo {
    tags: Arc<HashSet<u128, Spread>>,
    taggers: Vec<Option<Tagger>>,
}

impl LetGo {
    pub fn of(tagged: Option<&Tagged>, list: &ListSpec) -> LetGo {
        let tagged = tagged.filter(|tagged| !tagged.let_go.is_empty());
        let leads_to_tag =
            |column: &&ListColumn| column.hashed.is_none_or(|hashed| function_of(hashed) == HashFunction::Sha256);
        let tagger = |column: &ListColumn| Some(tagged?.tagger(Some(column).filter(leads_to_tag)?.kind.name()));
        let taggers = list.columns.iter().map(tagger).collect();
        LetGo { tags: tagged.map(|tagged| tagged.let_go.clone()).unwrap_or_default(), taggers }
    }

    /// The rows in which an entry of column `number` is let go.
    fn rows(&self, number: usize, column: &ListColumn, leaves: &[Leaf]) -> PolarsResult<HashSet<u32>> {
        let mut rows = HashSet::new();
        let Some(tagger) = &self.taggers[number] else { return Ok(rows) };
        for leaf in leaves {
            match column.hashed {
                Some(hashed) => digests(hashed, &leaf.values, &mut |index, digest| {
                    let is_gone = tagger.of_digest(digest).is_some_and(|tag| self.tags.contains(&tag));
                    rows.extend(is_gone.then(|| leaf.row(index)));
                })?,
                None => canonicals(&column.kind, &leaf.values, &mut |index, _, canonical| {
                    rows.extend(self.has(number, canonical).then(|| leaf.row(index)));
                })?,
            };
        }
        Ok(rows)
    }

    /// Whether a canonical form of column `number` is let go.
    pub fn has(&self, number: usize, canonical: &[u8]) -> bool {
        let tagger = self.taggers[number].as_ref();
        tagger.is_some_and(|tagger| tagger.of_canonical(canonical, false).any(|tag| self.tags.contains(&tag)))
    }
}

/// One way in which an entry of a list may be met in the data.
struct Keyed {
    row: u32,
    key: u128,
}

impl Keyed {
    fn as_held(&self) -> Held {
        Held { row: self.row, element: Element::new(), key: self.key }
    }
}

/// What turns list entries into keys.
struct Keying {
    fingerprints: Arc<Fingerprints>,
    stored_functions: Vec<HashFunction>,
    stored_spellings: Vec<Hashed>,
}

impl Keying {
    /// Adds a digest as the data columns spell digests of that function.
    fn spell(&self, function: HashFunction, digest: &[u8], out: &mut FilterHashes) {
        for hashed in self.stored_spellings.iter().filter(|hashed| function_of(**hashed) == function) {
            add_filter_hashes(out, Some(*hashed), &[hash_byte(spelling(*hashed, digest))]);
        }
    }

    /// Of the rows that are not `gone`.
    fn column(
        &self,
        column: &ListColumn,
        leaves: &[Leaf],
        gone: &HashSet<u32>,
    ) -> PolarsResult<(Vec<Keyed>, FilterHashes)> {
        let (mut keyed, mut filter_hashes) = (Vec::new(), FilterHashes::new());
        for leaf in leaves {
            match column.hashed {
                // What cannot be read here is told by whoever reads the lists for the scrub.
                Some(hashed) => digests(hashed, &leaf.values, &mut |index, digest| {
                    if gone.contains(&leaf.row(index)) {
                        return;
                    }
                    let key = self.fingerprints.digest(function_of(hashed), digest);
                    self.spell(function_of(hashed), digest, &mut filter_hashes);
                    keyed.push(Keyed { row: leaf.row(index), key });
                })?,
                None => self.plain(&column.kind, leaf, gone, &mut keyed, &mut filter_hashes)?,
            };
        }
        Ok((keyed, filter_hashes))
    }

    fn plain(
        &self,
        kind: &Kind,
        leaf: &Leaf,
        gone: &HashSet<u32>,
        keyed: &mut Vec<Keyed>,
        filter_hashes: &mut FilterHashes,
    ) -> PolarsResult<u64> {
        let mut texts: (Vec<u32>, Vec<String>) = Default::default();
        let not_comparable = canonicals(kind, &leaf.values, &mut |index, _, canonical| {
            let row = leaf.row(index);
            if gone.contains(&row) {
                return;
            }
            // A number in a list stands for its text too, as it would in a list of text.
            let key = self.fingerprints.canonical(Form::Text, canonical);
            keyed.push(Keyed { row, key });
            add_filter_hashes(filter_hashes, None, &[hash_byte(canonical)]);
            for function in &self.stored_functions {
                let digest = digest_of(*function, canonical);
                keyed.push(Keyed { row, key: self.fingerprints.digest(*function, &digest) });
                self.spell(*function, &digest, filter_hashes);
            }
            if let (Kind::Text, Ok(text)) = (kind, std::str::from_utf8(canonical)) {
                texts.0.push(row);
                texts.1.push(text.to_owned());
            }
        })?;
        let numbers = plain_numbers(StringChunked::from_iter_values("v".into(), texts.1.iter()))?;
        for (row, number) in texts.0.iter().zip(numbers.iter()) {
            let key = number.map(|number| self.fingerprints.canonical(Form::Number, number.as_bytes()));
            keyed.extend(key.map(|key| Keyed { row: *row, key }));
        }
        Ok(not_comparable)
    }
}

/// By spelling, `None` for canonical texts.
pub(crate) type FilterHashes = Vec<(Option<Hashed>, Vec<u64>)>;

fn add_filter_hashes(to: &mut FilterHashes, hashed: Option<Hashed>, hashes: &[u64]) {
    match to.iter_mut().find(|(known, _)| *known == hashed) {
        Some((_, known)) => known.extend_from_slice(hashes),
        None => to.push((hashed, hashes.to_vec())),
    }
}

fn spelling(hashed: Hashed, digest: &[u8]) -> String {
    match hashed {
        Hashed::Sha256Base64 => base64::engine::general_purpose::STANDARD.encode(digest),
        Hashed::Sha256Hex | Hashed::Md5Hex | Hashed::Sha1Hex => hex::encode(digest),
    }
}
