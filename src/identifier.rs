//! Identifiers: kinds and their canonical forms; with them go [`DateFormat`], [`Hashed`] and [`ColumnPath`], a file each.
//!
//! Canonical forms follow California's DROP documentation v1.2.0 where it defines one (e-mail, phone, MAID, VIN, ZIP, name, date of
//! birth, CTVID, and what it makes of several of them); the others are ours and stated at each kind. The rules are versioned by [`NORMALISER_VERSION`] and proven by known-answer
//! vectors before every job. `verify` must not use this module's rules: it has its own.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::civil::Date;
use sha2::{Digest, Sha256};

pub use crate::column_path::ColumnPath;
pub use crate::date_format::DateFormat;
use crate::date_format::{compact, compact_date, read_date};
pub use crate::hashed::{HashFunction, Hashed};
use crate::name_letters::plain_letters;

/// The version of the canonical forms below; it changes whenever one of them does.
pub const NORMALISER_VERSION: &str = "2 (DROP 1.2.0)";

/// What an identifier identifies a person by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// DROP Email: all white space removed, then lower-cased; must hold an `@` with something on both sides.
    Email,
    /// DROP Phone: digits only, the last ten of them, or all if there are fewer.
    Phone,
    /// E.164 with the leading `+`, parsed with libphonenumber's metadata; `region` (ISO 3166-1 alpha-2) reads national numbers.
    PhoneE164 { region: Option<String> },
    /// DROP MAID: hex digits only, lower case; must be 32 of them.
    Maid,
    /// RFC 9562 text form: lower case, hyphenated; braces, `urn:uuid:` and missing hyphens are accepted.
    Uuid,
    /// RFC 5952 text form of the address; an IPv4-mapped IPv6 address is the IPv4 address.
    Ip,
    /// Decimal digits without leading zeros, a plus sign or a fraction of zeros; compares by value with integer, decimal and float columns.
    Integer,
    /// Compared byte for byte; a numeric column compares by value with an entry that is a plain decimal number.
    Text,
    /// DROP VIN: alphanumerics only, lower case; must be 17 of them.
    Vin,
    /// DROP ZIP: without `+4`, alphanumerics only, lower case, without leading zeros, the first five.
    Zip,
    /// DROP Names: plain letters and digits, see [`crate::name_letters`].
    Name,
    /// DROP DOB: `YYYYMMDD`. Text is read by `format`, without one as `YYYYMMDD` or `YYYY-MM-DD`; date columns need none.
    Date { format: Option<DateFormat> },
    /// DROP CTVID: alphanumerics only, lower case; must be 8 to 32 of them.
    Ctvid,
    /// DROP NDZ: the Base64 SHA-256 of first name, last name, date of birth and ZIP, one after the other.
    Ndz,
    /// DROP NameVIN: the same of first name, last name and VIN.
    NameVin,
}

/// One value of a column, typed as it is stored.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Integer(i128),
    /// `unscaled / 10^scale`
    Decimal {
        unscaled: i128,
        scale: i8,
    },
    Float(f64),
    Float32(f32),
    Date(Date),
    /// A type that holds no identifier of any kind (boolean, date, ...).
    Other,
}

/// What became of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canonical {
    /// The canonical form was written to the buffer.
    Text,
    /// A number's canonical form was written, for kinds that tell numbers from text.
    Number,
    /// Empty or blank: no identifier, and nothing to count.
    Empty,
    /// Holds something, but nothing this kind can read.
    NotComparable,
}

