//! Page copy in a Parquet rewrite: what is copied, what is encoded again, and that neither shows a removed row.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{DataType, Field, Fields};
use bytes::Bytes;
use lakescrub::action::{Action, Redact, Redaction};
use lakescrub::format::parquet::read_back;
use lakescrub::identifier::ColumnPath;
use parquet::basic::{BoundaryOrder, Compression, Encoding, Type as PhysicalType};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageReader};
use parquet::data_type::ByteArray;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::file::serialized_reader::SerializedPageReader;
use proptest::prelude::*;
use roaring::RoaringTreemap;

use crate::rewrite_parquet::{edited, footer, scrubbed, twin, whole, written};

/// Rows with words of their own in every column that can hold words; a row of `odd` has a city of its own, too.
fn marked(rows: usize, odd: &BTreeSet<usize>) -> RecordBatch {
    let each = 0..rows;
    let city = |i: usize| match odd.contains(&i) {
        true => format!("city-of-{i:05}!"),
        false => ["Bern", "Oslo", "Rome"][i % 3].to_owned(),
    };
    let name: ArrayRef =
        Arc::new(each.clone().map(|i| (i % 4 > 0).then(|| format!("name-{i:05}."))).collect::<StringArray>());
    let user = StructArray::new(
        Fields::from(vec![Field::new("name", DataType::Utf8, true)]),
        vec![name],
        Some(each.clone().map(|i| i % 7 > 0).collect::<Vec<_>>().into()),
    );
    let mut tags = ListBuilder::new(StringBuilder::new());
    for i in each.clone() {
        (0..i % 4).for_each(|tag| tags.values().append_option((i % 5 > 0).then(|| format!("tag{tag}-{i:05}#"))));
        tags.append(i % 6 > 0);
    }
    let fixed = each.clone().map(|i| format!("f{i:06}.").into_bytes());
    let price = Decimal128Array::from_iter_values(each.clone().map(|i| i as i128 * 101));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(each.clone().map(|i| i as i64)))),
        ("email", Arc::new(StringArray::from_iter_values(each.clone().map(|i| format!("p{i:05}@example.com"))))),
        ("city", Arc::new(StringArray::from_iter_values(each.clone().map(city)))),
        ("user", Arc::new(user)),
        ("tags", Arc::new(tags.finish())),
        ("fixed", Arc::new(FixedSizeBinaryArray::try_from_iter(fixed).unwrap())),
        ("price", Arc::new(price.with_precision_and_scale(30, 4).unwrap())),
        ("flag", Arc::new(each.clone().map(|i| (i % 9 > 0).then_some(i % 2 == 0)).collect::<BooleanArray>())),
        ("score", Arc::new(Float64Array::from_iter_values(each.clone().map(|i| (i % 50) as f64)))),
        ("level", Arc::new(each.map(|i| (i % 11 > 0).then_some((i % 8) as i32)).collect::<Int32Array>())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

/// The words that only row `i` has.
fn words_of(i: u64) -> [String; 5] {
    [format!("p{i:05}@"), format!("city-of-{i:05}!"), format!("name-{i:05}."), format!("-{i:05}#"), format!("f{i:06}.")]
}

fn paged(rows: usize) -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_max_row_group_row_count(Some(100))
        .set_data_page_row_count_limit(rows)
        .set_write_batch_size(rows)
        .set_compression(Compression::UNCOMPRESSED)
}

