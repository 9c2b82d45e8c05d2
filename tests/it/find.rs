//! Finding in Parquet: probing where values lie against its slow twin, the filter over arrays. A rule on a column of numbers, which
//! matches nothing, sends the same job the slow way.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use lakescrub::find::{Find, find};
use lakescrub::identifier::HashFunction;
use lakescrub::job::Job;
use lakescrub::match_index::Builder;
use lakescrub::meter::Meter;
use lakescrub::plan::Seen;
use lakescrub::request::Entry;
use parquet::basic::Encoding;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use roaring::RoaringTreemap;

use crate::lakescrub_runner::Lake;
use crate::memory_store::MemoryStore;
use crate::rewrite_parquet::{manners, written};
use crate::verify::with_other_row_groups;

const COLUMNS: [(&str, &str, &str); 5] = [
    ("email", "email", ""),
    ("user.email", "email", ""),
    ("tags", "text", ""),
    ("uid", "uuid", ""),
    ("hash", "email", "hashed = \"sha256-hex\""),
];

fn job(rules: &[(&str, &str, &str)]) -> Job {
    let rule = |(column, kind, more): &(&str, &str, &str)| {
        format!("[[dataset.match]]\ncolumn = \"{column}\"\nkind = \"{kind}\"\n{more}\n")
    };
    let rules: String = rules.iter().map(rule).collect();
    let text = format!(
        "version = 1\n[resources]\nthreads = 2\n[[list]]\nname = \"l\"\nuri = \"/l.csv\"\n\
         [[list.column]]\ncolumn = \"e\"\nkind = \"email\"\n[[list.column]]\ncolumn = \"t\"\nkind = \"text\"\n\
         [[list.column]]\ncolumn = \"u\"\nkind = \"uuid\"\n[[list.column]]\ncolumn = \"n\"\nkind = \"integer\"\n\
         [[dataset]]\nname = \"d\"\nuri = \"/lake/\"\n{rules}"
    );
    Job::parse(&text, Path::new("/"), &[]).unwrap()
}

/// Matching rows by object, and values that could not be compared by column.
type Found = (BTreeMap<String, Result<(u64, RoaringTreemap), String>>, BTreeMap<String, u64>);

fn found(rules: &[(&str, &str, &str)], files: Vec<(&str, Vec<u8>)>) -> Found {
    let job = job(rules);
    let mut builder = Builder::new(&job.lists, &job.datasets, [7; 16]);
    let uuid = "550e8400-e29b-41d4-a716-446655440000";
    for (email, text) in [("ann@example.org", "tag 3"), ("bo@example.org", "a\u{df}")] {
        let cells = [Some(email.as_bytes()), Some(text.as_bytes()), Some(uuid.as_bytes()), None];
        builder.add(Entry { list: &job.lists[0], cells: &cells });
    }
    let index = Arc::new(builder.finish().0);
    let store = MemoryStore::new(files);
    let spec = &job.datasets[0];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let find_it = Find {
        spec,
        store,
        matcher: Arc::new(index.matcher(0, spec)),
        resources: &job.resources,
        meter: Arc::new(Meter::default()),
        known: None,
    };
    let found = runtime.block_on(find(&find_it, jiff::Timestamp::UNIX_EPOCH)).unwrap();
    let seen = |seen| match seen {
        Seen::Rows { rows, matched } => Ok((rows, matched)),
        Seen::Skipped => Err("skipped".to_owned()),
        Seen::Failed { reason, .. } => Err(reason),
    };
    let findings = found.findings.into_iter();
    let objects = findings.map(|finding| (finding.object.location.file_name().to_owned(), seen(finding.seen)));
    (objects.collect(), found.not_comparable)
}

/// The same, both ways; they must agree.
fn both_ways(rules: &[(&str, &str, &str)], files: Vec<(&str, Vec<u8>)>) -> Found {
    let fast = found(rules, files.clone());
    let slow = found(&[rules, &[("n", "integer", "")]].concat(), files);
    assert_eq!(fast, slow);
    fast
}

