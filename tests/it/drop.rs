//! California's DROP: identifiers of several columns, names and dates, in data of every format and to both engines.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Date32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::Parser;
use lakescrub::cli::Cli;
use lakescrub::error::{Error, Exit};
use lakescrub::job::Job;
use lakescrub::name_letters::plain_letters;
use lakescrub::run::{RunResult, scrub_with};
use lakescrub::store::local::LocalStore;
use lakescrub::store::{ConditionalWrites, Location, Object, Precondition, Replacement, Store, StoreError, Stores};
use lakescrub::verify_letters::name_form;
use parquet::arrow::ArrowWriter;
use sha2::{Digest, Sha256};

use crate::lakescrub_runner::{Lake, ran};

/// Danielle Johnson, born on 1985-07-04, ZIP 91790 (regulation.md 1.4).
const NDZ: &str = "PQOfn1RffEKmqMmNAzDKKaoZCwxWbQZkQzPWmQo9REA=";
/// Eve Genesis with VIN 1hgcm82633a004352 (regulation.md 1.4).
const NAME_VIN: &str = "rtnDuXIe63jXYQQXW5r07GJ7lSsrib8+46QuKFwkOmk=";

/// As DROP hashes.
fn hashed(canonical: &str) -> String {
    BASE64.encode(Sha256::digest(canonical))
}

