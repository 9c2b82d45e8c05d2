//! The independent verifier over small lakes in memory: what it finds, what it reports, and what it must not be fooled by.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Schema};
use lakescrub::error::{Error, Exit};
use lakescrub::job::Job;
use lakescrub::meter::Meter;
use lakescrub::verify::{Verified, VerifyOutcome, verify};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{ParquetMetaDataReader, ParquetMetaDataWriter, RowGroupMetaData};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::statistics::Statistics;
use sha2::{Digest, Sha256};

use crate::memory_store::MemoryStore;

fn run(job: &str, store: &Arc<MemoryStore>) -> Result<Verified, Error> {
    let job = Job::parse(job, Path::new("/"), &[]).map_err(|faults| format!("{faults:?}")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let now = || jiff::Timestamp::UNIX_EPOCH;
    runtime.block_on(verify(&job, &store.stores(), &now, &Meter::default()))
}

/// The outcomes of the first dataset, by file name: rows, matching rows, and what came of it.
fn outcomes(verified: &Verified) -> BTreeMap<String, (u64, u64, VerifyOutcome)> {
    let outcome = |object: &lakescrub::verify::VerifiedObject| {
        let name = object.object.location.file_name().to_owned();
        (name, (object.rows, object.rows_matched, object.outcome.clone()))
    };
    verified.datasets[0].objects.iter().map(outcome).collect()
}

/// Rows, matching rows and values that are not comparable of one object that must be checked to its end.
fn check(job: &str, files: Vec<(&str, Vec<u8>)>) -> (u64, u64, u64) {
    let verified = run(job, &MemoryStore::new(files)).unwrap();
    let [object] = verified.datasets[0].objects.as_slice() else { panic!("one object") };
    assert_eq!(object.outcome, VerifyOutcome::Checked);
    (object.rows, object.rows_matched, verified.datasets[0].not_comparable.values().sum())
}

fn failure(job: &str, files: Vec<(&str, Vec<u8>)>) -> (Exit, String) {
    let verified = run(job, &MemoryStore::new(files)).unwrap();
    match &verified.datasets[0].objects[0].outcome {
        VerifyOutcome::Failed { exit, reason } => (*exit, reason.clone()),
        other => panic!("{other:?}"),
    }
}

/// A job of one list `/list.csv` with columns `list`, and one dataset `/lake/` with the match rules `rules`.
fn job(list: &str, rules: &str) -> String {
    let list: String =
        list.split(';').map(|column| format!("[[list.column]]\n{}\n", column.replace(',', "\n"))).collect();
    let rules: String = rules.split(';').map(|rule| format!("[[dataset.match]]\n{rule}\n")).collect();
    format!(
        "version = 1\n[[list]]\nname = \"l\"\nuri = \"/list.csv\"\n{list}\n[[dataset]]\nname = \"d\"\nuri = \"/lake/\"\n{rules}"
    )
}

fn emails() -> String {
    job("column = \"email\",kind = \"email\"", "column = \"email\"\nkind = \"email\"")
}

const EMAIL_LIST: &[u8] = b"email\nAnna@Example.com\nbob@example.com\n";

fn parquet_with(columns: Vec<(&str, ArrayRef)>, properties: WriterProperties) -> Vec<u8> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect()).unwrap();
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    out
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    parquet_with(columns, WriterProperties::default())
}

