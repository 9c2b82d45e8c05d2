//! Suppression lists: every format and compression, what is malformed, what is refused, and that no message quotes a cell.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Float64Array,
    Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::Int32Type;
use jiff::Timestamp;
use lakescrub::error::{Error, Exit};
use lakescrub::job::Job;
use lakescrub::meter::Meter;
use lakescrub::request::{LineUnit, ListReport, read_lists};
use lakescrub::signature::TagKey;
use lakescrub::store::{Location, StoreError};
use lakescrub::verify_ledger;
use sha2::{Digest, Sha256};

#[path = "../support/list_store.rs"]
mod list_store;
use list_store::ListStore;

const READ_AT: &str = "2026-03-01T02:03:04Z";

/// A job with these `[[list]]` tables; `bad_rows_max` is the guard.
fn job(lists: &str, bad_rows_max: u64) -> Job {
    let text = format!(
        "version = 1\n[guard]\nmax_bad_list_rows = {bad_rows_max}\n{lists}\n\
         [[dataset]]\nname = \"events\"\nuri = \"/lake/\"\n[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n"
    );
    Job::parse(&text, Path::new("/"), &[]).expect("the test's job file is right")
}

/// A `[[list]]` of `uri`; a column is `name kind` or `name kind hash`.
fn list(uri: &str, columns: &[&str]) -> String {
    let mut text = format!("[[list]]\nname = \"crm\"\nuri = \"{uri}\"\n");
    for column in columns {
        let words: Vec<&str> = column.split(' ').collect();
        text += &format!("[[list.column]]\ncolumn = \"{}\"\nkind = \"{}\"\n", words[0], words[1]);
        if let Some(hashed) = words.get(2) {
            text += &format!("hashed = \"{hashed}\"\n");
        }
    }
    text
}

struct Read {
    reports: Vec<ListReport>,
    /// The cells of each entry, joined by `|`, bytes that are no text in hex, `-` where there is none.
    entries: Vec<String>,
    meter: Meter,
}

fn read(job: &Job, store: ListStore) -> Result<Read, Error> {
    let (mut entries, meter, stores) = (Vec::new(), Meter::default(), store.stores());
    let spelled = |cell: &Option<&[u8]>| match cell {
        None => "-".to_owned(),
        Some(bytes) => String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| hex::encode(bytes)),
    };
    let reports = tokio::runtime::Runtime::new().unwrap().block_on(read_lists(
        job,
        &stores,
        &|| READ_AT.parse().unwrap(),
        &meter,
        &mut |entry| {
            assert_eq!(entry.cells.len(), entry.list.columns.len());
            entries.push(entry.cells.iter().map(spelled).collect::<Vec<_>>().join("|"));
        },
    ))?;
    Ok(Read { reports, entries, meter })
}

/// The entries of one file.
fn check(path: &str, bytes: impl Into<Vec<u8>>, columns: &[&str], wanted: &[&str]) {
    let read = read(&job(&list(path, columns), 0), ListStore::default().with(path, bytes)).map_err(|e| e.message);
    assert_eq!(read.map(|read| read.entries), Ok(wanted.iter().map(|s| (*s).to_owned()).collect()), "{path}");
}