#[test]
fn both_normalisers_read_every_letter_alike() {
    for number in 0..0x3_0000 {
        let Some(letter) = char::from_u32(number) else { continue };
        // Between two letters a lone mark has something to stand on, and a final sigma is none.
        for text in [format!("a{letter}b"), format!("{letter}")] {
            let mut found = Vec::new();
            plain_letters(&text, &mut found);
            let found = String::from_utf8(found).unwrap();
            assert_eq!(name_form(&text).unwrap_or_default(), found, "U+{number:04X}");
        }
    }
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

/// Three list columns as DROP hashes them, and a dataset for each way of writing a date.
const JOB: &str = r#"version = 1
[guard]
max_fraction = 1.0
[drop]
broker_id = "4821"
[[list]]
name = "drop"
uri = "drop.csv"
[[list.column]]
column = "ndz"
kind = "ndz"
hashed = "sha256-base64"
[[list.column]]
column = "name_vin"
kind = "namevin"
hashed = "sha256-base64"
[[list.column]]
column = "tv"
kind = "ctvid"
hashed = "sha256-base64"

[[dataset]]
name = "typed"
uri = "typed/"
[dataset.drop]
NDZ = ["first", "last", "born", "zip"]

[[dataset]]
name = "written"
uri = "written/"
[dataset.drop]
NDZ = ["first", "last", "born", "zip"]
NameVIN = ["first", "last", "vin"]
CTVID = ["tv"]
date_format = "%m/%d/%Y"
"#;

fn drop_lake() -> Lake {
    let lake = Lake::new();
    lake.write("job.toml", JOB);
    let tv = hashed("smarttv9f8e7d6c");
    lake.write("drop.csv", format!("ndz,name_vin,tv\n{NDZ},{NAME_VIN},{tv}\n"));
    let day = |text: &str| text.parse::<jiff::civil::Date>().unwrap();
    let days = |text: &str| (day(text) - day("1970-01-01")).get_days();
    let (born, other) = (days("1985-07-04"), days("1985-07-05"));
    let people = ["DANIELLE", "Danielle", "Danielle"];
    let rest = |born: ArrayRef| {
        vec![
            ("first", texts(&people)),
            ("last", texts(&["O'Johnson", "Johnson", "Johnson"])),
            ("born", born),
            ("zip", texts(&["91790", "91790-3771", "91790"])),
        ]
    };
    lake.write("typed/date.parquet", parquet(rest(Arc::new(Date32Array::from(vec![born, born, other])))));
    let at = |day: i32, hour: i64| i64::from(day) * 86_400_000_000 + hour * 3_600_000_000;
    let moments = TimestampMicrosecondArray::from(vec![at(born, 0), at(born, 12), at(other, 0)]);
    lake.write("typed/moment.parquet", parquet(rest(Arc::new(moments))));
    // In a zone noon is no certain day.
    let zoned = TimestampMicrosecondArray::from(vec![at(born, 0), at(born, 0), at(born, 12)]).with_timezone("UTC");
    lake.write("typed/zoned.parquet", parquet(rest(Arc::new(zoned))));
    lake.write(
        "written/people.csv",
        "id,first,last,born,zip,vin,tv\n\
         1,Danielle,Johnson,7/4/1985,91790-3771,,\n\
         2,Danielle,Johnson,1985-07-04,91790,,\n\
         3,Eve,GENESIS,,,1HGCM82633A004352,\n\
         4,Eve,Genesis,,,1HGCM82633A00435,\n\
         5,Bob,Smith,01/02/1990,91790,,SmartTV_9F8E7D6C\n\
         6,Bob,Smith,01/02/1990,91790,,TV-123\n\
         7,Johnson,Danielle,07/04/1985,91790,,\n",
    );
    lake.write(
        "written/people.ndjson",
        "{\"id\":1,\"first\":\"Danielle\",\"last\":\"Johnson\",\"born\":\"07/04/1985\",\"zip\":91790,\"vin\":null,\"tv\":null}\n\
         {\"id\":2,\"first\":\"Danielle\",\"last\":\"Smith\",\"born\":\"07/04/1985\",\"zip\":91790,\"vin\":null,\"tv\":null}\n",
    );
    lake
}

#[test]
fn what_drop_makes_of_several_columns_is_found_removed_and_proven_gone() {
    let lake = drop_lake();
    // Both engines find the same before anything is changed.
    lake.run(&["verify", "job.toml"]).exits(4);
    assert_eq!(lake.manifest()["verification"]["residue"]["rows"], 7);
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(
        lake.text("written/people.csv"),
        "id,first,last,born,zip,vin,tv\n\
         2,Danielle,Johnson,1985-07-04,91790,,\n\
         4,Eve,Genesis,,,1HGCM82633A00435,\n\
         6,Bob,Smith,01/02/1990,91790,,TV-123\n\
         7,Johnson,Danielle,07/04/1985,91790,,\n"
    );
    assert!(!lake.text("written/people.ndjson").contains("\"id\":1"));
    let manifest = lake.manifest();
    let datasets = manifest["datasets"].as_array().unwrap();
    let removed: Vec<_> = datasets.iter().map(|dataset| dataset["rows"]["removed"].as_u64().unwrap()).collect();
    assert_eq!(removed, [3, 4], "{manifest:#}");
    // What could not be compared is told by column: a date of another format, a short VIN, a short TV id, a noon.
    assert_eq!(datasets[0]["not_comparable"], serde_json::json!({ "born": 1 }), "{manifest:#}");
    let written = &datasets[1]["not_comparable"];
    assert_eq!((&written["born"], &written["vin"], &written["tv"]), (&1.into(), &1.into(), &1.into()), "{written:#}");
    lake.run(&["verify", "job.toml"]).exits(0);
}

#[test]
fn a_row_of_several_columns_that_find_would_miss_is_residue() {
    let lake = drop_lake();
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.write("written/back.csv", "id,first,last,born,zip,vin,tv\n1,danielle,johnson,07/04/1985,091790,,\n");
    lake.run(&["verify", "job.toml", "--json"]).exits(4);
}

#[test]
fn canaries_of_several_columns_go_through_a_run() {
    let lake = drop_lake();
    lake.run(&["scrub", "job.toml", "--set", "canary.count=2"]).exits(0);
    let verification = &lake.manifest()["verification"]["canaries"];
    assert_eq!(verification["planted"], verification["found"], "{verification}");
    assert!(verification["planted"].as_u64().unwrap() >= 8, "{verification}");
}

#[test]
fn a_date_is_one_identifier_in_every_type_that_holds_dates() {
    let lake = Lake::new();
    lake.write(
        "job.toml",
        "version = 1\n[guard]\nmax_fraction = 1.0\n[[list]]\nname = \"l\"\nuri = \"l.csv\"\n[[list.column]]\ncolumn = \"born\"\nkind = \"date\"\ndate_format = \"%d.%m.%Y\"\n\
         [[dataset]]\nname = \"d\"\nuri = \"lake/\"\n[[dataset.match]]\ncolumn = \"born\"\nkind = \"date\"\n",
    );
    lake.write("l.csv", "born\n04.07.1985\n");
    let days = |text: &str| (text.parse::<jiff::civil::Date>().unwrap() - jiff::civil::date(1970, 1, 1)).get_days();
    let (first, second) = (days("1985-07-04"), days("1990-01-01"));
    lake.write("lake/date.parquet", parquet(vec![("born", Arc::new(Date32Array::from(vec![first, second])))]));
    let micros = |day: i32| i64::from(day) * 86_400_000_000;
    let moments = TimestampMicrosecondArray::from(vec![micros(first) + 1, micros(second)]);
    lake.write("lake/moment.parquet", parquet(vec![("born", Arc::new(moments))]));
    lake.write("lake/numbers.parquet", parquet(vec![("born", Arc::new(Int64Array::from(vec![19850704, 19900101])))]));
    lake.write("lake/text.csv", "born\n1985-07-04\n19850704\n1990-01-01\n04.07.1985\n");
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(lake.text("lake/text.csv"), "born\n1990-01-01\n04.07.1985\n");
    let dataset = &lake.manifest()["datasets"][0];
    assert_eq!(
        (&dataset["rows"]["removed"], &dataset["not_comparable"]["born"]),
        (&5.into(), &1.into()),
        "{dataset:#}"
    );
    // A list whose dates are written otherwise than it says is no list.
    lake.write("l.csv", "born\n1985-07-04\n");
    lake.run(&["scrub", "job.toml"]).exits(2).says(&["l.csv:2", "is not a date written %d.%m.%Y"]);
}

/// A job on the ledger whose dataset has a column that tells consumers apart.
const BROKER_JOB: &str = r#"version = 1
[guard]
max_fraction = 1.0
[drop]
broker_id = "4821"
[[list]]
name = "drop"
uri = "ledger"

[[dataset]]
name = "people"
uri = "lake/"
format = "csv"
[dataset.drop]
Email = ["email"]
Phone = ["mobile"]
NDZ = ["first", "last", "born", "zip"]
date_format = "%Y-%m-%d"
consumer_key = "user_id"
"#;

const PEOPLE: &str = "user_id,email,mobile,first,last,born,zip\n\
    1,Anna@Example.com,+1 (415) 555-0001,Anna,Smith,1990-01-01,90001\n\
    2,bob@example.com,415-555-0002,Bob,Jones,1991-01-01,90002\n\
    3,home@example.com,,Carl,Home,1992-01-01,90003\n\
    4,home@example.com,,Dora,Home,1993-01-01,90003\n\
    5,eve@example.com,415-555-0005,Eve,Kept,1994-01-01,90004\n\
    6,danielle@example.com,,Danielle,Johnson,1985-07-04,91790-3771\n";

/// Work items by what is to become of them.
const DELETED: &str = "AAAAaaaa0001";
const NOT_FOUND: &str = "AAAAaaaa0002";
const SEVERAL: &str = "AAAAaaaa0003";
const CANCELLED: &str = "AAAAaaaa0004";
const EXEMPT: &str = "AAAAaaaa0005";
const NDZ_DELETED: &str = "BBBBbbbb0001";
const PHONE_DELETED: &str = "CCCCcccc0001";

const FIRST: &str = "20260812_4821_DROP.zip";

fn zip(files: &[(&str, String)]) -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn list(rows: &[(&str, String)]) -> String {
    let rows: String = rows.iter().map(|(id, hash)| format!("{id},{hash}\n")).collect();
    format!("ID,Hash\n{rows}")
}

fn broker_lake() -> Lake {
    let lake = Lake::new();
    lake.write("job.toml", BROKER_JOB);
    lake.write("lake/people.csv", PEOPLE);
    let emails = list(&[
        (DELETED, hashed("anna@example.com")),
        (NOT_FOUND, hashed("nobody@example.com")),
        (SEVERAL, hashed("home@example.com")),
        (CANCELLED, hashed("eve@example.com")),
        (EXEMPT, hashed("exempt@example.com")),
    ]);
    let files = [
        ("20260812_4821_Email.csv", emails),
        ("20260812_4821_NDZ.csv", list(&[(NDZ_DELETED, NDZ.to_owned())])),
        ("20260812_4821_Phone.csv", list(&[(PHONE_DELETED, hashed("4155550002"))])),
        ("20260812_4821_MAID.csv", list(&[])),
    ];
    lake.write(FIRST, zip(&files));
    let eve = hashed("eve@example.com");
    let removed = format!("ID,Hash,ListType\n{CANCELLED},{eve},Email\nZZZZzzzz0009,{eve},Email\n");
    lake.write(
        "20260813_4821_DROP.zip",
        zip(&[("20260813_4821_Email.csv", list(&[])), ("20260813_4821_Removed.csv", removed)]),
    );
    lake
}

#[test]
fn a_download_is_recorded_once_and_nothing_readable_is_kept() {
    let lake = broker_lake();
    let told = lake.run(&["drop", "import", "job.toml", FIRST, "--json"]).exits(0).json();
    assert_eq!(
        (&told["added"], &told["known"], &told["due_at"]),
        (&7.into(), &0.into(), &"2026-09-26".into()),
        "{told:#}"
    );
    assert!(told["due_how"].as_str().unwrap().contains("45 calendar days"), "{told:#}");
    assert_eq!(told["archive"]["kept"], serde_json::Value::Null);
    let again = lake.run(&["drop", "import", "job.toml", FIRST, "--json"]).exits(0).json();
    assert_eq!((&again["added"], &again["known"]), (&0.into(), &7.into()), "{again:#}");
    let removed = lake.run(&["drop", "import", "job.toml", "20260813_4821_DROP.zip", "--json"]).exits(0).json();
    assert_eq!((&removed["withdrawn"], &removed["removals_unknown"]), (&1.into(), &1.into()), "{removed:#}");
    for (name, bytes) in lake.bytes(".lakescrub") {
        for email in ["anna@example.com", "eve@example.com"] {
            for secret in [email.as_bytes(), hashed(email).as_bytes(), &Sha256::digest(email)] {
                assert!(
                    !bytes.windows(secret.len()).any(|window| window == secret),
                    "{name} holds {email} in some form"
                );
            }
        }
    }
}

/// A cancellation may be imported before the download that it cancels, and one download after another on one day.
#[test]
fn a_cancellation_counts_from_its_download_on_in_whatever_order_they_are_imported() {
    let id = CANCELLED;
    let archive = |lake: &Lake, day: &str, name: &str, text: String| {
        let archive = format!("2026{day}_4821_DROP.zip");
        lake.write(&archive, zip(&[(&format!("2026{day}_4821_{name}.csv"), text)]));
        lake.run(&["drop", "import", "job.toml", &archive]).exits(0);
    };
    let eve = hashed("eve@example.com");
    let listed = |lake: &Lake, day: &str| archive(lake, day, "Email", list(&[(id, eve.clone())]));
    let removed =
        |lake: &Lake, day: &str| archive(lake, day, "Removed", format!("ID,Hash,ListType\n{id},{eve},Email\n"));
    let check = |lake: &Lake, stays: bool| {
        lake.run(&["scrub", "job.toml"]).exits(0);
        assert_eq!(lake.text("lake/people.csv").contains("eve@"), stays);
        lake.run(&["verify", "job.toml"]).exits(0);
    };
    let lake = broker_lake();
    removed(&lake, "0920");
    listed(&lake, "0812");
    check(&lake, true);
    // And she asks anew, all of which is imported on one later day.
    let lake = broker_lake();
    listed(&lake, "0812");
    removed(&lake, "0920");
    listed(&lake, "1030");
    check(&lake, false);
    let lake = broker_lake();
    listed(&lake, "0812");
    listed(&lake, "1030");
    removed(&lake, "0920");
    check(&lake, false);
}

/// A day begins later in the west, and the withdrawal of that morning would be over.
#[test]
fn a_download_asks_once_in_whatever_time_zone_it_is_imported_again() {
    let lake = broker_lake();
    let import = |zone: &str| {
        let zone = format!("deadlines.time_zone={zone}");
        lake.run(&["drop", "import", "job.toml", FIRST, "--json", "--set", &zone]).exits(0).json()
    };
    assert_eq!(import("UTC")["added"], 7);
    lake.run(&["requests", "withdraw", "job.toml", CANCELLED, "--now", "2026-08-12T05:00:00Z"]).exits(0);
    let again = import("America/Los_Angeles");
    assert_eq!((&again["added"], &again["known"]), (&0.into(), &7.into()), "{again:#}");
    assert!(crate::ledger::states(&lake).contains(&format!("{CANCELLED} withdrawn")));
}

/// Its removals are recorded before what it lists: were it killed in between, the next run would delete whom it cancels.
#[test]
fn what_a_download_cancels_is_never_recorded_as_asked_for() {
    let lake = broker_lake();
    let removed = format!("ID,Hash,ListType\n{CANCELLED},{},Email\n", hashed("eve@example.com"));
    let listed = list(&[(DELETED, hashed("anna@example.com")), (CANCELLED, hashed("eve@example.com"))]);
    let files = [("20260812_4821_Email.csv", listed), ("20260812_4821_Removed.csv", removed)];
    lake.write(FIRST, zip(&files));
    let import = ["drop", "import", "job.toml", FIRST, "--json"];
    let told = lake.run(&import).exits(0).json();
    let counts = ["added", "known", "withdrawn", "removals_unknown"].map(|name| told[name].as_u64().unwrap());
    assert_eq!(counts, [2, 0, 1, 0], "{told:#}");
    let events = crate::ledger::events(&lake);
    let of_eve: Vec<_> =
        events.iter().filter(|event| event["request_id"] == CANCELLED).map(|it| &it["event"]).collect();
    assert_eq!(of_eve, ["withdrawn", "received"]);
    assert_eq!(crate::ledger::states(&lake), [format!("{CANCELLED} withdrawn"), format!("{DELETED} open")]);
    let again = lake.run(&import).exits(0).json();
    assert_eq!((&again["added"], &again["withdrawn"]), (&0.into(), &0.into()), "{again:#}");
}

/// One and the same download says of a work item what it says elsewhere in it.
#[test]
fn a_removal_that_contradicts_its_own_download_is_refused() {
    let eve = hashed("eve@example.com");
    for (hash, list_type) in [(hashed("zoe@example.com"), "Email"), (eve.clone(), "Phone")] {
        let lake = broker_lake();
        let removed = format!("ID,Hash,ListType\n{CANCELLED},{hash},{list_type}\n");
        let listed = list(&[(CANCELLED, eve.clone())]);
        lake.write(FIRST, zip(&[("20260812_4821_Email.csv", listed), ("20260812_4821_Removed.csv", removed)]));
        let says = ["another hash or list type", "nothing was recorded", CANCELLED];
        lake.run(&["drop", "import", "job.toml", FIRST]).exits(2).says(&says);
        assert!(crate::ledger::states(&lake).is_empty());
    }
}

/// A removal of a day to come would outlive every asking.
#[test]
fn a_download_of_a_day_to_come_is_refused() {
    let lake = broker_lake();
    let import = ["drop", "import", "job.toml", FIRST, "--now"];
    lake.run(&[&import[..], &["2026-08-10T12:00:00Z"]].concat()).exits(2).says(&["more than a day ahead"]);
    lake.run(&[&import[..], &["2026-08-11T12:00:00Z"]].concat()).exits(0);
}

/// Whoever fed a download's CSV to `requests import` before has its ids from another source; DROP wants a status all the same.
#[test]
fn a_work_item_is_one_whoever_named_it_before() {
    let lake = broker_lake();
    lake.run(&["requests", "add", "job.toml", "email=anna@example.com", "--request-id", DELETED]).exits(0);
    let import = ["drop", "import", "job.toml", FIRST, "--json"];
    assert_eq!(lake.run(&import).exits(0).json()["added"], 7);
    assert_eq!(lake.run(&import).exits(0).json()["added"], 0);
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.run(&["drop", "answer", "job.toml", "--out", "up"]).exits(0);
    assert!(uploads(&lake, "up")["20260812_4821_Email.csv"].contains(&(DELETED.to_owned(), 3)));
}

#[test]
fn what_was_seen_before_an_exemption_is_no_answer_when_it_has_ended() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST, "--now", "2026-08-13T00:00:00Z"]).exits(0);
    lake.run(&["scrub", "job.toml", "--now", "2026-08-13T00:00:00Z"]).exits(0);
    let exempt = ["requests", "exempt", "job.toml", NOT_FOUND, "--ground", "claim", "--until", "2026-09-01"];
    lake.run(&[&exempt[..], &["--now", "2026-08-14T00:00:00Z"]].concat()).exits(0);
    // Until then its status is owed as before.
    let list = lake.run(&["requests", "list", "job.toml", "--json", "--now", "2026-08-14T12:00:00Z"]).exits(0).json();
    let due = |id: &str| {
        let mut all = list["requests"].as_array().unwrap().iter();
        all.find(|request| request["request_id"] == id).unwrap()["due_at"].clone()
    };
    assert!(due(NOT_FOUND).is_string(), "{list:#}");
    assert_eq!(due(NOT_FOUND), due(DELETED));
    let answer = |now: &str| lake.run(&["drop", "answer", "job.toml", "--out", "up", "--json", "--now", now]);
    assert_eq!(answer("2026-08-15T00:00:00Z").exits(0).json()["statuses"]["2"], 1);
    lake.write("lake/new.csv", "user_id,email,mobile,first,last,born,zip\n9,Nobody@example.com,,,,,\n");
    let told = answer("2026-09-03T00:00:00Z").exits(0).json();
    assert_eq!((&told["files"], &told["unchanged"]), (&serde_json::json!([]), &7.into()), "{told:#}");
    lake.run(&["scrub", "job.toml", "--now", "2026-09-04T00:00:00Z"]).exits(0);
    assert_eq!(answer("2026-09-05T00:00:00Z").exits(0).json()["statuses"]["3"], 1);
}

