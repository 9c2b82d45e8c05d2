//! The ledger's identifiers as a file that is mapped, not read: what lets the gate start in an instant.
//!
//! ```text
//! STATE/probe/ledger.tags    magic │ segments │ digest of the chain │ last second │ numbers │ second before the first │ digest of the listing │ seal │ bytes of the
//!                            first table │ table of who is asked for │ table of who is let go
//! ```
//! The tables are [`crate::tag_table`]'s. The file says nothing that the ledger does not: where it is missing, behind or damaged, the
//! ledger is folded again. Invariant: a table is used only under the key that sealed it, and only as long as the segments that it was
//! made of are listed as they were, and none behind them changes who is asked for.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::ledger::{self, Anchor, Head, Ledger};
use crate::ledger_event::Fact;
use crate::match_index::Tags;
use crate::request_import::NUMBER_OF_TEXT;
use crate::signature::TagKey;
use crate::store::{self, Location, Precondition, Store};
use crate::tag_table::TagTable;

const MAGIC: &[u8; 16] = b"lakescrub tags 4";
const SINCE: std::ops::Range<usize> = 65..73;
const LISTING: std::ops::Range<usize> = 80..112;
const SEAL: std::ops::Range<usize> = 112..144;
const FIRST_TABLE: std::ops::Range<usize> = 144..152;
const HEADER_BYTES: usize = 152;

/// Who is asked for, and what it was taken from.
#[derive(Debug, Clone)]
pub struct ProbeTable {
    pub table: TagTable,
    /// What the ledger knows and asks for no more.
    let_go: TagTable,
    pub head: Head,
    /// Of the files of the ledger up to the head: see [`Ledger::listing`].
    listing: [u8; 32],
    /// Whether it holds numbers that texts are another spelling of.
    pub has_numbers: bool,
    /// An exemption ends after this second.
    valid_until: Option<Timestamp>,
    /// Another ended after this one: a clock may go back, or `--now`.
    valid_since: Option<Timestamp>,
}

fn place(state: &Location) -> Location {
    state.join("probe").join("ledger.tags")
}

impl ProbeTable {
    /// Those whom a ledger asks for at `now`.
    pub fn of(ledger: &Ledger, now: Timestamp) -> ProbeTable {
        let requests = ledger.requests();
        let tags: Vec<&[u8; 32]> = requests.suppressed(now).map(|identifier| &identifier.tag).collect();
        let let_go = requests.let_go(now);
        ProbeTable {
            table: TagTable::build(tags.len(), tags.into_iter()),
            let_go: TagTable::build(let_go.len(), let_go.into_iter()),
            head: ledger.head(),
            listing: ledger.listing(),
            has_numbers: requests.has_kind(NUMBER_OF_TEXT),
            valid_until: requests.stands_until(now),
            valid_since: requests.stands_since(now),
        }
    }

    /// Whether no exemption begins or ends between `now` and the time that it was made at.
    fn is_of(&self, now: Timestamp) -> bool {
        self.valid_until.is_none_or(|until| now.as_second() <= until.as_second())
            && self.valid_since.is_none_or(|since| now.as_second() > since.as_second())
    }

    /// As they are asked of values.
    pub fn tags(self, key: Arc<TagKey>) -> Tags {
        Tags { key, table: self.table, numbers: self.has_numbers.then_some(NUMBER_OF_TEXT), let_go: self.let_go }
    }

