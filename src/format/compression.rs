//! Compression of record files: streams in, streams out, never a whole file in memory.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::{Compression, FormatError};
use crate::store::Sink;

const BUFFER_BYTES: usize = 256 << 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The compression that the first bytes show: a name can lie. All members of a gzip and all frames of a zstd file are read; bytes
/// after the last one are an error, as is a truncated end.
pub fn decode<'a>(source: impl Read + 'a) -> Result<(Compression, Box<dyn Read + 'a>), FormatError> {
    let mut source = BufReader::with_capacity(BUFFER_BYTES, source);
    let start = source.fill_buf().map_err(FormatError::from_io)?;
    if start.starts_with(&GZIP_MAGIC) {
        return Ok((Compression::Gzip, Box::new(MultiGzDecoder::new(source))));
    }
    if start.starts_with(&ZSTD_MAGIC) {
        let decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(FormatError::from_io)?;
        return Ok((Compression::Zstd, Box::new(decoder)));
    }
    Ok((Compression::None, Box::new(source)))
}

/// The way back. Levels are not stored in files: gzip is written at 6, zstd at 3, the defaults of their tools.
pub enum Encoder<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    pub fn new(compression: Compression, out: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Encoder::None(out),
            Compression::Gzip => Encoder::Gzip(GzEncoder::new(out, flate2::Compression::new(6))),
            Compression::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(out, 3)?),
        })
    }

    /// Writes the end of the stream.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Encoder::None(mut out) => out.flush(),
            Encoder::Gzip(encoder) => encoder.finish()?.flush(),
            Encoder::Zstd(encoder) => encoder.finish()?.flush(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::None(out) => out.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::None(out) => out.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}

impl<W: Sink> Sink for Encoder<W> {
    /// Compressed bytes are not those that come in, even where all of them are kept.
    fn taken_over(&mut self, at: u64, source: Range<u64>) {
        match self {
            Encoder::None(out) => out.taken_over(at, source),
            Encoder::Gzip(_) | Encoder::Zstd(_) => {}
        }
    }
}
