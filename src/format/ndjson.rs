//! NDJSON lines with the bytes they stand in: one JSON object a line.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::FormatError;
use super::csv::RECORD_BYTES_MAX;
use crate::column_values::{Element, NoRoute, Placed};
use crate::identifier::{ColumnPath, Value};

/// A stream of lines.
pub struct Lines<R> {
    source: BufReader<R>,
    line: Vec<u8>,
    number: u64,
}

/// One line with its line end.
pub struct Line<'a> {
    pub raw: &'a [u8],
    /// 1-based.
    pub number: u64,
}

impl Line<'_> {
    /// Blank lines are kept and are no records.
    pub fn is_blank(&self) -> bool {
        self.json().iter().all(u8::is_ascii_whitespace)
    }

    /// The byte order mark of a first line, or nothing. It is the file's, not the record's.
    pub fn mark(&self) -> &[u8] {
        &self.raw[..self.raw.len() - self.json().len()]
    }

    /// The JSON text, without a byte order mark.
    pub fn json(&self) -> &[u8] {
        self.raw.strip_prefix(b"\xef\xbb\xbf").unwrap_or(self.raw)
    }
}

impl<R: Read> Lines<R> {
    pub fn new(source: R) -> Self {
        Lines { source: BufReader::with_capacity(256 << 10, source), line: Vec::new(), number: 0 }
    }

    pub fn read(&mut self) -> Result<Option<Line<'_>>, FormatError> {
        self.line.clear();
        let mut limited = (&mut self.source).take(RECORD_BYTES_MAX as u64 + 1);
        let read = limited.read_until(b'\n', &mut self.line).map_err(FormatError::from_io)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if read > RECORD_BYTES_MAX {
            return Err(FormatError::Corrupt(format!("line {} does not end", self.number)));
        }
        Ok(Some(Line { raw: &self.line, number: self.number }))
    }
}

fn may_hold_surrogates(json: &[u8]) -> bool {
    memchr::memchr_iter(b'\\', json).any(|at| {
        matches!(json.get(at + 1..at + 4), Some([b'u', b'd' | b'D', b'8' | b'9' | b'a'..=b'f' | b'A'..=b'F']))
    })
}

/// Calls `each` with every value that `path` reaches in the object, and the elements of arrays that it stands in: through objects,
/// any element of arrays, all values of a repeated key. In each object the exact name is meant, else the only one that differs in case alone. Returns whether the
/// path's first name was there at all.
pub fn values(line: &Line<'_>, path: &ColumnPath, each: &mut dyn FnMut(Placed<'_>)) -> Result<bool, FormatError> {
    let mut seen = Seen::default();
    // Half of a pair stands for no character: other readers, the verifying scan among them, refuse the whole line.
    if may_hold_surrogates(line.json()) && serde_json::from_slice::<serde_json::Value>(line.json()).is_err() {
        return Err(FormatError::Corrupt(format!(
            "line {} is no JSON, or holds half of a surrogate pair",
            line.number
        )));
    }
    let mut json = serde_json::Deserializer::from_slice(line.json());
    let corrupt = |_| FormatError::Corrupt(format!("line {} is no JSON object", line.number));
    Walk { path: &path.0, depth: 0, seen: &mut seen, each }.deserialize(&mut json).map_err(corrupt)?;
    json.end().map_err(corrupt)?;
    if !seen.misspelt {
        return Ok(seen.first_name);
    }
    // Rare, so the common walk does not look ahead for it; what that one gave already is given again, which changes no match.
    let mut scanner = Scanner::of(line, path);
    scanner.scan(line, path)?;
    for (span, element) in &scanner.found {
        let mut json = serde_json::Deserializer::from_slice(&line.raw[span.clone()]);
        let mut each = |placed: Placed<'_>| each(Placed { value: placed.value, element });
        let walk = Walk { path: &[], depth: path.0.len(), seen: &mut seen, each: &mut each };
        walk.deserialize(&mut json).map_err(corrupt)?;
    }
    Ok(scanner.first_name)
}

