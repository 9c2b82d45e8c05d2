//! One column chunk: decoded, freed of rows or with some cells redacted, and encoded again as its source was; or only read and
//! digested.
//!
//! Works on physical values with their definition and repetition levels, so every type survives, whatever it means: INT96,
//! decimals of any width, fixed-length binaries, legacy lists.

use std::io::{Cursor, Read, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, PageType, Type as PhysicalType};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{CompressedPage, Page, PageMetadata, PageReader, PageWriteSpec, PageWriter};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::column::writer::{ColumnCloseResult, ColumnWriterImpl, get_column_writer};
use parquet::data_type::{AsBytes, ByteArray, DataType, FixedLenByteArray};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, PageEncodingStats};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::properties::{
    DEFAULT_STATISTICS_TRUNCATE_LENGTH, EnabledStatistics, WriterProperties, WriterVersion,
};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use roaring::RoaringTreemap;
use xxhash_rust::xxh3::Xxh3;

use super::parquet_codec;
use super::parquet_filled::FilledPages;
use super::parquet_pages::PagesProof;
use super::parquet_v1::{self, FirstVersion};
use crate::parquet_bounds::{self, Expansion, PageBounds};

/// Records decoded at a time.
const BATCH_RECORDS: u64 = 8192;

/// What a matching row's cell becomes.
pub enum Change<'a> {
    /// The whole row goes.
    Remove,
    Null,
    Constant(&'a str),
    Tag(&'a (dyn Fn(&[u8]) -> String + Sync)),
}

/// What a text that holds something it should not becomes; `None`: it holds nothing such.
pub type Clean<'a> = dyn Fn(&[u8]) -> Option<Vec<u8>> + Sync + 'a;

/// A column chunk of the source.
pub struct Chunk<'a, R> {
    pub source: &'a R,
    pub column: &'a ColumnChunkMetaData,
    pub rows: u64,
    pub offset_index: Option<&'a OffsetIndexMetaData>,
    pub column_index: Option<&'a ColumnIndexMetaData>,
}

/// How a column chunk is proven on read-back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnProof {
    /// Copied: by its bytes.
    Bytes(u128),
    /// Encoded anew: by its levels and values in order.
    Values(u128),
    /// Some pages copied, the others encoded anew.
    Pages(PagesProof),
}

/// A rewritten chunk: what its writer says of it, its bloom filter, and how it is proven.
pub struct Encoded {
    pub close: ColumnCloseResult,
    pub bloom_filter: Option<Sbbf>,
    pub proof: ColumnProof,
}

/// An order-sensitive digest of levels and values. Three streams, so that it does not depend on how a reader batches.
#[derive(Default)]
pub struct ColumnDigest {
    definition: Xxh3,
    repetition: Xxh3,
    values: Xxh3,
    /// Small pieces are put together here: a hasher takes its time over each that it is given.
    pieces: Vec<u8>,
}

const PIECES_BYTES: usize = 32 << 10;

impl ColumnDigest {
    fn add<T: DataType>(&mut self, batch: &Batch<T>) {
        let ColumnDigest { definition, repetition, values, pieces } = self;
        for (hasher, levels) in [(definition, &batch.definition), (repetition, &batch.repetition)] {
            for levels in levels.chunks(PIECES_BYTES / 2) {
                pieces.resize(levels.len() * 2, 0);
                let each = pieces.chunks_exact_mut(2).zip(levels);
                each.for_each(|(piece, level)| piece.copy_from_slice(&level.to_le_bytes()));
                hasher.update(pieces);
            }
        }
        pieces.clear();
        for value in &batch.values {
            let bytes = value.as_bytes();
            pieces.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            pieces.extend_from_slice(bytes);
            if pieces.len() >= PIECES_BYTES {
                values.update(pieces);
                pieces.clear();
            }
        }
        values.update(pieces);
    }

    pub fn finish(&self) -> u128 {
        let mut all = Xxh3::new();
        for part in [&self.definition, &self.repetition, &self.values] {
            all.update(&part.digest128().to_le_bytes());
        }
        all.digest128()
    }
}

