//! Where the pages of a column chunk stand: walked header by header, and read by choice.
//!
//! Invariant: where pages begin is never taken from an index, nor rows from a claim: they are counted in the pages.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use parquet::basic::{Encoding, PageType};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

use super::parquet_chunk::{CheckedPages, Chunk, Window, general};
use super::parquet_packed::{decode_levels, is_dictionary, parts};
use crate::page_bytes;
use crate::residue::Bound;
use crate::thrift;

/// A page as its header describes it.
#[derive(Debug)]
pub struct Place {
    pub start: u64,
    pub end: u64,
    pub kind: PageType,
    pub encoding: Encoding,
    /// Levels, or the entries of a dictionary.
    pub values: u64,
    /// Of the row group. Empty until they are counted, where values repeat.
    pub rows: Range<u64>,
    /// Repetition and definition levels, where there are such, are in encoding RLE and not in the deprecated one.
    pub has_packed_levels: bool,
    pub header_bytes: u64,
    /// Of the content.
    pub uncompressed_bytes: u64,
    pub bounds: Vec<Bound>,
}

impl Place {
    pub fn is_coded(&self) -> bool {
        is_dictionary(self.encoding)
    }
}

/// The pages of a chunk, which follow one another without a gap: perhaps a dictionary, then data.
pub struct Layout {
    pub dictionary: Option<Place>,
    pub pages: Vec<Place>,
}

impl Layout {
    /// `None`: there is something else, or something that is not known.
    pub fn read<R: ChunkReader>(window: &Window<R>, column: &ColumnChunkMetaData) -> Result<Option<Layout>> {
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
    pub fn of_source<R: ChunkReader + Clone + 'static>(
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
            has_packed_levels: kind != PageType::DATA_PAGE
                || (is_packed(max_definition, 3) && is_packed(max_repetition, 4)),
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
pub fn max_levels(column: &ColumnChunkMetaData) -> (u16, u16) {
    let descr = column.column_descr();
    (descr.max_rep_level().unsigned_abs(), descr.max_def_level().unsigned_abs())
}

/// The dictionary and some of the data pages of a chunk, as if there were no others.
pub struct Picked<R: ChunkReader> {
    pages: SerializedPageReader<Window<R>>,
    /// By page, the dictionary with the others.
    picks: VecDeque<bool>,
    given: Option<Given>,
}

/// Pages that a column reader took, for who wants to see them as well.
pub type Given = Arc<Mutex<VecDeque<Page>>>;

impl<R: ChunkReader + 'static> Picked<R> {
    pub fn checked(
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
