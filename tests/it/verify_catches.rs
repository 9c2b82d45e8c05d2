//! Planted residue of every sort must give exit 4 and name the object, and a scrub must take it out and keep every row.
//!
//! Runs the program itself over a lake in a temporary folder. Faults are planted by changing bytes of files that a usual writer wrote:
//! a stand-in of the same length becomes the listed address, in one place only.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use lakescrub::object_table::{self, ObjectRow};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use serde_json::Value;

const ANNA: &str = "anna@example.com";
/// As long as the address above, and not listed.
const STAND_IN: &str = "zoef@example.com";
const OTHERS: [&str; 7] = ["b@x.org", "c@x.org", "d@x.org", "e@x.org", "f@x.org", "g@x.org", "h@x.org"];

/// A lake, a list, keys and a job in a folder of their own.
struct Lake {
    folder: tempfile::TempDir,
}

/// What a command said.
struct Said {
    exit: i32,
    document: Value,
    stderr: String,
}

impl Lake {
    fn new(dataset: &str) -> Lake {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake { folder };
        lake.put("list.csv", format!("email,phone\n{ANNA},4155559317\n").as_bytes());
        lake.put(
            "job.toml",
            format!(
                "version = 1\n[guard]\nmax_fraction = 1.0\n[[list]]\nname = \"l\"\nuri = \"list.csv\"\n\
                 [[list.column]]\ncolumn = \"email\"\nkind = \"email\"\n\
                 [[list.column]]\ncolumn = \"phone\"\nkind = \"phone\"\n\
                 [[dataset]]\nname = \"d\"\nuri = \"lake/\"\n{dataset}\n"
            )
            .as_bytes(),
        );
        assert_eq!(lake.run(&["keygen", "keys"]).exit, 0);
        lake
    }

    fn emails() -> Lake {
        Lake::new("[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn get(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lakescrub"));
        command.args(arguments).args(["--json", "-vv"]).current_dir(self.folder.path());
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!stdout.contains(ANNA) && !stderr.contains(ANNA), "an identifier came out: {stdout}\n{stderr}");
        let document = serde_json::from_str(&stdout).unwrap_or(Value::Null);
        Said { exit: output.status.code().unwrap(), document, stderr }
    }

    /// The newest manifest's objects.
    fn rows(&self, said: &Said) -> Vec<ObjectRow> {
        let location = said.document["manifest"]["location"].as_str().expect("a manifest was written");
        object_table::decode(std::fs::read(Path::new(location).join("objects.parquet")).unwrap().into()).unwrap()
    }

    /// `verify` must find `count` in `place`, name the object and say `reason`; `scrub` must then leave nothing, and a second one must
    /// change nothing.
    fn catches(&self, object: &str, place: &str, count: u64, reason: &str) {
        let said = self.run(&["verify", "job.toml"]);
        assert_eq!(said.exit, 4, "{place}: {}\n{:#}", said.stderr, said.document);
        let residue = &said.document["verification"]["residue"];
        assert_eq!(residue[place], count, "{place}: {residue:#}");
        assert_eq!(residue["rows"], 0, "{place}");
        let rows = self.rows(&said);
        let row = rows.iter().find(|row| row.location.ends_with(object)).unwrap_or_else(|| panic!("{place}: {rows:?}"));
        assert_eq!(row.outcome, object_table::Outcome::Residue, "{place}");
        assert!(row.reason.as_ref().unwrap().contains(reason), "{place}: {:?}", row.reason);
        let plan = self.run(&["plan", "job.toml"]);
        let steps = plan.document["datasets"][0]["steps"].as_array().unwrap();
        assert!(steps.iter().any(|step| step["decision"] == "rewrite" || step["decision"] == "drop"), "{place}");
        self.cleans(place);
    }

    fn cleans(&self, place: &str) {
        let said = self.run(&["scrub", "job.toml"]);
        assert_eq!(said.exit, 0, "{place}: {}\n{:#}", said.stderr, said.document);
        let before = self.files();
        assert_eq!(self.run(&["verify", "job.toml"]).exit, 0, "{place}");
        assert_eq!(self.run(&["scrub", "job.toml"]).exit, 0, "{place}");
        assert_eq!(before, self.files(), "{place}: a second run changes nothing");
        for (path, bytes, _) in before {
            assert!(!holds(&bytes, ANNA), "{place}: {}", path.display());
        }
    }

    /// Everything below the lake, with its time.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
        let walk = walkdir::WalkDir::new(self.path("lake")).sort_by_file_name().into_iter().map(Result::unwrap);
        let files = walk.filter(|entry| entry.file_type().is_file());
        files
            .map(|entry| {
                let modified = entry.metadata().unwrap().modified().unwrap();
                (entry.path().to_owned(), std::fs::read(entry.path()).unwrap(), modified)
            })
            .collect()
    }

    fn emails_of(&self, name: &str) -> Vec<String> {
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(self.get(name))).unwrap().build().unwrap();
        let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
        let column = |batch: &RecordBatch| {
            let texts = batch.column_by_name("email").unwrap().as_string::<i32>().clone();
            texts.iter().map(|text| text.unwrap_or("").to_owned()).collect::<Vec<_>>()
        };
        batches.iter().flat_map(column).collect()
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn plain() -> WriterPropertiesBuilder {
    WriterProperties::builder()
}

