//! Damaged files through the whole program: no panic gets out, nothing hangs, nothing blows up memory, a damaged object stays as it
//! was or is rewritten as a whole, and the objects beside it are done.
//!
//! A child process does the work, so that a stack overflow, an abort and a hang are seen too: `LAKESCRUB_FUZZ_CASES=20000` runs
//! more cases, `LAKESCRUB_FUZZ_SEED=n` one alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead, BufReader, Read};
use std::panic::AssertUnwindSafe;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::Int32Type;
use bytes::Bytes;
use lakescrub::error::Exit;
use lakescrub::job::Job;
use lakescrub::manifest::sha256_hex;
use lakescrub::meter::Meter;
use lakescrub::object_table::{self, ObjectRow};
use lakescrub::store::Location;
use lakescrub::{manifest_check, request, verify};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};

use crate::damage::{self, Dice};
use crate::fault_store::{Call, Fault, FaultStore, Flavour, OtherWriters, Schedule};
use crate::faults;

const CASE_SECONDS_MAX: u64 = 30;
const CASE_MIB_MAX: u64 = 300;
/// What may be asked for at once, touched or not.
const ALLOCATION_BYTES_MAX: usize = 512 << 20;

/// The system's allocator, but for the child it ends the process at an allocation past all reason and shows where it was asked for.
struct Bounded;

static BOUNDED: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

impl Bounded {
    fn check(bytes: usize) {
        if bytes > ALLOCATION_BYTES_MAX && BOUNDED.swap(false, Ordering::SeqCst) {
            eprintln!("{bytes} bytes at once\n{}", std::backtrace::Backtrace::force_capture());
            std::process::abort();
        }
    }
}

// SAFETY: every call goes to the system's allocator with the arguments as they came.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Bounded::check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Bounded::check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Bounded::check(bytes);
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

const CHILD: &str = "LAKESCRUB_FUZZ_CHILD";

/// The child's side: runs cases `first..last` and tells each on stdout. Without the parent's word it does nothing.
#[test]
fn worker() {
    let Ok(range) = std::env::var(CHILD) else { return };
    let (first, last) = range.split_once("..").unwrap();
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    BOUNDED.store(true, Ordering::SeqCst);
    for seed in first..last {
        println!("\nfuzz begins {seed}");
        let case = prepared(seed);
        let before = memory_mib("VmRSS:");
        // Resets the peak: proc(5), clear_refs.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(case));
        let grown = memory_mib("VmHWM:").saturating_sub(before);
        let failure = match outcome {
            Err(panic) => Some(format!("panic: {}", panic.downcast_ref::<String>().cloned().unwrap_or_default())),
            Ok(()) if grown > CASE_MIB_MAX => Some(format!("{grown} MiB more than before")),
            Ok(()) => None,
        };
        println!("\nfuzz ended {seed} {}", failure.unwrap_or_default().replace('\n', " "));
    }
}

fn memory_mib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn damaged_files_are_told_and_harm_nobody() {
    let (mut first, last) = match faults::number("LAKESCRUB_FUZZ_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, faults::number("LAKESCRUB_FUZZ_CASES").unwrap_or(220)),
    };
    let mut failures = Vec::new();
    while first < last {
        first = watch(first, last, &mut failures);
    }
    assert!(failures.is_empty(), "replay each with LAKESCRUB_FUZZ_SEED:\n{}", failures.join("\n"));
}

fn child(first: u64, last: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["fuzz::worker", "--exact", "--nocapture", "--test-threads=1"]);
    // Arenas of the C library keep memory by thread, which would blur what a case takes.
    command.env(CHILD, format!("{first}..{last}")).env("MALLOC_ARENA_MAX", "2").env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs cases from `first` on in a child until it ends, dies or hangs; where to go on.
