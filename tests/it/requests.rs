//! The request ledger: what the `requests` commands record and show, several writers at once, and a ledger that somebody touched.

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use lakescrub::ledger::Ledger;
use lakescrub::ledger_event::{Event, Fact, Tagged};
use lakescrub::signature::TagKey;
use lakescrub::store::Location;
use lakescrub::store::local::LocalStore;
use md5::Md5;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::lakescrub_runner::{Lake, Ran};

pub const JOB: &str = r#"version = 1
name = "customers"

[guard]
max_fraction = 1.0

[[list]]
name = "crm"
uri = "crm.csv"
request_id = "id"
received_at = "asked"
[[list.column]]
column = "email"
kind = "email"

[[list]]
name = "broker"
uri = "broker.csv"
request_id = "id"
[[list.column]]
column = "hash"
kind = "email"
hashed = "sha256-base64"

[[list]]
name = "all"
uri = "ledger"

[[dataset]]
name = "customers"
uri = "lake/"
format = "csv"

[[dataset.match]]
column = "email"
kind = "email"
"#;

fn sha256(text: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(text))
}

fn lake() -> Lake {
    let lake = Lake::new();
    lake.write("job.toml", JOB);
    lake.write("crm.csv", "id,asked,email\nR1,2026-08-01,Ada@Example.com\nR2,2026-08-02T10:00:00Z,bob@example.org\n");
    lake.write("broker.csv", format!("id,hash\nR1,{}\nB7,{}\n", sha256("ada@example.com"), sha256("eve@example.com")));
    lake.write("lake/a.csv", "id,email\n1,ada@example.com\n2,dan@example.com\n");
    lake
}

fn import(lake: &Lake, lists: &[&str]) -> Value {
    let args = [&["requests", "import", "job.toml", "--json"], lists].concat();
    lake.run(&args).exits(0).json()
}

fn requests(lake: &Lake) -> Vec<Value> {
    let told = lake.run(&["requests", "list", "job.toml", "--json"]).exits(0).json();
    told["requests"].as_array().unwrap().clone()
}

/// `id state` of every request, in the order in which they came.
fn states(lake: &Lake) -> Vec<String> {
    let state =
        |request: &Value| format!("{} {}", request["request_id"].as_str().unwrap(), request["state"].as_str().unwrap());
    requests(lake).iter().map(state).collect()
}

#[test]
fn the_same_list_twice_adds_nothing_and_a_hash_is_the_same_entry() {
    let lake = lake();
    let first = import(&lake, &["crm"]);
    assert_eq!((&first["added"], &first["known"]), (&2.into(), &0.into()), "{first}");
    let again = import(&lake, &["crm"]);
    assert_eq!((&again["added"], &again["known"]), (&0.into(), &2.into()), "{again}");
    // R1 of the broker is the hash of R1's address: one entry.
    let hashed = import(&lake, &["broker"]);
    assert_eq!((&hashed["added"], &hashed["known"]), (&1.into(), &1.into()), "{hashed}");
    assert_eq!(states(&lake), ["R1 open", "R2 open", "B7 open"]);
    let r1 = &requests(&lake)[0];
    assert_eq!(r1["identifiers"].as_array().unwrap().len(), 1, "{r1}");
    assert_eq!(r1["received_at"], "2026-08-01T00:00:00Z");
    assert_eq!(r1["source"], "crm");
    let status = lake.run(&["requests", "status", "job.toml", "--json"]).exits(0).json();
    assert_eq!((&status["requests"], &status["states"]["open"]), (&3.into(), &3.into()), "{status}");
    assert_eq!(status["identifiers"]["email"], 3);
    assert_eq!(status["ledger"]["segments"], 2);
}

#[test]
fn without_names_all_lists_of_the_job_are_imported_and_files_are_read_by_their_columns() {
    let lake = lake();
    assert_eq!(import(&lake, &[])["added"], 3);
    // Columns named after their kinds; no ids.
    lake.write("more.csv", "email,phone,note\nzoe@example.com,+1 (415) 555-9317,x\nada@example.com,,y\n");
    let more = import(&lake, &["more.csv"]);
    assert_eq!((&more["added"], &more["known"]), (&2.into(), &1.into()), "{more}");
    assert_eq!(import(&lake, &["more.csv"])["added"], 0);
    lake.write("lines.txt", "yan@example.com\n\nzoe@example.com\n");
    let lines = import(&lake, &["lines.txt", "--column", "x=email"]);
    assert_eq!((&lines["added"], &lines["known"]), (&1.into(), &1.into()), "{lines}");
    let ids: Vec<Value> = requests(&lake).into_iter().map(|request| request["request_id"].clone()).collect();
    assert!(ids[3].as_str().unwrap().starts_with("tag-"), "{ids:?}");
}

#[test]
fn a_job_without_datasets_takes_requests_in_and_looks_at_no_data() {
    let lake = lake();
    let (lists, _) = JOB.split_once("[[dataset]]").unwrap();
    let (files, _) = lists.split_once("[[list]]\nname = \"all\"").unwrap();
    let drop = format!("{lists}[drop]\nbroker_id = \"4821\"\n");
    for (name, job) in [("files.toml", files), ("intake.toml", drop.as_str())] {
        lake.write(name, job);
        for args in [
            &["requests", "import", name][..],
            &["requests", "add", name, "email=zoe@example.com"],
            &["requests", "list", name],
            &["requests", "status", name],
            &["requests", "export", name],
        ] {
            let ran = lake.run(args).exits(0);
            assert!(!ran.stderr.contains("WARN"), "{args:?}: {}", ran.stderr);
        }
        for args in
            [&["scrub", name][..], &["plan", name], &["verify", name], &["check", name], &["gate", name, "lake/x.csv"]]
        {
            lake.run(args).exits(2).says(&["the job has no [[dataset]]", "takes requests in"]);
        }
    }
    // What nobody could have looked for is not answered as not found.
    lake.run(&["drop", "answer", "intake.toml", "--out", "out"]).exits(2).says(&["the job has no [[dataset]]"]);
    assert!(!lake.path().join("out").exists());
    lake.run(&["drop", "import", "intake.toml", "20260812_4821_DROP.zip"])
        .exits(2)
        .says(&["cannot read 20260812_4821_DROP.zip: there is no such file"]);
    // Whoever has datasets and does not read the ledger is told.
    let (_, dataset) = JOB.split_once("[[dataset]]").unwrap();
    lake.write("blind.toml", format!("{files}[[dataset]]{dataset}"));
    lake.run(&["requests", "import", "blind.toml"]).exits(0).says(&["the runs of this job do not read the ledger"]);
    // And the job beside it removes.
    lake.write("lake/x.csv", "email\nzoe@example.com\ndan@example.com\n");
    lake.run(&["scrub", "job.toml"]).exits(0);
    assert_eq!(lake.text("lake/x.csv"), "email\ndan@example.com\n");
}