/// The error of one file.
fn refusal(path: &str, bytes: impl Into<Vec<u8>>, columns: &[&str]) -> Error {
    match read(&job(&list(path, columns), 0), ListStore::default().with(path, bytes)) {
        Ok(read) => panic!("{path} was read: {} rows", read.reports[0].rows),
        Err(error) => error,
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn emails_as_parquet(emails: &[Option<&str>]) -> Vec<u8> {
    let ids: Vec<i64> = (0..emails.len() as i64).collect();
    parquet(vec![
        ("id", Arc::new(Int64Array::from(ids)) as ArrayRef),
        ("email", Arc::new(StringArray::from(emails.to_vec()))),
    ])
}

fn parquet_of_one_column(email: &str) -> Vec<u8> {
    parquet(vec![("email", Arc::new(StringArray::from(vec![email])) as ArrayRef)])
}

const BOTH: &[&str] = &["anna@example.com", "bob@example.com"];

#[test]
fn every_format_is_read_in_every_compression() {
    let plain: &[(&str, Vec<u8>)] = &[
        ("csv", b"id,email\n1,Anna@Example.com\n2,bob@example.com\n".to_vec()),
        ("tsv", b"id\temail\n1\tAnna@Example.com\n2\tbob@example.com".to_vec()),
        ("ndjson", b"{\"id\":1,\"email\":\"Anna@Example.com\"}\n\n{\"email\":\"bob@example.com\"}\n".to_vec()),
        ("txt", b"Anna@Example.com\n\n  \r\nbob@example.com\r\n".to_vec()),
        ("parquet", emails_as_parquet(&[Some("Anna@Example.com"), None, Some("bob@example.com")])),
    ];
    for (ending, bytes) in plain {
        check(&format!("/lists/a.{ending}"), bytes.clone(), &["email email"], BOTH);
        check(&format!("/lists/a.{ending}.gz"), gzip(bytes), &["email email"], BOTH);
        check(&format!("/lists/a.{ending}.zst"), zstd(bytes), &["email email"], BOTH);
        // The magic number tells it, too.
        check(&format!("/lists/a.{ending}"), gzip(bytes), &["email email"], BOTH);
        let two_members = [gzip(&bytes[..20]), gzip(&bytes[20..])].concat();
        check(&format!("/lists/a.{ending}.gz"), two_members, &["email email"], BOTH);
    }
}

#[test]
fn a_declared_format_goes_before_the_name() {
    let lists = list("/lists/export", &["email email"]).replace("[[list.column]]", "format = \"txt\"\n[[list.column]]");
    let read = read(&job(&lists, 0), ListStore::default().with("/lists/export", "bob@example.com\n")).unwrap();
    assert_eq!(read.entries, ["bob@example.com"]);
    let error = refusal("/lists/export", "bob@example.com\n", &["email email"]);
    assert_eq!(error.message, "list crm: the name of /lists/export tells no format");
}

#[test]
fn odd_but_sound_csv_is_read() {
    for (text, wanted) in [
        ("\u{feff}email,id\r\nanna@example.com,1\r\nbob@example.com,2\r\n", BOTH),
        ("\u{feff}\"email\"\n\"anna@example.com\"\nbob@example.com", BOTH),
        ("\n\nid,EMAIL\n\n1,anna@example.com\n\r\n2,bob@example.com\n\n", BOTH),
        ("email\nanna@example.com\n\nbob@example.com\n", BOTH),
        ("note,email\n\"a\n\"\"b\"\",\n\",anna@example.com\n5\" or 6\",bob@example.com\n", BOTH),
        ("email,\nanna@example.com,\nbob@example.com,\n", BOTH),
        ("x,email,x\n,anna@example.com,\n,,\n,bob@example.com,\n", BOTH),
        ("email\n\"\"\n", &[]),
        ("email\n", &[]),
        ("email", &[]),
        ("\u{feff}", &[]),
        ("", &[]),
    ] {
        check("/lists/a.csv", text, &["email email"], wanted);
    }
}

#[test]
fn an_empty_list_is_a_valid_list() {
    let none = emails_as_parquet(&[]);
    for (path, bytes) in [
        ("/a.csv", Vec::new()),
        ("/a.csv", b"id,email\r\n".to_vec()),
        ("/a.csv.gz", gzip(b"")),
        ("/a.tsv.zst", zstd(b"id\temail")),
        ("/a.ndjson", b"\n\n".to_vec()),
        ("/a.txt", Vec::new()),
        ("/a.parquet", none),
    ] {
        let read = read(&job(&list(path, &["email email"]), 0), ListStore::default().with(path, bytes)).unwrap();
        assert_eq!((read.reports[0].rows, read.reports[0].files, read.entries.len()), (0, 1, 0), "{path}");
    }
}

#[test]
fn the_dialect_of_a_list_is_obeyed() {
    let lists = list("/lists/a.csv", &["2 email", "1 text"])
        + "[list.csv]\nheader = false\ndelimiter = \";\"\nquote = \"'\"\nnull_strings = [\"NULL\"]\n";
    let store = ListStore::default().with("/lists/a.csv", "'x;\"1';anna@example.com\nNULL;bob@example.com\n");
    assert_eq!(read(&job(&lists, 0), store).unwrap().entries, ["anna@example.com|x;\"1", "bob@example.com|-"]);
}

#[test]
fn text_files_are_read_without_guessing_types() {
    check("/lists/a.csv", "id,zip\n007,02139\n1e3,00501\ntrue,\n", &["id text"], &["007", "1e3", "true"]);
    check("/lists/a.tsv", "id\tzip\n007\t02139\n", &["zip zip", "id integer"], &["2139|7"]);
    check("/lists/a.csv", "id\n12345678901234567890123\n", &["id integer"], &["12345678901234567890123"]);
}

#[test]
fn json_values_are_read_as_the_types_they_have() {
    let columns = &["id text", "n integer"];
    let rows = "{\"id\":\"007\",\"n\":18446744073709551615}\n{\"id\":7.50,\"n\":\"0012\"}\n{\"n\":3.0}\n\
                {\"id\":null,\"n\":null}\n{\"id\":\"\\u0061\\n\",\"N\":-4,\"x\":{\"id\":[1]}}\n";
    let wanted = &["007|18446744073709551615", "7.5|12", "-|3", "a\n|-4"];
    check("/lists/a.jsonl", rows, columns, wanted);
    // The thousandth row may have another type than the first.
    let mixed: String = (0..1000).map(|i| format!("{{\"id\":{i}}}\n")).collect::<String>() + "{\"id\":\"x\"}\n";
    let last = read(&job(&list("/l.json", &["id text"]), 0), ListStore::default().with("/l.json", mixed)).unwrap();
    assert_eq!((last.entries.len(), last.entries[1000].as_str()), (1001, "x"));
}

#[test]
fn json_that_is_no_identifier_is_malformed_never_text() {
    for row in [
        "{\"id\":true}",
        "{\"id\":[\"anna@example.com\"]}",
        "{\"id\":{\"email\":\"anna@example.com\"}}",
        "{\"id\":\"a\",\"id\":\"b\"}",
        "{\"ID\":\"a\",\"Id\":\"b\"}",
        "{\"id\":100000000000000000000000}",
    ] {
        let error = refusal("/l.ndjson", format!("{{\"id\":\"x\"}}\n{row}\n"), &["id text"]);
        assert!(error.message.ends_with("\n/l.ndjson:2: id is not text or a number"), "{row}: {}", error.message);
    }
}

#[test]
fn parquet_columns_match_by_value() {
    let uuid = *b"\x55\x0e\x84\x00\xe2\x9b\x41\xd4\xa7\x16\x44\x66\x55\x44\x00\x00";
    let decimals = Decimal128Array::from(vec![Some(150), None]).with_precision_and_scale(30, 2).unwrap();
    let dictionary: DictionaryArray<Int32Type> = vec![Some("Anna@example.com"), None].into_iter().collect();
    let file = parquet(vec![
        ("int", Arc::new(Int64Array::from(vec![Some(14155559317), None])) as ArrayRef),
        ("float", Arc::new(Float64Array::from(vec![Some(12345.0), None]))),
        ("dec", Arc::new(decimals)),
        (
            "fixed",
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some(uuid), None].into_iter(), 16).unwrap()),
        ),
        ("bytes", Arc::new(BinaryArray::from(vec![Some(&b"Bob@example.com"[..]), None]))),
        ("dict", Arc::new(dictionary)),
        ("^d.*$", Arc::new(StringArray::from(vec![Some("a pattern to Polars"), None]))),
        ("*", Arc::new(StringArray::from(vec![None, Some("x")]))),
    ]);
    let columns = &[
        "int phone",
        "int text",
        "float integer",
        "dec text",
        "fixed uuid",
        "bytes email",
        "dict email",
        "^d.*$ text",
        "* text",
    ];
    let first = "4155559317|14155559317|12345|1.5|550e8400-e29b-41d4-a716-446655440000|bob@example.com|anna@example.com|a \
                 pattern to Polars|-";
    check("/lists/a.parquet", file, columns, &[first, "-|-|-|-|-|-|-|-|x"]);
}

