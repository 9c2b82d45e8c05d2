//! No identifier of a list or of a listed row leaves the program, whatever happens: not in what it says, not in its state, not in
//! a name or a file that it leaves behind (invariant 5).

use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use md5::Md5;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::lakescrub_runner::{Lake, Ran, ran};

/// One of each kind, as the list and the data spell it and as it is in canonical form.
const CANARIES: [(&str, &str, &str); 5] = [
    ("email", "Canary.Bird@Example.com", "canary.bird@example.com"),
    ("phone", "(212) 555-0187", "2125550187"),
    ("uuid", "c0ffee00-1bad-4a11-9e57-0123456789ab", "c0ffee00-1bad-4a11-9e57-0123456789ab"),
    ("maid", "DEADBEEF-1BAD-4A11-9E57-0123456789AB", "deadbeef1bad4a119e570123456789ab"),
    ("text", "Member No 4711-Quetzal", "Member No 4711-Quetzal"),
];

/// Everything that would betray one of them.
fn forms() -> Vec<String> {
    let mut forms = Vec::new();
    for (_, spelled, canonical) in CANARIES {
        for text in [spelled.to_owned(), canonical.to_owned(), spelled.to_lowercase()] {
            let digests = [Sha256::digest(&text).to_vec(), Sha1::digest(&text).to_vec(), Md5::digest(&text).to_vec()];
            for digest in digests {
                let base64 = BASE64_STANDARD.encode(&digest);
                forms.extend([
                    hex::encode(&digest),
                    hex::encode_upper(&digest),
                    base64.trim_end_matches('=').to_owned(),
                ]);
            }
            forms.push(text);
        }
    }
    // Parts that an excerpt would show.
    forms.extend(["anary.", "Quetzal", "555-0187", "1bad-4a11", "1BAD-4A11"].map(str::to_owned));
    forms
}

fn record(separator: &str) -> String {
    CANARIES.map(|(_, spelled, _)| spelled).join(separator)
}

fn object() -> String {
    let pairs = CANARIES.map(|(kind, spelled, _)| format!("\"{kind}\":\"{spelled}\""));
    format!("{{{}}}", pairs.join(","))
}

fn parquet() -> Vec<u8> {
    let columns = CANARIES.map(|(kind, spelled, _)| {
        let cells: Arc<dyn arrow::array::Array> = Arc::new(StringArray::from(vec![spelled, "kept", spelled]));
        (kind, cells)
    });
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.append_key_value_metadata(KeyValue::new("note".to_owned(), record(" ")));
    writer.into_inner().unwrap()
}

/// A lake in every format, whose rows the list names.
fn lake() -> Lake {
    let lake = Lake::new();
    let header = CANARIES.map(|(kind, ..)| kind).join(",");
    lake.write("list.csv", format!("{header}\n{}\n", record(",")));
    let mut job = "version = 1\n[guard]\nmax_fraction = 1.0\n[[list]]\nname = \"all\"\nuri = \"list.csv\"\n".to_owned();
    for (kind, ..) in CANARIES {
        job += &format!("[[list.column]]\ncolumn = \"{kind}\"\nkind = \"{kind}\"\n");
    }
    for (name, action) in [("deleted", "action = \"delete\"\n"), ("redacted", "action = \"redact\"\n")] {
        job += &format!("[[dataset]]\nname = \"{name}\"\nuri = \"lake/{name}/\"\n{action}");
        for (kind, ..) in CANARIES {
            job += &format!("[[dataset.match]]\ncolumn = \"{kind}\"\nkind = \"{kind}\"\n");
        }
    }
    job += "[dataset.redact]\n";
    for (kind, ..) in CANARIES {
        job += &format!("{kind} = \"tag\"\n");
    }
    lake.write("job.toml", job);
    for name in ["deleted", "redacted"] {
        lake.write(&format!("lake/{name}/a.csv"), format!("{header}\n{}\nkept,,,,\n", record(",")));
        lake.write(&format!("lake/{name}/b.ndjson"), format!("{}\n", object()));
    }
    lake.write("lake/deleted/c.parquet", parquet());
    lake
}

fn assert_clean(what: &str, place: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for form in forms() {
        assert!(!text.contains(&form), "{what}: {place} holds {form:?}:\n{}", &text[..text.len().min(4000)]);
    }
}

