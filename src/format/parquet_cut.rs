//! Rows cut out of a page where they lie: levels and dictionary indexes are unpacked and packed again, plain values stay the bytes
//! that they are, and no value is made.
//!
//! For flat columns whose pages hold plain values or dictionary indexes, which is nearly all; a page of which this is not certain to be
//! right is left to [`super::parquet_page`]. Invariant: a bound of a page is kept only where no removed value can have made it.

use std::collections::BTreeSet;
use std::ops::Range;

use parquet::basic::{Encoding, PageType, Type as PhysicalType};
use parquet::column::page::Page;
use parquet::errors::Result;
use parquet::file::metadata::ColumnChunkMetaData;
use roaring::RoaringTreemap;
use xxhash_rust::xxh3::Xxh3;

use super::parquet_chunk::general;
use super::parquet_codec::{codec_of, compressed, compresses};
use super::parquet_dictionary::fixed_bytes;
use super::parquet_layout::{Place, max_levels};
use super::parquet_packed::{Hybrid, Plain, decode_levels, level_bits, pack, parts};
use super::parquet_page::{Edited, NewPage, PageDigest, Tally, coded_values, data_page, serialized};
use super::parquet_statistics::may_show;
use crate::residue::Bound;

/// Whether rows can be cut out of a page like this.
pub fn is_fit(column: &ColumnChunkMetaData, place: &Place) -> bool {
    column.column_descr().max_rep_level() == 0
        && column.column_type() != PhysicalType::BOOLEAN
        && compresses(codec_of(column))
        && place.has_packed_levels
        && matches!(place.kind, PageType::DATA_PAGE | PageType::DATA_PAGE_V2)
        && (place.is_coded() || place.encoding == Encoding::PLAIN)
}

/// Cuts rows out of the pages of one chunk.
pub struct Cutter<'a> {
    pub column: &'a ColumnChunkMetaData,
    /// The entries of the dictionary; empty for a chunk without one.
    pub entries: Vec<&'a [u8]>,
    pub has_column_index: bool,
}

/// A flat page, unpacked as far as it must be.
struct Flat<'a> {
    /// Empty for a required column.
    definition: Vec<u16>,
    levels: usize,
    values: usize,
    data: &'a [u8],
}

