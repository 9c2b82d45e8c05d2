//! The suppression lists as the verifier reads them anew: sets of keyed fingerprints, and the question whether a row is in them.
//!
//! Lists and data go through the same steps: values become canonical forms or digests, these become fingerprints. Which rule asks
//! for which list column is decided here. Invariant: no text of a list is kept, only fingerprints under a key of this run.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::mem::discriminant;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use polars::prelude::*;
use polars_parquet::parquet::bloom_filter::hash_byte;

use crate::identifier::{ColumnPath, HashFunction, Hashed, Kind};
use crate::job::{DatasetSpec, Job, ListColumn, ListSpec, MatchPart, MatchRule};
use crate::residue::{Place, Residues, STRAY};
use crate::verify::{Sighting, Sightings};
use crate::verify_bytes::Listed;
use crate::verify_ledger::{Tagged, Tagger};
use crate::verify_normalise::{
    Fingerprints, Form, canonicals, digest_of, digests, function_of, joined_part, plain_numbers, plain_texts,
};
use crate::verify_read::{Batch, Element, Leaf, Tally};
use crate::verify_tokens::{Around, Look, Token, stands_alone, tokens};

/// All lists of a job, ready to be asked.
pub struct Suppressed {
    fingerprints: Arc<Fingerprints>,
    selections: Vec<Selection>,
    composites: Vec<Composite>,
    /// Functions that some data column is hashed with: plain list entries are kept under them too.
    stored_functions: Vec<HashFunction>,
    /// Their spellings.
    stored_spellings: Vec<Hashed>,
    /// How the entries of the list that is being read are counted; `None` before its first batch.
    counting: Option<Counting>,
    /// The identifiers of the request ledger, where it is a list of the job.
    pub tagged: Option<Tagged>,
}

/// What tells how many entries of a list are different.
enum Counting {
    /// The keys of this selection: it held nothing before, and takes nothing but the list's entries.
    Selection(usize),
    /// Half of each entry's key, half as large as keys in a set.
    Halves(Vec<u64>),
}

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

impl Counting {
    fn halves() -> Counting {
        Counting::Halves(Vec::new())
    }
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
fn looks_of(kind: &Kind) -> &'static [Look] {
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

fn look_of(hashed: Hashed) -> Look {
    match hashed {
        Hashed::Sha256Hex => Look::Hex64,
        Hashed::Sha256Base64 => Look::Base64,
        Hashed::Md5Hex => Look::Hex32,
        Hashed::Sha1Hex => Look::Hex40,
    }
}

/// What one match part may be compared with.
struct Selection {
    kind: Kind,
    list_column: Option<String>,
    /// Some list column feeds it, or the ledger.
    is_listed: bool,
    /// The ledger feeds it: its tags are asked as well.
    is_tagged: bool,
    tagger: Option<Tagger>,
    /// Spellings of the hashes that lists hold, or that data columns hold of what is listed.
    listed_hashes: Vec<Hashed>,
    /// Functions that the selected list columns are hashed with: plain data is compared under them too.
    listed_functions: Vec<HashFunction>,
    keys: HashSet<u128, Spread>,
    /// What is listed as bloom filters hash it: canonical texts, and digests in every spelling that a data column has.
    filter_hashes: FilterHashes,
}

/// By spelling, `None` for canonical texts.
type FilterHashes = Vec<(Option<Hashed>, Vec<u64>)>;

fn add_filter_hashes(to: &mut FilterHashes, hashed: Option<Hashed>, hashes: &[u64]) {
    match to.iter_mut().find(|(known, _)| *known == hashed) {
        Some((_, known)) => known.extend_from_slice(hashes),
        None => to.push((hashed, hashes.to_vec())),
    }
}

/// The list rows that a rule with several parts may match.
struct Composite {
    selections: Vec<usize>,
    rows: HashSet<u128, Spread>,
}

/// The rules of one dataset, resolved against [`Suppressed`].
pub struct Rules {
    pub columns: Vec<ColumnPath>,
    probes: Vec<Probe>,
    /// The rules with several parts.
    composites: Vec<Parts>,
    /// The rules whose columns make up one identifier.
    joined: Vec<Joined>,
}

/// A rule whose columns make up one identifier.
struct Joined {
    made_up: MadeUp,
    kind: Kind,
    selection: usize,
}

/// Identifiers that several columns of a batch make up.
pub struct MadeUp {
    /// Each part's column, and how it is read.
    columns: Vec<(usize, Kind)>,
    shared_names: Vec<Vec<usize>>,
}

impl MadeUp {
    /// `number` gives a column's place in the batches.
    pub fn of(parts: &[MatchPart], number: &mut dyn FnMut(&ColumnPath) -> usize) -> MadeUp {
        let columns = parts.iter().map(|part| (number(&part.column), part.kind.clone())).collect();
        MadeUp { columns, shared_names: all_shared_names(parts) }
    }

