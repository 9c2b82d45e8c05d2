//! CSV and TSV records with the bytes they stand in.
//!
//! `csv-core` decides where records end and what their fields are. Two kinds of record need no parser: one without a quote ends at
//! its line end and is cut at its delimiters; one whose quotes all open or close a field has its fields between them. What this makes
//! of them is what `csv-core` does. The exact bytes of every record are kept, so that a kept one leaves byte for byte.

use std::io::Read;
use std::ops::Range;

use csv_core::{ReadRecordResult, Reader as Core, ReaderBuilder};
use memchr::{memchr, memchr_iter, memchr3};

use super::csv_runs::{self, Cuts, Marks, Wanted};
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
    quote: u8,
    /// Up to `end` bytes that were read; those before `at` are given out.
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    source_ended: bool,
    /// What `csv-core` unquoted.
    fields: Vec<u8>,
    ends: Vec<usize>,
    /// Where the fields of a neatly quoted record stand in it.
    spans: Vec<Range<u32>>,
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
    fields: Fields<'a>,
}

/// One record without a look at its fields: its bytes with the line end, and what stood before it.
#[derive(Debug)]
pub struct Whole<'a> {
    pub gap: &'a [u8],
    pub raw: &'a [u8],
}

/// Records that follow each other, at least one: their bytes with line ends and with what stood before each.
#[derive(Debug)]
pub struct Run<'a> {
    pub bytes: &'a [u8],
    pub records: u64,
}

#[derive(Debug, Clone, Copy)]
enum Fields<'a> {
    /// No quote anywhere: the record without its line end, cut at each delimiter.
    Plain { text: &'a [u8], delimiter: u8 },
    /// Every quote opens or closes a field: the record and where in it the fields stand, without their quotes.
    Neat { text: &'a [u8], spans: &'a [Range<u32>] },
    /// Unquoted fields, one after the other, and where each ends.
    Unquoted { text: &'a [u8], ends: &'a [usize] },
}

impl<'a> Record<'a> {
    /// The number of fields, 1 at least.
    pub fn width(&self) -> usize {
        match self.fields {
            Fields::Plain { text, delimiter } => memchr_iter(delimiter, text).count() + 1,
            Fields::Neat { spans, .. } => spans.len(),
            Fields::Unquoted { ends, .. } => ends.len(),
        }
    }

    pub fn field(&self, i: usize) -> Option<&'a [u8]> {
        match self.fields {
            Fields::Plain { text, delimiter } => {
                let mut delimiters = memchr_iter(delimiter, text);
                let start = if i == 0 { 0 } else { delimiters.nth(i - 1)? + 1 };
                Some(&text[start..delimiters.next().unwrap_or(text.len())])
            }
            Fields::Neat { text, spans } => spans.get(i).map(|span| &text[span.start as usize..span.end as usize]),
            Fields::Unquoted { text, ends } => {
                let end = *ends.get(i)?;
                let start = if i == 0 { 0 } else { ends[i - 1] };
                Some(&text[start..end])
            }
        }
    }
}

/// How a record was cut into fields.
enum Cut {
    Plain,
    Neat,
    Unquoted { in_fields: usize, in_ends: usize },
}

/// Where in the buffer a record begins, and the gap before it.
struct Found {
    gap: usize,
    begin: usize,
    extent: Extent,
    line: u64,
    cut: Cut,
}

/// How far a record reaches, from its first byte: its text, and its text with the line end.
struct Extent {
    text: usize,
    whole: usize,
}

impl<R: Read> Records<R> {
    pub fn new(source: R, dialect: &CsvDialect, tsv: bool) -> Self {
        let delimiter = dialect.delimiter.unwrap_or(if tsv { b'\t' } else { b',' });
        let mut core = ReaderBuilder::new().delimiter(delimiter).quote(dialect.quote).build();
        // `csv-core` drops a byte order mark before the first byte it sees, which need not be the first of the file.
        core.read_record(b"\n", &mut [0; 1], &mut [0; 1]);
        Records {
            source,
            core,
            delimiter,
            quote: dialect.quote,
            buffer: Vec::new(),
            at: 0,
            end: 0,
            source_ended: false,
            fields: vec![0; 4 << 10],
            ends: vec![0; 64],
            spans: Vec::new(),
            line: 1,
        }
    }

