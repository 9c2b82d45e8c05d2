//! What the verifier reads of an object, whatever its format: batches of columns, what is counted over them, and why it could not be read.
//!
//! Nothing here knows identifiers. Invariant: the reason of a [`Fault`] never quotes a cell.

use std::sync::Arc;

use polars::prelude::*;

use crate::error::Exit;
use crate::identifier::ColumnPath;
use crate::page_bytes::Malformed;
use crate::residue::{Bound, ChunkId, Residues, SeenChunks};
use crate::store::StoreError;
use crate::verify_bytes::Listed;

/// Why an object could not be checked. The reason never quotes a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub exit: Exit,
    pub reason: String,
}

impl Fault {
    pub fn unreadable(reason: impl Into<String>) -> Fault {
        Fault { exit: Exit::Incomplete, reason: reason.into() }
    }

    /// A panic of a decoder, or the end of the runtime.
    pub fn from_join(error: &tokio::task::JoinError) -> Fault {
        let why = if error.is_panic() { "a decoder gave up on its content" } else { "the run was stopped" };
        Fault::unreadable(why)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault { exit: error.exit(), reason: error.to_string() }
    }
}

impl From<Malformed> for Fault {
    fn from(error: Malformed) -> Self {
        Fault::unreadable(error.0)
    }
}

impl From<PolarsError> for Fault {
    /// Polars' messages may quote cells: only what stands before the first quotation mark or line end is kept, and nothing of the
    /// errors that are about values.
    fn from(error: PolarsError) -> Fault {
        let about_values = matches!(error, PolarsError::InvalidOperation(_) | PolarsError::SchemaMismatch(_));
        let text = if about_values { String::new() } else { error.to_string() };
        let cut = text.split(['"', '\'', '`', '\n']).next().unwrap_or("").trim();
        let short: String = cut.chars().take(120).collect();
        Fault::unreadable(if short.is_empty() {
            "cannot be decoded".to_owned()
        } else {
            format!("cannot be decoded: {short}")
        })
    }
}

/// Which element of each list around it a value stands in, outermost first: how many names of the column's path lead to the list,
/// and a number that the element has alone among those of its nesting.
pub type Element = Vec<(usize, u32)>;

/// Values of one column. A list column has several a row or none.
pub struct Leaf {
    /// The row of each value; `None`: one value a row, in order.
    pub rows: Option<Vec<u32>>,
    /// By value; `None`: no value stands in a list.
    pub elements: Option<Vec<Element>>,
    pub values: Series,
}

impl Leaf {
    /// One value a row.
    pub fn flat(values: Series) -> Leaf {
        Leaf { rows: None, elements: None, values }
    }

    pub fn element(&self, index: usize) -> Element {
        self.elements.as_ref().map(|elements| elements[index].clone()).unwrap_or_default()
    }

    pub fn row(&self, index: usize) -> u32 {
        match &self.rows {
            Some(rows) => rows[index],
            None => index as u32,
        }
    }
}

/// Some rows of an object. `columns` are those asked for, in that order; one that the object lacks has no leaves.
#[derive(Default)]
pub struct Batch {
    pub rows: usize,
    pub columns: Vec<Vec<Leaf>>,
    /// Every other column of text, when they are looked at, too.
    pub others: Vec<(ColumnPath, Leaf)>,
}

/// What was counted over the batches of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub rows: u64,
    pub rows_matched: u64,
    /// By column asked for.
    pub not_comparable: Vec<u64>,
    /// What was found beside the rows.
    pub residues: Residues,
    /// Cut bounds that no value explains.
    pub cut: Vec<CutBound>,
}

/// A bound that is the head of a value that is gone.
#[derive(Clone, PartialEq, Eq)]
pub struct CutBound {
    pub column: usize,
    pub chunk: ChunkId,
    pub bound: Bound,
}

/// It may be the head of an identifier.
impl std::fmt::Debug for CutBound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CutBound({:?})", self.chunk)
    }
}

impl Tally {
    /// Adds the rows that come next.
    pub fn follow(&mut self, mut next: Tally) {
        next.residues.count_rows_from(self.rows);
        self.add(&next);
    }

    pub fn add(&mut self, other: &Tally) {
        self.residues.merge(&other.residues);
        self.cut.extend(other.cut.iter().cloned());
        self.rows += other.rows;
        self.rows_matched += other.rows_matched;
        self.not_comparable.resize(self.not_comparable.len().max(other.not_comparable.len()), 0);
        for (sum, count) in self.not_comparable.iter_mut().zip(&other.not_comparable) {
            *sum += count;
        }
    }
}

/// What is done with each batch. Batches come in any order and at the same time.
pub type Work = Arc<dyn Fn(&Batch) -> PolarsResult<Tally> + Send + Sync>;

/// What an object is looked at for.
#[derive(Clone, Default)]
pub struct Look {
    /// Its rows. Without, they are decoded only where the bytes cannot be judged alone.
    pub rows: Option<Work>,
    /// What its bytes hold beside them.
    pub bytes: Option<Arc<dyn Listed>>,
    /// Rows come with the columns of text that were not asked for.
    pub others: bool,
    /// Chunks whose pages need no second look.
    pub seen: Option<Arc<SeenChunks>>,
}

/// What came of an object that could be read to its end.
#[derive(Debug, Default)]
pub struct Scanned {
    pub tally: Tally,
    /// The columns asked for that are not there.
    pub missing: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_decoder_fails_the_object_alone() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let joined = runtime.block_on(async { tokio::task::spawn_blocking(|| panic!("anna@example.com")).await });
        assert_eq!(Fault::from_join(&joined.unwrap_err()).reason, "a decoder gave up on its content");
    }

    #[test]
    fn polars_messages_lose_what_they_quote() {
        let quoting = PolarsError::ComputeError("could not parse `anna@example.com` as dtype".into());
        assert_eq!(Fault::from(quoting).reason, "cannot be decoded: could not parse");
        let about_values = PolarsError::InvalidOperation("conversion failed for anna@example.com".into());
        assert_eq!(Fault::from(about_values).reason, "cannot be decoded");
    }
}