impl<'a> Flat<'a> {
    fn of(page: &'a Page, column: &ColumnChunkMetaData) -> Result<Flat<'a>> {
        let (max_repetition, max_definition) = max_levels(column);
        let [_, packed, data] = parts(page, max_repetition, max_definition)?;
        let (mut definition, levels) = (Vec::new(), page.num_values() as usize);
        decode_levels(packed, max_definition, levels, &mut definition)?;
        let values = match max_definition {
            0 => levels,
            max => definition.iter().filter(|level| **level == max).count(),
        };
        Ok(Flat { definition, levels, values, data })
    }

    /// Counts what is there, with so many bytes in values of varying length.
    fn tally(&self, column: &ColumnChunkMetaData, value_bytes: u64) -> Tally {
        let levels = self.levels as u64;
        let mut tally = Tally { rows: levels, levels, values: self.values as u64, value_bytes, ..Tally::new(column) };
        tally.repetition[0] = levels as i64;
        match tally.definition.len() {
            1 => tally.definition[0] = levels as i64,
            _ => self.definition.iter().for_each(|level| tally.definition[usize::from(*level)] += 1),
        }
        tally
    }
}

/// Where the values of the removed rows stand among the values, in order.
fn removed_values(definition: &[u16], max: u16, removed: &[usize]) -> Vec<usize> {
    if definition.is_empty() {
        return removed.to_vec();
    }
    let (mut out, mut at, mut values) = (Vec::with_capacity(removed.len()), 0, 0);
    for level in removed {
        values += definition[at..*level].iter().filter(|level| **level == max).count();
        if definition[*level] == max {
            out.push(values);
        }
        at = *level;
    }
    out
}

/// What is left of `all` without the items at these places, which are in order.
fn without<T: Copy>(all: &[T], places: &[usize]) -> Vec<T> {
    let (mut out, mut at) = (Vec::with_capacity(all.len() - places.len().min(all.len())), 0);
    for place in places {
        out.extend_from_slice(&all[at..*place]);
        at = place + 1;
    }
    out.extend_from_slice(&all[at..]);
    out
}

/// Where so many plain values end, and the spans of those at `places`, lengths and all; `None`: they are cut short, or more than there are.
fn plain_spans(
    data: &[u8],
    fixed: Option<usize>,
    values: usize,
    places: &[usize],
) -> Option<(usize, Vec<Range<usize>>)> {
    if let Some(bytes) = fixed {
        let end = values.checked_mul(bytes).filter(|end| *end <= data.len())?;
        return Some((end, places.iter().map(|place| place * bytes..(place + 1) * bytes).collect()));
    }
    let (mut spans, mut places) = (Vec::with_capacity(places.len()), places.iter().peekable());
    let mut plain = Plain::new(data, None);
    let mut at = 0;
    for value in 0..values {
        let end = at + 4 + plain.read().ok()?.len();
        if places.next_if_eq(&&value).is_some() {
            spans.push(at..end);
        }
        at = end;
    }
    Some((at, spans))
}

impl Cutter<'_> {
    /// The page without `rows` (numbered within the row group); `None`: it is not one of which this is certain to be right, and nothing
    /// was noted in `edited`.
    pub fn cut(
        &self,
        page: &Page,
        place: &Place,
        rows: &RoaringTreemap,
        bounds: Option<[Vec<u8>; 2]>,
        edited: &mut Edited,
    ) -> Result<Option<NewPage>> {
        // Before any level is unpacked: a few bytes of a page can claim gigabytes of them.
        if u64::from(page.num_values()) != place.rows.end - place.rows.start {
            return Err(general("a page holds fewer or more rows than it claims"));
        }
        let flat = Flat::of(page, self.column)?;
        let mut removed = rows.iter();
        removed.advance_to(place.rows.start);
        let removed = removed.take_while(|row| *row < place.rows.end).map(|row| (row - place.rows.start) as usize);
        let removed: Vec<usize> = removed.collect();
        let max_definition = max_levels(self.column).1;
        let places = removed_values(&flat.definition, max_definition, &removed);
        if flat.values == places.len() {
            return Ok(None);
        }
        let definition = if flat.definition.is_empty() { Vec::new() } else { without(&flat.definition, &removed) };
        let left = Left { definition, levels: flat.levels - removed.len(), places };
        let new = if place.is_coded() {
            self.cut_indexes(page, &flat, left, bounds.as_ref(), edited)?
        } else {
            self.cut_plain(&flat, left, bounds.as_ref(), edited)?
        };
        let Some(New { definition, data, before, kept, digest }) = new else { return Ok(None) };
        let mut packed = Vec::new();
        pack(&definition, level_bits(max_definition), &mut packed);
        let page = data_page(page, self.column, [&[], &packed, &data], &kept)?;
        let (bytes, uncompressed_bytes) = serialized(compressed(page, codec_of(self.column))?)?;
        edited.before.merge(&before);
        edited.after.merge(&kept);
        let digest = PageDigest::Content(digest);
        Ok(Some(NewPage { bytes, uncompressed_bytes, kept, bounds, digest }))
    }

    fn cut_plain(
        &self,
        flat: &Flat<'_>,
        left: Left,
        bounds: Option<&[Vec<u8>; 2]>,
        edited: &mut Edited,
    ) -> Result<Option<New>> {
        let fixed = fixed_bytes(self.column)?;
        let Some((end, spans)) = plain_spans(flat.data, fixed, flat.values, &left.places) else { return Ok(None) };
        let prefix = if fixed.is_none() { 4 } else { 0 };
        let gone: BTreeSet<Vec<u8>> =
            spans.iter().map(|span| flat.data[span.start + prefix..span.end].to_vec()).collect();
        if !self.keeps_bounds(bounds, &gone) {
            return Ok(None);
        }
        let (mut data, mut at) = (Vec::with_capacity(end), 0);
        for span in &spans {
            data.extend_from_slice(&flat.data[at..span.start]);
            at = span.end;
        }
        data.extend_from_slice(&flat.data[at..end]);
        edited.gone_values.extend(gone);
        let values = flat.values - left.places.len();
        let bytes = |data: usize, values: usize| if fixed.is_none() { (data - 4 * values) as u64 } else { 0 };
        let digest = content_digest(&left.definition, left.levels, |hasher| hasher.update(&data));
        let kept = Flat { definition: left.definition, levels: left.levels, values, data: &[] };
        Ok(Some(New {
            before: flat.tally(self.column, bytes(end, flat.values)),
            kept: kept.tally(self.column, bytes(data.len(), values)),
            definition: kept.definition.iter().map(|level| u32::from(*level)).collect(),
            data,
            digest,
        }))
    }

