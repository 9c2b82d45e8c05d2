//! Whether a request id says who its person is: an identifier of its row or an unkeyed hash of one, however it is spelled.
//!
//! Invariant: what a list gives as an id beside an identifier is shown only if no undoing of a usual spelling (percent signs, words
//! before a sign, hexadecimal digits, Base64, one in the other) leads back to that one, and nothing in it looks like a hash in
//! hexadecimal digits: of the many ways to write a telephone number before it is hashed, not all can be tried.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use crate::identifier::{Canonical, Kind, Value};
use crate::job::ListColumn;

/// What is decoded to fewer bytes is an accident: every number is hexadecimal as well.
const DECODED_BYTES_MIN: usize = 5;

/// Spellings lie in one another: `%2540`, the hexadecimal digits of a hash in Base64.
const UNDONE_MAX: usize = 3;

/// What stands between the words of an id.
const SIGNS: &str = ":=-_/|$.,;#~+ ";

/// An identifier of a row.
pub struct Held<'a> {
    pub column: &'a ListColumn,
    /// In canonical form, or the digest that a list holds.
    pub cell: &'a [u8],
    /// As it is written, where that is known.
    pub raw: Option<&'a [u8]>,
}

/// Whether the id is an identifier of the row or a digest of one, or may be anybody's digest.
pub fn tells_row(id: &str, cells: &[Held<'_>]) -> bool {
    tells(id, cells, UNDONE_MAX)
}

fn tells(id: &str, cells: &[Held<'_>], undone_max: usize) -> bool {
    let id = id.trim();
    let mut plain = percent_decoded(id);
    for _ in 1..UNDONE_MAX {
        plain = percent_decoded(&plain);
    }
    let is_identifier = |text: &str| {
        is_one_of(text, cells, |_| true) || between_signs(text).any(|rest| is_one_of(rest, cells, is_distinctive))
    };
    if plain.contains('@') || holds_digest(&plain) || [id, &plain].into_iter().any(is_identifier) {
        return true;
    }
    let number = plain.strip_prefix("0x").or_else(|| plain.strip_prefix("0X"));
    let spellings = std::iter::once(&*plain).chain(number).chain(between_signs(&plain));
    let mut undone = spellings.flat_map(decoded);
    undone.any(|bytes| {
        let text = std::str::from_utf8(&bytes).ok().filter(|text| !text.contains(char::is_control));
        let is_text = text.is_some_and(|text| undone_max > 1 && tells(text, cells, undone_max - 1));
        is_text || cells.iter().any(|held| is_digest(&bytes, held))
    })
}

/// More of them than an id has.
const SIGNS_MAX: usize = 16;

/// What stands behind, before and between signs: the identifier of a scheme (`tel:…`), the digest of a function (`md5-…`), or one of
/// them with a number behind it (`…-1`).
fn between_signs(text: &str) -> impl Iterator<Item = &str> {
    let signs = || text.char_indices().filter(|(_, c)| SIGNS.contains(*c)).take(SIGNS_MAX);
    let starts = std::iter::once(0).chain(signs().map(|(at, c)| at + c.len_utf8()));
    let ends: Vec<usize> = signs().map(|(at, _)| at).chain([text.len()]).collect();
    let pieces = starts.flat_map(move |start| ends.clone().into_iter().map(move |end| start..end));
    pieces.filter(|piece| piece.start < piece.end && piece.len() < text.len()).map(|piece| &text[piece])
}

/// Not a number or a word that stands in ids by accident.
fn is_distinctive(kind: &Kind) -> bool {
    match kind {
        Kind::Email
        | Kind::Phone
        | Kind::PhoneE164 { .. }
        | Kind::Maid
        | Kind::Uuid
        | Kind::Ip
        | Kind::Vin
        | Kind::Ctvid
        | Kind::Ndz
        | Kind::NameVin => true,
        Kind::Integer | Kind::Text | Kind::Zip | Kind::Name | Kind::Date { .. } => false,
    }
}

/// Whether so many hexadecimal digits stand together as a digest has, and are no UUID by RFC 9562, by its variant and a version in
/// use: 6 and 8 are hardly. One MD5 in eleven looks like one all the same, and is told only when it is of the row itself.
fn holds_digest(text: &str) -> bool {
    let is_uuid = |digits: &[u8]| {
        digits.len() == 32
            && matches!(digits[12], b'1'..=b'5' | b'7')
            && matches!(digits[16].to_ascii_lowercase(), b'8' | b'9' | b'a' | b'b')
    };
    let runs = || text.split(|c: char| !c.is_ascii_hexdigit());
    let whole = runs().any(|run| run.len() >= 32 && !is_uuid(run.as_bytes()));
    // With the hyphens of a UUID.
    let mut hyphened = text.as_bytes().windows(36).filter(|window| {
        window.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    });
    let digits = |window: &[u8]| -> Vec<u8> { window.iter().copied().filter(|byte| *byte != b'-').collect() };
    whole || hyphened.any(|window| !is_uuid(&digits(window)))
}

/// Trailing bits that some writers leave, and padding that others leave out, are no reason to miss it.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
static BASE64: [GeneralPurpose; 2] =
    [GeneralPurpose::new(&alphabet::STANDARD, LENIENT), GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT)];

/// What hexadecimal digits (of a UUID, too) or Base64 with either alphabet and any padding stand for.
fn decoded(text: &str) -> impl Iterator<Item = Vec<u8>> {
    let digits: String = text.chars().filter(|c| !"-{}: ".contains(*c)).collect();
    let base64 =
        BASE64.iter().filter(move |_| text.len() > DECODED_BYTES_MIN).map(move |base64| base64.decode(text).ok());
    let all = [hex::decode(digits).ok()].into_iter().chain(base64).flatten();
    all.filter(|bytes| bytes.len() >= DECODED_BYTES_MIN)
}

fn is_one_of(text: &str, cells: &[Held<'_>], of_kind: impl Fn(&Kind) -> bool) -> bool {
    cells.iter().filter(|held| of_kind(&held.column.kind)).any(|held| {
        let mut canonical = Vec::new();
        let read = held.column.kind.canonicalise(Value::Text(text), &mut canonical);
        match held.column.hashed {
            None => matches!(read, Canonical::Text | Canonical::Number) && canonical == held.cell,
            Some(_) => Sha256::digest(&canonical).as_slice() == held.cell,
        }
    })
}

fn is_digest(bytes: &[u8], held: &Held<'_>) -> bool {
    if held.column.hashed.is_some() {
        return bytes == held.cell;
    }
    let digest: fn(&[u8]) -> Vec<u8> = match bytes.len() {
        16 => |text| Md5::digest(text).to_vec(),
        20 => |text| Sha1::digest(text).to_vec(),
        28 => |text| Sha224::digest(text).to_vec(),
        32 => |text| Sha256::digest(text).to_vec(),
        48 => |text| Sha384::digest(text).to_vec(),
        64 => |text| Sha512::digest(text).to_vec(),
        _ => return false,
    };
    written(held).iter().any(|text| digest(text) == bytes)
}

/// As an identifier may have been written when it was hashed.
fn written(held: &Held<'_>) -> Vec<Vec<u8>> {
    let mut forms = vec![held.cell.to_vec(), held.cell.to_ascii_uppercase()];
    if let Some(raw) = held.raw {
        forms.extend([raw.to_vec(), raw.trim_ascii().to_vec(), raw.to_ascii_lowercase()]);
    }
    if let (Kind::Phone | Kind::PhoneE164 { .. }, Ok(text)) = (&held.column.kind, std::str::from_utf8(held.cell)) {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        let national = digits.strip_prefix('1').filter(|rest| rest.len() == 10).unwrap_or(&digits);
        forms.extend([digits.clone(), format!("+{digits}"), national.to_owned()].map(String::into_bytes));
        if let (10, [area, office, line]) = (national.len(), [0..3, 3..6, 6..10].map(|part| national.get(part))) {
            let (area, office, line) = (area.unwrap_or_default(), office.unwrap_or_default(), line.unwrap_or_default());
            for country in ["", "1", "+1", "1 ", "+1 ", "1-", "+1-"] {
                forms.push(format!("{country}{national}").into_bytes());
                forms.push(format!("{country}({area}) {office}-{line}").into_bytes());
                forms.extend(
                    ['-', '.', ' '].map(|sign| format!("{country}{area}{sign}{office}{sign}{line}").into_bytes()),
                );
            }
        }
    }
    forms
}

/// With what percent signs stand for, where that is text.
pub fn percent_decoded(text: &str) -> String {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(|digits| hex::decode(digits).ok());
        at += if code.is_some() { 3 } else { 1 };
        out.push(code.map_or(byte, |code| code[0]));
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identifier::{Hashed, Kind};
    use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};

    fn column(kind: Kind, hashed: Option<Hashed>) -> ListColumn {
        ListColumn { column: "c".into(), kind, hashed }
    }

    fn md5(text: &str) -> String {
        hex::encode(Md5::digest(text))
    }

    /// The MD5 in Base64, which is told by nothing but the comparison.
    fn md5_base64(text: &str) -> String {
        BASE64_STANDARD_NO_PAD.encode(Md5::digest(text))
    }

    fn hyphened(digits: &str) -> String {
        format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
    }

    #[test]
    fn an_identifier_of_the_row_is_known_however_it_is_spelled() {
        let (email, phone) = (column(Kind::Email, None), column(Kind::Phone, None));
        let cells = [
            Held { column: &email, cell: b"ann@x.org", raw: Some(b" Ann@x.Org") },
            Held { column: &phone, cell: b"4155559317", raw: None },
        ];
        let hashed = column(Kind::Email, Some(Hashed::Sha256Hex));
        let digest = Sha256::digest("ann@x.org");
        let of_hashes = [Held { column: &hashed, cell: digest.as_slice(), raw: None }];
        for id in [
            "ann%40x.org".to_owned(),
            "ann%2540x.org".to_owned(),
            "ann%252540x.org".to_owned(),
            "tel:+1-415-555-9317".to_owned(),
            "customer/4155559317".to_owned(),
            "4155559317-1".to_owned(),
            "crm:(415) 555-9317:7".to_owned(),
            format!("{}:7", md5_base64("ann@x.org")),
            BASE64_STANDARD_NO_PAD.encode("Ann@x.org"),
            hex::encode("ann@x.org"),
            BASE64_STANDARD.encode(hex::encode("ann@x.org")),
            BASE64_STANDARD.encode(Md5::digest("ann@x.org")),
            BASE64_STANDARD.encode(Sha1::digest("4155559317")),
            BASE64_STANDARD.encode(hex::encode(digest)),
            format!("customer_number_{}", md5_base64("ann@x.org")),
            hex::encode(Sha224::digest("ann@x.org")),
            hex::encode(Sha512::digest("ann@x.org")),
            format!("md5-{}", md5("ann@x.org")),
            format!("customer_number_{}", md5("ann@x.org")),
            hyphened(&md5("ann@x.org")).to_uppercase(),
        ] {
            assert!(tells_row(&id, &cells), "{id}");
        }
        for written in [
            " Ann@x.Org",
            "Ann@x.Org",
            "ANN@X.ORG",
            "+14155559317",
            "14155559317",
            "(415) 555-9317",
            "415-555-9317",
            "+1 415 555 9317",
        ] {
            assert!(tells_row(&md5_base64(written), &cells), "{written}");
        }
        for id in [
            hex::encode(digest),
            format!("0x{}", hex::encode(digest)),
            format!("sha256:{}", hex::encode_upper(digest)),
            BASE64_STANDARD_NO_PAD.encode(digest),
            BASE64_URL_SAFE_NO_PAD.encode(digest),
        ] {
            assert!(tells_row(&id, &cells) && tells_row(&id, &of_hashes), "{id}");
        }
        let other = md5_base64("bob@x.org");
        for id in [
            "R-17",
            "4155550000",
            "1001",
            "2026-08-001/7",
            "tag-1",
            &other,
            "550e8400-e29b-41d4-a716-446655440000",
            "req_018f3c7e5a2b7cde9f00112233445566",
            "507f1f77bcf86cd799439011",
        ] {
            assert!(!tells_row(id, &cells) && !tells_row(id, &of_hashes), "{id}");
        }
    }

    #[test]
    fn what_has_the_digits_of_a_hash_and_is_no_uuid_may_be_anybodys() {
        let (bob, zip) = (md5("dan@x.org"), column(Kind::Zip, None));
        let cells = [Held { column: &zip, cell: b"94105", raw: None }];
        for id in
            [&bob, &hyphened(&bob), &format!("crm-{bob}.7"), &"0".repeat(33), "550e8400-e29b-01d4-a716-446655440000"]
        {
            assert!(tells_row(id, &cells), "{id}");
        }
        for id in ["17-94105", "550e8400e29b41d4a716446655440000", &bob[..31]] {
            assert!(!tells_row(id, &cells), "{id}");
        }
    }
}
