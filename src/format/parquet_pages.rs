//! Page copy: of a column chunk that loses rows, the pages that lose none are copied as the compressed bytes they are; the
//! others are decoded, freed of their rows and encoded again, each as it was. Or, where that is not certain to be right,
//! nothing is done and the chunk is left to [`Chunk::encode`].
//!
//! Nothing of a removed row survives (invariant 11): a dictionary entry that no kept row uses becomes a value that nobody has,
//! bounds that a removed value may have made are made again, and a page whose own bounds show such a value is not copied.
//! Where pages begin is never taken from an index: rows are counted in the pages.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use parquet::basic::{Encoding, EncodingMask, PageType, Type as PhysicalType};
use parquet::column::page::Page;
use parquet::column::reader::{ColumnReaderImpl, get_column_reader};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::DataType;
use parquet::errors::Result;
use parquet::file::metadata::PageEncodingStats;
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::page_index::offset_index::{OffsetIndexMetaData, PageLocation};
use parquet::file::reader::ChunkReader;
use parquet::file::writer::TrackedWrite;
use parquet::schema::types::ColumnDescPtr;
use roaring::RoaringTreemap;
use xxhash_rust::xxh3::Xxh3;

use super::parquet_chunk::{
    Batch, Change, Chunk, ColumnDigest, ColumnProof, Encoded, Replace, Window, Work, general, in_type,
};
use super::parquet_codec::compresses;
use super::parquet_cut::{self, Cutter, digest_of_page};
use super::parquet_dictionary::{DictionaryPage, NewDictionary, digest_of};
use super::parquet_layout::{Given, Layout, Picked, Place};
use super::parquet_page::{EditPages, Edited, PageDigest, Tally};
use super::parquet_statistics::{Description, index_bounds};
use crate::store::Sink;

/// Pages that lose rows wait in memory, for the dictionary stands before them: a chunk with more bytes in such pages is encoded
/// anew, which streams.
const CHANGED_BYTES_MAX: u64 = 64 << 20;
const COPY_BYTES: u64 = 4 << 20;

/// How the pages of a chunk are proven on read-back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagesProof {
    /// Of all bytes, those of copied pages as they stood in the source.
    bytes: u128,
    /// Of the entries of a dictionary that was written again.
    dictionary: Option<u128>,
    /// Pages that were encoded again: by number, the rows and the digest of what they hold.
    changed: BTreeMap<usize, (u64, PageDigest)>,
}

/// Writes the chunk with `change` done to `rows` (numbered within the row group), page by page. `None`: nothing was written,
/// because the chunk is not one of which this is certain to be right.
pub fn copy_pages<R, W>(
    chunk: &Chunk<'_, R>,
    rows: &RoaringTreemap,
    change: &Change<'_>,
    out: &mut TrackedWrite<W>,
) -> Result<Option<Encoded>>
where
    R: ChunkReader + Clone + 'static,
    W: Sink,
{
    let window = Arc::new(Window::for_passes(chunk.source.clone(), chunk.column));
    let Some(layout) = Layout::of_source(chunk, &window)? else { return Ok(None) };
    let touched: Vec<bool> = layout.pages.iter().map(|page| rows.range_cardinality(page.rows.clone()) > 0).collect();
    if !is_fit(chunk, &layout, &touched, change) {
        return Ok(None);
    }
    let mut pass = Pass { chunk, window, layout, rows, change, edited: Edited::default() };
    pass.edit(&touched)?;
    let Some(dictionary) = pass.dictionary(&touched)? else { return Ok(None) };
    let stale = pass.stale(&touched, &dictionary);
    if !is_fit(chunk, &pass.layout, &stale, &Change::Remove) {
        return Ok(None);
    }
    pass.edit(&stale)?;
    let Some(description) = pass.describe(&dictionary)? else { return Ok(None) };
    pass.write(dictionary, description, out).map(Some)
}

