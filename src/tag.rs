//! Keyed tags for redacted cells: the only form in which an identifier leaves memory (invariant 5).

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::format::Tagger;
use crate::identifier::{Canonical, ColumnPath, HashFunction, Kind, Value};
use crate::job::{DatasetSpec, MatchRule};
use crate::residue::Named;
use crate::signature::TagKey;

/// Tags the cells of one dataset: HMAC-SHA-256(tag key, kind, SHA-256 of the canonical form), so that a plain column and a
/// column of SHA-256 hashes lead to the same tag.
pub struct DatasetTagger {
    key: Arc<TagKey>,
    rules: Vec<MatchRule>,
    strays: Option<Strays>,
}

/// Replaces the listed identifiers in a text; `None`: it holds none.
pub type Strays = Arc<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync>;

impl DatasetTagger {
    pub fn new(key: Arc<TagKey>, dataset: &DatasetSpec, strays: Option<Strays>) -> Self {
        DatasetTagger { key, rules: dataset.rules.clone(), strays }
    }
}

impl Tagger for DatasetTagger {
    fn tag(&self, column: &ColumnPath, value: &[u8]) -> String {
        let part = self.rules.iter().flat_map(MatchRule::parts).find(|part| part.column == *column);
        let mut bytes = Vec::new();
        let (kind, digest): (&str, [u8; 32]) = match part {
            Some(part) => match part.hashed {
                Some(hashed) if hashed.function() == HashFunction::Sha256 => {
                    match hashed.read(Value::Bytes(value), &mut bytes) {
                        Canonical::Text => (part.kind.name(), bytes.as_slice().try_into().expect("32 bytes were read")),
                        Canonical::Number | Canonical::Empty | Canonical::NotComparable => plain(value),
                    }
                }
                Some(_) => plain(value),
                None => match part.kind.canonicalise(Value::Bytes(value), &mut bytes) {
                    Canonical::Text | Canonical::Number => (part.kind.name(), Sha256::digest(&bytes).into()),
                    Canonical::Empty | Canonical::NotComparable => plain(value),
                },
            },
            None => plain(value),
        };
        self.key.tag(kind, &digest)
    }

    fn without_strays(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.strays.as_ref().and_then(|strays| strays(text))
    }
}

/// A name as it may be shown: every part that holds a listed identifier is replaced by the identifier's tag, or, without a key, by a
/// word. A part that holds more than the identifier is told from its like by a keyed tag of the whole.
pub fn shown(key: Option<&TagKey>, name: &str, named: &[Named]) -> String {
    let (mut out, mut from) = (String::with_capacity(name.len()), 0);
    let mut named: Vec<&Named> = named.iter().collect();
    named.sort_by_key(|named| (named.range.start, std::cmp::Reverse(named.range.end)));
    for part in named {
        if part.range.start < from {
            continue;
        }
        out.push_str(&name[from..part.range.start]);
        let hidden = &name[part.range.clone()];
        match key {
            Some(key) => {
                let whole = key.tag("name", &Sha256::digest(hidden).into());
                out.push_str(&format!("{}-{}", key.tag(part.kind, &part.digest), &whole[..8]));
            }
            None => out.push_str("(a listed identifier)"),
        }
        from = part.range.end;
    }
    out.push_str(&name[from..]);
    out
}

/// Finds an object again whose name cannot be told.
pub fn of_name(key: &TagKey, name: &str) -> String {
    key.tag("location", &Sha256::digest(name).into())
}

/// A cell that no rule reads is tagged by its bytes.
fn plain(value: &[u8]) -> (&'static str, [u8; 32]) {
    (Kind::Text.name(), Sha256::digest(value).into())
}
