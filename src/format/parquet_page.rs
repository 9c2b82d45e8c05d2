//! One page encoded again: decoded, freed of its rows and written as it was, in its own encoding, version and codec.
//!
//! What became of the pages is counted on the way. A page of dictionary indexes keeps its dictionary: indexes go, no value is made.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use parquet::basic::{Compression, Encoding, PageType, Type as PhysicalType};
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::column::reader::ColumnReaderImpl;
use parquet::column::writer::{ColumnWriterImpl, get_column_writer};
use parquet::data_type::{AsBytes, DataType};
use parquet::errors::Result;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use roaring::{RoaringBitmap, RoaringTreemap};

use super::parquet_chunk::{Batch, Chunk, ColumnDigest, Replace, Work, edit, general};
use super::parquet_codec::{codec_of, compressed, compresses};
use super::parquet_layout::{Given, Place, max_levels};
use super::parquet_packed::{Hybrid, level_bits, pack, parts};
use super::parquet_statistics::index_bounds;
use super::parquet_v1;

/// Counts of levels and values, as statistics give them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub rows: u64,
    pub levels: u64,
    pub values: u64,
    pub definition: Vec<i64>,
    pub repetition: Vec<i64>,
    /// Of values of varying length, without the lengths themselves.
    pub value_bytes: u64,
}

impl Tally {
    pub fn new(column: &ColumnChunkMetaData) -> Tally {
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

    pub fn merge(&mut self, other: &Tally) {
        self.rows += other.rows;
        self.levels += other.levels;
        self.values += other.values;
        self.value_bytes += other.value_bytes;
        for (to, from) in [(&mut self.definition, &other.definition), (&mut self.repetition, &other.repetition)] {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }

    pub fn nulls(&self) -> i64 {
        (self.levels - self.values) as i64
    }
}

/// A page that was encoded again.
pub struct NewPage {
    /// With its header.
    pub bytes: Vec<u8>,
    pub uncompressed_bytes: u64,
    pub kept: Tally,
    /// For the column index; `None`: there is none, no value, or none that can be compared.
    pub bounds: Option<[Vec<u8>; 2]>,
    pub digest: PageDigest,
}

/// Of what a page that was encoded again holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageDigest {
    /// Its levels and values, as a decoder gives them.
    Values(u128),
    /// Its levels, and its dictionary indexes or plain values, as [`super::parquet_cut`] unpacks them.
    Content(u128),
}

/// What became of the pages that were gone over.
#[derive(Default)]
pub struct Edited {
    /// By number; `None`: no row is left of it.
    pub pages: HashMap<usize, Option<NewPage>>,
    /// Values that went from pages, by entry of the dictionary where it has them.
    pub gone_values: BTreeSet<Vec<u8>>,
    pub gone_entries: RoaringBitmap,
    /// By entry: whether kept values of these pages use it.
    pub kept_entries: Vec<bool>,
    /// Of the parts in which something changed, before and after.
    pub before: Tally,
    pub after: Tally,
}

/// Decodes pages, does a change to their rows and encodes them again.
pub struct EditPages<'a, R> {
    pub chunk: &'a Chunk<'a, R>,
    /// How many the dictionary has.
    pub entries: usize,
    pub places: Vec<(usize, &'a Place)>,
    pub rows: &'a RoaringTreemap,
    pub given: Given,
    pub edited: &'a mut Edited,
}

impl<R> Work for EditPages<'_, R> {
    type Done = ();

