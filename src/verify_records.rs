//! How the verifier sees CSV, NDJSON and plain lines: as batches of their identifier columns, like [`crate::verify_parquet`].
//!
//! CSV is cut into blocks at record ends and made regular (line ends, stray quotes) by a small automaton that counts the
//! records; Polars parses the blocks, and both must agree on the count, so that no quoting fault can hide a record. Nothing here
//! knows identifiers.

use std::io::{BufRead, BufReader, Cursor, Read};
use std::sync::mpsc::{SyncSender, sync_channel};

use polars::prelude::_csv_read_internal::read_chunk;
use polars::prelude::*;

use crate::byte_mask::{Block as Bytes, blocks, parity, places};
use crate::format::CsvDialect;
use crate::identifier::ColumnPath;
use crate::store::{ObjectReader, store_error};
use crate::verify_batch::{Batch, Fault, Leaf, Scanned, Work};
use crate::verify_columns::{Ambiguous, ambiguous, resolve};
use crate::verify_ndjson::scan_ndjson;

/// What a file of records holds.
#[derive(Debug, Clone)]
pub enum Layout {
    Delimited {
        delimiter: u8,
        dialect: CsvDialect,
    },
    Ndjson,
    /// One value a line; there is one column.
    Lines,
}

/// How large a block may grow before it is parsed.
const BLOCK_BYTES: usize = 8 << 20;

/// What a scan of an object's records holds at most, about: a block that grows, one that waits, and one that is parsed, each of them twice.
pub fn held_bytes(object_bytes: u64) -> u64 {
    6 * object_bytes.min(BLOCK_BYTES as u64)
}

/// A longer record would have to be held whole; most likely a quote was never closed.
const RECORD_BYTES_MAX: usize = 256 << 20;

/// Reads an object to its end and gives its batches to `work`. Blocking.
pub fn scan_records(
    object: &ObjectReader,
    promised: Promised,
    layout: &Layout,
    columns: &[ColumnPath],
    work: &Work,
    others: bool,
) -> Result<Scanned, Fault> {
    if object.object().size_bytes == 0 {
        return Ok(Scanned::default());
    }
    let mut content = text(decompressed(object, promised)?)?;
    match layout {
        Layout::Delimited { delimiter, dialect } => {
            scan_delimited(&mut content, *delimiter, dialect, columns, work, others)
        }
        Layout::Ndjson => scan_ndjson(&mut content, columns, work, others),
        Layout::Lines => scan_lines(&mut content, columns, work),
    }
}

/// The compression a name promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promised {
    Nothing,
    Gzip,
    Zstd,
}

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The magic number decides: what is compressed under a plain name is looked into all the same.
fn decompressed(object: &ObjectReader, promised: Promised) -> Result<Box<dyn BufRead>, Fault> {
    let mut stored = BufReader::with_capacity(256 << 10, object.read_from(0));
    let head = stored.fill_buf().map_err(read_fault)?;
    if head.starts_with(&GZIP_MAGIC) {
        let plain = flate2::bufread::MultiGzDecoder::new(stored);
        return Ok(Box::new(BufReader::with_capacity(256 << 10, plain)));
    }
    if head.starts_with(&ZSTD_MAGIC) {
        let plain = zstd::stream::read::Decoder::with_buffer(stored).map_err(read_fault)?;
        return Ok(Box::new(BufReader::with_capacity(256 << 10, plain)));
    }
    match promised {
        Promised::Nothing => Ok(Box::new(stored)),
        Promised::Gzip => Err(Fault::unreadable("is named as gzip but does not begin like gzip")),
        Promised::Zstd => Err(Fault::unreadable("is named as zstd but does not begin like zstd")),
    }
}

/// Drops a byte order mark; UTF-16 would hide every value.
fn text(mut content: Box<dyn BufRead>) -> Result<Box<dyn BufRead>, Fault> {
    let mut head = Vec::new();
    content.by_ref().take(3).read_to_end(&mut head).map_err(read_fault)?;
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return Err(Fault::unreadable("is UTF-16; only UTF-8 is read"));
    }
    if head == [0xef, 0xbb, 0xbf] {
        head.clear();
    }
    Ok(Box::new(Cursor::new(head).chain(content)))
}