fn strings<const N: usize>(values: [Option<&str>; N]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn sha256_hex(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

#[test]
fn every_kind_matches_in_every_type_that_can_hold_it() {
    let uuid_bytes = hex::decode("550e8400e29b41d4a716446655440000").unwrap();
    let fixed =
        |values: Vec<&[u8]>| -> ArrayRef { Arc::new(FixedSizeBinaryArray::try_from_iter(values.into_iter()).unwrap()) };
    let binary = |values: Vec<&[u8]>| -> ArrayRef { Arc::new(BinaryArray::from_vec(values)) };
    let decimal = |values: Vec<i128>, scale| -> ArrayRef {
        Arc::new(Decimal128Array::from(values).with_precision_and_scale(20, scale).unwrap())
    };
    let narrow: ArrayRef = Arc::new(Decimal32Array::from(vec![1234500, 150]).with_precision_and_scale(9, 2).unwrap());
    let dictionary: ArrayRef =
        Arc::new([Some("Anna@EXAMPLE.com "), None, Some("x@y.z")].into_iter().collect::<DictionaryArray<Int32Type>>());
    let ints: ArrayRef = Arc::new(Int64Array::from(vec![Some(12345), None, Some(1)]));
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![12345.0, 12345.5, f64::NAN]));
    let booleans: ArrayRef = Arc::new(BooleanArray::from(vec![true, false]));
    let uuid = "550E8400-E29B-41D4-A716-446655440000";
    let (email, phone, maid) = ("Anna@Example.com", "+1 (415) 555-9317", "A3F1C2D4567890ABCDEF1234567890AB");
    for (kind, entry, column, matched, not_comparable) in [
        ("email", email, strings([Some(" ANNA@example.com"), None, Some(""), Some("nobody"), Some("x@y.z")]), 1, 1),
        ("email", email, dictionary.clone(), 1, 0),
        ("email", email, binary(vec![b"anna@example.com", b"\xff@x"]), 1, 1),
        ("email", email, Arc::new(LargeStringArray::from(vec!["anna@example.com"])), 1, 0),
        ("email", email, Arc::new(StringViewArray::from(vec!["anna@example.com"])), 1, 0),
        ("phone", phone, strings([Some("415.555.9317"), Some("n/a")]), 1, 1),
        ("phone", phone, Arc::new(Int64Array::from(vec![4155559317, 14155559317, -4155559317])), 2, 1),
        ("phone", phone, Arc::new(UInt64Array::from(vec![4155559317])), 1, 0),
        ("maid", maid, strings([Some("a3f1c2d4-5678-90ab-cdef-1234567890ab"), Some("a3f1")]), 1, 1),
        ("maid", uuid, fixed(vec![&uuid_bytes]), 1, 0),
        ("uuid", uuid, strings([Some("{550e8400-e29b-41d4-a716-446655440000}"), Some("x")]), 1, 1),
        ("uuid", uuid, fixed(vec![&uuid_bytes, &[0; 16]]), 1, 0),
        ("uuid", uuid, binary(vec![&uuid_bytes, uuid.as_bytes()]), 2, 0),
        ("ip", "::ffff:192.0.2.1", strings([Some("192.0.2.1"), Some("192.0.2.2"), Some("192.0.2")]), 1, 1),
        ("ip", "2001:db8::1", strings([Some("2001:DB8:0:0:0:0:0:1")]), 1, 0),
        ("integer", "0012345", ints.clone(), 1, 0),
        ("integer", "12345", strings([Some("+12345"), Some("12345.0"), Some("12345.5")]), 2, 1),
        ("integer", "12345", floats.clone(), 1, 2),
        ("integer", "12345", decimal(vec![1234500, 1234501], 2), 1, 1),
        ("integer", "12345", narrow.clone(), 1, 1),
        ("integer", "1", booleans.clone(), 0, 2),
        ("text", "1.5", decimal(vec![150, 151], 2), 1, 0),
        ("text", "1.50", decimal(vec![15], 1), 1, 0),
        ("text", "1.50", strings([Some("1.5"), Some("1.50")]), 1, 0),
        ("text", "12345", ints, 1, 0),
        ("text", "12345", floats, 1, 1),
        ("text", "007", Arc::new(Int32Array::from(vec![7])), 0, 0),
        ("text", "true", booleans, 0, 2),
        ("text", "1", Arc::new(Date32Array::from(vec![Some(1), None])), 0, 1),
        ("text", "1", Arc::new(TimestampMicrosecondArray::from(vec![1])), 0, 1),
        ("text", "As Is", strings([Some("As Is"), Some("as is")]), 1, 0),
        ("vin", "1HGCM82633A004352", strings([Some("1hgcm-82633a004352"), Some("1")]), 1, 1),
        ("zip", "02139-1234", strings([Some("02139"), Some("2139"), Some("-")]), 2, 1),
        ("zip", "02139", Arc::new(Int32Array::from(vec![2139])), 1, 0),
    ] {
        let job = job(&format!("column = \"id\",kind = \"{kind}\""), &format!("column = \"id\"\nkind = \"{kind}\""));
        let rows = column.len() as u64;
        let context = format!("{kind} {entry} {}", column.data_type());
        let files = vec![
            ("/list.csv", format!("id\n{entry}\n").into_bytes()),
            ("/lake/a.parquet", parquet(vec![("id", column)])),
        ];
        assert_eq!(check(&job, files), (rows, matched, not_comparable), "{context}");
    }
}

#[test]
fn hashes_match_hashes_and_what_they_are_of() {
    let md5 = |text: &str| hex::encode(<md5::Md5 as md5::Digest>::digest(text));
    let sha1 = |text: &str| hex::encode(<sha1::Sha1 as sha1::Digest>::digest(text));
    let base64 = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, Sha256::digest(text));
    let (plain, other) = ("anna@example.com", "x@y.z");
    let upper = sha256_hex(plain).to_uppercase();
    for (list_hashed, entry, data_hashed, values) in [
        ("", plain.to_owned(), "sha256-hex", [upper.clone(), sha256_hex(other)]),
        ("", plain.to_owned(), "sha256-base64", [base64(plain), base64(other)]),
        ("", plain.to_owned(), "md5-hex", [md5(plain), md5(other)]),
        ("", plain.to_owned(), "sha1-hex", [sha1(plain), sha1(other)]),
        ("sha256-hex", sha256_hex(plain), "", [" ANNA@Example.com".to_owned(), other.to_owned()]),
        ("sha256-base64", base64(plain), "", [plain.to_owned(), other.to_owned()]),
        ("md5-hex", md5(plain), "", [plain.to_owned(), other.to_owned()]),
        ("sha256-base64", base64(plain), "sha256-hex", [upper, sha256_hex(other)]),
        ("sha1-hex", sha1(plain), "sha1-hex", [sha1(plain), sha1(other)]),
    ] {
        let hashed = |name: &str, separator| {
            if name.is_empty() { String::new() } else { format!("{separator}hashed = \"{name}\"") }
        };
        let job = job(
            &format!("column = \"id\",kind = \"email\"{}", hashed(list_hashed, ',')),
            &format!("column = \"id\"\nkind = \"email\"{}", hashed(data_hashed, '\n')),
        );
        let column = strings([Some(&values[0]), Some(&values[1]), None, Some("?")]);
        let files = vec![
            ("/list.csv", format!("id\n{entry}\n").into_bytes()),
            ("/lake/a.parquet", parquet(vec![("id", column)])),
        ];
        assert_eq!(check(&job, files), (4, 1, 1), "{list_hashed} against {data_hashed}");
    }
}

