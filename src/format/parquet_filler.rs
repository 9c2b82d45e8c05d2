//! What stands in a dictionary in place of entries that no row uses any more: values that nobody has.
//!
//! Invariant: a filler equals no entry that is or was in the dictionary, and no other filler. Arrow's C++ library puts the entries of a
//! dictionary into a table without repetitions: of two that are equal one goes, and every index behind it means another value.
//! A filler tells nothing of what it replaces, lies where no identifier does, and is a value that the column's type allows, because
//! some readers convert whole dictionaries.

use std::collections::HashSet;

use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::schema::types::ColumnDescriptor;

/// What every filler in place of a text begins with; a number follows. The number is no telephone number: it is shorter.
const TEXT: &[u8] = b"unused entry ";
const NUMBERS_MAX: i128 = 999_999;

/// Days before 1970, in an age that every reader's calendar reaches and nobody was born in.
const ANCIENT_DAYS: i128 = 2_000_000;

/// So many fillers for a dictionary of these entries, some of which are `used`. `None`: the type has no values to spare, or none that
/// are known here.
pub fn fillers(column: &ColumnDescriptor, entries: &[&[u8]], used: &[bool], count: usize) -> Option<Vec<Vec<u8>>> {
    let manner = Manner::of(column, entries, used)?;
    let taken: HashSet<&[u8]> = entries.iter().filter(|entry| manner.may_be_filler(entry)).copied().collect();
    let mut out = Vec::with_capacity(count);
    let mut number = 0;
    while out.len() < count {
        number += 1;
        let filler = manner.filler(number)?;
        if !taken.contains(filler.as_slice()) {
            out.push(filler);
        }
    }
    Some(out)
}

/// How the fillers of a column are made.
enum Manner {
    /// In quotation marks, where texts are JSON.
    Text { quoted: bool },
    /// Whole numbers from `first` on, `step` by step, so many at most; their last bytes in two's complement, and then `rest`.
    Numbers { first: i128, step: i128, most: i128, bytes: usize, big_endian: bool, rest: Vec<u8> },
}

impl Manner {
    fn of(column: &ColumnDescriptor, entries: &[&[u8]], used: &[bool]) -> Option<Manner> {
        let logical = column.logical_type_ref();
        let numbers = |first: i128, step: i128, most: i128, bytes: usize| {
            Some(Manner::Numbers { first, step, most, bytes, big_endian: false, rest: Vec::new() })
        };
        match column.physical_type() {
            PhysicalType::BOOLEAN => None,
            PhysicalType::BYTE_ARRAY => match (logical, column.converted_type()) {
                (Some(LogicalType::Json), _) | (None, ConvertedType::JSON) => Some(Manner::Text { quoted: true }),
                (Some(LogicalType::String | LogicalType::Enum), _)
                | (None, ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM) => {
                    Some(Manner::Text { quoted: false })
                }
                _ => None,
            },
            // The negative number that is the farthest from zero, and its neighbours.
            PhysicalType::FLOAT => numbers(f32::MIN.to_bits().into(), -1, 1 << 22, 4),
            PhysicalType::DOUBLE => numbers(f64::MIN.to_bits().into(), -1, 1 << 50, 8),
            // Nanoseconds of a day, and the day behind them.
            PhysicalType::INT96 => {
                let base = in_use(entries, used).max_by_key(|entry| number_of(&entry[..8]))?;
                let first = number_of(&base[..8]);
                let rest = base[8..].to_vec();
                Some(Manner::Numbers { first, step: -1, most: first, bytes: 8, big_endian: false, rest })
            }
            PhysicalType::INT32 | PhysicalType::INT64 => {
                let bytes = if column.physical_type() == PhysicalType::INT32 { 4 } else { 8 };
                match range_of(column, bytes as u32 * 8) {
                    Some((first, step, most)) => numbers(first, step, most, bytes),
                    // Times, which readers put into other units: between zero and the farthest one that is in use.
                    None => {
                        let base = in_use(entries, used).map(number_of).max_by_key(|number| number.abs())?;
                        numbers(base, -base.signum(), base.abs() - 1, bytes)
                    }
                }
            }
            PhysicalType::FIXED_LEN_BYTE_ARRAY => {
                let length = usize::try_from(column.type_length()).ok()?;
                let of = |first, step, most, bytes, rest| {
                    Some(Manner::Numbers { first, step, most, bytes, big_endian: true, rest })
                };
                match (logical, column.converted_type()) {
                    (Some(LogicalType::Decimal(_)), _) | (_, ConvertedType::DECIMAL) if length <= 16 => {
                        let (first, step, most) = range_of(column, length as u32 * 8)?;
                        of(first, step, most, length, Vec::new())
                    }
                    // All ones, and then a number that goes down.
                    (None, ConvertedType::NONE) | (Some(LogicalType::Uuid), _) => {
                        let bytes = length.min(8);
                        let most = (1i128 << (8 * bytes)) - 1;
                        of(-1, -1, most, bytes, vec![0xff; length - bytes])
                    }
                    _ => None,
                }
            }
        }
    }

