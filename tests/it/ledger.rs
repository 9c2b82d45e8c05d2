//! Runs on the request ledger: matching by tag, what a run records before and after it removes anything, and who came back.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use lakescrub::identifier::ColumnPath;
use lakescrub::job::Job;
use lakescrub::store::local::LocalStore;
use lakescrub::store::{Location, Object, Store, Stores};
use lakescrub::verify;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::lakescrub_runner::{Lake, ran};
use crate::s3::on_each_server;
use crate::s3_scrub::{self, LISTED, check_exit, records, without_the_listed};
use crate::s3_server::{Bucket, Kind, server};
use crate::versions::keep_versions;

const JOB: &str = r#"version = 1
name = "nightly"

[guard]
max_fraction = 1.0

[[list]]
name = "all"
uri = "ledger"

[[dataset]]
name = "people"
uri = "lake/"
[[dataset.match]]
column = "email"
kind = "email"
[[dataset.match]]
column = "phone_hash"
kind = "phone"
hashed = "sha256-base64"
[[dataset.match]]
column = "member"
kind = "text"
"#;

fn sha256(text: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(text))
}

fn parquet(rows: &[(&str, &str, i64)]) -> Vec<u8> {
    let text = |field: fn(&(&str, &str, i64)) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(field)))
    };
    let member: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2)));
    let columns =
        [("email", text(|row| row.0.to_owned())), ("phone_hash", text(|row| sha256(row.1))), ("member", member)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// Five people in every format: by e-mail, by the hash of a phone number, by a member number, and two whom nobody lists.
fn lake() -> Lake {
    let lake = Lake::new();
    lake.write("job.toml", JOB);
    write_data(&lake);
    lake
}

fn write_data(lake: &Lake) {
    let people = [
        ("Ada@Example.com", "4155550001", 1),
        ("bob@example.org", "4155559317", 2),
        ("eve@example.com", "4155550003", 4711),
        ("dan@example.com", "4155550004", 4),
        ("fay@example.com", "4155550005", 5),
    ];
    lake.write("lake/a.parquet", parquet(&people));
    let csv = people.map(|(email, phone, member)| format!("{email},{},{member}\n", sha256(phone)));
    lake.write("lake/b.csv", format!("email,phone_hash,member\n{}", csv.concat()));
    let lines = people.map(|(email, phone, member)| {
        format!("{{\"email\":\"{email}\",\"phone_hash\":\"{}\",\"member\":{member}}}\n", sha256(phone))
    });
    lake.write("lake/c.ndjson", lines.concat());
}

fn add(lake: &Lake, id: &str, identifier: &str) {
    lake.run(&["requests", "add", "job.toml", identifier, "--request-id", id]).exits(0);
}

/// Ada by e-mail, Bob by phone, Eve by her member number.
fn add_all(lake: &Lake) {
    add(lake, "R1", "email=ada@example.com");
    add(lake, "R2", "phone=+1 (415) 555-9317");
    add(lake, "R3", "text=4711");
}

pub fn requests(lake: &Lake) -> Vec<Value> {
    let told = lake.run(&["requests", "list", "job.toml", "--json"]).exits(0).json();
    told["requests"].as_array().unwrap().clone()
}

pub fn states(lake: &Lake) -> Vec<String> {
    let state =
        |request: &Value| format!("{} {}", request["request_id"].as_str().unwrap(), request["state"].as_str().unwrap());
    requests(lake).iter().map(state).collect()
}

pub fn events(lake: &Lake) -> Vec<Value> {
    let ran = lake.run(&["requests", "export", "job.toml", "--events", "--format", "ndjson"]).exits(0);
    ran.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect()
}

#[test]
fn matching_by_tag_finds_plain_values_hashes_and_numbers_in_every_format() {
    let lake = lake();
    add_all(&lake);
    let plan = lake.run(&["plan", "job.toml", "--json"]).exits(0).json();
    assert_eq!(plan["datasets"][0]["rows"]["matched"], 9, "{plan}");
    assert_eq!(plan["lists"][0]["identifiers"]["email"], 1, "{plan}");
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(scrub["datasets"][0]["rows"]["removed"], 9, "{scrub}");
    assert_eq!(scrub["verdict"], "clean");
    assert_eq!(scrub["lists"][0]["uri"], "ledger");
    let kept = lake.text("lake/b.csv");
    assert_eq!(kept.lines().count(), 3, "{kept}");
    assert!(kept.contains("dan@") && kept.contains("fay@"), "{kept}");
    let again = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(again["datasets"][0]["objects"]["rewritten"], 0);
    lake.run(&["manifest", "check", ".lakescrub"]).exits(0);
}

#[test]
fn the_verifier_sees_by_itself_what_the_ledger_asks_for() {
    let lake = lake();
    add_all(&lake);
    let ran = lake.run(&["verify", "job.toml", "--json"]).exits(4).json();
    assert_eq!(ran["verification"]["residue"]["rows"], 9, "{ran}");
    lake.run(&["requests", "withdraw", "job.toml", "R1"]).exits(0);
    lake.run(&["requests", "exempt", "job.toml", "R2", "--ground", "tax", "--until", "2040-01-01"]).exits(0);
    let ran = lake.run(&["verify", "job.toml", "--json"]).exits(4).json();
    assert_eq!(ran["verification"]["residue"]["rows"], 3, "{ran}");
    // When the exemption has ended, its rows count again.
    let later = lake.run(&["verify", "job.toml", "--json", "--now", "2040-01-02T00:00:00Z"]).exits(4).json();
    assert_eq!(later["verification"]["residue"]["rows"], 6, "{later}");
    // Running text is searched by tag, too.
    lake.write("lake/n.csv", "email,phone_hash,member,note\nx@example.com,,,call eve.b@example.com\n");
    add(&lake, "R4", "email=eve.b@example.com");
    let set = ["verify", "job.toml", "--json", "--search"];
    let ran = lake.run(&set).exits(4).json();
    assert_eq!(ran["datasets"][0]["undeclared"]["note"], 1, "{ran}");
}

#[test]
fn withdrawn_and_exempted_requests_are_not_removed() {
    let lake = lake();
    add_all(&lake);
    lake.run(&["requests", "withdraw", "job.toml", "R1"]).exits(0);
    lake.run(&["requests", "exempt", "job.toml", "R2", "--ground", "tax records"]).exits(0);
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(scrub["datasets"][0]["rows"]["removed"], 3, "{scrub}");
    assert!(lake.text("lake/b.csv").contains("Ada@") && lake.text("lake/b.csv").contains("bob@"));
}

#[test]
fn what_is_exempted_stays_whoever_else_asks_for_it() {
    let lake = lake();
    add_all(&lake);
    // Another request of Ada's, with Bob's phone number beside her address.
    let both = ["requests", "add", "job.toml", "email=ADA@example.com", "phone=4155559317", "--request-id", "R7"];
    lake.run(&[&both[..], &["--received-at", "2026-11-01", "--regime", "us-ca-ccpa-delete"]].concat()).exits(0);
    lake.run(&["requests", "exempt", "job.toml", "R1", "--ground", "legal hold", "--until", "2040-01-01"])
        .exits(0)
        .says(&["are held by this exemption as well"]);
    lake.run(&["gate", "job.toml", "lake/b.csv", "--json"]).exits(4);
    let plan = lake.run(&["plan", "job.toml", "--json"]).exits(0).says(&["are held by it"]).json();
    assert_eq!(plan["datasets"][0]["rows"]["matched"], 6, "{plan}");
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).says(&["are held by it"]).json();
    assert_eq!(scrub["datasets"][0]["rows"]["removed"], 6, "{scrub}");
    assert_eq!((&scrub["ledger"]["held"], &scrub["verdict"]), (&1.into(), &"clean".into()), "{}", scrub["ledger"]);
    let limits = lake.manifest()["limits"].to_string();
    assert!(limits.contains("1 requests name somebody whose data stay by the exemption of another"), "{limits}");
    assert!(lake.text("lake/b.csv").contains("Ada@") && !lake.text("lake/b.csv").contains("bob@"));
    // Nobody has looked for all of R7: it is not done with, and its deadline runs on.
    assert_eq!(states(&lake), ["R1 exempted", "R2 done", "R3 done", "R7 removed"]);
    let held = &requests(&lake)[3];
    assert_eq!((&held["held_by"], &held["verified"]), (&json!(["R1"]), &Value::Null), "{held}");
    let status = ["requests", "status", "job.toml", "--json", "--now", "2027-06-01T00:00:00Z", "--fail-on-overdue"];
    let status = lake.run(&status).exits(9).json();
    assert_eq!((&status["held"], &status["overdue_requests"]), (&1.into(), &json!(["R7"])), "{status}");
    let table = lake.run(&["requests", "list", "job.toml"]).exits(0).stdout;
    assert!(table.contains("removed (held)"), "{table}");
    // The gate lets pass what stays, with its probe file and without.
    for _ in 0..2 {
        lake.run(&["gate", "job.toml", "lake/b.csv"]).exits(0);
        std::fs::remove_file(lake.path().join(".lakescrub/probe/ledger.tags")).unwrap();
    }
    lake.run(&["verify", "job.toml"]).exits(0);
    // A withdrawal ends no exemption: only its time does.
    lake.run(&["requests", "withdraw", "job.toml", "R1"]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert!(lake.text("lake/b.csv").contains("Ada@"));
    let after = ["--now", "2040-01-02T00:00:00Z"];
    lake.run(&[&["gate", "job.toml", "lake/b.csv"], &after[..]].concat()).exits(4);
    lake.run(&[&["scrub", "job.toml"], &after[..]].concat()).exits(0);
    assert!(!lake.text("lake/b.csv").contains("Ada@"));
    assert_eq!(states(&lake)[3], "R7 done");
}

#[test]
fn an_identifier_that_is_added_to_a_request_is_looked_for_before_it_is_done() {
    let lake = lake();
    add_all(&lake);
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.write("lake/d.csv", "email,phone_hash,member\nzoe@example.com,,\n");
    add(&lake, "R1", "email=zoe@example.com");
    assert_eq!(states(&lake)[..2], ["R1 removed", "R2 done"]);
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!((&scrub["ledger"]["reappeared"], &scrub["datasets"][0]["rows"]["removed"]), (&0.into(), &1.into()));
    let first = &requests(&lake)[0];
    assert_eq!((&first["state"], &first["reappearances"]), (&"done".into(), &0.into()), "{first}");
    assert_eq!(first["verified"]["run_id"], scrub["run"]["id"]);
}

#[test]
fn a_ledger_that_is_missing_or_under_another_key_is_no_empty_list() {
    let lake = lake();
    for command in ["check", "plan", "scrub", "verify"] {
        lake.run(&[command, "job.toml"]).exits(2).says(&["list all is missing: there is no ledger at"]);
    }
    add_all(&lake);
    lake.run(&["check", "job.toml"]).exits(0);
    std::fs::remove_file(lake.path().join("keys/tag.key")).unwrap();
    lakescrub::keys::generate_keys(&lake.path().join("new")).unwrap();
    std::fs::rename(lake.path().join("new/tag.key"), lake.path().join("keys/tag.key")).unwrap();
    for command in ["check", "plan", "scrub", "verify"] {
        lake.run(&[command, "job.toml"]).exits(2).says(&["3 requests of the ledger are tagged with another tag_key"]);
    }
    assert!(lake.text("lake/b.csv").contains("Ada@"));
}

#[test]
fn a_list_without_anybody_begins_the_ledger() {
    let lake = lake();
    lake.write("nobody.csv", "email\n");
    for _ in 0..2 {
        let told = lake.run(&["requests", "import", "job.toml", "nobody.csv", "--json"]).exits(0).json();
        assert_eq!((&told["added"], &told["ledger"]["segments"]), (&0.into(), &1.into()), "{told}");
    }
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!((&scrub["verdict"], &scrub["lists"][0]["rows"]), (&"clean".into(), &0.into()), "{scrub}");
    lake.run(&["gate", "job.toml", "lake/b.csv"]).exits(0);
    let status = lake.run(&["requests", "status", "job.toml", "--json"]).exits(0).json();
    assert_eq!(status["requests"], 0, "{status}");
    add_all(&lake);
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(events(&lake)[0]["event"], "imported");
}

#[test]
fn other_lists_go_on_beside_the_ledger() {
    let lake = lake();
    let list = "[[list]]\nname = \"crm\"\nuri = \"crm.csv\"\n[[list.column]]\ncolumn = \"email\"\nkind = \"email\"\n\n[[dataset]]";
    lake.write("job.toml", JOB.replacen("[[dataset]]", list, 1));
    lake.write("crm.csv", "email\ndan@example.com\n");
    add(&lake, "R1", "email=ada@example.com");
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(scrub["datasets"][0]["rows"]["removed"], 6, "{scrub}");
    assert_eq!(scrub["lists"].as_array().unwrap().len(), 2);
}

#[test]
fn what_the_ledger_has_let_go_no_other_list_brings_back() {
    let lake = lake();
    let list = "[[list]]\nname = \"crm\"\nuri = \"crm.csv\"\n[[list.column]]\ncolumn = \"email\"\nkind = \"email\"\n\
                [[list.column]]\ncolumn = \"phone\"\nkind = \"phone\"\nhashed = \"sha256-base64\"\n\n[[dataset]]";
    lake.write("job.toml", JOB.replacen("[[dataset]]", list, 1));
    let bob = sha256("4155559317");
    lake.write("crm.csv", format!("email,phone\nada@example.com,\ndan@example.com,{bob}\neve@example.com,\n"));
    add_all(&lake);
    lake.run(&["requests", "withdraw", "job.toml", "R1"]).exits(0);
    lake.run(&["requests", "exempt", "job.toml", "R2", "--ground", "litigation"]).exits(0);
    let told = "List crm: 2 entries withdrawn or exempted in the ledger, and so not applied.";
    // Eve by e-mail, as by her member number; Dan.
    let plan = lake.run(&["plan", "job.toml", "--json"]).exits(0).says(&[told]).json();
    assert_eq!(plan["datasets"][0]["rows"]["matched"], 6, "{plan}");
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).says(&[told]).json();
    assert_eq!((&scrub["datasets"][0]["rows"]["removed"], &scrub["verdict"]), (&6.into(), &"clean".into()));
    assert!(lake.manifest()["limits"].to_string().contains(told));
    let kept = lake.text("lake/b.csv");
    assert!(kept.contains("Ada@") && kept.contains("bob@") && !kept.contains("dan@"), "{kept}");
    for _ in 0..2 {
        lake.run(&["gate", "job.toml", "lake/b.csv"]).exits(0);
        std::fs::remove_file(lake.path().join(".lakescrub/probe/ledger.tags")).unwrap();
    }
    lake.run(&["requests", "add", "job.toml", "email=ada@example.com", "--request-id", "R7"]).exits(0);
    let plan = lake.run(&["plan", "job.toml", "--json"]).exits(0).json();
    assert_eq!(plan["datasets"][0]["rows"]["matched"], 3, "asked for again: {plan}");
}