fn watch(first: u64, last: u64, failures: &mut Vec<String>) -> u64 {
    let mut child = child(first, last);
    let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let (lines, heard) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(line) = line.strip_prefix("fuzz ") {
                let _ = lines.send(line.to_owned());
            }
        }
    });
    let mut running = None;
    loop {
        match heard.recv_timeout(Duration::from_secs(CASE_SECONDS_MAX)) {
            Ok(line) => {
                let mut words = line.splitn(3, ' ');
                let (word, seed) = (words.next().unwrap(), words.next().unwrap().parse::<u64>().unwrap());
                running = (word == "begins").then_some(seed);
                if let Some(failure) = words.next().filter(|failure| !failure.is_empty()) {
                    failures.push(format!("case {seed}: {failure}"));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                child.kill().unwrap();
                child.wait().unwrap();
                let seed = running.unwrap_or(first);
                failures.push(format!("case {seed}: no end after {CASE_SECONDS_MAX} s"));
                return seed + 1;
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = child.wait().unwrap();
                let errors = errors.join().unwrap();
                let Some(seed) = running else { return last };
                let lines: Vec<&str> = errors.lines().collect();
                let from = lines
                    .iter()
                    .rposition(|line| line.contains("bytes at once"))
                    .unwrap_or(lines.len().saturating_sub(6));
                let told = lines[from..].join("\n  ");
                failures.push(format!("case {seed}: the process died: {status}\n  {told}"));
                return seed + 1;
            }
        }
    }
}

type Case = Box<dyn FnOnce()>;

/// The case with its files made.
fn prepared(seed: u64) -> Case {
    let mut dice = Dice::new(seed);
    if let Some((name, make)) = MADE.get(seed as usize) {
        let made = vec![(*name, make())];
        return Box::new(move || damaged_lake(made));
    }
    match dice.below(8) {
        0..5 => {
            let objects = (0..8).map(|_| damaged_object(&mut dice)).collect();
            Box::new(move || damaged_lake(objects))
        }
        5 | 6 => Box::new(move || damaged_lists(&mut dice)),
        _ => Box::new(move || damaged_state(&mut dice)),
    }
}

/// Objects made to hurt.
type Made = (&'static str, fn() -> Vec<u8>);

const MADE: &[Made] = &[
    ("events/deep.parquet", || damage::deep_parquet(100_000)),
    ("events/deep.parquet", || damage::deep_parquet(2_000)),
    ("events/deep.parquet", || damage::deep_thrift(100_000)),
    ("clicks/deep.ndjson", || [vec![b'['; 500_000], b"\n".to_vec()].concat()),
    ("clicks/deep.ndjson", || "{\"email\":".repeat(200_000).into_bytes()),
    ("customers/bomb.csv.gz", || faults::gzip(&endless(b"id,email\n1,\""))),
    ("customers/bomb.csv.zst", || zstd::encode_all(endless(b"id,email\n1,\"").as_slice(), 3).unwrap()),
    ("clicks/bomb.ndjson.gz", || faults::gzip(&endless(b"{\"email\": \""))),
    ("customers/wide.csv", || [b"id,email\n".to_vec(), vec![b','; 20 << 20]].concat()),
    ("customers/empty.csv", Vec::new),
    ("events/empty.parquet", Vec::new),
    ("events/short.parquet", || b"PAR1PAR1".to_vec()),
];

/// A record without an end.
fn endless(start: &[u8]) -> Vec<u8> {
    [start.to_vec(), vec![b'a'; 300 << 20]].concat()
}

fn rows() -> RecordBatch {
    let count = 60;
    let emails = (0..count).map(|i| match i % 7 {
        0 => Some("ada@example.com".to_owned()),
        1 => None,
        _ => Some(format!("user{i}@x.org")),
    });
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..count));
    let emails: ArrayRef = Arc::new(StringArray::from_iter(emails));
    let lists = (0..count).map(|i| Some((0..i % 4).map(|j| Some(j as i32)).collect::<Vec<_>>()));
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists));
    RecordBatch::try_from_iter([("id", ids), ("email", emails), ("counts", lists)]).unwrap()
}

