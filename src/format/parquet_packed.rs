//! What pages pack: levels and dictionary indexes in the RLE / bit-packing hybrid, values in encoding PLAIN (Parquet format,
//! Encodings.md).
//!
//! Pure, on decompressed pages. Invariant: a count that a page claims is never taken for room before its bytes make it credible. One
//! repeated run makes any number of levels credible: whoever asks for levels knows from elsewhere how many the page may have.

use std::ops::Range;

use parquet::basic::Encoding;
use parquet::column::page::Page;
use parquet::errors::{ParquetError, Result};

#[allow(deprecated)]
pub fn is_dictionary(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY)
}

pub fn corrupt(reason: &str) -> ParquetError {
    ParquetError::General(reason.to_owned())
}

/// The repetition levels, the definition levels and the values of a data page whose levels are in encoding RLE.
pub fn parts(page: &Page, max_repetition: u16, max_definition: u16) -> Result<[&[u8]; 3]> {
    let (buf, [repetition, definition, values]) = match page {
        Page::DictionaryPage { .. } => return Err(corrupt("a dictionary in place of values")),
        Page::DataPage { buf, .. } => {
            let mut at = 0;
            let repetition = length_prefixed(buf, &mut at, max_repetition)?;
            let definition = length_prefixed(buf, &mut at, max_definition)?;
            (buf, [repetition, definition, at..buf.len()])
        }
        Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
            let repetition = *rep_levels_byte_len as usize;
            let levels = repetition + *def_levels_byte_len as usize;
            (buf, [0..repetition, repetition..levels, levels..buf.len()])
        }
    };
    let part = |range: Range<usize>| buf.get(range).ok_or_else(|| corrupt("levels longer than their page"));
    Ok([part(repetition)?, part(definition)?, part(values)?])
}

/// Values of encoding PLAIN: a length and so many bytes, or bytes of the column's own length.
pub struct Plain<'a> {
    rest: &'a [u8],
    fixed_bytes: Option<usize>,
}

impl<'a> Plain<'a> {
    pub fn new(rest: &'a [u8], fixed_bytes: Option<usize>) -> Self {
        Plain { rest, fixed_bytes }
    }

    #[inline]
    pub fn read(&mut self) -> Result<&'a [u8]> {
        let length = match self.fixed_bytes {
            Some(length) => length,
            None => {
                let (length, rest) = self.rest.split_first_chunk::<4>().ok_or_else(|| corrupt("a value cut short"))?;
                self.rest = rest;
                u32::from_le_bytes(*length) as usize
            }
        };
        let (value, rest) = self.rest.split_at_checked(length).ok_or_else(|| corrupt("a value cut short"))?;
        self.rest = rest;
        Ok(value)
    }
}

/// The span of levels that a page of the first version puts behind their length; empty for a column without such levels.
fn length_prefixed(buf: &[u8], at: &mut usize, max: u16) -> Result<Range<usize>> {
    if max == 0 {
        return Ok(0..0);
    }
    let length = buf.get(*at..*at + 4).ok_or_else(|| corrupt("levels longer than their page"))?;
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    let start = *at + 4;
    *at = start
        .checked_add(length)
        .filter(|end| *end <= buf.len())
        .ok_or_else(|| corrupt("levels longer than their page"))?;
    Ok(start..*at)
}

/// Replaces `out` by so many levels: two bytes each, however few bytes `packed` has.
pub fn decode_levels(packed: &[u8], max: u16, levels: usize, out: &mut Vec<u16>) -> Result<()> {
    out.clear();
    if max == 0 {
        return Ok(());
    }
    let mut hybrid = Hybrid::new(packed, level_bits(max))?;
    while out.len() < levels {
        let left = levels - out.len();
        match hybrid.run()? {
            Run::Repeated(value, count) => out.resize(out.len() + count.min(left), value as u16),
            Run::Packed(count) => {
                for _ in 0..count.min(left) {
                    out.push(hybrid.unpack() as u16);
                }
            }
        }
    }
    Ok(())
}

