//! Due dates from the request to the exit code: regimes on import, what `requests status` says of them, exit 9.

use serde_json::json;

use crate::lakescrub_runner::{CUSTOMERS_JOB, Lake};

fn lake() -> Lake {
    let lake = Lake::new();
    let job = CUSTOMERS_JOB.replace(
        "uri = \"optouts.csv\"\n",
        "uri = \"optouts.csv\"\nrequest_id = \"id\"\nreceived_at = \"asked\"\nregime = \"us-ca-ccpa-delete\"\n",
    );
    lake.write("job.toml", job);
    lake.write(
        "optouts.csv",
        "id,email,asked\nR1,anna@example.com,2026-03-01\nR2,bob@example.com,2026-03-20T10:00:00Z\n",
    );
    lake.write("lake/people.csv", "id,email\n1,anna@example.com\n");
    lake
}

#[test]
fn a_request_is_due_by_its_regime_and_the_date_tells_how() {
    let lake = lake();
    lake.run(&["requests", "import", "job.toml", "--now", "2026-03-25T00:00:00Z"]).exits(0);
    let list = lake.run(&["requests", "list", "job.toml", "--json"]).exits(0).json();
    let requests = list["requests"].as_array().unwrap();
    let due: Vec<_> = requests.iter().map(|request| (&request["regime"], &request["due_at"])).collect();
    let regime = json!("us-ca-ccpa-delete");
    assert_eq!(due, [(&regime, &json!("2026-04-15")), (&regime, &json!("2026-05-04"))]);
    let how = requests[0]["due_how"].as_str().unwrap();
    assert!(how.starts_with("received 2026-03-01 (UTC); 45 calendar days after that day end on 2026-04-15"), "{how}");
}

/// Midnight UTC is the evening before in Los Angeles, a date is that day anywhere.
#[test]
fn a_date_is_a_day_and_midnight_is_a_moment() {
    let lake = lake();
    let zone = ["--set", "deadlines.time_zone=America/Los_Angeles"];
    lake.write(
        "optouts.csv",
        "id,email,asked\nR1,a@example.com,2026-03-02\nR2,b@example.com,2026-03-02T00:00:00Z\nR3,c@example.com,20260302\n",
    );
    lake.run(&[&["requests", "import", "job.toml"], &zone[..]].concat()).exits(0);
    for (id, asked) in [("R4", "2026-03-02"), ("R5", "2026-03-02T00:00:00Z")] {
        let add = ["requests", "add", "job.toml", "email=d@example.com", "--regime", "us-ca-ccpa-delete"];
        lake.run(&[&add[..], &["--id", id, "--received-at", asked], &zone[..]].concat()).exits(0);
    }
    let list = lake.run(&["requests", "list", "job.toml", "--json"]).exits(0).json();
    let due: Vec<_> = list["requests"].as_array().unwrap().iter().map(|request| &request["due_at"]).collect();
    assert_eq!(due, ["2026-04-16", "2026-04-15", "2026-04-16", "2026-04-16", "2026-04-15"]);
}

#[test]
fn exit_9_a_request_past_its_due_date() {
    let lake = lake();
    lake.run(&["requests", "import", "job.toml", "--now", "2026-03-25T00:00:00Z"]).exits(0);
    let status = |now: &str, more: &[&str], exit: i32| {
        let args = [&["requests", "status", "job.toml", "--json", "--now", now], more].concat();
        lake.run(&args).exits(exit).json()
    };
    let early = status("2026-04-12T00:00:00Z", &["--fail-on-overdue"], 0);
    assert_eq!((&early["open"], &early["overdue"]), (&json!(2), &json!(0)), "{early:#}");
    assert_eq!(early["due_within"], json!({ "days": 7, "requests": 1 }));
    assert_eq!(
        early["due"],
        json!([
            { "due_at": "2026-04-15", "in_days": 3, "requests": 1 },
            { "due_at": "2026-05-04", "in_days": 22, "requests": 1 },
        ])
    );
    assert_eq!((&early["oldest_age_days"], &early["forecast"]), (&json!(42.0), &json!(null)));
    // On its last day nothing is late.
    status("2026-04-15T23:59:59.9Z", &["--fail-on-overdue"], 0);
    let late = status("2026-04-16T00:00:01Z", &["--fail-on-overdue"], 9);
    assert_eq!((&late["overdue"], &late["overdue_requests"]), (&json!(1), &json!(["R1"])), "{late:#}");
    assert_eq!(late["exit"]["name"], "overdue");
    status("2026-04-16T00:00:01Z", &[], 0);
    let told = lake.run(&["requests", "status", "job.toml", "--now", "2026-04-16T00:00:01Z"]).exits(0).stdout;
    assert!(told.contains("R1: due on 2026-04-15 (us-ca-ccpa-delete)\n"), "{told}");
    assert!(told.contains("R1: received 2026-03-01 (UTC); 45 calendar days"), "{told}");
    let listed = ["requests", "list", "job.toml", "--json", "--now", "2026-04-16T00:00:01Z", "--state", "overdue"];
    let listed = lake.run(&listed).exits(0).json();
    assert_eq!((listed["requests"].as_array().unwrap().len(), &listed["requests"][0]["request_id"]), (1, &json!("R1")));
    // An exemption stops the clock; so does a withdrawal.
    lake.run(&["requests", "exempt", "job.toml", "R1", "--ground", "legal claim"]).exits(0);
    let exempt = status("2026-04-16T00:00:01Z", &["--fail-on-overdue"], 0);
    assert_eq!((&exempt["open"], &exempt["overdue"]), (&json!(1), &json!(0)), "{exempt:#}");
}

