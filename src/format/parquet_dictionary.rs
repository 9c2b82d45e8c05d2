//! A dictionary whose pages lose rows: which entries no row uses any more, and what stands in their place.
//!
//! Invariant: a value that only removed rows had is in none of the entries afterwards. What takes its place is another value, which
//! stands there once and is nobody's ([`super::parquet_filler`]): the entries behind it keep their numbers in every reader.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, Type as PhysicalType};
use parquet::column::page::{Page, PageReader};
use parquet::errors::Result;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;
use roaring::RoaringBitmap;
use xxhash_rust::xxh3::Xxh3;

use super::parquet_chunk::{Window, general};
use super::parquet_codec::{codec_of, compressed};
use super::parquet_filler::fillers;
use super::parquet_layout::{Picked, max_levels};
use super::parquet_packed::{Plain, decode_levels, parts};
use super::parquet_page::{coded_values, serialized};
use super::parquet_pages::Pass;

/// The dictionary of a chunk, decompressed.
pub struct DictionaryPage {
    body: Bytes,
    entries: u32,
    encoding: Encoding,
    /// Bytes of an entry of fixed length.
    fixed_bytes: Option<usize>,
}

impl DictionaryPage {
    pub fn read<R: ChunkReader + 'static>(window: &Arc<Window<R>>, column: &ColumnChunkMetaData) -> Result<Self> {
        let mut pages = SerializedPageReader::new(Arc::clone(window), column, 0, None)?;
        let Some(Page::DictionaryPage { buf, num_values, encoding, .. }) = pages.get_next_page()? else {
            return Err(general("a chunk without its dictionary"));
        };
        Ok(DictionaryPage { body: buf, entries: num_values, encoding, fixed_bytes: fixed_bytes(column)? })
    }

    pub fn entries(&self) -> Result<Vec<&[u8]>> {
        let mut plain = Plain::new(&self.body, self.fixed_bytes);
        // The page's header was looked over: no more entries than bytes.
        (0..self.entries).map(|_| plain.read()).collect()
    }

    /// The page with these entries in place of its own.
    fn page_of(&self, entries: &[&[u8]], codec: Compression) -> Result<(Vec<u8>, u64)> {
        let mut plain = Vec::with_capacity(self.body.len());
        for entry in entries {
            if self.fixed_bytes.is_none() {
                plain.extend_from_slice(&(entry.len() as u32).to_le_bytes());
            }
            plain.extend_from_slice(entry);
        }
        let page = Page::DictionaryPage {
            buf: plain.into(),
            num_values: entries.len() as u32,
            encoding: self.encoding,
            is_sorted: false,
        };
        serialized(compressed(page, codec)?)
    }
}

const PIECES_BYTES: usize = 32 << 10;

/// How many bytes a plain value of the column has; `None`: each tells its own length. Booleans have bits.
pub fn fixed_bytes(column: &ColumnChunkMetaData) -> Result<Option<usize>> {
    Ok(match column.column_type() {
        PhysicalType::INT32 | PhysicalType::FLOAT => Some(4),
        PhysicalType::INT64 | PhysicalType::DOUBLE => Some(8),
        PhysicalType::INT96 => Some(12),
        PhysicalType::FIXED_LEN_BYTE_ARRAY => Some(column.column_descr().type_length().max(0) as usize),
        PhysicalType::BYTE_ARRAY => None,
        PhysicalType::BOOLEAN => return Err(general("values of a bit in place of bytes")),
    })
}

pub fn digest_of(entries: &[&[u8]]) -> u128 {
    // A hasher takes its time over each piece that it is given.
    let (mut hasher, mut pieces) = (Xxh3::new(), Vec::with_capacity(PIECES_BYTES));
    for entry in entries {
        pieces.extend_from_slice(&(entry.len() as u32).to_le_bytes());
        pieces.extend_from_slice(entry);
        if pieces.len() >= PIECES_BYTES {
            hasher.update(&pieces);
            pieces.clear();
        }
    }
    hasher.update(&pieces);
    hasher.digest128()
}

/// What becomes of a chunk's dictionary.
pub struct NewDictionary {
    /// With its header, and its size before compression; `None`: it is copied, if there is one.
    pub page: Option<(Vec<u8>, u64, u128)>,
    /// Values that the chunk holds no more.
    pub gone: BTreeSet<Vec<u8>>,
}

