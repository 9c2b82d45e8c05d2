//! How the verifier sees Parquet objects: batches of the identifier columns alone, decoded by Polars.
//!
//! The footer and the chunks of the identifier leaves are fetched, and every row group is decoded: no row is skipped for
//! what statistics, bloom filters, page indexes or the embedded Arrow schema say (invariant 10). The same chunks, and what else
//! the file holds, go through the byte-level check. Nothing here knows identifiers.

use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use polars::prelude::*;
use polars_parquet::read::{
    BasicDecompressor, ColumnChunkMetadata, FileMetadata, Filter, PageReader, RowGroupMetadata, column_iter_to_arrays,
};

use crate::identifier::ColumnPath;
use crate::parquet_bounds;
use crate::residue::{Residues, SeenChunk};
use crate::store::{Object, Store, StoreError};
use crate::verify_batch::{Batch, CutBound, Fault, Leaf, Look, Scanned, Tally};
use crate::verify_bytes::{ChunkBytes, FooterNotes, Gap, GapLeaves, Listed, Suspicions};
use crate::verify_columns::{Source, leaf_numbers, other_sources, understand};
use crate::verify_filter::filter_length;
use crate::verify_gates::Gates;

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