#[test]
fn a_list_row_of_somebody_let_go_is_not_applied_by_its_other_cells_together() {
    let lake = Lake::new();
    let column = |name: &str, kind: &str| format!("[[list.column]]\ncolumn = \"{name}\"\nkind = \"{kind}\"\n");
    let columns = [column("email", "email"), column("first", "text"), column("zip", "zip")].concat();
    let rule = "[[dataset.match]]\nall = [{ column = \"first\", kind = \"text\", list_column = \"first\" }, { column = \"zip\", kind = \"zip\", list_column = \"zip\" }]\n";
    let md5 = "[[list]]\nname = \"old\"\nuri = \"old.csv\"\n[[list.column]]\ncolumn = \"email\"\nkind = \"email\"\nhashed = \"md5-hex\"\n";
    let (before, _) = JOB.split_once("[[dataset]]").unwrap();
    let dataset =
        "[[dataset]]\nname = \"people\"\nuri = \"lake/\"\n[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n";
    lake.write(
        "job.toml",
        format!("{before}[[list]]\nname = \"crm\"\nuri = \"crm.csv\"\n{columns}{md5}{dataset}{rule}"),
    );
    lake.write("crm.csv", "email,first,zip\nada@example.com,Ada,90001\ndan@example.com,Dan,90002\n");
    lake.write("old.csv", "email\n");
    let people = "email,first,zip\n,Ada,90001\n,Dan,90002\n,Zoe,90003\n";
    lake.write("lake/a.csv", people);
    add(&lake, "R1", "email=ada@example.com");
    lake.run(&["requests", "withdraw", "job.toml", "R1"]).exits(0);
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0);
    let scrub = scrub.says(&["List old: the hashes of column email lead to no tag"]).json();
    assert_eq!((&scrub["datasets"][0]["rows"]["removed"], &scrub["verdict"]), (&1.into(), &"clean".into()));
    assert_eq!(lake.text("lake/a.csv"), people.replace(",Dan,90002\n", ""));
}

