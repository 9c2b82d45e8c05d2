//! The rewrite of record files: kept records leave byte for byte, removed ones leave nothing.

use std::io::Read;

use xxhash_rust::xxh3::Xxh3;

use super::compression::{self, Encoder};
use super::csv::{self, Records};
use super::ndjson::{self, Lines};
use super::{CsvDialect, Edit, Format, FormatError, Receipt};
use crate::action::{Action, Redact, Redaction};
use crate::store::Sink;

/// Writes `source` to `out` without the removed rows, or with redacted cells, in the compression it came in. When the last record
/// goes, the one before it keeps its own line end.
pub fn rewrite(
    format: Format,
    dialect: &CsvDialect,
    source: impl Read,
    edit: &Edit<'_>,
    out: &mut dyn Sink,
) -> Result<Receipt, FormatError> {
    let (compression, source) = compression::decode(source)?;
    let mut out = Encoder::new(compression, out).map_err(FormatError::from_io)?;
    let mut kept = Kept::default();
    let editor = Editor { dialect, edit, tsv: format == Format::Tsv };
    match format {
        Format::Csv | Format::Tsv => editor.csv(source, &mut kept, &mut out)?,
        Format::Ndjson => editor.ndjson(source, &mut kept, &mut out)?,
        Format::Parquet => return Err(FormatError::Unsupported("Parquet as records".to_owned())),
    }
    kept.flush(&mut out)?;
    out.finish().map_err(FormatError::from_io)?;
    if let Some(last) = edit.rows.max()
        && last >= kept.rows_before
    {
        return Err(FormatError::Corrupt("fewer records than the scan saw".to_owned()));
    }
    Ok(kept.receipt())
}

/// Reads the new object and compares it with what was kept.
pub fn read_back(format: Format, dialect: &CsvDialect, new: impl Read, receipt: &Receipt) -> Result<(), FormatError> {
    let (_, source) = compression::decode(new)?;
    let (mut kept, mut nowhere) = (Kept::default(), std::io::sink());
    match format {
        Format::Csv | Format::Tsv => {
            let mut records = Records::new(source, dialect, format == Format::Tsv);
            if dialect.header
                && let Some(header) = records.read_run(1)?
            {
                kept.keep(header.bytes, &mut nowhere)?;
            }
            while let Some(run) = records.read_run(u64::MAX)? {
                kept.keep(run.bytes, &mut nowhere)?;
                kept.rows_after += run.records;
            }
            kept.keep(records.rest(), &mut nowhere)?;
        }
        Format::Ndjson => {
            let mut lines = Lines::new(source);
            while let Some(line) = lines.read()? {
                kept.keep(line.raw, &mut nowhere)?;
                kept.rows_after += u64::from(!line.is_blank());
            }
        }
        Format::Parquet => return Err(FormatError::Unsupported("Parquet as records".to_owned())),
    }
    kept.flush(&mut nowhere)?;
    if kept.rows_after != receipt.rows_after {
        return Err(FormatError::Mismatch(format!("{} records instead of {}", kept.rows_after, receipt.rows_after)));
    }
    if kept.receipt().digests != receipt.digests {
        return Err(FormatError::Mismatch("the bytes of the kept records".to_owned()));
    }
    Ok(())
}

/// Records are gathered to so many bytes before they are digested and written: one by one they are small.
const GATHERED_BYTES: usize = 128 << 10;

/// Counts, and the digest of all bytes that leave, in order.
#[derive(Default)]
struct Kept {
    rows_before: u64,
    rows_removed: u64,
    rows_redacted: u64,
    rows_after: u64,
    digest: Xxh3,
    gathered: Vec<u8>,
    written_bytes: u64,
    /// How much of the source was seen. The gathered bytes from `own` on are its last ones before there.
    source_bytes: u64,
    own: usize,
}

impl Kept {
    fn receipt(&self) -> Receipt {
        Receipt {
            rows_before: self.rows_before,
            rows_removed: self.rows_removed,
            rows_redacted: self.rows_redacted,
            rows_after: self.rows_after,
            digests: vec![self.digest.digest128()],
        }
    }

