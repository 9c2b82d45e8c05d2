//! The cells of a suppression list in canonical form, and which column of a file each comes from.
//!
//! Canonical forms are those of `identifier`, and nothing is normalised here. Invariant: a cell that holds something is either
//! given on in canonical form or told as a flaw, never dropped.

use std::collections::BTreeSet;

use crate::identifier::{Canonical, HashFunction, Hashed, Kind, Value};
use crate::job::{ListColumn, ListSpec};
use crate::request_bytes::Unusable;

/// Why a cell is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NotComparable,
    NotUtf8,
}

/// A malformed cell: `place` is whatever its reader counts by (lines or rows), `column` counts `list.columns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flaw {
    pub place: u64,
    pub column: usize,
    pub reason: Reason,
}

/// What a reader found in one cell.
#[derive(Clone, Copy)]
pub enum Cell<'a> {
    Empty,
    Value(Value<'a>),
    NotUtf8,
}

/// The canonical cells of some rows in file order, column by column.
pub struct Cells {
    rows: usize,
    columns: Vec<Column>,
    /// By row, then by column.
    pub flaws: Vec<Flaw>,
    /// The rows of the flaws.
    flawed: BTreeSet<usize>,
}

/// All canonical forms of a column one after the other; none is empty, so an empty one stands for no identifier.
#[derive(Default)]
struct Column {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Cells {
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many rows hold a malformed cell.
    pub fn malformed_rows(&self) -> u64 {
        self.flaws.chunk_by(|a, b| a.place == b.place).count() as u64
    }

    /// How many rows hold no identifier, nor anything that was meant to be one.
    pub fn blank_rows(&self) -> u64 {
        let is_blank = |row: usize| {
            let begin = |column: &Column| if row == 0 { 0 } else { column.ends[row - 1] };
            self.columns.iter().all(|column| column.ends[row] == begin(column)) && !self.flawed.contains(&row)
        };
        (0..self.rows).filter(|row| is_blank(*row)).count() as u64
    }

    /// The cells of one row, into `out` (cleared first); whether there is any.
    pub fn row<'a>(&'a self, row: usize, out: &mut Vec<Option<&'a [u8]>>) -> bool {
        out.clear();
        out.extend(self.columns.iter().map(|column| {
            let start = if row == 0 { 0 } else { column.ends[row - 1] };
            Some(&column.bytes[start..column.ends[row]]).filter(|cell| !cell.is_empty())
        }));
        out.iter().any(Option::is_some)
    }
}

/// Builds [`Cells`], column by column or row by row.
pub struct CellsBuilder<'a> {
    columns: &'a [ListColumn],
    cells: Cells,
    scratch: Vec<u8>,
}

impl<'a> CellsBuilder<'a> {
    pub fn new(list: &'a ListSpec, rows: usize) -> Self {
        let column = || Column { bytes: Vec::new(), ends: Vec::with_capacity(rows) };
        let columns = list.columns.iter().map(|_| column()).collect();
        let cells = Cells { rows, columns, flaws: Vec::new(), flawed: BTreeSet::new() };
        CellsBuilder { columns: &list.columns, cells, scratch: Vec::new() }
    }

    /// Adds the next cell of `column`.
    pub fn push(&mut self, column: usize, place: u64, cell: Cell<'_>) {
        let canonical = match cell {
            Cell::Empty => Canonical::Empty,
            Cell::NotUtf8 => Canonical::NotComparable,
            Cell::Value(value) => canonicalise(&self.columns[column], value, &mut self.scratch),
        };
        let out = &mut self.cells.columns[column];
        match canonical {
            Canonical::Text | Canonical::Number => out.bytes.extend_from_slice(&self.scratch),
            Canonical::Empty => {}
            Canonical::NotComparable => {
                let reason = if matches!(cell, Cell::NotUtf8) { Reason::NotUtf8 } else { Reason::NotComparable };
                self.cells.flaws.push(Flaw { place, column, reason });
                self.cells.flawed.insert(out.ends.len());
            }
        }
        out.ends.push(out.bytes.len());
    }

    pub fn finish(mut self) -> Cells {
        self.cells.flaws.sort_by_key(|flaw| (flaw.place, flaw.column));
        // A column that is read in two ways is damaged once.
        let mut told: Vec<(u64, &str)> = Vec::new();
        let columns = self.columns;
        self.cells.flaws.retain(|flaw| {
            let this = (flaw.place, columns[flaw.column].column.as_str());
            told.retain(|(place, _)| *place == flaw.place);
            let is_again = flaw.reason == Reason::NotUtf8 && told.contains(&this);
            told.extend((flaw.reason == Reason::NotUtf8).then_some(this));
            !is_again
        });
        self.cells
    }
}