#[test]
fn what_no_rule_compares_is_told_and_never_called_done() {
    let lake = lake();
    add_all(&lake);
    let maid = "maid=38400000-8cf0-11bd-b23e-10b96e40000d";
    lake.run(&[
        "requests",
        "add",
        "job.toml",
        maid,
        "--request-id",
        "R4",
        "--received-at",
        "2026-01-01",
        "--regime",
        "us-ca-ccpa-delete",
    ])
    .exits(0);
    add(&lake, "R1", maid);
    let told = "Identifiers of kind maid, which 2 of the ledger's requests have, were not looked for";
    let check = lake.run(&["check", "job.toml"]).exits(0).stdout;
    assert!(check.contains(told), "{check}");
    lake.run(&["scrub", "job.toml"]).exits(0).says(&[told]);
    let limits = lake.manifest()["limits"].to_string();
    assert!(
        limits.contains(told) && limits.contains("Requests without an identifier that any rule compares stay open: 1."),
        "{limits}"
    );
    lake.run(&["verify", "job.toml"]).exits(0);
    assert_eq!(states(&lake), ["R1 done", "R2 done", "R3 done", "R4 open"]);
    lake.run(&["requests", "status", "job.toml", "--fail-on-overdue"]).exits(9);
}

#[test]
fn a_ledger_that_was_tampered_with_is_trusted_by_no_command() {
    type Fault = fn(&[std::path::PathBuf]);
    let faults: [(&str, Fault); 4] = [
        ("the middle removed", |segments| std::fs::remove_file(&segments[1]).unwrap()),
        ("the middle altered", |segments| std::fs::write(&segments[1], "nonsense").unwrap()),
        ("the last altered", |segments| std::fs::write(segments.last().unwrap(), "nonsense").unwrap()),
        ("all gone", |segments| segments.iter().for_each(|segment| std::fs::remove_file(segment).unwrap())),
    ];
    for (name, fault) in faults {
        let lake = lake();
        add_all(&lake);
        lake.run(&["scrub", "job.toml"]).exits(0);
        lake.run(&["gate", "job.toml", "lake/b.csv"]).exits(0);
        fault(&segments(&lake));
        for args in [
            &["gate", "job.toml", "lake/b.csv"][..],
            &["plan", "job.toml"],
            &["check", "job.toml"],
            &["scrub", "job.toml"],
            &["verify", "job.toml"],
            &["requests", "status", "job.toml"],
        ] {
            let ran = lake.run(args);
            assert_eq!(ran.code, Some(8), "{name}: {args:?}: {}", ran.stderr);
        }
    }
}

