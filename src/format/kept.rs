//! What leaves of a record file, and the read-back of it.
//!
//! The rewriter cuts what it writes into pieces at ends of records, and keeps of each its length, its digest and how many rows it
//! has. The read-back takes piece by piece from the store, in whatever order and several at a time: it compares the digest, and cuts
//! and counts the records anew. Invariant: pieces whose digests agree, that begin and end a record, and that follow each other from
//! the first byte to the last are what was written, and have as many rows as all of them together.

use std::io::Read;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use xxhash_rust::xxh3::Xxh3;

use super::compression;
use super::csv::Records;
use super::ndjson::Lines;
use super::{Compression, CsvDialect, Edit, Format, FormatError, Receipt};
use crate::action::{Action, Redact};
use crate::store::{ObjectReader, Sink};

/// What a rewrite of records counted, and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordsReceipt {
    pub counts: Receipt,
    compression: Compression,
    pieces: Vec<Piece>,
}

/// Whole records one after the other, with the blank lines beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// In the text, before it is compressed.
    extent: Range<u64>,
    rows: u64,
    /// Never leaves the process: what a digest of few records is of can be guessed.
    digest: u128,
}

/// A piece is as long as this, and then up to the end of a run of records.
const PIECE_BYTES: u64 = if cfg!(test) { 64 } else { 16 << 20 };

/// Records are gathered to so many bytes before they are digested and written: one by one they are small.
const GATHERED_BYTES: usize = 128 << 10;

/// Counts, and the pieces of all that leaves, in order.
#[derive(Default)]
pub struct Kept {
    counts: Receipt,
    pieces: Vec<Piece>,
    /// Of the piece that is being written: where it begins, the rows before it, and its digest so far.
    piece_begin: u64,
    piece_rows_before: u64,
    digest: Xxh3,
    gathered: Vec<u8>,
    written_bytes: u64,
    /// How much of the source was seen. The gathered bytes from `own` on are its last ones before there.
    source_bytes: u64,
    own: usize,
}

impl Kept {
    /// How many records have come.
    pub fn rows_before(&self) -> u64 {
        self.counts.rows_before
    }

    /// The source's next bytes leave as they are.
    pub fn keep(&mut self, bytes: &[u8], out: &mut dyn Sink) -> Result<(), FormatError> {
        if bytes.len() < GATHERED_BYTES {
            self.gathered.extend_from_slice(bytes);
            self.source_bytes += bytes.len() as u64;
            return self.flush_if_full(out);
        }
        self.flush(out)?;
        let begin = self.source_bytes;
        self.source_bytes += bytes.len() as u64;
        out.taken_over(self.written_bytes, begin..self.source_bytes);
        self.write(bytes, out)
    }

    /// The source's next bytes make way for `bytes`.
    pub fn exchange(&mut self, raw: &[u8], bytes: &[u8], out: &mut dyn Sink) -> Result<(), FormatError> {
        self.tell(out);
        self.gathered.extend_from_slice(bytes);
        self.own = self.gathered.len();
        self.source_bytes += raw.len() as u64;
        self.flush_if_full(out)
    }

    /// What left last, and not yet was counted, were so many records that stay.
    pub fn stayed(&mut self, records: u64, out: &mut dyn Sink) -> Result<(), FormatError> {
        self.counts.rows_before += records;
        self.counts.rows_after += records;
        if self.written_bytes + self.gathered.len() as u64 - self.piece_begin >= PIECE_BYTES {
            self.end_piece(out)?;
        }
        Ok(())
    }

    /// A record goes.
    pub fn remove(&mut self, raw: &[u8], out: &mut dyn Sink) -> Result<(), FormatError> {
        self.counts.rows_before += 1;
        self.counts.rows_removed += 1;
        self.exchange(raw, b"", out)
    }

    /// Keeps, removes or redacts one record; `edited` makes its new bytes.
    pub fn record(
        &mut self,
        raw: &[u8],
        edit: &Edit<'_>,
        edited: impl FnOnce(&[Redact]) -> Result<Vec<u8>, FormatError>,
        out: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let matched = edit.rows.contains(self.counts.rows_before);
        match edit.action {
            Action::Delete if matched => return self.remove(raw, out),
            Action::Redact(columns) if matched => {
                self.counts.rows_redacted += 1;
                self.exchange(raw, &edited(columns)?, out)?;
            }
            Action::Delete | Action::Redact(_) if !edit.cleanse.strays.is_empty() => {
                self.exchange(raw, &edited(&[])?, out)?;
            }
            Action::Delete | Action::Redact(_) => self.keep(raw, out)?,
        }
        self.stayed(1, out)
    }