/// What is done with a column in its own type.
pub trait Work {
    type Done;
    fn run<T: DataType>(self, reader: ColumnReaderImpl<T>, replace: &Replace<'_, T::T>) -> Result<Self::Done>;
}

/// Does `work` with what `reader` reads; `change` and `clean` are put into the column's type for it.
pub fn in_type<W: Work>(
    reader: ColumnReader,
    descr: &ColumnDescPtr,
    change: &Change<'_>,
    clean: Option<&Clean<'_>>,
    work: W,
) -> Result<W::Done> {
    macro_rules! run {
        ($reader:expr, $constant:expr, $tag:expr, $clean:expr) => {
            work.run($reader, &Replace::new(change, descr, $constant, $tag, $clean)?)
        };
    }
    match reader {
        ColumnReader::BoolColumnReader(reader) => run!(reader, parse::<bool>, no_tag, None),
        ColumnReader::Int32ColumnReader(reader) => run!(reader, parse_integer::<i32>, no_tag, None),
        ColumnReader::Int64ColumnReader(reader) => run!(reader, parse_integer::<i64>, no_tag, None),
        ColumnReader::Int96ColumnReader(reader) => run!(reader, no_constant, no_tag, None),
        ColumnReader::FloatColumnReader(reader) => run!(reader, parse::<f32>, no_tag, None),
        ColumnReader::DoubleColumnReader(reader) => run!(reader, parse::<f64>, no_tag, None),
        ColumnReader::ByteArrayColumnReader(reader) => {
            let text = |_: &ColumnDescPtr, text: &str| Some(ByteArray::from(text));
            let tag = |tag: String| Some(ByteArray::from(tag.into_bytes()));
            let cleaned = clean
                .map(|clean| Box::new(move |old: &[u8]| clean(old).map(ByteArray::from)) as Cleaned<'_, ByteArray>);
            run!(reader, text, tag, cleaned)
        }
        ColumnReader::FixedLenByteArrayColumnReader(reader) => run!(reader, fixed_constant, no_tag, None),
    }
}

macro_rules! by_type {
    ($reader:expr, $typed:ident => $body:expr) => {
        match $reader {
            ColumnReader::BoolColumnReader($typed) => $body,
            ColumnReader::Int32ColumnReader($typed) => $body,
            ColumnReader::Int64ColumnReader($typed) => $body,
            ColumnReader::Int96ColumnReader($typed) => $body,
            ColumnReader::FloatColumnReader($typed) => $body,
            ColumnReader::DoubleColumnReader($typed) => $body,
            ColumnReader::ByteArrayColumnReader($typed) => $body,
            ColumnReader::FixedLenByteArrayColumnReader($typed) => $body,
        }
    };
}

impl<R: ChunkReader + Clone + 'static> Chunk<'_, R> {
    /// The digest of all rows, and how many there are.
    pub fn digest(&self) -> Result<(u128, u64)> {
        fn read<T: DataType>(mut reader: ColumnReaderImpl<T>, descr: &ColumnDescPtr) -> Result<(u128, u64)> {
            let mut batch = Batch::<T>::new(descr);
            let (mut digest, mut rows) = (ColumnDigest::default(), 0);
            while batch.fill(&mut reader, u64::MAX)? > 0 {
                rows += batch.records as u64;
                batch.add_to(&mut digest);
            }
            Ok((digest.finish(), rows))
        }
        let descr = self.column.column_descr_ptr();
        by_type!(get_column_reader(descr.clone(), self.pages()?), typed => read(typed, &descr))
    }

    /// Encodes the chunk anew into `out`, with `change` done to `rows` (numbered within the row group) and `clean` to every text.
    pub fn encode<W: Write + Send>(
        &self,
        rows: &RoaringTreemap,
        change: &Change<'_>,
        clean: Option<&Clean<'_>>,
        out: &mut TrackedWrite<W>,
    ) -> Result<Encoded> {
        let descr = self.column.column_descr_ptr();
        let shape = Shape::of(self)?;
        let mut bloom_filter = self.empty_bloom_filter()?;
        let (codec, pages) = (parquet_codec::codec_of(self.column), SerializedPageWriter::new(out));
        let is_turned = shape.needs_first_version(self);
        let pages: Box<dyn PageWriter> =
            if is_turned { Box::new(FirstVersion::new(pages, codec, &descr)) } else { Box::new(pages) };
        let properties = shape.properties(self, is_turned);
        let work = Transcode { chunk: self, rows, properties, pages, bloom_filter: bloom_filter.as_mut() };
        let (close, digest) = in_type(get_column_reader(descr.clone(), self.pages()?), &descr, change, clean, work)?;
        let close = if is_turned { parquet_v1::told(close, codec)? } else { close };
        Ok(Encoded { close, bloom_filter, proof: ColumnProof::Values(digest) })
    }

    /// What the chunk would hold with `change` done to `rows`: its statistics and its bloom filter, if it has one. Nothing is
    /// written.
    pub fn survey(&self, rows: &RoaringTreemap, change: &Change<'_>) -> Result<(Option<Statistics>, Option<Sbbf>)> {
        let descr = self.column.column_descr_ptr();
        let mut bloom_filter = self.empty_bloom_filter()?;
        let is_whole = Shape::has_whole_bounds(self.column);
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_statistics_truncate_length(if is_whole { None } else { DEFAULT_STATISTICS_TRUNCATE_LENGTH })
            .set_offset_index_disabled(true)
            .build();
        let work =
            Transcode { chunk: self, rows, properties, pages: Box::new(Nowhere), bloom_filter: bloom_filter.as_mut() };
        let (close, _) = in_type(get_column_reader(descr.clone(), self.pages()?), &descr, change, None, work)?;
        Ok((close.metadata.statistics().cloned(), bloom_filter))
    }

    /// A filter of the size of the chunk's own.
    fn empty_bloom_filter(&self) -> Result<Option<Sbbf>> {
        let source = Sbbf::read_from_column_chunk(self.column, self.source)?;
        Ok(source.map(|source| Sbbf::new_with_num_of_bytes(source.num_blocks() * 32)))
    }

    fn pages(&self) -> Result<Box<dyn PageReader>> {
        let window = Arc::new(Window::new(self.source.clone(), self.column));
        let pages = SerializedPageReader::new(window, self.column, self.rows as usize, None)?;
        Ok(Box::new(FilledPages(CheckedPages::new(pages, self.column))))
    }
}

/// A place for pages that nobody needs.
struct Nowhere;

impl PageWriter for Nowhere {
    fn write_page(&mut self, _: CompressedPage) -> Result<PageWriteSpec> {
        Ok(PageWriteSpec::new())
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// How a source chunk was written, as far as its pages and metadata tell.
struct Shape {
    data_pages: u64,
    /// The encoding of values that no dictionary holds.
    fallback: Option<Encoding>,
    has_dictionary: bool,
    dictionary_only: bool,
    second_version: bool,
}

impl Shape {
    fn of<R: ChunkReader + Clone + 'static>(chunk: &Chunk<'_, R>) -> Result<Shape> {
        match chunk.column.page_encoding_stats() {
            Some(stats) if stats.iter().any(|page| page.page_type != PageType::DICTIONARY_PAGE) => {
                let mut shape = Shape::from_stats(stats);
                // Arrow's C++ library counts pages of the second version as of the first.
                shape.second_version |= Shape::begins_in_second_version(chunk)?;
                Ok(shape)
            }
            // Writers before encoding stats: the pages themselves tell.
            Some(_) | None => Shape::from_pages(chunk),
        }
    }

    fn empty() -> Shape {
        Shape { data_pages: 0, fallback: None, has_dictionary: false, dictionary_only: true, second_version: false }
    }

    fn begins_in_second_version<R: ChunkReader + Clone + 'static>(chunk: &Chunk<'_, R>) -> Result<bool> {
        let mut pages = chunk.pages()?;
        while let Some(page) = pages.get_next_page()? {
            match page {
                Page::DictionaryPage { .. } => {}
                Page::DataPage { .. } => return Ok(false),
                Page::DataPageV2 { .. } => return Ok(true),
            }
        }
        Ok(false)
    }

    fn from_stats(stats: &[PageEncodingStats]) -> Shape {
        let mut shape = Shape::empty();
        for page in stats {
            shape.add(page.page_type, page.encoding, page.count.max(0) as u64);
        }
        shape
    }

    fn from_pages<R: ChunkReader + Clone + 'static>(chunk: &Chunk<'_, R>) -> Result<Shape> {
        let mut shape = Shape::empty();
        let mut pages = chunk.pages()?;
        while let Some(page) = pages.get_next_page()? {
            let (page_type, encoding) = match &page {
                Page::DictionaryPage { encoding, .. } => (PageType::DICTIONARY_PAGE, *encoding),
                Page::DataPage { encoding, .. } => (PageType::DATA_PAGE, *encoding),
                Page::DataPageV2 { encoding, .. } => (PageType::DATA_PAGE_V2, *encoding),
            };
            shape.add(page_type, encoding, 1);
        }
        Ok(shape)
    }

    fn add(&mut self, page_type: PageType, encoding: Encoding, pages: u64) {
        if page_type == PageType::DICTIONARY_PAGE {
            self.has_dictionary = true;
            return;
        }
        self.data_pages += pages;
        self.second_version |= page_type == PageType::DATA_PAGE_V2;
        if !matches!(encoding, Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY) {
            self.dictionary_only = false;
            self.fallback = Some(encoding);
        }
    }

    /// Whether the crate's writer would drop the dictionary for the sake of the page version.
    fn needs_first_version<R>(&self, chunk: &Chunk<'_, R>) -> bool {
        let column = chunk.column;
        let is_fixed = column.column_type() == PhysicalType::FIXED_LEN_BYTE_ARRAY;
        is_fixed && self.has_dictionary && !self.second_version && parquet_codec::compresses(column.compression())
    }

    /// Whether the bounds in the chunk's statistics were not cut.
    fn has_whole_bounds(column: &ColumnChunkMetaData) -> bool {
        column.statistics().is_some_and(|statistics| statistics.min_is_exact() && statistics.max_is_exact())
    }

    /// The properties that make our writer do as the source's did; `is_turned`: its pages go through [`FirstVersion`]. The level of
    /// a codec is not stored in files; ours are the codec's defaults.
    fn properties<R>(&self, chunk: &Chunk<'_, R>, is_turned: bool) -> WriterProperties {
        let column = chunk.column;
        let statistics = match (chunk.column_index.is_some(), column.statistics()) {
            (true, _) => EnabledStatistics::Page,
            (false, Some(_)) => EnabledStatistics::Chunk,
            (false, None) => EnabledStatistics::None,
        };
        let bytes = column.uncompressed_size().max(0) as u64;
        let page_bytes =
            if self.data_pages > 1 { (bytes / self.data_pages).clamp(4 << 10, 64 << 20) } else { bytes.max(1 << 20) };
        let mut builder = WriterProperties::builder()
            .set_writer_version(if self.second_version || is_turned {
                WriterVersion::PARQUET_2_0
            } else {
                WriterVersion::PARQUET_1_0
            })
            .set_compression(if is_turned { Compression::UNCOMPRESSED } else { parquet_codec::codec_of(column) })
            .set_dictionary_enabled(self.has_dictionary)
            .set_encoding(self.fallback.unwrap_or(Encoding::PLAIN))
            .set_dictionary_page_size_limit(if self.dictionary_only { usize::MAX } else { 1 << 20 })
            .set_data_page_size_limit(page_bytes as usize)
            .set_data_page_row_count_limit(rows_per_page(chunk.offset_index, chunk.rows))
            .set_statistics_enabled(statistics)
            .set_offset_index_disabled(chunk.offset_index.is_none())
            .set_bloom_filter_enabled(false);
        if Shape::has_whole_bounds(column) {
            builder = builder.set_statistics_truncate_length(None);
        }
        builder.build()
    }
}

/// The most rows a page of the source holds: pages then break about where they did.
fn rows_per_page(index: Option<&OffsetIndexMetaData>, rows: u64) -> usize {
    let Some(index) = index else { return usize::MAX };
    let starts = index.page_locations.iter().map(|page| page.first_row_index).chain([rows as i64]);
    let starts: Vec<i64> = starts.collect();
    let most = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    if index.page_locations.len() < 2 { usize::MAX } else { usize::try_from(most).unwrap_or(0).max(1) }
}

/// What happens to the values of matching rows, in the column's own type.
pub struct Replace<'a, T> {
    remove: bool,
    null: bool,
    constant: Option<T>,
    tag: Option<Retag<'a, T>>,
    clean: Option<Cleaned<'a, T>>,
}

