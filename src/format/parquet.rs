//! The surgical rewrite of a Parquet file: row groups that lose nothing are copied as bytes; of the others, the pages that lose
//! nothing (`parquet_pages`), or where that is not certain to be right, chunks are encoded anew (`parquet_chunk`). The footer is
//! written by us, so that nothing in it is lost or invented.
//!
//! Nothing of a removed row survives (invariant 11): dictionaries, statistics, bloom filters and page indexes of a changed
//! chunk show the kept rows alone; bytes between chunks and the key-value metadata of columns are not copied. A chunk may
//! be encoded anew for that alone, without a row that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use parquet::basic::Type as PhysicalType;
use parquet::bloom_filter::Sbbf;
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ColumnChunkMetaData, ColumnChunkMetaDataBuilder, FileMetaData, KeyValue, PageIndexPolicy, ParquetMetaData,
    ParquetMetaDataBuilder, ParquetMetaDataOptions, ParquetMetaDataReader, ParquetMetaDataWriter, RowGroupMetaData,
};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::writer::TrackedWrite;
use parquet::schema::types::{SchemaDescriptor, Type};
use rayon::prelude::*;
use roaring::RoaringTreemap;
use xxhash_rust::xxh3::Xxh3;

use super::parquet_chunk::{Change, Chunk, Clean, ColumnProof, Encoded};
use super::parquet_column::resolve;
use super::parquet_pages::{self, copy_pages};
use super::{Edit, FormatError, Receipt, scrubbed};
use crate::action::{Action, Redact, Redaction};
use crate::identifier::ColumnPath;
use crate::parquet_bounds;
use crate::store::{InMemory, Sink, store_error};

/// What a rewrite counted, and what the file that it wrote must hold.
#[derive(Debug, Clone)]
pub struct ParquetReceipt {
    pub counts: Receipt,
    schema: Type,
    key_values: Option<Vec<KeyValue>>,
    groups: Vec<GroupProof>,
    /// Of the bytes after the row groups: where they begin, and their digest.
    tail: (u64, u128),
}

#[derive(Debug, Clone)]
struct GroupProof {
    rows: u64,
    columns: Vec<ColumnProof>,
}

/// Re-encoded row groups up to this many compressed bytes are encoded column by column in parallel, in memory; larger ones one
/// column after the other, straight into the output.
const PARALLEL_BYTES: i64 = 128 << 20;
const COPY_BYTES: u64 = 4 << 20;
const MAGIC: &[u8] = b"PAR1";