fn email(i: usize) -> Option<String> {
    match i % 11 {
        0 => Some(" ANN@example.org".to_owned()),
        1 => Some("bo@example.org".to_owned()),
        2 => None,
        3 => Some(String::new()),
        4 => Some("no address".to_owned()),
        5 => Some("\u{e4}nn@example.org".to_owned()),
        _ => Some(format!("person{}@example.org", i % 97)),
    }
}

fn sha256_hex(text: &str) -> String {
    let mut digest = Vec::new();
    HashFunction::Sha256.digest(text.as_bytes(), &mut digest);
    hex::encode(digest)
}

fn people(rows: usize) -> RecordBatch {
    let emails: ArrayRef = Arc::new((0..rows).map(email).collect::<StringArray>());
    let inner: ArrayRef = Arc::new((0..rows).map(|i| email(i / 3)).collect::<LargeStringArray>());
    let user = StructArray::new(
        Fields::from(vec![Field::new("email", DataType::LargeUtf8, true)]),
        vec![inner],
        Some((0..rows).map(|i| i % 5 > 0).collect::<Vec<_>>().into()),
    );
    let mut tags = ListBuilder::new(StringBuilder::new());
    for i in 0..rows {
        (0..i % 4).for_each(|tag| tags.values().append_option((tag < 2).then(|| format!("tag {}", i % 7))));
        tags.append(i % 6 > 0);
    }
    let id = |i: usize| {
        let listed = hex::decode("550e8400e29b41d4a716446655440000").unwrap();
        if i.is_multiple_of(13) { listed } else { vec![i as u8; 16] }
    };
    let ids = FixedSizeBinaryArray::try_from_sparse_iter_with_size((0..rows).map(|i| (i % 9 > 0).then(|| id(i))), 16);
    let hashes: ArrayRef = Arc::new(
        (0..rows)
            .map(|i| Some(sha256_hex(&format!("{}@example.org", ["ann", "x", "bo"][i % 3]))))
            .collect::<StringArray>(),
    );
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("n", Arc::new(Int64Array::from_iter_values(0..rows as i64))),
        ("email", emails),
        ("user", Arc::new(user)),
        ("tags", Arc::new(tags.finish())),
        ("uid", Arc::new(ids.unwrap())),
        ("hash", hashes),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

#[test]
fn probing_finds_what_the_filter_finds_in_every_manner_of_writing() {
    let batch = people(1000);
    for (name, properties) in manners() {
        let (objects, not_comparable) =
            both_ways(&COLUMNS, vec![("/lake/a.parquet", written(&batch, properties).to_vec())]);
        let (rows, matched) = objects["a.parquet"].as_ref().unwrap_or_else(|reason| panic!("{name}: {reason}"));
        assert_eq!(*rows, 1000, "{name}");
        // By the hash alone two of three rows match.
        assert!(matched.len() > 700 && matched.len() < 1000, "{name}: {}", matched.len());
        assert_eq!(not_comparable["email"], 91, "{name}");
    }
}

#[test]
fn each_column_is_probed_alone_and_with_others() {
    let file = || vec![("/lake/a.parquet", written(&people(500), WriterProperties::default()).to_vec())];
    let of = |rules: &[(&str, &str, &str)]| both_ways(rules, file()).0["a.parquet"].clone().unwrap().1;
    let mut all = RoaringTreemap::new();
    for rule in COLUMNS {
        let matched = of(&[rule]);
        assert!(!matched.is_empty() && matched.len() < 500, "{rule:?}");
        all |= matched;
    }
    assert_eq!(of(&COLUMNS), all);
    let by_hand: RoaringTreemap = (0..500u64).filter(|i| matches!(i % 11, 0 | 1)).collect();
    assert_eq!(of(&COLUMNS[..1]), by_hand);
}

#[test]
fn many_objects_of_many_shapes_keep_their_rows() {
    let whole = people(400);
    let only = |names: &[&str]| {
        let columns = names.iter().map(|name| (*name, whole.column_by_name(name).unwrap().clone(), true));
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    };
    let turned = only(&["email", "n"]);
    let files = vec![
        ("/lake/a.parquet", written(&whole, WriterProperties::default()).to_vec()),
        ("/lake/b.parquet", written(&turned, manners().swap_remove(15).1).to_vec()),
        ("/lake/c.parquet", b"PAR1 no such thing".to_vec()),
        ("/lake/d.parquet", written(&only(&["n"]), WriterProperties::default()).to_vec()),
    ];
    let (objects, _) = both_ways(&COLUMNS[..1], files);
    assert_eq!(objects["a.parquet"], objects["b.parquet"]);
    assert!(objects["a.parquet"].is_ok() && objects["c.parquet"].is_err());
    assert_eq!(objects["d.parquet"], Err("has no column email".to_owned()));
}

#[test]
fn row_groups_numbered_alike_are_never_taken_for_each_other() {
    let small = WriterProperties::builder().set_max_row_group_row_count(Some(100)).build();
    let honest = written(&people(300), small).to_vec();
    let lying = with_other_row_groups(&honest, |group| group.into_builder().set_ordinal(0).build().unwrap());
    let files = || vec![("/lake/a.parquet", honest.clone()), ("/lake/b.parquet", lying.clone())];
    // Probing counts the groups itself.
    let (objects, _) = found(&COLUMNS[..1], files());
    assert_eq!(objects["a.parquet"], objects["b.parquet"]);
    // The filter's row numbers go by what the file says.
    let (objects, _) = found(&[COLUMNS[0], ("n", "integer", "")], files());
    assert!(objects["a.parquet"].is_ok());
    assert!(objects["b.parquet"].as_ref().unwrap_err().contains("not numbered in order"), "{objects:?}");
}

#[test]
fn a_chunk_that_is_broken_fails_its_object_alone() {
    let file = written(&people(300), WriterProperties::default()).to_vec();
    let broken = [&file[..1500], &[0xee; 1500], &file[3000..]].concat();
    let (objects, _) = found(&COLUMNS, vec![("/lake/a.parquet", file), ("/lake/b.parquet", broken)]);
    assert!(objects["a.parquet"].is_ok());
    let reason = objects["b.parquet"].as_ref().unwrap_err();
    assert!(reason.starts_with("cannot be decoded"), "{reason}");
}

fn cells() -> impl Strategy<Value = Vec<Option<String>>> {
    let cell = prop_oneof![
        3 => Just(Some("ann@example.org".to_owned())),
        1 => Just(Some("ANN@example.org ".to_owned())),
        2 => Just(None),
        1 => Just(Some("none".to_owned())),
        4 => "[a-c]{1,3}@[d-e]{1,2}".prop_map(Some),
    ];
    proptest::collection::vec(cell, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn probing_any_file_finds_what_the_filter_finds(cells in cells(), manner in 0..17usize, group in 1..60usize) {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..cells.len() as i64));
        let mut lists = ListBuilder::new(StringBuilder::new());
        for (i, cell) in cells.iter().enumerate() {
            (0..i % 3).for_each(|_| lists.values().append_option(cell.as_deref()));
            lists.append(i % 4 > 0);
        }
        let columns: Vec<(&str, ArrayRef)> =
            vec![("n", numbers), ("email", Arc::new(StringArray::from(cells))), ("tags", Arc::new(lists.finish()))];
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
        let properties = manners().swap_remove(manner).1.into_builder().set_max_row_group_row_count(Some(group))
            .set_data_page_row_count_limit(7).set_write_batch_size(3).set_sorting_columns(None).build();
        let rules = [("email", "email", ""), ("tags", "email", "")];
        both_ways(&rules, vec![("/lake/a.parquet", written(&batch, properties).to_vec())]);
    }
}