#[test]
fn raw_digests_in_a_fixed_size_column_match() {
    let digest = Sha256::digest("anna@example.com");
    let column: ArrayRef =
        Arc::new(FixedSizeBinaryArray::try_from_iter([digest.as_slice(), &[0; 32]].into_iter()).unwrap());
    let job = job("column = \"email\",kind = \"email\"", "column = \"h\"\nkind = \"email\"\nhashed = \"sha256-hex\"");
    assert_eq!(
        check(&job, vec![("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.parquet", parquet(vec![("h", column)]))]),
        (2, 1, 0)
    );
}

#[test]
fn all_parts_of_a_composite_must_match_one_list_row() {
    let list = "column = \"first\",kind = \"text\";column = \"code\",kind = \"zip\"";
    let rule = "all = [{ column = \"name\", kind = \"text\", list_column = \"first\" }, { column = \"zip\", kind = \"zip\", list_column = \"code\" }]";
    let names = strings([Some("anna"), Some("anna"), Some("bob"), None, Some(""), Some("eve"), Some("anna")]);
    let zips =
        strings([Some("02139"), Some("94103"), Some("94103-1234"), Some("02139"), Some("02139"), None, Some("")]);
    let data = parquet(vec![("name", names), ("zip", zips)]);
    let entries = b"first,code\nanna,2139\nbob,94103\neve,\n,02139\n".to_vec();
    let files = vec![("/list.csv", entries.clone()), ("/lake/a.parquet", data.clone())];
    assert_eq!(check(&job(list, rule), files), (7, 2, 0));
    // A second rule is OR, and a row that both match counts once.
    let or = format!("{rule};column = \"name\"\nkind = \"text\"\nlist_column = \"first\"");
    let files = vec![("/list.csv", entries), ("/lake/a.parquet", data)];
    assert_eq!(check(&job(list, &or), files), (7, 5, 0));
}

#[test]
fn only_the_named_list_column_is_compared() {
    let list = "column = \"a\",kind = \"text\";column = \"b\",kind = \"text\"";
    let files = || {
        vec![
            ("/list.csv", b"a,b\nx,y\n".to_vec()),
            ("/lake/a.parquet", parquet(vec![("v", strings([Some("x"), Some("y")]))])),
        ]
    };
    for (named, matched) in [("", 2), ("list_column = \"a\"", 1)] {
        assert_eq!(check(&job(list, &format!("column = \"v\"\nkind = \"text\"\n{named}")), files()), (2, matched, 0));
    }
}

/// user: struct<email, other>, tags: list<string>, people: list<struct<age, email>>, props: map<string, string>, and a name with a dot.
fn nested(rows: usize) -> Vec<u8> {
    let at =
        |i: usize| if i.is_multiple_of(5) { "anna@example.com".to_owned() } else { format!("user{i}@example.com") };
    let email: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(at)));
    let field = |name: &str, dtype: DataType| Arc::new(Field::new(name, dtype, true));
    let other: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
    // Every tenth row has no user at all.
    let present = NullBuffer::from((0..rows).map(|i| i % 10 != 0).collect::<Vec<_>>());
    let fields = Fields::from(vec![field("other", DataType::Int64), field("email", DataType::Utf8)]);
    let user = StructArray::new(fields.clone(), vec![other.clone(), email.clone()], Some(present));
    // Row i has i % 3 elements, taken in order from a running sequence.
    let offsets = OffsetBuffer::from_lengths((0..rows).map(|i| i % 3));
    let total = *offsets.last().unwrap() as usize;
    let elements: ArrayRef = Arc::new(StringArray::from_iter_values((0..total).map(at)));
    let tags = ListArray::new(field("item", DataType::Utf8), offsets.clone(), elements.clone(), None);
    let ages: ArrayRef = Arc::new(Int64Array::from_iter_values(0..total as i64));
    let person = StructArray::new(fields, vec![ages, elements.clone()], None);
    let people = ListArray::new(field("item", person.data_type().clone()), offsets.clone(), Arc::new(person), None);
    let entry = StructArray::from(vec![
        (Arc::new(Field::new("keys", DataType::Utf8, false)), elements.clone()),
        (field("values", DataType::Utf8), elements),
    ]);
    let props =
        MapArray::new(Arc::new(Field::new("entries", entry.data_type().clone(), false)), offsets, entry, None, false);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("user", Arc::new(user)),
        ("tags", Arc::new(tags)),
        ("people", Arc::new(people)),
        ("props", Arc::new(props)),
        ("a.b", email),
    ];
    parquet_with(columns, WriterProperties::builder().set_max_row_group_row_count(Some(rows.div_ceil(2))).build())
}