/// Writes `source` to `out` without the removed rows, or with redacted cells.
pub fn rewrite<R>(source: &R, edit: &Edit<'_>, out: &mut dyn Sink) -> Result<ParquetReceipt, FormatError>
where
    R: ChunkReader + Clone + 'static,
{
    guarded(|| {
        let (metadata, footer) = read_footer(source)?;
        let mut rewrite = Rewrite::new(source, &metadata, edit, &mut *out)?;
        // No reader looks at the first bytes: that they are these is to be seen before it is told.
        if source.get_bytes(0, MAGIC.len()).map_err(parquet_error)? == MAGIC {
            rewrite.out.inner_mut().taken_over(0, 0..MAGIC.len() as u64);
        }
        rewrite.out.write_all(MAGIC).map_err(FormatError::from_io)?;
        let mut first_row = 0;
        for number in 0..metadata.num_row_groups() {
            let rows = metadata.row_group(number).num_rows() as u64;
            rewrite.row_group(number, first_row..first_row + rows)?;
            first_row += rows;
        }
        if edit.rows.max().is_some_and(|last| last >= first_row) {
            return Err(FormatError::Corrupt("fewer rows than the scan saw".to_owned()));
        }
        let (mut receipt, Tail { seen, withheld }) = rewrite.finish(first_row)?;
        let rest = with_schema_of(&footer, withheld.unwrap_or_default()).map_err(corrupt)?;
        out.write_all(&rest).map_err(FormatError::from_io)?;
        let mut seen = seen.unwrap_or_default();
        seen.update(&rest);
        receipt.tail.1 = seen.digest128();
        Ok(receipt)
    })
}

/// Opens the new file and compares it with what was kept: schema, key-value metadata, row counts, every column; and with what was
/// written behind the columns: bloom filters, page indexes and footer.
pub fn read_back<R>(new: &R, receipt: &ParquetReceipt) -> Result<(), FormatError>
where
    R: ChunkReader + Clone + 'static,
{
    let differs = |what: &str| Err(FormatError::Mismatch(what.to_owned()));
    guarded(|| {
        let (metadata, _) = read_footer(new)?;
        let file = metadata.file_metadata();
        if file.schema() != &receipt.schema {
            return differs("the schema");
        }
        if file.key_value_metadata() != receipt.key_values.as_ref() {
            return differs("the key-value metadata");
        }
        if file.num_rows() as u64 != receipt.counts.rows_after || metadata.num_row_groups() != receipt.groups.len() {
            return differs("the number of rows or row groups");
        }
        for (number, proof) in receipt.groups.iter().enumerate() {
            let group = metadata.row_group(number);
            if group.num_rows() as u64 != proof.rows || group.num_columns() != proof.columns.len() {
                return differs("the rows or columns of a row group");
            }
            let columns = group.columns().par_iter().zip(&proof.columns);
            let wrong = columns.map(|(column, proof)| column_differs(new, column, proof, group.num_rows() as u64));
            if wrong.collect::<Result<Vec<bool>, FormatError>>()?.contains(&true) {
                return differs("the values of a column");
            }
        }
        let (start, wanted) = receipt.tail;
        if start > new.len() || digest(new, start..new.len())? != wanted {
            return differs("what follows the columns");
        }
        Ok(())
    })
}

/// Whether the cells of an action's columns can be redacted in a file of this schema.
fn redacted_leaves(schema: &SchemaDescriptor, columns: &[Redact]) -> Result<Vec<(usize, Redact)>, FormatError> {
    let leaf = |redact: &Redact| {
        let leaf = resolve(schema, &redact.column)
            .map_err(|error| FormatError::Unsupported(format!("redaction, because it {error}")))?;
        let unfit = match redact.with {
            Redaction::Null if !schema.column(leaf).self_type().is_optional() => {
                Some("is required, so it cannot become null")
            }
            Redaction::Tag if schema.column(leaf).physical_type() != PhysicalType::BYTE_ARRAY => {
                Some("holds no text, so it cannot become a tag")
            }
            Redaction::Null | Redaction::Tag | Redaction::Constant(_) => None,
        };
        match unfit {
            Some(why) => Err(FormatError::Unsupported(format!("redaction, because column {} {why}", redact.column))),
            None => Ok((leaf, redact.clone())),
        }
    };
    columns.iter().map(leaf).collect()
}

fn column_differs<R>(new: &R, column: &ColumnChunkMetaData, proof: &ColumnProof, rows: u64) -> Result<bool, FormatError>
where
    R: ChunkReader + Clone + 'static,
{
    let chunk = Chunk { source: new, column, rows, offset_index: None, column_index: None };
    Ok(match proof {
        ColumnProof::Bytes(wanted) => digest(new, range(column))? != *wanted,
        ColumnProof::Values(wanted) => chunk.digest().map_err(parquet_error)? != (*wanted, rows),
        ColumnProof::Pages(wanted) => parquet_pages::differ(&chunk, wanted).map_err(parquet_error)?,
    })
}

/// Decoders of strange bytes may panic; that is then a corrupt file, not the end of the run.
fn guarded<T>(work: impl FnOnce() -> Result<T, FormatError>) -> Result<T, FormatError> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(FormatError::Corrupt("the decoder panicked".to_owned())))
}

fn parquet_error(error: ParquetError) -> FormatError {
    if let Some(found) = store_error(&error) {
        return FormatError::Store(found.clone());
    }
    match error {
        ParquetError::NYI(reason) => FormatError::Unsupported(scrubbed(&reason)),
        other => FormatError::Corrupt(scrubbed(&other.to_string())),
    }
}

fn corrupt(reason: &str) -> FormatError {
    FormatError::Corrupt(reason.to_owned())
}