fn read_fault(error: std::io::Error) -> Fault {
    match store_error(&error) {
        Some(found) => Fault::from(found.clone()),
        None => Fault::unreadable(format!("cannot be read or decompressed: {}", error.kind())),
    }
}

fn scan_delimited(
    content: &mut dyn BufRead,
    delimiter: u8,
    dialect: &CsvDialect,
    columns: &[ColumnPath],
    work: &Work,
    others: bool,
) -> Result<Scanned, Fault> {
    // One thread cuts and counts while another parses: each takes about as long.
    std::thread::scope(|scope| {
        let (blocks, waiting) = sync_channel::<Block>(1);
        let parsing = scope.spawn(move || {
            let (mut table, mut scanned) = (None, Scanned::default());
            for block in waiting {
                if table.is_none() {
                    table = Some(DelimitedTable::of(&block, delimiter, dialect, columns, others)?);
                }
                let table = table.as_mut().expect("made above");
                scanned.tally.follow(work(&table.parse(block)?)?);
            }
            scanned.missing = table.map(|table: DelimitedTable| table.missing()).unwrap_or_default();
            Ok(scanned)
        });
        let cut = cut_blocks(content, Regular::new(delimiter, dialect.quote), &blocks);
        drop(blocks);
        let parsed = parsing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // What is wrong with a block comes before what is wrong with a later one.
        parsed.and_then(|scanned| cut.map(|()| scanned))
    })
}

/// Gives whole records away, block by block, until nobody takes them.
fn cut_blocks(content: &mut dyn BufRead, mut records: Regular, blocks: &SyncSender<Block>) -> Result<(), Fault> {
    loop {
        let piece = content.fill_buf().map_err(read_fault)?;
        let (read, ended) = (piece.len(), piece.is_empty());
        records.push(piece)?;
        content.consume(read);
        if ended {
            records.end()?;
        }
        let is_due = records.whole_bytes >= BLOCK_BYTES || (ended && records.whole > 0);
        if is_due && blocks.send(records.take()).is_err() || ended {
            return Ok(());
        }
    }
}

/// Whole records, one a line, with every irregular field quoted anew.
struct Block {
    bytes: Vec<u8>,
    records: usize,
    width: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    RecordStart,
    FieldStart,
    Unquoted,
    Quoted,
    /// After a quote inside quotes: an escaped one, or the closing one.
    Quote,
    /// After the closing quote came something else.
    AfterQuoted,
}

/// Makes CSV regular: `\n` alone ends a record, blank lines are gone, and a quote stands only where it quotes. What the fields mean
/// does not change.
struct Regular {
    delimiter: u8,
    quote: u8,
    at: At,
    out: Vec<u8>,
    field_start: usize,
    irregular: bool,
    /// Of the record so far: text follows a closing quote, and a line ends inside quotes.
    has_text_after_quote: bool,
    has_line_break: bool,
    fields: usize,
    width: Option<usize>,
    /// Whole records in `out`, and where they end.
    whole: usize,
    whole_bytes: usize,
    /// Records since the start, for messages.
    record: u64,
}

impl Regular {
    fn new(delimiter: u8, quote: u8) -> Self {
        Regular {
            delimiter,
            quote,
            at: At::RecordStart,
            out: Vec::new(),
            field_start: 0,
            irregular: false,
            has_text_after_quote: false,
            has_line_break: false,
            fields: 0,
            width: None,
            whole: 0,
            whole_bytes: 0,
            record: 0,
        }
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), Fault> {
        let mut rest = piece;
        while let Some(first) = rest.first() {
            if self.at == At::RecordStart {
                rest = &rest[self.take_neat(rest)..];
                let Some(first) = rest.first() else { break };
                self.step(*first)?;
                rest = &rest[1..];
                continue;
            }
            // Most bytes change nothing: they are taken in runs.
            let special =
                |byte: &u8| *byte == self.delimiter || *byte == self.quote || *byte == b'\n' || *byte == b'\r';
            let run = match self.at {
                At::Unquoted => rest.iter().position(special).unwrap_or(rest.len()),
                At::Quoted => memchr::memchr(self.quote, rest).unwrap_or(rest.len()),
                At::RecordStart | At::FieldStart | At::Quote | At::AfterQuoted => 0,
            };
            let (taken, after) = rest.split_at(run);
            if self.at == At::Quoted && !self.has_line_break {
                self.has_line_break = memchr::memchr2(b'\n', b'\r', taken).is_some();
            }
            self.out.extend_from_slice(taken);
            rest = after;
            if run == 0 {
                self.step(*first)?;
                rest = &rest[1..];
            }
        }
        if self.out.len() - self.whole_bytes > RECORD_BYTES_MAX {
            return Err(Fault::unreadable(format!(
                "record {} is longer than 256 MiB: is a quote unclosed",
                self.record + 1
            )));
        }
        Ok(())
    }