#[test]
fn an_id_that_spells_its_row_or_a_hash_is_not_shown() {
    let lake = lake();
    lake.write("lake/none.csv", "email\n");
    let md5 = |text: &str| Md5::digest(text);
    let ids = [
        format!("customer_number_{}", hex::encode(md5("ann@x.org"))),
        BASE64_STANDARD.encode(hex::encode(Sha256::digest("ann@x.org"))),
        "ann%2540x.org".to_owned(),
        BASE64_STANDARD.encode(md5("Ann@x.org")),
        BASE64_STANDARD.encode(md5("+14155559317")),
        BASE64_STANDARD.encode(md5("(415) 555-9317")),
        hex::encode(md5("dan@x.org")),
    ];
    let rows: Vec<String> =
        ids.iter().zip(1..).map(|(id, number)| format!("{id},Ann@x.org,(415) 555-9317,{number}\n")).collect();
    let rows = rows.concat().replace("Ann@x.org,(415) 555-9317,7", "zoe@x.org,4155550000,7");
    lake.write("ids.csv", format!("request_id,email,phone,n\n{rows}"));
    import(&lake, &["ids.csv", "--column", "email=email", "--column", "phone=phone", "--id-column", "request_id"]);
    let shown: Vec<String> = requests(&lake).iter().map(|request| request["request_id"].to_string()).collect();
    assert_eq!(shown.len(), ids.len(), "{shown:?}");
    assert!(shown.iter().all(|id| id.starts_with("\"id-")), "{shown:?}");
    // The original names it all the same, and typed in it is the same request.
    lake.run(&["requests", "withdraw", "job.toml", &ids[3]]).exits(0);
    let add = ["requests", "add", "job.toml", "email=Ann@x.org", "--request-id", &ids[3], "--json"];
    let told = lake.run(&add).exits(0).json();
    assert!(shown.contains(&told["request_ids"][0].to_string()), "{told}");
}

#[test]
fn a_list_that_cannot_become_tags_is_refused_with_its_place() {
    let lake = lake();
    lake.write("md5.csv", "h\n0123456789abcdef0123456789abcdef\n");
    let cases: [(&[&str], &[&str]); 7] = [
        (&["nothing.csv"], &["nothing.csv is no list of the job, and there is no such file", "lists: crm, broker"]),
        (&["crn"], &["crn is no list of the job, and there is no such file"]),
        (&["md5.csv"], &["md5.csv is no list of the job", "--column COLUMN=KIND"]),
        (&["md5.csv", "--column", "h=email:md5-hex"], &["holds md5-hex, from which no tag can be made"]),
        (&["md5.csv", "--column", "h"], &["--column h is not COLUMN=KIND"]),
        (&["bad.csv"], &["bad.csv:3: email is not an e-mail address"]),
        (&["when.csv", "--received-at-column", "asked"], &["asked of entry 2 is no date or time"]),
    ];
    lake.write("bad.csv", "email\nada@example.com\nnobody\n");
    lake.write("when.csv", "email,asked\nada@example.com,2026-01-01\nbob@example.com,soon\n");
    for (args, says) in cases {
        let args = [&["requests", "import", "job.toml"], args].concat();
        let ran = lake.run(&args).exits(2).says(says);
        assert!(!ran.stderr.contains("nobody"), "{ran:?}");
    }
    assert!(states(&lake).is_empty());
}

#[test]
fn a_withdrawal_is_recorded_survives_the_next_import_and_erases_nothing() {
    let lake = lake();
    import(&lake, &["crm"]);
    let at = "2026-09-01T00:00:00Z";
    lake.run(&["requests", "withdraw", "job.toml", "R1", "--now", at]).exits(0);
    assert_eq!(states(&lake), ["R1 withdrawn", "R2 open"]);
    assert_eq!(lake.run(&["requests", "withdraw", "job.toml", "R1", "--json"]).exits(0).json()["added"], 0);
    assert_eq!(import(&lake, &["crm"])["added"], 0);
    assert_eq!(states(&lake), ["R1 withdrawn", "R2 open"]);
    // By person, from stdin's form as well as from the command line; one that is unknown is an error without the value.
    lake.run(&["requests", "withdraw", "job.toml", "email=BOB@example.org"]).exits(0);
    assert_eq!(states(&lake), ["R1 withdrawn", "R2 withdrawn"]);
    let ran = lake.run(&["requests", "withdraw", "job.toml", "email=canary@example.org"]).exits(2);
    assert!(
        ran.stderr.contains("no request in the ledger has this email") && !ran.stderr.contains("canary"),
        "{ran:?}"
    );
    lake.run(&["requests", "withdraw", "job.toml", "R2", "R99"])
        .exits(2)
        .says(&["the request named by argument 2 is not in the ledger"]);
    lake.run(&["requests", "withdraw", "job.toml", "R98", "R2", "R99"])
        .exits(2)
        .says(&["2 of the 3 requests named are not in the ledger (argument 1, argument 3)"]);
    lake.run(&["requests", "exempt", "job.toml", "R98", "--ground", "tax"])
        .exits(2)
        .says(&["the request that was named is not in the ledger"]);
    // A later asking opens it again.
    lake.write("crm.csv", "id,asked,email\nR1,2026-10-01,ada@example.com\n");
    assert_eq!(import(&lake, &["crm"])["added"], 1);
    assert_eq!(states(&lake), ["R1 open", "R2 withdrawn"]);
    let events = events(&lake);
    let of_r1: Vec<&str> = events.iter().filter(|(id, _)| id == "R1").map(|(_, event)| event.as_str()).collect();
    assert_eq!(of_r1, ["received", "withdrawn", "received"]);
    // A list of people who opted in again; most of them never asked for anything.
    lake.write("optin.csv", "email\nada@example.com\nnobody@example.com\n");
    let list = ["requests", "withdraw", "job.toml", "--list", "optin.csv"];
    lake.run(&list).exits(0).says(&["rows=1", "no request in the ledger names these people"]);
    assert_eq!(states(&lake), ["R1 withdrawn", "R2 withdrawn"]);
    // Nobody at all is no withdrawal; and under another key it may be anybody.
    lake.write("optin.csv", "email\nnobody@example.com\n");
    lake.run(&list).exits(2).says(&["none of the 1 rows of the list names", "nothing was recorded"]);
    lake.write("optin.csv", "email\n");
    lake.run(&list).exits(0);
}