fn parquet(dice: &mut Dice) -> Vec<u8> {
    let compressions = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::default()),
        Compression::GZIP(Default::default()),
        Compression::LZ4_RAW,
    ];
    let properties = WriterProperties::builder()
        .set_compression(*dice.of(&compressions))
        .set_dictionary_enabled(dice.below(2) == 0)
        .set_bloom_filter_enabled(dice.below(3) == 0)
        .set_writer_version(*dice.of(&[WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0]))
        .set_max_row_group_row_count(Some(*dice.of(&[20, 1000])))
        .set_data_page_row_count_limit(*dice.of(&[7, 1000]))
        .set_write_batch_size(7)
        .build();
    let mut out = Vec::new();
    let batch = rows();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    out
}

fn text_rows() -> Vec<String> {
    let email = |i: usize| if i.is_multiple_of(5) { "bob@example.org".to_owned() } else { format!("user{i}@x.org") };
    (0..40).map(email).collect()
}

fn csv() -> Vec<u8> {
    faults::csv(&text_rows().iter().map(String::as_str).collect::<Vec<_>>())
}

fn ndjson() -> Vec<u8> {
    faults::ndjson(&text_rows().iter().map(String::as_str).collect::<Vec<_>>())
}

/// An object of some format, damaged before or after it was compressed.
fn damaged_object(dice: &mut Dice) -> (&'static str, Vec<u8>) {
    match dice.below(9) {
        0..3 => ("events/x.parquet", damage::parquet_number(&parquet(dice), dice)),
        3 => ("events/x.parquet", damage::bytes(&parquet(dice), dice)),
        4 => ("customers/x.csv", damage::bytes(&csv(), dice)),
        5 => ("customers/x.csv.gz", damage::bytes(&faults::gzip(&csv()), dice)),
        6 => ("customers/x.csv.zst", damage::bytes(&zstd::encode_all(csv().as_slice(), 3).unwrap(), dice)),
        7 => ("clicks/x.ndjson", damage::bytes(&ndjson(), dice)),
        _ => ("clicks/x.ndjson.gz", faults::gzip(&damage::bytes(&ndjson(), dice))),
    }
}

/// Where a damaged object lies: each under a number of its own.
fn at(number: usize, name: &str) -> Location {
    let (folder, file) = name.split_once('/').unwrap();
    faults::location(Flavour::Disk, &format!("lake/{folder}/{number}-{file}"))
}

