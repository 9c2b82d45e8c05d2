//! A first look at e-mail addresses: most values of a column are nobody's, and a few words of their bytes tell so.
//!
//! A fingerprint is made of the bytes in one pass that also proves which canonical form they have, and one bit answers for it. The
//! answer "is not listed" is exact; any other is left to the match index. A screen costs two bytes an address and holds nothing readable.

use crate::key_table::prefetch;

/// Which fingerprints belong to a listed address, and to some others.
#[derive(Debug)]
pub struct Screen {
    bits: Box<[u64]>,
}

/// Bits for each listed address: one value in sixteen passes that is not listed, when there are many.
const BITS_AN_ADDRESS: usize = 16;
/// As much as the first cache of a processor holds.
const BITS_MIN: usize = 1 << 18;
/// More than this is not near a processor: half of what its second cache holds, of those that do not hold much.
const BITS_NEAR: usize = 512 << 13;
/// As many as fingerprints can tell apart: from 2^28 addresses on, more of them would be the bits of nobody.
const BITS_MAX: usize = u32::MAX as usize;

impl Screen {
    /// Of the fingerprints of all listed addresses that have one.
    pub fn new(fingerprints: &[u32]) -> Screen {
        let mut screen = Screen { bits: vec![0; words_for(fingerprints.len())].into() };
        for fingerprint in fingerprints {
            let (word, bit) = place(*fingerprint, screen.bits.len());
            screen.bits[word] |= 1 << bit;
        }
        screen
    }

    /// Whether an address of that fingerprint may be listed.
    #[inline]
    pub fn holds(&self, fingerprint: u32) -> bool {
        let (word, bit) = place(fingerprint, self.bits.len());
        self.bits[word] >> bit & 1 != 0
    }

    /// Whether a look is so slow that it is worth telling of ahead, by [`Screen::fetch`].
    pub fn is_far(&self) -> bool {
        self.bits.len() * 64 > BITS_NEAR
    }

    /// Has the processor fetch what [`Screen::holds`] will look at.
    #[inline]
    pub fn fetch(&self, fingerprint: u32) {
        prefetch(&self.bits[place(fingerprint, self.bits.len()).0]);
    }
}

/// Words of 64 bits for so many addresses.
fn words_for(addresses: usize) -> usize {
    addresses.saturating_mul(BITS_AN_ADDRESS).clamp(BITS_MIN, BITS_MAX).div_ceil(64)
}

/// The bit of a fingerprint among so many words, 2^26 at most: with more of them the product would overflow.
#[inline]
fn place(fingerprint: u32, words: usize) -> (usize, u32) {
    let place = (u64::from(fingerprint) * (words as u64 * 64)) >> 32;
    ((place / 64) as usize, (place % 64) as u32)
}

/// The fingerprint of the canonical form of an address ([`crate::identifier::Kind::Email`]) of 8 to 64 bytes that are ASCII above
/// the space, in any case, with an `@` that is neither the first byte nor the last. `None` says nothing.
///
/// Such an address and its canonical form have one fingerprint, and no other bytes have that form: what has white space or letters
/// outside ASCII has none.
#[inline]
pub fn fingerprint(address: &[u8]) -> Option<u32> {
    // Ends that overlap cover every length between one and two of them.
    match address.len() {
        8..=15 => {
            let mut whole = [0; 16];
            whole[..8].copy_from_slice(address.first_chunk::<8>()?);
            whole[8..].copy_from_slice(address.last_chunk::<8>()?);
            of_pieces([&whole], address)
        }
        16..=32 => of_pieces([address.first_chunk()?, address.last_chunk()?], address),
        33..=64 => {
            let (head, tail) = (address.first_chunk::<32>()?, address.last_chunk::<32>()?);
            of_pieces([head.first_chunk()?, head.last_chunk()?, tail.first_chunk()?, tail.last_chunk()?], address)
        }
        _ => None,
    }
}

const FACTORS: [u64; 8] = [
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x27d4_eb2f_1656_67c5,
    0x8525_96cf_aa6d_4b61,
    0xd6e8_feb8_6659_fd93,
    0xa076_1d64_78bd_642f,
    0xe703_7ed1_a0b4_28db,
];