#[test]
fn a_withdrawal_by_list_under_another_key_is_refused_and_not_lost() {
    let lake = lake();
    import(&lake, &["crm"]);
    change_the_key(&lake);
    lake.write("optin.csv", "email\nada@example.com\n");
    let list = ["requests", "withdraw", "job.toml", "--list", "optin.csv"];
    let says = ["2 requests of the ledger are tagged with another tag_key", "nothing was recorded"];
    lake.run(&list).exits(2).says(&says);
    lake.run(&[&list[..], &["R2"]].concat()).exits(2).says(&says);
    assert_eq!(states(&lake), ["R1 open", "R2 open"]);
}

/// A row without an id that holds a known identifier and a new one stands for one person, who is withdrawn by either.
#[test]
fn a_row_without_an_id_is_not_torn_apart() {
    let lake = lake();
    import(&lake, &["crm"]);
    lake.write("more.csv", "email,phone\nada@example.com,+1 (415) 555-9317\n");
    assert_eq!(import(&lake, &["more.csv"])["added"], 2);
    assert_eq!(import(&lake, &["more.csv"])["added"], 0);
    lake.run(&["requests", "withdraw", "job.toml", "email=ada@example.com"]).exits(0);
    let open = requests(&lake).iter().filter(|request| request["state"] == "open").count();
    assert_eq!(open, 1, "bob's: {:?}", states(&lake));
    // And a list that names who opted in again beside somebody new says so.
    lake.write("more.csv", "email,phone\nada@example.com,+1 (415) 555-0000\n");
    let more = ["requests", "import", "job.toml", "more.csv"];
    assert_eq!(lake.run(&[&more[..], &["--json"]].concat()).exits(0).says(&["who opted in again"]).json()["added"], 0);
    lake.write("more.csv", "phone,email\n+1 (415) 555-1111,ada@example.com\n");
    lake.run(&more).exits(0).says(&["who opted in again"]);
    let open = requests(&lake).iter().filter(|request| request["state"] == "open").count();
    assert_eq!(open, 1, "{:?}", states(&lake));
}

/// What nobody withdrew is hung onto no withdrawn request, where nobody would ask for it; and nobody who opted in again is hung onto one
/// that is open. Both are told, whatever the order of the columns.
#[test]
fn a_row_that_names_somebody_who_opted_in_again_costs_nobody_a_removal() {
    for (before, row) in [
        ("", "email,phone\nada@example.com,4155550001\n"),
        ("", "phone,email\n4155550001,ada@example.com\n"),
        ("phone\n4155550001\n", "email,phone\nada@example.com,4155550001\n"),
        ("phone\n4155550001\n", "phone,email\n4155550001,ada@example.com\n"),
    ] {
        let lake = Lake::new();
        let rule = "[[dataset.match]]\ncolumn = \"phone\"\nkind = \"phone\"\n";
        let house = "[[list]]\nname = \"house\"\nuri = \"phones.csv\"\n[[list.column]]\ncolumn = \"phone\"\nkind = \"phone\"\n\n[[dataset]]";
        let job = format!("{}{rule}", ledger_alone());
        lake.write("job.toml", &job);
        lake.write("house.toml", job.replacen("[[dataset]]", house, 1));
        lake.write("ada.csv", "email\nada@example.com\n");
        lake.write("row.csv", row);
        lake.write("phones.csv", "phone\n4155550001\n");
        let people = "email,phone\nada@example.com,4155559317\nbob@example.org,4155550001\n";
        lake.write("lake/a.csv", people);
        import(&lake, &["ada.csv", "--now", "2026-11-01T00:00:00Z"]);
        lake.run(&["requests", "withdraw", "job.toml", "email=ada@example.com", "--now", "2026-11-02T00:00:00Z"])
            .exits(0);
        if !before.is_empty() {
            lake.write("before.csv", before);
            import(&lake, &["before.csv"]);
        }
        let told = lake.run(&["requests", "import", "job.toml", "row.csv", "--json"]).exits(0);
        assert_eq!(told.says(&["rows=1", "who opted in again"]).json()["added"], 0, "{before:?} {row:?}");
        let plan = lake.run(&["plan", "house.toml", "--json"]).exits(0).json();
        assert_eq!(plan["datasets"][0]["rows"]["matched"], 1, "nobody withdrew the number: {before:?} {row:?}");
        assert_eq!(import(&lake, &["phones.csv"])["added"], usize::from(before.is_empty()), "{row:?}");
        lake.run(&["scrub", "job.toml"]).exits(0);
        assert_eq!(lake.text("lake/a.csv"), "email,phone\nada@example.com,4155559317\n", "{before:?} {row:?}");
    }
}

/// Under an id of its list a request is no other one either.
#[test]
fn an_identifier_is_hung_onto_no_withdrawn_request_but_by_a_later_asking() {
    let lake = lake();
    import(&lake, &["crm"]);
    lake.run(&["requests", "withdraw", "job.toml", "R1"]).exits(0);
    for asked in ["", "2026-08-01"] {
        lake.write("crm.csv", format!("id,asked,email\nR1,{asked},zoe@example.com\n"));
        let told = lake.run(&["requests", "import", "job.toml", "crm", "--json"]).exits(0);
        let told = told.says(&["who opted in again"]).json();
        let of_list = &told["lists"][0];
        assert_eq!((&told["added"], &of_list["rows_not_heard"]), (&0.into(), &1.into()), "{asked:?}");
    }
    lake.write("zoe.csv", "email\nzoe@example.com\n");
    assert_eq!(import(&lake, &["zoe.csv"])["added"], 1);
    lake.run(&["requests", "add", "job.toml", "email=eve@example.com", "--request-id", "R1"]).exits(0);
    assert_eq!(states(&lake)[0], "R1 open");
}