/// Ways of writing that make a difference to pages, dictionaries and what is told of them.
fn manners(rows: usize) -> Vec<(&'static str, WriterProperties)> {
    vec![
        ("dictionaries", paged(rows).build()),
        ("plain", paged(rows).set_dictionary_enabled(false).build()),
        ("zstd", paged(rows).set_compression(Compression::ZSTD(Default::default())).build()),
        ("version 2", paged(rows).set_writer_version(WriterVersion::PARQUET_2_0).build()),
        (
            "version 2, snappy",
            paged(rows).set_writer_version(WriterVersion::PARQUET_2_0).set_compression(Compression::SNAPPY).build(),
        ),
        ("a dictionary given up", paged(rows).set_dictionary_page_size_limit(300).build()),
        ("bloom filters", paged(rows).set_bloom_filter_enabled(true).build()),
        ("statistics in page headers", paged(rows).set_write_page_header_statistics(true).build()),
        (
            "cut bounds",
            paged(rows).set_statistics_truncate_length(Some(5)).set_column_index_truncate_length(Some(5)).build(),
        ),
        (
            "no page index",
            paged(rows).set_statistics_enabled(EnabledStatistics::Chunk).set_offset_index_disabled(true).build(),
        ),
        ("no statistics", paged(rows).set_statistics_enabled(EnabledStatistics::None).build()),
        (
            "other encodings",
            paged(rows)
                .set_dictionary_enabled(false)
                .set_column_encoding("id".into(), Encoding::DELTA_BINARY_PACKED)
                .set_column_encoding("email".into(), Encoding::DELTA_LENGTH_BYTE_ARRAY)
                .set_column_encoding("score".into(), Encoding::BYTE_STREAM_SPLIT)
                .set_column_encoding("price".into(), Encoding::BYTE_STREAM_SPLIT)
                .set_column_encoding("flag".into(), Encoding::RLE)
                .set_compression(Compression::LZ4_RAW)
                .build(),
        ),
    ]
}

fn range_of(column: &ColumnChunkMetaData) -> Range<usize> {
    let (start, length) = column.byte_range();
    start as usize..(start + length) as usize
}

fn pages_of(file: &Bytes, column: &ColumnChunkMetaData) -> Vec<Page> {
    let mut pages = SerializedPageReader::new(Arc::new(file.clone()), column, 0, None).unwrap();
    std::iter::from_fn(|| pages.get_next_page().unwrap()).collect()
}

/// The file, and behind it all its pages decompressed.
fn image(file: &Bytes) -> Vec<u8> {
    let mut image = file.to_vec();
    for column in footer(file).row_groups().iter().flat_map(|group| group.columns()) {
        pages_of(file, column).iter().for_each(|page| image.extend_from_slice(page.buffer()));
    }
    image
}

fn holds(image: &[u8], word: &str) -> bool {
    memchr::memmem::find(image, word.as_bytes()).is_some()
}

/// The columns of which a dictionary has an entry twice.
fn repeated_entries(file: &Bytes) -> Vec<String> {
    let repeats = |column: &&ColumnChunkMetaData| {
        let pages = pages_of(file, column);
        let Some(Page::DictionaryPage { buf, num_values, .. }) = pages.first() else { return false };
        let (mut rest, mut entries) = (&buf[..], BTreeSet::new());
        for _ in 0..*num_values {
            let (head, length) = match column.column_type() {
                PhysicalType::BYTE_ARRAY => (4, u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize),
                PhysicalType::FIXED_LEN_BYTE_ARRAY => (0, column.column_descr().type_length() as usize),
                PhysicalType::INT32 | PhysicalType::FLOAT => (0, 4),
                _ => (0, 8),
            };
            let (entry, after) = rest[head..].split_at(length);
            entries.insert(entry);
            rest = after;
        }
        entries.len() < *num_values as usize
    };
    let metadata = footer(file);
    let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
    columns.filter(repeats).map(|column| column.column_path().string()).collect()
}

/// The pages of a chunk as bytes, header and all, and the rows of each.
fn raw_pages(file: &Bytes, metadata: &ParquetMetaData, group: usize, leaf: usize) -> Vec<(Bytes, Range<u64>)> {
    let pages = &metadata.offset_index().unwrap()[group][leaf].page_locations;
    let ends = pages.iter().skip(1).map(|page| page.first_row_index).chain([metadata.row_group(group).num_rows()]);
    let page = |(page, end): (&parquet::file::page_index::offset_index::PageLocation, i64)| {
        let bytes = file.slice(page.offset as usize..page.offset as usize + page.compressed_page_size as usize);
        (bytes, page.first_row_index as u64..end as u64)
    };
    pages.iter().zip(ends).map(page).collect()
}