#[test]
fn a_typed_column_that_holds_no_identifier_is_malformed_by_row() {
    let file = parquet(vec![("flag", Arc::new(BooleanArray::from(vec![None, Some(true)])) as ArrayRef)]);
    let read =
        read(&job(&list("/a.parquet", &["flag integer"]), 1), ListStore::default().with("/a.parquet", file)).unwrap();
    let report = &read.reports[0];
    assert_eq!((report.rows, report.malformed, report.bad[0].unit, report.bad[0].line), (2, 1, LineUnit::Row, 2));
    assert_eq!(report.bad[0].to_string(), "/a.parquet: row 2: flag is not an integer");
}

#[test]
fn hashes_are_read_in_all_four_spellings() {
    let sha256 = "281d7cc13fe987a207623cd3f73c044f2483432bd287ced8ba8481a4e42d9211";
    let columns = &["a email sha256-hex", "b email sha256-base64", "c email md5-hex", "d email sha1-hex"];
    let md5 = "900150983cd24fb0d6963f7d28e17f72";
    let sha1 = "a9993e364706816aba3e25717850c26c9cd0d89d";
    let row = format!("{},KA18MT/ph6IHYjzT9zwETySDQyvSh87YuoSBpOQtkhE=,{md5},{sha1}", sha256.to_uppercase());
    let wanted = format!("{sha256}|280d7c313fe987a207623cd3f73c044f2483432bd287ced8ba8481a4e42d9211|{md5}|{sha1}");
    check("/lists/a.csv", format!("a,b,c,d\n{row}\n"), columns, &[&wanted]);
    for (column, hash) in [
        ("h email sha256-hex", "is not a SHA-256 in hex"),
        ("h email sha256-base64", "is not a SHA-256 in Base64"),
        ("h email md5-hex", "is not an MD5 in hex"),
        ("h email sha1-hex", "is not a SHA-1 in hex"),
    ] {
        let error = refusal("/lists/a.csv", "h\nabc123\n", &[column]);
        assert!(error.message.ends_with(&format!("/lists/a.csv:2: h {hash}")), "{}", error.message);
    }
}

