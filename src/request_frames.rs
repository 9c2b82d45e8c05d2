//! Suppression lists through Polars: delimited text, where every cell is text, and Parquet, where cells have types.
//!
//! Polars decodes from an unnamed temporary file, batch by batch and only the columns that are needed. Its messages may quote
//! cells, so none is passed on. Invariant: as many rows leave as the file has.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use polars::io::HiveOptions;
use polars::lazy::dsl::ScanSources;
use polars::prelude::{
    Column, CsvEncoding, DataFrame, DataType, Engine, LazyCsvReader, LazyFileListReader, LazyFrame, PlanCallback,
    PolarsResult, ScanArgsParquet, Schema, Series, by_name,
};
use polars_parquet::parquet::read::deserialize_metadata;
use polars_parquet::read::ColumnChunkMetadata;
use rayon::prelude::*;

use crate::identifier::Value;
use crate::job::ListSpec;
use crate::parquet_bounds;
use crate::request_bytes::{PIECE_BYTES, Scratch, Unusable, read_piece};
use crate::request_cells::{Cell, Cells, CellsBuilder, resolve};
use crate::request_lines::{BadRecord, Record, RecordScanner, fields};

/// How many rows Polars hands over at a time, and how many of them one thread canonicalises at a time.
const BATCH_ROWS: NonZeroUsize = NonZeroUsize::new(1 << 16).expect("not zero");
const PART_ROWS: usize = 1 << 13;

/// Takes the cells of some rows, in file order.
pub type Sink<'a> = &'a mut dyn FnMut(Vec<Cells>) -> Result<(), Unusable>;

/// A delimited file, looked over and without its header, in a temporary file that Polars reads.
pub struct Delimited {
    scratch: Scratch,
    delimiter: u8,
    quote: u8,
    names: Vec<String>,
    /// The physical line of the first record after the header.
    first_line: u64,
    /// Records and blank lines: what Polars counts as rows.
    lines: u64,
    blank_lines: u64,
    quotes_seen: bool,
}

/// A header longer than this is none.
const HEADER_BYTES_MAX: usize = 1 << 20;

impl Delimited {
    /// Copies `text` (decompressed, without byte order mark) and checks that all its records have as many fields as the first.
    /// A file without any record is `None`.
    pub fn copy(list: &ListSpec, delimiter: u8, text: &mut dyn Read) -> Result<Option<Self>, Unusable> {
        let quote = list.csv.quote;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let Some(first) = first_record(text, &mut piece, delimiter, quote)? else {
            return Ok(None);
        };
        let end = if list.csv.header { first.end_bytes as usize } else { 0 };
        let mut names = fields(&piece[..first.end_bytes as usize], delimiter, quote);
        if !list.csv.header {
            names = (1..=first.fields).map(|number| number.to_string()).collect();
        }
        let first_line = 1 + piece[..end].iter().filter(|byte| **byte == b'\n').count() as u64;
        let mut file = Delimited {
            scratch: Scratch::new()?,
            delimiter,
            quote,
            names,
            first_line,
            lines: 0,
            blank_lines: 0,
            quotes_seen: false,
        };
        piece.drain(..end);
        file.copy_records(first.fields, piece, text)?;
        Ok(Some(file))
    }

    fn copy_records(&mut self, width: usize, mut piece: Vec<u8>, text: &mut dyn Read) -> Result<(), Unusable> {
        let mut scanner = self.scanner();
        let (lines, blank_lines) = (&mut self.lines, &mut self.blank_lines);
        let mut check = |record: Record| {
            *lines += 1;
            *blank_lines += u64::from(record.fields == 0);
            if record.fields == 0 || record.fields == width {
                return Ok(());
            }
            let reason = format!("the record has {} fields where the first one has {width}", record.fields);
            Err(BadRecord { line: record.line, reason })
        };
        loop {
            scanner.scan(&piece, &mut check)?;
            self.scratch.write(&piece)?;
            piece.clear();
            if read_piece(text, &mut piece)? == 0 {
                break;
            }
        }
        scanner.finish(&mut check)?;
        self.quotes_seen = scanner.quotes_seen();
        Ok(())
    }

    fn scanner(&self) -> RecordScanner {
        RecordScanner::new(self.delimiter, self.quote, self.first_line)
    }

    /// Rows as people count them: blank lines are none.
    pub fn rows(&self) -> u64 {
        self.lines - self.blank_lines
    }