#[test]
fn pages_that_lose_no_row_are_copied_and_the_others_are_not() {
    let removed: RoaringTreemap = [107, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140].into_iter().collect();
    let odd = removed.iter().map(|row| row as usize).collect();
    for (name, properties) in manners(10) {
        let source = written(&marked(300, &odd), properties);
        let out = scrubbed(&source, removed.iter());
        assert_eq!(whole(&out), twin(&source, &removed), "{name}");
        let (before, after) = (footer(&source), footer(&out));
        if before.offset_index().is_none() {
            continue;
        }
        for leaf in 0..before.row_group(1).num_columns() {
            let column = before.row_group(1).column(leaf).column_path().string();
            let (old, new) = (raw_pages(&source, &before, 1, leaf), raw_pages(&out, &after, 1, leaf));
            let loses = |rows: &Range<u64>| removed.range_cardinality(100 + rows.start..100 + rows.end);
            let left: Vec<_> = old.iter().filter(|(_, rows)| loses(rows) < rows.end - rows.start).collect();
            assert_eq!(left.len(), new.len(), "{name}: {column}");
            for ((old, rows), (new, new_rows)) in left.into_iter().zip(&new) {
                assert_eq!(new_rows.end - new_rows.start, rows.end - rows.start - loses(rows), "{name}: {column}");
                // Of two truth values, or of cut bounds, a page may look as if a removed value had made them.
                let may_differ =
                    loses(rows) > 0 || name == "cut bounds" || ["flag", "level", "score"].contains(&&*column);
                assert!(may_differ || old == new, "{name}: {column}, rows {rows:?}");
                assert!(loses(rows) == 0 || old != new, "{name}: {column}, rows {rows:?}");
            }
        }
    }
}

#[test]
fn no_byte_of_copied_pages_and_of_what_tells_of_them_shows_a_removed_row() {
    for removed in [vec![0u64], vec![107, 208], (100..150).collect(), (0..300).step_by(3).collect()] {
        let odd = removed.iter().map(|row| *row as usize).collect();
        for (name, properties) in manners(10) {
            let source = written(&marked(300, &odd), properties);
            let out = scrubbed(&source, removed.iter().copied());
            let (before, after) = (image(&source), image(&out));
            for row in &removed {
                assert!(holds(&before, &words_of(*row)[0]), "{name}: row {row} is in the source");
                for word in words_of(*row) {
                    assert!(!holds(&after, &word), "{name}: row {row}, {word}");
                }
            }
            // A page copied with a cut bound of a removed value would still show its head.
            assert_bounds_are_of_the_rows(&out, name);
        }
    }
}

