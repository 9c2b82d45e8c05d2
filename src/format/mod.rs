//! What an object holds: one file per format, each able to rewrite an object without some of its rows and to read the result back.

pub mod parquet;
pub mod records;

use std::io;

use roaring::RoaringTreemap;

use crate::action::Action;
use crate::identifier::ColumnPath;
use crate::store::{StoreError, store_error};

/// The format of a dataset's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Parquet,
    Csv,
    Tsv,
    Ndjson,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::Ndjson => "ndjson",
        }
    }
}

/// How the bytes of a record file are compressed, told by the name and checked by the magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What `[dataset.csv]` and `[list.csv]` say about a delimited file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvDialect {
    /// `None`: a comma in `csv`, a tab in `tsv`.
    pub delimiter: Option<u8>,
    pub quote: u8,
    /// Whether the first record names the columns; without one they are called `1`, `2`, ...
    pub header: bool,
    /// Cells that mean null, next to the empty one. The first is written when a cell is redacted to null.
    pub null_strings: Vec<String>,
}

impl Default for CsvDialect {
    fn default() -> Self {
        CsvDialect { delimiter: None, quote: b'"', header: true, null_strings: Vec::new() }
    }
}

/// What is to happen to one object: the rows (0-based, counted over the whole object, the CSV header not among them) and the action on them.
#[derive(Clone, Copy)]
pub struct Edit<'a> {
    pub rows: &'a RoaringTreemap,
    pub action: &'a Action,
    pub tagger: &'a dyn Tagger,
}

/// Makes the keyed tag that stands in a redacted cell.
pub trait Tagger: Send + Sync {
    /// `value` is the cell's text or bytes.
    fn tag(&self, column: &ColumnPath, value: &[u8]) -> String;
}

/// What a rewrite counted, and what a read-back must find again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub rows_before: u64,
    pub rows_removed: u64,
    pub rows_redacted: u64,
    pub rows_after: u64,
    /// How the kept content was proven: one order-sensitive digest a column (Parquet, in schema order) or one over the kept
    /// records' bytes (CSV, NDJSON). Never leaves the process: digests of columns with few values can be guessed.
    pub digests: Vec<u128>,
}

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes are not what the format says they should be. The reason never quotes a cell.
    #[error("cannot be decoded: {0}")]
    Corrupt(String),
    /// Readable in principle, but not by us or not without harm.
    #[error("is not supported: {0}")]
    Unsupported(String),
    /// What was read back is not what was written.
    #[error("differs after the rewrite: {0}")]
    Mismatch(String),
}

impl FormatError {
    /// Sorts an I/O error into what the store said and what the bytes said.
    pub fn from_io(error: io::Error) -> FormatError {
        match store_error(&error) {
            Some(found) => FormatError::Store(found.clone()),
            None => FormatError::Corrupt(scrubbed(&error.kind().to_string())),
        }
    }
}

/// Keeps a library's message out of reach of cells: only the part before the first quote, colon-free and at most 120 characters long.
pub fn scrubbed(message: &str) -> String {
    message.split(['"', '\'', '`', '\n']).next().unwrap_or("").chars().take(120).collect()
}

// ---- stub until the formats are merged
#[derive(Debug, Clone, Copy)]
pub struct Encoded { pub format: Format, pub compression: Compression }
#[derive(Debug, Clone)]
pub struct Proof(Receipt);
impl Proof { pub fn receipt(&self) -> &Receipt { &self.0 } }
pub fn rewrite(_: Encoded, _: &CsvDialect, _: &crate::store::ObjectReader, _: &Edit<'_>, _: &mut (dyn io::Write + Send)) -> Result<Proof, FormatError> { Err(FormatError::Unsupported("stub".into())) }
pub fn read_back(_: Encoded, _: &CsvDialect, _: &crate::store::ObjectReader, _: &crate::store::ObjectReader, _: &Proof) -> Result<(), FormatError> { Err(FormatError::Unsupported("stub".into())) }