impl<R: ChunkReader + Clone + 'static> Pass<'_, R> {
    /// Finds the entries that no kept row uses and whose values removed rows had. `None`: nothing is left to put in their place.
    pub fn dictionary(&self, touched: &[bool]) -> Result<Option<NewDictionary>> {
        let mut gone = self.edited.gone_values.clone();
        let unchanged = |gone| Ok(Some(NewDictionary { page: None, gone }));
        let kept = &self.edited.kept_entries;
        let is_kept = |entry: &u32| kept.get(*entry as usize).is_some_and(|kept| *kept);
        let gone_entries: Vec<u32> = self.edited.gone_entries.iter().filter(|entry| !is_kept(entry)).collect();
        if self.layout.dictionary.is_none() || (gone.is_empty() && gone_entries.is_empty()) {
            return unchanged(gone);
        }
        let page = DictionaryPage::read(&self.window, self.chunk.column)?;
        let mut entries = page.entries()?;
        let entry = |number: u32| entries.get(number as usize).copied();
        let of_gone: Option<HashSet<&[u8]>> = gone_entries.into_iter().map(entry).collect();
        let mut of_gone = of_gone.ok_or_else(|| general("an index past its dictionary"))?;
        of_gone.extend(self.edited.gone_values.iter().map(Vec::as_slice));
        // The same value may stand in several entries, of which an earlier rewrite made some: they go together or not at all.
        let mut suspects: HashMap<&[u8], RoaringBitmap> = HashMap::new();
        for (number, entry) in (0u32..).zip(&entries) {
            if of_gone.contains(entry) {
                suspects.entry(entry).or_default().insert(number);
            }
        }
        let mut used = self.edited.kept_entries.clone();
        used.resize(entries.len(), false);
        suspects.retain(|_, numbers| !numbers.iter().any(|number| used[number as usize]));
        if !suspects.is_empty() {
            self.find_used(touched, &mut used, &mut suspects)?;
        }
        let unused: RoaringBitmap = suspects.values().flatten().collect();
        gone.extend(suspects.keys().map(|value| value.to_vec()));
        if unused.is_empty() {
            return unchanged(gone);
        }
        if !used.contains(&true) {
            return Ok(None);
        }
        let descr = self.chunk.column.column_descr();
        let Some(fillers) = fillers(descr, &entries, &used, unused.len() as usize) else { return Ok(None) };
        unused.iter().zip(&fillers).for_each(|(number, filler)| entries[number as usize] = filler);
        let (bytes, uncompressed_bytes) = page.page_of(&entries, codec_of(self.chunk.column))?;
        Ok(Some(NewDictionary { page: Some((bytes, uncompressed_bytes, digest_of(&entries))), gone }))
    }

    /// Looks through the pages that are copied for entries that they use, until no suspect is left.
    fn find_used(
        &self,
        touched: &[bool],
        used: &mut [bool],
        suspects: &mut HashMap<&[u8], RoaringBitmap>,
    ) -> Result<()> {
        let picks: Vec<bool> =
            self.layout.pages.iter().zip(touched).map(|(page, touched)| !touched && page.is_coded()).collect();
        let (max_repetition, max_definition) = max_levels(self.chunk.column);
        let mut pages = Picked::checked(&self.window, self.chunk, &self.layout, &picks, None)?;
        let mut definition = Vec::new();
        while let Some(page) = pages.get_next_page()? {
            if page.is_dictionary_page() {
                continue;
            }
            let [_, packed, _] = parts(&page, max_repetition, max_definition)?;
            let levels = page.num_values() as usize;
            decode_levels(packed, max_definition, levels, &mut definition)?;
            let values = match max_definition {
                0 => levels,
                max => definition.iter().filter(|level| **level == max).count(),
            };
            let (_, mut indexes) = coded_values(&page, max_repetition, max_definition)?;
            for _ in 0..values {
                let index = indexes.read()? as usize;
                *used.get_mut(index).ok_or_else(|| general("an index past its dictionary"))? = true;
            }
            suspects.retain(|_, numbers| !numbers.iter().any(|number| used[number as usize]));
            if suspects.is_empty() {
                break;
            }
        }
        Ok(())
    }
}