#[test]
fn a_download_is_kept_for_whoever_has_the_key() {
    let lake = broker_lake();
    let key = age::x25519::Identity::generate();
    let recipient = format!("drop.archive_recipient={}", key.to_public());
    let told = lake.run(&["drop", "import", "job.toml", FIRST, "--json", "--set", &recipient]).exits(0).json();
    let kept = lake.bytes(".lakescrub/drop");
    let (name, sealed) = kept.first_key_value().unwrap();
    assert!(told["archive"]["kept"].as_str().unwrap().ends_with(name), "{told:#} {name}");
    assert_eq!(age::decrypt(&key, sealed).unwrap(), lake.read(FIRST));
    lake.run(&["drop", "import", "job.toml", FIRST, "--set", &recipient]).exits(0);
    assert_eq!(lake.bytes(".lakescrub/drop"), kept);
}

#[test]
fn a_bad_download_is_told_by_file_and_line_and_records_nothing() {
    let lake = broker_lake();
    let good = hashed("anna@example.com");
    let email = "20260814_4821_Email.csv";
    let archive = "20260814_4821_DROP.zip";
    for (rows, wanted) in [
        (
            format!("ID,Hash\n{DELETED},{good}\n{NOT_FOUND},{}\n", &good[..40]),
            format!("{archive}: {email}:3 has a Hash"),
        ),
        (format!("ID,Hash\n{DELETED},{good}\n{DELETED},{good}\n"), format!("{archive}: {email}:3 repeats an ID")),
        (format!("id,hash\n{DELETED},{good}\n"), format!("{archive}: {email}:1 is not the header ID,Hash")),
    ] {
        lake.write(archive, zip(&[(email, rows)]));
        let ran = lake.run(&["drop", "import", "job.toml", archive]).exits(2).says(&[&wanted]);
        assert!(!ran.stderr.contains(&good[..20]), "{}", ran.stderr);
    }
    lake.write("20260814_4822_DROP.zip", zip(&[("20260814_4822_Email.csv", list(&[]))]));
    lake.run(&["drop", "import", "job.toml", "20260814_4822_DROP.zip"]).exits(2).says(&["broker 4822", "4821"]);
    lake.run(&["drop", "import", "job.toml", "20260899_4821_DROP.zip"]).exits(2);
    lake.run(&["drop", "import", "job.toml", "download.zip"]).exits(2);
    let told = lake.run(&["requests", "status", "job.toml", "--json"]).exits(0).json();
    assert_eq!(told["requests"], 0, "{told:#}");
    // An id that comes again with another person's hash is no second entry of the first request.
    lake.write(archive, zip(&[(email, format!("ID,Hash\n{DELETED},{good}\n"))]));
    lake.run(&["drop", "import", "job.toml", archive]).exits(0);
    let (later, email) = ("20260815_4821_DROP.zip", "20260815_4821_Email.csv");
    lake.write(later, zip(&[(email, format!("ID,Hash\n{DELETED},{}\n", hashed("bob@example.com")))]));
    lake.run(&["drop", "import", "job.toml", later]).exits(2).says(&[DELETED, "another hash"]);
    let told = lake.run(&["requests", "status", "job.toml", "--json"]).exits(0).json();
    assert_eq!((&told["requests"], &told["ledger"]["events"]), (&1.into(), &1.into()), "{told:#}");
}

