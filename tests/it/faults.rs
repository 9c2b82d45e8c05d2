//! Whole runs on a store that fails: whatever happens, no kept row is lost, no object is half-written, the exit code is honest, and
//! the next undisturbed run ends clean with the lake of a run that was never disturbed.
//!
//! `LAKESCRUB_FAULT_SCHEDULES=2000` runs more schedules, `LAKESCRUB_FAULT_SEED=n` one alone, with a log of its faults.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use clap::Parser;
use jiff::{SignedDuration, Timestamp};
use lakescrub::cli::{Cli, Common};
use lakescrub::error::{Error, Exit};
use lakescrub::job::Job;
use lakescrub::manifest_check;
use lakescrub::run::{RunResult, scrub_with};
use lakescrub::session::Clock;
use lakescrub::store::Location;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use crate::fault_store::{Call, Fault, FaultStore, Flavour, OtherWriters, Schedule, Wish, Wishes, draw};

const LISTED: [&str; 2] = ["ada@example.com", "bob@example.org"];

/// One CSV, Parquet or NDJSON object; `emails` names its rows, with other cells that must survive.
pub fn csv(emails: &[&str]) -> Vec<u8> {
    let rows = emails.iter().enumerate().map(|(i, email)| format!("{i},\"{email}\",\"a, \"\"b\"\"\"\r\n"));
    std::iter::once("id,email,note\r\n".to_owned()).chain(rows).collect::<String>().into_bytes()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn ndjson(emails: &[&str]) -> Vec<u8> {
    let rows = emails.iter().enumerate().map(|(i, email)| format!("{{\"id\": {i}, \"email\": \"{email}\"}}\n"));
    rows.collect::<String>().into_bytes()
}

/// Two rows a row group.
fn parquet(emails: &[&str]) -> Vec<u8> {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..emails.len() as i64));
    let emails: ArrayRef = Arc::new(StringArray::from_iter_values(emails));
    let batch = RecordBatch::try_from_iter([("id", ids), ("email", emails)]).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    out
}

/// The lake, by name below its prefix, and what other writers may put there.
struct Pool {
    lake: Vec<(&'static str, Vec<u8>)>,
    overwrite: Vec<(&'static str, Vec<u8>)>,
    land: Vec<(&'static str, Vec<u8>)>,
}

fn pool() -> Pool {
    let [ada, bob] = LISTED;
    Pool {
        lake: vec![
            ("events/a.parquet", parquet(&["eve@x.org", ada, "kim@x.org", "lee@x.org", bob, "max@x.org"])),
            ("events/b.parquet", parquet(&["eve@x.org", "kim@x.org"])),
            ("events/c.parquet", parquet(&[ada, bob, ada])),
            ("customers/a.csv", csv(&["eve@x.org", bob, "kim@x.org"])),
            ("customers/b.csv.gz", gzip(&csv(&[ada, "lee@x.org"]))),
            ("customers/c.csv", csv(&["max@x.org"])),
            ("customers/d.csv", csv(&[ada, ada])),
            ("clicks/a.ndjson", ndjson(&["eve@x.org", ada])),
        ],
        overwrite: vec![
            ("events/a.parquet", parquet(&[bob, "zoe@x.org"])),
            ("events/b.parquet", parquet(&["zoe@x.org", ada, "eve@x.org"])),
            ("customers/a.csv", csv(&["zoe@x.org"])),
            ("customers/a.csv", csv(&["zoe@x.org", ada])),
            ("customers/d.csv", csv(&[ada, "zoe@x.org"])),
            ("clicks/a.ndjson", ndjson(&[bob, "zoe@x.org"])),
        ],
        land: vec![
            ("events/late.parquet", parquet(&["late@x.org", ada])),
            ("customers/late.csv", csv(&[bob, "late@x.org"])),
            ("customers/late2.csv", csv(&["late@x.org"])),
            ("clicks/late.ndjson", ndjson(&[ada])),
        ],
    }
}

/// Rows of the lake that match.
const ROWS_MATCHED: u64 = 2 + 3 + 1 + 1 + 2 + 1;

/// Keys of the tests, made once; the tag key must be the same for all, so that a redacted object has the same bytes.
fn keys() -> &'static Path {
    static KEYS: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = KEYS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        lakescrub::keys::generate_keys(&folder.path().join("keys")).unwrap();
        folder
    });
    made.path()
}