/// Cleans a cell, in the column's type.
type Cleaned<'a, T> = Box<dyn Fn(&[u8]) -> Option<T> + 'a>;

/// Makes the tag of a cell, in the column's type.
type Retag<'a, T> = Box<dyn Fn(&[u8]) -> Result<T> + 'a>;

impl<'a, T: 'a> Replace<'a, T> {
    fn new(
        change: &Change<'a>,
        descr: &ColumnDescPtr,
        parse: impl Fn(&ColumnDescPtr, &str) -> Option<T>,
        from_tag: impl Fn(String) -> Option<T> + 'a,
        clean: Option<Cleaned<'a, T>>,
    ) -> Result<Self> {
        let mut replace = Replace { remove: false, null: false, constant: None, tag: None, clean };
        match *change {
            Change::Remove => replace.remove = true,
            Change::Null if descr.self_type().is_optional() => replace.null = true,
            Change::Null => return Err(ParquetError::NYI("null in a required column".to_owned())),
            Change::Constant(text) => {
                let unfit = || ParquetError::NYI("a constant that the column's type cannot hold".to_owned());
                replace.constant = Some(parse(descr, text).ok_or_else(unfit)?);
            }
            Change::Tag(tag) => {
                if from_tag(String::new()).is_none() {
                    return Err(ParquetError::NYI("a tag in a column that holds no text".to_owned()));
                }
                replace.tag = Some(Box::new(move |bytes| from_tag(tag(bytes)).ok_or_else(|| general("no tag"))));
            }
        }
        Ok(replace)
    }
}

