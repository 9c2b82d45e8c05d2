//! Page copy: of a column chunk that loses rows, the pages that lose none are copied as the compressed bytes they are; the
//! others are decoded, freed of their rows and encoded again, each as it was. Or, where that is not certain to be right,
//! nothing is done and the chunk is left to [`Chunk::encode`].
//!
//! Nothing of a removed row survives (invariant 11): a dictionary entry that no kept row uses becomes a copy of one that is used,
//! bounds that a removed value may have made are made again, and a page whose own bounds show such a value is not copied.
//! Where pages begin is never taken from an index: rows are counted in the pages.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::Write;
use std::ops::{Bound as Bound_, Range};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use parquet::basic::{BoundaryOrder, Compression, Encoding, EncodingMask, PageType, SortOrder, Type as PhysicalType};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{CompressedPage, Page, PageMetadata, PageReader, PageWriter};
use parquet::column::reader::{ColumnReaderImpl, get_column_reader};
use parquet::column::writer::{ColumnCloseResult, ColumnWriterImpl, get_column_writer};
use parquet::data_type::{AsBytes, DataType};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, LevelHistogram, PageEncodingStats};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::page_index::offset_index::{OffsetIndexMetaData, PageLocation};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::file::statistics::{Statistics, ValueStatistics};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use roaring::{RoaringBitmap, RoaringTreemap};
use xxhash_rust::xxh3::Xxh3;

use super::parquet_chunk::{
    Batch, Change, CheckedPages, Chunk, ColumnDigest, ColumnProof, Encoded, Replace, Window, Work, edit, general, in_type,
};
use super::parquet_packed::{Hybrid, Plain, decode_levels, is_dictionary, level_bits, pack, parts};
use super::parquet_v1::{compressed, compresses};
use crate::page_bytes;
use crate::residue::Bound;
use crate::thrift;

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
    /// Pages that were encoded again: by number, the rows and the digest of their levels and values.
    changed: BTreeMap<usize, (u64, u128)>,
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
    W: Write + Send,
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
    let picks: Vec<bool> = (0..layout.pages.len()).map(|page| proof.changed.contains_key(&page)).collect();
    let changed: Vec<(u64, u128)> = proof.changed.values().copied().collect();
    let descr = chunk.column.column_descr_ptr();
    let reader = get_column_reader(descr.clone(), Picked::checked(&window, chunk, &layout, &picks, None)?);
    in_type(reader, &descr, &Change::Remove, None, Compare { descr: &descr, changed: &changed })
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

/// A page as its header describes it.
#[derive(Debug)]
struct Place {
    start: u64,
    end: u64,
    kind: PageType,
    encoding: Encoding,
    /// Levels, or the entries of a dictionary.
    values: u64,
    /// Of the row group. Empty until they are counted, where values repeat.
    rows: Range<u64>,
    /// Repetition and definition levels, where there are such, are in encoding RLE and not in the deprecated one.
    has_packed_levels: bool,
    header_bytes: u64,
    /// Of the content.
    uncompressed_bytes: u64,
    bounds: Vec<Bound>,
}

impl Place {
    fn is_coded(&self) -> bool {
        is_dictionary(self.encoding)
    }
}

/// The pages of a chunk, which follow one another without a gap: perhaps a dictionary, then data.
struct Layout {
    dictionary: Option<Place>,
    pages: Vec<Place>,
}

impl Layout {
    /// `None`: there is something else, or something that is not known.
    fn read<R: ChunkReader>(window: &Window<R>, column: &ColumnChunkMetaData) -> Result<Option<Layout>> {
        let (start, length) = column.byte_range();
        let (mut at, mut row, mut layout) = (start, 0, Layout { dictionary: None, pages: Vec::new() });
        while at < start + length {
            let (header, sizes) = window.header(at)?;
            let Some(mut place) = Place::read(&header, at, sizes.bytes, max_levels(column)) else { return Ok(None) };
            at = place.end;
            if place.kind == PageType::DICTIONARY_PAGE {
                if layout.dictionary.is_some() || !layout.pages.is_empty() {
                    return Ok(None);
                }
                layout.dictionary = Some(place);
                continue;
            }
            if column.column_descr().max_rep_level() == 0 {
                place.rows = row..row + place.values;
                row += place.values;
            }
            layout.pages.push(place);
        }
        Ok(Some(layout))
    }

    /// Of a chunk whose pages begin with rows, and which holds as many values and rows as it should.
    fn of_source<R: ChunkReader + Clone + 'static>(
        chunk: &Chunk<'_, R>,
        window: &Arc<Window<R>>,
    ) -> Result<Option<Layout>> {
        let Some(mut layout) = Layout::read(window, chunk.column)? else { return Ok(None) };
        if chunk.column.column_descr().max_rep_level() > 0 && !layout.count_rows(chunk, window)? {
            return Ok(None);
        }
        let values: u64 = layout.pages.iter().map(|page| page.values).sum();
        let rows = layout.pages.last().map_or(0, |page| page.rows.end);
        Ok((values == chunk.column.num_values() as u64 && rows == chunk.rows).then_some(layout))
    }

    /// Counts the rows of pages with repetition levels; whether each begins with a row.
    fn count_rows<R: ChunkReader + Clone + 'static>(
        &mut self,
        chunk: &Chunk<'_, R>,
        window: &Arc<Window<R>>,
    ) -> Result<bool> {
        if self.pages.iter().any(|place| !place.has_packed_levels) {
            return Ok(false);
        }
        let (max_repetition, max_definition) = max_levels(chunk.column);
        let all = vec![true; self.pages.len()];
        let mut pages = Picked::checked(window, chunk, self, &all, None)?;
        let (mut levels, mut row) = (Vec::new(), 0);
        for place in &mut self.pages {
            let mut page = pages.get_next_page()?;
            if page.as_ref().is_some_and(Page::is_dictionary_page) {
                page = pages.get_next_page()?;
            }
            let page = page.ok_or_else(|| general("fewer pages than headers"))?;
            let [repetition, ..] = parts(&page, max_repetition, max_definition)?;
            decode_levels(repetition, max_repetition, place.values as usize, &mut levels)?;
            if levels.first().is_some_and(|level| *level > 0) {
                return Ok(false);
            }
            let rows = levels.iter().filter(|level| **level == 0).count() as u64;
            place.rows = row..row + rows;
            row += rows;
        }
        Ok(true)
    }
}