/// The footer with page indexes and full encoding statistics, checked against the size of the object; and its bytes.
fn read_footer<R: ChunkReader>(source: &R) -> Result<(ParquetMetaData, Bytes), FormatError> {
    let footer = footer_bytes(source)?;
    let metadata = ParquetMetaDataReader::new()
        .with_metadata_options(Some(ParquetMetaDataOptions::new().with_encoding_stats_as_mask(false)))
        .with_page_index_policy(PageIndexPolicy::Skip)
        .parse_and_finish(source)
        .map_err(parquet_error)?;
    let mut rows: i64 = 0;
    for group in metadata.row_groups() {
        if group.num_rows() < 0 {
            return Err(corrupt("a negative row count"));
        }
        rows = rows.checked_add(group.num_rows()).ok_or_else(|| corrupt("the row counts overflow"))?;
        for column in group.columns() {
            check_column(column, group.num_rows(), source.len())?;
        }
    }
    if rows != metadata.file_metadata().num_rows() {
        return Err(corrupt("the row groups do not add up to the file's row count"));
    }
    Ok((with_page_index(source, metadata).map_err(parquet_error)?, footer))
}

/// What was written from the page indexes on, with the schema as the source spells it: the crate adds the old sort of types wherever it
/// knows a new one, and where times are local it says something else.
fn with_schema_of(source: &[u8], mut written: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    const TOO_SHORT: &str = "a footer longer than what was written";
    let end = written.len().checked_sub(8).ok_or(TOO_SHORT)?;
    let start = written.len().checked_sub(parquet_bounds::footer_bytes(&written[end..]) as usize).ok_or(TOO_SHORT)?;
    let (old, new) = (parquet_bounds::schema_span(source)?, parquet_bounds::schema_span(&written[start..end])?);
    let length = u32::try_from(end - start - new.len() + old.len()).map_err(|_| "a footer too large")?;
    written[end..end + 4].copy_from_slice(&length.to_le_bytes());
    written.splice(start + new.start..start + new.end, source[old].iter().copied());
    Ok(written)
}

/// Row groups without rows have no page index, and the crate takes that for a file without one. So it is not shown them.
fn with_page_index<R: ChunkReader>(source: &R, metadata: ParquetMetaData) -> Result<ParquetMetaData, ParquetError> {
    let read = |shown: ParquetMetaData| {
        let mut reader =
            ParquetMetaDataReader::new_with_metadata(shown).with_page_index_policy(PageIndexPolicy::Optional);
        reader.read_page_indexes(source)?;
        reader.finish()
    };
    let has_rows: Vec<bool> = metadata.row_groups().iter().map(|group| group.num_rows() > 0).collect();
    if !has_rows.contains(&false) {
        return read(metadata);
    }
    let groups = metadata.row_groups().iter().filter(|group| group.num_rows() > 0).cloned().collect();
    let shown = read(metadata.clone().into_builder().set_row_groups(groups).build())?;
    fn by_group<T: Clone>(index: Option<&Vec<Vec<T>>>, has_rows: &[bool]) -> Option<Vec<Vec<T>>> {
        let mut index = index?.iter();
        Some(
            has_rows
                .iter()
                .map(|has| if *has { index.next().cloned().unwrap_or_default() } else { Vec::new() })
                .collect(),
        )
    }
    let (columns, offsets) = (by_group(shown.column_index(), &has_rows), by_group(shown.offset_index(), &has_rows));
    Ok(metadata.into_builder().set_column_index(columns).set_offset_index(offsets).build())
}

/// Looked over before a decoder takes it at its word.
fn footer_bytes<R: ChunkReader>(source: &R) -> Result<Bytes, FormatError> {
    let too_short = || corrupt("a footer longer than the file");
    let end = source.len().checked_sub(8).ok_or_else(too_short)?;
    let length = parquet_bounds::footer_bytes(&source.get_bytes(end, 8).map_err(parquet_error)?);
    let start = source.len().checked_sub(length).ok_or_else(too_short)?;
    let footer = source.get_bytes(start, (end - start) as usize).map_err(parquet_error)?;
    parquet_bounds::check_footer(&footer).map_err(|why| corrupt(&format!("the footer: {why}")))?;
    Ok(footer)
}