    /// The joined forms with the row of each, and by part how many values cannot be part of one.
    pub fn values(&self, batch: &Batch) -> PolarsResult<(Vec<u32>, Series, Vec<u64>)> {
        // A part's key is the place of its text among the pieces.
        let (mut pieces, mut parts, mut unread) = (Vec::new(), Vec::new(), Vec::new());
        for (column, kind) in &self.columns {
            let (mut held, mut lost) = (Vec::new(), 0);
            for leaf in &batch.columns[*column] {
                lost += canonicals(kind, &leaf.values, &mut |index, _, canonical| {
                    held.push(Held { row: leaf.row(index), element: leaf.element(index), key: pieces.len() as u128 });
                    pieces.push(joined_part(canonical));
                })?;
            }
            parts.push(held);
            unread.push(lost);
        }
        let together =
            |a: (usize, &Element), b: (usize, &Element)| in_one_element(self.shared_names[a.0][b.0], a.1, b.1);
        let (mut rows, mut whole): (Vec<u32>, Vec<String>) = Default::default();
        each_row(&mut parts, &together, &mut |row, keys| {
            rows.push(row);
            whole.push(keys.iter().map(|key| pieces[*key as usize].as_str()).collect());
        });
        Ok((rows, StringChunked::from_iter_values("v".into(), whole.iter()).into_series(), unread))
    }
}

/// A rule with several parts.
struct Parts {
    probes: Vec<usize>,
    composite: usize,
    /// By two parts: how many names their columns' paths begin with alike. A list within these is one list to both.
    shared_names: Vec<Vec<usize>>,
}

impl Parts {
    /// Whether keys of parts `a` and `b` stand in the same element of every list that both are in.
    fn together(&self, a: (usize, &Element), b: (usize, &Element)) -> bool {
        in_one_element(self.shared_names[a.0][b.0], a.1, b.1)
    }
}

/// Whether two values stand in the same element of every list within the first `names` names of their paths.
fn in_one_element(names: usize, a: &Element, b: &Element) -> bool {
    let shared = |element: &Element| element.iter().filter(|(depth, _)| *depth <= names).copied().collect::<Vec<_>>();
    shared(a) == shared(b)
}

/// By two parts: how many names their columns' paths begin with alike.
fn all_shared_names(parts: &[MatchPart]) -> Vec<Vec<usize>> {
    let of = |a: &MatchPart| parts.iter().map(|b| shared_names(&a.column, &b.column)).collect();
    parts.iter().map(of).collect()
}

fn shared_names(a: &ColumnPath, b: &ColumnPath) -> usize {
    let shorter = a.0.len().min(b.0.len());
    (0..shorter).find(|i| a.0[*i] != b.0[*i]).unwrap_or(shorter)
}

/// A value that some list holds: where it stands and under which key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    row: u32,
    element: Element,
    key: u128,
}

struct Probe {
    column: usize,
    kind: Kind,
    hashed: Option<Hashed>,
    selection: usize,
    /// A rule of its own, next to being part of one.
    single: bool,
    /// Another probe reads the same column in the same way and counts what is not comparable.
    counted_elsewhere: bool,
}

impl Probe {
    /// Of a value by itself, in no column.
    fn of(kind: Kind, hashed: Option<Hashed>, selection: usize) -> Probe {
        Probe { column: 0, kind, hashed, selection, single: true, counted_elsewhere: true }
    }
}