#[test]
fn parts_of_a_composite_below_one_list_match_within_one_element() {
    let list = |inner: ArrayRef, lengths: &[usize]| -> ArrayRef {
        let field = Arc::new(Field::new("item", inner.data_type().clone(), true));
        Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths.iter().copied()), inner, None))
    };
    let people = |first: &[&str], zips: &[&str], lengths: &[usize]| -> ArrayRef {
        let texts = |texts: &[&str]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
        let field = |name: &str, of: &ArrayRef| Arc::new(Field::new(name, of.data_type().clone(), true));
        // Each person has one list of ZIP codes.
        let (first, zips) = (texts(first), list(texts(zips), &vec![1; zips.len()]));
        let person =
            StructArray::from(vec![(field("first", &first), first.clone()), (field("zips", &zips), zips.clone())]);
        list(Arc::new(person), lengths)
    };
    let rows = people(
        &["ann", "bob", "ann", "bob", "ann", "eve", "ann"],
        &["91790", "10001", "10001", "91790", "91790", "91790", "10001"],
        &[2, 2, 0, 1, 2],
    );
    let alone: ArrayRef = Arc::new(StringArray::from(vec![Some("91790"), None, None, None, Some("91790")]));
    let batch = RecordBatch::try_from_iter([("people", rows), ("zip", alone)]).unwrap();
    let part = |column: &str, kind: &str, of: &str| {
        format!("{{ column = \"{column}\", kind = \"{kind}\", list_column = \"{of}\" }}")
    };
    for (zip, removed) in [("people.zips", &[0, 3][..]), ("zip", &[0, 4])] {
        let lake = Lake::new();
        let rule = format!("all = [{}, {}]", part("people.first", "text", "n"), part(zip, "zip", "z"));
        lake.write(
            "job.toml",
            format!(
                "version = 1\n[guard]\nmax_fraction = 1.0\n[[list]]\nname = \"l\"\nuri = \"l.csv\"\n\
                 [[list.column]]\ncolumn = \"n\"\nkind = \"text\"\n[[list.column]]\ncolumn = \"z\"\nkind = \"zip\"\n\
                 [[dataset]]\nname = \"d\"\nuri = \"lake/\"\n[[dataset.match]]\n{rule}\n"
            ),
        );
        lake.write("l.csv", "n,z\nann,91790\n");
        lake.write("lake/a.parquet", written(&batch, WriterProperties::default()));
        // Exit 0: the verifier found no other row that it would have removed.
        let said = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
        assert_eq!(said["datasets"][0]["rows"]["removed"], removed.len(), "{zip}");
        let kept: Vec<u32> = (0..5).filter(|row| !removed.contains(&(*row as usize))).collect();
        let kept = arrow::compute::take_record_batch(&batch, &UInt32Array::from(kept)).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(
            lake.read("lake/a.parquet"),
        ));
        let read: Vec<RecordBatch> = reader.unwrap().build().unwrap().map(Result::unwrap).collect();
        assert_eq!(arrow::compute::concat_batches(&batch.schema(), &read).unwrap(), kept, "{zip}");
    }
}