impl Kind {
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Email => "email",
            Kind::Phone => "phone",
            Kind::PhoneE164 { .. } => "phone-e164",
            Kind::Maid => "maid",
            Kind::Uuid => "uuid",
            Kind::Ip => "ip",
            Kind::Integer => "integer",
            Kind::Text => "text",
            Kind::Vin => "vin",
            Kind::Zip => "zip",
            Kind::Name => "name",
            Kind::Date { .. } => "date",
            Kind::Ctvid => "ctvid",
            Kind::Ndz => "ndz",
            Kind::NameVin => "namevin",
        }
    }

    /// The kind as the job file names it; `region` belongs to `phone-e164` alone.
    pub fn parse(name: &str, region: Option<&str>) -> Option<Kind> {
        Some(match name {
            "email" => Kind::Email,
            "phone" => Kind::Phone,
            "phone-e164" => Kind::PhoneE164 { region: region.map(str::to_uppercase) },
            "maid" => Kind::Maid,
            "uuid" => Kind::Uuid,
            "ip" => Kind::Ip,
            "integer" => Kind::Integer,
            "text" => Kind::Text,
            "vin" => Kind::Vin,
            "zip" => Kind::Zip,
            "name" => Kind::Name,
            "date" => Kind::Date { format: None },
            "ctvid" => Kind::Ctvid,
            "ndz" => Kind::Ndz,
            "namevin" => Kind::NameVin,
            _ => return None,
        })
    }

    /// All kinds, for messages.
    pub const NAMES: [&'static str; 15] = [
        "email",
        "phone",
        "phone-e164",
        "maid",
        "uuid",
        "ip",
        "integer",
        "text",
        "vin",
        "zip",
        "name",
        "date",
        "ctvid",
        "ndz",
        "namevin",
    ];

    /// The kinds whose canonical forms, in this order, make up an identifier of this kind; empty for a kind of one value.
    pub fn parts(&self) -> &'static [Kind] {
        const NDZ: [Kind; 4] = [Kind::Name, Kind::Name, Kind::Date { format: None }, Kind::Zip];
        const NAME_VIN: [Kind; 3] = [Kind::Name, Kind::Name, Kind::Vin];
        match self {
            Kind::Ndz => &NDZ,
            Kind::NameVin => &NAME_VIN,
            Kind::Email
            | Kind::Phone
            | Kind::PhoneE164 { .. }
            | Kind::Maid
            | Kind::Uuid
            | Kind::Ip
            | Kind::Integer
            | Kind::Text
            | Kind::Vin
            | Kind::Zip
            | Kind::Name
            | Kind::Date { .. }
            | Kind::Ctvid => &[],
        }
    }

    /// A canonical form as a plain column of this kind may write it.
    pub fn written(&self, canonical: &str) -> String {
        match self {
            Kind::Date { format: Some(format) } => compact_date(canonical)
                .map_or_else(|| canonical.to_owned(), |date| date.strftime(format.as_str()).to_string()),
            Kind::Email
            | Kind::Phone
            | Kind::PhoneE164 { .. }
            | Kind::Maid
            | Kind::Uuid
            | Kind::Ip
            | Kind::Integer
            | Kind::Text
            | Kind::Vin
            | Kind::Zip
            | Kind::Name
            | Kind::Date { .. }
            | Kind::Ctvid
            | Kind::Ndz
            | Kind::NameVin => canonical.to_owned(),
        }
    }

    /// Whether an identifier of `self` in a list can be found in a column of `other`: the region only says how to read.
    pub fn same_family(&self, other: &Kind) -> bool {
        self.name() == other.name()
    }

    /// Writes the canonical form of `value` into `out` (cleared first).
    pub fn canonicalise(&self, value: Value<'_>, out: &mut Vec<u8>) -> Canonical {
        out.clear();
        match value {
            Value::Text(text) => self.canonicalise_text(text, out),
            Value::Bytes(bytes) => self.canonicalise_bytes(bytes, out),
            Value::Integer(_) | Value::Decimal { .. } | Value::Float(_) | Value::Float32(_) => {
                match number_text(value) {
                    Some(number) => self.canonicalise_number(&number, out),
                    None => Canonical::NotComparable,
                }
            }
            Value::Date(date) => match self {
                Kind::Date { .. } => compact(date, out),
                Kind::Email
                | Kind::Phone
                | Kind::PhoneE164 { .. }
                | Kind::Maid
                | Kind::Uuid
                | Kind::Ip
                | Kind::Integer
                | Kind::Text
                | Kind::Vin
                | Kind::Zip
                | Kind::Name
                | Kind::Ctvid
                | Kind::Ndz
                | Kind::NameVin => Canonical::NotComparable,
            },
            Value::Other => Canonical::NotComparable,
        }
    }

    /// Whether `text` certainly is its own canonical form, as most values are: a look costs a tenth of making the form. A `false`
    /// says nothing.
    #[inline]
    pub fn is_canonical(&self, text: &str) -> bool {
        match self {
            Kind::Text => !text.is_empty(),
            Kind::Email
            | Kind::Phone
            | Kind::PhoneE164 { .. }
            | Kind::Maid
            | Kind::Uuid
            | Kind::Ip
            | Kind::Integer
            | Kind::Vin
            | Kind::Zip
            | Kind::Name
            | Kind::Date { .. }
            | Kind::Ctvid
            | Kind::Ndz
            | Kind::NameVin => self.is_canonical_ascii(text.as_bytes()),
        }
    }

    /// As [`Kind::is_canonical`] for bytes that nobody has looked at; only of kinds whose common canonical forms are ASCII.
    #[inline]
    pub fn is_canonical_ascii(&self, bytes: &[u8]) -> bool {
        match self {
            Kind::Email => is_canonical_email(bytes),
            Kind::Phone => (1..=10).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_digit),
            Kind::Maid => bytes.len() == 32 && bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
            Kind::Text
            | Kind::PhoneE164 { .. }
            | Kind::Uuid
            | Kind::Ip
            | Kind::Integer
            | Kind::Vin
            | Kind::Zip
            | Kind::Name
            | Kind::Date { .. }
            | Kind::Ctvid
            | Kind::Ndz
            | Kind::NameVin => false,
        }
    }

    fn canonicalise_text(&self, text: &str, out: &mut Vec<u8>) -> Canonical {
        if let Kind::Text = self {
            out.extend_from_slice(text.as_bytes());
            return if text.is_empty() { Canonical::Empty } else { Canonical::Text };
        }
        if text.trim().is_empty() {
            return Canonical::Empty;
        }
        let readable = match self {
            Kind::Email => email(text, out),
            Kind::Phone => phone(text, out),
            Kind::PhoneE164 { region } => phone_e164(text, region.as_deref(), out),
            Kind::Maid => {
                keep_lowercase(text, out, |c| c.is_ascii_hexdigit());
                out.len() == 32
            }
            Kind::Uuid => uuid_text(text, out),
            Kind::Ip => text.trim().parse().map(|address: IpAddr| ip(address, out)).is_ok(),
            Kind::Integer => integer(text.trim(), out),
            Kind::Vin => {
                keep_lowercase(text, out, |c| c.is_ascii_alphanumeric());
                out.len() == 17
            }
            Kind::Zip => zip(text, out),
            Kind::Name => {
                plain_letters(text, out);
                !out.is_empty()
            }
            Kind::Date { format } => match read_date(text.trim(), format.as_ref()) {
                Some(date) => return compact(date, out),
                None => false,
            },
            Kind::Ctvid => {
                keep_lowercase(text, out, |c| c.is_ascii_alphanumeric());
                (8..=32).contains(&out.len())
            }
            Kind::Ndz | Kind::NameVin => {
                out.extend_from_slice(text.trim().as_bytes());
                is_joined(out, self.parts().len())
            }
            Kind::Text => unreachable!("answered above"),
        };
        if readable { Canonical::Text } else { Canonical::NotComparable }
    }

    fn canonicalise_bytes(&self, bytes: &[u8], out: &mut Vec<u8>) -> Canonical {
        match self {
            Kind::Text => {
                out.extend_from_slice(bytes);
                if bytes.is_empty() { Canonical::Empty } else { Canonical::Text }
            }
            Kind::Uuid if bytes.len() == 16 => {
                hyphenated(bytes, out);
                Canonical::Text
            }
            Kind::Maid if bytes.len() == 16 => {
                out.extend_from_slice(hex::encode(bytes).as_bytes());
                Canonical::Text
            }
            Kind::Email
            | Kind::Phone
            | Kind::PhoneE164 { .. }
            | Kind::Maid
            | Kind::Uuid
            | Kind::Ip
            | Kind::Integer
            | Kind::Vin
            | Kind::Zip
            | Kind::Name
            | Kind::Date { .. }
            | Kind::Ctvid
            | Kind::Ndz
            | Kind::NameVin => match std::str::from_utf8(bytes) {
                Ok(text) => self.canonicalise_text(text, out),
                Err(_) => Canonical::NotComparable,
            },
        }
    }

    fn canonicalise_number(&self, number: &str, out: &mut Vec<u8>) -> Canonical {
        match self {
            Kind::Text => {
                out.extend_from_slice(number.as_bytes());
                Canonical::Number
            }
            Kind::Integer if !number.contains('.') => {
                out.extend_from_slice(number.as_bytes());
                Canonical::Text
            }
            Kind::Phone | Kind::PhoneE164 { .. } if !number.contains('.') && !number.starts_with('-') => {
                self.canonicalise_text(number, out)
            }
            Kind::Zip if !number.contains('.') && !number.starts_with('-') && number.len() <= 5 => {
                self.canonicalise_text(number, out)
            }
            Kind::Date { format: None } => self.canonicalise_text(number, out),
            Kind::Email
            | Kind::Phone
            | Kind::PhoneE164 { .. }
            | Kind::Maid
            | Kind::Uuid
            | Kind::Ip
            | Kind::Integer
            | Kind::Vin
            | Kind::Zip
            | Kind::Name
            | Kind::Date { .. }
            | Kind::Ctvid
            | Kind::Ndz
            | Kind::NameVin => Canonical::NotComparable,
        }
    }
}