/// Whoever types in a request must not think that it is one when it is none.
#[test]
fn a_request_that_is_typed_in_and_opens_none_says_so() {
    let lake = Lake::new();
    lake.write("job.toml", ledger_alone());
    let add = |more: &[&str]| {
        lake.run(&[&["requests", "add", "job.toml", "email=ada@example.com", "--json"], more].concat()).exits(0)
    };
    add(&["--now", "2026-11-01T00:00:00Z"]);
    let at = ["--now", "2026-11-20T18:00:00Z"];
    lake.run(&[&["requests", "withdraw", "job.toml", "email=ada@example.com"], &at[..]].concat()).exits(0);
    for more in [
        &["--now", "2026-11-20T17:00:00Z"][..],
        &["--received-at", "2026-11-20", "--now", "2026-11-20T19:00:00Z"],
        &["--received-at", "2026-11-10"],
        &["phone=4155550001", "--received-at", "2026-11-10"],
    ] {
        let told = add(more).says(&["opted in again", "not later"]).json();
        assert_eq!(told["added"], 0, "{more:?}");
        assert!(states(&lake).iter().all(|state| state.ends_with("withdrawn")), "{:?}", states(&lake));
    }
    let told = add(&["--now", "2026-11-20T19:00:00Z"]);
    assert!(!told.stderr.contains("opted in again"), "{told:?}");
    assert!(states(&lake)[0].ends_with("open"), "{:?}", states(&lake));
}

/// "For ever" is a usual date. It ends with the calendar, and the ledger can be read behind it.
#[test]
fn an_exemption_until_the_end_of_the_calendar_can_be_read_again() {
    for until in ["9999-12-31", "9999-12-30", "9999-12-30T22:00:00.999Z", "99991231", "2999-12-31"] {
        let lake = lake();
        import(&lake, &["crm"]);
        lake.run(&["requests", "exempt", "job.toml", "R1", "--ground", "tax", "--until", until]).exits(0);
        assert_eq!(states(&lake), ["R1 exempted", "R2 open"], "{until}");
        let told = ["requests", "exempt", "job.toml", "R1", "--ground", "tax", "--json", "--until", until];
        assert_eq!(lake.run(&told).exits(0).json()["added"], 0, "{until}");
        lake.write("job.toml", ledger_alone());
        lake.write("lake/a.csv", "email\nada@example.com\n");
        lake.run(&["scrub", "job.toml"]).exits(0);
        lake.run(&["gate", "job.toml", "lake/a.csv"]).exits(0);
    }
}

/// A time to come would be later than every withdrawal; a day is what clocks and time zones may differ by.
#[test]
fn an_asking_of_a_time_to_come_is_refused() {
    let lake = lake();
    let now = ["--now", "2026-11-20T12:00:00Z"];
    let add = ["requests", "add", "job.toml", "email=zoe@example.com", "--request-id", "Z1", "--received-at"];
    for day in ["9999-12-31", "2026-11-22", "2026-11-21T12:00:01Z"] {
        let says = ["more than a day ahead", "nothing was recorded"];
        lake.run(&[&add[..], &[day], &now].concat()).exits(2).says(&says);
        lake.write("crm.csv", format!("id,asked,email\nR1,2026-01-01,ada@example.com\nR2,{day},bob@example.org\n"));
        let ran = lake.run(&[&["requests", "import", "job.toml", "crm"], &now[..]].concat()).exits(2);
        ran.says(&[&says[..], &["asked of entry 2"]].concat());
    }
    assert!(states(&lake).is_empty());
    lake.run(&[&add[..], &["2026-11-21"], &now].concat()).exits(0);
    assert_eq!(states(&lake), ["Z1 open"]);
}

#[test]
fn an_id_moves_no_cursor_and_is_no_line_of_its_own() {
    let lake = lake();
    lake.write("crm.csv", "id,asked,email\n\"R1\u{1b}[2J\nR9 done\",,ada@example.com\n");
    import(&lake, &["crm"]);
    let ids = requests(&lake)[0]["request_id"].as_str().unwrap().to_owned();
    assert_eq!(ids, "R1\u{1b}[2J\nR9 done");
    for args in [&["list", "job.toml"][..], &["withdraw", "job.toml", "email=ada@example.com"]] {
        let said = lake.run(&[&["requests"], args].concat()).exits(0).stdout;
        assert!(said.contains("R1\\u{1b}[2J\\nR9 done"), "{said}");
    }
}

/// The program's own ids begin with `tag-` and `id-`; a list's may as well, and one that is new is a new request.
#[test]
fn a_new_id_of_a_list_is_a_new_request_whatever_it_begins_with() {
    let sha1 = |digit: &str| digit.repeat(40);
    for (first, second) in [("id-1001", "id-1002"), ("tag-1", "tag-2"), (sha1("a").as_str(), sha1("b").as_str())] {
        let lake = lake();
        lake.write("crm.csv", format!("id,asked,email\n{first},,ada@example.com\n"));
        import(&lake, &["crm"]);
        lake.run(&["requests", "withdraw", "job.toml", first]).exits(0);
        lake.write("crm.csv", format!("id,asked,email\n{first},,ada@example.com\n{second},,ada@example.com\n"));
        assert_eq!(import(&lake, &["crm"])["added"], 1, "{second}");
        let states: Vec<Value> = requests(&lake).iter().map(|request| request["state"].clone()).collect();
        assert_eq!(states, ["withdrawn", "open"], "{second}");
        assert_eq!(import(&lake, &["crm"])["added"], 0);
    }
}

#[test]
fn rows_without_an_id_and_ids_that_two_lists_have_by_chance_are_no_one_request() {
    let lake = lake();
    lake.write("crm.csv", "id,asked,email\n  ,,ada@example.com\n ,,zoe@example.com\n1,,bob@example.org\n");
    import(&lake, &["crm"]);
    assert_eq!(requests(&lake).len(), 3, "{:?}", states(&lake));
    // Request 1 of another list, after the first one and together with it.
    lake.write("broker.csv", format!("id,hash\n1,{}\n2,{}\n", sha256("eve@example.com"), sha256("dan@example.com")));
    let says = ["list broker: 1 row has the id of a request that came from elsewhere", "nothing was recorded"];
    lake.run(&["requests", "import", "job.toml"]).exits(2).says(&says);
    std::fs::remove_dir_all(lake.path().join(".lakescrub/ledger")).unwrap();
    lake.run(&["requests", "import", "job.toml"]).exits(2).says(&says);
    assert!(states(&lake).is_empty());
    lake.write("broker.csv", format!("id,hash\n1,{}\n", sha256("bob@example.org")));
    assert_eq!(import(&lake, &[])["added"], 3);
}

