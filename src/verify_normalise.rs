//! The verifier's own canonical forms, as Polars expressions over a column, and the keyed fingerprints it compares.
//!
//! Written apart from `identifier.rs` on purpose: a fault in one normaliser must not hide itself in the other. Only names are
//! shared. Invariant: a value that [`is_canonical`] accepts is one its expression would give back unchanged.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::Md5;
use polars::prelude::*;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_128_with_secret;

use crate::identifier::{DateFormat, HashFunction, Hashed, Kind};
use crate::verify_letters::{date_form, date_pattern, name_form, plain_date_patterns};

/// How a canonical form compares: kind `text` tells numbers from text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Number,
}

/// Calls `take(index, form, canonical)` for each value that holds an identifier, and returns how many held something that is none. Nulls,
/// empty and blank values are neither. Not in the order of the values.
pub fn canonicals(kind: &Kind, values: &Series, take: &mut dyn FnMut(usize, Form, &[u8])) -> PolarsResult<u64> {
    match values.dtype() {
        DataType::Null => Ok(0),
        DataType::String => {
            let mut texts = Texts::new(kind);
            for (index, text) in values.str()?.iter().enumerate() {
                texts.see(index, text.unwrap_or_default(), take)?;
            }
            texts.finish(take)
        }
        DataType::Binary => canonical_bytes(kind, values.binary()?, take),
        DataType::Categorical(..) | DataType::Enum(..) => canonicals(kind, &values.cast(&DataType::String)?, take),
        dtype if dtype.is_primitive_numeric() || dtype.is_decimal() => canonical_numbers(kind, values, take),
        DataType::Date | DataType::Datetime(..) if matches!(kind, Kind::Date { .. }) => canonical_dates(values, take),
        _ => Ok((values.len() - values.null_count()) as u64),
    }
}

/// The same for a column that holds digests: `take` gets the raw digest.
pub fn digests(hashed: Hashed, values: &Series, take: &mut dyn FnMut(usize, &[u8])) -> PolarsResult<u64> {
    let mut not_comparable = 0;
    let mut see = |index: usize, value: Option<&[u8]>, raw: bool| match value.map(|value| spelled(hashed, value, raw)) {
        None | Some(Spelled::Nothing) => {}
        Some(Spelled::Digest(digest)) => take(index, &digest),
        Some(Spelled::Unreadable) => not_comparable += 1,
    };
    match values.dtype() {
        DataType::Null => {}
        DataType::String => {
            values.str()?.iter().enumerate().for_each(|(index, text)| see(index, text.map(str::as_bytes), false));
        }
        DataType::Binary => values.binary()?.iter().enumerate().for_each(|(index, bytes)| see(index, bytes, true)),
        DataType::Categorical(..) | DataType::Enum(..) => {
            return digests(hashed, &values.cast(&DataType::String)?, take);
        }
        _ => not_comparable = (values.len() - values.null_count()) as u64,
    }
    Ok(not_comparable)
}

