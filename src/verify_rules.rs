//! The rules of one dataset as the verifier asks them: which column is read how, and which values of a row belong together.
//!
//! Invariant: values combine within one row, and within one element of every list that both of their columns are in.

use polars::prelude::*;

use crate::identifier::{ColumnPath, Hashed, Kind};
use crate::job::{DatasetSpec, MatchPart, MatchRule};
use crate::verify_batch::{Batch, Element};
use crate::verify_list::Suppressed;
use crate::verify_normalise::{canonicals, joined_part};

/// The rules of one dataset, resolved against [`Suppressed`].
pub struct Rules {
    pub columns: Vec<ColumnPath>,
    pub(crate) probes: Vec<Probe>,
    /// The rules with several parts.
    pub(crate) composites: Vec<Parts>,
    /// The rules whose columns make up one identifier.
    pub(crate) joined: Vec<Joined>,
}

pub(crate) struct Probe {
    pub(crate) column: usize,
    pub(crate) kind: Kind,
    pub(crate) hashed: Option<Hashed>,
    pub(crate) selection: usize,
    /// A rule of its own, next to being part of one.
    pub(crate) single: bool,
    /// Another probe reads the same column in the same way and counts what is not comparable.
    pub(crate) counted_elsewhere: bool,
}

/// A rule with several parts.
pub(crate) struct Parts {
    pub(crate) probes: Vec<usize>,
    pub(crate) composite: usize,
    /// By two parts: how many names their columns' paths begin with alike. A list within these is one list to both.
    pub(crate) shared_names: Vec<Vec<usize>>,
}

/// A rule whose columns make up one identifier.
pub(crate) struct Joined {
    pub(crate) made_up: MadeUp,
    pub(crate) kind: Kind,
    pub(crate) selection: usize,
}

/// Identifiers that several columns of a batch make up.
pub struct MadeUp {
    /// Each part's column, and how it is read.
    pub(crate) columns: Vec<(usize, Kind)>,
    shared_names: Vec<Vec<usize>>,
}

/// A value that some list holds: where it stands and under which key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Held {
    pub(crate) row: u32,
    pub(crate) element: Element,
    pub(crate) key: u128,
}

impl Suppressed {
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
    pub(crate) fn counts(&self, column: usize, kind: &Kind, rule: &Joined) -> bool {
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

impl Probe {
    /// Of a value by itself, in no column.
    pub(crate) fn of(kind: Kind, hashed: Option<Hashed>, selection: usize) -> Probe {
        Probe { column: 0, kind, hashed, selection, single: true, counted_elsewhere: true }
    }
}

impl Parts {
    /// Whether keys of parts `a` and `b` stand in the same element of every list that both are in.
    pub(crate) fn together(&self, a: (usize, &Element), b: (usize, &Element)) -> bool {
        in_one_element(self.shared_names[a.0][b.0], a.1, b.1)
    }
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

/// Whether keys of two parts may be of one person, by part and element.
pub(crate) type Together<'a> = &'a dyn Fn((usize, &Element), (usize, &Element)) -> bool;

/// Gives every combination of one key from each part that stand in the same row and are `together`. A part without a key in a row
/// rules the row out.
pub(crate) fn each_row(parts: &mut [Vec<Held>], together: Together<'_>, each: &mut dyn FnMut(u32, &[u128])) {
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
