//! Suppression lists: from the objects of every `[[list]]` to canonical entries, one list row at a time.
//!
//! Which files a list has, how each is decoded, what is malformed. Nothing is matched, merged or kept here. Invariant: a list
//! that is missing, unreadable or lacks its column stops the run; no file and no row of it is left out silently.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::dataset::listing;
use crate::error::{Error, Exit, Result};
use crate::format::Format;
use crate::job::{Job, ListFormat, ListSpec, Scope};
use crate::meter::Meter;
use crate::request_bytes::{DigestingReader, PIECE_BYTES, Scratch, Unusable, decompressed, read_piece, text};
use crate::request_cells::{Cells, Flaw, describe};
use crate::request_frames::{Delimited, Sink, read_parquet};
use crate::request_text::{read_ndjson, read_txt};
use crate::store::{Location, Object, ObjectReader, Store, StoreError, Stores};

/// One list row in canonical form; `cells[i]` belongs to `list.columns[i]`, `None` when the cell is empty, null or malformed.
/// A plain column has canonical bytes, a hashed one raw digest bytes.
pub struct Entry<'a> {
    pub list: &'a ListSpec,
    pub cells: &'a [Option<&'a [u8]>],
}

/// What was read of one `[[list]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListReport {
    pub name: String,
    /// As the job file has it.
    pub uri: String,
    pub files: usize,
    /// SHA-256 in hex: of the one file's stored bytes, or of the sorted lines `sha256  location\n` of several.
    pub digest: String,
    pub read_at: Timestamp,
    /// Blank lines are no rows; rows without any identifier are.
    pub rows: u64,
    /// Rows with at least one malformed cell.
    pub malformed: u64,
    /// Rows without any identifier, and without a malformed cell.
    pub blank: u64,
    /// The first [`BAD_ENTRIES_MAX`] malformed cells.
    pub bad: Vec<BadEntry>,
}

/// Where a malformed cell is and why it is malformed; never its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadEntry {
    pub location: String,
    pub unit: LineUnit,
    /// From 1 on, in the decompressed file, the header counted; of a record over several lines, the first of them.
    pub line: u64,
    pub column: String,
    pub reason: String,
}

/// What [`BadEntry::line`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineUnit {
    Line,
    /// Of a Parquet file.
    Row,
}

impl fmt::Display for BadEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            LineUnit::Line => "",
            LineUnit::Row => " row ",
        };
        write!(f, "{}:{unit}{}: {} {}", self.location, self.line, self.column, self.reason)
    }
}

/// How many malformed cells are reported one by one.
pub const BAD_ENTRIES_MAX: usize = 20;