    /// Reads the listed columns; a flaw's place is the number of its line or record, from 0 on.
    pub fn read(&self, list: &ListSpec, sink: Sink<'_>) -> Result<(), Unusable> {
        let found: Vec<usize> =
            list.columns.iter().map(|column| resolve(&column.column, &self.names)).collect::<Result<_, _>>()?;
        if self.lines == self.blank_lines {
            return Ok(());
        }
        // Polars sees columns by their number: the names in the file may be there twice or mean patterns to it.
        let names: Vec<String> = found.iter().map(usize::to_string).collect();
        let source = self.scratch.handle()?;
        let frame = || {
            let schema = Schema::from_iter((0..self.names.len()).map(|i| (i.to_string().into(), DataType::String)));
            LazyCsvReader::new_with_sources(ScanSources::Files(Arc::new([source])))
                .with_has_header(false)
                .with_schema(Some(Arc::new(schema)))
                .with_separator(self.delimiter)
                .with_quote_char(Some(self.quote))
                .with_encoding(CsvEncoding::LossyUtf8)
                // Else Polars takes the number of columns from the first line, which may be blank. Ragged records were refused.
                .with_truncate_ragged_lines(true)
                .finish()
        };
        let seen = scan(frame, &names, list, Origin::Delimited, sink)?;
        if seen != self.lines {
            return Err(Unusable::corrupt("two readers count different numbers of records; look at its quotes"));
        }
        Ok(())
    }

    /// The physical lines on which the records at `places` (ascending) start.
    pub fn physical_lines(&mut self, places: &[u64]) -> Result<Vec<u64>, Unusable> {
        if !self.quotes_seen {
            return Ok(places.iter().map(|place| self.first_line + place).collect());
        }
        let mut scanner = self.scanner();
        let (mut lines, mut next) = (Vec::with_capacity(places.len()), 0);
        let mut note = |record: Record| {
            let repeats = places[lines.len()..].iter().take_while(|place| **place == next).count();
            lines.extend(std::iter::repeat_n(record.line, repeats));
            next += 1;
            Ok(())
        };
        self.scratch.read_back(|piece| Ok(scanner.scan(piece, &mut note).map(|()| true)?))?;
        scanner.finish(&mut note)?;
        Ok(lines)
    }
}

/// Reads until the first record that is not blank is whole; all that was read is in `piece`.
fn first_record(
    text: &mut dyn Read,
    piece: &mut Vec<u8>,
    delimiter: u8,
    quote: u8,
) -> Result<Option<Record>, Unusable> {
    let mut scanner = RecordScanner::new(delimiter, quote, 1);
    loop {
        let mut first = None;
        let mut note = |record: Record| {
            if record.fields > 0 && first.is_none() {
                first = Some(record);
            }
            Ok(())
        };
        let start = piece.len();
        if read_piece(text, piece)? == 0 {
            scanner.finish(&mut note)?;
            return Ok(first);
        }
        scanner.scan(&piece[start..], &mut note)?;
        if first.is_some() {
            return Ok(first);
        }
        if piece.len() > HEADER_BYTES_MAX {
            return Err(Unusable::corrupt("its first record does not end within 1 MiB"));
        }
    }
}

/// Reads the listed columns of a Parquet file that was copied to `scratch`; how many rows it has. A flaw's place is its row,
/// from 0 on.
pub fn read_parquet(list: &ListSpec, scratch: &Scratch, sink: Sink<'_>) -> Result<u64, Unusable> {
    let frame = |source| {
        let hive_options = HiveOptions::new_disabled();
        let args = ScanArgsParquet { hive_options, use_statistics: false, cache: false, ..Default::default() };
        LazyFrame::scan_parquet_sources(ScanSources::Files(Arc::new([source])), args)
    };
    check_bounds(&scratch.handle()?)?;
    let source = scratch.handle()?;
    let schema = guarded(|| frame(source)?.collect_schema())?;
    let there: Vec<String> = schema.iter_names().map(|name| name.to_string()).collect();
    let names: Vec<String> = list
        .columns
        .iter()
        .map(|column| resolve(&column.column, &there).map(|i| there[i].clone()))
        .collect::<Result<_, _>>()?;
    let source = scratch.handle()?;
    scan(|| frame(source), &names, list, Origin::Typed, sink)
}

