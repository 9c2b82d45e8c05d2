//! Bloom filters: whether one holds a listed identifier that no value of its chunk explains.
//!
//! A filter is made again, of the same size, from the values that are there. If that sets every bit of the one in the file, all is
//! explained, and no list is asked. What is set beyond that was put there for values that are gone. A listed identifier that the
//! file's filter knows, and the one made again does not, may be one of them or stand there by chance: [`FilterCheck::verdict`] has
//! the test. A chunk that is encoded anew gets a filter of its own values, so that a finding never comes back.

use polars::prelude::*;
use polars_parquet::parquet::bloom_filter::{hash_byte, hash_native, insert, is_in_set};
use polars_parquet::parquet::schema::types::PhysicalType;

use crate::thrift::read;
use crate::verify_batch::Fault;

/// A filter of the file beside the one made again.
#[derive(Debug)]
pub struct FilterCheck {
    stored: Vec<u8>,
    again: Vec<u8>,
    physical: PhysicalType,
    /// Some values could not be hashed as they are stored.
    incomplete: bool,
}

/// Gives the hashes of all that is listed.
pub type EachHash<'a> = dyn Fn(&mut dyn FnMut(u64)) + 'a;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterVerdict {
    Explained,
    Residue,
    /// It holds more than its values explain, in a form that the lists cannot be compared with.
    CannotTell,
}

const BLOCK_BYTES: usize = 32;

fn malformed() -> Fault {
    Fault::unreadable("a bloom filter is malformed")
}

/// The whole length of the filter whose head this is.
pub fn filter_length(head: &[u8]) -> Result<u64, Fault> {
    let (header, length) = read(head).map_err(|_| malformed())?;
    let bits = header.integer(1).and_then(|bits| u64::try_from(bits).ok()).ok_or_else(malformed)?;
    Ok(length as u64 + bits)
}

impl FilterCheck {
    /// `None`: an algorithm, hash or compression that nobody has defined yet.
    pub fn new(filter: &[u8], physical: PhysicalType) -> Result<Option<FilterCheck>, Fault> {
        let (header, length) = read(filter).map_err(|_| malformed())?;
        let known = |field: i16| header.field(field).is_some_and(|of| of.field(1).is_some());
        if !(known(2) && known(3) && known(4)) {
            return Ok(None);
        }
        let bits = header.integer(1).and_then(|bits| usize::try_from(bits).ok()).ok_or_else(malformed)?;
        let stored = filter.get(length..).and_then(|rest| rest.get(..bits)).ok_or_else(malformed)?.to_vec();
        if stored.is_empty() || stored.len() % BLOCK_BYTES != 0 {
            return Err(malformed());
        }
        let again = vec![0; stored.len()];
        Ok(Some(FilterCheck { stored, again, physical, incomplete: false }))
    }

    /// Values that are there.
    pub fn insert(&mut self, values: &Series) {
        if self.insert_all(values).is_none() {
            self.incomplete = true;
        }
    }

    fn insert_all(&mut self, values: &Series) -> Option<()> {
        let again = &mut self.again;
        let integers = || values.cast(&DataType::Int64).ok();
        match (self.physical, values.dtype()) {
            (PhysicalType::ByteArray, DataType::String) => {
                values.str().ok()?.iter().flatten().for_each(|text| insert(again, hash_byte(text)));
            }
            (PhysicalType::ByteArray | PhysicalType::FixedLenByteArray(_), DataType::Binary) => {
                values.binary().ok()?.iter().flatten().for_each(|bytes| insert(again, hash_byte(bytes)));
            }
            (PhysicalType::Int32, dtype) if dtype.is_integer() => {
                integers()?.i64().ok()?.iter().flatten().for_each(|value| insert(again, hash_native(value as i32)));
            }
            (PhysicalType::Int64, DataType::UInt64) => {
                values.u64().ok()?.iter().flatten().for_each(|value| insert(again, hash_native(value as i64)));
            }
            (PhysicalType::Int64, dtype) if dtype.is_integer() => {
                integers()?.i64().ok()?.iter().flatten().for_each(|value| insert(again, hash_native(value)));
            }
            _ => return None,
        }
        Some(())
    }