/// Looks at all that a run said and left: its streams, its state, its temporary folder, and names.
fn assert_private(what: &str, lake: &Lake, ran: &Ran) {
    assert_clean(what, "stdout", ran.stdout.as_bytes());
    assert_clean(what, "stderr", ran.stderr.as_bytes());
    for (name, seen) in lake.files("") {
        assert_clean(what, "a file name", name.as_bytes());
        let ours = name.starts_with(".lakescrub/") || name.starts_with("tmp/") || name.contains(".lakescrub-");
        if ours {
            assert_clean(what, &name, &seen.bytes);
        }
        if name.ends_with("objects.parquet") {
            let rows = lakescrub::object_table::decode(seen.bytes.into()).unwrap();
            assert_clean(what, &name, format!("{rows:?}").as_bytes());
        }
    }
}

/// Every command at its loudest, as text and as JSON.
fn loudly(what: &str, lake: &Lake, environment: &[(&str, &str)]) {
    std::fs::create_dir_all(lake.path().join("tmp")).unwrap();
    let loud = [&["-vv", "--log-format", "json", "--json"][..], &["-vv", "--progress", "always"][..]];
    for (command, flags) in [
        ("plan", loud[0]),
        ("plan", loud[1]),
        ("check", loud[0]),
        ("scrub", loud[0]),
        ("scrub", loud[1]),
        ("verify", loud[0]),
    ] {
        let mut run = lake.command(&[&[command, "job.toml"], flags].concat());
        run.env("TMPDIR", lake.path().join("tmp")).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
        run.envs(environment.iter().copied());
        let ran = ran(run);
        assert_private(&format!("{what}, {command}"), lake, &ran);
    }
}

#[test]
fn no_output_holds_an_identifier_or_its_unkeyed_hash() {
    let lake = lake();
    loudly("a clean run", &lake, &[]);
    assert_eq!(lake.manifest()["verdict"], "clean");
    for (name, bytes) in lake.bytes("lake") {
        // The note among the file's key-value metadata stays by contract; no row does.
        let note = name.ends_with(".parquet");
        if !note {
            assert_clean("the cleaned lake", &name, &bytes);
        }
    }
}

#[test]
fn residue_is_counted_and_not_shown() {
    let lake = lake();
    let ran = lake.run(&["verify", "job.toml", "-vv", "--json"]).exits(4);
    assert_private("residue", &lake, &ran);
}

#[test]
fn objects_that_break_beside_an_identifier_quote_nothing() {
    let lake = lake();
    let (csv, json) = (record(","), object());
    let header = CANARIES.map(|(kind, ..)| kind).join(",");
    let whole = parquet();
    let text_at = whole.windows(5).position(|part| part == b"anary").unwrap();
    let mut torn = whole.clone();
    torn[text_at - 8..text_at + 2].fill(0xff);
    let faults: [(&str, Vec<u8>); 12] = [
        ("d.csv", format!("{header}\n{csv},{csv}\n").into()),
        ("e.csv", format!("{header}\n\"{csv}\n{csv}\n").into()),
        ("f.csv", [header.as_bytes(), b"\n\xff\xfe", csv.as_bytes(), b"\n"].concat()),
        ("g.csv", format!("{csv}\n{csv}\n").into()),
        ("h.csv.gz", csv.clone().into()),
        ("i.ndjson", format!("{json}\n{json},{json}\n").into()),
        ("j.ndjson", format!("{{\"email\":{csv}}}\n").into()),
        ("k.ndjson", format!("[{json}]\n\"{csv}\"\n").into()),
        ("l.ndjson", [b"{\"email\":\"\xff", csv.as_bytes(), b"\"}\n"].concat()),
        ("m.parquet", torn),
        ("n.parquet", whole[..whole.len() - 20].to_vec()),
        ("o.parquet", [csv.as_bytes(), &whole[csv.len()..]].concat()),
    ];
    for (name, bytes) in faults {
        lake.write(&format!("lake/deleted/{name}"), bytes);
    }
    loudly("broken objects", &lake, &[]);
    assert_ne!(lake.manifest()["verdict"], "clean");
}