fn check_column(column: &ColumnChunkMetaData, rows: i64, size: u64) -> Result<(), FormatError> {
    if column.file_path().is_some() {
        return Err(FormatError::Unsupported("a column chunk in another file".to_owned()));
    }
    if column.crypto_metadata().is_some() {
        return Err(FormatError::Unsupported("an encrypted column".to_owned()));
    }
    // Nothing is read of a chunk without rows, and some writers say of it that it stands nowhere.
    if rows == 0 {
        return Ok(());
    }
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let end = start.checked_add(column.compressed_size());
    let inside = start >= 4 && column.compressed_size() >= 0 && end.is_some_and(|end| end as u64 <= size);
    if inside { Ok(()) } else { Err(corrupt("a column chunk outside the file")) }
}

fn range(column: &ColumnChunkMetaData) -> Range<u64> {
    let (start, length) = column.byte_range();
    start..start + length
}

/// Passes the bytes of `range` on in bounded pieces.
fn copy<R: ChunkReader>(
    source: &R,
    range: Range<u64>,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), FormatError> {
    let mut at = range.start;
    while at < range.end {
        let length = COPY_BYTES.min(range.end - at);
        let piece = source.get_bytes(at, length as usize).map_err(parquet_error)?;
        each(&piece).map_err(FormatError::from_io)?;
        at += length;
    }
    Ok(())
}

fn digest<R: ChunkReader>(source: &R, range: Range<u64>) -> Result<u128, FormatError> {
    let mut hasher = Xxh3::new();
    copy(source, range, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    Ok(hasher.digest128())
}

/// Where a rewrite writes to.
struct Output<'w> {
    out: &'w mut dyn Sink,
    tail: Arc<Mutex<Tail>>,
}

/// What is written once the row groups are.
#[derive(Default)]
struct Tail {
    seen: Option<Xxh3>,
    /// From the page indexes on, it waits here.
    withheld: Option<Vec<u8>>,
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut tail = self.tail.lock().unwrap_or_else(|broken| broken.into_inner());
        if let Some(withheld) = &mut tail.withheld {
            withheld.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let written = self.out.write(bytes)?;
        if let Some(seen) = &mut tail.seen {
            seen.update(&bytes[..written]);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Sink for Output<'_> {
    fn taken_over(&mut self, at: u64, source: Range<u64>) {
        self.out.taken_over(at, source);
    }
}

/// A column in which stray identifiers are replaced, and in how many cells they were.
struct Strayed<'a> {
    column: &'a ColumnPath,
    cells: AtomicU64,
}

/// What a rewrite reads.
struct Input<'a, R> {
    source: &'a R,
    metadata: &'a ParquetMetaData,
    edit: &'a Edit<'a>,
    /// By leaf, with `Action::Redact`.
    redactions: Vec<(usize, Redact)>,
    /// By group and leaf: encoded anew though no row of theirs changes.
    cleansed: BTreeSet<(usize, usize)>,
    /// Leaves in whose cells identifiers may have strayed, in any group.
    strayed: BTreeMap<usize, Strayed<'a>>,
    /// What is kept of the file's key-value metadata.
    key_values: Option<Vec<KeyValue>>,
}

/// A rewrite on its way: what has been written, and the footer that will describe it.
struct Rewrite<'a, 'w, R> {
    input: Input<'a, R>,
    out: TrackedWrite<Output<'w>>,
    tail: Arc<Mutex<Tail>>,
    groups: Vec<RowGroupMetaData>,
    column_indexes: Vec<Vec<ColumnIndexMetaData>>,
    offset_indexes: Vec<Vec<OffsetIndexMetaData>>,
    /// By group, by column: written after the last row group.
    bloom_filters: Vec<Vec<Option<Sbbf>>>,
    proofs: Vec<GroupProof>,
    rows_removed: u64,
    rows_redacted: u64,
}

/// A chunk as it now stands in the output.
struct Placed {
    column: ColumnChunkMetaData,
    column_index: ColumnIndexMetaData,
    offset_index: Option<OffsetIndexMetaData>,
    bloom_filter: Option<Sbbf>,
    proof: ColumnProof,
}

