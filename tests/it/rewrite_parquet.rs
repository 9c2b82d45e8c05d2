//! The surgical Parquet rewrite against its slow twin, decode and filter: rows, order, schema and metadata of what is kept, and no
//! byte of what is removed.

use std::sync::Arc;

use arrow::array::*;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Schema, TimeUnit};
use bytes::Bytes;
use lakescrub::action::{Action, Redact, Redaction};
use lakescrub::format::parquet::{ParquetReceipt, read_back, rewrite};
use lakescrub::format::{Edit, FormatError, Tagger};
use lakescrub::identifier::ColumnPath;
use lakescrub::residue::Cleanse;
use lakescrub::store::InMemory;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, PageType};
use parquet::bloom_filter::Sbbf;
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType as Physical, FixedLenByteArray, FixedLenByteArrayType,
    Int32Type as PhysicalInt32, Int64Type as PhysicalInt64, Int96, Int96Type,
};
use parquet::file::metadata::{
    KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader, SortingColumn,
};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use roaring::RoaringTreemap;

pub struct NoTag;

impl Tagger for NoTag {
    fn tag(&self, _: &ColumnPath, value: &[u8]) -> String {
        format!("tag{}", value.len())
    }
}

pub fn edited(
    source: &Bytes,
    rows: impl IntoIterator<Item = u64>,
    action: &Action,
) -> Result<(Bytes, ParquetReceipt), FormatError> {
    let rows: RoaringTreemap = rows.into_iter().collect();
    let mut out = InMemory::default();
    let receipt =
        rewrite(source, &Edit { rows: &rows, action, tagger: &NoTag, cleanse: &Cleanse::default() }, &mut out)?;
    let out = checked(out, source);
    read_back(&out, &receipt)?;
    Ok((out, receipt))
}

/// The file, if each byte that is said to be the source's own is.
fn checked(told: InMemory, source: &[u8]) -> Bytes {
    let mut end = 0;
    for (at, range) in told.taken {
        let (at, range) = (at as usize, range.start as usize..range.end as usize);
        assert!(at >= end, "told out of order");
        end = at + range.len();
        assert!(told.bytes[at..end] == source[range.clone()], "{range:?} of the source is not at {at}");
    }
    told.bytes.into()
}

pub fn scrubbed(source: &Bytes, rows: impl IntoIterator<Item = u64>) -> Bytes {
    edited(source, rows, &Action::Delete).unwrap().0
}

pub fn footer(file: &Bytes) -> ParquetMetaData {
    ParquetMetaDataReader::new()
        .with_metadata_options(Some(ParquetMetaDataOptions::new().with_encoding_stats_as_mask(false)))
        .with_page_index_policy(PageIndexPolicy::Optional)
        .parse_and_finish(file)
        .unwrap()
}

fn batches(file: &Bytes) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap().with_batch_size(1 << 16).build();
    reader.unwrap().map(Result::unwrap).collect()
}

pub fn whole(file: &Bytes) -> RecordBatch {
    let schema = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap().schema().clone();
    arrow::compute::concat_batches(&schema, &batches(file)).unwrap()
}

/// The slow twin: decodes everything and filters.
pub fn twin(source: &Bytes, removed: &RoaringTreemap) -> RecordBatch {
    let all = whole(source);
    let keep: BooleanArray = (0..all.num_rows() as u64).map(|row| Some(!removed.contains(row))).collect();
    filter_record_batch(&all, &keep).unwrap()
}

/// What a Parquet footer says that must be the same before and after.
fn assert_same_character(before: &ParquetMetaData, after: &ParquetMetaData, group_of: &[usize]) {
    let (old, new) = (before.file_metadata(), after.file_metadata());
    assert_eq!(old.schema(), new.schema());
    assert_eq!(old.key_value_metadata(), new.key_value_metadata());
    assert_eq!(old.created_by(), new.created_by());
    assert_eq!(old.version(), new.version());
    assert_eq!(old.column_orders(), new.column_orders());
    assert_eq!(before.offset_index().is_some(), after.offset_index().is_some());
    assert_eq!(after.num_row_groups(), group_of.len());
    for (number, source) in group_of.iter().enumerate() {
        let (old, new) = (before.row_group(*source), after.row_group(number));
        assert_eq!(old.sorting_columns(), new.sorting_columns());
        for (old, new) in old.columns().iter().zip(new.columns()) {
            assert_eq!(old.compression(), new.compression());
            assert_eq!(old.statistics().is_some(), new.statistics().is_some(), "{}", old.column_path());
            assert_eq!(old.bloom_filter_offset().is_some(), new.bloom_filter_offset().is_some());
            assert_eq!(data_encodings(old), data_encodings(new), "{}", old.column_path());
        }
    }
}