    fn cut_indexes(
        &self,
        page: &Page,
        flat: &Flat<'_>,
        left: Left,
        bounds: Option<&[Vec<u8>; 2]>,
        edited: &mut Edited,
    ) -> Result<Option<New>> {
        let (max_repetition, max_definition) = max_levels(self.column);
        let (width, indexes) = coded_values(page, max_repetition, max_definition)?;
        let indexes = all_indexes(indexes, flat.values, self.entries.len())?;
        let kept_indexes = without(&indexes, &left.places);
        let mut used = vec![false; self.entries.len()];
        kept_indexes.iter().for_each(|index| used[*index as usize] = true);
        let entry = |place: &usize| indexes[*place];
        let unused = left.places.iter().map(entry).filter(|entry| !used[*entry as usize]);
        let gone = unused.map(|entry| self.entries[entry as usize].to_vec()).collect();
        if !self.keeps_bounds(bounds, &gone) {
            return Ok(None);
        }
        edited.gone_entries.extend(left.places.iter().map(entry));
        edited.kept_entries.iter_mut().zip(&used).for_each(|(kept, used)| *kept |= used);
        let is_varying = self.column.column_type() == PhysicalType::BYTE_ARRAY;
        let bytes = |indexes: &[u32]| match is_varying {
            true => indexes.iter().map(|index| self.entries[*index as usize].len() as u64).sum(),
            false => 0,
        };
        let mut data = vec![width];
        pack(&kept_indexes, width.into(), &mut data);
        let digest = content_digest(&left.definition, left.levels, |hasher| add_indexes(hasher, &kept_indexes));
        let values = kept_indexes.len();
        let kept = Flat { definition: left.definition, levels: left.levels, values, data: &[] };
        Ok(Some(New {
            before: flat.tally(self.column, bytes(&indexes)),
            kept: kept.tally(self.column, bytes(&kept_indexes)),
            definition: kept.definition.iter().map(|level| u32::from(*level)).collect(),
            data,
            digest,
        }))
    }

    /// Whether the page's bounds in the column index, where it has to have some, stay right when these values go.
    fn keeps_bounds(&self, bounds: Option<&[Vec<u8>; 2]>, gone: &BTreeSet<Vec<u8>>) -> bool {
        let Some([min, max]) = bounds else { return !self.has_column_index };
        let shows = |bytes: &Vec<u8>, is_max| {
            let bound = Bound { bytes: bytes.clone(), is_max, exact: None };
            may_show(&bound, gone, self.column.column_type())
        };
        !shows(min, false) && !shows(max, true)
    }
}

/// What stays of a page's levels, and which of its values go.
struct Left {
    definition: Vec<u16>,
    levels: usize,
    places: Vec<usize>,
}

/// A page's new content.
struct New {
    definition: Vec<u32>,
    data: Vec<u8>,
    before: Tally,
    kept: Tally,
    digest: u128,
}

fn all_indexes(mut packed: Hybrid<'_>, values: usize, entries: usize) -> Result<Vec<u32>> {
    let mut indexes = Vec::new();
    packed.read_all(values, &mut indexes)?;
    match indexes.iter().max() {
        Some(most) if *most as usize >= entries => Err(general("an index past its dictionary")),
        Some(_) | None => Ok(indexes),
    }
}

/// The digest of levels and of what `add_values` adds.
fn content_digest(definition: &[u16], levels: usize, add_values: impl FnOnce(&mut Xxh3)) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&(levels as u64).to_le_bytes());
    let mut piece = Vec::with_capacity(2 * PIECE);
    for levels in definition.chunks(PIECE) {
        piece.clear();
        levels.iter().for_each(|level| piece.extend_from_slice(&level.to_le_bytes()));
        hasher.update(&piece);
    }
    add_values(&mut hasher);
    hasher.digest128()
}