impl<'a, 'w, R: ChunkReader + Clone + 'static> Rewrite<'a, 'w, R> {
    fn new(
        source: &'a R,
        metadata: &'a ParquetMetaData,
        edit: &'a Edit<'a>,
        out: &'w mut dyn Sink,
    ) -> Result<Self, FormatError> {
        let redactions = match edit.action {
            Action::Delete => Vec::new(),
            Action::Redact(columns) => redacted_leaves(metadata.file_metadata().schema_descr(), columns)?,
        };
        let schema = metadata.file_metadata().schema_descr();
        let cleansed = edit.cleanse.chunks.iter().map(|(group, column)| {
            let leaf = resolve(schema, column);
            leaf.map(|leaf| (*group, leaf))
                .map_err(|error| FormatError::Unsupported(format!("cleansing, because it {error}")))
        });
        let cleansed = cleansed.collect::<Result<_, _>>()?;
        let strayed = edit.cleanse.strays.iter().map(|column| {
            resolve(schema, column)
                .map(|leaf| (leaf, Strayed { column, cells: AtomicU64::new(0) }))
                .map_err(|error| FormatError::Unsupported(format!("redaction, because it {error}")))
        });
        let strayed = strayed.collect::<Result<_, _>>()?;
        let key_values = kept_key_values(metadata, edit);
        let tail = Arc::default();
        Ok(Rewrite {
            input: Input { source, metadata, edit, redactions, cleansed, strayed, key_values },
            out: TrackedWrite::new(Output { out, tail: Arc::clone(&tail) }),
            tail,
            groups: Vec::new(),
            column_indexes: Vec::new(),
            offset_indexes: Vec::new(),
            bloom_filters: Vec::new(),
            proofs: Vec::new(),
            rows_removed: 0,
            rows_redacted: 0,
        })
    }

    /// Row group `number`, whose rows are `span` of the file.
    fn row_group(&mut self, number: usize, span: Range<u64>) -> Result<(), FormatError> {
        let mut rows = RoaringTreemap::new();
        let mut matched = self.input.edit.rows.iter();
        matched.advance_to(span.start);
        rows.extend(matched.take_while(|row| *row < span.end).map(|row| row - span.start));
        let group_rows = span.end - span.start;
        let kept = match self.input.edit.action {
            Action::Delete => {
                self.rows_removed += rows.len();
                group_rows - rows.len()
            }
            Action::Redact(_) => {
                self.rows_redacted += rows.len();
                group_rows
            }
        };
        if kept == 0 {
            return Ok(());
        }
        let group = self.input.metadata.row_group(number);
        let loses = |leaf: usize| match self.input.edit.action {
            Action::Delete => !rows.is_empty(),
            Action::Redact(_) => !rows.is_empty() && self.input.redacts(leaf),
        };
        let cleansed =
            |leaf: usize| self.input.cleansed.contains(&(number, leaf)) || self.input.strayed.contains_key(&leaf);
        let touched = |leaf: usize| loses(leaf) || cleansed(leaf);
        let touched: Vec<bool> = (0..group.num_columns()).map(touched).collect();
        let start = self.out.bytes_written() as i64;
        let placed = self.place_columns(number, &rows, &touched)?;
        let sorted_by_redacted = group.sorting_columns().is_some_and(|columns| {
            self.input
                .redactions
                .iter()
                .any(|(leaf, _)| touched[*leaf] && columns.iter().any(|sorting| sorting.column_idx == *leaf as i32))
        });
        let columns: Vec<_> = placed.iter().map(|placed| placed.column.clone()).collect();
        let mut builder = RowGroupMetaData::builder(self.input.metadata.file_metadata().schema_descr_ptr())
            .set_num_rows(kept as i64)
            .set_total_byte_size(columns.iter().map(ColumnChunkMetaData::uncompressed_size).sum())
            .set_sorting_columns(group.sorting_columns().filter(|_| !sorted_by_redacted).cloned())
            .set_column_metadata(columns);
        if group.ordinal().is_some() {
            builder = builder.set_ordinal(i16::try_from(self.groups.len()).unwrap_or(i16::MAX));
        }
        if group.file_offset().is_some() {
            builder = builder.set_file_offset(start);
        }
        self.groups.push(builder.build().map_err(parquet_error)?);
        self.proofs
            .push(GroupProof { rows: kept, columns: placed.iter().map(|placed| placed.proof.clone()).collect() });
        let (mut column_indexes, mut offset_indexes, mut bloom_filters) = (Vec::new(), Vec::new(), Vec::new());
        for placed in placed {
            column_indexes.push(placed.column_index);
            offset_indexes.extend(placed.offset_index);
            bloom_filters.push(placed.bloom_filter);
        }
        self.column_indexes.push(column_indexes);
        self.offset_indexes.push(offset_indexes);
        self.bloom_filters.push(bloom_filters);
        Ok(())
    }

    fn place_columns(
        &mut self,
        number: usize,
        rows: &RoaringTreemap,
        touched: &[bool],
    ) -> Result<Vec<Placed>, FormatError> {
        let group = self.input.metadata.row_group(number);
        let in_memory = group.columns().iter().map(ColumnChunkMetaData::compressed_size).sum::<i64>() <= PARALLEL_BYTES;
        let mut encoded: Vec<Option<(InMemory, Encoded)>> = if in_memory {
            let input = &self.input;
            let encode = |leaf: usize| -> Result<_, FormatError> {
                if !touched[leaf] {
                    return Ok(None);
                }
                let mut out = TrackedWrite::new(InMemory::default());
                let encoded = input.encode(number, leaf, rows, &mut out)?;
                Ok(Some((out.into_inner().map_err(parquet_error)?, encoded)))
            };
            (0..touched.len()).into_par_iter().map(encode).collect::<Result<_, _>>()?
        } else {
            touched.iter().map(|_| None).collect()
        };
        let mut placed = Vec::with_capacity(touched.len());
        for (leaf, touched) in touched.iter().enumerate() {
            placed.push(match (touched, encoded[leaf].take()) {
                (false, _) => self.copy_column(number, leaf)?,
                (true, Some((InMemory { bytes, taken }, encoded))) => {
                    let shift = self.out.bytes_written() as i64;
                    let out = self.out.inner_mut();
                    taken.into_iter().for_each(|(at, source)| out.taken_over(shift as u64 + at, source));
                    self.out.write_all(&bytes).map_err(FormatError::from_io)?;
                    placed_anew(encoded, shift)?
                }
                // Written straight through: its offsets are those of the output already.
                (true, None) => placed_anew(self.input.encode(number, leaf, rows, &mut self.out)?, 0)?,
            });
        }
        Ok(placed)
    }

    /// Copies a chunk that loses nothing, byte for byte.
    fn copy_column(&mut self, number: usize, leaf: usize) -> Result<Placed, FormatError> {
        let Input { source, metadata, .. } = self.input;
        let column = metadata.row_group(number).column(leaf);
        let shift = self.out.bytes_written() as i64 - range(column).start as i64;
        let (out, mut hasher) = (&mut self.out, Xxh3::new());
        let start = out.bytes_written() as u64;
        out.inner_mut().taken_over(start, range(column));
        copy(source, range(column), |piece| {
            hasher.update(piece);
            out.write_all(piece)
        })?;
        // Without column orders readers ignore min and max of unsigned and text columns, which may be wrong; our footer has
        // orders, so such bounds must go instead of becoming trusted.
        let trusted = metadata.file_metadata().column_orders().is_some();
        let column_index = metadata.column_index().filter(|_| trusted).map(|index| index[number][leaf].clone());
        let offset_index = metadata.offset_index().map(|index| {
            let mut index = index[number][leaf].clone();
            index.page_locations.iter_mut().for_each(|page| page.offset += shift);
            index
        });
        let mut builder = moved(column, shift);
        if !trusted {
            builder = builder.clear_statistics();
        }
        Ok(Placed {
            column: builder.build().map_err(parquet_error)?,
            column_index: column_index.unwrap_or(ColumnIndexMetaData::NONE),
            offset_index,
            bloom_filter: Sbbf::read_from_column_chunk(column, source).map_err(parquet_error)?,
            proof: ColumnProof::Bytes(hasher.digest128()),
        })
    }

    /// Bloom filters, page indexes and the footer, of which the two latter are withheld.
    fn finish(mut self, rows_before: u64) -> Result<(ParquetReceipt, Tail), FormatError> {
        self.out.flush().map_err(FormatError::from_io)?;
        let tail_start = self.out.bytes_written() as u64;
        self.tail.lock().unwrap_or_else(|broken| broken.into_inner()).seen = Some(Xxh3::new());
        for (group, filters) in self.bloom_filters.iter().enumerate() {
            let mut columns = self.groups[group].columns().to_vec();
            for (leaf, filter) in filters.iter().enumerate() {
                let Some(filter) = filter else { continue };
                let start = self.out.bytes_written();
                filter.write(&mut self.out).map_err(parquet_error)?;
                let length =
                    i32::try_from(self.out.bytes_written() - start).map_err(|_| corrupt("a bloom filter too large"))?;
                columns[leaf] = columns[leaf]
                    .clone()
                    .into_builder()
                    .set_bloom_filter_offset(Some(start as i64))
                    .set_bloom_filter_length(Some(length))
                    .build()
                    .map_err(parquet_error)?;
            }
            let with_filters = self.groups[group].clone().into_builder().set_column_metadata(columns).build();
            self.groups[group] = with_filters.map_err(parquet_error)?;
        }
        let rows_after = rows_before - self.rows_removed;
        let strays = self.input.strayed.values().map(|it| (it.column.clone(), it.cells.load(Ordering::Relaxed)));
        let strays_redacted = strays.filter(|(_, cells)| *cells > 0).collect();
        let source = self.input.metadata.file_metadata();
        let file = FileMetaData::new(
            source.version(),
            rows_after as i64,
            source.created_by().map(str::to_owned),
            self.input.key_values.clone(),
            source.schema_descr_ptr(),
            source.column_orders().cloned(),
        );
        // The page index is all or nothing for the crate's writer: a file without one for every chunk goes without.
        let whole =
            self.groups.iter().zip(&self.offset_indexes).all(|(group, indexes)| group.num_columns() == indexes.len());
        let indexed = whole && self.input.metadata.offset_index().is_some();
        let any_bounds = self.column_indexes.iter().flatten().any(|index| !matches!(index, ColumnIndexMetaData::NONE));
        let footer = ParquetMetaDataBuilder::new(file)
            .set_row_groups(self.groups)
            .set_column_index((indexed && any_bounds).then_some(self.column_indexes))
            .set_offset_index(indexed.then_some(self.offset_indexes))
            .build();
        self.out.flush().map_err(FormatError::from_io)?;
        self.tail.lock().unwrap_or_else(|broken| broken.into_inner()).withheld = Some(Vec::new());
        // Dropped with its buffer written, which the tail waits for.
        ParquetMetaDataWriter::new_with_tracked(self.out, &footer).finish().map_err(parquet_error)?;
        let tail = std::mem::take(&mut *self.tail.lock().unwrap_or_else(|broken| broken.into_inner()));
        let receipt = ParquetReceipt {
            counts: Receipt {
                rows_before,
                rows_removed: self.rows_removed,
                rows_redacted: self.rows_redacted,
                rows_after,
                strays_redacted,
            },
            schema: source.schema().clone(),
            key_values: self.input.key_values,
            groups: self.proofs,
            tail: (tail_start, 0),
        };
        Ok((receipt, tail))
    }
}