#[test]
fn several_files_are_read_in_order_of_their_names() {
    let store = || {
        ListStore::default()
            .with("/lists/b.csv", "email\nbob@example.com\n")
            .with("/lists/a.csv.gz", gzip(b"id,email\n1,anna@example.com\n"))
            .with("/lists/deep/c.csv", "email\ncarl@example.com\n")
            .with("/lists/d.txt", "dora@example.com\n")
            .with("/lists/_SUCCESS", "")
    };
    let all = &["anna@example.com", "bob@example.com", "dora@example.com", "carl@example.com"];
    for (uri, wanted) in [
        ("/lists/*.csv*", &all[..2]),
        ("/lists/**/*.csv", &["bob@example.com", "carl@example.com"]),
        ("/lists/", &all[..]),
    ] {
        let mut read = read(&job(&list(uri, &["email email"]), 0), store()).map_err(|e| e.message).unwrap();
        assert_eq!(read.reports[0].files, wanted.len(), "{uri}");
        assert_eq!((read.meter.objects(), read.meter.rows()), (wanted.len() as u64, wanted.len() as u64), "{uri}");
        let mut wanted = wanted.to_vec();
        read.entries.sort();
        wanted.sort();
        assert_eq!(read.entries, wanted, "{uri}");
    }
}

#[test]
fn a_file_in_a_prefix_that_cannot_be_read_is_refused_not_passed_over() {
    let good = ListStore::default().with("/lists/a.csv", "email\nbob@example.com\n");
    for (name, format, wanted) in [
        ("/lists/june.xlsx", "", "list crm: the name of /lists/june.xlsx tells no format"),
        (
            "/lists/b.parquet",
            "format = \"csv\"\n",
            "list crm: the name of /lists/b.parquet tells another format than the list's",
        ),
    ] {
        let lists = list("/lists/", &["email email"]).replace("[[list.column]]", &format!("{format}[[list.column]]"));
        let error = read(&job(&lists, 0), good.clone().with(name, "x")).err().unwrap();
        assert_eq!((error.exit, error.message.as_str()), (Exit::Usage, wanted));
    }
    let delta = good.with("/lists/_delta_log/00000000000000000000.json", "{}");
    let error = read(&job(&list("/lists/", &["email email"]), 0), delta).err().unwrap();
    assert_eq!(error.message, "list crm: /lists/ is a live Delta Lake table");
}