    /// The source's next bytes leave as they are.
    fn keep(&mut self, bytes: &[u8], out: &mut dyn Sink) -> Result<(), FormatError> {
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
    fn exchange(&mut self, raw: &[u8], bytes: &[u8], out: &mut dyn Sink) -> Result<(), FormatError> {
        self.tell(out);
        self.gathered.extend_from_slice(bytes);
        self.own = self.gathered.len();
        self.source_bytes += raw.len() as u64;
        self.flush_if_full(out)
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

    /// What was gathered leaves; to be called once more after the last record.
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

    /// Keeps, removes or redacts one record; `edited` makes its new bytes.
    fn record(
        &mut self,
        raw: &[u8],
        edit: &Edit<'_>,
        edited: impl FnOnce(&[Redact]) -> Result<Vec<u8>, FormatError>,
        out: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        let matched = edit.rows.contains(self.rows_before);
        self.rows_before += 1;
        match edit.action {
            Action::Delete if matched => {
                self.rows_removed += 1;
                return self.exchange(raw, b"", out);
            }
            Action::Redact(columns) if matched => {
                self.rows_redacted += 1;
                self.exchange(raw, &edited(columns)?, out)?;
            }
            Action::Delete | Action::Redact(_) if !edit.cleanse.strays.is_empty() => {
                self.exchange(raw, &edited(&[])?, out)?;
            }
            Action::Delete | Action::Redact(_) => self.keep(raw, out)?,
        }
        self.rows_after += 1;
        Ok(())
    }
}

struct Editor<'a> {
    dialect: &'a CsvDialect,
    edit: &'a Edit<'a>,
    tsv: bool,
}

impl Editor<'_> {
    fn csv(&self, source: impl Read, kept: &mut Kept, out: &mut dyn Sink) -> Result<(), FormatError> {
        let mut records = Records::new(source, self.dialect, self.tsv);
        if matches!(self.edit.action, Action::Delete) && self.edit.cleanse.strays.is_empty() {
            return self.csv_without(&mut records, kept, out);
        }
        let mut names: Option<Vec<String>> = None;
        while let Some(record) = records.read()? {
            kept.keep(record.gap, out)?;
            let Some(names) = &names else {
                let header = self.dialect.header.then_some(&record);
                let first = csv::column_names(header, record.width());
                if self.dialect.header {
                    kept.keep(record.raw, out)?;
                } else {
                    kept.record(record.raw, self.edit, |columns| self.edit_csv(&record, &first, columns), out)?;
                }
                names = Some(first);
                continue;
            };
            kept.record(record.raw, self.edit, |columns| self.edit_csv(&record, names, columns), out)?;
        }
        kept.keep(records.rest(), out)
    }

    /// Rows go or stay: no field is looked at.
    fn csv_without<R: Read>(
        &self,
        records: &mut Records<R>,
        kept: &mut Kept,
        out: &mut dyn Sink,
    ) -> Result<(), FormatError> {
        if self.dialect.header
            && let Some(header) = records.read_run(1)?
        {
            kept.keep(header.bytes, out)?;
        }
        let mut removed = self.edit.rows.iter().peekable();
        loop {
            let rows_to_keep = removed.peek().map_or(u64::MAX, |next| next - kept.rows_before);
            if rows_to_keep > 0 {
                let Some(run) = records.read_run(rows_to_keep)? else { break };
                kept.keep(run.bytes, out)?;
                kept.rows_before += run.records;
                kept.rows_after += run.records;
            } else {
                let Some(record) = records.read_whole()? else { break };
                kept.keep(record.gap, out)?;
                kept.exchange(record.raw, b"", out)?;
                kept.rows_before += 1;
                kept.rows_removed += 1;
                removed.next();
            }
        }
        kept.keep(records.rest(), out)
    }

    fn edit_csv(&self, record: &csv::Record<'_>, names: &[String], columns: &[Redact]) -> Result<Vec<u8>, FormatError> {
        let (delimiter, quote) =
            (self.dialect.delimiter.unwrap_or(if self.tsv { b'\t' } else { b',' }), self.dialect.quote);
        let strays = self.csv_strays(record, names)?;
        if strays.is_empty() && columns.is_empty() {
            return Ok(record.raw.to_vec());
        }
        let spans = csv::spans(record, delimiter, quote)
            .ok_or_else(|| FormatError::Unsupported(format!("a quote inside a field at line {}", record.line)))?;
        let mut replacements = Vec::new();
        for (position, text) in strays.into_iter().filter(|(position, _)| *position < spans.len()) {
            replacements.push((spans[position].clone(), csv::quoted(&text, delimiter, quote)));
        }
        for redact in columns {
            let positions = csv::positions(names, &redact.column)
                .map_err(|error| FormatError::Unsupported(format!("redaction, because it {error}")))?;
            for position in positions.into_iter().filter(|position| *position < spans.len()) {
                let text = self.cell(redact, record.field(position).unwrap_or(b""));
                replacements.push((spans[position].clone(), csv::quoted(&text, delimiter, quote)));
            }
        }
        let redacted = replaced(record.raw, replacements);
        // An empty line is no record: a record of one empty cell is spelled with its quotes.
        if redacted.first().is_none_or(|byte| matches!(byte, b'\r' | b'\n')) {
            return Ok([&[quote, quote], redacted.as_slice()].concat());
        }
        Ok(redacted)
    }

