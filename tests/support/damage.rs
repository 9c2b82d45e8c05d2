//! Damage to files, drawn from a seed: bytes cut, flipped, moved and repeated; and numbers of Parquet's own Thrift structures
//! (counts, sizes, offsets) replaced by ones that no file can keep.

use parquet::file::metadata::ParquetMetaDataReader;

use crate::fault_store::draw;

/// Draws one number after the other.
pub struct Dice {
    seed: u64,
    throws: u64,
}

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice { seed, throws: 0 }
    }

    /// Below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.throws += 1;
        draw(self.seed, self.throws) as usize % bound.max(1)
    }

    pub fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Some bytes other than they were.
pub fn bytes(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut out = whole.to_vec();
    for _ in 0..1 + dice.below(3) {
        let at = dice.below(out.len());
        let span = (1 + dice.below(64)).min(out.len().saturating_sub(at));
        match dice.below(8) {
            0 => out.truncate(at),
            1 | 2 => out.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
            3 => out[at..at + span].fill(*dice.of(&[0x00, 0xff, b'"', b'\n', 0x80])),
            4 => drop(out.drain(at..at + span)),
            5 => {
                let again = out[at..at + span].to_vec();
                let to = dice.below(out.len());
                out.splice(to..to, again);
            }
            6 => {
                let random: Vec<u8> = (0..span).map(|_| dice.below(256) as u8).collect();
                out.splice(at..at + span, random);
            }
            _ => {
                let word = dice.of(&[u32::MAX, i32::MAX as u32, 0x8000_0000, 1 << 24]).to_le_bytes();
                out.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new);
            }
        }
    }
    out
}

/// A Parquet file with one number of its footer or of a page header replaced, the footer's length set right.
pub fn parquet_number(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    let Ok(metadata) = ParquetMetaDataReader::new().parse_and_finish(&::bytes::Bytes::copy_from_slice(whole)) else {
        return bytes(whole, dice);
    };
    let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
    let mut structs: Vec<usize> = columns
        .flat_map(|column| [column.dictionary_page_offset(), Some(column.data_page_offset())])
        .flatten()
        .map(|offset| offset as usize)
        .collect();
    let length = u32::from_le_bytes(whole[whole.len() - 8..whole.len() - 4].try_into().unwrap()) as usize;
    let footer = whole.len() - 8 - length;
    // Most numbers are in the footer; page headers get their share all the same.
    structs.push(footer);
    let start = if dice.below(3) > 0 { footer } else { *dice.of(&structs) };
    let mut numbers = Vec::new();
    read_struct(whole, start, &mut numbers);
    let Some((at, end, kind)) = numbers.get(dice.below(numbers.len())).copied() else { return bytes(whole, dice) };
    let new = match kind {
        Kind::Number => varint(zigzag(extreme(unzigzag(read_varint(whole, at).0), dice))),
        Kind::Length => varint(*dice.of(&[0, 1, 1 << 16, i32::MAX as u64, u64::from(u32::MAX), u64::MAX >> 1])),
        // A list of more than 14 elements spells its count as a varint after the type.
        Kind::Count => {
            let count = *dice.of(&[15, 1 << 20, i32::MAX as u64, u64::from(u32::MAX)]);
            [vec![0xf0 | (whole[at] & 0x0f)], varint(count)].concat()
        }
    };
    let (grown, mut out) = (new.len() as isize - (end - at) as isize, whole.to_vec());
    out.splice(at..end, new);
    if start == footer {
        let length = (length as isize + grown) as u32;
        let tail = out.len() - 8;
        out[tail..tail + 4].copy_from_slice(&length.to_le_bytes());
    }
    out
}

