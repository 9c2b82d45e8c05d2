//! CSV and TSV records with the bytes they stand in.
//!
//! `csv-core` decides where records and fields end; this module keeps, for every record, the exact bytes it came from, so
//! that a kept record leaves byte for byte.

use std::io::Read;
use std::ops::Range;

use csv_core::{ReadRecordResult, Reader as Core, ReaderBuilder};

use super::{CsvDialect, FormatError};
use crate::identifier::ColumnPath;

/// A record longer than this is a broken file (an unclosed quote), not a record.
pub const RECORD_BYTES_MAX: usize = 64 << 20;
/// And one of more fields than this is no record of a table.
const RECORD_FIELDS_MAX: usize = 1 << 20;
const PIECE_BYTES: usize = 256 << 10;
const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// A stream of records. The header is record number 0 to [`Records::read`]'s caller only if it asks for it.
pub struct Records<R> {
    source: R,
    core: Core,
    delimiter: u8,
    /// Bytes read and not yet given out; `at` is where the next record's bytes begin.
    buffer: Vec<u8>,
    at: usize,
    source_ended: bool,
    fields: Vec<u8>,
    ends: Vec<usize>,
    line: u64,
}

/// One record: its bytes with the line end, what stood before it (blank lines), and its fields without quotes.
#[derive(Debug)]
pub struct Record<'a> {
    /// Blank lines before the record, or a byte order mark.
    pub gap: &'a [u8],
    pub raw: &'a [u8],
    /// 1-based line on which it starts.
    pub line: u64,
    fields: &'a [u8],
    ends: &'a [usize],
}

impl Record<'_> {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn field(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        Some(&self.fields[start..end])
    }
}

impl<R: Read> Records<R> {
    pub fn new(source: R, dialect: &CsvDialect, tsv: bool) -> Self {
        let delimiter = dialect.delimiter.unwrap_or(if tsv { b'\t' } else { b',' });
        Records {
            source,
            core: ReaderBuilder::new().delimiter(delimiter).quote(dialect.quote).build(),
            delimiter,
            buffer: Vec::new(),
            at: 0,
            source_ended: false,
            fields: vec![0; 4 << 10],
            ends: vec![0; 64],
            line: 1,
        }
    }

    /// The next record; `None` at the end, whose trailing bytes are then [`Records::rest`].
    pub fn read(&mut self) -> Result<Option<Record<'_>>, FormatError> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let gap = self.skip_gap()?;
        let (mut used, mut in_fields, mut in_ends) = (gap, 0, 0);
        loop {
            if used == self.buffer.len() && !self.source_ended {
                self.fill()?;
            }
            // At the end `csv-core` would take an open quote for a closed one; a line feed more tells them apart.
            let cut = used > gap && used == self.buffer.len();
            let input = if cut { b"\n" } else { &self.buffer[used..] };
            let (result, read, wrote, ended) =
                self.core.read_record(input, &mut self.fields[in_fields..], &mut self.ends[in_ends..]);
            (used, in_fields, in_ends) = (if cut { used } else { used + read }, in_fields + wrote, in_ends + ended);
            if used - gap > RECORD_BYTES_MAX {
                return Err(FormatError::Corrupt(format!("the record at line {} does not end", self.line)));
            }
            match result {
                ReadRecordResult::InputEmpty if cut => {
                    return Err(FormatError::Corrupt(format!("the record at line {} ends inside quotes", self.line)));
                }
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.fields.resize(self.fields.len() * 2, 0),
                ReadRecordResult::OutputEndsFull if self.ends.len() >= RECORD_FIELDS_MAX => {
                    return Err(FormatError::Corrupt(format!("the record at line {} has too many fields", self.line)));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => break,
                ReadRecordResult::End => {
                    self.at = 0;
                    return Ok(None);
                }
            }
        }
        used = self.take_line_feed(used)?;
        let line = self.line + newlines(&self.buffer[..gap]);
        self.line = line + newlines(&self.buffer[gap..used]);
        self.at = used;
        let (gap, raw) = self.buffer[..used].split_at(gap);
        Ok(Some(Record { gap, raw, line, fields: &self.fields[..in_fields], ends: &self.ends[..in_ends] }))
    }

    pub fn delimiter(&self) -> u8 {
        self.delimiter
    }

    /// After the last record: blank lines at the end of the file.
    pub fn rest(&self) -> &[u8] {
        &self.buffer
    }

    /// Blank lines and a byte order mark belong to no record; `csv-core` would count the former to the next one.
    fn skip_gap(&mut self) -> Result<usize, FormatError> {
        let mut gap = 0;
        if self.line == 1 {
            while self.buffer.len() < UTF8_BOM.len() && !self.source_ended {
                self.fill()?;
            }
            if self.buffer.starts_with(UTF8_BOM) {
                gap = UTF8_BOM.len();
            } else if self.buffer.starts_with(b"\xff\xfe") || self.buffer.starts_with(b"\xfe\xff") {
                return Err(FormatError::Unsupported("UTF-16 text".to_owned()));
            }
        }
        loop {
            while gap < self.buffer.len() && matches!(self.buffer[gap], b'\r' | b'\n') {
                gap += 1;
            }
            if gap < self.buffer.len() || self.source_ended {
                return Ok(gap);
            }
            self.fill()?;
        }
    }

