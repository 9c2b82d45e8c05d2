//! Whole jobs on small lakes: what the program must leave behind, byte for byte, and how it must exit.
//!
//! `tests/cases/NAME/` is one case: `job.toml`, `lists/`, `lake/` before, `after/` with the files that a scrub changes, and
//! `expect.toml` with exit codes, counts and the outcome of each object. Files in `after/` named `.gz` or `.zst` hold plain text:
//! the lake's own are compared decompressed. [`Case::prepare`] makes what text cannot show.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::lakescrub_runner::{Lake, Ran, Seen, copy_folder, gzip, plain, zstd};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// What the case shows, in a sentence.
    shows: String,
    /// Of a scrub; the other commands exit the same where nothing else is said.
    exit: i32,
    plan: Option<i32>,
    /// Of the second scrub.
    again: Option<i32>,
    verify: Option<i32>,
    /// Parts of what scrub says on stderr.
    #[serde(default)]
    says: Vec<String>,
    /// Totals of the manifest over all datasets; `matched` is the plan's, too.
    rows: Option<Rows>,
    /// Identifiers of the manifest's lists, all kinds together.
    identifiers: Option<u64>,
    /// Values that could not be compared, by column.
    #[serde(default)]
    not_comparable: BTreeMap<String, u64>,
    /// Every object of the table with its outcome, and what its reason says after a colon.
    #[serde(default)]
    objects: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, PartialEq, Eq, Default)]
#[serde(deny_unknown_fields, default)]
struct Rows {
    before: u64,
    matched: u64,
    removed: u64,
    redacted: u64,
    after: u64,
}

struct Case {
    name: String,
    folder: PathBuf,
    expect: Expect,
}

#[test]
fn every_case_leaves_the_lake_it_should() {
    let cases = cases();
    assert!(!cases.is_empty());
    // A case fails by a panic of its own, so that one run tells all that fail.
    let failed: Vec<String> = cases
        .par_iter()
        .filter(|case| std::panic::catch_unwind(|| case.check()).is_err())
        .map(|case| format!("{} ({})", case.name, case.expect.shows))
        .collect();
    assert!(failed.is_empty(), "cases that fail: {failed:#?}");
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let wanted = std::env::var("LAKESCRUB_TEST_CASE").ok();
    let mut cases: Vec<Case> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|folder| {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(folder.join("expect.toml")).unwrap();
            let expect = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            Case { name, folder, expect }
        })
        .filter(|case| wanted.as_ref().is_none_or(|wanted| case.name == *wanted))
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

impl Case {
    fn check(&self) {
        let (lake, expect) = (self.prepare(), &self.expect);
        let before = lake.files("lake");
        let everything = lake.files("");
        let plan =
            self.step("plan", lake.run(&["plan", "job.toml", "--json"]).exits(expect.plan.unwrap_or(expect.exit)));
        assert_eq!(lake.files(""), everything, "{}: plan changed something", self.name);
        if let Some(rows) = expect.rows.as_ref().filter(|_| plan["datasets"].is_array()) {
            assert_eq!(total(&plan, "matched"), rows.matched, "{}: planned", self.name);
        }

        let says: Vec<&str> = expect.says.iter().map(String::as_str).collect();
        self.step("scrub", lake.run(&["scrub", "job.toml", "--json"]).exits(expect.exit).says(&says));
        self.check_lake(&lake, &before);
        if expect.exit == 2 || expect.exit == 10 {
            assert_eq!(lake.runs(), [""; 0], "{}: a refused run wrote a manifest", self.name);
            return;
        }
        self.check_manifest(&lake);

        let scrubbed = lake.files("lake");
        self.step("again", lake.run(&["scrub", "job.toml", "--json"]).exits(expect.again.unwrap_or(expect.exit)));
        assert_eq!(lake.files("lake"), scrubbed, "{}: the second scrub changed something", self.name);
        assert_eq!(total(&lake.manifest(), "removed"), 0, "{}: removed again", self.name);
        let verify = expect.verify.or(expect.again).unwrap_or(expect.exit);
        self.step("verify", lake.run(&["verify", "job.toml", "--json"]).exits(verify));
        assert_eq!(lake.files("lake"), scrubbed, "{}: verify changed something", self.name);
        let check = lake.run(&["manifest", "check", ".lakescrub", "--public-key", "keys/signing.pub"]).exits(0);
        assert!(check.stdout.contains("the chain of 3 manifests"), "{}: {}", self.name, check.stdout);
    }

