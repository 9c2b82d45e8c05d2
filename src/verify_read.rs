//! How the verifier sees objects: batches of the identifier columns alone, decoded by Polars.
//!
//! Parquet: the footer and the chunks of the identifier leaves are fetched, nothing else, and every row group is decoded: statistics,
//! bloom filters, page indexes and the embedded Arrow schema are never looked at (invariant 10). Nothing here knows identifiers.

use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use polars::prelude::*;
use polars_parquet::parquet::read::deserialize_metadata;
use polars_parquet::read::schema::parquet_to_arrow_schema;
use polars_parquet::read::{
    BasicDecompressor, ColumnChunkMetadata, FileMetadata, Filter, PageReader, column_iter_to_arrays,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::Exit;
use crate::identifier::ColumnPath;
use crate::job::Resources;
use crate::parquet_bounds;
use crate::store::{self, Object, Store, StoreError};

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

/// Values of one column. A list column has several a row or none.
pub struct Leaf {
    /// The row of each value; `None`: one value a row, in order.
    pub rows: Option<Vec<u32>>,
    pub values: Series,
}

impl Leaf {
    pub fn row(&self, index: usize) -> u32 {
        match &self.rows {
            Some(rows) => rows[index],
            None => index as u32,
        }
    }
}

/// Some rows of an object. `columns` are those asked for, in that order; one that the object lacks has no leaves.
pub struct Batch {
    pub rows: usize,
    pub columns: Vec<Vec<Leaf>>,
}

/// What was counted over the batches of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub rows: u64,
    pub rows_matched: u64,
    /// By column asked for.
    pub not_comparable: Vec<u64>,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
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

/// What came of an object that could be read to its end.
#[derive(Debug, Default)]
pub struct Scanned {
    pub tally: Tally,
    /// The columns asked for that are not there.
    pub missing: Vec<usize>,
}

/// Bounds what runs and what is held at a time.
pub struct Gates {
    cpu: Semaphore,
    memory_mib: Semaphore,
    memory_total_mib: u32,
    requests: Semaphore,
    threads: usize,
    requests_in_flight: usize,
}

impl Gates {
    pub fn new(resources: &Resources) -> Self {
        let memory_total_mib = u32::try_from(resources.memory_mib).unwrap_or(u32::MAX).max(1);
        Gates {
            cpu: Semaphore::new(resources.threads),
            memory_mib: Semaphore::new(memory_total_mib as usize),
            memory_total_mib,
            requests: Semaphore::new(resources.requests_in_flight),
            threads: resources.threads,
            requests_in_flight: resources.requests_in_flight,
        }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How many objects may be under way: enough to keep both the threads and the store busy.
    pub fn objects_ahead(&self) -> usize {
        self.requests_in_flight.max(2 * self.threads)
    }

    pub async fn cpu(&self) -> SemaphorePermit<'_> {
        self.cpu.acquire().await.expect("the gates are never closed")
    }

    /// Waits for room. Something larger than all there is gets all there is, alone.
    pub async fn memory(&self, bytes: u64) -> SemaphorePermit<'_> {
        let wanted = u32::try_from(bytes >> 20).unwrap_or(u32::MAX).saturating_add(1).min(self.memory_total_mib);
        self.memory_mib.acquire_many(wanted).await.expect("the gates are never closed")
    }

    async fn get_range(&self, store: &dyn Store, object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
        let _one = self.requests.acquire().await.expect("the gates are never closed");
        store::read(store, object, range).await
    }

    /// What one of the tasks that run side by side should hold at most.
    pub fn share_bytes(&self) -> u64 {
        (u64::from(self.memory_total_mib) << 20) / (2 * self.threads as u64 + 1)
    }
}

/// Gives every row group of a Parquet object to `work`.
pub async fn scan_parquet(
    store: &dyn Store,
    object: &Object,
    columns: &[ColumnPath],
    gates: &Gates,
    work: &Work,
) -> Result<Scanned, Fault> {
    use futures::{StreamExt, TryStreamExt};
    let file = Arc::new(open(store, object, columns, gates).await?);
    let missing = (0..columns.len()).filter(|column| file.sources[*column].is_none()).collect();
    let groups =
        (0..file.metadata.row_groups.len()).map(|group| scan_row_group(store, object, &file, group, gates, work));
    let tally = futures::stream::iter(groups)
        .buffer_unordered(gates.threads() + 1)
        .try_fold(Tally::default(), |mut sum, tally| async move {
            sum.add(&tally);
            Ok(sum)
        })
        .await?;
    if tally.rows != file.metadata.num_rows as u64 {
        return Err(Fault::unreadable("its row groups do not add up to the rows its footer tells"));
    }
    Ok(Scanned { tally, missing })
}