fn canonicalise(column: &ListColumn, value: Value<'_>, out: &mut Vec<u8>) -> Canonical {
    match column.hashed {
        None => match column.kind.canonicalise(value, out) {
            Canonical::Text if column.kind == Kind::Email && !is_one_address(out) => Canonical::NotComparable,
            read => read,
        },
        Some(hashed) => hashed.read(value, out),
    }
}

/// Whether an e-mail address in canonical form is one. An entry of several people, or one with a name around the address, would match
/// nobody: no data column holds it like that. What is in quotes may be anything (RFC 5321, 4.1.2).
fn is_one_address(canonical: &[u8]) -> bool {
    let (mut quoted, mut ats) = (false, 0);
    for byte in canonical {
        match byte {
            b'"' => quoted = !quoted,
            b'@' if !quoted => ats += 1,
            b',' | b';' | b'<' | b'>' if !quoted => return false,
            _ => {}
        }
    }
    ats == 1
}

/// The reason in words, after the column's name; never the value.
pub fn describe(column: &ListColumn, reason: Reason) -> String {
    match (reason, column.hashed) {
        (Reason::NotUtf8, _) => "is not UTF-8 text".to_owned(),
        (Reason::NotComparable, None) => describe_kind(&column.kind),
        (Reason::NotComparable, Some(hashed)) => {
            let function = match hashed.function() {
                HashFunction::Sha256 => "a SHA-256",
                HashFunction::Md5 => "an MD5",
                HashFunction::Sha1 => "a SHA-1",
            };
            let spelling = match hashed {
                Hashed::Sha256Hex | Hashed::Md5Hex | Hashed::Sha1Hex => "hex",
                Hashed::Sha256Base64 => "Base64",
            };
            format!("is not {function} in {spelling}")
        }
    }
}

fn describe_kind(kind: &Kind) -> String {
    let what = match kind {
        Kind::Email => "an e-mail address",
        Kind::Phone => "a phone number",
        Kind::PhoneE164 { region: Some(region) } => {
            return format!("is not a valid phone number, international or of region {region}");
        }
        Kind::PhoneE164 { region: None } => "a valid phone number with its country code",
        Kind::Maid => "a mobile advertising id of 32 hex digits",
        Kind::Uuid => "a UUID",
        Kind::Ip => "an IP address",
        Kind::Integer => "an integer",
        Kind::Text => "text or a number",
        Kind::Vin => "a VIN of 17 letters and digits",
        Kind::Zip => "a ZIP code",
        Kind::Name => "a name: it has neither letter nor digit",
        Kind::Date { format: None } => "a date written YYYY-MM-DD or YYYYMMDD",
        Kind::Date { format: Some(format) } => return format!("is not a date written {}", format.as_str()),
        Kind::Ctvid => "a connected-TV id of 8 to 32 letters and digits",
        Kind::Ndz => "a name, date of birth and ZIP as DROP joins them",
        Kind::NameVin => "a name and VIN as DROP joins them",
    };
    format!("is not {what}")
}

/// The names of a file's columns as a message may show them. `None` when they may be a first line of identifiers: when none
/// of them has a word that columns of lists are named with, or any of them does not look like a name.
pub fn shown_names(names: &[String]) -> Option<Vec<String>> {
    let header = names.iter().any(|name| has_a_header_word(name)) && names.iter().all(|name| looks_like_a_name(name));
    header.then(|| names.to_vec())
}

const HEADER_WORDS: [&str; 32] = [
    "address",
    "created",
    "date",
    "email",
    "emails",
    "gaid",
    "hash",
    "hashed",
    "id",
    "idfa",
    "identifier",
    "ids",
    "ip",
    "kind",
    "maid",
    "mail",
    "md5",
    "mobile",
    "name",
    "phone",
    "postal",
    "received",
    "request",
    "sha1",
    "sha256",
    "tel",
    "type",
    "user",
    "uuid",
    "value",
    "vin",
    "zip",
];

fn has_a_header_word(name: &str) -> bool {
    name.to_lowercase().split(|c: char| !c.is_alphanumeric()).any(|word| HEADER_WORDS.contains(&word))
}

