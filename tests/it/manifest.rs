//! Manifests in a state: what is published can be checked, by us and by `openssl`, and nothing can be changed unseen.

#[path = "../support/manifest_store.rs"]
mod manifest_store;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use lakescrub::chain::{self, Published};
use lakescrub::error::{Error, Exit};
use lakescrub::keys;
use lakescrub::manifest::Observed::{NotChecked, Seen};
use lakescrub::manifest::*;
use lakescrub::manifest_check::{CheckReport, KeyOrigin, check};
use lakescrub::manifest_diff::diff;
use lakescrub::object_table::{ObjectRow, Outcome};
use lakescrub::signature::{Envelope, SigningKey};
use lakescrub::store::{Location, Stores};

use manifest_store::{Fault, ManifestStore};

const RUNS: [&str; 3] = ["run-1", "run-2", "run-3"];
const FILES: [&str; 3] = ["objects.parquet", "manifest.json", "manifest.dsse.json"];

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

/// The same state on a disk and on S3: their names are put together differently.
fn states() -> [Location; 3] {
    [
        Location::Local("/lake/state".into()),
        Location::S3 { bucket: "privacy".into(), key: "lakescrub".into() },
        Location::S3 { bucket: "privacy".into(), key: String::new() },
    ]
}

fn a_state() -> Location {
    states().into_iter().next().expect("there are three")
}

fn file(state: &Location, run_id: &str, name: &str) -> Location {
    chain::run_folder(state, run_id).join(name)
}

fn head(state: &Location) -> Location {
    chain::head_location(state)
}

/// Two objects that lose `removed` rows each, and one that was never touched.
fn rows(removed: u64) -> Vec<ObjectRow> {
    let row = |name: &str, removed: u64| ObjectRow {
        etag: Some(format!("\"{name}-{removed}\"")),
        rows_scanned: Some(100 - removed),
        rows_matched: Some(removed),
        rows_redacted: Some(0),
        rows_before: Some(100),
        rows_removed: Some(removed),
        rows_after: Some(100 - removed),
        outcome: if removed > 0 { Outcome::Rewritten } else { Outcome::Unchanged },
        checked_by: Some("polars 0".into()),
        ..ObjectRow::new("events", format!("s3://lake/events/{name}"))
    };
    vec![row("a", removed), row("b", removed), row("c", 0)]
}

fn observed(run_id: &str, rows: &[ObjectRow]) -> Observations {
    let now = "2026-01-02T03:04:05Z".parse().expect("this is a time");
    Observations {
        run: Run {
            id: run_id.into(),
            started_at: now,
            finished_at: now,
            command: "scrub".into(),
            exit: 0,
            resumed: false,
            tool: Tool { name: "lakescrub".into(), version: "0".into(), digest: NotChecked },
            job: JobFile { name: "nightly".into(), digest: "00".into() },
            stages: vec![Stage { name: StageName::Find, seconds: 0.5 }],
        },
        lists: vec![],
        normaliser: Normaliser { version: "1".into(), self_test: Seen("passed".into()) },
        datasets: vec![DatasetRecord {
            name: "events".into(),
            uri: "s3://lake/events/".into(),
            action: "delete".into(),
            listed_at: Seen(now),
            objects: ObjectCounts::tally("events", rows, Seen(0)),
            rows: RowCounts::tally("events", rows),
            not_comparable: NotChecked,
            undeclared: NotChecked,
            strays_redacted: NotChecked,
            versions: VersionCounts::default(),
            uploads: UploadCounts::default(),
        }],
        verification: Verification {
            engine: "polars".into(),
            engine_version: "0".into(),
            pruning: false,
            objects: Seen(3),
            rows: Seen(300),
            residue: Residue { rows: Seen(0), ..Residue::default() },
            canaries: Canaries::default(),
        },
        ledger: None,
        limits: vec!["backups were not looked at".into()],
        verdict: Verdict::Clean,
    }
}