    /// The fields into which identifiers strayed, and what they become.
    fn csv_strays(&self, record: &csv::Record<'_>, names: &[String]) -> Result<Vec<(usize, String)>, FormatError> {
        let mut found = Vec::new();
        for column in &self.edit.cleanse.strays {
            let positions = csv::positions(names, column)
                .map_err(|error| FormatError::Unsupported(format!("redaction, because it {error}")))?;
            for position in positions {
                let cleaned = record.field(position).and_then(|cell| self.edit.tagger.without_strays(cell));
                found.extend(cleaned.map(|text| (position, String::from_utf8_lossy(&text).into_owned())));
            }
        }
        Ok(found)
    }

    fn cell(&self, redact: &Redact, value: &[u8]) -> String {
        match &redact.with {
            Redaction::Null => self.dialect.null_strings.first().cloned().unwrap_or_default(),
            Redaction::Constant(text) => text.clone(),
            Redaction::Tag if value.is_empty() => String::new(),
            Redaction::Tag => self.edit.tagger.tag(&redact.column, value),
        }
    }

    fn ndjson(&self, source: impl Read, kept: &mut Kept, out: &mut dyn Sink) -> Result<(), FormatError> {
        let mut lines = Lines::new(source);
        while let Some(line) = lines.read()? {
            if line.is_blank() {
                kept.keep(line.raw, out)?;
            } else {
                if matches!(self.edit.action, Action::Delete) && self.edit.rows.contains(kept.rows_before) {
                    // It stays where its record goes.
                    kept.exchange(b"", line.mark(), out)?;
                }
                kept.record(line.raw, self.edit, |columns| self.edit_json(&line, columns), out)?;
            }
        }
        Ok(())
    }

    fn edit_json(&self, line: &ndjson::Line<'_>, columns: &[Redact]) -> Result<Vec<u8>, FormatError> {
        let mut replacements = Vec::new();
        for column in &self.edit.cleanse.strays {
            for span in ndjson::spans(line, column)? {
                let Ok(text) = serde_json::from_slice::<String>(&line.raw[span.clone()]) else { continue };
                if let Some(cleaned) = self.edit.tagger.without_strays(text.as_bytes()) {
                    let cleaned = String::from_utf8_lossy(&cleaned).into_owned();
                    replacements.push((span, serde_json::Value::from(cleaned).to_string().into_bytes()));
                }
            }
        }
        for redact in columns {
            for span in ndjson::spans(line, &redact.column)? {
                let old = &line.raw[span.clone()];
                let text = match serde_json::from_slice::<String>(old) {
                    Ok(text) => text.into_bytes(),
                    Err(_) => old.to_vec(),
                };
                let new = match &redact.with {
                    Redaction::Null => "null".to_owned(),
                    Redaction::Constant(text) => serde_json::Value::from(text.as_str()).to_string(),
                    Redaction::Tag => serde_json::Value::from(self.edit.tagger.tag(&redact.column, &text)).to_string(),
                };
                replacements.push((span, new.into_bytes()));
            }
        }
        Ok(replaced(line.raw, replacements))
    }
}