/// For entries of kind `text`: the number each stands for, where it is a plain decimal.
pub fn plain_numbers(texts: StringChunked) -> PolarsResult<StringChunked> {
    evaluate(texts, without_needless_zeros(only(col("v"), r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?$")))
}

/// Values as text, whatever their type: numbers as plain decimals, and texts that are such numbers too; trimmed. `007` is no number, and
/// another value than `7`. Null for what is blank or no finite number.
pub fn plain_texts(values: &Series) -> PolarsResult<StringChunked> {
    let texts = match values.dtype() {
        dtype if dtype.is_primitive_numeric() || dtype.is_decimal() => return number_texts(values),
        _ => values.cast(&DataType::String)?,
    };
    let trimmed = texts.str()?.iter().map(|text| text.map(str::trim).filter(|text| !text.is_empty()));
    let trimmed: StringChunked = trimmed.collect();
    let numbers = plain_numbers(trimmed.clone())?;
    Ok(trimmed.iter().zip(numbers.iter()).map(|(text, number)| number.or(text)).collect())
}

/// The hash function behind a spelling.
pub fn function_of(hashed: Hashed) -> HashFunction {
    match hashed {
        Hashed::Sha256Hex | Hashed::Sha256Base64 => HashFunction::Sha256,
        Hashed::Md5Hex => HashFunction::Md5,
        Hashed::Sha1Hex => HashFunction::Sha1,
    }
}

/// The raw digest of a canonical form.
pub fn digest_of(function: HashFunction, canonical: &[u8]) -> Vec<u8> {
    match function {
        HashFunction::Sha256 => Sha256::digest(canonical).to_vec(),
        HashFunction::Md5 => Md5::digest(canonical).to_vec(),
        HashFunction::Sha1 => Sha1::digest(canonical).to_vec(),
    }
}

/// Keyed 128-bit fingerprints: the key is drawn anew for every run, so that no file can be made to collide, and what kind of thing is
/// meant is part of the key, so that a number never equals a text.
pub struct Fingerprints {
    text: Secret,
    number: Secret,
    sha256: Secret,
    md5: Secret,
    sha1: Secret,
    row: Secret,
}

/// What keys an XXH3 of 128 bits. Nobody outside learns a fingerprint, so nobody can look for two values of one, and that two meet by
/// chance has a probability of 2^-128.
type Secret = [u8; 192];

impl Fingerprints {
    /// `seed` must be random.
    pub fn new(seed: [u8; 16]) -> Self {
        let keyed = |purpose: u8| {
            let mut secret = [0; 192];
            for (number, piece) in secret.chunks_mut(32).enumerate() {
                let digest = Sha256::new().chain_update(seed).chain_update([purpose, number as u8]).finalize();
                piece.copy_from_slice(&digest);
            }
            secret
        };
        Fingerprints {
            text: keyed(1),
            number: keyed(2),
            sha256: keyed(3),
            md5: keyed(4),
            sha1: keyed(5),
            row: keyed(6),
        }
    }

    pub fn canonical(&self, form: Form, canonical: &[u8]) -> u128 {
        match form {
            Form::Text => number(&self.text, canonical),
            Form::Number => number(&self.number, canonical),
        }
    }

    pub fn digest(&self, function: HashFunction, digest: &[u8]) -> u128 {
        match function {
            HashFunction::Sha256 => number(&self.sha256, digest),
            HashFunction::Md5 => number(&self.md5, digest),
            HashFunction::Sha1 => number(&self.sha1, digest),
        }
    }

    /// Of several values that stand in one row, in this order.
    pub fn row(&self, parts: &[u128]) -> u128 {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_le_bytes()).collect();
        number(&self.row, &bytes)
    }
}

fn number(secret: &Secret, bytes: &[u8]) -> u128 {
    xxh3_128_with_secret(bytes, secret)
}

/// Text values of one column: what is canonical already is taken at once, the rest goes through the kind's expression together.
struct Texts<'a> {
    kind: &'a Kind,
    waiting: Vec<(usize, &'a str)>,
    not_comparable: u64,
}

/// How many values wait for the expression, at most: it makes several copies of each.
const WAITING_MAX: usize = 1 << 16;

impl<'a> Texts<'a> {
    fn new(kind: &'a Kind) -> Self {
        Texts { kind, waiting: Vec::new(), not_comparable: 0 }
    }

    fn see(&mut self, index: usize, text: &'a str, take: &mut dyn FnMut(usize, Form, &[u8])) -> PolarsResult<()> {
        if is_canonical(self.kind, text) {
            take(index, Form::Text, text.as_bytes());
        } else if !text.trim().is_empty() {
            self.waiting.push((index, text));
        }
        if self.waiting.len() >= WAITING_MAX { self.evaluate_waiting(take) } else { Ok(()) }
    }

    fn evaluate_waiting(&mut self, take: &mut dyn FnMut(usize, Form, &[u8])) -> PolarsResult<()> {
        let raw = StringChunked::from_iter_values("v".into(), self.waiting.iter().map(|(_, text)| *text));
        for ((index, _), canonical) in self.waiting.iter().zip(evaluate(raw, rule(self.kind))?.iter()) {
            match canonical {
                Some(canonical) => take(*index, Form::Text, canonical.as_bytes()),
                None => self.not_comparable += 1,
            }
        }
        self.waiting.clear();
        Ok(())
    }

    /// How many values held something that is no identifier.
    fn finish(mut self, take: &mut dyn FnMut(usize, Form, &[u8])) -> PolarsResult<u64> {
        if !self.waiting.is_empty() {
            self.evaluate_waiting(take)?;
        }
        Ok(self.not_comparable)
    }
}

/// Whether `text` is its own canonical form: most values are, and the expressions cost ten times as much as this look.
fn is_canonical(kind: &Kind, text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'z');
    match kind {
        Kind::Text => !bytes.is_empty(),
        Kind::Email => {
            let at = memchr::memchr(b'@', bytes);
            at.is_some_and(|at| at > 0 && at + 1 < bytes.len()) && is_printed_without_capitals(bytes)
        }
        Kind::Phone => (1..=10).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_digit),
        Kind::Maid => bytes.len() == 32 && bytes.iter().all(hex),
        Kind::Uuid => {
            let hyphen = |index: usize| matches!(index, 8 | 13 | 18 | 23);
            bytes.len() == 36
                && bytes.iter().enumerate().all(|(i, byte)| if hyphen(i) { *byte == b'-' } else { hex(byte) })
        }
        Kind::Ip => text.parse::<Ipv4Addr>().is_ok(),
        Kind::Integer => {
            bytes == b"0" || (matches!(bytes, [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit)))
        }
        Kind::Vin => bytes.len() == 17 && bytes.iter().all(lower),
        Kind::Zip => (1..=5).contains(&bytes.len()) && bytes[0] != b'0' && bytes.iter().all(lower),
        Kind::Ctvid => (8..=32).contains(&bytes.len()) && bytes.iter().all(lower),
        Kind::PhoneE164 { .. } | Kind::Name | Kind::Date { .. } | Kind::Ndz | Kind::NameVin => false,
    }
}