    /// `csv-core` ends a record at the `\r` of `\r\n`; the line feed is this record's too.
    fn take_line_feed(&mut self, used: usize) -> Result<usize, FormatError> {
        if used == 0 || self.buffer[used - 1] != b'\r' {
            return Ok(used);
        }
        if used == self.buffer.len() && !self.source_ended {
            self.fill()?;
        }
        Ok(used + usize::from(self.buffer.get(used) == Some(&b'\n')))
    }

    fn fill(&mut self) -> Result<(), FormatError> {
        let length = self.buffer.len();
        self.buffer.resize(length + PIECE_BYTES, 0);
        let read = loop {
            match self.source.read(&mut self.buffer[length..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let read = read.map_err(FormatError::from_io)?;
        self.buffer.truncate(length + read);
        self.source_ended = read == 0;
        Ok(())
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The names of the columns: the header's, or numbers from 1.
pub fn column_names(header: Option<&Record<'_>>, width: usize) -> Vec<String> {
    match header {
        Some(header) => {
            (0..header.len()).map(|i| String::from_utf8_lossy(header.field(i).unwrap_or(b"")).into_owned()).collect()
        }
        None => (1..=width).map(|number| number.to_string()).collect(),
    }
}

/// Where a column stands: its exact name first, else without regard to case; only where one column fits. The verifier is as strict.
pub fn positions(names: &[String], path: &ColumnPath) -> Result<Vec<usize>, crate::column_values::NoRoute> {
    use crate::column_values::NoRoute;
    let [name] = path.0.as_slice() else { return Err(NoRoute::Missing(path.clone())) };
    let at = |same: &dyn Fn(&str) -> bool| -> Vec<usize> {
        names.iter().enumerate().filter(|(_, known)| same(known)).map(|(i, _)| i).collect()
    };
    let exact = at(&|known| known == name);
    let fitting = if exact.is_empty() { at(&|known| known.to_lowercase() == name.to_lowercase()) } else { exact };
    match fitting.len() {
        0 => Err(NoRoute::Missing(path.clone())),
        1 => Ok(fitting),
        _ => Err(NoRoute::Ambiguous(path.clone())),
    }
}

/// Where each field's bytes, quotes included, stand in a record's bytes. `None` when this simple reading and `csv-core` differ
/// (a quote in the middle of a field): such a record is not edited.
pub fn spans(record: &Record<'_>, delimiter: u8, quote: u8) -> Option<Vec<Range<usize>>> {
    let end = record.raw.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
    let raw = &record.raw[..end];
    let (mut spans, mut start, mut quoted) = (Vec::new(), 0, false);
    for (i, byte) in raw.iter().enumerate() {
        if *byte == quote {
            quoted = !quoted;
        } else if *byte == delimiter && !quoted {
            spans.push(start..i);
            start = i + 1;
        }
    }
    spans.push(start..raw.len());
    let same =
        |(i, span): (usize, &Range<usize>)| record.field(i) == Some(unquoted(&raw[span.clone()], quote).as_slice());
    (!quoted && spans.len() == record.len() && spans.iter().enumerate().all(same)).then_some(spans)
}

/// Whether a record of several lines may be several records that a stray quote has joined: text follows the quote that closes one
/// of its fields. On one line such a record is odd, but whole.
pub fn may_be_joined(record: &Record<'_>, delimiter: u8, quote: u8) -> bool {
    let end = record.raw.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
    let raw = &record.raw[..end];
    if !raw.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        return false;
    }
    let mut at = 0;
    while at < raw.len() {
        if raw[at] == quote {
            at += 1;
            loop {
                let Some(next) = raw[at..].iter().position(|byte| *byte == quote) else { return false };
                at += next + 1;
                match raw.get(at) {
                    Some(byte) if *byte == quote => at += 1,
                    Some(byte) if *byte != delimiter => return true,
                    Some(_) | None => break,
                }
            }
        }
        at += raw[at..].iter().position(|byte| *byte == delimiter).map_or(raw.len() - at, |next| next + 1);
    }
    false
}

fn unquoted(field: &[u8], quote: u8) -> Vec<u8> {
    let Some(inner) = field.strip_prefix(&[quote]).and_then(|rest| rest.strip_suffix(&[quote])) else {
        return field.to_vec();
    };
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        out.push(*byte);
        if *byte == quote {
            bytes.next();
        }
    }
    out
}

/// A cell's bytes, quoted when they need it.
pub fn quoted(text: &str, delimiter: u8, quote: u8) -> Vec<u8> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| *byte == delimiter || *byte == quote || matches!(byte, b'\r' | b'\n')) {
        return bytes.to_vec();
    }
    let mut out = vec![quote];
    for byte in bytes {
        if *byte == quote {
            out.push(quote);
        }
        out.push(*byte);
    }
    out.push(quote);
    out
}
