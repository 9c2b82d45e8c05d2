//! Killed runs: whatever the moment, the next run ends with the lake of an undisturbed run and one honest manifest.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lakescrub::journal::Lock;
use lakescrub::store::local::LocalStore;
use lakescrub::store::{Location, Precondition, Store};
use rustix::process::{Pid, Signal, kill_process};

use crate::lakescrub_runner::{CUSTOMERS_JOB, Lake, ran};

/// Two datasets; one object is rewritten, one loses all rows, one is dropped, one has no match, one is redacted.
fn lake() -> Lake {
    let lake = Lake::of_customers(&["ada@example.com", "bob@example.org"]);
    let dropping = CUSTOMERS_JOB.replace("format = \"csv\"", "format = \"csv\"\nwhen_empty = \"drop\"");
    let second = r#"
[[dataset]]
name = "events"
uri = "events/"
action = "redact"

[[dataset.match]]
column = "email"
kind = "email"

[dataset.redact]
email = "tag"
"#;
    lake.write("job.toml", dropping + second);
    lake.write("lake/a.csv", "id,email\n1,ada@example.com\n2,eve@example.com\n");
    lake.write("lake/b.csv", "id,email\n1,bob@example.org\n2,ada@example.com\n");
    lake.write("lake/c.csv", "id,email\n1,eve@example.com\n");
    lake.write("lake/d.csv", "id,email\n1,eve@example.com\n2,bob@example.org\n3,bob@example.org\n");
    lake.write("events/e.ndjson", "{\"email\":\"ada@example.com\"}\n{\"email\":\"eve@example.com\"}\n");
    lake
}

const ROWS_BEFORE: u64 = 2 + 2 + 1 + 3 + 2;
const ROWS_REMOVED: u64 = 1 + 2 + 2;

/// A lake's data, but for tags: their key is another in each lake.
fn data(lake: &Lake) -> BTreeMap<String, Vec<u8>> {
    let mut data = lake.bytes("lake");
    for (name, bytes) in lake.bytes("events") {
        let text = String::from_utf8(bytes).unwrap();
        data.insert(
            name,
            text.lines().map(|line| if line.contains('@') { line } else { "tag" }).collect::<String>().into(),
        );
    }
    data
}

fn undisturbed() -> BTreeMap<String, Vec<u8>> {
    let lake = lake();
    lake.run(&["scrub", "job.toml"]).exits(0);
    data(&lake)
}

/// After the last attempt: the lake, one manifest that tells of all attempts, a whole chain, nothing left over.
#[track_caller]
fn assert_whole(lake: &Lake, wish: &BTreeMap<String, Vec<u8>>, when: &str) {
    assert_eq!(&data(lake), wish, "{when}");
    assert_eq!(lake.runs().len(), 1, "{when}: one run, however many attempts");
    let manifest = lake.manifest();
    let total = |count: &str| -> u64 {
        manifest["datasets"].as_array().unwrap().iter().map(|dataset| dataset["rows"][count].as_u64().unwrap()).sum()
    };
    let (before, removed, redacted, after) = (total("before"), total("removed"), total("redacted"), total("after"));
    assert_eq!((before, removed, redacted), (ROWS_BEFORE, ROWS_REMOVED, 1), "{when}: {manifest:#}");
    assert_eq!(before - removed, after, "{when}");
    let outcomes: Vec<&str> = lake.objects().values().map(|row| row.outcome.name()).collect();
    assert_eq!(outcomes, ["rewritten", "rewritten", "dropped", "unchanged", "rewritten"], "{when}");
    assert_eq!(lake.temporary_files(), [""; 0], "{when}");
    let leftovers: Vec<String> = lake
        .files(".lakescrub")
        .into_keys()
        .filter(|name| !name.starts_with("manifests/") && !name.starts_with("keys/"))
        .collect();
    assert_eq!(leftovers, [""; 0], "{when}: a journal or a lock stayed");
    lake.run(&["manifest", "check", ".lakescrub", "--public-key", "keys/signing.pub"]).exits(0);
}

/// Runs scrub until journal entry `entry` kills it; whether it was killed.
fn killed_after(lake: &Lake, entry: u64) -> bool {
    let mut command = lake.command(&["scrub", "job.toml"]);
    command.env("LAKESCRUB_TEST_KILL_AFTER_ENTRY", entry.to_string());
    let ran = ran(command);
    assert!(ran.code.is_none() || ran.code == Some(0), "{ran:?}");
    ran.code.is_none()
}