#[test]
fn a_report_has_digest_rows_and_time() {
    let (a, b) = ("email,x\na@b.c,1\n\n,2\n,\n", "email\nc@d.e\n");
    let store = ListStore::default().with("/lists/a.csv", a).with("/lists/b.csv.gz", gzip(b.as_bytes()));
    let one = read(&job(&list("/lists/a.csv", &["email email"]), 0), store.clone()).unwrap().reports;
    assert_eq!(one[0].digest, hex::encode(Sha256::digest(a)));
    assert_eq!((one[0].rows, one[0].malformed, one[0].read_at.to_string().as_str()), (3, 0, READ_AT));
    assert_eq!((one[0].name.as_str(), one[0].uri.as_str(), one[0].files), ("crm", "/lists/a.csv", 1));
    let both = read(&job(&list("/lists/*", &["email email"]), 0), store).unwrap().reports;
    let line = |bytes: &[u8], path: &str| format!("{}  {path}\n", hex::encode(Sha256::digest(bytes)));
    let mut lines = [line(a.as_bytes(), "/lists/a.csv"), line(&gzip(b.as_bytes()), "/lists/b.csv.gz")];
    lines.sort();
    assert_eq!(both[0].digest, hex::encode(Sha256::digest(lines.concat())));
    assert_eq!((both[0].rows, both[0].files), (4, 2));
}

#[test]
fn malformed_cells_are_told_by_their_physical_line() {
    for (path, text, line) in [
        ("/a.csv", "email,note\na@b.c,x\nbad,y\n", 3),
        ("/a.csv", "email,note\na@b.c,\"two\nlines, \"\"q\"\"\r\nthree\"\n\nbad,y\n", 6),
        ("/a.csv", "\u{feff}\n\"email\",\"no\nte\"\r\na@b.c,x\r\n\"bad\",\"y\n\n\"\r\n", 5),
        ("/a.csv", "email\na@b.c\n\r\nbad", 4),
        ("/a.tsv", "note\temail\n\"\n\"\ta@b.c\nx\tbad", 4),
        ("/a.txt", "\u{feff}a@b.c\n\n\nbad\n", 4),
        ("/a.ndjson", "{\"email\":\"a@b.c\"}\n \n{\"email\":\"bad\"}\n", 3),
        ("/a.csv", "email,note\na@b.c,x\n\"d@e.f, g@h.i\",y\n", 3),
        ("/a.txt", "d@e.f;g@h.i\na@b.c\n", 1),
    ] {
        for (path, bytes) in
            [(path.to_owned(), text.as_bytes().to_vec()), (format!("{path}.gz"), gzip(text.as_bytes()))]
        {
            let read = read(&job(&list(&path, &["email email"]), 1), ListStore::default().with(&path, bytes)).unwrap();
            let bad = &read.reports[0].bad;
            assert_eq!((bad.len(), read.reports[0].malformed), (1, 1), "{text:?}");
            assert_eq!(bad[0].to_string(), format!("{path}:{line}: email is not an e-mail address"), "{text:?}");
            assert_eq!(read.entries, ["a@b.c"], "{text:?}");
        }
    }
}

#[test]
fn lines_that_end_with_a_carriage_return_alone_are_refused() {
    for (path, text, line) in [
        ("/a.csv", "email\ranna@example.com\rbob@example.com\r", 1),
        ("/a.csv", "email\nanna@example.com\rbob@example.com\n", 2),
        ("/a.txt", "anna@example.com\rbob@example.com", 1),
        ("/a.txt", "eve@example.com\nanna@example.com\rbob@example.com\r\n", 2),
    ] {
        let error = refusal(path, text.as_bytes().to_vec(), &["email email"]);
        assert!(error.message.contains("a carriage return stands alone"), "{}", error.message);
        assert!(
            error.message.contains(&format!("line {line}")) || error.message.contains(&format!("{path}:{line}")),
            "{}",
            error.message
        );
        assert!(!error.message.contains("example.com"), "{}", error.message);
    }
}