    /// Takes whole records at the start of `rest`, 64 bytes at a time, as long as every quote opens a field, closes one, or is half
    /// of two, and all have as many fields as the first. How many bytes they are; what else comes goes through [`Regular::step`].
    fn take_neat(&mut self, rest: &[u8]) -> usize {
        let Some(width) = self.width else { return 0 };
        let mut neat = Neat { inside: 0, after_quote: 0, after_mark: 1, after_line_end: 1 };
        // What of `rest` is in `out`, and up to where it is records and blank lines; of the record from there on, its fields.
        let (mut copied, mut end, mut fields) = (0, 0, 1);
        'blocks: for (number, (block, filled)) in blocks(rest).enumerate() {
            let seen = neat.next(&block, filled, self.delimiter, self.quote);
            let (mut line_ends, mut delimiters) = (seen.line_ends, seen.delimiters);
            while line_ends != 0 {
                let lowest = line_ends & line_ends.wrapping_neg();
                let at = number * size_of::<Bytes>() + lowest.trailing_zeros() as usize;
                let (is_blank, is_line_feed) = (seen.blank & lowest != 0, rest[at] == b'\n');
                if !is_blank {
                    fields += (delimiters & (lowest - 1)).count_ones() as usize;
                    if fields != width {
                        break 'blocks;
                    }
                    self.whole += 1;
                    self.record += 1;
                }
                if is_blank || !is_line_feed {
                    self.out.extend_from_slice(&rest[copied..at]);
                    self.out.extend((!is_blank).then_some(b'\n'));
                    copied = at + 1;
                }
                end = at + 1;
                fields = 1;
                delimiters &= !(lowest - 1);
                line_ends ^= lowest;
            }
            if seen.is_odd {
                break;
            }
            fields += delimiters.count_ones() as usize;
        }
        self.out.extend_from_slice(&rest[copied.min(end)..end]);
        (self.field_start, self.whole_bytes) = (self.out.len(), self.out.len());
        end
    }

    fn step(&mut self, byte: u8) -> Result<(), Fault> {
        let line_end = byte == b'\n' || byte == b'\r';
        let (quote, delimiter) = (byte == self.quote, byte == self.delimiter);
        match self.at {
            At::RecordStart if line_end => return Ok(()),
            At::Quoted => {
                self.out.push(byte);
                if quote {
                    self.at = At::Quote;
                }
                return Ok(());
            }
            At::Quote if quote => {
                self.out.push(byte);
                self.at = At::Quoted;
                return Ok(());
            }
            At::RecordStart | At::FieldStart if quote => {
                self.out.push(byte);
                self.at = At::Quoted;
                return Ok(());
            }
            At::RecordStart | At::FieldStart | At::Unquoted | At::Quote | At::AfterQuoted => {}
        }
        if line_end {
            return self.end_record();
        }
        if delimiter {
            self.end_field();
            self.out.push(byte);
            self.field_start = self.out.len();
            self.at = At::FieldStart;
            return Ok(());
        }
        self.irregular |= quote || self.at == At::Quote;
        self.has_text_after_quote |= self.at == At::Quote;
        self.at = match self.at {
            At::Quote | At::AfterQuoted => At::AfterQuoted,
            At::RecordStart | At::FieldStart | At::Unquoted | At::Quoted => At::Unquoted,
        };
        self.out.push(byte);
        Ok(())
    }

    fn end_field(&mut self) {
        self.fields += 1;
        if std::mem::take(&mut self.irregular) {
            let raw = self.out.split_off(self.field_start);
            let value = self.value(&raw);
            self.out.push(self.quote);
            for byte in value {
                self.out.extend(std::iter::repeat_n(byte, if byte == self.quote { 2 } else { 1 }));
            }
            self.out.push(self.quote);
        }
    }

    /// What an irregular field means: a quoted part, if it begins with one, and everything after it as it stands.
    fn value(&self, raw: &[u8]) -> Vec<u8> {
        let Some(mut rest) = raw.strip_prefix(&[self.quote]) else {
            return raw.to_vec();
        };
        let mut value = Vec::with_capacity(raw.len());
        while let Some(at) = rest.iter().position(|byte| *byte == self.quote) {
            value.extend_from_slice(&rest[..at]);
            match rest.get(at + 1) {
                Some(next) if *next == self.quote => value.push(self.quote),
                _ => {
                    value.extend_from_slice(&rest[at + 1..]);
                    return value;
                }
            }
            rest = &rest[at + 2..];
        }
        value.extend_from_slice(rest);
        value
    }

    fn end_record(&mut self) -> Result<(), Fault> {
        self.end_field();
        self.out.push(b'\n');
        self.record += 1;
        // A stray quote opens a field that swallows the records up to the next quote: nobody can tell what was meant.
        let has_line_break = std::mem::take(&mut self.has_line_break);
        if std::mem::take(&mut self.has_text_after_quote) && has_line_break {
            let number = self.record;
            return Err(Fault::unreadable(format!(
                "text follows a closing quote in record {number}, which may be several"
            )));
        }
        let fields = std::mem::take(&mut self.fields);
        let width = *self.width.get_or_insert(fields);
        if fields != width {
            return Err(Fault::unreadable(format!(
                "record {} has {fields} fields, the first has {width}",
                self.record
            )));
        }
        self.at = At::RecordStart;
        self.field_start = self.out.len();
        self.whole_bytes = self.out.len();
        self.whole += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        match self.at {
            At::RecordStart => Ok(()),
            At::Quoted => Err(Fault::unreadable(format!("ends inside quotes, in record {}", self.record + 1))),
            At::FieldStart | At::Unquoted | At::Quote | At::AfterQuoted => self.end_record(),
        }
    }

    /// The whole records so far.
    fn take(&mut self) -> Block {
        let rest = self.out.split_off(self.whole_bytes);
        self.field_start -= self.whole_bytes;
        let bytes = std::mem::replace(&mut self.out, rest);
        self.whole_bytes = 0;
        Block { bytes, records: std::mem::take(&mut self.whole), width: self.width.unwrap_or(0) }
    }
}