/// What a walk came across besides values.
#[derive(Default)]
struct Seen {
    first_name: bool,
    /// An object lacks a name of the path and has one that differs in case alone.
    misspelt: bool,
    place: Place,
}

/// Where a walk stands in the arrays around it.
#[derive(Default)]
struct Place {
    element: Element,
    /// By nesting: how many elements have been entered. An array that comes again (below a repeated key) counts on.
    entered: Vec<u32>,
}

impl Place {
    /// `depth` names of the path lead to the array.
    fn enter(&mut self, depth: usize) {
        let nesting = self.element.len();
        if self.entered.len() == nesting {
            self.entered.push(0);
        }
        self.element.push((depth, self.entered[nesting]));
        self.entered[nesting] += 1;
    }

    fn leave(&mut self) {
        self.element.pop();
    }
}

struct Walk<'a> {
    path: &'a [String],
    /// How many names of the path lead here.
    depth: usize,
    seen: &'a mut Seen,
    each: &'a mut dyn FnMut(Placed<'_>),
}

/// Whether two names differ in nothing but case.
fn same_but_for_case(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b) || (!(a.is_ascii() && b.is_ascii()) && a.to_lowercase() == b.to_lowercase())
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Walk<'_> {
    fn is_top(&self) -> bool {
        self.depth == 0
    }

    fn leaf<E: serde::de::Error>(self, value: Value<'_>) -> Result<(), E> {
        if self.is_top() {
            return Err(E::custom("no object"));
        }
        if self.path.is_empty() {
            (self.each)(Placed { value, element: &self.seen.place.element });
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut exact, mut misspelt) = (false, false);
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.path.split_first() {
                Some((name, rest)) if *name == key => {
                    exact = true;
                    self.seen.first_name |= self.depth == 0;
                    let depth = self.depth + 1;
                    map.next_value_seed(Walk { path: rest, depth, seen: self.seen, each: self.each })?;
                }
                Some((name, _)) => {
                    misspelt |= same_but_for_case(name, &key);
                    map.next_value::<IgnoredAny>()?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        self.seen.misspelt |= misspelt && !exact;
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        if self.is_top() {
            return Err(A::Error::custom("no object"));
        }
        loop {
            self.seen.place.enter(self.depth);
            let element = Walk { path: self.path, depth: self.depth, seen: self.seen, each: self.each };
            let more = elements.next_element_seed(element)?;
            self.seen.place.leave();
            if more.is_none() {
                return Ok(());
            }
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.leaf(Value::Text(text))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        self.leaf(Value::Integer(number.into()))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.leaf(Value::Integer(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        // What RFC 8259 (section 6) has every reader make of a number with a fraction. Beyond it whole numbers have lost digits, and
        // would be taken for their neighbours.
        let is_exact = number.abs() < FLOAT_IS_EXACT_BELOW;
        self.leaf(if is_exact { Value::Float(number) } else { Value::Other })
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.leaf(Value::Other)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        if self.is_top() { Err(E::custom("no object")) } else { Ok(()) }
    }
}

/// 2 to the 53: every whole number below is one that a float can hold.
const FLOAT_IS_EXACT_BELOW: f64 = 9_007_199_254_740_992.0;

/// Where the values that `path` reaches stand in the line, ready to be replaced from the last to the first.
pub fn spans(line: &Line<'_>, path: &ColumnPath) -> Result<Vec<Range<usize>>, FormatError> {
    let mut scanner = Scanner::of(line, path);
    scanner.scan(line, path)?;
    Ok(scanner.found.into_iter().map(|(span, _)| span).collect())
}

/// Walks JSON that was parsed before, only to learn where values stand.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    found: Vec<(Range<usize>, Element)>,
    place: Place,
    /// How many names the whole path has.
    names: usize,
    first_name: bool,
    ambiguous: bool,
    /// Objects and arrays around the place.
    depth: usize,
    too_deep: bool,
}

/// Nesting beyond it is refused, as the parser refuses it: the walk would use up the stack, which ends the program.
const DEPTH_MAX: usize = 127;

impl<'a> Scanner<'a> {
    fn of(line: &Line<'a>, path: &ColumnPath) -> Self {
        let (at, names) = (line.raw.len() - line.json().len(), path.0.len());
        Scanner {
            bytes: line.raw,
            at,
            found: Vec::new(),
            place: Place::default(),
            names,
            first_name: false,
            ambiguous: false,
            depth: 0,
            too_deep: false,
        }
    }

    fn scan(&mut self, line: &Line<'_>, path: &ColumnPath) -> Result<(), FormatError> {
        let walked = self.value(&path.0);
        if self.ambiguous {
            return Err(FormatError::Unsupported(NoRoute::Ambiguous(path.clone()).to_string()));
        }
        if self.too_deep {
            let reason = format!("line {} is nested more than {DEPTH_MAX} deep", line.number);
            return Err(FormatError::Unsupported(reason));
        }
        walked.ok_or_else(|| FormatError::Corrupt(format!("line {} is no JSON object", line.number)))
    }

    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at)?.is_ascii_whitespace() {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn value(&mut self, path: &[String]) -> Option<()> {
        let (first, start) = (self.peek()?, self.at);
        match first {
            b'{' | b'[' if self.depth == DEPTH_MAX => {
                self.too_deep = true;
                return None;
            }
            b'{' | b'[' => {
                self.depth += 1;
                if first == b'{' {
                    self.object(path)?
                } else {
                    self.array(path)?
                }
                self.depth -= 1;
            }
            b'"' => self.string().map(|_| ())?,
            _ => {
                while self
                    .bytes
                    .get(self.at)
                    .is_some_and(|byte| !matches!(byte, b',' | b'}' | b']') && !byte.is_ascii_whitespace())
                {
                    self.at += 1;
                }
            }
        }
        // A null stays; arrays gave their elements already.
        if path.is_empty() && first != b'[' && first != b'n' {
            self.found.push((start..self.at, self.place.element.clone()));
        }
        Some(())
    }

    /// The key and the colon.
    fn key(&mut self) -> Option<String> {
        let key = self.string()?;
        let key = serde_json::from_slice(&self.bytes[key]).ok()?;
        if self.peek()? != b':' {
            return None;
        }
        self.at += 1;
        Some(key)
    }

    /// The key of the object that begins here which `name` means: the exact one, else the only one that differs in case alone.
    fn meant(&mut self, name: &str) -> Option<Option<String>> {
        let start = self.at;
        let mut misspelt: Vec<String> = Vec::new();
        while self.peek()? != b'}' {
            let key = self.key()?;
            if key == name {
                self.at = start;
                return Some(Some(key));
            }
            if same_but_for_case(name, &key) && !misspelt.contains(&key) {
                misspelt.push(key);
            }
            self.skip()?;
            if self.peek()? == b',' {
                self.at += 1;
            }
        }
        self.at = start;
        self.ambiguous |= misspelt.len() > 1;
        Some(misspelt.pop())
    }

    fn object(&mut self, path: &[String]) -> Option<()> {
        self.at += 1;
        let meant = match path.first() {
            Some(name) => self.meant(name)?,
            None => None,
        };
        self.first_name |= meant.is_some() && path.len() == self.names;
        while self.peek()? != b'}' {
            let key = self.key()?;
            match path.split_first() {
                Some((_, rest)) if meant.as_ref() == Some(&key) => self.value(rest)?,
                // A path that no key below can continue.
                _ => self.skip()?,
            }
            if self.peek()? == b',' {
                self.at += 1;
            }
        }
        self.at += 1;
        Some(())
    }

    fn array(&mut self, path: &[String]) -> Option<()> {
        self.at += 1;
        while self.peek()? != b']' {
            self.place.enter(self.names - path.len());
            self.value(path)?;
            self.place.leave();
            if self.peek()? == b',' {
                self.at += 1;
            }
        }
        self.at += 1;
        Some(())
    }

    fn skip(&mut self) -> Option<()> {
        let found = self.found.len();
        self.value(&[])?;
        self.found.truncate(found);
        Some(())
    }

    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        if self.peek()? != b'"' {
            return None;
        }
        let start = start.max(self.at);
        self.at += 1;
        loop {
            match self.bytes.get(self.at)? {
                b'\\' => self.at += 2,
                b'"' => break,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(start..self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_meant_exactly_or_by_case_when_alone() {
        for (line, path, wish) in [
            (r#"{"email": "a", "EMAIL": "b"}"#, "email", Some("a")),
            (r#"{"EMAIL": "b", "id": 1}"#, "email", Some("b")),
            (r#"{"eMail": "b", "eMail": "c"}"#, "email", Some("b c")),
            (r#"{"EMAIL": "a", "eMail": "b"}"#, "email", None),
            (r#"{"User": {"Email": "a"}}"#, "user.email", Some("a")),
            (r#"{"user": [{"Email": "a"}, {"x": {"email": "b"}}]}"#, "user.email", Some("a")),
            (r#"{"ÉMAIL": "a"}"#, "émail", Some("a")),
            (r#"{"mail": "a"}"#, "email", Some("")),
        ] {
            let (path, line) = (ColumnPath::parse(path).unwrap(), Line { raw: line.as_bytes(), number: 1 });
            let mut found: Vec<String> = Vec::new();
            let walked = values(&line, &path, &mut |placed| match placed.value {
                Value::Text(text) => found.push(text.to_owned()),
                _ => panic!("no text in {path}"),
            });
            let text = String::from_utf8_lossy(line.raw);
            assert_eq!(walked.ok().map(|_| found.join(" ")).as_deref(), wish, "{text}");
            let texts = |spans: Vec<Range<usize>>| -> String {
                spans
                    .iter()
                    .map(|span| String::from_utf8_lossy(&line.raw[span.start + 1..span.end - 1]))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            assert_eq!(spans(&line, &path).ok().map(texts).as_deref(), wish, "{text}");
        }
    }

    #[test]
    fn a_whole_number_with_a_fraction_is_itself_and_not_its_neighbour() {
        let path = ColumnPath::parse("uid").unwrap();
        let whole = (0..4000_i64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) >> 11).map(i64::abs);
        for number in whole.chain([7_336_156_665_533_964, (1 << 53) - 1]) {
            let raw = format!("{{\"uid\": {number}.0}}");
            let mut found = Vec::new();
            let line = Line { raw: raw.as_bytes(), number: 1 };
            values(&line, &path, &mut |placed| match placed.value {
                Value::Float(float) => found.push(float.to_string()),
                _ => panic!("{number} is no float"),
            })
            .unwrap();
            assert_eq!(found, [number.to_string()]);
        }
    }

    #[test]
    fn what_is_nested_too_deep_is_refused_and_ends_no_stack() {
        let path = ColumnPath::parse("email").unwrap();
        for (arrays, is_read) in [(126, true), (127, false), (1_000_000, false)] {
            let raw = format!("{{\"a\": {}{}, \"EMAIL\": 1}}", "[".repeat(arrays), "]".repeat(arrays));
            let line = Line { raw: raw.as_bytes(), number: 1 };
            let found = spans(&line, &path).map(|spans| spans.len());
            assert_eq!(found.is_ok_and(|found| found == 1), is_read, "{arrays}");
            assert_eq!(values(&line, &path, &mut |_| {}).is_ok(), is_read, "{arrays}");
        }
    }

    #[test]
    fn a_number_that_has_lost_digits_is_not_compared() {
        for (number, is_read) in [
            ("7", true),
            ("4.5", true),
            ("9007199254740991.0", true),
            ("100000000000000000001", false),
            ("-100000000000000000001", false),
            ("9007199254740993.0", false),
            ("1e300", false),
        ] {
            let raw = format!("{{\"id\": {number}}}");
            let line = Line { raw: raw.as_bytes(), number: 1 };
            let mut read = None;
            let path = ColumnPath::parse("id").unwrap();
            values(&line, &path, &mut |placed| read = Some(!matches!(placed.value, Value::Other))).unwrap();
            assert_eq!(read, Some(is_read), "{number}");
        }
    }
}