#[test]
fn links_are_followed_within_the_dataset_and_told_where_they_leave_it() {
    use std::os::unix::fs::symlink;
    let (rows, kept) = ("email\nanna@example.com\nbob@example.com\n", "email\nbob@example.com\n");
    let lake = Lake::of_customers(&["anna@example.com"]);
    let at = |name: &str| lake.path().join(name);
    lake.write("lake/a.csv", rows);
    lake.write("lake/day=1/b.csv", rows);
    lake.write("elsewhere/c.csv", rows);
    symlink("a.csv", at("lake/latest.csv")).unwrap();
    symlink("day=1", at("lake/today")).unwrap();
    symlink("../lake", at("lake/loop")).unwrap();
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!((lake.text("lake/latest.csv"), lake.text("lake/today/b.csv")), (kept.into(), kept.into()));
    assert!(at("lake/latest.csv").is_symlink() && at("lake/today").is_symlink());
    assert_eq!(lake.objects().len(), 2);

    lake.write("lake/a.csv", rows);
    symlink("../elsewhere", at("lake/day=2")).unwrap();
    for _ in 0..2 {
        lake.run(&["scrub", "job.toml"]).exits(3).says(&["symbolic link"]);
        assert_eq!((lake.text("lake/a.csv").as_str(), lake.text("elsewhere/c.csv").as_str()), (kept, rows));
    }
    lake.run(&["verify", "job.toml"]).exits(3);
    std::fs::remove_file(at("lake/day=2")).unwrap();

    // What leads to no file may be a volume that is not mounted, and is never passed over in silence.
    let (nowhere, pipe) = (at("lake/dangling.csv"), at("lake/pipe.csv"));
    symlink("nowhere.csv", &nowhere).unwrap();
    lake.run(&["scrub", "job.toml"]).exits(3).says(&["dangling.csv", "symbolic link to nothing"]);
    std::fs::remove_file(nowhere).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    lake.run(&["verify", "job.toml"]).exits(3);
    std::fs::remove_file(pipe).unwrap();
    lake.run(&["verify", "job.toml"]).exits(0);

    // A root that is a link is its target, and a dropped object goes itself, not only the way to it.
    symlink("elsewhere/c.csv", at("lake.csv")).unwrap();
    lake.write("elsewhere/c.csv", "email\nanna@example.com\n");
    let settings =
        ["--set", "dataset.0.uri=lake.csv", "--set", "dataset.0.when_empty=drop", "--set", "guard.max_fraction=1.0"];
    lake.run(&[&["scrub", "job.toml"][..], &settings].concat());
    assert!(!at("lake.csv").is_symlink() && !at("elsewhere/c.csv").exists());

    // The log of a live table is where the files really are.
    lake.write("table/_delta_log/00000000000000000000.json", "{}");
    lake.write("table/day=1/d.csv", rows);
    symlink("table/day=1", at("view")).unwrap();
    lake.run(&["scrub", "job.toml", "--set", "dataset.0.uri=view/"]).exits(3).says(&["Delta"]);
    assert_eq!(lake.text("table/day=1/d.csv"), rows);
}