/// The sorted encodings of a chunk's data pages, and whether they are of the second version.
fn data_encodings(column: &parquet::file::metadata::ColumnChunkMetaData) -> Vec<(PageType, String)> {
    let stats = column.page_encoding_stats().expect("our fixtures have encoding statistics");
    let mut encodings: Vec<_> = stats
        .iter()
        .filter(|stat| stat.page_type != PageType::DICTIONARY_PAGE)
        // Two names of one encoding; the format deprecates the first in data pages.
        .map(|stat| (stat.page_type, stat.encoding.to_string().replace("PLAIN_DICTIONARY", "RLE_DICTIONARY")))
        .collect();
    encodings.sort_by_key(|(page, encoding)| (*page as i32, encoding.clone()));
    encodings.dedup();
    encodings
}

pub fn email(i: usize) -> String {
    format!("person{i:05}@example.com")
}

/// Rows `0..rows`: an id, an address per row, a low-cardinality city, a struct with nulls, a list, a map, a decimal and a time.
pub fn people(rows: usize, addresses: &dyn Fn(usize) -> String) -> RecordBatch {
    let id: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
    let address: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(addresses)));
    let city: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|i| ["Bern", "Oslo", "Rome"][i % 3])));
    let name: ArrayRef = Arc::new((0..rows).map(|i| (i % 4 > 0).then(|| format!("name {i}"))).collect::<StringArray>());
    let age: ArrayRef = Arc::new((0..rows).map(|i| (i % 5 > 0).then_some(i as i32)).collect::<Int32Array>());
    let user = StructArray::try_new(
        Fields::from(vec![Field::new("name", DataType::Utf8, true), Field::new("age", DataType::Int32, true)]),
        vec![name, age],
        Some((0..rows).map(|i| i % 7 > 0).collect::<Vec<_>>().into()),
    );
    let user: ArrayRef = Arc::new(user.unwrap());
    let mut tags = ListBuilder::new(StringBuilder::new());
    let mut properties = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
    for i in 0..rows {
        (0..i % 4).for_each(|tag| tags.values().append_value(format!("tag {tag} of {i}")));
        tags.append(i % 6 > 0);
        (0..i % 3).for_each(|key| {
            properties.keys().append_value(format!("key {key}"));
            properties.values().append_option((i % 2 > 0).then_some(i as i64));
        });
        properties.append(true).unwrap();
    }
    let price: ArrayRef = Arc::new(
        Decimal128Array::from_iter_values((0..rows).map(|i| i as i128 * 101)).with_precision_and_scale(30, 4).unwrap(),
    );
    let at: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values((0..rows).map(|i| i as i64 * 1_000_003)));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", id),
        ("email", address),
        ("city", city),
        ("user", user),
        ("tags", Arc::new(tags.finish())),
        ("properties", Arc::new(properties.finish())),
        ("price", price),
        ("at", at),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

pub fn written(batch: &RecordBatch, properties: WriterProperties) -> Bytes {
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    out.into()
}

pub fn groups_of(rows: usize) -> WriterPropertiesBuilder {
    WriterProperties::builder().set_max_row_group_row_count(Some(rows)).set_compression(Compression::UNCOMPRESSED)
}