/// Texts and numbers of flat columns lie within the bounds of their page and chunk, which are values or, when cut, heads of values.
fn assert_bounds_are_of_the_rows(file: &Bytes, name: &str) {
    let metadata = footer(file);
    let all = whole(file);
    let mut first_row = 0;
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let rows = group.num_rows() as usize;
        for (leaf, column) in group.columns().iter().enumerate() {
            let Some(array) = all.column_by_name(&column.column_path().string()) else { continue };
            let check = |min: Option<&[u8]>, max: Option<&[u8]>, nulls: Option<u64>, from: usize, length: usize| {
                let array = array.slice(first_row + from, length);
                if let Some(nulls) = nulls {
                    assert_eq!(nulls as usize, array.null_count(), "{name}: nulls of {}", column.column_path());
                }
                let (least, most): (Vec<u8>, Vec<u8>) = if let Some(texts) = array.as_string_opt::<i32>() {
                    let text = |text: Option<&str>| text.unwrap_or_default().as_bytes().to_vec();
                    (text(arrow::compute::min_string(texts)), text(arrow::compute::max_string(texts)))
                } else if let Some(numbers) = array.as_primitive_opt::<arrow::datatypes::Int32Type>() {
                    let bytes = |number: Option<i32>| number.map_or(Vec::new(), |number| number.to_le_bytes().to_vec());
                    (bytes(arrow::compute::min(numbers)), bytes(arrow::compute::max(numbers)))
                } else if let Some(numbers) = array.as_primitive_opt::<arrow::datatypes::Int64Type>() {
                    let bytes = |number: Option<i64>| number.map_or(Vec::new(), |number| number.to_le_bytes().to_vec());
                    (bytes(arrow::compute::min(numbers)), bytes(arrow::compute::max(numbers)))
                } else {
                    return;
                };
                if let (Some(min), Some(max)) = (min, max) {
                    let is_cut = column.column_type() == PhysicalType::BYTE_ARRAY && min.len() == 5;
                    assert!(least == min || (is_cut && least.starts_with(min)), "{name}: {}", column.column_path());
                    let is_cut = column.column_type() == PhysicalType::BYTE_ARRAY && max.len() == 5;
                    assert!(most == max || (is_cut && most.starts_with(&max[..4])), "{name}: {}", column.column_path());
                }
            };
            if let Some(statistics) = column.statistics() {
                check(statistics.min_bytes_opt(), statistics.max_bytes_opt(), statistics.null_count_opt(), 0, rows);
            }
            let indexes = metadata.column_index().zip(metadata.offset_index());
            let Some((bounds, places)) = indexes.map(|(bounds, places)| (&bounds[number][leaf], &places[number][leaf]))
            else {
                continue;
            };
            if matches!(bounds, ColumnIndexMetaData::NONE) {
                continue;
            }
            let starts = places.page_locations.iter().map(|page| page.first_row_index as usize).chain([rows]);
            let starts: Vec<usize> = starts.collect();
            for (page, rows) in starts.windows(2).enumerate() {
                let nulls = bounds.null_count(page).map(|count| count as u64);
                let (min, max): (Option<Vec<u8>>, Option<Vec<u8>>) = match bounds {
                    ColumnIndexMetaData::BYTE_ARRAY(index) => {
                        (index.min_value(page).map(<[u8]>::to_vec), index.max_value(page).map(<[u8]>::to_vec))
                    }
                    ColumnIndexMetaData::INT32(index) => (
                        index.min_value(page).map(|number| number.to_le_bytes().to_vec()),
                        index.max_value(page).map(|number| number.to_le_bytes().to_vec()),
                    ),
                    ColumnIndexMetaData::INT64(index) => (
                        index.min_value(page).map(|number| number.to_le_bytes().to_vec()),
                        index.max_value(page).map(|number| number.to_le_bytes().to_vec()),
                    ),
                    _ => (None, None),
                };
                check(min.as_deref(), max.as_deref(), nulls, rows[0], rows[1] - rows[0]);
            }
        }
        first_row += rows;
    }
}

#[test]
fn counts_of_levels_and_bytes_stay_those_of_the_pages() {
    let removed = [3u64, 150, 151, 152, 207];
    for (name, properties) in manners(10) {
        let source = written(&marked(300, &BTreeSet::new()), properties.clone());
        let out = footer(&scrubbed(&source, removed));
        // The slow twin: its groups are written from the kept rows.
        let removed: RoaringTreemap = removed.into_iter().collect();
        let mut first = 0;
        for (number, group) in out.row_groups().iter().enumerate() {
            let kept = twin(&source, &removed).slice(first, group.num_rows() as usize);
            first += group.num_rows() as usize;
            let wanted = footer(&written(&kept, properties.clone()));
            for (leaf, column) in group.columns().iter().enumerate() {
                let wanted = wanted.row_group(0).column(leaf);
                let name = format!("{name}: {} of group {number}", column.column_path());
                assert_eq!(column.num_values(), wanted.num_values(), "{name}");
                // Where bounds are made again, they are cut at the usual length.
                let is_cut = column
                    .statistics()
                    .is_some_and(|s| !s.min_is_exact() || s.min_bytes_opt().is_some_and(|b| b.len() > 5));
                assert!(is_cut || column.statistics() == wanted.statistics(), "{name}");
                assert_eq!(column.definition_level_histogram(), wanted.definition_level_histogram(), "{name}");
                assert_eq!(column.repetition_level_histogram(), wanted.repetition_level_histogram(), "{name}");
                assert_eq!(
                    column.unencoded_byte_array_data_bytes(),
                    wanted.unencoded_byte_array_data_bytes(),
                    "{name}"
                );
                let Some((bounds, places)) = out.column_index().zip(out.offset_index()) else { continue };
                let (bounds, places) = (&bounds[number][leaf], &places[number][leaf]);
                if matches!(bounds, ColumnIndexMetaData::NONE) {
                    continue;
                }
                assert_eq!(bounds.num_pages(), places.page_locations.len() as u64, "{name}");
                let sum = |of: &dyn Fn(usize) -> Option<Vec<i64>>| -> Option<Vec<i64>> {
                    (0..places.page_locations.len()).map(of).reduce(|a, b| {
                        let (a, b) = (a?, b?);
                        Some(a.iter().zip(&b).map(|(a, b)| a + b).collect())
                    })?
                };
                let whole =
                    |levels: Option<&parquet::file::metadata::LevelHistogram>| levels.map(|l| l.values().to_vec());
                let definition = sum(&|page| bounds.definition_level_histogram(page).map(<[i64]>::to_vec));
                assert_eq!(definition, whole(column.definition_level_histogram()), "{name}");
                let repetition = sum(&|page| bounds.repetition_level_histogram(page).map(<[i64]>::to_vec));
                assert_eq!(repetition, whole(column.repetition_level_histogram()), "{name}");
                let bytes = places.unencoded_byte_array_data_bytes.as_ref().map(|bytes| bytes.iter().sum::<i64>());
                assert_eq!(bytes, column.unencoded_byte_array_data_bytes(), "{name}");
            }
        }
    }
}

