//! The command line as a person and a scheduler see it: exit codes, what goes to which stream, what an error says.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use insta::assert_snapshot;
use serde_json::Value;

use crate::lakescrub_runner::{Lake, Ran, copy_folder, ran};

const NOW: &str = "2026-11-20T12:00:00Z";

/// Three records, two of them listed.
fn lake() -> Lake {
    let lake = Lake::of_customers(&["ada@example.com", "bob@example.org"]);
    lake.write("lake/a.csv", "id,email\n1,ada@example.com\n2,eve@example.com\n3,bob@example.org\n");
    lake.write("lake/b.csv", "id,email\n4,eve@example.com\n");
    lake
}

/// What was said, without what differs from run to run.
fn told(lake: &Lake, text: &str) -> String {
    let folder = lake.path().display().to_string();
    // A table is as wide as the folder's name is long.
    let squeezed = |line: &str| {
        let mut out = String::new();
        line.replace(&folder, "FOLDER").trim_end().chars().for_each(|letter| {
            out.extend(Some(letter).filter(|letter| !(" ─═".contains(*letter) && out.ends_with(*letter))))
        });
        out
    };
    text.lines().map(squeezed).collect::<Vec<_>>().join("\n")
}

/// The error lines of stderr, without the log.
fn error(lake: &Lake, ran: &Ran) -> String {
    let text = told(lake, &ran.stderr);
    text.find("error: ").map_or(text.clone(), |start| text[start..].to_owned())
}

fn of_sample_data() -> Lake {
    let lake = Lake::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    copy_folder(&root.join("sample_data"), &lake.path().join("sample_data"));
    copy_folder(&root.join("sample_data/lake"), &lake.path().join("lake"));
    let job = std::fs::read_to_string(root.join("jobs/demo.toml")).unwrap();
    lake.write(
        "job.toml",
        job.replace("../sample_data", "sample_data").replace("../.demo/state/", ".lakescrub").replace("../.demo/", ""),
    );
    lake
}

// Exit codes, in their order.

#[test]
fn exit_0_the_sample_data_are_cleaned_as_counted_by_their_makers() {
    let lake = of_sample_data();
    let wish: Value = serde_json::from_str(&lake.text("sample_data/expected.json")).unwrap();
    let plan = lake.run(&["plan", "job.toml", "--json"]).exits(0).json();
    let scrub = lake.run(&["scrub", "job.toml", "--json"]).exits(0).json();
    for (number, name) in ["events", "customers"].into_iter().enumerate() {
        let (planned, done, wish) = (&plan["datasets"][number], &scrub["datasets"][number], &wish["datasets"][name]);
        assert_eq!(planned["rows"]["before"], wish["rows"]["before"]);
        assert_eq!(planned["rows"]["matched"], wish["rows"]["matched"]);
        assert_eq!(planned["objects"]["rewrite"], wish["objects"]["matched"]);
        assert_eq!(done["objects"]["listed"], wish["objects"]["listed"]);
        assert_eq!(done["objects"]["rewritten"], wish["objects"]["matched"]);
        assert_eq!(done["rows"]["before"], wish["rows"]["before"]);
        assert_eq!(done["rows"]["removed"], wish["rows"]["matched"]);
        assert_eq!(done["rows"]["after"], wish["rows"]["after"]);
        let objects = lake.objects();
        for (object, counts) in wish["by_object"].as_object().unwrap() {
            let row = &objects[&format!("lake/{name}/{object}")];
            assert_eq!(
                (row.rows_before, row.rows_removed),
                (counts["rows"].as_u64(), counts["matched"].as_u64()),
                "{object}"
            );
        }
    }
    for list in scrub["lists"].as_array().unwrap() {
        assert_eq!(list["rows"], wish["lists"][list["name"].as_str().unwrap()]["rows"]);
    }
    assert_eq!(scrub["verdict"], "clean");
    assert_eq!(scrub["verification"]["residue"]["rows"], 0);
    let scrubbed = lake.files("lake");
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.run(&["verify", "job.toml"]).exits(0);
    assert_eq!(lake.files("lake"), scrubbed);
}