/// `raw` with some spans replaced, every other byte as it was.
fn replaced(raw: &[u8], mut replacements: Vec<(std::ops::Range<usize>, Vec<u8>)>) -> Vec<u8> {
    replacements.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    let mut out = raw.to_vec();
    for (span, bytes) in replacements {
        out.splice(span, bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use roaring::RoaringTreemap;

    use super::*;
    use crate::format::Tagger;
    use crate::identifier::ColumnPath;
    use crate::residue::Cleanse;
    use crate::store::InMemory;

    struct Upper;

    impl Tagger for Upper {
        fn tag(&self, _: &ColumnPath, value: &[u8]) -> String {
            String::from_utf8_lossy(value).to_uppercase()
        }
    }

    fn edit_file(
        format: Format,
        source: &[u8],
        rows: &[u64],
        action: &Action,
    ) -> Result<(Vec<u8>, Receipt), FormatError> {
        let rows: RoaringTreemap = rows.iter().copied().collect();
        let mut out = InMemory::default();
        let edit = Edit { rows: &rows, action, tagger: &Upper, cleanse: &Cleanse::default() };
        let receipt = rewrite(format, &CsvDialect::default(), source, &edit, &mut out)?;
        read_back(format, &CsvDialect::default(), out.bytes.as_slice(), &receipt)?;
        told_as_own(&out, source);
        Ok((out.bytes, receipt))
    }

    /// How many bytes are said to be the source's own, if they are.
    fn told_as_own(told: &InMemory, source: &[u8]) -> usize {
        let own = told.taken.iter().map(|(at, range)| {
            let (at, range) = (*at as usize, range.start as usize..range.end as usize);
            assert_eq!(told.bytes[at..at + range.len()], source[range.clone()]);
            range.len()
        });
        own.sum()
    }

    #[test]
    fn what_is_kept_is_told_to_be_the_source_s_own() {
        let line = |i: usize| format!("{{\"id\":{i},\"e\":\"{}\"}}\n", "x".repeat(i % 90));
        let lines: String = (0..9_000).map(line).collect();
        let marked = format!("\u{feff}{lines}");
        let redact = Redact { column: ColumnPath::parse("e").unwrap(), with: Redaction::Null };
        for (format, source, action, rows, own_bytes) in [
            (
                Format::Ndjson,
                &lines,
                Action::Delete,
                vec![5, 6, 4_000],
                lines.len() - [5, 6, 4_000].map(|i| line(i).len()).iter().sum::<usize>(),
            ),
            (Format::Ndjson, &lines, Action::Redact(vec![redact]), vec![8_999], lines.len() - line(8_999).len()),
            // The mark stays, but as bytes of ours.
            (Format::Ndjson, &marked, Action::Delete, vec![0], lines.len() - line(0).len()),
            (Format::Csv, &lines, Action::Delete, vec![0], lines.len() - line(1).len()),
        ] {
            let rows = RoaringTreemap::from_iter(rows);
            let edit = Edit { rows: &rows, action: &action, tagger: &Upper, cleanse: &Cleanse::default() };
            let mut out = InMemory::default();
            rewrite(format, &CsvDialect::default(), source.as_bytes(), &edit, &mut out).unwrap();
            assert_eq!(told_as_own(&out, source.as_bytes()), own_bytes);
        }
        let zst = zstd::encode_all(lines.as_bytes(), 3).unwrap();
        let (rows, mut out) = (RoaringTreemap::from_iter([1]), InMemory::default());
        let edit = Edit { rows: &rows, action: &Action::Delete, tagger: &Upper, cleanse: &Cleanse::default() };
        rewrite(Format::Ndjson, &CsvDialect::default(), zst.as_slice(), &edit, &mut out).unwrap();
        assert_eq!(told_as_own(&out, &zst), 0);
    }

    fn check(format: Format, source: &str, rows: &[u64], wanted: &str) {
        let (out, receipt) = edit_file(format, source.as_bytes(), rows, &Action::Delete).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), wanted, "{source:?}");
        assert_eq!(receipt.rows_removed, rows.len() as u64);
        assert_eq!(receipt.rows_after + receipt.rows_removed, receipt.rows_before);
    }

    #[test]
    fn a_file_that_ends_inside_quotes_is_cut_off() {
        for (source, whole) in [
            ("id,note\n1,\"a", false),
            ("id,note\n1,\"a\n2,b\n", false),
            ("id,note\n1,\"a\"\"", false),
            ("id,note\n1,\"a\"", true),
            ("id,note\n1,\"\"\"a\"", true),
            ("id,note\n1,a\"", true),
            ("id,note\n1,", true),
            ("id,note\n1,\"a\"\r", true),
            ("\"id\"", true),
        ] {
            let read = edit_file(Format::Csv, source.as_bytes(), &[], &Action::Delete);
            assert_eq!(read.is_ok(), whole, "{source:?}: {read:?}");
        }
    }

    #[test]
    fn removed_csv_records_leave_no_byte_and_kept_ones_all() {
        for (source, rows, wanted) in [
            ("id,note\n7,\"a\nb\"\n8,c\n", &[1][..], "id,note\n7,\"a\nb\"\n"),
            ("id,note\r\n7,x\r\n8,\"c\"\"d\"\r\n9,e", &[0], "id,note\r\n8,\"c\"\"d\"\r\n9,e"),
            ("id\n1\n2\n3", &[2], "id\n1\n2\n"),
            ("\u{feff}id\n1\n2\n", &[0], "\u{feff}id\n2\n"),
            ("id\n\n1\n\n\n2\n\n", &[0], "id\n\n\n\n2\n\n"),
            ("id\r\n1\r\n\r\n2\r\n", &[1], "id\r\n1\r\n\r\n"),
            ("id,b\n 1 , \"x\" y\n2,z\n", &[1], "id,b\n 1 , \"x\" y\n"),
            ("id\n1\n2\n", &[0, 1], "id\n"),
            ("id\r1\r2\r", &[0], "id\r2\r"),
        ] {
            check(Format::Csv, source, rows, wanted);
        }
        check(Format::Ndjson, "{\"a\":1}\n\n{\"a\":2}\r\n{\"a\":3}", &[1], "{\"a\":1}\n\n{\"a\":3}");
    }

    #[test]
    fn a_redacted_cell_changes_and_no_byte_beside_it() {
        let redact = |name: &str, with| Action::Redact(vec![Redact { column: ColumnPath::parse(name).unwrap(), with }]);
        for (format, source, action, wanted) in [
            (Format::Csv, "id,e\n1,\"a,b\"\n2, x \n", redact("e", Redaction::Null), "id,e\n1,\n2, x \n"),
            (
                Format::Csv,
                "e,id\n\"a\"\"b\",1\r\n",
                redact("e", Redaction::Constant("x,y".into())),
                "e,id\n\"x,y\",1\r\n",
            ),
            (Format::Csv, "id,e\n1,abc\n", redact("E", Redaction::Tag), "id,e\n1,ABC\n"),
            (Format::Csv, "e\nabc\nd\n", redact("e", Redaction::Null), "e\n\"\"\nd\n"),
            (Format::Csv, "e\r\nabc\r\n", redact("e", Redaction::Null), "e\r\n\"\"\r\n"),
            (
                Format::Ndjson,
                "{ \"e\" : [\"a\", \"b\"], \"k\": {\"e\": 1} }\n",
                redact("e", Redaction::Tag),
                "{ \"e\" : [\"A\", \"B\"], \"k\": {\"e\": 1} }\n",
            ),
            (
                Format::Ndjson,
                "{\"u\":{\"e\":\"a}\\\"\",\"f\":\"a\"},\"u\":{\"e\":5}}\n",
                redact("u.e", Redaction::Null),
                "{\"u\":{\"e\":null,\"f\":\"a\"},\"u\":{\"e\":null}}\n",
            ),
        ] {
            let (out, receipt) = edit_file(format, source.as_bytes(), &[0], &action).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), wanted);
            assert_eq!((receipt.rows_redacted, receipt.rows_removed), (1, 0));
        }
    }

    #[test]
    fn compression_comes_out_as_it_went_in() {
        let plain = b"id\n1\n2\n3\n";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&plain[..5]).unwrap();
        let mut members = gzip.finish().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&plain[5..]).unwrap();
        members.extend(gzip.finish().unwrap());
        let (out, _) = edit_file(Format::Csv, &members, &[1], &Action::Delete).unwrap();
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(out.as_slice()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "id\n1\n3\n");
        let zst = zstd::encode_all(plain.as_slice(), 3).unwrap();
        let (out, _) = edit_file(Format::Csv, &zst, &[1], &Action::Delete).unwrap();
        assert_eq!(zstd::decode_all(out.as_slice()).unwrap(), b"id\n1\n3\n");
        let truncated = &members[..members.len() - 4];
        assert!(matches!(edit_file(Format::Csv, truncated, &[1], &Action::Delete), Err(FormatError::Corrupt(_))));
    }

    #[test]
    fn a_read_back_sees_every_planted_fault() {
        let (out, receipt) = edit_file(Format::Csv, b"id\n1\n2\n3\n", &[0], &Action::Delete).unwrap();
        assert_eq!(out, b"id\n2\n3\n");
        for planted in [&b"id\n2\n4\n"[..], b"id\n3\n2\n", b"id\n2\n", b"id\n2\n3\n3\n", b"ix\n2\n3\n"] {
            let outcome = read_back(Format::Csv, &CsvDialect::default(), planted, &receipt);
            assert!(matches!(outcome, Err(FormatError::Mismatch(_))), "{planted:?}");
        }
    }

    #[test]
    fn a_record_that_never_ends_is_refused() {
        let endless = std::io::Read::take(std::io::repeat(b'x'), 80 << 20);
        let rows = RoaringTreemap::from_iter([0]);
        let edit = Edit { rows: &rows, action: &Action::Delete, tagger: &Upper, cleanse: &Cleanse::default() };
        let source = std::io::Read::chain(&b"id\n\""[..], endless);
        let outcome = rewrite(Format::Csv, &CsvDialect::default(), source, &edit, &mut std::io::sink());
        assert!(matches!(outcome, Err(FormatError::Corrupt(reason)) if reason.contains("line 2")));
    }
}