fn of<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn a_run_writes_down_what_it_will_do_what_it_did_and_what_is_clean() {
    let lake = lake();
    add_all(&lake);
    add(&lake, "R9", "email=nobody@example.com");
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(states(&lake), ["R1 done", "R2 done", "R3 done", "R9 not-found"]);
    let events = events(&lake);
    let (planned, removed, clean) = (of(&events, "planned"), of(&events, "removed"), of(&events, "verified-clean"));
    assert_eq!((planned.len(), removed.len(), clean.len()), (3, 3, 4), "{events:#?}");
    for (planned, removed) in planned.iter().zip(&removed) {
        assert_eq!((&planned["rows"], &removed["rows"]), (&3.into(), &3.into()));
        assert_eq!((&removed["dataset"], &removed["run_id"]), (&"people".into(), &scrub["run"]["id"]));
        assert_eq!(removed["manifest_digest"], scrub["manifest"]["digest"]);
        // Written before the manifest was, in a segment of its own.
        assert!(planned["sequence"].as_u64() < removed["sequence"].as_u64());
        assert_eq!(scrub["ledger"]["segments"], planned["sequence"], "{}", scrub["ledger"]);
    }
    // The next night has nothing to say.
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.run(&["verify", "job.toml"]).exits(0);
    assert_eq!(self::events(&lake).len(), events.len());
    // A later match of what was never found is no return: it is removed like any other.
    lake.write("lake/d.csv", "email,phone_hash,member\nnobody@example.com,,\n");
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(scrub["datasets"][0]["rows"]["removed"], 1);
    assert_eq!(states(&lake)[3], "R9 done");
}

#[test]
fn what_a_guard_refuses_or_a_dry_run_shows_is_not_written_down() {
    let lake = lake();
    add_all(&lake);
    let before = events(&lake).len();
    lake.run(&["plan", "job.toml"]).exits(0);
    lake.run(&["scrub", "job.toml", "--set", "guard.max_rows=1"]).exits(10);
    assert_eq!(events(&lake).len(), before);
}

#[test]
fn who_comes_back_is_told_with_object_and_since_when() {
    let lake = lake();
    add_all(&lake);
    lake.run(&["scrub", "job.toml", "--now", "2026-11-20T00:00:00Z"]).exits(0);
    lake.write("lake/new/b.csv", "email,phone_hash,member\nada@example.com,,\nzoe@example.com,,\nADA@example.com,,\n");
    let seen = lake.run(&["verify", "job.toml", "--json", "--now", "2026-11-21T00:00:00Z"]).exits(4).json();
    assert_eq!(seen["ledger"]["reappeared"], 1, "{}", seen["ledger"]);
    assert_eq!(states(&lake)[..2], ["R1 re-appeared", "R2 done"]);
    let args = ["scrub", "job.toml", "--json", "--now", "2026-11-22T00:00:00Z"];
    let scrub = lake.run(&args).exits(0).says(&["removed before and back"]).json();
    let back = &scrub["ledger"]["reappearances"][0];
    assert!(back["object"].as_str().unwrap().ends_with("lake/new/b.csv"), "{back}");
    assert_eq!((&back["requests"], &back["rows"]), (&1.into(), &2.into()));
    assert_eq!(back["since"], "2026-11-20T00:00:00Z");
    let first = &requests(&lake)[0];
    assert_eq!((&first["state"], &first["reappearances"]), (&"done".into(), &1.into()), "{first}");
    assert_eq!(first["rows_removed"], 5);
    let status = lake.run(&["requests", "status", "job.toml", "--json"]).exits(0).json();
    assert_eq!((&status["states"]["done"], &status["reappearances"]), (&3.into(), &1.into()));
    lake.run(&["manifest", "check", ".lakescrub"]).exits(0);
}