fn parquet_of(column: &str, values: &[&str], properties: WriterPropertiesBuilder) -> Vec<u8> {
    let schema = Arc::new(Schema::new(vec![Field::new(column, DataType::Utf8, true)]));
    let array: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
    let batch = RecordBatch::try_new(schema.clone(), vec![array]).unwrap();
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, schema, Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    out
}

fn others_and_stand_in() -> Vec<&'static str> {
    OTHERS.into_iter().chain([STAND_IN]).collect()
}

/// Positions of the stand-in.
fn positions(file: &[u8]) -> Vec<usize> {
    (0..file.len() - STAND_IN.len()).filter(|at| file[*at..].starts_with(STAND_IN.as_bytes())).collect()
}

fn plant(file: &mut [u8], at: usize) {
    file[at..at + ANNA.len()].copy_from_slice(ANNA.as_bytes());
}

fn metadata(file: &[u8]) -> ParquetMetaData {
    ParquetMetaDataReader::new().parse_and_finish(&Bytes::from(file.to_vec())).unwrap()
}

fn footer_start(file: &[u8]) -> usize {
    let length = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
    file.len() - 8 - length
}

#[test]
fn statistics_of_footer_page_header_and_index_are_caught() {
    // A maximum of the chunk, of the page header and of the column index, wherever the writer put it: each on its own.
    let properties = || plain().set_write_page_header_statistics(true).set_dictionary_enabled(false);
    let file = parquet_of("email", &others_and_stand_in(), properties());
    let data_end = metadata(&file).row_group(0).column(0).byte_range();
    let data_end = (data_end.0 + data_end.1) as usize;
    let (in_data, elsewhere): (Vec<usize>, Vec<usize>) = positions(&file).into_iter().partition(|at| *at < data_end);
    // The page header's, then the value itself.
    assert_eq!((in_data.len() >= 2, elsewhere.len()), (true, 2), "{in_data:?} {elsewhere:?}");
    for at in in_data[..in_data.len() - 1].iter().chain(&elsewhere) {
        let lake = Lake::emails();
        let mut planted = file.clone();
        plant(&mut planted, *at);
        lake.put("lake/day=1/a.parquet", &planted);
        lake.put("lake/b.parquet", &parquet_of("email", &OTHERS, plain()));
        lake.catches("day=1/a.parquet", "statistics", 1, "1 statistic of column email");
        assert_eq!(lake.emails_of("lake/day=1/a.parquet"), others_and_stand_in());
    }
}

#[test]
fn pages_that_lose_no_row_are_not_copied_with_an_identifier_beside_their_values() {
    // The listed row is on the first page; what is planted stands with the second, which loses nothing, or in the footer.
    let pages =
        |properties: WriterPropertiesBuilder| properties.set_data_page_row_count_limit(4).set_write_batch_size(4);
    let values: Vec<&str> = [ANNA].into_iter().chain(OTHERS).chain([STAND_IN]).chain(OTHERS).collect();
    let kept: Vec<&str> = values[1..].to_vec();
    let properties = pages(plain().set_write_page_header_statistics(true).set_dictionary_enabled(false));
    let file = parquet_of("email", &values, properties);
    let data_end = metadata(&file).row_group(0).column(0).byte_range();
    let (in_data, elsewhere): (Vec<usize>, Vec<usize>) =
        positions(&file).into_iter().partition(|at| *at < (data_end.0 + data_end.1) as usize);
    assert_eq!((in_data.len() >= 2, elsewhere.len()), (true, 2), "{in_data:?} {elsewhere:?}");
    // The last one in the data is the value.
    for at in in_data[..in_data.len() - 1].iter().chain(&elsewhere) {
        let lake = Lake::emails();
        let mut planted = file.clone();
        plant(&mut planted, *at);
        lake.put("lake/a.parquet", &planted);
        lake.cleans("beside a page that loses no row");
        assert_eq!(lake.emails_of("lake/a.parquet"), kept);
    }
    // An entry that no row uses, and one whose rows go.
    let mut file = parquet_of("email", &values, pages(plain().set_statistics_enabled(EnabledStatistics::None)));
    let (start, _) = metadata(&file).row_group(0).column(0).byte_range();
    let entry = positions(&file);
    assert!(entry.len() == 1 && entry[0] > start as usize, "the dictionary alone has it: {entry:?}");
    plant(&mut file, entry[0]);
    let lake = Lake::emails();
    lake.put("lake/a.parquet", &file);
    lake.cleans("two entries of one value");
    let without: Vec<&str> = kept.into_iter().filter(|value| *value != STAND_IN).collect();
    assert_eq!(lake.emails_of("lake/a.parquet"), without);
}

#[test]
fn a_dictionary_entry_that_no_row_uses_is_caught() {
    let values = [OTHERS[0]; 7].into_iter().chain([STAND_IN]).collect::<Vec<_>>();
    for codec in [parquet::basic::Compression::UNCOMPRESSED, parquet::basic::Compression::ZSTD(Default::default())] {
        let properties = plain().set_statistics_enabled(EnabledStatistics::None).set_compression(codec);
        let values: Vec<&str> = values.iter().map(|value| if *value == STAND_IN { ANNA } else { value }).collect();
        let mut file = parquet_of("email", &values, properties);
        let lake = Lake::emails();
        // The last row takes the first entry: of eight one-bit indexes only the last one is set.
        let (start, length) = metadata(&file).row_group(0).column(0).byte_range();
        let last = (start + length) as usize - 1;
        if codec == parquet::basic::Compression::UNCOMPRESSED {
            assert_eq!(file[last], 0x80);
            file[last] = 0;
        } else {
            let at = file[start as usize..last + 1].iter().rposition(|byte| *byte == 0x80).unwrap() + start as usize;
            file[at] = 0;
        }
        lake.put("lake/a.parquet", &file);
        lake.catches("a.parquet", "dictionaries", 1, "1 dictionary entry of column email");
        assert_eq!(lake.emails_of("lake/a.parquet"), [OTHERS[0]; 8]);
    }
}