/// How many cells' words are held at a time.
const CELLS_A_TIME: usize = 1 << 16;

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
            counting: None,
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

    fn selection(&self, part: &MatchPart) -> Option<usize> {
        self.selection_of(&part.kind, part.list_column.as_ref())
    }

    fn selection_of(&self, kind: &Kind, list_column: Option<&String>) -> Option<usize> {
        self.selections.iter().position(|selection| {
            discriminant(&selection.kind) == discriminant(kind) && selection.list_column.as_ref() == list_column
        })
    }

    /// How many different identifiers (or digests of some) have been added since the last call.
    pub fn count_identifiers(&mut self) -> u64 {
        let different = match self.counting.take() {
            None => 0,
            Some(Counting::Selection(selection)) => self.selections[selection].keys.len(),
            Some(Counting::Halves(mut halves)) => {
                halves.sort_unstable();
                halves.dedup();
                halves.len()
            }
        };
        different as u64
    }

    /// A list of tens of millions, which has one column as a rule, is better not held once more only to be counted.
    fn counting_of(&self, list: &ListSpec) -> Counting {
        let only_entries = |column: &ListColumn| {
            column.hashed.is_some() || (self.stored_functions.is_empty() && column.kind != Kind::Text)
        };
        let fresh = |column: &ListColumn| {
            let mut selections = self.selections.iter();
            selections.position(|selection| selection.takes(column) && selection.keys.is_empty())
        };
        match &list.columns[..] {
            [column] if only_entries(column) => fresh(column).map_or_else(Counting::halves, Counting::Selection),
            _ => Counting::halves(),
        }
    }

    /// The rules of a dataset of the job that these sets were made for.
    pub fn rules(&self, dataset: &DatasetSpec) -> Rules {
        let mut rules = Rules { columns: Vec::new(), probes: Vec::new(), composites: Vec::new(), joined: Vec::new() };
        for rule in &dataset.rules {
            match rule {
                MatchRule::Single(part) => {
                    let probe = rules.probe(part, self);
                    rules.probes[probe].single = true;
                }
                MatchRule::All(parts) => {
                    let probes: Vec<usize> = parts.iter().map(|part| rules.probe(part, self)).collect();
                    let selections: Vec<usize> = probes.iter().map(|probe| rules.probes[*probe].selection).collect();
                    let composite = self.composites.iter().position(|known| known.selections == selections);
                    let composite = composite.expect("made for every rule of the job");
                    rules.composites.push(Parts { probes, composite, shared_names: all_shared_names(parts) });
                }
                MatchRule::Joined { parts, whole } => {
                    let made_up = MadeUp::of(parts, &mut |column| rules.column(column));
                    let selection = self.selection(whole).expect("made for every rule of the job");
                    rules.joined.push(Joined { made_up, kind: whole.kind.clone(), selection });
                }
            }
        }
        rules
    }

    /// Whether anything is listed that could be told in running text.
    pub fn knows_words(&self) -> bool {
        let known =
            |selection: &Selection| !looks_of(&selection.kind).is_empty() || !selection.listed_hashes.is_empty();
        let tagged = self.tagged.as_ref().is_some_and(|tagged| !tagged.is_empty());
        let holds = |selection: &Selection| !selection.keys.is_empty() || (selection.is_tagged && tagged);
        self.selections.iter().any(|selection| known(selection) && holds(selection))
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

    /// The values of a leaf that some list holds, by row.
    fn hits(&self, probe: &Probe, leaf: &Leaf, found: &mut Vec<Held>) -> PolarsResult<u64> {
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

    fn takes(&self, column: &ListColumn) -> bool {
        discriminant(&self.kind) == discriminant(&column.kind)
            && self.list_column.as_ref().is_none_or(|name| *name == column.column)
    }
}

/// The lists under the rules of one dataset: what the byte-level check asks.
pub struct Asked {
    pub suppressed: Arc<Suppressed>,
    pub rules: Arc<Rules>,
}

fn spelling(hashed: Hashed, digest: &[u8]) -> String {
    match hashed {
        Hashed::Sha256Base64 => base64::engine::general_purpose::STANDARD.encode(digest),
        Hashed::Sha256Hex | Hashed::Md5Hex | Hashed::Sha1Hex => hex::encode(digest),
    }
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

impl Rules {
    /// Whether every rule on the column is one of its own.
    pub fn is_single(&self, column: usize) -> bool {
        let in_composite = |probe: &Probe| {
            let number = self.probes.iter().position(|other| std::ptr::eq(other, probe));
            self.composites.iter().any(|rule| number.is_some_and(|number| rule.probes.contains(&number)))
        };
        let mut of_column = self.probes.iter().filter(|probe| probe.column == column);
        let in_joined =
            self.joined.iter().flat_map(|rule| &rule.made_up.columns).any(|(of_rule, _)| *of_rule == column);
        !in_joined && of_column.all(|probe| probe.single && !in_composite(probe))
    }

    /// Whether what cannot be read as `kind` in a column is counted by a probe, or by a rule before `rule`.
    fn counts(&self, column: usize, kind: &Kind, rule: &Joined) -> bool {
        let probed =
            self.probes.iter().any(|probe| probe.column == column && probe.hashed.is_none() && probe.kind == *kind);
        let before = self.joined.iter().take_while(|other| !std::ptr::eq(*other, rule));
        probed || before.flat_map(|other| &other.made_up.columns).any(|(other, of)| *other == column && of == kind)
    }

    /// The number of a column, which is read from now on.
    fn column(&mut self, path: &ColumnPath) -> usize {
        self.columns.iter().position(|column| column == path).unwrap_or_else(|| {
            self.columns.push(path.clone());
            self.columns.len() - 1
        })
    }

    /// The kinds that rules of their own on the column compare it as.
    pub fn kinds(&self, column: usize) -> impl Iterator<Item = (&Kind, Option<Hashed>)> {
        let single = self.probes.iter().filter(move |probe| probe.single && probe.column == column);
        single.map(|probe| (&probe.kind, probe.hashed))
    }

    fn probe(&mut self, part: &MatchPart, lists: &Suppressed) -> usize {
        let column = self.column(&part.column);
        let selection = lists.selection(part).expect("made for every part of the job");
        let reads_alike =
            |probe: &Probe| probe.column == column && probe.kind == part.kind && probe.hashed == part.hashed;
        if let Some(known) = self.probes.iter().position(|probe| reads_alike(probe) && probe.selection == selection) {
            return known;
        }
        let counted_elsewhere = self.probes.iter().any(reads_alike);
        let (kind, hashed) = (part.kind.clone(), part.hashed);
        self.probes.push(Probe { column, kind, hashed, selection, single: false, counted_elsewhere });
        self.probes.len() - 1
    }
}

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
    if sets.counting.is_none() {
        sets.counting = Some(sets.counting_of(list));
    }
    let Suppressed { fingerprints, selections, composites, counting, .. } = &mut *sets;
    for (column, (keyed, filter_hashes)) in list.columns.iter().zip(&keyed) {
        if let Some(Counting::Halves(halves)) = counting {
            halves.extend(keyed.iter().filter(|keyed| keyed.is_entry).map(|keyed| keyed.key as u64));
        }
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
    /// The entry itself, not one of its other forms.
    is_entry: bool,
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
                    keyed.push(Keyed { row: leaf.row(index), key, is_entry: true });
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
            keyed.push(Keyed { row, key, is_entry: true });
            add_filter_hashes(filter_hashes, None, &[hash_byte(canonical)]);
            for function in &self.stored_functions {
                let digest = digest_of(*function, canonical);
                keyed.push(Keyed { row, key: self.fingerprints.digest(*function, &digest), is_entry: false });
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
            keyed.extend(key.map(|key| Keyed { row: *row, key, is_entry: false }));
        }
        Ok(not_comparable)
    }
}

/// Whether keys of two parts may be of one person, by part and element.
type Together<'a> = &'a dyn Fn((usize, &Element), (usize, &Element)) -> bool;

/// Gives every combination of one key from each part that stand in the same row and are `together`. A part without a key in a row
/// rules the row out.
fn each_row(parts: &mut [Vec<Held>], together: Together<'_>, each: &mut dyn FnMut(u32, &[u128])) {
    for part in parts.iter_mut() {
        part.sort_unstable();
        part.dedup();
    }
    let Some((first, others)) = parts.split_first() else {
        return;
    };
    for run in first.chunk_by(|a, b| a.row == b.row) {
        let row = run[0].row;
        let mut runs = vec![run];
        runs.extend(others.iter().map(|part| {
            let start = part.partition_point(|other| other.row < row);
            let end = part.partition_point(|other| other.row <= row);
            &part[start..end]
        }));
        if runs.iter().all(|run| !run.is_empty()) {
            combine(&runs, &mut Vec::with_capacity(runs.len()), together, &mut |held| {
                let keys: Vec<u128> = held.iter().map(|held| held.key).collect();
                each(row, &keys);
            });
        }
    }
}

fn combine<'h>(
    runs: &[&'h [Held]],
    taken: &mut Vec<&'h Held>,
    together: Together<'_>,
    each: &mut dyn FnMut(&[&'h Held]),
) {
    let Some((first, others)) = runs.split_first() else {
        return each(taken);
    };
    let part = taken.len();
    for held in *first {
        if taken.iter().enumerate().all(|(other, known)| together((other, &known.element), (part, &held.element))) {
            taken.push(held);
            combine(others, taken, together, each);
            taken.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_combine_within_a_row_and_never_across() {
        let mut seen = Vec::new();
        let held = |(row, key): (u32, u128)| Held { row, element: Element::new(), key };
        let mut parts = vec![[(2, 20), (0, 1), (0, 2)].map(held).to_vec(), [(0, 7), (1, 8), (2, 9)].map(held).to_vec()];
        each_row(&mut parts, &|_, _| true, &mut |row, keys| seen.push((row, keys.to_vec())));
        assert_eq!(seen, [(0, vec![1, 7]), (0, vec![2, 7]), (2, vec![20, 9])]);
    }
}
