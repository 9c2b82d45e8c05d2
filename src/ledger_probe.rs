//! The ledger's identifiers as a file that is mapped, not read: what lets the gate start in an instant.
//!
//! ```text
//! STATE/probe/ledger.tags    magic │ segments │ digest of the chain │ last second │ numbers │ seal │ table
//! ```
//! The table is [`crate::tag_table`]'s. The file says nothing that the ledger does not: where it is missing, behind or damaged, the
//! ledger is folded again. Invariant: a table is used only under the key that sealed it, and only as long as no segment behind it
//! changes who is asked for.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::ledger::{self, Anchor, Head, Ledger};
use crate::ledger_event::Fact;
use crate::request_import::NUMBER_OF_TEXT;
use crate::signature::TagKey;
use crate::store::{self, Location, Precondition, Store};
use crate::tag_table::TagTable;

const MAGIC: &[u8; 16] = b"lakescrub tags 2";
const SEAL: std::ops::Range<usize> = 96..128;
const HEADER_BYTES: usize = 128;

/// Who is asked for, and what it was taken from.
#[derive(Debug, Clone)]
pub struct ProbeTable {
    pub table: TagTable,
    pub head: Head,
    /// Whether it holds numbers that texts are another spelling of.
    pub has_numbers: bool,
    /// An exemption ends after this second.
    valid_until: Option<Timestamp>,
}

fn place(state: &Location) -> Location {
    state.join("probe").join("ledger.tags")
}

impl ProbeTable {
    /// Those whom a ledger asks for at `now`.
    pub fn of(ledger: &Ledger, now: Timestamp) -> ProbeTable {
        let requests = ledger.requests();
        let tags: Vec<&[u8; 32]> = requests.suppressed(now).map(|identifier| &identifier.tag).collect();
        ProbeTable {
            table: TagTable::build(tags.len(), tags.into_iter()),
            head: ledger.head(),
            has_numbers: requests.identifiers_by_kind().contains_key(NUMBER_OF_TEXT),
            valid_until: requests.stands_until(now),
        }
    }

    fn encode(&self, key: &TagKey) -> Bytes {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.table.bytes().len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.head.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.head.digest);
        let until = self.valid_until.map_or(i64::MAX, Timestamp::as_microsecond);
        bytes.extend_from_slice(&until.to_le_bytes());
        bytes.push(u8::from(self.has_numbers));
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend_from_slice(self.table.bytes());
        let seal = seal(key, &bytes);
        bytes[SEAL].copy_from_slice(&seal);
        bytes.into()
    }

    /// `None`: not ours, of another key, or damaged.
    fn decode(key: &TagKey, bytes: &Bytes) -> Option<ProbeTable> {
        let header: &[u8] = bytes.get(..HEADER_BYTES)?;
        if &header[..16] != MAGIC || header[SEAL] != seal(key, bytes) {
            return None;
        }
        let eight = |at: usize| <[u8; 8]>::try_from(&header[at..at + 8]).expect("eight bytes");
        let until = i64::from_le_bytes(eight(56));
        Some(ProbeTable {
            table: TagTable::open(bytes.slice(HEADER_BYTES..))?,
            head: Head {
                sequence: u64::from_le_bytes(eight(16)),
                digest: header[24..56].try_into().expect("32 bytes"),
            },
            has_numbers: header[64] != 0,
            valid_until: Some(until)
                .filter(|until| *until != i64::MAX)
                .and_then(|it| Timestamp::from_microsecond(it).ok()),
        })
    }
}

/// A keyed digest of all but itself.
fn seal(key: &TagKey, bytes: &[u8]) -> [u8; 32] {
    let mut sha = Sha256::new_with_prefix(&bytes[..SEAL.start]);
    sha.update(&bytes[SEAL.end..]);
    key.raw_tag("probe file", &sha.finalize().into())
}

/// Writes the file anew, for the next gate. What goes wrong is told and costs no more than a slow start.
pub async fn refresh(store: &dyn Store, ledger: &Ledger, state: &Location, key: &TagKey, now: Timestamp) {
    write(store, &ProbeTable::of(ledger, now), state, key).await;
}

async fn write(store: &dyn Store, probe: &ProbeTable, state: &Location, key: &TagKey) {
    let bytes = probe.encode(key);
    if let Err(error) = store.put(&place(state), bytes, Precondition::None).await {
        tracing::warn!(%error, "the gate's probe file not written; its next start folds the ledger");
    }
}