fn parse<T: std::str::FromStr>(_: &ColumnDescPtr, text: &str) -> Option<T> {
    text.parse().ok()
}

/// Only where an integer means itself: a constant for a date or a decimal would need its own spelling.
fn parse_integer<T: std::str::FromStr>(descr: &ColumnDescPtr, text: &str) -> Option<T> {
    use parquet::basic::{ConvertedType, LogicalType};
    let plain = matches!(descr.logical_type_ref(), None | Some(LogicalType::Integer { .. }))
        && !matches!(descr.converted_type(), ConvertedType::DECIMAL | ConvertedType::DATE);
    if plain { text.parse().ok() } else { None }
}

fn fixed_constant(descr: &ColumnDescPtr, text: &str) -> Option<FixedLenByteArray> {
    let fits = descr.physical_type() == PhysicalType::FIXED_LEN_BYTE_ARRAY && text.len() as i32 == descr.type_length();
    fits.then(|| FixedLenByteArray::from(text.as_bytes().to_vec()))
}

fn no_constant<T>(_: &ColumnDescPtr, _: &str) -> Option<T> {
    None
}

fn no_tag<T>(_: String) -> Option<T> {
    None
}

pub fn general(message: &str) -> ParquetError {
    ParquetError::General(message.to_owned())
}