    /// `listed` gives the hashes of all that is listed. Of those that the values do not explain, `m` in number, each is in the file's
    /// filter by chance with the share of such hashes that its bits let through; `m` times that are expected. What is found beyond
    /// three standard deviations of that (Poisson: its root) is no chance. With few listed identifiers or few bits set one is enough.
    /// Without `all_spelled` there is more listed than `listed` can give.
    pub fn verdict(&self, listed: &EachHash<'_>, all_spelled: bool) -> FilterVerdict {
        if self.stored.iter().zip(&self.again).all(|(stored, again)| stored & !again == 0) {
            return FilterVerdict::Explained;
        }
        if self.incomplete || self.physical != PhysicalType::ByteArray {
            return FilterVerdict::CannotTell;
        }
        let (mut asked, mut known) = (0u64, 0u64);
        listed(&mut |hash| {
            if !is_in_set(&self.again, hash) {
                asked += 1;
                known += u64::from(is_in_set(&self.stored, hash));
            }
        });
        let by_chance = asked as f64 * (let_through(&self.stored) - let_through(&self.again)).max(0.0);
        if known as f64 > by_chance + 3.0 * by_chance.sqrt() {
            FilterVerdict::Residue
        } else if all_spelled {
            FilterVerdict::Explained
        } else {
            FilterVerdict::CannotTell
        }
    }
}

/// The share of hashes that a filter lets through: in a block the product, over its eight words, of the share of bits that are set.
fn let_through(bits: &[u8]) -> f64 {
    let word = |word: &[u8]| f64::from(word.iter().map(|byte| byte.count_ones()).sum::<u32>()) / 32.0;
    let block = |block: &[u8]| block.chunks_exact(4).map(word).product::<f64>();
    let blocks = bits.len() / BLOCK_BYTES;
    bits.chunks_exact(BLOCK_BYTES).map(block).sum::<f64>() / blocks as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(blocks: usize, stored: &[&str], there: &[&str]) -> FilterCheck {
        let mut bits = vec![0; blocks * BLOCK_BYTES];
        stored.iter().for_each(|value| insert(&mut bits, hash_byte(value)));
        let again = vec![0; bits.len()];
        let mut check = FilterCheck { stored: bits, again, physical: PhysicalType::ByteArray, incomplete: false };
        check.insert(&Series::new("v".into(), there));
        check
    }

    fn verdict(check: &FilterCheck, listed: &[String]) -> FilterVerdict {
        check.verdict(&|each| listed.iter().for_each(|value| each(hash_byte(value))), true)
    }

    #[test]
    fn what_is_gone_is_found_and_what_is_there_explains_itself() {
        let anna = [String::from("anna")];
        assert_eq!(verdict(&check(1, &["anna", "bob"], &["bob"]), &anna), FilterVerdict::Residue);
        assert_eq!(verdict(&check(1, &["anna", "bob"], &["bob", "anna"]), &anna), FilterVerdict::Explained);
        assert_eq!(verdict(&check(1, &["eve", "bob"], &["bob"]), &anna), FilterVerdict::Explained);
        let mut numbers = check(1, &["anna", "bob"], &["bob"]);
        numbers.physical = PhysicalType::Int64;
        assert_eq!(verdict(&numbers, &anna), FilterVerdict::CannotTell);
    }

    #[test]
    fn chance_alone_is_no_finding_and_more_than_chance_is() {
        // A block that other people's values have filled lets about half of everything through.
        let others: Vec<String> = (0..40).map(|i| format!("gone {i}")).collect();
        let mut stored: Vec<&str> = others.iter().map(String::as_str).collect();
        let listed: Vec<String> = (0..1000).map(|i| format!("listed {i}")).collect();
        let dense = check(1, &stored, &[]);
        assert!((0.05..0.5).contains(&let_through(&dense.stored)), "{}", let_through(&dense.stored));
        assert_eq!(verdict(&dense, &listed), FilterVerdict::Explained);
        // In a filter of a usual density the same number of listed ones stands out.
        stored.extend(listed[..100].iter().map(String::as_str));
        assert_eq!(verdict(&check(64, &stored, &[]), &listed), FilterVerdict::Residue);
        assert_eq!(verdict(&check(64, &stored[..40], &[]), &listed), FilterVerdict::Explained);
    }

    #[test]
    fn headers_are_read_and_false_sizes_refused() {
        // numBytes 32, BLOCK, XXHASH, UNCOMPRESSED
        let header = [0x15, 0x40, 0x1c, 0x1c, 0, 0, 0x1c, 0x1c, 0, 0, 0x1c, 0x1c, 0, 0, 0];
        let filter = [&header[..], &[0; 32]].concat();
        assert_eq!(filter_length(&filter[..20]).unwrap(), filter.len() as u64);
        assert!(FilterCheck::new(&filter, PhysicalType::ByteArray).unwrap().is_some());
        assert!(FilterCheck::new(&filter[..40], PhysicalType::ByteArray).is_err());
        let huge = [&[0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f][..], &header[2..]].concat();
        assert!(FilterCheck::new(&huge, PhysicalType::ByteArray).is_err());
    }
}