#[test]
fn after_a_restore_the_ledger_is_replayed_and_says_so() {
    let lake = lake();
    add_all(&lake);
    let first = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    lake.run(&["requests", "withdraw", "job.toml", "R2"]).exits(0);
    // The backup of a time when all were there.
    write_data(&lake);
    let args = ["scrub", "job.toml", "--json", "--since-restore", "2026-01-01"];
    let scrub = lake.run(&args).exits(0).json();
    assert_eq!(scrub["datasets"][0]["rows"]["removed"], 6, "{scrub}");
    assert_eq!(scrub["ledger"]["since_restore"], "2026-01-01T00:00:00Z");
    // Nothing but the object's own metadata tells who wrote it, and the result says what the ledger says.
    let back = &scrub["ledger"]["reappearances"][0];
    assert_eq!((&back["written_by"], &back["request_ids"]), (&Value::Null, &json!(["R1", "R3"])), "{back}");
    // As times: the result leaves out zeros at the end that the events have. The ledger keeps microseconds.
    let time = |text: &Value| text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_microsecond();
    let since = time(&back["since"]);
    assert_eq!(since, time(&first["datasets"][0]["listed_at"]));
    let events = events(&lake);
    let told = of(&events, "re-appeared");
    assert!(!told.is_empty() && told.iter().all(|event| time(&event["since"]) == since), "{told:#?}");
    assert!(lake.text("lake/b.csv").contains("bob@"), "he opted in again");
    for request in requests(&lake).iter().filter(|request| request["request_id"] != "R2") {
        assert_eq!(request["verified"]["run_id"], scrub["run"]["id"]);
    }
    for (args, says) in [
        (&["--since-restore", "soon"][..], "--since-restore soon is no date or time in the past"),
        (&["--since-restore", "2999-01-01"], "--since-restore 2999-01-01 is no date or time in the past"),
    ] {
        lake.run(&[&["scrub", "job.toml"], args].concat()).exits(2).says(&[says]);
    }
    let plain = Lake::of_customers(&["ada@example.com"]);
    plain.run(&["scrub", "job.toml", "--since-restore", "2026-01-01"]).exits(2).says(&["is no list of this job"]);
}

fn segments(lake: &Lake) -> Vec<std::path::PathBuf> {
    let names = lake.files(".lakescrub/ledger").into_keys();
    names.map(|name| lake.path().join(".lakescrub/ledger").join(name)).collect()
}

#[test]
fn a_run_that_died_before_its_last_word_is_settled_by_the_next() {
    let lake = lake();
    add_all(&lake);
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    // Killed between manifest and ledger: the segments of removed and verified-clean were never written.
    let written = segments(&lake);
    written[written.len() - 2..].iter().for_each(|segment| std::fs::remove_file(segment).unwrap());
    assert_eq!(states(&lake), ["R1 planned", "R2 planned", "R3 planned"]);
    let next = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(next["ledger"]["reappeared"], 0, "{}", next["ledger"]);
    let first = &requests(&lake)[0];
    assert_eq!((&first["state"], &first["rows_removed"]), (&"done".into(), &3.into()), "{first}");
    assert_eq!(first["datasets"][0]["manifest_digest"], scrub["manifest"]["digest"]);
}

#[test]
fn a_ledger_that_lost_its_end_stops_the_run_before_it_changes_anything() {
    let lake = lake();
    add_all(&lake);
    lake.run(&["scrub", "job.toml"]).exits(0);
    // The last ones are removed and verified-clean; the third from behind is what the manifest names.
    let written = segments(&lake);
    written[written.len() - 3..].iter().for_each(|segment| std::fs::remove_file(segment).unwrap());
    write_data(&lake);
    let data = lake.bytes("lake");
    lake.run(&["scrub", "job.toml"]).exits(8).says(&["the ledger is not the one that run"]);
    // The decoded copy of the manifest proves nothing, and its absence hides nothing; nor is a signed one of another run that one.
    let run = lake.runs().pop().unwrap();
    let manifest = |file: &str| format!(".lakescrub/manifests/{run}/{file}");
    std::fs::remove_file(lake.path().join(manifest("manifest.json"))).unwrap();
    lake.run(&["plan", "job.toml"]).exits(8).says(&["the ledger is not the one that run"]);
    let envelope = std::fs::read_to_string(lake.path().join(manifest("manifest.dsse.json"))).unwrap();
    let (begin, end) = envelope.split_at(envelope.find("\"payload\":\"").unwrap() + 60);
    let turned = if end.starts_with('A') { "B" } else { "A" };
    lake.write(&manifest("manifest.dsse.json"), format!("{begin}{turned}{}", &end[1..]));
    lake.run(&["plan", "job.toml"]).exits(8);
    std::fs::remove_file(lake.path().join(manifest("manifest.dsse.json"))).unwrap();
    lake.run(&["plan", "job.toml"]).exits(8);
    assert_eq!(lake.bytes("lake"), data);
}

#[test]
fn a_ledger_that_is_lost_is_not_shown_as_one_without_requests() {
    let drop = "version = 1\nname = \"nightly\"\n\n[drop]\nbroker_id = \"4821\"\n";
    for lost in [3, usize::MAX] {
        let lake = lake();
        lake.write("job.toml", JOB.replacen("version = 1\nname = \"nightly\"\n", drop, 1));
        add_all(&lake);
        lake.run(&["scrub", "job.toml"]).exits(0);
        let written = segments(&lake);
        written.iter().rev().take(lost).for_each(|segment| std::fs::remove_file(segment).unwrap());
        let left = segments(&lake);
        for args in [
            &["requests", "status", "job.toml", "--json"][..],
            &["requests", "list", "job.toml"],
            &["requests", "export", "job.toml"],
            &["requests", "add", "job.toml", "email=zoe@example.com"],
            &["drop", "answer", "job.toml", "--out", "up"],
        ] {
            let ran = lake.run(args).exits(8);
            let ran = ran.says(&["the ledger is not the one that run", "restore the state's ledger/ folder"]);
            assert!(!ran.stdout.contains("\"requests\""), "{}", ran.stdout);
        }
        assert_eq!(segments(&lake), left);
    }
}

