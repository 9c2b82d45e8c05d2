//! Words in running text that could be identifiers of a distinctive kind: e-mail addresses, phone numbers, UUIDs and advertising
//! IDs, VINs, hashes. Which of them are listed is for [`crate::verify_list`] to say.
//!
//! One pass and no regular expression: the work is linear in the text, however long the lists are. `text` and `integer` are never
//! looked for: "42" or "smith" in a sentence say nothing. Invariant: a token's range is in the bytes as they were given.

use std::ops::Range;

/// The look of a token. Several kinds may share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Look {
    Email,
    Phone,
    /// 32 hex digits, or a UUID with hyphens: a UUID, an advertising ID or an MD5.
    Hex32,
    /// A SHA-1.
    Hex40,
    /// A SHA-256.
    Hex64,
    /// A SHA-256 in Base64.
    Base64,
    Vin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub look: Look,
    pub range: Range<usize>,
    pub text: String,
}

/// Whether bytes are text, or bytes around which anything may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Around {
    Text,
    /// In binary a length or a field's number may stand right beside a text and look like one of its characters: addresses are
    /// tried without their first and last byte, too.
    Binary,
}

/// RFC 5321: 64 octets before the sign, 255 after it.
const LOCAL_MAX: usize = 64;
const DOMAIN_MAX: usize = 255;
const LABELS_TRIED: usize = 4;

/// Gives the tokens of `text`, some of them several times with different ends.
pub fn tokens(text: &[u8], around: Around, each: &mut dyn FnMut(Token)) {
    plain_tokens(text, around, each);
    // `email=anna%40example.com`: the same again as a URL means it.
    if let Some((decoded, starts)) = percent_decoded(text) {
        plain_tokens(&decoded, around, &mut |mut token| {
            token.range = starts[token.range.start]..starts[token.range.end];
            each(token);
        });
    }
}

/// The text with `%40` and the like decoded, and where each of its bytes (and its end) stood; `None` if there is nothing to decode.
pub fn percent_decoded(text: &[u8]) -> Option<(Vec<u8>, Vec<usize>)> {
    let escape = |at: usize| -> Option<u8> {
        let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
        (text.get(at) == Some(&b'%')).then(|| Some((digit(at + 1)? * 16 + digit(at + 2)?) as u8))?
    };
    let percent = |from: usize| text[from..].iter().position(|byte| *byte == b'%').map(|found| from + found);
    let mut next = percent(0);
    while let Some(at) = next.filter(|at| escape(*at).is_none()) {
        next = percent(at + 1);
    }
    next?;
    let (mut out, mut starts, mut at) = (Vec::with_capacity(text.len()), Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        starts.push(at);
        match escape(at) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    starts.push(text.len());
    Some((out, starts))
}

/// Whether a token stands alone, and not inside a longer word that may be another person's: `anna@x.y` in `mary-anna@x.y` and in
/// `anna@x.y.z`, ten digits of a longer number. Only such a token may be acted on; the others may only be told and hidden.
pub fn stands_alone(text: &[u8], range: &Range<usize>, look: Look) -> bool {
    let (before, after) = (&text[..range.start], &text[range.end..]);
    match look {
        Look::Email => begins_alone(before) && ends_alone(after),
        Look::Phone => {
            let is_sign = |byte: &&u8| matches!(**byte, b' ' | b'-' | b'.' | b'(' | b')' | b'/' | b'+');
            // A letter right beside it, or a digit behind signs, makes it a part of something longer.
            let is_free = |beside: Option<&u8>, behind_signs: Option<&u8>| {
                !beside.is_some_and(u8::is_ascii_alphanumeric) && !behind_signs.is_some_and(u8::is_ascii_digit)
            };
            let token = &text[range.clone()];
            let groups = token.split(|byte| !byte.is_ascii_digit()).map(<[u8]>::len).filter(|length| *length > 0);
            let groups: Vec<usize> = groups.collect();
            // Ten bare digits may be a moment or an order, and four groups a date: only what people write for phones alone.
            let is_phone = token[0] == b'+' || groups == [3, 3, 4] || groups == [1, 3, 3, 4] && token[0] == b'1';
            is_phone
                && is_free(before.last(), before.iter().rev().find(|byte| !is_sign(byte)))
                && is_free(after.first(), after.iter().find(|byte| !is_sign(byte)))
        }
        // Taken as whole words already.
        Look::Hex32 | Look::Hex40 | Look::Hex64 | Look::Base64 | Look::Vin => true,
    }
}

/// Whether an address can begin here: nothing before belongs to its local part.
fn begins_alone(before: &[u8]) -> bool {
    let joined = before.iter().rev().take_while(|byte| matches!(**byte, b'.' | b'-' | b'_' | b'+')).count();
    let before = &before[..before.len() - joined];
    let is_word = |byte: &u8| usual(*byte);
    match before.split_last() {
        None => true,
        Some((last, _)) if is_word(last) => false,
        // A quotation mark or an ampersand is part of a local part only inside one: `o'anna`, but not `'anna`.
        Some((b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'^' | b'~' | b'%', rest)) => {
            !rest.last().is_some_and(is_word)
        }
        Some(_) => true,
    }
}

/// Whether an address can end here: nothing after belongs to its domain.
fn ends_alone(after: &[u8]) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte >= 0x80;
    match after {
        [] => true,
        [b'.' | b'-' | b'_', rest @ ..] => !rest.first().is_some_and(is_word),
        [b'@', ..] => false,
        [next, ..] => !is_word(next),
    }
}

