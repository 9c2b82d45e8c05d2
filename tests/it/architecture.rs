//! The shape of `src/`: layers that use only what lies below them, stages that never use each other, every file declared and
//! introduced. What the verifier must not share with what it checks is tested in `verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every module, lowest layer first. A module uses what stands in its own layer or below, but a stage uses no other stage.
const LAYERS: [(&str, &[&str]); 5] = [
    (
        "vocabulary",
        &["error", "name_letters", "identifier", "date_format", "hashed", "column_path", "action", "residue", "meter"],
    ),
    (
        "pure facts",
        &[
            "key_table",
            "match_index",
            "match_builder",
            "match_composite",
            "match_probe",
            "plan",
            "manifest",
            "object_table",
            "merkle",
            "signature",
            "tag",
            "column_values",
            "parquet_bounds",
            "thrift",
            "page_bytes",
            "byte_mask",
            "toml_reader",
            "verify_letters",
            "verify_normalise",
            "deadline",
            "standing",
            "ledger_event",
            "ledger_fold",
            "tag_table",
            "unlisted",
            "screen",
        ],
    ),
    (
        "edges",
        &[
            "job",
            "job_read",
            "job_rules",
            "job_check",
            "store",
            "format",
            "dataset",
            "journal",
            "keys",
            "chain",
            "manifest_check",
            "request",
            "request_bytes",
            "request_cells",
            "request_frames",
            "request_lines",
            "request_text",
            "drop_files",
            "drop_answer",
            "ledger",
            "request_id",
            "request_import",
            "ledger_probe",
        ],
    ),
    ("stages", &["find", "rewrite", "purge", "verify", "manifest_diff"]),
    (
        "wiring",
        &[
            "account",
            "canary",
            "show",
            "show_table",
            "progress",
            "cli",
            "ledger_run",
            "requests",
            "request_deadlines",
            "request_export",
            "drop",
            "drop_consumers",
            "gate_scope",
            "gate_names",
            "gate",
            "session",
            "run",
            "main",
            "lib",
        ],
    ),
];

/// Files that are one stage with the file they are named after.
const PARTS_OF_STAGES: [(&str, &str); 19] = [
    ("probe_chunk", "find"),
    ("find_probe", "find"),
    ("find_parquet", "find"),
    ("find_records", "find"),
    ("verify_batch", "verify"),
    ("verify_gates", "verify"),
    ("verify_columns", "verify"),
    ("verify_parquet", "verify"),
    ("verify_records", "verify"),
    ("verify_ndjson", "verify"),
    ("verify_list", "verify"),
    ("verify_entries", "verify"),
    ("verify_rules", "verify"),
    ("verify_words", "verify"),
    ("verify_ledger", "verify"),
    ("verify_tokens", "verify"),
    ("verify_bytes", "verify"),
    ("verify_filter", "verify"),
    ("verify_names", "verify"),
];

/// What pure facts take from the edges: plain types of the job and of listings, each named here so that it stays a list.
const TYPES_OF_EDGES: [(&str, &[&str]); 7] = [
    ("match_index", &["job"]),
    ("match_builder", &["job", "request"]),
    ("match_composite", &["job"]),
    ("match_probe", &["job"]),
    ("plan", &["job", "format", "store"]),
    ("tag", &["job", "format"]),
    ("column_values", &["store"]),
];

struct Source {
    name: String,
    /// The module below `src/`: a folder is one module.
    module: String,
    text: String,
}

impl Source {
    /// The code, without comments and without its tests.
    fn code(&self) -> impl Iterator<Item = &str> {
        let code = self.text.split("#[cfg(test)]").next().unwrap_or("");
        code.lines().filter(|line| !line.trim_start().starts_with("//"))
    }