#[test]
fn what_is_removed_was_written_down_before_even_when_the_run_is_killed_then() {
    let lake = lake();
    add_all(&lake);
    // The journal's second entry announces the first swap: by then the ledger has the plan.
    let mut command = lake.command(&["scrub", "job.toml"]);
    command.env("LAKESCRUB_TEST_KILL_AFTER_ENTRY", "1");
    assert_eq!(ran(command).code, None);
    assert_eq!(states(&lake), ["R1 planned", "R2 planned", "R3 planned"]);
    let killed = of(&events(&lake), "planned")[0]["run_id"].clone();
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!((&scrub["run"]["id"], &scrub["ledger"]["reappeared"]), (&killed, &0.into()));
    assert_eq!(states(&lake), ["R1 done", "R2 done", "R3 done"]);
    assert!(requests(&lake).iter().all(|request| request["rows_removed"] == 3), "{:#?}", requests(&lake));
}

#[test]
fn what_a_killed_run_announced_and_nobody_sees_any_more_is_not_recorded_as_removed() {
    let killed = || {
        let lake = lake();
        add_all(&lake);
        let mut command = lake.command(&["scrub", "job.toml"]);
        command.env("LAKESCRUB_TEST_KILL_AFTER_ENTRY", "1");
        assert_eq!(ran(command).code, None);
        lake
    };
    let lake = killed();
    lake.write("lake/a.parquet", "PAR1 nonsense PAR1");
    lake.run(&["scrub", "job.toml"]).exits(3);
    assert!(requests(&lake).iter().all(|request| request["rows_removed"] == 2), "{:#?}", requests(&lake));
    let lake = killed();
    lake.write("other/a.csv", "email,phone_hash,member\nzoe@example.com,,\n");
    lake.write("job.toml", JOB.replacen("name = \"people\"\nuri = \"lake/\"", "name = \"other\"\nuri = \"other/\"", 1));
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(states(&lake), ["R1 open", "R2 open", "R3 open"]);
    lake.write("job.toml", JOB);
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(states(&lake), ["R1 done", "R2 done", "R3 done"]);
}

#[test]
fn an_object_that_failed_is_not_recorded_as_removed_and_nobody_as_clean() {
    let lake = lake();
    add_all(&lake);
    lake.write("lake/broken.parquet", "PAR1 nonsense PAR1");
    lake.run(&["scrub", "job.toml"]).exits(3);
    assert_eq!(states(&lake), ["R1 removed", "R2 removed", "R3 removed"]);
    std::fs::remove_file(lake.path().join("lake/broken.parquet")).unwrap();
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(states(&lake), ["R1 done", "R2 done", "R3 done"]);
}

#[test]
fn a_run_that_died_before_its_last_word_is_settled_by_a_verify_too() {
    let lake = lake();
    add_all(&lake);
    lake.run(&["scrub", "job.toml"]).exits(0);
    let written = segments(&lake);
    written[written.len() - 2..].iter().for_each(|segment| std::fs::remove_file(segment).unwrap());
    lake.run(&["verify", "job.toml"]).exits(0);
    assert_eq!(states(&lake), ["R1 done", "R2 done", "R3 done"]);
    assert!(requests(&lake).iter().all(|request| request["rows_removed"] == 3), "{:#?}", requests(&lake));
}

#[test]
fn a_clean_verify_leaves_the_plan_of_a_run_that_never_ended() {
    let mut clean = 0;
    for entry in 2..12 {
        let lake = lake();
        add_all(&lake);
        let mut command = lake.command(&["scrub", "job.toml"]);
        command.env("LAKESCRUB_TEST_KILL_AFTER_ENTRY", entry.to_string());
        if ran(command).code.is_some() {
            break;
        }
        let verify = lake.run(&["verify", "job.toml"]);
        assert_eq!(states(&lake), ["R1 planned", "R2 planned", "R3 planned"], "killed after entry {entry}");
        clean += usize::from(verify.code == Some(0));
        lake.run(&["scrub", "job.toml"]).exits(0);
        assert_eq!(states(&lake), ["R1 done", "R2 done", "R3 done"], "killed after entry {entry}");
        assert!(requests(&lake).iter().all(|request| request["rows_removed"] == 3), "{:#?}", requests(&lake));
    }
    assert!(clean > 0, "no kill left a lake in which nothing is to be found");
}

#[test]
fn whoever_was_never_done_with_does_not_come_back() {
    let lake = lake();
    add_all(&lake);
    add(&lake, "R9", "email=nobody@example.com");
    lake.write("lake/broken.parquet", "PAR1 nonsense PAR1");
    lake.run(&["scrub", "job.toml"]).exits(3);
    // Removed in part, and there is more: that is no return.
    lake.write("lake/d.csv", "email,phone_hash,member\nada@example.com,,\n");
    std::fs::remove_file(lake.path().join("lake/broken.parquet")).unwrap();
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(scrub["ledger"]["reappeared"], 0, "{}", scrub["ledger"]);
    assert_eq!(states(&lake), ["R1 done", "R2 done", "R3 done", "R9 not-found"]);
    // Found for the first time: it is open again, but never was away.
    lake.write("lake/e.csv", "email,phone_hash,member\nnobody@example.com,,\n");
    let seen = lake.run(&["verify", "job.toml", "--json"]).exits(4);
    assert!(!seen.stderr.contains("removed before and back"), "{}", seen.stderr);
    assert_eq!(seen.json()["ledger"]["reappeared"], 0);
    assert_eq!(states(&lake)[3], "R9 open");
    let count = events(&lake).len();
    lake.run(&["verify", "job.toml"]).exits(4);
    assert_eq!(events(&lake).len(), count, "what is known is written once");
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(scrub["ledger"]["reappeared"], 0, "{}", scrub["ledger"]);
    let last = &requests(&lake)[3];
    assert_eq!((&last["state"], &last["reappearances"]), (&"done".into(), &0.into()), "{last}");
}