impl Place {
    /// Of a page at `start` that has so many `bytes`, header and all.
    fn read(header: &[u8], start: u64, bytes: u64, (max_repetition, max_definition): (u16, u16)) -> Option<Place> {
        let (page, _) = thrift::read(header).ok()?;
        // Field numbers are those of `PageHeader` and of the header of each sort in parquet.thrift.
        let (kind, number, [encoding, statistics]) = match page.integer(1)? {
            0 => (PageType::DATA_PAGE, 5, [2, 5]),
            2 => (PageType::DICTIONARY_PAGE, 7, [2, -1]),
            3 => (PageType::DATA_PAGE_V2, 8, [4, 8]),
            _ => return None,
        };
        let of = page.field(number)?;
        let is_packed = |max: u16, field: i16| max == 0 || of.integer(field) == Some(3);
        Some(Place {
            start,
            end: start + bytes,
            kind,
            encoding: known_encoding(of.integer(encoding)?)?,
            values: of.integer(1)?.try_into().ok()?,
            rows: 0..0,
            has_packed_levels: kind != PageType::DATA_PAGE || (is_packed(max_definition, 3) && is_packed(max_repetition, 4)),
            header_bytes: header.len() as u64,
            uncompressed_bytes: page.integer(2)?.try_into().ok()?,
            bounds: of.fields(statistics).flat_map(|statistics| page_bytes::bounds(statistics, header)).collect(),
        })
    }
}

fn known_encoding(number: i64) -> Option<Encoding> {
    #[allow(deprecated)]
    Some(match number {
        0 => Encoding::PLAIN,
        2 => Encoding::PLAIN_DICTIONARY,
        3 => Encoding::RLE,
        5 => Encoding::DELTA_BINARY_PACKED,
        6 => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        7 => Encoding::DELTA_BYTE_ARRAY,
        8 => Encoding::RLE_DICTIONARY,
        9 => Encoding::BYTE_STREAM_SPLIT,
        _ => return None,
    })
}

/// Of repetition and of definition.
fn max_levels(column: &ColumnChunkMetaData) -> (u16, u16) {
    let descr = column.column_descr();
    (descr.max_rep_level().unsigned_abs(), descr.max_def_level().unsigned_abs())
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
        && (layout.dictionary.is_some() || !layout.pages.iter().any(Place::is_coded))
        && layout.pages.iter().filter(|page| page.is_coded()).all(|page| page.has_packed_levels)
        && !(adds_values && picked().any(Place::is_coded))
        && (layout.dictionary.is_none() || compresses(chunk.column.compression()))
        && (layout.dictionary.is_none() || chunk.column.column_type() != PhysicalType::BOOLEAN)
}

/// The dictionary and some of the data pages of a chunk, as if there were no others.
struct Picked<R: ChunkReader> {
    pages: SerializedPageReader<Window<R>>,
    /// By page, the dictionary with the others.
    picks: VecDeque<bool>,
    given: Option<Given>,
}

/// Pages that a column reader took, for who wants to see them as well.
type Given = Arc<Mutex<VecDeque<Page>>>;

impl<R: ChunkReader + 'static> Picked<R> {
    fn checked(
        window: &Arc<Window<R>>,
        chunk: &Chunk<'_, impl ChunkReader>,
        layout: &Layout,
        picks: &[bool],
        given: Option<Given>,
    ) -> Result<Box<dyn PageReader>> {
        let pages = SerializedPageReader::new(Arc::clone(window), chunk.column, chunk.rows as usize, None)?;
        let picks = layout.dictionary.iter().map(|_| true).chain(picks.iter().copied()).collect();
        Ok(Box::new(CheckedPages::new(Picked { pages, picks, given }, chunk.column)))
    }
}

impl<R: ChunkReader> Iterator for Picked<R> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl<R: ChunkReader> PageReader for Picked<R> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        while let Some(is_picked) = self.picks.pop_front() {
            if !is_picked {
                self.pages.skip_next_page()?;
                continue;
            }
            let page = self.pages.get_next_page()?;
            if let (Some(given), Some(page)) = (&self.given, &page) {
                given.lock().map_err(|_| general("a reader panicked"))?.push_back(page.clone());
            }
            return Ok(page);
        }
        Ok(None)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        Err(ParquetError::NYI("a look at the next of some pages".to_owned()))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        Err(ParquetError::NYI("a step over one of some pages".to_owned()))
    }

    /// Pages are picked only where each begins with a row.
    fn at_record_boundary(&mut self) -> Result<bool> {
        Ok(true)
    }
}

/// Counts of levels and values, as statistics give them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tally {
    rows: u64,
    levels: u64,
    values: u64,
    definition: Vec<i64>,
    repetition: Vec<i64>,
    /// Of values of varying length, without the lengths themselves.
    value_bytes: u64,
}

impl Tally {
    fn new(column: &ColumnChunkMetaData) -> Tally {
        let (max_repetition, max_definition) = max_levels(column);
        let zeros = |max: u16| vec![0; max as usize + 1];
        Tally { definition: zeros(max_definition), repetition: zeros(max_repetition), ..Tally::default() }
    }

    fn add<T: DataType>(&mut self, batch: &Batch<T>) {
        let rows = self.repetition[0];
        for (counts, levels) in [(&mut self.definition, &batch.definition), (&mut self.repetition, &batch.repetition)] {
            match counts.len() {
                1 => counts[0] += batch.levels as i64,
                _ => levels.iter().for_each(|level| counts[*level as usize] += 1),
            }
        }
        self.rows += (self.repetition[0] - rows) as u64;
        self.levels += batch.levels as u64;
        self.values += batch.values.len() as u64;
        if T::get_physical_type() == PhysicalType::BYTE_ARRAY {
            self.value_bytes += batch.values.iter().map(|value| value.as_bytes().len() as u64).sum::<u64>();
        }
    }