/// Sixteen bytes at a time, without a way out in between, as processors like it.
fn is_printed_without_capitals(bytes: &[u8]) -> bool {
    let is_unfit = |byte: &u8| byte.wrapping_sub(b'!') > b'~' - b'!' || byte.is_ascii_uppercase();
    let any_unfit = |piece: &[u8; 16]| piece.iter().fold(false, |any, byte| any | is_unfit(byte));
    let (pieces, rest) = bytes.as_chunks::<16>();
    match bytes.last_chunk::<16>() {
        // The end may be looked at twice.
        Some(end) => !pieces.iter().fold(any_unfit(end), |any, piece| any | any_unfit(piece)),
        None => !rest.iter().any(is_unfit),
    }
}

/// The canonical form of column `v` as an expression; null where there is none.
fn rule(kind: &Kind) -> Expr {
    let v = || col("v");
    let trimmed = || replaced(v(), r"^\s+|\s+$", "");
    match kind {
        Kind::Text => only(v(), r"(?s)^.+$"),
        Kind::Email => whole(replaced(v(), r"\s+", "").str().to_lowercase(), r"(?s)^[^@]+@.+$"),
        Kind::Phone => {
            // The zeros of a number that was written as a float are none of its digits.
            let unfloated = replaced(v(), r"^\s*\+?(?:([0-9]+)\.0|([0-9]{10,})\.0+)\s*$", "${1}${2}");
            only(replaced(unfloated, "[^0-9]+", ""), "[0-9]{1,10}$")
        }
        Kind::PhoneE164 { region } => {
            let region = region.as_ref().and_then(|region| region.parse().ok());
            each_distinct(v(), move |text| international(region, text))
        }
        Kind::Maid => only(replaced(v(), "[^0-9A-Fa-f]+", "").str().to_lowercase(), "^[0-9a-f]{32}$"),
        Kind::Uuid => {
            let hyphenated = "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}";
            let either = format!("(?:{hyphenated}|[0-9A-Fa-f]{{32}})");
            let shape = format!(r"^(?:urn:uuid:|URN:UUID:)?(?:{either}|\{{{either}\}})$");
            let digits = replaced(only(trimmed(), &shape), "^(?:urn:uuid:|URN:UUID:)|[{}-]", "");
            replaced(digits.str().to_lowercase(), "^(.{8})(.{4})(.{4})(.{4})(.{12})$", "${1}-${2}-${3}-${4}-${5}")
        }
        Kind::Ip => each_distinct(trimmed(), address),
        Kind::Integer => {
            let whole = replaced(only(trimmed(), r"^[+-]?[0-9]+(?:\.0+)?$"), r"\.0+$", "");
            let digits = replaced(whole, r"^\+?(-?)0*([0-9])", "${1}${2}");
            replaced(digits, "^-0$", "0")
        }
        Kind::Vin => only(replaced(v(), "[^0-9A-Za-z]+", "").str().to_lowercase(), "^[0-9a-z]{17}$"),
        Kind::Zip => {
            // The +4 goes first, then the zeros, then all but five characters (regulation.md 1.4).
            let base = replaced(trimmed(), "(?s)^([^-]*)-[0-9]{4}$", "${1}");
            let bare = replaced(base, "[^0-9A-Za-z]+", "").str().to_lowercase();
            only(replaced(bare, "^0+", ""), "^[0-9a-z]{1,5}")
        }
        Kind::Name => each_distinct(v(), name_form),
        Kind::Date { format: None } => {
            let patterns = plain_date_patterns();
            each_distinct(v(), move |text| patterns.iter().find_map(|pattern| date_form(pattern, text)))
        }
        Kind::Date { format: Some(format) } => {
            let pattern =
                date_pattern(DateFormat::as_str(format)).expect("every format the job file may name is a pattern");
            each_distinct(v(), move |text| date_form(&pattern, text))
        }
        Kind::Ctvid => only(replaced(v(), "[^0-9A-Za-z]+", "").str().to_lowercase(), "^[0-9a-z]{8,32}$"),
        // As many Base64 SHA-256 one after the other as there are parts.
        Kind::Ndz => only(trimmed(), "^(?:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=){4}$"),
        Kind::NameVin => only(trimmed(), "^(?:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=){3}$"),
    }
}

/// What one value adds to an identifier that is made of several (regulation.md 1.3, NDZ and NameVIN).
pub fn joined_part(canonical: &[u8]) -> String {
    BASE64.encode(digest_of(HashFunction::Sha256, canonical))
}

/// Days as `YYYYMMDD`. A moment in a time zone is a certain day only at midnight.
fn canonical_dates(values: &Series, take: &mut dyn FnMut(usize, Form, &[u8])) -> PolarsResult<u64> {
    let days = match values.dtype() {
        DataType::Datetime(unit, zone) => {
            let a_day = 86_400
                * match unit {
                    TimeUnit::Milliseconds => 1_000,
                    TimeUnit::Microseconds => 1_000_000,
                    TimeUnit::Nanoseconds => 1_000_000_000,
                };
            let moments = values.to_physical_repr().into_owned();
            let whole = |moment: i64| zone.is_none() || moment % a_day == 0;
            let days = moments.i64()?.iter().map(|moment| {
                moment.filter(|moment| whole(*moment)).and_then(|moment| i32::try_from(moment.div_euclid(a_day)).ok())
            });
            let days: Int32Chunked = days.collect();
            days.into_series()
        }
        _ => values.to_physical_repr().into_owned(),
    };
    let dates = days.cast(&DataType::Date)?.date()?.strftime("%Y%m%d")?;
    let mut not_comparable = 0;
    for (index, date) in dates.iter().enumerate() {
        match date.filter(|date| date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit())) {
            Some(date) => take(index, Form::Text, date.as_bytes()),
            None => not_comparable += u64::from(!values.get(index)?.is_null()),
        }
    }
    Ok(not_comparable)
}