/// Rows of [`nested`] with an element that is the first of the list.
fn rows_with_an_element(rows: usize) -> u64 {
    let mut at = 0;
    let mut hit = |i: usize| {
        let start = at;
        at += i % 3;
        (start..at).any(|element| element % 5 == 0)
    };
    (0..rows).filter(|i| hit(*i)).count() as u64
}

#[test]
fn paths_lead_into_structs_and_through_lists() {
    // The larger lake is read in slices of a row group: 33 threads share 64 MiB.
    for (rows, resources) in [(40, ""), (70_000, "[resources]\nthreads = 33\nmemory_mib = 64\n")] {
        let data = nested(rows);
        let with_user = (0..rows).filter(|i| i % 5 == 0 && i % 10 != 0).count() as u64;
        for (column, matched) in [
            ("user.email", with_user),
            ("USER.Email", with_user),
            ("tags", rows_with_an_element(rows)),
            ("people.email", rows_with_an_element(rows)),
            ("props.values", rows_with_an_element(rows)),
            ("'\"a.b\"'", rows.div_ceil(5) as u64),
        ] {
            let quoted = if column.starts_with('\'') { column.to_owned() } else { format!("\"{column}\"") };
            let text = job("column = \"email\",kind = \"email\"", &format!("column = {quoted}\nkind = \"email\""));
            let text = text.replacen("version = 1\n", &format!("version = 1\n{resources}"), 1);
            let files = vec![("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.parquet", data.clone())];
            assert_eq!(check(&text, files), (rows as u64, matched, 0), "{column}");
        }
    }
}

#[test]
fn an_ambiguous_column_is_a_failure_and_an_exact_name_is_not() {
    let data = |names: [&str; 2]| {
        parquet(vec![(names[0], strings([Some("anna@example.com")])), (names[1], strings([Some("x@y.z")]))])
    };
    let files = |data| vec![("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.parquet", data)];
    assert_eq!(check(&emails(), files(data(["email", "EMAIL"]))), (1, 1, 0));
    assert_eq!(check(&emails(), files(data(["Email", "id"]))), (1, 1, 0));
    let (exit, reason) = failure(&emails(), files(data(["Email", "EMAIL"])));
    assert_eq!((exit, reason.contains("ambiguous")), (Exit::Incomplete, true), "{reason}");
    let csv = b"email,x,email\na@b.c,1,anna@example.com\n".to_vec();
    let (exit, reason) = failure(&emails(), vec![("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.csv", csv)]);
    assert_eq!((exit, reason.contains("ambiguous")), (Exit::Incomplete, true), "{reason}");
}

#[test]
fn a_missing_column_fails_the_object_or_is_a_note_and_other_rules_still_look() {
    let two = job(
        "column = \"email\",kind = \"email\"",
        "column = \"email\"\nkind = \"email\";column = \"mail\"\nkind = \"email\"",
    );
    let skip = two.replace("uri = \"/lake/\"\n", "uri = \"/lake/\"\nmissing_column = \"skip\"\n");
    let objects = [
        ("/lake/a.parquet", parquet(vec![("email", strings([Some("bob@example.com"), None]))])),
        ("/lake/b.csv", b"email\nbob@example.com\nx@y.z\n".to_vec()),
        ("/lake/c.ndjson", b"{\"email\":\"bob@example.com\"}\n{\"email\":null}\n".to_vec()),
    ];
    let reason = "lacks match column mail".to_owned();
    for (job, wanted) in [
        (two, VerifyOutcome::Failed { exit: Exit::Incomplete, reason: reason.clone() }),
        (skip, VerifyOutcome::Skipped { reason }),
    ] {
        let files = objects.iter().cloned().chain([("/list.csv", EMAIL_LIST.to_vec())]);
        let verified = run(&job, &MemoryStore::new(files)).unwrap();
        assert_eq!(verified.datasets[0].objects.len(), 3);
        for object in &verified.datasets[0].objects {
            assert_eq!(
                (object.rows, object.rows_matched, &object.outcome),
                (2, 1, &wanted),
                "{}",
                object.object.location
            );
        }
    }
}