#[test]
fn lists_that_break_beside_an_identifier_quote_nothing() {
    let header = CANARIES.map(|(kind, ..)| kind).join(",");
    let good = record(",");
    let cases = [
        ("a malformed entry", format!("{header}\n{good}\nCanary.Bird at Example.com,12,{good}\n")),
        (
            "malformed entries alone",
            format!("{header}\nCanary.Bird.Example.com,,,,\n,,c0ffee00-1bad-4a11-9e57-0123456789zz,,\n"),
        ),
        ("no header", format!("{good}\n{good}\n")),
        ("a text that could be a header", "Quetzal,Quetzal,Quetzal,Quetzal,Quetzal\n".to_owned()),
        ("an open quote", format!("{header}\n\"{good}\n{good}\n")),
        ("too many fields", format!("{header}\n{good},{good}\n")),
    ];
    for (what, list) in cases {
        let lake = lake();
        lake.write("list.csv", list);
        let before = lake.files("lake");
        for command in ["check", "scrub", "plan", "verify"] {
            let ran = lake.run(&[command, "job.toml", "-vv", "--json"]);
            if what != "a text that could be a header" && what != "an open quote" {
                assert_eq!(ran.code, Some(2), "{what}: {ran:?}");
            }
            assert_private(what, &lake, &ran);
        }
        assert_eq!(lake.files("lake"), before, "{what}");
    }
}

#[test]
fn a_killed_run_leaves_nothing_readable() {
    for entry in ["1", "4", "7"] {
        let lake = lake();
        loudly(&format!("killed after entry {entry}"), &lake, &[("LAKESCRUB_TEST_KILL_AFTER_ENTRY", entry)]);
    }
}

#[test]
fn the_ledger_and_all_that_shows_it_hold_nobody() {
    let lake = lake();
    // Every row's id is its own e-mail address: that is what people do.
    let job = lake.text("job.toml").replacen("uri = \"list.csv\"\n", "uri = \"list.csv\"\nrequest_id = \"email\"\n", 1);
    let (lists, datasets) = job.split_once("[[dataset]]").unwrap();
    let with_ledger = format!("{lists}[[list]]\nname = \"ledger\"\nuri = \"ledger\"\n[[dataset]]{datasets}");
    lake.write("job.toml", with_ledger);
    let [email, phone, ..] = CANARIES.map(|(kind, spelled, _)| format!("{kind}={spelled}"));
    let id = CANARIES[0].1;
    let name = format!("lake/deleted/email={}/x.csv", CANARIES[0].2.replace('@', "%40"));
    lake.write("calls.csv", format!("phone\n{}\n", CANARIES[1].1));
    let commands: [(&[&str], i32); 16] = [
        (&["requests", "import", "job.toml"], 0),
        (&["requests", "import", "job.toml", "calls.csv"], 0),
        (&["requests", "import", "job.toml", "list.csv", "--column", "nothing=email"], 2),
        (&["requests", "add", "job.toml", &phone, "--id", id], 0),
        (&["requests", "add", "job.toml", "email=Canary.Bird at Example.com"], 2),
        (&["requests", "list", "job.toml"], 0),
        (&["requests", "status", "job.toml"], 0),
        (&["requests", "export", "job.toml"], 0),
        (&["requests", "export", "job.toml", "--events"], 0),
        (&["gate", "job.toml", &name, "lake/deleted/a.csv", "--dataset", "deleted"], 3),
        (&["plan", "job.toml"], 0),
        (&["scrub", "job.toml"], 0),
        (&["verify", "job.toml"], 0),
        (&["requests", "export", "job.toml", "--events", "--format", "ndjson"], 0),
        (&["requests", "withdraw", "job.toml", id], 0),
        (&["requests", "withdraw", "job.toml", &email], 0),
    ];
    for (args, exit) in commands {
        for json in [&["-vv", "--log-format", "json", "--json"][..], &["-vv"]] {
            let ran = lake.run(&[args, json].concat());
            assert!(ran.code == Some(exit) || args[0] == "gate" || args[0] == "scrub", "{args:?}: {ran:?}");
            // The command line itself is the caller's.
            assert_private(&format!("{args:?}")[..20], &lake, &ran);
        }
    }
    let ran = lake.run(&["requests", "export", "job.toml", "--events"]).exits(0);
    assert!(ran.stdout.contains("withdrawn") && ran.stdout.contains("removed"), "{}", ran.stdout);
}