    /// The next record; `None` at the end, whose trailing bytes are then [`Records::rest`].
    pub fn read(&mut self) -> Result<Option<Record<'_>>, FormatError> {
        let Some(Found { gap, begin, extent, line, cut }) = self.next(true)? else { return Ok(None) };
        let (text, raw) = (&self.buffer[begin..begin + extent.text], &self.buffer[begin..begin + extent.whole]);
        let fields = match cut {
            Cut::Plain => Fields::Plain { text, delimiter: self.delimiter },
            Cut::Neat => Fields::Neat { text, spans: &self.spans },
            Cut::Unquoted { in_fields, in_ends } => {
                Fields::Unquoted { text: &self.fields[..in_fields], ends: &self.ends[..in_ends] }
            }
        };
        Ok(Some(Record { gap: &self.buffer[gap..begin], raw, line, fields }))
    }

    /// As [`Records::read`], of a record that nobody asks for its fields.
    pub fn read_whole(&mut self) -> Result<Option<Whole<'_>>, FormatError> {
        let Some(Found { gap, begin, extent, .. }) = self.next(false)? else { return Ok(None) };
        Ok(Some(Whole { gap: &self.buffer[gap..begin], raw: &self.buffer[begin..begin + extent.whole] }))
    }

    /// The next records, `most` (which is not 0) or fewer; `None` at the end, as [`Records::read`]. Faults stand where `read` would
    /// find them.
    pub fn read_run(&mut self, most: u64) -> Result<Option<Run<'_>>, FormatError> {
        // A byte order mark, of whatever encoding, stands on the first line: that is not skipped over.
        if self.line > 1 {
            let run = csv_runs::run(self.rest(), self.marks(), self.source_ended, most);
            if run.records > 0 {
                return Ok(Some(Run { bytes: self.give_out(run.bytes), records: run.records }));
            }
        }
        let Some(Found { gap, begin, extent, .. }) = self.next(false)? else { return Ok(None) };
        Ok(Some(Run { bytes: &self.buffer[gap..begin + extent.whole], records: 1 }))
    }

    /// The next records, as many as can be cut without a parser, at least one: their bytes, and where the wanted fields stand in
    /// them. `None`: ask [`Records::read`] for one.
    pub fn read_cut(&mut self, wanted: &Wanted, cuts: &mut Cuts) -> Option<&[u8]> {
        if self.line == 1 {
            return None;
        }
        let bytes = csv_runs::cut(self.rest(), self.marks(), self.source_ended, wanted, cuts);
        (bytes > 0).then(|| self.give_out(bytes))
    }

    fn marks(&self) -> Marks {
        Marks { delimiter: self.delimiter, quote: self.quote }
    }

    fn give_out(&mut self, bytes: usize) -> &[u8] {
        let begin = self.at;
        self.at += bytes;
        let bytes = &self.buffer[begin..self.at];
        self.line += newlines(bytes);
        bytes
    }

    fn next(&mut self, with_fields: bool) -> Result<Option<Found>, FormatError> {
        let gap = self.skip_gap()?;
        if gap == self.rest().len() {
            return Ok(None);
        }
        let line = self.line + newlines(&self.rest()[..gap]);
        let (extent, cut) = if let Some(extent) = self.plain_record(gap, line)? {
            (extent, Cut::Plain)
        } else if let Some(whole) = self.neat_record(gap, with_fields)? {
            (Extent { text: whole, whole }, Cut::Neat)
        } else {
            let (whole, in_fields, in_ends) = self.quoted_record(gap, line)?;
            (Extent { text: whole, whole }, Cut::Unquoted { in_fields, in_ends })
        };
        let (gap, begin) = (self.at, self.at + gap);
        let raw = &self.buffer[begin..begin + extent.whole];
        self.line = match cut {
            Cut::Plain => line + u64::from(raw.ends_with(b"\n")),
            Cut::Neat | Cut::Unquoted { .. } => line + newlines(raw),
        };
        self.at = begin + extent.whole;
        Ok(Some(Found { gap, begin, extent, line, cut }))
    }

    /// The source begins at a record that is not the file's first: what stands there is no byte order mark.
    pub fn go_on(&mut self) {
        self.line = self.line.max(2);
    }

    pub fn delimiter(&self) -> u8 {
        self.delimiter
    }

    /// After the last record: blank lines at the end of the file.
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.at..self.end]
    }

    /// The extent of the record that begins at `from`, when no quote stands in it.
    fn plain_record(&mut self, from: usize, line: u64) -> Result<Option<Extent>, FormatError> {
        let mut seen = from;
        let text = loop {
            let rest = self.rest();
            match memchr3(self.quote, b'\r', b'\n', &rest[seen..]) {
                Some(next) if rest[seen + next] == self.quote => return Ok(None),
                Some(next) => break seen + next,
                None if self.source_ended => break rest.len(),
                None => {
                    seen = rest.len();
                    check_length(seen - from, line)?;
                    self.fill()?;
                }
            }
        };
        let whole = match self.rest().get(text) {
            Some(b'\r') => self.take_line_feed(text + 1)?,
            Some(_) => text + 1,
            None => text,
        };
        check_length(whole - from, line)?;
        let extent = Extent { text: text - from, whole: whole - from };
        if extent.text >= RECORD_FIELDS_MAX {
            let delimiters = memchr_iter(self.delimiter, &self.rest()[from..text]).count();
            if delimiters >= RECORD_FIELDS_MAX {
                return Err(FormatError::Corrupt(format!("the record at line {line} has too many fields")));
            }
        }
        Ok(Some(extent))
    }

    /// The length of the record that begins at `from` when every quote in it opens or closes a field; its fields go to `spans` when
    /// they are asked for.
    fn neat_record(&mut self, from: usize, with_fields: bool) -> Result<Option<usize>, FormatError> {
        loop {
            let (record, ended) = (&self.buffer[self.at + from..self.end], self.source_ended);
            let neat = match with_fields {
                true => neat_fields(record, self.delimiter, self.quote, ended, &mut self.spans),
                false => neat_end(record, self.delimiter, self.quote, ended),
            };
            match neat {
                Neat::Text(text) => {
                    let whole = match record.get(text) {
                        Some(b'\r') => self.take_line_feed(from + text + 1)? - from,
                        Some(_) => text + 1,
                        None => text,
                    };
                    return Ok(Some(whole));
                }
                Neat::More if record.len() <= NEAT_BYTES_MAX => self.fill()?,
                Neat::More | Neat::No => return Ok(None),
            }
        }
    }

    /// Has `csv-core` read the record that begins at `from`: its length, and how much of `fields` and `ends` it filled.
    fn quoted_record(&mut self, from: usize, line: u64) -> Result<(usize, usize, usize), FormatError> {
        let (mut used, mut in_fields, mut in_ends) = (from, 0, 0);
        loop {
            if used == self.rest().len() && !self.source_ended {
                self.fill()?;
            }
            // At the end `csv-core` would take an open quote for a closed one; a line feed more tells them apart.
            let cut = used == self.rest().len();
            let input = if cut { b"\n" } else { &self.buffer[self.at + used..self.end] };
            let (result, read, wrote, ended) =
                self.core.read_record(input, &mut self.fields[in_fields..], &mut self.ends[in_ends..]);
            (used, in_fields, in_ends) = (if cut { used } else { used + read }, in_fields + wrote, in_ends + ended);
            check_length(used - from, line)?;
            match result {
                ReadRecordResult::InputEmpty if cut => {
                    return Err(FormatError::Corrupt(format!("the record at line {line} ends inside quotes")));
                }
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.fields.resize(self.fields.len() * 2, 0),
                ReadRecordResult::OutputEndsFull if self.ends.len() >= RECORD_FIELDS_MAX => {
                    return Err(FormatError::Corrupt(format!("the record at line {line} has too many fields")));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                // What is no line end is a record's.
                ReadRecordResult::Record | ReadRecordResult::End => break,
            }
        }
        // `csv-core` ends a record at the `\r` of `\r\n`; the line feed is this record's too.
        let used = if self.rest()[..used].ends_with(b"\r") { self.take_line_feed(used)? } else { used };
        Ok((used - from, in_fields, in_ends))
    }

    /// Blank lines and a byte order mark belong to no record; `csv-core` would count the former to the next one.
    fn skip_gap(&mut self) -> Result<usize, FormatError> {
        let mut gap = 0;
        if self.line == 1 && self.at == 0 {
            while self.end < UTF8_BOM.len() && !self.source_ended {
                self.fill()?;
            }
            if self.rest().starts_with(UTF8_BOM) {
                gap = UTF8_BOM.len();
            } else if self.rest().starts_with(b"\xff\xfe") || self.rest().starts_with(b"\xfe\xff") {
                return Err(FormatError::Unsupported("UTF-16 text".to_owned()));
            }
        }
        loop {
            let rest = self.rest();
            while gap < rest.len() && matches!(rest[gap], b'\r' | b'\n') {
                gap += 1;
            }
            if gap < rest.len() || self.source_ended {
                return Ok(gap);
            }
            self.fill()?;
        }
    }

    /// Where the line ends whose `\r` stands before `end`: after the line feed, if one follows.
    fn take_line_feed(&mut self, end: usize) -> Result<usize, FormatError> {
        if end == self.rest().len() && !self.source_ended {
            self.fill()?;
        }
        Ok(end + usize::from(self.rest().get(end) == Some(&b'\n')))
    }

    /// Reads more. What was given out makes room, so that a record is moved only when it spans two reads.
    fn fill(&mut self) -> Result<(), FormatError> {
        self.buffer.copy_within(self.at..self.end, 0);
        (self.at, self.end) = (0, self.end - self.at);
        if self.buffer.len() < self.end + PIECE_BYTES {
            self.buffer.resize(self.end + PIECE_BYTES, 0);
        }
        let read = loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let read = read.map_err(FormatError::from_io)?;
        self.end += read;
        self.source_ended = read == 0;
        Ok(())
    }
}