/// What is known at the end of 64 bytes, of which only the lowest bit counts, but for `inside`.
struct Neat {
    /// All bits: inside quotes.
    inside: u64,
    /// The byte before closes quotes, is no part of a field, or is a line end outside quotes.
    after_quote: u64,
    after_mark: u64,
    after_line_end: u64,
}

/// What 64 bytes show before the first quote that is amiss. All of it stands outside quotes.
struct SeenNeat {
    delimiters: u64,
    line_ends: u64,
    /// Those line ends that follow another at once.
    blank: u64,
    is_odd: bool,
}

impl Neat {
    #[inline]
    fn next(&mut self, bytes: &Bytes, filled: u64, delimiter: u8, quote: u8) -> SeenNeat {
        let quotes = places(bytes, quote) & filled;
        let delimiters = places(bytes, delimiter) & filled;
        let line_ends = (places(bytes, b'\n') | places(bytes, b'\r')) & filled;
        let marks = quotes | delimiters | line_ends;
        let quoted = parity(quotes) ^ self.inside;
        let opening = quotes & quoted;
        let closing = quotes & !quoted;
        // Text before an opening quote, or after a closing one.
        let odd = opening & !(marks << 1 | self.after_mark) | (closing << 1 | self.after_quote) & filled & !marks;
        let sound = (odd & odd.wrapping_neg()).wrapping_sub(1);
        let outside = line_ends & !quoted;
        let blank = outside & (outside << 1 | self.after_line_end);
        self.inside = if quoted >> 63 == 1 { u64::MAX } else { 0 };
        self.after_quote = closing >> 63;
        self.after_mark = marks >> 63;
        self.after_line_end = outside >> 63;
        SeenNeat { delimiters: delimiters & !quoted & sound, line_ends: outside & sound, blank, is_odd: odd != 0 }
    }
}

/// Where the columns are, and how to parse.
struct DelimitedTable {
    options: CsvParseOptions,
    /// Of all fields: they are called by their numbers, and are texts.
    schema: Schema,
    /// By column asked for: its field.
    fields: Vec<Option<usize>>,
    /// Fields that were not asked for, when they are looked at.
    others: Vec<(ColumnPath, usize)>,
    null_strings: Vec<String>,
    header_is_next: bool,
}

