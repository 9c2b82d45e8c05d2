//! The verifier's reading of DROP's rule for names and of declared date formats, as texts and patterns.
//!
//! Written apart from `name_letters` and `identifier` on purpose, from the same words (regulation.md 1.3): letters are taken apart
//! first and their marks dropped, where `name_letters` puts them together. The two must agree on every letter; a test in
//! `tests/it/drop.rs` asks both for all of Unicode's.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Whole letters before their marks are dropped, then bare ones: each pair of words is letters and what they are written as.
const WHOLE: &str = "й y ё e ї yi ў u ѓ g ќ k";
const BARE: &str = "\
ß ss æ ae œ oe ø o đ d ð d ɖ d þ th ł l ħ h ı i ŧ t ŋ n ĸ k ƒ f ə a \
а a б b в v г g ґ g д d ђ dj е e є ye ж zh з z ѕ dz и i і i ј j к k л l љ lj м m н n њ nj о o п p р r с s т t ћ c у u ф f х kh ц ts \
ч ch џ dz ш sh щ shch ъ - ы y ь - э e ю yu я ya \
α a β v γ g δ d ε e ζ z η i θ th ι i κ k λ l μ m ν n ξ x ο o π p ρ r σ s ς s τ t υ y φ f χ ch ψ ps ω o";

/// What letters are written as.
struct Spellings {
    whole: HashMap<char, &'static str>,
    bare: HashMap<char, &'static str>,
}

static SPELLINGS: LazyLock<Spellings> = LazyLock::new(|| Spellings { whole: spellings(WHOLE), bare: spellings(BARE) });

fn spellings(pairs: &'static str) -> HashMap<char, &'static str> {
    let words: Vec<&str> = pairs.split(' ').collect();
    let pair = |pair: &[&'static str]| {
        let letter = pair[0].chars().next().expect("a word has a letter");
        (letter, if pair[1] == "-" { "" } else { pair[1] })
    };
    words.chunks(2).map(pair).collect()
}

/// The canonical form of a name; `None` when nothing of it is a letter or a digit.
pub fn name_form(text: &str) -> Option<String> {
    let Spellings { whole, bare } = &*SPELLINGS;
    let mut form = String::new();
    // Composed twice: a capital may fall apart in lower case.
    let small = text.nfkc().collect::<String>().to_lowercase();
    for letter in small.nfc() {
        if let Some(plain) = whole.get(&letter) {
            form.push_str(plain);
            continue;
        }
        let first = letter.nfd().next().unwrap_or(letter);
        let known = whole.get(&first).or_else(|| bare.get(&first));
        match (first, known) {
            ('a'..='z' | '0'..='9', _) => form.push(first),
            ('\0'..='\u{7f}', _) => {}
            (_, Some(plain)) => form.push_str(plain),
            // Of other scripts nothing is taken apart: a mark may be half of the letter.
            (_, None) if is_combining_mark(letter) || !letter.is_alphanumeric() => {}
            (_, None) => form.push(letter),
        }
    }
    (!form.is_empty()).then_some(form)
}

/// The canonical form of a date that `pattern` of [`date_pattern`] finds in a text.
pub fn date_form(pattern: &Regex, text: &str) -> Option<String> {
    let found = pattern.captures(text)?;
    let year: u32 = found["y"].parse().ok()?;
    let (month, day) = (month_number(&found["m"])?, found["d"].parse().ok()?);
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let last = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        1..=12 => 31,
        _ => 0,
    };
    (1..=last).contains(&day).then(|| format!("{year:04}{month:02}{day:02}"))
}

/// What an undeclared date may look like: `YYYYMMDD` or `YYYY-MM-DD`.
pub fn plain_date_patterns() -> [Regex; 2] {
    [
        r"^\s*(?P<y>[0-9]{4})(?P<m>[0-9]{2})(?P<d>[0-9]{2})\s*$",
        r"^\s*(?P<y>[0-9]{4})-(?P<m>[0-9]{2})-(?P<d>[0-9]{2})\s*$",
    ]
    .map(|pattern| Regex::new(pattern).expect("a fixed pattern"))
}

/// What a declared date format looks like as a pattern with the groups `y`, `m` and `d`. Digits of month and day may lack their zero
/// where no other digits follow.
pub fn date_pattern(format: &str) -> Result<Regex, regex::Error> {
    let mut pattern = String::from(r"(?i)^\s*");
    let mut rest = format.chars().peekable();
    while let Some(letter) = rest.next() {
        if letter != '%' {
            // A letter of the format is itself, in its own case.
            let spelled = letter.to_string();
            let escaped: String =
                if letter.is_alphanumeric() { spelled } else { format!(r"\x{{{:x}}}", u32::from(letter)) };
            pattern.push_str(&format!("(?-i:{escaped})"));
            continue;
        }
        let what = rest.next().unwrap_or_default();
        let few = if rest.peek() == Some(&'%') { "{2}" } else { "{1,2}" };
        pattern.push_str(&match what {
            'Y' => "(?P<y>[0-9]{4})".to_owned(),
            'm' => format!("(?P<m>[0-9]{few})"),
            'd' => format!("(?P<d>[0-9]{few})"),
            'b' => "(?P<m>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)".to_owned(),
            'B' => "(?P<m>january|february|march|april|may|june|july|august|september|october|november|december)"
                .to_owned(),
            _ => format!("[0-9]{few}"),
        });
    }
    Regex::new(&(pattern + r"\s*$"))
}

/// The number of a month that a pattern of [`date_pattern`] found, by name or digits.
fn month_number(found: &str) -> Option<u32> {
    let head = found.get(..3).unwrap_or(found).to_ascii_lowercase();
    let named = "jan feb mar apr may jun jul aug sep oct nov dec".split(' ').position(|name| name == head);
    named.map_or_else(|| found.parse().ok(), |at| u32::try_from(at + 1).ok())
}
