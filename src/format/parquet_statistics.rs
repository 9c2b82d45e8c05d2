//! What tells of a chunk beside its pages, after some of them changed: statistics, column index, counts of levels and bytes, filter.
//!
//! Invariant: no bound is kept that a value could have made which is gone. By difference are counts taken, never bounds.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound::{Included, Unbounded};

use parquet::basic::{BoundaryOrder, SortOrder, Type as PhysicalType};
use parquet::bloom_filter::Sbbf;
use parquet::data_type::AsBytes;
use parquet::errors::Result;
use parquet::file::metadata::{ColumnIndexBuilder, LevelHistogram};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::statistics::{Statistics, ValueStatistics};

use super::parquet_chunk::Change;
use super::parquet_dictionary::NewDictionary;
use super::parquet_layout::Place;
use super::parquet_page::Edited;
use super::parquet_pages::Pass;
use crate::residue::Bound;

/// What tells of the chunk beside its pages.
pub struct Description {
    pub statistics: Option<Statistics>,
    pub bloom_filter: Option<Sbbf>,
    pub column_index: Option<ColumnIndexMetaData>,
    pub definition: Option<LevelHistogram>,
    pub repetition: Option<LevelHistogram>,
    pub value_bytes: Option<i64>,
}

impl<R: ChunkReader + Clone + 'static> Pass<'_, R> {
    /// The pages that lose no row and whose bounds a removed value may still have made: bounds need not be those of the page.
    pub fn stale(&self, touched: &[bool], dictionary: &NewDictionary) -> Vec<bool> {
        // One of two values names nobody, and nearly every page has both.
        let none = dictionary.gone.is_empty() || self.chunk.column.column_type() == PhysicalType::BOOLEAN;
        let descr = self.chunk.column.column_descr();
        let shows = |bound: &Bound| may_show(bound, &dictionary.gone, descr.physical_type());
        let is_stale = |(number, place): (usize, &Place)| {
            let indexed = self.chunk.column_index.and_then(|index| index_bounds(index, number));
            let indexed = indexed.into_iter().flat_map(|[min, max]| {
                [(min, false), (max, true)].map(|(bytes, is_max)| Bound { bytes, is_max, exact: None })
            });
            !touched[number] && (place.bounds.iter().any(shows) || indexed.into_iter().any(|bound| shows(&bound)))
        };
        self.layout.pages.iter().enumerate().map(|page| !none && is_stale(page)).collect()
    }

    /// `None`: what the source says of itself does not add up.
    pub fn describe(&self, dictionary: &NewDictionary) -> Result<Option<Description>> {
        let column = self.chunk.column;
        let Edited { before, after, .. } = &self.edited;
        let moved = |old: &LevelHistogram, before: &[i64], after: &[i64]| -> Option<LevelHistogram> {
            // Where there is but one level, some writers count none.
            if old.is_empty() && before.len() == 1 {
                return Some(old.clone());
            }
            let levels = old.values().iter().zip(before.iter().zip(after));
            let levels: Vec<i64> = levels.map(|(old, (before, after))| old - before + after).collect();
            (old.len() == before.len() && levels.iter().all(|count| *count >= 0)).then(|| levels.into())
        };
        macro_rules! or_unfit {
            ($old:expr, $new:expr) => {
                match $old {
                    None => None,
                    Some(old) => match $new(old) {
                        None => return Ok(None),
                        some => some,
                    },
                }
            };
        }
        let definition =
            or_unfit!(column.definition_level_histogram(), |old| moved(old, &before.definition, &after.definition));
        let repetition =
            or_unfit!(column.repetition_level_histogram(), |old| moved(old, &before.repetition, &after.repetition));
        let value_bytes = or_unfit!(column.unencoded_byte_array_data_bytes(), |old: i64| {
            Some(old - before.value_bytes as i64 + after.value_bytes as i64).filter(|bytes| *bytes >= 0)
        });
        let (surveyed, bloom_filter) = match (column.bloom_filter_offset(), self.must_survey(dictionary)) {
            (None, false) => (None, None),
            // The same values are there as before, so the filter is the same.
            (Some(_), false) if dictionary.gone.is_empty() && !self.adds_values() => {
                (None, Sbbf::read_from_column_chunk(column, self.chunk.source)?)
            }
            (Some(_), _) | (None, true) => self.chunk.survey(self.rows, self.change)?,
        };
        let statistics = match (column.statistics(), surveyed) {
            (None, _) => None,
            (Some(_), Some(surveyed)) => Some(surveyed),
            (Some(old), None) => Some(with_null_count(old, self.null_count(old))),
        };
        let column_index = self.column_index()?;
        Ok(Some(Description { statistics, bloom_filter, column_index, definition, repetition, value_bytes }))
    }

    fn adds_values(&self) -> bool {
        match self.change {
            Change::Remove | Change::Null => false,
            Change::Constant(_) | Change::Tag(_) => true,
        }
    }