#[test]
fn metadata_entries_are_caught_and_dropped_and_others_stay() {
    let entries = |entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), (*value).to_owned()));
        plain().set_key_value_metadata(Some(entries.collect()))
    };
    let blob = format!("{{\"index\":[\"{ANNA}\"]}}");
    for planted in [("pandas", blob.as_str()), (ANNA, "x"), ("query", "to=anna%40example.com&x=1")] {
        let lake = Lake::emails();
        let keys = entries(&[("kept", "yes"), planted]);
        lake.put("lake/a.parquet", &parquet_of("email", &OTHERS, keys));
        lake.catches("a.parquet", "metadata", 1, "1 metadata entry");
        let file = metadata(&lake.get("lake/a.parquet"));
        let kept: Vec<&str> =
            file.file_metadata().key_value_metadata().unwrap().iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(kept, ["kept", "ARROW:schema"]);
    }
    // In the metadata of a field, within the Arrow schema.
    let lake = Lake::emails();
    let field = Field::new("email", DataType::Utf8, true).with_metadata([("owner".to_owned(), ANNA.to_owned())].into());
    let schema = Arc::new(Schema::new(vec![field]));
    let mut file = Vec::new();
    ArrowWriter::try_new(&mut file, schema, None).unwrap().close().unwrap();
    lake.put("lake/a.parquet", &file);
    lake.catches("a.parquet", "metadata", 1, "1 metadata entry");
}

#[test]
fn bytes_that_belong_to_no_page_are_caught() {
    let file = parquet_of("email", &OTHERS, plain());
    let old = parquet_of(
        "email",
        &[ANNA; 40],
        plain().set_compression(parquet::basic::Compression::ZSTD(Default::default())),
    );
    let (start, length) = metadata(&old).row_group(0).column(0).byte_range();
    let pages = &old[start as usize..(start + length) as usize];
    for gap in [
        ANNA.as_bytes(),
        format!("\0\0\0{ANNA}\0").as_bytes(),
        &[&[0x10, 0, 0, 0], ANNA.as_bytes(), b"0\0\0\0"].concat(),
    ] {
        let lake = Lake::emails();
        let at = footer_start(&file);
        lake.put("lake/a.parquet", &[&file[..at], gap, &file[at..]].concat());
        lake.catches("a.parquet", "gaps", 1, "1 gap between pages");
    }
    // Pages of an older life of the file, compressed as this one's are.
    let zstd = || plain().set_compression(parquet::basic::Compression::ZSTD(Default::default()));
    let file = parquet_of("email", &OTHERS, zstd());
    let (lake, at) = (Lake::emails(), footer_start(&file));
    assert!(!holds(pages, ANNA) || pages.len() < old.len());
    lake.put("lake/a.parquet", &[&file[..at], pages, &file[at..]].concat());
    lake.catches("a.parquet", "gaps", 1, "1 gap between pages");
    // Padding is no finding.
    let lake = Lake::emails();
    lake.put("lake/a.parquet", &[&file[..at], &[0; 64], &file[at..]].concat());
    assert_eq!(lake.run(&["verify", "job.toml"]).exit, 0);
}