/// Reads every list of the job and gives each row that holds an identifier to `each`, in file order, the files of a list in
/// order of their names.
///
/// A list that is missing, unreadable, lacks a column, or more malformed rows in all than `[guard] max_bad_list_rows` are
/// usage errors; a store that cannot be reached is unavailable, a file that changes meanwhile a conflict.
pub async fn read_lists(
    job: &Job,
    stores: &Stores,
    clock: &(dyn Fn() -> Timestamp + Sync),
    meter: &Meter,
    each: &mut (dyn FnMut(Entry<'_>) + Send),
) -> Result<Vec<ListReport>> {
    let mut reports = Vec::with_capacity(job.lists.len());
    for list in &job.lists {
        reports.push(read_list(list, stores, clock(), meter, each).await?);
    }
    check_malformed(&reports, job.guard.max_bad_list_rows)?;
    Ok(reports)
}

async fn read_list(
    list: &ListSpec,
    stores: &Stores,
    read_at: Timestamp,
    meter: &Meter,
    each: &mut (dyn FnMut(Entry<'_>) + Send),
) -> Result<ListReport> {
    let store = stores.of(list.scope.root());
    let files = list_files(list, &*store).await?;
    files.iter().for_each(|(file, _)| meter.expect(1, file.size_bytes));
    let shared = Arc::new(list.clone());
    let mut digests = Vec::with_capacity(files.len());
    let (mut rows, mut malformed, mut blank, mut bad) = (0, 0, 0, Vec::new());
    for (file, format) in &files {
        let read = read_file(&shared, file, *format, store.clone(), meter, each)
            .await
            .map_err(|unusable| unusable_list(list, &file.location, unusable))?;
        digests.push((read.digest, file.location.to_string()));
        rows += read.rows;
        malformed += read.malformed;
        blank += read.blank;
        bad.extend(read.bad);
        bad.truncate(BAD_ENTRIES_MAX);
    }
    let (name, uri) = (list.name.clone(), list.uri.clone());
    let (files, digest) = (files.len(), digest_of(digests));
    Ok(ListReport { name, uri, files, digest, read_at, rows, malformed, blank, bad })
}

fn digest_of(mut files: Vec<(String, String)>) -> String {
    if files.len() == 1 {
        return files.remove(0).0;
    }
    let mut lines: Vec<String> = files.iter().map(|(digest, location)| format!("{digest}  {location}\n")).collect();
    lines.sort();
    hex::encode(Sha256::digest(lines.concat()))
}

/// The files of a list in order of their names. In a prefix nothing is passed over but hidden names: a file that cannot be
/// read may hold people who opted out.
async fn list_files(list: &ListSpec, store: &dyn Store) -> Result<Vec<(Object, ListFormat)>> {
    let listing = listing::list(store, &list.scope, &|_| true)
        .await
        .map_err(|error| unusable_list(list, list.scope.root(), Unusable::Store(error)))?;
    if let Some(table_format) = listing.table_format {
        return Err(Error::usage(format!("list {}: {} is a live {table_format} table", list.name, list.uri))
            .hint("its files hold deleted rows too; export the list to files of their own"));
    }
    let mut files = listing.in_scope;
    files.retain(|file| !file.location.file_name().is_empty());
    files.sort_by(|a, b| a.location.cmp(&b.location));
    if files.is_empty() {
        return Err(Error::usage(format!("list {} is missing: {} matches no file", list.name, list.uri))
            .hint("an empty list is a file without entries; check the uri and what delivers the list"));
    }
    files.into_iter().map(|file| format_of(list, &file.location).map(|format| (file, format))).collect()
}

fn format_of(list: &ListSpec, location: &Location) -> Result<ListFormat> {
    let inferred = inferred_format(location.file_name());
    let hint = "set format = \"csv\" (tsv, ndjson, parquet, txt) in the [[list]], or name the files by a glob";
    match (list.format, inferred, &list.scope) {
        (Some(format), Some(inferred), Scope::Prefix(_)) if format != inferred => Err(Error::usage(format!(
            "list {}: the name of {location} tells another format than the list's",
            list.name
        ))
        .hint(hint)),
        (Some(format), _, _) | (None, Some(format), _) => Ok(format),
        (None, None, _) => {
            Err(Error::usage(format!("list {}: the name of {location} tells no format", list.name)).hint(hint))
        }
    }
}

fn inferred_format(file_name: &str) -> Option<ListFormat> {
    match listing::infer(file_name).0 {
        Some(Format::Csv) => Some(ListFormat::Csv),
        Some(Format::Tsv) => Some(ListFormat::Tsv),
        Some(Format::Parquet) => Some(ListFormat::Parquet),
        Some(Format::Ndjson) => Some(ListFormat::Ndjson),
        None => {
            let name = file_name.to_ascii_lowercase();
            let compressed = [".gz", ".gzip", ".zst", ".zstd"].iter().find_map(|ending| name.strip_suffix(ending));
            compressed.unwrap_or(&name).ends_with(".txt").then_some(ListFormat::Txt)
        }
    }
}

/// What was read of one file.
struct FileReport {
    digest: String,
    rows: u64,
    malformed: u64,
    blank: u64,
    bad: Vec<BadEntry>,
}

/// How many batches wait for whoever takes the entries.
const BATCHES_AHEAD: usize = 2;

/// Decodes on a blocking thread, and gives the entries out here, where `each` may be called.
async fn read_file(
    list: &Arc<ListSpec>,
    file: &Object,
    format: ListFormat,
    store: Arc<dyn Store>,
    meter: &Meter,
    each: &mut (dyn FnMut(Entry<'_>) + Send),
) -> Result<FileReport, Unusable> {
    let (batches, mut received) = tokio::sync::mpsc::channel::<Vec<Cells>>(BATCHES_AHEAD);
    let (spec, reader) = (list.clone(), ObjectReader::new(store, file.clone()));
    let decoding = tokio::task::spawn_blocking(move || {
        let sink: Sink<'_> = &mut |cells| batches.blocking_send(cells).map_err(|_| Unusable::Stopped);
        // A decoder that panics on odd bytes has not decoded them; its message may quote them.
        catch_unwind(AssertUnwindSafe(|| decode(&spec, format, &reader, sink)))
            .unwrap_or_else(|_| Err(Unusable::corrupt("its content is not what its format asks for")))
    });
    while let Some(batch) = received.recv().await {
        batch.iter().for_each(|cells| give(list, cells, each));
        meter.add(0, batch.iter().map(|cells| cells.rows() as u64).sum(), 0);
    }
    let report = decoding.await.map_err(|_| Unusable::Stopped)??;
    meter.add(1, 0, file.size_bytes);
    Ok(report)
}

fn give(list: &ListSpec, cells: &Cells, each: &mut (dyn FnMut(Entry<'_>) + Send)) {
    let mut row_cells = Vec::with_capacity(list.columns.len());
    for row in 0..cells.rows() {
        if cells.row(row, &mut row_cells) {
            each(Entry { list, cells: &row_cells });
        }
    }
}

/// Counts on the way to the sink.
#[derive(Default)]
struct Tally {
    malformed: u64,
    blank: u64,
    flaws: Vec<Flaw>,
}

impl Tally {
    fn add(&mut self, parts: &[Cells]) {
        for part in parts {
            self.malformed += part.malformed_rows();
            self.blank += part.blank_rows();
            let room = BAD_ENTRIES_MAX - self.flaws.len();
            self.flaws.extend(part.flaws.iter().take(room));
        }
    }
}

fn decode(list: &ListSpec, format: ListFormat, object: &ObjectReader, sink: Sink<'_>) -> Result<FileReport, Unusable> {
    let location = &object.object().location;
    let mut stored = DigestingReader::new(object.read_from(0));
    let mut tally = Tally::default();
    let counted: Sink<'_> = &mut |cells| {
        tally.add(&cells);
        sink(cells)
    };
    let mut content = decompressed(&mut stored, location.file_name())?;
    let mut delimited = None;
    let rows = match format {
        ListFormat::Csv | ListFormat::Tsv => {
            let default = if format == ListFormat::Csv { b',' } else { b'\t' };
            let delimiter = list.csv.delimiter.unwrap_or(default);
            delimited = Delimited::copy(list, delimiter, &mut *text(&mut *content)?)?;
            match &delimited {
                Some(file) => file.read(list, counted).map(|()| file.rows())?,
                None => 0,
            }
        }
        ListFormat::Ndjson => read_ndjson(list, &mut *text(&mut *content)?, counted)?,
        ListFormat::Txt => read_txt(list, &mut *text(&mut *content)?, counted)?,
        ListFormat::Parquet => read_parquet(list, &copied(&mut *content)?, counted)?,
    };
    drop(content);
    let bad = locate(list, location, format, &tally.flaws, delimited)?;
    Ok(FileReport { digest: stored.finish()?, rows, malformed: tally.malformed, blank: tally.blank, bad })
}

fn copied(content: &mut dyn std::io::Read) -> Result<Scratch, Unusable> {
    let (mut scratch, mut piece) = (Scratch::new()?, Vec::with_capacity(PIECE_BYTES));
    while read_piece(content, &mut piece)? > 0 {
        scratch.write(&piece)?;
        piece.clear();
    }
    Ok(scratch)
}

/// Says where the flaws are in terms that people can look up.
fn locate(
    list: &ListSpec,
    location: &Location,
    format: ListFormat,
    flaws: &[Flaw],
    delimited: Option<Delimited>,
) -> Result<Vec<BadEntry>, Unusable> {
    let places: Vec<u64> = flaws.iter().map(|flaw| flaw.place).collect();
    let (unit, lines) = match (format, delimited) {
        (ListFormat::Parquet, _) => (LineUnit::Row, places.iter().map(|place| place + 1).collect()),
        (_, Some(mut file)) if !places.is_empty() => (LineUnit::Line, file.physical_lines(&places)?),
        (ListFormat::Csv | ListFormat::Tsv | ListFormat::Ndjson | ListFormat::Txt, _) => (LineUnit::Line, places),
    };
    let bad = flaws.iter().zip(lines).map(|(flaw, line)| {
        let column = &list.columns[flaw.column];
        let (name, reason) = (column.column.clone(), describe(column, flaw.reason));
        BadEntry { location: location.to_string(), unit, line, column: name, reason }
    });
    Ok(bad.collect())
}

fn unusable_list(list: &ListSpec, location: &Location, unusable: Unusable) -> Error {
    let name = &list.name;
    match unusable {
        Unusable::Store(error) => store_failure(name, error),
        Unusable::Corrupt { line, reason } => {
            let line = line.map(|line| format!(":{line}")).unwrap_or_default();
            Error::usage(format!("list {name}: {location}{line} cannot be decoded: {reason}"))
                .hint("nothing was touched; have the list delivered again. Such a fault is of the file, not of a row: [guard] max_bad_list_rows does not allow it")
        }
        Unusable::NoColumn { column, there } => {
            let error = |what: &str| Error::usage(format!("list {name}: {location} has no column \"{column}\"{what}"));
            match there {
                Some(there) => error(&format!("; it has {}", there.join(", "))).hint(format!(
                    "correct {column} in [[list]] {name} of the job file, or have the list delivered with that column"
                )),
                None => error("").hint(
                    "what it has does not look like column names and is not shown; a file without a header needs [list.csv] header = false",
                ),
            }
        }
        Unusable::AmbiguousColumn { column } => {
            Error::usage(format!("list {name}: {location} has more than one column \"{column}\""))
        }
        Unusable::Scratch(reason) => {
            Error::internal(format!("cannot write a temporary copy of {location} for list {name}: {reason}"))
                .hint("give the temporary folder (TMPDIR) room for the decompressed list")
        }
        Unusable::Stopped => Error::internal(format!("reading {location} for list {name} stopped halfway")),
    }
}

/// A list that is not there, or not for us, is a wrong job (usage); one that cannot be reached now may be there later.
fn store_failure(name: &str, error: StoreError) -> Error {
    let exit = match &error {
        StoreError::NotFound(_)
        | StoreError::Denied { .. }
        | StoreError::Locked { .. }
        | StoreError::Archived { .. }
        | StoreError::Other { .. } => Exit::Usage,
        StoreError::Changed(_) | StoreError::Unavailable { .. } => error.exit(),
    };
    let mut out = Error::new(exit, format!("list {name} cannot be read: {error}"));
    out.hint = error.hint().map(str::to_owned);
    out
}

fn check_malformed(reports: &[ListReport], malformed_rows_max: u64) -> Result<()> {
    let malformed: u64 = reports.iter().map(|report| report.malformed).sum();
    if malformed <= malformed_rows_max {
        return Ok(());
    }
    let rows = if malformed == 1 { "1 list row is" } else { &format!("{malformed} list rows are") };
    let mut lines = vec![format!("{rows} malformed, [guard] max_bad_list_rows allows {malformed_rows_max}")];
    lines.extend(reports.iter().flat_map(|report| &report.bad).take(BAD_ENTRIES_MAX).map(BadEntry::to_string));
    Err(Error::usage(lines.join("\n"))
        .hint("correct the lists, or raise [guard] max_bad_list_rows to run without these entries"))
}
