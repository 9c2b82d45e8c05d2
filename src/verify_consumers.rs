//! Who stands behind an identifier: how many consumers the rows of a dataset tell apart by its consumer key.
//!
//! DROP's rule is that what leads to several consumers deletes none of them (11 CCR 7613(a)(2)(B)), so this is known before anything is
//! planned. Counts within one dataset: keys of two datasets need not mean the same. Invariant: a value is
//! attributed to an identifier only through its canonical form, as the verifier reads it, and no consumer key is kept but as a
//! keyed fingerprint.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use polars::prelude::*;

use crate::identifier::{ColumnPath, HashFunction, Hashed, Kind};
use crate::job::{DatasetSpec, MatchRule};
use crate::verify_list::MadeUp;
use crate::verify_normalise::{Fingerprints, Form, canonicals, digest_of, digests, function_of};
use crate::verify_read::{Batch, Tally, Work};

/// The number of the identifier of this kind whose canonical form has this SHA-256; `None`: nobody asks for it.
pub type WhichAsked = Arc<dyn Fn(&str, &[u8; 32]) -> Option<u32> + Send + Sync>;

/// What was seen behind one identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// Rows without a consumer key alone.
    Nobody,
    One(u128),
    Several,
}

impl Behind {
    fn and(self, other: Behind) -> Behind {
        match (self, other) {
            (Behind::Nobody, seen) | (seen, Behind::Nobody) => seen,
            (Behind::One(a), Behind::One(b)) if a == b => Behind::One(a),
            (Behind::One(_) | Behind::Several, Behind::One(_) | Behind::Several) => Behind::Several,
        }
    }
}

/// How one dataset is asked. Its columns are read in the order of `columns`; the last is the consumer key.
pub struct Question {
    pub columns: Vec<ColumnPath>,
    readers: Vec<Reader>,
    asked: WhichAsked,
    fingerprints: Fingerprints,
    seen: Mutex<HashMap<u32, Behind>>,
}

/// Where identifiers stand in a batch.
enum Reader {
    Value { column: usize, kind: Kind, hashed: Option<Hashed> },
    MadeUp { made_up: MadeUp, kind: Kind },
}

impl Question {
    /// `None`: the dataset has no consumer key, or no rule that an identifier alone can match.
    pub fn of(dataset: &DatasetSpec, asked: WhichAsked, seed: [u8; 16]) -> Option<Question> {
        let consumer_key = dataset.consumer_key.as_ref()?;
        let mut columns: Vec<ColumnPath> = Vec::new();
        let mut number = |path: &ColumnPath| {
            columns.iter().position(|known| known == path).unwrap_or_else(|| {
                columns.push(path.clone());
                columns.len() - 1
            })
        };
        let mut readers = Vec::new();
        for rule in &dataset.rules {
            match rule {
                MatchRule::Single(part) if part.hashed.is_none_or(|it| function_of(it) == HashFunction::Sha256) => {
                    let (column, kind) = (number(&part.column), part.kind.clone());
                    readers.push(Reader::Value { column, kind, hashed: part.hashed });
                }
                // Another hash function leads to no tag, and a list row is no identifier.
                MatchRule::Single(_) | MatchRule::All(_) => {}
                MatchRule::Joined { parts, whole } => {
                    let made_up = MadeUp::of(parts, &mut number);
                    readers.push(Reader::MadeUp { made_up, kind: whole.kind.clone() });
                }
            }
        }
        columns.push(consumer_key.clone());
        let (fingerprints, seen) = (Fingerprints::new(seed), Mutex::default());
        (!readers.is_empty()).then_some(Question { columns, readers, asked, fingerprints, seen })
    }

    /// What is to be done with each batch of the dataset.
    pub fn work(self: &Arc<Self>) -> Work {
        let question = self.clone();
        Arc::new(move |batch| {
            question.look(batch)?;
            Ok(Tally { rows: batch.rows as u64, ..Tally::default() })
        })
    }

    /// The identifiers that rows were seen of, and whether several consumers stand behind each.
    pub fn answer(&self) -> BTreeMap<u32, bool> {
        let seen = self.seen.lock().unwrap_or_else(|broken| broken.into_inner());
        seen.iter().map(|(number, behind)| (*number, *behind == Behind::Several)).collect()
    }

    fn look(&self, batch: &Batch) -> PolarsResult<()> {
        let mut found: Vec<(u32, u32)> = Vec::new();
        for reader in &self.readers {
            self.read(reader, batch, &mut found)?;
        }
        if found.is_empty() {
            return Ok(());
        }
        let mut keys: Vec<Behind> = vec![Behind::Nobody; batch.rows];
        for leaf in batch.columns.last().into_iter().flatten() {
            // By its text, so that 7 in one file is "7" in another.
            canonicals(&Kind::Text, &leaf.values, &mut |index, _, key| {
                let row = leaf.row(index) as usize;
                keys[row] = keys[row].and(Behind::One(self.fingerprints.canonical(Form::Text, key)));
            })?;
        }
        let mut seen = self.seen.lock().unwrap_or_else(|broken| broken.into_inner());
        for (row, number) in found {
            let behind = seen.entry(number).or_insert(Behind::Nobody);
            *behind = behind.and(keys[row as usize]);
        }
        Ok(())
    }

    fn read(&self, reader: &Reader, batch: &Batch, found: &mut Vec<(u32, u32)>) -> PolarsResult<()> {
        // A value that comes again is not asked again: a tag costs more than a look.
        let mut known: HashMap<Vec<u8>, Option<u32>> = HashMap::new();
        let ask = |kind: &Kind, digest: &[u8]| {
            let digest: [u8; 32] = digest.try_into().ok()?;
            (self.asked)(kind.name(), &digest)
        };
        match reader {
            Reader::Value { column, kind, hashed: Some(hashed) } => {
                for leaf in &batch.columns[*column] {
                    digests(*hashed, &leaf.values, &mut |index, digest| {
                        let number = *known.entry(digest.to_vec()).or_insert_with(|| ask(kind, digest));
                        found.extend(number.map(|number| (leaf.row(index), number)));
                    })?;
                }
            }
            Reader::Value { column, kind, hashed: None } => {
                for leaf in &batch.columns[*column] {
                    canonicals(kind, &leaf.values, &mut |index, _, canonical| {
                        let digest = || digest_of(HashFunction::Sha256, canonical);
                        let number = *known.entry(canonical.to_vec()).or_insert_with(|| ask(kind, &digest()));
                        found.extend(number.map(|number| (leaf.row(index), number)));
                    })?;
                }
            }
            Reader::MadeUp { made_up, kind } => {
                let (rows, values, _) = made_up.values(batch)?;
                for (row, value) in rows.iter().zip(values.str()?.iter()) {
                    let value = value.unwrap_or_default().as_bytes();
                    let number = ask(kind, &digest_of(HashFunction::Sha256, value));
                    found.extend(number.map(|number| (*row, number)));
                }
            }
        }
        Ok(())
    }
}