#[test]
fn what_is_not_utf8_is_malformed_where_it_is_an_identifier_only() {
    for (path, bytes, line) in [
        ("/a.csv", &b"email,name\na@b.c,M\xfcller\nm\xfcller@b.c,x\n"[..], 3),
        ("/a.txt", b"a@b.c\nm\xfcller@b.c\n", 2),
    ] {
        let error = refusal(path, bytes, &["email email"]);
        assert!(error.message.ends_with(&format!("\n{path}:{line}: email is not UTF-8 text")), "{}", error.message);
    }
    let error = refusal("/a.csv", b"\xff\xfee\0m\0a\0i\0l\0".to_vec(), &["email email"]);
    assert_eq!(error.message, "list crm: /a.csv cannot be decoded: it is UTF-16; lists are read as UTF-8");
}

#[test]
fn more_malformed_rows_than_the_guard_allows_are_refused_with_the_first_twenty() {
    let text: String = "email,maid\n".to_owned() + &"bad,bad\n".repeat(12) + "a@b.c,\n";
    let columns = &["email email", "maid maid"];
    let store = ListStore::default().with("/a.csv", text);
    let read_12 = read(&job(&list("/a.csv", columns), 12), store.clone()).unwrap();
    assert_eq!((read_12.reports[0].rows, read_12.reports[0].malformed, read_12.reports[0].bad.len()), (13, 12, 20));
    assert_eq!(read_12.entries, ["a@b.c|-"]);
    let error = read(&job(&list("/a.csv", columns), 11), store).err().unwrap();
    let lines: Vec<&str> = error.message.lines().collect();
    assert_eq!((error.exit, lines.len()), (Exit::Usage, 21));
    assert_eq!(lines[0], "12 list rows are malformed, [guard] max_bad_list_rows allows 11");
    assert_eq!(lines[1], "/a.csv:2: email is not an e-mail address");
    assert_eq!(lines[2], "/a.csv:2: maid is not a mobile advertising id of 32 hex digits");
    assert!(error.hint.unwrap().contains("[guard] max_bad_list_rows"));
}

#[test]
fn the_good_cells_of_a_malformed_row_count() {
    let lists = list("/a.csv", &["email email", "id integer"]);
    let read = read(&job(&lists, 1), ListStore::default().with("/a.csv", "id,email\n7,bad\n")).unwrap();
    assert_eq!(read.entries, ["-|7"]);
}

#[test]
fn missing_lists_and_unreachable_stores_end_as_the_contract_says() {
    type Fault = fn(lakescrub::store::Location) -> StoreError;
    let denied: Fault = |location| StoreError::Denied { location, reason: "no".to_owned() };
    let unavailable: Fault = |location| StoreError::Unavailable { location, reason: "time-out".to_owned() };
    let archived: Fault = |location| StoreError::Archived { location, class: "GLACIER".to_owned() };
    for (fault, exit, named) in [
        (StoreError::NotFound as Fault, Exit::Usage, "/lists/a.csv does not exist"),
        (denied, Exit::Usage, "access to /lists/a.csv is denied"),
        (archived, Exit::Usage, "/lists/a.csv is archived"),
        (unavailable, Exit::Unavailable, "/lists/a.csv cannot be reached"),
        (StoreError::Changed, Exit::Conflict, "/lists/a.csv changed"),
    ] {
        for format in ["csv", "parquet", "ndjson", "txt"] {
            let lists = list("/lists/a.csv", &["email email"])
                .replace("[[list.column]]", &format!("format = \"{format}\"\n[[list.column]]"));
            let error = read(&job(&lists, 0), ListStore::default().with_fault("/lists/a.csv", fault)).err().unwrap();
            assert_eq!(error.exit, exit, "{format}: {}", error.message);
            assert!(error.message.starts_with(&format!("list crm cannot be read: {named}")), "{}", error.message);
        }
    }
    for (uri, wanted) in [
        ("/lists/none.csv", "list crm cannot be read: /lists/none.csv does not exist"),
        ("/lists/", "list crm is missing: /lists/ matches no file"),
        ("/lists/*.csv", "list crm is missing: /lists/*.csv matches no file"),
    ] {
        let error = read(&job(&list(uri, &["email email"]), 0), ListStore::default()).err().unwrap();
        assert_eq!((error.exit, error.message.as_str()), (Exit::Usage, wanted));
    }
}

