//! Rules of several columns: the parts of one row that stand together in one list row, or that make up one listed identifier.
//!
//! No I/O and no clock. Invariant: parts below one list match within one element of it, for those of two elements are of two persons.

use std::sync::Arc;

use crate::column_values::Placed;
use crate::identifier::{Canonical, ColumnPath, Value, join_part};
use crate::job::MatchPart;
use crate::match_index::{Form, MatchIndex};
use crate::match_probe::{Check, Probe, Scratch};

/// Asks whether the parts of one row stand together in one list row, or make up one listed identifier.
#[derive(Clone)]
pub struct Composite {
    index: Arc<MatchIndex>,
    parts: Vec<MatchPart>,
    ask: Ask,
}

/// What the parts of a row are compared with.
#[derive(Clone)]
enum Ask {
    /// List rows, by the forms of their cells.
    ListRow(Vec<(Vec<Form>, u16)>),
    /// Identifiers that are made of all parts, as a probe of one value knows them.
    Joined(Box<Probe>),
}

impl MatchIndex {
    /// For a rule whose parts must match one list row.
    pub(crate) fn composite(self: &Arc<Self>, dataset: usize, rule: usize, parts: &[MatchPart]) -> Composite {
        let shapes = self
            .composites
            .iter()
            .filter(|(name, _)| name.dataset == dataset && name.rule == rule)
            .map(|(name, set)| (name.forms.clone(), *set))
            .collect();
        Composite { index: self.clone(), parts: parts.to_vec(), ask: Ask::ListRow(shapes) }
    }

    /// For a rule whose parts make up one identifier, which is compared as `whole`.
    pub(crate) fn joined(self: &Arc<Self>, parts: &[MatchPart], whole: &MatchPart) -> Composite {
        Composite { index: self.clone(), parts: parts.to_vec(), ask: Ask::Joined(Box::new(self.probe(whole))) }
    }
}

impl Composite {
    /// `values[i]` are the values of part `i` in this row, several when it stands in a list; none when it is null. Parts below one
    /// list must stand in the same element of it: those of two elements are of two persons.
    pub fn check(&self, values: &[Vec<Placed<'_>>], scratch: &mut Scratch) -> bool {
        let together = |(a, of_a): (usize, &Choice<'_>), (b, of_b): (usize, &Choice<'_>)| {
            let shared = shared_names(&self.parts[a].column, &self.parts[b].column);
            in_same_element(of_a.element, of_b.element, shared)
        };
        let mut found = false;
        match &self.ask {
            Ask::ListRow(shapes) => {
                for (forms, set) in shapes {
                    let parts = self.parts.iter().zip(forms).zip(values);
                    let choices: Vec<Vec<Choice<'_>>> =
                        parts.map(|((part, form), values)| stored_part(part, *form, values, scratch)).collect();
                    combinations(&choices, &together, &mut |bytes| found |= self.index.holds(*set, bytes));
                }
            }
            Ask::Joined(probe) => {
                let parts = self.parts.iter().zip(values);
                let choices: Vec<Vec<Choice<'_>>> =
                    parts.map(|(part, values)| joined_part(part, values, scratch)).collect();
                combinations(&choices, &together, &mut |bytes| {
                    found |= probe.check_canonical(bytes, None, scratch) == Check::Match;
                });
            }
        }
        found
    }

    /// Whether part `i` cannot read `value`.
    pub fn is_not_comparable(&self, part: usize, value: Value<'_>, scratch: &mut Scratch) -> bool {
        read_part(&self.parts[part], value, &mut scratch.canonical) == Canonical::NotComparable
    }
}

fn read_part(part: &MatchPart, value: Value<'_>, out: &mut Vec<u8>) -> Canonical {
    match part.hashed {
        Some(hashed) => hashed.read(value, out),
        None => part.kind.canonicalise(value, out),
    }
}

/// What each value adds to an identifier that is made of several columns.
fn joined_part<'v>(part: &MatchPart, values: &[Placed<'v>], scratch: &mut Scratch) -> Vec<Choice<'v>> {
    let mut out = Vec::new();
    for Placed { value, element } in values {
        if read_part(part, *value, &mut scratch.canonical) == Canonical::Text {
            let mut bytes = Vec::new();
            join_part(&scratch.canonical, &mut bytes);
            out.push(Choice { element, bytes });
        }
    }
    out
}

fn stored_part<'v>(part: &MatchPart, form: Form, values: &[Placed<'v>], scratch: &mut Scratch) -> Vec<Choice<'v>> {
    let mut out = Vec::new();
    for Placed { value, element } in values {
        let read = read_part(part, *value, &mut scratch.canonical);
        let tag = match read {
            Canonical::Empty | Canonical::NotComparable => continue,
            Canonical::Number => NUMBER,
            Canonical::Text => TEXT,
        };
        let bytes = match (form, part.hashed) {
            (Form::Hash(function), None) => {
                function.digest(&scratch.canonical, &mut scratch.digest);
                tagged(DIGEST, &scratch.digest)
            }
            (Form::Hash(_), Some(_)) => tagged(DIGEST, &scratch.canonical),
            (Form::Plain | Form::Number, _) => tagged(tag, &scratch.canonical),
        };
        out.push(Choice { element, bytes });
    }
    out
}

/// One form of a part, and where it stands in the lists of its row.
pub(crate) struct Choice<'a> {
    pub(crate) element: &'a [(usize, u32)],
    pub(crate) bytes: Vec<u8>,
}

/// Whether choices of two parts, each told by its part's number, may be of one person.
pub(crate) type Together<'a> = &'a dyn Fn((usize, &Choice<'_>), (usize, &Choice<'_>)) -> bool;

/// Calls `each` with the concatenation of one choice a part, for every combination whose choices are all `together`.
pub(crate) fn combinations(choices: &[Vec<Choice<'_>>], together: Together<'_>, each: &mut dyn FnMut(&[u8])) {
    fn extend<'c>(
        choices: &'c [Vec<Choice<'c>>],
        chosen: &mut Vec<&'c Choice<'c>>,
        together: Together<'_>,
        each: &mut dyn FnMut(&[u8]),
    ) {
        let part = chosen.len();
        let Some(of_part) = choices.get(part) else {
            let bytes: Vec<u8> = chosen.iter().flat_map(|choice| &choice.bytes).copied().collect();
            return each(&bytes);
        };
        for choice in of_part {
            if chosen.iter().enumerate().all(|known| together((known.0, known.1), (part, choice))) {
                chosen.push(choice);
                extend(choices, chosen, together, each);
                chosen.pop();
            }
        }
    }
    extend(choices, &mut Vec::new(), together, each);
}

/// How many names two paths begin with alike: a list that stands within them is one list to both.
fn shared_names(a: &ColumnPath, b: &ColumnPath) -> usize {
    a.0.iter().zip(&b.0).take_while(|(a, b)| a == b).count()
}

/// Whether two values stand in the same element of every list that their paths share.
fn in_same_element(a: &[(usize, u32)], b: &[(usize, u32)], shared_names: usize) -> bool {
    let shared = |(depth, _): &&(usize, u32)| *depth <= shared_names;
    a.iter().take_while(shared).eq(b.iter().take_while(shared))
}

/// Tags keep a number, a text and a digest of the same bytes apart inside a composite.
pub(crate) const TEXT: u8 = 0;
pub(crate) const NUMBER: u8 = 1;
pub(crate) const DIGEST: u8 = 2;

pub(crate) fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 5);
    out.push(tag);
    // The length keeps ("ab", "c") and ("a", "bc") apart.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
    out
}