/// A Parquet object's footer and where in it the columns are.
struct ParquetFile {
    metadata: FileMetadata,
    /// By column asked for.
    sources: Vec<Option<Source>>,
    /// What came with the footer: of a small object all of it.
    tail: Bytes,
}

/// One column: its top-level field cut down to the one path, and which of that field's leaves belong to it.
#[derive(Debug)]
struct Source {
    root: PlSmallStr,
    field: ArrowField,
    leaves: Range<usize>,
    /// Names of struct fields below the root, as the file spells them.
    path: Vec<PlSmallStr>,
}

const FOOTER_GUESS_BYTES: u64 = 64 << 10;

/// Length of the footer and magic at the end.
const TAIL_BYTES: u64 = 8;

async fn open(store: &dyn Store, object: &Object, columns: &[ColumnPath], gates: &Gates) -> Result<ParquetFile, Fault> {
    let size = object.size_bytes;
    if size < 12 {
        return Err(Fault::unreadable("is too short for a Parquet file"));
    }
    let mut tail = gates.get_range(store, object, size.saturating_sub(FOOTER_GUESS_BYTES)..size).await?;
    let (length, magic) = tail[tail.len() - 8..].split_at(4);
    if magic != b"PAR1" {
        let encrypted = if magic == b"PARE" { ": its footer is encrypted" } else { "" };
        return Err(Fault::unreadable(format!("does not end like a Parquet file{encrypted}")));
    }
    let length = u64::from(u32::from_le_bytes(length.try_into().expect("four bytes"))) + TAIL_BYTES;
    if length > size {
        return Err(Fault::unreadable("its footer is longer than the file"));
    }
    if length > tail.len() as u64 {
        tail = gates.get_range(store, object, size - length..size).await?;
    }
    let footer = tail.slice(tail.len() - length as usize..).to_vec();
    parquet_bounds::check_footer(&footer[..footer.len() - TAIL_BYTES as usize])
        .map_err(|why| Fault::unreadable(format!("its footer cannot be decoded: {why}")))?;
    let columns = columns.to_vec();
    // A malformed footer may panic: on a thread of its own that is an error of this object alone.
    let understood = tokio::task::spawn_blocking(move || understand(footer, &columns)).await;
    let (metadata, sources) = understood.map_err(|error| Fault::from_join(&error))??;
    Ok(ParquetFile { metadata, sources, tail })
}

fn understand(footer: Vec<u8>, columns: &[ColumnPath]) -> Result<(FileMetadata, Vec<Option<Source>>), Fault> {
    let metadata = deserialize_metadata(footer.into()).map_err(PolarsError::from)?;
    let fields = metadata.schema().fields();
    // The embedded Arrow schema is left aside: it may say other than what the Parquet types say.
    let schema = parquet_to_arrow_schema(fields);
    if schema.len() != fields.len() {
        return Err(Fault::unreadable("two of its columns have the same name, or one has no leaves"));
    }
    let top: Vec<ArrowField> = schema.iter_values().cloned().collect();
    let sources = columns.iter().map(|column| source(&top, column)).collect::<Result<_, _>>()?;
    Ok((metadata, sources))
}

fn source(top: &[ArrowField], column: &ColumnPath) -> Result<Option<Source>, Fault> {
    let names: Vec<&str> = top.iter().map(|field| field.name.as_str()).collect();
    let Some(root) = resolve(&names, &column.0[0]).map_err(|Ambiguous| ambiguous(column))? else {
        return Ok(None);
    };
    let mut path = Vec::new();
    let Some((field, leaves)) = cut(&top[root], &column.0[1..], &mut path).map_err(|Ambiguous| ambiguous(column))?
    else {
        return Ok(None);
    };
    Ok(Some(Source { root: top[root].name.clone(), field, leaves, path }))
}

pub fn ambiguous(column: &ColumnPath) -> Fault {
    Fault::unreadable(format!("column {column} is ambiguous: several names differ from it only in case"))
}

/// Several names could be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ambiguous;

/// The index of `wanted`: the exact name first, else the only one that differs in case alone.
pub fn resolve(names: &[&str], wanted: &str) -> Result<Option<usize>, Ambiguous> {
    let alone = |mut found: Vec<usize>| match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(Ambiguous),
    };
    let indexes = |same: &dyn Fn(&str) -> bool| (0..names.len()).filter(|i| same(names[*i])).collect::<Vec<_>>();
    let exact = indexes(&|name| name == wanted);
    if exact.is_empty() { alone(indexes(&|name| name.to_lowercase() == wanted.to_lowercase())) } else { alone(exact) }
}

