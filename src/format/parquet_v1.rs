//! Dictionaries of fixed-length values in data pages of the first version.
//!
//! The crate's writer has them in the second version only. So such a chunk is encoded as that, uncompressed, and each page is turned
//! into one of the first version here: there the levels stand before the values with their lengths, and all of it is compressed
//! (Parquet format, README.md, "Data Pages").

use parquet::basic::{Compression, Encoding, PageType};
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::Result;
use parquet::file::metadata::PageEncodingStats;
use parquet::schema::types::ColumnDescriptor;

use super::parquet_codec::compressed;

/// Writes pages of the second version, which come uncompressed, as pages of the first.
pub struct FirstVersion<'a, W> {
    pages: W,
    codec: Compression,
    column: &'a ColumnDescriptor,
}

impl<'a, W> FirstVersion<'a, W> {
    pub fn new(pages: W, codec: Compression, column: &'a ColumnDescriptor) -> Self {
        FirstVersion { pages, codec, column }
    }
}

impl<W: PageWriter> PageWriter for FirstVersion<'_, W> {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec> {
        self.pages.write_page(compressed(turned(page.compressed_page(), self.column), self.codec)?)
    }

    fn close(&mut self) -> Result<()> {
        self.pages.close()
    }
}

/// A data page of the second version as one of the first, neither compressed; other pages as they are.
pub fn turned(page: &Page, column: &ColumnDescriptor) -> Page {
    let Page::DataPageV2 { buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, statistics, .. } = page
    else {
        return page.clone();
    };
    let (repetition, rest) = buf.split_at(*rep_levels_byte_len as usize);
    let (definition, values) = rest.split_at(*def_levels_byte_len as usize);
    Page::DataPage {
        buf: content(column, repetition, definition, values).into(),
        num_values: *num_values,
        encoding: *encoding,
        def_level_encoding: Encoding::RLE,
        rep_level_encoding: Encoding::RLE,
        statistics: statistics.clone(),
    }
}

/// What a page of the first version holds of packed levels and values: levels stand behind their length.
pub fn content(column: &ColumnDescriptor, repetition: &[u8], definition: &[u8], values: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(repetition.len() + definition.len() + values.len() + 8);
    for (max, levels) in [(column.max_rep_level(), repetition), (column.max_def_level(), definition)] {
        if max > 0 {
            plain.extend_from_slice(&(levels.len() as u32).to_le_bytes());
            plain.extend_from_slice(levels);
        }
    }
    plain.extend_from_slice(values);
    plain
}

/// The chunk's metadata as they are after [`FirstVersion`]: the codec, and pages of the first version.
pub fn told(mut close: ColumnCloseResult, codec: Compression) -> Result<ColumnCloseResult> {
    let of_first = |stats: &PageEncodingStats| PageEncodingStats {
        page_type: match stats.page_type {
            PageType::DATA_PAGE_V2 => PageType::DATA_PAGE,
            other => other,
        },
        ..stats.clone()
    };
    let stats = close.metadata.page_encoding_stats().map(|stats| stats.iter().map(of_first).collect());
    let mut metadata = close.metadata.into_builder().set_compression(codec);
    if let Some(stats) = stats {
        metadata = metadata.set_page_encoding_stats(stats);
    }
    close.metadata = metadata.build()?;
    Ok(close)
}
