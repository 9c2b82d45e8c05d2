//! A set of keyed tags as flat bytes, made to be asked far more often than it hits: in memory, or mapped from a file.
//!
//! No I/O and no key. A tag is told by its first 16 bytes, which HMAC spreads evenly: two different ones meet with a probability of
//! 2^-128. One byte a slot answers almost every question that is no hit. Invariant: whatever the bytes are, asking ends and reads
//! nothing outside them.
//!
//! ```text
//! slots filters of one byte (0: free) │ slots heads of 16 bytes
//! ```

use bytes::Bytes;

/// The bytes of a tag that are kept.
pub const HEAD_BYTES: usize = 16;

/// Slots in use for each ten.
const FULL_TENTHS: usize = 7;
const SLOTS_MIN: usize = 16;

/// Tags, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct TagTable {
    bytes: Bytes,
    slots: usize,
}

/// Never zero, and from other bits than the place.
fn filter(head: &[u8; HEAD_BYTES]) -> u8 {
    head[15] | 1
}

fn place(head: &[u8; HEAD_BYTES], slots: usize) -> usize {
    let spread = u64::from_be_bytes(head[..8].try_into().expect("eight bytes"));
    ((u128::from(spread) * slots as u128) >> 64) as usize
}

fn head(tag: &[u8; 32]) -> &[u8; HEAD_BYTES] {
    tag.first_chunk().expect("a tag is longer than its head")
}

impl TagTable {
    /// Of `count` tags at most; one that comes twice is held once.
    pub fn build<'a>(count: usize, tags: impl Iterator<Item = &'a [u8; 32]>) -> TagTable {
        let slots = ((count * 10).div_ceil(FULL_TENTHS)).max(SLOTS_MIN);
        let mut bytes = vec![0; slots * (1 + HEAD_BYTES)];
        for tag in tags {
            let head = head(tag);
            let mut slot = place(head, slots);
            while bytes[slot] != 0 && &bytes[at(slot, slots)] != head {
                slot = if slot + 1 == slots { 0 } else { slot + 1 };
            }
            bytes[slot] = filter(head);
            bytes[at(slot, slots)].copy_from_slice(head);
        }
        TagTable { bytes: bytes.into(), slots }
    }

    /// Bytes that [`TagTable::bytes`] gave, wherever they have been since.
    pub fn open(bytes: Bytes) -> Option<TagTable> {
        let slots = bytes.len() / (1 + HEAD_BYTES);
        let is_whole = slots >= SLOTS_MIN && slots * (1 + HEAD_BYTES) == bytes.len();
        is_whole.then_some(TagTable { bytes, slots })
    }

    pub fn is_empty(&self) -> bool {
        self.bytes[..self.slots].iter().all(|slot| *slot == 0)
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    #[inline]
    pub fn contains(&self, tag: &[u8; 32]) -> bool {
        if self.slots == 0 {
            return false;
        }
        let head = head(tag);
        let wanted = filter(head);
        let mut slot = place(head, self.slots);
        // Of a table without a free slot, which none of ours is, every slot is looked at once.
        for _ in 0..self.slots {
            match self.bytes[slot] {
                0 => return false,
                known if known == wanted && &self.bytes[at(slot, self.slots)] == head => return true,
                _ => slot = if slot + 1 == self.slots { 0 } else { slot + 1 },
            }
        }
        false
    }
}

fn at(slot: usize, slots: usize) -> std::ops::Range<usize> {
    let start = slots + slot * HEAD_BYTES;
    start..start + HEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(number: u32) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        Sha256::digest(number.to_le_bytes()).into()
    }

    #[test]
    fn what_was_put_in_is_there_and_nothing_else() {
        for count in [0, 1, 11, 1000] {
            let tags: Vec<[u8; 32]> = (0..count).map(tag).collect();
            let built = TagTable::build(tags.len(), tags.iter().chain(&tags));
            let table = TagTable::open(built.bytes().clone()).unwrap();
            assert!(tags.iter().all(|tag| table.contains(tag)), "{count}");
            assert!((5000..9000).all(|other| !table.contains(&tag(other))), "{count}");
        }
        assert!(!TagTable::default().contains(&tag(0)));
    }

    #[test]
    fn any_bytes_can_be_asked() {
        assert!(TagTable::open(Bytes::new()).is_none());
        assert!(TagTable::open(vec![0; 17 * 16 + 1].into()).is_none());
        let full = TagTable::open(vec![0xff; 17 * 16].into()).unwrap();
        assert!(!full.contains(&tag(1)));
    }
}