    fn nulls(&self) -> i64 {
        (self.levels - self.values) as i64
    }
}

/// A page that was encoded again.
struct NewPage {
    /// With its header.
    bytes: Vec<u8>,
    uncompressed_bytes: u64,
    kept: Tally,
    /// For the column index; `None`: there is none, no value, or none that can be compared.
    bounds: Option<[Vec<u8>; 2]>,
    digest: u128,
}

/// What became of the pages that were gone over.
#[derive(Default)]
struct Edited {
    /// By number; `None`: no row is left of it.
    pages: HashMap<usize, Option<NewPage>>,
    /// Values that went from pages, by entry of the dictionary where it has them.
    gone_values: BTreeSet<Vec<u8>>,
    gone_entries: RoaringBitmap,
    /// Entries that kept values of these pages use.
    kept_entries: RoaringBitmap,
    before: Tally,
    after: Tally,
}

/// One chunk on its way through.
struct Pass<'a, R: ChunkReader> {
    chunk: &'a Chunk<'a, R>,
    window: Arc<Window<R>>,
    layout: Layout,
    rows: &'a RoaringTreemap,
    change: &'a Change<'a>,
    edited: Edited,
}

impl<R: ChunkReader + Clone + 'static> Pass<'_, R> {
    /// Decodes the picked pages, does the change and encodes them again.
    fn edit(&mut self, picks: &[bool]) -> Result<()> {
        if !picks.contains(&true) {
            return Ok(());
        }
        let given = Given::default();
        let pages = Picked::checked(&self.window, self.chunk, &self.layout, picks, Some(Arc::clone(&given)))?;
        let descr = self.chunk.column.column_descr_ptr();
        if self.edited.pages.is_empty() {
            (self.edited.before, self.edited.after) = (Tally::new(self.chunk.column), Tally::new(self.chunk.column));
        }
        let work = EditPages {
            chunk: self.chunk,
            places: self.layout.pages.iter().enumerate().filter(|(number, _)| picks[*number]).collect(),
            rows: self.rows,
            given,
            edited: &mut self.edited,
        };
        in_type(get_column_reader(descr.clone(), pages), &descr, self.change, None, work)
    }
}

struct EditPages<'a, R> {
    chunk: &'a Chunk<'a, R>,
    places: Vec<(usize, &'a Place)>,
    rows: &'a RoaringTreemap,
    given: Given,
    edited: &'a mut Edited,
}

impl<R> Work for EditPages<'_, R> {
    type Done = ();

    fn run<T: DataType>(mut self, mut reader: ColumnReaderImpl<T>, replace: &Replace<'_, T::T>) -> Result<()> {
        for (number, place) in std::mem::take(&mut self.places) {
            let page = self.page(place, &mut reader, replace)?;
            self.edited.pages.insert(number, page);
        }
        Ok(())
    }
}

impl<R> EditPages<'_, R> {
    fn page<T: DataType>(
        &mut self,
        place: &Place,
        reader: &mut ColumnReaderImpl<T>,
        replace: &Replace<'_, T::T>,
    ) -> Result<Option<NewPage>> {
        let descr = self.chunk.column.column_descr_ptr();
        let (mut batch, mut kept, mut gone) =
            (Batch::<T>::new(&descr), Batch::<T>::new(&descr), Batch::<T>::new(&descr));
        let (mut row, mut tally, mut digest) =
            (place.rows.start, Tally::new(self.chunk.column), ColumnDigest::default());
        batch.fill(reader, place.rows.end - row)?;
        let page = self.given_page()?;
        let (max_repetition, max_definition) = max_levels(self.chunk.column);
        let mut coded = match place.is_coded() {
            true => Some(Coded::<T>::new(&page, max_repetition, max_definition)?),
            false => None,
        };
        let mut sink = TrackedWrite::new(Vec::new());
        let mut writer = page_writer::<T, R>(self.chunk, place, &mut sink)?;
        loop {
            if let Some(coded) = &mut coded {
                coded.unpack(&mut batch)?;
            }
            self.edited.before.add(&batch);
            let records = batch.records as u64;
            edit(&mut batch, &mut kept, &mut gone, row, self.rows, replace)?;
            row += records;
            kept.add_to(&mut digest);
            tally.add(&kept);
            self.edited.after.add(&kept);
            match &mut coded {
                Some(coded) => {
                    self.edited.gone_entries.extend(&gone.indexes);
                    coded.keep(&kept, &mut writer)?;
                }
                None => {
                    self.edited.gone_values.extend(gone.values.iter().map(|value| value.as_bytes().to_vec()));
                    kept.write_to(&mut writer)?;
                }
            }
            if row >= place.rows.end {
                break;
            }
            if records == 0 {
                return Err(general("a page holds fewer rows than it begins"));
            }
            batch.fill(reader, place.rows.end - row)?;
        }
        let close = writer.close()?;
        if tally.levels == 0 {
            return Ok(None);
        }
        let bounds = close.column_index.as_ref().filter(|index| index.num_pages() == 1);
        let bounds = bounds.and_then(|index| index_bounds(index, 0));
        let (bytes, uncompressed_bytes) = match coded {
            Some(coded) => {
                self.edited.kept_entries |= &coded.used;
                coded.page(&page, self.chunk.column, &tally)?
            }
            None => {
                let stats = close.metadata.page_encoding_stats();
                if stats.map(|stats| stats.iter().map(|stats| stats.count).sum()) != Some(1) {
                    return Err(general("a page became several"));
                }
                (sink.into_inner()?, close.metadata.uncompressed_size() as u64)
            }
        };
        Ok(Some(NewPage { bytes, uncompressed_bytes, kept: tally, bounds, digest: digest.finish() }))
    }

    /// The data page that the column reader took last.
    fn given_page(&self) -> Result<Page> {
        let mut given = self.given.lock().map_err(|_| general("a reader panicked"))?;
        while let Some(page) = given.pop_front() {
            if page.is_data_page() {
                return Ok(page);
            }
        }
        Err(general("a page without a row"))
    }
}