    fn run<T: DataType>(mut self, mut reader: ColumnReaderImpl<T>, replace: &Replace<'_, T::T>) -> Result<()> {
        self.edited.kept_entries.resize(self.entries, false);
        let descr = self.chunk.column.column_descr_ptr();
        let mut batches = std::array::from_fn(|_| Batch::<T>::new(&descr));
        for (number, place) in std::mem::take(&mut self.places) {
            let page = self.page(place, &mut reader, replace, &mut batches)?;
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
        [batch, kept, gone]: &mut [Batch<T>; 3],
    ) -> Result<Option<NewPage>> {
        let (mut row, mut tally, mut digest) =
            (place.rows.start, Tally::new(self.chunk.column), ColumnDigest::default());
        batch.fill(reader, place.rows.end - row)?;
        let page = self.given_page()?;
        let (max_repetition, max_definition) = max_levels(self.chunk.column);
        let mut coded = match place.is_coded() {
            true => Some(Coded::new(&page, self.entries, max_repetition, max_definition)?),
            false => None,
        };
        let caught = Caught::default();
        let mut writer = page_writer::<T, R>(self.chunk, place, &caught)?;
        loop {
            if let Some(coded) = &mut coded {
                coded.unpack(batch)?;
            }
            let records = batch.records as u64;
            let is_changing = self.rows.range_cardinality(row..row + records) > 0;
            if is_changing {
                self.edited.before.add(batch);
            }
            edit(batch, kept, gone, row, self.rows, replace)?;
            row += records;
            kept.add_to(&mut digest);
            tally.add(kept);
            if is_changing {
                self.edited.after.add(kept);
            }
            match &mut coded {
                Some(coded) => {
                    self.edited.gone_entries.extend(&gone.indexes);
                    coded.keep(kept, &mut writer)?;
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
        let codec = codec_of(self.chunk.column);
        let page = match coded {
            Some(coded) => {
                let used = coded.used.iter().enumerate().filter(|(_, used)| **used);
                used.for_each(|(entry, _)| self.edited.kept_entries[entry] = true);
                compressed(coded.page(&page, self.chunk.column, &tally)?, codec)?
            }
            None => {
                let page = caught.only_page()?;
                if compresses(codec) { compressed(page.compressed_page().clone(), codec)? } else { page }
            }
        };
        let (bytes, uncompressed_bytes) = serialized(page)?;
        Ok(Some(NewPage {
            bytes,
            uncompressed_bytes,
            kept: tally,
            bounds,
            digest: PageDigest::Values(digest.finish()),
        }))
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

/// Where a writer's pages are taken from it, before they are bytes.
#[derive(Clone, Default)]
struct Caught(Arc<Mutex<Vec<CompressedPage>>>);

impl Caught {
    fn only_page(&self) -> Result<CompressedPage> {
        let mut pages = self.0.lock().map_err(|_| general("a writer panicked"))?;
        let page = pages.pop().filter(|_| pages.is_empty());
        page.ok_or_else(|| general("a page became none or several"))
    }
}

impl PageWriter for Caught {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec> {
        self.0.lock().map_err(|_| general("a writer panicked"))?.push(page);
        Ok(PageWriteSpec::new())
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A writer for one page as `place` is: in its own encoding, whatever its size, and not compressed where we can do that: a writer
/// makes a codec of its own for each page. Of a page of dictionary indexes it is to make the bounds alone.
fn page_writer<T: DataType, R>(
    chunk: &Chunk<'_, R>,
    place: &Place,
    pages: &Caught,
) -> Result<ColumnWriterImpl<'static, T>> {
    let statistics = if chunk.column_index.is_some() { EnabledStatistics::Page } else { EnabledStatistics::None };
    let version = match place.kind {
        PageType::DATA_PAGE_V2 => WriterVersion::PARQUET_2_0,
        _ => WriterVersion::PARQUET_1_0,
    };
    let codec = codec_of(chunk.column);
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_compression(if compresses(codec) { Compression::UNCOMPRESSED } else { codec })
        .set_dictionary_enabled(false)
        .set_encoding(if place.is_coded() { Encoding::PLAIN } else { place.encoding })
        .set_data_page_size_limit(usize::MAX)
        .set_data_page_row_count_limit(usize::MAX)
        .set_statistics_enabled(statistics)
        .build();
    let writer = get_column_writer(chunk.column.column_descr_ptr(), Arc::new(properties), Box::new(pages.clone()));
    T::get_column_writer(writer).ok_or_else(|| general("a writer of another type"))
}

/// A page of dictionary indexes: they are unpacked and packed again, and no value is made.
struct Coded<'a> {
    width: u8,
    indexes: Hybrid<'a>,
    kept: Vec<u32>,
    definition: Vec<u32>,
    repetition: Vec<u32>,
    /// By entry of the dictionary.
    used: Vec<bool>,
}

impl<'a> Coded<'a> {
    fn new(page: &'a Page, entries: usize, max_repetition: u16, max_definition: u16) -> Result<Self> {
        let (width, indexes) = coded_values(page, max_repetition, max_definition)?;
        let (kept, definition, repetition) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Coded { width, indexes, kept, definition, repetition, used: vec![false; entries] })
    }

    /// Reads the indexes of the batch's values.
    fn unpack<T: DataType>(&mut self, batch: &mut Batch<T>) -> Result<()> {
        for _ in 0..batch.values.len() {
            batch.indexes.push(self.indexes.read()?);
        }
        Ok(())
    }

    /// Takes what is kept; `bounds` sees each value once.
    fn keep<T: DataType>(&mut self, kept: &Batch<T>, bounds: &mut ColumnWriterImpl<'_, T>) -> Result<()> {
        self.definition.extend(kept.definition.iter().map(|level| u32::from(level.unsigned_abs())));
        self.repetition.extend(kept.repetition.iter().map(|level| u32::from(level.unsigned_abs())));
        let mut new = Vec::new();
        for (value, index) in kept.values.iter().zip(&kept.indexes) {
            let used = self.used.get_mut(*index as usize).ok_or_else(|| general("an index past its dictionary"))?;
            if !std::mem::replace(used, true) {
                new.push(value.clone());
            }
        }
        self.kept.extend(&kept.indexes);
        let descr = bounds.get_descriptor();
        let definition = vec![descr.max_def_level(); if descr.max_def_level() > 0 { new.len() } else { 0 }];
        let repetition = vec![0; if descr.max_rep_level() > 0 { new.len() } else { 0 }];
        let there = |levels: Vec<i16>| Some(levels).filter(|levels| !levels.is_empty());
        bounds.write_batch(&new, there(definition).as_deref(), there(repetition).as_deref()).map(drop)
    }

    /// The page, not compressed.
    fn page(self, old: &Page, column: &ColumnChunkMetaData, tally: &Tally) -> Result<Page> {
        let (max_repetition, max_definition) = max_levels(column);
        let (mut repetition, mut definition) = (Vec::new(), Vec::new());
        pack(&self.repetition, level_bits(max_repetition), &mut repetition);
        pack(&self.definition, level_bits(max_definition), &mut definition);
        let mut values = vec![self.width];
        pack(&self.kept, self.width.into(), &mut values);
        data_page(old, column, [&repetition, &definition, &values], tally)
    }
}

/// A page of the version and the encoding of `old`, not compressed, of packed repetition and definition levels and of values.
pub fn data_page(old: &Page, column: &ColumnChunkMetaData, parts: [&[u8]; 3], tally: &Tally) -> Result<Page> {
    let [repetition, definition, values] = parts;
    let num_values = u32::try_from(tally.levels).map_err(|_| general("a page of too many values"))?;
    if old.page_type() == PageType::DATA_PAGE {
        let buf = parquet_v1::content(column.column_descr(), repetition, definition, values).into();
        let (def_level_encoding, rep_level_encoding) = (Encoding::RLE, Encoding::RLE);
        let encoding = old.encoding();
        return Ok(Page::DataPage {
            buf,
            num_values,
            encoding,
            def_level_encoding,
            rep_level_encoding,
            statistics: None,
        });
    }
    Ok(Page::DataPageV2 {
        num_values,
        encoding: old.encoding(),
        num_nulls: tally.nulls() as u32,
        num_rows: tally.rows as u32,
        def_levels_byte_len: definition.len() as u32,
        rep_levels_byte_len: repetition.len() as u32,
        buf: parts.concat().into(),
        is_compressed: false,
        statistics: None,
    })
}

/// The width of the indexes of a page, and the indexes.
pub fn coded_values(page: &Page, max_repetition: u16, max_definition: u16) -> Result<(u8, Hybrid<'_>)> {
    let [_, _, values] = parts(page, max_repetition, max_definition)?;
    // A page of nulls alone may have no byte here.
    let (width, packed) = values.split_first().map_or((0, values), |(width, packed)| (*width, packed));
    Ok((width, Hybrid::new(packed, width.into())?))
}

/// The page with its header, and its size before compression, header included.
pub fn serialized(page: CompressedPage) -> Result<(Vec<u8>, u64)> {
    let mut sink = TrackedWrite::new(Vec::new());
    let uncompressed_bytes = SerializedPageWriter::new(&mut sink).write_page(page)?.uncompressed_size;
    Ok((sink.into_inner()?, uncompressed_bytes as u64))
}