    fn encode(&self, key: &TagKey) -> Bytes {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.table.bytes().len() + self.let_go.bytes().len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.head.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.head.digest);
        let until = self.valid_until.map_or(i64::MAX, Timestamp::as_microsecond);
        bytes.extend_from_slice(&until.to_le_bytes());
        bytes.push(u8::from(self.has_numbers));
        let since = self.valid_since.map_or(i64::MIN, Timestamp::as_microsecond);
        bytes.extend_from_slice(&since.to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        bytes[LISTING].copy_from_slice(&self.listing);
        bytes[FIRST_TABLE].copy_from_slice(&(self.table.bytes().len() as u64).to_le_bytes());
        bytes.extend_from_slice(self.table.bytes());
        bytes.extend_from_slice(self.let_go.bytes());
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
        let first = usize::try_from(u64::from_le_bytes(eight(FIRST_TABLE.start))).ok()?;
        let second = HEADER_BYTES.checked_add(first).filter(|at| *at <= bytes.len())?;
        Some(ProbeTable {
            table: TagTable::open(bytes.slice(HEADER_BYTES..second))?,
            let_go: TagTable::open(bytes.slice(second..))?,
            listing: header[LISTING].try_into().expect("32 bytes"),
            head: Head {
                sequence: u64::from_le_bytes(eight(16)),
                digest: header[24..56].try_into().expect("32 bytes"),
            },
            has_numbers: header[64] != 0,
            valid_until: Some(until)
                .filter(|until| *until != i64::MAX)
                .and_then(|it| Timestamp::from_microsecond(it).ok()),
            valid_since: Some(i64::from_le_bytes(eight(SINCE.start)))
                .filter(|since| *since != i64::MIN)
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

/// Writes the file anew, for the next gate. What goes wrong is told and costs no more than a slow start. No file is made of a ledger
/// that no gate may compare with, as long as requests of another key are in it, and none of what a run only supposes.
pub async fn refresh(store: &Arc<dyn Store>, ledger: &Ledger, state: &Location, key: &TagKey, now: Timestamp) {
    let written = match ledger.is_supposing() {
        true => Ledger::open(store.clone(), state, key).await.map(Some),
        false => Ok(None),
    };
    match &written {
        Ok(written) => {
            let ledger = written.as_ref().unwrap_or(ledger);
            if ledger.check_key(now).is_ok() {
                write(store.as_ref(), &ProbeTable::of(ledger, now), state, key).await;
            }
        }
        Err(error) => told(error),
    }
}

fn told(error: &dyn std::fmt::Display) {
    tracing::warn!(%error, "the gate's probe file not written; its next start folds the ledger");
}

async fn write(store: &dyn Store, probe: &ProbeTable, state: &Location, key: &TagKey) {
    let bytes = probe.encode(key);
    if let Err(error) = store.put(&place(state), bytes, Precondition::None).await {
        told(&error);
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
        && probe.is_of(now)
        && let Some(heads) = unchanged_until(store.as_ref(), state, &probe).await?
        && anchor.is_none_or(|anchor| goes_on_from(&heads, &anchor.head))
        && let Some(head) = heads.last()
    {
        probe.head = *head;
        return Ok(Some(probe));
    }
    let ledger = Ledger::open(store.clone(), state, key).await?;
    ledger.check_anchor(anchor)?;
    if ledger.head().sequence == 0 {
        return Ok(None);
    }
    ledger.check_key(now)?;
    let probe = ProbeTable::of(&ledger, now);
    write(store.as_ref(), &probe, state, key).await;
    Ok(Some(probe))
}

/// Whether the ledger that has these heads, from the probe file's to the last one, is the one that a run saw. What lies before the probe
/// file's own is held by its digest.
fn goes_on_from(heads: &[Head], anchor: &Head) -> bool {
    heads.first().is_some_and(|first| anchor.sequence < first.sequence) || heads.contains(anchor)
}

/// The heads from the one that the file was made of to the ledger's, when no segment behind changes who is asked for: runs write down
/// what they do, too.
async fn unchanged_until(store: &dyn Store, state: &Location, probe: &ProbeTable) -> Result<Option<Vec<Head>>> {
    let Some((listing, behind)) = ledger::segments_behind(store, state, &probe.head).await? else { return Ok(None) };
    if listing != probe.listing {
        return Ok(None);
    }
    let changes = |fact: &Fact| match fact {
        Fact::Received { .. } | Fact::Rekeyed { .. } | Fact::Exempted { .. } | Fact::Withdrawn { .. } => true,
        Fact::Planned { .. }
        | Fact::Removed { .. }
        | Fact::VerifiedClean { .. }
        | Fact::Reappeared { .. }
        | Fact::Found { .. }
        | Fact::Answered { .. }
        | Fact::Imported { .. } => false,
    };
    let is_changed = behind.iter().flat_map(|segment| &segment.events).any(|event| changes(&event.fact));
    let mut heads = vec![probe.head];
    for segment in &behind {
        let digest = segment.digest(&heads[heads.len() - 1].digest);
        heads.push(Head { sequence: segment.sequence, digest });
    }
    Ok((!is_changed).then_some(heads))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> ProbeTable {
        let tags: Vec<[u8; 32]> = (0..100u8).map(|number| Sha256::digest([number]).into()).collect();
        ProbeTable {
            table: TagTable::build(tags.len(), tags.iter()),
            let_go: TagTable::build(1, tags[..1].iter()),
            head: Head { sequence: 7, digest: [3; 32] },
            listing: [4; 32],
            has_numbers: true,
            valid_until: Some(Timestamp::from_second(9).unwrap()),
            valid_since: Some(Timestamp::from_second(4).unwrap()),
        }
    }

    #[test]
    fn a_ledger_that_grew_again_behind_a_lost_end_is_not_the_one_that_was_seen() {
        let head = |sequence, digest| Head { sequence, digest: [digest; 32] };
        let heads = [head(2, 2), head(3, 3), head(4, 4)];
        for (anchor, wish) in [
            (head(1, 9), true),
            (head(2, 2), true),
            (head(4, 4), true),
            (head(2, 9), false),
            (head(3, 9), false),
            (head(5, 5), false),
        ] {
            assert_eq!(goes_on_from(&heads, &anchor), wish, "{anchor:?}");
        }
    }

    #[test]
    fn a_probe_file_is_read_as_written_and_not_when_one_byte_differs() {
        let key = TagKey::new([1; 32]);
        let bytes = probe().encode(&key);
        let read = ProbeTable::decode(&key, &bytes).unwrap();
        assert_eq!((read.head, read.has_numbers, read.valid_until), (probe().head, true, probe().valid_until));
        let is_of = |second| read.is_of(Timestamp::from_second(second).unwrap());
        assert_eq!([4, 5, 9, 10].map(is_of), [false, true, true, false]);
        assert!(read.table.contains(&Sha256::digest([42]).into()));
        assert!(ProbeTable::decode(&TagKey::new([2; 32]), &bytes).is_none());
        for at in [0, 17, 30, 60, 64, 66, 85, 120, 147, 160, bytes.len() - 1] {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert!(ProbeTable::decode(&key, &damaged.into()).is_none(), "byte {at}");
        }
        assert!(ProbeTable::decode(&key, &bytes.slice(..bytes.len() - 17)).is_none());
        assert!(ProbeTable::decode(&key, &Bytes::new()).is_none());
    }
}