    /// Whether bounds of the chunk may have come from values that are gone, or others from values that are new.
    fn must_survey(&self, dictionary: &NewDictionary) -> bool {
        let Some(statistics) = self.chunk.column.statistics() else { return false };
        let bounds = [
            (statistics.min_bytes_opt(), false, statistics.min_is_exact()),
            (statistics.max_bytes_opt(), true, statistics.max_is_exact()),
        ];
        let shows = |(bytes, is_max, exact): (Option<&[u8]>, bool, bool)| {
            let exact = exact.then_some(true);
            let bound = bytes.map(|bytes| Bound { bytes: bytes.to_vec(), is_max, exact });
            bound.is_some_and(|bound| may_show(&bound, &dictionary.gone, self.chunk.column.column_type()))
        };
        let has_bounds = bounds.iter().any(|(bytes, ..)| bytes.is_some());
        has_bounds && (self.adds_values() || bounds.into_iter().any(shows))
    }

    /// The chunk's count of nulls by difference, where the source counted them as we do.
    fn null_count(&self, old: &Statistics) -> Option<u64> {
        let nulls = i64::try_from(old.null_count_opt()?).ok()?;
        let Edited { before, after, .. } = &self.edited;
        let column = self.chunk.column;
        // Of lists, some writers count empty ones and some do not.
        let agrees = column.column_descr().max_rep_level() == 0
            || nulls == 0
            || column.definition_level_histogram().is_some_and(|levels| {
                levels.values().split_last().is_some_and(|(_, nulled)| nulled.iter().sum::<i64>() == nulls)
            });
        let new =
            if nulls == 0 && after.nulls() <= before.nulls() { 0 } else { nulls - before.nulls() + after.nulls() };
        if agrees { u64::try_from(new).ok() } else { None }
    }

    fn column_index(&self) -> Result<Option<ColumnIndexMetaData>> {
        let Some(old) = self.chunk.column_index else { return Ok(None) };
        let descr = self.chunk.column.column_descr();
        let mut index = ColumnIndexBuilder::new(descr.physical_type());
        let (mut same_bounds, mut bounds) = (true, Vec::new());
        let histogram = |levels: &[i64]| Some(LevelHistogram::from(levels.to_vec()));
        for number in 0..self.layout.pages.len() {
            let old_bounds = index_bounds(old, number);
            let (new_bounds, null_page, null_count, repetition, definition) = match self.edited.pages.get(&number) {
                Some(None) => continue,
                Some(Some(page)) => {
                    same_bounds &= page.bounds == old_bounds;
                    (
                        page.bounds.clone(),
                        page.kept.values == 0,
                        page.kept.nulls(),
                        Some(&page.kept.repetition[..]),
                        Some(&page.kept.definition[..]),
                    )
                }
                None => (
                    old_bounds,
                    old.is_null_page(number),
                    old.null_count(number).unwrap_or(0),
                    old.repetition_level_histogram(number),
                    old.definition_level_histogram(number),
                ),
            };
            // Values without an order, as of NaN alone: then there is no index.
            if new_bounds.is_none() && !null_page {
                return Ok(None);
            }
            let [min, max] = new_bounds.clone().unwrap_or_default();
            bounds.extend(new_bounds);
            index.append(null_page, min, max, null_count);
            let of = |levels: Option<&[i64]>, there: bool| levels.filter(|_| there).and_then(histogram);
            index.append_histograms(
                &of(repetition, old.repetition_level_histogram(number).is_some()),
                &of(definition, old.definition_level_histogram(number).is_some()),
            );
        }
        let order = old.get_boundary_order().unwrap_or(BoundaryOrder::UNORDERED);
        let holds = same_bounds || is_ordered(&bounds, order, descr.physical_type(), descr.sort_order());
        index.set_boundary_order(if holds { order } else { BoundaryOrder::UNORDERED });
        index.build().map(Some)
    }
}

/// Whether minima and maxima both stand in this order; `false` also where the order of values is not known here.
fn is_ordered(bounds: &[[Vec<u8>; 2]], order: BoundaryOrder, physical: PhysicalType, sort: SortOrder) -> bool {
    let compare = |a: &Vec<u8>, b: &Vec<u8>| -> Option<Ordering> {
        macro_rules! of {
            ($number:ty) => {
                <$number>::from_le_bytes(a.as_slice().try_into().ok()?)
                    .partial_cmp(&<$number>::from_le_bytes(b.as_slice().try_into().ok()?))
            };
        }
        match (physical, sort) {
            (
                PhysicalType::BOOLEAN | PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY,
                SortOrder::UNSIGNED,
            ) => Some(a.cmp(b)),
            (PhysicalType::INT32, SortOrder::SIGNED) => of!(i32),
            (PhysicalType::INT64, SortOrder::SIGNED) => of!(i64),
            (PhysicalType::INT32, SortOrder::UNSIGNED) => of!(u32),
            (PhysicalType::INT64, SortOrder::UNSIGNED) => of!(u64),
            (PhysicalType::FLOAT, SortOrder::SIGNED) => of!(f32),
            (PhysicalType::DOUBLE, SortOrder::SIGNED) => of!(f64),
            _ => None,
        }
    };
    let unwanted = match order {
        BoundaryOrder::UNORDERED => return false,
        BoundaryOrder::ASCENDING => Ordering::Greater,
        BoundaryOrder::DESCENDING => Ordering::Less,
    };
    bounds
        .windows(2)
        .all(|pair| (0..2).all(|side| compare(&pair[0][side], &pair[1][side]).is_some_and(|order| order != unwanted)))
}