#[test]
fn hard_links_that_keep_the_rows_are_told() {
    let lake = Lake::of_customers(&["anna@example.com"]);
    lake.write("lake/a.csv", "email\nanna@example.com\nbob@example.com\n");
    std::fs::hard_link(lake.path().join("lake/a.csv"), lake.path().join("kept.csv")).unwrap();
    lake.run(&["scrub", "job.toml"]).exits(0);
    let limits = lake.manifest()["limits"].to_string();
    assert!(limits.contains("1 of the changed files had other names (hard links)"), "{limits}");
    lake.run(&["scrub", "job.toml"]).exits(0);
    let limits = lake.manifest()["limits"].to_string();
    assert!(!limits.contains("hard links"), "{limits}");
}

#[test]
fn a_skipped_column_leaves_the_other_rules_at_work_in_every_format() {
    let lake = Lake::new();
    let part = |column: &str| format!("{{ column = \"{column}\", kind = \"text\", list_column = \"{column}\" }}");
    lake.write(
        "job.toml",
        format!(
            "version = 1\n[guard]\nmax_fraction = 1.0\n[[list]]\nname = \"l\"\nuri = \"l.csv\"\n\
             [[list.column]]\ncolumn = \"name\"\nkind = \"text\"\n[[list.column]]\ncolumn = \"town\"\nkind = \"text\"\n\
             [[list.column]]\ncolumn = \"phone\"\nkind = \"phone\"\n[[list.column]]\ncolumn = \"email\"\nkind = \"email\"\n\
             [[dataset]]\nname = \"d\"\nuri = \"lake/\"\nmissing_column = \"skip\"\n\
             [[dataset.match]]\ncolumn = \"phone\"\nkind = \"phone\"\n[[dataset.match]]\nall = [{}, {}]\n\
             [[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n",
            part("name"),
            part("town")
        ),
    );
    lake.write("l.csv", "name,town,phone,email\nann,Bonn,2125550101,ann@example.com\n");
    let column = |name, cells: [&str; 2]| (name, Arc::new(StringArray::from(cells.to_vec())) as ArrayRef);
    let batch = |columns: Vec<(&str, ArrayRef)>| {
        written(&RecordBatch::try_from_iter(columns).unwrap(), WriterProperties::default())
    };
    let (names, emails) = (["ann", "bo"], ["ann@example.com", "bo@example.com"]);
    lake.write("lake/a.parquet", batch(vec![column("name", names), column("email", emails)]));
    lake.write("lake/b.csv", "name,email\nann,ann@example.com\nbo,bo@example.com\n");
    lake.write("lake/c.ndjson", "{\"email\":\"ann@example.com\"}\n{\"email\":\"bo@example.com\"}\n");
    // The name answers one rule, and the others have nothing to ask.
    lake.write("lake/email=ann%40example.com/d.parquet", batch(vec![column("other", names)]));
    // No rule can be asked: left as it is.
    let left = batch(vec![column("name", names)]);
    lake.write("lake/e.parquet", left.clone());
    let plan = lake.run(&["plan", "job.toml", "--json"]).exits(3).json().to_string();
    assert!(plan.contains("1 of 2 rows match; lacks match column phone, town"), "{plan}");
    let said = lake.run(&["scrub", "job.toml", "--json"]).exits(3).json();
    assert_eq!(said["datasets"][0]["rows"]["removed"], 5, "{said:#}");
    assert_eq!(lake.text("lake/b.csv"), "name,email\nbo,bo@example.com\n");
    assert_eq!(lake.text("lake/c.ndjson"), "{\"email\":\"bo@example.com\"}\n");
    assert_eq!(lake.read("lake/e.parquet"), left);
    assert!(!lake.read("lake/a.parquet").windows(15).any(|bytes| bytes == b"ann@example.com"));
    lake.run(&["verify", "job.toml"]).exits(3);
}