/// Written so that a compiler takes sixteen bytes at a time.
#[inline(always)]
fn of_pieces<const N: usize>(pieces: [&[u8; 16]; N], address: &[u8]) -> Option<u32> {
    let (mut unfit, mut at) = ([0u8; 16], [0u8; 16]);
    let mut mixed = address.len() as u64;
    for (number, piece) in pieces.into_iter().enumerate() {
        let mut lower = [0u8; 16];
        for i in 0..16 {
            let byte = piece[i];
            unfit[i] |= u8::from(byte.wrapping_sub(b'!') >= 0x80 - b'!');
            at[i] |= u8::from(byte == b'@');
            lower[i] = byte | u8::from(byte.wrapping_sub(b'A') < 26) << 5;
        }
        let whole = u128::from_le_bytes(lower);
        let (low, high) = (whole as u64 ^ FACTORS[2 * number], (whole >> 64) as u64 ^ FACTORS[2 * number + 1]);
        let product = u128::from(low) * u128::from(high);
        mixed = mixed.rotate_left(23) ^ product as u64 ^ (product >> 64) as u64;
    }
    let is_address = u128::from_le_bytes(unfit) == 0
        && u128::from_le_bytes(at) != 0
        && address.first() != Some(&b'@')
        && address.last() != Some(&b'@');
    is_address.then(|| (mixed.wrapping_mul(FACTORS[0]) >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identifier::{Canonical, Kind, Value};

    fn canonical(text: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        (Kind::Email.canonicalise(Value::Text(text), &mut out) == Canonical::Text).then_some(out)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// The slow twin is the canonical form.
        #[test]
        fn a_value_with_a_fingerprint_has_that_of_its_canonical_form(
            text in "[ -~]{0,70}|[a-zA-Z.]{0,40}@[a-zA-Z.]{0,40}|[aB @é\u{a0}İK\t]{6,30}"
        ) {
            if let Some(known) = fingerprint(text.as_bytes()) {
                let canonical = canonical(&text).expect("an address");
                prop_assert_eq!(text.to_ascii_lowercase().into_bytes(), canonical.clone());
                prop_assert_eq!(fingerprint(&canonical), Some(known));
            }
        }

        /// Addresses that are listed are never screened out, in whatever spelling.
        #[test]
        fn what_is_listed_passes(local in "[a-z0-9.]{1,30}", domain in "[a-z0-9.]{1,33}", shout in proptest::collection::vec(any::<bool>(), 70)) {
            let listed = format!("{local}@{domain}");
            let screen = Screen::new(&Vec::from_iter(fingerprint(listed.as_bytes())));
            let spell = |(c, up): (char, &bool)| if *up { c.to_ascii_uppercase() } else { c };
            let spelled: String = listed.chars().zip(&shout).map(spell).collect();
            let passes = |text: &str| fingerprint(text.as_bytes()).is_none_or(|known| screen.holds(known));
            let spaced = format!(" {spelled}\u{a0}");
            prop_assert!(passes(&listed) && passes(&spelled) && passes(&spaced));
            prop_assert_eq!(fingerprint(listed.as_bytes()).is_some(), (8..=64).contains(&listed.len()));
        }
    }

    #[test]
    fn what_is_no_plain_address_has_no_fingerprint() {
        for text in [
            "",
            "a@b.c",
            "a.b.c.d.e",
            "@nna.example.com",
            "anna.example@",
            "anna @example.com",
            "anna@example.com\n",
            "änna@example.com",
            "anna@example.c\u{7f}om\u{80}",
        ] {
            assert_eq!(fingerprint(text.as_bytes()), None, "{text:?}");
        }
        assert!(fingerprint(&[b'a'; 65]).is_none() && fingerprint(b"anna@exa\0mple.com").is_none());
    }

    #[test]
    fn a_screen_of_any_number_of_addresses_has_a_place_for_every_fingerprint() {
        for addresses in [0, 1, 1 << 20, (1 << 28) - 1, 1 << 28, 1 << 29, usize::MAX] {
            let words = words_for(addresses);
            assert_eq!(place(0, words), (0, 0), "{addresses}");
            assert_eq!(place(u32::MAX, words).0, words - 1, "{addresses}");
        }
    }

    #[test]
    fn few_others_pass() {
        let address = |number: u32| format!("anna.brandt{number}@mail.example.com");
        let known = |number| fingerprint(address(number).as_bytes()).unwrap();
        for (listed, at_most) in [(1_000, 0.01), (100_000, 0.08)] {
            let screen = Screen::new(&(0..listed).map(known).collect::<Vec<u32>>());
            assert!((0..listed).all(|number| screen.holds(known(number))));
            let others = (listed..2 * listed).filter(|number| screen.holds(known(*number))).count();
            assert!((others as f64) < at_most * f64::from(listed), "{others} of {listed}");
        }
    }
}