impl<R> Input<'_, R> {
    fn redacts(&self, leaf: usize) -> bool {
        self.redactions.iter().any(|(redacted, _)| *redacted == leaf)
    }
}

/// Entries that hold an identifier go whole: what is left of a cut one might mean something else.
fn kept_key_values(metadata: &ParquetMetaData, edit: &Edit<'_>) -> Option<Vec<KeyValue>> {
    let all = metadata.file_metadata().key_value_metadata()?;
    let kept = all.iter().enumerate().filter(|(number, _)| !edit.cleanse.key_values.contains(number));
    Some(kept.map(|(_, entry)| entry.clone()).collect())
}

impl<R: ChunkReader + Clone + 'static> Input<'_, R> {
    fn encode<W: Sink>(
        &self,
        number: usize,
        leaf: usize,
        rows: &RoaringTreemap,
        out: &mut TrackedWrite<W>,
    ) -> Result<Encoded, FormatError> {
        let group = self.metadata.row_group(number);
        let column_index = self.metadata.column_index().map(|index| &index[number][leaf]);
        let chunk = Chunk {
            source: self.source,
            column: group.column(leaf),
            rows: group.num_rows() as u64,
            offset_index: self.metadata.offset_index().map(|index| &index[number][leaf]),
            column_index: column_index.filter(|index| !matches!(index, ColumnIndexMetaData::NONE)),
        };
        let redact = self.redactions.iter().find(|(redacted, _)| *redacted == leaf).map(|(_, redact)| redact);
        let tag = |value: &[u8]| redact.map_or_else(String::new, |redact| self.edit.tagger.tag(&redact.column, value));
        let change = match redact.map(|redact| &redact.with) {
            None => Change::Remove,
            Some(Redaction::Null) => Change::Null,
            Some(Redaction::Constant(text)) => Change::Constant(text),
            Some(Redaction::Tag) => Change::Tag(&tag),
        };
        // A chunk that is only cleansed keeps every row.
        let none = RoaringTreemap::new();
        let rows = match self.edit.action {
            Action::Redact(_) if !self.redacts(leaf) => &none,
            Action::Delete | Action::Redact(_) => rows,
        };
        let strayed = self.strayed.get(&leaf);
        let without_strays = |value: &[u8]| {
            let cleaned = self.edit.tagger.without_strays(value)?;
            if let Some(strayed) = strayed {
                strayed.cells.fetch_add(1, Ordering::Relaxed);
            }
            Some(cleaned)
        };
        let clean = strayed.is_some().then_some(&without_strays as &Clean);
        // Without column orders bounds are not to be trusted; what is to be cleansed may stand anywhere in the chunk.
        let is_trusted = self.metadata.file_metadata().column_orders().is_some();
        if is_trusted
            && clean.is_none()
            && !self.cleansed.contains(&(number, leaf))
            && let Some(encoded) = copy_pages(&chunk, rows, &change, out).map_err(parquet_error)?
        {
            return Ok(encoded);
        }
        chunk.encode(rows, &change, clean, out).map_err(parquet_error)
    }
}