/// Every way of writing that a rewrite has to keep up.
pub fn manners() -> Vec<(&'static str, WriterProperties)> {
    let sorting = vec![SortingColumn { column_idx: 0, descending: false, nulls_first: true }];
    let key_values = vec![KeyValue::new("pandas".to_owned(), "{}".to_owned()), KeyValue::new("empty".to_owned(), None)];
    vec![
        ("plain", groups_of(300).set_dictionary_enabled(false).build()),
        ("snappy", groups_of(300).set_compression(Compression::SNAPPY).build()),
        ("zstd", groups_of(300).set_compression(Compression::ZSTD(Default::default())).build()),
        ("gzip", groups_of(300).set_compression(Compression::GZIP(Default::default())).build()),
        ("brotli", groups_of(300).set_compression(Compression::BROTLI(Default::default())).build()),
        ("lz4 raw", groups_of(300).set_compression(Compression::LZ4_RAW).build()),
        ("version 2", groups_of(300).set_writer_version(WriterVersion::PARQUET_2_0).build()),
        ("no statistics", groups_of(300).set_statistics_enabled(EnabledStatistics::None).build()),
        ("chunk statistics", groups_of(300).set_statistics_enabled(EnabledStatistics::Chunk).build()),
        (
            "no page index",
            groups_of(300).set_statistics_enabled(EnabledStatistics::Chunk).set_offset_index_disabled(true).build(),
        ),
        ("bloom filters", groups_of(300).set_bloom_filter_enabled(true).build()),
        ("tiny pages", groups_of(300).set_data_page_row_count_limit(7).set_write_batch_size(7).build()),
        (
            "tiny pages of version 2",
            groups_of(300)
                .set_data_page_row_count_limit(7)
                .set_write_batch_size(7)
                .set_writer_version(WriterVersion::PARQUET_2_0)
                .set_compression(Compression::SNAPPY)
                .build(),
        ),
        (
            "a dictionary given up",
            groups_of(300)
                .set_dictionary_page_size_limit(1 << 10)
                .set_data_page_row_count_limit(20)
                .set_write_batch_size(20)
                .build(),
        ),
        ("one group", groups_of(1 << 20).build()),
        ("sorted", groups_of(300).set_sorting_columns(Some(sorting)).build()),
        ("key values", groups_of(300).set_key_value_metadata(Some(key_values)).build()),
        ("created by", groups_of(300).set_created_by("parquet-mr version 1.13".to_owned()).build()),
        (
            "delta encodings",
            groups_of(300)
                .set_dictionary_enabled(false)
                .set_column_encoding("id".into(), Encoding::DELTA_BINARY_PACKED)
                .set_column_encoding("email".into(), Encoding::DELTA_BYTE_ARRAY)
                .set_column_encoding("city".into(), Encoding::DELTA_LENGTH_BYTE_ARRAY)
                .set_column_encoding("price".into(), Encoding::BYTE_STREAM_SPLIT)
                .build(),
        ),
    ]
}

#[test]
fn kept_rows_and_the_character_of_a_file_survive_every_manner_of_writing() {
    let batch = people(1000, &email);
    for (name, properties) in manners() {
        let source = written(&batch, properties);
        let before = footer(&source);
        let groups = before.num_row_groups();
        // In every group, in the second group only, its first and last row only.
        let second = if groups > 1 { vec![300, 599] } else { vec![0, 999] };
        let touched: Vec<(Vec<u64>, Vec<usize>)> =
            vec![((0..1000).step_by(37).collect(), (0..groups).collect()), (second, (0..groups).collect())];
        for (rows, group_of) in touched {
            let removed: RoaringTreemap = rows.iter().copied().collect();
            let (out, receipt) = edited(&source, rows, &Action::Delete).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(whole(&out), twin(&source, &removed), "{name}");
            assert_same_character(&before, &footer(&out), &group_of);
            let counts = &receipt.counts;
            assert_eq!((counts.rows_before, counts.rows_removed), (1000, removed.len()), "{name}");
            assert_eq!(counts.rows_after, 1000 - removed.len(), "{name}");
        }
    }
}

#[test]
fn a_row_group_without_a_match_is_copied_as_bytes() {
    let source = written(&people(900, &email), groups_of(300).set_bloom_filter_enabled(true).build());
    let out = scrubbed(&source, [310, 311]);
    let (before, after) = (footer(&source), footer(&out));
    let bytes = |file: &Bytes, footer: &ParquetMetaData, group: usize| -> Vec<Bytes> {
        let range = |column: &parquet::file::metadata::ColumnChunkMetaData| {
            let (start, length) = column.byte_range();
            file.slice(start as usize..(start + length) as usize)
        };
        footer.row_group(group).columns().iter().map(range).collect()
    };
    for group in [0, 2] {
        assert_eq!(bytes(&source, &before, group), bytes(&out, &after, group));
        for (old, new) in before.row_group(group).columns().iter().zip(after.row_group(group).columns()) {
            assert_eq!(old.statistics(), new.statistics());
            assert_eq!(old.page_encoding_stats(), new.page_encoding_stats());
            assert_eq!(old.definition_level_histogram(), new.definition_level_histogram());
            assert_eq!(old.unencoded_byte_array_data_bytes(), new.unencoded_byte_array_data_bytes());
            assert_eq!(old.num_values(), new.num_values());
        }
        for leaf in 0..after.row_group(group).num_columns() {
            assert_eq!(before.column_index().unwrap()[group][leaf], after.column_index().unwrap()[group][leaf]);
            let rows = |footer: &ParquetMetaData| -> Vec<i64> {
                footer.offset_index().unwrap()[group][leaf]
                    .page_locations
                    .iter()
                    .map(|page| page.first_row_index)
                    .collect()
            };
            assert_eq!(rows(&before), rows(&after));
        }
    }
    assert_ne!(bytes(&source, &before, 1), bytes(&out, &after, 1));
}

