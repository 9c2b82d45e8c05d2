//! Identifiers in the names of objects: Hive partition values of match columns, and words of a distinctive kind in any part of the
//! name below the dataset's root.
//!
//! Names are looked at as the store spells them and percent-decoded, as Hive and URLs mean them. Reads no object.

use std::ops::Range;

use polars::prelude::*;
use sha2::{Digest, Sha256};

use crate::identifier::{ColumnPath, Hashed, Kind};
use crate::residue::Named;
use crate::store::Location;
use crate::verify_list::Asked;
use crate::verify_normalise::{canonicals, digests};
use crate::verify_tokens::{Around, Look, percent_decoded, stands_alone};
use crate::verify_words::Hit;

/// The part of the name below the root, and where in the whole name it starts.
fn below(root: &Location, location: &Location) -> (usize, String) {
    let (root, name) = (root.to_string(), location.to_string());
    let start = if name.starts_with(&root) { root.len() } else { 0 };
    (start, name[start..].to_owned())
}

/// The segments of a text between slashes.
fn segments(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    text.split('/').map(move |segment| {
        let range = start..start + segment.len();
        start = range.end + 1;
        range
    })
}

/// `key=value` of every folder: the key and the range of the value.
fn partitions(text: &str) -> Vec<(String, Range<usize>)> {
    let mut folders: Vec<Range<usize>> = segments(text).collect();
    folders.pop();
    let pair = |range: Range<usize>| {
        let equals = text[range.clone()].find('=').filter(|equals| *equals > 0)?;
        Some((decoded(&text[range.start..range.start + equals]), range.start + equals + 1..range.end))
    };
    folders.into_iter().filter_map(pair).collect()
}

fn decoded(text: &str) -> String {
    match percent_decoded(text.as_bytes()) {
        Some((bytes, _)) => String::from_utf8_lossy(&bytes).into_owned(),
        None => text.to_owned(),
    }
}

/// The columns that an object's name has values of.
pub fn partition_names(root: &Location, location: &Location) -> Vec<String> {
    partitions(&below(root, location).1).into_iter().map(|(name, _)| name).collect()
}

/// Whether `column` is one of the partition columns `names`.
pub fn names(names: &[String], column: &ColumnPath) -> bool {
    names.iter().any(|name| is_named(name, column))
}

/// Whether `column` is the partition column `name`.
pub fn is_named(name: &str, column: &ColumnPath) -> bool {
    match column.0.as_slice() {
        [own] => own.to_lowercase() == name.to_lowercase(),
        _ => false,
    }
}

/// Whoever knows what is listed: the verifier by its own reading of the lists, or the gate, whose names are judged by the same steps.
pub trait KnowsListed {
    /// By what a partition's value is listed, for every column of that name that a rule of its own matches.
    fn in_partition(&self, name: &str, value: &Series) -> PolarsResult<Vec<(Kind, Option<Hashed>)>>;

    /// The listed identifiers of distinctive kinds that stand in the texts.
    fn in_texts(&self, texts: &[&[u8]]) -> PolarsResult<Vec<Hit>>;
}

impl KnowsListed for Asked {
    fn in_partition(&self, name: &str, value: &Series) -> PolarsResult<Vec<(Kind, Option<Hashed>)>> {
        let mut listed = Vec::new();
        for (number, column) in self.rules.columns.iter().enumerate() {
            if is_named(name, column) && !self.suppressed.listed(&self.rules, number, value)?.is_empty() {
                let kind = self.rules.kinds(number).next();
                listed.push(kind.map_or((Kind::Text, None), |(kind, hashed)| (kind.clone(), hashed)));
            }
        }
        Ok(listed)
    }

    fn in_texts(&self, texts: &[&[u8]]) -> PolarsResult<Vec<Hit>> {
        self.suppressed.tokens(texts, Around::Text)
    }
}

/// The listed identifiers in an object's name; those that are not certain stand inside a longer word that may be another
/// person's. Ranges are of the parts to hide: a partition's value, or a whole segment.
pub fn named(root: &Location, location: &Location, asked: &dyn KnowsListed) -> PolarsResult<Vec<Named>> {
    let (start, text) = below(root, location);
    let mut found = Vec::new();
    let mut add = |range: Range<usize>, kind: &'static str, digest: [u8; 32], is_certain: bool| {
        found.push(Named { range: start + range.start..start + range.end, kind, digest, is_certain });
    };
    let partitions = partitions(&text);
    for (name, range) in &partitions {
        let value = Series::new("v".into(), [decoded(&text[range.clone()])]);
        for (kind, hashed) in asked.in_partition(name, &value)? {
            add(range.clone(), kind.name(), digest(&kind, hashed, &value)?, true);
        }
    }
    let parts: Vec<Range<usize>> = segments(&text).collect();
    let texts: Vec<&[u8]> = parts.iter().map(|range| text[range.clone()].as_bytes()).collect();
    for hit in asked.in_texts(&texts)? {
        let value = Series::new("v".into(), [hit.token.as_str()]);
        let segment = parts[hit.text].clone();
        let folder = partitions.iter().find(|(_, value)| value.end == segment.end && value.start >= segment.start);
        let hidden = folder.filter(|(_, value)| value.start <= segment.start + hit.range.start);
        let hidden = hidden.map_or(segment, |(_, value)| value.clone());
        // Ten digits in a name are more often a moment or a number of the writer's than a phone.
        let stem = without_endings(texts[hit.text]);
        let is_certain = hit.look != Look::Phone
            && (hit.range.end >= stem.len() || stands_alone(stem, &hit.range, hit.look))
            && stands_alone(&texts[hit.text][..hit.range.end], &hit.range, hit.look);
        add(hidden, hit.kind.name(), digest(&hit.kind, hit.hashed, &value)?, is_certain);
    }
    found.sort_by_key(|named| (named.range.start, named.range.end, !named.is_certain));
    found.dedup_by(|a, b| a.range == b.range);
    Ok(found)
}

/// A file name without the endings that tell format and compression.
fn without_endings(segment: &[u8]) -> &[u8] {
    const ENDINGS: [&str; 14] = [
        "gz", "gzip", "zst", "zstd", "snappy", "parquet", "parq", "pq", "csv", "tsv", "tab", "ndjson", "jsonl", "json",
    ];
    let dot = segment.iter().rposition(|byte| *byte == b'.');
    let known = |dot: &usize| {
        let ending = String::from_utf8_lossy(&segment[dot + 1..]).to_ascii_lowercase();
        ENDINGS.contains(&ending.as_str())
    };
    dot.filter(known).map_or(segment, |dot| without_endings(&segment[..dot]))
}

/// What the tag is made of: SHA-256 of the canonical form, or the digest itself where that is what the name holds.
fn digest(kind: &Kind, hashed: Option<Hashed>, value: &Series) -> PolarsResult<[u8; 32]> {
    let mut out = None;
    match hashed {
        None => {
            canonicals(kind, value, &mut |_, _, canonical| out = Some(Sha256::digest(canonical).into()))?;
        }
        Some(hashed) => {
            digests(hashed, value, &mut |_, digest| {
                out = Some(<[u8; 32]>::try_from(digest).unwrap_or_else(|_| Sha256::digest(digest).into()));
            })?;
        }
    }
    Ok(out.unwrap_or_default())
}