/// The file with other bytes in place of `old`, which its footer must hold once.
fn with_footer(file: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let start = footer_start(file);
    let footer = &file[start..file.len() - 8];
    let found: Vec<usize> = (0..footer.len()).filter(|at| footer[*at..].starts_with(old)).collect();
    let [at] = found[..] else { panic!("{old:02x?} is at {found:?} of {footer:02x?}") };
    let footer = [&footer[..at], new, &footer[at + old.len()..]].concat();
    [&file[..start], &footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat()
}

/// Field 8 of a chunk's metadata in Thrift's compact form, after field 7: a list of one entry (`parquet.thrift`, ColumnMetaData).
fn key_value_of_a_chunk() -> Vec<u8> {
    let text = |text: &str| [&[0x18, text.len() as u8], text.as_bytes()].concat();
    [&[0x19, 0x1c], &text("owner")[..], &text(ANNA), &[0x00]].concat()
}

#[test]
fn metadata_of_a_column_chunk_is_caught() {
    let file = parquet_of("email", &OTHERS, plain().set_dictionary_enabled(false));
    assert_eq!(metadata(&file).row_group(0).column(0).data_page_offset(), 4);
    // Field 9, the offset 4 of the first page, two fields after field 7; then one after field 8. Field 12 follows.
    let file = with_footer(&file, &[0x26, 0x08, 0x3c], &[&key_value_of_a_chunk()[..], &[0x16, 0x08, 0x3c]].concat());
    assert_eq!(metadata(&file).row_group(0).column(0).data_page_offset(), 4);
    let lake = Lake::emails();
    lake.put("lake/a.parquet", &file);
    lake.catches("a.parquet", "metadata", 1, "1 metadata entry");
}

#[test]
fn the_copy_of_a_chunks_metadata_behind_it_is_caught() {
    let bare = plain().set_dictionary_enabled(false).set_statistics_enabled(EnabledStatistics::Chunk);
    let file = parquet_of("email", &OTHERS, bare.set_offset_index_disabled(true));
    let column = metadata(&file).row_group(0).column(0).clone();
    let end = column.byte_range().0 + column.byte_range().1;
    assert_eq!((column.file_offset(), end < 1 << 13), (0, true));
    // Fields 1, 2, 3, 4, 5, 6 and 7 of a chunk of plain pages, as old writers of the C++ library left them behind it, and field 8.
    let path: &[u8] = b"\x05email";
    let head: &[u8] = &[0x15, 0x0c, 0x19, 0x15, 0x00, 0x19, 0x18];
    let sizes: &[u8] = &[0x15, 0x00, 0x16, 0x02, 0x16, 0x02, 0x16, 0x02];
    let copy = [head, path, sizes, &key_value_of_a_chunk(), &[0x16, 0x08, 0x00]].concat();
    // Where the copy is stands in the chunk's entry: its `file_offset`, zigzag as two bytes of a varint.
    let offset = [0x80 | ((end << 1) & 0x7f) as u8, (end >> 6) as u8];
    let file = with_footer(&file, &[0x26, 0x00, 0x1c], &[&[0x26], &offset[..], &[0x1c]].concat());
    assert_eq!(metadata(&file).row_group(0).column(0).file_offset(), end as i64);
    let (lake, at) = (Lake::emails(), footer_start(&file));
    assert_eq!(at as u64, end);
    lake.put("lake/a.parquet", &[&file[..end as usize], &copy, &file[at..]].concat());
    lake.catches("a.parquet", "metadata", 1, "1 metadata entry");
}

#[test]
fn a_summary_file_with_an_identifier_goes() {
    let lake = Lake::emails();
    let mut file = parquet_of("email", &others_and_stand_in(), plain().set_dictionary_enabled(false));
    lake.put("lake/a.parquet", &file);
    let at = footer_start(&file);
    let in_footer = positions(&file).into_iter().find(|position| *position > at).unwrap();
    plant(&mut file, in_footer);
    lake.put("lake/_metadata", &[b"PAR1", &file[at..]].concat());
    lake.put("lake/_common_metadata", &lake.get("lake/a.parquet"));
    lake.catches("_metadata", "statistics", 1, "1 statistic of column email");
    assert!(!lake.path("lake/_metadata").exists() && lake.path("lake/_common_metadata").exists());
    // One that holds nobody stays as long as the files that it tells of do, and goes with the first that changes.
    let others = parquet_of("email", &OTHERS, plain());
    let at = footer_start(&others);
    let lake = Lake::emails();
    for folder in ["lake/x", "lake/y"] {
        lake.put(&format!("{folder}/a.parquet"), &others);
        lake.put(&format!("{folder}/_metadata"), &[b"PAR1", &others[at..]].concat());
    }
    assert_eq!(lake.run(&["scrub", "job.toml"]).exit, 0);
    assert!(lake.path("lake/x/_metadata").exists() && lake.path("lake/y/_metadata").exists());
    lake.put("lake/x/b.parquet", &parquet_of("email", &[ANNA, "b@x.org"], plain()));
    assert_eq!(lake.run(&["scrub", "job.toml"]).exit, 0);
    assert!(!lake.path("lake/x/_metadata").exists() && lake.path("lake/y/_metadata").exists());
}

#[test]
fn a_row_group_without_a_finding_is_copied_as_bytes() {
    let lake = Lake::emails();
    let values: Vec<&str> = OTHERS.into_iter().chain([STAND_IN]).cycle().take(24).collect();
    let properties = plain().set_max_row_group_row_count(Some(8)).set_dictionary_enabled(false);
    let mut file = parquet_of("email", &values, properties);
    let old = metadata(&file);
    // The maximum of the second row group.
    let in_footer: Vec<usize> = positions(&file).into_iter().filter(|at| *at > footer_start(&file)).collect();
    assert_eq!(in_footer.len(), 3);
    plant(&mut file, in_footer[1]);
    lake.put("lake/a.parquet", &file);
    lake.catches("a.parquet", "statistics", 1, "1 statistic of column email");
    let (new, now) = (lake.get("lake/a.parquet"), metadata(&lake.get("lake/a.parquet")));
    let bytes = |file: &[u8], metadata: &ParquetMetaData, group: usize| {
        let (start, length) = metadata.row_group(group).column(0).byte_range();
        file[start as usize..(start + length) as usize].to_vec()
    };
    for group in [0, 2] {
        assert_eq!(bytes(&file, &old, group), bytes(&new, &now, group));
    }
}

#[test]
fn sizes_that_a_page_merely_claims_are_an_error_and_no_allocation() {
    // The header's claim of the page's plain size, as a varint of five bytes where there was one of fewer.
    let file = parquet_of("email", &OTHERS, plain().set_compression(parquet::basic::Compression::SNAPPY));
    let start = metadata(&file).row_group(0).column(0).byte_range().0 as usize;
    let claim = |bytes: &[u8]| {
        let mut planted = file.clone();
        planted[start..start + bytes.len()].copy_from_slice(bytes);
        planted
    };
    // Field 1: the type, dictionary; field 2: 2^31 - 1 bytes; the rest of the header reads as it may.
    let lake = Lake::emails();
    lake.put("lake/a.parquet", &claim(&[0x15, 4, 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0x15, 2]));
    let said = lake.run(&["verify", "job.toml"]);
    assert_eq!(said.exit, 3, "{}", said.stderr);
    let reason = lake.rows(&said)[0].reason.clone().unwrap();
    assert!(reason.contains("claims a size") || reason.contains("cannot be decoded"), "{reason}");
}

#[test]
fn a_name_that_may_be_another_persons_is_hidden_and_never_a_reason_to_drop() {
    let names = [
        "email=mary_anna%40example.com/a.parquet",
        "mary-anna@example.com.parquet",
        "mary+anna@example.com.parquet",
        "anna@example.com.au.parquet",
        "export-anna@example.com.parquet",
        "calls/4155559317/a.parquet",
        "part-00000-4155559317.parquet",
        "1754155559317.parquet",
    ];
    let lake = Lake::new("[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"");
    for name in names {
        lake.put(&format!("lake/{name}"), &parquet_of("email", &OTHERS, plain()));
    }
    let said = lake.run(&["scrub", "job.toml"]);
    assert_eq!(said.exit, 0, "{} {:#}", said.stderr, said.document);
    for name in names {
        assert!(lake.path(&format!("lake/{name}")).exists(), "{name}");
    }
}

#[test]
fn an_identifier_in_a_name_takes_the_object_and_its_name_is_shown_by_tag() {
    for (name, rule) in [
        ("email=anna%40example.com/a.parquet", "column = \"email\"\nkind = \"email\""),
        ("email=Anna@Example.com/a.parquet", "column = \"email\"\nkind = \"email\""),
        ("by/anna@example.com/a.parquet", "column = \"email\"\nkind = \"email\""),
        ("by/anna%40example.com.parquet", "column = \"email\"\nkind = \"email\""),
    ] {
        let lake = Lake::new(&format!("missing_column = \"skip\"\n[[dataset.match]]\n{rule}"));
        lake.put(&format!("lake/{name}"), &parquet_of("email", &OTHERS, plain()));
        lake.put("lake/b.parquet", &parquet_of("email", &OTHERS, plain()));
        let said = lake.run(&["verify", "job.toml"]);
        assert_eq!(said.exit, 4, "{name}: {}", said.stderr);
        assert_eq!(said.document["verification"]["residue"]["paths"], 1, "{name}");
        let shown: Vec<String> = lake.rows(&said).into_iter().map(|row| row.location).collect();
        let told = format!("{shown:?} {:#} {}", said.document, said.stderr).to_lowercase();
        for hidden in ["anna", "4155559317"] {
            assert!(!told.contains(hidden), "{name}: {told}");
        }
        let said = lake.run(&["scrub", "job.toml"]);
        assert_eq!(said.exit, 0, "{name}: {} {:#}", said.stderr, said.document);
        let dropped: Vec<ObjectRow> =
            lake.rows(&said).into_iter().filter(|row| row.outcome == object_table::Outcome::Dropped).collect();
        assert_eq!(dropped.len(), 1, "{name}");
        assert!(shown.contains(&dropped[0].location), "{name}: the same name by tag in both runs");
        assert_eq!((dropped[0].rows_removed, dropped[0].rows_after), (Some(7), Some(0)), "{name}");
        assert!(!lake.path(&format!("lake/{name}")).exists() && lake.path("lake/b.parquet").exists(), "{name}");
        let folder = name.split('/').next().unwrap();
        assert_eq!(lake.path(&format!("lake/{folder}")).exists(), !folder.contains('='), "{name}");
        let told = format!("{:#} {}", said.document, said.stderr).to_lowercase();
        assert!(!told.contains("anna") && !told.contains("4155559317"), "{name}: {told}");
        assert_eq!(lake.run(&["verify", "job.toml"]).exit, 0, "{name}");
    }
}

#[test]
fn a_partition_column_that_no_file_holds_is_a_column() {
    let rules = "[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n[[dataset.match]]\ncolumn = \"phone\"\nkind = \"phone\"";
    let parquet = |values: &[&str]| parquet_of("phone", values, plain());
    for (name, bytes) in [
        ("a.parquet", parquet(&["1", "4155559317", "3"])),
        ("a.csv", b"phone,n\n1,1\n4155559317,2\n3,3\n".to_vec()),
        ("a.ndjson", b"{\"phone\":1}\n{\"phone\":4155559317}\n{\"phone\":3}\n".to_vec()),
    ] {
        let lake = Lake::new(rules);
        lake.put(&format!("lake/email=x%40y.z/{name}"), &bytes);
        lake.put(&format!("lake/Email=Anna%40example.com/{name}"), &bytes);
        let plan = lake.run(&["plan", "job.toml"]);
        assert_eq!((plan.exit, &plan.document["datasets"][0]["rows"]["matched"]), (0, &Value::from(4)), "{name}");
        let said = lake.run(&["verify", "job.toml"]);
        assert_eq!((said.exit, &said.document["verification"]["residue"]["rows"]), (4, &Value::from(2)), "{name}");
        let said = lake.run(&["scrub", "job.toml"]);
        assert_eq!(said.exit, 0, "{name}: {} {:#}", said.stderr, said.document);
        let left: Vec<String> = lake
            .files()
            .iter()
            .map(|(path, ..)| path.strip_prefix(lake.path("lake")).unwrap().display().to_string())
            .collect();
        assert_eq!(left, [format!("email=x%40y.z/{name}")]);
        assert_eq!(said.document["datasets"][0]["rows"]["after"], 2, "{name}");
    }
    // A rule on nothing but the name.
    let lake = Lake::emails();
    lake.put("lake/email=x%40y.z/a.parquet", &parquet(&["1"]));
    lake.put("lake/email=anna%40example.com/a.parquet", &parquet(&["1"]));
    lake.put("lake/a.csv", b"id\n1\n");
    assert_eq!(lake.run(&["plan", "job.toml"]).exit, 3, "an object with the column neither inside nor in its name");
}

#[test]
fn a_file_that_cannot_be_read_is_told_without_the_identifier_in_its_name() {
    let lake = Lake::emails();
    lake.put("lake/anna@example.com.parquet", b"PAR1 no such thing PAR1");
    lake.put("lake/email=anna%40example.com/a.csv.gz", b"no gzip");
    for command in ["plan", "verify", "scrub"] {
        let said = lake.run(&[command, "job.toml"]);
        assert_ne!(said.exit, 0, "{command}");
        assert!(!said.document.to_string().contains("anna%40"), "{command}");
        assert!(!said.stderr.contains("anna%40"), "{command}: {}", said.stderr);
    }
}

#[test]
fn a_name_cannot_be_redacted_and_the_guard_counts_its_rows() {
    let lake = Lake::new(
        "action = \"redact\"\n[dataset.redact]\nemail = \"null\"\n[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"",
    );
    lake.put("lake/anna@example.com.parquet", &parquet_of("email", &OTHERS, plain()));
    let said = lake.run(&["plan", "job.toml"]);
    assert_eq!(said.exit, 3, "{}", said.stderr);
    assert!(said.document["datasets"][0]["steps"][0]["reason"].as_str().unwrap().contains("redact"));
    assert_eq!(lake.run(&["scrub", "job.toml"]).exit, 4);
    assert!(lake.path("lake/anna@example.com.parquet").exists());
    let lake = Lake::emails();
    lake.put("lake/anna@example.com.parquet", &parquet_of("email", &OTHERS, plain()));
    assert_eq!(lake.run(&["scrub", "job.toml", "--set", "guard.max_fraction=0.5"]).exit, 10);
    assert!(lake.path("lake/anna@example.com.parquet").exists());
}

#[test]
fn a_longer_value_whose_head_reads_like_an_identifier_is_no_finding() {
    // The writer cuts bounds at sixteen bytes, and what is left of a longer address is a listed one.
    let longer = format!("{ANNA}.invalid");
    let properties =
        || plain().set_statistics_truncate_length(Some(ANNA.len())).set_column_index_truncate_length(Some(ANNA.len()));
    let lake = Lake::emails();
    lake.put("lake/a.parquet", &parquet_of("email", &[&longer, "z@x.org"], properties()));
    let said = lake.run(&["verify", "job.toml"]);
    assert_eq!(said.exit, 0, "{} {:#}", said.stderr, said.document["verification"]);
}

#[test]
fn what_is_not_in_scope_is_counted_and_named() {
    let lake = Lake::emails();
    lake.put("lake/a.csv", b"email\nb@x.org\n");
    lake.put("lake/a.csv.bak", b"email\nanna@example.com\n");
    lake.put("lake/_temporary/0/anna@example.com.csv", b"email\nanna@example.com\n");
    let said = lake.run(&["verify", "job.toml"]);
    assert_eq!(said.document["datasets"][0]["objects"]["not_in_scope"], 2);
    let limits: Vec<&str> = said.document["limits"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let told = limits.iter().find(|limit| limit.contains("not in scope")).unwrap();
    assert!(told.contains("2 objects") && told.contains("a.csv.bak") && !told.contains("anna"), "{told}");
}

/// A lake of one object in each format, with an address in a column that no rule names.
fn with_strays(search: &str) -> Lake {
    let lake = Lake::new(&format!("{search}\n[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\""));
    let notes =
        ["to anna@example.com, please", "call +1 (415) 555-9317", "https://x.y/?e=anna%40example.com&b=1", "42"];
    let schema = Arc::new(Schema::new(vec![
        Field::new("email", DataType::Utf8, true),
        Field::new("note", DataType::Utf8, true),
    ]));
    let columns: Vec<ArrayRef> =
        vec![Arc::new(StringArray::from(OTHERS[..4].to_vec())), Arc::new(StringArray::from(notes.to_vec()))];
    let mut parquet = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut parquet, schema.clone(), None).unwrap();
    writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
    writer.close().unwrap();
    lake.put("lake/a.parquet", &parquet);
    lake.put("lake/b.csv", b"email,note,n\nb@x.org,\"a \"\"q\"\", anna@example.com\", 1 \nc@x.org, plain ,2\n");
    lake.put(
        "lake/c.ndjson",
        b"{\"email\":\"b@x.org\",\"note\":{\"text\":[\"x\",\"mail anna@example.com\"]}, \"n\" : 4155559317}\n{\"email\":null}\n",
    );
    lake
}

#[test]
fn undeclared_columns_are_searched_when_the_job_or_the_command_says_so() {
    for (search, arguments, exit, cells) in [
        ("", &[][..], 0, Value::from("not checked")),
        ("search = \"report\"", &[], 0, Value::from(5)),
        ("search = \"residue\"", &[], 4, Value::from(5)),
        ("", &["--search"], 4, Value::from(5)),
    ] {
        let lake = with_strays(search);
        let said = lake.run(&[&["verify", "job.toml"], arguments].concat());
        assert_eq!(said.exit, exit, "{search}: {}", said.stderr);
        assert_eq!(said.document["verification"]["residue"]["undeclared"], cells, "{search}");
        let by_column = &said.document["datasets"][0]["undeclared"];
        let limits = said.document["limits"].to_string();
        if cells == 5 {
            assert_eq!(
                (&by_column["note"], &by_column["note.text"]),
                (&Value::from(4), &Value::from(1)),
                "{by_column}"
            );
        } else {
            assert_eq!(by_column, "not checked");
        }
        assert_eq!(
            limits.contains("columns that no [[dataset.match]] names were not searched"),
            cells != 5,
            "{limits}"
        );
        let residue = lake.rows(&said).iter().filter(|row| row.outcome == object_table::Outcome::Residue).count();
        assert_eq!(residue, if exit == 4 { 3 } else { 0 }, "{search}");
    }
}

#[test]
fn strays_are_replaced_in_their_cells_and_nothing_else_changes() {
    let lake = with_strays("search = \"residue\"\nstray = \"redact\"");
    let said = lake.run(&["scrub", "job.toml"]);
    assert_eq!(said.exit, 0, "{} {:#}", said.stderr, said.document);
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(lake.get("lake/a.parquet"))).unwrap();
    let batch = reader.build().unwrap().next().unwrap().unwrap();
    let notes: Vec<&str> = batch.column(1).as_string::<i32>().iter().flatten().collect();
    let wanted = ["to [removed], please", "call [removed]", "https://x.y/?e=[removed]&b=1", "42"];
    assert_eq!(notes, wanted);
    assert_eq!(batch.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), OTHERS[..4]);
    let text = |name: &str| String::from_utf8(lake.get(name)).unwrap();
    assert_eq!(text("lake/b.csv"), "email,note,n\nb@x.org,\"a \"\"q\"\", [removed]\", 1 \nc@x.org, plain ,2\n");
    assert_eq!(
        text("lake/c.ndjson"),
        "{\"email\":\"b@x.org\",\"note\":{\"text\":[\"x\",\"mail [removed]\"]}, \"n\" : 4155559317}\n{\"email\":null}\n"
    );
    let dataset = &said.document["datasets"][0];
    assert_eq!(dataset["strays_redacted"], serde_json::json!({ "note": 4, "note.text": 1 }), "{dataset:#}");
    assert_eq!((&dataset["rows"]["matched"], &dataset["rows"]["redacted"]), (&Value::from(0), &Value::from(0)));
    let cells: Vec<_> = lake.rows(&said).iter().map(|row| row.strays_redacted).collect();
    assert_eq!(cells, [Some(3), Some(1), Some(1)]);
    assert_eq!(lake.run(&["manifest", "check", ".lakescrub"]).exit, 0);
    lake.cleans("strays");
}