#[test]
fn a_list_that_is_read_again_asks_nothing_anew_whatever_time_it_has() {
    let lake = lake();
    lake.write("crm.csv", "id,asked,email\nR1,2031-01-01,ada@example.com\nR2,2031-01-01T10:00:00Z,bob@example.org\n");
    let then = ["crm", "--now", "2031-01-01T12:00:00Z"];
    import(&lake, &then);
    lake.run(&["requests", "withdraw", "job.toml", "R1", "R2"]).exits(0);
    assert_eq!(import(&lake, &then)["added"], 0);
    assert_eq!(states(&lake), ["R1 withdrawn", "R2 withdrawn"]);
}

fn events(lake: &Lake) -> Vec<(String, String)> {
    let ran = lake.run(&["requests", "export", "job.toml", "--events", "--format", "ndjson"]).exits(0);
    let events = ran.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
    events.map(|event| (text(&event, "request_id"), text(&event, "event"))).collect()
}

#[test]
fn one_request_is_added_exempted_and_exported() {
    let lake = lake();
    let add =
        ["requests", "add", "job.toml", "email=Zoe@example.com", "phone=4155559317", "--request-id", "Z1", "--json"];
    assert_eq!(lake.run(&add).exits(0).json()["added"], 2);
    assert_eq!(lake.run(&add).exits(0).json()["added"], 0);
    let hash = format!("email={}", sha256("zoe@example.com"));
    let same = ["requests", "add", "job.toml", &hash, "--hashed", "sha256-base64", "--json"];
    assert_eq!(lake.run(&same).exits(0).json()["added"], 0);
    lake.run(&["requests", "exempt", "job.toml", "Z1", "--ground", "tax records", "--until", "2031-01-01"]).exits(0);
    assert_eq!(states(&lake), ["Z1 exempted"]);
    let later = lake.run(&["requests", "list", "job.toml", "--json", "--now", "2031-01-02T00:00:00Z"]).exits(0).json();
    assert_eq!(later["requests"][0]["state"], "open");
    for (name, magic) in
        [("out.csv", "request_id,state"), ("out.ndjson", "{\"request_id\":\"Z1\""), ("out.parquet", "PAR1")]
    {
        lake.run(&["requests", "export", "job.toml", "--out", name]).exits(0);
        assert!(lake.read(name).starts_with(magic.as_bytes()), "{name}");
    }
    assert!(lake.text("out.csv").contains("Z1,exempted,manual,email phone,"), "{}", lake.text("out.csv"));
    let json = lake.run(&["requests", "export", "job.toml", "--json"]).exits(0).json();
    assert_eq!(json["rows"][0]["request_id"], "Z1");
    for wrong in [&["nothing"][..], &["email=nobody"], &["email=zoe@example.com", "--hashed", "md5-hex"]] {
        lake.run(&[&["requests", "add", "job.toml"], wrong].concat()).exits(2);
    }
}

#[test]
fn an_exemption_until_a_date_holds_that_whole_day_and_one_until_a_time_to_its_second() {
    for (until, last, next) in [
        ("2031-01-01", "2031-01-01T23:59:59.9Z", "2031-01-02T00:00:00Z"),
        ("20310101", "2031-01-01T23:59:59.9Z", "2031-01-02T00:00:00Z"),
        ("2031-01-01T00:00:00Z", "2031-01-01T00:00:00Z", "2031-01-01T00:00:01Z"),
        ("2031-01-01T10:00:00+02:00", "2031-01-01T08:00:00Z", "2031-01-01T08:00:01Z"),
    ] {
        let lake = lake();
        import(&lake, &["crm"]);
        lake.run(&["requests", "exempt", "job.toml", "R1", "--ground", "tax", "--until", until]).exits(0);
        let state = |now: &str| {
            let told = lake.run(&["requests", "list", "job.toml", "--json", "--now", now]).exits(0).json();
            told["requests"][0]["state"].as_str().unwrap().to_owned()
        };
        assert_eq!((state(last).as_str(), state(next).as_str()), ("exempted", "open"), "{until}");
        // And so for the data, by both readers of the ledger.
        lake.write("job.toml", ledger_alone());
        lake.run(&["verify", "job.toml", "--now", last]).exits(0);
        lake.run(&["verify", "job.toml", "--now", next]).exits(4);
    }
}

/// The job without its lists of files.
fn ledger_alone() -> String {
    let (before, rest) = JOB.split_once("[[list]]").unwrap();
    let ledger = rest.split_once("[[list]]\nname = \"all\"").unwrap().1;
    format!("{before}[[list]]\nname = \"all\"{ledger}")
}

#[test]
fn no_deadline_is_shown_of_what_is_exempted_or_withdrawn() {
    let lake = lake();
    import(&lake, &["crm", "--regime", "us-ca-ccpa-delete"]);
    let due = |lake: &Lake| -> Vec<Value> { requests(lake).iter().map(|request| request["due_at"].clone()).collect() };
    assert_eq!(due(&lake), ["2026-09-15", "2026-09-16"]);
    lake.run(&["requests", "exempt", "job.toml", "R1", "--ground", "tax"]).exits(0);
    lake.run(&["requests", "withdraw", "job.toml", "R2"]).exits(0);
    assert_eq!(due(&lake), [Value::Null, Value::Null]);
    let export = lake.run(&["requests", "export", "job.toml"]).exits(0).stdout;
    let table = lake.run(&["requests", "list", "job.toml"]).exits(0).stdout;
    assert!(!export.contains("2026-09-1") && !table.contains("2026-09-1"), "{export}{table}");
}

#[test]
fn what_is_kept_as_it_was_typed_may_name_no_person() {
    let lake = lake();
    import(&lake, &["crm"]);
    lake.write("canary@example.com.csv", "email\nzoe@example.com\n");
    let add = ["add", "job.toml", "email=zoe@example.com"];
    for (args, option) in [
        (&["exempt", "job.toml", "R1", "--ground", "asked by canary@example.com"][..], "--ground"),
        (&["exempt", "job.toml", "R1", "--ground", "call (415) 555-9317"], "--ground"),
        (&["withdraw", "job.toml", "R1", "--source", "canary@example.com"], "--source"),
        (&["import", "job.toml", "canary@example.com.csv"], "file name"),
        (&[&add[..], &["--source", "+1 415 555 9317"]].concat(), "--source"),
        (&[&add[..], &["--request-id", "by +1 415 555 9317"]].concat(), "--request-id"),
        (&[&add[..], &["--regime", "canary@example.com"]].concat(), "--regime"),
    ] {
        let ran = lake.run(&[&["requests"], args].concat()).exits(2).says(&[option, "nothing was recorded"]);
        assert!(!ran.stderr.contains("canary") && !ran.stderr.contains("555"), "{}", ran.stderr);
    }
    for args in [
        &[&add[..], &["--received-at", "canary@example.com"]].concat()[..],
        &[&add[..], &["--hashed", "canary@example.com"]].concat(),
        &["exempt", "job.toml", "R1", "--ground", "tax", "--until", "canary@example.com"],
        &["list", "job.toml", "--state", "canary@example.com"],
    ] {
        let ran = lake.run(&[&["requests"], args].concat()).exits(2);
        assert!(!ran.stderr.contains("canary"), "{}", ran.stderr);
    }
    assert_eq!(states(&lake), ["R1 open", "R2 open"]);
    lake.run(&["requests", "exempt", "job.toml", "R1", "--ground", "tax records 2026-11-27, 26 U.S.C. 6001"]).exits(0);
}

