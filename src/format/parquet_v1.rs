//! Dictionaries of fixed-length values in data pages of the first version.
//!
//! The crate's writer has them in the second version only. So such a chunk is encoded as that, uncompressed, and each page is turned
//! into one of the first version here: there the levels stand before the values with their lengths, and all of it is compressed
//! (Parquet format, README.md, "Data Pages").

use std::io::Write;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, PageType};
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::PageEncodingStats;
use parquet::schema::types::ColumnDescriptor;

/// Whether pages can be compressed with the codec here.
pub fn compresses(codec: Compression) -> bool {
    // LZ4 is the name of two framings, which writers have confused.
    !matches!(codec, Compression::LZ4 | Compression::LZO)
}

/// Writes pages of the second version, which come uncompressed, as pages of the first.
pub struct FirstVersion<W> {
    pages: W,
    codec: Compression,
    has_repetition: bool,
    has_definition: bool,
}

impl<W> FirstVersion<W> {
    pub fn new(pages: W, codec: Compression, column: &ColumnDescriptor) -> Self {
        let (has_repetition, has_definition) = (column.max_rep_level() > 0, column.max_def_level() > 0);
        FirstVersion { pages, codec, has_repetition, has_definition }
    }

    fn data_page(&self, page: &Page) -> Result<Option<CompressedPage>> {
        let Page::DataPageV2 {
            buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, statistics, ..
        } = page
        else {
            return Ok(None);
        };
        let (repetition, rest) = buf.split_at(*rep_levels_byte_len as usize);
        let (definition, values) = rest.split_at(*def_levels_byte_len as usize);
        let mut plain = Vec::with_capacity(buf.len() + 8);
        for (is_there, levels) in [(self.has_repetition, repetition), (self.has_definition, definition)] {
            if is_there {
                plain.extend_from_slice(&(levels.len() as u32).to_le_bytes());
                plain.extend_from_slice(levels);
            }
        }
        plain.extend_from_slice(values);
        let page = Page::DataPage {
            buf: compressed(self.codec, &plain)?,
            num_values: *num_values,
            encoding: *encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: statistics.clone(),
        };
        Ok(Some(CompressedPage::new(page, plain.len())))
    }
}

impl<W: PageWriter> PageWriter for FirstVersion<W> {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec> {
        if let Some(page) = self.data_page(page.compressed_page())? {
            return self.pages.write_page(page);
        }
        let Page::DictionaryPage { buf, num_values, encoding, is_sorted } = page.compressed_page() else {
            return Err(ParquetError::General("a page of another kind".to_owned()));
        };
        let (num_values, encoding, is_sorted) = (*num_values, *encoding, *is_sorted);
        let dictionary = Page::DictionaryPage { buf: compressed(self.codec, buf)?, num_values, encoding, is_sorted };
        self.pages.write_page(CompressedPage::new(dictionary, buf.len()))
    }

    fn close(&mut self) -> Result<()> {
        self.pages.close()
    }
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

/// `plain` in the codec, at its default level.
pub fn compressed(codec: Compression, plain: &[u8]) -> Result<Bytes> {
    let failed = |error: &dyn std::fmt::Display| ParquetError::General(format!("a page cannot be compressed: {error}"));
    let bytes = match codec {
        Compression::UNCOMPRESSED => plain.to_vec(),
        Compression::SNAPPY => snap::raw::Encoder::new().compress_vec(plain).map_err(|error| failed(&error))?,
        Compression::GZIP(level) => {
            let mut gzip =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level.compression_level()));
            gzip.write_all(plain).and_then(|()| gzip.finish()).map_err(|error| failed(&error))?
        }
        Compression::BROTLI(level) => {
            let mut brotli = brotli::CompressorWriter::new(Vec::new(), 4 << 10, level.compression_level(), 22);
            brotli.write_all(plain).map_err(|error| failed(&error))?;
            brotli.into_inner()
        }
        Compression::ZSTD(level) => {
            zstd::bulk::compress(plain, level.compression_level()).map_err(|error| failed(&error))?
        }
        Compression::LZ4_RAW => lz4_flex::block::compress(plain),
        Compression::LZ4 | Compression::LZO => {
            return Err(ParquetError::NYI(format!("pages of the first version in {codec}")));
        }
    };
    Ok(bytes.into())
}
