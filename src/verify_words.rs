//! Listed identifiers in running text: in cells of columns that no rule names, in bytes beside the rows, in names.
//!
//! Invariant: only kinds whose identifiers have a look of their own are looked for, and what stands inside a longer word is told as not
//! sure or left alone, for it may be another person's.

use std::collections::BTreeSet;
use std::ops::Range;

use polars::prelude::*;

use crate::identifier::{Hashed, Kind};
use crate::residue::{Place, Residues, STRAY};
use crate::verify_batch::{Batch, Leaf};
use crate::verify_list::{Selection, Suppressed};
use crate::verify_rules::Probe;
use crate::verify_tokens::{Around, Look, Token, stands_alone, tokens};

/// A token that is listed.
#[derive(Debug, Clone)]
pub struct Hit {
    /// Which of the texts it stands in, and where.
    pub text: usize,
    pub range: Range<usize>,
    pub kind: Kind,
    pub hashed: Option<Hashed>,
    pub token: String,
    pub look: Look,
}

impl Hit {
    fn of((text, token): &(usize, Token), kind: &Kind, hashed: Option<Hashed>) -> Hit {
        Hit {
            text: *text,
            range: token.range.clone(),
            kind: kind.clone(),
            hashed,
            token: token.text.clone(),
            look: token.look,
        }
    }
}

/// How identifiers of a kind look in running text; empty for kinds that are not distinctive enough to be looked for.
pub(crate) fn looks_of(kind: &Kind) -> &'static [Look] {
    match kind {
        Kind::Email => &[Look::Email],
        Kind::Phone | Kind::PhoneE164 { .. } => &[Look::Phone],
        Kind::Maid | Kind::Uuid => &[Look::Hex32],
        Kind::Vin => &[Look::Vin],
        Kind::Ip
        | Kind::Integer
        | Kind::Text
        | Kind::Zip
        | Kind::Name
        | Kind::Date { .. }
        | Kind::Ctvid
        | Kind::Ndz
        | Kind::NameVin => &[],
    }
}

/// How its digests look in running text.
pub(crate) fn look_of(hashed: Hashed) -> Look {
    match hashed {
        Hashed::Sha256Hex => Look::Hex64,
        Hashed::Sha256Base64 => Look::Base64,
        Hashed::Md5Hex => Look::Hex32,
        Hashed::Sha1Hex => Look::Hex40,
    }
}

/// How many cells' words are held at a time.
const CELLS_A_TIME: usize = 1 << 16;

impl Suppressed {
    /// Whether anything is listed that could be told in running text.
    pub fn knows_words(&self) -> bool {
        let known =
            |selection: &Selection| !looks_of(&selection.kind).is_empty() || !selection.listed_hashes.is_empty();
        let tagged = self.tagged.as_ref().is_some_and(|tagged| !tagged.is_empty());
        let holds = |selection: &Selection| !selection.keys.is_empty() || (selection.is_tagged && tagged);
        self.selections.iter().any(|selection| known(selection) && holds(selection))
    }

    /// Counts the cells of the batch's other columns that hold a listed identifier of a distinctive kind.
    pub fn search(&self, batch: &Batch, found: &mut Residues) -> PolarsResult<()> {
        for (path, leaf) in &batch.others {
            let cells: Vec<&[u8]> = match leaf.values.dtype() {
                DataType::String => leaf.values.str()?.iter().map(|text| text.unwrap_or_default().as_bytes()).collect(),
                DataType::Binary => leaf.values.binary()?.iter().map(Option::unwrap_or_default).collect(),
                _ => continue,
            };
            for (cells, first) in cells.chunks(CELLS_A_TIME).zip((0..).step_by(CELLS_A_TIME)) {
                let hits = self.tokens(cells, Around::Text)?;
                // `anna@x.y` in `mary-anna@x.y` is nobody's who is listed.
                let is_sure =
                    |hit: &&Hit| hit.look != Look::Email || stands_alone(cells[hit.text], &hit.range, hit.look);
                let sure: BTreeSet<usize> = hits.iter().filter(is_sure).map(|hit| hit.text).collect();
                let all: BTreeSet<usize> = hits.iter().map(|hit| hit.text).collect();
                found.unsure_cells += (all.len() - sure.len()) as u64;
                found.stray_rows.extend(sure.iter().map(|cell| u64::from(leaf.row(first + cell))));
                found.add(Place::Undeclared, Some((0, path.clone())), sure.len() as u64);
            }
        }
        Ok(())
    }

    /// The text with [`STRAY`] in place of every listed identifier; `None`: it holds none.
    pub fn without_strays(&self, text: &[u8]) -> PolarsResult<Option<Vec<u8>>> {
        let mut ranges: Vec<Range<usize>> = self
            .tokens(&[text], Around::Text)?
            .into_iter()
            // Inside a longer word it may be part of another person's: the verifying scan tells of it.
            .filter(|hit| stands_alone(text, &hit.range, hit.look))
            .map(|hit| hit.range)
            .collect();
        if ranges.is_empty() {
            return Ok(None);
        }
        ranges.sort_by_key(|range| (range.start, std::cmp::Reverse(range.end)));
        let (mut out, mut from) = (Vec::with_capacity(text.len()), 0);
        for range in ranges {
            if range.start >= from {
                out.extend_from_slice(&text[from..range.start]);
                out.extend_from_slice(STRAY.as_bytes());
            }
            from = from.max(range.end);
        }
        out.extend_from_slice(&text[from..]);
        Ok(Some(out))
    }

    /// The identifiers of a distinctive kind that stand in the texts.
    pub fn tokens(&self, texts: &[&[u8]], around: Around) -> PolarsResult<Vec<Hit>> {
        let mut found: Vec<(usize, Token)> = Vec::new();
        for (text, bytes) in texts.iter().enumerate() {
            tokens(bytes, around, &mut |token| found.push((text, token)));
        }
        let mut hits = Vec::new();
        if found.is_empty() {
            return Ok(hits);
        }
        for (number, selection) in
            self.selections.iter().enumerate().filter(|(_, selection)| selection.list_column.is_none())
        {
            let looks = looks_of(&selection.kind);
            let words: Vec<&(usize, Token)> = found.iter().filter(|(_, token)| looks.contains(&token.look)).collect();
            if !words.is_empty() && selection.is_listed {
                let values =
                    StringChunked::from_iter_values("v".into(), words.iter().map(|(_, token)| token.text.as_str()));
                let leaf = Leaf::flat(values.into_series());
                let probe = Probe::of(selection.kind.clone(), None, number);
                let mut keys = Vec::new();
                self.hits(&probe, &leaf, &mut keys)?;
                keys.sort_by_key(|held| held.row);
                keys.dedup_by_key(|held| held.row);
                hits.extend(keys.iter().map(|held| Hit::of(words[held.row as usize], &selection.kind, None)));
            }
            for hashed in selection.listed_hashes.iter().copied() {
                let look = look_of(hashed);
                let words: Vec<&(usize, Token)> = found.iter().filter(|(_, token)| token.look == look).collect();
                let values =
                    StringChunked::from_iter_values("v".into(), words.iter().map(|(_, token)| token.text.as_str()));
                let leaf = Leaf::flat(values.into_series());
                let mut keys = Vec::new();
                self.hits(&Probe::of(selection.kind.clone(), Some(hashed), number), &leaf, &mut keys)?;
                hits.extend(keys.iter().map(|held| Hit::of(words[held.row as usize], &selection.kind, Some(hashed))));
            }
        }
        Ok(hits)
    }
}