#[test]
fn a_killed_run_is_left_to_its_own_job() {
    let lake = lake();
    assert!(killed_after(&lake, 2));
    let killed = data(&lake);
    lake.run(&["scrub", "job.toml", "--set", "name=another"]).exits(6).says(&["never ended", "shares its state"]);
    assert_eq!(data(&lake), killed);
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_whole(&lake, &undisturbed(), "after another job was refused");
}

#[test]
fn a_run_killed_after_any_journal_entry_is_ended_by_the_next() {
    let wish = undisturbed();
    let mut entries = 0;
    for entry in 0.. {
        let lake = lake();
        if !killed_after(&lake, entry) {
            break;
        }
        let resumed = lake.run(&["scrub", "job.toml"]).exits(0).says(&["going on with a run that never ended"]);
        assert!(resumed.stdout.contains("verdict   clean (exit 0)"), "{}", resumed.stdout);
        assert_whole(&lake, &wish, &format!("killed after entry {entry}"));
        assert_eq!(lake.manifest()["run"]["resumed"], true);
        entries += 1;
    }
    // Begun, and two for each of the four objects that change.
    assert_eq!(entries, 9);
}

#[test]
fn a_run_killed_again_while_it_resumes_is_ended_by_the_third() {
    let wish = undisturbed();
    for (first, second) in [(1, 2), (1, 3), (3, 4), (4, 6), (7, 8)] {
        let lake = lake();
        // One object at a time, so that the entries have one order.
        lake.write("job.toml", lake.text("job.toml") + "\n[resources]\nthreads = 1\n");
        assert!(killed_after(&lake, first));
        assert!(killed_after(&lake, second), "killed after {first} and {second}");
        lake.run(&["scrub", "job.toml"]).exits(0);
        assert_whole(&lake, &wish, &format!("killed after {first} and {second}"));
    }
}

#[test]
fn an_object_rewritten_in_two_attempts_is_counted_from_its_first_row_to_its_last() {
    let lake = Lake::of_customers(&["ada@example.com"]);
    lake.write("lake/a.csv", "email\nada@example.com\neve@example.com\nbob@example.org\n");
    assert!(killed_after(&lake, 2), "the swap is done and confirmed");
    lake.write("optouts.csv", "email\nada@example.com\nbob@example.org\n");
    assert!(killed_after(&lake, 4));
    lake.run(&["scrub", "job.toml"]).exits(0);
    let row = &lake.objects()["lake/a.csv"];
    assert_eq!((row.rows_before, row.rows_removed, row.rows_after), (Some(3), Some(2), Some(1)));
    assert_eq!(lake.text("lake/a.csv"), "email\neve@example.com\n");
}

#[test]
fn verify_leaves_what_a_killed_scrub_began_to_the_next_scrub() {
    let lake = lake();
    // One object at a time: no second entry is half written when the first one kills, for verify to sweep away.
    lake.write("job.toml", lake.text("job.toml") + "\n[resources]\nthreads = 1\n");
    assert!(killed_after(&lake, 2));
    let (killed, journal) = (data(&lake), lake.bytes(".lakescrub/journal"));
    for set in ["name=customers", "name=another"] {
        // Rows are left that the killed run did not get to.
        lake.run(&["verify", "job.toml", "--set", set]).exits(4);
        let manifest = lake.manifest();
        assert!(manifest["limits"].to_string().contains("never ended"), "{manifest:#}");
        assert_eq!(
            (manifest["run"]["command"].as_str(), manifest["run"]["resumed"].as_bool()),
            (Some("verify"), Some(false))
        );
        assert_eq!((data(&lake), lake.bytes(".lakescrub/journal")), (killed.clone(), journal.clone()));
    }
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(data(&lake), undisturbed());
    let manifest = lake.manifest();
    let rows = |dataset: usize, count: &str| manifest["datasets"][dataset]["rows"][count].as_u64().unwrap();
    assert_eq!((rows(0, "removed"), rows(1, "redacted")), (ROWS_REMOVED, 1));
    assert!(lake.bytes(".lakescrub/journal").is_empty());
}