    fn uses(&self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for line in self.code() {
            for part in line.split("crate::").skip(1) {
                let names = part.strip_prefix('{').unwrap_or(part);
                let first: String =
                    names.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
                used.insert(first);
            }
        }
        used.retain(|name| name != &self.module);
        used
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = walkdir::WalkDir::new(&root).sort_by_file_name().into_iter().map(|entry| entry.unwrap().into_path());
    let sources = files.filter(|path| path.extension().is_some_and(|ending| ending == "rs")).map(|path| {
        let name = path.strip_prefix(&root).unwrap().with_extension("").to_string_lossy().into_owned();
        let module = name.split('/').next().unwrap().to_owned();
        Source { name, module, text: std::fs::read_to_string(path).unwrap() }
    });
    sources.collect()
}

fn layer(module: &str) -> Option<usize> {
    let stage = PARTS_OF_STAGES.iter().find(|(part, _)| *part == module).map_or(module, |(_, stage)| stage);
    LAYERS.iter().position(|(_, modules)| modules.contains(&stage))
}

fn stage(module: &str) -> &str {
    PARTS_OF_STAGES.iter().find(|(part, _)| *part == module).map_or(module, |(_, stage)| stage)
}

#[test]
fn layers_use_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(own) = layer(&source.module) else {
            wrong.push(format!("{} stands in no layer: put it into LAYERS", source.name));
            continue;
        };
        for used in source.uses() {
            let allowed =
                TYPES_OF_EDGES.iter().any(|(module, types)| *module == source.module && types.contains(&used.as_str()));
            match layer(&used) {
                Some(layer) if layer > own && !allowed => {
                    wrong.push(format!("{} ({}) uses {used} ({})", source.name, LAYERS[own].0, LAYERS[layer].0));
                }
                Some(layer) if LAYERS[layer].0 == "stages" && own == layer && stage(&used) != stage(&source.module) => {
                    wrong.push(format!("the stage {} uses the stage {used}", source.name));
                }
                Some(_) => {}
                None => wrong.push(format!("{} uses {used}, which stands in no layer", source.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_two_layers_hold_one_module_and_every_one_is_there() {
    let mut seen = BTreeMap::new();
    let modules: BTreeSet<String> = sources().into_iter().map(|source| source.module).collect();
    for (layer, names) in LAYERS {
        for name in names {
            assert_eq!(seen.insert(*name, layer), None, "{name} stands twice");
            assert!(modules.contains(*name), "{name} is named, but there is no such file");
        }
    }
}

#[test]
fn pure_facts_do_no_io() {
    let forbidden = ["tokio", "std::fs", "async fn", "Timestamp::now", "SystemTime", "Instant::now", "std::env"];
    for source in sources().iter().filter(|source| layer(&source.module).is_some_and(|layer| layer <= 1)) {
        let used: Vec<&str> = source.code().filter(|line| forbidden.iter().any(|name| line.contains(name))).collect();
        assert!(used.is_empty(), "{} is a pure fact: {used:?}", source.name);
    }
}

#[test]
fn every_file_is_declared_and_introduced() {
    let sources = sources();
    let declares = |file: &str, module: &str| {
        let parent = sources.iter().find(|source| source.name == file).unwrap();
        parent.text.lines().any(|line| line == format!("pub mod {module};") || line == format!("mod {module};"))
    };
    for source in &sources {
        assert!(source.text.starts_with("//! "), "{} has no module doc", source.name);
        let (parent, module) = match source.name.rsplit_once('/') {
            Some((folder, "mod")) => ("lib".to_owned(), folder),
            Some((folder, file)) => (format!("{folder}/mod"), file),
            None => ("lib".to_owned(), source.name.as_str()),
        };
        assert!(
            matches!(module, "lib" | "main") || declares(&parent, module),
            "{} is not declared in {parent}",
            source.name
        );
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for entry in walkdir::WalkDir::new(tests).into_iter().map(|entry| entry.unwrap().into_path()) {
        if entry.extension().is_some_and(|ending| ending == "rs") {
            assert!(std::fs::read_to_string(&entry).unwrap().starts_with("//! "), "{} has no doc", entry.display());
        }
    }
}

#[test]
fn the_crate_guide_holds_no_code_and_names_tests_that_exist() {
    let sources = sources();
    let guide = &sources.iter().find(|source| source.name == "lib").unwrap().text;
    for line in guide.lines() {
        assert!(
            line.is_empty() || line.starts_with("//") || (line.starts_with("pub mod ") && line.ends_with(';')),
            "{line}"
        );
    }
    // Each invariant names `suite::test_name`.
    let invariants = guide.split("//! # Invariants").nth(1).unwrap().split("//! # ").next().unwrap();
    let tests: Vec<&str> = invariants.split("Test").skip(1).collect();
    assert_eq!(tests.len(), 11, "{tests:#?}");
    for line in tests {
        let tests: Vec<&str> = line.split('`').filter(|word| word.contains("::") && !word.contains(' ')).collect();
        assert!(!tests.is_empty(), "names no test: {line}");
        for test in tests {
            let (suite, name) = test.split_once("::").unwrap();
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(format!("{suite}.rs"));
            let text = std::fs::read_to_string(&file).unwrap_or_else(|_| panic!("no suite {suite}: {line}"));
            assert!(text.contains(&format!("fn {name}(")), "no test {test}: {line}");
        }
    }
}