/// The chunk's description with every offset moved by `shift`. Built afresh, so that the offsets of indexes and filters, which
/// stand elsewhere now, and the deprecated file offset are not carried over.
fn moved(column: &ColumnChunkMetaData, shift: i64) -> ColumnChunkMetaDataBuilder {
    let mut builder = ColumnChunkMetaData::builder(column.column_descr_ptr())
        .set_compression_codec(column.compression_codec())
        .set_encodings_mask(*column.encodings_mask())
        .set_total_compressed_size(column.compressed_size())
        .set_total_uncompressed_size(column.uncompressed_size())
        .set_num_values(column.num_values())
        .set_data_page_offset(column.data_page_offset() + shift)
        .set_dictionary_page_offset(column.dictionary_page_offset().map(|offset| offset + shift))
        .set_index_page_offset(column.index_page_offset().map(|offset| offset + shift))
        .set_unencoded_byte_array_data_bytes(column.unencoded_byte_array_data_bytes())
        .set_repetition_level_histogram(column.repetition_level_histogram().cloned())
        .set_definition_level_histogram(column.definition_level_histogram().cloned());
    if let Some(statistics) = column.statistics() {
        builder = builder.set_statistics(statistics.clone());
    }
    if let Some(statistics) = column.geo_statistics() {
        builder = builder.set_geo_statistics(Box::new(statistics.clone()));
    }
    if let Some(stats) = column.page_encoding_stats() {
        builder = builder.set_page_encoding_stats(stats.clone());
    }
    builder
}

fn placed_anew(encoded: Encoded, shift: i64) -> Result<Placed, FormatError> {
    let Encoded { close, bloom_filter, proof } = encoded;
    let offset_index = close.offset_index.map(|mut index| {
        index.page_locations.iter_mut().for_each(|page| page.offset += shift);
        index
    });
    Ok(Placed {
        column: moved(&close.metadata, shift).build().map_err(parquet_error)?,
        column_index: close.column_index.unwrap_or(ColumnIndexMetaData::NONE),
        offset_index,
        bloom_filter,
        proof,
    })
}