#[test]
fn an_order_of_pages_is_kept_while_it_holds() {
    let source = written(&marked(100, &BTreeSet::new()), paged(10).build());
    let out = footer(&scrubbed(&source, [0, 9, 30, 31, 39]));
    let order = |column: usize| out.column_index().unwrap()[0][column].get_boundary_order();
    assert_eq!(order(0), Some(BoundaryOrder::ASCENDING), "numbers");
    assert_eq!(order(1), Some(BoundaryOrder::ASCENDING), "texts");
    // All pages begin with the same value and end with the same; one is to lose both.
    let digits: ArrayRef = Arc::new(Int64Array::from_iter_values((0..100).map(|i| i % 10)));
    let source = written(&RecordBatch::try_from_iter([("digit", digits)]).unwrap(), paged(10).build());
    let order = |file: &Bytes| footer(file).column_index().unwrap()[0][0].get_boundary_order();
    assert_eq!(order(&source), Some(BoundaryOrder::ASCENDING));
    assert_eq!(order(&scrubbed(&source, [13, 44])), Some(BoundaryOrder::ASCENDING));
    assert_eq!(order(&scrubbed(&source, [10, 19])), Some(BoundaryOrder::UNORDERED));
}

#[test]
fn what_took_the_place_of_an_entry_is_there_once_however_often_a_file_is_rewritten() {
    // Arrow's C++ library drops an entry that is there twice, and every index behind it means another value. Of an earlier
    // rewrite, somebody may stand there twice.
    for (name, properties) in manners(10) {
        let mut file = written(&marked(100, &BTreeSet::from([50, 51])), properties);
        let mut gone = Vec::new();
        // The first row of those that are left, and one in the middle.
        for rows in [vec![50u64], vec![0, 49], vec![0, 48], vec![0, 1, 2]] {
            let ids = whole(&file);
            let ids = ids.column(0).as_primitive::<arrow::datatypes::Int64Type>();
            gone.extend(rows.iter().map(|row| ids.value(*row as usize) as u64));
            file = scrubbed(&file, rows);
            assert_eq!(repeated_entries(&file), Vec::<String>::new(), "{name}");
            let image = image(&file);
            for row in &gone {
                assert!(words_of(*row).iter().all(|word| !holds(&image, word)), "{name}: row {row}");
            }
        }
    }
}