/// The statuses in the upload files of a folder, by file.
fn uploads(lake: &Lake, folder: &str) -> std::collections::BTreeMap<String, Vec<(String, u8)>> {
    let read = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("Id,Status"));
        let row =
            |line: &str| line.split_once(',').map(|(id, status)| (id.to_owned(), status.parse().unwrap())).unwrap();
        lines.map(row).collect()
    };
    lake.bytes(folder).into_iter().map(|(name, bytes)| (name, read(bytes))).collect()
}

#[test]
fn every_work_item_gets_one_status_and_a_later_match_another() {
    let lake = broker_lake();
    for archive in [FIRST, "20260813_4821_DROP.zip"] {
        lake.run(&["drop", "import", "job.toml", archive]).exits(0);
    }
    lake.run(&["requests", "exempt", "job.toml", EXEMPT, "--ground", "legal claim"]).exits(0);
    lake.run(&["drop", "answer", "job.toml", "--out", "up"]).exits(3).says(&["have no outcome yet"]);
    assert!(lake.bytes("up").is_empty());
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(
        lake.text("lake/people.csv").lines().map(|line| line.split(',').next().unwrap()).collect::<Vec<_>>(),
        // Of the two behind one address neither is deleted; who cancelled stays.
        ["user_id", "3", "4", "5"]
    );
    let told = lake.run(&["drop", "answer", "job.toml", "--out", "up", "--json"]).exits(0).json();
    assert_eq!(told["statuses"], serde_json::json!({ "2": 1, "3": 3, "4": 1, "5": 1 }), "{told:#}");
    let row = |id: &str, status: u8| (id.to_owned(), status);
    let wanted = std::collections::BTreeMap::from([
        (
            "20260812_4821_Email.csv".to_owned(),
            vec![row(DELETED, 3), row(NOT_FOUND, 5), row(SEVERAL, 4), row(EXEMPT, 2)],
        ),
        ("20260812_4821_NDZ.csv".to_owned(), vec![row(NDZ_DELETED, 3)]),
        ("20260812_4821_Phone.csv".to_owned(), vec![row(PHONE_DELETED, 3)]),
    ]);
    assert_eq!(uploads(&lake, "up"), wanted);
    let again = lake.run(&["drop", "answer", "job.toml", "--out", "up2", "--json"]).exits(0).json();
    assert_eq!((&again["files"], &again["unchanged"]), (&serde_json::json!([]), &6.into()), "{again:#}");
    lake.run(&["verify", "job.toml"]).exits(0);

    // What matched nothing is looked for on every later run.
    lake.write("lake/new.csv", "user_id,email,mobile,first,last,born,zip\n9,Nobody@example.com,,,,,\n");
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.run(&["drop", "answer", "job.toml", "--out", "up"]).exits(0);
    assert_eq!(uploads(&lake, "up").remove("20260812_4821_Email_am01.csv"), Some(vec![row(NOT_FOUND, 3)]));
}