const PIECE: usize = 4 << 10;

fn add_indexes(hasher: &mut Xxh3, indexes: &[u32]) {
    let mut piece = Vec::with_capacity(4 * PIECE);
    for indexes in indexes.chunks(PIECE) {
        piece.clear();
        indexes.iter().for_each(|index| piece.extend_from_slice(&index.to_le_bytes()));
        hasher.update(&piece);
    }
}

/// The digest of a page that was read back, which is `is_coded` or plain; as [`NewPage::digest`] has it. Errors: it does not hold what it
/// claims.
pub fn digest_of_page(page: &Page, column: &ColumnChunkMetaData, is_coded: bool) -> Result<u128> {
    let flat = Flat::of(page, column)?;
    if is_coded {
        let (max_repetition, max_definition) = max_levels(column);
        let (_, packed) = coded_values(page, max_repetition, max_definition)?;
        let indexes = all_indexes(packed, flat.values, usize::MAX)?;
        return Ok(content_digest(&flat.definition, flat.levels, |hasher| add_indexes(hasher, &indexes)));
    }
    match plain_spans(flat.data, fixed_bytes(column)?, flat.values, &[]) {
        Some((end, _)) if end == flat.data.len() => {
            Ok(content_digest(&flat.definition, flat.levels, |hasher| hasher.update(flat.data)))
        }
        Some(_) | None => Err(general("a page holds fewer or more values than it claims")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::schema::parser::parse_message_type;
    use parquet::schema::types::SchemaDescriptor;

    use super::*;

    fn column() -> ColumnChunkMetaData {
        let schema = parse_message_type("message m { required binary v; }").unwrap();
        ColumnChunkMetaData::builder(SchemaDescriptor::new(Arc::new(schema)).column(0)).build().unwrap()
    }

    fn page(data: Vec<u8>, num_values: u32, encoding: Encoding) -> Page {
        let (def_level_encoding, rep_level_encoding) = (Encoding::RLE, Encoding::RLE);
        Page::DataPage {
            buf: data.into(),
            num_values,
            encoding,
            def_level_encoding,
            rep_level_encoding,
            statistics: None,
        }
    }

    fn plain(values: &[&str]) -> Vec<u8> {
        values.iter().flat_map(|value| [&(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()).collect()
    }

    #[test]
    fn the_digest_of_a_page_that_was_read_back_sees_a_fault_in_any_value() {
        let of = |data: Vec<u8>, values| digest_of_page(&page(data, values, Encoding::PLAIN), &column(), false);
        let right = of(plain(&["ann", "bob"]), 2).unwrap();
        assert_eq!(of(plain(&["ann", "bob"]), 2).unwrap(), right);
        for other in [["ann", "boc"], ["bob", "ann"], ["an", "nbob"]] {
            assert_ne!(of(plain(&other), 2).unwrap(), right, "{other:?}");
        }
        // More or fewer values than the page claims.
        assert!(of(plain(&["ann", "bob"]), 1).is_err() && of(plain(&["ann", "bob"]), 3).is_err());
        let coded = |indexes: &[u32]| {
            let mut data = vec![1];
            pack(indexes, 1, &mut data);
            digest_of_page(&page(data, indexes.len() as u32, Encoding::RLE_DICTIONARY), &column(), true).unwrap()
        };
        assert_eq!(coded(&[0, 1, 1]), coded(&[0, 1, 1]));
        assert!(coded(&[0, 1, 1]) != coded(&[0, 1, 0]) && coded(&[0, 1, 1]) != coded(&[0, 1, 1, 1]));
    }

    fn place(rows: u64, encoding: Encoding) -> Place {
        Place {
            start: 0,
            end: 0,
            kind: PageType::DATA_PAGE,
            encoding,
            values: rows,
            rows: 0..rows,
            has_packed_levels: true,
            header_bytes: 0,
            uncompressed_bytes: 0,
            bounds: Vec::new(),
        }
    }

    /// Three values, one a row.
    const VALUES: [&str; 3] = ["ann", "bob", "cyd"];

    /// Whether the row was cut out of a page of [`VALUES`], plain or by a dictionary; nothing is noted where it was not.
    fn is_cut(encoding: Encoding, row: u64, bounds: Option<[&str; 2]>, has_column_index: bool) -> bool {
        let column = column();
        let (data, entries) = match encoding {
            Encoding::PLAIN => (plain(&VALUES), Vec::new()),
            _ => {
                let mut data = vec![2];
                pack(&[0, 1, 2], 2, &mut data);
                (data, VALUES.map(str::as_bytes).to_vec())
            }
        };
        let mut edited = Edited { kept_entries: vec![false; entries.len()], ..Edited::default() };
        let cutter = Cutter { column: &column, entries, has_column_index };
        let bounds = bounds.map(|bounds| bounds.map(|bound| bound.as_bytes().to_vec()));
        let (page, place, rows) = (page(data, 3, encoding), place(3, encoding), RoaringTreemap::from_iter([row]));
        let new = cutter.cut(&page, &place, &rows, bounds.clone(), &mut edited).unwrap();
        let is_noted = edited.before.rows > 0 || !edited.gone_values.is_empty() || !edited.gone_entries.is_empty();
        assert_eq!(is_noted, new.is_some());
        new.inspect(|new| assert_eq!((new.kept.rows, &new.bounds), (2, &bounds))).is_some()
    }

    #[test]
    fn a_page_is_cut_only_where_no_removed_value_can_have_made_a_bound_of_it() {
        for encoding in [Encoding::PLAIN, Encoding::RLE_DICTIONARY] {
            for (bounds, has_column_index, cut) in [
                (Some(["ann", "cyd"]), true, [false, true, false]),
                // What writers that cut bounds leave of them.
                (Some(["an", "cz"]), true, [false, true, false]),
                (Some(["ann", "dan"]), true, [false, true, true]),
                // It has to have some, and they are not there to be judged.
                (None, true, [false, false, false]),
                (None, false, [true, true, true]),
            ] {
                for (row, wanted) in cut.into_iter().enumerate() {
                    let is_cut = is_cut(encoding, row as u64, bounds, has_column_index);
                    assert_eq!(is_cut, wanted, "{encoding} {bounds:?} {row}");
                }
            }
        }
    }

    #[test]
    fn a_page_that_claims_more_rows_than_it_has_is_refused_before_a_level_is_unpacked() {
        let schema = parse_message_type("message m { optional binary v; }").unwrap();
        let column = ColumnChunkMetaData::builder(SchemaDescriptor::new(Arc::new(schema)).column(0)).build().unwrap();
        let cutter = Cutter { column: &column, entries: Vec::new(), has_column_index: false };
        // One run of two levels: an attempt to unpack five of them tells of a run that is cut short.
        let data = [&2u32.to_le_bytes()[..], &[4, 1], &plain(&["ann", "bob"])].concat();
        let cut = |claimed| {
            let (page, place) = (page(data.clone(), claimed, Encoding::PLAIN), place(2, Encoding::PLAIN));
            cutter.cut(&page, &place, &RoaringTreemap::from_iter([1]), None, &mut Edited::default())
        };
        assert!(cut(2).unwrap().is_some());
        let refused = cut(5).err().expect("more rows than its place has").to_string();
        assert!(refused.contains("fewer or more rows than it claims"), "{refused}");
    }

    #[test]
    fn rows_go_with_their_values_and_nulls_without() {
        // Levels of an optional column: two of the five are null.
        let definition = [1, 0, 1, 1, 0];
        for (removed, places) in [(vec![0], vec![0]), (vec![1], vec![]), (vec![2, 4], vec![1]), (vec![1, 3], vec![2])] {
            assert_eq!(removed_values(&definition, 1, &removed), places, "{removed:?}");
        }
        assert_eq!(removed_values(&[], 0, &[1, 3]), [1, 3]);
        assert_eq!(without(&[5, 6, 7, 8], &[0, 3]), [6, 7]);
        let (end, spans) = plain_spans(&plain(&["ann", "bo", "c"]), None, 3, &[1]).unwrap();
        assert_eq!((end, spans.len(), spans[0].clone()), (18, 1, 7..13));
        assert!(
            plain_spans(&plain(&["ann"])[..6], None, 1, &[]).is_none()
                && plain_spans(&[0; 7], Some(4), 2, &[]).is_none()
        );
    }
}
