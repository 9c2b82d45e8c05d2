//! Finding in CSV, TSV and NDJSON: every record of an object compared with the rules.
//!
//! A large object that is not compressed is scanned in parts, each by a thread of its own. A part begins after a line feed that may
//! stand inside quotes; it counts only when the part before ends its last record just there, which by induction from the first part
//! makes it the start of a record. Where one does not, or anything is wrong, the object is scanned from its start by one thread, whose
//! errors then name the true line.

use std::io::Read;

use roaring::RoaringTreemap;

use crate::column_values::{NoRoute, OwnedPlaced, Placed};
use crate::error::Exit;
use crate::format::csv_runs::{Cuts, Wanted};
use crate::format::{Compression, Format, FormatError, compression, csv, ndjson};
use crate::identifier::{ColumnPath, Value};
use crate::job::{DatasetSpec, MissingColumn};
use crate::match_index::{Check, Matcher, Rule, Scratch};
use crate::plan::Seen;
use crate::store::ObjectReader;

type Result<T, E = FormatError> = std::result::Result<T, E>;

/// What a scan of an object's records saw.
pub struct Scanned {
    pub seen: Seen,
    /// Match columns that the object lacks, when the job says to skip such.
    pub lacks: Vec<ColumnPath>,
    /// By position of the matcher's columns.
    pub not_comparable: Vec<u64>,
}

/// A smaller part is not worth a thread.
const PART_BYTES_MIN: u64 = 8 << 20;

/// Compares every record of an object with the rules, with so many threads at most. The columns `in_name` may be lacking. Blocks.
pub fn scan(
    spec: &DatasetSpec,
    matcher: &Matcher,
    in_name: &[ColumnPath],
    (format, compression): (Format, Compression),
    reader: &ObjectReader,
    threads: usize,
) -> Result<Scanned> {
    let scan = Scan { spec, matcher, in_name, format, reader };
    if compression != Compression::None && reader.object().size_bytes > 0 {
        // What a name promises must be there: the verifying scan refuses the object as well.
        let (found, _) = compression::decode(reader.read_from(0))?;
        if found == Compression::None {
            let reason = "its name promises compression, and it does not begin like a compressed file";
            return Err(FormatError::Corrupt(reason.to_owned()));
        }
    }
    let parts = match compression {
        Compression::None => threads.min((reader.object().size_bytes / PART_BYTES_MIN) as usize),
        Compression::Gzip | Compression::Zstd => 1,
    };
    if parts > 1
        && let Some(scanned) = scan.in_parts(parts)
    {
        return Ok(scanned);
    }
    scan.whole()
}

struct Scan<'a> {
    spec: &'a DatasetSpec,
    matcher: &'a Matcher,
    in_name: &'a [ColumnPath],
    format: Format,
    reader: &'a ObjectReader,
}

/// Where the match columns are in the records of CSV.
#[derive(Clone)]
struct CsvColumns {
    wanted: Wanted,
    /// By position of the matcher's columns: which of the wanted fields are its.
    fields: Vec<Vec<usize>>,
}

/// What was seen of the records that begin in a part of an object.
struct Part {
    rows: u64,
    /// Counted from the part's first record.
    matched: RoaringTreemap,
    not_comparable: Vec<u64>,
    /// Which of the matcher's columns some record has.
    there: Vec<bool>,
    /// Where the last record ends.
    end: u64,
}