fn plain_tokens(text: &[u8], around: Around, each: &mut dyn FnMut(Token)) {
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        if byte == b'@' {
            email(text, at, around, each);
            at += 1;
        } else if byte.is_ascii_alphanumeric() {
            let start = at;
            while at < text.len() && text[at].is_ascii_alphanumeric() {
                at += 1;
            }
            word(text, start..at, each);
        } else {
            at += 1;
        }
    }
    phones(text, each);
}

fn push(each: &mut dyn FnMut(Token), look: Look, text: &[u8], range: Range<usize>) {
    if let Ok(part) = std::str::from_utf8(&text[range.clone()]) {
        each(Token { look, range, text: part.to_lowercase() });
    }
}

/// What stands in addresses as a rule, and what RFC 5322 allows besides.
fn usual(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+') || byte >= 0x80
}

fn allowed(byte: u8) -> bool {
    usual(byte) || b"!#$%&'*/=?^`{|}~".contains(&byte)
}

fn email(text: &[u8], sign: usize, around: Around, each: &mut dyn FnMut(Token)) {
    let before = |fits: fn(u8) -> bool| {
        let local = text[..sign].iter().rev().take(LOCAL_MAX).take_while(|byte| fits(**byte)).count();
        sign - local
    };
    let in_domain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-') || *byte >= 0x80;
    let mut end = sign + 1 + text[sign + 1..].iter().take(DOMAIN_MAX).take_while(|byte| in_domain(byte)).count();
    while matches!(text[..end].last(), Some(b'.' | b'-')) {
        end -= 1;
    }
    let mut starts = vec![before(usual), before(allowed)];
    // `q=hello+anna@example.com`, `...anna@example.com`, `-anna@example.com`
    let usual_start = starts[0];
    starts.extend(text[usual_start..sign].iter().rposition(|byte| *byte == b'+').map(|plus| usual_start + plus + 1));
    let trimmed = text[usual_start..sign].iter().take_while(|byte| matches!(byte, b'.' | b'-' | b'_')).count();
    starts.push(usual_start + trimmed);
    // `export-anna@example.com.csv`
    let joined = |byte: &u8| matches!(byte, b'-' | b'_');
    starts.extend(text[usual_start..sign].iter().rposition(joined).map(|at| usual_start + at + 1));
    // `anna@example.com.csv`, `anna@example.com.Then`: an address may end at any of the last dots.
    let dots = (sign + 1..end).rev().filter(|at| text[*at] == b'.').take(LABELS_TRIED);
    let mut ends: Vec<usize> = std::iter::once(end).chain(dots).collect();
    if around == Around::Binary {
        starts.push(usual_start + 1);
        ends.push(end.saturating_sub(1));
    }
    starts.sort_unstable();
    starts.dedup();
    for start in starts.into_iter().filter(|start| *start < sign) {
        for end in ends.iter().filter(|end| **end > sign + 1) {
            push(each, Look::Email, text, start..*end);
        }
    }
}

/// A run of letters and digits.
fn word(text: &[u8], range: Range<usize>, each: &mut dyn FnMut(Token)) {
    let word = &text[range.clone()];
    let hex = word.iter().all(u8::is_ascii_hexdigit);
    match word.len() {
        8 if hex => uuid(text, range.start, each),
        17 => push(each, Look::Vin, text, range.clone()),
        32 if hex => push(each, Look::Hex32, text, range.clone()),
        40 if hex => push(each, Look::Hex40, text, range.clone()),
        64 if hex => push(each, Look::Hex64, text, range.clone()),
        _ => {}
    }
    base64(text, range, each);
}

