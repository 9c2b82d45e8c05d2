//! A lake in a temporary folder and the real program on it: what the suites of the binary have in common.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lakescrub::object_table::{self, ObjectRow};
use serde_json::Value;

/// A folder with a job, its lists, its lake and its keys. It goes when it is dropped.
pub struct Lake {
    folder: tempfile::TempDir,
}

/// How a run of the program ended and what it said.
#[derive(Debug)]
pub struct Ran {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that the log or the error says every one of `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Ran {
        for part in parts {
            assert!(self.stderr.contains(part), "stderr does not say {part:?}:\n{}", self.stderr);
        }
        self
    }
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub inode: u64,
    pub modified_ns: i128,
    pub bytes: Vec<u8>,
}

impl Lake {
    /// An empty folder with `keys/`.
    pub fn new() -> Lake {
        let folder = tempfile::tempdir().unwrap();
        lakescrub::keys::generate_keys(&folder.path().join("keys")).unwrap();
        Lake { folder }
    }

    /// A list of e-mail addresses and a job that removes their rows from the CSV objects below `lake/`.
    pub fn of_customers(listed: &[&str]) -> Lake {
        let lake = Lake::new();
        lake.write("optouts.csv", format!("email\n{}\n", listed.join("\n")));
        lake.write("job.toml", CUSTOMERS_JOB);
        lake
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    /// The program with `args`, in this folder, with none of the caller's settings.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lakescrub"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("LAKESCRUB_")
                || name.starts_with("AWS_")
                || ["CI", "NO_COLOR", "COLUMNS"].contains(&name.as_str())
            {
                command.env_remove(name);
            }
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args))
    }

    /// Every file below `below`, by its name there.
    pub fn files(&self, below: &str) -> BTreeMap<String, Seen> {
        let root = self.path().join(below);
        let entries = walkdir::WalkDir::new(&root).into_iter().filter_map(Result::ok);
        let files = entries.filter(|entry| entry.file_type().is_file());
        files.map(|entry| (name_below(&root, entry.path()), seen(entry.path()))).collect()
    }

    pub fn bytes(&self, below: &str) -> BTreeMap<String, Vec<u8>> {
        self.files(below).into_iter().map(|(name, seen)| (name, seen.bytes)).collect()
    }

    /// Names of run folders in the state, oldest first.
    pub fn runs(&self) -> Vec<String> {
        let folder = self.path().join(".lakescrub/manifests");
        let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        let mut runs: Vec<_> = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect();
        runs.sort_by_key(|run| std::fs::metadata(run).unwrap().modified().unwrap());
        runs.iter().map(|run| run.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    /// The predicate of the last manifest.
    pub fn manifest(&self) -> Value {
        let run = self.runs().pop().expect("a run wrote a manifest");
        let text = self.text(&format!(".lakescrub/manifests/{run}/manifest.json"));
        serde_json::from_str::<Value>(&text).unwrap()["predicate"].clone()
    }

    /// The table of objects of the last manifest, by their names in this folder.
    pub fn objects(&self) -> BTreeMap<String, ObjectRow> {
        let run = self.runs().pop().expect("a run wrote a manifest");
        let bytes = self.read(&format!(".lakescrub/manifests/{run}/objects.parquet"));
        let rows = object_table::decode(bytes.into()).unwrap();
        rows.into_iter().map(|row| (name_below(self.path(), Path::new(&row.location)), row)).collect()
    }

    /// Temporary files of ours, wherever they are.
    pub fn temporary_files(&self) -> Vec<String> {
        self.files("").into_keys().filter(|name| name.contains(".lakescrub-")).collect()
    }
}

pub const CUSTOMERS_JOB: &str = r#"version = 1
name = "customers"

[guard]
max_fraction = 1.0

[[list]]
name = "optouts"
uri = "optouts.csv"

[[list.column]]
column = "email"
kind = "email"

[[dataset]]
name = "customers"
uri = "lake/"
format = "csv"

[[dataset.match]]
column = "email"
kind = "email"
"#;

fn name_below(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}

fn seen(path: &Path) -> Seen {
    let meta = std::fs::metadata(path).unwrap();
    let modified_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    Seen { inode: meta.ino(), modified_ns, bytes: std::fs::read(path).unwrap() }
}

pub fn ran(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let target: PathBuf = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            std::fs::create_dir_all(target).unwrap();
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// The content of a file whose name may say that it is compressed.
pub fn plain(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if name.ends_with(".gz") {
        flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    } else if name.ends_with(".zst") {
        zstd::Decoder::new(bytes).unwrap().read_to_end(&mut out).unwrap();
    } else {
        out.extend_from_slice(bytes);
    }
    out
}