impl Scan<'_> {
    fn whole(&self) -> Result<Scanned> {
        let (_, source) = compression::decode(self.reader.read_from(0))?;
        match self.format {
            Format::Csv | Format::Tsv => {
                let part = self.csv_part(None, &mut self.csv_records(source), 0, u64::MAX)?;
                Ok(part.map_or_else(|seen| self.unseen(seen), |part| self.settle(part)))
            }
            Format::Ndjson => Ok(self.settle(self.ndjson_part(&mut ndjson::Lines::new(source), 0, u64::MAX)?)),
            Format::Parquet => Err(FormatError::Unsupported("Parquet as records".to_owned())),
        }
    }

    /// `None`: it must be scanned whole.
    fn in_parts(&self, parts: usize) -> Option<Scanned> {
        let size_bytes = self.reader.object().size_bytes;
        let mut starts = vec![0];
        for part in 1..parts as u64 {
            starts.push(self.after_line_feed(size_bytes / parts as u64 * part)?);
        }
        starts.dedup();
        let columns = match self.format {
            Format::Csv | Format::Tsv => {
                let mut records = self.csv_records(self.reader.read_from(0));
                Some(self.csv_columns(&records.read().ok()??).ok()?)
            }
            Format::Ndjson | Format::Parquet => None,
        };
        let extents: Vec<(u64, u64)> =
            starts.iter().copied().zip(starts[1..].iter().copied().chain([u64::MAX])).collect();
        let scanned: Vec<Option<Part>> = std::thread::scope(|scope| {
            let scan = |(start, end): &(u64, u64)| {
                let (start, end, columns) = (*start, *end, columns.as_ref());
                scope.spawn(move || self.part(columns, start, end).ok())
            };
            let threads: Vec<_> = extents.iter().map(scan).collect();
            threads.into_iter().map(|thread| thread.join().ok().flatten()).collect()
        });
        let scanned: Vec<Part> = scanned.into_iter().collect::<Option<_>>()?;
        let meet = |(part, next): (&Part, &u64)| part.end == *next;
        if !scanned.iter().zip(&starts[1..]).all(meet) {
            return None;
        }
        scanned.into_iter().reduce(Part::and).map(|all| self.settle(all))
    }

    /// The first byte of the line after the one that `at` is in.
    fn after_line_feed(&self, mut at: u64) -> Option<u64> {
        let mut source = self.reader.read_from(at);
        let mut piece = vec![0; 64 << 10];
        loop {
            let read = source.read(&mut piece).ok().filter(|read| *read > 0)?;
            if let Some(place) = memchr::memchr(b'\n', &piece[..read]) {
                return Some(at + place as u64 + 1);
            }
            at += read as u64;
        }
    }

    fn part(&self, columns: Option<&CsvColumns>, start: u64, end: u64) -> Result<Part> {
        let source = self.reader.read_from(start);
        let Some(columns) = columns else { return self.ndjson_part(&mut ndjson::Lines::new(source), start, end) };
        let mut records = self.csv_records(source);
        if start > 0 {
            records.go_on();
        }
        let part = self.csv_part((start > 0).then_some(columns), &mut records, start, end)?;
        part.map_err(|_| FormatError::Corrupt("no column to scan".to_owned()))
    }

    fn csv_records<R: Read>(&self, source: R) -> csv::Records<R> {
        csv::Records::new(source, &self.spec.csv, self.format == Format::Tsv)
    }

    /// By the header, or by the width of the first record where there is none.
    fn csv_columns(&self, first: &csv::Record<'_>) -> std::result::Result<CsvColumns, Seen> {
        let names = csv::column_names(self.spec.csv.header.then_some(first), first.width());
        let positions = |path| match csv::positions(&names, path) {
            Err(NoRoute::Missing(path))
                if self.spec.missing_column == MissingColumn::Skip || self.in_name.contains(&path) =>
            {
                Ok(Vec::new())
            }
            found => found,
        };
        let found: std::result::Result<Vec<Vec<usize>>, _> = self.matcher.columns.iter().map(positions).collect();
        match found {
            Ok(positions) => {
                let wanted = Wanted::new(first.width(), positions.concat());
                let field = |position: &usize| wanted.positions().iter().position(|known| known == position);
                let fields = positions.iter().map(|positions| positions.iter().filter_map(field).collect()).collect();
                Ok(CsvColumns { wanted, fields })
            }
            Err(error) => Err(Seen::Failed { exit: Exit::Incomplete, reason: error.to_string() }),
        }
    }

    /// The records that begin at or after `at` and before `end`. Without `columns` the first record is the object's, and tells them.
    /// `Err`: the object has not the columns to be scanned by.
    fn csv_part<R: Read>(
        &self,
        columns: Option<&CsvColumns>,
        records: &mut csv::Records<R>,
        mut at: u64,
        end: u64,
    ) -> Result<std::result::Result<Part, Seen>> {
        let mut part = Part::new(self.matcher);
        // An object of no record lacks nothing.
        part.there.fill(true);
        let (mut scratch, delimiter) = (Scratch::default(), records.delimiter());
        let (mut columns, mut cuts) = (columns.cloned(), Cuts::default());
        while at < end {
            if let Some(columns) = &columns
                && let Some(run) = records.read_cut(&columns.wanted, &mut cuts)
            {
                at = self.csv_run(columns, run, &cuts, (at, end), &mut part, &mut scratch);
                continue;
            }
            let Some(record) = records.read()? else { break };
            let columns = match &columns {
                Some(columns) => columns,
                None => match self.csv_columns(&record) {
                    Ok(found) => {
                        let found = columns.insert(found);
                        if self.spec.csv.header {
                            at += (record.gap.len() + record.raw.len()) as u64;
                            continue;
                        }
                        found
                    }
                    Err(seen) => return Ok(Err(seen)),
                },
            };
            if at + record.gap.len() as u64 >= end {
                // Blank lines reach to where the next part begins.
                at = end;
                break;
            }
            at += (record.gap.len() + record.raw.len()) as u64;
            if record.width() != columns.wanted.width() {
                let (line, fields, width) = (record.line, record.width(), columns.wanted.width());
                return Err(FormatError::Corrupt(format!(
                    "the record at line {line} has {fields} fields, not {width}"
                )));
            }
            if csv::may_be_joined(&record, delimiter, self.spec.csv.quote) {
                let line = record.line;
                return Err(FormatError::Corrupt(format!(
                    "text follows a closing quote in the record at line {line}, so that it may be several"
                )));
            }
            let field = |number: usize| record.field(columns.wanted.positions()[number]).unwrap_or(b"");
            self.csv_record(columns, &field, &mut part, &mut scratch);
        }
        if let Some(columns) = &columns {
            part.there = columns.fields.iter().map(|fields| !fields.is_empty()).collect();
        }
        part.end = at;
        Ok(Ok(part))
    }

    /// The records of `run`, which begins at `at`, that begin before `end`. Where the last of them ends; at least `end` if not all do.
    fn csv_run(
        &self,
        columns: &CsvColumns,
        run: &[u8],
        cuts: &Cuts,
        (at, end): (u64, u64),
        part: &mut Part,
        scratch: &mut Scratch,
    ) -> u64 {
        let mut ended = at;
        for (extent, fields) in cuts.records(&columns.wanted) {
            if at + extent.start as u64 >= end {
                // Blank lines reach to where the next part begins.
                return ended.max(end);
            }
            let field = |number: usize| {
                let (begin, end) = fields[number];
                &run[begin as usize..end as usize]
            };
            self.csv_record(columns, &field, part, scratch);
            ended = at + extent.end as u64;
        }
        ended
    }

    /// `field` gives the wanted fields by number.
    fn csv_record<'r>(
        &self,
        columns: &CsvColumns,
        field: &dyn Fn(usize) -> &'r [u8],
        part: &mut Part,
        scratch: &mut Scratch,
    ) {
        let null = |bytes: &[u8]| self.spec.csv.null_strings.iter().any(|null| null.as_bytes() == bytes);
        let cells = |column: usize, each: &mut dyn FnMut(Placed<'_>)| {
            let cells = columns.fields[column].iter().map(|number| field(*number)).filter(|cell| !null(cell));
            cells.for_each(|cell| each(Placed { value: cell_value(cell), element: &[] }));
        };
        part.take(self.matcher, &cells, scratch);
    }

    /// The lines that begin before `end`; the next one begins at `at`.
    fn ndjson_part<R: Read>(&self, lines: &mut ndjson::Lines<R>, mut at: u64, end: u64) -> Result<Part> {
        let mut part = Part::new(self.matcher);
        let mut scratch = Scratch::default();
        let mut cells: Vec<Vec<OwnedPlaced>> = vec![Vec::new(); self.matcher.columns.len()];
        while at < end
            && let Some(line) = lines.read()?
        {
            at += line.raw.len() as u64;
            if line.is_blank() {
                continue;
            }
            for (column, path) in self.matcher.columns.iter().enumerate() {
                let values = &mut cells[column];
                values.clear();
                let mut keep = |placed: Placed<'_>| values.push(OwnedPlaced::of(placed));
                part.there[column] |= ndjson::values(&line, path, &mut keep)?;
            }
            let values = |column: usize, each: &mut dyn FnMut(Placed<'_>)| {
                cells[column].iter().for_each(|value| each(value.as_placed()));
            };
            part.take(self.matcher, &values, &mut scratch);
        }
        part.end = at;
        Ok(part)
    }

    /// What all parts together come to.
    fn settle(&self, all: Part) -> Scanned {
        let columns = &self.matcher.columns;
        let is_missing = |column: &usize| !all.there[*column] && !self.in_name.contains(&columns[*column]);
        let mut lacks: Vec<ColumnPath> = match self.format {
            // A key may be left out of a line; one that no line has is a column the object lacks, unless it has no line.
            Format::Ndjson if all.rows == 0 => Vec::new(),
            Format::Ndjson | Format::Csv | Format::Tsv | Format::Parquet => {
                (0..columns.len()).filter(is_missing).map(|column| columns[column].clone()).collect()
            }
        };
        let seen = match (self.spec.missing_column, lacks.first()) {
            (MissingColumn::Error, Some(_)) => {
                let reason = NoRoute::Missing(lacks.swap_remove(0)).to_string();
                lacks.clear();
                Seen::Failed { exit: Exit::Incomplete, reason }
            }
            (MissingColumn::Error | MissingColumn::Skip, _) => Seen::Rows { rows: all.rows, matched: all.matched },
        };
        Scanned { seen, lacks, not_comparable: all.not_comparable }
    }

    fn unseen(&self, seen: Seen) -> Scanned {
        Scanned { seen, lacks: Vec::new(), not_comparable: vec![0; self.matcher.columns.len()] }
    }
}