/// The RLE / bit-packing hybrid of the Parquet format's Encodings.md.
pub struct Hybrid<'a> {
    rest: &'a [u8],
    width: u32,
    /// Values of the present run that are still to come.
    left: usize,
    /// Of a repeated run; `None` in a packed one.
    repeated: Option<u32>,
    packed: &'a [u8],
    bit: usize,
}

enum Run {
    Repeated(u32, usize),
    Packed(usize),
}

impl<'a> Hybrid<'a> {
    pub fn new(rest: &'a [u8], width: u32) -> Result<Self> {
        if width > 32 {
            return Err(corrupt("values of more than 32 bits"));
        }
        Ok(Hybrid { rest, width, left: 0, repeated: None, packed: &[], bit: 0 })
    }

    /// Begins the next run.
    fn run(&mut self) -> Result<Run> {
        let header = self.varint()?;
        let count = (header >> 1) as usize;
        if header & 1 == 0 {
            let bytes = self.width.div_ceil(8) as usize;
            let (value, rest) = self.rest.split_at_checked(bytes).ok_or_else(|| corrupt("a run cut short"))?;
            self.rest = rest;
            let mut whole = [0; 4];
            whole[..bytes].copy_from_slice(value);
            let value = u32::from_le_bytes(whole);
            // A run of nothing would never end.
            if count == 0 {
                return Err(corrupt("an empty run"));
            }
            (self.repeated, self.left) = (Some(value), count);
            return Ok(Run::Repeated(value, count));
        }
        // Groups of eight; the last one may be cut where the page ends.
        let bytes = count.checked_mul(self.width as usize).ok_or_else(|| corrupt("a run too long"))?;
        let (packed, rest) = self.rest.split_at(bytes.min(self.rest.len()));
        let whole = if self.width == 0 { count * 8 } else { packed.len() * 8 / self.width as usize };
        if whole == 0 {
            return Err(corrupt("an empty run"));
        }
        (self.rest, self.packed, self.bit) = (rest, packed, 0);
        (self.repeated, self.left) = (None, whole.min(count.saturating_mul(8)));
        Ok(Run::Packed(self.left))
    }

    #[inline]
    pub fn read(&mut self) -> Result<u32> {
        if self.left == 0 {
            self.run()?;
        }
        self.left -= 1;
        Ok(match self.repeated {
            Some(value) => value,
            None => self.unpack(),
        })
    }

    /// The next `values`, behind what is in `out`.
    pub fn read_all(&mut self, values: usize, out: &mut Vec<u32>) -> Result<()> {
        let mut missing = values;
        while missing > 0 {
            if self.left == 0 {
                self.run()?;
            }
            let count = self.left.min(missing);
            match self.repeated {
                Some(value) => out.resize(out.len() + count, value),
                None => out.extend((0..count).map(|_| self.unpack())),
            }
            (self.left, missing) = (self.left - count, missing - count);
        }
        Ok(())
    }

    /// The next value of a packed run, which must have one.
    #[inline]
    fn unpack(&mut self) -> u32 {
        let (byte, shift) = (self.bit / 8, self.bit % 8);
        self.bit += self.width as usize;
        let window = match self.packed.get(byte..byte + 8) {
            Some(window) => u64::from_le_bytes(window.try_into().expect("eight bytes")),
            None => {
                let mut window = [0; 8];
                let end = self.packed.len().min(byte + 8);
                window[..end - byte].copy_from_slice(&self.packed[byte..end]);
                u64::from_le_bytes(window)
            }
        };
        ((window >> shift) & ((1 << self.width) - 1)) as u32
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or_else(|| corrupt("a run cut short"))?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(corrupt("a run too long"))
    }
}

/// The bits that a level of at most `max` takes.
pub fn level_bits(max: u16) -> u32 {
    16 - max.leading_zeros()
}