/// Records of one column as levels and values.
pub struct Batch<T: DataType> {
    pub records: usize,
    pub definition: Vec<i16>,
    pub repetition: Vec<i16>,
    pub values: Vec<T::T>,
    /// By value, where a dictionary has it: its entry. Empty otherwise.
    pub indexes: Vec<u32>,
    pub levels: usize,
    max_definition: i16,
    max_repetition: i16,
}

impl<T: DataType> Batch<T> {
    pub fn new(descr: &ColumnDescPtr) -> Self {
        Batch {
            records: 0,
            definition: Vec::new(),
            repetition: Vec::new(),
            values: Vec::new(),
            indexes: Vec::new(),
            levels: 0,
            max_definition: descr.max_def_level(),
            max_repetition: descr.max_rep_level(),
        }
    }

    /// Decodes the next records, `most` at most; 0 at the end.
    pub fn fill(&mut self, reader: &mut ColumnReaderImpl<T>, most: u64) -> Result<usize> {
        self.clear();
        let (records, _, levels) = reader.read_records(
            most.min(BATCH_RECORDS) as usize,
            (self.max_definition > 0).then_some(&mut self.definition),
            (self.max_repetition > 0).then_some(&mut self.repetition),
            &mut self.values,
        )?;
        (self.records, self.levels) = (records, levels);
        Ok(records)
    }

    fn clear(&mut self) {
        self.definition.clear();
        self.repetition.clear();
        self.values.clear();
        self.indexes.clear();
        (self.records, self.levels) = (0, 0);
    }