fn uuid(text: &[u8], start: usize, each: &mut dyn FnMut(Token)) {
    const LENGTH: usize = 36;
    let Some(found) = text.get(start..start + LENGTH) else { return };
    let hyphen = |i: usize| matches!(i, 8 | 13 | 18 | 23);
    let fits =
        found.iter().enumerate().all(|(i, byte)| if hyphen(i) { *byte == b'-' } else { byte.is_ascii_hexdigit() });
    if fits && !text.get(start + LENGTH).is_some_and(u8::is_ascii_alphanumeric) {
        push(each, Look::Hex32, text, start..start + LENGTH);
    }
}

/// 32 bytes in Base64 are 43 characters and a `=`. Looked for at the first word of such a run.
fn base64(text: &[u8], word: Range<usize>, each: &mut dyn FnMut(Token)) {
    const LENGTH: usize = 44;
    let in_run = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let back = text[..word.start].iter().rev().take(LENGTH).take_while(|byte| in_run(**byte)).count();
    let start = word.start - back;
    // The run's first word alone asks, so that a long run is looked at once.
    if text[start..word.start].iter().any(u8::is_ascii_alphanumeric) {
        return;
    }
    let Some(found) = text.get(start..start + LENGTH) else { return };
    if found[LENGTH - 1] == b'=' && found[..LENGTH - 1].iter().all(|byte| in_run(*byte)) {
        // Case counts here.
        let spelled = String::from_utf8(found.to_vec()).unwrap_or_default();
        each(Token { look: Look::Base64, range: start..start + LENGTH, text: spelled });
    }
}

/// The fewest and most digits of a number that is taken for a phone number.
const PHONE_DIGITS: std::ops::RangeInclusive<usize> = 10..=15;

/// Groups of digits with the signs between them that people write in phone numbers.
fn phones(text: &[u8], each: &mut dyn FnMut(Token)) {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if !text[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let start = at;
        while at < text.len() && text[at].is_ascii_digit() {
            at += 1;
        }
        let joined = groups.last().is_some_and(|last| {
            let between = &text[last.end..start];
            between.len() <= 3 && between.iter().all(|byte| matches!(byte, b' ' | b'-' | b'.' | b'(' | b')' | b'/'))
        });
        if !joined {
            numbers(text, &groups, each);
            groups.clear();
        }
        groups.push(start..at);
    }
    numbers(text, &groups, each);
}