/// A Base64 SHA-256 has 43 letters and a `=`.
const HASHED_PART_BYTES: usize = 44;

/// Appends a part of a joined identifier: the Base64 SHA-256 of its canonical form (regulation.md 1.3, NDZ).
pub fn join_part(canonical: &[u8], out: &mut Vec<u8>) {
    let mut hashed = [0; HASHED_PART_BYTES];
    let length = BASE64.encode_slice(Sha256::digest(canonical), &mut hashed);
    debug_assert_eq!(length, Ok(HASHED_PART_BYTES));
    out.extend_from_slice(&hashed);
}

fn is_joined(text: &[u8], parts: usize) -> bool {
    let is_part = |part: &[u8]| BASE64.decode(part).is_ok_and(|digest| digest.len() == 32);
    text.len() == parts * HASHED_PART_BYTES && text.chunks(HASHED_PART_BYTES).all(is_part)
}

/// The canonical number an entry of kind `text` stands for next to its bytes, if it is one: an optional minus, digits without needless
/// leading zeros, optionally a fraction, whose trailing zeros do not count (`1.50` is `1.5`, but `007` is no number).
pub fn plain_decimal(text: &str) -> Option<String> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || (whole.len() > 1 && whole.starts_with('0')) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let magnitude = if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") };
    Some(if text.starts_with('-') && magnitude != "0" { format!("-{magnitude}") } else { magnitude })
}