#[test]
fn the_schedule_tells_what_the_next_run_comes_too_late_for() {
    let lake = lake();
    lake.run(&["requests", "import", "job.toml", "--now", "2026-03-25T00:00:00Z"]).exits(0);
    lake.run(&["scrub", "job.toml", "--now", "2026-04-01T02:00:00Z"]).exits(0);
    lake.run(&["verify", "job.toml", "--now", "2026-04-02T02:00:00Z"]).exits(0);
    lake.run(&[
        "requests",
        "add",
        "job.toml",
        "email=carl@example.com",
        "--request-id",
        "R3",
        "--regime",
        "us-canspam",
        "--received-at",
        "2026-03-31",
    ])
    .exits(0);
    let status = |every: &str| {
        let every = format!("schedule.every={every}");
        let args = ["requests", "status", "job.toml", "--json", "--now", "2026-04-03T00:00:00Z", "--set", &every];
        lake.run(&args).exits(0).json()["forecast"].clone()
    };
    // Ten business days from 2026-03-31 end on 2026-04-14.
    assert_eq!(status("7d"), json!({ "next_run_at": "2026-04-08T02:00:00Z", "missed": 0, "missed_requests": [] }));
    assert_eq!(status("14d"), json!({ "next_run_at": "2026-04-15T02:00:00Z", "missed": 1, "missed_requests": ["R3"] }));
}

#[test]
fn an_unknown_regime_records_nothing() {
    let lake = lake();
    let import = ["requests", "import", "job.toml", "--regime", "us-ca-dorp"];
    lake.run(&import).exits(2).says(&["there is no deadline \"us-ca-dorp\"", "us-ca-drop"]);
    let job = lake.text("job.toml").replace("us-ca-ccpa-delete", "gdpr");
    lake.write("bad.toml", job);
    lake.run(&["check", "bad.toml"]).exits(2).says(&["optouts: regime \"gdpr\" is none of us-ca-drop"]);
    let status = lake.run(&["requests", "status", "job.toml", "--json"]).exits(0).json();
    assert_eq!(status["requests"], 0);
}