/// Polars takes a footer and page headers at their word: it reserves memory by their counts, and reads past the file where a chunk
/// is said to be. Neither could be caught.
fn check_bounds(file: &File) -> Result<(), Unusable> {
    let size = file.metadata().map_err(|_| undecodable())?.len();
    let end = size.checked_sub(8).ok_or_else(undecodable)?;
    let length = parquet_bounds::footer_bytes(&bytes_at(file, end, 8)?);
    let start = size.checked_sub(length).ok_or_else(undecodable)?;
    let footer = bytes_at(file, start, end - start)?;
    parquet_bounds::check_footer(&footer).map_err(|why| Unusable::corrupt(format!("its footer: {why}")))?;
    let whole = bytes_at(file, start, length)?;
    let metadata = guarded(|| Ok(deserialize_metadata(whole.into())?))?;
    for group in &metadata.row_groups {
        for chunk in group.parquet_columns() {
            check_chunk(file, start, chunk, group.num_rows() as u64)?;
        }
    }
    Ok(())
}

/// Enough for any page header.
const HEADER_BYTES: u64 = 16 << 10;

/// A chunk and its pages lie before the footer, and hold as many values as they are said to.
fn check_chunk(file: &File, footer: u64, chunk: &ColumnChunkMetadata, rows: u64) -> Result<(), Unusable> {
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let (start, length) = (u64::try_from(start), u64::try_from(chunk.compressed_size()));
    let (Ok(mut at), Ok(length)) = (start, length) else { return Err(undecodable()) };
    let end = at.checked_add(length).filter(|end| *end <= footer).ok_or_else(undecodable)?;
    let mut values = 0u64;
    while at < end {
        let bytes = bytes_at(file, at, HEADER_BYTES.min(end - at))?;
        let page = parquet_bounds::check_page(&bytes, end - at, chunk.compression().into())
            .map_err(|why| Unusable::corrupt(format!("one of its pages: {why}")))?;
        at += page.bytes;
        values = values.saturating_add(page.values);
    }
    let flat = chunk.descriptor().descriptor.max_rep_level == 0;
    let as_told = u64::try_from(chunk.num_values()) == Ok(values) && (!flat || values == rows);
    if as_told { Ok(()) } else { Err(undecodable()) }
}

fn bytes_at(file: &File, at: u64, length: u64) -> Result<Vec<u8>, Unusable> {
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| undecodable())?];
    file.read_exact_at(&mut bytes, at).map_err(|_| undecodable())?;
    Ok(bytes)
}

/// Whether a cell's text was made by Polars out of delimited bytes or stored as such.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Delimited,
    Typed,
}

enum Message {
    Batch(DataFrame),
    Done(Result<(), Unusable>),
}

/// Runs Polars on a thread of its own, which may panic on odd input, and canonicalises batch by batch. `names[i]` is the
/// frame's column of `list.columns[i]`. Returns the number of rows.
fn scan(
    frame: impl FnOnce() -> PolarsResult<LazyFrame>,
    names: &[String],
    list: &ListSpec,
    origin: Origin,
    sink: Sink<'_>,
) -> Result<u64, Unusable> {
    let mut unique: Vec<&str> = names.iter().map(String::as_str).collect();
    unique.sort_unstable();
    unique.dedup();
    let (batches, received) = sync_channel(1);
    let done = batches.clone();
    let callback = PlanCallback::new(move |batch| Ok(batches.send(Message::Batch(batch)).is_err()));
    let wanted = by_name(unique, true, false).as_expr();
    let query = guarded(|| frame()?.select([wanted]).sink_batches(callback, true, Some(BATCH_ROWS)))?;
    let polars = std::thread::spawn(move || {
        let outcome = guarded(|| query.collect_with_engine(Engine::Streaming).map(drop));
        // Nobody listens any more when the entries are not wanted; then there is nobody to tell either.
        done.send(Message::Done(outcome)).ok();
    });
    let mut rows = 0;
    let outcome = loop {
        match received.recv() {
            Ok(Message::Batch(batch)) => {
                let first_row = rows;
                rows += batch.height() as u64;
                let cells = guarded(|| canonical_cells(&batch, first_row, names, list, origin));
                if let Err(error) = cells.and_then(&mut *sink) {
                    break Err(error);
                }
            }
            Ok(Message::Done(outcome)) => break outcome,
            Err(_) => break Err(undecodable()),
        }
    };
    drop(received);
    polars.join().map_err(|_| undecodable())?;
    outcome.map(|()| rows)
}