#[test]
fn offsets_in_the_new_page_index_lead_to_its_pages() {
    let properties = groups_of(300).set_data_page_row_count_limit(50).set_write_batch_size(50).build();
    let out = scrubbed(&written(&people(900, &email), properties), [5, 310]);
    let footer = Arc::new(footer(&out));
    let options =
        parquet::arrow::arrow_reader::ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let all = whole(&out);
    for start in [0usize, 120, 298, 299, 450, 700] {
        use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
        let selection = RowSelection::from(vec![RowSelector::skip(start), RowSelector::select(60)]);
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(out.clone(), options.clone()).unwrap();
        let read: Vec<_> = builder.with_row_selection(selection).build().unwrap().map(Result::unwrap).collect();
        let read = arrow::compute::concat_batches(&all.schema(), &read).unwrap();
        assert_eq!(read, all.slice(start, 60));
    }
    assert_eq!(footer.num_row_groups(), 3);
}

#[test]
fn nothing_of_a_removed_row_is_left_in_any_byte() {
    let secret = |i: usize| if i == 444 { "zz-removed-person@example.com".to_owned() } else { email(i) };
    for (name, properties) in manners() {
        // Uncompressed, so that a search of the bytes sees everything; the other codecs go through the same encoder.
        if properties.compression(&"email".into()) != Compression::UNCOMPRESSED {
            continue;
        }
        let source = written(&people(1000, &secret), properties);
        let holds = |file: &Bytes| file.windows(15).any(|window| window == b"zz-removed-pers");
        // Encoded as differences from the value before, it may stand there in parts.
        assert!(holds(&source) || name == "delta encodings", "{name}: the canary is in the source");
        assert!(!holds(&scrubbed(&source, [444])), "{name}");
    }
}

#[test]
fn bloom_filters_know_every_kept_value_and_forget_the_removed_ones() {
    let source = written(&people(2000, &email), groups_of(1000).set_bloom_filter_enabled(true).build());
    let removed: Vec<u64> = (0..2000).filter(|row| row % 10 == 3).collect();
    let out = scrubbed(&source, removed.iter().copied());
    let footer = footer(&out);
    let filters: Vec<Sbbf> = (0..2)
        .map(|group| Sbbf::read_from_column_chunk(footer.row_group(group).column(1), &out).unwrap().unwrap())
        .collect();
    let known = |row: u64| filters[(row / 1000) as usize].check(&ByteArray::from(email(row as usize).as_str()));
    assert!((0..2000).filter(|row| row % 10 != 3).all(known), "no false negatives");
    let left = removed.iter().filter(|row| known(**row)).count();
    assert!(left <= 20, "{left} of {} removed values still known, far above the filter's rate", removed.len());
}

#[test]
fn bounds_are_made_of_the_kept_rows_alone() {
    let source = written(&people(100, &email), groups_of(50).build());
    let out = scrubbed(&source, [0, 49, 50]);
    let footer = footer(&out);
    let bounds = |group: usize| {
        let statistics = footer.row_group(group).column(1).statistics().unwrap();
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        (text(statistics.min_bytes_opt()), text(statistics.max_bytes_opt()))
    };
    assert_eq!(bounds(0), (email(1), email(48)));
    assert_eq!(bounds(1), (email(51), email(99)));
}

#[test]
fn a_group_that_loses_all_rows_is_left_out_and_a_file_that_does_keeps_its_schema() {
    let source = written(&people(900, &email), groups_of(300).build());
    let out = scrubbed(&source, 300..600);
    assert_same_character(&footer(&source), &footer(&out), &[0, 2]);
    assert_eq!(whole(&out), twin(&source, &(300..600).collect()));
    let empty = scrubbed(&source, 0..900);
    assert_eq!(footer(&empty).file_metadata().num_rows(), 0);
    assert_eq!(footer(&empty).file_metadata().schema(), footer(&source).file_metadata().schema());
    assert_eq!(whole(&empty).num_rows(), 0);
    // An empty file can be rewritten again.
    assert_eq!(whole(&scrubbed(&empty, [])).num_rows(), 0);
}