    /// The level at which so many rows have ended, counted from the row that begins at `level`.
    fn after_rows(&self, level: usize, rows: u64) -> usize {
        if self.max_repetition == 0 {
            return level + rows as usize;
        }
        let begins = |level: &usize| self.repetition[*level] == 0;
        let mut starts = (level + 1..self.levels).filter(begins);
        if rows == 0 { level } else { starts.nth(rows as usize - 1).unwrap_or(self.levels) }
    }

    /// Moves a span of `levels` from `batch` to the end of this one, with what `values` and `indexes` have for it.
    fn append(
        &mut self,
        batch: &Batch<T>,
        levels: Range<usize>,
        values: &mut impl Iterator<Item = T::T>,
        indexes: &mut impl Iterator<Item = u32>,
    ) -> Result<()> {
        let count = match batch.max_definition {
            0 => levels.len(),
            max => batch.definition[levels.clone()].iter().filter(|level| **level == max).count(),
        };
        let wanted = self.values.len() + count;
        self.values.extend(values.take(count));
        self.indexes.extend(indexes.take(count));
        if batch.max_definition > 0 {
            self.definition.extend_from_slice(&batch.definition[levels.clone()]);
        }
        if batch.max_repetition > 0 {
            self.repetition.extend_from_slice(&batch.repetition[levels.clone()]);
        }
        self.levels += levels.len();
        if self.values.len() == wanted { Ok(()) } else { Err(general("fewer values than levels")) }
    }

    pub fn add_to(&self, digest: &mut ColumnDigest) {
        digest.add(self);
    }

    pub fn write_to(&self, writer: &mut ColumnWriterImpl<'_, T>) -> Result<()> {
        let definition = (self.max_definition > 0).then_some(self.definition.as_slice());
        let repetition = (self.max_repetition > 0).then_some(self.repetition.as_slice());
        writer.write_batch(&self.values, definition, repetition).map(drop)
    }
}

/// Moves the kept records of a chunk to a writer, and digests them on the way.
struct Transcode<'a, 'w, R> {
    chunk: &'a Chunk<'a, R>,
    rows: &'a RoaringTreemap,
    properties: WriterProperties,
    pages: Box<dyn PageWriter + 'w>,
    bloom_filter: Option<&'a mut Sbbf>,
}

impl<R> Work for Transcode<'_, '_, R> {
    type Done = (ColumnCloseResult, u128);

    fn run<T: DataType>(mut self, mut reader: ColumnReaderImpl<T>, replace: &Replace<'_, T::T>) -> Result<Self::Done> {
        let descr = self.chunk.column.column_descr_ptr();
        let writer = get_column_writer(descr.clone(), Arc::new(self.properties), self.pages);
        let mut writer = T::get_column_writer(writer).ok_or_else(|| general("a writer of another type"))?;
        let (mut batch, mut kept, mut gone) =
            (Batch::<T>::new(&descr), Batch::<T>::new(&descr), Batch::<T>::new(&descr));
        let (mut digest, mut row) = (ColumnDigest::default(), 0);
        while batch.fill(&mut reader, u64::MAX)? > 0 {
            let records = batch.records as u64;
            edit(&mut batch, &mut kept, &mut gone, row, self.rows, replace)?;
            row += records;
            if let Some(clean) = &replace.clean {
                for value in &mut kept.values {
                    *value = clean(value.as_bytes()).unwrap_or_else(|| value.clone());
                }
            }
            kept.add_to(&mut digest);
            if let Some(filter) = self.bloom_filter.as_deref_mut() {
                kept.values.iter().for_each(|value| filter.insert(value));
            }
            kept.write_to(&mut writer)?;
        }
        if row != self.chunk.rows {
            return Err(general("a column holds fewer or more rows than its row group"));
        }
        Ok((writer.close()?, digest.finish()))
    }
}