/// The plain decimal text of a number of any width.
fn number_text(value: Value<'_>) -> Option<String> {
    match value {
        Value::Integer(integer) => Some(integer.to_string()),
        Value::Decimal { unscaled, scale } => {
            let sign = if unscaled < 0 { "-" } else { "" };
            let digits = unscaled.unsigned_abs().to_string();
            if scale <= 0 {
                return plain_decimal(&format!(
                    "{sign}{digits}{}",
                    "0".repeat(if unscaled == 0 { 0 } else { usize::from(scale.unsigned_abs()) })
                ));
            }
            let padded = format!("{digits:0>width$}", width = scale as usize + 1);
            let (whole, fraction) = padded.split_at(padded.len() - scale as usize);
            plain_decimal(&format!("{sign}{whole}.{fraction}"))
        }
        // Display of a finite float is its shortest exact decimal, never an exponent.
        Value::Float(float) => float.is_finite().then(|| plain_decimal(&float.to_string())).flatten(),
        Value::Float32(float) => float.is_finite().then(|| plain_decimal(&float.to_string())).flatten(),
        Value::Text(_) | Value::Bytes(_) | Value::Date(_) | Value::Other => None,
    }
}

fn email(text: &str, out: &mut Vec<u8>) -> bool {
    if is_canonical_email(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
        return true;
    }
    if text.is_ascii() {
        out.extend(text.bytes().filter(|b| !char::from(*b).is_whitespace()).map(|b| b.to_ascii_lowercase()));
    } else {
        let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        out.extend_from_slice(bare.to_lowercase().as_bytes());
    }
    match out.iter().position(|b| *b == b'@') {
        Some(at) => at > 0 && at + 1 < out.len(),
        None => false,
    }
}