#[test]
fn a_page_whose_bounds_show_a_removed_value_of_another_page_is_not_copied() {
    for (name, properties) in [
        ("plain", paged(10).set_dictionary_enabled(false).build()),
        ("dictionaries", paged(10).build()),
        ("in page headers", paged(10).set_write_page_header_statistics(true).set_dictionary_enabled(false).build()),
    ] {
        let source = written(&marked(100, &BTreeSet::new()), properties);
        let mut stale = source.to_vec();
        let column = footer(&source).row_group(0).column(1).clone();
        let places = match name {
            "in page headers" => {
                let page = footer(&source).offset_index().unwrap()[0][1].page_locations[4].offset as usize;
                page..page + 80
            }
            _ => {
                let start = column.column_index_offset().unwrap() as usize;
                start..start + column.column_index_length().unwrap() as usize
            }
        };
        // The page of rows 40 to 49 claims to begin with row 7.
        let mut planted = 0;
        let finder = memchr::memmem::Finder::new(b"p00040@");
        while let Some(at) = finder.find(&stale[places.clone()]) {
            stale[places.start + at..][..7].copy_from_slice(b"p00007@");
            planted += 1;
        }
        assert!(planted > 0, "{name}");
        let stale = Bytes::from(stale);
        let out = scrubbed(&stale, [7]);
        assert!(!holds(&image(&out), "p00007@"), "{name}");
        assert_eq!(whole(&out), twin(&source, &[7].into_iter().collect()), "{name}");
        let (old, new) = (raw_pages(&stale, &footer(&stale), 0, 1), raw_pages(&out, &footer(&out), 0, 1));
        assert_eq!(old[5].0, new[5].0, "{name}: the page after it is copied");
    }
}

#[test]
fn a_filter_knows_the_values_of_copied_pages_too() {
    let properties = paged(10).set_bloom_filter_enabled(true).set_bloom_filter_max_ndv(2000).build();
    let out = scrubbed(&written(&marked(100, &BTreeSet::new()), properties), [7, 55]);
    let filter = Sbbf::read_from_column_chunk(footer(&out).row_group(0).column(1), &out).unwrap().unwrap();
    let knows = |i: usize| filter.check(&ByteArray::from(format!("p{i:05}@example.com").as_str()));
    assert!((0..100).filter(|i| ![7, 55].contains(i)).all(knows));
    assert!(!knows(7) && !knows(55));
}

#[test]
fn cells_become_null_page_by_page() {
    let redact = |column: &str, with| Redact { column: ColumnPath::parse(column).unwrap(), with };
    for (name, properties) in manners(10) {
        let source = written(&marked(300, &BTreeSet::from([133])), properties);
        let columns = ["email", "city", "user.name", "tags", "price"];
        let action = Action::Redact(columns.iter().map(|column| redact(column, Redaction::Null)).collect());
        let (out, _) = edited(&source, [133], &action).unwrap();
        let (before, after) = (whole(&source), whole(&out));
        for at in [0..133, 134..300] {
            assert_eq!(after.slice(at.start, at.len()), before.slice(at.start, at.len()), "{name}");
        }
        assert!(["email", "city", "price"].iter().all(|column| after.column_by_name(column).unwrap().is_null(133)));
        let image = image(&out);
        for word in &words_of(133)[..4] {
            assert!(!holds(&image, word), "{name}: {word}");
        }
        // A constant and a tag are in no dictionary.
        let action = Action::Redact(vec![
            redact("email", Redaction::Tag),
            redact("city", Redaction::Constant("zz".to_owned())),
            redact("level", Redaction::Constant("99".to_owned())),
        ]);
        let (out, _) = edited(&source, [133], &action).unwrap();
        assert_eq!(whole(&out).column(2).as_string::<i32>().value(133), "zz", "{name}");
        assert_bounds_are_of_the_rows(&out, name);
    }
}

#[test]
fn a_read_back_sees_a_fault_in_copied_pages_in_changed_ones_and_in_the_dictionary() {
    for (name, properties) in manners(10) {
        let source = written(&marked(100, &BTreeSet::from([55])), properties);
        let (good, receipt) = edited(&source, [55], &Action::Delete).unwrap();
        for column in footer(&good).row_group(0).columns() {
            for at in range_of(column).step_by(29) {
                let mut flipped = good.to_vec();
                flipped[at] ^= 1 << (at % 8);
                assert!(
                    read_back(&Bytes::from(flipped), &receipt).is_err(),
                    "{name}: byte {at} of {}",
                    column.column_path()
                );
            }
        }
    }
}