#[test]
fn no_run_leaves_the_folder_of_its_journal() {
    let lake = Lake::of_customers(&["ada@example.com"]);
    lake.write("lake/x.csv", "email\nada@example.com\nbob@example.com\n");
    let left = || std::fs::read_dir(lake.path().join(".lakescrub/journal")).map_or(0, Iterator::count);
    lake.run(&["scrub", "job.toml", "--set", "guard.max_fraction=0.0"]).exits(10);
    assert_eq!(left(), 0);
    // One of an earlier version's goes with it, and what holds something stays.
    std::fs::create_dir_all(lake.path().join(".lakescrub/journal/20260101T000000Z-1")).unwrap();
    lake.write(".lakescrub/journal/other/notes.txt", "kept");
    lake.run(&["scrub", "job.toml", "--set", "guard.max_fraction=1.0"]).exits(0);
    assert_eq!(left(), 1);
    assert_eq!(lake.text(".lakescrub/journal/other/notes.txt"), "kept");
}

#[test]
fn an_object_whose_name_is_hidden_is_found_again_after_a_kill() {
    // Dropped for its name, and killed before, after and after the confirmation of the drop.
    for entry in 1..4 {
        let lake = Lake::of_customers(&["ada@example.com"]);
        lake.write("lake/email=ada@example.com/a.csv", "id\n1\n2\n");
        lake.write("lake/b.csv", "id,email\n1,eve@example.com\n");
        let was_killed = killed_after(&lake, entry);
        let is_there = lake.path().join("lake/email=ada@example.com/a.csv").exists();
        for (name, bytes) in lake.bytes(".lakescrub") {
            assert!(!String::from_utf8_lossy(&bytes).contains("ada@"), "{name} after entry {entry}");
        }
        lake.run(&["scrub", "job.toml"]).exits(0);
        assert!(!lake.path().join("lake/email=ada@example.com/a.csv").exists());
        let manifest = lake.manifest();
        // A run that was not killed told of it already.
        let removed = if was_killed { 2 } else { 0 };
        assert_eq!(manifest["datasets"][0]["rows"]["removed"], removed, "entry {entry}, still there: {is_there}");
    }
}