fn with_null_count(old: &Statistics, null_count: Option<u64>) -> Statistics {
    fn of<T: Clone>(old: &ValueStatistics<T>, null_count: Option<u64>, is_deprecated: bool) -> ValueStatistics<T> {
        ValueStatistics::new(old.min_opt().cloned(), old.max_opt().cloned(), None, null_count, is_deprecated)
            .with_min_is_exact(old.min_is_exact())
            .with_max_is_exact(old.max_is_exact())
            .with_backwards_compatible_min_max(old.is_min_max_backwards_compatible())
    }
    let is_deprecated = old.is_min_max_deprecated();
    match old {
        Statistics::Boolean(old) => Statistics::Boolean(of(old, null_count, is_deprecated)),
        Statistics::Int32(old) => Statistics::Int32(of(old, null_count, is_deprecated)),
        Statistics::Int64(old) => Statistics::Int64(of(old, null_count, is_deprecated)),
        Statistics::Int96(old) => Statistics::Int96(of(old, null_count, is_deprecated)),
        Statistics::Float(old) => Statistics::Float(of(old, null_count, is_deprecated)),
        Statistics::Double(old) => Statistics::Double(of(old, null_count, is_deprecated)),
        Statistics::ByteArray(old) => Statistics::ByteArray(of(old, null_count, is_deprecated)),
        Statistics::FixedLenByteArray(old) => Statistics::FixedLenByteArray(of(old, null_count, is_deprecated)),
    }
}

/// Whether one of the values may have made the bound: it is the value, or what a writer that cuts leaves of it.
pub fn may_show(bound: &Bound, values: &BTreeSet<Vec<u8>>, physical: PhysicalType) -> bool {
    let is_cut_at = |head: &[u8]| {
        if head.is_empty() {
            return values.contains(&bound.bytes);
        }
        let next = values.range::<[u8], _>((Included(head), Unbounded)).next();
        next.is_some_and(|value| value.starts_with(head))
    };
    match physical {
        PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY if bound.exact != Some(true) => {
            is_cut_at(head(bound)) || of_either_zero(bound, values, physical)
        }
        _ => values.contains(&bound.bytes) || of_either_zero(bound, values, physical),
    }
}

/// What a value begins with that the bound was made of: of a maximum that was cut, the last character or byte was raised.
fn head(bound: &Bound) -> &[u8] {
    match std::str::from_utf8(&bound.bytes) {
        _ if !bound.is_max => &bound.bytes,
        Ok(text) => &bound.bytes[..text.char_indices().next_back().map_or(0, |(last, _)| last)],
        Err(_) => &bound.bytes[..bound.bytes.len() - 1],
    }
}

/// Writers give a bound of zero the sign that makes it the widest (parquet.thrift, `ColumnOrder`).
fn of_either_zero(bound: &Bound, values: &BTreeSet<Vec<u8>>, physical: PhysicalType) -> bool {
    let is_float = matches!(physical, PhysicalType::FLOAT | PhysicalType::DOUBLE) || bound.bytes.len() == 2;
    let Some((sign, rest)) = bound.bytes.split_last().filter(|_| is_float) else { return false };
    let signed = |sign: u8| [rest, &[sign]].concat();
    sign & 0x7f == 0
        && rest.iter().all(|byte| *byte == 0)
        && (values.contains(&signed(0)) || values.contains(&signed(0x80)))
}

/// Minimum and maximum of a page in a column index.
pub fn index_bounds(index: &ColumnIndexMetaData, page: usize) -> Option<[Vec<u8>; 2]> {
    macro_rules! of {
        ($index:expr) => {
            $index
                .min_value(page)
                .zip($index.max_value(page))
                .map(|bounds| [bounds.0, bounds.1].map(|b| b.as_bytes().to_vec()))
        };
    }
    match index {
        ColumnIndexMetaData::NONE => None,
        ColumnIndexMetaData::BOOLEAN(index) => of!(index),
        ColumnIndexMetaData::INT32(index) => of!(index),
        ColumnIndexMetaData::INT64(index) => of!(index),
        ColumnIndexMetaData::INT96(index) => of!(index),
        ColumnIndexMetaData::FLOAT(index) => of!(index),
        ColumnIndexMetaData::DOUBLE(index) => of!(index),
        ColumnIndexMetaData::BYTE_ARRAY(index) | ColumnIndexMetaData::FIXED_LEN_BYTE_ARRAY(index) => {
            index.min_value(page).zip(index.max_value(page)).map(|(min, max)| [min.to_vec(), max.to_vec()])
        }
    }
}