/// Writes a file on the physical level, so that types which the Arrow writer does not have can be made.
fn physical(message: &str, write: impl Fn(&mut SerializedFileWriter<&mut Vec<u8>>)) -> Bytes {
    let mut out = Vec::new();
    let schema = Arc::new(parse_message_type(message).unwrap());
    let mut writer = SerializedFileWriter::new(&mut out, schema, Default::default()).unwrap();
    write(&mut writer);
    writer.close().unwrap();
    out.into()
}

fn column<T: Physical>(
    group: &mut parquet::file::writer::SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: &[T::T],
    definition: Option<&[i16]>,
    repetition: Option<&[i16]>,
) {
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<T>().write_batch(values, definition, repetition).unwrap();
    column.close().unwrap();
}

#[test]
fn types_that_the_arrow_writer_lacks_survive_unchanged() {
    let message = "message spark_schema {
        required int96 at; optional int96 seen; required int32 d9 (DECIMAL(9, 2)); required int64 d18 (DECIMAL(18, 4));
        required fixed_len_byte_array(16) d38 (DECIMAL(38, 10)); required binary big (DECIMAL(60, 3));
        required fixed_len_byte_array(16) id (UUID); required fixed_len_byte_array(12) span (INTERVAL);
        required binary doc (JSON); required fixed_len_byte_array(2) half (FLOAT16);
        optional group old (LIST) { repeated int32 array; }
        optional group legacy (LIST) { repeated group bag { optional binary array_element (UTF8); } }
        repeated int64 bare;
    }";
    let n = 40i32;
    let source = physical(message, |writer| {
        for first in [0, n] {
            let mut group = writer.next_row_group().unwrap();
            let ints: Vec<i32> = (first..first + n).collect();
            let stamp = |i: &i32| {
                let mut at = Int96::new();
                at.set_data(*i as u32, 7, 2_459_000);
                at
            };
            let fixed = |length: usize| -> Vec<FixedLenByteArray> {
                ints.iter().map(|i| FixedLenByteArray::from(vec![*i as u8; length])).collect()
            };
            let text: Vec<ByteArray> =
                ints.iter().map(|i| ByteArray::from(format!("{{\"a\":{i}}}").as_str())).collect();
            let stamps: Vec<Int96> = ints.iter().map(stamp).collect();
            column::<Int96Type>(&mut group, &stamps, None, None);
            let some: Vec<i16> = ints.iter().map(|i| i16::from(i % 2 == 0)).collect();
            let half: Vec<Int96> = ints.iter().filter(|i| *i % 2 == 0).map(stamp).collect();
            column::<Int96Type>(&mut group, &half, Some(&some), None);
            column::<PhysicalInt32>(&mut group, &ints, None, None);
            let longs: Vec<i64> = ints.iter().map(|i| i64::from(*i)).collect();
            column::<PhysicalInt64>(&mut group, &longs, None, None);
            column::<FixedLenByteArrayType>(&mut group, &fixed(16), None, None);
            column::<ByteArrayType>(&mut group, &text, None, None);
            column::<FixedLenByteArrayType>(&mut group, &fixed(16), None, None);
            column::<FixedLenByteArrayType>(&mut group, &fixed(12), None, None);
            column::<ByteArrayType>(&mut group, &text, None, None);
            column::<FixedLenByteArrayType>(&mut group, &fixed(2), None, None);
            // Row i holds i % 3 elements; row 0 of every three is an empty list, or a null one in the first group.
            let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
            for i in &ints {
                let empty = i16::from(first > 0);
                (i % 3 == 0).then(|| (definition.push(empty), repetition.push(0)));
                for element in 0..i % 3 {
                    values.push(*i);
                    definition.push(2);
                    repetition.push(i16::from(element > 0));
                }
            }
            column::<PhysicalInt32>(&mut group, &values, Some(&definition), Some(&repetition));
            let texts: Vec<ByteArray> = values.iter().map(|i| ByteArray::from(format!("e{i}").as_str())).collect();
            let deeper: Vec<i16> = definition.iter().map(|level| if *level == 2 { 3 } else { *level }).collect();
            column::<ByteArrayType>(&mut group, &texts, Some(&deeper), Some(&repetition));
            let longs: Vec<i64> = values.iter().map(|i| i64::from(*i)).collect();
            let shallow: Vec<i16> = definition.iter().map(|level| i16::from(*level == 2)).collect();
            column::<PhysicalInt64>(&mut group, &longs, Some(&shallow), Some(&repetition));
            group.close().unwrap();
        }
    });
    let removed = [0u64, 1, 2, 17, 39, 41, 79];
    let out = scrubbed(&source, removed);
    assert_eq!(whole(&out), twin(&source, &removed.into_iter().collect()));
    assert_same_character(&footer(&source), &footer(&out), &[0, 1]);
}