/// The file as it is there; of a local state mapped, not read.
async fn open(store: &dyn Store, state: &Location, key: &TagKey) -> Option<ProbeTable> {
    let bytes = match place(state) {
        Location::Local(path) => {
            let file = File::open(path).ok()?;
            // SAFETY: the file is only ever replaced as a whole, by a rename, never written in place; its seal is checked below, and the
            // table reads within its bounds whatever they hold.
            let map = unsafe { memmap2::Mmap::map(&file) }.ok()?;
            Bytes::from_owner(map)
        }
        location @ Location::S3 { .. } => store::read_whole(store, &location).await.ok()?.1,
    };
    ProbeTable::decode(key, &bytes)
}

/// Those whom the ledger asks for at `now`: from the probe file where it still holds, else from the ledger itself, and then the file
/// is written anew. `None`: there is no ledger. Refused is one that does not go on from what the last run saw.
pub async fn load(
    store: Arc<dyn Store>,
    state: &Location,
    key: &TagKey,
    now: Timestamp,
    anchor: Option<&Anchor>,
) -> Result<Option<ProbeTable>> {
    if let Some(mut probe) = open(store.as_ref(), state, key).await
        && probe.valid_until.is_none_or(|until| now.as_second() <= until.as_second())
        && let Some(head) = unchanged_until(store.as_ref(), state, &probe.head).await?
        && anchor.is_none_or(|anchor| anchor.head.sequence <= head)
    {
        probe.head.sequence = head;
        return Ok(Some(probe));
    }
    let ledger = Ledger::open(store.clone(), state, key).await?;
    if ledger.head().sequence == 0 {
        return Ok(None);
    }
    ledger.check_key(now)?;
    ledger.check_anchor(anchor)?;
    let probe = ProbeTable::of(&ledger, now);
    write(store.as_ref(), &probe, state, key).await;
    Ok(Some(probe))
}

/// The last segment, when none behind `head` changes who is asked for: runs write down what they do, too.
async fn unchanged_until(store: &dyn Store, state: &Location, head: &Head) -> Result<Option<u64>> {
    let Some(behind) = ledger::segments_behind(store, state, head).await? else { return Ok(None) };
    let changes = |fact: &Fact| match fact {
        Fact::Received { .. } | Fact::Rekeyed { .. } | Fact::Exempted { .. } | Fact::Withdrawn { .. } => true,
        Fact::Planned { .. }
        | Fact::Removed { .. }
        | Fact::VerifiedClean { .. }
        | Fact::Reappeared { .. }
        | Fact::Found { .. }
        | Fact::Answered { .. } => false,
    };
    let last = behind.last().map_or(head.sequence, |segment| segment.sequence);
    let is_changed = behind.iter().flat_map(|segment| &segment.events).any(|event| changes(&event.fact));
    Ok((!is_changed).then_some(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> ProbeTable {
        let tags: Vec<[u8; 32]> = (0..100u8).map(|number| Sha256::digest([number]).into()).collect();
        ProbeTable {
            table: TagTable::build(tags.len(), tags.iter()),
            head: Head { sequence: 7, digest: [3; 32] },
            has_numbers: true,
            valid_until: Some(Timestamp::from_second(9).unwrap()),
        }
    }

    #[test]
    fn a_probe_file_is_read_as_written_and_not_when_one_byte_differs() {
        let key = TagKey::new([1; 32]);
        let bytes = probe().encode(&key);
        let read = ProbeTable::decode(&key, &bytes).unwrap();
        assert_eq!((read.head, read.has_numbers, read.valid_until), (probe().head, true, probe().valid_until));
        assert!(read.table.contains(&Sha256::digest([42]).into()));
        assert!(ProbeTable::decode(&TagKey::new([2; 32]), &bytes).is_none());
        for at in [0, 17, 30, 60, 64, 70, 100, 129, bytes.len() - 1] {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert!(ProbeTable::decode(&key, &damaged.into()).is_none(), "byte {at}");
        }
        assert!(ProbeTable::decode(&key, &bytes.slice(..bytes.len() - 17)).is_none());
        assert!(ProbeTable::decode(&key, &Bytes::new()).is_none());
    }
}