/// The program, stopped at a moment that a test chose by looking at the folder.
fn scrub_until(lake: &Lake, moment: impl Fn() -> bool) -> Child {
    let mut command = lake.command(&["scrub", "job.toml", "-q"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !moment() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the moment never came");
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    child
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_run_killed_at_any_time_is_ended_by_the_next() {
    let wish = undisturbed();
    let begun = Instant::now();
    let whole = {
        let lake = lake();
        lake.run(&["scrub", "job.toml"]).exits(0);
        begun.elapsed()
    };
    for part in 1..=6u32 {
        let lake = lake();
        let begun = Instant::now();
        let mut child = scrub_until(&lake, || begun.elapsed() > whole * part / 8);
        child.kill().unwrap();
        child.wait().unwrap();
        let killed_at = format!("killed after {part}/8 of its time");
        let ended = !lake.runs().is_empty();
        lake.run(&["scrub", "job.toml"]).exits(0);
        if !ended {
            assert_whole(&lake, &wish, &killed_at);
        }
        assert_eq!(data(&lake), wish, "{killed_at}");
    }
}

/// Rows enough to be caught while one object is written.
fn large(lake: &Lake, name: &str, rows: u64) {
    let mut text = String::from("id,email,note\n1,ada@example.com,x\n");
    for row in 2..=rows {
        text.push_str(&format!("{row},eve{row}@example.com,{}\n", "n".repeat(80)));
    }
    lake.write(name, text);
}

#[test]
fn a_half_written_file_is_removed_by_the_next_run_and_a_living_writers_stays() {
    let lake = Lake::of_customers(&["ada@example.com"]);
    large(&lake, "lake/deep/a.csv", 40_000);
    let before = lake.bytes("lake");
    let mut child = scrub_until(&lake, || lake.files("lake").keys().any(|name| name.contains(".lakescrub-")));
    child.kill().unwrap();
    child.wait().unwrap();
    let left = lake.temporary_files();
    assert_eq!(left.iter().filter(|name| name.starts_with("lake/deep/")).count(), 1, "{left:?}");
    assert_eq!(lake.read("lake/deep/a.csv"), before["deep/a.csv"]);

    // Readers and a dry run leave it alone.
    let files = lake.files("");
    lake.run(&["plan", "job.toml"]).exits(0);
    assert_eq!(lake.files(""), files);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let living = runtime.block_on(async {
        let object = LocalStore.head(&Location::Local(lake.path().join("lake/deep/a.csv"))).await.unwrap();
        LocalStore.replace(&object, "living").await.unwrap()
    });
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(lake.temporary_files(), ["lake/deep/.lakescrub-living.tmp"]);
    drop(living);
    assert_eq!(lake.temporary_files(), [""; 0]);
}

#[test]
fn a_half_written_file_beside_a_links_target_is_removed_too() {
    let lake = Lake::of_customers(&["ada@example.com"]);
    lake.write("elsewhere/a.csv", "email\nada@example.com\n");
    lake.write("elsewhere/.lakescrub-dead.tmp", "eve@example.com\n");
    lake.write("one/b.csv", "email\n");
    lake.write("one/.lakescrub-dead.tmp", "eve@example.com\n");
    lake.write("lake/.keep", "");
    std::os::unix::fs::symlink("../elsewhere/a.csv", lake.path().join("lake/a.csv")).unwrap();
    let second =
        "\n[[dataset]]\nname = \"one\"\nuri = \"one/b.csv\"\n[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n";
    let first = CUSTOMERS_JOB.replace("uri = \"lake/\"", "uri = \"lake/a.csv\"");
    lake.write("job.toml", format!("{first}{second}"));
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(lake.temporary_files(), [""; 0]);
    assert_eq!(lake.text("elsewhere/a.csv"), "email\n");
    assert!(lake.path().join("lake/a.csv").is_symlink());
}

#[test]
fn a_living_holder_keeps_the_lock_and_a_dead_one_loses_it() {
    let lake = lake();
    let state = Location::Local(lake.path().join(".lakescrub"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store: std::sync::Arc<dyn Store> = std::sync::Arc::new(LocalStore);
    let lock = runtime.block_on(Lock::take(store.clone(), &state, "the-first-run")).unwrap();
    let before = lake.files("");
    for command in ["scrub", "verify"] {
        let pid = std::process::id().to_string();
        lake.run(&[command, "job.toml"]).exits(6).says(&["the-first-run", &pid, "holds the lock"]);
    }
    lake.run(&["plan", "job.toml"]).exits(0);
    assert_eq!(lake.files(""), before);
    runtime.block_on(lock.release()).unwrap();

    // A holder whose process number is another process by now, and one whose time is over on another machine.
    let here = runtime.block_on(async {
        let lock = Lock::take(store.clone(), &state, "dead").await.unwrap();
        let (_, bytes) = store.get(&state.join("lock.json")).await.unwrap();
        lock.release().await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()
    });
    let mut reused = here.clone();
    reused["process_started"] = "1".into();
    let mut expired = here;
    expired["host"] = "elsewhere".into();
    expired["expires_at"] = "2026-01-01T00:00:00Z".into();
    for dead in [reused, expired] {
        let bytes = serde_json::to_vec(&dead).unwrap();
        runtime.block_on(store.put(&state.join("lock.json"), bytes.into(), Precondition::None)).unwrap();
        lake.run(&["scrub", "job.toml"]).exits(0);
        assert!(!lake.path().join(".lakescrub/lock.json").exists());
    }
}

#[test]
fn a_signal_stops_the_run_between_objects_and_the_next_run_ends_it() {
    for (stop, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let lake = Lake::of_customers(&["ada@example.com"]);
        for object in 0..150 {
            lake.write(&format!("lake/{object:03}.csv"), "email\nada@example.com\neve@example.com\n");
        }
        let journal = lake.path().join(".lakescrub/journal");
        let entries = || {
            walkdir::WalkDir::new(&journal)
                .into_iter()
                .filter_map(Result::ok)
                .filter(|e| e.file_type().is_file())
                .count()
        };
        let mut child = scrub_until(&lake, || entries() >= 5);
        signal(&child, stop);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(entries() >= 5, "the journal stays");
        assert_eq!(lake.runs(), [""; 0], "no manifest of half a run");
        assert!(!lake.path().join(".lakescrub/lock.json").exists(), "the lock is given back");
        assert_eq!(lake.temporary_files(), [""; 0]);
        let untouched = lake.bytes("lake").values().filter(|bytes| bytes.len() > 30).count();
        assert!(untouched > 0, "it stopped before its end");

        lake.run(&["scrub", "job.toml", "-q"]).exits(0);
        assert!(lake.bytes("lake").values().all(|bytes| bytes == b"email\neve@example.com\n"));
        let rows = &lake.manifest()["datasets"][0]["rows"];
        assert_eq!([&rows["before"], &rows["removed"], &rows["after"]], [300, 150, 150]);
    }
}