/// `file` with a footer in which `change` has been at the row groups; everything before the footer stays.
pub fn with_other_row_groups(file: &[u8], change: impl Fn(RowGroupMetaData) -> RowGroupMetaData) -> Vec<u8> {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&bytes::Bytes::from(file.to_vec())).unwrap();
    let groups = metadata.row_groups().iter().cloned().map(change).collect();
    let changed = metadata.into_builder().set_row_groups(groups).build();
    let length = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
    let (mut out, mut footer) = (file[..file.len() - 8 - length].to_vec(), Vec::new());
    ParquetMetaDataWriter::new(&mut footer, &changed).finish().unwrap();
    out.extend_from_slice(&footer);
    out
}

#[test]
fn wrong_statistics_hide_no_row() {
    let honest = parquet(vec![("email", strings([Some("anna@example.com"), Some("bob@example.com")]))]);
    // As if all values lay far above every identifier of the list.
    let lie = Statistics::byte_array(Some("zzz1".into()), Some("zzz9".into()), None, Some(2), false);
    let lying = with_other_row_groups(&honest, |group| {
        let columns = group.columns().iter().cloned();
        let columns =
            columns.map(|column| column.into_builder().set_statistics(lie.clone()).build().unwrap()).collect();
        group.into_builder().set_column_metadata(columns).build().unwrap()
    });
    let seen = ParquetMetaDataReader::new().parse_and_finish(&bytes::Bytes::from(lying.clone())).unwrap();
    assert_eq!(seen.row_group(0).column(0).statistics().unwrap().min_bytes_opt(), Some(b"zzz1".as_slice()));
    assert_eq!(check(&emails(), vec![("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.parquet", lying)]), (2, 2, 0));
}

#[test]
fn a_footer_that_counts_other_rows_than_there_are_is_a_failure() {
    let honest = parquet(vec![("email", strings([Some("x@y.z"), Some("anna@example.com")]))]);
    for rows in [1, 3] {
        let lying = with_other_row_groups(&honest, |group| group.into_builder().set_num_rows(rows).build().unwrap());
        let (exit, reason) = failure(&emails(), vec![("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.parquet", lying)]);
        assert_eq!(exit, Exit::Incomplete, "{rows}: {reason}");
    }
}

#[test]
fn every_codec_and_encoding_is_decoded() {
    let values = || -> ArrayRef {
        Arc::new(StringArray::from_iter((0..5000).map(|i| (i % 7 > 0).then(|| format!("user{}@example.com", i % 100)))))
    };
    let list = b"email\nuser5@example.com\n".to_vec();
    let wanted = (0..5000).filter(|i| i % 100 == 5 && i % 7 > 0).count() as u64;
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ];
    for (codec, version) in
        codecs.into_iter().zip([WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0].into_iter().cycle())
    {
        for encoding in
            [None, Some(Encoding::PLAIN), Some(Encoding::DELTA_BYTE_ARRAY), Some(Encoding::DELTA_LENGTH_BYTE_ARRAY)]
        {
            let mut properties = WriterProperties::builder()
                .set_compression(codec)
                .set_writer_version(version)
                .set_data_page_row_count_limit(300)
                .set_write_batch_size(100)
                .set_max_row_group_row_count(Some(1999));
            if let Some(encoding) = encoding {
                properties = properties.set_dictionary_enabled(false).set_encoding(encoding);
            }
            let data = parquet_with(vec![("email", values())], properties.build());
            let files = vec![("/list.csv", list.clone()), ("/lake/a.parquet", data)];
            assert_eq!(check(&emails(), files), (5000, wanted, 0), "{codec:?} {encoding:?}");
        }
    }
}

#[test]
fn a_planted_row_is_named_with_its_object_and_count() {
    let clean = parquet(vec![("email", strings([Some("x@y.z"), None]))]);
    let residue = parquet(vec![("email", strings([Some("BOB@example.com"), Some("x@y.z"), Some("anna@example.com")]))]);
    let store = MemoryStore::new([
        ("/list.csv", EMAIL_LIST.to_vec()),
        ("/lake/day=1/a.parquet", clean.clone()),
        ("/lake/day=1/b.parquet", residue),
        ("/lake/day=2/c.parquet", clean),
        ("/lake/_SUCCESS", Vec::new()),
        ("/lake/notes.md", b"hello".to_vec()),
    ]);
    let verified = run(&emails(), &store).unwrap();
    let found = outcomes(&verified);
    assert_eq!(found["a.parquet"], (2, 0, VerifyOutcome::Checked));
    assert_eq!(found["b.parquet"], (3, 2, VerifyOutcome::Checked));
    assert_eq!(found["c.parquet"], (2, 0, VerifyOutcome::Checked));
    let aside: Vec<_> = verified.datasets[0].not_in_scope.iter().map(|object| object.location.file_name()).collect();
    assert_eq!(aside, ["_SUCCESS", "notes.md"]);
    assert_eq!((verified.engine, verified.engine_version), ("polars", "0.55.2"));
}