    /// After the last byte of a text that `out` compresses so.
    pub fn end(mut self, compression: Compression, out: &mut dyn Sink) -> Result<RecordsReceipt, FormatError> {
        self.flush(out)?;
        // An empty one more would make the last record, which may have no line end, that of a piece before.
        if self.written_bytes > self.piece_begin || self.pieces.is_empty() {
            self.end_piece(out)?;
        }
        Ok(RecordsReceipt { counts: self.counts, compression, pieces: self.pieces })
    }

    fn end_piece(&mut self, out: &mut dyn Sink) -> Result<(), FormatError> {
        self.flush(out)?;
        let rows = self.counts.rows_after - self.piece_rows_before;
        let extent = self.piece_begin..self.written_bytes;
        self.pieces.push(Piece { extent, rows, digest: self.digest.digest128() });
        self.digest.reset();
        (self.piece_begin, self.piece_rows_before) = (self.written_bytes, self.counts.rows_after);
        Ok(())
    }

    /// Tells what of the gathered bytes is the source's own.
    fn tell(&mut self, out: &mut dyn Sink) {
        let own_bytes = (self.gathered.len() - self.own) as u64;
        if own_bytes > 0 {
            out.taken_over(self.written_bytes + self.own as u64, self.source_bytes - own_bytes..self.source_bytes);
        }
    }

    fn flush_if_full(&mut self, out: &mut dyn Sink) -> Result<(), FormatError> {
        if self.gathered.len() < GATHERED_BYTES {
            return Ok(());
        }
        self.flush(out)
    }

    /// What was gathered leaves.
    fn flush(&mut self, out: &mut dyn Sink) -> Result<(), FormatError> {
        self.tell(out);
        let mut gathered = std::mem::take(&mut self.gathered);
        self.write(&gathered, out)?;
        gathered.clear();
        (self.gathered, self.own) = (gathered, 0);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], out: &mut dyn Sink) -> Result<(), FormatError> {
        self.digest.update(bytes);
        out.write_all(bytes).map_err(FormatError::from_io)?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }
}

/// What was written, as the store has it.
pub trait Stored: Sync {
    fn size_bytes(&self) -> u64;
    fn read_within(&self, extent: Range<u64>) -> impl Read + '_;
}

impl Stored for ObjectReader {
    fn size_bytes(&self) -> u64 {
        self.object().size_bytes
    }

    fn read_within(&self, extent: Range<u64>) -> impl Read + '_ {
        ObjectReader::read_within(self, extent)
    }
}

/// Reads the new object, by so many threads at most, and compares it with what was kept. Blocks.
pub fn read_back(
    format: Format,
    dialect: &CsvDialect,
    new: &impl Stored,
    receipt: &RecordsReceipt,
    threads: usize,
) -> Result<(), FormatError> {
    let back = ReadBack { format, dialect, pieces: &receipt.pieces };
    let rows = match receipt.compression {
        Compression::None => back.by_threads(new, threads)?,
        Compression::Gzip | Compression::Zstd => {
            let (compression, text) = compression::decode(new.read_within(0..new.size_bytes()))?;
            if compression != receipt.compression {
                return Err(FormatError::Mismatch("its compression".to_owned()));
            }
            back.in_order(text)?
        }
    };
    if rows != receipt.counts.rows_after {
        return Err(FormatError::Mismatch(format!("{rows} records instead of {}", receipt.counts.rows_after)));
    }
    Ok(())
}

struct ReadBack<'a> {
    format: Format,
    dialect: &'a CsvDialect,
    pieces: &'a [Piece],
}