/// What was exempted or not found is to be reported as well, and so is what changes later.
#[test]
fn a_status_that_is_owed_is_overdue_until_it_is_given() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST, "--now", "2026-08-13T00:00:00Z"]).exits(0);
    lake.run(&["requests", "exempt", "job.toml", EXEMPT, "--ground", "legal claim"]).exits(0);
    lake.run(&["scrub", "job.toml", "--now", "2026-08-14T00:00:00Z"]).exits(0);
    let standing = |now: &str, exit: i32| {
        let args = ["requests", "status", "job.toml", "--json", "--fail-on-overdue", "--now", now];
        let told = lake.run(&args).exits(exit).json();
        ["open", "unanswered", "overdue"].map(|name| told[name].as_u64().unwrap())
    };
    assert_eq!(standing("2026-09-27T12:00:00Z", 9), [7, 7, 7]);
    let list = lake.run(&["requests", "list", "job.toml"]).exits(0).stdout;
    for told in ["2 exempted: legal claim (unanswered)", "4 opted out: several consumers (unanswered)"] {
        assert!(list.contains(told), "{list}");
    }
    lake.run(&["drop", "answer", "job.toml", "--out", "up", "--now", "2026-09-20T00:00:00Z"]).exits(0);
    assert_eq!(standing("2026-09-27T12:00:00Z", 0), [0, 0, 0]);
    lake.write("lake/new.csv", "user_id,email,mobile,first,last,born,zip\n9,Nobody@example.com,,,,,\n");
    lake.run(&["scrub", "job.toml", "--now", "2026-10-01T00:00:00Z"]).exits(0);
    assert_eq!(standing("2026-10-02T00:00:00Z", 0), [1, 1, 0]);
    assert_eq!(standing("2026-12-01T00:00:00Z", 9), [1, 1, 1]);
    lake.run(&["drop", "answer", "job.toml", "--out", "up", "--now", "2026-10-03T00:00:00Z"]).exits(0);
    assert_eq!(standing("2026-12-01T00:00:00Z", 0), [0, 0, 0]);
}

#[test]
fn what_was_not_found_because_no_value_could_be_compared_is_told_by_its_list_type() {
    let lake = broker_lake();
    lake.write("job.toml", BROKER_JOB.replace("%Y-%m-%d", "%d.%m.%Y"));
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(0);
    let told = lake.run(&["drop", "answer", "job.toml", "--out", "up"]).exits(0);
    let told = told.says(&["could not compare most values of a column", "NDZ", "born"]);
    assert!(
        told.stdout.contains("3 values of column born could not be compared in the last scrub: NDZ"),
        "{}",
        told.stdout
    );
}

#[test]
fn an_exemption_holds_an_identifier_and_not_a_person() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    // Bob's address is exempted; his phone number is another work item, and is another identifier.
    lake.run(&["requests", "add", "job.toml", "email=bob@example.com", "--request-id", "B1"]).exits(0);
    lake.run(&["requests", "exempt", "job.toml", "B1", "--ground", "legal claim"]).exits(0);
    // And so is Anna's, of whom a work item of DROP has the same one.
    lake.run(&["requests", "add", "job.toml", "email=anna@example.com", "--request-id", "A1"]).exits(0);
    lake.run(&["requests", "exempt", "job.toml", "A1", "--ground", "legal claim"]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(0);
    let kept = lake.text("lake/people.csv");
    assert!(!kept.contains("bob@") && kept.contains("Anna@"), "{kept}");
    let ran = lake.run(&["drop", "answer", "job.toml", "--out", "up"]).exits(3);
    let ran = ran.says(&["1 work items have no outcome yet", DELETED, "1 of them share an identifier"]);
    assert!(lake.bytes("up").is_empty(), "{}", ran.stderr);
    lake.run(&["requests", "exempt", "job.toml", DELETED, "--ground", "legal claim"]).exits(0);
    let told = lake.run(&["drop", "answer", "job.toml", "--out", "up", "--json"]).exits(0).json();
    assert_eq!(told["statuses"]["2"], 1, "{told:#}");
}

#[test]
fn a_later_work_item_of_an_identifier_of_several_is_opted_out_as_well() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(0);
    let (archive, id) = ("20260814_4821_DROP.zip", "AAAAaaaa0099");
    lake.write(archive, zip(&[("20260814_4821_Email.csv", list(&[(id, hashed("home@example.com"))]))]));
    lake.run(&["drop", "import", "job.toml", archive]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert!(lake.text("lake/people.csv").contains("home@example.com"));
    lake.run(&["drop", "answer", "job.toml", "--out", "up"]).exits(0);
    assert_eq!(uploads(&lake, "up").remove("20260814_4821_Email.csv"), Some(vec![(id.to_owned(), 4)]));
}