fn extreme(old: i64, dice: &mut Dice) -> i64 {
    let far = [0, -1, 1, 7, 1 << 16, i64::from(i32::MAX), i64::from(i32::MIN), 1 << 31, 1 << 32, i64::MAX, i64::MIN];
    let near = [
        1_000_000_000_000_000_000,
        old + 1,
        old - 1,
        old.wrapping_mul(2),
        old.wrapping_neg(),
        old ^ 0x55,
        2_000_000_000,
    ];
    if dice.below(2) == 0 { *dice.of(&far) } else { *dice.of(&near) }
}

#[derive(Clone, Copy)]
enum Kind {
    Number,
    /// Of a string, in bytes.
    Length,
    /// Of a list, with its type.
    Count,
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// The value and where it ends.
fn read_varint(bytes: &[u8], mut at: usize) -> (u64, usize) {
    let (mut value, mut shift) = (0u64, 0);
    while let Some(byte) = bytes.get(at) {
        value |= u64::from(byte & 0x7f) << shift;
        (at, shift) = (at + 1, shift + 7);
        if byte & 0x80 == 0 || shift > 63 {
            break;
        }
    }
    (value, at)
}

/// Where the numbers of a struct in Thrift's compact protocol stand; returns where it ends.
fn read_struct(bytes: &[u8], mut at: usize, numbers: &mut Vec<(usize, usize, Kind)>) -> usize {
    while at < bytes.len() {
        let head = bytes[at];
        at += 1;
        if head == 0 {
            break;
        }
        // A field number that does not fit beside the type follows as a varint.
        if head >> 4 == 0 {
            at = read_varint(bytes, at).1;
        }
        at = read_value(bytes, at, head & 0x0f, numbers);
    }
    at
}

fn read_value(bytes: &[u8], at: usize, kind: u8, numbers: &mut Vec<(usize, usize, Kind)>) -> usize {
    match kind {
        3 => at + 1,
        4..=6 => {
            let end = read_varint(bytes, at).1;
            numbers.push((at, end, Kind::Number));
            end
        }
        7 => at + 8,
        8 => {
            let (length, end) = read_varint(bytes, at);
            numbers.push((at, end, Kind::Length));
            end + length as usize
        }
        9 | 10 => {
            let (mut count, mut end) = ((bytes[at] >> 4) as usize, at + 1);
            if count == 15 {
                let (long, after) = read_varint(bytes, end);
                (count, end) = (long as usize, after);
            }
            numbers.push((at, end, Kind::Count));
            let element = bytes[at] & 0x0f;
            (0..count).fold(end, |at, _| if element <= 2 { at + 1 } else { read_value(bytes, at, element, numbers) })
        }
        12 => read_struct(bytes, at, numbers),
        _ => at,
    }
}

/// A Parquet file of no rows whose schema is `depth` groups deep.
pub fn deep_parquet(depth: usize) -> Vec<u8> {
    // FileMetaData: 1 version i32, 2 schema list<struct>, 3 num_rows i64, 4 row_groups list<struct>.
    let mut footer = vec![0x15, 0x02, 0x19];
    footer.extend([vec![0xfc], varint(depth as u64 + 1)].concat());
    for level in 0..=depth {
        // SchemaElement: 1 type i32, 3 repetition i32, 4 name, 5 num_children i32.
        match level == depth {
            true => footer.extend([0x15, 0x0c, 0x25, 0x02, 0x18, 0x01, b'a', 0x00]),
            false => footer.extend([0x35, 0x02, 0x18, 0x01, b'a', 0x15, 0x02, 0x00]),
        }
    }
    footer.extend([0x16, 0x00, 0x19, 0x0c, 0x00]);
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1".as_slice(), &footer, &length, b"PAR1"].concat()
}

/// A Parquet file whose footer nests structs that no reader knows, `depth` deep.
pub fn deep_thrift(depth: usize) -> Vec<u8> {
    // Field 15, a struct, again and again.
    let footer = [vec![0xfc; depth], vec![0x00; depth + 1]].concat();
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1".as_slice(), &footer, &length, b"PAR1"].concat()
}