impl DelimitedTable {
    fn of(
        first: &Block,
        delimiter: u8,
        dialect: &CsvDialect,
        columns: &[ColumnPath],
        others: bool,
    ) -> Result<Self, Fault> {
        let schema: Schema = (0..first.width).map(|i| Field::new(i.to_string().into(), DataType::String)).collect();
        let options = CsvParseOptions::default().with_separator(delimiter).with_quote_char(Some(dialect.quote));
        let mut table = DelimitedTable {
            options,
            schema,
            fields: Vec::new(),
            others: Vec::new(),
            null_strings: dialect.null_strings.clone(),
            header_is_next: dialect.header,
        };
        let names = if dialect.header {
            let end = header_end(&first.bytes, dialect.quote);
            let (bytes, _) = escaped(first.bytes[..end].to_vec());
            let frame = table.frame(&bytes, &(0..first.width).collect::<Vec<_>>(), 1)?;
            frame
                .columns()
                .iter()
                .map(|name| Ok(name.str()?.get(0).unwrap_or("").to_owned()))
                .collect::<PolarsResult<_>>()?
        } else {
            (1..=first.width).map(|number| number.to_string()).collect::<Vec<_>>()
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        table.fields = columns
            .iter()
            .map(|column| match column.0.as_slice() {
                [name] => resolve(&names, name).map_err(|Ambiguous| ambiguous(column)),
                _ => Ok(None),
            })
            .collect::<Result<_, _>>()?;
        if others {
            let unasked = names.iter().enumerate().filter(|(field, _)| !table.fields.contains(&Some(*field)));
            table.others = unasked.map(|(field, name)| (ColumnPath(vec![(*name).to_owned()]), field)).collect();
        }
        Ok(table)
    }

    fn missing(&self) -> Vec<usize> {
        (0..self.fields.len()).filter(|column| self.fields[*column].is_none()).collect()
    }

    /// Parses whole records, of which there are `records` or so. Polars' reader of files does the same after it counted the lines:
    /// here its parser's own count is compared with that of [`Regular`].
    fn frame(&self, bytes: &[u8], fields: &[usize], records: usize) -> PolarsResult<DataFrame> {
        let (all, whole) = (usize::MAX, bytes.len());
        read_chunk(bytes, &self.options, &self.schema, false, fields, 0, records, None, all, whole, Some(0))
    }

    fn parse(&mut self, block: Block) -> Result<Batch, Fault> {
        let skipped = usize::from(std::mem::take(&mut self.header_is_next));
        let rows = block.records - skipped;
        let others = self.others.iter().map(|(_, field)| *field);
        let mut fields: Vec<usize> = self.fields.iter().flatten().copied().chain(others).collect();
        fields.sort_unstable();
        fields.dedup();
        if fields.is_empty() {
            return Ok(Batch { rows, columns: self.fields.iter().map(|_| Vec::new()).collect(), others: Vec::new() });
        }
        let (bytes, escapes) = escaped(block.bytes);
        let frame = self.frame(&bytes, &fields, block.records)?;
        if frame.height() != block.records {
            return Err(Fault::unreadable(format!(
                "two readers count {} and {} records in one part of it: its quoting is ambiguous",
                frame.height(),
                block.records
            )));
        }
        let leaves = |field: &Option<usize>| match field {
            None => Ok(Vec::new()),
            Some(field) => {
                let texts = frame.column(&field.to_string())?.str()?.slice(skipped as i64, rows);
                Ok(cells(&texts, &self.null_strings, escapes))
            }
        };
        let mut others = Vec::new();
        for (path, field) in &self.others {
            others.extend(leaves(&Some(*field))?.into_iter().map(|leaf| (path.clone(), leaf)));
        }
        Ok(Batch { rows, columns: self.fields.iter().map(leaves).collect::<PolarsResult<_>>()?, others })
    }
}

fn header_end(bytes: &[u8], quote: u8) -> usize {
    let mut quoted = false;
    let end = bytes.iter().position(|byte| {
        quoted ^= *byte == quote;
        !quoted && *byte == b'\n'
    });
    end.map_or(bytes.len(), |end| end + 1)
}

/// Bytes that are no UTF-8 are carried through Polars as characters of the last private plane.
const ESCAPE_BASE: u32 = 0x10_ff00;

fn escaped(bytes: Vec<u8>) -> (Vec<u8>, bool) {
    if std::str::from_utf8(&bytes).is_ok() {
        return (bytes, false);
    }
    let mut out = String::with_capacity(bytes.len() + 64);
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().filter_map(|byte| char::from_u32(ESCAPE_BASE + u32::from(*byte))));
    }
    (out.into_bytes(), true)
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let byte = |c: char| u32::from(c).checked_sub(ESCAPE_BASE).filter(|byte| *byte >= 0x80).map(|byte| byte as u8);
    text.chars().any(|c| byte(c).is_some()).then(|| {
        let mut out = Vec::with_capacity(text.len());
        text.chars().for_each(|c| match byte(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        });
        out
    })
}