fn job(root: &str) -> Job {
    let dataset = |name: &str, rest: &str| {
        format!(
            "[[dataset]]\nname = \"{name}\"\nuri = \"{root}lake/{name}/\"\n{rest}\n[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n"
        )
    };
    let text = format!(
        r#"version = 1
name = "faults"
[state]
uri = "{root}state/"
signing_key = "keys/signing.key"
tag_key = "keys/tag.key"
[guard]
max_fraction = 1.0
[resources]
threads = 2
[[list]]
name = "optouts"
uri = "{root}optouts.csv"
[[list.column]]
column = "email"
kind = "email"
{}{}{}[dataset.redact]
email = "tag"
"#,
        dataset("events", "format = \"parquet\""),
        dataset("customers", "format = \"csv\"\nwhen_empty = \"drop\""),
        dataset("clicks", "action = \"redact\""),
    );
    Job::parse(&text, keys(), &[]).unwrap_or_else(|faults| panic!("{faults:?}"))
}

pub fn location(flavour: Flavour, name: &str) -> Location {
    match flavour {
        Flavour::S3 => Location::S3 { bucket: "bucket".to_owned(), key: name.to_owned() },
        Flavour::Disk => Location::Local(format!("/{name}").into()),
    }
}

fn root(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::S3 => "s3://bucket/",
        Flavour::Disk => "/",
    }
}

/// A store with the lists and no lake.
fn empty(flavour: Flavour, wishes: Wishes) -> FaultStore {
    let list = format!("email\n{}\n", LISTED.join("\n"));
    FaultStore::new(flavour, location(flavour, "lake/"), wishes).with(location(flavour, "optouts.csv"), list)
}

pub fn lake(flavour: Flavour) -> FaultStore {
    lake_of(flavour, &|_| true)
}

fn lake_of(flavour: Flavour, has: &dyn Fn(&str) -> bool) -> FaultStore {
    let objects = pool().lake.into_iter().filter(|(name, _)| has(name));
    let named = objects.map(|(name, bytes)| (location(flavour, &format!("lake/{name}")), bytes));
    named.fold(empty(flavour, wishes()), |store, (location, bytes)| store.with(location, bytes))
}

fn others(flavour: Flavour) -> OtherWriters {
    let named = |(name, bytes): (&str, Vec<u8>)| (location(flavour, &format!("lake/{name}")), Bytes::from(bytes));
    let pool = pool();
    OtherWriters {
        overwrite: pool.overwrite.into_iter().map(named).collect(),
        land: pool.land.into_iter().map(named).collect(),
    }
}

/// What an undisturbed run makes of every object that a test can see.
fn wishes() -> Wishes {
    static WISHES: OnceLock<Wishes> = OnceLock::new();
    let made = WISHES.get_or_init(|| {
        let pool = pool();
        let mut store = empty(Flavour::Disk, Arc::default());
        let mut before = BTreeMap::new();
        for (number, (name, bytes)) in pool.lake.into_iter().chain(pool.overwrite).chain(pool.land).enumerate() {
            let (folder, file) = name.split_once('/').unwrap();
            let at = location(Flavour::Disk, &format!("lake/{folder}/{number}-{file}"));
            before.insert(at.clone(), Bytes::from(bytes.clone()));
            store = store.with(at, bytes);
        }
        assert_eq!(run(&store, Flavour::Disk, 0).unwrap().exit, Exit::Clean);
        let wish = |(location, old): (Location, Bytes)| match store.read(&location) {
            None => (old, Wish::Dropped),
            Some(new) if new == old => (old, Wish::Kept),
            Some(new) => (old, Wish::Becomes(new)),
        };
        let wishes: HashMap<Bytes, Wish> = before.into_iter().map(wish).collect();
        let results = wishes.values().filter_map(|wish| match wish {
            Wish::Becomes(new) => Some((new.clone(), Wish::Kept)),
            Wish::Kept | Wish::Dropped => None,
        });
        let wishes: HashMap<Bytes, Wish> = results.collect::<Vec<_>>().into_iter().chain(wishes).collect();
        assert!(wishes.values().any(|wish| *wish == Wish::Dropped));
        Arc::new(wishes)
    });
    made.clone()
}