/// A writer for one page as `place` is: its own encoding, whatever its size. Of a page of dictionary indexes it is to make the
/// bounds alone.
fn page_writer<'s, T: DataType, R>(
    chunk: &Chunk<'_, R>,
    place: &Place,
    sink: &'s mut TrackedWrite<Vec<u8>>,
) -> Result<ColumnWriterImpl<'s, T>> {
    let statistics =
        if chunk.column_index.is_some() { EnabledStatistics::Page } else { EnabledStatistics::None };
    let version = match place.kind {
        PageType::DATA_PAGE_V2 => WriterVersion::PARQUET_2_0,
        _ => WriterVersion::PARQUET_1_0,
    };
    let (codec, encoding) = match place.is_coded() {
        true => (Compression::UNCOMPRESSED, Encoding::PLAIN),
        false => (chunk.column.compression(), place.encoding),
    };
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_compression(codec)
        .set_dictionary_enabled(false)
        .set_encoding(encoding)
        .set_data_page_size_limit(usize::MAX)
        .set_data_page_row_count_limit(usize::MAX)
        .set_statistics_enabled(statistics)
        .build();
    let pages = Box::new(SerializedPageWriter::new(sink));
    let writer = get_column_writer(chunk.column.column_descr_ptr(), Arc::new(properties), pages);
    T::get_column_writer(writer).ok_or_else(|| general("a writer of another type"))
}

/// A page of dictionary indexes: they are unpacked and packed again, and no value is made.
struct Coded<'a, T: DataType> {
    width: u8,
    indexes: Hybrid<'a>,
    kept: Vec<u32>,
    definition: Vec<u32>,
    repetition: Vec<u32>,
    used: RoaringBitmap,
    value: std::marker::PhantomData<T>,
}

impl<'a, T: DataType> Coded<'a, T> {
    fn new(page: &'a Page, max_repetition: u16, max_definition: u16) -> Result<Self> {
        let (width, indexes) = coded_values(page, max_repetition, max_definition)?;
        let (kept, definition, repetition) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Coded { width, indexes, kept, definition, repetition, used: RoaringBitmap::new(), value: Default::default() })
    }

    /// Reads the indexes of the batch's values.
    fn unpack(&mut self, batch: &mut Batch<T>) -> Result<()> {
        for _ in 0..batch.values.len() {
            batch.indexes.push(self.indexes.read()?);
        }
        Ok(())
    }

    /// Takes what is kept; `bounds` sees each value once.
    fn keep(&mut self, kept: &Batch<T>, bounds: &mut ColumnWriterImpl<'_, T>) -> Result<()> {
        self.definition.extend(kept.definition.iter().map(|level| u32::from(level.unsigned_abs())));
        self.repetition.extend(kept.repetition.iter().map(|level| u32::from(level.unsigned_abs())));
        let mut new = Vec::new();
        for (value, index) in kept.values.iter().zip(&kept.indexes) {
            if self.used.insert(*index) {
                new.push(value.clone());
            }
        }
        self.kept.extend(&kept.indexes);
        let descr = bounds.get_descriptor();
        let definition = vec![descr.max_def_level(); if descr.max_def_level() > 0 { new.len() } else { 0 }];
        let repetition = vec![0; if descr.max_rep_level() > 0 { new.len() } else { 0 }];
        let level = |levels: &[i16]| (!levels.is_empty()).then(|| levels.to_vec());
        bounds.write_batch(&new, level(&definition).as_deref(), level(&repetition).as_deref()).map(drop)
    }

    /// The page with its header, and its size before compression.
    fn page(self, old: &Page, column: &ColumnChunkMetaData, tally: &Tally) -> Result<(Vec<u8>, u64)> {
        let (max_repetition, max_definition) = max_levels(column);
        let (mut repetition, mut definition) = (Vec::new(), Vec::new());
        pack(&self.repetition, level_bits(max_repetition), &mut repetition);
        pack(&self.definition, level_bits(max_definition), &mut definition);
        let mut values = vec![self.width];
        pack(&self.kept, self.width.into(), &mut values);
        let codec = column.compression();
        let num_values = u32::try_from(tally.levels).map_err(|_| general("a page of too many values"))?;
        match old {
            Page::DictionaryPage { .. } => Err(general("a dictionary in place of values")),
            Page::DataPage { encoding, .. } => {
                let mut plain = Vec::with_capacity(repetition.len() + definition.len() + values.len() + 8);
                for (max, levels) in [(max_repetition, repetition), (max_definition, definition)] {
                    if max > 0 {
                        plain.extend_from_slice(&(levels.len() as u32).to_le_bytes());
                        plain.extend_from_slice(&levels);
                    }
                }
                plain.extend_from_slice(&values);
                let page = Page::DataPage {
                    buf: compressed(codec, &plain)?,
                    num_values,
                    encoding: *encoding,
                    def_level_encoding: Encoding::RLE,
                    rep_level_encoding: Encoding::RLE,
                    statistics: None,
                };
                serialized(CompressedPage::new(page, plain.len()))
            }
            Page::DataPageV2 { encoding, .. } => {
                let plain_bytes = repetition.len() + definition.len() + values.len();
                let packed = compressed(codec, &values)?;
                let is_compressed = codec != Compression::UNCOMPRESSED && packed.len() < values.len();
                let (repetition_bytes, definition_bytes) = (repetition.len() as u32, definition.len() as u32);
                let values = if is_compressed { packed } else { values.into() };
                let page = Page::DataPageV2 {
                    buf: [repetition, definition, values.to_vec()].concat().into(),
                    num_values,
                    encoding: *encoding,
                    num_nulls: tally.nulls() as u32,
                    num_rows: tally.rows as u32,
                    def_levels_byte_len: definition_bytes,
                    rep_levels_byte_len: repetition_bytes,
                    is_compressed,
                    statistics: None,
                };
                serialized(CompressedPage::new(page, plain_bytes))
            }
        }
    }
}