/// The cells of one column: null strings are null, and those with bytes that are no UTF-8 are bytes.
fn cells(texts: &StringChunked, null_strings: &[String], escapes: bool) -> Vec<Leaf> {
    let is_null = |text: &str| null_strings.iter().any(|null| null == text);
    let kept = |text: &str| !(is_null(text) || escapes && unescaped(text).is_some());
    let all_kept = null_strings.is_empty() && !escapes;
    let plain =
        if all_kept { texts.clone() } else { texts.iter().map(|text| text.filter(|text| kept(text))).collect() };
    let mut leaves = vec![Leaf::flat(plain.into_series())];
    if escapes {
        let odd = texts.iter().enumerate().filter_map(|(row, text)| Some((row as u32, unescaped(text?)?)));
        let (rows, bytes): (Vec<u32>, Vec<Vec<u8>>) = odd.unzip();
        let values = BinaryChunked::from_iter_values("v".into(), bytes.iter()).into_series();
        leaves.push(Leaf { rows: Some(rows), elements: None, values });
    }
    leaves
}

fn scan_lines(content: &mut dyn BufRead, columns: &[ColumnPath], work: &Work) -> Result<Scanned, Fault> {
    let mut scanned = Scanned::default();
    each_block_of_lines(content, &mut |lines| {
        let (bytes, escapes) = escaped(lines.iter().map(|(_, line)| *line).collect::<Vec<_>>().join(&b'\n'));
        let text = String::from_utf8(bytes).expect("escaped above");
        let texts = StringChunked::from_iter_values("v".into(), text.split('\n'));
        // One identifier a line: there is one column, whatever it is called.
        let columns = (0..columns.len()).map(|i| if i == 0 { cells(&texts, &[], escapes) } else { Vec::new() });
        scanned.tally.follow(work(&Batch { rows: lines.len(), columns: columns.collect(), others: Vec::new() })?);
        Ok(())
    })?;
    Ok(scanned)
}

/// With its number from 1 on.
pub type NumberedLine<'a> = (u64, &'a [u8]);