#[test]
fn what_cannot_be_read_fails_alone_and_quotes_nothing() {
    let good = parquet(vec![("email", strings([Some("anna@example.com")]))]);
    let mut torn = good.clone();
    let middle = torn.len() - 30;
    torn[middle..middle + 10].fill(0xff);
    let mut broken_page = parquet_with(
        vec![("email", strings([Some("anna@example.com"), Some("secret@example.com")]))],
        WriterProperties::builder().set_dictionary_enabled(false).set_compression(Compression::SNAPPY).build(),
    );
    broken_page[4..40].fill(0xff);
    let store = MemoryStore::new([
        ("/list.csv", EMAIL_LIST.to_vec()),
        ("/lake/a.parquet", good.clone()),
        ("/lake/b.parquet", b"PAR1".to_vec()),
        ("/lake/c.parquet", good[..good.len() - 5].to_vec()),
        ("/lake/d.parquet", torn),
        ("/lake/e.parquet", broken_page),
        ("/lake/f.csv", b"email\n\"secret@example.com\n".to_vec()),
        ("/lake/j.csv", b"email,note\nx@y.z,\"a\nanna@example.com,\"b\n".to_vec()),
        ("/lake/g.csv.gz", b"email\nsecret@example.com\n".to_vec()),
        ("/lake/h.csv.gz", gzip(b"email\nanna@example.com\n")[..20].to_vec()),
        ("/lake/i.ndjson", b"{\"email\":\"secret@example.com\"\n".to_vec()),
        ("/lake/j.ndjson", b"\"secret@example.com\"\n".to_vec()),
        ("/lake/k.csv", b"email,id\nsecret@example.com\n".to_vec()),
        ("/lake/l.parquet.gz", gzip(&good)),
        ("/lake/m.csv", b"\xff\xfee\0m\0a\0i\0l\0".to_vec()),
        ("/lake/z.parquet", good),
    ]);
    let verified = run(&emails(), &store).unwrap();
    for (name, (_, matched, outcome)) in outcomes(&verified) {
        match outcome {
            VerifyOutcome::Checked => {
                assert_eq!((name == "a.parquet" || name == "z.parquet", matched), (true, 1), "{name}")
            }
            VerifyOutcome::Failed { exit, reason } => {
                assert_eq!(exit, Exit::Incomplete, "{name}");
                assert!(!reason.contains("secret") && !reason.contains("anna"), "{name}: {reason}");
            }
            VerifyOutcome::Skipped { reason } => panic!("{name}: {reason}"),
        }
    }
    assert_eq!(verified.datasets[0].objects.len(), 15);
}

#[test]
fn an_object_that_changes_or_is_cut_off_says_so() {
    let data = parquet(vec![("email", strings([Some("x@y.z")]))]);
    let csv = b"email\nx@y.z\n".to_vec();
    let store = MemoryStore::new([
        ("/list.csv", EMAIL_LIST.to_vec()),
        ("/lake/a.parquet", data.clone()),
        ("/lake/b.csv", csv.clone()),
        ("/lake/c.parquet", data),
        ("/lake/d.csv", csv),
    ]);
    ["/lake/a.parquet", "/lake/b.csv"].iter().for_each(|path| store.change_after_listing(path));
    ["/lake/c.parquet", "/lake/d.csv"].iter().for_each(|path| store.cut_off(path));
    let found = outcomes(&run(&emails(), &store).unwrap());
    for (name, wanted) in [
        ("a.parquet", Exit::Conflict),
        ("b.csv", Exit::Conflict),
        ("c.parquet", Exit::Unavailable),
        ("d.csv", Exit::Unavailable),
    ] {
        assert!(matches!(&found[name].2, VerifyOutcome::Failed { exit, .. } if *exit == wanted), "{name}: {found:?}");
    }
}

#[test]
fn only_the_footer_and_the_identifier_column_are_fetched() {
    let rows = 50_000;
    let noise = |seed: u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values((0..rows).map(|i| (i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    };
    let email: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|i| format!("user{i}@example.com"))));
    let data = parquet(vec![("before", noise(1)), ("email", email), ("after", noise(2))]);
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&bytes::Bytes::from(data.clone())).unwrap();
    let (start, length) = metadata.row_group(0).column(1).byte_range();
    let footer = data.len() as u64 - 65536;
    let store = MemoryStore::new([("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.parquet", data)]);
    assert_eq!(outcomes(&run(&emails(), &store).unwrap())["a.parquet"], (rows, 0, VerifyOutcome::Checked));
    let reads = store.reads("/lake/a.parquet");
    assert!(reads.contains(&(start..start + length)), "{reads:?}");
    assert!(reads.iter().all(|range| range.start >= footer || *range == (start..start + length)), "{reads:?}");
}

