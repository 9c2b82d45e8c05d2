//! Parquet files that other writers make and ours does not: groups without rows, pages without values, schemas spelled otherwise.

use std::io::Write;
use std::sync::Arc;

use arrow::array::*;
use bytes::Bytes;
use lakescrub::parquet_bounds;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, PageType};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, ParquetMetaDataBuilder, ParquetMetaDataWriter, RowGroupMetaData,
};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::SchemaDescriptor;

use crate::rewrite_parquet::{email, footer, groups_of, people, scrubbed, twin, whole, written};

#[test]
fn a_row_group_without_rows_goes_and_hides_no_page_index() {
    let people = people(60, &email);
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, people.schema(), Some(groups_of(60).build())).unwrap();
    writer.write(&people).unwrap();
    writer.close().unwrap();
    // As Arrow's C++ library tells of a group without rows and without dictionaries: its pages stand nowhere.
    let source = with_empty_group(&out.into());
    assert!(footer(&source).offset_index().is_none(), "the crate sees no index");
    let out = scrubbed(&source, [7]);
    assert_eq!(footer(&out).num_row_groups(), 1);
    assert!(footer(&out).offset_index().is_some() && footer(&out).column_index().is_some());
    assert_eq!(whole(&out), twin(&source, &[7].into_iter().collect()));
}

/// The file with a row group more, which has no rows and no pages.
fn with_empty_group(file: &Bytes) -> Bytes {
    let metadata = footer(file);
    let group = metadata.row_group(0);
    let empty = |column: &ColumnChunkMetaData| ColumnChunkMetaData::builder(column.column_descr_ptr()).build().unwrap();
    let columns = group.columns().iter().map(empty).collect();
    let empty = RowGroupMetaData::builder(metadata.file_metadata().schema_descr_ptr())
        .set_num_rows(0)
        .set_ordinal(1)
        .set_column_metadata(columns)
        .build()
        .unwrap();
    let length = u32::from_le_bytes(file[file.len() - 8..][..4].try_into().unwrap()) as usize;
    let mut out = file[..file.len() - 8 - length].to_vec();
    let mut metadata = metadata.into_builder();
    let mut groups = metadata.take_row_groups();
    groups.push(empty);
    // The indexes stay where they are.
    let metadata = metadata.set_row_groups(groups).set_column_index(None).set_offset_index(None).build();
    ParquetMetaDataWriter::new(&mut out, &metadata).finish().unwrap();
    out.into()
}

#[test]
fn the_schema_stays_as_its_writer_spelled_it() {
    // Times that are local: of the two sorts of types, writers give these the newer one alone.
    let times: ArrayRef = Arc::new(Time64MicrosecondArray::from_iter_values(0..50));
    let stamps: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(0..50));
    let source = written(&RecordBatch::try_from_iter([("t", times), ("at", stamps)]).unwrap(), Default::default());
    let file = source.to_vec();
    let footer_start =
        |file: &[u8]| file.len() - 8 - u32::from_le_bytes(file[file.len() - 8..][..4].try_into().unwrap()) as usize;
    // The element of a time has its converted type (field 6, TIME_MICROS or TIMESTAMP_MICROS) before its logical one (field 10).
    let (mut without, mut at) = (file[..footer_start(&file)].to_vec(), footer_start(&file));
    let end = file.len() - 8;
    let mut dropped = 0;
    while at < end {
        match &file[at..(at + 3).min(end)] {
            // Its head counts from the name (field 4), the next one from it: 10 is four after 6, and six after 4.
            [0x25, 0x10 | 0x14, 0x4c] => {
                without.push(0x6c);
                at += 3;
                dropped += 1;
            }
            bytes => {
                without.push(bytes[0]);
                at += 1;
            }
        }
    }
    assert_eq!(dropped, 2);
    without.extend(((end - footer_start(&file) - 2 * dropped) as u32).to_le_bytes());
    without.extend(b"PAR1");
    let source: Bytes = without.into();
    let spelled = |file: &Bytes| {
        let footer = &file[footer_start(file)..file.len() - 8];
        footer[parquet_bounds::schema_span(footer).unwrap()].to_vec()
    };
    let out = scrubbed(&source, [7]);
    assert_eq!(spelled(&out), spelled(&source));
    assert_eq!(whole(&out), twin(&source, &[7].into_iter().collect()));
}

/// A page of the first version of a repeated column: one group of levels of one bit each, and plain values.
fn page(levels: u32, [repetition, definition]: [u8; 2], values: &[i64]) -> CompressedPage {
    let packed = |bits: u8| if levels == 0 { vec![0; 4] } else { vec![2, 0, 0, 0, 3, bits] };
    let values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let buf = [packed(repetition), packed(definition), values].concat();
    let length = buf.len();
    let (def_level_encoding, rep_level_encoding) = (Encoding::RLE, Encoding::RLE);
    let page = Page::DataPage {
        buf: buf.into(),
        num_values: levels,
        encoding: Encoding::PLAIN,
        def_level_encoding,
        rep_level_encoding,
        statistics: None,
    };
    CompressedPage::new(page, length)
}

/// A file of one column of lists, of these pages.
fn of_pages(pages: Vec<CompressedPage>, rows: i64) -> Bytes {
    let schema = Arc::new(parse_message_type("message m { repeated int64 v; }").unwrap());
    let schema = Arc::new(SchemaDescriptor::new(schema));
    let mut out = TrackedWrite::new(Vec::new());
    out.write_all(b"PAR1").unwrap();
    let values = pages.iter().map(|page| i64::from(page.num_values())).sum();
    for page in pages {
        assert_eq!(page.page_type(), PageType::DATA_PAGE);
        SerializedPageWriter::new(&mut out).write_page(page).unwrap();
    }
    let bytes = out.bytes_written() as i64 - 4;
    let column = ColumnChunkMetaData::builder(schema.column(0))
        .set_compression(Compression::UNCOMPRESSED)
        .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
        .set_total_compressed_size(bytes)
        .set_total_uncompressed_size(bytes)
        .set_num_values(values)
        .set_data_page_offset(4)
        .build()
        .unwrap();
    let group = RowGroupMetaData::builder(Arc::clone(&schema)).set_num_rows(rows).set_column_metadata(vec![column]);
    let file = FileMetaData::new(1, rows, None, None, schema, None);
    let metadata = ParquetMetaDataBuilder::new(file).set_row_groups(vec![group.build().unwrap()]).build();
    let mut bytes = out.into_inner().unwrap();
    ParquetMetaDataWriter::new_with_tracked(TrackedWrite::new(&mut bytes), &metadata).finish().unwrap();
    bytes.into()
}

#[test]
fn a_page_without_values_is_not_the_end_of_a_column() {
    // Rows: [], [1, 2, 3] | nothing | [], [4]. The second one ends where its page does.
    let first = || page(4, [0b1100, 0b1110], &[1, 2, 3]);
    let last = || page(2, [0b00, 0b10], &[4]);
    let empty = || page(0, [0, 0], &[]);
    let whole_one = of_pages(vec![first(), last()], 4);
    for pages in [
        vec![first(), empty(), last()],
        vec![empty(), first(), last()],
        vec![first(), empty(), empty(), last(), empty()],
    ] {
        let source = of_pages(pages, 4);
        for removed in [vec![0u64], vec![1], vec![2], vec![1, 3], vec![0, 2, 3]] {
            let out = scrubbed(&source, removed.clone());
            assert_eq!(whole(&out), twin(&whole_one, &removed.into_iter().collect()));
        }
    }
}