/// The width of the indexes of a page, and the indexes.
fn coded_values(page: &Page, max_repetition: u16, max_definition: u16) -> Result<(u8, Hybrid<'_>)> {
    let [_, _, values] = parts(page, max_repetition, max_definition)?;
    // A page of nulls alone may have no byte here.
    let (width, packed) = values.split_first().map_or((0, values), |(width, packed)| (*width, packed));
    Ok((width, Hybrid::new(packed, width.into())?))
}

/// The page with its header, and its size before compression, header included.
fn serialized(page: CompressedPage) -> Result<(Vec<u8>, u64)> {
    let mut sink = TrackedWrite::new(Vec::new());
    let uncompressed_bytes = SerializedPageWriter::new(&mut sink).write_page(page)?.uncompressed_size;
    Ok((sink.into_inner()?, uncompressed_bytes as u64))
}

/// The dictionary of a chunk, decompressed.
struct DictionaryPage {
    body: Bytes,
    entries: u32,
    encoding: Encoding,
    /// Bytes of an entry of fixed length.
    fixed_bytes: Option<usize>,
}

impl DictionaryPage {
    fn read<R: ChunkReader + 'static>(window: &Arc<Window<R>>, column: &ColumnChunkMetaData) -> Result<Self> {
        let mut pages = SerializedPageReader::new(Arc::clone(window), column, 0, None)?;
        let Some(Page::DictionaryPage { buf, num_values, encoding, .. }) = pages.get_next_page()? else {
            return Err(general("a chunk without its dictionary"));
        };
        let fixed_bytes = match column.column_type() {
            PhysicalType::INT32 | PhysicalType::FLOAT => Some(4),
            PhysicalType::INT64 | PhysicalType::DOUBLE => Some(8),
            PhysicalType::INT96 => Some(12),
            PhysicalType::FIXED_LEN_BYTE_ARRAY => Some(column.column_descr().type_length().max(0) as usize),
            PhysicalType::BYTE_ARRAY => None,
            PhysicalType::BOOLEAN => return Err(general("a dictionary of booleans")),
        };
        Ok(DictionaryPage { body: buf, entries: num_values, encoding, fixed_bytes })
    }

    fn entries(&self) -> Result<Vec<&[u8]>> {
        let mut plain = Plain::new(&self.body, self.fixed_bytes);
        // The page's header was looked over: no more entries than bytes.
        (0..self.entries).map(|_| plain.read()).collect()
    }

    /// The page with these entries in place of its own.
    fn page_of(&self, entries: &[&[u8]], codec: Compression) -> Result<(Vec<u8>, u64)> {
        let mut plain = Vec::with_capacity(self.body.len());
        for entry in entries {
            if self.fixed_bytes.is_none() {
                plain.extend_from_slice(&(entry.len() as u32).to_le_bytes());
            }
            plain.extend_from_slice(entry);
        }
        let page = Page::DictionaryPage {
            buf: compressed(codec, &plain)?,
            num_values: entries.len() as u32,
            encoding: self.encoding,
            is_sorted: false,
        };
        serialized(CompressedPage::new(page, plain.len()))
    }
}

fn digest_of(entries: &[&[u8]]) -> u128 {
    let mut hasher = Xxh3::new();
    for entry in entries {
        hasher.update(&(entry.len() as u32).to_le_bytes());
        hasher.update(entry);
    }
    hasher.digest128()
}

/// What becomes of a chunk's dictionary.
struct NewDictionary {
    /// With its header, and its size before compression; `None`: it is copied, if there is one.
    page: Option<(Vec<u8>, u64, u128)>,
    /// Values that the chunk holds no more.
    gone: BTreeSet<Vec<u8>>,
}

impl<R: ChunkReader + Clone + 'static> Pass<'_, R> {
    /// Finds the entries that no kept row uses and whose values removed rows had. `None`: nothing is left to put in their place.
    fn dictionary(&self, touched: &[bool]) -> Result<Option<NewDictionary>> {
        let mut gone = self.edited.gone_values.clone();
        let unchanged = |gone| Ok(Some(NewDictionary { page: None, gone }));
        if self.layout.dictionary.is_none() || (gone.is_empty() && self.edited.gone_entries.is_empty()) {
            return unchanged(gone);
        }
        let page = DictionaryPage::read(&self.window, self.chunk.column)?;
        let mut entries = page.entries()?;
        if self.edited.gone_entries.iter().chain(&self.edited.kept_entries).any(|entry| entry >= page.entries) {
            return Err(general("an index past its dictionary"));
        }
        // The same value may stand in several entries, of which an earlier rewrite made some: they go together or not at all.
        let of_gone: BTreeSet<&[u8]> =
            self.edited.gone_entries.iter().map(|entry| entries[entry as usize]).collect();
        let mut suspects: HashMap<&[u8], RoaringBitmap> = HashMap::new();
        for (number, entry) in (0u32..).zip(&entries) {
            if of_gone.contains(entry) || gone.contains(*entry) {
                suspects.entry(entry).or_default().insert(number);
            }
        }
        let mut used = self.edited.kept_entries.clone();
        suspects.retain(|_, numbers| numbers.is_disjoint(&used));
        if !suspects.is_empty() {
            self.find_used(touched, &mut used, &mut suspects)?;
        }
        let unused: RoaringBitmap = suspects.values().flatten().collect();
        gone.extend(suspects.keys().map(|value| value.to_vec()));
        if unused.is_empty() {
            return unchanged(gone);
        }
        let Some(spare) = used.min() else { return Ok(None) };
        let spare = *entries.get(spare as usize).ok_or_else(|| general("an index past its dictionary"))?;
        unused.iter().for_each(|number| entries[number as usize] = spare);
        let (bytes, uncompressed_bytes) = page.page_of(&entries, self.chunk.column.compression())?;
        Ok(Some(NewDictionary { page: Some((bytes, uncompressed_bytes, digest_of(&entries))), gone }))
    }