#[test]
fn one_consumer_is_one_however_a_file_writes_the_key() {
    let lake = broker_lake();
    lake.write("job.toml", BROKER_JOB.replacen("format = \"csv\"\n", "", 1));
    let columns = |key: ArrayRef| {
        let nothing = || texts(&[""]);
        let (email, mobile) = (texts(&["anna@example.com"]), nothing());
        let rest =
            [("mobile", mobile), ("first", nothing()), ("last", nothing()), ("born", nothing()), ("zip", nothing())];
        [vec![("user_id", key), ("email", email)], rest.to_vec()].concat()
    };
    lake.write("lake/whole.parquet", parquet(columns(Arc::new(Int64Array::from(vec![1])))));
    lake.write("lake/float.parquet", parquet(columns(Arc::new(arrow::array::Float64Array::from(vec![1.0])))));
    lake.write("lake/padded.parquet", parquet(columns(texts(&["1 "]))));
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.run(&["drop", "answer", "job.toml", "--out", "up"]).exits(0);
    assert_eq!(uploads(&lake, "up")["20260812_4821_Email.csv"][0], (DELETED.to_owned(), 3));
}

/// An identifier in the object's name is that of every row, whoever these are.
#[test]
fn several_consumers_behind_an_object_s_name_are_several() {
    for (rows, several) in [("1,,,,,\n1,,,,,\n", false), ("1,,,,,\n2,,,,,\n", true)] {
        let lake = broker_lake();
        let object = "lake/email=anna@example.com/a.csv";
        lake.write(object, format!("user_id,mobile,first,last,born,zip\n{rows}"));
        lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
        lake.run(&["scrub", "job.toml"]);
        let told = lake.run(&["requests", "list", "job.toml", "--json", "--request-id", DELETED]).exits(0).json();
        let request = &told["requests"][0];
        assert_eq!(request["state"] == "exempted", several, "{request:#}");
        assert_eq!(lake.text("lake/people.csv").contains("Anna"), several);
        // One row of the table and two behind the name.
        let planned = if several { serde_json::Value::Null } else { 1.into() };
        assert_eq!(request["datasets"][0]["consumers"], planned, "{request:#}");
    }
}

#[test]
fn uploads_are_split_and_never_changed() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.write("up/20260812_4821_NDZ.csv", "something else");
    let split = ["drop", "answer", "job.toml", "--set", "drop.rows_per_file=2", "--out"];
    lake.run(&[&split[..], &["up"]].concat()).exits(2).says(&["is there already and holds something else"]);
    // One that a killed answer cut within a line is none.
    lake.write("other/20260812_4821_NDZ.csv", format!("Id,Status\n{NDZ_DELETED}"));
    lake.run(&[&split[..], &["other"]].concat()).exits(0);
    let names: Vec<(String, usize)> =
        uploads(&lake, "other").into_iter().map(|(name, rows)| (name, rows.len())).collect();
    let wanted = [
        ("20260812_4821_Email_part01.csv", 2),
        ("20260812_4821_Email_part02.csv", 2),
        ("20260812_4821_Email_part03.csv", 1),
        ("20260812_4821_NDZ.csv", 1),
        ("20260812_4821_Phone.csv", 1),
    ];
    assert_eq!(names, wanted.map(|(name, rows)| (name.to_owned(), rows)));
}

#[test]
fn whoever_shares_an_identifier_is_planned_and_verified_as_kept() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    let planned = lake.run(&["plan", "job.toml", "--json"]).exits(0).json();
    // Anna, Bob, Danielle and Eve, who has not cancelled here; neither of the two at home.
    assert_eq!(planned["datasets"][0]["rows"]["matched"], 4, "{planned:#}");
    let listed = lake.run(&["requests", "list", "job.toml", "--json", "--state", "exempted"]).exits(0).json();
    assert_eq!(listed["requests"], serde_json::json!([]), "a dry run records nothing");
    lake.run(&["scrub", "job.toml"]).exits(0);
    let manifest = lake.manifest();
    assert_eq!((&manifest["ledger"]["opted_out"], &manifest["verdict"]), (&1.into(), &"clean".into()), "{manifest:#}");
    let limits = manifest["limits"].to_string();
    assert!(limits.contains("1 DROP work items lead to several consumers each"), "{limits}");
    assert!(lake.text("lake/people.csv").contains("home@example.com"));
}

#[test]
fn what_cannot_be_told_is_not_deleted() {
    let lake = broker_lake();
    lake.write("lake/broken.csv", "user_id,email,mobile,first,last,born,zip\n1,\"anna@example.com");
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(3).says(&["consumers not counted"]);
    assert_eq!(lake.text("lake/people.csv"), PEOPLE);
    // They are left alone by this run, and by nothing else: no one has found several behind them, and the gate stops them.
    assert_eq!(lake.manifest()["ledger"]["opted_out"], 1);
    lake.run(&["gate", "job.toml", "lake/people.csv"]).exits(4);
    lake.run(&["drop", "answer", "job.toml", "--out", "up"]).exits(3).says(&["have no outcome yet"]);
    std::fs::remove_file(lake.path().join("lake/broken.csv")).unwrap();
    // Nor is it known whose rows a link leads to.
    lake.write("elsewhere/more.csv", format!("{HEADER}77,anna@example.com,,,,,\n"));
    let link = lake.path().join("lake/more.csv");
    std::os::unix::fs::symlink(lake.path().join("elsewhere/more.csv"), &link).unwrap();
    lake.run(&["scrub", "job.toml"]).exits(3).says(&["consumers not counted"]);
    assert_eq!(lake.text("lake/people.csv"), PEOPLE);
    std::fs::remove_file(link).unwrap();
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert!(!lake.text("lake/people.csv").contains("Anna"));
    // An object without the key is one that cannot be told, too.
    lake.write("lake/nokey.csv", "id,email,mobile,first,last,born,zip\n1,nobody@example.com,,,,,\n");
    lake.run(&["scrub", "job.toml"]).exits(3).says(&["consumers not counted"]);
    assert!(lake.text("lake/nokey.csv").contains("nobody@example.com"));
}

#[test]
fn the_consumer_key_may_be_a_match_column_itself() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    // By their common address the two at home are one consumer.
    let set = "dataset.0.drop.consumer_key=email";
    let planned = lake.run(&["plan", "job.toml", "--json", "--set", set]).exits(0).json();
    assert_eq!(planned["datasets"][0]["rows"]["matched"], 6, "{planned:#}");
}