/// Rows that keep all but a word are changed rows: a guard that does not count them lets a wrong list through the whole lake.
#[test]
fn rows_with_a_stray_count_for_the_guard_and_in_the_plan() {
    let lake = with_strays("search = \"residue\"\nstray = \"redact\"");
    // A row that goes counts once, whatever else it holds.
    lake.put("lake/d.csv", format!("email,note\n{ANNA},{ANNA}\nb@x.org,{ANNA} {ANNA}\n").as_bytes());
    let before = lake.get("lake/b.csv");
    for (guard, says) in [
        (["guard.max_rows=6", "guard.max_fraction=1.0"], "1 rows match and 6 more hold a stray identifier, more than"),
        (
            ["guard.max_rows=7", "guard.max_fraction=0.69"],
            "1 of 10 rows match and 6 more hold a stray identifier, a larger share",
        ),
    ] {
        let said = lake.run(&["scrub", "job.toml", "--set", guard[0], "--set", guard[1]]);
        assert_eq!(said.exit, 10, "{:#}", said.document);
        assert!(said.stderr.contains(says), "{}", said.stderr);
        assert_eq!(lake.get("lake/b.csv"), before);
    }
    let allowed = ["--set", "guard.max_rows=7", "--set", "guard.max_fraction=0.7"];
    let plan = lake.run(&[&["plan", "job.toml"], &allowed[..]].concat());
    assert_eq!(plan.exit, 0, "{}", plan.stderr);
    let dataset = &plan.document["datasets"][0];
    assert_eq!(dataset["rows"], serde_json::json!({ "before": 10, "matched": 1, "strayed": 6 }), "{dataset:#}");
    assert_eq!(dataset["strays"], serde_json::json!({ "note": 6, "note.text": 1 }), "{dataset:#}");
    let said = lake.run(&[&["scrub", "job.toml"], &allowed[..]].concat());
    assert_eq!(said.exit, 0, "{}", said.stderr);
    // What goes with its row is removed, not redacted.
    assert_eq!(said.document["datasets"][0]["strays_redacted"], serde_json::json!({ "note": 5, "note.text": 1 }));
}

