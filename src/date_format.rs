//! How columns write dates: the formats that a job declares, and what is read by them.
//!
//! Invariant: a date is read by its declared format or by none, so that 07/04 is never taken for the wrong month.

use jiff::civil::Date;

use crate::identifier::Canonical;

/// How a column writes dates: literals, and `%Y`, `%m`, `%d`, `%b`, `%B`, each of year, month and day once; `%H`, `%M`, `%S` are
/// passed over.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DateFormat(String);

impl DateFormat {
    /// `None`: not a format that tells year, month and day once each. A year of two digits does not tell the century.
    pub fn parse(text: &str) -> Option<DateFormat> {
        let format = text.replace("%F", "%Y-%m-%d").replace("%-", "%");
        let mut seen = [0; 3];
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter == '%' {
                match letters.next()? {
                    'Y' => seen[0] += 1,
                    'm' | 'b' | 'B' => seen[1] += 1,
                    'd' => seen[2] += 1,
                    'H' | 'M' | 'S' => {}
                    _ => return None,
                }
            }
        }
        (seen == [1, 1, 1]).then_some(DateFormat(format))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Digits of day, month and time may lack their leading zero where no other digits follow.
    fn read(&self, text: &str) -> Option<Date> {
        let (mut year, mut month, mut day) = (0, 0, 0);
        let (mut format, mut text) = (self.0.as_str(), text);
        while let Some(letter) = format.chars().next() {
            format = &format[letter.len_utf8()..];
            if letter != '%' {
                text = text.strip_prefix(letter)?;
                continue;
            }
            let what = format.chars().next()?;
            format = &format[1..];
            let least = if format.starts_with('%') { 2 } else { 1 };
            match what {
                'Y' => year = number(&mut text, 4, 4)?,
                'm' => month = number(&mut text, least, 2)?,
                'd' => day = number(&mut text, least, 2)?,
                'b' | 'B' => month = month_named(&mut text, what == 'B')?,
                _ => drop(number(&mut text, least, 2)?),
            }
        }
        let small = |number: i16| i8::try_from(number).ok();
        text.is_empty().then(|| Date::new(year, small(month)?, small(day)?).ok()).flatten()
    }
}

fn number(text: &mut &str, least: usize, most: usize) -> Option<i16> {
    let digits = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    *text = rest;
    (digits >= least).then(|| number.parse().ok()).flatten()
}

fn month_named(text: &mut &str, whole: bool) -> Option<i16> {
    const MONTHS: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    let name = |month: &'static str| if whole { month } else { &month[..3] };
    let is =
        |month: &&'static str| text.get(..name(month).len()).is_some_and(|head| head.eq_ignore_ascii_case(name(month)));
    let at = MONTHS.iter().position(is)?;
    *text = &text[name(MONTHS[at]).len()..];
    i16::try_from(at + 1).ok()
}

pub(crate) fn compact_date(text: &str) -> Option<Date> {
    DateFormat("%Y%m%d".to_owned()).read(text)
}

pub(crate) fn read_date(text: &str, format: Option<&DateFormat>) -> Option<Date> {
    match format {
        Some(format) => format.read(text),
        None if text.len() == 8 => compact_date(text),
        None if text.len() == 10 => DateFormat("%Y-%m-%d".to_owned()).read(text),
        None => None,
    }
}

/// DROP's dates have four digits of the year.
pub(crate) fn compact(date: Date, out: &mut Vec<u8>) -> Canonical {
    if date.year() < 0 {
        return Canonical::NotComparable;
    }
    out.extend_from_slice(format!("{:04}{:02}{:02}", date.year(), date.month(), date.day()).as_bytes());
    Canonical::Text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identifier::{Kind, Value};

    #[test]
    fn dates_are_read_by_their_declared_format_alone() {
        for (format, raw, wanted) in [
            (None, " 1985-07-04 ", Some("19850704")),
            (None, "19850704", Some("19850704")),
            (None, "07/04/1985", None),
            (None, "1985-02-30", None),
            (None, "1985-7-4", None),
            (Some("%m/%d/%Y"), "7/4/1985", Some("19850704")),
            (Some("%m/%d/%Y"), "07/04/1985", Some("19850704")),
            (Some("%m/%d/%Y"), "19850704", None),
            (Some("%m/%d/%Y"), "07/04/1985 ", Some("19850704")),
            (Some("%m/%d/%Y"), "13/04/1985", None),
            (Some("%m%d%Y"), "07041985", Some("19850704")),
            (Some("%m%d%Y"), "1121985", None),
            (Some("%F"), "1985-07-04", Some("19850704")),
            (Some("%-d.%-m.%Y"), "4.7.1985", Some("19850704")),
            (Some("%d-%b-%Y"), "04-JUL-1985", Some("19850704")),
            (Some("%d %B %Y"), "4 July 1985", Some("19850704")),
            (Some("%Y-%m-%d %H:%M:%S"), "1985-07-04 00:00:00", Some("19850704")),
            (Some("%Y-%m-%d"), "1985-07-04T00:00:00", None),
        ] {
            let format = format.map(|format| DateFormat::parse(format).unwrap());
            let mut out = Vec::new();
            let kind = Kind::Date { format };
            let read = kind.canonicalise(Value::Text(raw), &mut out) == Canonical::Text;
            assert_eq!(read.then(|| String::from_utf8(out).unwrap()).as_deref(), wanted, "{kind:?} {raw}");
        }
        for broken in ["%d.%m.%y", "%Y-%m", "%Y-%m-%d-%d", "%Q", "%Y-%m-%d%", "DD.MM.YYYY"] {
            assert_eq!(DateFormat::parse(broken), None, "{broken}");
        }
    }
}
