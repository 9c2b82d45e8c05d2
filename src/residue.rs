//! What an object may hold of listed identifiers beside its rows: counts by place and column, and what must go.
//!
//! Vocabulary of the verifier, which looks, of the plan, which decides, and of the rewrite, which removes. Invariant: nothing
//! here can show an identifier; of one in a name only its place, its kind and the digest that its tag is made of are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use roaring::RoaringTreemap;

use crate::action::Action;
use crate::identifier::ColumnPath;

/// Where a listed identifier can stand that no row shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Minimum or maximum: of a chunk or a page, in the footer, a page header or the column index.
    Statistics,
    /// An entry of a dictionary page, whether or not a row uses it.
    Dictionaries,
    /// A bloom filter that answers "maybe" more often than its fill explains.
    Filters,
    /// A key-value entry of the file or of a column, or another text of the footer.
    Metadata,
    /// Bytes that belong to no page, index, filter or footer.
    Gaps,
    /// User metadata or a tag of the object.
    Labels,
    /// A cell of a column that no rule names.
    Undeclared,
}

impl Place {
    pub const ALL: [Place; 7] = [
        Place::Statistics,
        Place::Dictionaries,
        Place::Filters,
        Place::Metadata,
        Place::Gaps,
        Place::Labels,
        Place::Undeclared,
    ];

    /// What `count` findings there are called.
    fn words(self, count: u64) -> String {
        let (one, many) = match self {
            Place::Statistics => ("statistic", "statistics"),
            Place::Dictionaries => ("dictionary entry", "dictionary entries"),
            Place::Filters => ("bloom filter", "bloom filters"),
            Place::Metadata => ("metadata entry", "metadata entries"),
            Place::Gaps => ("gap between pages", "gaps between pages"),
            Place::Labels => ("user metadata entry or tag", "user metadata entries or tags"),
            Place::Undeclared => ("cell", "cells"),
        };
        format!("{count} {}", if count == 1 { one } else { many })
    }
}

/// An identifier in an object's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// In the bytes of the name as the store spells it.
    pub range: Range<usize>,
    pub kind: &'static str,
    /// SHA-256 of the canonical form: what the tag is made of. Never leaves the process.
    pub digest: [u8; 32],
    /// The name means this person: an uncertain identifier is hidden where the name is shown, and no reason to act.
    pub is_certain: bool,
}

/// A column chunk: the row group's number and the column.
pub type ChunkId = (usize, ColumnPath);

/// What the find stage saw of a match column's chunk when it asked every value: enough to judge what stands beside the rows
/// without a second read of the pages. Bounds may show identifiers: this never leaves the process.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SeenChunk {
    /// Listed dictionary entries that no value uses.
    pub unused_entries: u64,
    /// Bounds in page headers and in the column index that are no value of the chunk.
    pub bounds: Vec<Bound>,
    /// Bounds in the footer that are values of the chunk.
    pub whole: Vec<Vec<u8>>,
}

/// The chunks of one object that the find stage saw whole.
#[derive(Clone, Default)]
pub struct SeenChunks {
    /// By row group and column.
    chunks: BTreeMap<(usize, usize), SeenChunk>,
    columns: Arc<[ColumnPath]>,
}

impl SeenChunks {
    /// `columns` give the paths of the column numbers in `chunks`.
    pub fn new(columns: Arc<[ColumnPath]>, chunks: BTreeMap<(usize, usize), SeenChunk>) -> SeenChunks {
        SeenChunks { chunks, columns }
    }

    pub fn get(&self, group: usize, column: &ColumnPath) -> Option<&SeenChunk> {
        let number = self.columns.iter().position(|known| known == column)?;
        self.chunks.get(&(group, number))
    }
}

impl std::fmt::Debug for SeenChunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SeenChunks({})", self.chunks.len())
    }
}

/// A minimum or maximum.
#[derive(Clone, PartialEq, Eq)]
pub struct Bound {
    pub bytes: Vec<u8>,
    pub is_max: bool,
    /// `Some(true)`: the writer says that it is a value, not a part of one.
    pub exact: Option<bool>,
}

/// A bound may be an identifier.
impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bound({} bytes)", self.bytes.len())
    }
}