#[test]
fn exit_2_every_fault_of_a_job_file_is_told_at_once_with_file_line_and_key() {
    let lake = lake();
    let job = lake.text("job.toml");
    let job = job
        .replace("max_fraction", "max_fractoin")
        .replace("kind = \"email\"\n\n[[dataset]]", "kind = \"mail\"\n\n[[dataset]]");
    lake.write("job.toml", job.replace("format = \"csv\"", "format = \"cvs\"\naction = 7"));
    assert_snapshot!(error(&lake, &lake.run(&["check", "job.toml"]).exits(2)), @r#"
    error: job.toml:5: guard.max_fractoin is not a known key; did you mean "max_fraction"?
    job.toml:13: list[0].column[0].kind "mail" is none of email, phone, phone-e164, maid, uuid, ip, integer, text, vin, zip, name, date, ctvid, ndz, namevin
    job.toml:18: dataset[0].format "cvs" is none of parquet, csv, tsv, ndjson
    job.toml:19: dataset[0].action must be a string, not integer
     hint: the README's section "The job file" lists every key
    "#);
}

#[test]
fn exit_2_what_is_wrong_with_the_call() {
    let lake = lake();
    lake.write("broken.toml", "version = 1\nname = \n");
    let cases: [(&[&str], &str); 9] = [
        (&["scrub"], "<JOB>"),
        (&["scrub", "job.toml", "--no-such-flag"], "--no-such-flag"),
        (&["scour", "job.toml"], "scour"),
        (&["scrub", "nowhere.toml"], "nowhere.toml"),
        (&["scrub", "broken.toml"], "broken.toml:2:"),
        (&["plan", "job.toml", "--now", "yesterday"], "--now"),
        (
            &["plan", "job.toml", "--set", "guard.max_row=1"],
            "guard.max_row is not a known key; did you mean \"max_rows\"?",
        ),
        (&["plan", "job.toml", "--set", "guard"], "\"guard\" is not key=value"),
        (&["manifest", "check", "nowhere"], "nowhere"),
    ];
    let before = lake.files("");
    for (args, said) in cases {
        let ran = lake.run(args).exits(2).says(&[said]);
        assert_eq!(ran.stdout, "", "{args:?}");
    }
    assert_eq!(lake.files(""), before);
}

#[test]
fn exit_2_keys_that_are_not_there_or_are_none() {
    let lake = lake();
    let signing = lake.text("keys/signing.key");
    for key in ["signing.key", "tag.key"] {
        let path = lake.path().join("keys").join(key);
        let text = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for command in ["scrub", "check"] {
            lake.run(&[command, "job.toml"]).exits(2).says(&[key, "keygen"]);
        }
        std::fs::write(&path, "hunter2").unwrap();
        let ran = lake.run(&["scrub", "job.toml"]).exits(2).says(&[key]);
        assert!(!ran.stderr.contains("hunter2"));
        std::fs::write(&path, text).unwrap();
    }
    lake.run(&["scrub", "job.toml", "--set", "state.signing_key={ env = \"NO_SUCH_KEY\" }"])
        .exits(2)
        .says(&["NO_SUCH_KEY is not set"]);
    let mut command = lake.command(&["check", "job.toml", "--set", "state.signing_key={ env = \"KEY\" }"]);
    command.env("KEY", signing);
    ran(command).exits(0);
    // A plan signs nothing and tags nothing.
    std::fs::remove_dir_all(lake.path().join("keys")).unwrap();
    lake.run(&["plan", "job.toml"]).exits(0);
}

#[test]
fn exit_2_a_fault_of_set_is_not_blamed_on_the_file() {
    let lake = lake();
    for (set, says) in [
        (
            "guard.max_row=10",
            "error: --set guard.max_row=10: guard.max_row is not a known key; did you mean \"max_rows\"?",
        ),
        ("guard.max_fraction=1.5", "guard.max_fraction must be a number between 0 and 1, not 1.5"),
        ("guard.max_rows=-3", "guard.max_rows must be a whole number of at least 0, not -3"),
        ("dataset.0.format=cvs", "error: --set dataset.0.format=cvs: dataset[0].format \"cvs\" is none of parquet"),
        ("dataset.0.match.0.column=a..b", "is not a column path such as"),
        ("guard", "error: --set \"guard\" is not key=value"),
    ] {
        let ran = lake.run(&["check", "job.toml", "--set", set]).exits(2).says(&[says]);
        assert!(!ran.stderr.contains("job.toml:"), "{}", ran.stderr);
    }
    lake.run(&["plan", "job.toml", "--now", "2026-11-01"]).exits(0);
    lake.run(&["plan", "job.toml", "--now", "soon"]).exits(2).says(&["a date such as 2026-11-01"]);
}

#[test]
fn bars_are_drawn_where_they_are_asked_for_and_no_log_line_is_lost_in_them() {
    let lake = lake();
    let ran = lake.run(&["scrub", "job.toml", "--progress", "always"]).exits(0);
    assert!(ran.stderr.contains("\u{1b}[2K") && ran.stderr.contains("objects  "), "{:?}", ran.stderr);
    assert!(
        ran.stderr.contains("stage ended stage=\"find\" dataset=\"customers\" objects=2 rows=4"),
        "{:?}",
        ran.stderr
    );
    assert_eq!(ran.stderr.matches("stage=\"find\"").count(), 1, "a look at nothing is no news: {:?}", ran.stderr);
    let quiet = lake.run(&["verify", "job.toml"]).exits(0);
    assert!(!quiet.stderr.contains('\u{1b}'), "{:?}", quiet.stderr);
}

#[test]
fn list_rows_without_an_identifier_are_counted_and_told() {
    let lake = lake();
    lake.write("optouts.csv", "id,email\n1,ada@example.com\n2,\n3, \n");
    let check = lake.run(&["check", "job.toml"]).exits(0);
    assert!(check.stdout.contains("3 rows in 1 file, 2 of them without an identifier"), "{}", check.stdout);
    lake.run(&["scrub", "job.toml"]).exits(0).says(&["list has rows without an identifier list=\"optouts\" rows=2"]);
    assert_eq!(
        (&lake.manifest()["lists"][0]["blank"], &lake.manifest()["lists"][0]["malformed"]),
        (&2.into(), &0.into())
    );
    lake.write("optouts.csv", "id,email\n1,ada@example.com\n2,b@example.com,surplus\n");
    let ran = lake.run(&["scrub", "job.toml", "--set", "guard.max_bad_list_rows=5"]).exits(2);
    assert!(ran.stderr.contains("max_bad_list_rows does not allow it"), "{}", ran.stderr);
}

#[test]
fn strays_are_told_under_the_tables() {
    let lake = lake();
    lake.write(
        "lake/a.csv",
        "id,email,note\n1,eve@example.com,from ada@example.com\n2,eve@example.com,ada@example.com\n",
    );
    let set =
        ["--set", "dataset.0.search=residue", "--set", "dataset.0.stray=redact", "--set", "guard.max_fraction=1.0"];
    let plan = lake.run(&[&["plan", "job.toml"], &set[..]].concat()).exits(0);
    let says = "customers: 2 stray cells of column note, with those in 2 rows that do not match: to be redacted";
    assert!(plan.stdout.contains(says), "{}", plan.stdout);
    let ran = lake.run(&[&["scrub", "job.toml", "--set", "canary.count=3"], &set[..]].concat()).exits(0);
    assert!(ran.stdout.contains("customers: 2 stray cells of column note redacted\n"), "{}", ran.stdout);
    let canaries = ran.stdout.lines().find(|line| line.starts_with("canaries ")).expect("a line about canaries");
    assert!(canaries.contains("3 planted, 3 found, 3 removed"), "{canaries}");
}

#[test]
fn exit_2_malformed_list_entries_are_told_by_line_and_never_quoted() {
    let lake = lake();
    lake.write("optouts.csv", "email\nada@example.com\n\"two\nlines\"\nno-address\n");
    let ran = lake.run(&["scrub", "job.toml"]).exits(2);
    assert_snapshot!(error(&lake, &ran), @r#"
    error: 2 list rows are malformed, [guard] max_bad_list_rows allows 0
    FOLDER/optouts.csv:3: email is not an e-mail address
    FOLDER/optouts.csv:5: email is not an e-mail address
     hint: correct the lists, or raise [guard] max_bad_list_rows to run without these entries
    "#);
    assert!(!ran.stderr.contains("no-address") && !ran.stderr.contains("lines\""));
}

#[test]
fn exit_2_an_object_that_two_datasets_hold() {
    let lake = lake();
    let twice = "[[dataset]]\nname = \"again\"\nuri = \"lake/*.csv\"\n[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n";
    lake.write("job.toml", lake.text("job.toml") + twice);
    let before = lake.files("lake");
    let check = lake.run(&["check", "job.toml"]).exits(2);
    assert!(check.stdout.contains("datasets customers and again: an object is in both"), "{}", check.stdout);
    for command in ["plan", "scrub"] {
        lake.run(&[command, "job.toml"]).exits(2).says(&["lake/a.csv is in dataset customers and in again", "hint: "]);
    }
    assert_eq!(lake.files("lake"), before);
    assert_eq!(lake.runs(), [""; 0]);
}

#[test]
fn a_manifest_times_its_stages_and_says_when_its_clock_was_set() {
    let lake = lake();
    lake.run(&["scrub", "job.toml", "--now", NOW]).exits(0);
    let manifest = lake.manifest();
    let stages = manifest["run"]["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["load", "find", "plan", "rewrite", "purge", "verify", "manifest"]);
    assert!(manifest["limits"].to_string().contains("--now set them"));
    lake.run(&["verify", "job.toml"]).exits(0);
    assert!(!lake.manifest()["limits"].to_string().contains("--now set them"));
}

#[test]
fn exit_3_what_could_not_be_looked_at_is_listed_beside_what_was_done() {
    let lake = lake();
    lake.write("lake/c.csv", "id,email\n5,ada@example.com,surplus\n");
    let ran = lake.run(&["scrub", "job.toml"]).exits(3).says(&["object left alone", "lake/c.csv"]);
    let shown = told(&lake, &ran.stdout);
    assert!(shown.contains("verdict incomplete (exit 3)"), "{shown}");
    assert!(shown.lines().any(|line| line.contains("c.csv") && line.contains("unreadable")), "{shown}");
}

#[test]
fn exit_4_what_was_rewritten_is_counted_although_residue_is_left() {
    let lake = lake();
    let (stray, anothers) = ("5,eve@example.com,from ada@example.com\n", "6,eve@example.com,mary-ada@example.com\n");
    lake.write("lake/a.csv", format!("id,email,note\n1,ada@example.com,\n{stray}{anothers}"));
    let mut command = lake.command(&["scrub", "job.toml", "--set", "dataset.0.search=residue"]);
    command.env("LAKESCRUB_SEARCH", "1");
    let ran = crate::lakescrub_runner::ran(command).exits(4);
    assert_eq!(lake.text("lake/a.csv"), format!("id,email,note\n{stray}{anothers}"));
    let manifest = lake.manifest();
    assert_eq!(manifest["datasets"][0]["objects"]["rewritten"], 1);
    assert_eq!(manifest["datasets"][0]["rows"]["removed"], 1);
    assert_eq!(manifest["verification"]["residue"]["undeclared"], 1);
    assert!(manifest["limits"].to_string().contains("in 1 cells a listed address is part of a longer one"));
    assert!(ran.stdout.contains("residue (exit 4)"), "{}", ran.stdout);
    lake.run(&["manifest", "check", ".lakescrub"]).exits(0);
}

#[test]
fn what_can_never_match_and_what_was_not_compared_is_told() {
    let lake = lake();
    lake.write("optouts.csv", "");
    let phone = "[[dataset.match]]\ncolumn = \"id\"\nkind = \"phone\"\n";
    lake.write("job.toml", lake.text("job.toml") + phone);
    lake.write("lake/c.csv", b"id,email\n7,m\xfcller@example.com\n");
    let check = lake.run(&["check", "job.toml"]).exits(0);
    assert!(check.stdout.contains("no list holds identifiers of kind phone for column id"), "{}", check.stdout);
    let mut command = lake.command(&["scrub", "job.toml"]);
    command.env("LAKESCRUB_SET", "");
    let ran = crate::lakescrub_runner::ran(command)
        .exits(0)
        .says(&["list holds no identifier", "no list holds identifiers of kind phone"]);
    let told = "1 value of column email is no identifier of its kind and was not compared";
    assert!(ran.stdout.contains(told), "{}", ran.stdout);
    assert!(lake.manifest()["limits"].to_string().contains(told));
}

#[test]
fn exit_2_a_constant_that_is_listed_itself() {
    let lake = lake();
    let redact = "action = \"redact\"\nredact = { email = { constant = \"BOB@example.org\" } }\n";
    lake.write(
        "job.toml",
        lake.text("job.toml").replacen("[[dataset.match]]", &format!("{redact}[[dataset.match]]"), 1),
    );
    let before = lake.files("lake");
    for command in ["plan", "scrub"] {
        lake.run(&[command, "job.toml"])
            .exits(2)
            .says(&["the constant that column email is redacted to is on a list itself"]);
    }
    assert_eq!(lake.files("lake"), before);
}

#[test]
fn exit_3_what_the_verifying_scan_would_refuse_is_not_written() {
    let lake = lake();
    lake.write("job.toml", lake.text("job.toml").replace("format = \"csv\"\n", ""));
    lake.write("lake/c.csv.gz", "id,email\n1,ada@example.com\n2,eve@example.com\n");
    lake.write("lake/d.ndjson", "{\"email\":\"ada@example.com\"}\n{\"email\":\"eve@example.com\",\"s\":\"\\ud800\"}\n");
    let mark = "\u{feff}";
    lake.write(
        "lake/e.ndjson",
        format!(
            "{mark}{{\"email\":\"ada@example.com\"}}\n{{\"email\":\"eve@example.com\",\"s\":\"\\ud83d\\ude00\"}}\n"
        ),
    );
    lake.write("lake/f.ndjson", format!("{mark}{{\"email\":\"ada@example.com\"}}\n"));
    let before = (lake.text("lake/c.csv.gz"), lake.text("lake/d.ndjson"));
    lake.run(&["scrub", "job.toml"]).exits(3).says(&["promises compression", "half of a surrogate pair"]);
    assert_eq!((lake.text("lake/c.csv.gz"), lake.text("lake/d.ndjson")), before);
    // The byte order mark is the file's, not the first record's.
    assert_eq!(
        lake.text("lake/e.ndjson"),
        format!("{mark}{{\"email\":\"eve@example.com\",\"s\":\"\\ud83d\\ude00\"}}\n")
    );
    assert_eq!(lake.text("lake/f.ndjson"), mark);
    std::fs::remove_file(lake.path().join("lake/c.csv.gz")).unwrap();
    std::fs::remove_file(lake.path().join("lake/d.ndjson")).unwrap();
    lake.run(&["scrub", "job.toml"]).exits(0);
}

#[test]
fn exit_4_verify_finds_what_is_there_and_changes_nothing() {
    let lake = lake();
    let before = lake.files("lake");
    let ran = lake.run(&["verify", "job.toml"]).exits(4);
    assert!(ran.stdout.contains("2 of 3 rows hold a listed identifier"), "{}", ran.stdout);
    assert_eq!(lake.files("lake"), before);
    assert_eq!(lake.manifest()["verification"]["residue"]["rows"], 2);
    assert_eq!(lake.manifest()["verdict"], "residue");
}

// Exit 5 and an object that changed (6): `stages`. A lock that is held (6), signals (130, 143): `crash`.
// An endpoint nobody listens on (7): `s3_scrub`.

#[test]
fn exit_8_a_flipped_byte_a_dropped_run_a_swapped_table() {
    let lake = lake();
    for _ in 0..3 {
        lake.run(&["scrub", "job.toml", "-q"]).exits(0);
    }
    let runs = lake.runs();
    let check = |what: &str, run: &str| {
        let json = lake.run(&["manifest", "check", ".lakescrub", "--json"]).exits(8).json();
        assert_eq!(json["command"], "manifest check", "{what}");
        assert_eq!(json["exit"]["name"], "untrusted", "{what}");
        assert!(json["error"]["message"].as_str().unwrap().contains(run), "{what}: {json:#}");
        lake.run(&["manifest", "check", ".lakescrub"]).exits(8).says(&["error: ", run]);
    };
    let table = |run: &str| format!(".lakescrub/manifests/{run}/objects.parquet");

    let whole = lake.read(&table(&runs[1]));
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    lake.write(&table(&runs[1]), flipped);
    check("a flipped byte", &runs[1]);
    lake.write(&table(&runs[1]), lake.read(&table(&runs[0])));
    check("a swapped table", &runs[1]);
    lake.write(&table(&runs[1]), &whole);
    lake.run(&["manifest", "check", ".lakescrub"]).exits(0);

    let folder = lake.path().join(".lakescrub/manifests").join(&runs[1]);
    std::fs::rename(&folder, lake.path().join("aside")).unwrap();
    check("a dropped run", &runs[1]);
    std::fs::rename(lake.path().join("aside"), folder).unwrap();

    // A state whose chain does not hold is not written on.
    let head = lake.text(".lakescrub/manifests/HEAD.json");
    std::fs::remove_file(lake.path().join(".lakescrub/manifests/HEAD.json")).unwrap();
    check("no head", "HEAD.json");
    lake.write(".lakescrub/manifests/HEAD.json", head);
    let others = Lake::new();
    let key = others.path().join("keys/signing.pub").display().to_string();
    lake.run(&["manifest", "check", ".lakescrub", "--public-key", &key]).exits(8);
}

#[test]
fn exit_8_a_broken_chain_stops_a_scrub_before_it_writes() {
    let lake = lake();
    lake.run(&["verify", "job.toml", "-q"]).exits(4);
    std::fs::remove_file(lake.path().join(".lakescrub/manifests/HEAD.json")).unwrap();
    let before = lake.files("lake");
    lake.run(&["scrub", "job.toml", "-q"]).exits(8).says(&["HEAD.json"]);
    assert_eq!(lake.files("lake"), before);
}

#[test]
fn exit_10_a_guard_shows_the_plan_and_stops() {
    let lake = lake();
    let before = lake.files("lake");
    for (set, said) in [("guard.max_rows=1", "max_rows = 1"), ("guard.max_fraction=0.4", "max_fraction = 0.4")] {
        let plan = lake.run(&["plan", "job.toml", "--set", set]).exits(10).says(&["error: ", said, "hint: "]);
        assert!(plan.stdout.contains("2 of 3 rows match"), "{}", plan.stdout);
        let json = lake.run(&["plan", "job.toml", "--set", set, "--json"]).exits(10).json();
        assert_eq!(json["exit"]["name"], "refused");
        assert!(json["error"]["message"].as_str().unwrap().contains(said));
        assert_eq!(json["datasets"][0]["rows"]["matched"], 2);
        let json = lake.run(&["scrub", "job.toml", "--set", set, "--json"]).exits(10).json();
        assert_eq!((&json["command"], &json["exit"]["code"]), (&"scrub".into(), &10.into()));
    }
    assert_eq!(lake.files("lake"), before);
    assert_eq!(lake.runs(), [""; 0]);
}

// Streams, forms and flags.

#[test]
fn stdout_is_the_result_and_stderr_the_log() {
    let lake = lake();
    let plan = lake.run(&["plan", "job.toml", "--now", NOW]).exits(0);
    assert_snapshot!(told(&lake, &plan.stdout), @r#"
    ─
    dataset objects rewrite drop keep refuse rows matched purge
    ═
    customers 2 1 0 1 0 4 2 -
    ─
    customers, in FOLDER/lake/
    ─
    object step reason
    ═
    a.csv rewrite 2 of 3 rows match
    ─
    nothing was written
    "#);
    assert!(plan.stderr.contains("stage ended") && !plan.stderr.contains('\u{1b}'), "{}", plan.stderr);
    let scrub = lake.run(&["scrub", "job.toml"]).exits(0);
    let shown = told(&lake, &scrub.stdout);
    let without_run = shown.rsplit_once('/').unwrap().0;
    assert_snapshot!(without_run, @r#"
    ─
    dataset objects written gone rows removed redacted after verified purged
    ═
    customers 2 1 0 4 2 0 2 2 0
    ─
    lists 2 identifiers
    verified 2 rows of 2 objects with polars 0.55.2
    residue 0 rows
    verdict clean (exit 0)
    manifest FOLDER/.lakescrub/manifests
    "#);
    assert_eq!(lake.run(&["scrub", "job.toml", "-q"]).exits(0).stderr, "");
    assert_snapshot!(told(&lake, &lake.run(&["check", "job.toml"]).exits(0).stdout), @r#"
    list optouts: 2 rows in 1 file
    dataset customers: 2 objects at lake/
    the job is ready to run
    "#);
}

#[test]
fn every_command_prints_one_json_document() {
    let lake = lake();
    let document = |args: &[&str], code: i32| {
        let json = lake.run(args).exits(code).json();
        assert_eq!(
            json["command"],
            args.iter().take_while(|arg| !arg.contains(['.', '-'])).cloned().collect::<Vec<_>>().join(" ")
        );
        assert_eq!(json["exit"]["code"], code);
        json
    };
    document(&["keygen", "more.keys", "--json"], 0);
    document(&["keygen", "more.keys", "--json"], 2);
    document(&["check", "job.toml", "--json"], 0);
    document(&["plan", "job.toml", "--json"], 0);
    document(&["verify", "job.toml", "--json"], 4);
    let scrub = document(&["scrub", "job.toml", "--json"], 0);
    let stages: Vec<&str> =
        scrub["run"]["stages"].as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(stages, ["load", "find", "plan", "rewrite", "purge", "verify", "manifest"]);
    assert!(scrub["run"]["stages"][0]["seconds"].is_number());
    document(&["manifest", "check", ".lakescrub", "--json"], 0);
    let runs = lake.runs();
    let [a, b] = [0, 1].map(|run| format!(".lakescrub/manifests/{}", runs[run]));
    document(&["manifest", "diff", &a, &b, "--json"], 0);
    document(&["scrub", "nowhere.toml", "--json"], 2);
    document(&["verify", "nowhere.toml", "--json"], 2);
}

#[test]
fn the_log_is_text_or_one_json_event_a_line_errors_included() {
    let lake = lake();
    for args in [["scrub", "job.toml", "--log-format", "json"], ["scrub", "nowhere.toml", "--log-format", "json"]] {
        let ran = lake.run(&args);
        assert!(!ran.stderr.is_empty());
        let events: Vec<Value> = ran.stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        assert_eq!(
            ran.code == Some(2),
            events.iter().any(|event| event["level"] == "ERROR" && !event["hint"].is_null())
        );
    }
    assert_eq!(lake.run(&["plan", "job.toml", "-q"]).exits(0).stderr, "");
    assert!(lake.run(&["plan", "job.toml"]).exits(0).stderr.contains("INFO"));
}

#[test]
fn every_flag_has_an_environment_form() {
    let lake = lake();
    let with = |name: &str, value: &str, args: &[&str]| {
        let mut command = lake.command(args);
        command.env(name, value);
        ran(command)
    };
    with("LAKESCRUB_JSON", "true", &["plan", "job.toml"]).exits(0).json();
    with("LAKESCRUB_JSON", "1", &["plan", "job.toml"]).exits(0).json();
    assert!(!with("LAKESCRUB_JSON", "0", &["plan", "job.toml"]).exits(0).stdout.starts_with('{'));
    assert!(with("LAKESCRUB_LOG_FORMAT", "json", &["plan", "job.toml"]).exits(0).stderr.starts_with('{'));
    assert_eq!(with("LAKESCRUB_QUIET", "1", &["plan", "job.toml"]).exits(0).stderr, "");
    with("LAKESCRUB_VERBOSE", "2", &["plan", "job.toml"]).exits(0);
    with("LAKESCRUB_PROGRESS", "sometimes", &["plan", "job.toml"]).exits(2).says(&["sometimes"]);
    with("LAKESCRUB_SET", "guard.max_rows=1\nguard.max_fraction=0.9", &["plan", "job.toml"]).exits(10);
    with("LAKESCRUB_NOW", "yesterday", &["plan", "job.toml"]).exits(2);
    let json = with("LAKESCRUB_NOW", NOW, &["scrub", "job.toml", "--json"]).exits(0).json();
    assert_eq!(json["run"]["started_at"], NOW);
    assert!(json["run"]["id"].as_str().unwrap().starts_with("20261120T120000Z-"));
    with("LAKESCRUB_PUBLIC_KEY", "keys/signing.pub", &["manifest", "check", ".lakescrub"]).exits(0);
    with("LAKESCRUB_PUBLIC_KEY", "keys/tag.key", &["manifest", "check", ".lakescrub"]).exits(2);
}

#[test]
fn progress_is_drawn_on_a_terminal_only_unless_asked_for() {
    let lake = lake();
    for (args, drawn) in
        [(["plan", "job.toml", "--progress=auto"], false), (["plan", "job.toml", "--progress=never"], false)]
    {
        let ran = lake.run(&args).exits(0);
        assert_eq!(ran.stderr.contains('\u{1b}'), drawn, "{args:?}: {}", ran.stderr);
    }
    let on_terminal = |environment: &[(&str, &str)]| {
        let program = env!("CARGO_BIN_EXE_lakescrub");
        let mut script = lake.command(&[]);
        script = {
            let mut command = std::process::Command::new("script");
            command
                .current_dir(script.get_current_dir().unwrap())
                .env_remove("CI")
                .env_remove("NO_COLOR")
                .env("TERM", "xterm");
            command
                .args(["-qec", &format!("'{program}' plan job.toml -v"), "/dev/null"])
                .envs(environment.iter().copied());
            command
        };
        script.stdin(Stdio::null()).output().ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // Without `script` (util-linux) there is no terminal to be had here.
    let Some(coloured) = on_terminal(&[]) else { return };
    assert!(coloured.contains("\u{1b}["), "{coloured}");
    let plain = on_terminal(&[("NO_COLOR", "1"), ("CI", "true")]).unwrap();
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
}

#[test]
fn set_overrides_what_the_job_says() {
    let lake = lake();
    let json = lake
        .run(&["plan", "job.toml", "--json", "--set", "dataset.0.name=people", "--set", "dataset.0.uri=lake/b.csv"])
        .exits(0)
        .json();
    assert_eq!(json["datasets"][0]["name"], "people");
    assert_eq!(json["datasets"][0]["rows"]["before"], 1);
    lake.run(&["scrub", "job.toml", "--set", "dataset.0.action=redact", "--set", "dataset.0.redact.email=null"])
        .exits(0);
    assert_eq!(lake.text("lake/a.csv"), "id,email\n1,\n2,eve@example.com\n3,\n");
}

#[test]
fn the_same_inputs_and_the_same_now_give_the_same_plan_byte_for_byte() {
    let lake = of_sample_data();
    let plan = || lake.run(&["plan", "job.toml", "--json", "--now", NOW]).exits(0).stdout;
    let first = plan();
    assert_eq!(first, plan());
    assert_eq!(
        first,
        lake.run(&["plan", "job.toml", "--json", "--now", NOW, "--set", "resources.threads=1"]).exits(0).stdout
    );
    let later = lake.run(&["plan", "job.toml", "--json", "--now", "2026-11-21T00:00:00Z"]).exits(0).stdout;
    assert_ne!(first, later, "the time is part of the plan");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_fault() {
    let lake = lake();
    let mut command = lake.command(&["completions", "zsh"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()), (Some(0), String::new()));
}

#[test]
fn keygen_makes_private_keys_and_never_overwrites() {
    let lake = Lake::new();
    lake.run(&["keygen", "new/keys"]).exits(0);
    let keys = lake.files("new/keys");
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["signing.key", "signing.pub", "tag.key"]);
    for name in keys.keys() {
        let mode = std::fs::metadata(lake.path().join("new/keys").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, if name == "signing.pub" { 0o644 } else { 0o600 }, "{name}");
    }
    lake.run(&["keygen", "new/keys"]).exits(2).says(&["never overwritten", "signing.key"]);
    assert_eq!(lake.files("new/keys"), keys);
}

#[test]
fn a_key_that_others_can_read_is_warned_about() {
    let lake = lake();
    std::fs::set_permissions(lake.path().join("keys/tag.key"), PermissionsExt::from_mode(0o644)).unwrap();
    lake.run(&["check", "job.toml"]).exits(0).says(&["WARN", "tag.key", "chmod 600"]);
}

#[test]
fn check_reads_no_rows_and_writes_nothing() {
    let lake = lake();
    lake.write("lake/broken.csv", "id,email\n1,2,3\n");
    let before = lake.files("");
    lake.run(&["check", "job.toml"]).exits(0);
    lake.run(&["check", "job.toml", "--set", "dataset.0.uri=nowhere/"]).exits(3);
    assert_eq!(lake.files(""), before);
}

#[test]
fn completions_and_version() {
    let lake = Lake::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = lake.run(&["completions", shell]).exits(0);
        assert!(ran.stdout.contains("lakescrub") && ran.stdout.contains("keygen"), "{shell}");
    }
    assert_eq!(lake.run(&["--version"]).exits(0).stdout, format!("lakescrub {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn help_texts() {
    let lake = Lake::new();
    assert_snapshot!("help", lake.run(&["--help"]).exits(0).stdout);
    assert_snapshot!("help_scrub", lake.run(&["scrub", "-h"]).exits(0).stdout);
    assert_snapshot!("help_manifest_check", lake.run(&["manifest", "check", "-h"]).exits(0).stdout);
}

#[test]
fn exit_3_a_name_that_is_not_utf8_stops_its_dataset_and_is_not_shown() {
    use std::os::unix::ffi::OsStrExt;
    let lake = Lake::of_customers(&["ada@example.com"]);
    lake.write("lake/a.csv", "id,email\n1,ada@example.com\n2,eve@example.com\n");
    let name = std::ffi::OsStr::from_bytes(b"lake/ada@example.com\xff.csv");
    std::fs::write(lake.path().join(name), "id,email\n1,ada@example.com\n").unwrap();
    let ran = lake.run(&["scrub", "job.toml"]).exits(3).says(&["a name in it is not UTF-8"]);
    assert!(!ran.stderr.contains("ada@") && !ran.stdout.contains("ada@"), "{ran:?}");
}

#[test]
fn a_log_or_a_result_that_cannot_be_written_stops_no_run() {
    let rows = "email\nanna@example.com\nbob@example.com\n";
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for format in ["text", "json"] {
        let lake = Lake::of_customers(&["anna@example.com"]);
        lake.write("lake/a.csv", rows);
        let mut command = lake.command(&["scrub", "job.toml", "--log-format", format, "-vv"]);
        let exit = command.stdout(std::process::Stdio::null()).stderr(full()).status().unwrap();
        assert_eq!(exit.code(), Some(0), "{format}");
        assert_eq!((lake.text("lake/a.csv").as_str(), lake.runs().len()), ("email\nbob@example.com\n", 1));
    }
    let lake = Lake::of_customers(&["anna@example.com"]);
    lake.write("lake/a.csv", rows);
    for args in [&["scrub", "job.toml"][..], &["plan", "job.toml", "--json"], &["manifest", "check", ".lakescrub"]] {
        let said = lake.command(args).stdout(full()).output().unwrap();
        assert_eq!(said.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(text.contains("the result cannot be written to stdout"), "{text}");
    }
    assert_eq!((lake.text("lake/a.csv").as_str(), lake.runs().len()), ("email\nbob@example.com\n", 1));
}

#[test]
fn a_command_line_that_is_not_understood_is_told_in_json_too() {
    let lake = Lake::new();
    for args in [&["scrup", "--json"][..], &["scrub", "--json"], &["--json"], &["plan", "a.toml", "--nope", "--json"]] {
        let said = lake.run(args).exits(2);
        let json = said.json();
        assert_eq!((json["exit"]["code"].as_i64(), &json["command"]), (Some(2), &serde_json::Value::Null), "{args:?}");
        assert!(!json["error"]["message"].as_str().unwrap().is_empty(), "{args:?}");
    }
}

#[test]
fn a_run_does_not_go_on_with_a_chain_that_was_tampered_with() {
    let rows = "email\nanna@example.com\nbob@example.com\n";
    let lake = Lake::of_customers(&["anna@example.com"]);
    lake.write("lake/a.csv", "email\n");
    lake.run(&["scrub", "job.toml"]).exits(0);
    lake.write("lake/a.csv", rows);
    let head = ".lakescrub/manifests/HEAD.json".to_owned();
    let envelope = format!(".lakescrub/manifests/{}/manifest.dsse.json", lake.runs()[0]);
    for name in [head, envelope] {
        let whole = lake.text(&name);
        let at = whole.rfind("\"sig\": \"").or(whole.rfind("\"sig\":\"")).unwrap() + 14;
        let mut flipped = whole.clone().into_bytes();
        flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
        lake.write(&name, flipped);
        for command in ["scrub", "verify"] {
            lake.run(&[command, "job.toml"]).exits(8).says(&["cannot trust"]);
        }
        assert_eq!((lake.text("lake/a.csv").as_str(), lake.runs().len()), (rows, 1), "{name}");
        lake.write(&name, whole);
    }
    // A key that was changed on purpose goes on, and is told.
    std::fs::remove_dir_all(lake.path().join("keys")).unwrap();
    lakescrub::keys::generate_keys(&lake.path().join("keys")).unwrap();
    lake.run(&["scrub", "job.toml"]).exits(0).says(&["signed with another key"]);
    assert_eq!(lake.runs().len(), 2);
}