/// ASCII above the space without upper case, and an `@` that is neither the first byte nor the last.
#[inline]
fn is_canonical_email(bytes: &[u8]) -> bool {
    /// Whether every byte is fit, and one an `@`. Written so that a compiler takes sixteen bytes at a time.
    #[inline(always)]
    fn is_fit<const N: usize>(pieces: [&[u8; 16]; N]) -> bool {
        let (mut unfit, mut at) = ([0u8; 16], [0u8; 16]);
        for piece in pieces {
            for i in 0..16 {
                let byte = piece[i];
                unfit[i] |= u8::from(byte.wrapping_sub(b'!') >= 0x80 - b'!') | u8::from(byte.wrapping_sub(b'A') < 26);
                at[i] |= u8::from(byte == b'@');
            }
        }
        u128::from_ne_bytes(unfit) == 0 && u128::from_ne_bytes(at) != 0
    }
    // Ends that overlap cover every length between one and two of them.
    let is_fit = match bytes.len() {
        16..=32 => bytes.first_chunk().zip(bytes.last_chunk()).is_some_and(|(head, tail)| is_fit([head, tail])),
        33..=64 => {
            let (head, tail) = (&bytes[..32], &bytes[bytes.len() - 32..]);
            let ([a, b], [c, d]) = (head.as_chunks().0, tail.as_chunks().0) else { return false };
            is_fit([a, b, c, d])
        }
        _ => {
            let is_unfit = |byte: &u8| !(b'!'..0x80).contains(byte) || byte.is_ascii_uppercase();
            !bytes.iter().any(is_unfit) && bytes.contains(&b'@')
        }
    };
    is_fit && bytes.first() != Some(&b'@') && bytes.last() != Some(&b'@')
}

/// A column of numbers with gaps is written as floats by many programs: the zeros of `4155559317.0` are no digits of the number, and with
/// them another's would be left. More than one are told from `555.0000` by the length of what stands before.
fn without_float_zeros(text: &str) -> &str {
    let Some((whole, zeros)) = text.trim().split_once('.') else { return text };
    let digits = whole.strip_prefix('+').unwrap_or(whole);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let are_zeros = zeros == "0" || (digits.len() >= 10 && !zeros.is_empty() && zeros.bytes().all(|byte| byte == b'0'));
    if is_number && are_zeros { whole } else { text }
}

fn phone(text: &str, out: &mut Vec<u8>) -> bool {
    let text = without_float_zeros(text);
    out.extend(text.bytes().filter(u8::is_ascii_digit));
    out.drain(..out.len().saturating_sub(10));
    !out.is_empty()
}

fn phone_e164(text: &str, region: Option<&str>, out: &mut Vec<u8>) -> bool {
    let region = region.and_then(|region| region.parse().ok());
    match phonenumber::parse(region, text.trim()) {
        Ok(number) if phonenumber::is_valid(&number) => {
            out.extend_from_slice(number.format().mode(phonenumber::Mode::E164).to_string().as_bytes());
            true
        }
        _ => false,
    }
}

/// Whether `region` is one that national numbers can be read in.
pub fn known_region(region: &str) -> bool {
    region.to_uppercase().parse::<phonenumber::country::Id>().is_ok()
}

fn keep_lowercase(text: &str, out: &mut Vec<u8>, keep: impl Fn(char) -> bool) {
    out.extend(text.chars().filter(|c| keep(*c)).map(|c| c.to_ascii_lowercase() as u8));
}