#[test]
fn a_small_object_takes_one_request() {
    let data = parquet(vec![("email", strings([Some("x@y.z")]))]);
    let store = MemoryStore::new([("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.parquet", data.clone())]);
    assert_eq!(outcomes(&run(&emails(), &store).unwrap())["a.parquet"], (1, 0, VerifyOutcome::Checked));
    assert_eq!(store.reads("/lake/a.parquet"), std::slice::from_ref(&(0..data.len() as u64)));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

#[test]
fn csv_in_all_its_dialects() {
    let list = EMAIL_LIST;
    let gz = |text: &[u8]| {
        // Two members, as `cat a.gz b.gz` makes them.
        let (first, second) = text.split_at(text.len() / 2);
        [gzip(first), gzip(second)].concat()
    };
    for (name, text, dialect, column, wanted) in [
        ("a.csv", b"id,email\r\n1,anna@example.com\r\n2,x@y.z\r\n".to_vec(), "", "email", (2, 1, 0)),
        ("a.csv", b"\xef\xbb\xbfemail\nanna@example.com".to_vec(), "", "email", (1, 1, 0)),
        (
            "a.csv",
            b"note,email\n\"a\n\"\"b\"\"\",\"anna@example.com\"\n\n5\" pipe,bob@example.com\n".to_vec(),
            "",
            "email",
            (2, 2, 0),
        ),
        ("a.csv", b"\"note\n1\",email\nx,anna@example.com\n".to_vec(), "", "email", (1, 1, 0)),
        ("a.csv", b"email\n\"\"\n\"anna@example.com\"\n   \n".to_vec(), "", "email", (3, 1, 0)),
        (
            "a.csv",
            b"x,email\n1,\xffnna@example.com\n2,anna@example.com\n\xff,nobody\n".to_vec(),
            "",
            "email",
            (3, 1, 2),
        ),
        (
            "a.csv",
            b"email\nNULL\nanna@example.com\n-\n".to_vec(),
            "null_strings = [\"NULL\", \"-\"]",
            "email",
            (3, 1, 0),
        ),
        (
            "a.csv",
            b"1;anna@example.com\n2;'x;y'\n".to_vec(),
            "header = false\ndelimiter = \";\"\nquote = \"'\"",
            "2",
            (2, 1, 1),
        ),
        ("a.tsv", b"id\temail\n1\tanna@example.com\n".to_vec(), "", "email", (1, 1, 0)),
        ("a.csv.gz", gz(b"email\nanna@example.com\nbob@example.com\n"), "", "email", (2, 2, 0)),
        ("a.csv.zst", zstd::encode_all(EMAIL_LIST, 3).unwrap(), "", "email", (2, 2, 0)),
        ("a.csv", gzip(EMAIL_LIST), "", "email", (2, 2, 0)),
        ("a.csv", b"email\n".to_vec(), "", "email", (0, 0, 0)),
        ("a.csv", Vec::new(), "", "email", (0, 0, 0)),
    ] {
        let text_job = job("column = \"email\",kind = \"email\"", &format!("column = \"{column}\"\nkind = \"email\""));
        let text_job = format!("{text_job}[dataset.csv]\n{dialect}\n");
        let context = format!("{name} {}", String::from_utf8_lossy(&text));
        let path = format!("/lake/{name}");
        assert_eq!(check(&text_job, vec![("/list.csv", list.to_vec()), (path.as_str(), text)]), wanted, "{context}");
    }
}

#[test]
fn csv_of_many_blocks_counts_every_record() {
    let mut text = String::from("n,email,note\n");
    let rows = 400_000;
    for i in 0..rows {
        let email = if i % 1000 == 7 { "Bob@Example.com".to_owned() } else { format!("user{i}@example.com") };
        text.push_str(&format!("{i},{email},\"line one\nline {i}\"\n"));
    }
    assert!(text.len() > 16 << 20, "more than two blocks");
    let files = vec![("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.csv", text.into_bytes())];
    assert_eq!(check(&emails(), files), (rows, rows / 1000, 0));
}

#[test]
fn text_cells_that_are_no_text_compare_byte_for_byte() {
    let job = job("column = \"id\",kind = \"text\"", "column = \"id\"\nkind = \"text\"");
    let files = vec![("/list.csv", b"id\n\xfex\n".to_vec()), ("/lake/a.csv", b"id\n\xfex\n\xffx\n".to_vec())];
    assert_eq!(check(&job, files), (2, 1, 0));
}

#[test]
fn ndjson_records_are_walked_whatever_their_shape() {
    let text = br#"{"user":{"email":"anna@example.com"}}
{"USER":{"Email":"anna@example.com"}}

{"user":{"email":["x@y.z","bob@example.com"]}}
{"user":[{"email":"bob@example.com"},{"email":1}]}
{"user":{"email":"x@y.z","email":"anna@example.com"}}
{"user":null}
{"user":{"email":true}}
{"other":1}
"#;
    let job_text = job("column = \"email\",kind = \"email\"", "column = \"user.email\"\nkind = \"email\"");
    let files = |text: &[u8]| vec![("/list.csv", EMAIL_LIST.to_vec()), ("/lake/a.ndjson", text.to_vec())];
    assert_eq!(check(&job_text, files(text)), (8, 5, 2));
    let ambiguous = b"{\"user\":{\"Email\":\"a\",\"EMAIL\":\"b\"}}\n";
    assert!(failure(&job_text, files(ambiguous)).1.contains("ambiguous"));
    let numbers = job("column = \"id\",kind = \"text\"", "column = \"id\"\nkind = \"text\"");
    let records = b"{\"id\":1.50}\n{\"id\":\"1.5\"}\n{\"id\":12345678901234567890}\n".to_vec();
    let list = b"id\n1.5\n12345678901234567890\n".to_vec();
    assert_eq!(check(&numbers, vec![("/list.csv", list), ("/lake/a.ndjson", records)]), (3, 3, 0));
}

#[test]
fn lists_are_read_in_every_format() {
    let data = || ("/lake/a.parquet", parquet(vec![("email", strings([Some("anna@example.com"), Some("x@y.z")]))]));
    let parquet_list = || parquet(vec![("id", strings([Some("1")])), ("EMAIL", strings([Some("Anna@example.com")]))]);
    for (uri, format, path, bytes) in [
        ("/l/a.csv", "", "/l/a.csv", b"id,email\n1,Anna@example.com\n".to_vec()),
        ("/l/*.csv", "", "/l/a.csv", b"id,email\n1,not an address\n2,Anna@example.com\n".to_vec()),
        ("/l/", "", "/l/part/a.tsv", b"id\temail\n1\tAnna@example.com\n".to_vec()),
        ("/l/a.ndjson", "", "/l/a.ndjson", b"{\"email\":\"Anna@example.com\"}\n".to_vec()),
        ("/l/a.parquet", "", "/l/a.parquet", parquet_list()),
        ("/l/a", "format = \"parquet\"", "/l/a", parquet_list()),
        ("/l/a.txt", "", "/l/a.txt", b"\xef\xbb\xbfx@y\r\n\r\nAnna@example.com\r\n".to_vec()),
        ("/l/a.txt.gz", "", "/l/a.txt.gz", gzip(b"Anna@example.com")),
        ("/l/a.csv.zst", "", "/l/a.csv.zst", zstd::encode_all(b"email\nAnna@example.com\n".as_slice(), 3).unwrap()),
        ("/l/a", "format = \"txt\"", "/l/a", b"Anna@example.com\n\xff\n".to_vec()),
    ] {
        let text = emails().replace("uri = \"/list.csv\"\n", &format!("uri = \"{uri}\"\n{format}\n"));
        assert_eq!(check(&text, vec![(path, bytes.clone()), data()]), (2, 1, 0), "{uri}");
        let list = &run(&text, &MemoryStore::new([(path, bytes.clone()), data()])).unwrap().lists[0];
        assert_eq!(list.digest, hex::encode(Sha256::digest(&bytes)), "{uri}");
    }
}

#[test]
fn a_list_that_cannot_be_read_stops_the_run() {
    for (path, bytes, wanted) in [
        ("/other.csv", EMAIL_LIST.to_vec(), "does not exist"),
        ("/list.csv", b"mail\nanna@example.com\n".to_vec(), "lacks column email"),
        ("/list.csv", b"email\n\"anna@example.com\n".to_vec(), "inside quotes"),
    ] {
        let error = run(&emails(), &MemoryStore::new([(path, bytes)])).unwrap_err();
        assert!(error.exit == Exit::Usage && error.message.contains(wanted), "{error}");
        assert!(!error.message.contains("anna"), "{error}");
    }
    let empty = run(&emails(), &MemoryStore::new([("/list.csv", b"email\n".to_vec())])).unwrap();
    assert_eq!(empty.lists[0].rows, 0);
}

#[test]
fn the_verifier_shares_no_code_with_what_it_checks() {
    // Every file of the verifier, and what it shares with others: bytes and words that know nothing of matching.
    let is_of_verifier = |name: &str| {
        name.starts_with("verify") || ["byte_mask.rs", "page_bytes.rs", "residue.rs", "thrift.rs"].contains(&name)
    };
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let files = files.filter(|file| is_of_verifier(&file.file_name().unwrap().to_string_lossy()));
    let sources: Vec<String> = files.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert!(sources.len() > 12, "{}", sources.len());
    let forbidden = [
        "crate::find",
        "crate::match_",
        "crate::ledger",
        "crate::request",
        "crate::rewrite",
        "format::parquet",
        "format::records",
        "use parquet",
        "use arrow",
        "datafusion",
        "canonicalise(",
        "plain_decimal",
        "read_date",
        "compact_date",
        "name_letters",
        "plain_letters",
        "join_part",
        "identifier::self_test",
        ".function()",
        "same_family",
        "scrubbed",
    ];
    for source in sources {
        let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
        let used: Vec<&str> = code.filter(|line| forbidden.iter().any(|name| line.contains(name))).collect();
        assert!(used.is_empty(), "{used:?}");
    }
}