#[test]
fn a_withdrawal_by_list_does_not_pretend_to_read_times() {
    let lake = lake();
    import(&lake, &["crm"]);
    lake.write("optin.csv", "email,at\nada@example.com,2020-01-01\n");
    let list = ["requests", "withdraw", "job.toml", "--list", "optin.csv"];
    lake.run(&[&list[..], &["--received-at-column", "at"]].concat()).exits(2).says(&["a withdrawal reads no times"]);
    assert_eq!(states(&lake), ["R1 open", "R2 open"]);
    lake.run(&list).exits(0);
    assert_eq!(states(&lake), ["R1 withdrawn", "R2 open"]);
}

#[test]
fn the_state_holds_no_identifier_and_no_unkeyed_hash_even_as_a_request_id() {
    let lake = lake();
    lake.write("crm.csv", "id,asked,email\ncanary@example.com,2026-08-01,canary@example.com\n");
    import(&lake, &["crm"]);
    let hash = Sha256::digest("canary@example.com");
    let ran = lake.run(&["requests", "list", "job.toml", "--json", "-vv"]).exits(0);
    let export = lake.run(&["requests", "export", "job.toml", "--events"]).exits(0);
    let forms = ["canary".to_owned(), hex::encode(hash), BASE64_STANDARD.encode(hash)];
    let mut texts = vec![ran.stdout, ran.stderr, export.stdout];
    texts.extend(lake.bytes(".lakescrub").into_values().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    for (text, form) in texts.iter().flat_map(|text| forms.iter().map(move |form| (text, form))) {
        assert!(!text.contains(form), "{form} in {text}");
    }
    // And its owner can still withdraw by the id they know.
    lake.run(&["requests", "withdraw", "job.toml", "canary@example.com"]).exits(0);
}

fn tampered(change: impl Fn(&Lake, &[String])) -> Ran {
    let lake = lake();
    import(&lake, &["crm"]);
    import(&lake, &["broker"]);
    lake.run(&["requests", "withdraw", "job.toml", "R1"]).exits(0);
    let files: Vec<String> =
        lake.files(".lakescrub/ledger").into_keys().map(|name| format!(".lakescrub/ledger/{name}")).collect();
    assert_eq!(files.len(), 3);
    change(&lake, &files);
    lake.run(&["requests", "list", "job.toml"])
}

#[test]
fn a_ledger_that_somebody_touched_is_not_trusted() {
    let remove = |lake: &Lake, file: &String| std::fs::remove_file(lake.path().join(file)).unwrap();
    tampered(|_, _| {}).exits(0);
    tampered(|lake, files| remove(lake, &files[1])).exits(8).says(&["follows segment 2, which is missing"]);
    tampered(|lake, files| remove(lake, &files[0])).exits(8).says(&["follows segment 1, which is missing"]);
    tampered(|lake, files| {
        // The third event in the second one's place.
        remove(lake, &files[1]);
        std::fs::rename(lake.path().join(&files[2]), lake.path().join(&files[1])).unwrap();
    })
    .exits(8)
    .says(&["does not hold the segments that its name tells"]);
    tampered(|lake, files| {
        let other = Lake::new();
        other.write("job.toml", JOB);
        other.write("crm.csv", "id,asked,email\nR1,2026-08-01,ada@example.com\n");
        import(&other, &["crm"]);
        lake.write(&files[0], other.read(".lakescrub/ledger/00000000000000000001.parquet"));
    })
    .exits(8)
    .says(&["has a segment 2 that does not follow the one before"]);
    tampered(|lake, files| lake.write(&files[2], "nonsense")).exits(8).says(&["is no Parquet file"]);
}

fn received(id: &str, tag: u8) -> Event {
    let identifier = Tagged { kind: "email".into(), tag: [tag; 32] };
    let fact = Fact::Received {
        identifier,
        source: "test".into(),
        received_at: None,
        regime: None,
        due: None,
        list_digest: None,
    };
    Event { recorded_at: Timestamp::from_second(1).unwrap(), request_id: id.into(), fact }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_writers_lose_nothing_and_record_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (state, key) = (Location::Local(folder.path().to_owned()), Arc::new(TagKey::new([1; 32])));
    let writers = (0..8u8).map(|writer| {
        let (state, key) = (state.clone(), key.clone());
        tokio::spawn(async move {
            let mut ledger = Ledger::open(Arc::new(LocalStore), &state, &key).await.unwrap();
            let mut written = 0;
            // Each has events of its own and one that all have; more than fit before segments are gathered.
            for round in 0..6u8 {
                let own = received(&format!("w{writer}-{round}"), 100 + writer);
                written += ledger.append(vec![own, received(&format!("all-{round}"), round)]).await.unwrap().events;
            }
            written
        })
    });
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    assert_eq!(written, 8 * 6 + 6);
    let ledger = Ledger::open(Arc::new(LocalStore), &state, &key).await.unwrap();
    assert_eq!((ledger.requests().events, ledger.requests().len()), (54, 54));
    let ids: BTreeSet<String> = ledger.requests().iter().map(|request| request.id.to_string()).collect();
    assert!(ids.contains("w7-5") && ids.contains("all-0"), "{ids:?}");
    let files = std::fs::read_dir(folder.path().join("ledger")).unwrap().count();
    assert!(files < 40, "{files} files: they are gathered");
}

#[tokio::test]
async fn gathered_segments_say_what_they_said_apart_and_a_stray_one_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let (state, key) = (Location::Local(folder.path().to_owned()), TagKey::new([1; 32]));
    let store: Arc<LocalStore> = Arc::new(LocalStore);
    let mut ledger = Ledger::open(store.clone(), &state, &key).await.unwrap();
    let first = folder.path().join("ledger/00000000000000000001.parquet");
    let mut stray = Vec::new();
    for number in 0..40 {
        ledger.append(vec![received(&format!("r{number}"), number)]).await.unwrap();
        if number == 0 {
            stray = std::fs::read(&first).unwrap();
        }
    }
    let head = ledger.head();
    assert_eq!(head.sequence, 40);
    let again = Ledger::open(store.clone(), &state, &key).await.unwrap();
    assert_eq!((again.head(), again.requests().len()), (head, 40));
    assert!(!first.exists(), "gathered");
    // Whoever gathered was stopped before it removed this one.
    std::fs::write(&first, stray).unwrap();
    let again = Ledger::open(store.clone(), &state, &key).await.unwrap();
    assert_eq!((again.head(), again.requests().events), (head, 40));
    assert_eq!(again.segments().await.unwrap().len(), 40);
    // And a writer that was too slow, whose segment stands where another's stood, has not written.
    let mut slow = Ledger::open(store.clone(), &state, &key).await.unwrap();
    slow.append(vec![received("late", 77)]).await.unwrap();
    let mut end = Ledger::open(store, &state, &key).await.unwrap();
    assert_eq!((end.head().sequence, end.requests().len()), (41, 41));
    assert!(end.goes_on_from(&head));
    // The next time that segments are gathered it goes: whoever reads all files as one table counts no event twice.
    assert!(first.exists());
    for number in 0..40 {
        end.append(vec![received(&format!("s{number}"), number)]).await.unwrap();
    }
    assert!(!first.exists());
}