/// Fills `kept` with the records of `batch`, whose first one is row `first`, as they are to be, and `gone` with the levels and
/// values that were there and are not any more.
pub fn edit<T: DataType>(
    batch: &mut Batch<T>,
    kept: &mut Batch<T>,
    gone: &mut Batch<T>,
    first: u64,
    rows: &RoaringTreemap,
    replace: &Replace<'_, T::T>,
) -> Result<()> {
    kept.clear();
    gone.clear();
    let last = first + batch.records as u64;
    let mut changing = rows.iter();
    changing.advance_to(first);
    let mut changing = changing.take_while(|row| *row < last).peekable();
    if changing.peek().is_none() {
        std::mem::swap(batch, kept);
        return Ok(());
    }
    let mut values = std::mem::take(&mut batch.values).into_iter();
    let mut indexes = std::mem::take(&mut batch.indexes).into_iter();
    let (mut row, mut level) = (first, 0);
    for changed in changing {
        let start = batch.after_rows(level, changed - row);
        kept.append(batch, level..start, &mut values, &mut indexes)?;
        (row, level) = (changed + 1, batch.after_rows(start, 1));
        let (gone_levels, gone_values) = (gone.levels, gone.values.len());
        gone.append(batch, start..level, &mut values, &mut indexes)?;
        if !replace.remove {
            replace_row(kept, gone, gone_levels, gone_values, replace)?;
        }
    }
    kept.append(batch, level..batch.levels, &mut values, &mut indexes)
}

/// Puts what comes in place of a row into `kept`; the row is what stands in `gone` from these levels and values on.
fn replace_row<T: DataType>(
    kept: &mut Batch<T>,
    gone: &Batch<T>,
    first_level: usize,
    first_value: usize,
    replace: &Replace<'_, T::T>,
) -> Result<()> {
    debug_assert!(replace.null || replace.constant.is_some() || replace.tag.is_some());
    let mut values = gone.values[first_value..].iter();
    for level in first_level..gone.levels {
        let mut definition = gone.definition.get(level).copied();
        if definition.is_none_or(|definition| definition == gone.max_definition) {
            let old = values.next().ok_or_else(|| general("fewer values than levels"))?;
            match (&replace.constant, &replace.tag) {
                (Some(constant), _) => kept.values.push(constant.clone()),
                (None, Some(tag)) => kept.values.push(tag(old.as_bytes())?),
                (None, None) => definition = definition.map(|_| gone.max_definition - 1),
            }
        }
        kept.definition.extend(definition);
        kept.repetition.extend(gone.repetition.get(level));
        kept.levels += 1;
    }
    Ok(())
}

/// Reads of one chunk's pages through a window, so that a page costs no request of its own and a large chunk is never held whole;
/// each page's header is looked over before a decoder takes it at its word.
pub struct Window<R> {
    source: R,
    end: u64,
    /// What is read at a time.
    piece_bytes: u64,
    expansion: Expansion,
    /// Where the content of the page begins whose header was read last.
    content: Mutex<Option<u64>>,
    held: Mutex<(u64, Bytes)>,
}

const WINDOW_BYTES: u64 = 8 << 20;
const WHOLE_BYTES: u64 = 32 << 20;

impl<R: ChunkReader> Window<R> {
    pub fn new(source: R, column: &ColumnChunkMetaData) -> Self {
        let (start, length) = column.byte_range();
        let (end, expansion) = (start.saturating_add(length), expansion(column.compression()));
        let held = Mutex::new((0, Bytes::new()));
        Window { source, end, piece_bytes: WINDOW_BYTES, expansion, content: Mutex::new(None), held }
    }

    /// A window that several passes look through: over a whole chunk that is not large, so that it is read once.
    pub fn for_passes(source: R, column: &ColumnChunkMetaData) -> Self {
        let length = column.byte_range().1;
        let piece_bytes = if length <= WHOLE_BYTES { length } else { WINDOW_BYTES };
        Window { piece_bytes, ..Window::new(source, column) }
    }

    /// The header of the page at `start`, and what it claims after it was looked over.
    pub fn header(&self, start: u64) -> Result<(Bytes, PageBounds)> {
        let left = self.end.saturating_sub(start);
        let bytes = self.from(start, HEADER_BYTES.min(left))?;
        let page = parquet_bounds::check_page(&bytes, left, self.expansion).map_err(general)?;
        Ok((bytes.slice(..page.header_bytes as usize), page))
    }

    /// The bytes of a range of the chunk.
    pub fn bytes(&self, range: Range<u64>) -> Result<Bytes> {
        self.get_bytes(range.start, (range.end - range.start) as usize)
    }