type Cut = Option<(ArrowField, Range<usize>)>;

/// `field` with nothing in it but what lies on `path`, and the range of its leaves that are left. Lists and maps are walked through.
fn cut(field: &ArrowField, path: &[String], spelled: &mut Vec<PlSmallStr>) -> Result<Cut, Ambiguous> {
    let with = |dtype| ArrowField::new(field.name.clone(), dtype, field.is_nullable);
    match (&field.dtype, path.first()) {
        (ArrowDataType::List(inner) | ArrowDataType::LargeList(inner) | ArrowDataType::Map(inner, _), _) => {
            let inner = cut(inner, path, spelled)?;
            Ok(inner.map(|(inner, leaves)| (with(ArrowDataType::LargeList(Box::new(inner))), leaves)))
        }
        (_, None) => Ok(Some((field.clone(), 0..leaf_count(&field.dtype)))),
        (ArrowDataType::Struct(fields), Some(name)) => {
            let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
            let Some(at) = resolve(&names, name)? else {
                return Ok(None);
            };
            spelled.push(fields[at].name.clone());
            let before: usize = fields[..at].iter().map(|field| leaf_count(&field.dtype)).sum();
            let inner = cut(&fields[at], &path[1..], spelled)?;
            Ok(inner.map(|(inner, leaves)| {
                (with(ArrowDataType::Struct(vec![inner])), before + leaves.start..before + leaves.end)
            }))
        }
        (_, Some(_)) => Ok(None),
    }
}

fn leaf_count(dtype: &ArrowDataType) -> usize {
    match dtype {
        ArrowDataType::Struct(fields) => fields.iter().map(|field| leaf_count(&field.dtype)).sum(),
        ArrowDataType::List(inner) | ArrowDataType::LargeList(inner) | ArrowDataType::Map(inner, _) => {
            leaf_count(&inner.dtype)
        }
        _ => 1,
    }
}

/// The chunks of one source in one row group.
fn chunks<'a>(file: &'a ParquetFile, group: usize, source: &Source) -> Result<Vec<&'a ColumnChunkMetadata>, Fault> {
    let all = file.metadata.row_groups[group].columns_under_root_iter(&source.root).into_iter().flatten();
    let chunks: Vec<_> = all.skip(source.leaves.start).take(source.leaves.len()).collect();
    if chunks.len() != source.leaves.len() {
        return Err(Fault::unreadable("a row group lacks a column chunk"));
    }
    Ok(chunks)
}

async fn scan_row_group(
    store: &dyn Store,
    object: &Object,
    file: &Arc<ParquetFile>,
    group: usize,
    gates: &Gates,
    work: &Work,
) -> Result<Tally, Fault> {
    let rows = file.metadata.row_groups[group].num_rows();
    if rows > u32::MAX as usize {
        return Err(Fault::unreadable("a row group of more than four thousand million rows"));
    }
    let (mut ranges, mut stored_bytes, mut decoded_bytes) = (Vec::new(), 0, 0);
    for source in file.sources.iter().flatten() {
        for chunk in chunks(file, group, source)? {
            let (start, length) = chunk_range(chunk, object.size_bytes)?;
            ranges.push(start..start + length);
            stored_bytes += length;
            decoded_bytes += chunk.uncompressed_size().max(0) as u64;
        }
    }
    // Dictionary pages make the decoded column larger than the file says: a view of 16 bytes a value, and our own notes on it.
    let row_bytes = decoded_bytes / rows.max(1) as u64 + 32 * ranges.len() as u64 + 1;
    let slice_rows = (gates.share_bytes() / row_bytes).clamp(16 << 10, 1 << 20);
    let _held = gates.memory(stored_bytes + row_bytes * slice_rows.min(rows as u64)).await;
    let tail_start = object.size_bytes - file.tail.len() as u64;
    let fetched = ranges.into_iter().map(async |range| match range.start.checked_sub(tail_start) {
        Some(start) => Ok(file.tail.slice(start as usize..(range.end - tail_start) as usize)),
        None => gates.get_range(store, object, range).await,
    });
    let fetched = futures::future::try_join_all(fetched).await?;
    let _running = gates.cpu().await;
    let (file, work) = (file.clone(), work.clone());
    tokio::task::spawn_blocking(move || {
        let bytes = fetched.into_iter().map(Vec::from).collect();
        decode_row_group(&file, group, bytes, slice_rows as usize, &work)
    })
    .await
    .map_err(|error| Fault::from_join(&error))?
}