async fn publish(
    store: &ManifestStore,
    state: &Location,
    run_id: &str,
    removed: u64,
    seed: u8,
) -> Result<Published, Error> {
    let rows = rows(removed);
    chain::publish(store, state, observed(run_id, &rows), rows, &key(seed)).await
}

async fn three_runs(state: &Location) -> ManifestStore {
    let store = ManifestStore::default();
    for (removed, run_id) in RUNS.iter().enumerate() {
        publish(&store, state, run_id, removed as u64, 1).await.expect("a run is published");
    }
    store
}

async fn check_at(store: &ManifestStore, target: &Location, public_key: Option<&Path>) -> Result<CheckReport, Error> {
    check(target, &stores(store.copy()), public_key).await
}

fn stores(store: ManifestStore) -> Stores {
    let store = Arc::new(store);
    Stores::new(store.clone(), store)
}

fn pem_file(folder: &Path, seeds: &[u8]) -> std::path::PathBuf {
    let path = folder.join(format!("{seeds:?}.pub"));
    std::fs::write(&path, seeds.iter().map(|seed| key(*seed).public_key().to_pem()).collect::<String>()).unwrap();
    path
}

#[tokio::test]
async fn a_clean_state_passes_and_the_report_says_what_was_checked() {
    for state in states() {
        let store = three_runs(&state).await;
        let report = check_at(&store, &state, None).await.unwrap();
        assert_eq!(report.runs.iter().map(|run| run.run_id.as_str()).collect::<Vec<_>>(), RUNS);
        assert_eq!(report.trusted.origin, KeyOrigin::State);
        assert_eq!(report.runs.iter().map(|run| run.proofs).collect::<Vec<_>>(), [3, 3, 3]);
        let text = report.lines().join("\n");
        for told in [
            "run run-3: scrub at 2026-01-02T03:04:05Z, 3 objects, verdict clean",
            "checked: the signature of 3 manifests, with key ",
            "(the copy in the state; --public-key names one to trust instead)",
            "checked: 9 inclusion proofs",
            "checked: the chain of 3 manifests from run run-1 to run run-3 is whole, and HEAD.json names the last",
            "not checked: whether the key is the right one",
            "not checked: whether the whole state was put back",
            "not checked: the data itself",
        ] {
            assert!(text.contains(told), "{told} is missing in\n{text}");
        }
        assert_eq!(serde_json::to_value(&report).unwrap()["runs"][2]["verdict"], "clean");
        assert_eq!(check_at(&store, &state.join("manifests"), None).await.unwrap().runs, report.runs);
    }
}

