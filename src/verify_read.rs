//! How the verifier sees objects: batches of the identifier columns alone, decoded by Polars.
//!
//! Parquet: the footer and the chunks of the identifier leaves are fetched, and every row group is decoded: no row is skipped for
//! what statistics, bloom filters, page indexes or the embedded Arrow schema say (invariant 10). The same chunks, and what else
//! the file holds, go through the byte-level check. Nothing here knows identifiers.

use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use polars::prelude::*;
use polars_parquet::parquet::read::deserialize_metadata;
use polars_parquet::read::schema::parquet_to_arrow_schema;
use polars_parquet::read::{
    BasicDecompressor, ColumnChunkMetadata, FileMetadata, Filter, PageReader, RowGroupMetadata, column_iter_to_arrays,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::Exit;
use crate::identifier::ColumnPath;
use crate::job::Resources;
use crate::page_bytes::Malformed;
use crate::parquet_bounds;
use crate::residue::{Bound, ChunkId, Residues, SeenChunk, SeenChunks};
use crate::store::{self, Object, Store, StoreError};
use crate::verify_bytes::{ChunkBytes, FooterNotes, Gap, GapLeaves, LeafType, Listed, Suspicions};
use crate::verify_filter::filter_length;

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

/// Gives every row group of a Parquet object to `look`.
pub async fn scan_parquet(
    store: &dyn Store,
    object: &Object,
    columns: &[ColumnPath],
    gates: &Gates,
    look: &Look,
) -> Result<Scanned, Fault> {
    use futures::{StreamExt, TryStreamExt};
    let file = Arc::new(open(store, object, columns, gates, look).await?);
    let missing = (0..columns.len()).filter(|column| file.sources[*column].is_none()).collect();
    let groups =
        (0..file.metadata.row_groups.len()).map(|group| scan_row_group(store, object, &file, group, gates, look));
    let mut tally = futures::stream::iter(groups)
        .buffer_unordered(gates.threads() + 1)
        .try_fold(Tally::default(), |mut sum, tally| async move {
            sum.add(&tally);
            Ok(sum)
        })
        .await?;
    if tally.rows != file.metadata.num_rows as u64 {
        return Err(Fault::unreadable("its row groups do not add up to the rows its footer tells"));
    }
    if let Some(listed) = &look.bytes {
        tally.residues.merge(&inspect_file(store, object, &file, gates, listed).await?);
    }
    Ok(Scanned { tally, missing })
}

/// What a file that gathers the footers of others (`_metadata`) holds of them: bounds and texts. It has no rows.
pub async fn scan_summary(
    store: &dyn Store,
    object: &Object,
    columns: &[ColumnPath],
    gates: &Gates,
    listed: Arc<dyn Listed>,
) -> Result<Residues, Fault> {
    let (footer, _) = fetch_footer(store, object, gates).await?;
    let columns = columns.to_vec();
    let _running = gates.cpu().await;
    let inspected = tokio::task::spawn_blocking(move || {
        let notes = FooterNotes::of_others(&footer)?;
        let (metadata, sources) = understand(footer.to_vec(), &columns)?;
        let mut found = notes.texts(&*listed)?;
        for (number, group) in metadata.row_groups.iter().enumerate() {
            for (column, source) in sources.iter().enumerate() {
                let Some(source) = source else { continue };
                let (Some(leaf_type), Some(leaf)) = (&source.leaf_type, leaf_numbers(group, source).next()) else {
                    continue;
                };
                let Some(notes) = notes.groups.get(number).and_then(|group| group.get(leaf)) else { continue };
                let path = &source.column;
                let chunk = ChunkBytes {
                    notes,
                    group: number,
                    column,
                    path,
                    leaf: leaf_type,
                    bytes: &[],
                    seen: None,
                    column_index: None,
                    filter: None,
                };
                let (more, suspicions) = chunk.inspect(&*listed)?;
                found.merge(&more);
                found.merge(&suspicions.settle(column, (number, path.clone()), None));
            }
        }
        Ok(found)
    });
    inspected.await.map_err(|error| Fault::from_join(&error))?
}

/// The longest piece of a gap that is held at a time, and how far pieces overlap so that no identifier is cut.
const GAP_PIECE_BYTES: u64 = 8 << 20;
const GAP_OVERLAP_BYTES: u64 = 1 << 10;

/// What stands outside the row groups: the texts of the footer, and the gaps.
async fn inspect_file(
    store: &dyn Store,
    object: &Object,
    file: &Arc<ParquetFile>,
    gates: &Gates,
    listed: &Arc<dyn Listed>,
) -> Result<Residues, Fault> {
    let Some(notes) = &file.notes else { return Ok(Residues::default()) };
    let (shared, asked) = (file.clone(), listed.clone());
    let texts = move || shared.notes.as_ref().map_or_else(|| Ok(Residues::default()), |notes| notes.texts(&*asked));
    let texts = tokio::task::spawn_blocking(texts).await;
    let mut found = texts.map_err(|error| Fault::from_join(&error))??;
    for gap in notes.gaps(object.size_bytes - file.footer_bytes) {
        let mut start = gap.start;
        while start < gap.end {
            let end = gap.end.min(start + GAP_PIECE_BYTES);
            let _held = gates.memory(end - start).await;
            let bytes = fetch(store, object, file, gates, start..end).await?;
            let (shared, asked) = (file.clone(), listed.clone());
            let inspected = tokio::task::spawn_blocking(move || shared.inspect_gap(start, &bytes, &*asked)).await;
            found.merge(&inspected.map_err(|error| Fault::from_join(&error))??);
            start = if end < gap.end { end - GAP_OVERLAP_BYTES } else { end };
        }
    }
    Ok(found)
}

async fn fetch(
    store: &dyn Store,
    object: &Object,
    file: &ParquetFile,
    gates: &Gates,
    range: Range<u64>,
) -> Result<Bytes, StoreError> {
    let tail_start = object.size_bytes - file.tail.len() as u64;
    match range.start.checked_sub(tail_start) {
        Some(start) => Ok(file.tail.slice(start as usize..(range.end - tail_start) as usize)),
        None => gates.get_range(store, object, range).await,
    }
}

/// A Parquet object's footer and where in it the columns are.
struct ParquetFile {
    metadata: FileMetadata,
    /// By column asked for, then the others.
    sources: Vec<Option<Source>>,
    /// How many were asked for.
    asked: usize,
    /// For the byte-level check.
    notes: Option<FooterNotes>,
    /// With its length and the magic at the end.
    footer_bytes: u64,
    /// What came with the footer: of a small object all of it.
    tail: Bytes,
}

impl ParquetFile {
    fn inspect_gap(&self, start: u64, bytes: &[u8], listed: &dyn Listed) -> Result<Residues, Fault> {
        let Some(notes) = &self.notes else { return Ok(Residues::default()) };
        let mut by_leaf = vec![None; notes.groups.first().map_or(0, Vec::len)];
        for (column, source) in self.sources.iter().enumerate().take(self.asked) {
            if let Some(source) = source
                && let Some(leaf_type) = &source.leaf_type
                && let Some(group) = self.metadata.row_groups.first()
                && let Some(leaf) = leaf_numbers(group, source).next()
                && let Some(place) = by_leaf.get_mut(leaf)
            {
                *place = Some((column, &source.column, leaf_type));
            }
        }
        Gap { start, bytes }.inspect(notes, &GapLeaves { by_leaf }, listed)
    }
}

/// One column: its top-level field cut down to the one path, and which of that field's leaves belong to it.
#[derive(Debug)]
struct Source {
    root: PlSmallStr,
    field: ArrowField,
    leaves: Range<usize>,
    /// Names of struct fields below the root, as the file spells them.
    path: Vec<PlSmallStr>,
    column: ColumnPath,
    /// Of the one leaf; a struct has several, whose values are never compared.
    leaf_type: Option<LeafType>,
}

const FOOTER_GUESS_BYTES: u64 = 64 << 10;

/// Length of the footer and magic at the end.
const TAIL_BYTES: u64 = 8;

async fn open(
    store: &dyn Store,
    object: &Object,
    columns: &[ColumnPath],
    gates: &Gates,
    look: &Look,
) -> Result<ParquetFile, Fault> {
    let (footer, tail) = fetch_footer(store, object, gates).await?;
    let (size, length) = (object.size_bytes, footer.len() as u64);
    let footer = footer.to_vec();
    let columns = columns.to_vec();
    // A malformed footer may panic: on a thread of its own that is an error of this object alone.
    let (bytes, others, asked) = (look.bytes.is_some(), look.others, columns.len());
    let understood = tokio::task::spawn_blocking(move || {
        let notes = if bytes { Some(FooterNotes::read(&footer, size)?) } else { None };
        let (metadata, mut sources) = understand(footer, &columns)?;
        if others {
            sources.extend(other_sources(&metadata, &sources)?.into_iter().map(Some));
        }
        Ok::<_, Fault>((metadata, sources, notes))
    });
    let (metadata, sources, notes) = understood.await.map_err(|error| Fault::from_join(&error))??;
    Ok(ParquetFile { metadata, sources, asked, notes, footer_bytes: length, tail })
}

/// The footer with its length and the magic, and all that came with it.
async fn fetch_footer(store: &dyn Store, object: &Object, gates: &Gates) -> Result<(Bytes, Bytes), Fault> {
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
    let footer = tail.slice(tail.len() - length as usize..);
    parquet_bounds::check_footer(&footer[..footer.len() - TAIL_BYTES as usize])
        .map_err(|why| Fault::unreadable(format!("its footer cannot be decoded: {why}")))?;
    Ok((footer, tail))
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
    let mut sources: Vec<Option<Source>> =
        columns.iter().map(|column| source(&top, column)).collect::<Result<_, _>>()?;
    for source in sources.iter_mut().flatten() {
        source.leaf_type = leaf_type(&metadata, source);
    }
    Ok((metadata, sources))
}

/// The sources of every leaf of text that no column asked for reads.
fn other_sources(metadata: &FileMetadata, asked: &[Option<Source>]) -> Result<Vec<Source>, Fault> {
    let schema = parquet_to_arrow_schema(metadata.schema().fields());
    let top: Vec<ArrowField> = schema.iter_values().cloned().collect();
    let mut paths = Vec::new();
    top.iter().for_each(|field| text_paths(field, &mut Vec::new(), &mut paths));
    let mut others = Vec::new();
    for path in paths {
        let Some(other) = source(&top, &path)? else { continue };
        let known = |source: &Source| source.root == other.root && source.leaves == other.leaves;
        if !asked.iter().flatten().any(known) {
            others.push(other);
        }
    }
    Ok(others)
}

/// Texts, and bytes that may be texts: older writers leave out the annotation.
fn text_paths(field: &ArrowField, names: &mut Vec<String>, paths: &mut Vec<ColumnPath>) {
    use ArrowDataType as T;
    names.push(field.name.to_string());
    let mut inner = &field.dtype;
    while let T::List(item) | T::LargeList(item) | T::Map(item, _) = inner {
        inner = &item.dtype;
    }
    match inner {
        T::Utf8 | T::LargeUtf8 | T::Utf8View | T::Binary | T::LargeBinary | T::BinaryView => {
            paths.push(ColumnPath(names.clone()));
        }
        T::Struct(fields) => fields.iter().for_each(|field| text_paths(field, names, paths)),
        _ => {}
    }
    names.pop();
}

/// The type of a source's one leaf.
fn leaf_type(metadata: &FileMetadata, source: &Source) -> Option<LeafType> {
    let mut dtype = &source.field.dtype;
    loop {
        dtype = match dtype {
            ArrowDataType::List(inner) | ArrowDataType::LargeList(inner) | ArrowDataType::Map(inner, _) => &inner.dtype,
            ArrowDataType::Struct(fields) if fields.len() == 1 => &fields[0].dtype,
            _ => break,
        };
    }
    let columns = metadata.schema().columns();
    let under_root = columns.iter().filter(|column| column.path_in_schema.first() == Some(&source.root));
    let mut leaves = under_root.skip(source.leaves.start).take(source.leaves.len());
    match (leaves.next(), leaves.next()) {
        (Some(leaf), None) => {
            let physical = leaf.descriptor.primitive_type.physical_type;
            Some(LeafType { physical, dtype: dtype.clone() })
        }
        _ => None,
    }
}

/// The numbers of a source's leaves among all of a row group.
fn leaf_numbers<'a>(group: &'a RowGroupMetadata, source: &Source) -> impl Iterator<Item = usize> + 'a {
    let all = group.columns_idxs_under_root_iter(&source.root).unwrap_or_default();
    all.iter().copied().skip(source.leaves.start).take(source.leaves.len())
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
    let root = top[root].name.clone();
    Ok(Some(Source { root, field, leaves, path, column: column.clone(), leaf_type: None }))
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
    look: &Look,
) -> Result<Tally, Fault> {
    let rows = file.metadata.row_groups[group].num_rows();
    if rows > u32::MAX as usize {
        return Err(Fault::unreadable("a row group of more than four thousand million rows"));
    }
    let mut wanted = file.inspected(group)?;
    for leaf in &mut wanted {
        leaf.find_beside(store, object, file, gates).await?;
    }
    if look.rows.is_none()
        && let Some(residues) = judge_seen(store, object, file, &wanted, gates, look).await?
    {
        return Ok(Tally { rows: rows as u64, residues, ..Tally::default() });
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
    let chunk_count = ranges.len();
    ranges.extend(beside(&wanted));
    stored_bytes += ranges[chunk_count..].iter().map(|range| range.end - range.start).sum::<u64>();
    // Dictionary pages make the decoded column larger than the file says: a view of 16 bytes a value, and our own notes on it.
    let row_bytes = decoded_bytes / rows.max(1) as u64 + 32 * chunk_count as u64 + 1;
    let slice_rows = (gates.share_bytes() / row_bytes).clamp(16 << 10, 1 << 20);
    let _held = gates.memory(stored_bytes + row_bytes * slice_rows.min(rows as u64)).await;
    let fetched = ranges.into_iter().map(|range| fetch(store, object, file, gates, range));
    let mut fetched = futures::future::try_join_all(fetched).await?;
    let _running = gates.cpu().await;
    let (file, look) = (file.clone(), look.clone());
    tokio::task::spawn_blocking(move || {
        let beside = fetched.split_off(chunk_count);
        let (residues, mut suspicions) = match &look.bytes {
            Some(listed) => {
                let chunks = wanted.iter().map(|leaf| Pages::Here(&fetched[leaf.chunk]));
                inspect_row_group(&file, &wanted, chunks, &beside, &**listed)?
            }
            None => Default::default(),
        };
        let mut sum = Tally { residues, ..Default::default() };
        if look.rows.is_some() || suspicions.iter().any(|(_, suspicions)| !suspicions.is_empty()) {
            let bytes = fetched.into_iter().map(Vec::from).collect();
            let mut decoded = decode_row_group(&file, group, bytes, slice_rows as usize, &look, &mut suspicions)?;
            decoded.residues.count_rows_from(file.rows_of(group).start);
            sum.add(&decoded);
        } else {
            sum.rows = rows as u64;
        }
        for (column, mut suspicions) in suspicions {
            let chunk = (group, column_path(&file, column).clone());
            let unexplained = suspicions.unexplained().into_iter();
            sum.cut.extend(unexplained.map(|bound| CutBound { column, chunk: chunk.clone(), bound }));
            sum.residues.merge(&suspicions.settle(column, chunk, look.bytes.as_deref()));
        }
        if sum.residues.is_in(group) || !sum.cut.is_empty() {
            sum.residues.span(group, file.rows_of(group));
        }
        Ok(sum)
    })
    .await
    .map_err(|error| Fault::from_join(&error))?
}

/// The column indexes and filters of the wanted leaves, in order.
fn beside(wanted: &[Inspected]) -> impl Iterator<Item = Range<u64>> {
    wanted.iter().flat_map(|leaf| leaf.column_index.iter().chain(&leaf.filter)).cloned()
}

/// What a row group holds beside its rows, when the find stage saw all of its wanted chunks and that is enough; reads no page.
async fn judge_seen(
    store: &dyn Store,
    object: &Object,
    file: &Arc<ParquetFile>,
    wanted: &[Inspected],
    gates: &Gates,
    look: &Look,
) -> Result<Option<Residues>, Fault> {
    let (Some(listed), Some(seen)) = (&look.bytes, &look.seen) else { return Ok(None) };
    let of = |leaf: &Inspected| seen.get(leaf.group, column_path(file, leaf.column)).cloned();
    let Some(chunks) = wanted.iter().map(of).collect::<Option<Vec<SeenChunk>>>() else { return Ok(None) };
    let Some(group) = wanted.first().map(|leaf| leaf.group) else { return Ok(Some(Residues::default())) };
    // The bounds of the column index were looked at with those of the pages.
    let wanted: Vec<Inspected> = wanted.iter().map(|leaf| Inspected { column_index: None, ..leaf.clone() }).collect();
    let fetched = beside(&wanted).map(|range| fetch(store, object, file, gates, range));
    let fetched = futures::future::try_join_all(fetched).await?;
    let _running = gates.cpu().await;
    let (file, listed) = (file.clone(), listed.clone());
    tokio::task::spawn_blocking(move || {
        let (mut residues, suspicions) =
            inspect_row_group(&file, &wanted, chunks.iter().map(Pages::Seen), &fetched, &*listed)?;
        if residues.is_in(group) {
            residues.span(group, file.rows_of(group));
        }
        Ok(suspicions.iter().all(|(_, suspicions)| suspicions.is_empty()).then_some(residues))
    })
    .await
    .map_err(|error| Fault::from_join(&error))?
}

fn column_path(file: &ParquetFile, column: usize) -> &ColumnPath {
    &file.sources[column].as_ref().expect("only columns that are there are inspected").column
}

/// A leaf that the byte-level check looks at: of a match column that has no other.
#[derive(Clone)]
struct Inspected {
    group: usize,
    column: usize,
    leaf: usize,
    /// Among the chunks that are fetched.
    chunk: usize,
    column_index: Option<Range<u64>>,
    filter: Option<Range<u64>>,
}

/// A filter's header is shorter than this.
const FILTER_HEADER_BYTES: u64 = 64;

impl Inspected {
    /// Where the chunk's column index and bloom filter stand. Older writers do not tell the filter's length: its header does.
    async fn find_beside(
        &mut self,
        store: &dyn Store,
        object: &Object,
        file: &ParquetFile,
        gates: &Gates,
    ) -> Result<(), Fault> {
        let Some(notes) = &file.notes else { return Ok(()) };
        let notes = &notes.groups[self.group][self.leaf];
        self.column_index = notes.column_index.clone();
        let Some(start) = notes.filter_start else { return Ok(()) };
        let length = match notes.filter_length {
            Some(length) => length,
            None => {
                let head = start..object.size_bytes.min(start + FILTER_HEADER_BYTES);
                filter_length(&fetch(store, object, file, gates, head).await?)?
            }
        };
        let end = start.checked_add(length).filter(|end| *end <= object.size_bytes);
        self.filter =
            Some(start..end.ok_or_else(|| Fault::unreadable("a bloom filter reaches past the end of the file"))?);
        Ok(())
    }
}

impl ParquetFile {
    /// The rows of a row group, as numbers in the file.
    fn rows_of(&self, group: usize) -> Range<u64> {
        let rows = |group: &RowGroupMetadata| group.num_rows() as u64;
        let before: u64 = self.metadata.row_groups[..group].iter().map(rows).sum();
        before..before + rows(&self.metadata.row_groups[group])
    }

    fn inspected(&self, group: usize) -> Result<Vec<Inspected>, Fault> {
        let Some(notes) = &self.notes else { return Ok(Vec::new()) };
        let (mut wanted, mut chunk) = (Vec::new(), 0);
        for (column, source) in self.sources.iter().enumerate() {
            let Some(source) = source else { continue };
            if source.leaf_type.is_some()
                && column < self.asked
                && let Some(leaf) = leaf_numbers(&self.metadata.row_groups[group], source).next()
            {
                wanted.push(Inspected { group, column, leaf, chunk, column_index: None, filter: None });
            }
            chunk += source.leaves.len();
        }
        let is_there = |wanted: &Inspected| notes.groups.get(group).is_some_and(|group| wanted.leaf < group.len());
        if wanted.iter().all(is_there) {
            Ok(wanted)
        } else {
            Err(Fault::unreadable("a row group lacks a column chunk"))
        }
    }
}

/// The pages of a chunk, or what the find stage saw of them.
enum Pages<'a> {
    Here(&'a Bytes),
    Seen(&'a SeenChunk),
}

/// `chunks` are those of the wanted leaves; `beside` their column indexes and filters, in order, where there is one.
fn inspect_row_group<'a>(
    file: &ParquetFile,
    wanted: &[Inspected],
    chunks: impl Iterator<Item = Pages<'a>>,
    beside: &[Bytes],
    listed: &dyn Listed,
) -> Result<(Residues, Vec<(usize, Suspicions)>), Fault> {
    let (mut found, mut suspicions, mut beside) = (Residues::default(), Vec::new(), beside.iter());
    for (leaf, pages) in wanted.iter().zip(chunks) {
        let column_index = leaf.column_index.as_ref().and_then(|_| beside.next());
        let filter = leaf.filter.as_ref().and_then(|_| beside.next());
        let (Some(notes), Some(source)) = (&file.notes, &file.sources[leaf.column]) else { continue };
        let Some(leaf_type) = &source.leaf_type else { continue };
        let chunk = ChunkBytes {
            notes: &notes.groups[leaf.group][leaf.leaf],
            group: leaf.group,
            column: leaf.column,
            path: &source.column,
            leaf: leaf_type,
            bytes: if let Pages::Here(bytes) = pages { bytes } else { &[] },
            seen: if let Pages::Seen(seen) = pages { Some(seen) } else { None },
            column_index: column_index.map(|index| &index[..]),
            filter: filter.map(|filter| &filter[..]),
        };
        let (more, suspected) = chunk.inspect(listed)?;
        found.merge(&more);
        suspicions.push((leaf.column, suspected));
    }
    Ok((found, suspicions))
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
    look: &Look,
    suspicions: &mut [(usize, Suspicions)],
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
        for (column, suspected) in suspicions.iter_mut().filter(|(_, suspected)| !suspected.is_empty()) {
            columns[*column].iter().for_each(|leaf| suspected.explain(&leaf.values));
        }
        let others = columns.split_off(file.asked).into_iter().zip(&file.sources[file.asked..]);
        let others = others.flat_map(|(leaves, source)| {
            let path = source.as_ref().map(|source| source.column.clone());
            leaves.into_iter().filter_map(move |leaf| Some((path.clone()?, leaf)))
        });
        let batch = Batch { rows: end - start, others: others.collect(), columns };
        match &look.rows {
            Some(work) => sum.follow(work(&batch)?),
            None => sum.rows += batch.rows as u64,
        }
    }
    Ok(sum)
}