/// A longer record is left to `csv-core`, which does not begin again when more of it was read.
const NEAT_BYTES_MAX: usize = 1 << 20;

/// What an attempt to cut a record at its quotes and delimiters came to.
enum Neat {
    /// The record without its line end is so long.
    Text(usize),
    /// More bytes must be read.
    More,
    /// It has other quotes than those around fields.
    No,
}

/// `has_all`: nothing follows `record`, which otherwise reaches to where reading has come.
fn neat_fields(record: &[u8], delimiter: u8, quote: u8, has_all: bool, spans: &mut Vec<Range<u32>>) -> Neat {
    spans.clear();
    let at_end = |byte: &u8| *byte == delimiter || matches!(byte, b'\r' | b'\n');
    let mut at = 0;
    loop {
        let (start, end) = if record.get(at) == Some(&quote) {
            let Some(length) = memchr(quote, &record[at + 1..]) else {
                return if has_all { Neat::No } else { Neat::More };
            };
            let end = at + 1 + length;
            at = end + 1;
            (end - length, end)
        } else {
            let start = at;
            at += record[at..].iter().position(at_end).unwrap_or(record.len() - at);
            (start, at)
        };
        if at > NEAT_BYTES_MAX || spans.len() >= RECORD_FIELDS_MAX {
            return Neat::No;
        }
        spans.push(start as u32..end as u32);
        match record.get(at) {
            Some(byte) if *byte == delimiter => at += 1,
            Some(b'\r' | b'\n') => return Neat::Text(at),
            Some(_) => return Neat::No,
            None if has_all => return Neat::Text(at),
            None => return Neat::More,
        }
    }
}

