//! Values that are known not to be listed, where to ask again would be dear and values come again.
//!
//! Shared by all threads without a lock. A value is known by 64 bits of a keyed 128-bit hash, of which the other half says where it
//! stands: that another value is taken for it has a probability of 2^-64 for each question. Only what is not listed is kept, so that
//! whatever is found was asked for itself. Room is made when it is first needed, 64 MiB at most; once all of it is taken, later values
//! take the place of earlier ones.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::key_table::prefetch;

/// As many values as one line of a cache holds; 0 is nobody.
#[repr(align(64))]
#[derive(Default)]
struct Line([AtomicU64; 8]);

const SHELVES: usize = 1 << 10;
const LINES_ON_A_SHELF: usize = 1 << 10;

/// A set of keyed hashes that forgets.
pub struct Unlisted(Box<[OnceLock<Box<[Line]>>]>);

impl Default for Unlisted {
    fn default() -> Self {
        Unlisted(std::iter::repeat_with(OnceLock::new).take(SHELVES).collect())
    }
}

impl Unlisted {
    /// By other bits than a value is known by.
    #[inline]
    fn shelf(&self, key: u128) -> (&OnceLock<Box<[Line]>>, usize) {
        let place = key as u64;
        (&self.0[(place >> 32) as usize % SHELVES], place as usize % LINES_ON_A_SHELF)
    }

    #[inline]
    pub fn holds(&self, key: u128) -> bool {
        let (shelf, line) = self.shelf(key);
        let known = (key >> 64) as u64;
        known != 0
            && shelf.get().is_some_and(|lines| lines[line].0.iter().any(|it| it.load(Ordering::Relaxed) == known))
    }

    /// Has the processor fetch what [`Unlisted::holds`] will look at, which for a set of this size stands in main memory.
    #[inline]
    pub fn fetch(&self, key: u128) {
        let (shelf, line) = self.shelf(key);
        if let Some(lines) = shelf.get() {
            prefetch(&lines[line]);
        }
    }

    pub fn insert(&self, key: u128) {
        let (shelf, line) = self.shelf(key);
        let lines = shelf.get_or_init(|| std::iter::repeat_with(Line::default).take(LINES_ON_A_SHELF).collect());
        let (known, line) = ((key >> 64) as u64, &lines[line].0);
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