/// Whether the pages of `chunk` differ from what was written.
pub fn differ<R: ChunkReader + Clone + 'static>(chunk: &Chunk<'_, R>, proof: &PagesProof) -> Result<bool> {
    let window = Arc::new(Window::for_passes(chunk.source.clone(), chunk.column));
    let (start, length) = chunk.column.byte_range();
    let mut hasher = Xxh3::new();
    copy(&window, start..start + length, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    let Some(layout) = Layout::read(&window, chunk.column)?.filter(|_| hasher.digest128() == proof.bytes) else {
        return Ok(true);
    };
    if let Some(digest) = proof.dictionary
        && digest_of(&DictionaryPage::read(&window, chunk.column)?.entries()?) != digest
    {
        return Ok(true);
    }
    let values: u64 = layout.pages.iter().map(|page| page.values).sum();
    if values != chunk.column.num_values() as u64 || proof.changed.keys().any(|page| *page >= layout.pages.len()) {
        return Ok(true);
    }
    if cut_pages_differ(chunk, &window, &layout, proof)? {
        return Ok(true);
    }
    let of_values = |page: &usize| match proof.changed.get(page) {
        Some((rows, PageDigest::Values(digest))) => Some((*rows, *digest)),
        Some((_, PageDigest::Content(_))) | None => None,
    };
    let picks: Vec<bool> = (0..layout.pages.len()).map(|page| of_values(&page).is_some()).collect();
    let changed: Vec<(u64, u128)> = proof.changed.keys().filter_map(of_values).collect();
    if changed.is_empty() {
        return Ok(false);
    }
    let descr = chunk.column.column_descr_ptr();
    let reader = get_column_reader(descr.clone(), Picked::checked(&window, chunk, &layout, &picks, None)?);
    in_type(reader, &descr, &Change::Remove, None, Compare { descr: &descr, changed: &changed })
}

/// Whether any of the pages that rows were cut out of differs from what was written.
fn cut_pages_differ<R: ChunkReader + Clone + 'static>(
    chunk: &Chunk<'_, R>,
    window: &Arc<Window<R>>,
    layout: &Layout,
    proof: &PagesProof,
) -> Result<bool> {
    let of_content = |page: usize| match proof.changed.get(&page) {
        Some((rows, PageDigest::Content(digest))) => Some((*rows, *digest)),
        Some((_, PageDigest::Values(_))) | None => None,
    };
    let picks: Vec<bool> = (0..layout.pages.len()).map(|page| of_content(page).is_some()).collect();
    let mut pages = Picked::checked(window, chunk, layout, &picks, None)?;
    for (number, place) in layout.pages.iter().enumerate() {
        let Some((rows, digest)) = of_content(number) else { continue };
        let mut page = pages.get_next_page()?;
        if page.as_ref().is_some_and(Page::is_dictionary_page) {
            page = pages.get_next_page()?;
        }
        let page = page.ok_or_else(|| general("fewer pages than headers"))?;
        // What cannot be unpacked is not what was written, either.
        let is_same = |found: u128| found == digest && place.values == rows;
        if !digest_of_page(&page, chunk.column, place.is_coded()).is_ok_and(is_same) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads changed pages, one after the other, and compares each with its digest.
struct Compare<'a> {
    descr: &'a ColumnDescPtr,
    /// Rows and digest of each.
    changed: &'a [(u64, u128)],
}

impl Work for Compare<'_> {
    type Done = bool;

    fn run<T: DataType>(self, mut reader: ColumnReaderImpl<T>, _: &Replace<'_, T::T>) -> Result<bool> {
        let mut batch = Batch::<T>::new(self.descr);
        for (rows, wanted) in self.changed {
            let (mut left, mut digest) = (*rows, ColumnDigest::default());
            while left > 0 {
                let read = batch.fill(&mut reader, left)? as u64;
                if read == 0 {
                    return Ok(true);
                }
                batch.add_to(&mut digest);
                left -= read;
            }
            if digest.finish() != *wanted {
                return Ok(true);
            }
        }
        Ok(batch.fill(&mut reader, 1)? > 0)
    }
}

/// Whether pages can be changed one by one, and what tells of them be kept right.
fn is_fit<R>(chunk: &Chunk<'_, R>, layout: &Layout, touched: &[bool], change: &Change<'_>) -> bool {
    let picked = || layout.pages.iter().zip(touched).filter(|(_, touched)| **touched).map(|(page, _)| page);
    let pages = layout.pages.len();
    let adds_values = match change {
        Change::Remove | Change::Null => false,
        Change::Constant(_) | Change::Tag(_) => true,
    };
    let indexed = |index: &ColumnIndexMetaData| index.num_pages() == pages as u64 && index.null_counts().is_some();
    picked().map(|page| page.end - page.start).sum::<u64>() <= CHANGED_BYTES_MAX
        && chunk.column.geo_statistics().is_none()
        && chunk.column_index.is_none_or(indexed)
        && chunk.offset_index.is_none_or(|index| index.page_locations.len() == pages)
        // A page without a value ends the column for some readers; it is not copied.
        && layout.pages.iter().all(|page| page.values > 0)
        && (layout.dictionary.is_some() || !layout.pages.iter().any(Place::is_coded))
        && layout.pages.iter().filter(|page| page.is_coded()).all(|page| page.has_packed_levels)
        && !(adds_values && picked().any(Place::is_coded))
        && (layout.dictionary.is_none() || compresses(chunk.column.compression()))
        && (layout.dictionary.is_none() || chunk.column.column_type() != PhysicalType::BOOLEAN)
}