/// Gives the values that a record has in a column of the matcher.
type Values<'a> = &'a dyn Fn(usize, &mut dyn FnMut(Placed<'_>));

impl Part {
    fn new(matcher: &Matcher) -> Part {
        let columns = matcher.columns.len();
        Part {
            rows: 0,
            matched: RoaringTreemap::new(),
            not_comparable: vec![0; columns],
            there: vec![false; columns],
            end: 0,
        }
    }

    /// Followed by the next part.
    fn and(mut self, next: Part) -> Part {
        self.matched.extend(next.matched.iter().map(|row| self.rows + row));
        self.rows += next.rows;
        self.not_comparable.iter_mut().zip(next.not_comparable).for_each(|(sum, more)| *sum += more);
        self.there.iter_mut().zip(next.there).for_each(|(there, too)| *there |= too);
        self.end = next.end;
        self
    }

    /// Takes the next record.
    fn take(&mut self, matcher: &Matcher, values: Values<'_>, scratch: &mut Scratch) {
        let mut matched = false;
        for rule in &matcher.rules {
            match rule {
                Rule::Single { column, probe } => {
                    values(*column, &mut |placed| match probe.check(placed.value, scratch) {
                        Check::Match => matched = true,
                        Check::NoMatch => {}
                        Check::NotComparable => self.not_comparable[*column] += 1,
                    })
                }
                Rule::All { columns, composite } => {
                    let parts: Vec<Vec<OwnedPlaced>> = columns
                        .iter()
                        .map(|column| {
                            let mut kept = Vec::new();
                            values(*column, &mut |placed| kept.push(OwnedPlaced::of(placed)));
                            kept
                        })
                        .collect();
                    let parts: Vec<Vec<Placed<'_>>> =
                        parts.iter().map(|part| part.iter().map(OwnedPlaced::as_placed).collect()).collect();
                    for (part, values) in parts.iter().enumerate() {
                        let unread = values
                            .iter()
                            .filter(|placed| composite.is_not_comparable(part, placed.value, scratch))
                            .count();
                        self.not_comparable[columns[part]] += unread as u64;
                    }
                    matched |= composite.check(&parts, scratch);
                }
            }
        }
        if matched {
            self.matched.insert(self.rows);
        }
        self.rows += 1;
    }
}

fn cell_value(bytes: &[u8]) -> Value<'_> {
    std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::job::Job;
    use crate::match_index::Builder;
    use crate::request::Entry;
    use crate::store::local::LocalStore;
    use crate::store::{Location, Store};

    /// Rows, matching rows and values that could not be compared: scanned whole, and in so many parts if that can be done.
    type Outcome = (u64, Vec<u64>, Vec<u64>);

    fn scanned(content: &str, format: Format, parts: usize) -> (Option<Outcome>, Option<Outcome>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, content).unwrap();
        let (column, csv) = match format {
            Format::Ndjson => ("a", ""),
            _ => ("1", "csv = { header = false }\n"),
        };
        let text = format!(
            "version = 1\n[[list]]\nname = \"l\"\nuri = \"l.csv\"\n[[list.column]]\ncolumn = \"t\"\nkind = \"integer\"\n\
             [[dataset]]\nname = \"d\"\nuri = \"lake/\"\nformat = \"{}\"\n{csv}[[dataset.match]]\ncolumn = \"{column}\"\nkind = \"integer\"\n",
            if format == Format::Ndjson { "ndjson" } else { "csv" }
        );
        let job = Job::parse(&text, Path::new("/"), &[]).unwrap();
        let mut builder = Builder::new(&job.lists, &job.datasets, [7; 16]);
        builder.add(Entry { list: &job.lists[0], cells: &[Some(b"1")] });
        let spec = &job.datasets[0];
        let matcher = Arc::new(builder.finish().0).matcher(0, spec);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore);
        let object = runtime.block_on(store.head(&Location::Local(path))).unwrap();
        let reader = ObjectReader::on(runtime.handle().clone(), store, object);
        let scan = Scan { spec, matcher: &matcher, in_name: &[], format, reader: &reader };
        let seen = |scanned: Scanned| match scanned.seen {
            Seen::Rows { rows, matched } => Some((rows, matched.iter().collect(), scanned.not_comparable)),
            Seen::Skipped | Seen::Failed { .. } => None,
        };
        (scan.whole().ok().and_then(seen), scan.in_parts(parts).and_then(seen))
    }

    #[test]
    fn records_that_span_no_start_of_a_part_are_scanned_in_parts() {
        let csv: String = (0..40).map(|i| format!("{},\"a \"\"b\"\", {i}\"\r\n", i % 3)).collect();
        let ndjson: String = (0..40).map(|i| format!("{{\"a\": {}}}\n", i % 3)).collect();
        for (content, format) in [(csv, Format::Csv), (ndjson, Format::Ndjson)] {
            let (whole, in_parts) = scanned(&content, format, 3);
            assert_eq!(whole.as_ref().map(|whole| (whole.0, whole.1.len())), Some((40, 13)));
            assert_eq!(in_parts, whole);
        }
        // A line feed inside quotes is where the second part would begin.
        let (whole, in_parts) = scanned(&format!("1,\"{}\"\n", "x\n1,y".repeat(20)), Format::Csv, 2);
        assert_eq!((whole.map(|whole| whole.0), in_parts), (Some(1), None));
    }

    proptest! {
        #[test]
        fn parts_come_to_what_the_whole_comes_to(content in "([1a,\"\r\n]{0,3}[\n1,]){0,30}", parts in 2usize..5) {
            let (whole, in_parts) = scanned(&content, Format::Csv, parts);
            if in_parts.is_some() {
                prop_assert_eq!(in_parts, whole);
            }
        }
    }
}