#[test]
fn a_file_that_lacks_a_listed_column_is_refused_with_the_columns_it_has() {
    let file = emails_as_parquet(&[Some("a@b.c")]);
    for (path, bytes, wanted) in [
        ("/a.csv", b"id,mail\n1,a@b.c\n".to_vec(), "; it has id, mail"),
        ("/a.csv", b"id,mail\n".to_vec(), "; it has id, mail"),
        ("/a.tsv", b"id,mail\n".to_vec(), ""),
        ("/a.ndjson", b"{\"mail\":\"a@b.c\",\"id\":1}\n".to_vec(), "; it has id, mail"),
        ("/a.parquet", file, "; it has id, email"),
        ("/a.csv", b"anna@example.com,1\nbob@example.com,2\n".to_vec(), ""),
    ] {
        let error = refusal(path, bytes, &["e-mail email"]);
        assert_eq!(error.exit, Exit::Usage);
        assert_eq!(error.message, format!("list crm: {path} has no column \"e-mail\"{wanted}"));
    }
    let error = refusal("/a.csv", "EMAIL,Email\na@b.c,d@e.f\n", &["email email"]);
    assert_eq!(error.message, "list crm: /a.csv has more than one column \"email\"");
}

#[test]
fn what_cannot_be_decoded_is_refused_by_file_and_line() {
    let csv = b"email\nanna@example.com\nbob@example.com\n";
    let parquet = emails_as_parquet(&[Some("anna@example.com"); 100]);
    let mut damaged = parquet_of_one_column("anna@example.com");
    damaged[4..40].fill(0xff);
    let mut bad_checksum = gzip(csv);
    let crc = bad_checksum.len() - 6;
    bad_checksum[crc] ^= 1;
    for (path, bytes, place) in [
        ("/a.csv.gz", gzip(csv)[..30].to_vec(), ""),
        ("/a.csv.gz", bad_checksum, ""),
        ("/a.csv.gz", csv.to_vec(), ""),
        ("/a.csv.gz", Vec::new(), ""),
        ("/a.csv.zst", zstd(csv)[..20].to_vec(), ""),
        ("/a.csv.zst", csv.to_vec(), ""),
        ("/a.txt.gz", gzip(csv)[..30].to_vec(), ""),
        ("/a.ndjson.gz", gzip(csv)[..30].to_vec(), ""),
        ("/a.csv", b"email,id\na@b.c,1\nc@d.e\n".to_vec(), ":3"),
        ("/a.csv", b"email,id\na@b.c,1\nc@d.e,2,3\n".to_vec(), ":3"),
        ("/a.csv", b"email,id\n\"a\n\",\"1\n\"\nc@d.e,\"2\nf@g.h,3\n".to_vec(), ":5"),
        ("/a.csv", b"email,id\na@b.c,5\" nail\nd@e.f,2\n".to_vec(), ":2"),
        ("/a.csv", b"email,id\na@b.c,\"1\"x\n".to_vec(), ":2"),
        ("/a.ndjson", b"{\"email\":\"a@b.c\"}\n\n{\"email\":\"c@d\n".to_vec(), ":3"),
        ("/a.ndjson", b"[\"a@b.c\"]\n".to_vec(), ":1"),
        ("/a.ndjson", b"{\"email\":\"a@b.c\"}{}\n".to_vec(), ":1"),
        ("/a.parquet", Vec::new(), ""),
        ("/a.parquet", csv.to_vec(), ""),
        ("/a.parquet", parquet[..parquet.len() / 2].to_vec(), ""),
        ("/a.parquet", damaged, ""),
    ] {
        let error = refusal(path, bytes, &["email email"]);
        assert_eq!(error.exit, Exit::Usage);
        let start = format!("list crm: {path}{place} cannot be decoded: ");
        assert!(error.message.starts_with(&start), "{start} not in {}", error.message);
    }
}

