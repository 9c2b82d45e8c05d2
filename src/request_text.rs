//! Suppression lists of one record a line: `txt`, where a line is an identifier, and `ndjson`.
//!
//! NDJSON goes through serde_json and not through Polars: a Polars column has one type, so it prints a nested list or a boolean
//! as text that would pass for an identifier, and it stops when the thousandth line has a number where the first had text. Here
//! every cell keeps the type it has. Invariant: a flaw's place is the physical line.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;

use rayon::prelude::*;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::identifier::Value;
use crate::job::ListSpec;
use crate::request_bytes::{PIECE_BYTES, Unusable, read_piece};
use crate::request_cells::{Cell, Cells, CellsBuilder, shown_names};
use crate::request_frames::Sink;
use crate::request_lines::ALONE;

const PART_LINES: usize = 1 << 13;

/// A longer line is no record of a list, and would have to be held whole.
const LINE_BYTES_MAX: usize = 64 << 20;

/// A line that is not blank, by its number from 1 on, without its line end.
type Line<'a> = (u64, &'a [u8]);

/// Gives the lines of `text` to `each`, in blocks of whole lines.
fn each_block(text: &mut dyn Read, each: &mut dyn FnMut(&[Line<'_>]) -> Result<(), Unusable>) -> Result<(), Unusable> {
    let (mut block, mut line) = (Vec::with_capacity(2 * PIECE_BYTES), 1);
    loop {
        let ended = read_piece(text, &mut block)? == 0;
        let end = match memchr::memrchr(b'\n', &block) {
            _ if ended => block.len(),
            Some(last) => last + 1,
            None if block.len() > LINE_BYTES_MAX => {
                return Err(Unusable::Corrupt { line: Some(line), reason: "the line has more than 64 MiB".to_owned() });
            }
            None => continue,
        };
        let (mut start, mut number) = (0, line);
        let mut lines: Vec<Line<'_>> = Vec::new();
        for end in memchr::memchr_iter(b'\n', &block[..end]).chain([end]) {
            let text = &block[start..end];
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if !text.iter().all(u8::is_ascii_whitespace) {
                lines.push((number, text));
            }
            (start, number) = (end + 1, number + 1);
        }
        let is_torn = |(_, text): &&Line<'_>| memchr::memchr(b'\r', text).is_some();
        if memchr::memchr(b'\r', &block[..end]).is_some()
            && let Some((number, _)) = lines.iter().find(is_torn)
        {
            return Err(Unusable::Corrupt { line: Some(*number), reason: ALONE.to_owned() });
        }
        each(&lines)?;
        if ended {
            return Ok(());
        }
        line = number - 1;
        block.drain(..end);
    }
}

/// Reads a list of one identifier a line, all for the first listed column; returns the number of identifiers.
pub fn read_txt(list: &ListSpec, text: &mut dyn Read, sink: Sink<'_>) -> Result<u64, Unusable> {
    let mut rows = 0;
    each_block(text, &mut |lines| {
        rows += lines.len() as u64;
        sink(lines.par_chunks(PART_LINES).map(|lines| txt_cells(list, lines)).collect())
    })?;
    Ok(rows)
}

fn txt_cells(list: &ListSpec, lines: &[Line<'_>]) -> Cells {
    let mut cells = CellsBuilder::new(list, lines.len());
    for (number, line) in lines {
        let cell = std::str::from_utf8(line).map_or(Cell::NotUtf8, |text| Cell::Value(Value::Text(text)));
        cells.push(0, *number, cell);
        (1..list.columns.len()).for_each(|column| cells.push(column, *number, Cell::Empty));
    }
    cells.finish()
}

/// Reads the listed keys of a list of one JSON object a line; returns the number of objects. A key that no object has is a
/// missing column; a key that only some have is an empty cell in the others.
pub fn read_ndjson(list: &ListSpec, text: &mut dyn Read, sink: Sink<'_>) -> Result<u64, Unusable> {
    let (mut rows, mut seen, mut keys) = (0, vec![false; list.columns.len()], BTreeSet::new());
    each_block(text, &mut |lines| {
        if rows == 0 {
            lines.iter().take(KEYS_FROM_LINES).for_each(|(_, line)| note_keys(line, &mut keys));
        }
        rows += lines.len() as u64;
        let parts: Vec<JsonPart> =
            lines.par_chunks(PART_LINES).map(|lines| json_cells(list, lines)).collect::<Result<_, _>>()?;
        for part in &parts {
            seen.iter_mut().zip(&part.seen).for_each(|(seen, here)| *seen |= here);
        }
        sink(parts.into_iter().map(|part| part.cells).collect())
    })?;
    match list.columns.iter().zip(seen).find(|(_, seen)| rows > 0 && !seen) {
        None => Ok(rows),
        Some((column, _)) => {
            let there: Vec<String> = keys.into_iter().collect();
            Err(Unusable::NoColumn { column: column.column.clone(), there: shown_names(&there) })
        }
    }
}

/// How many lines are asked for their keys, for the message about a missing one.
const KEYS_FROM_LINES: usize = 100;

fn note_keys(line: &[u8], keys: &mut BTreeSet<String>) {
    if let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(line) {
        keys.extend(object.into_iter().map(|(key, _)| key));
    }
}

struct JsonPart {
    cells: Cells,
    /// Which columns' keys any of the objects has.
    seen: Vec<bool>,
}

fn json_cells(list: &ListSpec, lines: &[Line<'_>]) -> Result<JsonPart, Unusable> {
    let wanted: Vec<(&str, String)> =
        list.columns.iter().map(|column| (column.column.as_str(), column.column.to_lowercase())).collect();
    let mut cells = CellsBuilder::new(list, lines.len());
    let mut seen = vec![false; wanted.len()];
    for (number, line) in lines {
        let found = read_object(line, &wanted).ok_or_else(|| Unusable::Corrupt {
            line: Some(*number),
            reason: "the line is not a JSON object".to_owned(),
        })?;
        for (column, found) in found.iter().enumerate() {
            seen[column] |= found.is_some();
            cells.push(column, *number, found.as_ref().map_or(Cell::Empty, |found| found.value.cell()));
        }
    }
    Ok(JsonPart { cells: cells.finish(), seen })
}

/// The values of the wanted keys of one object, `None` where it has no such key. `None`: not an object.
fn read_object<'a>(line: &'a [u8], wanted: &[(&str, String)]) -> Option<Vec<Option<Found<'a>>>> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let found = ObjectSeed(wanted).deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    Some(found)
}

/// A value of a wanted key. A key of exactly the wanted name goes before one that differs in case.
struct Found<'a> {
    exact: bool,
    value: JsonValue<'a>,
}

#[derive(Clone)]
enum JsonValue<'a> {
    Null,
    Text(Cow<'a, str>),
    Integer(i128),
    Float(f64),
    /// A boolean, list or object, or a key that is there twice.
    Other,
}

/// From here on JSON integers reach us as floats that have lost digits.
const FLOAT_IS_EXACT_BELOW: f64 = 1.8e19;

impl JsonValue<'_> {
    fn cell(&self) -> Cell<'_> {
        match self {
            JsonValue::Null => Cell::Empty,
            JsonValue::Text(text) => Cell::Value(Value::Text(text)),
            JsonValue::Integer(integer) => Cell::Value(Value::Integer(*integer)),
            JsonValue::Float(float) if float.abs() < FLOAT_IS_EXACT_BELOW => Cell::Value(Value::Float(*float)),
            JsonValue::Float(_) | JsonValue::Other => Cell::Value(Value::Other),
        }
    }
}