#[test]
fn no_command_of_drop_says_or_keeps_whom_it_is_about() {
    let lake = broker_lake();
    let mut said = String::new();
    for args in [
        &["drop", "import", "job.toml", FIRST, "-vv"][..],
        &["plan", "job.toml", "-vv"],
        &["scrub", "job.toml", "-vv"],
        &["requests", "status", "job.toml", "-vv"],
        &["drop", "answer", "job.toml", "--out", "up", "-vv"],
    ] {
        let ran = lake.run(args).exits(0);
        said += &ran.stdout;
        said += &ran.stderr;
    }
    let mut places: Vec<(String, Vec<u8>)> = vec![("what was said".to_owned(), said.into_bytes())];
    places.extend(lake.bytes(".lakescrub"));
    places.extend(lake.bytes("up"));
    let people = ["anna@example.com", "Anna@Example.com", "4155550002", "home@example.com", "danielle"];
    let mut secrets: Vec<Vec<u8>> = people.iter().map(|text| text.as_bytes().to_vec()).collect();
    secrets.extend(people.iter().flat_map(|text| [hashed(text).into_bytes(), Sha256::digest(text).to_vec()]));
    secrets.push(NDZ.as_bytes().to_vec());
    for (name, bytes) in &places {
        for (number, secret) in secrets.iter().enumerate() {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{name} holds secret {number}");
        }
    }
}

/// When another writer's object lands.
#[derive(Clone, Copy)]
enum Lands {
    /// Before the dataset is listed for the so-maniest time.
    BeforeListing(usize),
    /// Before the first swap is announced.
    BeforeSwap,
}

/// The local disk with another writer.
struct OtherWriter {
    lands: Lands,
    land: Box<dyn Fn() + Send + Sync>,
    listings: AtomicUsize,
}

impl std::fmt::Debug for OtherWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OtherWriter")
    }
}

#[async_trait]
impl Store for OtherWriter {
    async fn list(&self, prefix: &Location) -> Result<Vec<Object>, StoreError> {
        if prefix.to_string().trim_end_matches('/').ends_with("/lake") {
            let number = self.listings.fetch_add(1, Ordering::SeqCst) + 1;
            if matches!(self.lands, Lands::BeforeListing(wanted) if wanted == number) {
                (self.land)();
            }
        }
        LocalStore.list(prefix).await
    }

    async fn head(&self, location: &Location) -> Result<Object, StoreError> {
        LocalStore.head(location).await
    }

    async fn get_range(&self, object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
        LocalStore.get_range(object, range).await
    }

    async fn get(&self, location: &Location) -> Result<(Object, Bytes), StoreError> {
        LocalStore.get(location).await
    }

    async fn put(&self, location: &Location, bytes: Bytes, when: Precondition) -> Result<Object, StoreError> {
        let is_of_journal = location.to_string().contains("/journal/");
        let names_object = bytes.windows(10).any(|part| part == b"people.csv");
        if matches!(self.lands, Lands::BeforeSwap) && is_of_journal && names_object {
            (self.land)();
        }
        LocalStore.put(location, bytes, when).await
    }

    async fn delete(&self, object: &Object) -> Result<(), StoreError> {
        LocalStore.delete(object).await
    }

    async fn replace(&self, object: &Object, write_id: &str) -> Result<Box<dyn Replacement>, StoreError> {
        LocalStore.replace(object, write_id).await
    }

    async fn probe(&self, prefix: &Location) -> Result<ConditionalWrites, StoreError> {
        LocalStore.probe(prefix).await
    }
}

const HEADER: &str = "user_id,email,mobile,first,last,born,zip\n";

/// The names of the ledger's segments, which are written once.
fn segments(lake: &Lake) -> Vec<String> {
    lake.files(".lakescrub/ledger").into_keys().collect()
}

/// A scrub of the broker's lake while another writer puts `text` there.
fn scrub_beside(lake: &Lake, lands: Lands, name: &str, text: String) -> Result<RunResult, Error> {
    let path = lake.path().join(name);
    let land = move || {
        if !path.exists() || std::fs::read_to_string(&path).unwrap() != text {
            std::fs::write(&path, &text).unwrap();
        }
    };
    scrub_while(lake, lands, Box::new(land))
}

/// A scrub of the broker's lake while another command is run on its job.
fn scrub_beside_command(lake: &Lake, lands: Lands, args: &[&str]) -> Result<RunResult, Error> {
    let command = std::sync::Mutex::new(lake.command(args));
    let land = move || assert!(command.lock().unwrap().output().unwrap().status.success());
    scrub_while(lake, lands, Box::new(land))
}

fn scrub_while(lake: &Lake, lands: Lands, land: Box<dyn Fn() + Send + Sync>) -> Result<RunResult, Error> {
    let store: Arc<dyn Store> = Arc::new(OtherWriter { lands, land, listings: AtomicUsize::new(0) });
    let job = Job::read(&lake.path().join("job.toml"), &[]).unwrap();
    let common = Cli::parse_from(["lakescrub", "--json", "--quiet", "scrub", "job.toml"]).common;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stores = Stores::new(store.clone(), store);
    let ended = runtime.block_on(scrub_with(&common, job, stores, Arc::new(jiff::Timestamp::now)));
    runtime.shutdown_background();
    ended
}

#[test]
fn a_second_consumer_who_lands_late_is_left_to_the_next_run() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    let late = format!("{HEADER}77,anna@example.com,,,,,\n");
    let ended = scrub_beside(&lake, Lands::BeforeSwap, "lake/late.csv", late.clone()).unwrap();
    assert_eq!(ended.exit, Exit::Residue, "{}", ended.result);
    assert_eq!(lake.text("lake/late.csv"), late, "nobody has counted the consumers of a late object");
    assert!(!lake.text("lake/people.csv").contains("Anna"));
}