/// Evaluates an expression over column `v`.
fn evaluate(texts: StringChunked, rule: Expr) -> PolarsResult<StringChunked> {
    let frame = texts.with_name("v".into()).into_series().into_frame();
    let out = frame.lazy().select([rule.alias("v")]).collect()?;
    Ok(out.column("v")?.str()?.clone())
}

fn replaced(input: Expr, pattern: &'static str, with: &'static str) -> Expr {
    input.map(
        move |column| Ok(column.str()?.replace_all(pattern, with)?.into_column()),
        |_, field| Ok(Field::new(field.name().clone(), DataType::String)),
    )
}

/// The texts that match as they are, for a pattern from start to end; null for the others. Much cheaper than [`only`].
fn whole(input: Expr, pattern: &'static str) -> Expr {
    input.map(
        move |column| {
            let texts = column.str()?;
            let fits = texts.contains(pattern, true)?;
            let kept = texts.iter().zip(fits.iter()).map(|(text, fits)| text.filter(|_| fits == Some(true)));
            Ok(kept.collect::<StringChunked>().with_name(column.name().clone()).into_column())
        },
        |_, field| Ok(Field::new(field.name().clone(), DataType::String)),
    )
}

/// The part that matches; null when none does.
fn only(input: Expr, pattern: &str) -> Expr {
    input.str().extract(lit(format!("({pattern})")), 1)
}

/// For rules that are no regular expression: each distinct text is judged once.
fn each_distinct(input: Expr, judge: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Expr {
    input.map(
        move |column| {
            let mut known: HashMap<&str, Option<String>> = HashMap::new();
            let out: StringChunked = column
                .str()?
                .iter()
                .map(|text| text.and_then(|text| known.entry(text).or_insert_with(|| judge(text)).clone()))
                .collect();
            Ok(out.with_name(column.name().clone()).into_column())
        },
        |_, field| Ok(Field::new(field.name().clone(), DataType::String)),
    )
}

fn international(region: Option<phonenumber::country::Id>, text: &str) -> Option<String> {
    let number = phonenumber::parse(region, text.trim()).ok().filter(phonenumber::is_valid)?;
    Some(number.format().mode(phonenumber::Mode::E164).to_string())
}

/// An IPv4-mapped IPv6 address is the IPv4 address it holds; `Display` of the rest is RFC 5952.
fn address(text: &str) -> Option<String> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Some(address.to_string());
    }
    let address = text.parse::<Ipv6Addr>().ok()?;
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            format!("{a}.{b}.{c}.{d}")
        }
        _ => address.to_string(),
    })
}

fn canonical_bytes(kind: &Kind, values: &BinaryChunked, take: &mut dyn FnMut(usize, Form, &[u8])) -> PolarsResult<u64> {
    let mut texts = Texts::new(kind);
    let mut not_comparable = 0;
    for (index, bytes) in values.iter().enumerate() {
        let bytes = bytes.unwrap_or_default();
        match (kind, bytes.len()) {
            (_, 0) => {}
            (Kind::Text, _) => take(index, Form::Text, bytes),
            (Kind::Uuid, 16) => take(index, Form::Text, raw_uuid(bytes).as_bytes()),
            (Kind::Maid, 16) => take(index, Form::Text, hex::encode(bytes).as_bytes()),
            _ => match std::str::from_utf8(bytes) {
                Ok(text) => texts.see(index, text, take)?,
                Err(_) => not_comparable += 1,
            },
        }
    }
    Ok(not_comparable + texts.finish(take)?)
}

fn raw_uuid(bytes: &[u8]) -> String {
    let part = |range: std::ops::Range<usize>| hex::encode(&bytes[range]);
    [part(0..4), part(4..6), part(6..8), part(8..10), part(10..16)].join("-")
}