/// Every run of neighbouring groups that has the digits of a phone number.
fn numbers(text: &[u8], groups: &[Range<usize>], each: &mut dyn FnMut(Token)) {
    let beside_letter = |at: Option<&u8>| at.is_some_and(u8::is_ascii_alphabetic);
    for (i, first) in groups.iter().enumerate() {
        if first.start > 0 && beside_letter(text.get(first.start - 1)) {
            continue;
        }
        let mut digits = 0;
        for last in &groups[i..] {
            digits += last.len();
            if digits > *PHONE_DIGITS.end() {
                break;
            }
            if PHONE_DIGITS.contains(&digits) && !beside_letter(text.get(last.end)) {
                let plus = first.start > 0 && text[first.start - 1] == b'+';
                push(each, Look::Phone, text, first.start - usize::from(plus)..last.end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u8], around: Around) -> Vec<(Look, String)> {
        let mut found = Vec::new();
        tokens(text, around, &mut |token| {
            assert!(token.range.end <= text.len());
            found.push((token.look, token.text));
        });
        found.sort();
        found.dedup();
        found
    }

    fn has(text: &str, look: Look, token: &str) {
        assert!(found(text.as_bytes(), Around::Text).contains(&(look, token.to_owned())), "{text:?}");
    }

    #[test]
    fn addresses_are_found_wherever_they_stand() {
        for text in [
            "Anna@Example.com",
            "write to anna@example.com.",
            "<anna@example.com>, bob@x.y",
            "https://x.y/?email=anna@example.com&b=1",
            "https://x.y/?email=anna%40example.com",
            "q=hello+anna@example.com",
            "{\"mail\":\"anna@example.com\"}",
            "name='anna@example.com'",
            "caf\u{e9} anna@example.com",
            "mailto:ANNA@EXAMPLE.COM?subject=x",
            "email%3Danna%40example.com%26b",
            "export-anna@example.com.csv.gz",
        ] {
            has(text, Look::Email, "anna@example.com");
        }
        has("o'brien@example.com", Look::Email, "o'brien@example.com");
        has("anna+news@example.com", Look::Email, "anna+news@example.com");
        has("j\u{fc}rgen@b\u{fc}ro.de", Look::Email, "j\u{fc}rgen@b\u{fc}ro.de");
        assert!(found(b"@ a@ @b 100% sure", Around::Text).is_empty());
    }

    #[test]
    fn a_token_inside_a_longer_word_does_not_stand_alone() {
        let alone = |text: &str, token: &str, look| {
            let start = text.find(token).unwrap();
            stands_alone(text.as_bytes(), &(start..start + token.len()), look)
        };
        for (text, wanted) in [
            ("anna@x.y", true),
            ("write anna@x.y.", true),
            ("<anna@x.y>", true),
            ("?email=anna@x.y&b=1", true),
            ("'anna@x.y'", true),
            ("-anna@x.y", true),
            ("a=1&anna@x.y", false),
            ("mary_anna@x.y", false),
            ("mary-anna@x.y", false),
            ("mary+anna@x.y", false),
            ("mary%2Banna@x.y", false),
            ("o'anna@x.y", false),
            ("anna@x.y.z", false),
            ("anna@x.y-z", false),
            ("anna@x.y_z", false),
            ("anna@x.yz", false),
        ] {
            assert_eq!(alone(text, "anna@x.y", Look::Email), wanted, "{text}");
        }
        for (text, token, wanted) in [
            ("call 415-555-9317 now", "415-555-9317", true),
            ("+84901234567", "+84901234567", true),
            ("14155559317", "14155559317", false),
            ("2024-01-15-09", "2024-01-15-09", false),
            ("1754155559317", "1754155559317", false),
            ("part-00000-4155559317", "4155559317", false),
            ("2024-415-555-9317", "415-555-9317", false),
            ("12345 4155559317", "4155559317", false),
        ] {
            assert_eq!(alone(text, token, Look::Phone), wanted, "{text}");
        }
    }

    #[test]
    fn in_binary_the_neighbours_of_an_address_do_not_hide_it() {
        let binary = b"\x10\0\0\0anna@example.com0\0\0\0".to_vec();
        assert!(found(&binary, Around::Binary).contains(&(Look::Email, "anna@example.com".to_owned())));
        assert!(!found(&binary, Around::Text).contains(&(Look::Email, "anna@example.com".to_owned())));
        assert!(found(b"\x180anna@example.com8", Around::Binary).contains(&(Look::Email, "anna@example.com".into())));
    }

    #[test]
    fn numbers_that_look_like_phones_are_found_and_no_others() {
        for text in
            ["call +1 (415) 555-9317 now", "415.555.9317", "tel:+14155559317", "12345 4155559317", "n 415/555 9317,"]
        {
            let phones = found(text.as_bytes(), Around::Text);
            let ends_so =
                |text: &str| text.bytes().filter(u8::is_ascii_digit).collect::<Vec<_>>().ends_with(b"4155559317");
            assert!(phones.iter().any(|(look, text)| *look == Look::Phone && ends_so(text)), "{text}");
        }
        for text in ["2024-01-02", "v4155559317", "4155559317x", "41555593174155559317", "1.5"] {
            assert!(found(text.as_bytes(), Around::Text).iter().all(|(look, _)| *look != Look::Phone), "{text}");
        }
    }

    #[test]
    fn hexes_hashes_and_vins_are_whole_words() {
        let (uuid, hex) = ("550e8400-e29b-41d4-a716-446655440000", "0123456789abcdef".repeat(4));
        has(&format!("id {}.", uuid.to_uppercase()), Look::Hex32, uuid);
        has(&format!("/u/{}/x", &hex[..32]), Look::Hex32, &hex[..32]);
        has(&format!("a={};", &hex[..40]), Look::Hex40, &hex[..40]);
        has(&hex, Look::Hex64, &hex);
        has("vin:1HGCM82633A004352", Look::Vin, "1hgcm82633a004352");
        let base64 = "KA18MT/ph6IHYjzT9zwETySDQyvSh87YuoSBpOQtkhE=";
        has(&format!("h={base64}&"), Look::Base64, base64);
        has(&format!("\"{base64}\""), Look::Base64, base64);
        assert!(found(format!("x{uuid}").as_bytes(), Around::Text).iter().all(|(look, _)| *look != Look::Hex32));
        assert!(found(format!("{uuid}0").as_bytes(), Around::Text).iter().all(|(look, _)| *look != Look::Hex32));
    }

    #[test]
    fn ranges_lead_back_to_the_bytes() {
        let text = b"a%20b?e=anna%40example.com&c";
        let mut ranges = Vec::new();
        tokens(text, Around::Text, &mut |token| {
            if token.text == "anna@example.com" {
                ranges.push(token.range);
            }
        });
        assert_eq!(ranges.first().map(|range| &text[range.clone()]), Some(b"anna%40example.com".as_slice()));
    }
}