    /// At least `least` bytes from `start` on, more when they are at hand.
    fn from(&self, start: u64, least: u64) -> Result<Bytes> {
        let mut held = self.held.lock().map_err(|_| general("a reader panicked"))?;
        let held_end = held.0 + held.1.len() as u64;
        if start < held.0 || start + least > held_end {
            let end = (start + least.max(self.piece_bytes)).min(self.end.max(start + least));
            *held = (start, self.source.get_bytes(start, (end - start) as usize)?);
        }
        Ok(held.1.slice((start - held.0) as usize..))
    }
}

impl<R: ChunkReader> Length for Window<R> {
    fn len(&self) -> u64 {
        self.source.len()
    }
}

/// How far the pages of a codec can expand.
pub fn expansion(compression: Compression) -> Expansion {
    match compression {
        Compression::UNCOMPRESSED => Expansion::NONE,
        Compression::SNAPPY => Expansion::SNAPPY,
        Compression::LZ4 | Compression::LZ4_RAW => Expansion::LZ4,
        Compression::GZIP(_) => Expansion::GZIP,
        Compression::BROTLI(_) | Compression::ZSTD(_) | Compression::LZO => Expansion::OTHER,
    }
}

/// Pages whose values are no more than their chunk's, and whose lengths are no more than their values: the crate's decoder makes
/// room for as many as the encoded lengths claim.
pub struct CheckedPages<P> {
    pages: P,
    max_definition: i16,
    max_repetition: i16,
    values_left: i64,
}

impl<P: PageReader> CheckedPages<P> {
    pub fn new(pages: P, column: &ColumnChunkMetaData) -> Self {
        let descr = column.column_descr();
        let (max_definition, max_repetition) = (descr.max_def_level(), descr.max_rep_level());
        CheckedPages { pages, max_definition, max_repetition, values_left: column.num_values() }
    }

    fn check(&mut self, page: &Page) -> Result<()> {
        let (buffer, encoding, values, levels) = match page {
            Page::DataPage { buf, num_values, encoding, .. } => (buf, *encoding, *num_values, None),
            Page::DataPageV2 { buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, .. } => {
                (buf, *encoding, *num_values, Some(*def_levels_byte_len as usize + *rep_levels_byte_len as usize))
            }
            Page::DictionaryPage { .. } => return Ok(()),
        };
        self.values_left -= i64::from(values);
        if self.values_left < 0 {
            return Err(general("a page claims more values than its column chunk has"));
        }
        if !matches!(encoding, Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY) {
            return Ok(());
        }
        let start = levels.or_else(|| self.levels_bytes(buffer)).unwrap_or(usize::MAX);
        let lengths = buffer.get(start..).ok_or_else(|| general("levels past the end of a page"))?;
        let end = parquet_bounds::delta_end(lengths, values.into()).map_err(general)?;
        if encoding == Encoding::DELTA_BYTE_ARRAY {
            // Lengths of prefixes came first; those of suffixes follow.
            parquet_bounds::delta_end(&lengths[end..], values.into()).map_err(general)?;
        }
        Ok(())
    }

    /// How long the levels of a first-version page are: each sort stands with its length before it.
    fn levels_bytes(&self, buffer: &[u8]) -> Option<usize> {
        let mut at = 0usize;
        for _ in [self.max_repetition, self.max_definition].iter().filter(|max| **max > 0) {
            let length = buffer.get(at..at.checked_add(4)?)?;
            at = at.checked_add(4 + u32::from_le_bytes(length.try_into().ok()?) as usize)?;
        }
        Some(at)
    }
}

impl<P: PageReader> Iterator for CheckedPages<P> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl<P: PageReader> PageReader for CheckedPages<P> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.iter().try_for_each(|page| self.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

/// Enough for any page header.
const HEADER_BYTES: u64 = 64 << 10;

impl<R: ChunkReader> ChunkReader for Window<R> {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let left = self.end.saturating_sub(start);
        let bytes = self.from(start, HEADER_BYTES.min(left))?;
        // What is read from somewhere is a page header, or the content of the page whose header was read last.
        let mut content = self.content.lock().map_err(|_| general("a reader panicked"))?;
        if *content != Some(start) {
            let page = parquet_bounds::check_page(&bytes, left, self.expansion).map_err(general)?;
            *content = Some(start + page.header_bytes);
        }
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.source.len()) {
            return Err(ParquetError::EOF("a page past the end of the object".to_owned()));
        }
        Ok(self.from(start, length as u64)?.slice(..length))
    }
}