#[test]
fn a_decimal_that_the_verifier_cannot_read_is_refused_before_anything_is_written() {
    let wide = Decimal256Array::from_iter_values([arrow::datatypes::i256::from(7), arrow::datatypes::i256::from(8)]);
    let wide = wide.with_precision_and_scale(50, 0).unwrap();
    let emails = StringArray::from(vec!["ann@example.org", "x@example.org"]);
    let batch =
        RecordBatch::try_from_iter(vec![("w", Arc::new(wide) as ArrayRef), ("email", Arc::new(emails))]).unwrap();
    let files = || vec![("/lake/a.parquet", written(&batch, WriterProperties::default()).to_vec())];
    let (objects, _) = found(&[("email", "email", ""), ("w", "integer", "")], files());
    let refused = objects["a.parquet"].as_ref().unwrap_err();
    assert!(refused.contains("match column w, a decimal of more than 38 digits"), "{refused}");
    // One that no rule names is carried along.
    let (objects, _) = found(&[("email", "email", "")], files());
    assert_eq!(objects["a.parquet"].as_ref().map(|(rows, matched)| (*rows, matched.len())), Ok((2, 1)));
}

#[test]
fn what_the_verifier_could_not_decode_is_refused_before_anything_is_removed() {
    let ids = (0..8).map(|i| [i as u8; 16]);
    let ids: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter(ids).unwrap());
    let batch = RecordBatch::try_from_iter([("uid", ids)]).unwrap();
    for (encoding, is_decoded) in
        [(Encoding::PLAIN, true), (Encoding::DELTA_BYTE_ARRAY, false), (Encoding::BYTE_STREAM_SPLIT, false)]
    {
        let properties = WriterProperties::builder().set_dictionary_enabled(false).set_encoding(encoding).build();
        let (objects, _) =
            found(&[("uid", "uuid", "")], vec![("/lake/a.parquet", written(&batch, properties).to_vec())]);
        let reason = objects["a.parquet"].as_ref().err();
        assert_eq!(reason.is_none(), is_decoded, "{encoding}: {reason:?}");
        assert!(reason.is_none_or(|reason| reason.ends_with("cannot be verified")), "{encoding}: {reason:?}");
    }
}