/// What one object holds beside its rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Residues {
    /// By place and chunk; `None` is the file as a whole.
    counts: BTreeMap<(Place, Option<ChunkId>), u64>,
    /// Chunks to encode anew for what was found in them without belonging to their column.
    anew: BTreeSet<ChunkId>,
    /// Chunks of which only what no row explains was counted.
    apart: BTreeSet<ChunkId>,
    /// The rows of the row groups in which something was found.
    spans: BTreeMap<usize, Range<u64>>,
    /// The file's key-value entries that hold an identifier, by position.
    pub key_values: BTreeSet<usize>,
    /// Texts that no rewrite can take out without another schema: column names.
    pub fixed: u64,
    pub named: Vec<Named>,
    /// Bytes that belong to no page and that could only be searched as plain text.
    pub unread_bytes: u64,
    /// Bloom filters that hold more than their values explain, in a form that the lists cannot be compared with.
    pub unread_filters: u64,
    /// Objects whose user metadata or tags may not be read.
    pub unread_labels: u64,
    /// Cells of undeclared columns in which a listed address is part of a longer one, which may be another person's.
    pub unsure_cells: u64,
    /// Rows with a listed identifier in a cell of an undeclared column.
    pub stray_rows: RoaringTreemap,
}

impl Residues {
    pub fn of_name(named: Vec<Named>) -> Residues {
        Residues { named, ..Residues::default() }
    }

    pub fn add(&mut self, place: Place, chunk: Option<ChunkId>, count: u64) {
        if count > 0 {
            *self.counts.entry((place, chunk)).or_default() += count;
        }
    }

    /// A copy of the chunk would keep what was found.
    pub fn encode_anew(&mut self, chunk: ChunkId) {
        self.anew.insert(chunk);
    }

    /// What is counted of the chunk is in no row: it does not go with the rows that match.
    pub fn set_apart(&mut self, chunk: ChunkId) {
        self.apart.insert(chunk);
    }

    /// Whether anything was found in a row group.
    pub fn is_in(&self, group: usize) -> bool {
        let mut chunks = self.counts.keys().filter_map(|(_, chunk)| chunk.as_ref()).chain(&self.anew);
        chunks.any(|(of, _)| *of == group)
    }

    /// Says which rows a row group has.
    pub fn span(&mut self, group: usize, rows: Range<u64>) {
        self.spans.insert(group, rows);
    }

    pub fn merge(&mut self, other: &Residues) {
        for ((place, chunk), count) in &other.counts {
            self.add(*place, chunk.clone(), *count);
        }
        self.anew.extend(other.anew.iter().cloned());
        self.apart.extend(other.apart.iter().cloned());
        self.spans.extend(other.spans.iter().map(|(group, rows)| (*group, rows.clone())));
        self.key_values.extend(&other.key_values);
        self.fixed += other.fixed;
        self.named.extend(other.named.iter().cloned());
        self.unread_bytes += other.unread_bytes;
        self.unread_filters += other.unread_filters;
        self.unread_labels += other.unread_labels;
        self.unsure_cells += other.unsure_cells;
        self.stray_rows |= &other.stray_rows;
    }

    /// The rows were numbered from the `first` one on.
    pub fn count_rows_from(&mut self, first: u64) {
        if first > 0 && !self.stray_rows.is_empty() {
            self.stray_rows = self.stray_rows.iter().map(|row| row + first).collect();
        }
    }

    pub fn count(&self, place: Place) -> u64 {
        self.counts.iter().filter(|((at, _), _)| *at == place).map(|(_, count)| count).sum()
    }

    /// Findings in a place, by column.
    pub fn by_column(&self, place: Place) -> BTreeMap<ColumnPath, u64> {
        let mut sums = BTreeMap::new();
        for ((_, chunk), count) in self.counts.iter().filter(|((at, _), _)| *at == place) {
            if let Some((_, column)) = chunk {
                *sums.entry(column.clone()).or_default() += count;
            }
        }
        sums
    }

    /// Whether the object's bytes, its name aside, hold anything. Cells of undeclared columns are counted apart: what they
    /// amount to is for the job to say.
    pub fn in_bytes(&self) -> bool {
        self.counts.keys().any(|(place, _)| *place != Place::Undeclared)
    }

    /// Whether everything in the bytes was found in that place.
    pub fn only(&self, place: Place) -> bool {
        self.counts.keys().all(|(at, _)| *at == place || *at == Place::Undeclared)
    }

    /// What is left when the rows `matched` are dealt with: in a row group that loses a row, and of redacted rows in the redacted
    /// columns, only what no row explains. Chunks that hold more than that are still to be encoded anew.
    pub fn beside(&self, matched: &RoaringTreemap, action: &Action) -> Residues {
        let before = |row: u64| if row == 0 { 0 } else { matched.rank(row - 1) };
        let loses = |group: &usize| self.spans.get(group).is_some_and(|rows| before(rows.end) > before(rows.start));
        let goes_with_rows = |(group, column): &ChunkId| match action {
            Action::Delete => loses(group),
            Action::Redact(columns) => loses(group) && columns.iter().any(|redact| redact.column == *column),
        };
        let dealt_with = |chunk: &ChunkId| goes_with_rows(chunk) && !self.apart.contains(chunk);
        let mut left = self.clone();
        // Pages that lose no row may be copied, and with them what they show: such a chunk is encoded anew as a whole.
        let counted = self.counts.keys().filter(|(place, _)| *place != Place::Undeclared);
        left.anew.extend(counted.filter_map(|(_, chunk)| chunk.clone()).filter(dealt_with));
        left.counts.retain(|(place, chunk), _| *place == Place::Undeclared || !chunk.as_ref().is_some_and(dealt_with));
        left
    }