fn canonical_numbers(kind: &Kind, values: &Series, take: &mut dyn FnMut(usize, Form, &[u8])) -> PolarsResult<u64> {
    let numbers = number_texts(values)?;
    let mut texts = Texts::new(kind);
    let mut not_comparable = 0;
    for (index, number) in numbers.iter().enumerate() {
        let Some(number) = number else {
            not_comparable += u64::from(!values.get(index)?.is_null());
            continue;
        };
        let (whole, natural) = (!number.contains('.'), !number.contains(['.', '-']));
        match kind {
            Kind::Text => take(index, Form::Number, number.as_bytes()),
            Kind::Integer if whole => take(index, Form::Text, number.as_bytes()),
            Kind::Phone | Kind::PhoneE164 { .. } if natural => texts.see(index, number, take)?,
            Kind::Zip if natural && number.len() <= 5 => texts.see(index, number, take)?,
            Kind::Date { format: None } if natural => texts.see(index, number, take)?,
            Kind::Integer
            | Kind::Phone
            | Kind::PhoneE164 { .. }
            | Kind::Zip
            | Kind::Email
            | Kind::Maid
            | Kind::Uuid
            | Kind::Ip
            | Kind::Vin
            | Kind::Name
            | Kind::Date { .. }
            | Kind::Ctvid
            | Kind::Ndz
            | Kind::NameVin => not_comparable += 1,
        }
    }
    Ok(not_comparable + texts.finish(take)?)
}

/// Plain decimal text of numbers of any width; null for what is no finite number.
fn number_texts(values: &Series) -> PolarsResult<StringChunked> {
    match values.dtype() {
        // Display of a finite float is its shortest exact decimal; Polars' own cast would write exponents.
        DataType::Float32 => {
            let texts = values.f32()?.iter().map(|float| float.filter(|f| f.is_finite()).map(|f| f.to_string()));
            evaluate(texts.collect(), without_needless_zeros(col("v")))
        }
        DataType::Float64 => {
            let texts = values.f64()?.iter().map(|float| float.filter(|f| f.is_finite()).map(|f| f.to_string()));
            evaluate(texts.collect(), without_needless_zeros(col("v")))
        }
        dtype if dtype.is_decimal() => {
            evaluate(values.cast(&DataType::String)?.str()?.clone(), without_needless_zeros(col("v")))
        }
        _ => Ok(values.cast(&DataType::String)?.str()?.clone()),
    }
}

/// `1.50` becomes `1.5`, `2.00` becomes `2`, `-0` becomes `0`.
fn without_needless_zeros(input: Expr) -> Expr {
    let cut = replaced(input, r"(\.[0-9]*[1-9])0+$", "${1}");
    replaced(replaced(cut, r"\.0+$", ""), "^-0$", "0")
}

enum Spelled {
    Nothing,
    Digest(Vec<u8>),
    Unreadable,
}

/// The digest a value spells; `raw` values may also be the digest itself.
fn spelled(hashed: Hashed, value: &[u8], raw: bool) -> Spelled {
    let length = match function_of(hashed) {
        HashFunction::Sha256 => 32,
        HashFunction::Sha1 => 20,
        HashFunction::Md5 => 16,
    };
    if raw && value.len() == length {
        return Spelled::Digest(value.to_vec());
    }
    let Ok(text) = std::str::from_utf8(value) else {
        return Spelled::Unreadable;
    };
    let text = text.trim();
    if text.is_empty() {
        return Spelled::Nothing;
    }
    let digest = match hashed {
        Hashed::Sha256Base64 => BASE64.decode(text).ok(),
        Hashed::Sha256Hex | Hashed::Md5Hex | Hashed::Sha1Hex => hex::decode(text).ok(),
    };
    digest.filter(|digest| digest.len() == length).map_or(Spelled::Unreadable, Spelled::Digest)
}