/// A run over damaged objects beside whole ones.
fn damaged_lake(objects: Vec<(&'static str, Vec<u8>)>) {
    let store = faults::lake(Flavour::Disk);
    let damaged: Vec<(Location, Bytes)> =
        objects.into_iter().enumerate().map(|(number, (name, bytes))| (at(number, name), Bytes::from(bytes))).collect();
    damaged.iter().for_each(|(location, bytes)| store.set(location, bytes.clone()));
    let ended = faults::run(&store, Flavour::Disk, 0);
    let ended = ended.unwrap_or_else(|error| panic!("the run gave up: {error:?}"));
    assert!([Exit::Clean, Exit::Incomplete, Exit::Residue].contains(&ended.exit), "{:?}", ended.result);
    assert_eq!(store.violations(), [""; 0]);
    let rows = object_rows(&store);
    for (location, wish) in faults::lake(Flavour::Disk).wished() {
        assert_eq!(store.read(&location), Some(wish), "{location}, which is whole");
    }
    let mut all_read = true;
    for (location, bytes) in &damaged {
        let row = rows.iter().find(|row| row.location == location.to_string());
        let row = row.unwrap_or_else(|| panic!("{location} is in no row"));
        let outcome = row.outcome.name();
        all_read &= row.outcome.is_clean();
        assert!(row.outcome.is_clean() || row.reason.as_ref().is_some_and(|reason| !reason.is_empty()), "{row:?}");
        let now = store.read(location);
        let untouched = now.as_ref() == Some(bytes);
        if !untouched && outcome == "unreadable" {
            // One engine could read it, and it was rewritten as a whole; the other cannot, and that is told.
            assert_eq!(row.sha256, now.as_deref().map(sha256_hex), "{row:?}");
            assert!(row.reason.as_ref().is_some_and(|reason| reason.starts_with("not verified")), "{row:?}");
            continue;
        }
        assert_eq!(untouched, !["rewritten", "dropped"].contains(&outcome), "{location} is {outcome}: {row:?}");
    }
    assert!(all_read || ended.exit != Exit::Clean, "clean beside what was not read");
}

fn object_rows(store: &FaultStore) -> Vec<ObjectRow> {
    let tables = store.below(&faults::location(Flavour::Disk, "state/manifests/"));
    let (_, table) = tables.into_iter().find(|(location, _)| location.file_name() == "objects.parquet").unwrap();
    object_table::decode(table).unwrap()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// A damaged suppression list, through both readers of lists.
fn damaged_lists(dice: &mut Dice) {
    let listed: String = text_rows().iter().map(|email| format!("{email}\n")).collect();
    let (name, list) = match dice.below(9) {
        0 | 1 => ("list.parquet", damage::parquet_number(&parquet(dice), dice)),
        2 => ("list.parquet", damage::bytes(&parquet(dice), dice)),
        3 => ("list.csv", damage::bytes(&csv(), dice)),
        4 => ("list.csv.gz", damage::bytes(&faults::gzip(&csv()), dice)),
        5 => ("list.csv.zst", damage::bytes(&zstd::encode_all(csv().as_slice(), 3).unwrap(), dice)),
        6 => ("list.ndjson", damage::bytes(&ndjson(), dice)),
        7 => ("list.txt", damage::bytes(listed.as_bytes(), dice)),
        _ => ("list.txt.gz", damage::bytes(&faults::gzip(listed.as_bytes()), dice)),
    };
    let text = format!(
        "version = 1\n[guard]\nmax_bad_list_rows = 100000\n[[list]]\nname = \"l\"\nuri = \"/{name}\"\n[[list.column]]\n\
         column = \"email\"\nkind = \"email\"\n[[dataset]]\nname = \"d\"\nuri = \"/lake/\"\nformat = \"csv\"\n\
         [[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n"
    );
    let job = Job::parse(&text, std::path::Path::new("/"), &[]).unwrap();
    let store = FaultStore::new(Flavour::Disk, faults::location(Flavour::Disk, "lake/"), Arc::default())
        .with(faults::location(Flavour::Disk, name), list);
    let (stores, clock, meter) = (store.stores(), jiff::Timestamp::now, Meter::default());
    let read = block_on(request::read_lists(&job, &stores, &clock, &meter, &mut |_| {}));
    let verified = block_on(verify::verify(&job, &stores, &clock, &meter));
    for error in [read.as_ref().err(), verified.as_ref().err()].into_iter().flatten() {
        assert_eq!(error.exit, Exit::Usage, "{name}: {error:?}");
        assert!(!error.message.is_empty());
    }
}

/// A state with a manifest and the journal of a killed run, one file of it damaged: checked, and run on.
fn damaged_state(dice: &mut Dice) {
    let store = faults::lake(Flavour::Disk);
    faults::run(&store, Flavour::Disk, 0).unwrap();
    store.start(Schedule::once(Call::Put, "objects.parquet", Fault::Unavailable), OtherWriters::default());
    store.set(&faults::location(Flavour::Disk, "lake/customers/new.csv"), csv());
    faults::run(&store, Flavour::Disk, 0).unwrap_err();
    store.heal();
    let state = faults::location(Flavour::Disk, "state");
    let files: Vec<(Location, Bytes)> = store.below(&state).into_iter().collect();
    let (location, whole) = dice.of(&files).clone();
    let damaged = if location.file_name() == "objects.parquet" && dice.below(2) == 0 {
        damage::parquet_number(&whole, dice)
    } else {
        damage::bytes(&whole, dice)
    };
    store.set(&location, damaged);
    let checked = block_on(manifest_check::check(&state, &store.stores(), None));
    if let Err(error) = &checked {
        assert_eq!(error.exit, Exit::Untrusted, "{location}: {error:?}");
    }
    let ended = faults::run(&store, Flavour::Disk, 0);
    let exit = ended.as_ref().map_or_else(|error| error.exit, |ended| ended.exit);
    let honest = [Exit::Clean, Exit::Untrusted, Exit::Conflict, Exit::Incomplete, Exit::Residue];
    assert!(honest.contains(&exit), "{location}: {ended:?}");
    assert_eq!(store.violations(), [""; 0], "{location}");
}