/// Where [`neat_fields`] would end, found by its quotes and line ends alone. Two quotes inside a field are one of its text.
fn neat_end(record: &[u8], delimiter: u8, quote: u8, has_all: bool) -> Neat {
    // Always before a field or in one without quotes.
    let mut at = 0;
    loop {
        let Some(next) = memchr3(quote, b'\r', b'\n', &record[at..]) else {
            return if has_all { Neat::Text(record.len()) } else { Neat::More };
        };
        at += next;
        if at > NEAT_BYTES_MAX {
            return Neat::No;
        }
        if record[at] != quote {
            return Neat::Text(at);
        }
        if at > 0 && record[at - 1] != delimiter {
            return Neat::No;
        }
        at += 1;
        loop {
            let Some(length) = memchr(quote, &record[at..]) else {
                return if has_all { Neat::No } else { Neat::More };
            };
            at += length + 1;
            match record.get(at) {
                Some(byte) if *byte == quote => at += 1,
                Some(byte) if *byte == delimiter => break,
                Some(b'\r' | b'\n') => return Neat::Text(at),
                Some(_) => return Neat::No,
                None if has_all => return Neat::Text(at),
                None => return Neat::More,
            }
        }
    }
}

fn check_length(bytes: usize, line: u64) -> Result<(), FormatError> {
    if bytes > RECORD_BYTES_MAX {
        return Err(FormatError::Corrupt(format!("the record at line {line} does not end")));
    }
    Ok(())
}