/// Known answers: DROP's worked examples (regulation.md 1.4; SHA-256 in Base64), and RFC 9562 and RFC 5952 for the kinds DROP has not.
const VECTORS: [(&str, &str, &str, &str); 16] = [
    ("zip", "91790-3771", "91790", "2FPZucR4x7U8KlM+SFAX4LPGhwNz/PIZUCSUdDh0o/s="),
    ("zip", "M1B 1A1", "m1b1a", "n8L9q8mVeT6Xt9/EeUNiTukGDrkbPJ3DvOEx14uElxk="),
    ("zip", "00712345", "71234", "aeNUYKh7Xw5sqpxSbSP9eOHsj6iXewbUyavv89DIuhQ="),
    ("email", "Anna.Smith@Domain.com", "anna.smith@domain.com", "KA18MT/ph6IHYjzT9zwETySDQyvSh87YuoSBpOQtkhE="),
    ("phone", "+1(415)555-9317", "4155559317", "vGM7y5n+hBXRSEAklhHDPCbysyNgYTmXdMcagGUOY8E="),
    ("phone", "+84(90)123 4567", "4901234567", "ptzVkgbv9DonwvPCHmXmJ2SEOaolSh37z3ZzY/Gmm+U="),
    ("vin", "1HGCM82633A004352", "1hgcm82633a004352", "iNswy1m+0VSt8jAfFrvaiQ1R/0HAbgSwNGkwqo6QBss="),
    (
        "maid",
        "A3F1C2D4-5678-90AB-CDEF-1234567890AB",
        "a3f1c2d4567890abcdef1234567890ab",
        "250KY6lOgzYUB3EHrkbDCE2kMEZQE69SF38muhoDudI=",
    ),
    ("text", "juanpablo", "juanpablo", "91hIbrbzNeqHs3o81O5yNrXUj7wDd2shvZ6THKi9qz8="),
    ("name", "Juan Pablo", "juanpablo", "91hIbrbzNeqHs3o81O5yNrXUj7wDd2shvZ6THKi9qz8="),
    ("name", "Mart\u{ed}nez", "martinez", "2wRPGbwBNxhShjRczx8GfS2c4cjvs4NJskeWloUNtp8="),
    ("date", "1776-07-04", "17760704", "skXYXxBER6HQTZ3rXSZH1wVGLQ054mS5rbR/bwvzy4I="),
    ("ctvid", "SmartTV_9F8E7D6C", "smarttv9f8e7d6c", "d9fxuTIrKksBXYDlaWsvQbcyUUfCbUx7v78gd+KP+tc="),
    ("uuid", "{F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6}", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", ""),
    ("ip", "2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1", ""),
    ("integer", "+0012345", "12345", ""),
];

/// Runs the known answers through the expressions and every spelling of a hash. The error names the kind that failed.
pub fn self_test() -> Result<(), String> {
    for (name, raw, wanted, base64) in VECTORS {
        let kind = kind_named(name);
        let canonical = one_canonical(&kind, raw).map_err(|_| format!("the rule of {name} cannot be evaluated"))?;
        if canonical.as_deref() != Some(wanted) {
            return Err(format!("the canonical form of {name} is not the known answer"));
        }
        let digest = digest_of(HashFunction::Sha256, wanted.as_bytes());
        if !base64.is_empty() && BASE64.encode(&digest) != base64 {
            return Err(format!("the SHA-256 of {name} is not the known answer"));
        }
        for (hashed, text) in [
            (Hashed::Sha256Base64, BASE64.encode(&digest)),
            (Hashed::Sha256Hex, hex::encode(&digest)),
            (Hashed::Sha256Hex, hex::encode_upper(&digest)),
        ] {
            if !matches!(spelled(hashed, text.as_bytes(), false), Spelled::Digest(read) if read == digest) {
                return Err(format!("a hashed {name} does not read back"));
            }
        }
    }
    // What DROP makes of several columns, by its own worked examples.
    for (parts, base64) in [
        (&["danielle", "johnson", "19850704", "91790"][..], "PQOfn1RffEKmqMmNAzDKKaoZCwxWbQZkQzPWmQo9REA="),
        (&["eve", "genesis", "1hgcm82633a004352"], "rtnDuXIe63jXYQQXW5r07GJ7lSsrib8+46QuKFwkOmk="),
    ] {
        let joined: String = parts.iter().map(|part| joined_part(part.as_bytes())).collect();
        if BASE64.encode(digest_of(HashFunction::Sha256, joined.as_bytes())) != base64 {
            return Err(format!("what {} columns make up is not the known answer", parts.len()));
        }
    }
    // RFC 1321 A.5 and RFC 3174 7.3, of "abc".
    for (function, wanted) in [
        (HashFunction::Md5, "900150983cd24fb0d6963f7d28e17f72"),
        (HashFunction::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
    ] {
        if hex::encode(digest_of(function, b"abc")) != wanted {
            return Err(format!("{wanted} is not what the hash of \"abc\" came out as"));
        }
    }
    Ok(())
}

fn kind_named(name: &str) -> Kind {
    match name {
        "zip" => Kind::Zip,
        "email" => Kind::Email,
        "phone" => Kind::Phone,
        "vin" => Kind::Vin,
        "maid" => Kind::Maid,
        "uuid" => Kind::Uuid,
        "ip" => Kind::Ip,
        "integer" => Kind::Integer,
        "name" => Kind::Name,
        "date" => Kind::Date { format: None },
        "ctvid" => Kind::Ctvid,
        _ => Kind::Text,
    }
}

fn one_canonical(kind: &Kind, raw: &str) -> PolarsResult<Option<String>> {
    let mut found = None;
    canonicals(kind, &Series::new("v".into(), [raw]), &mut |_, _, canonical| {
        found = std::str::from_utf8(canonical).ok().map(str::to_owned);
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::*;

    /// `None`: counted as not comparable. `Some("")`: neither.
    fn check(kind: &Kind, values: Series, wanted: Option<&str>) {
        let mut found = String::new();
        let not_comparable = canonicals(kind, &values, &mut |_, form, canonical| {
            found = format!("{}{}", if form == Form::Number { "#" } else { "" }, String::from_utf8_lossy(canonical));
        })
        .unwrap();
        let got = (not_comparable == 0).then_some(found.as_str());
        assert_eq!(got, wanted, "{kind:?} {}", values.dtype());
    }

    fn text(kind: &Kind, raw: &str, wanted: Option<&str>) {
        check(kind, Series::new("v".into(), [raw]), wanted);
    }

    fn decimal(unscaled: i128, precision: usize, scale: usize) -> Series {
        Int128Chunked::from_vec("v".into(), vec![unscaled]).into_decimal_unchecked(precision, scale).into_series()
    }

    #[test]
    fn texts_reach_their_canonical_form() {
        for (kind, raw, wanted) in [
            (Kind::Email, " An na@Ex\u{a0}ample.COM\t", Some("anna@example.com")),
            (Kind::Email, "STRASSE@B\u{dc}RO.DE", Some("strasse@b\u{fc}ro.de")),
            (Kind::Email, "no-at-sign", None),
            (Kind::Email, "@example.com", None),
            (Kind::Email, "anna@", None),
            (Kind::Email, " \u{a0} ", Some("")),
            (Kind::Phone, "12-34", Some("1234")),
            (Kind::Phone, "none", None),
            (Kind::Phone, " 4155559317.0", Some("4155559317")),
            (Kind::Phone, "555.0000", Some("5550000")),
            (Kind::Phone, "415.555.0", Some("4155550")),
            (Kind::Phone, ".0", Some("0")),
            (Kind::Phone, "+14155559317.0", Some("4155559317")),
            (Kind::Phone, "4155559318.00", Some("4155559318")),
            (Kind::Phone, "4155559318.01", Some("5555931801")),
            (Kind::Phone, "0049 (30) 12345678", Some("3012345678")),
            (Kind::Maid, "a3f1c2d4-5678-90ab-cdef-1234567890a", None),
            (Kind::Uuid, "550E8400E29B41D4A716446655440000", Some("550e8400-e29b-41d4-a716-446655440000")),
            (Kind::Uuid, "urn:uuid:550e8400-e29b-41d4-a716-446655440000", Some("550e8400-e29b-41d4-a716-446655440000")),
            (Kind::Uuid, " {550e8400-e29b-41d4-a716-446655440000}", Some("550e8400-e29b-41d4-a716-446655440000")),
            (Kind::Uuid, "{550e8400-e29b-41d4-a716-446655440000", None),
            (Kind::Uuid, "550e-8400e29b41d4a716446655440000", None),
            (Kind::Ip, "::ffff:192.0.2.1", Some("192.0.2.1")),
            (Kind::Ip, " 2001:DB8:0::1", Some("2001:db8::1")),
            (Kind::Ip, "192.0.2.256", None),
            (Kind::Ip, "192.0.2.01", None),
            (Kind::Integer, "-0012", Some("-12")),
            (Kind::Integer, "-000", Some("0")),
            (Kind::Integer, "042.00", Some("42")),
            (Kind::Integer, "-0.0", Some("0")),
            (Kind::Integer, "1.5", None),
            (Kind::Integer, "1.", None),
            (Kind::Integer, ".0", None),
            (Kind::Integer, "1.0.0", None),
            (Kind::Text, " As Is ", Some(" As Is ")),
            (Kind::Text, "", Some("")),
            (Kind::Zip, "02139-1234", Some("2139")),
            (Kind::Zip, "000", None),
            (Kind::Vin, "1HGCM82633A00435", None),
            (Kind::Name, "D'Angelo", Some("dangelo")),
            (Kind::Name, "...", None),
            (Kind::Ctvid, "ABC-1234", None),
            (Kind::Ctvid, "ABC-12345", Some("abc12345")),
            (Kind::Date { format: None }, "07/04/1985", None),
            (Kind::Date { format: None }, "1985-7-4", None),
            (Kind::Date { format: DateFormat::parse("%m/%d/%Y") }, "7/4/1985", Some("19850704")),
            (Kind::Date { format: DateFormat::parse("%m/%d/%Y") }, "02/29/1985", None),
            (Kind::Date { format: DateFormat::parse("%d-%b-%Y") }, "04-JUL-1985", Some("19850704")),
            (Kind::Ndz, "91hIbrbzNeqHs3o81O5yNrXUj7wDd2shvZ6THKi9qz8=", None),
            (Kind::PhoneE164 { region: Some("DE".into()) }, "030 123456", Some("+4930123456")),
            (Kind::PhoneE164 { region: None }, "+44 20 7946 0958", Some("+442079460958")),
            (Kind::PhoneE164 { region: None }, "020 7946 0958", None),
        ] {
            text(&kind, raw, wanted);
        }
    }

    #[test]
    fn a_value_is_the_same_text_whatever_its_column_is() {
        let one: [(Series, Option<&str>); 8] = [
            (Series::new("v".into(), [1i64]), Some("1")),
            (Series::new("v".into(), [1.0f64]), Some("1")),
            (decimal(100, 9, 2), Some("1")),
            (Series::new("v".into(), ["1 "]), Some("1")),
            (Series::new("v".into(), ["1.0"]), Some("1")),
            (Series::new("v".into(), ["001"]), Some("001")),
            (Series::new("v".into(), ["  "]), None),
            (Series::new("v".into(), [f64::NAN]), None),
        ];
        for (values, wish) in one {
            assert_eq!(plain_texts(&values).unwrap().get(0), wish, "{values:?}");
        }
    }

    #[test]
    fn numbers_compare_by_value_and_other_types_not_at_all() {
        let one = |series: Series| series.with_name("v".into());
        for (kind, values, wanted) in [
            (Kind::Integer, one(Series::from_iter([12345i64])), Some("12345")),
            (Kind::Integer, decimal(1234500, 9, 2), Some("12345")),
            (Kind::Integer, decimal(150, 9, 2), None),
            (Kind::Integer, one(Series::from_iter([12345.0f64])), Some("12345")),
            (Kind::Integer, one(Series::from_iter([12345.0f32])), Some("12345")),
            (Kind::Integer, one(Series::from_iter([u64::MAX])), Some("18446744073709551615")),
            (Kind::Text, decimal(150, 9, 2), Some("#1.5")),
            (Kind::Text, decimal(-5, 9, 3), Some("#-0.005")),
            (Kind::Text, decimal(0, 9, 3), Some("#0")),
            (Kind::Text, decimal(i128::pow(10, 37), 38, 0), Some("#10000000000000000000000000000000000000")),
            (Kind::Text, one(Series::from_iter([0.1f64])), Some("#0.1")),
            (Kind::Text, one(Series::from_iter([-0.0f64])), Some("#0")),
            (Kind::Text, one(Series::from_iter([1e22f64])), Some("#10000000000000000000000")),
            (Kind::Text, one(Series::from_iter([f64::NAN])), None),
            (Kind::Phone, one(Series::from_iter([14155559317i64])), Some("4155559317")),
            (Kind::Phone, one(Series::from_iter([-5i64])), None),
            (Kind::Zip, one(Series::from_iter([2139i32])), Some("2139")),
            (Kind::Zip, one(Series::from_iter([213900i32])), None),
            (Kind::Email, one(Series::from_iter([1i32])), None),
            (Kind::Integer, one(Series::from_iter([true])), None),
            (Kind::Text, one(Series::new_null("v".into(), 1)), Some("")),
            (Kind::Text, one(Series::from_iter([1i32]).cast(&DataType::Date).unwrap()), None),
            (
                Kind::Date { format: None },
                one(Series::from_iter([-1i32]).cast(&DataType::Date).unwrap()),
                Some("19691231"),
            ),
            (Kind::Date { format: None }, one(Series::from_iter([20_000_229i64])), Some("20000229")),
        ] {
            check(&kind, values, wanted);
        }
        let plain =
            |text: &str| plain_numbers(StringChunked::new("v".into(), [text])).unwrap().get(0).map(str::to_owned);
        assert_eq!(plain("1.50").as_deref(), Some("1.5"));
        assert_eq!(plain("-0.0").as_deref(), Some("0"));
        for not_plain in ["007", "1e3", "", ".5", "5.", "+1", " 1", "1\n"] {
            assert_eq!(plain(not_plain), None, "{not_plain}");
        }
    }

    #[test]
    fn bytes_are_read_as_what_they_hold() {
        let uuid = b"\x55\x0e\x84\x00\xe2\x9b\x41\xd4\xa7\x16\x44\x66\x55\x44\x00\x00".as_slice();
        for (kind, bytes, wanted) in [
            (Kind::Uuid, uuid, Some("550e8400-e29b-41d4-a716-446655440000")),
            (Kind::Maid, uuid, Some("550e8400e29b41d4a716446655440000")),
            (Kind::Email, b"A@b.c", Some("a@b.c")),
            (Kind::Email, b"\xff@b.c", None),
            (Kind::Text, b"\xff", Some("\u{fffd}")),
        ] {
            check(&kind, BinaryChunked::from_slice("v".into(), &[bytes]).into_series(), wanted);
        }
    }

    #[test]
    fn digests_are_read_in_their_declared_spelling() {
        let md5 = "900150983cd24fb0d6963f7d28e17f72";
        for (hashed, value, wanted) in [
            (Hashed::Md5Hex, md5.to_owned(), Some(true)),
            (Hashed::Md5Hex, format!(" {} ", md5.to_uppercase()), Some(true)),
            (Hashed::Md5Hex, String::new(), Some(false)),
            (Hashed::Md5Hex, md5[1..].to_owned(), None),
            (Hashed::Sha1Hex, md5.to_owned(), None),
            (Hashed::Sha256Base64, md5.to_owned(), None),
        ] {
            let mut seen = false;
            let values = Series::new("v".into(), [value.as_str()]);
            let not_comparable = digests(hashed, &values, &mut |_, digest| seen = digest == hex::decode(md5).unwrap());
            let got = (not_comparable.unwrap() == 0).then_some(seen);
            assert_eq!(got, wanted, "{hashed:?} {value}");
        }
    }

    #[test]
    fn the_known_answers_hold() {
        assert_eq!(self_test(), Ok(()));
    }

    fn agree(kind: &Kind, raw: &str) {
        let raw_column = StringChunked::new("v".into(), [raw]);
        if is_canonical(kind, raw) {
            assert_eq!(evaluate(raw_column, rule(kind)).unwrap().get(0), Some(raw), "{kind:?} {raw:?}");
        }
    }

    const KINDS: [Kind; 9] =
        [Kind::Email, Kind::Phone, Kind::Maid, Kind::Uuid, Kind::Ip, Kind::Integer, Kind::Text, Kind::Vin, Kind::Zip];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_passes_the_short_cut_is_what_the_expression_gives(raw in any::<String>(), like in "[0-9a-f@.: -]{0,8}[0-9a-z-]{0,36}", hex in "[0-9a-f]{32}") {
            for kind in &KINDS {
                agree(kind, &raw);
                agree(kind, &like);
                agree(kind, &hex);
            }
        }
    }
}
