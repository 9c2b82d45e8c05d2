//! Pages compressed without the crate's writer, at each codec's default level.

use std::cell::RefCell;
use std::io::{self, Write};

use parquet::basic::{Compression, ZstdLevel};
use parquet::column::page::{CompressedPage, Page};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;

/// The codec of a chunk with the level at which it is written anew. Files record none; the crate's own default for zstd is its fastest,
/// and zstd's, DuckDB's, Polars' and Spark's is this one: a rewrite must not make a lake larger.
pub fn codec_of(column: &ColumnChunkMetaData) -> Compression {
    match column.compression() {
        Compression::ZSTD(_) => Compression::ZSTD(ZstdLevel::try_new(3).expect("zstd has a level 3")),
        other => other,
    }
}

/// Whether pages can be compressed with the codec here.
pub fn compresses(codec: Compression) -> bool {
    // LZ4 is the name of two framings, which writers have confused.
    !matches!(codec, Compression::LZ4 | Compression::LZO)
}

/// A page that is not compressed yet, in the codec: of the second version the values alone, and only where that makes them smaller.
pub fn compressed(mut page: Page, codec: Compression) -> Result<CompressedPage> {
    let plain_bytes = page.buffer().len();
    match &mut page {
        _ if codec == Compression::UNCOMPRESSED => {}
        Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => *buf = packed(codec, buf)?.into(),
        Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, is_compressed, .. } => {
            let (levels, values) = buf.split_at(*def_levels_byte_len as usize + *rep_levels_byte_len as usize);
            let packed = packed(codec, values)?;
            *is_compressed = packed.len() < values.len();
            if *is_compressed {
                *buf = [levels, &packed].concat().into();
            }
        }
    }
    Ok(CompressedPage::new(page, plain_bytes))
}

thread_local! {
    /// Its tables are as large as many a page: they are made once for all pages of a level.
    static ZSTD: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(None) };
}

fn zstd_packed(level: i32, plain: &[u8]) -> io::Result<Vec<u8>> {
    ZSTD.with_borrow_mut(|kept| {
        let mut compressor = match kept.take() {
            Some((of_level, compressor)) if of_level == level => compressor,
            Some(_) | None => zstd::bulk::Compressor::new(level)?,
        };
        let packed = compressor.compress(plain);
        *kept = Some((level, compressor));
        packed
    })
}

/// `plain` in the codec, at its default level.
fn packed(codec: Compression, plain: &[u8]) -> Result<Vec<u8>> {
    let failed = |error: &dyn std::fmt::Display| ParquetError::General(format!("a page cannot be compressed: {error}"));
    Ok(match codec {
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
        Compression::ZSTD(level) => zstd_packed(level.compression_level(), plain).map_err(|error| failed(&error))?,
        Compression::LZ4_RAW => lz4_flex::block::compress(plain),
        Compression::LZ4 | Compression::LZO => {
            return Err(ParquetError::NYI(format!("pages compressed here in {codec}")));
        }
    })
}