fn newlines(bytes: &[u8]) -> u64 {
    memchr_iter(b'\n', bytes).count() as u64
}

/// The names of the columns: the header's, or numbers from 1.
pub fn column_names(header: Option<&Record<'_>>, width: usize) -> Vec<String> {
    match header {
        Some(header) => {
            (0..header.width()).map(|i| String::from_utf8_lossy(header.field(i).unwrap_or(b"")).into_owned()).collect()
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
    if matches!(record.fields, Fields::Plain { .. }) {
        return Some(spans);
    }
    let same =
        |(i, span): (usize, &Range<usize>)| record.field(i) == Some(unquoted(&raw[span.clone()], quote).as_slice());
    (!quoted && spans.len() == record.width() && spans.iter().enumerate().all(same)).then_some(spans)
}

/// Whether a record of several lines may be several records that a stray quote has joined: text follows the quote that closes one
/// of its fields. On one line such a record is odd, but whole.
pub fn may_be_joined(record: &Record<'_>, delimiter: u8, quote: u8) -> bool {
    if matches!(record.fields, Fields::Plain { .. } | Fields::Neat { .. }) {
        return false;
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Fields = Vec<Vec<u8>>;

    /// Mostly regular, and longer than what is scanned at a time.
    const LINES: &str =
        "a\n(((a|bb,|\"(a|\"\"|\r?\n){0,9}\",){0,9}(a|\"b\"|)(\r|\n|\r\n|\n\n)){0,6}[ab,\"\r\n]{0,3}){0,3}";

    /// Gives one byte at a time, so that every place is an end of what was read.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let (Some((first, rest)), Some(out)) = (self.0.split_first(), out.first_mut()) else { return Ok(0) };
            (*out, self.0) = (*first, rest);
            Ok(1)
        }
    }

    /// The records of `source`, and all bytes in the order in which they were given out.
    fn records(source: impl Read) -> Result<(Vec<Fields>, Vec<u8>), FormatError> {
        let mut records = Records::new(source, &CsvDialect::default(), false);
        let (mut all, mut bytes) = (Vec::new(), Vec::new());
        while let Some(record) = records.read()? {
            bytes.extend_from_slice(record.gap);
            bytes.extend_from_slice(record.raw);
            let fields: Fields = (0..record.width()).filter_map(|i| record.field(i)).map(<[u8]>::to_vec).collect();
            assert_eq!((fields.len(), record.field(record.width())), (record.width(), None));
            all.push(fields);
        }
        bytes.extend_from_slice(records.rest());
        Ok((all, bytes))
    }

    /// Where each record ends; `None` when the source ends inside quotes.
    fn ends(source: impl Read, with_fields: bool) -> Option<Vec<usize>> {
        let mut records = Records::new(source, &CsvDialect::default(), false);
        let (mut ends, mut at) = (Vec::new(), 0);
        while let Some(found) = records.next(with_fields).ok()? {
            at += found.begin - found.gap + found.extent.whole;
            ends.push(at);
        }
        Some(ends)
    }

    /// Where the runs of at most `most` records end that [`Records::read_run`] gives, as [`ends`] tells of each record.
    fn run_ends(source: impl Read, most: u64) -> Option<Vec<(usize, u64)>> {
        let mut records = Records::new(source, &CsvDialect::default(), false);
        let (mut ends, mut at, mut count) = (Vec::new(), 0, 0);
        while let Some(run) = records.read_run(most).ok()? {
            assert!((1..=most).contains(&run.records), "{}", run.records);
            (at, count) = (at + run.bytes.len(), count + run.records);
            ends.push((at, count));
        }
        Some(ends)
    }

    /// The first two fields of records that have as many as the first one, and where the records begin and end: cut at once where
    /// that can be done, or all read singly.
    fn firsts(source: impl Read, at_once: bool) -> Option<Vec<(usize, usize, Fields)>> {
        let mut records = Records::new(source, &CsvDialect::default(), false);
        let (mut all, mut at, mut cuts, mut wanted) = (Vec::new(), 0, Cuts::default(), None);
        loop {
            if let Some(wanted) = wanted.as_ref().filter(|_| at_once)
                && let Some(run) = records.read_cut(wanted, &mut cuts)
            {
                for (extent, fields) in cuts.records(wanted) {
                    let fields = fields.iter().map(|(begin, end)| run[*begin as usize..*end as usize].to_vec());
                    all.push((at + extent.start, at + extent.end, fields.collect()));
                }
                at += run.len();
                continue;
            }
            let Some(record) = records.read().ok()? else { return Some(all) };
            let wanted =
                wanted.get_or_insert_with(|| Wanted::new(record.width(), (0..record.width().min(2)).collect()));
            let begin = at + record.gap.len();
            at = begin + record.raw.len();
            let fields = wanted.positions().iter().map(|i| record.field(*i).unwrap_or(b"").to_vec());
            all.push((begin, at, if record.width() == wanted.width() { fields.collect() } else { Vec::new() }));
        }
    }

    /// No record of a test has more bytes or fields; a longer one would end the loop of [`records_of_core`].
    const RECORD_MAX: usize = 4096;

    /// What `csv-core` makes of it alone.
    fn records_of_core(source: &[u8]) -> Vec<Fields> {
        let source = [source, b"\n"].concat();
        let (mut core, mut all, mut rest) = (Core::new(), Vec::new(), source.as_slice());
        let (mut text, mut ends) = ([0; RECORD_MAX], [0; RECORD_MAX]);
        while let (ReadRecordResult::Record, read, _, ended) = core.read_record(rest, &mut text, &mut ends) {
            let starts = [0].into_iter().chain(ends[..ended].iter().copied());
            all.push(starts.zip(&ends[..ended]).map(|(start, end)| text[start..*end].to_vec()).collect());
            rest = &rest[read..];
        }
        all
    }

    #[test]
    fn a_long_record_is_read_whole_by_both_readers() {
        let source = [vec![b'x'; 300], vec![b','; 300], b"\nshort,one\n".to_vec()].concat();
        let (at_once, bytes) = records(source.as_slice()).expect("no quotes");
        assert_eq!((&at_once, bytes), (&records_of_core(&source), source));
        assert_eq!(at_once.iter().map(Vec::len).collect::<Vec<_>>(), [301, 2]);
    }

    proptest! {
        #[test]
        fn records_cut_without_the_parser_are_those_of_the_parser(source in prop_oneof!["[ab,\"\r\n]{0,40}", LINES]) {
            let source = source.as_bytes();
            prop_assert_eq!(ends(source, false), ends(source, true));
            prop_assert_eq!(ends(Drip(source), false), ends(source, true));
            for most in [1, 2, 3, u64::MAX] {
                for runs in [run_ends(source, most), run_ends(Drip(source), most)] {
                    let singly = ends(source, true);
                    prop_assert_eq!(runs.is_some(), singly.is_some());
                    let (runs, singly) = (runs.unwrap_or_default(), singly.unwrap_or_default());
                    prop_assert_eq!(runs.last().map_or(0, |(_, count)| *count), singly.len() as u64);
                    prop_assert!(runs.iter().all(|(at, count)| singly[*count as usize - 1] == *at), "{:?} {:?}", runs, singly);
                }
            }
            prop_assert_eq!(firsts(source, true), firsts(source, false));
            prop_assert_eq!(firsts(Drip(source), true), firsts(source, false));
            let Ok((records_at_once, bytes)) = records(source) else {
                // It ends inside quotes.
                return Ok(());
            };
            prop_assert_eq!(&bytes, source);
            prop_assert_eq!(&records_at_once, &records_of_core(source));
            let (dripped, bytes) = records(Drip(source)).expect("what was read at once");
            prop_assert_eq!(dripped, records_at_once);
            prop_assert_eq!(bytes, source);
        }
    }
}