impl ReadBack<'_> {
    /// How many rows there are.
    fn in_order(&self, mut text: impl Read) -> Result<u64, FormatError> {
        let mut rows = 0;
        for number in 0..self.pieces.len() {
            rows += self.piece(number, &mut text)?;
        }
        match text.read(&mut [0]).map_err(FormatError::from_io)? {
            0 => Ok(rows),
            _ => Err(FormatError::Mismatch("more bytes than were written".to_owned())),
        }
    }

    fn by_threads(&self, new: &impl Stored, threads: usize) -> Result<u64, FormatError> {
        let written = self.pieces.last().map_or(0, |last| last.extent.end);
        if new.size_bytes() != written {
            return Err(FormatError::Mismatch(format!("{} bytes instead of {written}", new.size_bytes())));
        }
        // Pieces are taken in order: before one that differs, all have been.
        let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let take = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(piece) = self.pieces.get(number) else { return };
                let outcome = self.piece(number, new.read_within(piece.extent.clone()));
                if outcome.is_err() {
                    next.store(self.pieces.len(), Ordering::Relaxed);
                }
                outcomes.lock().unwrap_or_else(|broken| broken.into_inner()).push((number, outcome));
            }
        };
        std::thread::scope(|scope| {
            (1..threads.min(self.pieces.len())).for_each(|_| drop(scope.spawn(take)));
            take();
        });
        let mut outcomes = outcomes.into_inner().unwrap_or_else(|broken| broken.into_inner());
        outcomes.sort_by_key(|(number, _)| *number);
        outcomes.into_iter().map(|(_, rows)| rows).sum()
    }

    /// The rows of a piece that `text` begins with.
    fn piece(&self, number: usize, text: impl Read) -> Result<u64, FormatError> {
        let piece = &self.pieces[number];
        let text = text.take(piece.extent.end - piece.extent.start);
        let (is_first, is_last) = (number == 0, number + 1 == self.pieces.len());
        let mut seen = Seen::default();
        match self.format {
            Format::Csv | Format::Tsv => self.csv_piece(is_first, text, &mut seen)?,
            Format::Ndjson => {
                let mut lines = Lines::new(text);
                while let Some(line) = lines.read()? {
                    seen.take(line.raw, u64::from(!line.is_blank()));
                }
            }
            Format::Parquet => return Err(FormatError::Unsupported("Parquet as records".to_owned())),
        }
        if seen.rows != piece.rows {
            return Err(FormatError::Mismatch(format!("{} records instead of {}", seen.rows, piece.rows)));
        }
        // Else its last record might go on in the next one.
        let ends_a_line = seen.last.is_none_or(|byte| matches!(byte, b'\r' | b'\n'));
        if seen.digest.digest128() != piece.digest || !is_last && !ends_a_line {
            return Err(FormatError::Mismatch("the bytes of the kept records".to_owned()));
        }
        Ok(seen.rows)
    }

    fn csv_piece(&self, is_first: bool, text: impl Read, seen: &mut Seen) -> Result<(), FormatError> {
        let mut records = Records::new(text, self.dialect, self.format == Format::Tsv);
        if !is_first {
            records.go_on();
        } else if self.dialect.header
            && let Some(header) = records.read_run(1)?
        {
            seen.take(header.bytes, 0);
        }
        loop {
            match records.read_run(u64::MAX) {
                Ok(Some(run)) => seen.take(run.bytes, run.records),
                Ok(None) => break,
                // It would name a line of the piece as one of the file.
                Err(FormatError::Corrupt(_)) if !is_first => {
                    return Err(FormatError::Mismatch("its records cannot be told apart".to_owned()));
                }
                Err(error) => return Err(error),
            }
        }
        seen.take(records.rest(), 0);
        Ok(())
    }
}

/// What was read of a piece.
#[derive(Default)]
struct Seen {
    rows: u64,
    digest: Xxh3,
    last: Option<u8>,
}

impl Seen {
    fn take(&mut self, bytes: &[u8], rows: u64) {
        self.digest.update(bytes);
        self.last = bytes.last().copied().or(self.last);
        self.rows += rows;
    }
}

