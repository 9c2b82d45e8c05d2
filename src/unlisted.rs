//! Values that are known not to be listed, where to ask again would be dear and values come again.
//!
//! Shared by all threads without a lock. A value is known by 64 bits of a keyed 128-bit hash, of which the other half says where it
//! stands: that another value is taken for it has a probability of 2^-64 for each question. Only what is not listed is kept, so that
//! whatever is found was asked for itself. Small enough for a processor's cache: to look a value up in main memory takes about as long
//! as to make its tag.

use std::sync::atomic::{AtomicU64, Ordering};

/// As many values as one line of a cache holds; 0 is nobody.
#[repr(align(64))]
#[derive(Default)]
struct Line([AtomicU64; 8]);

/// 4 MiB.
const LINES: usize = 1 << 16;

/// A set of keyed hashes that forgets: once a line is full, later values take the place of earlier ones.
pub struct Unlisted(Box<[Line]>);

impl Default for Unlisted {
    fn default() -> Self {
        Unlisted(std::iter::repeat_with(Line::default).take(LINES).collect())
    }
}

impl Unlisted {
    /// By other bits than a value is known by.
    #[inline]
    fn line(&self, key: u128) -> &[AtomicU64; 8] {
        &self.0[key as usize % LINES].0
    }

    #[inline]
    pub fn holds(&self, key: u128) -> bool {
        let known = (key >> 64) as u64;
        known != 0 && self.line(key).iter().any(|it| it.load(Ordering::Relaxed) == known)
    }

    pub fn insert(&self, key: u128) {
        let (known, line) = ((key >> 64) as u64, self.line(key));
        let free = line.iter().find(|it| it.load(Ordering::Relaxed) == 0);
        free.unwrap_or(&line[known as usize % line.len()]).store(known, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spread over all bits, as a hash is.
    fn key(i: u128) -> u128 {
        (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }

    #[test]
    fn what_was_put_in_is_held_and_nothing_else() {
        let unlisted = Unlisted::default();
        assert!(!unlisted.holds(key(0)));
        for i in 0..1000 {
            unlisted.insert(key(i));
            assert!(unlisted.holds(key(i)));
        }
        assert!((0..1000).all(|i| unlisted.holds(key(i))));
        assert!((1000..9000).all(|i| !unlisted.holds(key(i))));
    }

    #[test]
    fn a_line_that_is_full_forgets_one_value_for_another() {
        let (unlisted, on_one_line) = (Unlisted::default(), |i: u128| (i + 1) << 64 | 7);
        (0..9).for_each(|i| unlisted.insert(on_one_line(i)));
        assert_eq!((0..9).filter(|i| unlisted.holds(on_one_line(*i))).count(), 8);
        assert!(unlisted.holds(on_one_line(8)));
        // The place alone says nothing.
        assert!(!unlisted.holds(on_one_line(9)) && !unlisted.holds(7));
    }
}