/// Groups of eight values in one packed run at most: with more, its head would be longer than the byte that old readers expect.
const PACKED_GROUPS_MAX: usize = 63;

/// Packs `values` of `width` bits each, at most 32, behind what is in `out`: repeated ones as runs, the others in groups of eight.
pub fn pack(values: &[u32], width: u32, out: &mut Vec<u8>) {
    let (mut at, mut packed_to) = (0, 0);
    while at < values.len() {
        let run = values[at..].iter().take_while(|value| **value == values[at]).count();
        // Groups before a run are whole: they take as many of the repeated values as they are short of.
        let short = (8 - (at - packed_to) % 8) % 8;
        if run >= short + 8 {
            pack_groups(&values[packed_to..at + short], width, out);
            put_varint(((run - short) as u64) << 1, out);
            out.extend_from_slice(&values[at].to_le_bytes()[..width.div_ceil(8) as usize]);
            packed_to = at + run;
        }
        at += run;
    }
    pack_groups(&values[packed_to..], width, out);
}

fn pack_groups(values: &[u32], width: u32, out: &mut Vec<u8>) {
    for values in values.chunks(PACKED_GROUPS_MAX * 8) {
        let groups = values.len().div_ceil(8);
        put_varint((groups as u64) << 1 | 1, out);
        let end = out.len() + groups * width as usize;
        let (mut held, mut bits) = (0u64, 0);
        for value in values {
            held |= u64::from(*value) << bits;
            bits += width;
            while bits >= 8 {
                out.push(held as u8);
                held >>= 8;
                bits -= 8;
            }
        }
        if bits > 0 {
            out.push(held as u8);
        }
        out.resize(end, 0);
    }
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_packed_groups_are_unpacked() {
        // The example of Encodings.md: 0 to 7 in three bits; then five times 4; then a group of eight zeros.
        let packed = [0x03, 0x88, 0xc6, 0xfa, 0x0a, 0x04, 0x03, 0, 0, 0];
        let mut hybrid = Hybrid::new(&packed, 3).unwrap();
        let values: Vec<u32> = (0..21).map(|_| hybrid.read().unwrap()).collect();
        assert_eq!(values, [0, 1, 2, 3, 4, 5, 6, 7, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(hybrid.read().is_err());
    }

    #[test]
    fn broken_runs_are_errors_and_never_endless() {
        for (packed, width) in [(&[0x00, 0x01][..], 3), (&[0x01], 3), (&[0xff; 9], 3), (&[0x02], 3), (&[], 3)] {
            assert!(Hybrid::new(packed, width).unwrap().read().is_err(), "{packed:?}");
        }
        assert!(Hybrid::new(&[2, 0], 40).is_err());
        let mut levels = Vec::new();
        assert!(decode_levels(&[0x02, 0x01], 1, 5, &mut levels).is_err(), "fewer levels than values");
    }

    #[test]
    fn what_is_packed_is_unpacked_again() {
        let mixed: Vec<u32> =
            (0..3000).map(|i: u32| if i % 97 < 40 { 5 } else { i.wrapping_mul(2_654_435_761) >> 7 }).collect();
        for width in [0, 1, 2, 3, 7, 8, 9, 17, 31, 32] {
            let mask = if width == 0 { 0 } else { u32::MAX >> (32 - width) };
            for length in [0, 1, 7, 8, 9, 16, 500, 505, 3000] {
                let values: Vec<u32> = mixed[..length].iter().map(|value| value & mask).collect();
                let mut packed = Vec::new();
                pack(&values, width, &mut packed);
                let mut hybrid = Hybrid::new(&packed, width).unwrap();
                let read: Vec<u32> = values.iter().map(|_| hybrid.read().unwrap()).collect();
                assert_eq!(read, values, "{length} values of {width} bits");
            }
        }
        let mut packed = Vec::new();
        pack(&[4; 1000], 3, &mut packed);
        assert_eq!(packed, [0xd0, 0x0f, 4], "one run");
    }
}
