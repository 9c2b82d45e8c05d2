//! Where many records end at once: 64 bytes at a time, by quotes and line ends alone.
//!
//! It takes neat text only, in which every quote opens a field, closes one, or is half of a doubled one. There `csv-core` ends its
//! records at the line ends outside quotes, which is what the masks show. The first other quote ends a run before its record; who
//! asks for runs has that record read by [`super::csv::Records`] in full.

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

/// What one block shows.
struct Seen {
    /// The first byte of each line end that ends a record.
    ends: u64,
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
        let breaks = places(block, self.marks.delimiter) & filled | line_ends | quotes;
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
        Seen { ends: ends & (odd & odd.wrapping_neg()).wrapping_sub(1), is_odd: odd != 0 }
    }
}