/// One chunk on its way through.
pub struct Pass<'a, R: ChunkReader> {
    pub chunk: &'a Chunk<'a, R>,
    pub window: Arc<Window<R>>,
    pub layout: Layout,
    pub rows: &'a RoaringTreemap,
    pub change: &'a Change<'a>,
    pub edited: Edited,
}

impl<R: ChunkReader + Clone + 'static> Pass<'_, R> {
    /// Decodes the picked pages, does the change and encodes them again.
    fn edit(&mut self, picks: &[bool]) -> Result<()> {
        if !picks.contains(&true) {
            return Ok(());
        }
        if self.edited.pages.is_empty() {
            (self.edited.before, self.edited.after) = (Tally::new(self.chunk.column), Tally::new(self.chunk.column));
        }
        let picks = &self.cut(picks)?;
        if !picks.contains(&true) {
            return Ok(());
        }
        let given = Given::default();
        let pages = Picked::checked(&self.window, self.chunk, &self.layout, picks, Some(Arc::clone(&given)))?;
        let descr = self.chunk.column.column_descr_ptr();
        let work = EditPages {
            chunk: self.chunk,
            entries: self.layout.dictionary.as_ref().map_or(0, |dictionary| dictionary.values as usize),
            places: self.layout.pages.iter().enumerate().filter(|(number, _)| picks[*number]).collect(),
            rows: self.rows,
            given,
            edited: &mut self.edited,
        };
        in_type(get_column_reader(descr.clone(), pages), &descr, self.change, None, work)
    }
}

impl<R: ChunkReader + Clone + 'static> Pass<'_, R> {
    /// Cuts rows out of those of the picked pages where this can be done; which are left.
    fn cut(&mut self, picks: &[bool]) -> Result<Vec<bool>> {
        let (column, mut left) = (self.chunk.column, picks.to_vec());
        let is_fit =
            |place: &Place| self.rows.range_cardinality(place.rows.clone()) > 0 && parquet_cut::is_fit(column, place);
        let fit: Vec<bool> =
            self.layout.pages.iter().zip(picks).map(|(place, picked)| *picked && is_fit(place)).collect();
        if !matches!(self.change, Change::Remove) || !fit.contains(&true) {
            return Ok(left);
        }
        let dictionary = match &self.layout.dictionary {
            Some(_) => Some(DictionaryPage::read(&self.window, column)?),
            None => None,
        };
        let entries = dictionary.as_ref().map_or(Ok(Vec::new()), DictionaryPage::entries)?;
        self.edited.kept_entries.resize(entries.len(), false);
        let cutter = Cutter { column, entries, has_column_index: self.chunk.column_index.is_some() };
        let mut pages = Picked::checked(&self.window, self.chunk, &self.layout, &fit, None)?;
        for (number, place) in self.layout.pages.iter().enumerate().filter(|(number, _)| fit[*number]) {
            let mut page = pages.get_next_page()?;
            if page.as_ref().is_some_and(Page::is_dictionary_page) {
                page = pages.get_next_page()?;
            }
            let page = page.ok_or_else(|| general("fewer pages than headers"))?;
            let bounds = self.chunk.column_index.and_then(|index| index_bounds(index, number));
            if let Some(new) = cutter.cut(&page, place, self.rows, bounds, &mut self.edited)? {
                self.edited.pages.insert(number, Some(new));
                left[number] = false;
            }
        }
        Ok(left)
    }
}

/// Passes the bytes of a range on in bounded pieces.
fn copy<R: ChunkReader>(
    window: &Window<R>,
    range: Range<u64>,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + COPY_BYTES);
        each(&window.bytes(at..end)?)?;
        at = end;
    }
    Ok(())
}

/// Where the pages go, and the digest of what went there.
struct Way<'o, W: Write> {
    out: &'o mut TrackedWrite<W>,
    hasher: Xxh3,
}

impl<W: Sink> Way<'_, W> {
    /// Returns where the output ends now.
    fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)?;
        Ok(self.out.bytes_written() as u64)
    }

    /// Puts the source's own bytes.
    fn copy<R: ChunkReader>(&mut self, window: &Window<R>, range: Range<u64>) -> Result<u64> {
        let mut end = self.out.bytes_written() as u64;
        self.out.inner_mut().taken_over(end, range.clone());
        copy(window, range, |bytes| self.put(bytes).map(|at| end = at))?;
        Ok(end)
    }
}

