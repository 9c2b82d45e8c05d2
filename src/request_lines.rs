//! Where the records of a delimited list file begin: their physical lines, their fields, and whether the file is well formed.
//!
//! Polars pads a short record with nulls, and it ends a record at a line feed after an even number of quotes, wherever the
//! quotes stand. Both can hide a person, so every file is looked over here first. Invariant: a file that passes has the same
//! records in the reading of RFC 4180 and in that of Polars. No cell leaves this module.

/// A record that is not well formed, by the physical line it starts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    pub line: u64,
    pub reason: String,
}

/// One record, blank lines included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The physical line it starts on.
    pub line: u64,
    /// 0 for a blank line.
    pub fields: usize,
    /// The offset just after its line feed, counted from the first byte that was scanned.
    pub end_bytes: u64,
}

/// Polars would read on over it, and two people would be one entry.
pub const ALONE: &str = "a carriage return stands alone; lines must end with LF or CRLF";

/// Where in a record the scanner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    FieldStart,
    Bare,
    Quoted,
    /// After a quote in a quoted field: its end, or the first half of a doubled quote.
    Closed,
}

/// Finds records in bytes that arrive in pieces of any size.
#[derive(Debug, Clone)]
pub struct RecordScanner {
    delimiter: u8,
    quote: u8,
    place: Place,
    /// Whether the number of quotes since the record's start is odd: how Polars tells whether a line feed is inside a field.
    odd_quotes: bool,
    quotes_seen: bool,
    line: u64,
    record_line: u64,
    fields: usize,
    /// Whether the record has a byte at all, and whether it has one that is no carriage return.
    begun: bool,
    blank: bool,
    /// The byte before was a carriage return outside quotes.
    returned: bool,
    offset_bytes: u64,
}

impl RecordScanner {
    /// `line` is the physical line that the first byte is on.
    pub fn new(delimiter: u8, quote: u8, line: u64) -> Self {
        RecordScanner {
            delimiter,
            quote,
            place: Place::FieldStart,
            odd_quotes: false,
            quotes_seen: false,
            line,
            record_line: line,
            fields: 1,
            begun: false,
            blank: true,
            returned: false,
            offset_bytes: 0,
        }
    }

    /// Whether any quote was seen; without one every line is a record.
    pub fn quotes_seen(&self) -> bool {
        self.quotes_seen
    }

    /// Scans the next piece and tells `found` each record that ends in it.
    pub fn scan(
        &mut self,
        bytes: &[u8],
        mut found: impl FnMut(Record) -> Result<(), BadRecord>,
    ) -> Result<(), BadRecord> {
        let start_bytes = self.offset_bytes;
        for (i, byte) in bytes.iter().enumerate() {
            if std::mem::take(&mut self.returned) && !matches!(*byte, b'\r' | b'\n') {
                return Err(self.bad(ALONE));
            }
            let ends = match *byte {
                byte if byte == self.quote => self.quote()?,
                b'\n' => self.line_feed()?,
                byte if byte == self.delimiter => self.delimiter(),
                b'\r' => self.carriage_return(),
                _ => self.other()?,
            };
            if ends {
                self.offset_bytes = start_bytes + i as u64 + 1;
                found(self.end_record())?;
            }
        }
        self.offset_bytes = start_bytes + bytes.len() as u64;
        Ok(())
    }

    /// Ends the file; a last record needs no line feed.
    pub fn finish(&mut self, mut found: impl FnMut(Record) -> Result<(), BadRecord>) -> Result<(), BadRecord> {
        if self.place == Place::Quoted || self.odd_quotes {
            return Err(self.bad("a quoted field is never closed"));
        }
        if self.begun { found(self.end_record()) } else { Ok(()) }
    }

    fn bad(&self, reason: &str) -> BadRecord {
        BadRecord { line: self.record_line, reason: reason.to_owned() }
    }

    fn quote(&mut self) -> Result<bool, BadRecord> {
        self.odd_quotes = !self.odd_quotes;
        (self.quotes_seen, self.begun, self.blank) = (true, true, false);
        self.place = match self.place {
            Place::FieldStart | Place::Closed => Place::Quoted,
            Place::Quoted => Place::Closed,
            Place::Bare => Place::Bare,
        };
        Ok(false)
    }

    fn line_feed(&mut self) -> Result<bool, BadRecord> {
        let inside = self.place == Place::Quoted;
        if inside != self.odd_quotes {
            return Err(self.bad("a quote stands inside a field that does not begin with one"));
        }
        self.line += 1;
        Ok(!inside)
    }

    fn delimiter(&mut self) -> bool {
        (self.begun, self.blank) = (true, false);
        if self.place != Place::Quoted {
            self.place = Place::FieldStart;
            self.fields += 1;
        }
        false
    }

    fn carriage_return(&mut self) -> bool {
        self.begun = true;
        self.returned = self.place != Place::Quoted;
        if self.place == Place::FieldStart {
            self.place = Place::Bare;
        }
        false
    }

    fn other(&mut self) -> Result<bool, BadRecord> {
        (self.begun, self.blank) = (true, false);
        match self.place {
            Place::FieldStart => self.place = Place::Bare,
            Place::Bare | Place::Quoted => {}
            Place::Closed => return Err(self.bad("text follows the quote that closes a field")),
        }
        Ok(false)
    }