#[tokio::test]
async fn one_runs_folder_is_checked_with_its_neighbour_or_says_what_it_needs() {
    for state in states() {
        let store = three_runs(&state).await;
        let folder = chain::run_folder(&state, "run-2");
        for target in [folder.clone(), folder.join(""), folder.join("manifest.json")] {
            let lines = check_at(&store, &target, None).await.unwrap().lines().join("\n");
            assert!(lines.contains("checked: run run-2 is chained to run run-1, which is there"), "{lines}");
            assert!(lines.contains("not checked: the rest of the chain: needs the state"), "{lines}");
        }
        let keys = tempfile::tempdir().unwrap();
        let given = pem_file(keys.path(), &[1]);
        let alone = ManifestStore::default();
        let elsewhere = Location::Local("/copies/run-2".into());
        for name in FILES {
            alone.write(&elsewhere.join(name), store.read(&folder.join(name)));
        }
        let report = check_at(&alone, &elsewhere, Some(&given)).await.unwrap();
        assert_eq!(report.trusted.origin, KeyOrigin::Given);
        let lines = report.lines().join("\n");
        assert!(lines.contains("not checked: the link to run run-1: needs the state"), "{lines}");
        assert!(lines.contains("(the key given with --public-key)"), "{lines}");

        let error = check_at(&alone, &elsewhere, None).await.unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.hint.unwrap().contains("--public-key"));

        store.remove(&file(&state, "run-1", "manifest.dsse.json"));
        let error = check_at(&store, &folder, None).await.unwrap_err();
        assert_eq!(error.exit, Exit::Untrusted);
        assert!(error.message.contains("run-1") && error.message.contains("is missing"), "{error}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_a_usage_error() {
    let store = three_runs(&a_state()).await;
    for path in ["/lake", "/nowhere", "/lake/state/manifests/run-9", "/lake/state/keys"] {
        let error = check_at(&store, &Location::Local(path.into()), None).await.unwrap_err();
        assert_eq!(error.exit, Exit::Usage, "{error}");
    }
    let no_key = check_at(&store, &a_state(), Some(Path::new("no/such.pub"))).await.unwrap_err();
    assert_eq!(no_key.exit, Exit::Usage);
}

/// xorshift64, so that the same bytes are flipped on every machine.
fn next_random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

#[tokio::test]
async fn one_flipped_bit_anywhere_fails() {
    let state = a_state();
    let store = three_runs(&state).await;
    let mut random = 0x5eed;
    let locations: Vec<Location> = store.files().keys().cloned().collect();
    assert_eq!(locations.len(), 3 * 3 + 2, "three files a run, the head and the key: {locations:?}");
    for location in locations {
        let whole = store.read(&location).to_vec();
        let mut places: Vec<usize> = (0..16).map(|_| next_random(&mut random) % whole.len()).collect();
        places.extend([0, whole.len() / 2, whole.len() - 2, whole.len() - 1]);
        for place in places {
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << (next_random(&mut random) % 8);
            store.write(&location, flipped);
            let mut targets = vec![state.clone()];
            targets.extend(
                RUNS.map(|run_id| chain::run_folder(&state, run_id))
                    .into_iter()
                    .filter(|folder| chain::below(folder, &location).is_some()),
            );
            for target in targets {
                match check_at(&store, &target, None).await {
                    Ok(_) => panic!("byte {place} of {location} was flipped, and {target} passed"),
                    Err(error) => {
                        assert_eq!(error.exit, Exit::Untrusted, "{error}");
                        assert!(error.message.starts_with("cannot trust "), "{error}");
                    }
                }
            }
        }
        store.write(&location, whole);
    }
    check_at(&store, &state, None).await.expect("all is as it was");
}

fn swap(store: &ManifestStore, a: &Location, b: &Location) {
    let (in_a, in_b) = (store.read(a), store.read(b));
    store.write(a, in_b);
    store.write(b, in_a);
}

fn drop_run(store: &ManifestStore, state: &Location, run_id: &str) {
    FILES.iter().for_each(|name| store.remove(&file(state, run_id, name)));
}

/// Signs a run's statement again after `change`, with both of its files rewritten.
fn sign_again(store: &ManifestStore, state: &Location, run_id: &str, seed: u8, change: impl Fn(String) -> String) {
    let text = String::from_utf8(store.read(&file(state, run_id, "manifest.json")).to_vec()).unwrap();
    let payload = change(text);
    store.write(&file(state, run_id, "manifest.json"), payload.clone());
    store
        .write(&file(state, run_id, "manifest.dsse.json"), key(seed).seal(PAYLOAD_TYPE, payload.as_bytes()).to_bytes());
}

#[tokio::test]
async fn what_was_dropped_swapped_or_forged_fails_and_is_named() {
    type Attack = fn(&ManifestStore, &Location);
    let cases: [(&str, &str, Attack); 19] = [
        ("the middle run is dropped", "run run-2 is missing: run run-3", |s, at| drop_run(s, at, "run-2")),
        ("the first run is dropped", "run run-1 is missing: run run-2", |s, at| drop_run(s, at, "run-1")),
        ("the last run is dropped", "names run run-3 as the last, which is missing", |s, at| drop_run(s, at, "run-3")),
        ("only the last signature is dropped", "names run run-3 as the last", |s, at| {
            s.remove(&file(at, "run-3", "manifest.dsse.json"));
        }),
        ("all runs are dropped", "names run run-3 as the last", |s, at| {
            RUNS.iter().for_each(|run_id| drop_run(s, at, run_id));
        }),
        ("the head is dropped", "HEAD.json: is missing", |s, at| s.remove(&head(at))),
        ("the head is edited", "does not fit its content", |s, at| {
            let text = String::from_utf8(s.read(&head(at)).to_vec()).unwrap();
            s.write(&head(at), text.replace("run-3", "run-2"));
        }),
        ("two tables are swapped", "objects.parquet: does not have the digest", |s, at| {
            swap(s, &file(at, "run-1", "objects.parquet"), &file(at, "run-2", "objects.parquet"));
        }),
        ("two whole runs are swapped", "is the manifest of run run-2, but lies in folder run-1", |s, at| {
            FILES.iter().for_each(|name| swap(s, &file(at, "run-1", name), &file(at, "run-2", name)));
        }),
        ("a run is copied to a second folder", "is the manifest of run run-3, but lies in folder run-4", |s, at| {
            FILES.iter().for_each(|name| s.write(&file(at, "run-4", name), s.read(&file(at, "run-3", name))));
        }),
        ("the decoded manifest is edited", "manifest.json: is not the statement that was signed", |s, at| {
            let location = file(at, "run-2", "manifest.json");
            let text = String::from_utf8(s.read(&location).to_vec()).unwrap();
            s.write(&location, text.replace("nightly", "weekly"));
        }),
        ("the decoded manifest is dropped", "manifest.json: is missing", |s, at| {
            s.remove(&file(at, "run-2", "manifest.json"));
        }),
        ("a table is dropped", "objects.parquet: is missing", |s, at| s.remove(&file(at, "run-2", "objects.parquet"))),
        ("a run is signed by a foreign key", "which is not trusted", |s, at| {
            sign_again(s, at, "run-2", 2, |text| text.replace("nightly", "weekly"));
        }),
        ("the key in the state is a foreign one", "which is not trusted", |s, at| {
            s.write(&at.join("keys").join("signing.pub"), key(2).public_key().to_pem());
        }),
        ("history is signed anew with the right key", "run-1 is not the one that run run-2 was chained to", |s, at| {
            sign_again(s, at, "run-1", 1, |text| text.replace("nightly", "weekly"));
        }),
        ("a total is a lie, signed with the right key", "rows before is 999, its objects make 300", |s, at| {
            sign_again(s, at, "run-3", 1, |text| text.replace("\"before\": 300", "\"before\": 999"));
        }),
        ("the Merkle root is a lie, signed with the right key", "Merkle root is not the one", |s, at| {
            sign_again(s, at, "run-3", 1, |text| {
                let at = text.find("merkle_root\": \"").expect("it is there") + 15;
                format!("{}{}{}", &text[..at], "0".repeat(64), &text[at + 64..])
            });
        }),
        ("the payload type is another", "payload type", |s, at| {
            let location = file(at, "run-3", "manifest.dsse.json");
            let envelope = Envelope::from_bytes(&s.read(&location)).unwrap();
            let payload = envelope.payload_unchecked().unwrap();
            s.write(&location, key(1).seal("text/plain", &payload).to_bytes());
        }),
    ];
    for state in states() {
        let store = three_runs(&state).await;
        for (name, wish, attack) in &cases {
            let attacked = store.copy();
            attack(&attacked, &state);
            match check_at(&attacked, &state, None).await {
                Ok(report) => panic!("{name}, and it passed: {:#?}", report.lines()),
                Err(error) => {
                    assert_eq!(error.exit, Exit::Untrusted, "{name}: {error}");
                    assert!(error.message.contains(wish), "{name}: {error} should tell: {wish}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_fork_fails() {
    let state = a_state();
    let store = three_runs(&state).await;
    let other = ManifestStore::default();
    for (removed, run_id) in ["run-1", "run-2", "run-3b"].iter().enumerate() {
        publish(&other, &state, run_id, removed as u64, 1).await.unwrap();
    }
    for name in FILES {
        store.write(&file(&state, "run-3b", name), other.read(&file(&state, "run-3b", name)));
    }
    let error = check_at(&store, &state, None).await.unwrap_err();
    assert_eq!(error.exit, Exit::Untrusted);
    assert!(error.message.contains("the chain forks: runs run-3 and run-3b both follow run run-2"), "{error}");
    let error = publish(&store, &state, "run-4", 1, 1).await.unwrap_err();
    assert_eq!(error.exit, Exit::Untrusted, "nothing is chained to a fork: {error}");
}

#[tokio::test]
async fn a_history_signed_anew_by_a_stranger_fails_with_the_key_one_trusts() {
    let state = a_state();
    let forged = ManifestStore::default();
    for run_id in RUNS {
        publish(&forged, &state, run_id, 0, 2).await.unwrap();
    }
    let keys = tempfile::tempdir().unwrap();
    // Without a key of one's own there is nothing to tell the stranger by, and the report says so.
    let lines = check_at(&forged, &state, None).await.unwrap().lines().join("\n");
    assert!(lines.contains("not checked: whether the key is the right one"), "{lines}");
    for target in [state.clone(), chain::run_folder(&state, "run-1")] {
        let error = check_at(&forged, &target, Some(&pem_file(keys.path(), &[1]))).await.unwrap_err();
        assert_eq!(error.exit, Exit::Untrusted);
        assert!(error.message.contains("which is not trusted"), "{error}");
    }
}

#[tokio::test]
async fn a_changed_key_leaves_the_old_runs_checkable() {
    let state = a_state();
    let store = three_runs(&state).await;
    publish(&store, &state, "run-4", 1, 2).await.unwrap();
    publish(&store, &state, "run-5", 1, 2).await.unwrap();
    assert_eq!(check_at(&store, &state, None).await.unwrap().runs.len(), 5);

    let keys = tempfile::tempdir().unwrap();
    for (seeds, passes) in [(&[1u8, 2][..], true), (&[1], false), (&[2], false)] {
        let result = check_at(&store, &state, Some(&pem_file(keys.path(), seeds))).await;
        assert_eq!(result.is_ok(), passes, "{result:?}");
    }
    let copy = state.join("keys").join(&format!("{}.pub", key(2).public_key().keyid()));
    store.write(&copy, key(3).public_key().to_pem());
    let error = check_at(&store, &state, None).await.unwrap_err();
    assert!(error.message.contains("is not the public key that was put there"), "{error}");
}

#[tokio::test]
async fn a_stop_before_any_write_is_repaired_by_the_next_run() {
    for state in states() {
        for runs_before in 0..=1 {
            let mut stops = 0;
            for puts in 0.. {
                let store = ManifestStore::default();
                for run_id in &RUNS[..runs_before] {
                    publish(&store, &state, run_id, 0, 1).await.unwrap();
                }
                store.with_fault(Fault::KilledBefore(puts));
                let Err(error) = publish(&store, &state, "run-k", 1, 1).await else { break };
                stops += 1;
                assert_eq!(error.exit, Exit::Unavailable);
                store.with_fault(Fault::None);
                let signed = store.files().contains_key(&file(&state, "run-k", "manifest.dsse.json"));
                let latest = chain::latest(&store, &state).await.unwrap().map(|latest| latest.run_id);
                let wish = if signed { Some("run-k") } else { RUNS[..runs_before].last().copied() };
                assert_eq!(latest.as_deref(), wish, "stopped before put {puts}");
                match check_at(&store, &state, None).await {
                    Ok(report) => assert_eq!(report.runs.len(), runs_before + usize::from(signed)),
                    Err(error) => assert!(error.exit == Exit::Usage && runs_before == 0 && !signed, "{error}"),
                }

                // Another run, or the same one resumed with other times and counts: both leave one whole chain.
                let other = store.copy();
                publish(&other, &state, "run-z", 2, 1).await.unwrap();
                let runs = check_at(&other, &state, None).await.unwrap().runs;
                assert_eq!(runs.len(), runs_before + usize::from(signed) + 1, "stopped before put {puts}");

                let resumed = publish(&store, &state, "run-k", 2, 1).await.unwrap();
                assert_eq!(resumed.existed, signed);
                let report = check_at(&store, &state, None).await.unwrap();
                assert_eq!(report.runs.len(), runs_before + 1);
                assert_eq!(report.runs[runs_before].digest, resumed.digest);
                let lines = report.lines().join("\n");
                assert!(lines.contains("HEAD.json names the last"), "{lines}");
            }
            assert_eq!(stops, if runs_before == 0 { 6 } else { 4 }, "key, head, three files, head");
        }
    }
}

#[tokio::test]
async fn a_lost_reply_is_not_taken_for_a_conflict() {
    let state = a_state();
    for put in 0..6 {
        let store = ManifestStore::default();
        store.with_fault(Fault::ReplyLost(put));
        publish(&store, &state, "run-1", 1, 1).await.unwrap();
        check_at(&store, &state, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_run_stopped_before_it_signed_is_told_and_the_rest_passes() {
    let state = a_state();
    let store = three_runs(&state).await;
    store.write(&file(&state, "run-x", "objects.parquet"), "half");
    let lines = check_at(&store, &state, None).await.unwrap().lines().join("\n");
    assert!(lines.contains("not checked: run run-x: it was stopped before it signed a manifest"), "{lines}");
    let error = check_at(&store, &chain::run_folder(&state, "run-x"), None).await.unwrap_err();
    assert_eq!(error.exit, Exit::Untrusted);
}

#[tokio::test]
async fn a_signed_manifest_is_never_overwritten() {
    let state = a_state();
    let store = three_runs(&state).await;
    let before = store.files().clone();
    let again = publish(&store, &state, "run-2", 50, 1).await.unwrap();
    assert!(again.existed);
    assert_eq!(again.previous.unwrap().run_id, "run-1");
    assert_eq!(*store.files(), before);
}

#[tokio::test]
async fn counts_that_do_not_add_up_are_not_signed_and_leave_no_manifest() {
    let state = a_state();
    let store = three_runs(&state).await;
    let mut rows = rows(5);
    let run = observed("run-4", &rows);
    rows[0].rows_after = Some(96);
    let error = chain::publish(&store, &state, run, rows, &key(1)).await.unwrap_err();
    assert_eq!(error.exit, Exit::Internal);
    assert!(!store.files().keys().any(|location| location.to_string().contains("run-4")));
}

#[tokio::test]
async fn diff_tells_what_changed_and_only_between_checked_manifests() {
    let state = a_state();
    let store = three_runs(&state).await;
    let [first, second] = ["run-1", "run-2"].map(|run_id| chain::run_folder(&state, run_id));
    let all = stores(store.copy());
    let report = diff(&first, &second, &all, None).await.unwrap();
    let lines = report.lines().join("\n");
    for told in [
        "from run run-1 (scrub of 2026-01-02T03:04:05Z) to run run-2",
        "dataset events: rows.removed 0 -> 2",
        "dataset events: objects.rewritten 0 -> 2",
        "dataset events: changed s3://lake/events/a: other content, rows 100 -> 99, unchanged -> rewritten",
    ] {
        assert!(lines.contains(told), "{told} is missing in\n{lines}");
    }
    assert_eq!(serde_json::to_value(&report).unwrap()["datasets"][0]["counts"]["rows.removed"]["b"], 2);
    let same = diff(&first, &first, &all, None).await.unwrap().lines();
    assert_eq!(same.last().unwrap(), "nothing changed");
    assert_eq!(diff(&first, &state, &all, None).await.unwrap_err().exit, Exit::Usage);

    sign_again(&store, &state, "run-2", 2, |text| text);
    let error = diff(&first, &second, &stores(store), None).await.unwrap_err();
    assert_eq!(error.exit, Exit::Untrusted);
}

/// What docs/audit.md shows; run in a run's folder, with `$KEY` the public key.
const CHECK_WITH_OPENSSL: &str = r#"
jq -r .payload manifest.dsse.json | base64 -d > statement.json
cmp statement.json manifest.json
type=$(jq -r .payloadType manifest.dsse.json)
{ printf 'DSSEv1 %d %s %d ' "${#type}" "$type" "$(wc -c < statement.json)"; cat statement.json; } > pae.bin
jq -r '.signatures[0].sig' manifest.dsse.json | base64 -d > sig.bin
openssl pkeyutl -verify -pubin -inkey "$KEY" -rawin -in pae.bin -sigfile sig.bin
test "$(jq -r .predicate.objects.sha256 statement.json)" = "$(openssl dgst -sha256 -r objects.parquet | cut -d' ' -f1)"
"#;

fn has_openssl_and_jq() -> bool {
    let there = ["openssl version", "jq --version"].iter().all(|command| run_shell(Path::new("."), command).0);
    if !there {
        eprintln!("openssl or jq is not installed: the check with stock tools was not run");
    }
    there
}

/// Whether it succeeded, and its output.
fn run_shell(folder: &Path, script: &str) -> (bool, String) {
    let mut shell = Command::new("sh");
    shell.arg("-ec").arg(script).current_dir(folder).env("KEY", "../signing.pub");
    let output = shell.output().expect("there is a shell");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn openssl_and_jq_check_a_manifest_without_us() {
    if !has_openssl_and_jq() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = keys::generate_keys(&folder.path().join("keys")).unwrap();
    let signing = keys::load_signing_key(&lakescrub::job::KeySource::File(made.signing_key)).unwrap();
    let (store, state) = (ManifestStore::default(), a_state());
    let rows = rows(3);
    chain::publish(&store, &state, observed("run-1", &rows), rows, &signing).await.unwrap();
    let run = folder.path().join("run-1");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(folder.path().join("signing.pub"), store.read(&state.join("keys").join("signing.pub"))).unwrap();
    for name in FILES {
        std::fs::write(run.join(name), store.read(&file(&state, "run-1", name))).unwrap();
    }

    let (passed, output) = run_shell(&run, CHECK_WITH_OPENSSL);
    assert!(passed && output.contains("Signature Verified Successfully"), "{output}");

    for name in FILES {
        let whole = std::fs::read(run.join(name)).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(run.join(name), flipped).unwrap();
        let (passed, output) = run_shell(&run, CHECK_WITH_OPENSSL);
        assert!(!passed, "a byte of {name} was flipped: {output}");
        std::fs::write(run.join(name), whole).unwrap();
    }
}

#[test]
fn openssl_reads_our_keys_and_we_read_those_of_openssl() {
    if !has_openssl_and_jq() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = keys::generate_keys(folder.path()).unwrap();
    let (passed, public) = run_shell(folder.path(), "openssl pkey -in signing.key -pubout");
    assert!(passed, "{public}");
    assert_eq!(public, std::fs::read_to_string(&made.public_key).unwrap());
    let der = "openssl pkey -pubin -in signing.pub -outform DER | openssl dgst -sha256 -r";
    assert!(run_shell(folder.path(), der).1.starts_with(&made.keyid));

    let (passed, output) = run_shell(
        folder.path(),
        "openssl genpkey -algorithm ed25519 -out theirs.key; openssl pkey -in theirs.key -pubout -out theirs.pub",
    );
    assert!(passed, "{output}");
    let theirs = keys::load_signing_key(&lakescrub::job::KeySource::File(folder.path().join("theirs.key"))).unwrap();
    assert_eq!(keys::load_public_keys(&folder.path().join("theirs.pub")).unwrap(), [theirs.public_key()]);
}
