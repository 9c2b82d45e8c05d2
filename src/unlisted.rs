//! Values that are known not to be listed, where to ask again would be dear and values come again.
//!
//! Shared by all threads without a lock. A value is known by 64 bits of a keyed 128-bit hash, of which the other half says on which
//! line it stands. Only what is not listed is kept, so that whatever is found was asked for itself. A listed value that is taken for
//! one of the eight of its line is a row that is missed: a probability of 2^-61 for each listed value that is asked about. Room is made
//! when it is first needed, 64 MiB at most; once all of it is taken, later values take the place of earlier ones.
//!
//! The verifier keeps a memory of the same shape in [`crate::verify_ledger`], written a second time and under another key on purpose:
//! what one of them takes for a stranger, the other one asks for.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapMut;

use crate::key_table::prefetch;

/// As many values as one line of a cache holds; 0 is nobody.
#[repr(align(64))]
struct Line([AtomicU64; 8]);

const LINES: usize = 1 << 20;

/// A set of keyed hashes that forgets.
#[derive(Default)]
pub struct Unlisted(OnceLock<Lines>);

/// Zeroed pages of the system, which takes only those that are written to. `None`: it has none to give, and nothing is kept.
struct Lines(Option<MmapMut>);

impl Lines {
    fn new() -> Lines {
        let map = MmapMut::map_anon(LINES * size_of::<Line>()).ok();
        // Each question looks at another page: with small ones the processor looks up the address as long as it waits for the value.
        #[cfg(target_os = "linux")]
        if let Some(map) = &map {
            // A system without large pages works as well, only slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Lines(map)
    }

    #[inline]
    fn at(&self, number: usize) -> Option<&Line> {
        let map = self.0.as_ref()?;
        // SAFETY: the map is as long as `LINES` lines, begins at a page's start, is nobody else's, and goes when `self` goes. It is
        // only ever looked at through here, and any bits are a line.
        let lines = unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<Line>(), LINES) };
        lines.get(number)
    }
}

impl Unlisted {
    /// By other bits than a value is known by.
    #[inline]
    fn line(lines: &Lines, key: u128) -> Option<&Line> {
        lines.at(key as usize % LINES)
    }

    #[inline]
    pub fn holds(&self, key: u128) -> bool {
        let known = (key >> 64) as u64;
        let line = self.0.get().and_then(|lines| Unlisted::line(lines, key));
        known != 0 && line.is_some_and(|line| line.0.iter().any(|it| it.load(Ordering::Relaxed) == known))
    }

    /// Has the processor fetch what [`Unlisted::holds`] will look at, which for a set of this size stands in main memory.
    #[inline]
    pub fn fetch(&self, key: u128) {
        if let Some(line) = self.0.get().and_then(|lines| Unlisted::line(lines, key)) {
            prefetch(line);
        }
    }

    pub fn insert(&self, key: u128) {
        let Some(Line(line)) = Unlisted::line(self.0.get_or_init(Lines::new), key) else { return };
        let known = (key >> 64) as u64;
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
