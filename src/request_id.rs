//! Whether a request id says who its person is: an identifier of its row or an unkeyed hash of one, however it is spelled.
//!
//! Nothing is decided here of ids that merely look like a hash. Invariant: what a list gives as an id beside an identifier is shown
//! only if no undoing of a usual spelling (percent signs, a scheme before a colon, hexadecimal digits, Base64) leads back to that one.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use crate::identifier::{Canonical, Value};
use crate::job::ListColumn;

/// What is decoded to fewer bytes is an accident: every number is hexadecimal as well.
const DECODED_BYTES_MIN: usize = 5;

/// A name of a scheme or a hash function, with what divides it from the rest, is no longer.
const SCHEME_BYTES_MAX: usize = 12;

/// Whether the id is an identifier of the row or a digest of one. `cells` are in canonical form, or the digests that a list holds.
pub fn tells_row(id: &str, cells: &[(&ListColumn, &[u8])]) -> bool {
    let (id, plain) = (id.trim(), percent_decoded(id.trim()));
    if plain.contains('@') || texts(id).chain(texts(&plain)).any(|text| is_one_of(text, cells)) {
        return true;
    }
    spellings(&plain).flat_map(decoded).any(|bytes| {
        let text = std::str::from_utf8(&bytes).ok().filter(|text| !text.contains(char::is_control));
        let is_text = text.is_some_and(|text| text.contains('@') || is_one_of(text, cells));
        is_text || cells.iter().any(|(column, cell)| is_digest(&bytes, column, cell))
    })
}

/// The text, and what follows a scheme (`tel:…`, `email=…`).
fn texts(text: &str) -> impl Iterator<Item = &str> {
    let rest = text.split_once([':', '=']).map(|(_, rest)| rest).filter(|rest| !rest.is_empty());
    std::iter::once(text).chain(rest)
}

/// The text, and what follows whatever may be the name of a hash function (`0x…`, `sha256:…`, `md5-…`).
fn spellings(text: &str) -> impl Iterator<Item = &str> {
    let ends = text.char_indices().take_while(|(at, _)| *at < SCHEME_BYTES_MAX);
    let ends = ends.filter(|(_, c)| ":=-_/|$".contains(*c)).map(|(at, c)| &text[at + c.len_utf8()..]);
    let number = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    std::iter::once(text).chain(number).chain(ends)
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

fn is_one_of(text: &str, cells: &[(&ListColumn, &[u8])]) -> bool {
    cells.iter().any(|(column, cell)| {
        let mut canonical = Vec::new();
        let read = column.kind.canonicalise(Value::Text(text), &mut canonical);
        match column.hashed {
            None => matches!(read, Canonical::Text | Canonical::Number) && canonical == *cell,
            Some(_) => Sha256::digest(&canonical).as_slice() == *cell,
        }
    })
}

fn is_digest(bytes: &[u8], column: &ListColumn, cell: &[u8]) -> bool {
    if column.hashed.is_some() {
        return bytes == cell;
    }
    match bytes.len() {
        16 => Md5::digest(cell).as_slice() == bytes,
        20 => Sha1::digest(cell).as_slice() == bytes,
        28 => Sha224::digest(cell).as_slice() == bytes,
        32 => Sha256::digest(cell).as_slice() == bytes,
        48 => Sha384::digest(cell).as_slice() == bytes,
        64 => Sha512::digest(cell).as_slice() == bytes,
        _ => false,
    }
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

    #[test]
    fn an_identifier_of_the_row_is_known_however_it_is_spelled() {
        let (email, phone) = (column(Kind::Email, None), column(Kind::Phone, None));
        let cells = [(&email, &b"ann@x.org"[..]), (&phone, &b"4155559317"[..])];
        let hashed = column(Kind::Email, Some(Hashed::Sha256Hex));
        let digest = Sha256::digest("ann@x.org");
        let of_hashes = [(&hashed, digest.as_slice())];
        let md5 = hex::encode(Md5::digest("ann@x.org"));
        let uuid =
            format!("{}-{}-{}-{}-{}", &md5[..8], &md5[8..12], &md5[12..16], &md5[16..20], &md5[20..]).to_uppercase();
        for id in [
            "ann%40x.org".to_owned(),
            "tel:+1-415-555-9317".to_owned(),
            BASE64_STANDARD_NO_PAD.encode("Ann@x.org"),
            hex::encode("ann@x.org"),
            BASE64_STANDARD.encode(Md5::digest("ann@x.org")),
            BASE64_STANDARD.encode(Sha1::digest("4155559317")),
            hex::encode(Sha224::digest("ann@x.org")),
            hex::encode(Sha512::digest("ann@x.org")),
            format!("md5-{md5}"),
            uuid,
        ] {
            assert!(tells_row(&id, &cells), "{id}");
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
        let other = hex::encode(Md5::digest("bob@x.org"));
        for id in
            ["R-17", "4155550000", "1001", "2026-08-001/7", "tag-1", &other, "550e8400-e29b-41d4-a716-446655440000"]
        {
            assert!(!tells_row(id, &cells) && !tells_row(id, &of_hashes), "{id}");
        }
    }
}