#[test]
fn large_files_keep_their_order_and_their_lines() {
    let rows = 200_000;
    let mut text = "note,email\n".to_owned();
    for i in 0..rows {
        let note = if i % 1000 == 0 { "\"two\nlines\"" } else { "x" };
        let email = if i == 150_001 { "bad".to_owned() } else { format!("U{i}@example.com") };
        text += &format!("{note},{email}\n");
    }
    let line = 1 + text.lines().position(|line| line == "x,bad").unwrap();
    let read = read(&job(&list("/a.csv", &["email email"]), 1), ListStore::default().with("/a.csv", text)).unwrap();
    assert_eq!((read.reports[0].rows, read.meter.rows(), read.meter.objects()), (rows, rows, 1));
    assert_eq!(read.reports[0].bad[0].line, line as u64);
    let wanted = (0..rows).filter(|i| *i != 150_001).map(|i| format!("u{i}@example.com"));
    assert!(wanted.eq(read.entries.iter().cloned()));
}

#[test]
fn no_error_ever_quotes_a_cell() {
    const CANARY: &str = "Canary7f3a91";
    let mut broken = parquet_of_one_column(&CANARY.repeat(20));
    let half = broken.len() / 2;
    broken[half..half + 20].fill(0xff);
    for (path, bytes) in [
        ("/a.csv", format!("email\n{CANARY}\n").into_bytes()),
        ("/a.csv", format!("{CANARY}@example.com\nx@{CANARY}\n").into_bytes()),
        ("/a.csv", format!("{CANARY}\nx@{CANARY}\n").into_bytes()),
        ("/a.csv", format!("email,x\n{CANARY}@example.com\n").into_bytes()),
        ("/a.csv", format!("email,x\n\"{CANARY}\"{CANARY},1\n").into_bytes()),
        ("/a.csv", format!("email,x\n\"{CANARY}").into_bytes()),
        ("/a.tsv", format!("email\n{CANARY}\n").into_bytes()),
        ("/a.txt", format!("{CANARY}\n").into_bytes()),
        ("/a.ndjson", format!("{{\"email\":\"{CANARY}\"}}\n").into_bytes()),
        ("/a.ndjson", format!("{{\"email\":[\"{CANARY}\"]}}\n").into_bytes()),
        ("/a.ndjson", format!("{{\"email\":\"{CANARY}\n").into_bytes()),
        ("/a.ndjson", format!("{{\"{CANARY}@example.com\":1}}\n").into_bytes()),
        ("/a.parquet", parquet_of_one_column(CANARY)),
        ("/a.parquet", broken),
    ] {
        let error = refusal(path, bytes.clone(), &["email email"]);
        let told = format!("{error:?} {error}").to_lowercase();
        assert!(!told.contains(&CANARY.to_lowercase()), "{path} {}: {told}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn the_sample_lists_hold_what_is_expected_of_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let expected = std::fs::read_to_string(root.join("sample_data/expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let job = Job::read(&root.join("jobs/demo.toml"), &[]).unwrap();
    let files = ["crm_optouts.csv", "privacy_portal.ndjson", "broker_hashes.parquet"];
    let store = files.iter().fold(ListStore::default(), |store, file| {
        let path = root.join("sample_data/lists").join(file);
        store.with(path.to_str().unwrap(), std::fs::read(&path).unwrap())
    });
    for report in read(&job, store).unwrap().reports {
        let wanted = &expected["lists"][&report.name];
        assert_eq!(wanted["rows"].as_u64(), Some(report.rows), "{}", report.name);
        assert_eq!(report.malformed, 0, "{}", report.name);
    }
}

#[test]
fn a_ledger_whose_files_are_gone_at_every_look_is_told_and_not_looked_for_forever() {
    let store = ListStore::default().with_fault("/state/ledger/1.parquet", StoreError::NotFound);
    let (listings, state) = (store.listings.clone(), Location::Local("/state".into()));
    let (store, key, nobody) = (store.stores().of(&state), Arc::new(TagKey::new([1; 32])), BTreeSet::new());
    let reading = verify_ledger::read(&store, &state, key, None, Timestamp::UNIX_EPOCH, &nobody);
    let error = tokio::runtime::Runtime::new().unwrap().block_on(reading).err().expect("no ledger");
    assert_eq!(error.exit, Exit::Conflict);
    assert!(error.message.contains("changed again and again"), "{}", error.message);
    assert_eq!(listings.load(Ordering::Relaxed), 5);
}