#[test]
fn pages_that_do_not_begin_with_a_row_are_not_copied() {
    // One list for all rows of a page of the first version: the writer cuts it where a page is full.
    let mut lists = ListBuilder::new(Int64Builder::new());
    for row in 0..4i64 {
        (0..5000).for_each(|value| lists.values().append_value(row * 10_000 + value));
        lists.append(true);
    }
    let lists: ArrayRef = Arc::new(lists.finish());
    let batch = RecordBatch::try_from_iter([("lists", lists)]).unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_data_page_size_limit(8 << 10)
        .set_write_batch_size(512)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .build();
    let source = written(&batch, properties);
    let out = scrubbed(&source, [1]);
    assert_eq!(whole(&out), twin(&source, &[1].into_iter().collect()));
}

#[test]
fn a_large_row_group_is_written_straight_through_and_its_chunks_are_seen_through_a_window() {
    // Two chunks of 80 MB: more than a row group that is held in memory, and each more than a window and than what may wait.
    let rows = 8000u64;
    let value = |row: u64, seed: u64| -> Vec<u8> {
        let mut state = (row << 8 | seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        (0..1250).flat_map(|_| next()).collect()
    };
    let column = |seed: u64| Arc::new(BinaryArray::from_iter_values((0..rows).map(|row| value(row, seed)))) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("a", column(1)), ("b", column(2))]).unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_data_page_row_count_limit(100)
        .set_write_batch_size(100)
        .set_statistics_truncate_length(Some(8))
        .set_column_index_truncate_length(Some(8))
        .build();
    let source = written(&batch, properties);
    drop(batch);
    let before = footer(&source);
    assert!(before.row_group(0).compressed_size() > 128 << 20 && before.num_row_groups() == 1);
    // Few pages change, and then all of them.
    for (removed, copied) in [(vec![5u64, 4000, 7999], 77), ((0..rows).step_by(100).collect(), 0)] {
        let removed: RoaringTreemap = removed.into_iter().collect();
        let out = scrubbed(&source, removed.iter());
        let after = footer(&out);
        let all = whole(&out);
        let kept: Vec<u64> = (0..rows).filter(|row| !removed.contains(*row)).collect();
        assert_eq!(all.num_rows(), kept.len());
        for (leaf, seed) in [(0, 1), (1, 2)] {
            let cells = all.column(leaf).as_binary::<i32>();
            assert!(kept.iter().enumerate().all(|(at, row)| cells.value(at) == value(*row, seed)));
            let (old, new) = (raw_pages(&source, &before, 0, leaf), raw_pages(&out, &after, 0, leaf));
            let new: Vec<&Bytes> = new.iter().map(|(bytes, _)| bytes).collect();
            assert_eq!(old.iter().filter(|(bytes, _)| new.contains(&bytes)).count(), copied);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_rows_removed_from_pages_of_any_size_leave_the_others_and_no_trace(
        rows in 1usize..260,
        page in 1usize..40,
        manner in 0..manners(1).len(),
        removed in prop_oneof![
            proptest::collection::btree_set(0usize..260, 1..4),
            proptest::collection::btree_set(0usize..260, 1..150),
        ],
        odd in proptest::collection::btree_set(0usize..260, 0..40),
    ) {
        let removed: RoaringTreemap = removed.into_iter().filter(|row| *row < rows).map(|row| row as u64).collect();
        let odd: BTreeSet<usize> = odd.into_iter().chain(removed.iter().map(|row| row as usize)).collect();
        let (name, properties) = manners(page).swap_remove(manner);
        let source = written(&marked(rows, &odd), properties);
        let out = scrubbed(&source, removed.iter());
        prop_assert_eq!(whole(&out), twin(&source, &removed));
        let image = image(&out);
        for row in &removed {
            prop_assert!(words_of(row).iter().all(|word| !holds(&image, word)), "{}: row {}", name, row);
        }
        prop_assert_eq!(repeated_entries(&out), Vec::<String>::new(), "{}", name);
        assert_bounds_are_of_the_rows(&out, name);
    }
}