    /// Whether an entry has to be looked at. Most dictionaries are texts, of which few are like fillers.
    fn may_be_filler(&self, entry: &[u8]) -> bool {
        match self {
            Manner::Text { quoted } => entry[usize::from(*quoted).min(entry.len())..].starts_with(TEXT),
            Manner::Numbers { .. } => true,
        }
    }

    /// The filler of that number, from 1.
    fn filler(&self, number: i128) -> Option<Vec<u8>> {
        match self {
            Manner::Text { quoted } => {
                let quote: &[u8] = if *quoted { b"\"" } else { b"" };
                let digits = number.to_string();
                (number <= NUMBERS_MAX).then(|| [quote, TEXT, digits.as_bytes(), quote].concat())
            }
            Manner::Numbers { first, step, most, bytes, big_endian, rest } => {
                let value = first + step * number;
                let filler = match big_endian {
                    true => [rest, &value.to_be_bytes()[16 - bytes..]].concat(),
                    false => [&value.to_le_bytes()[..*bytes], rest].concat(),
                };
                (number <= *most).then_some(filler)
            }
        }
    }
}

/// The whole numbers that are fillers in a column where a number means itself or a day: the one before the first, the step, and how
/// many there are. `None`: a number means something else.
fn range_of(column: &ColumnDescriptor, bits: u32) -> Option<(i128, i128, i128)> {
    let signed = |bits: u32| Some((-1i128 << (bits - 1), 1, (1i128 << (bits - 1)) - 1));
    let unsigned = |bits: u32| Some((1i128 << bits, -1, (1i128 << bits) - 1));
    let decimal = |precision: i32| {
        let end = 10i128.checked_pow(u32::try_from(precision).ok()?)?;
        Some((-end, 1, end - 1))
    };
    match (column.logical_type_ref(), column.converted_type()) {
        (Some(LogicalType::Integer(integer)), _) => {
            let bits = u32::try_from(integer.bit_width).ok().filter(|width| (1..=bits).contains(width))?;
            if integer.is_signed { signed(bits) } else { unsigned(bits) }
        }
        (Some(LogicalType::Decimal(_)), _) | (None, ConvertedType::DECIMAL) => decimal(column.type_precision()),
        (Some(LogicalType::Date), _) | (None, ConvertedType::DATE) => Some((-ANCIENT_DAYS, -1, ANCIENT_DAYS)),
        (Some(_), _) => None,
        (None, ConvertedType::NONE) => signed(bits),
        (None, ConvertedType::INT_8) => signed(8),
        (None, ConvertedType::INT_16) => signed(16),
        (None, ConvertedType::INT_32) => signed(32),
        (None, ConvertedType::INT_64) => signed(64),
        (None, ConvertedType::UINT_8) => unsigned(8),
        (None, ConvertedType::UINT_16) => unsigned(16),
        (None, ConvertedType::UINT_32) => unsigned(32),
        (None, ConvertedType::UINT_64) => unsigned(64),
        (None, _) => None,
    }
}

fn in_use<'a>(entries: &'a [&[u8]], used: &'a [bool]) -> impl Iterator<Item = &'a [u8]> {
    entries.iter().zip(used).filter(|(_, used)| **used).map(|(entry, _)| *entry)
}