/// Time that jumps for a seed other than 0: by seconds, by days, and back.
fn clock(seed: u64) -> Clock {
    let start: Timestamp = "2026-11-25T12:00:00Z".parse().unwrap();
    let calls = AtomicU64::new(0);
    Arc::new(move || {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let jump = match (seed, draw(seed, ("clock", call)) % 8) {
            (0, _) | (_, 0..5) => 0,
            (_, 5) => 86_400 * 400,
            (_, 6) => -86_400 * 400,
            (_, _) => -7,
        };
        start + SignedDuration::from_secs(call as i64 + jump)
    })
}

fn common() -> Common {
    Cli::parse_from(["lakescrub", "--json", "--quiet", "scrub", "job.toml"]).common
}

pub fn run(store: &FaultStore, flavour: Flavour, clock_seed: u64) -> Result<RunResult, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(scrub_with(&common(), job(root(flavour)), store.stores(), clock(clock_seed)));
    runtime.shutdown_background();
    ended
}

/// The process that held the lock is dead: it was this one, so its start time is made another's.
fn bury_holder(store: &FaultStore, flavour: Flavour) {
    let at = location(flavour, "state/lock.json");
    let Some(bytes) = store.read(&at) else { return };
    let mut lock: Value = serde_json::from_slice(&bytes).unwrap();
    lock["process_started"] = Value::from("0");
    store.set(&at, serde_json::to_vec(&lock).unwrap());
}

/// Checks what a run says of itself against what the store knows.
#[track_caller]
fn assert_honest(store: &FaultStore, ended: &Result<RunResult, Error>, when: &str) {
    assert_eq!(store.violations(), [""; 0], "{when}\n{}", store.log());
    let exit = match ended {
        Ok(ended) => {
            let result: Value = serde_json::from_str(&ended.result).unwrap();
            let (verdict, code) = (&result["verdict"], &result["exit"]["code"]);
            assert_eq!(*verdict == "clean", ended.exit == Exit::Clean, "{when}: {verdict} with exit {code}");
            ended.exit
        }
        Err(error) => {
            assert_ne!(error.exit, Exit::Clean, "{when}");
            error.exit
        }
    };
    let faults_of_a_store = [Exit::Clean, Exit::Residue, Exit::Conflict, Exit::Incomplete, Exit::Unavailable];
    assert!(faults_of_a_store.contains(&exit), "{when}: {exit:?} {ended:?}\n{}", store.log());
    if exit == Exit::Clean {
        for (object, bytes, read) in store.last_listed() {
            let location = &object.location;
            assert_eq!(store.wish(&bytes), Wish::Kept, "{when}: clean with a match in {location}\n{}", store.log());
            assert!(read, "{when}: clean with {location} unread\n{}", store.log());
        }
    }
}