#[test]
fn a_bloom_filter_that_still_knows_a_listed_value_is_caught() {
    let properties =
        |bytes: u64| plain().set_bloom_filter_enabled(true).set_bloom_filter_fpp(0.01).set_bloom_filter_max_ndv(bytes);
    let filter = |file: &[u8]| {
        let column = metadata(file).row_group(0).column(0).clone();
        let start = column.bloom_filter_offset().unwrap() as usize;
        start..start + column.bloom_filter_length().unwrap() as usize
    };
    let mut file = parquet_of("email", &OTHERS, properties(100));
    let with_anna = parquet_of("email", &[&OTHERS[..], &[ANNA]].concat(), properties(100));
    let (to, from) = (filter(&file), filter(&with_anna));
    assert_ne!(file[to.clone()], with_anna[from.clone()]);
    file[to.clone()].copy_from_slice(&with_anna[from]);
    let lake = Lake::emails();
    lake.put("lake/a.parquet", &file);
    lake.catches("a.parquet", "filters", 1, "1 bloom filter of column email");
    assert_eq!(lake.emails_of("lake/a.parquet"), OTHERS);
    // Bits of people who are not listed, and a filter so full that it knows everybody, are none.
    let with_another = parquet_of("email", &[&OTHERS[..], &["someone@else.org"]].concat(), properties(100));
    let from = filter(&with_another);
    file[to].copy_from_slice(&with_another[from]);
    let many: Vec<String> = (0..500).map(|i| format!("person{i}@x.org")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for file in [file, parquet_of("email", &many, properties(1))] {
        let lake = Lake::emails();
        lake.put("lake/a.parquet", &file);
        let said = lake.run(&["verify", "job.toml"]);
        assert_eq!(
            (said.exit, &said.document["verification"]["residue"]["filters"]),
            (0, &Value::from(0)),
            "{}",
            said.stderr
        );
    }
}

#[test]
fn canaries_go_the_whole_way_and_leave_nothing() {
    let composite = "[[dataset.match]]\nall = [{ column = \"p.first\", kind = \"email\", list_column = \"email\" }, \
                     { column = \"p.tel\", kind = \"phone\", list_column = \"phone\" }]";
    let single = "[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"";
    let hashed = "[[dataset.match]]\ncolumn = \"h\"\nkind = \"phone\"\nhashed = \"sha256-hex\"";
    let redact = "action = \"redact\"\nredact = { email = \"tag\", name = { constant = \"x\" } }\n";
    for (dataset, planted) in [
        // In each of Parquet, CSV and NDJSON.
        (single.to_owned(), 6),
        (format!("{single}\n{hashed}"), 12),
        // CSV has no structs.
        (format!("{single}\n{composite}"), 8),
        (format!("format = \"parquet\"\nwhen_empty = \"drop\"\n{composite}"), 2),
        (format!("{redact}{single}"), 6),
        (
            format!(
                "format = \"csv\"\ncsv = {{ header = false, delimiter = \"-\" }}\n{}",
                single.replace("\"email\"\nk", "\"3\"\nk")
            ),
            2,
        ),
        (format!("format = \"tsv\"\n{single}"), 2),
    ] {
        let lake = Lake::new(&dataset);
        for command in ["verify", "scrub"] {
            let said = lake.run(&[command, "job.toml", "--set", "canary.count=2"]);
            // The dataset itself has no object.
            assert_eq!(said.exit, 3, "{dataset}: {}", said.stderr);
            let canaries = &said.document["verification"]["canaries"];
            let wanted = serde_json::json!({ "planted": planted, "found": planted, "removed": planted });
            assert_eq!(*canaries, wanted, "{dataset}");
            let state = walkdir::WalkDir::new(lake.path(".lakescrub")).into_iter().map(Result::unwrap);
            let left: Vec<_> = state
                .filter(|entry| entry.path().to_string_lossy().contains("canar") && entry.file_type().is_file())
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let said = lake.run(&["scrub", "job.toml"]);
        assert_eq!(said.document["verification"]["canaries"]["planted"], "not checked");
    }
    let lake = Lake::emails();
    let said = lake.run(&["scrub", "job.toml", "--set", "canary.count=1", "--set", "state.uri=lake/_state/"]);
    assert!(said.exit == 2 && said.stderr.contains("within dataset d"), "{}", said.stderr);
    assert_eq!(lake.run(&["scrub", "job.toml", "--set", "canary.count=1001"]).exit, 2);
}

#[test]
fn the_cut_bound_of_somebody_who_is_gone_is_caught() {
    // The writer cuts bounds at ten bytes: what is left of the stand-in's in the footer becomes the head of the listed address, or
    // its head with the last character raised, as a maximum has it.
    let properties = || {
        plain()
            .set_dictionary_enabled(false)
            .set_statistics_truncate_length(Some(10))
            .set_column_index_truncate_length(Some(10))
            .set_statistics_enabled(EnabledStatistics::Chunk)
    };
    let min = "aaef@example.com";
    let file = parquet_of("email", &[min, "b@x.org", STAND_IN], properties());
    let place = |text: &str| {
        let at = footer_start(&file);
        at + (0..file.len() - at).find(|i| file[at + i..].starts_with(text.as_bytes())).unwrap()
    };
    for (stored, planted) in [(&min[..10], "anna@examp"), ("zoef@examq", "anna@examq"), (&min[..10], "Anna@examp")] {
        let mut file = file.clone();
        let at = place(stored);
        file[at..at + 10].copy_from_slice(planted.as_bytes());
        let lake = Lake::emails();
        lake.put("lake/a.parquet", &file);
        lake.catches("a.parquet", "statistics", 1, "1 statistic of column email");
        assert_eq!(lake.emails_of("lake/a.parquet"), [min, "b@x.org", STAND_IN]);
    }
    // The head of a value that is there, and one of nobody who is listed.
    let longer = format!("{}.invalid", &ANNA[..12]);
    let mut other = file.clone();
    let at = place(&min[..10]);
    other[at..at + 10].copy_from_slice(b"annb@examp");
    for file in [parquet_of("email", &[&longer, "b@x.org"], properties()), other] {
        let lake = Lake::emails();
        lake.put("lake/a.parquet", &file);
        let said = lake.run(&["verify", "job.toml"]);
        assert_eq!(said.exit, 0, "{} {:#}", said.stderr, said.document["verification"]);
    }
}