#[test]
fn tags_of_another_key_are_an_error_until_their_lists_are_imported_again() {
    let lake = lake();
    import(&lake, &["crm"]);
    lake.write("more.csv", "email\nzoe@example.com\nyan@example.com\n");
    import(&lake, &["more.csv"]);
    lake.run(&["requests", "withdraw", "job.toml", "email=yan@example.com"]).exits(0);
    std::fs::rename(lake.path().join("keys/tag.key"), lake.path().join("keys/old.key")).unwrap();
    lakescrub::keys::generate_keys(&lake.path().join("new")).unwrap();
    std::fs::rename(lake.path().join("new/tag.key"), lake.path().join("keys/tag.key")).unwrap();
    let status = lake.run(&["requests", "status", "job.toml", "--json"]).exits(0).json();
    assert_eq!(status["under_another_key"], 3, "{status}");
    import(&lake, &["crm", "more.csv", "--old-tag-key", "keys/old.key"]);
    let status = lake.run(&["requests", "status", "job.toml", "--json"]).exits(0).json();
    assert_eq!((&status["under_another_key"], &status["requests"]), (&0.into(), &4.into()), "{status}");
    // What was withdrawn under the old key is withdrawn under the new one, id or no id.
    assert_eq!(states(&lake)[..2], ["R1 open", "R2 open"]);
    let withdrawn = states(&lake).iter().filter(|state| state.ends_with("withdrawn")).count();
    assert_eq!(withdrawn, 1);
}

/// Another tag key; the one before is `keys/old.key`.
fn change_the_key(lake: &Lake) {
    std::fs::rename(lake.path().join("keys/tag.key"), lake.path().join("keys/old.key")).unwrap();
    lakescrub::keys::generate_keys(&lake.path().join("new")).unwrap();
    std::fs::rename(lake.path().join("new/tag.key"), lake.path().join("keys/tag.key")).unwrap();
}

/// Ids that are identifiers are hidden under the key: after its change the requests are still the same ones, however often they are
/// imported again.
#[test]
fn who_opted_in_again_stays_so_under_another_key() {
    let lake = lake();
    lake.write("crm.csv", "id,asked,email\nann@a.org,,ann@a.org\ncarol@c.org,,carol@c.org\nlegal@c.org,,legal@c.org\n");
    import(&lake, &["crm"]);
    lake.run(&["requests", "withdraw", "job.toml", "carol@c.org"]).exits(0);
    lake.run(&["requests", "exempt", "job.toml", "email=legal@c.org", "--ground", "legal hold"]).exits(0);
    let before = states(&lake);
    change_the_key(&lake);
    // The nightly import, a key that is none of theirs, and a request that is typed in.
    lakescrub::keys::generate_keys(&lake.path().join("other")).unwrap();
    let refused = [
        &["import", "job.toml", "crm"][..],
        &["import", "job.toml", "crm", "--old-tag-key", "other/tag.key"],
        &["import", "job.toml", "crm", "--old-tag-key", "keys/tag.key"],
        &["add", "job.toml", "email=zoe@z.org"],
    ];
    for arguments in refused {
        let ran = lake
            .run(&[&["requests"], arguments].concat())
            .exits(2)
            .says(&["3 requests of the ledger", "another tag_key"]);
        assert!(!ran.stderr.contains("zoe@"), "{}", ran.stderr);
    }
    import(&lake, &["crm", "--old-tag-key", "keys/old.key"]);
    assert_eq!(states(&lake), before);
    for _ in 0..2 {
        import(&lake, &["crm"]);
        assert_eq!(states(&lake), before);
    }
    lake.run(&["requests", "withdraw", "job.toml", "email=carol@c.org"]).exits(0);
    assert_eq!(states(&lake), before);
}

/// As long as a list was not read with both keys, a row without an id may be somebody who opted in again under the old one.
#[test]
fn who_opted_in_again_stays_so_when_only_some_lists_were_read_with_both_keys() {
    let lake = lake();
    lake.write("a.csv", "email\nzoe@example.com\n");
    lake.write("b.csv", "email\nyan@example.com\n");
    import(&lake, &["a.csv", "b.csv"]);
    lake.run(&["requests", "withdraw", "job.toml", "email=yan@example.com"]).exits(0);
    let yan = requests(&lake)[1]["request_id"].as_str().unwrap().to_owned();
    change_the_key(&lake);
    import(&lake, &["a.csv", "--old-tag-key", "keys/old.key"]);
    for arguments in [&["import", "job.toml", "b.csv"][..], &["add", "job.toml", "email=yan@example.com"]] {
        lake.run(&[&["requests"], arguments].concat())
            .exits(2)
            .says(&["1 requests of the ledger", "what has no request id may be one of these"]);
    }
    // Whom the new key knows may be named again; and what is given up under the new key stands in nobody's way.
    assert_eq!(import(&lake, &["a.csv"])["added"], 0);
    lake.run(&["requests", "withdraw", "job.toml", &yan]).exits(0);
    import(&lake, &["b.csv", "--old-tag-key", "keys/old.key"]);
    let withdrawn = states(&lake).iter().filter(|state| state.ends_with("withdrawn")).count();
    assert_eq!((withdrawn, requests(&lake).len()), (1, 2), "{:?}", states(&lake));
}