struct ObjectSeed<'w>(&'w [(&'w str, String)]);

impl<'de> DeserializeSeed<'de> for ObjectSeed<'_> {
    type Value = Vec<Option<Found<'de>>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectSeed<'_> {
    type Value = Vec<Option<Found<'de>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found: Vec<Option<Found<'de>>> = self.0.iter().map(|_| None).collect();
        while let Some(matches) = map.next_key_seed(KeySeed(self.0))? {
            match matches.as_slice() {
                [] => drop(map.next_value::<IgnoredAny>()?),
                [(column, exact)] => keep(&mut found[*column], *exact, map.next_value_seed(ValueSeed)?),
                several => {
                    let value = map.next_value_seed(ValueSeed)?;
                    several.iter().for_each(|(column, exact)| keep(&mut found[*column], *exact, value.clone()));
                }
            }
        }
        Ok(found)
    }
}

fn keep<'de>(slot: &mut Option<Found<'de>>, exact: bool, value: JsonValue<'de>) {
    match slot {
        Some(found) if found.exact && !exact => {}
        Some(found) if found.exact == exact => found.value = JsonValue::Other,
        Some(_) | None => *slot = Some(Found { exact, value }),
    }
}

/// Which columns a key feeds, and whether by its exact name.
struct KeySeed<'w>(&'w [(&'w str, String)]);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Vec<(usize, bool)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Vec<(usize, bool)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        let feeds = |(column, (name, folded)): (usize, &(&str, String))| {
            let exact = key == *name;
            let folds = || (key.len() == folded.len() || !key.is_ascii()) && key.to_lowercase() == *folded;
            (exact || folds()).then_some((column, exact))
        };
        Ok(self.0.iter().enumerate().filter_map(feeds).collect())
    }
}

struct ValueSeed;

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = JsonValue<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = JsonValue<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(JsonValue::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(JsonValue::Other)
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Self::Value, E> {
        Ok(JsonValue::Integer(integer.into()))
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Self::Value, E> {
        Ok(JsonValue::Integer(integer.into()))
    }

    fn visit_f64<E>(self, float: f64) -> Result<Self::Value, E> {
        Ok(JsonValue::Float(float))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(JsonValue::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(JsonValue::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(JsonValue::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(JsonValue::Other)
    }
}