fn looks_like_a_name(name: &str) -> bool {
    let digits = name.chars().filter(char::is_ascii_digit).count();
    let spelled = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ');
    name.chars().count() <= 40 && digits <= 4 && name.chars().all(spelled)
}

/// The column that `wanted` names: the one of exactly that name, else the only one that differs in case or in space around it.
pub fn resolve(wanted: &str, names: &[String]) -> Result<usize, Unusable> {
    let only = |matches: &dyn Fn(&str) -> bool| {
        let mut found = names.iter().enumerate().filter(|(_, name)| matches(name)).map(|(i, _)| i);
        (found.next(), found.next())
    };
    let folded = wanted.trim().to_lowercase();
    for found in [only(&|name| name == wanted), only(&|name| name.trim().to_lowercase() == folded)] {
        match found {
            (Some(i), None) => return Ok(i),
            (Some(_), Some(_)) => return Err(Unusable::AmbiguousColumn { column: wanted.to_owned() }),
            (None, _) => {}
        }
    }
    Err(Unusable::NoColumn { column: wanted.to_owned(), there: shown_names(names) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn columns_resolve_exactly_then_by_case_when_only_one_does() {
        for (wanted, there, found) in [
            ("email", &["id", "email"][..], Some(1)),
            ("email", &["EMAIL", "email"], Some(1)),
            ("email", &["id", " EMail"], Some(1)),
            ("email", &["EMAIL", "Email"], None),
            ("email", &["email", "email"], None),
            ("email", &["mail"], None),
        ] {
            assert_eq!(resolve(wanted, &names(there)).ok(), found, "{there:?}");
        }
    }

    #[test]
    fn an_entry_is_one_address() {
        for (entry, is_one) in [
            ("anna@example.com", true),
            ("\"a,b@c\"@example.com", true),
            ("a@x.com;b@y.com", false),
            ("a@x.com,c@d.org", false),
            ("a@x.com,", false),
            ("a@b@c.org", false),
            ("anna<anna@example.com>", false),
        ] {
            assert_eq!(is_one_address(entry.as_bytes()), is_one, "{entry}");
        }
    }

    #[test]
    fn a_first_line_of_identifiers_is_never_shown_as_column_names() {
        assert_eq!(shown_names(&names(&["id", "E-Mail (1)"])), None);
        assert_eq!(shown_names(&names(&["id", "email_sha256"])), Some(names(&["id", "email_sha256"])));
        for identifier in [
            "anna@example.com",
            "anna-id@example.com",
            "+1 415 555 9317",
            "90210",
            "a3f1c2d4-5678-90ab-cdef-1234567890ab",
            "KA18MT/ph6IHYjzT9zwETySDQyvSh87YuoSBpOQtkhE=",
        ] {
            assert_eq!(shown_names(&names(&["id", identifier])), None, "{identifier}");
        }
        assert_eq!(shown_names(&names(&["Anna", "Smith", "Philip"])), None);
    }

    #[test]
    fn rows_come_back_in_canonical_form_and_flaws_by_row() {
        let column = |kind| ListColumn { column: "c".to_owned(), kind, hashed: None };
        let columns = [column(Kind::Email), column(Kind::Integer)];
        let mut builder = CellsBuilder {
            columns: &columns,
            cells: Cells {
                rows: 3,
                columns: vec![Column::default(), Column::default()],
                flaws: Vec::new(),
                flawed: BTreeSet::new(),
            },
            scratch: Vec::new(),
        };
        for (place, cell) in [Cell::Value(Value::Text("A@b.c")), Cell::NotUtf8, Cell::Empty].into_iter().enumerate() {
            builder.push(0, place as u64, cell);
        }
        for (place, value) in [Value::Text("x"), Value::Other, Value::Integer(7)].into_iter().enumerate() {
            builder.push(1, place as u64, Cell::Value(value));
        }
        let (cells, mut row) = (builder.finish(), Vec::new());
        for (i, wanted) in [[Some(&b"a@b.c"[..]), None], [None, None], [None, Some(&b"7"[..])]].iter().enumerate() {
            assert_eq!(cells.row(i, &mut row), wanted.iter().any(Option::is_some));
            assert_eq!(row, wanted);
        }
        let flaw = |place, column, reason| Flaw { place, column, reason };
        let flaws = [flaw(0, 1, Reason::NotComparable), flaw(1, 0, Reason::NotUtf8), flaw(1, 1, Reason::NotComparable)];
        assert_eq!(cells.flaws, flaws);
        assert_eq!(cells.malformed_rows(), 2);
    }
}