    /// Looks through the pages that are copied for entries that they use, until no suspect is left.
    fn find_used(
        &self,
        touched: &[bool],
        used: &mut RoaringBitmap,
        suspects: &mut HashMap<&[u8], RoaringBitmap>,
    ) -> Result<()> {
        let picks: Vec<bool> =
            self.layout.pages.iter().zip(touched).map(|(page, touched)| !touched && page.is_coded()).collect();
        let (max_repetition, max_definition) = max_levels(self.chunk.column);
        let mut pages = Picked::checked(&self.window, self.chunk, &self.layout, &picks, None)?;
        let mut definition = Vec::new();
        while let Some(page) = pages.get_next_page()? {
            if page.is_dictionary_page() {
                continue;
            }
            let [_, packed, _] = parts(&page, max_repetition, max_definition)?;
            let levels = page.num_values() as usize;
            decode_levels(packed, max_definition, levels, &mut definition)?;
            let values = match max_definition {
                0 => levels,
                max => definition.iter().filter(|level| **level == max).count(),
            };
            let (_, mut indexes) = coded_values(&page, max_repetition, max_definition)?;
            let mut of_page = RoaringBitmap::new();
            let mut last = None;
            for _ in 0..values {
                let index = indexes.read()?;
                if last != Some(index) {
                    of_page.insert(index);
                    last = Some(index);
                }
            }
            *used |= of_page;
            suspects.retain(|_, numbers| numbers.is_disjoint(used));
            if suspects.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// The pages that lose no row and whose bounds a removed value may still have made: bounds need not be those of the page.
    fn stale(&self, touched: &[bool], dictionary: &NewDictionary) -> Vec<bool> {
        // One of two values names nobody, and nearly every page has both.
        let none = dictionary.gone.is_empty() || self.chunk.column.column_type() == PhysicalType::BOOLEAN;
        let descr = self.chunk.column.column_descr();
        let shows = |bound: &Bound| may_show(bound, &dictionary.gone, descr.physical_type());
        let is_stale = |(number, place): (usize, &Place)| {
            let indexed = self.chunk.column_index.and_then(|index| index_bounds(index, number));
            let indexed = indexed.into_iter().flat_map(|[min, max]| {
                [(min, false), (max, true)].map(|(bytes, is_max)| Bound { bytes, is_max, exact: None })
            });
            !touched[number] && (place.bounds.iter().any(shows) || indexed.into_iter().any(|bound| shows(&bound)))
        };
        self.layout.pages.iter().enumerate().map(|page| !none && is_stale(page)).collect()
    }
}

/// Whether one of the values may have made the bound: it is the value, or what a writer that cuts leaves of it.
fn may_show(bound: &Bound, values: &BTreeSet<Vec<u8>>, physical: PhysicalType) -> bool {
    let is_cut_at = |head: &[u8]| {
        let next = values.range::<[u8], _>((Bound_::Included(head), Bound_::Unbounded)).next();
        next.is_some_and(|value| value.starts_with(head))
    };
    match physical {
        PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY if bound.exact != Some(true) => {
            is_cut_at(head(bound)) || of_either_zero(bound, values, physical)
        }
        _ => values.contains(&bound.bytes) || of_either_zero(bound, values, physical),
    }
}

/// What a value begins with that the bound was made of: of a maximum that was cut, the last character or byte was raised.
fn head(bound: &Bound) -> &[u8] {
    match std::str::from_utf8(&bound.bytes) {
        _ if !bound.is_max => &bound.bytes,
        Ok(text) => &bound.bytes[..text.char_indices().next_back().map_or(0, |(last, _)| last)],
        Err(_) => &bound.bytes[..bound.bytes.len() - 1],
    }
}

/// Writers give a bound of zero the sign that makes it the widest (parquet.thrift, `ColumnOrder`).
fn of_either_zero(bound: &Bound, values: &BTreeSet<Vec<u8>>, physical: PhysicalType) -> bool {
    let is_float = matches!(physical, PhysicalType::FLOAT | PhysicalType::DOUBLE) || bound.bytes.len() == 2;
    let Some((sign, rest)) = bound.bytes.split_last().filter(|_| is_float) else { return false };
    let signed = |sign: u8| [rest, &[sign]].concat();
    sign & 0x7f == 0 && rest.iter().all(|byte| *byte == 0) && (values.contains(&signed(0)) || values.contains(&signed(0x80)))
}

/// Minimum and maximum of a page in a column index.
fn index_bounds(index: &ColumnIndexMetaData, page: usize) -> Option<[Vec<u8>; 2]> {
    macro_rules! of {
        ($index:expr) => {
            $index.min_value(page).zip($index.max_value(page)).map(|bounds| [bounds.0, bounds.1].map(|b| b.as_bytes().to_vec()))
        };
    }
    match index {
        ColumnIndexMetaData::NONE => None,
        ColumnIndexMetaData::BOOLEAN(index) => of!(index),
        ColumnIndexMetaData::INT32(index) => of!(index),
        ColumnIndexMetaData::INT64(index) => of!(index),
        ColumnIndexMetaData::INT96(index) => of!(index),
        ColumnIndexMetaData::FLOAT(index) => of!(index),
        ColumnIndexMetaData::DOUBLE(index) => of!(index),
        ColumnIndexMetaData::BYTE_ARRAY(index) | ColumnIndexMetaData::FIXED_LEN_BYTE_ARRAY(index) => {
            index.min_value(page).zip(index.max_value(page)).map(|(min, max)| [min.to_vec(), max.to_vec()])
        }
    }
}

/// What tells of the chunk beside its pages.
struct Description {
    statistics: Option<Statistics>,
    bloom_filter: Option<Sbbf>,
    column_index: Option<ColumnIndexMetaData>,
    definition: Option<LevelHistogram>,
    repetition: Option<LevelHistogram>,
    value_bytes: Option<i64>,
}

impl<R: ChunkReader + Clone + 'static> Pass<'_, R> {
    /// `None`: what the source says of itself does not add up.
    fn describe(&self, dictionary: &NewDictionary) -> Result<Option<Description>> {
        let column = self.chunk.column;
        let Edited { before, after, .. } = &self.edited;
        let moved = |old: &LevelHistogram, before: &[i64], after: &[i64]| -> Option<LevelHistogram> {
            // Where there is but one level, some writers count none.
            if old.is_empty() && before.len() == 1 {
                return Some(old.clone());
            }
            let levels = old.values().iter().zip(before.iter().zip(after));
            let levels: Vec<i64> = levels.map(|(old, (before, after))| old - before + after).collect();
            (old.len() == before.len() && levels.iter().all(|count| *count >= 0)).then(|| levels.into())
        };
        macro_rules! or_unfit {
            ($old:expr, $new:expr) => {
                match $old {
                    None => None,
                    Some(old) => match $new(old) {
                        None => return Ok(None),
                        some => some,
                    },
                }
            };
        }
        let definition = or_unfit!(column.definition_level_histogram(), |old| moved(old, &before.definition, &after.definition));
        let repetition = or_unfit!(column.repetition_level_histogram(), |old| moved(old, &before.repetition, &after.repetition));
        let value_bytes = or_unfit!(column.unencoded_byte_array_data_bytes(), |old: i64| {
            Some(old - before.value_bytes as i64 + after.value_bytes as i64).filter(|bytes| *bytes >= 0)
        });
        let has_filter = column.bloom_filter_offset().is_some();
        let (surveyed, bloom_filter) = if has_filter || self.must_survey(dictionary) {
            self.chunk.survey(self.rows, self.change)?
        } else {
            (None, None)
        };
        let statistics = match (column.statistics(), surveyed) {
            (None, _) => None,
            (Some(_), Some(surveyed)) => Some(surveyed),
            (Some(old), None) => Some(with_null_count(old, self.null_count(old))),
        };
        let column_index = self.column_index()?;
        Ok(Some(Description { statistics, bloom_filter, column_index, definition, repetition, value_bytes }))
    }

    /// Whether bounds of the chunk may have come from values that are gone, or others from values that are new.
    fn must_survey(&self, dictionary: &NewDictionary) -> bool {
        let Some(statistics) = self.chunk.column.statistics() else { return false };
        let adds_values = match self.change {
            Change::Remove | Change::Null => false,
            Change::Constant(_) | Change::Tag(_) => true,
        };
        let bounds = [
            (statistics.min_bytes_opt(), false, statistics.min_is_exact()),
            (statistics.max_bytes_opt(), true, statistics.max_is_exact()),
        ];
        let shows = |(bytes, is_max, exact): (Option<&[u8]>, bool, bool)| {
            let exact = exact.then_some(true);
            let bound = bytes.map(|bytes| Bound { bytes: bytes.to_vec(), is_max, exact });
            bound.is_some_and(|bound| may_show(&bound, &dictionary.gone, self.chunk.column.column_type()))
        };
        let has_bounds = bounds.iter().any(|(bytes, ..)| bytes.is_some());
        has_bounds && (adds_values || bounds.into_iter().any(shows))
    }

    /// The chunk's count of nulls by difference, where the source counted them as we do.
    fn null_count(&self, old: &Statistics) -> Option<u64> {
        let nulls = i64::try_from(old.null_count_opt()?).ok()?;
        let Edited { before, after, .. } = &self.edited;
        let column = self.chunk.column;
        // Of lists, some writers count empty ones and some do not.
        let agrees = column.column_descr().max_rep_level() == 0
            || nulls == 0
            || column.definition_level_histogram().is_some_and(|levels| {
                levels.values().split_last().is_some_and(|(_, nulled)| nulled.iter().sum::<i64>() == nulls)
            });
        let new = if nulls == 0 && after.nulls() <= before.nulls() { 0 } else { nulls - before.nulls() + after.nulls() };
        if agrees { u64::try_from(new).ok() } else { None }
    }

    fn column_index(&self) -> Result<Option<ColumnIndexMetaData>> {
        let Some(old) = self.chunk.column_index else { return Ok(None) };
        let descr = self.chunk.column.column_descr();
        let mut index = ColumnIndexBuilder::new(descr.physical_type());
        let (mut same_bounds, mut bounds) = (true, Vec::new());
        let histogram = |levels: &[i64]| Some(LevelHistogram::from(levels.to_vec()));
        for number in 0..self.layout.pages.len() {
            let old_bounds = index_bounds(old, number);
            let (new_bounds, null_page, null_count, repetition, definition) = match self.edited.pages.get(&number) {
                Some(None) => continue,
                Some(Some(page)) => {
                    same_bounds &= page.bounds == old_bounds;
                    (page.bounds.clone(), page.kept.values == 0, page.kept.nulls(), Some(&page.kept.repetition[..]), Some(&page.kept.definition[..]))
                }
                None => (
                    old_bounds,
                    old.is_null_page(number),
                    old.null_count(number).unwrap_or(0),
                    old.repetition_level_histogram(number),
                    old.definition_level_histogram(number),
                ),
            };
            // Values without an order, as of NaN alone: then there is no index.
            if new_bounds.is_none() && !null_page {
                return Ok(None);
            }
            let [min, max] = new_bounds.clone().unwrap_or_default();
            bounds.extend(new_bounds);
            index.append(null_page, min, max, null_count);
            let of = |levels: Option<&[i64]>, there: bool| levels.filter(|_| there).and_then(histogram);
            index.append_histograms(
                &of(repetition, old.repetition_level_histogram(number).is_some()),
                &of(definition, old.definition_level_histogram(number).is_some()),
            );
        }
        let order = old.get_boundary_order().unwrap_or(BoundaryOrder::UNORDERED);
        let holds = same_bounds || is_ordered(&bounds, order, descr.physical_type(), descr.sort_order());
        index.set_boundary_order(if holds { order } else { BoundaryOrder::UNORDERED });
        index.build().map(Some)
    }
}

/// Whether minima and maxima both stand in this order; `false` also where the order of values is not known here.
fn is_ordered(bounds: &[[Vec<u8>; 2]], order: BoundaryOrder, physical: PhysicalType, sort: SortOrder) -> bool {
    use std::cmp::Ordering;
    let compare = |a: &Vec<u8>, b: &Vec<u8>| -> Option<Ordering> {
        macro_rules! of {
            ($number:ty) => {
                <$number>::from_le_bytes(a.as_slice().try_into().ok()?).partial_cmp(&<$number>::from_le_bytes(b.as_slice().try_into().ok()?))
            };
        }
        match (physical, sort) {
            (PhysicalType::BOOLEAN | PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY, SortOrder::UNSIGNED) => Some(a.cmp(b)),
            (PhysicalType::INT32, SortOrder::SIGNED) => of!(i32),
            (PhysicalType::INT64, SortOrder::SIGNED) => of!(i64),
            (PhysicalType::INT32, SortOrder::UNSIGNED) => of!(u32),
            (PhysicalType::INT64, SortOrder::UNSIGNED) => of!(u64),
            (PhysicalType::FLOAT, SortOrder::SIGNED) => of!(f32),
            (PhysicalType::DOUBLE, SortOrder::SIGNED) => of!(f64),
            _ => None,
        }
    };
    let unwanted = match order {
        BoundaryOrder::UNORDERED => return false,
        BoundaryOrder::ASCENDING => Ordering::Greater,
        BoundaryOrder::DESCENDING => Ordering::Less,
    };
    bounds.windows(2).all(|pair| {
        (0..2).all(|side| compare(&pair[0][side], &pair[1][side]).is_some_and(|order| order != unwanted))
    })
}

fn with_null_count(old: &Statistics, null_count: Option<u64>) -> Statistics {
    fn of<T: Clone>(old: &ValueStatistics<T>, null_count: Option<u64>, is_deprecated: bool) -> ValueStatistics<T> {
        ValueStatistics::new(old.min_opt().cloned(), old.max_opt().cloned(), None, null_count, is_deprecated)
            .with_min_is_exact(old.min_is_exact())
            .with_max_is_exact(old.max_is_exact())
            .with_backwards_compatible_min_max(old.is_min_max_backwards_compatible())
    }
    let is_deprecated = old.is_min_max_deprecated();
    match old {
        Statistics::Boolean(old) => Statistics::Boolean(of(old, null_count, is_deprecated)),
        Statistics::Int32(old) => Statistics::Int32(of(old, null_count, is_deprecated)),
        Statistics::Int64(old) => Statistics::Int64(of(old, null_count, is_deprecated)),
        Statistics::Int96(old) => Statistics::Int96(of(old, null_count, is_deprecated)),
        Statistics::Float(old) => Statistics::Float(of(old, null_count, is_deprecated)),
        Statistics::Double(old) => Statistics::Double(of(old, null_count, is_deprecated)),
        Statistics::ByteArray(old) => Statistics::ByteArray(of(old, null_count, is_deprecated)),
        Statistics::FixedLenByteArray(old) => Statistics::FixedLenByteArray(of(old, null_count, is_deprecated)),
    }
}

/// Passes the bytes of a range on in bounded pieces.
fn copy<R: ChunkReader>(window: &Window<R>, range: Range<u64>, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + COPY_BYTES);
        each(&window.bytes(at..end)?)?;
        at = end;
    }
    Ok(())
}

