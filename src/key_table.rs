//! A set of 128-bit keys for few hits among very many questions.
//!
//! A key's low half is a fast keyed hash and says where it stands, its high half a slower one that is only made when the low
//! half is there. One byte a slot answers almost every question that is not a hit, so that a list of millions costs one look at a
//! table that the caches can hold. At most 32 bytes a key, 29 once it is [`KeyTable::settled`].

/// What is asked about: the fast half, and the slow one made on demand.
pub trait Key {
    fn fast(&self) -> u64;
    fn slow(&self) -> u64;
}

/// Slots of empty tag are free.
#[derive(Debug, Default)]
pub struct KeyTable {
    tags: Vec<u8>,
    keys: Vec<u128>,
    len: usize,
}

/// Slots in use for each ten, at most, while the table grows.
const FULL_TENTHS: usize = 8;
/// And once it has been settled.
const SETTLED_TENTHS: usize = 7;
/// Slots in use for each ten below which settling is worth that both tables are there for a moment: for a list of tens of millions
/// that is the most memory a run takes.
const LOOSE_TENTHS: usize = 6;
const SLOTS_MIN: usize = 16;

/// Never zero, and from other bits than the place.
fn tag(fast: u64) -> u8 {
    (fast as u8) | 1
}

fn place(fast: u64, slots: usize) -> usize {
    ((u128::from(fast) * slots as u128) >> 64) as usize
}

impl KeyTable {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        17 * self.tags.len()
    }

    /// Whether the key is new.
    pub fn insert(&mut self, key: &impl Key) -> bool {
        if (self.len + 1) * 10 > self.tags.len() * FULL_TENTHS {
            self.resize((self.tags.len() * 3 / 2).max(SLOTS_MIN));
        }
        let fast = key.fast();
        let whole = u128::from(key.slow()) << 64 | u128::from(fast);
        match self.find(fast, |known| known == whole) {
            Ok(_) => false,
            Err(free) => {
                (self.tags[free], self.keys[free]) = (tag(fast), whole);
                self.len += 1;
                true
            }
        }
    }

    /// Has the processor fetch what [`KeyTable::insert`] of a key of that fast half will look at.
    #[inline]
    pub fn fetch(&self, fast: u64) {
        if !self.tags.is_empty() {
            let slot = place(fast, self.tags.len());
            prefetch(&self.tags[slot]);
            prefetch(&self.keys[slot]);
        }
    }

    #[inline]
    pub fn contains(&self, key: &impl Key) -> bool {
        if self.tags.is_empty() {
            return false;
        }
        let fast = key.fast();
        self.find(fast, |known| known as u64 == fast && (known >> 64) as u64 == key.slow()).is_ok()
    }

    /// The slot of the key that `is_same` accepts, or the free one where it would stand.
    #[inline]
    fn find(&self, fast: u64, is_same: impl Fn(u128) -> bool) -> Result<usize, usize> {
        let wanted = tag(fast);
        let mut slot = place(fast, self.tags.len());
        loop {
            let tag = self.tags[slot];
            if tag == 0 {
                return Err(slot);
            }
            if tag == wanted && is_same(self.keys[slot]) {
                return Ok(slot);
            }
            slot = if slot + 1 == self.tags.len() { 0 } else { slot + 1 };
        }
    }

    fn resize(&mut self, slots: usize) {
        let tags = std::mem::replace(&mut self.tags, vec![0; slots]);
        let keys = std::mem::replace(&mut self.keys, vec![0; slots]);
        for (_, key) in tags.into_iter().zip(keys).filter(|(tag, _)| *tag != 0) {
            let fast = key as u64;
            if let Err(free) = self.find(fast, |_| false) {
                (self.tags[free], self.keys[free]) = (tag(fast), key);
            }
        }
    }

    /// The table without much room for more.
    pub fn settled(mut self) -> Self {
        if self.len > 0 && self.len * 10 < self.tags.len() * LOOSE_TENTHS {
            self.resize((self.len * 10).div_ceil(SETTLED_TENTHS).max(SLOTS_MIN));
        }
        self
    }
}

/// Has the processor fetch the line of memory that begins with, or holds, `place`.
#[inline]
pub fn prefetch<T>(place: &T) {
    // SAFETY: a hint, which reads nothing, and every x86-64 processor knows it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair(u64, u64);

    impl Key for Pair {
        fn fast(&self) -> u64 {
            self.0
        }
        fn slow(&self) -> u64 {
            self.1
        }
    }

    /// Spread over all bits, as a hash is.
    fn pair(i: u64) -> Pair {
        Pair(i.wrapping_mul(0x9e37_79b9_7f4a_7c15), i)
    }

    #[test]
    fn what_was_put_in_is_there_and_nothing_else() {
        let mut table = KeyTable::default();
        assert!(!table.contains(&pair(1)));
        for i in 0..10_000 {
            assert!(table.insert(&pair(i)), "{i}");
            assert!(!table.insert(&pair(i)), "{i}");
        }
        let table = table.settled();
        assert_eq!(table.len(), 10_000);
        assert!((0..10_000).all(|i| table.contains(&pair(i))));
        assert!((10_000..20_000).all(|i| !table.contains(&pair(i))));
    }

    #[test]
    fn keys_of_one_fast_half_are_told_apart_by_the_other() {
        let mut table = KeyTable::default();
        for slow in 0..40 {
            assert!(table.insert(&Pair(u64::MAX, slow)));
        }
        assert!((0..40).all(|slow| table.contains(&Pair(u64::MAX, slow))));
        assert!(!table.contains(&Pair(u64::MAX, 40)));
    }

    #[test]
    fn a_key_costs_what_the_module_says() {
        let mut table = KeyTable::default();
        let mut most = 0.0f64;
        for i in 0..100_000 {
            table.insert(&pair(i));
            if table.len() > 1000 {
                most = most.max(table.bytes() as f64 / table.len() as f64);
            }
        }
        assert!(most <= 32.0, "{most}");
        for keys in (1000..100_000).step_by(3777) {
            let mut table = KeyTable::default();
            (0..keys).for_each(|i| assert!(table.insert(&pair(i))));
            let settled = table.settled();
            assert!(settled.bytes() as f64 / settled.len() as f64 <= 29.0, "{keys}");
            assert!((0..keys).all(|i| settled.contains(&pair(i))));
        }
    }
}