#[cfg(test)]
impl Stored for Vec<u8> {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_within(&self, extent: Range<u64>) -> impl Read + '_ {
        &self[extent.start as usize..extent.end as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn kept(compression: Compression) -> (Vec<u8>, RecordsReceipt) {
        let record = |i: usize| format!("{i},\"{}\n\"\r\n", "x".repeat(i % 50));
        let (mut kept, mut out) = (Kept::default(), Vec::new());
        let mut write = |out: &mut Vec<u8>| {
            kept.keep(b"id,note\r\n", out).unwrap();
            for i in 0..20 {
                kept.keep(record(i).as_bytes(), out).unwrap();
                kept.stayed(1, out).unwrap();
            }
        };
        match compression {
            Compression::None => write(&mut out),
            Compression::Gzip | Compression::Zstd => {
                let mut text = Vec::new();
                write(&mut text);
                let mut encoder = compression::Encoder::new(compression, &mut out).unwrap();
                encoder.write_all(&text).unwrap();
                // What is gathered leaves at the end.
                let mut rest = Vec::new();
                let receipt = std::mem::take(&mut kept).end(compression, &mut rest).unwrap();
                encoder.write_all(&rest).unwrap();
                encoder.finish().unwrap();
                return (out, receipt);
            }
        }
        let receipt = kept.end(compression, &mut out).unwrap();
        (out, receipt)
    }

    fn back(bytes: &[u8], receipt: &RecordsReceipt, threads: usize) -> Result<(), FormatError> {
        read_back(Format::Csv, &CsvDialect::default(), &bytes.to_vec(), receipt, threads)
    }

    #[test]
    fn pieces_follow_each_other_and_hold_all_rows() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let (bytes, receipt) = kept(compression);
            assert!(receipt.pieces.len() > 3, "{}", receipt.pieces.len());
            assert_eq!(receipt.pieces.iter().map(|piece| piece.rows).sum::<u64>(), 20);
            assert!(receipt.pieces.windows(2).all(|two| two[0].extent.end == two[1].extent.start));
            for threads in [0, 1, 2, 9] {
                assert!(back(&bytes, &receipt, threads).is_ok(), "{compression:?} {threads}");
            }
        }
    }

    #[test]
    fn a_fault_in_any_piece_is_seen_by_any_number_of_threads() {
        let (bytes, receipt) = kept(Compression::None);
        for (threads, step) in [(1, 1), (3, 41)] {
            for at in (0..bytes.len()).step_by(step) {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1;
                assert!(back(&flipped, &receipt, threads).is_err(), "byte {at}");
            }
            let cut = receipt.pieces[1].extent.end as usize;
            for planted in [&bytes[..bytes.len() - 1], &bytes[..cut], &[&bytes[..], b"9,z\r\n"].concat()] {
                let outcome = back(planted, &receipt, threads);
                assert!(matches!(outcome, Err(FormatError::Mismatch(_))), "{outcome:?}");
            }
        }
        let (gzip, mut receipt) = kept(Compression::Gzip);
        assert!(back(&bytes, &receipt, 1).is_err(), "its compression");
        let more = [&gzip[..], &gzip[..]].concat();
        assert!(matches!(back(&more, &receipt, 1), Err(FormatError::Mismatch(_))), "a second member");
        receipt.pieces.pop();
        assert!(matches!(back(&gzip, &receipt, 1), Err(FormatError::Mismatch(_))), "a piece less");
    }

    #[test]
    fn a_last_record_without_line_end_is_the_last_piece_s_own() {
        for length in 0..200 {
            let (mut kept, mut out) = (Kept::default(), Vec::new());
            for bytes in ["id\n1\n".to_owned(), "x".repeat(length)] {
                kept.keep(bytes.as_bytes(), &mut out).unwrap();
                kept.stayed(u64::from(!bytes.is_empty()), &mut out).unwrap();
            }
            let receipt = kept.end(Compression::None, &mut out).unwrap();
            assert!(back(&out, &receipt, 2).is_ok(), "{length}");
        }
        let receipt = Kept::default().end(Compression::None, &mut Vec::new()).unwrap();
        assert!(back(b"", &receipt, 2).is_ok() && back(b"\n", &receipt, 2).is_err());
    }

    /// Two records may become one where a piece ends without its line end; every piece alone still has the records it should have.
    #[test]
    fn a_piece_that_ends_inside_a_record_is_no_proof() {
        let halves = ["id\n1\n2", "3\n4\n"];
        let (mut pieces, mut at) = (Vec::new(), 0);
        for half in halves {
            let extent = at..at + half.len() as u64;
            at = extent.end;
            pieces.push(Piece { extent, rows: 2, digest: xxhash_rust::xxh3::xxh3_128(half.as_bytes()) });
        }
        let counts = Receipt { rows_before: 4, rows_after: 4, ..Receipt::default() };
        let receipt = RecordsReceipt { counts, compression: Compression::None, pieces };
        assert!(matches!(back(halves.concat().as_bytes(), &receipt, 2), Err(FormatError::Mismatch(_))));
    }
}
