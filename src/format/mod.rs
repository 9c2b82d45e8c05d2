//! What an object holds: one file per format, each able to rewrite an object without some of its rows and to read the result back.

pub mod compression;
pub mod csv;
pub mod csv_runs;
pub mod kept;
pub mod ndjson;
pub mod parquet;
pub mod parquet_chunk;
pub mod parquet_codec;
pub mod parquet_column;
pub mod parquet_cut;
pub mod parquet_dictionary;
pub mod parquet_filled;
pub mod parquet_filler;
pub mod parquet_layout;
pub mod parquet_packed;
pub mod parquet_page;
pub mod parquet_pages;
pub mod parquet_statistics;
pub mod parquet_v1;
pub mod records;

use std::collections::BTreeMap;
use std::io;

use roaring::RoaringTreemap;

use crate::action::Action;
use crate::identifier::ColumnPath;
use crate::residue::Cleanse;
use crate::store::{ObjectReader, Sink, StoreError, store_error};

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
    /// What goes beside rows.
    pub cleanse: &'a Cleanse,
}

/// Makes what stands in a redacted cell.
pub trait Tagger: Send + Sync {
    /// `value` is the cell's text or bytes.
    fn tag(&self, column: &ColumnPath, value: &[u8]) -> String;

    /// The text of a cell that no rule reads without the listed identifiers that strayed into it; `None`: it holds none.
    fn without_strays(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// What a rewrite counted, and what a read-back must find again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    pub rows_before: u64,
    pub rows_removed: u64,
    pub rows_redacted: u64,
    pub rows_after: u64,
    /// Cells of kept rows in which a stray identifier was replaced, by column.
    pub strays_redacted: BTreeMap<ColumnPath, u64>,
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

/// How an object is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    pub format: Format,
    pub compression: Compression,
}

/// What a rewrite proved by, to be compared on read-back.
#[derive(Debug, Clone)]
pub enum Proof {
    Parquet(parquet::ParquetReceipt),
    Records(kept::RecordsReceipt),
}

impl Proof {
    pub fn receipt(&self) -> &Receipt {
        match self {
            Proof::Parquet(receipt) => &receipt.counts,
            Proof::Records(receipt) => &receipt.counts,
        }
    }
}

/// Writes the object without some of its rows, or with redacted cells. Blocks.
pub fn rewrite(
    encoded: Encoded,
    dialect: &CsvDialect,
    source: &ObjectReader,
    edit: &Edit<'_>,
    out: &mut dyn Sink,
) -> Result<Proof, FormatError> {
    match encoded.format {
        Format::Parquet => parquet::rewrite(source, edit, out).map(Proof::Parquet),
        format @ (Format::Csv | Format::Tsv | Format::Ndjson) => {
            records::rewrite(format, dialect, source.read_from(0), edit, out).map(Proof::Records)
        }
    }
}

/// Opens the new object and compares it with what was kept, by so many threads at most. Blocks.
pub fn read_back(
    encoded: Encoded,
    dialect: &CsvDialect,
    new: &ObjectReader,
    proof: &Proof,
    threads: usize,
) -> Result<(), FormatError> {
    match proof {
        Proof::Parquet(receipt) => parquet::read_back(new, receipt),
        Proof::Records(receipt) => kept::read_back(encoded.format, dialect, new, receipt, threads),
    }
}