/// Calls into Polars; an error and a panic are the same to us: the bytes are not what they should be.
fn guarded<T>(call: impl FnOnce() -> PolarsResult<T>) -> Result<T, Unusable> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) | Err(_) => Err(undecodable()),
    }
}

fn undecodable() -> Unusable {
    Unusable::corrupt("its content is not what its format asks for")
}

fn canonical_cells(
    batch: &DataFrame,
    first_row: u64,
    names: &[String],
    list: &ListSpec,
    origin: Origin,
) -> PolarsResult<Vec<Cells>> {
    let starts: Vec<usize> = (0..batch.height()).step_by(PART_ROWS).collect();
    starts
        .into_par_iter()
        .map(|start| {
            let rows = PART_ROWS.min(batch.height() - start);
            let mut cells = CellsBuilder::new(list, rows);
            for (i, name) in names.iter().enumerate() {
                let mut column: Column = batch.column(name)?.slice(start as i64, rows);
                // Of the ledger's import: the time of a request is read as text, however it is stored.
                let is_time = matches!(column.dtype(), DataType::Date | DataType::Datetime(..));
                if is_time && list.received_at.as_ref() == Some(&list.columns[i].column) {
                    column = column.cast(&DataType::String)?;
                }
                let mut place = first_row + start as u64;
                each_cell(column.as_materialized_series(), origin, &list.csv.null_strings, &mut |cell| {
                    cells.push(i, place, cell);
                    place += 1;
                })?;
            }
            Ok(cells.finish())
        })
        .collect()
}

/// Every cell of a column, typed as it is stored, without a copy.
fn each_cell(
    series: &Series,
    origin: Origin,
    null_strings: &[String],
    each: &mut dyn FnMut(Cell<'_>),
) -> PolarsResult<()> {
    let mut give = |value: Option<Value<'_>>| each(value.map_or(Cell::Empty, Cell::Value));
    let dtype = series.dtype();
    match dtype {
        DataType::String if origin == Origin::Delimited => {
            series.str()?.iter().for_each(|text| each(delimited_cell(text, null_strings)));
        }
        DataType::String => series.str()?.iter().for_each(|text| give(text.map(Value::Text))),
        DataType::Categorical(..) | DataType::Enum(..) => {
            return each_cell(&series.cast(&DataType::String)?, origin, null_strings, each);
        }
        DataType::Binary => series.binary()?.iter().for_each(|bytes| give(bytes.map(Value::Bytes))),
        DataType::Float32 => series.f32()?.iter().for_each(|float| give(float.map(Value::Float32))),
        DataType::Float64 => series.f64()?.iter().for_each(|float| give(float.map(Value::Float))),
        DataType::Decimal(_, scale) => {
            let scale = i8::try_from(*scale).expect("a decimal has at most 38 digits");
            let physical = series.decimal()?.physical();
            physical.iter().for_each(|unscaled| give(unscaled.map(|unscaled| Value::Decimal { unscaled, scale })));
        }
        DataType::Date => {
            let days = series.cast(&DataType::Int32)?;
            let epoch = jiff::civil::date(1970, 1, 1);
            let date = |days: i32| {
                let date = jiff::Span::new().try_days(days).ok().and_then(|span| epoch.checked_add(span).ok());
                date.map_or(Value::Other, Value::Date)
            };
            days.i32()?.iter().for_each(|days| give(days.map(date)));
        }
        integer if integer.is_integer() => {
            let wide = series.cast(&DataType::Int128)?;
            wide.i128()?.iter().for_each(|integer| give(integer.map(Value::Integer)));
        }
        _ => series.is_not_null().iter().for_each(|there| give((there == Some(true)).then_some(Value::Other))),
    }
    Ok(())
}

/// Polars replaces what is not UTF-8; an identifier with a replacement in it would match nobody, silently.
fn delimited_cell<'a>(text: Option<&'a str>, null_strings: &[String]) -> Cell<'a> {
    match text {
        None | Some("") => Cell::Empty,
        Some(text) if null_strings.iter().any(|null| null == text) => Cell::Empty,
        Some(text) if !text.is_ascii() && text.contains(char::REPLACEMENT_CHARACTER) => Cell::NotUtf8,
        Some(text) => Cell::Value(Value::Text(text)),
    }
}
