//! Which of 64 bytes are a given one, as 64 bits: for scans that have to look at every byte of a text.
//!
//! Bit `i` is byte `i`'s. Knows nothing of what the bytes mean.

/// As many bytes as a mask has bits.
pub const BLOCK_BYTES: usize = 64;
pub type Block = [u8; BLOCK_BYTES];

/// The places of `byte` in the block.
#[inline]
pub fn places(block: &Block, byte: u8) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        places_by_lanes(block, byte)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        places_by_words(block, byte)
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn places_by_lanes(block: &Block, byte: u8) -> u64 {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8};
    let word = |at: usize| i64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
    let mut places = 0;
    for at in [0, 16, 32, 48] {
        // SAFETY: values in, values out; SSE2 is part of every x86-64 processor.
        let lane = unsafe {
            _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_set_epi64x(word(at + 8), word(at)), _mm_set1_epi8(byte as i8)))
        };
        places |= u64::from(lane as u32) << at;
    }
    places
}

/// The same for every machine, eight bytes at a time.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[inline]
fn places_by_words(block: &Block, byte: u8) -> u64 {
    const LOW_BITS: u64 = u64::from_ne_bytes([0x7f; 8]);
    let mut places = 0;
    for at in (0..BLOCK_BYTES).step_by(8) {
        let differs =
            u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes")) ^ u64::from_ne_bytes([byte; 8]);
        // The high bit of each byte that is 0, and no other bit.
        let same = !(((differs & LOW_BITS) + LOW_BITS) | differs) & !LOW_BITS;
        // The product gathers the eight bits in its highest byte.
        places |= ((same >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << at;
    }
    places
}

/// Bit `i` is set when an odd number of the bits up to and with `i` are.
#[inline]
pub fn parity(mut places: u64) -> u64 {
    for distance in [1, 2, 4, 8, 16, 32] {
        places ^= places << distance;
    }
    places
}

/// The blocks of a text with the places that it fills in each: all, but in the last one. What lies behind the text is 0.
pub fn blocks(text: &[u8]) -> impl Iterator<Item = (Block, u64)> + '_ {
    let (whole, rest) = text.as_chunks::<BLOCK_BYTES>();
    let last = (!rest.is_empty()).then(|| {
        let mut block = [0; BLOCK_BYTES];
        block[..rest.len()].copy_from_slice(rest);
        (block, (1 << rest.len()) - 1)
    });
    whole.iter().map(|block| (*block, u64::MAX)).chain(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The slow twin.
    fn places_one_by_one(block: &Block, byte: u8) -> u64 {
        block.iter().enumerate().fold(0, |places, (i, held)| places | u64::from(*held == byte) << i)
    }

    /// Find and the verifier both read CSV by these masks, so nothing here is left to chance.
    #[test]
    fn every_byte_is_told_from_every_other_at_every_place() {
        for byte in 0..=u8::MAX {
            for held in 0..=u8::MAX {
                // Every pair of bytes at one place, and equal ones at all.
                let at = usize::from(byte.wrapping_add(held)) % BLOCK_BYTES;
                for at in if held == byte { 0..BLOCK_BYTES } else { at..at + 1 } {
                    let mut block = [!byte; BLOCK_BYTES];
                    block[at] = held;
                    let wanted = u64::from(held == byte) << at;
                    let found = (places(&block, byte), places_by_words(&block, byte));
                    assert_eq!(found, (wanted, wanted), "{byte} {held} {at}");
                }
                // Side by side, so that no byte speaks for its neighbour.
                let block: Block =
                    std::array::from_fn(|i| if (i / 3 + usize::from(held)) % 2 == 0 { held } else { byte });
                let wanted = places_one_by_one(&block, byte);
                assert_eq!((places(&block, byte), places_by_words(&block, byte)), (wanted, wanted), "{byte} {held}");
            }
        }
    }

    #[test]
    fn a_bit_turns_the_parity_of_all_from_it_on() {
        // With what the property below says of sums, these are all.
        for i in 0..64 {
            assert_eq!(parity(1 << i), u64::MAX << i, "{i}");
        }
        assert_eq!(parity(0), 0);
    }

    #[test]
    fn blocks_are_the_whole_text_and_nothing_else() {
        for length in 0..=3 * BLOCK_BYTES {
            let text: Vec<u8> = (0..length).map(|i| i as u8 | 0x80).collect();
            let (mut read, mut bits) = (Vec::new(), 0);
            for (block, filled) in blocks(&text) {
                assert_eq!(filled, places_one_by_one(&block.map(|byte| byte & 0x80), 0x80), "{length}");
                read.extend(block.iter().filter(|byte| **byte != 0));
                bits += filled.count_ones() as usize;
            }
            assert_eq!((read, bits), (text, length));
        }
    }

    proptest! {
        #[test]
        fn masks_are_what_is_counted_byte_by_byte(text in proptest::collection::vec(prop_oneof![0u8..4, 0x7eu8..0x83, 0xfeu8..], 0..200), byte: u8) {
            for byte in [byte, 0, 1, 0x7f, 0x80, 0xff] {
                for (block, _) in blocks(&text) {
                    let wanted = places_one_by_one(&block, byte);
                    prop_assert_eq!((places(&block, byte), places_by_words(&block, byte)), (wanted, wanted));
                }
            }
        }

        #[test]
        fn the_parity_of_two_is_that_of_each(a: u64, b: u64) {
            prop_assert_eq!(parity(a ^ b), parity(a) ^ parity(b));
        }
    }
}