#[test]
fn a_row_group_of_more_than_a_million_rows_stays_one() {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_200_000));
    let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2_000_000)).build();
    let source = written(&batch, properties);
    assert_eq!(footer(&source).num_row_groups(), 1);
    let out = scrubbed(&source, [0, 1_100_000]);
    assert_eq!(footer(&out).num_row_groups(), 1);
    assert_eq!(whole(&out).num_rows(), 1_199_998);
}

#[test]
fn redacted_cells_change_in_matching_rows_only() {
    let batch = people(600, &email);
    let source = written(&batch, groups_of(300).build());
    let redact = |column: &str, with| Redact { column: ColumnPath::parse(column).unwrap(), with };
    let action = Action::Redact(vec![
        redact("email", Redaction::Tag),
        redact("user.name", Redaction::Null),
        redact("tags", Redaction::Constant("gone".to_owned())),
        redact("price", Redaction::Null),
    ]);
    let (out, receipt) = edited(&source, [310, 313], &action).unwrap();
    assert_eq!((receipt.counts.rows_redacted, receipt.counts.rows_after), (2, 600));
    let (before, after) = (whole(&source), whole(&out));
    assert_eq!(after.slice(0, 310), before.slice(0, 310));
    assert_eq!(after.slice(314, 286), before.slice(314, 286));
    let text = |batch: &RecordBatch, row| batch.column(1).as_string::<i32>().value(row).to_owned();
    assert_eq!(text(&after, 310), format!("tag{}", email(310).len()));
    assert_eq!(text(&after, 311), email(311));
    let user = after.column(3).as_struct();
    assert!(user.column(0).is_null(310) && user.is_valid(310));
    assert_eq!(after.column(4).as_list::<i32>().value(310).as_string::<i32>(), &StringArray::from(vec!["gone"; 2]));
    assert!(after.column(6).is_null(313) && after.column(6).is_valid(312));
    for untouched in ["id", "city", "properties", "at"] {
        assert_eq!(after.column_by_name(untouched), before.column_by_name(untouched));
    }
    // Columns that are not redacted are copied even in a touched group.
    let chunk = |file: &Bytes| {
        let footer = footer(file);
        let (start, length) = footer.row_group(1).column(0).byte_range();
        file.slice(start as usize..(start + length) as usize)
    };
    assert_eq!(chunk(&source), chunk(&out));
}

#[test]
fn what_is_copied_is_told_before_it_is_written() {
    let source = written(
        &people(900, &email),
        groups_of(300).set_data_page_row_count_limit(20).set_write_batch_size(20).build(),
    );
    let (rows, mut out) = (RoaringTreemap::from_iter([301]), InMemory::default());
    let edit = Edit { rows: &rows, action: &Action::Delete, tagger: &NoTag, cleanse: &Cleanse::default() };
    rewrite(&source, &edit, &mut out).unwrap();
    let group_bytes: Vec<u64> =
        footer(&source).row_groups().iter().map(|group| group.compressed_size() as u64).collect();
    let untouched = 4 + group_bytes[0] + group_bytes[2];
    let told: u64 = out.taken.iter().map(|(_, range)| range.end - range.start).sum();
    checked(out, &source);
    // Of the touched group, too, the pages that are copied.
    let of_touched = told.checked_sub(untouched).unwrap();
    assert!((group_bytes[1] / 4..group_bytes[1]).contains(&of_touched), "{of_touched} of {}", group_bytes[1]);
}

