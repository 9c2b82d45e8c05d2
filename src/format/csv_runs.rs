//! Where many records end at once: 64 bytes at a time, by quotes and line ends alone.
//!
//! It takes neat text only, in which every quote opens a field, closes one, or is half of a doubled one. There `csv-core` ends its
//! records at the line ends outside quotes, which is what the masks show. The first other quote ends a run before its record; who
//! asks for runs has that record read by [`super::csv::Records`] in full.

use std::ops::Range;

use memchr::memchr;

use crate::byte_mask::{Block, blocks, parity, places};

/// What separates fields, and what encloses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    pub delimiter: u8,
    pub quote: u8,
}

/// Whole records one after the other, with what stands before each of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    pub bytes: usize,
    pub records: u64,
}

/// The records at the start of `text`, which begins where a record or blank lines do; at most `most`, and of those that the text
/// holds with their line ends. `has_all`: nothing follows the text.
pub fn run(text: &[u8], marks: Marks, has_all: bool, most: u64) -> Extent {
    let mut run = Extent::default();
    // Before a line feed, a carriage return is half of a line end.
    let scanned = if has_all { text } else { text.strip_suffix(b"\r").unwrap_or(text) };
    let mut scan = Scan::new(marks);
    for (number, (block, filled)) in blocks(scanned).enumerate() {
        let seen = scan.next(&block, filled);
        let mut ends = seen.ends;
        let found = u64::from(ends.count_ones());
        let wanted = found.min(most - run.records);
        if wanted > 0 {
            let last = if wanted == found {
                63 - ends.leading_zeros()
            } else {
                (1..wanted).for_each(|_| ends &= ends - 1);
                ends.trailing_zeros()
            };
            run.records += wanted;
            run.bytes = number * size_of::<Block>() + last as usize + 1;
        }
        if seen.is_odd || run.records == most {
            break;
        }
    }
    let is_cut = run.bytes > 0 && text[run.bytes - 1] == b'\r' && text.get(run.bytes) == Some(&b'\n');
    run.bytes += usize::from(is_cut);
    run
}

/// The fields of a table's records that somebody looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// How many fields a record has.
    width: usize,
    /// Ascending, each less than the width.
    positions: Vec<usize>,
    /// Of the delimiters that begin or end such a field their numbers in the record, from 1 on, ascending.
    delimiters: Vec<u32>,
    /// By field: which of `delimiters` stands before it and which behind it, if not the record's begin or end.
    bounds: Vec<(Option<usize>, Option<usize>)>,
}

impl Wanted {
    pub fn new(width: usize, mut positions: Vec<usize>) -> Wanted {
        positions.sort_unstable();
        positions.dedup();
        let around = |position: &usize| [*position, position + 1];
        let mut delimiters: Vec<usize> =
            positions.iter().flat_map(around).filter(|it| *it > 0 && *it < width).collect();
        delimiters.dedup();
        let place = |number: usize| delimiters.iter().position(|it| *it == number);
        let bounds = positions.iter().map(|position| (place(*position), place(position + 1))).collect();
        let delimiters = delimiters.into_iter().map(|it| it as u32).collect();
        Wanted { width, positions, delimiters, bounds }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn positions(&self) -> &[usize] {
        &self.positions
    }
}

/// The wanted fields of a run of records.
#[derive(Debug, Default)]
pub struct Cuts {
    /// Where each record begins, after blank lines, and where its line end ends.
    records: Vec<(u32, u32)>,
    /// Record by record: where its wanted fields stand, without quotes.
    fields: Vec<(u32, u32)>,
}

impl Cuts {
    /// The records in `bytes`, the run that was cut: where each begins and ends, and its wanted fields.
    pub fn records<'a>(&'a self, wanted: &Wanted) -> impl Iterator<Item = (Range<usize>, &'a [(u32, u32)])> {
        let each = wanted.positions.len();
        let fields = move |number: usize| &self.fields[number * each..(number + 1) * each];
        let records = self.records.iter().enumerate();
        records.map(move |(number, (begin, end))| (*begin as usize..*end as usize, fields(number)))
    }
}