fn uuid_text(text: &str, out: &mut Vec<u8>) -> bool {
    let text = text.trim();
    let text = text.strip_prefix("urn:uuid:").or_else(|| text.strip_prefix("URN:UUID:")).unwrap_or(text);
    let text = text.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).unwrap_or(text);
    let hyphens_ok = match text.len() {
        32 => true,
        36 => [8, 13, 18, 23].iter().all(|i| text.as_bytes()[*i] == b'-'),
        _ => false,
    };
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    match hex::decode(&digits) {
        Ok(bytes) if hyphens_ok && bytes.len() == 16 => {
            hyphenated(&bytes, out);
            true
        }
        _ => false,
    }
}

fn hyphenated(bytes: &[u8], out: &mut Vec<u8>) {
    let digits = hex::encode(bytes);
    for (i, part) in [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].iter().enumerate()
    {
        if i > 0 {
            out.push(b'-');
        }
        out.extend_from_slice(part.as_bytes());
    }
}

fn ip(address: IpAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(address.to_canonical().to_string().as_bytes());
}

fn integer(text: &str, out: &mut Vec<u8>) -> bool {
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'-') => ("-", &text[1..]),
        Some(b'+') => ("", &text[1..]),
        _ => ("", text),
    };
    // A column of floats that was written as text (pandas does so once a value is missing) is still compared by value.
    let digits = match digits.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => whole,
        Some(_) => return false,
        None => digits,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        out.push(b'0');
    } else {
        out.extend_from_slice(sign.as_bytes());
        out.extend_from_slice(digits.as_bytes());
    }
    true
}

/// "For ZIP+4 drop the +4" comes first, then the zeros, then five characters (regulation.md 1.4); nine digits without a hyphen are not
/// recognised as ZIP+4.
fn zip(text: &str, out: &mut Vec<u8>) -> bool {
    let text = text.trim();
    let base = match text.split_once('-') {
        Some((base, plus4)) if plus4.len() == 4 && plus4.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => text,
    };
    keep_lowercase(base, out, |c| c.is_ascii_alphanumeric());
    let zeros = out.iter().take_while(|b| **b == b'0').count();
    out.drain(..zeros);
    out.truncate(5);
    !out.is_empty()
}

/// Known answers of DROP (regulation.md 1.4): kind, raw value, canonical form, SHA-256 in Base64 of the canonical form.
const VECTORS: [(&str, &str, &str, &str); 14] = [
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
    ("date", "17760704", "17760704", "skXYXxBER6HQTZ3rXSZH1wVGLQ054mS5rbR/bwvzy4I="),
    ("ctvid", "SmartTV_9F8E7D6C", "smarttv9f8e7d6c", "d9fxuTIrKksBXYDlaWsvQbcyUUfCbUx7v78gd+KP+tc="),
];

/// Known answers of DROP for what is made of several columns: kind, raw values, SHA-256 in Base64 of the joined form.
const JOINED_VECTORS: [(Kind, &[&str], &str); 2] = [
    (Kind::Ndz, &["Danielle", "Johnson", "1985-07-04", "91790"], "PQOfn1RffEKmqMmNAzDKKaoZCwxWbQZkQzPWmQo9REA="),
    (Kind::NameVin, &["Eve", "Genesis", "1HGCM82633A004352"], "rtnDuXIe63jXYQQXW5r07GJ7lSsrib8+46QuKFwkOmk="),
];