#[test]
fn a_second_consumer_who_lands_after_the_count_stops_the_run() {
    let mut stopped = 0;
    let late = format!("{HEADER}77,anna@example.com,,,,,\n");
    for (name, text) in
        [("lake/late.csv", late.clone()), ("lake/people.csv", format!("{PEOPLE}{}", &late[HEADER.len()..]))]
    {
        for listing in 1..=2 {
            let lake = broker_lake();
            lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
            let segments = segments(&lake);
            let ended = scrub_beside(&lake, Lands::BeforeListing(listing), name, text.clone());
            // Either both of them were counted, so that neither is deleted, or the run stops.
            assert!(lake.text("lake/people.csv").contains("Anna"), "{name} before listing {listing}");
            assert!(lake.text(name).contains("77,anna"), "{name} before listing {listing}");
            if let Err(error) = ended {
                assert_eq!(error.exit, Exit::Conflict, "{error}");
                assert_eq!(lake.text("lake/people.csv"), if name == "lake/people.csv" { &text } else { PEOPLE });
                assert_eq!(self::segments(&lake), segments, "nothing is recorded");
                lake.run(&["scrub", "job.toml"]).exits(0);
                assert!(lake.text("lake/people.csv").contains("Anna"), "counted by now");
                stopped += 1;
            }
        }
    }
    assert_eq!(stopped, 2, "between the count and the find");
    // Somebody who is asked for by nobody stops nothing.
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    let other = format!("{HEADER}78,zoe@example.com,,,,,\n");
    let ended = scrub_beside(&lake, Lands::BeforeListing(2), "lake/late.csv", other).unwrap();
    assert_eq!(ended.exit, Exit::Clean, "{}", ended.result);
}

#[test]
fn a_work_item_that_comes_in_while_consumers_are_counted_is_left_to_the_next_run() {
    let lake = broker_lake();
    let pair = format!("{HEADER}7,pair@example.com,,,,,\n8,pair@example.com,,,,,\n");
    lake.write("lake/pair.csv", &pair);
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    let (archive, id) = ("20260814_4821_DROP.zip", "AAAAaaaa0099");
    lake.write(archive, zip(&[("20260814_4821_Email.csv", list(&[(id, hashed("pair@example.com"))]))]));
    let ended = scrub_beside_command(&lake, Lands::BeforeListing(1), &["drop", "import", "job.toml", archive]).unwrap();
    assert_eq!(ended.exit, Exit::Clean, "{}", ended.result);
    assert_eq!(lake.text("lake/pair.csv"), pair, "nobody has counted these two");
    assert!(!lake.text("lake/people.csv").contains("Anna"));
}

#[test]
fn whoever_opts_in_again_while_a_run_is_at_work_is_not_removed() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    let withdraw = ["requests", "withdraw", "job.toml", DELETED];
    let ended = scrub_beside_command(&lake, Lands::BeforeListing(2), &withdraw);
    assert_eq!(ended.map(|ended| ended.exit).unwrap_err().exit, Exit::Conflict);
    assert_eq!(lake.text("lake/people.csv"), PEOPLE);
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert!(lake.text("lake/people.csv").contains("Anna") && !lake.text("lake/people.csv").contains("bob@"));
    // What lands late is looked at against the ledger as it is by then.
    let lake = broker_lake();
    lake.write("job.toml", BROKER_JOB.replacen("consumer_key = \"user_id\"\n", "", 1));
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    let late = format!("{HEADER}77,anna@example.com,,,,,\n");
    let (path, text) = (lake.path().join("lake/late.csv"), late.clone());
    let command = std::sync::Mutex::new(lake.command(&withdraw));
    let land = move || {
        std::fs::write(&path, &text).unwrap();
        command.lock().unwrap().output().unwrap();
    };
    let ended = scrub_while(&lake, Lands::BeforeSwap, Box::new(land)).unwrap();
    assert_eq!((ended.exit, lake.text("lake/late.csv")), (Exit::Residue, late), "{}", ended.result);
}

#[test]
fn rows_whose_consumers_an_unreadable_object_hides_stay_in_every_dataset() {
    let lake = broker_lake();
    let other = "\n[[dataset]]\nname = \"other\"\nuri = \"other/\"\n[dataset.drop]\nEmail = [\"email\"]\nPhone = [\"mobile\"]\n";
    lake.write(
        "job.toml",
        format!("{}{other}", BROKER_JOB.replacen("NDZ = [\"first\", \"last\", \"born\", \"zip\"]\n", "", 1)),
    );
    lake.write("lake/broken.csv", format!("{HEADER}1,\"nobody@example.com"));
    lake.write("other/b.csv", "email,mobile\nnobody@example.com,\n");
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(3).says(&["consumers not counted"]);
    assert!(lake.text("other/b.csv").contains("nobody@"));
    std::fs::remove_file(lake.path().join("lake/broken.csv")).unwrap();
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert!(!lake.text("other/b.csv").contains("nobody@"));
}

#[test]
fn a_run_that_is_stopped_before_it_begins_records_no_exemption() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    let before = segments(&lake);
    lake.run(&["scrub", "job.toml", "--set", "guard.max_rows=1"]).exits(10);
    assert_eq!(segments(&lake), before, "the guard");
    let (dora, others) = ("4,home@example.com,,Dora,Home,1993-01-01,90003\n", PEOPLE.replace("4,home", "3,home"));
    lake.write("lake/people.csv", others);
    lake.run(&["scrub", "job.toml"]).exits(0);
    let written = segments(&lake);
    for name in &written[written.len() - 3..] {
        std::fs::remove_file(lake.path().join(".lakescrub/ledger").join(name)).unwrap();
    }
    lake.write("lake/back.csv", format!("{HEADER}{dora}3,home@example.com,,,,,\n"));
    let before = segments(&lake);
    lake.run(&["scrub", "job.toml"]).exits(8).says(&["the ledger is not the one that run"]);
    assert_eq!(segments(&lake), before, "a ledger without its end");
}

#[test]
fn the_exemption_is_recorded_before_anything_is_removed() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    let mut command = lake.command(&["scrub", "job.toml"]);
    command.env("LAKESCRUB_TEST_KILL_AFTER_ENTRY", "1");
    assert_eq!(ran(command).code, None);
    let listed = lake.run(&["requests", "list", "job.toml", "--json", "--state", "exempted"]).exits(0).json();
    assert_eq!(listed["requests"][0]["request_id"], SEVERAL, "{listed:#}");
    lake.run(&["scrub", "job.toml"]).exits(0);
    let events = lake.run(&["requests", "export", "job.toml", "--events", "--format", "ndjson"]).exits(0).stdout;
    assert_eq!(events.matches("\"exempted\"").count(), 1, "{events}");
}

#[test]
fn all_answers_of_one_time_are_recorded_at_once() {
    let lake = broker_lake();
    lake.run(&["drop", "import", "job.toml", FIRST]).exits(0);
    lake.run(&["scrub", "job.toml"]).exits(0);
    // Killed between two segments, the next answer would give the rest of a file another name.
    let before = segments(&lake).len();
    lake.run(&["drop", "answer", "job.toml", "--set", "drop.rows_per_file=1", "--out", "up"]).exits(0);
    assert!(uploads(&lake, "up").len() > 3);
    assert_eq!(segments(&lake).len(), before + 1);
}
