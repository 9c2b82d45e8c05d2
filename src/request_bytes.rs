//! The stored bytes of a suppression list on their way to a decoder: digested as they are, decompressed as they say.
//!
//! Nothing here knows rows or identifiers. Invariant: the digest is over every stored byte, whatever the decoder left unread.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, Write};

use sha2::{Digest, Sha256};

use crate::dataset::listing::infer;
use crate::format::Compression;
use crate::request_lines::BadRecord;
use crate::store::{SequentialReader, StoreError, store_error};

/// Why a list file cannot be used. No variant holds a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    Store(StoreError),
    /// The bytes are not what their format says.
    Corrupt {
        line: Option<u64>,
        reason: String,
    },
    /// `there` is `None` when the names may not be shown, see [`crate::request_cells::shown_names`].
    NoColumn {
        column: String,
        there: Option<Vec<String>>,
    },
    /// More than one column answers to the name.
    AmbiguousColumn {
        column: String,
    },
    /// A temporary file could not be written.
    Scratch(String),
    /// Whoever takes the entries has gone.
    Stopped,
}

impl Unusable {
    pub fn corrupt(reason: impl Into<String>) -> Self {
        Unusable::Corrupt { line: None, reason: reason.into() }
    }

    /// Sorts a failed read into what the store said and what the bytes said.
    pub fn from_read(error: io::Error) -> Self {
        match (store_error(&error), error.kind()) {
            (Some(found), _) => Unusable::Store(found.clone()),
            (None, io::ErrorKind::UnexpectedEof) => Unusable::corrupt("its compressed content ends too early"),
            (None, _) => Unusable::corrupt("its compressed content is damaged"),
        }
    }

    fn from_scratch(error: io::Error) -> Self {
        Unusable::Scratch(error.kind().to_string())
    }
}

impl From<BadRecord> for Unusable {
    fn from(bad: BadRecord) -> Self {
        Unusable::Corrupt { line: Some(bad.line), reason: bad.reason }
    }
}

/// Reads an object and digests what it reads.
#[derive(Debug)]
pub struct DigestingReader {
    reader: SequentialReader,
    digest: Sha256,
}

impl DigestingReader {
    pub fn new(reader: SequentialReader) -> Self {
        DigestingReader { reader, digest: Sha256::new() }
    }

    /// Reads what is left and gives the SHA-256 of the whole object, in hex.
    pub fn finish(mut self) -> Result<String, Unusable> {
        io::copy(&mut self, &mut io::sink()).map_err(Unusable::from_read)?;
        Ok(hex::encode(self.digest.finalize()))
    }
}

impl Read for DigestingReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(out)?;
        self.digest.update(&out[..n]);
        Ok(n)
    }
}

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The object's content, decompressed. The magic number decides; a name that promises a compression which is not there is
/// refused, for such a file is most likely cut off or not the one that was meant.
pub fn decompressed<'a>(stored: &'a mut dyn Read, file_name: &str) -> Result<Box<dyn Read + 'a>, Unusable> {
    let (head, stored) = peeked(stored, 4)?;
    let reader: Box<dyn Read> = if head.starts_with(GZIP_MAGIC) {
        Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(PIECE_BYTES, stored)))
    } else if head.starts_with(ZSTD_MAGIC) {
        Box::new(zstd::stream::read::Decoder::new(stored).map_err(Unusable::from_read)?)
    } else {
        match infer(file_name).1 {
            Compression::None => Box::new(stored),
            Compression::Gzip => return Err(Unusable::corrupt("it is named as gzip but does not begin like gzip")),
            Compression::Zstd => return Err(Unusable::corrupt("it is named as zstd but does not begin like zstd")),
        }
    };
    Ok(reader)
}

/// Text without its byte order mark; UTF-16 is refused.
pub fn text<'a>(reader: &'a mut dyn Read) -> Result<Box<dyn Read + 'a>, Unusable> {
    let (head, mut reader) = peeked(reader, 3)?;
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return Err(Unusable::corrupt("it is UTF-16; lists are read as UTF-8"));
    }
    if head == [0xef, 0xbb, 0xbf] {
        reader.read_exact(&mut [0; 3]).map_err(Unusable::from_read)?;
    }
    Ok(reader)
}

/// The first bytes (fewer when there are no more) and a reader that begins with them again.
fn peeked<'a>(reader: &'a mut dyn Read, wanted_bytes: u64) -> Result<(Vec<u8>, Box<dyn Read + 'a>), Unusable> {
    let mut head = Vec::new();
    Read::take(&mut *reader, wanted_bytes).read_to_end(&mut head).map_err(Unusable::from_read)?;
    Ok((head.clone(), Box::new(Cursor::new(head).chain(reader))))
}

/// How much is read from a decoder at a time.
pub const PIECE_BYTES: usize = 1 << 18;

/// The next piece of at most [`PIECE_BYTES`], appended to `out`; how many bytes it has, 0 at the end.
pub fn read_piece(reader: &mut dyn Read, out: &mut Vec<u8>) -> Result<usize, Unusable> {
    Read::take(reader, PIECE_BYTES as u64).read_to_end(out).map_err(Unusable::from_read)
}

/// A temporary file without a name, so that it cannot outlive the run: lists hold raw identifiers.
pub struct Scratch(File);

impl Scratch {
    pub fn new() -> Result<Self, Unusable> {
        tempfile::tempfile().map(Scratch).map_err(Unusable::from_scratch)
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Unusable> {
        self.0.write_all(bytes).map_err(Unusable::from_scratch)
    }

    /// A second handle for a decoder that maps the file.
    pub fn handle(&self) -> Result<File, Unusable> {
        self.0.try_clone().map_err(Unusable::from_scratch)
    }

    /// Reads the file from its start, piece by piece, until `each` says `false`.
    pub fn read_back(&mut self, mut each: impl FnMut(&[u8]) -> Result<bool, Unusable>) -> Result<(), Unusable> {
        self.0.rewind().map_err(Unusable::from_scratch)?;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        loop {
            piece.clear();
            let n =
                Read::take(&mut self.0, PIECE_BYTES as u64).read_to_end(&mut piece).map_err(Unusable::from_scratch)?;
            if n == 0 || !each(&piece)? {
                return Ok(());
            }
        }
    }
}