/// As [`run`], of records that have as many fields as is wanted and no doubled quote in a wanted one: where these stand goes to
/// `cuts`. How many bytes the records are.
pub fn cut(text: &[u8], marks: Marks, has_all: bool, wanted: &Wanted, cuts: &mut Cuts) -> usize {
    cuts.records.clear();
    cuts.fields.clear();
    let scanned = if has_all { text } else { text.strip_suffix(b"\r").unwrap_or(text) };
    let mut scan = Scan::new(marks);
    // Of the record that is looked at: where it begins, its delimiters so far, and where those stand that matter.
    let (mut begin, mut passed, mut found) = (0, 0, Vec::with_capacity(wanted.delimiters.len()));
    'blocks: for (number, (block, filled)) in blocks(scanned).enumerate() {
        let seen = scan.next(&block, filled);
        let base = (number * size_of::<Block>()) as u32;
        let (mut line_ends, mut delimiters) = (seen.line_ends, seen.delimiters);
        loop {
            let lowest = line_ends & line_ends.wrapping_neg();
            // Up to the line end, or all.
            let mut own = delimiters & lowest.wrapping_sub(1);
            delimiters &= !own;
            let before = passed;
            passed += own.count_ones();
            let mut dropped = before;
            while let Some(next) = wanted.delimiters.get(found.len()).filter(|next| **next <= passed) {
                (dropped + 1..*next).for_each(|_| own &= own - 1);
                dropped = next - 1;
                found.push(base + own.trailing_zeros());
            }
            if lowest == 0 {
                break;
            }
            line_ends ^= lowest;
            let at = base + lowest.trailing_zeros();
            if seen.ends & lowest != 0 {
                if passed as usize + 1 != wanted.width || !cuts.take(text, marks.quote, wanted, begin..at, &found) {
                    break 'blocks;
                }
            } else if let Some(last) = cuts.records.last_mut().filter(|last| last.1 == at)
                && text[at as usize - 1] == b'\r'
                && text[at as usize] == b'\n'
            {
                last.1 += 1;
            }
            begin = at + 1;
            passed = 0;
            found.clear();
        }
        if seen.is_odd {
            break;
        }
    }
    let Some(last) = cuts.records.last_mut() else { return 0 };
    // The line feed may be one that was not scanned.
    let is_cut = text[last.1 as usize - 1] == b'\r' && text.get(last.1 as usize) == Some(&b'\n');
    last.1 += u32::from(is_cut);
    last.1 as usize
}

impl Cuts {
    /// Whether the record's wanted fields are as they stand, but for the quotes around them.
    fn take(&mut self, text: &[u8], quote: u8, wanted: &Wanted, record: Range<u32>, delimiters: &[u32]) -> bool {
        let before = self.fields.len();
        for (first, last) in &wanted.bounds {
            let begin = first.map_or(record.start, |first| delimiters[first] + 1);
            let end = last.map_or(record.end, |last| delimiters[last]);
            let field = &text[begin as usize..end as usize];
            let is_quoted = field.first() == Some(&quote);
            if is_quoted && memchr(quote, &field[1..field.len() - 1]).is_some() {
                self.fields.truncate(before);
                return false;
            }
            let quotes = u32::from(is_quoted);
            self.fields.push((begin + quotes, end - quotes));
        }
        self.records.push((record.start, record.end + 1));
        true
    }
}

/// What one block shows.
struct Seen {
    /// The first byte of each line end that ends a record.
    ends: u64,
    /// All outside quotes.
    line_ends: u64,
    delimiters: u64,
    /// A quote stands where it is neither an opening nor a closing one; what is behind it was not looked at.
    is_odd: bool,
}

/// What is known at the end of a block; masks whose lowest bit alone may be set, but for `inside`.
struct Scan {
    marks: Marks,
    /// All bits: the block begins inside quotes.
    inside: u64,
    /// The byte before the block closes quotes, or stands where a field may begin after it, or is a line end outside quotes.
    after_quote: u64,
    after_break: u64,
    after_line_end: u64,
}

impl Scan {
    fn new(marks: Marks) -> Scan {
        Scan { marks, inside: 0, after_quote: 0, after_break: 1, after_line_end: 1 }
    }

    #[inline]
    fn next(&mut self, block: &Block, filled: u64) -> Seen {
        let quotes = places(block, self.marks.quote) & filled;
        let line_ends = (places(block, b'\n') | places(block, b'\r')) & filled;
        let delimiters = places(block, self.marks.delimiter) & filled;
        let breaks = delimiters | line_ends | quotes;
        // Set from an opening quote up to the byte before the closing one.
        let quoted = parity(quotes) ^ self.inside;
        let (opening, closing) = (quotes & quoted, quotes & !quoted);
        // A quote opens a field after a delimiter or a line end; after a quote it is the second of two in the text of a field.
        let opens_amiss = opening & !(breaks << 1 | self.after_break);
        let goes_on = (closing << 1 | self.after_quote) & !breaks & filled;
        let odd = opens_amiss | goes_on;
        let outside = line_ends & !quoted;
        let ends = outside & !(outside << 1 | self.after_line_end);
        self.inside = ((quoted as i64) >> 63) as u64;
        self.after_quote = closing >> 63;
        self.after_break = breaks >> 63;
        self.after_line_end = outside >> 63;
        let sound = (odd & odd.wrapping_neg()).wrapping_sub(1);
        Seen {
            ends: ends & sound,
            line_ends: outside & sound,
            delimiters: delimiters & !quoted & sound,
            is_odd: odd != 0,
        }
    }
}
