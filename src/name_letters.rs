//! Names in plain letters, as DROP's rule for names is read here (regulation.md 1.3).
//!
//! The rule's own words: normalise Unicode, lower-case, transliterate supported Greek and Cyrillic, fold supported Latin to ASCII where
//! possible, keep only letters and digits. DROP publishes no table; this one takes BGN/PCGN's letters for Cyrillic and ELOT 743's, letter by
//! letter, for Greek. Other scripts stay as they are. `verify_letters` reads the same rule a second time.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::{decompose_canonical, is_combining_mark};

/// Appends the plain letters of `text` to `out`; nothing when it has neither a letter nor a digit.
pub fn plain_letters(text: &str, out: &mut Vec<u8>) {
    if text.is_ascii() {
        out.extend(text.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_lowercase()));
        return;
    }
    let lower = text.nfkc().collect::<String>().to_lowercase();
    // Lower case may come apart again (`İ`), so composed once more.
    for letter in lower.nfc() {
        push(letter, out);
    }
}

fn push(letter: char, out: &mut Vec<u8>) {
    if letter.is_ascii() {
        out.extend(letter.is_ascii_alphanumeric().then_some(letter as u8));
    } else if let Some(plain) = spelled(letter) {
        out.extend_from_slice(plain.as_bytes());
    } else if let Some(base) = base(letter) {
        push(base, out);
    } else if letter.is_alphanumeric() && !is_combining_mark(letter) {
        out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// The letter under its marks, when that is Latin, Greek or Cyrillic: a mark of another script may be half of its letter.
fn base(letter: char) -> Option<char> {
    let mut first = None;
    decompose_canonical(letter, |part| {
        first.get_or_insert(part);
    });
    first.filter(|base| *base != letter && (base.is_ascii() || spelled(*base).is_some()))
}

/// What a letter is written as in ASCII; letters under marks only where their own sound differs from the bare letter's.
fn spelled(letter: char) -> Option<&'static str> {
    Some(match letter {
        // Latin
        'ß' => "ss",
        'æ' => "ae",
        'œ' => "oe",
        'ø' => "o",
        'đ' | 'ð' | 'ɖ' => "d",
        'þ' => "th",
        'ł' => "l",
        'ħ' => "h",
        'ı' => "i",
        'ŧ' => "t",
        'ŋ' => "n",
        'ĸ' => "k",
        'ƒ' => "f",
        'ə' => "a",
        // Cyrillic
        'а' => "a",
        'б' => "b",
        'в' => "v",
        'г' | 'ґ' | 'ѓ' => "g",
        'д' => "d",
        'е' | 'э' | 'ё' => "e",
        'є' => "ye",
        'ж' => "zh",
        'з' => "z",
        'и' | 'і' => "i",
        'ї' => "yi",
        'й' | 'ы' => "y",
        'ј' => "j",
        'к' | 'ќ' => "k",
        'л' => "l",
        'љ' => "lj",
        'м' => "m",
        'н' => "n",
        'њ' => "nj",
        'о' => "o",
        'п' => "p",
        'р' => "r",
        'с' => "s",
        'т' => "t",
        'ћ' => "c",
        'ђ' => "dj",
        'у' | 'ў' => "u",
        'ф' => "f",
        'х' => "kh",
        'ц' => "ts",
        'ч' => "ch",
        'џ' | 'ѕ' => "dz",
        'ш' => "sh",
        'щ' => "shch",
        'ъ' | 'ь' => "",
        'ю' => "yu",
        'я' => "ya",
        // Greek
        'α' => "a",
        'β' => "v",
        'γ' => "g",
        'δ' => "d",
        'ε' => "e",
        'ζ' => "z",
        'η' | 'ι' => "i",
        'θ' => "th",
        'κ' => "k",
        'λ' => "l",
        'μ' => "m",
        'ν' => "n",
        'ξ' => "x",
        'ο' | 'ω' => "o",
        'π' => "p",
        'ρ' => "r",
        'σ' | 'ς' => "s",
        'τ' => "t",
        'υ' => "y",
        'φ' => "f",
        'χ' => "ch",
        'ψ' => "ps",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_reach_plain_letters() {
        for (raw, wanted) in [
            ("Juan Pablo", "juanpablo"),
            ("Martínez", "martinez"),
            ("MART\u{49}\u{301}NEZ", "martinez"),
            ("O'Brien-Smith 3rd", "obriensmith3rd"),
            ("Müller", "muller"),
            ("Strauß", "strauss"),
            ("STRAUẞ", "strauss"),
            ("Łukasz Sørensen", "lukaszsorensen"),
            ("Đặng Văn Trỗi", "dangvantroi"),
            ("İbrahim Çağrı", "ibrahimcagri"),
            ("Достоевский", "dostoevskiy"),
            ("Щукин", "shchukin"),
            ("Σωκράτης", "sokratis"),
            ("ﬁona", "fiona"),
            ("李小龍", "李小龍"),
            ("ガ", "ガ"),
            ("מֹשֶׁה", "משה"),
            ("--- ", ""),
        ] {
            let mut out = Vec::new();
            plain_letters(raw, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), wanted, "{raw}");
        }
    }
}