    fn end_record(&mut self) -> Record {
        let fields = if self.blank { 0 } else { self.fields };
        let record = Record { line: self.record_line, fields, end_bytes: self.offset_bytes };
        self.record_line = self.line;
        (self.place, self.fields, self.begun, self.blank, self.odd_quotes) = (Place::FieldStart, 1, false, true, false);
        record
    }
}

/// The fields of one record, unquoted; what is not UTF-8 is replaced.
pub fn fields(record: &[u8], delimiter: u8, quote: u8) -> Vec<String> {
    let mut reader = csv_core::ReaderBuilder::new().delimiter(delimiter).quote(quote).build();
    let (mut text, mut ends) = (vec![0; record.len() + 1], vec![0; record.len() + 2]);
    let (_, _, written, mut count) = reader.read_record(record, &mut text, &mut ends);
    // Without a line feed the record ends only when the reader is told that there is no more.
    let (_, _, _, more) = reader.read_record(&[], &mut text[written..], &mut ends[count..]);
    count += more;
    let mut start = 0;
    ends[..count]
        .iter()
        .map(|end| {
            let field = String::from_utf8_lossy(&text[start..*end]).into_owned();
            start = *end;
            field
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Line and fields of each record, scanned in pieces of `piece_bytes`.
    fn scan(text: &[u8], piece_bytes: usize) -> Result<Vec<(u64, usize)>, BadRecord> {
        let mut scanner = RecordScanner::new(b',', b'"', 1);
        let mut records = Vec::new();
        let mut found = |record: Record| {
            records.push((record.line, record.fields));
            Ok(())
        };
        for piece in text.chunks(piece_bytes) {
            scanner.scan(piece, &mut found)?;
        }
        scanner.finish(&mut found)?;
        Ok(records)
    }

    #[test]
    fn records_start_on_their_physical_line() {
        for (text, wanted) in [
            ("", vec![]),
            ("a\nb\n", vec![(1, 1), (2, 1)]),
            ("a,b\r\nc,d", vec![(1, 2), (2, 2)]),
            ("\n\r\na\n", vec![(1, 0), (2, 0), (3, 1)]),
            ("\"a\nb\",c\nd,e\n", vec![(1, 2), (3, 2)]),
            ("\"a\"\"\n\",b\r\n\"\"\n", vec![(1, 2), (3, 1)]),
            (",\n", vec![(1, 2)]),
            ("5\" or 6\",x\ny,z\n", vec![(1, 2), (2, 2)]),
            ("\"a\rb\",c\r\r\nd,e\r", vec![(1, 2), (2, 2)]),
        ] {
            for piece_bytes in [1, 3, 1000] {
                assert_eq!(scan(text.as_bytes(), piece_bytes), Ok(wanted.clone()), "{text:?} by {piece_bytes}");
            }
        }
    }

    #[test]
    fn quotes_that_two_readers_would_read_differently_are_refused() {
        for (text, line) in [
            ("a,b\nc,5\" nail\nd,e\n", 2),
            ("a\"b,\"c\nd\"\n", 1),
            ("a\n\"b\nc\n", 2),
            ("a\n\"b\"c\n", 2),
            ("a\nb\"", 2),
            ("email\ra@b.c\rd@e.f", 1),
            ("a\r\nb,c\rd\r\n", 2),
            ("a\n\"b\"\rc\n", 2),
        ] {
            assert_eq!(scan(text.as_bytes(), 1).map_err(|bad| bad.line), Err(line), "{text:?}");
            assert_eq!(scan(text.as_bytes(), 1000).map_err(|bad| bad.line), Err(line), "{text:?}");
        }
    }

    #[test]
    fn fields_are_unquoted() {
        for (record, wanted) in [
            ("a,b\r\n", vec!["a", "b"]),
            ("a,\"b,\n\"\"c\"", vec!["a", "b,\n\"c"]),
            ("a,", vec!["a", ""]),
            ("a", vec!["a"]),
        ] {
            assert_eq!(fields(record.as_bytes(), b',', b'"'), wanted, "{record:?}");
        }
    }

    proptest! {
        /// What passes has the records and fields that csv-core finds, blank lines apart.
        #[test]
        fn a_file_that_passes_reads_the_same_with_csv_core(text in "[ab,\"\n]{0,40}") {
            if let Ok(records) = scan(text.as_bytes(), 7) {
                let counted: Vec<usize> = records.into_iter().map(|(_, fields)| fields).filter(|n| *n > 0).collect();
                let mut reader = csv_core::Reader::new();
                let (mut input, mut wanted) = (text.as_bytes(), Vec::new());
                let (mut out, mut ends) = ([0; 64], [0; 64]);
                let mut fields = 0;
                loop {
                    let (result, read, _, ended) = reader.read_record(input, &mut out, &mut ends);
                    input = &input[read..];
                    fields += ended;
                    match result {
                        csv_core::ReadRecordResult::Record => wanted.push(std::mem::take(&mut fields)),
                        csv_core::ReadRecordResult::End => break,
                        csv_core::ReadRecordResult::InputEmpty => {}
                        csv_core::ReadRecordResult::OutputFull | csv_core::ReadRecordResult::OutputEndsFull => unreachable!(),
                    }
                }
                prop_assert_eq!(counted, wanted);
            }
        }
    }
}