impl<R: ChunkReader + Clone + 'static> Pass<'_, R> {
    fn write<W: Sink>(
        self,
        dictionary: NewDictionary,
        description: Description,
        out: &mut TrackedWrite<W>,
    ) -> Result<Encoded> {
        let column = self.chunk.column;
        let start = out.bytes_written() as u64;
        let mut way = Way { out, hasher: Xxh3::new() };
        let mut at = start;
        let (mut uncompressed_bytes, mut values, mut first_row) = (0, 0, 0);
        let mut encodings: Vec<(PageType, Encoding)> = Vec::new();
        if let Some(place) = &self.layout.dictionary {
            encodings.push((place.kind, place.encoding));
            match &dictionary.page {
                Some((bytes, uncompressed, _)) => {
                    at = way.put(bytes)?;
                    uncompressed_bytes += uncompressed;
                }
                None => {
                    at = way.copy(&self.window, place.start..place.end)?;
                    uncompressed_bytes += place.header_bytes + place.uncompressed_bytes;
                }
            }
        }
        let first_page = at;
        let old_bytes = self.chunk.offset_index.and_then(|index| index.unencoded_byte_array_data_bytes.as_ref());
        let (mut locations, mut value_bytes, mut changed) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (number, place) in self.layout.pages.iter().enumerate() {
            let page_start = at;
            let (rows, bytes_of_page) = match self.edited.pages.get(&number) {
                Some(None) => continue,
                Some(Some(page)) => {
                    at = way.put(&page.bytes)?;
                    changed.insert(locations.len(), (page.kept.rows, page.digest));
                    uncompressed_bytes += page.uncompressed_bytes;
                    values += page.kept.levels;
                    (page.kept.rows, Some(page.kept.value_bytes as i64))
                }
                None => {
                    at = way.copy(&self.window, place.start..place.end)?;
                    uncompressed_bytes += place.header_bytes + place.uncompressed_bytes;
                    values += place.values;
                    (place.rows.end - place.rows.start, old_bytes.and_then(|old| old.get(number).copied()))
                }
            };
            encodings.push((place.kind, place.encoding));
            value_bytes.extend(bytes_of_page);
            locations.push(PageLocation {
                offset: page_start as i64,
                compressed_page_size: i32::try_from(at - page_start).map_err(|_| general("a page too large"))?,
                first_row_index: first_row,
            });
            first_row += rows as i64;
        }
        let bytes_written = at - start;
        let offset_index = self.chunk.offset_index.map(|_| OffsetIndexMetaData {
            unencoded_byte_array_data_bytes: old_bytes
                .filter(|_| value_bytes.len() == locations.len())
                .map(|_| value_bytes),
            page_locations: locations,
        });
        let has_dictionary_offset = column.dictionary_page_offset().is_some();
        let used: Vec<Encoding> =
            column.encodings().chain(encodings.iter().map(|(_, encoding)| *encoding)).chain([Encoding::RLE]).collect();
        let mut metadata = column
            .clone()
            .into_builder()
            .clear_statistics()
            .set_encodings_mask(EncodingMask::new_from_encodings(used.iter()))
            .set_total_compressed_size(bytes_written as i64)
            .set_total_uncompressed_size(uncompressed_bytes as i64)
            .set_num_values(values as i64)
            .set_dictionary_page_offset(has_dictionary_offset.then_some(start as i64))
            .set_data_page_offset(if has_dictionary_offset { first_page as i64 } else { start as i64 })
            .set_index_page_offset(None)
            .set_unencoded_byte_array_data_bytes(description.value_bytes)
            .set_definition_level_histogram(description.definition)
            .set_repetition_level_histogram(description.repetition);
        if let Some(statistics) = description.statistics {
            metadata = metadata.set_statistics(statistics);
        }
        if column.page_encoding_stats().is_some() {
            metadata = metadata.set_page_encoding_stats(counted(&encodings));
        }
        let close = ColumnCloseResult {
            bytes_written,
            rows_written: first_row as u64,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: description.column_index,
            offset_index,
        };
        let dictionary = dictionary.page.map(|(_, _, digest)| digest);
        let proof = ColumnProof::Pages(PagesProof { bytes: way.hasher.digest128(), dictionary, changed });
        Ok(Encoded { close, bloom_filter: description.bloom_filter, proof })
    }
}

/// How many pages there are of each sort and encoding, in the order they come in.
fn counted(pages: &[(PageType, Encoding)]) -> Vec<PageEncodingStats> {
    let mut stats: Vec<PageEncodingStats> = Vec::new();
    for (page_type, encoding) in pages.iter().copied() {
        match stats.iter_mut().find(|known| known.page_type == page_type && known.encoding == encoding) {
            Some(known) => known.count += 1,
            None => stats.push(PageEncodingStats { page_type, encoding, count: 1 }),
        }
    }
    stats
}