/// Tags of two keys are compared and not counted: what only the key before knows would be looked for by nobody.
#[test]
fn an_identifier_that_no_list_has_any_more_stays_under_the_key_before() {
    let lake = lake();
    let crm = |emails: [&str; 2]| {
        let rows = emails.map(|email| format!("R1,,{email}@example.com\n")).concat();
        lake.write("crm.csv", format!("id,asked,email\n{rows}"));
    };
    crm(["ada", "ada.b"]);
    import(&lake, &["crm"]);
    change_the_key(&lake);
    let add = ["add", "job.toml", "--request-id", "R1"];
    let refused = |arguments: &[&str]| {
        let says = ["1 requests of the ledger are tagged with another tag_key", "nothing was recorded"];
        lake.run(&[&["requests"], arguments].concat()).exits(2).says(&says);
    };
    refused(&[&add[..], &["email=ada.c@example.com"]].concat());
    crm(["ada", "ada.c"]);
    refused(&["import", "job.toml", "crm"]);
    let told = import(&lake, &["crm", "--old-tag-key", "keys/old.key"]);
    assert_eq!((&told["rekeyed"], &told["added"]), (&1.into(), &1.into()), "{told}");
    // One is left, whatever their number is, and nobody adds more to it by the new key alone.
    lake.run(&["verify", "job.toml"]).exits(2).says(&["1 requests of the ledger", "another tag_key"]);
    refused(&[&add[..], &["email=ada.d@example.com"]].concat());
    let rest = ["email=ada.b@example.com", "--old-tag-key", "keys/old.key"];
    lake.run(&[&["requests"], &add[..], &rest].concat()).exits(0);
    lake.run(&["check", "job.toml"]).exits(0);
    assert_eq!(requests(&lake)[0]["identifiers"].as_array().unwrap().len(), 3);
    let events = events(&lake);
    import(&lake, &["crm"]);
    assert_eq!(self::events(&lake), events);
}

#[test]
fn requests_without_an_id_that_share_an_identifier_are_all_found_under_another_key() {
    let lake = lake();
    lake.write("a.csv", "email\nann@example.com\n");
    lake.write("b.csv", "phone,email\n4155559317,ann@example.com\n");
    import(&lake, &["a.csv", "b.csv"]);
    let before = states(&lake);
    assert_eq!(before.len(), 2);
    change_the_key(&lake);
    import(&lake, &["a.csv", "b.csv", "--old-tag-key", "keys/old.key"]);
    assert_eq!(states(&lake), before);
    lake.run(&["check", "job.toml"]).exits(0);
    assert_eq!(import(&lake, &["a.csv", "b.csv"])["added"], 0);
}

#[test]
fn what_was_typed_is_not_said_or_kept_in_clear() {
    let lake = lake();
    import(&lake, &["crm"]);
    let ran = lake.run(&["requests", "withdraw", "job.toml", "R1", "4155559317"]).exits(2);
    assert!(!(ran.stderr + &ran.stdout).contains("4155559317"));
    let ran = lake.run(&["requests", "exempt", "job.toml", "ada at home", "--ground", "tax", "--json"]).exits(2);
    assert!(!(ran.stderr + &ran.stdout).contains("ada at home"));
    // An id that is the new request's own identifier, or its MD5, is a tag; its owner still knows it.
    let uuid = "5c9f1fd7c3b343e085f0f1f0a6c2c2a5";
    for (identifier, id) in [
        ("phone=+1 (415) 555-9317", "4155559317".to_owned()),
        ("text=member 4711", "member 4711".to_owned()),
        ("email=mia@example.com", hex::encode(<md5::Md5 as sha2::Digest>::digest("mia@example.com"))),
    ] {
        let add = ["requests", "add", "job.toml", identifier, "--request-id", &id];
        let ran = lake.run(&add).exits(0);
        assert!(!(ran.stderr + &ran.stdout).contains(&id), "{identifier}");
        let listed = lake.run(&["requests", "list", "job.toml", "--json"]).exits(0).stdout;
        assert!(!listed.contains(&id), "{identifier}");
        lake.run(&["requests", "withdraw", "job.toml", &id]).exits(0);
    }
    // A UUID is somebody's request number; other 32 hex digits may be anybody's hash.
    lake.run(&["requests", "add", "job.toml", "email=moe@example.com", "--request-id", uuid]).exits(0);
    assert!(states(&lake).contains(&format!("{uuid} open")), "{:?}", states(&lake));
    let other = "5c9f1fd7c3b3d3e0c5f0f1f0a6c2c2a5";
    let ran = lake.run(&["requests", "add", "job.toml", "email=joe@example.com", "--request-id", other]).exits(0);
    assert!(!ran.stdout.contains(other), "{}", ran.stdout);
}

#[tokio::test]
async fn what_is_supposed_is_supposed_still_behind_a_faster_writer_and_news_when_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (state, key) = (Location::Local(folder.path().to_owned()), TagKey::new([1; 32]));
    let open = || Ledger::open(Arc::new(LocalStore), &state, &key);
    let exempted = |id: &str| {
        let fact = Fact::Exempted { ground: "several".into(), until: None };
        Event { recorded_at: Timestamp::from_second(2).unwrap(), request_id: id.into(), fact }
    };
    let is_exempted = |ledger: &Ledger, id: &str| ledger.requests().get(id).unwrap().exempted.is_some();
    let mut ledger = open().await.unwrap();
    ledger.append(vec![received("r1", 1), received("r2", 2)]).await.unwrap();
    ledger.suppose(&[exempted("r1"), exempted("r2")]);
    open().await.unwrap().append(vec![received("r3", 3)]).await.unwrap();
    // Written at another time than it was supposed.
    let written = Event { recorded_at: Timestamp::from_second(9).unwrap(), ..exempted("r1") };
    assert_eq!(ledger.append(vec![written.clone()]).await.unwrap().events, 1);
    assert!(is_exempted(&ledger, "r1") && is_exempted(&ledger, "r2") && ledger.requests().get("r3").is_some());
    assert_eq!(ledger.append(vec![written]).await.unwrap().events, 0);
    let again = open().await.unwrap();
    assert!(is_exempted(&again, "r1") && !is_exempted(&again, "r2"));
    assert_eq!(again.requests().events, 4);
}