#[test]
fn a_ledger_that_lost_its_end_is_seen_behind_runs_of_jobs_without_it() {
    let lake = lake();
    add_all(&lake);
    lake.run(&["scrub", "job.toml"]).exits(0);
    let list = "uri = \"crm.csv\"\n[[list.column]]\ncolumn = \"email\"\nkind = \"email\"\n";
    let dataset = "uri = \"lake/\"\n[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n";
    let (before, _) = JOB.split_once("[[list]]").unwrap();
    let list = format!("[[list]]\nname = \"crm\"\n{list}");
    lake.write("plain.toml", format!("{before}{list}[[dataset]]\nname = \"people\"\n{dataset}"));
    lake.write("crm.csv", "email\nzoe@example.com\n");
    let written = segments(&lake);
    lake.run(&["verify", "plain.toml"]).exits(0);
    lake.run(&["scrub", "plain.toml"]).exits(0);
    lake.run(&["check", "job.toml"]).exits(0);
    written[written.len() - 3..].iter().for_each(|segment| std::fs::remove_file(segment).unwrap());
    write_data(&lake);
    let data = lake.bytes("lake");
    for command in ["scrub", "verify", "plan", "check", "gate"] {
        let args = [&[command, "job.toml"][..], if command == "gate" { &["lake/b.csv"] } else { &[] }].concat();
        lake.run(&args).exits(8).says(&["the ledger is not the one that run"]);
    }
    assert_eq!(lake.bytes("lake"), data);
}

/// Whoever opts in again has the last word over every asking so far; the verifier, which reads the ledger by itself, says the same.
#[test]
fn a_withdrawal_is_later_than_an_asking_of_a_time_that_is_still_to_come() {
    let lake = lake();
    let ask = |identifier: &str| {
        let add = ["requests", "add", "job.toml", identifier, "--request-id", "R1", "--received-at", "2131-01-01"];
        // By a clock that is ahead.
        lake.run(&[&add[..], &["--now", "2131-01-01T12:00:00Z"]].concat()).exits(0)
    };
    ask("email=bob@example.org");
    ask("phone=+1 415 555 9317");
    lake.run(&["requests", "withdraw", "job.toml", "R1"]).exits(0);
    ask("phone=+1 415 555 9317").says(&["opted in again"]);
    add(&lake, "R2", "text=4711");
    assert_eq!(states(&lake), ["R1 withdrawn", "R2 open"]);
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(scrub["datasets"][0]["rows"]["removed"], 3, "{scrub}");
    assert!(lake.text("lake/b.csv").contains("bob@"));
}

#[test]
fn a_request_of_which_one_identifier_is_under_another_key_is_not_compared_by_halves() {
    let lake = lake();
    let both = ["requests", "add", "job.toml", "email=ada@example.com", "phone=+1 415 555 9317", "--request-id", "R1"];
    let old = ["--request-id", "R1", "--old-tag-key", "keys/old.key"];
    let add = |identifier: &str| {
        lake.run(&[&["requests", "add", "job.toml", identifier], &old[..]].concat()).exits(0);
    };
    let rotate = || {
        std::fs::rename(lake.path().join("keys/tag.key"), lake.path().join("keys/old.key")).unwrap();
        lakescrub::keys::generate_keys(&lake.path().join("new")).unwrap();
        std::fs::rename(lake.path().join("new/tag.key"), lake.path().join("keys/tag.key")).unwrap();
        std::fs::remove_dir_all(lake.path().join("new")).unwrap();
    };
    lake.run(&both).exits(0);
    // Twice: what an earlier key tagged is made up for, too.
    for _ in 0..2 {
        rotate();
        add("email=ada@example.com");
        for args in [
            &["check", "job.toml"][..],
            &["plan", "job.toml"],
            &["scrub", "job.toml"],
            &["verify", "job.toml"],
            &["gate", "job.toml", "lake/b.csv"],
        ] {
            lake.run(args).exits(2).says(&["1 requests of the ledger are tagged with another tag_key"]);
        }
        add("phone=+1 415 555 9317");
        lake.run(&["check", "job.toml"]).exits(0);
    }
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(scrub["datasets"][0]["rows"]["removed"], 6, "{scrub}");
}

#[test]
fn a_request_that_is_asked_anew_begins_anew() {
    let lake = lake();
    add_all(&lake);
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.write("lake/d.csv", "email,phone_hash,member\nada@example.com,,\n");
    lake.run(&["verify", "job.toml"]).exits(4);
    assert_eq!(states(&lake)[..2], ["R1 re-appeared", "R2 done"]);
    lake.run(&["requests", "withdraw", "job.toml", "R1", "R2"]).exits(0);
    add(&lake, "R1", "email=ada@example.com");
    add(&lake, "R2", "phone=+1 (415) 555-9317");
    assert_eq!(states(&lake)[..2], ["R1 open", "R2 open"]);
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(scrub["ledger"]["reappeared"], 0, "{}", scrub["ledger"]);
    assert_eq!(states(&lake)[..2], ["R1 done", "R2 not-found"]);
}

