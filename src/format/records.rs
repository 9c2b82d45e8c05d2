//! The rewrite of record files: kept records leave byte for byte, removed ones leave nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;

use super::compression::{self, Encoder};
use super::csv::{self, Records};
use super::kept::{Kept, RecordsReceipt};
use super::ndjson::{self, Lines};
use super::{CsvDialect, Edit, Format, FormatError};
use crate::action::{Action, Redact, Redaction};
use crate::identifier::ColumnPath;
use crate::store::Sink;

/// Writes `source` to `out` without the removed rows, or with redacted cells, in the compression it came in. When the last record
/// goes, the one before it keeps its own line end.
pub fn rewrite(
    format: Format,
    dialect: &CsvDialect,
    source: impl Read,
    edit: &Edit<'_>,
    out: &mut dyn Sink,
) -> Result<RecordsReceipt, FormatError> {
    let (compression, source) = compression::decode(source)?;
    let mut out = Encoder::new(compression, out).map_err(FormatError::from_io)?;
    let mut kept = Kept::default();
    let editor = Editor { dialect, edit, tsv: format == Format::Tsv, strays_redacted: RefCell::default() };
    match format {
        Format::Csv | Format::Tsv => editor.csv(source, &mut kept, &mut out)?,
        Format::Ndjson => editor.ndjson(source, &mut kept, &mut out)?,
        Format::Parquet => return Err(FormatError::Unsupported("Parquet as records".to_owned())),
    }
    let mut receipt = kept.end(compression, &mut out)?;
    receipt.counts.strays_redacted = editor.strays_redacted.into_inner();
    out.finish().map_err(FormatError::from_io)?;
    if let Some(last) = edit.rows.max()
        && last >= receipt.counts.rows_before
    {
        return Err(FormatError::Corrupt("fewer records than the scan saw".to_owned()));
    }
    Ok(receipt)
}

struct Editor<'a> {
    dialect: &'a CsvDialect,
    edit: &'a Edit<'a>,
    tsv: bool,
    strays_redacted: RefCell<BTreeMap<ColumnPath, u64>>,
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
            let rows_to_keep = removed.peek().map_or(u64::MAX, |next| next - kept.rows_before());
            if rows_to_keep > 0 {
                let Some(run) = records.read_run(rows_to_keep)? else { break };
                kept.keep(run.bytes, out)?;
                kept.stayed(run.records, out)?;
            } else {
                let Some(record) = records.read_whole()? else { break };
                kept.keep(record.gap, out)?;
                kept.remove(record.raw, out)?;
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
                let cleaned = record.field(position).and_then(|cell| self.without_strays(column, cell));
                found.extend(cleaned.map(|text| (position, String::from_utf8_lossy(&text).into_owned())));
            }
        }
        Ok(found)
    }

    fn without_strays(&self, column: &ColumnPath, text: &[u8]) -> Option<Vec<u8>> {
        let cleaned = self.edit.tagger.without_strays(text)?;
        *self.strays_redacted.borrow_mut().entry(column.clone()).or_default() += 1;
        Some(cleaned)
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
                if matches!(self.edit.action, Action::Delete) && self.edit.rows.contains(kept.rows_before()) {
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
                if let Some(cleaned) = self.without_strays(column, text.as_bytes()) {
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
    use crate::format::kept::read_back;
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
    ) -> Result<(Vec<u8>, RecordsReceipt), FormatError> {
        let rows: RoaringTreemap = rows.iter().copied().collect();
        let mut out = InMemory::default();
        let edit = Edit { rows: &rows, action, tagger: &Upper, cleanse: &Cleanse::default() };
        let receipt = rewrite(format, &CsvDialect::default(), source, &edit, &mut out)?;
        read_back(format, &CsvDialect::default(), &out.bytes, &receipt, 2)?;
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
        let counts = receipt.counts;
        assert_eq!(counts.rows_removed, rows.len() as u64);
        assert_eq!(counts.rows_after + counts.rows_removed, counts.rows_before);
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
            assert_eq!((receipt.counts.rows_redacted, receipt.counts.rows_removed), (1, 0));
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
            let outcome = read_back(Format::Csv, &CsvDialect::default(), &planted.to_vec(), &receipt, 2);
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