fn chunk_range(chunk: &ColumnChunkMetadata, size_bytes: u64) -> Result<(u64, u64), Fault> {
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let (start, length) = (u64::try_from(start), u64::try_from(chunk.compressed_size()));
    match (start, length) {
        (Ok(start), Ok(length)) if start.checked_add(length).is_some_and(|end| end <= size_bytes) => {
            Ok((start, length))
        }
        _ => Err(Fault::unreadable("a column chunk reaches past the end of the file")),
    }
}

/// `bytes` are the chunks of all sources, in order.
fn decode_row_group(
    file: &ParquetFile,
    group: usize,
    bytes: Vec<Vec<u8>>,
    slice_rows: usize,
    work: &Work,
) -> Result<Tally, Fault> {
    let rows = file.metadata.row_groups[group].num_rows();
    let mut numbered = bytes.iter();
    for source in file.sources.iter().flatten() {
        for (chunk, bytes) in chunks(file, group, source)?.into_iter().zip(&mut numbered) {
            let values = parquet_bounds::check_pages(bytes, chunk.compression().into())
                .map_err(|why| Fault::unreadable(format!("cannot be decoded: {why}")))?;
            // Polars reserves memory by this number.
            let flat = chunk.descriptor().descriptor.max_rep_level == 0;
            if u64::try_from(chunk.num_values()) != Ok(values) || (flat && values != rows as u64) {
                return Err(Fault::unreadable("a column chunk does not have the values its footer tells"));
            }
        }
    }
    let buffers: Vec<_> = bytes.into_iter().map(|bytes| Cursor::new(bytes.into())).collect();
    let mut sum = Tally::default();
    for start in (0..rows).step_by(slice_rows.max(1)) {
        let end = rows.min(start + slice_rows);
        let (mut columns, mut at) = (Vec::with_capacity(file.sources.len()), 0);
        for source in &file.sources {
            let Some(source) = source else {
                columns.push(Vec::new());
                continue;
            };
            let (mut pages, mut types) = (Vec::new(), Vec::new());
            for chunk in chunks(file, group, source)? {
                let reader = PageReader::new(buffers[at].clone(), chunk, Vec::new(), usize::MAX);
                pages.push(BasicDecompressor::new(reader, Vec::new()));
                types.push(&chunk.descriptor().descriptor.primitive_type);
                at += 1;
            }
            let range = (start > 0 || end < rows).then(|| Filter::new_ranged(start, end));
            let (arrays, _) = column_iter_to_arrays(pages, types, source.field.clone(), range)?;
            let values = Series::try_from((&source.field, arrays))?;
            if values.len() != end - start {
                return Err(Fault::unreadable("a column chunk does not have the rows its row group tells"));
            }
            columns.push(vec![leaf(values, &source.path)?]);
        }
        sum.add(&work(&Batch { rows: end - start, columns })?);
    }
    Ok(sum)
}

/// Walks into structs by `path` and through every list on the way.
fn leaf(mut values: Series, path: &[PlSmallStr]) -> PolarsResult<Leaf> {
    let (mut rows, mut path): (Option<Series>, _) = (None, path.iter());
    loop {
        values = match values.dtype() {
            DataType::List(_) => {
                let at = rows.unwrap_or_else(|| {
                    UInt32Chunked::from_iter_values("r".into(), 0..values.len() as u32).into_series()
                });
                let frame =
                    DataFrame::new(values.len(), vec![at.into_column(), values.with_name("v".into()).into_column()])?;
                // An empty list and a null one hold no value, not a null one.
                let flat = frame.explode(["v"], ExplodeOptions { empty_as_null: false, keep_nulls: false })?;
                rows = Some(flat.column("r")?.as_materialized_series().clone());
                flat.column("v")?.as_materialized_series().clone()
            }
            DataType::Struct(_) => match path.next() {
                Some(name) => values.struct_()?.field_by_name(name)?,
                None => break,
            },
            _ => break,
        }
    }
    let rows = match rows {
        Some(rows) => Some(rows.u32()?.into_no_null_iter().collect()),
        None => None,
    };
    Ok(Leaf { rows, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_exactly_first_and_by_case_only_when_alone() {
        for (names, wanted, found) in [
            (&["Email", "email"][..], "email", Ok(Some(1))),
            (&["Email", "EMAIL"], "email", Err(Ambiguous)),
            (&["x", "EMAIL"], "email", Ok(Some(1))),
            (&["x"], "email", Ok(None)),
            (&["a", "a"], "a", Err(Ambiguous)),
        ] {
            assert_eq!(resolve(names, wanted), found, "{names:?}");
        }
    }

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