/// After all trouble: one more run ends clean with the lake of an undisturbed one, and its proof holds.
fn assert_recovers(store: &FaultStore, flavour: Flavour, rows_matched: Option<u64>, when: &str) {
    let log = store.log();
    store.heal();
    bury_holder(store, flavour);
    let ended = run(store, flavour, 0);
    assert_honest(store, &ended, when);
    let exit = ended.as_ref().map(|ended| ended.exit).map_err(|error| error.exit);
    assert_eq!(exit, Ok(Exit::Clean), "{when}: the next run: {ended:?}\n{log}");
    let lake = store.below(&location(flavour, "lake/"));
    assert!(lake == store.wished(), "{when}: another lake than that of an undisturbed run\n{log}");
    let left: Vec<Location> =
        [store.below(&location(flavour, "state/journal/")), store.below(&location(flavour, "state/lock.json"))]
            .into_iter()
            .flat_map(BTreeMap::into_keys)
            .collect();
    assert_eq!(left, [], "{when}: a journal or a lock stayed\n{log}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let checked = runtime.block_on(manifest_check::check(&location(flavour, "state"), &store.stores(), None));
    assert!(checked.is_ok(), "{when}: {checked:?}\n{log}");
    if let Some(rows_matched) = rows_matched {
        let rows = rows_accounted_for(store, flavour);
        assert_eq!(rows, rows_matched, "{when}: rows removed, by all manifests together\n{log}");
    }
}

/// Rows removed or redacted, by all manifests together.
fn rows_accounted_for(store: &FaultStore, flavour: Flavour) -> u64 {
    let manifests = store.below(&location(flavour, "state/manifests/"));
    let statements = manifests.iter().filter(|(location, _)| location.file_name() == "manifest.json");
    let rows = |bytes: &Bytes| -> u64 {
        let statement: Value = serde_json::from_slice(bytes).unwrap();
        let datasets = statement["predicate"]["datasets"].as_array().unwrap();
        let count = |dataset: &Value, name: &str| dataset["rows"][name].as_u64().unwrap_or(0);
        datasets.iter().map(|dataset| count(dataset, "removed") + count(dataset, "redacted")).sum()
    };
    statements.map(|(_, bytes)| rows(bytes)).sum()
}

fn undergo(seed: u64) {
    let flavour = if draw(seed, "flavour").is_multiple_of(2) { Flavour::S3 } else { Flavour::Disk };
    let schedule = Schedule::of(seed);
    let when = format!("LAKESCRUB_FAULT_SEED={seed} ({flavour:?}, {:?}, {} in 1024)", schedule.faults, schedule.rate);
    let store = lake(flavour);
    for attempt in 0..1 + draw(seed, "attempts") % 2 {
        store.start(Schedule { seed: seed ^ attempt << 32, ..schedule.clone() }, others(flavour));
        let ended = run(&store, flavour, seed);
        assert_honest(&store, &ended, &when);
        assert_eq!(store.uploads_left(), 0, "{when}: an upload was left behind\n{}", store.log());
        bury_holder(&store, flavour);
    }
    assert_recovers(&store, flavour, (!schedule.misleads()).then_some(ROWS_MATCHED), &when);
}

pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn whatever_a_store_does_no_kept_row_is_lost_and_the_exit_code_is_honest() {
    if let Some(seed) = number("LAKESCRUB_FAULT_SEED") {
        return undergo(seed);
    }
    let seeds = 1..=number("LAKESCRUB_FAULT_SCHEDULES").unwrap_or(100);
    let failed: Vec<u64> = seeds.filter(|seed| std::panic::catch_unwind(|| undergo(*seed)).is_err()).collect();
    assert_eq!(failed, [0; 0], "seeds that failed, to be replayed one by one with LAKESCRUB_FAULT_SEED");
}

#[test]
fn an_undisturbed_run_is_clean_and_accounts_for_every_row() {
    for flavour in [Flavour::S3, Flavour::Disk] {
        assert_recovers(&lake(flavour), flavour, Some(ROWS_MATCHED), "undisturbed");
    }
}

/// One fault in an otherwise undisturbed run, and how that run is to end.
#[test]
fn one_fault_ends_as_it_should() {
    use {Call::*, Fault::*};
    for (call, on, fault, exit) in [
        // Told apart from another's write, and settled in the same run.
        (Commit, "events/a.parquet", ReplyLost, Exit::Clean),
        (Commit, "customers/a.csv", ReplyLost, Exit::Clean),
        (Delete, "customers/d.csv", ReplyLost, Exit::Clean),
        (Put, "00000001.json", LooksChanged, Exit::Clean),
        (Put, "00000000.json", LooksChanged, Exit::Clean),
        (Put, "lock.json", LooksChanged, Exit::Clean),
        (Put, "manifest.dsse.json", LooksChanged, Exit::Clean),
        (Put, "HEAD.json", LooksChanged, Exit::Clean),
        // The object stays as it was, and the run says so.
        (Put, "00000001.json", Unavailable, Exit::Residue),
        (Put, "00000001.json", ReplyLost, Exit::Residue),
        (Commit, "events/a.parquet", Unavailable, Exit::Residue),
        (Write, "events/a.parquet", Unavailable, Exit::Residue),
        (Replace, "customers/a.csv", Unavailable, Exit::Residue),
        (GetRange, "events/a.parquet", Unavailable, Exit::Residue),
        (GetRange, "customers/a.csv", Truncated, Exit::Residue),
        (GetRange, "events/a.parquet", Truncated, Exit::Residue),
        (GetRange, "events/b.parquet", Truncated, Exit::Unavailable),
        // Nothing can be done without these.
        (GetRange, "optouts.csv", Truncated, Exit::Unavailable),
        (GetRange, "optouts.csv", Unavailable, Exit::Unavailable),
        (List, "lake/events", Unavailable, Exit::Unavailable),
        (List, "_delta_log", Unavailable, Exit::Unavailable),
        (Put, "lock.json", Unavailable, Exit::Unavailable),
        (Put, "objects.parquet", ReplyLost, Exit::Unavailable),
        // A page that came twice counts once; one that did not come is missed later.
        (List, "lake/customers", PageDoubled, Exit::Clean),
        (List, "lake/customers", PageLost, Exit::Clean),
        // Other writers: what lands is looked at as well, what changes under the run is told.
        (Commit, "customers/a.csv", Landed, Exit::Clean),
        (GetRange, "customers/c.csv", Landed, Exit::Clean),
        (Commit, "customers/a.csv", Overwritten, Exit::Conflict),
        (Commit, "events/a.parquet", Overwritten, Exit::Residue),
        (GetRange, "clicks/a.ndjson", Overwritten, Exit::Residue),
        (Delete, "customers/d.csv", Overwritten, Exit::Residue),
    ] {
        for flavour in [Flavour::S3, Flavour::Disk] {
            let when = format!("{flavour:?}: {fault:?} at {call:?} of {on}");
            let store = lake(flavour);
            store.start(Schedule::once(call, on, fault), others(flavour));
            let ended = run(&store, flavour, 0);
            assert!(store.log().contains(on), "{when}: it never happened");
            assert_honest(&store, &ended, &when);
            let ended_with = ended.as_ref().map_or_else(|error| error.exit, |ended| ended.exit);
            assert_eq!(ended_with, exit, "{when}: {ended:?}");
            assert_eq!(store.uploads_left(), 0, "{when}: an upload was left behind");
            let of_others = matches!(fault, Overwritten | Landed);
            assert_recovers(&store, flavour, (!of_others).then_some(ROWS_MATCHED), &when);
        }
    }
}

#[test]
fn what_an_earlier_attempt_removed_is_told_of_an_object_that_this_one_cannot_read() {
    for flavour in [Flavour::S3, Flavour::Disk] {
        let store = lake(flavour);
        store.start(Schedule::once(Call::Put, "signing.pub", Fault::Unavailable), OtherWriters::default());
        assert_eq!(run(&store, flavour, 0).unwrap_err().exit, Exit::Unavailable);
        store.start(Schedule::once(Call::GetRange, "events/c.parquet", Fault::Unavailable), OtherWriters::default());
        assert_eq!(run(&store, flavour, 0).unwrap().exit, Exit::Unavailable);
        assert_eq!(rows_accounted_for(&store, flavour), ROWS_MATCHED, "{flavour:?}");
    }
}

#[test]
fn what_the_store_corrupts_is_found_by_reading_back() {
    for (name, flavour) in [("events/a.parquet", Flavour::S3), ("customers/a.csv", Flavour::S3)] {
        let store = lake(flavour);
        store.start(Schedule::once(Call::Commit, name, Fault::Corrupted), OtherWriters::default());
        let ended = run(&store, flavour, 0).unwrap();
        let result: Value = serde_json::from_str(&ended.result).unwrap();
        assert_eq!(
            (ended.exit, result["verdict"].as_str()),
            (Exit::Incomplete, Some("incomplete")),
            "{name}: {result:#}"
        );
    }
}

/// A small lake, for a run has to die at each of its calls.
#[test]
fn a_run_that_dies_at_any_call_is_resumed_to_the_same_lake() {
    let objects = ["events/a.parquet", "customers/a.csv", "customers/d.csv", "clicks/a.ndjson"];
    let small = |flavour| lake_of(flavour, &|name| objects.contains(&name));
    // Dying after a call is dying before the next one, but for what the process may still do when the reply is lost.
    let thorough = number("LAKESCRUB_FAULT_SCHEDULES").is_some();
    for flavour in [Flavour::S3, Flavour::Disk] {
        for with_effect in [false, true].into_iter().take(1 + usize::from(thorough)) {
            for call in 0.. {
                let store = small(flavour);
                store.start(Schedule::killed_at(call, with_effect), OtherWriters::default());
                let ended = run(&store, flavour, 0);
                let when = format!("{flavour:?}, killed at call {call}, its effect there: {with_effect}");
                if store.calls() <= call {
                    assert_eq!(ended.unwrap().exit, Exit::Clean, "{when}");
                    break;
                }
                assert_honest(&store, &ended, &when);
                assert_recovers(&store, flavour, Some(2 + 1 + 2 + 1), &when);
            }
        }
    }
}