    /// Each command prints one JSON document that names the exit code, whatever that is.
    fn step(&self, step: &str, ran: Ran) -> Value {
        let document = ran.json();
        assert_eq!(document["exit"]["code"].as_i64(), ran.code.map(i64::from), "{} {step}: {document:#}", self.name);
        document
    }

    fn prepare(&self) -> Lake {
        let lake = Lake::new();
        copy_folder(&self.folder, lake.path());
        std::fs::remove_file(lake.path().join("expect.toml")).unwrap();
        std::fs::remove_dir_all(lake.path().join("after")).ok();
        // Committed as text, so that a diff can be read.
        for below in ["lake", "lists"] {
            for (name, bytes) in lake.bytes(below) {
                let name = format!("{below}/{name}");
                if self.name == "gzip_of_several_members" {
                    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
                    lake.write(&name, lines.map(gzip).collect::<Vec<_>>().concat());
                } else if name.ends_with("cut.csv.gz") {
                    let whole = gzip(&bytes);
                    lake.write(&name, &whole[..whole.len() - 12]);
                } else if name.ends_with(".gz") {
                    lake.write(&name, gzip(&bytes));
                } else if name.ends_with(".zst") {
                    lake.write(&name, zstd(&bytes));
                }
            }
        }
        lake
    }

    fn check_lake(&self, lake: &Lake, before: &BTreeMap<String, Seen>) {
        let after = lake.files("lake");
        let outcome = |name: &str| self.expect.objects.get(&format!("lake/{name}")).map_or("", |text| text.as_str());
        for (name, seen) in before {
            if outcome(name) == "dropped" {
                assert!(!after.contains_key(name), "{}: {name} is still there", self.name);
                continue;
            }
            let now = after.get(name).unwrap_or_else(|| panic!("{}: {name} is gone", self.name));
            match std::fs::read(self.folder.join("after").join(name)) {
                Ok(wish) => {
                    let is = plain(name, &now.bytes);
                    assert_eq!(is, wish, "{}: {name} is {:?}", self.name, String::from_utf8_lossy(&is));
                    assert_ne!(now.bytes, seen.bytes, "{}: {name} did not change", self.name);
                }
                Err(_) => assert_eq!(now, seen, "{}: {name} was written", self.name),
            }
        }
        assert_eq!(lake.temporary_files(), [""; 0], "{}", self.name);
    }

    fn check_manifest(&self, lake: &Lake) {
        let manifest = lake.manifest();
        let objects = lake.objects();
        let outcomes: BTreeMap<String, String> = objects
            .iter()
            .map(|(name, row)| {
                let wish = self.expect.objects.get(name).map_or("", String::as_str);
                let outcome = row.outcome.name();
                let reason = row.reason.clone().unwrap_or_default();
                let as_wished =
                    wish.split_once(": ").is_some_and(|(told, why)| told == outcome && reason.contains(why));
                let told = if as_wished { wish.to_owned() } else { outcome.to_owned() };
                (name.clone(), if wish.contains(": ") && !as_wished { format!("{told}: {reason}") } else { told })
            })
            .collect();
        assert_eq!(outcomes, self.expect.objects, "{}", self.name);
        for (name, row) in &objects {
            if let (Some(before), Some(removed), Some(after)) = (row.rows_before, row.rows_removed, row.rows_after) {
                assert_eq!(before - removed, after, "{}: {name}", self.name);
            }
        }
        let rows = Rows {
            before: total(&manifest, "before"),
            matched: total(&manifest, "matched"),
            removed: total(&manifest, "removed"),
            redacted: total(&manifest, "redacted"),
            after: total(&manifest, "after"),
        };
        if let Some(wish) = &self.expect.rows {
            assert_eq!(&rows, wish, "{}", self.name);
        }
        if let Some(wish) = self.expect.identifiers {
            let lists = manifest["lists"].as_array().unwrap().iter();
            let counts = lists.flat_map(|list| list["identifiers"].as_object().unwrap().values());
            assert_eq!(counts.map(|count| count.as_u64().unwrap()).sum::<u64>(), wish, "{}", self.name);
        }
        let not_comparable: BTreeMap<String, u64> = manifest["datasets"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|dataset| dataset["not_comparable"].as_object().unwrap())
            .map(|(column, count)| (column.clone(), count.as_u64().unwrap()))
            .collect();
        assert_eq!(not_comparable, self.expect.not_comparable, "{}", self.name);
    }
}

/// A row count summed over all datasets; what was not checked is not there.
fn total(document: &Value, count: &str) -> u64 {
    let datasets = document["datasets"].as_array().into_iter().flatten();
    datasets.filter_map(|dataset| dataset["rows"][count].as_u64()).sum()
}