/// What is held of a dataset grows with the people in it, not with their rows, whether a column or the object's name tells them.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_same_people_are_counted_and_not_kept() {
    let lake = lake();
    std::fs::remove_dir_all(lake.path().join("lake")).unwrap();
    add_all(&lake);
    let rows = |row: &str| format!("email,phone_hash,member\n{}", row.repeat(30_000));
    let bob = sha256("4155559317");
    lake.write("lake/a.csv", rows(&format!("ada@example.com,{bob},1\nada@example.com,,2\nzoe@example.com,,3\n")));
    lake.write("lake/ada@example.com/b.csv", rows("zoe@example.com,,4\n"));
    let job = Job::read(&lake.path().join("job.toml"), &[]).unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore);
    let stores = Stores::new(store.clone(), store.clone());
    let lists = verify::read_lists(&job, &stores, &jiff::Timestamp::now).await.unwrap();
    let objects = store.list(&Location::Local(lake.path().join("lake/"))).await.unwrap();
    let mut counted = Vec::new();
    let mut each = |object: Object, sighted: Result<verify::Sighted, _>| {
        let sighted: Vec<_> = sighted.unwrap().sightings.into_iter().collect();
        let mut told: Vec<_> = sighted.iter().map(|(tags, it)| (tags.len(), it.rows, it.consumers.len())).collect();
        told.sort_unstable();
        counted.push((object.location.file_name().to_owned(), told));
    };
    let key = ColumnPath(vec!["member".to_owned()]);
    verify::attribute(&lists, &job, &stores, &job.datasets[0], Some(&key), objects, &mut each).await;
    counted.sort();
    let wish = [("a.csv".to_owned(), vec![(1, 30_000, 1), (2, 30_000, 1)]), ("b.csv".to_owned(), vec![(1, 30_000, 1)])];
    assert_eq!(counted, wish);
}

/// What the verifier read before it was known where the run's ledger ends counts only if it ends there, too.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_while_the_verifier_read_ahead_is_none_of_the_run() {
    let lake = lake();
    ["first", "second", "third"].iter().for_each(|name| add(&lake, name, &format!("email={name}@example.com")));
    let job = Job::read(&lake.path().join("job.toml"), &[]).unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore);
    let (stores, at) = (Stores::new(store.clone(), store), jiff::Timestamp::now());
    let tags = async |sequence: u64, withheld: &[&str]| {
        let withheld: BTreeSet<Arc<str>> = withheld.iter().map(|id| (*id).into()).collect();
        let ahead = verify::read_ledger(&job, &stores, at, &withheld).await.unwrap();
        assert_eq!(ahead.as_ref().map(|ahead| (ahead.last, ahead.len())), Some((3, 3 - withheld.len())));
        let end = verify::LedgerEnd { sequence, at, withheld, ahead };
        verify::read_lists_up_to(&job, &stores, &|| at, Some(end)).await.unwrap().tags()
    };
    assert_eq!(tags(3, &[]).await, Some(3));
    assert_eq!(tags(2, &[]).await, Some(2));
    assert_eq!(tags(3, &["first"]).await, Some(2));
    assert_eq!(tags(2, &["third"]).await, Some(2));
}

/// A job whose only list is the ledger, which holds one request.
fn s3_job(bucket: &Bucket) -> (s3_scrub::Job, String) {
    let job = s3_scrub::Job::new(bucket, &bucket.server.endpoint());
    let text = std::fs::read_to_string(job.path()).unwrap();
    let (before, rest) = text.split_once("[[list]]").unwrap();
    let dataset = rest.split_once("[[dataset]]").unwrap().1;
    let list = "[[list]]\nname = \"all\"\nuri = \"ledger\"\n";
    std::fs::write(job.path(), format!("{before}{list}[[dataset]]{dataset}")).unwrap();
    let path = job.path().to_str().unwrap().to_owned();
    let identifier = format!("email={LISTED}");
    check_exit(&job.run(&["requests", "add", &path, &identifier, "--id", "R1"]), 0);
    (job, path)
}

/// State and rows removed of its request.
fn s3_standing(job: &s3_scrub::Job, path: &str) -> (Value, Value) {
    let output = job.run(&["requests", "list", path, "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    (told["requests"][0]["state"].clone(), told["requests"][0]["rows_removed"].clone())
}

on_each_server! {
    async fn the_ledger_on_s3_tells_who_brought_somebody_back(bucket: &Bucket) {
        bucket.upload("lake/a.csv", records(0, 10)).await;
        let (job, path) = s3_job(bucket);
        assert_eq!(job.scrub(0)["datasets"][0]["rows"]["removed"], 1);
        let body = aws_sdk_s3::primitives::ByteStream::from(records(50, 10).into_bytes());
        let request = bucket.client.put_object().bucket(&bucket.name).key("lake/b.csv").body(body);
        request.metadata("airflow-job", "nightly_load").send().await.unwrap();
        let landed = format!("s3://{}/lake/b.csv", bucket.name);
        check_exit(&job.run(&["gate", &path, &landed]), 4);
        let back = job.scrub(0)["ledger"]["reappearances"][0].clone();
        assert_eq!((&back["object"], &back["written_by"]), (&landed.into(), &"nightly_load".into()), "{back}");
        let state = format!("s3://{}/privacy/lakescrub/", bucket.name);
        check_exit(&job.run(&["manifest", "check", &state]), 0);
        assert_eq!(s3_standing(&job, &path), ("done".into(), 2.into()));
    }

    async fn an_old_version_that_stays_is_not_recorded_as_removed(bucket: &Bucket) {
        keep_versions(bucket).await;
        bucket.upload("lake/a.csv", records(0, 5)).await;
        let old = bucket.client.head_object().bucket(&bucket.name).key("lake/a.csv").send().await.unwrap();
        bucket.upload("lake/a.csv", without_the_listed(&records(0, 5))).await;
        let (job, path) = s3_job(bucket);
        check_exit(&job.run(&["scrub", &path, "--set", "dataset.0.versions.noncurrent=report"]), 4);
        assert_eq!(s3_standing(&job, &path), ("open".into(), 0.into()), "only reported");
        let location = format!("s3://{}/lake/a.csv", bucket.name);
        let note = json!({ "location": location, "etag": old.e_tag().unwrap(), "reason": "differs" });
        let key = "privacy/lakescrub/held/run-00000001.json";
        bucket.upload(key, note.to_string()).await;
        job.scrub(4);
        assert_eq!(s3_standing(&job, &path), ("open".into(), 0.into()), "held");
        bucket.client.delete_object().bucket(&bucket.name).key(key).send().await.unwrap();
        job.scrub(0);
        assert_eq!(s3_standing(&job, &path), ("done".into(), 1.into()));
    }
}