/// Runs the known-answer vectors, plain and through every spelling of a hash. The error names the kind that failed.
pub fn self_test() -> Result<(), String> {
    let (mut canonical, mut digest, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for (name, raw, wanted, base64) in VECTORS {
        let kind = Kind::parse(name, None).ok_or(name)?;
        if kind.canonicalise(Value::Text(raw), &mut canonical) != Canonical::Text || canonical != wanted.as_bytes() {
            return Err(format!("the canonical form of {name} is not the known answer"));
        }
        HashFunction::Sha256.digest(&canonical, &mut digest);
        if BASE64.encode(&digest) != base64 {
            return Err(format!("the SHA-256 of {name} is not the known answer"));
        }
        for (hashed, spelled) in [
            (Hashed::Sha256Base64, base64.to_owned()),
            (Hashed::Sha256Hex, hex::encode(&digest)),
            (Hashed::Sha256Hex, hex::encode_upper(&digest)),
        ] {
            if hashed.read(Value::Text(&spelled), &mut read) != Canonical::Text || read != digest {
                return Err(format!("a hashed {name} does not read back as {}", hashed.name()));
            }
        }
    }
    for (kind, raw, base64) in JOINED_VECTORS {
        let mut joined = Vec::new();
        for (part, raw) in kind.parts().iter().zip(raw) {
            part.canonicalise(Value::Text(raw), &mut canonical);
            join_part(&canonical, &mut joined);
        }
        HashFunction::Sha256.digest(&joined, &mut digest);
        if BASE64.encode(&digest) != base64 || !is_joined(&joined, kind.parts().len()) {
            return Err(format!("the SHA-256 of {} is not the known answer", kind.name()));
        }
    }
    // RFC 1321 A.5 and RFC 3174 7.3, of "abc".
    for (function, wanted) in [
        (HashFunction::Md5, "900150983cd24fb0d6963f7d28e17f72"),
        (HashFunction::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
    ] {
        function.digest(b"abc", &mut digest);
        if hex::encode(&digest) != wanted {
            return Err(format!("{} of \"abc\" is not the known answer", function.name()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str, region: Option<&str>, value: Value<'_>, wanted: Option<&str>) {
        let kind = Kind::parse(kind, region).unwrap();
        let mut out = Vec::new();
        let got = match kind.canonicalise(value, &mut out) {
            Canonical::Text | Canonical::Number => Some(String::from_utf8(out).unwrap()),
            Canonical::Empty => Some(String::new()),
            Canonical::NotComparable => None,
        };
        assert_eq!(got.as_deref(), wanted, "{kind:?}");
    }

    #[test]
    fn text_values_reach_their_canonical_form() {
        for (kind, raw, wanted) in [
            ("email", " An na@Ex\u{a0}ample.COM\t", Some("anna@example.com")),
            ("email", "no-at-sign", None),
            ("email", "@example.com", None),
            ("email", "STRASSE@B\u{dc}RO.DE", Some("strasse@b\u{fc}ro.de")),
            ("email", "   ", Some("")),
            ("phone", "12-34", Some("1234")),
            ("phone", "none", None),
            ("phone", " 4155559317.0", Some("4155559317")),
            ("phone", "555.0000", Some("5550000")),
            ("phone", "415.555.0", Some("4155550")),
            ("phone", ".0", Some("0")),
            ("phone", "+14155559317.0", Some("4155559317")),
            ("phone", "4155559318.00", Some("4155559318")),
            ("phone", "4155559318.01", Some("5555931801")),
            ("maid", "a3f1c2d4-5678-90ab-cdef-1234567890a", None),
            ("uuid", "{550E8400-E29B-41D4-A716-446655440000}", Some("550e8400-e29b-41d4-a716-446655440000")),
            ("uuid", "550e8400e29b41d4a716446655440000", Some("550e8400-e29b-41d4-a716-446655440000")),
            ("uuid", "550e-8400e29b41d4a716446655440000", None),
            ("ip", "::ffff:192.0.2.1", Some("192.0.2.1")),
            ("ip", "2001:DB8:0::1", Some("2001:db8::1")),
            ("ip", "192.0.2.256", None),
            ("integer", "+0012", Some("12")),
            ("integer", "-0", Some("0")),
            ("integer", "042.00", Some("42")),
            ("integer", "-0.0", Some("0")),
            ("integer", "1.5", None),
            ("integer", "1.", None),
            ("integer", ".0", None),
            ("integer", "1.0.0", None),
            ("text", " As Is ", Some(" As Is ")),
            ("zip", "02139-1234", Some("2139")),
            ("name", "D'Angelo", Some("dangelo")),
            ("name", "...", None),
            ("ctvid", "ABC-1234", None),
            ("ctvid", "ABC-12345", Some("abc12345")),
            ("ndz", "91hIbrbzNeqHs3o81O5yNrXUj7wDd2shvZ6THKi9qz8=", None),
        ] {
            check(kind, None, Value::Text(raw), wanted);
        }
        check("phone-e164", Some("DE"), Value::Text("030 123456"), Some("+4930123456"));
        check("phone-e164", Some("US"), Value::Text("(415) 555-2671"), Some("+14155552671"));
        check("phone-e164", None, Value::Text("+44 20 7946 0958"), Some("+442079460958"));
        check("phone-e164", None, Value::Text("020 7946 0958"), None);
    }

    #[test]
    fn what_is_called_canonical_is_its_own_canonical_form() {
        // Every byte beside every other, at every place of a word.
        let mut texts: Vec<String> = vec!["a@b".into(), "@b".into(), "a@".into(), "a".into(), String::new()];
        for byte in 0..=0xff_u8 {
            for place in 0..20 {
                let mut text: Vec<char> = "ab@cd.efghij-k+l_m@A".chars().collect();
                text[place] = char::from(byte);
                texts.push(text.iter().collect());
                text[19] = 'z';
                texts.push(text.iter().collect());
                text.truncate(place + 1);
                texts.push(text.into_iter().collect());
            }
        }
        let mut out = Vec::new();
        for kind in Kind::NAMES.iter().filter_map(|name| Kind::parse(name, None)) {
            let mut called = 0;
            for text in texts.iter().filter(|text| kind.is_canonical(text)) {
                called += 1;
                assert_eq!(kind.canonicalise_text(text, &mut out), Canonical::Text, "{kind:?} {text:?}");
                assert_eq!(out, text.as_bytes(), "{kind:?}");
                out.clear();
            }
            assert!(called > 1000 || !matches!(kind, Kind::Email | Kind::Text), "{kind:?} {called}");
        }
    }

    #[test]
    fn numbers_match_by_value_and_booleans_never() {
        check("integer", None, Value::Integer(12345), Some("12345"));
        check("integer", None, Value::Decimal { unscaled: 1234500, scale: 2 }, Some("12345"));
        check("integer", None, Value::Decimal { unscaled: 150, scale: 2 }, None);
        check("text", None, Value::Decimal { unscaled: 150, scale: 2 }, Some("1.5"));
        check("text", None, Value::Decimal { unscaled: -5, scale: 3 }, Some("-0.005"));
        check("text", None, Value::Decimal { unscaled: 12, scale: -2 }, Some("1200"));
        check("text", None, Value::Float(0.1), Some("0.1"));
        check("text", None, Value::Float(f64::NAN), None);
        check("phone", None, Value::Integer(14155559317), Some("4155559317"));
        check("phone", None, Value::Float(4155559317.0), Some("4155559317"));
        check("text", None, Value::Other, None);
        assert_eq!(plain_decimal("1.50").as_deref(), Some("1.5"));
        assert_eq!(plain_decimal("-0.0").as_deref(), Some("0"));
        for not_plain in ["007", "1e3", "", ".5", "5.", "+1", " 1"] {
            assert_eq!(plain_decimal(not_plain), None, "{not_plain}");
        }
    }

    #[test]
    fn bytes_are_read_as_what_they_hold() {
        let bytes = *b"\x55\x0e\x84\x00\xe2\x9b\x41\xd4\xa7\x16\x44\x66\x55\x44\x00\x00";
        check("uuid", None, Value::Bytes(&bytes), Some("550e8400-e29b-41d4-a716-446655440000"));
        check("maid", None, Value::Bytes(&bytes), Some("550e8400e29b41d4a716446655440000"));
        check("email", None, Value::Bytes(b"A@b.c"), Some("a@b.c"));
        check("email", None, Value::Bytes(b"\xff@b.c"), None);
    }

    #[test]
    fn the_known_answers_hold() {
        assert_eq!(self_test(), Ok(()));
    }

    #[test]
    fn columns_of_dates_and_plain_texts_need_no_format() {
        check("date", None, Value::Date(jiff::civil::date(1985, 7, 4)), Some("19850704"));
        check("date", None, Value::Integer(19850704), Some("19850704"));
        check("date", None, Value::Integer(1985), None);
        check("text", None, Value::Date(jiff::civil::date(1985, 7, 4)), None);
    }
}