impl<R: ChunkReader + Clone + 'static> Pass<'_, R> {
    fn write<W: Write>(
        self,
        dictionary: NewDictionary,
        description: Description,
        out: &mut TrackedWrite<W>,
    ) -> Result<Encoded> {
        let column = self.chunk.column;
        let start = out.bytes_written() as u64;
        let mut hasher = Xxh3::new();
        let mut put = |bytes: &[u8]| -> Result<u64> {
            hasher.update(bytes);
            out.write_all(bytes)?;
            Ok(out.bytes_written() as u64)
        };
        let mut at = start;
        let (mut uncompressed_bytes, mut values, mut first_row) = (0, 0, 0);
        let mut encodings: Vec<(PageType, Encoding)> = Vec::new();
        if let Some(place) = &self.layout.dictionary {
            encodings.push((place.kind, place.encoding));
            match &dictionary.page {
                Some((bytes, uncompressed, _)) => {
                    at = put(bytes)?;
                    uncompressed_bytes += uncompressed;
                }
                None => {
                    copy(&self.window, place.start..place.end, |bytes| put(bytes).map(|end| at = end))?;
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
                    at = put(&page.bytes)?;
                    changed.insert(locations.len(), (page.kept.rows, page.digest));
                    uncompressed_bytes += page.uncompressed_bytes;
                    values += page.kept.levels;
                    (page.kept.rows, Some(page.kept.value_bytes as i64))
                }
                None => {
                    copy(&self.window, place.start..place.end, |bytes| put(bytes).map(|end| at = end))?;
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
            unencoded_byte_array_data_bytes: old_bytes.filter(|_| value_bytes.len() == locations.len()).map(|_| value_bytes),
            page_locations: locations,
        });
        let has_dictionary_offset = column.dictionary_page_offset().is_some();
        let used: Vec<Encoding> = column
            .encodings()
            .chain(encodings.iter().map(|(_, encoding)| *encoding))
            .chain([Encoding::RLE])
            .collect();
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
        let proof = ColumnProof::Pages(PagesProof { bytes: hasher.digest128(), dictionary, changed });
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