#[test]
fn what_cannot_be_redacted_is_refused_and_nothing_is_written() {
    let required = Schema::new(vec![
        Field::new("email", DataType::Utf8, false),
        Field::new("day", DataType::Date32, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
    ]);
    let batch = RecordBatch::try_new(
        Arc::new(required),
        vec![
            Arc::new(StringArray::from(vec!["a"])),
            Arc::new(Date32Array::from(vec![1])),
            Arc::new(TimestampMicrosecondArray::from(vec![1])),
        ],
    );
    let source = written(&batch.unwrap(), groups_of(10).build());
    for (column, with) in [
        ("email", Redaction::Null),
        ("day", Redaction::Tag),
        ("day", Redaction::Constant("x".to_owned())),
        ("at", Redaction::Constant("7".to_owned())),
        ("none", Redaction::Null),
    ] {
        let action = Action::Redact(vec![Redact { column: ColumnPath::parse(column).unwrap(), with }]);
        assert!(matches!(edited(&source, [0], &action), Err(FormatError::Unsupported(_))), "{column}");
    }
}

#[test]
fn files_that_cannot_be_spliced_or_read_are_told_apart() {
    let source = written(&people(50, &email), groups_of(50).build());
    let cut = source.slice(..source.len() - 9);
    assert!(matches!(edited(&cut, [1], &Action::Delete), Err(FormatError::Corrupt(_))));
    assert!(matches!(edited(&Bytes::from_static(b"PAR1"), [1], &Action::Delete), Err(FormatError::Corrupt(_))));
    assert!(matches!(edited(&source, [50], &Action::Delete), Err(FormatError::Corrupt(_))), "a row past the end");
    let mut broken = source.to_vec();
    broken[8..200].fill(0xee);
    assert!(matches!(edited(&broken.into(), [1], &Action::Delete), Err(FormatError::Corrupt(_))));
}

#[test]
fn a_read_back_sees_every_planted_fault() {
    let source = written(&people(900, &email), groups_of(300).build());
    let (good, receipt) = edited(&source, [301], &Action::Delete).unwrap();
    let other_rows = scrubbed(&source, [302]);
    let swapped = scrubbed(
        &written(&people(900, &|i| if i == 310 { email(311) } else { email(i) }), groups_of(300).build()),
        [301],
    );
    let key_values = Some(vec![KeyValue::new("a".to_owned(), "b".to_owned())]);
    let with_key =
        scrubbed(&written(&people(900, &email), groups_of(300).set_key_value_metadata(key_values).build()), [301]);
    for (name, planted) in [("other rows", &other_rows), ("a changed cell", &swapped), ("key values", &with_key)] {
        assert!(matches!(read_back(planted, &receipt), Err(FormatError::Mismatch(_))), "{name}");
    }
    let first = footer(&good).row_group(0).column(1).byte_range().0 as usize;
    let touched = footer(&good).row_group(1).column(1).byte_range().0 as usize;
    for at in [first + 40, touched + 60] {
        let mut flipped = good.to_vec();
        flipped[at] ^= 1;
        assert!(read_back(&Bytes::from(flipped), &receipt).is_err(), "byte {at}");
    }
    // Bloom filters, page indexes, the footer: the file may well be readable, and its readers be led astray.
    let with_filters = written(&people(900, &email), groups_of(300).set_bloom_filter_enabled(true).build());
    let (good, receipt) = edited(&with_filters, [301], &Action::Delete).unwrap();
    read_back(&good, &receipt).unwrap();
    let column = footer(&good).row_group(0).column(1).clone();
    let filter = column.bloom_filter_offset().unwrap() as usize + column.bloom_filter_length().unwrap() as usize - 1;
    let bounds = column.column_index_offset().unwrap() as usize + column.column_index_length().unwrap() as usize / 2;
    let places = column.offset_index_offset().unwrap() as usize + 3;
    for at in [filter, bounds, places, good.len() - 20] {
        let mut flipped = good.to_vec();
        flipped[at] ^= 1;
        assert!(read_back(&Bytes::from(flipped), &receipt).is_err(), "byte {at}");
    }
}

#[test]
fn files_of_other_writers_are_rewritten_in_their_manner() {
    for file in [
        "events/day=2026-11-01/part-0.parquet",
        "events/day=2026-11-04/data_0.parquet",
        // Data pages of the second version, which its footer counts as of the first.
        "events/day=2026-11-06/part-0.snappy.parquet",
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sample_data/lake").join(file);
        let source = Bytes::from(std::fs::read(path).unwrap());
        let removed: RoaringTreemap = (0..500).step_by(11).collect();
        let out = scrubbed(&source, removed.iter());
        assert_eq!(whole(&out), twin(&source, &removed), "{file}");
        let (before, after) = (footer(&source), footer(&out));
        assert_eq!(before.file_metadata().schema(), after.file_metadata().schema());
        assert_eq!(before.file_metadata().column_orders(), after.file_metadata().column_orders());
        for (old, new) in before.row_group(0).columns().iter().zip(after.row_group(0).columns()) {
            assert_eq!(old.compression(), new.compression());
            assert_eq!(old.dictionary_page_offset().is_some(), new.dictionary_page_offset().is_some());
            // A page header begins with its type.
            let page_type = |file: &Bytes, column: &parquet::file::metadata::ColumnChunkMetaData| {
                let at = column.data_page_offset() as usize;
                file.slice(at..at + 2)
            };
            assert_eq!(page_type(&source, old), page_type(&out, new), "{file} {}", old.column_path());
            let encodings =
                |column| data_encodings(column).into_iter().map(|(_, encoding)| encoding).collect::<Vec<_>>();
            assert_eq!(encodings(old), encodings(new), "{file} {}", old.column_path());
        }
    }
}

/// One leaf or nested column of random content.
fn random_column(rows: usize) -> impl Strategy<Value = ArrayRef> {
    let text = proptest::option::weighted(0.8, "[a-c]{0,6}");
    let number = proptest::option::weighted(0.8, any::<i64>());
    let strings = proptest::collection::vec(text.clone(), rows)
        .prop_map(|values| Arc::new(StringArray::from(values)) as ArrayRef);
    let dictionary = proptest::collection::vec(text.clone(), rows).prop_map(|values| {
        Arc::new(values.iter().map(|value| value.as_deref()).collect::<DictionaryArray<Int32Type>>()) as ArrayRef
    });
    let integers = proptest::collection::vec(number.clone(), rows)
        .prop_map(|values| Arc::new(Int64Array::from(values)) as ArrayRef);
    let booleans = proptest::collection::vec(proptest::option::of(any::<bool>()), rows)
        .prop_map(|values| Arc::new(BooleanArray::from(values)) as ArrayRef);
    let doubles = proptest::collection::vec(proptest::option::of(any::<f64>()), rows)
        .prop_map(|values| Arc::new(Float64Array::from(values)) as ArrayRef);
    let lists = proptest::collection::vec(proptest::option::weighted(0.8, proptest::collection::vec(text, 0..4)), rows)
        .prop_map(|rows| {
            let mut builder = ListBuilder::new(StringBuilder::new());
            for row in rows {
                row.iter().flatten().for_each(|value| builder.values().append_option(value.as_deref()));
                builder.append(row.is_some());
            }
            Arc::new(builder.finish()) as ArrayRef
        });
    let structs = proptest::collection::vec((any::<bool>(), number), rows).prop_map(|rows| {
        let inner: ArrayRef = Arc::new(rows.iter().map(|(_, number)| *number).collect::<Int64Array>());
        let fields = Fields::from(vec![Field::new("n", DataType::Int64, true)]);
        let valid: Vec<bool> = rows.iter().map(|(valid, _)| *valid).collect();
        Arc::new(StructArray::new(fields, vec![inner], Some(valid.into()))) as ArrayRef
    });
    prop_oneof![strings, dictionary, integers, booleans, doubles, lists, structs]
}

fn random_file() -> impl Strategy<Value = (RecordBatch, usize, Vec<bool>)> {
    (1usize..120).prop_flat_map(|rows| {
        let columns = proptest::collection::vec(random_column(rows), 1..5);
        let removed = prop_oneof![
            proptest::collection::vec(any::<bool>(), rows),
            proptest::collection::vec(proptest::bool::weighted(0.03), rows),
        ];
        (columns, 0..manners().len(), removed).prop_map(|(columns, manner, removed)| {
            let named = columns.into_iter().enumerate().map(|(i, array)| (format!("c{i}"), array, true));
            (RecordBatch::try_from_iter_with_nullable(named).unwrap(), manner, removed)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rewrite_of_any_file_equals_decode_and_filter((batch, manner, removed) in random_file()) {
        let properties = manners().swap_remove(manner).1;
        // Small groups and pages, so that most files have several.
        let properties = properties.into_builder().set_max_row_group_row_count(Some(25)).set_data_page_row_count_limit(6)
            .set_write_batch_size(3).set_sorting_columns(None).build();
        let source = written(&batch, properties);
        let rows: RoaringTreemap = (0u64..).zip(&removed).filter(|(_, removed)| **removed).map(|(row, _)| row).collect();
        let out = scrubbed(&source, rows.iter());
        prop_assert_eq!(whole(&out), twin(&source, &rows));
        // A second rewrite that removes nothing copies every group.
        // The deprecated `min` and `max` next to `min_value` and `max_value` are not read back, so bytes may differ.
        prop_assert_eq!(footer(&scrubbed(&out, [])), footer(&out));
    }
}