/// A plain number of at most 8 bytes.
fn number_of(bytes: &[u8]) -> i128 {
    let mut whole = [if bytes.last().is_some_and(|last| *last >= 0x80) { 0xff } else { 0 }; 16];
    whole[..bytes.len()].copy_from_slice(bytes);
    i128::from_le_bytes(whole)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::schema::parser::parse_message_type;
    use parquet::schema::types::SchemaDescriptor;

    use super::*;

    fn of(field: &str, entries: &[&[u8]], count: usize) -> Option<Vec<Vec<u8>>> {
        let schema = parse_message_type(&format!("message m {{ required {field}; }}")).unwrap();
        let column = SchemaDescriptor::new(Arc::new(schema)).column(0);
        fillers(&column, entries, &vec![true; entries.len()], count)
    }

    #[test]
    fn a_filler_is_no_entry_and_one_that_the_type_allows() {
        let minus = |number: i128, bytes: usize| (-number).to_le_bytes()[..bytes].to_vec();
        let day = [&7u64.to_le_bytes()[..], &9u32.to_le_bytes()].concat();
        let before = [&6u64.to_le_bytes()[..], &9u32.to_le_bytes()].concat();
        for (field, entries, wish) in [
            ("binary v (UTF8)", vec![&b"ann"[..]], b"unused entry 1".to_vec()),
            ("binary v (UTF8)", vec![b"unused entry 1", b"unused entry 2"], b"unused entry 3".to_vec()),
            ("binary v (JSON)", vec![b"\"unused entry 1\""], b"\"unused entry 2\"".to_vec()),
            ("binary v", vec![b"ann"], b"unused entry 1".to_vec()),
            ("int32 v", vec![&minus((1 << 31) - 1, 4)], minus((1 << 31) - 2, 4)),
            ("int64 v", vec![&5i64.to_le_bytes()], minus((1 << 63) - 1, 8)),
            ("int32 v (INTEGER(8,true))", vec![&5i32.to_le_bytes()], minus(127, 4)),
            ("int32 v (INTEGER(16,false))", vec![&5i32.to_le_bytes()], 65_535i32.to_le_bytes().to_vec()),
            ("int32 v (INTEGER(32,false))", vec![&5i32.to_le_bytes()], vec![0xff; 4]),
            ("int32 v (DATE)", vec![&5i32.to_le_bytes()], minus(ANCIENT_DAYS + 1, 4)),
            ("int64 v (DECIMAL(10,2))", vec![&5i64.to_le_bytes()], minus(9_999_999_999, 8)),
            (
                "int64 v (TIMESTAMP(MILLIS,true))",
                vec![&5i64.to_le_bytes(), &9i64.to_le_bytes()],
                8i64.to_le_bytes().to_vec(),
            ),
            ("int96 v", vec![&day], before),
            ("double v", vec![&1f64.to_le_bytes()], f64::MIN.next_up().to_le_bytes().to_vec()),
            ("float v", vec![&1f32.to_le_bytes()], f32::MIN.next_up().to_le_bytes().to_vec()),
            ("fixed_len_byte_array(9) v", vec![&[1; 9]], vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]),
            ("fixed_len_byte_array(2) v (DECIMAL(3,0))", vec![&[0, 1]], (-999i16).to_be_bytes().to_vec()),
        ] {
            assert_eq!(of(field, &entries, 1), Some(vec![wish]), "{field}");
        }
    }

    #[test]
    fn fillers_are_all_different_and_none_where_a_type_has_not_enough() {
        for field in ["binary v (UTF8)", "int32 v", "double v", "fixed_len_byte_array(16) v (UUID)", "int32 v (DATE)"] {
            let bytes = if field.contains("16") {
                16
            } else if field.contains("int32") {
                4
            } else {
                8
            };
            let made = of(field, &[&vec![1; bytes]], 5000).unwrap();
            assert_eq!(made.iter().collect::<HashSet<_>>().len(), 5000, "{field}");
        }
        // 127 negative numbers; no time before zero; 255 values of a byte.
        assert!(
            of("int32 v (INTEGER(8,true))", &[], 127).is_some() && of("int32 v (INTEGER(8,true))", &[], 128).is_none()
        );
        assert!(of("int32 v (TIME(MILLIS,true))", &[&3i32.to_le_bytes(), &1i32.to_le_bytes()], 1).is_some());
        assert!(of("int32 v (TIME(MILLIS,true))", &[&3i32.to_le_bytes(), &1i32.to_le_bytes()], 2).is_none());
        assert!(
            of("fixed_len_byte_array(1) v", &[], 255).is_some() && of("fixed_len_byte_array(1) v", &[], 256).is_none()
        );
        for field in ["binary v (BSON)", "fixed_len_byte_array(12) v (INTERVAL)", "fixed_len_byte_array(2) v (FLOAT16)"]
        {
            assert!(of(field, &[], 1).is_none(), "{field}");
        }
    }
}