/// Gives all lines that are not blank, numbered from 1, in blocks.
pub fn each_block_of_lines(
    content: &mut dyn BufRead,
    each: &mut dyn FnMut(&[NumberedLine<'_>]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (mut block, mut number) = (Vec::new(), 1);
    loop {
        let ended =
            Read::take(&mut *content, RECORD_BYTES_MAX as u64).read_until(b'\n', &mut block).map_err(read_fault)? == 0;
        if !ended && block.len() < BLOCK_BYTES {
            continue;
        }
        if block.len() >= RECORD_BYTES_MAX {
            return Err(Fault::unreadable("has a line longer than 256 MiB"));
        }
        let all: Vec<NumberedLine<'_>> = (number..).zip(block.split(|byte| *byte == b'\n')).collect();
        number += all.len() as u64 - 1;
        let lines: Vec<NumberedLine<'_>> = all
            .into_iter()
            .map(|(number, line)| (number, line.strip_suffix(b"\r").unwrap_or(line)))
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .collect();
        if !lines.is_empty() {
            each(&lines)?;
        }
        block.clear();
        if ended {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, prop_oneof, proptest};

    use super::*;

    /// Records of two fields, mostly, and longer than what is taken at a time.
    const LINES: &str =
        "a,b\n(((a|bb|\"(a|,|\"\"|\r?\n){0,30}\"|),(a|\"b\"|b{70}|)(\r|\n|\r\n|\n\n)){0,6}[ab,\"\r\n]{0,3}){0,3}";

    /// The regular form and the number of records.
    fn check(csv: &str, wanted: Result<(&str, usize), &str>) {
        let mut regular = Regular::new(b',', b'"');
        // One byte at a time: no state may hang on where a piece ends.
        let outcome = csv.bytes().try_for_each(|byte| regular.push(&[byte])).and_then(|()| regular.end());
        let got = outcome.map(|()| (regular.take().bytes, regular.record as usize)).map_err(|fault| fault.reason);
        let wanted = wanted.map(|(text, records)| (text.as_bytes().to_vec(), records)).map_err(str::to_owned);
        assert_eq!(got, wanted, "{csv:?}");
    }

    #[test]
    fn csv_is_made_regular_without_a_change_of_meaning() {
        check("a,b\n1,2\n", Ok(("a,b\n1,2\n", 2)));
        check("a,b\r\n1,2", Ok(("a,b\n1,2\n", 2)));
        check("a\r\r\n\nb\r", Ok(("a\nb\n", 2)));
        check("a,\"x\r\ny\"\n", Ok(("a,\"x\r\ny\"\n", 1)));
        check("a,5\" pipe\nb,6\" pipe\n", Ok(("a,\"5\"\" pipe\"\nb,\"6\"\" pipe\"\n", 2)));
        check("a,\"b\"c\"d\n", Ok(("a,\"bc\"\"d\"\n", 1)));
        check("\"\"\n\"a\"\"b\"\n", Ok(("\"\"\n\"a\"\"b\"\n", 2)));
        check("a,b\n1\n", Err("record 2 has 1 fields, the first has 2"));
        check("a,b\n1,\"2\n", Err("ends inside quotes, in record 2"));
        check("a,\"b\nc\"d\n", Err("text follows a closing quote in record 1, which may be several"));
        check("a,\"b\"c\nd,\"e\nf\"\n", Ok(("a,\"bc\"\nd,\"e\nf\"\n", 2)));
        check("", Ok(("", 0)));
    }

    proptest! {
        #[test]
        fn what_is_taken_64_bytes_at_a_time_is_what_the_automaton_makes_of_it(csv in prop_oneof!["[ab,\"\r\n]{0,40}", LINES], cut in 0usize..200) {
            let regular = |pieces: &[&[u8]]| {
                let mut regular = Regular::new(b',', b'"');
                let outcome = pieces.iter().try_for_each(|piece| regular.push(piece)).and_then(|()| regular.end());
                let record = regular.record;
                let Block { bytes, records, width } = regular.take();
                outcome.map(|()| (bytes, records, width, record)).map_err(|fault| fault.reason)
            };
            let singly = regular(&csv.as_bytes().chunks(1).collect::<Vec<_>>());
            prop_assert_eq!(&regular(&[csv.as_bytes()]), &singly);
            let (head, tail) = csv.as_bytes().split_at(cut.min(csv.len()));
            prop_assert_eq!(&regular(&[head, tail]), &singly);
        }
    }

    #[test]
    fn a_record_that_polars_does_not_see_is_a_fault() {
        let block = |bytes: &[u8], records| Block { bytes: bytes.to_vec(), records, width: 1 };
        let columns = [ColumnPath(vec!["1".to_owned()])];
        let dialect = CsvDialect { header: false, ..CsvDialect::default() };
        let mut table = DelimitedTable::of(&block(b"a\nb\n", 2), b',', &dialect, &columns, false).unwrap();
        assert_eq!(table.parse(block(b"a\nb\n", 2)).map(|batch| batch.rows), Ok(2));
        // Two records that stray quotes make one, as the automaton must never let them through.
        let fault = table.parse(block(b"\"a\nb\"\n", 2)).map(|batch| batch.rows).unwrap_err();
        assert!(fault.reason.starts_with("two readers count 1 and 2 records"), "{}", fault.reason);
    }

    #[test]
    fn bytes_that_are_no_text_survive_the_way_through_polars() {
        let raw = b"a\xff\xc3b\xc3\xa9".to_vec();
        let (bytes, escapes) = escaped(raw.clone());
        assert!(escapes);
        assert_eq!(unescaped(std::str::from_utf8(&bytes).unwrap()), Some(raw));
        assert_eq!(unescaped("caf\u{e9}"), None);
    }
}