#[test]
fn a_request_that_came_back_has_a_term_of_its_own() {
    let lake = lake();
    let job =
        lake.text("job.toml").replace("[[dataset]]", "[[list]]\nname = \"ledger\"\nuri = \"ledger\"\n\n[[dataset]]");
    lake.write("job.toml", job);
    lake.run(&["requests", "import", "job.toml", "--now", "2026-03-25T00:00:00Z"]).exits(0);
    lake.run(&["scrub", "job.toml", "--now", "2026-04-01T00:00:00Z"]).exits(0);
    let status = |now: &str| {
        let args = ["requests", "status", "job.toml", "--json", "--fail-on-overdue", "--now", now];
        lake.run(&args)
    };
    let done = status("2026-06-01T00:00:00Z").exits(0).json();
    assert_eq!((&done["open"], &done["done"], &done["done_late"]), (&json!(0), &json!(2), &json!(0)), "{done:#}");
    assert_eq!(done["days_to_done"], json!({ "p50": 11.58, "p95": 31.0, "max": 31.0 }));
    lake.write("lake/back.csv", "id,email\n9,anna@example.com\n");
    lake.run(&["verify", "job.toml", "--now", "2026-06-02T00:00:00Z"]).exits(4);
    let back = status("2026-06-03T00:00:00Z").exits(0).json();
    assert_eq!((&back["open"], &back["overdue"]), (&json!(1), &json!(0)), "{back:#}");
    assert_eq!(back["due"][0]["due_at"], "2026-07-17", "{back:#}");
    // The term counts from the first look at the return: a later one does not put it off.
    lake.run(&["verify", "job.toml", "--now", "2026-07-10T00:00:00Z"]).exits(4);
    let late = status("2026-07-18T00:00:00Z").exits(9).json();
    assert_eq!((&late["due"][0]["due_at"], &late["reappearances"]), (&json!("2026-07-17"), &json!(1)), "{late:#}");
    let told = lake.run(&["requests", "status", "job.toml", "--now", "2026-07-18T00:00:00Z"]).exits(0).stdout;
    assert!(told.contains("R1: due on 2026-07-17 (us-ca-ccpa-delete), back since 2026-06-02T00:00:00Z"), "{told}");
    assert!(told.contains("R1: back since 2026-06-02 (UTC); 45 calendar days"), "{told}");
    // And every command says the same.
    let now = ["--now", "2026-07-18T00:00:00Z"];
    let list = lake.run(&[&["requests", "list", "job.toml", "--json"], &now[..]].concat()).exits(0).json();
    assert_eq!(list["requests"][0]["due_at"], "2026-07-17", "{list:#}");
    let export = lake.run(&[&["requests", "export", "job.toml", "--json"], &now[..]].concat()).exits(0).json();
    let row = &export["rows"][0];
    assert!(row["due_at"] == "2026-07-17" && row["due_how"].as_str().unwrap().starts_with("back since"), "{row:#}");
}

#[test]
fn a_second_asking_of_a_known_person_is_told_and_brings_an_earlier_date() {
    let lake = lake();
    let job = lake.text("job.toml").replace("regime = \"us-ca-ccpa-delete\"\n", "");
    lake.write("job.toml", &job);
    lake.run(&["requests", "import", "job.toml"]).exits(0);
    let first =
        |lake: &Lake| lake.run(&["requests", "list", "job.toml", "--json"]).exits(0).json()["requests"][0].clone();
    assert_eq!(first(&lake)["due_at"], json!(null));
    // A list that names a regime later gives its requests their dates, once.
    lake.write("job.toml", job.replace("received_at =", "regime = \"us-ca-ccpa-delete\"\nreceived_at ="));
    for added in [2, 0] {
        let told = lake.run(&["requests", "import", "job.toml", "--json"]).exits(0).json();
        assert_eq!(told["added"], added, "{told:#}");
    }
    assert_eq!(first(&lake)["due_at"], "2026-04-15");
    let add = ["requests", "add", "job.toml", "email=anna@example.com", "--regime", "us-canspam", "--received-at"];
    let add = |day: &str| lake.run(&[&add[..], &[day, "--json"]].concat()).exits(0).json();
    let told = add("2026-03-05");
    assert_eq!((&told["added"], &told["request_ids"]), (&json!(1), &json!(["R1"])), "{told:#}");
    for day in ["2026-03-05", "2026-03-06"] {
        assert_eq!(add(day)["added"], 0);
    }
    let request = first(&lake);
    assert_eq!((&request["due_at"], &request["regime"]), (&json!("2026-03-19"), &json!("us-canspam")), "{request:#}");
    assert_eq!(request["received_at"], "2026-03-01T00:00:00Z", "the clock runs from the first asking");
    let told = lake.run(&["requests", "add", "job.toml", "email=anna@example.com"]).exits(0).stdout;
    assert!(told.starts_with("nothing new: known as R1\n"), "{told}");
}

#[test]
fn a_rule_that_is_not_in_force_gives_no_date() {
    let lake = lake();
    let add = ["requests", "add", "job.toml", "email=zoe@example.com", "--regime", "us-tcpa-revoke-all"];
    let then = ["--received-at", "2026-12-01", "--now", "2026-12-01T12:00:00Z"];
    lake.run(&[&add[..], &then].concat()).exits(0).says(&["no due date"]);
    let args = ["requests", "status", "job.toml", "--json", "--fail-on-overdue", "--now", "2027-03-01T00:00:00Z"];
    let status = lake.run(&args).exits(0).json();
    assert_eq!((&status["open"], &status["without_due_date"]), (&json!(1), &json!(1)), "{status:#}");
}