/// Walks into structs by `path` and through every list on the way.
fn leaf(mut values: Series, path: &[PlSmallStr]) -> PolarsResult<Leaf> {
    let (mut rows, mut path, mut depth): (Option<Series>, _, usize) = (None, path.iter(), 1);
    // Of each list on the way: its depth, and the element by value.
    let mut lists: Vec<(usize, Column)> = Vec::new();
    loop {
        values = match values.dtype() {
            DataType::List(_) => {
                let at = rows.unwrap_or_else(|| {
                    UInt32Chunked::from_iter_values("r".into(), 0..values.len() as u32).into_series()
                });
                let height = values.len();
                let mut columns = vec![at.into_column(), values.with_name("v".into()).into_column()];
                columns.extend(lists.iter().map(|(_, elements)| elements.clone()));
                // An empty list and a null one hold no value, not a null one.
                let flat = DataFrame::new(height, columns)?
                    .explode(["v"], ExplodeOptions { empty_as_null: false, keep_nulls: false })?;
                for (_, elements) in &mut lists {
                    *elements = flat.column(elements.name())?.clone();
                }
                let name = format!("e{}", lists.len()).into();
                lists.push((depth, UInt32Chunked::from_iter_values(name, 0..flat.height() as u32).into_column()));
                rows = Some(flat.column("r")?.as_materialized_series().clone());
                flat.column("v")?.as_materialized_series().clone()
            }
            DataType::Struct(_) => match path.next() {
                Some(name) => {
                    depth += 1;
                    values.struct_()?.field_by_name(name)?
                }
                None => break,
            },
            _ => break,
        }
    }
    let rows = match rows {
        Some(rows) => Some(rows.u32()?.into_no_null_iter().collect()),
        None => None,
    };
    let lists: Vec<(usize, &UInt32Chunked)> = lists
        .iter()
        .map(|(depth, elements)| Ok((*depth, elements.as_materialized_series().u32()?)))
        .collect::<PolarsResult<_>>()?;
    let element = |i: usize| lists.iter().filter_map(|(depth, elements)| Some((*depth, elements.get(i)?))).collect();
    let elements = (!lists.is_empty()).then(|| (0..values.len()).map(element).collect());
    Ok(Leaf { rows, elements, values })
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