    /// What was found, in words without an identifier; undeclared cells only if `undeclared`.
    pub fn words(&self, undeclared: bool) -> Option<String> {
        let mut sums: BTreeMap<(Place, Option<&ColumnPath>), u64> = BTreeMap::new();
        for ((place, chunk), count) in &self.counts {
            if undeclared || *place != Place::Undeclared {
                *sums.entry((*place, chunk.as_ref().map(|(_, column)| column))).or_default() += count;
            }
        }
        let words: Vec<String> = sums
            .into_iter()
            .map(|((place, column), count)| match column {
                Some(column) => format!("{} of column {column}", place.words(count)),
                None => place.words(count),
            })
            .collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// What a rewrite has to take out for nothing of it to be left.
    pub fn cleanse(&self) -> Cleanse {
        let counted = self.counts.keys().filter(|(place, _)| *place != Place::Undeclared);
        let chunks = counted.filter_map(|(_, chunk)| chunk.clone()).chain(self.anew.iter().cloned()).collect();
        Cleanse { chunks, key_values: self.key_values.clone(), strays: BTreeSet::new() }
    }
}

/// What a rewrite takes out of a file beside rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleanse {
    /// These are encoded anew, so that dictionary, statistics, indexes and filter hold the values of their rows alone.
    pub chunks: BTreeSet<ChunkId>,
    /// The file's key-value entries that go, by position.
    pub key_values: BTreeSet<usize>,
    /// Columns that no rule names, in whose cells listed identifiers are replaced.
    pub strays: BTreeSet<ColumnPath>,
}

/// What stands in a cell in place of an identifier that strayed there.
pub const STRAY: &str = "[removed]";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_told_by_place_and_column_and_matching_rows_deal_with_their_group() {
        let chunk = |group, column| Some((group, ColumnPath::parse(column).unwrap()));
        let mut all = Residues::default();
        all.add(Place::Statistics, chunk(0, "user.email"), 2);
        all.add(Place::Statistics, chunk(1, "user.email"), 1);
        all.add(Place::Gaps, None, 0);
        all.span(0, 0..10);
        all.span(1, 10..20);
        all.span(2, 20..30);
        let mut more = Residues::default();
        more.add(Place::Dictionaries, chunk(1, "user.email"), 1);
        more.add(Place::Metadata, None, 1);
        more.add(Place::Undeclared, chunk(0, "note"), 3);
        all.merge(&more);
        let words = "3 statistics of column user.email, 1 dictionary entry of column user.email, 1 metadata entry";
        assert_eq!(all.words(false).as_deref(), Some(words));
        assert_eq!(all.words(true), Some(format!("{words}, 3 cells of column note")));
        assert_eq!((all.count(Place::Gaps), all.count(Place::Undeclared), all.in_bytes()), (0, 3, true));
        assert_eq!(Residues::default().words(true), None);
        assert_eq!(all.cleanse().chunks.len(), 2);
        let left = all.beside(&RoaringTreemap::from_iter([9]), &Action::Delete);
        assert_eq!(
            left.words(false).as_deref(),
            Some("1 statistic of column user.email, 1 dictionary entry of column user.email, 1 metadata entry")
        );
        let both = [chunk(0, "user.email"), chunk(1, "user.email")];
        assert_eq!(left.cleanse().chunks, both.into_iter().flatten().collect(), "no page that shows it is copied");
        let left = all.beside(&RoaringTreemap::from_iter([10, 19]), &Action::Delete);
        assert_eq!(left.words(false).as_deref(), Some("2 statistics of column user.email, 1 metadata entry"));
        let left = all.beside(&RoaringTreemap::from_iter([0, 10]), &Action::Redact(Vec::new()));
        assert_eq!(left.words(false).as_deref(), Some(words));
        all.set_apart(chunk(0, "user.email").unwrap());
        let left = all.beside(&RoaringTreemap::from_iter([0, 10]), &Action::Delete);
        assert_eq!(left.words(false).as_deref(), Some("2 statistics of column user.email, 1 metadata entry"));
    }
}
